//! Numbers of 256 bits: eight words of 32 bits, the lowest first. Nothing here branches on a value.

/// A number below 2²⁵⁶.
pub(super) type Number = [u32; 8];

/// Reads 32 bytes, the highest first.
pub(super) fn read(bytes: &[u8; 32]) -> Number {
    let mut out = [0; 8];
    for (word, bytes) in out.iter_mut().zip(bytes.rchunks_exact(4)) {
        *word = bytes.iter().fold(0, |word, byte| word << 8 | u32::from(*byte));
    }
    out
}

/// Writes 32 bytes, the highest first.
pub(super) fn write(number: &Number) -> [u8; 32] {
    let mut out = [0; 32];
    for (word, bytes) in number.iter().zip(out.rchunks_exact_mut(4)) {
        bytes.copy_from_slice(&word.to_be_bytes());
    }
    out
}

/// a − b modulo 2²⁵⁶, and all ones where a was less than b, else 0.
#[inline(never)]
pub(super) fn subtract(a: &Number, b: &Number) -> (Number, u32) {
    let (mut out, mut borrow) = ([0; 8], false);
    for ((to, a), b) in out.iter_mut().zip(a).zip(b) {
        (*to, borrow) = a.borrowing_sub(*b, borrow);
    }
    (out, 0u32.wrapping_sub(u32::from(borrow)))
}

/// Takes `a` where the mask is all ones, and leaves what is there where it is 0. What the mask is cannot be told from
/// the time.
pub(super) fn choose(mask: u32, out: &mut Number, a: &Number) {
    let mask = core::hint::black_box(mask);
    for (to, a) in out.iter_mut().zip(a) {
        *to ^= mask & (*to ^ *a);
    }
}

pub(super) fn is_zero(number: &Number) -> bool {
    number.iter().fold(0, |all, word| all | word) == 0
}

/// A power under this multiplication, whose one is `one`; the exponent is no secret.
pub(super) fn power(
    mul: fn(&Number, &Number) -> Number,
    one: &Number,
    base: &Number,
    exponent: &Number,
) -> Number {
    let mut out = *one;
    for word in exponent.iter().rev() {
        for bit in (0..32).rev() {
            out = mul(&out, &out);
            if word >> bit & 1 == 1 {
                out = mul(&out, base);
            }
        }
    }
    out
}
