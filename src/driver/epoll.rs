//! The driver for where `io_uring` is refused: readiness from `epoll`, many datagrams a call, the same completions.
//!
//! It owns what is armed and what is ready. Every operation ends in a completion, as the ring's do: an operation that is
//! cancelled completes with `ECANCELED`, one that finds no buffer with `ENOBUFS`. A send is tried at once, everything
//! else in [`Epoll::enter`].
//!
//! # What is told how
//!
//! The datagram sockets are watched by level: they are read each time until they have no more, and the one that sends is
//! asked for room only while it has none, since every datagram that leaves would be reported otherwise. Listener, eventfd and streams are
//! watched by edge, registered once: nothing has to be registered again when an operation is armed or ends, and one
//! that is not armed wakes nobody. What an edge said is kept until a call says `EAGAIN`.
//!
//! # The fence
//!
//! `unsafe` here has two invariants. Receive and send buffers handed to a call are the driver's own at that moment
//! ([`Buffers`](super::buffers::Buffers) and [`SendSlots`](super::sends::SendSlots) check it) and no call keeps them. A
//! stream's number is used as a descriptor only while an operation is armed on it, and then the caller keeps it open.

use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

use super::address::Route;
use super::buffers::{BufferSet, Lease};
use super::completion::{Completion, Payload};
use super::sends::SendSlot;
use super::{Driver, DriverError, DriverKind, Inbox, Sizes, Sockets};

mod datagrams;
mod pool;
mod streams;

use self::datagrams::Datagrams;
use self::streams::Streams;

/// Events taken in one call.
const EVENTS: usize = 256;

/// Streams accepted in one turn before others get theirs.
const ACCEPTS: usize = 64;

/// What an event is about: above every descriptor's number.
const DATAGRAMS: u64 = u64::MAX;
const HELLOS: u64 = u64::MAX - 1;
const LISTENER: u64 = u64::MAX - 2;
const WAKE: u64 = u64::MAX - 3;

/// A driver on `epoll`. See the [module](self).
#[derive(Debug)]
pub struct Epoll {
    epoll: OwnedFd,
    datagrams: Datagrams,
    streams: Streams,
    listener: Listener,
    wake: OwnedFd,
    watch: Option<u64>,
    /// Whether the eventfd was written since a watch reported it.
    woken: bool,
    done: Vec<Completion>,
}

#[derive(Debug)]
struct Listener {
    socket: OwnedFd,
    /// The tag of the accept that is armed.
    armed: Option<u64>,
    /// Whether someone may wait to be accepted.
    ready: bool,
}

/// Turns an error of a step into the driver's.
fn failed(step: &'static str) -> impl FnOnce(Errno) -> DriverError {
    move |errno| DriverError::Epoll { step, source: errno.into() }
}

fn completed(tag: u64, result: i32, more: bool, payload: Payload) -> Completion {
    Completion { tag, result, more, payload }
}

/// A call's error as a completion's result.
fn negated(errno: Errno) -> i32 {
    -errno.raw_os_error()
}

