//! The `loadgen` command.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Parser, Subcommand, ValueEnum};
use duet_protocol::profile::{Profile, Transport};
use loadgen::crowd::{Loop, Loss};
use loadgen::fleet::{self, Job};
use loadgen::load::{self, Bench, Latency, Plan};
use loadgen::local::{LocalGateway, Wanted};
use loadgen::summary;
use loadgen::tls::{self, Variant};

mod compare_command;

use compare_command::Compare;

/// Measures a Duet gateway with real devices, and the same job over real TLS beside it.
#[derive(Parser)]
#[command(
    name = "loadgen",
    version,
    max_term_width = 98,
    after_help = "Both commands start a gateway of their own (the program `duet`, found beside \
        this one) in a temporary directory on loopback, and stop it at the end.\n\n\
        Exit codes: 0 done, 1 failed, 2 wrong usage."
)]
struct Cli {
    /// The gateway's program [default: duet, beside this program]
    #[arg(long, global = true, value_name = "FILE")]
    duet: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a fleet: every device opens a channel, sends its readings, sees them confirmed, leaves
    Run(Run),
    /// Put load on a gateway: thousands of devices at a rate, or all at once
    Load(Load),
    /// Measure the same job by Duet, TLS 1.2 and 1.3 and DTLS 1.2, over a link that delays and loses
    Compare(Compare),
    /// Serve TLS to `compare`
    #[command(hide = true)]
    ServeTls {
        /// Directory with the keys
        dir: PathBuf,
        /// Which TLS
        variant: String,
        /// Where to listen
        address: Ipv4Addr,
    },
}

#[derive(Args)]
struct Run {
    /// How many devices
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    devices: u32,
    /// Profiles, taken in turn; `all` for all fifteen
    #[arg(long, value_name = "PROFILE,…", default_value = "certificate/ephemeral")]
    profiles: String,
    /// `udp`, `tcp` or `both`, taken in turn
    #[arg(long, default_value = "udp")]
    transport: String,
    /// Devices that begin each second (open loop: whether or not earlier ones are done)
    #[arg(long, value_name = "N", default_value_t = 500)]
    rate: u32,
    /// Readings of each device
    #[arg(long, value_name = "N", default_value_t = 3)]
    readings: u16,
    /// The whole must be done within so many seconds
    #[arg(long, value_name = "S", default_value_t = 60)]
    duration: u64,
    /// Shards of the gateway
    #[arg(long, value_name = "N", default_value_t = 2)]
    shards: usize,
    /// Seed of the devices' randomness; without it, the kernel's
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Write the report as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Args)]
#[command(
    after_help = "Latency counts from the time when a reading was due, whether or not the gateway was ready for it \
    (open loop). Exit code 1 also when the run is not valid, because this program itself was the bottleneck."
)]
struct Load {
    /// What the devices do
    #[arg(long, value_enum, default_value = "steady")]
    scenario: Scenario,
    /// How many devices, each with an address of its own, over UDP
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    devices: u32,
    /// Their profile
    #[arg(long, value_name = "PROFILE", default_value = "registered-id/ephemeral")]
    profile: String,
    /// Devices that begin to connect each second, outside of storms
    #[arg(long, value_name = "N", default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..))]
    connect_rate: u32,
    /// Readings a second, of all devices together
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
    /// A device sends its next reading only after the last one was confirmed
    #[arg(long)]
    closed_loop: bool,
    /// Search the highest rate at which all readings are confirmed and p99 stays below --p99
    #[arg(long)]
    find_max: bool,
    /// The criterion of --find-max, ms
    #[arg(long, value_name = "MS", default_value_t = 50.0)]
    p99: f64,
    /// Seconds of readings before the measurement
    #[arg(long, value_name = "S", default_value_t = 1)]
    warm_up: u64,
    /// Seconds of the measurement
    #[arg(long, value_name = "S", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    duration: u64,
    /// Bytes of a reading
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(0..=128))]
    payload: u16,
    /// Readings from a file instead, one a line, such as a CSV of real ones
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
    /// Shards of the gateway
    #[arg(long, value_name = "N", default_value_t = 1)]
    shards: usize,
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
    /// All connect in the same instant
    HandshakeStorm,
    /// Connect at their pace, then all anew in the same instant
    ReconnectStorm,
}

