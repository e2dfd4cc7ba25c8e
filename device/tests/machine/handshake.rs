//! Both messages in every profile, whoever holds the device's key, and what bad generators do.

use std::collections::BTreeSet;

use duet_device::{
    Config, CryptoError, Device, DeviceKey, Early, Element, Error, Event, Failure, Hedge, HedgeKey,
    SetupError, Software, StoreError, Volatile,
    protocol::{
        ec::{self, Signature},
        identity::PublicKey,
        profile::{KeySource, Mode, Profile},
        reason::DropReason,
        wire::{Kind, MESSAGE_MAX},
    },
    software::{Random, WithElement},
    store::{Kept, Store},
};

use crate::gateway::{Peer, Said, Says, hello, next, profile, scalar};

#[test]
fn every_profile_opens_with_two_messages_and_carries_records() {
    for profile in Profile::ALL {
        let mut peer = Peer::new(profile.mode);
        let mut device = peer.device(profile);
        device.send_reading(0, 5, b"21.5", true).unwrap();
        let mut held = peer.open(&mut device, 0);
        let said = held.said(&mut device, 0);
        let reading =
            Said::Reading { channel: 5, again: None, age_ms: None, payload: b"21.5".to_vec() };
        assert_eq!(said, [(0, reading)], "{}", profile.name());
        let mut ack = held.ack(0, false);
        assert_eq!(device.handle_message(0, &mut ack), Ok(Event::Confirmed));
        let confirmed = device.poll_confirmed().unwrap();
        assert_eq!((confirmed.sequence, confirmed.session), (0, held.id));
        assert_eq!(
            device.handle_message(0, &mut held.ack(0, false)[..10]),
            refused(DropReason::Malformed)
        );
    }
}

fn refused<'m>(reason: DropReason) -> Result<Event<'m>, Error> {
    Err(Error::Discarded(reason))
}

#[test]
fn a_touched_accept_changes_nothing() {
    for name in ["certificate/ephemeral", "certificate/xor-key", "registered-id/client-random"] {
        let mut peer = Peer::new(profile(name).mode);
        let mut device = peer.device(profile(name));
        device.open(0);
        let hello = hello(&mut device, 0);
        let (accept, _) = peer.accept(&hello, Says::default());
        for at in 1..accept.len() {
            let mut touched = accept.clone();
            touched[at] ^= 1;
            assert!(device.handle_message(0, &mut touched).is_err(), "{name}: byte {at}");
            assert!(!device.is_open());
        }
        assert_eq!(device.handle_message(0, &mut accept.clone()), Ok(Event::Opened), "{name}");
        assert_eq!(device.handle_message(0, &mut accept.clone()), refused(DropReason::Unexpected));
    }
}

/// An element that only signs and agrees; each can be made to fail.
struct Chip {
    signs: bool,
    normalised: bool,
}

impl Element for Chip {
    fn sign(&mut self, digest: &[u8; 32]) -> Result<Signature, CryptoError> {
        if !self.signs {
            return Err(CryptoError::Failed);
        }
        let mut signature = ec::sign(&scalar(0x22), digest, &[0; 32]).unwrap();
        if !self.normalised {
            // The other signature of the same nonce: n − s.
            let order = [
                0xffff_ffff,
                0x0000_0000,
                0xffff_ffff,
                0xffff_ffff,
                0xbce6_faad,
                0xa717_9e84,
                0xf3b9_cac2,
                0xfc63_2551u32,
            ];
            let mut borrow = 0;
            for (digit, n) in signature[32..].rchunks_mut(4).zip(order.into_iter().rev()) {
                let value = i64::from(u32::from_be_bytes((&*digit).try_into().unwrap()));
                let rest = i64::from(n) - value - borrow;
                borrow = i64::from(rest < 0);
                let rest = u32::try_from(rest & 0xffff_ffff).unwrap();
                digit.copy_from_slice(&rest.to_be_bytes());
            }
        }
        Ok(signature)
    }

    fn agree(&mut self, point: &PublicKey) -> Result<[u8; 32], CryptoError> {
        Ok(ec::agree(&scalar(0x22), &point.x()).ok_or(CryptoError::Failed)?.shared.0)
    }

    fn hedge(&mut self, salt: &[u8; 32]) -> Result<[u8; 32], CryptoError> {
        Ok(*salt)
    }
}

