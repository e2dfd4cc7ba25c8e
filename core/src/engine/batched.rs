//! The batched engine: eight lanes at once where the CPU has them, and a table for each device's key that is agreed with
//! again and again, which happens only after its device has proven itself.

use std::hash::{BuildHasher as _, RandomState};

use duet_curve::{
    Backend, Key, PointTable, SignItem, Table, TableArena, TableSlot, TableWidth, Teeth, VerifyItem,
};
use duet_protocol::ec::{
    Agreed, EncapsulateTask, Encapsulated, SecretScalar, SharedX, Signature, VerifyTask,
};
use duet_protocol::identity::PublicKey;
use hashbrown::HashTable;
use zeroize::Zeroizing;

use super::Engine;
use crate::{Random, Wiped};

/// The fewest tables: one chunk of work must find room at once.
const SLOTS_MIN: usize = 32;
/// Tables that are allocated together.
const ARENA: usize = 1_024;
/// Tasks on devices' keys that are worked on at once.
const CHUNK: usize = SLOTS_MIN;

/// Answers batches with `duet_curve`, and keeps tables of the keys it met last.
pub struct Batched {
    curve: duet_curve::Engine,
    tables: Tables,
}

/// Which key has which table. When there is room for no more, the table that has not been used
/// since the hand last came by is overwritten (the clock algorithm).
struct Tables {
    /// Each with room for [`ARENA`] tables.
    arenas: Vec<TableArena>,
    /// The most tables.
    most: usize,
    /// Slots by the hash of their keys, which are not held twice.
    slots: HashTable<u32>,
    hasher: RandomState,
    /// The keys by slot, compressed.
    keys: Vec<[u8; 33]>,
    used: Vec<bool>,
    hand: usize,
}

impl Batched {
    /// An engine that keeps the tables of up to `keys` devices, 4 KiB each, made as they come.
    /// The seed, fresh and random, is for verifying signatures together.
    #[must_use]
    pub fn new(backend: Backend, keys: usize, seed: &[u8; 32]) -> Self {
        let curve = duet_curve::Engine::new(backend, seed);
        let tables = Tables {
            arenas: Vec::new(),
            most: keys.max(SLOTS_MIN),
            slots: HashTable::new(),
            hasher: RandomState::new(),
            keys: Vec::new(),
            used: Vec::new(),
            hand: 0,
        };
        Self { curve, tables }
    }
}

impl Tables {
    fn slot(&mut self, key: &PublicKey) -> Option<usize> {
        let key = compressed(key);
        let same = |slot: &u32| self.keys[*slot as usize] == key;
        let slot = *self.slots.find(self.hasher.hash_one(key), same)? as usize;
        self.used[slot] = true;
        Some(slot)
    }

    fn table(&self, slot: usize) -> Option<Table<'_>> {
        self.arenas[slot / ARENA].get(within(slot))
    }

    fn take_slot(&mut self, key: &PublicKey) -> usize {
        if self.keys.len() < self.most {
            self.keys.push(compressed(key));
            self.used.push(true);
            self.enter(self.keys.len() - 1);
            return self.keys.len() - 1;
        }
        while self.used[self.hand] {
            self.used[self.hand] = false;
            self.hand = (self.hand + 1) % self.keys.len();
        }
        let slot = self.hand;
        self.hand = (self.hand + 1) % self.keys.len();
        let hash = self.hasher.hash_one(self.keys[slot]);
        if let Ok(entry) = self.slots.find_entry(hash, |entered| *entered as usize == slot) {
            entry.remove();
        }
        self.keys[slot] = compressed(key);
        self.enter(slot);
        self.used[slot] = true;
        slot
    }

    /// Makes a slot found by its key.
    fn enter(&mut self, slot: usize) {
        let hash = |slot: &u32| self.hasher.hash_one(self.keys[*slot as usize]);
        let Ok(slot) = u32::try_from(slot) else { unreachable!("tables fill memory before") };
        self.slots.insert_unique(hash(&slot), slot, hash);
    }

    /// Makes the missing tables of at most [`CHUNK`] keys.
    fn insert(&mut self, curve: &duet_curve::Engine, keys: &[PublicKey]) {
        let mut missing: Vec<Vec<_>> = Vec::new();
        for key in keys {
            if self.slot(key).is_none()
                && let Ok(point) = duet_curve::PublicKey::from_sec1_bytes(&key.0)
            {
                let slot = self.take_slot(key);
                missing.resize_with(missing.len().max(slot / ARENA + 1), Vec::new);
                missing[slot / ARENA].push((within(slot), point));
            }
        }
        for (arena, missing) in missing.into_iter().enumerate().filter(|(_, some)| !some.is_empty())
        {
            while self.arenas.len() <= arena {
                let slots = ARENA.min(self.most - self.arenas.len() * ARENA);
                self.arenas.push(TableArena::new(curve, TableWidth::KiB4, slots));
            }
            self.arenas[arena].insert(curve, &missing);
        }
    }
}

/// SEC 1 §2.3.3: a point on the curve is told by its x and the parity of its y.
fn compressed(key: &PublicKey) -> [u8; 33] {
    let mut out = [0; 33];
    out.copy_from_slice(&key.0[..33]);
    out[0] = 2 | key.0[64] & 1;
    out
}

