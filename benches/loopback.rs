//! The gateway as a process on one core, over loopback, beside tokio and rustls doing the same job
//! on the same core, in one interleaved run: `cargo bench --bench loopback`.
//!
//! Compared is the processor time that the server's process used, all of its threads (spool and
//! fsync included) and the kernel's work on its behalf, for each handshake or reading; how fast
//! this program drives it therefore matters only as far as it shapes batches. The driver has the
//! other core. The anchor, one ECDSA verification by aws-lc-rs, tells how fast the machine was.
#![allow(clippy::unwrap_used, reason = "a benchmark may end at once")]

#[path = "loopback/duet.rs"]
mod duet;
mod support;
#[path = "loopback/tls.rs"]
mod tls;
#[path = "loopback/tokio_uring.rs"]
mod tokio_uring_path;

use std::fs;
use std::path::Path;
use std::time::Duration;

use loadgen::process_clock::{process_cpu, process_memory};
use rustls::version::{TLS12, TLS13};

const ROUNDS: usize = 5;
/// Handshakes of a round over UDP.
const DATAGRAM_HANDSHAKES: usize = 512;
/// Handshakes of a round over TCP, and of a peer.
const STREAM_HANDSHAKES: usize = 256;
/// How many are under way at once.
const WINDOW: usize = 96;
/// Readings of a round.
const READINGS: usize = 40_000;
/// Their size, bytes.
const READING: usize = 64;
/// Connections that bring them over TCP to the gateway, and to the peer.
const STREAMS: usize = 5_000;
const PEER_STREAMS: usize = 1_000;
/// Devices that stay silent while memory is measured.
const IDLE: [usize; 2] = [10_000, 50_000];

/// The server's processor time for each of `count` units of `work`, once all of it has arrived.
fn measured(pid: u32, count: usize, work: impl FnOnce()) -> Duration {
    let cpu = || process_cpu(pid).unwrap();
    let before = cpu();
    work();
    // What the driver does not wait for: last records, closed connections, fsync.
    let mut last = cpu();
    loop {
        std::thread::sleep(Duration::from_millis(50));
        let now = cpu();
        if now - last < Duration::from_micros(500) {
            return (now - before) / u32::try_from(count).unwrap();
        }
        last = now;
    }
}

/// Runs `start` so that what it starts lives on the last core.
fn on_the_servers_core<T>(start: impl FnOnce() -> T) -> T {
    let cores = std::thread::available_parallelism().unwrap().get();
    support::pin(cores.max(2) - 1);
    let started = start();
    support::pin(0);
    started
}

struct Row {
    name: &'static str,
    goal: &'static str,
    /// The row that it is compared with.
    beside: usize,
    times: Vec<Duration>,
}

impl Row {
    fn median(&self) -> f64 {
        let mut times = self.times.clone();
        times.sort_unstable();
        times[times.len() / 2].as_secs_f64() * 1e6
    }
}

