//! Integers modulo p in four 64-bit limbs, Montgomery form with R = 2²⁵⁶, always reduced.
//!
//! p = 2²⁵⁶ − 2²²⁴ + 2¹⁹² + 2⁹⁶ − 1, so −p⁻¹ mod 2⁶⁴ = 1: the quotient digit of each reduction step
//! is the lowest limb itself, and its product with p is a handful of shifts and additions.
//! No branch depends on a value.

// A condition is one bit.
#![allow(clippy::cast_possible_truncation)]

use cmov::Cmov;
use core::hint::black_box;

/// Four limbs, least significant first.
pub(crate) type Limbs = [u64; 4];

pub(crate) const P: Limbs =
    [0xffff_ffff_ffff_ffff, 0x0000_0000_ffff_ffff, 0, 0xffff_ffff_0000_0001];
/// R mod p.
pub(super) const ONE: Limbs =
    [1, 0xffff_ffff_0000_0000, 0xffff_ffff_ffff_ffff, 0x0000_0000_ffff_fffe];
/// R² mod p.
pub(super) const R2: Limbs =
    [0x0000_0000_0000_0003, 0xffff_fffb_ffff_ffff, 0xffff_ffff_ffff_fffe, 0x0000_0004_ffff_fffd];
/// b·R mod p.
pub(super) const B: Limbs =
    [0xd89c_df62_29c4_bddf, 0xacf0_05cd_7884_3090, 0xe5a2_20ab_f721_2ed6, 0xdc30_061d_0487_4834];

/// `b` where `take` is 1, `a` where it is 0.
///
/// By the instruction, not by masks: the compiler sees through masks, and has made branches of them.
#[inline(always)]
pub(super) fn select(take: u64, a: &Limbs, b: &Limbs) -> Limbs {
    let mut out = *a;
    for (x, y) in out.iter_mut().zip(b) {
        x.cmovnz(y, take as u8);
    }
    out
}

/// Subtracts `m` once from the five-limb value (t, top) if it is at least `m`.
#[inline(always)]
pub(super) fn reduce_once(t: &Limbs, top: u64, m: &Limbs) -> Limbs {
    // Limbs of p known to the compiler break the chain of borrows into comparisons.
    let m = black_box(m);
    let (d0, c) = t[0].borrowing_sub(m[0], false);
    let (d1, c) = t[1].borrowing_sub(m[1], c);
    let (d2, c) = t[2].borrowing_sub(m[2], c);
    let (d3, c) = t[3].borrowing_sub(m[3], c);
    let (_, c) = top.borrowing_sub(0, c);
    select(u64::from(c), &[d0, d1, d2, d3], t)
}

#[inline(always)]
pub(super) fn add(a: &Limbs, b: &Limbs) -> Limbs {
    let (x0, c) = a[0].carrying_add(b[0], false);
    let (x1, c) = a[1].carrying_add(b[1], c);
    let (x2, c) = a[2].carrying_add(b[2], c);
    let (x3, c) = a[3].carrying_add(b[3], c);
    reduce_once(&[x0, x1, x2, x3], u64::from(c), &P)
}

#[inline(always)]
pub(super) fn sub(a: &Limbs, b: &Limbs) -> Limbs {
    let (x0, c) = a[0].borrowing_sub(b[0], false);
    let (x1, c) = a[1].borrowing_sub(b[1], c);
    let (x2, c) = a[2].borrowing_sub(b[2], c);
    let (x3, c) = a[3].borrowing_sub(b[3], c);
    let mask = 0u64.wrapping_sub(u64::from(c));
    let (x0, c) = x0.carrying_add(mask, false);
    let (x1, c) = x1.carrying_add(mask & P[1], c);
    let (x2, c) = x2.carrying_add(0, c);
    let (x3, _) = x3.carrying_add(mask & P[3], c);
    [x0, x1, x2, x3]
}

/// t/R: four digits, each of which adds the multiple of p that clears the lowest limb.
#[inline(always)]
fn reduce(t: &[u64; 8]) -> Limbs {
    let mut low = [t[0], t[1], t[2], t[3]];
    for _ in 0..4 {
        let m = low[0];
        // m·p = m·2²⁵⁶ − m·2²²⁴ + m·2¹⁹² + m·2⁹⁶ − m; the low limb cancels.
        let (left, right) = (m << 32, m >> 32);
        let (x3, borrow) = m.borrowing_sub(left, false);
        let x4 = m - right - u64::from(borrow);
        let (t1, c) = low[1].carrying_add(left, false);
        let (t2, c) = low[2].carrying_add(right, c);
        let (t3, c) = low[3].carrying_add(x3, c);
        low = [t1, t2, t3, x4 + u64::from(c)];
    }
    let (x0, c) = low[0].carrying_add(t[4], false);
    let (x1, c) = low[1].carrying_add(t[5], c);
    let (x2, c) = low[2].carrying_add(t[6], c);
    let (x3, c) = low[3].carrying_add(t[7], c);
    reduce_once(&[x0, x1, x2, x3], u64::from(c), &P)
}

