//! A shard without I/O: the sessions of the devices whose slots it owns, the hellos of a turn,
//! timers. Bytes and times come in by `handle_*`, messages and readings go out by `poll_*`; the
//! transport, a simulator and a fuzzer drive the same code.
//!
//! It owns its sessions alone: no lock is taken on the path of a record. What it shares with other
//! threads is the registry's view and its mail.

pub mod engine;
mod records;
mod session;

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use duet_aead::Gcm;
use duet_protocol::ec::{SecretScalar, Signature};
use duet_protocol::identity::{DeviceId, Gateway};
use duet_protocol::message::{Down, PAYLOAD_MAX, Up};
use duet_protocol::profile::Transport;
use duet_protocol::reason::DropReason;
use duet_protocol::record::scrub_stack;
use duet_protocol::replay::Place;
use duet_protocol::responder::{Claim, Opened, Proven, Responding, Signing};
use duet_protocol::schedule::{self, Grant};
use duet_protocol::wire::{Hello, Kind, Reset, Retry, SessionId, TAG, UP_HEADER, UpHeader};
use subtle::ConstantTimeEq as _;

use tokio::sync::oneshot;

use self::engine::Engine;
use self::records::Records;
use self::session::{Pending, Session};
use crate::admin::CommandError;
use crate::registry::{Device, View};
use crate::transport::{Handler, Now, Path, StreamId, Transmit};

/// The highest `fresh` of a device that the gateway has not met (R22).
const FIRST_FRESH_MAX: u64 = 1 << 48;
/// The furthest that `fresh` may jump without a challenge (R22).
const FRESH_JUMP_MAX: u64 = 1 << 40;
/// How long a challenge may be answered, µs.
const CHALLENGE_US: u64 = 30_000_000;
/// The most hellos that wait for one turn's batch.
const HELLOS_MAX: usize = 512;
/// What a record costs beside its text.
const OVERHEAD: usize = UP_HEADER + TAG;
/// The most hellos that are answered in one turn: larger batches gain little and keep records
/// waiting.
pub const BATCH_MAX: usize = 64;
/// The most commands that wait for their results.
const COMMANDS_MAX: usize = 4_096;
/// How long a cookie's epoch is, µs; the epoch before is valid too.
const COOKIE_EPOCH_US: u64 = 30_000_000;
/// The most RESETs a second.
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
    /// The gateway's keys: one, or two in rotation.
    pub keys: Vec<GatewayKey>,
    /// This node's secret for reset tokens and challenges. Shards of one node share it.
    pub node_key: [u8; 32],
    /// Which shard this is.
    pub index: usize,
    /// How many shards there are.
    pub shards: usize,
    /// A session ends after this silence, µs.
    pub idle_us: u64,
    /// An unconfirmed session ends after this time, µs.
    pub pending_us: u64,
    /// How long a session may live, seconds.
    pub lifetime_s: u32,
    /// The most sessions, pending ones included.
    pub sessions_max: usize,
    /// The most sessions that wait for their first record.
    pub pending_max: usize,
    /// From how many waiting hellos on an address must prove itself first (RETRY).
    pub retry_from: usize,
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

/// A command on its way to a connected device.
pub struct Command {
    /// To whom.
    pub device: DeviceId,
    /// What to do, at most [`PAYLOAD_MAX`](duet_protocol::message::PAYLOAD_MAX) bytes.
    pub payload: Vec<u8>,
    /// How long to wait for the result.
    pub timeout: Duration,
    /// Who waits for the output.
    pub answer: oneshot::Sender<Result<Vec<u8>, CommandError>>,
}

impl Command {
    /// Tells whoever waits that nothing comes.
    pub fn refuse(self, error: CommandError) {
        // Nobody may be waiting any more, which is fine.
        let _ = self.answer.send(Err(error));
    }
}

/// A command that is out.
struct Sent {
    command: Command,
    session: SessionId,
    /// Where it went last.
    path: Path,
    until_us: u64,
    resend_us: u64,
}

