//! How a run of load went: its figures, as text, JSON, CSV and an HDR log.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use schemars::JsonSchema;
use serde::Serialize;

use super::{Hostile, Scenario};

/// The version of [`Report`]'s structure.
pub(crate) const SCHEMA: u32 = 3;

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
    pub(super) fn of(histogram: &Histogram<u64>) -> Self {
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
        Self { p50: at(0.5), p90: at(0.9), p99: at(0.99), p999: at(0.999), max: at(1.0) }
    }
}

/// How a phase went.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
pub struct Phase {
    /// What was due: channels, confirmed readings, or results of commands.
    pub due: u64,
    /// What was done.
    pub done: u64,
    /// From its beginning to the end of what was asked for, or to the last thing done if that came later.
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
    /// The share of what was due that it began more than 5 ms late.
    pub late_share: f64,
    /// How late 99 of 100 were begun at most, ms.
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
    /// Readings or commands sent so far.
    pub sent: u64,
    /// Readings confirmed, or results of commands, so far.
    pub confirmed: u64,
    /// What this program sent late so far.
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
    /// What carried their messages: `udp` or `tcp`.
    pub transport: String,
    /// Whether each HELLO carried a reading; a channel is then open when that is confirmed.
    pub early: bool,
    /// Readings, or commands, a second that were asked for; 0 in storms.
    pub per_s: u32,
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
    /// Commands without a result, warm-up included, by the gateway's reason.
    pub refusals: BTreeMap<String, u64>,
    /// What strangers sent beside, and got back, in the scenario `hostile`.
    pub hostile: Option<Hostile>,
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

impl fmt::Display for Hostile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sent, sent_bytes, per_s, back, back_bytes, addresses, amplified, .. } = self;
        let total: u64 = sent.values().sum();
        writeln!(
            f,
            "strangers    {total} datagrams, {per_s:.0}/s, {sent_bytes} bytes from {addresses} addresses; {back} datagrams, \
             {back_bytes} bytes back; {amplified} addresses got more than they sent"
        )?;
        let kinds: Vec<_> = sent.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        write!(f, "             {}", kinds.join(", "))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "connected    {}", self.connect)?;
        let what = match self.scenario {
            Scenario::Steady | Scenario::Hostile => "confirmed",
            Scenario::Commands => "commands",
            Scenario::HandshakeStorm | Scenario::ReconnectStorm => "storm",
        };
        writeln!(f, "{what:<12} {}", self.measured)?;
        if let Some(hostile) = &self.hostile {
            writeln!(f, "  before     {}", hostile.undisturbed)?;
            writeln!(f, "{hostile}")?;
        }
        for (reason, count) in &self.refusals {
            writeln!(f, "no result    {count} times: {reason}")?;
        }
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
