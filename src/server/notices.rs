//! Presence on its way to the spool, from which upstreams get it: a shard's notices of a turn are one batch.

use std::net::SocketAddr;

use duet_core::Gone;
use duet_protocol::profile::{Profile, Transport};
use duet_telemetry::catalogue::NOTICES_DROPPED;

use super::journal::Journal;
use crate::delivery::{Batch, Notice, Reason, Submitter, Urgency};

/// A shard's notices.
pub(super) struct Notices {
    spool: Submitter,
    batch: Batch,
    /// For a gateway that is killed.
    journal: Option<Journal>,
}

impl Notices {
    pub(super) fn new(spool: Submitter, journal: Option<Journal>) -> Self {
        Self { spool, batch: Batch::new(), journal }
    }

    /// A second has passed.
    pub(super) fn live(&mut self) {
        self.journal.iter_mut().for_each(Journal::live);
    }

    pub(super) fn online(
        &mut self,
        device: &str,
        at_ms: u64,
        carrier: Transport,
        profile: Profile,
        address: Option<SocketAddr>,
    ) {
        self.journal.iter_mut().for_each(|journal| journal.online(device, at_ms));
        let address = address.map(|address| address.to_string()).unwrap_or_default();
        self.push(device, at_ms, Notice::Online { carrier, profile }, address.as_bytes());
    }

    pub(super) fn offline(&mut self, device: &str, at_ms: u64, gone: Gone, since_ms: u64) {
        let reason = match gone {
            Gone::Left => Reason::Left,
            Gone::Silent => Reason::Silent,
            Gone::Lifetime => Reason::Lifetime,
            Gone::Revoked => Reason::Revoked,
            Gone::Stopped => Reason::Stopped,
        };
        self.journal.iter_mut().for_each(|journal| journal.offline(device));
        self.push(device, at_ms, Notice::Offline { reason, since_ms }, b"");
    }

    fn push(&mut self, device: &str, at_ms: u64, notice: Notice, payload: &[u8]) {
        let record = notice.record(device, at_ms, payload);
        if !self.batch.push(&record) {
            self.flush();
            let fits = self.batch.push(&record);
            debug_assert!(fits, "an empty batch takes any notice");
        }
    }

    /// Hands the turn's notices to the spool. What it does not take is counted, and no reading waits for it.
    pub(super) fn flush(&mut self) {
        self.journal.iter_mut().for_each(Journal::flush);
        if self.batch.is_empty() {
            return;
        }
        let batch = std::mem::take(&mut self.batch);
        let count = batch.len() as u64;
        let done = move |_, durability| {
            if durability == crate::delivery::Durability::Failed {
                NOTICES_DROPPED.one().add(count);
            }
        };
        if self.spool.submit(batch, Urgency::Quiet, Box::new(done)).is_err() {
            NOTICES_DROPPED.one().add(count);
        }
    }
}
