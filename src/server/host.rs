//! A shard as the gateway runs it: its counts are published, and what becomes of commands is delivered.
//!
//! It hands everything on to the core's shard as it came and decides nothing itself.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use duet_core::engine::Engine;
use duet_core::{
    Close, CommandFailure, Event, Handler, Mail, Now, Peer, Settings, Shard, Sink, StreamId,
    Transmit,
};
use duet_telemetry::{Histogram, catalogue as metrics};
use tokio::sync::oneshot;

use super::publish::{Look, Published};
use crate::admin::CommandError;

/// How often counts are published, µs.
const PUBLISH_EVERY_US: u64 = 1_000_000;

/// What becomes of a command.
pub(super) type CommandResult = Result<Vec<u8>, CommandError>;

/// What a shard tells of itself: it alone writes here.
#[derive(Debug, Default)]
pub(super) struct Gauges {
    /// Confirmed sessions.
    pub(super) sessions: AtomicU64,
    /// Sessions that wait for their first record.
    pub(super) pending: AtomicU64,
}

/// Who waits for a shard's answers to commands. Those who give commands and the shard share it.
pub(super) struct Waiting(Mutex<Open>);

struct Open {
    answers: HashMap<u64, oneshot::Sender<CommandResult>>,
    next_token: u64,
    /// Whether the shard has ended: then nobody would answer.
    ended: bool,
}

impl Default for Waiting {
    fn default() -> Self {
        Self(Mutex::new(Open { answers: HashMap::new(), next_token: 0, ended: false }))
    }
}

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, Open> {
        // What it protects is sound after each statement.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for the answer to a command, and the token by which it is found.
    pub(super) fn wait(&self) -> (u64, oneshot::Receiver<CommandResult>) {
        let (answer, waiting) = oneshot::channel();
        let mut open = self.lock();
        let token = open.next_token;
        open.next_token += 1;
        if open.ended {
            // Nobody may be waiting any more, which is fine here and below.
            let _ = answer.send(Err(CommandError::NotConnected));
        } else {
            open.answers.insert(token, answer);
        }
        (token, waiting)
    }

    /// Delivers an answer to whoever waits for it.
    pub(super) fn answer(&self, token: u64, result: CommandResult) {
        let answer = self.lock().answers.remove(&token);
        if let Some(answer) = answer {
            let _ = answer.send(result);
        }
    }

    fn end(&self) {
        let mut open = self.lock();
        open.ended = true;
        for (_, answer) in open.answers.drain() {
            let _ = answer.send(Err(CommandError::SessionEnded));
        }
    }
}

fn told(failure: CommandFailure) -> CommandError {
    match failure {
        CommandFailure::NotConnected => CommandError::NotConnected,
        CommandFailure::TimedOut => CommandError::TimedOut,
        CommandFailure::TooLong => CommandError::TooLong,
        CommandFailure::Busy => CommandError::Busy,
        CommandFailure::Reported(status) => CommandError::Reported(status),
    }
}

/// The core's shard with its surroundings.
pub(super) struct Host<E: Engine, S: Sink> {
    shard: Shard<E, S>,
    gauges: Arc<Gauges>,
    waiting: Arc<Waiting>,
    publish_at_us: u64,
    published: Published,
    hello_batch: Histogram,
    hello_wait: Histogram,
    hello_batch_seconds: Histogram,
}

impl<E: Engine, S: Sink> Host<E, S> {
    pub(super) fn new(shard: Shard<E, S>, gauges: Arc<Gauges>, waiting: Arc<Waiting>) -> Self {
        let Settings { keys, index, .. } = shard.settings();
        let published = Published::new(*index, keys);
        Self {
            shard,
            gauges,
            waiting,
            publish_at_us: 0,
            published,
            hello_batch: metrics::HELLO_BATCH.one(),
            hello_wait: metrics::HELLO_WAIT.one(),
            hello_batch_seconds: metrics::HELLO_BATCH_SECONDS.one(),
        }
    }

