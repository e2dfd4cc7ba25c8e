//! The control plane's own metrics.

use std::sync::atomic::{AtomicBool, Ordering};

use duet_telemetry::catalogue as metrics;

use super::Fault;

/// Access to the process's metrics.
#[derive(Clone)]
pub struct Telemetry(());

/// Outlives each control plane, as the metrics do.
static MARKS_FAILED: AtomicBool = AtomicBool::new(false);

/// Has every metric exist from now on.
#[must_use]
pub fn install() -> Telemetry {
    duet_telemetry::start();
    Telemetry(())
}

impl Telemetry {
    /// Everything, in Prometheus' text format.
    #[must_use]
    pub fn render(&self) -> String {
        duet_telemetry::render()
    }

    /// When a certificate of the gateway ends, Unix seconds.
    pub fn set_certificate_end(&self, key_id: u8, not_after_s: i64) {
        let end = u64::try_from(not_after_s).unwrap_or(0);
        metrics::CERTIFICATE_END.with([&key_id.to_string()]).set_count(end);
    }

    /// A certificate of the gateway is no longer used.
    pub fn forget_certificate(&self, key_id: u8) {
        metrics::CERTIFICATE_END.remove([&key_id.to_string()]);
    }

    /// When the certificate of the API over TLS ends, Unix seconds.
    pub fn set_api_certificate_end(&self, not_after_s: i64) {
        metrics::API_CERTIFICATE_END.one().set_count(u64::try_from(not_after_s).unwrap_or(0));
    }

    /// What this program is.
    pub fn set_build(&self, curve: &str, aead: &str) {
        let info = &metrics::BUILD_INFO;
        info.with([env!("CARGO_PKG_VERSION"), env!("DUET_COMMIT"), curve, aead]).set_count(1);
    }

    /// What became of a reload.
    pub fn count_reload(&self, done: bool) {
        metrics::RELOADS.with([if done { "done" } else { "refused" }]).add(1);
    }

    pub(super) fn marks_failed(&self) -> bool {
        MARKS_FAILED.load(Ordering::Relaxed)
    }

    pub(super) fn set_devices(&self, devices: usize) {
        metrics::DEVICES.one().set_count(devices as u64);
    }

    pub(super) fn set_faults(&self, faults: &[Fault]) {
        for fault in Fault::ALL {
            metrics::FAULTS.with([fault.name()]).set_flag(faults.contains(&fault));
        }
    }

    pub(super) fn count_denied(&self) {
        metrics::DENIED.one().add(1);
    }

    /// Somebody wanted to enrol: `enrolled`, `again`, `refused` or `limited`.
    pub(super) fn count_enrolment(&self, outcome: &str) {
        metrics::ENROLMENTS.with([outcome]).add(1);
    }

    pub(super) fn count_request(&self) {
        metrics::REQUESTS.one().add(1);
    }

    pub(super) fn marks_saved(&self, saved: Option<usize>) {
        MARKS_FAILED.store(saved.is_none(), Ordering::Relaxed);
        metrics::MARKS_FAILED.one().set_flag(saved.is_none());
        metrics::MARKS_SAVED.one().add(saved.unwrap_or(0) as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_shown_while_it_lasts_under_the_name_that_status_has_for_it() {
        let telemetry = install();
        for fault in Fault::ALL {
            let json = serde_json::to_string(&fault).unwrap();
            assert_eq!(json, format!("\"{}\"", fault.name()));
        }
        telemetry.set_faults(&[Fault::SpoolFull]);
        assert!(telemetry.render().contains("duet_fault{fault=\"spool-full\"} 1\n"));
        assert!(telemetry.render().contains("duet_fault{fault=\"disk-full\"} 0\n"));
        telemetry.set_faults(&[]);
        assert!(telemetry.render().contains("duet_fault{fault=\"spool-full\"} 0\n"));
    }
}
