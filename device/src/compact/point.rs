//! Points of P-256, with one formula for every sum (Renes, Costello, Batina: Complete addition formulas for prime order
//! elliptic curves, 2015, algorithms 4 and 6). The formulas are lists of steps over sixteen registers: a short loop
//! carries them out, which takes less flash than either formula as code.

use duet_protocol::identity::PublicKey;
use zeroize::Zeroize as _;

use super::modulus::{FIELD, Number, choose, read, write};

/// The curve's b, and its generator, in Montgomery form.
const B: Number = [
    0x29c4_bddf,
    0xd89c_df62,
    0x7884_3090,
    0xacf0_05cd,
    0xf721_2ed6,
    0xe5a2_20ab,
    0x0487_4834,
    0xdc30_061d,
];
const GENERATOR: [Number; 2] = [
    [
        0x18a9_143c,
        0x79e7_30d4,
        0x5fed_b601,
        0x75ba_95fc,
        0x7762_2510,
        0x79fb_732b,
        0xa537_55c6,
        0x1890_5f76,
    ],
    [
        0xce95_560a,
        0xddf2_5357,
        0xba19_e45c,
        0x8b4a_b8e4,
        0xdd21_f325,
        0xd2e8_8688,
        0x2588_5d85,
        0x8571_ff18,
    ],
];
/// (p + 1) / 4: a power of this exponent is a square root where there is one.
const ROOT: Number = [0, 0, 0x4000_0000, 0, 0, 0x4000_0000, 0xc000_0000, 0x3fff_ffff];

/// X, Y and Z in Montgomery form: x is X/Z, y is Y/Z.
pub(super) type Point = [Number; 3];

const NOWHERE: Point = [[0; 8], FIELD.one, [0; 8]];

/// What a step does with its registers.
#[derive(Clone, Copy)]
enum Do {
    Add,
    Sub,
    Mul,
}
use Do::{Add, Mul, Sub};

/// Registers: two points, b, what is between, and the result, with the paper's names.
const X1: usize = 0;
const Y1: usize = 1;
const Z1: usize = 2;
const X2: usize = 3;
const Y2: usize = 4;
const Z2: usize = 5;
const B_: usize = 6;
const T0: usize = 7;
const T1: usize = 8;
const T2: usize = 9;
const T3: usize = 10;
const T4: usize = 11;
const X3: usize = 12;
const Y3: usize = 13;
const Z3: usize = 14;

type Step = (Do, usize, usize, usize);

/// As the paper writes them.
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
    (Add, Y3, Y3, T2),
    (Mul, X3, T3, X3),
    (Sub, X3, X3, T1),
    (Mul, Z3, T4, Z3),
    (Mul, T1, T3, T0),
    (Add, Z3, Z3, T1),
];
const DOUBLE: [Step; 34] = [
    (Mul, T0, X1, X1),
    (Mul, T1, Y1, Y1),
    (Mul, T2, Z1, Z1),
    (Mul, T3, X1, Y1),
    (Add, T3, T3, T3),
    (Mul, Z3, X1, Z1),
    (Add, Z3, Z3, Z3),
    (Mul, Y3, B_, T2),
    (Sub, Y3, Y3, Z3),
    (Add, X3, Y3, Y3),
    (Add, Y3, X3, Y3),
    (Sub, X3, T1, Y3),
    (Add, Y3, T1, Y3),
    (Mul, Y3, X3, Y3),
    (Mul, X3, X3, T3),
    (Add, T3, T2, T2),
    (Add, T2, T2, T3),
    (Mul, Z3, B_, Z3),
    (Sub, Z3, Z3, T2),
    (Sub, Z3, Z3, T0),
    (Add, T3, Z3, Z3),
    (Add, Z3, Z3, T3),
    (Add, T3, T0, T0),
    (Add, T0, T3, T0),
    (Sub, T0, T0, T2),
    (Mul, T0, T0, Z3),
    (Add, Y3, Y3, T0),
    (Mul, T0, Y1, Z1),
    (Add, T0, T0, T0),
    (Mul, Z3, T0, Z3),
    (Sub, X3, X3, Z3),
    (Mul, Z3, T0, T1),
    (Add, Z3, Z3, Z3),
    (Add, Z3, Z3, Z3),
];

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
static DOUBLE_STEPS: [[u8; 4]; 34] = packed(&DOUBLE);

/// The registers of a computation; overwritten in the end.
struct Machine([Number; 16]);

impl Drop for Machine {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl Machine {
    fn new() -> Self {
        let mut registers = [[0; 8]; 16];
        registers[..3].copy_from_slice(&NOWHERE);
        registers[B_] = B;
        Self(registers)
    }

