//! What a device sends, and when.

use duet_protocol::{message::Up, profile::Offer, reading::READING_ID};

use crate::{
    crypto::Crypto,
    error::Failure,
    hello::{Saying, Waiting},
    session::{Ping, Retransmit, milliseconds},
    store::Store,
};

use super::{
    Device, Early, HELLO_ATTEMPTS, Handshake, Outgoing, RECORD_ATTEMPTS, RETRANSMIT_MAX_US,
    RETRANSMIT_US,
};

/// A device that sends and has heard nothing authentic for this long asks whether anybody is there, µs
/// (R108).
const SILENCE_US: u64 = 15 * 60 * 1_000_000;
/// What stands before a reading's payload: flags, channel, age, name.
const READING_HEAD: usize = 3 + 4 + READING_ID;
/// The least time between a doubt that led to a handshake and the next doubt, µs (R107).
const DOUBT_AFTER_HANDSHAKE_US: u64 = 60_000_000;

impl<C: Crypto, S: Store, const WINDOW: usize, const PAYLOAD: usize> Device<C, S, WINDOW, PAYLOAD> {
    /// The next message to send, written to `out` (at least [`TRANSMIT_MAX`](Self::TRANSMIT_MAX)
    /// bytes); its length. When something was due and could not be made,
    /// [`poll_failure`](Self::poll_failure) says why.
    pub fn poll_transmit(&mut self, now_us: u64, out: &mut [u8]) -> Option<usize> {
        if out.len() < Self::TRANSMIT_MAX {
            self.failure = Some(Failure::Buffer);
            return None;
        }
        if self.closing {
            self.closing = false;
            let len = self.session.as_mut().and_then(|session| {
                let sequence = session.take_sequence()?;
                session.seal(&mut self.crypto, sequence, &Up::Close, out).ok()
            });
            // Dropped where it lies: taken out, it would leave a copy of its keys there.
            self.session = None;
            self.crypto.scrub();
            return len;
        }
        let idle = self.handshake.is_none() && self.begin.is_none();
        if let Some(session) = &mut self.session {
            if session.is_worn(now_us) && idle {
                self.begin = Some(now_us);
            }
            if session.doubt.is_some_and(|until| until <= now_us) {
                // Nothing authentic came: the gateway is gone, or the device was moved to another (R106).
                session.doubt = None;
                self.doubt_from = now_us.saturating_add(DOUBT_AFTER_HANDSHAKE_US);
                if self.handshake.is_none() {
                    self.begin = Some(now_us);
                }
            }
        }
        if let Some(len) = self.transmit_hello(now_us, out) {
            return Some(len);
        }
        let len = self.transmit_record(now_us, out)?;
        // The key was expanded for this record alone.
        self.crypto.scrub();
        Some(len)
    }

    fn transmit_hello(&mut self, now_us: u64, out: &mut [u8]) -> Option<usize> {
        let worn = |handshake: &Handshake<PAYLOAD>| {
            handshake.resend.due <= now_us && handshake.resend.attempts >= HELLO_ATTEMPTS
        };
        if self.handshake.as_ref().is_some_and(worn) {
            self.handshake = None;
            self.begin = Some(now_us);
        }
        if self.begin.is_some_and(|begin| begin <= now_us) {
            match self.make_hello(now_us, out) {
                Ok(()) => {
                    self.begin = None;
                    self.challenge = None;
                }
                Err(failure) => {
                    self.handshake = None;
                    self.failure = Some(failure);
                    self.begin = Some(now_us.saturating_add(RETRANSMIT_US));
                }
            }
            self.crypto.scrub();
        }
        let transport = self.config.transport;
        let handshake = self.handshake.as_mut().filter(|it| it.resend.due <= now_us)?;
        handshake.resend.sent(now_us, transport);
        handshake.waiting.write(handshake.cookie.as_ref(), out)
    }

