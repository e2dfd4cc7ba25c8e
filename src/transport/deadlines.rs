//! Deadlines of streams, the earliest first. Stale ones are harmless: a stream's number is never reused.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::StreamId;

/// What must have happened by a deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Due {
    /// The first message is whole.
    FirstMessage,
    /// The last output is flushed.
    Flush,
}

#[derive(Debug, Default)]
pub(super) struct Deadlines(BinaryHeap<Reverse<(u64, StreamId, Due)>>);

impl Deadlines {
    pub(super) fn add(&mut self, at_us: u64, stream: StreamId, due: Due) {
        self.0.push(Reverse((at_us, stream, due)));
    }

    /// The earliest, µs.
    pub(super) fn next_us(&self) -> Option<u64> {
        self.0.peek().map(|Reverse((at, ..))| *at)
    }

    /// Takes one that is over.
    pub(super) fn pop(&mut self, now_us: u64) -> Option<(StreamId, Due)> {
        if self.next_us()? > now_us {
            return None;
        }
        self.0.pop().map(|Reverse((_, stream, due))| (stream, due))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earliest_comes_first_and_not_before_its_time() {
        let mut deadlines = Deadlines::default();
        deadlines.add(20, StreamId(1), Due::FirstMessage);
        deadlines.add(10, StreamId(2), Due::Flush);
        assert_eq!(deadlines.next_us(), Some(10));
        assert_eq!(deadlines.pop(9), None);
        assert_eq!(deadlines.pop(15), Some((StreamId(2), Due::Flush)));
        assert_eq!(deadlines.pop(15), None);
        assert_eq!(deadlines.pop(20), Some((StreamId(1), Due::FirstMessage)));
        assert_eq!(deadlines.next_us(), None);
    }
}
