//! The device itself: what it was asked for, what is under way, and when something is due. What is
//! sent is in `transmit`, what comes in in `receive`.

mod receive;
mod transmit;

use core::mem::MaybeUninit;

use duet_protocol::{
    identity::Gateway,
    profile::{Profile, Transport},
    reading::ReadingId,
    wire::{COOKIE, MESSAGE_MAX, SessionId},
};

use crate::{
    crypto::Crypto,
    error::{Failure, SendError, SetupError},
    hello::{OVERHEAD, Waiting},
    identity::Identity,
    session::{Ping, Retransmit, Session},
    store::{Memory, Store, StoreError, Volatile},
};

/// How long before the first retransmission, µs (R83).
pub const RETRANSMIT_US: u64 = 1_000_000;
/// The longest pause between retransmissions, µs.
pub const RETRANSMIT_MAX_US: u64 = 30_000_000;
/// How often the same HELLO is sent before a new one is made.
const HELLO_ATTEMPTS: u8 = 5;
/// How often a record is sent in silence before the session is taken for lost (R84, R85).
const RECORD_ATTEMPTS: u8 = 5;

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
    /// Its counter, where the store has none yet or a lower one. At most 2⁴⁸ the first time (R22).
    pub fresh: u64,
}

/// Whether HELLO carries a reading.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Early {
    /// Never: readings are records.
    #[default]
    Never,
    /// One that waits when no session stands goes inside HELLO; then the session is kept.
    Stay,
    /// The same; and if it was stored, nothing else is to be sent and nothing waits, no session is
    /// kept: a sensor wakes, sends one message, hears one, and sleeps.
    Leave,
}

/// A reading to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading<'a> {
    /// Which of the device's sources.
    pub channel: u16,
    /// The measurement, opaque to the gateway.
    pub payload: &'a [u8],
    /// Whether it is repeated until the gateway says that it is stored.
    pub confirm: bool,
    /// When it was measured, on the clock of all other calls; `None` is: just now.
    pub measured_us: Option<u64>,
    /// Its first name, where it was sent before in another life of the device: see
    /// [`Device::reading_id`]. Such a reading is always confirmed.
    pub again: Option<ReadingId>,
}

/// What a message that came in means to the application.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'m> {
    /// Nothing to do.
    Nothing,
    /// A channel stands.
    Opened,
    /// The reading inside HELLO is stored and no session is kept ([`Early::Leave`]).
    Delivered,
    /// Some readings are durable: see [`Device::poll_confirmed`].
    Confirmed,
    /// The gateway wants something done: answer with [`Device::send_result`].
    Command {
        /// Its number.
        command: u32,
        /// What to do.
        payload: &'m [u8],
    },
    /// The gateway says that nothing waits for the device: see [`Device::may_sleep`].
    NothingWaits,
    /// Somebody says that the gateway has forgotten the session, and cannot prove it: the device asks.
    /// On a stream, this is the time to make another connection.
    Doubted,
    /// The gateway has forgotten the session: a new handshake begins.
    Lost,
    /// The gateway has ended the session.
    Closed,
}

/// A reading that the gateway has confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confirmed {
    /// The number that [`Device::send_reading`] gave it.
    pub token: u32,
    /// Its name for ever.
    pub id: ReadingId,
    /// The session in which it was confirmed.
    pub session: SessionId,
    /// Its sequence number there; `u32::MAX` inside HELLO.
    pub sequence: u32,
}

struct Handshake<const PAYLOAD: usize> {
    waiting: Waiting<PAYLOAD>,
    /// The token of the reading inside it.
    carried: Option<u32>,
    cookie: Option<[u8; COOKIE]>,
    retries: u8,
    resend: Retransmit,
}

/// A reading on its way.
struct Outgoing<const PAYLOAD: usize> {
    token: u32,
    confirm: bool,
    channel: u16,
    payload: [u8; PAYLOAD],
    len: usize,
    measured_us: Option<u64>,
    /// How old it was when it was first sent in this session, ms.
    age_ms: Option<u32>,
    /// Its name, once it was sent.
    first: Option<ReadingId>,
    /// Its sequence in this session.
    sequence: Option<u32>,
    sent: u64,
    resend: Retransmit,
    confirmed: Option<Confirmed>,
}

impl<const PAYLOAD: usize> Outgoing<PAYLOAD> {
    /// Whether it was sent inside a HELLO, and nobody knows yet what became of it.
    fn is_in_doubt(&self) -> bool {
        self.confirmed.is_none() && self.first.is_some_and(ReadingId::is_early)
    }

    /// Its first name, where this session is not the one in which it was first sent.
    fn again(&self, session: &Session) -> Option<ReadingId> {
        let here = self.sequence.map(|sequence| session.name(sequence));
        self.first.filter(|first| Some(*first) != here)
    }
}

