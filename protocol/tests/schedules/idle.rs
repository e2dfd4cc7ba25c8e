//! "Nothing waits" (R113 to R116, R78): three wakes, two commands, and a network that withholds, delays and reorders. No clock.
//!
//! *true*: a device that concludes it has it from an answer that was made after it sent what asked, while no
//! command was open; *late*: no command is carried out that had ended before the newest such answer was made;
//! *once*: no number is carried out twice.

use crate::search::{self, Fault, System};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mutant {
    /// The pong does not say which ping it answers.
    Unnamed,
    /// Commands below are not void.
    NotVoid,
    /// A device remembers the last number alone, by equality.
    LastOnly,
    /// The flag looks only at commands that were not sent yet.
    QueuedOnly,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Command {
    Queued,
    Sent,
    Done,
    Expired,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Down {
    Command(usize),
    /// To which record; whether it says the flag; whether it is true.
    Answer {
        to: usize,
        says: bool,
        holds: bool,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Up {
    Record(usize),
    Result(usize),
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct State {
    /// The newest record, which wants an answer; 0 before the first.
    asked: usize,
    awake: bool,
    down: Vec<(i8, Down)>,
    next_down: i8,
    /// The newest DOWN sequence, and the newest that voids what is below; -1 before the first.
    newest: i8,
    void: i8,
    commands: Vec<Command>,
    ran: Vec<usize>,
    up: Vec<Up>,
}

struct Idle(Option<Mutant>);

fn without<T: Clone>(items: &[T], i: usize) -> Vec<T> {
    [&items[..i], &items[i + 1..]].concat()
}

impl Idle {
    fn is(&self, mutant: Mutant) -> bool {
        self.0 == Some(mutant)
    }

    fn gateway(&self, s: &State, to: &mut Vec<(&'static str, State)>) {
        let waits = |command: &Command| matches!(command, Command::Queued | Command::Sent);
        if s.commands.len() < 2 && !s.commands.iter().any(waits) {
            let mut next = s.clone();
            next.commands.push(Command::Queued);
            to.push(("queue", next));
        }
        for n in (0..s.commands.len()).filter(|n| waits(&s.commands[*n])) {
            let mut next = s.clone();
            next.commands[n] = Command::Expired;
            to.push(("expire", next));
            if s.next_down < 5 {
                let mut next = s.clone();
                next.commands[n] = Command::Sent;
                next.down.push((s.next_down, Down::Command(n)));
                next.next_down += 1;
                to.push(("send", next));
            }
        }
        for (i, up) in s.up.iter().enumerate() {
            let mut next = s.clone();
            next.up = without(&s.up, i);
            match *up {
                Up::Record(record) if s.next_down < 5 => {
                    let holds = !s.commands.iter().any(waits);
                    let queued = s.commands.contains(&Command::Queued);
                    let says = if self.is(Mutant::QueuedOnly) { !queued } else { holds };
                    next.down.push((s.next_down, Down::Answer { to: record, says, holds }));
                    next.next_down += 1;
                    to.push(("answer", next));
                }
                Up::Record(_) => {}
                Up::Result(n) => {
                    if waits(&next.commands[n]) {
                        next.commands[n] = Command::Done;
                    }
                    to.push(("result", next));
                }
            }
        }
    }

    fn takes(&self, s: &State, i: usize) -> Result<(&'static str, State), Fault> {
        let (sequence, down) = s.down[i];
        let mut next = s.clone();
        next.down = without(&s.down, i);
        next.newest = s.newest.max(sequence);
        match down {
            Down::Command(n) => {
                if sequence <= s.void && !self.is(Mutant::NotVoid) {
                    return Ok(("void", next));
                }
                if s.ran.last() == Some(&n) {
                    if !s.up.contains(&Up::Result(n)) {
                        next.up.push(Up::Result(n));
                    }
                    return Ok(("result again", next));
                }
                if s.ran.last().is_some_and(|last| n < *last) && !self.is(Mutant::LastOnly) {
                    return Ok(("an old number", next));
                }
                if sequence < s.void {
                    return Err("late: a command is carried out that had ended".to_owned());
                }
                if s.ran.contains(&n) {
                    return Err("once: a command is carried out twice".to_owned());
                }
                next.ran.push(n);
                next.up.push(Up::Result(n));
                Ok(("carried out", next))
            }
            Down::Answer { to, says, holds } => {
                let named = to == s.asked || self.is(Mutant::Unnamed);
                if !(says && sequence > s.newest && named) {
                    return Ok(("answered", next));
                }
                if !holds {
                    return Err("true: a command was open".to_owned());
                }
                if to != s.asked {
                    return Err("true: it answers an older record".to_owned());
                }
                (next.void, next.awake) = (sequence, false);
                Ok(("nothing waits", next))
            }
        }
    }
}

impl System for Idle {
    type State = State;

    fn start(&self) -> State {
        State {
            asked: 0,
            awake: false,
            down: Vec::new(),
            next_down: 0,
            newest: -1,
            void: -1,
            commands: Vec::new(),
            ran: Vec::new(),
            up: Vec::new(),
        }
    }

    fn steps(&self, s: &State, to: &mut Vec<(&'static str, State)>) -> Result<(), Fault> {
        if s.awake {
            to.push(("sleep", State { awake: false, ..s.clone() }));
            for i in 0..s.down.len() {
                to.push(self.takes(s, i)?);
            }
        } else if s.asked < 3 {
            let mut next = State { asked: s.asked + 1, awake: true, ..s.clone() };
            next.up.push(Up::Record(next.asked));
            to.push(("wake", next));
        }
        self.gateway(s, to);
        Ok(())
    }

    fn check(&self, _: &State) -> Result<(), Fault> {
        Ok(())
    }
}

#[test]
fn nothing_waits_is_true_and_no_command_runs_late_or_twice() {
    let outcome = search::explore(&Idle(None), 2_000_000);
    assert!(outcome.fault.is_none() && outcome.complete, "{:?}", outcome.fault);
    println!("nothing waits: all schedules, {} states", outcome.states);
}

#[test]
fn each_rule_of_nothing_waits_is_needed() {
    for (mutant, expected) in [
        (Mutant::Unnamed, "true"),
        (Mutant::NotVoid, "late"),
        (Mutant::LastOnly, "once"),
        (Mutant::QueuedOnly, "true"),
    ] {
        let outcome = search::explore(&Idle(Some(mutant)), 1_000_000);
        let found = outcome.fault.as_ref().is_some_and(|(fault, _)| fault.starts_with(expected));
        assert!(found, "{mutant:?}: {:?}", outcome.fault);
    }
}
