//! The spool's thread: takes batches from all shards, writes one group, syncs it, answers.
//!
//! It runs on tokio-uring, and without where io_uring is refused. A failed write or sync ends the spool for good: what is pending and
//! whatever comes later is answered [`Durability::Failed`], and nothing is tried again, because
//! after a failed sync nobody knows what the disk holds.

use std::fs::OpenOptions;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc};

use super::batch::{Batch, Group};
use super::error::SpoolError;
use super::file::{File, Runtime, Storage};
use super::format::{DATA_START, Header, MAX_SEGMENT_BYTES};
use super::recover::{Recovery, Tail, recover};
use super::{MAX_BATCH_BYTES, metrics as names, segment};

/// The most batches that wait for the next group.
const QUEUE: usize = 1_024;
/// How long readings gather for which nobody waits.
const QUIET: Duration = Duration::from_millis(10);
/// The least time between the starts of two commits.
const INTERVAL: Duration = Duration::from_millis(1);
/// The most bytes of one group.
const GROUP_MAX: usize = 4 << 20;

/// Where the spool is and how large it may get.
#[derive(Clone, Debug)]
pub struct SpoolConfig {
    /// Its directory; created when missing.
    pub dir: PathBuf,
    /// Size of a segment, bytes.
    pub segment_bytes: u64,
    /// The most that all segments together may take, bytes.
    pub max_bytes: u64,
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

struct Submission {
    batch: Batch,
    urgency: Urgency,
    done: Done,
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
            metrics::counter!(names::REFUSED, "reason" => names::QUEUE).increment(1);
            let Submission { batch, done, .. } = refused.into_inner();
            (batch, done)
        })?;
        if urgency == Urgency::Awaited || self.queue.capacity() < QUEUE / 2 {
            self.hurry.notify_one();
        }
        Ok(())
    }
}

/// How the spool is, for whoever reports it.
#[derive(Debug, Default)]
pub struct Health {
    failure: OnceLock<String>,
    failed: Notify,
    full: AtomicBool,
}

impl Health {
    /// A write or sync has failed: nothing is stored until the gateway is started anew.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.failure.get().is_some()
    }

    /// Completes, once, with the cause when it has failed.
    pub async fn failure(&self) -> &str {
        loop {
            self.failed.notified().await;
            if let Some(failure) = self.failure.get() {
                return failure;
            }
        }
    }

    fn fail(&self, error: &SpoolError) {
        if self.failure.set(error.to_string()).is_ok() {
            self.failed.notify_one();
        }
    }

    /// The last group was refused, since the spool has reached its size limit.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }
}

/// A running spool.
pub struct Spool {
    submitter: Submitter,
    thread: JoinHandle<Result<(), SpoolError>>,
    health: Arc<Health>,
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
        names::describe();
        segment::create_dir(&config.dir)?;
        let lock = segment::Lock::take(&config.dir)?;
        let (tail, recovery) = recover(&config.dir, config.segment_bytes)?;
        let (queue, waiting) = mpsc::channel(QUEUE);
        let hurry = Arc::new(Notify::new());
        let hurried = Arc::clone(&hurry);
        let health = Arc::new(Health::default());
        let (flag, own) = (Arc::clone(&health), Arc::clone(&health));
        let dir = config.dir.clone();
        let thread = std::thread::Builder::new()
            .name("spool".into())
            .spawn(move || {
                let _lock = lock;
                let run = || {
                    let runtime = Runtime::new(&config.dir)?;
                    let writer = Writer::new(config, tail, runtime.storage());
                    runtime.block_on(writer.run(waiting, hurried, flag))
                };
                let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run))
                    .unwrap_or(Err(SpoolError::ThreadEnded));
                // However it came to its end: a runtime refused and a panic are failures, too.
                result.inspect_err(|error| own.fail(error))
            })
            .map_err(SpoolError::io("starting the thread of", &dir))?;
        Ok(Self { submitter: Submitter { queue, hurry }, thread, health, recovery })
    }

    /// A way to hand batches over; any number may exist.
    #[must_use]
    pub fn submitter(&self) -> Submitter {
        self.submitter.clone()
    }

    /// How it is, also after this handle is gone.
    #[must_use]
    pub fn health(&self) -> Arc<Health> {
        Arc::clone(&self.health)
    }

    /// Stores what is queued and ends. Every [`Submitter`] must be gone, or this waits for it.
    ///
    /// # Errors
    /// What made the spool fail, if it did.
    pub fn shutdown(self) -> Result<(), SpoolError> {
        drop(self.submitter);
        self.thread.join().map_err(|_| SpoolError::ThreadEnded)?
    }
}

