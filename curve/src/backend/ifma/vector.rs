//! The AVX-512 instructions the backend uses, under short names.

use core::arch::x86_64::*;

/// Eight 64-bit lanes.
pub(super) type V = __m512i;

/// Wraps intrinsics in safe, always-inlined functions.
macro_rules! vector_ops {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $ty:ty),*) -> $out:ty = $body:expr;)*) => {$(
        $(#[$doc])*
        #[inline(always)]
        pub(super) fn $name($($arg: $ty),*) -> $out {
            // SAFETY: reached only through `Ifma::call` (first invariant of the module's essay),
            // so the CPU has the instruction; it reads and writes registers only.
            unsafe { $body }
        }
    )*};
}

vector_ops! {
    /// All lanes `x`.
    fn splat(x: u64) -> V = _mm512_set1_epi64(x.cast_signed());
    /// All lanes 0.
    fn zero() -> V = _mm512_setzero_si512();
    /// a + low 52 bits of the product of the low 52 bits of b and c.
    fn madd_lo(a: V, b: V, c: V) -> V = _mm512_madd52lo_epu64(a, b, c);
    /// a + high 52 bits of the product of the low 52 bits of b and c.
    fn madd_hi(a: V, b: V, c: V) -> V = _mm512_madd52hi_epu64(a, b, c);
    fn add(a: V, b: V) -> V = _mm512_add_epi64(a, b);
    fn sub(a: V, b: V) -> V = _mm512_sub_epi64(a, b);
    /// −a in the lanes of `mask`, a elsewhere.
    fn neg_if(mask: u8, a: V) -> V = _mm512_mask_sub_epi64(a, mask, zero(), a);
    fn and(a: V, b: V) -> V = _mm512_and_si512(a, b);
    fn or(a: V, b: V) -> V = _mm512_or_si512(a, b);
    fn xor(a: V, b: V) -> V = _mm512_xor_si512(a, b);
    fn shl_var(a: V, n: V) -> V = _mm512_sllv_epi64(a, n);
    fn shr_var(a: V, n: V) -> V = _mm512_srlv_epi64(a, n);
    /// Lanes where a & b is not zero.
    fn test(a: V, b: V) -> u8 = _mm512_test_epi64_mask(a, b);
    /// Lanes where a & b is zero.
    fn test_not(a: V, b: V) -> u8 = _mm512_testn_epi64_mask(a, b);
    fn eq(a: V, b: V) -> u8 = _mm512_cmpeq_epi64_mask(a, b);
    /// Lanes whose top bit is set.
    fn sign(a: V) -> u8 = _mm512_movepi64_mask(a);
    /// b in the lanes of `mask`, a elsewhere.
    fn select(mask: u8, a: V, b: V) -> V = _mm512_mask_blend_epi64(mask, a, b);
    /// Lane i of the result is lane `index` & 15 of the sixteen lanes (a, b).
    fn permute2(a: V, index: V, b: V) -> V = _mm512_permutex2var_epi64(a, index, b);
    /// Lane i of the result is lane `index` & 7 of a.
    fn permute(index: V, a: V) -> V = _mm512_permutexvar_epi64(index, a);
    fn unpack_low(a: V, b: V) -> V = _mm512_unpacklo_epi64(a, b);
    fn unpack_high(a: V, b: V) -> V = _mm512_unpackhi_epi64(a, b);
    /// 128-bit blocks 0 and 2 of a, then of b.
    fn even_blocks(a: V, b: V) -> V = _mm512_shuffle_i64x2::<0x88>(a, b);
    /// 128-bit blocks 1 and 3 of a, then of b.
    fn odd_blocks(a: V, b: V) -> V = _mm512_shuffle_i64x2::<0xdd>(a, b);
}

/// Shifts by a constant.
macro_rules! shifts {
    ($($(#[$doc:meta])* $name:ident($($arg:ident),*) = $op:ident;)*) => {$(
        $(#[$doc])*
        #[inline(always)]
        pub(super) fn $name<const N: u32>($($arg: V),*) -> V {
            // SAFETY: as above.
            unsafe { $op::<N>($($arg),*) }
        }
    )*};
}

shifts! {
    shl(a) = _mm512_slli_epi64;
    /// Logical.
    shr(a) = _mm512_srli_epi64;
    /// Arithmetic.
    sar(a) = _mm512_srai_epi64;
}

/// (high : low) >> N, the low 64 bits.
#[inline(always)]
pub(super) fn shr_pair<const N: i32>(low: V, high: V) -> V {
    // SAFETY: as above.
    unsafe { _mm512_shrdi_epi64::<N>(low, high) }
}

/// Eight words to lanes.
#[inline(always)]
pub(super) fn load(x: &[u64; 8]) -> V {
    // SAFETY: `x` is 64 readable bytes; the load has no alignment requirement.
    unsafe { _mm512_loadu_si512(x.as_ptr().cast()) }
}

/// Lanes to eight words.
#[inline(always)]
pub(super) fn store(v: V) -> [u64; 8] {
    let mut out = [0u64; 8];
    // SAFETY: `out` is 64 writable bytes; the store has no alignment requirement.
    unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), v) };
    out
}

/// Asks for the cache line of `x`.
#[inline(always)]
pub(super) fn prefetch<T>(x: &T) {
    // SAFETY: a prefetch never faults and changes no architectural state.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(core::ptr::from_ref(x).cast()) }
}

/// Eight vectors, transposed: word j of lane i becomes word i of lane j.
#[inline(always)]
pub(super) fn transpose(r: &[V; 8]) -> [V; 8] {
    let mut a = [r[0]; 8];
    for i in 0..4 {
        a[2 * i] = unpack_low(r[2 * i], r[2 * i + 1]);
        a[2 * i + 1] = unpack_high(r[2 * i], r[2 * i + 1]);
    }
    let mut o = [r[0]; 8];
    for p in 0..2 {
        let (x0, x1, x2, x3) = (a[p], a[2 + p], a[4 + p], a[6 + p]);
        let (b0, b1) = (even_blocks(x0, x1), odd_blocks(x0, x1));
        let (b2, b3) = (even_blocks(x2, x3), odd_blocks(x2, x3));
        o[p] = even_blocks(b0, b2);
        o[4 + p] = odd_blocks(b0, b2);
        o[2 + p] = even_blocks(b1, b3);
        o[6 + p] = odd_blocks(b1, b3);
    }
    o
}
