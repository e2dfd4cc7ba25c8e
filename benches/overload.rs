//! The gateway under more than it can do, as a process on one core:
//! `cargo bench --bench overload -- [devices in the storm]`.
//!
//! Spoofed hellos (random bytes behind a valid header, from many addresses, nobody reads the
//! answers) while honest devices connect and others send readings; then a storm of devices that
//! all return in the same instant, against the rate at which they connect when so few come at a
//! time that nobody is sent away. The driver, and the flood, have the other core.
#![allow(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "a benchmark may end at once"
)]

mod support;

use std::collections::{BinaryHeap, HashMap};
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use duet_device::{Device, Software};
use duet_protocol::profile::{KeySource, Mode, Profile, Transport};
use duet_protocol::wire::{Kind, MESSAGE_MAX, Retry};
use loadgen::hosts::Hosts;
use loadgen::local::{LocalGateway, Wanted};
use loadgen::process_clock::process_cpu;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Devices that connect during each measurement, one after the other at this rate.
const HONEST: usize = 2_000;
const HONEST_PER_S: u32 = 500;
/// Devices that are connected and send readings, one in turn at this rate.
const ESTABLISHED: usize = 200;
const READINGS_PER_S: u32 = 2_000;
/// Devices that return at once, unless told otherwise.
const STORM: usize = 8_000;
/// As many under way at a time keep the gateway busy, and nobody is sent away.
const WINDOW: usize = 96;
/// How long a device waits for an answer before it asks again, doubled each time.
const PATIENCE: Duration = Duration::from_secs(1);
/// When a measurement gives up.
const LIMIT: Duration = Duration::from_secs(30);

fn start(dir: &Path, shards: usize, devices: usize) -> (LocalGateway, Vec<Device<Software>>) {
    let profile = Profile { mode: Mode::Certificate, source: KeySource::Ephemeral };
    let wanted: Vec<_> = (0..devices)
        .map(|number| Wanted {
            name: format!("device-{number}"),
            profile,
            transport: Transport::Datagram,
        })
        .collect();
    support::pin(std::thread::available_parallelism().unwrap().get().max(2) - 1);
    let program = PathBuf::from(env!("CARGO_BIN_EXE_duet"));
    let (gateway, members) = LocalGateway::start(&program, dir, shards, &wanted).unwrap();
    support::pin(0);
    let device =
        |member: loadgen::fleet::Member| Device::seeded(member.config, member.seed).unwrap();
    (gateway, members.into_iter().map(device).collect())
}

fn message(device: &mut Device<Software>) -> Vec<u8> {
    let mut out = [0; MESSAGE_MAX];
    let len = device.poll_transmit(0, &mut out).unwrap();
    out[..len].to_vec()
}

fn hellos(devices: &mut [Device<Software>]) -> Vec<Vec<u8>> {
    let hello = |device: &mut Device<Software>| {
        device.close();
        device.open(0);
        message(device)
    };
    devices.iter_mut().map(hello).collect()
}

/// How it went for a crowd of devices.
struct Crowd {
    /// When each had its ACCEPT, after it first knocked.
    took: Vec<Duration>,
    /// From the first knock to the last ACCEPT.
    all: Duration,
    retries: usize,
    repeats: usize,
}

impl Crowd {
    fn quantile(&mut self, percent: usize) -> Duration {
        self.took.sort_unstable();
        let last = self.took.len().saturating_sub(1);
        self.took.get(last * percent / 100).copied().unwrap_or_default()
    }
}

/// When devices begin to knock.
#[derive(Clone, Copy)]
enum Begin {
    /// One after the other, so many a second.
    AtRate(u32),
    /// All in the same instant.
    Together,
    /// So many at first, and another one for each that is in.
    Window(usize),
}

impl Begin {
    fn time(self, number: usize) -> Duration {
        match self {
            Self::AtRate(rate) => Duration::from_secs(1) * u32::try_from(number).unwrap() / rate,
            Self::Together => Duration::ZERO,
            Self::Window(few) if number < few => Duration::ZERO,
            Self::Window(_) => Duration::MAX,
        }
    }
}

