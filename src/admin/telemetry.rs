//! The process's metrics: one recorder, rendered for Prometheus, and the control plane's own.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge};
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
        describe_gauge!("duet_sessions", "Sessions that a record has confirmed.");
        describe_gauge!("duet_sessions_pending", "Sessions that wait for their first record.");
        describe_gauge!("duet_backend_info", "1; its labels name the engines in use.");
        describe_counter!("duet_drops_total", "Inputs discarded, each for one reason.");
        describe_counter!("duet_accepts_total", "ACCEPTs made, repeated ones not counted.");
        describe_counter!("duet_sessions_confirmed_total", "Sessions confirmed by a record.");
        describe_counter!("duet_readings_total", "Readings taken.");
        describe_counter!("duet_resets_total", "RESETs sent.");
        describe_counter!("duet_unsent_total", "Messages not sent: too many waited already.");
        describe_counter!(
            "duet_slow_verifications_total",
            "Signatures that took the slow path: more than a few are made on purpose."
        );
        describe_histogram!("duet_hello_batch", "Hellos answered as one batch.");
        describe_histogram!("duet_hello_wait_seconds", "Wait of a batch's oldest HELLO.");
        describe_histogram!("duet_hello_batch_seconds", "Time that one batch took.");
        describe_gauge!(
            "duet_certificate_end_timestamp_seconds",
            "When a certificate of the gateway ends, Unix time."
        );
        describe_gauge!("duet_marks_failed", "1 while freshness marks cannot be saved.");
        describe_counter!("duet_marks_saved_total", "Freshness marks saved.");
        describe_counter!("duet_control_requests_total", "Requests on the control socket.");
        describe_counter!("duet_api_denied_total", "Requests to the API without a valid token.");
        counter!("duet_api_denied_total").absolute(0);
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

    /// When a certificate of the gateway ends, Unix seconds.
    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
    pub fn set_certificate_end(&self, key_id: u8, not_after_s: i64) {
        gauge!("duet_certificate_end_timestamp_seconds", "key_id" => key_id.to_string())
            .set(not_after_s as f64);
    }

    pub(super) fn marks_failed(&self) -> bool {
        MARKS_FAILED.load(Ordering::Relaxed)
    }

    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
    pub(super) fn set_devices(&self, devices: usize) {
        gauge!("duet_devices").set(devices as f64);
    }

    pub(super) fn count_denied(&self) {
        counter!("duet_api_denied_total").increment(1);
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
