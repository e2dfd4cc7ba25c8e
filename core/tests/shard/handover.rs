//! Sessions that go on in the shard of another process (R72).

use std::net::{Ipv6Addr, SocketAddr};

use duet_core::testing;
use duet_core::{Event, HANDED_LEN, Handler as _, Local, Mail, Path, Peer, TakenOver, Via};
use duet_protocol::identity::DeviceId;
use duet_protocol::profile::Transport;
use duet_protocol::reason::DropReason;
use duet_protocol::wire::Kind;

use crate::world::{PROFILE, TestShard, World, next, sent};

const HERE: Local = (Ipv6Addr::LOCALHOST, 3);

fn home() -> SocketAddr {
    "192.0.2.1:4000".parse().unwrap()
}

fn taken(taken: usize, left: usize) -> TakenOver {
    TakenOver { taken, left }
}

/// Has the shard hand over at once, and another one take its place; what was handed over.
fn replace(world: &mut World) -> Vec<u8> {
    world.shard.handle_mail(world.now, Mail::HandOver);
    assert_eq!(sent(world), [], "devices hear nothing of it");
    assert!(world.shard.is_finished());
    let bytes = world.shard.hand_over(|via| (via == Via(7)).then_some(HERE)).to_vec();
    assert_eq!(world.shard.sessions(), 0);
    world.restart();
    bytes
}

fn take(world: &mut World, bytes: &[u8]) -> TakenOver {
    let counts = world.shard.take_over(world.now, bytes, |local| {
        assert_eq!(local, HERE);
        Via(2)
    });
    world.shard.check();
    counts
}

#[test]
fn a_session_goes_on_in_both_directions_and_repeats_no_sequence() {
    let mut world = World::new();
    let mut device = world.opened();
    device.send_reading(world.now.mono_us, 1, b"one", true).unwrap();
    let before = next(&world, &mut device);
    world.shard.handle_datagram(world.now, Peer::new(home(), Via(7)), &before);
    sent(&mut world);
    let of = world.stored.0.borrow().iter().map(|one| (one.session, one.sequence)).collect();
    world.shard.handle_mail(world.now, Mail::Durable(of));
    let acks = sent(&mut world);
    assert_eq!(acks[0].0, Path::Datagram(Peer::new(home(), Via(7))));

    let bytes = replace(&mut world);
    assert_eq!(bytes.len(), HANDED_LEN);
    world.pass(3_000_000);
    assert_eq!(take(&mut world, &bytes), taken(1, 0));
    while world.shard.poll_event().is_some() {}
    // A record that came before is known here; what it brought is durable, so that its answer is repeated.
    let sequence_of = |message: &[u8]| u32::from_be_bytes(*message[1..].first_chunk().unwrap());
    let last = sequence_of(&acks[0].1);
    world.shard.handle_datagram(world.now, Peer::new(home(), Via(2)), &before);
    let again = sent(&mut world);
    assert_eq!(world.stored.0.borrow().len(), 1);
    assert_eq!(world.shard.counts.drops[DropReason::Replay as usize], 1);
    assert_eq!(again[0].0, Path::Datagram(Peer::new(home(), Via(2))), "from the same address");
    let sequence = sequence_of(&again[0].1);
    assert_eq!(sequence, last + 1 + 65_536, "none that may have been used before");
    let mut message = again[0].1.clone();
    let heard = device.handle_message(world.now.mono_us, &mut message);
    assert_eq!(format!("{heard:?}"), "Ok(Confirmed)");
    // And what is new passes, without a handshake.
    world.seen.clear();
    device.send_reading(world.now.mono_us, 1, b"two", true).unwrap();
    assert_eq!(world.settle(&mut device), ["Confirmed"]);
    assert!(world.seen.iter().all(|(_, kind, _)| matches!(kind, Kind::Up | Kind::Down)));
    assert_eq!(world.shard.counts.accepts, 0);
    let told = std::iter::from_fn(|| world.shard.poll_event());
    let told: Vec<_> = told.filter(|one| matches!(one, Event::Online { .. })).collect();
    assert_eq!(told, [], "it has been online all the time");
}

