//! The vectors of whole handshakes.

use duet_protocol::{
    aead,
    ec::{self, SecretScalar},
    hazmat,
    hpke::Context,
    message::{Down, RANGES_MAX, Range, TEXT_MAX, Up},
    profile::{KeySource, Transfer, Transport},
    reading::ReadingId,
    record::{self, Cipher},
    schedule::{self, KeyIv, SessionKeys},
    wire::{DownHeader, Reset, Retry, UpHeader},
};
use sha2::{Digest as _, Sha256};

use crate::{
    Vector,
    scene::{
        self, CHALLENGE, DEVICE_EXTRA, GATEWAY_EXTRA, MARK, NODE_KEY, Scene, is_odd, sequence,
    },
    steps::{self, Made},
};

/// What the gateway asks a device at this address to answer with, and its cookie for it.
pub(crate) const EPOCH: u32 = 0x0102_0304;
/// 192.0.2.7, port 4660, as IPv6.
pub(crate) const ADDRESS: [u8; 18] =
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 7, 0x12, 0x34];

fn keys(vector: &mut Vector, name: &str, keys: &KeyIv) {
    vector.hex(&format!("{name} key"), keys.key()).hex(&format!("{name} iv"), keys.iv());
}

fn context(vector: &mut Vector, context: &Context) {
    let (key, nonce, exporter) = hazmat::context(context);
    vector.hex("hpke key", key).hex("hpke base nonce", nonce).hex("hpke exporter secret", exporter);
}

fn sign(vector: &mut Vector, name: &str, scalar: &SecretScalar) {
    vector.text(name, if is_odd(scalar) { "odd: its negative is sent" } else { "even" });
}

/// Everything up to HELLO.
fn hello(vector: &mut Vector, scene: &Scene, made: &Made) {
    let recipe = scene.recipe();
    vector.section("hello").hex("hdr", &made.header);
    vector.hex("fresh", &recipe.fresh.to_be_bytes());
    vector.hex("ch", &recipe.challenge.unwrap_or_default());
    let random: &[u8] = if made.offer.profile.source.has_random() { &made.secret } else { &[] };
    vector.hex("S", random);
    if let Some(reading) = recipe.reading {
        vector.hex("reading", reading);
        vector.hex("n", &u16::try_from(reading.len()).unwrap().to_be_bytes());
        let proven = scene.proven(&made.message).unwrap();
        let early = proven.reading().unwrap();
        let id = if early.again { early.id } else { ReadingId::early(&made.digest()) };
        assert_eq!(early.id, id);
        vector.hex("reading's id", &id.encode());
    }
    vector.hex("random for e_c", &recipe.random);
    let bound = schedule::hedge_bound(recipe.challenge.as_ref(), recipe.reading);
    vector.hex("b", bound.as_ref().map_or(&[], |bound| &bound[..]));
    vector.hex("e_c", made.e.expose());
    sign(vector, "y of e_c·G", &made.e);
    vector.hex("enc", &made.enc.0).hex("dh", &made.dh).hex("hpke info", &made.info);
    context(vector, &made.context);
    vector.hex("ex", &made.ex).hex("hs", hazmat::expose(&made.hs)).hex("M", &made.m);
    if scene.device.public().is_some() {
        vector.hex("signed digest", &made.signed);
        vector.hex("signature extra entropy", &DEVICE_EXTRA);
    }
    vector.hex("proof", &made.proof).hex("sealed text", &made.text);
    vector.hex("HELLO", &made.message).hex("SHA256(HELLO)", &made.digest());
    if scene.offer.transport == Transport::Stream {
        vector.hex("HELLO on a stream", &framed(&made.message));
    }
}

fn framed(message: &[u8]) -> Vec<u8> {
    [&u16::try_from(message.len()).unwrap().to_be_bytes(), message].concat()
}

/// RETRY, CHALLENGE, and HELLO with a cookie.
fn answers(vector: &mut Vector, scene: &Scene, made: &Made) {
    let digest = made.digest();
    let cookie = schedule::cookie(&NODE_KEY, EPOCH, &ADDRESS, &digest);
    let retry = Retry { echo: *digest.first_chunk().unwrap(), wait_10ms: 3, cookie };
    vector.section("retry").text("wait, ms", "30").hex("epoch", &EPOCH.to_be_bytes());
    vector.hex("address and port", &ADDRESS).hex("cookie", &cookie);
    vector.hex("RETRY", &retry.encode()).hex("HELLO with cookie", &made.with_cookie(&cookie));

    let nonce = sequence(0xe0);
    let proven = scene.proven(&made.with_cookie(&cookie)).unwrap();
    let message = proven.challenge_message(&CHALLENGE, MARK, &nonce);
    assert_eq!(made.challenge(&message), Some((CHALLENGE, MARK)));
    vector.section("challenge").hex("nonce", &nonce).hex("challenge", &CHALLENGE);
    vector.hex("mark", &MARK.to_be_bytes());
    keys(vector, "retry", &hazmat::challenge_key(&made.hs, &nonce));
    vector.hex("aad", &[&message[..17], &digest[..8]].concat()).hex("CHALLENGE", &message);
}

