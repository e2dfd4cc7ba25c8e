//! A spool in memory and a generator of numbers, for tests and benches.

use std::future::{Future, ready};
use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::orders::{Asked, Taken, Taker, Taking};
use crate::source::{Reading, Source, SourceError, SpoolId};

/// A generator that says the same after the same seed (splitmix64).
pub struct Rng(u64);

impl Rng {
    /// From a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 bits.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`, which is not 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.draw() % limit
    }
}

/// A reading that owns what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The device's name.
    pub device: String,
    /// Its identity.
    pub id: [u8; 16],
    /// The device's channel.
    pub channel: u16,
    /// When it was received.
    pub received_ms: u64,
    /// When it was measured.
    pub measured_ms: u64,
    /// What the device sent.
    pub payload: Vec<u8>,
}

#[derive(Default)]
struct Shelf {
    spool: SpoolId,
    readings: Vec<Stored>,
    first: u64,
    durable: Option<u64>,
    released: u64,
}

/// A spool in memory; clones share it.
#[derive(Clone, Default)]
pub struct Memory(Arc<Mutex<Shelf>>);

impl Memory {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// With up to two thousand readings of all sizes.
    pub fn random(rng: &mut Rng) -> Self {
        let memory = Self::new();
        let large = rng.below(2) == 0;
        for _ in 0..1 + rng.below(2_000) {
            let payload = rng.draw().to_be_bytes().repeat(if large { 128 } else { 1 });
            let length = usize::try_from(rng.below(payload.len() as u64)).unwrap_or(0);
            memory.push("pump-7", 0, &payload[..length]);
        }
        memory
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives it a name.
    pub fn name(&self, spool: SpoolId) {
        self.shelf().spool = spool;
    }

    /// Stores a reading, received now.
    pub fn push(&self, device: &str, channel: u16, payload: &[u8]) {
        let mut shelf = self.shelf();
        let mut id = [0x5a; 16];
        id[8..].copy_from_slice(&(shelf.readings.len() as u64).to_be_bytes());
        let now_ms = crate::report::now_ms();
        shelf.readings.push(Stored {
            device: device.to_owned(),
            id,
            channel,
            received_ms: now_ms,
            measured_ms: now_ms,
            payload: payload.to_vec(),
        });
    }

    /// Stores this reading.
    pub fn store(&self, reading: Stored) {
        self.shelf().readings.push(reading);
    }

    /// Forgets what lies below.
    pub fn trim(&self, first: u64) {
        self.shelf().first = first;
    }

    /// Pretends that what lies below is durable, and nothing else; where that is more than was stored, the rest is missing.
    pub fn show_until(&self, end: u64) {
        self.shelf().durable = Some(end);
    }
}

impl Source for Memory {
    fn spool_id(&self) -> SpoolId {
        self.shelf().spool
    }

    fn first(&self) -> u64 {
        self.shelf().first
    }

    fn durable(&self) -> u64 {
        let shelf = self.shelf();
        shelf.durable.unwrap_or(shelf.readings.len() as u64)
    }

    fn read(
        &mut self,
        index: u64,
        visit: &mut dyn FnMut(u64, &Reading<'_>) -> ControlFlow<()>,
    ) -> Result<u64, SourceError> {
        let end = self.durable();
        let shelf = self.shelf();
        let mut next = index.max(shelf.first);
        let place = |index| usize::try_from(index).unwrap_or(usize::MAX);
        while next < end
            && let Some(stored) = shelf.readings.get(place(next))
        {
            let reading = Reading {
                device: &stored.device,
                id: stored.id,
                again: false,
                notice: None,
                channel: stored.channel,
                received_ms: stored.received_ms,
                measured_ms: stored.measured_ms,
                payload: &stored.payload,
            };
            next += 1;
            if visit(next - 1, &reading).is_break() {
                return Ok(next);
            }
        }
        Ok(next.max(end))
    }

    fn released(&self) -> u64 {
        self.shelf().released
    }

    fn release(&mut self, index: u64) {
        self.shelf().released = index;
    }
}

#[derive(Default)]
struct Page {
    /// Keys and bodies.
    taken: Vec<(String, Vec<u8>)>,
    asked: usize,
    later: bool,
}

/// Takes commands into memory, each key once. What has no key, and a body that begins with `?`, is refused; clones share it.
#[derive(Clone, Default)]
pub struct Book(Arc<Mutex<Page>>);

impl Book {
    fn page(&self) -> MutexGuard<'_, Page> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keys and bodies, in the order in which they came.
    #[must_use]
    pub fn taken(&self) -> Vec<(String, Vec<u8>)> {
        self.page().taken.clone()
    }

    /// How often something came.
    #[must_use]
    pub fn asked(&self) -> usize {
        self.page().asked
    }

    /// Whether everything is to come again later.
    pub fn put_off(&self, later: bool) {
        self.page().later = later;
    }
}

impl Taker for Book {
    fn take(&self, asked: Asked) -> Pin<Box<dyn Future<Output = Taking> + Send + '_>> {
        let mut page = self.page();
        page.asked += 1;
        let taken = match asked.key {
            _ if page.later => Taken::Later("not now".to_owned()),
            Some(key) if !asked.body.starts_with(b"?") => {
                let known = page.taken.iter().any(|(other, _)| *other == key);
                let answer = format!("took {key}").into_bytes();
                if !known {
                    page.taken.push((key, asked.body.to_vec()));
                }
                Taken::Queued { answer, known }
            }
            _ => Taken::Refused { answer: b"no".to_vec() },
        };
        let taking: Taking = Box::pin(ready(taken));
        Box::pin(ready(taking))
    }
}
