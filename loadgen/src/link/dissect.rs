//! What each packet of an exchange says, as far as it can be seen from outside: TCP's flags, and the
//! messages of Duet, TLS and DTLS.
//!
//! Of a TLS 1.3 record only the length is clear. A record is taken for the reading or the confirmation when it
//! has exactly that one's length, which no handshake message of the contenders has.

use std::collections::HashSet;

use duet_protocol::wire::Kind;

use crate::exchange::Way;

use super::packet::{ACK, Body, FIN, Packet, RST, SYN};

/// What is spoken above UDP or TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speech {
    /// Duet's messages; over TCP with a length before each.
    Duet,
    /// TLS records, and the lengths of those that carry the reading and its confirmation.
    Tls {
        /// Bytes of the reading's record, without its header.
        reading: usize,
        /// Bytes of the confirmation's record, without its header.
        confirmation: usize,
    },
    /// DTLS 1.2 records.
    Dtls,
}

/// What one packet means.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Meaning {
    /// In words.
    pub(super) what: String,
    /// Whether it tells its receiver something new.
    pub(super) informs: bool,
    /// Whether it says again what was said before.
    pub(super) repeats: bool,
    /// Whether it is nothing but an acknowledgement of TCP's.
    pub(super) pure_ack: bool,
    /// Whether it sets up TCP.
    pub(super) set_up: bool,
    /// Whether it carries a part of the handshake above UDP or TCP.
    pub(super) handshake: bool,
}

/// Reads the packets of one exchange in the order in which they were sent.
pub(super) struct Dissector {
    speech: Speech,
    ways: [Side; 2],
}

#[derive(Default)]
struct Side {
    /// TCP: the number after the highest byte so far.
    next: Option<u32>,
    /// TCP: bytes in order that are not read yet, and how many of a message that was are still to come.
    pending: Vec<u8>,
    skip: usize,
    /// TCP: something came out of order, and messages can no longer be told apart.
    broken: bool,
    /// UDP: what was sent.
    datagrams: HashSet<Vec<u8>>,
    /// TLS: what comes now is encrypted.
    encrypted: bool,
    /// TLS 1.3: an encrypted part of the handshake was sent.
    finishing: bool,
}

/// One message: its words, its whole length, whether it belongs to the handshake.
struct Message {
    what: &'static str,
    len: usize,
    handshake: bool,
}

impl Dissector {
    pub(super) fn new(speech: Speech) -> Self {
        Self { speech, ways: Default::default() }
    }

    /// The next packet sent.
    pub(super) fn read(&mut self, way: Way, bytes: &[u8]) -> Meaning {
        match Packet::parse(bytes).map(|packet| packet.body) {
            Some(Body::Udp { payload }) => self.datagram(way, payload),
            Some(Body::Tcp { sequence, flags, payload }) => {
                self.segment(way, sequence, flags, payload)
            }
            None => Meaning { what: "?".into(), ..Meaning::default() },
        }
    }

    fn datagram(&mut self, way: Way, payload: &[u8]) -> Meaning {
        let informs = self.ways[usize::from(way == Way::Down)].datagrams.insert(payload.to_vec());
        let (mut words, mut handshake, mut rest) = (Words::default(), false, payload);
        while !rest.is_empty() {
            let message = match self.speech {
                Speech::Duet => duet(rest, rest.len()),
                _ => dtls(way, rest),
            };
            let Some(message) = message else { break };
            words.add(message.what);
            handshake |= message.handshake;
            rest = rest.get(message.len..).unwrap_or_default();
        }
        if !informs {
            words.add("(again)");
        }
        let repeats = !informs;
        Meaning { what: words.join(), informs, repeats, handshake, ..Meaning::default() }
    }

