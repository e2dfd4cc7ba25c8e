//! The batches on their way, and the cursor behind them. Pure.
//!
//! Batches lie here in the order of their indices, each unsent, sent or done. The cursor is the
//! end of the done ones at the front and only ever rises. After an error everything from the
//! first batch that is not done on is sent again, in order and under the same names. A batch that
//! the upstream refuses for what is in it makes room for its halves.

use std::collections::VecDeque;

use crate::batch::Range;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Unsent,
    /// By which number its answer will be known.
    Sent(u64),
    Done,
}

#[derive(Debug)]
struct Unit {
    range: Range,
    state: State,
}

/// What has been given to an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cursor {
    /// The first index that is not settled.
    pub(crate) next: u64,
    /// The last index that the upstream took; `None` before the first.
    pub(crate) previous_last: Option<u64>,
}

/// What became of a refused batch.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Both halves wait to be sent.
    Halved,
    /// It is this one reading.
    Alone(u64),
    /// The answer is to something that is no longer waited for.
    Stale,
}

/// The batches between the cursor and what has not been cut yet.
#[derive(Debug)]
pub(crate) struct Window {
    units: VecDeque<Unit>,
    cursor: Cursor,
    /// Where the next batch begins.
    head: u64,
    /// The last index before `head` that was cut and not lost.
    head_previous: Option<u64>,
    token: u64,
}

impl Window {
    pub(crate) fn new(cursor: Cursor) -> Self {
        let Cursor { next, previous_last } = cursor;
        Self { units: VecDeque::new(), cursor, head: next, head_previous: previous_last, token: 0 }
    }

    pub(crate) fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// Where the next batch is to be cut.
    pub(crate) fn head(&self) -> u64 {
        self.head
    }

    /// Batches that are not settled.
    pub(crate) fn len(&self) -> usize {
        self.units.len()
    }

    /// Batches whose answer is awaited.
    pub(crate) fn in_flight(&self) -> usize {
        self.units.iter().filter(|unit| matches!(unit.state, State::Sent(_))).count()
    }

    /// Takes a batch in that was cut at the head; it is unsent. What lies between the head and it
    /// is lost, and how many indices that are is returned.
    pub(crate) fn push(&mut self, range: Range) -> u64 {
        assert!(range.first >= self.head && range.last >= range.first, "cut out of order");
        let lost = range.first - self.head;
        self.units.push_back(Unit { range, state: State::Unsent });
        self.head = range.last + 1;
        self.head_previous = Some(range.last);
        lost
    }

    /// Nothing lies between the head and this index: those are lost. How many indices that are.
    pub(crate) fn pass(&mut self, index: u64) -> u64 {
        let lost = index.saturating_sub(self.head);
        self.head += lost;
        self.settle();
        lost
    }

    /// The first unsent batch, with the last index before it that the upstream has or will have.
    pub(crate) fn unsent(&self) -> Option<(Range, Option<u64>)> {
        let mut previous = self.cursor.previous_last;
        for unit in &self.units {
            if unit.state == State::Unsent {
                return Some((unit.range, previous));
            }
            previous = Some(unit.range.last);
        }
        None
    }

    /// What a batch cut at the head has before it.
    pub(crate) fn head_previous(&self) -> Option<u64> {
        self.head_previous
    }

    /// The first unsent batch is on its way; its answer goes by the number returned.
    pub(crate) fn sent(&mut self, range: Range) -> u64 {
        self.token += 1;
        let unit = self.units.iter_mut().find(|unit| unit.range == range);
        if let Some(unit) = unit {
            unit.state = State::Sent(self.token);
        }
        self.token
    }

    /// The upstream has it. How many readings that are; 0 for an answer that is no longer waited for.
    pub(crate) fn done(&mut self, token: u64) -> u64 {
        let Some(unit) = self.units.iter_mut().find(|unit| unit.state == State::Sent(token)) else {
            return 0;
        };
        unit.state = State::Done;
        let count = unit.range.count();
        self.settle();
        count
    }

