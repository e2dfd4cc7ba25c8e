//! The queue's thread: takes what has come, applies it, writes it, and lets others know.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use duet_core::{Command, CommandFailure, Mail};
use duet_protocol::identity::DeviceId;
use duet_protocol::wire::SessionId;
use duet_telemetry::catalogue::{COMMANDS_ENDED, COMMANDS_LATE, COMMANDS_OPEN, COMMANDS_SENT};
use tokio::sync::oneshot;

use super::book::Book;
use super::clock::Clock;
use super::entry::{Entry, How};
use super::inbox::{Input, Question, Reply, Request};
use super::store::{Store, StoreError};
use super::{
    CommandInfo, Limits, Order, Outcome, QueueError, Queued, Registrations, SaidOnce, Told, Ways,
};

/// The most that is applied at once: a transaction is the longer, and the cheaper for each.
const AT_ONCE: usize = 4_096;
/// How long what may wait is not written.
const LAZY: Duration = Duration::from_secs(1);
/// How long until a failed file, or a spool without room, is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// How soon a mailbox that was full is tried again.
const FULL: Duration = Duration::from_millis(2);
/// The longest sleep: a clock that was not set at the start may be set meanwhile.
const SLEEP: Duration = Duration::from_secs(10);
/// What a shard waits beyond a command's time, which ends here.
const SLACK: Duration = Duration::from_secs(60);
/// The most ends that are handed on at once.
const TOLD_AT_ONCE: usize = 64;
/// How long the end waits for what was handed on last.
const LAST: Duration = Duration::from_secs(1);

/// What is done when a turn's changes are on disk, or are lost.
type After = Box<dyn FnOnce(bool) + Send>;

/// The thread's state.
pub(super) struct Worker<S: Store> {
    store: S,
    book: Book,
    limits: Limits,
    clock: Clock,
    registrations: Registrations,
    inbox: Receiver<Input>,
    /// What is not in the inbox for want of room.
    said_once: SaidOnce,
    failed: Arc<AtomicBool>,
    /// Which command, under which number, each device's shard has.
    fed: HashMap<DeviceId, (u64, u32)>,
    /// What each shard is to be told, in order.
    posts: Vec<VecDeque<Mail>>,
    waiting: HashMap<u64, Vec<oneshot::Sender<Outcome>>>,
    /// Ends that upstreams are to be told of.
    untold: VecDeque<(u64, bool)>,
    /// How many of them are on their way to the spool.
    telling: usize,
    tell_at: Instant,
    lazy_since: Option<Instant>,
    reload_at: Option<Instant>,
    /// Devices that may not connect any more, whose commands' ends are not on disk yet.
    revoked: Vec<DeviceId>,
    /// Devices whose shards had no room for a command, and when they are given it again.
    unfed: Vec<DeviceId>,
    feed_at: Option<Instant>,
}

impl<S: Store> Worker<S> {
    /// Reads what the store holds.
    pub(super) fn open(
        mut store: S,
        limits: Limits,
        registrations: Registrations,
        (inbox, said_once): (Receiver<Input>, SaidOnce),
        failed: Arc<AtomicBool>,
    ) -> Result<Self, StoreError> {
        let loaded = store.load()?;
        let behind_since_ms = loaded.behind_since_ms;
        let mut book = Book::new(loaded, limits);
        let clock = Clock::start(book.newest_ms(), behind_since_ms);
        // Some devices may have been revoked or removed while nobody listened, and registered again.
        for device in book.devices() {
            book.cancel_unless(&device, registrations(&device), clock.now_ms());
        }
        Ok(Self {
            store,
            book,
            limits,
            clock,
            registrations,
            inbox,
            said_once,
            failed,
            fed: HashMap::new(),
            posts: Vec::new(),
            waiting: HashMap::new(),
            untold: VecDeque::new(),
            telling: 0,
            tell_at: Instant::now(),
            lazy_since: None,
            reload_at: None,
            revoked: Vec::new(),
            unfed: Vec::new(),
            feed_at: None,
        })
    }

    /// Works until it is told to stop, or nobody is there any more.
    pub(super) fn run(mut self, mut ways: Box<dyn Ways>) {
        self.begin(&mut *ways);
        loop {
            let mut inputs = Vec::new();
            match self.inbox.recv_timeout(self.pause()) {
                Ok(input) => inputs.push(input),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.finish(&mut *ways),
            }
            inputs.extend(self.inbox.try_iter().take(AT_ONCE));
            inputs.append(&mut self.take_said_once());
            let stop = inputs.iter().any(|input| matches!(input, Input::Stop));
            let now_ms = self.tick();
            self.turn(&mut *ways, inputs, now_ms);
            if stop {
                return self.finish(&mut *ways);
            }
        }
    }