/// The column (c₀, c₁, c₂) + a·b.
#[inline(always)]
fn accumulate(c: [u64; 3], a: u64, b: u64) -> [u64; 3] {
    let (low, high) = a.carrying_mul(b, 0);
    let (c0, carry) = c[0].carrying_add(low, false);
    let (c1, carry) = c[1].carrying_add(high, carry);
    [c0, c1, c[2] + u64::from(carry)]
}

/// a·b, column by column.
#[inline(always)]
pub(super) fn product(a: &Limbs, b: &Limbs) -> [u64; 8] {
    let [a0, a1, a2, a3] = *a;
    let [b0, b1, b2, b3] = *b;
    let (r0, high) = a0.carrying_mul(b0, 0);
    let c = accumulate([high, 0, 0], a0, b1);
    let [r1, c0, c1] = accumulate(c, a1, b0);
    let c = accumulate([c0, c1, 0], a0, b2);
    let c = accumulate(c, a1, b1);
    let [r2, c0, c1] = accumulate(c, a2, b0);
    let c = accumulate([c0, c1, 0], a0, b3);
    let c = accumulate(c, a1, b2);
    let c = accumulate(c, a2, b1);
    let [r3, c0, c1] = accumulate(c, a3, b0);
    let c = accumulate([c0, c1, 0], a1, b3);
    let c = accumulate(c, a2, b2);
    let [r4, c0, c1] = accumulate(c, a3, b1);
    let c = accumulate([c0, c1, 0], a2, b3);
    let [r5, c0, c1] = accumulate(c, a3, b2);
    let [r6, r7, _] = accumulate([c0, c1, 0], a3, b3);
    [r0, r1, r2, r3, r4, r5, r6, r7]
}

#[inline(always)]
pub(crate) fn mul(a: &Limbs, b: &Limbs) -> Limbs {
    reduce(&product(a, b))
}

#[inline(always)]
pub(super) fn square(a: &Limbs) -> [u64; 8] {
    let (r1, c) = a[0].carrying_mul(a[1], 0);
    let (r2, c) = a[0].carrying_mul(a[2], c);
    let (r3, r4) = a[0].carrying_mul(a[3], c);
    let (r3, c) = a[1].carrying_mul_add(a[2], r3, 0);
    let (r4, r5) = a[1].carrying_mul_add(a[3], r4, c);
    let (r5, r6) = a[2].carrying_mul_add(a[3], r5, 0);
    // Twice that, and the squares.
    let (r1, c) = r1.carrying_add(r1, false);
    let (r2, c) = r2.carrying_add(r2, c);
    let (r3, c) = r3.carrying_add(r3, c);
    let (r4, c) = r4.carrying_add(r4, c);
    let (r5, c) = r5.carrying_add(r5, c);
    let (r6, r7) = r6.carrying_add(r6, c);
    let (r0, h) = a[0].carrying_mul(a[0], 0);
    let (r1, c) = r1.carrying_add(h, false);
    let (l, h) = a[1].carrying_mul(a[1], 0);
    let (r2, c) = r2.carrying_add(l, c);
    let (r3, c) = r3.carrying_add(h, c);
    let (l, h) = a[2].carrying_mul(a[2], 0);
    let (r4, c) = r4.carrying_add(l, c);
    let (r5, c) = r5.carrying_add(h, c);
    let (l, h) = a[3].carrying_mul(a[3], 0);
    let (r6, c) = r6.carrying_add(l, c);
    let (r7, _) = u64::from(r7).carrying_add(h, c);
    [r0, r1, r2, r3, r4, r5, r6, r7]
}

#[inline(always)]
pub(crate) fn sqr(a: &Limbs) -> Limbs {
    reduce(&square(a))
}

/// 1 where a = 0.
#[inline(always)]
pub(super) fn is_zero(a: &Limbs) -> u64 {
    let x = a[0] | a[1] | a[2] | a[3];
    1 ^ ((x | x.wrapping_neg()) >> 63)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants() {
        let plain = [1, 0, 0, 0];
        assert_eq!(mul(&R2, &plain), ONE);
        assert_eq!(mul(&ONE, &plain), plain);
        let b = [
            0x3bce_3c3e_27d2_604b,
            0x651d_06b0_cc53_b0f6,
            0xb3eb_bd55_7698_86bc,
            0x5ac6_35d8_aa3a_93e7,
        ];
        assert_eq!(mul(&b, &R2), B);
        assert_eq!(sqr(&R2), mul(&R2, &R2));
        assert_eq!(add(&sub(&ONE, &B), &B), ONE);
    }
}
