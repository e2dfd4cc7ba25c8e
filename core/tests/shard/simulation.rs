//! A fleet behind a bad network and a gateway that restarts, seed by seed: every seed ends with
//! every reading confirmed, and every confirmed reading stored once.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::net::SocketAddr;

use duet_core::{Handler as _, Mail, Path};
use duet_device::{Device, Early, Event, Software};
use duet_protocol::profile::{Profile, Transport};
use duet_protocol::reading::ReadingId;
use duet_protocol::wire::MESSAGE_MAX;

use crate::world::World;

/// A small deterministic generator (SplitMix64).
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Arrival {
    Gateway {
        device: usize,
        message: Vec<u8>,
    },
    Device {
        device: usize,
        message: Vec<u8>,
    },
    /// The spool's answer to what it was given before.
    Durable(Vec<(u32, u32)>),
    Restart,
}

struct Network {
    dice: Dice,
    loss: u64,
    queue: BinaryHeap<Reverse<(u64, u64, Arrival)>>,
    order: u64,
}

impl Network {
    fn after(&mut self, at: u64, arrival: Arrival) {
        self.order += 1;
        self.queue.push(Reverse((at, self.order, arrival)));
    }

    /// Loses, delays (and thereby reorders), damages and doubles.
    fn send(&mut self, now: u64, make: impl Fn(Vec<u8>) -> Arrival, message: &[u8]) {
        if self.dice.percent(self.loss) {
            return;
        }
        let mut message = message.to_vec();
        if self.dice.percent(2) {
            let place = self.dice.below(message.len() as u64);
            message[usize::try_from(place).unwrap()] ^= 1 << self.dice.below(8);
        }
        let copies = 1 + u32::from(self.dice.percent(10));
        for _ in 0..copies {
            let delay = 1_000 + self.dice.below(400_000);
            self.after(now + delay, make(message.clone()));
        }
    }
}

fn address(device: usize) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], u16::try_from(1_000 + device).unwrap()))
}

struct Run {
    world: World,
    network: Network,
    devices: Vec<Device<Software>>,
    /// What each device was told is durable.
    confirmed: Vec<HashSet<ReadingId>>,
    left: Vec<u32>,
    handed_over: usize,
}

const READINGS: u32 = 4;

impl Run {
    fn new(seed: u64) -> Self {
        let world = World::new();
        let mut dice = Dice(seed);
        let loss = dice.below(31);
        let now = world.now.mono_us;
        let devices: Vec<_> = (0..3u8)
            .map(|i| {
                let profile = Profile::ALL[usize::try_from(dice.below(15)).unwrap()];
                let mut device = world.device(i + 1, profile, Transport::Datagram);
                // Every other device sends its first reading inside HELLO.
                device.set_early(if dice.percent(50) { Early::Stay } else { Early::Never });
                device.open(now + dice.below(2_000_000));
                device
            })
            .collect();
        let mut network = Network { dice, loss, queue: BinaryHeap::new(), order: 0 };
        if seed.is_multiple_of(3) {
            let at = now + network.dice.below(10_000_000);
            network.after(at, Arrival::Restart);
        }
        let confirmed = vec![HashSet::new(); devices.len()];
        let left = vec![READINGS; devices.len()];
        Self { world, network, devices, confirmed, left, handed_over: 0 }
    }

    fn now(&self) -> u64 {
        self.world.now.mono_us
    }

    /// Moves the clock to what happens next, and lets it happen.
    fn step(&mut self) {
        let arrival = self.network.queue.peek().map(|Reverse((at, ..))| *at);
        let devices = self.devices.iter().filter_map(Device::poll_timeout);
        let next = devices.chain(arrival).chain(self.world.shard.poll_timeout()).min();
        let now = self.now();
        self.world.pass(next.unwrap().max(now) - now);
        while self.network.queue.peek().is_some_and(|Reverse((at, ..))| *at <= self.now()) {
            let Reverse((.., arrival)) = self.network.queue.pop().unwrap();
            self.deliver(arrival);
        }
        self.world.shard.handle_turn(self.world.now);
        self.world.shard.check();
        self.hand_over();
        let mut out = [0; MESSAGE_MAX];
        while let Some(sent) = self.world.shard.poll_transmit(&mut out) {
            let Path::Datagram(to) = sent.to else { panic!("no streams here") };
            let device = usize::from(to.address().port()) - 1_000;
            let make = |message| Arrival::Device { device, message };
            self.network.send(self.world.now.mono_us, make, &out[..sent.len]);
        }
        for device in 0..self.devices.len() {
            self.drive(device);
        }
    }

