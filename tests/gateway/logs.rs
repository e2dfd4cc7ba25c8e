//! What a gateway says, in which form and from which level on; and of a refused device not more than people can read.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use duet_device::{Config, Device, DeviceKey, Identity};
use duet_protocol::identity::RegistrationKey;
use duet_protocol::profile::{KeySource, Mode, Profile, Transport};

use crate::world::{Client, Scratch};

const PROFILE: Profile = Profile { mode: Mode::RegisteredId, source: KeySource::Ephemeral };

fn lines(log: &Path, words: &str) -> Vec<String> {
    let text = fs::read_to_string(log).unwrap();
    text.lines().filter(|line| line.contains(words)).map(str::to_owned).collect()
}

#[test]
fn a_refused_device_is_told_of_once_and_level_and_format_change_while_it_runs() {
    let scratch = Scratch::new();
    let settings = scratch.state().join("duet.toml");
    fs::write(&settings, "[log]\nformat = \"json\"\n").unwrap();
    let (mut identity, gateway_) = (scratch.identity(1, PROFILE), scratch.gateway());
    identity.key = DeviceKey::Registration(RegistrationKey([0xa7; 32]));
    let log = scratch.0.path().join("log");
    let gateway = scratch.run_with("127.0.0.1:0", |command| {
        command.stderr(fs::File::create(&log).unwrap());
    });
    let attempt = |seed: u8| {
        let (identity, transport) = (identity.clone(), Transport::Datagram);
        let config = Config { identity, gateway: gateway_, profile: PROFILE, transport, fresh: 1 };
        let device = Device::seeded(config, [seed; 32]).unwrap();
        let mut client = Client::new(device, gateway.address, Transport::Datagram);
        client.device.open(0);
        client
    };
    assert!(attempt(1).drive(|_| !lines(&log, "device refused").is_empty()));
    // As often as it likes: it is counted, and not told of.
    let counted = "duet_drops_total{reason=\"proof\"";
    let refused = || -> u64 {
        let text = gateway.scrape();
        let of = text.lines().filter(|line| line.starts_with(counted));
        of.map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).sum()
    };
    let began = Instant::now();
    for seed in 2.. {
        attempt(seed).drive(|client| client.crossed.len() == 1);
        if refused() >= 3 {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(20), "{}", gateway.scrape());
        std::thread::sleep(Duration::from_millis(200));
    }
    let told = lines(&log, "device refused");
    assert_eq!(told.len(), 1, "{told:?}");
    let line: serde_json::Value = serde_json::from_str(&told[0]).unwrap();
    assert_eq!((&line["level"], &line["device"]), (&"warn".into(), &"device-1".into()));
    assert_eq!((&line["reason"], &line["from"]), (&"proof".into(), &"127.0.0.1".into()));
    assert!(line["message"].as_str().unwrap().contains("`duet device show`"), "{line}");
    // No key of either side, as bytes or digits.
    let all = fs::read_to_string(&log).unwrap();
    assert!(!all.contains("a7a7a7a7") && !all.contains(&"01".repeat(8)), "{all}");

    assert_eq!(scratch.duet(&["log", "level"]), (true, "info\n".into()));
    assert_eq!(scratch.duet(&["log", "level", "error"]), (true, "error\n".into()));
    assert_eq!(scratch.duet(&["log", "level"]), (true, "error\n".into()));
    assert!(!scratch.duet(&["log", "level", "loud"]).0);
    // A reload takes both from the settings.
    fs::write(&settings, "[log]\nformat = \"human\"\n").unwrap();
    let pid = gateway.child.id().to_string();
    assert!(Command::new("kill").args(["-HUP", &pid]).status().unwrap().success());
    let began = Instant::now();
    while lines(&log, " INFO  reload: applied: log.format = \"human\"").is_empty() {
        assert!(began.elapsed() < Duration::from_secs(20), "{}", fs::read_to_string(&log).unwrap());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(scratch.duet(&["log", "level"]), (true, "info\n".into()));
    gateway.terminate();
}

#[test]
fn journald_gets_priorities_and_no_times_or_colours() {
    let scratch = Scratch::new();
    scratch.gateway_certificate("short", 2);
    let settings = "[gateway]\ncertificate = \"short.pem\"\nkey = \"short.key\"\n";
    fs::write(scratch.state().join("duet.toml"), settings).unwrap();
    let log = scratch.0.path().join("log");
    let gateway = scratch.run_with("127.0.0.1:0", |command| {
        let file = fs::File::create(&log).unwrap();
        let found = file.metadata().unwrap();
        command.env("JOURNAL_STREAM", format!("{}:{}", found.dev(), found.ino())).stderr(file);
    });
    gateway.terminate();
    let told = lines(&log, "short.pem ends on");
    assert!(told.len() == 1 && told[0].starts_with("<4>"), "{told:?}");
    assert!(!fs::read_to_string(&log).unwrap().contains('\u{1b}'));
}

/// A pager that stands still, or a log's collector that hangs, holds up no shard.
#[test]
fn devices_are_served_whether_or_not_anybody_reads_the_log() {
    use std::io::Write as _;
    let scratch = Scratch::new();
    let (honest, gateway_) = (scratch.identity(1, PROFILE), scratch.gateway());
    let (_unread, mut log) = std::io::pipe().unwrap();
    log.write_all(&[b'x'; 65_536]).unwrap();
    let gateway = scratch.run_with("127.0.0.1:0", |command| {
        command.stderr(log);
    });
    let client = |identity: Identity, seed: u8, fresh| {
        let transport = Transport::Datagram;
        let config = Config { identity, gateway: gateway_, profile: PROFILE, transport, fresh };
        let device = Device::seeded(config, [seed; 32]).unwrap();
        let mut client = Client::new(device, gateway.address, transport);
        client.device.open(0);
        client
    };
    let mut stranger = honest.clone();
    stranger.key = DeviceKey::Registration(RegistrationKey([0xa7; 32]));
    client(stranger, 1, 1).drive(|client| !client.crossed.is_empty());
    std::thread::sleep(Duration::from_millis(300));
    assert!(client(honest, 2, 2).drive(|client| client.crossed.iter().any(|(sent, ..)| !sent)));
    gateway.terminate();
}
