//! The gateway's process with a state directory of its own, and devices that talk to it.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use duet::registry::{Enrolment, Name, NewDevice, Registry, SourceSet};
use duet_device::{Config, Confirmed, Device, DeviceKey, Event, Identity, Software};
use duet_protocol::ec::SecretScalar;
use duet_protocol::identity::{Credential, DeviceId, Fingerprint, Gateway, RegistrationKey};
use duet_protocol::profile::{Mode, Profile, Transport};
use duet_protocol::wire::{Kind, MESSAGE_MAX};

use crate::socket::Socket;

pub(crate) const DUET: &str = env!("CARGO_BIN_EXE_duet");

pub(crate) struct Scratch(pub(crate) tempfile::TempDir);

pub(crate) struct Running {
    pub(crate) child: Child,
    pub(crate) address: SocketAddr,
    pub(crate) metrics: SocketAddr,
}

impl Drop for Running {
    fn drop(&mut self) {
        // Already ended, or ended here.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Running {
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// What Prometheus would read.
    pub(crate) fn scrape(&self) -> String {
        get_metrics(self.metrics)
    }

    pub(crate) fn terminate(mut self) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        assert!(self.child.wait().unwrap().success(), "a drain ends with exit code 0");
    }
}

/// What a gateway says to Prometheus at this address.
pub(crate) fn get_metrics(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

impl Scratch {
    pub(crate) fn new() -> Self {
        let scratch = Self(tempfile::tempdir().unwrap());
        assert!(scratch.duet(&["init"]).0);
        // The gateway's certificate is not of our own making either.
        scratch.gateway_certificate("gateway", 90);
        scratch
    }

    /// Puts a certificate of another maker and its key into the state directory.
    pub(crate) fn gateway_certificate(&self, name: &str, days: u32) {
        self.openssl_certificate(0, days);
        let place = |end: &str| self.state().join(format!("{name}.{end}"));
        fs::copy(self.0.path().join("0.key"), place("key")).unwrap();
        let pem = Command::new("openssl")
            .args(["x509", "-inform", "DER", "-in"])
            .arg(self.0.path().join("0.der"))
            .output()
            .unwrap();
        assert!(pem.status.success());
        fs::write(place("pem"), pem.stdout).unwrap();
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.0.path().join("state")
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(DUET);
        command.arg("--state").arg(self.state()).args(arguments);
        command
    }

    pub(crate) fn duet(&self, arguments: &[&str]) -> (bool, String) {
        let output = self.command(arguments).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).unwrap())
    }

    pub(crate) fn run(&self, listen: &str) -> Running {
        self.run_with(listen, |_| ())
    }

    pub(crate) fn run_with(&self, listen: &str, with: impl FnOnce(&mut Command)) -> Running {
        let arguments = ["run", "--shards", "2", "--listen", listen, "--metrics", "127.0.0.1:0"];
        let mut command = self.command(&arguments);
        with(command.stdout(Stdio::piped()));
        let mut child = command.spawn().unwrap();
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

    pub(crate) fn gateway(&self) -> Gateway {
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
    pub(crate) fn device(
        &self,
        seed: u8,
        profile: Profile,
        transport: Transport,
    ) -> Device<Software> {
        let (identity, gateway) = (self.identity(seed, profile), self.gateway());
        let config = Config { identity, gateway, profile, transport, fresh: 1 };
        Device::seeded(config, [seed; 32]).unwrap()
    }

    /// The same; what the device knows of itself.
    pub(crate) fn identity(&self, seed: u8, profile: Profile) -> Identity {
        let registry = Registry::open(&self.state().join("registry.redb")).unwrap();
        let id = DeviceId([seed; 8]);
        let name: Name = format!("device-{seed}").parse().unwrap();
        let (identity, enrolment) = if profile.mode == Mode::RegisteredId {
            let key = RegistrationKey([seed; 32]);
            let fingerprint = Fingerprint::of_registered_id(&id);
            let own = DeviceKey::Registration(key.clone());
            (Identity { id, fingerprint, key: own }, Enrolment::RegisteredId { id, key })
        } else {
            let (der, secret) = self.openssl_certificate(seed, 90);
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
        registry
            .add(
                NewDevice { name, enrolment, sources, made: false, labels: Default::default() },
                duet::identity::now_s(),
            )
            .unwrap();
        identity
    }

    pub(crate) fn openssl_certificate(&self, seed: u8, days: u32) -> (Vec<u8>, SecretScalar) {
        use p256::pkcs8::DecodePrivateKey as _;
        let path = |end| self.0.path().join(format!("{seed}.{end}"));
        let done = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"])
            .args(["-nodes", "-days", &days.to_string(), "-subj", "/CN=device", "-outform", "DER"])
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
pub(crate) struct Client {
    pub(crate) device: Device<Software>,
    pub(crate) socket: Socket,
    /// When its clock began to run; a device whose clock stands still repeats nothing.
    pub(crate) began: Option<Instant>,
    pub(crate) crossed: Vec<(bool, Kind, usize)>,
    pub(crate) confirmed: Vec<Confirmed>,
    pub(crate) lost: usize,
    /// The payloads of the commands that it carried out.
    pub(crate) commands: Vec<Vec<u8>>,
}

impl Client {
    pub(crate) fn new(device: Device<Software>, to: SocketAddr, transport: Transport) -> Self {
        let socket = Socket::connect(to, transport, Duration::from_millis(20));
        let began = Some(Instant::now());
        let (crossed, confirmed, commands) = (Vec::new(), Vec::new(), Vec::new());
        Self { device, socket, began, crossed, confirmed, lost: 0, commands }
    }

    pub(crate) fn now(&self) -> u64 {
        self.began.map_or(0, |began| u64::try_from(began.elapsed().as_micros()).unwrap())
    }

    /// Drives the device until `done` or for ten seconds. It answers commands by their payloads reversed.
    pub(crate) fn drive(&mut self, done: impl Fn(&Self) -> bool) -> bool {
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
                self.commands.push(payload.clone());
                payload.reverse();
                self.device.send_result(number, 0, &payload);
            }
        }
        false
    }
}
