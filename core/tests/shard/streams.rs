//! Answers go where the question came from and reach the one who asks; streams end when their time is there.

use std::net::SocketAddr;

use duet_core::testing;
use duet_core::{Close, Handler as _, Mail, Path, Settings, StreamId};
use duet_device::{Device, Event, Software};
use duet_protocol::profile::Transport;
use duet_protocol::reason::DropReason;
use duet_protocol::wire::Kind;

use crate::world::{PROFILE, World, next, sent};

const STREAM: StreamId = StreamId(5);

/// A device that is connected over the stream.
fn connected(world: &mut World) -> Device<Software> {
    let mut device = world.device(1, PROFILE, Transport::Stream);
    device.open(world.now.mono_us);
    let hello = next(world, &mut device);
    world.stream_message(STREAM, &hello);
    let mut accept = sent(world).remove(0).1;
    device.handle_message(world.now.mono_us, &mut accept).unwrap();
    device
}

fn durable(world: &mut World, number: usize) {
    let reading = world.stored.0.borrow()[number].clone();
    let mail = Mail::Durable(vec![(reading.session, reading.sequence)]);
    world.shard.handle_mail(world.now, mail);
}

#[test]
fn who_has_shut_down_his_sending_half_still_gets_his_acknowledgements() {
    let mut world = World::new();
    let mut device = connected(&mut world);
    for payload in [b"one", b"two"] {
        device.send_reading(world.now.mono_us, 1, payload, true).unwrap();
        let record = next(&world, &mut device);
        world.stream_message(STREAM, &record);
    }
    // The end of his direction comes with his last message.
    world.shard.handle_stream_ended(world.now, STREAM);
    assert!(sent(&mut world).is_empty());
    assert_eq!(world.shard.poll_close(), None, "two readings wait for the disk");
    for number in 0..2 {
        world.pass(1_000_000);
        durable(&mut world, number);
        let mut acks = sent(&mut world);
        assert_eq!(acks[0].0, Path::Stream(STREAM));
        let told = device.handle_message(world.now.mono_us, &mut acks[0].1);
        assert_eq!(told, Ok(Event::Confirmed));
    }
    assert_eq!(world.shard.poll_close(), Some((STREAM, Close::WhenFlushed)), "nothing is owed");
    world.pass(5_000_000);
    world.shard.handle_turn(world.now);
    assert_eq!(world.shard.poll_close(), Some((STREAM, Close::NotFlushed)));
}

#[test]
fn who_has_shut_down_his_sending_half_gets_accept_and_does_not_stay_for_what_never_comes() {
    let mut world = World::new();
    let mut device = world.device(1, PROFILE, Transport::Stream);
    device.open(world.now.mono_us);
    let hello = next(&world, &mut device);
    world.stream_message(STREAM, &hello);
    world.shard.handle_stream_ended(world.now, STREAM);
    assert_eq!(world.shard.poll_close(), None, "a HELLO waits for its batch");
    assert_eq!(Kind::of(&sent(&mut world)[0].1), Ok(Kind::Accept));
    assert_eq!(world.shard.poll_close(), Some((STREAM, Close::WhenFlushed)));

    let mut world = World::new();
    let mut device = connected(&mut world);
    device.send_reading(world.now.mono_us, 1, b"never durable", true).unwrap();
    let record = next(&world, &mut device);
    world.stream_message(STREAM, &record);
    assert!(sent(&mut world).is_empty());
    world.shard.handle_stream_ended(world.now, STREAM);
    world.pass(5_000_000);
    assert!(world.shard.poll_timeout().unwrap() <= world.now.mono_us);
    sent(&mut world);
    assert_eq!(world.shard.poll_close(), Some((STREAM, Close::WhenFlushed)));
}

