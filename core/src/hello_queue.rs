//! Who may wait for elliptic-curve work. A HELLO costs the gateway some 30 µs and its sender
//! next to nothing, so under load a datagram's address must prove itself first, no address holds
//! more than its share of the queue, and whoever must come back is told when there will be room, unless his hellos proved
//! nothing, or RETRYs to him go unused in a flood.
//!
//! A burst of hellos that is answered before its devices would ask again is no load: it waits, and nobody is sent away.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use arrayvec::ArrayVec;
use duet_protocol::reason::DropReason;
use duet_protocol::schedule;
use duet_protocol::wire::{Hello, Retry};
use subtle::ConstantTimeEq as _;

use crate::senders::Senders;
use crate::streams::site;
use crate::{Now, Path};

/// The most hellos that wait for their batch (R93): a second's work.
const WAITING_MAX: usize = 32_768;
/// The most of them from one site under load.
const SOURCE_MAX: usize = WAITING_MAX / 4;
/// From how many other places one HELLO may come again while it waits: whoever plays it back from everywhere is not answered
/// everywhere.
const AGAIN_MAX: usize = 3;
/// The most hellos that wait of a site, as one of its senders sees it whose hellos are worth nothing.
const WORTHLESS_SOURCE_MAX: usize = 4;
/// So many places are kept when the queue is empty again.
const SPARE_MAX: usize = 512;
/// How long a cookie's epoch is, µs; the epoch before is valid too.
const COOKIE_EPOCH_US: u64 = 30_000_000;
/// The furthest ahead that anyone is asked to come back, µs; a device waits no longer than 30 s (R54).
const HORIZON_US: u64 = 24_000_000;
/// So far ahead slots lie closer together than hellos take, by a sixteenth, µs: what then waits, for a quarter of a second at
/// most, makes up for what was reckoned too dear. An idle moment could not be made up for.
const CLOSE_US: u64 = 4_000_000;

/// Where a HELLO came from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Origin {
    pub(crate) path: Path,
    /// What counts as its sender (see [`source`](crate::source)).
    pub(crate) sender: IpAddr,
    pub(crate) arrived_us: u64,
    /// Whether the sender has shown that it receives there: by a stream, or by a valid cookie.
    pub(crate) proven: bool,
}

/// The hellos that wait, in order of arrival.
#[derive(Default)]
pub(crate) struct HelloQueue {
    hellos: VecDeque<(Origin, Hello)>,
    /// Each one's digest, and where it came from.
    digests: HashMap<[u8; 32], Path>,
    /// Of some, where they came again meanwhile.
    again: HashMap<[u8; 32], ArrayVec<Origin, AGAIN_MAX>>,
    /// How many wait of each site (see [`site`]).
    shares: HashMap<IpAddr, usize>,
    /// From when on there is room for one that is sent away now.
    next_slot_us: u64,
    /// Since when more wait than are answered at once, µs.
    long_since_us: Option<u64>,
    senders: Senders,
    /// What a HELLO has cost of late, ns; 0 at first.
    cost_ns: u64,
    /// How many came since the last batch.
    came: u64,
    /// The last batch, if it left hellos waiting: when it was taken, µs, and how many they were.
    left: Option<(u64, u64)>,
}

/// What was taken out of the queue.
#[derive(Default)]
pub(crate) struct Taken {
    /// Those that have their turn.
    pub(crate) batch: Vec<(Origin, Hello)>,
    /// Those that must prove their address first, or whose sender has shown meanwhile that they are worth nothing.
    pub(crate) refused: Vec<(Origin, Refusal)>,
    /// Where some of them came again while they waited, with their digests.
    pub(crate) again: Vec<([u8; 32], Origin)>,
}

/// Why a HELLO does not wait, and what its sender is told.
pub(crate) struct Refusal {
    pub(crate) reason: DropReason,
    pub(crate) retry: Option<Retry>,
}

impl From<DropReason> for Refusal {
    fn from(reason: DropReason) -> Self {
        Self { reason, retry: None }
    }
}

