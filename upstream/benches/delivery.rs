//! What it costs to pass readings on: processor time of this process for each reading of 64 bytes, from a spool in
//! memory to the upstream's acknowledgement, and beside it, in the same run, a program that publishes each reading
//! singly with the same client. `cargo bench -p duet-upstream --bench delivery [READINGS]`.
//!
//! A real spool adds reading the page cache and a checksum, some ten nanoseconds. The server's own processor time is not
//! counted: it is another process.
#![allow(clippy::unwrap_used, reason = "a bench may")]

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream;
use duet_upstream::testing::Memory;
use duet_upstream::{Options, Settings, Source};
use rustix::time::{ClockId, clock_gettime};

const ROUNDS: usize = 3;
const PAYLOAD: [u8; 64] = [b'7'; 64];

struct Measured {
    name: &'static str,
    cpu_ns: f64,
    per_second: f64,
}

fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap(), time.tv_nsec.try_into().unwrap())
}

#[expect(clippy::cast_precision_loss, reason = "a mean")]
fn measure(name: &'static str, readings: u64, work: impl FnOnce()) -> Measured {
    let (cpu_before, began) = (cpu(), Instant::now());
    work();
    let (cpu_ns, wall) = ((cpu() - cpu_before).as_nanos() as f64, began.elapsed().as_secs_f64());
    Measured { name, cpu_ns: cpu_ns / readings as f64, per_second: readings as f64 / wall }
}

/// Drains the spool into one upstream.
fn drain(name: &'static str, memory: &Memory, settings: &str) -> Measured {
    let dir = tempfile::tempdir().unwrap();
    let settings: Settings = toml::from_str(settings).unwrap();
    let upstream = settings.check(dir.path()).unwrap();
    let options = Options {
        dir: dir.path().join("upstream"),
        upstreams: vec![upstream],
        tell: Arc::new(|said| eprintln!("{said}")),
    };
    let readings = memory.durable();
    measure(name, readings, || {
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
    let mut waiting = std::collections::VecDeque::new();
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
fn nats(runtime: &tokio::runtime::Runtime) -> Option<Nats> {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/servers/nats-server");
    if !program.is_file() {
        println!("SKIPPED: nats-server is not installed; scripts/install-servers does it");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let conf = dir.path().join("conf");
    let store = dir.path().display();
    std::fs::write(
        &conf,
        format!("listen: 127.0.0.1:{port}\njetstream {{ store_dir: \"{store}\" }}\n"),
    )
    .unwrap();
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

fn main() {
    let readings =
        std::env::args().filter_map(|text| text.parse().ok()).next().unwrap_or(1_000_000);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let memory = Memory::new();
    (0..readings).for_each(|_| memory.push("device-00001", 1, &PAYLOAD));
    let server = nats(&runtime);
    let mut rounds = Vec::new();
    for round in 0..ROUNDS {
        // Another spool each round, so that the stream does not know its batches.
        memory.name(duet_upstream::SpoolId([u8::try_from(round).unwrap(); 16]));
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().display();
        let file = format!("name = \"f\"\nkind = \"file\"\ndir = \"{out}/out\"\n");
        let mut done = vec![drain("file, ndjson, synced", &memory, &file)];
        if let Some(Nats { port, .. }) = &server {
            let nats = |more: &str| {
                format!(
                    "name = \"n\"\nkind = \"nats\"\nurl = \"nats://127.0.0.1:{port}\"\nsubject = \"bench.duet\"\n{more}"
                )
            };
            done.push(drain("nats, protobuf", &memory, &nats("format = \"protobuf\"\n")));
            // The same batches under the same names would be thrown away by the stream.
            memory.name(duet_upstream::SpoolId([u8::try_from(round + 100).unwrap(); 16]));
            done.push(drain("nats, ndjson", &memory, &nats("")));
            let few = readings / 20;
            done.push(measure("nats, each reading singly", few, || {
                runtime.block_on(naive(*port, few));
            }));
        }
        rounds.push(done);
    }
    println!("{:<28} {:>16} {:>14}", "", "CPU ns a reading", "readings/s");
    for at in 0..rounds[0].len() {
        let middle = |of: fn(&Measured) -> f64| {
            let mut all: Vec<f64> = rounds.iter().map(|round| of(&round[at])).collect();
            all.sort_by(f64::total_cmp);
            all[ROUNDS / 2]
        };
        let (cpu_ns, rate) = (middle(|one| one.cpu_ns), middle(|one| one.per_second));
        println!("{:<28} {cpu_ns:>16.0} {rate:>14.0}", rounds[0][at].name);
    }
}
