//! Hellos that no session came of, or one that nobody confirmed: nothing of them is left either, whatever they were met with.

use std::io::Write as _;
use std::net::{TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use duet_device::{Config, Device, DeviceKey, Identity, Software};
use duet_protocol::ec::SecretScalar;
use duet_protocol::identity::{Credential, RegistrationKey};
use duet_protocol::profile::{Profile, Transport};
use duet_protocol::wire::{Kind, MESSAGE_MAX};

use super::secrets::{self, Key, Needles, Sides};
use super::{Running, credential, registration_key, search, seed, start};

/// What is made of a HELLO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Its counter is out of reach: CHALLENGE.
    Challenged,
    /// It was changed on the way.
    Damaged,
    /// Its device is not registered for the key source.
    NotAllowed,
    /// Its stream is gone before its answer.
    BrokenOff,
    /// It draws ACCEPT, from two addresses, and no record follows.
    Unconfirmed,
}

const FATES: [Fate; 5] =
    [Fate::Challenged, Fate::Damaged, Fate::NotAllowed, Fate::BrokenOff, Fate::Unconfirmed];

/// A HELLO of this device, and what it rests on.
fn hello<'a>(
    running: &'a Running,
    number: usize,
    profile: Profile,
    life: u64,
    fresh: u64,
    transport: Transport,
) -> (Vec<u8>, Sides<'a>) {
    let (device_key, der) = &running.devices[number];
    let (key, public) = match device_key {
        Key::Private(secret) => {
            let secret = SecretScalar::from_bytes(secret.expose()).unwrap();
            let public = secret.public_key();
            (DeviceKey::Private(secret), Some(public))
        }
        Key::Registration(_) => {
            (DeviceKey::Registration(RegistrationKey(registration_key(number))), None)
        }
    };
    let Credential { id, fingerprint, .. } = credential(number, der, public);
    let identity = Identity { id, fingerprint, key };
    let gateway = running.gateway;
    let config = Config { identity, gateway, profile, transport, fresh };
    let mut device = Device::<Software>::seeded(config, seed(number, life)).unwrap();
    device.open(0);
    let mut out = [0; MESSAGE_MAX];
    let len = device.poll_transmit(0, &mut out).unwrap();
    let sides = Sides {
        profile,
        gateway: &running.gateway,
        gateway_secret: &running.secret,
        device: fingerprint,
        device_key,
        seed: seed(number, life),
    };
    (out[..len].to_vec(), sides)
}

fn named(fate: Fate, profile: Profile, needles: Needles) -> Needles {
    let name = profile.name();
    needles.into_iter().map(|(what, bytes)| (format!("{fate:?}, {name}: {what}"), bytes)).collect()
}

/// Sends a HELLO to its fate; what must not be left of it.
fn send(running: &Running, fate: Fate, number: usize) -> Needles {
    let own = Profile::ALL[number];
    let other = |one: &&Profile| one.mode == own.mode && one.source != own.source;
    let profile = match fate {
        Fate::NotAllowed => *Profile::ALL.iter().find(other).unwrap(),
        _ => own,
    };
    let transport = if fate == Fate::BrokenOff { Transport::Stream } else { Transport::Datagram };
    let life = 100 + fate as u64;
    // Those with a greater counter replace those that wait for their record.
    let fresh = if fate == Fate::Challenged { 1 << 60 } else { 1 + fate as u64 };
    let (mut sent, sides) = hello(running, number, profile, life, fresh, transport);
    let (mut needles, ..) = secrets::of_hello(&sides, &sent);
    if fate == Fate::BrokenOff {
        let mut stream = TcpStream::connect(running.address).unwrap();
        let len = u16::try_from(sent.len()).unwrap().to_be_bytes();
        stream.write_all(&[&len[..], &sent].concat()).unwrap();
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
        return named(fate, profile, needles);
    }
    let sockets = [(), ()].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
    let hello = sent.clone();
    if fate == Fate::Damaged {
        *sent.last_mut().unwrap() ^= 1;
    }
    let mut answer = [0; MESSAGE_MAX];
    for socket in &sockets {
        socket.connect(running.address).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        socket.send(&sent).unwrap();
        let expected = match fate {
            Fate::Challenged => Kind::Challenge,
            Fate::Unconfirmed => Kind::Accept,
            _ => continue,
        };
        let len = socket.recv(&mut answer).unwrap();
        assert_eq!(Kind::of(&answer), Ok(expected));
        if fate == Fate::Unconfirmed {
            needles = secrets::of_handshake(&sides, &hello, &answer[..len]);
        }
    }
    named(fate, profile, needles)
}

#[test]
fn a_gateway_holds_nothing_of_hellos_that_came_to_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let running = start(&dir.path().join("state"));
    let mut needles = Needles::new();
    for number in 0..Profile::ALL.len() {
        FATES.iter().for_each(|fate| needles.extend(send(&running, *fate, number)));
    }
    // The control: a session that waits for its record is there, with its keys.
    let waits = |hit: &String| hit.starts_with("Unconfirmed") && hit.contains("up round key 0 ");
    assert!(search(&running.process, &needles).iter().any(waits), "the search must find them");
    // Five seconds, and what a machine under load adds.
    let end = Instant::now() + Duration::from_secs(30);
    let mut left = search(&running.process, &needles);
    while !left.is_empty() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(500));
        left = search(&running.process, &needles);
    }
    assert!(left.is_empty(), "\n{}", left.join("\n"));
}
