//! The expanded keys of the records at hand.
//!
//! An expanded key is eleven times as large as its bytes, and most sessions rest most of the time. So
//! sessions keep bytes; the keys of a batch of records are expanded here just before it, four at a time
//! where the CPU can, and wiped after it. That costs less than fetching expanded ones from memory.

use arrayvec::ArrayVec;
use duet_aead::{Gcm, KEY_LEN, Key};
use duet_protocol::schedule::KeyIv;

use crate::RECORD_BATCH;

/// Places for the keys of one batch, vacant between batches.
pub(crate) struct Expanded(Vec<Key>);

/// The keys that a batch needs.
#[derive(Default)]
pub(crate) struct Needed<'k>(ArrayVec<&'k [u8; KEY_LEN], RECORD_BATCH>);

impl Default for Expanded {
    fn default() -> Self {
        Self((0..RECORD_BATCH).map(|_| Key::vacant()).collect())
    }
}

impl<'k> Needed<'k> {
    /// Adds the key of the batch's next record; its place. Neighbours of one session share theirs.
    pub(crate) fn place(&mut self, key: &'k KeyIv) -> usize {
        if self.0.last().is_none_or(|last| !std::ptr::eq(*last, key.key())) {
            self.0.push(key.key());
        }
        self.0.len() - 1
    }
}

impl Expanded {
    /// Lends the expanded keys, each at its [place](Needed::place).
    pub(crate) fn lend<T>(
        &mut self,
        gcm: Gcm,
        needed: &Needed<'_>,
        work: impl FnOnce(&[Key]) -> T,
    ) -> T {
        let keys = &mut self.0[..needed.0.len()];
        gcm.expand_batch(&needed.0, keys);
        let result = work(keys);
        keys.iter_mut().for_each(Key::clear);
        result
    }
}
