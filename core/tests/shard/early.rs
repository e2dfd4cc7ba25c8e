//! Readings inside HELLO: stored before ACCEPT says so, once, whatever is lost, late or played back (R95 to R101).

use std::net::SocketAddr;

use duet_core::engine::Batched;
use duet_core::testing;
use duet_core::{GatewayKey, Handler as _, Mail, Path, Random, Renewal, Shard, StreamId};
use duet_device::{Config, Device, Early, Event, Software};
use duet_protocol::identity::{DeviceId, Fingerprint, Gateway};
use duet_protocol::profile::{KeySource, Mode, Profile, Transfer, Transport};
use duet_protocol::reading::EARLY_SEQUENCE;
use duet_protocol::reason::DropReason;
use duet_protocol::wire::{Kind, MESSAGE_MAX, SessionId};

use crate::world::{PROFILE, World};

fn home() -> SocketAddr {
    "192.0.2.1:4000".parse().unwrap()
}

/// A device that the gateway has met: its next HELLO carries a reading.
fn met(world: &mut World) -> Device<Software> {
    let mut device = world.opened();
    device.close();
    world.settle(&mut device);
    world.stored.0.borrow_mut().clear();
    device.set_early(Early::Stay);
    device
}

/// The device wakes with a reading: its HELLO.
fn wake(world: &World, device: &mut Device<Software>) -> Vec<u8> {
    device.send_reading(world.now.mono_us, 7, b"21.5", true).unwrap();
    device.open(world.now.mono_us);
    next(world, device).expect("a HELLO")
}

fn next(world: &World, device: &mut Device<Software>) -> Option<Vec<u8>> {
    let mut out = [0; MESSAGE_MAX];
    let len = device.poll_transmit(world.now.mono_us, &mut out)?;
    Some(out[..len].to_vec())
}

fn arrive(world: &mut World, from: SocketAddr, message: &[u8]) {
    world.shard.handle_datagram(world.now, from, message);
    turn(world);
}

fn turn(world: &mut World) {
    world.shard.handle_turn(world.now);
    world.shard.check();
}

/// What the gateway sends now, each with its destination.
fn sent(world: &mut World) -> Vec<(Path, Vec<u8>)> {
    let mut out = [0; MESSAGE_MAX];
    std::iter::from_fn(|| {
        world.shard.poll_transmit(&mut out).map(|one| (one.to, out[..one.len].to_vec()))
    })
    .collect()
}

/// Storage answers for the newest reading.
fn answer(world: &mut World, durable: bool) -> (SessionId, u32) {
    let token = world.stored.0.borrow().last().map(|one| (one.session, one.sequence)).unwrap();
    let mail = if durable { Mail::Durable(vec![token]) } else { Mail::NotStored(vec![token]) };
    world.shard.handle_mail(world.now, mail);
    turn(world);
    token
}

fn stored(world: &World) -> usize {
    world.stored.0.borrow().len()
}

#[test]
fn one_message_up_and_one_down_store_a_reading_of_a_device_that_was_met() {
    let mut world = World::new();
    let mut device = met(&mut world);
    device.set_early(Early::Leave);
    let hello = wake(&world, &mut device);
    arrive(&mut world, home(), &hello);
    assert!(
        sent(&mut world).is_empty(),
        "ACCEPT waits until it can say that the reading is stored"
    );
    assert_eq!(answer(&mut world, true).1, EARLY_SEQUENCE);
    let [(to, accept)] = &mut sent(&mut world)[..] else { panic!("ACCEPT") };
    assert_eq!((*to, Kind::of(accept)), (Path::Datagram(home().into()), Ok(Kind::Accept)));
    assert!(accept.len() <= hello.len());
    let told = device.handle_message(world.now.mono_us, accept).unwrap();
    assert_eq!(told, Event::Delivered, "stored, and no session is kept");
    assert!(
        device
            .poll_confirmed()
            .is_some_and(|done| Some(done.id) == world.stored.0.borrow().last().map(|one| one.id))
    );
    assert_eq!((next(&world, &mut device), stored(&world)), (None, 1));
}

