//! The life of a stream: how long it may stay, and which one goes when places get scarce.
//!
//! * *In* goes what happens to it: opened, a message came or was discarded, a session speaks over it or leaves it, an answer
//!   is owed or given, its peer has ended or is gone.
//! * *Out* come whether it is let in, whether its messages are looked at, whether its peer may answer, and when it is
//!   to be closed, and how.
//! * *Never* does it see a byte of a message or a descriptor: those are the transport's, which asks
//!   [`poll`](Streams::poll) what to close and reports what it has closed.
//!
//! ```text
//! first ─▶ unproven ─▶ proven ◀─▶ left        no whole message yet; nothing authentic yet; sessions speak over it; none
//!   └──────────┴───┬──────┴────────┘          does any more
//!                  ▼
//!           failed or ended ─▶ flushing ─▶ closed     deadline over: to flushing; of first, to closed
//! ```
//!
//! A stream has *failed* when one of its messages was discarded (a record that came again is no fault), or when whoever
//! drives the shard wants it closed. It has *ended* when its peer has said that nothing more comes; answers may still be owed
//! to him. Each state but *proven* and *closed* has one deadline, and a stream has no other. When that is over, the stream is
//! flushed and then closed; one in *first* or *flushing* is closed at once.
//!
//! Addresses, IPv4 ones and /64 networks of IPv6, have shares here. When half of the places are taken, no address gets more
//! than a quarter of all. When all but a sixteenth are, a newcomer from an address that has fewer takes the place of a stream
//! of the address that has most: of one over which no session speaks. Where no address has more than the newcomer's, sites of
//! IPv6 (/48) are compared in the same way, since a site has 65,536 networks. Where nobody makes room, the last sixteenth is
//! for newcomers of other sites than the one that has most, and each of them takes the place of the stream over which no
//! session has spoken for longest: whoever comes from more addresses than there are places must come anew within the
//! time of a handshake, and not within the seconds that a stream may say nothing.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rustc_hash::FxHashMap;

use crate::{Close, Path, StreamId};

/// How long after a discarded message its stream is closed, µs (R89).
const CLOSE_AFTER_US: u64 = 1_000_000;
/// How long a stream may go without an authentic record after its first message, µs (R90). Once it has brought one, it has
/// twice this time from when the last session leaves it.
const PROOF_WITHIN_US: u64 = 30_000_000;
/// Among how many addresses, and how many streams of each, one is looked for that makes room.
const GREEDY_MAX: usize = 16;
/// How long whoever has ended his direction may wait for answers, µs.
const OWED_WITHIN_US: u64 = 5_000_000;

/// Limits that whoever runs a shard may choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamLimits {
    /// The most streams at once.
    pub most: usize,
    /// How long a stream may take to bring its first message whole, µs (R90).
    pub first_message_us: u64,
    /// How long a stream may take to flush what was sent on it before it is closed all the same, µs.
    pub flush_us: u64,
}

