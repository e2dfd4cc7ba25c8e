//! Copies what stored readings say of their devices (R101) from the spool to the registry: at start, before the first
//! HELLO is answered, and again and again while the gateway runs, in one transaction with the place in the spool.
//!
//! The stored reading is what counts: a mark that is only in the spool is found there by the next start. So nothing here is
//! in a hurry, and a failure only means that the next start reads more.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use crate::delivery::{Cursor, Hold, Source, SpoolError, SpoolSource};
use crate::registry::{CommitMark, Registry, RegistryError, SpoolCursor};

/// How often marks are copied.
const EVERY: Duration = Duration::from_secs(2);
/// The most readings that one transaction looks at.
const AT_ONCE: u64 = 1 << 18;
/// The cursor's name: it holds what has not been copied.
const NAME: &str = "marks";

/// Why marks could not be brought from the spool to the registry.
#[derive(Debug, thiserror::Error)]
pub enum MarksError {
    /// The spool.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// The registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

/// The copying of marks.
pub(super) struct Marks {
    registry: Arc<Registry>,
    source: SpoolSource,
    cursor: Cursor,
    /// Up to where the registry says it has come.
    saved: u64,
}

impl Marks {
    /// Brings the registry's view to what the spool says, from where the registry has come on. To be called before the
    /// first HELLO is answered.
    pub(super) fn restore(
        dir: &Path,
        registry: Arc<Registry>,
        source: SpoolSource,
    ) -> Result<Self, MarksError> {
        let spool = source.spool_id();
        let saved = registry.spool_cursor()?.filter(|saved| saved.spool == spool.0);
        let (first, end) = (source.first(), source.durable());
        // The registry's word counts: what the cursor's file says is there for the one who trims.
        let from = saved.map_or(first, |saved| saved.index).clamp(first, end);
        let cursor = Cursor::open(dir, NAME, spool, from, Hold::Always)?;
        let mut marks = Self { registry, source, cursor, saved: from };
        let mut at = from;
        while at < end {
            let (next, found) = marks.read(at)?;
            marks.registry.restore_marks(found.iter().copied())?;
            marks.save(next, found)?;
            if next == at {
                break;
            }
            at = next;
        }
        Ok(marks)
    }

    /// Copies until `stop` says so, or is gone, and once more then.
    pub(super) fn keep(mut self, stop: &Receiver<()>) {
        loop {
            let stopping = !matches!(stop.recv_timeout(EVERY), Err(RecvTimeoutError::Timeout));
            // What fails is tried again: the registry and the spool report their faults themselves.
            let _ = self.copy();
            if stopping {
                return;
            }
        }
    }

    fn copy(&mut self) -> Result<(), MarksError> {
        while self.cursor.index() < self.source.durable() {
            let at = self.cursor.index().max(self.source.first());
            let (next, found) = self.read(at)?;
            if next == at {
                break;
            }
            self.save(next, found)?;
        }
        Ok(())
    }

    /// What the readings from `at` on say, and the index to go on with.
    fn read(&mut self, at: u64) -> Result<(u64, Vec<CommitMark>), MarksError> {
        let mut found = Vec::new();
        let next = self.source.read(at, &mut |index, reading| {
            if let Some(commit) = reading.commit {
                let (credential, mark) = (commit.credential, commit.mark);
                found.push(CommitMark { credential, mark, last: reading.id });
            }
            if index - at + 1 >= AT_ONCE {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })?;
        Ok((next, found))
    }

    fn save(&mut self, index: u64, found: Vec<CommitMark>) -> Result<(), MarksError> {
        // A transaction costs a sync. Without marks the place may fall behind as far as a start reads in no time.
        if !found.is_empty() || index.saturating_sub(self.saved) >= AT_ONCE {
            let spool = self.source.spool_id().0;
            self.registry.merge_marks(SpoolCursor { spool, index }, found)?;
            self.saved = index;
        }
        Ok(self.cursor.set(index)?)
    }
}
