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

use std::net::SocketAddr;

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

/// Where a message came from, or goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// A datagram from or to this address.
    Datagram(SocketAddr),
    /// A message on this stream.
    Stream(StreamId),
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
pub fn shard_of(message: &[u8], shards: usize) -> Option<usize> {
    message.get(SLOT_AT).map(|slot| usize::from(*slot) % shards)
}

/// What a shard does with its input. See the [module](self) for the order of a turn.
pub trait Handler {
    /// What other threads send this shard.
    type Mail: Send;

    /// A datagram of 2 to [`MESSAGE_MAX`] bytes whose slot belongs to this shard.
    fn handle_datagram(&mut self, now: Now, from: SocketAddr, bytes: &[u8]);

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
}
