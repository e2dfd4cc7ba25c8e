//! Counts an exchange: packets, IP bytes, flights. The definitions stand at the top of [`crate::link`].

use crate::exchange::{Both, Way};

use super::capture::Crossing;
use super::dissect::{Dissector, Speech};

/// Who is silent for less than this, µs, does not wait for an ACK.
const PATIENCE_MIN_US: u64 = 5_000;

/// How many flights an exchange took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
pub struct Flights {
    /// Those that carry TCP's set-up.
    pub set_up: u32,
    /// Those that carry a part of the handshake above UDP or TCP.
    pub handshake: u32,
    /// All until the confirmation.
    pub all: u32,
}

/// One packet of the exchange, for a picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Which way it went.
    pub way: Way,
    /// When it was sent, µs after the exchange's first packet.
    pub sent_us: u64,
    /// When it arrived; `None` if it was lost.
    pub arrived_us: Option<u64>,
    /// Its IP bytes.
    pub bytes: usize,
    /// The number of its flight; a repetition has that of what it repeats, an ACK or a FIN has none.
    pub flight: Option<u32>,
    /// What it says.
    pub what: String,
}

/// What became of an exchange until its confirmation arrived.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Packets sent.
    pub packets: Both,
    /// Their IP bytes.
    pub ip_bytes: Both,
    /// How often someone waited for someone.
    pub flights: Flights,
    /// Two flights are one.
    pub round_trips: u32,
    /// The packets in the order in which they were sent.
    pub steps: Vec<Step>,
}

/// One side's knowledge.
#[derive(Default)]
struct Sender {
    /// Its own latest flight, and when it last said something new.
    flight: u32,
    spoke_us: Option<u64>,
    /// The other side's highest flight that it had heard of when it last said something new.
    knew: u32,
}

/// Counts everything until the last packet that told the client something new and had arrived by `until_us`,
/// on the emulator's clock: the one with the confirmation. An ACK of it is not counted.
///
/// Nothing for an exchange of which nothing arrived.
#[must_use]
pub fn judge(
    crossings: &[Crossing],
    until_us: u64,
    round_trip_us: u64,
    speech: Speech,
) -> Option<Verdict> {
    let mut dissector = Dissector::new(speech);
    let mut meanings: Vec<_> =
        crossings.iter().map(|one| dissector.read(one.way, &one.bytes)).collect();
    let confirmation = crossings
        .iter()
        .zip(&meanings)
        .enumerate()
        .filter(|(_, (one, meaning))| one.way == Way::Down && (meaning.informs || meaning.repeats))
        .filter_map(|(place, (one, _))| Some((one.delivered_us?, place)))
        .filter(|(arrived, _)| *arrived <= until_us)
        .max()?;
    let (arrived_us, place) = confirmation;
    let sent = crossings.partition_point(|one| one.entered_us < arrived_us).max(place + 1);
    let crossings = &crossings[..sent];
    meanings.truncate(sent);

    let mut flights: Vec<Option<u32>> = vec![None; sent];
    let mut senders = [Sender::default(), Sender::default()];
    let patience = round_trip_us.max(PATIENCE_MIN_US);
    for (place, crossing) in crossings.iter().enumerate() {
        if meanings[place].repeats {
            let flight = senders[usize::from(crossing.way == Way::Down)].flight;
            flights[place] = Some(flight).filter(|flight| *flight > 0);
        }
        if !meanings[place].informs {
            continue;
        }
        let before = &crossings[..place];
        let heard = heard(before, &flights, crossing.way, crossing.entered_us);
        let own = usize::from(crossing.way == Way::Down);
        let Sender { flight, spoke_us, knew } = senders[own];
        let mut number = flight.max(heard + 1);
        let silent = spoke_us.filter(|spoke| crossing.entered_us - spoke >= patience);
        if let Some(spoke) = silent.filter(|_| heard == knew) {
            // Nothing but an ACK can have been what it waited for.
            let waited = (0..place).rev().find(|earlier| {
                let one = &crossings[*earlier];
                let arrived =
                    one.delivered_us.is_some_and(|at| (spoke..=crossing.entered_us).contains(&at));
                one.way != crossing.way && meanings[*earlier].pure_ack && arrived
            });
            if let Some(ack) = waited {
                let other = &mut senders[1 - own];
                other.flight = other.flight.max(flight + 1);
                flights[ack] = Some(other.flight);
                number = other.flight + 1;
            }
        }
        flights[place] = Some(number);
        senders[own] = Sender {
            flight: number,
            spoke_us: Some(crossing.entered_us),
            knew: heard.max(number.saturating_sub(1)),
        };
    }
    Some(sum(crossings, meanings, &flights))
}

