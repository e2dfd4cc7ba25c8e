//! Standard output that takes nothing: what was asked is answered, or the command says that it was not.

use std::fs::{self, File, OpenOptions};
use std::process::Stdio;

use crate::world::{Scratch, text};

fn full() -> File {
    OpenOptions::new().write(true).open("/dev/full").unwrap()
}

/// Runs a command whose standard output takes nothing; what it says of that.
fn unheard(scratch: &Scratch, arguments: &[&str]) -> String {
    let output = scratch.command(arguments).stdout(full()).output().unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
    assert!(said.contains("standard output") && said.contains("No space left"), "{said}");
    said
}

#[test]
fn whoever_cannot_be_told_is_told_that() {
    let scratch = Scratch::empty();
    let made = unheard(&scratch, &["init"]);
    assert!(made.contains("was done") && made.contains("fingerprint"), "{made}");
    let gateway = scratch.run();
    scratch.good(&["device", "add", "a", "--registered-id", "--out", "a.json"]);
    let tried = unheard(&scratch, &["device", "try", "a.json", "--send", "21.5"]);
    assert!(tried.contains("was done"), "{tried}");
    assert_eq!(scratch.good(&["spool", "cat"]).matches("21.5").count(), 1);
    for answered in [
        &["--version"][..],
        &["--help"],
        &["device", "list"],
        &["device", "show", "a"],
        &["command", "list"],
        &["spool", "cat"],
        &["spool", "list"],
        &["spool", "verify"],
        &["status"],
        &["top", "--once"],
        &["check"],
        &["doctor"],
        &["config", "show"],
        &["enrol", "list"],
        &["token", "list"],
        &["audit", "show"],
        &["audit", "verify"],
        &["completions", "bash"],
    ] {
        unheard(&scratch, answered);
    }
    for done in [
        &["ca", "init"][..],
        &["command", "a", "x"],
        &["command", "cancel", "1"],
        &["device", "set", "a", "--add-tag", "x"],
        &["device", "revoke", "a"],
        &["spool", "ack-cut"],
        &["spool", "cursor", "set", "c", "0"],
        &["config", "reload"],
        &["log", "level", "info"],
        &["backup", "b.tar"],
    ] {
        assert!(unheard(&scratch, done).contains("was done"), "{done:?}");
    }
    gateway.stop("-TERM");
    fs::rename(scratch.state(), scratch.path("before")).unwrap();
    let restored = unheard(&scratch, &["restore", "b.tar", "--none-revoked"]);
    assert!(restored.contains("was done"), "{restored}");
    scratch.run().stop("-TERM");
}

/// `duet device try … | head -1` sends its reading all the same.
#[test]
fn a_reader_that_goes_away_ends_no_attempt() {
    let scratch = Scratch::initialised();
    let gateway = scratch.run();
    scratch.good(&["device", "add", "a", "--registered-id", "--out", "a.json"]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = scratch.command(&["device", "try", "a.json", "--send", "21.5"]);
    let output = command.stdout(Stdio::from(writer)).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(scratch.good(&["spool", "cat"]).matches("21.5").count(), 1);
    gateway.stop("-TERM");
}
