//! Early readings (R94 to R104) on one gateway and on two that share a certificate: loss, delay, reordering and replay of all
//! messages; storage that is slow or refuses; a gateway killed between any two steps, between commit and answer, too; its disk
//! lost; the device's power cut, its counter forgotten. Whoever is at work there holds every message that was ever sent.
//!
//! Looked at after each step: no HELLO's reading is stored twice, and marks rise from one to the next (*once*); no name is stored
//! twice (*reading*, for devices that keep their counter); who was told that a reading is stored finds it stored (*true*). A HELLO
//! whose counter the mark has reached opens no session (*stale*). From each state on, a network that delivers gets the device's
//! reading confirmed, whatever is played back meanwhile (*free*).

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::SocketAddr;

use duet_core::Now;
use duet_core::rules::{self, Rule};
use duet_device::Early;
use duet_protocol::mark::Mark;
use duet_protocol::reading::{EARLY_SEQUENCE, ReadingId};
use duet_protocol::wire::{Kind, MESSAGE_MAX};

use crate::gateway::{Entry, Gateway, Kept};
use crate::machine::{Flash, Machine, machine};
use crate::search::{self, Fault, Outcome, System};

/// The device's clock, which stands still.
const STILL: u64 = 1_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The device gives up what it waits for, and makes a new HELLO.
    Make,
    Cut,
    Hello {
        node: usize,
        hello: usize,
    },
    Record {
        node: usize,
        record: usize,
    },
    Down(usize),
    Commit(usize),
    Answer(usize),
    Pass(u64),
    /// The registry saves the mark, as it does every few seconds.
    Save(usize),
    /// The registry takes what the next reading of the spool says.
    Merge(usize),
    Crash(usize),
    Wipe(usize),
}

/// What is wrong with what surrounds the shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    /// Marks and names are not rebuilt from the spool at start.
    NotRebuilt,
    /// Marks are, names are not.
    NameNotRebuilt,
    /// The place in the spool is saved before the marks.
    Torn,
    /// Storage answers before it has stored.
    Eager,
    /// The device says a reading again under a new name.
    NewName,
}

#[derive(Clone, Copy)]
struct Plan {
    nodes: usize,
    readings: usize,
    hellos: usize,
    cuts: usize,
    crashes: usize,
    wipes: usize,
    /// How often time passes.
    passes: usize,
    keeps: bool,
    /// Whether HELLOs carry readings.
    early: Early,
    counter: u64,
    mark: u64,
    /// In how many HELLOs a device is in, over a network that delivers.
    within: usize,
    flaw: Option<Flaw>,
}

/// A device that the gateway has met.
const KNOWN: Plan = Plan {
    nodes: 1,
    readings: 2,
    hellos: 3,
    cuts: 0,
    crashes: 1,
    wipes: 0,
    passes: 1,
    keeps: true,
    early: Early::Stay,
    counter: 2,
    mark: Mark::MADE.get(),
    within: 2,
    flaw: None,
};
const NEW: Plan = Plan { counter: 1, mark: 0, ..KNOWN };
const WIPE: Plan = Plan { crashes: 0, wipes: 1, ..KNOWN };
const TWO: Plan = Plan { nodes: 2, readings: 1, ..KNOWN };
const CUT: Plan = Plan { cuts: 1, ..KNOWN };
/// Its old HELLOs have greater counters than its new ones.
const FORGETS: Plan = Plan { cuts: 1, keeps: false, counter: 20, within: 4, ..KNOWN };

/// The same without readings in HELLOs: nothing moves the mark that would end what somebody plays back.
const PLAIN: Plan = Plan { early: Early::Never, within: 2, ..FORGETS };

/// Far more than the exhaustive search can have, for walks.
fn long(plan: Plan) -> Plan {
    let cuts = if plan.cuts > 0 { 3 } else { 0 };
    Plan { readings: 6, hellos: 14, cuts, crashes: 3, passes: 6, ..plan }
}

/// A HELLO.
#[derive(Clone, Hash)]
struct Made {
    bytes: Vec<u8>,
    fresh: u64,
    /// Whether it answers a challenge.
    answers: bool,
}

