//! Eight elements modulo p in radix 2⁵², Montgomery form with R = 2²⁶⁰.
//!
//! Since p ≡ −1 (mod 2⁵²), −p⁻¹ mod 2⁵² = 1: the quotient digit of a reduction step is the low limb
//! itself. `MATHS.md` has the limb bounds.

use zeroize::Zeroize;

use super::vector::{
    self as v, V, madd_hi, madd_lo, sar, select, shl, shr, shr_pair, sign, splat, test_not, zero,
};

pub(super) const MASK: u64 = (1 << 52) - 1;
/// p in limbs.
pub(super) const P: [u64; 5] = [MASK, (1 << 44) - 1, 0, 1 << 36, (1 << 48) - (1 << 16)];
/// R mod p.
pub(super) const ONE: [u64; 5] =
    [0x10, 0xf_0000_0000_0000, 0xf_ffff_ffff_ffff, 0xf_feff_ffff_ffff, 0xf_ffff];
/// R² mod p.
const R2: [u64; 5] =
    [0x300, 0xf_ffff_fff0_0000, 0xf_fffe_ffff_fffb, 0xf_dfff_ffff_ffff, 0x4ff_ffff];
/// 3·R mod p.
pub(super) const THREE: [u64; 5] =
    [0x30, 0xd_0000_0000_0000, 0xf_ffff_ffff_ffff, 0xf_fcff_ffff_ffff, 0x2f_ffff];
/// b·R mod p.
pub(super) const B: [u64; 5] = [
    0xd_f622_9c4b_ddfd,
    0xc_a884_3090_d89c,
    0x2_12ed_6acf_005c,
    0x8_3415_a220_abf7,
    0xc300_61dd_4874,
];

/// Tight: every limb below 2⁵²; the value may exceed p by a small multiple.
#[derive(Clone, Copy)]
pub(crate) struct Fe(pub(super) [V; 5]);

impl Zeroize for Fe {
    fn zeroize(&mut self) {
        self.0.zeroize();
    }
}

/// Loose: signed limbs, to be carried before the value is a factor.
#[derive(Clone, Copy)]
pub(crate) struct Loose(pub(super) [V; 5]);

#[inline(always)]
pub(super) fn constant(x: &[u64; 5]) -> Fe {
    Fe([splat(x[0]), splat(x[1]), splat(x[2]), splat(x[3]), splat(x[4])])
}

/// The ten columns of a product, added to `t`.
#[inline(always)]
pub(super) fn columns(mut t: [V; 10], a: &[V; 5], b: &[V; 5]) -> [V; 10] {
    for i in 0..5 {
        for j in 0..5 {
            t[i + j] = madd_lo(t[i + j], a[i], b[j]);
        }
        for j in 0..5 {
            t[i + j + 1] = madd_hi(t[i + j + 1], a[i], b[j]);
        }
    }
    t
}

/// The ten columns of a square.
#[inline(always)]
pub(super) fn square_columns(mut t: [V; 10], a: &[V; 5]) -> [V; 10] {
    for i in 0..5 {
        for j in i + 1..5 {
            t[i + j] = madd_lo(t[i + j], a[i], a[j]);
        }
        for j in i + 1..5 {
            t[i + j + 1] = madd_hi(t[i + j + 1], a[i], a[j]);
        }
    }
    for x in &mut t[1..] {
        *x = v::add(*x, *x);
    }
    for i in 0..5 {
        t[2 * i] = madd_lo(t[2 * i], a[i], a[i]);
        t[2 * i + 1] = madd_hi(t[2 * i + 1], a[i], a[i]);
    }
    t
}

/// Which products of a quotient digit with powers of two [`reduce_columns`] forms by shifts instead of
/// multiply-adds. Shifts take more instructions but leave the multipliers to others: what is fastest
/// was found by measuring.
pub(super) mod shape {
    /// The low part of q·2⁴⁴.
    pub(crate) const LOW_44: u8 = 1;
    /// The high part of q·2⁴⁴.
    pub(crate) const HIGH_44: u8 = 2;
    /// The high part of q·2³⁶.
    pub(crate) const HIGH_36: u8 = 4;
    /// Columns may be negative.
    pub(crate) const SIGNED: u8 = 8;

    pub(crate) const PRODUCT: u8 = LOW_44 | HIGH_44;
    pub(crate) const SQUARE: u8 = HIGH_36;
}