/// A reading that a device sent, decrypted and authentic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The device's registered name.
    pub device: Arc<str>,
    /// Its session.
    pub session: SessionId,
    /// The record's number in the session.
    pub sequence: u32,
    /// Which of the device's sources.
    pub channel: u16,
    /// When it was measured, milliseconds since 1970: arrival less the age that the device gave.
    pub time_ms: u64,
    /// The measurement.
    pub payload: Vec<u8>,
    /// Whether the device waits until it is durable.
    pub confirm: bool,
}

/// Takes readings towards durable storage.
pub trait Sink {
    /// Takes the readings of a turn; when they are durable, [`Mail::Durable`] must follow with the
    /// readings that want confirmation. What is not taken is never acknowledged.
    fn submit(&mut self, readings: Vec<Reading>);
}

/// What other threads tell a shard.
pub enum Mail {
    /// These readings are durable.
    Durable(Vec<(SessionId, u32)>),
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
    challenge: Option<Challenge>,
}

/// What a shard counts.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Discarded inputs, at the place of their reason in [`DropReason::ALL`].
    pub drops: [u64; DropReason::ALL.len()],
    /// ACCEPTs made (not repeated ones).
    pub accepts: u64,
    /// Sessions confirmed by their first valid record.
    pub confirmed: u64,
    /// Readings taken.
    pub readings: u64,
    /// RESETs sent.
    pub resets: u64,
}