/// Every device knocks at its time from an address of its own and does as RETRY tells it.
fn knock(to: SocketAddr, hellos: &[Vec<u8>], begin: Begin) -> Crowd {
    let hosts = Hosts::bind().unwrap();
    let mut begins: Vec<_> = (0..hellos.len()).map(|number| begin.time(number)).collect();
    let mut due: BinaryHeap<_> =
        begins.iter().enumerate().map(|(number, at)| std::cmp::Reverse((*at, number))).collect();
    let mut unbegun = begins.iter().take_while(|at| **at < Duration::MAX).count();
    let mut cookies: HashMap<usize, [u8; 16]> = HashMap::new();
    let mut attempts = vec![0u32; hellos.len()];
    let mut next = begins.clone();
    let mut done = vec![false; hellos.len()];
    let mut crowd = Crowd { took: Vec::new(), all: Duration::ZERO, retries: 0, repeats: 0 };
    let began = Instant::now();
    let mut bytes = [0; MESSAGE_MAX];
    while crowd.took.len() < hellos.len() && began.elapsed() < LIMIT {
        let now = began.elapsed();
        // A few at a time: what comes back meanwhile must not overflow this side's buffer, which many
        // devices would not share.
        for _ in 0..32 {
            let Some(std::cmp::Reverse((at, number))) = due.peek().copied() else { break };
            if at > now {
                break;
            }
            due.pop();
            // What was put off since is in the heap at its new time.
            if done[number] || next[number] != at {
                continue;
            }
            let cookie = cookies.get(&number).map_or(&[][..], |cookie| &cookie[..]);
            // A full buffer is a lost datagram: the device asks again.
            let _ = hosts.send(number as u32, to, &[&hellos[number], cookie].concat());
            crowd.repeats += usize::from(attempts[number] > 0);
            next[number] = now + PATIENCE * (1 << attempts[number].min(5));
            attempts[number] += 1;
            due.push(std::cmp::Reverse((next[number], number)));
        }
        let due_in = due.peek().map_or(LIMIT, |next| next.0.0.saturating_sub(began.elapsed()));
        let patience = due_in.min(LIMIT.saturating_sub(began.elapsed()));
        let timeout = Timespec::try_from(patience).unwrap();
        poll(&mut [PollFd::new(&hosts, PollFlags::IN)], Some(&timeout)).unwrap();
        while let Ok((host, len)) = hosts.recv(&mut bytes) {
            let number = host as usize;
            let now = began.elapsed();
            match Kind::of(&bytes[..len]) {
                Ok(Kind::Accept) if !done[number] => {
                    done[number] = true;
                    crowd.took.push(now - begins[number]);
                    crowd.all = now;
                    if unbegun < begins.len() {
                        (begins[unbegun], next[unbegun]) = (now, now);
                        due.push(std::cmp::Reverse((now, unbegun)));
                        unbegun += 1;
                    }
                }
                Ok(Kind::Retry) if !done[number] => {
                    let retry = Retry::decode(&bytes[..len]).unwrap();
                    cookies.insert(number, retry.cookie);
                    crowd.retries += 1;
                    attempts[number] = 0;
                    next[number] = now + Duration::from_millis(u64::from(retry.wait_10ms) * 10);
                    due.push(std::cmp::Reverse((next[number], number)));
                }
                _ => {}
            }
        }
    }
    crowd
}

/// Hellos that nobody made, as fast as one thread can; how many went out.
fn flood(to: SocketAddr, like: &[u8], per_s: u32, stop: &AtomicBool, sent: &AtomicU64) {
    let sockets: Vec<_> = (0..64u8)
        .map(|host| {
            let socket = UdpSocket::bind(SocketAddr::from(([127, 0, 1, host], 0))).unwrap();
            socket.connect(to).unwrap();
            socket
        })
        .collect();
    let (mut bytes, began, mut count) = (like.to_vec(), Instant::now(), 0u32);
    while !stop.load(Ordering::Relaxed) {
        if began.elapsed().as_secs_f64() * f64::from(per_s) < f64::from(count) {
            std::thread::yield_now();
            continue;
        }
        for _ in 0..32 {
            bytes[1] = count.to_le_bytes()[0];
            bytes[4..8].copy_from_slice(&count.to_le_bytes());
            if sockets[count as usize % sockets.len()].send(&bytes).is_ok() {
                sent.fetch_add(1, Ordering::Relaxed);
            }
            count += 1;
        }
    }
}

/// Readings of connected devices at their rate until told to stop; how many.
fn readings(to: SocketAddr, records: &[Vec<u8>], stop: &AtomicBool) -> usize {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(to).unwrap();
    let (began, mut count) = (Instant::now(), 0);
    while !stop.load(Ordering::Relaxed) && count < records.len() {
        let due = Duration::from_secs(1) * u32::try_from(count).unwrap() / READINGS_PER_S;
        if began.elapsed() < due {
            std::thread::sleep(Duration::from_micros(200));
            continue;
        }
        socket.send(&records[count]).unwrap();
        count += 1;
    }
    count
}

struct Measured {
    crowd: Crowd,
    readings: usize,
    stored: usize,
    flood: f64,
}