/// What admission is decided by.
#[derive(Clone, Copy)]
pub(crate) struct Policy<'a> {
    pub(crate) node_key: &'a [u8; 32],
    /// From how many waiting hellos on a datagram's address must prove itself, unless they came as a burst.
    pub(crate) retry_from: usize,
    /// What a burst is: so much work, for so long, µs.
    pub(crate) burst_us: u64,
    /// What a HELLO costs at least, µs.
    pub(crate) hello_us: u64,
}

fn mapped(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

impl HelloQueue {
    pub(crate) fn is_empty(&self) -> bool {
        self.hellos.is_empty()
    }

    /// The paths over which those that wait are to be answered.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn paths(&self) -> impl Iterator<Item = Path> {
        let again = self.again.values().flatten().map(|origin| origin.path);
        self.hellos.iter().map(|(origin, _)| origin.path).chain(again)
    }

    /// Queues a HELLO of this sender, or says why not. Nothing is kept of one that is refused (R51).
    pub(crate) fn enqueue(
        &mut self,
        now: Now,
        path: Path,
        sender: IpAddr,
        hello: Hello,
        policy: Policy<'_>,
    ) -> Result<(), Refusal> {
        self.came += 1;
        let proven = match path {
            Path::Stream(_) => true,
            Path::Datagram(from) => proves(now, from.address(), &hello, policy.node_key),
        };
        let loaded = self.is_loaded(now, policy);
        if !proven && (loaded || self.is_flooded(now, sender)) {
            return Err(self.ask(now, path, sender, &hello, policy));
        }
        if let (Path::Datagram(from), true) = (path, proven) {
            self.senders.used(from.address(), sender);
        }
        let origin = Origin { path, sender, arrived_us: now.mono_us, proven };
        if let Some(first) = self.digests.get(&hello.digest) {
            return match *first != path && self.came_again(hello.digest, origin) {
                true => Ok(()),
                false => Err(DropReason::Repeated.into()),
            };
        }
        let share = self.share(sender);
        if share >= WORTHLESS_SOURCE_MAX && self.senders.is_worthless(now, sender) {
            // An answer would make it come back at once.
            return Err(DropReason::SourceFull.into());
        }
        if loaded && share >= SOURCE_MAX {
            return Err(self.later(now, path, sender, &hello, policy, DropReason::SourceFull));
        }
        if self.hellos.len() >= WAITING_MAX {
            return Err(self.later(now, path, sender, &hello, policy, DropReason::HelloQueueFull));
        }
        self.digests.insert(hello.digest, path);
        *self.shares.entry(site(sender)).or_default() += 1;
        self.hellos.push_back((origin, hello));
        if self.hellos.len() >= policy.retry_from {
            self.long_since_us.get_or_insert(now.mono_us);
        }
        Ok(())
    }

    /// Whether more wait, or for longer, than a burst explains.
    fn is_loaded(&self, now: Now, policy: Policy<'_>) -> bool {
        let waiting = self.hellos.len();
        let since_us = self.long_since_us.unwrap_or(now.mono_us);
        waiting >= policy.retry_from
            && (waiting as u64 * self.cost_us(policy) >= policy.burst_us
                || now.mono_us - since_us >= policy.burst_us)
    }

    /// What a HELLO costs, µs: as of late, within reason.
    fn cost_us(&self, policy: Policy<'_>) -> u64 {
        self.cost_ns.div_ceil(1_000).clamp(policy.hello_us, 4 * policy.hello_us)
    }

    fn is_flooded(&self, now: Now, sender: IpAddr) -> bool {
        self.senders.are_flooding(now) || self.senders.is_flooding(now, sender)
    }

    /// One of the hellos that were taken drew no ACCEPT.
    pub(crate) fn count_worthless(&mut self, now: Now, origin: Origin) {
        self.senders.count_worthless(now, origin.sender, origin.proven);
    }

    /// When the oldest came, µs.
    pub(crate) fn oldest_us(&self) -> Option<u64> {
        self.hellos.front().map(|(origin, _)| origin.arrived_us)
    }

    /// Takes the oldest hellos, at most this many. Of those that came before their sender was noticed, most are refused now
    /// instead: they are what makes a flood, whether their addresses are proven or not.
    pub(crate) fn take(&mut self, now: Now, most: usize, policy: Policy<'_>) -> Taken {
        // While hellos wait, the time from batch to batch is what those of one cost, unless it went into many that
        // came meanwhile: they are taken in, or sent away, once for each, however long they then wait.
        let came = std::mem::take(&mut self.came);
        if let Some((since_us, count)) = self.left.take().filter(|(_, count)| came <= 2 * count) {
            let each_ns = now.mono_us.saturating_sub(since_us) * 1_000 / count;
            // One long pause is no measure.
            let most_ns = 2 * self.cost_ns.max(policy.hello_us * 1_000);
            self.cost_ns = (self.cost_ns * 31 + each_ns.min(most_ns)) / 32;
        }
        let mut taken = Taken::default();
        while taken.batch.len() < most && taken.refused.len() < most {
            let Some((origin, hello)) = self.hellos.pop_front() else { break };
            let share = self.share(origin.sender);
            self.forget(&origin, &hello);
            let again = self.again.remove(&hello.digest).into_iter().flatten();
            taken.again.extend(again.map(|origin| (hello.digest, origin)));
            let refusal = if !origin.proven && self.is_flooded(now, origin.sender) {
                Some(self.ask(now, origin.path, origin.sender, &hello, policy))
            } else if share > WORTHLESS_SOURCE_MAX && self.senders.is_worthless(now, origin.sender)
            {
                Some(DropReason::SourceFull.into())
            } else {
                None
            };
            match refusal {
                Some(refusal) => taken.refused.push((origin, refusal)),
                None => taken.batch.push((origin, hello)),
            }
        }
        if self.hellos.is_empty() {
            self.hellos.shrink_to(SPARE_MAX);
            self.digests.shrink_to(SPARE_MAX);
            self.again.shrink_to(SPARE_MAX);
            self.shares.shrink_to(SPARE_MAX);
        }
        if self.hellos.len() < policy.retry_from {
            self.long_since_us = None;
        }
        let count = taken.batch.len() as u64;
        self.left = (0 < count && !self.hellos.is_empty()).then_some((now.mono_us, count));
        taken
    }

    /// Where those that still wait came from, once for each time: nobody answers them any more.
    pub(crate) fn give_up(&mut self) -> Vec<Origin> {
        let Self { hellos, again, .. } = std::mem::take(self);
        let first = hellos.into_iter().map(|(origin, _)| origin);
        first.chain(again.into_values().flatten()).collect()
    }

    /// One that waits came again, from another place: whoever has another address by now, or another stream, hears nothing at
    /// the first one. Whether it is to be answered here, which it was not to be before.
    fn came_again(&mut self, digest: [u8; 32], origin: Origin) -> bool {
        let again = self.again.entry(digest).or_default();
        again.iter().all(|known| known.path != origin.path) && again.try_push(origin).is_ok()
    }

    /// How many wait of this sender's site.
    fn share(&self, sender: IpAddr) -> usize {
        self.shares.get(&site(sender)).copied().unwrap_or(0)
    }

    fn forget(&mut self, origin: &Origin, hello: &Hello) {
        self.digests.remove(&hello.digest);
        let site = site(origin.sender);
        if let Some(share) = self.shares.get_mut(&site) {
            *share -= 1;
            if *share == 0 {
                self.shares.remove(&site);
            }
        }
    }

    /// Refuses a datagram whose sender has not proven that it receives, and asks it to, unless in a flood it makes no use of that.
    fn ask(
        &mut self,
        now: Now,
        path: Path,
        sender: IpAddr,
        hello: &Hello,
        policy: Policy<'_>,
    ) -> Refusal {
        let reason = match hello.cookie() {
            Some(_) => DropReason::Cookie,
            None => DropReason::Unvalidated,
        };
        if let Path::Datagram(from) = path
            && self.is_flooded(now, sender)
            && !self.senders.may_ask(now, from.address(), sender, &hello.digest)
        {
            return reason.into();
        }
        self.later(now, path, sender, hello, policy, reason)
    }

    /// Refuses, and gives a datagram's sender the next free slot, in turn. Where there are more
    /// than fit before the horizon, they share what is before it.
    fn later(
        &mut self,
        now: Now,
        path: Path,
        sender: IpAddr,
        hello: &Hello,
        policy: Policy<'_>,
        reason: DropReason,
    ) -> Refusal {
        let Path::Datagram(from) = path else { return reason.into() };
        let cost_us = self.cost_us(policy);
        let waiting_us = self.hellos.len() as u64 * cost_us;
        let is_unproven = matches!(reason, DropReason::Unvalidated | DropReason::Cookie);
        let ahead_us = if is_unproven && self.is_flooded(now, sender) {
            // Most of them never come back: they take no slot from those that do.
            waiting_us
        } else {
            let ahead_us = waiting_us.max(self.next_slot_us.saturating_sub(now.mono_us));
            let apart_us = if ahead_us < CLOSE_US { cost_us * 15 / 16 } else { cost_us };
            let ahead_us = (ahead_us + apart_us) % HORIZON_US;
            self.next_slot_us = now.mono_us + ahead_us;
            ahead_us
        };
        let mut echo = [0; 8];
        echo.copy_from_slice(&hello.digest[..8]);
        let cookie = cookie(policy.node_key, epoch(now), from.address(), hello);
        let wait_10ms = u16::try_from(ahead_us / 10_000).unwrap_or(u16::MAX);
        Refusal { reason, retry: Some(Retry { echo, wait_10ms, cookie }) }
    }
}