/// The next segment, being filled with zeros on a thread of its own.
struct Spare {
    cancel: Arc<AtomicBool>,
    thread: JoinHandle<Result<Option<PathBuf>, SpoolError>>,
}

impl Spare {
    fn begin(config: &SpoolConfig) -> io::Result<Self> {
        let cancel = Arc::new(AtomicBool::new(false));
        let (flag, dir, size) = (Arc::clone(&cancel), config.dir.clone(), config.segment_bytes);
        let thread = std::thread::Builder::new()
            .name("spool-spare".into())
            .spawn(move || segment::prepare(&dir, size, &flag))?;
        Ok(Self { cancel, thread })
    }
}

/// Waits for more to commit with what has come. `began` is when the commit before did.
async fn gather(hurry: &Notify, urgency: Urgency, began: Instant) {
    if urgency == Urgency::Quiet {
        // A hurry of batches that were committed since may end this early, once: harmless.
        let _ = tokio::time::timeout(QUIET, hurry.notified()).await;
    }
    let earliest = began + INTERVAL;
    if Instant::now() < earliest {
        tokio::time::sleep_until(earliest.into()).await;
    }
}

struct Writer {
    config: SpoolConfig,
    storage: Storage,
    path: PathBuf,
    header: Header,
    at: u64,
    next_index: u64,
    disk_bytes: u64,
    spare: Option<Spare>,
}

enum Commit {
    Durable,
    /// The spool has reached its size limit: refused, and everything else still works.
    Full,
    /// The spool has failed before.
    Ended,
}

impl Writer {
    fn new(config: SpoolConfig, tail: Tail, storage: Storage) -> Self {
        let Tail { path, header, at, next_index, disk_bytes } = tail;
        Self { config, storage, path, header, at, next_index, disk_bytes, spare: None }
    }

    async fn run(
        mut self,
        mut waiting: mpsc::Receiver<Submission>,
        hurry: Arc<Notify>,
        health: Arc<Health>,
    ) -> Result<(), SpoolError> {
        let mut result = Ok(());
        let mut group = Group::default();
        let mut file = match self.open() {
            Ok(file) => Some(file),
            Err(error) => {
                health.fail(&error);
                result = Err(error);
                None
            }
        };
        let mut held = None;
        let mut began = Instant::now();
        loop {
            let (first, urgency) = match held.take() {
                // It has waited for a group already.
                Some(held) => (held, Urgency::Awaited),
                None => match waiting.recv().await {
                    Some(first) => {
                        let urgency = first.urgency;
                        (first, urgency)
                    }
                    None => break,
                },
            };
            gather(&hurry, urgency, began).await;
            began = Instant::now();
            let mut bytes = first.batch.bytes();
            let mut batches = vec![first];
            while let Ok(next) = waiting.try_recv() {
                if bytes + next.batch.bytes() > GROUP_MAX.min(self.room_max()) {
                    held = Some(next);
                    break;
                }
                bytes += next.batch.bytes();
                batches.push(next);
            }
            let outcome = match (&mut file, &result) {
                (Some(file), Ok(())) => self.commit(file, &batches, &mut group).await,
                _ => Ok(Commit::Ended),
            };
            health.full.store(matches!(outcome, Ok(Commit::Full)), Ordering::Relaxed);
            let durability = match outcome {
                Ok(Commit::Ended) => {
                    metrics::counter!(names::REFUSED, "reason" => names::FAILED).increment(1);
                    Durability::Failed
                }
                Ok(Commit::Durable) => Durability::Durable,
                Ok(Commit::Full) => {
                    metrics::counter!(names::REFUSED, "reason" => names::FULL).increment(1);
                    Durability::Failed
                }
                Err(error) => {
                    metrics::counter!(names::REFUSED, "reason" => names::FAILED).increment(1);
                    health.fail(&error);
                    result = Err(error);
                    Durability::Failed
                }
            };
            metrics::gauge!(names::HEALTHY).set(if result.is_ok() { 1.0 } else { 0.0 });
            for Submission { batch, done, .. } in batches {
                done(batch, durability);
            }
        }
        if let Some(file) = file {
            let _ = file.close().await;
        }
        if let Some(spare) = self.spare.take() {
            spare.cancel.store(true, Ordering::Relaxed);
            let _ = spare.thread.join();
        }
        segment::remove_spare(&self.config.dir)?;
        result
    }