#[test]
fn a_record_that_comes_again_is_answered_where_it_came_from() {
    let mut world = World::new();
    let mut device = world.opened();
    let home: SocketAddr = "192.0.2.1:4000".parse().unwrap();
    let moved: SocketAddr = "192.0.2.1:4001".parse().unwrap();
    device.send_reading(world.now.mono_us, 1, b"one", true).unwrap();
    let record = next(&world, &mut device);
    world.shard.handle_datagram(world.now, home, &record);
    sent(&mut world);
    durable(&mut world, 0);
    assert_eq!(sent(&mut world)[0].0, Path::Datagram(home.into()), "and this answer is lost");
    // Meanwhile the translator has given the device another port.
    world.shard.handle_datagram(world.now, moved, &record);
    let mut acks = sent(&mut world);
    assert_eq!(acks[0].0, Path::Datagram(moved.into()));
    assert!(acks[0].1.len() <= record.len(), "no more bytes than came from there");
    let told = device.handle_message(world.now.mono_us, &mut acks[0].1);
    assert_eq!(told, Ok(Event::Confirmed));
    // Who plays the record back does not move the session.
    device.send_reading(world.now.mono_us, 1, b"two", true).unwrap();
    let record = next(&world, &mut device);
    world.shard.handle_datagram(world.now, home, &record);
    sent(&mut world);
    world.shard.handle_datagram(world.now, moved, &record);
    assert!(sent(&mut world).is_empty());
    durable(&mut world, 1);
    assert_eq!(sent(&mut world)[0].0, Path::Datagram(home.into()));
}

/// The answer that waits for the disk goes where the device has gone meanwhile, and costs that address's own bytes alone.
#[test]
fn a_record_that_comes_again_before_it_is_durable_is_acknowledged_where_it_came_from() {
    let mut world = World::new();
    let mut device = world.opened();
    let [home, moved]: [SocketAddr; 2] =
        ["192.0.2.1:4000", "192.0.2.1:4001"].map(|text| text.parse().unwrap());
    device.send_reading(world.now.mono_us, 1, b"one", true).unwrap();
    let record = next(&world, &mut device);
    world.shard.handle_datagram(world.now, home, &record);
    sent(&mut world);
    for _ in 0..3 {
        world.shard.handle_datagram(world.now, moved, &record);
        assert_eq!(sent(&mut world), []);
    }
    durable(&mut world, 0);
    let mut acks = sent(&mut world);
    let to: Vec<_> = acks.iter().map(|(to, _)| *to).collect();
    assert_eq!(to, [home, moved].map(|to| Path::Datagram(to.into())));
    assert!(acks[1].1.len() <= record.len(), "no more bytes than came from there");
    let told = device.handle_message(world.now.mono_us, &mut acks[1].1);
    assert_eq!(told, Ok(Event::Confirmed));
    assert_eq!(sent(&mut world), []);
    // What could not be stored is not acknowledged anywhere, and is taken when it comes again.
    device.send_reading(world.now.mono_us, 1, b"two", true).unwrap();
    let record = next(&world, &mut device);
    for from in [home, moved] {
        world.shard.handle_datagram(world.now, from, &record);
        sent(&mut world);
    }
    let reading = world.stored.0.borrow()[1].clone();
    world.shard.handle_mail(world.now, Mail::NotStored(vec![(reading.session, reading.sequence)]));
    assert_eq!(sent(&mut world), []);
    world.shard.handle_datagram(world.now, moved, &record);
    sent(&mut world);
    durable(&mut world, 2);
    let to: Vec<_> = sent(&mut world).iter().map(|(to, _)| *to).collect();
    assert_eq!(to, [home, moved].map(|to| Path::Datagram(to.into())));
}

