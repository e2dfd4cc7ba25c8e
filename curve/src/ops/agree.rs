//! Batched Diffie-Hellman, in constant time: with points just received, again with the same points,
//! with keys that have tables, and key pairs.
//!
//! Scalars and results are secret; points, tables and which items are refused are public.

use crate::comb::{self, TRANSIENT, TRANSIENT_ENTRIES};
use crate::context::{CHUNK, Context, load4, store4};
use crate::fixed;
use crate::invert;
use crate::keys::{PublicKey, SecretScalar, SharedSecret};
use crate::lanes::{Lanes, MAX_WIDTH, Words};
use crate::one_lane::P;
use crate::order;
use crate::point::{Affine, Entry, Point, curve_rhs};
use crate::table::{PointTable, Row, Table};
use zeroize::Zeroizing;

/// What [`decapsulate`](crate::Engine::decapsulate) finds out about one point.
pub struct Decapsulated {
    /// x(s·E).
    pub shared: SharedSecret,
    /// E's y-coordinate, big-endian: the even one of the two.
    pub y: [u8; 32],
    /// E's table, for the second multiple.
    pub table: PointTable,
}

/// A shared secret, and the table of the point it was made with.
pub struct Kept {
    /// x(k·P).
    pub shared: SharedSecret,
    /// P's table, for [`ecdh_again`](crate::Engine::ecdh_again) and [`agree`](crate::Engine::agree).
    pub table: PointTable,
}

/// A fresh key pair's public half, and what it agrees on.
pub struct Agreed {
    /// e·G.
    pub public: PublicKey,
    /// x(e·E).
    pub shared: SharedSecret,
}

/// A point to multiply, not yet checked.
#[derive(Clone, Copy)]
pub struct EcdhItem<'a> {
    /// The secret scalar.
    pub secret: &'a SecretScalar,
    /// x, then y, 32 bytes each, big-endian: a SEC 1 uncompressed point without its first byte.
    pub point: &'a [u8; 64],
}

/// Secrets of a batch, erased when dropped: results, and Z-coordinates, which tell about scalars.
pub(crate) type Secrets<T> = Zeroizing<Vec<T>>;

/// Affine coordinates as integers, a lane each.
type Coordinates = [[u64; 4]; MAX_WIDTH];