/// Whether the HELLO brings the cookie that was sent to this address for it, now or an epoch ago.
fn proves(now: Now, from: SocketAddr, hello: &Hello, node_key: &[u8; 32]) -> bool {
    let Some(given) = hello.cookie() else { return false };
    let epoch = epoch(now);
    // R2: compared in constant time.
    let current = given.ct_eq(&cookie(node_key, epoch, from, hello));
    let before = given.ct_eq(&cookie(node_key, epoch.wrapping_sub(1), from, hello));
    (current | before).into()
}

fn epoch(now: Now) -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "epochs may wrap")]
    let epoch = (now.mono_us / COOKIE_EPOCH_US) as u32;
    epoch
}

fn cookie(node_key: &[u8; 32], epoch: u32, from: SocketAddr, hello: &Hello) -> [u8; 16] {
    let mut address = [0; 18];
    address[..16].copy_from_slice(&mapped(from.ip()).octets());
    address[16..].copy_from_slice(&from.port().to_be_bytes());
    schedule::cookie(node_key, epoch, &address, &hello.digest)
}

#[cfg(test)]
mod floods;
#[cfg(test)]
mod tests {
    use duet_protocol::profile::Transport;
    use duet_protocol::wire::Kind;

    use super::*;
    use crate::StreamId;
    use crate::senders::STRANGERS;