    /// The reading that the next HELLO carries: the one that was in a HELLO before, or else, where no
    /// session could carry it sooner and none is to be said again (R104), the oldest.
    fn carry(&self) -> Option<usize> {
        if self.early == Early::Never {
            return None;
        }
        let most = self.config.profile.reading_max();
        // The name that a second HELLO says with it must fit, too (R94).
        let fits =
            |reading: &Outgoing<PAYLOAD>| reading.confirm && READING_HEAD + reading.len <= most;
        let doubtful = self.oldest(&|reading| fits(reading) && reading.is_in_doubt());
        let named = self.oldest(&|reading| reading.first.is_some()).is_some();
        let forgotten = self.memory.kept().doubt.is_some();
        if doubtful.is_some() || self.session.is_some() || named || forgotten {
            return doubtful;
        }
        self.oldest(&fits)
    }

    /// Puts a handshake in its place that is to be filled.
    #[inline(never)]
    fn begin_handshake(&mut self, now_us: u64, offer: Offer) {
        let resend = Retransmit { due: now_us, attempts: 0 };
        let waiting = Waiting::empty(offer);
        let (carried, cookie, retries) = (None, None, 0);
        self.handshake = Some(Handshake { waiting, carried, cookie, retries, resend });
    }

    #[inline(never)]
    fn make_hello(&mut self, now_us: u64, out: &mut [u8]) -> Result<(), Failure> {
        let carried = self.carry();
        let fresh = self.memory.take_fresh()?;
        let offer = Offer::new(self.config.profile, self.config.transport);
        self.begin_handshake(now_us, offer);
        let Some(handshake) = &mut self.handshake else { return Ok(()) };
        let mut head = [0; READING_HEAD];
        let mut reading: [&[u8]; 2] = [&[]; 2];
        if let Some(carried) = carried.and_then(|at| self.readings[at].as_ref()) {
            let up = Up::Reading {
                confirm: true,
                channel: carried.channel,
                age_ms: age_ms(carried.measured_us, now_us),
                again: carried.first,
                payload: &[],
            };
            let len = up.encode(&mut head);
            reading = [&head[..len], &carried.payload[..carried.len]];
        }
        let saying = Saying {
            identity: &self.config.identity,
            gateway: &self.config.gateway,
            offer,
            fresh,
            challenge: self.challenge.as_ref(),
            reading,
        };
        handshake.waiting.make(&mut self.crypto, &saying, out)?;
        self.newest = fresh;
        if let Some(reading) = carried.and_then(|at| self.readings[at].as_mut()) {
            handshake.carried = Some(reading.token);
            // As if nothing were known of it: a compiler that knows where it was copied from moves these few bytes with a
            // function that takes 700 bytes of flash, and is needed for nothing else.
            let id = core::hint::black_box(handshake.waiting.early_id());
            let first = *reading.first.get_or_insert(id);
            // Kept before it is sent: else a power cut would make it two readings.
            self.memory.set_doubt(Some(first))?;
        }
        Ok(())
    }

    #[inline(never)]
    fn transmit_record(&mut self, now_us: u64, out: &mut [u8]) -> Option<usize> {
        let len = self.transmit_here(out);
        let len = len.or_else(|| self.transmit_answer(now_us, out));
        let len = len.or_else(|| self.transmit_reading(now_us, out));
        len.or_else(|| self.transmit_ping(now_us, out))
    }

    /// Notes why a record could not be sealed.
    fn sealed(&mut self, result: Result<usize, crate::CryptoError>) -> Option<usize> {
        match result {
            Ok(len) => Some(len),
            Err(error) => {
                self.failure = Some(error.into());
                None
            }
        }
    }

    /// A record was sent often enough in silence: a handshake is due, and the session stays meanwhile (R84, R85).
    #[inline(never)]
    fn give_up(&mut self, now_us: u64, out: &mut [u8]) -> Option<usize> {
        if self.handshake.is_none() {
            self.begin = Some(now_us);
        }
        self.transmit_hello(now_us, out)
    }

    fn transmit_here(&mut self, out: &mut [u8]) -> Option<usize> {
        let session = self.session.as_mut()?;
        let challenge = session.here.take()?;
        let sequence = session.take_sequence()?;
        let result = session.seal(&mut self.crypto, sequence, &Up::Here { challenge }, out);
        self.sealed(result)
    }

