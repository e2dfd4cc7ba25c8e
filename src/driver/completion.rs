//! What a driver gives back: completions, and the shape of a received datagram's buffer.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use super::address;
use super::buffers::Lease;

/// Bytes kept for a datagram's source: a `sockaddr_in6`.
pub(super) const NAME_LEN: u32 = 28;

/// `struct io_uring_recvmsg_out`: namelen, controllen, payloadlen, flags.
const HEADER_LEN: usize = 16;

/// Bytes in front of a datagram's payload in its buffer.
pub const DATAGRAM_HEADER_LEN: usize = HEADER_LEN + NAME_LEN as usize;

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

/// Where a datagram came from, its bytes, and whether the kernel had to cut it; `None` if the buffer makes no sense.
pub fn received_datagram(buffer: &[u8]) -> Option<(SocketAddr, &[u8], bool)> {
    let (header, rest) = buffer.split_at_checked(HEADER_LEN)?;
    let word = |at: usize| header[at..at + 4].try_into().map(u32::from_ne_bytes).unwrap_or(0);
    let (name, payload) = rest.split_at_checked(NAME_LEN as usize)?;
    let name_len = usize::try_from(word(0)).ok()?;
    let from = address::decode(name.get(..name_len)?)?;
    let cut = word(12) & libc::MSG_TRUNC.cast_unsigned() != 0;
    Some((from, payload, cut))
}

/// The header that [`received_datagram`] expects, as the kernel's ring writes it.
pub(super) fn datagram_header(name_len: u32, payload_len: u32, flags: u32) -> [u8; HEADER_LEN] {
    let mut header = [0; HEADER_LEN];
    for (place, word) in header.chunks_exact_mut(4).zip([name_len, 0, payload_len, flags]) {
        place.copy_from_slice(&word.to_ne_bytes());
    }
    header
}

#[cfg(test)]
mod tests {
    use super::super::EncodedAddress;
    use super::*;

    #[test]
    fn a_header_comes_back_whole() {
        let from: SocketAddr = "192.0.2.7:99".parse().unwrap();
        let encoded = EncodedAddress::new(from, false).unwrap();
        let name_len = u32::try_from(encoded.bytes().len()).unwrap();
        for (flags, expected) in [(0, false), (libc::MSG_TRUNC.cast_unsigned(), true)] {
            let mut buffer = datagram_header(name_len, 3, flags).to_vec();
            buffer.extend_from_slice(encoded.bytes());
            buffer.resize(DATAGRAM_HEADER_LEN, 0);
            assert_eq!(received_datagram(&buffer), Some((from, &[][..], expected)));
            buffer.extend_from_slice(&[1, 2, 3]);
            assert_eq!(received_datagram(&buffer), Some((from, &[1, 2, 3][..], expected)));
        }
        assert_eq!(received_datagram(&[0; DATAGRAM_HEADER_LEN - 1]), None);
    }
}