    const POLICY: Policy<'static> =
        Policy { node_key: &[7; 32], retry_from: 4, burst_us: 0, hello_us: 1_000 };

    fn now(mono_us: u64) -> Now {
        Now { mono_us, unix_ms: 0 }
    }

    fn from(host: u8, port: u16) -> Path {
        Path::Datagram(SocketAddr::from(([10, 0, 0, host], port)).into())
    }

    /// A HELLO as far as admission looks: the bare registered-id one.
    fn bytes(number: u16) -> Vec<u8> {
        let profile = duet_protocol::profile::Profile::ALL
            .into_iter()
            .find(|profile| profile.name() == "registered-id/ephemeral")
            .unwrap();
        let offer = duet_protocol::profile::Offer::new(profile, Transport::Datagram);
        let mut hello = vec![0; offer.hello_len(0)];
        hello[0] = Kind::Hello.byte();
        hello[2] = offer.encode();
        hello[4..6].copy_from_slice(&number.to_be_bytes());
        hello
    }

    pub(super) fn hello(number: u16) -> Hello {
        Hello::decode(&bytes(number), Transport::Datagram).unwrap()
    }

    pub(super) fn with_cookie(number: u16, retry: &Retry) -> Hello {
        let bytes = [bytes(number), retry.cookie.to_vec()].concat();
        Hello::decode(&bytes, Transport::Datagram).unwrap()
    }

