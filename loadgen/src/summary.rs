//! A fleet's outcomes in a few figures.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::compare::percentile;
use crate::fleet::Outcome;

/// The version of [`Report`]'s structure.
pub(crate) const SCHEMA: u32 = 2;

/// What a fleet did.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Of this structure.
    pub schema: u32,
    /// Devices that were to begin.
    pub devices: usize,
    /// Devices that did their whole job.
    pub complete: usize,
    /// Readings that the gateway confirmed.
    pub confirmed: usize,
    /// HELLO and ACCEPT messages beyond two for each device.
    pub extra_handshake_messages: u32,
    /// From first byte out to first confirmed reading, ms.
    pub first_confirmed_ms: Percentiles,
    /// The gateway's processor time in all, µs.
    pub gateway_cpu_us: f64,
    /// The same for each device's whole job.
    pub gateway_cpu_us_a_device: f64,
}

/// Of a distribution.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Percentiles {
    /// Half are no larger; `None` (as below) where that includes some that never came.
    pub p50: Option<f64>,
    /// 90 of 100 are no larger.
    pub p90: Option<f64>,
    /// 99 of 100 are no larger.
    pub p99: Option<f64>,
    /// The largest.
    pub max: Option<f64>,
}

impl Report {
    /// Sums up.
    #[must_use]
    pub fn new(outcomes: &[Outcome], gateway_cpu: Duration) -> Self {
        // What never came is longer than all that did.
        let mut times: Vec<_> = outcomes.iter().map(|one| one.first_confirmed).collect();
        times.sort_unstable_by_key(|time| time.unwrap_or(Duration::MAX));
        let at = |percent| Some(percentile(&times, percent)??.as_secs_f64() * 1e3);
        let messages: u32 = outcomes.iter().map(|one| one.handshake_messages).sum();
        let two_each = u32::try_from(2 * outcomes.len()).unwrap_or(u32::MAX);
        let gateway_cpu_us = gateway_cpu.as_secs_f64() * 1e6;
        #[expect(clippy::cast_precision_loss, reason = "a number of devices is exact")]
        let each = gateway_cpu_us / outcomes.len().max(1) as f64;
        Self {
            schema: SCHEMA,
            devices: outcomes.len(),
            complete: outcomes.iter().filter(|one| one.complete).count(),
            confirmed: outcomes.iter().map(|one| one.confirmed.len()).sum(),
            extra_handshake_messages: messages.saturating_sub(two_each),
            first_confirmed_ms: Percentiles { p50: at(50), p90: at(90), p99: at(99), max: at(100) },
            gateway_cpu_us,
            gateway_cpu_us_a_device: each,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Percentiles { p50, p90, p99, max } = self.first_confirmed_ms;
        let [p50, p90, p99, max] = [p50, p90, p99, max]
            .map(|ms| ms.map_or_else(|| "never".to_owned(), |ms| format!("{ms:.2} ms")));
        writeln!(f, "devices          {} complete of {}", self.complete, self.devices)?;
        writeln!(f, "readings         {} confirmed", self.confirmed)?;
        writeln!(f, "first confirmed  p50 {p50}, p90 {p90}, p99 {p99}, max {max}")?;
        writeln!(f, "repetitions      {} handshake messages", self.extra_handshake_messages)?;
        write!(f, "gateway CPU      {:.0} µs a device, all its work", self.gateway_cpu_us_a_device)
    }
}

#[cfg(test)]
mod tests {
    use duet_protocol::profile::{Profile, Transport};

    use super::*;

    #[test]
    fn devices_that_never_got_a_reading_confirmed_are_the_slowest() {
        let outcome = |ms: Option<u64>| Outcome {
            device: String::new(),
            profile: Profile::ALL[0],
            transport: Transport::Datagram,
            first_confirmed: ms.map(Duration::from_millis),
            handshake_messages: 2,
            handshake_bytes: 0,
            confirmed: Vec::new(),
            complete: ms.is_some(),
        };
        let outcomes = [outcome(None), outcome(Some(30)), outcome(Some(10)), outcome(Some(20))];
        let report = Report::new(&outcomes, Duration::ZERO);
        let Percentiles { p50, p90, max, .. } = report.first_confirmed_ms;
        assert_eq!((p50, p90, max), (Some(20.0), None, None));
        assert!(report.to_string().contains("p50 20.00 ms, p90 never"));
    }
}
