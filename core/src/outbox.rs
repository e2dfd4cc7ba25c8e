//! What waits to be sent. More than the network takes is not kept: whoever waits for it asks again.

use std::collections::VecDeque;

use crate::{Path, Transmit};

/// The most messages that wait (R93); the transport takes a quarter of them a turn.
const MESSAGES_MAX: usize = 16_384;

/// Memory beyond this is not kept once nothing waits.
const KEPT_MAX: usize = 1 << 20;

/// Messages with their destinations, in order.
#[derive(Default)]
pub(crate) struct Outbox {
    queue: VecDeque<(Path, usize)>,
    /// The messages one after the other; those before `taken` have left.
    bytes: Vec<u8>,
    taken: usize,
    /// How many found no room.
    pub(crate) unsent: u64,
}

impl Outbox {
    pub(crate) fn push(&mut self, path: Path, message: &[u8]) {
        if self.queue.len() < MESSAGES_MAX {
            self.push_last(path, message);
        } else {
            self.unsent += 1;
        }
    }

    /// A session's last message, for which nobody can ask again: there is one a session.
    pub(crate) fn push_last(&mut self, path: Path, message: &[u8]) {
        // What has left makes room as soon as it is most of the memory, so that each byte moves at most once on average.
        if self.taken > self.bytes.len() / 2 {
            self.bytes.drain(..self.taken);
            self.taken = 0;
        }
        self.queue.push_back((path, message.len()));
        self.bytes.extend_from_slice(message);
    }

    /// Writes the next message into `out`.
    pub(crate) fn pop(&mut self, out: &mut [u8]) -> Option<Transmit> {
        let Some((to, len)) = self.queue.pop_front() else {
            self.bytes.clear();
            self.bytes.shrink_to(KEPT_MAX);
            self.taken = 0;
            return None;
        };
        out[..len].copy_from_slice(&self.bytes[self.taken..][..len]);
        self.taken += len;
        Some(Transmit { to, len })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::StreamId;

    #[test]
    fn messages_leave_as_they_came_however_many_wait() {
        let mut outbox = Outbox::default();
        let message = |number: usize| vec![u8::try_from(number % 251).unwrap(); 1 + number % 700];
        let (mut came, mut left) = (0, 0);
        let mut out = [0; 1_024];
        for round in 0..3_000 {
            for _ in 0..round % 7 {
                outbox.push(Path::Stream(StreamId(came as u64)), &message(came));
                came += 1;
            }
            // Sometimes all of them, mostly fewer than came.
            for _ in 0..if round % 500 == 0 { usize::MAX } else { round % 6 } {
                let Some(Transmit { to, len }) = outbox.pop(&mut out) else { break };
                assert_eq!(to, Path::Stream(StreamId(left as u64)));
                assert_eq!(out[..len], message(left));
                left += 1;
            }
        }
        assert!(came > 8_000 && left < came);
        assert!(outbox.bytes.len() < 4 * 700 * (came - left), "what has left makes room");
    }

    #[test]
    fn too_many_are_counted_and_the_last_of_a_session_always_goes() {
        let mut outbox = Outbox::default();
        let path = Path::Stream(StreamId(1));
        for _ in 0..MESSAGES_MAX + 3 {
            outbox.push(path, b"x");
        }
        outbox.push_last(path, b"y");
        assert_eq!((outbox.unsent, outbox.queue.len()), (3, MESSAGES_MAX + 1));
    }
}