/// ACCEPT as the gateway's states make it, and the session's keys.
pub(crate) fn accepted(scene: &Scene, made: &Made) -> (Vec<u8>, SessionKeys, [u8; 64]) {
    let random = sequence::<48>(0xc8);
    let proven = scene.proven(&made.message).unwrap();
    let responding = proven.respond(scene.grant(), scene.server_scalar(), random);
    let answer = responding.task().map(|task| ec::encapsulate(task).unwrap());
    let signing = responding.agreed(answer);
    let signature = signing
        .digest()
        .map_or([0; 64], |digest| ec::sign(&scene.secret, &digest, &GATEWAY_EXTRA).unwrap());
    let (accept, keys) = signing.signed(&signature);
    (accept.as_slice().to_vec(), keys, signature)
}

fn accept(vector: &mut Vector, scene: &Scene, made: &Made) -> SessionKeys {
    let Scene { gateway, device, .. } = scene;
    let (source, fingerprint) = (made.offer.profile.source, device.credential.fingerprint);
    let (scalar, random) = (scene.server_scalar(), sequence::<48>(0xc8));
    let (message, session_keys, signature) = accepted(scene, made);
    let proven = scene.proven(&made.message).unwrap();
    let responding = proven.respond(scene.grant(), scalar.clone(), random);
    let answer = responding.task().map(|task| ec::encapsulate(task).unwrap());

    vector.section("accept");
    let clear: &[u8; 33] = message.first_chunk().unwrap();
    if let Some(answer) = &answer {
        let (scalar_name, point, shared) = if source == KeySource::Ephemeral {
            ("e_s", "Y", "ECDH-x")
        } else {
            ("e_f", "F", "dh")
        };
        vector.hex(scalar_name, scalar.expose());
        sign(vector, &format!("y of {scalar_name}·G"), &scalar);
        vector.hex(point, &answer.point.0).hex(shared, &answer.shared.0);
        assert_eq!(clear[1..], answer.point.x());
    } else {
        vector.hex("N_s", &random[..32]);
    }
    let th = hazmat::transcript(&made.message, clear, &gateway.fingerprint, &fingerprint);
    vector.hex("clear", clear).hex("th", &th);

    let server: [u8; 16] = *random.last_chunk().unwrap();
    let mut mixed = made.secret;
    mixed.iter_mut().zip(server).for_each(|(a, b)| *a ^= b);
    let (part, ikm) = match (source, &answer) {
        (KeySource::Ephemeral, Some(answer)) => (vec![], answer.shared.0.to_vec()),
        (KeySource::Xor(Transfer::Key), _) => (mixed.to_vec(), mixed.to_vec()),
        (KeySource::Xor(Transfer::Random), _) => (server.to_vec(), mixed.to_vec()),
        (KeySource::Client(_) | KeySource::Ephemeral, _) => (vec![], made.secret.to_vec()),
    };
    if matches!(source, KeySource::Xor(_)) {
        vector.hex("R_s", &server).hex("ikm-part", &part);
    }
    vector.hex("IKM", &ikm).hex("salt", hazmat::expose(&hazmat::salt(&made.hs, &th)));
    let master = hazmat::master(&made.hs, &th, &ikm);
    vector.hex("master", hazmat::expose(&master));
    let grant = scene.grant();
    vector.hex("session id", &grant.session.0.to_be_bytes());
    vector.text("lifetime, s", &grant.lifetime_s.to_string());
    let yes = |yes| if yes { "yes" } else { "no" };
    vector.text("stored", yes(grant.stored)).text("nothing waits", yes(grant.nothing_waits));
    vector.hex("reset token", &grant.reset_token);
    let p = hazmat::grant(&grant);
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
                hazmat::accept_key_registered(&made.hs, &th)
            };
            keys(vector, "accept", &sealing);
            aead::seal(sealing.key(), sealing.iv(), clear, &mut text)
        }
        (_, Some(answer)) => {
            let digest = made.digest();
            let parts: [&[u8]; 4] =
                [b"duet1 accept", &digest, &gateway.fingerprint.0, &fingerprint.0];
            let hpke =
                Context::new(&answer.shared, &answer.point, &device.public().unwrap(), &parts);
            vector.hex("hpke info", &parts.concat());
            context(vector, &hpke);
            hpke.seal(clear, &mut text)
        }
    };
    assert_eq!(message, [&clear[..], &text, &tag].concat(), "the values are the message's");
    vector.hex("ACCEPT", &message);
    if scene.offer.transport == Transport::Stream {
        vector.hex("ACCEPT on a stream", &framed(&message));
    }
    // The device comes to the same keys from its side.
    let (read, own) = steps::accepted(gateway, device, made, &message).unwrap();
    assert_eq!(read, p);
    for (own, theirs) in [(&own.up, &session_keys.up), (&own.down, &session_keys.down)] {
        assert_eq!((own.key(), own.iv()), (theirs.key(), theirs.iv()));
    }
    own
}

