//! "Nothing waits for you" (R112 to R119): a device that asks and sleeps, commands that are queued, carried out or too late, and
//! a network that withholds, delays and reorders, between the production shard and the production device.
//!
//! Looked at after each step: a device that is told that nothing waits was told of a moment since it asked (*true*); it carries
//! out no command twice (*once*), and none that had ended before that moment (*late*). From each state on, a network that delivers
//! brings an open command to a device that asks, before it is told that nothing waits (*met*).

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::SocketAddr;
use std::time::Duration;

use duet_core::rules::{self, Rule};
use duet_core::{Command, Event as Told, Handler as _, Mail, Now};
use duet_device::Event;
use duet_protocol::wire::MESSAGE_MAX;

use crate::gateway::Gateway;
use crate::machine::{Flash, ID, Machine, machine};
use crate::search::{self, Fault, Outcome, System};

/// How long a command is worth something.
const WORTH: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The device asks, by a ping.
    Ask,
    /// It sends a reading, whose ack may say the same.
    Read,
    Up(usize),
    Down(usize),
    Queue,
    /// Until a command is over.
    Expire,
    /// Until a command goes out again.
    Resend,
}

#[derive(Clone, Copy)]
struct Plan {
    asks: usize,
    commands: u32,
    resends: usize,
}

const SHORT: Plan = Plan { asks: 2, commands: 2, resends: 1 };
const LONG: Plan = Plan { asks: 12, commands: 8, resends: 8 };

/// A message to the device, with what was so when it was made.
#[derive(Clone, Hash)]
struct Sent {
    bytes: Vec<u8>,
    open: bool,
    /// The highest command that had ended.
    ended: u32,
    /// How often the device had asked.
    asked: usize,
}

struct World {
    plan: Plan,
    gateway: Gateway,
    device: Machine,
    now: Now,
    /// The device's clock moves only where it has to say something again.
    clock: u64,
    up: Vec<Vec<u8>>,
    down: Vec<Sent>,
    steps: usize,
    /// How often it has sent something that wants an answer.
    asked: usize,
    resent: usize,
    queued: u32,
    /// The command that is open.
    open: Option<u32>,
    /// The highest that had ended when the newest answer was made that told the device that nothing waits.
    void: u32,
    carried_out: Vec<u32>,
    /// The highest command that had ended when something was said to the device, after it asked and while none was open.
    reason: Option<u32>,
}

fn home() -> SocketAddr {
    "192.0.2.1:4000".parse().unwrap()
}

impl World {
    /// A device in a session.
    fn new(plan: Plan) -> Self {
        let now = Now { mono_us: 1_000_000_000, unix_ms: 1_800_000_000_000 };
        let mut world = Self {
            plan,
            gateway: Gateway::new(1),
            device: machine(1, &Flash::default(), 2),
            now,
            clock: 1_000_000,
            up: Vec::new(),
            down: Vec::new(),
            steps: 0,
            asked: 0,
            resent: 0,
            queued: 0,
            open: None,
            void: 0,
            carried_out: Vec::new(),
            reason: Some(0),
        };
        world.device.open(world.clock);
        world.device.send_reading(world.clock, 1, b"21.5", true).unwrap();
        world.deliver().unwrap();
        world
    }

    fn speak(&mut self) {
        let mut out = [0; MESSAGE_MAX];
        while let Some(len) = self.device.poll_transmit(self.clock, &mut out) {
            self.up.push(out[..len].to_vec());
        }
    }

    /// The gateway's turn; storage answers at once, and results are recorded at once.
    fn turn(&mut self) -> Result<(), Fault> {
        for _ in 0..2 {
            let sent = self.gateway.turn(self.now);
            while !self.gateway.flight.is_empty() {
                self.gateway.commit();
                self.gateway.answer(self.now);
            }
            while let Some(event) = self.gateway.shard.poll_event() {
                let record = match event {
                    Told::CommandResult { record, .. } => {
                        self.open = None;
                        record
                    }
                    Told::UnexpectedResult { record, .. } => Some(record),
                    _ => None,
                };
                let recorded = record.map(|record| Mail::Durable(vec![record]));
                recorded
                    .into_iter()
                    .for_each(|mail| self.gateway.shard.handle_mail(self.now, mail));
            }
            let (open, asked) = (self.open.is_some(), self.asked);
            let ended = self.queued - u32::from(open);
            let made = sent.into_iter().map(|(_, bytes)| Sent { bytes, open, ended, asked });
            self.down.extend(made);
        }
        Ok(())
    }

    fn hear(&mut self, mut sent: Sent) -> Result<(), Fault> {
        let sleepy = self.device.may_sleep(self.clock);
        if !sent.open && sent.asked == self.asked {
            self.reason = self.reason.max(Some(sent.ended));
        }
        let command = match self.device.handle_message(self.clock, &mut sent.bytes) {
            Ok(Event::Command { command, .. }) => Some(command),
            _ => None,
        };
        while self.device.poll_confirmed().is_some() {}
        if let Some(command) = command {
            if self.carried_out.contains(&command) {
                return Err(format!("once: {command} is carried out again"));
            }
            if command <= self.void {
                return Err(format!("late: {command} had ended"));
            }
            self.carried_out.push(command);
            self.device.send_result(command, 0, b"done");
        }
        if !sleepy && self.device.may_sleep(self.clock) {
            let Some(ended) = self.reason else {
                return Err("true: a command was open all the time since it asked".to_owned());
            };
            self.void = self.void.max(ended);
        }
        self.speak();
        Ok(())
    }

