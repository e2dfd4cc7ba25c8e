//! Inverses and square roots by addition chains, and inversion of many values at the price of one.

// Digits, lane numbers and table indices are far below the limits of the types they pass through.
#![allow(clippy::cast_possible_truncation)]

use crate::lanes::{Lanes, MAX_WIDTH, Words};
use crate::order;
use p256::elliptic_curve::{PrimeField, ops::Invert};
use zeroize::{Zeroize, Zeroizing};

/// a·b, out of line.
fn mul<L: Lanes>(lanes: L, a: &L::Fe, b: &L::Fe) -> L::Fe {
    lanes.call(
        #[inline(always)]
        || L::tight(L::mul(a, b)),
    )
}

/// a^(2ᵏ), out of line.
fn sqr_times<L: Lanes>(lanes: L, a: &L::Fe, k: usize) -> L::Fe {
    lanes.call(
        #[inline(always)]
        || {
            let mut x = *a;
            for _ in 0..k {
                x = L::tight(L::sqr(&x));
            }
            x
        },
    )
}

/// The inverse of each lane, all 0 if one is 0. The sequence of operations is fixed.
///
/// An exponentiation is one long chain, on which eight lanes are slower than one: theirs are multiplied
/// together, and the product is inverted in one.
pub(crate) fn field<L: Lanes>(lanes: L, a: &L::Fe) -> L::Fe {
    if L::WIDTH == 1 {
        return field_power(lanes, a);
    }
    let (product, others) = lanes.call(
        #[inline(always)]
        || {
            // For each lane, the product of all others.
            let (mut product, mut others) = (*a, L::one());
            let mut step = 1;
            while step < L::WIDTH {
                let swapped = L::swap_fe(&product, step);
                others = L::tight(L::mul(&others, &swapped));
                product = L::tight(L::mul(&product, &swapped));
                step *= 2;
            }
            (first_lane::<L>(&L::from_montgomery(&product)), others)
        },
    );
    let one = lanes.one_lane();
    let inverse = field_power(one, &L::One::to_montgomery(&product));
    let inverse = L::One::from_montgomery(&inverse);
    lanes.call(
        #[inline(always)]
        || L::tight(L::mul(&L::to_montgomery(&all_lanes::<L>(&inverse)), &others)),
    )
}

/// The words of lane 0.
#[inline(always)]
fn first_lane<L: Lanes>(words: &Words<L>) -> [u64; 4] {
    let [w0, w1, w2, w3] = *words;
    [L::to_lanes(w0)[0], L::to_lanes(w1)[0], L::to_lanes(w2)[0], L::to_lanes(w3)[0]]
}

/// The same words in every lane.
#[inline(always)]
fn all_lanes<L: Lanes>(words: &[u64; 4]) -> Words<L> {
    [L::splat(words[0]), L::splat(words[1]), L::splat(words[2]), L::splat(words[3])]
}

/// a^(p−2): the inverse of each lane, 0 for 0.
fn field_power<L: Lanes>(lanes: L, a: &L::Fe) -> L::Fe {
    // p − 2 = ffffffff 00000001 00000000 00000000 00000000 ffffffff ffffffff fffffffd;
    // xK is a to the power of K one bits.
    let times = |x: &L::Fe, k: usize, y: &L::Fe| mul(lanes, &sqr_times(lanes, x, k), y);
    let x2 = times(a, 1, a);
    let x3 = times(&x2, 1, a);
    let x6 = times(&x3, 3, &x3);
    let x12 = times(&x6, 6, &x6);
    let x15 = times(&x12, 3, &x3);
    let x30 = times(&x15, 15, &x15);
    let x32 = times(&x30, 2, &x2);
    let r = times(&x32, 32, a);
    let r = times(&r, 128, &x32);
    let r = times(&r, 32, &x32);
    let r = times(&r, 30, &x30);
    times(&r, 2, a)
}

