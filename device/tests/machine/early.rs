//! The reading inside HELLO: stored or not, answered or not, it is one reading.

use duet_device::{
    Config, Device, Early, Event, Kept, Reading, SendError, Software, Store, StoreError,
    protocol::{
        message::Down,
        profile::Mode,
        reading::{EARLY_SEQUENCE, ReadingId},
        wire::Hello,
    },
};

use crate::gateway::{Peer, Said, Says, hello, next, profile};

const NAME: &str = "certificate/ephemeral";

fn sensor(early: Early) -> (Peer, Device<Software>) {
    let peer = Peer::new(Mode::Certificate);
    let mut device = peer.device(profile(NAME));
    device.set_early(early);
    (peer, device)
}

fn id_of(message: &[u8]) -> ReadingId {
    let hello = Hello::decode(message, duet_device::protocol::profile::Transport::Datagram);
    ReadingId::early(&hello.unwrap().digest)
}

/// What the gateway finds inside a HELLO: the reading's name and payload.
fn carried(peer: &Peer, message: &[u8]) -> Option<(ReadingId, bool, Vec<u8>)> {
    let proven = peer.proven(message).unwrap();
    proven.reading().map(|early| (early.id, early.again, early.payload.to_vec()))
}

#[test]
fn one_message_up_and_one_down_and_the_device_sleeps() {
    let (mut peer, mut device) = sensor(Early::Leave);
    let token = device.send_reading(0, 1, b"21.5", true).unwrap();
    device.open(0);
    let hello = hello(&mut device, 0);
    assert_eq!(carried(&peer, &hello), Some((id_of(&hello), false, b"21.5".to_vec())));
    let says = Says { stored: true, nothing_waits: true };
    let (mut accept, _) = peer.accept(&hello, says);
    assert!(!device.may_sleep(0));
    assert_eq!(device.handle_message(0, &mut accept), Ok(Event::Delivered));
    let confirmed = device.poll_confirmed().unwrap();
    assert_eq!((confirmed.token, confirmed.sequence), (token, EARLY_SEQUENCE));
    assert_eq!(confirmed.id, id_of(&hello));
    assert!(!device.is_open() && device.may_sleep(0));
    assert_eq!((next(&mut device, 0), device.poll_timeout()), (None, None));
}

#[test]
fn not_stored_is_not_lost() {
    let (mut peer, mut device) = sensor(Early::Leave);
    device.send_reading(0, 1, b"21.5", true).unwrap();
    device.open(0);
    let hello = hello(&mut device, 0);
    let (mut accept, mut held) = peer.accept(&hello, Says { stored: false, nothing_waits: true });
    assert_eq!(device.handle_message(0, &mut accept), Ok(Event::Opened));
    let said = held.said(&mut device, 0);
    let again = Some(id_of(&hello));
    let payload = b"21.5".to_vec();
    assert_eq!(said, [(0, Said::Reading { channel: 1, again, age_ms: None, payload })]);
    device.handle_message(0, &mut held.ack(0, true)).unwrap();
    assert_eq!(device.poll_confirmed().unwrap().id, id_of(&hello));
    assert!(device.may_sleep(0), "the acknowledgement said that nothing waits");
}

#[test]
fn not_stored_and_without_word_it_asks_before_it_sleeps() {
    let (mut peer, mut device) = sensor(Early::Leave);
    device.send_reading(0, 1, b"21.5", true).unwrap();
    device.open(0);
    let hello = hello(&mut device, 0);
    let (mut accept, mut held) = peer.accept(&hello, Says::default());
    device.handle_message(0, &mut accept).unwrap();
    assert_eq!(held.said(&mut device, 0).len(), 1);
    device.handle_message(0, &mut held.ack(0, false)).unwrap();
    device.poll_confirmed().unwrap();
    assert_eq!(held.said(&mut device, 0), [(1, Said::Ping)]);
    assert!(!device.may_sleep(1_999_999) && device.may_sleep(2_000_000));
    let pong = held.seal(&Down::Pong { nothing_waits: Some(1) });
    device.handle_message(0, &mut pong.clone()).unwrap();
    assert!(device.may_sleep(0));
}

#[test]
fn stored_while_something_waits_keeps_the_session_and_asks() {
    let (mut peer, mut device) = sensor(Early::Leave);
    device.send_reading(0, 1, b"21.5", true).unwrap();
    device.open(0);
    let hello = hello(&mut device, 0);
    let (mut accept, held) = peer.accept(&hello, Says { stored: true, nothing_waits: false });
    assert_eq!(device.handle_message(0, &mut accept), Ok(Event::Opened));
    assert!(device.poll_confirmed().is_some() && !device.may_sleep(0));
    assert_eq!(held.said(&mut device, 0), [(0, Said::Ping)]);
    assert!(!device.may_sleep(1_999_999) && device.may_sleep(2_000_000));
}

