//! What a shard says of commands to a device that wants to sleep, and when.

use duet_core::{Command, CommandFailure, Event as ShardEvent, Handler, Mail, Path, StreamId};
use duet_device::{Device, Event, Software};
use duet_protocol::identity::DeviceId;
use duet_protocol::profile::Transport;
use duet_protocol::wire::{MESSAGE_MAX, SessionId};

use crate::world::{PROFILE, World, next, sent};

fn command(token: u64) -> Command {
    Command {
        token,
        device: DeviceId([1; 8]),
        registration: 0,
        number: u32::try_from(token).unwrap(),
        payload: b"do".to_vec(),
        timeout: std::time::Duration::from_secs(60),
        patient: true,
    }
}

/// The record of the result that the shard tells of.
fn record(world: &mut World) -> Option<(SessionId, u32)> {
    std::iter::from_fn(|| world.shard.poll_event()).find_map(|event| match event {
        ShardEvent::CommandResult { record, .. } => record,
        ShardEvent::UnexpectedResult { record, .. } => Some(record),
        _ => None,
    })
}

/// Carries messages until both sides are silent; the device does what it is told.
fn settle(world: &mut World, device: &mut Device<Software>) -> Vec<u32> {
    let mut done = Vec::new();
    let from: std::net::SocketAddr = "192.0.2.1:4000".parse().unwrap();
    loop {
        let (mut moved, mut out) = (false, [0; MESSAGE_MAX]);
        while let Some(len) = device.poll_transmit(world.now.mono_us, &mut out) {
            world.shard.handle_datagram(world.now, from, &out[..len]);
            moved = true;
        }
        world.shard.handle_turn(world.now);
        while let Some(sent) = world.shard.poll_transmit(&mut out) {
            moved = true;
            let event = device.handle_message(world.now.mono_us, &mut out[..sent.len]);
            if let Ok(Event::Command { command, .. }) = event {
                done.push(command);
                device.send_result(command, 0, b"done");
            }
        }
        if !moved {
            return done;
        }
    }
}

/// R113: whoever queues commands gives the next one when it has recorded the result of the last. Until it says so, a device
/// is not told that nothing waits, though the shard has no command for it.
#[test]
fn until_a_result_is_recorded_more_may_wait() {
    let mut world = World::new();
    let mut device = world.opened();
    world.shard.handle_mail(world.now, Mail::Command(command(1)));
    assert_eq!(settle(&mut world, &mut device), [1]);
    let first = record(&mut world).unwrap();
    device.rest(world.now.mono_us);
    settle(&mut world, &mut device);
    assert!(!device.may_sleep(world.now.mono_us), "its result is not acknowledged");
    // The result again, as after an answer that was lost on the way to whoever records it.
    world.pass(1_000_000);
    settle(&mut world, &mut device);
    assert_eq!(record(&mut world), None, "the same record is no second result");

    // The next command comes with the acknowledgement, and goes with it.
    world.shard.handle_mail(world.now, Mail::Command(command(2)));
    world.shard.handle_mail(world.now, Mail::Durable(vec![first]));
    assert_eq!(settle(&mut world, &mut device), [2]);
    let second = record(&mut world).unwrap();
    assert!(!device.may_sleep(world.now.mono_us));
    world.shard.handle_mail(world.now, Mail::Durable(vec![second]));
    settle(&mut world, &mut device);
    assert!(device.may_sleep(world.now.mono_us), "told with the acknowledgement");
}

/// A result that could not be recorded is told of again when its record comes again, and acknowledged once it is.
#[test]
fn a_result_that_was_not_recorded_is_taken_when_it_comes_again() {
    let mut world = World::new();
    let mut device = world.opened();
    world.shard.handle_mail(world.now, Mail::Command(command(1)));
    assert_eq!(settle(&mut world, &mut device), [1]);
    let first = record(&mut world).unwrap();
    world.shard.handle_mail(world.now, Mail::NotStored(vec![first]));
    device.rest(world.now.mono_us);
    settle(&mut world, &mut device);
    assert!(!device.may_sleep(world.now.mono_us));
    world.pass(1_000_000);
    settle(&mut world, &mut device);
    assert_eq!(record(&mut world), Some(first), "the same record");
    world.shard.handle_mail(world.now, Mail::Durable(vec![first]));
    settle(&mut world, &mut device);
    device.rest(world.now.mono_us);
    settle(&mut world, &mut device);
    assert!(device.may_sleep(world.now.mono_us));
    // A drain waits for nothing.
    world.shard.handle_mail(world.now, Mail::HandOver);
    world.shard.handle_turn(world.now);
    assert!(world.shard.is_finished());
}