struct World {
    plan: Plan,
    now: Now,
    nodes: Vec<Gateway>,
    flash: Flash,
    device: Machine,
    life: u8,
    /// How many readings were begun.
    begun: usize,
    /// The one in hand, and the device's number for it.
    in_hand: Option<(Vec<u8>, u32)>,
    hellos: Vec<Made>,
    records: Vec<Vec<u8>>,
    /// What was sent to the device and it may still listen to.
    down: Vec<Vec<u8>>,
    told: Vec<(ReadingId, Vec<u8>)>,
    cuts: usize,
    crashes: usize,
    wipes: usize,
    passes: usize,
}

/// A device without what was in its memory, and its readings lost with that.
fn reborn(life: u8, flash: &Flash, early: Early) -> Machine {
    let mut device = machine(life, flash, 1);
    device.set_early(early);
    device.forget_doubt().unwrap();
    device
}

fn home() -> SocketAddr {
    "192.0.2.1:4000".parse().unwrap()
}

impl World {
    fn new(plan: Plan) -> Self {
        let flash = Flash::default();
        let mut device = machine(1, &flash, plan.counter);
        device.set_early(plan.early);
        Self {
            plan,
            now: Now { mono_us: 1_000_000_000, unix_ms: 1_800_000_000_000 },
            nodes: (0..plan.nodes).map(|_| Gateway::new(plan.mark)).collect(),
            flash,
            device,
            life: 1,
            begun: 0,
            in_hand: None,
            hellos: Vec::new(),
            records: Vec::new(),
            down: Vec::new(),
            told: Vec::new(),
            cuts: 0,
            crashes: 0,
            wipes: 0,
            passes: 0,
        }
    }

    fn is(&self, flaw: Flaw) -> bool {
        self.plan.flaw == Some(flaw)
    }

    /// Takes what the device has to send; the newest HELLO is the only one that it waits for.
    fn listen(&mut self, answers: bool) {
        let mut out = [0; MESSAGE_MAX];
        while let Some(len) = self.device.poll_transmit(STILL, &mut out) {
            let message = out[..len].to_vec();
            if Kind::of(&message) == Ok(Kind::Hello) {
                self.down.clear();
                let fresh = self.device.fresh() - 1;
                self.hellos.push(Made { bytes: message, fresh, answers });
            } else if !self.records.contains(&message) {
                self.records.push(message);
            }
        }
    }

    fn make(&mut self) {
        self.device.close();
        self.listen(false);
        if self.is(Flaw::NewName)
            && let Some((payload, token)) = &mut self.in_hand
        {
            self.life += 1;
            self.device = reborn(self.life, &self.flash, self.plan.early);
            *token = self.device.send_reading(STILL, 1, payload, true).unwrap();
        }
        if self.in_hand.is_none() {
            self.begun += 1;
            let payload = format!("reading {}", self.begun).into_bytes();
            let token = self.device.send_reading(STILL, 1, &payload, true).unwrap();
            self.in_hand = Some((payload, token));
        }
        self.device.open(STILL);
        self.listen(false);
    }

    fn hear(&mut self, mut message: Vec<u8>) -> Result<(), Fault> {
        let challenged = Kind::of(&message) == Ok(Kind::Challenge);
        let _ = self.device.handle_message(STILL, &mut message);
        while let Some(done) = self.device.poll_confirmed() {
            let Some((payload, _)) = self.in_hand.take_if(|(_, token)| *token == done.token) else {
                return Err("confirmed what was not sent".to_owned());
            };
            self.told.push((done.id, payload));
        }
        self.listen(challenged);
        Ok(())
    }

    /// A turn of every node; what comes of it is on its way to the device.
    fn turn(&mut self) {
        for node in &mut self.nodes {
            let before = node.flight.len();
            let mut sent = node.turn(self.now);
            if self.plan.flaw == Some(Flaw::Eager) {
                for (entry, on_disk) in &mut node.flight[before..] {
                    let durable = duet_core::Mail::Durable(vec![entry.token]);
                    duet_core::Handler::handle_mail(&mut node.shard, self.now, durable);
                    *on_disk = false;
                }
                sent.extend(node.turn(self.now));
            }
            for (_, message) in sent {
                if !self.down.contains(&message) {
                    self.down.push(message);
                }
            }
        }
    }

