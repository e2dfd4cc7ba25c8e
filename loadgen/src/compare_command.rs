//! `loadgen compare`: reads its options, makes the link, writes the reports.

use std::fs;
use std::io::{self, IsTerminal as _, Write as _};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use loadgen::compare::{self, CATALOGUE, Entry, Kind, Place, Settings};
use loadgen::link::{Conditions, Emulator};
use loadgen::local::LocalGateway;
use loadgen::table;
use loadgen::tls::Host;

use super::{WrongUsage, check_writable, show};

#[derive(Args)]
#[command(
    after_help = "With root the servers and the devices are in two network namespaces, and a relay \
    between them delays, loses and counts every IP packet. Without root (or with --link socket) a relay of \
    sockets delays: no loss, TCP's own handshake is derived, no DTLS.\n\n\
    The default takes one to two minutes; p99 means something from --samples 100 on."
)]
pub(crate) struct Compare {
    /// Round-trip times, ms
    #[arg(
        long,
        value_name = "MS,…",
        value_delimiter = ',',
        default_value = "0,20,50,100,200,600,1500"
    )]
    rtt: Vec<u64>,
    /// Chances that the link loses a packet, percent, each way; 0 must be among them
    #[arg(long, value_name = "PERCENT,…", value_delimiter = ',', default_value = "0,1,5,10")]
    loss: Vec<f64>,
    /// Jobs of each contender at each round-trip time and loss
    #[arg(long, value_name = "N", default_value_t = 10)]
    samples: usize,
    /// Jobs of each contender one at a time without delay, for processor time
    #[arg(long, value_name = "N", default_value_t = 30)]
    repetitions: usize,
    /// Sessions of each contender held at once, for memory; 0 leaves that out
    #[arg(long, value_name = "N", default_value_t = 128)]
    sessions: usize,
    /// Who takes part; `all`, or some of the names that a wrong one lists
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', default_value = "all")]
    contenders: Vec<String>,
    /// A few cells and samples: some seconds
    #[arg(long, conflicts_with_all = ["rtt", "loss", "samples", "repetitions", "sessions"])]
    quick: bool,
    /// At most so much more delay each way, ms
    #[arg(long, value_name = "MS", default_value_t = 0.0)]
    jitter: f64,
    /// Chance that a packet arrives twice, percent
    #[arg(long, value_name = "PERCENT", default_value_t = 0.0)]
    duplicate: f64,
    /// Chance that a packet is held back and overtaken, percent
    #[arg(long, value_name = "PERCENT", default_value_t = 0.0)]
    reorder: f64,
    /// Rate of the link each way, kbit/s; without it, no limit
    #[arg(long, value_name = "KBPS")]
    rate: Option<u64>,
    /// Jobs under way at once, at most
    #[arg(long, value_name = "N", default_value_t = 128)]
    in_flight: usize,
    /// Jobs begun each second; fewer disturb each other less
    #[arg(long, value_name = "N", default_value_t = 75)]
    pace: u32,
    /// Seed of the link's chances and of the order of the jobs
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// What is between devices and servers
    #[arg(long, value_enum, default_value_t = Link::Auto)]
    link: Link,
    /// Write the report as JSON (loadgen/schema/compare.json describes it)
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a line for each contender, round-trip time and loss
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Write one page with the plots, which needs nothing else
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write the exchange and the times without loss as a Markdown table
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Link {
    /// Emulated where the process may, else socket
    Auto,
    /// Network namespaces and a relay of packets; needs root
    Emulated,
    /// A relay of sockets: delay only
    Socket,
}

impl Compare {
    pub(crate) fn run(self, program: &Path, dir: &Path) -> Result<()> {
        check_writable([&self.json, &self.csv, &self.html, &self.markdown].into_iter().flatten())?;
        let mut settings = self.settings().map_err(|error| WrongUsage::from(&error))?;
        let needed = 8 * settings.in_flight + CATALOGUE.len() * settings.sessions + 256;
        let files = rlimit::increase_nofile_limit(needed as u64)?;
        ensure!(
            files >= needed as u64,
            "{needed} open files are needed and {files} are allowed: raise `ulimit -n`, or lower \
            --in-flight and --sessions"
        );
        let link = match self.link {
            Link::Socket => None,
            Link::Emulated => Some(Emulator::start(&settings.paths()?, settings.seed)?),
            Link::Auto => match Emulator::start(&settings.paths()?, settings.seed) {
                Ok(link) => Some(link),
                Err(error) => {
                    eprintln!("loadgen: {error:#}\nloadgen: going on with --link socket");
                    None
                }
            },
        };
        let report = if let Some(link) = &link {
            let wanted = settings.wanted();
            let address = link.server_address();
            let start = || LocalGateway::start_at(address, program, dir, 1, &wanted);
            let (gateway, members) = link.server.run(start)?;
            let place = Place::Link(link, host(address)?);
            let report = compare::run(&gateway, members, &settings, place, &tell)?;
            gateway.stop()?;
            report
        } else {
            self.limit_to_sockets(&mut settings)?;
            let (gateway, members) = LocalGateway::start(program, dir, 1, &settings.wanted())?;
            let place = Place::Sockets(host(Ipv4Addr::LOCALHOST)?);
            let report = compare::run(&gateway, members, &settings, place, &tell)?;
            gateway.stop()?;
            report
        };
        let write = |path: &Option<PathBuf>, text: String| match path {
            Some(path) => fs::write(path, text).with_context(|| path.display().to_string()),
            None => Ok(()),
        };
        write(&self.json, serde_json::to_string_pretty(&report)? + "\n")?;
        write(&self.csv, table::csv(&report))?;
        write(&self.html, compare::page(&report)?)?;
        write(&self.markdown, table::markdown(&report))?;
        show(table::render(&report).trim_end())?;
        ensure!(report.valid, "the run is not valid: {}", report.remarks[0]);
        Ok(())
    }

