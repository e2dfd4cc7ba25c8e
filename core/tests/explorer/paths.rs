//! Paths (R70, R71, R109 to R111), byte for byte, against the production shard.
//!
//! *Safe*: a malicious device with helpers. M is where they receive, O an address that they had for a while, V a victim. They
//! make records, repeat them from any of the three, and answer with every question that they saw. No address that answered
//! none of its own and recent questions ever gets more bytes than authentic records brought from there.
//!
//! *Live*: an honest production device, whatever state an attacker left, who then wins races with copies of records and relays
//! what reaches him, but cannot drop. A command of 1,000 bytes arrives within two round trips after the device's next record,
//! and the reading is confirmed at its first repetition at the latest.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::SocketAddr;
use std::time::Duration;

use duet_core::rules::{self, Rule};
use duet_core::{Command, Handler as _, Mail, Now};
use duet_device::crypto::Crypto as _;
use duet_device::software::Software;
use duet_device::{Early, Event};
use duet_protocol::message::{Down, TEXT_MAX, Up};
use duet_protocol::record::nonce;
use duet_protocol::wire::{DOWN_HEADER, DownHeader, MESSAGE_MAX, Reset, SessionId, TAG, UpHeader};

use crate::gateway::Gateway;
use crate::machine::{Flash, ID, Machine, machine};
use crate::search::{self, Fault, Outcome, System};

type Keys = ([u8; 16], [u8; 12]);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Address {
    /// The honest device's, or where the malicious one receives.
    Mine,
    Old,
    Victim,
}
use Address::{Mine, Old, Victim};

impl Address {
    fn socket(self) -> SocketAddr {
        SocketAddr::from(([198, 51, 100, 1 + self as u8], 4_000))
    }

    fn of(address: SocketAddr) -> Self {
        *[Mine, Old, Victim].iter().find(|one| one.socket() == address).unwrap()
    }
}

/// A question lasts so long (R109).
const EPOCH: Duration = Duration::from_secs(30);

/// Bytes of the command.
const COMMAND: usize = 1_000;

fn command() -> Mail {
    Mail::Command(Command {
        token: 1,
        device: ID,
        registration: 0,
        number: 1,
        payload: vec![7; COMMAND],
        timeout: Duration::from_secs(3_600),
        patient: true,
    })
}

/// A gateway with a device in a session, over a path that has proved itself.
struct Start {
    gateway: Gateway,
    device: Machine,
    now: Now,
    clock: u64,
}

impl Start {
    fn new() -> Self {
        let now = Now { mono_us: 900_000_000, unix_ms: 1_800_000_000_000 };
        let mut device = machine(1, &Flash::default(), 2);
        device.set_early(Early::Never);
        let mut start = Self { gateway: Gateway::new(1), device, now, clock: 1_000_000 };
        start.device.open(start.clock);
        start.device.send_reading(start.clock, 1, b"21.5", true).unwrap();
        for _ in 0..3 {
            for message in start.speak() {
                start.gateway.arrive(start.now, Mine.socket(), &message);
            }
            for (_, mut message) in start.work() {
                start.device.handle_message(start.clock, &mut message).unwrap();
            }
        }
        assert!(start.device.poll_confirmed().is_some());
        start
    }

    fn speak(&mut self) -> Vec<Vec<u8>> {
        let mut out = [0; MESSAGE_MAX];
        std::iter::from_fn(|| {
            self.device.poll_transmit(self.clock, &mut out).map(|len| out[..len].to_vec())
        })
        .collect()
    }

    /// A turn, with all that was taken stored in it.
    fn work(&mut self) -> Vec<(Address, Vec<u8>)> {
        let mut sent = self.gateway.turn(self.now);
        while !self.gateway.flight.is_empty() {
            self.gateway.commit();
            self.gateway.answer(self.now);
        }
        sent.extend(self.gateway.turn(self.now));
        sent.into_iter().map(|(to, message)| (Address::of(to), message)).collect()
    }
}

