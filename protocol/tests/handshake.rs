//! The two messages, end to end: every profile, over both transports, answered one task at a time.
#![allow(clippy::unwrap_used, reason = "a test's helpers may")]

use duet_protocol::{
    ec::{self, SecretScalar},
    identity::{Credential, DeviceId, Fingerprint, Gateway, Proof, PublicKey, RegistrationKey},
    initiator::{DeviceKey, Freshness, Identity, Start, Waiting},
    profile::{Mode, Offer, Profile, Transport},
    reason::DropReason,
    record::Cipher,
    responder::{Opened, Proven},
    schedule::{Grant, SessionKeys},
    wire::{DownHeader, Hello, SessionId, UpHeader},
};

struct World {
    secret: SecretScalar,
    gateway: Gateway,
}

fn scalar(byte: u8) -> SecretScalar {
    SecretScalar::from_bytes(&[byte; 32]).unwrap()
}

impl World {
    fn new() -> Self {
        let secret = scalar(0x51);
        let fingerprint = Fingerprint::of_certificate(b"gateway certificate");
        let gateway = Gateway { key_id: 3, fingerprint, key: secret.public_key() };
        Self { secret, gateway }
    }

    fn proven(&self, message: &[u8], credential: &Credential) -> Result<Proven, DropReason> {
        let hello = Hello::decode(message, Transport::Datagram)?;
        let agreed = ec::agree(&self.secret, hello.ephemeral_x()).ok_or(DropReason::Point)?;
        let opened = Opened::new(hello, &self.gateway, agreed.point, &agreed.shared)?;
        assert_eq!(opened.id(), credential.id);
        let claim = opened.claim(&self.gateway, Some(credential));
        let verdict = claim.verify_task().is_none_or(ec::verify);
        claim.verified(verdict)
    }

    fn accept(&self, proven: Proven) -> (Vec<u8>, SessionKeys) {
        let grant = Grant {
            session: SessionId(0x0a0b_0c0d),
            lifetime_s: 3_600,
            stored: false,
            nothing_waits: false,
            reset_token: [8; 12],
        };
        let responding = proven.respond(grant, scalar(0x33), [0x44; 48]);
        let answer = responding.task().map(|task| ec::encapsulate(task).unwrap());
        let signing = responding.agreed(answer);
        let signature = signing
            .digest()
            .map_or([0; 64], |digest| ec::sign(&self.secret, &digest, &[5; 32]).unwrap());
        let (accept, keys) = signing.signed(&signature);
        (accept.as_slice().to_vec(), keys)
    }
}

fn device(mode: Mode) -> (Identity, Credential, Option<PublicKey>) {
    let id = DeviceId([7; 8]);
    match mode {
        Mode::RegisteredId => {
            let key = RegistrationKey([9; 32]);
            let credential = Credential::registered_id(id, key.clone());
            let key = DeviceKey::Registration(key);
            (Identity { id, fingerprint: credential.fingerprint, key }, credential, None)
        }
        Mode::Certificate | Mode::RegisteredCertificate => {
            let private = scalar(0x22);
            let public = private.public_key();
            let credential = if mode == Mode::Certificate {
                Credential::certificate(b"device certificate", public)
            } else {
                Credential::registered_certificate(id, b"device certificate", public)
            };
            let (id, fingerprint) = (credential.id, credential.fingerprint);
            (
                Identity { id, fingerprint, key: DeviceKey::Private(private) },
                credential,
                Some(public),
            )
        }
    }
}

fn hello(
    world: &World,
    identity: &Identity,
    profile: Profile,
    challenge: Option<[u8; 16]>,
) -> Waiting {
    let offer = Offer::new(profile, Transport::Datagram);
    let freshness = Freshness { fresh: 42, challenge, random: [1; 32], secret: [2; 16] };
    let start = Start::new(identity, &world.gateway, offer, freshness);
    let answer = ec::encapsulate(start.task()).unwrap();
    let proving = start.encapsulated(&answer);
    let signature = proving.digest().map_or([0; 64], |digest| {
        let DeviceKey::Private(private) = &identity.key else { panic!("signs without a key") };
        ec::sign(private, &digest, &[6; 32]).unwrap()
    });
    proving.signed(&signature)
}

fn finish(
    waiting: &Waiting,
    identity: &Identity,
    public: Option<&PublicKey>,
    accept: &[u8],
) -> Result<(Grant, SessionKeys), DropReason> {
    let accepting = waiting.accept(accept)?;
    let answer = accepting.task(&identity.key).map(|(scalar, x)| ec::agree(scalar, x));
    let answer = match answer {
        Some(None) => return Err(DropReason::Point),
        Some(answer) => answer,
        None => None,
    };
    let answered = accepting.agreed(answer.as_ref(), public)?;
    let verdict = answered.verify_task().is_none_or(ec::verify);
    answered.verified(verdict)
}

