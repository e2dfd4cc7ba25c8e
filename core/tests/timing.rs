//! R38: how long a shard works on a HELLO that proves nothing tells nobody whether its device is registered, or was here.
//!
//! Measured is the processor time of the shard's own thread, many times, the kinds of HELLO in turns, so that whatever
//! else the machine does falls on all of them alike.
#![allow(clippy::unwrap_used, reason = "a test's helpers may")]

use std::net::SocketAddr;

use std::sync::Arc;

use duet_core::engine::Batched;
use duet_core::testing::{self, Devices, Forget};
use duet_core::{Handler as _, Now, Settings, Shard};
use duet_device::{Config, Device, Identity, Software};
use duet_protocol::identity::DeviceId;
use duet_protocol::profile::{KeySource, Mode, Profile, Transfer, Transport};
use duet_protocol::reason::DropReason;
use duet_protocol::wire::MESSAGE_MAX;

const ROUNDS: usize = 300;
/// On a machine that other work keeps busy most measurements are disturbed.
const TRIES: usize = 12;

struct World {
    shard: Shard<Batched, Forget>,
    now: Now,
}

impl World {
    /// The processor time of a turn that is given this message, ns.
    fn turn_ns(&mut self, message: &[u8]) -> u64 {
        self.now.mono_us += 50_000;
        // From an address of its own: whoever sends many that are worth nothing is asked first.
        let number = u32::try_from(self.now.mono_us / 50_000).unwrap();
        let from = SocketAddr::from((number.to_be_bytes(), 4_000));
        let began = thread_ns();
        self.shard.handle_datagram(self.now, from, message);
        self.shard.handle_turn(self.now);
        let took = thread_ns() - began;
        let mut out = [0; MESSAGE_MAX];
        while self.shard.poll_transmit(&mut out).is_some() {}
        while self.shard.poll_event().is_some() {}
        took
    }
}

fn thread_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    u64::try_from(time.tv_sec * 1_000_000_000 + time.tv_nsec).unwrap()
}

fn hello(device: &mut Device<Software>) -> Vec<u8> {
    let mut out = [0; MESSAGE_MAX];
    device.close();
    device.open(0);
    let len = device.poll_transmit(0, &mut out).unwrap();
    out[..len].to_vec()
}

/// Three points of the faster half, ns: what disturbs a measurement makes it slower.
fn faster_half(mut times: Vec<u64>) -> [u64; 3] {
    times.sort_unstable();
    [1, 2, 4].map(|tenth| times[tenth * times.len() / 10])
}

/// How far apart two distributions are: the largest difference of these points, in thousandths.
fn apart(one: [u64; 3], other: [u64; 3]) -> u64 {
    one.into_iter().zip(other).map(|(a, b)| a.abs_diff(b) * 1_000 / a.min(b)).max().unwrap()
}

/// Whether the times for a device that was here are those of the others; if not, what was measured instead.
fn measure(profile: Profile, lack_teeth: bool) -> Result<(), String> {
    let devices = Arc::<Devices>::default();
    devices.lack_teeth(lack_teeth);
    let settings = Settings { sessions_max: 10_000, pending_max: 10_000, ..testing::settings() };
    let shard = testing::shard(settings, &devices, Forget);
    let mut world = World { shard, now: Now { mono_us: 1_000_000, unix_ms: 1_800_000_000_000 } };
    let gateway = testing::gateway_key().gateway;
    let made = |identity, seed: u8| {
        let config =
            Config { identity, gateway, profile, transport: Transport::Datagram, fresh: 1 };
        Device::<Software>::seeded(config, [seed; 32]).unwrap()
    };
    // One was here before, one is only registered, one is unknown.
    let [here, registered, unknown] = [1, 2, 3].map(|number| DeviceId([number; 8]));
    let first = hello(&mut made(devices.enrol("here", here, profile), 1));
    devices.enrol("registered", registered, profile);
    world.shard.handle_datagram(world.now, "192.0.2.1:4000".parse::<SocketAddr>().unwrap(), &first);
    world.shard.handle_turn(world.now);
    let mut out = [0; MESSAGE_MAX];
    assert!(world.shard.poll_transmit(&mut out).is_some(), "it has its ACCEPT");
    // Whoever lacks a device's key can name it in a HELLO and prove nothing: here, with another device's key.
    let mut kinds = [here, registered, unknown].map(|id| {
        let (named, other) = (testing::identity(id, profile.mode).0, DeviceId([77; 8]));
        let key = testing::identity(other, profile.mode).0.key;
        made(Identity { id: named.id, fingerprint: named.fingerprint, key }, id.0[0])
    });

    let mut times: [Vec<u64>; 4] = Default::default();
    for round in 0..ROUNDS {
        // Each kind comes after each other one equally often.
        for place in 0..4 {
            let kind =
                if round % 2 == 0 { (round / 2 + place) % 4 } else { (round / 2 + 7 - place) % 4 };
            let mut message = hello(&mut kinds[kind % 3]);
            if kind == 3 {
                *message.last_mut().unwrap() ^= 1;
            }
            times[kind].push(world.turn_ns(&message));
        }
    }
    let drops = |reason| world.shard.counts.drops[reason as usize];
    assert_eq!(drops(DropReason::Proof), 3 * ROUNDS as u64);
    assert_eq!(drops(DropReason::HelloOpen), ROUNDS as u64);
    let [here, registered, unknown, control] = times.map(faster_half);
    println!(
        "{}: was here {here:?}, registered {registered:?}, unknown {unknown:?}, not opened {control:?} ns",
        profile.name()
    );
    // A certificate's proof is a large part of the work; a measurement that does not see it left out is none.
    if profile.mode.has_certificate() && apart(here, control) <= 60 {
        return Err("work that was left out was not seen".to_owned());
    }
    match apart(here, unknown).max(apart(here, registered)) {
        0..30 => Ok(()),
        apart => Err(format!("{apart} thousandths apart")),
    }
}

#[test]
fn the_time_for_a_worthless_hello_does_not_tell_whether_its_device_was_here() {
    for (profile, lack_teeth) in [
        (Profile { mode: Mode::Certificate, source: KeySource::Ephemeral }, false),
        (Profile { mode: Mode::Certificate, source: KeySource::Ephemeral }, true),
        (Profile { mode: Mode::Certificate, source: KeySource::Xor(Transfer::Key) }, false),
        (Profile { mode: Mode::RegisteredId, source: KeySource::Ephemeral }, false),
    ] {
        // A disturbed measurement is repeated; a difference that is really there stays.
        let mut unlike = Vec::new();
        while let Err(why) = measure(profile, lack_teeth) {
            unlike.push(why);
            assert!(unlike.len() < TRIES, "{}: {unlike:?}", profile.name());
        }
    }
}
