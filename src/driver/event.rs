//! An eventfd: how other threads end a driver's wait. Owns the descriptor; the counter's value carries no meaning.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::event::{EventfdFlags, eventfd};

/// An eventfd that is written to wake a sleeper and never read.
///
/// A multishot poll in the ring and an edge-triggered epoll fire on every write, so nobody needs to reset the
/// counter; it would take 2⁶⁴ writes to fill it.
#[derive(Debug)]
pub struct EventFd(OwnedFd);

impl EventFd {
    /// Makes one, non-blocking and closed on exec.
    ///
    /// # Errors
    /// When descriptors are exhausted.
    pub fn new() -> io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// Wakes whoever polls it.
    pub fn wake(&self) {
        // The only failure is EAGAIN on a full counter, and then the poller has been woken already.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for EventFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
