//! A backend of intervals: it runs the formulas on bounds of values and limbs instead of values, and so
//! proves the numbers given to `add_p`, and that no 64-bit lane overflows.
//!
//! It models the 52-bit backend step by step. A value is an interval in units of p, a limb an interval
//! of integers. The invariant of `MATHS.md` goes into each formula; that it holds for the result again,
//! with no more multiples of p than it takes, is what the tests ask. Whole operations run on bounds too.
//!
//! Functions are kept out of line: inlined into every formula they take minutes to compile.

// Bounds are far from the limits of f64 and i128.
#![allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)]

use crate::backend::{Backend, Kind};
use crate::lanes::{Lanes, MAX_WIDTH, Words};
use crate::table::Row;
use core::cell::Cell;
use zeroize::Zeroize;

/// p in limbs of 52 bits.
const P: [i128; 5] = [(1 << 52) - 1, (1 << 44) - 1, 0, 1 << 36, (1 << 48) - (1 << 16)];
const LIMB: i128 = 1 << 52;
/// 2²⁶⁰ in units of p, rounded down.
const TOP: f64 = 16.0;
/// Above 2²⁵⁶ in units of p or n: what four words hold.
const WORDS: f64 = 1.0001;

/// All integers from the first to the second.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Range(i128, i128);

impl Range {
    const ZERO: Self = Self(0, 0);

    /// As a 64-bit register has it: `signed` or not.
    fn fits(self, signed: bool) -> Self {
        let (low, high) = if signed { (-(1 << 63), 1 << 63) } else { (0, 1 << 64) };
        assert!(self.0 >= low && self.1 < high, "{self:?} leaves 64 bits (signed: {signed})");
        self
    }
    fn plus(self, b: Self) -> Self {
        Self(self.0 + b.0, self.1 + b.1)
    }
    fn minus(self, b: Self) -> Self {
        Self(self.0 - b.1, self.1 - b.0)
    }
    fn hull(self, b: Self) -> Self {
        Self(self.0.min(b.0), self.1.max(b.1))
    }
    fn shifted(self, n: u32) -> Self {
        Self(self.0 >> n, self.1 >> n)
    }
    /// The low 52 bits of a product of two limbs: anything, unless one is zero.
    fn low_product(self, b: Self) -> Self {
        Self(0, if self.1 == 0 || b.1 == 0 { 0 } else { LIMB - 1 })
    }
    fn high_product(self, b: Self) -> Self {
        Self(0, (self.1 * b.1) >> 52)
    }
}

/// Bounds of a value in units of p, and of its limbs.
#[derive(Clone, Copy, Debug)]
struct Bound {
    value: (f64, f64),
    limbs: [Range; 5],
}

impl Bound {
    /// A tight element with a value up to `high`.
    #[inline(never)]
    fn tight(low: f64, high: f64) -> Self {
        assert!(low >= 0.0 && high <= TOP, "a value in [{low}, {high}]·p is not in [0, 2^260)");
        let full = Range(0, LIMB - 1);
        // The top limb is ⌊value / 2²⁰⁸⌋, and p < 2²⁵⁶.
        let top = Range(0, ((high * 2f64.powi(48)) as i128).min(LIMB - 1));
        Self { value: (low, high), limbs: [full, full, full, full, top] }
    }

    #[inline(never)]
    fn zip(self, b: Self, value: (f64, f64), f: impl Fn(Range, Range) -> Range) -> Self {
        let limbs = core::array::from_fn(|i| f(self.limbs[i], b.limbs[i]).fits(true));
        Self { value, limbs }
    }

    fn hull(self, b: Self) -> Self {
        let value = (self.value.0.min(b.value.0), self.value.1.max(b.value.1));
        self.zip(b, value, Range::hull)
    }

    /// What `field::tight` carries into the top limb.
    #[inline(never)]
    fn carry(self) -> Range {
        let carry = self.limbs[..4]
            .iter()
            .fold(Range::ZERO, |carry, limb| limb.plus(carry).fits(true).shifted(52));
        self.limbs[4].plus(carry).fits(true);
        carry
    }
}

impl Zeroize for Bound {
    fn zeroize(&mut self) {
        *self = Self::tight(0.0, 0.0);
    }
}

