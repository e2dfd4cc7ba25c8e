//! Points of P-256. A multiplication takes three bits of its scalar at a time: it doubles in Jacobian coordinates, where that
//! is cheap, and adds in homogeneous ones, where one formula holds for all points (Renes, Costello, Batina: Complete addition
//! formulas for prime order elliptic curves, 2015, algorithm 4). The formulas are lists of steps over registers: a short
//! loop carries them out, which takes less flash than the formulas as code.
//!
//! The digits of a scalar are odd, so none is zero, and what was summed up is never the point at infinity before the last
//! addition: Jacobian coordinates could not come back from there. See [`Machine::multiply`].

use duet_protocol::identity::PublicKey;
use zeroize::Zeroize as _;

use super::{
    comb::{self, Comb},
    field,
    number::{Number, choose, read, subtract, write},
    order,
};

/// The curve's b, in Montgomery form.
static B: Number = [
    0x29c4_bddf,
    0xd89c_df62,
    0x7884_3090,
    0xacf0_05cd,
    0xf721_2ed6,
    0xe5a2_20ab,
    0x0487_4834,
    0xdc30_061d,
];
/// x and y, in Montgomery form or not, as is said.
pub(super) type Affine = [Number; 2];

/// What a step does with its registers.
#[derive(Clone, Copy)]
enum Do {
    Add,
    Sub,
    Mul,
}
use Do::{Add, Mul, Sub};

/// Registers: two points, what is between, the multiples of a point, and the scalar.
const X1: usize = 0;
const Y1: usize = 1;
const Z1: usize = 2;
const X2: usize = 3;
const Y2: usize = 4;
const Z2: usize = 5;
const T0: usize = 6;
const T1: usize = 7;
const T2: usize = 8;
const T3: usize = 9;
const T4: usize = 10;
const TABLE: usize = 11;
const SCALAR: usize = TABLE + 3 * 4;
const REGISTERS: usize = SCALAR + 1;
/// b is read where it lies in flash.
const B_: usize = 31;
/// The paper's names for the result of a sum: in the place of what is no longer needed then.
const X3: usize = Y2;
const Y3: usize = X2;
const Z3: usize = Z2;

type Step = (Do, usize, usize, usize);

/// The sum of two points; the second one's registers are used up.
const SUM: [Step; 43] = [
    (Mul, T0, X1, X2),
    (Mul, T1, Y1, Y2),
    (Mul, T2, Z1, Z2),
    (Add, T3, X1, Y1),
    (Add, T4, X2, Y2),
    (Mul, T3, T3, T4),
    (Add, T4, T0, T1),
    (Sub, T3, T3, T4),
    (Add, T4, Y1, Z1),
    (Add, X3, Y2, Z2),
    (Mul, T4, T4, X3),
    (Add, X3, T1, T2),
    (Sub, T4, T4, X3),
    (Add, X3, X1, Z1),
    (Add, Y3, X2, Z2),
    (Mul, X3, X3, Y3),
    (Add, Y3, T0, T2),
    (Sub, Y3, X3, Y3),
    (Mul, Z3, B_, T2),
    (Sub, X3, Y3, Z3),
    (Add, Z3, X3, X3),
    (Add, X3, X3, Z3),
    (Sub, Z3, T1, X3),
    (Add, X3, T1, X3),
    (Mul, Y3, B_, Y3),
    (Add, T1, T2, T2),
    (Add, T2, T1, T2),
    (Sub, Y3, Y3, T2),
    (Sub, Y3, Y3, T0),
    (Add, T1, Y3, Y3),
    (Add, Y3, T1, Y3),
    (Add, T1, T0, T0),
    (Add, T0, T1, T0),
    (Sub, T0, T0, T2),
    (Mul, T1, T4, Y3),
    (Mul, T2, T0, Y3),
    (Mul, Y3, X3, Z3),
    (Add, Y1, Y3, T2),
    (Mul, X3, T3, X3),
    (Sub, X1, X3, T1),
    (Mul, Z3, T4, Z3),
    (Mul, T1, T3, T0),
    (Add, Z1, Z3, T1),
];
/// Twice a point in Jacobian coordinates: x is X/Z², y is Y/Z³.
const DOUBLE: [Step; 20] = [
    (Mul, T0, Z1, Z1),
    (Mul, T1, Y1, Y1),
    (Add, T1, T1, T1),
    (Mul, T2, X1, T1),
    (Add, T2, T2, T2),
    (Sub, T3, X1, T0),
    (Add, T4, X1, T0),
    (Mul, T3, T3, T4),
    (Add, T4, T3, T3),
    (Add, T4, T4, T3),
    (Mul, Z1, Y1, Z1),
    (Add, Z1, Z1, Z1),
    (Mul, X1, T4, T4),
    (Add, T0, T2, T2),
    (Sub, X1, X1, T0),
    (Sub, T2, T2, X1),
    (Mul, T2, T2, T4),
    (Mul, T1, T1, T1),
    (Add, T1, T1, T1),
    (Sub, Y1, T2, T1),
];
/// From x = X/Z, y = Y/Z to Jacobian coordinates, and back.
const INTO_JACOBIAN: [Step; 3] = [(Mul, X1, X1, Z1), (Mul, T0, Z1, Z1), (Mul, Y1, Y1, T0)];
const OUT_OF_JACOBIAN: [Step; 3] = [(Mul, X1, X1, Z1), (Mul, T0, Z1, Z1), (Mul, Z1, T0, Z1)];

