//! The real `duet` process: its commands, its refusals and its control plane.
//!
//! Certificates come from the `openssl` command, an implementation that shares no code with ours.

#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

mod attempt;
mod backup;
mod browser;
mod credentials;
mod doctor;
mod enrol;
mod fleet;
mod input;
mod life;
mod output;
mod owner;
mod packages;
mod page;
mod surroundings;
mod world;

use world::{Scratch, text};

const P256: &str = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1";

fn has_openssl() -> bool {
    let found = Command::new("openssl").arg("version").output().is_ok();
    if !found {
        eprintln!("SKIPPED: the openssl command is missing, certificates were not tested");
    }
    found
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn init_makes_private_files_and_never_overwrites() {
    let scratch = Scratch::empty();
    let said = scratch.good(&["init", "--name", "north", "--days", "30"]);
    assert!(said.contains("fingerprint"), "{said}");
    assert_eq!(mode(&scratch.state()), 0o700);
    assert_eq!(mode(&scratch.state().join("gateway.key")), 0o600);
    assert_eq!(mode(&scratch.state().join("registry.redb")), 0o600);
    let before = fs::read(scratch.state().join("gateway.key")).unwrap();
    assert!(scratch.bad(&["init"]).contains("exists already"));
    assert_eq!(fs::read(scratch.state().join("gateway.key")).unwrap(), before);
    fs::set_permissions(scratch.state(), fs::Permissions::from_mode(0o755)).unwrap();
    for name in ["gateway.key", "gateway.pem", "duet.toml", "registry.redb"] {
        fs::remove_file(scratch.state().join(name)).unwrap();
    }
    assert!(scratch.bad(&["init"]).contains("chmod 700"));
}

/// Runs `init` until it makes its `call`th system call of this kind, and kills it there; whether it came to that.
fn init_killed_at(scratch: &Scratch, kind: &str, call: usize) -> bool {
    let init = scratch.command(&["init"]);
    let mut traced = Command::new("strace");
    traced.args(["-f", "-o", "/dev/null", "-e"]);
    traced.arg(format!("inject={kind}:signal=KILL:when={call}"));
    traced.arg(init.get_program()).args(init.get_args()).current_dir(scratch.dir.path());
    !traced.stdin(Stdio::null()).stdout(Stdio::null()).status().unwrap().success()
}

#[test]
fn whenever_init_is_killed_the_unit_starts_afterwards() {
    if Command::new("strace").arg("--version").output().is_err() {
        eprintln!("SKIPPED: strace is missing, so init was killed nowhere");
        return;
    }
    let mut killed = 0;
    // At syncs, and where names appear or go; the registry alone makes dozens of syncs.
    for (kind, step) in
        [("fsync,fdatasync", 3), ("?rename,?renameat,?renameat2,?unlink,?unlinkat", 1)]
    {
        for call in (1..).step_by(step) {
            let scratch = Scratch::empty();
            if !init_killed_at(&scratch, kind, call) {
                break;
            }
            killed += 1;
            // What the unit does.
            if !scratch.state().join("gateway.pem").exists() {
                scratch.good(&["init"]);
            }
            scratch.good(&["device", "list"]);
            if call % 4 == 1 {
                scratch.run().stop("-TERM");
            }
            assert!(scratch.bad(&["init"]).contains("exists already"));
        }
    }
    assert!(killed > 8, "{killed}");
}

#[test]
fn init_makes_nothing_new_beside_what_a_gateway_left_behind() {
    let scratch = Scratch::initialised();
    scratch.run().stop("-TERM");
    for name in ["gateway.key", "gateway.pem", "duet.toml", "registry.redb"] {
        fs::remove_file(scratch.state().join(name)).unwrap();
    }
    // Not even where it takes the directory for one in which an earlier init was killed.
    for _ in 0..2 {
        let said = scratch.bad(&["init"]);
        assert!(said.contains("a gateway has run here") && said.contains("backup"), "{said}");
        assert!(!scratch.state().join("gateway.pem").exists());
        fs::write(scratch.state().join(".init-not-finished"), "").unwrap();
    }
    let scratch = Scratch::initialised();
    scratch.good(&["device", "add", "a", "--registered-id", "--out", "a.json"]);
    fs::remove_file(scratch.state().join("gateway.pem")).unwrap();
    fs::write(scratch.state().join(".init-not-finished"), "").unwrap();
    assert!(scratch.bad(&["init"]).contains("exists already"));
    assert_eq!(scratch.good(&["device", "list", "--format", "json"]).lines().count(), 1);
}

#[test]
fn wrong_usage_is_2_and_help_teaches() {
    let scratch = Scratch::empty();
    for wrong in [&["fly"][..], &["device", "add", "a"], &["init", "--days", "0"], &["device"]] {
        assert_eq!(scratch.duet(wrong).status.code(), Some(2), "{wrong:?}");
    }
    assert!(scratch.good(&["--help"]).contains("First steps"));
    let bad_profile = ["device", "add", "a", "--registered-id", "--key-sources", "best"];
    assert_eq!(scratch.duet(&bad_profile).status.code(), Some(2));
}

#[test]
fn a_missing_or_impossible_state_directory_is_named() {
    let scratch = Scratch::empty();
    assert!(scratch.bad(&["run"]).contains("duet init"));
    assert!(scratch.bad(&["device", "list"]).contains("duet init"));
    assert!(scratch.bad(&["status"]).contains("no such state directory"));
    // A file in the directory's place stops even root, unlike a mode.
    fs::write(scratch.state(), "").unwrap();
    assert!(scratch.bad(&["init"]).contains("state"));
    assert!(scratch.bad(&["run"]).contains("state"));
}

#[test]
fn certificates_are_judged() {
    if !has_openssl() {
        return;
    }
    let scratch = Scratch::initialised();
    scratch.certificate("good", P256, "-days 2");
    scratch.certificate("signing", P256, "-addext keyUsage=digitalSignature");
    scratch.certificate("agreeing", P256, "-addext keyUsage=keyAgreement");
    scratch.certificate("rsa", "-newkey rsa:2048", "");
    scratch.certificate("p384", "-newkey ec -pkeyopt ec_paramgen_curve:secp384r1", "");
    scratch.openssl("ecparam -name prime256v1 -genkey -noout -conv_form compressed -out c.key");
    scratch.openssl("ec -in c.key -conv_form compressed -out compressed.key");
    scratch.openssl("req -x509 -new -key compressed.key -subj /CN=c -out compressed.pem");
    scratch.openssl("req -new -key good.key -subj /CN=old -out old.csr");
    scratch.openssl("x509 -req -in old.csr -signkey good.key -days -1 -out expired.pem");
    scratch.openssl("x509 -in good.pem -outform DER -out good.der");
    fs::write(scratch.path("garbage.pem"), "-----BEGIN CERTIFICATE-----\nhello\n").unwrap();
    let both =
        [fs::read(scratch.path("good.pem")).unwrap(), fs::read(scratch.path("good.key")).unwrap()];
    fs::write(scratch.path("both.pem"), both.concat()).unwrap();
    let refused = |file: &str, why: &str| {
        let said = scratch.bad(&["device", "add", "x", "--cert", file]);
        assert!(said.contains(file) && said.contains(why), "{said}");
    };
    refused("agreeing.pem", "digitalSignature");
    refused("rsa.pem", "not an elliptic-curve key");
    refused("p384.pem", "another curve");
    refused("compressed.pem", "uncompressed");
    refused("expired.pem", "expired on");
    refused("garbage.pem", "the PEM block is damaged");
    refused("both.pem", "private key");
    refused("none.pem", "No such file");
    for (name, file) in [("a", "good.der"), ("b", "signing.pem")] {
        let said = scratch.good(&["device", "add", name, "--cert", file]);
        assert!(said.contains("\"mode\":\"certificate\""), "{said}");
        assert!(!said.contains("registration_key"), "{said}");
    }
    let again = scratch.bad(&["device", "add", "c", "--registered-cert", "good.pem"]);
    assert!(again.contains("belongs to device a"), "{again}");
    scratch.good(&["device", "revoke", "a"]);
    let back = scratch.bad(&["device", "add", "a", "--cert", "good.pem"]);
    assert!(back.contains("stays refused"), "{back}");
}

#[test]
fn the_gateways_own_key_and_certificate_are_judged() {
    if !has_openssl() {
        return;
    }
    let scratch = Scratch::initialised();
    let (pem, key) = (scratch.state().join("gateway.pem"), scratch.state().join("gateway.key"));
    scratch.certificate("other", P256, "");
    let original = fs::read(&key).unwrap();
    fs::copy(scratch.path("other.key"), &key).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    assert!(scratch.bad(&["run"]).contains("does not belong to the certificate"));
    fs::copy(scratch.path("other.pem"), &pem).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o604)).unwrap();
    assert!(scratch.bad(&["run"]).contains("chmod 600"));
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    scratch.run().stop("-TERM");
    // SEC 1, with the parameters in a block of their own in front.
    scratch.openssl("ecparam -name prime256v1 -genkey -out sec1.key");
    scratch.openssl("req -x509 -new -key sec1.key -subj /CN=sec1 -out sec1.pem");
    fs::copy(scratch.path("sec1.key"), &key).unwrap();
    fs::copy(scratch.path("sec1.pem"), &pem).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    scratch.run().stop("-INT");
    scratch.openssl("ec -in sec1.key -aes128 -passout pass:secret -out locked.key");
    fs::write(&key, fs::read(scratch.path("locked.key")).unwrap()).unwrap();
    assert!(scratch.bad(&["run"]).contains("passphrase"));
    fs::write(&key, &original[..40]).unwrap();
    assert!(scratch.bad(&["run"]).contains("not a P-256 private key"));
}

