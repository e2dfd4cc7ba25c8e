//! A shard without I/O: the sessions of the devices whose slots it owns, the hellos of a turn,
//! timers. Bytes and times come in by `handle_*`, messages and readings go out by `poll_*`; the
//! transport, a simulator and a fuzzer drive the same code.
//!
//! It owns its sessions alone: no lock is taken on the path of a record. What it shares with other
//! threads is the registry's view and its mail.

mod admission;
mod commands;
mod destinations;
pub mod engine;
mod hellos;
mod keys;
mod outbox;
mod random;
mod records;
mod session;
mod streams;
mod traffic;
mod unsealed;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use duet_aead::Gcm;
use duet_protocol::ec::SecretScalar;
use duet_protocol::identity::{DeviceId, Gateway};
use duet_protocol::message::Down;
use duet_protocol::reason::DropReason;
use duet_protocol::record::scrub_stack;
use duet_protocol::wire::{Kind, SessionId};
use rustc_hash::FxHashMap;

use self::admission::Waiting;
pub use self::commands::Command;
use self::commands::Sent;
use self::engine::Engine;
use self::keys::Expanded;
use self::outbox::Outbox;
pub(crate) use self::random::random;
use self::records::Records;
use self::session::Session;
use self::streams::Streams;
use self::unsealed::Unsealed;
use crate::registry::View;
use crate::transport::{Handler, Now, Path, StreamId, Transmit, shard_of};

/// The highest `fresh` of a device that the gateway has not met (R42).
const FIRST_FRESH_MAX: u64 = 1 << 48;
/// The furthest that `fresh` may jump without a challenge (R42).
const FRESH_JUMP_MAX: u64 = 1 << 40;
/// The most hellos that are answered in one turn: larger batches gain little and keep records
/// waiting.
pub const BATCH_MAX: usize = 64;
/// Records that are opened or sealed together; what that needs lies on the stack.
const RECORD_BATCH: usize = 64;
/// The most RESETs a second (R62).
const RESETS_PER_S: u32 = 10_000;

/// One of the gateway's certificates with its private key.
#[derive(Clone)]
pub struct GatewayKey {
    /// What devices know of it.
    pub gateway: Gateway,
    /// Its private key.
    pub secret: SecretScalar,
}

/// What a shard is built from.
pub struct Settings {
    /// The gateway's keys: one, or two in rotation, the retiring one last.
    pub keys: Vec<GatewayKey>,
    /// This node's secret for reset tokens and challenges. Shards of one node share it.
    pub node_key: [u8; 32],
    /// Which shard this is.
    pub index: usize,
    /// How many shards there are.
    pub shards: usize,
    /// A session ends after this silence, µs (R82), or up to a sixtieth of it later.
    pub idle_us: u64,
    /// An unconfirmed session ends after this time, µs (R47).
    pub pending_us: u64,
    /// How long a session may live, seconds.
    pub lifetime_s: u32,
    /// The most sessions, pending ones included.
    pub sessions_max: usize,
    /// The most sessions that wait for their first record.
    pub pending_max: usize,
    /// From how many waiting hellos on an address must prove itself first (RETRY).
    pub retry_from: usize,
    /// What a HELLO costs about, µs: by it a storm is told when to come back.
    pub hello_us: u64,
    /// How records are sealed and opened.
    pub gcm: Gcm,
    /// Where it tells other threads how many sessions it has.
    pub gauges: Arc<Gauges>,
}

/// What a shard tells of itself: it alone writes here.
#[derive(Debug, Default)]
pub struct Gauges {
    /// Confirmed sessions.
    pub sessions: AtomicU64,
    /// Sessions that wait for their first record.
    pub pending: AtomicU64,
}

/// A reading that a device sent, decrypted and authentic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading<'a> {
    /// The device's registered name.
    pub device: &'a str,
    /// Its session.
    pub session: SessionId,
    /// The record's number in the session.
    pub sequence: u32,
    /// Which of the device's sources.
    pub channel: u16,
    /// When it was measured, milliseconds since 1970: arrival less the age that the device gave.
    pub time_ms: u64,
    /// The measurement.
    pub payload: &'a [u8],
    /// Whether the device waits until it is durable.
    pub confirm: bool,
}

