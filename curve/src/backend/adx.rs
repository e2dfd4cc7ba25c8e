//! Products modulo p with MULX, ADCX and ADOX: what the one-lane backend multiplies with on x86-64 CPUs
//! that have them. Compilers do not form the two carry chains that make them worth having: a product
//! takes half the instructions of the portable one.
//!
//! # Why this is sound
//!
//! `unsafe` has one reason here: assembly (and a prefetch, which cannot do harm). An [`Adx`] value proves that the CPU has the instructions, and
//! generic code is entered with it, as with the proof of `ifma`. The code reads the 32 bytes behind each
//! reference it is given, writes registers only, and has no branch, so its time depends on no operand.

#![allow(unsafe_code)]

use crate::backend::Kind;
use crate::one_lane::{Limbs, Multiply};
use crate::table::Row;
use core::arch::asm;
use core::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};

/// Proof that the CPU has BMI2 and ADX.
#[derive(Clone, Copy)]
pub(crate) struct Adx(());

impl Adx {
    /// Asks the CPU.
    pub(crate) fn detect() -> Option<Self> {
        (is_x86_feature_detected!("bmi2") && is_x86_feature_detected!("adx")).then_some(Self(()))
    }
}

impl From<crate::backend::ifma::Ifma> for Adx {
    /// The detection of the eight-lane backend has asked for these instructions too.
    fn from(_: crate::backend::ifma::Ifma) -> Self {
        Self(())
    }
}

/// One digit of a Montgomery reduction: m = t₀, then (t + m·p) / 2⁶⁴ in t₁ … t₄. The low limb
/// cancels; m·2⁹⁶ and m·p₃·2¹⁹² remain. Leaves the carry out of t₄.
macro_rules! reduce_digit {
    ($t0:literal, $t1:literal, $t2:literal, $t3:literal) => {
        concat!(
            "mov {lo}, ",
            $t0,
            "\n",
            "mov {hi}, ",
            $t0,
            "\n",
            "mov rdx, ",
            $t0,
            "\n",
            "shl {lo}, 32\n",
            "shr {hi}, 32\n",
            "add ",
            $t1,
            ", {lo}\n",
            "mov {lo}, 0xffffffff00000001\n",
            "adc ",
            $t2,
            ", {hi}\n",
            "mulx {hi}, {lo}, {lo}\n",
            "adc ",
            $t3,
            ", {lo}\n",
        )
    };
}

/// t + a·b for one limb of b, where t has five limbs.
macro_rules! row {
    ($b:literal, $t0:literal, $t1:literal, $t2:literal, $t3:literal, $t4:literal, $free:literal) => {
        concat!(
            "mov rdx, [{b} + ",
            $b,
            "]\n",
            "xor ",
            $free,
            ", ",
            $free,
            "\n", // clears both carries
            "mulx {hi}, {lo}, [{a}]\n",
            "adcx ",
            $t0,
            ", {lo}\n",
            "adox ",
            $t1,
            ", {hi}\n",
            "mulx {hi}, {lo}, [{a} + 8]\n",
            "adcx ",
            $t1,
            ", {lo}\n",
            "adox ",
            $t2,
            ", {hi}\n",
            "mulx {hi}, {lo}, [{a} + 16]\n",
            "adcx ",
            $t2,
            ", {lo}\n",
            "adox ",
            $t3,
            ", {hi}\n",
            "mulx {hi}, {lo}, [{a} + 24]\n",
            "adcx ",
            $t3,
            ", {lo}\n",
            "adox ",
            $t4,
            ", {hi}\n",
            "adcx ",
            $t4,
            ", ",
            $free,
            "\n",
        )
    };
}

/// As [`reduce_digit`], with a fifth limb t₄ and the carry out of it in `free`, which is 0 before.
macro_rules! reduce_row {
    ($t0:literal, $t1:literal, $t2:literal, $t3:literal, $t4:literal, $free:literal) => {
        concat!(reduce_digit!($t0, $t1, $t2, $t3), "adc ", $t4, ", {hi}\n", "adc ", $free, ", 0\n",)
    };
}

