//! A shard's readings on their way to the spool, and what became of them on its way back.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_queue::ArrayQueue;
use duet_core::{Mail, Reading, Sink};
use duet_protocol::message::PAYLOAD_MAX;
use duet_protocol::wire::SessionId;
use duet_telemetry::catalogue::SPOOL_BEYOND;

use super::quota::Quotas;
use crate::delivery::{Batch, Commit, Durability, MAX_PAYLOAD, ReadingRef, Submitter, Urgency};
use crate::presence::{Taken, Values};
use crate::transport::MailSender;

const _: () = assert!(PAYLOAD_MAX <= MAX_PAYLOAD, "the spool takes whatever a device can send");

/// The most batches whose memory a shard keeps for the next ones.
const SPARE_BATCHES: usize = 64;

/// Hands a shard's readings to the spool.
pub(super) struct SpoolSink {
    submitter: Submitter,
    answers: Arc<Answers>,
    batch: Batch,
    /// Those of the batch that want confirmation.
    confirm: Vec<(SessionId, u32)>,
    quotas: Quotas,
    latest: Arc<Values>,
    /// The batch's readings, and where in it their payloads are, for `latest`.
    taken: Vec<(Taken, Range<usize>)>,
    /// Those beyond a quota that want confirmation.
    beyond: Vec<(SessionId, u32)>,
    began: Instant,
    /// When this turn's first reading came, µs since it began; one look at the clock for a turn.
    turn_us: Option<u64>,
}

/// What the spool's thread has for a shard.
struct Answers {
    /// To the shard's mailbox, which gives back what it has no room for.
    send: Box<dyn Fn(Mail) -> Result<(), Mail> + Send + Sync>,
    /// What found the mailbox full: it goes with the next answer, or the shard asks for it.
    late: Mutex<Vec<Mail>>,
    /// Batches that came back, for their memory.
    spare: ArrayQueue<Batch>,
}

impl Answers {
    fn tell(&self, durability: Durability, readings: Vec<(SessionId, u32)>) {
        let mut late = self.late.lock().unwrap_or_else(PoisonError::into_inner);
        if !readings.is_empty() {
            late.push(match durability {
                Durability::Durable => Mail::Durable(readings),
                Durability::Failed => Mail::NotStored(readings),
            });
        }
        while let Some(mail) = late.pop() {
            if let Err(refused) = (self.send)(mail) {
                late.push(refused);
                return;
            }
        }
    }

    /// The lock is held while an answer is sent, so a shard that has just emptied its mailbox sees what found it full.
    fn late(&self) -> Option<Mail> {
        self.late.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }
}

impl Sink for SpoolSink {
    fn take(&mut self, reading: &Reading<'_>) {
        let record = ReadingRef {
            device: reading.device,
            id: reading.id,
            again: reading.again,
            channel: reading.channel,
            received_ms: reading.received_ms,
            measured_ms: reading.measured_ms,
            commit: reading
                .commit
                .map(|duet_core::Commit { credential, mark }| Commit { credential, mark }),
            notice: None,
            payload: reading.payload,
        };
        let began = self.began;
        let now_us = *self.turn_us.get_or_insert_with(|| micros(began.elapsed()));
        let bytes = Batch::stored_bytes(&record);
        if let Err(excess) = self.quotas.take(reading.device, bytes, now_us) {
            SPOOL_BEYOND.with([excess.name()]).add(1);
            if reading.confirm {
                self.beyond.push((reading.session, reading.sequence));
            }
            return;
        }
        if !self.batch.push(&record) {
            self.flush();
            let fits = self.batch.push(&record);
            debug_assert!(fits, "an empty batch takes any reading");
        }
        let Reading { device_id: device, session, channel, received_ms, measured_ms, .. } =
            *reading;
        self.taken.push((
            Taken { device, session, channel, received_ms, measured_ms },
            self.batch.last_payload(reading.payload.len()),
        ));
        if reading.confirm {
            self.confirm.push((reading.session, reading.sequence));
        }
    }

    fn flush(&mut self) {
        self.turn_us = None;
        if !self.beyond.is_empty() {
            self.answers.tell(Durability::Failed, std::mem::take(&mut self.beyond));
        }
        if self.batch.is_empty() {
            return;
        }
        let taken = self.taken.iter().map(|(taken, at)| (taken, self.batch.payload(at.clone())));
        self.latest.take(taken);
        self.taken.clear();
        let fresh = self.answers.spare.pop().unwrap_or_default();
        let batch = std::mem::replace(&mut self.batch, fresh);
        let confirm = std::mem::take(&mut self.confirm);
        let urgency = if confirm.is_empty() { Urgency::Quiet } else { Urgency::Awaited };
        let answers = Arc::clone(&self.answers);
        let done = move |mut batch: Batch, durability| {
            answers.tell(durability, confirm);
            batch.clear();
            // More spares than there is room for are not needed.
            let _ = answers.spare.push(batch);
        };
        // What the spool refuses is counted there.
        if let Err((batch, done)) = self.submitter.submit(batch, urgency, Box::new(done)) {
            done(batch, Durability::Failed);
        }
    }