/// Takes readings towards durable storage.
pub trait Sink {
    /// Takes a reading; when it is durable and wants confirmation, [`Mail::Durable`] must follow.
    /// What is not taken is never acknowledged.
    fn take(&mut self, reading: &Reading<'_>);

    /// The readings of a turn are complete: none may wait for the next one.
    fn flush(&mut self);
}

/// What other threads tell a shard.
pub enum Mail {
    /// These readings are durable.
    Durable(Vec<(SessionId, u32)>),
    /// These readings were not stored: when they come again, they are taken again.
    Refused(Vec<(SessionId, u32)>),
    /// This device may no longer be connected.
    Revoked(DeviceId),
    /// A connected device is to do something.
    Command(Command),
    /// End every session and finish.
    Drain,
}

struct Challenge {
    value: [u8; 16],
    until_us: u64,
}

/// What a shard knows of a device beside its sessions.
#[derive(Default)]
struct Contact {
    live: Option<SessionId>,
    pending: Option<SessionId>,
    challenge: Option<Box<Challenge>>,
}

/// What a shard counts.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Discarded inputs, at the place of their reason in [`DropReason::ALL`].
    pub drops: [u64; DropReason::ALL.len()],
    /// ACCEPTs made (not repeated ones).
    pub accepts: u64,
    /// Those of them to devices that hold the certificate that is being retired.
    pub accepts_retiring: u64,
    /// Sessions confirmed by their first valid record.
    pub confirmed: u64,
    /// Readings taken.
    pub readings: u64,
    /// RESETs sent.
    pub resets: u64,
    /// Messages that were not sent, since too many waited already.
    pub unsent: u64,
}

/// A shard.
pub struct Shard<E, S> {
    settings: Settings,
    view: Arc<View>,
    engine: E,
    sink: S,
    /// Session ids and streams' numbers are the gateway's own choice: nobody can make them collide.
    sessions: FxHashMap<SessionId, Box<Session>>,
    contacts: HashMap<DeviceId, Contact>,
    /// Pending sessions by their HELLO's digest and path kind, for repeated HELLOs.
    cached: HashMap<[u8; 32], SessionId>,
    hellos: Waiting,
    records: Records,
    expanded: Expanded,
    pending: usize,
    /// Readings that are durable and not yet acknowledged.
    acking: Vec<(SessionId, u32)>,
    /// What this turn has to say, sealed at its end as one batch.
    unsealed: Unsealed,
    commands: HashMap<u32, Sent>,
    next_command: u32,
    out: Outbox,
    streams: Streams,
    /// The time of the last turn.
    turn_us: u64,
    next_sweep_us: u64,
    /// When confirmed sessions are looked through next.
    next_look_us: u64,
    resets_left: u32,
    draining: bool,
    /// Whether keys were moved or destroyed in this turn, and copies may lie on the stack.
    scrub: bool,
    /// What it has counted so far.
    pub counts: Counts,
}

impl<E: Engine, S: Sink> Shard<E, S> {
    /// A shard with no sessions.
    #[must_use]
    pub fn new(settings: Settings, view: Arc<View>, engine: E, sink: S) -> Self {
        Self {
            settings,
            view,
            engine,
            sink,
            sessions: FxHashMap::default(),
            contacts: HashMap::new(),
            cached: HashMap::new(),
            hellos: Waiting::default(),
            records: Records::default(),
            expanded: Expanded::default(),
            pending: 0,
            acking: Vec::new(),
            unsealed: Unsealed::default(),
            commands: HashMap::new(),
            next_command: u32::from_be_bytes(random()),
            out: Outbox::default(),
            streams: Streams::default(),
            turn_us: 0,
            next_sweep_us: 0,
            next_look_us: 0,
            resets_left: RESETS_PER_S,
            draining: false,
            scrub: false,
            counts: Counts::default(),
        }
    }

    /// How many sessions there are, pending ones included.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// R91: one reason for each input. R88, R89: its stream is closed, always after the same time,
    /// but for a record that came again.
    fn discard(&mut self, now: Now, path: Path, reason: DropReason) {
        self.counts.drops[reason as usize] += 1;
        if let Path::Stream(stream) = path
            && reason != DropReason::Replay
        {
            self.streams.fail(now.mono_us, stream);
        }
    }

