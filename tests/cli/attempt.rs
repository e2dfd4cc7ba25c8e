//! `duet device try`: what a device sends, what comes, and why nothing does.

use std::fs;

use crate::world::{Scratch, text};

/// Tries a device; its exit code and what it said.
fn attempt(scratch: &Scratch, arguments: &[&str]) -> (i32, String) {
    let output = scratch.duet(&[&["device", "try"], arguments].concat());
    let said = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), text(&said))
}

fn add(scratch: &Scratch, name: &str) {
    scratch.good(&["device", "add", name, "--registered-id", "--out", &format!("{name}.json")]);
}

#[test]
fn a_device_says_each_step_and_its_reading_is_stored() {
    let scratch = Scratch::initialised();
    let gateway = scratch.run();
    add(&scratch, "boiler-1");
    let (code, said) = attempt(&scratch, &["boiler-1.json", "--send", "21.5 C"]);
    assert_eq!(code, 0, "{said}");
    let steps = [
        "registered-id/ephemeral",
        "-> HELLO, the reading in it",
        "<- ACCEPT",
        "stored: hello ",
        "nothing waits",
    ];
    let mut at = 0;
    for step in steps {
        at += said[at..].find(step).unwrap_or_else(|| panic!("no {step:?} in its place: {said}"));
    }
    let id = said.split("stored: hello ").nth(1).unwrap().split(',').next().unwrap();
    assert!(scratch.good(&["spool", "cat"]).contains(id), "{said}");
    // Over TCP, without a reading; and with a counter that was lost, which the gateway's challenge mends.
    let (code, said) = attempt(&scratch, &["boiler-1.json", "--tcp"]);
    assert!(code == 0 && !said.contains("stored") && said.contains("counter 258"), "{said}");
    fs::remove_file(scratch.path("boiler-1.counter")).unwrap();
    let (code, said) = attempt(&scratch, &["boiler-1.json", "--send", "22 C"]);
    assert!(code == 0 && said.contains("<- CHALLENGE") && said.contains("stored: hello"), "{said}");
    gateway.stop("-TERM");
}

#[test]
fn a_credential_without_an_address_is_told() {
    let scratch = Scratch::initialised();
    let add = |name: &str, more: &[&str]| {
        let output = scratch.duet(&[&["device", "add", name, "--registered-id"], more].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stderr)
    };
    assert!(add("a", &[]).contains("--address HOST:PORT"));
    assert_eq!(add("b", &["--address", "127.0.0.1:1"]), "");
}

#[test]
fn who_is_not_answered_is_told_why() {
    let scratch = Scratch::initialised();
    let gateway = scratch.run();
    for name in ["revoked", "again", "mine"] {
        add(&scratch, name);
    }
    let short = |name: &'static str| [name, "--timeout", "1"];
    scratch.good(&["device", "revoke", "revoked"]);
    let (code, said) = attempt(&scratch, &short("revoked.json"));
    assert!(code == 4 && said.contains("revoked was revoked at 2"), "{said}");
    let (code, said) = attempt(&scratch, &["revoked.json", "--tcp"]);
    assert!(
        code == 4 && said.contains("closed the connection") && said.contains("revoked at"),
        "{said}"
    );

    scratch.good(&["device", "remove", "again"]);
    let (code, said) = attempt(&scratch, &short("again.json"));
    assert!(code == 4 && said.contains("In state: ") && said.contains("again"), "{said}");
    fs::rename(scratch.path("again.json"), scratch.path("old.json")).unwrap();
    add(&scratch, "again");
    let (code, said) = attempt(&scratch, &short("old.json"));
    assert!(code == 4 && said.contains("it is an older one"), "{said}");

    // Another key than the one that is registered: the gateway alone can tell that.
    let mut forged: serde_json::Value =
        serde_json::from_slice(&fs::read(scratch.path("mine.json")).unwrap()).unwrap();
    forged["registration_key"] = "00".repeat(32).into();
    fs::write(scratch.path("forged.json"), forged.to_string()).unwrap();
    let (code, said) = attempt(&scratch, &short("forged.json"));
    assert!(code == 4 && said.contains("another key than is registered"), "{said}");

    // A gateway of another certificate at the same address.
    let other = Scratch::initialised();
    add(&other, "mine");
    fs::copy(other.path("mine.json"), scratch.path("other.json")).unwrap();
    let mine: serde_json::Value =
        serde_json::from_slice(&fs::read(scratch.path("mine.json")).unwrap()).unwrap();
    let address = mine["gateway"]["address"].as_str().unwrap();
    let arguments = ["other.json", "--timeout", "1", "--address", address];
    let (code, said) = attempt(&scratch, &arguments);
    assert!(code == 4 && said.contains("another gateway's certificate"), "{said}");
    // Where nothing can be looked up, all that it may be is said.
    let mut elsewhere = scratch.command(&[&["device", "try"], &arguments[..]].concat());
    let output = elsewhere.env("DUET_STATE", "none").args(["--state", "none"]).output().unwrap();
    let said = text(&output.stderr);
    assert!(output.status.code() == Some(4) && said.contains("does not know"), "{said}");

    gateway.stop("-TERM");
    for carrier in [&["mine.json"][..], &["mine.json", "--tcp"]] {
        let (code, said) = attempt(&scratch, carrier);
        assert!(code == 3 && said.contains("Is the gateway running"), "{said}");
    }
    let (code, said) = attempt(&scratch, &["mine.json", "--address", "no-such-host.invalid:1"]);
    assert!(code == 3 && said.contains("no-such-host.invalid:1"), "{said}");
    let (code, said) = attempt(&scratch, &["none.json"]);
    assert!(code == 1 && said.contains("none.json"), "{said}");
    assert_eq!(
        attempt(&scratch, &["mine.json", "--channel", "2"]).0,
        2,
        "a channel without a reading"
    );
}
