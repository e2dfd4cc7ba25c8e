//! A shard: the sessions of the devices whose slots are its own, and all that is done with their messages.
//!
//! * *In* go datagrams, messages of streams, what happens to streams, mail from other threads, the time, and random bytes.
//! * *Out* come messages and the streams to close, readings to the [`Sink`], [events](Event), and [counts](Counts).
//! * *Never* does it wait, read a clock, touch a socket or a file, or hold a lock over work: its sessions are its own, and
//!   with other threads it shares its directory of devices alone. A HELLO that is not proven makes, ends and moves nothing
//!   (R40); where it comes again, the shard notes that its ACCEPT goes there, too, and nothing else. A reading is acknowledged
//!   only once the sink has said that it is durable (R74).
//!
//! Hellos and records are queued. Mail acts at once. Three messages are answered at once: a HELLO that has its ACCEPT already,
//! one that is sent away, and a record of no session. A *turn* ([`handle_turn`](Handler::handle_turn)) works on all of it: it opens the records as one
//! batch and acts on each, answers the oldest hellos as another, and hands the readings of both to the sink; then it
//! acknowledges what has become durable, adds commands, and seals all that as a third. Once a second it ends the pending
//! sessions whose time is over; the confirmed ones it looks through every sixtieth of the idle time, but not more often than
//! once a second and at least once a minute.
//!
//! In its folder lie the way of a HELLO (`handshakes`), of a record (`traffic`) and of a command (`commands`), who is there
//! (`presence`), how sessions go on in another process (`handover`), and the types that go in and out (`interface`).

mod commands;
mod handover;
mod handshakes;
mod interface;
mod presence;
mod traffic;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use duet_protocol::message::Down;
use duet_protocol::reading::EARLY_SEQUENCE;
use duet_protocol::reason::DropReason;
use duet_protocol::record::scrub_stack;
use duet_protocol::wire::{Kind, SessionId};

use self::commands::Commands;
pub use self::commands::{Command, CommandAnswer, CommandFailure};
pub use self::handover::{HANDED_LEN, Local, TakenOver};
pub use self::interface::{
    Commit, Counts, Event, GatewayKey, Mail, Reading, RefusedDevice, Renewal, Settings, Sink,
};
pub use self::presence::{Contact, Gone};
use crate::askers::{Asker, Askers};
use crate::early::{Early, Token};
use crate::engine::Engine;
use crate::hello_queue::HelloQueue;
use crate::keys::Expanded;
use crate::outbox::Outbox;
use crate::records::Records;
use crate::resets::Resets;
use crate::rules::{Rule, in_force};
use crate::sessions::{Ended, Sessions};
use crate::streams::Streams;
use crate::unsealed::Unsealed;
use crate::{Close, Directory, Handler, Now, Path, Peer, Random, StreamId, Transmit, shard_of};

/// The most hellos that are answered in one turn: larger batches gain little and keep records
/// waiting.
pub const BATCH_MAX: usize = 64;
/// How long a shard that drains waits for readings to become durable, µs.
const DRAIN_US: u64 = 5_000_000;

/// The sessions of the devices whose slots are its own, without I/O.
///
/// Messages, closed streams and mail go in by the `handle_*` methods of [`Handler`]; after the input of a turn
/// [`handle_turn`](Handler::handle_turn) answers it. Then whoever drives it asks `poll_transmit`, `poll_close` and
/// [`poll_event`](Self::poll_event) until each has nothing more. Nothing in here blocks, and no input makes it panic.
pub struct Shard<E: Engine, S> {
    settings: Settings,
    directory: Arc<dyn Directory>,
    engine: E,
    sink: S,
    random: Random,
    sessions: Sessions,
    /// Hellos that wait for the next batch.
    hellos: HelloQueue,
    /// Readings from HELLOs on their way to storage, and the handshakes that wait for them.
    early: Early<E::PointTable>,
    /// Records of this turn, opened at its end as one batch.
    records: Records,
    /// Room for the keys of a batch of records.
    expanded: Expanded,
    /// Readings that are durable and not yet acknowledged.
    acking: Vec<(SessionId, u32)>,
    /// Where some of those on their way to storage came again.
    askers: Askers,
    /// Of those that are durable now, who is acknowledged beside the session's path.
    acking_there: Vec<(Token, Asker)>,
    /// What this turn has to say in its sessions, sealed at its end as one batch.
    unsealed: Unsealed,
    commands: Commands,
    out: Outbox,
    events: VecDeque<Event>,
    streams: Streams,
    /// The time of the last input or turn.
    now_us: u64,
    /// When pending sessions are looked through next, and RESETs may be sent again.
    next_second_us: u64,
    /// When confirmed sessions are looked through next.
    next_idle_scan_us: u64,
    resets: Resets,
    /// Until when it drains, µs, if it does.
    drain_until_us: Option<u64>,
    /// Whether its sessions go on in another process, if it drains.
    hands_over: bool,
    /// Whether none of its sessions lacks anything that came before it drained.
    is_settled: bool,
    /// Whether keys were moved or destroyed in this turn, and copies may lie on the stack.
    scrub: bool,
    /// What it has counted so far.
    pub counts: Counts,
}

