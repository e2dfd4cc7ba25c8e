//! The ways from the queue of commands to the shards, and to the spool, from which the ends of commands go on to the
//! upstreams.

use duet_core::Mail;

use crate::commands::{CommandState, Teller, Told, Ways};
use crate::delivery::{Batch, CommandEnd, Durability, Notice, Submitter, Urgency};
use crate::transport::MailSender;

/// All shards' mailboxes, and the spool.
pub(super) struct ShardWays {
    pub(super) mail: Vec<MailSender<Mail>>,
    pub(super) spool: Submitter,
    pub(super) teller: Teller,
}

impl Ways for ShardWays {
    fn shards(&self) -> usize {
        self.mail.len()
    }

    fn mail(&mut self, shard: usize, mail: Mail) -> Result<(), Box<Mail>> {
        match self.mail.get(shard) {
            Some(sender) => sender.try_send(mail).map_err(Box::new),
            None => Ok(()),
        }
    }

    fn tell(&mut self, ends: &[Told]) -> bool {
        let mut batch = Batch::new();
        let fits = ends.iter().all(|end| push(&mut batch, end));
        debug_assert!(fits, "the queue hands fewer on than a batch takes");
        let named: Vec<_> = ends.iter().map(|end| (end.id, end.late)).collect();
        let teller = self.teller.clone();
        let done = move |_, durability| teller.told(named, durability == Durability::Durable);
        self.spool.submit(batch, Urgency::Quiet, Box::new(done)).is_ok()
    }
}

fn push(batch: &mut Batch, end: &Told) -> bool {
    let state = match end.state {
        CommandState::Done => CommandEnd::Done,
        CommandState::Cancelled => CommandEnd::Cancelled,
        CommandState::Superseded => CommandEnd::Superseded,
        // Only what is over is told.
        CommandState::Expired | CommandState::Queued | CommandState::Sent => CommandEnd::Expired,
    };
    let Told { id: command, number, late, at_ms, .. } = *end;
    let status = end.answer.as_ref().map(|answer| answer.status);
    let notice = Notice::Result { command, number, state, late, status };
    let payload = end.answer.as_ref().map_or(&[][..], |answer| &answer.output);
    batch.push(&notice.record(&end.name, at_ms, payload))
}
