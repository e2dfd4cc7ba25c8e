//! How a shard's thread does I/O: operations are pushed, the thread enters the kernel, completions are reaped.
//!
//! Two drivers implement [`Driver`]: [`uring::Ring`], a raw `io_uring`, and [`epoll::Epoll`], which keeps the same
//! promises with `epoll`, `recvmmsg` and `sendmmsg` where the kernel or a policy refuses `io_uring`. Everything above is
//! written once.
//!
//! It owns every byte of memory the kernel may read or write on its own time. It must not know what the bytes mean, keep
//! connection state, or decide policy; [`crate::transport`] does that.
//!
//! # Who owns a buffer, and when
//!
//! A buffer belongs to the driver from the moment an operation naming it is pushed until that operation's *last*
//! completion. The types say so; nothing above this module can hold both the buffer and the operation:
//!
//! * **Receive** buffers are of two sets ([`BufferSet`]). A completion that carries data carries a [`Lease`], the only way to
//!   read it. [`Driver::give_back`] consumes the lease. A lease is neither `Clone` nor `Copy`, and only the driver that gave
//!   it takes it: any other panics.
//! * **Datagram send** buffers are slots of a fixed slab. [`Driver::send_slot`] hands out a [`SendSlot`];
//!   [`Driver::send_datagram`] consumes it. The slot returns to the slab when the completion is reaped. Here, too, another
//!   driver's panics.
//! * **Stream send** buffers are plain vectors, moved into [`Driver::send_stream`] and moved out again in the
//!   completion's [`Payload::Sent`].
//!
//! Callers keep a stream's descriptor open until the last completion of its operations, and say
//! [`forget_stream`](Driver::forget_stream) before they close it or give it away.
//!
//! # What ends each wait
//!
//! A shard sleeps only in [`Driver::enter`], and never longer than the caller's timeout. Everything that it can be waiting
//! for has an event that ends the sleep earlier. The tests that are named put both drivers to sleep and then let the event
//! happen: without it they fail.
//!
//! | waiting for | `io_uring` | `epoll` | test in `tests.rs` |
//! |---|---|---|---|
//! | a datagram | multishot receive | `EPOLLIN`, by level | `datagrams_of_both_sockets_end_a_wait` |
//! | room for a datagram | the send polls by itself | `EPOLLOUT`, by level, while there is none | `a_datagram_that_finds_no_room_leaves_when_there_is_some` |
//! | a connection | multishot accept | an edge, kept until `EAGAIN` | `connections_end_a_wait` |
//! | another thread's wake | multishot poll of the eventfd | an edge, kept until it is reported | `the_eventfd_ends_a_wait` |
//! | bytes of a stream, or its end | multishot receive | an edge, kept until all is read | `bytes_and_the_end_of_a_stream_end_a_wait`, `what_follows_an_urgent_byte_is_read` |
//! | room in a stream | the send polls by itself | an edge, kept until `EAGAIN` | `a_stream_that_takes_no_more_goes_on_when_it_is_read` |
//! | a receive buffer | `ENOBUFS` ends the receive; the caller begins it anew once it has given buffers back | the same | `datagrams_that_find_no_buffer_come_when_there_is_one`, `streams_that_find_no_buffer_are_read_when_there_is_one` |
//! | a send slot | some send in flight completes | the same | `tiny_queues_lose_nothing` in `tests/transport` |
//! | more completions, to make a batch | `min_wait_us` ends | the same | `a_wait_that_gathers_ends_with_less_than_it_wants` |
//!
//! Waits for a time (a stream's deadline, the end of a pause in accepting, the handler's own) are the caller's: they make
//! the timeout.
//!
//! # The fence
//!
//! The crate denies `unsafe`; the files of this module allow it. Each driver says what it relies on.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

mod address;
mod buffers;
mod completion;
pub mod epoll;
mod event;
mod inherited;
mod local;
mod owner;
mod region;
mod sends;
pub mod uring;

pub use self::address::Route;
pub use self::buffers::{BufferSet, Lease};
pub use self::completion::{Completion, DATAGRAM_HEADER_LEN, Datagram, Payload, received_datagram};
pub use self::event::EventFd;
pub use self::inherited::take_inherited;
pub use self::local::LocalAddress;
pub use self::sends::{SEND_CAPACITY, SendSlot};

use self::uring::RingError;

/// How large a driver and its memory are.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Submission queue entries, rounded up to a power of two by the kernel. More can be pushed; they wait.
    pub submissions: u32,
    /// Completion queue entries, at least as many as submissions. An overflow is kept by the kernel, at a cost.
    pub completions: u32,
    /// Buffers for datagrams, a power of two.
    pub datagram_buffers: u16,
    /// Bytes of each.
    pub datagram_buffer_len: usize,
    /// Buffers for streams, a power of two.
    pub stream_buffers: u16,
    /// Bytes of each.
    pub stream_buffer_len: usize,
    /// Datagrams that can be on their way out at once.
    pub send_slots: u32,
}

/// The sockets that a driver serves from the start, beside the streams that come and go. It keeps its own hold of
/// them.
#[derive(Clone, Copy, Debug)]
pub struct Sockets<'a> {
    /// The datagram socket that everything is sent from.
    pub datagrams: BorrowedFd<'a>,
    /// The datagram socket for HELLOs. Anyone can send one, so a flood of them must not fill the buffer of the records.
    pub hellos: BorrowedFd<'a>,
    /// The stream listener.
    pub listener: BorrowedFd<'a>,
    /// The eventfd by which other threads end a wait.
    pub wake: BorrowedFd<'a>,
}

/// Which datagram socket to receive from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inbox {
    /// [`Sockets::datagrams`].
    Datagrams,
    /// [`Sockets::hellos`].
    Hellos,
}

