//! The ways from the queue of commands to the shards.

use duet_core::Mail;

use crate::commands::{Told, Ways};
use crate::transport::MailSender;

/// All shards' mailboxes.
pub(super) struct ShardWays {
    pub(super) mail: Vec<MailSender<Mail>>,
    pub(super) teller: crate::commands::Teller,
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
        self.teller.told(ends.iter().map(|end| (end.id, end.late)).collect(), true);
        true
    }
}
