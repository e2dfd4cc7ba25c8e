//! The real gateway process over loopback sockets: what a device and an operator see.
#![allow(clippy::unwrap_used, reason = "a test's helpers may")]

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use duet::registry::{Enrolment, Name, NewDevice, Registry, SourceSet};
use duet_protocol::device::{Config, Confirmed, Device, Event};
use duet_protocol::ec::{SecretScalar, Software};
use duet_protocol::identity::{Credential, DeviceId, Fingerprint, Gateway, RegistrationKey};
use duet_protocol::initiator::{DeviceKey, Identity};
use duet_protocol::profile::{KeySource, Mode, Profile, Transport};
use duet_protocol::wire::{Kind, MESSAGE_MAX};

#[path = "support/socket.rs"]
mod socket;

use socket::Socket;

const DUET: &str = env!("CARGO_BIN_EXE_duet");

struct Scratch(tempfile::TempDir);

struct Running {
    child: Child,
    address: SocketAddr,
    metrics: SocketAddr,
}

impl Drop for Running {
    fn drop(&mut self) {
        // Already ended, or ended here.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Running {
    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// What Prometheus would read.
    fn scrape(&self) -> String {
        let mut stream = TcpStream::connect(self.metrics).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    fn terminate(mut self) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        assert!(self.child.wait().unwrap().success(), "a drain ends with exit code 0");
    }
}

impl Scratch {
    fn new() -> Self {
        let scratch = Self(tempfile::tempdir().unwrap());
        assert!(scratch.duet(&["init"]).0);
        // The gateway's certificate is not of our own making either.
        let (der, _) = scratch.openssl_certificate(0);
        let place = |name: &str| scratch.state().join(name);
        fs::copy(scratch.0.path().join("0.key"), place("gateway.key")).unwrap();
        let pem = Command::new("openssl")
            .args(["x509", "-inform", "DER", "-in"])
            .arg(scratch.0.path().join("0.der"))
            .output()
            .unwrap();
        assert!(pem.status.success() && !der.is_empty());
        fs::write(place("gateway.pem"), pem.stdout).unwrap();
        scratch
    }

    fn state(&self) -> PathBuf {
        self.0.path().join("state")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(DUET);
        command.arg("--state").arg(self.state()).args(arguments);
        command
    }

