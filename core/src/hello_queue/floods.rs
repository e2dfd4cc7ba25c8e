//! Floods on a virtual clock: how long honest devices wait behind them, with every chance drawn from a seed.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::tests::{hello, with_cookie};
use super::*;

/// What a core takes for a HELLO that has its turn, for one that it only looks at, and for a RETRY, ns.
const WORK_NS: u64 = 35_000;
const LOOK_NS: u64 = 1_000;
const RETRY_NS: u64 = 2_000;
const POLICY: Policy<'static> =
    Policy { node_key: &[7; 32], retry_from: 128, burst_us: 600_000, hello_us: 35 };
/// The most that a turn takes in, and what is lost when it finds more.
const TURN_MAX: u64 = 9_216;
const HONEST: u16 = 300;
const HONEST_PER_S: u64 = 300;
const FORGERIES_PER_S: u64 = 150_000;
const SPAN_US: u64 = 4_000_000;

/// What those send that nobody knows.
#[derive(Clone, Copy, PartialEq)]
enum Flood {
    /// Hellos in the names of 64 addresses, which get no answers.
    ManyNames,
    /// The same, of 64 addresses that answer RETRYs.
    ManyAddresses,
    /// Hellos in the name of the address that all honest devices share.
    TheirName,
}

/// A HELLO on its way: who sent it, and its own number.
#[derive(Clone)]
struct Sent {
    from: SocketAddr,
    number: u16,
    hello: Hello,
}

/// A forgery that comes again: when, which, from where, and its cookie.
type Return = (u64, u16, SocketAddr, [u8; 16]);

struct Device {
    began_us: u64,
    sent: Sent,
    pause_us: u64,
    /// How often it has sent; what was due for an earlier time is void once a RETRY tells another one.
    count: u32,
    done: Option<u64>,
}

struct World {
    flood: Flood,
    random: u64,
    queue: HelloQueue,
    now_us: u64,
    forged: u64,
    /// Any of the forgeries; they are told apart by what makes up their number.
    forgeries: Vec<Hello>,
    returning: BinaryHeap<Reverse<Return>>,
    devices: Vec<Device>,
    due: BinaryHeap<Reverse<(u64, u16, u32)>>,
}

fn is_honest(from: SocketAddr) -> bool {
    from.port() < 10_000
}

impl World {
    fn new(flood: Flood, seed: u64) -> Self {
        let mut world = Self {
            flood,
            random: seed,
            queue: HelloQueue::default(),
            now_us: 0,
            forged: 0,
            forgeries: (HONEST..40_000).map(hello).collect(),
            returning: BinaryHeap::new(),
            devices: Vec::new(),
            due: BinaryHeap::new(),
        };
        for number in 0..HONEST {
            let host = if flood == Flood::TheirName { 1 } else { number.to_be_bytes()[1] };
            let from = SocketAddr::from(([10, 9, 0, host], 1_000 + number));
            let began_us = 1_000_000 + u64::from(number) * 1_000_000 / HONEST_PER_S;
            let sent = Sent { from, number, hello: hello(number) };
            world.due.push(Reverse((began_us, number, 0)));
            let device = Device { began_us, sent, pause_us: 1_000_000, count: 0, done: None };
            world.devices.push(device);
        }
        world
    }

