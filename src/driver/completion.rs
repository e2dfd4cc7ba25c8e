//! What a driver gives back: completions, and the shape of a received datagram's buffer.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use super::buffers::Lease;
use super::local::LocalAddress;
use super::{address, local};

/// Bytes kept for a datagram's source, a `sockaddr_in6`, so that what follows is aligned.
pub(super) const NAME_LEN: usize = 32;

/// Bytes kept for what the kernel says beside it.
pub(super) const CONTROL_LEN: usize = local::RECEIVED_CAPACITY;

/// `struct io_uring_recvmsg_out`: namelen, controllen, payloadlen, flags.
const HEADER_LEN: usize = 16;

/// Bytes in front of a datagram's payload in its buffer.
pub const DATAGRAM_HEADER_LEN: usize = HEADER_LEN + NAME_LEN + CONTROL_LEN;

/// What a completion gives back to its reader.
#[derive(Debug)]
pub enum Payload {
    /// Nothing.
    None,
    /// A received buffer, to be returned with [`Driver::give_back`](super::Driver::give_back).
    Received(Lease),
    /// The vector that a stream send borrowed.
    Sent(Vec<u8>),
    /// A datagram send is over; its slot is back in the slab.
    SentDatagram,
    /// A new stream.
    Accepted(OwnedFd),
}

/// One completion.
#[derive(Debug)]
pub struct Completion {
    /// The operation's tag (for datagram sends: the slot's index).
    pub tag: u64,
    /// Bytes or a descriptor, or a negated errno.
    pub result: i32,
    /// Whether the operation goes on. If not, nothing of it is in flight any more.
    pub more: bool,
    /// Memory that comes back with it.
    pub payload: Payload,
}

/// A received datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram<'a> {
    /// Who sent it.
    pub peer: SocketAddr,
    /// To which address of this machine, if the socket tells.
    pub local: Option<LocalAddress>,
    /// What it carries.
    pub bytes: &'a [u8],
    /// Whether the kernel had to cut it.
    pub cut: bool,
}

/// The datagram in a buffer; `None` if the buffer makes no sense.
pub fn received_datagram(buffer: &[u8]) -> Option<Datagram<'_>> {
    let (header, rest) = buffer.split_at_checked(HEADER_LEN)?;
    let word = |at: usize| header[at..at + 4].try_into().map(u32::from_ne_bytes).unwrap_or(0);
    let (name, rest) = rest.split_at_checked(NAME_LEN)?;
    let (control, bytes) = rest.split_at_checked(CONTROL_LEN)?;
    let peer = address::decode(name.get(..usize::try_from(word(0)).ok()?)?)?;
    let control = control.get(..usize::try_from(word(4)).ok()?)?;
    let cut = word(12) & libc::MSG_TRUNC.cast_unsigned() != 0;
    Some(Datagram { peer, local: LocalAddress::received(control), bytes, cut })
}

/// The header that [`received_datagram`] expects, as the kernel's ring writes it.
pub(super) fn datagram_header(
    name_len: u32,
    control_len: usize,
    payload_len: u32,
    flags: u32,
) -> [u8; HEADER_LEN] {
    let control_len = u32::try_from(control_len).unwrap_or(0);
    let mut header = [0; HEADER_LEN];
    let words = [name_len, control_len, payload_len, flags];
    for (place, word) in header.chunks_exact_mut(4).zip(words) {
        place.copy_from_slice(&word.to_ne_bytes());
    }
    header
}

#[cfg(test)]
mod tests {
    use super::super::address::EncodedAddress;
    use super::super::local::SentControl;
    use super::*;

    #[test]
    fn a_header_comes_back_whole() {
        let peer: SocketAddr = "192.0.2.7:99".parse().unwrap();
        let encoded = EncodedAddress::new(peer, false).unwrap();
        let name_len = u32::try_from(encoded.bytes().len()).unwrap();
        let mut control = [0; CONTROL_LEN];
        let to = SentControl::new(LocalAddress::received(&[]), true);
        control[..to.len].copy_from_slice(&to.bytes[..to.len]);
        for (flags, cut) in [(0, false), (libc::MSG_TRUNC.cast_unsigned(), true)] {
            let mut buffer = datagram_header(name_len, to.len, 3, flags).to_vec();
            buffer.extend_from_slice(encoded.bytes());
            buffer.resize(HEADER_LEN + NAME_LEN, 0);
            buffer.extend_from_slice(&control);
            for bytes in [&[][..], &[1, 2, 3]] {
                buffer.truncate(DATAGRAM_HEADER_LEN);
                buffer.extend_from_slice(bytes);
                let expected = Datagram { peer, local: None, bytes, cut };
                assert_eq!(received_datagram(&buffer), Some(expected));
            }
        }
        assert_eq!(received_datagram(&[0; DATAGRAM_HEADER_LEN - 1]), None);
    }

    #[test]
    fn lengths_beyond_their_fields_are_nonsense() {
        let peer = EncodedAddress::new("192.0.2.7:99".parse().unwrap(), false).unwrap();
        for (name_len, control_len) in [(NAME_LEN + 1, 0), (16, CONTROL_LEN + 1)] {
            let name_len = u32::try_from(name_len).unwrap();
            let mut buffer = datagram_header(name_len, control_len, 0, 0).to_vec();
            buffer.extend_from_slice(peer.bytes());
            buffer.resize(DATAGRAM_HEADER_LEN, 0);
            assert_eq!(received_datagram(&buffer), None);
        }
    }
}
