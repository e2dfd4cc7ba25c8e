//! The queue of commands: what devices are to do, kept on disk until they have done it or its time is over.
//!
//! Owns the file `commands.redb`, the numbers of commands and the thread that changes both. A shard gets the oldest
//! command of each device from here, whether the device is connected or asleep, and tells what becomes of it. Nothing here
//! touches a socket, and no shard ever waits for the file: what shards tell is queued, and what they must be told follows
//! when it is on disk.
//!
//! # A command's life
//!
//! ```text
//! queued ── sent (n times) ── done (status, output)
//!    └─────────┴──── expired | cancelled | superseded ── (late result)
//! ```
//!
//! A device has at most one command at a time, in the order in which they were queued, each under a number of its own that
//! was given when it was queued (R116). So whatever is killed, and whenever: a command whose sending nobody remembers is sent
//! again under its number, which a device carries out once (R78), and a result is acknowledged to the device only when it
//! is on disk (R117), so a result that nobody remembers comes again.
//!
//! # Order of things
//!
//! The thread takes all that has come, applies it to the [book](book::Book) in memory, writes what has changed as one
//! transaction, and only then lets others know: who asked, the shards, the spool. If the write fails, the book is read from
//! disk again and nobody hears of what was lost with it, as after a crash.

mod book;
mod clock;
mod entry;
mod inbox;
mod info;
mod store;
mod worker;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::thread::JoinHandle;
use std::time::Duration;

use duet_core::{CommandAnswer, CommandFailure, Mail};
use duet_protocol::identity::DeviceId;
use duet_protocol::message::PAYLOAD_MAX;
use duet_protocol::wire::SessionId;
use thiserror::Error;
use tokio::sync::oneshot;

pub use self::info::{CommandInfo, CommandState, LateResult};
pub use self::store::StoreError;

use self::inbox::{Input, Question, Request};
use self::store::Disk;
use self::worker::Worker;

/// The queue's file in the state directory.
pub const FILE: &str = "commands.redb";
/// The longest idempotency or collapse key, bytes.
pub const MAX_KEY: usize = 64;
/// The longest time to live, milliseconds: thirty days.
pub const MAX_TTL_MS: u64 = 30 * 86_400_000;
/// What shards and callers may have told the queue that it has not looked at. Beyond, devices repeat their results, and
/// callers are told that the queue is busy.
const INBOX: usize = 65_536;

/// What the queue keeps, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most commands that may wait for one device.
    pub per_device: usize,
    /// The most that may wait for all of them.
    pub open: usize,
    /// The most bytes of payload that may wait.
    pub open_bytes: usize,
    /// How many that are over are kept for whoever asks; the oldest are forgotten first.
    pub ended: usize,
    /// How long those are kept, milliseconds; as long an idempotency key is good.
    pub keep_ms: u64,
    /// How long a command waits that does not say, milliseconds.
    pub ttl_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            per_device: 50,
            open: 250_000,
            open_bytes: 128 << 20,
            ended: 100_000,
            keep_ms: 86_400_000,
            ttl_ms: 86_400_000,
        }
    }
}

/// A command to be queued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// For whom.
    pub device: DeviceId,
    /// The device's registration: one that is registered again, even under the same id, is not meant.
    pub registration: u64,
    /// The device's name.
    pub name: String,
    /// What to do, at most [`PAYLOAD_MAX`] bytes.
    pub payload: Vec<u8>,
    /// How long it may wait for its result, milliseconds; the setting's where nothing is said.
    pub ttl_ms: Option<u64>,
    /// A command with the same key that was queued before for the registration is meant, and this is not queued again.
    pub key: Option<String>,
    /// Commands with the same collapse key that wait for the device are superseded by this one.
    pub collapse: Option<String>,
    /// Whether it waits for a device that is not connected.
    pub patient: bool,
}

/// Why a command was not queued, or is not there.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum QueueError {
    /// Longer than a record carries.
    #[error("the payload is longer than a command can be ({PAYLOAD_MAX} bytes)")]
    TooLong,
    /// An idempotency or collapse key that is empty or too long.
    #[error("a key, and a collapse key, must have 1 to {MAX_KEY} bytes")]
    BadKey,
    /// No time, or too much.
    #[error("a command may wait from one millisecond to thirty days")]
    BadTtl,
    /// The device has its share.
    #[error("{0} commands are waiting for the device, which is the most; cancel some, or wait")]
    DeviceFull(usize),
    /// All devices together have theirs.
    #[error("too many commands are waiting for all devices together; cancel some, or wait")]
    Full,
    /// The idempotency key stands for something else.
    #[error("this key was given before with another payload; a key names one command")]
    KeyTaken,
    /// Nothing of this name.
    #[error("no command {0}; those that are over are forgotten after a day")]
    Unknown(u64),
    /// It is over, so there is nothing to cancel.
    #[error("command {0} is over: {1}")]
    Over(u64, CommandState),
    /// It is for a registration that is over.
    #[error(
        "{0} was removed, revoked or registered anew while this was asked; nothing was queued, ask again"
    )]
    Unregistered(String),
    /// All numbers have been given.
    #[error(
        "the device has had all the numbers that commands can have; register it anew under another id"
    )]
    Numbers,
    /// It could not be written.
    #[error(
        "the queue of commands cannot be written at the moment; nothing was queued or cancelled (`duet status` says more)"
    )]
    Unwritten,
    /// More than it can take in.
    #[error("too much is asked of the queue of commands at once; try again")]
    Busy,
}

