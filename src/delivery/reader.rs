//! Reading a spool, also while a gateway writes to it. Changes nothing.

use std::path::Path;

use super::error::SpoolError;
use super::format::Record;
use super::scan::{Scan, Step};
use super::segment;

/// A walk through a spool's records, oldest first.
pub struct Reader {
    dir: std::path::PathBuf,
    scan: Option<Scan>,
}

impl Reader {
    /// Begins at the oldest segment.
    ///
    /// # Errors
    /// [`SpoolError`] when the directory or its first segment cannot be read.
    pub fn open(dir: &Path) -> Result<Self, SpoolError> {
        let mut reader = Self { dir: dir.to_owned(), scan: None };
        while let Some(first) = segment::list(dir)?.into_iter().next() {
            if reader.enter(first)? {
                break;
            }
        }
        Ok(reader)
    }

    /// Goes on to the next record. `None` at the end of what was written; a torn tail counts as
    /// the end, since a gateway may be writing there. What is trimmed meanwhile is left out.
    ///
    /// # Errors
    /// [`SpoolError::Damaged`] where a later record exists after a bad place.
    pub fn read(&mut self) -> Result<Option<Record<'_>>, SpoolError> {
        while let Some(scan) = &mut self.scan {
            if scan.step()? == Step::Record {
                break;
            }
            // What was read ahead may be old. A segment is complete once there is a next one, so that is looked
            // for before this one is looked at again.
            let next = segment::successor(&self.dir, scan.header.first_index)?;
            scan.refresh();
            let step = scan.step()?;
            if step == Step::Record {
                break;
            }
            match next {
                Some(next)
                    if next.first_index == scan.next_index || segment::is_gone(&scan.entry) =>
                {
                    self.enter(next)?;
                }
                Some(_) => return Err(scan.damaged(step)),
                None if scan.later_group()? => return Err(scan.damaged(step)),
                None => return Ok(None),
            }
        }
        Ok(self.scan.as_ref().and_then(Scan::record))
    }

    /// Goes into a segment; false when it was trimmed since it was listed.
    fn enter(&mut self, entry: segment::Entry) -> Result<bool, SpoolError> {
        match Scan::open(entry.clone()) {
            Err(_) if segment::is_gone(&entry) => Ok(false),
            opened => {
                self.scan = Some(opened?);
                Ok(true)
            }
        }
    }
}
