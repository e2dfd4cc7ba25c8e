//! What a device and a shard owe each other, one situation at a time.

use std::net::SocketAddr;

use duet_core::Event as ShardEvent;
use duet_core::testing;
use duet_core::{CommandFailure, Handler as _, Mail, Path, Peer, Settings, StreamId, Via};
use duet_device::{Config, Device, DeviceKey, Early, Error, Event, Reading, Software, Volatile};
use duet_protocol::identity::{DeviceId, Fingerprint, Gateway, RegistrationKey};
use duet_protocol::message::PAYLOAD_MAX;
use duet_protocol::profile::{KeySource, Mode, Offer, Profile, Transfer, Transport};
use duet_protocol::reason::DropReason;
use duet_protocol::wire::{COOKIE, Kind, MESSAGE_MAX, Reset};

use crate::world::{PROFILE, World, next, sent};

#[test]
fn every_profile_opens_with_two_messages_and_every_reading_is_stored_once() {
    let mut world = World::new();
    for (seed, profile) in (1..).zip(Profile::ALL) {
        let mut device = world.device(seed, profile, Transport::Datagram);
        world.seen.clear();
        world.stored.0.borrow_mut().clear();
        let token = device.send_reading(world.now.mono_us, 7, b"21.5", true).unwrap();
        device.open(world.now.mono_us);
        let events = world.settle(&mut device);
        assert_eq!(events, ["Opened", "Confirmed"], "{}", profile.name());
        let kinds: Vec<_> = world.seen.iter().map(|seen| (seen.0, seen.1)).collect();
        let up_down =
            [(true, Kind::Hello), (false, Kind::Accept), (true, Kind::Up), (false, Kind::Down)];
        assert_eq!(kinds[..4], up_down, "two messages, then the reading and its acknowledgement");
        assert_eq!(kinds.len(), 4);
        assert!(world.seen[1].2 <= world.seen[0].2, "ACCEPT is never longer than HELLO");
        assert_eq!(device.poll_confirmed().unwrap().token, token);
        let stored = world.stored.0.borrow().clone();
        assert_eq!(stored.len(), 1);
        assert_eq!((stored[0].channel, &stored[0].payload[..]), (7, &b"21.5"[..]));
        assert_eq!(&*stored[0].device, format!("device-{seed}"));
    }
    assert_eq!(world.shard.sessions(), 15);
}

/// Before the registry has made the teeth of all keys, and where it has missed one.
#[test]
fn a_device_opens_whether_its_keys_teeth_are_there_or_not() {
    let mut world = World::new();
    for (seed, lacks_its_own, all_have_them) in
        [(1, false, true), (2, true, false), (3, false, false), (4, true, true)]
    {
        for profile in Profile::ALL.into_iter().filter(|one| one.mode.has_certificate()) {
            world.devices.lack_teeth(lacks_its_own);
            let mut device = world.device(seed, profile, Transport::Datagram);
            world.devices.lack_teeth(!all_have_them);
            device.open(world.now.mono_us);
            assert_eq!(world.settle(&mut device), ["Opened"], "{seed}, {}", profile.name());
        }
    }
}

#[test]
fn a_lost_session_is_back_with_one_reset_and_one_handshake() {
    let mut world = World::new();
    let mut device = world.opened();
    let before = device.session().unwrap();

    world.restart();
    world.seen.clear();
    device.send_reading(world.now.mono_us, 1, b"after", true).unwrap();
    assert_eq!(world.settle(&mut device), ["Lost"]);
    world.pass(500_000);
    assert_eq!(world.settle(&mut device), ["Opened", "Confirmed"]);
    assert_ne!(device.session().unwrap(), before);
    assert_eq!(world.seen.iter().filter(|seen| seen.1 == Kind::Reset).count(), 1);
    assert_eq!(world.seen.iter().filter(|seen| seen.1 == Kind::Hello).count(), 1);
    assert_eq!(world.stored.0.borrow().len(), 1);
}

