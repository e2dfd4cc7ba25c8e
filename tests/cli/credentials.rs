//! What a device is given: whole, true, and delivered before anything is registered.

use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::world::{Scratch, text};

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

pub(crate) fn assert_valid(credential: &Value) {
    let schema = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/credential.schema.json");
    let validator = jsonschema::validator_for(&read(&schema)).unwrap();
    let faults: Vec<_> = validator.iter_errors(credential).map(|fault| fault.to_string()).collect();
    assert!(faults.is_empty(), "{faults:?}");
}

/// A certificate of a device, in `name.pem`.
fn device_certificate(scratch: &Scratch, name: &str) {
    let created = duet::identity::create(name, 30, duet::identity::now_s()).unwrap();
    fs::write(scratch.path(&format!("{name}.pem")), &created.certificate_pem).unwrap();
}

fn names(scratch: &Scratch) -> Vec<String> {
    let listed = scratch.good(&["device", "list", "--format", "names"]);
    listed.lines().map(str::to_owned).collect()
}

#[test]
fn a_credential_holds_all_that_a_device_needs() {
    let scratch = Scratch::initialised();
    device_certificate(&scratch, "one");
    device_certificate(&scratch, "two");
    let gateway = ["--address", "gateway.example:23838"];
    let adds: [&[&str]; 3] = [
        &["device", "add", "a", "--cert", "one.pem", "--private-key-file", "/etc/duet/key.pem"],
        &["device", "add", "b", "--registered-cert", "two.pem"],
        &["device", "add", "c", "--registered-id", "--key-sources", "ephemeral,client-random"],
    ];
    for (add, name) in adds.into_iter().zip(["a", "b", "c"]) {
        let out = format!("{name}.json");
        scratch.good(&[add, &gateway[..], &["--out", &out][..]].concat());
        let credential = read(&scratch.path(&out));
        assert_valid(&credential);
        assert_eq!(credential["gateway"]["address"], "gateway.example:23838");
        let shown = scratch.good(&["device", "show", name, "--format", "json"]);
        let shown: Value = serde_json::from_str(&shown).unwrap();
        assert_eq!(credential["id"], shown["id"]);
        // Only where the key was made here is no HELLO possible that was sent before.
        let first = if name == "c" { 2 } else { 1 };
        assert_eq!(
            (&credential["first_fresh"], &shown["mark"]),
            (&first.into(), &(first - 1).into())
        );
        let pem = fs::read_to_string(scratch.state().join("gateway.pem")).unwrap();
        let stored =
            duet::identity::Certificate::parse(pem.as_bytes(), duet::identity::Role::Gateway);
        let given = credential["gateway"]["certificate_pem"].as_str().unwrap();
        let given =
            duet::identity::Certificate::parse(given.as_bytes(), duet::identity::Role::Gateway);
        assert_eq!(stored.unwrap().der, given.unwrap().der);
    }
    let sources = read(&scratch.path("c.json"))["key_sources"].clone();
    assert_eq!(sources, serde_json::json!(["ephemeral", "client-random"]));
    assert_eq!(read(&scratch.path("a.json"))["private_key_file"], "/etc/duet/key.pem");
}