#[test]
fn settings_are_checked_whole() {
    let scratch = Scratch::initialised();
    let settings = scratch.state().join("duet.toml");
    fs::write(&settings, "shards = 1\nlisen = \"[::]:1\"\n").unwrap();
    let said = scratch.bad(&["run"]);
    assert!(said.contains("duet.toml") && said.contains("line 2"), "{said}");
    fs::write(&settings, "listen = \"somewhere\"\n").unwrap();
    assert!(scratch.bad(&["run"]).contains("line 1"));
    fs::write(&settings, "shards = 0\n[session]\nlifetime_s = 1\n").unwrap();
    let said = scratch.bad(&["run"]);
    assert!(said.contains("shards must") && said.contains("session.lifetime_s must"), "{said}");
    assert!(scratch.bad(&["run", "--config", "none.toml"]).contains("none.toml"));
}

#[test]
fn a_damaged_registry_is_named_and_left_alone() {
    let scratch = Scratch::initialised();
    let registry = scratch.state().join("registry.redb");
    let whole = fs::read(&registry).unwrap();
    for length in [0, 100, whole.len() / 2] {
        fs::write(&registry, &whole[..length]).unwrap();
        for command in [&["run"][..], &["device", "list"]] {
            let said = scratch.bad(command);
            assert!(said.contains("registry.redb: the registry is damaged"), "{said}");
        }
        assert!(fs::read(&registry).unwrap() == whole[..length]);
    }
}

