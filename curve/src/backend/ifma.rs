//! The AVX-512 IFMA backend: eight lanes of five 52-bit limbs. With `adx` the crate's only unsafe code.
//!
//! # Why this is sound
//!
//! The code uses `unsafe` for three reasons, and each rests on one invariant.
//!
//! 1. **The CPU has the instructions.** An [`Ifma`] value is the proof: [`Ifma::detect`] is its only
//!    constructor, and it asks the CPU (and, through `XCR0`, the operating system) for every feature
//!    [`call_with_features`] enables. [`Ifma::call`] takes that value, and an engine holds it. The
//!    other methods of the [`Lanes`] implementation take no proof, for brevity; they are private to
//!    the crate, and the rule is that generic code is entered through `call`. The intrinsics
//!    themselves touch registers only.
//! 2. **Loads and stores stay inside references.** Memory is reached through `&[u64; 8]`, `&Row` and
//!    `&T` only, of exactly the size that is read or written, by unaligned instructions. No pointer
//!    arithmetic exists here: rows of tables are chosen with ordinary checked slices.
//! 3. **Vectors cross function boundaries only in memory.** The Rust ABI passes `__m512i` by
//!    reference, so a function that was not inlined is slow, not wrong.
//!
//! Values are secret unless a caller says otherwise: nothing here branches on a lane or uses one as
//! an address. `shared_lookup` selects with permutations of registers.

#![allow(unsafe_code)]

mod field;
mod scalar;
mod vector;

use crate::backend::adx::Adx;
use crate::backend::{Backend, Kind};
use crate::lanes::{Lanes, MAX_WIDTH, Words};
use crate::one_lane::Narrow;
use crate::table::Row;
use field::{Fe, Loose};
use vector::V;

/// Proof that the CPU runs this backend.
#[derive(Clone, Copy)]
pub(crate) struct Ifma(());

impl Ifma {
    /// Asks the CPU.
    pub(crate) fn detect() -> Option<Self> {
        let has = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512ifma")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vbmi2")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("adx"); // for what takes one lane
        has.then_some(Self(()))
    }
}

#[target_feature(enable = "avx512f,avx512ifma,avx512dq,avx512vl,avx512bw,avx512vbmi2,bmi2")]
#[inline(never)]
fn call_with_features<R>(f: impl FnOnce() -> R) -> R {
    f()
}

/// A fixed base's table, limb by limb: for each window, ten groups (five limbs of x, five of y) of
/// `ENTRIES` words, so that four two-register permutations fetch one limb for eight lanes.
pub(crate) struct SharedTable(Vec<[Line; ENTRIES / 8]>);

/// Eight words in one cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u64; 8]);

/// Entries a window of a [`SharedTable`].
const ENTRIES: usize = crate::fixed::ENTRIES;
const _: () = assert!(ENTRIES == 64, "shared_lookup is written for 64 entries");

impl Lanes for Ifma {
    const WIDTH: usize = 8;
    const BACKEND: Backend = Backend(Kind::Ifma);
    type Word = V;
    type Fe = Fe;
    type Loose = Loose;
    type Scalar = Fe;
    type SharedTable = SharedTable;
    type One = Narrow<Adx>;

    fn one_lane(self) -> Narrow<Adx> {
        Narrow(self.into())
    }

    #[inline(always)]
    fn call<R>(self, f: impl FnOnce() -> R) -> R {
        // SAFETY: `self` proves that the CPU has the features (first invariant above).
        unsafe { call_with_features(f) }
    }

    #[inline(always)]
    fn splat(x: u64) -> V {
        vector::splat(x)
    }
    #[inline(always)]
    fn from_lanes(x: &[u64; MAX_WIDTH]) -> V {
        vector::load(x)
    }
    #[inline(always)]
    fn to_lanes(x: V) -> [u64; MAX_WIDTH] {
        vector::store(x)
    }
    #[inline(always)]
    fn and(a: V, b: V) -> V {
        vector::and(a, b)
    }
    #[inline(always)]
    fn or(a: V, b: V) -> V {
        vector::or(a, b)
    }
    #[inline(always)]
    fn xor(a: V, b: V) -> V {
        vector::xor(a, b)
    }
    #[inline(always)]
    fn shl(a: V, n: u32) -> V {
        vector::shl_var(a, vector::splat(u64::from(n)))
    }
    #[inline(always)]
    fn shr(a: V, n: u32) -> V {
        vector::shr_var(a, vector::splat(u64::from(n)))
    }
    #[inline(always)]
    fn test(a: V, b: V) -> u8 {
        vector::test(a, b)
    }
    #[inline(always)]
    fn eq(a: V, b: V) -> u8 {
        vector::eq(a, b)
    }
    #[inline(always)]
    fn select(mask: u8, a: V, b: V) -> V {
        vector::select(mask, a, b)
    }

