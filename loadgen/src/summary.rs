//! A fleet's outcomes in a few figures.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::fleet::Outcome;

/// The version of [`Report`]'s structure.
pub(crate) const SCHEMA: u32 = 1;

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
    /// Half are below.
    pub p50: f64,
    /// 90 of 100 are below.
    pub p90: f64,
    /// 99 of 100 are below.
    pub p99: f64,
    /// The largest.
    pub max: f64,
}

impl Report {
    /// Sums up.
    #[must_use]
    pub fn new(outcomes: &[Outcome], gateway_cpu: Duration) -> Self {
        let mut times: Vec<_> = outcomes
            .iter()
            .filter_map(|one| one.first_confirmed)
            .map(|time| time.as_secs_f64() * 1e3)
            .collect();
        times.sort_unstable_by(f64::total_cmp);
        let at = |percent: usize| {
            let place = (times.len() * percent / 100).min(times.len().saturating_sub(1));
            times.get(place).copied().unwrap_or_default()
        };
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
        writeln!(f, "devices          {} complete of {}", self.complete, self.devices)?;
        writeln!(f, "readings         {} confirmed", self.confirmed)?;
        writeln!(f, "first confirmed  p50 {p50:.2} ms, p90 {p90:.2}, p99 {p99:.2}, max {max:.2}")?;
        writeln!(f, "repetitions      {} handshake messages", self.extra_handshake_messages)?;
        write!(f, "gateway CPU      {:.0} µs a device, all its work", self.gateway_cpu_us_a_device)
    }
}
