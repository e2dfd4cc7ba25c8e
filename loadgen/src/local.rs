//! A gateway of one's own: the real `duet` program with its own state directory, started for a
//! measurement and stopped after it.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use duet_device::{Config, DeviceKey, Identity};
use duet_protocol::ec::SecretScalar;
use duet_protocol::identity::{
    Credential, DeviceId, Fingerprint, Gateway, PublicKey, RegistrationKey,
};
use duet_protocol::mark::FIRST_FRESH;
use duet_protocol::profile::{Mode, Profile, Transport};
use p256::pkcs8::DecodePrivateKey as _;

use crate::fleet::Member;
use crate::process_clock::{process_cpu, process_memory};

/// The key id in a new gateway's settings.
const KEY_ID: u8 = 0;

/// A device to be registered and driven.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Its name.
    pub name: String,
    /// Its profile.
    pub profile: Profile,
    /// What carries its messages.
    pub transport: Transport,
}

/// A running gateway; killed when dropped before [`LocalGateway::stop`].
pub struct LocalGateway {
    child: Child,
    /// Where it listens, UDP and TCP.
    pub address: SocketAddr,
    /// Where its metrics are.
    pub metrics: SocketAddr,
    /// Its state directory.
    pub state: PathBuf,
}

impl Drop for LocalGateway {
    fn drop(&mut self) {
        // It has ended, or is ended here.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl LocalGateway {
    /// Makes a state directory in `dir`, registers the devices, starts the gateway with this many
    /// shards on free ports of loopback.
    ///
    /// # Errors
    /// What the program said, when it refused.
    pub fn start(
        program: &Path,
        dir: &Path,
        shards: usize,
        wanted: &[Wanted],
    ) -> Result<(Self, Vec<Member>)> {
        Self::start_at(Ipv4Addr::LOCALHOST, program, dir, shards, wanted)
    }

    /// The same, with more settings at the end of `duet.toml`.
    ///
    /// # Errors
    /// What the program said, when it refused.
    pub fn start_with(
        settings: &str,
        program: &Path,
        dir: &Path,
        shards: usize,
        wanted: &[Wanted],
    ) -> Result<(Self, Vec<Member>)> {
        Self::begin(Ipv4Addr::LOCALHOST, settings, program, dir, shards, wanted)
    }

    /// The same, on free ports of another address: of a network namespace, when the calling thread is in one.
    ///
    /// # Errors
    /// What the program said, when it refused.
    pub fn start_at(
        address: Ipv4Addr,
        program: &Path,
        dir: &Path,
        shards: usize,
        wanted: &[Wanted],
    ) -> Result<(Self, Vec<Member>)> {
        Self::begin(address, "", program, dir, shards, wanted)
    }

    fn begin(
        address: Ipv4Addr,
        settings: &str,
        program: &Path,
        dir: &Path,
        shards: usize,
        wanted: &[Wanted],
    ) -> Result<(Self, Vec<Member>)> {
        let state = dir.join("state");
        duet(program, &state, &["init"])?;
        let mut file = fs::OpenOptions::new().append(true).open(state.join("duet.toml"))?;
        file.write_all(settings.as_bytes())?;
        let gateway = read_certificate(&state.join("gateway.pem"), KEY_ID)?;
        let list = dir.join("devices.ndjson");
        let mut out = fs::File::create(&list)?;
        let mut members = Vec::with_capacity(wanted.len());
        for wanted in wanted {
            let (identity, line) = enrol(wanted)?;
            writeln!(out, "{line}")?;
            let Wanted { name, profile, transport } = wanted.clone();
            let fresh = first_fresh(profile.mode);
            let config = Config { identity, gateway, profile, transport, fresh };
            members.push(Member { name, config, seed: random()? });
        }
        drop(out);
        if !wanted.is_empty() {
            duet(program, &state, &["device", "import", &list.display().to_string()])?;
        }
        fs::remove_file(&list)?;

        Ok((Self::run(program, state, shards, SocketAddr::from((address, 0)))?, members))
    }

    /// Kills it as a power cut would, and starts it again at the same address.
    ///
    /// # Errors
    /// What the program said, when it refused.
    pub fn crash(&mut self, program: &Path, shards: usize) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        *self = Self::run(program, self.state.clone(), shards, self.address)?;
        Ok(())
    }

