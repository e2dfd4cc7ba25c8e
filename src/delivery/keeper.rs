//! The thread that looks after a spool's directory while others write and read: makes small files again that somebody
//! removed or damaged, removes what may go, and looks for what an operator has to see. It touches no reading that is kept.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use duet_telemetry::catalogue::{SPOOL_DISK, SPOOL_OLDEST};
use tokio::sync::watch;

use super::cursor;
use super::cut::cuts;
use super::error::SpoolError;
use super::marker::MarkerFile;
use super::retention::{Retention, trim_by_itself};
use super::segment::{self, Lock};
use super::spool::SpoolConfig;
use crate::identity::Steady;
use crate::log::Complaint;

/// How often it looks.
const EVERY: Duration = Duration::from_secs(1);

/// What an operator has to see of a spool that works.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Care {
    /// How many files hold what was cut off and nobody has looked at.
    pub cuts: usize,
    /// Why nothing goes by itself at the moment.
    pub untrimmed: Option<String>,
}

/// How much of what a spool may take is left.
pub(super) struct Size {
    max_bytes: u64,
    /// How much the segment that takes the appends has room for, bytes: the writer tells.
    pub(super) room: Arc<AtomicU64>,
    /// Whether less than a quarter is left.
    pub(super) scarce: Arc<AtomicBool>,
}

impl Size {
    pub(super) fn of(config: &SpoolConfig) -> Self {
        let room = Arc::new(AtomicU64::new(config.segment_bytes));
        Self { max_bytes: config.max_bytes, room, scarce: Arc::default() }
    }

    /// All segments together take so much on the disk.
    fn look(&self, disk_bytes: u64) {
        let used = disk_bytes.saturating_sub(self.room.load(Ordering::Relaxed));
        let most = self.max_bytes - self.max_bytes / 4;
        self.scarce.store(used > most, Ordering::Relaxed);
    }
}

/// How far back readings are kept, and what they take on the disk.
fn measure(dir: &Path, size: &Size) {
    // What cannot be read is told where it is needed.
    if let Ok(Some(oldest)) =
        segment::list(dir).map(|entries| entries.first().map(|e| e.first_index))
    {
        SPOOL_OLDEST.one().set_count(oldest);
    }
    if let Ok(bytes) = segment::disk_bytes(dir) {
        SPOOL_DISK.one().set_count(bytes);
        size.look(bytes);
    }
}

/// What stands beside the segments and is the writer's.
pub(super) struct SmallFiles {
    pub(super) marker: MarkerFile,
    /// Gone with the writer.
    pub(super) lock: Weak<Mutex<Lock>>,
}

impl SmallFiles {
    /// Has them be what they should, whatever somebody did to them.
    fn look_after(&self, dir: &Path) -> Result<(), SpoolError> {
        let lock = self
            .lock
            .upgrade()
            .map_or(Ok(()), |lock| lock.lock().unwrap_or_else(PoisonError::into_inner).look(dir));
        lock.and(self.marker.look()).and(cursor::look_after(dir))
    }
}

/// The thread.
pub(super) struct Keeper {
    cancel: Arc<AtomicBool>,
    removes: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Keeper {
    pub(super) fn begin(
        dir: &Path,
        small: SmallFiles,
        retention: Retention,
        size: Size,
        care: watch::Sender<Care>,
    ) -> Result<Self, SpoolError> {
        let cancel = Arc::new(AtomicBool::new(false));
        let removes = Arc::new(AtomicBool::new(false));
        let (flag, may_remove, own) = (Arc::clone(&cancel), Arc::clone(&removes), dir.to_owned());
        let thread = std::thread::Builder::new()
            .name("spool-keeper".into())
            .spawn(move || {
                let clock = Steady::start();
                let mut complaint = Complaint::default();
                while !flag.load(Ordering::Relaxed) {
                    let looked = small.look_after(&own);
                    let trimmed = match (&looked, may_remove.load(Ordering::Acquire)) {
                        // Two write here, and the other one does not know what this one's cursors hold.
                        (Err(taken @ SpoolError::Locked { .. }), _) => Err(taken.to_string()),
                        (_, true) => trim_by_itself(&own, &retention, &clock)
                            .map_err(|error| error.to_string()),
                        (_, false) => Ok(()),
                    };
                    let untrimmed = trimmed.err();
                    complaint.about(looked);
                    measure(&own, &size);
                    let now = Care { cuts: cuts(&own).map_or(0, |cuts| cuts.len()), untrimmed };
                    care.send_if_modified(|before| {
                        let changes = *before != now;
                        *before = now;
                        changes
                    });
                    std::thread::park_timeout(EVERY);
                }
            })
            .map_err(SpoolError::io("starting the keeper of", dir))?;
        Ok(Self { cancel, removes, thread })
    }

    /// From now on it removes what may go.
    pub(super) fn remove(&self) {
        self.removes.store(true, Ordering::Release);
        self.thread.thread().unpark();
    }

    pub(super) fn end(self) {
        self.cancel.store(true, Ordering::Relaxed);
        self.thread.thread().unpark();
        let _ = self.thread.join();
    }
}