fn within(slot: usize) -> TableSlot {
    #[expect(clippy::cast_possible_truncation, reason = "below the size of an arena")]
    TableSlot((slot % ARENA) as u32)
}

fn scalar(secret: &SecretScalar) -> duet_curve::SecretScalar {
    match duet_curve::SecretScalar::from_bytes(secret.expose()) {
        Some(scalar) => scalar,
        None => unreachable!("a secret scalar is in range by construction"),
    }
}

impl Engine for Batched {
    type PointTable = PointTable;

    fn decapsulate(
        &mut self,
        secret: &SecretScalar,
        xs: &[[u8; 32]],
    ) -> Wiped<Option<(Agreed, PointTable)>> {
        // The engine makes no more of them than there is room for, so that none moves; each is wiped where it lies.
        let mut answers = Vec::with_capacity(xs.len());
        self.curve.decapsulate(&scalar(secret), xs, &mut answers);
        answers
            .iter()
            .zip(xs)
            .map(|(answer, x)| {
                let answer = answer.as_ref()?;
                let shared = SharedX(*answer.shared.as_bytes());
                Some((
                    Agreed { point: PublicKey::from_coordinates(x, &answer.y), shared },
                    answer.table.clone(),
                ))
            })
            .collect()
    }

    fn verify(&mut self, tasks: &[(&VerifyTask, Option<&Teeth>)]) -> Vec<bool> {
        let keys: Vec<_> = tasks
            .iter()
            .map(|(task, _)| match duet_curve::PublicKey::from_sec1_bytes(&task.key.0) {
                Ok(key) => key,
                Err(_) => unreachable!("public keys are on the curve by construction"),
            })
            .collect();
        // A key's table would tell who has one.
        let items: Vec<_> = tasks
            .iter()
            .zip(&keys)
            .map(|((task, teeth), key)| VerifyItem {
                key: teeth.map_or(Key::Plain(key), |teeth| Key::Teeth(key, teeth)),
                digest: &task.digest,
                signature: &task.signature,
            })
            .collect();
        let mut verdicts = Vec::with_capacity(items.len());
        self.curve.verify(&items, &mut verdicts);
        verdicts.into_iter().map(duet_curve::Verdict::is_valid).collect()
    }

    fn encapsulate(
        &mut self,
        tasks: &[(&EncapsulateTask, Option<&PointTable>)],
    ) -> Wiped<Option<Encapsulated>> {
        let scalars: Vec<_> = tasks.iter().map(|(task, _)| scalar(&task.scalar)).collect();
        let mut answers: Wiped<Option<Encapsulated>> = tasks.iter().map(|_| None).collect();
        let mut put = |place: usize, agreed: &duet_curve::Agreed| {
            let shared = SharedX(*agreed.shared.as_bytes());
            let public =
                PublicKey::from_coordinates(&agreed.public.x(), &agreed.public.y()).with_even_y();
            answers[place] = Some(Encapsulated { point: public, shared });
        };

        let kept = tasks.iter().zip(&scalars).enumerate();
        let kept = kept.filter_map(|(i, ((_, kept), scalar))| kept.map(|kept| (i, (kept, scalar))));
        let (places, items): (Vec<_>, Vec<_>) = kept.unzip();
        let mut agreed = Vec::with_capacity(items.len());
        self.curve.agree(&items, &mut agreed);
        places.into_iter().zip(&agreed).for_each(|(place, agreed)| put(place, agreed));

        let preset: Vec<_> = (0..tasks.len()).filter(|i| tasks[*i].1.is_none()).collect();
        for places in preset.chunks(CHUNK) {
            let keys: Vec<_> = places.iter().map(|i| tasks[*i].0.peer).collect();
            self.tables.insert(&self.curve, &keys);
            let slots: Vec<_> = keys.iter().map(|key| self.tables.slot(key)).collect();
            let mut found = Vec::with_capacity(places.len());
            let mut items = Vec::with_capacity(places.len());
            for (place, slot) in places.iter().zip(slots) {
                if let Some(table) = slot.and_then(|slot| self.tables.table(slot)) {
                    found.push(*place);
                    items.push((table, &scalars[*place]));
                }
            }
            let mut agreed = Vec::with_capacity(items.len());
            self.curve.agree_preset(&items, &mut agreed);
            found.into_iter().zip(&agreed).for_each(|(place, agreed)| put(place, agreed));
        }
        // Where tables are few, one of a chunk may have made room for another of it.
        for (answer, (task, _)) in answers.iter_mut().zip(tasks) {
            if answer.is_none() {
                *answer = duet_protocol::ec::encapsulate(task);
            }
        }
        answers
    }

    fn sign(
        &mut self,
        secret: &SecretScalar,
        digests: &[[u8; 32]],
        random: &mut Random,
    ) -> Vec<Option<Signature>> {
        let randomness: Vec<Zeroizing<[u8; 32]>> =
            digests.iter().map(|_| Zeroizing::new(random.bytes())).collect();
        let items: Vec<_> = digests
            .iter()
            .zip(&randomness)
            .map(|(digest, randomness)| SignItem { digest, randomness })
            .collect();
        let mut signatures = Vec::with_capacity(items.len());
        self.curve.sign(&scalar(secret), &items, &mut signatures);
        signatures.into_iter().map(Some).collect()
    }

    fn slow_verifications(&self) -> u64 {
        self.curve.slow_verifications()
    }
}
