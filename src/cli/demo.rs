//! `duet demo`: a gateway and a thousand devices on this machine, start to end, with proof.
//!
//! The gateway is this very program in a process of its own, with its real sockets, registry and
//! spool; only the fleet runs here.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use duet::config::{Config, Overrides};
use duet::delivery::Reader;
use duet::hex::{self, Hex};
use duet::wipe;
use duet_protocol::profile::{Profile, Transport};
use duet_protocol::reading::ReadingId;
use loadgen::compare::{self, Place, Settings};
use loadgen::fleet::{self, Job, Outcome};
use loadgen::interruption;
use loadgen::local::{LocalGateway, Wanted};
use loadgen::table;
use loadgen::tls::Host;
use serde::Deserialize;

/// The gateway passes everything on to files here, in its state directory.
const DELIVERED: &str = "delivered";
/// What makes it do so.
const UPSTREAM: &str = "
[[upstream]]
name = \"files\"
kind = \"file\"
dir = \"delivered\"
payload = \"hex\"
";

/// Readings that each device sends.
const READINGS: u16 = 3;
/// What the fleet may take in all.
const LIMIT: Duration = Duration::from_secs(45);

#[derive(Args)]
#[command(after_help = "Everything happens in a new directory, on loopback, on free ports, and \
    ends by itself. Exit code 0 only if every device did its job and every confirmed reading was \
    found with its content in the spool and in the files that the gateway passed it on to.")]
pub(super) struct Demo {
    /// How many devices, over all profiles and both transports
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u16).range(1..=5_000))]
    devices: u16,
}

impl Demo {
    pub(super) fn run(self) -> Result<ExitCode> {
        // What it made stays to be looked at; its gateway ends with it.
        interruption::watch(None).context("cannot watch for signals")?;
        let result = self.work();
        interruption::hold();
        result
    }

    fn work(self) -> Result<ExitCode> {
        let files =
            rlimit::increase_nofile_limit(16_384).context("cannot read the limit of open files")?;
        ensure!(
            files > u64::from(self.devices) + 64,
            "{} devices need that many open files, and only {files} are allowed: raise `ulimit -n`, or give --devices",
            self.devices
        );
        let parent = std::env::temp_dir();
        wipe::nothing_in_this_process();
        let dir = parent.join(format!("duet-demo-{}", std::process::id()));
        fs::create_dir(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let program = std::env::current_exe()?;
        let settings = Settings::demo();
        let mut wanted = fleet_of(self.devices);
        wanted.extend(settings.wanted());
        let began = Instant::now();
        let (gateway, mut members) =
            LocalGateway::start_with(UPSTREAM, &program, &dir, 2, &wanted)?;
        let state = gateway.state.clone();
        println!("state        {}", state.display());
        println!("registered   {} devices, in {:.1?}", members.len(), began.elapsed());
        println!("gateway      {}, UDP and TCP, 2 shards", gateway.address);

        let compared = members.split_off(self.devices.into());
        let began = Instant::now();
        let ramp = Duration::from_millis(3 * u64::from(self.devices));
        let address = gateway.address;
        let job = Job { gateway: address, readings: READINGS, ramp, limit: LIMIT, threads: 2 };
        let outcomes = fleet::run(members, job)?;
        println!("fleet        {} devices done in {:.1?}", outcomes.len(), began.elapsed());
        let here = Place::Sockets(Host::Thread { address: Ipv4Addr::LOCALHOST });
        let report = compare::run(&gateway, compared, &settings, here, &|_| ())?;
        gateway.stop()?;

        print_profiles(&outcomes);
        let (found, missing) = compare(&spooled(&state)?, &outcomes);
        let (arrived, absent) = compare(&delivered(&state.join(DELIVERED))?, &outcomes);
        let incomplete = outcomes.iter().filter(|outcome| !outcome.complete).count();
        println!("\nEight flights against two: the same job by TLS and by Duet, in one run\n");
        print!("{}", table::render(&report));
        println!(
            "\nspool        {found} confirmed readings found with their content, {missing} missing"
        );
        println!(
            "upstream     {arrived} of them found in its files with their content, {absent} missing"
        );
        println!("look at it   duet --state {} spool cat", state.display());
        println!("             cat {}/*", state.join(DELIVERED).display());
        if missing > 0 || absent > 0 || incomplete > 0 {
            bail!(
                "{incomplete} devices did not finish, {missing} confirmed readings are missing in the spool and \
                 {absent} in the upstream's files"
            );
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// All profiles in turn, each over both transports.
fn fleet_of(count: u16) -> Vec<Wanted> {
    (0..count)
        .map(|number| {
            let turn = usize::from(number) / Profile::ALL.len();
            Wanted {
                name: format!("demo-{number:04}"),
                profile: Profile::ALL[usize::from(number) % Profile::ALL.len()],
                transport: if turn.is_multiple_of(2) {
                    Transport::Datagram
                } else {
                    Transport::Stream
                },
            }
        })
        .collect()
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

/// A reading as it was sent: device, identity, channel and payload, the last in hexadecimal digits.
type Sent = (String, ReadingId, u16, String);

/// What the spool has.
fn spooled(state: &Path) -> Result<HashSet<Sent>> {
    let dir = Config::load(Some(state), None, &Overrides::default())?.spool.dir;
    let mut reader = Reader::open(&dir)?;
    let mut found = HashSet::new();
    while let Some(record) = reader.read()? {
        let r = record.reading;
        found.insert((r.device.to_owned(), r.id, r.channel, Hex(r.payload).to_string()));
    }
    Ok(found)
}

/// One line of an upstream's file.
#[derive(Deserialize)]
struct Line {
    device: String,
    id: String,
    channel: u16,
    payload_hex: String,
}

/// What has arrived in an upstream's files.
fn delivered(dir: &Path) -> Result<HashSet<Sent>> {
    let mut found = HashSet::new();
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        for line in fs::read_to_string(&path)?.lines() {
            let line: Line =
                serde_json::from_str(line).with_context(|| path.display().to_string())?;
            let id = hex::decode_array(&line.id).context("a reading's id")?;
            found.insert((line.device, ReadingId::decode(&id), line.channel, line.payload_hex));
        }
    }
    Ok(found)
}

/// How many confirmed readings are there exactly as they were sent, and how many are not.
fn compare(there: &HashSet<Sent>, outcomes: &[Outcome]) -> (usize, usize) {
    let (mut found, mut missing) = (0, 0);
    for one in outcomes.iter().flat_map(|outcome| &outcome.confirmed) {
        let sent = (one.device.clone(), one.id, one.channel, Hex(&one.payload).to_string());
        if there.contains(&sent) { found += 1 } else { missing += 1 }
    }
    (found, missing)
}
