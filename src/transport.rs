//! UDP and TCP: one event loop a shard, generic over what is done with the messages.
//!
//! It owns sockets, streams, framing, steering between shards and the loop of a shard's thread. It must not look past a
//! message's second byte (the *slot*, which names the owning shard), keep sessions, or decide anything about a device.
//!
//! # A turn
//!
//! ```text
//! enter the driver (do everything pushed, wait)  →  datagrams, messages, mail → handler
//!                                               →  deadlines
//!                                               →  handler.handle_turn: batches run here
//!                                               →  handler.poll_transmit until None, handler.poll_close
//! ```
//!
//! On io_uring that is one system call a turn. Input of one turn is delivered before any output is asked for, so that a batch can gather.
//!
//! # Which shard
//!
//! The slot modulo the number of shards. A classic BPF program on the group of UDP sockets lets the kernel do it. Where
//! the kernel errs (a train of datagrams is steered by its first; attaching may be refused) the datagram goes through
//! the owner's mailbox. A stream is accepted anywhere; once four bytes are there (length, kind, slot), the descriptor and
//! those bytes go to the owner.
//!
//! # Drops
//!
//! Whatever came in and is not delivered counts exactly once, under one static reason; see [`Counters`].

use std::net::SocketAddr;

mod bind;
mod counters;
mod deadlines;
mod drivers;
mod event_loop;
mod framing;
mod operation;
mod settings;
mod socket;
mod steering;
mod stream;
mod streams;
mod table;

pub use self::bind::{Bound, MailSender, ShardIo, Stop, TransportError, Warning, bind};
pub use self::counters::Counters;
pub use self::event_loop::{Finished, run_shard};
pub use self::settings::{MESSAGE_MAX, Settings};
pub use self::socket::now;
pub use self::steering::shard_of;

/// The time of a turn. All shards share both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// `CLOCK_MONOTONIC`, µs.
    pub mono_us: u64,
    /// Wall clock since 1970, ms.
    pub unix_ms: u64,
}

/// One stream of one shard. Never reused while anyone may hold it: a late use finds nothing instead of a stranger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(u64);

impl StreamId {
    /// A stream of a caller that drives a handler without sockets, such as a simulator.
    #[must_use]
    pub const fn simulated(number: u64) -> Self {
        Self(number)
    }
}

/// Where a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// A datagram to this address.
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

/// What a shard does with its input; sans-IO, driven by [`run_shard`].
pub trait Handler {
    /// What other threads send this shard.
    type Mail: Send;

    /// A datagram of 2 to [`MESSAGE_MAX`] bytes whose slot belongs to this shard.
    fn handle_datagram(&mut self, now: Now, from: SocketAddr, bytes: &[u8]);

    /// A stream's message without its length, 1 to [`MESSAGE_MAX`] bytes. The first one's slot belongs to this shard.
    fn handle_message(&mut self, now: Now, stream: StreamId, bytes: &[u8]);

    /// A stream that delivered at least one message is closed, for whatever reason. Called exactly once for each.
    ///
    /// A peer that ends its direction counts as closed: what is queued by then is flushed, later output is not sent.
    fn handle_stream_closed(&mut self, now: Now, stream: StreamId);

    /// Something from another thread.
    fn handle_mail(&mut self, now: Now, mail: Self::Mail);

    /// All input of this turn has been delivered.
    fn handle_turn(&mut self, now: Now);

    /// Writes the next message into `out` (at least [`MESSAGE_MAX`] bytes).
    ///
    /// Asked until `None`, and later again: when send buffers run out the rest waits with the handler.
    fn poll_transmit(&mut self, out: &mut [u8]) -> Option<Transmit>;

    /// The next stream to close, once what was sent on it is flushed. Its further input is discarded.
    fn poll_close(&mut self) -> Option<StreamId>;

    /// When to call [`handle_turn`](Self::handle_turn) even without input, µs of [`Now::mono_us`].
    fn poll_timeout(&self) -> Option<u64>;

    /// Whether the shard has drained and the loop may end.
    fn is_finished(&self) -> bool;
}