/// R71: a stream needs no proof, whoever plays its HELLO back over another one.
#[test]
fn a_command_goes_out_on_a_stream_whose_hello_came_over_another_one_too() {
    let mut world = World::new();
    let mut device = world.device(1, PROFILE, Transport::Stream);
    device.open(world.now.mono_us);
    let hello = next(&world, &mut device);
    world.stream_message(StreamId(1), &hello);
    let mut accept = sent(&mut world);
    world.stream_message(StreamId(2), &hello);
    assert_eq!(sent(&mut world).remove(0), (Path::Stream(StreamId(2)), accept[0].1.clone()));
    device.handle_message(world.now.mono_us, &mut accept[0].1).unwrap();
    let record = next(&world, &mut device);
    world.stream_message(StreamId(1), &record);
    sent(&mut world);
    let long = Command { payload: vec![7; 1_024], ..command(1) };
    world.shard.handle_mail(world.now, Mail::Command(long));
    let gone: Vec<_> = sent(&mut world).into_iter().map(|(to, _)| to).collect();
    assert_eq!(gone, [Path::Stream(StreamId(1))]);
}

/// A session outlives its stream, and its device is met again over the next one.
#[test]
fn nothing_is_sent_on_a_stream_that_has_ended() {
    let ends: [fn(&mut World); 2] = [
        |world| world.shard.handle_stream_closed(world.now, StreamId(1)),
        |world| world.shard.handle_stream_ended(world.now, StreamId(1)),
    ];
    for end in ends {
        let mut world = World::new();
        let mut device = world.device(1, PROFILE, Transport::Stream);
        device.open(world.now.mono_us);
        let hello = next(&world, &mut device);
        world.stream_message(StreamId(1), &hello);
        let mut accept = sent(&mut world);
        device.handle_message(world.now.mono_us, &mut accept[0].1).unwrap();
        let mut record = |world: &mut World, stream| {
            device.send_reading(world.now.mono_us, 1, b"x", false).unwrap();
            let record = next(world, &mut device);
            world.stream_message(stream, &record);
            sent(world).into_iter().map(|(to, _)| to).collect::<Vec<_>>()
        };
        assert!(record(&mut world, StreamId(1)).is_empty());
        world.shard.handle_mail(world.now, Mail::Command(command(1)));
        assert_eq!(sent(&mut world).len(), 1, "on the stream");
        end(&mut world);
        while world.shard.poll_event().is_some() {}
        for _ in 0..3 {
            world.pass(1_000_000);
            assert!(sent(&mut world).is_empty());
            assert_eq!(world.shard.poll_event(), None, "and is not told as sent");
        }
        let hasty = Command { patient: false, ..command(1) };
        world.shard.handle_mail(world.now, Mail::Command(hasty));
        sent(&mut world);
        let told = std::iter::from_fn(|| world.shard.poll_event()).collect::<Vec<_>>();
        let refused = Err(CommandFailure::NotConnected);
        assert_eq!(told, [ShardEvent::CommandResult { token: 1, result: refused, record: None }]);
        assert_eq!(record(&mut world, StreamId(2)), [Path::Stream(StreamId(2))], "at once");
    }
}

/// R80: the next command goes out when the one before is over, and in no moment between does nothing wait.
#[test]
fn a_command_takes_the_place_of_one_that_is_over() {
    let mut world = World::new();
    let mut device = world.opened();
    world.shard.handle_mail(world.now, Mail::Command(command(1)));
    let by = command(2);
    world.shard.handle_mail(world.now, Mail::ReplaceCommand { over: 1, by });
    assert_eq!(settle(&mut world, &mut device), [2]);
    // What is over already is in nobody's way.
    let by = command(3);
    world.shard.handle_mail(world.now, Mail::ReplaceCommand { over: 2, by });
    assert_eq!(settle(&mut world, &mut device), [3]);
    world.shard.handle_mail(world.now, Mail::CommandsBehind(true));
    let second = record(&mut world).unwrap();
    let third = record(&mut world);
    world.shard.handle_mail(world.now, Mail::Durable([second].into_iter().chain(third).collect()));
    device.rest(world.now.mono_us);
    settle(&mut world, &mut device);
    assert!(!device.may_sleep(world.now.mono_us), "who may be behind says nothing");
    world.shard.handle_mail(world.now, Mail::CommandsBehind(false));
    device.send_reading(world.now.mono_us, 1, b"x", false).unwrap();
    device.rest(world.now.mono_us);
    settle(&mut world, &mut device);
    assert!(device.may_sleep(world.now.mono_us));
}

/// A device that is registered anew under the same id is another one: what was queued for the one before is not for it.
#[test]
fn a_command_goes_to_the_registration_that_it_is_for_and_to_no_other() {
    let mut world = World::new();
    let mut device = world.opened();
    settle(&mut world, &mut device);
    let former = Command { registration: 7, ..command(1) };
    world.shard.handle_mail(world.now, Mail::Command(former.clone()));
    for _ in 0..3 {
        world.now.mono_us += 2_000_000;
        device.send_reading(world.now.mono_us, 1, b"here", true).unwrap();
        assert_eq!(settle(&mut world, &mut device), [0; 0]);
    }
    let by = command(2);
    world.shard.handle_mail(world.now, Mail::ReplaceCommand { over: 1, by });
    assert_eq!(settle(&mut world, &mut device), [2]);
    // Nor is it there for whoever does not wait.
    std::iter::from_fn(|| world.shard.poll_event()).for_each(drop);
    let now = Command { patient: false, token: 3, number: 3, ..former };
    world.shard.handle_mail(world.now, Mail::Command(now));
    let ended = world.command_result();
    assert_eq!(ended, Some((3, Err(CommandFailure::NotConnected))));
}