    fn chance(&mut self, below: u16) -> u16 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(0x5eed);
        u16::try_from((self.random >> 33) % u64::from(below)).unwrap()
    }

    /// All that came since the turn before, in any order.
    fn input(&mut self) -> Vec<Sent> {
        let mut came = Vec::new();
        let all = self.now_us * FORGERIES_PER_S / 1_000_000;
        let room = (all - self.forged).min(TURN_MAX);
        self.forged = all;
        for _ in 0..room {
            if let Some(Reverse((at, number, from, cookie))) = self.returning.peek().copied()
                && at <= self.now_us
            {
                self.returning.pop();
                let retry = Retry { echo: [0; 8], wait_10ms: 0, cookie };
                came.push(Sent { from, number, hello: with_cookie(number, &retry) });
                continue;
            }
            let number = HONEST + self.chance(40_000 - HONEST);
            let hello = self.forgeries[usize::from(number - HONEST)].clone();
            let host = match self.flood {
                Flood::TheirName => [10, 9, 0, 1],
                _ => [10, 66, 0, self.chance(64).to_be_bytes()[1]],
            };
            let from = SocketAddr::from((host, 10_000 + self.chance(40_000)));
            came.push(Sent { from, number, hello });
        }
        while let Some(Reverse((at, number, count))) = self.due.peek().copied()
            && at <= self.now_us
        {
            self.due.pop();
            let device = &mut self.devices[usize::from(number)];
            if device.done.is_none() && device.count == count {
                device.count += 1;
                // R83.
                self.due.push(Reverse((at + device.pause_us, number, device.count)));
                device.pause_us *= 2;
                came.push(device.sent.clone());
            }
        }
        for place in (1..came.len()).rev() {
            let other = self.chance(u16::try_from(place + 1).unwrap());
            came.swap(place, other.into());
        }
        came
    }

    /// A sender gets this RETRY.
    fn tell(&mut self, from: SocketAddr, number: u16, retry: &Retry) {
        let at = self.now_us + u64::from(retry.wait_10ms) * 10_000;
        if is_honest(from) {
            let device = &mut self.devices[usize::from(number)];
            device.count += 1;
            device.pause_us = 1_000_000;
            device.sent.hello = with_cookie(number, retry);
            self.due.push(Reverse((at, number, device.count)));
        } else if self.flood == Flood::ManyAddresses {
            // Many at once do more harm.
            let at = at.next_multiple_of(1_000_000);
            self.returning.push(Reverse((at, number, from, retry.cookie)));
        }
    }

    /// One turn of a shard.
    fn turn(&mut self) {
        let mut spent_ns = 10_000;
        let now = Now { mono_us: self.now_us, unix_ms: 0 };
        for Sent { from, number, hello } in self.input() {
            spent_ns += LOOK_NS;
            let queued = self.queue.enqueue(
                now,
                Path::Datagram(from.into()),
                crate::streams::source(from.ip()),
                hello,
                POLICY,
            );
            if let Err(Refusal { retry: Some(retry), .. }) = queued {
                spent_ns += RETRY_NS;
                self.tell(from, number, &retry);
            }
        }
        let Taken { batch, refused, .. } = self.queue.take(now, 64, POLICY);
        spent_ns += WORK_NS * batch.len() as u64;
        for (origin, refusal) in refused {
            let Path::Datagram(from) = origin.path else { continue };
            let from = from.address();
            if let (Some(retry), true) = (refusal.retry, is_honest(from)) {
                spent_ns += RETRY_NS;
                self.tell(from, from.port() - 1_000, &retry);
            }
        }
        self.now_us += spent_ns / 1_000;
        let now = Now { mono_us: self.now_us, unix_ms: 0 };
        for (origin, _) in batch {
            let Path::Datagram(from) = origin.path else { continue };
            let from = from.address();
            if is_honest(from) {
                let device = &mut self.devices[usize::from(from.port() - 1_000)];
                device.done.get_or_insert(self.now_us);
            } else {
                self.queue.count_worthless(now, origin);
            }
        }
    }
}

/// How long each honest device waited for its turn, µs, the longest last; how many had none.
fn waits(flood: Flood, seed: u64) -> (Vec<u64>, usize) {
    let mut world = World::new(flood, seed);
    while world.now_us < SPAN_US {
        world.turn();
    }
    let done = |device: &Device| Some(device.done? - device.began_us);
    let mut waits: Vec<_> = world.devices.iter().filter_map(done).collect();
    waits.sort_unstable();
    let out = world.devices.len() - waits.len();
    (waits, out)
}

#[test]
fn hellos_in_many_names_delay_nobody() {
    for seed in 0..2 {
        let (waits, out) = waits(Flood::ManyNames, seed);
        assert_eq!((out, waits.last().filter(|most| **most > 50_000)), (0, None));
    }
}

/// What those leave in the queue who proved their addresses goes when their first ones turn out to be worth nothing.
#[test]
fn hellos_of_many_proven_addresses_do_not_fill_the_queue() {
    for seed in 0..2 {
        let (waits, out) = waits(Flood::ManyAddresses, seed);
        let p90 = waits[waits.len() * 9 / 10];
        println!(
            "many addresses: {out} out, p50 {} p90 {p90} max {}",
            waits[waits.len() / 2],
            waits[waits.len() - 1]
        );
        assert!(out == 0 && p90 < 100_000, "{out} not in; nine of ten within {p90} µs");
    }
}

/// Whoever names an address uses up its RETRYs; who asks again gets one all the same.
#[test]
fn an_address_that_a_flood_names_has_a_way_in() {
    for seed in 0..2 {
        let (waits, out) = waits(Flood::TheirName, seed);
        let most = waits.last().copied().unwrap_or_default();
        assert!(out == 0 && most < 1_500_000, "{out} not in; all others within {most} µs");
    }
}