impl<L: Lanes> Context<L> {
    /// Appends x(kᵢ·Pᵢ) for each item, `None` where Pᵢ is not on the curve.
    pub(crate) fn ecdh(&self, items: &[EcdhItem<'_>], out: &mut Vec<Option<SharedSecret>>) {
        self.multiply_checked(items, |_, results| {
            for (ok, x) in results {
                out.push(ok.then(|| SharedSecret(order::bytes(x))));
            }
        });
    }

    /// As [`Context::ecdh`], and keeps each point's table.
    pub(crate) fn ecdh_keep(&self, items: &[EcdhItem<'_>], out: &mut Vec<Option<Kept>>) {
        self.multiply_checked(items, |entries, results| {
            let tables = self.point_tables(entries);
            for ((ok, x), table) in results.zip(tables) {
                out.push(ok.then(|| Kept { shared: SharedSecret(order::bytes(x)), table }));
            }
        });
    }

    /// Hands each group's table, and for each of its items whether the point is valid and x(kᵢ·Pᵢ),
    /// to `take`.
    fn multiply_checked(
        &self,
        items: &[EcdhItem<'_>],
        mut take: impl FnMut(&[Entry<L>], &mut dyn Iterator<Item = (bool, &[u64; 4])>),
    ) {
        for chunk in items.chunks(CHUNK) {
            let mut points = Vec::with_capacity(CHUNK / L::WIDTH);
            let mut good = Vec::with_capacity(CHUNK / L::WIDTH);
            for group in chunk.chunks(L::WIDTH) {
                let (point, ok) = self.checked_points(group);
                points.push(point);
                good.push(ok);
            }
            let entries = comb::tables(self.lanes, &points, TRANSIENT);
            let tables = entries.chunks_exact(TRANSIENT_ENTRIES);
            let results: Secrets<Point<L>> = chunk
                .chunks(L::WIDTH)
                .zip(tables.clone())
                .map(|(group, table)| {
                    let k = self.load_secrets(group, |item| item.secret);
                    comb::walk(self.lanes, table, TRANSIENT, &k)
                })
                .collect::<Vec<_>>()
                .into();
            let xs = self.affine_x(&results, &self.inverses(&results));
            for (g, (group, table)) in chunk.chunks(L::WIDTH).zip(tables).enumerate() {
                let valid = (0..group.len()).map(|lane| good[g] >> lane & 1 == 1);
                take(table, &mut valid.zip(&xs[g]));
            }
        }
    }

    /// One group's table, a lane each.
    fn point_tables(&self, entries: &[Entry<L>]) -> [PointTable; MAX_WIDTH] {
        let mut rows = [[Row([0; 8]); MAX_WIDTH]; TRANSIENT_ENTRIES];
        for (row, entry) in rows.iter_mut().zip(entries) {
            *row = fixed::rows(self.lanes, entry);
        }
        core::array::from_fn(|lane| PointTable {
            rows: core::array::from_fn(|j| rows[j][lane]),
            backend: L::BACKEND,
        })
    }

    /// Appends x(kᵢ·Pᵢ) for points whose tables were kept.
    pub(crate) fn ecdh_again(
        &self,
        items: &[(&PointTable, &SecretScalar)],
        out: &mut Vec<SharedSecret>,
    ) {
        self.again_with(items, out, |group| (self.load_point_tables(group), TRANSIENT));
    }

    fn again_with<T>(
        &self,
        items: &[(T, &SecretScalar)],
        out: &mut Vec<SharedSecret>,
        table: impl Fn(&[(T, &SecretScalar)]) -> (Vec<Entry<L>>, comb::Shape),
    ) {
        for chunk in items.chunks(CHUNK) {
            let results: Secrets<Point<L>> = chunk
                .chunks(L::WIDTH)
                .map(|group| {
                    let k = self.load_secrets(group, |item| item.1);
                    let (entries, shape) = table(group);
                    comb::walk(self.lanes, &entries, shape, &k)
                })
                .collect::<Vec<_>>()
                .into();
            let xs = self.affine_x(&results, &self.inverses(&results));
            for (group, xs) in chunk.chunks(L::WIDTH).zip(xs.iter()) {
                out.extend(group.iter().zip(xs).map(|(_, x)| SharedSecret(order::bytes(x))));
            }
        }
    }

    fn load_point_tables(&self, group: &[(&PointTable, &SecretScalar)]) -> Vec<Entry<L>> {
        (0..TRANSIENT_ENTRIES)
            .map(|j| {
                let mut rows = [&group[0].0.rows[j]; MAX_WIDTH];
                for (row, item) in rows.iter_mut().zip(group) {
                    *row = &item.0.rows[j];
                }
                load_entry(self.lanes, &rows)
            })
            .collect()
    }

    /// The points of a group, and the lanes where they are valid; the generator elsewhere.
    fn checked_points(&self, group: &[EcdhItem<'_>]) -> (Affine<L>, u8) {
        let mut in_range = 0u8;
        let mut xy = [[[0u64; 4]; 2]; MAX_WIDTH];
        for (lane, xy) in xy.iter_mut().enumerate().take(L::WIDTH) {
            let halves = group[lane.min(group.len() - 1)].point.as_chunks::<32>().0;
            *xy = [order::limbs(&halves[0]), order::limbs(&halves[1])];
            in_range |= u8::from(order::less(&xy[0], &P) && order::less(&xy[1], &P)) << lane;
        }
        let x = load4(self.lanes, |lane| xy[lane][0]);
        let y = load4(self.lanes, |lane| xy[lane][1]);
        let generator = fixed::generator(self.lanes);
        self.lanes.call(
            #[inline(always)]
            || {
                let point = Affine::from_words(&x, &y);
                let ok = point.on_curve() & in_range;
                (Affine::select(ok, &generator, &point), ok)
            },
        )
    }

    /// Lifts each x to the point with even y, multiplies it by `secret`, and keeps its table.
    pub(crate) fn decapsulate(
        &self,
        secret: &SecretScalar,
        xs: &[[u8; 32]],
        out: &mut Vec<Option<Decapsulated>>,
    ) {
        let k = load4(self.lanes, |_| secret.0);
        for chunk in xs.chunks(CHUNK) {
            let mut points = Vec::with_capacity(CHUNK / L::WIDTH + 1);
            let mut lifted = Vec::with_capacity(CHUNK / L::WIDTH + 1);
            for group in chunk.chunks(L::WIDTH) {
                let (point, ys, ok) = self.lift(group);
                points.push(point);
                lifted.push((ys, ok));
            }
            let entries = comb::tables(self.lanes, &points, TRANSIENT);
            let results: Secrets<Point<L>> = entries
                .chunks_exact(TRANSIENT_ENTRIES)
                .map(|table| comb::walk(self.lanes, table, TRANSIENT, &k))
                .collect::<Vec<_>>()
                .into();
            let shared = self.affine_x(&results, &self.inverses(&results));
            let tables = entries.chunks_exact(TRANSIENT_ENTRIES);
            for (g, (group, table)) in chunk.chunks(L::WIDTH).zip(tables).enumerate() {
                let tables = self.point_tables(table);
                let (ys, ok) = &lifted[g];
                for ((lane, table), _) in tables.into_iter().enumerate().zip(group) {
                    let ok = ok >> lane & 1 == 1;
                    out.push(ok.then(|| Decapsulated {
                        shared: SharedSecret(order::bytes(&shared[g][lane])),
                        y: order::bytes(&ys[lane]),
                        table,
                    }));
                }
            }
        }
    }

    /// Points with these x-coordinates and even y, their y, and the lanes where there is one; the
    /// generator elsewhere.
    fn lift(&self, group: &[[u8; 32]]) -> (Affine<L>, Coordinates, u8) {
        let mut in_range = 0u8;
        let mut limbs = [[0u64; 4]; MAX_WIDTH];
        for (lane, limbs) in limbs.iter_mut().enumerate().take(L::WIDTH) {
            *limbs = order::limbs(&group[lane.min(group.len() - 1)]);
            in_range |= u8::from(order::less(limbs, &P)) << lane;
        }
        let words = load4(self.lanes, |lane| limbs[lane]);
        let generator = fixed::generator(self.lanes);
        let (x, square) = self.lanes.call(
            #[inline(always)]
            || {
                let x = L::to_montgomery(&words);
                let square = L::tight(curve_rhs::<L>(&x));
                (x, square)
            },
        );
        let root = invert::field_sqrt(self.lanes, &square);
        let (point, y, ok) = self.lanes.call(
            #[inline(always)]
            || {
                let d = L::add_p(L::sub(L::loose(&square), L::sqr(&root)), 2);
                let ok = L::is_zero(&L::tight(d)) & in_range;
                let odd = L::test(L::from_montgomery(&root)[0], L::splat(1));
                let y = L::tight(L::add_p(L::neg_if(L::loose(&root), odd), 2));
                let point = Affine::select(ok, &generator, &Affine { x, y });
                (point, L::from_montgomery(&y), ok)
            },
        );
        (point, store4(self.lanes, &y), ok)
    }

    /// Appends eᵢ·G and x(eᵢ·Eᵢ) for points whose tables were kept.
    pub(crate) fn agree(&self, items: &[(&PointTable, &SecretScalar)], out: &mut Vec<Agreed>) {
        self.agree_with(items, out, |group| (self.load_point_tables(group), TRANSIENT));
    }

    /// Appends fᵢ·G and x(fᵢ·Pᵢ) for keys with tables.
    pub(crate) fn agree_preset(&self, items: &[(Table<'_>, &SecretScalar)], out: &mut Vec<Agreed>) {
        for run in items.chunk_by(|a, b| a.0.width == b.0.width) {
            let shape = run[0].0.width.shape();
            self.agree_with(run, out, |group| (self.load_tables(group, shape), shape));
        }
    }

    /// Appends x(kᵢ·Pᵢ) for keys with tables.
    pub(crate) fn ecdh_preset(
        &self,
        items: &[(Table<'_>, &SecretScalar)],
        out: &mut Vec<SharedSecret>,
    ) {
        for run in items.chunk_by(|a, b| a.0.width == b.0.width) {
            let shape = run[0].0.width.shape();
            self.again_with(run, out, |group| (self.load_tables(group, shape), shape));
        }
    }

    fn load_tables(
        &self,
        group: &[(Table<'_>, &SecretScalar)],
        shape: comb::Shape,
    ) -> Vec<Entry<L>> {
        (0..shape.entries())
            .map(|j| {
                let mut rows = [&group[0].0.rows[j]; MAX_WIDTH];
                for (row, item) in rows.iter_mut().zip(group) {
                    *row = &item.0.rows[j];
                }
                load_entry(self.lanes, &rows)
            })
            .collect()
    }

    fn agree_with<T>(
        &self,
        items: &[(T, &SecretScalar)],
        out: &mut Vec<Agreed>,
        table: impl Fn(&[(T, &SecretScalar)]) -> (Vec<Entry<L>>, comb::Shape),
    ) {
        for chunk in items.chunks(CHUNK) {
            let groups = chunk.len().div_ceil(L::WIDTH);
            // e·E of all groups, then e·G: one inversion in all.
            let mut points: Secrets<Point<L>> = Vec::with_capacity(2 * groups).into();
            let mut public: Secrets<Point<L>> = Vec::with_capacity(groups).into();
            for group in chunk.chunks(L::WIDTH) {
                let k = self.load_secrets(group, |item| item.1);
                let (entries, shape) = table(group);
                points.push(comb::walk(self.lanes, &entries, shape, &k));
                public.push(fixed::mul(self.lanes, &self.g_shared, &k));
            }
            points.extend_from_slice(&public);
            let inverses = self.inverses(&points);
            let xs = self.affine_x(&points[..groups], &inverses[..groups]);
            let keys = self.affine(&public, &inverses[groups..]);
            for (g, group) in chunk.chunks(L::WIDTH).enumerate() {
                out.extend(group.iter().zip(&xs[g]).enumerate().map(|(lane, (_, x))| Agreed {
                    public: PublicKey { x: keys[g].0[lane], y: keys[g].1[lane] },
                    shared: SharedSecret(order::bytes(x)),
                }));
            }
        }
    }

    /// Appends kᵢ·G.
    pub(crate) fn key_pairs(&self, secrets: &[SecretScalar], out: &mut Vec<PublicKey>) {
        for chunk in secrets.chunks(CHUNK) {
            let points: Secrets<Point<L>> = chunk
                .chunks(L::WIDTH)
                .map(|group| {
                    let k = self.load_secrets(group, |k| k);
                    fixed::mul(self.lanes, &self.g_shared, &k)
                })
                .collect::<Vec<_>>()
                .into();
            let keys = self.affine(&points, &self.inverses(&points));
            for (group, (x, y)) in chunk.chunks(L::WIDTH).zip(&keys) {
                out.extend((0..group.len()).map(|lane| PublicKey { x: x[lane], y: y[lane] }));
            }
        }
    }

    /// One secret a lane; spare lanes repeat the last.
    pub(crate) fn load_secrets<T>(
        &self,
        group: &[T],
        secret: impl Fn(&T) -> &SecretScalar,
    ) -> Words<L> {
        load4(self.lanes, |lane| secret(&group[lane.min(group.len() - 1)]).0)
    }

    /// 1/Z of each point, one inversion in all.
    pub(crate) fn inverses(&self, points: &[Point<L>]) -> Secrets<L::Fe> {
        let mut inverses: Secrets<L::Fe> = points.iter().map(|p| p.z).collect::<Vec<_>>().into();
        invert::batch(self.lanes, &mut inverses);
        inverses
    }

    /// Affine x-coordinates.
    fn affine_x(&self, points: &[Point<L>], inverses: &[L::Fe]) -> Secrets<Coordinates> {
        let affine = points.iter().zip(inverses).map(|(p, inverse)| {
            let x = self.lanes.call(
                #[inline(always)]
                || {
                    let i2 = L::tight(L::sqr(inverse));
                    L::from_montgomery(&L::tight(L::mul(&p.x, &i2)))
                },
            );
            store4(self.lanes, &x)
        });
        affine.collect::<Vec<_>>().into()
    }

    /// Affine coordinates.
    pub(crate) fn affine(
        &self,
        points: &[Point<L>],
        inverses: &[L::Fe],
    ) -> Vec<(Coordinates, Coordinates)> {
        let affine = points.iter().zip(inverses).map(|(p, inverse)| {
            let (x, y) = self.lanes.call(
                #[inline(always)]
                || {
                    let i2 = L::tight(L::sqr(inverse));
                    let i3 = L::tight(L::mul(&i2, inverse));
                    let x = L::from_montgomery(&L::tight(L::mul(&p.x, &i2)));
                    let y = L::from_montgomery(&L::tight(L::mul(&p.y, &i3)));
                    (x, y)
                },
            );
            (store4(self.lanes, &x), store4(self.lanes, &y))
        });
        affine.collect()
    }
}

fn load_entry<L: Lanes>(lanes: L, rows: &[&Row; MAX_WIDTH]) -> Entry<L> {
    lanes.call(
        #[inline(always)]
        || L::load_rows(rows),
    )
}
