//! Points in Jacobian coordinates, a lane each, and the formulas that add them.
//!
//! A point (X, Y, Z) stands for (X/Z², Y/Z³); Z = 0 is the point at infinity. The fast additions are
//! *incomplete*: when the two points are equal, opposite, or one is infinity, the result has Z = 0,
//! and no later operation makes Z non-zero again. One test at the end therefore finds every
//! exceptional case on the way. `MATHS.md` derives the bounds behind each `add_p`.
//!
//! Bounds, in units of p: X < 2.1, Y < 3.3, Z < 3.5.

use crate::lanes::{Lanes, Words};
use zeroize::Zeroize;

/// A point a lane.
#[derive(Clone, Copy)]
pub(crate) struct Point<L: Lanes> {
    pub(crate) x: L::Fe,
    pub(crate) y: L::Fe,
    pub(crate) z: L::Fe,
}

impl<L: Lanes> Zeroize for Point<L> {
    fn zeroize(&mut self) {
        self.x.zeroize();
        self.y.zeroize();
        self.z.zeroize();
    }
}

/// A point with the powers of Z an addition needs.
#[derive(Clone, Copy)]
pub(crate) struct Cached<L: Lanes> {
    x: L::Fe,
    y: L::Fe,
    z: L::Fe,
    z2: L::Fe,
    z3: L::Fe,
}

/// An affine point a lane.
#[derive(Clone, Copy)]
pub(crate) struct Affine<L: Lanes> {
    pub(crate) x: L::Fe,
    pub(crate) y: L::Fe,
}

/// An affine point a lane as canonical Montgomery words: four of x, four of y.
pub(crate) type Entry<L> = [<L as Lanes>::Word; 8];

impl<L: Lanes> Affine<L> {
    #[inline(always)]
    pub(crate) fn from_entry(e: &Entry<L>) -> Self {
        Self { x: L::unpack(&[e[0], e[1], e[2], e[3]]), y: L::unpack(&[e[4], e[5], e[6], e[7]]) }
    }

    /// As a Jacobian point.
    #[inline(always)]
    pub(crate) fn to_point(self) -> Point<L> {
        Point { x: self.x, y: self.y, z: L::one() }
    }

    /// As a Jacobian point, negated in the lanes of `negate`; y below 1.1·p.
    #[inline(always)]
    pub(crate) fn to_point_signed(self, negate: u8) -> Point<L> {
        let y = L::tight(L::add_p(L::neg_if(L::loose(&self.y), negate), 2));
        Point { y, ..self.to_point() }
    }

    /// From integers below 2²⁵⁶.
    #[inline(always)]
    pub(crate) fn from_words(x: &Words<L>, y: &Words<L>) -> Self {
        Self { x: L::to_montgomery(x), y: L::to_montgomery(y) }
    }

    /// `b` in the lanes of `mask`.
    #[inline(always)]
    pub(crate) fn select(mask: u8, a: &Self, b: &Self) -> Self {
        Self { x: L::select_fe(mask, &a.x, &b.x), y: L::select_fe(mask, &a.y, &b.y) }
    }

    /// Lanes whose coordinates satisfy y² = x³ − 3x + b.
    #[inline(always)]
    pub(crate) fn on_curve(&self) -> u8 {
        let d = L::sub(L::add_p(curve_rhs::<L>(&self.x), 2), L::sqr(&self.y));
        L::is_zero(&L::tight(d))
    }
}

/// x³ − 3x + b.
#[inline(always)]
pub(crate) fn curve_rhs<L: Lanes>(x: &L::Fe) -> L::Loose {
    let x2 = L::tight(L::sub(L::add_p(L::sqr(x), 1), L::loose(&L::three())));
    L::add(L::mul(&x2, x), L::loose(&L::b()))
}

impl<L: Lanes> Point<L> {
    #[inline(always)]
    fn select(mask: u8, a: &Self, b: &Self) -> Self {
        Self {
            x: L::select_fe(mask, &a.x, &b.x),
            y: L::select_fe(mask, &a.y, &b.y),
            z: L::select_fe(mask, &a.z, &b.z),
        }
    }

    #[inline(always)]
    pub(crate) fn cached(&self) -> Cached<L> {
        let z2 = L::tight(L::sqr(&self.z));
        let z3 = L::tight(L::mul(&z2, &self.z));
        Cached { x: self.x, y: self.y, z: self.z, z2, z3 }
    }
}

// The order of independent steps below was found by measuring: a core looks about one product ahead,
// and with a better order of the same steps it finds a tenth more to do.

