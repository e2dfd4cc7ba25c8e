//! One thread's devices: what is due, what came, what is to be sent.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::collections::binary_heap::{BinaryHeap, PeekMut};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use anyhow::Result;
use duet_device::fast::Fast;
use duet_device::{Device, Early, Event, Volatile};
use duet_protocol::profile::Transport;
use duet_protocol::wire::MESSAGE_MAX;

use super::overheard::Overheard;
use super::road::Road;
use super::{Loop, Loss, Progress, Steady, Tally};
use crate::exchange::thread_cpu;
use crate::fleet::Member;

/// Messages taken in before what is due gets its turn.
const TAKE: usize = 1_024;
/// Devices that get their turn, since something is due, before what came is taken in. It is far less: a program that
/// cannot keep up must not let answers grow old in its socket for the sake of asking more.
const DUE: usize = 64;
/// How long a phase may wait for what is still missing at its end.
const GRACE: Duration = Duration::from_secs(5);

struct One {
    device: Device<Fast>,
    /// When readings were due that found no place in the device's window, µs.
    backlog: VecDeque<u64>,
    /// When the readings in the window were due, by token.
    window: Vec<(u32, u64)>,
    /// The next reading's time, µs; `u64::MAX` is never.
    next_us: u64,
    /// Whether that time is known only when the last reading is confirmed.
    waits: bool,
    /// When its channel was to be opened, µs; `None` once it stands.
    opening: Option<u64>,
    /// The reading that goes with its HELLO, by token: the channel stands for us once that is confirmed.
    first: Option<u32>,
    /// Its valid entry in the heap.
    due_us: u64,
}

impl One {
    /// Opens a channel, with this reading in its HELLO. Whoever connects anew has lost the session that he had, and could not
    /// say so: in one that stands the reading would be a record.
    fn open(&mut self, now: u64, reading: Option<&[u8]>) {
        if self.device.is_open() {
            self.device.close();
            let _never_sent = self.device.poll_transmit(now, &mut [0; MESSAGE_MAX]);
        }
        self.first =
            reading.and_then(|reading| self.device.send_reading(now, 1, reading, true).ok());
        self.device.open(now);
    }

    /// When what its channel was opened for was to begin, once that is done.
    fn opened(&mut self, confirmed: Option<u32>) -> Option<u64> {
        if self.first != confirmed {
            return None;
        }
        self.first = None;
        self.opening.take()
    }
}

/// One thread's share of a crowd.
pub(super) struct Share {
    road: Road,
    devices: Vec<One>,
    heap: BinaryHeap<Reverse<(u64, u32)>>,
    clock: Instant,
    /// Time that does not count: what devices do by themselves, and this machine for all of them.
    apart: Duration,
    loss: Loss,
    random: fastrand::Rng,
    overheard: Option<Arc<Overheard>>,
    next_payload: usize,
    /// What each HELLO carries, if it does.
    early: Option<Vec<u8>>,
    /// What the road had lost when the last phase ended.
    overflowed: u32,
}

/// The part of `span` that has gone by when it is `place`'s turn among `count`.
fn turn(span: Duration, place: usize, count: usize) -> u64 {
    let micros = span.as_micros() * place as u128 / count.max(1) as u128;
    u64::try_from(micros).unwrap_or(u64::MAX)
}

impl Share {
    /// `first` is the number of its first device among all; `seed` decides what a lossy link loses.
    ///
    /// # Errors
    /// When a socket cannot be had.
    pub(super) fn new(
        members: Vec<Member>,
        first: usize,
        gateway: SocketAddr,
        clock: Instant,
        loss: Loss,
        seed: u64,
    ) -> Result<Self> {
        let transport = members.first().map_or(Transport::Datagram, |one| one.config.transport);
        let one = |Member { config, seed, .. }| -> Result<_> {
            Ok(One {
                device: Device::new(Fast::seeded(seed), Volatile, config)?,
                backlog: VecDeque::new(),
                window: Vec::new(),
                next_us: u64::MAX,
                waits: false,
                opening: None,
                first: None,
                due_us: u64::MAX,
            })
        };
        let devices = members.into_iter().map(one).collect::<Result<Vec<_>>>()?;
        let road = Road::new(transport, gateway, first, devices.len())?;
        let heap = BinaryHeap::with_capacity(2 * devices.len());
        let random = fastrand::Rng::with_seed(seed);
        Ok(Self {
            road,
            devices,
            heap,
            clock,
            apart: Duration::ZERO,
            loss,
            random,
            overheard: None,
            next_payload: 0,
            early: None,
            overflowed: 0,
        })
    }