fn external(peer: &Peer, profile: Profile, hedge: Hedge) -> Config {
    let mut config = peer.config(profile);
    config.identity.key = DeviceKey::External { public: scalar(0x22).public_key(), hedge };
    config
}

#[test]
fn a_key_that_nobody_can_read_does_for_every_profile_with_a_certificate() {
    for profile in Profile::ALL.into_iter().filter(|profile| profile.mode.has_certificate()) {
        for (hedge, normalised) in [(Hedge::Key(HedgeKey([3; 32])), true), (Hedge::Element, false)]
        {
            let mut peer = Peer::new(profile.mode);
            let chip = Chip { signs: true, normalised };
            let crypto = WithElement { crypto: Software::seeded([4; 32]), element: chip };
            let mut device =
                Device::<_>::new(crypto, Volatile, external(&peer, profile, hedge)).unwrap();
            let held = peer.open(&mut device, 0);
            assert_eq!(held.said(&mut device, 0), [(0, Said::Ping)], "{}", profile.name());
        }
    }
}

#[test]
fn an_element_that_fails_is_asked_again_later() {
    let peer = Peer::new(Mode::Certificate);
    let chip = Chip { signs: false, normalised: true };
    let crypto = WithElement { crypto: Software::seeded([4; 32]), element: chip };
    let config = external(&peer, profile("certificate/ephemeral"), Hedge::Element);
    let mut device: Device<_> = Device::new(crypto, Volatile, config).unwrap();
    device.open(0);
    let mut out = [0; MESSAGE_MAX];
    assert_eq!(device.poll_transmit(0, &mut out), None);
    assert_eq!(device.poll_failure(), Some(Failure::Crypto(CryptoError::Failed)));
    let due = device.poll_timeout().unwrap();
    assert!((500_000..5_000_000).contains(&due), "not at once, and not never: {due}");
    device.crypto().element.signs = true;
    assert!(peer.proven(&hello(&mut device, due)).is_ok());
}

#[test]
fn a_key_of_the_wrong_kind_makes_no_device() {
    let peer = Peer::new(Mode::Certificate);
    let config = peer.config(profile("registered-id/ephemeral"));
    let device = Device::<_>::new(Software::seeded([1; 32]), Volatile, config);
    assert_eq!(device.err(), Some(SetupError::KeyKind));
}

/// The worst of generators.
struct Constant;

impl Random for Constant {
    fn fill(&mut self, out: &mut [u8]) -> Result<(), CryptoError> {
        out.fill(0x5a);
        Ok(())
    }
}

#[test]
fn a_generator_that_returns_constants_reuses_no_ephemeral_key() {
    for name in ["certificate/ephemeral", "registered-id/xor-random"] {
        let mut points = BTreeSet::new();
        let mut made = 0;
        // Several lives of a device that keeps no counter either: what HELLO carries differs.
        for life in 0u8..4 {
            let peer = Peer::new(profile(name).mode);
            let config = peer.config(profile(name));
            let mut device = Device::<_>::new(Software::new(Constant), Volatile, config).unwrap();
            device.set_early(duet_device::Early::Stay);
            device.send_reading(0, 1, &[life], true).unwrap();
            for round in 0..4 {
                device.close();
                device.open(0);
                let first = hello(&mut device, 0);
                let proven = peer.proven(&first).unwrap();
                let mut challenge = proven.challenge_message(&[life ^ round; 16], 0, &[round; 16]);
                device.handle_message(0, &mut challenge).unwrap();
                for message in [first, hello(&mut device, 0)] {
                    points.insert(message[4..36].to_vec());
                    made += 1;
                }
            }
        }
        assert_eq!(points.len(), made, "{name}: one E for two texts");
    }
}

#[test]
fn a_challenge_makes_a_new_hello_above_the_mark() {
    let mut peer = Peer::new(Mode::RegisteredId);
    let mut device = peer.device(profile("registered-id/ephemeral"));
    device.open(0);
    let first = hello(&mut device, 0);
    let proven = peer.proven(&first).unwrap();
    let mut beyond = proven.challenge_message(&[0xab; 16], (1 << 62) + 1, &[1; 16]);
    assert_eq!(device.handle_message(0, &mut beyond), refused(DropReason::Mark));
    let mut challenge = proven.challenge_message(&[0xab; 16], 77, &[1; 16]);
    device.handle_message(0, &mut challenge).unwrap();
    let second = hello(&mut device, 0);
    let proven = peer.proven(&second).unwrap();
    assert_eq!((proven.fresh(), proven.challenge()), (78, Some(&[0xab; 16])));
    let (mut accept, _) = peer.accept(&second, Says::default());
    assert_eq!(device.handle_message(0, &mut accept), Ok(Event::Opened));
    assert_eq!(device.fresh(), 79);
}

