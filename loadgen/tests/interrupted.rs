//! A signal ends `loadgen` with all that it started, and nothing stays behind. Alone in its program: while one test
//! writes a program and another starts one, the former cannot be run.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

fn eventually<T>(what: &str, check: impl Fn() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not within 20 s");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).unwrap().next().is_none()
}

#[test]
fn it_ends_with_its_gateway_and_its_directory() {
    let dir = tempfile::tempdir().unwrap();
    let (gateway, pid) = (dir.path().join("duet"), dir.path().join("pid"));
    // A gateway that never gets ready.
    let lines =
        format!("#!/bin/sh\necho $$ > {0}.new && mv {0}.new {0}\nexec sleep 1000\n", pid.display());
    fs::write(&gateway, lines).unwrap();
    fs::set_permissions(&gateway, fs::Permissions::from_mode(0o755)).unwrap();
    let temporary = dir.path().join("tmp");
    fs::create_dir(&temporary).unwrap();
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let mut loadgen = Command::new(env!("CARGO_BIN_EXE_loadgen"))
            .arg("--duet")
            .arg(&gateway)
            .arg("load")
            .env("TMPDIR", &temporary)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let child = eventually("the gateway", || fs::read_to_string(&pid).ok());
        assert!(!is_empty(&temporary));
        kill_process(Pid::from_child(&loadgen), signal).unwrap();
        let status = loadgen.wait().unwrap();
        assert_eq!(status.code(), Some(128 + signal.as_raw()));
        let child = Pid::from_raw(child.trim().parse().unwrap()).unwrap();
        let gone = test_kill_process(child).is_err();
        if !gone {
            kill_process(child, Signal::KILL).unwrap();
        }
        assert!(gone, "the gateway outlived it");
        assert!(is_empty(&temporary));
        let mut said = String::new();
        std::io::Read::read_to_string(&mut loadgen.stderr.take().unwrap(), &mut said).unwrap();
        assert_eq!(said, "");
        fs::remove_file(&pid).unwrap();
    }
}
