//! The test vectors in `protocol/vectors/`: made again from the code and compared byte for byte.
//!
//! The messages come from the state machines that devices and gateways run; the values between
//! them come from the single steps of the key schedule, and are checked against the messages.
//!
//! `DUET_WRITE_VECTORS=1 cargo test -p duet-protocol --test vectors` writes the files instead.
#![allow(clippy::unwrap_used, reason = "a test's helpers may")]

use std::{fmt::Write as _, fs, path::PathBuf};

use duet_protocol::{
    aead,
    ec::{self, EncapsulateTask, SecretScalar},
    hazmat,
    hpke::Context,
    identity::{Credential, DeviceId, Fingerprint, Gateway, PublicKey, RegistrationKey},
    initiator::{DeviceKey, Freshness, Identity, Start, Waiting},
    message::{Down, RANGES_MAX, Range, TEXT_MAX, Up},
    profile::{KeySource, Mode, Offer, Profile, Transfer, Transport},
    reading::{EARLY_SEQUENCE, ReadingId},
    record::{self, Cipher},
    responder::{Opened, Proven},
    schedule::{self, Grant},
    wire::{self, DownHeader, Hello, Kind, Reset, Retry, SessionId, UpHeader},
};
use sha2::{Digest as _, Sha256};

/// Set to anything, it makes this test write the files instead of comparing them.
const WRITE: &str = "DUET_WRITE_VECTORS";