/// Steps in four bytes each.
const fn packed<const N: usize>(steps: &[Step; N]) -> [[u8; 4]; N] {
    let mut out = [[0; 4]; N];
    let mut at = 0;
    while at < N {
        let (what, to, a, b) = steps[at];
        let [to, ..] = to.to_le_bytes();
        let [a, ..] = a.to_le_bytes();
        let [b, ..] = b.to_le_bytes();
        out[at] = [what as u8, to, a, b];
        at += 1;
    }
    out
}

static SUM_STEPS: [[u8; 4]; 43] = packed(&SUM);
static DOUBLE_STEPS: [[u8; 4]; 20] = packed(&DOUBLE);
static INTO_STEPS: [[u8; 4]; 3] = packed(&INTO_JACOBIAN);
static OUT_STEPS: [[u8; 4]; 3] = packed(&OUT_OF_JACOBIAN);

type Registers = [Number; REGISTERS];

/// All ones where both are the same small number, else 0.
fn equal(a: u32, b: u32) -> u32 {
    let differ = a ^ b;
    0u32.wrapping_sub((differ.wrapping_sub(1) & !differ) >> 31)
}

/// The registers of a computation; overwritten in the end. They are borrowed, since one that owned them would be moved, and
/// leave a copy.
struct Machine<'r>(&'r mut Registers);

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl Machine<'_> {
    /// Puts the first point into the table.
    fn keep(&mut self, number: usize) {
        let (head, table) = self.0.split_at_mut(TABLE);
        table[3 * number..3 * number + 3].copy_from_slice(&head[X1..=Z1]);
    }

    /// Makes a point of the table the first or the second one.
    fn recall(&mut self, number: usize, to: usize) {
        let (head, table) = self.0.split_at_mut(TABLE);
        head[to..to + 3].copy_from_slice(&table[3 * number..3 * number + 3]);
    }

    /// A point with coordinates in Montgomery form.
    fn put(&mut self, to: usize, [x, y]: &Affine) {
        self.0[to] = *x;
        self.0[to + 1] = *y;
        self.0[to + 2] = field::ONE;
    }

    /// Carries out a formula.
    #[inline(never)]
    fn run(&mut self, steps: &[[u8; 4]]) {
        for [what, to, a, b] in steps {
            let [a, b] = [a, b].map(|at| self.0.get(usize::from(*at)).unwrap_or(&B));
            let made = match what {
                0 => field::add(a, b),
                1 => field::sub(a, b),
                _ => field::mul(a, b),
            };
            if let Some(to) = self.0.get_mut(usize::from(*to)) {
                *to = made;
            }
        }
    }

    /// Doubles the first point so often.
    fn double(&mut self, times: usize) {
        self.run(&INTO_STEPS);
        (0..times).for_each(|_| self.run(&DOUBLE_STEPS));
        self.run(&OUT_STEPS);
    }

    /// Adds the second point to the first.
    fn add(&mut self) {
        self.run(&SUM_STEPS);
    }

    /// The first point becomes its product with a scalar; the scalar is 32 bytes, the highest first.
    ///
    /// An odd k below 2²⁵⁶ is 2·B − 2²⁵⁸ + 1 with B = (k − 1)/2 + 2²⁵⁷. The 86 digits of three bits of B, each doubled and
    /// less 7, are thus digits of k to the base 8, and all odd; the highest one is 1. For an even k, n − k is taken, and the
    /// result negated.
    fn multiply(&mut self, scalar: &[u8; 32]) {
        let even = self.take(scalar);
        // One, three, five and seven times the point. Twice the point lies where seven times will.
        self.keep(0);
        self.double(1);
        self.keep(3);
        self.recall(0, X1);
        for number in 1..4 {
            self.recall(3, X2);
            self.add();
            self.keep(number);
        }
        self.recall(0, X1);
        for place in (0..85).rev() {
            self.double(3);
            let bit = |at: usize| self.0[SCALAR][at / 32] >> (at % 32) & 1;
            let digit = (1..4).rev().fold(0, |digit, at| digit << 1 | bit(3 * place + at));
            self.select(digit);
            self.add();
        }
        field::negate_if(even, &mut self.0[Y1]);
    }

    /// The first point becomes the product of a comb's point with a scalar.
    ///
    /// An odd k below 2²⁵⁶ is 2·B − 2²⁵⁶ + 1 with B = (k − 1)/2 + 2²⁵⁵: the sum of 2^j for each bit j of B that is 1, less
    /// that of the others. Column i of the comb has the bits i, i + 64, i + 128 and i + 192; by the last one's sign it is one
    /// of eight multiples or its negative. What was summed up before the last column is below n, and not zero.
    fn multiply_known(&mut self, scalar: &[u8; 32], comb: &Comb) {
        let even = self.take(scalar);
        for column in (0..64).rev() {
            // Bit j of B is bit j + 1 of k, but for the highest, which is 1.
            let bit = |tooth: usize| {
                let at = column + 64 * tooth + 1;
                self.0[SCALAR].get(at / 32).map_or(1, |word| word >> (at % 32) & 1)
            };
            let digit = (0..4).rev().fold(0, |digit, tooth| digit << 1 | bit(tooth));
            // All ones where the column is taken off.
            let negative = (digit >> 3).wrapping_sub(1);
            let wanted = (digit ^ negative) & 7;
            for (number, point) in (0u32..).zip(comb) {
                let same = equal(number, wanted);
                choose(same, &mut self.0[X2], &point[0]);
                choose(same, &mut self.0[Y2], &point[1]);
            }
            field::negate_if(negative, &mut self.0[Y2]);
            self.0[Z2] = field::ONE;
            if column == 63 {
                let (first, second) = self.0.split_at_mut(X2);
                first[X1..=Z1].copy_from_slice(&second[..3]);
            } else {
                self.double(1);
                self.add();
            }
        }
        field::negate_if(even, &mut self.0[Y1]);
    }

    /// Keeps a scalar, 32 bytes, the highest first, or n less it, whichever is odd; all ones where it is the second.
    fn take(&mut self, scalar: &[u8; 32]) -> u32 {
        let k = &mut self.0[SCALAR];
        *k = read(scalar);
        let even = (k[0] & 1).wrapping_sub(1);
        let (mut other, _) = subtract(&order::PRIME, k);
        choose(even, k, &other);
        other.zeroize();
        even
    }

    /// The second point becomes the multiple for three bits; all multiples are looked at, whichever it is.
    fn select(&mut self, digit: u32) {
        // All ones for the digits −7, −5, −3, −1.
        let negative = (digit >> 2).wrapping_sub(1);
        let wanted = (digit ^ negative) & 3;
        let (head, table) = self.0.split_at_mut(TABLE);
        for (number, point) in (0u32..).zip(table.chunks_exact(3)) {
            let same = equal(number, wanted);
            for (to, from) in head[X2..=Z2].iter_mut().zip(point) {
                choose(same, to, from);
            }
        }
        field::negate_if(negative, &mut head[Y2]);
    }

    /// The first point's coordinates, no longer in Montgomery form; both are 0 for the point at infinity.
    fn affine(&self) -> Affine {
        let inverse = field::invert(&self.0[Z1]);
        [X1, Y1].map(|at| field::leave(&field::mul(&self.0[at], &inverse)))
    }
}

