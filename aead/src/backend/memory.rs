//! Between byte slices and vector registers. Every pointer of this crate is here.
//!
//! # Invariants
//!
//! 1. **Extent.** Each function's argument type or an assertion in it says how many bytes may be
//!    touched, and the access stays within. A masked access counts only the bytes its mask
//!    selects: AVX-512 neither reads, writes nor faults on the others (Intel SDM vol. 1 §15.6.4).
//! 2. **Alignment.** Every access is the unaligned kind.
//! 3. **Aliasing.** Loads go through `&`, stores through `&mut`; no pointer outlives the call.
//! 4. **Values.** A vector register has no invalid bit pattern, and neither has a byte.
//! 5. **Instructions.** Each function names in `target_feature` what it needs, so the compiler
//!    lets only functions with the same evidence call it; `aesni` and `vaes` discharge that at
//!    their entries.
#![allow(unsafe_code, reason = "loads and stores of vector registers, under the invariants above")]

use core::arch::x86_64::*;

use crate::Key;

/// Bytes in a cache line.
const LINE: usize = 64;

/// Asks for a key's cache lines.
#[inline]
#[target_feature(enable = "sse2")]
pub(super) fn prefetch(key: &Key) {
    for offset in (0..size_of::<Key>()).step_by(LINE) {
        let line = core::ptr::from_ref(key).cast::<i8>().wrapping_add(offset);
        _mm_prefetch::<_MM_HINT_T0>(line);
    }
}

#[inline]
#[target_feature(enable = "sse2")]
pub(super) fn load(block: &[u8; 16]) -> __m128i {
    // SAFETY: reads the 16 bytes of the array.
    unsafe { _mm_loadu_si128(block.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "sse2")]
pub(super) fn store(block: &mut [u8; 16], value: __m128i) {
    // SAFETY: writes the 16 bytes of the array.
    unsafe { _mm_storeu_si128(block.as_mut_ptr().cast(), value) }
}

/// All ones in the first `len` bytes, `len` at most 16.
#[inline]
#[target_feature(enable = "sse2")]
pub(super) fn mask(len: usize) -> __m128i {
    static MASK: [u8; 32] = {
        let mut mask = [0; 32];
        let mut i = 0;
        while i < 16 {
            mask[i] = 0xff;
            i += 1;
        }
        mask
    };
    let window = MASK[16 - len..].first_chunk().expect("16 - len is at most 16");
    load(window)
}

/// Up to 16 bytes, zero-padded, without reading past them and without a call to `memcpy`: two
/// overlapping reads agree where they overlap.
#[inline]
#[target_feature(enable = "sse2")]
pub(super) fn load_partial(bytes: &[u8]) -> __m128i {
    if let Some(block) = bytes.first_chunk() {
        return load(block);
    }
    #[expect(clippy::cast_possible_truncation, reason = "less than 16")]
    let len = bytes.len() as u32;
    let (low, high) = if let (Some(first), Some(last)) = (bytes.first_chunk(), bytes.last_chunk()) {
        // Eight bytes leave nothing for the upper half.
        let unshared = u64::from_le_bytes(*last).unbounded_shr(8 * (16 - len));
        (u64::from_le_bytes(*first), unshared)
    } else if let (Some(first), Some(last)) = (bytes.first_chunk(), bytes.last_chunk()) {
        let (first, last) = (u32::from_le_bytes(*first), u32::from_le_bytes(*last));
        (u64::from(first) | u64::from(last) << (8 * (len - 4)), 0)
    } else {
        (bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)), 0)
    };
    _mm_set_epi64x(high.cast_signed(), low.cast_signed())
}

/// The first bytes of `value`, as many as `bytes` has, at most 16.
#[inline]
#[target_feature(enable = "sse2")]
pub(super) fn store_partial(bytes: &mut [u8], value: __m128i) {
    if let Some(block) = bytes.first_chunk_mut() {
        return store(block, value);
    }
    let mut block = [0; 16];
    store(&mut block, value);
    for (byte, source) in bytes.iter_mut().zip(block) {
        *byte = source;
    }
}

/// Four consecutive blocks from `blocks[at]` on, in lane order.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load_four(blocks: &[__m128i], at: usize) -> __m512i {
    let four = &blocks[at..at + 4];
    // SAFETY: reads the 64 bytes of four blocks.
    unsafe { _mm512_loadu_si512(four.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load_wide(bytes: &[u8; 64]) -> __m512i {
    // SAFETY: reads the 64 bytes of the array.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn store_wide(bytes: &mut [u8; 64], value: __m512i) {
    // SAFETY: writes the 64 bytes of the array.
    unsafe { _mm512_storeu_si512(bytes.as_mut_ptr().cast(), value) }
}

/// A mask of as many bytes as `bytes` has, at most 64.
#[inline]
#[target_feature(enable = "bmi2")]
pub(super) fn extent(bytes: &[u8]) -> u64 {
    assert!(bytes.len() <= 64);
    #[expect(clippy::cast_possible_truncation, reason = "at most 64")]
    _bzhi_u64(u64::MAX, bytes.len() as u32)
}

/// Up to 64 bytes, zero-padded.
#[inline]
#[target_feature(enable = "avx512bw,bmi2")]
pub(super) fn load_wide_partial(bytes: &[u8]) -> __m512i {
    // SAFETY: the mask selects the bytes of the slice and no other.
    unsafe { _mm512_maskz_loadu_epi8(extent(bytes), bytes.as_ptr().cast()) }
}

/// The first bytes of `value`, as many as `bytes` has, at most 64.
#[inline]
#[target_feature(enable = "avx512bw,bmi2")]
pub(super) fn store_wide_partial(bytes: &mut [u8], value: __m512i) {
    let mask = extent(bytes);
    // SAFETY: the mask selects the bytes of the slice and no other.
    unsafe { _mm512_mask_storeu_epi8(bytes.as_mut_ptr().cast(), mask, value) }
}

/// Up to 16 bytes, zero-padded, in one masked load.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,bmi2")]
pub(super) fn load_masked(bytes: &[u8]) -> __m128i {
    assert!(bytes.len() <= 16);
    #[expect(clippy::cast_possible_truncation, reason = "at most 16 bits are set")]
    let mask = extent(bytes) as u16;
    // SAFETY: the mask selects the bytes of the slice and no other.
    unsafe { _mm_maskz_loadu_epi8(mask, bytes.as_ptr().cast()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes go into a register zero-padded and come back, and their neighbours stay.
    #[test]
    fn partial_blocks() {
        if !std::arch::is_x86_feature_detected!("sse2") {
            return;
        }
        for len in 0..=16_u8 {
            let bytes: Vec<u8> = (1..=len).collect();
            let mut block = [0xee; 16];
            let mut back = [0xee; 18];
            // SAFETY: SSE2 is part of x86-64.
            unsafe {
                store(&mut block, load_partial(&bytes));
                store_partial(&mut back[1..=usize::from(len)], load_partial(&bytes));
                assert_eq!(_mm_movemask_epi8(mask(usize::from(len))), (1 << len) - 1);
            }
            assert_eq!(&block[..bytes.len()], bytes);
            assert!(block[bytes.len()..].iter().all(|&b| b == 0));
            assert_eq!(&back[1..=bytes.len()], bytes);
            assert!(back[0] == 0xee && back[bytes.len() + 1..].iter().all(|&b| b == 0xee));
        }
    }
}
