//! `loadgen load`: its options, and what it prints.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use duet_protocol::profile::{Profile, Transport};
use loadgen::crowd::{Loop, Loss};
use loadgen::load::{self, Bench, Latency, Plan, Trial};

use super::{WrongUsage, check_writable, read_profile, show, write_json};

#[derive(Args)]
#[command(
    after_help = "Latency counts from the time when a reading was due, whether or not the gateway was ready for it \
    (open loop). Exit code 1 also when the run is not valid, because this program itself was the bottleneck."
)]
pub(super) struct Load {
    /// What the devices do
    #[arg(long, value_enum, default_value = "steady")]
    scenario: Scenario,
    /// How many devices, each with an address of its own
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    devices: u32,
    /// Their profile
    #[arg(long, value_name = "PROFILE", default_value = "registered-id/ephemeral")]
    profile: String,
    /// What carries their messages; over TCP each device has a connection of its own
    #[arg(long, value_enum, default_value = "udp")]
    transport: Carrier,
    /// Each HELLO carries a reading, and a channel counts as open once that is confirmed
    #[arg(long)]
    early: bool,
    /// Devices that begin to connect each second, outside of storms
    #[arg(long, value_name = "N", default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..))]
    connect_rate: u32,
    /// Readings a second (commands, in that scenario) of all devices together
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
    /// Datagrams of strangers a second, in the scenario hostile
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    hostile_rate: u32,
    /// A device sends its next reading only after the last one was confirmed
    #[arg(long)]
    closed_loop: bool,
    /// Search the highest rate at which all readings (or commands) are confirmed and p99 stays within --p99
    #[arg(long, conflicts_with_all = ["closed_loop", "json", "csv", "hdr"])]
    find_max: bool,
    /// The criterion of --find-max, ms
    #[arg(long, value_name = "MS", default_value_t = 50.0)]
    p99: f64,
    /// Seconds of readings or commands before the measurement
    #[arg(long, value_name = "S", default_value_t = 1, value_parser = clap::value_parser!(u64).range(..=604_800))]
    warm_up: u64,
    /// Seconds of the measurement
    #[arg(long, value_name = "S", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=604_800))]
    duration: u64,
    /// Bytes of a reading or command
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(0..=128))]
    payload: u16,
    /// Readings or commands from a file instead, one a line, such as a CSV of real ones
    #[arg(long, value_name = "FILE", conflicts_with = "payload")]
    payloads: Option<PathBuf>,
    /// Percent of the datagrams that the link loses, in each direction
    #[arg(long, value_name = "PERCENT", default_value_t = 0.0)]
    loss: f64,
    /// Seed of the devices' randomness and of the losses
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Threads of this program
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..))]
    threads: u8,
    /// State directory of a gateway that runs on this machine already: devices are registered there over its control
    /// socket and removed at the end [default: a gateway of its own]
    #[arg(long, value_name = "DIR", conflicts_with = "shards")]
    state: Option<PathBuf>,
    /// Shards of the gateway
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    shards: u16,
    /// Write the report as JSON (its schema: loadgen/schema/load.json)
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the run second by second as CSV
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Write the latencies as an HDR interval log
    #[arg(long, value_name = "FILE")]
    hdr: Option<PathBuf>,
}

/// What the devices do.
#[derive(Clone, Copy, ValueEnum)]
enum Scenario {
    /// Connect at their pace, then send readings
    Steady,
    /// Connect at their pace, then carry out commands that the gateway is given through its control socket
    Commands,
    /// Connect at their pace, then send readings twice: undisturbed, and beside strangers who attack
    Hostile,
    /// All connect in the same instant
    HandshakeStorm,
    /// Connect at their pace, then all anew in the same instant
    ReconnectStorm,
}

/// What carries the devices' messages.
#[derive(Clone, Copy, ValueEnum)]
enum Carrier {
    /// A datagram for each message
    Udp,
    /// A connection for each device
    Tcp,
}

impl Load {
    /// Looks at what no single option's syntax tells; the profile.
    fn check(&self) -> Result<Profile> {
        ensure!((0.0..=90.0).contains(&self.loss), "--loss must be 0 to 90 percent");
        ensure!(self.p99.is_finite() && self.p99 > 0.0, "--p99 must be a number of ms above 0");
        ensure!(
            !self.find_max || matches!(self.scenario, Scenario::Steady | Scenario::Commands),
            "--find-max searches a rate of readings or commands: use --scenario steady or commands"
        );
        read_profile(&self.profile)
    }