/// What became of a command that somebody waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The device answered.
    Answered(CommandAnswer),
    /// It is over without an answer.
    Over(CommandState),
    /// Its device was not connected, and it was not to wait.
    NotConnected,
}

/// A command that was queued.
#[derive(Debug)]
pub struct Queued {
    /// How it is now.
    pub info: CommandInfo,
    /// Whether it was there already, under this idempotency key.
    pub known: bool,
    /// Tells what becomes of it; not told when the gateway ends before.
    pub outcome: oneshot::Receiver<Outcome>,
}

/// Which commands to list.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Of this device only.
    pub device: Option<DeviceId>,
    /// Only those that are not over.
    pub open: bool,
    /// Only those after this one.
    pub after: u64,
    /// At most so many.
    pub limit: usize,
}

/// An end of a command, as upstreams get it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Which command.
    pub id: u64,
    /// The device's name.
    pub name: String,
    /// Its number at the device.
    pub number: u32,
    /// What became of it.
    pub state: CommandState,
    /// Whether this is a result that came after the command was over.
    pub late: bool,
    /// When, by the wall clock, milliseconds since 1970.
    pub at_ms: u64,
    /// What the device answered, if it did.
    pub answer: Option<CommandAnswer>,
}

/// The ways from the queue to others. None of them may block.
pub trait Ways: Send {
    /// How many shards there are.
    fn shards(&self) -> usize;

    /// Gives a shard mail; it comes back where there is no room for it now.
    fn mail(&mut self, shard: usize, mail: Mail) -> Result<(), Box<Mail>>;

    /// Hands ends of commands on to be stored for the upstreams; false where there is no room for them now. Once they are
    /// stored, [`Teller::told`] must name them.
    fn tell(&mut self, ends: &[Told]) -> bool;
}

/// How shards, and others that must not wait, tell the queue something. What it has no room for is dropped: devices repeat
/// their results, which their shards take again; fewer sendings are counted than there were; and ends of commands that are
/// not known to be stored for the upstreams are handed on once more by the next start.
#[derive(Clone)]
pub struct Teller {
    inbox: SyncSender<Input>,
    said_once: SaidOnce,
}

/// What must not be dropped for want of room, since nobody says it twice: what became of the ends that the queue has handed on, and
/// that a shard is done with a command without a result. There is no more of it than there are commands. The queue looks here
/// whatever has woken it.
type SaidOnce = Arc<std::sync::Mutex<Vec<Input>>>;

impl Teller {
    /// A command went out in a record.
    pub fn sent(&self, id: u64) {
        let _ = self.inbox.try_send(Input::Sent(id));
    }

    /// A shard is done with a command. The shard is told whether that is on disk, if there is a record. False if it was
    /// dropped.
    #[must_use]
    pub fn ended(
        &self,
        shard: usize,
        id: u64,
        result: Result<CommandAnswer, CommandFailure>,
        record: Option<(SessionId, u32)>,
    ) -> bool {
        let is_repeated = record.is_some();
        let ended = Input::Ended { shard, id, result, record };
        if is_repeated {
            return self.inbox.try_send(ended).is_ok();
        }
        self.say_once(ended);
        true
    }

    /// A device answered something that its shard had not asked. The rest is as with [`ended`](Self::ended).
    #[must_use]
    pub fn unexpected(
        &self,
        shard: usize,
        device: DeviceId,
        number: u32,
        answer: CommandAnswer,
        record: (SessionId, u32),
    ) -> bool {
        self.inbox.try_send(Input::Unexpected { shard, device, number, answer, record }).is_ok()
    }

    /// These ends are stored for the upstreams, or could not be: then they are handed on again.
    pub fn told(&self, ends: Vec<(u64, bool)>, stored: bool) {
        self.say_once(Input::Told { ends, stored });
    }

    /// For what nobody says again.
    fn say_once(&self, input: Input) {
        let mut said = self.said_once.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        said.push(input);
        drop(said);
        // One that is full wakes the queue, too.
        let _ = self.inbox.try_send(Input::SaidOnce);
    }
}

/// The registration of a device that may connect.
pub type Registrations = Box<dyn Fn(&DeviceId) -> Option<u64> + Send>;

