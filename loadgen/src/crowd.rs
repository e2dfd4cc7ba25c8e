//! A crowd: up to a hundred thousand devices in one process, for load. Each has an address of its own and the real state
//! machine; a thread drives its share of them, over UDP from one socket, over TCP with a connection for each.
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

mod overheard;
mod road;
mod share;
mod streams;
mod tally;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use anyhow::Result;

pub use self::overheard::Overheard;
use self::share::Share;
pub use self::tally::{BUSY_MAX, KNOCKING_SHARE_MAX, LATE_SHARE_MAX, Tally};
use crate::fleet::Member;

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
            let part: Vec<_> = members.by_ref().take(each).collect();
            if part.is_empty() {
                break;
            }
            let seed = seed.wrapping_add(shares.len() as u64);
            shares.push(Share::new(part, shares.len() * each, gateway, clock, loss, seed)?);
        }
        Ok(Self { shares, progress: Arc::default() })
    }

    /// Lets a stranger hear what the devices send from now on.
    pub fn overhear(&mut self, by: &Arc<Overheard>) {
        self.shares.iter_mut().for_each(|share| share.overhear(Arc::clone(by)));
    }

    /// From now on each device's HELLO carries this reading, and its channel counts as open once that is confirmed.
    pub fn carry(&mut self, reading: &[u8]) {
        self.shares.iter_mut().for_each(|share| share.carry(reading));
    }

    /// How many devices there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shares.iter().map(|share| share.len()).sum()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.shares.is_empty()
    }

    /// Every device opens a new channel, one after the other over `ramp`, or all at once if that is zero; waits for all,
    /// at most `limit`. Latency is from the time when a device was to begin to its open channel, or to the confirmation of the reading
    /// that its HELLO [carries](Self::carry).
    ///
    /// # Errors
    /// When waiting for the sockets fails.
    pub fn open(&mut self, ramp: Duration, limit: Duration) -> Result<Tally> {
        let together = Barrier::new(self.shares.len());
        self.phase(|share, place, count, progress| {
            share.open(ramp, limit, place, count, progress, &together)
        })
    }

    /// Every device sends readings. Latency is from the time when a reading was due to its confirmation.
    ///
    /// # Errors
    /// When waiting for the sockets fails.
    pub fn steady(&mut self, steady: Steady<'_>) -> Result<Tally> {
        self.phase(|share, place, count, progress| share.steady(steady, place, count, progress))
    }

    /// The devices answer what comes while `work` is done, and send nothing by themselves.
    ///
    /// # Errors
    /// When waiting for the sockets fails.
    pub fn during<T: Send>(&mut self, work: impl FnOnce() -> T + Send) -> Result<(T, Tally)> {
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let working = scope.spawn(|| {
                let end = OnDrop(&over);
                let done = work();
                drop(end);
                done
            });
            let tally = self.phase(|share, _, _, progress| share.serve(&over, progress));
            let done = working.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?;
            Ok((done, tally?))
        })
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
                    place += share.len();
                    scope.spawn(move || work(share, first, count, progress))
                })
                .collect();
            threads.into_iter().map(std::thread::ScopedJoinHandle::join).collect()
        });
        let mut sum = Tally::default();
        for tally in tallies {
            sum.add(&tally.map_err(|_| anyhow::anyhow!("a thread of the crowd panicked"))??)?;
        }
        Ok(sum)
    }
}

/// Raises a flag when dropped: at the end of work, and when it panics.
struct OnDrop<'a>(&'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