    fn duet(&self, arguments: &[&str]) -> (bool, String) {
        let output = self.command(arguments).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).unwrap())
    }

    fn run(&self, listen: &str) -> Running {
        let mut child = self
            .command(&["run", "--shards", "2", "--listen", listen, "--metrics", "127.0.0.1:0"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (mut address, mut metrics) = (None, None);
        for line in out.lines().map_while(Result::ok) {
            if let Some((_, rest)) = line.split_once("http://") {
                metrics = rest.trim_end_matches("/metrics").parse().ok();
            }
            if let Some(rest) = line.strip_prefix("listening") {
                address = rest.split_whitespace().next().unwrap().parse().ok();
            }
            if line == "running" {
                break;
            }
        }
        let said = "the gateway says where it listens";
        Running { child, address: address.expect(said), metrics: metrics.expect(said) }
    }

    fn gateway(&self) -> Gateway {
        let config = duet::config::Config::load(Some(&self.state()), None, &Default::default());
        let config = config.unwrap();
        let role = duet::identity::Role::Gateway;
        let now_s = duet::identity::now_s();
        let certificate =
            duet::identity::load_certificate(&config.gateway.certificate, role, now_s).unwrap();
        let key_id = config.gateway.key_id;
        Gateway { key_id, fingerprint: certificate.fingerprint, key: certificate.key }
    }

    /// Registers a device in the registry of a gateway that is not running.
    fn device(&self, seed: u8, profile: Profile, transport: Transport) -> Device<Software> {
        let registry = Registry::open(&self.state().join("registry.redb")).unwrap();
        let id = DeviceId([seed; 8]);
        let name: Name = format!("device-{seed}").parse().unwrap();
        let (identity, enrolment) = if profile.mode == Mode::RegisteredId {
            let key = RegistrationKey([seed; 32]);
            let fingerprint = Fingerprint::of_registered_id(&id);
            let own = DeviceKey::Registration(key.clone());
            (Identity { id, fingerprint, key: own }, Enrolment::RegisteredId { id, key })
        } else {
            let (der, secret) = self.openssl_certificate(seed);
            let public = secret.public_key();
            let (credential, enrolment) = if profile.mode == Mode::Certificate {
                (Credential::certificate(&der, public), Enrolment::Certificate { der })
            } else {
                let credential = Credential::registered_certificate(id, &der, public);
                (credential, Enrolment::RegisteredCertificate { id, der })
            };
            let (id, fingerprint) = (credential.id, credential.fingerprint);
            (Identity { id, fingerprint, key: DeviceKey::Private(secret) }, enrolment)
        };
        let sources = SourceSet::of([profile.source]);
        registry.add(NewDevice { name, enrolment, sources }, duet::identity::now_s()).unwrap();
        let gateway = self.gateway();
        let config = Config { identity, gateway, profile, transport, fresh: 1 };
        Device::new(Software, config, [seed; 32])
    }

    fn openssl_certificate(&self, seed: u8) -> (Vec<u8>, SecretScalar) {
        use p256::pkcs8::DecodePrivateKey as _;
        let path = |end| self.0.path().join(format!("{seed}.{end}"));
        let done = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"])
            .args(["-nodes", "-days", "2", "-subj", "/CN=device", "-outform", "DER"])
            .arg("-keyout")
            .arg(path("key"))
            .arg("-out")
            .arg(path("der"))
            .output()
            .expect("this test needs openssl");
        assert!(done.status.success());
        let key = p256::SecretKey::from_pkcs8_pem(&fs::read_to_string(path("key")).unwrap());
        let secret = SecretScalar::from_bytes(&key.unwrap().to_bytes().into()).unwrap();
        (fs::read(path("der")).unwrap(), secret)
    }
}

/// A device with its socket and everything that crossed it.
struct Client {
    device: Device<Software>,
    socket: Socket,
    /// When its clock began to run; a device whose clock stands still repeats nothing.
    began: Option<Instant>,
    crossed: Vec<(bool, Kind, usize)>,
    confirmed: Vec<Confirmed>,
    lost: usize,
}

impl Client {
    fn new(device: Device<Software>, to: SocketAddr, transport: Transport) -> Self {
        let socket = Socket::connect(to, transport, Duration::from_millis(20));
        let began = Some(Instant::now());
        Self { device, socket, began, crossed: Vec::new(), confirmed: Vec::new(), lost: 0 }
    }

    fn now(&self) -> u64 {
        self.began.map_or(0, |began| u64::try_from(began.elapsed().as_micros()).unwrap())
    }

    /// Drives the device until `done` or for ten seconds; the payloads of commands that came.
    fn drive(&mut self, done: impl Fn(&Self) -> bool) -> bool {
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut out = [0; MESSAGE_MAX];
        while Instant::now() < deadline {
            while let Some(len) = self.device.poll_transmit(self.now(), &mut out) {
                self.crossed.push((true, Kind::of(&out).unwrap(), len));
                // What is lost is sent again; a gateway may be dead at the moment.
                let _ = self.socket.send(&out[..len]);
            }
            while let Some(confirmed) = self.device.poll_confirmed() {
                self.confirmed.push(confirmed);
            }
            if done(self) {
                return true;
            }
            let Ok(len) = self.socket.receive(&mut out) else { continue };
            self.crossed.push((false, Kind::of(&out).unwrap(), len));
            let now = self.now();
            let mut command = None;
            match self.device.handle_message(now, &mut out[..len]) {
                Ok(Event::Lost) => self.lost += 1,
                Ok(Event::Command { command: number, payload }) => {
                    command = Some((number, payload.to_vec()));
                }
                _ => {}
            }
            if let Some((number, mut payload)) = command {
                payload.reverse();
                self.device.send_result(number, 0, &payload);
            }
        }
        false
    }
}

#[test]
fn every_profile_on_both_transports_opens_with_two_messages_and_carries_both_ways() {
    let scratch = Scratch::new();
    let mut devices = Vec::new();
    for (index, profile) in Profile::ALL.into_iter().enumerate() {
        for transport in [Transport::Datagram, Transport::Stream] {
            let seed = u8::try_from(index * 2 + 1).unwrap() + transport as u8;
            devices.push((seed, profile, transport, scratch.device(seed, profile, transport)));
        }
    }
    let gateway = scratch.run("127.0.0.1:0");
    for (seed, profile, transport, device) in devices {
        let mut client = Client::new(device, gateway.address, transport);
        // However slow the machine is: exactly two messages, none of them twice.
        client.began = None;
        client.device.send_reading(0, 5, format!("from {seed}").as_bytes(), true).unwrap();
        client.device.open(0);
        assert!(client.drive(|client| !client.confirmed.is_empty()), "{}", profile.name());
        let kinds: Vec<_> = client.crossed.iter().map(|(up, kind, _)| (*up, *kind)).collect();
        let expected =
            [(true, Kind::Hello), (false, Kind::Accept), (true, Kind::Up), (false, Kind::Down)];
        assert_eq!(kinds, expected, "{}: two messages, a reading, its answer", profile.name());
        let bytes = client.crossed[0].2 + client.crossed[1].2;
        let budget = match (profile.mode, profile.source) {
            (Mode::RegisteredId, KeySource::Ephemeral) => 145,
            (_, KeySource::Ephemeral) => 210,
            _ => 310,
        };
        assert!(bytes <= budget, "{}: {bytes} bytes", profile.name());

        let name = format!("device-{seed}");
        let state = scratch.state();
        let sender = std::thread::spawn(move || {
            Command::new(DUET).arg("--state").arg(state).args(["command", &name, "abc"]).output()
        });
        assert!(client.drive(|_| sender.is_finished()));
        let output = sender.join().unwrap().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(String::from_utf8_lossy(&output.stdout).contains("cba"));
    }
    gateway.terminate();
    let (done, stored) = scratch.duet(&["spool", "cat"]);
    assert!(done);
    assert_eq!(stored.lines().count(), 30);
    for seed in 1..=30 {
        assert_eq!(stored.matches(&format!("\"from {seed}\"")).count(), 1, "{stored}");
    }
}

#[test]
fn a_killed_gateway_loses_nothing_it_confirmed_and_gets_every_device_back() {
    let scratch = Scratch::new();
    let profile = Profile { mode: Mode::RegisteredId, source: KeySource::Ephemeral };
    let devices: Vec<_> =
        (1..=8).map(|seed| scratch.device(seed, profile, Transport::Datagram)).collect();
    let gateway = scratch.run("127.0.0.1:0");
    let address = gateway.address;
    let mut clients: Vec<_> = devices
        .into_iter()
        .map(|device| Client::new(device, address, Transport::Datagram))
        .collect();
    // Everybody sends without a pause; the gateway dies in the middle of it.
    let (busy, killed) = (AtomicUsize::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for client in &mut clients {
            let (busy, killed) = (&busy, &killed);
            scope.spawn(move || {
                client.device.open(0);
                let mut counted = false;
                while !killed.load(Ordering::Relaxed) {
                    let now = client.now();
                    let sent = client.device.send_reading(now, 1, b"before", true);
                    let before = client.confirmed.len();
                    client.drive(|client| {
                        sent.is_ok()
                            || client.confirmed.len() > before
                            || killed.load(Ordering::Relaxed)
                    });
                    if client.confirmed.len() > 10 && !counted {
                        counted = true;
                        busy.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        while busy.load(Ordering::Relaxed) < 8 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        gateway.kill();
        killed.store(true, Ordering::Relaxed);
    });
    assert_eq!(busy.into_inner(), 8, "every device has sent more than ten readings");
    let gateway = scratch.run(&address.to_string());
    for client in &mut clients {
        client.crossed.clear();
        assert!(client.drive(|client| client.lost > 0), "told by a RESET");
        // What was on its way, and a new one, arrive in the new session.
        assert!(client.drive(|client| client.device.is_open()
            && client.crossed.iter().any(|one| !one.0 && one.1 == Kind::Accept)));
        let before = client.confirmed.len();
        while client.device.send_reading(client.now(), 9, b"after", true).is_err() {
            assert!(client.drive(|client| client.confirmed.len() > before));
        }
        let session = client.device.session().unwrap();
        assert!(client.drive(|client| {
            client.confirmed.last().is_some_and(|last| last.session == session)
        }));
        assert_eq!(client.lost, 1, "one RESET");
        let hellos = client.crossed.iter().filter(|(up, kind, _)| *up && *kind == Kind::Hello);
        assert_eq!(hellos.count(), 1, "one handshake");
    }
    gateway.terminate();
    let (_, stored) = scratch.duet(&["spool", "cat"]);
    for client in &clients {
        for Confirmed { session, sequence, .. } in &client.confirmed {
            let key = format!(r#""session":"{:08x}","sequence":{sequence},"#, session.0);
            assert!(stored.contains(&key), "confirmed, but not stored: {key}");
        }
    }
}

#[test]
fn a_live_session_ends_within_a_second_of_revocation() {
    let scratch = Scratch::new();
    let profile = Profile { mode: Mode::Certificate, source: KeySource::Ephemeral };
    let device = scratch.device(1, profile, Transport::Datagram);
    let gateway = scratch.run("127.0.0.1:0");
    let mut client = Client::new(device, gateway.address, Transport::Datagram);
    client.device.send_reading(0, 1, b"x", true).unwrap();
    client.device.open(0);
    assert!(client.drive(|client| !client.confirmed.is_empty()));
    let (done, said) = scratch.duet(&["device", "revoke", "device-1"]);
    assert!(done, "{said}");
    let revoked = Instant::now();
    assert!(client.drive(|client| !client.device.is_open()));
    assert!(revoked.elapsed() < Duration::from_secs(1));
    gateway.terminate();
}

#[test]
fn strangers_get_silence_on_udp_and_a_close_on_tcp() {
    let scratch = Scratch::new();
    let gateway = scratch.run("127.0.0.1:0");
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(gateway.address).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    for message in [&[][..], &[0x11], &[0x11; 132], &[0xff; 1_400], &[0x71; 21], b"GET / HTTP/1.1"]
    {
        socket.send(message).unwrap();
    }
    assert!(socket.recv(&mut [0; 1_500]).is_err(), "no answer");
    let mut stream = TcpStream::connect(gateway.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(8))).unwrap();
    stream.write_all(&[&[0, 132][..], &[0x11; 132]].concat()).unwrap();
    assert!(matches!(stream.read(&mut [0; 16]), Ok(0) | Err(_)), "closed without a byte");
    gateway.terminate();
}

/// The names of our metrics in a text.
fn metric_names(text: &str) -> std::collections::BTreeSet<String> {
    text.split(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'))
        .filter(|word| word.starts_with("duet_"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_query_of_the_dashboards_finds_its_metric_in_a_real_scrape() {
    let scratch = Scratch::new();
    let profile = Profile { mode: Mode::RegisteredId, source: KeySource::Ephemeral };
    let device = scratch.device(1, profile, Transport::Datagram);
    let gateway = scratch.run("127.0.0.1:0");
    let mut client = Client::new(device, gateway.address, Transport::Datagram);
    client.device.send_reading(0, 1, b"x", true).unwrap();
    client.device.open(0);
    assert!(client.drive(|client| !client.confirmed.is_empty()));
    let Socket::Udp(socket) = &client.socket else { panic!("a datagram client") };
    socket.send(&[0; 40]).unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut scraped = String::new();
    // Shards publish once a second.
    while !(scraped.contains("reason=\"version\"") && scraped.contains("duet_accepts_total")) {
        assert!(Instant::now() < deadline, "nothing was published:\n{scraped}");
        std::thread::sleep(Duration::from_millis(100));
        scraped = gateway.scrape();
    }
    let exist = metric_names(&scraped);
    let boards = concat!(env!("CARGO_MANIFEST_DIR"), "/dashboards");
    let mut queries = 0;
    for board in fs::read_dir(boards).unwrap() {
        let text = fs::read_to_string(board.unwrap().path()).unwrap();
        let board: serde_json::Value = serde_json::from_str(&text).unwrap();
        for panel in board["panels"].as_array().unwrap() {
            for target in panel["targets"].as_array().unwrap() {
                let query = target["expr"].as_str().unwrap();
                let names = metric_names(query);
                assert!(!names.is_empty(), "no metric of ours in {query}");
                for name in names {
                    assert!(exist.contains(&name), "{name} of {query} is not in\n{exist:?}");
                }
                queries += 1;
            }
        }
    }
    assert!(queries > 10);
    gateway.terminate();
}
