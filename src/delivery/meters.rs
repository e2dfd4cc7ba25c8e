//! What the spool's thread counts.

use std::time::Duration;

use duet_telemetry::catalogue as metrics;
use duet_telemetry::{Counter, Gauge, Histogram};

/// The metrics of what becomes durable, at hand for each group.
pub(super) struct Meters {
    records: Counter,
    bytes: Counter,
    group: Histogram,
    commit: Histogram,
    durable: Gauge,
}

impl Meters {
    /// For a spool whose next record gets this index.
    pub(super) fn new(next_index: u64) -> Self {
        let durable = metrics::SPOOL_DURABLE.one();
        durable.set_count(next_index);
        Self {
            records: metrics::SPOOL_RECORDS.one(),
            bytes: metrics::SPOOL_BYTES.one(),
            group: metrics::SPOOL_GROUP.one(),
            commit: metrics::SPOOL_COMMIT.one(),
            durable,
        }
    }

    /// A group has become durable.
    pub(super) fn committed(&self, records: u32, bytes: usize, took: Duration, next_index: u64) {
        self.records.add(records.into());
        self.bytes.add(bytes as u64);
        self.group.observe(records.into());
        self.commit.observe(took.as_secs_f64());
        self.durable.set_count(next_index);
    }
}

/// A batch or a group was not taken.
pub(super) fn refused(reason: &'static str) {
    metrics::SPOOL_REFUSED.with([reason]).add(1);
}