#[test]
fn what_is_wrong_with_an_import_is_told_with_its_line() {
    let scratch = Scratch::initialised();
    let import = ["device", "import", "fleet.ndjson", "--out", "fleet.json"];
    let good = |name: &str| format!("{{\"name\":\"{name}\",\"mode\":\"registered-id\"}}\n\n");
    let refused = |last: &str| {
        fs::write(scratch.path("fleet.ndjson"), good("a") + &good("b") + last).unwrap();
        scratch.bad(&import)
    };
    let round = || {
        let taken = refused(&good("a"));
        assert!(taken.contains("fleet.ndjson: line 5: a: line 1 has this name, too"), "{taken}");
        let key = refused(r#"{"name":"c","mode":"registered-id","key":"12"}"#);
        assert!(key.contains("line 5: c: key must be 64 hexadecimal digits"), "{key}");
        let field = refused(r#"{"name":"c","modus":1}"#);
        assert!(field.contains("line 5, column 19, is not a device: unknown field"), "{field}");
        assert!(!field.contains("line 1"), "{field}");
    };
    round();
    let _gateway = scratch.run();
    round();
}

#[test]
fn a_running_gateway_answers_on_its_socket_and_over_http() {
    let scratch = Scratch::initialised();
    scratch.good(&["device", "add", "before", "--registered-id", "--out", "before.json"]);
    let gateway = scratch.run();
    assert!(scratch.bad(&["run", "--metrics", "127.0.0.1:0"]).contains("in use"));
    scratch.good(&["device", "add", "a", "--registered-id", "--out", "a.json"]);
    assert_eq!(mode(&scratch.path("a.json")), 0o600);
    let credential: serde_json::Value =
        serde_json::from_slice(&fs::read(scratch.path("a.json")).unwrap()).unwrap();
    let secret = credential["registration_key"].as_str().unwrap();
    assert_eq!((secret.len(), credential["id"].as_str().unwrap().len()), (64, 16));
    // Refused: the credential's file goes away again, and one that exists stays.
    let taken = scratch.bad(&["device", "add", "a", "--registered-id", "--out", "b.json"]);
    assert!(taken.contains("revoke or remove"), "{taken}");
    assert!(!scratch.path("b.json").exists());
    scratch.bad(&["device", "add", "c", "--registered-id", "--out", "a.json"]);

    let lines: String = (0..1_000)
        .map(|i| format!("{{\"name\":\"fleet-{i}\",\"mode\":\"registered-id\"}}\n"))
        .collect();
    fs::write(scratch.path("fleet.ndjson"), lines).unwrap();
    assert!(scratch.bad(&["device", "import", "fleet.ndjson"]).contains("--out"));
    let import = ["device", "import", "fleet.ndjson", "--out", "fleet.json"];
    assert_eq!(scratch.good(&import), "registered 1000 devices\n");
    assert_eq!(fs::read_to_string(scratch.path("fleet.json")).unwrap().lines().count(), 1_000);
    let list = scratch.good(&["device", "list", "--format", "json"]);
    assert_eq!(list.lines().count(), 1_002);
    for shown in [list, scratch.good(&["device", "show", "a"]), gateway.get("/metrics")] {
        assert!(!shown.contains(secret));
    }
    scratch.good(&["device", "revoke", "a"]);
    assert!(scratch.good(&["device", "show", "a"]).contains("revoked"));
    assert!(scratch.bad(&["device", "revoke", "a"]).contains("revoked already"));
    assert!(scratch.bad(&["device", "show", "nobody"]).contains("no device of this name"));
    assert!(scratch.bad(&["command", "--wait", "before", "hello"]).contains("not connected"));
    assert!(scratch.good(&["status"]).contains("running"));

    assert!(gateway.get("/metrics").contains("duet_devices 1001"));
    assert!(gateway.get("/health").starts_with("HTTP/1.1 200"));
    assert!(gateway.get("/ready").starts_with("HTTP/1.1 200"));
    gateway.stop("-TERM");
    assert!(!scratch.state().join("control.sock").exists());
    assert!(scratch.bad(&["status"]).contains("no gateway is running"));
    // The same answers without a gateway, and after a kill.
    assert_eq!(scratch.good(&["device", "list"]).lines().count(), 1_003);
    let gateway = scratch.run();
    drop(gateway);
    assert!(scratch.state().join("control.sock").exists());
    assert!(scratch.good(&["device", "show", "a"]).contains("revoked"));
    scratch.run().stop("-INT");
}

/// No token is lost and none comes back, also where a gateway starts or ends meanwhile.
#[test]
fn tokens_that_several_commands_change_at_once_are_all_changed() {
    let scratch = Scratch::initialised();
    scratch.good(&["token", "add", "first", "--role", "admin"]);
    let name = |number: usize| format!("t{number}");
    let at_once = |word: &str| {
        std::thread::scope(|threads| {
            for number in 0..8 {
                let (scratch, name) = (&scratch, name(number));
                threads.spawn(move || match word {
                    "add" => scratch.good(&["token", "add", &name, "--role", "viewer"]),
                    _ => scratch.good(&["token", "revoke", &name]),
                });
            }
            (word == "revoke").then(|| scratch.run())
        })
    };
    at_once("add");
    assert_eq!(scratch.good(&["token", "list"]).lines().count(), 1 + 1 + 8);
    let gateway = at_once("revoke").unwrap();
    assert_eq!(scratch.good(&["token", "list"]).lines().count(), 1 + 1, "as the gateway has it");
    gateway.stop("-TERM");
    assert_eq!(scratch.good(&["token", "list"]).lines().count(), 1 + 1);
    scratch.good(&["audit", "verify"]);
    let done = scratch.good(&["audit", "show"]).matches(": done").count();
    assert_eq!(done, 1 + 8 + 8);
}

#[test]
fn the_audit_log_has_every_change_with_and_without_a_gateway() {
    let scratch = Scratch::initialised();
    scratch.good(&["device", "add", "a", "--registered-id", "--out", "a.json"]);
    let token = scratch.good(&["token", "add", "early", "--role", "viewer", "--expires", "1h"]);
    let gateway = scratch.run();
    scratch.good(&["device", "revoke", "a"]);
    // Which asks first whether it would be taken.
    scratch.good(&["device", "add", "b", "--registered-id", "--out", "b.json"]);
    let late = scratch.good(&["token", "add", "late", "--role", "admin"]);
    assert!(scratch.bad(&["token", "add", "late", "--role", "admin"]).contains("exists"));
    assert!(scratch.good(&["token", "list"]).contains("early"));
    let verified = scratch.good(&["audit", "verify"]);
    gateway.stop("-TERM");
    scratch.good(&["token", "revoke", "early"]);
    let shown = scratch.good(&["audit", "show"]);
    for words in [
        "(offline): POST /v1/devices: done",
        "(offline): POST /v1/tokens: done",
        "(socket): POST /v1/devices/a/revoke: done",
        "(socket): POST /v1/devices: done",
        "(socket): POST /v1/tokens: refused (409)",
        "(offline): DELETE /v1/tokens/early: done",
    ] {
        assert!(shown.contains(words), "{words}: {shown}");
    }
    assert!(verified.starts_with("6 entries, all whole"), "{verified}");
    for secret in [token, late] {
        assert!(!shown.contains(secret.trim()));
    }
    let log = scratch.state().join("audit.ndjson");
    let text = fs::read_to_string(&log).unwrap();
    fs::write(&log, text.replacen("revoke", "remove", 1)).unwrap();
    assert!(scratch.bad(&["audit", "verify"]).contains("line 3: the entry was changed"));
}

#[test]
fn commands_at_the_same_time_all_succeed() {
    let scratch = Scratch::initialised();
    let add = |round: &str| {
        let running: Vec<_> = (0..8)
            .map(|i| {
                let name = format!("{round}{i}");
                scratch
                    .command(&["device", "add", &name, "--registered-id"])
                    .stdout(Stdio::null())
                    .spawn()
                    .unwrap()
            })
            .collect();
        for mut child in running {
            assert!(child.wait().unwrap().success());
        }
    };
    add("direct");
    let gateway = scratch.run();
    add("socket");
    gateway.stop("-TERM");
    assert_eq!(scratch.good(&["device", "list", "--format", "json"]).lines().count(), 16);
}

#[test]
fn a_gateway_outlives_whoever_reads_what_it_prints() {
    let scratch = Scratch::initialised();
    let arguments = ["run", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"];
    let mut command = scratch.command(&arguments);
    let mut gateway = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(gateway.stdout.take());
    let status = || text(&scratch.duet(&["status"]).stdout);
    let began = std::time::Instant::now();
    while !status().contains("running") {
        assert_eq!(gateway.try_wait().unwrap(), None, "it ended with its reader");
        assert!(began.elapsed() < std::time::Duration::from_secs(30));
    }
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert_eq!(gateway.try_wait().unwrap(), None, "it ended with its reader");
    let pid = rustix::process::Pid::from_child(&gateway);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(gateway.wait().unwrap().success());
}

#[test]
fn a_bare_settings_file_means_the_directory_it_lies_in() {
    let scratch = Scratch::initialised();
    let mut command = Command::new(env!("CARGO_BIN_EXE_duet"));
    command.current_dir(scratch.state()).env_remove("DUET_STATE");
    // The first thing that is missing lies in a directory that has a name.
    fs::remove_file(scratch.path("state/gateway.pem")).unwrap();
    let output = command.args(["--config", "duet.toml", "run"]).output().unwrap();
    assert!(text(&output.stderr).starts_with("duet: ./gateway.pem"), "{}", text(&output.stderr));
}

#[test]
fn a_start_that_is_refused_leaves_nothing_behind() {
    let scratch = Scratch::initialised();
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap().to_string();
    let refused = scratch.bad(&["run", "--listen", &listen, "--metrics", "127.0.0.1:0"]);
    assert!(refused.contains(&listen), "{refused}");
    let misspelt = scratch
        .command(&["run", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"])
        .env("DUET_BACKEND", "ifmaa")
        .output()
        .unwrap();
    let refused = text(&misspelt.stderr);
    assert!(!misspelt.status.success() && refused.contains("portable"), "{refused}");
    let spool = scratch.state().join("spool");
    assert!(!spool.exists() && !scratch.state().join("node.key").exists());
    let none = scratch.bad(&["spool", "cat"]);
    assert!(none.contains("state/spool: no spool here yet"), "{none}");
}

#[test]
fn a_state_directory_that_others_may_change_is_refused() {
    let scratch = Scratch::initialised();
    fs::set_permissions(scratch.state(), fs::Permissions::from_mode(0o777)).unwrap();
    let refused = scratch.bad(&["run", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"]);
    assert!(refused.contains("chmod 700"), "{refused}");
}

#[test]
fn a_wrong_flag_is_blamed_and_not_the_settings() {
    let scratch = Scratch::initialised();
    let output = scratch.duet(&["run", "--shards", "0"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("--shards"), "{}", text(&output.stderr));
}
