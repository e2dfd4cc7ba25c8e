//! The spool's thread: takes batches from all shards, writes one group, syncs it, answers.
//!
//! It runs on tokio-uring, and without where io_uring is refused. A failed write or sync ends the spool for good: what is pending and
//! whatever comes later is answered [`Durability::Failed`], and nothing is tried again, because
//! after a failed sync nobody knows what the disk holds.

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc, watch};

use super::batch::{Batch, Group};
use super::check::Check;
use super::error::SpoolError;
use super::file::{File, Runtime, Storage};
use super::format::{DATA_START, Header, MAX_SEGMENT_BYTES};
use super::health::{Health, Teller};
use super::recover::{Recovery, Tail, recover};
use super::spare::Spare;
use super::{MAX_BATCH_BYTES, metrics as names, segment};

/// The most batches that wait for the next group.
const QUEUE: usize = 1_024;
/// How long readings gather for which nobody waits.
const QUIET: Duration = Duration::from_millis(10);
/// The least time between the starts of two commits.
const INTERVAL: Duration = Duration::from_millis(1);
/// How long after a disk without room for the next segment it is asked again.
const ROOM: Duration = Duration::from_secs(1);
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

/// A running spool.
pub struct Spool {
    submitter: Submitter,
    thread: JoinHandle<Result<(), SpoolError>>,
    health: watch::Receiver<Health>,
    damage: watch::Receiver<Option<String>>,
    check: Option<Check>,
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
        let (found, damage) = watch::channel(None);
        let check = (recovery.segments > 1)
            .then(|| Check::begin(&config.dir, tail.header.first_index, found))
            .transpose()?;
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
                let run = || {
                    let runtime = Runtime::new(&config.dir)?;
                    let writer = Writer::new(config, tail, runtime.storage());
                    runtime.block_on(writer.run(waiting, hurried, teller))
                };
                let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run))
                    .unwrap_or(Err(SpoolError::ThreadEnded));
                // However it came to its end: a runtime refused and a panic are failures, too.
                result.inspect_err(|error| own.failed(error))
            })
            .map_err(SpoolError::io("starting the thread of", &dir))?;
        Ok(Self { submitter: Submitter { queue, hurry }, thread, health, damage, check, recovery })
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

    /// Stores what is queued and ends. Every [`Submitter`] must be gone, or this waits for it.
    ///
    /// # Errors
    /// What made the spool fail, if it did.
    pub fn shutdown(self) -> Result<(), SpoolError> {
        drop(self.submitter);
        if let Some(check) = self.check {
            check.end();
        }
        self.thread.join().map_err(|_| SpoolError::ThreadEnded)?
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
    /// There was no room for the next segment: when to ask again. Until there is, smaller groups that
    /// this segment could still take are refused as well, so that the spool's health does not flicker.
    ask_again: Option<Instant>,
}

enum Commit {
    Durable,
    /// The spool has reached its size limit: refused, and everything else still works.
    Full,
    /// The disk has no room for the next segment: the same.
    DiskFull(SpoolError),
    /// It had none a moment ago.
    Waiting,
    /// The spool has failed before.
    Ended,
}

impl Writer {
    fn new(config: SpoolConfig, tail: Tail, storage: Storage) -> Self {
        let Tail { path, header, at, next_index, disk_bytes } = tail;
        Self {
            config,
            storage,
            path,
            header,
            at,
            next_index,
            disk_bytes,
            spare: None,
            ask_again: None,
        }
    }

    async fn run(
        mut self,
        mut waiting: mpsc::Receiver<Submission>,
        hurry: Arc<Notify>,
        teller: Teller,
    ) -> Result<(), SpoolError> {
        let mut result = Ok(());
        let mut group = Group::default();
        let mut file = match self.open() {
            Ok(file) => Some(file),
            Err(error) => {
                teller.failed(&error);
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
            let durability = match outcome {
                Ok(Commit::Durable) => {
                    teller.working();
                    Durability::Durable
                }
                Ok(Commit::Full) => {
                    teller.full();
                    refused(names::FULL)
                }
                Ok(Commit::DiskFull(error)) => {
                    teller.disk_full(&error);
                    refused(names::DISK)
                }
                Ok(Commit::Waiting) => refused(names::DISK),
                Ok(Commit::Ended) => refused(names::FAILED),
                Err(error) => {
                    teller.failed(&error);
                    result = Err(error);
                    refused(names::FAILED)
                }
            };
            for Submission { batch, done, .. } in batches {
                done(batch, durability);
            }
        }
        if let Some(file) = file {
            let _ = file.close().await;
        }
        if let Some(spare) = self.spare.take() {
            spare.give_up();
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
        if self.ask_again.is_some() || self.at + bytes as u64 > self.header.size {
            if let Some(refusal) = self.advance()? {
                return Ok(refusal);
            }
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

    /// Goes on in a new segment, or says what stands in the way.
    fn advance(&mut self) -> Result<Option<Commit>, SpoolError> {
        let now = Instant::now();
        if self.ask_again.is_some_and(|at| now < at) {
            return Ok(Some(Commit::Waiting));
        }
        // Somebody may have made room since the last segment.
        self.disk_bytes = segment::disk_bytes(&self.config.dir)?;
        if self.disk_bytes + self.config.segment_bytes > self.config.max_bytes {
            self.ask_again = Some(now);
            return Ok(Some(Commit::Full));
        }
        match self.roll() {
            // Whatever was begun has no name yet, or no record: to begin again does no harm.
            Err(error) if error.is_no_space() => {
                self.ask_again = Some(now + ROOM);
                Ok(Some(Commit::DiskFull(error)))
            }
            rolled => {
                self.ask_again = None;
                rolled.map(|()| None)
            }
        }
    }

    fn roll(&mut self) -> Result<(), SpoolError> {
        let size = self.config.segment_bytes;
        let dir = &self.config.dir;
        let prepared = match self.spare.take().map(Spare::finish).transpose()?.flatten() {
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

/// Counts what is refused.
fn refused(reason: &'static str) -> Durability {
    metrics::counter!(names::REFUSED, "reason" => reason).increment(1);
    Durability::Failed
}
