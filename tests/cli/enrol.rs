//! Devices that register themselves: with a token, over TLS, with a key that never leaves them.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::credentials::assert_valid;
use crate::mode;
use crate::world::{Gateway, Scratch, text};

/// A state directory with the API over TLS and a CA, and where the API is to be found by.
fn prepared() -> (Scratch, String) {
    let scratch = Scratch::initialised();
    let created = duet::identity::create("api", 30, duet::identity::now_s()).unwrap();
    let place = |name: &str| scratch.state().join(name);
    fs::write(place("api.pem"), &created.certificate_pem).unwrap();
    duet::identity::write_new(&place("api.key"), created.key_pem.as_bytes(), 0o600).unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let settings = format!(
        "[api]\nlisten = \"127.0.0.1:{port}\"\ncertificate = \"api.pem\"\nkey = \"api.key\"\n"
    );
    fs::write(place("duet.toml"), settings).unwrap();
    scratch.good(&["ca", "init"]);
    (scratch, format!("127.0.0.1:{port}"))
}

/// Makes a token: the token, and the pin of the API.
fn token(scratch: &Scratch, flags: &[&str]) -> (String, String) {
    let output = scratch.duet(&[&["enrol", "token"][..], flags].concat());
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}");
    let pin = said.trim().rsplit(' ').next().unwrap().to_owned();
    (text(&output.stdout).trim().to_owned(), pin)
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn stopped(gateway: Gateway) {
    gateway.stop("-TERM");
}

