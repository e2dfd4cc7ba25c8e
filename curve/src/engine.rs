//! The engine: the operations on whichever backend was chosen.
//!
//! Eight lanes take as long for one item as for eight, and longer than one fast lane does: the engine of
//! the eight-lane backend does what comes alone in one lane. Tables of points remember which of the two
//! made them; tables of keys are always the eight-lane backend's, and converted for one use.

use crate::backend::portable::{PORTABLE, Portable};
use crate::backend::{Backend, Kind};
use crate::context::Context;
use crate::keys::{PublicKey, SecretScalar, SharedSecret, Verdict};
use crate::lanes::Lanes;
use crate::ops::agree::{Agreed, Decapsulated, EcdhItem, Kept};
use crate::ops::sign::SignItem;
use crate::ops::verify::{Key, VerifyItem};
use crate::table::{PointTable, Row, Table, TableSlot, TableWidth};
#[cfg(target_arch = "x86_64")]
use crate::{
    backend::{adx::Adx, ifma::Ifma},
    one_lane::{Multiply, Narrow},
};
use std::fmt;
use std::sync::atomic::Ordering;

/// Batched P-256 on one backend. About 1 MiB of tables, or twice that where the backend has eight lanes;
/// share one between threads.
///
/// Operations append to a vector of the caller's, one result an item, in the items' order. Any batch
/// size works; [`Backend::lanes`] at once is the unit of work, and 64 is the largest that gains. What
/// comes alone would take as long in eight lanes as eight together: it is done in one.
pub struct Engine(Inner);

enum Inner {
    Portable(Box<Context<Portable>>),
    #[cfg(target_arch = "x86_64")]
    Adx(Box<Context<Narrow<Adx>>>),
    #[cfg(target_arch = "x86_64")]
    Ifma(Box<Wide>),
}

/// The eight-lane backend, and the one-lane backend for what comes alone.
#[cfg(target_arch = "x86_64")]
struct Wide {
    lanes: Context<Ifma>,
    alone: Context<Narrow<Adx>>,
}

/// Calls a method of the context that is to do `alone` items: one, or not one.
macro_rules! dispatch {
    ($self:expr, $alone:expr, $context:ident => $call:expr) => {
        match &$self.0 {
            Inner::Portable($context) => $call,
            #[cfg(target_arch = "x86_64")]
            Inner::Adx($context) => $call,
            #[cfg(target_arch = "x86_64")]
            Inner::Ifma(wide) => {
                if $alone {
                    let $context = &wide.alone;
                    $call
                } else {
                    let $context = &wide.lanes;
                    $call
                }
            }
        }
    };
}

impl Engine {
    /// Builds the tables of the generator: a millisecond or a few.
    ///
    /// `seed` is 32 secret random bytes, fresh for each engine. They make it impossible to craft
    /// signatures that are slow to refuse; the verdicts do not depend on them.
    ///
    /// # Panics
    /// Never: `backend` proves that the CPU has been asked.
    #[must_use]
    pub fn new(backend: Backend, seed: &[u8; 32]) -> Self {
        Self(match backend.0 {
            Kind::Portable => Inner::Portable(Box::new(Context::new(PORTABLE, seed))),
            #[cfg(target_arch = "x86_64")]
            Kind::Adx => match Adx::detect() {
                Some(proof) => Inner::Adx(Box::new(Context::new(Narrow(proof), seed))),
                None => unreachable!("Backend::adx asked the same CPU"),
            },
            #[cfg(target_arch = "x86_64")]
            Kind::Ifma => match Ifma::detect() {
                Some(lanes) => Inner::Ifma(Box::new(Wide {
                    lanes: Context::new(lanes, seed),
                    alone: Context::new(lanes.one_lane(), seed),
                })),
                None => unreachable!("Backend::ifma asked the same CPU"),
            },
        })
    }

    /// The backend it runs on.
    #[must_use]
    pub fn backend(&self) -> Backend {
        Backend(match &self.0 {
            Inner::Portable(_) => Kind::Portable,
            #[cfg(target_arch = "x86_64")]
            Inner::Adx(_) => Kind::Adx,
            #[cfg(target_arch = "x86_64")]
            Inner::Ifma(..) => Kind::Ifma,
        })
    }

