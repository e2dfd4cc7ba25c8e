//! What comes from the gateway, and what a device believes of it.

use duet_protocol::{
    message::Down,
    reading::EARLY_SEQUENCE,
    reason::DropReason,
    replay::Place,
    schedule::Grant,
    wire::{DownHeader, Kind, Reset},
};

use crate::{
    crypto::Crypto,
    error::Error,
    schedule::SessionKeys,
    session::{Ping, Retransmit, Session},
    store::Store,
};

use super::{Confirmed, Device, Early, Event, RETRANSMIT_MAX_US, pause};

/// How many CHALLENGEs in a row a device answers at once (R60).
const CHALLENGES_AT_ONCE: u8 = 3;
/// The highest mark of a gateway that a device believes (R59).
const MARK_MAX: u64 = 1 << 62;
/// The longest pause after a RESET, µs: devices of a restarted gateway spread over it (R64).
const RESET_BACKOFF_US: u64 = 500_000;
/// The least time between a doubt that the gateway dispelled and the next one, µs (R107).
const DOUBT_AGAIN_US: u64 = 10_000_000;

impl<C: Crypto, S: Store, const WINDOW: usize, const PAYLOAD: usize> Device<C, S, WINDOW, PAYLOAD> {
    /// Takes a message from the gateway; records are opened in place.
    ///
    /// # Errors
    /// [`Error`]: nothing has changed, but for what the gateway sends again by itself.
    pub fn handle_message<'m>(
        &mut self,
        now_us: u64,
        message: &'m mut [u8],
    ) -> Result<Event<'m>, Error> {
        match Kind::of(message)? {
            Kind::Accept => self.handle_accept(now_us, message),
            Kind::Retry => self.handle_retry(now_us, message),
            Kind::Challenge => self.handle_challenge(now_us, message),
            Kind::Down => self.handle_record(now_us, message),
            Kind::Reset => self.handle_reset(now_us, message),
            Kind::Hello | Kind::Up => Err(DropReason::Kind.into()),
        }
    }

    fn handle_retry<'m>(&mut self, now_us: u64, message: &[u8]) -> Result<Event<'m>, Error> {
        let handshake = self.handshake.as_mut().ok_or(DropReason::Unexpected)?;
        let retry = handshake.waiting.retry(message)?;
        // R53: at most two for one HELLO.
        if handshake.retries == 2 {
            return Err(DropReason::Unexpected.into());
        }
        handshake.retries += 1;
        handshake.cookie = Some(retry.cookie);
        // R54: the same bytes, after the wait.
        // Nobody has signed the pause: it is believed within bounds.
        let wait_us = (u64::from(retry.wait_10ms) * 10_000).min(RETRANSMIT_MAX_US);
        handshake.resend = Retransmit { due: now_us.saturating_add(wait_us), attempts: 0 };
        Ok(Event::Nothing)
    }

    #[inline(never)]
    fn handle_challenge<'m>(&mut self, now_us: u64, message: &[u8]) -> Result<Event<'m>, Error> {
        let handshake = self.handshake.as_ref().ok_or(DropReason::Unexpected)?;
        let (challenge, mark) = handshake.waiting.challenge(&mut self.crypto, message)?;
        if mark > MARK_MAX {
            return Err(DropReason::Mark.into());
        }
        // R60: above the mark, with a new E and the challenge.
        self.memory.raise(mark);
        self.challenge = Some(challenge);
        self.handshake = None;
        // Each may come from another gateway, to which a balancer sent the answer.
        self.challenges = self.challenges.saturating_add(1);
        let wait_us = match self.challenges.checked_sub(CHALLENGES_AT_ONCE + 1) {
            Some(more) => pause(self.config.transport, more),
            None => 0,
        };
        self.begin = Some(now_us.saturating_add(wait_us));
        Ok(Event::Nothing)
    }

    #[inline(never)]
    fn handle_accept<'m>(&mut self, now_us: u64, message: &[u8]) -> Result<Event<'m>, Error> {
        let handshake = self.handshake.as_ref().ok_or(DropReason::Unexpected)?;
        let waiting = &handshake.waiting;
        let super::Config { identity, gateway, .. } = &self.config;
        let result = waiting.accept(&mut self.crypto, identity, gateway, message);
        let event = match result {
            Ok((grant, keys)) => Ok(self.accepted(now_us, &grant, keys)),
            Err(error) => Err(error),
        };
        self.crypto.scrub();
        event
    }

    /// A genuine ACCEPT has come.
    #[inline(never)]
    fn accepted(&mut self, now_us: u64, grant: &Grant, keys: SessionKeys) -> Event<'static> {
        let Some(handshake) = &self.handshake else { return Event::Nothing };
        let waiting = &handshake.waiting;
        let Grant { session: id, lifetime_s, stored, nothing_waits, reset_token } = grant;
        let carried = handshake.carried.filter(|_| *stored);
        let stored = carried.is_some();
        let hello = (*waiting.digest(), waiting.fresh());
        self.handshake = None;
        self.challenges = 0;
        // R76: what is not acknowledged goes out again under numbers of the new session.
        for reading in self.readings.iter_mut().flatten() {
            if carried == Some(reading.token) {
                reading.confirmed = reading.first.map(|id_for_ever| Confirmed {
                    token: reading.token,
                    id: id_for_ever,
                    session: *id,
                    sequence: EARLY_SEQUENCE,
                });
            }
            reading.sequence = None;
            reading.resend = Retransmit { due: now_us, attempts: 0 };
        }
        if stored {
            // Where that fails the store says doubt once more, and the gateway knows the reading.
            self.end_doubt();
        }
        self.answer.sequence = None;
        if let Some(resend) = &mut self.answer.resend {
            *resend = Retransmit { due: now_us, attempts: 0 };
        }
        let owed = self.readings.iter().flatten().any(|reading| reading.confirmed.is_none())
            || self.answer.resend.is_some()
            || self.busy;
        let leaves = self.early == Early::Leave && stored && !owed;
        if leaves && *nothing_waits {
            // R104: the session is never confirmed, and ends by itself at the gateway.
            self.session = None;
            return Event::Delivered;
        }
        let renew = now_us.saturating_add(u64::from(*lifetime_s) * 900_000);
        let mut session = Session::new(*id, hello, *reset_token, keys, renew, now_us);
        // Before there was a session nobody was asked whether anything waits.
        self.resting = self.resting.map(|_| now_us);
        if leaves {
            // Something may wait for the device: it asks.
            session.ping = Some(Ping::due(now_us, false));
            self.resting = Some(now_us);
        }
        self.session = Some(session);
        Event::Opened
    }

    #[inline(never)]
    fn handle_record<'m>(
        &mut self,
        now_us: u64,
        message: &'m mut [u8],
    ) -> Result<Event<'m>, Error> {
        let session = self.session.as_mut().ok_or(DropReason::Unexpected)?;
        let header = DownHeader::decode(message)?;
        let place = session.window.place(header.sequence);
        if matches!(place, Place::Repeated | Place::TooOld) {
            return Err(DropReason::Replay.into());
        }
        let text = session.open(&mut self.crypto, header, message)?;
        // The key was expanded for this record alone.
        self.crypto.scrub();
        let text = text.ok_or(DropReason::RecordOpen)?;
        session.window.take(header.sequence);
        session.heard = now_us;
        let newest = place == Place::Newest;
        if newest && session.doubt.take().is_some() {
            self.doubt_from = now_us.saturating_add(DOUBT_AGAIN_US);
        }
        match Down::decode(text)? {
            Down::Ack { ranges, nothing_waits } => {
                let id = session.id;
                let acked = |sequence: &u32| ranges.iter().any(|range| range.contains(*sequence));
                let mut told = false;
                for reading in self.readings.iter_mut().flatten() {
                    if reading.confirmed.is_some() {
                        continue;
                    }
                    if let Some(sequence) = reading.sequence.filter(acked)
                        && let Some(first) = reading.first
                    {
                        told |= first.is_early();
                        let token = reading.token;
                        reading.confirmed =
                            Some(Confirmed { token, id: first, session: id, sequence });
                        if reading.resend.attempts == 1 {
                            session.note_answer(now_us.saturating_sub(reading.sent));
                        }
                    }
                }
                if self.answer.sequence.is_some_and(|sequence| acked(&sequence)) {
                    // R117: it is recorded.
                    self.answer.resend = None;
                }
                // R114: of the newest record that waits, and newer than all before.
                let last = newest && session.wanted.is_some_and(|wanted| acked(&wanted));
                if nothing_waits {
                    session.void = session.void.max(header.sequence);
                    session.nothing_waits |= last;
                } else if last && (self.resting.is_some() || self.early == Early::Leave) {
                    // Whoever would sleep has not been told that he may: he asks.
                    self.resting.get_or_insert(now_us);
                    session.ping.get_or_insert(Ping::due(now_us, false));
                }
                if told {
                    self.end_doubt();
                }
                Ok(Event::Confirmed)
            }
            Down::Command { command, payload } => {
                if header.sequence < session.void {
                    // It was answered, or its time was over, when the gateway said that nothing waits (R115).
                    return Ok(Event::Nothing);
                }
                self.resting = None;
                let last = self.memory.kept().command;
                if command > last {
                    self.memory.begin_command(command)?;
                    self.busy = true;
                    self.answer.resend = None;
                    return Ok(Event::Command { command, payload });
                }
                // R78: the last one once more: its result was lost on the way. What is older is a late copy.
                if command == last && !self.busy {
                    let resend = &mut self.answer.resend;
                    resend.get_or_insert(Retransmit { due: 0, attempts: 0 }).due = 0;
                }
                Ok(Event::Nothing)
            }
            Down::Pong { nothing_waits } => {
                let Some(ping) = session.ping.take() else { return Ok(Event::Nothing) };
                if ping.resend.attempts == 1 {
                    session.note_answer(now_us.saturating_sub(ping.sent));
                }
                if let Some(named) = nothing_waits {
                    session.void = session.void.max(header.sequence);
                    session.nothing_waits |=
                        newest && ping.sequence == Some(named) && session.wanted == Some(named);
                }
                Ok(if session.nothing_waits { Event::NothingWaits } else { Event::Nothing })
            }
            Down::Prove { challenge } => {
                if session.answers.take(now_us) {
                    session.here.push(challenge);
                }
                Ok(Event::Nothing)
            }
            Down::Close => {
                self.session = None;
                self.crypto.scrub();
                Ok(Event::Closed)
            }
        }
    }

    #[inline(never)]
    fn handle_reset<'m>(&mut self, now_us: u64, message: &[u8]) -> Result<Event<'m>, Error> {
        let reset = Reset::decode(message)?;
        let session = self.session.as_mut().ok_or(DropReason::Unexpected)?;
        if reset.session != session.id {
            return Err(DropReason::Unexpected.into());
        }
        let free = self.handshake.is_none() && self.begin.is_none();
        if session.believes(&reset.mac) {
            if free {
                let pause = below(&mut self.crypto, RESET_BACKOFF_US)?;
                self.begin = Some(now_us.saturating_add(pause));
                return Ok(Event::Lost);
            }
            return Ok(Event::Nothing);
        }
        // R105: it is not taken, but a gateway that does not have the session says just this.
        if !free || session.doubt.is_some() || now_us < self.doubt_from {
            return Err(DropReason::Unexpected.into());
        }
        let wait = session.doubt_us();
        let wait = wait.saturating_add(below(&mut self.crypto, wait)?);
        session.doubt = Some(now_us.saturating_add(wait));
        session.ping = Some(Ping::due(now_us, false));
        Ok(Event::Doubted)
    }
}

/// A random number below the bound.
fn below(c: &mut impl Crypto, bound: u64) -> Result<u64, Error> {
    let mut bytes = [0; 4];
    c.random(&mut bytes)?;
    // Times the share of 2³² that was drawn: no division, and as even as is needed here.
    let bound = u32::try_from(bound).unwrap_or(u32::MAX);
    Ok((u64::from(u32::from_be_bytes(bytes)) * u64::from(bound)) >> 32)
}
