//! Who a shard says is there, and why somebody is not any more.

use duet_core::{Contact, Event, Gone, Handler, Mail};
use duet_protocol::identity::DeviceId;
use duet_protocol::profile::Transport;

use crate::world::{PROFILE, World};

const ID: DeviceId = DeviceId([1; 8]);

/// What the shard has told of presence since the last time, in words.
fn told(world: &mut World) -> Vec<String> {
    let event = |event| match event {
        Event::Online { device, replaced, carrier, profile, address, .. } => {
            assert_eq!((device, carrier, profile), (ID, Transport::Datagram, PROFILE));
            assert!(address.is_some());
            Some(format!("online{}", if replaced { " again" } else { "" }))
        }
        Event::Offline { device, gone, age_us, .. } => {
            assert_eq!(device, ID);
            Some(format!("{gone:?} after {} s", age_us / 1_000_000))
        }
        _ => None,
    };
    std::iter::from_fn(|| world.shard.poll_event()).filter_map(event).collect()
}

fn look(world: &mut World) -> Vec<Option<Contact>> {
    world.shard.handle_mail(world.now, Mail::Look(7, vec![ID, DeviceId([9; 8])]));
    let found = std::iter::from_fn(|| world.shard.poll_event()).find_map(|event| match event {
        Event::Contacts { token: 7, contacts } => Some(contacts),
        _ => None,
    });
    found.expect("each question has its answer")
}

#[test]
fn a_device_is_online_from_its_first_record_until_its_last_session_ends() {
    let mut world = World::new();
    let mut device = world.opened();
    assert_eq!(told(&mut world), ["online"]);
    world.pass(2_000_000);
    device.send_reading(world.now.mono_us, 1, b"x", false).unwrap();
    world.settle(&mut device);
    world.pass(1_000_000);
    let [Some(contact), None] = look(&mut world)[..] else { panic!("one is there") };
    assert_eq!(
        (contact.age_us, contact.silent_us, contact.profile),
        (3_000_000, 1_000_000, PROFILE)
    );
    assert!(contact.records >= 1 && contact.address.is_some());

    // A new session takes the place of the one before: it was there all the time.
    device.open(world.now.mono_us);
    world.settle(&mut device);
    assert_eq!(told(&mut world), ["online again"]);
    device.close();
    world.settle(&mut device);
    assert_eq!(told(&mut world), [format!("{:?} after 0 s", Gone::Left)]);
    assert_eq!(look(&mut world), [None, None]);

    device.open(world.now.mono_us);
    world.settle(&mut device);
    assert_eq!(told(&mut world), ["online"]);
    let idle_us = world.shard.settings().idle_us;
    world.pass(2 * idle_us);
    world.shard.handle_turn(world.now);
    let gone = told(&mut world);
    assert_eq!(gone, [format!("{:?} after {} s", Gone::Silent, 2 * idle_us / 1_000_000)]);
}

#[test]
fn who_ends_with_the_shard_or_may_not_connect_any_more_is_told_so() {
    let mut world = World::new();
    let mut device = world.opened();
    told(&mut world);
    world.shard.handle_mail(world.now, Mail::Revoked(ID));
    assert_eq!(told(&mut world), ["Revoked after 0 s"]);
    world.settle(&mut device);
    device.open(world.now.mono_us);
    world.settle(&mut device);
    told(&mut world);
    world.shard.handle_mail(world.now, Mail::Drain);
    world.shard.handle_turn(world.now);
    assert_eq!(told(&mut world), ["Stopped after 0 s"]);
}
