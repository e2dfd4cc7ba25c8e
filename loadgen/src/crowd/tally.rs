//! What a phase of a crowd came to.

use std::time::Duration;

use anyhow::Result;
use hdrhistogram::Histogram;

/// A reading that this program sends later than this after its time counts as late, µs.
const LATE_US: u64 = 5_000;
/// The share of late readings above which a run is not valid.
pub const LATE_SHARE_MAX: f64 = 0.01;
/// The share of a core above which a thread was the bottleneck.
pub const BUSY_MAX: f64 = 0.95;
/// The share of a storm that this program may take until all have knocked.
pub const KNOCKING_SHARE_MAX: f64 = 0.1;
/// The longest latency that is told apart, µs.
const LATENCY_MAX: u64 = 120_000_000;

/// How a phase went on one thread; adds up over threads.
#[derive(Clone, Debug)]
pub struct Tally {
    /// From the time something was due to its confirmation (or to the open channel), µs. What never came counts with the
    /// time that it was missing at the end.
    pub latency: Histogram<u64>,
    /// How late this program was, µs.
    pub lateness: Histogram<u64>,
    /// Things that were due.
    pub due: u64,
    /// Things that were done.
    pub done: u64,
    /// Things due that this program began late.
    pub late: u64,
    /// The busiest thread's share of its core.
    pub busy: f64,
    /// Answers that were lost because this program's socket was full.
    pub overflowed: u64,
    /// From the beginning to the end of what was asked for, or to the last thing done if that came later.
    pub took: Duration,
}

impl Default for Tally {
    fn default() -> Self {
        let histogram = || match Histogram::new_with_bounds(1, LATENCY_MAX, 3) {
            Ok(histogram) => histogram,
            Err(_) => unreachable!("the bounds are in order"),
        };
        let (latency, lateness) = (histogram(), histogram());
        Self {
            latency,
            lateness,
            due: 0,
            done: 0,
            late: 0,
            busy: 0.0,
            overflowed: 0,
            took: Duration::ZERO,
        }
    }
}

impl Tally {
    /// Adds what another thread did.
    ///
    /// # Errors
    /// Never, for tallies made by [`Tally::default`].
    pub fn add(&mut self, other: &Self) -> Result<()> {
        self.latency.add(&other.latency)?;
        self.lateness.add(&other.lateness)?;
        self.due += other.due;
        self.done += other.done;
        self.late += other.late;
        self.busy = self.busy.max(other.busy);
        self.overflowed += other.overflowed;
        self.took = self.took.max(other.took);
        Ok(())
    }

    /// Something is begun this long after its time, µs; whether that counts as late.
    pub fn note_begun(&mut self, late_us: u64) -> bool {
        self.due += 1;
        self.note_late(late_us)
    }

    /// Something that is counted as due already is begun this long after its time, µs; whether that counts as late.
    pub fn note_late(&mut self, late_us: u64) -> bool {
        self.lateness.saturating_record(late_us.min(LATENCY_MAX));
        let is_late = late_us > LATE_US;
        self.late += u64::from(is_late);
        is_late
    }

    /// A device of a storm knocked this long after the others, µs.
    pub fn note_knock(&mut self, late_us: u64) {
        self.lateness.saturating_record(late_us.min(LATENCY_MAX));
    }

    /// How long this program took to let all devices of a storm knock, as a share of the whole.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a share")]
    pub fn knocking_share(&self) -> f64 {
        self.lateness.max() as f64 / 1e6 / self.took.as_secs_f64().max(1e-6)
    }

    /// Something was done this long after its time, µs.
    pub fn note_done(&mut self, took_us: u64) {
        self.latency.saturating_record(took_us.min(LATENCY_MAX));
        self.done += 1;
    }

    /// Something is still missing this long after its time, µs.
    pub fn note_missing(&mut self, for_us: u64) {
        self.latency.saturating_record(for_us.min(LATENCY_MAX));
    }

    /// The share of what was due that this program began late.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a share")]
    pub fn late_share(&self) -> f64 {
        if self.due == 0 { 0.0 } else { self.late as f64 / self.due as f64 }
    }

    /// Why the phase was one of this program and not of the gateway, with what would help. `when` and `lower` say which
    /// phase it was, and what of it could be less.
    #[must_use]
    pub fn own_faults(&self, when: &str, lower: &str) -> Vec<String> {
        let mut faults = Vec::new();
        if self.late_share() > LATE_SHARE_MAX {
            faults.push(format!(
                "{when}{:.1}% of what was due was begun more than 5 ms late by this program: use {lower}, or more cores",
                self.late_share() * 100.0
            ));
        }
        if self.busy > BUSY_MAX {
            faults.push(format!(
                "{when}a thread of this program was busy for {:.0}% of the time: use {lower}, or more --threads",
                self.busy * 100.0
            ));
        }
        if self.overflowed > 0 {
            faults.push(format!(
                "{when}{} answers were lost because this program's socket was full: run it as root, raise net.core.rmem_max, \
                 or use {lower}",
                self.overflowed
            ));
        }
        faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phase_in_which_this_program_was_late_or_busy_is_its_own_fault() {
        let mut tally = Tally { busy: 0.96, overflowed: 7, ..Tally::default() };
        for late_us in std::iter::repeat_n(0, 98).chain([6_000, 6_000]) {
            tally.note_begun(late_us);
        }
        let faults = tally.own_faults("while devices connected, ", "a lower --connect-rate");
        assert_eq!(faults.len(), 3);
        assert!(faults[0].starts_with("while devices connected, 2.0% of what was due"));
        assert!(faults.iter().all(|fault| fault.contains("use a lower --connect-rate")));
        assert!(Tally::default().own_faults("", "a lower rate").is_empty());
    }
}
