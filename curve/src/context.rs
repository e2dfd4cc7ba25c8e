//! What an engine keeps, for one backend: G's tables and the secret starting point of verification.

use crate::comb::{self, Shape};
use crate::fixed;
use crate::keys::PublicKey;
use crate::lanes::{Lanes, MAX_WIDTH, Words};
use crate::order;
use crate::point::{Affine, double_times, normalise};
use crate::table::{Row, TableSlot, TableWidth};
use std::sync::atomic::AtomicU64;

/// Items handled together: one inversion and one pipeline for all of them.
pub(crate) const CHUNK: usize = 64;

/// Digits a window of verification's table of G: 26 windows of 32 KiB.
pub(crate) const G_WIDTH: usize = 10;
/// Windows of verification's table of G.
pub(crate) const G_WINDOWS: usize = fixed::windows(G_WIDTH);

/// An engine for the backend `L`.
pub(crate) struct Context<L: Lanes> {
    pub(crate) lanes: L,
    /// Multiples of G for verification: looked up by public digits.
    pub(crate) g_rows: Vec<Row>,
    /// Multiples of G for secret scalars: read in constant time.
    pub(crate) g_shared: L::SharedTable,
    /// S, the point every verification starts from.
    pub(crate) start: Row,
    /// −2^(e−1)·S for each table width, which takes S out again after e − 1 doublings.
    correction: [Row; TableWidth::ALL.len()],
    /// Signatures that took verification's slow path.
    pub(crate) slow: AtomicU64,
}

impl<L: Lanes> Context<L> {
    /// `seed` makes the starting point of verification unpredictable.
    pub(crate) fn new(lanes: L, seed: &[u8; 32]) -> Self {
        let g_rows = fixed::window_rows(lanes, G_WIDTH);
        let small = fixed::window_rows(lanes, fixed::WIDTH);
        let g_shared = L::shared_table(&small, fixed::WINDOWS, fixed::ENTRIES);
        let mut secret = order::reduce(&order::limbs(seed));
        if secret == [0; 4] {
            secret[0] = 1;
        }
        let secret = load4(lanes, |_| secret);
        let s = fixed::mul(lanes, &g_shared, &secret);
        let mut points = vec![s];
        for width in TableWidth::ALL {
            let p = double_times(lanes, &s, width.shape().e - 1);
            points.push(lanes.call(
                #[inline(always)]
                || crate::point::negate(&p),
            ));
        }
        let mut affine = Vec::new();
        normalise(lanes, &points, 1, &mut affine);
        let row = |i: usize| fixed::rows(lanes, &affine[i])[0];
        let correction = [row(1), row(2), row(3), row(4)];
        let slow = AtomicU64::new(0);
        Self { lanes, g_rows, g_shared, start: row(0), correction, slow }
    }

    /// The correction for a comb of `width`.
    pub(crate) fn correction(&self, width: TableWidth) -> &Row {
        &self.correction[width as usize]
    }

    /// The tables of keys: `put(i, j, row)` receives row j of key i.
    pub(crate) fn key_tables(
        &self,
        keys: &[(TableSlot, PublicKey)],
        shape: Shape,
        put: &mut dyn FnMut(usize, usize, &Row),
    ) {
        for (g, group) in keys.chunks(L::WIDTH).enumerate() {
            let point = points(self.lanes, |lane| group[lane.min(group.len() - 1)].1);
            for (j, entry) in comb::tables(self.lanes, &[point], shape).iter().enumerate() {
                let rows = fixed::rows(self.lanes, entry);
                for (lane, row) in rows.iter().enumerate().take(group.len()) {
                    put(g * L::WIDTH + lane, j, row);
                }
            }
        }
    }
}

/// One key a lane.
pub(crate) fn points<L: Lanes>(lanes: L, key: impl Fn(usize) -> PublicKey) -> Affine<L> {
    let x = load4(lanes, |lane| key(lane).x);
    let y = load4(lanes, |lane| key(lane).y);
    lanes.call(
        #[inline(always)]
        || Affine::from_words(&x, &y),
    )
}

/// Four words a lane.
pub(crate) fn load4<L: Lanes>(lanes: L, limbs: impl Fn(usize) -> [u64; 4]) -> Words<L> {
    let mut soa = [[0u64; MAX_WIDTH]; 4];
    for lane in 0..L::WIDTH {
        let x = limbs(lane);
        for (word, x) in soa.iter_mut().zip(x) {
            word[lane] = x;
        }
    }
    lanes.call(
        #[inline(always)]
        || {
            [
                L::from_lanes(&soa[0]),
                L::from_lanes(&soa[1]),
                L::from_lanes(&soa[2]),
                L::from_lanes(&soa[3]),
            ]
        },
    )
}

/// The lanes of four words.
pub(crate) fn store4<L: Lanes>(lanes: L, words: &Words<L>) -> [[u64; 4]; MAX_WIDTH] {
    let soa = lanes.call(
        #[inline(always)]
        || {
            [
                L::to_lanes(words[0]),
                L::to_lanes(words[1]),
                L::to_lanes(words[2]),
                L::to_lanes(words[3]),
            ]
        },
    );
    let mut out = [[0; 4]; MAX_WIDTH];
    for (lane, limbs) in out.iter_mut().enumerate() {
        *limbs = [soa[0][lane], soa[1][lane], soa[2][lane], soa[3][lane]];
    }
    out
}