/// A JSON object of sections, in the order in which they are written; values are hex or text.
#[derive(Default)]
struct Vector(Vec<(&'static str, Vec<(String, String)>)>);

impl Vector {
    fn section(&mut self, name: &'static str) -> &mut Self {
        self.0.push((name, Vec::new()));
        self
    }

    fn text(&mut self, name: &str, value: &str) -> &mut Self {
        self.0.last_mut().unwrap().1.push((name.to_owned(), value.to_owned()));
        self
    }

    fn hex(&mut self, name: &str, bytes: &[u8]) -> &mut Self {
        let mut value = String::new();
        bytes.iter().for_each(|byte| write!(value, "{byte:02x}").unwrap());
        self.text(name, &value)
    }

    fn json(&self) -> String {
        let mut out = String::from("{\n");
        for (i, (section, values)) in self.0.iter().enumerate() {
            writeln!(out, "  \"{section}\": {{").unwrap();
            for (j, (name, value)) in values.iter().enumerate() {
                let comma = if j + 1 < values.len() { "," } else { "" };
                writeln!(out, "    \"{name}\": \"{value}\"{comma}").unwrap();
            }
            let comma = if i + 1 < self.0.len() { "," } else { "" };
            writeln!(out, "  }}{comma}").unwrap();
        }
        out.push_str("}\n");
        out
    }

    fn check(&self, file: &str) {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("vectors").join(file);
        let made = self.json();
        let parsed: serde_json::Value = serde_json::from_str(&made).unwrap();
        assert_eq!(parsed.as_object().unwrap().len(), self.0.len(), "section names are unique");
        if std::env::var_os(WRITE).is_some() {
            fs::write(path, made).unwrap();
            return;
        }
        let kept = fs::read_to_string(&path).unwrap_or_default();
        for (line, (made, kept)) in made.lines().zip(kept.lines()).enumerate() {
            assert_eq!(made, kept, "{file}, line {}", line + 1);
        }
        assert!(made == kept, "{file} differs; {WRITE}=1 writes it anew");
    }
}

const GATEWAY_CERTIFICATE: &[u8] = b"stand-in for the gateway's certificate in DER";
const DEVICE_CERTIFICATE: &[u8] = b"stand-in for the device's certificate in DER";
const GATEWAY_EXTRA: [u8; 32] = [0xa1; 32];
const DEVICE_EXTRA: [u8; 32] = [0xa2; 32];
const NODE_KEY: [u8; 32] = [0xa3; 32];
const GRANT: (u32, u32) = (0x0000_a4a5, 86_400);

fn scalar(start: u8) -> SecretScalar {
    let mut bytes = [0; 32];
    bytes.iter_mut().zip(start..).for_each(|(byte, value)| *byte = value);
    SecretScalar::from_bytes(&bytes).unwrap()
}

fn sequence<const N: usize>(start: u8) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.iter_mut().zip(start..).for_each(|(byte, value)| *byte = value);
    bytes
}

/// One handshake with everything in it that is fixed.
struct Scene {
    offer: Offer,
    secret: SecretScalar,
    gateway: Gateway,
    identity: Identity,
    credential: Credential,
    public: Option<PublicKey>,
    challenge: Option<[u8; 16]>,
}

const FRESH: u64 = 7_001;

impl Scene {
    fn new(profile: Profile, challenged: bool) -> Self {
        let secret = scalar(1);
        let fingerprint = Fingerprint::of_certificate(GATEWAY_CERTIFICATE);
        let gateway = Gateway { key_id: 1, fingerprint, key: secret.public_key() };
        let given = DeviceId(sequence(0x40));
        let private = scalar(0x21);
        let public = private.public_key();
        let (credential, key) = match profile.mode {
            Mode::Certificate => {
                (Credential::certificate(DEVICE_CERTIFICATE, public), DeviceKey::Private(private))
            }
            Mode::RegisteredCertificate => (
                Credential::registered_certificate(given, DEVICE_CERTIFICATE, public),
                DeviceKey::Private(private),
            ),
            Mode::RegisteredId => {
                let key = RegistrationKey(sequence(0x60));
                (Credential::registered_id(given, key.clone()), DeviceKey::Registration(key))
            }
        };
        let public = profile.mode.has_certificate().then_some(public);
        let identity = Identity { id: credential.id, fingerprint: credential.fingerprint, key };
        let offer = Offer { challenged, ..Offer::new(profile, Transport::Datagram) };
        let challenge = challenged.then(|| sequence(0xb0));
        Self { offer, secret, gateway, identity, credential, public, challenge }
    }

    fn freshness(&self) -> Freshness {
        let challenge = self.challenge;
        Freshness { fresh: FRESH, challenge, random: sequence(0x80), secret: sequence(0xc0) }
    }

    fn hello(&self) -> Waiting {
        let start = Start::new(&self.identity, &self.gateway, self.offer, self.freshness());
        let answer = ec::encapsulate(start.task()).unwrap();
        let proving = start.encapsulated(&answer);
        let signature = match (&self.identity.key, proving.digest()) {
            (DeviceKey::Private(key), Some(digest)) => {
                ec::sign(key, &digest, &DEVICE_EXTRA).unwrap()
            }
            _ => [0; 64],
        };
        proving.signed(&signature)
    }

    fn proven(&self, message: &[u8]) -> Proven {
        let hello = Hello::decode(message, Transport::Datagram).unwrap();
        let agreed = ec::agree(&self.secret, hello.ephemeral_x()).unwrap();
        let opened = Opened::new(hello, &self.gateway, agreed.point, &agreed.shared).unwrap();
        let claim = opened.claim(&self.gateway, Some(&self.credential));
        let verdict = claim.verify_task().is_none_or(ec::verify);
        claim.verified(verdict).unwrap()
    }

    fn setup(&self, vector: &mut Vector) {
        vector.section("setup").text("profile", self.offer.profile.name());
        vector.hex("gateway certificate", GATEWAY_CERTIFICATE);
        vector.hex("gateway private key", self.secret.expose());
        vector.hex("gateway public key pkS", &self.gateway.key.0);
        vector.hex("gateway key id", &[self.gateway.key_id]);
        vector.hex("cS", &self.gateway.fingerprint.0);
        match &self.identity.key {
            DeviceKey::Private(key) => {
                vector.hex("device certificate", DEVICE_CERTIFICATE);
                vector.hex("device private key d", key.expose());
                vector.hex("device public key pkD", &self.public.unwrap().0);
            }
            DeviceKey::Registration(key) => {
                vector.hex("registration key d", &key.0);
            }
        }
        vector.hex("id", &self.identity.id.0);
        vector.hex("cD", &self.identity.fingerprint.0);
    }
}

fn keys(vector: &mut Vector, name: &str, keys: &schedule::KeyIv) {
    vector.hex(&format!("{name} key"), keys.key()).hex(&format!("{name} iv"), keys.iv());
}

fn context(vector: &mut Vector, context: &Context) {
    let (key, nonce, exporter) = hazmat::context(context);
    vector.hex("hpke key", key).hex("hpke base nonce", nonce).hex("hpke exporter secret", exporter);
}

/// Everything up to HELLO; returns `hs` and e_c.
fn hello(
    vector: &mut Vector,
    scene: &Scene,
    waiting: &Waiting,
) -> (schedule::Secret, SecretScalar) {
    let Scene { offer, gateway, identity, .. } = scene;
    let message = waiting.hello();
    let (freshness, id) = (scene.freshness(), identity.id);
    let header = [0x11, id.slot(), offer.encode(), gateway.key_id];
    let (d, registration) = match &identity.key {
        DeviceKey::Private(key) => (key.expose(), None),
        DeviceKey::Registration(key) => (&key.0, Some(key)),
    };
    vector.section("hello").hex("hdr", &header);
    vector.hex("fresh", &FRESH.to_be_bytes());
    vector.hex("ch", &scene.challenge.unwrap_or_default());
    let random: &[u8] = if offer.profile.source.has_random() { &freshness.secret } else { &[] };
    vector.hex("S", random);
    vector.hex("random for e_c", &freshness.random);
    let e = schedule::hedged_scalar(
        &freshness.random,
        d,
        &gateway.fingerprint,
        FRESH,
        scene.challenge.as_ref(),
        None,
    );
    let sent = ec::encapsulate(&EncapsulateTask { scalar: e.clone(), peer: gateway.key }).unwrap();
    vector.hex("e_c", e.expose()).hex("enc", &sent.point.0).hex("dh", &sent.shared.0);

    let info: [&[u8]; 3] = [b"duet1 hello", &header, &gateway.fingerprint.0];
    let hpke = Context::new(&sent.shared, &sent.point, &gateway.key, &info);
    vector.hex("hpke info", &info.concat());
    context(vector, &hpke);
    let mut ex = [0; 32];
    hpke.export(b"duet1 export", &mut ex);
    let hs = schedule::handshake_secret(&hazmat::secret(ex), registration);
    vector.hex("ex", &ex).hex("hs", hazmat::expose(&hs));

    let claim = hazmat::Claim {
        header,
        gateway: &gateway.fingerprint,
        enc: &sent.point,
        device: &identity.fingerprint,
        id,
        fresh: FRESH,
        challenge: scene.challenge.unwrap_or_default(),
        random,
        reading: &[],
    };
    let m = [
        &header[..],
        &gateway.fingerprint.0,
        &sent.point.0,
        &identity.fingerprint.0,
        &id.0,
        &FRESH.to_be_bytes(),
        &claim.challenge,
        random,
    ]
    .concat();
    vector.hex("M", &m);
    let proof = if let DeviceKey::Private(key) = &identity.key {
        let signed = Sha256::new_with_prefix(b"duet1 device sig").chain_update(&m).finalize();
        assert_eq!(signed[..], claim.digest(), "M is what the code signs");
        vector.hex("signed digest", &signed).hex("signature extra entropy", &DEVICE_EXTRA);
        let signature = ec::sign(key, &claim.digest(), &DEVICE_EXTRA).unwrap();
        vector.hex("proof", &signature);
        signature.to_vec()
    } else {
        let binder = claim.binder(&hs);
        vector.hex("proof", &binder);
        binder.to_vec()
    };

    let (sealed, tag) = message[36..].split_last_chunk().unwrap();
    let mut text = sealed.to_vec();
    assert!(hpke.open(&header, &mut text, tag), "the values are the message's");
    let challenge: &[u8] = scene.challenge.as_ref().map_or(&[], |challenge| challenge);
    let padding = vec![0; offer.padding_len(0)];
    let expected = [&id.0, &FRESH.to_be_bytes()[..], challenge, random, &proof, &padding].concat();
    assert_eq!(text, expected);
    assert_eq!(message[..4], header);
    assert_eq!(message[4..36], sent.point.x());
    vector.hex("sealed text", &text).hex("HELLO", message);
    vector.hex("SHA256(HELLO)", &Sha256::digest(message));
    (hs, e)
}

/// RETRY, CHALLENGE, and HELLO with a cookie.
fn answers(vector: &mut Vector, scene: &Scene, waiting: &Waiting, hs: &schedule::Secret) {
    let digest: [u8; 32] = Sha256::digest(waiting.hello()).into();
    let retry =
        Retry { echo: *digest.first_chunk().unwrap(), wait_10ms: 3, cookie: sequence(0xd0) };
    assert_eq!(waiting.retry(&retry.encode()), Ok(retry));
    let mut again = [0; 256];
    let len = waiting.hello_with_cookie(&retry.cookie, &mut again);
    vector.section("retry").hex("cookie", &retry.cookie).hex("RETRY", &retry.encode());
    vector.hex("HELLO with cookie", &again[..len]);

    let (value, mark, nonce) = (sequence(0xb0), 9_000u64, sequence(0xe0));
    let message = scene.proven(waiting.hello()).challenge_message(&value, mark, &nonce);
    assert_eq!(waiting.challenge(&message), Ok((value, mark)));
    vector.section("challenge").hex("nonce", &nonce).hex("challenge", &value);
    vector.hex("mark", &mark.to_be_bytes());
    keys(vector, "retry", &hazmat::challenge_key(hs, &nonce));
    vector.hex("aad", &[&message[..17], &digest[..8]].concat()).hex("CHALLENGE", &message);
}

/// ACCEPT and the first records.
fn accept(
    vector: &mut Vector,
    scene: &Scene,
    waiting: &Waiting,
    hs: &schedule::Secret,
    e: &SecretScalar,
) {
    let Scene { offer, gateway, identity, .. } = scene;
    let source = offer.profile.source;
    let (scalar, random) = (scalar(0x91), sequence::<48>(0xc8));
    let session = SessionId(u32::from(identity.id.slot()) << 24 | GRANT.0);
    let reset_token = schedule::reset_token(&NODE_KEY, session);
    let grant =
        || Grant { session, lifetime_s: GRANT.1, stored: false, nothing_waits: false, reset_token };
    let responding = scene.proven(waiting.hello()).respond(grant(), scalar.clone(), random);
    let answer = responding.task().map(|task| ec::encapsulate(task).unwrap());
    let signing = responding.agreed(answer.clone());
    let signature = signing
        .digest()
        .map_or([0; 64], |digest| ec::sign(&scene.secret, &digest, &GATEWAY_EXTRA).unwrap());
    let (message, session_keys) = signing.signed(&signature);
    let message = message.as_slice();

    vector.section("accept");
    let clear: &[u8; 33] = message.first_chunk().unwrap();
    if let Some(answer) = &answer {
        let (scalar_name, point, shared) = if source == KeySource::Ephemeral {
            ("e_s", "Y", "ECDH-x")
        } else {
            ("e_f", "F", "dh")
        };
        vector.hex(scalar_name, scalar.expose()).hex(point, &answer.point.0);
        vector.hex(shared, &answer.shared.0);
        assert_eq!(clear[1..], answer.point.x());
        if source == KeySource::Ephemeral {
            let x = ec::agree(e, &answer.point.x()).unwrap().shared;
            assert!(x.0 == answer.shared.0, "both sides share it");
        }
    } else {
        vector.hex("N_s", &random[..32]);
    }
    vector.hex("clear", clear);
    let th =
        hazmat::transcript(waiting.hello(), clear, &gateway.fingerprint, &identity.fingerprint);
    vector.hex("th", &th);

    let own = scene.freshness().secret;
    let server: [u8; 16] = *random.last_chunk().unwrap();
    let mut mixed = own;
    mixed.iter_mut().zip(server).for_each(|(a, b)| *a ^= b);
    let (part, ikm) = match (source, &answer) {
        (KeySource::Ephemeral, Some(answer)) => (vec![], answer.shared.0.to_vec()),
        (KeySource::Xor(Transfer::Key), _) => (mixed.to_vec(), mixed.to_vec()),
        (KeySource::Xor(Transfer::Random), _) => (server.to_vec(), mixed.to_vec()),
        (KeySource::Client(_) | KeySource::Ephemeral, _) => (vec![], own.to_vec()),
    };
    if matches!(source, KeySource::Xor(_)) {
        vector.hex("R_s", &server).hex("ikm-part", &part);
    }
    vector.hex("IKM", &ikm).hex("salt", hazmat::expose(&hazmat::salt(hs, &th)));
    let master = hazmat::master(hs, &th, &ikm);
    vector.hex("master", hazmat::expose(&master));
    vector.hex("session id", &session.0.to_be_bytes()).hex("reset token", &reset_token);
    let p = hazmat::grant(&grant());
    vector.hex("P", &p);
    let mut text = [&part[..], &p].concat();
    if source.has_random() {
        vector.hex("signed digest", &hazmat::gateway_digest(&th, &part, &p));
        vector.hex("signature extra entropy", &GATEWAY_EXTRA).hex("sig", &signature);
        text.extend(signature);
    }
    vector.hex("sealed text", &text);
    let tag = match (source, &answer) {
        (KeySource::Ephemeral, _) | (_, None) => {
            let sealing = if source == KeySource::Ephemeral {
                hazmat::accept_key(&master)
            } else {
                hazmat::accept_key_registered(hs, &th)
            };
            keys(vector, "accept", &sealing);
            aead::seal(sealing.key(), sealing.iv(), clear, &mut text)
        }
        (_, Some(answer)) => {
            let digest = Sha256::digest(waiting.hello());
            let parts: [&[u8]; 4] =
                [b"duet1 accept", &digest, &gateway.fingerprint.0, &identity.fingerprint.0];
            let public = scene.public.unwrap();
            let hpke = Context::new(&answer.shared, &answer.point, &public, &parts);
            vector.hex("hpke info", &parts.concat());
            context(vector, &hpke);
            hpke.seal(clear, &mut text)
        }
    };
    assert_eq!(message, [&clear[..], &text, &tag].concat(), "the values are the message's");
    vector.hex("ACCEPT", message);
    let derived = hazmat::session_keys(&master);
    assert_eq!(derived.up.key(), session_keys.up.key());
    assert_eq!(derived.down.iv(), session_keys.down.iv());

    let accepting = waiting.accept(message).unwrap();
    let agreed = accepting.task(&identity.key).map(|(scalar, x)| ec::agree(scalar, x).unwrap());
    let answered = accepting.agreed(agreed.as_ref(), scene.public.as_ref()).unwrap();
    let verdict = answered.verify_task().is_none_or(ec::verify);
    let (granted, device_keys) = answered.verified(verdict).unwrap();
    assert_eq!((granted.session, granted.reset_token), (session, reset_token));
    assert_eq!(device_keys.up.key(), session_keys.up.key());
    assert_eq!(device_keys.up.iv(), session_keys.up.iv());
    assert_eq!(device_keys.down.key(), session_keys.down.key());
    assert_eq!(device_keys.down.iv(), session_keys.down.iv());

    vector.section("records");
    keys(vector, "up", &device_keys.up);
    keys(vector, "down", &device_keys.down);
    let mut text = [0; TEXT_MAX];
    let reading = Up::Reading {
        confirm: true,
        channel: 2,
        age_ms: Some(1_500),
        again: None,
        payload: b"21.5",
    };
    let len = reading.encode(&mut text);
    let mut up = [0; 64];
    let header = UpHeader { session, sequence: 258 };
    vector.hex("up sequence", &header.sequence.to_be_bytes());
    vector.hex("up nonce", &record::nonce(device_keys.up.iv(), header.sequence));
    vector.hex("up aad", &header.encode()).hex("up text", &text[..len]);
    let len = Cipher::new(&device_keys.up).seal_up(header, &text[..len], &mut up);
    let up = &up[..len];
    vector.hex("UP", up);
    let mut ranges = [0; RANGES_MAX * 6];
    let ack = Down::ack(&[Range { first: 258, count: 1 }], false, &mut ranges);
    let len = ack.encode(&mut text);
    let mut down = [0; 64];
    let header = DownHeader { sequence: 1 };
    vector.hex("down sequence", &header.sequence.to_be_bytes());
    vector.hex("down nonce", &record::nonce(device_keys.down.iv(), header.sequence));
    vector.hex("down aad", &header.associated_data(session)).hex("down text", &text[..len]);
    let len = Cipher::new(&session_keys.down).seal_down(header, session, &text[..len], &mut down);
    vector.hex("DOWN", &down[..len]);
    let reset = Reset { session, mac: schedule::reset_mac(&reset_token, up) };
    vector.hex("RESET for UP", &reset.encode());
}

fn file(profile: Profile, challenged: bool) -> String {
    let suffix = if challenged { "-challenged" } else { "" };
    format!("{}{suffix}.json", profile.name().replace('/', "-"))
}

#[test]
fn every_profile_is_as_its_vector_says() {
    let challenged = Profile::from_name("certificate/ephemeral").unwrap();
    let plain = Profile::ALL.into_iter().map(|profile| (profile, false));
    for (profile, flag) in plain.chain([(challenged, true)]) {
        let scene = Scene::new(profile, flag);
        let mut vector = Vector::default();
        scene.setup(&mut vector);
        let waiting = scene.hello();
        let (hs, e) = hello(&mut vector, &scene, &waiting);
        answers(&mut vector, &scene, &waiting, &hs);
        accept(&mut vector, &scene, &waiting, &hs, &e);
        vector.check(&file(profile, flag));
    }
}

/// The text inside each kind of record.
#[test]
fn every_text_is_as_its_vector_says() {
    let mut vector = Vector::default();
    let mut out = [0; TEXT_MAX];
    vector.section("up");
    let reading = |confirm, age_ms, again| {
        let (channel, payload) = (0x0102, &b"21.5"[..]);
        Up::Reading { confirm, channel, age_ms, again, payload }
    };
    let early = Some(ReadingId { hello: sequence(0x10), sequence: EARLY_SEQUENCE });
    let record = Some(ReadingId { hello: sequence(0x10), sequence: 258 });
    for (name, text) in [
        ("reading", reading(false, None, None)),
        ("reading, confirm", reading(true, None, None)),
        ("reading, age 70000 ms", reading(false, Some(70_000), None)),
        ("reading, confirm, age 70000 ms", reading(true, Some(70_000), None)),
        ("reading, confirm, again, first in HELLO", reading(true, None, early)),
        ("reading, confirm, again, first in record 258", reading(true, None, record)),
        ("reading, confirm, age 70000 ms, again", reading(true, Some(70_000), early)),
        ("result, command 9, status 4", Up::Result { command: 9, status: 4, payload: b"no" }),
        ("ping", Up::Ping),
        ("close", Up::Close),
        ("here", Up::Here { challenge: sequence(0xf0) }),
    ] {
        let len = text.encode(&mut out);
        assert_eq!(Up::decode(&out[..len]), Ok(text));
        vector.hex(name, &out[..len]);
    }
    vector.section("down");
    let mut encoded = [0; RANGES_MAX * 6];
    let ranges = [Range { first: 7, count: 2 }, Range { first: 900_000, count: 65_535 }];
    for (name, text) in [
        ("ack, 7 to 8 and 900000 to 965534", Down::ack(&ranges, false, &mut encoded)),
        ("ack, 7 to 8, nothing waits", Down::ack(&ranges[..1], true, &mut [0; RANGES_MAX * 6])),
        ("command 9", Down::Command { command: 9, payload: b"open" }),
        ("pong", Down::Pong { nothing_waits: None }),
        ("pong to ping 258, nothing waits", Down::Pong { nothing_waits: Some(258) }),
        ("close", Down::Close),
        ("prove", Down::Prove { challenge: sequence(0xf0) }),
    ] {
        let len = text.encode(&mut out);
        assert_eq!(Down::decode(&out[..len]), Ok(text));
        vector.hex(name, &out[..len]);
    }
    vector.check("texts.json");
}

/// The specification's tables of lengths and first bytes are the code's.
#[test]
fn the_specification_says_how_long_everything_is() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/protocol.md");
    let document = fs::read_to_string(path).unwrap();
    let says = |line: &str| {
        assert_eq!(document.lines().filter(|l| l.starts_with(line)).count(), 1, "{line}");
    };
    for profile in Profile::ALL {
        let plain = Offer::new(profile, Transport::Datagram);
        let (hello, accept) = (plain.hello_len(0), profile.accept_len());
        let (mode, source) = profile.name().split_once('/').unwrap();
        let (byte, text) = (plain.encode(), plain.sealed_text_len(0));
        let padding = plain.padding_len(0);
        let both = hello + accept;
        says(&format!(
            "| `{mode}` | `{source}` | {byte:#04x} | {text} | {padding} | {hello} | {accept} | {both} |"
        ));
        let stream = Offer { transport: Transport::Stream, ..plain };
        let challenged = Offer { challenged: true, ..plain };
        assert_eq!((stream.encode(), stream.hello_len(0)), (byte + 0x20, hello));
        assert_eq!((challenged.encode(), challenged.hello_len(0)), (byte + 0x40, hello + 16));
    }
    for profile in Profile::ALL {
        let early = Offer { early: true, ..Offer::new(profile, Transport::Datagram) };
        let (least, hello) = (early.hello_len(wire::READING_MIN), early.hello_len(3 + 64));
        let (mode, source) = profile.name().split_once('/').unwrap();
        let (byte, most, accept) = (early.encode(), profile.reading_max(), profile.accept_len());
        let (up, down) = (hello + 28, accept + 28);
        let both = up + down;
        says(&format!(
            "| `{mode}` | `{source}` | {byte:#04x} | {most} | {least} | {hello} | {accept} | {up}, {down} | {both} |"
        ));
    }
    let lengths = Profile::ALL.map(|profile| {
        let plain = Offer::new(profile, Transport::Datagram);
        plain.hello_len(0)
    });
    let (least, most) = (lengths.iter().min().unwrap(), wire::BARE_HELLO_MAX);
    let hello = format!("{least} … {most}, by profile; with a reading up to 1,200");
    assert_eq!(wire::HELLO_MAX, 1_200);
    for (kind, number, name, from, length) in [
        (Kind::Hello, 1, "HELLO", "device", hello),
        (Kind::Accept, 2, "ACCEPT", "gateway", "69, 133 or 149, by profile".to_owned()),
        (Kind::Retry, 3, "RETRY", "gateway", wire::RETRY_LEN.to_string()),
        (Kind::Challenge, 4, "CHALLENGE", "gateway", wire::CHALLENGE_LEN.to_string()),
        (Kind::Up, 5, "UP, a record", "device", record_lengths(wire::UP_HEADER)),
        (Kind::Down, 6, "DOWN, a record", "gateway", record_lengths(wire::DOWN_HEADER)),
        (Kind::Reset, 7, "RESET", "gateway", wire::RESET_LEN.to_string()),
    ] {
        says(&format!("| {number} {name} | {:#04x} | {from} | {length} |", kind.byte()));
    }
}

fn record_lengths(header: usize) -> String {
    assert_eq!(wire::RECORD_MAX, 1_200);
    format!("{} … 1,200", header + 1 + wire::TAG)
}

/// No vector without a test: what lies in the folder is what is compared.
#[test]
fn no_file_is_left_over() {
    let mut expected: Vec<_> = Profile::ALL.into_iter().map(|p| file(p, false)).collect();
    let challenged = Profile::from_name("certificate/ephemeral").unwrap();
    expected.extend([file(challenged, true), "texts.json".to_owned()]);
    expected.sort();
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("vectors");
    let mut found: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    found.sort();
    if std::env::var_os(WRITE).is_none() {
        assert_eq!(found, expected);
    }
}
