//! Backups: what is in them comes back, and what must not come back does not.

use std::fs;
use std::io::Write as _;
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use duet_device::client::Client;

use crate::world::Scratch;

fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
}

#[test]
fn a_backup_makes_the_gateway_anew_and_asks_who_was_revoked_since() {
    let scratch = Scratch::initialised();
    for name in ["a", "b", "c"] {
        scratch.good(&["device", "add", name, "--registered-id", "--out", &format!("{name}.json")]);
    }
    let gateway = scratch.run();
    let said = scratch.good(&["backup", "one.tar"]);
    assert!(said.contains("3 devices"), "{said}");
    assert!(scratch.bad(&["backup", "one.tar"]).contains("exists already"));
    assert!(!scratch.state().join(".backup").exists(), "a copy of the registry is left");
    // One at a time; one that was killed is no hindrance.
    let mut other = UnixStream::connect(scratch.state().join("control.sock")).unwrap();
    other
        .write_all(b"POST /v1/backup HTTP/1.1\r\nHost: duet\r\nContent-Length: 0\r\n\r\n")
        .unwrap();
    while !scratch.state().join(".backup/registry.redb").exists() {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(scratch.bad(&["backup", "more.tar"]).contains("another backup is being made"));
    drop(other);
    scratch.good(&["backup", "more.tar"]);
    // After it: these two must not come back.
    scratch.good(&["device", "revoke", "a"]);
    scratch.good(&["device", "remove", "b"]);
    gateway.stop("-TERM");
    // What one left that was killed while no gateway ran goes with the next command, whichever it is.
    let copy = scratch.state().join(".backup");
    fs::create_dir(&copy).unwrap();
    fs::write(copy.join("registry.redb"), "keys").unwrap();
    scratch.good(&["device", "list"]);
    assert!(!copy.exists());
    fs::write(scratch.path("two.tar.draft"), "half").unwrap();
    scratch.good(&["backup", "two.tar"]);
    assert!(!scratch.path("two.tar.draft").exists() && !copy.exists());
    let node_key = fs::read(scratch.state().join("node.key")).unwrap();

    let here = scratch.bad(&["restore", "one.tar", "--none-revoked"]);
    assert!(here.contains("exists already; move it away"), "{here}");
    let other = Scratch::empty();
    let backup = scratch.path("one.tar").display().to_string();
    let asked = other.bad(&["restore", &backup]);
    assert!(asked.contains("3 devices") && asked.contains("--revoked"), "{asked}");
    assert!(!other.state().exists(), "it only asked");
    fs::write(other.path("revoked"), "a\nb\n\nnever-known\n").unwrap();
    let said = other.good(&["restore", &backup, "--revoked", "revoked"]);
    assert!(said.contains("2 of them refused") && said.contains("never-known"), "{said}");
    let listed = other.good(&["device", "list", "--only", "registered", "--format", "names"]);
    assert_eq!(listed, "c\n");
    assert_eq!(fs::read(other.state().join("node.key")).unwrap(), node_key);
    // Of the keys that the backup has, only that of the device is left which may connect.
    let credential = |name: &str| -> serde_json::Value {
        let text = fs::read(scratch.path(&format!("{name}.json"))).unwrap();
        serde_json::from_slice(&text).unwrap()
    };
    let has = |file: &Path, name: &str| {
        let key = credential(name)["registration_key"].as_str().unwrap().to_owned();
        let key = duet::hex::decode(&key).unwrap();
        memchr::memmem::find(&fs::read(file).unwrap(), &key).is_some()
    };
    for (name, may_connect) in [("a", false), ("b", false), ("c", true)] {
        assert!(has(Path::new(&backup), name));
        assert_eq!(has(&other.state().join("registry.keys"), name), may_connect, "{name}");
    }
    let log = other.good(&["audit", "show"]);
    assert!(log.contains("POST /v1/backup") && log.contains("restore of a backup of"), "{log}");
    other.good(&["audit", "verify"]);
    other.run().stop("-TERM");

    // One that was cut off on the way: nothing starts, and it can be run again.
    let third = Scratch::empty();
    fs::create_dir(third.state()).unwrap();
    assert!(Command::new("chmod").arg("700").arg(third.state()).status().unwrap().success());
    for name in [".restore-not-finished", "registry.redb", "duet.toml"] {
        fs::write(third.state().join(name), "").unwrap();
    }
    for command in [&["run"][..], &["init"]] {
        assert!(third.bad(command).contains("a restore was cut off here"), "{command:?}");
    }
    let backup = scratch.path("two.tar").display().to_string();
    third.good(&["restore", &backup, "--none-revoked"]);
    third.run().stop("-TERM");
    let listed = third.good(&["device", "list", "--only", "registered", "--format", "names"]);
    assert_eq!(listed, "c\n");
}

/// A backup is of all that the settings name, or none, and no other is made meanwhile.
#[test]
fn an_older_registry_or_another_gateways_does_not_take_the_place_of_the_one_that_was_here() {
    let scratch = Scratch::initialised();
    let add = |name: &str| {
        let out = format!("{name}.json");
        scratch.good(&[
            "device",
            "add",
            name,
            "--registered-id",
            "--address",
            "127.0.0.1:1",
            "--out",
            &out,
        ]);
    };
    add("boiler-1");
    let registry = scratch.state().join("registry.redb");
    let (older, newest) = (scratch.path("older"), scratch.path("newest"));
    fs::copy(&registry, &older).unwrap();
    // By a gateway that is killed, so that nothing but the change itself can have told.
    let mut gateway = scratch.run();
    scratch.good(&["device", "revoke", "boiler-1"]);
    gateway.child.kill().unwrap();
    gateway.child.wait().unwrap();
    scratch.good(&["device", "list"]);
    fs::copy(&registry, &newest).unwrap();
    let other = Scratch::initialised();
    let others = other.state().join("registry.redb");
    for _ in 0..4 {
        // Further than this one, by the number of its changes.
        other.good(&["enrol", "token", "--name", "pump-1", "--ttl", "1h"]);
    }
    for wrong in [&older, &others] {
        fs::copy(wrong, &registry).unwrap();
        let run = ["run", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"];
        for words in [&run[..], &["device", "list"]] {
            let said = scratch.bad(words);
            assert!(said.contains("registry.redb") && said.contains("registry.seen"), "{said}");
        }
    }
    fs::copy(&newest, &registry).unwrap();
    assert!(scratch.good(&["device", "show", "boiler-1"]).contains("revoked"));
    scratch.run().stop("-TERM");
    // On the operator's word.
    fs::copy(&older, &registry).unwrap();
    fs::remove_file(scratch.state().join("registry.seen")).unwrap();
    scratch.good(&["device", "revoke", "boiler-1"]);
}

#[test]
fn a_backup_has_what_the_settings_name_and_says_what_it_has_not() {
    let scratch = Scratch::initialised();
    let state = scratch.state();
    for (name, text) in [("hook.token", "secret"), ("more.toml", ""), ("../outside.ca", "")] {
        fs::write(state.join(name), text).unwrap();
    }
    let upstream = "[[upstream]]\nname = \"h\"\nkind = \"webhook\"\nurl = \"https://127.0.0.1:1/\"\n\
                    token_file = \"hook.token\"\nca = \"../outside.ca\"\n";
    fs::write(state.join("more.toml"), upstream).unwrap();
    let settings = state.join("more.toml").display().to_string();
    let said = scratch.command(&["--config", &settings, "backup", "one.tar"]).output().unwrap();
    assert!(said.status.success(), "{said:?}");
    let warned = String::from_utf8(said.stderr).unwrap();
    assert!(warned.contains("outside.ca is not in the backup"), "{warned}");
    let listed = Command::new("tar").arg("-tf").arg(scratch.path("one.tar")).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    for name in ["hook.token", "more.toml", "gateway.pem", "registry.redb", "registry.keys"] {
        assert!(listed.lines().any(|line| line == name), "{name}: {listed}");
    }
    fs::remove_file(state.join("gateway.key")).unwrap();
    let said = scratch.bad(&["backup", "two.tar"]);
    assert!(said.contains("no backup was made") && said.contains("gateway.key"), "{said}");
    assert!(!scratch.path("two.tar").exists() && !state.join(".backup").exists());
}

/// Stands between a device and its gateway, and keeps what the device sent.
struct Relay {
    front: SocketAddr,
    gateway: Mutex<SocketAddr>,
    sent: Mutex<Vec<Vec<u8>>>,
    ended: AtomicBool,
}

impl Relay {
    fn start(to: SocketAddr) -> Arc<Self> {
        let front = UdpSocket::bind("127.0.0.1:0").unwrap();
        let back = UdpSocket::bind("127.0.0.1:0").unwrap();
        for socket in [&front, &back] {
            socket.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
        }
        let address = front.local_addr().unwrap();
        let (gateway, sent) = (Mutex::new(to), Mutex::default());
        let relay = Arc::new(Self { front: address, gateway, sent, ended: AtomicBool::new(false) });
        let own = Arc::clone(&relay);
        std::thread::spawn(move || {
            let (mut bytes, mut device) = ([0; 2048], None);
            while !own.ended.load(Ordering::Relaxed) {
                if let Ok((length, from)) = front.recv_from(&mut bytes) {
                    device = Some(from);
                    own.sent.lock().unwrap().push(bytes[..length].to_vec());
                    let to = *own.gateway.lock().unwrap();
                    back.send_to(&bytes[..length], to).unwrap();
                }
                if let (Ok((length, _)), Some(device)) = (back.recv_from(&mut bytes), device) {
                    front.send_to(&bytes[..length], device).unwrap();
                }
            }
        });
        relay
    }
}

/// Plays a message to a gateway that holds this state; how many readings it has when it has answered.
fn readings_after(scratch: &Scratch, message: &[u8]) -> usize {
    let gateway = scratch.run();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(gateway.address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    socket.send(message).unwrap();
    socket.recv(&mut [0; 2048]).expect("the gateway answers whoever has proved himself");
    gateway.stop("-TERM");
    scratch.good(&["spool", "cat"]).lines().count()
}

/// R123: what was taken since the backup was made, and is played back, is not taken again.
#[test]
fn a_registry_from_a_backup_takes_no_reading_a_second_time() {
    let scratch = Scratch::initialised();
    let nobody = "127.0.0.1:9".parse().unwrap();
    let relay = Relay::start(nobody);
    let address = relay.front.to_string();
    let add = ["device", "add", "a", "--registered-id", "--address", &address, "--out", "a.json"];
    scratch.good(&add);
    scratch.good(&["backup", "backup.tar"]);
    // What somebody would do without `restore`.
    let careless = Scratch::empty();
    copy(&scratch.state(), &careless.state());

    let gateway = scratch.run();
    *relay.gateway.lock().unwrap() = gateway.address;
    let mut device = Client::from_file(scratch.path("a.json")).unwrap();
    device.send(1, b"21.5").unwrap();
    let hello = relay.sent.lock().unwrap()[0].clone();
    gateway.stop("-TERM");
    assert_eq!(scratch.good(&["spool", "cat"]).lines().count(), 1);

    assert_eq!(readings_after(&careless, &hello), 1, "this HELLO brings a reading");
    let restored = Scratch::empty();
    let backup = scratch.path("backup.tar").display().to_string();
    restored.good(&["restore", &backup, "--none-revoked"]);
    assert_eq!(readings_after(&restored, &hello), 0);
    // The device itself, which has lost its session, comes back.
    let gateway = restored.run();
    *relay.gateway.lock().unwrap() = gateway.address;
    drop(device);
    let mut device = Client::from_file(scratch.path("a.json")).unwrap();
    device.send(1, b"22.0").unwrap();
    gateway.stop("-TERM");
    assert_eq!(restored.good(&["spool", "cat"]).lines().count(), 1);
    relay.ended.store(true, Ordering::Relaxed);
}

/// The backup knows the old credential alone.
#[test]
fn a_device_that_was_renewed_since_the_backup_is_named_and_registered_with_what_it_has_now() {
    let scratch = Scratch::initialised();
    for name in ["old", "new"] {
        scratch.certificate(name, "-newkey ec -pkeyopt ec_paramgen_curve:P-256", "-days 30");
    }
    scratch.good(&["device", "add", "a", "--cert", "old.pem"]);
    scratch.good(&["backup", "one.tar"]);
    scratch.good(&["device", "renew", "a", "--cert", "new.pem"]);
    let other = Scratch::empty();
    let path = |name: &str| scratch.path(name).display().to_string();
    let asked = other.bad(&["restore", &path("one.tar")]);
    assert!(asked.contains("renewed with its old credential alone"), "{asked}");
    fs::write(other.path("names"), "a\n").unwrap();
    let said = other.good(&["restore", &path("one.tar"), "--revoked", "names"]);
    assert!(said.contains("register it with its new one"), "{said}");
    other.good(&["device", "add", "a", "--cert", &path("new.pem")]);
    let again = other.bad(&["device", "add", "b", "--cert", &path("old.pem")]);
    assert!(again.contains("revoked"), "{again}");
}