#[test]
fn a_credential_as_a_c_header_compiles_and_is_the_same() {
    let scratch = Scratch::initialised();
    scratch.good(&[
        "device",
        "add",
        "c",
        "--registered-id",
        "--format",
        "c",
        "--out",
        "credential.h",
    ]);
    let program = r#"
        #include <stdio.h>
        #include "credential.h"
        static const unsigned char id[8] = DUET_CREDENTIAL_ID;
        static const unsigned char key[32] = DUET_CREDENTIAL_REGISTRATION_KEY;
        static const unsigned char print[32] = DUET_CREDENTIAL_GATEWAY_FINGERPRINT;
        static const unsigned char point[65] = DUET_CREDENTIAL_GATEWAY_PUBLIC_KEY;
        static const unsigned char certificate[] = DUET_CREDENTIAL_GATEWAY_CERTIFICATE;
        int main(void) {
            for (int i = 0; i < 8; i++) printf("%02x", id[i]);
            printf(" %s %d %d %u %d %d %d\n", DUET_CREDENTIAL_NAME, DUET_CREDENTIAL_MODE,
                   DUET_CREDENTIAL_GATEWAY_KEY_ID, DUET_CREDENTIAL_FIRST_FRESH, DUET_CREDENTIAL_ALLOWS_EPHEMERAL,
                   point[0], certificate[0]);
            return key[0] == 0 && key[1] == 0 && key[2] == 0 && key[3] == 0 && print[0] == print[31] && print[1] == 0;
        }
    "#;
    fs::write(scratch.path("main.c"), program).unwrap();
    let compile = ["-Wall", "-Wextra", "-Werror", "-std=c99", "main.c", "-o", "main"];
    let Ok(compiled) = Command::new("cc").args(compile).current_dir(scratch.dir.path()).output()
    else {
        eprintln!("SKIPPED: no C compiler, so the header was not compiled");
        return;
    };
    assert!(compiled.status.success(), "{}", text(&compiled.stderr));
    let printed = Command::new(scratch.path("main")).output().unwrap();
    assert!(printed.status.success());
    let shown = scratch.good(&["device", "show", "c", "--format", "json"]);
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(
        text(&printed.stdout),
        format!("{} c 2 0 2 1 4 48\n", shown["id"].as_str().unwrap())
    );
}

#[test]
fn the_credential_names_the_certificate_that_the_running_gateway_uses() {
    let scratch = Scratch::initialised();
    let before = scratch.good(&["device", "add", "a", "--registered-id"]);
    let gateway = scratch.run();
    // The operator prepares the next certificate; the gateway has not been started anew.
    let created = duet::identity::create("next", 90, duet::identity::now_s()).unwrap();
    fs::write(scratch.state().join("next.pem"), &created.certificate_pem).unwrap();
    let settings = "[gateway]\nkey_id = 7\ncertificate = \"next.pem\"\nkey = \"gateway.key\"\n";
    fs::write(scratch.state().join("duet.toml"), settings).unwrap();
    let while_running = scratch.good(&["device", "add", "b", "--registered-id"]);
    let [before, while_running] =
        [before, while_running].map(|text| serde_json::from_str::<Value>(&text).unwrap());
    for fact in ["key_id", "fingerprint", "certificate_pem", "public_key"] {
        assert_eq!(while_running["gateway"][fact], before["gateway"][fact]);
    }
    // It listens on one address, so devices find it there.
    let address = while_running["gateway"]["address"].as_str().unwrap();
    assert!(address.starts_with("127.0.0.1:") && before["gateway"].get("address").is_none());
    gateway.stop("-TERM");
    let after = scratch.good(&["device", "add", "c", "--registered-id"]);
    let after: Value = serde_json::from_str(&after).unwrap();
    assert_eq!(after["gateway"]["key_id"], 7);
}

/// Adds a device of this name with a standard output of one's own.
fn add_to(scratch: &Scratch, name: &str, out: impl Into<Stdio>) -> Output {
    let mut command = scratch.command(&["device", "add", name, "--registered-id"]);
    command.stdout(out).stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap()
}

/// The same command, started without a standard output.
fn without_output(command: &Command) -> Command {
    let mut closed = Command::new("sh");
    closed.args(["-c", "exec \"$@\" >&-", "sh"]).arg(command.get_program());
    closed.args(command.get_args());
    closed.current_dir(command.get_current_dir().unwrap());
    closed
}

