//! What is held against the senders of hellos: hellos that proved no device, and RETRYs that nobody used.
//!
//! A sender is an address, or a network of IPv6, which belongs to a site. Everything here is bounded, forgiven with time, and
//! says nothing of devices.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};

use crate::Now;
use crate::streams::site;

/// Worthless hellos from addresses that have proven nothing, all together: so many in one burst, and so many a second for
/// good, are forgiven. Beyond, every such address is asked first.
pub(crate) const STRANGERS: Bucket = Bucket { size: 128, per_s: 100 };
/// The same for each sender by itself.
const SENDER: Bucket = Bucket { size: 32, per_s: 10 };
/// The same for a site of IPv6, of which each network may be a sender.
const SITE: Bucket = STRANGERS;
/// RETRYs to one address and port that did not come back as cookies, in a flood. What is beyond gets no answer, which costs a third.
const UNUSED_BY_PORT: Bucket = Bucket { size: 1_000, per_s: 200 };
/// The same for a sender, behind which there may be many devices.
const UNUSED_BY_SENDER: Bucket = Bucket { size: 8_192, per_s: 1_000 };
/// The most senders of each kind that are remembered (R93).
const REMEMBERED_MAX: usize = 4_096;
/// How many bits say which hellos were left unanswered in a generation; so many hellos may share one that one in a hundred
/// passes for another under the heaviest flood.
const UNANSWERED_BITS: u32 = 1 << 22;
/// How many generations there are, the newest among them, and how long each is, µs: no longer than a device's first pause.
const GENERATIONS: usize = 4;
const GENERATION_US: u64 = 1_000_000;
/// How often it is looked who can be forgotten, µs.
const SWEEP_US: u64 = 100_000;

/// A leaky bucket, told by when it will be empty, µs.
#[derive(Clone, Copy)]
pub(crate) struct Bucket {
    pub(crate) size: u64,
    pub(crate) per_s: u64,
}

impl Bucket {
    fn each_us(self) -> u64 {
        1_000_000 / self.per_s
    }

    fn overflows(self, now: Now, empty_us: u64) -> bool {
        empty_us > now.mono_us + self.size * self.each_us()
    }

    /// When it is empty after one more went in. A batch may be worthless as a whole, so it holds twice its size; more is
    /// not held against those who follow.
    fn fill(self, now: Now, empty_us: u64) -> u64 {
        let most_us = now.mono_us + 2 * self.size * self.each_us();
        (empty_us.max(now.mono_us) + self.each_us()).min(most_us)
    }
}

/// A bucket for each of those that have put something in.
struct Buckets<K> {
    bucket: Bucket,
    empty_us: HashMap<K, u64>,
    swept_us: u64,
}

impl<K: Eq + Hash> Buckets<K> {
    fn new(bucket: Bucket) -> Self {
        Self { bucket, empty_us: HashMap::new(), swept_us: 0 }
    }

    fn overflows(&self, now: Now, key: &K) -> bool {
        self.empty_us.get(key).is_some_and(|empty_us| self.bucket.overflows(now, *empty_us))
    }

    /// One more from this one; not remembered where too many others are.
    fn fill(&mut self, now: Now, key: K) {
        let full = self.empty_us.len() >= REMEMBERED_MAX;
        if full && now.mono_us >= self.swept_us + SWEEP_US {
            self.swept_us = now.mono_us;
            self.empty_us.retain(|_, empty_us| *empty_us > now.mono_us);
        }
        if self.empty_us.len() < REMEMBERED_MAX || self.empty_us.contains_key(&key) {
            let empty_us = self.empty_us.entry(key).or_default();
            *empty_us = self.bucket.fill(now, *empty_us);
        }
    }

    /// One less.
    fn forgive(&mut self, key: &K) {
        if let Some(empty_us) = self.empty_us.get_mut(key) {
            *empty_us = empty_us.saturating_sub(self.bucket.each_us());
        }
    }
}

/// Which hellos were left unanswered of late, by their digests, as far as a fixed number of bits tells.
struct Unanswered {
    /// Empty until there is a flood. The newest comes first.
    generations: [Vec<u64>; GENERATIONS],
    /// When the newest began.
    since_us: u64,
}

impl Unanswered {
    /// The places of a digest's bits.
    fn places(digest: &[u8; 32]) -> [(usize, u64); 2] {
        let [a, b, c, d, e, f, g, h, ..] = *digest;
        [[a, b, c, d], [e, f, g, h]].map(|bytes| {
            let bit = u32::from_le_bytes(bytes) % UNANSWERED_BITS;
            ((bit / 64) as usize, 1 << (bit % 64))
        })
    }