/// 2·P. Infinity gives infinity.
#[inline(always)]
pub(crate) fn double<L: Lanes>(p: &Point<L>) -> Point<L> {
    let delta = L::sqr(&p.z);
    let yy = L::sqr(&p.y);
    let low = L::tight(L::add_p(L::sub(L::loose(&p.x), delta), 2));
    let sum = L::add(L::loose(&p.x), delta);
    let high = L::tight(L::add(sum, L::double(sum)));
    let z3 = L::tight(L::double(L::mul(&p.y, &p.z)));
    let g = L::reduce(L::double(yy)); // 2Y²
    let alpha = L::tight(L::mul(&low, &high)); // 3(X − Z²)(X + Z²)
    let s = L::mul(&p.x, &g); // 2XY²
    let s2 = L::double(s);
    let x3 = L::reduce(L::sqr_add_2(&alpha, L::add_p(L::neg(s2), 3)));
    let t = L::tight(L::add_p(L::sub(s2, L::loose(&x3)), 3));
    let y3 = L::tight(L::add_p(L::mul_sub_2sqr(&alpha, &t, &g), 1)); // α(4XY² − X₃) − 8Y⁴
    Point { x: x3, y: y3, z: z3 }
}

/// P ± Q, negating y₂ in the lanes of `negate`, with H = x₂Z² − X and r = ±y₂Z³ − Y.
#[inline(always)]
fn add_core<L: Lanes>(p: &Point<L>, q: &Affine<L>, negate: u8) -> (Point<L>, L::Fe, L::Fe) {
    let zz = L::tight(L::sqr(&p.z));
    let h = L::tight(L::mul_add(&q.x, &zz, L::add_p(L::neg(L::loose(&p.x)), 3)));
    let zzz = L::tight(L::mul(&p.z, &zz));
    let hh = L::tight(L::sqr(&h));
    let v = L::mul(&p.x, &hh);
    let s = L::neg_if(L::mul(&q.y, &zzz), negate);
    let hhh = L::mul(&h, &hh);
    let minus_hhh = L::tight(L::add_p(L::neg(hhh), 2));
    let r = L::tight(L::add_p(L::sub(s, L::loose(&p.y)), 5));
    let z3 = L::tight(L::mul(&p.z, &h));
    let rr = L::sqr(&r);
    let x3 = L::reduce(L::add_p(L::sub(L::sub(rr, hhh), L::double(v)), 5));
    let t = L::tight(L::add_p(L::sub(v, L::loose(&x3)), 3));
    let y3 = L::tight(L::mul_add_mul(&r, &t, &p.y, &minus_hhh));
    (Point { x: x3, y: y3, z: z3 }, h, r)
}

/// P ± Q. Incomplete: P = ±Q or P = ∞ gives Z = 0.
#[inline(always)]
pub(crate) fn add_mixed<L: Lanes>(p: &Point<L>, q: &Affine<L>, negate: u8) -> Point<L> {
    add_core(p, q, negate).0
}

/// H and r: both zero where P = ±Q, H alone where P is the opposite.
#[inline(always)]
pub(crate) fn differences<L: Lanes>(p: &Point<L>, q: &Affine<L>, negate: u8) -> (L::Fe, L::Fe) {
    let (_, h, r) = add_core(p, q, negate);
    (h, r)
}

/// P ± Q, also where P equals ±Q. P = ∞ still gives Z = 0.
#[inline(always)]
pub(crate) fn add_mixed_or_double<L: Lanes>(p: &Point<L>, q: &Affine<L>, negate: u8) -> Point<L> {
    let (sum, h, r) = add_core(p, q, negate);
    let equal = L::is_zero(&h) & L::is_zero(&r);
    Point::select(equal, &sum, &double(p))
}

/// P ± Q for any public P, which is infinity in the lanes of `infinite`; variable time.
#[inline(always)]
pub(crate) fn add_mixed_public<L: Lanes>(
    p: &Point<L>,
    infinite: &mut u8,
    q: &Affine<L>,
    negate: u8,
) -> Point<L> {
    let (sum, h, r) = add_core(p, q, negate);
    let same_x = L::is_zero(&h) & !*infinite;
    if same_x | *infinite == 0 {
        return sum;
    }
    let equal = same_x & L::is_zero(&r);
    let sum = Point::select(equal, &sum, &double(p));
    let sum = Point::select(*infinite, &sum, &q.to_point_signed(negate));
    *infinite = same_x & !equal;
    sum
}