    fn segment(&mut self, way: Way, sequence: u32, flags: u8, payload: &[u8]) -> Meaning {
        let side = &mut self.ways[usize::from(way == Way::Down)];
        let set_up = flags & SYN != 0;
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX) + u32::from(set_up);
        let end = sequence.wrapping_add(length);
        // Numbers wrap: what lies less than half the circle ahead is new.
        let fresh = side.next.map_or(length, |next| end.wrapping_sub(next));
        let informs = length > 0 && (1..1 << 31).contains(&fresh);
        let mut words = Words::default();
        for (flag, name) in [(SYN, "SYN"), (FIN, "FIN"), (RST, "RST")] {
            if flags & flag != 0 {
                words.add(name);
            }
        }
        if set_up && flags & ACK != 0 {
            words.add("ACK");
        }
        let pure_ack = words.0.is_empty() && payload.is_empty();
        let mut handshake = false;
        if pure_ack {
            words.add("ACK");
        } else if !payload.is_empty() && informs {
            let new = usize::try_from(fresh).unwrap_or(usize::MAX).min(payload.len());
            side.broken |= side.next.is_some_and(|next| next.wrapping_sub(sequence) > length);
            side.pending.extend_from_slice(&payload[payload.len() - new..]);
            handshake = self.messages(way, &mut words);
        }
        let side = &mut self.ways[usize::from(way == Way::Down)];
        if informs {
            side.next = Some(end);
        }
        let repeats = length > 0 && !informs;
        if repeats {
            words.add("(again)");
        }
        Meaning { what: words.join(), informs, repeats, pure_ack, set_up, handshake }
    }

    /// Reads the stream's pending bytes; whether a part of the handshake was among them.
    fn messages(&mut self, way: Way, words: &mut Words) -> bool {
        let [up, down] = &mut self.ways;
        let (side, other) = if way == Way::Up { (up, &*down) } else { (down, &*up) };
        if side.broken {
            words.add("data");
            return false;
        }
        let skipped = side.skip.min(side.pending.len());
        side.pending.drain(..skipped);
        side.skip -= skipped;
        let mut handshake = false;
        while side.skip == 0
            && let Some(message) = match self.speech {
                Speech::Duet => framed(&side.pending),
                Speech::Tls { reading, confirmation } => {
                    let expected = if way == Way::Up { reading } else { confirmation };
                    tls(way, side, other.finishing, expected, words)
                }
                Speech::Dtls => None,
            }
        {
            words.add(message.what);
            handshake |= message.handshake;
            let here = message.len.min(side.pending.len());
            side.pending.drain(..here);
            side.skip = message.len - here;
        }
        if words.0.is_empty() {
            words.add("(goes on)");
        }
        handshake
    }
}

/// Words without repetitions.
#[derive(Default)]
struct Words(Vec<&'static str>);

impl Words {
    fn add(&mut self, word: &'static str) {
        if !word.is_empty() && !self.0.contains(&word) {
            self.0.push(word);
        }
    }

    fn join(&self) -> String {
        self.0.join(", ")
    }
}

fn framed(bytes: &[u8]) -> Option<Message> {
    let (len, rest) = bytes.split_first_chunk()?;
    let len = usize::from(u16::from_be_bytes(*len));
    duet(rest, len).map(|message| Message { len: len + 2, ..message })
}

fn duet(bytes: &[u8], len: usize) -> Option<Message> {
    let (what, handshake) = match Kind::of(bytes).ok()? {
        Kind::Hello => ("HELLO", true),
        Kind::Accept => ("ACCEPT", true),
        Kind::Retry => ("RETRY", true),
        Kind::Challenge => ("CHALLENGE", true),
        Kind::Up => ("reading", false),
        Kind::Down => ("confirmation", false),
        Kind::Reset => ("RESET", false),
    };
    Some(Message { what, len, handshake })
}

fn payload_word(way: Way) -> &'static str {
    if way == Way::Up { "reading" } else { "confirmation" }
}