    /// Whether this one came before, and not just now; notes that it came.
    fn came_again(&mut self, now: Now, digest: &[u8; 32]) -> bool {
        let over = now.mono_us.saturating_sub(self.since_us) / GENERATION_US;
        for _ in 0..over.min(GENERATIONS as u64) {
            self.generations.rotate_right(1);
            self.generations[0].fill(0);
        }
        self.since_us += over * GENERATION_US;
        let places = Self::places(digest);
        let [newest, older @ ..] = &mut self.generations;
        let again = older.iter().any(|generation| {
            places
                .iter()
                .all(|(word, bit)| generation.get(*word).is_some_and(|found| found & bit != 0))
        });
        newest.resize(UNANSWERED_BITS as usize / 64, 0);
        places.iter().for_each(|(word, bit)| newest[*word] |= bit);
        again
    }
}

/// What is held against whom.
pub(crate) struct Senders {
    /// When the bucket of all strangers' worthless hellos is empty.
    strangers_empty_us: u64,
    /// Worthless hellos of those that had proven nothing: anybody can make them in anybody's name.
    unproven: Buckets<IpAddr>,
    /// Worthless hellos of those that had proven their address.
    proven: Buckets<IpAddr>,
    /// The same by their sites.
    proven_by_site: Buckets<IpAddr>,
    unused_by_port: Buckets<SocketAddr>,
    unused_by_sender: Buckets<IpAddr>,
    unanswered: Unanswered,
}

impl Default for Senders {
    fn default() -> Self {
        Self {
            strangers_empty_us: 0,
            unproven: Buckets::new(SENDER),
            proven: Buckets::new(SENDER),
            proven_by_site: Buckets::new(SITE),
            unused_by_port: Buckets::new(UNUSED_BY_PORT),
            unused_by_sender: Buckets::new(UNUSED_BY_SENDER),
            unanswered: Unanswered { generations: Default::default(), since_us: 0 },
        }
    }
}

impl Senders {
    /// A HELLO of this sender drew no ACCEPT. If it had proven its address it answers for that by itself; otherwise it
    /// counts against the sender that it names and against all strangers together.
    pub(crate) fn count_worthless(&mut self, now: Now, sender: IpAddr, proven: bool) {
        if proven {
            self.proven.fill(now, sender);
            if sender.is_ipv6() {
                self.proven_by_site.fill(now, site(sender));
            }
        } else {
            self.strangers_empty_us = STRANGERS.fill(now, self.strangers_empty_us);
            self.unproven.fill(now, sender);
        }
    }

    /// Whether strangers sent more worthless hellos of late than honest devices explain: then elliptic-curve work is for
    /// those only who prove that they receive.
    pub(crate) fn are_flooding(&self, now: Now) -> bool {
        STRANGERS.overflows(now, self.strangers_empty_us)
    }

    /// The same for what came in this sender's name alone.
    pub(crate) fn is_flooding(&self, now: Now, sender: IpAddr) -> bool {
        self.unproven.overflows(now, &sender)
    }

    /// Whether a sender that has proven its address, or many of its site, sent hellos of late that are worth nothing.
    pub(crate) fn is_worthless(&self, now: Now, sender: IpAddr) -> bool {
        self.proven.overflows(now, &sender) || self.proven_by_site.overflows(now, &site(sender))
    }

    /// Whether a datagram's sender is to have a RETRY in a flood, and if so, notes that it got one.
    ///
    /// Anybody can name an address and use up its RETRYs. So a HELLO that found none left has one when it comes again
    /// after a second, byte for byte, as a device's does: a forger who wants that has to send everything twice.
    pub(crate) fn may_ask(
        &mut self,
        now: Now,
        from: SocketAddr,
        sender: IpAddr,
        digest: &[u8; 32],
    ) -> bool {
        if self.unused_by_port.overflows(now, &from)
            || self.unused_by_sender.overflows(now, &sender)
        {
            return self.unanswered.came_again(now, digest);
        }
        self.unused_by_port.fill(now, from);
        self.unused_by_sender.fill(now, sender);
        true
    }

