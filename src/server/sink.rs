//! A shard's readings on their way to the spool, and what became of them on its way back.

use std::sync::{Arc, Mutex, PoisonError};

use crossbeam_queue::ArrayQueue;
use duet_core::{Mail, Reading, Sink};
use duet_protocol::message::PAYLOAD_MAX;
use duet_protocol::wire::SessionId;

use crate::delivery::{Batch, Commit, Durability, MAX_PAYLOAD, ReadingRef, Submitter, Urgency};
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
            payload: reading.payload,
        };
        if !self.batch.push(&record) {
            self.flush();
            let fits = self.batch.push(&record);
            debug_assert!(fits, "an empty batch takes any reading");
        }
        if reading.confirm {
            self.confirm.push((reading.session, reading.sequence));
        }
    }

    fn flush(&mut self) {
        if self.batch.is_empty() {
            return;
        }
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
    pub(super) fn new(submitter: Submitter, mail: MailSender<Mail>) -> Self {
        let (late, spare) = (Mutex::new(Vec::new()), ArrayQueue::new(SPARE_BATCHES));
        let send = Box::new(move |answer| mail.try_send(answer));
        let answers = Arc::new(Answers { send, late, spare });
        Self { submitter, answers, batch: Batch::new(), confirm: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
