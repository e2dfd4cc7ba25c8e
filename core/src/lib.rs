//! The gateway's core, without I/O.
//!
//! A [`Shard`] owns the sessions of the devices whose slots are its own. Bytes, times and mail from other threads go in
//! by `handle_*`; when the input of a turn is complete, [`handle_turn`](Handler::handle_turn) does the work that is worth
//! doing in batches; messages, events and streams to close come out by `poll_*`, which are asked until they have nothing
//! more. The transport, a simulator and a fuzzer drive the same code by the same trait, [`Handler`].
//!
//! Nothing in this crate opens a socket or a file, starts a thread, or asks for the time or for randomness: all four are
//! arguments. What it has to know of devices it looks up in a [`Directory`], readings leave it through a [`Sink`], and what
//! it counts lies in [`Counts`] for whoever wants to publish it.
//!
//! | module | what it owns |
//! |---|---|
//! | `drive` | the contract by which a shard is driven, and the types that cross it |
//! | `shard` | a shard: its turn, its mail; in its folder the way of a HELLO, of a record and of a command, and of sessions to the next process |
//! | `sessions` | the session table: every index of sessions, behind few verbs |
//! | `hello_queue` | which hellos may wait for elliptic-curve work |
//! | `early` | readings from HELLOs that are on their way to storage, and the handshakes that wait for them |
//! | `askers` | where records came again whose readings are on their way |
//! | `engine` | that work, as batches |
//! | `records`, `unsealed`, `keys` | the record layer's batches |
//! | `streams` | the life of a stream: who is at its other end, and when it is to be closed |
//! | `resets` | how many devices are told in a second that their sessions are gone |
//! | `outbox` | what waits to be sent |
//! | `rules` | what tests can switch off |
//! | `wiped` | a list for secrets that move: the only code here that is `unsafe` |

mod askers;
mod destinations;
mod device;
mod drive;
mod early;
pub mod engine;
mod hello_queue;
mod keys;
mod outbox;
mod random;
mod records;
mod resets;
pub mod rules;
mod senders;
mod session;
mod sessions;
mod shard;
mod sources;
mod streams;
#[cfg(feature = "testing")]
pub mod testing;
mod unsealed;
mod wiped;

pub use self::device::{Device, Directory};
pub use self::drive::{
    Close, Handler, MESSAGE_MAX, Now, Path, Peer, StreamId, Transmit, Via, shard_of,
};
pub use self::random::Random;
pub use self::shard::{
    BATCH_MAX, Command, CommandAnswer, CommandFailure, Commit, Contact, Counts, Event, GatewayKey,
    Gone, HANDED_LEN, Local, Mail, Reading, RefusedDevice, Renewal, Settings, Shard, Sink,
    TakenOver,
};
pub use self::sources::{SourceSet, UnknownSource};
pub use self::streams::{StreamLimits, Streams, site, source};
pub use self::wiped::Wiped;

/// Records that are opened or sealed together; what that needs lies on the stack.
const RECORD_BATCH: usize = 64;
