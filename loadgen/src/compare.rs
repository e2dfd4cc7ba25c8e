//! Eight against two: the same job by Duet, TLS and DTLS, in one run.
//!
//! The job: from power on to the first reading confirmed, with both sides' identity proven. Over an emulated link
//! the judge counts its packets ([`crate::link`]); without one, what can be seen at the sockets is counted, and the
//! rest is derived. The report says which figure is which.

use std::net::{SocketAddrV4, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::exchange::{Both, Seen};
use crate::fleet::Member;
use crate::link::{Conditions, Emulator};
use crate::local::{LocalGateway, Wanted};
use crate::tls::{self, Host};

mod contender;
mod dtls;
mod duet;
mod page;
mod report;
mod road;
mod sweep;

pub use contender::{CATALOGUE, Entry, Kind, Way};
pub use page::page;
#[cfg(test)]
pub(crate) use report::sample;
pub use report::{Cell, Figure, Outline, Report, Row, provenance};
pub(crate) use report::{SCHEMA, percentile};
pub use road::{LIMIT, Road};

use contender::Contender;
use sweep::{Outcome, Site};

/// The reading that every job sends.
pub(crate) const READING: &[u8] = &[0x42; 64];
/// What confirms it, where that is not Duet's own record.
pub(crate) const CONFIRMATION: &[u8] = b"confirmed";

/// What was seen of one job, at the device.
#[derive(Debug)]
pub struct Job {
    /// Power on.
    pub began: Instant,
    /// The confirmation.
    pub confirmed: Instant,
    /// Processor time of the device.
    pub device_cpu: Duration,
    /// At the socket, until the device holds the session's keys.
    pub handshake: Seen,
    /// At the socket, until the confirmation.
    pub all: Seen,
    /// TCP segments, as the kernel counted them; `None` over UDP.
    pub segments: Option<Both>,
    /// The device's address and port.
    pub local: SocketAddrV4,
    /// The connection, which ends when this is dropped.
    pub stream: Option<TcpStream>,
}

/// How much is measured.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Who takes part.
    pub contenders: Vec<Entry>,
    /// Jobs of each contender one after the other on a link without delay, for processor time.
    pub repetitions: usize,
    /// Jobs of each contender at each round-trip time and loss.
    pub samples: usize,
    /// Round-trip times, ms.
    pub round_trips_ms: Vec<u64>,
    /// Losses each way, percent.
    pub losses_percent: Vec<f64>,
    /// What else the link does; its delay and loss are not looked at.
    pub conditions: Conditions,
    /// Sessions held at once to see what memory one takes; 0 leaves that out.
    pub sessions: usize,
    /// How many jobs are under way at once.
    pub in_flight: usize,
    /// How many jobs begin each second; more of them disturb each other.
    pub pace: u32,
    /// Seed of the link's chances and of the order of the jobs.
    pub seed: u64,
}

impl Settings {
    /// What `duet demo` shows in a few seconds, over sockets.
    ///
    /// # Panics
    /// Never: the names are in the catalogue.
    #[must_use]
    pub fn demo() -> Self {
        let names =
            ["early-udp", "registered-id-udp", "ephemeral-udp", "ephemeral-tcp", "tls13", "tls12"];
        let contenders = CATALOGUE.into_iter().filter(|entry| names.contains(&entry.key));
        Self {
            contenders: contenders.collect(),
            repetitions: 30,
            samples: 1,
            round_trips_ms: vec![50, 200, 600],
            losses_percent: vec![0.0],
            conditions: Conditions::default(),
            sessions: 0,
            in_flight: 16,
            pace: 50,
            seed: 0,
        }
    }

    /// The devices that must be registered for this.
    #[must_use]
    pub fn wanted(&self) -> Vec<Wanted> {
        let mut wanted = Vec::new();
        for Entry { key, kind, .. } in &self.contenders {
            let Kind::Duet(profile, transport, _) = *kind else { continue };
            for number in 0..self.pool() {
                wanted.push(Wanted { name: format!("compare-{key}-{number}"), profile, transport });
            }
        }
        wanted
    }

    /// Devices of each contender.
    fn pool(&self) -> usize {
        self.sessions.max(self.in_flight) + 1
    }

