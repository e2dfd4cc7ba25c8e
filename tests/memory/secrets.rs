//! Every secret of a handshake, computed from what crossed the wire and from both sides' long-term keys.

use duet_device::{Crypto as _, Software};
use duet_protocol::ec::{self, SecretScalar};
use duet_protocol::hazmat::{self, expose};
use duet_protocol::hpke::Context;
use duet_protocol::identity::{Fingerprint, Gateway, RegistrationKey};
use duet_protocol::profile::{KeySource, Offer, Profile, Transfer};
use duet_protocol::schedule;
use duet_protocol::{aead, wire::GRANT};

/// A device's long-term secret.
pub(crate) enum Key {
    Registration([u8; 32]),
    Private(SecretScalar),
}

/// Both sides of a handshake.
pub(crate) struct Sides<'a> {
    pub(crate) profile: Profile,
    pub(crate) gateway: &'a Gateway,
    pub(crate) gateway_secret: &'a SecretScalar,
    pub(crate) device: Fingerprint,
    pub(crate) device_key: &'a Key,
    /// What the device's generator was seeded with.
    pub(crate) seed: [u8; 32],
}

pub(crate) type Needles = Vec<(String, Vec<u8>)>;

/// `hs`, and everything else that exists before ACCEPT.
pub(crate) fn of_hello(sides: &Sides<'_>, hello: &[u8]) -> (Needles, [u8; 32], [u8; 16]) {
    let Sides { gateway, gateway_secret, profile, .. } = sides;
    let agreed = ec::agree(gateway_secret, hello[4..36].try_into().unwrap()).unwrap();
    let info: [&[u8]; 3] = [b"duet1 hello", &hello[..4], &gateway.fingerprint.0];
    let context = Context::new(&agreed.shared, &agreed.point, &gateway.key, &info);
    // With a reading its length stands before the ciphertext.
    let early = Offer::decode(hello[2]).unwrap().early;
    let sealed = if early { &hello[38..] } else { &hello[36..] };
    let (text, tag) = sealed.split_last_chunk().unwrap();
    let mut text = text.to_vec();
    assert!(context.open(&hello[..4], &mut text, tag));
    let (key, _, exporter) = hazmat::context(&context);
    let mut ex = [0; 32];
    context.export(b"duet1 export", &mut ex);
    let (registration, d) = match sides.device_key {
        Key::Registration(key) => (Some(RegistrationKey(*key)), *key),
        Key::Private(secret) => (None, *secret.expose()),
    };
    let hs = schedule::handshake_secret(&hazmat::secret(ex), registration.as_ref());
    let fresh = u64::from_be_bytes(text[8..16].try_into().unwrap());
    let mut random = [0; 80];
    Software::seeded(sides.seed).random(&mut random).unwrap();
    let random = random.first_chunk().unwrap();
    let mut at = 16 + profile.proof_len();
    at += if profile.source == KeySource::Ephemeral { 0 } else { 16 };
    let n = usize::from(u16::from_be_bytes([hello[36], hello[37]]));
    let reading = early.then(|| &text[at..at + n]);
    let e_c = schedule::hedged_scalar(random, &d, &gateway.fingerprint, fresh, None, reading);
    assert_eq!(e_c.public_key().x(), hello[4..36], "the same seed makes the same E");
    let mut needles = vec![
        ("e_c".to_owned(), e_c.expose().to_vec()),
        ("x(s·E)".to_owned(), agreed.shared.0.to_vec()),
        ("HELLO's key".to_owned(), key.to_vec()),
        ("HELLO's exporter secret".to_owned(), exporter.to_vec()),
        ("ex".to_owned(), ex.to_vec()),
        ("hs".to_owned(), expose(&hs).to_vec()),
    ];
    let mut r_c = [0; 16];
    if profile.source != KeySource::Ephemeral {
        r_c.copy_from_slice(&text[16..32]);
        needles.push(("S".to_owned(), r_c.to_vec()));
    }
    (needles, *expose(&hs), r_c)
}

/// All of them.
pub(crate) fn of_handshake(sides: &Sides<'_>, hello: &[u8], accept: &[u8]) -> Needles {
    let Sides { gateway, profile, device, .. } = sides;
    let (mut needles, hs, r_c) = of_hello(sides, hello);
    let e_c = SecretScalar::from_bytes(needles[0].1.as_slice().try_into().unwrap()).unwrap();
    let hs = hazmat::secret(hs);
    let clear: &[u8; 33] = accept.first_chunk().unwrap();
    let srv = clear[1..].try_into().unwrap();
    let th = hazmat::transcript(hello, clear, &gateway.fingerprint, device);
    let (text, tag) = accept[33..].split_last_chunk().unwrap();
    let mut text = text.to_vec();
    let mut note = |name: &str, value: &[u8]| needles.push((name.to_owned(), value.to_vec()));
    let ikm = match (profile.source, sides.device_key) {
        (KeySource::Ephemeral, _) => {
            let dh = ec::agree(&e_c, &srv).unwrap().shared.0;
            let key = hazmat::accept_key(&hazmat::master(&hs, &th, &dh));
            note("ACCEPT's key", key.key());
            assert!(aead::open(key.key(), key.iv(), clear, &mut text, tag));
            dh.to_vec()
        }
        (_, Key::Registration(_)) => {
            let key = hazmat::accept_key_registered(&hs, &th);
            note("ACCEPT's key", key.key());
            assert!(aead::open(key.key(), key.iv(), clear, &mut text, tag));
            r_c.to_vec()
        }
        (_, Key::Private(secret)) => {
            let agreed = ec::agree(secret, &srv).unwrap();
            let digest = schedule_digest(hello);
            let info: [&[u8]; 4] = [b"duet1 accept", &digest, &gateway.fingerprint.0, &device.0];
            let context = Context::new(&agreed.shared, &agreed.point, &secret.public_key(), &info);
            note("x(d·F)", &agreed.shared.0);
            note("ACCEPT's key", hazmat::context(&context).0);
            assert!(context.open(clear, &mut text, tag));
            r_c.to_vec()
        }
    };
    let mut rest = text.as_slice();
    let mut ikm = ikm;
    if let KeySource::Xor(transfer) = profile.source {
        let (part, after) = rest.split_at(16);
        rest = after;
        let both: Vec<u8> = part.iter().zip(&r_c).map(|(a, b)| a ^ b).collect();
        note("K or R_s", &both);
        // Of key and random, one is sent and the other is computed.
        ikm = if transfer == Transfer::Key { part.to_vec() } else { both };
    }
    note("IKM", &ikm);
    let master = hazmat::master(&hs, &th, &ikm);
    note("master", expose(&master));
    note("the reset token", &rest[8..GRANT]);
    let keys = hazmat::session_keys(&master);
    for (name, keys) in [("up", &keys.up), ("down", &keys.down)] {
        for (round, key) in super::round_keys(keys.key()).into_iter().enumerate() {
            note(&format!("{name} round key {round}"), &key);
        }
        note(&format!("{name} iv"), keys.iv());
    }
    needles
}

fn schedule_digest(hello: &[u8]) -> [u8; 32] {
    use sha2::Digest as _;
    sha2::Sha256::digest(hello).into()
}