#[test]
fn a_first_contact_is_asked_for_its_reading_in_a_record() {
    let mut world = World::new();
    let mut device = world.device(1, PROFILE, Transport::Datagram);
    device.set_early(Early::Stay);
    let hello = wake(&world, &mut device);
    arrive(&mut world, home(), &hello);
    assert_eq!(stored(&world), 0, "at mark 0 nobody can tell an old HELLO from a new one");
    let [(_, accept)] = &mut sent(&mut world)[..] else { panic!("ACCEPT at once") };
    device.handle_message(world.now.mono_us, accept).unwrap();
    let record = next(&world, &mut device).expect("the reading again");
    arrive(&mut world, home(), &record);
    assert_eq!((stored(&world), world.stored.0.borrow()[0].id.sequence), (1, EARLY_SEQUENCE));
}

#[test]
fn what_storage_answers_too_late_still_counts_and_nothing_is_stored_twice() {
    let mut world = World::new();
    let mut device = met(&mut world);
    let hello = wake(&world, &mut device);
    arrive(&mut world, home(), &hello);
    world.pass(500_000);
    turn(&mut world);
    let [(_, accept)] = &mut sent(&mut world)[..] else { panic!("ACCEPT after half a second") };
    let accept = std::mem::take(accept);
    device.handle_message(world.now.mono_us, &mut accept.clone()).unwrap();
    assert!(device.poll_confirmed().is_none(), "it says nothing of the reading");
    // R100: while the first copy is on its way, the second is not taken.
    let record = next(&world, &mut device).expect("the reading again");
    arrive(&mut world, home(), &record);
    assert_eq!(stored(&world), 1);
    assert_eq!(world.shard.counts.drops[DropReason::Replay as usize], 1, "and counted");
    answer(&mut world, true);
    world.settle(&mut device);
    world.pass(1_000_000);
    world.settle(&mut device);
    assert!(device.poll_confirmed().is_some());
    assert_eq!(stored(&world), 1);
}

#[test]
fn what_was_not_stored_is_taken_as_a_record() {
    let mut world = World::new();
    let mut device = met(&mut world);
    let hello = wake(&world, &mut device);
    arrive(&mut world, home(), &hello);
    answer(&mut world, false);
    let [(_, accept)] = &mut sent(&mut world)[..] else { panic!("ACCEPT") };
    device.handle_message(world.now.mono_us, accept).unwrap();
    world.settle(&mut device);
    assert!(device.poll_confirmed().is_some());
    let all = world.stored.0.borrow();
    assert_eq!((all.len(), all[0].id), (2, all[1].id), "under one name");
}

#[test]
fn a_hello_that_comes_again_is_stored_once_and_answered_where_it_came_from() {
    let mut world = World::new();
    let mut device = met(&mut world);
    let hello = wake(&world, &mut device);
    let elsewhere: SocketAddr = "198.51.100.7:7".parse().unwrap();
    for from in [home(), elsewhere, home()] {
        arrive(&mut world, from, &hello);
    }
    assert_eq!((stored(&world), sent(&mut world).len()), (1, 0));
    answer(&mut world, true);
    let to: Vec<_> = sent(&mut world).into_iter().map(|(to, _)| to).collect();
    assert_eq!(to, [Path::Datagram(home().into()), Path::Datagram(elsewhere.into())]);
    // R50, then R42: pending, the same ACCEPT; later, a challenge, and nothing is stored.
    arrive(&mut world, elsewhere, &hello);
    assert_eq!(Kind::of(&sent(&mut world)[0].1), Ok(Kind::Accept));
    world.pass(20_000_000);
    turn(&mut world);
    arrive(&mut world, elsewhere, &hello);
    assert_eq!(Kind::of(&sent(&mut world)[0].1), Ok(Kind::Challenge));
    assert_eq!(stored(&world), 1);
}

