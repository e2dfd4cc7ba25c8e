//! A million messages that no device sent: mutations of real ones of every kind, in every state,
//! over both transports.

use std::collections::HashSet;
use std::net::SocketAddr;

use duet_core::testing;
use duet_core::{Handler as _, Path, Settings, StreamId};
use duet_device::{Device, Software};
use duet_protocol::profile::{Profile, Transport};
use duet_protocol::reason::DropReason;
use duet_protocol::wire::{COOKIE, HELLO_MAX, MESSAGE_MAX};

use crate::simulation::Dice;
use crate::world::{TestShard, World};

/// How many; the environment variable asks for longer campaigns.
fn messages() -> usize {
    std::env::var("DUET_HOSTILE_MESSAGES").ok().map_or(1_000_000, |text| text.parse().unwrap())
}

/// Real messages, and a shard with live and pending sessions among which they arrive.
struct Field {
    world: World,
    real: Vec<Vec<u8>>,
    genuine: HashSet<Vec<u8>>,
}

impl Field {
    fn new(transport: Transport, retry_from: usize) -> Self {
        let mut world = World::new();
        world.shard = world.shard_with(Settings { retry_from, ..testing::settings() });
        let (mut real, mut genuine) = (Vec::new(), HashSet::new());
        for (seed, profile) in (1..).zip(Profile::ALL) {
            let mut device = world.device(seed, profile, transport);
            device.open(world.now.mono_us);
            device.send_reading(world.now.mono_us, 1, b"a real reading", true).unwrap();
            // Some sessions are left waiting for their first record.
            let hellos = if retry_from == 0 && transport == Transport::Datagram { 2 } else { 1 };
            let upto = if seed % 3 == 0 { hellos } else { 4 };
            for (sent, message) in
                Self::converse(&mut world, &mut device, u64::from(seed), transport, upto)
            {
                if sent {
                    genuine.insert(message.clone());
                }
                real.push(message);
            }
        }
        Self { world, real, genuine }
    }

    /// Lets a device talk until it has sent so many messages; what it (`true`) and the gateway
    /// sent.
    fn converse(
        world: &mut World,
        device: &mut Device<Software>,
        stream: u64,
        transport: Transport,
        upto: usize,
    ) -> Vec<(bool, Vec<u8>)> {
        let (mut said, mut sent) = (Vec::new(), 0);
        open(&mut world.shard, world.now, stream);
        let mut out = [0; MESSAGE_MAX];
        while sent < upto {
            let Some(len) = device.poll_transmit(world.now.mono_us, &mut out) else { break };
            sent += 1;
            said.push((true, out[..len].to_vec()));
            arrive(&mut world.shard, world.now, transport, stream, &out[..len]);
            world.shard.handle_turn(world.now);
            while let Some(sent) = world.shard.poll_transmit(&mut out) {
                said.push((false, out[..sent.len].to_vec()));
                let _ = device.handle_message(world.now.mono_us, &mut out[..sent.len]);
            }
        }
        said
    }

    fn mutate(&self, dice: &mut Dice) -> Vec<u8> {
        let pick = |dice: &mut Dice| {
            let index = usize::try_from(dice.below(self.real.len() as u64)).unwrap();
            self.real[index].clone()
        };
        let place = |dice: &mut Dice, len: usize| usize::try_from(dice.below(len as u64)).unwrap();
        let mut message = pick(dice);
        match dice.below(10) {
            0..=3 => {
                for _ in 0..=dice.below(3) {
                    let at = place(dice, message.len());
                    message[at] ^= 1 << dice.below(8);
                }
            }
            4 => message.truncate(place(dice, message.len())),
            5 => message.extend((0..=dice.below(40)).map(|_| dice.next().to_le_bytes()[0])),
            6 => {
                let other = pick(dice);
                let at = place(dice, message.len().min(other.len()));
                message.truncate(at);
                message.extend_from_slice(&other[at..]);
            }
            7 => message[0] = dice.next().to_le_bytes()[0],
            8 => {
                let at = place(dice, message.len());
                let len = place(dice, message.len() - at) + 1;
                message[at..at + len].iter_mut().for_each(|b| *b = dice.next().to_le_bytes()[0]);
            }
            _ => {
                let len = place(dice, 300);
                message = (0..len).map(|_| dice.next().to_le_bytes()[0]).collect();
                if let Some(first) = message.first_mut() {
                    *first = *first << 4 | 1;
                }
            }
        }
        message
    }

