//! The time by which commands live: it only goes on, and nobody sets it.
//!
//! It begins with the wall clock, or just after the latest time that stands in the file where that is later or may be wrong, and
//! goes on with what has passed since. So a clock that is set while the gateway runs, forward or back, ends no command and lets
//! none live on, and neither does a start with a clock that is behind.
//!
//! A machine without a clock of its own may begin long before its time and have it set later. That is taken over once,
//! when the wall clock has come up; where the process ends before that, by the one that comes up with a clock that is set.
//!
//! A start with a clock that is ahead ends what was queued, and what is queued under it leaves its times in the file. From
//! then on this clock is ahead of the wall clock; that is told. Commands live as long as they may all the same, and what
//! upstreams are told has the wall clock's time.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::identity::{self, Steady};

/// How far behind the latest time in the file a clock may be that was set: two of them never agree.
const BEHIND_MS: u64 = 3_600_000;

/// The clock. All of its times are milliseconds, those of the day since 1970.
pub(super) struct Clock {
    began_ms: u64,
    /// How long the machine had run then, times of sleep included.
    ran_ms: u64,
    /// From when on this clock is wrong: the wall clock was behind, and has not come up.
    behind_since_ms: Option<u64>,
    /// Whether that was told.
    is_told: bool,
}

impl Clock {
    /// Begins now, but after the latest time in the file, which may be wrong since `behind_since_ms`.
    pub(super) fn start(newest_ms: u64, behind_since_ms: Option<u64>) -> Self {
        Self::begin(identity::now_ms(), ran_ms(), newest_ms, behind_since_ms)
    }

    pub(super) fn begin(
        wall_ms: u64,
        ran_ms: u64,
        newest_ms: u64,
        behind_since_ms: Option<u64>,
    ) -> Self {
        // Times from here on are this run's, and those in the file are not.
        let next_ms = newest_ms.saturating_add(1);
        if behind_since_ms.is_some() {
            // How long the machine was off, nobody knows: what was queued before lives on where it was.
            return Self { began_ms: next_ms, ran_ms, behind_since_ms, is_told: false };
        }
        let is_set = Steady::is_set(Duration::from_millis(wall_ms));
        let is_behind = !is_set || wall_ms.saturating_add(BEHIND_MS) < newest_ms;
        let began_ms = wall_ms.max(next_ms);
        let behind_since_ms = is_behind.then_some(began_ms);
        Self { began_ms, ran_ms, behind_since_ms, is_told: false }
    }

    /// From when on the times that it gives are wrong, if they are: to be kept with them.
    pub(super) fn behind_since_ms(&self) -> Option<u64> {
        self.behind_since_ms
    }

    /// The time.
    pub(super) fn now_ms(&self) -> u64 {
        self.at(ran_ms())
    }

    fn at(&self, ran_ms: u64) -> u64 {
        self.began_ms.saturating_add(ran_ms.saturating_sub(self.ran_ms))
    }

    /// Takes the wall clock over, once, where it was behind at the start and has come up. From which time on this clock
    /// was wrong, and by how much it has gone on.
    pub(super) fn catch_up(&mut self) -> Option<(u64, u64)> {
        self.behind_since_ms?;
        let (wall_ms, ran_ms) = (identity::now_ms(), ran_ms());
        self.tell(wall_ms, ran_ms);
        self.come_up(wall_ms, ran_ms)
    }

    /// Says once that the wall clock is far behind. One that was not set yet says nothing.
    fn tell(&mut self, wall_ms: u64, ran_ms: u64) {
        let lag_ms = self.at(ran_ms).saturating_sub(wall_ms);
        let is_set = Steady::is_set(Duration::from_millis(wall_ms));
        if self.is_told || !is_set || lag_ms <= BEHIND_MS {
            return;
        }
        self.is_told = true;
        tracing::warn!(
            "the machine's clock is {} hours behind the latest time in the queue of commands: it is wrong, or was ahead when \
             that was written; until it has come up, commands' times are ahead of it by so much, and each lives as long as it may",
            lag_ms / 3_600_000
        );
    }

    /// What the wall clock said, or would have said, at this time of this clock.
    pub(super) fn wall_ms(&self, at_ms: u64) -> u64 {
        identity::now_ms().saturating_sub(self.now_ms().saturating_sub(at_ms))
    }

