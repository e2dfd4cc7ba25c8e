//! Arithmetic in GCM's field, 128 bits at a time, in POLYVAL form.
//!
//! Operands are byte-reversed GCM blocks; `README.md` derives why that makes reduction two
//! carry-less products by one constant. No memory access and no `unsafe`: these are register
//! functions that a caller with the same instructions inlines.

use core::arch::x86_64::*;

/// x⁶³ + x⁶² + x⁵⁷: the upper half of x¹²⁸ + x¹²⁷ + x¹²⁶ + x¹²¹ + 1 without its leading term.
pub(super) const POLYNOMIAL: i64 = 0xc200_0000_0000_0000_u64.cast_signed();

/// A sum of 256-bit products, reduced once at the end.
#[derive(Clone, Copy)]
pub(super) struct Sum {
    pub(super) low: __m128i,
    pub(super) middle: __m128i,
    pub(super) high: __m128i,
}

impl Sum {
    #[inline]
    #[target_feature(enable = "pclmulqdq")]
    pub(super) fn zero() -> Self {
        let zero = _mm_setzero_si128();
        Self { low: zero, middle: zero, high: zero }
    }

    /// Adds a·b. Schoolbook: on current cores the fourth product costs less than Karatsuba's
    /// additions.
    #[inline]
    #[target_feature(enable = "pclmulqdq")]
    pub(super) fn add_product(&mut self, a: __m128i, b: __m128i) {
        let crossed =
            _mm_xor_si128(_mm_clmulepi64_si128::<0x01>(a, b), _mm_clmulepi64_si128::<0x10>(a, b));
        self.low = _mm_xor_si128(self.low, _mm_clmulepi64_si128::<0x00>(a, b));
        self.middle = _mm_xor_si128(self.middle, crossed);
        self.high = _mm_xor_si128(self.high, _mm_clmulepi64_si128::<0x11>(a, b));
    }

    /// The sum times x⁻¹²⁸, reduced.
    #[inline]
    #[target_feature(enable = "pclmulqdq")]
    pub(super) fn reduce(self) -> __m128i {
        let polynomial = _mm_set1_epi64x(POLYNOMIAL);
        let low = _mm_xor_si128(self.low, _mm_slli_si128::<8>(self.middle));
        let high = _mm_xor_si128(self.high, _mm_srli_si128::<8>(self.middle));
        // Each step cancels the lowest 64 bits, which moves their weight up by 64.
        let low = _mm_xor_si128(
            _mm_shuffle_epi32::<0x4e>(low),
            _mm_clmulepi64_si128::<0x00>(low, polynomial),
        );
        let last = _mm_clmulepi64_si128::<0x00>(low, polynomial);
        _mm_xor_si128(_mm_xor_si128(high, _mm_shuffle_epi32::<0x4e>(low)), last)
    }
}

/// a·b·x⁻¹²⁸, reduced.
#[inline]
#[target_feature(enable = "pclmulqdq")]
pub(super) fn dot(a: __m128i, b: __m128i) -> __m128i {
    let mut sum = Sum::zero();
    sum.add_product(a, b);
    sum.reduce()
}

/// a·x, reduced.
#[inline]
#[target_feature(enable = "sse2")]
pub(super) fn times_x(a: __m128i) -> __m128i {
    // All ones if the top bit is set: a mask, so that time does not depend on the key.
    let top = _mm_shuffle_epi32::<0xff>(_mm_srai_epi32::<31>(a));
    let carry = _mm_slli_si128::<8>(_mm_srli_epi64::<63>(a));
    let shifted = _mm_or_si128(_mm_slli_epi64::<1>(a), carry);
    _mm_xor_si128(shifted, _mm_and_si128(top, _mm_set_epi64x(POLYNOMIAL, 1)))
}

/// Between a GCM block and its POLYVAL form.
#[inline]
#[target_feature(enable = "ssse3")]
pub(super) fn reversed(block: __m128i) -> __m128i {
    let order = _mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    _mm_shuffle_epi8(block, order)
}

/// GHASH's last block, in POLYVAL form: both lengths in bits.
#[inline]
#[target_feature(enable = "sse2")]
pub(super) fn lengths(aad: usize, payload: usize) -> __m128i {
    _mm_set_epi64x((aad as u64 * 8).cast_signed(), (payload as u64 * 8).cast_signed())
}
