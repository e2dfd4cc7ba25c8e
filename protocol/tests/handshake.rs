//! The two messages, end to end: the gateway's states against a device made of single steps, in every
//! profile.
#![allow(clippy::unwrap_used, reason = "a test's helpers may")]

mod steps;

use duet_protocol::{
    ec::{self, SecretScalar},
    identity::{Credential, DeviceId, Fingerprint, Gateway, Proof, RegistrationKey},
    message::{TEXT_MAX, Up},
    profile::{Mode, Offer, Profile, Transport},
    reading::ReadingId,
    reason::DropReason,
    record::Cipher,
    responder::{Opened, Proven},
    schedule::{Grant, SessionKeys},
    wire::{CHALLENGE_LEN, DownHeader, Hello, SessionId, UpHeader},
};
use steps::{Device, Made, Recipe};

struct World {
    secret: SecretScalar,
    gateway: Gateway,
}

fn scalar(byte: u8) -> SecretScalar {
    SecretScalar::from_bytes(&[byte; 32]).unwrap()
}

const SESSION: SessionId = SessionId(0x0a0b_0c0d);

impl World {
    fn new() -> Self {
        let secret = scalar(0x51);
        let fingerprint = Fingerprint::of_certificate(b"gateway certificate");
        let gateway = Gateway { key_id: 3, fingerprint, key: secret.public_key() };
        Self { secret, gateway }
    }

    fn opened(&self, message: &[u8]) -> Result<Opened, DropReason> {
        let hello = Hello::decode(message, Transport::Datagram)?;
        let agreed = ec::agree(&self.secret, hello.ephemeral_x()).ok_or(DropReason::Point)?;
        Opened::new(hello, &self.gateway, agreed.point, &agreed.shared)
    }

    fn proven(&self, message: &[u8], credential: &Credential) -> Result<Proven, DropReason> {
        let claim = self.opened(message)?.claim(&self.gateway, Some(credential));
        let verdict = claim.verify_task().is_none_or(ec::verify);
        claim.verified(verdict)
    }

    fn accept(&self, proven: Proven, stored: bool, nothing_waits: bool) -> (Vec<u8>, SessionKeys) {
        let (session, lifetime_s, reset_token) = (SESSION, 3_600, [8; 12]);
        let grant = Grant { session, lifetime_s, stored, nothing_waits, reset_token };
        let responding = proven.respond(grant, scalar(0x33), [0x44; 48]);
        let answer = responding.task().map(|task| ec::encapsulate(task).unwrap());
        let signing = responding.agreed(answer);
        let signature = signing
            .digest()
            .map_or([0; 64], |digest| ec::sign(&self.secret, &digest, &[5; 32]).unwrap());
        let (accept, keys) = signing.signed(&signature);
        (accept.as_slice().to_vec(), keys)
    }

    fn hello(&self, device: &Device, recipe: &Recipe<'_>) -> Made {
        steps::hello(&self.gateway, device, recipe)
    }
}

fn device(mode: Mode) -> Device {
    let (id, public) = (DeviceId([7; 8]), scalar(0x22).public_key());
    let credential = match mode {
        Mode::RegisteredId => Credential::registered_id(id, RegistrationKey([0x22; 32])),
        Mode::Certificate => Credential::certificate(b"device certificate", public),
        Mode::RegisteredCertificate => {
            Credential::registered_certificate(id, b"device certificate", public)
        }
    };
    Device { credential, d: [0x22; 32] }
}

fn recipe(profile: Profile) -> Recipe<'static> {
    Recipe {
        offer: Offer::new(profile, Transport::Datagram),
        fresh: 42,
        challenge: None,
        random: [1; 32],
        secret: [2; 16],
        reading: None,
        extra: [6; 32],
    }
}

fn text(up: Up<'_>) -> Vec<u8> {
    let mut out = [0; TEXT_MAX];
    let len = up.encode(&mut out);
    out[..len].to_vec()
}

fn reading(again: Option<ReadingId>, payload: &[u8]) -> Vec<u8> {
    text(Up::Reading { confirm: true, channel: 5, age_ms: None, again, payload })
}

fn records_pass(device_keys: &SessionKeys, gateway_keys: &SessionKeys) {
    let header = UpHeader { session: SESSION, sequence: 0 };
    let mut record = [0; 64];
    let len = Cipher::new(&device_keys.up).seal_up(header, b"21.5", &mut record);
    let opened = Cipher::new(&gateway_keys.up).open_up(header, &mut record[..len]);
    assert_eq!(opened.unwrap(), b"21.5");
    let header = DownHeader { sequence: 0 };
    let len = Cipher::new(&gateway_keys.down).seal_down(header, SESSION, b"on", &mut record);
    let down = Cipher::new(&device_keys.down);
    assert_eq!(down.open_down(header, SESSION, &mut record[..len]).unwrap(), b"on");
}

