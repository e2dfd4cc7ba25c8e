//! What the integration tests share: engines of every backend, and a small deterministic generator.
#![allow(dead_code, missing_docs, unreachable_pub, clippy::cast_possible_truncation)]

use duet_curve::{
    BACKEND_VARIABLE, Backend, Engine, PublicKey, SecretScalar, TableArena, TableSlot, TableWidth,
};

/// How many cases the longest tests are to try: `DUET_CURVE_CASES`, or a million.
pub fn cases() -> usize {
    match std::env::var("DUET_CURVE_CASES") {
        Ok(n) => n.parse().expect("DUET_CURVE_CASES is a number"),
        Err(_) => 1_000_000,
    }
}

/// One engine a backend this CPU runs; says loudly which one it leaves out. Where `DUET_BACKEND` forces
/// a backend, the one that was forced.
pub fn engines() -> Vec<Engine> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).expect("randomness");
    if let Some(forced) = std::env::var_os(BACKEND_VARIABLE) {
        let backend = Backend::detect();
        assert_eq!(forced, backend.name(), "this CPU does not run the backend that was forced");
        return vec![Engine::new(backend, &seed)];
    }
    for (name, backend) in [("ifma", Backend::ifma()), ("adx", Backend::adx())] {
        if backend.is_none() {
            eprintln!("SKIPPED: this CPU does not run the {name} backend, which is NOT tested");
        }
    }
    Backend::all().map(|backend| Engine::new(backend, &seed)).collect()
}

/// SplitMix64.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub fn bytes(&mut self) -> [u8; 32] {
        let mut out = [0; 32];
        for chunk in out.as_chunks_mut::<8>().0 {
            *chunk = self.next().to_le_bytes();
        }
        out
    }

    /// Bytes of a scalar in range.
    pub fn scalar(&mut self) -> [u8; 32] {
        loop {
            let bytes = self.bytes();
            if SecretScalar::from_bytes(&bytes).is_some() {
                return bytes;
            }
        }
    }
}

pub fn secret(bytes: &[u8; 32]) -> SecretScalar {
    SecretScalar::from_bytes(bytes).expect("a scalar in range")
}

/// An arena that holds these keys, in order.
pub fn arena(engine: &Engine, width: TableWidth, keys: &[PublicKey]) -> TableArena {
    let mut arena = TableArena::new(engine, width, keys.len());
    let slots: Vec<_> = keys.iter().enumerate().map(|(i, k)| (TableSlot(i as u32), *k)).collect();
    arena.insert(engine, &slots);
    arena
}
