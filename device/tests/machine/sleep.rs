//! "Nothing waits for you": what a device believes before it sleeps.

use duet_device::{
    Device, Event, Software,
    protocol::{message::Down, profile::Mode},
};

use crate::gateway::{Held, Peer, Said, Says, hello, profile};

fn confirmed() -> (Device<Software>, Held, u32) {
    let mut peer = Peer::new(Mode::RegisteredId);
    let mut device = peer.device(profile("registered-id/ephemeral"));
    device.send_reading(0, 1, b"x", true).unwrap();
    let held = peer.open(&mut device, 0);
    let sequence = held.said(&mut device, 0)[0].0;
    (device, held, sequence)
}

#[test]
fn an_acknowledgement_of_the_newest_record_lets_it_sleep_at_once() {
    let (mut device, mut held, sequence) = confirmed();
    assert!(!device.may_sleep(0));
    device.handle_message(0, &mut held.ack(sequence, true)).unwrap();
    device.poll_confirmed().unwrap();
    assert!(device.may_sleep(0));
    device.rest(0);
    assert_eq!(held.said(&mut device, 0), [], "there is nothing to ask");
    // Whoever sends again wants to hear again.
    device.send_reading(0, 1, b"y", true).unwrap();
    assert!(!device.may_sleep(0));
}

#[test]
fn a_flag_for_an_older_record_says_nothing_of_the_newest() {
    let (mut device, mut held, first) = confirmed();
    device.send_reading(0, 1, b"y", true).unwrap();
    let second = held.said(&mut device, 0)[0].0;
    device.handle_message(0, &mut held.ack(first, true)).unwrap();
    device.handle_message(0, &mut held.ack(second, false)).unwrap();
    while device.poll_confirmed().is_some() {}
    assert!(!device.may_sleep(0));
    // It asks, and believes the pong that names this very ping, if it is the newest record.
    device.rest(0);
    let [(ping, Said::Ping)] = held.said(&mut device, 0)[..] else { panic!("no ping") };
    let other = held.seal(&Down::Pong { nothing_waits: Some(ping - 1) });
    assert_eq!(device.handle_message(0, &mut other.clone()), Ok(Event::Nothing));
    assert!(!device.may_sleep(0));
    device.rest(0);
    let [(ping, Said::Ping)] = held.said(&mut device, 0)[..] else { panic!("no ping") };
    let late = held.seal_at(90, &Down::Pong { nothing_waits: None });
    device.handle_message(0, &mut late.clone()).unwrap();
    device.rest(0);
    let _ = held.said(&mut device, 0);
    let named = held.seal_at(50, &Down::Pong { nothing_waits: Some(ping + 1) });
    device.handle_message(0, &mut named.clone()).unwrap();
    assert!(!device.may_sleep(0), "older than a record that it has heard");
}

#[test]
fn without_word_it_sleeps_after_two_seconds_or_twice_the_longest_answer() {
    let (mut device, mut held, sequence) = confirmed();
    device.handle_message(1_700_000, &mut held.ack(sequence, false)).unwrap();
    device.poll_confirmed().unwrap();
    device.rest(2_000_000);
    assert_eq!(device.poll_timeout(), Some(2_000_000));
    assert_eq!(held.said(&mut device, 2_000_000).len(), 1);
    assert!(!device.may_sleep(2_000_000 + 3_399_999) && device.may_sleep(2_000_000 + 3_400_000));
    // A command that comes meanwhile keeps it awake until its result is recorded.
    device.handle_message(2_000_000, &mut held.command(1)).unwrap();
    assert!(!device.may_sleep(60_000_000));
    device.send_result(1, 0, b"");
    assert!(!device.may_sleep(60_000_000));
    let said = held.said(&mut device, 2_100_000);
    let result = said.iter().find(|(_, said)| matches!(said, Said::Result { .. })).unwrap().0;
    device.handle_message(2_100_000, &mut held.ack(result, true)).unwrap();
    assert!(device.may_sleep(2_100_000), "done, and nothing more waits, in one record");
}

/// It asked on waking, and its HELLO went astray: what it was told since then is too little to go by.
#[test]
fn the_time_of_a_handshake_is_not_the_time_of_an_answer() {
    let mut peer = Peer::new(Mode::RegisteredId);
    let mut device = peer.device(profile("registered-id/ephemeral"));
    device.send_reading(0, 1, b"x", true).unwrap();
    device.open(0);
    device.rest(0);
    let hello = hello(&mut device, 0);
    let (mut accept, mut held) = peer.accept(&hello, Says::default());
    device.handle_message(3_000_000, &mut accept).unwrap();
    let sequence = held.said(&mut device, 3_000_000)[0].0;
    // A command follows this acknowledgement.
    device.handle_message(3_100_000, &mut held.ack(sequence, false)).unwrap();
    device.poll_confirmed().unwrap();
    assert!(!device.may_sleep(4_999_999) && device.may_sleep(5_000_000));
}