    fn pass(&mut self, micros: u64) {
        self.now.mono_us += micros;
        self.now.unix_ms += micros / 1_000;
    }

    fn check(&self) -> Result<(), Fault> {
        for node in &self.nodes {
            let early = node.spool.iter().filter(|entry| entry.token.1 == EARLY_SEQUENCE);
            let marks: Vec<_> = early.map(|entry| entry.mark.unwrap_or(0)).collect();
            let mut different = marks.clone();
            different.sort_unstable();
            different.dedup();
            if different.len() < marks.len() || (self.wipes == 0 && marks != different) {
                return Err(format!("once: stored with marks {marks:?}"));
            }
            let mut names: Vec<_> = node.spool[node.lost..].iter().map(|entry| entry.id).collect();
            let all = names.len();
            names.sort_unstable();
            names.dedup();
            if self.plan.keeps && names.len() < all {
                return Err("reading: a name is stored twice".to_owned());
            }
            let mut readings: Vec<_> =
                node.spool[node.lost..].iter().map(|entry| &entry.payload).collect();
            readings.sort_unstable();
            readings.dedup();
            if self.plan.keeps && readings.len() < all {
                return Err("reading: a reading is stored twice".to_owned());
            }
        }
        for (id, payload) in &self.told {
            let mut stored = self.nodes.iter().flat_map(|node| &node.spool);
            if !stored.any(|entry| entry.id == *id && entry.payload == *payload) {
                return Err("true: told that it is stored, and it is not".to_owned());
            }
        }
        Ok(())
    }
}

impl System for World {
    type Step = Step;

    fn steps(&self) -> Vec<Step> {
        let Self { plan, hellos, records, down, .. } = self;
        let mut steps = Vec::new();
        let more = hellos.len() < plan.hellos;
        if more && (self.in_hand.is_some() || self.begun < plan.readings) {
            steps.push(Step::Make);
        }
        if self.cuts < plan.cuts && !hellos.is_empty() {
            steps.push(Step::Cut);
        }
        // A challenge is answered at once, by another HELLO.
        let heard = down.iter().enumerate();
        let heard = heard.filter(|(_, one)| more || Kind::of(one) != Ok(Kind::Challenge));
        steps.extend(heard.map(|(which, _)| Step::Down(which)));
        for (number, node) in self.nodes.iter().enumerate() {
            let hellos = 0..hellos.len();
            steps.extend(hellos.map(|hello| Step::Hello { node: number, hello }));
            let records = 0..records.len();
            steps.extend(records.map(|record| Step::Record { node: number, record }));
            if node.flight.iter().any(|(_, on_disk)| !on_disk) {
                steps.push(Step::Commit(number));
            }
            if !node.flight.is_empty() {
                steps.push(Step::Answer(number));
            }
            if node.device.mark() > node.saved.0 {
                steps.push(Step::Save(number));
            }
            if node.cursor < node.spool.len() {
                steps.push(Step::Merge(number));
            }
            if self.crashes < plan.crashes {
                steps.push(Step::Crash(number));
            }
            if self.wipes < plan.wipes {
                steps.push(Step::Wipe(number));
            }
        }
        if self.passes < plan.passes {
            // An ACCEPT's patience, a pending session's time, a challenge's, a session's.
            let waits = self.nodes.iter().any(|node| !node.flight.is_empty());
            let sessions: usize = self.nodes.iter().map(|node| node.shard.sessions()).sum();
            steps.extend(waits.then_some(Step::Pass(500_000)));
            let times = [11_000_000, 31_000_000, 130_000_000];
            steps.extend(times.into_iter().filter(|_| sessions > 0).map(Step::Pass));
        }
        steps
    }

