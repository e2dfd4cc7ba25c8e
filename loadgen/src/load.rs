//! Load on a gateway of one's own: what is asked for, how it went, and whether the figures mean anything.

use std::fmt;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use duet_protocol::profile::{Profile, Transport};
use hdrhistogram::Histogram;
use schemars::JsonSchema;
use serde::Serialize;

use crate::crowd::{BUSY_MAX, Crowd, LATE_SHARE_MAX, Loop, Loss, Progress, Steady, Tally};
use crate::local::{LocalGateway, Wanted};
use crate::process_clock::process_memory;

/// How long devices may take to get their channels after the last one has begun.
const OPEN_LIMIT: Duration = Duration::from_secs(60);
/// The most rates that a search tries.
const RATES_MAX: u32 = 20;

/// What the devices do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Scenario {
    /// They connect at their pace, then send readings.
    Steady,
    /// They all connect in the same instant.
    HandshakeStorm,
    /// They connect at their pace; then all of them connect anew in the same instant.
    ReconnectStorm,
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What the devices do.
    pub scenario: Scenario,
    /// How many there are.
    pub devices: u32,
    /// Their profile.
    pub profile: Profile,
    /// How many begin to connect each second, outside of storms.
    pub connect_per_s: u32,
    /// Readings a second, of all together.
    pub readings_per_s: u32,
    /// Whether latency counts from the schedule.
    pub pacing: Loop,
    /// How long readings are sent before the measurement.
    pub warm_up: Duration,
    /// How long they are measured.
    pub span: Duration,
    /// Payloads, taken in turn.
    pub payloads: Vec<Vec<u8>>,
    /// What the link loses.
    pub loss: Loss,
    /// Of the devices' randomness and of the losses.
    pub seed: u64,
    /// Threads of this program.
    pub threads: usize,
    /// Shards of the gateway.
    pub shards: usize,
}

/// Latencies, ms.
#[derive(Clone, Copy, Debug, Default, Serialize, JsonSchema)]
pub struct Latency {
    /// Half are below.
    pub p50: f64,
    /// 90 of 100 are below.
    pub p90: f64,
    /// 99 of 100 are below.
    pub p99: f64,
    /// 999 of 1,000 are below.
    pub p999: f64,
    /// The largest.
    pub max: f64,
}

impl Latency {
    #[expect(clippy::cast_precision_loss, reason = "microseconds of minutes")]
    fn of(histogram: &Histogram<u64>) -> Self {
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
        Self { p50: at(0.5), p90: at(0.9), p99: at(0.99), p999: at(0.999), max: at(1.0) }
    }
}

/// How a phase went.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
pub struct Phase {
    /// What was due: channels or confirmed readings.
    pub due: u64,
    /// What was done.
    pub done: u64,
    /// From its beginning to the last thing done.
    pub seconds: f64,
    /// Done in each second of it.
    pub per_s: f64,
    /// From the time when a thing was due; what never came counts with the time that it was missing.
    pub latency_ms: Latency,
    /// The gateway's processor time for each thing done, µs.
    pub gateway_cpu_us: f64,
}

/// What this program needed itself.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
pub struct Generator {
    /// The share of its core that its busiest thread used.
    pub busy: f64,
    /// The share of readings that it sent more than 5 ms after their time.
    pub late_share: f64,
    /// How late 99 of 100 readings were at most, ms.
    pub late_p99_ms: f64,
    /// Memory in RAM for each device, bytes.
    pub bytes_a_device: u64,
}

/// A second of a run.
#[derive(Clone, Copy, Debug, Default, Serialize, JsonSchema)]
pub struct Second {
    /// Since the start.
    pub at_s: u64,
    /// Channels opened so far.
    pub open: u64,
    /// Readings sent so far.
    pub sent: u64,
    /// Readings confirmed so far.
    pub confirmed: u64,
    /// Readings that were sent late so far.
    pub late: u64,
}

/// How a run went.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Report {
    /// Of this structure.
    pub schema: u32,
    /// What the devices did.
    pub scenario: Scenario,
    /// How many there were.
    pub devices: u32,
    /// Their profile.
    pub profile: String,
    /// Readings a second that were asked for; 0 in storms.
    pub readings_per_s: u32,
    /// `open` or `closed`.
    pub pacing: String,
    /// Datagrams that the link lost, of a million each way.
    pub loss_ppm: u32,
    /// The run's seed.
    pub seed: u64,
    /// Whether the gateway was measured, and not this program.
    pub valid: bool,
    /// Why not.
    pub invalid_because: Vec<String>,
    /// The devices' first channels.
    pub connect: Phase,
    /// What the scenario is about.
    pub measured: Phase,
    /// This program.
    pub generator: Generator,
    /// The gateway's memory for each session, registry and tables included, bytes.
    pub gateway_bytes_a_session: u64,
    /// The run second by second.
    pub series: Vec<Second>,
}