type Columns = [Range; 10];

/// The columns of a product of tight elements, added to `t`.
#[inline(never)]
fn columns(mut t: Columns, a: &Bound, b: &Bound) -> Columns {
    for i in 0..5 {
        for j in 0..5 {
            let (a, b) = (a.limbs[i], b.limbs[j]);
            // The multiplier takes the low 52 bits of its factors: they must be all there is.
            assert!(a.0 >= 0 && a.1 < LIMB && b.0 >= 0 && b.1 < LIMB, "a factor is not tight");
            t[i + j] = t[i + j].plus(a.low_product(b)).fits(false);
            t[i + j + 1] = t[i + j + 1].plus(a.high_product(b)).fits(false);
        }
    }
    t
}

/// Montgomery reduction, as `field::reduce_columns`: the limbs of the result.
#[inline(never)]
fn reduce_columns(mut t: Columns, signed: bool) -> [Range; 5] {
    let q = Range(0, LIMB - 1);
    for i in 0..5 {
        let carry = t[i].shifted(52);
        // q·2⁴⁴ in two limbs, q·2³⁶ in two, q·p₄ in two.
        t[i + 1] = t[i + 1].plus(Range(0, LIMB - 1)).plus(carry).fits(signed);
        t[i + 2] = t[i + 2].plus(q.shifted(8)).fits(signed);
        t[i + 3] = t[i + 3].plus(Range(0, LIMB - 1)).fits(signed);
        t[i + 4] = t[i + 4].plus(q.shifted(16)).fits(signed);
        t[i + 4] = t[i + 4].plus(Range(0, LIMB - 1)).fits(signed);
        t[i + 5] = t[i + 5].plus(q.high_product(Range(0, P[4]))).fits(signed);
    }
    [t[5], t[6], t[7], t[8], t[9]]
}

/// A·B/16, a little more than it is: p/2²⁶⁰ < 1/16.
fn product(a: &Bound, b: &Bound) -> f64 {
    a.value.1 * b.value.1 / 16.0
}

thread_local! {
    /// Calls of `add_p` so far.
    static CALLS: Cell<usize> = const { Cell::new(0) };
    /// The call that adds one multiple less: a mistake for the tests to find.
    static LOWERED: Cell<Option<usize>> = const { Cell::new(None) };
}

/// The backend. Words are not looked at: every condition is true, every integer is 0. A scalar is the
/// bound of its value in units of n.
#[derive(Clone, Copy)]
struct Bounds;

impl Lanes for Bounds {
    const WIDTH: usize = 1;
    const BACKEND: Backend = Backend(Kind::Portable);
    type Word = u64;
    type Fe = Bound;
    type Loose = Bound;
    type Scalar = f64;
    type SharedTable = ();
    type One = Self;

    fn one_lane(self) -> Self {
        self
    }

    fn call<R>(self, f: impl FnOnce() -> R) -> R {
        f()
    }

    fn splat(x: u64) -> u64 {
        x
    }
    fn from_lanes(x: &[u64; MAX_WIDTH]) -> u64 {
        x[0]
    }
    fn to_lanes(x: u64) -> [u64; MAX_WIDTH] {
        [x; MAX_WIDTH]
    }
    fn and(a: u64, _b: u64) -> u64 {
        a
    }
    fn or(a: u64, _b: u64) -> u64 {
        a
    }
    fn xor(a: u64, _b: u64) -> u64 {
        a
    }
    fn shl(a: u64, _n: u32) -> u64 {
        a
    }
    fn shr(a: u64, _n: u32) -> u64 {
        a
    }
    fn test(_a: u64, _b: u64) -> u8 {
        1
    }
    fn eq(_a: u64, _b: u64) -> u8 {
        1
    }
    fn select(_mask: u8, a: u64, _b: u64) -> u64 {
        a
    }
    fn load_rows(_rows: &[&Row; MAX_WIDTH]) -> [u64; 8] {
        [0; 8]
    }
    fn store_rows(_words: &[u64; 8]) -> [Row; MAX_WIDTH] {
        [Row([0; 8]); MAX_WIDTH]
    }
    fn prefetch(_row: &Row) {}
    fn shared_table(_rows: &[Row], _windows: usize, _entries: usize) {}
    fn shared_lookup(_table: &(), _window: usize, _index: u64) -> (Bound, Bound) {
        (Bound::tight(0.0, 1.0), Bound::tight(0.0, 1.0))
    }

