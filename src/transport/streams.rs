//! The streams of one shard: accepted or adopted, read, written, closed.
//!
//! Owns every connected descriptor and what is queued on it. Must not know what a message says, nor decide when a stream has
//! to go: the handler says so, which is told of every stream from its first moment to its last.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use duet_core::Close;

use super::bind::Moved;
use super::counters::Counters;
use super::framing::{Fault, Framer, LENGTH_LEN, Owner};
use super::operation::Operation;
use super::settings::Settings;
use super::stream::{Phase, Reason, Stream};
use super::table::Table;
use super::{Handler, Now, StreamId};
use crate::driver::{Completion, Driver, Payload};

/// Spare send buffers kept, and the largest worth keeping.
const SPARES_MAX: usize = 256;
const SPARE_CAPACITY_MAX: usize = 8_192;

/// What the loop lends for a call.
pub(super) struct Context<'a> {
    pub(super) driver: &'a mut dyn Driver,
    pub(super) counters: &'a mut Counters,
    pub(super) settings: &'a Settings,
    pub(super) now: Now,
    pub(super) shard: usize,
}

#[derive(Debug, Default)]
pub(super) struct Streams {
    table: Table<Stream>,
    /// Accepting resumes then, µs.
    accept_at_us: Option<u64>,
    /// Whether nothing more is accepted.
    stopped: bool,
    /// Streams with output and no send in flight.
    dirty: Vec<StreamId>,
    /// Streams whose peers have ended their direction, and that the handler has not been told of.
    ended: Vec<StreamId>,
    /// Streams that closed or moved, and that the handler has not been told of.
    closed: Vec<StreamId>,
    spares: Vec<Vec<u8>>,
}

impl Streams {
    // ---- lookups

    fn stream(&mut self, id: StreamId) -> Option<&mut Stream> {
        self.table.get_mut(id)
    }

    /// When accepting resumes, if it pauses, µs.
    pub(super) fn next_us(&self) -> Option<u64> {
        self.accept_at_us
    }

    /// A stream whose peer has ended its direction, and that the handler has not been told of.
    pub(super) fn pop_ended(&mut self) -> Option<StreamId> {
        self.ended.pop()
    }

    /// A closed stream the handler has not been told of.
    pub(super) fn pop_closed(&mut self) -> Option<StreamId> {
        self.closed.pop()
    }

    /// Whether output waits or is on its way.
    pub(super) fn is_flushed(&self) -> bool {
        self.table.iter().all(|(_, stream)| stream.phase == Phase::Closing || stream.unsent() == 0)
    }

    // ---- arriving