impl Default for StreamLimits {
    fn default() -> Self {
        Self { most: 10_000, first_message_us: 5_000_000, flush_us: 5_000_000 }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    First,
    Unproven,
    Proven,
    Left,
    Failed,
    /// The peer has ended its direction.
    Ended,
    Flushing,
    /// The transport was told to close it at once.
    Closed,
}

impl State {
    /// Whether no session speaks over such a stream.
    fn is_idle(self) -> bool {
        matches!(self, Self::First | Self::Unproven | Self::Left | Self::Failed)
    }
}

struct Stream {
    source: IpAddr,
    state: State,
    /// Its other end.
    peer: SocketAddr,
    /// How many sessions speak over it.
    sessions: u32,
    /// For how many questions that came over it an answer is on its way.
    owed: u32,
    /// When the state is over, µs.
    due_us: Option<u64>,
    /// Since when no session speaks over it, µs, if none does.
    idle_since_us: u64,
}

/// All streams of a shard.
#[derive(Default)]
pub struct Streams {
    limits: StreamLimits,
    all: FxHashMap<StreamId, Stream>,
    /// What each address has (see [`source`]).
    addresses: Shares,
    /// What each site has (see [`site`]).
    sites: Shares,
    /// Every stream's deadline, the earliest first.
    due: BTreeSet<(u64, StreamId)>,
    /// Streams over which no session speaks and that are not about to go, by since when.
    idle: BTreeSet<(u64, StreamId)>,
}

/// What counts as one sender: an IPv4 address, also behind a translator, or a network of IPv6, of which a host has all addresses that it likes.
#[must_use]
pub fn source(ip: IpAddr) -> IpAddr {
    network(ip, 64)
}

/// To whom a sender belongs, as far as addresses tell: an IPv4 address to itself, and a network of IPv6 to a site, which may
/// have 65,536 of them.
#[must_use]
pub fn site(ip: IpAddr) -> IpAddr {
    network(ip, 48)
}

/// The first 96 bits of an IPv4 address behind a translator (RFC 6052, section 2.1): all of IPv4 in one network.
const TRANSLATED: u128 = 0x0064_ff9b << 64;

fn network(ip: IpAddr, prefix: u32) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.into(),
        #[expect(clippy::cast_possible_truncation, reason = "the last 32 bits are meant")]
        IpAddr::V6(ip) if ip.to_bits() >> 32 == TRANSLATED => {
            Ipv4Addr::from_bits(ip.to_bits() as u32).into()
        }
        IpAddr::V6(ip) => {
            let host = 128 - prefix;
            Ipv6Addr::from_bits(ip.to_bits() >> host << host).into()
        }
    }
}

/// How many streams each of some owners has, and which of them can go.
#[derive(Default)]
struct Shares {
    counts: HashMap<IpAddr, usize>,
    /// The same, the greediest last.
    ranked: BTreeSet<(usize, IpAddr)>,
    /// Streams over which no session speaks, with their deadlines, by owner.
    idle: BTreeSet<(IpAddr, u64, StreamId)>,
}

impl Shares {
    fn of(&self, owner: IpAddr) -> usize {
        self.counts.get(&owner).copied().unwrap_or(0)
    }

    /// An owner has another number of streams.
    fn set(&mut self, owner: IpAddr, count: usize) {
        self.ranked.remove(&(self.of(owner), owner));
        if count > 0 {
            self.counts.insert(owner, count);
            self.ranked.insert((count, owner));
        } else {
            self.counts.remove(&owner);
        }
    }

    /// Whether nobody has more, and it has some.
    fn is_greediest(&self, owner: IpAddr) -> bool {
        self.ranked.last().is_some_and(|(most, _)| *most == self.of(owner))
    }

    /// A stream that can go: of an owner that has more than one more than `share`, the one with most first.
    fn greediest(&self, share: usize, can_go: impl Fn(StreamId) -> bool) -> Option<StreamId> {
        let greedy = self.ranked.iter().rev().take(GREEDY_MAX);
        let mut greedy = greedy.take_while(|(count, _)| *count > share + 1);
        greedy.find_map(|(_, owner)| {
            // Those whose time is over already are about to go.
            let idle = self.idle.range((*owner, 1, StreamId(0))..).take(GREEDY_MAX);
            let mut idle = idle.take_while(|(other, ..)| other == owner);
            idle.find_map(|(.., stream)| can_go(*stream).then_some(*stream))
        })
    }
}

