//! The time by which something ends for ever.

use std::time::{Duration, Instant};

use super::now_ms;

/// A time before 2024 is that of a clock that has not been set.
const SET_FROM: Duration = Duration::from_secs(1_704_067_200);

/// The time of day, but for a clock that is set forward meanwhile, perhaps by mistake: what it makes old at once is not
/// removed for that. It is the wall clock's time at the beginning and what has passed since, or the wall clock's own
/// where that is less.
pub struct Steady {
    began: Duration,
    since: Instant,
}

impl Steady {
    /// Begins now.
    #[must_use]
    pub fn start() -> Self {
        Self { began: wall(), since: Instant::now() }
    }

    /// The time since 1970.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.at(wall(), self.since.elapsed())
    }

    /// The same, seconds.
    #[must_use]
    pub fn now_s(&self) -> i64 {
        i64::try_from(self.now().as_secs()).unwrap_or(i64::MAX)
    }

    /// Whether a clock that says this has been set.
    #[must_use]
    pub fn is_set(time: Duration) -> bool {
        time >= SET_FROM
    }

    /// The time when the wall clock says this and so much has passed. One that was not set at the beginning says nothing.
    fn at(&self, wall: Duration, passed: Duration) -> Duration {
        if Self::is_set(self.began) { wall.min(self.began.saturating_add(passed)) } else { wall }
    }
}

fn wall() -> Duration {
    Duration::from_millis(now_ms())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_forward_ends_nothing() {
        let (day, year) = (Duration::from_secs(86_400), Duration::from_secs(365 * 86_400));
        let clock = |began| Steady { began, since: Instant::now() };
        let steady = clock(SET_FROM + day);
        assert_eq!(steady.at(SET_FROM + 2 * day, day), SET_FROM + 2 * day);
        assert_eq!(steady.at(SET_FROM + 80 * year, day), SET_FROM + 2 * day);
        assert_eq!(steady.at(SET_FROM, day), SET_FROM, "one that is set back ends nothing either");
        assert_eq!(clock(day).at(SET_FROM + year, day), SET_FROM + year, "it was not set at boot");
    }
}
