//! The time by which commands live: it only goes on, and nobody sets it.
//!
//! It begins with the wall clock, or with the latest time that stands in the file where that is later, and goes on with
//! what has passed since. So a clock that is set forward ends no command, one that is set back lets none live on, and
//! neither does a start with a clock that is behind.
//!
//! A machine without a clock of its own may begin long before its time and have it set later. That is taken over once,
//! when the wall clock has come up.

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
    /// Whether the wall clock was behind then, and still is.
    is_behind: bool,
}

impl Clock {
    /// Begins now, but not before the latest time in the file.
    pub(super) fn start(newest_ms: u64) -> Self {
        Self::begin(identity::now_ms(), ran_ms(), newest_ms)
    }

    fn begin(wall_ms: u64, ran_ms: u64, newest_ms: u64) -> Self {
        let is_set = Steady::is_set(Duration::from_millis(wall_ms));
        let is_behind = !is_set || wall_ms.saturating_add(BEHIND_MS) < newest_ms;
        Self { began_ms: wall_ms.max(newest_ms), ran_ms, is_behind }
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
        if self.is_behind { self.come_up(identity::now_ms(), ran_ms()) } else { None }
    }

    fn come_up(&mut self, wall_ms: u64, ran_ms: u64) -> Option<(u64, u64)> {
        let now_ms = self.at(ran_ms);
        let is_set = Steady::is_set(Duration::from_millis(wall_ms));
        if !self.is_behind || !is_set || wall_ms < now_ms {
            return None;
        }
        let since_ms = self.began_ms;
        *self = Self { began_ms: wall_ms, ran_ms, is_behind: false };
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

    const DAY: u64 = 86_400_000;
    /// A day in 2027.
    const TODAY: u64 = 1_800_000_000_000;

    #[test]
    fn it_goes_on_whatever_the_wall_clock_says() {
        let mut clock = Clock::begin(TODAY, 500, TODAY - DAY);
        assert_eq!((clock.at(500), clock.at(1_700)), (TODAY, TODAY + 1_200));
        for wall_ms in [0, TODAY - DAY, TODAY + 365 * DAY] {
            assert_eq!(clock.come_up(wall_ms, 1_700), None);
            assert_eq!(clock.at(1_700), TODAY + 1_200);
        }
        // A little behind is not behind: it need not come up.
        let mut clock = Clock::begin(TODAY - 1_000, 0, TODAY);
        assert_eq!((clock.at(5), clock.come_up(TODAY + 365 * DAY, 5)), (TODAY + 5, None));
    }

    #[test]
    fn a_wall_clock_that_was_behind_is_taken_over_once() {
        for wall_ms in [0, 5_000, TODAY - 30 * DAY] {
            let newest_ms = TODAY - DAY;
            let mut clock = Clock::begin(wall_ms, 100, newest_ms);
            assert_eq!(clock.at(400), newest_ms + 300, "not before what stands in the file");
            assert_eq!(clock.come_up(newest_ms, 400), None, "still behind");
            assert_eq!(clock.come_up(TODAY, 400), Some((newest_ms, DAY - 300)));
            assert_eq!(clock.at(500), TODAY + 100);
            assert_eq!(clock.come_up(TODAY + 365 * DAY, 500), None, "only once");
        }
        let mut clock = Clock::begin(5_000, 0, 0);
        assert_eq!(clock.come_up(900_000, 100), None, "it was not set by that");
        assert_eq!(clock.come_up(TODAY, 100), Some((5_000, TODAY - 5_100)));
    }

    #[test]
    fn the_machine_has_run_for_a_while() {
        let before = ran_ms();
        assert!(before > 0);
        let clock = Clock::start(0);
        assert!(clock.now_ms() >= clock.began_ms && ran_ms() >= before);
    }
}