impl<E: Engine, S: Sink> Shard<E, S> {
    /// A shard with no sessions.
    #[must_use]
    pub fn new(
        settings: Settings,
        directory: Arc<dyn Directory>,
        engine: E,
        sink: S,
        random: Random,
    ) -> Self {
        Self {
            streams: Streams::new(settings.streams),
            resets: Resets::new(settings.resets_per_s()),
            settings,
            directory,
            engine,
            sink,
            sessions: Sessions::default(),
            hellos: HelloQueue::default(),
            early: Early::default(),
            records: Records::default(),
            expanded: Expanded::default(),
            acking: Vec::new(),
            askers: Askers::default(),
            acking_there: Vec::new(),
            unsealed: Unsealed::default(),
            commands: Commands::default(),
            random,
            out: Outbox::default(),
            events: VecDeque::new(),
            now_us: 0,
            next_second_us: 0,
            next_idle_scan_us: 0,
            drain_until_us: None,
            hands_over: false,
            is_settled: false,
            scrub: false,
            counts: Counts::default(),
        }
    }

    /// What it was built from.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// How many sessions there are, pending ones included.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// The names of the devices whose sessions these are.
    pub fn devices(&self) -> impl Iterator<Item = Arc<str>> {
        self.sessions.iter().map(|(_, session)| Arc::clone(&session.device.name))
    }

