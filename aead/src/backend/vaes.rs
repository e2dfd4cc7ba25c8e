//! AVX-512 with VAES and VPCLMULQDQ: four blocks an instruction.
//!
//! The payload's blocks lie in up to four 512-bit registers, E(J0) runs beside them under the
//! same broadcast round keys, and [associated data, lengths] fill a 256-bit register whose
//! products join the payload's before the one reduction. Nothing is stored before the tag is
//! known. A record is one chain of instructions without loops of unknown length or unpredictable
//! branches, short enough that the core holds several in flight: neighbours of a batch overlap.
//!
//! # Invariants
//!
//! `unsafe` here is only the step from ordinary code to functions that need these instructions.
//! It is sound because [`Vaes`] exists only where [`Vaes::detect`] found all of them (a check that
//! includes the operating system's saving of the wide registers), and CPU features never go away
//! while a process runs. Memory is touched through `memory` alone.
#![allow(unsafe_code, reason = "entering functions whose instructions `Vaes` proves present")]

use core::arch::x86_64::*;
use std::arch::is_x86_feature_detected;

use super::{
    aesni::{self, AesNi, EXPANSION_FRAME},
    four::{self, reversed as reversed_wide},
    gf128::{Sum, lengths, reversed},
    memory::{
        extent, load, load_four, load_masked, load_partial, load_wide, load_wide_partial, prefetch,
        store, store_wide, store_wide_partial,
    },
    portable,
    schedule::{POWERS, Schedule},
};
use crate::{
    FAST_AAD, FAST_PAYLOAD, KEY_LEN, Key, Record, Verdict,
    key::{State, wipe_if_spilled, wipe_stack},
};

/// How many records ahead keys are fetched.
const AHEAD: usize = 4;

/// Evidence of AVX-512 (F, BW, VL), VAES, VPCLMULQDQ and BMI2, and of all that AES-NI needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Vaes(AesNi);

impl Vaes {
    pub(crate) fn detect() -> Option<Self> {
        let present = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("vaes")
            && is_x86_feature_detected!("vpclmulqdq")
            && is_x86_feature_detected!("bmi2");
        if present { AesNi::detect().map(Self) } else { None }
    }

    pub(crate) fn expand_batch(self, bytes: &[&[u8; KEY_LEN]], keys: &mut [Key]) {
        // SAFETY: `self` proves the instructions.
        unsafe { expand_batch(bytes, keys) }
        wipe_stack::<EXPANSION_FRAME>();
    }

