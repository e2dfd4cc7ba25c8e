//! What is over is in no process's memory: after CLOSE neither holds the session's keys any more, and a gateway
//! nothing of what was removed.
#![allow(clippy::unwrap_used, reason = "a test's helpers may")]

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, Write as _};
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::fs::FileExt as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use duet::registry::{Enrolment, NewDevice, Registry, SourceSet};
use duet_device::{Config, Device, DeviceKey, Early, Identity, Software};
use duet_protocol::ec::SecretScalar;
use duet_protocol::identity::{Credential, DeviceId, Gateway, PublicKey, RegistrationKey};
use duet_protocol::profile::{Mode, Offer, Profile, Transport};
use duet_protocol::wire::{Kind, MESSAGE_MAX};
use nix::sys::ptrace;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

mod hellos;
mod removed;
mod secrets;

use secrets::{Key, Sides};

const ROLE: &str = "DUET_TEST_DEVICE";
/// The counter of each device's first life. In a later one its reading comes inside HELLO.
const FIRST: u64 = 1;

fn seed(number: usize, life: u64) -> [u8; 32] {
    let mut seed = [0x5e ^ u8::try_from(number).unwrap(); 32];
    seed[..8].copy_from_slice(&life.to_le_bytes());
    seed
}

fn registration_key(number: usize) -> [u8; 32] {
    let mut key = [0x4b; 32];
    key[..8].copy_from_slice(&number.to_be_bytes());
    key
}

/// What the gateway knows of the device of this profile.
fn credential(number: usize, der: &[u8], public: Option<PublicKey>) -> Credential {
    let id = DeviceId(number.to_be_bytes());
    match (Profile::ALL[number].mode, public) {
        (Mode::RegisteredCertificate, Some(key)) => {
            Credential::registered_certificate(id, der, key)
        }
        (Mode::Certificate, Some(key)) => Credential::certificate(der, key),
        _ => Credential::registered_id(id, RegistrationKey(registration_key(number))),
    }
}

/// The device's process: this test binary again. It opens a session, then follows its input.
#[test]
fn device_process() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let mut words = role.split(' ');
    let to: SocketAddr = words.next().unwrap().parse().unwrap();
    let number: usize = words.next().unwrap().parse().unwrap();
    let life: u64 = words.next().unwrap().parse().unwrap();
    let mut bytes = words.map(|word| duet::hex::decode(word).unwrap());
    let mut next = || bytes.next().unwrap();
    let key = PublicKey::from_sec1(&next()).unwrap();
    let fingerprint = duet_protocol::identity::Fingerprint(next().try_into().unwrap());
    let gateway = Gateway { key_id: next()[0], fingerprint, key };
    let secret = SecretScalar::from_bytes(&next().try_into().unwrap());
    let der = bytes.next().unwrap_or_default();
    let Credential { id, fingerprint, .. } =
        credential(number, &der, secret.as_ref().map(SecretScalar::public_key));
    let profile = Profile::ALL[number];
    let key = match (profile.mode, secret) {
        (Mode::Certificate | Mode::RegisteredCertificate, Some(secret)) => {
            DeviceKey::Private(secret)
        }
        _ => DeviceKey::Registration(RegistrationKey(registration_key(number))),
    };
    let (identity, transport) = (Identity { id, fingerprint, key }, Transport::Datagram);
    let config = Config { identity, gateway, profile, transport, fresh: life };
    let mut device = Box::new(Device::<Software>::seeded(config, seed(number, life)).unwrap());
    if life > FIRST {
        device.set_early(Early::Stay);
    }
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

/// A process, and the way into its memory, which its parent keeps when the process has closed it to its own user.
struct Process {
    child: Child,
    maps: File,
    memory: File,
}

