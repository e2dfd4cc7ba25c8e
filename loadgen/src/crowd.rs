//! A crowd: up to a hundred thousand devices over UDP in one process, for load. Each has an address of its own and the real
//! state machine; a thread drives its share of them from one socket ([`Hosts`]).
//!
//! # Open and closed loop
//!
//! Readings are due on a schedule that does not wait for the gateway, and their latency counts from the time when they
//! were *due*: a gateway that stalls for a second makes a second's worth of readings late, and the percentiles say so. In
//! a closed loop a device sends its next reading a pause after the last one was confirmed, so a stall costs each device
//! one late reading, however long it lasts: useful to find a capacity, useless to judge latency.
//!
//! # When the generator is the bottleneck
//!
//! The schedule is this program's to keep. When it is late itself in more than [`LATE_SHARE_MAX`] of the readings, or one
//! of its threads was busy for more than [`BUSY_MAX`] of the time, the run is not valid: it measured this program.

mod engine;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use duet_protocol::device::{Device, Event};
use duet_protocol::wire::MESSAGE_MAX;
use hdrhistogram::Histogram;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

pub use self::engine::Quick;
use crate::exchange::thread_cpu;
use crate::fleet::Member;
use crate::hosts::Hosts;

/// A reading that this program sends later than this after its time counts as late, µs.
const LATE_US: u64 = 5_000;
/// The share of late readings above which a run is not valid.
pub const LATE_SHARE_MAX: f64 = 0.01;
/// The share of a core above which a thread was the bottleneck.
pub const BUSY_MAX: f64 = 0.95;
/// The longest latency that is told apart, µs.
const LATENCY_MAX: u64 = 120_000_000;
/// Datagrams taken in before what is due gets its turn.
const TAKE: usize = 256;
/// How long a phase may wait for what is still missing at its end.
const GRACE: Duration = Duration::from_secs(5);

/// When a device's next reading is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loop {
    /// On a schedule.
    Open,
    /// A pause after the last one was confirmed.
    Closed,
}

/// What the devices do between two points in time.
#[derive(Clone, Copy, Debug)]
pub struct Steady<'a> {
    /// The time between two readings of one device.
    pub period: Duration,
    /// Whether latency counts from the schedule.
    pub pacing: Loop,
    /// How long.
    pub span: Duration,
    /// Payloads, taken in turn.
    pub payloads: &'a [Vec<u8>],
}

/// Datagrams that the link loses, of each million in each direction.
#[derive(Clone, Copy, Debug, Default)]
pub struct Loss(pub u32);

/// What all threads of a crowd have done so far, for whoever watches.
#[derive(Debug, Default)]
pub struct Progress {
    /// Devices with a channel.
    pub open: AtomicU64,
    /// Readings that were due and handed to their devices.
    pub sent: AtomicU64,
    /// Readings that the gateway confirmed.
    pub confirmed: AtomicU64,
    /// Readings that this program sent too late.
    pub late: AtomicU64,
}

/// How a phase went on one thread; adds up over threads.
#[derive(Clone, Debug)]
pub struct Tally {
    /// From the time something was due to its confirmation (or to the open channel), µs. What never came counts with the
    /// time that it was missing at the end.
    pub latency: Histogram<u64>,
    /// How late this program was, µs.
    pub lateness: Histogram<u64>,
    /// Things that were due.
    pub due: u64,
    /// Things that were done.
    pub done: u64,
    /// Things due that this program began late.
    pub late: u64,
    /// The busiest thread's share of its core.
    pub busy: f64,
    /// From the beginning to the last thing done.
    pub took: Duration,
}

impl Tally {
    fn new() -> Self {
        let histogram = || match Histogram::new_with_bounds(1, LATENCY_MAX, 3) {
            Ok(histogram) => histogram,
            Err(_) => unreachable!("the bounds are in order"),
        };
        let (latency, lateness) = (histogram(), histogram());
        Self { latency, lateness, due: 0, done: 0, late: 0, busy: 0.0, took: Duration::ZERO }
    }

    fn add(&mut self, other: &Self) -> Result<()> {
        self.latency.add(&other.latency)?;
        self.lateness.add(&other.lateness)?;
        self.due += other.due;
        self.done += other.done;
        self.late += other.late;
        self.busy = self.busy.max(other.busy);
        self.took = self.took.max(other.took);
        Ok(())
    }

    /// The share of what was due that this program began late.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a share")]
    pub fn late_share(&self) -> f64 {
        if self.due == 0 { 0.0 } else { self.late as f64 / self.due as f64 }
    }

    /// Whether the gateway was measured, and not this program.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.late_share() <= LATE_SHARE_MAX && self.busy <= BUSY_MAX
    }
}