    pub(super) fn come_up(&mut self, wall_ms: u64, ran_ms: u64) -> Option<(u64, u64)> {
        let (since_ms, now_ms) = (self.behind_since_ms?, self.at(ran_ms));
        let is_set = Steady::is_set(Duration::from_millis(wall_ms));
        if !is_set || wall_ms < now_ms {
            return None;
        }
        *self = Self { began_ms: wall_ms, ran_ms, behind_since_ms: None, is_told: self.is_told };
        Some((since_ms, wall_ms - now_ms))
    }
}

/// How long the machine has run, times of sleep included.
fn ran_ms() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    let (seconds, nanos) = (u64::try_from(time.tv_sec), u64::try_from(time.tv_nsec));
    seconds.unwrap_or(0) * 1_000 + nanos.unwrap_or(0) / 1_000_000
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::tests::kept;

    const DAY: u64 = 86_400_000;
    /// A day in 2027.
    const TODAY: u64 = 1_800_000_000_000;

    #[test]
    fn it_goes_on_whatever_the_wall_clock_says() {
        let mut clock = Clock::begin(TODAY, 500, TODAY - DAY, None);
        assert_eq!((clock.at(500), clock.at(1_700)), (TODAY, TODAY + 1_200));
        for wall_ms in [0, TODAY - DAY, TODAY + 365 * DAY] {
            assert_eq!(clock.come_up(wall_ms, 1_700), None);
            assert_eq!(clock.at(1_700), TODAY + 1_200);
        }
        // A little behind is not behind: it need not come up.
        let mut clock = Clock::begin(TODAY - 1_000, 0, TODAY, None);
        assert_eq!((clock.at(5), clock.come_up(TODAY + 365 * DAY, 5)), (TODAY + 6, None));
    }

    #[test]
    fn a_wall_clock_that_was_behind_is_taken_over_once() {
        for wall_ms in [0, 5_000, TODAY - 30 * DAY] {
            let newest_ms = TODAY - DAY;
            let mut clock = Clock::begin(wall_ms, 100, newest_ms, None);
            assert_eq!(clock.at(400), newest_ms + 301, "after what stands in the file");
            assert_eq!(clock.come_up(newest_ms, 400), None, "still behind");
            assert_eq!(clock.come_up(TODAY, 400), Some((newest_ms + 1, DAY - 301)));
            assert_eq!(clock.at(500), TODAY + 100);
            assert_eq!(clock.come_up(TODAY + 365 * DAY, 500), None, "only once");
        }
        let mut clock = Clock::begin(5_000, 0, 0, None);
        assert_eq!(clock.come_up(900_000, 100), None, "it was not set by that");
        assert_eq!(clock.come_up(TODAY, 100), Some((5_000, TODAY - 5_100)));
    }

    #[test]
    fn who_ends_before_the_wall_clock_has_come_up_leaves_that_to_the_next() {
        let first = Clock::begin(5_000, 100, 0, None);
        let since_ms = first.behind_since_ms();
        assert_eq!(since_ms, Some(5_000));
        // It was killed after something was queued at 9,000. Whether the next one's clock is set makes no difference.
        for wall_ms in [2_000, TODAY] {
            let mut next = Clock::begin(wall_ms, 50, 9_000, since_ms);
            assert_eq!((next.at(50), next.behind_since_ms()), (9_001, since_ms));
            assert_eq!(next.come_up(TODAY, 150), Some((5_000, TODAY - 9_101)));
            assert_eq!((next.at(250), next.behind_since_ms()), (TODAY + 100, None));
        }
    }

    #[test]
    fn it_begins_with_the_wall_clock() {
        assert!(Clock::start(0, None).now_ms().abs_diff(identity::now_ms()) < 60_000);
        assert!(ran_ms() > 0);
    }

    #[test]
    fn a_wall_clock_that_is_far_behind_is_told_once() {
        let said = |ahead_ms| {
            let mut clock = Clock::start(identity::now_ms() + ahead_ms, None);
            kept(|| (0..3).for_each(|_| assert_eq!(clock.catch_up(), None)))
        };
        let lines = said(DAY + BEHIND_MS / 2);
        assert_eq!(lines.len(), 1);
        assert!(lines[0][1].contains("24 hours behind"), "{}", lines[0][1]);
        assert!(said(BEHIND_MS / 2).is_empty(), "two clocks never agree");
        let mut clock = Clock::begin(5_000, 100, TODAY, None);
        assert!(kept(|| clock.tell(6_000, 1_100)).is_empty(), "it was not set yet");
        assert_eq!(kept(|| clock.tell(TODAY - DAY, 2_100)).len(), 1);
    }
}