#[test]
fn what_nobody_would_see_is_no_success() {
    let scratch = Scratch::initialised();
    let gateway = scratch.run();
    let add = ["device", "add", "x", "--registered-id", "--out", "x.json"];
    scratch.good(&add);
    scratch.good(&["device", "try", "x.json", "--send", "21.5"]);
    let questions: [&[&str]; 13] = [
        &["device", "list"],
        &["device", "list", "--format", "json"],
        &["device", "show", "x"],
        &["device", "export"],
        &["device", "export", "--format", "csv"],
        &["spool", "cat"],
        &["spool", "list"],
        &["token", "list"],
        &["enrol", "list"],
        &["config", "show"],
        &["audit", "show"],
        &["audit", "verify"],
        &["completions", "bash"],
    ];
    for question in questions {
        let asked = scratch.command(question);
        let unseen = without_output(&asked).output().unwrap();
        let said = text(&unseen.stderr);
        assert!(
            !unseen.status.success() && said.contains("standard output is closed"),
            "{question:?}: {said}"
        );
        scratch.good(question);
        // Output that is thrown away on purpose.
        let thrown = scratch.command(question).stdout(Stdio::null()).output().unwrap();
        assert!(thrown.status.success(), "{question:?}");
        // A disk that takes nothing.
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let lost = scratch.command(question).stdout(full).output().unwrap();
        let said = text(&lost.stderr);
        assert!(!lost.status.success() && said.contains("No space left"), "{question:?}: {said}");
        assert!(said.contains("standard output") || question[0] == "spool", "{question:?}: {said}");
    }
    // Whoever was not told of a change does not take it for one that the disk refused.
    for change in [&["command", "x", "restart"][..], &["device", "revoke", "x"]] {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let lost = scratch.command(change).stdout(full).output().unwrap();
        let said = text(&lost.stderr);
        assert!(!lost.status.success() && said.contains("was done"), "{change:?}: {said}");
    }
    assert!(scratch.good(&["device", "list", "--only", "revoked"]).contains("x "));
    gateway.stop("-TERM");
}

#[test]
fn nothing_is_registered_whose_credential_was_not_delivered() {
    let scratch = Scratch::initialised();
    let round = |scratch: &Scratch| {
        let full = || fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let broken = || {
            let (reader, writer) = std::io::pipe().unwrap();
            drop(reader);
            writer
        };
        for refused in [add_to(scratch, "x", full()), add_to(scratch, "x", broken())] {
            let said = text(&refused.stderr);
            assert!(!refused.status.success() && said.contains("nothing was registered"), "{said}");
        }
        // Without a standard output at all.
        let add = scratch.command(&["device", "add", "x", "--registered-id"]);
        let refused = without_output(&add).output().unwrap();
        let said = text(&refused.stderr);
        assert!(!refused.status.success() && said.contains("--out FILE"), "{said}");
        // A file that cannot be made.
        let nowhere = ["device", "add", "x", "--registered-id", "--out", "nowhere/x.json"];
        assert!(scratch.bad(&nowhere).contains("nothing was registered"));
        assert!(!names(scratch).contains(&"x".to_owned()));
        // One that reads to the end has the credential.
        let (mut reader, writer) = std::io::pipe().unwrap();
        let name = format!("y{}", names(scratch).len());
        assert!(add_to(scratch, &name, writer).status.success());
        let mut credential = String::new();
        reader.read_to_string(&mut credential).unwrap();
        assert_valid(&serde_json::from_str(&credential).unwrap());
        assert!(names(scratch).contains(&name));
        // What would be refused prints nothing.
        let taken = scratch.duet(&["device", "add", &name, "--registered-id"]);
        assert!(!taken.status.success() && taken.stdout.is_empty());
    };
    round(&scratch);
    let _gateway = scratch.run();
    round(&scratch);
}

#[test]
fn no_token_is_left_that_nobody_has() {
    let scratch = Scratch::initialised();
    let attempts = |name: &str| {
        let add = scratch.command(&["token", "add", name, "--role", "admin"]);
        for output in ["exec \"$@\" >&-", "exec \"$@\" >/dev/full"] {
            let mut shell = Command::new("sh");
            shell.args(["-c", output, "sh"]).arg(add.get_program()).args(add.get_args());
            let refused = shell.current_dir(scratch.dir.path()).output().unwrap();
            assert_eq!(refused.status.code(), Some(1), "{output}: {}", text(&refused.stderr));
            let listed = scratch.good(&["token", "list", "--format", "json"]);
            assert_eq!(listed, "", "{output}");
        }
    };
    attempts("offline");
    let gateway = scratch.run();
    attempts("online");
    gateway.stop("-TERM");
}