#[test]
fn every_profile_opens_with_two_messages_and_carries_records_both_ways() {
    let world = World::new();
    for profile in Profile::ALL {
        for challenge in [None, Some([0xcc; 16])] {
            let (identity, credential, public) = device(profile.mode);
            let waiting = hello(&world, &identity, profile, challenge);
            let proven = world.proven(waiting.hello(), &credential).unwrap();
            assert_eq!(proven.fresh(), 42);
            assert_eq!(proven.challenge().copied(), challenge);
            let (accept, gateway_keys) = world.accept(proven);
            assert!(accept.len() <= waiting.hello().len(), "{}", profile.name());
            let (grant, device_keys) =
                finish(&waiting, &identity, public.as_ref(), &accept).unwrap();
            assert_eq!((grant.session, grant.lifetime_s), (SessionId(0x0a0b_0c0d), 3_600));
            assert_eq!(grant.reset_token, [8; 12]);

            let header = UpHeader { session: grant.session, sequence: 0 };
            let mut record = [0; 64];
            let len = Cipher::new(&device_keys.up).seal_up(header, b"21.5", &mut record);
            let opened = Cipher::new(&gateway_keys.up).open_up(header, &mut record[..len]);
            assert_eq!(opened.unwrap(), b"21.5");
            let header = DownHeader { sequence: 0 };
            let down = Cipher::new(&gateway_keys.down);
            let len = down.seal_down(header, grant.session, b"on", &mut record);
            let opened =
                Cipher::new(&device_keys.down).open_down(header, grant.session, &mut record[..len]);
            assert_eq!(opened.unwrap(), b"on");
        }
    }
}

#[test]
fn a_touched_byte_anywhere_is_refused_on_both_sides() {
    let world = World::new();
    for name in ["certificate/ephemeral", "registered-id/xor-key", "certificate/xor-random"] {
        let profile = Profile::from_name(name).unwrap();
        let (identity, credential, public) = device(profile.mode);
        let waiting = hello(&world, &identity, profile, None);
        for i in 0..waiting.hello().len() {
            let mut touched = waiting.hello().to_vec();
            touched[i] ^= 1;
            assert!(world.proven(&touched, &credential).is_err(), "{name}: HELLO byte {i}");
        }
        let (accept, _) = world.accept(world.proven(waiting.hello(), &credential).unwrap());
        for i in 1..accept.len() {
            let mut touched = accept.clone();
            touched[i] ^= 1;
            let read = finish(&waiting, &identity, public.as_ref(), &touched);
            assert!(read.is_err(), "{name}: ACCEPT byte {i}");
        }
    }
}

#[test]
fn an_unknown_or_wrong_device_is_refused_after_the_same_work() {
    let world = World::new();
    for profile in Profile::ALL {
        let (identity, credential, _) = device(profile.mode);
        let waiting = hello(&world, &identity, profile, None);
        let mut other = credential.clone();
        other.proof = match other.proof {
            Proof::Signature(_) => Proof::Signature(scalar(0x66).public_key()),
            Proof::Binder(_) => Proof::Binder(RegistrationKey([1; 32])),
        };
        assert_eq!(world.proven(waiting.hello(), &other).err(), Some(DropReason::Proof));

        let decoded = Hello::decode(waiting.hello(), Transport::Datagram).unwrap();
        let agreed = ec::agree(&world.secret, decoded.ephemeral_x()).unwrap();
        let opened = Opened::new(decoded, &world.gateway, agreed.point, &agreed.shared).unwrap();
        let claim = opened.claim(&world.gateway, None);
        assert_eq!(claim.verify_task().is_some(), profile.mode.has_certificate());
        assert_eq!(claim.verified(true).err(), Some(DropReason::Proof), "whatever the verdict");
    }
}

#[test]
fn a_challenge_reaches_only_the_device_that_asked() {
    let world = World::new();
    let profile = Profile::from_name("registered-id/ephemeral").unwrap();
    let (identity, credential, _) = device(profile.mode);
    let waiting = hello(&world, &identity, profile, None);
    let proven = world.proven(waiting.hello(), &credential).unwrap();
    let message = proven.challenge_message(&[0xab; 16], 77, &[1; 16]);
    assert!(message.len() < waiting.hello().len());
    assert_eq!(waiting.challenge(&message), Ok(([0xab; 16], 77)));
    let other = hello(&world, &identity, profile, Some([1; 16]));
    assert_eq!(other.challenge(&message), Err(DropReason::Unexpected));
    assert!(other.accept(&message).is_err());
}