fn measure(dir: &Path, flood_per_s: u32) -> Measured {
    let (gateway, mut devices) = start(dir, 1, HONEST + ESTABLISHED);
    let mut established = devices.split_off(HONEST);
    let to = gateway.address;
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut out = [0; MESSAGE_MAX];
    let mut records = Vec::new();
    for device in &mut established {
        device.open(0);
        socket.send_to(&message(device), to).unwrap();
        let len = socket.recv(&mut out).unwrap();
        device.handle_message(0, &mut out[..len]).unwrap();
        // A session whose first record is late does not last.
        device.send_reading(0, 1, &[0x42; 64], false).unwrap();
        socket.send_to(&message(device), to).unwrap();
    }
    let span = Duration::from_secs(1) * u32::try_from(HONEST).unwrap() / HONEST_PER_S + LIMIT;
    for number in 0..usize::try_from(span.as_secs()).unwrap() * READINGS_PER_S as usize / 4 {
        let device = &mut established[number % ESTABLISHED];
        device.send_reading(0, 1, &[0x42; 64], false).unwrap();
        records.push(message(device));
    }
    let hellos = hellos(&mut devices);
    let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (crowd, readings, flood_rate) = std::thread::scope(|scope| {
        let sender = scope.spawn(|| readings(to, &records, &stop));
        let began = Instant::now();
        if flood_per_s > 0 {
            scope.spawn(|| flood(to, &hellos[0], flood_per_s, &stop, &sent));
        }
        let crowd = knock(to, &hellos, Begin::AtRate(HONEST_PER_S));
        stop.store(true, Ordering::Relaxed);
        let rate = sent.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64();
        (crowd, sender.join().unwrap(), rate)
    });
    std::thread::sleep(Duration::from_millis(1_200));
    show_counters(&gateway);
    let state = gateway.state.clone();
    gateway.stop().unwrap();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_duet"))
        .arg("--state")
        .arg(&state)
        .args(["spool", "cat"])
        .output()
        .unwrap();
    let stored = memchr::memchr_iter(b'\n', &output.stdout).count();
    Measured { crowd, readings: readings + ESTABLISHED, stored, flood: flood_rate }
}

fn main() {
    let storm = std::env::args().find_map(|argument| argument.parse().ok()).unwrap_or(STORM);
    let dir = tempfile::tempdir().unwrap();
    let sub = |name: &str| {
        let path = dir.path().join(name);
        std::fs::create_dir(&path).unwrap();
        path
    };
    let anchor = support::anchor()();
    println!("\naws-lc-rs, one ECDSA verification (anchor): {:.1} µs", anchor.as_secs_f64() * 1e6);
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
    for (name, per_s) in [("calm", 0), ("busy", 50_000), ("flood", 300_000)] {
        let mut measured = measure(&sub(name), per_s);
        let accepted = measured.crowd.took.len();
        let [p50, p80, p99] = [50, 80, 99].map(|q| measured.crowd.quantile(q).as_secs_f64() * 1e3);
        println!(
            "{:>10.0} {accepted:>10} {p50:>10.1} {p80:>10.1} {p99:>10.1} {:>10} {:>10} {:>7} of {:>5}",
            measured.flood,
            measured.crowd.retries,
            measured.crowd.repeats,
            measured.stored,
            measured.readings
        );
    }

    returning(&sub("storm"), 1, storm);
    returning(&sub("shards"), 2, STORM.min(storm));
}

/// With `DUET_BENCH_DROPS` set, what the gateway counted.
fn show_counters(gateway: &LocalGateway) {
    if std::env::var_os("DUET_BENCH_DROPS").is_some() {
        let counted = |line: &&str| line.contains("_total") && !line.ends_with(" 0");
        let text = gateway.scrape().unwrap();
        text.lines().filter(counted).for_each(|line| eprintln!("{line}"));
    }
}

/// Devices connect and return, a few at a time and then all at once.
fn returning(dir: &Path, shards: usize, count: usize) {
    let (gateway, mut devices) = start(dir, shards, count);
    println!("\n{count} devices, {shards} shards on the one core");
    let mut peak = 0.0;
    // The first time the gateway makes the tables of their keys; what counts is how they return.
    for (what, begin) in [
        ("connect for the first time", Begin::Window(WINDOW)),
        ("return, 96 at a time", Begin::Window(WINDOW)),
        ("return, all at once", Begin::Together),
    ] {
        let hellos = hellos(&mut devices);
        let before = process_cpu(gateway.pid()).unwrap();
        let mut crowd = knock(gateway.address, &hellos, begin);
        let cpu = process_cpu(gateway.pid()).unwrap() - before;
        let [p50, p99] = [50, 99].map(|q| crowd.quantile(q).as_secs_f64() * 1e3);
        let (back, seconds) = (crowd.took.len(), crowd.all.as_secs_f64());
        println!(
            "{what:<28} {back} in {seconds:.2} s, p50 {p50:.0} ms, p99 {p99:.0} ms, {} RETRYs, {} repeats, server CPU {:.1} µs each",
            crowd.retries,
            crowd.repeats,
            cpu.as_secs_f64() * 1e6 / back as f64
        );
        match begin {
            Begin::Together => {
                std::thread::sleep(Duration::from_millis(1_200));
                show_counters(&gateway);
                println!(
                    "that is {:.2} times as long as at the rate before",
                    seconds * peak / count as f64
                );
            }
            _ => peak = back as f64 / seconds,
        }
    }
    gateway.stop().unwrap();
}
