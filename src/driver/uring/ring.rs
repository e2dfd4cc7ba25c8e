//! The ring itself: push, enter, reap, and the accounting that makes dropping it safe.
//!
//! Owns the queues and the lent memory. Must not know what an operation is for.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use io_uring::{EnterFlags, IoUring, cqueue, opcode, squeue, types};

use super::super::buffers::{Group, Lease};
use super::super::completion::{Completion, NAME_LEN, Payload};
use super::super::sends::{SendSlot, SendSlots, StreamSends};
use super::error::RingError;
use super::provided::BufferRing;
use super::setup::{REGISTER_RING_FDS, UNREGISTER_FILES, UNREGISTER_RING_FDS};

/// Tags occupy the low 56 bits; the top byte is the ring's own [`Kind`].
pub(super) const TAG_BITS: u32 = 56;

/// `IORING_ENTER_REGISTERED_RING`: the descriptor argument is an index.
const ENTER_REGISTERED_RING: u32 = 1 << 4;

/// How long a dropped ring waits for the kernel to let go of its memory.
const DROP_PATIENCE: Duration = Duration::from_secs(1);

/// Which memory an operation lent to the kernel, in the top byte of its user data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Plain = 0,
    ReceiveDatagrams = 1,
    ReceiveStreams = 2,
    SendDatagram = 3,
    SendStream = 4,
    Accept = 5,
}

impl Kind {
    pub(super) fn user_data(self, tag: u64) -> u64 {
        assert!(tag < 1 << TAG_BITS, "a tag of 56 bits");
        (self as u64) << TAG_BITS | tag
    }