/// scalar · point: both coordinates of the product, not in Montgomery form.
#[inline(never)]
pub(super) fn multiply(scalar: &[u8; 32], point: &Affine) -> Affine {
    let mut registers = [[0; 8]; REGISTERS];
    let mut machine = Machine(&mut registers);
    machine.put(X1, point);
    machine.multiply(scalar);
    machine.affine()
}

/// The sum of two points whose coordinates are not in Montgomery form, as [`multiply`] gives them.
pub(super) fn sum(a: &Affine, b: &Affine) -> Affine {
    let mut registers = [[0; 8]; REGISTERS];
    let mut machine = Machine(&mut registers);
    machine.put(X1, &a.map(|it| field::enter(&it)));
    machine.put(X2, &b.map(|it| field::enter(&it)));
    machine.add();
    machine.affine()
}

/// The product of a comb's point with a scalar: both coordinates, not in Montgomery form.
#[inline(never)]
pub(super) fn multiply_known(scalar: &[u8; 32], comb: &Comb) -> Affine {
    let mut registers = [[0; 8]; REGISTERS];
    let mut machine = Machine(&mut registers);
    machine.multiply_known(scalar, comb);
    machine.affine()
}

/// The product of the generator with a scalar.
pub(super) fn multiply_generator(scalar: &[u8; 32]) -> Affine {
    multiply_known(scalar, &comb::GENERATOR)
}

