//! Every metric of the spool, named and described in one place. The recorder is the caller's.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

/// Records made durable.
pub const RECORDS: &str = "duet_spool_records_total";
/// Bytes made durable, record heads included.
pub const BYTES: &str = "duet_spool_bytes_total";
/// Batches and groups the spool did not take, by `reason`: [`QUEUE`], [`FULL`], [`DISK`], [`FAILED`].
pub const REFUSED: &str = "duet_spool_refused_total";
/// Seconds one group took from its write to its durability.
pub const COMMIT_SECONDS: &str = "duet_spool_commit_seconds";
/// Records in one group.
pub const BATCH_RECORDS: &str = "duet_spool_batch_records";
/// Bytes the segments take on disk.
pub const DISK_BYTES: &str = "duet_spool_disk_bytes";
/// The index after the last durable record.
pub const DURABLE_INDEX: &str = "duet_spool_durable_index";
/// Readings that were not taken since their device is beyond a `quota`: `readings`, `bytes`, `share`.
pub const BEYOND: &str = "duet_spool_beyond_quota_total";
/// Readings that were removed before every required cursor had them, by `reason`: [`AGE`], [`SIZE`].
pub const DROPPED: &str = "duet_spool_dropped_total";
/// Durable readings that upstreams passed over since they can no longer be read; each upstream counts for itself.
pub const UNREADABLE: &str = "duet_spool_unreadable_total";
/// Whether the spool works: 1, or 0 after a failed write or sync.
pub const HEALTHY: &str = "duet_spool_healthy";

/// Refused since too many batches were queued already.
pub const QUEUE: &str = "queue";
/// Refused since the spool may not grow further.
pub const FULL: &str = "full";
/// Refused since the disk has no room for the next segment.
pub const DISK: &str = "disk";
/// Refused since the spool has failed.
pub const FAILED: &str = "failed";

/// Dropped since they were older than the settings let them become.
pub const AGE: &str = "age";
/// Dropped since the spool was full and its settings say so.
pub const SIZE: &str = "size";

/// Tells the installed recorder what the spool's metrics mean.
pub fn describe() {
    describe_counter!(RECORDS, Unit::Count, "records made durable");
    describe_counter!(BYTES, Unit::Bytes, "bytes made durable");
    describe_counter!(
        REFUSED,
        Unit::Count,
        "batches or groups refused and not acknowledged, by reason"
    );
    describe_histogram!(COMMIT_SECONDS, Unit::Seconds, "time of one group's write and sync");
    describe_histogram!(BATCH_RECORDS, Unit::Count, "records in one group");
    describe_counter!(
        BEYOND,
        Unit::Count,
        "readings not taken since their device is beyond a quota, by quota"
    );
    describe_counter!(
        UNREADABLE,
        Unit::Count,
        "durable readings passed over since they are damaged, for each reader"
    );
    describe_counter!(
        DROPPED,
        Unit::Count,
        "readings removed before every required cursor had them, by reason"
    );
    describe_gauge!(DISK_BYTES, Unit::Bytes, "size of all segments on disk");
    describe_gauge!(DURABLE_INDEX, Unit::Count, "index after the last durable record");
    describe_gauge!(HEALTHY, "1 while the spool works, 0 after a failed write or sync");
}