/// R88, R91: each of them has its answer, or its reason, and over a stream its close.
#[test]
fn each_time_that_a_hello_comes_while_its_reading_waits_is_answered_or_counted() {
    for is_revoked in [false, true] {
        let mut world = World::new();
        let mut device = world.opened();
        device.close();
        world.settle(&mut device);
        world.stored.0.borrow_mut().clear();
        let mut device = first_device(&world, Transport::Stream, 100);
        device.set_early(Early::Stay);
        let hello = wake(&world, &mut device);
        let streams: Vec<_> = (1..=6).map(StreamId).collect();
        streams.iter().for_each(|stream| {
            world.stream_message(*stream, &hello);
            turn(&mut world);
        });
        world.stream_message(streams[0], &hello);
        assert_eq!((stored(&world), sent(&mut world).len()), (1, 0));
        if is_revoked {
            let device = world.devices.revoke("device-1").unwrap();
            world.shard.handle_mail(world.now, Mail::Revoked(device));
        }
        answer(&mut world, true);
        let accepts = sent(&mut world).len();
        let drops = world.shard.counts.drops;
        let (proof, repeated) =
            (drops[DropReason::Proof as usize], drops[DropReason::Repeated as usize]);
        let expected = if is_revoked { (0, 4, 3) } else { (4, 0, 3) };
        assert_eq!((accepts, proof, repeated), expected);
        world.pass(1_000_000);
        turn(&mut world);
        let closed = world.take_closed();
        assert_eq!(closed.len(), if is_revoked { 6 } else { 3 }, "{closed:?}");
    }
}

#[test]
fn a_lost_accept_costs_a_challenge_and_no_second_copy() {
    let mut world = World::new();
    let mut device = met(&mut world);
    let hello = wake(&world, &mut device);
    arrive(&mut world, home(), &hello);
    answer(&mut world, true);
    assert_eq!(sent(&mut world).len(), 1, "ACCEPT, which is lost");
    // The pending session is over before the device asks again.
    world.pass(15_000_000);
    turn(&mut world);
    assert_eq!(world.shard.sessions(), 0);
    world.settle(&mut device);
    assert!(device.poll_confirmed().is_some(), "the id is the last one: stored");
    assert_eq!(stored(&world), 1);
}

/// R102: a HELLO whose reading waits for the disk, and that a newer one has overtaken meanwhile, is answered wherever it came
/// from.
#[test]
fn a_challenge_goes_wherever_a_hello_came_from_while_its_reading_was_stored() {
    let mut world = World::new();
    let mut device = met(&mut world);
    let elsewhere: SocketAddr = "198.51.100.9:9".parse().unwrap();
    let hello = wake(&world, &mut device);
    arrive(&mut world, home(), &hello);
    arrive(&mut world, elsewhere, &hello);
    assert!(sent(&mut world).is_empty(), "it waits");
    device.close();
    let newer = wake(&world, &mut device);
    arrive(&mut world, home(), &newer);
    let [(_, accept)] = &sent(&mut world)[..] else { panic!("ACCEPT") };
    assert_eq!(Kind::of(accept), Ok(Kind::Accept));
    answer(&mut world, true);
    let sent = sent(&mut world);
    let to: Vec<_> = sent.iter().map(|(to, one)| (*to, Kind::of(one).unwrap())).collect();
    let challenged = [home(), elsewhere].map(|from| (Path::Datagram(from.into()), Kind::Challenge));
    assert_eq!(to, challenged);
    assert!(sent.iter().all(|(_, challenge)| challenge.len() <= hello.len()));
}

/// R76: the gateway knows what came in the session before.
#[test]
fn a_reading_that_is_said_again_in_the_next_session_is_not_stored_again() {
    let mut world = World::new();
    let mut device = world.opened();
    device.send_reading(world.now.mono_us, 7, b"21.5", true).unwrap();
    let record = next(&world, &mut device).unwrap();
    arrive(&mut world, home(), &record);
    answer(&mut world, true);
    let acked = sent(&mut world);
    assert_eq!(acked.len(), 1, "the acknowledgement, which is lost");
    device.open(world.now.mono_us);
    world.stored.0.borrow_mut().iter_mut().for_each(|one| one.confirm = false);
    world.settle(&mut device);
    for _ in 0..6 {
        world.pass(1_000_000);
        world.settle(&mut device);
    }
    assert!(device.poll_confirmed().is_some());
    assert_eq!(stored(&world), 1);
    assert_eq!(world.shard.counts.readings_known, 1);
}

