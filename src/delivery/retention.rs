//! What a spool keeps, and what goes: by itself, by whole segments, the oldest first. Owns the rule; a removal never
//! takes the segment that is written to, and never what a cursor holds always.
//!
//! What every required cursor has passed goes at once. What one of them has not goes only by age, or when the spool
//! is full and the operator chose that; it is counted, and whoever reads further down finds the gap in the indexes.

use std::fs;
use std::path::Path;
use std::time::Duration;

use duet_telemetry::catalogue::SPOOL_DROPPED;

use super::cursor::{self, Hold};
use super::error::SpoolError;
use super::scan::{Scan, Step};
use super::segment::{self, Entry};
use crate::identity::Steady;

/// What to do when the spool has reached its size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenFull {
    /// Store nothing more until there is room: devices keep their readings.
    #[default]
    Block,
    /// Remove the oldest readings, delivered or not.
    DropOldest,
}

/// What bounds a spool besides its size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// How old readings may get, delivered or not.
    pub max_age: Option<Duration>,
    /// What happens when it is full.
    pub when_full: WhenFull,
}

/// Up to where the cursors let go.
struct Held {
    /// Before this, every required cursor has everything; `None` where there is none.
    required: Option<u64>,
    /// Nothing from here on is ever removed.
    always: u64,
}

impl Held {
    /// Where the cursors stand, after that was made to survive a power cut.
    fn read(dir: &Path) -> Result<Self, SpoolError> {
        let mut held = Self { required: None, always: u64::MAX };
        // First those of this process, whose files may be gone: a place that was read earlier holds more.
        cursor::standing(dir).into_iter().for_each(|(index, hold)| held.by(index, hold));
        for (position, file) in cursor::all(dir)? {
            if position.hold != Hold::Nothing {
                held.by(position.index, position.hold);
                file.sync_data().map_err(SpoolError::io("syncing a cursor in", dir))?;
            }
        }
        Ok(held)
    }

    fn by(&mut self, index: u64, hold: Hold) {
        match hold {
            Hold::Nothing => {}
            Hold::Required => {
                self.required = Some(self.required.map_or(index, |least| least.min(index)));
            }
            Hold::Always => self.always = self.always.min(index),
        }
    }

    /// How many of these readings not everybody has who should.
    fn undelivered(&self, first: u64, end: u64) -> u64 {
        end.saturating_sub(self.required.unwrap_or(first).clamp(first, end))
    }
}

/// Removes what has been delivered and what is too old.
pub(super) fn trim_by_itself(
    dir: &Path,
    retention: &Retention,
    clock: &Steady,
) -> Result<(), SpoolError> {
    let entries = segment::list(dir)?;
    if entries.len() < 2 {
        return Ok(());
    }
    let held = Held::read(dir)?;
    let mut removed = false;
    for pair in entries.windows(2) {
        let [entry, next] = pair else { break };
        if next.first_index > held.always {
            break;
        }
        let delivered = held.required.is_some_and(|required| next.first_index <= required);
        if !delivered && !is_older(next, retention.max_age, clock)? {
            break;
        }
        remove(entry, held.undelivered(entry.first_index, next.first_index), "age")?;
        removed = true;
    }
    if removed { segment::sync_dir(dir) } else { Ok(()) }
}

/// Removes the oldest segments until there is room for one more; `false` where nothing more may go.
pub(super) fn make_room(dir: &Path, wanted: u64, max_bytes: u64) -> Result<bool, SpoolError> {
    let held = Held::read(dir)?;
    let entries = segment::list(dir)?;
    let mut bytes = segment::disk_bytes(dir)?;
    for pair in entries.windows(2) {
        let [entry, next] = pair else { break };
        if bytes + wanted <= max_bytes || next.first_index > held.always {
            break;
        }
        let length = fs::metadata(&entry.path).map_or(0, |found| found.len());
        remove(entry, held.undelivered(entry.first_index, next.first_index), "size")?;
        bytes = bytes.saturating_sub(length);
    }
    segment::sync_dir(dir)?;
    Ok(bytes + wanted <= max_bytes)
}

/// Whether all that comes before this segment is older than that: its own first record is.
fn is_older(next: &Entry, max_age: Option<Duration>, clock: &Steady) -> Result<bool, SpoolError> {
    let Some(max_age) = max_age else { return Ok(false) };
    let mut scan = Scan::open(next.clone())?;
    if scan.step()? != Step::Record {
        return Ok(false);
    }
    let Some(record) = scan.record() else { return Ok(false) };
    let received = Duration::from_millis(record.reading.received_ms);
    // What was stamped by a clock that had not been set is of an age that nobody knows.
    let known = Steady::is_set(received);
    Ok(known && clock.now().saturating_sub(received) > max_age)
}

fn remove(entry: &Entry, undelivered: u64, reason: &'static str) -> Result<(), SpoolError> {
    match fs::remove_file(&entry.path) {
        // Somebody else has trimmed it.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        removed => removed.map_err(SpoolError::io("removing", &entry.path))?,
    }
    if undelivered > 0 {
        SPOOL_DROPPED.with([reason]).add(undelivered);
    }
    Ok(())
}
