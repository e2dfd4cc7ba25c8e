//! Who may wait for elliptic-curve work. A HELLO costs the gateway some 30 µs and its sender
//! next to nothing, so under load a datagram's address must prove itself first, no address holds
//! more than its share of the queue, and whoever must come back is told when there will be room.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use duet_protocol::reason::DropReason;
use duet_protocol::schedule;
use duet_protocol::wire::{Hello, Retry};
use subtle::ConstantTimeEq as _;

use crate::{Now, Path};

/// The most hellos that wait for their batch (R93).
const WAITING_MAX: usize = 512;
/// The most of them from one address, or one /64 network of IPv6, while others wait too.
const SOURCE_MAX: usize = 128;
/// How long a cookie's epoch is, µs; the epoch before is valid too.
const COOKIE_EPOCH_US: u64 = 30_000_000;
/// How many hellos a second of addresses that prove nothing may turn out to be worth nothing, before
/// all such addresses are asked first.
const WASTED_PER_S: u64 = 100;
/// How many of them in a row.
const WASTED_MAX: u64 = 128;
/// The furthest ahead that anyone is asked to come back, µs.
const HORIZON_US: u64 = 4_000_000;

/// The hellos that wait, in order of arrival.
#[derive(Default)]
pub(crate) struct HelloQueue {
    hellos: VecDeque<(Path, Hello)>,
    /// When each of them came, µs.
    arrived_us: VecDeque<u64>,
    digests: HashSet<[u8; 32]>,
    sources: HashMap<IpAddr, usize>,
    /// From when on there is room for one that is sent away now.
    next_slot_us: u64,
    /// When the hellos wasted so far are forgiven.
    bucket_empty_us: u64,
    /// What a HELLO has cost of late, ns; 0 at first.
    cost_ns: u64,
    /// Whether any was refused since the last batch.
    refused: bool,
    /// The last batch, if it left hellos waiting: when it was taken, µs, and how many they were.
    left: Option<(u64, u64)>,
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
    /// From how many waiting hellos on a datagram's address must prove itself.
    pub(crate) retry_from: usize,
    /// What a HELLO costs at least, µs.
    pub(crate) hello_us: u64,
}