// ---- safe

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Text {
    Ping,
    /// The shortest reading that is confirmed.
    Tiny,
    Reading,
    /// An answer that nobody asked for.
    Guess,
    /// One to this question, by its place among those that were seen.
    Here(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Send(Text, Address),
    Repeat(usize, Address),
    Epoch,
}

/// A question that reached the helpers.
type Question = (Address, u8, [u8; 4]);

struct Safe {
    start: Start,
    session: SessionId,
    up: Keys,
    down: Keys,
    made: Vec<(Vec<u8>, Option<[u8; 4]>)>,
    seen: BTreeSet<Question>,
    balance: BTreeMap<Address, i64>,
    proved: BTreeSet<Address>,
    repeated: usize,
    epoch: u8,
}

impl Safe {
    fn new() -> Self {
        let mut start = Start::new();
        let [up, down] = start.device.session_keys().unwrap();
        let session = start.device.session().unwrap();
        start.gateway.shard.handle_mail(start.now, command());
        let _ = start.work();
        let proved = BTreeSet::from([Mine]);
        let (made, seen, balance) = (Vec::new(), BTreeSet::new(), BTreeMap::new());
        Self { start, session, up, down, made, seen, balance, proved, repeated: 0, epoch: 0 }
    }

    fn seal(&self, up: Up<'_>) -> Vec<u8> {
        let sequence = 100 + u32::try_from(self.made.len()).unwrap();
        let header = UpHeader { session: self.session, sequence }.encode();
        let mut text = [0; TEXT_MAX];
        let len = up.encode(&mut text);
        let mut crypto = Software::seeded([0; 32]);
        let nonce = nonce(&self.up.1, sequence);
        let tag = crypto.seal(&self.up.0, &nonce, &header, &mut text[..len]).unwrap();
        [&header[..], &text[..len], &tag].concat()
    }

    /// The question in a message, if it is one.
    fn question(&self, message: &[u8]) -> Option<[u8; 4]> {
        let header = DownHeader::decode(message).ok()?;
        let mut text = message[DOWN_HEADER..message.len() - TAG].to_vec();
        let tag = message.last_chunk().unwrap();
        let nonce = nonce(&self.down.1, header.sequence);
        let aad = header.associated_data(self.session);
        let mut crypto = Software::seeded([0; 32]);
        assert_eq!(crypto.open(&self.down.0, &nonce, &aad, &mut text, tag), Ok(true));
        match Down::decode(&text) {
            Ok(Down::Prove { challenge }) => Some(challenge),
            _ => None,
        }
    }

    fn arrive(&mut self, which: usize, from: Address) {
        let (message, answer) = self.made[which].clone();
        *self.balance.entry(from).or_default() += i64::try_from(message.len()).unwrap();
        let recent = |(at, epoch, asked): &Question| {
            *at == from && self.epoch - epoch <= 1 && Some(*asked) == answer
        };
        if self.seen.iter().any(recent) {
            self.proved.insert(from);
        }
        self.start.gateway.arrive(self.start.now, from.socket(), &message);
        self.account();
    }

    fn account(&mut self) {
        for (to, message) in self.start.work() {
            *self.balance.entry(to).or_default() -= i64::try_from(message.len()).unwrap();
            if let Some(asked) = self.question(&message)
                && (to == Mine || (to == Old && self.epoch == 0))
            {
                self.seen.insert((to, self.epoch, asked));
            }
        }
    }
}

impl System for Safe {
    type Step = Step;

    fn steps(&self) -> Vec<Step> {
        let addresses = [Mine, Old, Victim];
        let mut steps = Vec::new();
        if self.made.len() < 4 {
            let texts = [Text::Ping, Text::Tiny, Text::Reading, Text::Guess].into_iter();
            for text in texts.chain((0..self.seen.len()).map(Text::Here)) {
                steps.extend(addresses.map(|from| Step::Send(text, from)));
            }
        }
        if self.repeated < 2 {
            for which in 0..self.made.len() {
                steps.extend(addresses.map(|from| Step::Repeat(which, from)));
            }
        }
        steps.extend((self.epoch < 2).then_some(Step::Epoch));
        steps
    }

    fn take(&mut self, step: Step) -> Result<(), Fault> {
        match step {
            Step::Send(text, from) => {
                let reading = |payload| Up::Reading {
                    confirm: true,
                    channel: 1,
                    age_ms: None,
                    again: None,
                    payload,
                };
                let (up, answer) = match text {
                    Text::Ping => (Up::Ping, None),
                    Text::Tiny => (reading(&[]), None),
                    Text::Reading => (reading(&[7; 64]), None),
                    Text::Guess => (Up::Here { challenge: [9; 4] }, None),
                    Text::Here(which) => {
                        let (.., challenge) = *self.seen.iter().nth(which).unwrap();
                        (Up::Here { challenge }, Some(challenge))
                    }
                };
                self.made.push((self.seal(up), answer));
                self.arrive(self.made.len() - 1, from);
            }
            Step::Repeat(which, from) => {
                self.repeated += 1;
                self.arrive(which, from);
            }
            Step::Epoch => {
                self.epoch += 1;
                self.start.now.mono_us += u64::try_from(EPOCH.as_micros()).unwrap();
                self.account();
            }
        }
        for address in [Old, Victim] {
            let balance = self.balance.get(&address).copied().unwrap_or(0);
            if balance < 0 && !self.proved.contains(&address) {
                return Err(format!("{address:?} gets {} bytes more than it brought", -balance));
            }
        }
        Ok(())
    }

    fn name(&self) -> u64 {
        let mut out = DefaultHasher::new();
        self.start.gateway.hash(self.start.now, &mut out);
        (&self.made, &self.seen, &self.balance, &self.proved).hash(&mut out);
        (self.repeated, self.epoch).hash(&mut out);
        out.finish()
    }

    fn end(self) -> Result<(), Fault> {
        Ok(())
    }
}

// ---- live

/// Whether what reached the attacker gets to the device, before or after what reached the device itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Relay {
    Never,
    First,
    Last,
}