/// R111: while a command waits, too. The acknowledgement has its bytes before the question has any, and for one record there
/// is one question.
#[test]
fn a_waiting_command_takes_no_acknowledgement_its_bytes_and_asks_once_for_a_record() {
    const PROVE: usize = 26;
    const ACK: usize = 28;
    for comes_twice in [false, true] {
        let mut world = World::new();
        let mut device = world.opened();
        let [home, moved]: [SocketAddr; 2] =
            ["192.0.2.1:4000", "198.51.100.7:7"].map(|text| text.parse().unwrap());
        world.command(1, &[7; 500], 60);
        assert_eq!(sent(&mut world).len(), 1, "the command, which is lost");
        for (number, payload, asked) in [(0, &b""[..], 0), (1, &[7; 40][..], 1)] {
            device.send_reading(world.now.mono_us, 1, payload, true).unwrap();
            let record = next(&world, &mut device);
            // It comes late, or once more.
            let newest = if comes_twice {
                record.clone()
            } else {
                device.send_reading(world.now.mono_us, 1, b"newer", false).unwrap();
                next(&world, &mut device)
            };
            world.shard.handle_datagram(world.now, home, &newest);
            sent(&mut world);
            world.shard.handle_datagram(world.now, moved, &record);
            let questions: Vec<_> = sent(&mut world).iter().map(|(_, one)| one.len()).collect();
            assert_eq!(questions, vec![PROVE; asked], "{} bytes came", record.len());
            let place = world.stored.0.borrow().iter().rposition(|one| one.confirm).unwrap();
            durable(&mut world, place);
            let mut acks = sent(&mut world);
            acks.retain(|(to, _)| *to == Path::Datagram(moved.into()));
            let [(_, ack)] = &mut acks[..] else { panic!("reading {number}: {acks:?}") };
            assert_eq!(ack.len(), ACK);
            let told = device.handle_message(world.now.mono_us, ack);
            assert_eq!(told, Ok(Event::Confirmed));
        }
    }
}

/// R118: whoever lost his connection sends over the next one what he waits with. That one is answered, and closed once it was,
/// if the peer has said all.
#[test]
fn a_record_that_comes_again_over_the_next_stream_is_acknowledged_there() {
    let mut world = World::new();
    let mut device = connected(&mut world);
    device.send_reading(world.now.mono_us, 1, b"one", true).unwrap();
    let record = next(&world, &mut device);
    world.stream_message(STREAM, &record);
    sent(&mut world);
    world.shard.handle_stream_closed(world.now, STREAM);
    let again = StreamId(6);
    world.stream_message(again, &record);
    world.shard.handle_stream_ended(world.now, again);
    assert_eq!(sent(&mut world), []);
    assert_eq!(world.shard.poll_close(), None, "it is owed its acknowledgement");
    durable(&mut world, 0);
    let mut acks = sent(&mut world);
    let (to, ack) = acks.last_mut().unwrap();
    assert_eq!(*to, Path::Stream(again));
    assert_eq!(device.handle_message(world.now.mono_us, ack), Ok(Event::Confirmed));
    assert_eq!(world.shard.poll_close(), Some((again, Close::WhenFlushed)));
}

/// Of a HELLO that waits for its batch, too.
#[test]
fn a_hello_that_comes_again_while_it_waits_is_answered_where_it_came_from() {
    let mut world = World::new();
    let mut device = world.device(1, PROFILE, Transport::Stream);
    device.open(world.now.mono_us);
    let hello = next(&world, &mut device);
    let (again, never) = (StreamId(6), StreamId(7));
    for stream in [STREAM, again] {
        world.stream_message(stream, &hello);
    }
    world.shard.handle_stream_closed(world.now, STREAM);
    world.shard.handle_stream_ended(world.now, again);
    assert_eq!(world.shard.poll_close(), None, "it is owed its ACCEPT");
    let mut accepts = sent(&mut world);
    let (to, accept) = accepts.last_mut().unwrap();
    assert_eq!((*to, Kind::of(accept)), (Path::Stream(again), Ok(Kind::Accept)));
    device.handle_message(world.now.mono_us, accept).unwrap();
    assert_eq!(world.shard.poll_close(), Some((again, Close::WhenFlushed)));
    assert_eq!(world.shard.counts.accepts, 1);
    // One that is worth nothing is met like any other, wherever it comes again.
    let mut bad = hello.clone();
    *bad.last_mut().unwrap() ^= 1;
    for stream in [never, StreamId(8)] {
        world.stream_message(stream, &bad);
    }
    assert_eq!(sent(&mut world), []);
    world.pass(1_000_000);
    sent(&mut world);
    assert_eq!(world.take_closed(), [never, StreamId(8)]);
    let drops = world.shard.counts.drops;
    assert_eq!(drops[DropReason::HelloOpen as usize] + drops[DropReason::Repeated as usize], 2);
}