    fn take(&mut self, step: Step) -> Result<(), Fault> {
        let (now, plan) = (self.now, self.plan);
        match step {
            Step::Make => self.make(),
            Step::Cut => {
                self.cuts += 1;
                self.life += 1;
                if !plan.keeps {
                    self.flash.erase();
                }
                self.device = reborn(self.life, &self.flash, self.plan.early);
                self.in_hand = None;
                self.down.clear();
            }
            Step::Hello { node: number, hello } => {
                let Made { bytes, fresh, answers } = &self.hellos[hello];
                let node = &mut self.nodes[number];
                let stale = *fresh <= node.device.mark() && !answers;
                let before = node.shard.counts.accepts;
                node.arrive(now, home(), bytes);
                self.turn();
                if stale && self.nodes[number].shard.counts.accepts > before {
                    return Err("stale: an old HELLO opens a session".to_owned());
                }
            }
            Step::Record { node, record } => {
                self.nodes[node].arrive(now, home(), &self.records[record]);
            }
            Step::Down(which) => {
                let message = self.down.remove(which);
                self.hear(message)?;
            }
            Step::Commit(node) => self.nodes[node].commit(),
            Step::Answer(node) => self.nodes[node].answer(now),
            Step::Pass(micros) => {
                self.passes += 1;
                self.pass(micros);
            }
            Step::Save(node) => {
                let node = &mut self.nodes[node];
                node.saved.0 = node.device.mark();
            }
            Step::Merge(node) => {
                let node = &mut self.nodes[node];
                if plan.flaw != Some(Flaw::Torn) {
                    merge(&mut node.saved, &node.spool[node.cursor]);
                }
                node.cursor += 1;
            }
            Step::Crash(node) => {
                self.crashes += 1;
                self.nodes[node].crash(|kept, entry| match plan.flaw {
                    Some(Flaw::NotRebuilt) => {}
                    Some(Flaw::NameNotRebuilt) => kept.0 = kept.0.max(entry.mark.unwrap_or(0)),
                    _ => merge(kept, entry),
                });
            }
            Step::Wipe(node) => {
                self.wipes += 1;
                self.nodes[node].wipe();
            }
        }
        self.turn();
        self.check()
    }

    fn name(&self) -> u64 {
        let mut out = DefaultHasher::new();
        self.nodes.iter().for_each(|node| node.hash(self.now, &mut out));
        let session = self.device.session().map(|session| session.0);
        (&self.hellos, &self.records, &self.down, &self.in_hand).hash(&mut out);
        (session, self.device.fresh(), self.life, self.begun, &self.told).hash(&mut out);
        (self.cuts, self.crashes, self.wipes, self.passes).hash(&mut out);
        out.finish()
    }

    /// Over a network that delivers, node 0 confirms what the device has, or makes next.
    fn end(mut self) -> Result<(), Fault> {
        for _ in 0..4 {
            for number in 0..self.nodes.len() {
                self.nodes[number].commit();
                self.nodes[number].answer(self.now);
            }
            self.turn();
        }
        self.check()?;
        let told = self.told.len();
        let (mut hello, mut heard) = (self.hellos.len(), 0);
        self.make();
        for _ in 0..8 {
            self.down.clear();
            let mut made: Vec<_> =
                self.hellos[hello..].iter().map(|one| one.bytes.clone()).collect();
            hello = self.hellos.len();
            let older = hello.saturating_sub(made.len());
            let in_session = made.is_empty();
            if in_session {
                made.extend(self.records.last().cloned());
            } else {
                heard += 1;
            }
            made.iter().for_each(|message| self.nodes[0].arrive(self.now, home(), message));
            for _ in 0..2 {
                self.turn();
                self.nodes[0].commit();
                self.nodes[0].answer(self.now);
            }
            self.turn();
            self.check()?;
            let down = std::mem::take(&mut self.down);
            // What is older is played back before the device hears anything.
            for Made { bytes, .. } in &self.hellos[..older] {
                self.nodes[0].arrive(self.now, home(), bytes);
            }
            self.turn();
            self.check()?;
            for message in down {
                self.hear(message)?;
            }
            if self.told.len() > told {
                self.check()?;
                return if heard <= self.plan.within {
                    Ok(())
                } else {
                    Err(format!("free: in after {heard} HELLOs"))
                };
            }
            if in_session {
                // The session is silent: the device takes it for lost.
                self.make();
            }
        }
        Err(format!("free: not confirmed after {heard} HELLOs"))
    }
}

/// What a stored reading says of its device (R101).
fn merge((mark, last): &mut Kept, entry: &Entry) {
    if let Some(stands_for) = entry.mark {
        *mark = (*mark).max(stands_for);
        *last = Some(entry.id);
    }
}

