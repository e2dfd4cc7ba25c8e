//! A running spool: how it is started and ended, and what shards, upstreams and the control plane hold of it.
//!
//! *In* go batches of readings; *out* comes for each whether it is durable, and to upstreams what is. *Never* is a batch called
//! durable before its sync, nor anything removed that a cursor holds. What its threads do stands in `writer`, `check` and
//! `keeper`, which removes what may go.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use duet_telemetry::catalogue::SPOOL_MAX;
use tokio::sync::{Notify, mpsc, watch};

use super::batch::Batch;
use super::check::Check;

use super::cut::cuts;
use super::error::SpoolError;
use super::file::Runtime;
use super::format::{DATA_START, MAX_SEGMENT_BYTES};
use super::health::{Health, Teller};
use super::id::SpoolId;
use super::keeper::{Care, Keeper, Size, SmallFiles};
use super::marker::{Marker, MarkerFile};
use super::recover::{Recovery, recover};
use super::retention::Retention;
use super::source::SpoolSource;
use super::writer::{Shared, Writer};
use super::{MAX_BATCH_BYTES, meters, segment};
use crate::wipe;

/// The most batches that wait for the next group.
pub(super) const QUEUE: usize = 1_024;

/// Where the spool is and how large it may get.
#[derive(Clone, Debug)]
pub struct SpoolConfig {
    /// Its directory; created when missing.
    pub dir: PathBuf,
    /// Size of a segment, bytes.
    pub segment_bytes: u64,
    /// The most that all segments together may take, bytes.
    pub max_bytes: u64,
    /// The file, outside the spool's directory, that remembers which spool was there at the last start.
    pub known: Option<PathBuf>,
    /// What bounds it besides.
    pub retention: Retention,
}

/// What became of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Every reading of it would survive a power cut.
    Durable,
    /// It was not stored, or nobody knows.
    Failed,
}

/// Called on the spool's thread with the batch, to be used again, and what became of it.
pub type Done = Box<dyn FnOnce(Batch, Durability) + Send>;

/// Whether somebody waits until a batch is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// A device waits for its confirmation.
    Awaited,
    /// Nobody waits: it may gather with others for a moment.
    Quiet,
}

pub(super) struct Submission {
    pub(super) batch: Batch,
    pub(super) urgency: Urgency,
    pub(super) done: Done,
}

/// By which shards hand batches over.
#[derive(Clone)]
pub struct Submitter {
    queue: mpsc::Sender<Submission>,
    /// Ends the gathering of quiet batches.
    hurry: Arc<Notify>,
}

impl Submitter {
    /// Hands a batch over.
    ///
    /// # Errors
    /// The batch and its completion, when too many are waiting or the spool has ended.
    pub fn submit(&self, batch: Batch, urgency: Urgency, done: Done) -> Result<(), (Batch, Done)> {
        self.queue.try_send(Submission { batch, urgency, done }).map_err(|refused| {
            meters::refused("queue");
            let Submission { batch, done, .. } = refused.into_inner();
            (batch, done)
        })?;
        if urgency == Urgency::Awaited || self.queue.capacity() < QUEUE / 2 {
            self.hurry.notify_one();
        }
        Ok(())
    }
}

/// A running spool.
pub struct Spool {
    submitter: Submitter,
    thread: JoinHandle<Result<(), SpoolError>>,
    health: watch::Receiver<Health>,
    damage: watch::Receiver<Option<String>>,
    check: Option<Check>,
    keeper: Keeper,
    care: watch::Receiver<Care>,
    scarce: Arc<AtomicBool>,
    commits: Arc<AtomicU64>,
    dir: PathBuf,
    id: SpoolId,
    durable: watch::Receiver<u64>,
    /// What opening found.
    pub recovery: Recovery,
}

