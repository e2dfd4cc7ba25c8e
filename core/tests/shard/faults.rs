//! A device with readings and a command to carry out, and each message between it and its gateway lost, doubled, overtaken or
//! late, one after the other and two at a time: every reading is stored and confirmed, the command is carried out once.

use std::net::SocketAddr;

use duet_core::{Command, Event as ShardEvent, Handler as _, Mail};
use duet_device::{Device, Early, Event, Software};
use duet_protocol::identity::DeviceId;
use duet_protocol::profile::{Profile, Transport};
use duet_protocol::wire::{MESSAGE_MAX, SessionId};

use crate::world::World;

/// How long a message is on its way, µs.
const DELAY_US: u64 = 10_000;
const READINGS: usize = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Lost,
    Doubled,
    /// What is sent together with it arrives before it.
    Overtaken,
    /// What is sent in its place arrives before it.
    Late,
}

/// A message on its way, to the gateway or to the device.
struct Message {
    at: u64,
    up: bool,
    bytes: Vec<u8>,
}

struct Run<'f> {
    world: World,
    device: Device<Software>,
    network: Vec<Message>,
    /// How many messages were sent so far, and what happens to some of them.
    sent: usize,
    faults: &'f [(usize, Fault)],
    handed_over: usize,
    confirmed: usize,
    carried_out: usize,
    results: usize,
}

impl<'f> Run<'f> {
    fn new(profile: Profile, early: Early, faults: &'f [(usize, Fault)]) -> Self {
        let world = World::new();
        let mut device = world.device(1, profile, Transport::Datagram);
        device.set_early(early);
        let now = world.now.mono_us;
        for reading in 0..READINGS {
            let payload = [u8::try_from(reading).unwrap()];
            device.send_reading(now, 1, &payload, true).unwrap();
        }
        device.open(now);
        let (network, sent, handed_over, confirmed) = (Vec::new(), 0, 0, 0);
        let (carried_out, results) = (0, 0);
        Self { world, device, network, sent, faults, handed_over, confirmed, carried_out, results }
    }

    fn send(&mut self, up: bool, bytes: &[u8]) {
        let fault = self.faults.iter().find(|(number, _)| *number == self.sent);
        self.sent += 1;
        let delays: &[u64] = match fault.map(|(_, fault)| fault) {
            None => &[DELAY_US],
            Some(Fault::Lost) => &[],
            Some(Fault::Doubled) => &[DELAY_US, DELAY_US + 1],
            Some(Fault::Overtaken) => &[DELAY_US + DELAY_US / 2],
            Some(Fault::Late) => &[2_500_000],
        };
        for delay in delays {
            let at = self.world.now.mono_us + delay;
            self.network.push(Message { at, up, bytes: bytes.to_vec() });
        }
    }

    fn deliver(&mut self, mut message: Message) {
        let now = self.world.now;
        if message.up {
            let from: SocketAddr = "192.0.2.1:4000".parse().unwrap();
            return self.world.shard.handle_datagram(now, from, &message.bytes);
        }
        match self.device.handle_message(now.mono_us, &mut message.bytes) {
            Ok(Event::Command { command, payload }) => {
                assert_eq!(payload, b"do");
                self.carried_out += 1;
                self.device.send_result(command, 0, b"done");
            }
            Ok(Event::Closed) => panic!("nobody ends the session"),
            _ => {}
        }
        while self.device.poll_confirmed().is_some() {
            self.confirmed += 1;
        }
    }

    /// The gateway's turn; what it was given is durable at once, results too.
    fn turn(&mut self) {
        let now = self.world.now;
        self.world.shard.handle_turn(now);
        let stored = self.world.stored.0.borrow();
        let mut durable: Vec<(SessionId, u32)> =
            stored[self.handed_over..].iter().map(|r| (r.session, r.sequence)).collect();
        self.handed_over = stored.len();
        drop(stored);
        while let Some(event) = self.world.shard.poll_event() {
            if let ShardEvent::CommandResult { record, result, .. } = event {
                assert_eq!(result.unwrap().output, b"done");
                self.results += 1;
                durable.extend(record);
            }
        }
        if !durable.is_empty() {
            self.world.shard.handle_mail(now, Mail::Durable(durable));
            self.world.shard.handle_turn(now);
        }
        self.world.shard.check();
    }

    fn step(&mut self) {
        let arrival = self.network.iter().map(|message| message.at);
        let (device, shard) = (self.device.poll_timeout(), self.world.shard.poll_timeout());
        let next = arrival.chain(device).chain(shard).min().unwrap();
        self.world.pass(next.saturating_sub(self.world.now.mono_us));
        let now = self.world.now.mono_us;
        let (arrived, left) = self.network.drain(..).partition(|message| message.at <= now);
        self.network = left;
        let mut arrived: Vec<Message> = arrived;
        arrived.sort_by_key(|message| message.at);
        arrived.into_iter().for_each(|message| self.deliver(message));
        self.turn();
        let mut out = [0; MESSAGE_MAX];
        while let Some(sent) = self.world.shard.poll_transmit(&mut out) {
            self.send(false, &out[..sent.len]);
        }
        while let Some(len) = self.device.poll_transmit(now, &mut out) {
            self.send(true, &out[..len]);
        }
        assert_eq!(self.device.poll_failure(), None);
    }

    /// Until all is said, and what is late has arrived; how many messages that took.
    fn end(mut self) -> usize {
        let limit = self.world.now.mono_us + 300_000_000;
        let command = Command {
            token: 7,
            device: DeviceId([1; 8]),
            registration: 0,
            number: 7,
            payload: b"do".to_vec(),
            timeout: std::time::Duration::from_secs(250),
            patient: true,
        };
        self.world.shard.handle_mail(self.world.now, Mail::Command(command));
        while self.confirmed < READINGS
            || self.results == 0
            || !self.network.is_empty()
            || self.device.is_waiting()
        {
            self.step();
            assert!(
                self.world.now.mono_us < limit,
                "{:?}: {} confirmed, {} results",
                self.faults,
                self.confirmed,
                self.results
            );
        }
        assert_eq!((self.confirmed, self.carried_out, self.results), (READINGS, 1, 1));
        let mut stored: Vec<_> =
            self.world.stored.0.borrow().iter().map(|reading| reading.payload.clone()).collect();
        stored.sort();
        assert_eq!(stored, [[0], [1], [2]], "{:?}: each once", self.faults);
        assert!(self.device.is_open());
        self.sent
    }
}

fn profile(name: &str) -> Profile {
    Profile::from_name(name).unwrap()
}

#[test]
fn any_message_may_be_lost_doubled_overtaken_or_late() {
    for name in
        ["registered-certificate/ephemeral", "registered-id/ephemeral", "registered-id/client-key"]
    {
        for early in [Early::Never, Early::Stay] {
            let count = Run::new(profile(name), early, &[]).end();
            assert!(count >= 7, "HELLO, ACCEPT, a reading, its ack, command, result, ack: {count}");
            for number in 0..count {
                for fault in [Fault::Lost, Fault::Doubled, Fault::Overtaken, Fault::Late] {
                    Run::new(profile(name), early, &[(number, fault)]).end();
                }
            }
        }
    }
}

#[test]
fn any_two_messages_may_be_lost() {
    let profile = profile("registered-id/ephemeral");
    let count = Run::new(profile, Early::Stay, &[]).end();
    for first in 0..count {
        // The second may be one that is sent because of the first.
        for second in first + 1..count + 2 {
            Run::new(profile, Early::Stay, &[(first, Fault::Lost), (second, Fault::Lost)]).end();
        }
    }
}