    /// Everything arrives, until there is nothing more.
    fn deliver(&mut self) -> Result<(), Fault> {
        self.speak();
        for _ in 0..12 {
            for message in std::mem::take(&mut self.up) {
                self.gateway.arrive(self.now, home(), &message);
            }
            self.turn()?;
            for message in std::mem::take(&mut self.down) {
                self.hear(message)?;
            }
            self.speak();
        }
        Ok(())
    }

    /// Says what there is to say; what wants an answer counts.
    fn ask(&mut self) {
        let before = self.up.len();
        self.speak();
        if self.up.len() > before {
            self.asked += 1;
            self.reason = None;
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now.mono_us += u64::try_from(time.as_micros()).unwrap();
        self.now.unix_ms += u64::try_from(time.as_millis()).unwrap();
    }
}

impl System for World {
    type Step = Step;

    fn steps(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        if self.steps < self.plan.asks {
            steps.extend([Step::Ask, Step::Read]);
        }
        if self.queued < self.plan.commands && self.open.is_none() {
            steps.push(Step::Queue);
        }
        if self.open.is_some() {
            steps.push(Step::Expire);
            steps.extend((self.resent < self.plan.resends).then_some(Step::Resend));
        }
        steps.extend((0..self.up.len()).map(Step::Up));
        steps.extend((0..self.down.len()).map(Step::Down));
        steps
    }

    fn take(&mut self, step: Step) -> Result<(), Fault> {
        match step {
            Step::Ask => {
                self.steps += 1;
                self.device.rest(self.clock);
                self.ask();
            }
            Step::Read => {
                self.steps += 1;
                // A full window is a device that waits for its acks.
                let _ = self.device.send_reading(self.clock, 1, b"21.5", true);
                self.ask();
            }
            Step::Up(which) => {
                let message = self.up.remove(which);
                self.gateway.arrive(self.now, home(), &message);
            }
            Step::Down(which) => {
                let message = self.down.remove(which);
                self.hear(message)?;
            }
            Step::Queue => {
                self.queued += 1;
                self.open = Some(self.queued);
                let command = Command {
                    token: u64::from(self.queued),
                    device: ID,
                    registration: 0,
                    number: self.queued,
                    payload: b"open".to_vec(),
                    timeout: WORTH,
                    patient: true,
                };
                self.gateway.shard.handle_mail(self.now, Mail::Command(command));
            }
            Step::Expire => self.pass(WORTH),
            Step::Resend => {
                self.resent += 1;
                self.pass(Duration::from_secs(1));
            }
        }
        self.turn()
    }

    fn name(&self) -> u64 {
        let mut out = DefaultHasher::new();
        self.gateway.hash(self.now, &mut out);
        (&self.up, &self.down, self.asked, self.resent, self.queued, self.open).hash(&mut out);
        (self.steps, self.void, &self.carried_out, self.reason).hash(&mut out);
        self.device.may_sleep(self.clock).hash(&mut out);
        out.finish()
    }

    fn end(mut self) -> Result<(), Fault> {
        let command = self.open;
        // What is under way is lost, so both sides say it again.
        self.up.clear();
        self.down.clear();
        self.clock += 60_000_000;
        // Unless two wait, and are said again.
        let _ = self.device.send_reading(self.clock, 1, b"21.5", true);
        self.deliver()?;
        // The device stays awake for longer than it takes until the command is said again.
        self.pass(Duration::from_secs(1));
        self.device.rest(self.clock);
        self.deliver()?;
        match command {
            Some(command) if !self.carried_out.contains(&command) => {
                Err(format!("met: {command} does not come to a device that asks"))
            }
            _ if !self.device.may_sleep(self.clock) => Err("met: it is not told".to_owned()),
            _ => Ok(()),
        }
    }
}

#[test]
fn nobody_sleeps_through_a_command_or_carries_one_out_twice() {
    let Outcome { states, depth, complete, fault } = search::explore(|| World::new(SHORT), 6_000);
    assert!(fault.is_none(), "{fault:?}");
    let walked = search::walk(|| World::new(LONG), 150, 80);
    let walked = walked.unwrap_or_else(|fault| panic!("{fault:?}"));
    println!("nothing waits: {states} states, depth {depth}, all: {complete}; walks of {walked}");
}

#[test]
fn a_command_that_went_out_still_waits() {
    let found = rules::without(Some(Rule::SentStillWaits), || {
        search::walk(|| World::new(LONG), 200, 80).err()
    });
    let (fault, path) = found.expect("found out");
    println!("nothing waits, without SentStillWaits: {fault} after {} steps", path.len());
}
