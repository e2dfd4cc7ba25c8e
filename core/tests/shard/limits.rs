//! What a stranger, or a device that means harm, must not get out of a shard.

use std::net::SocketAddr;

use duet_core::testing;
use duet_core::{Handler as _, Settings, StreamId};
use duet_device::{Device, Software};
use duet_protocol::profile::Transport;
use duet_protocol::reason::DropReason;
use duet_protocol::wire::{Kind, MESSAGE_MAX};

use crate::world::{PROFILE, World};

fn home() -> SocketAddr {
    "192.0.2.1:4000".parse().unwrap()
}

fn reading(world: &World, device: &mut Device<Software>, confirm: bool) -> Vec<u8> {
    let mut out = [0; MESSAGE_MAX];
    device.send_reading(world.now.mono_us, 1, b"", confirm).unwrap();
    let len = device.poll_transmit(world.now.mono_us, &mut out).unwrap();
    out[..len].to_vec()
}

/// A stream belongs to the shard of its first message. What it brings for other shards' devices
/// must not be answered here: their sessions are unknown here and yet alive.
#[test]
fn what_another_shard_owns_draws_no_reset_and_no_session() {
    let mut world = World::new();
    let mut device = world.opened();
    let record = reading(&world, &mut device, false);
    device.open(world.now.mono_us);
    let hello = world.device(2, PROFILE, Transport::Stream);
    let hello = {
        let (mut device, mut out) = (hello, [0; MESSAGE_MAX]);
        device.open(world.now.mono_us);
        let len = device.poll_transmit(world.now.mono_us, &mut out).unwrap();
        out[..len].to_vec()
    };
    // Of 256 shards each has one slot: this one is neither device's.
    let foreign = (0..).find(|index| ![record[1], hello[1]].contains(index)).unwrap();
    let settings = Settings { index: foreign.into(), shards: 256, ..testing::settings() };
    let mut other = world.shard_with(settings);
    let mut out = [0; MESSAGE_MAX];
    for message in [record, hello] {
        let stream = StreamId(message.len() as u64);
        assert!(other.handle_stream_opened(world.now, stream, home(), 0));
        other.handle_message(world.now, stream, &message);
        other.handle_turn(world.now);
        assert!(other.poll_transmit(&mut out).is_none());
    }
    assert_eq!(other.sessions(), 0);
    assert_eq!(other.counts.drops[DropReason::Slot as usize], 2);
}

#[test]
fn a_stream_that_only_fails_is_remembered_once() {
    let mut world = World::new();
    for _ in 0..100_000 {
        world.stream_message(StreamId(1), b"x");
    }
    assert_eq!(world.shard.counts.drops[DropReason::Version as usize], 1);
    assert_eq!(world.shard.counts.drops[DropReason::StreamFailed as usize], 99_999);
    world.pass(1_000_000);
    world.shard.handle_turn(world.now);
    assert_eq!(world.take_closed(), [StreamId(1)]);
}

/// Whoever has seen one record can play it back on any number of streams; none of them may stay.
#[test]
fn a_stream_without_an_authentic_record_does_not_stay() {
    let mut world = World::new();
    let mut device = world.opened();
    let (old, new) = (reading(&world, &mut device, false), reading(&world, &mut device, false));
    world.shard.handle_datagram(world.now, home(), &old);
    world.shard.handle_turn(world.now);
    let [strangers, devices] = [8, 9].map(StreamId);
    for (stream, record) in [(strangers, &old), (devices, &new), (devices, &new)] {
        world.stream_message(stream, record);
        world.shard.handle_turn(world.now);
    }
    assert_eq!(world.shard.counts.drops[DropReason::Replay as usize], 2);
    world.pass(29_000_000);
    world.shard.handle_turn(world.now);
    assert_eq!(world.take_closed(), []);
    world.pass(1_000_000);
    assert!(world.shard.poll_timeout().unwrap() <= world.now.mono_us);
    world.shard.handle_turn(world.now);
    assert_eq!(world.take_closed(), [strangers]);
}

/// A device has one session and needs one stream, however many it opens and proves.
#[test]
fn a_stream_over_which_no_session_speaks_any_more_does_not_stay() {
    let mut world = World::new();
    let mut device = world.opened();
    let streams = [8, 9, 10].map(StreamId);
    for stream in streams {
        let record = reading(&world, &mut device, false);
        world.stream_message(stream, &record);
        world.shard.handle_turn(world.now);
    }
    let mut closed = Vec::new();
    for _ in 0..3 {
        world.pass(30_000_000);
        world.shard.handle_turn(world.now);
        closed.extend(world.take_closed());
    }
    assert_eq!(closed, streams[..2], "the session speaks over the last one");
    device.close();
    let mut out = [0; MESSAGE_MAX];
    while let Some(len) = device.poll_transmit(world.now.mono_us, &mut out) {
        world.stream_message(streams[2], &out[..len]);
    }
    world.shard.handle_turn(world.now);
    for _ in 0..2 {
        world.pass(30_000_000);
        world.shard.handle_turn(world.now);
        closed.extend(world.take_closed());
    }
    assert_eq!(closed, streams);
}

