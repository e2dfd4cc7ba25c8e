//! A device's complete state machine on its caller's clock: handshake with retransmission, RETRY
//! and CHALLENGE, readings until they are acknowledged, commands, RESET, close.
//!
//! Drive it like this: hand in every message with [`Device::handle_message`]; then call
//! [`Device::poll_transmit`] until it returns nothing, and again whenever
//! [`Device::poll_timeout`] is reached. Times are microseconds on any monotonic clock.

use core::mem;

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use subtle::ConstantTimeEq as _;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::{
    ec::{Engine, Software},
    identity::{Gateway, PublicKey},
    initiator::{DeviceKey, Freshness, Identity, Start, Waiting},
    message::{Down, TEXT_MAX, Up},
    profile::{Offer, Profile, Transport},
    reason::DropReason,
    record::{Cipher, scrub_stack},
    replay::{Place, ReplayWindow},
    schedule::{self, Grant},
    wire::{COOKIE, DownHeader, Kind, Reset, SessionId, UpHeader},
};

/// How long before the first retransmission, µs (R83).
pub const RETRANSMIT_US: u64 = 1_000_000;
/// The longest pause between retransmissions, µs.
pub const RETRANSMIT_MAX_US: u64 = 30_000_000;
/// How often the same HELLO is sent before a new one is made.
const HELLO_ATTEMPTS: u8 = 5;
/// How often a record is sent in silence before the session is taken for lost (R84, R85).
const RECORD_ATTEMPTS: u8 = 5;
/// The highest mark of a gateway that a device believes (R59).
const MARK_MAX: u64 = 1 << 62;
/// The longest pause after a RESET, µs: devices of a restarted gateway spread over it (R64).
const RESET_BACKOFF_US: u64 = 500_000;
/// From this sequence number on a device makes a new session, in good time before the last one.
const SEQUENCE_RENEW: u32 = u32::MAX - (1 << 20);
/// How many records back a RESET may refer to (R63).
const RECENT: usize = 8;

/// What a device is built from.
pub struct Config {
    /// The device itself.
    pub identity: Identity,
    /// Its gateway.
    pub gateway: Gateway,
    /// The profile it was registered for.
    pub profile: Profile,
    /// What carries its messages.
    pub transport: Transport,
    /// Its counter: higher than any it has used. At most 2⁴⁸ the first time (R22).
    pub fresh: u64,
}

/// What a message that came in means to the application.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'m> {
    /// Nothing to do.
    Nothing,
    /// A channel stands.
    Opened,
    /// Some readings are durable: see [`Device::poll_confirmed`].
    Confirmed,
    /// The gateway wants something done: answer with [`Device::send_result`].
    Command {
        /// Its number.
        command: u32,
        /// What to do.
        payload: &'m [u8],
    },
    /// The gateway has forgotten the session: a new handshake has begun.
    Lost,
    /// The gateway has ended the session.
    Closed,
}

/// A reading that the gateway has confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confirmed {
    /// The number that [`Device::send_reading`] gave it.
    pub token: u32,
    /// The session in which it was confirmed.
    pub session: SessionId,
    /// Its sequence number there.
    pub sequence: u32,
}

/// Why a reading was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// Every place of the window is taken by a reading that is not confirmed yet.
    #[error("every place of the window waits for a confirmation")]
    Full,
    /// The payload is longer than this device keeps.
    #[error("the payload is too long")]
    TooLong,
}

/// A deterministic generator (HMAC-SHA256 in counter mode with a ratchet), seeded once.
#[derive(Zeroize, ZeroizeOnDrop)]
struct Random([u8; 32]);

impl Random {
    fn block(&self, label: u8) -> [u8; 32] {
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(&self.0) else {
            unreachable!("HMAC takes keys of any length")
        };
        mac.update(&[label]);
        mac.finalize().into_bytes().into()
    }

    fn bytes(&mut self) -> [u8; 32] {
        let out = self.block(1);
        self.0 = self.block(0);
        out
    }

    fn below(&mut self, bound: u64) -> u64 {
        let [a, b, c, d, ..] = self.bytes();
        u64::from(u32::from_be_bytes([a, b, c, d])) % bound
    }
}

struct Handshake {
    waiting: Waiting,
    cookie: Option<[u8; COOKIE]>,
    retries: u8,
    attempts: u8,
    due: u64,
}

