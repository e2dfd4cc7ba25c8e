//! The engine: the operations on whichever backend was chosen.

use crate::backend::{Backend, Kind};
use crate::context::Context;
use crate::keys::{PublicKey, SecretScalar, SharedSecret, Verdict};
use crate::ops::agree::{Agreed, Decapsulated, EcdhItem, Kept};
use crate::ops::sign::SignItem;
use crate::ops::verify::{Key, VerifyItem};
use crate::portable::Portable;
use crate::table::{PointTable, Row, Table, TableSlot, TableWidth};
use std::fmt;
use std::sync::atomic::Ordering;

/// Batched P-256 on one backend. About 1 MiB of tables; share one between threads.
///
/// Operations append to a vector of the caller's, one result an item, in the items' order. Any batch
/// size works; [`Backend::lanes`] at once is the unit of work, and 64 is the largest that gains.
pub struct Engine(Inner);

enum Inner {
    Portable(Box<Context<Portable>>),
    #[cfg(target_arch = "x86_64")]
    Ifma(Box<Context<crate::ifma::Ifma>>),
}

/// Calls a method of the chosen core.
macro_rules! dispatch {
    ($self:expr, $context:ident => $call:expr) => {
        match &$self.0 {
            Inner::Portable($context) => $call,
            #[cfg(target_arch = "x86_64")]
            Inner::Ifma($context) => $call,
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
            Kind::Portable => Inner::Portable(Box::new(Context::new(Portable, seed))),
            #[cfg(target_arch = "x86_64")]
            Kind::Ifma => match crate::ifma::Ifma::detect() {
                Some(lanes) => Inner::Ifma(Box::new(Context::new(lanes, seed))),
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
            Inner::Ifma(_) => Kind::Ifma,
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
        dispatch!(self, context => context.verify(items, verdicts));
    }

    /// How many signatures this engine has verified by the slow path, which takes about twice the time.
    /// Chance does not lead there, nor can a signer who does not know the engine's seed: anything but 0
    /// means that the seed is known.
    #[must_use]
    pub fn slow_verifications(&self) -> u64 {
        dispatch!(self, context => context.slow.load(Ordering::Relaxed))
    }

    /// For each x-coordinate (32 bytes, big-endian): the point E with that x and even y, x(s·E), and
    /// E's table for [`Engine::agree`]. `None` where x ≥ p or there is no such point.
    pub fn decapsulate(
        &self,
        secret: &SecretScalar,
        xs: &[[u8; 32]],
        out: &mut Vec<Option<Decapsulated>>,
    ) {
        dispatch!(self, context => context.decapsulate(secret, xs, out));
        scrub_stack();
    }

    /// For each point whose table [`Engine::decapsulate`] returned, and fresh e: e·G and x(e·E).
    ///
    /// # Panics
    /// If a table belongs to another backend.
    pub fn agree(&self, items: &[(&PointTable, &SecretScalar)], out: &mut Vec<Agreed>) {
        self.assert_own_points(items);
        dispatch!(self, context => context.agree(items, out));
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
        dispatch!(self, context => context.agree_preset(items, out));
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
        dispatch!(self, context => context.ecdh_preset(items, out));
        scrub_stack();
    }

    /// x(kᵢ·Pᵢ) for each item; `None` where Pᵢ is not a point of the curve.
    pub fn ecdh(&self, items: &[EcdhItem<'_>], out: &mut Vec<Option<SharedSecret>>) {
        dispatch!(self, context => context.ecdh(items, out));
        scrub_stack();
    }

    /// As [`Engine::ecdh`], keeping each point's table for a second multiple.
    pub fn ecdh_keep(&self, items: &[EcdhItem<'_>], out: &mut Vec<Option<Kept>>) {
        dispatch!(self, context => context.ecdh_keep(items, out));
        scrub_stack();
    }

    /// x(kᵢ·Pᵢ) for points whose tables were kept: less than half the price of the first multiple.
    ///
    /// # Panics
    /// If a table belongs to another backend.
    pub fn ecdh_again(&self, items: &[(&PointTable, &SecretScalar)], out: &mut Vec<SharedSecret>) {
        self.assert_own_points(items);
        dispatch!(self, context => context.ecdh_again(items, out));
        scrub_stack();
    }

    /// The public keys of secret ones.
    pub fn key_pairs(&self, secrets: &[SecretScalar], out: &mut Vec<PublicKey>) {
        dispatch!(self, context => context.key_pairs(secrets, out));
        scrub_stack();
    }

    /// Signs digests: r ‖ s each.
    pub fn sign(&self, key: &SecretScalar, items: &[SignItem<'_>], out: &mut Vec<[u8; 64]>) {
        dispatch!(self, context => context.sign(key, items, out));
        scrub_stack();
    }

    pub(crate) fn key_tables(
        &self,
        keys: &[(TableSlot, PublicKey)],
        width: TableWidth,
        mut put: impl FnMut(usize, usize, &Row),
    ) {
        dispatch!(self, context => context.key_tables(keys, width.shape(), &mut put));
    }

    fn assert_own_points(&self, items: &[(&PointTable, &SecretScalar)]) {
        let backend = self.backend();
        let own = items.iter().all(|(table, _)| table.backend == backend);
        assert!(own, "a point's table was made by another backend");
    }

    fn assert_own(&self, table: &Table<'_>) {
        assert!(table.backend == self.backend(), "the table was made for another backend");
    }
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
