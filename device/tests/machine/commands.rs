//! Commands are carried out once, in their order, and their results told until they are recorded.

use duet_device::{
    Config, Device, Event, Kept, Software, Store, StoreError, protocol::message::Down,
    protocol::profile::Mode, store::INTERRUPTED,
};

use crate::gateway::{Held, Peer, Said, hello, profile};

fn opened() -> (Peer, Device<Software>, Held) {
    let mut peer = Peer::new(Mode::RegisteredId);
    let mut device = peer.device(profile("registered-id/ephemeral"));
    let held = peer.open(&mut device, 0);
    assert_eq!(held.said(&mut device, 0), [(0, Said::Ping)]);
    (peer, device, held)
}

fn result(command: u32, status: u8, payload: &[u8]) -> Said {
    Said::Result { command, status, payload: payload.to_vec() }
}

#[test]
fn only_a_higher_number_is_carried_out() {
    let (_, mut device, mut held) = opened();
    device.handle_message(0, &mut held.seal(&Down::Pong { nothing_waits: None })).unwrap();
    for number in [1, 2] {
        let told =
            device.handle_message(0, &mut held.command(number)).map(|event| format!("{event:?}"));
        assert!(told.unwrap().contains("Command"));
        // While it is being carried out a repetition draws nothing.
        assert_eq!(device.handle_message(0, &mut held.command(number)), Ok(Event::Nothing));
        assert_eq!(held.said(&mut device, 0), []);
        device.send_result(number, 0, b"done");
        let said = held.said(&mut device, 0);
        assert_eq!(said.len(), 1);
        assert_eq!(said[0].1, result(number, 0, b"done"));
        assert_eq!(device.handle_message(0, &mut held.ack(said[0].0, false)), Ok(Event::Confirmed));
    }
    // A late copy of the first, which a memory of one number by equality would carry out again.
    assert_eq!(device.handle_message(0, &mut held.command(1)), Ok(Event::Nothing));
    assert_eq!(held.said(&mut device, 0), []);
    assert_eq!(device.handle_message(0, &mut held.command(2)), Ok(Event::Nothing));
    assert_eq!(held.said(&mut device, 0)[0].1, result(2, 0, b"done"));
}

#[test]
fn a_result_is_repeated_as_the_same_record_until_it_is_recorded() {
    let (mut peer, mut device, mut held) = opened();
    device.handle_message(0, &mut held.seal(&Down::Pong { nothing_waits: None })).unwrap();
    device.handle_message(0, &mut held.command(7)).unwrap();
    device.send_result(7, 3, b"x");
    let first = held.said(&mut device, 0);
    assert_eq!(held.said(&mut device, 999_999), []);
    assert_eq!(held.said(&mut device, 1_000_000), first);
    assert!(!device.may_sleep(1_000_000));
    // In a new session it is told again, under a number of that session.
    device.open(1_500_000);
    let hello = hello(&mut device, 1_500_000);
    let (mut accept, mut held) = peer.accept(&hello, Default::default());
    device.handle_message(1_500_000, &mut accept).unwrap();
    let said = held.said(&mut device, 1_500_000);
    assert!(said.contains(&(0, result(7, 3, b"x"))), "{said:?}");
    device.handle_message(1_500_000, &mut held.ack(0, true)).unwrap();
    device.handle_message(1_500_000, &mut held.seal(&Down::Pong { nothing_waits: None })).unwrap();
    let later: Vec<_> =
        (2..40).flat_map(|second| held.said(&mut device, second * 1_000_000)).collect();
    assert!(!later.iter().any(|(_, said)| matches!(said, Said::Result { .. })), "{later:?}");
}

/// The time of the first one was over at the gateway before its result was there.
#[test]
fn whoever_answers_an_earlier_command_has_the_newest_still_in_hand() {
    let (_, mut device, mut held) = opened();
    device.handle_message(0, &mut held.seal(&Down::Pong { nothing_waits: None })).unwrap();
    for number in [1, 2] {
        device.handle_message(0, &mut held.command(number)).unwrap();
    }
    device.send_result(1, 0, b"late");
    let said = held.said(&mut device, 0);
    assert_eq!((said.len(), &said[0].1), (1, &result(1, 0, b"late")));
    device.handle_message(0, &mut held.ack(said[0].0, false)).unwrap();
    assert_eq!(device.handle_message(0, &mut held.command(2)), Ok(Event::Nothing));
    assert_eq!(held.said(&mut device, 0), [], "the second has no result yet");
    device.rest(0);
    assert!(!device.may_sleep(60_000_000));
    device.send_result(2, 0, b"done");
    assert!(held.said(&mut device, 0).iter().any(|(_, said)| *said == result(2, 0, b"done")));
}

#[test]
fn what_the_gateway_says_is_over_is_over() {
    let (_, mut device, held) = opened();
    let late = held.seal_at(0, &Down::Command { command: 1, payload: b"late" });
    let pong = held.seal_at(1, &Down::Pong { nothing_waits: Some(0) });
    assert_eq!(device.handle_message(0, &mut pong.clone()), Ok(Event::NothingWaits));
    assert_eq!(device.handle_message(0, &mut late.clone()), Ok(Event::Nothing));
    let new = held.seal_at(2, &Down::Command { command: 1, payload: b"new" });
    let told = device.handle_message(0, &mut new.clone()).map(|event| format!("{event:?}"));
    assert!(told.unwrap().contains("Command"));
}

#[derive(Default)]
struct Notebook(Option<Kept>);

impl Store for &mut Notebook {
    fn load(&mut self) -> Result<Option<Kept>, StoreError> {
        Ok(self.0)
    }

    fn save(&mut self, kept: &Kept) -> Result<(), StoreError> {
        self.0 = Some(*kept);
        Ok(())
    }
}

#[test]
fn the_last_number_outlives_a_power_cut_in_the_midst_of_a_command() {
    let mut peer = Peer::new(Mode::RegisteredId);
    let mut notebook = Notebook::default();
    let config = |peer: &Peer| -> Config { peer.config(profile("registered-id/ephemeral")) };
    for (number, ends) in [(1, false), (2, true)] {
        let software = Software::seeded([1; 32]);
        let mut device = Device::<_, _>::new(software, &mut notebook, config(&peer)).unwrap();
        let mut held = peer.open(&mut device, 0);
        let told =
            device.handle_message(0, &mut held.command(number)).map(|event| format!("{event:?}"));
        assert!(told.unwrap().contains("Command"));
        if ends {
            device.send_result(number, 4, b"lost on the way");
        }
        drop(device);
        let software = Software::seeded([2; 32]);
        let mut device = Device::<_, _>::new(software, &mut notebook, config(&peer)).unwrap();
        let mut held = peer.open(&mut device, 0);
        assert_eq!(device.handle_message(0, &mut held.command(number)), Ok(Event::Nothing));
        let status = if ends { 4 } else { INTERRUPTED };
        assert_eq!(held.said(&mut device, 0)[0].1, result(number, status, b""));
    }
}