    /// A real message again, perhaps with a cookie that nobody asked for.
    fn is_genuine(&self, message: &[u8]) -> bool {
        let bare = message.len().checked_sub(COOKIE).map(|len| &message[..len]);
        self.genuine.contains(message)
            || (message.len() <= HELLO_MAX && bare.is_some_and(|bare| self.genuine.contains(bare)))
    }
}

fn arrive(
    shard: &mut TestShard,
    now: duet_core::Now,
    transport: Transport,
    number: u64,
    message: &[u8],
) {
    match transport {
        Transport::Datagram => shard.handle_datagram(now, address(number), message),
        Transport::Stream => shard.handle_message(now, StreamId(number), message),
    }
}

/// Opens a stream, over which nothing may ever come.
fn open(shard: &mut TestShard, now: duet_core::Now, number: u64) {
    assert!(shard.handle_stream_opened(now, StreamId(number), address(number), now.mono_us));
}

fn address(number: u64) -> SocketAddr {
    let [.., a, b, c, d] = number.to_be_bytes();
    SocketAddr::from(([10, a, b, c], u16::from(d) + 1))
}

fn drops(shard: &TestShard) -> u64 {
    shard.counts.drops.iter().sum()
}

fn bombard(transport: Transport, retry_from: usize, seed: u64, count: usize) {
    let mut field = Field::new(transport, retry_from);
    let mut dice = Dice(seed);
    let mut number = 1_000_000 * (seed + 1);
    let mut left = count;
    let mut met = HashSet::new();
    while left > 0 {
        let batch = left.min(64);
        let (sessions, before) = (field.world.shard.sessions(), drops(&field.world.shard));
        let stored = field.world.stored.0.borrow().len();
        let first = number;
        let mut lengths = Vec::new();
        while lengths.len() < batch {
            let message = field.mutate(&mut dice);
            if field.is_genuine(&message) {
                continue;
            }
            open(&mut field.world.shard, field.world.now, number);
            arrive(&mut field.world.shard, field.world.now, transport, number, &message);
            lengths.push(message.len());
            number += 1;
        }
        field.world.shard.handle_turn(field.world.now);
        let shard = &mut field.world.shard;
        assert_eq!(drops(shard), before + batch as u64, "one reason each, from {first}");
        assert_eq!(shard.sessions(), sessions, "no state kept, from {first}");
        assert_eq!(field.world.stored.0.borrow().len(), stored, "nothing delivered");
        let mut out = [0; MESSAGE_MAX];
        while let Some(sent) = shard.poll_transmit(&mut out) {
            let from = match sent.to {
                Path::Datagram(to) => {
                    (first..number).find(|number| address(*number) == to.address())
                }
                Path::Stream(to) => (first..number).find(|number| StreamId(*number) == to),
            };
            let from = usize::try_from(from.expect("answers go to who asked") - first).unwrap();
            let brought = std::mem::take(&mut lengths[from]);
            assert!(sent.len <= brought, "{} bytes for {brought}", sent.len);
        }
        while shard.poll_close().is_some() {}
        (first..number).for_each(|gone| {
            shard.handle_stream_closed(field.world.now, StreamId(gone));
        });
        shard.check();
        field.world.pass(1_000);
        left -= batch;
    }
    let counts = field.world.shard.counts.drops;
    met.extend(DropReason::ALL.iter().zip(counts).filter(|(_, n)| *n > 0).map(|(r, _)| r.label()));
    let expected: &[&str] = if retry_from == 0 && transport == Transport::Datagram {
        &["malformed", "version", "kind", "profile", "unvalidated", "cookie", "record_open"]
    } else {
        &[
            "malformed",
            "version",
            "kind",
            "profile",
            "gateway_key",
            "point",
            "hello_open",
            "unknown_session",
            "record_open",
        ]
    };
    for reason in expected {
        assert!(met.contains(reason), "{reason} was never met in {count} messages: {met:?}");
    }
}

#[test]
fn a_million_hostile_messages_change_nothing() {
    let part = messages() / 4;
    bombard(Transport::Datagram, 64, 1, part);
    bombard(Transport::Datagram, 0, 2, part);
    bombard(Transport::Stream, 64, 3, part);
    bombard(Transport::Stream, 64, 4, part);
}