#[test]
fn what_is_on_its_way_is_acknowledged_first() {
    let mut world = World::new();
    let mut device = world.opened();
    device.send_reading(world.now.mono_us, 1, b"one", true).unwrap();
    let record = next(&world, &mut device);
    world.shard.handle_datagram(world.now, home(), &record);
    sent(&mut world);
    world.shard.handle_mail(world.now, Mail::HandOver);
    assert!(sent(&mut world).is_empty() && !world.shard.is_finished());
    assert!(!world.shard.takes_input());
    // It was received already when the shard was told, and nobody else has it.
    device.send_reading(world.now.mono_us, 1, b"two", true).unwrap();
    let received = next(&world, &mut device);
    world.shard.handle_datagram(world.now, home(), &received);
    let mut stranger = world.device(2, PROFILE, Transport::Datagram);
    stranger.open(world.now.mono_us);
    let hello = next(&world, &mut stranger);
    world.shard.handle_datagram(world.now, home(), &hello);
    assert!(sent(&mut world).is_empty(), "neither a RESET nor an answer");
    let of: Vec<_> =
        world.stored.0.borrow().iter().map(|one| (one.session, one.sequence)).collect();
    for reading in of {
        assert!(!world.shard.is_finished());
        world.shard.handle_mail(world.now, Mail::Durable(vec![reading]));
        let mut acks = sent(&mut world);
        assert_eq!(acks.len(), 1);
        let heard = device.handle_message(world.now.mono_us, &mut acks[0].1);
        assert_eq!(format!("{heard:?}"), "Ok(Confirmed)");
    }
    assert!(world.shard.is_finished());
    let bytes = world.shard.hand_over(|_| None).to_vec();
    world.restart();
    assert_eq!(take(&mut world, &bytes), taken(1, 0));
    // A record of the same session passes there.
    device.send_reading(world.now.mono_us, 1, b"three", true).unwrap();
    let next = next(&world, &mut device);
    world.shard.handle_datagram(world.now, home(), &next);
    sent(&mut world);
    assert_eq!(world.stored.0.borrow().len(), 3);
}

#[test]
fn whose_reading_storage_never_answers_for_is_told_to_begin_anew() {
    let mut world = World::new();
    let mut device = world.opened();
    device.send_reading(world.now.mono_us, 1, b"one", true).unwrap();
    let record = next(&world, &mut device);
    world.shard.handle_datagram(world.now, home(), &record);
    world.shard.handle_mail(world.now, Mail::HandOver);
    assert!(sent(&mut world).is_empty());
    world.pass(5_000_000);
    assert!(world.shard.poll_timeout().unwrap() <= world.now.mono_us);
    let mut close = sent(&mut world);
    let heard = device.handle_message(world.now.mono_us, &mut close[0].1);
    assert_eq!(format!("{heard:?}"), "Ok(Closed)");
    assert!(world.shard.is_finished() && world.shard.hand_over(|_| None).is_empty());
}

#[test]
fn a_session_that_no_record_has_confirmed_is_not_handed_over() {
    let mut world = World::new();
    let mut device = world.device(1, PROFILE, Transport::Datagram);
    device.open(world.now.mono_us);
    let hello = next(&world, &mut device);
    world.shard.handle_datagram(world.now, home(), &hello);
    assert_eq!((sent(&mut world).len(), world.shard.pending()), (1, 1));
    assert!(replace(&mut world).is_empty());
}

#[test]
fn a_session_over_a_stream_goes_on_over_the_next_one() {
    let mut world = World::new();
    let mut device = world.device(1, PROFILE, Transport::Stream);
    device.open(world.now.mono_us);
    let hello = next(&world, &mut device);
    world.stream_message(duet_core::StreamId(1), &hello);
    let mut accept = sent(&mut world);
    device.handle_message(world.now.mono_us, &mut accept[0].1).unwrap();
    device.send_reading(world.now.mono_us, 1, b"one", false).unwrap();
    let record = next(&world, &mut device);
    world.stream_message(duet_core::StreamId(1), &record);
    sent(&mut world);
    let bytes = replace(&mut world);
    world.opened.clear();
    assert_eq!(take(&mut world, &bytes), taken(1, 0));
    device.send_reading(world.now.mono_us, 1, b"two", true).unwrap();
    let record = next(&world, &mut device);
    world.stream_message(duet_core::StreamId(9), &record);
    sent(&mut world);
    assert_eq!(world.stored.0.borrow().len(), 2);
}

