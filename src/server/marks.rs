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

use crate::delivery::{Cursor, Hold, Source, SpoolError, SpoolId, SpoolSource};
use crate::registry::{CommitMark, Registry, RegistryError, SpoolCursor};

/// How often marks are copied.
const EVERY: Duration = Duration::from_secs(2);
/// The most readings that one transaction looks at.
const AT_ONCE: u64 = 1 << 18;
/// The cursor's name: it holds what has not been copied.
pub(super) const NAME: &str = "marks";

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
    /// That this is another spool than the registry knows, for people.
    pub(super) told: Option<String>,
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
        let known = registry.spool_cursor()?;
        let another = known.filter(|known| known.spool != spool.0);
        let saved = known.filter(|saved| saved.spool == spool.0);
        let (first, end) = (source.first(), source.durable());
        // The registry's word counts: what the cursor's file says is there for the one who trims.
        let from = saved.map_or(first, |saved| saved.index).clamp(first, end);
        let cursor = Cursor::open_or_renew(dir, NAME, spool, from, Hold::Always)?;
        let told = another.map(|known| {
            format!(
                "{}: this is spool {spool}, and the registry last knew spool {}: what is stored there and was not passed on is not \
                 here. If its disk is not mounted, stop the gateway and mount it",
                dir.display(),
                SpoolId(known.spool),
            )
        });
        if told.is_some() {
            // Said once.
            registry.merge_marks(SpoolCursor { spool: spool.0, index: from }, Vec::new())?;
        }
        let mut marks = Self { registry, source, cursor, saved: from, told };
        let (mut at, mut has_room) = (from, true);
        while at < end {
            let (next, found) = marks.read(at)?;
            marks.registry.restore_marks(found.iter().copied())?;
            if has_room {
                match marks.save(next, found) {
                    // It is saved once there is room: until then the spool keeps what says it.
                    Err(MarksError::Registry(error)) if error.is_no_room() => has_room = false,
                    saved => saved?,
                }
            }
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
        let durable = self.source.durable();
        while self.cursor.index() < durable {
            let at = self.cursor.index().max(self.source.first());
            if self.source.commits() <= at {
                // Nothing there concerns a mark, so it need not be read.
                self.save(durable, Vec::new())?;
                break;
            }
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use duet_protocol::identity::{DeviceId, Fingerprint, RegistrationKey};
    use duet_protocol::reading::ReadingId;

    use super::*;
    use crate::delivery::{
        Batch, Commit, Durability, ReadingRef, Retention, Spool, SpoolConfig, Urgency, cursors,
    };
    use crate::registry::{Enrolment, NewDevice, SourceSet, short};

    const ID: DeviceId = DeviceId([0, 0, 0, 0, 0, 0, 0, 7]);

    fn start(dir: &Path) -> Spool {
        Spool::start(SpoolConfig {
            dir: dir.join("spool"),
            segment_bytes: 256 * 1024,
            max_bytes: 4 << 20,
            known: None,
            retention: Retention::default(),
        })
        .unwrap()
    }

    /// Stores a reading, early when it has a mark.
    fn store(spool: &Spool, sequence: u32, mark: Option<u64>) {
        let credential = short(&Fingerprint::of_registered_id(&ID));
        let reading = ReadingRef {
            device: "a",
            id: ReadingId { hello: [1; 12], sequence },
            again: false,
            channel: 0,
            received_ms: 1_800_000_000_000,
            measured_ms: 1_800_000_000_000,
            commit: mark.map(|mark| Commit { credential, mark }),
            notice: None,
            payload: b"1",
        };
        let mut batch = Batch::new();
        assert!(batch.push(&reading));
        let (done, answer) = mpsc::channel();
        let report = Box::new(move |_, durability| done.send(durability).unwrap());
        assert!(spool.submitter().submit(batch, Urgency::Awaited, report).is_ok());
        assert_eq!(answer.recv().unwrap(), Durability::Durable);
    }

    fn restore(dir: &Path, spool: &Spool, registry: &Arc<Registry>) -> Marks {
        Marks::restore(&dir.join("spool"), Arc::clone(registry), spool.source()).unwrap()
    }

    fn state(registry: &Registry) -> (u64, Option<ReadingId>) {
        let device = registry.view().unwrap().lookup(&ID).unwrap();
        (device.mark(), device.last())
    }

    #[test]
    fn a_mark_that_only_the_spool_has_counts_from_the_start_and_comes_to_the_registry() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(crate::registry::FILE);
        let registry = Registry::create(&path).unwrap();
        let mut key = RegistrationKey([9; 32]);
        key.0[..8].copy_from_slice(&ID.0);
        let enrolment = Enrolment::RegisteredId { id: ID, key };
        let sources = SourceSet::default();
        let name = "a".parse().unwrap();
        registry
            .add(NewDevice { name, enrolment, sources, made: false, labels: Default::default() }, 5)
            .unwrap();
        drop(registry);
        let spool = start(dir.path());
        store(&spool, 1, Some(40));
        store(&spool, 2, None);
        store(&spool, 3, Some(41));
        // Killed before anything was copied.
        spool.shutdown().unwrap();

        let registry = Arc::new(Registry::open(&path).unwrap());
        let spool = start(dir.path());
        let mut marks = restore(dir.path(), &spool, &registry);
        let last = Some(ReadingId { hello: [1; 12], sequence: 3 });
        assert_eq!(state(&registry), (41, last), "before the first HELLO");
        store(&spool, 4, Some(50));
        store(&spool, 5, None);
        marks.copy().unwrap();
        assert_eq!(registry.spool_cursor().unwrap().unwrap().index, 5);
        store(&spool, 6, None);
        marks.copy().unwrap();
        assert_eq!(registry.spool_cursor().unwrap().unwrap().index, 5, "no sync for nothing");
        let stands = &cursors(&dir.path().join("spool")).unwrap()[0];
        assert_eq!((&*stands.name, stands.index, stands.hold), (NAME, 6, Hold::Always));
        spool.shutdown().unwrap();
        drop((marks, registry));

        // And stays when the spool is gone.
        std::fs::remove_dir_all(dir.path().join("spool")).unwrap();
        let registry = Arc::new(Registry::open(&path).unwrap());
        let spool = start(dir.path());
        let told = restore(dir.path(), &spool, &registry).told.unwrap();
        assert!(told.contains(&spool.id().to_string()), "{told}");
        assert_eq!(restore(dir.path(), &spool, &registry).told, None, "once");
        assert_eq!(state(&registry), (50, Some(ReadingId { hello: [1; 12], sequence: 4 })));
        spool.shutdown().unwrap();
    }
}