/// A shard.
pub struct Shard<E, S> {
    settings: Settings,
    view: Arc<View>,
    engine: E,
    sink: S,
    sessions: HashMap<SessionId, Session>,
    contacts: HashMap<DeviceId, Contact>,
    /// Pending sessions by their HELLO's digest and path kind, for repeated HELLOs.
    cached: HashMap<[u8; 32], SessionId>,
    hellos: VecDeque<(Path, Hello)>,
    records: Records,
    readings: Vec<Reading>,
    pending: usize,
    acking: Vec<SessionId>,
    commands: HashMap<u32, Sent>,
    next_command: u32,
    out: VecDeque<(Path, Vec<u8>)>,
    closing: VecDeque<StreamId>,
    next_sweep_us: u64,
    resets_left: u32,
    draining: bool,
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
            sessions: HashMap::new(),
            contacts: HashMap::new(),
            cached: HashMap::new(),
            hellos: VecDeque::new(),
            records: Records::default(),
            readings: Vec::new(),
            pending: 0,
            acking: Vec::new(),
            commands: HashMap::new(),
            next_command: u32::from_be_bytes(random()),
            out: VecDeque::new(),
            closing: VecDeque::new(),
            next_sweep_us: 0,
            resets_left: RESETS_PER_S,
            draining: false,
            counts: Counts::default(),
        }
    }

    /// How many sessions there are, pending ones included.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    fn discard(&mut self, path: Path, reason: DropReason) {
        self.counts.drops[reason as usize] += 1;
        if let Path::Stream(stream) = path {
            self.closing.push_back(stream);
        }
    }

    fn handle(&mut self, now: Now, path: Path, bytes: &[u8]) {
        let handled = match Kind::of(bytes) {
            Ok(Kind::Hello) if self.draining => Err(DropReason::HelloQueueFull),
            Ok(Kind::Hello) => self.handle_hello(now, path, bytes),
            Ok(Kind::Up) => self.queue_record(path, bytes),
            Ok(_) => Err(DropReason::Kind),
            Err(reason) => Err(reason),
        };
        if let Err(reason) = handled {
            self.discard(path, reason);
        }
    }

    fn handle_hello(&mut self, now: Now, path: Path, bytes: &[u8]) -> Result<(), DropReason> {
        let transport = match path {
            Path::Datagram(_) => Transport::Datagram,
            Path::Stream(_) => Transport::Stream,
        };
        let hello = Hello::decode(bytes, transport)?;
        if let Some(session) = self.cached.get(&hello.digest) {
            if let Some(pending) = self.sessions.get(session).and_then(|s| s.pending.as_ref()) {
                self.out.push_back((path, pending.accept.as_slice().to_vec()));
            }
            return Ok(());
        }
        if let Path::Datagram(from) = path
            && self.hellos.len() >= self.settings.retry_from
        {
            self.check_address(now, from, &hello)?;
        }
        if self.hellos.len() >= HELLOS_MAX {
            return Err(DropReason::HelloQueueFull);
        }
        self.hellos.push_back((path, hello));
        Ok(())
    }

    /// Under load an address proves that it receives what is sent to it, before it costs any
    /// elliptic-curve work; nothing is kept of it meanwhile.
    fn check_address(
        &mut self,
        now: Now,
        from: SocketAddr,
        hello: &Hello,
    ) -> Result<(), DropReason> {
        let mut address = [0; 18];
        let ip = match from.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        address[..16].copy_from_slice(&ip.octets());
        address[16..].copy_from_slice(&from.port().to_be_bytes());
        #[expect(clippy::cast_possible_truncation, reason = "epochs may wrap")]
        let epoch = (now.mono_us / COOKIE_EPOCH_US) as u32;
        let key = &self.settings.node_key;
        let cookie = |epoch| schedule::cookie(key, epoch, &address, &hello.digest);
        if let Some(given) = hello.cookie() {
            let current = given.ct_eq(&cookie(epoch));
            if (current | given.ct_eq(&cookie(epoch.wrapping_sub(1)))).into() {
                return Ok(());
            }
        }
        let mut echo = [0; 8];
        echo.copy_from_slice(&hello.digest[..8]);
        // What waits now is answered in about this time: 20 µs each.
        let wait_10ms = u16::try_from(self.hellos.len() / 500).unwrap_or(u16::MAX);
        let retry = Retry { echo, wait_10ms, cookie: cookie(epoch) };
        self.out.push_back((Path::Datagram(from), retry.encode().to_vec()));
        let tried = hello.cookie().is_some();
        Err(if tried { DropReason::Cookie } else { DropReason::Unvalidated })
    }

    /// Takes a record for this turn's batch.
    fn queue_record(&mut self, path: Path, bytes: &[u8]) -> Result<(), DropReason> {
        let header = UpHeader::decode(bytes)?;
        let Some(session) = self.sessions.get(&header.session) else {
            return Err(self.reset(path, header.session, bytes));
        };
        if session.window.place(header.sequence) == Place::TooOld {
            return Err(DropReason::Replay);
        }
        self.records.push(path, header, bytes);
        Ok(())
    }

    /// Opens the records of the turn as one batch, then acts on each in order of arrival.
    fn open_records(&mut self, now: Now) {
        if self.records.is_empty() {
            return;
        }
        let mut records = std::mem::take(&mut self.records);
        let sessions = &self.sessions;
        records.open(self.settings.gcm, |id| Some(&sessions.get(&id)?.up));
        for (path, header, opened) in records.iter() {
            let handled = match opened {
                Some(text) => self.handle_record(now, path, header, text),
                None => Err(DropReason::RecordOpen),
            };
            if let Err(reason) = handled {
                self.discard(path, reason);
            }
        }
        records.clear();
        self.records = records;
    }

    fn handle_record(
        &mut self,
        now: Now,
        path: Path,
        header: UpHeader,
        text: &[u8],
    ) -> Result<(), DropReason> {
        let id = header.session;
        // A record before this one in the batch may have ended the session, or been this one.
        let session = self.sessions.get_mut(&id).ok_or(DropReason::UnknownSessionQuiet)?;
        let up = Up::decode(text);
        match session.window.place(header.sequence) {
            Place::Newest => session.arrive(path, text.len() + OVERHEAD),
            Place::Late => {}
            Place::TooOld => return Err(DropReason::Replay),
            Place::Repeated => {
                // Its acknowledgement may have been lost: it is given again, the reading is not.
                let durable = session.stored.place(header.sequence) == Place::Repeated;
                if durable && let Ok(Up::Reading { confirm: true, .. }) = up {
                    session.acks.push(header.sequence);
                    self.acking.push(id);
                }
                return Err(DropReason::Replay);
            }
        }
        session.window.take(header.sequence);
        session.heard_us = now.mono_us;
        self.confirm(id);
        let Some(session) = self.sessions.get_mut(&id) else { return Err(DropReason::Proof) };
        match up? {
            Up::Reading { confirm, channel, age_ms, payload } => {
                self.counts.readings += 1;
                self.readings.push(Reading {
                    device: Arc::clone(&session.device.name),
                    session: id,
                    sequence: header.sequence,
                    channel,
                    time_ms: now.unix_ms.saturating_sub(age_ms.unwrap_or(0).into()),
                    payload: payload.to_vec(),
                    confirm,
                });
            }
            Up::Ping => {
                let pong = session.seal(self.settings.gcm, id, Down::Pong);
                self.out.extend(pong.map(|pong| (session.path, pong)));
            }
            Up::Result { command, status, payload } => {
                if self.commands.get(&command).is_some_and(|sent| sent.session == id)
                    && let Some(sent) = self.commands.remove(&command)
                {
                    session.validate(sent.path);
                    let result = match status {
                        0 => Ok(payload.to_vec()),
                        status => Err(CommandError::Reported(status)),
                    };
                    // Nobody may be waiting any more, which is fine.
                    let _ = sent.command.answer.send(result);
                }
            }
            Up::Close => self.end(id),
        }
        Ok(())
    }

    fn reset(&mut self, path: Path, id: SessionId, record: &[u8]) -> DropReason {
        if self.resets_left == 0 {
            return DropReason::UnknownSessionQuiet;
        }
        self.resets_left -= 1;
        self.counts.resets += 1;
        let token = schedule::reset_token(&self.settings.node_key, id);
        let reset = Reset { session: id, mac: schedule::reset_mac(&token, record) };
        self.out.push_back((path, reset.encode().to_vec()));
        DropReason::UnknownSession
    }

    /// The first valid record of a session: only now does the device's mark move, and only now
    /// does the older session end (R21, R25).
    fn confirm(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let Some(pending) = session.pending.take() else { return };
        self.pending -= 1;
        // ACCEPT was sent where this record, which needs it, comes from.
        session.validate(pending.path);
        self.cached.remove(&pending.hello);
        let device = Arc::clone(&session.device);
        if device.is_revoked() {
            self.end(id);
            return;
        }
        self.counts.confirmed += 1;
        let mark = device.mark();
        let reach = if mark == 0 { FIRST_FRESH_MAX } else { mark.saturating_add(FRESH_JUMP_MAX) };
        self.view.raise_mark(&device, pending.fresh.min(reach));
        let contact = self.contacts.entry(device.credential.id).or_default();
        contact.pending = None;
        if pending.challenged {
            contact.challenge = None;
        }
        if let Some(old) = contact.live.replace(id) {
            self.end(old);
        }
    }

    /// Ends a session and destroys its keys.
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
        drop(session);
        scrub_stack();
    }

    fn handle_command(&mut self, now: Now, command: Command) {
        if command.payload.len() > PAYLOAD_MAX {
            return command.refuse(CommandError::TooLong);
        }
        let live = self.contacts.get(&command.device).and_then(|contact| contact.live);
        let live = live.and_then(|id| Some((id, self.sessions.get(&id)?.path)));
        let Some((session, path)) = live else {
            return command.refuse(CommandError::NotConnected);
        };
        if self.commands.len() >= COMMANDS_MAX {
            return command.refuse(CommandError::Busy);
        }
        let number = self.next_command;
        self.next_command = number.wrapping_add(1);
        let timeout = u64::try_from(command.timeout.as_micros()).unwrap_or(u64::MAX);
        let until_us = now.mono_us.saturating_add(timeout);
        let sent = Sent { command, session, path, until_us, resend_us: now.mono_us };
        self.commands.insert(number, sent);
    }

    /// Sends what is due, and again each second until its result or its time is there.
    fn send_commands(&mut self, now: Now) {
        let over: Vec<u32> = self
            .commands
            .iter()
            .filter(|(_, sent)| sent.until_us <= now.mono_us)
            .map(|(number, _)| *number)
            .collect();
        for number in over {
            if let Some(sent) = self.commands.remove(&number) {
                sent.command.refuse(CommandError::TimedOut);
            }
        }
        for (number, sent) in &mut self.commands {
            if sent.resend_us > now.mono_us {
                continue;
            }
            sent.resend_us = now.mono_us + 1_000_000;
            if let Some(session) = self.sessions.get_mut(&sent.session) {
                sent.path = session.path;
                let down = Down::Command { command: *number, payload: &sent.command.payload };
                let message = session.seal(self.settings.gcm, sent.session, down);
                self.out.extend(message.map(|message| (session.path, message)));
            }
        }
    }

    fn publish(&self) {
        let pending = self.pending;
        let gauges = &self.settings.gauges;
        gauges.pending.store(pending as u64, Ordering::Relaxed);
        gauges.sessions.store((self.sessions.len() - pending) as u64, Ordering::Relaxed);
        let shard = self.settings.index.to_string();
        for (reason, count) in DropReason::ALL.iter().zip(self.counts.drops) {
            if count > 0 {
                let labels = [("reason", reason.label().to_owned()), ("shard", shard.clone())];
                metrics::counter!("duet_drops_total", &labels).absolute(count);
            }
        }
        let Counts { accepts, confirmed, readings, resets, .. } = self.counts;
        metrics::counter!("duet_accepts_total", "shard" => shard.clone()).absolute(accepts);
        metrics::counter!("duet_sessions_confirmed_total", "shard" => shard.clone())
            .absolute(confirmed);
        metrics::counter!("duet_readings_total", "shard" => shard.clone()).absolute(readings);
        metrics::counter!("duet_resets_total", "shard" => shard).absolute(resets);
    }

    /// Answers the oldest hellos: decapsulate, open, look up, verify, agree, sign, each as one
    /// batch. What is left over has its turn after the records that came meanwhile.
    fn answer_hellos(&mut self, now: Now) {
        if self.hellos.is_empty() {
            return;
        }
        let began = Instant::now();
        let batch = self.hellos.len().min(BATCH_MAX);
        let hellos: Vec<_> = self.hellos.drain(..batch).collect();
        let claims = self.open_hellos(hellos);
        let proven = self.prove(now, claims);
        let signing = self.agree(proven);
        self.accept(now, signing);
        scrub_stack();
        #[expect(clippy::cast_precision_loss, reason = "a batch is small")]
        metrics::histogram!("duet_hello_batch").record(batch as f64);
        metrics::histogram!("duet_hello_batch_seconds").record(began.elapsed().as_secs_f64());
    }

    /// Decapsulates and opens, and looks up who each one claims to be.
    fn open_hellos(&mut self, hellos: Vec<(Path, Hello)>) -> Vec<Claimed<E::Kept>> {
        let mut claims = Vec::with_capacity(hellos.len());
        let mut by_key: Vec<Vec<(Path, Hello)>> =
            self.settings.keys.iter().map(|_| Vec::new()).collect();
        for (path, hello) in hellos {
            let id = hello.gateway_key_id();
            match self.settings.keys.iter().position(|key| key.gateway.key_id == id) {
                Some(key) => by_key[key].push((path, hello)),
                None => self.discard(path, DropReason::GatewayKey),
            }
        }
        for (key, hellos) in by_key.into_iter().enumerate().filter(|(_, hellos)| !hellos.is_empty())
        {
            let GatewayKey { gateway, secret } = &self.settings.keys[key];
            let gateway = *gateway;
            let xs: Vec<_> = hellos.iter().map(|(_, hello)| *hello.ephemeral_x()).collect();
            let answers = self.engine.decapsulate(secret, &xs);
            for ((path, hello), answer) in hellos.into_iter().zip(answers) {
                let opened = answer.ok_or(DropReason::Point).and_then(|(agreed, kept)| {
                    let opened = Opened::new(hello, &gateway, agreed.point, &agreed.shared)?;
                    Ok((opened, kept))
                });
                match opened {
                    Ok((opened, kept)) => {
                        let device = self.view.lookup(&opened.id());
                        let credential = device.as_ref().map(|device| &device.credential);
                        let claim = opened.claim(&gateway, credential);
                        claims.push(Claimed { path, claim, device, key, kept });
                    }
                    Err(reason) => self.discard(path, reason),
                }
            }
        }
        claims
    }

    /// Verifies every proof, and admits who may enter.
    fn prove(&mut self, now: Now, claims: Vec<Claimed<E::Kept>>) -> Vec<Admitted<E::Kept>> {
        let tasks: Vec<_> = claims.iter().filter_map(|one| one.claim.verify_task()).collect();
        let mut verdicts = self.engine.verify(&tasks).into_iter();
        let mut admitted = Vec::with_capacity(claims.len());
        let mut met = Vec::new();
        for Claimed { path, claim, device, key, kept } in claims {
            let signer = claim.verify_task().map(|task| task.key);
            let verdict = signer.is_none() || verdicts.next().unwrap_or(false);
            match claim.verified(verdict).and_then(|proven| self.admit(now, path, proven, device)) {
                Ok(Some((proven, device))) => {
                    met.extend(signer);
                    if let Some((responding, about)) = self.begin(proven) {
                        admitted.push(Admitted { path, responding, about, device, key, kept });
                    }
                }
                Ok(None) => {}
                Err(reason) => self.discard(path, reason),
            }
        }
        self.engine.remember(&met);
        admitted
    }

    fn agree(&mut self, admitted: Vec<Admitted<E::Kept>>) -> Vec<Signed> {
        let tasks: Vec<_> = admitted
            .iter()
            .filter_map(|one| {
                let kept = one.responding.peer_is_hello().then_some(&one.kept);
                Some((one.responding.task()?, kept))
            })
            .collect();
        let mut answers = self.engine.encapsulate(&tasks).into_iter();
        let mut signing: Vec<Signed> = admitted
            .into_iter()
            .filter_map(|Admitted { path, responding, about, device, key, .. }| {
                let answer = match responding.task() {
                    Some(_) => Some(answers.next().flatten()?),
                    None => None,
                };
                let signing = responding.agreed(answer);
                Some(Signed { path, signing, signature: [0; 64], about, device, key })
            })
            .collect();
        for (key, GatewayKey { secret, .. }) in self.settings.keys.iter().enumerate() {
            let (places, digests): (Vec<_>, Vec<_>) = signing
                .iter()
                .enumerate()
                .filter(|(_, one)| one.key == key)
                .filter_map(|(place, one)| Some((place, one.signing.digest()?)))
                .unzip();
            if digests.is_empty() {
                continue;
            }
            let signatures = self.engine.sign(secret, &digests);
            for (place, signature) in places.into_iter().zip(signatures) {
                // A zero r or s has probability 2⁻²⁵⁶; the device would ask again.
                signing[place].signature = signature.unwrap_or([0; 64]);
            }
        }
        signing
    }

    /// Makes the sessions and sends their ACCEPTs.
    fn accept(&mut self, now: Now, signing: Vec<Signed>) {
        for Signed { path, signing, signature, about, device, .. } in signing {
            let (accept, keys) = signing.signed(&signature);
            self.out.push_back((path, accept.as_slice().to_vec()));
            self.counts.accepts += 1;
            let About { session: id, hello, fresh, challenged } = about;
            // Two hellos of one device in one batch: the later one stands.
            let contact = self.contacts.entry(device.credential.id).or_default();
            if let Some(old) = contact.pending.take() {
                self.end(old);
            }
            self.contacts.entry(device.credential.id).or_default().pending = Some(id);
            self.cached.insert(hello, id);
            self.pending += 1;
            let pending = Pending { hello, accept, fresh, challenged, path };
            let session = Session::new(self.settings.gcm, device, &keys, pending, now.mono_us);
            self.sessions.insert(id, session);
        }
    }

    /// Profile, validity and freshness of a proven HELLO. `None` when it was met with a challenge.
    fn admit(
        &mut self,
        now: Now,
        path: Path,
        proven: Proven,
        device: Option<Arc<Device>>,
    ) -> Result<Option<(Proven, Arc<Device>)>, DropReason> {
        let device = device.ok_or(DropReason::Proof)?;
        let now_s = i64::try_from(now.unix_ms / 1_000).unwrap_or(i64::MAX);
        if device.is_revoked() || device.validity.is_some_and(|v| !v.contains(now_s)) {
            return Err(DropReason::Proof);
        }
        if !device.sources.contains(proven.hello().offer.profile.source) {
            return Err(DropReason::NotAllowed);
        }
        let known = self.contacts.entry(device.credential.id).or_default();
        known.challenge.take_if(|challenge| challenge.until_us <= now.mono_us);
        if let Some(answer) = proven.challenge() {
            let expected = known.challenge.as_ref().ok_or(DropReason::Challenge)?;
            if !bool::from(expected.value.ct_eq(answer)) {
                return Err(DropReason::Challenge);
            }
        } else {
            let (fresh, mark) = (proven.fresh(), device.mark());
            let reach =
                if mark == 0 { FIRST_FRESH_MAX } else { mark.saturating_add(FRESH_JUMP_MAX) };
            if fresh <= mark || fresh > reach {
                let message = challenge(now, known, &self.settings.node_key, &proven, mark);
                self.out.push_back((path, message.to_vec()));
                return Ok(None);
            }
            let older = known
                .pending
                .and_then(|id| self.sessions.get(&id)?.pending.as_ref())
                .is_some_and(|pending| pending.fresh >= fresh);
            if older {
                return Err(DropReason::Stale);
            }
        }
        if self.sessions.len() >= self.settings.sessions_max {
            return Err(DropReason::SessionsFull);
        }
        let replaces =
            self.contacts.get(&device.credential.id).is_some_and(|c| c.pending.is_some());
        if self.pending >= self.settings.pending_max && !replaces {
            return Err(DropReason::PendingFull);
        }
        Ok(Some((proven, device)))
    }

    fn begin(&mut self, proven: Proven) -> Option<(Responding, About)> {
        let session = self.vacant_id(proven.hello().slot())?;
        let about = About {
            session,
            hello: proven.hello().digest,
            fresh: proven.fresh(),
            challenged: proven.challenge().is_some(),
        };
        let grant = Grant {
            session,
            lifetime_s: self.settings.lifetime_s,
            reset_token: schedule::reset_token(&self.settings.node_key, session),
        };
        let scalar = SecretScalar::from_wide(&random());
        Some((proven.respond(grant, scalar, random()), about))
    }

    /// A random id, unused here, whose slot this shard owns.
    fn vacant_id(&self, slot: u8) -> Option<SessionId> {
        (0..64).find_map(|_| {
            let [a, b, c] = random();
            let id = SessionId(u32::from_be_bytes([slot, a, b, c]));
            (!self.sessions.contains_key(&id)).then_some(id)
        })
    }

    fn sweep(&mut self, now: Now) {
        if now.mono_us < self.next_sweep_us {
            return;
        }
        self.next_sweep_us = now.mono_us + 1_000_000;
        self.resets_left = RESETS_PER_S;
        let Settings { idle_us, pending_us, lifetime_s, .. } = self.settings;
        let over = |session: &Session| {
            let age = now.mono_us.saturating_sub(session.since_us);
            let silence = now.mono_us.saturating_sub(session.heard_us);
            if session.pending.is_some() {
                age >= pending_us
            } else {
                silence >= idle_us || age >= u64::from(lifetime_s) * 1_000_000
            }
        };
        let ended: Vec<_> =
            self.sessions.iter().filter(|(_, s)| over(s)).map(|(id, _)| *id).collect();
        ended.into_iter().for_each(|id| self.end(id));
        self.publish();
    }

    fn close_session(&mut self, id: SessionId) {
        if let Some(session) = self.sessions.get_mut(&id) {
            let path = session.path;
            if let Some(close) = session.seal(self.settings.gcm, id, Down::Close) {
                self.out.push_back((path, close));
            }
        }
        self.end(id);
    }
}

