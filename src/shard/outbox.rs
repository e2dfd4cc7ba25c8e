//! What waits to be sent. More than the network takes is not kept: whoever waits for it asks again.

use std::collections::VecDeque;

use crate::transport::Path;

/// The most messages that wait (R93); the transport takes a quarter of them a turn.
const MESSAGES_MAX: usize = 16_384;

/// Messages with their destinations, in order.
#[derive(Default)]
pub(super) struct Outbox {
    queue: VecDeque<(Path, Vec<u8>)>,
    /// How many found no room.
    pub(super) unsent: u64,
}

impl Outbox {
    pub(super) fn push(&mut self, path: Path, message: Vec<u8>) {
        if self.queue.len() < MESSAGES_MAX {
            self.queue.push_back((path, message));
        } else {
            self.unsent += 1;
        }
    }

    /// A session's last message, for which nobody can ask again: there is one a session.
    pub(super) fn push_last(&mut self, path: Path, message: Vec<u8>) {
        self.queue.push_back((path, message));
    }

    pub(super) fn pop(&mut self) -> Option<(Path, Vec<u8>)> {
        self.queue.pop_front()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}