/// The answer to one question does not count for another.
#[test]
fn who_is_challenged_after_the_end_of_his_direction_gets_his_acknowledgement_too() {
    let mut world = World::new();
    let mut device = world.device(1, PROFILE, Transport::Stream);
    device.open(world.now.mono_us);
    let hello = next(&world, &mut device);
    world.stream_message(STREAM, &hello);
    let mut accept = sent(&mut world).remove(0).1;
    device.handle_message(world.now.mono_us, &mut accept).unwrap();
    device.send_reading(world.now.mono_us, 1, b"one", true).unwrap();
    let record = next(&world, &mut device);
    world.stream_message(STREAM, &record);
    sent(&mut world);
    // Its session is confirmed: these bytes are stale.
    world.stream_message(STREAM, &hello);
    world.shard.handle_stream_ended(world.now, STREAM);
    assert_eq!(Kind::of(&sent(&mut world)[0].1), Ok(Kind::Challenge));
    assert_eq!(world.shard.poll_close(), None, "a reading waits for the disk");
    durable(&mut world, 0);
    let mut acks = sent(&mut world);
    let told = device.handle_message(world.now.mono_us, &mut acks[0].1);
    assert_eq!(told, Ok(Event::Confirmed));
    assert_eq!(world.shard.poll_close(), Some((STREAM, Close::WhenFlushed)));
}

#[test]
fn a_drain_acknowledges_what_is_on_its_way_before_it_says_goodbye() {
    let mut world = World::new();
    let mut device = world.opened();
    device.send_reading(world.now.mono_us, 1, b"one", true).unwrap();
    let record = next(&world, &mut device);
    world.shard.handle_datagram(
        world.now,
        "192.0.2.1:4000".parse::<SocketAddr>().unwrap(),
        &record,
    );
    sent(&mut world);
    world.shard.handle_mail(world.now, Mail::Drain);
    assert!(sent(&mut world).is_empty() && !world.shard.is_finished());
    durable(&mut world, 0);
    let told: Vec<_> = sent(&mut world)
        .iter_mut()
        .map(|(_, message)| device.handle_message(world.now.mono_us, message).unwrap())
        .map(|event| format!("{event:?}"))
        .collect();
    assert_eq!(told, ["Confirmed", "Closed"]);
    assert!(world.shard.is_finished());
}

#[test]
fn a_drain_does_not_wait_for_a_disk_that_is_stuck() {
    let mut world = World::new();
    let mut device = world.opened();
    device.send_reading(world.now.mono_us, 1, b"one", true).unwrap();
    let record = next(&world, &mut device);
    world.shard.handle_datagram(
        world.now,
        "192.0.2.1:4000".parse::<SocketAddr>().unwrap(),
        &record,
    );
    world.shard.handle_mail(world.now, Mail::Drain);
    assert!(sent(&mut world).is_empty());
    world.pass(5_000_000);
    assert!(world.shard.poll_timeout().unwrap() <= world.now.mono_us);
    assert_eq!(sent(&mut world).len(), 1, "its close");
    assert!(world.shard.is_finished());
}

/// R89: whatever was wrong with it, and however long it waited for its batch.
#[test]
fn a_stream_is_closed_at_one_time_after_its_bad_message_arrived() {
    let mut world = World::new();
    let mut device = world.device(1, PROFILE, Transport::Stream);
    device.open(world.now.mono_us);
    let mut bad = next(&world, &mut device);
    *bad.last_mut().unwrap() ^= 1;
    world.stream_message(StreamId(1), b"nonsense");
    world.stream_message(StreamId(2), &bad);
    // A busy shard answers it late.
    world.pass(600_000);
    sent(&mut world);
    assert_eq!(world.shard.counts.drops[DropReason::HelloOpen as usize], 1);
    world.pass(399_999);
    sent(&mut world);
    assert_eq!(world.take_closed(), []);
    world.pass(1);
    sent(&mut world);
    assert_eq!(world.take_closed(), [StreamId(1), StreamId(2)]);
}

