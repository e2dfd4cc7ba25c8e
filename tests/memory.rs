//! After CLOSE neither process holds the session's keys any more: both memories are searched.
#![allow(clippy::unwrap_used, reason = "a test's helpers may")]

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::fs::FileExt as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use duet::registry::{Enrolment, NewDevice, Registry, SourceSet};
use duet_device::{Config, Device, DeviceKey, Identity, Software};
use duet_protocol::identity::{DeviceId, Fingerprint, Gateway, PublicKey, RegistrationKey};
use duet_protocol::profile::{KeySource, Mode, Profile, Transport};
use duet_protocol::wire::{Kind, MESSAGE_MAX};

const PROFILE: Profile = Profile { mode: Mode::RegisteredId, source: KeySource::Ephemeral };
const SEED: [u8; 32] = [0x5e; 32];
const ROLE: &str = "DUET_TEST_DEVICE";

fn identity() -> Identity {
    let id = DeviceId([7; 8]);
    let key = DeviceKey::Registration(RegistrationKey([0x4b; 32]));
    Identity { id, fingerprint: Fingerprint::of_registered_id(&id), key }
}

fn device(gateway: Gateway) -> Device<Software> {
    let (identity, transport) = (identity(), Transport::Datagram);
    let config = Config { identity, gateway, profile: PROFILE, transport, fresh: 1 };
    Device::seeded(config, SEED).unwrap()
}

/// The device's process: this test binary again. It opens a session, then follows its input.
#[test]
fn device_process() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let mut words = role.split(' ');
    let to: SocketAddr = words.next().unwrap().parse().unwrap();
    let mut bytes = words.map(|word| duet::hex::decode(word).unwrap());
    let key = PublicKey::from_sec1(&bytes.next().unwrap()).unwrap();
    let fingerprint = Fingerprint(bytes.next().unwrap().try_into().unwrap());
    let gateway = Gateway { key_id: bytes.next().unwrap()[0], fingerprint, key };
    let mut device = Box::new(device(gateway));
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(to).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let began = Instant::now();
    let now = || u64::try_from(began.elapsed().as_micros()).unwrap();
    device.open(0);
    let mut out = [0; MESSAGE_MAX];
    let mut drive = |device: &mut Device<Software>,
                     until: &dyn Fn(&mut Device<Software>) -> bool| {
        while !until(device) {
            while let Some(len) = device.poll_transmit(now(), &mut out) {
                socket.send(&out[..len]).unwrap();
            }
            if let Ok(len) = socket.recv(&mut out) {
                let _ = device.handle_message(now(), &mut out[..len]);
            }
        }
    };
    device.send_reading(0, 1, b"a secret reading", true).unwrap();
    drive(&mut device, &|device| device.poll_confirmed().is_some());
    println!("open");
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    device.close();
    drive(&mut device, &|device| !device.is_open());
    println!("closed");
    std::io::stdin().read_line(&mut line).unwrap();
}

/// What the device computes, computed again from what crossed the wire: by its twin.
fn session_keys(gateway: Gateway, hello: &[u8], accept: &[u8]) -> [([u8; 16], [u8; 12]); 2] {
    let mut twin = device(gateway);
    twin.open(0);
    let mut out = [0; MESSAGE_MAX];
    let len = twin.poll_transmit(0, &mut out).unwrap();
    assert_eq!(&out[..len], hello, "the same seed makes the same HELLO");
    twin.handle_message(0, &mut accept.to_vec()).unwrap();
    twin.session_keys().unwrap()
}

/// The eleven round keys of AES-128 (FIPS 197 §5.2); the first is the key itself.
fn round_keys(key: &[u8; 16]) -> Vec<[u8; 16]> {
    fn times(mut a: u8, mut b: u8) -> u8 {
        let mut product = 0;
        while b != 0 {
            if b & 1 == 1 {
                product ^= a;
            }
            a = a << 1 ^ if a & 0x80 == 0 { 0 } else { 0x1b };
            b >>= 1;
        }
        product
    }
    let substitute = |byte: u8| {
        let inverse = (0..=255).find(|other| times(byte, *other) == 1).unwrap_or(0);
        (0..5).fold(0x63, |sum, turn| sum ^ inverse.rotate_left(turn))
    };
    let mut keys = vec![*key];
    let mut constant = 1;
    for _ in 0..10 {
        let last = *keys.last().unwrap();
        let mut next = last;
        for i in 0..4 {
            next[i] ^= substitute(last[12 + (i + 1) % 4]);
        }
        next[0] ^= constant;
        for i in 4..16 {
            next[i] ^= next[i - 4];
        }
        constant = times(constant, 2);
        keys.push(next);
    }
    keys
}

#[test]
fn the_key_schedule_is_that_of_fips_197() {
    let key = *b"\x2b\x7e\x15\x16\x28\xae\xd2\xa6\xab\xf7\x15\x88\x09\xcf\x4f\x3c";
    let last = *b"\xd0\x14\xf9\xa8\xc9\xee\x25\x89\xe1\x3f\x0c\xc8\xb6\x63\x0c\xa6";
    assert_eq!(round_keys(&key)[10], last);
}

