//! A key as both hardware backends read it: powers of H, then round keys.

use core::arch::x86_64::*;

use zeroize::Zeroize;

use super::{
    gf128::{dot, reversed, times_x},
    memory,
};
use crate::KEY_LEN;

/// How many powers of H a key holds. Eight cover a record of six blocks with its associated data
/// and lengths in one reduction, and leave room for the state's tag within five cache lines.
pub(super) const POWERS: usize = 8;
const ROUND_KEYS: usize = 11;
/// FIPS 197's Rcon, one for each round key but the first.
pub(super) const CONSTANTS: [i32; ROUND_KEYS - 1] = [1, 2, 4, 8, 16, 32, 64, 128, 0x1b, 0x36];

/// H⁸ … H¹ in POLYVAL form, then the eleven round keys.
///
/// Powers descend so that the blocks of a message, which need descending powers, lie in the lanes
/// of one wide load. Round keys come second so that such a load beyond H¹ stays inside the object.
///
/// A schedule is made by [`expand`](Schedule::expand) alone, hence only where AES-NI is present.
pub(crate) struct Schedule {
    pub(super) blocks: [__m128i; POWERS + ROUND_KEYS],
}

impl Schedule {
    /// A schedule to be expanded in place. Holds no secret, so it may be moved.
    #[target_feature(enable = "sse2")]
    pub(super) fn blank() -> Self {
        Self { blocks: [_mm_setzero_si128(); POWERS + ROUND_KEYS] }
    }

    /// Where H^`power` lies.
    #[inline]
    pub(super) fn at(power: usize) -> usize {
        POWERS - power
    }

    /// H^`power`.
    #[inline]
    pub(super) fn power(&self, power: usize) -> __m128i {
        self.blocks[Self::at(power)]
    }

    /// Round key `round`, 0 to 10.
    #[inline]
    pub(super) fn round_key(&self, round: usize) -> __m128i {
        self.blocks[POWERS + round]
    }

    /// One block through AES-128.
    #[inline]
    #[target_feature(enable = "aes")]
    pub(super) fn encrypt(&self, block: __m128i) -> __m128i {
        let mut state = _mm_xor_si128(block, self.round_key(0));
        for round in 1..10 {
            state = _mm_aesenc_si128(state, self.round_key(round));
        }
        _mm_aesenclast_si128(state, self.round_key(10))
    }

    /// Expands a key (FIPS 197 §5.2) and computes the powers of H, all in place.
    #[target_feature(enable = "aes,pclmulqdq,ssse3")]
    pub(super) fn expand(&mut self, bytes: &[u8; KEY_LEN]) {
        self.expand_round_keys(bytes);
        let h = times_x(reversed(self.encrypt(_mm_setzero_si128())));
        let h2 = dot(h, h);
        let h4 = dot(h2, h2);
        self.blocks[Self::at(1)] = h;
        self.blocks[Self::at(2)] = h2;
        self.blocks[Self::at(3)] = dot(h2, h);
        self.blocks[Self::at(4)] = h4;
        for power in 1..=POWERS - 4 {
            self.blocks[Self::at(power + 4)] = dot(self.blocks[Self::at(power)], h4);
        }
    }

    /// SubWord is AESENCLAST on a word in all four columns, where ShiftRows changes nothing:
    /// AESKEYGENASSIST is slow microcode on several cores, and this needs no table either.
    #[inline]
    #[target_feature(enable = "aes,ssse3")]
    fn expand_round_keys(&mut self, bytes: &[u8; KEY_LEN]) {
        // RotWord of the last word, in every column.
        let rotated_last =
            _mm_set_epi8(12, 15, 14, 13, 12, 15, 14, 13, 12, 15, 14, 13, 12, 15, 14, 13);
        let mut words = memory::load(bytes);
        self.blocks[POWERS] = words;
        for (round, constant) in CONSTANTS.into_iter().enumerate() {
            let rotated = _mm_shuffle_epi8(words, rotated_last);
            let mixed = _mm_aesenclast_si128(rotated, _mm_set1_epi32(constant));
            words = _mm_xor_si128(words, _mm_slli_si128::<4>(words));
            words = _mm_xor_si128(words, _mm_slli_si128::<8>(words));
            words = _mm_xor_si128(words, mixed);
            self.blocks[POWERS + 1 + round] = words;
        }
    }
}

impl Zeroize for Schedule {
    fn zeroize(&mut self) {
        self.blocks.zeroize();
    }
}
