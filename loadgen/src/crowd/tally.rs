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
        Self { latency, lateness, due: 0, done: 0, late: 0, busy: 0.0, took: Duration::ZERO }
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
}
