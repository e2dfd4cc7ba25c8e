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
        let first = segment::list(dir)?.into_iter().next();
        Ok(Self { dir: dir.to_owned(), scan: first.map(Scan::open).transpose()? })
    }

    /// Goes on to the next record. `None` at the end of what was written; a torn tail counts as
    /// the end, since a gateway may be writing there.
    ///
    /// # Errors
    /// [`SpoolError::Damaged`] where a later record exists after a bad place.
    pub fn read(&mut self) -> Result<Option<Record<'_>>, SpoolError> {
        while let Some(scan) = &mut self.scan {
            let step = scan.step()?;
            if step == Step::Record {
                break;
            }
            match segment::successor(&self.dir, scan.header.first_index)? {
                Some(next) if next.first_index == scan.next_index => {
                    self.scan = Some(Scan::open(next)?);
                }
                Some(_) => return Err(scan.damaged(step)),
                None if scan.later_group()? => return Err(scan.damaged(step)),
                None => return Ok(None),
            }
        }
        Ok(self.scan.as_ref().and_then(Scan::record))
    }
}