/// R102: whoever proved himself never meets silence, and his address may have changed while his HELLO waited.
#[test]
fn a_challenge_goes_wherever_its_hello_came_from_while_it_waited() {
    let mut world = World::new();
    let mut device = world.device(1, PROFILE, Transport::Datagram);
    device.open(world.now.mono_us);
    let hello = next(&world, &mut device);
    let [home, before, after] =
        ["192.0.2.1:4000", "192.0.2.1:5000", "198.51.100.9:9"].map(|from| from.parse().unwrap());
    world.shard.handle_datagram(world.now, home, &hello);
    assert_eq!(world.settle(&mut device), ["Opened"]);
    for from in [before, after] {
        world.shard.handle_datagram(world.now, from, &hello);
    }
    let sent = sent(&mut world);
    let to: Vec<_> = sent.iter().map(|(to, one)| (*to, Kind::of(one).unwrap())).collect();
    let challenged =
        [before, after].map(|from: SocketAddr| (Path::Datagram(from.into()), Kind::Challenge));
    assert_eq!(to, challenged);
    assert!(sent.iter().all(|(_, challenge)| challenge.len() <= hello.len()));
    assert_eq!(world.shard.counts.challenges, 2);
    assert_eq!(world.shard.counts.drops[DropReason::Repeated as usize], 0);
}

#[test]
fn a_played_back_hello_gains_nothing_and_locks_nobody_out() {
    let mut world = World::new();
    let mut device = world.device(1, PROFILE, Transport::Datagram);
    device.open(world.now.mono_us);
    let mut hello = [0; MESSAGE_MAX];
    let len = device.poll_transmit(world.now.mono_us, &mut hello).unwrap();
    let from: SocketAddr = "192.0.2.1:4000".parse().unwrap();
    world.shard.handle_datagram(world.now, from, &hello[..len]);
    assert_eq!(world.settle(&mut device), ["Opened"]);

    let thief: SocketAddr = "198.51.100.9:9".parse().unwrap();
    world.shard.handle_datagram(world.now, thief, &hello[..len]);
    world.shard.handle_turn(world.now);
    let mut out = [0; MESSAGE_MAX];
    let sent = world.shard.poll_transmit(&mut out).unwrap();
    assert_eq!(Kind::of(&out), Ok(Kind::Challenge), "stale bytes draw a challenge, sealed");
    assert!(sent.len <= len);
    assert_eq!(world.shard.sessions(), 1);

    // The device itself is not disturbed, not even in its next handshake.
    device.send_reading(world.now.mono_us, 1, b"x", true).unwrap();
    assert_eq!(world.settle(&mut device), ["Confirmed"]);
    device.open(world.now.mono_us);
    assert_eq!(world.settle(&mut device), ["Opened"]);
    assert_eq!(world.shard.sessions(), 1);
}

#[test]
fn a_device_that_forgot_its_counter_answers_a_challenge() {
    let mut world = World::new();
    world.opened();
    let (identity, _) = testing::identity(DeviceId([1; 8]), PROFILE.mode);
    let transport = Transport::Datagram;
    let config = Config { identity, gateway: world.gateway, profile: PROFILE, transport, fresh: 0 };
    let mut again = Device::<Software>::seeded(config, [9; 32]).unwrap();
    again.open(world.now.mono_us);
    assert_eq!(world.settle(&mut again), ["Opened"]);
    assert!(again.fresh() > 1);
    assert!(world.seen.iter().any(|seen| seen.1 == Kind::Challenge));
}

/// Operators are told of it.
#[test]
fn a_known_device_that_is_not_let_in_is_told_of_and_a_stranger_is_not() {
    let mut world = World::new();
    let devices = std::sync::Arc::clone(&world.devices);
    let other = Profile { source: KeySource::Xor(Transfer::Key), ..PROFILE };
    let mut refused = |seed: u8, profile, key: Option<DeviceKey>| {
        let (mut identity, _) = testing::identity(DeviceId([seed; 8]), PROFILE.mode);
        identity.key = key.unwrap_or(identity.key);
        let transport = Transport::Datagram;
        let config = Config { identity, gateway: world.gateway, profile, transport, fresh: 1 };
        let mut device = Device::<Software>::seeded(config, [seed; 32]).unwrap();
        device.open(world.now.mono_us);
        world.settle(&mut device);
        let events: Vec<_> = std::iter::from_fn(|| world.shard.poll_event()).collect();
        let refused = events.into_iter().filter_map(|event| match event {
            ShardEvent::Refused(refused) => {
                assert_eq!((&*refused.name, refused.device), ("device-1", DeviceId([1; 8])));
                Some((refused.proven, refused.reason))
            }
            _ => None,
        });
        refused.collect::<Vec<_>>()
    };
    let wrong = DeviceKey::Registration(RegistrationKey([9; 32]));
    assert!(refused(2, PROFILE, None).is_empty(), "nobody knows it");
    devices.enrol("device-1", DeviceId([1; 8]), PROFILE);
    assert_eq!(refused(1, PROFILE, Some(wrong)), [(false, DropReason::Proof)]);
    assert_eq!(refused(1, other, None), [(true, DropReason::NotAllowed)]);
    assert!(refused(1, PROFILE, None).is_empty());
}