/// The next TLS record; a record of several handshake messages adds the words of all but the first.
fn tls(
    way: Way,
    side: &mut Side,
    other_finishing: bool,
    expected: usize,
    words: &mut Words,
) -> Option<Message> {
    let &[kind, _, _, high, low] = side.pending.first_chunk()?;
    let body = usize::from(u16::from_be_bytes([high, low]));
    let len = 5 + body;
    let (what, handshake) = match kind {
        20 => {
            side.encrypted = true;
            ("ChangeCipherSpec", true)
        }
        21 => ("alert", false),
        22 if side.encrypted => ("Finished", true),
        22 => {
            let mut rest = side.pending.get(5..len.min(side.pending.len()))?;
            while let Some(&[kind, a, b, c]) = rest.first_chunk() {
                words.add(handshake_word(kind));
                let len = usize::try_from(u32::from_be_bytes([0, a, b, c])).unwrap_or(usize::MAX);
                rest = rest.get(len.saturating_add(4)..).unwrap_or_default();
            }
            ("", true)
        }
        23 if body == expected => (payload_word(way), false),
        23 if way == Way::Down && other_finishing => ("{session ticket}", false),
        23 => {
            side.finishing = true;
            ("{rest of the handshake}", true)
        }
        _ => ("?", false),
    };
    Some(Message { what, len, handshake })
}

/// The next DTLS record (RFC 6347, section 4.1).
fn dtls(way: Way, bytes: &[u8]) -> Option<Message> {
    let head: &[u8; 13] = bytes.first_chunk()?;
    let encrypted = head[3..5] != [0, 0];
    let len = 13 + usize::from(u16::from_be_bytes([head[11], head[12]]));
    let (what, handshake) = match head[0] {
        20 => ("ChangeCipherSpec", true),
        21 => ("alert", false),
        22 if encrypted => ("Finished", true),
        22 => (handshake_word(*bytes.get(13)?), true),
        23 => (payload_word(way), false),
        _ => ("?", false),
    };
    Some(Message { what, len, handshake })
}