    fn deliver(&mut self, arrival: Arrival) {
        match arrival {
            Arrival::Gateway { device, message } => {
                self.world.shard.handle_datagram(self.world.now, address(device), &message);
            }
            Arrival::Device { device, mut message } => {
                let now = self.now();
                if let Ok(Event::Closed) = self.devices[device].handle_message(now, &mut message) {
                    self.devices[device].open(now);
                }
            }
            Arrival::Durable(readings) => {
                let readings = readings.into_iter();
                let readings = readings.map(|(s, q)| (duet_protocol::wire::SessionId(s), q));
                let mail = Mail::Durable(readings.collect());
                self.world.shard.handle_mail(self.world.now, mail);
            }
            Arrival::Restart => self.world.restart(),
        }
    }

    /// What the shard gave the spool becomes durable a little later.
    fn hand_over(&mut self) {
        let stored = self.world.stored.0.borrow();
        let new: Vec<_> =
            stored[self.handed_over..].iter().map(|r| (r.session.0, r.sequence)).collect();
        self.handed_over = stored.len();
        drop(stored);
        if !new.is_empty() {
            let at = self.now() + 500 + self.network.dice.below(20_000);
            self.network.after(at, Arrival::Durable(new));
        }
    }

    fn drive(&mut self, index: usize) {
        let now = self.now();
        let device = &mut self.devices[index];
        while let Some(confirmed) = device.poll_confirmed() {
            self.confirmed[index].insert(confirmed.id);
        }
        if self.left[index] > 0 && device.send_reading(now, 1, b"reading", true).is_ok() {
            self.left[index] -= 1;
        }
        let mut out = [0; MESSAGE_MAX];
        while let Some(len) = device.poll_transmit(now, &mut out) {
            let make = |message| Arrival::Gateway { device: index, message };
            self.network.send(now, make, &out[..len]);
        }
    }

    fn is_done(&self) -> bool {
        self.confirmed.iter().all(|confirmed| confirmed.len() == READINGS as usize)
    }
}

#[test]
fn a_thousand_seeds_of_bad_network_and_restarts_end_with_everything_confirmed() {
    let mut again = 0;
    for seed in 0..1_000 {
        let mut run = Run::new(seed);
        let limit = run.now() + 3_600_000_000;
        while !run.is_done() {
            run.step();
            assert!(run.now() < limit, "seed {seed}: an hour and {:?} confirmed", run.confirmed);
        }
        let stored = run.world.stored.0.borrow();
        let (mut records, mut readings) = (HashMap::new(), HashMap::new());
        for reading in stored.iter() {
            *records.entry((reading.session.0, reading.sequence)).or_insert(0) += 1;
            *readings.entry((reading.device.clone(), reading.id)).or_insert(0) += 1;
        }
        assert!(records.values().all(|times| *times == 1), "seed {seed}: a record stored twice");
        // R99, R100: what was first sent inside HELLO is stored once, whatever happens. Of other readings a shard knows those
        // of the session before; one that is older, or from before a restart, may be stored again, and its name tells (R76).
        for ((device, id), times) in &readings {
            assert!(
                *times == 1 || !id.is_early(),
                "seed {seed}: {device} {id:?} stored {times} times"
            );
        }
        again += readings.values().filter(|times| **times > 1).count();
        for (index, confirmed) in run.confirmed.iter().enumerate() {
            for id in confirmed {
                let stored = readings.contains_key(&(format!("device-{}", index + 1), *id));
                assert!(stored, "seed {seed}: confirmed and not stored");
            }
        }
    }
    assert!(
        again < 200,
        "{again} of 12,000 readings stored again: the session before is not known"
    );
}
