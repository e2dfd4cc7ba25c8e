//! `loadgen diff` as a script sees it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn report(dir: &Path, name: &str, p99: f64, valid: bool) {
    let report = serde_json::json!({
        "schema": 3, "scenario": "steady", "devices": 10, "valid": valid, "invalid_because": ["it was late"],
        "measured": {"latency_ms": {"p99": p99}},
    });
    fs::write(dir.join(name), report.to_string()).unwrap();
}

fn diff(dir: &Path, args: &[&str]) -> (Option<i32>, String) {
    let Output { status, stdout, stderr } = Command::new(env!("CARGO_BIN_EXE_loadgen"))
        .arg("diff")
        .args(args)
        .current_dir(dir)
        .output()
        .unwrap();
    (status.code(), String::from_utf8([stdout, stderr].concat()).unwrap())
}

#[test]
fn its_exit_code_is_the_verdict() {
    let dir = tempfile::tempdir().unwrap();
    report(dir.path(), "a.json", 10.0, true);
    report(dir.path(), "b.json", 13.0, true);
    report(dir.path(), "late.json", 13.0, false);
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    write("half.json", "{");
    write("run.json", r#"{"schema": 2, "devices": 3, "complete": 3}"#);
    write("old.json", r#"{"schema": 1, "scenario": "steady", "measured": {"due": 1}}"#);
    let condition = ["--fail-if", "measured.latency_ms.p99>+20%"];
    for (args, code, says) in [
        (&["a.json", "b.json"][..], 0, "+30.0%"),
        (&["b.json", "a.json", condition[0], condition[1]], 0, "-23.1%"),
        (&["a.json", "b.json", condition[0], condition[1]], 1, "FAILED measured.latency_ms.p99"),
        (&["a.json", "late.json"], 2, "late.json is marked as not valid"),
        (&["a.json", "half.json"], 2, "half.json: not JSON"),
        (&["a.json", "none.json"], 2, "none.json"),
        (&["a.json", "run.json"], 2, "reports of different commands: load and run"),
        (&["a.json", "old.json"], 2, "old.json has version 1 of"),
        (&["a.json", "b.json", "--fail-if", "p99>1"], 2, "measured.latency_ms.p99"),
        (&["a.json", "b.json", "--fail-if", "p99~1"], 2, "a condition is"),
    ] {
        let (found, said) = diff(dir.path(), args);
        assert_eq!(found, Some(code), "{args:?}: {said}");
        assert!(said.contains(says), "{args:?}: {said}");
    }
}