/// A balancer that sends each answer to another gateway does not keep the device busy (R60).
#[test]
fn the_fourth_challenge_in_a_row_is_answered_after_a_pause() {
    let mut peer = Peer::new(Mode::RegisteredId);
    let mut device = peer.device(profile("registered-id/ephemeral"));
    device.open(0);
    let mut now = 0;
    let mut waits = Vec::new();
    let mut last = hello(&mut device, now);
    for round in 1u8..=6 {
        let proven = peer.proven(&last).unwrap();
        let mut challenge = proven.challenge_message(&[round; 16], 0, &[round; 16]);
        device.handle_message(now, &mut challenge).unwrap();
        let due = device.poll_timeout().unwrap();
        waits.push(due - now);
        now = due;
        last = hello(&mut device, now);
        assert_eq!(peer.proven(&last).unwrap().challenge(), Some(&[round; 16]));
    }
    assert_eq!(waits, [0, 0, 0, 1_000_000, 2_000_000, 4_000_000]);
    // An ACCEPT ends the row.
    let (mut accept, _) = peer.accept(&last, Says::default());
    assert_eq!(device.handle_message(now, &mut accept), Ok(Event::Opened));
    device.open(now);
    let proven = peer.proven(&hello(&mut device, now)).unwrap();
    let mut challenge = proven.challenge_message(&[9; 16], 0, &[9; 16]);
    device.handle_message(now, &mut challenge).unwrap();
    let _ = hello(&mut device, now);
}

/// A store that fails when it is told to.
#[derive(Default)]
struct Broken {
    kept: Option<Kept>,
    fails: bool,
}

impl Store for &mut Broken {
    fn load(&mut self) -> Result<Option<Kept>, StoreError> {
        Ok(self.kept)
    }

    fn save(&mut self, kept: &Kept) -> Result<(), StoreError> {
        if self.fails {
            return Err(StoreError);
        }
        self.kept = Some(*kept);
        Ok(())
    }
}
#[test]
fn without_a_place_for_the_counter_no_hello_goes_out() {
    let peer = Peer::new(Mode::RegisteredId);
    let mut store = Broken { kept: None, fails: true };
    let config = peer.config(profile("registered-id/ephemeral"));
    let mut device = Device::<_, _>::new(Software::seeded([1; 32]), &mut store, config).unwrap();
    device.open(0);
    assert_eq!(device.poll_transmit(0, &mut [0; MESSAGE_MAX]), None);
    assert_eq!(device.poll_failure(), Some(Failure::Store(StoreError)));
    drop(device);
    store.fails = false;
    for life in 0..3 {
        let config = peer.config(profile("registered-id/ephemeral"));
        let mut device =
            Device::<_, _>::new(Software::seeded([1; 32]), &mut store, config).unwrap();
        device.open(0);
        let fresh = peer.proven(&hello(&mut device, 0)).unwrap().fresh();
        assert_eq!(fresh, 1 + 256 * life, "each life begins above what the last had reserved");
    }
}

#[test]
fn a_buffer_that_is_too_short_is_told_and_loses_nothing() {
    let peer = Peer::new(Mode::RegisteredId);
    let mut device = peer.device(profile("registered-id/ephemeral"));
    device.open(0);
    let needed = Device::<Software>::TRANSMIT_MAX;
    assert_eq!(device.poll_transmit(0, &mut vec![0; needed - 1]), None);
    assert_eq!(device.poll_failure(), Some(Failure::Buffer));
    let len = device.poll_transmit(0, &mut vec![0; needed]).unwrap();
    assert!(len <= needed);
}

