//! Signed combs: how a scalar becomes digits ±1, the tables they select from, and the walks over them.
//!
//! A comb of width w, v blocks and spacing e writes an odd scalar in L = w·v·e digits, all ±1:
//! k = Σ dᵢ·2ⁱ. Tooth t of block s has weight 2^(t·v·e + s·e); block s of the table holds the
//! 2^(w−1) signed sums of its teeth with the top tooth positive. Walking the e columns from the top
//! costs e − 1 doublings and v·e additions. `MATHS.md` has the derivation, and the proof that an
//! incomplete addition meets no exception before the last column; a test enumerates the last one.

// Digits, lane numbers and table indices are far below the limits of the types they pass through.
#![allow(clippy::cast_possible_truncation)]

use crate::lanes::{Lanes, Words};
use crate::point::{
    Affine, Entry, Point, add_last, add_mixed, add_sub_block, double, double_times, normalise,
    point_of,
};

/// The parameters of a comb.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Teeth: digits that select one entry.
    pub(crate) w: usize,
    /// Blocks.
    pub(crate) v: usize,
    /// Spacing: columns a block.
    pub(crate) e: usize,
}

/// The comb made on the fly for a point that is used once or twice.
pub(crate) const TRANSIENT: Shape = Shape { w: 4, v: 1, e: 64 };
/// Entries of a [`TRANSIENT`] comb.
pub(crate) const TRANSIENT_ENTRIES: usize = TRANSIENT.entries();
/// No comb has more additions than this.
pub(crate) const MAX_STEPS: usize = 64;

impl Shape {
    /// Entries of a block.
    pub(crate) const fn block(self) -> usize {
        1 << (self.w - 1)
    }
    /// Entries of a table.
    pub(crate) const fn entries(self) -> usize {
        self.v * self.block()
    }
    /// Additions of a walk.
    pub(crate) const fn steps(self) -> usize {
        self.v * self.e
    }
    /// Digits.
    const fn digits(self) -> usize {
        self.w * self.v * self.e
    }
}

/// A scalar in digits ±1, bit i set where digit i is +1. Even scalars are replaced by n − k with all
/// digits flipped.
#[derive(Clone, Copy)]
pub(crate) struct Digits<L: Lanes>([L::Word; 6]);

impl<L: Lanes> Digits<L> {
    /// A place for digits.
    #[inline(always)]
    pub(crate) fn unset() -> Self {
        Self([L::splat(0); 6])
    }

    /// `length` digits of canonical scalars; 2^length must exceed n.
    #[inline(always)]
    pub(crate) fn new(scalar: &Words<L>, length: usize) -> Self {
        let (odd, flipped) = L::scalar_odd(scalar);
        // Σ dᵢ2ⁱ with dᵢ = 2bᵢ − 1 and i < length is 2b − 2^length + 1; hence b = (k − 1)/2 + 2^(length−1).
        let mut k = [L::splat(0); 6];
        for i in 0..3 {
            k[i] = L::or(L::shr(odd[i], 1), L::shl(odd[i + 1], 63));
        }
        k[3] = L::shr(odd[3], 1);
        let top = length - 1;
        k[top / 64] = L::or(k[top / 64], L::splat(1 << (top % 64)));
        for x in &mut k {
            *x = L::select(flipped, *x, L::xor(*x, L::splat(u64::MAX)));
        }
        Self(k)
    }

    #[inline(always)]
    pub(crate) fn for_comb(scalar: &Words<L>, shape: Shape) -> Self {
        Self::new(scalar, shape.digits())
    }

    /// Entry and sign (lanes to negate) of column `r`, block `s`.
    #[inline(always)]
    pub(crate) fn comb(&self, shape: Shape, r: usize, s: usize) -> (L::Word, u8) {
        let offset = s * shape.e + r;
        let mut index = L::splat(0);
        for t in 0..shape.w - 1 {
            let at = t * shape.steps() + offset;
            let bit = L::and(L::shr(self.0[at / 64], (at % 64) as u32), L::splat(1));
            index = L::or(index, L::shl(bit, t as u32));
        }
        let at = (shape.w - 1) * shape.steps() + offset;
        let negative = !L::test(self.0[at / 64], L::splat(1 << (at % 64)));
        let all = L::splat(shape.block() as u64 - 1);
        (L::select(negative, index, L::xor(index, all)), negative)
    }

    /// Entry and sign of window `i` of `w` digits: entry j stands for 2j + 1.
    #[inline(always)]
    pub(crate) fn window(&self, w: usize, i: usize) -> (L::Word, u8) {
        let at = w * i;
        let shift = (at % 64) as u32;
        let x = L::or(L::shr(self.0[at / 64], shift), L::shl(self.0[at / 64 + 1], 64 - shift));
        let negative = !L::test(x, L::splat(1 << (w - 1)));
        let index = L::select(negative, x, L::xor(x, L::splat(u64::MAX)));
        (L::and(index, L::splat((1 << (w - 1)) - 1)), negative)
    }
}

