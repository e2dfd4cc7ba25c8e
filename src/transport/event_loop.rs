//! The loop of a shard's thread: the order of a turn, and datagrams.
//!
//! *In* come completions of the driver and parcels of other shards; *out* go the handler's messages and closes. A turn takes all
//! input (of a burst, what lies behind it), lets the handler work once, sends, and sleeps. *Never* does it block but in the
//! driver, nor allocate for a datagram of its own shard when warm.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::bind::{Parcel, ShardIo};
use super::counters::{Counters, Exporter};
use super::error::{TransportError, Warning};
use super::locals::Locals;
use super::operation::Operation;
use super::streams::{Context, Streams};
use super::{Handler, MESSAGE_MAX, Now, Path, Peer, Transmit, Via, shard_of, socket};
use crate::driver::{
    Completion, DATAGRAM_HEADER_LEN, Datagram, Inbox, LocalAddress, Payload, Route,
    received_datagram,
};

/// How long the kernel may take to let go of a stopping shard's memory.
const DRAIN_PATIENCE: Duration = Duration::from_secs(1);

/// How long a finished handler's output may take to flush, µs.
const FINISH_PATIENCE_US: u64 = 1_000_000;

/// Messages asked of the handler in one turn before input gets its turn again.
const TRANSMITS_A_TURN: usize = 4_096;

/// Completions in one turn that count as load: then the next wait gathers a batch.
const BUSY_COMPLETIONS: usize = 2;

/// So many datagrams at once mean that more may wait in the kernel's buffers: io_uring takes no more
/// than 32 from a socket before others have their turn.
const BURST: u64 = 32;

/// Datagrams taken in one turn, of a burst, before the handler works: what does not fit the kernel's
/// buffers meanwhile is lost, and whoever sent it waits a second or more.
const TAKEN_A_TURN: u64 = 1_024;

/// How many more it takes, once, after a turn that found fewer than [`BURST`]: many who come at the same moment are taken whole.
/// Who sends on and on gets no more of it.
const CREDIT: u64 = 8_192;

/// How many completions end the gathering of a batch early.
const BATCH: u32 = 64;

/// A shard whose loop has ended.
#[derive(Debug)]
pub struct Finished<H> {
    /// The handler, as it was at the end.
    pub handler: H,
    /// Everything the shard counted.
    pub counters: Counters,
    /// What did not work as asked.
    pub warnings: Vec<Warning>,
    locals: Locals,
}

impl<H> Finished<H> {
    /// The handler, and what says which address a number stands for.
    pub fn handler_and_locals(&mut self) -> (&mut H, impl Fn(Via) -> Option<LocalAddress> + '_) {
        let locals = &self.locals;
        (&mut self.handler, |via| locals.address(via))
    }
}

struct Shard<H: Handler> {
    io: ShardIo<H::Mail>,
    handler: H,
    streams: Streams,
    counters: Counters,
    now: Now,
    input: Input,
    output: Output,
    burst: Burst,
}

/// What is received from the datagram sockets.
struct Input {
    /// Whether the handler wants it.
    wanted: bool,
    /// Receives that have not had their last completion.
    receives: usize,
}

/// How much of a burst is taken before the handler works.
struct Burst {
    /// What is left of [`CREDIT`].
    credit: u64,
}

impl Burst {
    /// Whether to look for more: so many came at the last look, so many in this turn.
    fn goes_on(&mut self, came: u64, taken: u64) -> bool {
        if taken < BURST {
            self.credit = CREDIT;
        }
        if came < BURST {
            return false;
        }
        if taken < TAKEN_A_TURN {
            return true;
        }
        let goes_on = self.credit > 0;
        self.credit = self.credit.saturating_sub(came);
        goes_on
    }
}

/// How far the handler's output was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Output {
    /// To the end.
    Taken,
    /// Until the send slots ran out: the next completion frees one.
    Stalled,
    /// Until it was time for input again.
    Cut,
}