    fn settings(&self) -> Result<Settings> {
        let chance = |name: &str, percent: f64| {
            ensure!(
                (0.0..=50.0).contains(&percent),
                "--{name} {percent}: between 0 and 50 percent"
            );
            Ok(percent / 100.0)
        };
        ensure!(
            (0.0..=5_000.0).contains(&self.jitter),
            "--jitter {}: between 0 and 5000 ms",
            self.jitter
        );
        ensure!(self.rate != Some(0), "--rate must be at least 1 kbit/s");
        ensure!(
            (1..=1_000).contains(&self.in_flight),
            "--in-flight {}: between 1 and 1000",
            self.in_flight
        );
        ensure!(self.pace > 0, "--pace must be at least 1 job a second");
        ensure!(self.sessions <= 10_000, "--sessions {}: at most 10000", self.sessions);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "checked above"
        )]
        let jitter_us = (self.jitter * 1e3) as u64;
        let mut settings = Settings {
            contenders: self.contenders()?,
            repetitions: self.repetitions,
            samples: self.samples,
            round_trips_ms: self.rtt.clone(),
            losses_percent: self.loss.clone(),
            conditions: Conditions {
                jitter_us,
                duplicate: chance("duplicate", self.duplicate)?,
                reorder: chance("reorder", self.reorder)?,
                rate_bps: self.rate.map(|kbps| kbps.saturating_mul(1_000)),
                ..Conditions::default()
            },
            sessions: self.sessions,
            in_flight: self.in_flight,
            pace: self.pace,
            seed: self.seed,
        };
        if self.quick {
            settings.round_trips_ms = vec![0, 50, 200];
            settings.losses_percent = vec![0.0, 5.0];
            (settings.repetitions, settings.samples, settings.sessions) = (5, 3, 16);
        }
        settings.round_trips_ms.sort_unstable();
        settings.round_trips_ms.dedup();
        settings.losses_percent.sort_by(f64::total_cmp);
        settings.losses_percent.dedup();
        Ok(settings)
    }

    fn contenders(&self) -> Result<Vec<Entry>> {
        if self.contenders == ["all"] {
            return Ok(CATALOGUE.to_vec());
        }
        let find = |name: &String| {
            let found = CATALOGUE.into_iter().find(|entry| entry.key == name);
            found.with_context(|| {
                let all: Vec<_> = CATALOGUE.iter().map(|entry| entry.key).collect();
                format!("--contenders: nobody is called {name:?}; there are: {}", all.join(", "))
            })
        };
        self.contenders.iter().map(find).collect()
    }

    /// Leaves out what a relay of sockets cannot do, and says so.
    fn limit_to_sockets(&self, settings: &mut Settings) -> Result<()> {
        if settings.conditions != Conditions::default() {
            bail!("--jitter, --duplicate, --reorder and --rate need an emulated link: run as root");
        }
        eprintln!(
            "loadgen: over sockets there is no loss and no DTLS, and packets are not seen: flights and \
            bytes are derived, and TCP's own handshake is added to the times"
        );
        settings.losses_percent = vec![0.0];
        settings.contenders.retain(|entry| !matches!(entry.kind, Kind::Dtls));
        ensure!(!settings.contenders.is_empty(), "dtls12 alone cannot be compared over sockets");
        Ok(())
    }
}

fn host(address: Ipv4Addr) -> Result<Host> {
    Ok(Host::Program { program: std::env::current_exe()?, address })
}

/// Says how far it is, on a terminal in one line.
fn tell(text: &str) {
    // Nobody needs to read this.
    let _ = if io::stderr().is_terminal() {
        write!(io::stderr(), "\r\x1b[K{text}")
    } else {
        writeln!(io::stderr(), "loadgen: {text}")
    };
}