/// The tables of `points`, one after the other, `shape.entries()` entries each. The points must be
/// on the curve.
pub(crate) fn tables<L: Lanes>(lanes: L, points: &[Affine<L>], shape: Shape) -> Vec<Entry<L>> {
    tables_of(lanes, points.iter().map(|point| teeth(lanes, point, shape)), shape)
}

/// [`tables`] of points whose teeth are there already.
pub(crate) fn tables_of<L: Lanes>(
    lanes: L,
    combs: impl ExactSizeIterator<Item = Vec<Point<L>>>,
    shape: Shape,
) -> Vec<Entry<L>> {
    let mut sums = Vec::with_capacity(combs.len() * shape.entries());
    for teeth in combs {
        push_sums(lanes, &teeth, shape, &mut sums);
    }
    let mut out = Vec::with_capacity(sums.len());
    normalise(lanes, &sums, 2, &mut out);
    out
}

/// The teeth of all blocks of a point's comb, lightest first.
pub(crate) fn teeth<L: Lanes>(lanes: L, point: &Affine<L>, shape: Shape) -> Vec<Point<L>> {
    let mut tooth = point_of(lanes, point);
    let mut teeth = Vec::with_capacity(shape.w * shape.v);
    teeth.push(tooth);
    for _ in 1..shape.w * shape.v {
        tooth = double_times(lanes, &tooth, shape.e);
        teeth.push(tooth);
    }
    teeth
}

/// The signed sums of one comb; sums 2i and 2i + 1 share Z.
fn push_sums<L: Lanes>(lanes: L, teeth: &[Point<L>], shape: Shape, out: &mut Vec<Point<L>>) {
    for s in 0..shape.v {
        let start = out.len();
        out.resize(start + shape.block(), teeth[(shape.w - 1) * shape.v + s]);
        let block = &mut out[start..];
        let mut have = 1;
        for t in (0..shape.w - 1).rev() {
            let other = lanes.call(
                #[inline(always)]
                || teeth[t * shape.v + s].cached(),
            );
            for i in (0..have).rev() {
                let (plus, minus) = add_sub_block(lanes, &block[i], &other);
                block[2 * i + 1] = plus;
                block[2 * i] = minus;
            }
            have *= 2;
        }
    }
}

/// Entry `index` (secret, one a lane) of `block`, by reading all of it: a tree of selections, bit by bit.
#[inline(always)]
fn select_entry<L: Lanes, const N: usize>(block: &[Entry<L>; N], index: L::Word) -> Entry<L> {
    let bits = const { N.trailing_zeros() as usize };
    let mut masks = [0u8; 8];
    for (bit, mask) in masks.iter_mut().enumerate().take(bits) {
        *mask = L::test(index, L::splat(1 << bit));
    }
    let mut out = block[0];
    for (q, word) in out.iter_mut().enumerate() {
        let mut level: [L::Word; N] = core::array::from_fn(|j| block[j][q]);
        for (bit, mask) in masks.iter().enumerate().take(bits) {
            for j in 0..N >> (bit + 1) {
                level[j] = L::select(*mask, level[2 * j], level[2 * j + 1]);
            }
        }
        *word = level[0];
    }
    out
}

/// Multiples of the points of one table, in constant time: the table is read whole at each step.
pub(crate) fn walk<L: Lanes>(
    lanes: L,
    table: &[Entry<L>],
    shape: Shape,
    scalar: &Words<L>,
) -> Point<L> {
    assert_eq!(table.len(), shape.entries());
    match (shape.w, shape.v, shape.e) {
        (4, 1, 64) => walk_shape::<L, 4, 8, 1, 64>(lanes, table, scalar),
        (4, 2, 32) => walk_shape::<L, 4, 8, 2, 32>(lanes, table, scalar),
        (5, 2, 26) => walk_shape::<L, 5, 16, 2, 26>(lanes, table, scalar),
        (6, 2, 22) => walk_shape::<L, 6, 32, 2, 22>(lanes, table, scalar),
        _ => unreachable!("no table has another shape"),
    }
}

