//! A whole gateway with an upstream, devices that send, and kills at any moment: what a device saw confirmed arrives,
//! once, with its content, in the order in which the device sent it.
#![allow(clippy::unwrap_used, reason = "a test's helpers may")]

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use duet::hex::Hex;
use duet_protocol::profile::{Profile, Transport};
use duet_upstream::testing::Rng;
use loadgen::fleet::{self, Job, Outcome};
use loadgen::local::{LocalGateway, Wanted};
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_duet");
const SHARDS: usize = 2;

fn settings() -> &'static str {
    "\n[[upstream]]\nname = \"files\"\nkind = \"file\"\ndir = \"out\"\npayload = \"hex\"\nfile_bytes = 65536\n"
}

fn wanted(count: usize) -> Vec<Wanted> {
    let one = |number: usize| Wanted {
        name: format!("device-{number:03}"),
        profile: Profile::ALL[number % Profile::ALL.len()],
        transport: Transport::Datagram,
    };
    (0..count).map(one).collect()
}

/// All lines of all files, in the order of the files.
fn lines(dir: &Path) -> Vec<Value> {
    let mut files: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let text: String = files.iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn compare(lines: &[Value], outcomes: &[Outcome]) {
    let text = |line: &Value, key: &str| line[key].as_str().unwrap().to_owned();
    let mut there = HashSet::new();
    let mut last: HashMap<(String, String), u32> = HashMap::new();
    for (index, line) in lines.iter().enumerate() {
        assert_eq!(line["index"], index, "nothing is missing in the files, or there twice");
        let (device, id) = (text(line, "device"), text(line, "id"));
        // The reading inside HELLO is the first one of its session.
        let number = u32::from_str_radix(&id[24..], 16).unwrap().wrapping_add(1);
        let new = there.insert((
            device.clone(),
            id.clone(),
            line["channel"].as_u64().unwrap(),
            text(line, "payload_hex"),
        ));
        if !new {
            // The device sent it again, since it saw no confirmation.
            continue;
        }
        // Of one session, in the order in which it was sent; a reading that came again keeps its place.
        let before = last.insert((device.clone(), id[..24].to_owned()), number);
        assert!(before.is_none_or(|before| before < number), "{device}: {before:?}, then {number}");
    }
    let mut confirmed = 0;
    for one in outcomes.iter().flat_map(|outcome| &outcome.confirmed) {
        let id = one.id.encode();
        let payload = Hex(&one.payload).to_string();
        let key = (one.device.clone(), Hex(&id).to_string(), u64::from(one.channel), payload);
        assert!(there.contains(&key), "confirmed, and not delivered: {key:?}");
        confirmed += 1;
    }
    assert!(confirmed > 0, "nothing was confirmed");
    println!("{confirmed} confirmed readings, {} delivered", lines.len());
}

/// Kills the gateway so often (`DUET_KILLS`, or 4 times) at random moments while devices send.
#[test]
fn what_was_confirmed_arrives_whatever_is_killed() {
    let kills = std::env::var("DUET_KILLS").map_or(4, |text| text.parse::<u32>().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let program = Path::new(PROGRAM);
    let (mut gateway, members) =
        LocalGateway::start_with(settings(), program, dir.path(), SHARDS, &wanted(40)).unwrap();
    let time = Duration::from_secs(4 + u64::from(kills));
    let limit = time + Duration::from_secs(60);
    let job = Job { gateway: gateway.address, readings: 20, ramp: time, limit, threads: 1 };
    let fleet = std::thread::spawn(move || fleet::run(members, job).unwrap());
    let mut rng = Rng::new(99);
    for _ in 0..kills {
        std::thread::sleep(Duration::from_millis(rng.below(1_500)));
        gateway.crash(program, SHARDS).unwrap();
    }
    let outcomes = fleet.join().unwrap();
    let state = gateway.state.clone();
    gateway.stop().unwrap();
    compare(&lines(&state.join("out")), &outcomes);
}

/// A NATS server, spoken to by hand: whoever leaves commands there.
struct Nats {
    child: std::process::Child,
    port: u16,
    _dir: tempfile::TempDir,
}

impl Drop for Nats {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Nats {
    fn start() -> Option<Self> {
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/servers/nats-server");
        if !program.is_file() {
            println!("SKIPPED: nats-server is not installed; scripts/install-servers does it");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let store = dir.path().display();
        let conf = dir.path().join("conf");
        let text = format!("listen: 127.0.0.1:{port}\njetstream {{ store_dir: \"{store}\" }}\n");
        fs::write(&conf, text).unwrap();
        let mut command = Command::new(program);
        let child =
            command.arg("-c").arg(conf).stderr(std::process::Stdio::null()).spawn().unwrap();
        let nats = Self { child, port, _dir: dir };
        let began = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(began.elapsed() < Duration::from_secs(30), "it does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(nats)
    }

    /// Says these lines after CONNECT, and calls `take` with the payload of each message until it says that it was the last.
    fn talk(&self, lines: &str, mut take: impl FnMut(&[u8]) -> bool) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(90))).unwrap();
        let hello = "CONNECT {\"verbose\":false,\"headers\":true,\"no_responders\":true}\r\n";
        stream.write_all(format!("{hello}{lines}").as_bytes()).unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut line = String::new();
        loop {
            line.clear();
            assert!(reader.read_line(&mut line).unwrap() > 0, "the server hung up");
            if line.starts_with("PING") {
                stream.write_all(b"PONG\r\n").unwrap();
            }
            if line.starts_with("MSG ") {
                let length: usize = line.trim_end().rsplit(' ').next().unwrap().parse().unwrap();
                let mut payload = vec![0; length + 2];
                reader.read_exact(&mut payload).unwrap();
                if take(&payload[..length]) {
                    return;
                }
            }
        }
    }

    fn make_stream(&self, name: &str, subject: &str) {
        let config = format!(
            "{{\"name\":\"{name}\",\"subjects\":[\"{subject}\"],\"storage\":\"file\",\"retention\":\"limits\",\"num_replicas\":1}}"
        );
        let api =
            format!("PUB $JS.API.STREAM.CREATE.{name} answers {}\r\n{config}\r\n", config.len());
        self.talk(&format!("SUB answers 1\r\n{api}"), |answer| {
            let answer = String::from_utf8_lossy(answer).into_owned();
            assert!(answer.contains("\"created\""), "{answer}");
            true
        });
    }
}

/// Commands are left at a server while the gateway is killed, and killed again: each is queued once, in the order in which
/// it was left, and its sender hears of it.
#[test]
fn commands_that_come_by_nats_are_queued_once_whatever_is_killed() {
    const COMMANDS: usize = 300;
    let Some(nats) = Nats::start() else { return };
    nats.make_stream("READINGS", "readings");
    nats.make_stream("ORDERS", "orders");
    let settings = format!(
        "\n[[upstream]]\nname = \"cloud\"\nkind = \"nats\"\nurl = \"nats://127.0.0.1:{}\"\nsubject = \"readings\"\n\
         commands = \"orders\"\n",
        nats.port
    );
    let dir = tempfile::tempdir().unwrap();
    let program = Path::new(PROGRAM);
    let (mut gateway, _members) =
        LocalGateway::start_with(&settings, program, dir.path(), 1, &wanted(10)).unwrap();
    let mut lines = "SUB told 1\r\n".to_owned();
    for number in 0..COMMANDS {
        let name = format!("device-{:03}", number % 10);
        let body = format!("{{\"device\":\"{name}\",\"payload\":\"{number:04x}\"}}");
        let headers =
            format!("NATS/1.0\r\nDuet-Reply: told\r\nNats-Msg-Id: order-{number}\r\n\r\n");
        let (head, all) = (headers.len(), headers.len() + body.len());
        lines += &format!("HPUB orders {head} {all}\r\n{headers}{body}\r\n");
    }
    let told = std::thread::scope(|scope| {
        let listener = scope.spawn(|| {
            let mut told = std::collections::BTreeMap::new();
            nats.talk(&lines, |answer| {
                let answer: Value = serde_json::from_slice(answer).unwrap();
                let command = &answer["command"];
                told.insert(
                    command["key"].as_str().unwrap().to_owned(),
                    command["id"].as_u64().unwrap(),
                );
                told.len() == COMMANDS
            });
            told
        });
        let mut rng = Rng::new(5);
        for _ in 0..4 {
            std::thread::sleep(Duration::from_millis(rng.below(400)));
            gateway.crash(program, 1).unwrap();
        }
        listener.join().unwrap()
    });
    let (listed, said) = duet(&gateway.state, &["command", "list", "--format", "json"]);
    assert!(listed, "{said}");
    let queued: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(queued.len(), COMMANDS, "each once");
    let mut last: HashMap<String, u64> = HashMap::new();
    for command in &queued {
        let key = command["key"].as_str().unwrap();
        assert_eq!(command["id"].as_u64(), told.get(key).copied(), "{key}");
        let number: u64 = key.strip_prefix("order-").unwrap().parse().unwrap();
        assert_eq!(command["payload"], format!("{number:04x}"));
        let before = last.insert(command["device"].as_str().unwrap().to_owned(), number);
        assert!(before.is_none_or(|before| before < number), "{before:?}, then {number}");
    }
    gateway.stop().unwrap();
}

fn duet(state: &Path, arguments: &[&str]) -> (bool, String) {
    let output = Command::new(PROGRAM).arg("--state").arg(state).args(arguments).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(said).unwrap())
}

#[test]
fn what_does_not_leave_shows_and_a_required_upstream_does_not_vanish() {
    let dir = tempfile::tempdir().unwrap();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let settings = format!(
        "\n[[upstream]]\nname = \"hook\"\nkind = \"webhook\"\nurl = \"http://{closed}/\"\nlate_after_s = 1\n"
    );
    let program = Path::new(PROGRAM);
    let (gateway, members) =
        LocalGateway::start_with(&settings, program, dir.path(), SHARDS, &wanted(2)).unwrap();
    let limit = Duration::from_secs(60);
    let ramp = Duration::from_millis(1);
    let job = Job { gateway: gateway.address, readings: 3, ramp, limit, threads: 1 };
    let outcomes = fleet::run(members, job).unwrap();
    assert!(outcomes.iter().all(|outcome| outcome.complete), "devices are served all the same");
    let state = gateway.state.clone();
    let began = Instant::now();
    let said = loop {
        let (healthy, said) = duet(&state, &["status"]);
        if !healthy {
            break said;
        }
        assert!(began.elapsed() < Duration::from_secs(10), "not shown within ten seconds: {said}");
        std::thread::sleep(Duration::from_millis(100));
    };
    assert!(said.contains("delivering") && said.contains("hook (webhook)"), "{said}");
    assert!(said.contains("6 waiting") && said.contains("refused"), "{said}");
    gateway.stop().unwrap();

    let file = state.join("duet.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace(&settings, "")).unwrap();
    let listen = ["--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--shards", "1"];
    let (started, said) = duet(&state, &[&["run"][..], &listen].concat());
    assert!(!started && said.contains("6 readings") && said.contains("--forget hook"), "{said}");
    let (started, said) = duet(&state, &[&["run", "--forget", "nobody"][..], &listen].concat());
    assert!(!started && said.contains("no upstream of this name"), "{said}");
    let mut child = Command::new(PROGRAM);
    child.arg("--state").arg(&state).args(["run", "--forget", "hook"]).args(listen);
    let mut child = child.stdout(std::process::Stdio::null()).spawn().unwrap();
    let began = Instant::now();
    while !duet(&state, &["status"]).0 {
        assert!(began.elapsed() < Duration::from_secs(30), "it does not run");
        std::thread::sleep(Duration::from_millis(100));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}
