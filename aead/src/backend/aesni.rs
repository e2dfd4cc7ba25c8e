//! AES-NI and PCLMULQDQ: one block an instruction, 16 registers.
//!
//! A record of up to six blocks stays in registers from load to store and is reduced once; such
//! records are independent instruction chains, so the core overlaps neighbours of a batch by
//! itself. Longer ones go through memory eight blocks at a time. That second path takes any
//! length, and serves `vaes` for what its own does not.
//!
//! # Invariants
//!
//! `unsafe` here is only the step from ordinary code to functions that need these instructions.
//! It is sound because [`AesNi`] exists only where [`AesNi::detect`] found all of them, and CPU
//! features never go away while a process runs. Memory is touched through `memory` alone.
#![allow(unsafe_code, reason = "entering functions whose instructions `AesNi` proves present")]

use core::{arch::x86_64::*, hint::black_box};
use std::arch::is_x86_feature_detected;

use super::{
    gf128::{Sum, dot, lengths, reversed},
    memory::{load, load_partial, mask, prefetch, store, store_partial},
    portable,
    schedule::{POWERS, Schedule},
};
use crate::{
    FAST_AAD, KEY_LEN, Key, Nonce, Record, Verdict,
    key::{State, wipe_stack},
};

/// How many records ahead keys are fetched.
const AHEAD: usize = 4;

/// More than key expansion spills, in units of 16 bytes.
pub(super) const EXPANSION_FRAME: usize = 64;

/// More than a batch spills, in units of 16 bytes: sixteen registers do not always hold what a record needs.
const BATCH_FRAME: usize = if cfg!(debug_assertions) { 512 } else { 64 };

/// Evidence of AES-NI, PCLMULQDQ, SSSE3 and SSE4.1.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AesNi(());

impl AesNi {
    pub(crate) fn detect() -> Option<Self> {
        let present = is_x86_feature_detected!("aes")
            && is_x86_feature_detected!("pclmulqdq")
            && is_x86_feature_detected!("ssse3")
            && is_x86_feature_detected!("sse4.1");
        present.then_some(Self(()))
    }

    pub(crate) fn expand_batch(self, bytes: &[&[u8; KEY_LEN]], keys: &mut [Key]) {
        // SAFETY: `self` proves the instructions.
        unsafe { expand_batch(bytes, keys) }
        wipe_stack::<EXPANSION_FRAME>();
    }