    fn poll_mail(&mut self) -> Option<Mail> {
        self.answers.late()
    }
}

impl SpoolSink {
    pub(super) fn new(
        submitter: Submitter,
        mail: MailSender<Mail>,
        quotas: Quotas,
        latest: Arc<Values>,
    ) -> Self {
        let (late, spare) = (Mutex::new(Vec::new()), ArrayQueue::new(SPARE_BATCHES));
        let send = Box::new(move |answer| mail.try_send(answer));
        Self::over(submitter, Arc::new(Answers { send, late, spare }), quotas, latest)
    }

    fn over(
        submitter: Submitter,
        answers: Arc<Answers>,
        quotas: Quotas,
        latest: Arc<Values>,
    ) -> Self {
        Self {
            submitter,
            answers,
            batch: Batch::new(),
            confirm: Vec::new(),
            quotas,
            latest,
            taken: Vec::new(),
            beyond: Vec::new(),
            began: Instant::now(),
            turn_us: None,
        }
    }
}

fn micros(elapsed: Duration) -> u64 {
    u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use duet_protocol::identity::DeviceId;
    use duet_protocol::reading::ReadingId;

    use super::super::quota::Allowance;
    use super::*;
    use crate::config::Quota;
    use crate::delivery::{Retention, Spool, SpoolConfig};

    #[test]
    fn an_answer_that_found_the_mailbox_full_comes_with_the_next_one_or_when_asked_for() {
        let mailbox = Arc::new(ArrayQueue::new(1));
        let queue = Arc::clone(&mailbox);
        let answers = Answers {
            send: Box::new(move |mail| queue.push(mail)),
            late: Mutex::new(Vec::new()),
            spare: ArrayQueue::new(1),
        };
        let reading = |sequence| vec![(SessionId(1), sequence)];
        answers.tell(Durability::Durable, reading(1));
        answers.tell(Durability::Failed, reading(2));
        assert!(matches!(mailbox.pop(), Some(Mail::Durable(readings)) if readings == reading(1)));
        assert!(mailbox.is_empty(), "there was no room for the second");
        answers.tell(Durability::Durable, Vec::new());
        assert!(matches!(mailbox.pop(), Some(Mail::NotStored(readings)) if readings == reading(2)));
        assert!(mailbox.is_empty());
        answers.tell(Durability::Durable, reading(3));
        answers.tell(Durability::Durable, reading(4));
        assert!(matches!(answers.late(), Some(Mail::Durable(readings)) if readings == reading(4)));
        assert!(answers.late().is_none());
    }

    #[test]
    fn a_device_beyond_its_quota_is_told_no_and_others_are_stored() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::start(SpoolConfig {
            dir: dir.path().join("spool"),
            segment_bytes: 1 << 20,
            max_bytes: 4 << 20,
            known: None,
            retention: Retention::default(),
        })
        .unwrap();
        let told = Arc::new(ArrayQueue::new(16));
        let queue = Arc::clone(&told);
        let answers = Arc::new(Answers {
            send: Box::new(move |mail| queue.push(mail)),
            late: Mutex::new(Vec::new()),
            spare: ArrayQueue::new(1),
        });
        let quota = Quota { readings_per_s: 1, bytes_per_s: 0, share_percent: 0 };
        let allowed = Allowance::new(&quota, 4 << 20, spool.scarce());
        let quotas = Quotas::new(Arc::new(allowed));
        let mut sink = SpoolSink::over(spool.submitter(), answers, quotas, Arc::default());
        for (device, session) in [("heavy", SessionId(1)), ("light", SessionId(2))] {
            for sequence in 0..if device == "heavy" { 12 } else { 1 } {
                sink.take(&Reading {
                    device,
                    device_id: DeviceId([0; 8]),
                    session,
                    sequence,
                    id: ReadingId { hello: [1; 12], sequence },
                    again: false,
                    channel: 0,
                    received_ms: 5,
                    measured_ms: 5,
                    commit: None,
                    payload: b"1",
                    confirm: true,
                });
            }
        }
        sink.flush();
        drop(sink);
        spool.shutdown().unwrap();
        let Some(Mail::NotStored(beyond)) = told.pop() else { panic!("who is beyond comes first") };
        assert_eq!(beyond, [(SessionId(1), 10), (SessionId(1), 11)]);
        let Some(Mail::Durable(stored)) = told.pop() else { panic!("the others are stored") };
        assert_eq!((stored.len(), stored.last()), (11, Some(&(SessionId(2), 0))));
    }
}