/// A point's comb; the point has its coordinates in Montgomery form.
pub(super) fn comb(point: &Affine) -> Comb {
    let mut registers = [[0; 8]; REGISTERS];
    let mut teeth = [*point; 4];
    for tooth in 1..4 {
        let mut machine = Machine(&mut registers);
        machine.put(X1, &teeth[tooth - 1]);
        machine.double(64);
        teeth[tooth] = machine.affine().map(|it| field::enter(&it));
    }
    core::array::from_fn(|number| {
        let mut machine = Machine(&mut registers);
        machine.put(X1, &teeth[3]);
        for (tooth, mut part) in teeth.into_iter().take(3).enumerate() {
            // All ones where the tooth is taken off.
            let off = u32::from(number >> tooth & 1 == 0).wrapping_neg();
            field::negate_if(off, &mut part[1]);
            machine.put(X2, &part);
            machine.add();
        }
        machine.affine().map(|it| field::enter(&it))
    })
}

/// Whether a comb may be used for a point, both in Montgomery form: its entries are on the curve, and in each pair the second
/// is the first and twice the point. Only the point's own comb and those made on purpose have that: one of another key and
/// one that was damaged in flash have not.
#[inline(never)]
pub(super) fn belongs(comb: &Comb, point: &Affine) -> bool {
    let mut registers = [[0; 8]; REGISTERS];
    let mut machine = Machine(&mut registers);
    machine.put(X1, point);
    machine.double(1);
    machine.keep(0);
    comb.iter().all(is_on_curve)
        && comb.chunks_exact(2).all(|pair| {
            machine.put(X1, &pair[0]);
            machine.recall(0, X2);
            machine.add();
            [X1, Y1]
                .iter()
                .zip(&pair[1])
                .all(|(at, wanted)| machine.0[*at] == field::mul(wanted, &machine.0[Z1]))
        })
}

/// x³ − 3x + b.
fn right_side(x: &Number) -> Number {
    let cube = field::mul(&field::mul(x, x), x);
    let thrice = field::add(&field::add(x, x), x);
    field::add(&field::sub(&cube, &thrice), &B)
}

/// Whether a point with these coordinates, in Montgomery form, is there.
fn is_on_curve([x, y]: &Affine) -> bool {
    field::mul(y, y) == right_side(x)
}

/// The point with these coordinates, in Montgomery form; `None` where there is none.
pub(super) fn find(key: &PublicKey) -> Option<Affine> {
    let (x, y) = (read(&key.x()), read(key.0.last_chunk()?));
    if key.0[0] != 4 || !field::holds(&x) || !field::holds(&y) {
        return None;
    }
    let point = [x, y].map(|it| field::enter(&it));
    is_on_curve(&point).then_some(point)
}

/// The point with this x and even y, in Montgomery form; `None` where there is none (R18).
pub(super) fn lift(x: &[u8; 32]) -> Option<Affine> {
    let x = read(x);
    if !field::holds(&x) {
        return None;
    }
    let x = field::enter(&x);
    let square = right_side(&x);
    let mut y = field::root(&square);
    if field::mul(&y, &y) != square {
        return None;
    }
    // Its parity is no secret.
    if field::leave(&y)[0] & 1 == 1 {
        y = field::sub(&[0; 8], &y);
    }
    Some([x, y])
}

