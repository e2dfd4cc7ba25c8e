//! What crossed the link: sums of everything, and the packets of those exchanges that are watched.

use std::collections::HashMap;
use std::net::SocketAddrV4;

use crate::exchange::{Both, Way};

use super::packet::{Body, Packet};

/// A packet of a watched exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Crossing {
    /// Which way it goes.
    pub way: Way,
    /// When its sender's kernel handed it to the link, µs on the emulator's clock.
    pub entered_us: u64,
    /// When the link handed it to its receiver's kernel; `None` if it was lost or is still on its way.
    pub delivered_us: Option<u64>,
    /// The whole IP packet.
    pub bytes: Vec<u8>,
}

/// All IPv4 packets since the link was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Packets handed to the link.
    pub entered: Both,
    /// Their IP bytes.
    pub entered_bytes: Both,
    /// Packets handed on by the link, its own copies included.
    pub delivered: Both,
    /// Their IP bytes.
    pub delivered_bytes: Both,
}

/// One client socket's exchange: TCP or not, and its address and port.
type Name = (bool, SocketAddrV4);

/// Where a packet on its way was noted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Noted {
    name: Name,
    watch: u64,
    place: usize,
}

/// The record.
#[derive(Debug, Default)]
pub(super) struct Capture {
    pub(super) totals: Totals,
    watched: HashMap<Name, (u64, Vec<Crossing>)>,
    watches: u64,
}

impl Capture {
    /// Records what a client's socket sends and gets from now on.
    pub(super) fn watch(&mut self, tcp: bool, client: SocketAddrV4) {
        self.watches += 1;
        self.watched.insert((tcp, client), (self.watches, Vec::new()));
    }

    /// What was recorded of it; nothing more is.
    pub(super) fn take(&mut self, tcp: bool, client: SocketAddrV4) -> Vec<Crossing> {
        self.watched.remove(&(tcp, client)).map(|(_, crossings)| crossings).unwrap_or_default()
    }

    /// When its first packet entered.
    pub(super) fn first_us(&self, tcp: bool, client: SocketAddrV4) -> Option<u64> {
        self.watched.get(&(tcp, client))?.1.first().map(|first| first.entered_us)
    }

    /// Notes a packet that enters; where, if its exchange is watched.
    pub(super) fn note_entered(&mut self, now_us: u64, way: Way, bytes: &[u8]) -> Option<Noted> {
        self.totals.entered.add(way, 1);
        self.totals.entered_bytes.add(way, bytes.len() as u64);
        let packet = Packet::parse(bytes)?;
        let client = if way == Way::Up { packet.from } else { packet.to };
        let name = (matches!(packet.body, Body::Tcp { .. }), client);
        let (watch, crossings) = self.watched.get_mut(&name)?;
        let (entered_us, bytes) = (now_us, bytes.to_vec());
        crossings.push(Crossing { way, entered_us, delivered_us: None, bytes });
        Some(Noted { name, watch: *watch, place: crossings.len() - 1 })
    }

    /// Notes that a packet is handed on. Of several copies the first counts.
    pub(super) fn note_delivered(
        &mut self,
        now_us: u64,
        way: Way,
        len: usize,
        noted: Option<Noted>,
    ) {
        self.totals.delivered.add(way, 1);
        self.totals.delivered_bytes.add(way, len as u64);
        let Some(Noted { name, watch, place }) = noted else { return };
        if let Some((of, crossings)) = self.watched.get_mut(&name)
            && *of == watch
            && let Some(crossing) = crossings.get_mut(place)
        {
            crossing.delivered_us.get_or_insert(now_us);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::super::packet::make;
    use super::*;

    const CLIENT: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), 1000);
    const SERVER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 2), 2000);

    #[test]
    fn watched_exchanges_are_kept_and_everything_is_summed() {
        let mut capture = Capture::default();
        let (up, down) = (make::udp(CLIENT, SERVER, b"abc"), make::udp(SERVER, CLIENT, b"d"));
        assert_eq!(capture.note_entered(1, Way::Up, &up), None, "nobody watches yet");
        capture.watch(false, CLIENT);
        capture.watch(true, CLIENT);
        let first = capture.note_entered(2, Way::Up, &up);
        let second = capture.note_entered(3, Way::Down, &down);
        capture.note_delivered(5, Way::Down, down.len(), second);
        capture.note_delivered(6, Way::Down, down.len(), second);
        assert_eq!(capture.take(true, CLIENT), []);
        let crossings = capture.take(false, CLIENT);
        let seen: Vec<_> =
            crossings.iter().map(|one| (one.way, one.entered_us, one.delivered_us)).collect();
        assert_eq!(seen, [(Way::Up, 2, None), (Way::Down, 3, Some(5))]);
        assert_eq!(crossings[1].bytes, down);
        // What comes late for an exchange that has ended does not touch the next one of that port.
        capture.watch(false, CLIENT);
        capture.note_entered(7, Way::Up, &up);
        capture.note_delivered(8, Way::Up, up.len(), first);
        assert_eq!(capture.take(false, CLIENT)[0].delivered_us, None);
        let Totals { entered, entered_bytes, delivered, .. } = capture.totals;
        assert_eq!((entered, delivered), (Both { up: 3, down: 1 }, Both { up: 1, down: 2 }));
        assert_eq!(entered_bytes, Both { up: 3 * 31, down: 29 });
    }
}