    fn transmit_answer(&mut self, now_us: u64, out: &mut [u8]) -> Option<usize> {
        let transport = self.config.transport;
        let session = self.session.as_mut()?;
        let answer = &mut self.answer;
        let resend = answer.resend.as_mut().filter(|resend| resend.due <= now_us)?;
        if resend.attempts >= RECORD_ATTEMPTS {
            *resend = Retransmit { due: now_us.saturating_add(RETRANSMIT_MAX_US), attempts: 1 };
            return self.give_up(now_us, out);
        }
        resend.sent(now_us, transport);
        let sequence = match answer.sequence {
            Some(sequence) => sequence,
            None => session.take_sequence()?,
        };
        answer.sequence = Some(sequence);
        answer.sent = now_us;
        session.wanted = session.wanted.max(Some(sequence));
        session.nothing_waits = false;
        let up = Up::Result {
            command: answer.command,
            status: answer.status,
            payload: &answer.output[..answer.len],
        };
        let result = session.seal(&mut self.crypto, sequence, &up, out);
        self.sealed(result)
    }

    fn transmit_reading(&mut self, now_us: u64, out: &mut [u8]) -> Option<usize> {
        let transport = self.config.transport;
        let again = self.said_again(self.session.as_ref()?);
        let session = self.session.as_mut()?;
        let due = |place: &&mut Option<Outgoing<PAYLOAD>>| {
            place.as_ref().is_some_and(|reading| {
                reading.confirmed.is_none()
                    && reading.resend.due <= now_us
                    && reading.may_go(session, again)
            })
        };
        let place = self.readings.iter_mut().find(due)?;
        let reading = place.as_mut()?;
        if reading.resend.attempts >= RECORD_ATTEMPTS {
            reading.resend =
                Retransmit { due: now_us.saturating_add(RETRANSMIT_MAX_US), attempts: 1 };
            return self.give_up(now_us, out);
        }
        let sequence = match reading.sequence {
            Some(sequence) => sequence,
            None => {
                reading.age_ms = age_ms(reading.measured_us, now_us);
                session.take_sequence()?
            }
        };
        reading.sequence = Some(sequence);
        reading.sent = now_us;
        reading.resend.sent(now_us, transport);
        if reading.confirm {
            reading.first.get_or_insert(session.name(sequence));
            session.wanted = session.wanted.max(Some(sequence));
            session.nothing_waits = false;
        }
        let up = Up::Reading {
            confirm: reading.confirm,
            channel: reading.channel,
            age_ms: reading.age_ms,
            again: reading.again(session),
            payload: &reading.payload[..reading.len],
        };
        let result = session.seal(&mut self.crypto, sequence, &up, out);
        if session.ping.as_ref().is_some_and(|ping| ping.replaceable) {
            session.ping = None;
        }
        if session.ping.is_none() && now_us.saturating_sub(session.heard) >= SILENCE_US {
            session.ping = Some(Ping::due(now_us, false));
        }
        if !reading.confirm {
            *place = None;
        }
        self.sealed(result)
    }

    fn transmit_ping(&mut self, now_us: u64, out: &mut [u8]) -> Option<usize> {
        let transport = self.config.transport;
        let session = self.session.as_mut()?;
        let ping = session.ping.as_mut().filter(|ping| ping.resend.due <= now_us)?;
        if ping.resend.attempts >= RECORD_ATTEMPTS {
            session.ping = None;
            return self.give_up(now_us, out);
        }
        ping.resend.sent(now_us, transport);
        let sequence = session.next;
        session.next = sequence.checked_add(1)?;
        (ping.sequence, ping.sent) = (Some(sequence), now_us);
        session.wanted = Some(sequence);
        session.nothing_waits = false;
        let result = session.seal(&mut self.crypto, sequence, &Up::Ping, out);
        self.sealed(result)
    }
}

/// How long ago that was.
fn age_ms(measured_us: Option<u64>, now_us: u64) -> Option<u32> {
    let age_us = now_us.saturating_sub(measured_us?);
    Some(u32::try_from(milliseconds(age_us)).unwrap_or(u32::MAX))
}
