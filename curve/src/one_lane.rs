//! One lane of four 64-bit limbs: the machinery that the backends `portable` and `adx` share, in safe
//! Rust for any CPU. The two differ in nothing but how they form products; see [`Multiply`].
//!
//! Elements are always reduced, so tight and loose forms coincide and the bounds annotations of the
//! formulas cost nothing.

// Digits, lane numbers and table indices are far below the limits of the types they pass through.
#![allow(clippy::cast_possible_truncation)]

pub(crate) mod field;
mod scalar;

pub(crate) use field::{Limbs, P};

use crate::backend::{Backend, Kind};
use crate::lanes::{Lanes, MAX_WIDTH, Words};
use crate::table::Row;
use cmov::Cmov;
use core::hint::black_box;

/// One lane, with a way to multiply.
#[derive(Clone, Copy)]
pub(crate) struct Narrow<M>(pub(crate) M);

/// Products modulo p. A value is the proof that this CPU can form them so.
pub(crate) trait Multiply: Copy + Send + Sync + 'static {
    /// The backend.
    const KIND: Kind;
    /// a·b/R, reduced, of reduced factors.
    fn mul(a: &Limbs, b: &Limbs) -> Limbs;
    /// a²/R, reduced, of a reduced a.
    fn sqr(a: &Limbs) -> Limbs;
    /// Asks the cache for a row, where there is a way to.
    #[inline(always)]
    fn prefetch(_row: &Row) {}
}

#[inline(always)]
fn bit(mask: u8) -> u64 {
    u64::from(mask & 1)
}

impl<M: Multiply> Lanes for Narrow<M> {
    const WIDTH: usize = 1;
    const BACKEND: Backend = Backend(M::KIND);
    type Word = u64;
    type Fe = Limbs;
    type Loose = Limbs;
    type Scalar = Limbs;
    type SharedTable = (Vec<Row>, usize);
    type One = Self;

    fn one_lane(self) -> Self {
        self
    }

    #[inline(never)]
    fn call<R>(self, f: impl FnOnce() -> R) -> R {
        f()
    }

    #[inline(always)]
    fn splat(x: u64) -> u64 {
        x
    }
    #[inline(always)]
    fn from_lanes(x: &[u64; MAX_WIDTH]) -> u64 {
        x[0]
    }
    #[inline(always)]
    fn to_lanes(x: u64) -> [u64; MAX_WIDTH] {
        [x, 0, 0, 0, 0, 0, 0, 0]
    }
    #[inline(always)]
    fn and(a: u64, b: u64) -> u64 {
        a & b
    }
    #[inline(always)]
    fn or(a: u64, b: u64) -> u64 {
        a | b
    }
    #[inline(always)]
    fn xor(a: u64, b: u64) -> u64 {
        a ^ b
    }
    #[inline(always)]
    fn shl(a: u64, n: u32) -> u64 {
        a.unbounded_shl(n)
    }
    #[inline(always)]
    fn shr(a: u64, n: u32) -> u64 {
        a.unbounded_shr(n)
    }
    #[inline(always)]
    fn test(a: u64, b: u64) -> u8 {
        let x = a & b;
        ((x | x.wrapping_neg()) >> 63) as u8
    }
    #[inline(always)]
    fn eq(a: u64, b: u64) -> u8 {
        1 ^ Self::test(a ^ b, u64::MAX)
    }
    #[inline(always)]
    fn select(mask: u8, a: u64, b: u64) -> u64 {
        let mut out = a;
        out.cmovnz(&b, mask & 1);
        out
    }

    #[inline(always)]
    fn load_rows(rows: &[&Row; MAX_WIDTH]) -> [u64; 8] {
        rows[0].0
    }
    #[inline(always)]
    fn store_rows(words: &[u64; 8]) -> [Row; MAX_WIDTH] {
        [Row(*words); MAX_WIDTH]
    }
    #[inline(always)]
    fn prefetch(row: &Row) {
        M::prefetch(row);
    }
    fn shared_table(rows: &[Row], windows: usize, entries: usize) -> Self::SharedTable {
        assert_eq!(rows.len(), windows * entries);
        (rows.to_vec(), entries)
    }
    #[inline(always)]
    fn shared_lookup(table: &Self::SharedTable, window: usize, index: u64) -> (Limbs, Limbs) {
        let entries = table.1;
        let mut out = [0u64; 8];
        for (i, row) in table.0[window * entries..(window + 1) * entries].iter().enumerate() {
            // Hidden from the compiler, which might make a branch of a mask it understands.
            let m = black_box(0u64.wrapping_sub(bit(Self::eq(index, i as u64))));
            for (o, x) in out.iter_mut().zip(row.0) {
                *o |= m & x;
            }
        }
        ([out[0], out[1], out[2], out[3]], [out[4], out[5], out[6], out[7]])
    }