/// A run's figures, and its latencies whole.
pub struct Outcome {
    /// The figures.
    pub report: Report,
    /// Of what was measured, µs.
    pub latency: Histogram<u64>,
}

/// Prints how it goes on standard error, and keeps the series.
struct Watch {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Vec<Second>>,
}

impl Watch {
    fn begin(progress: Arc<Progress>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let (began, terminal) = (Instant::now(), io::stderr().is_terminal());
            let mut series: Vec<Second> = Vec::new();
            while !flag.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(100));
                let at_s = began.elapsed().as_secs();
                if series.last().is_some_and(|last| last.at_s >= at_s) {
                    continue;
                }
                let [open, sent, confirmed, late] =
                    [&progress.open, &progress.sent, &progress.confirmed, &progress.late]
                        .map(|count| count.load(Ordering::Relaxed));
                let before = series.last().copied().unwrap_or_default();
                series.push(Second { at_s, open, sent, confirmed, late });
                let line = format!(
                    "{at_s:>4} s  {open:>7} channels  {:>7} readings/s  {:>7} confirmed/s  {:>7} under way  {late} late",
                    sent - before.sent,
                    confirmed - before.confirmed,
                    sent - confirmed.min(sent),
                );
                // Nobody needs to read this.
                let _ = match (terminal, at_s % 5) {
                    (true, _) => write!(io::stderr(), "\r{line}\u{1b}[K"),
                    (false, 0) => writeln!(io::stderr(), "{line}"),
                    (false, _) => Ok(()),
                };
            }
            if terminal {
                let _ = writeln!(io::stderr());
            }
            series
        });
        Self { stop, thread }
    }

    fn end(self) -> Vec<Second> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_default()
    }
}

/// Finds the highest rate that holds: doubles it until it does not, then halves the gap until that is an eighth.
struct Search {
    first: u32,
    good: u32,
    bad: Option<u32>,
    tried: u32,
}

impl Search {
    const fn from(first: u32) -> Self {
        Self { first, good: 0, bad: None, tried: 0 }
    }

    /// The rate to try next.
    fn next(&self) -> Option<u32> {
        let (good, rate) = match (self.good, self.bad) {
            (0, None) => (0, self.first),
            (good, None) => (good, good.saturating_mul(2)),
            (good, Some(bad)) if bad - good <= bad / 8 => return None,
            (good, Some(bad)) => (good, u32::midpoint(good, bad)),
        };
        (rate > good && self.tried < RATES_MAX).then_some(rate)
    }

    fn tell(&mut self, rate: u32, holds: bool) {
        self.tried += 1;
        if holds {
            self.good = rate;
        } else {
            self.bad = Some(rate);
        }
    }
}

/// A gateway and its devices, ready.
pub struct Bench {
    gateway: LocalGateway,
    crowd: Crowd,
    plan: Plan,
    /// Memory before there were sessions and devices, bytes.
    before: [u64; 2],
}

impl Bench {
    /// Registers the devices and starts the gateway.
    ///
    /// # Errors
    /// When either refuses; the message says what to do.
    pub fn start(program: &Path, dir: &Path, plan: Plan) -> Result<Self> {
        ensure!(plan.devices > 0, "--devices must be at least 1");
        let wanted: Vec<_> = (0..plan.devices)
            .map(|number| Wanted {
                name: format!("device-{number:06}"),
                profile: plan.profile,
                transport: Transport::Datagram,
            })
            .collect();
        let (gateway, mut members) = LocalGateway::start(program, dir, plan.shards, &wanted)?;
        for (number, member) in members.iter_mut().enumerate() {
            member.seed[..8].copy_from_slice(&plan.seed.to_be_bytes());
            member.seed[8..16].copy_from_slice(&number.to_be_bytes());
        }
        let before = [process_memory(gateway.pid())?, process_memory(std::process::id())?];
        let crowd = Crowd::new(members, gateway.address, plan.threads, plan.loss, plan.seed)?;
        Ok(Self { gateway, crowd, plan, before })
    }

