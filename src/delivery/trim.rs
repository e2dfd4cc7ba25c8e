//! Making room in a spool, also while a gateway writes to it.

use std::fs;
use std::path::Path;

use super::error::SpoolError;
use super::segment;

/// What was removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trimmed {
    /// Segments.
    pub segments: u64,
    /// The bytes that they took on disk.
    pub bytes: u64,
    /// The index of the oldest record that is left.
    pub oldest: u64,
}

/// Removes the oldest segments that hold no record from `before` on. The newest one, which takes
/// the appends, always stays.
///
/// # Errors
/// [`SpoolError`]; the segments before the one that it names are gone then.
pub fn trim(dir: &Path, before: u64) -> Result<Trimmed, SpoolError> {
    let entries = segment::list(dir)?;
    let mut trimmed = Trimmed {
        oldest: entries.first().map_or(0, |entry| entry.first_index),
        ..Trimmed::default()
    };
    for pair in entries.windows(2) {
        let [entry, next] = pair else { break };
        if next.first_index > before {
            break;
        }
        let path = &entry.path;
        trimmed.bytes += fs::metadata(path).map_err(SpoolError::io("inspecting", path))?.len();
        fs::remove_file(path).map_err(SpoolError::io("removing", path))?;
        trimmed.segments += 1;
        trimmed.oldest = next.first_index;
    }
    segment::sync_dir(dir)?;
    Ok(trimmed)
}
