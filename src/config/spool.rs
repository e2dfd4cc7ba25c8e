//! `[spool]`: where readings are stored, and how long.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::Check;

/// `[spool]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spool {
    /// Directory of the segments.
    pub dir: PathBuf,
    /// Size of one segment.
    pub segment_bytes: u64,
    /// Size of all segments together.
    pub max_bytes: u64,
    /// How old readings may get, delivered or not, seconds; 0: as old as they like.
    pub max_age_s: u64,
    /// What happens when `max_bytes` is reached.
    pub when_full: WhenFull,
}

/// What happens when the spool is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenFull {
    /// Nothing more is stored, and devices keep their readings, until there is room.
    #[default]
    Block,
    /// The oldest readings are removed, delivered or not.
    DropOldest,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct FileSpool {
    dir: Option<PathBuf>,
    segment_bytes: Option<u64>,
    max_bytes: Option<u64>,
    max_age_s: Option<u64>,
    when_full: Option<WhenFull>,
}

impl FileSpool {
    pub(super) fn resolve(self, state: &Path) -> Spool {
        Spool {
            dir: state.join(self.dir.unwrap_or("spool".into())),
            segment_bytes: self.segment_bytes.unwrap_or(64 << 20),
            max_bytes: self.max_bytes.unwrap_or(4 << 30),
            max_age_s: self.max_age_s.unwrap_or(0),
            when_full: self.when_full.unwrap_or_default(),
        }
    }
}

impl Spool {
    pub(super) fn check(&self, check: &mut Check) {
        check.that(
            (1 << 20..=1 << 30).contains(&self.segment_bytes)
                && self.segment_bytes.is_multiple_of(4096),
            "spool.segment_bytes",
            "must be 1048576 (1 MiB) to 1073741824 (1 GiB), a multiple of 4096",
        );
        check.that(
            self.max_bytes / 2 >= self.segment_bytes,
            "spool.max_bytes",
            "must be at least two segments (spool.segment_bytes)",
        );
        check.that(
            self.max_age_s == 0 || (60..=100 * 31_536_000).contains(&self.max_age_s),
            "spool.max_age_s",
            "must be 0 (no limit) or 60 to 3153600000 (a hundred years)",
        );
    }
}