/// Subtracts p from the five-limb value (t₀ … t₃, top), which is below 2p, unless that is negative.
macro_rules! subtract_p {
    ($t0:literal, $t1:literal, $t2:literal, $t3:literal, $top:literal) => {
        concat!(
            "mov {lo:e}, 0xffffffff\n",
            "mov {hi}, 0xffffffff00000001\n",
            "sub ",
            $t0,
            ", -1\n",
            "sbb ",
            $t1,
            ", {lo}\n",
            "sbb ",
            $t2,
            ", 0\n",
            "sbb ",
            $t3,
            ", {hi}\n",
            "sbb ",
            $top,
            ", 0\n", // all ones where p was too much: then it is added again
            "and {lo}, ",
            $top,
            "\n",
            "and {hi}, ",
            $top,
            "\n",
            "add ",
            $t0,
            ", ",
            $top,
            "\n",
            "adc ",
            $t1,
            ", {lo}\n",
            "adc ",
            $t2,
            ", 0\n",
            "adc ",
            $t3,
            ", {hi}\n",
        )
    };
}

impl Multiply for Adx {
    const KIND: Kind = Kind::Adx;

    #[inline(always)]
    fn mul(a: &Limbs, b: &Limbs) -> Limbs {
        let (t0, t1, t2, t3): (u64, u64, u64, u64);
        // SAFETY: see the module's essay; `a` and `b` are 32 readable bytes each.
        unsafe {
            asm!(
                "mov rdx, [{b}]",
                "mulx {t1}, {t0}, [{a}]",
                "mulx {t2}, {lo}, [{a} + 8]",
                "add {t1}, {lo}",
                "mulx {t3}, {lo}, [{a} + 16]",
                "adc {t2}, {lo}",
                "mulx {t4}, {lo}, [{a} + 24]",
                "adc {t3}, {lo}",
                "adc {t4}, 0",
                "xor {t5:e}, {t5:e}",
                reduce_row!("{t0}", "{t1}", "{t2}", "{t3}", "{t4}", "{t5}"),
                row!("8", "{t1}", "{t2}", "{t3}", "{t4}", "{t5}", "{t0}"),
                reduce_row!("{t1}", "{t2}", "{t3}", "{t4}", "{t5}", "{t0}"),
                row!("16", "{t2}", "{t3}", "{t4}", "{t5}", "{t0}", "{t1}"),
                reduce_row!("{t2}", "{t3}", "{t4}", "{t5}", "{t0}", "{t1}"),
                row!("24", "{t3}", "{t4}", "{t5}", "{t0}", "{t1}", "{t2}"),
                reduce_row!("{t3}", "{t4}", "{t5}", "{t0}", "{t1}", "{t2}"),
                subtract_p!("{t4}", "{t5}", "{t0}", "{t1}", "{t2}"),
                a = in(reg) a.as_ptr(),
                b = in(reg) b.as_ptr(),
                t0 = out(reg) t2,
                t1 = out(reg) t3,
                t2 = out(reg) _,
                t3 = out(reg) _,
                t4 = out(reg) t0,
                t5 = out(reg) t1,
                lo = out(reg) _,
                hi = out(reg) _,
                out("rdx") _,
                options(pure, readonly, nostack),
            );
        }
        [t0, t1, t2, t3]
    }

    #[inline(always)]
    fn prefetch(row: &Row) {
        // SAFETY: a prefetch never faults and changes no architectural state.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(core::ptr::from_ref(row).cast()) }
    }

