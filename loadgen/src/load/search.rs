//! The search for the highest rate that holds.

/// The most rates that a search tries.
const RATES_MAX: u32 = 20;

/// Finds the highest rate that holds: doubles it until it does not, then halves the gap until that is an eighth.
pub(super) struct Search {
    first: u32,
    good: u32,
    bad: Option<u32>,
    tried: u32,
}

impl Search {
    pub(super) const fn from(first: u32) -> Self {
        Self { first, good: 0, bad: None, tried: 0 }
    }

    /// The rate to try next.
    pub(super) fn next(&self) -> Option<u32> {
        let (good, rate) = match (self.good, self.bad) {
            (0, None) => (0, self.first),
            (good, None) => (good, good.saturating_mul(2)),
            (good, Some(bad)) if bad - good <= bad / 8 => return None,
            (good, Some(bad)) => (good, u32::midpoint(good, bad)),
        };
        (rate > good && self.tried < RATES_MAX).then_some(rate)
    }

    pub(super) fn tell(&mut self, rate: u32, holds: bool) {
        self.tried += 1;
        if holds {
            self.good = rate;
        } else {
            self.bad = Some(rate);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_comes_within_an_eighth_of_the_limit() {
        for limit in [1, 7, 1_000, 45_678, 3_000_000] {
            let mut search = Search::from(1_000);
            while let Some(rate) = search.next() {
                search.tell(rate, rate <= limit);
            }
            assert!(search.good <= limit && search.good * 8 + 8 >= limit * 7, "{limit}");
        }
    }
}
