//! A shard as the gateway runs it: its counts are published, and what becomes of commands is told to their queue.
//!
//! It hands everything on to the core's shard as it came and decides nothing itself.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use duet_core::engine::Engine;
use duet_core::{
    Close, Counts, Event, Handler, Local, Mail, Now, Peer, Settings, Shard, Sink, StreamId,
    TakenOver, Transmit, Via,
};
use duet_telemetry::{Histogram, catalogue as metrics};

use super::handover::HandedOver;
use super::notices::Notices;
use super::publish::{Look, Published};
use super::refusals::Notes;
use crate::commands::Teller;
use crate::presence::Watch;

/// How often counts are published, µs.
const PUBLISH_EVERY_US: u64 = 1_000_000;

/// What a shard tells of itself: it alone writes here.
#[derive(Debug, Default)]
pub(super) struct Gauges {
    /// Confirmed sessions.
    pub(super) sessions: AtomicU64,
    /// Sessions that wait for their first record.
    pub(super) pending: AtomicU64,
    /// How often it has published: it does so every second, so one that does not is stuck.
    pub(super) turns: AtomicU64,
    /// What it has counted, as it was published last.
    pub(super) counts: Mutex<Counts>,
}

/// The core's shard with its surroundings.
pub(super) struct Host<E: Engine, S: Sink> {
    shard: Shard<E, S>,
    gauges: Arc<Gauges>,
    commands: Teller,
    presence: Arc<Watch>,
    /// Where presence goes on to upstreams, if it is to.
    notices: Option<Notices>,
    publish_at_us: u64,
    published: Published,
    refusals: Notes,
    hello_batch: Histogram,
    hello_wait: Histogram,
    hello_batch_seconds: Histogram,
}

impl<E: Engine, S: Sink> Host<E, S> {
    pub(super) fn new(
        shard: Shard<E, S>,
        gauges: Arc<Gauges>,
        commands: Teller,
        presence: Arc<Watch>,
        notices: Option<Notices>,
        refusals: Notes,
    ) -> Self {
        let Settings { keys, index, .. } = shard.settings();
        let published = Published::new(*index, keys);
        Self {
            shard,
            gauges,
            commands,
            presence,
            notices,
            publish_at_us: 0,
            published,
            refusals,
            hello_batch: metrics::HELLO_BATCH.one(),
            hello_wait: metrics::HELLO_WAIT.one(),
            hello_batch_seconds: metrics::HELLO_BATCH_SECONDS.one(),
        }
    }

    fn take_events(&mut self, now: Now, turn_took: Duration) {
        let index = self.shard.settings().index;
        while let Some(event) = self.shard.poll_event() {
            match event {
                Event::CommandSent { token, .. } => self.commands.sent(token),
                Event::CommandResult { token, result, record } => {
                    if !self.commands.ended(index, token, result, record) {
                        self.shard.handle_mail(now, Mail::NotStored(Vec::from_iter(record)));
                    }
                }
                Event::UnexpectedResult { device, number, answer, record } => {
                    if !self.commands.unexpected(index, device, number, answer, record) {
                        self.shard.handle_mail(now, Mail::NotStored(vec![record]));
                    }
                }
                Event::Refused(refused) => self.refusals.leave(index, now.unix_ms, refused),
                Event::Online { name, carrier, address, profile, replaced: false, .. } => {
                    if let Some(notices) = &mut self.notices {
                        notices.online(&name, now.unix_ms, carrier, profile, address);
                    }
                }
                // It was there before, and is.
                Event::Online { .. } => {}
                Event::Offline { device, name, gone, age_us } => {
                    self.presence.left(index, device, now.unix_ms, gone);
                    if let Some(notices) = &mut self.notices {
                        let since_ms = now.unix_ms.saturating_sub(age_us / 1_000);
                        notices.offline(&name, now.unix_ms, gone, since_ms);
                    }
                }
                Event::Contacts { token, contacts } => self.presence.found(token, contacts),
                Event::HellosAnswered { count, waited_us } => {
                    #[expect(clippy::cast_precision_loss, reason = "a batch is small")]
                    self.hello_batch.observe(count as f64);
                    self.hello_wait.observe(Duration::from_micros(waited_us).as_secs_f64());
                    self.hello_batch_seconds.observe(turn_took.as_secs_f64());
                }
            }
        }
        self.notices.iter_mut().for_each(Notices::flush);
    }

    /// Takes over what the process before has left of this shard's sessions; whose they are, where somebody is to be told.
    pub(super) fn take_over(
        &mut self,
        now: Now,
        bytes: &[u8],
        via: impl FnMut(Local) -> Via,
    ) -> (TakenOver, Vec<Arc<str>>) {
        let counts = self.shard.take_over(now, bytes, via);
        let devices = self.notices.is_some().then(|| self.shard.devices().collect());
        (counts, devices.unwrap_or_default())
    }

    /// What the shard, which has finished, leaves to the next process.
    pub(super) fn leave(&mut self, local: impl Fn(Via) -> Option<Local>) -> Option<HandedOver> {
        let gateway = self.shard.settings().keys.first()?.gateway.fingerprint;
        Some(HandedOver { gateway, sessions: self.shard.hand_over(local) })
    }

    fn publish(&mut self) {
        self.notices.iter_mut().for_each(Notices::live);
        let pending = self.shard.pending();
        let live = self.shard.sessions() - pending;
        self.gauges.pending.store(pending as u64, Ordering::Relaxed);
        self.gauges.sessions.store(live as u64, Ordering::Relaxed);
        self.gauges.turns.fetch_add(1, Ordering::Relaxed);
        // Only ever replaced whole.
        *self.gauges.counts.lock().unwrap_or_else(PoisonError::into_inner) =
            self.shard.counts.clone();
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

    fn takes_input(&self) -> bool {
        self.shard.takes_input()
    }

    fn is_finished(&self) -> bool {
        self.shard.is_finished()
    }
}

impl<E: Engine, S: Sink> Drop for Host<E, S> {
    fn drop(&mut self) {
        self.publish();
    }
}