/// a^((p+1)/4): a square root of each lane that has one.
pub(crate) fn field_sqrt<L: Lanes>(lanes: L, a: &L::Fe) -> L::Fe {
    // (p + 1)/4 = 2²⁵⁴ − 2²²² + 2¹⁹⁰ + 2⁹⁴
    let times = |x: &L::Fe, k: usize, y: &L::Fe| mul(lanes, &sqr_times(lanes, x, k), y);
    let x2 = times(a, 1, a);
    let x4 = times(&x2, 2, &x2);
    let x8 = times(&x4, 4, &x4);
    let x16 = times(&x8, 8, &x8);
    let x32 = times(&x16, 16, &x16);
    let r = times(&x32, 32, a);
    let r = times(&r, 96, a);
    sqr_times(lanes, &r, 94)
}

/// Replaces each value by its inverse, one exponentiation in all (Montgomery's trick); 0 by 0.
///
/// No caller has a zero (`MATHS.md` says why). If there were one all the same, it would take longer and
/// would not spoil its lane in the other values.
pub(crate) fn batch<L: Lanes>(lanes: L, values: &mut [L::Fe]) {
    let mut products = Zeroizing::new(Vec::with_capacity(values.len()));
    let zeros = lanes.call(
        #[inline(always)]
        || {
            multiply_up::<L>(values, &mut products);
            products.last().map_or(0, |product| L::is_zero(product)) & lane_mask::<L>()
        },
    );
    if zeros != 0 {
        return batch_with_zeros(lanes, values);
    }
    divide_down(lanes, values, &products);
}

/// The products of the first value, the first two, and so on.
#[inline(always)]
fn multiply_up<L: Lanes>(values: &[L::Fe], products: &mut Vec<L::Fe>) {
    let Some(first) = values.first() else { return };
    let mut product = *first;
    products.push(product);
    for x in &values[1..] {
        product = L::tight(L::mul(&product, x));
        products.push(product);
    }
}

/// Replaces values by inverses, given their products.
fn divide_down<L: Lanes>(lanes: L, values: &mut [L::Fe], products: &[L::Fe]) {
    let Some(product) = products.last() else { return };
    let mut inverse = field(lanes, product);
    lanes.call(
        #[inline(always)]
        || {
            for i in (1..values.len()).rev() {
                let x = values[i];
                values[i] = L::tight(L::mul(&inverse, &products[i - 1]));
                inverse = L::tight(L::mul(&inverse, &x));
            }
        },
    );
    values[0] = inverse;
    inverse.zeroize();
}

/// The lanes that exist.
#[inline(always)]
fn lane_mask<L: Lanes>() -> u8 {
    u8::MAX >> (MAX_WIDTH - L::WIDTH)
}

/// [`batch`] where at least one value is zero.
#[cold]
fn batch_with_zeros<L: Lanes>(lanes: L, values: &mut [L::Fe]) {
    let mut zeros = vec![0u8; values.len()];
    let mut products = Zeroizing::new(Vec::with_capacity(values.len()));
    lanes.call(
        #[inline(always)]
        || {
            for (x, zero) in values.iter_mut().zip(&mut zeros) {
                *zero = L::is_zero(x);
                *x = L::select_fe(*zero, x, &L::one());
            }
            multiply_up::<L>(values, &mut products);
        },
    );
    divide_down(lanes, values, &products);
    lanes.call(
        #[inline(always)]
        || {
            let none = L::unpack(&[L::splat(0); 4]);
            for (x, zero) in values.iter_mut().zip(&zeros) {
                *x = L::select_fe(*zero, x, &none);
            }
        },
    );
}

fn scalar_mul<L: Lanes>(lanes: L, a: &L::Scalar, b: &L::Scalar) -> L::Scalar {
    lanes.call(
        #[inline(always)]
        || L::scalar_mul(a, b),
    )
}

fn scalar_sqr_times<L: Lanes>(lanes: L, a: &L::Scalar, k: usize) -> L::Scalar {
    lanes.call(
        #[inline(always)]
        || {
            let mut x = *a;
            for _ in 0..k {
                x = L::scalar_sqr(&x);
            }
            x
        },
    )
}