#[test]
fn close_and_revocation_end_sessions() {
    let mut world = World::new();
    let profile = Profile { mode: Mode::Certificate, source: KeySource::Ephemeral };
    let mut device = world.device(1, profile, Transport::Datagram);
    device.open(world.now.mono_us);
    world.settle(&mut device);
    device.close();
    world.settle(&mut device);
    assert!(!device.is_open());
    assert_eq!(world.shard.sessions(), 0);

    device.open(world.now.mono_us);
    assert_eq!(world.settle(&mut device), ["Opened"]);
    let id = world.devices.revoke("device-1").unwrap();
    world.shard.handle_mail(world.now, Mail::Revoked(id));
    assert_eq!(world.settle(&mut device), ["Closed"]);
    device.open(world.now.mono_us);
    world.settle(&mut device);
    assert!(!device.is_open());
    assert_eq!(world.shard.counts.drops[DropReason::Proof as usize], 1);
}

#[test]
fn a_reading_that_was_refused_is_taken_when_it_comes_again() {
    let mut world = World::new();
    let mut device = world.opened();
    device.send_reading(world.now.mono_us, 1, b"x", true).unwrap();
    let mut record = [0; MESSAGE_MAX];
    let len = device.poll_transmit(world.now.mono_us, &mut record).unwrap();
    let from: SocketAddr = "192.0.2.1:4000".parse().unwrap();
    let deliver = |world: &mut World| {
        world.shard.handle_datagram(world.now, from, &record[..len]);
        world.shard.handle_turn(world.now);
    };
    deliver(&mut world);
    deliver(&mut world);
    assert_eq!(world.stored.0.borrow().len(), 1, "a repetition is not a second reading");
    let (session, sequence) = {
        let stored = world.stored.0.borrow();
        (stored[0].session, stored[0].sequence)
    };
    world.shard.handle_mail(world.now, Mail::NotStored(vec![(session, sequence)]));
    deliver(&mut world);
    assert_eq!(world.stored.0.borrow().len(), 2, "what was not kept is taken again");
    deliver(&mut world);
    assert_eq!(world.stored.0.borrow().len(), 2);
}

#[test]
fn a_reading_that_is_not_durable_is_never_acknowledged_however_often_it_comes() {
    let mut world = World::new();
    let mut device = world.opened();
    device.send_reading(world.now.mono_us, 1, b"x", true).unwrap();
    let from: SocketAddr = "192.0.2.1:4000".parse().unwrap();
    let mut out = [0; MESSAGE_MAX];
    for _ in 0..3 {
        let len = device.poll_transmit(world.now.mono_us, &mut out).unwrap();
        world.shard.handle_datagram(world.now, from, &out[..len]);
        world.shard.handle_turn(world.now);
        assert!(world.shard.poll_transmit(&mut out).is_none());
        world.pass(8_000_000);
    }
    let stored = world.stored.0.borrow().clone();
    assert_eq!(stored.len(), 1, "and stored once");
    world
        .shard
        .handle_mail(world.now, Mail::Durable(vec![(stored[0].session, stored[0].sequence)]));
    world.shard.handle_turn(world.now);
    assert!(world.shard.poll_transmit(&mut out).is_some());
    // The acknowledgement is lost; the next repetition draws another one.
    let len = device.poll_transmit(world.now.mono_us, &mut out).unwrap();
    world.shard.handle_datagram(world.now, from, &out[..len]);
    world.shard.handle_turn(world.now);
    let sent = world.shard.poll_transmit(&mut out).unwrap();
    let event = device.handle_message(world.now.mono_us, &mut out[..sent.len]);
    assert_eq!(event, Ok(Event::Confirmed));
}