/// The running queue.
pub struct Commands {
    inbox: SyncSender<Input>,
    failed: Arc<AtomicBool>,
    thread: std::sync::Mutex<Option<JoinHandle<()>>>,
}

/// The queue's file, open and read, before shards run.
pub struct Opened {
    worker: Worker<Disk>,
    inbox: SyncSender<Input>,
    said_once: SaidOnce,
    failed: Arc<AtomicBool>,
}

/// Looks at the queue's file and changes nothing: what there is to say of it.
///
/// # Errors
/// [`StoreError`] when a start would fail over it. A running gateway's file is in use.
pub fn look(path: &std::path::Path) -> Result<String, StoreError> {
    let shown = path.display();
    if path.symlink_metadata().is_err() {
        return Ok(format!("{shown}: not there yet; a start makes it"));
    }
    let Some(found) = store::look(path)? else {
        return Ok(format!("{shown}: its gateway was killed; a start puts it in order"));
    };
    let open = found.entries.iter().filter(|entry| entry.end.is_none()).count();
    Ok(format!("{shown}, {open} commands wait, {} are over", found.entries.len() - open))
}

impl Opened {
    /// Opens the file, or makes an empty one, and reads it. Commands of registrations that are over are cancelled, and
    /// none is taken for them from now on. The file is written when the thread runs.
    ///
    /// # Errors
    /// [`StoreError`] when it is damaged, in use, or refused by the system.
    pub fn open(
        path: PathBuf,
        limits: Limits,
        registrations: Registrations,
    ) -> Result<Self, StoreError> {
        let (inbox, waiting) = std::sync::mpsc::sync_channel(INBOX);
        let failed = Arc::new(AtomicBool::new(false));
        let disk = Disk::open(path)?;
        let said_once = SaidOnce::default();
        let waiting = (waiting, Arc::clone(&said_once));
        let worker = Worker::open(disk, limits, registrations, waiting, Arc::clone(&failed))?;
        Ok(Self { worker, inbox, said_once, failed })
    }

    /// For shards and for the spool.
    #[must_use]
    pub fn teller(&self) -> Teller {
        Teller { inbox: self.inbox.clone(), said_once: Arc::clone(&self.said_once) }
    }

    /// Starts the thread. The shards must have been told that they are behind on commands.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn run(self, ways: Box<dyn Ways>) -> std::io::Result<Commands> {
        let Self { worker, inbox, failed, .. } = self;
        let thread =
            std::thread::Builder::new().name("commands".into()).spawn(move || worker.run(ways))?;
        Ok(Commands { inbox, failed, thread: std::sync::Mutex::new(Some(thread)) })
    }
}

impl Commands {
    fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, QueueError>>) -> Request,
    ) -> oneshot::Receiver<Result<T, QueueError>> {
        let (answer, waiting) = oneshot::channel();
        // A queue that has ended gives no answer, which says so.
        if let Err(TrySendError::Full(Input::Request(request))) =
            self.inbox.try_send(Input::Request(request(answer)))
        {
            request.refuse(&QueueError::Busy);
        }
        waiting
    }

    /// Queues a command. The answer comes when it is on disk.
    pub fn queue(&self, order: Order) -> oneshot::Receiver<Result<Queued, QueueError>> {
        self.ask(|answer| Request::Queue(order, answer))
    }

    /// Cancels a command that is not over. Its device may have carried it out.
    pub fn cancel(&self, id: u64) -> oneshot::Receiver<Result<CommandInfo, QueueError>> {
        self.ask(|answer| Request::Cancel(id, answer))
    }

    /// One command.
    pub fn show(&self, id: u64) -> oneshot::Receiver<Result<CommandInfo, QueueError>> {
        self.ask(|answer| Request::Ask(Question::Show(id, answer)))
    }

    /// Some commands in the order in which they were queued.
    pub fn list(&self, wanted: Wanted) -> oneshot::Receiver<Result<Vec<CommandInfo>, QueueError>> {
        self.ask(|answer| Request::Ask(Question::List(wanted, answer)))
    }

    /// A device may not connect any more: its commands are cancelled.
    pub fn revoked(&self, device: DeviceId) {
        // A full inbox empties within a moment, and one that has ended has no commands to cancel.
        let mut input = Input::Revoked(device);
        for _ in 0..1_000 {
            match self.inbox.try_send(input) {
                Err(TrySendError::Full(back)) => input = back,
                _ => return,
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Whether the file cannot be written at the moment.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// Writes what is not written yet and ends the thread.
    pub fn shutdown(&self) {
        let thread = self.thread.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // Blocking is fine: whoever ends the gateway waits for it.
            let _ = self.inbox.send(Input::Stop);
            let _ = thread.join();
        }
    }
}

impl Drop for Commands {
    fn drop(&mut self) {
        self.shutdown();
    }
}

#[cfg(test)]
mod tests;