    fn one() -> Bound {
        Bound::tight(0.0, 1.0)
    }
    fn three() -> Bound {
        Bound::tight(0.0, 1.0)
    }
    fn b() -> Bound {
        Bound::tight(0.0, 1.0)
    }
    #[inline(never)]
    fn mul(a: &Bound, b: &Bound) -> Bound {
        let limbs = reduce_columns(columns([Range::ZERO; 10], a, b), false);
        Bound { value: (0.0, product(a, b) + 1.0), limbs }
    }
    fn sqr(a: &Bound) -> Bound {
        // Doubling the mixed products gives the columns of a product.
        Self::mul(a, a)
    }
    fn mul_add(a: &Bound, b: &Bound, c: Bound) -> Bound {
        Self::add(Self::mul(a, b), c)
    }
    fn sqr_add_2(a: &Bound, c: Bound) -> Bound {
        Self::add(Self::sqr(a), Self::add(c, c))
    }
    #[inline(never)]
    fn mul_add_mul(a: &Bound, b: &Bound, c: &Bound, d: &Bound) -> Bound {
        let t = columns(columns([Range::ZERO; 10], a, b), c, d);
        let limbs = reduce_columns(t, false);
        Bound { value: (0.0, product(a, b) + product(c, d) + 1.0), limbs }
    }
    #[inline(never)]
    fn mul_sub_2sqr(a: &Bound, b: &Bound, c: &Bound) -> Bound {
        let mut t = columns([Range::ZERO; 10], a, b);
        for (x, s) in t.iter_mut().zip(columns([Range::ZERO; 10], c, c)) {
            *x = x.minus(s.plus(s).fits(true)).fits(true);
        }
        let limbs = reduce_columns(t, true);
        Bound { value: (-2.0 * product(c, c), product(a, b) + 1.0), limbs }
    }
    #[inline(never)]
    fn add(a: Bound, b: Bound) -> Bound {
        let value = (a.value.0 + b.value.0, a.value.1 + b.value.1);
        a.zip(b, value, Range::plus)
    }
    #[inline(never)]
    fn sub(a: Bound, b: Bound) -> Bound {
        let value = (a.value.0 - b.value.1, a.value.1 - b.value.0);
        a.zip(b, value, Range::minus)
    }
    fn neg(a: Bound) -> Bound {
        let zero = Bound { value: (0.0, 0.0), limbs: [Range::ZERO; 5] };
        Self::sub(zero, a)
    }
    #[inline(never)]
    fn neg_if(a: Bound, _mask: u8) -> Bound {
        a.hull(Self::neg(a))
    }
    fn double(a: Bound) -> Bound {
        Self::add(a, a)
    }
    #[inline(never)]
    fn add_p(a: Bound, k: u64) -> Bound {
        let call = CALLS.replace(CALLS.get() + 1);
        let k = k - u64::from(LOWERED.get() == Some(call));
        let limbs = P.map(|p| Range(i128::from(k) * p, i128::from(k) * p));
        Self::add(a, Bound { value: (k as f64, k as f64), limbs })
    }
    #[inline(never)]
    fn tight(a: Bound) -> Bound {
        a.carry();
        Bound::tight(a.value.0, a.value.1)
    }
    #[inline(never)]
    fn reduce(a: Bound) -> Bound {
        Bound::tight(a.value.0, a.value.1);
        // h is read from the top limb before the carries below reach it: they must be small there.
        let carry = a.carry();
        assert!(carry.0 > -(1 << 30) && carry.1 < 1 << 30, "the carries are too large for h");
        // h·p has limbs below 2⁵⁶.
        let h = Range(-(1 << 56), 1 << 56);
        for limb in a.limbs {
            limb.plus(h).fits(true);
        }
        // What is left is (1 + f)·2²⁵⁶ + (h + 1)·(2²⁵⁶ − p) − … for a fraction f of the top limb, give
        // or take the carries: 2³⁰ / 2⁴⁸ and 16·2⁻³² at most.
        Bound::tight(0.999, 2.001)
    }
    fn loose(a: &Bound) -> Bound {
        *a
    }
    fn is_zero(a: &Bound) -> u8 {
        Self::tight(Self::mul(a, &Bound::tight(0.0, 1.0)));
        1
    }
    fn swap_fe(a: &Bound, _step: usize) -> Bound {
        *a
    }
    #[inline(never)]
    fn select_fe(_mask: u8, a: &Bound, b: &Bound) -> Bound {
        a.hull(*b)
    }
    fn unpack(_w: &Words<Self>) -> Bound {
        Bound::tight(0.0, WORDS)
    }
    #[inline(never)]
    fn pack(a: &Bound) -> Words<Self> {
        assert!(a.value.1 <= 2.0, "one subtraction does not make {:?} canonical", a.value);
        [0; 4]
    }
    fn to_montgomery(_w: &Words<Self>) -> Bound {
        // An integer below 2²⁵⁶ times R² mod p.
        let integer = Bound::tight(0.0, WORDS);
        Self::tight(Self::mul(&integer, &Bound::tight(0.0, 1.0)))
    }
    fn from_montgomery(a: &Bound) -> Words<Self> {
        Self::is_zero(a);
        [0; 4]
    }

