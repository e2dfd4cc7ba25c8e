//! The contract by which a shard is driven, and the types that cross it.
//!
//! Whoever drives a shard (the transport, a simulator, a fuzzer) depends on this module, and it on nobody.
//!
//! # A turn
//!
//! ```text
//! input → handle_datagram, handle_message, handle_stream_…, handle_mail, as often as there is some
//!       → handle_turn, once: batches run here
//!       → poll_transmit until None, then poll_close until None
//! wait  → for input, but not beyond poll_timeout
//! ```

use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};

/// The longest message in either direction, datagram or stream, bytes.
pub const MESSAGE_MAX: usize = 1_500;

/// Where a message has its slot, which names the owning shard.
const SLOT_AT: usize = 1;

/// The time of a turn. All shards share both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// `CLOCK_MONOTONIC`, µs.
    pub mono_us: u64,
    /// Wall clock since 1970, ms.
    pub unix_ms: u64,
}

/// One stream of one shard, numbered by whoever drives it. A number must never be reused while anyone may hold it: a
/// late use then finds nothing instead of a stranger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub u64);

/// Which of its own addresses a gateway answers from: a number given by whoever drives the shard. 0, the default, leaves the
/// choice to the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Via(pub u16);

/// The other end of a datagram, and the gateway's address that it speaks with. A device hears only the address that it asked:
/// its firewall, or the NAT before it, drops what comes from any other.
///
/// Each session keeps one, so it is smaller than a `SocketAddr`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// An IPv4 address is mapped.
    ip: Ipv6Addr,
    /// The interface, where the address means nothing without it (link-local).
    scope: u32,
    port: u16,
    via: Via,
}

impl Peer {
    /// Who sent from `address` to the address of ours that `via` names.
    #[must_use]
    #[inline]
    pub fn new(address: SocketAddr, via: Via) -> Self {
        let (ip, scope) = match address {
            SocketAddr::V4(v4) => (v4.ip().to_ipv6_mapped(), 0),
            SocketAddr::V6(v6) => (*v6.ip(), v6.scope_id()),
        };
        Self { ip, scope, port: address.port(), via }
    }

    /// Its address.
    #[must_use]
    #[inline]
    pub fn address(self) -> SocketAddr {
        match self.ip.to_ipv4_mapped() {
            Some(v4) => SocketAddr::new(v4.into(), self.port),
            None => SocketAddrV6::new(self.ip, self.port, 0, self.scope).into(),
        }
    }

    /// The address of ours that it speaks with.
    #[must_use]
    #[inline]
    pub fn via(self) -> Via {
        self.via
    }
}

impl From<SocketAddr> for Peer {
    fn from(address: SocketAddr) -> Self {
        Self::new(address, Via::default())
    }
}

/// Where a message came from, or goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// A datagram from or to this peer.
    Datagram(Peer),
    /// A message on this stream.
    Stream(StreamId),
}

impl Path {
    /// Whether both lead to the same receiver. From which of our addresses a message leaves makes no difference to that.
    #[must_use]
    #[inline]
    pub fn reaches_the_same(self, other: Self) -> bool {
        match (self, other) {
            (Self::Datagram(one), Self::Datagram(other)) => Peer { via: other.via, ..one } == other,
            (one, other) => one == other,
        }
    }
}

/// A message that [`Handler::poll_transmit`] wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// Its destination.
    pub to: Path,
    /// Its length in bytes, at the start of the buffer.
    pub len: usize,
}

/// How a stream is to be closed, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    /// When what was sent on it is flushed. Its further input is discarded.
    WhenFlushed,
    /// At once: its first message did not come in time.
    NoFirstMessage,
    /// At once: what was sent on it was not flushed in time.
    NotFlushed,
}

/// Which of `shards` shards a message belongs to: its slot modulo their number. `None` if it is too short to have a slot.
#[must_use]
#[inline]
pub fn shard_of(message: &[u8], shards: usize) -> Option<usize> {
    message.get(SLOT_AT).map(|slot| usize::from(*slot) % shards)
}

/// What a shard does with its input. See the [module](self) for the order of a turn.
pub trait Handler {
    /// What other threads send this shard.
    type Mail: Send;

    /// A datagram of 2 to [`MESSAGE_MAX`] bytes whose slot belongs to this shard.
    fn handle_datagram(&mut self, now: Now, from: impl Into<Peer>, bytes: &[u8]);

    /// A stream is there, accepted at `since_us` (µs of [`Now::mono_us`]) from `peer`. False refuses it: it is closed, and
    /// nothing more is said of it. Otherwise [`handle_stream_closed`](Self::handle_stream_closed) follows exactly once.
    fn handle_stream_opened(
        &mut self,
        now: Now,
        stream: StreamId,
        peer: SocketAddr,
        since_us: u64,
    ) -> bool;

    /// A stream's message without its length, 1 to [`MESSAGE_MAX`] bytes. The first one's slot belongs to this shard.
    fn handle_message(&mut self, now: Now, stream: StreamId, bytes: &[u8]);

    /// The peer has ended its direction: no message comes any more. Output still goes out, until the handler says that the
    /// stream is to be closed.
    fn handle_stream_ended(&mut self, now: Now, stream: StreamId);

    /// A stream is closed, or was given to another shard. Output for it goes nowhere.
    fn handle_stream_closed(&mut self, now: Now, stream: StreamId);

    /// Something from another thread.
    fn handle_mail(&mut self, now: Now, mail: Self::Mail);

    /// All input of this turn has been delivered.
    fn handle_turn(&mut self, now: Now);

    /// Writes the next message into `out` (at least [`MESSAGE_MAX`] bytes).
    ///
    /// Asked until `None`, and later again: when send buffers run out the rest waits with the handler.
    fn poll_transmit(&mut self, out: &mut [u8]) -> Option<Transmit>;

    /// The next stream to close.
    fn poll_close(&mut self) -> Option<(StreamId, Close)>;

    /// When to call [`handle_turn`](Self::handle_turn) even without input, µs of [`Now::mono_us`].
    fn poll_timeout(&self) -> Option<u64>;

    /// Whether it wants what comes to the sockets. Once it does not, what has not been received stays there for the process
    /// that has them next, and what has been received is still delivered.
    fn takes_input(&self) -> bool;

    /// Whether the shard has drained and the loop may end.
    fn is_finished(&self) -> bool;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slot_names_the_owner_and_what_has_none_has_no_owner() {
        assert_eq!(shard_of(&[9, 7, 1], 4), Some(3));
        assert_eq!(shard_of(&[9, 7], 1), Some(0));
        assert_eq!((shard_of(&[9], 4), shard_of(&[], 4)), (None, None));
    }

    #[test]
    fn a_peer_is_kept_whole_and_the_way_to_it_makes_no_other_receiver() {
        for text in ["192.0.2.7:5684", "[2001:db8::1]:9", "[fe80::1%3]:65535"] {
            let address: SocketAddr = text.parse().unwrap();
            let [one, other] = [1, 2].map(|via| Peer::new(address, Via(via)));
            assert_eq!((one.address(), one.via()), (address, Via(1)));
            assert!(one != other && Path::Datagram(one).reaches_the_same(Path::Datagram(other)));
            let another = Path::Datagram(SocketAddr::new(address.ip(), 1).into());
            assert!(!Path::Datagram(one).reaches_the_same(another));
            assert!(!Path::Datagram(one).reaches_the_same(Path::Stream(StreamId(1))));
        }
    }
}