impl Epoll {
    /// Makes one that serves `sockets`, each by a duplicate of its own.
    ///
    /// # Errors
    /// When the kernel has no memory or no descriptors to give.
    pub fn new(sizes: &Sizes, sockets: &Sockets<'_>) -> Result<Self, DriverError> {
        let own = |socket: BorrowedFd<'_>| {
            socket
                .try_clone_to_owned()
                .map_err(|source| DriverError::Epoll { step: "duplicate a socket", source })
        };
        let datagrams = [own(sockets.datagrams)?, own(sockets.hellos)?];
        let driver = Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC).map_err(failed("make a poller"))?,
            datagrams: Datagrams::new(datagrams, sizes).map_err(DriverError::Buffers)?,
            streams: Streams::new(sizes).map_err(DriverError::Buffers)?,
            listener: Listener { socket: own(sockets.listener)?, armed: None, ready: false },
            wake: own(sockets.wake)?,
            watch: None,
            woken: false,
            done: Vec::new(),
        };
        let listener = &driver.listener.socket;
        rustix::io::ioctl_fionbio(listener, true).map_err(failed("set up the listener"))?;
        // The poller knows a socket by its descriptor: what is watched must be what is modified later, our own.
        let [datagrams, hellos] = driver.datagrams.sockets();
        let edge = epoll::EventFlags::IN | epoll::EventFlags::ET;
        for (socket, token, flags) in [
            (datagrams, DATAGRAMS, epoll::EventFlags::IN),
            (hellos, HELLOS, epoll::EventFlags::IN),
            (listener, LISTENER, edge),
            (&driver.wake, WAKE, edge),
        ] {
            epoll::add(&driver.epoll, socket, epoll::EventData::new_u64(token), flags)
                .map_err(failed("watch a socket"))?;
        }
        Ok(driver)
    }

    /// Whether something armed can go on without waiting.
    fn is_ready(&self) -> bool {
        self.listener.ready && self.listener.armed.is_some()
            || self.woken && self.watch.is_some()
            || self.streams.is_ready()
    }

    fn wait(&mut self, timeout: Option<Duration>) -> Result<(), DriverError> {
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let mut events = [const { MaybeUninit::<epoll::Event>::uninit() }; EVENTS];
        let events = match epoll::wait(&self.epoll, &mut events[..], timeout.as_ref()) {
            Ok((events, _)) => events,
            Err(Errno::INTR) => return Ok(()),
            Err(errno) => return Err(failed("wait")(errno)),
        };
        for event in events {
            let (flags, token) = (event.flags, event.data.u64());
            match token {
                DATAGRAMS => self.datagrams.is_ready(Inbox::Datagrams, flags),
                HELLOS => self.datagrams.is_ready(Inbox::Hellos, flags),
                LISTENER => self.listener.ready = true,
                WAKE => self.woken = true,
                stream => self.streams.is_ready_for(stream, flags, &mut self.done),
            }
        }
        Ok(())
    }

    fn accept(&mut self) {
        let Listener { socket, armed, ready } = &mut self.listener;
        for _ in 0..ACCEPTS {
            let (true, Some(tag)) = (*ready, *armed) else { return };
            match rustix::net::accept_with(&*socket, rustix::net::SocketFlags::CLOEXEC) {
                Ok(stream) => {
                    self.done.push(completed(tag, 0, true, Payload::Accepted(stream)));
                }
                Err(Errno::INTR) => (),
                Err(Errno::AGAIN) => *ready = false,
                Err(errno) => {
                    *armed = None;
                    self.done.push(completed(tag, negated(errno), false, Payload::None));
                }
            }
        }
    }
}

impl Driver for Epoll {
    fn kind(&self) -> DriverKind {
        DriverKind::Epoll
    }

    fn enable(&mut self) -> Result<(), DriverError> {
        Ok(())
    }

    fn enter(
        &mut self,
        want: u32,
        timeout: Option<Duration>,
        min_wait_us: u32,
    ) -> Result<(), DriverError> {
        self.datagrams.send(&self.epoll, &mut self.done)?;
        let idle = want > 0 && self.done.is_empty() && !self.is_ready();
        let mut timeout = if idle { timeout } else { Some(Duration::ZERO) };
        if idle && min_wait_us > 0 {
            let gather = Duration::from_micros(min_wait_us.into());
            std::thread::sleep(gather);
            timeout = timeout.map(|left| left.saturating_sub(gather));
        }
        self.wait(timeout)?;
        if let (true, Some(tag)) = (self.woken, self.watch) {
            self.woken = false;
            self.done.push(completed(tag, 1, true, Payload::None));
        }
        self.accept();
        self.datagrams.receive(&mut self.done);
        self.streams.receive(&mut self.done);
        Ok(())
    }

