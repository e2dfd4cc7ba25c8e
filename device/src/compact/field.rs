//! Numbers modulo the field's prime p = 2²⁵⁶ − 2²²⁴ + 2¹⁹² + 2⁹⁶ − 1, in Montgomery form. Nearly all the time of a
//! handshake is spent here, so these few functions are written out, word by word: loops take twice as long. There are
//! no tables, and the time is the same for every number.

use super::number::{Number, choose, power, subtract};

/// p.
pub(super) const PRIME: Number = [
    0xffff_ffff,
    0xffff_ffff,
    0xffff_ffff,
    0x0000_0000,
    0x0000_0000,
    0x0000_0000,
    0x0000_0001,
    0xffff_ffff,
];
/// 2²⁵⁶ modulo p: one, in Montgomery form.
pub(super) const ONE: Number = [
    0x0000_0001,
    0x0000_0000,
    0x0000_0000,
    0xffff_ffff,
    0xffff_ffff,
    0xffff_ffff,
    0xffff_fffe,
    0x0000_0000,
];
/// 2⁵¹² modulo p.
const SQUARE: Number = [
    0x0000_0003,
    0x0000_0000,
    0xffff_ffff,
    0xffff_fffb,
    0xffff_fffe,
    0xffff_ffff,
    0xffff_fffd,
    0x0000_0004,
];

/// One, of which the compiler does not know it. A word times this, and two more words added, is a single instruction on a
/// Cortex-M4, and the carry is in a register: sums that carry in the processor's flags become three times as long, since
/// compilers lose sight of them.
#[inline(always)]
fn one() -> u32 {
    core::hint::black_box(1)
}

/// A chain of sums from the lowest word to the highest, each with the carry of the one before.
macro_rules! chain {
    ($one:ident, $carry:ident, $($to:ident = $a:expr, $b:expr;)*) => {
        $(let $to; ($to, $carry) = $one.carrying_mul_add($a, $b, $carry);)*
    };
}

/// A number less p, unless that falls below zero; `high` is the number's 257th bit.
#[inline(always)]
fn reduced(one: u32, high: u32, [i0, i1, i2, i3, i4, i5, i6, i7]: Number) -> Number {
    // −p modulo 2²⁵⁶ is the complement of p, and one more.
    let mut carry = 1;
    chain!(one, carry,
        l0 = i0, 0; l1 = i1, 0; l2 = i2, 0; l3 = i3, u32::MAX; l4 = i4, u32::MAX;
        l5 = i5, u32::MAX; l6 = i6, !1; l7 = i7, 0;);
    // All ones where neither a carry nor the 257th bit says that the number was not below p.
    restored(one, (high | carry).wrapping_sub(1), [l0, l1, l2, l3, l4, l5, l6, l7])
}

/// The number, and p where the mask is all ones.
#[inline(always)]
fn restored(one: u32, mask: u32, [i0, i1, i2, i3, i4, i5, i6, i7]: Number) -> Number {
    let mut carry = 0;
    chain!(one, carry,
        r0 = i0, mask; r1 = i1, mask; r2 = i2, mask; r3 = i3, 0; r4 = i4, 0; r5 = i5, 0;
        r6 = i6, mask & 1; r7 = i7, mask;);
    // The carry is the borrow that is given back.
    let _ = carry;
    [r0, r1, r2, r3, r4, r5, r6, r7]
}

#[inline(never)]
pub(super) fn add(a: &Number, b: &Number) -> Number {
    let (one, mut carry) = (one(), 0);
    chain!(one, carry,
        s0 = a[0], b[0]; s1 = a[1], b[1]; s2 = a[2], b[2]; s3 = a[3], b[3];
        s4 = a[4], b[4]; s5 = a[5], b[5]; s6 = a[6], b[6]; s7 = a[7], b[7];);
    reduced(one, carry, [s0, s1, s2, s3, s4, s5, s6, s7])
}

#[inline(never)]
pub(super) fn sub(a: &Number, b: &Number) -> Number {
    // −b is the complement of b, and one more.
    let (one, mut carry) = (one(), 1);
    chain!(one, carry,
        d0 = a[0], !b[0]; d1 = a[1], !b[1]; d2 = a[2], !b[2]; d3 = a[3], !b[3];
        d4 = a[4], !b[4]; d5 = a[5], !b[5]; d6 = a[6], !b[6]; d7 = a[7], !b[7];);
    restored(one, carry.wrapping_sub(1), [d0, d1, d2, d3, d4, d5, d6, d7])
}

/// a · b / 2²⁵⁶ (Montgomery, word by word). p is −1 modulo 2³², so the multiple of p that makes the lowest word zero is
/// that word itself, and to add it takes no multiplication.
#[inline(never)]
pub(super) fn mul(a: &Number, b: &Number) -> Number {
    let [mut s0, mut s1, mut s2, mut s3, mut s4, mut s5, mut s6, mut s7] = [0u32; 8];
    let (one, mut high) = (one(), 0);
    for b in b {
        let mut carry = 0;
        macro_rules! row {
            ($($sum:ident $at:literal),*) => {
                $(($sum, carry) = a[$at].carrying_mul_add(*b, $sum, carry);)*
            };
        }
        row!(s0 0, s1 1, s2 2, s3 3, s4 4, s5 5, s6 6, s7 7);
        let (top, over) = one.carrying_mul_add(carry, high, 0);
        // factor · (2²⁵⁶ − 2²²⁴), from word 7 on.
        let factor = s0;
        let (low, some) = 0u32.overflowing_sub(factor);
        let rest = factor.wrapping_sub(u32::from(some));
        let mut carry = 0;
        chain!(one, carry,
            n2 = s3, factor; n3 = s4, 0; n4 = s5, 0; n5 = s6, factor; n6 = s7, low; n7 = top, rest;);
        (s0, s1, s2, s3, s4, s5, s6, s7) = (s1, s2, n2, n3, n4, n5, n6, n7);
        high = over + carry;
    }
    reduced(one, high, [s0, s1, s2, s3, s4, s5, s6, s7])
}

/// Whether a number is less than p.
pub(super) fn holds(number: &Number) -> bool {
    subtract(number, &PRIME).1 != 0
}

/// Into Montgomery form.
pub(super) fn enter(number: &Number) -> Number {
    mul(number, &SQUARE)
}

/// Out of Montgomery form.
pub(super) fn leave(number: &Number) -> Number {
    mul(number, &[1, 0, 0, 0, 0, 0, 0, 0])
}

/// 1/number, by Fermat; of 0 it is 0.
pub(super) fn invert(number: &Number) -> Number {
    let mut exponent = PRIME;
    exponent[0] -= 2;
    power(mul, &ONE, number, &exponent)
}

/// A square root, where there is one: the power of (p + 1) / 4.
pub(super) fn root(number: &Number) -> Number {
    const ROOT: Number = [0, 0, 0x4000_0000, 0, 0, 0x4000_0000, 0xc000_0000, 0x3fff_ffff];
    power(mul, &ONE, number, &ROOT)
}

/// The number where the mask is 0, its negative where it is all ones.
pub(super) fn negate_if(mask: u32, number: &mut Number) {
    let negative = sub(&[0; 8], number);
    choose(mask, number, &negative);
}
