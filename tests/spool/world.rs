//! Spools that a test fills, and the program that reads them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use duet::delivery::{
    Batch, Durability, Reader, ReadingRef, Retention, Source as _, Spool, SpoolConfig, Urgency,
};
use duet_protocol::reading::ReadingId;

pub(crate) fn config(dir: &Path) -> SpoolConfig {
    SpoolConfig {
        dir: dir.join("spool"),
        segment_bytes: 256 * 1024,
        max_bytes: 64 << 20,
        known: None,
        retention: Retention::default(),
    }
}

pub(crate) fn id(session: u32, sequence: u32) -> ReadingId {
    let mut hello = [0; 12];
    hello[..4].copy_from_slice(&session.to_be_bytes());
    ReadingId { hello, sequence }
}

/// Stores `count` readings in one batch and waits for the answer.
pub(crate) fn store(spool: &Spool, session: u32, count: u32) -> Durability {
    store_at(spool, session, count, 1_800_000_000_123)
}

pub(crate) fn store_at(spool: &Spool, session: u32, count: u32, received_ms: u64) -> Durability {
    let mut batch = Batch::new();
    for sequence in 0..count {
        let reading = ReadingRef {
            device: "meter-1",
            id: id(session, sequence),
            again: false,
            channel: 3,
            received_ms,
            measured_ms: received_ms,
            commit: None,
            notice: None,
            payload: b"21.5",
        };
        assert!(batch.push(&reading));
    }
    let (done, answer) = mpsc::channel();
    let report = Box::new(move |_, durability| done.send(durability).unwrap());
    assert!(spool.submitter().submit(batch, Urgency::Awaited, report).is_ok());
    answer.recv().unwrap()
}

pub(crate) fn all(dir: &Path) -> Vec<u64> {
    let mut reader = Reader::open(dir).unwrap();
    let mut found = Vec::new();
    while let Some(record) = reader.read().unwrap() {
        found.push(record.index);
    }
    found
}

pub(crate) fn first_segment(dir: &Path) -> PathBuf {
    config(dir).dir.join("spool-0000000000000000.log")
}

pub(crate) fn marker(dir: &Path) -> PathBuf {
    config(dir).dir.join("spool.durable")
}

/// The marker as it would be had another start of the system written it.
pub(crate) fn of_another_boot(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes[32..48].fill(9);
    let crc = crc32c::crc32c(&bytes[..60]);
    bytes[60..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Stores readings of 1,000 until there are as many segments as that; the index after them.
pub(crate) fn grow(spool: &Spool, path: &Path, segments: usize) -> u64 {
    while log_files(path).len() < segments {
        assert_eq!(store(spool, 1, 1_000), Durability::Durable);
    }
    spool.source().durable()
}

pub(crate) fn log_files(path: &Path) -> Vec<PathBuf> {
    let mut found: Vec<_> = fs::read_dir(path).unwrap().map(|one| one.unwrap().path()).collect();
    found.retain(|path| path.extension().is_some_and(|end| end == "log"));
    found.sort();
    found
}

/// Waits until the keeper has looked at everything that is there now: once in a round, and before it removes anything, it
/// puts the lock's file back.
pub(crate) fn after_a_round(path: &Path) {
    let lock = path.join("spool.lock");
    for round in ["the one that is under way", "and the next"] {
        fs::remove_file(&lock).unwrap();
        eventually(round, || lock.exists());
    }
}

/// Waits for what another thread does by itself.
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The `duet` program with a state directory whose spool holds `count` readings.
pub(crate) struct Program(pub(crate) tempfile::TempDir);

impl Program {
    pub(crate) fn with(count: u32) -> Self {
        let program = Self(tempfile::tempdir().unwrap());
        let private = PermissionsExt::from_mode(0o700);
        fs::set_permissions(program.0.path(), private).unwrap();
        let made = program.run(&["init"]);
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let spool = Spool::start(config(program.0.path())).unwrap();
        store(&spool, 1, count);
        spool.shutdown().unwrap();
        program
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_duet"));
        command.arg("--state").arg(self.0.path()).args(arguments).stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    pub(crate) fn good(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn bad(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        String::from_utf8(output.stderr).unwrap() + &String::from_utf8(output.stdout).unwrap()
    }
}

/// The indexes of printed lines.
pub(crate) fn indexes(printed: &str) -> Vec<u64> {
    let index =
        |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["index"].as_u64();
    printed.lines().map(|line| index(line).unwrap()).collect()
}
