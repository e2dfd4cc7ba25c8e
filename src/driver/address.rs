//! Socket addresses as the kernel writes them. Pure bytes, no system calls.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::local::{LocalAddress, SentControl};

const INET: u16 = 2;
const INET6: u16 = 10;
const _: () = assert!(libc::AF_INET == 2 && libc::AF_INET6 == 10);

/// The largest encoding, a `sockaddr_in6`.
const CAPACITY: usize = 28;

/// Where a datagram goes and from which address it leaves, in the kernel's own form.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    pub(super) name: EncodedAddress,
    pub(super) control: SentControl,
}

impl Route {
    /// From `from`, or from the address that the kernel prefers, to `to`, through a socket that is IPv6 if `on_v6`. `None`
    /// for an IPv6 address on an IPv4 socket, which cannot reach it.
    pub fn new(to: SocketAddr, from: Option<LocalAddress>, on_v6: bool) -> Option<Self> {
        let name = EncodedAddress::new(to, on_v6)?;
        Some(Self { name, control: SentControl::new(from, on_v6) })
    }

    /// To whom the socket is connected.
    #[cfg(test)]
    pub(super) fn connected() -> Self {
        let name = EncodedAddress { bytes: [0; CAPACITY], len: 0 };
        Self { name, control: SentControl::new(None, true) }
    }
}

/// An encoded socket address.
#[derive(Clone, Copy, Debug)]
pub(super) struct EncodedAddress {
    pub(super) bytes: [u8; CAPACITY],
    pub(super) len: usize,
}

impl EncodedAddress {
    /// Encodes `address` for a socket that is IPv6 if `on_v6`: an IPv4 address is then mapped.
    pub(super) fn new(address: SocketAddr, on_v6: bool) -> Option<Self> {
        let mut bytes = [0; CAPACITY];
        bytes[2..4].copy_from_slice(&address.port().to_be_bytes());
        let ip = match address.ip() {
            IpAddr::V4(v4) if !on_v6 => {
                bytes[..2].copy_from_slice(&INET.to_ne_bytes());
                bytes[4..8].copy_from_slice(&v4.octets());
                return Some(Self { bytes, len: 16 });
            }
            IpAddr::V6(_) if !on_v6 => return None,
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        bytes[..2].copy_from_slice(&INET6.to_ne_bytes());
        bytes[8..24].copy_from_slice(&ip.octets());
        if let SocketAddr::V6(v6) = address {
            bytes[24..28].copy_from_slice(&v6.scope_id().to_ne_bytes());
        }
        Some(Self { bytes, len: CAPACITY })
    }

    /// The bytes.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Decodes what the kernel wrote; a mapped IPv4 address comes out as IPv4.
pub(super) fn decode(bytes: &[u8]) -> Option<SocketAddr> {
    let field = |at: usize| bytes.get(at..at + 4)?.try_into().ok();
    let family = u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?);
    let port = u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?);
    match family {
        INET => Some(SocketAddr::new(Ipv4Addr::from(field(4)?).into(), port)),
        INET6 => {
            let octets: [u8; 16] = bytes.get(8..24)?.try_into().ok()?;
            let ip = Ipv6Addr::from(octets);
            let scope = u32::from_ne_bytes(field(24)?);
            Some(match ip.to_ipv4_mapped() {
                Some(v4) => SocketAddr::new(v4.into(), port),
                None => std::net::SocketAddrV6::new(ip, port, 0, scope).into(),
            })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_round_trip() {
        for (text, on_v6) in [
            ("127.0.0.1:5683", false),
            ("127.0.0.1:5683", true),
            ("[::1]:9", true),
            ("[fe80::1%3]:65535", true),
        ] {
            let address: SocketAddr = text.parse().unwrap();
            let encoded = EncodedAddress::new(address, on_v6).unwrap();
            assert_eq!(decode(encoded.bytes()), Some(address), "{text}");
        }
        assert!(EncodedAddress::new("[::1]:9".parse().unwrap(), false).is_none());
    }

    #[test]
    fn nonsense_decodes_to_nothing() {
        assert_eq!(decode(&[]), None);
        assert_eq!(decode(&[2, 0, 0]), None);
        assert_eq!(decode(&[0; 28]), None);
        assert_eq!(decode(&INET6.to_ne_bytes()), None);
    }
}