    pub(super) fn run(self, program: &Path, dir: &Path) -> Result<()> {
        let profile = self.check().map_err(|error| WrongUsage::from(&error))?;
        check_writable([&self.json, &self.csv, &self.hdr].into_iter().flatten())?;
        let payloads = match &self.payloads {
            None => vec![vec![0x42; self.payload.into()]],
            Some(path) => read_payloads(path)?,
        };
        let plan = Plan {
            scenario: match self.scenario {
                Scenario::Steady => load::Scenario::Steady,
                Scenario::Commands => load::Scenario::Commands,
                Scenario::Hostile => load::Scenario::Hostile,
                Scenario::HandshakeStorm => load::Scenario::HandshakeStorm,
                Scenario::ReconnectStorm => load::Scenario::ReconnectStorm,
            },
            devices: self.devices,
            profile,
            connect_per_s: self.connect_rate,
            transport: match self.transport {
                Carrier::Udp => Transport::Datagram,
                Carrier::Tcp => Transport::Stream,
            },
            early: self.early,
            per_s: self.rate,
            hostile_per_s: self.hostile_rate,
            pacing: if self.closed_loop { Loop::Closed } else { Loop::Open },
            warm_up: Duration::from_secs(self.warm_up),
            span: Duration::from_secs(self.duration),
            payloads,
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "0 to 900,000"
            )]
            loss: Loss((self.loss * 1e4) as u32),
            seed: self.seed,
            threads: self.threads.into(),
            shards: self.shards.into(),
            state: self.state,
        };
        let mut bench = Bench::start(program, dir, plan)?;
        if self.find_max {
            show(format_args!(
                "{:>10} {:>12} {:>10} {:>10}  holds",
                "asked/s", "done/s", "p50 ms", "p99 ms"
            ))?;
            let tried = bench.find_max(self.p99, |Trial { per_s, phase, holds, .. }| {
                let Latency { p50, p99, .. } = phase.latency_ms;
                println!("{per_s:>10} {:>12.0} {p50:>10.1} {p99:>10.1}  {holds}", phase.per_s);
            })?;
            let stopped = bench.stop();
            sum_up(&tried, self.p99)?;
            return stopped;
        }
        let outcome = bench.run()?;
        // What was measured is told first, whatever became of the gateway.
        let stopped = bench.stop();
        write_json(self.json, &outcome.report)?;
        if let Some(path) = self.csv {
            std::fs::write(&path, outcome.report.csv())
                .with_context(|| path.display().to_string())?;
        }
        if let Some(path) = self.hdr {
            outcome.write_hdr(&path)?;
        }
        show(&outcome.report)?;
        stopped?;
        let amplified = outcome.report.hostile.map_or(0, |hostile| hostile.amplified);
        ensure!(amplified == 0, "{amplified} hostile addresses got more bytes than they sent");
        ensure!(outcome.report.valid, "the run is not valid");
        Ok(())
    }
}

/// What a search found; an error if that is not the gateway's limit.
fn sum_up(tried: &[Trial], p99_ms: f64) -> Result<()> {
    let best = tried.iter().filter(|one| one.holds).map(|one| one.per_s).max();
    println!(
        "highest rate with all done and p99 within {p99_ms} ms: {}",
        best.map_or("none".to_owned(), |rate| rate.to_string())
    );
    let limit = tried.iter().filter(|one| !one.holds).min_by_key(|one| one.per_s);
    let Trial { per_s, invalid_because, .. } =
        limit.context("the search is not valid: it ended before a rate that does not hold")?;
    ensure!(
        invalid_because.is_empty(),
        "the search is not valid: at {per_s} a second {}",
        invalid_because.join("; ")
    );
    Ok(())
}

fn read_payloads(path: &Path) -> Result<Vec<Vec<u8>>> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let mut payloads = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.is_empty()) {
        ensure!(
            line.len() <= 128,
            "{}: line {} is longer than the 128 bytes that a device keeps",
            path.display(),
            number + 1
        );
        payloads.push(line.as_bytes().to_vec());
    }
    ensure!(!payloads.is_empty(), "{}: no line with a reading", path.display());
    Ok(payloads)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_that_this_program_ended_is_not_valid() {
        let phase = load::Phase {
            due: 1,
            done: 1,
            seconds: 1.0,
            per_s: 1.0,
            latency_ms: Latency::default(),
            gateway_cpu_us: 1.0,
        };
        let trial = |per_s, holds, reasons: &[&str]| {
            let invalid_because = reasons.iter().map(|&one| one.to_owned()).collect();
            Trial { per_s, phase, holds, invalid_because }
        };
        let busy: &[&str] = &["a thread was busy"];
        sum_up(&[trial(1, true, &[]), trial(4, false, busy), trial(2, false, &[])], 1.0).unwrap();
        let error =
            sum_up(&[trial(1, true, &[]), trial(4, false, &[]), trial(2, false, busy)], 1.0);
        let error = error.unwrap_err().to_string();
        assert!(error.ends_with("at 2 a second a thread was busy"), "{error}");
        sum_up(&[trial(1, true, &[])], 1.0).unwrap_err();
    }
}