fn records(vector: &mut Vector, scene: &Scene, made: &Made, session_keys: &SessionKeys) {
    let session = scene.grant().session;
    vector.section("records");
    keys(vector, "up", &session_keys.up);
    keys(vector, "down", &session_keys.down);
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
    vector.hex("up nonce", &record::nonce(session_keys.up.iv(), header.sequence));
    vector.hex("up aad", &header.encode()).hex("up text", &text[..len]);
    let len = Cipher::new(&session_keys.up).seal_up(header, &text[..len], &mut up);
    let up = &up[..len];
    vector.hex("UP", up);
    vector.hex("reading's id", &ReadingId::new(&made.digest(), 258).encode());
    let mut ranges = [0; RANGES_MAX * 6];
    let ack = Down::ack(&[Range { first: 258, count: 1 }], false, &mut ranges);
    let mut down = |name: &str, sequence, message: Down<'_>| {
        let len = message.encode(&mut text);
        let mut out = [0; 64];
        let header = DownHeader { sequence };
        if sequence == 1 {
            vector.hex("down sequence", &header.sequence.to_be_bytes());
            vector.hex("down nonce", &record::nonce(session_keys.down.iv(), header.sequence));
            vector.hex("down aad", &header.associated_data(session));
            vector.hex("down text", &text[..len]);
        }
        let cipher = Cipher::new(&session_keys.down);
        let len = cipher.seal_down(header, session, &text[..len], &mut out);
        vector.hex(name, &out[..len]);
    };
    down("DOWN", 1, ack);
    let challenge = schedule::path_challenge(&NODE_KEY, EPOCH, session, &ADDRESS);
    down("DOWN 2, prove", 2, Down::Prove { challenge });
    let mut here = [0; 64];
    let len = Up::Here { challenge }.encode(&mut text);
    let header = UpHeader { session, sequence: 259 };
    let len = Cipher::new(&session_keys.up).seal_up(header, &text[..len], &mut here);
    vector.hex("path challenge", &challenge).hex("UP 259, here", &here[..len]);
    let reset = Reset { session, mac: schedule::reset_mac(&scene.grant().reset_token, up) };
    vector.hex("RESET for UP", &reset.encode());
}

#[test]
fn every_handshake_is_as_its_vector_says() {
    for scene in scene::scenes() {
        let mut vector = Vector::default();
        scene.setup(&mut vector);
        let made = scene.hello();
        hello(&mut vector, &scene, &made);
        answers(&mut vector, &scene, &made);
        let keys = accept(&mut vector, &scene, &made);
        records(&mut vector, &scene, &made, &keys);
        vector.check(&scene.file());
    }
}

/// No E seals two plaintexts, in the vectors neither (R21); and both signs of every point occur.
#[test]
fn every_vector_has_an_ephemeral_key_of_its_own() {
    let scenes = scene::scenes();
    let made: Vec<_> = scenes.iter().map(Scene::hello).collect();
    for (i, one) in made.iter().enumerate() {
        assert!(made[..i].iter().all(|other| other.enc != one.enc), "{}", scenes[i].file());
    }
    assert!(made.iter().any(|made| is_odd(&made.e)) && made.iter().any(|made| !is_odd(&made.e)));
    let server: Vec<_> = scenes.iter().map(|scene| is_odd(&scene.server_scalar())).collect();
    assert!(server.contains(&true) && server.contains(&false));
    // M is what a device signs.
    for made in &made {
        let signed = Sha256::new_with_prefix(b"duet1 device sig").chain_update(&made.m).finalize();
        assert_eq!(signed[..], made.signed);
    }
}