    fn enqueue(
        waiting: &mut HelloQueue,
        now: Now,
        path: Path,
        hello: Hello,
    ) -> Result<(), Refusal> {
        let sender = match path {
            Path::Datagram(from) => crate::streams::source(from.address().ip()),
            Path::Stream(_) => IpAddr::from([10, 0, 0, 77]),
        };
        waiting.enqueue(now, path, sender, hello, POLICY)
    }

    fn refused(result: Result<(), Refusal>) -> (DropReason, Option<Retry>) {
        let refusal = result.unwrap_err();
        (refusal.reason, refusal.retry)
    }

    #[test]
    fn under_load_an_address_proves_itself_and_a_cookie_is_good_for_it_alone() {
        let mut waiting = HelloQueue::default();
        for number in 0..4 {
            assert!(enqueue(&mut waiting, now(0), from(1, number), hello(number)).is_ok());
        }
        let (reason, retry) = refused(enqueue(&mut waiting, now(0), from(1, 9), hello(9)));
        assert_eq!(reason, DropReason::Unvalidated);
        let retry = retry.unwrap();
        let stolen = enqueue(&mut waiting, now(0), from(2, 9), with_cookie(9, &retry));
        assert_eq!(refused(stolen).0, DropReason::Cookie);
        let other = enqueue(&mut waiting, now(0), from(1, 9), with_cookie(8, &retry));
        assert_eq!(refused(other).0, DropReason::Cookie);
        let late = now(2 * COOKIE_EPOCH_US);
        let old = enqueue(&mut waiting, late, from(1, 9), with_cookie(9, &retry));
        assert_eq!(refused(old).0, DropReason::Cookie);
        assert!(
            enqueue(&mut waiting, now(COOKIE_EPOCH_US), from(1, 9), with_cookie(9, &retry)).is_ok()
        );
        let again = enqueue(&mut waiting, now(0), from(1, 9), with_cookie(9, &retry));
        assert_eq!(refused(again).0, DropReason::Repeated);
        let stream = enqueue(&mut waiting, now(0), Path::Stream(StreamId(1)), hello(10));
        assert!(stream.is_ok(), "a stream's address has proven itself");
    }

    #[test]
    fn one_source_leaves_room_for_others_and_the_queue_has_an_end() {
        let mut waiting = HelloQueue::default();
        let admit = |waiting: &mut HelloQueue, host, number| {
            let first = enqueue(waiting, now(0), from(host, number), hello(number));
            let Err(Refusal { retry: Some(retry), .. }) = first else { return first };
            enqueue(waiting, now(0), from(host, number), with_cookie(number, &retry))
        };
        let share = u16::try_from(SOURCE_MAX).unwrap();
        for number in 0..share {
            assert!(admit(&mut waiting, 1, number).is_ok());
        }
        let (reason, retry) = refused(admit(&mut waiting, 1, 60_000));
        assert_eq!((reason, retry.is_some()), (DropReason::SourceFull, true));
        for number in share..u16::try_from(WAITING_MAX).unwrap() {
            let host = u8::try_from(number / share + 1).unwrap();
            assert!(admit(&mut waiting, host, number).is_ok(), "{number}");
        }
        let (reason, retry) = refused(admit(&mut waiting, 9, 60_001));
        assert_eq!((reason, retry.is_some()), (DropReason::HelloQueueFull, true));

        // What was taken makes room, in every book.
        assert_eq!(waiting.take(now(0), WAITING_MAX, POLICY).batch.len(), WAITING_MAX);
        assert!(waiting.is_empty() && waiting.digests.is_empty() && waiting.shares.is_empty());
        assert!(admit(&mut waiting, 1, 0).is_ok());
    }

