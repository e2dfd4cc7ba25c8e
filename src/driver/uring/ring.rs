//! The ring itself: push, enter, reap, and the accounting that makes dropping it safe.
//!
//! Owns the queues and the lent memory. Must not know what an operation is for.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::mem::ManuallyDrop;
use std::os::fd::{FromRawFd, OwnedFd};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use io_uring::{IoUring, cqueue, opcode, squeue, types};

use super::super::buffers::{BufferSet, Lease};
use super::super::completion::{CONTROL_LEN, Completion, NAME_LEN, Payload};
use super::super::sends::{SendSlots, StreamSends};
use super::error::RingError;
use super::provided::BufferRing;

/// Tags occupy the low 56 bits; the top byte is the ring's own: [`LentMemory`].
pub(super) const TAG_BITS: u32 = 56;

/// How long a dropped ring waits for the kernel to let go of its memory.
const DROP_PATIENCE: Duration = Duration::from_secs(1);

/// Which memory an operation lends to the kernel, in the top byte of its user data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum LentMemory {
    Nothing = 0,
    ReceiveDatagrams = 1,
    ReceiveStreams = 2,
    SendDatagram = 3,
    SendStream = 4,
    Accept = 5,
}

impl LentMemory {
    pub(super) fn user_data(self, tag: u64) -> u64 {
        assert!(tag < 1 << TAG_BITS, "a tag of 56 bits");
        (self as u64) << TAG_BITS | tag
    }

    /// # Panics
    /// If no entry of ours had this user data: then the memory that comes back with the completion is unknown.
    fn of(user_data: u64) -> Self {
        match user_data >> TAG_BITS {
            0 => Self::Nothing,
            1 => Self::ReceiveDatagrams,
            2 => Self::ReceiveStreams,
            3 => Self::SendDatagram,
            4 => Self::SendStream,
            5 => Self::Accept,
            unknown => unreachable!("the kernel completed an operation of kind {unknown}"),
        }
    }
}

/// Everything the kernel may touch on its own time.
#[derive(Debug)]
pub(super) struct Memory {
    datagrams: BufferRing,
    streams: BufferRing,
    pub(super) slots: SendSlots,
    pub(super) sends: StreamSends,
    /// The shape of a received datagram's buffer. Read by the kernel at submission.
    pub(super) receive_shape: Box<libc::msghdr>,
}

// SAFETY: the only thing here that is not `Send` by itself is `receive_shape`, whose pointers are all null.
unsafe impl Send for Memory {}

impl Memory {
    pub(super) fn new(datagrams: BufferRing, streams: BufferRing, slots: SendSlots) -> Self {
        // SAFETY: zeroes are a valid msghdr: null pointers and zero lengths.
        let mut receive_shape: Box<libc::msghdr> = Box::new(unsafe { std::mem::zeroed() });
        receive_shape.msg_namelen = u32::try_from(NAME_LEN).unwrap_or(0);
        receive_shape.msg_controllen = CONTROL_LEN;
        Self { datagrams, streams, slots, sends: StreamSends::default(), receive_shape }
    }

    pub(super) fn buffers(&self, set: BufferSet) -> &BufferRing {
        match set {
            BufferSet::Datagrams => &self.datagrams,
            BufferSet::Streams => &self.streams,
        }
    }

    pub(super) fn give_back(&mut self, lease: Lease) {
        self.buffers_mut(lease.set).give_back(lease);
    }

    fn buffers_mut(&mut self, set: BufferSet) -> &mut BufferRing {
        match set {
            BufferSet::Datagrams => &mut self.datagrams,
            BufferSet::Streams => &mut self.streams,
        }
    }
}

/// An `io_uring` of one thread. See the [module](super) for who owns which memory when.
pub struct Ring {
    inner: IoUring,
    pub(super) memory: ManuallyDrop<Memory>,
    /// Entries that found the submission queue full.
    backlog: VecDeque<squeue::Entry>,
    /// Operations pushed whose last completion has not been reaped.
    in_flight: usize,
    /// By what the kernel knows the operations on the registered sockets, which go on until they are cancelled.
    pub(super) lasting: [Option<u64>; 4],
    /// The thread that enabled the ring: the only one the kernel serves.
    issuer: Option<ThreadId>,
    restricted: bool,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").field("in_flight", &self.in_flight).finish_non_exhaustive()
    }
}

impl Ring {
    pub(super) fn assemble(inner: IoUring, memory: Memory, restricted: bool) -> Self {
        Self {
            inner,
            memory: ManuallyDrop::new(memory),
            backlog: VecDeque::new(),
            in_flight: 0,
            lasting: [None; 4],
            issuer: None,
            restricted,
        }
    }

    /// Enables the ring; the calling thread owns it from now on.
    pub(super) fn claim(&mut self) -> Result<(), RingError> {
        self.inner
            .submitter()
            .register_enable_rings()
            .map_err(RingError::failed("enable the ring"))?;
        self.issuer = Some(std::thread::current().id());
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn submitter(&self) -> io_uring::Submitter<'_> {
        self.inner.submitter()
    }

    /// Whether the kernel accepted the allow-list of operations.
    pub fn is_restricted(&self) -> bool {
        self.restricted
    }

    pub(super) fn params(&self) -> &io_uring::Parameters {
        self.inner.params()
    }

    /// Operations whose last completion has not been reaped.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Queues an entry built by `operations.rs`. Never fails: what finds no room waits in memory for the next enter.
    pub(super) fn push(&mut self, entry: squeue::Entry) {
        self.in_flight += 1;
        if !self.backlog.is_empty() || !self.push_now(&entry) {
            self.backlog.push_back(entry);
        }
    }

