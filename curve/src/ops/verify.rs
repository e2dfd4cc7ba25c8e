//! Batched ECDSA verification.
//!
//! For each item: w = s⁻¹, R = (z·w)·G + (r·w)·Q, and the test x(R) ≡ r (mod n), made without leaving
//! Jacobian coordinates as X = r·Z². The inversions of a chunk are one; items are grouped by what is
//! known of their keys, eight to a group where there are eight lanes, and padded with copies.
//!
//! Everything here is public, so rows are fetched by address, one group ahead of their use.
//!
//! The sum starts from a secret point S that is taken out at the end. Without it a signer could
//! choose (r, s) so that a partial sum meets an exception of the incomplete addition, and every such
//! item would take the slow path.

// Digits, lane numbers and table indices are far below the limits of the types they pass through.
#![allow(clippy::cast_possible_truncation)]

use crate::comb::{self, Digits, MAX_STEPS, Shape, TRANSIENT, TRANSIENT_ENTRIES};
use crate::context::{CHUNK, Context, G_WIDTH, G_WINDOWS, load4, points};
use crate::fixed;
use crate::invert::{Secrecy, scalar_batch};
use crate::keys::{PublicKey, Verdict};
use crate::lanes::{Lanes, MAX_WIDTH, Words};
use crate::order;
use crate::point::{Affine, Point, add_mixed, add_mixed_public, double};
use crate::table::{PointTable, Row, Table, TableWidth};
use crate::teeth::{self, Teeth};
use std::sync::atomic::Ordering;

/// Whose signature it should be.
#[derive(Clone, Copy, Debug)]
pub enum Key<'a> {
    /// A key of which nothing more is known: the generic path.
    Plain(&'a PublicKey),
    /// A key with its teeth, and no other's: with those the verdict says nothing.
    Teeth(&'a PublicKey, &'a Teeth),
    /// A key with a table.
    Table(Table<'a>),
}

impl<'a> Key<'a> {
    fn point(&self) -> &'a PublicKey {
        match self {
            Key::Plain(key) | Key::Teeth(key, _) => key,
            Key::Table(table) => table.key,
        }
    }
}

/// One signature to verify.
#[derive(Clone, Copy, Debug)]
pub struct VerifyItem<'a> {
    /// Whose signature it should be.
    pub key: Key<'a>,
    /// The message's digest.
    pub digest: &'a [u8; 32],
    /// r, then s, 32 bytes each, big-endian (IEEE P1363).
    pub signature: &'a [u8; 64],
}

/// What is known of a key.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Plain,
    Teeth,
    Table(TableWidth),
}

impl Kind {
    const COUNT: usize = 2 + TableWidth::ALL.len();

    fn of(key: &Key<'_>) -> Self {
        match key {
            Key::Plain(_) => Self::Plain,
            Key::Teeth(..) => Self::Teeth,
            Key::Table(table) => Self::Table(table.width),
        }
    }

    /// The width of the tables. Those that are made here have the shape of the narrowest.
    fn width(self) -> TableWidth {
        match self {
            Self::Plain | Self::Teeth => TableWidth::Bytes512,
            Self::Table(width) => width,
        }
    }

    fn index(self) -> usize {
        match self {
            Self::Plain => 0,
            Self::Teeth => 1,
            Self::Table(width) => 2 + width as usize,
        }
    }
}

/// Items of one kind of key, a lane each.
struct Group {
    kind: Kind,
    /// The item of each lane; lanes from `len` on repeat the first.
    items: [usize; MAX_WIDTH],
    len: usize,
}

impl Group {
    fn shape(&self) -> Shape {
        self.kind.width().shape()
    }

    /// Whether its keys have no tables, so that they are made for this once.
    fn is_transient(&self) -> bool {
        !matches!(self.kind, Kind::Table(_))
    }