/// A record of a session that was overtaken comes when its reading is stored, and another one after it: too seldom to be met
/// at random.
const OLDER: &[Step] = &[
    Step::Make,
    Step::Hello { node: 0, hello: 0 },
    // Storage refuses.
    Step::Answer(0),
    Step::Down(0),
    Step::Make,
    Step::Hello { node: 0, hello: 1 },
    // The session stands now, and its record is not taken, since the reading is on its way.
    Step::Record { node: 0, record: 0 },
    Step::Commit(0),
    Step::Answer(0),
    Step::Down(0),
    Step::Make,
    Step::Hello { node: 0, hello: 2 },
    Step::Commit(0),
    Step::Answer(0),
    Step::Record { node: 0, record: 0 },
    Step::Commit(0),
];

/// A HELLO that never arrived is played back between all that the device says after it has lost its counter.
const FORGOTTEN: &[Step] = &[Step::Make, Step::Cut];

fn script(plan: Plan, steps: &[Step]) -> Result<(), (Fault, Vec<String>)> {
    let mut world = World::new(plan);
    for (done, step) in steps.iter().enumerate() {
        let told = || steps[..=done].iter().map(|step| format!("{step:?}")).collect();
        world.take(*step).map_err(|fault| (fault, told()))?;
    }
    world.end().map_err(|fault| (fault, Vec::new()))
}

fn explore(plan: Plan, steps: usize) -> Outcome {
    search::explore(|| World::new(plan), steps)
}

#[test]
fn no_schedule_stores_an_early_reading_twice_or_keeps_a_device_out() {
    for (name, plan, steps) in [
        ("known", KNOWN, 8_000),
        ("new", NEW, 4_000),
        ("wipe", WIPE, 4_000),
        ("two nodes", TWO, 4_000),
        ("cut", CUT, 4_000),
        ("forgets", FORGETS, 4_000),
    ] {
        let outcome = explore(plan, steps);
        assert!(outcome.fault.is_none(), "{name}: {:?}", outcome.fault);
        let walked = search::walk(|| World::new(long(plan)), 60, 80);
        let walked = walked.unwrap_or_else(|fault| panic!("{name}: {fault:?}"));
        let Outcome { states, depth, complete, .. } = outcome;
        println!(
            "early, {name}: {states} states, depth {depth}, all: {complete}; walks of {walked}"
        );
    }
}

#[test]
fn each_rule_of_early_readings_is_needed() {
    type Mutant = (Option<Rule>, Option<Flaw>, Plan);
    let rule = |rule, plan| (Some(rule), None, plan);
    let flaw = |flaw, plan| (None, Some(flaw), plan);
    let mutants: [Mutant; 15] = [
        rule(Rule::MarkMoves, KNOWN),
        rule(Rule::KnownInHello, KNOWN),
        rule(Rule::KnownInRecord, KNOWN),
        rule(Rule::OneOnItsWay, KNOWN),
        rule(Rule::OlderSession, KNOWN),
        rule(Rule::Freshness, KNOWN),
        rule(Rule::FirstContact, WIPE),
        rule(Rule::WithinReach, FORGETS),
        rule(Rule::NoSilence, FORGETS),
        rule(Rule::AnswerStands, PLAIN),
        flaw(Flaw::NotRebuilt, KNOWN),
        flaw(Flaw::NameNotRebuilt, KNOWN),
        flaw(Flaw::Torn, KNOWN),
        flaw(Flaw::Eager, KNOWN),
        flaw(Flaw::NewName, KNOWN),
    ];
    for (rule, flaw, plan) in mutants {
        let plan = Plan { flaw, ..plan };
        let found = rules::without(rule, || {
            let scripted = match rule {
                Some(Rule::OlderSession) => script(plan, OLDER),
                Some(Rule::AnswerStands) => script(plan, FORGOTTEN),
                _ => Ok(()),
            };
            let walked = || search::walk(|| World::new(long(plan)), 2_000, 80);
            scripted.and_then(|()| walked().map(drop)).err()
        });
        let (fault, path) = found.unwrap_or_else(|| panic!("{rule:?} {flaw:?} is not found out"));
        println!("early without {rule:?} {flaw:?}: {fault} after {} steps", path.len());
    }
    assert_eq!((script(KNOWN, OLDER), script(PLAIN, FORGOTTEN)), (Ok(()), Ok(())));
}