/// R100: what a newer session has overtaken is not taken, and nobody waits for storage to say a word of it.
#[test]
fn a_reading_that_a_newer_one_has_overtaken_leaves_nobody_waiting() {
    let mut world = World::new();
    let mut device = met(&mut world);
    let hello = wake(&world, &mut device);
    arrive(&mut world, home(), &hello);
    answer(&mut world, false);
    let [(_, accept)] = &mut sent(&mut world)[..] else { panic!("ACCEPT") };
    device.handle_message(world.now.mono_us, accept).unwrap();
    let late = next(&world, &mut device).expect("the reading again");
    device.send_reading(world.now.mono_us, 7, b"confirms the session", false).unwrap();
    let record = next(&world, &mut device).expect("the next reading");
    arrive(&mut world, home(), &record);
    // Its next HELLO carries the reading, which is stored; that session is never confirmed, so the one before lives on.
    device.open(world.now.mono_us);
    let hello = next(&world, &mut device).expect("a HELLO");
    arrive(&mut world, home(), &hello);
    answer(&mut world, true);
    assert_eq!(sent(&mut world).len(), 1, "ACCEPT, which is lost");
    let elsewhere: SocketAddr = "198.51.100.7:7".parse().unwrap();
    for from in [home(), elsewhere] {
        arrive(&mut world, from, &late);
        assert_eq!(sent(&mut world), []);
    }
    assert_eq!(stored(&world), 3);
    assert_eq!(world.shard.counts.drops[DropReason::Stale as usize], 2);
}

/// Device 1, as it was on its first day.
fn without_its_counter(world: &World) -> Device<Software> {
    first_device(world, Transport::Datagram, 1)
}

/// Device 1, which goes on with this counter.
fn first_device(world: &World, transport: Transport, fresh: u64) -> Device<Software> {
    let identity =
        duet_core::testing::identity(duet_protocol::identity::DeviceId([1; 8]), PROFILE.mode).0;
    let config = duet_device::Config {
        identity,
        gateway: world.gateway,
        profile: PROFILE,
        transport,
        fresh,
    };
    Device::seeded(config, [99; 32]).unwrap()
}

/// R102: silence would cost it half a minute.
#[test]
fn whoever_answers_a_challenge_late_is_in_within_one_more_round_trip() {
    let mut world = World::new();
    let mut old = world.device(1, PROFILE, Transport::Datagram);
    old.open(world.now.mono_us);
    world.settle(&mut old);
    let mut device = without_its_counter(&world);
    device.open(world.now.mono_us);
    let hello = next(&world, &mut device).expect("a HELLO");
    arrive(&mut world, home(), &hello);
    let mut challenge = sent(&mut world).pop().expect("a CHALLENGE").1;
    assert_eq!(Kind::of(&challenge), Ok(Kind::Challenge));
    device.handle_message(world.now.mono_us, &mut challenge).unwrap();
    let late = next(&world, &mut device).expect("its answer");
    // The challenge is no longer open when the answer comes.
    world.pass(40_000_000);
    arrive(&mut world, home(), &late);
    let mut again = sent(&mut world).pop().expect("no silence").1;
    assert_eq!(Kind::of(&again), Ok(Kind::Challenge));
    assert!(again.len() < late.len());
    device.handle_message(world.now.mono_us, &mut again).unwrap();
    let answer = next(&world, &mut device).expect("the second answer");
    arrive(&mut world, home(), &answer);
    let mut accept = sent(&mut world).pop().expect("an ACCEPT").1;
    device.handle_message(world.now.mono_us, &mut accept).unwrap();
    assert!(device.is_open());
}

