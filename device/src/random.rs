//! Where random bytes come from: a generator that was seeded once, or the operating system's.

use sha2::{Digest as _, Sha256};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::crypto::CryptoError;

/// Where random bytes come from.
pub trait Random {
    /// Fills `out`.
    ///
    /// # Errors
    /// [`CryptoError::Random`].
    fn fill(&mut self, out: &mut [u8]) -> Result<(), CryptoError>;
}

/// A generator that was seeded once: SHA-256 in counter mode with a ratchet, so that who sees its
/// state later cannot compute what it gave before.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct Seeded([u8; 32]);

impl Seeded {
    /// `seed` is 32 random bytes, used nowhere else.
    #[must_use]
    pub const fn new(seed: [u8; 32]) -> Self {
        Self(seed)
    }

    fn block(&self, label: u8) -> [u8; 32] {
        Sha256::new_with_prefix(b"duet device random")
            .chain_update([label])
            .chain_update(self.0)
            .finalize()
            .into()
    }
}

impl Random for Seeded {
    fn fill(&mut self, out: &mut [u8]) -> Result<(), CryptoError> {
        for chunk in out.chunks_mut(32) {
            let mut block = self.block(1);
            self.0 = self.block(0);
            chunk.copy_from_slice(&block[..chunk.len()]);
            block.zeroize();
        }
        Ok(())
    }
}

/// The operating system's generator.
#[cfg(feature = "std")]
#[derive(Clone, Copy, Debug, Default)]
pub struct System;

#[cfg(feature = "std")]
impl Random for System {
    fn fill(&mut self, out: &mut [u8]) -> Result<(), CryptoError> {
        getrandom::fill(out).map_err(|_| CryptoError::Random)
    }
}
