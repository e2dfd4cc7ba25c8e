//! Four keys expanded at once, one in each lane of a 512-bit register.
//!
//! Expanding one key is a chain of dependent instructions from its first round key to its highest
//! power of H. Four chains in the lanes of one register take the time of one.
//!
//! Like `gf128`, register functions without `unsafe`: a caller with the same instructions inlines
//! them.

use core::arch::x86_64::*;

use super::{
    gf128::POLYNOMIAL,
    memory,
    schedule::{CONSTANTS, POWERS, Schedule},
};
use crate::KEY_LEN;

/// What [`Schedule::expand`] does, for four keys.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,vaes,vpclmulqdq")]
pub(super) fn expand(bytes: [&[u8; KEY_LEN]; 4], schedules: &mut [&mut Schedule; 4]) {
    let h = times_x(reversed(expand_round_keys(bytes, schedules)));
    let h2 = dot(h, h);
    let h4 = dot(h2, h2);
    let powers = [h, h2, dot(h2, h), h4];
    for (i, power) in powers.into_iter().enumerate() {
        store(schedules, Schedule::at(i + 1), power);
        if i + 5 <= POWERS {
            store(schedules, Schedule::at(i + 5), dot(power, h4));
        }
    }
}

/// Stores the round keys and returns the zero block encrypted under them. See
/// `Schedule::expand_round_keys` for how.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,vaes")]
fn expand_round_keys(bytes: [&[u8; KEY_LEN]; 4], schedules: &mut [&mut Schedule; 4]) -> __m512i {
    let rotated_last = _mm512_broadcast_i32x4(_mm_set_epi8(
        12, 15, 14, 13, 12, 15, 14, 13, 12, 15, 14, 13, 12, 15, 14, 13,
    ));
    let [a, b, c, d] = bytes.map(|key| memory::load(key));
    let low = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(a), b);
    let high = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(c), d);
    let mut words = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high);
    let mut block = words;
    store(schedules, POWERS, words);
    for (round, constant) in CONSTANTS.into_iter().enumerate() {
        let rotated = _mm512_shuffle_epi8(words, rotated_last);
        let mixed = _mm512_aesenclast_epi128(rotated, _mm512_set1_epi32(constant));
        words = _mm512_xor_si512(words, _mm512_bslli_epi128::<4>(words));
        words = _mm512_xor_si512(words, _mm512_bslli_epi128::<8>(words));
        words = _mm512_xor_si512(words, mixed);
        store(schedules, POWERS + 1 + round, words);
        block = if round + 1 < CONSTANTS.len() {
            _mm512_aesenc_epi128(block, words)
        } else {
            _mm512_aesenclast_epi128(block, words)
        };
    }
    block
}

/// Each lane to block `at` of its own schedule.
#[inline]
#[target_feature(enable = "avx512f")]
fn store([a, b, c, d]: &mut [&mut Schedule; 4], at: usize, lanes: __m512i) {
    a.blocks[at] = _mm512_castsi512_si128(lanes);
    b.blocks[at] = _mm512_extracti32x4_epi32::<1>(lanes);
    c.blocks[at] = _mm512_extracti32x4_epi32::<2>(lanes);
    d.blocks[at] = _mm512_extracti32x4_epi32::<3>(lanes);
}

/// `gf128::reversed` in each lane.
#[inline]
#[target_feature(enable = "avx512bw")]
pub(super) fn reversed(blocks: __m512i) -> __m512i {
    let order = _mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    _mm512_shuffle_epi8(blocks, _mm512_broadcast_i32x4(order))
}

/// `gf128::times_x` in each lane.
#[inline]
#[target_feature(enable = "avx512bw")]
fn times_x(a: __m512i) -> __m512i {
    let top = _mm512_shuffle_epi32::<0xff>(_mm512_srai_epi32::<31>(a));
    let carry = _mm512_bslli_epi128::<8>(_mm512_srli_epi64::<63>(a));
    let shifted = _mm512_or_si512(_mm512_slli_epi64::<1>(a), carry);
    let polynomial = _mm512_broadcast_i32x4(_mm_set_epi64x(POLYNOMIAL, 1));
    _mm512_xor_si512(shifted, _mm512_and_si512(top, polynomial))
}

/// `gf128::dot` in each lane.
#[inline]
#[target_feature(enable = "avx512bw,vpclmulqdq")]
fn dot(a: __m512i, b: __m512i) -> __m512i {
    let middle = _mm512_xor_si512(
        _mm512_clmulepi64_epi128::<0x01>(a, b),
        _mm512_clmulepi64_epi128::<0x10>(a, b),
    );
    let low = _mm512_clmulepi64_epi128::<0x00>(a, b);
    let high = _mm512_clmulepi64_epi128::<0x11>(a, b);

    let polynomial = _mm512_set1_epi64(POLYNOMIAL);
    let low = _mm512_xor_si512(low, _mm512_bslli_epi128::<8>(middle));
    let high = _mm512_xor_si512(high, _mm512_bsrli_epi128::<8>(middle));
    let low = _mm512_xor_si512(
        _mm512_shuffle_epi32::<0x4e>(low),
        _mm512_clmulepi64_epi128::<0x00>(low, polynomial),
    );
    let last = _mm512_clmulepi64_epi128::<0x00>(low, polynomial);
    _mm512_xor_si512(_mm512_xor_si512(high, _mm512_shuffle_epi32::<0x4e>(low)), last)
}
