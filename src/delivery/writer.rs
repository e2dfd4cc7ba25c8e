//! The spool's thread: takes batches from all shards, writes one group, syncs it, answers.
//!
//! It runs on tokio-uring, and without where io_uring is refused. A failed write or sync ends the spool for good: what
//! is pending and whatever comes later is answered [`Durability::Failed`], and nothing is tried again, because after a
//! failed sync nobody knows what the disk holds. The same when the segment is no longer where it was: then a sync says
//! nothing about what a restart will find.

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use duet_telemetry::catalogue::FILES_RENEWED;
use tokio::sync::{Notify, mpsc, watch};

use super::batch::Group;
use super::error::SpoolError;
use super::file::{File, Storage};
use super::format::{DATA_START, Header};
use super::health::Teller;
use super::marker::MarkerFile;
use super::meters::{self, Meters};
use super::recover::Tail;
use super::retention::{self, WhenFull};
use super::segment;
use super::spare::Spare;
use super::spool::{Durability, SpoolConfig, Submission, Urgency};

/// How long readings gather for which nobody waits.
const QUIET: Duration = Duration::from_millis(10);
/// The least time between the starts of two commits.
const INTERVAL: Duration = Duration::from_millis(1);
/// How long after a spool or disk without room for the next segment it is asked again.
const ROOM: Duration = Duration::from_secs(1);
/// How long nothing comes before the marker is made to survive a power cut.
const IDLE: Duration = Duration::from_millis(500);
/// The most bytes of one group.
const GROUP_MAX: usize = 4 << 20;

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

/// The segment that takes the appends, open.
struct Open {
    file: File,
    /// Which file it was when it was opened, and how long.
    identity: (u64, u64, u64),
}

/// What others in this process see of the writer's progress.
pub(super) struct Shared {
    /// One past the last durable index.
    pub(super) durable: watch::Sender<u64>,
    /// How much the segment that takes the appends has room for, bytes.
    pub(super) room: Arc<AtomicU64>,
    /// One past the last durable index that commits to a mark.
    pub(super) commits: Arc<AtomicU64>,
}

/// What the spool's thread works with.
pub(super) struct Writer {
    config: SpoolConfig,
    storage: Storage,
    path: PathBuf,
    header: Header,
    at: u64,
    next_index: u64,
    spare: Option<Spare>,
    marker: MarkerFile,
    /// Whether the marker says something that a power cut would take from it.
    unsynced: bool,
    shared: Shared,
    teller: Teller,
    /// There was no room for the next segment: when to ask again. Until there is, smaller groups that
    /// this segment could still take are refused as well, so that the spool's health does not flicker.
    ask_again: Option<Instant>,
    meters: Meters,
}

enum Commit {
    Durable,
    /// The spool has reached its size limit: refused, and everything else still works.
    Full,
    /// The disk has no room for the next segment, or for what is written to this one: the same.
    DiskFull(SpoolError),
    /// It had none a moment ago.
    Waiting,
    /// The spool has failed before.
    Ended,
}

impl Writer {
    pub(super) fn new(
        config: SpoolConfig,
        tail: Tail,
        storage: Storage,
        marker: MarkerFile,
        shared: Shared,
        teller: Teller,
    ) -> Self {
        let Tail { path, header, at, next_index } = tail;
        shared.room.store(header.size - at, Ordering::Relaxed);
        Self {
            config,
            storage,
            path,
            header,
            at,
            next_index,
            spare: None,
            marker,
            unsynced: false,
            shared,
            teller,
            ask_again: None,
            meters: Meters::new(next_index),
        }
    }