    /// How many sessions wait for their first record.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.sessions.pending()
    }

    /// How many signatures took the slow path so far: more than a few mean that somebody makes them on purpose.
    #[must_use]
    pub fn slow_verifications(&self) -> u64 {
        self.engine.slow_verifications()
    }

    /// What happened that whoever drives the shard is to know; asked after a turn, until `None`.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Asserts what holds of a shard between two calls, for tests.
    ///
    /// # Panics
    /// When it does not hold.
    #[cfg(any(test, feature = "testing"))]
    pub fn check(&self) {
        self.sessions.check();
        self.early.check();
        self.streams.check();
        let mut owed = std::collections::HashMap::new();
        let sessions = self.sessions.iter().filter(|(_, session)| session.unanswered > 0);
        let sessions = sessions.filter_map(|(_, session)| session.stream.map(Path::Stream));
        let paths = self.hellos.paths().chain(self.early.paths()).chain(self.askers.paths());
        for path in paths.chain(sessions) {
            if let Path::Stream(stream) = path {
                *owed.entry(stream).or_default() += 1;
            }
        }
        self.streams.check_owed(&owed);
        for (id, session) in self.sessions.iter() {
            let asked = self.askers.of(id).count();
            assert!(asked <= session.unanswered as usize, "who asks again waits for an answer");
        }
    }

    /// Tells states apart that behave differently, for tests that look at all of them.
    #[cfg(any(test, feature = "testing"))]
    pub fn fingerprint(&self, now: Now, out: &mut impl std::hash::Hasher) {
        self.sessions.fingerprint(now, out);
        self.early.fingerprint(now.mono_us, out);
        self.askers.fingerprint(out);
    }

    /// R91: one reason for each input. R88, R89: its stream is closed, always at the same time after it arrived,
    /// but for a record that came again.
    fn discard(&mut self, arrived_us: u64, path: Path, reason: DropReason) {
        self.counts.drops[reason as usize] += 1;
        if let Path::Stream(stream) = path
            && reason != DropReason::Replay
        {
            self.streams.fail(arrived_us, stream);
        }
    }

    fn handle(&mut self, now: Now, path: Path, bytes: &[u8]) {
        self.now_us = now.mono_us;
        let Settings { index, shards, .. } = self.settings;
        let foreign = match path {
            Path::Datagram(_) => false,
            Path::Stream(stream) => {
                if !self.streams.arrived(now.mono_us, stream) {
                    self.counts.drops[DropReason::StreamFailed as usize] += 1;
                    return;
                }
                // R10: a stream may bring what another shard owns, and knows, though this one does not.
                shard_of(bytes, shards).is_some_and(|owner| owner != index)
            }
        };
        let handled = match Kind::of(bytes) {
            Ok(Kind::Hello | Kind::Up) if foreign => Err(DropReason::Slot),
            Ok(Kind::Hello) if self.drain_until_us.is_some() => Err(DropReason::HelloQueueFull),
            Ok(Kind::Hello) => self.handle_hello(now, path, bytes),
            // A stream ends with this process: whoever takes the session over hears it when it comes again.
            Ok(Kind::Up) if self.hands_over && matches!(path, Path::Stream(_)) => {
                Err(DropReason::UnknownSessionQuiet)
            }
            Ok(Kind::Up) => self.queue_record(path, bytes),
            Ok(_) => Err(DropReason::Kind),
            Err(reason) => Err(reason),
        };
        if let Err(reason) = handled {
            self.discard(now.mono_us, path, reason);
        }
    }

    /// Ends a session and destroys its keys (R81).
    fn end(&mut self, id: SessionId, gone: Gone) {
        let confirmed = self.sessions.find(id).filter(|session| session.pending.is_none());
        let confirmed = confirmed.map(|session| (Arc::clone(&session.device), session.created_us));
        let ended = self.sessions.end(id);
        self.leave(ended);
        if let Some((device, created_us)) = confirmed {
            self.tell_offline(&device, gone, self.now_us.saturating_sub(created_us));
        }
    }

    /// Does what a session that has ended leaves to be done.
    fn leave(&mut self, Ended { stream, unanswered }: Ended) {
        if let Some(stream) = stream {
            self.streams.leave(self.now_us, stream);
            (unanswered > 0).then(|| self.streams.settle(stream));
        }
        self.scrub = true;
    }

    /// One of a session's readings or results has its answer, or gets none.
    fn answered(&mut self, id: SessionId) {
        let Some(session) = self.sessions.find_mut(id).filter(|one| one.unanswered > 0) else {
            return;
        };
        session.unanswered -= 1;
        if session.unanswered == 0 {
            session.stream.into_iter().for_each(|stream| self.streams.settle(stream));
        }
    }

    /// Ends the sessions that lack nothing, and after a while all of them.
    fn drain(&mut self, now: Now) {
        let Some(until_us) = self.drain_until_us else { return };
        // This turn has answered a batch of them. The others' devices send them again, to whoever comes next.
        for origin in self.hellos.give_up() {
            self.settle_at(origin.path);
            self.discard(origin.arrived_us, origin.path, DropReason::HelloQueueFull);
        }
        let late = now.mono_us >= until_us;
        if self.hands_over {
            return self.settle_all(late);
        }
        for id in self.sessions.ids() {
            if late || self.sessions.find(id).is_some_and(|session| session.unanswered == 0) {
                self.close_session(id, Gone::Stopped);
            }
        }
    }

    /// What is done once a second: sessions end whose time is over.
    fn each_second(&mut self, now: Now) {
        if now.mono_us < self.next_second_us {
            return;
        }
        self.next_second_us = now.mono_us + 1_000_000;
        self.resets.renew();
        let Settings { idle_us, pending_us, lifetime_s, .. } = self.settings;
        let mut over = self.sessions.pending_for(now, pending_us);
        // The others may be a million, and have hours: they are looked through less often.
        if now.mono_us >= self.next_idle_scan_us {
            self.next_idle_scan_us = now.mono_us + (idle_us / 60).clamp(1_000_000, 60_000_000);
            let lifetime_us = u64::from(lifetime_s) * 1_000_000;
            over.extend(self.sessions.idle_for(now, idle_us, lifetime_us));
            self.sessions.forget_previous(now, idle_us);
        }
        for id in over {
            let session = self.sessions.find(id);
            let silent = session
                .is_some_and(|one| now.mono_us.saturating_sub(one.last_record_us) >= idle_us);
            self.end(id, if silent { Gone::Silent } else { Gone::Lifetime });
        }
    }

    /// Storage has answered for a reading.
    fn settle(&mut self, token: (SessionId, u32), durable: bool) {
        // R101: the stored reading itself says what becomes true of its device.
        if let Some(commit) = self.early.settle(token, durable)
            && durable
            && in_force(Rule::MarkMoves)
        {
            commit.device.committed(commit.mark, commit.id);
            self.directory.save_later(&commit.device);
        }
        let (id, sequence) = token;
        for asker in self.askers.take(token) {
            self.settle_at(asker.path);
            durable.then(|| self.acking_there.push((token, asker)));
        }
        if durable {
            self.commands.recorded(token);
        }
        if sequence != EARLY_SEQUENCE {
            self.answered(id);
        }
        if sequence != EARLY_SEQUENCE && self.sessions.settle(id, sequence, durable) {
            self.acking.push(token);
        }
    }

    /// Acknowledges what has become durable, session by session, and then where it came again meanwhile.
    fn prepare_acks(&mut self) {
        self.acking.sort_unstable();
        self.acking.dedup();
        for durable in self.acking.chunk_by(|one, next| one.0 == next.0) {
            let id = durable[0].0;
            if let Some(session) = self.sessions.find_mut(id) {
                let numbers = durable.iter().map(|(_, sequence)| *sequence);
                let nothing_waits = self.commands.nothing_waits(&session.device.credential.id);
                session.prepare_acks(id, numbers, nothing_waits, &mut self.unsealed);
            }
        }
        self.acking.clear();
        for (token, mut asker) in std::mem::take(&mut self.acking_there) {
            if self.sessions.find(token.0).is_some_and(|session| session.path != asker.path) {
                self.ack_there(token, &mut asker);
            }
        }
    }

    fn close_session(&mut self, id: SessionId, gone: Gone) {
        if let Some(session) = self.sessions.find_mut(id) {
            let mut close = Unsealed::default();
            session.prepare(id, Down::Close, &mut close);
            close.seal(self.settings.gcm, &mut self.expanded, &self.sessions, |path, message| {
                self.out.push_last(path, message);
            });
        }
        self.end(id, gone);
    }
}

