//! `duet demo`: a gateway and a thousand devices on this machine, start to end, with proof.
//!
//! The gateway is this very program in a process of its own, with its real sockets, registry and
//! spool; only the fleet runs here.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use duet::config::{Config, Overrides};
use duet::delivery::Reader;
use duet::identity::{self, Role};
use duet::registry::{Enrolment, NewDevice, Registry, SourceSet};
use duet_protocol::device;
use duet_protocol::ec::SecretScalar;
use duet_protocol::identity::{Credential, DeviceId, Fingerprint, Gateway, RegistrationKey};
use duet_protocol::initiator::{DeviceKey, Identity};
use duet_protocol::profile::{Mode, Profile, Transport};
use loadgen::fleet::{self, Job, Member, Outcome};
use p256::pkcs8::DecodePrivateKey as _;

/// Readings that each device sends.
const READINGS: u16 = 3;
/// What the fleet may take in all.
const LIMIT: Duration = Duration::from_secs(45);

#[derive(Args)]
#[command(after_help = "Everything happens in a new directory, on loopback, on free ports, and \
    ends by itself. Exit code 0 only if every device did its job and every confirmed reading was \
    found in the spool, with its content.")]
pub(super) struct Demo {
    /// How many devices, over all profiles and both transports
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u16).range(1..=5_000))]
    devices: u16,
}

