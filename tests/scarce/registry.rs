//! The registry on a disk without any room, and limits that are smaller than they can be: what must be possible all
//! the same.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use loadgen::local::LocalGateway;

use super::disk::{fill, on_a_disk_of};
use super::world::{DUET, everyone, with_settings, work};

fn duet(state: &Path, arguments: &[&str]) -> Output {
    Command::new(DUET).arg("--state").arg(state).args(arguments).output().unwrap()
}

/// Runs what must succeed.
fn good(state: &Path, arguments: &[&str]) -> String {
    let output = duet(state, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn run(state: &Path) -> Child {
    let mut gateway = Command::new(DUET)
        .arg("--state")
        .arg(state)
        .args(["run", "--shards", "1", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(gateway.stdout.take().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line == "running"));
    gateway
}

fn kill(mut gateway: Child) {
    gateway.kill().unwrap();
    gateway.wait().unwrap();
}

#[test]
fn devices_are_revoked_on_a_full_disk_and_stay_so_after_a_kill() {
    on_a_disk_of(12 << 20, |disk| {
        let state = disk.join("state");
        good(&state, &["init"]);
        fs::write(state.join("duet.toml"), "[spool]\nsegment_bytes = 1048576\n").unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let (list, out) = (elsewhere.path().join("many"), elsewhere.path().join("made"));
        let many = (0..200).map(|n| format!("{{\"name\":\"n{n}\",\"mode\":\"registered-id\"}}\n"));
        fs::write(&list, many.collect::<String>()).unwrap();
        let (list, out) = (list.to_str().unwrap(), out.to_str().unwrap());
        good(&state, &["device", "import", list, "--out", out]);

        let gateway = run(&state);
        fill(disk);
        let revoke = |n: u32| good(&state, &["device", "revoke", &format!("n{n}")]);
        (0..40).map(revoke).for_each(drop);
        // Killed, so that the file has to be recovered, and started on a disk that is full of something else, too.
        kill(gateway);
        (40..60).map(revoke).for_each(drop);
        let gateway = run(&state);
        (60..80).map(revoke).for_each(drop);
        good(&state, &["device", "remove", "n80"]);
        kill(gateway);
        let listed = good(&state, &["device", "list", "--format", "json"]);
        assert_eq!(listed.lines().count(), 199);
        for line in listed.lines() {
            let device: serde_json::Value = serde_json::from_str(line).unwrap();
            let number: u32 = device["name"].as_str().unwrap()[1..].parse().unwrap();
            assert_eq!(device["revoked_s"].is_null(), number > 80, "{line}");
        }
    });
}

#[test]
fn a_limit_below_the_number_of_shards_still_lets_a_device_in() {
    let dir = tempfile::tempdir().unwrap();
    let settings = "[limits]\nmax_sessions = 1\nmax_pending = 1\nmax_streams = 1\nmax_tables = 1\n";
    let program = with_settings(dir.path(), "", settings);
    for wanted in &everyone()[..2] {
        let state = tempfile::tempdir().unwrap();
        let wanted = std::slice::from_ref(wanted);
        let (gateway, members) = LocalGateway::start(&program, state.path(), 2, wanted).unwrap();
        work(members, gateway.address);
        gateway.stop().unwrap();
    }
}
