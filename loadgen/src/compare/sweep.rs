//! Does the jobs: one at a time for processor time and memory, then many at once over all cells.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use crate::link::{Emulator, Verdict, judge};
use crate::local::LocalGateway;
use crate::relay::Relay;

use super::contender::{Contender, Kind};
use super::{Job, LIMIT, Road, Settings};

/// The round-trip time of the path on which a process's start is told apart from its work, ms.
pub(super) const APART_MS: u64 = 40;
/// What a server gets to finish its work after a job, before its clock is read.
const SETTLE: Duration = Duration::from_millis(3);
/// The pause before a device whose connection failed tries again.
const PAUSE: Duration = Duration::from_millis(20);
/// The first path that belongs to a cell.
const FIRST_CELL: usize = 2;

/// All that jobs need.
pub(super) struct Site<'a> {
    pub(super) gateway: &'a LocalGateway,
    pub(super) link: Option<&'a Emulator>,
    pub(super) settings: &'a Settings,
    pub(super) tell: &'a (dyn Fn(&str) + Sync),
}

/// One job of the sweep.
pub(super) struct Outcome {
    pub(super) contender: usize,
    /// Its place in [`Settings::cells`].
    pub(super) cell: usize,
    /// To the confirmation; `None` when there was none in time.
    pub(super) time: Option<Duration>,
    /// The judge's; `None` without a link or a confirmation.
    pub(super) verdict: Option<Verdict>,
}

/// One job by itself.
pub(super) struct Solo {
    pub(super) job: Job,
    pub(super) server_cpu: Duration,
}