/// A worthless HELLO costs its sender its place, whatever carried it.
#[test]
fn a_flood_over_streams_from_one_address_leaves_the_batches_to_others() {
    let mut world = World::new();
    let flooder: SocketAddr = "203.0.113.9:1".parse().unwrap();
    let mut device = world.device(1, PROFILE, Transport::Stream);
    let (mut number, mut answered) = (1_000, 0);
    for turn in 0..40 {
        for _ in 0..64 {
            device.close();
            device.open(world.now.mono_us);
            let mut bad = next(&world, &mut device);
            *bad.last_mut().unwrap() ^= 1;
            number += 1;
            let (stream, now) = (StreamId(number), world.now);
            assert!(world.shard.handle_stream_opened(now, stream, flooder, now.mono_us));
            world.shard.handle_message(now, stream, &bad);
        }
        sent(&mut world);
        while let Some(event) = world.shard.poll_event() {
            if let duet_core::Event::HellosAnswered { count, .. } = event
                && turn > 0
            {
                answered += count;
            }
        }
        world.pass(10_000);
    }
    let refused = world.shard.counts.drops[DropReason::SourceFull as usize];
    assert!(answered <= 39 * 4 && refused >= 39 * 60, "{answered} answered, {refused} refused");
    let mut honest = world.device(2, PROFILE, Transport::Stream);
    honest.open(world.now.mono_us);
    let hello = next(&world, &mut honest);
    world.stream_message(STREAM, &hello);
    assert_eq!(sent(&mut world)[0].0, Path::Stream(STREAM));
}

/// One reason for each input: also for those that nobody answers any more, once for each time that they came.
#[test]
fn hellos_that_wait_when_a_shard_is_to_end_are_counted_and_keep_it_no_longer() {
    for mail in [|| Mail::Drain, || Mail::HandOver] {
        let mut world = World::new();
        world.shard = world.shard_with(Settings { retry_from: 1_000, ..testing::settings() });
        let mut device = world.device(1, PROFILE, Transport::Datagram);
        device.open(world.now.mono_us);
        let good = next(&world, &mut device);
        let from = |host: u8| SocketAddr::from(([192, 0, 2, host], 4_000));
        for host in 0..100 {
            let mut bad = good.clone();
            *bad.last_mut().unwrap() ^= host + 1;
            world.shard.handle_datagram(world.now, from(host), &bad);
            (host == 99).then(|| world.shard.handle_datagram(world.now, from(host + 1), &bad));
        }
        world.shard.handle_mail(world.now, mail());
        sent(&mut world);
        let drops = world.shard.counts.drops;
        assert!(drops[DropReason::HelloQueueFull as usize] > 1);
        assert_eq!(drops.iter().sum::<u64>(), 101);
        assert!(world.shard.is_finished());
        assert!(world.shard.poll_timeout().unwrap() > world.now.mono_us, "nothing waits");
    }
}

/// They came before their sender was noticed. Nobody waits for an answer there any more, so their places are free for others.
#[test]
fn hellos_that_are_refused_while_they_wait_are_owed_nothing() {
    let mut world = World::new();
    let flooder: SocketAddr = "203.0.113.9:1".parse().unwrap();
    let mut device = world.device(1, PROFILE, Transport::Stream);
    device.open(world.now.mono_us);
    let hello = next(&world, &mut device);
    for number in 0..200 {
        let mut bad = hello.clone();
        let place = bad.len() - 16;
        bad[place] ^= 1 + number;
        let (stream, now) = (StreamId(number.into()), world.now);
        assert!(world.shard.handle_stream_opened(now, stream, flooder, now.mono_us));
        world.shard.handle_message(now, stream, &bad);
    }
    (0..4).for_each(|_| drop(sent(&mut world)));
    assert!(world.shard.counts.drops[DropReason::SourceFull as usize] > 100);
}
