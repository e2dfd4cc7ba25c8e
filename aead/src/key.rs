//! The key object: where a key's expanded form lives and how it disappears.
//!
//! Round keys and powers of H are as good as the key itself. They are written to their final
//! place directly, because a value that is built elsewhere and moved leaves a copy on the stack
//! that nobody wipes.

use core::mem;

use zeroize::Zeroize;

#[cfg(target_arch = "x86_64")]
use crate::backend::Schedule;
use crate::{Gcm, KEY_LEN, backend::Portable};

/// An AES-128-GCM key, expanded: 320 bytes, aligned to a cache line, wiped when dropped.
///
/// A key is made in place: put a [vacant](Key::vacant) one where it is to live, then
/// [`init`](Key::init) it there, or let [`Key::boxed`] do both. A key should not be moved
/// afterwards, since a move copies its bytes and wipes only the new place.
///
/// It has neither `Clone` nor `Debug`.
#[repr(align(64))]
pub struct Key {
    pub(crate) state: State,
}

/// The hardware backends share one layout, so a key made for one serves the other.
#[expect(
    clippy::large_enum_variant,
    reason = "boxing schedules would put another miss before each record; the small variants are rare"
)]
pub(crate) enum State {
    Vacant,
    #[cfg(target_arch = "x86_64")]
    Hardware(Schedule),
    /// Boxed: it is half as large again as a hardware schedule and would grow every key.
    Portable(Box<Portable>),
}

// Five cache lines: a tag and eight powers of H in 144 bytes, eleven round keys in 176.
#[cfg(target_arch = "x86_64")]
const _: () = assert!(mem::size_of::<Key>() == 320);

impl Key {
    /// A place for a key. Sealing or opening with it panics.
    #[must_use]
    pub const fn vacant() -> Self {
        Self { state: State::Vacant }
    }

    /// Whether there is no key here.
    #[must_use]
    pub fn is_vacant(&self) -> bool {
        matches!(self.state, State::Vacant)
    }

    /// Expands `bytes` here, for the backend of `gcm`, over what was here before.
    ///
    /// The caller wipes `bytes`.
    pub fn init(&mut self, gcm: Gcm, bytes: &[u8; KEY_LEN]) {
        gcm.expand_batch(&[bytes], core::slice::from_mut(self));
    }

    /// Expands `bytes` into a new heap allocation, where it can stay while its owner moves.
    #[must_use]
    pub fn boxed(gcm: Gcm, bytes: &[u8; KEY_LEN]) -> Box<Self> {
        let mut key = Box::new(Self::vacant());
        key.init(gcm, bytes);
        key
    }

    /// Wipes the key and leaves the place vacant.
    pub fn clear(&mut self) {
        #[cfg(target_arch = "x86_64")]
        if let State::Hardware(schedule) = &mut self.state {
            schedule.zeroize();
        }
        // A portable key wipes itself when its box is dropped here.
        self.state = State::Vacant;
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Overwrites 16·`N` bytes of stack below the caller.
///
/// Called after a function that had key material in its frame and returned, so that what it
/// spilled does not outlive the key. `N` must exceed what that function used.
#[inline(never)]
pub(crate) fn wipe_stack<const N: usize>() {
    let mut frame = [0xa5_u128; N];
    frame.zeroize();
}

/// Wipes what a batch of the backend with 32 registers may have spilled, in builds where it does.
///
/// Optimized, no round key or power of H ever leaves its register for the stack, and
/// `tests/memory.rs` watches that it stays so: run it with `--release`. Less optimized code spills.
#[inline]
pub(crate) fn wipe_if_spilled() {
    if cfg!(debug_assertions) {
        wipe_stack::<512>();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vacant_key_becomes_a_key_and_vacant_again() {
        let gcm = Gcm::best();
        let mut key = Key::vacant();
        assert!(key.is_vacant());
        key.init(gcm, &[1; 16]);
        assert!(!key.is_vacant());
        key.clear();
        assert!(key.is_vacant());
    }

    #[test]
    #[should_panic(expected = "vacant key")]
    fn a_vacant_key_seals_nothing() {
        let _ = Gcm::best().seal(&Key::vacant(), &[0; 12], &[], &mut [0; 4]);
    }

    #[test]
    fn keys_cross_threads() {
        fn check<T: Send + Sync>() {}
        check::<Key>();
    }
}