struct About {
    session: SessionId,
    hello: [u8; 32],
    fresh: u64,
    challenged: bool,
}

struct Claimed<K> {
    path: Path,
    claim: Claim,
    device: Option<Arc<Device>>,
    key: usize,
    kept: K,
}

struct Admitted<K> {
    path: Path,
    responding: Responding,
    about: About,
    device: Arc<Device>,
    key: usize,
    kept: K,
}

struct Signed {
    path: Path,
    signing: Signing,
    signature: Signature,
    about: About,
    device: Arc<Device>,
    key: usize,
}

/// One challenge a device at a time: whatever a stranger plays back, the device can answer it.
fn challenge(
    now: Now,
    contact: &mut Contact,
    node_key: &[u8; 32],
    proven: &Proven,
    mark: u64,
) -> [u8; duet_protocol::wire::CHALLENGE_LEN] {
    let challenge = contact.challenge.get_or_insert_with(|| Challenge {
        value: schedule::challenge(
            node_key,
            proven.id().0,
            proven.fingerprint(),
            &proven.hello().digest,
            now.mono_us,
        ),
        until_us: now.mono_us + CHALLENGE_US,
    });
    proven.challenge_message(&challenge.value, mark, &random())
}

pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // Without randomness no session may be made, and nothing useful can be done.
    assert!(getrandom::fill(&mut bytes).is_ok(), "the kernel has no randomness to give");
    bytes
}