    fn can_wait_for_a_batch(&self) -> bool {
        true
    }

    fn reap(&mut self, into: &mut Vec<Completion>) {
        into.append(&mut self.done);
    }

    // Nothing here outlasts the call, so it needs no patience.
    fn drain(&mut self, _patience: Duration, each: &mut dyn FnMut(&Completion)) -> bool {
        // What cannot be sent any more is cancelled with the rest.
        let _ = self.datagrams.send(&self.epoll, &mut self.done);
        self.datagrams.cancel(&mut self.done);
        self.streams.cancel_all(&mut self.done);
        for tag in [self.listener.armed.take(), self.watch.take()].into_iter().flatten() {
            self.done.push(completed(tag, -libc::ECANCELED, false, Payload::None));
        }
        for completion in std::mem::take(&mut self.done) {
            each(&completion);
            if let Payload::Received(lease) = completion.payload {
                self.give_back(lease);
            }
        }
        true
    }

    // ---- memory

    fn read(&self, lease: &Lease) -> &[u8] {
        match lease.set {
            BufferSet::Datagrams => self.datagrams.pool.read(lease),
            BufferSet::Streams => self.streams.pool.read(lease),
        }
    }

    fn give_back(&mut self, lease: Lease) {
        match lease.set {
            BufferSet::Datagrams => self.datagrams.pool.give_back(lease),
            BufferSet::Streams => self.streams.pool.give_back(lease),
        }
    }

    fn send_slot(&mut self) -> Option<SendSlot> {
        self.datagrams.slots.acquire()
    }

    fn slot_bytes(&mut self, slot: &mut SendSlot) -> &mut [u8] {
        self.datagrams.slots.bytes_mut(slot)
    }

    fn release_slot(&mut self, slot: SendSlot) {
        self.datagrams.slots.release(slot);
    }

    // ---- operations

    fn receive_datagrams(&mut self, inbox: Inbox, tag: u64) {
        self.datagrams.arm(inbox, tag);
    }

    fn accept_streams(&mut self, tag: u64) {
        self.listener.armed = Some(tag);
    }

    fn stop_receiving(&mut self, _tag: u64) {
        self.datagrams.stop_receiving(&self.epoll, &mut self.done);
        if let Some(tag) = self.listener.armed.take() {
            self.done.push(completed(tag, -libc::ECANCELED, false, Payload::None));
        }
    }

    fn watch_wake(&mut self, tag: u64) {
        self.watch = Some(tag);
    }

    fn receive_stream(&mut self, stream: BorrowedFd<'_>, tag: u64) {
        self.streams.arm(&self.epoll, stream, tag, false, &mut self.done);
    }

    fn receive_stream_once(&mut self, stream: BorrowedFd<'_>, tag: u64) {
        self.streams.arm(&self.epoll, stream, tag, true, &mut self.done);
    }

    fn send_datagram(&mut self, slot: SendSlot, len: usize, route: &Route) {
        self.datagrams.queue(slot, len, route);
    }

    fn send_stream(&mut self, stream: BorrowedFd<'_>, bytes: Vec<u8>, from: usize, tag: u64) {
        self.streams.send(&self.epoll, stream, bytes, from, tag, &mut self.done);
    }

    fn cancel_receive(&mut self, stream: BorrowedFd<'_>, _receive_tag: u64, tag: u64) {
        self.streams.cancel_receive(stream, &mut self.done);
        self.done.push(completed(tag, 0, false, Payload::None));
    }

    fn cancel_send(&mut self, stream: BorrowedFd<'_>, _send_tag: u64, tag: u64) {
        self.streams.cancel_send(stream, &mut self.done);
        self.done.push(completed(tag, 0, false, Payload::None));
    }

    fn forget_stream(&mut self, stream: BorrowedFd<'_>) {
        self.streams.forget(&self.epoll, stream);
    }
}