    fn push_now(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: all entries come from `operations.rs`, whose pointers are into `self.memory` and stay valid until
        // the operation's last completion.
        unsafe { self.inner.submission().push(entry) }.is_ok()
    }

    /// Submits everything pushed and waits, as [`Driver::enter`](super::super::Driver::enter) says.
    pub(super) fn submit_and_wait(
        &mut self,
        want: u32,
        timeout: Option<Duration>,
        min_wait_us: u32,
    ) -> Result<(), RingError> {
        while !self.backlog.is_empty() {
            while let Some(entry) = self.backlog.pop_front() {
                if !self.push_now(&entry) {
                    self.backlog.push_front(entry);
                    break;
                }
            }
            if self.backlog.is_empty() {
                break;
            }
            if self.system_enter(0, None, 0)? == 0 {
                return Ok(()); // under pressure: the caller reaps, then enters again
            }
        }
        self.system_enter(want, timeout, min_wait_us).map(drop)
    }

    /// One `io_uring_enter`; returns how many entries the kernel took.
    fn system_enter(
        &mut self,
        want: u32,
        timeout: Option<Duration>,
        min_wait_us: u32,
    ) -> Result<usize, RingError> {
        let time = types::Timespec::from(timeout.unwrap_or_default());
        let mut arguments = types::SubmitArgs::new().min_wait_usec(min_wait_us);
        if timeout.is_some() {
            arguments = arguments.timespec(&time);
        }
        let result = self.inner.submitter().submit_with_args(want as usize, &arguments);
        result.or_else(|error| match error.raw_os_error() {
            // The time is over, and fewer completions came than were wanted.
            Some(libc::ETIME) => Ok(0),
            // A signal arrived. Whoever waits looks at the clock again.
            Some(libc::EINTR) => Ok(0),
            // The kernel holds completions that found no room, and takes nothing new until they are reaped: next.
            Some(libc::EBUSY) => Ok(0),
            // No memory for a request just now. The entries stay in the queue, and the next enter tries them again.
            Some(libc::EAGAIN) => Ok(0),
            // EBADF, EFAULT, EINVAL, EBADFD, EEXIST: a mistake of ours, or a policy that changed under us.
            _ => Err(RingError::failed("enter")(error)),
        })
    }

    pub(super) fn take_completions(&mut self, into: &mut Vec<Completion>) {
        for entry in self.inner.completion() {
            let more = cqueue::more(entry.flags());
            if !more {
                // Memory is freed when this is zero: it must not wrap.
                let left = self.in_flight.checked_sub(1);
                self.in_flight = left.expect("every last completion is of an operation in flight");
            }
            let user_data = entry.user_data();
            let tag = user_data & ((1 << TAG_BITS) - 1);
            let kind = LentMemory::of(user_data);
            let mut leased = |set| match cqueue::buffer_select(entry.flags()) {
                Some(id) => {
                    let len = usize::try_from(entry.result()).unwrap_or(0);
                    Payload::Received(self.memory.buffers_mut(set).buffers.lease(id, len))
                }
                None => Payload::None,
            };
            let payload = match kind {
                LentMemory::Nothing => Payload::None,
                LentMemory::ReceiveDatagrams => leased(BufferSet::Datagrams),
                LentMemory::ReceiveStreams => leased(BufferSet::Streams),
                LentMemory::SendDatagram => {
                    self.memory.slots.take_back(u32::try_from(tag).unwrap_or(u32::MAX));
                    Payload::SentDatagram
                }
                LentMemory::Accept if entry.result() >= 0 => {
                    // SAFETY: a successful accept's result is a new descriptor, and each completion is seen once.
                    Payload::Accepted(unsafe { OwnedFd::from_raw_fd(entry.result()) })
                }
                LentMemory::Accept => Payload::None,
                LentMemory::SendStream => Payload::Sent(self.memory.sends.take_back(tag)),
            };
            into.push(Completion { tag, result: entry.result(), more, payload });
        }
    }

    pub(super) fn cancel_and_wait(
        &mut self,
        patience: Duration,
        each: &mut dyn FnMut(&Completion),
    ) -> bool {
        let end = Instant::now() + patience;
        let mut completions = Vec::new();
        // What was cancelled by name comes back first. Until it has, to cancel whatever there is makes the kernel look
        // through all of it again for each one.
        let mut is_stuck = false;
        while self.in_flight > 0 && Instant::now() < end {
            let before = self.in_flight;
            if is_stuck {
                let cancel = opcode::AsyncCancel2::new(types::CancelBuilder::any()).build();
                self.push(cancel.user_data(LentMemory::Nothing.user_data(0)));
            }
            if self.submit_and_wait(2, Some(Duration::from_millis(10)), 0).is_err() {
                break;
            }
            self.take_completions(&mut completions);
            for completion in completions.drain(..) {
                each(&completion);
                if let Payload::Received(lease) = completion.payload {
                    self.memory.give_back(lease);
                }
            }
            is_stuck = self.in_flight >= before;
        }
        self.in_flight == 0
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if self.issuer == Some(std::thread::current().id()) {
            self.cancel_and_wait(DROP_PATIENCE, &mut |_| ());
            // Releases the sockets now; closing the ring alone does it some milliseconds later.
            let _ = self.inner.submitter().unregister_files();
        }
        if self.in_flight == 0 {
            // SAFETY: dropped once, here; no operation is in flight, so the kernel holds no pointer into it (buffer
            // ring entries are pinned by the kernel itself until its ring is gone).
            unsafe { ManuallyDrop::drop(&mut self.memory) };
        }
    }
}