    /// It did as it was told.
    pub(crate) fn used(&mut self, from: SocketAddr, sender: IpAddr) {
        self.unused_by_port.forgive(&from);
        self.unused_by_sender.forgive(&sender);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now(mono_us: u64) -> Now {
        Now { mono_us, unix_ms: 0 }
    }

    fn sender(number: u32) -> IpAddr {
        IpAddr::from(number.to_be_bytes())
    }

    #[test]
    fn who_floods_is_found_and_forgiven_and_others_are_not_blamed() {
        let mut senders = Senders::default();
        (0..=SENDER.size).for_each(|_| senders.count_worthless(now(0), sender(1), false));
        assert!(senders.is_flooding(now(0), sender(1)) && !senders.are_flooding(now(0)));
        assert!(
            !senders.is_flooding(now(0), sender(2)) && !senders.is_worthless(now(0), sender(1))
        );
        assert!(!senders.is_flooding(now(200_000), sender(1)));
        (0..STRANGERS.size).for_each(|_| senders.count_worthless(now(0), sender(1), false));
        assert!(senders.are_flooding(now(0)));
        (0..=SENDER.size).for_each(|_| senders.count_worthless(now(0), sender(3), true));
        assert!(senders.is_worthless(now(0), sender(3)) && !senders.is_flooding(now(0), sender(3)));
    }

    /// A flood of one address draws few answers; those who use theirs are answered for ever, behind the same address
    /// too.
    #[test]
    fn retries_are_for_those_who_use_them() {
        let mut senders = Senders::default();
        let from = |host, port| SocketAddr::from((sender(host), port));
        let mut made = 0u64;
        let mut ask = |senders: &mut Senders, at, from: SocketAddr| {
            made += 1;
            let digest = digest(made);
            senders.may_ask(now(at), from, from.ip(), &digest)
        };
        let asked = (0..10_000).filter(|_| ask(&mut senders, 0, from(1, 1))).count();
        assert_eq!(u64::try_from(asked).unwrap(), UNUSED_BY_PORT.size + 1);
        assert!(ask(&mut senders, 0, from(1, 2)), "another device behind it");
        assert!(ask(&mut senders, 1_000_000, from(1, 1)), "a second later");
        for number in 0..50_000u16 {
            assert!(ask(&mut senders, 0, from(2, number)));
            senders.used(from(2, number), sender(2));
        }
        let many = (0..50_000).filter(|port| ask(&mut senders, 0, from(3, *port)));
        assert_eq!(u64::try_from(many.count()).unwrap(), UNUSED_BY_SENDER.size + 1);
    }

    fn digest(number: u64) -> [u8; 32] {
        let mut digest = [0; 32];
        // As well spread as SHA-256's.
        let spread = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        digest[..8].copy_from_slice(&(spread ^ spread >> 29).to_le_bytes());
        digest
    }

    /// Whoever names a device's address uses up its RETRYs, and yet the device has one when it asks again.
    #[test]
    fn a_hello_that_comes_again_after_a_second_is_answered() {
        let mut senders = Senders::default();
        let from = SocketAddr::from((sender(1), 7));
        let mut made = 1u64;
        let mut forge = |senders: &mut Senders, at| {
            let mut answered = 0;
            for number in 0..20_000 {
                made += 1;
                let port = u16::try_from(number).unwrap();
                let from = SocketAddr::from((sender(1), port));
                answered += u32::from(senders.may_ask(now(at), from, sender(1), &digest(made)));
            }
            answered
        };
        forge(&mut senders, 900_000);
        assert!(!senders.may_ask(now(900_000), from, sender(1), &digest(1)));
        forge(&mut senders, 950_000);
        assert!(!senders.may_ask(now(950_000), from, sender(1), &digest(1)), "not yet");
        assert!(forge(&mut senders, 1_950_000) < 2_000, "who says everything once");
        assert!(senders.may_ask(now(1_950_000), from, sender(1), &digest(1)));
        forge(&mut senders, 3_990_000);
        assert!(senders.may_ask(now(3_990_000), from, sender(1), &digest(1)), "it was lost");
        forge(&mut senders, 30_000_000);
        assert!(!senders.may_ask(now(30_000_000), from, sender(1), &digest(1)), "forgotten");
    }

    #[test]
    fn what_is_remembered_has_a_limit_and_makes_room_in_time() {
        let mut senders = Senders::default();
        for number in 0..20_000 {
            senders.count_worthless(now(u64::from(number)), sender(number), true);
            assert!(senders.proven.empty_us.len() <= REMEMBERED_MAX);
        }
        assert!(!senders.proven.empty_us.contains_key(&sender(19_999)));
        senders.count_worthless(now(1_000_000), sender(20_000), true);
        assert!(senders.proven.empty_us.contains_key(&sender(20_000)));
    }
}