impl<E: Engine, S: Sink> Handler for Shard<E, S> {
    type Mail = Mail;

    fn handle_datagram(&mut self, now: Now, from: impl Into<Peer>, bytes: &[u8]) {
        self.handle(now, Path::Datagram(from.into()), bytes);
    }

    fn handle_message(&mut self, now: Now, stream: StreamId, bytes: &[u8]) {
        self.handle(now, Path::Stream(stream), bytes);
    }

    fn handle_stream_opened(
        &mut self,
        _: Now,
        stream: StreamId,
        peer: SocketAddr,
        since_us: u64,
    ) -> bool {
        self.streams.opened(stream, peer, since_us)
    }

    fn handle_stream_ended(&mut self, now: Now, stream: StreamId) {
        self.streams.ended(now.mono_us, stream);
    }

    fn handle_stream_closed(&mut self, _: Now, stream: StreamId) {
        self.streams.closed(stream);
    }

    fn handle_mail(&mut self, now: Now, mail: Mail) {
        match mail {
            // R74: only what is durable is acknowledged.
            Mail::Durable(readings) => {
                readings.into_iter().for_each(|token| self.settle(token, true));
            }
            Mail::NotStored(readings) => {
                readings.into_iter().for_each(|token| self.settle(token, false));
            }
            Mail::Revoked(device) => {
                self.sessions.of(&device).for_each(|id| self.close_session(id, Gone::Revoked));
                self.sessions.forget(&device);
                self.commands.forget(&device);
            }
            Mail::Command(command) => self.handle_command(now, command),
            Mail::WithdrawCommand(device, token) => self.withdraw_command(&device, token),
            Mail::ReplaceCommand { over, by } => self.replace_command(now, over, by),
            Mail::Look(token, devices) => self.look(now, token, &devices),
            Mail::CommandsBehind(behind) => self.commands.set_behind(behind),
            Mail::Renew(renewal) => self.settings.renew(*renewal),
            Mail::Drain => {
                self.drain_until_us.get_or_insert(now.mono_us + DRAIN_US);
            }
            Mail::HandOver => {
                self.hands_over |= self.drain_until_us.is_none();
                self.drain_until_us.get_or_insert(now.mono_us + DRAIN_US);
            }
        }
    }

    fn handle_turn(&mut self, now: Now) {
        self.now_us = now.mono_us;
        while let Some(mail) = self.sink.poll_mail() {
            self.handle_mail(now, mail);
        }
        self.open_records(now);
        self.answer_hellos(now);
        self.sink.flush();
        self.prepare_acks();
        self.send_commands(now);
        self.unsealed.seal(
            self.settings.gcm,
            &mut self.expanded,
            &self.sessions,
            |path, message| {
                self.out.push(path, message);
            },
        );
        self.drain(now);
        self.counts.unsent = self.out.unsent;
        self.each_second(now);
        if std::mem::take(&mut self.scrub) {
            scrub_stack();
        }
    }

    fn poll_transmit(&mut self, out: &mut [u8]) -> Option<Transmit> {
        self.out.pop(out)
    }

    fn poll_close(&mut self) -> Option<(StreamId, Close)> {
        self.streams.poll(self.now_us)
    }

    fn poll_timeout(&self) -> Option<u64> {
        if !self.hellos.is_empty() || !self.acking.is_empty() {
            return Some(0);
        }
        let close = self.streams.next_us();
        let (commands, early) = (self.commands.next_us(), self.early.next_us());
        let times = [Some(self.next_second_us), commands, close, early, self.drain_until_us];
        times.into_iter().flatten().min()
    }

    fn takes_input(&self) -> bool {
        !self.hands_over
    }

    fn is_finished(&self) -> bool {
        let done = self.sessions.len() == 0 || self.hands_over && self.is_settled;
        // A reading inside a HELLO is on its way to the disk, too.
        self.drain_until_us.is_some() && done && self.early.waiting() == 0 && self.out.is_empty()
    }
}
