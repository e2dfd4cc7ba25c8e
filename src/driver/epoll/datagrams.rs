//! The datagram sockets: many datagrams a call, in the buffers and slots that the ring uses too.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::event::epoll;
use rustix::io::Errno;

use super::super::address::Route;
use super::super::buffers::BufferSet;
use super::super::completion::{
    CONTROL_LEN, Completion, DATAGRAM_HEADER_LEN, NAME_LEN, Payload, datagram_header,
};
use super::super::sends::{SendSlot, SendSlots};
use super::super::{DriverError, Inbox, Sizes};
use super::pool::Pool;
use super::{DATAGRAMS, completed, failed, negated};

/// Datagrams in one call.
const BATCH: usize = 64;

/// A datagram on its way out.
#[derive(Debug)]
struct Outgoing {
    slot: u32,
    len: usize,
}

/// A socket to receive from.
#[derive(Debug)]
struct Source {
    socket: OwnedFd,
    /// The tag of the receive that is armed.
    armed: Option<u64>,
    readable: bool,
}

#[derive(Debug)]
pub(super) struct Datagrams {
    /// In the order of [`Inbox`]. The first one sends.
    sources: [Source; 2],
    pub(super) pool: Pool,
    pub(super) slots: SendSlots,
    queue: VecDeque<Outgoing>,
    /// Whether the socket had no room for the front of the queue.
    blocked: bool,
    /// Whether the poller tells when there is room.
    asked: bool,
    /// Whether nothing more is received.
    stopped: bool,
}

/// The headers of one call. Their pointers are set anew for each.
struct Headers {
    messages: [libc::mmsghdr; BATCH],
    pieces: [libc::iovec; BATCH],
}

impl Headers {
    fn new() -> Self {
        // SAFETY: both are plain C structures for which zeroes are valid: null pointers and zero lengths.
        unsafe { std::mem::zeroed() }
    }

    /// Says where the datagram `index` is received: its address, what comes with it and its bytes each in their place in
    /// the buffer, which is longer than DATAGRAM_HEADER_LEN.
    fn receive_into(&mut self, index: usize, buffer: *mut u8, len: usize) {
        let payload = buffer.wrapping_add(DATAGRAM_HEADER_LEN);
        let control = payload.wrapping_sub(CONTROL_LEN);
        let piece = &mut self.pieces[index];
        let room = len - DATAGRAM_HEADER_LEN;
        *piece = libc::iovec { iov_base: payload.cast(), iov_len: room };
        let header = &mut self.messages[index].msg_hdr;
        header.msg_name = control.wrapping_sub(NAME_LEN).cast();
        header.msg_namelen = u32::try_from(NAME_LEN).unwrap_or(0);
        (header.msg_control, header.msg_controllen) = (control.cast(), CONTROL_LEN);
        (header.msg_iov, header.msg_iovlen) = (piece, 1);
    }
}

/// What a call that counts returned.
fn counted(result: libc::c_int) -> Result<usize, Errno> {
    usize::try_from(result).map_err(|_| {
        let error = io::Error::last_os_error();
        Errno::from_io_error(&error).unwrap_or(Errno::IO)
    })
}

impl Datagrams {
    pub(super) fn new(sockets: [OwnedFd; 2], sizes: &Sizes) -> io::Result<Self> {
        assert!(sizes.datagram_buffer_len > DATAGRAM_HEADER_LEN, "room for a datagram");
        Ok(Self {
            sources: sockets.map(|socket| Source { socket, armed: None, readable: false }),
            pool: Pool::new(
                BufferSet::Datagrams,
                sizes.datagram_buffers,
                sizes.datagram_buffer_len,
            )?,
            slots: SendSlots::new(sizes.send_slots)?,
            queue: VecDeque::with_capacity(sizes.send_slots as usize),
            blocked: false,
            asked: false,
            stopped: false,
        })
    }

    pub(super) fn arm(&mut self, inbox: Inbox, tag: u64) {
        self.sources[inbox as usize].armed = Some(tag);
    }

    /// Takes in what the poller said.
    pub(super) fn is_ready(&mut self, inbox: Inbox, flags: epoll::EventFlags) {
        let failed = epoll::EventFlags::ERR | epoll::EventFlags::HUP;
        self.sources[inbox as usize].readable |= flags.intersects(epoll::EventFlags::IN | failed);
        if inbox == Inbox::Datagrams && flags.intersects(epoll::EventFlags::OUT | failed) {
            self.blocked = false;
        }
    }

    /// Receives until the sockets are empty or the buffers are full.
    pub(super) fn receive(&mut self, done: &mut Vec<Completion>) {
        for source in &mut self.sources {
            while let (true, Some(tag)) = (source.readable, source.armed) {
                let wanted = self.pool.len().min(BATCH);
                if wanted == 0 {
                    source.armed = None;
                    done.push(completed(tag, -libc::ENOBUFS, false, Payload::None));
                    break;
                }
                match receive_batch(&source.socket, &mut self.pool, wanted, tag, done) {
                    Ok(count) if count == wanted => (),
                    Err(Errno::INTR) => (),
                    Ok(_) | Err(Errno::AGAIN) => break,
                    Err(errno) => {
                        source.armed = None;
                        done.push(completed(tag, negated(errno), false, Payload::None));
                    }
                }
            }
            // The poller says it again as long as there is more.
            source.readable = false;
        }
    }

