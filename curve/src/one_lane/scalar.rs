//! Integers modulo the group order n in four 64-bit limbs, Montgomery form with R = 2²⁵⁶.

use super::field::{Limbs, reduce_once};

pub(super) use crate::order::N;

/// −n⁻¹ mod 2⁶⁴.
const N_INVERSE: u64 = 0xccd1_c8aa_ee00_bc4f;
/// R mod n.
pub(super) const ONE: Limbs =
    [0x0c46_353d_039c_daaf, 0x4319_0552_58e8_617b, 0, 0x0000_0000_ffff_ffff];
/// R² mod n.
pub(super) const R2: Limbs =
    [0x8324_4c95_be79_eea2, 0x4699_799c_49bd_6fa6, 0x2845_b239_2b6b_ec59, 0x66e1_2d94_f3d9_5620];

/// a·b/R mod n, reduced; one of the two must be below n.
#[inline(always)]
pub(super) fn mul(a: &Limbs, b: &Limbs) -> Limbs {
    let mut t = [0u64; 5];
    for &digit in b {
        let (u0, c) = a[0].carrying_mul_add(digit, t[0], 0);
        let (u1, c) = a[1].carrying_mul_add(digit, t[1], c);
        let (u2, c) = a[2].carrying_mul_add(digit, t[2], c);
        let (u3, c) = a[3].carrying_mul_add(digit, t[3], c);
        let (u4, top) = t[4].carrying_add(c, false);
        let q = u0.wrapping_mul(N_INVERSE);
        let (_, c) = N[0].carrying_mul_add(q, u0, 0);
        let (t0, c) = N[1].carrying_mul_add(q, u1, c);
        let (t1, c) = N[2].carrying_mul_add(q, u2, c);
        let (t2, c) = N[3].carrying_mul_add(q, u3, c);
        let (t3, c) = u4.carrying_add(c, false);
        t = [t0, t1, t2, t3, u64::from(top) + u64::from(c)];
    }
    reduce_once(&[t[0], t[1], t[2], t[3]], t[4], &N)
}

/// a + b mod n, reduced, for a, b < 2²⁵⁶.
#[inline(always)]
pub(super) fn add(a: &Limbs, b: &Limbs) -> Limbs {
    // Reduced addends (2²⁵⁶ < 2n), so that one more subtraction suffices.
    let a = reduce_once(a, 0, &N);
    let b = reduce_once(b, 0, &N);
    let (x0, c) = a[0].carrying_add(b[0], false);
    let (x1, c) = a[1].carrying_add(b[1], c);
    let (x2, c) = a[2].carrying_add(b[2], c);
    let (x3, c) = a[3].carrying_add(b[3], c);
    reduce_once(&[x0, x1, x2, x3], u64::from(c), &N)
}

/// n − a, for a ≤ n.
#[inline(always)]
pub(super) fn negate(a: &Limbs) -> Limbs {
    let (x0, c) = N[0].borrowing_sub(a[0], false);
    let (x1, c) = N[1].borrowing_sub(a[1], c);
    let (x2, c) = N[2].borrowing_sub(a[2], c);
    let (x3, _) = N[3].borrowing_sub(a[3], c);
    [x0, x1, x2, x3]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants() {
        assert_eq!(N[0].wrapping_mul(N_INVERSE), u64::MAX);
        assert_eq!(mul(&R2, &[1, 0, 0, 0]), ONE);
        assert_eq!(mul(&ONE, &[1, 0, 0, 0]), [1, 0, 0, 0]);
        assert_eq!(negate(&negate(&R2)), R2);
    }
}