fn mapped(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

/// What counts as one sender: an IPv4 address, or the network that a site of IPv6 is given.
fn source(path: Path) -> Option<IpAddr> {
    match path {
        Path::Datagram(from) => Some(match mapped(from.ip()).to_ipv4_mapped() {
            Some(ip) => ip.into(),
            None => Ipv6Addr::from_bits(mapped(from.ip()).to_bits() >> 64 << 64).into(),
        }),
        Path::Stream(_) => None,
    }
}

impl HelloQueue {
    pub(crate) fn is_empty(&self) -> bool {
        self.hellos.is_empty()
    }

    /// Queues a HELLO, or says why not. Nothing is kept of one that is refused (R51).
    pub(crate) fn enqueue(
        &mut self,
        now: Now,
        path: Path,
        hello: Hello,
        policy: Policy<'_>,
    ) -> Result<(), Refusal> {
        let loaded = self.hellos.len() >= policy.retry_from;
        if (loaded || self.is_flooded(now))
            && let Path::Datagram(from) = path
        {
            self.check_address(now, from, &hello, policy)?;
        }
        if self.digests.contains(&hello.digest) {
            return Err(DropReason::Repeated.into());
        }
        let source = source(path);
        let share = source.and_then(|source| self.sources.get(&source)).copied().unwrap_or(0);
        if loaded && share >= SOURCE_MAX {
            return Err(self.later(now, path, &hello, policy, DropReason::SourceFull));
        }
        if self.hellos.len() >= WAITING_MAX {
            return Err(self.later(now, path, &hello, policy, DropReason::HelloQueueFull));
        }
        self.digests.insert(hello.digest);
        if let Some(source) = source {
            *self.sources.entry(source).or_default() += 1;
        }
        self.hellos.push_back((path, hello));
        self.arrived_us.push_back(now.mono_us);
        Ok(())
    }

    /// What a HELLO costs, µs: as of late, within reason, since one long pause is no measure.
    fn cost_us(&self, policy: Policy<'_>) -> u64 {
        self.cost_ns.div_ceil(1_000).clamp(policy.hello_us, 4 * policy.hello_us)
    }

    /// Whether more hellos were worth nothing of late than honest devices can explain: then
    /// elliptic-curve work is for those only who prove that they receive.
    fn is_flooded(&self, now: Now) -> bool {
        self.bucket_empty_us > now.mono_us + WASTED_MAX * 1_000_000 / WASTED_PER_S
    }

    /// So many of the hellos that were taken, from addresses that had proven nothing, drew no ACCEPT.
    pub(crate) fn count_worthless(&mut self, now: Now, count: u64) {
        let cost_us = count * 1_000_000 / WASTED_PER_S;
        // A batch may be worth nothing as a whole; more is not held against those that follow.
        let most_us = now.mono_us + 2 * WASTED_MAX * 1_000_000 / WASTED_PER_S;
        self.bucket_empty_us = (self.bucket_empty_us.max(now.mono_us) + cost_us).min(most_us);
    }

    /// When the oldest came, µs.
    pub(crate) fn oldest_us(&self) -> Option<u64> {
        self.arrived_us.front().copied()
    }

    /// Takes the oldest hellos, at most this many.
    pub(crate) fn take(&mut self, now: Now, most: usize) -> Vec<(Path, Hello)> {
        // While hellos wait, the time from batch to batch is what those of one cost, unless it also went
        // into sending others away: that is done once for each, however long they then wait.
        let refused = std::mem::take(&mut self.refused);
        if let Some((since_us, count)) = self.left.take().filter(|_| !refused) {
            let each_ns = now.mono_us.saturating_sub(since_us) * 1_000 / count;
            self.cost_ns = (self.cost_ns * 7 + each_ns) / 8;
        }
        let count = most.min(self.hellos.len());
        self.left = (0 < count && count < self.hellos.len()).then_some((now.mono_us, count as u64));
        self.arrived_us.drain(..count);
        let batch: Vec<_> = self.hellos.drain(..count).collect();
        for (path, hello) in &batch {
            self.digests.remove(&hello.digest);
            if let Some(source) = source(*path)
                && let Some(share) = self.sources.get_mut(&source)
            {
                *share -= 1;
                if *share == 0 {
                    self.sources.remove(&source);
                }
            }
        }
        batch
    }

    /// Under load an address proves that it receives what is sent to it, before it costs any
    /// elliptic-curve work.
    fn check_address(
        &mut self,
        now: Now,
        from: SocketAddr,
        hello: &Hello,
        policy: Policy<'_>,
    ) -> Result<(), Refusal> {
        let epoch = epoch(now);
        // R2: compared in constant time.
        let reason = if let Some(given) = hello.cookie() {
            let current = given.ct_eq(&cookie(policy.node_key, epoch, from, hello));
            let before = given.ct_eq(&cookie(policy.node_key, epoch.wrapping_sub(1), from, hello));
            if (current | before).into() {
                return Ok(());
            }
            DropReason::Cookie
        } else {
            DropReason::Unvalidated
        };
        Err(self.later(now, Path::Datagram(from), hello, policy, reason))
    }

    /// Refuses, and gives a datagram's sender the next free slot, in turn. Where there are more
    /// than fit before the horizon, they share what is before it.
    fn later(
        &mut self,
        now: Now,
        path: Path,
        hello: &Hello,
        policy: Policy<'_>,
        reason: DropReason,
    ) -> Refusal {
        self.refused = true;
        let Path::Datagram(from) = path else { return reason.into() };
        let cost_us = self.cost_us(policy);
        let waiting_us = self.hellos.len() as u64 * cost_us;
        let ahead_us = if reason == DropReason::Unvalidated && self.is_flooded(now) {
            // Most of them never come back: they take no slot from those that do.
            waiting_us
        } else {
            self.next_slot_us = self.next_slot_us.max(now.mono_us + waiting_us) + cost_us;
            (self.next_slot_us - now.mono_us) % HORIZON_US
        };
        let mut echo = [0; 8];
        echo.copy_from_slice(&hello.digest[..8]);
        let cookie = cookie(policy.node_key, epoch(now), from, hello);
        let wait_10ms = u16::try_from(ahead_us / 10_000).unwrap_or(u16::MAX);
        Refusal { reason, retry: Some(Retry { echo, wait_10ms, cookie }) }
    }
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
mod tests {
    use duet_protocol::profile::Transport;
    use duet_protocol::wire::Kind;

    use super::*;
    use crate::StreamId;

    const POLICY: Policy<'static> = Policy { node_key: &[7; 32], retry_from: 4, hello_us: 1_000 };

    fn now(mono_us: u64) -> Now {
        Now { mono_us, unix_ms: 0 }
    }

    fn from(host: u8, port: u16) -> Path {
        Path::Datagram(SocketAddr::from(([10, 0, 0, host], port)))
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

    fn hello(number: u16) -> Hello {
        Hello::decode(&bytes(number), Transport::Datagram).unwrap()
    }

    fn with_cookie(number: u16, retry: &Retry) -> Hello {
        let bytes = [bytes(number), retry.cookie.to_vec()].concat();
        Hello::decode(&bytes, Transport::Datagram).unwrap()
    }

    fn refused(result: Result<(), Refusal>) -> (DropReason, Option<Retry>) {
        let refusal = result.unwrap_err();
        (refusal.reason, refusal.retry)
    }

    #[test]
    fn under_load_an_address_proves_itself_and_a_cookie_is_good_for_it_alone() {
        let mut waiting = HelloQueue::default();
        for number in 0..4 {
            assert!(waiting.enqueue(now(0), from(1, number), hello(number), POLICY).is_ok());
        }
        let (reason, retry) = refused(waiting.enqueue(now(0), from(1, 9), hello(9), POLICY));
        assert_eq!(reason, DropReason::Unvalidated);
        let retry = retry.unwrap();
        let stolen = waiting.enqueue(now(0), from(2, 9), with_cookie(9, &retry), POLICY);
        assert_eq!(refused(stolen).0, DropReason::Cookie);
        let other = waiting.enqueue(now(0), from(1, 9), with_cookie(8, &retry), POLICY);
        assert_eq!(refused(other).0, DropReason::Cookie);
        let late = now(2 * COOKIE_EPOCH_US);
        let old = waiting.enqueue(late, from(1, 9), with_cookie(9, &retry), POLICY);
        assert_eq!(refused(old).0, DropReason::Cookie);
        assert!(
            waiting
                .enqueue(now(COOKIE_EPOCH_US), from(1, 9), with_cookie(9, &retry), POLICY)
                .is_ok()
        );
        let again = waiting.enqueue(now(0), from(1, 9), with_cookie(9, &retry), POLICY);
        assert_eq!(refused(again).0, DropReason::Repeated);
        let stream = waiting.enqueue(now(0), Path::Stream(StreamId(1)), hello(10), POLICY);
        assert!(stream.is_ok(), "a stream's address has proven itself");
    }

    #[test]
    fn one_source_leaves_room_for_others_and_the_queue_has_an_end() {
        let mut waiting = HelloQueue::default();
        let admit = |waiting: &mut HelloQueue, host, number| {
            let first = waiting.enqueue(now(0), from(host, number), hello(number), POLICY);
            let Err(Refusal { retry: Some(retry), .. }) = first else { return first };
            waiting.enqueue(now(0), from(host, number), with_cookie(number, &retry), POLICY)
        };
        let share = u16::try_from(SOURCE_MAX).unwrap();
        for number in 0..share {
            assert!(admit(&mut waiting, 1, number).is_ok());
        }
        let (reason, retry) = refused(admit(&mut waiting, 1, 999));
        assert_eq!((reason, retry.is_some()), (DropReason::SourceFull, true));
        for number in share..u16::try_from(WAITING_MAX).unwrap() {
            let host = u8::try_from(number / share + 1).unwrap();
            assert!(admit(&mut waiting, host, number).is_ok(), "{number}");
        }
        let (reason, retry) = refused(admit(&mut waiting, 9, 999));
        assert_eq!((reason, retry.is_some()), (DropReason::HelloQueueFull, true));

        // What was taken makes room, in every book.
        assert_eq!(waiting.take(now(0), WAITING_MAX).len(), WAITING_MAX);
        assert!(waiting.is_empty() && waiting.digests.is_empty() && waiting.sources.is_empty());
        assert!(admit(&mut waiting, 1, 0).is_ok());
    }

    #[test]
    fn a_flood_of_worthless_hellos_is_asked_first_and_takes_no_slots() {
        let mut waiting = HelloQueue::default();
        waiting.count_worthless(now(0), WASTED_MAX);
        assert!(waiting.enqueue(now(0), from(1, 0), hello(0), POLICY).is_ok(), "not yet a flood");
        waiting.count_worthless(now(0), 50);
        for number in 1..20_000 {
            let (reason, retry) =
                refused(waiting.enqueue(now(0), from(1, number), hello(number), POLICY));
            assert_eq!((reason, retry.unwrap().wait_10ms), (DropReason::Unvalidated, 0));
        }
        let refusal = waiting.enqueue(now(0), from(1, 1), hello(1), POLICY);
        let retry = refused(refusal).1.unwrap();
        assert!(waiting.enqueue(now(0), from(1, 1), with_cookie(1, &retry), POLICY).is_ok());
        // Half a second later fifty are forgiven.
        assert!(waiting.enqueue(now(500_000), from(1, 2), hello(2), POLICY).is_ok());
    }

    #[test]
    fn slots_are_as_far_apart_as_hellos_really_take() {
        let mut waiting = HelloQueue::default();
        let mut number = 0;
        for turn in 0..40 {
            while waiting.hellos.len() < POLICY.retry_from {
                let admitted =
                    waiting.enqueue(now(turn * 6_000), from(1, number), hello(number), POLICY);
                assert!(admitted.is_ok());
                number += 1;
            }
            // Two of four: 3 ms each, though the policy says 1.
            assert_eq!(waiting.take(now(turn * 6_000), 2).len(), 2);
        }
        let time = now(40 * 6_000);
        assert!(waiting.enqueue(time, from(1, 998), hello(998), POLICY).is_ok());
        assert!(waiting.enqueue(time, from(1, 999), hello(999), POLICY).is_ok());
        let mut wait_ms = |number| {
            let refusal = waiting.enqueue(time, from(2, number), hello(number), POLICY);
            u64::from(refused(refusal).1.unwrap().wait_10ms) * 10
        };
        let first_ms = wait_ms(1_000);
        let last_ms = (1_001..=1_500).map(&mut wait_ms).last().unwrap();
        assert!((last_ms - first_ms).abs_diff(1_500) < 60, "{first_ms} to {last_ms} ms");
    }

    #[test]
    fn a_storm_is_told_to_come_back_one_after_the_other() {
        let mut waiting = HelloQueue::default();
        for number in 0..4 {
            assert!(waiting.enqueue(now(0), from(1, number), hello(number), POLICY).is_ok());
        }
        let mut in_second = [0u32; 4];
        for number in 4..4_000 {
            let refusal = waiting.enqueue(now(0), from(2, number), hello(number), POLICY);
            let retry = refused(refusal).1.unwrap();
            in_second[usize::from(retry.wait_10ms / 100)] += 1;
        }
        // A thousand a second is what 1 ms each allows.
        assert!(in_second.iter().all(|count| count.abs_diff(1_000) < 20), "{in_second:?}");
    }
}