    fn take_events(&mut self, now: Now, turn_took: Duration) {
        let mut recorded = Vec::new();
        while let Some(event) = self.shard.poll_event() {
            match event {
                // Whoever waits has it then, and nobody else wants it.
                Event::CommandResult { token, result, record } => {
                    self.waiting.answer(token, result.map_err(told));
                    recorded.extend(record);
                }
                Event::UnexpectedResult { record, .. } => recorded.push(record),
                Event::CommandSent { .. } => {}
                Event::HellosAnswered { count, waited_us } => {
                    #[expect(clippy::cast_precision_loss, reason = "a batch is small")]
                    self.hello_batch.observe(count as f64);
                    self.hello_wait.observe(Duration::from_micros(waited_us).as_secs_f64());
                    self.hello_batch_seconds.observe(turn_took.as_secs_f64());
                }
            }
        }
        if !recorded.is_empty() {
            self.shard.handle_mail(now, Mail::Durable(recorded));
        }
    }

    fn publish(&mut self) {
        let pending = self.shard.pending();
        let live = self.shard.sessions() - pending;
        self.gauges.pending.store(pending as u64, Ordering::Relaxed);
        self.gauges.sessions.store(live as u64, Ordering::Relaxed);
        self.published.publish(&Look {
            sessions: live as u64,
            pending: pending as u64,
            slow_verifications: self.shard.slow_verifications(),
            counts: &self.shard.counts,
        });
    }
}

impl<E: Engine, S: Sink> Handler for Host<E, S> {
    type Mail = Mail;

    fn handle_datagram(&mut self, now: Now, from: impl Into<Peer>, bytes: &[u8]) {
        self.shard.handle_datagram(now, from, bytes);
    }

    fn handle_stream_opened(
        &mut self,
        now: Now,
        stream: StreamId,
        peer: SocketAddr,
        since_us: u64,
    ) -> bool {
        self.shard.handle_stream_opened(now, stream, peer, since_us)
    }

    fn handle_message(&mut self, now: Now, stream: StreamId, bytes: &[u8]) {
        self.shard.handle_message(now, stream, bytes);
    }

    fn handle_stream_ended(&mut self, now: Now, stream: StreamId) {
        self.shard.handle_stream_ended(now, stream);
    }

    fn handle_stream_closed(&mut self, now: Now, stream: StreamId) {
        self.shard.handle_stream_closed(now, stream);
    }

    fn handle_mail(&mut self, now: Now, mail: Mail) {
        let renews = matches!(mail, Mail::Renew(_));
        if renews {
            self.publish();
        }
        self.shard.handle_mail(now, mail);
        if renews {
            self.published.renew(&self.shard.settings().keys);
        }
    }

    fn handle_turn(&mut self, now: Now) {
        let began = Instant::now();
        self.shard.handle_turn(now);
        self.take_events(now, began.elapsed());
        if now.mono_us >= self.publish_at_us || self.shard.is_finished() {
            self.publish_at_us = now.mono_us + PUBLISH_EVERY_US;
            self.publish();
        }
    }

    fn poll_transmit(&mut self, out: &mut [u8]) -> Option<Transmit> {
        self.shard.poll_transmit(out)
    }

    fn poll_close(&mut self) -> Option<(StreamId, Close)> {
        self.shard.poll_close()
    }

    fn poll_timeout(&self) -> Option<u64> {
        self.shard.poll_timeout().into_iter().chain([self.publish_at_us]).min()
    }

    fn is_finished(&self) -> bool {
        self.shard.is_finished()
    }
}

impl<E: Engine, S: Sink> Drop for Host<E, S> {
    fn drop(&mut self) {
        self.publish();
        self.waiting.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_reaches_who_waits_and_nobody_waits_for_a_shard_that_has_ended() {
        let waiting = Waiting::default();
        let [(first, mut one), (second, mut two)] = [waiting.wait(), waiting.wait()];
        assert_ne!(first, second);
        waiting.answer(second, Ok(b"two".to_vec()));
        assert_eq!(two.try_recv().unwrap(), Ok(b"two".to_vec()));
        assert!(one.try_recv().is_err(), "nothing yet");
        waiting.end();
        assert_eq!(one.try_recv().unwrap(), Err(CommandError::SessionEnded));
        assert_eq!(waiting.wait().1.try_recv().unwrap(), Err(CommandError::NotConnected));
    }
}
