//! What a device does when it hears nothing, or hears what it cannot believe.

use duet_device::{
    Device, Error, Event, Software,
    protocol::{
        message::Down,
        profile::Mode,
        reason::DropReason,
        schedule,
        wire::{Kind, Reset},
    },
};

use crate::gateway::{Held, Peer, Said, next, profile};

fn opened() -> (Peer, Device<Software>, Held) {
    let mut peer = Peer::new(Mode::RegisteredId);
    let mut device = peer.device(profile("registered-id/ephemeral"));
    let mut held = peer.open(&mut device, 0);
    assert_eq!(held.said(&mut device, 0), [(0, Said::Ping)]);
    device.handle_message(0, &mut held.seal(&Down::Pong { nothing_waits: None })).unwrap();
    (peer, device, held)
}

fn forged(held: &Held) -> [u8; 21] {
    Reset { session: held.id, mac: [0x66; 16] }.encode()
}

const UNEXPECTED: Result<Event<'static>, Error> = Err(Error::Discarded(DropReason::Unexpected));

#[test]
fn a_genuine_reset_leads_to_a_handshake_within_half_a_second() {
    let (_, mut device, held) = opened();
    device.send_reading(0, 1, b"x", true).unwrap();
    let record = next(&mut device, 0).unwrap();
    let mac = schedule::reset_mac(&held.token, &record);
    let reset = Reset { session: held.id, mac };
    assert_eq!(device.handle_message(0, &mut reset.encode()), Ok(Event::Lost));
    assert_eq!(device.handle_message(0, &mut reset.encode()), Ok(Event::Nothing));
    let due = device.poll_timeout().unwrap();
    assert!(due < 500_000);
    assert_eq!(next(&mut device, due).map(|message| Kind::of(&message)), Some(Ok(Kind::Hello)));
    assert!(device.is_open(), "the session stays until ACCEPT comes");
}

#[test]
fn a_reset_that_proves_nothing_makes_the_device_ask_and_then_begin_anew() {
    let (_, mut device, held) = opened();
    let began = 20_000_000;
    assert_eq!(device.handle_message(began, &mut forged(&held)), Ok(Event::Doubted));
    assert_eq!(held.said(&mut device, began), [(1, Said::Ping)]);
    let due = device.poll_timeout().unwrap();
    assert!((began + 250_000..began + 500_000).contains(&due), "{due}");
    assert_eq!(next(&mut device, due).map(|message| Kind::of(&message)), Some(Ok(Kind::Hello)));
}

#[test]
fn an_answer_ends_the_doubt_and_forged_resets_cost_no_handshake() {
    let (_, mut device, mut held) = opened();
    let (mut asked, mut pings) = (0, 0);
    // For ten minutes, ten forged ones each second; the gateway lives and is 200 ms away.
    let mut now = 20_000_000;
    while now < 620_000_000 {
        match device.handle_message(now, &mut forged(&held)) {
            Ok(Event::Doubted) => asked += 1,
            other => assert_eq!(other, UNEXPECTED),
        }
        for (_, said) in held.said(&mut device, now) {
            assert_eq!(said, Said::Ping);
            pings += 1;
            let mut pong = held.seal(&Down::Pong { nothing_waits: None });
            assert!(device.handle_message(now + 200_000, &mut pong).is_ok());
        }
        now += 100_000;
    }
    assert_eq!(pings, asked, "one ping for each");
    assert!((50..=60).contains(&asked), "at most six a minute, and not none: {asked}");
}

#[test]
fn a_late_answer_of_old_is_no_answer_to_a_doubt() {
    let (_, mut device, held) = opened();
    let old = held.seal_at(3, &Down::Pong { nothing_waits: None });
    let older = held.seal_at(2, &Down::Pong { nothing_waits: None });
    device.handle_message(0, &mut old.clone()).unwrap();
    assert_eq!(device.handle_message(0, &mut forged(&held)), Ok(Event::Doubted));
    device.handle_message(0, &mut older.clone()).unwrap();
    assert_eq!(
        device.handle_message(0, &mut old.clone()),
        Err(Error::Discarded(DropReason::Replay))
    );
    assert_eq!(held.said(&mut device, 0), []);
    let due = device.poll_timeout().unwrap();
    assert_eq!(next(&mut device, due).map(|message| Kind::of(&message)), Some(Ok(Kind::Hello)));
}

#[test]
fn who_sends_into_silence_asks_after_a_quarter_of_an_hour() {
    let (_, mut device, held) = opened();
    let minute = 60_000_000;
    for at in 1..15 {
        device.send_reading(at * minute, 1, b"x", false).unwrap();
        assert_eq!(held.said(&mut device, at * minute).len(), 1);
    }
    device.send_reading(15 * minute, 1, b"x", false).unwrap();
    let said = held.said(&mut device, 15 * minute);
    assert_eq!(said.last().map(|(_, said)| said), Some(&Said::Ping));
    // Nobody answers: after five pings a handshake begins, though readings go on.
    let (mut now, mut pings) = (15 * minute, 1);
    let kind = loop {
        now += 500_000;
        device.send_reading(now, 1, b"x", false).unwrap();
        let Some(message) = std::iter::from_fn(|| next(&mut device, now)).last() else { continue };
        if Kind::of(&message) == Ok(Kind::Hello) {
            break Kind::Hello;
        }
        pings += u32::from(held.read(&message).1 == Said::Ping);
    };
    assert_eq!((kind, pings, (now - 15 * minute) / 1_000_000), (Kind::Hello, 5, 31));
}

#[test]
fn a_question_whether_it_receives_is_answered_within_limits() {
    let (_, mut device, mut held) = opened();
    let ask = |held: &mut Held, n: u8| held.seal(&Down::Prove { challenge: [n; 4] });
    for n in 0..4 {
        device.handle_message(0, &mut ask(&mut held, n)).unwrap();
        assert_eq!(held.said(&mut device, 0).pop().unwrap().1, Said::Here([n; 4]));
    }
    device.handle_message(999_000, &mut ask(&mut held, 9)).unwrap();
    assert_eq!(held.said(&mut device, 999_000), [], "four in a second");
    device.handle_message(1_000_000, &mut ask(&mut held, 10)).unwrap();
    assert_eq!(held.said(&mut device, 1_000_000).pop().unwrap().1, Said::Here([10; 4]));
}