impl Process {
    /// Starts a program and stops it before it does anything.
    fn start(command: &Command) -> Self {
        // The shell waits for a line until it is traced, and is the program afterwards.
        let mut shell = Command::new("sh");
        shell.args(["-c", "read line; exec \"$0\" \"$@\""]);
        shell.arg(command.get_program()).args(command.get_args());
        shell.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let mut child = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        ptrace::seize(pid, ptrace::Options::PTRACE_O_TRACEEXEC).unwrap();
        child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
        let program = std::fs::canonicalize(command.get_program()).unwrap();
        loop {
            let stopped = waitpid(pid, None).unwrap();
            assert!(matches!(stopped, WaitStatus::PtraceEvent(..)), "{stopped:?}");
            if std::fs::read_link(format!("/proc/{pid}/exe")).unwrap() == program {
                break;
            }
            // It was still about to become the shell.
            ptrace::cont(pid, None).unwrap();
        }
        let open = |name| File::open(format!("/proc/{pid}/{name}")).unwrap();
        let (maps, memory) = (open("maps"), open("mem"));
        ptrace::detach(pid, None).unwrap();
        Self { child, maps, memory }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How often each needle is in the process's readable memory.
fn search(process: &Process, needles: &[(String, Vec<u8>)]) -> Vec<String> {
    let (mut maps, memory) = (&process.maps, &process.memory);
    let mut lines = String::new();
    maps.rewind().unwrap();
    maps.read_to_string(&mut lines).unwrap();
    let mut found = Vec::new();
    for line in lines.lines().filter(|line| line.split(' ').nth(1).unwrap().starts_with('r')) {
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

/// A gateway's process, and what is needed to know its secrets.
struct Running {
    process: Process,
    address: SocketAddr,
    gateway: Gateway,
    secret: SecretScalar,
    /// Each profile's device, with its certificate where it has one.
    devices: Vec<(Key, Vec<u8>)>,
}

fn start(state: &std::path::Path) -> Running {
    start_with(state, |_| ())
}

/// Starts a gateway in a state directory that is made and prepared for it.
fn start_with(state: &std::path::Path, prepare: impl FnOnce(&std::path::Path)) -> Running {
    let duet = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_duet"));
        command.arg("--state").arg(state);
        command
    };
    assert!(duet().arg("init").output().unwrap().status.success());
    prepare(state);
    let now_s = duet::identity::now_s();
    let mut devices = Vec::new();
    {
        let registry = Registry::open(&state.join("registry.redb")).unwrap();
        for (number, profile) in Profile::ALL.into_iter().enumerate() {
            let id = DeviceId(number.to_be_bytes());
            let (enrolment, key, der) = match profile.mode {
                Mode::RegisteredId => {
                    let key = registration_key(number);
                    let enrolment = Enrolment::RegisteredId { id, key: RegistrationKey(key) };
                    (enrolment, Key::Registration(key), Vec::new())
                }
                mode => {
                    use p256::pkcs8::DecodePrivateKey as _;
                    let made = duet::identity::create("device", 30, now_s).unwrap();
                    let secret = p256::SecretKey::from_pkcs8_pem(&made.key_pem).unwrap();
                    let secret = SecretScalar::from_bytes(&secret.to_bytes().into()).unwrap();
                    let der = made.certificate_der;
                    let enrolment = if mode == Mode::Certificate {
                        Enrolment::Certificate { der: der.clone() }
                    } else {
                        Enrolment::RegisteredCertificate { id, der: der.clone() }
                    };
                    (enrolment, Key::Private(secret), der)
                }
            };
            let (name, sources) = (format!("d{number}"), SourceSet::of([profile.source]));
            let device = NewDevice {
                name: name.parse().unwrap(),
                enrolment,
                sources,
                made: false,
                labels: Default::default(),
            };
            registry.add(device, now_s).unwrap();
            devices.push((key, der));
        }
    }
    let config = duet::config::Config::load(Some(state), None, &Default::default()).unwrap();
    let files = &config.gateway;
    let identity =
        duet::identity::GatewayIdentity::load(&files.certificate, &files.key, now_s).unwrap();
    let certificate = &identity.certificate;
    let (fingerprint, key) = (certificate.fingerprint, certificate.key);
    let gateway = Gateway { key_id: files.key_id, fingerprint, key };
    let secret = SecretScalar::from_bytes(identity.secret.expose()).unwrap();
    let run = ["run", "--shards", "1", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"];
    let mut process = Process::start(duet().args(run));
    let mut lines = BufReader::new(process.child.stdout.take().unwrap()).lines();
    let address = lines.find_map(|line| {
        let line = line.unwrap();
        let address = line.strip_prefix("listening")?.split_whitespace().next()?;
        Some(address.parse::<SocketAddr>().unwrap())
    });
    Running { process, address: address.unwrap(), gateway, secret, devices }
}

/// What either process still holds of the last handshake of each profile, two seconds after its session was closed.
/// What is searched for is everything that R35 names, and all from which the session's keys follow.
#[test]
fn neither_process_holds_a_session_key_after_close() {
    let dir = tempfile::tempdir().unwrap();
    let running = start(&dir.path().join("state"));
    let mut left = Vec::new();
    for number in 0..Profile::ALL.len() {
        left.extend(one_session(&running, number, FIRST));
    }
    // A reading inside HELLO keeps the handshake's state waiting for the disk: with some profiles of each kind.
    for number in (0..Profile::ALL.len()).step_by(4) {
        left.extend(one_session(&running, number, FIRST + 10));
    }
    assert!(left.is_empty(), "\n{}", left.join("\n"));
}

/// One session of the device with this profile, and what is left of it.
fn one_session(running: &Running, number: usize, life: u64) -> Vec<String> {
    let profile = Profile::ALL[number];
    let Running { process, address, gateway, secret, devices } = running;
    let (device_key, der) = &devices[number];
    let (scalar, public) = match device_key {
        Key::Private(secret) => (*secret.expose(), Some(secret.public_key())),
        Key::Registration(_) => ([0; 32], None),
    };
    let sides = Sides {
        profile,
        gateway,
        gateway_secret: secret,
        device: credential(number, der, public).fingerprint,
        device_key,
        seed: seed(number, life),
    };
    let front = UdpSocket::bind("127.0.0.1:0").unwrap();
    let back = UdpSocket::bind("127.0.0.1:0").unwrap();
    back.connect(address).unwrap();
    let hex = |bytes: &[u8]| duet::hex::Hex(bytes).to_string();
    let to = front.local_addr().unwrap();
    let (key, fingerprint) = (hex(&gateway.key.0), hex(&gateway.fingerprint.0));
    let words = [to.to_string(), number.to_string(), life.to_string(), key, fingerprint];
    let secrets = [hex(&[gateway.key_id]), hex(&scalar), hex(der)];
    let mut device = Process::start(
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "device_process", "--nocapture"])
            .env(ROLE, [words.as_slice(), &secrets].concat().join(" ").trim()),
    );
    let mut said = BufReader::new(device.child.stdout.take().unwrap());
    let mut orders = device.child.stdin.take().unwrap();

    // The control for what lives during the handshake alone: a device that waits for ACCEPT holds hs.
    let mut buffer = [0; MESSAGE_MAX];
    front.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let (len, from) = front.recv_from(&mut buffer).unwrap();
    front.connect(from).unwrap();
    let hello = buffer[..len].to_vec();
    let offer = Offer::decode(hello[2]).unwrap();
    assert_eq!(offer.early, life > FIRST);
    let (early, ..) = secrets::of_hello(&sides, &hello);
    let found = search(&device, &early);
    assert!(found.iter().any(|hit| hit.starts_with("hs ")), "the search must find hs: {found:?}");
    back.send(&hello).unwrap();
    for socket in [&front, &back] {
        socket.set_read_timeout(Some(Duration::from_millis(2))).unwrap();
    }
    let mut kept = Vec::new();
    relay_until("open", &mut said, &front, &back, &mut kept);
    let accept = kept.iter().find(|message| Kind::of(message) == Ok(Kind::Accept)).unwrap();
    let needles = secrets::of_handshake(&sides, &hello, accept);

    let processes = [("gateway", process), ("device", &device)];
    // Both keep a resting session's keys as they are; round key 0 is the key itself.
    let living = ["up round key 0 ", "down round key 0 ", "up iv"];
    for (name, process) in processes {
        let found = search(process, &needles);
        for needle in living {
            let there = found.iter().any(|hit| hit.starts_with(needle));
            assert!(there, "the search must find {needle} in the {name} while the session lives");
        }
        let expanded = |hit: &&String| hit.contains("round key") && !hit.contains("key 0 ");
        assert_eq!(found.iter().find(expanded), None, "{name}: expanded between two records");
    }
    orders.write_all(b"close\n").unwrap();
    relay_until("closed", &mut said, &front, &back, &mut kept);
    // CLOSE is on its way to the gateway; it acts within a turn.
    let deadline = Instant::now() + Duration::from_secs(2);
    let mut left = Vec::new();
    while Instant::now() < deadline {
        if let Ok((len, _)) = front.recv_from(&mut buffer) {
            back.send(&buffer[..len]).unwrap();
        }
        left.clear();
        for (name, process) in processes {
            let found = search(process, &needles).into_iter();
            left.extend(found.map(|hit| format!("{}, life {life}: {name}: {hit}", profile.name())));
        }
        if left.is_empty() {
            break;
        }
    }
    left
}