impl Load {
    fn run(self, program: &std::path::Path, dir: &std::path::Path) -> Result<()> {
        ensure!((0.0..=90.0).contains(&self.loss), "--loss must be 0 to 90 percent");
        let payloads = match &self.payloads {
            None => vec![vec![0x42; self.payload.into()]],
            Some(path) => read_payloads(path)?,
        };
        let plan = Plan {
            scenario: match self.scenario {
                Scenario::Steady => load::Scenario::Steady,
                Scenario::HandshakeStorm => load::Scenario::HandshakeStorm,
                Scenario::ReconnectStorm => load::Scenario::ReconnectStorm,
            },
            devices: self.devices,
            profile: read_profile(&self.profile)?,
            connect_per_s: self.connect_rate,
            readings_per_s: self.rate,
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
            shards: self.shards,
        };
        let mut bench = Bench::start(program, dir, plan)?;
        if self.find_max {
            println!(
                "{:>10} {:>12} {:>10} {:>10}  holds",
                "readings/s", "confirmed/s", "p50 ms", "p99 ms"
            );
            let tried = bench.find_max(self.p99)?;
            for (rate, phase, holds) in &tried {
                let Latency { p50, p99, .. } = phase.latency_ms;
                println!("{rate:>10} {:>12.0} {p50:>10.1} {p99:>10.1}  {holds}", phase.per_s);
            }
            let best = tried.iter().filter(|one| one.2).map(|one| one.0).max();
            println!(
                "highest rate with all confirmed and p99 below {} ms: {}",
                self.p99,
                best.map_or("none".to_owned(), |rate| rate.to_string())
            );
            return bench.stop();
        }
        let outcome = bench.run()?;
        bench.stop()?;
        println!("{}", outcome.report);
        write_json(self.json, &outcome.report)?;
        if let Some(path) = self.csv {
            std::fs::write(&path, outcome.report.csv())
                .with_context(|| path.display().to_string())?;
        }
        if let Some(path) = self.hdr {
            outcome.write_hdr(&path)?;
        }
        ensure!(outcome.report.valid, "the run is not valid");
        Ok(())
    }
}

fn read_payloads(path: &std::path::Path) -> Result<Vec<Vec<u8>>> {
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

fn read_profile(name: &str) -> Result<Profile> {
    let all = || Profile::ALL.map(Profile::name).join(", ");
    Profile::from_name(name).with_context(|| format!("no profile {name:?}; there are: {}", all()))
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("loadgen: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    if let Command::ServeTls { dir, variant, address } = &cli.command {
        return tls::serve(dir, Variant::from_name(variant)?, *address);
    }
    let program = match cli.duet {
        Some(program) => program,
        None => std::env::current_exe()?.with_file_name("duet"),
    };
    ensure!(
        program.is_file(),
        "{}: no such program; build it with `cargo build --release`, or name it with --duet",
        program.display()
    );
    let dir = tempfile::tempdir()?;
    match cli.command {
        Command::Compare(compare) => compare.run(&program, dir.path()),
        Command::ServeTls { .. } => unreachable!("served above"),
        Command::Run(run) => run.run(&program, dir.path()),
        Command::Load(load) => load.run(&program, dir.path()),
    }
}

fn write_json(to: Option<PathBuf>, report: &impl serde::Serialize) -> Result<()> {
    if let Some(path) = to {
        let text = serde_json::to_string_pretty(report)?;
        std::fs::write(&path, text + "\n").with_context(|| path.display().to_string())?;
    }
    Ok(())
}

impl Run {
    fn run(self, program: &std::path::Path, dir: &std::path::Path) -> Result<()> {
        ensure!(self.devices > 0 && self.rate > 0, "--devices and --rate must be at least 1");
        let files = rlimit::increase_nofile_limit(u64::from(self.devices) + 256)?;
        ensure!(
            files >= u64::from(self.devices) + 64,
            "{} devices need as many open files, and only {files} are allowed: raise `ulimit -n`",
            self.devices
        );
        let profiles = if self.profiles == "all" {
            Profile::ALL.to_vec()
        } else {
            self.profiles.split(',').map(read_profile).collect::<Result<_>>()?
        };
        let transports = match self.transport.as_str() {
            "udp" => vec![Transport::Datagram],
            "tcp" => vec![Transport::Stream],
            "both" => vec![Transport::Datagram, Transport::Stream],
            other => bail!("--transport must be udp, tcp or both, not {other:?}"),
        };
        let wanted: Vec<_> = (0..self.devices as usize)
            .map(|number| Wanted {
                name: format!("device-{number:06}"),
                profile: profiles[number % profiles.len()],
                transport: transports[number / profiles.len() % transports.len()],
            })
            .collect();
        let (gateway, mut members) = LocalGateway::start(program, dir, self.shards, &wanted)?;
        if let Some(seed) = self.seed {
            for (number, member) in members.iter_mut().enumerate() {
                member.seed = [0; 32];
                member.seed[..8].copy_from_slice(&seed.to_be_bytes());
                member.seed[8..16].copy_from_slice(&number.to_be_bytes());
            }
        }
        let before = gateway.cpu()?;
        let job = Job {
            gateway: gateway.address,
            readings: self.readings,
            ramp: Duration::from_secs(self.devices.into()) / self.rate,
            limit: Duration::from_secs(self.duration),
            threads: 2,
        };
        let outcomes = fleet::run(members, job)?;
        let spent = gateway.cpu()?.saturating_sub(before);
        gateway.stop()?;
        let report = summary::Report::new(&outcomes, spent);
        println!("{report}");
        write_json(self.json, &report)?;
        let incomplete = report.devices - report.complete;
        ensure!(incomplete == 0, "{incomplete} devices did not finish within {} s", self.duration);
        Ok(())
    }
}