/// R102: whoever plays back what a device sent before it lost its counter does not keep it out.
#[test]
fn a_device_without_its_counter_is_in_within_two_round_trips_whatever_is_played_back() {
    let mut world = World::new();
    let mut old = world.device(1, PROFILE, Transport::Datagram);
    let hellos: Vec<_> = (0..3)
        .map(|_| {
            old.close();
            old.open(world.now.mono_us);
            next(&world, &mut old).unwrap()
        })
        .collect();
    let mut device = without_its_counter(&world);
    let thief: SocketAddr = "198.51.100.7:7".parse().unwrap();
    arrive(&mut world, thief, &hellos[2]);
    let _ = sent(&mut world);
    device.open(world.now.mono_us);
    for played_back in &hellos[..2] {
        let hello = next(&world, &mut device).expect("a HELLO");
        arrive(&mut world, home(), &hello);
        for (_, mut message) in
            sent(&mut world).into_iter().filter(|(to, _)| *to == Path::Datagram(home().into()))
        {
            device.handle_message(world.now.mono_us, &mut message).unwrap();
        }
        // R46: what answered a challenge stands, whatever has a greater counter.
        arrive(&mut world, thief, played_back);
        let _ = sent(&mut world);
    }
    assert!(device.is_open());
    world.settle(&mut device);
    assert_eq!(world.shard.counts.confirmed, 1);
}

/// What is on its way to the disk when a shard is to end: its ACCEPT says that it is stored.
#[test]
fn a_reading_in_a_hello_has_its_answer_before_the_shard_ends() {
    for mail in [|| Mail::Drain, || Mail::HandOver] {
        let mut world = World::new();
        let mut device = met(&mut world);
        let hello = wake(&world, &mut device);
        arrive(&mut world, home(), &hello);
        world.shard.handle_mail(world.now, mail());
        turn(&mut world);
        assert!(sent(&mut world).is_empty() && !world.shard.is_finished());
        answer(&mut world, true);
        let [(_, accept)] = &mut sent(&mut world)[..] else { panic!("ACCEPT") };
        device.handle_message(world.now.mono_us, accept).unwrap();
        assert!(device.poll_confirmed().is_some());
        turn(&mut world);
        assert!(world.shard.is_finished());
        // A disk that does not answer keeps nobody.
        let mut world = World::new();
        let mut device = met(&mut world);
        let hello = wake(&world, &mut device);
        arrive(&mut world, home(), &hello);
        world.shard.handle_mail(world.now, mail());
        turn(&mut world);
        world.pass(500_000);
        assert!(world.shard.poll_timeout().unwrap() <= world.now.mono_us);
        turn(&mut world);
        assert_eq!(sent(&mut world).len(), 1, "ACCEPT without a word of the reading");
        turn(&mut world);
        assert!(world.shard.is_finished());
    }
}

/// R46, also in the very turn in which the newer one has waited long enough for the disk.
#[test]
fn no_older_hello_takes_the_place_of_one_that_goes_on_in_the_same_turn() {
    let mut world = World::new();
    let mut device = met(&mut world);
    device.open(world.now.mono_us);
    let older = next(&world, &mut device).expect("a HELLO, which is kept back");
    device.close();
    let newer = wake(&world, &mut device);
    arrive(&mut world, home(), &newer);
    world.pass(500_000);
    arrive(&mut world, "198.51.100.7:7".parse().unwrap(), &older);
    let sent = sent(&mut world);
    let kinds: Vec<_> = sent.iter().map(|(_, message)| Kind::of(message).unwrap()).collect();
    assert!(kinds.contains(&Kind::Accept) && kinds.contains(&Kind::Challenge), "{kinds:?}");
    let accepted = sent.iter().find(|(to, _)| *to == Path::Datagram(home().into()));
    device.handle_message(world.now.mono_us, &mut accepted.unwrap().1.clone()).unwrap();
    // The first copy is still on its way when the reading comes again.
    world.settle(&mut device);
    world.pass(1_000_000);
    world.settle(&mut device);
    assert!(device.poll_confirmed().is_some());
    assert_eq!((world.shard.counts.confirmed, world.shard.counts.resets), (2, 0));
}

