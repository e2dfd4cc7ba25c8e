//! What an IPv4 packet says about itself: addresses, ports, TCP's flags and numbers, payload.

use std::net::{Ipv4Addr, SocketAddrV4};

/// TCP's flag FIN.
pub(super) const FIN: u8 = 0x01;
/// TCP's flag SYN.
pub(super) const SYN: u8 = 0x02;
/// TCP's flag RST.
pub(super) const RST: u8 = 0x04;
/// TCP's flag ACK.
pub(super) const ACK: u8 = 0x10;

/// A whole packet, taken apart; lengths are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Packet<'a> {
    pub(super) from: SocketAddrV4,
    pub(super) to: SocketAddrV4,
    pub(super) body: Body<'a>,
}

/// What the packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Body<'a> {
    Udp { payload: &'a [u8] },
    Tcp { sequence: u32, flags: u8, payload: &'a [u8] },
}

impl Packet<'_> {
    /// The addresses of any IPv4 packet.
    pub(super) fn addresses(bytes: &[u8]) -> Option<(Ipv4Addr, Ipv4Addr)> {
        let header = bytes.first_chunk::<20>().filter(|header| header[0] >> 4 == 4)?;
        let address = |at: usize| Ipv4Addr::from(u32_at(header, at).unwrap_or_default());
        Some((address(12), address(16)))
    }
}

impl<'a> Packet<'a> {
    /// Nothing for what is neither UDP nor TCP, is a fragment, or is cut.
    pub(super) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (source, destination) = Packet::addresses(bytes)?;
        let header_len = usize::from(bytes[0] & 0xf) * 4;
        let total = usize::from(u16_at(bytes, 2)?);
        if u16_at(bytes, 6)? & 0x3fff != 0 {
            return None;
        }
        let inner = bytes.get(..total)?.get(header_len..)?;
        let body = match bytes[9] {
            17 => {
                let len = usize::from(u16_at(inner, 4)?);
                Body::Udp { payload: inner.get(8..len)? }
            }
            6 => {
                let offset = usize::from(inner.get(12)? >> 4) * 4;
                let payload = inner.get(offset.max(20)..)?;
                Body::Tcp { sequence: u32_at(inner, 4)?, flags: *inner.get(13)?, payload }
            }
            _ => return None,
        };
        let from = SocketAddrV4::new(source, u16_at(inner, 0)?);
        Some(Self { from, to: SocketAddrV4::new(destination, u16_at(inner, 2)?), body })
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Packets for tests, without checksums.
#[cfg(test)]
pub(super) mod make {
    use super::*;

    fn packet(protocol: u8, from: SocketAddrV4, to: SocketAddrV4, rest: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 20];
        bytes[0] = 0x45;
        let total = u16::try_from(24 + rest.len()).unwrap();
        bytes[2..4].copy_from_slice(&total.to_be_bytes());
        bytes[9] = protocol;
        bytes[12..16].copy_from_slice(&from.ip().octets());
        bytes[16..20].copy_from_slice(&to.ip().octets());
        bytes.extend(from.port().to_be_bytes());
        bytes.extend(to.port().to_be_bytes());
        bytes.extend(rest);
        bytes
    }

    pub(in super::super) fn udp(from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
        let len = u16::try_from(8 + payload.len()).unwrap().to_be_bytes();
        packet(17, from, to, &[&len, &[0, 0], payload].concat())
    }

    pub(in super::super) fn tcp(
        from: SocketAddrV4,
        to: SocketAddrV4,
        sequence: u32,
        flags: u8,
        payload: &[u8],
    ) -> Vec<u8> {
        let head = [0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0];
        packet(6, from, to, &[&sequence.to_be_bytes(), &head[..], payload].concat())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), 1000);
    const B: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 2), 2000);

    #[test]
    fn what_was_made_is_read() {
        let bytes = make::udp(A, B, b"text");
        let packet = Packet::parse(&bytes).unwrap();
        assert_eq!(packet, Packet { from: A, to: B, body: Body::Udp { payload: b"text" } });
        let bytes = make::tcp(B, A, 7, SYN | ACK, b"");
        let body = Body::Tcp { sequence: 7, flags: SYN | ACK, payload: b"" };
        assert_eq!(Packet::parse(&bytes).unwrap(), Packet { from: B, to: A, body });
    }

    #[test]
    fn what_is_cut_or_strange_is_nothing() {
        for whole in [make::udp(A, B, b"text"), make::tcp(A, B, 1, ACK, b"text")] {
            for len in 0..whole.len() {
                assert_eq!(Packet::parse(&whole[..len]), None, "{len}");
            }
            for (at, value) in [(0, 0x60), (9, 1), (6, 0x20), (0, 0x4f)] {
                let mut bytes = whole.clone();
                bytes[at] = value;
                assert_eq!(Packet::parse(&bytes), None, "byte {at}");
            }
        }
    }
}
