//! What it costs to pass readings on, in one interleaved run: `cargo bench --bench delivery [READINGS]`.
//!
//! First the upstream by itself: this process's time for each reading of 64 bytes, from a spool in memory to the upstream's
//! acknowledgement, and beside it a program that publishes each reading singly with the same client. A spool on disk adds
//! reading the page cache and a checksum, some ten nanoseconds. The drain's memory is what this process grows by at most.
//!
//! Then the gateway as a process with devices that send 200,000 readings a second: its processor time for each reading
//! without and with an upstream, and, from a server that syncs before it acknowledges, how long it takes from the
//! gateway's receipt to a consumer of the stream. The server's own time is not counted: it is another process.
#![allow(clippy::unwrap_used, reason = "a bench may end at once")]

use std::collections::VecDeque;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_nats::jetstream;
use duet_protocol::profile::{KeySource, Mode, Profile, Transport};
use duet_upstream::testing::{Book, Memory};
use duet_upstream::{Options, Settings, Source, SpoolId};
use futures_util::StreamExt;
use loadgen::crowd::{Crowd, Loop, Loss, Steady};
use loadgen::local::{LocalGateway, Wanted};
use loadgen::process_clock::process_cpu;

const ROUNDS: usize = 3;
const PAYLOAD: [u8; 64] = [b'7'; 64];
/// The gateway's devices, and the pause between two readings of one: 200,000 a second together.
const DEVICES: usize = 2_000;
const PERIOD: Duration = Duration::from_millis(10);
/// How long they send.
const SPAN: Duration = Duration::from_secs(8);

struct Measured {
    name: &'static str,
    goal: &'static str,
    cpu_ns: f64,
    per_second: f64,
    grown_mib: f64,
}

/// A line of `/proc/self/status`, in MiB.
fn memory_mib(key: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    let kib: u32 = line.split_whitespace().next().unwrap().parse().unwrap();
    f64::from(kib) / 1_024.0
}

#[expect(clippy::cast_precision_loss, reason = "a mean")]
fn measure(name: &'static str, goal: &'static str, readings: u64, work: impl FnOnce()) -> Measured {
    let own = std::process::id();
    // The highest mark begins anew here.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let (resident, cpu, began) = (memory_mib("VmRSS:"), process_cpu(own).unwrap(), Instant::now());
    work();
    let (cpu, wall) = (process_cpu(own).unwrap() - cpu, began.elapsed().as_secs_f64());
    Measured {
        name,
        goal,
        cpu_ns: cpu.as_nanos() as f64 / readings as f64,
        per_second: readings as f64 / wall,
        grown_mib: (memory_mib("VmHWM:") - resident).max(0.0),
    }
}

/// Drains the spool into one upstream.
fn drain(name: &'static str, goal: &'static str, memory: &Memory, settings: &str) -> Measured {
    let dir = tempfile::tempdir().unwrap();
    let settings: Settings = toml::from_str(settings).unwrap();
    let options = Options {
        dir: dir.path().join("upstream"),
        upstreams: vec![settings.check(dir.path()).unwrap()],
        tell: Arc::new(|said| eprintln!("{said}")),
        taker: Arc::new(Book::default()),
    };
    let readings = memory.durable();
    measure(name, goal, readings, || {
        let memory = memory.clone();
        let upstreams =
            duet_upstream::start(options, &mut |_| Ok(Box::new(memory.clone()))).unwrap();
        let reports = upstreams.reports();
        while reports.look()[0].next < readings {
            std::thread::sleep(Duration::from_millis(5));
        }
        upstreams.shutdown();
    })
}

/// Each reading by itself, 256 acknowledgements awaited at a time.
async fn naive(port: u16, readings: u64) {
    let client = async_nats::connect(format!("127.0.0.1:{port}")).await.unwrap();
    let context = jetstream::new(client);
    let mut waiting = VecDeque::new();
    for _ in 0..readings {
        let publish = context.publish("bench.naive", PAYLOAD.to_vec().into());
        waiting.push_back(publish.await.unwrap());
        if waiting.len() == 256 {
            waiting.pop_front().unwrap().await.unwrap();
        }
    }
    for ack in waiting {
        ack.await.unwrap();
    }
}

struct Nats {
    server: Child,
    port: u16,
    /// Goes with the server.
    _dir: tempfile::TempDir,
}