#[test]
fn under_load_an_address_proves_itself_before_any_curve_work() {
    let mut world = World::new();
    world.shard = world.shard_with(Settings { retry_from: 0, ..testing::settings() });
    world.opened();
    let kinds: Vec<_> = world.seen.iter().map(|seen| seen.1).collect();
    assert_eq!(kinds[..4], [Kind::Hello, Kind::Retry, Kind::Hello, Kind::Accept]);
    assert!(world.seen[1].2 < world.seen[0].2);
    assert_eq!(world.seen[2].2, world.seen[0].2 + 16, "the same HELLO with a cookie behind it");
    assert_eq!(world.shard.counts.drops[DropReason::Unvalidated as usize], 1);

    // The cookie is the address's and the HELLO's: from elsewhere it is worth nothing.
    let mut other = world.device(2, PROFILE, Transport::Datagram);
    other.open(world.now.mono_us);
    let mut out = [0; MESSAGE_MAX];
    let len = other.poll_transmit(world.now.mono_us, &mut out).unwrap();
    let here: SocketAddr = "192.0.2.7:1".parse().unwrap();
    world.shard.handle_datagram(world.now, here, &out[..len]);
    let sent = world.shard.poll_transmit(&mut out).unwrap();
    other.handle_message(world.now.mono_us, &mut out[..sent.len]).unwrap();
    let len = other.poll_transmit(world.now.mono_us, &mut out).unwrap();
    let there: SocketAddr = "192.0.2.8:1".parse().unwrap();
    world.shard.handle_datagram(world.now, there, &out[..len]);
    world.shard.handle_turn(world.now);
    assert_eq!(world.shard.counts.drops[DropReason::Cookie as usize], 1);
    assert_eq!(world.shard.sessions(), 1);
    // Two epochs later the right address has to ask again, too.
    world.pass(61_000_000);
    world.shard.handle_datagram(world.now, here, &out[..len]);
    assert_eq!(world.shard.counts.drops[DropReason::Cookie as usize], 2);
}

/// R71, R109 to R111: a long command waits for the answer to a short question, and then follows at once.
#[test]
fn a_new_address_gets_no_more_bytes_than_came_from_it_until_it_answers() {
    let mut world = World::new();
    let mut device = world.opened();
    world.command(1, &[b'x'; 1_000], 5);
    world.shard.handle_turn(world.now);
    let mut out = [0; MESSAGE_MAX];
    while world.shard.poll_transmit(&mut out).is_some() {}
    world.command(2, b"x", 5);
    let refused = Some((2, Err(CommandFailure::Busy)));
    assert_eq!(world.command_result(), refused, "one command at a time (R80)");

    device.send_reading(world.now.mono_us, 1, b"moved", false).unwrap();
    let len = device.poll_transmit(world.now.mono_us, &mut out).unwrap();
    let moved: SocketAddr = "203.0.113.5:77".parse().unwrap();
    world.shard.handle_datagram(world.now, moved, &out[..len]);
    world.shard.handle_turn(world.now);
    let prove = world.shard.poll_transmit(&mut out).expect("the question");
    assert_eq!((prove.to, prove.len), (Path::Datagram(moved.into()), 26));
    let mut elsewhere = out;
    assert!(world.shard.poll_transmit(&mut elsewhere).is_none(), "1,000 bytes for {len}");
    // R111: no timer asks again.
    world.pass(1_100_000);
    world.shard.handle_turn(world.now);
    assert!(world.shard.poll_transmit(&mut elsewhere).is_none());

    device.handle_message(world.now.mono_us, &mut out[..prove.len]).unwrap();
    let here = device.poll_transmit(world.now.mono_us, &mut out).unwrap();
    assert_eq!(here, 30);
    // A copy that is faster, from an address that was not asked, proves nothing there and does no harm here.
    let thief: SocketAddr = "198.51.100.9:9".parse().unwrap();
    for from in [thief, moved] {
        world.shard.handle_datagram(world.now, from, &out[..here]);
        world.shard.handle_turn(world.now);
    }
    let mut long = Vec::new();
    while let Some(sent) = world.shard.poll_transmit(&mut out) {
        assert!(sent.to == Path::Datagram(moved.into()) || sent.len <= here, "{sent:?}");
        if sent.len > 1_000 {
            long.push((sent, out));
        }
    }
    let [(sent, bytes)] = &mut long[..] else { panic!("the command, once") };
    let event = device.handle_message(world.now.mono_us, &mut bytes[..sent.len]).unwrap();
    let Event::Command { command: 1, .. } = event else { panic!("{event:?}") };
}