struct One {
    device: Device<Quick>,
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
    /// Its valid entry in the heap.
    due_us: u64,
}

/// One thread's share of a crowd.
struct Share {
    hosts: Hosts,
    gateway: SocketAddr,
    devices: Vec<One>,
    heap: BinaryHeap<Reverse<(u64, u32)>>,
    clock: Instant,
    loss: Loss,
    random: fastrand::Rng,
    next_payload: usize,
}

/// Devices, shared among threads.
pub struct Crowd {
    shares: Vec<Share>,
    /// What they have done so far.
    pub progress: Arc<Progress>,
}

impl Crowd {
    /// Makes the devices; nothing is sent yet. `seed` decides which datagrams a lossy link loses.
    ///
    /// # Errors
    /// When a socket cannot be had.
    pub fn new(
        members: Vec<Member>,
        gateway: SocketAddr,
        threads: usize,
        loss: Loss,
        seed: u64,
    ) -> Result<Self> {
        let clock = Instant::now();
        let each = members.len().div_ceil(threads.max(1)).max(1);
        let mut members = members.into_iter();
        let mut shares = Vec::new();
        loop {
            let devices: Vec<_> = members
                .by_ref()
                .take(each)
                .map(|Member { config, seed, .. }| One {
                    device: Device::new(Quick, config, seed),
                    backlog: VecDeque::new(),
                    window: Vec::new(),
                    next_us: u64::MAX,
                    waits: false,
                    opening: None,
                    due_us: u64::MAX,
                })
                .collect();
            if devices.is_empty() {
                break;
            }
            let hosts = Hosts::bind().context("no UDP socket for the devices")?;
            let random = fastrand::Rng::with_seed(seed.wrapping_add(shares.len() as u64));
            let heap = BinaryHeap::with_capacity(2 * devices.len());
            shares.push(Share {
                hosts,
                gateway,
                devices,
                heap,
                clock,
                loss,
                random,
                next_payload: 0,
            });
        }
        Ok(Self { shares, progress: Arc::default() })
    }

    /// How many devices there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shares.iter().map(|share| share.devices.len()).sum()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.shares.is_empty()
    }

    /// Every device opens a new channel, one after the other over `ramp`; waits for all, at most `limit`. Latency is
    /// from the time when a device was to begin to its open channel.
    ///
    /// # Errors
    /// When waiting for the sockets fails.
    pub fn open(&mut self, ramp: Duration, limit: Duration) -> Result<Tally> {
        self.phase(|share, place, count, progress| share.open(ramp, limit, place, count, progress))
    }

    /// Every device sends readings. Latency is from the time when a reading was due to its confirmation.
    ///
    /// # Errors
    /// When waiting for the sockets fails.
    pub fn steady(&mut self, steady: Steady<'_>) -> Result<Tally> {
        self.phase(|share, place, count, progress| share.steady(steady, place, count, progress))
    }

    /// Runs a phase on all threads: `work` gets a share, its first device's number, the number of all devices.
    fn phase(
        &mut self,
        work: impl Fn(&mut Share, usize, usize, &Progress) -> Result<Tally> + Sync,
    ) -> Result<Tally> {
        let count = self.len();
        let (work, progress) = (&work, &*self.progress);
        let mut place = 0;
        let tallies: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = self
                .shares
                .iter_mut()
                .map(|share| {
                    let first = place;
                    place += share.devices.len();
                    scope.spawn(move || work(share, first, count, progress))
                })
                .collect();
            threads.into_iter().map(std::thread::ScopedJoinHandle::join).collect()
        });
        let mut sum = Tally::new();
        for tally in tallies {
            sum.add(&tally.map_err(|_| anyhow::anyhow!("a thread of the crowd panicked"))??)?;
        }
        Ok(sum)
    }
}

/// The part of `span` that has gone by when it is `place`'s turn among `count`.
fn turn(span: Duration, place: usize, count: usize) -> u64 {
    let micros = span.as_micros() * place as u128 / count.max(1) as u128;
    u64::try_from(micros).unwrap_or(u64::MAX)
}