/// Runs a shard on the calling thread until its handler has finished or [`Stop`](super::Stop) is used.
///
/// # Errors
/// When the kernel refuses to go on.
pub fn run_shard<H: Handler>(
    io: ShardIo<H::Mail>,
    handler: H,
) -> Result<Finished<H>, TransportError> {
    let mut warnings = Vec::new();
    if let Some(core) = io.settings.cores.get(io.shard).copied()
        && let Err(source) = socket::pin_to(core)
    {
        warnings.push(Warning::NotPinned { shard: io.shard, core, source });
    }
    let mut shard = Shard {
        io,
        handler,
        streams: Streams::default(),
        counters: Counters::default(),
        now: socket::now(),
        input: Input { wanted: true, receives: 0 },
        output: Output::Taken,
        burst: Burst { credit: CREDIT },
    };
    shard.io.driver.enable()?;
    let mut exporter = Exporter::new(shard.io.shard);
    let result = shard.run(&mut exporter);
    shard.end();
    exporter.export(&shard.counters);
    let Shard { io, handler, counters, .. } = shard;
    result.map(|()| Finished { handler, counters, warnings, locals: io.locals })
}

impl<H: Handler> Shard<H> {
    fn run(&mut self, exporter: &mut Exporter) -> Result<(), TransportError> {
        self.receive_datagrams(Inbox::Datagrams);
        self.receive_datagrams(Inbox::Hellos);
        let driver = &mut self.io.driver;
        driver.accept_streams(Operation::Accept.tag(0));
        driver.watch_wake(Operation::Wake.tag(0));
        let mut completions = Vec::new();
        let mut export_us = self.now.mono_us + self.io.settings.export_us;
        let mut finish_by_us = None;
        loop {
            let busy = self.turn(&mut completions)?;
            if self.now.mono_us >= export_us {
                exporter.export(&self.counters);
                export_us = self.now.mono_us + self.io.settings.export_us;
            }
            if self.io.stop.load(Ordering::Acquire) {
                return Ok(());
            }
            // What has been received of the last input is delivered before the end.
            if self.handler.is_finished() && (self.input.wanted || self.input.receives == 0) {
                let by = *finish_by_us.get_or_insert(self.now.mono_us + FINISH_PATIENCE_US);
                let flushed = self.output == Output::Taken && self.streams.is_flushed();
                if flushed || self.now.mono_us >= by {
                    // The last datagrams are pushed but not submitted.
                    self.io.driver.enter(0, Some(Duration::ZERO), 0)?;
                    return Ok(());
                }
            }
            let no_later_us = finish_by_us.map_or(export_us, |by| export_us.min(by));
            self.wait(no_later_us, busy)?;
            self.io.driver.reap(&mut completions);
            self.now = socket::now();
        }
    }

    /// Sleeps until there is input, or until something is due.
    fn wait(&mut self, no_later_us: u64, busy: bool) -> Result<(), TransportError> {
        let due_us = [self.handler.poll_timeout(), self.streams.next_us()]
            .into_iter()
            .flatten()
            .fold(no_later_us, u64::min);
        let left = Duration::from_micros(due_us.saturating_sub(self.now.mono_us));
        let driver = &mut self.io.driver;
        if left.is_zero() || self.output == Output::Cut || !self.io.mailbox.begin_sleep() {
            return Ok(driver.enter(0, Some(Duration::ZERO), 0)?);
        }
        let gather_us =
            self.io.settings.min_wait_us.min(u32::try_from(left.as_micros()).unwrap_or(u32::MAX));
        let gather = busy && gather_us > 0 && driver.can_wait_for_a_batch();
        let result = if gather {
            driver.enter(BATCH, Some(left), gather_us)
        } else {
            driver.enter(1, Some(left), 0)
        };
        self.io.mailbox.woke();
        Ok(result?)
    }

    /// One turn; true if there was enough input to call it load.
    fn turn(&mut self, completions: &mut Vec<Completion>) -> Result<bool, TransportError> {
        self.counters.turns += 1;
        let busy = completions.len() >= BUSY_COMPLETIONS;
        self.take(completions)?;
        for _ in 0..self.io.settings.mailbox {
            match self.io.mailbox.try_recv() {
                Some(parcel) => self.open(parcel),
                None => break,
            }
        }
        self.with_streams(|streams, context, _| streams.expire(context));
        self.tell_closed();
        self.handler.handle_turn(self.now);
        if self.input.wanted && !self.handler.takes_input() {
            self.input.wanted = false;
            self.streams.stop_accepting();
            self.io.driver.stop_receiving(Operation::Stop.tag(0));
        }
        self.transmit();
        if self.output == Output::Taken {
            while let Some((id, close)) = self.handler.poll_close() {
                self.with_streams(|streams, context, _| streams.finish(context, id, close));
            }
        }
        self.with_streams(|streams, context, _| streams.flush(context));
        self.tell_closed();
        Ok(busy)
    }

