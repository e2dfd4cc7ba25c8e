//! What a stranger on the way hears: the newest messages that devices sent and that arrived.

use std::sync::{Mutex, PoisonError};

use duet_protocol::wire::Kind;

/// Messages of a kind that are kept.
const KEPT: usize = 1_024;

/// The newest hellos and records.
#[derive(Debug, Default)]
pub struct Overheard {
    hellos: Mutex<Ring>,
    records: Mutex<Ring>,
}

#[derive(Debug, Default)]
struct Ring {
    messages: Vec<Vec<u8>>,
    next: usize,
}

impl Overheard {
    /// Keeps a message in the place of the oldest.
    pub(super) fn keep(&self, message: &[u8]) {
        let ring = match Kind::of(message) {
            Ok(Kind::Hello) => &self.hellos,
            _ => &self.records,
        };
        let mut ring = ring.lock().unwrap_or_else(PoisonError::into_inner);
        if ring.messages.len() < KEPT {
            ring.messages.push(message.to_vec());
        } else {
            let place = ring.next;
            ring.messages[place].clear();
            ring.messages[place].extend_from_slice(message);
            ring.next = (place + 1) % KEPT;
        }
    }

    /// One of the hellos, if there is any.
    #[must_use]
    pub fn hello(&self, random: &mut fastrand::Rng) -> Option<Vec<u8>> {
        Self::one_of(&self.hellos, random)
    }

    /// One of the records, if there is any.
    #[must_use]
    pub fn record(&self, random: &mut fastrand::Rng) -> Option<Vec<u8>> {
        Self::one_of(&self.records, random)
    }

    fn one_of(ring: &Mutex<Ring>, random: &mut fastrand::Rng) -> Option<Vec<u8>> {
        let ring = ring.lock().unwrap_or_else(PoisonError::into_inner);
        random.choice(&ring.messages).cloned()
    }
}