    pub(super) fn queue(&mut self, slot: SendSlot, len: usize, route: &Route) {
        self.queue.push_back(Outgoing { slot: self.slots.lend(slot, len, route), len });
    }

    /// The sockets, in the order of [`Inbox`]: the very descriptors that the poller must watch.
    pub(super) fn sockets(&self) -> [&OwnedFd; 2] {
        self.sources.each_ref().map(|source| &source.socket)
    }

    /// Sends what is queued, as far as the socket has room. Where it has none the poller is asked to tell of it, until it has.
    pub(super) fn send(
        &mut self,
        poller: &OwnedFd,
        done: &mut Vec<Completion>,
    ) -> Result<(), DriverError> {
        while !self.queue.is_empty() && !self.blocked {
            match self.send_batch() {
                Ok(count) => {
                    for _ in 0..count {
                        let len = self.queue.front().map_or(0, |front| front.len);
                        self.complete_front(i32::try_from(len).unwrap_or(i32::MAX), done);
                    }
                }
                Err(Errno::INTR) => (),
                Err(Errno::AGAIN) => self.blocked = true,
                Err(errno) => self.complete_front(negated(errno), done),
            }
        }
        if self.blocked != self.asked {
            self.watch(poller).map_err(failed("watch a socket for room"))?;
            self.asked = self.blocked;
        }
        Ok(())
    }

    /// Tells the poller what is waited for on the socket that sends, too.
    fn watch(&self, poller: &OwnedFd) -> Result<(), Errno> {
        let mut flags = epoll::EventFlags::empty();
        flags.set(epoll::EventFlags::IN, !self.stopped);
        flags.set(epoll::EventFlags::OUT, self.blocked);
        let data = epoll::EventData::new_u64(DATAGRAMS);
        epoll::modify(poller, &self.sources[0].socket, data, flags)
    }

    fn send_batch(&mut self) -> Result<usize, Errno> {
        let mut headers = Headers::new();
        let count = self.queue.len().min(BATCH);
        for (index, outgoing) in self.queue.iter().take(count).enumerate() {
            // SAFETY: a slot that is lent holds its header, and nobody writes to it meanwhile.
            headers.messages[index].msg_hdr = unsafe { self.slots.message(outgoing.slot).read() };
        }
        // SAFETY: the first `count` headers point into slots that are lent; the call reads there, writes the headers'
        // lengths, and keeps nothing.
        counted(unsafe {
            libc::sendmmsg(
                self.sources[0].socket.as_raw_fd(),
                headers.messages.as_mut_ptr(),
                u32::try_from(count).unwrap_or(0),
                libc::MSG_DONTWAIT,
            )
        })
    }

    fn complete_front(&mut self, result: i32, done: &mut Vec<Completion>) {
        let Some(front) = self.queue.pop_front() else { return };
        self.slots.take_back(front.slot);
        done.push(completed(front.slot.into(), result, false, Payload::SentDatagram));
    }

    /// Gives up what is armed and queued.
    pub(super) fn cancel(&mut self, done: &mut Vec<Completion>) {
        while !self.queue.is_empty() {
            self.complete_front(-libc::ECANCELED, done);
        }
        self.disarm(done);
    }

    /// Receives nothing more. What lies in the sockets would end every wait of the poller, so it forgets them.
    pub(super) fn stop_receiving(&mut self, poller: &OwnedFd, done: &mut Vec<Completion>) {
        self.stopped = true;
        // The worst that can come of an error is a loop that does not sleep until its end, which is near.
        let _ = self.watch(poller);
        let _ = epoll::delete(poller, &self.sources[Inbox::Hellos as usize].socket);
        self.disarm(done);
    }

    fn disarm(&mut self, done: &mut Vec<Completion>) {
        for tag in self.sources.iter_mut().filter_map(|source| source.armed.take()) {
            done.push(completed(tag, -libc::ECANCELED, false, Payload::None));
        }
    }
}

fn receive_batch(
    socket: &OwnedFd,
    pool: &mut Pool,
    wanted: usize,
    tag: u64,
    done: &mut Vec<Completion>,
) -> Result<usize, Errno> {
    let mut headers = Headers::new();
    for index in 0..wanted {
        headers.receive_into(index, pool.address(index), pool.size());
    }
    let count = u32::try_from(wanted).unwrap_or(0);
    // SAFETY: the first `wanted` headers point to free buffers, all different, and to `headers.pieces`, which does
    // not move; the call writes there and keeps nothing.
    let received = counted(unsafe {
        libc::recvmmsg(
            socket.as_raw_fd(),
            headers.messages.as_mut_ptr(),
            count,
            libc::MSG_DONTWAIT,
            std::ptr::null_mut(),
        )
    })?;
    for message in &headers.messages[..received] {
        let libc::mmsghdr { msg_hdr: head, msg_len } = message;
        let flags = head.msg_flags.cast_unsigned();
        let header = datagram_header(head.msg_namelen, head.msg_controllen, *msg_len, flags);
        let buffer = pool.next_mut().expect("received into free buffers");
        buffer[..header.len()].copy_from_slice(&header);
        let len = DATAGRAM_HEADER_LEN + message.msg_len as usize;
        let result = i32::try_from(len).unwrap_or(i32::MAX);
        done.push(completed(tag, result, true, Payload::Received(pool.take(len))));
    }
    Ok(received)
}