    #[inline(always)]
    fn load_rows(rows: &[&Row; MAX_WIDTH]) -> [V; 8] {
        let mut r = [vector::zero(); 8];
        for (x, row) in r.iter_mut().zip(rows) {
            *x = vector::load(&row.0);
        }
        vector::transpose(&r)
    }
    #[inline(always)]
    fn store_rows(words: &[V; 8]) -> [Row; MAX_WIDTH] {
        let r = vector::transpose(words);
        let mut rows = [Row([0; 8]); MAX_WIDTH];
        for (row, x) in rows.iter_mut().zip(r) {
            row.0 = vector::store(x);
        }
        rows
    }
    #[inline(always)]
    fn prefetch(row: &Row) {
        vector::prefetch(row);
    }

    fn shared_table(rows: &[Row], windows: usize, entries: usize) -> SharedTable {
        assert!(entries == ENTRIES && rows.len() == windows * entries);
        let limb = |w: &[u64], i: usize| match i {
            0 => w[0] & field::MASK,
            1 => ((w[0] >> 52) | (w[1] << 12)) & field::MASK,
            2 => ((w[1] >> 40) | (w[2] << 24)) & field::MASK,
            3 => ((w[2] >> 28) | (w[3] << 36)) & field::MASK,
            _ => w[3] >> 16,
        };
        let mut table = vec![[Line([0; 8]); ENTRIES / 8]; windows * 10];
        for (i, row) in rows.iter().enumerate() {
            let (window, entry) = (i / entries, i % entries);
            for l in 0..10 {
                table[window * 10 + l][entry / 8].0[entry % 8] =
                    limb(&row.0[4 * (l / 5)..4 * (l / 5) + 4], l % 5);
            }
        }
        SharedTable(table)
    }
    #[inline(always)]
    fn shared_lookup(table: &SharedTable, window: usize, index: V) -> (Fe, Fe) {
        let upper = vector::test(index, vector::splat(16));
        let half = vector::test(index, vector::splat(32));
        let mut out = [vector::zero(); 10];
        for (o, limb) in out.iter_mut().zip(&table.0[window * 10..window * 10 + 10]) {
            let quarter = |i: usize| {
                vector::permute2(
                    vector::load(&limb[2 * i].0),
                    index,
                    vector::load(&limb[2 * i + 1].0),
                )
            };
            let low = vector::select(upper, quarter(0), quarter(1));
            let high = vector::select(upper, quarter(2), quarter(3));
            *o = vector::select(half, low, high);
        }
        let [x0, x1, x2, x3, x4, y0, y1, y2, y3, y4] = out;
        (Fe([x0, x1, x2, x3, x4]), Fe([y0, y1, y2, y3, y4]))
    }

