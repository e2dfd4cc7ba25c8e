//! The `loadgen` command.

use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Parser, Subcommand};
use duet_protocol::profile::{Profile, Transport};
use loadgen::fleet::{self, Job};
use loadgen::interruption;
use loadgen::local::{LocalGateway, Wanted};
use loadgen::summary;
use loadgen::tls::{self, Variant};

mod compare_command;
mod diff_command;
mod load_command;

use compare_command::Compare;
use diff_command::Compared;
use load_command::Load;

/// Measures a Duet gateway with real devices, and the same job over real TLS beside it.
#[derive(Parser)]
#[command(
    name = "loadgen",
    version,
    max_term_width = 98,
    after_help = "All commands but diff start a gateway of their own (the program `duet`, found beside \
        this one) in a temporary directory on loopback, and stop it at the end; only `load --state` \
        uses one that runs already.\n\n\
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
    /// Compare two reports, and fail if the second is worse than wanted
    Diff(Compared),
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
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    devices: u32,
    /// Profiles, taken in turn; `all` for all fifteen
    #[arg(long, value_name = "PROFILE,…", default_value = "certificate/ephemeral")]
    profiles: String,
    /// `udp`, `tcp` or `both`, taken in turn
    #[arg(long, default_value = "udp")]
    transport: String,
    /// Devices that begin each second (open loop: whether or not earlier ones are done)
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
    /// Readings of each device
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    readings: u16,
    /// The whole must be done within so many seconds
    #[arg(long, value_name = "S", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=604_800))]
    duration: u64,
    /// Shards of the gateway
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..))]
    shards: u16,
    /// Seed of the devices' randomness; without it, the kernel's
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Write the report as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn read_profile(name: &str) -> Result<Profile> {
    let all = || Profile::ALL.map(Profile::name).join(", ");
    Profile::from_name(name).with_context(|| format!("no profile {name:?}; there are: {}", all()))
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Command::Diff(diff) = &cli.command {
        return match diff.run() {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => {
                eprintln!("loadgen: {error:#}");
                ExitCode::from(2)
            }
        };
    }
    let result = run(cli);
    interruption::hold();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("loadgen: {error:#}");
            if error.is::<WrongUsage>() { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}

/// An option whose value makes no sense.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct WrongUsage(String);

impl WrongUsage {
    fn from(error: &anyhow::Error) -> anyhow::Error {
        Self(format!("{error:#}")).into()
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
    interruption::watch(Some(dir.path().to_owned())).context("cannot watch for signals")?;
    match cli.command {
        Command::Compare(compare) => compare.run(&program, dir.path()),
        Command::ServeTls { .. } | Command::Diff(_) => unreachable!("done above"),
        Command::Run(run) => run.run(&program, dir.path()),
        Command::Load(load) => load.run(&program, dir.path()),
    }
}

/// Whether reports can be written: asked before minutes of work, not after. What they hold now stays until then.
fn check_writable<'a>(paths: impl IntoIterator<Item = &'a PathBuf>) -> Result<()> {
    for path in paths {
        let is_new = !path.exists();
        std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
            .with_context(|| format!("cannot write {}", path.display()))?;
        if is_new {
            std::fs::remove_file(path)
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
    }
    Ok(())
}

/// Prints a result. A reader who has left has seen enough.
fn show(text: impl std::fmt::Display) -> Result<()> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot print the result")
        }
        _ => Ok(()),
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
    /// The profiles and transports, each of them taken in turn.
    fn what(&self) -> Result<(Vec<Profile>, Vec<Transport>)> {
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
        Ok((profiles, transports))
    }

    fn run(self, program: &std::path::Path, dir: &std::path::Path) -> Result<()> {
        check_writable(&self.json)?;
        let files = rlimit::increase_nofile_limit(u64::from(self.devices) + 256)?;
        ensure!(
            files >= u64::from(self.devices) + 64,
            "{} devices need as many open files, and only {files} are allowed: raise `ulimit -n`",
            self.devices
        );
        let (profiles, transports) = self.what().map_err(|error| WrongUsage::from(&error))?;
        let wanted: Vec<_> = (0..self.devices as usize)
            .map(|number| Wanted {
                name: format!("device-{number:06}"),
                profile: profiles[number % profiles.len()],
                transport: transports[number / profiles.len() % transports.len()],
            })
            .collect();
        let (gateway, mut members) =
            LocalGateway::start(program, dir, self.shards.into(), &wanted)?;
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
        let stopped = gateway.stop();
        let report = summary::Report::new(&outcomes, spent);
        write_json(self.json, &report)?;
        show(&report)?;
        stopped?;
        let incomplete = report.devices - report.complete;
        ensure!(incomplete == 0, "{incomplete} devices did not finish within {} s", self.duration);
        Ok(())
    }
}
