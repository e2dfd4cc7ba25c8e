//! Making room in a spool, also while a gateway writes to it.

use std::fs;
use std::path::Path;

use super::cursor::{self, Hold};
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

/// A cursor that has to be there: it holds everything where it has no file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Its name.
    pub name: String,
    /// What it holds.
    pub hold: Hold,
}

/// Removes the oldest segments that hold no record from `before` on. The newest one, which takes
/// the appends, always stays.
///
/// # Errors
/// [`SpoolError::Held`] where a cursor still needs one of them, [`SpoolError::Absent`] where one of the expected is not
/// there, and nothing was removed; others, and the segments before the one that they name are gone then.
pub fn trim(dir: &Path, before: u64, expected: &[Expected]) -> Result<Trimmed, SpoolError> {
    remove(dir, before, expected, false)
}

/// The same, also what required cursors have not passed; never what a cursor holds always.
///
/// # Errors
/// As [`trim`].
pub fn trim_undelivered(
    dir: &Path,
    before: u64,
    expected: &[Expected],
) -> Result<Trimmed, SpoolError> {
    remove(dir, before, expected, true)
}

fn remove(
    dir: &Path,
    before: u64,
    expected: &[Expected],
    undelivered: bool,
) -> Result<Trimmed, SpoolError> {
    let entries = segment::list(dir)?;
    // One past the last record that would go.
    let end =
        entries.iter().skip(1).map(|entry| entry.first_index).take_while(|end| *end <= before);
    let end = end.last().unwrap_or(0);
    let holds = |hold| match hold {
        Hold::Nothing => false,
        Hold::Required => !undelivered,
        Hold::Always => true,
    };
    let cursors = cursor::all(dir)?;
    let is_absent = |one: &&Expected| cursors.iter().all(|(found, _)| found.name != one.name);
    let absent = expected.iter().filter(|one| holds(one.hold)).find(is_absent);
    if let Some(Expected { name, hold }) = absent.filter(|_| end > 0) {
        let (cursor, always) = (name.clone(), *hold == Hold::Always);
        return Err(SpoolError::Absent { cursor, dir: dir.to_owned(), always });
    }
    for (position, file) in cursors {
        if holds(position.hold) && position.index < end {
            let (index, always) = (position.index, position.hold == Hold::Always);
            return Err(SpoolError::Held { cursor: position.name, index, always });
        }
        file.sync_data().map_err(SpoolError::io("syncing a cursor in", dir))?;
    }
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
        trimmed.bytes += fs::metadata(path).map_or(0, |found| found.len());
        match fs::remove_file(path) {
            // The gateway has trimmed it by itself.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            removed => removed.map_err(SpoolError::io("removing", path))?,
        }
        trimmed.segments += 1;
        trimmed.oldest = next.first_index;
    }
    segment::sync_dir(dir)?;
    Ok(trimmed)
}