#[test]
fn a_challenged_reading_says_its_first_name_for_as_long_as_it_takes() {
    let (mut peer, mut device) = sensor(Early::Stay);
    device.send_reading(0, 1, b"a", true).unwrap();
    device.open(0);
    let first = hello(&mut device, 0);
    let again = Some((id_of(&first), true, b"a".to_vec()));
    let mut challenge = peer.proven(&first).unwrap().challenge_message(&[1; 16], 40, &[1; 16]);
    device.handle_message(0, &mut challenge).unwrap();
    let second = hello(&mut device, 0);
    assert_eq!(carried(&peer, &second), again);
    // Nobody answers: patience ends, and the next HELLO carries the same reading, though another waits.
    device.send_reading(0, 1, b"b", true).unwrap();
    let mut now = 0;
    let third = loop {
        now = device.poll_timeout().unwrap().max(now);
        let message = hello(&mut device, now);
        if message != second {
            break message;
        }
    };
    assert_eq!(now, 31_000_000, "five times, with pauses of 1, 2, 4, 8 and 16 s");
    assert_eq!(carried(&peer, &third), again);
    let (mut accept, held) = peer.accept(&third, Says { stored: true, nothing_waits: false });
    device.handle_message(now, &mut accept).unwrap();
    assert_eq!(device.poll_confirmed().unwrap().id, id_of(&first));
    let other = Said::Reading { channel: 1, again: None, age_ms: None, payload: b"b".to_vec() };
    assert_eq!(held.said(&mut device, now), [(0, other)]);
}

#[test]
fn a_reading_again_waits_for_the_newest_session() {
    let (mut peer, mut device) = sensor(Early::Stay);
    device.send_reading(0, 1, b"a", true).unwrap();
    device.open(0);
    let first = hello(&mut device, 0);
    let (mut accept, held) = peer.accept(&first, Says::default());
    device.handle_message(0, &mut accept).unwrap();
    // It is sent in this session, and before it is acknowledged a new handshake begins.
    assert_eq!(held.said(&mut device, 0).len(), 1);
    device.open(500_000);
    let second = hello(&mut device, 500_000);
    assert_eq!(carried(&peer, &second), Some((id_of(&first), true, b"a".to_vec())));
    // From now on it is not repeated in the older session.
    for now in [1_000_000, 1_200_000] {
        assert_eq!(next(&mut device, now), None);
    }
    assert!(device.poll_timeout().unwrap() > 1_200_000, "and nothing spins meanwhile");
    let (mut accept, held) = peer.accept(&second, Says::default());
    device.handle_message(1_200_000, &mut accept).unwrap();
    let said = held.said(&mut device, 1_200_000);
    assert!(
        matches!(&said[..], [(0, Said::Reading { again: Some(id), .. })] if *id == id_of(&first))
    );
}

#[test]
fn a_record_that_was_not_acknowledged_says_its_name_in_the_next_session() {
    let (mut peer, mut device) = sensor(Early::Never);
    device.send_reading(0, 1, b"a", true).unwrap();
    let held = peer.open(&mut device, 0);
    let (sequence, _) = held.said(&mut device, 0).remove(0);
    let token = 0;
    let id = device.reading_id(token).unwrap();
    assert_eq!(id.sequence, sequence);
    device.set_early(Early::Stay);
    device.open(10);
    let second = hello(&mut device, 10);
    assert_eq!(carried(&peer, &second), None, "the gateway could not tell it from a new one");
    let (mut accept, held) = peer.accept(&second, Says::default());
    device.handle_message(10, &mut accept).unwrap();
    let said = held.said(&mut device, 10);
    assert!(matches!(&said[..], [(0, Said::Reading { again: Some(again), .. })] if *again == id));
}

