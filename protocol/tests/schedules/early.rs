//! Early readings on one gateway (R94 to R104): loss, delay, reordering and replay of HELLOs, ACCEPTs, CHALLENGEs and
//! records; a store that is full or slow; the gateway killed and restarted between any two steps; its disk lost; the
//! device's power cut. The attacker holds every HELLO that was ever made.
//!
//! What a counter allows is asked of the crate's own [`Mark`]. Checked in every state:
//! *once*: no HELLO is stored twice, and counters rise from one stored HELLO to the next;
//! *reading*: no reading and no id is stored twice (devices that keep their counter);
//! *true*: who was told that his reading is durable, has it durable;
//! *free*: over a network that delivers, a device gets its reading confirmed, whatever is pending and
//! whatever is played back meanwhile.

use std::collections::BTreeSet;

use duet_protocol::mark::Mark;

use crate::search::{self, Fault, Outcome, System};

/// The number of a HELLO of its device: also the name of the reading that it first carried.
type Number = usize;
/// A session: the HELLO that opened it, and a name of its own.
type Session = (Number, usize);
/// The name that all sessions share which nobody can use any more.
const FORGOTTEN: usize = usize::MAX;

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Hello {
    fresh: u64,
    reading: usize,
    /// The HELLO that first carried the reading (R96).
    id: Number,
    challenge: Option<Number>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Device {
    counter: u64,
    /// The reading in hand.
    reading: usize,
    /// Its id, once it was sent.
    first: Option<Number>,
    waits: Option<Number>,
    session: Option<Session>,
    hellos: Vec<Hello>,
    cuts: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum From {
    Hello,
    Record(usize),
}

/// A reading on its way into the store.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Flight {
    from: From,
    hello: Number,
    on_disk: bool,
    /// Whether a HELLO still waits for it.
    awaited: bool,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Gateway {
    mark: Mark,
    last: Option<Number>,
    flight: Option<Flight>,
    pending: Option<Session>,
    /// What the pending session's ACCEPT says.
    stored: bool,
    live: Option<Session>,
    /// Whether the live session's reading is durable.
    took: bool,
    /// The open challenge: the HELLO for which it was made.
    challenge: Option<Number>,
}

/// What the attacker holds besides the HELLOs, as far as anybody can use it.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
struct Network {
    accepts: BTreeSet<(Number, bool, usize)>,
    challenges: BTreeSet<(Number, Mark, Number)>,
    records: BTreeSet<Session>,
    acks: BTreeSet<(usize, usize)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Stored {
    device: usize,
    early: bool,
    hello: Number,
    mark: Mark,
    id: Number,
    reading: usize,
}

#[derive(Clone, Hash)]
struct State {
    devices: Vec<Device>,
    gateways: Vec<Gateway>,
    networks: Vec<Network>,
    spool: Vec<Stored>,
    /// What the registry on disk says: marks and *last*, and how far it has read the spool.
    saved: Vec<(Mark, Option<Number>)>,
    cursor: usize,
    crashes: usize,
    wipes: usize,
}

/// What is left out of the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mutant {
    /// A stored early reading does not move the mark.
    MarkUnmoved,
    /// Marks and *last* are not rebuilt from the store at start.
    NotRebuilt,
    /// Marks are, *last* is not.
    LastNotRebuilt,
    /// The place in the store is saved before the marks.
    Torn,
    /// *Stored* is said before the reading is durable.
    Eager,
    /// *Stored* is said where the counter is the mark, not where the id is *last*.
    ByCounter,
    /// Sent again under a new id.
    NewId,
    /// The flight of another reading is not seen.
    FlightUnseen,
    /// Taken again in a session older than the mark.
    OlderSession,
    /// Behind a challenge stored whatever the counter is.
    ChallengeSuffices,
    /// Stored at any counter once the HELLO passed.
    AnyCounter,
    /// Stored at mark 0 without a challenge.
    FirstContact,
    /// A credential that was brought back gets the mark of one that was made.
    BroughtBackAsMade,
    /// What cannot be granted is met with silence.
    Silence,
    /// A greater counter replaces a session that answered a challenge.
    ReplacesAnswered,
}

#[derive(Clone, Copy)]
struct Explored {
    devices: usize,
    readings: usize,
    hellos: usize,
    cuts: usize,
    crashes: usize,
    wipes: usize,
    /// Whether devices keep their counter over a power cut.
    keeps: bool,
    counter: u64,
    mark: Mark,
    /// In how many HELLOs a device gets in, over a network that delivers.
    within: usize,
    mutant: Option<Mutant>,
}

/// A device whose credential the registration made (R123), or that the gateway has met.
const KNOWN: Explored = Explored {
    devices: 1,
    readings: 2,
    hellos: 2,
    cuts: 0,
    crashes: 2,
    wipes: 0,
    keeps: true,
    counter: 1,
    mark: Mark::MADE,
    within: 2,
    mutant: None,
};
const AGAIN: Explored = Explored { readings: 1, hellos: 3, crashes: 1, ..KNOWN };
const COUPLE: Explored = Explored { devices: 2, readings: 1, hellos: 1, crashes: 0, ..KNOWN };
const CALM: Explored = Explored { hellos: 3, crashes: 0, ..KNOWN };
const NEW: Explored = Explored { crashes: 1, counter: 0, mark: Mark::UNKNOWN, ..KNOWN };
const WIPE: Explored = Explored { crashes: 0, wipes: 1, ..KNOWN };
const LONG: Explored = Explored { hellos: 4, ..KNOWN };
/// A device that forgets its counter, and starts again at 1, while its old HELLOs have far greater ones. One that
/// was never delivered may be played back between its own: it is stored, the mark rises, and the device
/// needs a second challenge.
const FORGETS: Explored = Explored {
    readings: 3,
    hellos: 4,
    cuts: 1,
    crashes: 1,
    keeps: false,
    counter: 20,
    within: 4,
    ..KNOWN
};
/// The same where the gateway has not met the device: its first HELLO passes, and loses its place to one that is
/// played back.
const FORGETS_NEW: Explored = Explored { mark: Mark::UNKNOWN, crashes: 0, ..FORGETS };

impl Explored {
    fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    // ---- what anybody can still use

    fn tidy(&self, state: &mut State, i: usize) {
        let (device, gateway) = (&state.devices[i], &state.gateways[i]);
        let mut alive: Vec<usize> = [gateway.pending, gateway.live, device.session]
            .into_iter()
            .flatten()
            .map(|(_, name)| name)
            .collect();
        if let Some(Flight { from: From::Record(name), .. }) = gateway.flight {
            alive.push(name);
        }
        let network = &mut state.networks[i];
        network.accepts = network
            .accepts
            .iter()
            .filter(|accept| Some(accept.0) == device.waits)
            .map(|&(hello, stored, name)| {
                (hello, stored, if alive.contains(&name) { name } else { FORGOTTEN })
            })
            .collect();
        network.challenges.retain(|challenge| Some(challenge.0) == device.waits);
        let sessions = [gateway.pending, gateway.live];
        network.records.retain(|record| sessions.contains(&Some(*record)));
        let session = device.session;
        network.acks.retain(|ack| session.is_some_and(|(_, name)| *ack == (name, device.reading)));
    }

    // ---- the device

    fn confirmed(&self, state: &mut State, i: usize) -> Result<(), Fault> {
        let reading = state.devices[i].reading;
        if !state.spool.iter().any(|s| s.device == i && s.reading == reading) {
            return Err("true: told that it is durable, and it is not".to_owned());
        }
        let device = &mut state.devices[i];
        device.reading += 1;
        (device.first, device.waits, device.session) = (None, None, None);
        self.tidy(state, i);
        Ok(())
    }

    /// A new HELLO, which answers a challenge or nothing.
    fn make(&self, state: &mut State, i: usize, answers: Option<(Mark, Number)>) {
        let device = &mut state.devices[i];
        let number = device.hellos.len();
        let mark = answers.map_or(0, |(mark, _)| mark.get());
        device.counter = device.counter.max(mark) + 1;
        let first = *device.first.get_or_insert(number);
        let id = if self.is(Mutant::NewId) { number } else { first };
        let challenge = answers.map(|(_, challenge)| challenge);
        let hello = Hello { fresh: device.counter, reading: device.reading, id, challenge };
        device.hellos.push(hello);
        (device.waits, device.session) = (Some(number), None);
        self.tidy(state, i);
    }

    // ---- the gateway

    fn accept(&self, state: &mut State, i: usize, number: Number, stored: bool) {
        let gateway = &state.gateways[i];
        let network = &state.networks[i];
        let mut used: Vec<usize> = network.accepts.iter().map(|accept| accept.2).collect();
        let sessions = [gateway.pending, gateway.live, state.devices[i].session];
        used.extend(sessions.into_iter().flatten().map(|(_, name)| name));
        if let Some(Flight { from: From::Record(name), .. }) = gateway.flight {
            used.push(name);
        }
        if gateway.pending.is_some_and(|(hello, _)| hello == number) {
            return;
        }
        if self.in_the_way(state, i, number) {
            return;
        }
        let name = (0..).find(|name| !used.contains(name)).unwrap();
        let gateway = &mut state.gateways[i];
        (gateway.pending, gateway.stored) = (Some((number, name)), stored);
        state.networks[i].accepts.insert((number, stored, name));
        self.tidy(state, i);
    }

    /// Whether a pending session stands in the way of this HELLO (R46).
    fn in_the_way(&self, state: &State, i: usize, number: Number) -> bool {
        let (gateway, hellos) = (&state.gateways[i], &state.devices[i].hellos);
        let hello = hellos[number];
        let Some((pending, _)) = gateway.pending else { return false };
        let answers = |hello: Hello| hello.challenge.is_some();
        if answers(hello) && hello.challenge == gateway.challenge {
            return false;
        }
        let protected = answers(hellos[pending]) && !self.is(Mutant::ReplacesAnswered);
        protected || hellos[pending].fresh >= hello.fresh
    }

    fn challenge(&self, state: &State, i: usize, number: Number) -> Vec<State> {
        let mut state = state.clone();
        let gateway = &mut state.gateways[i];
        let challenge = *gateway.challenge.get_or_insert(number);
        let mark = gateway.mark;
        state.networks[i].challenges.insert((number, mark, challenge));
        self.tidy(&mut state, i);
        vec![state]
    }

    /// What may come of a HELLO that arrives; nothing is silence.
    fn hello(&self, state: &State, i: usize, number: Number) -> Vec<State> {
        let gateway = &state.gateways[i];
        let hello = state.devices[i].hellos[number];
        let (mark, challenged) = (gateway.mark, hello.challenge.is_some());
        if let Some((pending, name)) = gateway.pending
            && pending == number
        {
            let mut state = state.clone();
            state.networks[i].accepts.insert((number, gateway.stored, name));
            self.tidy(&mut state, i);
            return vec![state];
        }
        let flight = gateway.flight.filter(|_| !self.is(Mutant::FlightUnseen));
        if flight.is_some_and(|f| f.from == From::Hello && f.hello == number && f.awaited) {
            // It is answered with that commit: nothing more happens, and that is not silence.
            return vec![state.clone()];
        }
        let same_counter =
            self.is(Mutant::ByCounter) && hello.fresh == mark.get() && gateway.last.is_some();
        let silent = self.is(Mutant::Silence);
        if challenged {
            if hello.challenge != gateway.challenge {
                return if silent { vec![] } else { self.challenge(state, i, number) };
            }
        } else if !mark.passes(hello.fresh) && !same_counter {
            return self.challenge(state, i, number);
        }
        if self.in_the_way(state, i, number) {
            return if silent { vec![] } else { self.challenge(state, i, number) };
        }
        let accepted = |stored| {
            let mut state = state.clone();
            self.accept(&mut state, i, number, stored);
            state
        };
        if gateway.last == Some(hello.id) || same_counter {
            return vec![accepted(true)];
        }
        let without = accepted(false);
        if let Some(flight) = flight {
            // R98: it waits for the flight of its own reading, or is told nothing.
            let own = state.devices[i].hellos[flight.hello].id == hello.id;
            return if own { vec![without, state.clone()] } else { vec![without] };
        }
        let takes = match self.mutant {
            Some(Mutant::AnyCounter) => mark.is_known() || challenged,
            Some(Mutant::ChallengeSuffices) => challenged || mark.takes_reading(hello.fresh, false),
            Some(Mutant::FirstContact) => mark.passes(hello.fresh),
            _ => mark.takes_reading(hello.fresh, challenged),
        };
        if !takes {
            return vec![without];
        }
        let mut taken = state.clone();
        if gateway.flight.is_some_and(|flight| flight.hello == number) {
            // The mutant writes it a second time.
            let stored = self.stored(state, i, From::Hello, number);
            taken.spool.push(stored);
            return vec![taken];
        }
        let flight = Flight { from: From::Hello, hello: number, on_disk: false, awaited: true };
        taken.gateways[i].flight = Some(flight);
        if self.is(Mutant::Eager) {
            self.accept(&mut taken, i, number, true);
        }
        // The store is full, or is not.
        vec![without, taken]
    }

    fn stored(&self, state: &State, i: usize, from: From, number: Number) -> Stored {
        let hello = state.devices[i].hellos[number];
        let early = from == From::Hello;
        let mark = if early { Mark::new(hello.fresh) } else { state.gateways[i].mark };
        Stored { device: i, early, hello: number, mark, id: hello.id, reading: hello.reading }
    }

    /// What may become of the flight: it reaches the disk, is refused, is answered, or takes too long.
    fn settle(&self, state: &State, i: usize, flight: Flight) -> Vec<State> {
        let hello = state.devices[i].hellos[flight.hello];
        let mut out = Vec::new();
        if flight.on_disk {
            let mut done = state.clone();
            let gateway = &mut done.gateways[i];
            gateway.flight = None;
            if !self.is(Mutant::MarkUnmoved) {
                gateway.mark = gateway.mark.raised(hello.fresh);
                gateway.last = Some(hello.id);
            }
            match flight.from {
                From::Hello if flight.awaited => self.accept(&mut done, i, flight.hello, true),
                From::Hello => {}
                From::Record(name) => {
                    gateway.took = gateway.live == Some((flight.hello, name));
                    done.networks[i].acks.insert((name, hello.reading));
                }
            }
            self.tidy(&mut done, i);
            out.push(done);
        } else {
            let mut written = state.clone();
            written.spool.push(self.stored(state, i, flight.from, flight.hello));
            written.gateways[i].flight = Some(Flight { on_disk: true, ..flight });
            out.push(written);
            let mut refused = state.clone();
            refused.gateways[i].flight = None;
            if flight.from == From::Hello && flight.awaited {
                self.accept(&mut refused, i, flight.hello, false);
            }
            self.tidy(&mut refused, i);
            out.push(refused);
        }
        if flight.from == From::Hello && flight.awaited {
            // R99: half a second is over.
            let mut late = state.clone();
            late.gateways[i].flight = Some(Flight { awaited: false, ..flight });
            self.accept(&mut late, i, flight.hello, false);
            out.push(late);
        }
        out
    }

    /// What may come of the reading said again in a session (R100).
    fn record(&self, state: &State, i: usize, session: Session) -> Vec<State> {
        let mut state = state.clone();
        let hello = state.devices[i].hellos[session.0];
        let gateway = &mut state.gateways[i];
        if gateway.pending == Some(session) {
            (gateway.pending, gateway.live) = (None, Some(session));
            (gateway.took, gateway.challenge) = (false, None);
            gateway.mark = gateway.mark.raised(hello.fresh);
        } else if gateway.live != Some(session) {
            return vec![];
        }
        let known = gateway.took || gateway.last == Some(hello.id);
        if known {
            gateway.took = true;
            state.networks[i].acks.insert((session.1, hello.reading));
        }
        let older = hello.fresh < gateway.mark.get() && !self.is(Mutant::OlderSession);
        let taken = !known && gateway.flight.is_none() && !older;
        self.tidy(&mut state, i);
        if !taken {
            return vec![state];
        }
        let from = From::Record(session.1);
        let mut flies = state.clone();
        flies.gateways[i].flight =
            Some(Flight { from, hello: session.0, on_disk: false, awaited: false });
        vec![state, flies]
    }

    fn restarted(mark: Mark, last: Option<Number>) -> Gateway {
        Gateway {
            mark,
            last,
            flight: None,
            pending: None,
            stored: false,
            live: None,
            took: false,
            challenge: None,
        }
    }

    fn crash(&self, state: &State) -> State {
        let mut state = state.clone();
        state.crashes += 1;
        for i in 0..self.devices {
            let (mut mark, mut last) = state.saved[i];
            let rest = state.spool[state.cursor..].iter().filter(|stored| stored.device == i);
            for stored in rest.filter(|_| !self.is(Mutant::NotRebuilt)) {
                mark = mark.rebuilt(stored.mark.get());
                if !self.is(Mutant::LastNotRebuilt) {
                    last = Some(stored.id);
                }
            }
            state.gateways[i] = Self::restarted(mark, last);
            self.tidy(&mut state, i);
        }
        state
    }

    /// The node's disk is lost, and its devices registered anew.
    fn wipe(&self, state: &State) -> State {
        let mut state = state.clone();
        state.wipes += 1;
        state.cursor = state.spool.len();
        let as_made = self.is(Mutant::BroughtBackAsMade);
        let mark = if as_made { Mark::MADE } else { Mark::UNKNOWN };
        for i in 0..self.devices {
            state.saved[i] = (mark, None);
            state.gateways[i] = Self::restarted(mark, None);
            self.tidy(&mut state, i);
        }
        state
    }

    // ---- no lock-out

    fn deliver(&self, state: &State, i: usize, number: Number) -> Result<State, Fault> {
        let outcomes = self.hello(state, i, number);
        let answered = outcomes.into_iter().next_back();
        let mut state = answered.ok_or("free: a proved HELLO is met with silence")?;
        self.commit(&mut state, i);
        Ok(state)
    }

    /// The store answers whatever is on its way.
    fn commit(&self, state: &mut State, i: usize) {
        while let Some(flight) = state.gateways[i].flight {
            *state = self.settle(state, i, flight).swap_remove(0);
        }
    }

    /// Plays back everything that is not the HELLO in hand.
    fn replay(&self, state: State, i: usize, but: Number) -> Result<State, Fault> {
        let mut state = state;
        for number in (0..but).rev() {
            state = self.deliver(&state, i, number)?;
        }
        Ok(state)
    }

    /// A network that delivers; between any two messages of the device all its old HELLOs are played back.
    fn gets_in(&self, state: &State, i: usize) -> Result<(), Fault> {
        let mut state = state.clone();
        let wanted = state.devices[i].reading;
        if wanted > self.readings {
            return Ok(());
        }
        self.commit(&mut state, i);
        let mut answers = None;
        for _ in 0..self.within {
            self.make(&mut state, i, answers.take());
            let number = state.devices[i].hellos.len() - 1;
            state = self.deliver(&state, i, number)?;
            let challenged = state.networks[i].challenges.iter().next_back().copied();
            let accepted = state.networks[i].accepts.iter().next_back().copied();
            let Some((_, stored, name)) = accepted.filter(|accept| accept.0 == number) else {
                let (_, mark, challenge) = challenged.ok_or("free: no answer")?;
                answers = Some((mark, challenge));
                state = self.replay(state, i, number)?;
                continue;
            };
            if stored {
                return self.confirmed(&mut state, i);
            }
            state.devices[i].waits = None;
            state.devices[i].session = Some((number, name));
            state = self.replay(state, i, number)?;
            let Some(next) = self.record(&state, i, (number, name)).into_iter().next_back() else {
                // RESET: it lost its place to somebody's replay, and shakes hands again. Not so where it
                // answered a challenge.
                if state.devices[i].hellos[number].challenge.is_some() {
                    return Err("free: a session that answered a challenge is lost".to_owned());
                }
                continue;
            };
            state = next;
            self.commit(&mut state, i);
            if state.networks[i].acks.contains(&(name, wanted)) {
                return self.confirmed(&mut state, i);
            }
        }
        Err("free: the reading is not confirmed".to_owned())
    }

    fn device_steps(
        &self,
        state: &State,
        i: usize,
        to: &mut Vec<(&'static str, State)>,
    ) -> Result<(), Fault> {
        let device = &state.devices[i];
        let network = &state.networks[i];
        let more = device.hellos.len() < self.hellos;
        if device.reading > self.readings {
            return Ok(());
        }
        if more {
            let mut next = state.clone();
            self.make(&mut next, i, None);
            to.push(("make", next));
        }
        for &(number, stored, name) in &network.accepts {
            let mut next = state.clone();
            if stored {
                self.confirmed(&mut next, i)?;
                to.push(("stored", next));
            } else if device.session.is_none() {
                (next.devices[i].session, next.devices[i].waits) = (Some((number, name)), None);
                next.networks[i].records.insert((number, name));
                self.tidy(&mut next, i);
                to.push(("again", next));
            }
        }
        for &(number, mark, challenge) in &network.challenges {
            if more && device.waits == Some(number) {
                let mut next = state.clone();
                self.make(&mut next, i, Some((mark, challenge)));
                to.push(("answer", next));
            }
        }
        if device.session.is_some_and(|(_, name)| network.acks.contains(&(name, device.reading))) {
            let mut next = state.clone();
            self.confirmed(&mut next, i)?;
            to.push(("acked", next));
        }
        if device.cuts < self.cuts {
            let mut next = state.clone();
            let device = &mut next.devices[i];
            device.cuts += 1;
            device.reading += 1;
            (device.first, device.waits, device.session) = (None, None, None);
            if !self.keeps {
                device.counter = 0;
            }
            self.tidy(&mut next, i);
            to.push(("cut", next));
        }
        Ok(())
    }

    fn gateway_steps(&self, state: &State, i: usize, to: &mut Vec<(&'static str, State)>) {
        let gateway = &state.gateways[i];
        for number in 0..state.devices[i].hellos.len() {
            to.extend(self.hello(state, i, number).into_iter().map(|next| ("hello", next)));
        }
        for session in &state.networks[i].records {
            to.extend(self.record(state, i, *session).into_iter().map(|next| ("record", next)));
        }
        if let Some(flight) = gateway.flight {
            to.extend(self.settle(state, i, flight).into_iter().map(|next| ("store", next)));
        }
        let mut ends = |is: bool, what: &'static str, end: fn(&mut Gateway)| {
            if is {
                let mut next = state.clone();
                end(&mut next.gateways[i]);
                self.tidy(&mut next, i);
                to.push((what, next));
            }
        };
        ends(gateway.pending.is_some(), "expire", |g| g.pending = None);
        ends(gateway.live.is_some(), "end", |g| (g.live, g.took) = (None, false));
        ends(gateway.challenge.is_some(), "challenge ends", |g| g.challenge = None);
        if gateway.mark > state.saved[i].0 {
            let mut next = state.clone();
            next.saved[i].0 = gateway.mark;
            to.push(("save", next));
        }
    }
}

impl System for Explored {
    type State = State;

    fn start(&self) -> State {
        let device = Device {
            counter: self.counter,
            reading: 1,
            first: None,
            waits: None,
            session: None,
            hellos: Vec::new(),
            cuts: 0,
        };
        State {
            devices: vec![device; self.devices],
            gateways: vec![Self::restarted(self.mark, None); self.devices],
            networks: vec![Network::default(); self.devices],
            spool: Vec::new(),
            saved: vec![(self.mark, None); self.devices],
            cursor: 0,
            crashes: 0,
            wipes: 0,
        }
    }

    fn steps(&self, state: &State, to: &mut Vec<(&'static str, State)>) -> Result<(), Fault> {
        for i in 0..self.devices {
            self.device_steps(state, i, to)?;
            self.gateway_steps(state, i, to);
        }
        if let Some(stored) = state.spool.get(state.cursor) {
            // R101: one transaction.
            let mut next = state.clone();
            next.cursor += 1;
            if !self.is(Mutant::Torn) {
                let saved = &mut next.saved[stored.device];
                *saved = (saved.0.rebuilt(stored.mark.get()), Some(stored.id));
            }
            to.push(("cursor", next));
        }
        if state.crashes < self.crashes {
            to.push(("crash", self.crash(state)));
        }
        if state.wipes < self.wipes {
            to.push(("wipe", self.wipe(state)));
        }
        Ok(())
    }

    fn check(&self, state: &State) -> Result<(), Fault> {
        for i in 0..self.devices {
            let of = || state.spool.iter().filter(move |stored| stored.device == i);
            let early: Vec<_> = of().filter(|stored| stored.early).collect();
            let hellos: BTreeSet<_> = early.iter().map(|stored| stored.hello).collect();
            if hellos.len() < early.len() {
                return Err("once: a HELLO is stored twice".to_owned());
            }
            let rising = early.windows(2).all(|pair| pair[0].mark < pair[1].mark);
            if self.wipes == 0 && !rising {
                return Err("once: an older HELLO is stored after a newer one".to_owned());
            }
            if self.wipes == 0 && self.keeps {
                let ids: BTreeSet<_> = of().map(|stored| stored.id).collect();
                let readings: BTreeSet<_> = of().map(|stored| stored.reading).collect();
                if ids.len() < of().count() || readings.len() < of().count() {
                    return Err("reading: a reading is stored twice".to_owned());
                }
            }
            self.gets_in(state, i)?;
        }
        Ok(())
    }
}

fn shown(name: &str, outcome: &Outcome) {
    let Outcome { states, complete, fault } = outcome;
    match fault {
        None if *complete => println!("{name}: all schedules, {states} states"),
        None => println!("{name}: the first {states} states"),
        Some((fault, path)) => println!("{name}: {fault}, after {states} states: {path:?}"),
    }
}

#[test]
fn early_readings_hold_in_all_schedules() {
    for (name, explored) in [
        ("known, two readings, two crashes", KNOWN),
        ("one reading in three HELLOs, a crash", AGAIN),
        ("two devices", COUPLE),
        ("a disk lost", WIPE),
    ] {
        let outcome = search::explore(&explored, 2_000_000);
        shown(name, &outcome);
        assert!(outcome.fault.is_none() && outcome.complete, "{name}: {:?}", outcome.fault);
    }
}

#[test]
fn early_readings_hold_in_schedules_of_bounded_length() {
    for (name, explored) in [
        ("three HELLOs of two readings", CALM),
        ("a first contact and a crash", NEW),
        ("four HELLOs, two crashes", LONG),
        ("a counter forgotten", FORGETS),
        ("a counter forgotten, the device not met", FORGETS_NEW),
    ] {
        let outcome = search::explore(&explored, 60_000);
        shown(name, &outcome);
        assert!(outcome.fault.is_none(), "{name}: {:?}", outcome.fault);
    }
}

#[test]
fn each_rule_of_early_readings_is_needed() {
    use Mutant as M;
    for (mutant, explored, expected) in [
        (M::MarkUnmoved, CALM, "reading"),
        (M::NotRebuilt, LONG, "once"),
        (M::LastNotRebuilt, LONG, "reading"),
        (M::Torn, LONG, "once"),
        (M::Eager, LONG, "true"),
        (M::ByCounter, FORGETS, "true"),
        (M::NewId, CALM, "reading"),
        (M::FlightUnseen, CALM, "once"),
        (M::OlderSession, CALM, "reading"),
        (M::ChallengeSuffices, FORGETS, "once"),
        (M::AnyCounter, FORGETS, "once"),
        (M::FirstContact, WIPE, "once"),
        (M::BroughtBackAsMade, WIPE, "once"),
        (M::Silence, FORGETS_NEW, "free"),
        (M::ReplacesAnswered, FORGETS_NEW, "free: a session that answered"),
    ] {
        let mutant = Explored { mutant: Some(mutant), ..explored };
        let outcome = search::explore(&mutant, 1_000_000);
        let name = format!("{:?}", mutant.mutant.unwrap());
        shown(&name, &outcome);
        let found = outcome.fault.as_ref().is_some_and(|(fault, _)| fault.starts_with(expected));
        assert!(found, "{name}: {:?}", outcome.fault);
    }
}