    /// A completion of the accept operation. `open` asks the handler whether a stream may stay.
    pub(super) fn accepted(
        &mut self,
        context: &mut Context<'_>,
        completion: Completion,
        open: impl FnOnce(StreamId, SocketAddr, u64) -> bool,
    ) {
        if let Payload::Accepted(fd) = completion.payload {
            context.counters.streams_accepted += 1;
            let since_us = context.now.mono_us;
            if let Some(id) = self.insert(context, fd, Phase::Sorting, since_us, open) {
                self.receive(context, id);
            }
        } else if completion.result != -libc::ECANCELED {
            context.counters.accept_failed += 1;
            let exhausted = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM];
            if !completion.more && !self.stopped && exhausted.contains(&-completion.result) {
                self.accept_at_us = Some(context.now.mono_us + context.settings.accept_pause_us);
                return;
            }
        }
        if !completion.more && !self.stopped {
            context.driver.accept_streams(Operation::Accept.tag(0));
        }
    }

    /// Accepts nothing more, when what is under way has ended.
    pub(super) fn stop_accepting(&mut self) {
        self.stopped = true;
        self.accept_at_us = None;
    }

    /// A stream that another shard accepted for us.
    pub(super) fn adopt(
        &mut self,
        context: &mut Context<'_>,
        moved: Moved,
        handler: &mut impl Handler,
    ) {
        context.counters.streams_adopted += 1;
        let now = context.now;
        let open = |id, peer, since_us| handler.handle_stream_opened(now, id, peer, since_us);
        let Some(id) = self.insert(context, moved.fd, Phase::Open, moved.since_us, open) else {
            return;
        };
        let deliver = |id, message: &[u8]| handler.handle_message(now, id, message);
        match self.deliver(context.counters, id, &moved.bytes, deliver) {
            Ok(()) => self.receive(context, id),
            Err(fault) => self.close(context, id, Reason::Fault(fault)),
        }
    }

    fn insert(
        &mut self,
        context: &mut Context<'_>,
        fd: OwnedFd,
        phase: Phase,
        since_us: u64,
        open: impl FnOnce(StreamId, SocketAddr, u64) -> bool,
    ) -> Option<StreamId> {
        // Whoever has reset his connection already has no address any more.
        let peer = socket2::SockRef::from(&fd).peer_addr().ok().and_then(|peer| peer.as_socket());
        let Some(peer) = peer.filter(|_| self.table.len() < context.settings.streams_max) else {
            context.counters.closed_refused += 1;
            return None;
        };
        let id = self.table.insert(Stream {
            fd,
            phase,
            framer: Framer::default(),
            since_us,
            operations: 0,
            ended: false,
            dirty: false,
            queue: Vec::new(),
            lent: 0,
            sent: 0,
        });
        if !open(id, peer, since_us) {
            context.counters.closed_refused += 1;
            self.table.remove(id);
            return None;
        }
        Some(id)
    }

    // ---- reading

    fn receive(&mut self, context: &mut Context<'_>, id: StreamId) {
        let Some(stream) = self.stream(id) else { return };
        let tag = Operation::Receive.tag(id.0);
        match stream.phase {
            Phase::Closing => return,
            // Singly: a stream about to move must have nothing in flight.
            Phase::Sorting => context.driver.receive_stream_once(stream.fd.as_fd(), tag),
            _ => context.driver.receive_stream(stream.fd.as_fd(), tag),
        }
        stream.operations += 1;
    }

    /// A completion of a receive. Returns the stream with its owner if that is another shard.
    pub(super) fn received(
        &mut self,
        context: &mut Context<'_>,
        id: StreamId,
        completion: Completion,
        deliver: impl FnMut(StreamId, &[u8]),
    ) -> Option<(usize, Moved)> {
        let phase = self.completed(id, completion.more);
        let mut moved = None;
        if let Payload::Received(lease) = completion.payload {
            let bytes = context.driver.read(&lease);
            let counters = &mut *context.counters;
            counters.stream_bytes_in += bytes.len() as u64;
            let shards = context.settings.shards;
            let result = match phase {
                _ if bytes.is_empty() => Ok(()),
                Phase::Closing | Phase::Flushing => {
                    counters.drop_closing += 1;
                    Ok(())
                }
                Phase::Open => self.deliver(counters, id, bytes, deliver),
                Phase::Sorting => match self.owner(id, bytes, shards) {
                    Ok(Owner::Unknown) => {
                        self.framer(id).keep(bytes);
                        Ok(())
                    }
                    Ok(Owner::Shard(shard)) if shard != context.shard => {
                        moved = self.take_out(id, bytes).map(|stream| (shard, stream));
                        Ok(())
                    }
                    Ok(Owner::Shard(_)) => {
                        if let Some(stream) = self.stream(id) {
                            stream.phase = Phase::Open;
                        }
                        self.deliver(counters, id, bytes, deliver)
                    }
                    Err(fault) => Err(fault),
                },
            };
            context.driver.give_back(lease);
            if let Err(fault) = result {
                self.close(context, id, Reason::Fault(fault));
            }
        }
        if let Some((_, stream)) = &moved {
            context.driver.forget_stream(stream.fd.as_fd());
            return moved;
        }
        match completion.result {
            0 => self.end_input(context, id),
            error if error == -libc::ENOBUFS => context.counters.enobufs += 1,
            error if error < 0 => self.close(context, id, Reason::Error),
            _ => (),
        }
        if !completion.more && completion.result != 0 {
            self.receive(context, id);
        }
        self.settle(context, id);
        None
    }

    fn framer(&mut self, id: StreamId) -> &mut Framer {
        &mut self.stream(id).expect("a stream being read").framer
    }

    fn owner(&mut self, id: StreamId, bytes: &[u8], shards: usize) -> Result<Owner, Fault> {
        self.framer(id).owner(bytes, shards)
    }

    fn deliver(
        &mut self,
        counters: &mut Counters,
        id: StreamId,
        bytes: &[u8],
        mut deliver: impl FnMut(StreamId, &[u8]),
    ) -> Result<(), Fault> {
        self.stream(id).expect("a stream being read").framer.feed(bytes, |message| {
            counters.messages_in += 1;
            deliver(id, message);
        })
    }

    /// Removes a stream that nothing is in flight on, to give it to its owner.
    fn take_out(&mut self, id: StreamId, bytes: &[u8]) -> Option<Moved> {
        let stream = self.table.remove(id)?;
        assert_eq!(stream.operations, 0, "a stream moves with nothing in flight");
        let bytes = stream.framer.into_bytes(bytes);
        self.closed.push(id);
        Some(Moved { fd: stream.fd, bytes, since_us: stream.since_us })
    }

    // ---- writing

    /// Queues a message; closes a stream whose queue is full.
    pub(super) fn queue(&mut self, context: &mut Context<'_>, id: StreamId, message: &[u8]) {
        let max = context.settings.stream_queue_max;
        let serving = |stream: &&mut Stream| stream.phase == Phase::Open;
        let Some(stream) = self.table.get_mut(id).filter(serving) else {
            context.counters.send_gone += 1;
            return;
        };
        let len = u16::try_from(message.len()).expect("a message of at most MESSAGE_MAX bytes");
        if stream.unsent() + LENGTH_LEN + message.len() > max {
            return self.close(context, id, Reason::QueueFull);
        }
        if stream.queue.capacity() == 0 {
            stream.queue = self.spares.pop().unwrap_or_default();
        }
        stream.queue.extend_from_slice(&len.to_be_bytes());
        stream.queue.extend_from_slice(message);
        if !stream.dirty && stream.lent == 0 {
            stream.dirty = true;
            self.dirty.push(id);
        }
        context.counters.messages_out += 1;
    }

    /// Starts sending what was queued in this turn, one send a stream.
    pub(super) fn flush(&mut self, context: &mut Context<'_>) {
        while let Some(id) = self.dirty.pop() {
            let Some(stream) = self.stream(id) else { continue };
            stream.dirty = false;
            stream.start_send(context.driver, id);
        }
    }

    /// A completion of a send.
    pub(super) fn sent(
        &mut self,
        context: &mut Context<'_>,
        id: StreamId,
        bytes: Vec<u8>,
        result: i32,
    ) {
        let phase = self.completed(id, false);
        let Some(stream) = self.stream(id) else { return };
        let written = usize::try_from(result).unwrap_or(0);
        context.counters.stream_bytes_out += written as u64;
        stream.sent += written;
        if phase != Phase::Closing && written > 0 && stream.sent < stream.lent {
            let tag = Operation::Send.tag(id.0);
            context.driver.send_stream(stream.fd.as_fd(), bytes, stream.sent, tag);
            stream.operations += 1;
            return;
        }
        (stream.lent, stream.sent) = (0, 0);
        if phase == Phase::Closing {
            // Nothing more to send.
        } else if written == 0 {
            self.close(context, id, Reason::Error);
        } else if !stream.queue.is_empty() {
            stream.start_send(context.driver, id);
        } else if phase == Phase::Flushing {
            self.close(context, id, Reason::Handler(Close::WhenFlushed));
        }
        if self.spares.len() < SPARES_MAX && bytes.capacity() <= SPARE_CAPACITY_MAX {
            let mut spare = bytes;
            spare.clear();
            self.spares.push(spare);
        }
        self.settle(context, id);
    }

    // ---- leaving

    /// Accepts again when the pause is over.
    pub(super) fn expire(&mut self, context: &mut Context<'_>) {
        if self.accept_at_us.is_some_and(|at| at <= context.now.mono_us) {
            self.accept_at_us = None;
            context.driver.accept_streams(Operation::Accept.tag(0));
        }
    }

    /// The peer has ended its direction. One that nothing whole came over has no owner yet, and nothing to wait for.
    fn end_input(&mut self, context: &mut Context<'_>, id: StreamId) {
        let Some(stream) = self.stream(id) else { return };
        stream.ended = true;
        match stream.phase {
            Phase::Sorting => self.close(context, id, Reason::Peer),
            Phase::Open => self.ended.push(id),
            Phase::Flushing | Phase::Closing => {}
        }
    }

    /// Closes a stream as the handler says.
    pub(super) fn finish(&mut self, context: &mut Context<'_>, id: StreamId, close: Close) {
        let Some(stream) = self.stream(id) else { return };
        if close == Close::WhenFlushed && stream.unsent() > 0 {
            if stream.phase != Phase::Closing {
                stream.phase = Phase::Flushing;
            }
            return;
        }
        self.close(context, id, Reason::Handler(close));
    }

    /// Closes a stream now: cancels what is in flight; the descriptor goes after the last completion.
    fn close(&mut self, context: &mut Context<'_>, id: StreamId, reason: Reason) {
        let Some(stream) = self.stream(id) else { return };
        if stream.phase == Phase::Closing {
            return;
        }
        // Who has ended his direction has left by himself, whatever is done about it then.
        let left = stream.ended && reason == Reason::Handler(Close::WhenFlushed);
        let reason = if left { Reason::Peer } else { reason };
        reason.count(context.counters);
        stream.phase = Phase::Closing;
        stream.queue = Vec::new();
        if reason.is_abrupt() {
            let _ = socket2::SockRef::from(&stream.fd).set_linger(Some(Duration::ZERO));
        }
        let sending = stream.lent > 0;
        let receiving = stream.operations > u32::from(sending);
        let [receive, send, cancel] =
            [Operation::Receive, Operation::Send, Operation::Cancel].map(|it| it.tag(id.0));
        if receiving {
            context.driver.cancel_receive(stream.fd.as_fd(), receive, cancel);
            stream.operations += 1;
        }
        if sending {
            context.driver.cancel_send(stream.fd.as_fd(), send, cancel);
            stream.operations += 1;
        }
        self.closed.push(id);
        self.settle(context, id);
    }

    /// The completion of a cancellation.
    pub(super) fn cancelled(&mut self, context: &mut Context<'_>, id: StreamId) {
        self.completed(id, false);
        self.settle(context, id);
    }

    /// Asks the kernel for all receives back, each by its name: to cancel whatever there is costs the square of it.
    pub(super) fn cancel_receives(&self, driver: &mut dyn Driver) {
        for (id, stream) in self.table.iter().filter(|(_, stream)| stream.operations > 0) {
            let [receive, cancel] = [Operation::Receive, Operation::Cancel].map(|it| it.tag(id.0));
            driver.cancel_receive(stream.fd.as_fd(), receive, cancel);
        }
    }

    /// Ends all streams at once, with the driver already drained of their operations; returns those the handler knows.
    pub(super) fn clear(&mut self, counters: &mut Counters) -> Vec<StreamId> {
        let mut known = std::mem::take(&mut self.closed);
        for (id, _) in self.table.drain().filter(|(_, stream)| stream.phase != Phase::Closing) {
            counters.closed_stop += 1;
            known.push(id);
        }
        known
    }

    /// Accounts for a completion and returns the stream's phase.
    fn completed(&mut self, id: StreamId, more: bool) -> Phase {
        let stream = self.stream(id).expect("a place is freed after its last completion only");
        if !more {
            stream.operations -= 1;
        }
        stream.phase
    }

    /// Frees a closing stream that nothing is in flight on.
    fn settle(&mut self, context: &mut Context<'_>, id: StreamId) {
        let Some(stream) = self.stream(id) else { return };
        if stream.phase == Phase::Closing && stream.operations == 0 {
            context.driver.forget_stream(stream.fd.as_fd());
            self.table.remove(id);
        }
    }
}
