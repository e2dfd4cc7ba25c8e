//! Which of this machine's addresses a datagram was sent to, and from which one its answer leaves: the control messages
//! `IP_PKTINFO` and `IPV6_PKTINFO` as the kernel writes and reads them. Pure bytes, no system calls.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Bytes of a `struct cmsghdr`: the length of the whole message, then level and type.
const HEADER_LEN: usize = size_of::<libc::cmsghdr>();

/// Control messages begin at multiples of this.
const ALIGNMENT: usize = size_of::<usize>();

/// `struct in_pktinfo`: the interface, the address that may answer, the address in the datagram.
const INFO_V4: usize = 12;

/// `struct in6_pktinfo`: the address, the interface.
const INFO_V6: usize = 20;

/// Room for what comes with a datagram: on an IPv6 socket both messages, if the datagram is an IPv4 one.
pub(super) const RECEIVED_CAPACITY: usize = space(INFO_V4) + space(INFO_V6);

/// Room for what goes with a datagram.
const SENT_CAPACITY: usize = space(INFO_V6);

const _: () = assert!(size_of::<libc::in_pktinfo>() == INFO_V4);
const _: () = assert!(size_of::<libc::in6_pktinfo>() == INFO_V6);

/// The bytes that a message takes whose content has `len`.
const fn space(len: usize) -> usize {
    HEADER_LEN + len.next_multiple_of(ALIGNMENT)
}

/// One address of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LocalAddress {
    /// An IPv4 address is mapped.
    ip: Ipv6Addr,
    /// The interface, where the address means nothing without it (link-local), or 0.
    interface: u32,
}

impl LocalAddress {
    fn v4(ip: Ipv4Addr) -> Option<Self> {
        let usable = !ip.is_unspecified() && !ip.is_multicast() && !ip.is_broadcast();
        usable.then(|| Self { ip: ip.to_ipv6_mapped(), interface: 0 })
    }

    fn v6(ip: Ipv6Addr, interface: u32) -> Option<Self> {
        if let Some(v4) = ip.to_ipv4_mapped() {
            return Self::v4(v4);
        }
        let interface = if ip.is_unicast_link_local() { interface } else { 0 };
        (!ip.is_unspecified() && !ip.is_multicast()).then_some(Self { ip, interface })
    }

    /// An address as it was written down, without an interface. `None` for one that cannot answer.
    #[must_use]
    pub fn from_ip(ip: IpAddr) -> Option<Self> {
        match ip {
            IpAddr::V4(ip) => Self::v4(ip),
            IpAddr::V6(ip) => Self::v6(ip, 0),
        }
    }

    /// The IPv6 or mapped IPv4 address, and the interface where it matters.
    #[must_use]
    pub fn parts(self) -> (Ipv6Addr, u32) {
        (self.ip, self.interface)
    }

    /// The address of which these are the [parts](Self::parts). `None` for one that cannot answer.
    #[must_use]
    pub fn from_parts((ip, interface): (Ipv6Addr, u32)) -> Option<Self> {
        Self::v6(ip, interface)
    }

    /// The address.
    #[must_use]
    pub fn ip(self) -> IpAddr {
        self.ip.to_canonical()
    }

    /// Reads it from the control messages of a received datagram. `None` if they do not name one that can answer.
    pub(super) fn received(mut control: &[u8]) -> Option<Self> {
        let mut found = None;
        while let Some((level, kind, info)) = next_message(&mut control) {
            let word = |at: usize| info.get(at..at + 4).and_then(|word| word.try_into().ok());
            match (level, kind) {
                // Said of IPv4 alone, and of a broadcast it names who may answer: it counts more.
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    return Self::v4(Ipv4Addr::from(word(4)?));
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let ip: [u8; 16] = info.get(..16)?.try_into().ok()?;
                    found = Self::v6(ip.into(), u32::from_ne_bytes(word(16)?));
                }
                _ => (),
            }
        }
        found
    }
}

/// Takes the first message from `control`: its level, its type, its content. `None` at the end, or where it makes no sense.
fn next_message<'a>(control: &mut &'a [u8]) -> Option<(libc::c_int, libc::c_int, &'a [u8])> {
    let (len, rest) = control.split_first_chunk()?;
    let (level, rest) = rest.split_first_chunk()?;
    let (kind, _) = rest.split_first_chunk()?;
    let len = usize::from_ne_bytes(*len);
    let info = control.get(HEADER_LEN..len)?;
    *control = control.get(len.checked_next_multiple_of(ALIGNMENT)?..).unwrap_or_default();
    Some((i32::from_ne_bytes(*level), i32::from_ne_bytes(*kind), info))
}