    pub(super) fn overhear(&mut self, by: Arc<Overheard>) {
        self.overheard = Some(by);
    }

    /// From now on each HELLO carries this reading.
    pub(super) fn carry(&mut self, reading: &[u8]) {
        self.early = Some(reading.to_vec());
        self.devices.iter_mut().for_each(|one| one.device.set_early(Early::Stay));
    }

    pub(super) fn len(&self) -> usize {
        self.devices.len()
    }

    fn now(&self) -> u64 {
        let counts = self.clock.elapsed().saturating_sub(self.apart);
        u64::try_from(counts.as_micros()).unwrap_or(u64::MAX)
    }

    fn is_lost(&mut self) -> bool {
        self.loss.0 > 0 && self.random.u32(..1_000_000) < self.loss.0
    }

    pub(super) fn open(
        &mut self,
        ramp: Duration,
        limit: Duration,
        place: usize,
        count: usize,
        progress: &Progress,
        together: &Barrier,
    ) -> Result<Tally> {
        let mut tally = Tally::default();
        self.road.hang_up();
        let hellos = self.prepare_storm(ramp, together);
        let (began, cpu) = (Instant::now(), thread_cpu());
        let start = self.now();
        let mut left = self.devices.len();
        tally.due = left as u64;
        for index in 0..left {
            let at = start + turn(ramp, place + index, count);
            let one = &mut self.devices[index];
            one.opening = Some(at);
            if hellos.is_empty() {
                one.open(at, self.early.as_deref());
            }
            self.schedule(index);
        }
        for (index, hello) in hellos.iter().enumerate() {
            if !self.is_lost() {
                self.road.send(index, hello)?;
                self.overheard.iter().for_each(|overheard| overheard.keep(hello));
            }
            // Answers wait meanwhile; the socket holds those of a crowd.
            tally.note_knock(self.now() - start);
        }
        while left > 0 && began.elapsed() < ramp + limit {
            let before = left;
            self.turn(None, &mut tally, progress, &mut left)?;
            if left < before {
                tally.took = began.elapsed();
            }
        }
        let now = self.now();
        for one in &mut self.devices {
            if let Some(at) = one.opening.take() {
                tally.note_missing(now.saturating_sub(at));
            }
        }
        tally.busy = (thread_cpu() - cpu).as_secs_f64() / began.elapsed().as_secs_f64();
        self.note_overflow(&mut tally);
        Ok(tally)
    }

    fn note_overflow(&mut self, tally: &mut Tally) {
        let before = std::mem::replace(&mut self.overflowed, self.road.overflowed());
        tally.overflowed = self.overflowed.wrapping_sub(before).into();
    }

    /// The devices' first messages, if all are to knock at once: a real device computes its own by itself, so
    /// time stands still until this machine has computed them all.
    fn prepare_storm(&mut self, ramp: Duration, together: &Barrier) -> Vec<Vec<u8>> {
        let mut hellos = Vec::new();
        if ramp.is_zero() {
            let (began, now) = (Instant::now(), self.now());
            let mut bytes = [0; MESSAGE_MAX];
            for one in &mut self.devices {
                one.open(now, self.early.as_deref());
                let len = one.device.poll_transmit(now, &mut bytes).unwrap_or_default();
                hellos.push(bytes[..len].to_vec());
            }
            together.wait();
            self.apart += began.elapsed();
        }
        hellos
    }