fn handshake_word(kind: u8) -> &'static str {
    match kind {
        0 => "HelloRequest",
        1 => "ClientHello",
        2 => "ServerHello",
        3 => "HelloVerifyRequest",
        4 => "NewSessionTicket",
        11 => "Certificate",
        12 => "ServerKeyExchange",
        13 => "CertificateRequest",
        14 => "ServerHelloDone",
        15 => "CertificateVerify",
        16 => "ClientKeyExchange",
        20 => "Finished",
        22 => "CertificateStatus",
        _ => "handshake message",
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddrV4};

    use super::super::packet::make;
    use super::*;

    const A: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), 1000);
    const B: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 2), 2000);

    #[test]
    fn duet_over_udp_and_repetitions() {
        let mut dissector = Dissector::new(Speech::Duet);
        let hello = make::udp(A, B, &[Kind::Hello.byte(), 1, 2]);
        let meaning = dissector.read(Way::Up, &hello);
        assert_eq!(
            (meaning.what.as_str(), meaning.informs, meaning.handshake),
            ("HELLO", true, true)
        );
        let meaning = dissector.read(Way::Up, &hello);
        assert_eq!((meaning.what.as_str(), meaning.informs), ("HELLO, (again)", false));
        let meaning = dissector.read(Way::Down, &make::udp(B, A, &[Kind::Down.byte(), 1]));
        assert_eq!((meaning.what.as_str(), meaning.handshake), ("confirmation", false));
    }

    #[test]
    fn a_stream_is_read_across_segments() {
        let mut dissector = Dissector::new(Speech::Duet);
        let syn = dissector.read(Way::Up, &make::tcp(A, B, 9, SYN, b""));
        assert!(syn.informs && syn.set_up && !syn.pure_ack);
        let ack = dissector.read(Way::Up, &make::tcp(A, B, 10, ACK, b""));
        assert!(!ack.informs && ack.pure_ack);
        let bytes = [0, 4, Kind::Hello.byte(), 1, 2, 3, 0, 2, Kind::Up.byte(), 1];
        let mut say = |from: usize, to: usize| {
            let sequence = 10 + u32::try_from(from).unwrap();
            dissector.read(Way::Up, &make::tcp(A, B, sequence, ACK, &bytes[from..to]))
        };
        let first = say(0, 4);
        assert_eq!((first.what.as_str(), first.informs), ("HELLO", true));
        let again = say(0, 4);
        assert_eq!((again.what.as_str(), again.informs), ("(again)", false));
        let more = say(2, 5);
        assert_eq!((more.what.as_str(), more.informs), ("(goes on)", true), "one byte is new");
        assert_eq!(say(5, 10).what, "reading");
        let fin = dissector.read(Way::Up, &make::tcp(A, B, 20, FIN | ACK, b""));
        assert_eq!((fin.what.as_str(), fin.informs, fin.pure_ack), ("FIN", false, false));
    }

    #[test]
    fn numbers_of_a_stream_wrap() {
        let mut dissector = Dissector::new(Speech::Duet);
        let start = u32::MAX - 1;
        dissector.read(Way::Up, &make::tcp(A, B, start, SYN, b""));
        let text = [0, 1, Kind::Hello.byte()];
        let meaning = dissector.read(Way::Up, &make::tcp(A, B, u32::MAX, ACK, &text));
        assert_eq!((meaning.what.as_str(), meaning.informs), ("HELLO", true));
        assert!(!dissector.read(Way::Up, &make::tcp(A, B, u32::MAX, ACK, &text)).informs);
    }

    #[test]
    fn what_came_out_of_order_is_data() {
        let mut dissector = Dissector::new(Speech::Duet);
        dissector.read(Way::Up, &make::tcp(A, B, 0, SYN, b""));
        let gap = dissector.read(Way::Up, &make::tcp(A, B, 100, ACK, &[0, 1, Kind::Hello.byte()]));
        assert_eq!((gap.what.as_str(), gap.informs), ("data", true));
    }

    #[test]
    fn tls_records_are_named() {
        let speech = Speech::Tls { reading: 7, confirmation: 5 };
        let mut dissector = Dissector::new(speech);
        let record = |kind: u8, body: &[u8]| {
            let len = u8::try_from(body.len()).unwrap();
            [&[kind, 3, 3, 0, len], body].concat()
        };
        let mut numbers = [1, 1];
        let mut say = |way: Way, bytes: &[u8]| {
            let number = &mut numbers[usize::from(way == Way::Down)];
            let meaning = dissector.read(way, &make::tcp(A, B, *number, ACK, bytes));
            *number += u32::try_from(bytes.len()).unwrap();
            (meaning.what, meaning.handshake)
        };
        let hello = record(22, &[1, 0, 0, 1, 9]);
        assert_eq!(say(Way::Up, &hello), ("ClientHello".into(), true));
        let two = [record(22, &[2, 0, 0, 1, 9, 11, 0, 0, 0]), record(20, &[1])].concat();
        let words = "ServerHello, Certificate, ChangeCipherSpec";
        assert_eq!(say(Way::Down, &two), (words.into(), true));
        assert_eq!(say(Way::Down, &record(22, &[9; 9])), ("Finished".into(), true));
        assert_eq!(say(Way::Down, &record(23, &[9; 9])), ("{rest of the handshake}".into(), true));
        let both = [record(23, &[9; 20]), record(23, &[9; 7])].concat();
        assert_eq!(say(Way::Up, &both), ("{rest of the handshake}, reading".into(), true));
        assert_eq!(say(Way::Down, &record(23, &[9; 9])), ("{session ticket}".into(), false));
        assert_eq!(say(Way::Down, &record(23, &[9; 5])), ("confirmation".into(), false));
    }

    #[test]
    fn dtls_records_are_named() {
        let mut dissector = Dissector::new(Speech::Dtls);
        let record = |kind: u8, epoch: u8, body: &[u8]| {
            let len = u8::try_from(body.len()).unwrap();
            [&[kind, 254, 253, 0, epoch, 0, 0, 0, 0, 0, 0, 0, len], body].concat()
        };
        let flight =
            [record(22, 0, &[16, 0]), record(20, 0, &[1]), record(22, 1, &[5; 9])].concat();
        let meaning = dissector.read(Way::Up, &make::udp(A, B, &flight));
        assert_eq!(meaning.what, "ClientKeyExchange, ChangeCipherSpec, Finished");
        let meaning = dissector.read(Way::Up, &make::udp(A, B, &record(23, 1, &[5; 9])));
        assert_eq!((meaning.what.as_str(), meaning.handshake), ("reading", false));
    }
}