/// [`walk`] for one shape, with blocks of N entries, so that loops over teeth and entries unroll.
fn walk_shape<L: Lanes, const W: usize, const N: usize, const V: usize, const E: usize>(
    lanes: L,
    table: &[Entry<L>],
    scalar: &Words<L>,
) -> Point<L> {
    let shape = const { Shape { w: W, v: V, e: E } };
    lanes.call(
        #[inline(always)]
        || {
            let digits = Digits::<L>::for_comb(scalar, shape);
            let one = L::one();
            let mut acc = Point { x: one, y: one, z: one };
            for r in (0..E).rev() {
                for (s, block) in table.as_chunks::<N>().0.iter().enumerate() {
                    let (index, negate) = digits.comb(shape, r, s);
                    let q = Affine::from_entry(&select_entry::<L, N>(block, index));
                    if (r, s) == (E - 1, 0) {
                        acc = q.to_point_signed(negate);
                        continue;
                    }
                    if s == 0 {
                        acc = double(&acc);
                    }
                    // The only addition that can meet equal points: see `MATHS.md`.
                    acc = if (r, s) == (0, 1) {
                        add_last(lanes, &acc, &q, negate)
                    } else {
                        add_mixed(&acc, &q, negate)
                    };
                }
            }
            acc
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::portable::Portable;
    use crate::order;
    use crate::table::TableWidth;
    use p256::Scalar;
    use p256::elliptic_curve::{Field, PrimeField};

    fn power(e: usize) -> Scalar {
        (0..e).fold(Scalar::ONE, |x, _| x.double())
    }

    /// The signed sum of block `s`'s teeth, bit t of `signs` set for a positive tooth t.
    fn sum(shape: Shape, s: usize, signs: usize) -> Scalar {
        (0..shape.w).fold(Scalar::ZERO, |sum, t| {
            let tooth = power(t * shape.steps() + s * shape.e);
            if signs >> t & 1 == 1 { sum + tooth } else { sum - tooth }
        })
    }

    /// What a walk's additions meet.
    #[derive(Default)]
    struct Met {
        /// Equal points in the last addition of two blocks, where the formula doubles.
        handled: usize,
        /// Anything else.
        exceptions: Vec<(usize, usize)>,
    }

    /// The walk over the digits the code computes, with multiples of the point for points.
    fn met(shape: Shape, sums: &[Vec<Scalar>], k: &Scalar, met: &mut Met) {
        let words = order::limbs(&k.to_repr().into());
        let digits = Digits::<Portable>::for_comb(&words, shape);
        let all = shape.block() - 1;
        let mut acc = Scalar::ZERO;
        for r in (0..shape.e).rev() {
            for (s, sums) in sums.iter().enumerate() {
                let (index, negative) = digits.comb(shape, r, s);
                let mut q = sums[index as usize & all | shape.block()];
                if negative & 1 == 1 {
                    q = -q;
                }
                if (r, s) == (shape.e - 1, 0) {
                    acc = q;
                    continue;
                }
                if s == 0 {
                    acc = acc.double();
                }
                let infinite = acc.is_zero() | (acc + q).is_zero();
                if bool::from(infinite) || (acc == q && (r, s) != (0, 1)) {
                    met.exceptions.push((r, s));
                } else if acc == q {
                    met.handled += 1;
                }
                acc += q;
            }
        }
        assert_eq!(acc, *k, "the digits do not sum to the scalar");
    }

    /// The part of the proof in `MATHS.md` that is an enumeration: every scalar for which an addition
    /// of the last column could be exceptional is k ≡ ±2T₀, ±2T₁, ±T₁ or ±(2T₀ ± T₁) for signed sums
    /// Tₛ of block s's teeth.
    #[test]
    fn no_scalar_meets_an_exception() {
        for shape in TableWidth::ALL.map(TableWidth::shape) {
            let sums: Vec<Vec<Scalar>> = (0..shape.v)
                .map(|s| (0..1 << shape.w).map(|signs| sum(shape, s, signs)).collect())
                .collect();
            // Signs run over all combinations, so that ±(2T₀ ± T₁) is 2T₀ + T₁ for some pair.
            let mut scalars: Vec<Scalar> = sums.concat();
            scalars.extend(sums.concat().iter().map(Scalar::double));
            if let [first, second] = &sums[..] {
                for a in first {
                    for b in second {
                        scalars.extend([a.double() + b, b.double() + a, *a + b]);
                    }
                }
            }
            let enumerated = scalars.len();
            for i in 1..2000u64 {
                scalars.extend([Scalar::from(i), -Scalar::from(i)]);
                // Scattered over the whole range.
                scalars.push(Scalar::from(i).square().square().square().square() + power(255));
            }
            scalars.retain(|k| !bool::from(k.is_zero()));
            let mut all = Met::default();
            for k in &scalars {
                met(shape, &sums, k, &mut all);
            }
            assert_eq!(all.exceptions, [], "{shape:?}");
            assert_eq!(all.handled, 2 * (shape.v - 1), "{shape:?}");
            eprintln!("{shape:?}: {enumerated} scalars, {} meet the doubling", all.handled);
        }
    }

    /// The bounds of the proof: L > 255 and L − e ≤ 250.
    #[test]
    fn shapes_fit_the_proof() {
        for shape in TableWidth::ALL.map(TableWidth::shape).into_iter().chain([TRANSIENT]) {
            assert!(shape.digits() >= 256 && shape.digits() - shape.e <= 250);
            assert!(shape.v <= 2, "the enumeration is for one or two blocks");
            assert!(shape.steps() <= MAX_STEPS);
        }
    }
}