    /// The most bytes that a segment can take in one group.
    fn room_max(&self) -> usize {
        usize::try_from(self.config.segment_bytes - DATA_START).unwrap_or(usize::MAX)
    }

    fn open(&self) -> Result<File, SpoolError> {
        let file = OpenOptions::new()
            .write(true)
            .open(&self.path)
            .map_err(SpoolError::io("opening", &self.path))?;
        Ok(File::new(file, self.storage))
    }

    async fn commit(
        &mut self,
        file: &mut File,
        batches: &[Submission],
        group: &mut Group,
    ) -> Result<Commit, SpoolError> {
        let began = Instant::now();
        let bytes: usize = batches.iter().map(|one| one.batch.bytes()).sum();
        if self.at + bytes as u64 > self.header.size {
            if self.disk_bytes + self.config.segment_bytes > self.config.max_bytes {
                // Somebody may have made room since.
                self.disk_bytes = segment::disk_bytes(&self.config.dir)?;
            }
            if self.disk_bytes + self.config.segment_bytes > self.config.max_bytes {
                return Ok(Commit::Full);
            }
            self.roll()?;
            let full = std::mem::replace(file, self.open()?);
            full.close().await.map_err(SpoolError::io("closing the segment before", &self.path))?;
        }
        group.begin(self.header.seed(), self.next_index);
        batches.iter().for_each(|one| one.batch.seal_into(group));
        let records = group.records;
        let buffer = std::mem::take(&mut group.bytes);
        let (written, buffer) = file.write_all_at(buffer, self.at).await;
        group.bytes = buffer;
        written.map_err(SpoolError::io("writing to", &self.path))?;
        file.sync_data().await.map_err(SpoolError::io("syncing", &self.path))?;
        self.at += bytes as u64;
        self.next_index += u64::from(records);
        metrics::counter!(names::RECORDS).increment(records.into());
        #[expect(clippy::cast_precision_loss, reason = "gauges are floating point")]
        {
            metrics::gauge!(names::DURABLE_INDEX).set(self.next_index as f64);
            metrics::gauge!(names::DISK_BYTES).set(self.disk_bytes as f64);
        }
        metrics::counter!(names::BYTES).increment(bytes as u64);
        metrics::histogram!(names::BATCH_RECORDS).record(f64::from(records));
        metrics::histogram!(names::COMMIT_SECONDS).record(began.elapsed().as_secs_f64());
        if self.spare.is_none() && self.at - DATA_START > (self.header.size - DATA_START) / 2 {
            self.spare = Spare::begin(&self.config).ok();
        }
        Ok(Commit::Durable)
    }

    /// Goes on in a new segment.
    fn roll(&mut self) -> Result<(), SpoolError> {
        let prepared = match self.spare.take() {
            Some(spare) => spare.thread.join().map_err(|_| SpoolError::ThreadEnded)??,
            None => None,
        };
        let size = self.config.segment_bytes;
        let dir = &self.config.dir;
        let prepared = match prepared {
            Some(prepared) => Some(prepared),
            None => segment::prepare(dir, size, &AtomicBool::new(false))?,
        };
        let prepared = prepared.ok_or(SpoolError::ThreadEnded)?;
        (self.path, self.header) = segment::adopt(dir, &prepared, self.next_index, size)?;
        self.at = DATA_START;
        self.disk_bytes += size;
        Ok(())
    }
}
