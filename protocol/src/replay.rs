//! The receiver's window over sequence numbers (R69): each number is taken once, which is what makes a record
//! valid that is authentic (R122).

/// How far behind the newest record a late one may arrive.
pub const WINDOW: u32 = 128;

/// What was received: the newest number and the 128 numbers up to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplayWindow {
    next: u32,
    /// A `u128` as bytes, the lowest first, which want no alignment: a session has two windows, and there are many sessions.
    seen: [u8; 16],
}

/// Where a sequence number stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Newer than everything before.
    Newest,
    /// Within the window and not seen.
    Late,
    /// Within the window and already taken.
    Repeated,
    /// Below the window.
    TooOld,
}

impl ReplayWindow {
    /// A window that has seen nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self { next: 0, seen: [0; 16] }
    }

    /// The length of a window that is [written down](Self::to_bytes), bytes.
    pub const LEN: usize = 20;

    /// The window as bytes, for the process that takes this one's place (R72).
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        out[..4].copy_from_slice(&self.next.to_be_bytes());
        out[4..].copy_from_slice(&self.seen().to_be_bytes());
        out
    }

    /// The window that these bytes are of.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; Self::LEN]) -> Self {
        let [a, b, c, d, seen @ ..] = *bytes;
        let seen = u128::from_be_bytes(seen).to_le_bytes();
        Self { next: u32::from_be_bytes([a, b, c, d]), seen }
    }

    #[inline]
    const fn seen(&self) -> u128 {
        u128::from_le_bytes(self.seen)
    }

    /// Where this number stands. Changes nothing: the record is not yet authentic.
    #[must_use]
    #[inline]
    pub const fn place(&self, sequence: u32) -> Place {
        if sequence >= self.next {
            return Place::Newest;
        }
        let behind = self.next - 1 - sequence;
        if behind >= WINDOW {
            Place::TooOld
        } else if self.seen[behind as usize / 8] >> (behind % 8) & 1 == 1 {
            Place::Repeated
        } else {
            Place::Late
        }
    }

    /// Takes the number of an authentic record. Numbers are closed at 2³² − 1 (R68), which a
    /// sender never uses.
    #[inline]
    pub const fn take(&mut self, sequence: u32) {
        if sequence >= self.next {
            let forward = sequence - self.next + 1;
            let seen = if forward >= WINDOW { 1 } else { self.seen() << forward | 1 };
            self.seen = seen.to_le_bytes();
            self.next = sequence.saturating_add(1);
        } else {
            let behind = self.next - 1 - sequence;
            if behind < WINDOW {
                self.seen[behind as usize / 8] |= 1 << (behind % 8);
            }
        }
    }

    /// One more than the highest number that was taken; 0 before the first.
    #[must_use]
    pub const fn next(&self) -> u32 {
        self.next
    }

    /// Undoes [`take`](Self::take) of a number within the window: what it stood for was not kept,
    /// and may come again.
    pub const fn give_back(&mut self, sequence: u32) {
        if matches!(self.place(sequence), Place::Repeated) {
            let seen = self.seen() & !(1 << (self.next - 1 - sequence));
            self.seen = seen.to_le_bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn agrees_with_a_set_over_a_random_walk() {
        let mut window = ReplayWindow::new();
        let mut taken = HashSet::new();
        let mut newest: Option<u32> = None;
        let mut state = 1u64;
        for _ in 0..200_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let base = newest.map_or(0, |n| n + 1);
            let sequence = (base + ((state >> 33) % 200) as u32).saturating_sub(180);
            let expected = match newest {
                Some(n) if sequence > n => Place::Newest,
                None => Place::Newest,
                Some(n) if n - sequence >= WINDOW => Place::TooOld,
                Some(_) if taken.contains(&sequence) => Place::Repeated,
                Some(_) => Place::Late,
            };
            assert_eq!(window.place(sequence), expected, "{sequence} after {newest:?}");
            if matches!(expected, Place::Newest | Place::Late) {
                window.take(sequence);
                taken.insert(sequence);
                newest = Some(newest.map_or(sequence, |n| n.max(sequence)));
            }
        }
    }

    #[test]
    fn a_window_that_was_written_down_is_the_same() {
        let mut window = ReplayWindow::new();
        for number in [0, 3, 77, 129, 140, u32::MAX - 1] {
            assert_eq!(ReplayWindow::from_bytes(&window.to_bytes()), window);
            window.take(number);
        }
        assert_eq!(ReplayWindow::from_bytes(&window.to_bytes()), window);
    }

    #[test]
    fn the_last_number_is_taken_once() {
        let mut window = ReplayWindow::new();
        window.take(u32::MAX - 1);
        assert_eq!(window.place(u32::MAX - 1), Place::Repeated);
        assert_eq!(window.place(u32::MAX - 2), Place::Late);
        assert_eq!(window.place(0), Place::TooOld);
    }

    #[test]
    fn a_number_given_back_can_be_taken_again_and_no_other() {
        let mut window = ReplayWindow::new();
        [0, 1, 2, 200].into_iter().for_each(|number| window.take(number));
        window.give_back(200);
        assert_eq!(window.place(200), Place::Late);
        window.take(200);
        assert_eq!(window.place(200), Place::Repeated);
        // Below the window, never seen, and in the future: nothing to give back.
        [1, 150, 300].into_iter().for_each(|number| window.give_back(number));
        assert_eq!((window.place(1), window.place(150)), (Place::TooOld, Place::Late));
        assert_eq!(window.place(201), Place::Newest);
    }
}