/// Which driver is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Choice {
    /// `io_uring`, and `epoll` where that is refused.
    #[default]
    Auto,
    /// `io_uring` or nothing.
    IoUring,
    /// `epoll`, without asking for `io_uring`.
    Epoll,
}

/// Which of the two drivers one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = Driver)]
pub enum DriverKind {
    /// `io_uring`.
    IoUring,
    /// `epoll`, `recvmmsg` and `sendmmsg`.
    Epoll,
}

impl DriverKind {
    /// Its name, as the setting has it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::IoUring => "io_uring",
            Self::Epoll => "epoll",
        }
    }
}

/// A driver could not be made or used.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// `io_uring` refused.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// No memory for receive buffers or send slots.
    #[error(
        "cannot map a shard's buffers: {0}; raise the process's limit (ulimit -v, LimitAS=), or use fewer shards or \
         smaller [queues]"
    )]
    Buffers(#[source] io::Error),
    /// `epoll` or a socket under it refused.
    #[error("epoll failed to {step}: {source}{}", shortage(source))]
    Epoll {
        /// What was being done.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// What to do about a resource that has run out, to be put behind the kernel's own words.
pub fn shortage(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EMFILE) => {
            "; raise the limit of open files (ulimit -n, LimitNOFILE=), or use fewer shards"
        }
        Some(libc::ENFILE) => "; this machine has no open file left: raise fs.file-max",
        Some(libc::ENOMEM | libc::ENOBUFS) => {
            "; the kernel has no memory for it: raise the service's limit (MemoryMax=), or use fewer shards"
        }
        _ => "",
    }
}

impl DriverError {
    /// Whether this machine or its policy does not let `io_uring` be used, where something else may work.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Ring(error) if error.is_refusal())
    }
}

/// What a shard's thread does I/O by. Made on the thread that starts the gateway, used on the shard's.
pub trait Driver: std::fmt::Debug + Send {
    /// Which it is.
    fn kind(&self) -> DriverKind;

    /// Makes the calling thread the one that owns the driver.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn enable(&mut self) -> Result<(), DriverError>;

    /// Does everything pushed and waits until `want` completions are there or `timeout` is over, whichever is first.
    /// With `min_wait_us` completions gather for that long, then one is enough. `want` 0 polls.
    ///
    /// # Errors
    /// When the kernel refuses for a reason other than time, a signal or momentary pressure.
    fn enter(
        &mut self,
        want: u32,
        timeout: Option<Duration>,
        min_wait_us: u32,
    ) -> Result<(), DriverError>;

    /// Whether [`enter`](Self::enter) can wait for a batch (with a `min_wait_us`).
    fn can_wait_for_a_batch(&self) -> bool;

    /// Moves every completion that is there into `into`.
    fn reap(&mut self, into: &mut Vec<Completion>);

    /// Cancels everything and reaps until nothing is in flight or `patience` ends; true if nothing is. `each` sees
    /// every completion before its memory is returned.
    fn drain(&mut self, patience: Duration, each: &mut dyn FnMut(&Completion)) -> bool;

    // ---- memory

    /// The bytes of a received buffer.
    fn read(&self, lease: &Lease) -> &[u8];

    /// Makes a buffer free to be received into again.
    fn give_back(&mut self, lease: Lease);

    /// A free send slot, if any.
    fn send_slot(&mut self) -> Option<SendSlot>;

    /// The bytes of a slot, to be written.
    fn slot_bytes(&mut self, slot: &mut SendSlot) -> &mut [u8];

    /// Puts an unused slot back.
    fn release_slot(&mut self, slot: SendSlot);

    // ---- operations

    /// Receives datagrams until a completion without `more`. Each buffer holds a header ([`received_datagram`]).
    fn receive_datagrams(&mut self, inbox: Inbox, tag: u64);

    /// Accepts streams until a completion without `more`; each comes as [`Payload::Accepted`], closed on exec.
    fn accept_streams(&mut self, tag: u64);

    /// Takes nothing more from the datagram sockets and the listener: what comes is for whoever has them next. Receives
    /// and accepts that go on have a last completion; where that takes operations of their own, these come back with `tag`.
    fn stop_receiving(&mut self, tag: u64);

    /// Reports each wake by the eventfd, until a completion without `more`.
    fn watch_wake(&mut self, tag: u64);

    /// Receives from a stream until a completion without `more`.
    fn receive_stream(&mut self, stream: BorrowedFd<'_>, tag: u64);

    /// Receives from a stream once.
    fn receive_stream_once(&mut self, stream: BorrowedFd<'_>, tag: u64);

    /// Sends the first `len` bytes of `slot`. The slot comes back by itself.
    ///
    /// # Panics
    /// If `len` exceeds a slot.
    fn send_datagram(&mut self, slot: SendSlot, len: usize, route: &Route);

    /// Sends `bytes[from..]` on a stream. The vector comes back with the completion.
    ///
    /// # Panics
    /// If `from` is not inside the vector, or a stream send with this tag is in flight.
    fn send_stream(&mut self, stream: BorrowedFd<'_>, bytes: Vec<u8>, from: usize, tag: u64);

    /// Cancels the receive on a stream that was begun with `receive_tag`.
    fn cancel_receive(&mut self, stream: BorrowedFd<'_>, receive_tag: u64, tag: u64);

    /// Cancels the send on a stream that was begun with `send_tag`.
    fn cancel_send(&mut self, stream: BorrowedFd<'_>, send_tag: u64, tag: u64);

    /// Says that a stream with nothing in flight is about to be closed or given away.
    fn forget_stream(&mut self, stream: BorrowedFd<'_>);
}

#[cfg(test)]
mod tests;
