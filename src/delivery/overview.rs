//! What a spool consists of, without reading its records.

use std::fs;
use std::path::Path;

use super::cursor::{Position, cursors};
use super::error::SpoolError;
use super::id::SpoolId;
use super::reader::Reader;
use super::segment;

/// A spool's parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overview {
    /// Its name.
    pub spool: SpoolId,
    /// The oldest index that is kept.
    pub first: u64,
    /// One past the last durable index.
    pub durable: u64,
    /// Each segment's first index and its size in bytes, oldest first.
    pub segments: Vec<(u64, u64)>,
    /// The cursors, by name.
    pub cursors: Vec<Position>,
}

/// A spool's name, by the newest of its segments that can be read; also where nobody knows how far it is durable.
///
/// # Errors
/// [`SpoolError`] when there is none, or none that can be read.
pub fn spool_id(dir: &Path) -> Result<SpoolId, SpoolError> {
    let mut failed = SpoolError::None(dir.to_owned());
    for entry in segment::list(dir)?.iter().rev() {
        match segment::open(entry) {
            Ok((_, header)) => return Ok(header.spool),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// Looks at a spool, also while a gateway writes to it.
///
/// # Errors
/// [`SpoolError`] when it cannot be read.
pub fn overview(dir: &Path) -> Result<Overview, SpoolError> {
    let reader = Reader::open(dir)?;
    let mut segments = Vec::new();
    for entry in segment::list(dir)? {
        // One that was trimmed since it was listed is left out.
        if let Ok(found) = fs::metadata(&entry.path) {
            segments.push((entry.first_index, found.len()));
        }
    }
    let first = segments.first().map_or(reader.next_index(), |(first, _)| *first);
    let (spool, durable) = (reader.spool(), reader.durable());
    Ok(Overview { spool, first, durable, segments, cursors: cursors(dir)? })
}