#[test]
fn the_longest_hello_fits_the_buffer_in_every_profile() {
    for profile in Profile::ALL {
        let peer = Peer::new(profile.mode);
        let mut device = peer.device(profile);
        device.set_early(duet_device::Early::Stay);
        let reading = duet_device::Reading {
            channel: 1,
            payload: &[1; 128],
            confirm: true,
            measured_us: Some(0),
            again: None,
        };
        device.send(0, reading).unwrap();
        device.open(0);
        let first = hello(&mut device, 0);
        let mut challenge = peer.proven(&first).unwrap().challenge_message(&[1; 16], 9, &[1; 16]);
        device.handle_message(0, &mut challenge).unwrap();
        let longest = hello(&mut device, 0);
        let proven = peer.proven(&longest).unwrap();
        assert!(proven.reading().is_some_and(|early| early.again && early.payload.len() == 128));
        let digest = duet_device::Crypto::sha256(device.crypto(), &[&longest]).unwrap();
        let retry = duet_device::protocol::wire::Retry {
            echo: *digest.first_chunk().unwrap(),
            wait_10ms: 1,
            cookie: [3; 16],
        };
        assert_eq!(device.handle_message(0, &mut retry.encode()), Ok(Event::Nothing));
        assert_eq!(next(&mut device, 0), None, "not before the wait is over");
        let len = next(&mut device, 10_000).unwrap().len();
        assert_eq!(len, longest.len() + 16);
        assert!(len <= Device::<Software>::TRANSMIT_MAX);
        let has_random = !matches!(profile.source, KeySource::Ephemeral);
        if profile.mode.has_certificate() && has_random {
            assert_eq!(len, Device::<Software>::TRANSMIT_MAX, "{}", profile.name());
        }
        assert_eq!(Kind::of(&longest), Ok(Kind::Hello));
    }
}

#[test]
fn a_device_of_the_longest_payloads_needs_no_buffer_longer_than_a_message() {
    let mut peer = Peer::new(Mode::RegisteredId);
    let config = peer.config(profile("registered-id/ephemeral"));
    let software = Software::seeded([4; 32]);
    let mut device: Device<_, _, 2, 1_024> = Device::new(software, Volatile, config).unwrap();
    device.send_reading(0, 1, &[1; 1_024], true).unwrap();
    device.open(0);
    let mut out = [0; MESSAGE_MAX];
    let len = device.poll_transmit(0, &mut out).unwrap();
    let (mut accept, held) = peer.accept(&out[..len], Says::default());
    device.handle_message(0, &mut accept).unwrap();
    let len = device.poll_transmit(0, &mut out).unwrap();
    assert!(
        matches!(held.read(&out[..len]), (0, Said::Reading { payload, .. }) if payload.len() == 1_024)
    );
}

/// A gateway with another certificate, that knows the device and all that it says, answers in the place of its own one: the
/// device refuses, says why, and goes on with the same HELLO, counter and reading.
#[test]
fn another_gateways_answer_is_refused_and_costs_nothing() {
    for profile in Profile::ALL {
        let mut peer = Peer::new(profile.mode);
        let mut foreign = Peer::foreign(profile.mode);
        let mut device = peer.device(profile);
        let token = device.send_reading(0, 5, b"21.5", true).unwrap();
        device.open(0);
        let sent = hello(&mut device, 0);
        // It cannot open what was sealed to another gateway.
        assert!(foreign.proven(&sent).is_err(), "{}", profile.name());
        // What it says to a HELLO of the same device that was sealed to it is no answer to this one.
        let mut other = foreign.device(profile);
        other.open(0);
        let mut answers = vec![foreign.accept(&hello(&mut other, 0), Says::default()).0];
        // Nor is a good answer of the own gateway's to another HELLO.
        let mut again = peer.device(profile);
        again.send_reading(0, 5, b"22.5", true).unwrap();
        again.set_early(Early::Stay);
        again.open(0);
        answers.push(peer.accept(&hello(&mut again, 0), Says::default()).0);
        let fresh = device.fresh();
        for answer in &mut answers {
            let refusal = device.handle_message(0, answer);
            assert_eq!(refusal, refused(DropReason::AcceptOpen), "{}", profile.name());
            assert_eq!(
                (device.is_open(), device.fresh(), next(&mut device, 0)),
                (false, fresh, None)
            );
        }
        assert_eq!(hello(&mut device, 1_000_000), sent, "the same bytes once more");
        let (mut accept, mut held) = peer.accept(&sent, Says::default());
        assert_eq!(device.handle_message(1_000_000, &mut accept), Ok(Event::Opened));
        assert_eq!(held.said(&mut device, 1_000_000).len(), 1);
        let mut ack = held.ack(0, false);
        assert_eq!(device.handle_message(1_000_000, &mut ack), Ok(Event::Confirmed));
        assert_eq!(device.poll_confirmed().map(|it| it.token), Some(token));
    }
}