impl Drop for Nats {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// A server with one stream that takes everything; none where it is not installed.
fn nats(runtime: &tokio::runtime::Runtime, more: &str) -> Option<Nats> {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/servers/nats-server");
    if !program.is_file() {
        println!("SKIPPED: nats-server is not installed; scripts/install-servers does it");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let conf = dir.path().join("conf");
    let store = dir.path().display();
    let text =
        format!("listen: 127.0.0.1:{port}\njetstream {{ store_dir: \"{store}\"\n{more}\n}}\n");
    std::fs::write(&conf, text).unwrap();
    let child = Command::new(program).arg("-c").arg(&conf).stderr(Stdio::null()).spawn().unwrap();
    let server = Nats { server: child, port, _dir: dir };
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        std::thread::sleep(Duration::from_millis(10));
    }
    runtime.block_on(async {
        let client = async_nats::connect(format!("127.0.0.1:{port}")).await.unwrap();
        let config = jetstream::stream::Config {
            name: "BENCH".to_owned(),
            subjects: vec!["bench.>".to_owned()],
            ..jetstream::stream::Config::default()
        };
        jetstream::new(client).create_stream(config).await.unwrap();
    });
    Some(server)
}

fn to_nats(port: u16, more: &str) -> String {
    format!(
        "name = \"n\"\nkind = \"nats\"\nurl = \"nats://127.0.0.1:{port}\"\nsubject = \"bench.duet\"\n{more}"
    )
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut all: Vec<f64> = values.collect();
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

/// The upstream by itself.
fn upstreams(runtime: &tokio::runtime::Runtime, readings: u64) {
    let memory = Memory::new();
    (0..readings).for_each(|_| memory.push("device-00001", 1, &PAYLOAD));
    let server = nats(runtime, "");
    let mut rounds = Vec::new();
    let mut spool = 0_u8;
    for _ in 0..ROUNDS {
        // Another spool each time, so that neither the stream nor the files know its batches.
        let mut next = || {
            spool += 1;
            memory.name(SpoolId([spool; 16]));
        };
        next();
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().display();
        let file = format!("name = \"f\"\nkind = \"file\"\ndir = \"{out}/out\"\n");
        let mut done = vec![drain("file, ndjson, synced", "≥ 1 M/s", &memory, &file)];
        if let Some(Nats { port, .. }) = &server {
            next();
            let settings = to_nats(*port, "format = \"protobuf\"\n");
            let goal = "≤ 100 ns, ≥ 5 M/s, ≤ 64 MiB";
            done.push(drain("nats, protobuf", goal, &memory, &settings));
            next();
            done.push(drain("nats, ndjson", "≤ 150 ns", &memory, &to_nats(*port, "")));
            let few = (readings / 20).max(1);
            done.push(measure("nats, each reading singly", "≥ 30 times Duet", few, || {
                runtime.block_on(naive(*port, few));
            }));
        }
        rounds.push(done);
    }
    println!("{:<28} {:>10} {:>14} {:>10}   goal", "upstream", "CPU ns", "readings/s", "MiB more");
    let mut medians = Vec::new();
    for at in 0..rounds[0].len() {
        let middle = |of: fn(&Measured) -> f64| median(rounds.iter().map(|round| of(&round[at])));
        let (cpu_ns, rate) = (middle(|one| one.cpu_ns), middle(|one| one.per_second));
        let (grown, Measured { name, goal, .. }) = (middle(|one| one.grown_mib), &rounds[0][at]);
        println!("{name:<28} {cpu_ns:>10.0} {rate:>14.0} {grown:>10.0}   {goal}");
        medians.push(cpu_ns);
    }
    if let [_, protobuf, ndjson, singly] = medians[..] {
        let (binary, lines) = (singly / protobuf, singly / ndjson);
        println!("singly costs {binary:.0} times protobuf, {lines:.0} times ndjson");
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(since.as_millis()).unwrap()
}

/// Reads the stream, and how old readings are when they come: the first and the last one of each batch, in milliseconds.
/// Ends when nothing has come for a while.
async fn ages(port: u16) -> Vec<f64> {
    let client = async_nats::connect(format!("127.0.0.1:{port}")).await.unwrap();
    let stream = jetstream::new(client).get_stream("BENCH").await.unwrap();
    let config = jetstream::consumer::pull::OrderedConfig::default();
    let consumer = stream.create_consumer(config).await.unwrap();
    let mut messages = consumer.messages().await.unwrap();
    let mut ages = Vec::new();
    while let Ok(Some(Ok(message))) =
        tokio::time::timeout(Duration::from_secs(6), messages.next()).await
    {
        let now = now_ms();
        let text = std::str::from_utf8(&message.payload).unwrap();
        for line in text.lines().take(1).chain(text.lines().next_back()) {
            let at = line.split("\"received_ms\":").nth(1).unwrap();
            let digits = at.split(|c: char| !c.is_ascii_digit()).next().unwrap();
            let received: u64 = digits.parse().unwrap();
            ages.push(f64::from(u32::try_from(now.saturating_sub(received)).unwrap_or(u32::MAX)));
        }
    }
    ages
}

/// One run of the gateway: its time for each reading, ns; readings confirmed a second; ages of readings.
#[expect(clippy::cast_precision_loss, reason = "a mean")]
fn gateway(upstream: &str, watched: Option<u16>) -> (f64, f64, Vec<f64>) {
    let dir = tempfile::tempdir().unwrap();
    let profile = Profile { mode: Mode::Certificate, source: KeySource::Ephemeral };
    let wanted: Vec<_> = (0..DEVICES)
        .map(|number| Wanted {
            name: format!("device-{number:05}"),
            profile,
            transport: Transport::Datagram,
        })
        .collect();
    let program = Path::new(env!("CARGO_BIN_EXE_duet"));
    let settings =
        if upstream.is_empty() { String::new() } else { format!("\n[[upstream]]\n{upstream}") };
    let (gateway, members) =
        LocalGateway::start_with(&settings, program, dir.path(), 1, &wanted).unwrap();
    let mut crowd = Crowd::new(members, gateway.address, 1, Loss(0), 7).unwrap();
    crowd.open(Duration::from_millis(500), Duration::from_secs(60)).unwrap();
    let watching = watched.map(|port| {
        std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(ages(port))
        })
    });
    let progress = Arc::clone(&crowd.progress);
    let confirmed = || progress.confirmed.load(Ordering::Relaxed);
    let (before, cpu) = (confirmed(), process_cpu(gateway.pid()).unwrap());
    let payloads = [PAYLOAD.to_vec()];
    crowd
        .steady(Steady { period: PERIOD, pacing: Loop::Open, span: SPAN, payloads: &payloads })
        .unwrap();
    // What is still on its way to the upstream belongs to it.
    std::thread::sleep(Duration::from_millis(500));
    let cpu = process_cpu(gateway.pid()).unwrap() - cpu;
    let readings = confirmed() - before;
    let ages = watching.map_or_else(Vec::new, |watching| watching.join().unwrap());
    gateway.stop().unwrap();
    (cpu.as_nanos() as f64 / readings as f64, readings as f64 / SPAN.as_secs_f64(), ages)
}

/// The gateway as a process.
fn gateways(runtime: &tokio::runtime::Runtime) {
    let names = ["gateway without upstream", "gateway and nats", "the same, sync_interval: always"];
    let mut rows = [Vec::new(), Vec::new(), Vec::new()];
    let mut ages = Vec::new();
    for _ in 0..ROUNDS {
        let (cpu_ns, rate, _) = gateway("", None);
        rows[0].push((cpu_ns, rate));
        let Some(server) = nats(runtime, "") else { break };
        let (cpu_ns, rate, _) = gateway(&to_nats(server.port, ""), None);
        rows[1].push((cpu_ns, rate));
        drop(server);
        let Some(server) = nats(runtime, "sync_interval: always") else { break };
        let (cpu_ns, rate, seen) = gateway(&to_nats(server.port, ""), Some(server.port));
        rows[2].push((cpu_ns, rate));
        ages.extend(seen);
    }
    println!("\n{:<34} {:>10} {:>14}", "200,000 readings/s are sent", "CPU ns", "confirmed/s");
    let mut medians = Vec::new();
    for (name, row) in names.iter().zip(&rows).filter(|(_, row)| !row.is_empty()) {
        let cpu_ns = median(row.iter().map(|one| one.0));
        println!("{name:<34} {cpu_ns:>10.0} {:>14.0}", median(row.iter().map(|one| one.1)));
        medians.push(cpu_ns);
    }
    if let [without, with, ..] = medians[..] {
        println!("with an upstream: {:.2} times (goal ≤ 1.06)", with / without);
    }
    ages.sort_by(f64::total_cmp);
    if !ages.is_empty() {
        let at = |part: usize| ages[(ages.len() - 1) * part / 100];
        println!(
            "receipt to a consumer of the synced stream: p50 {} ms, p99 {} ms, most {} ms, of {} readings looked at",
            at(50),
            at(99),
            at(100),
            ages.len(),
        );
    }
}

fn main() {
    let given = std::env::args().filter_map(|text| text.parse().ok()).next();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    upstreams(&runtime, given.unwrap_or(1_000_000));
    gateways(&runtime);
}