impl Spool {
    /// Opens the spool and starts its thread.
    ///
    /// # Errors
    /// [`SpoolError`]: in use, damaged, or refused by the system.
    pub fn start(config: SpoolConfig) -> Result<Self, SpoolError> {
        let smallest = DATA_START + MAX_BATCH_BYTES as u64;
        if !(smallest..=MAX_SEGMENT_BYTES).contains(&config.segment_bytes) {
            return Err(SpoolError::Setting {
                setting: "segment_bytes",
                expected: "from 135168 (132 KiB) to 4294967296 (4 GiB)",
            });
        }
        SPOOL_MAX.one().set_count(config.max_bytes);
        segment::create_dir(&config.dir)?;
        let lock = segment::Lock::take(&config.dir)?;
        let (tail, recovery) = recover(&config)?;
        let id = tail.header.spool;
        let marker = MarkerFile::create(&config.dir, Marker::new(id, tail.next_index))?;
        segment::sync_dir(&config.dir)?;
        let (durable_end, durable) = watch::channel(tail.next_index);
        let (found, damage) = watch::channel(None);
        let check = (tail.header.first_index > 0)
            .then(|| Check::begin(&config.dir, tail.header.first_index, found))
            .transpose()?;
        let first_care = Care { cuts: cuts(&config.dir)?.len(), untrimmed: None };
        let (care_teller, care) = watch::channel(first_care);
        let lock = Arc::new(Mutex::new(lock));
        let small = SmallFiles { marker: marker.clone(), lock: Arc::downgrade(&lock) };
        let size = Size::of(&config);
        let (scarce, room) = (Arc::clone(&size.scarce), Arc::clone(&size.room));
        let keeper = Keeper::begin(&config.dir, small, config.retention, size, care_teller)?;
        let commits = Arc::new(AtomicU64::new(0));
        let shared = Shared { durable: durable_end, room, commits: Arc::clone(&commits) };
        let (queue, waiting) = mpsc::channel(QUEUE);
        let hurry = Arc::new(Notify::new());
        let hurried = Arc::clone(&hurry);
        let (teller, health) = Teller::new();
        let own = teller.clone();
        let dir = config.dir.clone();
        let thread = std::thread::Builder::new()
            .name("spool".into())
            .spawn(move || {
                let _lock = lock;
                wipe::nothing_on_this_thread();
                let run = || {
                    let runtime = Runtime::new(&config.dir)?;
                    let storage = runtime.storage();
                    let writer = Writer::new(config, tail, storage, marker, shared, teller);
                    runtime.block_on(writer.run(waiting, hurried))
                };
                let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run))
                    .unwrap_or(Err(SpoolError::ThreadEnded));
                // However it came to its end: a runtime refused and a panic are failures, too.
                result.inspect_err(|error| own.failed(error))
            })
            .map_err(SpoolError::io("starting the thread of", &dir))?;
        let submitter = Submitter { queue, hurry };
        Ok(Self {
            submitter,
            thread,
            health,
            damage,
            check,
            keeper,
            care,
            scarce,
            commits,
            dir,
            id,
            durable,
            recovery,
        })
    }

    /// A way to hand batches over; any number may exist.
    #[must_use]
    pub fn submitter(&self) -> Submitter {
        self.submitter.clone()
    }

    /// How it is, also after this handle is gone.
    #[must_use]
    pub fn health(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }

    /// What is damaged in the older segments, as far as they have been read since the start.
    #[must_use]
    pub fn damage(&self) -> watch::Receiver<Option<String>> {
        self.damage.clone()
    }

    /// Its readings, for an upstream; any number may exist.
    #[must_use]
    pub fn source(&self) -> SpoolSource {
        let (dir, commits) = (self.dir.clone(), Arc::clone(&self.commits));
        SpoolSource::new(dir, self.id, self.durable.clone(), commits)
    }

    /// What an operator has to see although it works.
    #[must_use]
    pub fn care(&self) -> watch::Receiver<Care> {
        self.care.clone()
    }

    /// True while less than a quarter of what it may hold is left; looked at once a second, whether or not anything is stored.
    #[must_use]
    pub fn scarce(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.scarce)
    }

    /// Says that all cursors are open which hold something: from now on goes by itself what none of them holds. One
    /// whose file is gone would hold nothing before.
    pub fn begin_removal(&self) {
        self.keeper.remove();
    }

    /// Its name.
    #[must_use]
    pub fn id(&self) -> SpoolId {
        self.id
    }

    /// Stores what is queued and ends. Every [`Submitter`] must be gone, or this waits for it.
    ///
    /// # Errors
    /// What made the spool fail, if it did.
    pub fn shutdown(self) -> Result<(), SpoolError> {
        drop(self.submitter);
        if let Some(check) = self.check {
            check.end();
        }
        self.keeper.end();
        self.thread.join().map_err(|_| SpoolError::ThreadEnded)?
    }
}