/// a^(n−2), in and out in Montgomery form.
fn scalar_power<L: Lanes>(lanes: L, a: &L::Scalar) -> L::Scalar {
    // n − 2 = ffffffff 00000000 ffffffff ffffffff bce6faad a7179e84 f3b9cac2 fc63254f: runs of ones
    // in the upper half, windows of four bits in the lower.
    const LOW: [u64; 2] = [0xbce6_faad_a717_9e84, 0xf3b9_cac2_fc63_254f];
    let times = |x: &L::Scalar, k: usize, y: &L::Scalar| {
        scalar_mul(lanes, &scalar_sqr_times(lanes, x, k), y)
    };
    let mut powers = [*a; 16];
    for i in 2..16 {
        powers[i] = scalar_mul(lanes, &powers[i - 1], a);
    }
    let x4 = powers[15];
    let x8 = times(&x4, 4, &x4);
    let x16 = times(&x8, 8, &x8);
    let x32 = times(&x16, 16, &x16);
    let r = times(&x32, 64, &x32);
    let mut r = times(&r, 32, &x32);
    for word in LOW {
        for i in (0..16).rev() {
            // The digits are those of a public constant.
            r = match (word >> (4 * i)) & 15 {
                0 => scalar_sqr_times(lanes, &r, 4),
                digit => times(&r, 4, &powers[digit as usize]),
            };
        }
    }
    r
}

/// The inverse of each lane, in and out in Montgomery form. The sequence of operations is fixed where
/// the values are secret. No lane may be zero.
fn scalar<L: Lanes>(lanes: L, a: &L::Scalar, secrecy: Secrecy) -> L::Scalar {
    if L::WIDTH == 1 && secrecy == Secrecy::Secret {
        return scalar_power(lanes, a);
    }
    let (product, others) = lanes.call(
        #[inline(always)]
        || {
            // Multiply the lanes together, keeping for each lane the product of all others.
            let (mut product, mut others) = (*a, L::scalar_one());
            let mut step = 1;
            while step < L::WIDTH {
                let swapped = L::scalar_swap(&product, step);
                others = L::scalar_mul(&others, &swapped);
                product = L::scalar_mul(&product, &swapped);
                step *= 2;
            }
            (first_lane::<L>(&L::scalar_words(&product)), others)
        },
    );
    let inverse = match secrecy {
        Secrecy::Secret => invert_secret(lanes.one_lane(), &product),
        Secrecy::Public => invert_public(&product),
    };
    lanes.call(
        #[inline(always)]
        || {
            let w = all_lanes::<L>(&inverse);
            // (T·R)⁻¹ → T⁻¹·R → T⁻¹·others·R
            L::scalar_mul(&L::scalar_mul(&L::scalar(&w), &L::scalar_r3()), &others)
        },
    )
}

/// a⁻¹ mod n of a secret number, in one lane.
fn invert_secret<L: Lanes<Word = u64>>(one: L, a: &[u64; 4]) -> [u64; 4] {
    let a = L::scalar_mul(&L::scalar(a), &L::scalar_r2());
    let inverse = scalar_power(one, &a);
    L::scalar_words(&L::scalar_mul(&inverse, &L::scalar(&[1, 0, 0, 0])))
}

/// a⁻¹ mod n of a public number, 0 for 0.
fn invert_public(a: &[u64; 4]) -> [u64; 4] {
    let inverse = Option::<p256::Scalar>::from(p256::Scalar::from_repr(order::bytes(a).into()))
        .and_then(|s| Option::<p256::Scalar>::from(Invert::invert_vartime(&s)))
        .unwrap_or_default();
    order::limbs(&inverse.to_repr().into())
}

/// What may be learnt from the time an inversion takes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Secrecy {
    /// The values are secret: fixed sequence of operations.
    Secret,
    /// The values are public: the fastest way.
    Public,
}