    /// The lanes that have an item of their own.
    fn lanes(&self) -> u8 {
        u8::MAX >> (MAX_WIDTH - self.len)
    }
}

/// A group's scalars.
struct Prepared<L: Lanes> {
    /// u₁ = z/s.
    g: Digits<L>,
    /// u₂ = r/s.
    q: Digits<L>,
    r: Words<L>,
    /// Lanes whose r or s is out of range.
    invalid: u8,
}

/// Which rows each step adds: found, and asked for, one group ahead.
struct Plan {
    q: [([u64; MAX_WIDTH], u8); MAX_STEPS],
    g: [([u64; MAX_WIDTH], u8); G_WINDOWS],
}

impl Plan {
    fn new() -> Box<Self> {
        let none = ([0; MAX_WIDTH], 0);
        Box::new(Self { q: [none; MAX_STEPS], g: [none; G_WINDOWS] })
    }
}

type Tables<'a> = [&'a [Row]; MAX_WIDTH];

impl<L: Lanes> Context<L> {
    /// One verdict an item, appended to `verdicts`.
    pub(crate) fn verify(&self, items: &[VerifyItem<'_>], verdicts: &mut Vec<Verdict>) {
        for chunk in items.chunks(CHUNK) {
            let groups = group::<L>(chunk);
            let transient = self.transient_tables(chunk, &groups);
            self.verify_chunk(chunk, &groups, &transient, verdicts);
        }
    }

    /// The same for keys without tables, with the tables that were made for it: one an item, appended to `tables`.
    pub(crate) fn verify_keep(
        &self,
        items: &[VerifyItem<'_>],
        verdicts: &mut Vec<Verdict>,
        tables: &mut Vec<PointTable>,
    ) {
        for chunk in items.chunks(CHUNK) {
            let groups = group::<L>(chunk);
            let transient = self.transient_tables(chunk, &groups);
            self.verify_chunk(chunk, &groups, &transient, verdicts);
            let start = tables.len();
            let unset = PointTable { rows: [Row([0; 8]); TRANSIENT_ENTRIES], backend: L::BACKEND };
            tables.resize(start + chunk.len(), unset);
            for (group, lanes) in groups.iter().zip(transient.chunks_exact(MAX_WIDTH)) {
                for (lane, item) in group.items[..group.len].iter().enumerate() {
                    tables[start + item].rows = lanes[lane];
                }
            }
        }
    }

    fn verify_chunk(
        &self,
        items: &[VerifyItem<'_>],
        groups: &[Group],
        transient: &[[Row; TRANSIENT_ENTRIES]],
        verdicts: &mut Vec<Verdict>,
    ) {
        let prepared = self.prepare(items, groups);
        let mut made = transient.chunks_exact(MAX_WIDTH);
        let tables: Vec<Tables<'_>> = groups
            .iter()
            .map(|group| {
                if group.is_transient() {
                    let rows = made.next().unwrap_or_default();
                    return core::array::from_fn(|lane| &rows[lane][..]);
                }
                core::array::from_fn(|lane| match items[group.items[lane]].key {
                    Key::Table(t) => t.rows,
                    Key::Plain(_) | Key::Teeth(..) => &[],
                })
            })
            .collect();

        let base = verdicts.len();
        verdicts.resize(base + items.len(), Verdict::Invalid);
        let (mut plan, mut next) = (Plan::new(), Plan::new());
        if let Some(first) = prepared.first() {
            self.plan(first, &tables[0], groups[0].shape(), &mut plan);
        }
        for (g, group) in groups.iter().enumerate() {
            if let Some(p) = prepared.get(g + 1) {
                self.plan(p, &tables[g + 1], groups[g + 1].shape(), &mut next);
            }
            let valid = self.run(group, &prepared[g], &tables[g], &plan);
            for lane in 0..group.len {
                if valid >> lane & 1 == 1 {
                    verdicts[base + group.items[lane]] = Verdict::Valid;
                }
            }
            core::mem::swap(&mut plan, &mut next);
        }
    }

    /// Scalars of all groups, one inversion in all.
    fn prepare(&self, items: &[VerifyItem<'_>], groups: &[Group]) -> Vec<Prepared<L>> {
        let mut out = Vec::with_capacity(groups.len());
        let mut inverses = Vec::with_capacity(groups.len());
        let mut digests = Vec::with_capacity(groups.len());
        for group in groups {
            let mut rs = [[[0u64; 4]; 2]; MAX_WIDTH];
            let mut invalid = 0u8;
            for (lane, rs) in rs.iter_mut().enumerate().take(L::WIDTH) {
                let halves = items[group.items[lane]].signature.as_chunks::<32>().0;
                let (r, s) = (order::limbs(&halves[0]), order::limbs(&halves[1]));
                if order::is_scalar(&r) && order::is_scalar(&s) {
                    *rs = [r, s];
                } else {
                    // Any valid numbers keep the lane from disturbing its neighbours.
                    *rs = [[1, 0, 0, 0]; 2];
                    invalid |= 1 << lane;
                }
            }
            let r = load4(self.lanes, |lane| rs[lane][0]);
            let s = load4(self.lanes, |lane| rs[lane][1]);
            digests.push(load4(self.lanes, |lane| order::limbs(items[group.items[lane]].digest)));
            self.lanes.call(
                #[inline(always)]
                || inverses.push(L::scalar_mul(&L::scalar(&s), &L::scalar_r2())),
            );
            let unset = Digits::unset();
            out.push(Prepared { g: unset, q: unset, r, invalid });
        }
        scalar_batch(self.lanes, &mut inverses, Secrecy::Public);
        for (i, p) in out.iter_mut().enumerate() {
            let shape = groups[i].shape();
            self.lanes.call(
                #[inline(always)]
                || {
                    let u1 = L::scalar_mul(&L::scalar(&digests[i]), &inverses[i]);
                    let u2 = L::scalar_mul(&L::scalar(&p.r), &inverses[i]);
                    p.g = Digits::new(&L::scalar_words(&u1), G_WIDTH * G_WINDOWS);
                    p.q = Digits::for_comb(&L::scalar_words(&u2), shape);
                },
            );
        }
        out
    }

    /// Tables of the keys that have none, eight rows a lane, for the groups that need them.
    fn transient_tables(
        &self,
        items: &[VerifyItem<'_>],
        groups: &[Group],
    ) -> Vec<[Row; TRANSIENT_ENTRIES]> {
        let groups: Vec<_> = groups.iter().filter(|group| group.is_transient()).collect();
        let combs = groups.iter().map(|group| self.teeth(items, group));
        let mut out = vec![[Row([0; 8]); TRANSIENT_ENTRIES]; groups.len() * MAX_WIDTH];
        let entries = comb::tables_of(self.lanes, combs, TRANSIENT);
        for (i, entry) in entries.iter().enumerate() {
            let rows = fixed::rows(self.lanes, entry);
            for (lane, row) in rows.iter().enumerate() {
                out[i / TRANSIENT_ENTRIES * MAX_WIDTH + lane][i % TRANSIENT_ENTRIES] = *row;
            }
        }
        out
    }

    /// The teeth of a transient group's combs: known, or made here.
    fn teeth(&self, items: &[VerifyItem<'_>], group: &Group) -> Vec<Point<L>> {
        let key = |lane: usize| &items[group.items[lane]].key;
        match key(0) {
            Key::Teeth(_, first) => teeth::load(self.lanes, |lane| match key(lane) {
                Key::Teeth(key, teeth) => (*key, *teeth),
                other => (other.point(), *first),
            }),
            _ => {
                let point = points(self.lanes, |lane| *key(lane).point());
                comb::teeth(self.lanes, &point, TRANSIENT)
            }
        }
    }

    /// Works out the rows of a group and asks the cache for them.
    fn plan(&self, p: &Prepared<L>, tables: &Tables<'_>, shape: Shape, plan: &mut Plan) {
        self.lanes.call(
            #[inline(always)]
            || {
                let mut steps = plan.q.iter_mut();
                for r in (0..shape.e).rev() {
                    for s in 0..shape.v {
                        let Some(step) = steps.next() else { break };
                        let (index, negate) = p.q.comb(shape, r, s);
                        let mut at = L::to_lanes(index);
                        for lane in 0..L::WIDTH {
                            at[lane] += (s * shape.block()) as u64;
                            L::prefetch(&tables[lane][at[lane] as usize]);
                        }
                        *step = (at, negate);
                    }
                }
                for (i, step) in plan.g.iter_mut().enumerate() {
                    let (index, negate) = p.g.window(G_WIDTH, i);
                    let mut at = L::to_lanes(index);
                    for x in at.iter_mut().take(L::WIDTH) {
                        *x += (i << (G_WIDTH - 1)) as u64;
                        L::prefetch(&self.g_rows[*x as usize]);
                    }
                    *step = (at, negate);
                }
            },
        );
    }

    /// Lanes whose signature is valid.
    fn run(&self, group: &Group, p: &Prepared<L>, tables: &Tables<'_>, plan: &Plan) -> u8 {
        let shape = group.shape();
        let correction = self.correction(group.kind.width());
        let (valid, exceptional) = self.lanes.call(
            #[inline(always)]
            || {
                let start = Affine::<L>::from_entry(&L::load_rows(&[&self.start; MAX_WIDTH]));
                let mut acc = start.to_point();
                for (i, (at, negate)) in plan.q[..shape.steps()].iter().enumerate() {
                    if i % shape.v == 0 && i > 0 {
                        acc = double(&acc);
                    }
                    let q = table_rows::<L>(tables, at);
                    acc = add_mixed(&acc, &q, *negate);
                }
                for (at, negate) in &plan.g {
                    let q = shared_rows::<L>(&self.g_rows, at);
                    acc = add_mixed(&acc, &q, *negate);
                }
                let c = Affine::<L>::from_entry(&L::load_rows(&[correction; MAX_WIDTH]));
                let before = acc;
                acc = add_mixed(&acc, &c, 0);
                let mut exceptional = L::is_zero(&acc.z);
                if exceptional != 0 {
                    // Z became zero in this very addition because R is infinity (anyone can sign so):
                    // invalid, and known without the slow path.
                    let (h, r) = crate::point::differences(&before, &c, 0);
                    exceptional &= L::is_zero(&before.z) | (L::is_zero(&h) & L::is_zero(&r));
                }
                (matches(&acc, &p.r) & !L::is_zero(&acc.z), exceptional)
            },
        );
        let mut valid = valid;
        let exceptional = exceptional & !p.invalid & group.lanes();
        if exceptional != 0 {
            self.slow.fetch_add(exceptional.count_ones().into(), Ordering::Relaxed);
            let again = self.run_complete(p, tables, shape, plan);
            valid = (valid & !exceptional) | (again & exceptional);
        }
        valid & !p.invalid
    }

    /// [`Context::run`] with additions that have no exceptions. It costs little more than `run` itself,
    /// so that even someone who knew S could at most double the price of a group.
    #[cold]
    fn run_complete(&self, p: &Prepared<L>, tables: &Tables<'_>, shape: Shape, plan: &Plan) -> u8 {
        self.lanes.call(
            #[inline(always)]
            || {
                let zero = L::unpack(&[L::splat(0); 4]);
                let mut acc = Point { x: L::one(), y: L::one(), z: zero };
                let mut infinite = u8::MAX;
                for (i, (at, negate)) in plan.q[..shape.steps()].iter().enumerate() {
                    if i % shape.v == 0 {
                        acc = double(&acc);
                    }
                    let q = table_rows::<L>(tables, at);
                    acc = add_mixed_public(&acc, &mut infinite, &q, *negate);
                }
                for (at, negate) in &plan.g {
                    let q = shared_rows::<L>(&self.g_rows, at);
                    acc = add_mixed_public(&acc, &mut infinite, &q, *negate);
                }
                matches(&acc, &p.r) & !infinite
            },
        )
    }
}

/// Lanes where X = r·Z².
#[inline(always)]
fn x_is<L: Lanes>(p: &Point<L>, r: &Words<L>, zz: &L::Fe) -> u8 {
    let product = L::mul(&L::to_montgomery(r), zz);
    L::is_zero(&L::tight(L::add_p(L::sub(L::loose(&p.x), product), 2)))
}

/// Lanes where x(P) mod n = r.
#[inline(always)]
fn matches<L: Lanes>(p: &Point<L>, r: &Words<L>) -> u8 {
    let zz = L::tight(L::sqr(&p.z));
    let mut ok = x_is(p, r, &zz);
    // x(P) may be r + n, where that is below p: for r < p − n only, which chance does not produce.
    let mut lanes = [[0u64; MAX_WIDTH]; 4];
    for (l, w) in lanes.iter_mut().zip(r) {
        *l = L::to_lanes(*w);
    }
    let mut small = 0u8;
    for lane in 0..L::WIDTH {
        if lanes[3][lane] | lanes[2][lane] != 0 {
            continue;
        }
        let limbs = [lanes[0][lane], lanes[1][lane], 0, 0];
        if order::less(&limbs, &order::P_MINUS_N) {
            small |= 1 << lane;
            let sum = order::wrapping_add(&limbs, &order::N);
            for (word, x) in lanes.iter_mut().zip(sum) {
                word[lane] = x;
            }
        }
    }
    if small & !ok != 0 {
        let words = [
            L::from_lanes(&lanes[0]),
            L::from_lanes(&lanes[1]),
            L::from_lanes(&lanes[2]),
            L::from_lanes(&lanes[3]),
        ];
        ok |= x_is(p, &words, &zz) & small;
    }
    ok
}

/// The rows of one step, a table a lane.
#[inline(always)]
fn table_rows<L: Lanes>(tables: &Tables<'_>, at: &[u64; MAX_WIDTH]) -> Affine<L> {
    let mut rows = [&tables[0][at[0] as usize]; MAX_WIDTH];
    for lane in 1..L::WIDTH {
        rows[lane] = &tables[lane][at[lane] as usize];
    }
    Affine::from_entry(&L::load_rows(&rows))
}

/// The rows of one step, all from one table.
#[inline(always)]
fn shared_rows<L: Lanes>(table: &[Row], at: &[u64; MAX_WIDTH]) -> Affine<L> {
    let mut rows = [&table[at[0] as usize]; MAX_WIDTH];
    for lane in 1..L::WIDTH {
        rows[lane] = &table[at[lane] as usize];
    }
    Affine::from_entry(&L::load_rows(&rows))
}

/// Items in groups of one kind of key each.
fn group<L: Lanes>(items: &[VerifyItem<'_>]) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::with_capacity(items.len() / L::WIDTH + 5);
    // The last group of each kind, if it has lanes free.
    let mut open: [Option<usize>; Kind::COUNT] = [None; Kind::COUNT];
    for (i, item) in items.iter().enumerate() {
        let kind = Kind::of(&item.key);
        let slot = &mut open[kind.index()];
        match *slot {
            Some(g) if groups[g].len < L::WIDTH => {
                let group = &mut groups[g];
                group.items[group.len] = i;
                group.len += 1;
            }
            _ => {
                *slot = Some(groups.len());
                groups.push(Group { kind, items: [i; MAX_WIDTH], len: 1 });
            }
        }
    }
    groups
}

#[cfg(test)]
mod tests;
