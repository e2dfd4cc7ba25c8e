//! What the link does to packets, on its caller's clock: delay, jitter, loss, duplication, reordering,
//! rate. No I/O; the same seed and the same packets give the same fates.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::exchange::Way;

/// What waits for the rate longer than this finds the sender's buffer full, and is dropped.
const BACKLOG_US: u64 = 1_000_000;
/// Bits of a byte, and µs of a second.
const BITS_US: u64 = 8 * 1_000_000;

/// How one path of the link behaves, the same both ways. Chances are between 0 and 1.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Conditions {
    /// The delay each way, µs.
    pub one_way_us: u64,
    /// At most so much more delay, drawn for each packet; keeps their order.
    pub jitter_us: u64,
    /// The chance that a packet is lost.
    pub loss: f64,
    /// The chance that a packet arrives twice.
    pub duplicate: f64,
    /// The chance that a packet is held back for one more delay (at least 1 ms), so that later ones
    /// overtake it.
    pub reorder: f64,
    /// Bits a second each way; no limit when nothing is given.
    pub rate_bps: Option<u64>,
}

/// A packet whose time has come.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Delivery<T> {
    /// When it was due, µs.
    pub due_us: u64,
    order: u64,
    /// Which way it goes.
    pub way: Way,
    /// The packet.
    pub packet: T,
}

/// Packets of all paths on their way.
pub struct Queue<T> {
    paths: Vec<Path>,
    random: fastrand::Rng,
    waiting: BinaryHeap<Reverse<Delivery<T>>>,
    order: u64,
}

struct Path {
    conditions: Conditions,
    /// For each way: when the sender's line is free again, and the latest delivery so far.
    ways: [(u64, u64); 2],
}

impl<T: Ord + Clone> Queue<T> {
    /// An empty link; `paths` are addressed by their places.
    #[must_use]
    pub fn new(paths: &[Conditions], seed: u64) -> Self {
        let path = |conditions: &Conditions| Path { conditions: *conditions, ways: [(0, 0); 2] };
        let random = fastrand::Rng::with_seed(seed);
        Self {
            paths: paths.iter().map(path).collect(),
            random,
            waiting: BinaryHeap::new(),
            order: 0,
        }
    }

    /// Takes a packet of `len` bytes; whether it will arrive. Packets of paths that do not exist are lost.
    pub fn handle_packet(
        &mut self,
        now_us: u64,
        path: usize,
        way: Way,
        len: usize,
        packet: T,
    ) -> bool {
        let Some(path) = self.paths.get_mut(path) else { return false };
        let Conditions { one_way_us, jitter_us, loss, duplicate, reorder, rate_bps } =
            path.conditions;
        let (free_us, last_us) = &mut path.ways[usize::from(way == Way::Down)];
        // Always as many draws, so that one packet's fate does not change what the next one draws.
        let [lost, doubled, held] = [loss, duplicate, reorder].map(|p| self.random.f64() < p);
        let late_us = self.random.u64(..=jitter_us);
        let mut sent_us = now_us;
        if let Some(rate) = rate_bps {
            let start = now_us.max(*free_us);
            if start - now_us > BACKLOG_US {
                return false;
            }
            sent_us = start + (len as u64 * BITS_US).div_ceil(rate.max(1));
            *free_us = sent_us;
        }
        if lost {
            return false;
        }
        let mut due_us = sent_us + one_way_us + late_us;
        if held {
            due_us += one_way_us.max(1_000);
        } else {
            due_us = due_us.max(*last_us);
            *last_us = due_us;
        }
        for _ in 0..=u8::from(doubled) {
            self.order += 1;
            let order = self.order;
            self.waiting.push(Reverse(Delivery { due_us, order, way, packet: packet.clone() }));
        }
        true
    }

    /// The next packet that is due.
    pub fn poll_delivery(&mut self, now_us: u64) -> Option<Delivery<T>> {
        self.poll_timeout().filter(|due| *due <= now_us)?;
        self.waiting.pop().map(|Reverse(delivery)| delivery)
    }