/// The control message that makes a datagram leave from one address; empty where the kernel chooses.
#[derive(Clone, Copy, Debug)]
pub(super) struct SentControl {
    pub(super) bytes: [u8; SENT_CAPACITY],
    pub(super) len: usize,
}

impl SentControl {
    /// For a socket that is IPv6 if `on_v6`. An IPv6 address on an IPv4 socket leaves the choice to the kernel.
    pub(super) fn new(from: Option<LocalAddress>, on_v6: bool) -> Self {
        let mut control = Self { bytes: [0; SENT_CAPACITY], len: 0 };
        match from {
            Some(LocalAddress { ip, interface }) if on_v6 => {
                let mut info = [0; INFO_V6];
                info[..16].copy_from_slice(&ip.octets());
                info[16..].copy_from_slice(&interface.to_ne_bytes());
                control.put(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
            }
            Some(LocalAddress { ip, .. }) => {
                if let Some(v4) = ip.to_ipv4_mapped() {
                    let mut info = [0; INFO_V4];
                    info[4..8].copy_from_slice(&v4.octets());
                    control.put(libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
                }
            }
            None => (),
        }
        control
    }

    fn put(&mut self, level: libc::c_int, kind: libc::c_int, info: &[u8]) {
        let len = HEADER_LEN + info.len();
        self.bytes[..size_of::<usize>()].copy_from_slice(&len.to_ne_bytes());
        self.bytes[HEADER_LEN - 8..HEADER_LEN - 4].copy_from_slice(&level.to_ne_bytes());
        self.bytes[HEADER_LEN - 4..HEADER_LEN].copy_from_slice(&kind.to_ne_bytes());
        self.bytes[HEADER_LEN..len].copy_from_slice(info);
        self.len = space(info.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str, interface: u32) -> Option<LocalAddress> {
        LocalAddress::v6(text.parse().unwrap(), interface)
    }

    #[test]
    fn what_is_sent_is_what_would_be_received() {
        for text in ["::1", "2001:db8::7", "fe80::2", "::ffff:192.0.2.9"] {
            let local = address(text, 3);
            assert!(local.is_some(), "{text}");
            let control = SentControl::new(local, true);
            assert_eq!(LocalAddress::received(&control.bytes[..control.len]), local, "{text}");
        }
        let v4 = address("::ffff:192.0.2.9", 3);
        let control = SentControl::new(v4, false);
        assert_eq!(control.len, space(INFO_V4));
        assert_eq!(LocalAddress::received(&control.bytes[..control.len]), v4);
        assert_eq!(v4.unwrap().ip().to_string(), "192.0.2.9");
        assert_eq!(SentControl::new(None, true).len, 0);
        assert_eq!(SentControl::new(address("::1", 0), false).len, 0);
    }

    #[test]
    fn an_interface_is_kept_only_where_it_matters() {
        assert_eq!(address("fe80::2", 3).unwrap().interface, 3);
        assert_eq!(address("2001:db8::7", 3).unwrap().interface, 0);
        for text in ["fe80::2", "::ffff:192.0.2.9"] {
            let local = address(text, 3);
            assert_eq!(LocalAddress::from_parts(local.unwrap().parts()), local);
        }
    }

    #[test]
    fn addresses_that_cannot_answer_are_none() {
        for text in
            ["::", "ff02::1", "::ffff:0.0.0.0", "::ffff:224.0.0.1", "::ffff:255.255.255.255"]
        {
            assert_eq!(address(text, 1), None, "{text}");
        }
    }

    /// On an IPv6 socket an IPv4 broadcast comes with both: the group's address, and the one that may answer.
    #[test]
    fn of_two_messages_the_one_that_names_who_answers_counts() {
        let broadcast = SentControl::new(address("::ffff:192.0.2.255", 0), true);
        let own = address("::ffff:192.0.2.9", 0);
        let answering = SentControl::new(own, false);
        let both = [&broadcast.bytes[..broadcast.len], &answering.bytes[..answering.len]];
        for order in [both.concat(), [both[1], both[0]].concat()] {
            assert_eq!(LocalAddress::received(&order), own);
            assert!(order.len() <= RECEIVED_CAPACITY);
        }
    }

    #[test]
    fn nonsense_is_none() {
        let control = SentControl::new(address("::1", 0), true);
        for end in 0..HEADER_LEN + INFO_V6 {
            assert_eq!(LocalAddress::received(&control.bytes[..end]), None, "{end}");
        }
        for len in [0, 1, HEADER_LEN - 1, HEADER_LEN, 1 << 40, usize::MAX] {
            let mut bytes = control.bytes;
            bytes[..size_of::<usize>()].copy_from_slice(&len.to_ne_bytes());
            assert_eq!(LocalAddress::received(&bytes), None, "{len}");
        }
    }
}