    pub(super) fn steady(
        &mut self,
        steady: Steady<'_>,
        place: usize,
        count: usize,
        progress: &Progress,
    ) -> Result<Tally> {
        let mut tally = Tally::default();
        let (began, cpu) = (Instant::now(), thread_cpu());
        let start = self.now();
        for index in 0..self.devices.len() {
            self.devices[index].next_us = start + turn(steady.period, place + index, count);
            self.schedule(index);
        }
        let mut none = 0;
        while began.elapsed() < steady.span {
            self.turn(Some(steady), &mut tally, progress, &mut none)?;
        }
        tally.busy = (thread_cpu() - cpu).as_secs_f64() / began.elapsed().as_secs_f64();
        self.devices.iter_mut().for_each(|one| (one.next_us, one.waits) = (u64::MAX, false));
        // Nothing new is due any more; what is under way gets its time.
        tally.took = steady.span;
        while tally.done < tally.due && began.elapsed() < steady.span + GRACE {
            let before = tally.done;
            self.turn(Some(steady), &mut tally, progress, &mut none)?;
            if tally.done > before {
                tally.took = began.elapsed();
            }
        }
        let now = self.now();
        for one in &mut self.devices {
            let missing = one.window.drain(..).map(|(_, due)| due).chain(one.backlog.drain(..));
            for due in missing {
                tally.note_missing(now.saturating_sub(due));
            }
        }
        self.note_overflow(&mut tally);
        Ok(tally)
    }

    /// Answers what comes until it is over.
    pub(super) fn serve(&mut self, over: &AtomicBool, progress: &Progress) -> Result<Tally> {
        let mut tally = Tally::default();
        let (began, cpu) = (Instant::now(), thread_cpu());
        let mut none = 0;
        while !over.load(Ordering::Relaxed) {
            self.turn(None, &mut tally, progress, &mut none)?;
        }
        tally.took = began.elapsed();
        tally.busy = (thread_cpu() - cpu).as_secs_f64() / tally.took.as_secs_f64();
        self.note_overflow(&mut tally);
        Ok(tally)
    }

    /// Some of what is due, then a wait if that was all, then what came.
    fn turn(
        &mut self,
        steady: Option<Steady<'_>>,
        tally: &mut Tally,
        progress: &Progress,
        left: &mut usize,
    ) -> Result<()> {
        let now = self.now();
        for _ in 0..DUE {
            let Some(next) = self.heap.peek_mut().filter(|next| next.0.0 <= now) else { break };
            let Reverse((due, index)) = PeekMut::pop(next);
            if self.devices[index as usize].due_us == due {
                self.devices[index as usize].due_us = u64::MAX;
                // Repetitions are due later.
                if self.devices[index as usize].opening == Some(due)
                    && tally.note_late(self.now().saturating_sub(due))
                {
                    progress.late.fetch_add(1, Ordering::Relaxed);
                }
                self.advance(index as usize, steady, tally, progress)?;
            }
        }
        let next = self.heap.peek().map_or(u64::MAX, |next| next.0.0);
        let wait = Duration::from_micros(next.saturating_sub(self.now()).min(10_000));
        self.road.wait(wait)?;
        let mut bytes = [0; MESSAGE_MAX];
        for _ in 0..TAKE {
            let Some((index, len)) = self.road.recv(&mut bytes) else { break };
            if self.is_lost() {
                continue;
            }
            let now = self.now();
            let Some(one) = self.devices.get_mut(index) else { continue };
            let mut opened = None;
            match one.device.handle_message(now, &mut bytes[..len]) {
                Ok(Event::Opened) => opened = one.opened(None),
                Ok(Event::Command { command, .. }) => one.device.send_result(command, 0, b"done"),
                _ => {}
            }
            while let Some(confirmed) = one.device.poll_confirmed() {
                opened = opened.or(one.opened(Some(confirmed.token)));
                let Some(at) = one.window.iter().position(|kept| kept.0 == confirmed.token) else {
                    continue;
                };
                let (_, due) = one.window.swap_remove(at);
                tally.note_done(now.saturating_sub(due));
                progress.confirmed.fetch_add(1, Ordering::Relaxed);
                if let Some(Steady { pacing: Loop::Closed, period, .. }) = steady
                    && one.waits
                {
                    one.waits = false;
                    one.next_us = now + u64::try_from(period.as_micros()).unwrap_or(u64::MAX / 2);
                }
            }
            if let Some(at) = opened {
                tally.note_done(now.saturating_sub(at));
                *left = left.saturating_sub(1);
                progress.open.fetch_add(1, Ordering::Relaxed);
            }
            self.advance(index, steady, tally, progress)?;
        }
        Ok(())
    }

