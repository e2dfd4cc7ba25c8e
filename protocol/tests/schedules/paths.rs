//! The proof of a path (R71, R109 to R112), byte for byte.
//!
//! *Safe*: a malicious device whose helpers receive at one address, and did at another in the first epoch; a victim at a
//! third. They make records, repeat them from any of the three, and answer with every challenge that they
//! saw. No address that answered no challenge of this or the last epoch ever gets more bytes than
//! authentic records brought from there.
//! *Live*: an honest device; the gateway's state is whatever an attacker left; he wins or loses the race with a copy
//! of each record and relays what reaches him; he cannot drop. A command of 1,050 bytes reaches the device within
//! two round trips after its next record (three where a short reading was raced and is durable already).

use std::collections::BTreeSet;

use crate::search::{self, Fault, System};

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
enum Address {
    /// Where the attacker receives.
    Mine,
    Victim,
    /// Where he received in the first epoch.
    Old,
    Device,
}
use Address::{Device, Mine, Old, Victim};

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Text {
    Ping,
    /// The shortest reading with *confirm*.
    Tiny,
    Reading,
    /// *Here*, with the challenge of an address in an epoch, or with a guess.
    Here(Option<(Address, u8)>),
    Result,
}

impl Text {
    fn len(self) -> i32 {
        match self {
            Self::Ping => 26,
            Self::Tiny => 28,
            Self::Reading => 92,
            Self::Here(_) | Self::Result => 30,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Down {
    Prove,
    Ack,
    Pong,
    Command,
    /// A short command.
    Small,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mutant {
    /// The challenge is not bound to the address.
    AnyAddress,
    /// It never ages.
    NoEpoch,
    /// The proof survives a move of the path.
    KeepsProof,
    /// Repetitions are answered without a budget.
    Free,
    /// The challenge comes from keys that the device has.
    DeviceKnows,
    /// A challenge of 8 bytes: *prove* is longer than a ping, and sent all the same.
    Longer,
    /// The same, sent only where it fits.
    LongerWaits,
    /// A repetition is answered where the session is, not where it came from.
    OldPath,
    /// A repeated *here* proves nothing.
    NewOnly,
    /// The ack spends the path's bytes before *prove*.
    AckFirst,
    /// *Prove* before the ack for repetitions too.
    ProveFirst,
    /// A result of a command that was sent there alone proves; its number is guessed.
    Result,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct State {
    path: Address,
    /// Bytes that the path may still get; nothing where it is proved.
    credit: Option<i32>,
    newest: Option<usize>,
    taken: BTreeSet<usize>,
    made: Vec<Text>,
    /// The challenges that the attacker saw.
    known: BTreeSet<(Address, u8)>,
    epoch: u8,
    /// What came from each address, less what went there.
    balance: [i32; 3],
    proved: BTreeSet<Address>,
    repeats: usize,
    small: BTreeSet<Address>,
    /// An address was proved by a challenge of two epochs ago.
    stale: bool,
}

fn left(path: Address, credit: Option<i32>) -> State {
    State {
        path,
        credit,
        newest: None,
        taken: BTreeSet::new(),
        made: Vec::new(),
        known: BTreeSet::new(),
        epoch: 0,
        balance: [0; 3],
        proved: BTreeSet::new(),
        repeats: 0,
        small: BTreeSet::new(),
        stale: false,
    }
}

/// Record `i`, which is its sequence, arrives from there: what is sent to whom.
fn arrives(
    state: &mut State,
    i: usize,
    source: Address,
    mutant: Option<Mutant>,
    durable: bool,
) -> Vec<(Down, i32, Address)> {
    let is = |m| mutant == Some(m);
    let text = state.made[i];
    let again = state.taken.contains(&i);
    let newest = state.newest.is_none_or(|newest| i > newest);
    let proves = match text {
        Text::Here(Some((address, epoch))) => {
            (address == source || is(Mutant::AnyAddress))
                && (state.epoch - epoch <= 1 || is(Mutant::NoEpoch))
        }
        _ => false,
    };
    if newest {
        // R70: the newest record moves the path, and a move ends the proof.
        if state.path != source {
            state.path = source;
            let kept = is(Mutant::KeepsProof) && state.credit.is_none();
            state.credit = if kept { None } else { Some(0) };
        }
        state.credit = state.credit.map(|credit| credit + text.len());
    }
    let prove = |state: &mut State| {
        state.credit = None;
        state.stale |= !state.proved.contains(&source) && source == Old && state.epoch == 2;
        state.proved.insert(source);
    };
    if proves && (newest || (state.newest == Some(i) && !is(Mutant::NewOnly))) {
        // R110: the newest record, or a copy of it.
        state.path = source;
        prove(state);
    }
    if is(Mutant::Result)
        && text == Text::Result
        && newest
        && state.small == BTreeSet::from([source])
    {
        prove(state);
    }
    // R111: a record that comes again is answered from its own bytes.
    let proved = state.path == source && state.credit.is_none();
    let mut own = !newest && !proved;
    let mut to = source;
    if is(Mutant::OldPath) && !newest {
        (to, own) = (state.path, false);
    }
    let free = again && is(Mutant::Free);
    let mut budget =
        if own { Some(if free { 1_000_000 } else { text.len() }) } else { state.credit };
    let long = is(Mutant::Longer) || is(Mutant::LongerWaits);
    let proof = (Down::Prove, if long { 30 } else { 26 });
    let answer = match text {
        Text::Tiny | Text::Reading => (!again || durable).then_some((Down::Ack, 28)),
        Text::Ping => (!again).then_some((Down::Pong, 22)),
        Text::Here(_) | Text::Result => None,
    };
    let mut wanted: Vec<(Down, i32)> = Vec::new();
    if is(Mutant::Result) && budget.is_some() {
        wanted.push((Down::Small, 26));
    }
    let ack_first = is(Mutant::AckFirst) || (own && !is(Mutant::ProveFirst));
    match (budget.is_some(), answer) {
        (true, _) if ack_first => wanted.extend(answer.into_iter().chain([proof])),
        (true, _) => wanted.extend([proof].into_iter().chain(answer)),
        (false, Some(answer)) => wanted.extend([answer, (Down::Command, 1_050)]),
        (false, None) => wanted.push((Down::Command, 1_050)),
    }
    let mut sent = Vec::new();
    for (down, len) in wanted {
        let forced = is(Mutant::Longer) && down == Down::Prove;
        if budget.is_none_or(|budget| len <= budget) || forced {
            sent.push((down, len, to));
            budget = budget.map(|budget| budget - len);
        }
    }
    if !own {
        state.credit = budget;
    }
    let mut account = |address: Address, bytes: i32| {
        if let Some(balance) = state.balance.get_mut(address as usize) {
            *balance += bytes;
        }
    };
    account(source, text.len());
    sent.iter().for_each(|(_, len, to)| account(*to, -len));
    if sent.iter().any(|(down, ..)| *down == Down::Small) {
        state.small.insert(to);
    }
    state.newest = Some(state.newest.map_or(i, |newest| newest.max(i)));
    state.taken.insert(i);
    sent
}

/// A malicious device and its helpers.
struct Safe(Option<Mutant>);

impl System for Safe {
    type State = State;

    fn start(&self) -> State {
        let mut state = left(Mine, Some(0));
        if self.0 == Some(Mutant::DeviceKnows) {
            state.known.extend([(Mine, 0), (Victim, 0)]);
        }
        state
    }

    fn steps(&self, state: &State, to: &mut Vec<(&'static str, State)>) -> Result<(), Fault> {
        let mut arrive = |what, mut next: State, i, source| {
            for (down, _, to) in arrives(&mut next, i, source, self.0, true) {
                let seen = to == Mine || (to == Old && next.epoch == 0);
                if down == Down::Prove && seen {
                    next.known.insert((to, next.epoch));
                }
            }
            to.push((what, next));
        };
        if state.made.len() < 3 {
            let mut texts = vec![Text::Ping, Text::Tiny, Text::Reading, Text::Here(None)];
            if self.0 == Some(Mutant::Result) {
                texts.push(Text::Result);
            }
            texts.extend(state.known.iter().map(|known| Text::Here(Some(*known))));
            for text in texts {
                for source in [Mine, Victim, Old] {
                    let mut next = state.clone();
                    next.made.push(text);
                    arrive("record", next, state.made.len(), source);
                }
            }
        }
        if state.repeats < 2 {
            for i in 0..state.made.len() {
                for source in [Mine, Victim, Old] {
                    let mut next = state.clone();
                    next.repeats += 1;
                    arrive("repeated", next, i, source);
                }
            }
        }
        if state.epoch < 2 {
            let mut next = state.clone();
            next.epoch += 1;
            to.push(("epoch", next));
        }
        Ok(())
    }

    fn check(&self, state: &State) -> Result<(), Fault> {
        for address in [Mine, Victim, Old] {
            if state.balance[address as usize] < 0 && !state.proved.contains(&address) {
                return Err(format!("amplified to {address:?}"));
            }
        }
        if state.proved.contains(&Victim) || state.stale {
            return Err("what is not proved counts as proved".to_owned());
        }
        Ok(())
    }
}

/// All that an attacker can do who only races and relays; how many runs there were.
fn live(mutant: Option<Mutant>, races: &[Option<Address>]) -> Result<usize, Fault> {
    let credits = [Some(0), Some(25), Some(26), Some(40), Some(5_000), None];
    let firsts = [
        (Text::Ping, false),
        (Text::Tiny, false),
        (Text::Tiny, true),
        (Text::Reading, false),
        (Text::Reading, true),
    ];
    let mut runs = 0;
    for path in [Device, Mine, Victim] {
        for credit in credits {
            for (first, durable) in firsts {
                for plan in 0..races.len().pow(3) {
                    for relay in [Relay::Never, Relay::First, Relay::Last] {
                        runs += 1;
                        let attack = Attack { races, plan, relay };
                        race(left(path, credit), first, durable, mutant, &attack)?;
                    }
                }
            }
        }
    }
    Ok(runs)
}

/// Whether what reached the attacker gets to the device, before or after what reached the device itself.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Relay {
    Never,
    First,
    Last,
}

struct Attack<'a> {
    races: &'a [Option<Address>],
    plan: usize,
    relay: Relay,
}

fn race(
    mut state: State,
    first: Text,
    durable: bool,
    mutant: Option<Mutant>,
    attack: &Attack<'_>,
) -> Result<(), Fault> {
    state.made.push(Text::Reading);
    state.taken.insert(0);
    state.newest = Some(0);
    let mut plan = attack.plan;
    let (mut up, mut commanded, mut acked, mut trips) = (vec![first], false, false, 0);
    while !commanded && trips < 3 {
        trips += 1;
        let (mut direct, mut relayed) = (Vec::new(), Vec::new());
        for text in up.iter().take(3) {
            state.made.push(*text);
            let i = state.made.len() - 1;
            let raced = attack.races[plan % attack.races.len()];
            plan /= attack.races.len();
            for source in raced.into_iter().chain([Device]) {
                for (down, _, to) in arrives(&mut state, i, source, mutant, durable) {
                    commanded |= to == Device && down == Down::Command;
                    acked |= to == Device && down == Down::Ack;
                    if down == Down::Prove && to == Device {
                        direct.push(Text::Here(Some((Device, 0))));
                    }
                    if down == Down::Prove && to == Mine && attack.relay != Relay::Never {
                        relayed.push(Text::Here(Some((Mine, 0))));
                    }
                }
            }
        }
        up = if attack.relay == Relay::First {
            relayed.into_iter().chain(direct).collect()
        } else {
            direct.into_iter().chain(relayed).collect()
        };
        if up.is_empty() {
            // Nothing said that nothing waits: it asks (R114).
            up.push(Text::Ping);
        }
    }
    let confirms = first != Text::Ping;
    if confirms && !acked {
        // The same bytes again (R85).
        let sent = arrives(&mut state, 1, Device, mutant, true);
        acked |= sent.iter().any(|(down, _, to)| (*down, *to) == (Down::Ack, Device));
    }
    let raced_short = first == Text::Tiny && durable && attack.races.len() > 1;
    let most = if raced_short { 3 } else { 2 };
    if !commanded || trips > most {
        return Err("a command does not arrive in time".to_owned());
    }
    if confirms && !acked {
        return Err("an ack does not arrive".to_owned());
    }
    Ok(())
}

const RACES: [Option<Address>; 3] = [None, Some(Victim), Some(Mine)];

#[test]
fn no_address_gets_more_than_it_brought_and_no_command_is_kept_back() {
    let outcome = search::explore(&Safe(None), 2_000_000);
    assert!(outcome.fault.is_none() && outcome.complete, "{:?}", outcome.fault);
    let raced = live(None, &RACES).unwrap();
    let alone = live(None, &[None]).unwrap();
    println!("paths: all schedules, {} states; {raced} races, {alone} without", outcome.states);
}

#[test]
fn each_rule_of_paths_is_needed() {
    use Mutant as M;
    for (mutant, unsafe_, stuck) in [
        (M::AnyAddress, true, false),
        (M::NoEpoch, true, false),
        (M::KeepsProof, true, false),
        (M::Free, true, false),
        (M::DeviceKnows, true, false),
        (M::Longer, true, false),
        (M::LongerWaits, false, true),
        (M::OldPath, false, true),
        (M::NewOnly, false, true),
        (M::AckFirst, false, true),
        (M::ProveFirst, false, true),
        (M::Result, true, true),
    ] {
        if unsafe_ {
            let outcome = search::explore(&Safe(Some(mutant)), 1_000_000);
            assert!(outcome.fault.is_some(), "{mutant:?} is found out after {}", outcome.states);
        }
        assert_eq!(live(Some(mutant), &RACES).is_err(), stuck, "{mutant:?}");
    }
}
