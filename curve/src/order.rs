//! The group order n, and 256-bit integers as bytes and words: what the public types and every
//! backend share.

/// n, four 64-bit limbs, least significant first.
pub(crate) const N: [u64; 4] =
    [0xf3b9_cac2_fc63_2551, 0xbce6_faad_a717_9e84, 0xffff_ffff_ffff_ffff, 0xffff_ffff_0000_0000];
/// p − n.
pub(crate) const P_MINUS_N: [u64; 4] = [0x0c46_353d_039c_daae, 0x4319_0553_58e8_617b, 0, 0];

/// Big-endian bytes to limbs.
#[inline(always)]
pub(crate) fn limbs(bytes: &[u8; 32]) -> [u64; 4] {
    let mut out = [0; 4];
    for (limb, chunk) in out.iter_mut().rev().zip(bytes.as_chunks::<8>().0) {
        *limb = u64::from_be_bytes(*chunk);
    }
    out
}

/// Limbs to big-endian bytes.
#[inline(always)]
pub(crate) fn bytes(limbs: &[u64; 4]) -> [u8; 32] {
    let mut out = [0; 32];
    for (limb, chunk) in limbs.iter().rev().zip(out.as_chunks_mut::<8>().0) {
        *chunk = limb.to_be_bytes();
    }
    out
}

/// a < b, without a branch.
#[inline(always)]
pub(crate) fn less(a: &[u64; 4], b: &[u64; 4]) -> bool {
    let (_, c) = a[0].borrowing_sub(b[0], false);
    let (_, c) = a[1].borrowing_sub(b[1], c);
    let (_, c) = a[2].borrowing_sub(b[2], c);
    let (_, c) = a[3].borrowing_sub(b[3], c);
    c
}

/// 1 ≤ a < n.
#[inline(always)]
pub(crate) fn is_scalar(a: &[u64; 4]) -> bool {
    less(a, &N) & (a[0] | a[1] | a[2] | a[3] != 0)
}

/// a mod n.
pub(crate) fn reduce(a: &[u64; 4]) -> [u64; 4] {
    let (d0, c) = a[0].borrowing_sub(N[0], false);
    let (d1, c) = a[1].borrowing_sub(N[1], c);
    let (d2, c) = a[2].borrowing_sub(N[2], c);
    let (d3, c) = a[3].borrowing_sub(N[3], c);
    if c { *a } else { [d0, d1, d2, d3] }
}

/// a + b, wrapping at 2²⁵⁶.
pub(crate) fn wrapping_add(a: &[u64; 4], b: &[u64; 4]) -> [u64; 4] {
    let (x0, c) = a[0].carrying_add(b[0], false);
    let (x1, c) = a[1].carrying_add(b[1], c);
    let (x2, c) = a[2].carrying_add(b[2], c);
    let (x3, _) = a[3].carrying_add(b[3], c);
    [x0, x1, x2, x3]
}