    /// The upstream will not have it, whenever it is sent.
    pub(crate) fn refused(&mut self, token: u64) -> Refused {
        let Some(at) = self.units.iter().position(|unit| unit.state == State::Sent(token)) else {
            return Refused::Stale;
        };
        match self.units[at].range.halves() {
            None => Refused::Alone(self.units[at].range.first),
            Some((left, right)) => {
                self.units[at] = Unit { range: left, state: State::Unsent };
                self.units.insert(at + 1, Unit { range: right, state: State::Unsent });
                Refused::Halved
            }
        }
    }

    /// What was sent behind this batch waits to be sent again: the upstream refused it, and takes what follows only in order.
    pub(crate) fn void_behind(&mut self, token: u64) {
        let behind = self.units.iter_mut().skip_while(|unit| unit.state != State::Sent(token));
        let sent = behind.skip(1).filter(|unit| matches!(unit.state, State::Sent(_)));
        sent.for_each(|unit| unit.state = State::Unsent);
    }

    /// The reading that a refused batch came down to has been put aside, or the spool no longer
    /// keeps this batch.
    pub(crate) fn give_up(&mut self, range: Range) {
        self.units.retain(|unit| unit.range != range);
        self.settle();
    }

    /// The connection is void: all that is not settled waits to be sent, again or at last.
    pub(crate) fn go_back(&mut self) {
        self.units.iter_mut().for_each(|unit| unit.state = State::Unsent);
    }