    /// What was said beside the inbox.
    pub(super) fn take_said_once(&self) -> Vec<Input> {
        std::mem::take(&mut *self.said_once.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Gives every shard the oldest commands of its devices, and tells it that those are all.
    pub(super) fn begin(&mut self, ways: &mut dyn Ways) {
        self.posts = (0..ways.shards()).map(|_| VecDeque::new()).collect();
        COMMANDS_OPEN.one().set_count(self.book.open() as u64);
        self.feed(self.clock.now_ms(), false);
        self.tell_all(false);
        self.post(ways);
        let untold = self.book.take_untold();
        self.untold.extend(untold);
    }

    /// The time; where the clock was not set at the start and is by now, what was queued meanwhile lives as long all the same.
    pub(super) fn tick(&mut self) -> u64 {
        if let Some((since_ms, by_ms)) = self.clock.catch_up() {
            self.book.shift(since_ms, by_ms);
        }
        self.clock.now_ms()
    }

    /// Takes inputs; returns when what follows from them is on its way, as far as there is room.
    pub(super) fn turn(&mut self, ways: &mut dyn Ways, inputs: Vec<Input>, now_ms: u64) {
        let (mut questions, mut rest) = (Vec::new(), Vec::new());
        for input in inputs {
            match input {
                Input::Request(Request::Ask(question)) => questions.push(question),
                input => rest.push(input),
            }
        }
        self.take(ways, rest, now_ms);
        // By then the book says what the file does.
        questions.into_iter().for_each(|question| self.say(question));
    }

    fn take(&mut self, ways: &mut dyn Ways, inputs: Vec<Input>, now_ms: u64) {
        if let Some(at) = self.reload_at {
            self.refuse(inputs);
            if Instant::now() >= at {
                self.reload();
            }
            return self.post(ways);
        }
        let (mut after, mut recorded) = (Vec::new(), Vec::new());
        for input in inputs {
            self.apply(input, now_ms, &mut after, &mut recorded);
        }
        self.book.pass(now_ms);
        if self.feed_at.is_some_and(|at| Instant::now() >= at) {
            self.feed_at = None;
            self.book.touch(std::mem::take(&mut self.unfed));
        }
        let late = self.lazy_since.is_some_and(|since| since.elapsed() >= LAZY);
        if self.book.is_urgent() || late {
            let change = self.book.take_change(self.clock.behind_since_ms());
            self.lazy_since = None;
            if let Err(error) = self.store.save(&change) {
                after.into_iter().for_each(|after| after(false));
                recorded.into_iter().for_each(|(shard, record)| self.give_back(shard, record));
                self.fail(&error);
                return self.post(ways);
            }
            self.book.written();
        } else if self.book.is_dirty() && self.lazy_since.is_none() {
            self.lazy_since = Some(Instant::now());
        }
        self.revoked.clear();
        after.into_iter().for_each(|after| after(true));
        COMMANDS_OPEN.one().set_count(self.book.open() as u64);
        for id in self.book.take_ended() {
            if let Some(entry) = self.book.find(id) {
                COMMANDS_ENDED.with([entry.state().name()]).add(1);
            }
            if let (Some(waiting), Some(entry)) = (self.waiting.remove(&id), self.book.find(id)) {
                // Whoever waited may be gone.
                waiting.into_iter().for_each(|one| drop(one.send(outcome(entry))));
            }
        }
        // A device's next command goes before the acknowledgement of its result, and so along with it.
        self.feed(now_ms, false);
        for (shard, record) in recorded {
            if let Some(posts) = self.posts.get_mut(shard) {
                posts.push_back(Mail::Durable(vec![record]));
            }
        }
        self.post(ways);
        let untold = self.book.take_untold();
        COMMANDS_LATE.one().add(untold.iter().filter(|(_, late)| *late).count() as u64);
        self.untold.extend(untold);
        self.tell(ways);
    }

    fn apply(
        &mut self,
        input: Input,
        now_ms: u64,
        after: &mut Vec<After>,
        recorded: &mut Vec<(usize, (SessionId, u32))>,
    ) {
        match input {
            Input::Request(request) => self.answer(request, now_ms, after),
            Input::Sent(id) => {
                COMMANDS_SENT.one().add(1);
                self.book.sent(id);
            }
            Input::Ended { shard, id, result, record } => {
                match result {
                    Ok(answer) => self.book.answered(id, answer, now_ms),
                    Err(CommandFailure::NotConnected) => self.not_connected(id, now_ms),
                    Err(CommandFailure::TimedOut) => self.book.end(id, How::Expired, now_ms),
                    Err(CommandFailure::TooLong) => self.book.end(id, How::Cancelled, now_ms),
                    Err(CommandFailure::Busy) => self.feed_again(id),
                }
                recorded.extend(record.map(|record| (shard, record)));
            }
            Input::Unexpected { shard, device, number, answer, record } => {
                self.book.answered_number(device, number, answer, now_ms);
                recorded.push((shard, record));
            }
            Input::Told { ends, stored } => {
                self.telling = self.telling.saturating_sub(1);
                for (id, late) in ends {
                    match stored {
                        true => self.book.told(id, late),
                        false => self.untold.push_back((id, late)),
                    }
                }
                if !stored {
                    self.tell_at = Instant::now() + AGAIN;
                }
            }
            Input::Revoked(device) => {
                self.book.cancel_unless(&device, (self.registrations)(&device), now_ms);
                self.revoked.push(device);
            }
            Input::SaidOnce | Input::Stop => {}
        }
    }

    fn answer(&mut self, request: Request, now_ms: u64, after: &mut Vec<After>) {
        match request {
            Request::Queue(order, reply) => self.queue(order, reply, now_ms, after),
            Request::Cancel(id, reply) => {
                let cancelled = self.book.cancel(id, now_ms);
                let info = cancelled.and_then(|()| self.info(id));
                after.push(told(reply, info));
            }
            Request::Ask(question) => self.say(question),
        }
    }

    /// Answers a question; whoever asked may be gone.
    fn say(&self, question: Question) {
        match question {
            Question::Show(id, reply) => drop(reply.send(self.info(id))),
            Question::List(wanted, reply) => drop(reply.send(Ok(self.book.list(&wanted)))),
        }
    }

    fn queue(&mut self, order: Order, reply: Reply<Queued>, now_ms: u64, after: &mut Vec<After>) {
        // Whoever asked looked the device up before. If it goes after this, that is heard after this, too.
        let queued = if (self.registrations)(&order.device) == Some(order.registration) {
            // Of one before, of whose end nobody has heard here.
            self.book.cancel_unless(&order.device, Some(order.registration), now_ms);
            self.book.queue(order, now_ms)
        } else {
            Err(QueueError::Unregistered(order.name))
        };
        let queued = queued.and_then(|(id, known)| {
            let (sender, outcome_of) = oneshot::channel();
            match self.book.find(id) {
                // It was there, and is over: what became of it is told at once.
                Some(entry) if entry.end.is_some() => drop(sender.send(outcome(entry))),
                _ => {
                    let waiting = self.waiting.entry(id).or_default();
                    waiting.retain(|one| !one.is_closed());
                    waiting.push(sender);
                }
            }
            Ok(Queued { info: self.info(id)?, known, outcome: outcome_of })
        });
        after.push(told(reply, queued));
    }

    fn info(&self, id: u64) -> Result<CommandInfo, QueueError> {
        self.book.find(id).map(CommandInfo::from).ok_or(QueueError::Unknown(id))
    }

    /// A command that was not to wait, for a device that is not there.
    fn not_connected(&mut self, id: u64, now_ms: u64) {
        let waiting = self.waiting.remove(&id).unwrap_or_default();
        waiting.into_iter().for_each(|one| drop(one.send(Outcome::NotConnected)));
        self.book.end(id, How::Cancelled, now_ms);
    }

    // ---- shards

    /// Brings what shards have in step with the book; where they may have lost it, by giving it to them `anew`.
    fn feed(&mut self, now_ms: u64, anew: bool) {
        for device in self.book.take_touched() {
            let head = self.book.head(&device);
            let next = head.map(|entry| (entry.id, entry.number));
            let fed = self.fed.get(&device).copied();
            if next == fed && !anew {
                continue;
            }
            let over = fed.filter(|(id, _)| next.is_none_or(|(next, _)| next != *id));
            let mail = match (over, head.map(|entry| command(entry, now_ms))) {
                (None, Some(command)) => Mail::Command(command),
                (Some((over, _)), Some(by)) => Mail::ReplaceCommand { over, by },
                (Some((over, _)), None) => Mail::WithdrawCommand(device, over),
                (None, None) => continue,
            };
            match next {
                Some(next) => drop(self.fed.insert(device, next)),
                None => drop(self.fed.remove(&device)),
            }
            let shards = self.posts.len().max(1);
            if let Some(posts) = self.posts.get_mut(usize::from(device.slot()) % shards) {
                posts.push_back(mail);
            }
        }
    }

    /// A shard has no room for a command: it gets it once more, after a while.
    fn feed_again(&mut self, id: u64) {
        let Some(device) = self.book.find(id).map(|entry| entry.device) else { return };
        self.fed.remove(&device);
        self.unfed.push(device);
        self.feed_at.get_or_insert_with(|| Instant::now() + AGAIN);
    }

    /// Tells every shard whether there may be commands that it does not have.
    fn tell_all(&mut self, behind: bool) {
        self.posts.iter_mut().for_each(|posts| posts.push_back(Mail::CommandsBehind(behind)));
    }

    fn post(&mut self, ways: &mut dyn Ways) {
        for (shard, posts) in self.posts.iter_mut().enumerate() {
            while let Some(mail) = posts.pop_front() {
                if let Err(mail) = ways.mail(shard, mail) {
                    posts.push_front(*mail);
                    break;
                }
            }
        }
    }

    // ---- upstreams

    fn tell(&mut self, ways: &mut dyn Ways) {
        while !self.untold.is_empty() && Instant::now() >= self.tell_at {
            let count = self.untold.len().min(TOLD_AT_ONCE);
            let told = |(id, late): &(u64, bool)| {
                let told = self.book.find(*id)?.told(*late)?;
                Some(Told { at_ms: self.clock.wall_ms(told.at_ms), ..told })
            };
            let ends: Vec<_> = self.untold.iter().take(count).filter_map(told).collect();
            if !ends.is_empty() && !ways.tell(&ends) {
                self.tell_at = Instant::now() + AGAIN;
                return;
            }
            self.telling += usize::from(!ends.is_empty());
            self.untold.drain(..count);
        }
    }

    // ---- failure

    /// The file could not be written: nobody hears of what was lost with it.
    fn fail(&mut self, error: &StoreError) {
        if !self.failed.swap(true, Ordering::Relaxed) {
            let text = "no command is queued or cancelled, and no result is taken, until it can be written";
            tracing::error!("{error}; {text}");
        }
        self.reload_at = Some(Instant::now() + AGAIN);
        self.book.undo();
        // What is queued is not known until it is read again.
        self.tell_all(true);
    }

    fn refuse(&mut self, inputs: Vec<Input>) {
        for input in inputs {
            match input {
                Input::Request(request) => request.refuse(&QueueError::Unwritten),
                Input::Told { .. } => self.telling = self.telling.saturating_sub(1),
                Input::Revoked(device) => self.revoked.push(device),
                Input::Ended { shard, record: Some(record), .. }
                | Input::Unexpected { shard, record, .. } => self.give_back(shard, record),
                Input::Ended { record: None, .. }
                | Input::Sent(_)
                | Input::SaidOnce
                | Input::Stop => {}
            }
        }
    }

    /// A result is not recorded: when the device repeats it, its shard is to take it.
    fn give_back(&mut self, shard: usize, record: (SessionId, u32)) {
        if let Some(posts) = self.posts.get_mut(shard) {
            posts.push_back(Mail::NotStored(vec![record]));
        }
    }

    /// Reads the book from disk again, as after a crash, and tries whether it can be written.
    fn reload(&mut self) {
        let loaded = self.store.load();
        let book = loaded.and_then(|loaded| {
            let behind_since_ms = loaded.behind_since_ms;
            let mut book = Book::new(loaded, self.limits);
            // It has come up meanwhile, and what followed from that is not on disk.
            if behind_since_ms.is_some() && self.clock.behind_since_ms().is_none() {
                self.clock = Clock::start(book.newest_ms(), behind_since_ms);
            }
            for device in &self.revoked {
                book.cancel_unless(device, (self.registrations)(device), self.clock.now_ms());
            }
            self.store.save(&book.take_change(self.clock.behind_since_ms())).map(|()| {
                book.written();
                book
            })
        });
        let Ok(book) = book else {
            self.reload_at = Some(Instant::now() + AGAIN);
            return;
        };
        self.book = book;
        self.revoked.clear();
        self.reload_at = None;
        self.lazy_since = None;
        self.failed.store(false, Ordering::Relaxed);
        self.waiting.retain(|id, _| self.book.find(*id).is_some());
        self.untold = self.book.take_untold().into();
        // Whoever waits for what was over meanwhile is told.
        for (id, waiting) in std::mem::take(&mut self.waiting) {
            match self.book.find(id).filter(|entry| entry.end.is_some()) {
                Some(entry) => waiting.into_iter().for_each(|one| drop(one.send(outcome(entry)))),
                None => drop(self.waiting.insert(id, waiting)),
            }
        }
        // A shard may have commands that are over, and others have come to their heads. Or it has them no more: what it said
        // of their ends is lost, and a device that has lost its answer, too, does not repeat it.
        let fed: Vec<_> = self.fed.keys().copied().collect();
        self.book.touch(fed);
        self.feed(self.clock.now_ms(), true);
        self.tell_all(false);
    }

    /// Whether the file could be written the last time, for tests.
    #[cfg(test)]
    pub(super) fn is_well(&self) -> bool {
        self.reload_at.is_none()
    }

    /// The book, for tests.
    #[cfg(test)]
    pub(super) fn book(&self) -> &Book {
        &self.book
    }

    /// The same, to be changed.
    #[cfg(test)]
    pub(super) fn book_mut(&mut self) -> &mut Book {
        &mut self.book
    }

    /// The time, for tests.
    #[cfg(test)]
    pub(super) fn now_ms(&self) -> u64 {
        self.clock.now_ms()
    }

    /// Another clock, for tests.
    #[cfg(test)]
    pub(super) fn set_clock(&mut self, clock: Clock) {
        self.clock = clock;
    }

    // ---- time

    fn pause(&self) -> Duration {
        let mut pause = SLEEP;
        if let Some(next_ms) = self.book.next_ms() {
            pause = pause.min(Duration::from_millis(next_ms.saturating_sub(self.clock.now_ms())));
        }
        if let Some(since) = self.lazy_since {
            pause = pause.min(LAZY.saturating_sub(since.elapsed()));
        }
        if let Some(at) = self.reload_at {
            pause = at.saturating_duration_since(Instant::now());
        } else if !self.untold.is_empty() {
            pause = pause.min(self.tell_at.saturating_duration_since(Instant::now()));
        }
        if let Some(at) = self.feed_at {
            pause = pause.min(at.saturating_duration_since(Instant::now()));
        }
        if self.posts.iter().any(|posts| !posts.is_empty()) {
            pause = pause.min(FULL);
        }
        pause
    }

    /// Hands on what can be, and writes what is not written.
    fn finish(&mut self, ways: &mut dyn Ways) {
        let now_ms = self.tick();
        self.turn(ways, Vec::new(), now_ms);
        let until = Instant::now() + LAST;
        while self.telling > 0 {
            let left = until.saturating_duration_since(Instant::now());
            let Ok(input) = self.inbox.recv_timeout(left) else { break };
            let mut inputs = self.take_said_once();
            inputs.push(input);
            let now_ms = self.tick();
            self.turn(ways, inputs, now_ms);
        }
        if self.reload_at.is_none() && self.book.is_dirty() {
            let change = self.book.take_change(self.clock.behind_since_ms());
            // Nothing in it was promised to anybody.
            let _ = self.store.save(&change);
        }
    }
}

/// Sends an answer once it is true; whoever asked may be gone.
fn told<T: Send + 'static>(reply: Reply<T>, answer: Result<T, QueueError>) -> After {
    Box::new(move |written| {
        let _ = reply.send(if written { answer } else { Err(QueueError::Unwritten) });
    })
}

fn outcome(entry: &Entry) -> Outcome {
    match &entry.end {
        Some((_, How::Done(answer))) => Outcome::Answered(answer.clone()),
        _ => Outcome::Over(entry.state()),
    }
}

fn command(entry: &Entry, now_ms: u64) -> Command {
    let left = Duration::from_millis(entry.expires_ms.saturating_sub(now_ms));
    Command {
        token: entry.id,
        device: entry.device,
        registration: entry.registration,
        number: entry.number,
        payload: entry.payload.clone(),
        timeout: left.saturating_add(SLACK),
        patient: entry.patient,
    }
}