#[derive(Clone, Debug)]
struct Attack {
    /// From where readings came first, before the command was there.
    before: &'static [Address],
    first: Text,
    /// Whether the reading is stored before its own copy comes.
    durable: bool,
    /// Where the attacker's copy of each record comes from, if it wins.
    races: [Option<Address>; 3],
    relay: Relay,
}

/// The device's next record, and all that follows; how many round trips until the command is there.
fn race(attack: &Attack) -> Result<usize, Fault> {
    let mut it = Start::new();
    for from in attack.before {
        it.device.send_reading(it.clock, 1, b"21.5", true).unwrap();
        for message in it.speak() {
            for from in [*from, Mine] {
                it.gateway.arrive(it.now, from.socket(), &message);
                for (to, mut message) in it.work() {
                    if to == Mine {
                        let _ = it.device.handle_message(it.clock, &mut message);
                    }
                }
            }
        }
        // What was not confirmed there is not what this is about.
        while it.device.poll_confirmed().is_some() {}
    }
    it.gateway.shard.handle_mail(it.now, command());
    let (mut there, mut confirmed) = (false, false);
    let mut token = None;
    match attack.first {
        Text::Tiny => token = it.device.send_reading(it.clock, 1, b"", true).ok(),
        Text::Reading => token = it.device.send_reading(it.clock, 1, &[7; 64], true).ok(),
        _ => {
            // It knows that nothing waited, so it asks for another reason: somebody forged a RESET.
            let session = it.device.session().unwrap();
            let mut forged = Reset { session, mac: [7; 16] }.encode();
            let event = it.device.handle_message(it.clock, &mut forged);
            assert!(matches!(event, Ok(Event::Doubted)));
        }
    }
    let (mut trips, mut raced) = (0, attack.races.iter());
    let mut pending = it.work();
    while !there && trips < 4 {
        trips += 1;
        let mut up = it.speak();
        if up.is_empty() {
            // Nothing said that nothing waits, so it asks, or asks again.
            it.device.rest(it.clock);
            it.clock += 3_000_000;
            up = it.speak();
        }
        let mut sent = std::mem::take(&mut pending);
        for message in up {
            let copies = raced.next().copied().flatten().into_iter().chain([Mine]);
            for from in copies {
                it.gateway.arrive(it.now, from.socket(), &message);
                if attack.durable {
                    sent.extend(it.work());
                } else {
                    let out = it.gateway.turn(it.now);
                    sent.extend(out.into_iter().map(|(to, message)| (Address::of(to), message)));
                }
            }
            sent.extend(it.work());
        }
        let (mine, others): (Vec<_>, Vec<_>) = sent.into_iter().partition(|(to, _)| *to == Mine);
        // The attacker receives at one address only.
        let relayed: Vec<_> = others.into_iter().filter(|(to, _)| *to == Old).collect();
        let heard = match attack.relay {
            Relay::Never => mine,
            Relay::First => [relayed, mine].concat(),
            Relay::Last => [mine, relayed].concat(),
        };
        for (to, mut message) in heard {
            // What is relayed counts for nothing: the attacker could drop it.
            there |= to == Mine && message.len() > COMMAND;
            let _ = it.device.handle_message(it.clock, &mut message);
            while let Some(done) = it.device.poll_confirmed() {
                confirmed |= Some(done.token) == token;
            }
        }
    }
    if !there {
        return Err(format!("the command does not come: {attack:?}"));
    }
    if token.is_some() && !confirmed {
        it.clock += 2_000_000;
        for message in it.speak() {
            it.gateway.arrive(it.now, Mine.socket(), &message);
        }
        for (to, mut message) in it.work() {
            if to == Mine {
                let _ = it.device.handle_message(it.clock, &mut message);
            }
        }
        while let Some(done) = it.device.poll_confirmed() {
            confirmed |= Some(done.token) == token;
        }
        if !confirmed {
            return Err(format!("the reading is not confirmed: {attack:?}"));
        }
    }
    Ok(trips)
}