/// The highest flight of the other side of which something had arrived by then.
fn heard(before: &[Crossing], flights: &[Option<u32>], way: Way, now_us: u64) -> u32 {
    let arrived = |one: &Crossing| one.delivered_us.is_some_and(|at| at <= now_us);
    let other = before.iter().zip(flights).filter(|(one, _)| one.way != way && arrived(one));
    other.filter_map(|(_, flight)| *flight).max().unwrap_or(0)
}

fn sum(
    crossings: &[Crossing],
    meanings: Vec<super::dissect::Meaning>,
    flights: &[Option<u32>],
) -> Verdict {
    let distinct = |of: fn(&super::dissect::Meaning) -> bool| {
        let mut numbers: Vec<_> = meanings
            .iter()
            .zip(flights)
            .filter(|(meaning, _)| of(meaning))
            .filter_map(|(_, flight)| *flight)
            .collect();
        numbers.sort_unstable();
        numbers.dedup();
        u32::try_from(numbers.len()).unwrap_or(u32::MAX)
    };
    let mut verdict = Verdict {
        flights: Flights {
            set_up: distinct(|meaning| meaning.set_up),
            handshake: distinct(|meaning| meaning.handshake),
            all: flights.iter().flatten().copied().max().unwrap_or(0),
        },
        ..Verdict::default()
    };
    verdict.round_trips = verdict.flights.all.div_ceil(2);
    let began = crossings.first().map_or(0, |first| first.entered_us);
    for ((crossing, meaning), flight) in crossings.iter().zip(meanings).zip(flights) {
        let Crossing { way, entered_us, delivered_us, bytes } = crossing;
        verdict.packets.add(*way, 1);
        verdict.ip_bytes.add(*way, bytes.len() as u64);
        verdict.steps.push(Step {
            way: *way,
            sent_us: entered_us - began,
            arrived_us: delivered_us.map(|at| at - began),
            bytes: bytes.len(),
            flight: *flight,
            what: meaning.what,
        });
    }
    verdict
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddrV4};

    use duet_protocol::wire::Kind;

    use super::super::packet::{ACK, SYN, make};
    use super::*;

    const A: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), 1000);
    const B: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 2), 2000);
    const ONE_WAY: u64 = 50_000;

    /// A packet sent at `ms`, one way of 50 ms.
    fn at(ms: u64, way: Way, bytes: Vec<u8>) -> Crossing {
        let entered_us = ms * 1_000;
        Crossing { way, entered_us, delivered_us: Some(entered_us + ONE_WAY), bytes }
    }

    fn datagram(ms: u64, way: Way, kind: Kind, tail: u8) -> Crossing {
        let (from, to) = if way == Way::Up { (A, B) } else { (B, A) };
        at(ms, way, make::udp(from, to, &[kind.byte(), tail]))
    }

    fn segment(ms: u64, way: Way, sequence: u32, flags: u8, payload: &[u8]) -> Crossing {
        let (from, to) = if way == Way::Up { (A, B) } else { (B, A) };
        at(ms, way, make::tcp(from, to, sequence, flags, payload))
    }

    fn counted(crossings: &[Crossing]) -> Verdict {
        judge(crossings, u64::MAX, 2 * ONE_WAY, Speech::Duet).unwrap()
    }

    #[test]
    fn two_messages_and_a_reading_are_four_flights() {
        let verdict = counted(&[
            datagram(0, Way::Up, Kind::Hello, 1),
            datagram(50, Way::Down, Kind::Accept, 1),
            datagram(100, Way::Up, Kind::Up, 1),
            datagram(150, Way::Down, Kind::Down, 1),
            datagram(201, Way::Up, Kind::Up, 2),
        ]);
        assert_eq!(verdict.flights, Flights { set_up: 0, handshake: 2, all: 4 });
        assert_eq!(verdict.round_trips, 2);
        assert_eq!(verdict.packets, Both { up: 2, down: 2 }, "what follows is not counted");
        assert_eq!(verdict.ip_bytes, Both { up: 60, down: 60 });
        let last = verdict.steps.last().unwrap();
        assert_eq!((last.sent_us, last.arrived_us), (150_000, Some(200_000)));
    }

    #[test]
    fn repetitions_and_crossing_packets_make_no_flight() {
        let mut lost = datagram(1, Way::Up, Kind::Hello, 1);
        lost.delivered_us = None;
        let verdict = counted(&[
            lost,
            datagram(1_001, Way::Up, Kind::Hello, 1),
            datagram(1_051, Way::Down, Kind::Accept, 1),
            datagram(1_101, Way::Up, Kind::Up, 1),
            // A second reading before anything came back, a command that crosses it.
            datagram(1_120, Way::Up, Kind::Up, 2),
            datagram(1_125, Way::Down, Kind::Accept, 2),
            datagram(1_152, Way::Down, Kind::Down, 1),
        ]);
        assert_eq!(verdict.flights.all, 4);
        assert_eq!(verdict.packets, Both { up: 4, down: 3 }, "but they were sent");
        let numbers: Vec<_> = verdict.steps.iter().map(|step| step.flight).collect();
        let expected = [Some(1), Some(1), Some(2), Some(3), Some(3), Some(2), Some(4)];
        assert_eq!(numbers, expected);
        assert_eq!(verdict.steps[0].arrived_us, None);
    }

    #[test]
    fn the_set_up_of_tcp_is_two_flights_and_its_last_ack_none() {
        let hello = [0, 2, Kind::Hello.byte(), 1];
        let accept = [0, 2, Kind::Accept.byte(), 1];
        let (reading, ack) = ([0, 2, Kind::Up.byte(), 1], [0, 2, Kind::Down.byte(), 1]);
        let verdict = counted(&[
            segment(0, Way::Up, 0, SYN, b""),
            segment(50, Way::Down, 0, SYN | ACK, b""),
            segment(100, Way::Up, 1, ACK, b""),
            segment(100, Way::Up, 1, ACK, &hello),
            segment(150, Way::Down, 1, ACK, b""),
            segment(151, Way::Down, 1, ACK, &accept),
            segment(202, Way::Up, 5, ACK, &reading),
            segment(253, Way::Down, 5, ACK, &ack),
            segment(303, Way::Up, 9, ACK, b""),
        ]);
        assert_eq!(verdict.flights, Flights { set_up: 2, handshake: 2, all: 6 });
        assert_eq!((verdict.round_trips, verdict.packets), (3, Both { up: 4, down: 4 }));
    }

    #[test]
    fn an_ack_that_is_waited_for_is_a_flight() {
        let hello = [0, 2, Kind::Hello.byte(), 1];
        let start = [
            segment(0, Way::Up, 0, SYN, b""),
            segment(50, Way::Down, 0, SYN | ACK, b""),
            segment(100, Way::Up, 1, ACK, &hello[..2]),
            segment(150, Way::Down, 1, ACK, b""),
        ];
        let answer = |ms| segment(ms, Way::Down, 1, ACK, &[0, 2, Kind::Accept.byte(), 1]);
        // The second half of the message goes when the first is acknowledged …
        let waited =
            [&start[..], &[segment(200, Way::Up, 3, ACK, &hello[2..]), answer(250)]].concat();
        assert_eq!(counted(&waited).flights.all, 6);
        assert_eq!(counted(&waited).steps[3].flight, Some(4));
        // … or at once, and the ACK is only a packet.
        let mut at_once = start.to_vec();
        at_once.insert(3, segment(101, Way::Up, 3, ACK, &hello[2..]));
        at_once.push(answer(152));
        assert_eq!(counted(&at_once).flights.all, 4);
    }

    #[test]
    fn without_an_answer_there_is_nothing_to_count() {
        assert_eq!(judge(&[], 0, 0, Speech::Duet), None);
        let hello = [datagram(0, Way::Up, Kind::Hello, 1)];
        assert_eq!(judge(&hello, u64::MAX, 0, Speech::Duet), None);
    }
}