    /// What a storm needed is given back.
    #[test]
    fn a_queue_that_was_long_keeps_little_memory() {
        let mut waiting = HelloQueue::default();
        for number in 0..8_192_u16 {
            let [high, low] = number.to_be_bytes();
            for stream in [1, 2] {
                let sender = IpAddr::from([10, 1, high, low]);
                let path = Path::Stream(StreamId(2 * u64::from(number) + stream));
                let queued = waiting.enqueue(now(0), path, sender, hello(number), POLICY);
                assert!(queued.is_ok());
            }
        }
        assert_eq!(waiting.take(now(0), WAITING_MAX, POLICY).again.len(), 8_192);
        let HelloQueue { hellos, digests, again, shares, .. } = &waiting;
        let kept = [hellos.capacity(), digests.capacity(), again.capacity(), shares.capacity()];
        // A table has room in powers of two.
        assert!(kept.iter().all(|places| *places <= 2 * SPARE_MAX), "{kept:?}");
    }

    #[test]
    fn a_flood_of_worthless_hellos_is_asked_first_and_takes_no_slots() {
        let mut waiting = HelloQueue::default();
        let stranger = Origin {
            path: from(3, 3),
            sender: IpAddr::from([10, 0, 0, 3]),
            arrived_us: 0,
            proven: false,
        };
        (0..STRANGERS.size).for_each(|_| waiting.count_worthless(now(0), stranger));
        assert!(enqueue(&mut waiting, now(0), from(1, 0), hello(0)).is_ok(), "not yet a flood");
        (0..50).for_each(|_| waiting.count_worthless(now(0), stranger));
        for number in 1..5_000 {
            let (reason, retry) =
                refused(enqueue(&mut waiting, now(0), from(1, number), hello(number)));
            assert_eq!((reason, retry.unwrap().wait_10ms), (DropReason::Unvalidated, 0));
        }
        let refusal = enqueue(&mut waiting, now(0), from(1, 1), hello(1));
        let retry = refused(refusal).1.unwrap();
        for number in 2..5_000 {
            let stolen = with_cookie(number, &retry);
            let (reason, told) = refused(enqueue(&mut waiting, now(0), from(2, number), stolen));
            assert_eq!((reason, told.unwrap().wait_10ms), (DropReason::Cookie, 0));
        }
        assert!(enqueue(&mut waiting, now(0), from(1, 1), with_cookie(1, &retry)).is_ok());
        // Half a second later fifty are forgiven.
        assert!(enqueue(&mut waiting, now(500_000), from(1, 2), hello(2)).is_ok());
    }

    /// Whoever has proven its address answers for what it sends, by itself.
    #[test]
    fn a_sender_of_worthless_hellos_keeps_a_little_room_and_nobody_else_notices() {
        let mut waiting = HelloQueue::default();
        let stream = |number| Path::Stream(StreamId(number));
        let sender = |host| IpAddr::from([10, 0, 0, host]);
        let mut queue = |now, host, number: u16| {
            let path = stream(number.into());
            waiting.enqueue(now, path, sender(host), hello(number), POLICY).is_ok()
        };
        assert!((0..64).all(|number| queue(now(0), 1, number)));
        for (origin, _) in waiting.take(now(0), 64, POLICY).batch {
            waiting.count_worthless(now(0), origin);
        }
        let mut queue = |now, host, number: u16| {
            let path = stream(number.into());
            waiting.enqueue(now, path, sender(host), hello(number), POLICY).is_ok()
        };
        let admitted = (100..200).filter(|number| queue(now(0), 1, *number)).count();
        assert_eq!(admitted, WORTHLESS_SOURCE_MAX);
        assert!((200..300).all(|number| queue(now(0), 2, number)), "another sender");
        assert!(queue(now(0), 3, 300) && queue(now(20_000_000), 1, 301), "it is forgiven");
    }

