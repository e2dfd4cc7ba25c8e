//! What a gateway was told and is to know no longer: keys of devices that were removed, tokens that are spent, passwords
//! and keys that were replaced.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use p256::pkcs8::DecodePrivateKey as _;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::{Process, Running, search, start_with};

/// How long something may still be in the memory after a command has returned: the connection is about to end.
const SOON: Duration = Duration::from_secs(20);

fn duet(state: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_duet"));
    let output = command.arg("--state").arg(state).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

/// What a secret is found by: each eighth byte of it begins a piece, since what manages free memory writes over a part.
fn pieces(name: &str, secret: &[u8]) -> Vec<(String, Vec<u8>)> {
    let piece = |(number, piece): (usize, &[u8])| (format!("{name} {number}"), piece.to_vec());
    secret.chunks_exact(8).enumerate().map(piece).collect()
}

/// The same of 32 bytes that are also told as text.
fn told_pieces(name: &str, text: &str) -> Vec<(String, Vec<u8>)> {
    let bytes = duet::hex::decode(text).unwrap();
    let mut all = pieces(&format!("{name} as text"), text.as_bytes());
    all.extend(pieces(name, &bytes));
    all
}

/// The control: what lives is found.
fn assert_there(process: &Process, needles: &[(String, Vec<u8>)], why: &str) {
    let end = Instant::now() + SOON;
    while search(process, needles).is_empty() {
        assert!(Instant::now() < end, "the search must find it: {why}");
    }
}

fn assert_gone(process: &Process, needles: &[(String, Vec<u8>)], why: &str) {
    let end = Instant::now() + SOON;
    loop {
        let left = search(process, needles);
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < end, "{why}:\n{}", left.join("\n"));
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// The registration key in a credential, as text.
fn key_of(credential: &str) -> String {
    let credential: serde_json::Value = serde_json::from_str(credential).unwrap();
    credential["registration_key"].as_str().unwrap().to_owned()
}

#[test]
fn the_gateway_holds_no_key_of_a_device_that_was_revoked_or_removed() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let running = start_with(&state, |_| ());
    let process = &running.process;
    let place = |name: &str| dir.path().join(name).display().to_string();
    let address = running.address.to_string();
    let add = |command: &str, name: &str| {
        let out = place(&format!("{name}-{command}.json"));
        let words = ["device", command, name, "--address", &address, "--out", &out];
        let mode: &[&str] = if command == "add" { &["--registered-id"] } else { &[] };
        duet(&state, &[&words, mode].concat());
        (out.clone(), told_pieces(name, &key_of(&std::fs::read_to_string(out).unwrap())))
    };
    let (file, removed) = add("add", "removed");
    let (_, revoked) = add("add", "revoked");
    assert_there(process, &removed, "the device is registered");
    assert_there(process, &revoked, "the device is registered");
    duet(&state, &["device", "try", &file, "--send", "21.5"]);
    // Both go into an answer.
    duet(&state, &["device", "export", "--with-keys", "--out", &place("all")]);
    duet(&state, &["device", "remove", "removed"]);
    duet(&state, &["device", "revoke", "revoked"]);
    assert_gone(process, &removed, "removed");
    assert_gone(process, &revoked, "revoked");

    let (_, replaced) = add("add", "renewed");
    let (file, renewed) = add("renew", "renewed");
    assert_there(process, &replaced, "the old key is good until the new one was used");
    duet(&state, &["device", "try", &file, "--send", "21.5"]);
    assert_gone(process, &replaced, "replaced by a renewal");
    assert_there(process, &renewed, "the new key is in use");

    // Many at once fill larger buffers, and the file is written in another way.
    let (list, made) = (place("list"), place("made"));
    let lines = (0..500).map(|n| {
        format!("{{\"name\":\"many-{n}\",\"mode\":\"registered-id\",\"tags\":\"many\"}}\n")
    });
    std::fs::write(&list, lines.collect::<String>()).unwrap();
    duet(&state, &["device", "import", &list, "--out", &made]);
    let made = std::fs::read_to_string(made).unwrap();
    let keys = made.lines().step_by(167).map(key_of);
    let some: Vec<_> = keys.flat_map(|key| told_pieces("one of many", &key)).collect();
    assert_there(process, &some, "they are registered");
    duet(&state, &["device", "export", "--with-keys", "--out", &place("more")]);
    duet(&state, &["device", "remove", "--tag", "many", "--yes"]);
    assert_gone(process, &some, "removed together");
}

/// A gateway with the API over TLS and a CA.
fn with_api(state: &Path) -> (Running, String) {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let running = start_with(state, |state| {
        write_key(state, "api");
        let settings = format!(
            "[api]\nlisten = \"127.0.0.1:{port}\"\ncertificate = \"api.pem\"\nkey = \"api.key\"\n"
        );
        std::fs::write(state.join("duet.toml"), settings).unwrap();
        duet(state, &["ca", "init"]);
    });
    (running, format!("127.0.0.1:{port}"))
}

/// Puts a new key and its certificate into the place of those of this name.
fn write_key(state: &Path, name: &str) {
    let created = duet::identity::create("test", 30, duet::identity::now_s()).unwrap();
    std::fs::write(state.join(format!("{name}.pem")), &created.certificate_pem).unwrap();
    let key = state.join(format!("{name}.key"));
    let _ = std::fs::remove_file(&key);
    duet::identity::write_new(&key, created.key_pem.as_bytes(), 0o600).unwrap();
}

/// What a private key in a file is found by: its number, and the lines of the file.
fn private_key(file: &Path) -> Vec<(String, Vec<u8>)> {
    let text = std::fs::read_to_string(file).unwrap();
    let secret = p256::SecretKey::from_pkcs8_pem(&text).unwrap();
    let mut all = pieces("private key", &secret.to_bytes());
    // The first line says only what it is a key of.
    for line in text.lines().skip(2).filter(|line| !line.starts_with('-')) {
        all.extend(pieces("private key as text", line.as_bytes()));
    }
    all
}

/// A secret on its way to the gateway, in a request of which the rest is missing: the control for what is told and kept
/// nowhere.
fn assert_found_on_its_way(state: &Path, process: &Process, secret: &str) {
    let needles = pieces("on its way", secret.as_bytes());
    let mut control = UnixStream::connect(state.join("control.sock")).unwrap();
    let head = "POST /v1/devices HTTP/1.1\r\nHost: duet\r\nContent-Length: 4000\r\n\r\n";
    control.write_all(format!("{head}{{\"name\":\"{secret}").as_bytes()).unwrap();
    assert_there(process, &needles, "it is on its way");
    drop(control);
    assert_gone(process, &needles, "the request broke off");
}

#[test]
fn the_gateway_holds_no_token_that_is_spent_or_revoked_and_no_key_of_its_ca() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let (running, api) = with_api(&state);
    let process = &running.process;
    let ca = private_key(&state.join("ca.key"));
    assert_there(process, &private_key(&state.join("gateway.key")), "a key in use");

    let token = duet(&state, &["enrol", "token", "--name", "pump-1"]).trim().to_owned();
    let enrolment = pieces("enrolment token", &token.as_bytes()[token.len() - 64..]);
    assert_found_on_its_way(&state, process, &token[token.len() - 64..]);
    assert_gone(process, &enrolment, "made");
    let shown = duet::identity::load_certificate(
        &state.join("api.pem"),
        duet::identity::Role::Gateway,
        duet::identity::now_s(),
    );
    let pin = duet::hex::Hex(&shown.unwrap().fingerprint.0).to_string();
    let out = dir.path().join("pump-1.json").display().to_string();
    let enrol = ["--gateway", &api, "--pin", &pin, "--token", &token, "--out", &out];
    duet(&state, &[&["device", "enrol"][..], &enrol].concat());
    assert_gone(process, &enrolment, "spent");
    assert_gone(process, &ca, "the certificate was issued");

    let token = duet(&state, &["token", "add", "ops", "--role", "admin"]).trim().to_owned();
    let bearer = pieces("API token", &token.as_bytes()[token.len() - 64..]);
    assert_gone(process, &bearer, "made");
    let mut connection = connect(&api);
    let ask = |connection: &mut Tls, rest: &str| {
        let head = format!("Authorization: Bearer {token}\r\n{rest}");
        let request = format!("GET /v1/status HTTP/1.1\r\nHost: duet\r\n{head}");
        connection.write_all(request.as_bytes()).unwrap();
    };
    ask(&mut connection, "");
    assert_there(process, &bearer, "the request is not whole");
    connection.write_all(b"Connection: close\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    // It may be closed without a goodbye of TLS.
    let _ = connection.read_to_end(&mut answer);
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    drop(connection);
    duet(&state, &["token", "revoke", "ops"]);
    assert_gone(process, &bearer, "revoked");
}

#[test]
fn the_gateway_holds_no_secret_that_a_reload_has_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    // They take what comes and answer nothing.
    let ends: Vec<_> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let port = |at: usize| ends[at].local_addr().unwrap().port();
    let secrets = [
        "Gq8vTzN3hLx7RmWs2KpYc5Jd9BfE4uA6",
        "Xn4kQw8sVb2mLt7zRj5hCy9pDf3gE6aU",
        "Zc7yHm3tKs9wPv5xNq2bJr8gLd4fB6eA",
    ]
    .map(str::to_owned);
    let api = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    // Settings that name these files, with these secrets in them.
    let write = |state: &Path, time: &str, secrets: &[String]| {
        let file = |at: usize| format!("secret-{at}-{time}");
        for (at, secret) in secrets.iter().enumerate() {
            duet::identity::write_new(&state.join(file(at)), secret.as_bytes(), 0o600).unwrap();
        }
        let upstream = |kind: &str, at: usize, rest: &str| {
            let scheme = if kind == "webhook" { "http" } else { kind };
            format!(
                "[[upstream]]\nname = \"{kind}\"\nkind = \"{kind}\"\nurl = \"{scheme}://127.0.0.1:{}\"\n{rest} = \"{}\"\n",
                port(at),
                file(at)
            )
        };
        let settings = [
            format!(
                "[api]\nlisten = \"127.0.0.1:{api}\"\ncertificate = \"api.pem\"\nkey = \"api.key\"\n"
            ),
            upstream("webhook", 0, "token_file"),
            upstream("mqtt", 1, "client_id = \"c\"\ntopic = \"t\"\nuser = \"u\"\npassword_file"),
            upstream("nats", 2, "subject = \"s\"\nuser = \"u\"\npassword_file"),
        ];
        std::fs::write(state.join("duet.toml"), settings.concat()).unwrap();
    };
    let running = start_with(&state, |state| {
        write_key(state, "api");
        write(state, "first", &secrets);
    });
    let process = &running.process;
    let old: Vec<_> = secrets.iter().map(|secret| pieces("secret", secret.as_bytes())).collect();
    let mut keys = vec![private_key(&state.join("gateway.key"))];
    for secret in &old {
        assert_there(process, secret, "it is in use");
    }
    assert_there(process, &keys[0], "it is in use");
    keys.push(private_key(&state.join("api.key")));
    let renewed = secrets.map(|secret| secret.chars().rev().collect());
    write(&state, "then", &renewed);
    write_key(&state, "gateway");
    write_key(&state, "api");
    duet(&state, &["config", "reload"]);
    for secret in &renewed {
        assert_there(process, &pieces("secret", secret.as_bytes()), "it is in use now");
    }
    for secret in old.iter().chain(&keys) {
        assert_gone(process, secret, "replaced");
    }
}

type Tls = rustls::StreamOwned<rustls::ClientConnection, TcpStream>;

fn connect(api: &str) -> Tls {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
        .with_no_client_auth();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    rustls::StreamOwned::new(client, TcpStream::connect(api).unwrap())
}

/// Takes whatever certificate it is shown.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