    /// Hands over the readings that are due, sends what the device has to say, and notes when it is to be asked next.
    fn advance(
        &mut self,
        index: usize,
        steady: Option<Steady<'_>>,
        tally: &mut Tally,
        progress: &Progress,
    ) -> Result<()> {
        let now = self.now();
        if let Some(Steady { period, pacing, payloads, .. }) = steady {
            let one = &mut self.devices[index];
            let period = u64::try_from(period.as_micros()).unwrap_or(u64::MAX / 2).max(1);
            while one.next_us <= now {
                if tally.note_begun(now - one.next_us) {
                    progress.late.fetch_add(1, Ordering::Relaxed);
                }
                progress.sent.fetch_add(1, Ordering::Relaxed);
                match pacing {
                    Loop::Open => {
                        one.backlog.push_back(one.next_us);
                        one.next_us += period;
                    }
                    Loop::Closed => {
                        one.backlog.push_back(now);
                        (one.next_us, one.waits) = (u64::MAX, true);
                    }
                }
            }
            while let Some(&due) = one.backlog.front() {
                let payload = payloads.get(self.next_payload % payloads.len().max(1));
                let payload = payload.map_or(&[][..], Vec::as_slice);
                let Ok(token) = one.device.send_reading(now, 1, payload, true) else { break };
                one.backlog.pop_front();
                one.window.push((token, due));
                self.next_payload = self.next_payload.wrapping_add(1);
            }
        }
        let mut bytes = [0; MESSAGE_MAX];
        while let Some(len) = self.devices[index].device.poll_transmit(now, &mut bytes) {
            if !self.is_lost() {
                self.road.send(index, &bytes[..len])?;
                if let Some(overheard) = &self.overheard {
                    overheard.keep(&bytes[..len]);
                }
            }
        }
        self.schedule(index);
        Ok(())
    }

    fn schedule(&mut self, index: usize) {
        let one = &mut self.devices[index];
        let due = one.device.poll_timeout().unwrap_or(u64::MAX).min(one.next_us);
        if due < u64::MAX && due != one.due_us {
            one.due_us = due;
            self.heap.push(Reverse((due, u32::try_from(index).unwrap_or(u32::MAX))));
        } else {
            one.due_us = due;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use duet_device::Config;
    use duet_protocol::ec::SecretScalar;
    use duet_protocol::identity::{Fingerprint, Gateway};
    use duet_protocol::profile::{KeySource, Mode, Profile};

    use super::*;
    use crate::local::{Wanted, enrol};

    fn member(gateway: Gateway) -> Member {
        let transport = Transport::Datagram;
        let profile = Profile { mode: Mode::RegisteredId, source: KeySource::Ephemeral };
        let (identity, _) = enrol(&Wanted { name: "d".to_owned(), profile, transport }).unwrap();
        let config = Config { identity, gateway, profile, transport, fresh: 1 };
        Member { name: "d".to_owned(), config, seed: [1; 32] }
    }

    /// Devices that were all due a second ago must not keep this program from hearing the first answers, and count as late.
    #[test]
    fn it_listens_while_much_is_due_and_says_that_it_is_late() {
        let gateway = UdpSocket::bind("127.0.0.1:0").unwrap();
        gateway.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        let address = gateway.local_addr().unwrap();
        let key = SecretScalar::from_bytes(&[7; 32]).unwrap().public_key();
        let identity = Gateway { key_id: 0, fingerprint: Fingerprint([0; 32]), key };
        let members = (0..10 * DUE).map(|_| member(identity)).collect();
        let clock = Instant::now().checked_sub(Duration::from_secs(1)).unwrap();
        let mut share = Share::new(members, 0, address, clock, Loss(0), 1).unwrap();
        for index in 0..share.len() {
            share.devices[index].device.open(0);
            share.devices[index].opening = Some(0);
            share.schedule(index);
        }
        let (mut tally, progress, mut left) = (Tally::default(), Progress::default(), 10 * DUE);
        let mut bytes = [0; MESSAGE_MAX];
        for _ in 0..10 {
            share.turn(None, &mut tally, &progress, &mut left).unwrap();
            let asked = std::iter::from_fn(|| gateway.recv(&mut bytes).ok()).count();
            assert_eq!(asked, DUE);
        }
        assert_eq!((tally.late, tally.lateness.min() > 900_000), (10 * DUE as u64, true));
    }
}