/// (P + Q, P − Q), which share Z. Incomplete as [`add_mixed`].
#[inline(always)]
pub(crate) fn add_sub<L: Lanes>(p: &Point<L>, q: &Cached<L>) -> (Point<L>, Point<L>) {
    let zz = L::tight(L::sqr(&p.z));
    let u1 = L::tight(L::mul(&p.x, &q.z2));
    let s1 = L::tight(L::mul(&p.y, &q.z3));
    let u2 = L::mul(&q.x, &zz);
    let zzz = L::tight(L::mul(&p.z, &zz));
    let s2 = L::mul(&q.y, &zzz);
    let h = L::tight(L::add_p(L::sub(u2, L::loose(&u1)), 2));
    let r_plus = L::tight(L::add_p(L::sub(s2, L::loose(&s1)), 2));
    let r_minus = L::tight(L::add_p(L::sub(L::neg(s2), L::loose(&s1)), 3));
    let hh = L::tight(L::sqr(&h));
    let z3 = L::tight(L::mul(&L::tight(L::mul(&p.z, &q.z)), &h));
    let hhh = L::mul(&h, &hh);
    let v = L::mul(&u1, &hh);
    let minus_hhh = L::tight(L::add_p(L::neg(hhh), 2));
    let common = L::add_p(L::sub(L::neg(hhh), L::double(v)), 4);
    let branch = Branch::<L> { h3: minus_hhh, v, s1, common };
    let (x_plus, y_plus) = branch.finish(&r_plus);
    let (x_minus, y_minus) = branch.finish(&r_minus);
    (Point { x: x_plus, y: y_plus, z: z3 }, Point { x: x_minus, y: y_minus, z: z3 })
}

/// What the two halves of [`add_sub`] share.
struct Branch<L: Lanes> {
    /// −H³.
    h3: L::Fe,
    /// U₁·H².
    v: L::Loose,
    s1: L::Fe,
    /// −H³ − 2·U₁·H².
    common: L::Loose,
}

impl<L: Lanes> Branch<L> {
    #[inline(always)]
    fn finish(&self, r: &L::Fe) -> (L::Fe, L::Fe) {
        let x = L::reduce(L::add(L::sqr(r), self.common));
        let t = L::tight(L::add_p(L::sub(self.v, L::loose(&x)), 3));
        (x, L::tight(L::mul_add_mul(r, &t, &self.s1, &self.h3)))
    }
}

/// −P.
#[inline(always)]
pub(crate) fn negate<L: Lanes>(p: &Point<L>) -> Point<L> {
    Point { x: p.x, y: L::reduce(L::add_p(L::neg(L::loose(&p.y)), 4)), z: p.z }
}

// --- out-of-line blocks

/// 2ᵏ·P.
pub(crate) fn double_times<L: Lanes>(lanes: L, p: &Point<L>, k: usize) -> Point<L> {
    lanes.call(
        #[inline(always)]
        || {
            let mut r = *p;
            for _ in 0..k {
                r = double(&r);
            }
            r
        },
    )
}

/// [`Affine::to_point`], out of line.
pub(crate) fn point_of<L: Lanes>(lanes: L, q: &Affine<L>) -> Point<L> {
    lanes.call(
        #[inline(always)]
        || q.to_point(),
    )
}

/// [`add_sub`], out of line.
pub(crate) fn add_sub_block<L: Lanes>(
    lanes: L,
    p: &Point<L>,
    q: &Cached<L>,
) -> (Point<L>, Point<L>) {
    lanes.call(
        #[inline(always)]
        || add_sub(p, q),
    )
}

/// [`add_mixed_or_double`], out of line.
pub(crate) fn add_last<L: Lanes>(lanes: L, p: &Point<L>, q: &Affine<L>, negate: u8) -> Point<L> {
    lanes.call(
        #[inline(always)]
        || add_mixed_or_double(p, q, negate),
    )
}

/// Affine forms of points, one inversion in all. `shared` consecutive points have the same Z.
/// No Z may be zero.
pub(crate) fn normalise<L: Lanes>(
    lanes: L,
    points: &[Point<L>],
    shared: usize,
    out: &mut Vec<Entry<L>>,
) {
    let mut inverses: Vec<L::Fe> = points.iter().step_by(shared).map(|p| p.z).collect();
    crate::invert::batch(lanes, &mut inverses);
    for (run, inverse) in points.chunks(shared).zip(&inverses) {
        lanes.call(
            #[inline(always)]
            || {
                let i2 = L::tight(L::sqr(inverse));
                let i3 = L::tight(L::mul(&i2, inverse));
                for p in run {
                    let x = L::pack(&L::tight(L::mul(&p.x, &i2)));
                    let y = L::pack(&L::tight(L::mul(&p.y, &i3)));
                    out.push([x[0], x[1], x[2], x[3], y[0], y[1], y[2], y[3]]);
                }
            },
        );
    }
}