    #[inline(always)]
    fn sqr(a: &Limbs) -> Limbs {
        let (t0, t1, t2, t3): (u64, u64, u64, u64);
        // SAFETY: see the module's essay; `a` is 32 readable bytes.
        unsafe {
            asm!(
                // Mixed products.
                "mov rdx, [{a}]",
                "mulx {t2}, {t1}, [{a} + 8]",
                "mulx {t3}, {lo}, [{a} + 16]",
                "add {t2}, {lo}",
                "mulx {t4}, {lo}, [{a} + 24]",
                "adc {t3}, {lo}",
                "adc {t4}, 0",
                "mov rdx, [{a} + 8]",
                "mulx {hi}, {lo}, [{a} + 16]",
                "add {t3}, {lo}",
                "adc {t4}, {hi}",
                "mulx {t5}, {lo}, [{a} + 24]",
                "adc {t5}, 0",
                "add {t4}, {lo}",
                "adc {t5}, 0",
                "mov rdx, [{a} + 16]",
                "mulx {t6}, {lo}, [{a} + 24]",
                "add {t5}, {lo}",
                "adc {t6}, 0",
                // Twice that, and the squares: a chain each.
                "xor {t7:e}, {t7:e}",
                "mov rdx, [{a}]",
                "mulx {hi}, {t0}, rdx",
                "adcx {t1}, {t1}",
                "adox {t1}, {hi}",
                "mov rdx, [{a} + 8]",
                "mulx {hi}, {lo}, rdx",
                "adcx {t2}, {t2}",
                "adox {t2}, {lo}",
                "adcx {t3}, {t3}",
                "adox {t3}, {hi}",
                "mov rdx, [{a} + 16]",
                "mulx {hi}, {lo}, rdx",
                "adcx {t4}, {t4}",
                "adox {t4}, {lo}",
                "adcx {t5}, {t5}",
                "adox {t5}, {hi}",
                "mov rdx, [{a} + 24]",
                "mulx {hi}, {lo}, rdx",
                "adcx {t6}, {t6}",
                "adox {t6}, {lo}",
                "adcx {t7}, {t7}",
                "adox {t7}, {hi}",
                // The lower half reduced, and the upper added.
                reduce_digit!("{t0}", "{t1}", "{t2}", "{t3}"),
                "adc {hi}, 0",
                "mov {t0}, {hi}",
                reduce_digit!("{t1}", "{t2}", "{t3}", "{t0}"),
                "adc {hi}, 0",
                "mov {t1}, {hi}",
                reduce_digit!("{t2}", "{t3}", "{t0}", "{t1}"),
                "adc {hi}, 0",
                "mov {t2}, {hi}",
                reduce_digit!("{t3}", "{t0}", "{t1}", "{t2}"),
                "adc {hi}, 0",
                "xor edx, edx",
                "add {t0}, {t4}",
                "adc {t1}, {t5}",
                "adc {t2}, {t6}",
                "adc {hi}, {t7}",
                "mov {t3}, {hi}",
                "adc rdx, 0",
                subtract_p!("{t0}", "{t1}", "{t2}", "{t3}", "rdx"),
                a = in(reg) a.as_ptr(),
                t0 = out(reg) t0,
                t1 = out(reg) t1,
                t2 = out(reg) t2,
                t3 = out(reg) t3,
                t4 = out(reg) _,
                t5 = out(reg) _,
                t6 = out(reg) _,
                t7 = out(reg) _,
                lo = out(reg) _,
                hi = out(reg) _,
                out("rdx") _,
                options(pure, readonly, nostack),
            );
        }
        [t0, t1, t2, t3]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::portable::Plain;
    use crate::one_lane::P;

    /// Limbs that make carries: all combinations of extremes, and scattered ones.
    fn elements() -> Vec<Limbs> {
        let limbs = [0, 1, 0xffff_ffff, 0xffff_ffff_0000_0000, u64::MAX - 1, u64::MAX];
        let mut all = vec![];
        for i in 0..limbs.len().pow(4) {
            let digit = |place: usize| limbs[i / place % limbs.len()];
            all.push([digit(1), digit(6), digit(36), digit(216)]);
        }
        let mut x = 1u64;
        for _ in 0..1000 {
            all.push(core::array::from_fn(|_| {
                x = x.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
                x ^ (x >> 31)
            }));
        }
        for small in 1..10 {
            let mut near = P;
            near[0] -= small;
            all.push(near);
        }
        all.retain(|x| crate::order::less(x, &P));
        all
    }

    #[test]
    fn products_are_the_portable_ones() {
        if Adx::detect().is_none() {
            eprintln!("SKIPPED: this CPU lacks BMI2 or ADX");
            return;
        }
        let elements = elements();
        for (i, a) in elements.iter().enumerate() {
            assert_eq!(Adx::sqr(a), Plain::sqr(a), "{a:x?}");
            for b in elements.iter().skip(i % 7).step_by(7) {
                assert_eq!(Adx::mul(a, b), Plain::mul(a, b), "{a:x?} {b:x?}");
            }
        }
    }
}
