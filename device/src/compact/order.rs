//! Numbers modulo the group's order n, in Montgomery form. A signature needs few of them: this is small, not fast.

use super::number::{Number, choose, power, subtract};

/// n.
pub(super) const PRIME: Number = [
    0xfc63_2551,
    0xf3b9_cac2,
    0xa717_9e84,
    0xbce6_faad,
    0xffff_ffff,
    0xffff_ffff,
    0x0000_0000,
    0xffff_ffff,
];
/// 2²⁵⁶ modulo n: one, in Montgomery form.
const ONE: Number = [
    0x039c_daaf,
    0x0c46_353d,
    0x58e8_617b,
    0x4319_0552,
    0x0000_0000,
    0x0000_0000,
    0xffff_ffff,
    0x0000_0000,
];
/// 2⁵¹² modulo n.
const SQUARE: Number = [
    0xbe79_eea2,
    0x8324_4c95,
    0x49bd_6fa6,
    0x4699_799c,
    0x2b6b_ec59,
    0x2845_b239,
    0xf3d9_5620,
    0x66e1_2d94,
];
/// −1/n modulo 2³².
const INVERSE: u32 = 0xee00_bc4f;

/// A number below 2²⁵⁶, or with a 257th bit in `high`, made less than n.
fn reduce_once(number: &Number, high: u32) -> Number {
    let (less, under) = subtract(number, &PRIME);
    let mut out = *number;
    choose(!(under & high.wrapping_sub(1)), &mut out, &less);
    out
}

/// A number below 2²⁵⁶, made less than n.
pub(super) fn reduce(number: &Number) -> Number {
    reduce_once(number, 0)
}

/// Whether a number is less than n.
pub(super) fn holds(number: &Number) -> bool {
    subtract(number, &PRIME).1 != 0
}

pub(super) fn add(a: &Number, b: &Number) -> Number {
    let (mut sum, mut carry) = ([0; 8], false);
    for ((to, a), b) in sum.iter_mut().zip(a).zip(b) {
        (*to, carry) = a.carrying_add(*b, carry);
    }
    reduce_once(&sum, u32::from(carry))
}

/// n − number; of 0 it is 0.
pub(super) fn negate(number: &Number) -> Number {
    reduce(&subtract(&PRIME, number).0)
}

/// a · b / 2²⁵⁶ (Montgomery, word by word).
#[inline(never)]
pub(super) fn mul(a: &Number, b: &Number) -> Number {
    let (mut sum, mut high) = ([0u32; 8], 0);
    for b in b {
        let mut carry = 0;
        for (sum, a) in sum.iter_mut().zip(a) {
            (*sum, carry) = a.carrying_mul_add(*b, *sum, carry);
        }
        let (top, over) = carry.overflowing_add(high);
        // What makes the lowest word zero.
        let factor = sum[0].wrapping_mul(INVERSE);
        let (_, mut carry) = factor.carrying_mul_add(PRIME[0], sum[0], 0);
        for at in 1..8 {
            (sum[at - 1], carry) = factor.carrying_mul_add(PRIME[at], sum[at], carry);
        }
        let more;
        (sum[7], more) = top.overflowing_add(carry);
        high = u32::from(over) + u32::from(more);
    }
    reduce_once(&sum, high)
}

/// Into Montgomery form.
pub(super) fn enter(number: &Number) -> Number {
    mul(number, &SQUARE)
}

/// 1/number, by Fermat; of 0 it is 0.
pub(super) fn invert(number: &Number) -> Number {
    let mut exponent = PRIME;
    exponent[0] -= 2;
    power(mul, &ONE, number, &exponent)
}