    fn handle(&mut self, now: Now, path: Path, bytes: &[u8]) {
        if let Path::Stream(stream) = path {
            self.streams.arrived(now.mono_us, stream);
        }
        // R10: a stream may bring what another shard owns, and knows, though this one does not.
        let Settings { index, shards, .. } = self.settings;
        let foreign = shard_of(bytes, shards).is_some_and(|owner| owner != index);
        let handled = match Kind::of(bytes) {
            Ok(Kind::Hello | Kind::Up) if foreign => Err(DropReason::Slot),
            Ok(Kind::Hello) if self.draining => Err(DropReason::HelloQueueFull),
            Ok(Kind::Hello) => self.handle_hello(now, path, bytes),
            Ok(Kind::Up) => self.queue_record(path, bytes),
            Ok(_) => Err(DropReason::Kind),
            Err(reason) => Err(reason),
        };
        if let Err(reason) = handled {
            self.discard(now, path, reason);
        }
    }

    /// Ends a session and destroys its keys (R81).
    fn end(&mut self, id: SessionId) {
        let Some(session) = self.sessions.remove(&id) else { return };
        if let Some(pending) = &session.pending {
            self.pending -= 1;
            self.cached.remove(&pending.hello);
        }
        if let Some(contact) = self.contacts.get_mut(&session.device.credential.id) {
            contact.live = contact.live.filter(|live| *live != id);
            contact.pending = contact.pending.filter(|pending| *pending != id);
        }
        session.stream.into_iter().for_each(|stream| self.streams.leave(stream));
        drop(session);
        self.scrub = true;
    }

    fn publish(&self) {
        let pending = self.pending;
        let gauges = &self.settings.gauges;
        gauges.pending.store(pending as u64, Ordering::Relaxed);
        gauges.sessions.store((self.sessions.len() - pending) as u64, Ordering::Relaxed);
        let shard = self.settings.index.to_string();
        #[expect(clippy::cast_precision_loss, reason = "gauges are floating point")]
        {
            let live = (self.sessions.len() - pending) as f64;
            metrics::gauge!("duet_sessions", "shard" => shard.clone()).set(live);
            metrics::gauge!("duet_sessions_pending", "shard" => shard.clone()).set(pending as f64);
        }
        for (reason, count) in DropReason::ALL.iter().zip(self.counts.drops) {
            if count > 0 {
                let labels = [("reason", reason.label().to_owned()), ("shard", shard.clone())];
                metrics::counter!("duet_drops_total", &labels).absolute(count);
            }
        }
        let Counts { accepts, accepts_retiring, confirmed, readings, resets, unsent, .. } =
            self.counts;
        // Per certificate: an operator retires one when no device uses it any more.
        let accepts = [accepts - accepts_retiring, accepts_retiring];
        for (GatewayKey { gateway, .. }, count) in self.settings.keys.iter().zip(accepts) {
            let labels = [("key_id", gateway.key_id.to_string()), ("shard", shard.clone())];
            metrics::counter!("duet_accepts_total", &labels).absolute(count);
        }
        metrics::counter!("duet_sessions_confirmed_total", "shard" => shard.clone())
            .absolute(confirmed);
        metrics::counter!("duet_readings_total", "shard" => shard.clone()).absolute(readings);
        metrics::counter!("duet_resets_total", "shard" => shard.clone()).absolute(resets);
        metrics::counter!("duet_slow_verifications_total", "shard" => shard.clone())
            .absolute(self.engine.slow_verifications());
        metrics::counter!("duet_unsent_total", "shard" => shard).absolute(unsent);
    }

