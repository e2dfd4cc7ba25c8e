//! The gateway under more than it can do, as a process on one core:
//! `cargo bench --bench overload -- [devices in the storm]`, or `-- --goals` for what is asked of floods and storms (`--floods` or
//! `--storms` for one of them).
//!
//! Hellos that nobody made (random bytes behind a valid header) while honest devices connect and others send readings; then a
//! storm of devices that all return in the same instant, against the rate at which they connect when so few come at a
//! time that nobody is sent away. The driver, and the flood, have the other core. With `--unprivileged` the gateway may not
//! administer the network, so that its receive buffers end at `net.core.rmem_max`.
#![allow(clippy::unwrap_used, reason = "a benchmark may end at once")]

#[path = "overload/crowd.rs"]
mod crowd;
#[path = "overload/flood.rs"]
mod flood;
#[path = "overload/goals.rs"]
mod goals;
#[path = "overload/storm.rs"]
mod storm;
mod support;

use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

use duet_device::fast::Fast;
use duet_device::{Device, Volatile};
use duet_protocol::profile::{KeySource, Mode, Profile, Transport};
use duet_protocol::wire::MESSAGE_MAX;
use loadgen::local::{LocalGateway, Wanted};

use rustix::thread::CapabilitySet;

use crate::flood::{ESTABLISHED, Flood, HONEST, HONEST_PER_S, READINGS_PER_S, measure};
use crate::storm::returning;

/// Devices that return at once, unless told otherwise.
const STORM: usize = 8_000;
/// When a measurement gives up.
const LIMIT: Duration = Duration::from_secs(30);

/// A device that the driver plays.
type Member = Device<Fast>;

/// A gateway on the last core, and as many devices of each transport as wanted.
fn start(dir: &Path, shards: usize, devices: &[(usize, Transport)]) -> (LocalGateway, Vec<Member>) {
    let profile = Profile { mode: Mode::Certificate, source: KeySource::Ephemeral };
    let transports = devices.iter().flat_map(|(count, transport)| vec![*transport; *count]);
    let wanted: Vec<_> = transports
        .enumerate()
        .map(|(number, transport)| Wanted { name: format!("device-{number}"), profile, transport })
        .collect();
    support::pin(*CORES - 1);
    let program = PathBuf::from(env!("CARGO_BIN_EXE_duet"));
    let (gateway, members) = LocalGateway::start(&program, dir, shards, &wanted).unwrap();
    support::pin(0);
    let device = |member: loadgen::fleet::Member| {
        Device::new(Fast::seeded(member.seed), Volatile, member.config).unwrap()
    };
    (gateway, members.into_iter().map(device).collect())
}

/// The cores that this process may use, asked for before it keeps itself on one.
static CORES: LazyLock<usize> =
    LazyLock::new(|| std::thread::available_parallelism().unwrap().get().max(2));

fn message(device: &mut Member) -> Vec<u8> {
    let mut out = [0; MESSAGE_MAX];
    let len = device.poll_transmit(0, &mut out).unwrap();
    out[..len].to_vec()
}

/// A new HELLO of each device, made on all cores while nothing is measured.
fn hellos(devices: &mut [Member]) -> Vec<Vec<u8>> {
    let hello = |device: &mut Member| {
        device.close();
        device.open(0);
        message(device)
    };
    let share = devices.len().div_ceil(*CORES).max(1);
    std::thread::scope(|scope| {
        let shares = devices.chunks_mut(share).enumerate().map(|(core, devices)| {
            scope.spawn(move || {
                support::pin(core);
                devices.iter_mut().map(hello).collect::<Vec<_>>()
            })
        });
        let shares: Vec<_> = shares.collect();
        shares.into_iter().flat_map(|share| share.join().unwrap()).collect()
    })
}

/// With `DUET_BENCH_DROPS` set, what the gateway counted.
fn show_counters(gateway: &LocalGateway) {
    if std::env::var_os("DUET_BENCH_DROPS").is_some() {
        let counted = |line: &&str| line.contains("_total") && !line.ends_with(" 0");
        let text = gateway.scrape().unwrap();
        text.lines().filter(counted).for_each(|line| eprintln!("{line}"));
    }
}

/// These devices have nothing to say, so that their sessions stay pending, for five seconds each.
const PENDING: (&str, &str) = ("DUET__LIMITS__MAX_PENDING", "262144");

fn main() {
    let arguments: Vec<_> = std::env::args().collect();
    if std::env::var_os(PENDING.0).is_none() {
        let mut again = std::process::Command::new(std::env::current_exe().unwrap());
        let status = again.args(&arguments[1..]).env(PENDING.0, PENDING.1).status().unwrap();
        std::process::exit(status.code().unwrap_or(1));
    }
    let asked = |flag: &str| arguments.iter().any(|argument| argument == flag);
    let number = arguments.iter().find_map(|argument| argument.parse().ok());
    if asked("--unprivileged") {
        // What this process starts may never have it; what it has itself, it keeps.
        rustix::thread::remove_capability_from_bounding_set(CapabilitySet::NET_ADMIN).unwrap();
        println!("\nthe gateway may not administer the network");
    }
    let dir = tempfile::tempdir().unwrap();
    let sub = |name: &str| {
        let path = dir.path().join(name);
        std::fs::create_dir(&path).unwrap();
        path
    };
    let anchor = support::anchor()();
    println!("\naws-lc-rs, one ECDSA verification (anchor): {:.1} µs", anchor.as_secs_f64() * 1e6);
    let (floods, storms) = (asked("--floods"), asked("--storms"));
    if floods || storms || asked("--goals") {
        if floods || !storms {
            goals::floods(&sub);
        }
        if storms || !floods {
            goals::storms(&sub, number);
        }
        return;
    }
    println!(
        "\n{HONEST} devices connect at {HONEST_PER_S}/s, {ESTABLISHED} send {READINGS_PER_S} readings/s\n"
    );
    println!(
        "{:>10} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10} {:>16}",
        "spoofed/s",
        "accepted",
        "p50 ms",
        "p80 ms",
        "p99 ms",
        "RETRYs",
        "repeats",
        "readings stored"
    );
    for (name, flood, per_s) in [
        ("calm", Flood::None, 0),
        ("busy", Flood::Spoofed, 50_000),
        ("flood", Flood::Spoofed, 300_000),
    ] {
        let mut measured = measure(&sub(name), flood, per_s);
        let accepted = measured.crowd.took.len();
        let [p50, p80, p99] = [50, 80, 99].map(|q| measured.crowd.quantile(q).as_secs_f64() * 1e3);
        println!(
            "{:>10.0} {accepted:>10} {p50:>10.1} {p80:>10.1} {p99:>10.1} {:>10} {:>10} {:>7} of {:>5}",
            measured.per_s,
            measured.crowd.retries,
            measured.crowd.repeats,
            measured.stored,
            measured.readings
        );
    }
    let storm = number.unwrap_or(STORM);
    returning(&sub("storm"), 1, storm);
    returning(&sub("shards"), 2, STORM.min(storm));
}