#[test]
fn a_reset_is_believed_only_for_a_record_that_was_sent() {
    let mut world = World::new();
    let mut device = world.opened();
    let session = device.session().unwrap();
    let mut tell = |mac| {
        let mut forged = Reset { session, mac }.encode();
        device.handle_message(world.now.mono_us, &mut forged).map(|event| format!("{event:?}"))
    };
    assert_eq!(tell([0; 16]).as_deref(), Ok("Doubted"), "the device asks, and goes on");
    assert_eq!(tell([0xff; 16]), Err(Error::Discarded(DropReason::Unexpected)));
    assert_eq!(world.settle(&mut device), [""; 0]);
    assert_eq!(device.session(), Some(session));
}

#[test]
fn of_two_hellos_in_one_batch_the_newer_stands_and_a_copy_is_not_answered_twice() {
    let mut world = World::new();
    let mut device = world.device(1, PROFILE, Transport::Datagram);
    let mut hello = || {
        let mut out = [0; MESSAGE_MAX];
        device.close();
        device.open(world.now.mono_us);
        let len = device.poll_transmit(world.now.mono_us, &mut out).unwrap();
        out[..len].to_vec()
    };
    let (older, newer) = (hello(), hello());
    let from: SocketAddr = "192.0.2.1:4000".parse().unwrap();
    for message in [&newer, &older, &newer] {
        world.shard.handle_datagram(world.now, from, message);
    }
    world.shard.handle_turn(world.now);
    let (mut out, mut rest) = ([0; MESSAGE_MAX], [0; MESSAGE_MAX]);
    let challenge = world.shard.poll_transmit(&mut rest).expect("R102: no silence");
    assert_eq!(Kind::of(&rest[..challenge.len]), Ok(Kind::Challenge));
    let sent = world.shard.poll_transmit(&mut out).unwrap();
    assert!(world.shard.poll_transmit(&mut rest).is_none(), "one ACCEPT");
    assert_eq!(world.shard.sessions(), 1);
    assert_eq!(world.shard.counts.challenges, 1);
    assert_eq!(world.shard.counts.drops[DropReason::Repeated as usize], 1);
    assert_eq!(device.handle_message(world.now.mono_us, &mut out[..sent.len]), Ok(Event::Opened));
}

#[test]
fn a_stream_is_closed_after_a_fixed_time_but_not_for_a_repeated_record() {
    let mut world = World::new();
    let mut device = world.device(1, PROFILE, Transport::Stream);
    device.open(world.now.mono_us);
    let stream = StreamId(5);
    let mut out = [0; MESSAGE_MAX];
    let len = device.poll_transmit(world.now.mono_us, &mut out).unwrap();
    world.stream_message(stream, &out[..len]);
    world.shard.handle_turn(world.now);
    let sent = world.shard.poll_transmit(&mut out).unwrap();
    device.handle_message(world.now.mono_us, &mut out[..sent.len]).unwrap();
    device.send_reading(world.now.mono_us, 1, b"x", true).unwrap();
    let len = device.poll_transmit(world.now.mono_us, &mut out).unwrap();
    for _ in 0..2 {
        world.stream_message(stream, &out[..len]);
        world.shard.handle_turn(world.now);
    }
    assert_eq!(world.shard.counts.drops[DropReason::Replay as usize], 1);
    world.pass(10_000_000);
    world.shard.handle_turn(world.now);
    assert_eq!(world.take_closed(), []);

    let bad = StreamId(6);
    world.stream_message(bad, b"nonsense");
    world.shard.handle_turn(world.now);
    assert_eq!(world.take_closed(), [], "not before its time");
    world.pass(1_000_000);
    world.shard.handle_turn(world.now);
    assert_eq!(world.take_closed(), [bad]);
}