impl<'a> Site<'a> {
    fn road(&self, contender: &Contender, path: usize) -> Road<'a> {
        let straight = Road::loopback(contender.address(self.gateway));
        match self.link {
            Some(link) => Road { from: link.client_address(path), link: Some(link), ..straight },
            None => straight,
        }
    }

    /// What the judge says of a job that ended well.
    fn verdict(&self, contender: &Contender, job: &Job, round_trip_us: u64) -> Option<Verdict> {
        let link = self.link?;
        let crossings = link.take(contender.entry.over_tcp(), job.local);
        judge(&crossings, link.us(job.confirmed), round_trip_us, contender.speech())
    }

    /// What was recorded of a job that is not judged goes.
    fn forget(&self, contender: &Contender, job: &Job) {
        if let Some(link) = self.link {
            drop(link.take(contender.entry.over_tcp(), job.local));
        }
    }

    /// Jobs one after the other, contenders in turn, for each contender.
    pub(super) fn solo(&self, contenders: &[Contender]) -> Result<Vec<Vec<Solo>>> {
        let mut all: Vec<Vec<Solo>> = contenders.iter().map(|_| Vec::new()).collect();
        // The first job of each is not counted: caches, tables and page faults of the start.
        for round in 0..=self.settings.repetitions {
            for (contender, solos) in contenders.iter().zip(&mut all) {
                let apart = matches!(contender.entry.kind, Kind::Dtls);
                let road = self.road(contender, usize::from(apart));
                let solo = self.one(contender, &road);
                let solo = solo.with_context(|| contender.entry.name)?;
                if round > 0 {
                    solos.push(solo);
                }
            }
        }
        Ok(all)
    }

    fn one(&self, contender: &Contender, road: &Road<'_>) -> Result<Solo> {
        let prepared = contender.prepare(&self.road(contender, 0))?;
        std::thread::sleep(SETTLE);
        let began = contender.cpu(self.gateway)?;
        let (job, cpu) = contender.job(self.link, prepared, road)?;
        std::thread::sleep(SETTLE);
        let server_cpu = match cpu {
            Some(cpu) => cpu,
            None => contender.cpu(self.gateway)?.saturating_sub(began),
        };
        self.forget(contender, &job);
        Ok(Solo { job, server_cpu })
    }

    /// The memory that one more session takes, bytes, where it can be seen. All sessions stay to the end: what one
    /// contender freed, the next one would be given.
    pub(super) fn memory(&self, contenders: &[Contender]) -> Result<Vec<Option<f64>>> {
        let mut held = Vec::new();
        let mut each = |contender: &Contender| {
            let Some(before) = contender.memory(self.gateway) else { return Ok(None) };
            for _ in 0..self.settings.sessions {
                let road = Road { keep: true, ..self.road(contender, 0) };
                let prepared = contender.prepare(&self.road(contender, 0))?;
                let (job, _) = contender.job(self.link, prepared, &road)?;
                self.forget(contender, &job);
                held.push(job);
            }
            let after = contender.memory(self.gateway).context("the server has ended")?;
            #[expect(clippy::cast_precision_loss, reason = "memory is far below 2^53 bytes")]
            let session = after.saturating_sub(before) as f64 / self.settings.sessions as f64;
            anyhow::Ok(Some(session))
        };
        contenders.iter().map(|one| each(one).with_context(|| one.entry.name)).collect()
    }

    /// All cells, many jobs at once, in a random order so that each moment has some of each.
    pub(super) fn sweep(&self, contenders: &[Contender]) -> Result<Vec<Outcome>> {
        let cells = self.settings.cells();
        let mut relays = Vec::new();
        if self.link.is_none() {
            for contender in contenders {
                relays.push(self.relays(contender)?);
            }
        }
        let mut tasks = Vec::new();
        for contender in 0..contenders.len() {
            for cell in 0..cells.len() {
                tasks.extend((0..self.settings.samples).map(|_| (contender, cell)));
            }
        }
        fastrand::Rng::with_seed(self.settings.seed).shuffle(&mut tasks);
        let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        let began = Instant::now();
        let work = || {
            if let Some(link) = self.link {
                link.client.enter()?;
            }
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let Some((place, cell)) = tasks.get(number) else { break };
                let due = Duration::from_secs(number as u64) / self.settings.pace.max(1);
                std::thread::sleep(due.saturating_sub(began.elapsed()));
                let contender = &contenders[*place];
                let mut road = self.road(contender, FIRST_CELL + cell);
                if let Some(relays) = relays.get(*place) {
                    road.to = relays[*cell].address;
                }
                let outcome = self.patient(*place, contender, *cell, cells[*cell].0, road);
                let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                done.push(outcome);
                if done.len().is_multiple_of(100) {
                    (self.tell)(&format!("{} of {} jobs over all cells", done.len(), tasks.len()));
                }
            }
            anyhow::Ok(())
        };
        std::thread::scope(|scope| {
            let count = self.settings.in_flight.clamp(1, tasks.len().max(1));
            let workers: Vec<_> = (0..count).map(|_| scope.spawn(work)).collect();
            let mut ended = workers.into_iter().map(std::thread::ScopedJoinHandle::join);
            ended.try_for_each(|one| one.map_err(|_| anyhow!("a job panicked"))?)
        })?;
        Ok(done.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// One delaying relay for each cell, for a contender.
    fn relays(&self, contender: &Contender) -> Result<Vec<Relay>> {
        let (to, tcp) = (contender.address(self.gateway), contender.entry.over_tcp());
        let relay = |(round_trip_ms, _): (u64, f64)| {
            let one_way = Duration::from_millis(round_trip_ms) / 2;
            if tcp { Relay::streams(to, one_way) } else { Relay::datagrams(to, one_way) }
        };
        self.settings.cells().into_iter().map(relay).collect()
    }

    /// A job of a device that tries again as long as it may.
    fn patient(
        &self,
        place: usize,
        contender: &Contender,
        cell: usize,
        round_trip_ms: u64,
        mut road: Road<'_>,
    ) -> Outcome {
        let failed = Outcome { contender: place, cell, time: None, verdict: None };
        let mut first = true;
        let mut began = Instant::now();
        road.until = began + LIMIT;
        loop {
            let job = contender
                .prepare(&self.road(contender, 0))
                .and_then(|prepared| contender.job(self.link, prepared, &road));
            match job {
                Ok((job, _)) => {
                    if first {
                        began = job.began;
                    }
                    let time = job.confirmed.saturating_duration_since(began);
                    let verdict = self.verdict(contender, &job, round_trip_ms * 1_000);
                    return Outcome {
                        time: Some(time).filter(|time| *time <= LIMIT),
                        verdict,
                        ..failed
                    };
                }
                Err(_) if Instant::now() + PAUSE < road.until => {
                    first = false;
                    std::thread::sleep(PAUSE);
                }
                Err(_) => return failed,
            }
        }
    }
}
