//! Reading a spool, also while a gateway writes to it. Changes nothing, and shows nothing that is not durable.

use std::path::{Path, PathBuf};

use tokio::sync::watch;

use super::error::SpoolError;
use super::format::Record;
use super::id::SpoolId;
use super::marker::Marker;
use super::scan::{Scan, Step};
use super::segment::{self, Entry};

/// Where a reader learns up to where the spool is durable.
#[derive(Clone, Debug)]
pub(super) enum Limit {
    /// From the gateway that it is part of.
    Gateway(watch::Receiver<u64>),
    /// From the file that a gateway in another process keeps.
    File,
}

/// A walk through a spool's durable records, oldest first.
pub struct Reader {
    dir: PathBuf,
    limit: Limit,
    scan: Option<Scan>,
    spool: SpoolId,
    /// One past the last durable index, as far as it has been asked for.
    durable: u64,
    /// Where it begins; records before are passed over.
    from: u64,
}

impl Reader {
    /// Begins at the oldest segment.
    ///
    /// # Errors
    /// [`SpoolError`] when the directory or its first segment cannot be read.
    pub fn open(dir: &Path) -> Result<Self, SpoolError> {
        Self::begin(dir, Limit::File, None)
    }

    /// Begins with the record of index `from`.
    ///
    /// # Errors
    /// [`SpoolError::Trimmed`] when that one is no longer kept, [`SpoolError::Beyond`] when the spool does not reach
    /// as far, and others when the directory or a segment cannot be read.
    pub fn open_at(dir: &Path, from: u64) -> Result<Self, SpoolError> {
        Self::begin(dir, Limit::File, Some(from))
    }

    pub(super) fn begin(dir: &Path, limit: Limit, from: Option<u64>) -> Result<Self, SpoolError> {
        loop {
            let entries = segment::list(dir)?;
            let oldest = entries.first().cloned();
            let Some(oldest) = oldest else { return Err(SpoolError::None(dir.to_owned())) };
            let index = from.unwrap_or(oldest.first_index);
            if index < oldest.first_index {
                let (dir, kept) = (dir.to_owned(), oldest.first_index);
                return Err(SpoolError::Trimmed { dir, index, kept });
            }
            let holds = entries.partition_point(|entry| entry.first_index <= index);
            let entry = entries.into_iter().take(holds).next_back().unwrap_or(oldest);
            let Some(scan) = enter(entry, None)? else { continue };
            let spool = scan.header.spool;
            let mut reader = Self {
                dir: dir.to_owned(),
                limit,
                spool,
                durable: 0,
                from: index,
                scan: Some(scan),
            };
            reader.ask()?;
            if from.is_some_and(|from| from > reader.durable) {
                let (dir, durable) = (dir.to_owned(), reader.durable);
                return Err(SpoolError::Beyond { dir, index, durable });
            }
            return Ok(reader);
        }
    }

    /// Whose readings these are.
    #[must_use]
    pub fn spool(&self) -> SpoolId {
        self.spool
    }

    /// One past the last durable index, as far as this reader has asked.
    #[must_use]
    pub fn durable(&self) -> u64 {
        self.durable
    }

    /// The index of the record that comes next, if none is missing.
    pub(super) fn next_index(&self) -> u64 {
        self.scan.as_ref().map_or(self.from, |scan| scan.next_index.max(self.from))
    }

    /// Goes on to the next durable record; `None` where there is none yet. What is trimmed meanwhile is left out,
    /// and so is what is known to be lost.
    ///
    /// # Errors
    /// [`SpoolError::Damaged`] where a durable record is not what it was.
    pub fn read(&mut self) -> Result<Option<Record<'_>>, SpoolError> {
        Ok(if self.step()? { self.current() } else { None })
    }

    /// The same; whether there is one, which [`current`](Self::current) has then.
    pub(super) fn step(&mut self) -> Result<bool, SpoolError> {
        while self.advance()? {
            if self.scan.as_ref().is_some_and(|scan| scan.next_index > self.from) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The record of the last step.
    pub(super) fn current(&self) -> Option<Record<'_>> {
        self.scan.as_ref().and_then(Scan::record)
    }

    /// Goes on behind a damaged place, to the next durable record that is whole; `false` where there is none.
    ///
    /// # Errors
    /// [`SpoolError`] when a file cannot be read.
    pub(super) fn pass_over(&mut self) -> Result<bool, SpoolError> {
        let Some(scan) = &mut self.scan else { return Ok(false) };
        if scan.pass_over()? {
            return Ok(true);
        }
        let mut after = scan.header.first_index;
        while let Some(entry) = segment::successor(&self.dir, after)? {
            after = entry.first_index;
            match enter(entry, Some(self.spool)) {
                Ok(Some(scan)) => {
                    self.scan = Some(scan);
                    return Ok(true);
                }
                Ok(None) | Err(SpoolError::Damaged { .. } | SpoolError::Foreign(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    fn advance(&mut self) -> Result<bool, SpoolError> {
        loop {
            let Some(next) = self.scan.as_ref().map(|scan| scan.next_index) else {
                return Ok(false);
            };
            if next >= self.durable {
                self.ask()?;
            }
            if next >= self.durable {
                return Ok(false);
            }
            let Some(scan) = &mut self.scan else { return Ok(false) };
            if scan.step()? == Step::Record {
                return Ok(true);
            }
            // What was read ahead may be old. A segment is complete once there is a next one, so that is looked
            // for before this one is looked at again.
            let following = segment::successor(&self.dir, scan.header.first_index)?;
            scan.refresh();
            let step = scan.step()?;
            if step == Step::Record {
                return Ok(true);
            }
            let gone = segment::is_gone(&scan.entry);
            let error = scan.damaged(step);
            let following = match following {
                Some(entry) => enter(entry, Some(self.spool))?,
                None if gone => return Ok(false),
                None => return Err(error),
            };
            // One that was trimmed since it was listed: look again.
            let Some(following) = following else { continue };
            let meets = following.next_index == next || following.header.gap;
            if !(gone || meets && step == Step::End) {
                return Err(error);
            }
            self.scan = Some(following);
        }
    }

    fn ask(&mut self) -> Result<(), SpoolError> {
        self.durable = match &self.limit {
            Limit::Gateway(durable) => *durable.borrow(),
            Limit::File => match Marker::read(&self.dir)?.whole() {
                Some(marker) if marker.spool == self.spool => marker.durable.max(self.durable),
                Some(_) => return Err(SpoolError::Mixed(self.dir.clone())),
                None => return Err(SpoolError::Unmarked(self.dir.clone())),
            },
        };
        Ok(())
    }
}

/// Goes into a segment; none when it was trimmed since it was listed.
fn enter(entry: Entry, spool: Option<SpoolId>) -> Result<Option<Scan>, SpoolError> {
    match Scan::open(entry.clone()) {
        Err(_) if segment::is_gone(&entry) => Ok(None),
        Ok(scan) if spool.is_some_and(|spool| spool != scan.header.spool) => {
            Err(SpoolError::Foreign(entry.path))
        }
        opened => opened.map(Some),
    }
}
