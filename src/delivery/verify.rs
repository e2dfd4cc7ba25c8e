//! Reading a whole spool and checking it. Changes nothing.

use std::path::{Path, PathBuf};

use super::cut::cuts;
use super::error::SpoolError;
use super::id::SpoolId;
use super::marker::Marker;
use super::reader::Reader;
use super::scan::{Scan, Step};
use super::segment;

/// What a spool holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Its name.
    pub spool: SpoolId,
    /// Durable records, all of them whole.
    pub records: u64,
    /// The oldest index that is kept.
    pub first: u64,
    /// One past the last durable index.
    pub durable: u64,
    /// Indexes that are missing between the two, since they were lost and that was told.
    pub missing: u64,
    /// What stands after the last durable record.
    pub end: End,
    /// What was cut off earlier and nobody has looked at.
    pub cuts: Vec<PathBuf>,
}

/// What stands after the last durable record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Nothing, or what a gateway is writing at this moment.
    Clean,
    /// Whole records of which nobody knows whether they are durable: after a power cut, before the next start.
    Unsettled {
        /// How many.
        records: u64,
    },
    /// Bytes that are no whole record, from this offset of the newest segment on: a write that was never finished, or
    /// readings that were damaged since.
    Torn {
        /// Whole records before them that are not known to be durable.
        records: u64,
        /// Where in the file.
        offset: u64,
    },
}

/// Reads every durable record and checks it, and looks at what stands behind them.
///
/// # Errors
/// [`SpoolError`] with the first damaged place.
pub fn verify(dir: &Path) -> Result<Verified, SpoolError> {
    let mut reader = Reader::open(dir)?;
    let first = reader.next_index();
    let mut records = 0;
    while reader.read()?.is_some() {
        records += 1;
    }
    let durable = reader.durable();
    let missing = (durable - first.min(durable)).saturating_sub(records);
    let end = if segment::Lock::is_taken(dir)? { End::Clean } else { end(dir, durable)? };
    Ok(Verified { spool: reader.spool(), records, first, durable, missing, end, cuts: cuts(dir)? })
}

fn end(dir: &Path, durable: u64) -> Result<End, SpoolError> {
    let Some(newest) = segment::list(dir)?.pop() else { return Ok(End::Clean) };
    let mut scan = Scan::open(newest)?;
    let step = loop {
        match scan.step()? {
            Step::Record => {}
            other => break other,
        }
    };
    if scan.later_group()? {
        return Err(scan.damaged(step));
    }
    let records = scan.next_index.saturating_sub(durable);
    let torn = scan.leftover()? > 0;
    // A gateway may have started since the durable end was read.
    let Some(marker) = Marker::read(dir)?.whole().filter(|marker| marker.durable == durable) else {
        return Ok(End::Clean);
    };
    let records = if marker.is_of_this_boot() { 0 } else { records };
    Ok(match (torn, records) {
        (true, _) => End::Torn { records, offset: scan.at },
        (false, 0) => End::Clean,
        (false, records) => End::Unsettled { records },
    })
}