    fn of(user_data: u64) -> Self {
        match user_data >> TAG_BITS {
            1 => Self::ReceiveDatagrams,
            2 => Self::ReceiveStreams,
            3 => Self::SendDatagram,
            4 => Self::SendStream,
            5 => Self::Accept,
            _ => Self::Plain,
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
        receive_shape.msg_namelen = NAME_LEN;
        Self { datagrams, streams, slots, sends: StreamSends::default(), receive_shape }
    }

    pub(super) fn buffers(&self, group: Group) -> &BufferRing {
        match group {
            Group::Datagrams => &self.datagrams,
            Group::Streams => &self.streams,
        }
    }

    fn buffers_mut(&mut self, group: Group) -> &mut BufferRing {
        match group {
            Group::Datagrams => &mut self.datagrams,
            Group::Streams => &mut self.streams,
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
    /// The thread that enabled the ring: the only one the kernel serves.
    issuer: Option<ThreadId>,
    registered_index: Option<i32>,
    restricted: bool,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").field("in_flight", &self.in_flight).finish_non_exhaustive()
    }
}

/// `struct io_uring_getevents_arg`.
#[repr(C)]
struct WaitArgument {
    sigmask: u64,
    sigmask_sz: u32,
    min_wait_usec: u32,
    ts: u64,
}

/// `struct io_uring_rsrc_update`.
#[repr(C)]
struct RingFdUpdate {
    offset: u32,
    resv: u32,
    data: u64,
}

impl Ring {
    pub(super) fn assemble(inner: IoUring, memory: Memory, restricted: bool) -> Self {
        Self {
            inner,
            memory: ManuallyDrop::new(memory),
            backlog: VecDeque::new(),
            in_flight: 0,
            issuer: None,
            registered_index: None,
            restricted,
        }
    }

    /// Enables the ring; the calling thread owns it from now on.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn enable(&mut self) -> Result<(), RingError> {
        self.inner
            .submitter()
            .register_enable_rings()
            .map_err(RingError::failed("enable the ring"))?;
        self.issuer = Some(std::thread::current().id());
        let data = u64::try_from(self.inner.as_raw_fd()).unwrap_or(0);
        let mut update = RingFdUpdate { offset: u32::MAX, resv: 0, data };
        if self.register(REGISTER_RING_FDS, (&raw mut update).cast(), 1).is_ok() {
            self.registered_index = i32::try_from(update.offset).ok();
        }
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

    /// Whether the kernel can wait for a batch ([`enter`](Self::enter) with a `min_wait_us`).
    pub fn can_wait_for_a_batch(&self) -> bool {
        self.inner.params().is_feature_min_timeout()
    }

    /// Operations whose last completion has not been reaped.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn register(&self, code: u8, argument: *mut libc::c_void, count: u32) -> io::Result<()> {
        // SAFETY: the three codes used here take null and zero, or one RingFdUpdate that lives through the call.
        let result = unsafe {
            libc::syscall(
                libc::SYS_io_uring_register,
                self.inner.as_raw_fd(),
                u32::from(code),
                argument,
                count,
            )
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
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

    /// Submits everything pushed and waits until `want` completions are there or `timeout` is over, whichever is
    /// first. With `min_wait_us` the kernel gathers for that long, then one completion is enough. `want` 0 polls.
    ///
    /// # Errors
    /// When the kernel refuses for a reason other than time, a signal or momentary pressure.
    pub fn enter(
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
        let submit = self.inner.submission().len();
        let (descriptor, registered) = match self.registered_index {
            Some(index) => (index, ENTER_REGISTERED_RING),
            None => (self.inner.as_raw_fd(), 0),
        };
        let flags = EnterFlags::GETEVENTS.bits() | EnterFlags::EXT_ARG.bits() | registered;
        let time = types::Timespec::from(timeout.unwrap_or_default());
        let ts = if timeout.is_some() { (&raw const time) as u64 } else { 0 };
        let argument = WaitArgument { sigmask: 0, sigmask_sz: 0, min_wait_usec: min_wait_us, ts };
        // SAFETY: descriptor or index name this ring; the argument and the timespec live through the call; entries in
        // the queue are valid (`push_now`).
        let result = unsafe {
            libc::syscall(
                libc::SYS_io_uring_enter,
                descriptor,
                u32::try_from(submit).unwrap_or(u32::MAX),
                want,
                flags,
                &raw const argument,
                size_of::<WaitArgument>(),
            )
        };
        if let Ok(submitted) = usize::try_from(result) {
            return Ok(submitted);
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(0),
            _ => Err(RingError::failed("enter")(error)),
        }
    }

    /// Moves every completion that is there into `into`.
    pub fn reap(&mut self, into: &mut Vec<Completion>) {
        for entry in self.inner.completion() {
            let more = cqueue::more(entry.flags());
            self.in_flight -= usize::from(!more);
            let user_data = entry.user_data();
            let tag = user_data & ((1 << TAG_BITS) - 1);
            let kind = Kind::of(user_data);
            let mut leased = |group| match cqueue::buffer_select(entry.flags()) {
                Some(id) => {
                    let len = usize::try_from(entry.result()).unwrap_or(0);
                    Payload::Received(self.memory.buffers_mut(group).buffers.lease(id, len))
                }
                None => Payload::None,
            };
            let payload = match kind {
                Kind::Plain => Payload::None,
                Kind::ReceiveDatagrams => leased(Group::Datagrams),
                Kind::ReceiveStreams => leased(Group::Streams),
                Kind::SendDatagram => {
                    self.memory.slots.take_back(u32::try_from(tag).unwrap_or(u32::MAX));
                    Payload::SentDatagram
                }
                Kind::Accept if entry.result() >= 0 => {
                    // SAFETY: a successful accept's result is a new descriptor, and each completion is seen once.
                    Payload::Accepted(unsafe { OwnedFd::from_raw_fd(entry.result()) })
                }
                Kind::Accept => Payload::None,
                Kind::SendStream => Payload::Sent(self.memory.sends.take_back(tag)),
            };
            into.push(Completion { tag, result: entry.result(), more, payload });
        }
    }

    /// The bytes of a received buffer.
    pub fn read(&self, lease: &Lease) -> &[u8] {
        self.memory.buffers(lease.group).buffers.read(lease)
    }

    /// Hands a buffer to the kernel again.
    pub fn give_back(&mut self, lease: Lease) {
        self.memory.buffers_mut(lease.group).give_back(lease);
    }

    /// A free send slot, if any.
    pub fn send_slot(&mut self) -> Option<SendSlot> {
        self.memory.slots.acquire()
    }

    /// The bytes of a slot, to be written.
    pub fn slot_bytes(&mut self, slot: &mut SendSlot) -> &mut [u8] {
        self.memory.slots.bytes_mut(slot)
    }

    /// Puts an unused slot back.
    pub fn release_slot(&mut self, slot: SendSlot) {
        self.memory.slots.release(slot);
    }

    /// Cancels everything and reaps until nothing is in flight or `patience` ends; true if nothing is. `each` sees
    /// every completion before its memory is returned.
    pub fn drain(&mut self, patience: Duration, mut each: impl FnMut(&Completion)) -> bool {
        let end = Instant::now() + patience;
        let mut completions = Vec::new();
        // What was cancelled by name comes back first. Until it has, to cancel whatever there is makes the kernel look
        // through all of it again for each one.
        let mut is_stuck = false;
        while self.in_flight > 0 && Instant::now() < end {
            let before = self.in_flight;
            if is_stuck {
                let cancel = opcode::AsyncCancel2::new(types::CancelBuilder::any()).build();
                self.push(cancel.user_data(Kind::Plain.user_data(0)));
            }
            if self.enter(2, Some(Duration::from_millis(10)), 0).is_err() {
                break;
            }
            self.reap(&mut completions);
            for completion in completions.drain(..) {
                each(&completion);
                if let Payload::Received(lease) = completion.payload {
                    self.give_back(lease);
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
            self.drain(DROP_PATIENCE, |_| ());
            // Releases the sockets now; closing the ring alone does it some milliseconds later.
            let _ = self.register(UNREGISTER_FILES, std::ptr::null_mut(), 0);
            if let Some(offset) = self.registered_index.and_then(|index| u32::try_from(index).ok())
            {
                let mut update = RingFdUpdate { offset, resv: 0, data: 0 };
                let _ = self.register(UNREGISTER_RING_FDS, (&raw mut update).cast(), 1);
            }
        }
        if self.in_flight == 0 {
            // SAFETY: dropped once, here; no operation is in flight, so the kernel holds no pointer into it (buffer
            // ring entries are pinned by the kernel itself until its ring is gone).
            unsafe { ManuallyDrop::drop(&mut self.memory) };
        }
    }
}