/// One digit of a reduction: adds q·p·2^(52i), where q is column i.
#[inline(always)]
fn reduce_digit<const SHAPE: u8>(t: &mut [V; 10], i: usize) {
    let mask = splat(MASK);
    let c44 = splat(1 << 44);
    let c36 = splat(1 << 36);
    let p4 = splat(P[4]);
    let q = t[i];
    let low = v::and(q, mask);
    // Adding q·p clears the low 52 bits: q·(2⁵² − 1) + q = q·2⁵², whose carry is folded into the
    // 2⁴⁴ limb (p₁ = 2⁴⁴ − 1, so q·p₁ + q = q·2⁴⁴).
    let carry = if SHAPE & shape::SIGNED != 0 { sar::<52>(q) } else { shr::<52>(q) };
    t[i + 1] = if SHAPE & shape::LOW_44 != 0 {
        v::add(t[i + 1], v::add(v::and(shl::<44>(q), mask), carry))
    } else {
        v::add(madd_lo(t[i + 1], q, c44), carry)
    };
    t[i + 2] = if SHAPE & shape::HIGH_44 != 0 {
        v::add(t[i + 2], shr::<8>(low))
    } else {
        madd_hi(t[i + 2], q, c44)
    };
    t[i + 3] = madd_lo(t[i + 3], q, c36);
    t[i + 4] = if SHAPE & shape::HIGH_36 != 0 {
        v::add(t[i + 4], shr::<16>(low))
    } else {
        madd_hi(t[i + 4], q, c36)
    };
    t[i + 4] = madd_lo(t[i + 4], q, p4);
    t[i + 5] = madd_hi(t[i + 5], q, p4);
}

/// Montgomery reduction: five digits of t + q·p, divided by 2²⁶⁰.
#[inline(always)]
pub(super) fn reduce_columns<const SHAPE: u8>(mut t: [V; 10]) -> Loose {
    for i in 0..5 {
        reduce_digit::<SHAPE>(&mut t, i);
    }
    Loose([t[5], t[6], t[7], t[8], t[9]])
}

#[inline(always)]
pub(super) fn mul(a: &Fe, b: &Fe) -> Loose {
    reduce_columns::<{ shape::PRODUCT }>(columns([zero(); 10], &a.0, &b.0))
}

#[inline(always)]
pub(super) fn sqr(a: &Fe) -> Loose {
    reduce_columns::<{ shape::SQUARE }>(square_columns([zero(); 10], &a.0))
}

/// a·b + c: the sum costs nothing, as the columns start from it.
#[inline(always)]
pub(super) fn mul_add(a: &Fe, b: &Fe, c: &Loose) -> Loose {
    let c = &c.0;
    let z = zero();
    let t = [z, z, z, z, z, c[0], c[1], c[2], c[3], c[4]];
    reduce_columns::<{ shape::PRODUCT }>(columns(t, &a.0, &b.0))
}

/// a² + 2c, likewise.
#[inline(always)]
pub(super) fn sqr_add_2(a: &Fe, c: &Loose) -> Loose {
    let c = &c.0;
    let z = zero();
    let t = [z, z, z, z, z, c[0], c[1], c[2], c[3], c[4]];
    reduce_columns::<{ shape::SQUARE }>(square_columns(t, &a.0))
}

/// a·b + c·d with one reduction.
#[inline(always)]
pub(super) fn mul_add_mul(a: &Fe, b: &Fe, c: &Fe, d: &Fe) -> Loose {
    let t = columns([zero(); 10], &a.0, &b.0);
    reduce_columns::<{ shape::PRODUCT }>(columns(t, &c.0, &d.0))
}

/// a·b − 2c² with one reduction.
#[inline(always)]
pub(super) fn mul_sub_2sqr(a: &Fe, b: &Fe, c: &Fe) -> Loose {
    let square = square_columns([zero(); 10], &c.0);
    let mut t = columns([zero(); 10], &a.0, &b.0);
    for (x, s) in t.iter_mut().zip(square) {
        *x = v::sub(*x, shl::<1>(s));
    }
    reduce_columns::<{ shape::PRODUCT | shape::SIGNED }>(t)
}

/// Limb-wise a ∘ b.
macro_rules! limbwise {
    ($a:expr, $b:expr, $op:path) => {{
        let (a, b) = (&$a.0, &$b.0);
        [$op(a[0], b[0]), $op(a[1], b[1]), $op(a[2], b[2]), $op(a[3], b[3]), $op(a[4], b[4])]
    }};
}

#[inline(always)]
pub(super) fn add(a: &Loose, b: &Loose) -> Loose {
    Loose(limbwise!(a, b, v::add))
}

#[inline(always)]
pub(super) fn sub(a: &Loose, b: &Loose) -> Loose {
    Loose(limbwise!(a, b, v::sub))
}

#[inline(always)]
pub(super) fn neg_if(mut a: Loose, mask: u8) -> Loose {
    for x in &mut a.0 {
        *x = v::neg_if(mask, *x);
    }
    a
}