/// All attacks; how many there were, or the first that keeps a command or an ack back.
fn live() -> Result<usize, Fault> {
    let befores: [&[Address]; 4] = [&[Victim], &[Old], &[Victim, Old], &[Old, Victim]];
    let firsts = [
        (Text::Ping, false),
        (Text::Tiny, false),
        (Text::Tiny, true),
        (Text::Reading, false),
        (Text::Reading, true),
    ];
    let choices = [None, Some(Victim), Some(Old)];
    let mut runs = 0;
    for before in befores {
        for (first, durable) in firsts {
            for plan in 0..27 {
                for relay in [Relay::Never, Relay::First, Relay::Last] {
                    let races = [plan % 3, plan / 3 % 3, plan / 9].map(|which| choices[which]);
                    let attack = Attack { before, first, durable, races, relay };
                    let trips = race(&attack)?;
                    runs += 1;
                    // R111: all bytes of the shortest reading are its acknowledgement's.
                    if trips > if first == Text::Tiny { 3 } else { 2 } {
                        return Err(format!("{trips} round trips: {attack:?}"));
                    }
                }
            }
        }
    }
    Ok(runs)
}

#[test]
fn no_address_gets_more_than_it_brought_and_no_command_is_kept_back() {
    let Outcome { states, depth, complete, fault } = search::explore(Safe::new, 6_000);
    assert!(fault.is_none(), "{fault:?}");
    let walked = search::walk(Safe::new, 400, 8);
    let walked = walked.unwrap_or_else(|fault| panic!("{fault:?}"));
    let runs = live().unwrap_or_else(|fault| panic!("{fault}"));
    println!(
        "paths: {states} states, depth {depth}, all: {complete}; walks of {walked}; {runs} races"
    );
}

#[test]
fn each_rule_of_paths_is_needed() {
    let unsafe_ = [Rule::MoveEndsProof, Rule::AskedThere, Rule::AskedLately, Rule::OwnBytes];
    for rule in unsafe_ {
        let found = rules::without(Some(rule), || search::walk(Safe::new, 3_000, 8).err());
        let (fault, path) = found.unwrap_or_else(|| panic!("{rule:?} is not found out"));
        println!("paths without {rule:?}: {fault} after {} steps", path.len());
    }
    for rule in [Rule::AnsweredThere, Rule::CopyProves] {
        let fault = rules::without(Some(rule), || live().err());
        println!("paths without {rule:?}: {}", fault.unwrap_or_else(|| panic!("{rule:?}")));
    }
}