fn main() {
    if let Some(dir) = std::env::var_os("DUET_BENCH_PEER") {
        return tls::serve(Path::new(&dir));
    }
    if let Some(state) = std::env::var_os("DUET_BENCH_TOKIO_URING") {
        return tokio_uring_path::serve(Path::new(&state));
    }
    rlimit::increase_nofile_limit(u64::MAX).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let sub = |name: &str| {
        let path = dir.path().join(name);
        fs::create_dir(&path).unwrap();
        path
    };
    let mut anchor = support::anchor();
    let mut gateway = duet::Fleet::start(&sub("duet"), DATAGRAM_HANDSHAKES, STREAMS);
    let mut plain = duet::Fleet::start_on_tokio_uring(&sub("plain"), DATAGRAM_HANDSHAKES);
    let peers = [("tls13", &TLS13), ("tls12", &TLS12)]
        .map(|(name, version)| tls::Peer::start(&sub(name), version));

    let row = |name, goal, beside| Row { name, goal, beside, times: Vec::new() };
    let mut rows = [
        row("aws-lc-rs, one ECDSA verification (anchor)", "", 0),
        row("handshake  tokio + rustls TLS 1.3, mutual, TCP", "", 1),
        row("handshake  tokio + rustls TLS 1.2, mutual, TCP", "", 1),
        row("handshake  Duet certificate/ephemeral, UDP", "0.10", 1),
        row("handshake  Duet certificate/ephemeral, TCP", "0.17", 1),
        row("handshake  Duet, UDP, one at a time: no batch", "", 1),
        row("reading    tokio + rustls TLS 1.3, 1,000 connections", "", 6),
        row("reading    Duet, UDP, 512 sessions, spooled", "0.25", 6),
        row("reading    Duet, TCP, 5,000 connections, spooled", "0.60", 6),
        row("handshake  Duet's shard behind tokio-uring, UDP", "", 1),
        row("reading    Duet's shard behind tokio-uring, UDP, not stored", "", 6),
    ];
    let before = process_memory(peers[0].pid()).unwrap();
    let mut connections = peers[0].connect(PEER_STREAMS);
    let connection = (process_memory(peers[0].pid()).unwrap() - before) / PEER_STREAMS as u64;
    gateway.connect_streams();
    for _ in 0..ROUNDS {
        rows[0].times.push(anchor());
        for (row, peer) in [(1, &peers[0]), (2, &peers[1])] {
            let work = || peer.handshakes(STREAM_HANDSHAKES, WINDOW);
            rows[row].times.push(measured(peer.pid(), STREAM_HANDSHAKES, work));
        }
        let hellos = gateway.datagram_hellos();
        let pid = gateway.pid();
        let work = || gateway.datagram_handshakes(0, &hellos, WINDOW);
        rows[3].times.push(measured(pid, DATAGRAM_HANDSHAKES, work));
        let (hellos, work) = (gateway.stream_hellos(STREAM_HANDSHAKES), STREAM_HANDSHAKES);
        rows[4].times.push(measured(pid, work, || gateway.stream_handshakes(hellos, WINDOW)));

        let hellos = gateway.datagram_hellos();
        let work = || gateway.datagram_handshakes(0, &hellos, 1);
        rows[5].times.push(measured(pid, DATAGRAM_HANDSHAKES, work));

        let work = || peers[0].readings(&mut connections, READINGS, READING);
        rows[6].times.push(measured(peers[0].pid(), READINGS, work));
        let records = gateway.datagram_records(READINGS, READING);
        rows[7].times.push(measured(pid, READINGS, || gateway.send_datagrams(&records)));
        let records = gateway.stream_records(READINGS, READING);
        rows[8].times.push(measured(pid, READINGS, || gateway.send_streams(&records)));

        let (pid, hellos) = (plain.pid(), plain.datagram_hellos());
        let work = || plain.datagram_handshakes(0, &hellos, WINDOW);
        rows[9].times.push(measured(pid, DATAGRAM_HANDSHAKES, work));
        let records = plain.datagram_records(READINGS, READING);
        rows[10].times.push(measured(pid, READINGS, || plain.send_datagrams(&records)));
    }
    let (sent, spooled) = gateway.stop();
    plain.stop();
    drop(connections);

    // What a gateway touches once, whoever comes, is the difference between the two.
    let [some, many] = IDLE.map(|devices| {
        let mut idle = duet::Fleet::start(&sub(&format!("idle-{devices}")), devices, 0);
        let before = process_memory(idle.pid()).unwrap();
        let hellos = idle.datagram_hellos();
        for (batch, hellos) in hellos.chunks(WINDOW).enumerate() {
            idle.datagram_handshakes(batch * WINDOW, hellos, WINDOW);
        }
        std::thread::sleep(Duration::from_secs(6));
        let grown = process_memory(idle.pid()).unwrap() - before;
        idle.stop();
        grown
    });
    let session = (many - some) / (IDLE[1] - IDLE[0]) as u64;
    drop(peers);

    println!(
        "\nserver on one core; medians of {ROUNDS} interleaved rounds; {WINDOW} handshakes at once\n"
    );
    println!("{:<54} {:>9} {:>7} {:>6}", "CPU of the server's process", "µs", "ratio", "goal");
    for row in &rows {
        let (median, beside) = (row.median(), rows[row.beside].median());
        println!("{:<54} {median:>9.2} {:>7.3} {:>6}", row.name, median / beside, row.goal);
    }
    println!("\nreadings     {sent} sent, {spooled} found in the spool");
    println!(
        "idle session {session} bytes resident, its key's table of 4 KiB included; goal 512 + 4,096"
    );
    println!("             {many} bytes for {} of them", IDLE[1]);
    println!("             rustls connection {connection} bytes");
}