    /// Paths of the link: the first without delay, the second for processes whose start must be told
    /// apart from their work, then one for each cell.
    ///
    /// # Errors
    /// When something is out of range.
    pub fn paths(&self) -> Result<Vec<Conditions>> {
        self.check()?;
        let path = |(round_trip_ms, loss_percent): (u64, f64)| Conditions {
            one_way_us: round_trip_ms * 500,
            loss: loss_percent / 100.0,
            ..self.conditions
        };
        let fixed = [0, sweep::APART_MS].map(|round_trip_ms| Conditions {
            one_way_us: round_trip_ms * 500,
            ..Conditions::default()
        });
        Ok(fixed.into_iter().chain(self.cells().into_iter().map(path)).collect())
    }

    /// Round-trip times and losses in all combinations.
    fn cells(&self) -> Vec<(u64, f64)> {
        let losses = &self.losses_percent;
        let each = |ms: &u64| losses.iter().map(|loss| (*ms, *loss)).collect::<Vec<_>>();
        self.round_trips_ms.iter().flat_map(each).collect()
    }

    fn check(&self) -> Result<()> {
        ensure!(!self.contenders.is_empty(), "--contenders: nobody takes part");
        ensure!(self.repetitions > 0, "--repetitions must be at least 1");
        ensure!(self.samples > 0, "--samples must be at least 1");
        ensure!(!self.round_trips_ms.is_empty(), "--rtt needs at least one round-trip time");
        ensure!(!self.losses_percent.is_empty(), "--loss needs at least one loss, for example 0");
        for ms in &self.round_trips_ms {
            ensure!(*ms <= 10_000, "--rtt {ms}: at most 10000 ms, since a job may take 30 s");
        }
        for percent in &self.losses_percent {
            ensure!((0.0..=90.0).contains(percent), "--loss {percent}: between 0 and 90 percent");
        }
        ensure!(
            self.losses_percent.contains(&0.0),
            "--loss must contain 0: flights and bytes are counted where nothing is lost"
        );
        Ok(())
    }
}

/// Where the gateway and the other servers are.
pub enum Place<'a> {
    /// On loopback; delays are made at the sockets.
    Sockets(Host),
    /// In a link's server namespace, as is the gateway.
    Link(&'a Emulator, Host),
}

/// Runs everything. `members` are the devices of [`Settings::wanted`], in that order. `tell` hears how far it is.
///
/// # Errors
/// When something is out of range, or a job cannot be done on a link that neither delays nor loses.
pub fn run(
    gateway: &LocalGateway,
    members: Vec<Member>,
    settings: &Settings,
    place: Place<'_>,
    tell: &(dyn Fn(&str) + Sync),
) -> Result<Report> {
    settings.check()?;
    let (link, host) = match place {
        Place::Sockets(host) => (None, host),
        Place::Link(link, host) => (Some(link), host),
    };
    let beside = gateway.state.parent().context("a state directory lies in one of its own")?;
    let dir = tempfile::tempdir_in(beside)?;
    tls::create_keys(dir.path())?;
    let contenders = assemble(members, settings, link, &host, dir.path())?;
    let site = Site { gateway, link, settings, tell };
    let mut rows = Vec::new();
    tell("one job at a time, on a link that does nothing");
    let solo = match link {
        Some(link) => link.client.run(|| site.solo(&contenders))?,
        None => site.solo(&contenders)?,
    };
    let memory = if settings.sessions == 0 {
        vec![None; contenders.len()]
    } else {
        tell("sessions that stay, for their memory");
        match link {
            Some(link) => link.client.run(|| site.memory(&contenders))?,
            None => site.memory(&contenders)?,
        }
    };
    let outcomes = site.sweep(&contenders)?;
    for (place, contender) in contenders.iter().enumerate() {
        let own: Vec<&Outcome> = outcomes.iter().filter(|one| one.contender == place).collect();
        rows.push(report::row(contender, settings, &solo[place], memory[place], &own));
    }
    Ok(report::sum_up(settings, link, rows))
}

/// The contenders that take part, their servers started.
fn assemble(
    members: Vec<Member>,
    settings: &Settings,
    link: Option<&Emulator>,
    host: &Host,
    dir: &Path,
) -> Result<Vec<Contender>> {
    let mut members = members.into_iter();
    let mut contenders = Vec::new();
    for entry in &settings.contenders {
        let own: Vec<_> = match entry.kind {
            Kind::Duet(..) => members.by_ref().take(settings.pool()).collect(),
            _ => Vec::new(),
        };
        let start = || Contender::new(*entry, own, host, dir);
        let contender = match link {
            Some(link) => link.server.run(start),
            None => start(),
        };
        contenders.push(contender.with_context(|| entry.name)?);
    }
    Ok(contenders)
}