    fn scalar(_w: &Words<Self>) -> f64 {
        WORDS
    }
    fn scalar_words(a: &f64) -> Words<Self> {
        assert!(*a <= 2.0, "one subtraction does not make {a}·n canonical");
        [0; 4]
    }
    fn scalar_mul(a: &f64, b: &f64) -> f64 {
        assert!(a.max(*b) <= TOP);
        a * b / 16.0 + 1.0
    }
    fn scalar_sqr(a: &f64) -> f64 {
        Self::scalar_mul(a, a)
    }
    fn scalar_add(a: &f64, b: &f64) -> f64 {
        assert!(a + b <= TOP);
        a + b
    }
    fn scalar_r2() -> f64 {
        1.0
    }
    fn scalar_r3() -> f64 {
        1.0
    }
    fn scalar_one() -> f64 {
        1.0
    }
    fn scalar_odd(u: &Words<Self>) -> (Words<Self>, u8) {
        (*u, 1)
    }
    fn scalar_select(_mask: u8, a: &f64, b: &f64) -> f64 {
        a.max(*b)
    }
    fn scalar_swap(a: &f64, _step: usize) -> f64 {
        *a
    }
}

mod tests {
    use super::*;
    use crate::comb;
    use crate::context::{Context, load4};
    use crate::fixed;
    use crate::keys::{PublicKey, SecretScalar};
    use crate::ops::agree::EcdhItem;
    use crate::ops::sign::SignItem;
    use crate::ops::verify::{Key, VerifyItem};
    use crate::point::{
        Affine, Point, add_mixed, add_mixed_or_double, add_mixed_public, add_sub, curve_rhs,
        double, negate,
    };
    use crate::table::{Table, TableWidth};
    use crate::teeth;
    use std::panic::catch_unwind;

    /// The invariant: X < 2.1, Y < 3.3, Z < 3.5.
    fn any() -> Point<Bounds> {
        let (x, y) = (Bound::tight(0.0, 2.1), Bound::tight(0.0, 3.3));
        Point { x, y, z: Bound::tight(0.0, 3.5) }
    }

    /// A coordinate of a table, or one just converted.
    fn affine() -> Affine<Bounds> {
        Affine { x: Bound::tight(0.0, 1.1), y: Bound::tight(0.0, 1.1) }
    }

    fn holds(points: &[Point<Bounds>]) {
        for p in points {
            let [x, y, z] = [p.x, p.y, p.z].map(|a| a.value.1);
            assert!(x <= 2.1 && y <= 3.3 && z <= 3.5, "X < {x}, Y < {y}, Z < {z}");
        }
    }

