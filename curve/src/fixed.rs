//! Multiples of the generator: fixed windows of signed odd digits, no doublings.
//!
//! Window i of width w holds 1, 3, …, 2^w − 1 times 2^(w·i)·G.

use crate::comb::Digits;
use crate::lanes::{Lanes, MAX_WIDTH, Words};
use crate::point::{
    Affine, Entry, Point, add_last, add_mixed, double, double_times, normalise, point_of,
};
use crate::table::Row;

/// Digits a window of the constant-time table.
pub(crate) const WIDTH: usize = 7;
/// Entries a window of the constant-time table.
pub(crate) const ENTRIES: usize = 1 << (WIDTH - 1);
/// Windows of the constant-time table.
pub(crate) const WINDOWS: usize = windows(WIDTH);

/// How many windows of `w` digits hold a scalar.
pub(crate) const fn windows(w: usize) -> usize {
    256usize.div_ceil(w)
}

const GX: [u64; 4] =
    [0xf4a1_3945_d898_c296, 0x7703_7d81_2deb_33a0, 0xf8bc_e6e5_63a4_40f2, 0x6b17_d1f2_e12c_4247];
const GY: [u64; 4] =
    [0xcbb6_4068_37bf_51f5, 0x2bce_3357_6b31_5ece, 0x8ee7_eb4a_7c0f_9e16, 0x4fe3_42e2_fe1a_7f9b];

/// The generator in every lane.
pub(crate) fn generator<L: Lanes>(lanes: L) -> Affine<L> {
    lanes.call(
        #[inline(always)]
        || {
            let words =
                |x: &[u64; 4]| [L::splat(x[0]), L::splat(x[1]), L::splat(x[2]), L::splat(x[3])];
            Affine::from_words(&words(&GX), &words(&GY))
        },
    )
}

/// Eight words to rows, out of line.
pub(crate) fn rows<L: Lanes>(lanes: L, entry: &Entry<L>) -> [Row; MAX_WIDTH] {
    lanes.call(
        #[inline(always)]
        || L::store_rows(entry),
    )
}

/// The table of G for windows of `w` digits, window by window, 2^(w−1) rows each.
pub(crate) fn window_rows<L: Lanes>(lanes: L, w: usize) -> Vec<Row> {
    let (count, entries) = (windows(w), 1usize << (w - 1));
    let mut bases = Vec::with_capacity(count);
    let mut base = point_of(lanes, &generator(lanes));
    for _ in 0..count {
        bases.push(base);
        base = double_times(lanes, &base, w);
    }
    let mut affine = Vec::with_capacity(count);
    normalise(lanes, &bases, 1, &mut affine);
    let bases: Vec<Row> = affine.iter().map(|e| rows(lanes, e)[0]).collect();

    let mut out = vec![Row([0; 8]); count * entries];
    for (group, chunk) in bases.chunks(L::WIDTH).enumerate() {
        let mut refs = [&chunk[0]; MAX_WIDTH];
        for (r, row) in refs.iter_mut().zip(chunk) {
            *r = row;
        }
        let base = load_affine(lanes, &refs);
        let twice = lanes.call(
            #[inline(always)]
            || double(&base.to_point()),
        );
        let mut step = Vec::with_capacity(1);
        normalise(lanes, &[twice], 1, &mut step);
        let mut odd = Vec::with_capacity(entries);
        odd.push(point_of(lanes, &base));
        lanes.call(
            #[inline(always)]
            || {
                let step = Affine::from_entry(&step[0]);
                let mut p = odd[0];
                for _ in 1..entries {
                    p = add_mixed(&p, &step, 0);
                    odd.push(p);
                }
            },
        );
        let mut affine = Vec::with_capacity(entries);
        normalise(lanes, &odd, 1, &mut affine);
        for (j, entry) in affine.iter().enumerate() {
            let rows = rows(lanes, entry);
            for (lane, row) in rows.iter().enumerate().take(chunk.len()) {
                out[(group * L::WIDTH + lane) * entries + j] = *row;
            }
        }
    }
    out
}

/// One affine point a lane.
pub(crate) fn load_affine<L: Lanes>(lanes: L, rows: &[&Row; MAX_WIDTH]) -> Affine<L> {
    lanes.call(
        #[inline(always)]
        || Affine::from_entry(&L::load_rows(rows)),
    )
}

/// k·G in constant time, for canonical scalars other than 0.
pub(crate) fn mul<L: Lanes>(lanes: L, table: &L::SharedTable, scalar: &Words<L>) -> Point<L> {
    lanes.call(
        #[inline(always)]
        || {
            let digits = Digits::<L>::new(scalar, WINDOWS * WIDTH);
            let lookup = |i: usize| {
                let (index, negate) = digits.window(WIDTH, i);
                let (x, y) = L::shared_lookup(table, i, index);
                (Affine::<L> { x, y }, negate)
            };
            let (q, negate) = lookup(0);
            let mut acc = q.to_point_signed(negate);
            for i in 1..WINDOWS - 1 {
                let (q, negate) = lookup(i);
                acc = add_mixed(&acc, &q, negate);
            }
            // The last window can meet its own digit's multiple: see `MATHS.md`.
            let (q, negate) = lookup(WINDOWS - 1);
            add_last(lanes, &acc, &q, negate)
        },
    )
}
