//! Numbers modulo the two primes of P-256, in Montgomery form: eight words of 32 bits, the lowest first. One code for
//! both primes, without tables and without branches on values: little flash, and the same time for every number.

/// A number below 2²⁵⁶.
pub(super) type Number = [u32; 8];

pub(super) struct Modulus {
    /// The prime.
    pub(super) prime: Number,
    /// 2²⁵⁶ modulo the prime: one, in Montgomery form.
    pub(super) one: Number,
    /// 2⁵¹² modulo the prime.
    square: Number,
    /// −1/prime modulo 2³².
    inverse: u32,
}

/// The field's prime.
pub(super) static FIELD: Modulus = Modulus {
    prime: [
        0xffff_ffff,
        0xffff_ffff,
        0xffff_ffff,
        0x0000_0000,
        0x0000_0000,
        0x0000_0000,
        0x0000_0001,
        0xffff_ffff,
    ],
    one: [
        0x0000_0001,
        0x0000_0000,
        0x0000_0000,
        0xffff_ffff,
        0xffff_ffff,
        0xffff_ffff,
        0xffff_fffe,
        0x0000_0000,
    ],
    square: [
        0x0000_0003,
        0x0000_0000,
        0xffff_ffff,
        0xffff_fffb,
        0xffff_fffe,
        0xffff_ffff,
        0xffff_fffd,
        0x0000_0004,
    ],
    inverse: 1,
};

/// The group's order.
pub(super) static ORDER: Modulus = Modulus {
    prime: [
        0xfc63_2551,
        0xf3b9_cac2,
        0xa717_9e84,
        0xbce6_faad,
        0xffff_ffff,
        0xffff_ffff,
        0x0000_0000,
        0xffff_ffff,
    ],
    one: [
        0x039c_daaf,
        0x0c46_353d,
        0x58e8_617b,
        0x4319_0552,
        0x0000_0000,
        0x0000_0000,
        0xffff_ffff,
        0x0000_0000,
    ],
    square: [
        0xbe79_eea2,
        0x8324_4c95,
        0x49bd_6fa6,
        0x4699_799c,
        0x2b6b_ec59,
        0x2845_b239,
        0xf3d9_5620,
        0x66e1_2d94,
    ],
    inverse: 0xee00_bc4f,
};

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
pub(super) fn subtract(a: &Number, b: &Number) -> (Number, u32) {
    let (mut out, mut borrow) = ([0; 8], false);
    for ((to, a), b) in out.iter_mut().zip(a).zip(b) {
        (*to, borrow) = a.borrowing_sub(*b, borrow);
    }
    (out, 0u32.wrapping_sub(u32::from(borrow)))
}

/// a where the mask is all ones, b where it is 0. What the mask is cannot be told from the time.
pub(super) fn choose(mask: u32, a: &Number, b: &Number) -> Number {
    let mask = core::hint::black_box(mask);
    let mut out = *b;
    for (to, a) in out.iter_mut().zip(a) {
        *to ^= mask & (*to ^ *a);
    }
    out
}

pub(super) fn is_zero(number: &Number) -> bool {
    number.iter().fold(0, |all, word| all | word) == 0
}

/// A row of products, written out: a loop takes twice as long, and is hardly shorter. Each word of the sum comes from one
/// that may be higher.
macro_rules! row {
    ($sum:ident, $a:expr, $b:expr, $carry:ident, $($to:literal $from:literal),*) => {
        $(($sum[$to], $carry) = $a[$from].carrying_mul_add($b, $sum[$from], $carry);)*
    };
}

impl Modulus {
    /// The number less the prime, where `high` is a 257th bit or it is not below the prime.
    fn reduce_once(&self, number: &Number, high: u32) -> Number {
        let (less, under) = subtract(number, &self.prime);
        choose(under & high.wrapping_sub(1), number, &less)
    }

    /// A number below 2²⁵⁶, made less than the prime.
    pub(super) fn reduce(&self, number: &Number) -> Number {
        self.reduce_once(number, 0)
    }

    /// Whether a number is less than the prime.
    pub(super) fn holds(&self, number: &Number) -> bool {
        subtract(number, &self.prime).1 != 0
    }

    pub(super) fn add(&self, a: &Number, b: &Number) -> Number {
        let (mut sum, mut carry) = ([0; 8], false);
        for ((to, a), b) in sum.iter_mut().zip(a).zip(b) {
            (*to, carry) = a.carrying_add(*b, carry);
        }
        self.reduce_once(&sum, u32::from(carry))
    }

    pub(super) fn sub(&self, a: &Number, b: &Number) -> Number {
        let (mut out, under) = subtract(a, b);
        let mut carry = false;
        for (to, prime) in out.iter_mut().zip(&self.prime) {
            (*to, carry) = to.carrying_add(*prime & under, carry);
        }
        out
    }

    /// a · b / 2²⁵⁶ (Montgomery, word by word).
    #[inline(never)]
    pub(super) fn mul(&self, a: &Number, b: &Number) -> Number {
        let mut sum = [0; 8];
        let mut high = 0;
        for b in b {
            let mut carry = 0;
            row!(sum, a, *b, carry, 0 0, 1 1, 2 2, 3 3, 4 4, 5 5, 6 6, 7 7);
            let (top, over) = carry.carrying_add(high, false);
            // What makes the lowest word zero.
            let factor = sum[0].wrapping_mul(self.inverse);
            let (_, mut carry) = factor.carrying_mul_add(self.prime[0], sum[0], 0);
            row!(sum, self.prime, factor, carry, 0 1, 1 2, 2 3, 3 4, 4 5, 5 6, 6 7);
            let (word, more) = top.carrying_add(carry, false);
            sum[7] = word;
            high = u32::from(over) + u32::from(more);
        }
        self.reduce_once(&sum, high)
    }

    /// Into Montgomery form.
    pub(super) fn enter(&self, number: &Number) -> Number {
        self.mul(number, &self.square)
    }

    /// Out of Montgomery form.
    pub(super) fn leave(&self, number: &Number) -> Number {
        self.mul(number, &[1, 0, 0, 0, 0, 0, 0, 0])
    }

    /// A power; the exponent is no secret.
    pub(super) fn power(&self, base: &Number, exponent: &Number) -> Number {
        let mut out = self.one;
        for word in exponent.iter().rev() {
            for bit in (0..32).rev() {
                out = self.mul(&out, &out);
                if word >> bit & 1 == 1 {
                    out = self.mul(&out, base);
                }
            }
        }
        out
    }

    /// 1/number, by Fermat; of 0 it is 0.
    pub(super) fn invert(&self, number: &Number) -> Number {
        let (exponent, _) = subtract(&self.prime, &[2, 0, 0, 0, 0, 0, 0, 0]);
        self.power(number, &exponent)
    }
}
