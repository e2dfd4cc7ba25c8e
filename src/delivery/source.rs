//! A spool as upstreams see it: durable readings in their order, each with its index.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;

use super::error::SpoolError;
use super::format::ReadingRef;
use super::id::SpoolId;
use super::reader::{Limit, Reader};
use super::segment;

/// Where upstreams take readings from.
pub trait Source {
    /// Whose readings these are.
    fn spool_id(&self) -> SpoolId;

    /// The oldest index that is kept.
    fn first(&self) -> u64;

    /// One past the last durable index.
    fn durable(&self) -> u64;

    /// Visits readings from `index` on, in order, until `visit` breaks or the durable end is reached; returns the
    /// index to go on with, which is past the reading at which it broke. Never shows what is not durable. Indexes
    /// rise, and jump where readings are missing and that is known.
    ///
    /// # Errors
    /// [`SpoolError::Trimmed`] when `index` is before [`first`](Self::first), [`SpoolError::Beyond`] when it is past
    /// [`durable`](Self::durable), [`SpoolError::Damaged`] at a durable reading that is not what it was; what came
    /// before has been visited then.
    fn read(
        &mut self,
        index: u64,
        visit: &mut dyn FnMut(u64, &ReadingRef<'_>) -> ControlFlow<()>,
    ) -> Result<u64, SpoolError>;
}

/// The readings of a spool that this process writes.
pub struct SpoolSource {
    dir: PathBuf,
    spool: SpoolId,
    durable: watch::Receiver<u64>,
    /// The oldest index when it was last looked for.
    first: AtomicU64,
    /// Where the last visit ended.
    reader: Option<Reader>,
}

impl SpoolSource {
    pub(super) fn new(dir: PathBuf, spool: SpoolId, durable: watch::Receiver<u64>) -> Self {
        Self { dir, spool, durable, first: AtomicU64::new(0), reader: None }
    }

    /// Changes whenever more has become durable.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.durable.clone()
    }
}

impl Source for SpoolSource {
    fn spool_id(&self) -> SpoolId {
        self.spool
    }

    fn first(&self) -> u64 {
        // While the directory cannot be listed, the last answer is the best one.
        if let Ok(entries) = segment::list(&self.dir)
            && let Some(oldest) = entries.first()
        {
            self.first.store(oldest.first_index, Ordering::Relaxed);
        }
        self.first.load(Ordering::Relaxed)
    }

    fn durable(&self) -> u64 {
        *self.durable.borrow()
    }

    fn read(
        &mut self,
        index: u64,
        visit: &mut dyn FnMut(u64, &ReadingRef<'_>) -> ControlFlow<()>,
    ) -> Result<u64, SpoolError> {
        let mut reader = match self.reader.take().filter(|reader| reader.next_index() == index) {
            Some(reader) => reader,
            None => Reader::begin(&self.dir, Limit::Gateway(self.durable.clone()), Some(index))?,
        };
        let mut next = index;
        // A reader that met an error is not used again.
        while let Some(record) = reader.read()? {
            next = record.index + 1;
            if visit(record.index, &record.reading).is_break() {
                break;
            }
        }
        self.reader = Some(reader);
        Ok(next)
    }
}
