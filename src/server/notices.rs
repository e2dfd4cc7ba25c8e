//! Presence on its way to the spool, from which upstreams get it: a shard's notices of a turn are one batch.

use std::net::SocketAddr;
use std::time::Instant;

use duet_core::Gone;
use duet_protocol::profile::{Profile, Transport};
use duet_telemetry::catalogue::NOTICES_DROPPED;

use super::journal::Journal;
use super::quota::Quotas;
use crate::delivery::{Batch, Notice, Reason, Submitter, Urgency};

/// A shard's notices.
pub(super) struct Notices {
    spool: Submitter,
    batch: Batch,
    /// A device may come and go as often as it likes, and must not fill the spool with that.
    quotas: Quotas,
    began: Instant,
    /// For a gateway that is killed.
    journal: Option<Journal>,
}

impl Notices {
    pub(super) fn new(spool: Submitter, quotas: Quotas, journal: Option<Journal>) -> Self {
        Self { spool, batch: Batch::new(), quotas, began: Instant::now(), journal }
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
        let now_us = u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        if self.quotas.take(device, Batch::stored_bytes(&record), now_us).is_err() {
            NOTICES_DROPPED.one().add(1);
            return;
        }
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    use super::super::quota::Allowance;
    use super::*;
    use crate::config::Quota;
    use crate::delivery::{Retention, Source as _, Spool, SpoolConfig};

    /// As with readings: what is left of a spool that is nearly full is shared.
    #[test]
    fn a_device_that_comes_and_goes_all_the_time_does_not_fill_the_spool() {
        let dir = tempfile::tempdir().unwrap();
        let max_bytes = 4 << 20;
        let spool = Spool::start(SpoolConfig {
            dir: dir.path().join("spool"),
            segment_bytes: 1 << 20,
            max_bytes,
            known: None,
            retention: Retention::default(),
        })
        .unwrap();
        let quota = Quota { readings_per_s: 0, bytes_per_s: 0, share_percent: 1 };
        let scarce = Arc::new(AtomicBool::new(true));
        let allowance = Arc::new(Allowance::new(&quota, max_bytes, scarce));
        let mut notices = Notices::new(spool.submitter(), Quotas::new(allowance), None);
        for round in 0..10_000 {
            notices.offline("restless", round, Gone::Left, 0);
        }
        notices.offline("calm", 0, Gone::Left, 0);
        notices.flush();
        drop(notices);
        let mut source = spool.source();
        spool.shutdown().unwrap();
        let (mut restless, mut calm) = (0, 0);
        source
            .read(0, &mut |_, reading| {
                let bytes = Batch::stored_bytes(reading) as u64;
                *if reading.device == "calm" { &mut calm } else { &mut restless } += bytes;
                std::ops::ControlFlow::Continue(())
            })
            .unwrap();
        assert!(calm > 0 && restless > 0 && restless <= max_bytes / 100, "{restless}");
    }
}
