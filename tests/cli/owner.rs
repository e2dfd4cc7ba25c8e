//! Commands of root beside a gateway that runs as another user.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::{MetadataExt as _, chown, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Stdio};

use crate::world::Scratch;

/// The gateway's user, which no system has.
const USER: u32 = 61_999;

/// Everything in a directory that belongs to somebody else than `USER`.
fn others(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let about = path.symlink_metadata().unwrap();
        if about.uid() != USER {
            found.push(path.file_name().unwrap().to_string_lossy().into_owned());
        }
        if about.is_dir() {
            found.extend(others(&path));
        }
    }
    found.sort();
    found
}

/// Runs the gateway as its user until it serves.
fn run(scratch: &Scratch) -> Child {
    let mut command = scratch.command(&["run", "--listen", "127.0.0.1:0"]);
    let mut child = command.uid(USER).gid(USER).stdout(Stdio::piped()).spawn().unwrap();
    let out = BufReader::new(child.stdout.take().unwrap());
    assert!(out.lines().map_while(Result::ok).any(|line| line == "running"));
    child
}

#[test]
fn what_root_makes_beside_a_gateway_of_another_user_is_that_users() {
    let scratch = Scratch::empty();
    if scratch.dir.path().metadata().unwrap().uid() != 0 {
        eprintln!("SKIPPED: not root, whose files a gateway of another user gets was not tested");
        return;
    }
    chown(scratch.dir.path(), Some(USER), Some(USER)).unwrap();
    assert!(scratch.command(&["init"]).uid(USER).gid(USER).output().unwrap().status.success());
    let state = scratch.state();
    // What is root's before stays so, and nothing outside is given.
    let (kept, outside) = (state.join("kept"), scratch.path("outside"));
    fs::write(&kept, "").unwrap();
    fs::write(&outside, "").unwrap();
    symlink(&outside, state.join("link")).unwrap();
    let mut gateway = run(&scratch);
    gateway.kill().unwrap();
    gateway.wait().unwrap();
    // The registry is copied, since it was not closed; others are made or replaced.
    scratch.good(&["device", "list"]);
    assert_eq!(others(&state), ["kept", "link"]);
    scratch.good(&["device", "add", "a", "--registered-id", "--out", "a.json"]);
    scratch.good(&["token", "add", "ops", "--role", "admin"]);
    scratch.good(&["ca", "init"]);
    scratch.good(&["enrol", "token", "--name", "b"]);
    scratch.bad(&["device", "add", "a", "--registered-id", "--out", "again.json"]);
    assert_eq!(others(&state), ["kept", "link"]);
    for given in ["a.json", "outside"] {
        assert_eq!(
            scratch.path(given).metadata().unwrap().uid(),
            0,
            "{given} is whose it was made"
        );
    }
    let mut gateway = run(&scratch);
    scratch.good(&["device", "remove", "a"]);
    scratch.good(&["status"]);
    gateway.kill().unwrap();
    gateway.wait().unwrap();
}