    fn sweep(&mut self, now: Now) {
        if now.mono_us < self.next_sweep_us {
            return;
        }
        self.next_sweep_us = now.mono_us + 1_000_000;
        self.resets_left = RESETS_PER_S;
        let Settings { idle_us, pending_us, lifetime_s, .. } = self.settings;
        // Every pending session is listed under its HELLO.
        let pending = self.cached.values().filter_map(|id| Some((id, self.sessions.get(id)?)));
        let mut ended: Vec<_> = pending
            .filter(|(_, session)| now.mono_us.saturating_sub(session.since_us) >= pending_us)
            .map(|(id, _)| *id)
            .collect();
        // The others may be a million, and have hours: they are looked through less often.
        if now.mono_us >= self.next_look_us {
            self.next_look_us = now.mono_us + (idle_us / 60).clamp(1_000_000, 60_000_000);
            let over = |session: &Session| {
                let age = now.mono_us.saturating_sub(session.since_us);
                let silence = now.mono_us.saturating_sub(session.heard_us);
                session.pending.is_none()
                    && (silence >= idle_us || age >= u64::from(lifetime_s) * 1_000_000)
            };
            ended.extend(self.sessions.iter().filter(|(_, one)| over(one)).map(|(id, _)| *id));
        }
        ended.into_iter().for_each(|id| self.end(id));
        self.publish();
    }

    /// Acknowledges what has become durable, session by session.
    fn prepare_acks(&mut self) {
        self.acking.sort_unstable();
        self.acking.dedup();
        for durable in self.acking.chunk_by(|one, next| one.0 == next.0) {
            let id = durable[0].0;
            if let Some(session) = self.sessions.get_mut(&id) {
                let numbers = durable.iter().map(|(_, sequence)| *sequence);
                session.prepare_acks(id, numbers, &mut self.unsealed);
            }
        }
        self.acking.clear();
    }

    fn close_session(&mut self, id: SessionId) {
        if let Some(session) = self.sessions.get_mut(&id) {
            let mut close = Unsealed::default();
            session.prepare(id, Down::Close, &mut close);
            close.seal(self.settings.gcm, &mut self.expanded, &self.sessions, |path, message| {
                self.out.push_last(path, message);
            });
        }
        self.end(id);
    }
}

impl<E: Engine, S: Sink> Handler for Shard<E, S> {
    type Mail = Mail;

    fn handle_datagram(&mut self, now: Now, from: SocketAddr, bytes: &[u8]) {
        self.handle(now, Path::Datagram(from), bytes);
    }

    fn handle_message(&mut self, now: Now, stream: StreamId, bytes: &[u8]) {
        self.handle(now, Path::Stream(stream), bytes);
    }

    fn handle_stream_closed(&mut self, _: Now, stream: StreamId) {
        self.streams.closed(stream);
    }

    fn handle_mail(&mut self, now: Now, mail: Mail) {
        match mail {
            Mail::Durable(readings) => {
                // R74: only what is durable is acknowledged.
                for (id, sequence) in readings {
                    if let Some(session) = self.sessions.get_mut(&id) {
                        session.stored.take(sequence);
                        self.acking.push((id, sequence));
                    }
                }
            }
            Mail::Refused(readings) => {
                for (id, sequence) in readings {
                    if let Some(session) = self.sessions.get_mut(&id) {
                        session.window.give_back(sequence);
                    }
                }
            }
            Mail::Revoked(device) => {
                let Some(contact) = self.contacts.remove(&device) else { return };
                contact
                    .live
                    .into_iter()
                    .chain(contact.pending)
                    .for_each(|id| self.close_session(id));
            }
            Mail::Command(command) => self.handle_command(now, command),
            Mail::Drain => {
                self.draining = true;
                let all: Vec<_> = self.sessions.keys().copied().collect();
                all.into_iter().for_each(|id| self.close_session(id));
                self.publish();
            }
        }
    }

    fn handle_turn(&mut self, now: Now) {
        self.turn_us = now.mono_us;
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
        self.counts.unsent = self.out.unsent;
        self.sweep(now);
        if std::mem::take(&mut self.scrub) {
            scrub_stack();
        }
    }

    fn poll_transmit(&mut self, out: &mut [u8]) -> Option<Transmit> {
        self.out.pop(out)
    }

    fn poll_close(&mut self) -> Option<StreamId> {
        self.streams.poll(self.turn_us)
    }

    fn poll_timeout(&self) -> Option<u64> {
        if !self.hellos.is_empty() {
            return Some(0);
        }
        let close = self.streams.next_us();
        let command = self.commands.values().map(|sent| sent.resend_us.min(sent.until_us)).min();
        [Some(self.next_sweep_us), command, close].into_iter().flatten().min()
    }

    fn is_finished(&self) -> bool {
        self.draining && self.out.is_empty()
    }
}