    pub(crate) fn seal_batch(self, records: &mut [Record<'_>]) {
        // SAFETY: `self` proves the instructions.
        unsafe { seal_batch(records) }
        wipe_if_spilled();
    }

    pub(crate) fn open_batch(self, records: &mut [Record<'_>], verdicts: &mut [Verdict]) {
        // SAFETY: `self` proves the instructions.
        unsafe { open_batch(records, verdicts) }
        wipe_if_spilled();
    }
}

#[inline(never)]
#[target_feature(enable = "avx512bw,avx512vl,vaes,vpclmulqdq,bmi2")]
fn expand_batch(bytes: &[&[u8; KEY_LEN]], keys: &mut [Key]) {
    let (fours, rest) = bytes.as_chunks();
    let (four_keys, rest_keys) = keys.as_chunks_mut();
    for (bytes, keys) in fours.iter().zip(four_keys) {
        four::expand(*bytes, &mut keys.each_mut().map(|key| aesni::blank(key)));
    }
    for (bytes, key) in rest.iter().zip(rest_keys) {
        aesni::blank(key).expand(bytes);
    }
}

#[target_feature(enable = "avx512bw,avx512vl,vaes,vpclmulqdq,bmi2")]
fn seal_batch(records: &mut [Record<'_>]) {
    for record in records.iter().take(AHEAD) {
        prefetch(record.key);
    }
    for i in 0..records.len() {
        if let Some(later) = records.get(i + AHEAD) {
            prefetch(later.key);
        }
        let record = &mut records[i];
        match &record.key.state {
            State::Hardware(schedule) => _ = one::<false>(schedule, record),
            State::Portable(key) => portable::seal_alone(key, record),
            State::Vacant => portable::vacant(),
        }
    }
}

#[target_feature(enable = "avx512bw,avx512vl,vaes,vpclmulqdq,bmi2")]
fn open_batch(records: &mut [Record<'_>], verdicts: &mut [Verdict]) {
    for record in records.iter().take(AHEAD) {
        prefetch(record.key);
    }
    for i in 0..records.len() {
        if let Some(later) = records.get(i + AHEAD) {
            prefetch(later.key);
        }
        let record = &mut records[i];
        verdicts[i] = match &record.key.state {
            State::Hardware(schedule) => one::<true>(schedule, record).into(),
            State::Portable(key) => portable::open_alone(key, record),
            State::Vacant => portable::vacant(),
        };
    }
}

/// One record by whichever path fits it; false if rejected.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,vaes,vpclmulqdq,bmi2")]
fn one<const OPEN: bool>(schedule: &Schedule, record: &mut Record<'_>) -> bool {
    const { assert!(FAST_PAYLOAD == 4 * 64 && FAST_AAD == 16) }
    if record.aad.len() > FAST_AAD {
        return aesni::any_length::<OPEN>(schedule, record);
    }
    match record.payload.len() {
        0..=64 => in_registers::<1, OPEN>(schedule, record),
        65..=128 => in_registers::<2, OPEN>(schedule, record),
        129..=192 => in_registers::<3, OPEN>(schedule, record),
        193..=256 => in_registers::<4, OPEN>(schedule, record),
        _ => aesni::any_length::<OPEN>(schedule, record),
    }
}

/// A record whose payload fills `N` registers, the last one perhaps partly, with at most one block
/// of associated data.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,vaes,vpclmulqdq,bmi2")]
fn in_registers<const N: usize, const OPEN: bool>(
    schedule: &Schedule,
    record: &mut Record<'_>,
) -> bool {
    let len = record.payload.len();
    let (full, rest) = record.payload.split_at_mut(64 * (N - 1));
    let full = full.as_chunks_mut::<64>().0;

    let (stream, tag_mask) = keystream::<N>(schedule, &record.nonce);
    let mut output = stream;
    let mut ciphertext = stream;
    for i in 0..N {
        let whole = i + 1 < N;
        let input = if whole { load_wide(&full[i]) } else { load_wide_partial(rest) };
        output[i] = _mm512_xor_si512(input, stream[i]);
        ciphertext[i] = reversed_wide(match (OPEN, whole) {
            (true, _) => input,
            (false, true) => output[i],
            // GHASH pads with zeros, not with keystream.
            (false, false) => _mm512_maskz_mov_epi8(extent(rest), output[i]),
        });
    }
    let aad = reversed(load_masked(record.aad));
    let lengths = lengths(record.aad.len(), len);
    let hash = ghash::<N>(schedule, aad, &ciphertext, len.div_ceil(16), lengths);
    let tag = _mm_xor_si128(reversed(hash), tag_mask);
    if OPEN {
        let difference = _mm_xor_si128(tag, load(record.tag));
        if _mm_testz_si128(difference, difference) == 0 {
            return false;
        }
    }

    for i in 0..N {
        if i + 1 < N {
            store_wide(&mut full[i], output[i]);
        } else {
            store_wide_partial(rest, output[i]);
        }
    }
    if !OPEN {
        store(record.tag, tag);
    }
    true
}

/// `N` registers of keystream and E(J0).
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,vaes,vpclmulqdq,bmi2")]
fn keystream<const N: usize>(schedule: &Schedule, nonce: &[u8; 12]) -> ([__m512i; N], __m128i) {
    let whitened = _mm_xor_si128(load_partial(nonce), schedule.round_key(0));
    let mut tag_mask = _mm_xor_si128(whitened, _mm_set_epi32(1 << 24, 0, 0, 0));
    let mut stream = [_mm512_broadcast_i32x4(whitened); N];
    for (register, first) in stream.iter_mut().zip((2_u32..).step_by(4)) {
        *register = _mm512_xor_si512(*register, counters(first));
    }
    for round in 1..10 {
        let key = schedule.round_key(round);
        let wide = _mm512_broadcast_i32x4(key);
        for register in &mut stream {
            *register = _mm512_aesenc_epi128(*register, wide);
        }
        tag_mask = _mm_aesenc_si128(tag_mask, key);
    }
    let key = schedule.round_key(10);
    let wide = _mm512_broadcast_i32x4(key);
    for register in &mut stream {
        *register = _mm512_aesenclast_epi128(*register, wide);
    }
    (stream, _mm_aesenclast_si128(tag_mask, key))
}

/// Counters `first` to `first + 3`, each in the last four bytes of a block of zeros.
#[inline]
#[target_feature(enable = "avx512f")]
fn counters(first: u32) -> __m512i {
    let [a, b, c, d] = [0, 1, 2, 3].map(|lane| (first + lane).swap_bytes().cast_signed());
    let last = _mm512_set_epi32(d, d, d, d, c, c, c, c, b, b, b, b, a, a, a, a);
    _mm512_maskz_mov_epi32(0x8888, last)
}

/// GHASH of a block of associated data, `blocks` blocks of ciphertext and the lengths.
///
/// How many reductions depends on how many powers are at hand: one for up to six blocks, two up
/// to eleven, three up to sixteen. Lanes beyond the last block are zero and meet whatever lies
/// behind H¹.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl,vaes,vpclmulqdq,bmi2")]
fn ghash<const N: usize>(
    schedule: &Schedule,
    aad: __m128i,
    ciphertext: &[__m512i; N],
    blocks: usize,
    lengths: __m128i,
) -> __m128i {
    if N == 1 || (N == 2 && blocks + 2 <= POWERS) {
        let mut sum = WideSum::of(schedule, ciphertext, blocks + 1);
        sum.add_pair(pair(aad, lengths), pair(schedule.power(blocks + 2), schedule.power(1)));
        return sum.reduce();
    }

    let mut sum = WideSum::of(schedule, &ciphertext[..1], 4);
    sum.add_low(aad, schedule.power(5));
    let mut hash = sum.reduce();
    let mut done = 1;
    if N == 4 {
        hash = WideSum::of(schedule, &joined::<2>(hash, &ciphertext[1..3]), 8).reduce();
        done = 3;
    } else if N == 3 && blocks - 4 == 8 {
        hash = WideSum::of(schedule, &joined::<1>(hash, &ciphertext[1..2]), 4).reduce();
        done = 2;
    }
    let top = blocks - 4 * done + 1;
    let mut sum = if N - done == 2 {
        WideSum::of(schedule, &joined::<2>(hash, &ciphertext[done..]), top)
    } else {
        WideSum::of(schedule, &joined::<1>(hash, &ciphertext[done..]), top)
    };
    sum.add_low(lengths, schedule.power(1));
    sum.reduce()
}

/// `blocks` with the hash so far added to the first of them.
#[inline]
#[target_feature(enable = "avx512f")]
fn joined<const N: usize>(hash: __m128i, blocks: &[__m512i]) -> [__m512i; N] {
    let mut blocks = *blocks.first_chunk::<N>().expect("as many as asked for");
    blocks[0] = _mm512_xor_si512(blocks[0], _mm512_zextsi128_si512(hash));
    blocks
}

#[inline]
#[target_feature(enable = "avx2")]
fn pair(low: __m128i, high: __m128i) -> __m256i {
    _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(low), high)
}

/// [`Sum`] in four lanes, folded before it is reduced.
struct WideSum {
    low: __m512i,
    middle: __m512i,
    high: __m512i,
}

impl WideSum {
    /// Σ blocks · descending powers from H^`top` on.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512vl,vpclmulqdq")]
    fn of(schedule: &Schedule, registers: &[__m512i], top: usize) -> Self {
        let zero = _mm512_setzero_si512();
        let mut sum = Self { low: zero, middle: zero, high: zero };
        for (i, &a) in registers.iter().enumerate() {
            let b = load_four(&schedule.blocks, Schedule::at(top) + 4 * i);
            let crossed = _mm512_xor_si512(
                _mm512_clmulepi64_epi128::<0x01>(a, b),
                _mm512_clmulepi64_epi128::<0x10>(a, b),
            );
            sum.low = _mm512_xor_si512(sum.low, _mm512_clmulepi64_epi128::<0x00>(a, b));
            sum.middle = _mm512_xor_si512(sum.middle, crossed);
            sum.high = _mm512_xor_si512(sum.high, _mm512_clmulepi64_epi128::<0x11>(a, b));
        }
        sum
    }

    /// Adds the products of two more blocks.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512vl,vpclmulqdq")]
    fn add_pair(&mut self, a: __m256i, b: __m256i) {
        let crossed = _mm256_xor_si256(
            _mm256_clmulepi64_epi128::<0x01>(a, b),
            _mm256_clmulepi64_epi128::<0x10>(a, b),
        );
        let wide = |x| _mm512_zextsi256_si512(x);
        let (low, high) =
            (_mm256_clmulepi64_epi128::<0x00>(a, b), _mm256_clmulepi64_epi128::<0x11>(a, b));
        self.low = _mm512_xor_si512(self.low, wide(low));
        self.middle = _mm512_xor_si512(self.middle, wide(crossed));
        self.high = _mm512_xor_si512(self.high, wide(high));
    }

    /// Adds the product of one more block.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512vl,vpclmulqdq")]
    fn add_low(&mut self, a: __m128i, b: __m128i) {
        self.add_pair(_mm256_zextsi128_si256(a), _mm256_zextsi128_si256(b));
    }

    #[inline]
    #[target_feature(enable = "avx512bw,avx512vl,vpclmulqdq")]
    fn reduce(self) -> __m128i {
        Sum { low: fold(self.low), middle: fold(self.middle), high: fold(self.high) }.reduce()
    }
}

/// The sum of the four lanes.
#[inline]
#[target_feature(enable = "avx512f")]
fn fold(lanes: __m512i) -> __m128i {
    let halves =
        _mm256_xor_si256(_mm512_castsi512_si256(lanes), _mm512_extracti64x4_epi64::<1>(lanes));
    _mm_xor_si128(_mm256_castsi256_si128(halves), _mm256_extracti128_si256::<1>(halves))
}