impl Streams {
    /// No streams yet.
    #[must_use]
    pub fn new(limits: StreamLimits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// A stream came; `since_us` is when the connection was accepted. False if there is no place for it.
    #[must_use]
    pub fn opened(&mut self, stream: StreamId, peer: SocketAddr, since_us: u64) -> bool {
        let (source, most) = (source(peer.ip()), self.limits.most);
        let share = self.addresses.of(source);
        let scarce = self.all.len() >= most / 2;
        if scarce && share >= (most / 4).max(1) {
            return false;
        }
        if self.all.len() + (most / 16).max(1) >= most && !self.make_room(source) {
            if self.sites.is_greediest(site(source)) {
                return false;
            }
            self.let_oldest_go();
        }
        if self.all.len() >= most {
            return false;
        }
        self.count(source, share + 1, self.sites.of(site(source)) + 1);
        let fresh = Stream {
            source,
            peer,
            state: State::First,
            sessions: 0,
            owed: 0,
            due_us: None,
            idle_since_us: since_us,
        };
        self.all.insert(stream, fresh);
        self.enter(stream, State::First, Some(since_us + self.limits.first_message_us));
        true
    }

    /// The address at its other end.
    pub(crate) fn peer(&self, stream: StreamId) -> Option<SocketAddr> {
        self.all.get(&stream).map(|found| found.peer)
    }

    /// Whether whoever is at the end of this path may answer there: a stream may be gone, or its peer say no more.
    pub(crate) fn may_answer(&self, path: Path) -> bool {
        let Path::Stream(stream) = path else { return true };
        let state = self.all.get(&stream).map(|found| found.state);
        matches!(state, Some(State::Unproven | State::Proven | State::Left))
    }

    /// A whole message came. False if it is not to be looked at, since the stream is about to be closed.
    #[must_use]
    pub fn arrived(&mut self, now_us: u64, stream: StreamId) -> bool {
        match self.all.get(&stream).map(|found| found.state) {
            Some(State::First) => {
                self.enter(stream, State::Unproven, Some(now_us + PROOF_WITHIN_US));
                true
            }
            Some(State::Unproven | State::Proven | State::Left | State::Ended) => true,
            Some(State::Failed | State::Flushing | State::Closed) | None => false,
        }
    }

    /// The peer ended its direction: nothing more comes, and what it is owed can still be sent.
    pub fn ended(&mut self, now_us: u64, stream: StreamId) {
        let Some(found) = self.all.get(&stream) else { return };
        if !matches!(found.state, State::Failed | State::Flushing | State::Closed) {
            let due_us = if found.owed > 0 { now_us + OWED_WITHIN_US } else { 0 };
            self.enter(stream, State::Ended, Some(due_us));
        }
    }

    /// Whoever drives the shard wants it closed.
    pub fn finish(&mut self, now_us: u64, stream: StreamId) {
        self.enter(stream, State::Failed, Some(now_us));
    }

    /// It is gone.
    pub fn closed(&mut self, stream: StreamId) {
        let Some(found) = self.all.remove(&stream) else { return };
        found.due_us.into_iter().for_each(|due_us| {
            self.due.remove(&(due_us, stream));
        });
        let idle = found.due_us.filter(|_| found.state.is_idle());
        idle.into_iter().for_each(|due_us| {
            self.remove_idle((found.source, found.idle_since_us), due_us, stream)
        });
        let [address, site] = [self.addresses.of(found.source), self.sites.of(site(found.source))];
        self.count(found.source, address.saturating_sub(1), site.saturating_sub(1));
    }

    /// An address, and with it its site, has another number of streams.
    fn count(&mut self, source: IpAddr, by_address: usize, by_site: usize) {
        self.addresses.set(source, by_address);
        self.sites.set(site(source), by_site);
    }

    fn add_idle(&mut self, (source, since_us): (IpAddr, u64), due_us: u64, stream: StreamId) {
        self.addresses.idle.insert((source, due_us, stream));
        self.sites.idle.insert((site(source), due_us, stream));
        // Those whose time is over already are about to go.
        (due_us > 0).then(|| self.idle.insert((since_us, stream)));
    }

    fn remove_idle(&mut self, (source, since_us): (IpAddr, u64), due_us: u64, stream: StreamId) {
        self.addresses.idle.remove(&(source, due_us, stream));
        self.sites.idle.remove(&(site(source), due_us, stream));
        self.idle.remove(&(since_us, stream));
    }

    /// Lets the deadline of a stream of the greediest be over, for one of this address, if there is one. One that waits for an
    /// answer of the gateway's stays.
    fn make_room(&mut self, source: IpAddr) -> bool {
        let can_go = |stream| self.all.get(&stream).is_some_and(|found| found.owed == 0);
        let found = self.addresses.greediest(self.addresses.of(source), can_go);
        let found = found.or_else(|| self.sites.greediest(self.sites.of(site(source)), can_go));
        found.is_some_and(|stream| self.let_go(stream))
    }

    /// The same for the stream over which no session has spoken for longest.
    fn let_oldest_go(&mut self) {
        let mut oldest = self.idle.iter().take(GREEDY_MAX).map(|(_, stream)| *stream);
        let can_go = |stream: &StreamId| self.all.get(stream).is_some_and(|found| found.owed == 0);
        oldest.find(can_go).map(|stream| self.let_go(stream));
    }

    fn let_go(&mut self, stream: StreamId) -> bool {
        let state = self.all.get(&stream).map(|found| found.state);
        state.map(|state| self.enter(stream, state, Some(0))).is_some()
    }

    /// The next stream to close, and how.
    pub fn poll(&mut self, now_us: u64) -> Option<(StreamId, Close)> {
        while let Some(&(due_us, stream)) = self.due.first().filter(|(due_us, _)| *due_us <= now_us)
        {
            let state = self.all.get(&stream).map(|found| found.state);
            match state {
                Some(State::First) => {
                    self.enter(stream, State::Closed, None);
                    return Some((stream, Close::NoFirstMessage));
                }
                Some(State::Flushing) => {
                    self.enter(stream, State::Closed, None);
                    return Some((stream, Close::NotFlushed));
                }
                Some(State::Unproven | State::Left | State::Failed | State::Ended) => {
                    self.enter(stream, State::Flushing, Some(now_us + self.limits.flush_us));
                    return Some((stream, Close::WhenFlushed));
                }
                // These have no deadline.
                Some(State::Proven | State::Closed) | None => {
                    self.due.remove(&(due_us, stream));
                }
            }
        }
        None
    }

    /// When to [`poll`](Self::poll), µs.
    #[must_use]
    pub fn next_us(&self) -> Option<u64> {
        self.due.first().map(|(due_us, _)| *due_us)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Which sender is at its other end.
    pub(crate) fn source(&self, stream: StreamId) -> Option<IpAddr> {
        self.all.get(&stream).map(|found| found.source)
    }

    /// A session's newest record came over it: from now on the session speaks there.
    pub(crate) fn join(&mut self, stream: StreamId) {
        let Some(found) = self.all.get_mut(&stream) else { return };
        found.sessions = found.sessions.saturating_add(1);
        if matches!(found.state, State::Unproven | State::Left) {
            self.enter(stream, State::Proven, None);
        }
    }

    /// A session that spoke over it has ended, or speaks elsewhere.
    pub(crate) fn leave(&mut self, now_us: u64, stream: StreamId) {
        let Some(found) = self.all.get_mut(&stream) else { return };
        found.sessions = found.sessions.saturating_sub(1);
        if found.sessions == 0 && found.state == State::Proven {
            found.idle_since_us = now_us;
            self.enter(stream, State::Left, Some(now_us + 2 * PROOF_WITHIN_US));
        }
    }

    /// One of its messages, which arrived then, was discarded (R89).
    pub(crate) fn fail(&mut self, arrived_us: u64, stream: StreamId) {
        let Some(found) = self.all.get(&stream) else { return };
        if !matches!(found.state, State::Failed | State::Flushing | State::Closed) {
            self.enter(stream, State::Failed, Some(arrived_us + CLOSE_AFTER_US));
        }
    }

    /// A question came over it whose answer takes its time.
    pub(crate) fn owe(&mut self, now_us: u64, stream: StreamId) {
        let Some(found) = self.all.get_mut(&stream) else { return };
        found.owed += 1;
        if found.state == State::Ended && found.owed == 1 {
            self.enter(stream, State::Ended, Some(now_us + OWED_WITHIN_US));
        }
    }

    /// Such a question has its answer, or gets none here.
    pub(crate) fn settle(&mut self, stream: StreamId) {
        let Some(found) = self.all.get_mut(&stream) else { return };
        found.owed = found.owed.saturating_sub(1);
        if found.state == State::Ended && found.owed == 0 {
            self.enter(stream, State::Ended, Some(0));
        }
    }

    fn enter(&mut self, stream: StreamId, state: State, due_us: Option<u64>) {
        let Some(found) = self.all.get_mut(&stream) else { return };
        if let Some(before_us) = found.due_us {
            self.due.remove(&(before_us, stream));
            if found.state.is_idle() {
                let whose = (found.source, found.idle_since_us);
                self.remove_idle(whose, before_us, stream);
            }
        }
        let Some(found) = self.all.get_mut(&stream) else { return };
        (found.state, found.due_us) = (state, due_us);
        if let Some(due_us) = due_us {
            let whose = (found.source, found.idle_since_us);
            self.due.insert((due_us, stream));
            if state.is_idle() {
                self.add_idle(whose, due_us, stream);
            }
        }
    }

    /// Asserts that each stream waits for as many answers as somebody is to give there.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn check_owed(&self, owed: &HashMap<StreamId, u32>) {
        for (id, found) in &self.all {
            let expected = owed.get(id).copied().unwrap_or(0);
            assert_eq!(found.owed, expected, "what is owed over {id:?}");
        }
    }

    /// Asserts that deadlines and shares are those of the streams there are.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn check(&self) {
        let dues: BTreeSet<_> =
            self.all.iter().filter_map(|(id, found)| Some((found.due_us?, *id))).collect();
        assert_eq!(dues, self.due, "each deadline is a stream's");
        for (shares, owner) in
            [(&self.addresses, source as fn(IpAddr) -> IpAddr), (&self.sites, site)]
        {
            let mut counts: HashMap<_, usize> = HashMap::new();
            self.all
                .values()
                .for_each(|found| *counts.entry(owner(found.source)).or_default() += 1);
            assert_eq!(counts, shares.counts, "each stream has its share");
            let ranked: BTreeSet<_> = counts.iter().map(|(owner, n)| (*n, *owner)).collect();
            assert_eq!(ranked, shares.ranked, "each owner has its rank");
            let idle = self.all.iter().filter(|(_, found)| found.state.is_idle());
            let idle: BTreeSet<_> = idle
                .filter_map(|(id, found)| Some((owner(found.source), found.due_us?, *id)))
                .collect();
            assert_eq!(idle, shares.idle, "each idle stream is its owner's");
        }
        let idle = self.all.iter().filter(|(_, found)| found.state.is_idle());
        let idle = idle.filter(|(_, found)| found.due_us.is_some_and(|due_us| due_us > 0));
        let idle: BTreeSet<_> = idle.map(|(id, found)| (found.idle_since_us, *id)).collect();
        assert_eq!(idle, self.idle, "each idle stream stands in its place");
        for found in self.all.values() {
            let timeless = matches!(found.state, State::Proven | State::Closed);
            assert_eq!(found.due_us.is_none(), timeless, "{:?} has its deadline", found.state);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000;

    fn peer(host: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, host], 4_000))
    }

    /// The stream under test, opened at zero.
    fn streams() -> (Streams, StreamId) {
        let (mut streams, id) = (Streams::default(), StreamId(1));
        assert!(streams.opened(id, peer(1), 0));
        (streams, id)
    }

    /// When it is closed and how, if nothing else happens.
    fn end(streams: &mut Streams, id: StreamId) -> (u64, Close) {
        streams.check();
        let due_us = streams.next_us().unwrap();
        if let Some(before_us) = due_us.checked_sub(1) {
            assert_eq!(streams.poll(before_us), None);
        }
        let (closed, how) = streams.poll(due_us).unwrap();
        assert_eq!(closed, id);
        streams.check();
        (due_us, how)
    }

    #[test]
    fn each_state_has_its_time() {
        let (mut first, id) = streams();
        assert_eq!(end(&mut first, id), (5 * S, Close::NoFirstMessage));
        assert_eq!(first.next_us(), None);

        let (mut unproven, id) = streams();
        assert!(unproven.arrived(S, id) && unproven.arrived(2 * S, id));
        assert_eq!(end(&mut unproven, id), (31 * S, Close::WhenFlushed));
        assert_eq!(end(&mut unproven, id), (36 * S, Close::NotFlushed));

        let (mut left, id) = streams();
        assert!(left.arrived(S, id));
        left.join(id);
        left.join(id);
        left.leave(2 * S, id);
        assert_eq!(left.next_us(), None, "a session speaks over it");
        left.leave(3 * S, id);
        assert_eq!(end(&mut left, id), (63 * S, Close::WhenFlushed));

        let (mut failed, id) = streams();
        assert!(failed.arrived(S, id));
        failed.fail(S, id);
        failed.fail(S + 5, id);
        assert!(!failed.arrived(S + 6, id), "a failed stream is not served any more");
        assert_eq!(end(&mut failed, id), (2 * S, Close::WhenFlushed));
        failed.closed(id);
        failed.check();
        assert!(failed.is_empty());
    }

    #[test]
    fn whoever_has_said_all_waits_for_what_he_is_owed_and_not_for_ever() {
        let (mut streams, id) = streams();
        assert!(streams.arrived(S, id));
        streams.ended(S, id);
        assert_eq!(streams.next_us(), Some(0), "nothing is owed");
        streams.join(id);
        streams.owe(S, id);
        streams.owe(S, id);
        assert_eq!(streams.poll(6 * S - 1), None);
        streams.settle(id);
        streams.check();
        assert_eq!(streams.next_us(), Some(6 * S));
        streams.settle(id);
        assert_eq!(end(&mut streams, id), (0, Close::WhenFlushed));
    }

    #[test]
    fn the_greediest_address_makes_room_by_streams_that_nobody_speaks_over() {
        let mut streams = Streams::new(StreamLimits { most: 32, ..StreamLimits::default() });
        let mut number = 0;
        let mut open = |streams: &mut Streams, host| {
            number += 1;
            streams.opened(StreamId(number), peer(host), number).then_some(StreamId(number))
        };
        // 16 of one address, over two of which sessions speak, and one waits for its ACCEPT.
        for speaks in (0..16).map(|place| place < 2) {
            let stream = open(&mut streams, 1).unwrap();
            assert!(!speaks || streams.arrived(S, stream));
            speaks.then(|| streams.join(stream));
        }
        assert!(streams.arrived(S, StreamId(3)));
        streams.owe(S, StreamId(3));
        assert!((0..8).all(|_| open(&mut streams, 2).is_some()));
        // Honest ones come one by one: each is in, and the first address pays, to the last one that nobody speaks over.
        let mut gone = Vec::new();
        for host in 10..36 {
            assert!(open(&mut streams, host).is_some(), "address {host}");
            while let Some((stream, _)) = streams.poll(2 * S) {
                streams.closed(stream);
                gone.push(stream.0);
            }
            streams.check();
        }
        let first: Vec<_> = gone.iter().copied().filter(|stream| *stream <= 16).collect();
        assert!(first.iter().all(|stream| *stream > 3), "{gone:?}");
        assert!(first.len() >= 9, "{gone:?}");
    }

    /// Where devices have IPv4 alone and the gateway IPv6 alone, each of them is a sender and a site of its own.
    #[test]
    fn an_ipv4_address_behind_a_translator_counts_as_itself() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        for of in [source, site] {
            assert_eq!(of(ip("64:ff9b::192.0.2.1")), ip("192.0.2.1"));
            assert_eq!(of(ip("::ffff:192.0.2.1")), ip("192.0.2.1"));
            assert_ne!(of(ip("64:ff9b:1::192.0.2.1")), ip("192.0.2.1"));
        }
        assert_eq!(source(ip("64:ff9b:0:0:1::1")), source(ip("64:ff9b:0:0:2::1")));
    }

    /// A site of IPv6 has 65,536 networks, none of which has more streams than anybody.
    #[test]
    fn a_site_that_comes_from_all_of_its_networks_keeps_nobody_out() {
        for fails in [false, true] {
            let most = 160;
            let mut streams = Streams::new(StreamLimits { most, ..StreamLimits::default() });
            let mut number = 0;
            let mut open = |streams: &mut Streams, site: u16, network: u16| {
                number += 1;
                let ip = Ipv6Addr::new(0x2001, 0xdb8, site, network, 0, 0, 0, 1);
                let peer = SocketAddr::new(ip.into(), 4_000);
                let stream = StreamId(number);
                streams.opened(stream, peer, number).then_some(stream)
            };
            let mut in_time = 0;
            for network in 0..400 {
                if let Some(stream) = open(&mut streams, 1, network)
                    && fails
                {
                    assert!(streams.arrived(S, stream));
                    streams.fail(S, stream);
                }
                if network % 4 == 0 {
                    let honest = open(&mut streams, 2 + network, 0);
                    in_time += usize::from(honest.is_some());
                    honest.into_iter().for_each(|stream| {
                        assert!(streams.arrived(S, stream));
                        streams.join(stream);
                    });
                }
                while let Some((stream, _)) = streams.poll(S) {
                    streams.closed(stream);
                }
                streams.check();
            }
            assert_eq!(in_time, 100, "all that are honest");
        }
    }

    /// Nobody of them has more streams than anybody else.
    #[test]
    fn more_addresses_than_places_keep_nobody_out() {
        const MS: u64 = 1_000;
        // What those say who are no devices: nothing, something wrong, or a HELLO that was overheard.
        for says in 0..3 {
            let most = 160;
            let mut streams = Streams::new(StreamLimits { most, ..StreamLimits::default() });
            let (mut honest, mut open) = (Vec::new(), 0);
            for number in 0..2_000_u64 {
                let now_us = number * MS;
                let host = u16::try_from(number).unwrap().to_be_bytes();
                let stream = StreamId(number);
                let peer = SocketAddr::from(([10, 0, host[0], host[1]], 4_000));
                let is_in = streams.opened(stream, peer, now_us);
                if number % 40 == 0 && number < 1_900 {
                    assert!(is_in, "an honest one, at {number} ms");
                    honest.push(stream);
                } else if is_in && says > 0 {
                    assert!(streams.arrived(now_us, stream));
                    (says == 1).then(|| streams.fail(now_us, stream));
                }
                // A handshake takes a tenth of a second.
                if let Some(stream) = number.checked_sub(100).map(StreamId)
                    && honest.contains(&stream)
                {
                    assert!(streams.arrived(now_us, stream), "{stream:?} is there");
                    streams.join(stream);
                }
                while let Some((stream, _)) = streams.poll(now_us) {
                    streams.closed(stream);
                }
                streams.check();
                open = open.max(streams.len());
            }
            assert!(open <= most);
            let proven = honest.iter().filter(|stream| streams.may_answer(Path::Stream(**stream)));
            assert_eq!(proven.count(), honest.len(), "whoever is in stays");
        }
    }

    #[test]
    fn when_places_are_scarce_one_address_has_its_share() {
        let mut streams = Streams::new(StreamLimits { most: 16, ..StreamLimits::default() });
        let mut number = 0;
        let mut open = |streams: &mut Streams, host| {
            number += 1;
            streams.opened(StreamId(number), peer(host), 0)
        };
        assert!((0..8).all(|_| open(&mut streams, 1)), "there are enough");
        assert!(!open(&mut streams, 1), "more than its share of what is left");
        assert!((0..8).all(|host| open(&mut streams, 2 + host)));
        assert!(!open(&mut streams, 99), "all places are taken");
        streams.check();
        // The last one that was let in, and the one that was not, each made room for another.
        for made_room in [1, 2] {
            assert_eq!(streams.poll(0), Some((StreamId(made_room), Close::NoFirstMessage)));
        }
        assert_eq!(streams.poll(0), None);
        for stream in 1..=6 {
            streams.closed(StreamId(stream));
        }
        assert!(open(&mut streams, 1) && open(&mut streams, 1), "two of four are left to it");
        assert!(!open(&mut streams, 1));
        streams.check();
    }
}