    #[inline(always)]
    fn one() -> Limbs {
        field::ONE
    }
    #[inline(always)]
    fn three() -> Limbs {
        [3, 0xffff_fffd_0000_0000, 0xffff_ffff_ffff_ffff, 0x0000_0002_ffff_fffc]
    }
    #[inline(always)]
    fn b() -> Limbs {
        field::B
    }
    #[inline(always)]
    fn mul(a: &Limbs, b: &Limbs) -> Limbs {
        M::mul(a, b)
    }
    #[inline(always)]
    fn sqr(a: &Limbs) -> Limbs {
        M::sqr(a)
    }
    #[inline(always)]
    fn mul_add(a: &Limbs, b: &Limbs, c: Limbs) -> Limbs {
        field::add(&M::mul(a, b), &c)
    }
    #[inline(always)]
    fn sqr_add_2(a: &Limbs, c: Limbs) -> Limbs {
        field::add(&M::sqr(a), &field::add(&c, &c))
    }
    #[inline(always)]
    fn mul_add_mul(a: &Limbs, b: &Limbs, c: &Limbs, d: &Limbs) -> Limbs {
        field::add(&M::mul(a, b), &M::mul(c, d))
    }
    #[inline(always)]
    fn mul_sub_2sqr(a: &Limbs, b: &Limbs, c: &Limbs) -> Limbs {
        let s = M::sqr(c);
        field::sub(&M::mul(a, b), &field::add(&s, &s))
    }
    #[inline(always)]
    fn add(a: Limbs, b: Limbs) -> Limbs {
        field::add(&a, &b)
    }
    #[inline(always)]
    fn sub(a: Limbs, b: Limbs) -> Limbs {
        field::sub(&a, &b)
    }
    #[inline(always)]
    fn neg(a: Limbs) -> Limbs {
        field::sub(&[0; 4], &a)
    }
    #[inline(always)]
    fn neg_if(a: Limbs, mask: u8) -> Limbs {
        field::select(bit(mask), &a, &Self::neg(a))
    }
    #[inline(always)]
    fn double(a: Limbs) -> Limbs {
        field::add(&a, &a)
    }
    #[inline(always)]
    fn add_p(a: Limbs, _k: u64) -> Limbs {
        a
    }
    #[inline(always)]
    fn tight(a: Limbs) -> Limbs {
        a
    }
    #[inline(always)]
    fn reduce(a: Limbs) -> Limbs {
        a
    }
    #[inline(always)]
    fn loose(a: &Limbs) -> Limbs {
        *a
    }
    #[inline(always)]
    fn is_zero(a: &Limbs) -> u8 {
        field::is_zero(a) as u8
    }
    #[inline(always)]
    fn swap_fe(a: &Limbs, _step: usize) -> Limbs {
        *a
    }
    #[inline(always)]
    fn select_fe(mask: u8, a: &Limbs, b: &Limbs) -> Limbs {
        field::select(bit(mask), a, b)
    }
    #[inline(always)]
    fn unpack(w: &Words<Self>) -> Limbs {
        *w
    }
    #[inline(always)]
    fn pack(a: &Limbs) -> Words<Self> {
        *a
    }
    #[inline(always)]
    fn to_montgomery(w: &Words<Self>) -> Limbs {
        M::mul(&field::reduce_once(w, 0, &P), &field::R2)
    }
    #[inline(always)]
    fn from_montgomery(a: &Limbs) -> Words<Self> {
        M::mul(a, &[1, 0, 0, 0])
    }

    #[inline(always)]
    fn scalar(w: &Words<Self>) -> Limbs {
        *w
    }
    #[inline(always)]
    fn scalar_words(a: &Limbs) -> Words<Self> {
        field::reduce_once(a, 0, &scalar::N)
    }
    #[inline(always)]
    fn scalar_mul(a: &Limbs, b: &Limbs) -> Limbs {
        scalar::mul(a, b)
    }
    #[inline(always)]
    fn scalar_sqr(a: &Limbs) -> Limbs {
        scalar::mul(a, a)
    }
    #[inline(always)]
    fn scalar_add(a: &Limbs, b: &Limbs) -> Limbs {
        scalar::add(a, b)
    }
    #[inline(always)]
    fn scalar_r2() -> Limbs {
        scalar::R2
    }
    #[inline(always)]
    fn scalar_r3() -> Limbs {
        scalar::mul(&scalar::R2, &scalar::R2)
    }
    #[inline(always)]
    fn scalar_one() -> Limbs {
        scalar::ONE
    }
    #[inline(always)]
    fn scalar_odd(u: &Words<Self>) -> (Words<Self>, u8) {
        let even = 1 ^ (u[0] & 1);
        (field::select(even, u, &scalar::negate(u)), even as u8)
    }
    #[inline(always)]
    fn scalar_select(mask: u8, a: &Limbs, b: &Limbs) -> Limbs {
        field::select(bit(mask), a, b)
    }
    #[inline(always)]
    fn scalar_swap(a: &Limbs, _step: usize) -> Limbs {
        *a
    }
}