/// R34: ids are drawn, and one that was drawn for a handshake that waits for the disk is not drawn once more in the turn in
/// which it goes on, nor while its reading is still on its way.
#[test]
fn a_session_id_is_given_once_also_where_a_handshake_waits_for_the_disk() {
    let slot = |seed: u8| DeviceId([seed; 8]).slot();
    let (one, other) = (1..=255)
        .flat_map(|one| (one + 1..=255).map(move |other| (one, other)))
        .find(|(one, other)| slot(*one) == slot(*other))
        .unwrap();
    let mut world = World::new();
    let engine = Batched::new(duet_curve::Backend::detect(), &[3; 32]);
    // Each draw gives the same id.
    let random = Random::new(|out| out.fill(7));
    let devices = std::sync::Arc::clone(&world.devices);
    world.shard = Shard::new(testing::settings(), devices, engine, world.stored.clone(), random);
    let hellos = [one, other].map(|seed| {
        let identity = world.devices.enrol(&format!("device-{seed}"), DeviceId([seed; 8]), PROFILE);
        world.devices.by_name(&format!("device-{seed}")).unwrap().raise_mark(1);
        let (gateway, transport) = (world.gateway, Transport::Datagram);
        let config = Config { identity, gateway, profile: PROFILE, transport, fresh: 9 };
        let mut device = Device::<Software>::seeded(config, [seed; 32]).unwrap();
        device.set_early(Early::Stay);
        wake(&world, &mut device)
    });
    arrive(&mut world, home(), &hellos[0]);
    world.pass(500_000);
    arrive(&mut world, home(), &hellos[1]);
    assert_eq!((sent(&mut world).len(), stored(&world)), (1, 1));
    assert_eq!(world.shard.counts.drops[DropReason::SessionsFull as usize], 1);
    world.pass(11_000_000);
    turn(&mut world);
    assert_eq!(world.shard.sessions(), 0, "nobody has confirmed it");
    arrive(&mut world, home(), &hellos[1]);
    assert_eq!((sent(&mut world).len(), stored(&world)), (0, 1));
    answer(&mut world, true);
    arrive(&mut world, home(), &hellos[1]);
    assert_eq!(stored(&world), 2, "what had the id is done with");
}

/// Keys that are replaced while a reading waits for the disk: its ACCEPT is signed with the one that its device knows, or, where
/// that is gone, not made.
#[test]
fn a_handshake_that_waits_for_the_disk_goes_on_with_the_key_that_it_began_with() {
    let source = KeySource::Xor(Transfer::Random);
    let profile = Profile { mode: Mode::RegisteredCertificate, source };
    for stays in [true, false] {
        let mut world = World::new();
        let identity = world.devices.enrol("device-1", DeviceId([1; 8]), profile);
        world.devices.by_name("device-1").unwrap().raise_mark(1);
        let (gateway, transport) = (world.gateway, Transport::Datagram);
        let config = Config { identity, gateway, profile, transport, fresh: 9 };
        let mut device = Device::<Software>::seeded(config, [1; 32]).unwrap();
        device.set_early(Early::Stay);
        let hello = wake(&world, &mut device);
        arrive(&mut world, home(), &hello);
        let secret = testing::scalar(b"another key");
        let fingerprint = Fingerprint::of_certificate(b"another certificate");
        let gateway = Gateway { key_id: 2, fingerprint, key: secret.public_key() };
        let mut keys = vec![GatewayKey::new(gateway, secret)];
        keys.extend(stays.then(testing::gateway_key));
        let settings = testing::settings();
        let renewal = Renewal {
            keys,
            idle_us: settings.idle_us,
            pending_us: settings.pending_us,
            lifetime_s: settings.lifetime_s,
            sessions_max: settings.sessions_max,
            pending_max: settings.pending_max,
        };
        world.shard.handle_mail(world.now, Mail::Renew(Box::new(renewal)));
        answer(&mut world, true);
        let mut sent = sent(&mut world);
        assert_eq!(sent.len(), usize::from(stays));
        assert_eq!(world.shard.counts.drops[DropReason::GatewayKey as usize], u64::from(!stays));
        for (_, accept) in &mut sent {
            device.handle_message(world.now.mono_us, accept).unwrap();
            assert!(device.poll_confirmed().is_some());
            assert_eq!(world.shard.counts.accepts_retiring, 1);
        }
    }
}