/// Every file below a directory.
fn files(dir: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[test]
fn a_device_enrols_itself_once_and_is_let_in() {
    let (scratch, api) = prepared();
    assert_eq!(mode(&scratch.state().join("ca.key")), 0o600);
    let said = scratch.bad(&["ca", "init"]);
    assert!(said.contains("ca.pem: exists already; nothing was changed"), "{said}");
    let gateway = scratch.run();
    let (secret, pin) = token(&scratch, &["--name", "pump-1", "--tag", "a,b", "--expires", "90d"]);
    let enrol = |token: &str, pin: &str, out: &str| {
        let gateway = format!("https://{api}/");
        let flags = ["--gateway", &gateway, "--pin", pin, "--token", token, "--out", out];
        scratch.duet(&[&["device", "enrol"][..], &flags].concat())
    };
    // Who is not the gateway is not given the token.
    let other = enrol(&secret, &"00".repeat(32), "pump-1.json");
    assert!(text(&other.stderr).contains("another certificate than --pin says"));
    for port in [&gateway.http, &gateway.address.to_string()] {
        let flags = ["--gateway", port, "--pin", &pin, "--token", &secret, "--out", "pump-1.json"];
        let said = scratch.bad(&[&["device", "enrol"][..], &flags].concat());
        assert!(said.contains("does not speak TLS") && said.contains("api.listen"), "{said}");
    }
    let done = enrol(&secret, &pin, "pump-1.json");
    assert!(done.status.success(), "{}", text(&done.stderr));
    let credential = read(&scratch.path("pump-1.json"));
    assert_valid(&credential);
    assert_eq!(credential["private_key_file"], "pump-1.key");
    assert_eq!(credential["gateway"]["address"], gateway.address.to_string());
    for file in ["pump-1.json", "pump-1.key"] {
        assert_eq!(mode(&scratch.path(file)), 0o600, "{file}");
    }
    let tried = scratch.duet(&["device", "try", "pump-1.json", "--send", "21.5"]);
    assert!(tried.status.success(), "{}", text(&tried.stderr));
    let shown = scratch.good(&["device", "show", "pump-1"]);
    assert!(shown.contains("tags         a, b") && shown.contains("ends         "), "{shown}");

    // The answer was lost: the same once more, to the same key and nobody else.
    fs::remove_file(scratch.path("pump-1.json")).unwrap();
    let again = enrol(&secret, &pin, "pump-1.json");
    assert!(text(&again.stdout).contains("told again"), "{}", text(&again.stderr));
    assert_eq!(read(&scratch.path("pump-1.json")), credential);
    let spent = enrol(&secret, &pin, "pump-2.json");
    assert!(text(&spent.stderr).contains("the enrolment token is spent"));
    assert!(!scratch.path("pump-2.json").exists());
    let listed = scratch.good(&["enrol", "list"]);
    assert!(listed.contains("pump-1") && listed.contains("1/1") && listed.contains("spent"));

    // Wrong tokens are counted, and soon not even heard.
    let wrong = format!("{}0", &secret[..secret.len() - 1]);
    let wrong = if wrong == secret { format!("{}1", &secret[..secret.len() - 1]) } else { wrong };
    for _ in 0..10 {
        let output = enrol(&wrong, &pin, "pump-2.json");
        assert!(text(&output.stderr).contains("no such enrolment token"));
    }
    let said = text(&enrol(&wrong, &pin, "pump-2.json").stderr);
    assert!(said.contains("too many wrong enrolment tokens"), "{said}");
    let metrics = gateway.get("/metrics");
    for (outcome, count) in [("enrolled", 1), ("again", 1), ("refused", 11), ("limited", 1)] {
        let line = format!("duet_enrolments_total{{outcome=\"{outcome}\"}} {count}\n");
        assert!(metrics.contains(&line), "{line}");
    }
    let audit = scratch.good(&["audit", "show"]);
    let id = &secret[11..27];
    for entry in [
        format!("enrolment token {id} (127.0.0.1:"),
        "POST /v1/enrol pump-1: done".to_owned(),
        "POST /v1/enrol: refused (403)".to_owned(),
        "nobody (127.0.0.1:".to_owned(),
        "POST /v1/enrolment-tokens: done".to_owned(),
    ] {
        assert!(audit.contains(&entry), "{entry}: {audit}");
    }
    scratch.good(&["enrol", "revoke", id]);
    assert!(scratch.bad(&["enrol", "revoke", id]).contains("no enrolment token of this id"));
    stopped(gateway);
    // The secret is kept nowhere, in no form.
    let bytes = duet::hex::decode(&secret[28..]).unwrap();
    for file in files(&scratch.state()) {
        let content = fs::read(&file).unwrap();
        for secret in [&secret.as_bytes()[28..], &bytes] {
            assert!(memchr::memmem::find(&content, secret).is_none(), "{}", file.display());
        }
    }
}

#[test]
fn wherever_a_gateway_is_killed_a_token_registers_one_device() {
    let (scratch, api) = prepared();
    for round in 0..4_u64 {
        let mut gateway = scratch.run();
        let name = format!("d-{round}");
        let (secret, pin) = token(&scratch, &["--name", &name]);
        let out = format!("{name}.json");
        let enrol = ["device", "enrol", "--gateway", &api, "--pin", &pin, "--token", &secret];
        let enrol = [&enrol[..], &["--out", &out]].concat();
        let mut command = scratch.command(&enrol);
        let mut device = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // Not for the test's sake: where it is killed is to differ.
        thread::sleep(Duration::from_millis(40 * round));
        gateway.child.kill().unwrap();
        let enrolled = device.wait().unwrap().success();
        drop(gateway);
        let gateway = scratch.run();
        if !enrolled {
            scratch.good(&enrol);
        }
        let other = [&enrol[..enrol.len() - 1], &["other.json"]].concat();
        assert!(scratch.bad(&other).contains("is spent"));
        let address = gateway.address.to_string();
        let tried = scratch.duet(&["device", "try", &out, "--address", &address]);
        assert!(tried.status.success(), "{}", text(&tried.stderr));
        stopped(gateway);
    }
    assert_eq!(scratch.good(&["device", "list", "--format", "names"]).lines().count(), 4);
    let tokens = scratch.good(&["enrol", "list", "--format", "json"]);
    assert!(tokens.lines().all(|line| line.contains("\"used\":1")), "{tokens}");
    assert!(scratch.good(&["audit", "verify"]).contains("all whole"));
}

#[test]
fn a_request_is_answered_offline_and_a_ca_that_cannot_issue_is_named() {
    let scratch = Scratch::initialised();
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let request = rcgen::CertificateParams::default().serialize_request(&key).unwrap();
    fs::write(scratch.path("d.csr"), request.pem().unwrap()).unwrap();
    let key = key.serialize_pem();
    duet::identity::write_new(&scratch.path("d.key"), key.as_bytes(), 0o600).unwrap();
    let add = ["device", "add", "d", "--csr", "d.csr", "--out", "d.json"];
    let add = [&add[..], &["--private-key-file", "d.key"]].concat();
    assert!(scratch.bad(&add).contains("there is no CA; `duet ca init` makes one"));
    let made = scratch.good(&["ca", "init", "--name", "our devices"]);
    assert!(made.contains("subject      CN=our devices"), "{made}");
    scratch.good(&add);
    assert_valid(&read(&scratch.path("d.json")));
    let gateway = scratch.run();
    assert!(
        scratch
            .duet(&["device", "try", "d.json", "--address", &gateway.address.to_string()])
            .status
            .success()
    );
    stopped(gateway);
    assert!(scratch.bad(&[&add[..2], &["e"], &add[3..]].concat()).contains("belongs to device d"));
    fs::write(scratch.path("bad.csr"), "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n").unwrap();
    let said = scratch.bad(&["device", "add", "e", "--csr", "bad.csr", "--out", "e.json"]);
    assert!(said.contains("bad.csr: is not a certificate request"), "{said}");
    assert!(text(&scratch.duet(&["check"]).stdout).contains("ok   enrolment      "));
    // Others may read the key: nothing is issued with it, and the start says so.
    let ca_key = scratch.state().join("ca.key");
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    fs::set_permissions(&ca_key, open).unwrap();
    let said = scratch.bad(&["ca", "show"]);
    assert!(said.contains("ca.key: mode 0644 lets others") && said.contains("chmod 600"), "{said}");
    assert!(text(&scratch.duet(&["check"]).stdout).contains("FAIL enrolment"));
    // Tokens that could not be delivered are none.
    for wrong in [
        &["--names", "a b"][..],
        &["--name", "m", "--uses", "2"],
        &["--name", "m", "--tag", "=1"],
        &["--name", "m", "--expires", "2020-01-01"],
    ] {
        let said = scratch.bad(&[&["enrol", "token"][..], wrong].concat());
        assert!(!said.contains("duet_enrol_"), "{said}");
    }
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut command = scratch.command(&["enrol", "token", "--name", "m"]);
    assert_eq!(command.stdout(full).status().unwrap().code(), Some(1));
    assert_eq!(scratch.good(&["enrol", "list", "--format", "json"]), "");
}

#[test]
fn a_renewed_device_uses_either_credential_until_it_has_used_the_new_one() {
    let scratch = Scratch::initialised();
    scratch.good(&["device", "add", "m", "--registered-id", "--tag", "t", "--out", "old.json"]);
    let gateway = scratch.run();
    let address = gateway.address.to_string();
    // An answer may be late where the machine has much to do; for none it is not waited long.
    let attempt = |credential: &str, patience: &str| {
        let flags = ["--timeout", patience, "--address", &address];
        scratch.duet(&[&["device", "try", credential][..], &flags].concat()).status.code()
    };
    assert_eq!(attempt("old.json", "20"), Some(0));
    let said = scratch.bad(&["device", "renew", "m", "--out", "old.json"]);
    assert!(said.contains("old.json: nothing was registered"), "{said}");
    scratch.good(&["device", "renew", "m", "--out", "new.json"]);
    assert_valid(&read(&scratch.path("new.json")));
    let shown = scratch.good(&["device", "show", "m"]);
    assert!(
        shown.contains("renewing     the credential before") && shown.contains("tags         t"),
        "{shown}"
    );
    assert_eq!(attempt("old.json", "20"), Some(0));
    assert_eq!(attempt("new.json", "20"), Some(0));
    // The marks are looked at every few seconds.
    let until = std::time::Instant::now() + Duration::from_secs(30);
    while scratch.good(&["device", "show", "m"]).contains("renewing") {
        assert!(std::time::Instant::now() < until, "the old credential is still good");
        thread::sleep(Duration::from_millis(100));
    }
    assert_eq!((attempt("old.json", "1"), attempt("new.json", "20")), (Some(4), Some(0)));
    stopped(gateway);
    assert_eq!(scratch.good(&["device", "list", "--tag", "t", "--format", "names"]), "m\n");
    let said = scratch.bad(&["device", "renew", "nobody", "--out", "x.json"]);
    assert!(said.contains("nobody: no device of this name"), "{said}");
}

/// The certificate that the documents have somebody make vouches for itself; one that openssl makes without being told
/// what it is for is a CA's, and that is said.
#[test]
fn the_documents_certificate_of_the_api_is_taken_by_ca() {
    let (scratch, api) = prepared();
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operating.md");
    let docs = fs::read_to_string(docs).unwrap();
    let line = docs.split("\nopenssl ").nth(1).unwrap().split("\nchmod").next().unwrap();
    let line = line.replace('\\', " ").replace("DNS:gateway", "IP:127.0.0.1");
    let lines = [
        (line.clone(), None),
        (line.replace("-addext basicConstraints=critical,CA:FALSE", ""), Some("CA:FALSE")),
    ];
    for (number, (line, refusal)) in lines.into_iter().enumerate() {
        scratch.openssl(&line);
        for file in ["api.key", "api.pem"] {
            fs::rename(scratch.path(file), scratch.state().join(file)).unwrap();
        }
        let gateway = scratch.run();
        let (name, out) = (format!("pump-{number}"), format!("pump-{number}.json"));
        let (secret, _) = token(&scratch, &["--name", &name]);
        let enrol = ["device", "enrol", "--gateway", &api, "--ca", "state/api.pem"];
        let done = scratch.duet(&[&enrol[..], &["--token", &secret, "--out", &out]].concat());
        let said = text(&done.stderr);
        match refusal {
            None => assert!(done.status.success(), "{said}"),
            Some(why) => assert!(!done.status.success() && said.contains(why), "{said}"),
        }
        stopped(gateway);
    }
}
