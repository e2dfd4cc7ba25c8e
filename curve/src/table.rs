//! Tables of keys: what verification and fixed-base ECDH read instead of doubling.

use crate::backend::Backend;
use crate::comb::{Shape, TRANSIENT_ENTRIES};
use crate::engine::Engine;
use crate::keys::PublicKey;
use std::fmt;

/// One affine point in a cache line: x, then y, in a backend's canonical Montgomery words.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Row(pub(crate) [u64; 8]);

/// How much memory the table of one key takes, and so how fast its signatures are verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TableWidth {
    /// 512 bytes a key.
    Bytes512,
    /// 1 KiB a key.
    KiB1,
    /// 2 KiB a key.
    KiB2,
    /// 4 KiB a key.
    KiB4,
}

impl TableWidth {
    /// All widths, narrowest first.
    pub const ALL: [Self; 4] = [Self::Bytes512, Self::KiB1, Self::KiB2, Self::KiB4];

    pub(crate) const fn shape(self) -> Shape {
        match self {
            Self::Bytes512 => Shape { w: 4, v: 1, e: 64 },
            Self::KiB1 => Shape { w: 4, v: 2, e: 32 },
            Self::KiB2 => Shape { w: 5, v: 2, e: 26 },
            Self::KiB4 => Shape { w: 6, v: 2, e: 22 },
        }
    }

    /// Bytes a table takes.
    #[must_use]
    pub const fn bytes(self) -> usize {
        self.shape().entries() * size_of::<Row>()
    }
}

/// Where a table is in its arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TableSlot(pub u32);

/// Room for the tables of a fixed number of keys, in one allocation made at start.
///
/// Which key has which slot, and which is evicted, is the caller's policy: a slot is simply
/// overwritten.
pub struct TableArena {
    backend: Backend,
    width: TableWidth,
    rows: Vec<Row>,
    keys: Vec<Option<PublicKey>>,
}

/// One key's table, in an arena.
#[derive(Clone, Copy)]
pub struct Table<'a> {
    pub(crate) backend: Backend,
    pub(crate) width: TableWidth,
    pub(crate) rows: &'a [Row],
    pub(crate) key: &'a PublicKey,
}

impl<'a> Table<'a> {
    /// The key the table belongs to.
    #[must_use]
    pub fn key(&self) -> &'a PublicKey {
        self.key
    }
}

impl fmt::Debug for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table").field("width", &self.width).field("key", self.key).finish()
    }
}

impl TableArena {
    /// An empty arena of `slots` tables. It takes `slots` times [`TableWidth::bytes`], and 72 bytes a
    /// slot for the keys. Its tables serve engines of `engine`'s backend.
    #[must_use]
    pub fn new(engine: &Engine, width: TableWidth, slots: usize) -> Self {
        Self {
            backend: engine.backend(),
            width,
            rows: vec![Row([0; 8]); slots * width.shape().entries()],
            keys: vec![None; slots],
        }
    }

    /// The width of every table.
    #[must_use]
    pub fn width(&self) -> TableWidth {
        self.width
    }

    /// How many tables there is room for.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.keys.len()
    }

    /// Computes the tables of keys, as many at once as the backend has lanes, and puts them into their
    /// slots. A batch of eight costs little more than one.
    ///
    /// # Panics
    /// If a slot is out of range or the engine's backend is another than the arena's.
    pub fn insert(&mut self, engine: &Engine, keys: &[(TableSlot, PublicKey)]) {
        assert!(engine.backend() == self.backend, "the arena was made for another backend");
        let entries = self.width.shape().entries();
        for (slot, key) in keys {
            self.keys[slot.0 as usize] = Some(*key);
        }
        engine.key_tables(keys, self.width, |i, entry, row| {
            self.rows[keys[i].0.0 as usize * entries + entry] = *row;
        });
    }

    /// Empties a slot.
    pub fn remove(&mut self, slot: TableSlot) {
        if let Some(key) = self.keys.get_mut(slot.0 as usize) {
            *key = None;
        }
    }

    /// The table in a slot, if there is one.
    #[must_use]
    pub fn get(&self, slot: TableSlot) -> Option<Table<'_>> {
        let at = slot.0 as usize;
        let key = self.keys.get(at)?.as_ref()?;
        let entries = self.width.shape().entries();
        let rows = &self.rows[at * entries..(at + 1) * entries];
        Some(Table { backend: self.backend, width: self.width, rows, key })
    }
}

impl fmt::Debug for TableArena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TableArena")
            .field("backend", &self.backend)
            .field("width", &self.width)
            .field("slots", &self.slots())
            .finish_non_exhaustive()
    }
}

/// The comb of a point that is multiplied twice: 512 bytes and a tag, kept between the two. Public data.
///
/// Any engine of the backend that made it may use it. An engine of another backend, which could not
/// read the numbers, refuses it with a panic, as it refuses a [`Table`].
#[derive(Clone)]
pub struct PointTable {
    pub(crate) rows: [Row; TRANSIENT_ENTRIES],
    pub(crate) backend: Backend,
}

impl fmt::Debug for PointTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PointTable").field("backend", &self.backend).finish_non_exhaustive()
    }
}