    /// When to ask for a delivery next, µs.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<u64> {
        self.waiting.peek().map(|Reverse(delivery)| delivery.due_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What arrives and when, if packet i of 100 bytes goes up at i · `gap_us`.
    fn arrivals(conditions: Conditions, count: u64, gap_us: u64, seed: u64) -> Vec<(u64, u64)> {
        let mut queue = Queue::new(&[conditions], seed);
        let mut arrived = Vec::new();
        for packet in 0..count {
            queue.handle_packet(packet * gap_us, 0, Way::Up, 100, packet);
        }
        while let Some(due) = queue.poll_timeout() {
            assert!(due == 0 || queue.poll_delivery(due - 1).is_none(), "not before it is due");
            let delivery = queue.poll_delivery(due).unwrap();
            arrived.push((delivery.packet, delivery.due_us));
        }
        arrived
    }

    #[test]
    fn a_plain_link_delays_and_keeps_order() {
        let conditions = Conditions { one_way_us: 500, ..Conditions::default() };
        assert_eq!(arrivals(conditions, 3, 10, 1), [(0, 500), (1, 510), (2, 520)]);
        assert_eq!(arrivals(Conditions::default(), 2, 0, 1), [(0, 0), (1, 0)]);
    }

    #[test]
    fn loss_and_duplication_come_as_often_as_asked() {
        let conditions = Conditions { loss: 0.1, duplicate: 0.05, ..Conditions::default() };
        let arrived = arrivals(conditions, 20_000, 1, 7);
        let mut unique = arrived.clone();
        unique.dedup();
        let (lost, doubled) = (20_000 - unique.len(), arrived.len() - unique.len());
        assert!((1_800..2_200).contains(&lost), "{lost}");
        assert!((800..1_000).contains(&doubled), "{doubled}");
        assert_eq!(arrived, arrivals(conditions, 20_000, 1, 7), "the same seed, the same fates");
        assert_ne!(arrived, arrivals(conditions, 20_000, 1, 8));
    }

    #[test]
    fn loss_does_not_depend_on_the_other_conditions() {
        let lossy = Conditions { loss: 0.2, ..Conditions::default() };
        let all = Conditions { jitter_us: 50, duplicate: 0.1, rate_bps: Some(1 << 30), ..lossy };
        let survivors = |conditions| {
            let mut who: Vec<_> =
                arrivals(conditions, 500, 10, 3).into_iter().map(|(packet, _)| packet).collect();
            who.dedup();
            who
        };
        assert_eq!(survivors(lossy), survivors(all));
    }

    #[test]
    fn jitter_keeps_order_and_reordering_does_not() {
        let conditions = Conditions { one_way_us: 100, jitter_us: 90, ..Conditions::default() };
        let arrived = arrivals(conditions, 1_000, 10, 5);
        assert!(arrived.is_sorted());
        assert!(arrived.iter().all(|(packet, due)| due - packet * 10 >= 100));
        assert!(arrived.iter().any(|(packet, due)| due - packet * 10 > 150));
        let held = Conditions { one_way_us: 100, reorder: 0.1, ..Conditions::default() };
        let arrived = arrivals(held, 1_000, 300, 5);
        assert!(!arrived.is_sorted_by_key(|(packet, _)| packet));
        assert!(arrived.iter().any(|(packet, due)| due - packet * 300 == 1_100));
    }

    #[test]
    fn a_rate_spaces_packets_and_drops_what_would_wait_too_long() {
        // 100 bytes at 80 kbit/s are 10 ms.
        let conditions = Conditions { rate_bps: Some(80_000), ..Conditions::default() };
        assert_eq!(arrivals(conditions, 2, 0, 1), [(0, 10_000), (1, 20_000)]);
        assert_eq!(arrivals(conditions, 200, 0, 1).len(), 101, "a second's worth, and one");
    }

    #[test]
    fn paths_and_ways_do_not_share_a_line() {
        let slow = Conditions { rate_bps: Some(80_000), ..Conditions::default() };
        let mut queue = Queue::new(&[slow, Conditions::default()], 1);
        assert!(queue.handle_packet(0, 0, Way::Up, 100, 0));
        assert!(queue.handle_packet(0, 0, Way::Down, 100, 1));
        assert!(queue.handle_packet(0, 1, Way::Up, 100, 2));
        assert!(!queue.handle_packet(0, 2, Way::Up, 100, 3), "there is no such path");
        let due = |delivery: Delivery<i32>| (delivery.packet, delivery.way, delivery.due_us);
        assert_eq!(queue.poll_delivery(0).map(due), Some((2, Way::Up, 0)));
        assert_eq!(queue.poll_delivery(10_000).map(due), Some((0, Way::Up, 10_000)));
        assert_eq!(queue.poll_delivery(10_000).map(due), Some((1, Way::Down, 10_000)));
        assert_eq!(queue.poll_delivery(u64::MAX), None);
    }
}