/// R82, R120: what was granted holds in the next process, too, whatever is said of the registration, and whatever sessions may last
/// by then.
#[test]
fn a_session_ends_with_what_was_granted_also_in_the_next_process() {
    let mut world = World::new();
    let mut device = world.device(1, PROFILE, Transport::Datagram);
    let now_s = i64::try_from(world.now.unix_ms / 1_000).unwrap();
    let known = world.devices.by_name("device-1").unwrap();
    known.set_expiry(Some(now_s + 300));
    device.open(world.now.mono_us);
    world.settle(&mut device);
    for expiry in [None, Some(now_s + 200)] {
        known.set_expiry(expiry);
        world.pass(60_000_000);
        let bytes = replace(&mut world);
        assert_eq!(take(&mut world, &bytes), taken(1, 0));
        sent(&mut world);
    }
    world.pass(170_000_000);
    sent(&mut world);
    assert_eq!(world.shard.sessions(), 1, "granted for five minutes");
    world.pass(70_000_000);
    sent(&mut world);
    assert_eq!(world.shard.sessions(), 0);
}

#[test]
fn what_is_over_or_somebody_elses_is_left() {
    let mut world = World::new();
    world.opened();
    let bytes = replace(&mut world);
    let fresh = |world: &World, change: fn(&mut duet_core::Settings)| -> TestShard {
        let mut settings = testing::settings();
        change(&mut settings);
        world.shard_with(settings)
    };
    // Silent for too long, or too old.
    let later = |micros| {
        let mut now = world.now;
        now.mono_us += micros;
        now
    };
    let mut shard = fresh(&world, |_| ());
    assert_eq!(shard.take_over(later(600_000_000), &bytes, |_| Via(0)), taken(0, 1));
    let mut shard = fresh(&world, |settings| settings.lifetime_s = 5);
    assert_eq!(shard.take_over(later(5_000_000), &bytes, |_| Via(0)), taken(0, 1));
    // From before the machine started.
    let mut early = world.now;
    early.mono_us = 0;
    let mut shard = fresh(&world, |_| ());
    assert_eq!(shard.take_over(early, &bytes, |_| Via(0)), taken(0, 1));
    // No room.
    let mut shard = fresh(&world, |settings| settings.sessions_max = 0);
    assert_eq!(shard.take_over(world.now, &bytes, |_| Via(0)), taken(0, 1));
    // Another shard's, by its slot.
    let slot = usize::from(bytes[0]);
    for index in 0..3 {
        let mut settings = testing::settings();
        (settings.index, settings.shards) = (index, 3);
        let mut shard = world.shard_with(settings);
        let own = usize::from(slot % 3 == index);
        assert_eq!(shard.take_over(world.now, &bytes, |_| Via(0)), taken(own, 0));
    }
    // Twice, and what is cut off.
    let mut shard = fresh(&world, |_| ());
    assert_eq!(shard.take_over(world.now, &bytes.repeat(2), |_| Via(0)), taken(1, 1));
    let mut shard = fresh(&world, |_| ());
    assert_eq!(shard.take_over(world.now, &bytes[1..], |_| Via(0)), taken(0, 0));
    // Another credential under the same id, and a device that may not connect any more.
    let other = duet_protocol::profile::Profile {
        mode: duet_protocol::profile::Mode::RegisteredCertificate,
        ..PROFILE
    };
    world.devices.enrol("device-1", DeviceId([1; 8]), other);
    let mut shard = fresh(&world, |_| ());
    assert_eq!(shard.take_over(world.now, &bytes, |_| Via(0)), taken(0, 1));
    world.devices.revoke("device-1");
    let mut shard = fresh(&world, |_| ());
    assert_eq!(shard.take_over(world.now, &bytes, |_| Via(0)), taken(0, 1));
}

#[test]
fn no_bytes_whatever_harm_a_shard() {
    let mut world = World::new();
    world.opened();
    let bytes = replace(&mut world);
    let mut taken = 0;
    for place in 0..bytes.len() {
        for value in [0, 1, 0x80, 0xff] {
            let mut wrong = bytes.clone();
            wrong[place] = value;
            taken += world.shard.take_over(world.now, &wrong, |_| Via(0)).taken;
            world.shard.handle_turn(world.now);
            world.shard.check();
            world.shard.handle_mail(world.now, Mail::Revoked(DeviceId([1; 8])));
            assert_eq!(world.shard.sessions(), 0);
        }
    }
    assert!(taken > 200, "most of these bytes are keys, of which any are good: {taken}");
}
