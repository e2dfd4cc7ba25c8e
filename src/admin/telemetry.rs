//! The process's metrics: one recorder, rendered for Prometheus, and the control plane's own.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use metrics::{counter, describe_counter, describe_gauge, gauge};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

/// Access to the process's metrics.
#[derive(Clone)]
pub struct Telemetry {
    handle: PrometheusHandle,
}

/// Outlives each control plane, as the recorder does.
static MARKS_FAILED: AtomicBool = AtomicBool::new(false);

/// Installs the recorder on the first call and returns the same one afterwards. Call it before
/// anything counts: what is counted earlier is lost.
pub fn install() -> Telemetry {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    let handle = HANDLE.get_or_init(|| {
        let recorder = PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        // Another recorder means that someone else collects: ours then renders nothing.
        let _ = metrics::set_global_recorder(recorder);
        describe_gauge!("duet_devices", "Devices that may connect.");
        describe_gauge!("duet_marks_failed", "1 while freshness marks cannot be saved.");
        describe_counter!("duet_marks_saved_total", "Freshness marks saved.");
        describe_counter!("duet_control_requests_total", "Requests on the control socket.");
        describe_gauge!("duet_build_info", "1, with the version as a label.");
        gauge!("duet_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
        gauge!("duet_marks_failed").set(0.0);
        counter!("duet_marks_saved_total").absolute(0);
        counter!("duet_control_requests_total").absolute(0);
        handle
    });
    Telemetry { handle: handle.clone() }
}

impl Telemetry {
    /// Everything, in Prometheus' text format.
    #[must_use]
    pub fn render(&self) -> String {
        self.handle.render()
    }

    /// Folds histograms' samples; without it they grow. To be called every few seconds.
    pub fn run_upkeep(&self) {
        self.handle.run_upkeep();
    }

    pub(super) fn marks_failed(&self) -> bool {
        MARKS_FAILED.load(Ordering::Relaxed)
    }

    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
    pub(super) fn set_devices(&self, devices: usize) {
        gauge!("duet_devices").set(devices as f64);
    }

    pub(super) fn count_request(&self) {
        counter!("duet_control_requests_total").increment(1);
    }

    pub(super) fn marks_saved(&self, saved: Option<usize>) {
        MARKS_FAILED.store(saved.is_none(), Ordering::Relaxed);
        gauge!("duet_marks_failed").set(f64::from(u8::from(saved.is_none())));
        counter!("duet_marks_saved_total").increment(saved.unwrap_or(0) as u64);
    }
}