    fn run(program: &Path, state: PathBuf, shards: usize, listen: SocketAddr) -> Result<Self> {
        let mut child = Command::new(program)
            .arg("--state")
            .arg(&state)
            .args(["run", "--shards", &shards.to_string(), "--listen", &listen.to_string()])
            .args(["--metrics", "127.0.0.1:0"])
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| program.display().to_string())?;
        let lines = child.stdout.take().context("the gateway has no output")?;
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut this = Self { child, address: nowhere, metrics: nowhere, state };
        for line in BufReader::new(lines).lines() {
            let line = line?;
            if let Some(rest) = line.strip_prefix("listening") {
                let text = rest.split_whitespace().next().unwrap_or_default();
                this.address = text.parse().context("the gateway's address")?;
            }
            if let Some(rest) = line.strip_prefix("metrics") {
                let text = rest.trim().trim_start_matches("http://").trim_end_matches("/metrics");
                this.metrics = text.parse().context("the metrics' address")?;
            }
            if line == "running" {
                return Ok(this);
            }
        }
        bail!("the gateway ended before it was running");
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its metrics as Prometheus would see them.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn scrape(&self) -> Result<String> {
        let mut stream = TcpStream::connect(self.metrics)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: duet\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    }

    /// The processor time that it has used so far.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn cpu(&self) -> Result<Duration> {
        Ok(process_cpu(self.child.id())?)
    }

    /// The memory that it occupies now, bytes.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn memory(&self) -> Result<u64> {
        Ok(process_memory(self.child.id())?)
    }

    /// Lets it drain and end.
    ///
    /// # Errors
    /// When it does not end well.
    pub fn stop(mut self) -> Result<()> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "the gateway ended with {status}");
        Ok(())
    }
}

fn duet(program: &Path, state: &Path, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program)
        .arg("--state")
        .arg(state)
        .args(arguments)
        .output()
        .with_context(|| program.display().to_string())?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "duet {}: {said}", arguments.join(" "));
    Ok(())
}

pub(crate) fn read_certificate(path: &Path, key_id: u8) -> Result<Gateway> {
    let text = fs::read(path).with_context(|| path.display().to_string())?;
    let (_, pem) = x509_parser::pem::parse_x509_pem(&text)?;
    let certificate = pem.parse_x509()?;
    let key = PublicKey::from_sec1(&certificate.public_key().subject_public_key.data)
        .context("the gateway's certificate has no P-256 key")?;
    let fingerprint = Fingerprint::of_certificate(&pem.contents);
    Ok(Gateway { key_id, fingerprint, key })
}

/// A new identity, and the line that registers it.
pub(crate) fn enrol(wanted: &Wanted) -> Result<(Identity, String)> {
    let Wanted { name, profile, .. } = wanted;
    let (mode, source) = (profile.mode, profile.source.name());
    let id = DeviceId(random()?);
    let line = |mode: &str, rest: serde_json::Value| {
        let mut line = serde_json::json!({ "name": name, "mode": mode, "profile": source });
        if let (Some(line), Some(rest)) = (line.as_object_mut(), rest.as_object()) {
            line.extend(rest.clone());
        }
        line.to_string()
    };
    if mode == Mode::RegisteredId {
        let key: [u8; 32] = random()?;
        let rest = serde_json::json!({ "id": id.to_string(), "key": hex(&key), "made": true });
        let fingerprint = Fingerprint::of_registered_id(&id);
        let key = DeviceKey::Registration(RegistrationKey(key));
        return Ok((Identity { id, fingerprint, key }, line("registered-id", rest)));
    }
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let certificate = rcgen::CertificateParams::new(Vec::new())?.self_signed(&pair)?;
    let der = certificate.der();
    let secret = p256::SecretKey::from_pkcs8_der(&pair.serialize_der())?;
    let secret =
        SecretScalar::from_bytes(&secret.to_bytes().into()).context("a key out of range")?;
    let public = secret.public_key();
    let (credential, line) = if mode == Mode::Certificate {
        let rest = serde_json::json!({ "certificate": hex(der) });
        (Credential::certificate(der, public), line("certificate", rest))
    } else {
        let rest = serde_json::json!({ "certificate": hex(der), "id": id.to_string() });
        let credential = Credential::registered_certificate(id, der, public);
        (credential, line("registered-certificate", rest))
    };
    let Credential { id, fingerprint, .. } = credential;
    Ok((Identity { id, fingerprint, key: DeviceKey::Private(secret) }, line))
}

/// Where the counter of a device that [`enrol`] has made begins (R123).
pub(crate) const fn first_fresh(mode: Mode) -> u64 {
    if matches!(mode, Mode::RegisteredId) { FIRST_FRESH } else { 1 }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Random bytes of the kernel.
///
/// # Errors
/// When it has none.
pub fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)?;
    Ok(bytes)
}