/// R46: a device that lost its counter answers a challenge; whoever has its old HELLOs cannot end what it then got.
#[test]
fn no_old_hello_replaces_a_pending_session_that_answered_a_challenge() {
    let mut world = World::new();
    let mut device = world.opened();
    let home: SocketAddr = "192.0.2.1:4000".parse().unwrap();
    let hello = |device: &mut Device<Software>| {
        let mut out = [0; MESSAGE_MAX];
        device.open(world.now.mono_us);
        let len = device.poll_transmit(world.now.mono_us, &mut out).unwrap();
        out[..len].to_vec()
    };
    // Newer than the mark, and overheard; its gateway never got it.
    let overheard = hello(&mut device);
    let (identity, _) = testing::identity(DeviceId([1; 8]), PROFILE.mode);
    let transport = Transport::Datagram;
    let config = Config { identity, gateway: world.gateway, profile: PROFILE, transport, fresh: 0 };
    let mut again = Device::<Software>::seeded(config, [9; 32]).unwrap();
    let first = hello(&mut again);
    let mut exchange = |message: &[u8]| {
        let mut out = [0; MESSAGE_MAX];
        world.shard.handle_datagram(world.now, home, message);
        world.shard.handle_turn(world.now);
        world.shard.check();
        let sent = world.shard.poll_transmit(&mut out);
        sent.map(|sent| out[..sent.len].to_vec())
    };
    let mut challenge = exchange(&first).unwrap();
    assert_eq!(Kind::of(&challenge), Ok(Kind::Challenge));
    again.handle_message(1_000_000, &mut challenge).unwrap();
    let mut out = [0; MESSAGE_MAX];
    let len = again.poll_transmit(1_000_000, &mut out).unwrap();
    let mut accept = exchange(&out[..len]).unwrap();
    assert_eq!(Kind::of(&accept), Ok(Kind::Accept));
    let beside = exchange(&overheard).unwrap();
    assert_eq!(Kind::of(&beside), Ok(Kind::Challenge), "it may be old");
    assert_eq!(again.handle_message(1_000_000, &mut accept), Ok(Event::Opened));
    let len = again.poll_transmit(1_000_000, &mut out).unwrap();
    let pong = exchange(&out[..len]);
    assert!(pong.is_some(), "its session is there");
}

/// On a gateway with several addresses a device hears only the one that it asked. That is no other receiver: its path
/// stays proven when it asks at another.
#[test]
fn answers_leave_from_the_address_that_was_asked_last() {
    let mut world = World::new();
    let mut device = world.opened();
    let home: SocketAddr = "192.0.2.1:4000".parse().unwrap();
    let mut out = [0; MESSAGE_MAX];
    for (number, via) in [(1, Via(2)), (2, Via(1)), (3, Via(1))] {
        device.send_reading(world.now.mono_us, 1, b"", false).unwrap();
        let len = device.poll_transmit(world.now.mono_us, &mut out).unwrap();
        let from = Peer::new(home, via);
        world.shard.handle_datagram(world.now, from, &out[..len]);
        world.shard.handle_turn(world.now);
        world.command(number, &[b'x'; 500], 20);
        world.shard.handle_turn(world.now);
        let sent = world.shard.poll_transmit(&mut out).expect("the command, without a question");
        assert_eq!(sent.to, Path::Datagram(from));
        assert!(sent.len > 500);
        let event = device.handle_message(world.now.mono_us, &mut out[..sent.len]).unwrap();
        let Event::Command { command, .. } = event else { panic!("{event:?}") };
        device.send_result(command, 0, b"");
        let len = device.poll_transmit(world.now.mono_us, &mut out).unwrap();
        world.shard.handle_datagram(world.now, from, &out[..len]);
        world.shard.handle_turn(world.now);
        assert_eq!(world.command_result(), Some((number, Ok(Vec::new()))));
        while world.shard.poll_transmit(&mut out).is_some() {}
    }
}

/// What a device is given of another gateway than the one that answers: nothing is said, one reason is counted, and its HELLO
/// is still good at its own gateway.
#[test]
fn a_hello_for_another_gateway_draws_silence_and_does_at_its_own() {
    let mut world = World::new();
    let own = world.gateway;
    let other = testing::scalar(b"another gateway").public_key();
    let certificate = Fingerprint::of_certificate(b"another certificate of the same key");
    for (seed, gateway, reason) in [
        (1, Gateway { key: other, ..own }, DropReason::HelloOpen),
        (2, Gateway { fingerprint: certificate, ..own }, DropReason::HelloOpen),
        (3, Gateway { key_id: own.key_id + 1, ..own }, DropReason::GatewayKey),
    ] {
        let identity = world.devices.enrol(&format!("device-{seed}"), DeviceId([seed; 8]), PROFILE);
        let transport = Transport::Datagram;
        let config = Config { identity, gateway, profile: PROFILE, transport, fresh: 1 };
        let mut device = Device::<Software>::seeded(config, [seed; 32]).unwrap();
        device.open(world.now.mono_us);
        let before = world.shard.counts.drops[reason as usize];
        assert_eq!(world.settle(&mut device), [""; 0]);
        assert_eq!(world.shard.counts.drops[reason as usize], before + 1);
        assert_eq!(world.shard.sessions(), 0);
        assert!(!device.is_open() && device.is_waiting());
    }
}

