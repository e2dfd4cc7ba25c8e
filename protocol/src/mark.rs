//! What a gateway remembers of a device's counter, and what it concludes from that: which HELLOs
//! pass, and whose reading may be stored. Nothing here does I/O or remembers anything.
//!
//! A *mark* belongs to a device under one credential (R45). It is the highest counter value of a session
//! that was confirmed, or of a HELLO whose reading became durable.

/// The first value that a mark may have and no device sends: nothing is known of this device.
const UNKNOWN: u64 = 0;
/// How far above a mark a counter may be. A device needs decades to count this far.
pub const REACH: u64 = 1 << 40;
/// How far a counter may be for a gateway that has not met the device.
pub const FIRST_REACH: u64 = 1 << 48;
/// The highest mark that is ever stored, merged, sent or believed (R59).
pub const MARK_MAX: u64 = 1 << 62;

/// A device's mark under one credential.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mark(u64);

impl Mark {
    /// Of a device that this gateway has not met.
    pub const UNKNOWN: Self = Self(UNKNOWN);
    /// Of a credential whose secret the registration itself has just made: no HELLO can exist under
    /// it, so that nothing can be played back. The device's counter begins at [`FIRST_FRESH`] (R123).
    pub const MADE: Self = Self(1);

    /// The mark with this value, at most [`MARK_MAX`].
    #[must_use]
    pub const fn new(value: u64) -> Self {
        Self(if value > MARK_MAX { MARK_MAX } else { value })
    }

    /// Its value: 0 for a device that this gateway has not met.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Whether this gateway has met the device.
    #[must_use]
    pub const fn is_known(self) -> bool {
        self.0 != UNKNOWN
    }

    /// The highest counter value that passes.
    const fn reach(self) -> u64 {
        let reach = if self.is_known() { REACH } else { FIRST_REACH };
        self.0.saturating_add(reach)
    }

    /// Whether a HELLO with this counter passes without answering a challenge (R42).
    #[must_use]
    pub const fn passes(self, fresh: u64) -> bool {
        self.0 < fresh && fresh <= self.reach()
    }

    /// Whether the reading inside a HELLO that passed may be stored (R97). `answered` says whether the
    /// HELLO answers the gateway's current challenge. A gateway that has not met the device, or has
    /// lost its disk, cannot tell an old HELLO from a new one: it stores none without a challenge,
    /// and none outside the range even with one, or the mark would not stop its repetition.
    #[must_use]
    pub const fn takes_reading(self, fresh: u64, answered: bool) -> bool {
        self.passes(fresh) && (self.is_known() || answered)
    }

    /// The mark after a session with this counter is confirmed, or a HELLO's reading is durable: it
    /// never moves beyond the device's reach, whatever a thief of its key sends (R44).
    #[must_use]
    pub const fn raised(self, fresh: u64) -> Self {
        let most = if fresh < self.reach() { fresh } else { self.reach() };
        if most > self.0 { Self::new(most) } else { self }
    }

    /// The mark after another node has told its own (R103). One bad peer must not move the mark beyond
    /// what devices believe, or it would lock them out for good.
    #[must_use]
    pub const fn merged(self, remote: u64) -> Self {
        self.raised(remote)
    }

    /// The mark after a value was read back from this node's own spool: a maximum, since it was
    /// clamped when it was written.
    #[must_use]
    pub const fn rebuilt(self, written: u64) -> Self {
        if written > self.0 { Self::new(written) } else { self }
    }
}

/// Where the counter of a device begins whose credential the registration itself has made.
pub const FIRST_FRESH: u64 = Mark::MADE.0 + 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_passes_above_the_mark_and_within_reach() {
        let mark = Mark::new(1_000);
        assert!(!mark.passes(999) && !mark.passes(1_000) && mark.passes(1_001));
        assert!(mark.passes(1_000 + REACH) && !mark.passes(1_001 + REACH));
        assert!(!Mark::UNKNOWN.passes(0) && Mark::UNKNOWN.passes(1));
        assert!(Mark::UNKNOWN.passes(FIRST_REACH) && !Mark::UNKNOWN.passes(FIRST_REACH + 1));
        assert!(Mark::MADE.passes(FIRST_FRESH) && !Mark::MADE.passes(FIRST_FRESH - 1));
    }

    #[test]
    fn a_reading_is_taken_only_where_its_repetition_would_be_noticed() {
        assert!(Mark::new(7).takes_reading(8, false) && !Mark::new(7).takes_reading(7, true));
        assert!(!Mark::new(7).takes_reading(8 + REACH, true));
        assert!(!Mark::UNKNOWN.takes_reading(8, false) && Mark::UNKNOWN.takes_reading(8, true));
        assert!(!Mark::UNKNOWN.takes_reading(FIRST_REACH + 1, true));
        for (mark, answered) in [(Mark::UNKNOWN, true), (Mark::MADE, false), (Mark::new(99), false)]
        {
            for fresh in [1, 2, 100, 101, REACH, FIRST_REACH] {
                if mark.takes_reading(fresh, answered) {
                    let mark = mark.raised(fresh);
                    assert!(!mark.takes_reading(fresh, true), "{fresh} is taken twice");
                }
            }
        }
    }

    #[test]
    fn a_mark_never_falls_and_never_leaves_the_reach_of_its_device() {
        assert_eq!(Mark::new(9).raised(4), Mark::new(9));
        assert_eq!(Mark::new(9).raised(u64::MAX).get(), 9 + REACH);
        assert_eq!(Mark::UNKNOWN.merged(u64::MAX).get(), FIRST_REACH);
        let top = Mark::new(u64::MAX);
        assert_eq!((top.get(), top.raised(u64::MAX), top.merged(5)), (MARK_MAX, top, top));
        assert!(top.passes(MARK_MAX + 1), "and its device still gets in");
        assert_eq!(Mark::new(9).rebuilt(9 + 3 * REACH).get(), 9 + 3 * REACH);
        assert_eq!(Mark::new(9).rebuilt(3), Mark::new(9));
        assert_eq!(Mark::new(9).rebuilt(u64::MAX).get(), MARK_MAX);
    }
}