    type Formula = (&'static str, fn());

    /// Every formula, on any operands that satisfy the invariant.
    const FORMULAS: [Formula; 9] = [
        ("double", || holds(&[double(&any())])),
        ("add_mixed", || holds(&[add_mixed(&any(), &affine(), 1)])),
        ("add_mixed_or_double", || holds(&[add_mixed_or_double(&any(), &affine(), 1)])),
        ("add_mixed_public", || holds(&[add_mixed_public(&any(), &mut 0, &affine(), 1)])),
        ("add_mixed_public, infinite", || {
            holds(&[add_mixed_public(&any(), &mut 1, &affine(), 1)]);
        }),
        ("add_sub", || holds(&<[_; 2]>::from(add_sub(&any(), &any().cached())))),
        ("negate", || holds(&[negate(&any())])),
        ("to_point_signed", || holds(&[affine().to_point_signed(1)])),
        ("on_curve", || {
            Bounds::tight(curve_rhs::<Bounds>(&affine().x));
            affine().on_curve();
        }),
    ];

    #[test]
    fn formulas_keep_the_invariant() {
        for (name, formula) in FORMULAS {
            eprintln!("{name}");
            formula();
        }
    }

    /// Each multiple of p is the smallest that will do: with one less, the check above fails.
    #[test]
    fn no_multiple_may_be_smaller() {
        for (name, formula) in FORMULAS {
            CALLS.set(0);
            formula();
            for call in 0..CALLS.get() {
                CALLS.set(0);
                LOWERED.set(Some(call));
                let result = catch_unwind(formula);
                LOWERED.set(None);
                assert!(result.is_err(), "{name}: add_p number {call} is larger than need be");
            }
        }
    }

    /// Whole operations: tables, combs, windows, inversions, roots, both paths of verification.
    #[test]
    fn operations_stay_in_bounds() {
        let context = Context::new(Bounds, &[1; 32]);
        let secret = SecretScalar::from_bytes(&[1; 32]).expect("in range");
        let key = PublicKey { x: [1; 4], y: [1; 4] };
        let point = [1; 64];
        let items = [EcdhItem { secret: &secret, point: &point }; 2];
        context.ecdh(&items, &mut vec![]);
        let mut kept = vec![];
        context.ecdh_keep(&items, &mut kept);
        let mut lifted = vec![];
        context.decapsulate(&secret, &[[1; 32]], &mut lifted);
        let table = &lifted[0].as_ref().expect("every condition is true").table;
        context.ecdh_again(&[(table, &secret)], &mut vec![]);
        context.agree(&[(table, &secret)], &mut vec![]);
        context.key_pairs(core::slice::from_ref(&secret), &mut vec![]);
        let (digest, randomness) = ([1; 32], [1; 32]);
        let to_sign = SignItem { digest: &digest, randomness: &randomness };
        let mut signatures = vec![];
        context.sign(&secret, &[to_sign], &mut signatures);
        let signature = &[1; 64];
        let verify = |key: Key<'_>| {
            let item = VerifyItem { key, digest: &digest, signature };
            context.verify(&[item], &mut vec![]);
        };
        verify(Key::Plain(&key));
        verify(Key::Teeth(&key, &teeth::make(Bounds, &[key])[0]));
        for width in TableWidth::ALL {
            let rows = vec![Row([0; 8]); width.shape().entries()];
            let table = Table { backend: Bounds::BACKEND, width, rows: &rows, key: &key };
            verify(Key::Table(table));
            context.ecdh_preset(&[(table, &secret)], &mut vec![]);
        }
    }

    /// The multiples' results satisfy the invariant too.
    #[test]
    fn multiples_keep_the_invariant() {
        let scalar = load4(Bounds, |_| [1; 4]);
        for width in TableWidth::ALL {
            let shape = width.shape();
            let entries = comb::tables(Bounds, &[affine()], shape);
            holds(&[comb::walk(Bounds, &entries, shape, &scalar)]);
        }
        holds(&[fixed::mul(Bounds, &(), &scalar)]);
    }

    #[test]
    #[should_panic(expected = "leaves 64 bits")]
    fn an_overflowing_column_is_caught() {
        let full = Range(0, i128::from(u64::MAX));
        let a = Bound::tight(0.0, 16.0);
        columns([full; 10], &a, &a);
    }
}