    pub(crate) fn seal_batch(self, records: &mut [Record<'_>]) {
        // SAFETY: `self` proves the instructions.
        unsafe { seal_batch(records) }
        wipe_stack::<BATCH_FRAME>();
    }

    pub(crate) fn open_batch(self, records: &mut [Record<'_>], verdicts: &mut [Verdict]) {
        // SAFETY: `self` proves the instructions.
        unsafe { open_batch(records, verdicts) }
        wipe_stack::<BATCH_FRAME>();
    }
}

#[inline(never)]
#[target_feature(enable = "aes,pclmulqdq,ssse3")]
fn expand_batch(bytes: &[&[u8; KEY_LEN]], keys: &mut [Key]) {
    for (bytes, key) in bytes.iter().zip(keys) {
        blank(key).expand(bytes);
    }
}

/// The schedule in the key's place, to be expanded there, so that no copy of it is ever moved.
#[inline]
#[target_feature(enable = "sse2")]
pub(super) fn blank(key: &mut Key) -> &mut Schedule {
    // One that is there already is overwritten whole.
    if !matches!(key.state, State::Hardware(_)) {
        key.state = State::Hardware(Schedule::blank());
    }
    match &mut key.state {
        State::Hardware(schedule) => schedule,
        _ => unreachable!("just written"),
    }
}

#[target_feature(enable = "aes,pclmulqdq,ssse3,sse4.1")]
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

#[target_feature(enable = "aes,pclmulqdq,ssse3,sse4.1")]
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
#[target_feature(enable = "aes,pclmulqdq,ssse3,sse4.1")]
fn one<const OPEN: bool>(schedule: &Schedule, record: &mut Record<'_>) -> bool {
    if record.aad.len() > FAST_AAD {
        return any_length::<OPEN>(schedule, record);
    }
    match record.payload.len().div_ceil(16) {
        0 => in_registers::<0, OPEN>(schedule, record),
        1 => in_registers::<1, OPEN>(schedule, record),
        2 => in_registers::<2, OPEN>(schedule, record),
        3 => in_registers::<3, OPEN>(schedule, record),
        4 => in_registers::<4, OPEN>(schedule, record),
        5 => in_registers::<5, OPEN>(schedule, record),
        6 => in_registers::<6, OPEN>(schedule, record),
        _ => any_length::<OPEN>(schedule, record),
    }
}

/// Counter block `index`; 1 is J0, the payload begins at 2.
#[inline]
#[target_feature(enable = "sse2")]
fn counter(nonce: __m128i, index: u32) -> __m128i {
    _mm_or_si128(nonce, _mm_set_epi32(index.swap_bytes().cast_signed(), 0, 0, 0))
}

/// True if the tags are equal, in time that does not depend on where they differ.
#[inline]
#[target_feature(enable = "sse4.1")]
fn equal(a: __m128i, b: __m128i) -> bool {
    let difference = _mm_xor_si128(a, b);
    _mm_testz_si128(difference, difference) == 1
}

/// A record of `N` blocks, the last one perhaps partial, with at most one block of associated
/// data: N + 2 factors, one reduction.
#[inline]
#[target_feature(enable = "aes,pclmulqdq,ssse3,sse4.1")]
fn in_registers<const N: usize, const OPEN: bool>(
    schedule: &Schedule,
    record: &mut Record<'_>,
) -> bool {
    const { assert!(N + 2 <= POWERS) }
    let last = N.saturating_sub(1);
    let (full, rest) = record.payload.split_at_mut(16 * last);
    let full = full.as_chunks_mut::<16>().0;

    let nonce = load_partial(&record.nonce);
    let mut stream = [nonce; N];
    let whitener = schedule.round_key(0);
    let mut tag_mask = _mm_xor_si128(counter(nonce, 1), whitener);
    for (block, index) in stream.iter_mut().zip(2..) {
        *block = _mm_xor_si128(counter(nonce, index), whitener);
    }
    for round in 1..10 {
        let key = schedule.round_key(round);
        for block in &mut stream {
            *block = _mm_aesenc_si128(*block, key);
        }
        tag_mask = _mm_aesenc_si128(tag_mask, key);
    }
    let key = schedule.round_key(10);
    tag_mask = _mm_aesenclast_si128(tag_mask, key);

    let mut sum = Sum::zero();
    let aad = reversed(load_partial(record.aad));
    sum.add_product(aad, schedule.power(N + 2));
    sum.add_product(lengths(record.aad.len(), 16 * last + rest.len()), schedule.power(1));
    let mut output = stream;
    for i in 0..N {
        let input = if i < last { load(&full[i]) } else { load_partial(rest) };
        output[i] = _mm_xor_si128(input, _mm_aesenclast_si128(stream[i], key));
        let mut ciphertext = if OPEN { input } else { output[i] };
        if !OPEN && i == last {
            ciphertext = _mm_and_si128(ciphertext, mask(rest.len()));
        }
        sum.add_product(reversed(ciphertext), schedule.power(N + 1 - i));
    }
    let tag = _mm_xor_si128(reversed(sum.reduce()), tag_mask);
    if OPEN && !equal(tag, load(record.tag)) {
        return false;
    }

    for i in 0..N {
        if i < last {
            store(&mut full[i], output[i]);
        } else {
            store_partial(rest, output[i]);
        }
    }
    if !OPEN {
        store(record.tag, tag);
    }
    true
}

/// A record of any length; false if rejected.
#[inline(never)]
#[target_feature(enable = "aes,pclmulqdq,ssse3,sse4.1")]
pub(super) fn any_length<const OPEN: bool>(schedule: &Schedule, record: &mut Record<'_>) -> bool {
    if !record.fits() {
        return false;
    }
    if !OPEN {
        add_keystream(schedule, &record.nonce, record.payload);
    }
    let hash = absorb(schedule, _mm_setzero_si128(), record.aad);
    let hash = absorb(schedule, hash, record.payload);
    let lengths = lengths(record.aad.len(), record.payload.len());
    let hash = dot(_mm_xor_si128(hash, lengths), schedule.power(1));
    let tag_mask = schedule.encrypt(counter(load_partial(&record.nonce), 1));
    let tag = _mm_xor_si128(reversed(hash), tag_mask);
    if !OPEN {
        store(record.tag, tag);
        return true;
    }
    let authentic = equal(tag, load(record.tag));
    if authentic {
        add_keystream(schedule, &record.nonce, record.payload);
    }
    authentic
}

/// GHASH of `bytes`, zero-padded to whole blocks, continuing from `hash`.
#[inline]
#[target_feature(enable = "aes,pclmulqdq,ssse3,sse4.1")]
fn absorb(schedule: &Schedule, mut hash: __m128i, bytes: &[u8]) -> __m128i {
    for chunk in bytes.chunks(16 * POWERS) {
        let schedule = black_box(schedule);
        let (blocks, rest) = chunk.as_chunks::<16>();
        let count = chunk.len().div_ceil(16);
        let mut sum = Sum::zero();
        for (i, block) in blocks.iter().enumerate() {
            let block = _mm_xor_si128(reversed(load(block)), hash);
            hash = _mm_setzero_si128();
            sum.add_product(block, schedule.power(count - i));
        }
        if !rest.is_empty() {
            let block = _mm_xor_si128(reversed(load_partial(rest)), hash);
            sum.add_product(block, schedule.power(1));
        }
        hash = sum.reduce();
    }
    hash
}

/// Counter mode from block 2 on. The counter cannot wrap: the length was checked.
#[inline]
#[target_feature(enable = "aes,pclmulqdq,ssse3,sse4.1")]
fn add_keystream(schedule: &Schedule, nonce: &Nonce, payload: &mut [u8]) {
    let nonce = load_partial(nonce);
    let mut first = 2_u32;
    for chunk in payload.chunks_mut(128) {
        let schedule = black_box(schedule);
        // All eight even for a short rest: they cost no more than a loop of unknown length.
        let mut stream = [nonce; 8];
        for (block, index) in stream.iter_mut().zip(0..) {
            let counter = counter(nonce, first.wrapping_add(index));
            *block = _mm_xor_si128(counter, schedule.round_key(0));
        }
        for round in 1..10 {
            for block in &mut stream {
                *block = _mm_aesenc_si128(*block, schedule.round_key(round));
            }
        }
        let (blocks, rest) = chunk.as_chunks_mut::<16>();
        let whole = blocks.len();
        for (block, stream) in blocks.iter_mut().zip(stream) {
            let stream = _mm_aesenclast_si128(stream, schedule.round_key(10));
            store(block, _mm_xor_si128(load(block), stream));
        }
        if !rest.is_empty() {
            let stream = _mm_aesenclast_si128(stream[whole], schedule.round_key(10));
            store_partial(rest, _mm_xor_si128(load_partial(rest), stream));
        }
        first = first.wrapping_add(8);
    }
}