struct Session {
    id: SessionId,
    token: [u8; 12],
    up: Cipher,
    down: Cipher,
    next: u32,
    window: ReplayWindow,
    /// When the session is renewed, before its lifetime ends (R86).
    renew: u64,
    recent: [Option<[u8; 16]>; RECENT],
    ping: Option<Retransmit>,
    result: bool,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.token.zeroize();
    }
}

#[derive(Clone, Copy)]
struct Retransmit {
    due: u64,
    attempts: u8,
}

impl Retransmit {
    /// The pause after this many attempts. A stream repeats what is lost by itself: there a
    /// repetition only helps when the gateway's end was lost, and may wait.
    fn pause(transport: Transport, attempts: u8) -> u64 {
        let first = match transport {
            Transport::Datagram => RETRANSMIT_US,
            Transport::Stream => 8 * RETRANSMIT_US,
        };
        (first << attempts.min(5)).min(RETRANSMIT_MAX_US)
    }
}

/// A reading on its way.
struct Outgoing<const PAYLOAD: usize> {
    token: u32,
    confirm: bool,
    channel: u16,
    payload: [u8; PAYLOAD],
    len: usize,
    sequence: Option<u32>,
    resend: Retransmit,
    confirmed: Option<Confirmed>,
}

/// A device with room for `WINDOW` readings of at most `PAYLOAD` bytes each.
pub struct Device<E = Software, const WINDOW: usize = 4, const PAYLOAD: usize = 128> {
    engine: E,
    config: Config,
    public: Option<PublicKey>,
    random: Random,
    handshake: Option<Handshake>,
    /// A handshake is to begin at this time.
    begin: Option<u64>,
    challenge: Option<[u8; 16]>,
    session: Option<Session>,
    readings: [Option<Outgoing<PAYLOAD>>; WINDOW],
    next_token: u32,
    result: (u32, u8, [u8; PAYLOAD], usize),
    last_command: Option<u32>,
    closing: bool,
}

impl<E: Engine, const WINDOW: usize, const PAYLOAD: usize> Device<E, WINDOW, PAYLOAD> {
    /// A closed device. `seed` is 32 random bytes, used nowhere else.
    #[must_use]
    pub fn new(engine: E, config: Config, seed: [u8; 32]) -> Self {
        let public = match &config.identity.key {
            DeviceKey::Private(private) => Some(private.public_key()),
            DeviceKey::Registration(_) => None,
        };
        Self {
            engine,
            config,
            public,
            random: Random(seed),
            handshake: None,
            begin: None,
            challenge: None,
            session: None,
            readings: [const { None }; WINDOW],
            next_token: 0,
            result: (0, 0, [0; PAYLOAD], 0),
            last_command: None,
            closing: false,
        }
    }

    /// Begins a handshake now. The session that stands, if any, stays until the new one does.
    pub fn open(&mut self, now_us: u64) {
        if self.handshake.is_none() {
            self.begin = Some(now_us);
        }
        self.closing = false;
    }

