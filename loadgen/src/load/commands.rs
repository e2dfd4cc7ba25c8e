//! Commands to devices at a rate, through the gateway's control interface. The schedule does not wait for results: a
//! command that found every connection busy counts from the time when it was due.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::control::{CONNECTIONS, Control};
use crate::crowd::{Progress, Tally};
use crate::exchange::thread_cpu;

/// The connections to use: the gateway's, but for two that are left to its operator.
const WORKERS: usize = CONNECTIONS - 2;
/// How long a device may take for a command.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Gives commands; keeps its connections from phase to phase.
pub(super) struct Commander {
    connections: Vec<Control>,
    devices: Vec<String>,
    /// The number of the next command, over all phases.
    next: u64,
    /// Commands without a result, by the gateway's reason.
    pub(super) refusals: BTreeMap<String, u64>,
}

/// A phase's schedule.
struct Schedule<'a> {
    began: Instant,
    period: Duration,
    count: u64,
    next: AtomicU64,
    payloads: &'a [Vec<u8>],
    progress: &'a Progress,
}

impl Commander {
    /// Connects. Never more connections than devices, since a device has one command at a time.
    ///
    /// # Errors
    /// When no gateway runs on the state directory.
    pub(super) fn new(state: &Path, devices: Vec<String>) -> Result<Self> {
        let count = WORKERS.min(devices.len());
        let connections = (0..count).map(|_| Control::connect(state)).collect::<Result<_>>()?;
        Ok(Self { connections, devices, next: 0, refusals: BTreeMap::new() })
    }

    /// Gives commands at a rate for some time, to each device in turn, and waits for their results.
    ///
    /// # Errors
    /// When the gateway does not answer on its control socket.
    pub(super) fn give(
        &mut self,
        per_s: u32,
        span: Duration,
        payloads: &[Vec<u8>],
        progress: &Progress,
    ) -> Result<Tally> {
        let per_s = per_s.max(1);
        let schedule = Schedule {
            began: Instant::now(),
            period: Duration::from_secs(1) / per_s,
            count: u64::try_from(span.as_micros() * u128::from(per_s) / 1_000_000)?,
            next: AtomicU64::new(0),
            payloads,
            progress,
        };
        let (schedule, devices, first) = (&schedule, &self.devices, self.next);
        let parts: Vec<_> = std::thread::scope(|scope| {
            let workers: Vec<_> = self
                .connections
                .iter_mut()
                .map(|control| scope.spawn(move || schedule.work(control, devices, first)))
                .collect();
            workers.into_iter().map(std::thread::ScopedJoinHandle::join).collect()
        });
        self.next += schedule.count;
        let mut sum = Tally { took: span, ..Tally::default() };
        for part in parts {
            let (tally, refusals) = part.ok().context("a thread of the commands panicked")??;
            sum.add(&tally)?;
            for (reason, count) in refusals {
                *self.refusals.entry(reason).or_default() += count;
            }
        }
        Ok(sum)
    }
}

impl Schedule<'_> {
    /// Takes one command after the other until none is left.
    fn work(
        &self,
        control: &mut Control,
        devices: &[String],
        first: u64,
    ) -> Result<(Tally, BTreeMap<String, u64>)> {
        let (mut tally, mut refusals) = (Tally::default(), BTreeMap::<_, u64>::new());
        let cpu = thread_cpu();
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number >= self.count {
                break;
            }
            let due = Duration::from_nanos(u64::try_from(self.period.as_nanos())? * number);
            let wait = due.saturating_sub(self.began.elapsed());
            // A command that finds no free connection in time waits for the gateway, not for this program.
            let was_free = !wait.is_zero();
            std::thread::sleep(wait);
            let late = if was_free { self.began.elapsed().saturating_sub(due) } else { wait };
            if tally.note_begun(micros(late)) {
                self.progress.late.fetch_add(1, Ordering::Relaxed);
            }
            self.progress.sent.fetch_add(1, Ordering::Relaxed);
            let place = usize::try_from(first + number)?;
            let payload = &self.payloads[place % self.payloads.len()];
            let answer = control.command(&devices[place % devices.len()], payload, TIMEOUT)?;
            let took = micros(self.began.elapsed().saturating_sub(due));
            match answer {
                Ok(_) => {
                    tally.note_done(took);
                    self.progress.confirmed.fetch_add(1, Ordering::Relaxed);
                }
                Err(reason) => {
                    tally.note_missing(took);
                    *refusals.entry(reason).or_default() += 1;
                }
            }
            tally.took = self.began.elapsed();
        }
        let elapsed = self.began.elapsed().as_secs_f64().max(1e-6);
        tally.busy = (thread_cpu() - cpu).as_secs_f64() / elapsed;
        Ok((tally, refusals))
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