    /// Carries out a formula; its result takes the first point's place.
    #[inline(never)]
    fn run(&mut self, steps: &[[u8; 4]]) {
        let registers = &mut self.0;
        for [what, to, a, b] in steps {
            // There are sixteen.
            let [to, a, b] = [to, a, b].map(|register| usize::from(register & 15));
            let (a, b) = (&registers[a], &registers[b]);
            registers[to] = match what {
                0 => FIELD.add(a, b),
                1 => FIELD.sub(a, b),
                _ => FIELD.mul(a, b),
            };
        }
        registers.copy_within(X3..=Z3, X1);
    }

    fn add(&mut self, other: &Point) {
        self.0[X2..=Z2].copy_from_slice(other);
        self.run(&SUM_STEPS);
    }

    fn double(&mut self) {
        self.run(&DOUBLE_STEPS);
    }

    fn point(&self) -> Point {
        [self.0[X1], self.0[Y1], self.0[Z1]]
    }
}

/// Multiples of a point, from none to three times; overwritten in the end.
struct Table([Point; 4]);

impl Drop for Table {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl Table {
    /// The one of this number; all are looked at, whichever it is.
    fn select(&self, wanted: u32) -> Point {
        let mut out = NOWHERE;
        for (number, point) in (0..).zip(&self.0) {
            let differ: u32 = number ^ wanted;
            // All ones where nothing differs.
            let mask = (differ.wrapping_sub(1) & !differ) >> 31;
            let mask = 0u32.wrapping_sub(mask);
            for (to, from) in out.iter_mut().zip(point) {
                *to = choose(mask, from, to);
            }
        }
        out
    }
}

/// scalar · point; the scalar is 32 bytes, the highest first.
pub(super) fn multiply(scalar: &[u8; 32], point: &Point) -> Point {
    let mut machine = Machine::new();
    let mut table = Table([NOWHERE; 4]);
    for at in 1..4 {
        machine.add(point);
        table.0[at] = machine.point();
    }
    machine.0[..3].copy_from_slice(&NOWHERE);
    // Two bits at a time.
    for byte in scalar {
        for shift in [6, 4, 2, 0] {
            machine.double();
            machine.double();
            machine.add(&table.select(u32::from(byte >> shift & 3)));
        }
    }
    machine.point()
}

/// The sum of two points.
pub(super) fn sum(a: &Point, b: &Point) -> Point {
    let mut machine = Machine::new();
    machine.add(a);
    machine.add(b);
    machine.point()
}

/// The generator.
pub(super) const fn generator() -> Point {
    [GENERATOR[0], GENERATOR[1], FIELD.one]
}

/// Both coordinates, no longer in Montgomery form.
pub(super) fn affine(point: &Point) -> [Number; 2] {
    let inverse = FIELD.invert(&point[2]);
    [point[0], point[1]].map(|it| FIELD.leave(&FIELD.mul(&it, &inverse)))
}

/// x³ − 3x + b.
fn right_side(x: &Number) -> Number {
    let cube = FIELD.mul(&FIELD.mul(x, x), x);
    let thrice = FIELD.add(&FIELD.add(x, x), x);
    FIELD.add(&FIELD.sub(&cube, &thrice), &B)
}

/// The point with these coordinates; `None` where there is none.
pub(super) fn find(key: &PublicKey) -> Option<Point> {
    let (x, y) = (read(&key.x()), read(key.0.last_chunk()?));
    if key.0[0] != 4 || !FIELD.holds(&x) || !FIELD.holds(&y) {
        return None;
    }
    let (x, y) = (FIELD.enter(&x), FIELD.enter(&y));
    (FIELD.mul(&y, &y) == right_side(&x)).then_some([x, y, FIELD.one])
}

/// The point with this x and even y; `None` where there is none (R18).
pub(super) fn lift(x: &[u8; 32]) -> Option<Point> {
    let x = read(x);
    if !FIELD.holds(&x) {
        return None;
    }
    let x = FIELD.enter(&x);
    let square = right_side(&x);
    let mut y = FIELD.power(&square, &ROOT);
    if FIELD.mul(&y, &y) != square {
        return None;
    }
    if FIELD.leave(&y)[0] & 1 == 1 {
        y = FIELD.sub(&[0; 8], &y);
    }
    Some([x, y, FIELD.one])
}

/// The point as a key.
pub(super) fn key(point: &Point) -> PublicKey {
    let [x, y] = affine(point);
    PublicKey::from_coordinates(&write(&x), &write(&y))
}
