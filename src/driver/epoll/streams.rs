//! Streams: what is armed on each, what the poller said of it, and the calls that follow.
#![allow(unsafe_code)]

use std::collections::hash_map::Entry;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustc_hash::FxHashMap;
use rustix::event::epoll::{self, EventFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use super::super::Sizes;
use super::super::buffers::BufferSet;
use super::super::completion::{Completion, Payload};
use super::pool::Pool;
use super::{completed, negated};

/// Buffers that one stream fills before the others get their turn.
const READS: usize = 8;

#[derive(Debug)]
struct Receive {
    tag: u64,
    once: bool,
}

#[derive(Debug)]
struct Send {
    bytes: Vec<u8>,
    from: usize,
    sent: usize,
    tag: u64,
}

#[derive(Debug, Default)]
struct Stream {
    receive: Option<Receive>,
    send: Option<Send>,
    /// What the poller said and no call has denied since.
    readable: bool,
    writable: bool,
    /// The peer has ended its direction or sent something urgent. A read then stops early and no edge follows, so
    /// only `EAGAIN` tells that all is read.
    stops_early: bool,
    /// Whether it is listed in `Streams::ready`.
    listed: bool,
}

#[derive(Debug)]
pub(super) struct Streams {
    pub(super) pool: Pool,
    table: FxHashMap<RawFd, Stream>,
    /// Readable ones with a receive armed; others may be among them.
    ready: Vec<RawFd>,
    /// Those of the turn that is going on.
    turn: Vec<RawFd>,
}

impl Streams {
    pub(super) fn new(sizes: &Sizes) -> io::Result<Self> {
        Ok(Self {
            pool: Pool::new(BufferSet::Streams, sizes.stream_buffers, sizes.stream_buffer_len)?,
            table: FxHashMap::default(),
            ready: Vec::new(),
            turn: Vec::new(),
        })
    }

    /// Whether a receive can go on without waiting.
    pub(super) fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    pub(super) fn arm(
        &mut self,
        poller: &OwnedFd,
        stream: BorrowedFd<'_>,
        tag: u64,
        once: bool,
        done: &mut Vec<Completion>,
    ) {
        match watched(&mut self.table, poller, stream) {
            Ok(entry) => {
                entry.receive = Some(Receive { tag, once });
                list(entry, stream.as_raw_fd(), &mut self.ready);
            }
            Err(errno) => done.push(completed(tag, negated(errno), false, Payload::None)),
        }
    }

    pub(super) fn send(
        &mut self,
        poller: &OwnedFd,
        stream: BorrowedFd<'_>,
        bytes: Vec<u8>,
        from: usize,
        tag: u64,
        done: &mut Vec<Completion>,
    ) {
        assert!(from < bytes.len(), "something to send");
        match watched(&mut self.table, poller, stream) {
            Ok(entry) => {
                entry.send = Some(Send { bytes, from, sent: 0, tag });
                send_on(entry, stream, done);
            }
            Err(errno) => done.push(completed(tag, negated(errno), false, Payload::Sent(bytes))),
        }
    }

    /// Takes in what the poller said of a stream.
    pub(super) fn is_ready_for(
        &mut self,
        token: u64,
        flags: EventFlags,
        done: &mut Vec<Completion>,
    ) {
        let Ok(fd) = RawFd::try_from(token) else { return };
        let Some(entry) = self.table.get_mut(&fd) else { return };
        let failed = EventFlags::ERR | EventFlags::HUP;
        entry.stops_early |= flags.intersects(EventFlags::RDHUP | EventFlags::PRI | failed);
        entry.readable |= flags.intersects(EventFlags::IN | EventFlags::RDHUP | failed);
        entry.writable |= flags.intersects(EventFlags::OUT | failed);
        if entry.send.is_some() {
            // SAFETY: a send is armed on it, so its owner keeps it open.
            send_on(entry, unsafe { BorrowedFd::borrow_raw(fd) }, done);
        }
        list(entry, fd, &mut self.ready);
    }

    /// Receives from every stream that is ready.
    pub(super) fn receive(&mut self, done: &mut Vec<Completion>) {
        std::mem::swap(&mut self.ready, &mut self.turn);
        for index in 0..self.turn.len() {
            let fd = self.turn[index];
            // Gone since it was listed, or the number is another stream's, which then is asked once too often.
            let Some(entry) = self.table.get_mut(&fd) else { continue };
            entry.listed = false;
            for _ in 0..READS {
                if !receive_on(entry, fd, &mut self.pool, done) {
                    break;
                }
            }
            list(entry, fd, &mut self.ready);
        }
        self.turn.clear();
    }

    pub(super) fn cancel_receive(&mut self, stream: BorrowedFd<'_>, done: &mut Vec<Completion>) {
        if let Some(entry) = self.table.get_mut(&stream.as_raw_fd()) {
            cancel_receive(entry, done);
        }
    }

    pub(super) fn cancel_send(&mut self, stream: BorrowedFd<'_>, done: &mut Vec<Completion>) {
        if let Some(entry) = self.table.get_mut(&stream.as_raw_fd()) {
            cancel_send(entry, done);
        }
    }

    pub(super) fn cancel_all(&mut self, done: &mut Vec<Completion>) {
        for entry in self.table.values_mut() {
            cancel_receive(entry, done);
            cancel_send(entry, done);
        }
    }

    pub(super) fn forget(&mut self, poller: &OwnedFd, stream: BorrowedFd<'_>) {
        if let Some(entry) = self.table.remove(&stream.as_raw_fd()) {
            assert!(entry.receive.is_none() && entry.send.is_none(), "nothing is in flight on it");
            // It can only fail if it is not watched, and then nothing is lost.
            let _ = epoll::delete(poller, stream);
        }
    }
}

/// The stream's entry, watched from now on.
fn watched<'a>(
    table: &'a mut FxHashMap<RawFd, Stream>,
    poller: &OwnedFd,
    stream: BorrowedFd<'_>,
) -> Result<&'a mut Stream, Errno> {
    let fd = stream.as_raw_fd();
    match table.entry(fd) {
        Entry::Occupied(entry) => Ok(entry.into_mut()),
        Entry::Vacant(entry) => {
            let flags = EventFlags::IN
                | EventFlags::OUT
                | EventFlags::PRI
                | EventFlags::RDHUP
                | EventFlags::ET;
            let token = epoll::EventData::new_u64(u64::from(fd.unsigned_abs()));
            epoll::add(poller, stream, token, flags)?;
            // A fresh one nearly always has room, and perhaps nothing to read yet: the poller tells.
            Ok(entry.insert(Stream { writable: true, ..Stream::default() }))
        }
    }
}