    /// The gateway's process.
    #[must_use]
    pub fn gateway_pid(&self) -> u32 {
        self.gateway.pid()
    }

    /// Does what was asked for, once.
    ///
    /// # Errors
    /// When the system refuses, or not every device gets a channel.
    pub fn run(&mut self) -> Result<Outcome> {
        let watch = Watch::begin(Arc::clone(&self.crowd.progress));
        let phases = self.phases();
        let series = watch.end();
        let ((connect, _), (measured, tally)) = phases?;
        let plan = &self.plan;
        let mut invalid_because = Vec::new();
        if tally.late_share() > LATE_SHARE_MAX {
            invalid_because.push(format!(
                "{:.1}% of the readings were sent more than 5 ms late by this program: use fewer, or more cores",
                tally.late_share() * 100.0
            ));
        }
        if tally.busy > BUSY_MAX {
            invalid_because.push(format!(
                "a thread of this program was busy for {:.0}% of the time: use a lower rate, or more --threads",
                tally.busy * 100.0
            ));
        }
        let devices = u64::from(plan.devices);
        let used = |pid, before: u64| {
            Ok::<_, anyhow::Error>(process_memory(pid)?.saturating_sub(before) / devices)
        };
        let report = Report {
            schema: 1,
            scenario: plan.scenario,
            devices: plan.devices,
            profile: plan.profile.name().to_owned(),
            readings_per_s: if plan.scenario == Scenario::Steady { plan.readings_per_s } else { 0 },
            pacing: if plan.pacing == Loop::Open { "open" } else { "closed" }.to_owned(),
            loss_ppm: plan.loss.0,
            seed: plan.seed,
            valid: invalid_because.is_empty(),
            invalid_because,
            connect,
            measured,
            generator: Generator {
                busy: tally.busy,
                late_share: tally.late_share(),
                late_p99_ms: Latency::of(&tally.lateness).p99,
                bytes_a_device: used(std::process::id(), self.before[1])?,
            },
            gateway_bytes_a_session: used(self.gateway.pid(), self.before[0])?,
            series,
        };
        Ok(Outcome { report, latency: tally.latency })
    }