/// How often each needle is in the process's readable memory.
fn search(pid: u32, needles: &[(String, Vec<u8>)]) -> Vec<String> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let mut found = Vec::new();
    for line in maps.lines().filter(|line| line.split(' ').nth(1).unwrap().starts_with('r')) {
        let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let start = u64::from_str_radix(start, 16).unwrap();
        let end = u64::from_str_radix(end, 16).unwrap();
        let mut bytes = vec![0; usize::try_from(end - start).unwrap()];
        // Regions such as [vvar] cannot be read.
        if memory.read_exact_at(&mut bytes, start).is_err() {
            continue;
        }
        for (name, needle) in needles {
            let hits = memchr::memmem::find_iter(&bytes, needle);
            found.extend(hits.map(|at| format!("{name} at {:x} in {line}", start + at as u64)));
        }
    }
    found
}

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Carries datagrams between the device and the gateway until the device says `word`; keeps the
/// two messages of the handshake.
fn relay_until(
    word: &str,
    device: &mut (impl std::io::BufRead + Send),
    front: &UdpSocket,
    back: &UdpSocket,
    kept: &mut Vec<Vec<u8>>,
) {
    std::thread::scope(|scope| {
        let said = scope.spawn(|| {
            let mut line = String::new();
            while !line.contains(word) {
                line.clear();
                assert!(device.read_line(&mut line).unwrap() > 0, "the device process ended");
            }
        });
        let mut buffer = [0; MESSAGE_MAX];
        while !said.is_finished() {
            if let Ok((len, from)) = front.recv_from(&mut buffer) {
                front.connect(from).unwrap();
                kept.push(buffer[..len].to_vec());
                back.send(&buffer[..len]).unwrap();
            }
            if let Ok(len) = back.recv(&mut buffer) {
                kept.push(buffer[..len].to_vec());
                front.send(&buffer[..len]).unwrap();
            }
        }
    });
}

#[test]
fn neither_process_holds_a_session_key_after_close() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let duet = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_duet"));
        command.arg("--state").arg(&state);
        command
    };
    assert!(duet().arg("init").output().unwrap().status.success());
    let now_s = duet::identity::now_s();
    {
        let registry = Registry::open(&state.join("registry.redb")).unwrap();
        let Identity { id, .. } = identity();
        let enrolment = Enrolment::RegisteredId { id, key: RegistrationKey([0x4b; 32]) };
        let sources = SourceSet::of([PROFILE.source]);
        registry
            .add(NewDevice { name: "one".parse().unwrap(), enrolment, sources, made: false }, now_s)
            .unwrap();
    }
    let config = duet::config::Config::load(Some(&state), None, &Default::default()).unwrap();
    let role = duet::identity::Role::Gateway;
    let certificate =
        duet::identity::load_certificate(&config.gateway.certificate, role, now_s).unwrap();
    let (fingerprint, key) = (certificate.fingerprint, certificate.key);
    let gateway = Gateway { key_id: config.gateway.key_id, fingerprint, key };

    let mut process = Ended(
        duet()
            .args(["run", "--shards", "1", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let mut lines = BufReader::new(process.0.stdout.take().unwrap()).lines();
    let address = lines.find_map(|line| {
        let line = line.unwrap();
        let address = line.strip_prefix("listening")?.split_whitespace().next()?;
        Some(address.parse::<SocketAddr>().unwrap())
    });
    let front = UdpSocket::bind("127.0.0.1:0").unwrap();
    let back = UdpSocket::bind("127.0.0.1:0").unwrap();
    back.connect(address.unwrap()).unwrap();
    for socket in [&front, &back] {
        socket.set_read_timeout(Some(Duration::from_millis(2))).unwrap();
    }

    let hex = |bytes: &[u8]| duet::hex::Hex(bytes).to_string();
    let to = front.local_addr().unwrap();
    let told = [to.to_string(), hex(&key.0), hex(&fingerprint.0), hex(&[gateway.key_id])];
    let mut device = Ended(
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "device_process", "--nocapture"])
            .env(ROLE, told.join(" "))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let mut said = BufReader::new(device.0.stdout.take().unwrap());
    let mut kept = Vec::new();
    relay_until("open", &mut said, &front, &back, &mut kept);
    let find = |kind| kept.iter().find(|message| Kind::of(message) == Ok(kind)).unwrap();
    let keys = session_keys(gateway, find(Kind::Hello), find(Kind::Accept));
    let mut needles = Vec::new();
    for (name, (key, iv)) in ["up", "down"].into_iter().zip(keys) {
        for (round, key) in round_keys(&key).into_iter().enumerate() {
            needles.push((format!("{name} round key {round}"), key.to_vec()));
        }
        needles.push((format!("{name} iv"), iv.to_vec()));
    }

    let processes = [("gateway", process.0.id()), ("device", device.0.id())];
    // Both keep a resting session's keys as they are; round key 0 is the key itself.
    let living = ["up round key 0 ", "down round key 0 ", "up iv"];
    for (name, pid) in processes {
        let found = search(pid, &needles);
        for needle in living {
            let there = found.iter().any(|hit| hit.starts_with(needle));
            assert!(there, "the search must find {needle} in the {name} while the session lives");
        }
        let expanded = |hit: &&String| hit.contains("round key") && !hit.contains("key 0 ");
        assert_eq!(found.iter().find(expanded), None, "expanded between two records");
    }
    device.0.stdin.as_mut().unwrap().write_all(b"close\n").unwrap();
    relay_until("closed", &mut said, &front, &back, &mut kept);
    // CLOSE is on its way to the gateway; it acts within a turn.
    let deadline = Instant::now() + Duration::from_secs(3);
    let mut buffer = [0; MESSAGE_MAX];
    while Instant::now() < deadline {
        if let Ok((len, _)) = front.recv_from(&mut buffer) {
            back.send(&buffer[..len]).unwrap();
        }
        let left: usize = processes.iter().map(|(_, pid)| search(*pid, &needles).len()).sum();
        if left == 0 {
            return;
        }
    }
    for (name, pid) in processes {
        let found = search(pid, &needles);
        assert!(found.is_empty(), "the {name} still holds:\n{}", found.join("\n"));
    }
}