impl<E: Engine, S: Sink> Handler for Shard<E, S> {
    type Mail = Mail;

    fn handle_datagram(&mut self, now: Now, from: SocketAddr, bytes: &[u8]) {
        self.handle(now, Path::Datagram(from), bytes);
    }

    fn handle_message(&mut self, now: Now, stream: StreamId, bytes: &[u8]) {
        self.handle(now, Path::Stream(stream), bytes);
    }

    fn handle_stream_closed(&mut self, _: Now, _: StreamId) {}

    fn handle_mail(&mut self, now: Now, mail: Mail) {
        match mail {
            Mail::Durable(readings) => {
                for (id, sequence) in readings {
                    if let Some(session) = self.sessions.get_mut(&id) {
                        session.stored.take(sequence);
                        session.acks.push(sequence);
                        self.acking.push(id);
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
        self.open_records(now);
        self.answer_hellos(now);
        if !self.readings.is_empty() {
            self.sink.submit(std::mem::take(&mut self.readings));
        }
        for id in std::mem::take(&mut self.acking) {
            if let Some(session) = self.sessions.get_mut(&id) {
                let path = session.path;
                let acks = session.seal_acks(self.settings.gcm, id);
                self.out.extend(acks.into_iter().map(|ack| (path, ack)));
            }
        }
        self.send_commands(now);
        self.sweep(now);
    }

    fn poll_transmit(&mut self, out: &mut [u8]) -> Option<Transmit> {
        let (to, bytes) = self.out.pop_front()?;
        out[..bytes.len()].copy_from_slice(&bytes);
        Some(Transmit { to, len: bytes.len() })
    }

    fn poll_close(&mut self) -> Option<StreamId> {
        self.closing.pop_front()
    }

    fn poll_timeout(&self) -> Option<u64> {
        if !self.hellos.is_empty() {
            return Some(0);
        }
        let command = self.commands.values().map(|sent| sent.resend_us.min(sent.until_us)).min();
        Some(command.map_or(self.next_sweep_us, |due| due.min(self.next_sweep_us)))
    }

    fn is_finished(&self) -> bool {
        self.draining && self.out.is_empty()
    }
}