#[test]
fn readings_that_come_again_wait_for_each_other() {
    let (mut peer, mut device) = sensor(Early::Stay);
    let mut held = peer.open(&mut device, 0);
    for payload in [b"a", b"b"] {
        device.send_reading(0, 1, payload, true).unwrap();
    }
    assert_eq!(held.said(&mut device, 0).len(), 2);
    // The session is closed by the gateway before it has acknowledged them.
    let mut close = held.seal(&Down::Close);
    assert_eq!(device.handle_message(0, &mut close), Ok(Event::Closed));
    device.send_reading(0, 1, b"c", true).unwrap();
    device.open(0);
    let second = hello(&mut device, 0);
    assert_eq!(carried(&peer, &second), None, "two are to be said again first");
    let (mut accept, mut held) = peer.accept(&second, Says::default());
    device.handle_message(0, &mut accept).unwrap();
    let said = held.said(&mut device, 0);
    let what = |said: &[(u32, Said)]| -> Vec<_> {
        said.iter()
            .map(|(_, said)| match said {
                Said::Reading { again, payload, .. } => (again.is_some(), payload[0]),
                other => panic!("{other:?}"),
            })
            .collect()
    };
    assert_eq!(what(&said), [(true, b'a'), (false, b'c')]);
    device.handle_message(0, &mut held.ack(said[0].0, false)).unwrap();
    assert_eq!(what(&held.said(&mut device, 0)), [(true, b'b')]);
}

/// A store that remembers doubt.
#[derive(Default)]
struct Notebook(Option<Kept>, bool);

impl Store for &mut Notebook {
    fn load(&mut self) -> Result<Option<Kept>, StoreError> {
        Ok(self.0)
    }

    fn save(&mut self, kept: &Kept) -> Result<(), StoreError> {
        if self.1 {
            return Err(StoreError);
        }
        self.0 = Some(*kept);
        Ok(())
    }

    fn keeps_doubt(&self) -> bool {
        true
    }
}

#[test]
fn a_reading_in_doubt_outlives_a_power_cut() {
    let mut peer = Peer::new(Mode::Certificate);
    let mut notebook = Notebook::default();
    let start = |peer: &Peer| -> Config { peer.config(profile(NAME)) };
    let mut device =
        Device::<_, _>::new(Software::seeded([1; 32]), &mut notebook, start(&peer)).unwrap();
    device.set_early(Early::Stay);
    device.send_reading(0, 1, b"a", true).unwrap();
    device.open(0);
    let first = hello(&mut device, 0);
    drop(device);

    let mut device =
        Device::<_, _>::new(Software::seeded([2; 32]), &mut notebook, start(&peer)).unwrap();
    device.set_early(Early::Stay);
    assert_eq!(device.doubt(), Some(id_of(&first)));
    device.send_reading(0, 1, b"new", true).unwrap();
    device.open(0);
    let second = hello(&mut device, 0);
    assert_eq!(carried(&peer, &second), None, "one reading is in doubt at a time");
    let again = Reading {
        channel: 1,
        payload: b"a",
        confirm: true,
        measured_us: None,
        again: device.doubt(),
    };
    device.send(0, again).unwrap();
    device.open(0);
    device.close();
    device.open(0);
    let third = hello(&mut device, 0);
    assert_eq!(carried(&peer, &third), Some((id_of(&first), true, b"a".to_vec())));
    let (mut accept, _) = peer.accept(&third, Says { stored: true, nothing_waits: false });
    device.handle_message(0, &mut accept).unwrap();
    assert_eq!(device.doubt(), None);
    drop(device);

    notebook.1 = true;
    let mut device =
        Device::<_, _>::new(Software::seeded([3; 32]), &mut notebook, start(&peer)).unwrap();
    assert_eq!(device.doubt(), None);
    device.set_early(Early::Stay);
    device.send_reading(0, 1, b"c", true).unwrap();
    device.open(0);
    assert_eq!(
        device.poll_transmit(0, &mut [0; 1_200]),
        None,
        "nothing goes out that was not kept"
    );
    assert!(device.poll_failure().is_some());
}

#[test]
fn an_age_is_that_of_the_moment_of_sending() {
    let (mut peer, mut device) = sensor(Early::Never);
    let reading =
        |measured_us| Reading { channel: 1, payload: b"", confirm: true, measured_us, again: None };
    device.send(5_000_000, reading(Some(2_000_000))).unwrap();
    let held = peer.open(&mut device, 5_500_000);
    let said = held.said(&mut device, 5_500_000);
    assert!(matches!(said[..], [(0, Said::Reading { age_ms: Some(3_500), .. })]));
    // The same bytes again, for it is the same record.
    let said = held.said(&mut device, 6_500_000);
    assert!(matches!(said[..], [(0, Said::Reading { age_ms: Some(3_500), .. })]));
    for _ in 0..3 {
        device.send(0, reading(None)).unwrap();
    }
    assert_eq!(device.send(0, reading(None)), Err(SendError::Full));
    assert_eq!(device.send_reading(0, 1, &[0; 129], false), Err(SendError::TooLong));
}