/// The gateway's process; killed if the demo fails on the way.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended, or is ended here.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Demo {
    pub(super) fn run(self) -> Result<ExitCode> {
        let files =
            rlimit::increase_nofile_limit(16_384).context("cannot read the limit of open files")?;
        ensure!(
            files > u64::from(self.devices) + 64,
            "{} devices need that many open files, and only {files} are allowed: raise `ulimit -n`, or give --devices",
            self.devices
        );
        let parent = std::env::temp_dir();
        let dir = parent.join(format!("duet-demo-{}", std::process::id()));
        fs::create_dir(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let state = dir.join("state");
        println!("state        {}", state.display());

        let program = std::env::current_exe()?;
        let init = Command::new(&program).arg("--state").arg(&state).arg("init").output()?;
        ensure!(init.status.success(), "init failed: {}", String::from_utf8_lossy(&init.stderr));
        let began = Instant::now();
        let members = register(&state, self.devices)?;
        println!("registered   {} devices in {:.1?}", members.len(), began.elapsed());

        let (mut gateway, address) = start(&program, &state)?;
        println!("gateway      {address}, UDP and TCP, 2 shards");
        let began = Instant::now();
        let ramp = Duration::from_millis(3 * u64::from(self.devices));
        let job = Job { gateway: address, readings: READINGS, ramp, limit: LIMIT, threads: 2 };
        let outcomes = fleet::run(members, job)?;
        println!("fleet        done in {:.1?}", began.elapsed());
        terminate(&mut gateway)?;

        print_profiles(&outcomes);
        let (found, missing) = compare(&state, &outcomes)?;
        let incomplete = outcomes.iter().filter(|outcome| !outcome.complete).count();
        println!(
            "\nspool        {found} confirmed readings found with their content, {missing} missing"
        );
        println!("look at it   duet --state {} spool cat", state.display());
        if missing > 0 || incomplete > 0 {
            bail!("{incomplete} devices did not finish, {missing} confirmed readings are missing");
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn start(program: &Path, state: &Path) -> Result<(Running, SocketAddr)> {
    let mut child = Command::new(program)
        .arg("--state")
        .arg(state)
        .args(["run", "--shards", "2", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"])
        .stdout(Stdio::piped())
        .spawn()?;
    let out = child.stdout.take().context("the gateway has no output")?;
    let running = Running(child);
    let mut address = None;
    for line in BufReader::new(out).lines() {
        let line = line?;
        if let Some(rest) = line.strip_prefix("listening") {
            address = rest.split_whitespace().next().and_then(|text| text.parse().ok());
        }
        if line == "running" {
            break;
        }
    }
    Ok((running, address.context("the gateway did not start")?))
}

fn terminate(gateway: &mut Running) -> Result<()> {
    let pid = rustix::process::Pid::from_child(&gateway.0);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
    let status = gateway.0.wait()?;
    ensure!(status.success(), "the gateway ended with {status}");
    Ok(())
}

/// Registers the fleet in one transaction, profiles and transports taken in turn.
fn register(state: &Path, count: u16) -> Result<Vec<Member>> {
    let now_s = identity::now_s();
    let config = Config::load(Some(state), None, &Overrides::default())?;
    let certificate =
        identity::load_certificate(&config.gateway.certificate, Role::Gateway, now_s)?;
    let (fingerprint, key) = (certificate.fingerprint, certificate.key);
    let gateway = Gateway { key_id: config.gateway.key_id, fingerprint, key };
    let mut members = Vec::new();
    let mut devices = Vec::new();
    for number in 0..count {
        let profile = Profile::ALL[usize::from(number) % Profile::ALL.len()];
        let turn = usize::from(number) / Profile::ALL.len();
        let transport =
            if turn.is_multiple_of(2) { Transport::Datagram } else { Transport::Stream };
        let name = format!("demo-{number:04}");
        let (identity, enrolment) = enrol(profile.mode, now_s)?;
        let sources = SourceSet::of([profile.source]);
        devices.push(NewDevice { name: name.parse()?, enrolment, sources });
        let config = device::Config { identity, gateway, profile, transport, fresh: 1 };
        members.push(Member { name, config, seed: random()? });
    }
    Registry::open(&state.join("registry.redb"))?.add_all(devices, now_s)?;
    Ok(members)
}

fn enrol(mode: Mode, now_s: i64) -> Result<(Identity, Enrolment)> {
    let id = DeviceId(random()?);
    if mode == Mode::RegisteredId {
        let key = RegistrationKey(random()?);
        let fingerprint = Fingerprint::of_registered_id(&id);
        let own = DeviceKey::Registration(key.clone());
        return Ok((Identity { id, fingerprint, key: own }, Enrolment::RegisteredId { id, key }));
    }
    let made = identity::create("demo device", 1, now_s)?;
    let der = made.certificate_der;
    let secret = p256::SecretKey::from_pkcs8_pem(&made.key_pem)?;
    let secret =
        SecretScalar::from_bytes(&secret.to_bytes().into()).context("a key out of range")?;
    let public = secret.public_key();
    let (credential, enrolment) = if mode == Mode::Certificate {
        (Credential::certificate(&der, public), Enrolment::Certificate { der })
    } else {
        let credential = Credential::registered_certificate(id, &der, public);
        (credential, Enrolment::RegisteredCertificate { id, der })
    };
    let Credential { id, fingerprint, .. } = credential;
    Ok((Identity { id, fingerprint, key: DeviceKey::Private(secret) }, enrolment))
}

fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)?;
    Ok(bytes)
}

fn print_profiles(outcomes: &[Outcome]) {
    println!("\nMeasured at the devices' sockets; bytes without IP, UDP and TCP headers:\n");
    println!(
        "{:<36} {:>4} {:>7} {:>9} {:>9} {:>12}",
        "profile", "over", "devices", "messages", "bytes", "p50 confirmed"
    );
    let mut groups: BTreeMap<(&str, &str), Vec<&Outcome>> = BTreeMap::new();
    for outcome in outcomes {
        let over = if outcome.transport == Transport::Datagram { "UDP" } else { "TCP" };
        groups.entry((outcome.profile.name(), over)).or_default().push(outcome);
    }
    for ((profile, over), group) in groups {
        let mut times: Vec<_> = group.iter().filter_map(|one| one.first_confirmed).collect();
        times.sort_unstable();
        let median = times.get(times.len() / 2).copied().unwrap_or_default();
        let most = |of: fn(&Outcome) -> u32| group.iter().map(|one| of(one)).max().unwrap_or(0);
        let (messages, bytes) =
            (most(|one| one.handshake_messages), most(|one| one.handshake_bytes));
        println!(
            "{profile:<36} {over:>4} {:>7} {messages:>9} {bytes:>9} {median:>12.1?}",
            group.len()
        );
    }
    println!(
        "\nmessages, bytes: the most that a handshake of the group took, repetitions included."
    );
    println!(
        "p50 confirmed: from first byte out to first confirmed reading, fleet and gateway on one machine."
    );
}

/// How many confirmed readings the spool has exactly as they were sent, and how many it lacks.
fn compare(state: &Path, outcomes: &[Outcome]) -> Result<(usize, usize)> {
    let dir: PathBuf = Config::load(Some(state), None, &Overrides::default())?.spool.dir;
    let mut reader = Reader::open(&dir)?;
    let mut stored = HashSet::new();
    while let Some(record) = reader.read()? {
        let r = record.reading;
        stored.insert((r.device.to_owned(), r.session, r.sequence, r.channel, r.payload.to_vec()));
    }
    let (mut found, mut missing) = (0, 0);
    for one in outcomes.iter().flat_map(|outcome| &outcome.confirmed) {
        let key = (one.device.clone(), one.session, one.sequence, one.channel, one.payload.clone());
        if stored.contains(&key) { found += 1 } else { missing += 1 }
    }
    Ok((found, missing))
}