#[inline(always)]
pub(super) fn add_p(mut a: Loose, k: u64) -> Loose {
    for (x, p) in a.0.iter_mut().zip(P) {
        if p != 0 {
            *x = v::add(*x, splat(k * p));
        }
    }
    a
}

/// Propagates signed carries; the value must be in [0, 2²⁶⁰).
#[inline(always)]
pub(super) fn tight(a: Loose) -> Fe {
    let mask = splat(MASK);
    let mut r = a.0;
    for i in 0..4 {
        let carry = sar::<52>(r[i]);
        r[i] = v::and(r[i], mask);
        r[i + 1] = v::add(r[i + 1], carry);
    }
    debug_assert!(
        v::test(r[4], splat(!MASK)) == 0,
        "a value left [0, 2^260): a bound of some formula is wrong"
    );
    Fe(r)
}

/// Carries and subtracts a multiple of p read from the top limb: the result is below 2.1·p.
#[inline(always)]
pub(super) fn reduce(a: Loose) -> Fe {
    let mut r = a.0;
    // h = ⌊top / 2⁴⁸⌋ − 1 of the units of 2²⁵⁶; subtract h·p = h·(2²⁵⁶ − 2²²⁴ + 2¹⁹² + 2⁹⁶ − 1).
    let h = v::add(sar::<48>(r[4]), splat(u64::MAX));
    r[0] = v::add(r[0], h);
    r[1] = v::sub(r[1], shl::<44>(h));
    r[3] = v::sub(r[3], shl::<36>(h));
    r[4] = v::add(r[4], shl::<16>(h));
    r[4] = v::sub(r[4], shl::<48>(h));
    tight(Loose(r))
}

/// a − m where that is not negative, a elsewhere; a below 2m.
#[inline(always)]
pub(super) fn subtract_once(a: &Fe, m: &[u64; 5]) -> Fe {
    let mask = splat(MASK);
    let mut d = limbwise!(a, constant(m), v::sub);
    for i in 0..4 {
        let carry = sar::<52>(d[i]);
        d[i] = v::and(d[i], mask);
        d[i + 1] = v::add(d[i + 1], carry);
    }
    select_fe(sign(d[4]), &Fe(d), a)
}

#[inline(always)]
pub(super) fn select_fe(mask: u8, a: &Fe, b: &Fe) -> Fe {
    let mut out = a.0;
    for (x, y) in out.iter_mut().zip(b.0) {
        *x = select(mask, *x, y);
    }
    Fe(out)
}

/// Exchanges lane i with lane i ^ `step`.
#[inline(always)]
pub(super) fn swap(a: &Fe, step: usize) -> Fe {
    let lanes = v::load(&[0, 1, 2, 3, 4, 5, 6, 7]);
    let index = v::xor(lanes, splat(step as u64));
    Fe(a.0.map(
        #[inline(always)]
        |x| v::permute(index, x),
    ))
}

/// a/R: below or equal to p, congruent to 0 exactly when it is 0 or p.
#[inline(always)]
fn divide_by_r(a: &Fe) -> Fe {
    tight(mul(a, &constant(&[1, 0, 0, 0, 0])))
}

#[inline(always)]
pub(super) fn is_zero(a: &Fe) -> u8 {
    let r = divide_by_r(a);
    let (mut any, mut differs) = (zero(), zero());
    for (x, p) in r.0.iter().zip(P) {
        any = v::or(any, *x);
        differs = v::or(differs, v::xor(*x, splat(p)));
    }
    test_not(any, any) | test_not(differs, differs)
}

#[inline(always)]
pub(super) fn unpack(w: &[V; 4]) -> Fe {
    let mask = splat(MASK);
    Fe([
        v::and(w[0], mask),
        v::and(shr_pair::<52>(w[0], w[1]), mask),
        v::and(shr_pair::<40>(w[1], w[2]), mask),
        v::and(shr_pair::<28>(w[2], w[3]), mask),
        shr::<16>(w[3]),
    ])
}

/// A tight value below 2²⁵⁶ to words.
#[inline(always)]
pub(super) fn words(a: &Fe) -> [V; 4] {
    let a = &a.0;
    [
        v::or(a[0], shl::<52>(a[1])),
        v::or(shr::<12>(a[1]), shl::<40>(a[2])),
        v::or(shr::<24>(a[2]), shl::<28>(a[3])),
        v::or(shr::<36>(a[3]), shl::<16>(a[4])),
    ]
}

#[inline(always)]
pub(super) fn to_montgomery(w: &[V; 4]) -> Fe {
    tight(mul(&unpack(w), &constant(&R2)))
}

#[inline(always)]
pub(super) fn from_montgomery(a: &Fe) -> [V; 4] {
    words(&subtract_once(&divide_by_r(a), &P))
}