/// A HELLO whose session is pending is answered as often as it comes: here much faster than the
/// network takes the answers.
#[test]
fn what_waits_to_be_sent_is_limited() {
    let mut world = World::new();
    let mut device = world.device(1, PROFILE, Transport::Datagram);
    device.open(world.now.mono_us);
    let mut out = [0; MESSAGE_MAX];
    let len = device.poll_transmit(world.now.mono_us, &mut out).unwrap();
    world.shard.handle_datagram(world.now, home(), &out[..len]);
    world.shard.handle_turn(world.now);
    for _ in 0..200_000 {
        world.shard.handle_datagram(world.now, home(), &out[..len]);
    }
    world.shard.handle_turn(world.now);
    let mut waiting = 0;
    while world.shard.poll_transmit(&mut out).is_some() {
        waiting += 1;
    }
    assert!(waiting < 20_000, "{waiting} messages were kept");
    assert_eq!(world.shard.counts.unsent, 200_001 - waiting);
}

/// The registry knows of a revocation before its mail arrives, if it arrives.
#[test]
fn a_revoked_device_delivers_nothing_even_before_its_shard_is_told() {
    let mut world = World::new();
    let mut device = world.opened();
    let record = reading(&world, &mut device, true);
    world.devices.revoke("device-1").unwrap();
    world.shard.handle_datagram(world.now, home(), &record);
    assert_eq!(world.settle(&mut device), ["Closed"]);
    assert!(world.stored.0.borrow().is_empty());
    assert_eq!(world.shard.sessions(), 0);
    assert_eq!(world.shard.counts.drops[DropReason::Proof as usize], 1);
}

/// R71: a command's number can be guessed, so its result proves no address, wherever the command went.
#[test]
fn a_result_proves_no_address() {
    let mut world = World::new();
    let mut device = world.opened();
    let victim: SocketAddr = "203.0.113.5:77".parse().unwrap();
    let mut out = [0; MESSAGE_MAX];
    world.command(1, b"x", 20);
    world.shard.handle_turn(world.now);
    let sent = world.shard.poll_transmit(&mut out).unwrap();
    device.handle_message(world.now.mono_us, &mut out[..sent.len]).unwrap();
    device.send_result(1, 0, b"");
    let len = device.poll_transmit(world.now.mono_us, &mut out).unwrap();
    world.shard.handle_datagram(world.now, victim, &out[..len]);
    world.shard.handle_turn(world.now);
    assert_eq!(world.command_result(), Some((1, Ok(Vec::new()))));
    world.command(2, &[b'x'; 500], 20);
    world.shard.handle_turn(world.now);
    while let Some(sent) = world.shard.poll_transmit(&mut out) {
        assert!(sent.len <= len, "500 bytes to who never asked");
    }
}

/// R71: whoever has ACCEPT from elsewhere can send the first record from an address that is not his.
#[test]
fn the_first_record_proves_an_address_only_if_accept_went_there_alone() {
    let victim: SocketAddr = "203.0.113.5:77".parse().unwrap();
    for repeated in [false, true] {
        let mut world = World::new();
        let mut device = world.device(1, PROFILE, Transport::Datagram);
        device.open(world.now.mono_us);
        let mut hello = [0; MESSAGE_MAX];
        let len = device.poll_transmit(world.now.mono_us, &mut hello).unwrap();
        world.shard.handle_datagram(world.now, victim, &hello[..len]);
        world.shard.handle_turn(world.now);
        if repeated {
            world.shard.handle_datagram(world.now, home(), &hello[..len]);
            world.shard.handle_turn(world.now);
        }
        let mut out = [0; MESSAGE_MAX];
        let mut accepts = Vec::new();
        while let Some(sent) = world.shard.poll_transmit(&mut out) {
            accepts.push(sent.to);
            let _ = device.handle_message(world.now.mono_us, &mut out[..sent.len]);
        }
        assert_eq!(accepts.len(), 1 + usize::from(repeated));
        let first = reading(&world, &mut device, false);
        world.shard.handle_datagram(world.now, victim, &first);
        world.shard.handle_turn(world.now);
        assert_eq!(world.shard.counts.confirmed, 1);
        world.command(1, &[b'x'; 500], 20);
        world.shard.handle_turn(world.now);
        assert_eq!(world.shard.poll_transmit(&mut out).is_none(), repeated);
    }
}

/// R79: the session may change under a command; the device remembers its number across sessions.
#[test]
fn a_command_outlives_the_session_that_it_began_in() {
    let mut world = World::new();
    let mut device = world.opened();
    world.command(5, b"open", 20);
    world.shard.handle_turn(world.now);
    let mut out = [0; MESSAGE_MAX];
    while world.shard.poll_transmit(&mut out).is_some() {}

    device.open(world.now.mono_us);
    let events = world.settle(&mut device);
    assert_eq!(events[0], "Opened");
    assert!(events[1].starts_with("Command { command: 5,"), "with the first record: {events:?}");
    device.send_result(5, 0, b"done");
    world.settle(&mut device);
    assert_eq!(world.command_result(), Some((5, Ok(b"done".to_vec()))));
}

