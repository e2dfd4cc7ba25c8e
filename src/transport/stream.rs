//! One stream: its descriptor, where in its life it is, and its output.
//!
//! A stream goes *sorting* (reading singly until its owner is known) → *first* (ours, first message not whole) →
//! *serving* → *finishing* (only flushing) → *closing* (waiting for the kernel to let go) → gone. Any state may go to
//! closing. The descriptor is closed, and the place in the table freed, only with no operation in flight: neither the
//! kernel nor a late completion can meet a reused one.

use std::os::fd::{AsFd, OwnedFd};

use super::StreamId;
use super::counters::Counters;
use super::framing::{Fault, Framer};
use super::operation::Operation;
use crate::driver::Driver;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Sorting,
    First,
    Serving,
    Finishing(Reason),
    Closing,
}

/// Why a stream is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    Peer,
    Handler,
    Fault(Fault),
    FirstMessage,
    QueueFull,
    Flush,
    Error,
}

impl Reason {
    pub(super) fn count(self, counters: &mut Counters) {
        *match self {
            Self::Peer => &mut counters.closed_peer,
            Self::Handler => &mut counters.closed_handler,
            Self::Fault(Fault::Short) => &mut counters.closed_short,
            Self::Fault(Fault::Long) => &mut counters.closed_long,
            Self::FirstMessage => &mut counters.closed_first_message,
            Self::QueueFull => &mut counters.closed_queue_full,
            Self::Flush => &mut counters.closed_flush,
            Self::Error => &mut counters.closed_error,
        } += 1;
    }

    /// Whether what the kernel still holds for the peer is not worth keeping.
    pub(super) fn is_abrupt(self) -> bool {
        matches!(self, Self::QueueFull | Self::Flush)
    }
}

/// A connected descriptor and what is queued on it.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) fd: OwnedFd,
    pub(super) phase: Phase,
    pub(super) framer: Framer,
    pub(super) deadline_us: u64,
    /// Operations whose last completion is outstanding.
    pub(super) operations: u32,
    /// Whether the handler has heard of it.
    pub(super) known: bool,
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
    pub(super) fn start_send(&mut self, driver: &mut Driver, id: StreamId) {
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
