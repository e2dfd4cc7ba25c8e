//! Doubt (R105 to R107): a production device in a session, two minutes with a reading every ten seconds, RESETs that somebody forges
//! at every choice of up to two moments; and a gateway that is replaced by another one of the same certificate.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use duet_core::{Handler as _, Mail, Now};
use duet_device::Event;
use duet_protocol::wire::{Kind, MESSAGE_MAX, Reset};

use crate::gateway::Gateway;
use crate::machine::{Flash, Machine, machine};

const MS: u64 = 1_000;
const END: u64 = 120_000 * MS;
const EVERY: u64 = 10_000 * MS;

fn home() -> SocketAddr {
    "192.0.2.1:4000".parse().unwrap()
}

enum Arrival {
    Gateway(Vec<u8>),
    Device(Vec<u8>),
    Forged,
    Reading,
    Death,
}

/// Two minutes of a device's life.
struct Life {
    round_trip: u64,
    device: Machine,
    gateway: Gateway,
    now: u64,
    due: BTreeMap<(u64, u64), Arrival>,
    order: u64,
    /// When HELLOs went out, the first one left out.
    hellos: Vec<u64>,
    doubts: usize,
    said: bool,
}

impl Life {
    fn new(round_trip: u64) -> Self {
        let (device, gateway) = (machine(1, &Flash::default(), 2), Gateway::new(1));
        let (due, hellos) = (BTreeMap::new(), Vec::new());
        let mut life = Self {
            round_trip,
            device,
            gateway,
            now: 0,
            due,
            order: 0,
            hellos,
            doubts: 0,
            said: false,
        };
        life.device.open(0);
        for time in (0..END).step_by(usize::try_from(EVERY).unwrap()) {
            life.at(time, Arrival::Reading);
        }
        life
    }

    fn at(&mut self, time: u64, arrival: Arrival) {
        self.order += 1;
        self.due.insert((time, self.order), arrival);
    }

    /// The gateway's clock: both run alike.
    fn clock(&self) -> Now {
        Now { mono_us: 1_000_000_000 + self.now, unix_ms: 1_800_000_000_000 + self.now / MS }
    }

    fn run(mut self, until: impl Fn(&Self) -> bool) -> Self {
        loop {
            let next = self.due.first_key_value().map(|((time, _), _)| *time);
            let timer = self.device.poll_timeout().into_iter();
            let next = timer.chain(next).min().unwrap_or(END).max(self.now);
            if next >= END || until(&self) {
                return self;
            }
            self.now = next;
            while let Some(entry) = self.due.first_entry().filter(|entry| entry.key().0 <= next) {
                let arrival = entry.remove();
                self.arrive(arrival);
            }
            self.speak();
        }
    }

    fn arrive(&mut self, arrival: Arrival) {
        match arrival {
            Arrival::Gateway(message) => {
                let now = self.clock();
                self.gateway.arrive(now, home(), &message);
                for _ in 0..2 {
                    for (_, message) in self.gateway.turn(now) {
                        self.at(self.now + self.round_trip / 2, Arrival::Device(message));
                    }
                    let flight = std::mem::take(&mut self.gateway.flight);
                    let durable = flight.into_iter().map(|(entry, _)| entry.token).collect();
                    self.gateway.shard.handle_mail(now, Mail::Durable(durable));
                }
            }
            Arrival::Device(mut message) => self.hear(&mut message),
            Arrival::Forged => {
                if let Some(session) = self.device.session() {
                    self.hear(&mut Reset { session, mac: [7; 16] }.encode());
                }
            }
            Arrival::Reading => {
                let _ = self.device.send_reading(self.now, 1, b"21.5", true);
            }
            Arrival::Death => {
                self.gateway = Gateway::with_node_key(1, [0x99; 32]);
            }
        }
    }

    fn hear(&mut self, message: &mut [u8]) {
        let event = self.device.handle_message(self.now, message);
        self.doubts += usize::from(matches!(event, Ok(Event::Doubted)));
        while self.device.poll_confirmed().is_some() {}
    }

    fn speak(&mut self) {
        let mut out = [0; MESSAGE_MAX];
        while let Some(len) = self.device.poll_transmit(self.now, &mut out) {
            if Kind::of(&out) == Ok(Kind::Hello) {
                if self.said {
                    self.hellos.push(self.now);
                }
                self.said = true;
            }
            self.at(self.now + self.round_trip / 2, Arrival::Gateway(out[..len].to_vec()));
        }
    }
}

const ROUND_TRIPS: [u64; 3] = [50 * MS, 150 * MS, 300 * MS];

#[test]
fn forged_resets_alone_make_a_device_ask_and_never_shake_hands() {
    // From when on it has learnt how long an answer takes.
    let mut moments: Vec<u64> = (1_000..4_000).step_by(350).map(|ms| ms * MS).collect();
    moments.extend([19_990 * MS, 20_010 * MS, 60_000 * MS, 61_000 * MS]);
    let mut schedules = 0;
    for round_trip in ROUND_TRIPS {
        for (place, first) in moments.iter().enumerate() {
            for second in &moments[place..] {
                schedules += 1;
                let mut life = Life::new(round_trip);
                life.at(*first, Arrival::Forged);
                life.at(*second, Arrival::Forged);
                let life = life.run(|_| false);
                assert_eq!(life.hellos, [0; 0], "{round_trip} µs, forged at {first} and {second}");
                assert!((1..=2).contains(&life.doubts), "{} doubts", life.doubts);
                assert_eq!(life.gateway.shard.counts.accepts, 1);
            }
        }
        // However many: six questions a minute.
        let mut life = Life::new(round_trip);
        (1_000..120_000).step_by(200).for_each(|ms| life.at(ms * MS, Arrival::Forged));
        let life = life.run(|_| false);
        assert!(life.hellos.is_empty() && (6..=12).contains(&life.doubts), "{}", life.doubts);
    }
    println!("doubt: {schedules} schedules");
}

#[test]
fn a_gateway_that_was_replaced_is_left_within_a_round_trip_and_half_a_second() {
    for round_trip in ROUND_TRIPS {
        let mut life = Life::new(round_trip);
        life.at(15_000 * MS, Arrival::Death);
        let life =
            life.run(|life| life.gateway.shard.counts.confirmed > 0 && life.now > 16_000 * MS);
        let after = life.hellos.first().map(|at| at - 20_000 * MS);
        let most = if round_trip <= 166 * MS { round_trip + 500 * MS } else { 4 * round_trip };
        assert!(after.is_some_and(|after| after <= most), "{round_trip} µs: {after:?} µs");
        assert_eq!(life.hellos.len(), 1, "one handshake");
        // A forged one just before costs ten seconds, and no more.
        let mut life = Life::new(round_trip);
        life.at(14_000 * MS, Arrival::Forged);
        life.at(15_000 * MS, Arrival::Death);
        let life =
            life.run(|life| life.gateway.shard.counts.confirmed > 0 && life.now > 16_000 * MS);
        let after = life.hellos.first().map(|at| at - 20_000 * MS);
        assert!(after.is_some_and(|after| after <= EVERY + most), "{round_trip} µs: {after:?} µs");
    }
}
