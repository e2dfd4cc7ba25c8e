//! Randomness for a shard: the kernel's, fetched in blocks, since a handshake needs it in three
//! places and a system call for each would cost as much as the hashing.

use std::cell::RefCell;

use zeroize::Zeroize;

const BLOCK: usize = 4_096;

struct Block {
    bytes: [u8; BLOCK],
    used: usize,
}

thread_local!(static BLOCKS: RefCell<Block> = const {
    RefCell::new(Block { bytes: [0; BLOCK], used: BLOCK })
});

/// Fresh random bytes; each is handed out once and erased here.
///
/// # Panics
/// When the kernel has no randomness to give: no session may be made without.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    BLOCKS.with_borrow_mut(|block| {
        if block.used + N > BLOCK {
            let filled = getrandom::fill(&mut block.bytes);
            assert!(filled.is_ok(), "the kernel has no randomness to give");
            block.used = 0;
        }
        let mut out = [0; N];
        let taken = &mut block.bytes[block.used..block.used + N];
        out.copy_from_slice(taken);
        taken.zeroize();
        block.used += N;
        out
    })
}

impl Drop for Block {
    fn drop(&mut self) {
        self.bytes.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn nothing_is_handed_out_twice_and_nothing_stays() {
        let seen: HashSet<[u8; 16]> = (0..10_000).map(|_| random()).collect();
        assert_eq!(seen.len(), 10_000);
        BLOCKS.with_borrow(|block| assert!(block.bytes[..block.used].iter().all(|b| *b == 0)));
    }
}