    /// Whether a channel stands.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        self.session.is_some()
    }

    /// The session that stands.
    #[must_use]
    pub fn session(&self) -> Option<SessionId> {
        self.session.as_ref().map(|session| session.id)
    }

    /// The counter to keep over a restart, for [`Config::fresh`].
    #[must_use]
    pub const fn fresh(&self) -> u64 {
        self.config.fresh
    }

    /// Takes a reading; the token under which [`poll_confirmed`](Self::poll_confirmed) reports it.
    ///
    /// # Errors
    /// [`SendError`].
    pub fn send_reading(
        &mut self,
        now_us: u64,
        channel: u16,
        payload: &[u8],
        confirm: bool,
    ) -> Result<u32, SendError> {
        let mut kept = [0; PAYLOAD];
        kept.get_mut(..payload.len()).ok_or(SendError::TooLong)?.copy_from_slice(payload);
        let place =
            self.readings.iter_mut().find(|place| place.is_none()).ok_or(SendError::Full)?;
        let token = self.next_token;
        self.next_token = token.wrapping_add(1);
        *place = Some(Outgoing {
            token,
            confirm,
            channel,
            payload: kept,
            len: payload.len(),
            sequence: None,
            resend: Retransmit { due: now_us, attempts: 0 },
            confirmed: None,
        });
        Ok(token)
    }

    /// The next reading that the gateway has confirmed; its place in the window is free again.
    pub fn poll_confirmed(&mut self) -> Option<Confirmed> {
        let done = |place: &&mut Option<Outgoing<PAYLOAD>>| {
            place.as_ref().is_some_and(|reading| reading.confirmed.is_some())
        };
        self.readings.iter_mut().find(done)?.take()?.confirmed
    }

    /// Answers a command; the output is cut at `PAYLOAD` bytes.
    pub fn send_result(&mut self, command: u32, status: u8, output: &[u8]) {
        let len = output.len().min(PAYLOAD);
        self.result.0 = command;
        self.result.1 = status;
        self.result.2[..len].copy_from_slice(&output[..len]);
        self.result.3 = len;
        if let Some(session) = &mut self.session {
            session.result = true;
        }
    }

    /// Ends the session: the next transmission is CLOSE, after which no key remains (R81).
    pub fn close(&mut self) {
        self.handshake = None;
        self.begin = None;
        self.closing = self.session.is_some();
    }

    /// When to call [`poll_transmit`](Self::poll_transmit) next, if nothing comes in before.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<u64> {
        let handshake = self.handshake.as_ref().map(|handshake| handshake.due);
        let mut next = [self.begin, handshake].into_iter().flatten().min();
        let mut earlier = |due: u64| next = Some(next.map_or(due, |next| next.min(due)));
        if let Some(session) = &self.session {
            if self.closing || session.result {
                earlier(0);
            }
            session.ping.iter().for_each(|ping| earlier(ping.due));
            let waiting = self.readings.iter().flatten().filter(|r| r.confirmed.is_none());
            waiting.for_each(|reading| earlier(reading.resend.due));
            if self.handshake.is_none() && self.begin.is_none() {
                earlier(if session.next >= SEQUENCE_RENEW { 0 } else { session.renew });
            }
        }
        next
    }

    /// The next message to send, written to `out` (at least
    /// [`MESSAGE_MAX`](crate::wire::MESSAGE_MAX) bytes); its length.
    pub fn poll_transmit(&mut self, now_us: u64, out: &mut [u8]) -> Option<usize> {
        if self.closing {
            self.closing = false;
            let len = self.session.as_mut().and_then(|session| session.seal(Up::Close, out));
            self.session = None;
            scrub_stack();
            return len;
        }
        if self.session.as_ref().is_some_and(|session| session.is_worn(now_us))
            && self.handshake.is_none()
            && self.begin.is_none()
        {
            self.begin = Some(now_us);
        }
        self.transmit_hello(now_us, out).or_else(|| self.transmit_record(now_us, out))
    }

    fn transmit_hello(&mut self, now_us: u64, out: &mut [u8]) -> Option<usize> {
        let worn =
            |handshake: &Handshake| handshake.due <= now_us && handshake.attempts >= HELLO_ATTEMPTS;
        if self.handshake.as_ref().is_some_and(worn) {
            self.handshake = None;
            self.begin = Some(now_us);
        }
        if self.begin.is_some_and(|begin| begin <= now_us) {
            self.begin = None;
            let waiting = self.make_hello()?;
            self.handshake =
                Some(Handshake { waiting, cookie: None, retries: 0, attempts: 0, due: now_us });
            scrub_stack();
        }
        let transport = self.config.transport;
        let handshake = self.handshake.as_mut().filter(|handshake| handshake.due <= now_us)?;
        handshake.due = now_us + Retransmit::pause(transport, handshake.attempts);
        handshake.attempts += 1;
        Some(if let Some(cookie) = &handshake.cookie {
            handshake.waiting.hello_with_cookie(cookie, out)
        } else {
            let hello = handshake.waiting.hello();
            out[..hello.len()].copy_from_slice(hello);
            hello.len()
        })
    }

    fn make_hello(&mut self) -> Option<Waiting> {
        let fresh = self.config.fresh;
        self.config.fresh = fresh + 1;
        let (random, secret) = (self.random.bytes(), Zeroizing::new(self.random.bytes()));
        let hedge = self.random.bytes();
        let freshness = Freshness {
            fresh,
            challenge: self.challenge.take(),
            random,
            secret: *secret.first_chunk()?,
        };
        let Config { identity, gateway, profile, transport, .. } = &self.config;
        let offer = Offer::new(*profile, *transport);
        let start = Start::new(identity, gateway, offer, freshness);
        let answer = self.engine.encapsulate(start.task())?;
        let proving = start.encapsulated(&answer);
        let signature = match (proving.digest(), &identity.key) {
            (Some(digest), DeviceKey::Private(private)) => {
                self.engine.sign(private, &digest, &hedge)?
            }
            _ => [0; 64],
        };
        Some(proving.signed(&signature))
    }

    fn transmit_record(&mut self, now_us: u64, out: &mut [u8]) -> Option<usize> {
        let transport = self.config.transport;
        let session = self.session.as_mut()?;
        if mem::take(&mut session.result) {
            let (command, status, output, len) = &self.result;
            let result =
                Up::Result { command: *command, status: *status, payload: &output[..*len] };
            return session.seal(result, out);
        }
        let due = |reading: &Outgoing<PAYLOAD>| {
            reading.confirmed.is_none() && reading.resend.due <= now_us
        };
        for place in &mut self.readings {
            let Some(reading) = place.as_mut().filter(|reading| due(reading)) else { continue };
            if reading.resend.attempts >= RECORD_ATTEMPTS {
                reading.resend = Retransmit { due: now_us + RETRANSMIT_MAX_US, attempts: 1 };
                if self.handshake.is_none() {
                    self.begin = Some(now_us);
                }
                return self.transmit_hello(now_us, out);
            }
            let Outgoing { confirm, channel, payload, len, .. } = reading;
            let up = Up::Reading {
                confirm: *confirm,
                channel: *channel,
                age_ms: None,
                again: None,
                payload: &payload[..*len],
            };
            let sequence = match reading.sequence {
                Some(sequence) => sequence,
                None => session.take_sequence()?,
            };
            reading.sequence = Some(sequence);
            reading.resend.due = now_us + Retransmit::pause(transport, reading.resend.attempts);
            reading.resend.attempts += 1;
            let confirm = *confirm;
            session.ping = None;
            let len = session.seal_at(sequence, up, out);
            if !confirm {
                *place = None;
            }
            return Some(len);
        }
        let ping = session.ping.as_mut().filter(|ping| ping.due <= now_us)?;
        if ping.attempts >= RECORD_ATTEMPTS {
            session.ping = None;
            self.begin = Some(now_us);
            return self.transmit_hello(now_us, out);
        }
        ping.due = now_us + Retransmit::pause(transport, ping.attempts);
        ping.attempts += 1;
        session.seal(Up::Ping, out)
    }

    /// Takes a message from the gateway; records are opened in place.
    ///
    /// # Errors
    /// The one reason for which the message was discarded.
    pub fn handle_message<'m>(
        &mut self,
        now_us: u64,
        message: &'m mut [u8],
    ) -> Result<Event<'m>, DropReason> {
        match Kind::of(message)? {
            Kind::Accept => self.handle_accept(now_us, message),
            Kind::Retry => {
                let handshake = self.handshake.as_mut().ok_or(DropReason::Unexpected)?;
                let retry = handshake.waiting.retry(message)?;
                // R53: at most two for one HELLO.
                if handshake.retries == 2 {
                    return Err(DropReason::Unexpected);
                }
                handshake.retries += 1;
                handshake.cookie = Some(retry.cookie);
                handshake.attempts = 0;
                // R54: the same bytes, after the wait.
                // Nobody has signed the pause: it is believed within bounds.
                let wait_us = (u64::from(retry.wait_10ms) * 10_000).min(RETRANSMIT_MAX_US);
                handshake.due = now_us + wait_us;
                Ok(Event::Nothing)
            }
            Kind::Challenge => {
                let handshake = self.handshake.as_ref().ok_or(DropReason::Unexpected)?;
                let (challenge, mark) = handshake.waiting.challenge(message)?;
                if mark > MARK_MAX {
                    return Err(DropReason::Mark);
                }
                // R60: above the mark, with a new E and the challenge.
                self.config.fresh = self.config.fresh.max(mark + 1);
                self.challenge = Some(challenge);
                self.handshake = None;
                self.begin = Some(now_us);
                Ok(Event::Nothing)
            }
            Kind::Down => self.handle_record(message),
            Kind::Reset => self.handle_reset(now_us, message),
            Kind::Hello | Kind::Up => Err(DropReason::Kind),
        }
    }

    fn handle_accept<'m>(&mut self, now_us: u64, message: &[u8]) -> Result<Event<'m>, DropReason> {
        let handshake = self.handshake.as_ref().ok_or(DropReason::Unexpected)?;
        let accepting = handshake.waiting.accept(message)?;
        let answer = match accepting.task(&self.config.identity.key) {
            Some((scalar, x)) => Some(self.engine.agree(scalar, x).ok_or(DropReason::Point)?),
            None => None,
        };
        let answered = accepting.agreed(answer.as_ref(), self.public.as_ref())?;
        let verdict = answered.verify_task().is_none_or(|task| self.engine.verify(task));
        let (Grant { session, lifetime_s, reset_token, .. }, keys) = {
            let (grant, keys) = answered.verified(verdict)?;
            (grant.clone(), keys)
        };
        self.session = Some(Session {
            id: session,
            token: reset_token,
            up: Cipher::new(&keys.up),
            down: Cipher::new(&keys.down),
            next: 0,
            window: ReplayWindow::new(),
            renew: now_us + u64::from(lifetime_s) * 900_000,
            recent: [None; RECENT],
            ping: Some(Retransmit { due: now_us, attempts: 0 }),
            result: false,
        });
        self.handshake = None;
        // R76: what is not acknowledged goes out again under numbers of the new session.
        for reading in self.readings.iter_mut().flatten() {
            reading.sequence = None;
            reading.resend = Retransmit { due: now_us, attempts: 0 };
        }
        drop((keys, answer));
        scrub_stack();
        Ok(Event::Opened)
    }

    fn handle_record<'m>(&mut self, message: &'m mut [u8]) -> Result<Event<'m>, DropReason> {
        let session = self.session.as_mut().ok_or(DropReason::Unexpected)?;
        let header = DownHeader::decode(message)?;
        if matches!(session.window.place(header.sequence), Place::Repeated | Place::TooOld) {
            return Err(DropReason::Replay);
        }
        let text = session.down.open_down(header, session.id, message);
        let text = text.ok_or(DropReason::RecordOpen)?;
        session.window.take(header.sequence);
        match Down::decode(text)? {
            Down::Ack { ranges, .. } => {
                let id = session.id;
                for reading in self.readings.iter_mut().flatten() {
                    let acked = |s: &u32| ranges.iter().any(|range| range.contains(*s));
                    if let Some(sequence) = reading.sequence.filter(acked) {
                        let token = reading.token;
                        reading.confirmed = Some(Confirmed { token, session: id, sequence });
                    }
                }
                Ok(Event::Confirmed)
            }
            Down::Command { command, payload } => {
                if self.last_command == Some(command) {
                    // Done already: the result was lost on the way (R78).
                    session.result = self.result.0 == command;
                    return Ok(Event::Nothing);
                }
                self.last_command = Some(command);
                Ok(Event::Command { command, payload })
            }
            Down::Pong { .. } => {
                session.ping = None;
                Ok(Event::Nothing)
            }
            Down::Prove { .. } => Ok(Event::Nothing),
            Down::Close => {
                self.session = None;
                scrub_stack();
                Ok(Event::Closed)
            }
        }
    }

    fn handle_reset<'m>(&mut self, now_us: u64, message: &[u8]) -> Result<Event<'m>, DropReason> {
        let reset = Reset::decode(message)?;
        let session = self.session.as_ref().ok_or(DropReason::Unexpected)?;
        let genuine = session.recent.iter().flatten().any(|mac| mac.ct_eq(&reset.mac).into());
        if reset.session != session.id || !genuine {
            return Err(DropReason::Unexpected);
        }
        if self.handshake.is_some() || self.begin.is_some() {
            return Ok(Event::Nothing);
        }
        self.begin = Some(now_us + self.random.below(RESET_BACKOFF_US));
        Ok(Event::Lost)
    }
}

impl Session {
    /// Numbers start at 0 and rise by one (R66); the last is never used (R68).
    /// Whether a new session is due: by time, or because the sequence numbers come to their end
    /// (R68).
    const fn is_worn(&self, now_us: u64) -> bool {
        self.renew <= now_us || self.next >= SEQUENCE_RENEW
    }

    fn take_sequence(&mut self) -> Option<u32> {
        let sequence = self.next;
        self.next = sequence.checked_add(1)?;
        Some(sequence)
    }

    fn seal(&mut self, up: Up<'_>, out: &mut [u8]) -> Option<usize> {
        let sequence = self.take_sequence()?;
        Some(self.seal_at(sequence, up, out))
    }

    /// The same text under the same number: the same bytes (R67).
    fn seal_at(&mut self, sequence: u32, up: Up<'_>, out: &mut [u8]) -> usize {
        let mut text = Zeroizing::new([0; TEXT_MAX]);
        let len = up.encode(text.as_mut_slice());
        let header = UpHeader { session: self.id, sequence };
        let len = self.up.seal_up(header, &text[..len], out);
        self.recent.rotate_right(1);
        self.recent[0] = Some(schedule::reset_mac(&self.token, &out[..len]));
        len
    }
}