    /// Searches the highest rate of readings at which `p99_ms` holds and all are confirmed; what was tried, in order.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn find_max(&mut self, p99_ms: f64) -> Result<Vec<(u32, Phase, bool)>> {
        self.open(Duration::from_secs(self.plan.devices.into()) / self.plan.connect_per_s.max(1))?;
        let (mut tried, mut search) = (Vec::new(), Search::from(self.plan.readings_per_s));
        while let Some(rate) = search.next() {
            self.plan.readings_per_s = rate;
            let (phase, tally) = self.readings(self.plan.span)?;
            let holds =
                phase.latency_ms.p99 <= p99_ms && phase.done == phase.due && tally.is_valid();
            search.tell(rate, holds);
            tried.push((rate, phase, holds));
        }
        Ok(tried)
    }

    /// Lets the gateway drain and end.
    ///
    /// # Errors
    /// When it does not end well.
    pub fn stop(self) -> Result<()> {
        self.gateway.stop()
    }

    fn phases(&mut self) -> Result<((Phase, Tally), (Phase, Tally))> {
        let ramp = Duration::from_secs(self.plan.devices.into()) / self.plan.connect_per_s.max(1);
        match self.plan.scenario {
            Scenario::HandshakeStorm => {
                let storm = self.open(Duration::ZERO)?;
                Ok((storm.clone(), storm))
            }
            Scenario::ReconnectStorm => Ok((self.open(ramp)?, self.open(Duration::ZERO)?)),
            Scenario::Steady => {
                let connect = self.open(ramp)?;
                if !self.plan.warm_up.is_zero() {
                    self.readings(self.plan.warm_up)?;
                }
                Ok((connect, self.readings(self.plan.span)?))
            }
        }
    }

    fn open(&mut self, ramp: Duration) -> Result<(Phase, Tally)> {
        let (gateway, crowd) = (&self.gateway, &mut self.crowd);
        let measured = measured(gateway, || crowd.open(ramp, OPEN_LIMIT))?;
        let missing = measured.0.due - measured.0.done;
        ensure!(
            missing == 0,
            "{missing} of {} devices got no channel within {} s: connect fewer in a second (--connect-rate), or see \
             what the gateway counts in duet_drops_total",
            measured.0.due,
            OPEN_LIMIT.as_secs()
        );
        Ok(measured)
    }

    fn readings(&mut self, span: Duration) -> Result<(Phase, Tally)> {
        let (plan, crowd) = (&self.plan, &mut self.crowd);
        let period = Duration::from_secs(plan.devices.into()) / plan.readings_per_s.max(1);
        let (pacing, payloads) = (plan.pacing, plan.payloads.as_slice());
        measured(&self.gateway, || crowd.steady(Steady { period, pacing, span, payloads }))
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of a run")]
fn measured(
    gateway: &LocalGateway,
    work: impl FnOnce() -> Result<Tally>,
) -> Result<(Phase, Tally)> {
    let before = gateway.cpu()?;
    let tally = work()?;
    let cpu = gateway.cpu()?.saturating_sub(before);
    let (done, seconds) = (tally.done.max(1) as f64, tally.took.as_secs_f64());
    let phase = Phase {
        due: tally.due,
        done: tally.done,
        seconds,
        per_s: tally.done as f64 / seconds.max(1e-6),
        latency_ms: Latency::of(&tally.latency),
        gateway_cpu_us: cpu.as_secs_f64() * 1e6 / done,
    };
    Ok((phase, tally))
}

impl Outcome {
    /// Writes the latencies as an HDR interval log, which HdrHistogram's tools read.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write_hdr(&self, to: &Path) -> Result<()> {
        use hdrhistogram::serialization::V2DeflateSerializer;
        use hdrhistogram::serialization::interval_log::IntervalLogWriterBuilder;
        let mut file = std::fs::File::create(to).with_context(|| to.display().to_string())?;
        let mut serializer = V2DeflateSerializer::new();
        let mut log = IntervalLogWriterBuilder::new()
            .add_comment("latency from the time when each was due, microseconds")
            .begin_log_with(&mut file, &mut serializer)?;
        let span = Duration::from_secs_f64(self.report.measured.seconds);
        log.write_histogram(&self.latency, Duration::ZERO, span, None)
            .map_err(|error| anyhow::anyhow!("{}: {error:?}", to.display()))
    }
}

impl Report {
    /// The run second by second, as CSV with a head line.
    #[must_use]
    pub fn csv(&self) -> String {
        let line = |one: &Second| {
            format!("{},{},{},{},{}\n", one.at_s, one.open, one.sent, one.confirmed, one.late)
        };
        std::iter::once("at_s,open,sent,confirmed,late\n".to_owned())
            .chain(self.series.iter().map(line))
            .collect()
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Latency { p50, p90, p99, p999, max } = self.latency_ms;
        writeln!(
            f,
            "{} of {} in {:.2} s, {:.0}/s; gateway CPU {:.1} µs each",
            self.done, self.due, self.seconds, self.per_s, self.gateway_cpu_us
        )?;
        write!(
            f,
            "             ms: p50 {p50:.1}  p90 {p90:.1}  p99 {p99:.1}  p99.9 {p999:.1}  max {max:.1}"
        )
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "connected    {}", self.connect)?;
        let what = if self.scenario == Scenario::Steady { "confirmed" } else { "storm" };
        writeln!(f, "{what:<12} {}", self.measured)?;
        let Generator { busy, late_share, late_p99_ms, bytes_a_device } = self.generator;
        writeln!(
            f,
            "generator    busiest thread {:.0}% of its core, {:.2}% sent late, p99 late by {late_p99_ms:.1} ms, {bytes_a_device} bytes a device",
            busy * 100.0,
            late_share * 100.0
        )?;
        writeln!(f, "gateway      {} bytes a session", self.gateway_bytes_a_session)?;
        match self.invalid_because.as_slice() {
            [] => write!(f, "valid        the gateway was measured, not this program"),
            reasons => write!(f, "NOT VALID    {}", reasons.join("; ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_schema_is_up_to_date() {
        crate::schema::assert_published::<Report>("load.json");
    }

    #[test]
    fn a_search_comes_within_an_eighth_of_the_limit() {
        for limit in [1, 7, 1_000, 45_678, 3_000_000] {
            let mut search = Search::from(1_000);
            while let Some(rate) = search.next() {
                search.tell(rate, rate <= limit);
            }
            assert!(search.good <= limit && search.good * 8 + 8 >= limit * 7, "{limit}");
        }
    }
}