#[test]
fn every_profile_opens_with_two_messages_and_carries_records_both_ways() {
    let world = World::new();
    for profile in Profile::ALL {
        for challenge in [None, Some([0xcc; 16])] {
            let device = device(profile.mode);
            let made = world.hello(&device, &Recipe { challenge, ..recipe(profile) });
            let proven = world.proven(&made.message, &device.credential).unwrap();
            assert_eq!(proven.fresh(), 42);
            assert_eq!(proven.challenge().copied(), challenge);
            assert_eq!(proven.reading(), None);
            let (accept, gateway_keys) = world.accept(proven, false, false);
            assert!(accept.len() <= made.message.len(), "{}", profile.name());
            let (grant, device_keys) =
                steps::accepted(&world.gateway, &device, &made, &accept).unwrap();
            let expected = [&SESSION.0.to_be_bytes()[..], &[0, 0, 14, 16], &[8; 12]].concat();
            assert_eq!(grant[..], expected);
            records_pass(&device_keys, &gateway_keys);
        }
    }
}

#[test]
fn a_reading_travels_in_the_first_message_of_every_profile() {
    let world = World::new();
    let first = ReadingId { hello: [9; 12], sequence: 17 };
    for profile in Profile::ALL {
        let device = device(profile.mode);
        let bare = world.hello(&device, &recipe(profile));
        for (challenge, again, payload) in [
            (None, None, &[0x77; 64][..]),
            (Some([0xcc; 16]), None, b""),
            (None, Some(first), b"21.5"),
            (Some([0xcc; 16]), Some(first), &[0; 900]),
        ] {
            let reading = reading(again, payload);
            let reading = Some(&reading[..]);
            let made = world.hello(&device, &Recipe { challenge, reading, ..recipe(profile) });
            let with_cookie = made.with_cookie(&[4; 16]);
            for message in [&made.message, &with_cookie] {
                let proven = world.proven(message, &device.credential).unwrap();
                let early = proven.reading().unwrap();
                assert_eq!((early.channel, early.age_ms, early.payload), (5, None, payload));
                // Its name is that of this HELLO, unless the device says an earlier one.
                assert_eq!(early.again, again.is_some());
                assert_eq!(early.id, again.unwrap_or_else(|| ReadingId::early(&made.digest())));
                for (stored, nothing_waits, first) in [
                    (false, false, 0x00),
                    (true, false, 0x80),
                    (false, true, 0x40),
                    (true, true, 0xc0),
                ] {
                    let proven = world.proven(message, &device.credential).unwrap();
                    let (accept, keys) = world.accept(proven, stored, nothing_waits);
                    assert_eq!(accept.len(), profile.accept_len());
                    assert!(accept.len() <= made.message.len());
                    let (grant, own) =
                        steps::accepted(&world.gateway, &device, &made, &accept).unwrap();
                    assert_eq!(grant[4..8], [first, 0, 14, 16]);
                    records_pass(&own, &keys);
                }
            }
            assert_ne!(made.e.expose(), bare.e.expose(), "no E for two texts");
        }
    }
}

/// Whoever is without a generator and without a counter still never seals two texts under one E.
#[test]
fn the_ephemeral_key_depends_on_challenge_and_reading() {
    let world = World::new();
    let device = device(Mode::Certificate);
    let (one, two) = (reading(None, b"1"), reading(None, b"2"));
    let recipe = recipe(Profile::ALL[0]);
    let mut seen = Vec::new();
    for challenge in [None, Some([0; 16]), Some([1; 16])] {
        for reading in [None, Some(&one[..]), Some(&two)] {
            let made = world.hello(&device, &Recipe { challenge, reading, ..recipe.clone() });
            if (challenge, reading.is_some()) == (Some([0; 16]), true) {
                // A challenge of zeros is none to the hedge; no gateway gives it.
                continue;
            }
            assert!(!seen.contains(&made.enc.x()));
            seen.push(made.enc.x());
        }
    }
}

#[test]
fn only_a_reading_that_waits_to_be_confirmed_travels_in_a_hello() {
    let world = World::new();
    let device = device(Mode::RegisteredId);
    let profile = Profile::from_name("registered-id/xor-key").unwrap();
    let unconfirmed =
        Up::Reading { confirm: false, channel: 5, age_ms: None, again: None, payload: b"x" };
    let result = Up::Result { command: 1, status: 0, payload: b"" };
    for bad in [
        text(unconfirmed),
        text(result),
        text(Up::Here { challenge: [1; 4] }),
        vec![3, 0, 0],
        vec![0x31, 0, 0, 0],
        vec![0x51, 0, 0, 1, 2, 3],
        vec![0x91, 0, 0],
    ] {
        let made = world.hello(&device, &Recipe { reading: Some(&bad), ..recipe(profile) });
        let refused = world.proven(&made.message, &device.credential).err();
        assert_eq!(refused, Some(DropReason::Message), "{bad:?}");
    }
}