/// Datagrams that were cut on their way, in both directions: each is discarded, nothing is said, and the whole one does after it.
#[test]
fn what_was_cut_is_discarded_and_harms_nothing() {
    let from: SocketAddr = "192.0.2.1:4000".parse().unwrap();
    let mut world = World::new();
    let mut device = world.device(1, PROFILE, Transport::Datagram);
    device.send_reading(world.now.mono_us, 1, b"21.5", true).unwrap();
    device.open(world.now.mono_us);
    // HELLO, ACCEPT, the reading, its acknowledgement.
    for _ in 0..2 {
        let up = crate::world::next(&world, &mut device);
        for len in 0..up.len() {
            world.shard.handle_datagram(world.now, from, &up[..len]);
            assert!(crate::world::sent(&mut world).is_empty(), "{len} of {}", up.len());
        }
        assert!(world.stored.0.borrow().is_empty());
        world.shard.handle_datagram(world.now, from, &up);
        let mut down = crate::world::sent(&mut world);
        let stored = world.stored.0.borrow().iter().map(|r| (r.session, r.sequence)).collect();
        world.shard.handle_mail(world.now, Mail::Durable(stored));
        down.extend(crate::world::sent(&mut world));
        assert_eq!(down.len(), 1);
        let mut down = down.remove(0).1;
        for len in 0..down.len() {
            assert!(device.handle_message(world.now.mono_us, &mut down.clone()[..len]).is_err());
        }
        assert!(device.handle_message(world.now.mono_us, &mut down).is_ok());
    }
    assert!(device.poll_confirmed().is_some());
}

/// The longest messages of every profile: with the longest reading that goes inside HELLO, a challenge, a cookie, *age* and
/// *again*, none is longer than 1,200 bytes, which every path carries whole.
#[test]
fn no_message_is_longer_than_every_path_carries() {
    for profile in Profile::ALL {
        let most = PAYLOAD_MAX.min(profile.reading_max() - (3 + 4 + 16));
        let longest =
            Offer { challenged: true, early: true, ..Offer::new(profile, Transport::Stream) }
                .hello_len(profile.reading_max());
        assert_eq!(longest + COOKIE, MESSAGE_MAX, "{}", profile.name());
        let mut world = World::new();
        let identity = world.devices.enrol("device-1", DeviceId([1; 8]), profile);
        let (gateway, transport) = (world.gateway, Transport::Datagram);
        let config = Config { identity, gateway, profile, transport, fresh: 1 };
        let crypto = Software::seeded([1; 32]);
        let mut device = Device::<_, _, 4, 1_100>::new(crypto, Volatile, config).unwrap();
        device.set_early(Early::Stay);
        let now = world.now.mono_us;
        let (payload, measured_us, confirm) = (vec![7; most], Some(now), true);
        let reading = Reading { channel: 1, payload: &payload, confirm, measured_us, again: None };
        // The longest that fits into HELLO, whatever is said with it.
        device.send(now, reading).unwrap();
        device.open(now);
        let (mut lengths, mut out) = (Vec::new(), [0; MESSAGE_MAX]);
        let from: SocketAddr = "192.0.2.1:4000".parse().unwrap();
        for _ in 0..8 {
            while let Some(len) = device.poll_transmit(world.now.mono_us, &mut out) {
                lengths.push((Kind::of(&out).unwrap(), len));
                world.shard.handle_datagram(world.now, from, &out[..len]);
            }
            for (_, mut message) in crate::world::sent(&mut world) {
                assert!(message.len() <= MESSAGE_MAX);
                device.handle_message(world.now.mono_us, &mut message).unwrap();
            }
            let stored: Vec<_> =
                world.stored.0.borrow().iter().map(|r| (r.session, r.sequence)).collect();
            world.shard.handle_mail(world.now, Mail::Durable(stored));
        }
        assert_eq!(device.poll_confirmed().map(|it| it.token), Some(0), "{}", profile.name());
        assert_eq!(world.stored.0.borrow()[0].payload, payload);
        let first = Offer { early: true, ..Offer::new(profile, transport) };
        assert_eq!(lengths[0], (Kind::Hello, first.hello_len(3 + 4 + most)), "{}", profile.name());
    }
}