    /// A site of IPv6 has more networks than are remembered, and would have room for four hellos of each.
    #[test]
    fn a_site_that_comes_from_all_of_its_networks_keeps_a_little_room_too() {
        let mut waiting = HelloQueue::default();
        let queue = |waiting: &mut HelloQueue, site: u16, network: u16| {
            let ip = Ipv6Addr::new(0x2001, 0xdb8, site, network, 0, 0, 0, 1);
            let path = Path::Stream(StreamId(u64::from(site) << 16 | u64::from(network)));
            let sender = crate::source(ip.into());
            let hello = hello(network ^ site << 15);
            waiting.enqueue(now(0), path, sender, hello, POLICY).is_ok()
        };
        assert!((0..8_192).all(|network| queue(&mut waiting, 0, network)));
        assert!(!queue(&mut waiting, 0, 8_192), "its share");
        for (origin, _) in waiting.take(now(0), 8_192, POLICY).batch {
            waiting.count_worthless(now(0), origin);
        }
        let admitted = (10_000..20_000).filter(|network| queue(&mut waiting, 0, *network)).count();
        assert_eq!(admitted, WORTHLESS_SOURCE_MAX);
        assert!((0..100).all(|network| queue(&mut waiting, 1, network)), "another site");
    }

    /// What is answered before its devices would ask again waits, and nobody is sent away; if it does not end it was no
    /// burst.
    #[test]
    fn a_burst_waits_and_load_is_asked() {
        let policy = Policy { burst_us: 400_000, ..POLICY };
        let mut waiting = HelloQueue::default();
        let queue = |waiting: &mut HelloQueue, at, number: u16| {
            let sender = IpAddr::from([10, 1, number.to_be_bytes()[0], number.to_be_bytes()[1]]);
            waiting.enqueue(now(at), from(1, number), sender, hello(number), policy).is_ok()
        };
        let admitted = (0..1_000).filter(|number| queue(&mut waiting, 0, *number)).count();
        assert_eq!(admitted, 400, "1 ms each");
        // Half of them are answered, and more come: it is as long as before.
        assert_eq!(waiting.take(now(200_000), 200, policy).batch.len(), 200);
        assert!(queue(&mut waiting, 200_000, 2_000) && !queue(&mut waiting, 400_000, 2_001));
        assert_eq!(waiting.take(now(400_000), 200, policy).batch.len(), 200);
        assert!(queue(&mut waiting, 400_000, 2_002), "it is over");
    }

    /// A flood that came as a burst costs elliptic-curve work only until it is noticed, even where it waits already.
    #[test]
    fn what_waits_when_a_flood_is_noticed_is_asked_first() {
        let policy = Policy { burst_us: 400_000, ..POLICY };
        let mut waiting = HelloQueue::default();
        let forger = IpAddr::from([10, 0, 0, 9]);
        for number in 0..300 {
            assert!(
                waiting.enqueue(now(0), from(9, number), forger, hello(number), policy).is_ok()
            );
        }
        let honest = IpAddr::from([10, 0, 0, 1]);
        assert!(waiting.enqueue(now(0), from(1, 1), honest, hello(999), policy).is_ok());
        let mut worked = 0;
        let mut answered = false;
        while !waiting.is_empty() {
            for (origin, _) in waiting.take(now(0), 64, policy).batch {
                answered |= origin.sender == honest;
                if origin.sender == forger {
                    waiting.count_worthless(now(0), origin);
                    worked += 1;
                }
            }
        }
        assert_eq!((worked, answered), (64, true), "one batch, and nobody else is asked");
    }

