//! Gateways started by a script of one's own, and a fleet that does its whole job with each.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use duet_protocol::profile::{Profile, Transport};
use loadgen::fleet::{self, Job, Member};
use loadgen::local::{LocalGateway, Wanted};

pub(crate) const DUET: &str = env!("CARGO_BIN_EXE_duet");

/// A program of these lines of shell. Another process writes it: what this one has open for writing, a test that starts
/// a program at the same time may hold open for a moment longer, and then it could not be run (ETXTBSY).
pub(crate) fn script(dir: &Path, lines: &str) -> PathBuf {
    let path = dir.join("duet");
    let mut install = Command::new("install")
        .args(["-m", "755", "/dev/stdin"])
        .arg(&path)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    write!(install.stdin.take().unwrap(), "#!/bin/sh\n{lines}\n").unwrap();
    assert!(install.wait().unwrap().success());
    path
}

/// A program that is `duet` with these settings, started behind `prefix`.
pub(crate) fn with_settings(dir: &Path, prefix: &str, settings: &str) -> PathBuf {
    let file = dir.join("settings");
    std::fs::write(&file, format!("# Of a test.\n{settings}")).unwrap();
    let lines = format!(
        "if [ \"$3\" = init ]; then {DUET} \"$@\" && cat {} > \"$2/duet.toml\"\n\
         elif [ \"$3\" = run ]; then {prefix} exec {DUET} \"$@\"\n\
         else exec {DUET} \"$@\"; fi",
        file.display()
    );
    script(dir, &lines)
}

/// Devices of every profile over UDP and TCP.
pub(crate) fn everyone() -> Vec<Wanted> {
    let transports = [Transport::Datagram, Transport::Stream];
    let all = Profile::ALL.into_iter().flat_map(|one| transports.map(|transport| (one, transport)));
    all.enumerate()
        .map(|(number, (profile, transport))| Wanted {
            name: format!("device-{number}"),
            profile,
            transport,
        })
        .collect()
}

/// Every device opens a session and sees five readings confirmed.
pub(crate) fn work(members: Vec<Member>, gateway: SocketAddr) {
    let job = Job {
        gateway,
        readings: 5,
        ramp: Duration::from_millis(100),
        limit: Duration::from_secs(30),
        threads: 1,
    };
    for outcome in fleet::run(members, job).unwrap() {
        assert!(outcome.complete, "{} over {:?}", outcome.profile.name(), outcome.transport);
    }
}

/// The sum of a metric over all shards and whatever labels `with` does not name.
pub(crate) fn metric(gateway: &LocalGateway, name: &str, with: &str) -> u64 {
    let text = gateway.scrape().unwrap();
    let of = |line: &str| {
        let (labels, value) = line.strip_prefix(name)?.split_once(' ')?;
        labels.contains(with).then(|| value.trim().parse::<f64>().unwrap())
    };
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counts")]
    let sum = text.lines().filter_map(of).sum::<f64>() as u64;
    sum
}

/// Waits until a metric, which shards publish once a second, has reached `least`.
pub(crate) fn await_metric(gateway: &LocalGateway, name: &str, with: &str, least: u64) -> u64 {
    let deadline = Instant::now() + Duration::from_secs(8);
    loop {
        let found = metric(gateway, name, with);
        if found >= least || Instant::now() > deadline {
            assert!(found >= least, "{name} {with}: {found} instead of {least} or more");
            return found;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Whether these programs can be had; says loudly when not.
pub(crate) fn have(tools: &[&str]) -> bool {
    let missing = tools.iter().find(|tool| Command::new(tool).arg("--version").output().is_err());
    if let Some(tool) = missing {
        eprintln!("SKIPPED: no {tool}");
    }
    missing.is_none()
}