#[test]
fn a_touched_byte_anywhere_is_refused_on_both_sides() {
    let world = World::new();
    let reading = reading(None, b"21.5");
    for (name, reading) in [
        ("certificate/ephemeral", None),
        ("registered-id/xor-key", None),
        ("certificate/xor-random", None),
        ("certificate/ephemeral", Some(&reading[..])),
        ("registered-id/xor-key", Some(&reading)),
    ] {
        let profile = Profile::from_name(name).unwrap();
        let device = device(profile.mode);
        let made = world.hello(&device, &Recipe { reading, ..recipe(profile) });
        for i in 0..made.message.len() {
            let mut touched = made.message.clone();
            touched[i] ^= 1;
            let proven = world.proven(&touched, &device.credential);
            assert!(proven.is_err(), "{name}: HELLO byte {i}");
        }
        let proven = world.proven(&made.message, &device.credential).unwrap();
        let (accept, _) = world.accept(proven, true, false);
        for i in 1..accept.len() {
            let mut touched = accept.clone();
            touched[i] ^= 1;
            let read = steps::accepted(&world.gateway, &device, &made, &touched);
            assert!(read.is_none(), "{name}: ACCEPT byte {i}");
        }
    }
}

/// Where padding hides the length of a reading, another n opens; but it is another reading, and the
/// proof does not cover that.
#[test]
fn another_length_of_the_reading_is_refused_where_hello_stays_as_long() {
    let world = World::new();
    let profile = Profile::from_name("registered-id/xor-key").unwrap();
    let device = device(profile.mode);
    let reading = reading(None, &[0; 8]);
    let made = world.hello(&device, &Recipe { reading: Some(&reading), ..recipe(profile) });
    for n in 3..=40u8 {
        let mut touched = made.message.clone();
        touched[37] = n;
        let proven = world.proven(&touched, &device.credential);
        assert_eq!(proven.err(), (n != 11).then_some(DropReason::Proof), "n = {n}");
    }
}

#[test]
fn an_unknown_or_wrong_device_is_refused_after_the_same_work() {
    let world = World::new();
    let reading = reading(None, b"21.5");
    for profile in Profile::ALL {
        for reading in [None, Some(&reading[..])] {
            let device = device(profile.mode);
            let made = world.hello(&device, &Recipe { reading, ..recipe(profile) });
            let mut other = device.credential.clone();
            other.proof = match other.proof {
                Proof::Signature(_) => Proof::Signature(scalar(0x66).public_key()),
                Proof::Binder(_) => Proof::Binder(RegistrationKey([1; 32])),
            };
            assert_eq!(world.proven(&made.message, &other).err(), Some(DropReason::Proof));

            let claim = world.opened(&made.message).unwrap().claim(&world.gateway, None);
            assert_eq!(claim.verify_task().is_some(), profile.mode.has_certificate());
            assert_eq!(claim.verified(true).err(), Some(DropReason::Proof), "whatever the verdict");
        }
    }
}

/// A signature is taken with either parity of its nonce point, as a signer sends it that does not
/// tell which one it has (R26).
#[test]
fn a_proof_is_taken_with_either_s() {
    let world = World::new();
    let profile = Profile::ALL[0];
    let device = device(profile.mode);
    let (header, offer, e) = {
        let made = world.hello(&device, &recipe(profile));
        (made.header, made.offer, made.e)
    };
    let made = steps::seal(&world.gateway, &device, &recipe(profile), offer, header, e, |text| {
        let s: [u8; 32] = text[48..80].try_into().unwrap();
        text[48..80].copy_from_slice(&negated(&s));
    });
    assert!(world.proven(&made.message, &device.credential).is_ok());
}

/// n − s.
fn negated(s: &[u8; 32]) -> [u8; 32] {
    let order = [
        0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xbc,
        0xe6, 0xfa, 0xad, 0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51,
    ];
    let (mut out, mut borrow) = ([0; 32], 0);
    for i in (0..32).rev() {
        let digit = 256 + order[i] - i32::from(s[i]) - borrow;
        out[i] = u8::try_from(digit % 256).unwrap();
        borrow = i32::from(digit < 256);
    }
    out
}

#[test]
fn a_challenge_reaches_only_the_device_that_asked() {
    let world = World::new();
    let profile = Profile::from_name("registered-id/ephemeral").unwrap();
    let device = device(profile.mode);
    let made = world.hello(&device, &recipe(profile));
    let proven = world.proven(&made.message, &device.credential).unwrap();
    let message = proven.challenge_message(&[0xab; 16], 77, &[1; 16]);
    assert!(CHALLENGE_LEN < made.message.len());
    assert_eq!(made.challenge(&message), Some(([0xab; 16], 77)));
    let recipe = Recipe { challenge: Some([1; 16]), ..recipe(profile) };
    let other = world.hello(&device, &recipe);
    assert_eq!(other.challenge(&message), None);
    assert!(steps::accepted(&world.gateway, &device, &other, &message).is_none());
}
