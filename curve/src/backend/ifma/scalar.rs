//! Eight integers modulo the group order n in radix 2⁵², Montgomery form with R = 2²⁶⁰.

use super::field::{Fe, Loose, columns, constant, square_columns, tight};
use super::vector::{self as v, V, madd_hi, madd_lo, shr, splat, zero};

/// n in limbs.
pub(super) const N: [u64; 5] =
    [0x9_cac2_fc63_2551, 0xa_da71_79e8_4f3b, 0xf_ffff_ffbc_e6fa, 0xf_ffff_ffff, 0xffff_ffff_0000];
/// −n⁻¹ mod 2⁵².
const N_INVERSE: u64 = 0x1_c8aa_ee00_bc4f;
/// R mod n.
pub(super) const ONE: [u64; 5] =
    [0x3_53d0_39cd_aaf0, 0x2_58e8_617b_0c46, 0x431_9055, 0xf_ff00_0000_0000, 0xf_ffff];
/// R² mod n.
pub(super) const R2: [u64; 5] = [
    0x5_cc0d_ea6d_c3ba,
    0x1_92a0_67d8_a084,
    0xb_ec59_6155_71bb,
    0x1_fc24_5b23_92b6,
    0xe12d_9559_d956,
];
/// R³ mod n.
pub(super) const R3: [u64; 5] = [
    0x9_617f_757e_3b0d,
    0x7_3e9f_d267_76fc,
    0xe_93f2_6238_f08c,
    0x4_d513_b924_6ba5,
    0xa54e_7b43_7be6,
];

#[inline(always)]
fn reduce_columns(mut t: [V; 10]) -> Fe {
    let n_inverse = splat(N_INVERSE);
    for i in 0..5 {
        let q = madd_lo(zero(), t[i], n_inverse);
        t[i] = madd_lo(t[i], q, splat(N[0]));
        t[i + 1] = madd_hi(t[i + 1], q, splat(N[0]));
        t[i + 1] = v::add(t[i + 1], shr::<52>(t[i]));
        for j in 1..5 {
            t[i + j] = madd_lo(t[i + j], q, splat(N[j]));
            t[i + j + 1] = madd_hi(t[i + j + 1], q, splat(N[j]));
        }
    }
    tight(Loose([t[5], t[6], t[7], t[8], t[9]]))
}

#[inline(always)]
pub(super) fn mul(a: &Fe, b: &Fe) -> Fe {
    reduce_columns(columns([zero(); 10], &a.0, &b.0))
}

#[inline(always)]
pub(super) fn sqr(a: &Fe) -> Fe {
    reduce_columns(square_columns([zero(); 10], &a.0))
}

/// n − a, a in [0, n].
#[inline(always)]
pub(super) fn negate(a: &Fe) -> Fe {
    let n = constant(&N);
    let mut d = n.0;
    for (x, y) in d.iter_mut().zip(a.0) {
        *x = v::sub(*x, y);
    }
    tight(Loose(d))
}