/// Replaces each scalar (Montgomery form) by its inverse, one inversion in all.
///
/// No caller has a zero: s and k are checked to be in [1, n − 1]. If there were one all the same, its
/// inverse would be some number, and no other value would be spoilt.
pub(crate) fn scalar_batch<L: Lanes>(lanes: L, values: &mut [L::Scalar], secrecy: Secrecy) {
    if values.is_empty() {
        return;
    }
    let mut products = Zeroizing::new(Vec::with_capacity(values.len()));
    let zeros = lanes.call(
        #[inline(always)]
        || {
            scalar_multiply_up::<L>(values, &mut products);
            products.last().map_or(0, scalar_is_zero::<L>) & lane_mask::<L>()
        },
    );
    if zeros != 0 {
        products.clear();
        lanes.call(
            #[inline(always)]
            || {
                for x in values.iter_mut() {
                    let zero = scalar_is_zero::<L>(x);
                    *x = L::scalar_select(zero, x, &L::scalar_one());
                }
                scalar_multiply_up::<L>(values, &mut products);
            },
        );
    }
    let product = products[values.len() - 1];
    let mut inverse = scalar(lanes, &product, secrecy);
    lanes.call(
        #[inline(always)]
        || {
            for i in (1..values.len()).rev() {
                let x = values[i];
                values[i] = L::scalar_mul(&inverse, &products[i - 1]);
                inverse = L::scalar_mul(&inverse, &x);
            }
        },
    );
    values[0] = inverse;
    inverse.zeroize();
}

#[inline(always)]
fn scalar_multiply_up<L: Lanes>(values: &[L::Scalar], products: &mut Vec<L::Scalar>) {
    let mut product = values[0];
    products.push(product);
    for x in &values[1..] {
        product = L::scalar_mul(&product, x);
        products.push(product);
    }
}

/// Lanes where a product is congruent to 0.
#[inline(always)]
fn scalar_is_zero<L: Lanes>(a: &L::Scalar) -> u8 {
    let [w0, w1, w2, w3] = L::scalar_words(a);
    L::eq(L::or(L::or(w0, w1), L::or(w2, w3)), L::splat(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::portable::PORTABLE;

    /// Small numbers, with zeros in one lane, or in several, of some values.
    fn check<L: Lanes>(lanes: L) {
        let number = |i: usize, lane: usize, zeros: &[(usize, usize)]| {
            if zeros.contains(&(i, lane)) { 0 } else { (i * 8 + lane + 1) as u64 }
        };
        let last = L::WIDTH - 1;
        for zeros in [vec![], vec![(0, 0)], vec![(6, last)], vec![(2, 0), (2, last), (5, 0)]] {
            let word = |i| L::from_lanes(&core::array::from_fn(|lane| number(i, lane, &zeros)));
            let words = |i| [word(i), L::splat(0), L::splat(0), L::splat(0)];
            let mut values: Vec<L::Fe> = (0..7).map(|i| L::to_montgomery(&words(i))).collect();
            let numbers = values.clone();
            batch(lanes, &mut values);
            for (i, (x, inverse)) in numbers.iter().zip(&values).enumerate() {
                let product = L::from_montgomery(&L::tight(L::mul(x, inverse)));
                for lane in 0..L::WIDTH {
                    let want = u64::from(!zeros.contains(&(i, lane)));
                    assert_eq!(product.map(|w| L::to_lanes(w)[lane]), [want, 0, 0, 0]);
                }
            }
            for secrecy in [Secrecy::Secret, Secrecy::Public] {
                let r2 = L::scalar_r2();
                let mut values: Vec<L::Scalar> =
                    (0..7).map(|i| L::scalar_mul(&L::scalar(&words(i)), &r2)).collect();
                let numbers = values.clone();
                scalar_batch(lanes, &mut values, secrecy);
                for (i, (x, inverse)) in numbers.iter().zip(&values).enumerate() {
                    let one = L::scalar(&[L::splat(1), L::splat(0), L::splat(0), L::splat(0)]);
                    let product = L::scalar_mul(&L::scalar_mul(x, inverse), &one);
                    let product = L::scalar_words(&product);
                    for lane in 0..L::WIDTH {
                        let want = u64::from(!zeros.contains(&(i, lane)));
                        assert_eq!(product.map(|w| L::to_lanes(w)[lane]), [want, 0, 0, 0]);
                    }
                }
            }
        }
    }

    #[test]
    fn a_zero_spoils_nothing_else() {
        check(PORTABLE);
        #[cfg(target_arch = "x86_64")]
        match crate::backend::ifma::Ifma::detect() {
            Some(lanes) => lanes.call(|| check(lanes)),
            None => eprintln!("SKIPPED: this CPU lacks AVX-512 IFMA"),
        }
    }
}