    /// Takes what has come, and of a burst what lies behind it.
    fn take(&mut self, completions: &mut Vec<Completion>) -> Result<(), TransportError> {
        let before = self.counters.datagrams_in;
        loop {
            let already = self.counters.datagrams_in;
            for completion in completions.drain(..) {
                self.complete(completion);
            }
            let came = self.counters.datagrams_in - already;
            if !self.burst.goes_on(came, self.counters.datagrams_in - before) {
                return Ok(());
            }
            self.io.driver.enter(0, Some(Duration::ZERO), 0)?;
            self.io.driver.reap(completions);
        }
    }

    fn with_streams<R>(
        &mut self,
        act: impl FnOnce(&mut Streams, &mut Context<'_>, &mut H) -> R,
    ) -> R {
        let mut context = Context {
            driver: &mut *self.io.driver,
            counters: &mut self.counters,
            settings: &self.io.settings,
            now: self.now,
            shard: self.io.shard,
        };
        act(&mut self.streams, &mut context, &mut self.handler)
    }

    fn tell_closed(&mut self) {
        while let Some(id) = self.streams.pop_ended() {
            self.handler.handle_stream_ended(self.now, id);
        }
        while let Some(id) = self.streams.pop_closed() {
            self.handler.handle_stream_closed(self.now, id);
        }
    }

    // ---- input

    fn complete(&mut self, completion: Completion) {
        if let Payload::SentDatagram = completion.payload {
            return count_sent(&mut self.counters, completion.result);
        }
        let now = self.now;
        let (operation, id) = Operation::of(completion.tag);
        match operation.expect("a tag of ours") {
            Operation::Accept => {
                self.with_streams(|streams, context, handler| {
                    streams.accepted(context, completion, |id, peer, since_us| {
                        handler.handle_stream_opened(now, id, peer, since_us)
                    });
                });
            }
            Operation::Datagrams => self.received_datagram(completion, Inbox::Datagrams),
            Operation::Hellos => self.received_datagram(completion, Inbox::Hellos),
            Operation::Wake => {
                if !completion.more {
                    self.io.driver.watch_wake(Operation::Wake.tag(0));
                }
            }
            Operation::Receive => {
                let moved = self.with_streams(|streams, context, handler| {
                    streams.received(context, id, completion, |stream, message| {
                        handler.handle_message(now, stream, message);
                    })
                });
                if let Some((owner, moved)) = moved {
                    match self.io.shards[owner].try_send(Parcel::Stream(moved)) {
                        Ok(()) => self.counters.streams_handed_over += 1,
                        Err(_) => self.counters.closed_hand_over += 1,
                    }
                }
            }
            Operation::Send => {
                let Payload::Sent(bytes) = completion.payload else {
                    unreachable!("a stream send returns its bytes")
                };
                self.with_streams(|streams, context, _| {
                    streams.sent(context, id, bytes, completion.result);
                });
            }
            Operation::Cancel => {
                self.with_streams(|streams, context, _| streams.cancelled(context, id));
            }
            Operation::Stop => {}
        }
    }

    fn receive_datagrams(&mut self, inbox: Inbox) {
        let operation = match inbox {
            Inbox::Datagrams => Operation::Datagrams,
            Inbox::Hellos => Operation::Hellos,
        };
        self.io.driver.receive_datagrams(inbox, operation.tag(0));
        self.input.receives += 1;
    }

    fn received_datagram(&mut self, completion: Completion, inbox: Inbox) {
        if let Payload::Received(lease) = completion.payload {
            self.counters.datagrams_in += 1;
            let buffer = self.io.driver.read(&lease);
            self.counters.datagram_bytes_in +=
                buffer.len().saturating_sub(DATAGRAM_HEADER_LEN) as u64;
            match received_datagram(buffer) {
                None => self.counters.drop_malformed += 1,
                Some(Datagram { bytes, cut, .. }) if cut || bytes.len() > MESSAGE_MAX => {
                    self.counters.drop_oversize += 1;
                }
                Some(Datagram { peer, local, bytes, .. }) => {
                    match shard_of(bytes, self.io.settings.shards) {
                        None => self.counters.drop_short += 1,
                        Some(owner) if owner == self.io.shard => {
                            let from = Peer::new(peer, self.io.locals.via(local));
                            self.handler.handle_datagram(self.now, from, bytes);
                        }
                        Some(owner) => {
                            let parcel = Parcel::Datagram { peer, local, bytes: bytes.into() };
                            match self.io.shards[owner].try_send(parcel) {
                                Ok(()) => self.counters.datagrams_forwarded += 1,
                                Err(_) => self.counters.drop_forward += 1,
                            }
                        }
                    }
                }
            }
            self.io.driver.give_back(lease);
        } else if completion.result == -libc::ENOBUFS {
            self.counters.enobufs += 1;
        } else if completion.result < 0 && completion.result != -libc::ECANCELED {
            self.counters.receive_failed += 1;
        }
        if !completion.more {
            self.input.receives -= 1;
            if self.input.wanted {
                self.receive_datagrams(inbox);
            }
        }
    }

    fn open(&mut self, parcel: Parcel<H::Mail>) {
        let now = self.now;
        match parcel {
            Parcel::Mail(mail) => self.handler.handle_mail(now, mail),
            Parcel::Datagram { peer, local, bytes } => {
                let from = Peer::new(peer, self.io.locals.via(local));
                self.handler.handle_datagram(now, from, &bytes);
            }
            Parcel::Stream(moved) => self.with_streams(|streams, context, handler| {
                streams.adopt(context, moved, handler);
            }),
        }
    }

    // ---- output

    /// Takes the handler's output until it has none, the slots run out, or it is time for input again.
    fn transmit(&mut self) {
        self.output = Output::Taken;
        for _ in 0..TRANSMITS_A_TURN {
            let Some(mut slot) = self.io.driver.send_slot() else {
                self.counters.send_stalls += 1;
                self.output = Output::Stalled;
                return;
            };
            let out = &mut self.io.driver.slot_bytes(&mut slot)[..MESSAGE_MAX];
            let Some(Transmit { to, len }) = self.handler.poll_transmit(out) else {
                return self.io.driver.release_slot(slot);
            };
            assert!((1..=MESSAGE_MAX).contains(&len), "a handler writes 1 to MESSAGE_MAX bytes");
            match to {
                Path::Datagram(to) => match self.route(to) {
                    Some(route) => self.io.driver.send_datagram(slot, len, &route),
                    None => {
                        self.counters.send_failed += 1;
                        self.io.driver.release_slot(slot);
                    }
                },
                Path::Stream(id) => {
                    let mut message = [0; MESSAGE_MAX];
                    message[..len].copy_from_slice(&self.io.driver.slot_bytes(&mut slot)[..len]);
                    self.io.driver.release_slot(slot);
                    self.with_streams(|streams, context, _| {
                        streams.queue(context, id, &message[..len]);
                    });
                }
            }
        }
        self.output = Output::Cut;
    }

    fn route(&self, to: Peer) -> Option<Route> {
        Route::new(to.address(), self.io.locals.address(to.via()), self.io.local.is_ipv6())
    }

    // ---- the end

    /// Takes everything back from the kernel, closes all streams and tells the handler.
    fn end(&mut self) {
        self.streams.cancel_receives(&mut *self.io.driver);
        let counters = &mut self.counters;
        self.io.driver.drain(DRAIN_PATIENCE, &mut |completion| match &completion.payload {
            Payload::SentDatagram => count_sent(counters, completion.result),
            Payload::Received(_)
                if matches!(
                    Operation::of(completion.tag).0,
                    Some(Operation::Datagrams | Operation::Hellos)
                ) =>
            {
                counters.datagrams_in += 1;
                counters.drop_stop += 1;
            }
            Payload::Accepted(_) => {
                counters.streams_accepted += 1;
                counters.closed_stop += 1;
            }
            _ => (),
        });
        while let Some(parcel) = self.io.mailbox.try_recv() {
            match parcel {
                Parcel::Stream(_) => {
                    counters.streams_adopted += 1;
                    counters.closed_stop += 1;
                }
                Parcel::Datagram { .. } => counters.drop_stop += 1,
                Parcel::Mail(_) => (),
            }
        }
        for id in self.streams.clear(&mut self.counters) {
            self.handler.handle_stream_closed(self.now, id);
        }
    }
}

fn count_sent(counters: &mut Counters, result: i32) {
    if let Ok(len) = u64::try_from(result) {
        counters.datagrams_out += 1;
        counters.datagram_bytes_out += len;
    } else {
        counters.send_failed += 1;
    }
}

#[cfg(test)]
mod tests;