    #[test]
    fn slots_are_as_far_apart_as_hellos_really_take() {
        let mut waiting = HelloQueue::default();
        let mut number = 0;
        for turn in 0..200 {
            while waiting.hellos.len() < POLICY.retry_from {
                let admitted =
                    enqueue(&mut waiting, now(turn * 6_000), from(1, number), hello(number));
                assert!(admitted.is_ok());
                number += 1;
            }
            // Two of four: 3 ms each, though the policy says 1.
            assert_eq!(waiting.take(now(turn * 6_000), 2, POLICY).batch.len(), 2);
        }
        let time = now(200 * 6_000);
        assert!(enqueue(&mut waiting, time, from(1, 998), hello(998)).is_ok());
        assert!(enqueue(&mut waiting, time, from(1, 999), hello(999)).is_ok());
        let mut wait_ms = |number| {
            let refusal = enqueue(&mut waiting, time, from(2, number), hello(number));
            u64::from(refused(refusal).1.unwrap().wait_10ms) * 10
        };
        let first_ms = wait_ms(1_000);
        let last_ms = (1_001..=1_500).map(&mut wait_ms).last().unwrap();
        assert!((last_ms - first_ms).abs_diff(1_500 * 15 / 16) < 60, "{first_ms} to {last_ms} ms");
    }

    /// What many cost that are taken in or sent away between two batches is no cost of those that are answered.
    #[test]
    fn a_flood_makes_no_hello_dearer() {
        let mut waiting = HelloQueue::default();
        let forger = Origin {
            path: from(9, 9),
            sender: IpAddr::from([10, 0, 0, 9]),
            arrived_us: 0,
            proven: false,
        };
        let mut number = 0;
        for turn in 0..200 {
            let at = now(turn * 500_000);
            while waiting.hellos.len() < POLICY.retry_from {
                let stream = Path::Stream(StreamId(number.into()));
                assert!(enqueue(&mut waiting, at, stream, hello(number)).is_ok());
                number += 1;
            }
            assert_eq!(waiting.take(at, 2, POLICY).batch.len(), 2);
            (0..64).for_each(|_| waiting.count_worthless(at, forger));
            for _ in 0..10 {
                assert!(enqueue(&mut waiting, at, forger.path, hello(60_000)).is_err());
            }
        }
        assert_eq!(waiting.cost_us(POLICY), POLICY.hello_us);
    }

    /// Those who were given slots may be nobody who comes.
    #[test]
    fn whoever_comes_after_a_storm_does_not_wait_for_its_slots() {
        let mut waiting = HelloQueue::default();
        for number in 0..60_000 {
            let refusal = enqueue(&mut waiting, now(0), from(2, number), hello(number));
            assert_eq!(refusal.is_err(), number >= 4);
        }
        assert_eq!(waiting.take(now(30_000_000), 4, POLICY).batch.len(), 4);
        for number in 0..4 {
            let queued = enqueue(&mut waiting, now(30_000_000), from(1, number), hello(number));
            assert!(queued.is_ok());
        }
        let refusal = enqueue(&mut waiting, now(30_000_000), from(1, 9), hello(9));
        assert_eq!(refused(refusal).1.unwrap().wait_10ms, 0);
    }

    #[test]
    fn a_storm_is_told_to_come_back_one_after_the_other() {
        let mut waiting = HelloQueue::default();
        for number in 0..4 {
            assert!(enqueue(&mut waiting, now(0), from(1, number), hello(number)).is_ok());
        }
        let mut in_second = [0u32; 24];
        for number in 4..30_000 {
            let refusal = enqueue(&mut waiting, now(0), from(2, number), hello(number));
            let retry = refused(refusal).1.unwrap();
            // R54: none is asked to wait for longer than it would.
            in_second[usize::from(retry.wait_10ms / 100)] += 1;
        }
        // A thousand a second is what 1 ms each allows. The first are told to come a sixteenth closer together, and
        // those for whom there is no room before the end share what is before it.
        let closer = 1_000 * 16 / 15;
        assert!(in_second[6..23].iter().all(|count| count.abs_diff(1_000) < 20), "{in_second:?}");
        assert!(
            in_second[..3].iter().all(|count| count.abs_diff(2 * closer) < 80),
            "{in_second:?}"
        );
    }
}
