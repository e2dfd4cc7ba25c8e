//! `[quota]`: what one device may store.

use serde::Deserialize;

use super::Check;

/// `[quota]`, for each device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Readings a second, ten seconds' worth at once; 0: as many as it likes.
    pub readings_per_s: u32,
    /// Bytes a second as they are stored, the same way.
    pub bytes_per_s: u64,
    /// When less than a quarter of the spool is left: which part of the whole it may fill in an hour, percent;
    /// 0: all that is left.
    pub share_percent: u8,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct FileQuota {
    readings_per_s: Option<u32>,
    bytes_per_s: Option<u64>,
    share_percent: Option<u8>,
}

impl FileQuota {
    pub(super) fn resolve(self) -> Quota {
        Quota {
            readings_per_s: self.readings_per_s.unwrap_or(0),
            bytes_per_s: self.bytes_per_s.unwrap_or(0),
            share_percent: self.share_percent.unwrap_or(1),
        }
    }
}

impl Quota {
    pub(super) fn check(&self, check: &mut Check) {
        check.that(
            self.readings_per_s <= 1_000_000,
            "quota.readings_per_s",
            "must be 0 (no limit) to 1000000",
        );
        check.that(
            self.bytes_per_s <= 1 << 30,
            "quota.bytes_per_s",
            "must be 0 (no limit) to 1073741824",
        );
        check.that(
            self.share_percent <= 25,
            "quota.share_percent",
            "must be 0 (no limit) to 25: more is not left when it counts",
        );
    }
}