fn list(entry: &mut Stream, fd: RawFd, ready: &mut Vec<RawFd>) {
    if entry.readable && entry.receive.is_some() && !entry.listed {
        entry.listed = true;
        ready.push(fd);
    }
}

/// Receives once; true if there may be more to receive.
fn receive_on(entry: &mut Stream, fd: RawFd, pool: &mut Pool, done: &mut Vec<Completion>) -> bool {
    let (true, Some(Receive { tag, once })) = (entry.readable, &entry.receive) else {
        return false;
    };
    let (tag, once) = (*tag, *once);
    // SAFETY: a receive is armed on it, so its owner keeps it open.
    let stream = unsafe { BorrowedFd::borrow_raw(fd) };
    let result = pool.next_mut().ok_or(Errno::NOBUFS).and_then(|buffer| {
        rustix::net::recv(stream, buffer, RecvFlags::DONTWAIT).map(|(_, received)| received)
    });
    match result {
        Ok(len @ 1..) => {
            let lease = pool.take(len);
            // Less than there was room for: all is read, and what comes later is told again.
            entry.readable = entry.stops_early || len == pool.size();
            let result = i32::try_from(len).unwrap_or(i32::MAX);
            done.push(completed(tag, result, !once, Payload::Received(lease)));
            if once {
                entry.receive = None;
            }
        }
        Err(Errno::INTR) => (),
        Err(Errno::AGAIN) => entry.readable = false,
        ended => {
            entry.receive = None;
            let result = ended.map_or_else(negated, |_| 0);
            done.push(completed(tag, result, false, Payload::None));
        }
    }
    true
}

/// Sends as much as the stream takes; completes when all is out or nothing more goes.
fn send_on(entry: &mut Stream, stream: BorrowedFd<'_>, done: &mut Vec<Completion>) {
    while let (true, Some(send)) = (entry.writable, &mut entry.send) {
        let left = &send.bytes[send.from + send.sent..];
        let result =
            match rustix::net::send(stream, left, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(len) if len < left.len() => {
                    send.sent += len;
                    continue;
                }
                Ok(len) => Ok(send.sent + len),
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => {
                    entry.writable = false;
                    return;
                }
                Err(_) if send.sent > 0 => Ok(send.sent),
                Err(errno) => Err(errno),
            };
        complete_send(entry, result, done);
    }
}

fn complete_send(entry: &mut Stream, result: Result<usize, Errno>, done: &mut Vec<Completion>) {
    let Some(Send { bytes, tag, .. }) = entry.send.take() else { return };
    let result = result.map_or_else(negated, |sent| i32::try_from(sent).unwrap_or(i32::MAX));
    done.push(completed(tag, result, false, Payload::Sent(bytes)));
}

fn cancel_receive(entry: &mut Stream, done: &mut Vec<Completion>) {
    if let Some(Receive { tag, .. }) = entry.receive.take() {
        done.push(completed(tag, -libc::ECANCELED, false, Payload::None));
    }
}

fn cancel_send(entry: &mut Stream, done: &mut Vec<Completion>) {
    let result = match &entry.send {
        Some(Send { sent: 0, .. }) | None => Err(Errno::CANCELED),
        Some(Send { sent, .. }) => Ok(*sent),
    };
    complete_send(entry, result, done);
}