/// A point as a key; its coordinates are not in Montgomery form.
pub(super) fn key([x, y]: &Affine) -> PublicKey {
    PublicKey::from_coordinates(&write(x), &write(y))
}

#[cfg(test)]
mod tests {
    use duet_protocol::ec::SecretScalar;

    use super::*;

    /// The generator, in Montgomery form.
    fn generator() -> Affine {
        let mut one = [0; 32];
        one[31] = 1;
        multiply_generator(&one).map(|it| field::enter(&it))
    }

    /// Where `multiply_generator` is wrong, so is [`generator`]: a product by the other way says what is right.
    #[test]
    fn the_generators_comb_is_the_one_that_is_made_anew() {
        assert_eq!(
            key(&generator().map(|it| field::leave(&it))),
            SecretScalar::from_bytes(&write(&[1, 0, 0, 0, 0, 0, 0, 0])).unwrap().public_key()
        );
        assert_eq!(comb::GENERATOR, comb(&generator()));
    }

    #[test]
    fn a_comb_belongs_to_its_point_alone_and_only_undamaged() {
        let one = generator();
        let two = sum(&one.map(|it| field::leave(&it)), &one.map(|it| field::leave(&it)));
        let two = two.map(|it| field::enter(&it));
        assert!(belongs(&comb::GENERATOR, &one) && belongs(&comb(&two), &two));
        assert!(!belongs(&comb::GENERATOR, &two) && !belongs(&comb(&two), &one));
        assert!(!belongs(&[[[0; 8]; 2]; 8], &one) && !belongs(&[[[u32::MAX; 8]; 2]; 8], &one));
        for at in 0..128 {
            let mut damaged = comb::GENERATOR;
            damaged[at / 16][at / 8 % 2][at % 8] ^= 1 << (at % 32);
            assert!(!belongs(&damaged, &one), "word {at}");
        }
        // Entries off the curve whose sum is what the formula makes of it.
        let mut damaged = comb::GENERATOR;
        damaged[2][1][0] ^= 1;
        let mut registers = [[0; 8]; REGISTERS];
        let mut machine = Machine(&mut registers);
        machine.put(X1, &damaged[2]);
        machine.put(X2, &two);
        machine.add();
        damaged[3] = machine.affine().map(|it| field::enter(&it));
        assert!(!belongs(&damaged, &one));
        // A point of the curve in the place of another, and the negative of one.
        let mut damaged = comb::GENERATOR;
        damaged[3] = damaged[5];
        assert!(!belongs(&damaged, &one));
        for at in 0..8 {
            let mut damaged = comb::GENERATOR;
            field::negate_if(u32::MAX, &mut damaged[at][1]);
            assert!(!belongs(&damaged, &one), "entry {at}");
        }
    }

    /// The edges of both recodings, in which no test with random scalars would come: the point at infinity in the last
    /// addition, and a sum of a point with itself.
    #[test]
    fn products_at_the_edges_of_the_group_are_right() {
        let scalar = |less: u32| {
            let mut number = order::PRIME;
            number[0] -= less;
            write(&number)
        };
        let small = |number: u32| write(&[number, 0, 0, 0, 0, 0, 0, 0]);
        let one = generator().map(|it| field::leave(&it));
        let two = sum(&one, &one);
        type Product = fn(&[u8; 32]) -> Affine;
        let products: [Product; 2] = [multiply_generator, |scalar| multiply(scalar, &generator())];
        for product in products {
            // n · G: what a verification might ask for.
            assert_eq!(product(&scalar(0)), [[0; 8]; 2]);
            assert_eq!(product(&[0; 32]), [[0; 8]; 2]);
            assert_eq!(product(&small(1)), one);
            let minus = product(&scalar(1));
            assert_eq!(one[0], minus[0]);
            assert_eq!(sum(&one, &minus), [[0; 8]; 2]);
            assert_eq!(product(&small(2)), two);
            let mut more = one;
            for times in 2..40 {
                more = sum(&more, &one);
                assert_eq!(more, product(&small(times)));
                assert_eq!(more[0], product(&scalar(times))[0]);
            }
        }
    }
}
