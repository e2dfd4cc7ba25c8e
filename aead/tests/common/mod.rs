//! What the test binaries share: backends to test, randomness, a reference, a batch.
#![allow(dead_code, reason = "each test binary uses its own part")]

use aes_gcm::{Aes128Gcm, KeyInit, aead::AeadInOut};
use duet_aead::{Backend, Gcm, Key, Record, Verdict};

/// A token for every backend that this CPU has; says loudly which ones go untested.
pub(crate) fn backends() -> Vec<Gcm> {
    Backend::ALL
        .into_iter()
        .filter_map(|backend| {
            let gcm = Gcm::with(backend);
            if gcm.is_none() {
                eprintln!("SKIPPED: backend {backend} is NOT TESTED, this CPU lacks it");
            }
            gcm
        })
        .collect()
}

/// One record with everything it owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Case {
    pub(crate) key: [u8; 16],
    pub(crate) nonce: [u8; 12],
    pub(crate) aad: Vec<u8>,
    pub(crate) payload: Vec<u8>,
    pub(crate) tag: [u8; 16],
}

impl Case {
    /// A plaintext of `len` bytes with random content.
    pub(crate) fn random(random: &mut Random, len: usize, aad: usize) -> Self {
        Self {
            key: random.bytes(16).try_into().unwrap(),
            nonce: random.bytes(12).try_into().unwrap(),
            aad: random.bytes(aad),
            payload: random.bytes(len),
            tag: [0; 16],
        }
    }

    /// The same record sealed by `aes-gcm`.
    pub(crate) fn sealed(&self) -> Self {
        let mut sealed = self.clone();
        sealed.tag = Aes128Gcm::new(&self.key.into())
            .encrypt_inout_detached(
                &self.nonce.into(),
                &self.aad,
                sealed.payload.as_mut_slice().into(),
            )
            .unwrap()
            .into();
        sealed
    }

    /// Flips one bit of the payload or the tag.
    pub(crate) fn damage(&mut self, random: &mut Random) {
        let at = random.below(self.payload.len() + 16);
        let bit = 1 << random.below(8);
        match self.payload.get_mut(at) {
            Some(byte) => *byte ^= bit,
            None => self.tag[at - self.payload.len()] ^= bit,
        }
    }
}

pub(crate) fn expand(gcm: Gcm, cases: &[Case]) -> Vec<Key> {
    let mut keys: Vec<Key> = cases.iter().map(|_| Key::vacant()).collect();
    let bytes: Vec<&[u8; 16]> = cases.iter().map(|case| &case.key).collect();
    gcm.expand_batch(&bytes, &mut keys);
    keys
}

fn records<'a>(keys: &'a [Key], cases: &'a mut [Case]) -> Vec<Record<'a>> {
    keys.iter()
        .zip(cases)
        .map(|(key, case)| Record {
            key,
            nonce: case.nonce,
            aad: &case.aad,
            payload: &mut case.payload,
            tag: &mut case.tag,
        })
        .collect()
}

pub(crate) fn seal(gcm: Gcm, keys: &[Key], cases: &mut [Case]) {
    gcm.seal_batch(&mut records(keys, cases));
}

pub(crate) fn open(gcm: Gcm, keys: &[Key], cases: &mut [Case]) -> Vec<bool> {
    let mut verdicts = vec![Verdict::Rejected; cases.len()];
    gcm.open_batch(&mut records(keys, cases), &mut verdicts);
    verdicts.iter().map(|v| v.is_authentic()).collect()
}

/// SplitMix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).unwrap()
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> =
            (0..len.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).collect();
        bytes.truncate(len);
        bytes
    }
}