impl<const PAYLOAD: usize> Outgoing<PAYLOAD> {
    /// Whether it may be sent in this session, where `again` is the one that may be said again.
    fn may_go(&self, session: &Session, again: Option<u32>) -> bool {
        self.again(session).is_none() || again == Some(self.token)
    }
}

/// The result of the last command.
struct Answer<const PAYLOAD: usize> {
    command: u32,
    status: u8,
    output: [u8; PAYLOAD],
    len: usize,
    /// Its sequence in this session.
    sequence: Option<u32>,
    /// Set until the gateway has recorded it.
    resend: Option<Retransmit>,
    sent: u64,
}

/// A device with room for `WINDOW` readings of at most `PAYLOAD` bytes each.
pub struct Device<C, S = Volatile, const WINDOW: usize = 4, const PAYLOAD: usize = 128> {
    crypto: C,
    memory: Memory<S>,
    config: Config,
    early: Early,
    handshake: Option<Handshake<PAYLOAD>>,
    /// A handshake is to begin at this time.
    begin: Option<u64>,
    challenge: Option<[u8; 16]>,
    /// How many CHALLENGEs came in a row.
    challenges: u8,
    /// The counter of the newest HELLO.
    newest: u64,
    session: Option<Session>,
    readings: [Option<Outgoing<PAYLOAD>>; WINDOW],
    next_token: u32,
    answer: Answer<PAYLOAD>,
    /// The application has a command in hand.
    busy: bool,
    /// When the next doubt may begin, µs.
    doubt_from: u64,
    /// Since when the application would sleep, µs.
    resting: Option<u64>,
    closing: bool,
    failure: Option<Failure>,
}

/// The pause after this many attempts. A stream repeats what is lost by itself: there a repetition
/// only helps when the gateway's end was lost, and may wait.
#[inline(never)]
pub(crate) fn pause(transport: Transport, attempts: u8) -> u64 {
    let first = match transport {
        Transport::Datagram => RETRANSMIT_US,
        Transport::Stream => 8 * RETRANSMIT_US,
    };
    (first << attempts.min(5)).min(RETRANSMIT_MAX_US)
}

/// What was kept, for a device whose profile and key belong together.
fn begin<S: Store>(store: S, config: &Config) -> Result<Memory<S>, SetupError> {
    if config.profile.mode.has_certificate() != config.identity.key.signs() {
        return Err(SetupError::KeyKind);
    }
    Ok(Memory::load(store, config.fresh)?)
}

impl<C: Crypto, S: Store, const WINDOW: usize, const PAYLOAD: usize> Device<C, S, WINDOW, PAYLOAD> {
    /// How long a buffer for [`poll_transmit`](Self::poll_transmit) must be.
    pub const TRANSMIT_MAX: usize =
        if OVERHEAD + PAYLOAD < MESSAGE_MAX { OVERHEAD + PAYLOAD } else { MESSAGE_MAX };

    /// A closed device.
    ///
    /// # Errors
    /// [`SetupError`].
    pub fn new(crypto: C, store: S, config: Config) -> Result<Self, SetupError> {
        let memory = begin(store, &config)?;
        Ok(Self::closed(crypto, memory, config))
    }

    /// The same, made where it stays: a small processor has no stack for a copy.
    ///
    /// # Errors
    /// [`SetupError`].
    #[inline(never)]
    pub fn new_in(
        place: &mut MaybeUninit<Self>,
        crypto: C,
        store: S,
        config: Config,
    ) -> Result<&mut Self, SetupError> {
        let memory = begin(store, &config)?;
        Ok(place.write(Self::closed(crypto, memory, config)))
    }

    #[inline(never)]
    fn closed(crypto: C, memory: Memory<S>, config: Config) -> Self {
        let kept = *memory.kept();
        let answer = Answer {
            command: kept.command,
            status: kept.status,
            output: [0; PAYLOAD],
            len: 0,
            sequence: None,
            resend: None,
            sent: 0,
        };
        Self {
            crypto,
            memory,
            config,
            early: Early::default(),
            handshake: None,
            begin: None,
            challenge: None,
            challenges: 0,
            newest: 0,
            session: None,
            readings: [const { None }; WINDOW],
            next_token: 0,
            answer,
            busy: false,
            doubt_from: 0,
            resting: None,
            closing: false,
            failure: None,
        }
    }

    /// Says whether HELLO carries a reading; [`Early::Never`] until this is called.
    pub const fn set_early(&mut self, early: Early) {
        self.early = early;
    }