impl Share {
    fn now(&self) -> u64 {
        u64::try_from(self.clock.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn is_lost(&mut self) -> bool {
        self.loss.0 > 0 && self.random.u32(..1_000_000) < self.loss.0
    }

    fn open(
        &mut self,
        ramp: Duration,
        limit: Duration,
        place: usize,
        count: usize,
        progress: &Progress,
    ) -> Result<Tally> {
        let mut tally = Tally::new();
        let (began, cpu) = (Instant::now(), thread_cpu());
        let start = self.now();
        let mut left = self.devices.len();
        tally.due = left as u64;
        for index in 0..left {
            let at = start + turn(ramp, place + index, count);
            let one = &mut self.devices[index];
            one.opening = Some(at);
            one.device.open(at);
            self.schedule(index);
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
                tally.latency.saturating_record(now.saturating_sub(at).min(LATENCY_MAX));
            }
        }
        tally.busy = (thread_cpu() - cpu).as_secs_f64() / began.elapsed().as_secs_f64();
        Ok(tally)
    }

    fn steady(
        &mut self,
        steady: Steady<'_>,
        place: usize,
        count: usize,
        progress: &Progress,
    ) -> Result<Tally> {
        let mut tally = Tally::new();
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
        while tally.done < tally.due && began.elapsed() < steady.span + GRACE {
            self.turn(Some(steady), &mut tally, progress, &mut none)?;
        }
        tally.took = began.elapsed().min(steady.span);
        let now = self.now();
        for one in &mut self.devices {
            let missing = one.window.drain(..).map(|(_, due)| due).chain(one.backlog.drain(..));
            for due in missing {
                tally.latency.saturating_record(now.saturating_sub(due).min(LATENCY_MAX));
            }
        }
        Ok(tally)
    }

    /// Everything that is due, then everything that came, then a wait.
    fn turn(
        &mut self,
        steady: Option<Steady<'_>>,
        tally: &mut Tally,
        progress: &Progress,
        left: &mut usize,
    ) -> Result<()> {
        let now = self.now();
        while let Some(&Reverse((due, index))) = self.heap.peek() {
            if due > now {
                break;
            }
            self.heap.pop();
            if self.devices[index as usize].due_us == due {
                self.devices[index as usize].due_us = u64::MAX;
                self.advance(index as usize, steady, tally, progress);
            }
        }
        let next = self.heap.peek().map_or(u64::MAX, |next| next.0.0);
        let wait = Duration::from_micros(next.saturating_sub(self.now()).min(10_000));
        let timeout = Timespec::try_from(wait).unwrap_or_default();
        match poll(&mut [PollFd::new(&self.hosts, PollFlags::IN)], Some(&timeout)) {
            Err(rustix::io::Errno::INTR) | Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) => return Err(error).context("cannot wait for the crowd's socket"),
        }
        let mut bytes = [0; MESSAGE_MAX];
        for _ in 0..TAKE {
            let Ok((host, len)) = self.hosts.recv(&mut bytes) else { break };
            if self.is_lost() {
                continue;
            }
            let (index, now) = (host as usize, self.now());
            let Some(one) = self.devices.get_mut(index) else { continue };
            match one.device.handle_message(now, &mut bytes[..len]) {
                Ok(Event::Opened) => {
                    if let Some(at) = one.opening.take() {
                        tally.latency.saturating_record(now.saturating_sub(at).min(LATENCY_MAX));
                        tally.done += 1;
                        *left = left.saturating_sub(1);
                        progress.open.fetch_add(1, Ordering::Relaxed);
                    }
                }
                Ok(Event::Command { command, .. }) => one.device.send_result(command, 0, b"done"),
                _ => {}
            }
            while let Some(confirmed) = one.device.poll_confirmed() {
                let Some(at) = one.window.iter().position(|kept| kept.0 == confirmed.token) else {
                    continue;
                };
                let (_, due) = one.window.swap_remove(at);
                tally.latency.saturating_record(now.saturating_sub(due).min(LATENCY_MAX));
                tally.done += 1;
                progress.confirmed.fetch_add(1, Ordering::Relaxed);
                if let Some(Steady { pacing: Loop::Closed, period, .. }) = steady
                    && one.waits
                {
                    one.waits = false;
                    one.next_us = now + u64::try_from(period.as_micros()).unwrap_or(u64::MAX / 2);
                }
            }
            self.advance(index, steady, tally, progress);
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
    ) {
        let now = self.now();
        if let Some(Steady { period, pacing, payloads, .. }) = steady {
            let one = &mut self.devices[index];
            let period = u64::try_from(period.as_micros()).unwrap_or(u64::MAX / 2).max(1);
            while one.next_us <= now {
                let late = now - one.next_us;
                tally.due += 1;
                tally.lateness.saturating_record(late.min(LATENCY_MAX));
                if late > LATE_US {
                    tally.late += 1;
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
                // A full send buffer loses the datagram, as a network would.
                let _ = self.hosts.send(
                    u32::try_from(index).unwrap_or(u32::MAX),
                    self.gateway,
                    &bytes[..len],
                );
            }
        }
        self.schedule(index);
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