    fn settle(&mut self) {
        while let Some(unit) = self.units.front()
            && unit.state == State::Done
        {
            self.cursor.previous_last = Some(unit.range.last);
            self.cursor.next = unit.range.last + 1;
            self.units.pop_front();
        }
        // Whatever was given up in front of the next one is settled as well.
        self.cursor.next = self.units.front().map_or(self.head, |unit| unit.range.first);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::testing::Rng;

    fn range(first: u64, last: u64) -> Range {
        Range { first, last }
    }

    fn send(window: &mut Window) -> u64 {
        let (range, _) = window.unsent().unwrap();
        window.sent(range)
    }

    #[test]
    fn the_cursor_is_the_end_of_what_is_done_without_a_hole() {
        let mut window = Window::new(Cursor { next: 0, previous_last: None });
        for first in [0, 10, 20] {
            assert_eq!(window.push(range(first, first + 9)), 0);
        }
        let tokens: Vec<_> = (0..3).map(|_| send(&mut window)).collect();
        assert_eq!(window.done(tokens[1]), 10);
        assert_eq!(window.cursor().next, 0);
        assert_eq!(window.done(tokens[0]), 10);
        assert_eq!(window.cursor(), Cursor { next: 20, previous_last: Some(19) });
        assert_eq!(window.done(tokens[0]), 0, "an answer counts once");
        assert_eq!(window.in_flight(), 1);
    }

    #[test]
    fn behind_a_refused_batch_all_is_sent_again_where_order_counts() {
        let mut window = Window::new(Cursor { next: 0, previous_last: None });
        for first in [0, 10, 20] {
            window.push(range(first, first + 9));
        }
        let tokens: Vec<_> = (0..3).map(|_| send(&mut window)).collect();
        window.void_behind(tokens[1]);
        assert_eq!(window.refused(tokens[1]), Refused::Halved);
        assert_eq!((window.done(tokens[2]), window.done(tokens[0])), (0, 10));
        let again: Vec<_> = (0..3)
            .map(|_| {
                let (range, previous) = window.unsent().unwrap();
                window.sent(range);
                (range, previous)
            })
            .collect();
        assert_eq!(
            again,
            [(range(10, 14), Some(9)), (range(15, 19), Some(14)), (range(20, 29), Some(19)),]
        );
    }

    #[test]
    fn after_an_error_all_from_the_first_unsettled_on_is_sent_again_in_order() {
        let mut window = Window::new(Cursor { next: 0, previous_last: None });
        for first in [0, 10, 20] {
            window.push(range(first, first + 9));
        }
        let tokens: Vec<_> = (0..3).map(|_| send(&mut window)).collect();
        window.done(tokens[0]);
        window.done(tokens[2]);
        window.go_back();
        assert_eq!(window.unsent(), Some((range(10, 19), Some(9))));
        assert_eq!(window.done(tokens[1]), 0, "of the connection before");
        send(&mut window);
        assert_eq!(window.unsent(), Some((range(20, 29), Some(19))));
    }

    #[test]
    fn a_refused_batch_is_halved_until_one_reading_is_alone() {
        let mut window = Window::new(Cursor { next: 0, previous_last: None });
        window.push(range(0, 255));
        let mut parked = Vec::new();
        while let Some((unit, previous)) = window.unsent() {
            assert!(previous.is_none_or(|previous| previous < unit.first));
            let token = window.sent(unit);
            if (unit.first..=unit.last).contains(&77) {
                if let Refused::Alone(index) = window.refused(token) {
                    parked.push(index);
                    window.give_up(unit);
                }
            } else {
                window.done(token);
            }
        }
        assert_eq!(parked, [77]);
        assert_eq!(window.cursor(), Cursor { next: 256, previous_last: Some(255) });
        assert_eq!(window.len(), 0);
    }

    #[test]
    fn what_is_lost_shows_in_what_came_before() {
        let mut window = Window::new(Cursor { next: 0, previous_last: None });
        window.push(range(0, 9));
        assert_eq!(window.push(range(50, 59)), 40);
        send(&mut window);
        assert_eq!(window.unsent(), Some((range(50, 59), Some(9))));
        let parked = range(50, 59);
        window.give_up(parked);
        window.push(range(60, 69));
        assert_eq!(window.unsent(), Some((range(60, 69), Some(9))), "what was put aside is told");
    }

    /// Whatever happens in whatever order: the cursor never goes back, nothing is skipped that was
    /// neither taken nor put aside, and in the end everything is settled.
    #[test]
    fn nothing_is_skipped_whatever_happens() {
        let mut rng = Rng::new(11);
        for _ in 0..300 {
            let end = 1 + rng.below(2_000);
            let poison: BTreeSet<u64> = (0..rng.below(4)).map(|_| rng.below(end)).collect();
            let mut window = Window::new(Cursor { next: 0, previous_last: None });
            let (mut taken, mut parked) = (BTreeSet::new(), BTreeSet::new());
            let mut flying: Vec<(u64, Range)> = Vec::new();
            let mut last = 0;
            while window.cursor().next < end {
                match rng.below(20) {
                    0 => {
                        flying.clear();
                        window.go_back();
                    }
                    1..=6 if window.head() < end => {
                        let last = (window.head() + rng.below(256)).min(end - 1);
                        window.push(range(window.head(), last));
                    }
                    7..=12 => {
                        if let Some((unit, previous)) = window.unsent() {
                            assert!(previous.is_none_or(|previous| previous < unit.first));
                            flying.push((window.sent(unit), unit));
                        }
                    }
                    _ if !flying.is_empty() => {
                        let at = usize::try_from(rng.below(flying.len() as u64)).unwrap();
                        let (token, unit) = flying.swap_remove(at);
                        if poison.range(unit.first..=unit.last).next().is_some() {
                            if let Refused::Alone(index) = window.refused(token) {
                                parked.insert(index);
                                window.give_up(unit);
                            }
                        } else if window.done(token) > 0 {
                            taken.extend(unit.first..=unit.last);
                        }
                    }
                    _ => {}
                }
                assert!(window.cursor().next >= last, "the cursor went back");
                last = window.cursor().next;
                assert!((0..last).all(|index| taken.contains(&index) || parked.contains(&index)));
            }
            assert_eq!(parked, poison);
        }
    }
}
