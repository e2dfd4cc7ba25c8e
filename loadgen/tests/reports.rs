//! What `loadgen` leaves of reports, and what it refuses before it begins.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn loadgen(arguments: &[&str]) -> Output {
    // A gateway that fails at once: what is refused before it is started does not come to it.
    let all = ["--duet", "/bin/false"].iter().chain(arguments);
    Command::new(env!("CARGO_BIN_EXE_loadgen")).args(all).output().unwrap()
}

fn words(path: &Path) -> [&str; 2] {
    ["--json", path.to_str().unwrap()]
}

#[test]
fn a_report_that_cannot_be_written_is_told_before_the_work() {
    for command in [&["run"][..], &["load"], &["compare", "--link", "socket"]] {
        let to = words(Path::new("/nowhere/report.json"));
        let output = loadgen(&[command, &to].concat());
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("cannot write /nowhere/report.json"), "{command:?}: {said}");
        assert_eq!(output.status.code(), Some(1));
    }
}

#[test]
fn a_run_that_fails_leaves_the_last_report_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (dir.path().join("old.json"), dir.path().join("new.json"));
    fs::write(&old, "kept").unwrap();
    for command in [&["run"][..], &["load"], &["compare", "--link", "socket"]] {
        for path in [&old, &new] {
            assert!(!loadgen(&[command, &words(path)].concat()).status.success());
        }
        assert_eq!(fs::read_to_string(&old).unwrap(), "kept", "{command:?}");
        assert!(!new.exists(), "{command:?}");
    }
}

#[test]
fn what_makes_no_sense_is_wrong_usage() {
    for (command, option, value) in [
        ("run", "--devices", "0"),
        ("run", "--readings", "0"),
        ("run", "--shards", "0"),
        ("run", "--profiles", "nope"),
        ("run", "--transport", "smoke"),
        ("load", "--duration", "18446744073709551615"),
        ("load", "--shards", "0"),
        ("load", "--profile", "nope"),
        ("load", "--loss", "91"),
        ("load", "--p99", "0"),
        ("compare", "--contenders", "nobody"),
        ("compare", "--rate", "0"),
    ] {
        let output = loadgen(&[command, option, value]);
        assert_eq!(output.status.code(), Some(2), "{command} {option} {value}");
    }
}
