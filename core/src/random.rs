//! Randomness for a shard, fetched in blocks from wherever whoever drives it says: a handshake needs some in three
//! places, and a system call for each would cost as much as the hashing.

use zeroize::Zeroize as _;

const BLOCK: usize = 4_096;

type Fill = dyn FnMut(&mut [u8]) + Send;

/// A source of random bytes, one for each shard. Each byte is handed out once and erased here.
pub struct Random {
    fill: Box<Fill>,
    block: Box<[u8; BLOCK]>,
    used: usize,
}

impl Random {
    /// Takes its bytes from `fill`, which writes the whole of what it is given. In a gateway these must be the kernel's;
    /// a simulator gives the same ones for the same seed.
    #[must_use]
    pub fn new(fill: impl FnMut(&mut [u8]) + Send + 'static) -> Self {
        Self { fill: Box::new(fill), block: Box::new([0; BLOCK]), used: BLOCK }
    }

    /// Fresh random bytes.
    pub fn bytes<const N: usize>(&mut self) -> [u8; N] {
        const { assert!(N <= BLOCK) };
        if self.used + N > BLOCK {
            (self.fill)(self.block.as_mut_slice());
            self.used = 0;
        }
        let mut out = [0; N];
        let taken = &mut self.block[self.used..self.used + N];
        out.copy_from_slice(taken);
        taken.zeroize();
        self.used += N;
        out
    }
}

impl Drop for Random {
    fn drop(&mut self) {
        self.block.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    #[test]
    fn nothing_is_handed_out_twice_and_nothing_stays() {
        let mut random = crate::testing::random(1);
        let seen: HashSet<[u8; 16]> = (0..10_000).map(|_| random.bytes()).collect();
        assert_eq!(seen.len(), 10_000);
        assert!(random.block[..random.used].iter().all(|byte| *byte == 0));
    }
}