    /// Begins a handshake now. The session that stands, if any, stays until the new one does.
    pub fn open(&mut self, now_us: u64) {
        if self.handshake.is_none() {
            self.begin = Some(now_us);
        }
        self.closing = false;
        self.resting = None;
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

    /// The counter that the next HELLO takes.
    #[must_use]
    pub const fn fresh(&self) -> u64 {
        self.memory.next_fresh()
    }

    /// The reading whose fate was not known when power went away, if the store keeps that. Whoever
    /// still has it sends it with [`Reading::again`]; whoever has not calls
    /// [`forget_doubt`](Self::forget_doubt). No other reading goes inside HELLO before.
    #[must_use]
    pub const fn doubt(&self) -> Option<ReadingId> {
        self.memory.kept().doubt
    }

    /// Gives up for good the reading of which [`doubt`](Self::doubt) tells.
    ///
    /// # Errors
    /// When the store cannot keep that.
    pub fn forget_doubt(&mut self) -> Result<(), StoreError> {
        self.memory.set_doubt(None)
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
        self.send(now_us, Reading { channel, payload, confirm, measured_us: None, again: None })
    }

    /// The same with all that can be said of a reading.
    ///
    /// # Errors
    /// [`SendError`].
    pub fn send(&mut self, now_us: u64, reading: Reading<'_>) -> Result<u32, SendError> {
        let Reading { channel, payload, confirm, measured_us, again } = reading;
        let mut kept = [0; PAYLOAD];
        kept.get_mut(..payload.len()).ok_or(SendError::TooLong)?.copy_from_slice(payload);
        let place =
            self.readings.iter_mut().find(|place| place.is_none()).ok_or(SendError::Full)?;
        let token = self.next_token;
        self.next_token = token.wrapping_add(1);
        self.resting = None;
        *place = Some(Outgoing {
            token,
            confirm: confirm || again.is_some(),
            channel,
            payload: kept,
            len: payload.len(),
            measured_us,
            age_ms: None,
            first: again,
            sequence: None,
            sent: 0,
            resend: Retransmit { due: now_us, attempts: 0 },
            confirmed: None,
        });
        Ok(token)
    }

    /// The name of a reading that was sent and is not confirmed: whoever keeps readings over a power
    /// cut keeps it with them.
    #[must_use]
    pub fn reading_id(&self, token: u32) -> Option<ReadingId> {
        self.readings.iter().flatten().find(|reading| reading.token == token)?.first
    }

    /// The next reading that the gateway has confirmed; its place in the window is free again.
    pub fn poll_confirmed(&mut self) -> Option<Confirmed> {
        let done = |place: &&mut Option<Outgoing<PAYLOAD>>| {
            place.as_ref().is_some_and(|reading| reading.confirmed.is_some())
        };
        self.readings.iter_mut().find(done)?.take()?.confirmed
    }

    /// Answers a command; the output is cut at `PAYLOAD` bytes. It is repeated until the gateway has
    /// recorded it.
    pub fn send_result(&mut self, command: u32, status: u8, output: &[u8]) {
        let len = output.len().min(PAYLOAD);
        let answer = &mut self.answer;
        (answer.command, answer.status, answer.len) = (command, status, len);
        answer.output[..len].copy_from_slice(&output[..len]);
        answer.sequence = None;
        answer.resend = Some(Retransmit { due: 0, attempts: 0 });
        self.resting = None;
        if command != self.memory.kept().command {
            // The time of this one was over, and a newer one is in hand.
            return;
        }
        self.busy = false;
        if let Err(error) = self.memory.end_command(status) {
            // The result is told all the same; after a power cut the device would say `INTERRUPTED`.
            self.failure = Some(error.into());
        }
    }

    /// Ends the session: the next transmission is CLOSE, after which no key remains (R81).
    pub fn close(&mut self) {
        self.handshake = None;
        self.begin = None;
        self.challenges = 0;
        self.closing = self.session.is_some();
    }

    /// Asks whether the device may sleep, unless that is known: then drive it until
    /// [`may_sleep`](Self::may_sleep) says so.
    pub fn rest(&mut self, now_us: u64) {
        self.resting.get_or_insert(now_us);
        if let Some(session) = &mut self.session
            && !session.nothing_waits
        {
            session.ping.get_or_insert(Ping::due(now_us, false)).replaceable = false;
        }
    }

    /// Whether all is said and nothing waits: whoever sleeps now misses no command that the gateway
    /// has. Without word of that a device that asked may sleep after two seconds, or twice the longest
    /// answer.
    #[must_use]
    pub fn may_sleep(&self, now_us: u64) -> bool {
        let owed = self.readings.iter().flatten().any(|reading| reading.confirmed.is_none());
        if owed || self.busy || self.handshake.is_some() || self.begin.is_some() {
            return false;
        }
        let Some(session) = &self.session else { return true };
        let patient = |since: u64| now_us >= since.saturating_add(session.patience_us());
        self.answer.resend.is_none() && (session.nothing_waits || self.resting.is_some_and(patient))
    }

    /// The one reading that may be said again in this session: readings that come again wait for each
    /// other (R104), the one that was in a HELLO first, and belong into the newest session only (R100).
    fn said_again(&self, session: &Session) -> Option<u32> {
        if session.fresh != self.newest {
            return None;
        }
        let again = |reading: &Outgoing<PAYLOAD>| reading.again(session).is_some();
        let doubtful = self.oldest(&|reading| reading.is_in_doubt() && again(reading));
        let at = doubtful.or_else(|| self.oldest(&again))?;
        self.readings[at].as_ref().map(|reading| reading.token)
    }

    /// The place of the oldest reading that is wanted, of those that are not confirmed.
    #[inline(never)]
    fn oldest(&self, wanted: &dyn Fn(&Outgoing<PAYLOAD>) -> bool) -> Option<usize> {
        let places = self.readings.iter().enumerate();
        let all = places.filter_map(|(at, place)| Some((at, place.as_ref()?)));
        let found = all.filter(|(_, it)| it.confirmed.is_none() && wanted(it));
        // Tokens wrap: the oldest is the one farthest behind the next.
        let age = |(_, it): &(usize, &Outgoing<PAYLOAD>)| self.next_token.wrapping_sub(it.token);
        found.max_by_key(age).map(|(at, _)| at)
    }

    /// Nothing is in doubt any more.
    #[inline(never)]
    fn end_doubt(&mut self) {
        if let Err(error) = self.memory.set_doubt(None) {
            self.failure = Some(error.into());
        }
    }

    /// A stream was connected anew: what waits for an answer is due at once (R118).
    pub fn reconnected(&mut self, now_us: u64) {
        if let Some(handshake) = &mut self.handshake {
            handshake.resend.due = now_us;
        }
        let Some(session) = &mut self.session else { return };
        session.ping.iter_mut().for_each(|ping| ping.resend.due = now_us);
        self.answer.resend.iter_mut().for_each(|resend| resend.due = now_us);
        for reading in self.readings.iter_mut().flatten() {
            reading.resend.due = reading.resend.due.min(now_us);
        }
    }

    /// Whether the device waits for something from the gateway: a stream that is closed meanwhile is to
    /// be connected anew.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        let owed = self.readings.iter().flatten().any(|reading| reading.confirmed.is_none());
        let asked = self.session.as_ref().is_some_and(|session| session.ping.is_some());
        self.handshake.is_some()
            || self.begin.is_some()
            || owed
            || asked
            || self.answer.resend.is_some()
    }

