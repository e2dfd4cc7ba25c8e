//! UDP and TCP: one event loop a shard, generic over what is done with the messages.
//!
//! It owns sockets, streams, framing, steering between shards and the loop of a shard's thread. It must not look past a
//! message's second byte (the *slot*, which names the owning shard), keep sessions, or decide anything about a device.
//!
//! # A turn
//!
//! ```text
//! enter the driver (do everything pushed, wait)  →  streams, datagrams, messages, mail → handler
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

mod bind;
mod counters;
mod drivers;
mod error;
mod event_loop;
mod framing;
mod kept;
mod listen;
mod locals;
mod operation;
mod settings;
mod socket;
mod steering;
mod stream;
mod streams;
mod table;

use duet_core::{Handler, MESSAGE_MAX, Now, Path, Peer, StreamId, Transmit, Via, shard_of};

pub use self::bind::{Bound, MailSender, ShardIo, Stop, bind, bind_kept};
pub use self::counters::Counters;
pub use self::error::{TransportError, Warning};
pub use self::event_loop::{Finished, run_shard};
pub use self::kept::{KeptSockets, is_socket_name};
pub use self::settings::Settings;
pub use self::socket::now;