    pub(super) async fn run(
        mut self,
        mut waiting: mpsc::Receiver<Submission>,
        hurry: Arc<Notify>,
    ) -> Result<(), SpoolError> {
        let mut group = Group::default();
        let mut open = self.open();
        if let Err(error) = &open {
            self.teller.failed(error);
        }
        let mut held = None;
        let mut began = Instant::now();
        loop {
            let (first, urgency) = match held.take() {
                // It has waited for a group already.
                Some(held) => (held, Urgency::Awaited),
                None => match self.next(&mut waiting, &mut open).await {
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
            let outcome = match &mut open {
                Ok(open) => self.commit(open, &batches, &mut group).await,
                Err(_) => Ok(Commit::Ended),
            };
            let durability = match outcome {
                Ok(Commit::Durable) => {
                    self.teller.working();
                    Durability::Durable
                }
                Ok(Commit::Full) => {
                    self.teller.full();
                    refused("full")
                }
                Ok(Commit::DiskFull(error)) => {
                    self.teller.disk_full(&error);
                    refused("disk")
                }
                Ok(Commit::Waiting) => refused("disk"),
                Ok(Commit::Ended) => refused("failed"),
                Err(error) => {
                    self.teller.failed(&error);
                    open = Err(error);
                    refused("failed")
                }
            };
            for Submission { batch, done, .. } in batches {
                done(batch, durability);
            }
        }
        let result = match open {
            Ok(open) => {
                let _ = open.file.close().await;
                self.marker
                    .sync()
                    .map_err(SpoolError::io("syncing the marker in", &self.config.dir))
            }
            Err(error) => Err(error),
        };
        if let Some(spare) = self.spare.take() {
            spare.give_up();
        }
        segment::remove_spare(&self.config.dir)?;
        result
    }

    /// Waits for the next batch; does meanwhile what needs no batch. `None`: there will be none.
    async fn next(
        &mut self,
        waiting: &mut mpsc::Receiver<Submission>,
        open: &mut Result<Open, SpoolError>,
    ) -> Option<Submission> {
        loop {
            let pause = match (&open, self.ask_again) {
                (Err(_), _) => None,
                (Ok(_), Some(_)) => Some(ROOM),
                (Ok(_), None) => self.unsynced.then_some(IDLE),
            };
            let Some(pause) = pause else { return waiting.recv().await };
            if let Ok(first) = tokio::time::timeout(pause, waiting.recv()).await {
                return first;
            }
            if let Err(error) = self.rest(open).await {
                self.teller.failed(&error);
                *open = Err(error);
            }
        }
    }

    /// What is done while nothing comes: looks whether there is room again, and syncs the marker.
    async fn rest(&mut self, open: &mut Result<Open, SpoolError>) -> Result<(), SpoolError> {
        if std::mem::take(&mut self.unsynced) {
            self.marker
                .sync()
                .map_err(SpoolError::io("syncing the marker in", &self.config.dir))?;
        }
        if self.ask_again.is_none() {
            return Ok(());
        }
        if let Ok(open) = open {
            match self.advance(open).await? {
                None => self.teller.working(),
                Some(Commit::DiskFull(error)) => self.teller.disk_full(&error),
                Some(Commit::Full) => self.teller.full(),
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// The most bytes that a segment can take in one group.
    fn room_max(&self) -> usize {
        usize::try_from(self.config.segment_bytes - DATA_START).unwrap_or(usize::MAX)
    }

    fn open(&self) -> Result<Open, SpoolError> {
        let path = &self.path;
        let open = || Ok((OpenOptions::new().write(true).open(path)?, segment::identity(path)?));
        let (file, identity) = open().map_err(SpoolError::io("opening", path))?;
        Ok(Open { file: File::new(file, self.storage), identity })
    }

    async fn commit(
        &mut self,
        open: &mut Open,
        batches: &[Submission],
        group: &mut Group,
    ) -> Result<Commit, SpoolError> {
        let began = Instant::now();
        let bytes: usize = batches.iter().map(|one| one.batch.bytes()).sum();
        if (self.ask_again.is_some() || self.at + bytes as u64 > self.header.size)
            && let Some(refusal) = self.advance(open).await?
        {
            return Ok(refusal);
        }
        group.begin(self.header.seed(), self.next_index);
        batches.iter().for_each(|one| one.batch.seal_into(group));
        let records = group.records;
        let buffer = std::mem::take(&mut group.bytes);
        let (written, buffer) = open.file.write_all_at(buffer, self.at).await;
        group.bytes = buffer;
        match written.map_err(SpoolError::io("writing to", &self.path)) {
            // Some file systems want room for what is there already. What comes next is written over what this has left.
            Err(error) if error.is_no_space() => return Ok(Commit::DiskFull(error)),
            written => written?,
        }
        open.file.sync_data().await.map_err(SpoolError::io("syncing", &self.path))?;
        // What was synced is durable for the next start only where that finds it.
        if !segment::identity(&self.path).is_ok_and(|found| found == open.identity) {
            return Err(SpoolError::Replaced(self.path.clone()));
        }
        self.at += bytes as u64;
        self.next_index += u64::from(records);
        self.tell_durable(batches.iter().any(|one| one.batch.commits()))?;
        self.meters.committed(records, bytes, began.elapsed(), self.next_index);
        if self.spare.is_none() && self.at - DATA_START > (self.header.size - DATA_START) / 2 {
            self.spare = Spare::begin(&self.config).ok();
        }
        Ok(Commit::Durable)
    }

    fn tell_durable(&mut self, commits: bool) -> Result<(), SpoolError> {
        let told = self.marker.tell(self.next_index);
        told.map_err(SpoolError::io("writing the marker in", &self.config.dir))?;
        self.unsynced = true;
        if commits {
            self.shared.commits.store(self.next_index, Ordering::Release);
        }
        self.tell_room();
        self.shared.durable.send_replace(self.next_index);
        Ok(())
    }

    fn tell_room(&self) {
        self.shared.room.store(self.header.size - self.at, Ordering::Relaxed);
    }

    /// Goes on in a new segment, or says what stands in the way.
    async fn advance(&mut self, open: &mut Open) -> Result<Option<Commit>, SpoolError> {
        let now = Instant::now();
        if self.ask_again.is_some_and(|at| now < at) {
            return Ok(Some(Commit::Waiting));
        }
        // Somebody may have made room since the last segment.
        let disk_bytes = segment::disk_bytes(&self.config.dir)?;
        let SpoolConfig { dir, segment_bytes, max_bytes, retention, .. } = &self.config;
        if disk_bytes + segment_bytes > *max_bytes {
            let drops = retention.when_full == WhenFull::DropOldest;
            // What stands in the way of a removal, the keeper tells.
            let room =
                drops && retention::make_room(dir, *segment_bytes, *max_bytes).unwrap_or(false);
            if !room {
                self.ask_again = Some(now);
                return Ok(Some(Commit::Full));
            }
        }
        match self.roll() {
            // Whatever was begun has no name yet, or no record: to begin again does no harm.
            Err(error) if error.is_no_space() => {
                self.ask_again = Some(now + ROOM);
                return Ok(Some(Commit::DiskFull(error)));
            }
            rolled => rolled?,
        }
        self.ask_again = None;
        let full = std::mem::replace(open, self.open()?);
        full.file
            .close()
            .await
            .map_err(SpoolError::io("closing the segment before", &self.path))?;
        self.marker.sync().map_err(SpoolError::io("syncing the marker in", &self.config.dir))?;
        Ok(None)
    }

    fn roll(&mut self) -> Result<(), SpoolError> {
        let dir = &self.config.dir;
        let size = self.config.segment_bytes;
        let prepared = match self.spare.take().map(Spare::finish).transpose()?.flatten() {
            Some(prepared) if segment::is_prepared(&prepared, size) => Some(prepared),
            spare => {
                if let Some(spare) = spare {
                    FILES_RENEWED.with(["spare"]).add(1);
                    tracing::warn!(
                        "{}: it was removed or cut under the gateway, and is prepared again",
                        spare.display()
                    );
                }
                segment::prepare(dir, size, &AtomicBool::new(false))?
            }
        };
        let prepared = prepared.ok_or(SpoolError::ThreadEnded)?;
        let (first_index, salt) = (self.next_index, segment::salt(&prepared)?);
        let header = Header { first_index, size, salt, gap: false, ..self.header };
        self.path = segment::adopt(dir, &prepared, &header)?;
        self.header = header;
        self.at = DATA_START;
        self.tell_room();
        Ok(())
    }
}

/// Counts what is refused.
fn refused(reason: &'static str) -> Durability {
    meters::refused(reason);
    Durability::Failed
}