    /// Why nothing was sent although something was due; asked once, then forgotten.
    pub const fn poll_failure(&mut self) -> Option<Failure> {
        self.failure.take()
    }

    /// The cryptography that it was given.
    pub const fn crypto(&mut self) -> &mut C {
        &mut self.crypto
    }

    /// Key and IV of both directions, up first: for searches of memory.
    #[cfg(feature = "hazmat")]
    #[must_use]
    pub fn session_keys(&self) -> Option<[([u8; 16], [u8; 12]); 2]> {
        self.session.as_ref().map(Session::keys)
    }

    /// When to call [`poll_transmit`](Self::poll_transmit) next, if nothing comes in before.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<u64> {
        let mut next = u64::MAX;
        let mut earlier = |due: u64| next = next.min(due);
        self.begin.into_iter().for_each(&mut earlier);
        self.handshake.iter().for_each(|handshake| earlier(handshake.resend.due));
        if let Some(session) = &self.session {
            if self.closing || !session.here.is_empty() {
                earlier(0);
            }
            self.answer.resend.iter().for_each(|resend| earlier(resend.due));
            session.ping.iter().for_each(|ping| earlier(ping.resend.due));
            session.doubt.into_iter().for_each(&mut earlier);
            let rest = self.resting.filter(|_| !session.nothing_waits);
            let rest = rest.map(|since| since.saturating_add(session.patience_us()));
            rest.into_iter().for_each(&mut earlier);
            let again = self.said_again(session);
            let waiting =
                self.readings.iter().flatten().filter(|reading| {
                    reading.confirmed.is_none() && reading.may_go(session, again)
                });
            waiting.for_each(|reading| earlier(reading.resend.due));
            if self.handshake.is_none() && self.begin.is_none() {
                earlier(if session.is_worn(0) { 0 } else { session.renew });
            }
        }
        // No clock comes so far.
        (next != u64::MAX).then_some(next)
    }
}

#[cfg(feature = "software")]
impl<const WINDOW: usize, const PAYLOAD: usize>
    Device<crate::software::Software, Volatile, WINDOW, PAYLOAD>
{
    /// A device of portable code that keeps nothing. `seed` is 32 random bytes, used nowhere else.
    ///
    /// # Errors
    /// [`SetupError::KeyKind`].
    pub fn seeded(config: Config, seed: [u8; 32]) -> Result<Self, SetupError> {
        Self::new(crate::software::Software::seeded(seed), Volatile, config)
    }
}
