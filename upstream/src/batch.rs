//! How readings are cut into batches, and how batches are named. Pure.
//!
//! A batch is the unit of everything that follows: it is sent, acknowledged, repeated and refused
//! as one. Its name says both ends, so that the same name never stands for other readings: not
//! after a restart, not with other settings, and not when time cut it short.

use std::fmt;
use std::ops::ControlFlow;

use crate::source::{Reading, Source, SourceError, SpoolId};

/// The most readings in a batch. Batches end at its multiples, wherever they began.
pub const READINGS_MAX: u64 = 256;
/// The most bytes of readings in a batch, counted by [`weight`]; one reading alone may exceed it.
pub const BYTES_MAX: usize = 64 * 1024;
/// What a reading weighs besides name and payload.
const OVERHEAD: usize = 48;

/// What a reading counts for: independent of formats, so that every format cuts alike.
fn weight(reading: &Reading<'_>) -> usize {
    OVERHEAD + reading.device.len() + reading.payload.len()
}

/// A run of indices, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Range {
    /// The first index.
    pub first: u64,
    /// The last index.
    pub last: u64,
}

impl Range {
    /// How many readings.
    #[must_use]
    pub fn count(self) -> u64 {
        self.last - self.first + 1
    }

    /// Both halves; the first is the larger one. `None` for a single reading.
    pub(crate) fn halves(self) -> Option<(Self, Self)> {
        let middle = self.first + (self.last - self.first) / 2;
        (self.first < self.last).then_some((
            Self { first: self.first, last: middle },
            Self { first: middle + 1, last: self.last },
        ))
    }
}

/// A batch's name: `<spool>:<first>-<last>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchId {
    /// The spool that its indices count in.
    pub spool: SpoolId,
    /// Its readings.
    pub range: Range,
}

impl fmt::Display for BatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}-{}", self.spool, self.range.first, self.range.last)
    }
}

/// The end (exclusive) that a batch beginning at `first` has by number alone.
pub(crate) fn boundary(first: u64) -> u64 {
    (first / READINGS_MAX + 1) * READINGS_MAX
}

/// Cuts the batch that begins at `next` and shows its readings to `take`. `None`: nothing is there, up to the index that is
/// returned with it. The range begins later than `next` where the spool no longer keeps that.
pub(crate) fn cut(
    source: &mut dyn Source,
    next: u64,
    take: &mut dyn FnMut(u64, &Reading<'_>),
) -> Result<(Option<Range>, u64), SourceError> {
    let mut range: Option<Range> = None;
    let mut bytes = 0;
    let end = source.read(next, &mut |index, reading| {
        if let Some(range) = &range
            && (index != range.last + 1
                || index >= boundary(range.first)
                || bytes + weight(reading) > BYTES_MAX)
        {
            return ControlFlow::Break(());
        }
        bytes += weight(reading);
        let first = range.map_or(index, |range| range.first);
        range = Some(Range { first, last: index });
        take(index, reading);
        if index + 1 >= boundary(first) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    })?;
    Ok((range, end))
}

/// Shows exactly the readings of a range again to `take`. False when the spool no longer keeps all of them.
pub(crate) fn again(
    source: &mut dyn Source,
    range: Range,
    take: &mut dyn FnMut(u64, &Reading<'_>),
) -> Result<bool, SourceError> {
    let mut expected = range.first;
    source.read(range.first, &mut |index, reading| {
        if index != expected || index > range.last {
            return ControlFlow::Break(());
        }
        expected += 1;
        take(index, reading);
        if index == range.last { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    Ok(expected == range.last + 1)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::testing::{Memory, Rng};

    fn walk(
        source: &mut Memory,
        mut next: u64,
        seen: &mut HashMap<String, Vec<Vec<u8>>>,
    ) -> Vec<Range> {
        let mut ranges = Vec::new();
        loop {
            let mut contents = Vec::new();
            let cut = cut(source, next, &mut |_, reading| contents.push(reading.payload.to_vec()));
            let (Some(range), _) = cut.unwrap() else { return ranges };
            assert_eq!(range.count(), contents.len() as u64);
            let id = BatchId { spool: source.spool_id(), range }.to_string();
            let before = seen.entry(id.clone()).or_insert_with(|| contents.clone());
            assert_eq!(before, &contents, "{id} stands for other readings");
            ranges.push(range);
            next = range.last + 1;
        }
    }

    #[test]
    fn the_same_name_never_stands_for_other_readings() {
        let mut rng = Rng::new(7);
        for _ in 0..200 {
            let mut source = Memory::random(&mut rng);
            let mut seen = HashMap::new();
            let end = source.durable();
            for _ in 0..8 {
                // A restart anywhere, with whatever was durable by then.
                source.show_until(end - rng.below(end / 2 + 1));
                let next = rng.below(source.durable() + 1);
                walk(&mut source, next, &mut seen);
            }
        }
    }

    #[test]
    fn batches_follow_each_other_and_keep_their_limits() {
        let mut rng = Rng::new(8);
        for _ in 0..100 {
            let mut source = Memory::random(&mut rng);
            let ranges = walk(&mut source, 0, &mut HashMap::new());
            let mut next = 0;
            for range in ranges {
                assert_eq!(range.first, next);
                assert!(range.last < boundary(range.first));
                let mut bytes = 0;
                assert!(
                    again(&mut source, range, &mut |_, reading| bytes += weight(reading)).unwrap()
                );
                assert!(bytes <= BYTES_MAX || range.count() == 1);
                next = range.last + 1;
            }
            assert_eq!(next, source.durable());
        }
    }

    #[test]
    fn wherever_a_walk_begins_it_soon_cuts_as_all_others_do() {
        let mut source = Memory::new();
        (0..2_000_u32).for_each(|n| source.push("pump-7", 0, &n.to_be_bytes()));
        let all = walk(&mut source, 0, &mut HashMap::new());
        for start in [1, 100, 255, 256, 257, 1_000] {
            let ranges = walk(&mut source, start, &mut HashMap::new());
            assert!(ranges[1..].iter().all(|range| all.contains(range)), "from {start}");
        }
    }

    #[test]
    fn what_is_no_longer_kept_is_left_out_and_shows() {
        let mut source = Memory::new();
        (0..600_u32).for_each(|n| source.push("pump-7", 0, &n.to_be_bytes()));
        source.trim(300);
        let (range, _) = cut(&mut source, 0, &mut |_, _| {}).unwrap();
        let range = range.unwrap();
        assert_eq!(range, Range { first: 300, last: 511 });
        assert!(!again(&mut source, Range { first: 256, last: 400 }, &mut |_, _| {}).unwrap());
        assert!(!again(&mut source, Range { first: 590, last: 600 }, &mut |_, _| {}).unwrap());
    }

    #[test]
    fn halves_cover_the_whole() {
        let range = Range { first: 10, last: 14 };
        let (left, right) = range.halves().unwrap();
        assert_eq!((left.first, left.last, right.first, right.last), (10, 12, 13, 14));
        assert_eq!(left.halves().unwrap().1, Range { first: 12, last: 12 });
        assert!(Range { first: 12, last: 12 }.halves().is_none());
    }
}
