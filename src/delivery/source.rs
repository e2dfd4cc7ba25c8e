//! A spool as upstreams see it: durable readings in their order, each with its index.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use duet_telemetry::catalogue::SPOOL_UNREADABLE;
use tokio::sync::watch;

use super::cursor::{Cursor, Hold};
use super::error::SpoolError;
use super::format::{ReadingRef, Record};
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
    /// index to go on with, which is past the reading at which it broke, or past what is missing at the end. Never shows what is not durable. Indexes
    /// rise, and jump where readings are missing: they were removed, or are damaged, which does not keep back what comes
    /// after them.
    ///
    /// # Errors
    /// [`SpoolError::Trimmed`] when `index` is before [`first`](Self::first), [`SpoolError::Beyond`] when it is past
    /// [`durable`](Self::durable), others when a file cannot be read; what came before has been visited then.
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
    commits: Arc<AtomicU64>,
    /// The oldest index when it was last looked for.
    first: AtomicU64,
    /// Where the last visit ended.
    reader: Option<Reader>,
}

impl SpoolSource {
    pub(super) fn new(
        dir: PathBuf,
        spool: SpoolId,
        durable: watch::Receiver<u64>,
        commits: Arc<AtomicU64>,
    ) -> Self {
        Self { dir, spool, durable, commits, first: AtomicU64::new(0), reader: None }
    }

    /// Another way to the same readings, at their beginning.
    #[must_use]
    pub fn another(&self) -> Self {
        Self::new(self.dir.clone(), self.spool, self.durable.clone(), Arc::clone(&self.commits))
    }

    /// A cursor of this spool, which only this process moves; one that is new or damaged begins with the oldest reading.
    ///
    /// # Errors
    /// [`SpoolError`] when it is in use or another spool's.
    pub fn cursor(&self, name: &str, hold: Hold) -> Result<Cursor, SpoolError> {
        Cursor::open_or_renew(&self.dir, name, self.spool, self.first(), hold)
    }

    /// One past the last durable reading, of those since the start, that commits to a mark.
    #[must_use]
    pub fn commits(&self) -> u64 {
        self.commits.load(Ordering::Acquire)
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
            None => self.begin(index)?,
        };
        // A reader that met an error is not used again.
        while let Some(record) = read_on(&mut reader)? {
            if visit(record.index, &record.reading).is_break() {
                break;
            }
        }
        let next = reader.next_index();
        self.reader = Some(reader);
        Ok(next)
    }
}

/// The next record that can be read. A damaged one must not keep back all that come after it: it is passed over, and
/// counted; that it is damaged is told by the check after the start and by `duet spool verify`.
fn read_on(reader: &mut Reader) -> Result<Option<Record<'_>>, SpoolError> {
    loop {
        match reader.step() {
            Ok(true) => return Ok(reader.current()),
            Ok(false) => return Ok(None),
            Err(error @ SpoolError::Damaged { .. }) => {
                let before = reader.next_index();
                if !reader.pass_over()? {
                    return Err(error);
                }
                let lost = reader.next_index().saturating_sub(before);
                SPOOL_UNREADABLE.one().add(lost);
            }
            Err(error) => return Err(error),
        }
    }
}

impl SpoolSource {
    /// A reader that begins with this record, or where its segment cannot be read, with the next segment's first.
    fn begin(&self, index: u64) -> Result<Reader, SpoolError> {
        let mut from = index;
        loop {
            let limit = Limit::Gateway(self.durable.clone());
            match Reader::begin(&self.dir, limit, Some(from)) {
                Err(error @ (SpoolError::Damaged { .. } | SpoolError::Foreign(_))) => {
                    let next = segment::successor(&self.dir, from)?.ok_or(error)?.first_index;
                    SPOOL_UNREADABLE.one().add(next - from);
                    from = next;
                }
                begun => return begun,
            }
        }
    }
}