    /// Verifies signatures: one verdict an item. Accepts what ECDSA accepts, r and s in [1, n − 1].
    /// Keys with and without tables, of any width, may share a batch. Variable time.
    ///
    /// # Panics
    /// If a table belongs to another backend.
    pub fn verify(&self, items: &[VerifyItem<'_>], verdicts: &mut Vec<Verdict>) {
        for item in items {
            if let Key::Table(table) = item.key {
                self.assert_own(&table);
            }
        }
        #[cfg(target_arch = "x86_64")]
        if let (Inner::Ifma(wide), [VerifyItem { key: Key::Table(table), .. }]) = (&self.0, items) {
            let rows = narrow_rows(table.rows);
            let key = Key::Table(Table { rows: &rows, ..*table });
            return wide.alone.verify(&[VerifyItem { key, ..items[0] }], verdicts);
        }
        dispatch!(self, items.len() == 1, context => context.verify(items, verdicts));
    }

    /// As [`Engine::verify`], and keeps each key's comb for [`Engine::agree`]: one table an item.
    ///
    /// # Panics
    /// If a key comes with a table, which has no other.
    pub fn verify_keep(
        &self,
        items: &[VerifyItem<'_>],
        verdicts: &mut Vec<Verdict>,
        tables: &mut Vec<PointTable>,
    ) {
        let has_table = |item: &VerifyItem<'_>| matches!(item.key, Key::Table(_));
        assert!(!items.iter().any(has_table), "a key with a table has no comb to keep");
        dispatch!(self, items.len() == 1, context => context.verify_keep(items, verdicts, tables));
    }

    /// How many signatures this engine has verified by the slow path, which takes about twice the time.
    /// Chance does not lead there, nor can a signer who does not know the engine's seed: anything but 0
    /// means that the seed is known.
    #[must_use]
    pub fn slow_verifications(&self) -> u64 {
        let count = |alone| dispatch!(self, alone, context => context.slow.load(Ordering::Relaxed));
        if self.backend().lanes() == 1 { count(true) } else { count(true) + count(false) }
    }

    /// For each x-coordinate (32 bytes, big-endian): the point E with that x and even y, x(s·E), and
    /// E's table for [`Engine::agree`]. `None` where x ≥ p or there is no such point.
    pub fn decapsulate(
        &self,
        secret: &SecretScalar,
        xs: &[[u8; 32]],
        out: &mut Vec<Option<Decapsulated>>,
    ) {
        dispatch!(self, xs.len() == 1, context => context.decapsulate(secret, xs, out));
        scrub_stack();
    }

    /// For each point whose table [`Engine::decapsulate`] returned, and fresh e: e·G and x(e·E).
    ///
    /// # Panics
    /// If a table belongs to another backend.
    pub fn agree(&self, items: &[(&PointTable, &SecretScalar)], out: &mut Vec<Agreed>) {
        self.assert_own_points(items);
        for run in items.chunk_by(|a, b| a.0.backend == b.0.backend) {
            let alone = run[0].0.backend.lanes() == 1;
            dispatch!(self, alone, context => context.agree(run, out));
        }
        scrub_stack();
    }

    /// For each key P that has a table, and fresh f: f·G and x(f·P).
    ///
    /// # Panics
    /// If a table belongs to another backend.
    pub fn agree_preset(&self, items: &[(Table<'_>, &SecretScalar)], out: &mut Vec<Agreed>) {
        for (table, _) in items {
            self.assert_own(table);
        }
        dispatch!(self, false, context => context.agree_preset(items, out));
        scrub_stack();
    }

    /// For each key P that has a table: x(k·P).
    ///
    /// # Panics
    /// If a table belongs to another backend.
    pub fn ecdh_preset(&self, items: &[(Table<'_>, &SecretScalar)], out: &mut Vec<SharedSecret>) {
        for (table, _) in items {
            self.assert_own(table);
        }
        dispatch!(self, false, context => context.ecdh_preset(items, out));
        scrub_stack();
    }

    /// x(kᵢ·Pᵢ) for each item; `None` where Pᵢ is not a point of the curve.
    pub fn ecdh(&self, items: &[EcdhItem<'_>], out: &mut Vec<Option<SharedSecret>>) {
        dispatch!(self, items.len() == 1, context => context.ecdh(items, out));
        scrub_stack();
    }

    /// As [`Engine::ecdh`], keeping each point's table for a second multiple.
    pub fn ecdh_keep(&self, items: &[EcdhItem<'_>], out: &mut Vec<Option<Kept>>) {
        dispatch!(self, items.len() == 1, context => context.ecdh_keep(items, out));
        scrub_stack();
    }

    /// x(kᵢ·Pᵢ) for points whose tables were kept: less than half the price of the first multiple.
    ///
    /// # Panics
    /// If a table belongs to another backend.
    pub fn ecdh_again(&self, items: &[(&PointTable, &SecretScalar)], out: &mut Vec<SharedSecret>) {
        self.assert_own_points(items);
        for run in items.chunk_by(|a, b| a.0.backend == b.0.backend) {
            let alone = run[0].0.backend.lanes() == 1;
            dispatch!(self, alone, context => context.ecdh_again(run, out));
        }
        scrub_stack();
    }

    /// The public keys of secret ones.
    pub fn key_pairs(&self, secrets: &[SecretScalar], out: &mut Vec<PublicKey>) {
        dispatch!(self, secrets.len() == 1, context => context.key_pairs(secrets, out));
        scrub_stack();
    }

    /// Signs digests: r ‖ s each.
    pub fn sign(&self, key: &SecretScalar, items: &[SignItem<'_>], out: &mut Vec<[u8; 64]>) {
        dispatch!(self, items.len() == 1, context => context.sign(key, items, out));
        scrub_stack();
    }

    pub(crate) fn key_tables(
        &self,
        keys: &[(TableSlot, PublicKey)],
        width: TableWidth,
        mut put: impl FnMut(usize, usize, &Row),
    ) {
        dispatch!(self, false, context => context.key_tables(keys, width.shape(), &mut put));
    }

    fn assert_own_points(&self, items: &[(&PointTable, &SecretScalar)]) {
        let own = |table: &PointTable| match &self.0 {
            #[cfg(target_arch = "x86_64")]
            Inner::Ifma(_) => [Kind::Ifma, Kind::Adx].contains(&table.backend.0),
            _ => table.backend == self.backend(),
        };
        let all = items.iter().all(|(table, _)| own(table));
        assert!(all, "a point's table was made by another backend");
    }

    fn assert_own(&self, table: &Table<'_>) {
        assert!(table.backend == self.backend(), "the table was made for another backend");
    }
}

/// A key's table of the eight-lane backend, whose coordinates are x·2²⁶⁰, for the one-lane backend, which
/// has x·2²⁵⁶.
#[cfg(target_arch = "x86_64")]
fn narrow_rows(rows: &[Row]) -> Vec<Row> {
    // The product of x·2²⁶⁰ and this is x·2²⁶⁰·2²⁵²/2²⁵⁶.
    const FACTOR: [u64; 4] = [0, 0, 0, 1 << 60];
    let convert = |row: &Row| {
        let mut out = *row;
        for coordinate in out.0.as_chunks_mut::<4>().0 {
            *coordinate = Adx::mul(coordinate, &FACTOR);
        }
        out
    };
    rows.iter().map(convert).collect()
}

/// Overwrites the part of the stack where an operation on secrets has left copies of them: digits,
/// selected entries, intermediate points, spilt registers. What is on the heap erases itself.
///
/// It is called from where the operation was called, so that its frame lies over the operation's.
#[inline(never)]
fn scrub_stack() {
    let mut frame = [0u64; SCRUBBED / 8];
    core::hint::black_box(&mut frame);
}

/// Bytes of stack that [`scrub_stack`] overwrites; `tests/residue.rs` finds out whether they suffice.
const SCRUBBED: usize = 48 << 10;

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Engine").field(&self.backend()).finish()
    }
}
