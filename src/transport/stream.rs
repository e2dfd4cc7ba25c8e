//! One stream: its descriptor, its input as far as it is not whole, and its output.
//!
//! When a stream is to be closed is not decided here: that is [`duet_core::Streams`]'s, behind the handler. What is here is
//! how bytes come and go. A stream goes *sorting* (read singly until its owner is known) → *open* → *flushing* (it is closed
//! when its output is out) → *closing* (waiting for the kernel to let go) → gone, and any may go to closing. The descriptor
//! is closed, and the place in the table freed, only with no operation in flight: neither the kernel nor a late completion can
//! meet a reused one.

use std::os::fd::{AsFd, OwnedFd};

use duet_core::Close;

use super::StreamId;
use super::counters::Counters;
use super::framing::{Fault, Framer};
use super::operation::Operation;
use crate::driver::Driver;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Sorting,
    Open,
    Flushing,
    Closing,
}

/// Why a stream is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    Peer,
    Handler(Close),
    Fault(Fault),
    QueueFull,
    Error,
}

impl Reason {
    pub(super) fn count(self, counters: &mut Counters) {
        *match self {
            Self::Peer => &mut counters.closed_peer,
            Self::Handler(Close::WhenFlushed) => &mut counters.closed_handler,
            Self::Handler(Close::NoFirstMessage) => &mut counters.closed_first_message,
            Self::Handler(Close::NotFlushed) => &mut counters.closed_flush,
            Self::Fault(Fault::Short) => &mut counters.closed_short,
            Self::Fault(Fault::Long) => &mut counters.closed_long,
            Self::QueueFull => &mut counters.closed_queue_full,
            Self::Error => &mut counters.closed_error,
        } += 1;
    }

    /// Whether what the kernel still holds for the peer is not worth keeping.
    pub(super) fn is_abrupt(self) -> bool {
        matches!(self, Self::QueueFull | Self::Handler(Close::NotFlushed))
    }
}

/// A connected descriptor and what is queued on it.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) fd: OwnedFd,
    pub(super) phase: Phase,
    pub(super) framer: Framer,
    /// When the connection was accepted, µs.
    pub(super) since_us: u64,
    /// Operations whose last completion is outstanding.
    pub(super) operations: u32,
    /// Whether the peer has ended its direction.
    pub(super) ended: bool,
    /// Whether it is listed in `Streams::dirty`.
    pub(super) dirty: bool,
    /// Framed output that no send carries yet.
    pub(super) queue: Vec<u8>,
    /// Bytes of the send in flight.
    pub(super) lent: usize,
    /// How many of them went out.
    pub(super) sent: usize,
}

impl Stream {
    /// Hands the queue to the kernel, unless a send is in flight.
    pub(super) fn start_send(&mut self, driver: &mut dyn Driver, id: StreamId) {
        if self.lent > 0 || self.queue.is_empty() || self.phase == Phase::Closing {
            return;
        }
        let bytes = std::mem::take(&mut self.queue);
        (self.lent, self.sent) = (bytes.len(), 0);
        driver.send_stream(self.fd.as_fd(), bytes, 0, Operation::Send.tag(id.0));
        self.operations += 1;
    }

    /// Output that the kernel has not taken, bytes.
    pub(super) fn unsent(&self) -> usize {
        self.queue.len() + self.lent - self.sent
    }
}