/// R47, R82: an unconfirmed session has seconds, a silent one its time, any one its lifetime.
#[test]
fn sessions_end_after_silence_and_after_their_lifetime() {
    let mut world = World::new();
    let mut device = world.device(1, PROFILE, Transport::Datagram);
    device.open(world.now.mono_us);
    let mut out = [0; MESSAGE_MAX];
    let len = device.poll_transmit(world.now.mono_us, &mut out).unwrap();
    world.shard.handle_datagram(world.now, home(), &out[..len]);
    world.shard.handle_turn(world.now);
    assert_eq!(world.shard.sessions(), 1);
    world.pass(11_000_000);
    world.shard.handle_turn(world.now);
    assert_eq!(world.shard.sessions(), 0, "nobody confirmed it");

    let mut world = World::new();
    let mut device = world.opened();
    let began_us = world.now.mono_us;
    // Silent for less than ten minutes each time; its own clock stands still, or it would make a new session in time.
    while world.now.mono_us - began_us < 86_000_000_000 {
        world.pass(590_000_000);
        device.send_reading(began_us, 1, b"", false).unwrap();
        let len = device.poll_transmit(began_us, &mut out).unwrap();
        world.shard.handle_datagram(world.now, home(), &out[..len]);
        world.shard.handle_turn(world.now);
        assert_eq!(world.shard.sessions(), 1);
    }
    world.pass(410_000_000);
    world.shard.handle_turn(world.now);
    assert_eq!(world.shard.sessions(), 0, "a day is over");

    let mut world = World::new();
    world.opened();
    for (after_us, sessions) in [(599_000_000, 1), (11_000_000, 0)] {
        world.pass(after_us);
        world.shard.handle_turn(world.now);
        assert_eq!(world.shard.sessions(), sessions);
    }
}

/// R82, R120: what was granted ends with the registration, however busy the device is.
#[test]
fn a_session_that_was_granted_less_than_others_ends_with_that() {
    let mut world = World::new();
    let mut device = world.device(1, PROFILE, Transport::Datagram);
    let end_s = i64::try_from(world.now.unix_ms / 1_000).unwrap() + 1_800;
    world.devices.by_name("device-1").unwrap().set_expiry(Some(end_s));
    device.open(world.now.mono_us);
    world.settle(&mut device);
    // Said afterwards, it is for later sessions.
    world.devices.by_name("device-1").unwrap().set_expiry(None);
    let mut out = [0; MESSAGE_MAX];
    let began_us = world.now.mono_us;
    for minute in 1..=30 {
        assert_eq!(world.shard.sessions(), 1, "minute {minute}");
        world.pass(60_000_000);
        device.send_reading(began_us, 1, b"", false).unwrap();
        let len = device.poll_transmit(began_us, &mut out).unwrap();
        world.shard.handle_datagram(world.now, home(), &out[..len]);
        world.shard.handle_turn(world.now);
    }
    assert_eq!(world.shard.sessions(), 0);
}

/// R62: the limit is the node's, so each of its shards has a part of it.
#[test]
fn all_shards_together_send_no_more_resets_than_a_node_may() {
    for shards in [1, 4] {
        let world = World::new();
        let mut shard = world.shard_with(Settings { shards, ..testing::settings() });
        // A second begins.
        shard.handle_turn(world.now);
        let mut record = [0; 30];
        record[0] = Kind::Up.byte();
        for number in 0..10_500_u32 {
            // Slot 0 is the first shard's.
            record[2..5].copy_from_slice(&number.to_be_bytes()[1..]);
            let host = u8::try_from(number % 5).unwrap();
            let from = SocketAddr::from(([192, 0, 2, host], 4_000));
            shard.handle_datagram(world.now, from, &record);
        }
        assert_eq!(shard.counts.resets, 10_000 / u64::try_from(shards).unwrap());
    }
}

/// Otherwise a stranger who sends 10,000 records a second keeps it from all devices that their sessions are gone.
#[test]
fn one_address_leaves_others_their_resets() {
    let mut world = World::new();
    let flood = |world: &mut World, from: &str| {
        let from: SocketAddr = from.parse().unwrap();
        let before = world.shard.counts.resets;
        for _ in 0..12_000 {
            let mut record = [0; 30];
            record[0] = Kind::Up.byte();
            world.shard.handle_datagram(world.now, from, &record);
        }
        world.shard.counts.resets - before
    };
    world.shard.handle_turn(world.now);
    for _ in 0..2 {
        assert_eq!(flood(&mut world, "[2001:db8::1]:1"), 5_000, "half, while nobody else asks");
        assert_eq!(flood(&mut world, "[2001:db8::2]:2"), 0, "the same network");
        assert_eq!(flood(&mut world, "192.0.2.1:1"), 2_500, "a quarter of all");
        world.pass(1_000_000);
        world.shard.handle_turn(world.now);
    }
    let drops = world.shard.counts.drops;
    let [told, quiet] = [DropReason::UnknownSession, DropReason::UnknownSessionQuiet];
    assert_eq!(drops[told as usize] + drops[quiet as usize], 72_000);
}