    #[inline(always)]
    fn one() -> Fe {
        field::constant(&field::ONE)
    }
    #[inline(always)]
    fn three() -> Fe {
        field::constant(&field::THREE)
    }
    #[inline(always)]
    fn b() -> Fe {
        field::constant(&field::B)
    }
    #[inline(always)]
    fn mul(a: &Fe, b: &Fe) -> Loose {
        field::mul(a, b)
    }
    #[inline(always)]
    fn sqr(a: &Fe) -> Loose {
        field::sqr(a)
    }
    #[inline(always)]
    fn mul_add(a: &Fe, b: &Fe, c: Loose) -> Loose {
        field::mul_add(a, b, &c)
    }
    #[inline(always)]
    fn sqr_add_2(a: &Fe, c: Loose) -> Loose {
        field::sqr_add_2(a, &c)
    }
    #[inline(always)]
    fn mul_add_mul(a: &Fe, b: &Fe, c: &Fe, d: &Fe) -> Loose {
        field::mul_add_mul(a, b, c, d)
    }
    #[inline(always)]
    fn mul_sub_2sqr(a: &Fe, b: &Fe, c: &Fe) -> Loose {
        field::mul_sub_2sqr(a, b, c)
    }
    #[inline(always)]
    fn add(a: Loose, b: Loose) -> Loose {
        field::add(&a, &b)
    }
    #[inline(always)]
    fn sub(a: Loose, b: Loose) -> Loose {
        field::sub(&a, &b)
    }
    #[inline(always)]
    fn neg(a: Loose) -> Loose {
        field::neg_if(a, 0xff)
    }
    #[inline(always)]
    fn neg_if(a: Loose, mask: u8) -> Loose {
        field::neg_if(a, mask)
    }
    #[inline(always)]
    fn double(a: Loose) -> Loose {
        field::add(&a, &a)
    }
    #[inline(always)]
    fn add_p(a: Loose, k: u64) -> Loose {
        field::add_p(a, k)
    }
    #[inline(always)]
    fn tight(a: Loose) -> Fe {
        field::tight(a)
    }
    #[inline(always)]
    fn reduce(a: Loose) -> Fe {
        field::reduce(a)
    }
    #[inline(always)]
    fn loose(a: &Fe) -> Loose {
        Loose(a.0)
    }
    #[inline(always)]
    fn is_zero(a: &Fe) -> u8 {
        field::is_zero(a)
    }
    #[inline(always)]
    fn swap_fe(a: &Fe, step: usize) -> Fe {
        field::swap(a, step)
    }
    #[inline(always)]
    fn select_fe(mask: u8, a: &Fe, b: &Fe) -> Fe {
        field::select_fe(mask, a, b)
    }
    #[inline(always)]
    fn unpack(w: &Words<Self>) -> Fe {
        field::unpack(w)
    }
    #[inline(always)]
    fn pack(a: &Fe) -> Words<Self> {
        field::words(&field::subtract_once(a, &field::P))
    }
    #[inline(always)]
    fn to_montgomery(w: &Words<Self>) -> Fe {
        field::to_montgomery(w)
    }
    #[inline(always)]
    fn from_montgomery(a: &Fe) -> Words<Self> {
        field::from_montgomery(a)
    }

    #[inline(always)]
    fn scalar(w: &Words<Self>) -> Fe {
        field::unpack(w)
    }
    #[inline(always)]
    fn scalar_words(a: &Fe) -> Words<Self> {
        field::words(&field::subtract_once(a, &scalar::N))
    }
    #[inline(always)]
    fn scalar_mul(a: &Fe, b: &Fe) -> Fe {
        scalar::mul(a, b)
    }
    #[inline(always)]
    fn scalar_sqr(a: &Fe) -> Fe {
        scalar::sqr(a)
    }
    #[inline(always)]
    fn scalar_add(a: &Fe, b: &Fe) -> Fe {
        field::tight(field::add(&Loose(a.0), &Loose(b.0)))
    }
    #[inline(always)]
    fn scalar_r2() -> Fe {
        field::constant(&scalar::R2)
    }
    #[inline(always)]
    fn scalar_r3() -> Fe {
        field::constant(&scalar::R3)
    }
    #[inline(always)]
    fn scalar_one() -> Fe {
        field::constant(&scalar::ONE)
    }
    #[inline(always)]
    fn scalar_odd(u: &Words<Self>) -> (Words<Self>, u8) {
        let even = vector::test_not(u[0], vector::splat(1));
        let negated = field::words(&scalar::negate(&field::unpack(u)));
        let mut out = *u;
        for (x, y) in out.iter_mut().zip(negated) {
            *x = vector::select(even, *x, y);
        }
        (out, even)
    }
    #[inline(always)]
    fn scalar_select(mask: u8, a: &Fe, b: &Fe) -> Fe {
        field::select_fe(mask, a, b)
    }
    #[inline(always)]
    fn scalar_swap(a: &Fe, step: usize) -> Fe {
        field::swap(a, step)
    }
}
