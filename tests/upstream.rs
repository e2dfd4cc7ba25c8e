//! A whole gateway with an upstream, devices that send, and kills at any moment: what a device saw confirmed arrives,
//! once, with its content, in the order in which the device sent it.
#![allow(clippy::unwrap_used, reason = "a test's helpers may")]

use std::collections::{HashMap, HashSet};
use std::fs;
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
