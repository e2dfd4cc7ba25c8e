//! Small records, batched here and one at a time elsewhere: ns a record, and ratios with `ring`.
//!
//! Every implementation takes its turn within each round of one pinned run, and the medians over
//! the rounds are compared: on a shared machine only such ratios mean anything.
//!
//! `cargo bench -p duet-aead [-- --quick]`
#![allow(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use std::{array, hint::black_box, time::Instant};

use aes_gcm::{Aes128Gcm, KeyInit, aead::AeadInOut};
use duet_aead::{Backend, Gcm, Key, Record, Verdict};

/// Keys of the second case. They are 3.2 MB here, and more for the peers: third-level cache.
const KEYS: usize = 10_000;
/// Records sealed or opened between two looks at the clock.
const CHUNK: usize = 64;
const AAD: [u8; 11] = [3; 11];

type Buffer = [u8; 320];

struct Peers {
    ring: Vec<ring::aead::LessSafeKey>,
    aws_lc: Vec<aws_lc_rs::aead::LessSafeKey>,
    aes_gcm: Vec<Aes128Gcm>,
}

/// One measured case.
struct Case {
    /// Which key each record uses.
    order: Vec<usize>,
    len: usize,
    open: bool,
    /// A sealed record under each key, for opening.
    sealed: Vec<Buffer>,
}

fn main() {
    let quick = std::env::args().any(|a| a == "--quick");
    let rounds = if quick { 5 } else { 15 };
    println!("pinned to CPU {}", pin());

    let mut random = Random(1);
    let raw: Vec<[u8; 16]> = (0..KEYS).map(|_| random.block()).collect();
    let peers = Peers {
        ring: raw
            .iter()
            .map(|k| ring::aead::UnboundKey::new(&ring::aead::AES_128_GCM, k).unwrap())
            .map(ring::aead::LessSafeKey::new)
            .collect(),
        aws_lc: raw
            .iter()
            .map(|k| aws_lc_rs::aead::UnboundKey::new(&aws_lc_rs::aead::AES_128_GCM, k).unwrap())
            .map(aws_lc_rs::aead::LessSafeKey::new)
            .collect(),
        aes_gcm: raw.iter().map(|k| Aes128Gcm::new(&(*k).into())).collect(),
    };
    let ours: Vec<(Gcm, Vec<Key>)> = Backend::ALL
        .into_iter()
        .filter_map(Gcm::with)
        .map(|gcm| (gcm, expand_all(gcm, &raw)))
        .collect();

    let mut shuffled: Vec<usize> = (0..KEYS).collect();
    for i in (1..KEYS).rev() {
        shuffled.swap(i, random.below(i + 1));
    }
    println!("AAD {} B; ns a record, and ring's time over it", AAD.len());
    for (name, order) in [("hot key", vec![7; KEYS]), ("10,000 keys", shuffled)] {
        for len in [16, 64, 128, 256] {
            for open in [true, false] {
                let sealed = seal_all(&peers.aes_gcm, len);
                let case = Case { order: order.clone(), len, open, sealed };
                let verb = if open { "open" } else { "seal" };
                println!("\n{verb} {len} B, {name}");
                run(&case, &ours, &peers, rounds);
            }
        }
    }
    key_setup(&ours, &raw, rounds);
}

fn run(case: &Case, ours: &[(Gcm, Vec<Key>)], peers: &Peers, rounds: usize) {
    let mut names = Vec::new();
    let mut times: Vec<Vec<f64>> = Vec::new();
    for round in 0..=rounds {
        let mut turn = 0;
        // The first round warms caches and is not counted.
        let mut note = |name: String, ns: f64| {
            if round == 0 {
                names.push(name);
                times.push(Vec::new());
            } else {
                times[turn].push(ns);
            }
            turn += 1;
        };
        for (gcm, keys) in ours {
            let backend = gcm.backend();
            note(format!("{backend}, batch 16"), batched::<16>(case, *gcm, keys));
            note(format!("{backend}, batch 64"), batched::<64>(case, *gcm, keys));
        }
        note("ring".into(), with_ring(case, &peers.ring));
        note("aws-lc-rs".into(), with_aws_lc(case, &peers.aws_lc));
        note("aes-gcm".into(), with_aes_gcm(case, &peers.aes_gcm));
    }
    let medians: Vec<f64> = times.iter_mut().map(|t| median(t)).collect();
    let ring = medians[names.iter().position(|n| n == "ring").unwrap()];
    for (name, ns) in names.iter().zip(&medians) {
        println!("  {name:20} {ns:7.1} ns   {:5.2}x", ring / ns);
    }
}

fn batched<const BATCH: usize>(case: &Case, gcm: Gcm, keys: &[Key]) -> f64 {
    chunks(case, |chunk, nonces, buffers| {
        for ((chunk, nonces), buffers) in chunk
            .chunks_exact(BATCH)
            .zip(nonces.chunks_exact(BATCH))
            .zip(buffers.chunks_exact_mut(BATCH))
        {
            let mut buffers = buffers.iter_mut();
            let mut records: [Record<'_>; BATCH] = array::from_fn(|i| {
                let (payload, tag) = buffers.next().unwrap().split_at_mut(case.len);
                let tag = tag.first_chunk_mut().unwrap();
                Record { key: &keys[chunk[i]], nonce: nonces[i], aad: &AAD, payload, tag }
            });
            if case.open {
                let mut verdicts = [Verdict::Rejected; BATCH];
                gcm.open_batch(&mut records, &mut verdicts);
                assert!(verdicts.iter().all(|v| v.is_authentic()));
            } else {
                gcm.seal_batch(&mut records);
            }
        }
    })
}

fn with_ring(case: &Case, keys: &[ring::aead::LessSafeKey]) -> f64 {
    use ring::aead::{Aad, Nonce};
    one_by_one(case, |key, nonce, buffer| {
        let nonce = Nonce::assume_unique_for_key(nonce);
        if case.open {
            keys[key].open_in_place(nonce, Aad::from(&AAD), &mut buffer[..case.len + 16]).unwrap();
        } else {
            let (payload, tag) = buffer.split_at_mut(case.len);
            let sealed = keys[key].seal_in_place_separate_tag(nonce, Aad::from(&AAD), payload);
            tag[..16].copy_from_slice(sealed.unwrap().as_ref());
        }
    })
}

fn with_aws_lc(case: &Case, keys: &[aws_lc_rs::aead::LessSafeKey]) -> f64 {
    use aws_lc_rs::aead::{Aad, Nonce};
    one_by_one(case, |key, nonce, buffer| {
        let nonce = Nonce::assume_unique_for_key(nonce);
        if case.open {
            keys[key].open_in_place(nonce, Aad::from(&AAD), &mut buffer[..case.len + 16]).unwrap();
        } else {
            let (payload, tag) = buffer.split_at_mut(case.len);
            let sealed = keys[key].seal_in_place_separate_tag(nonce, Aad::from(&AAD), payload);
            tag[..16].copy_from_slice(sealed.unwrap().as_ref());
        }
    })
}

fn with_aes_gcm(case: &Case, keys: &[Aes128Gcm]) -> f64 {
    one_by_one(case, |key, nonce, buffer| {
        let (payload, tag) = buffer.split_at_mut(case.len);
        let tag: &mut [u8; 16] = tag.first_chunk_mut().unwrap();
        if case.open {
            let tag = (*tag).into();
            keys[key].decrypt_inout_detached(&nonce.into(), &AAD, payload.into(), &tag).unwrap();
        } else {
            let sealed = keys[key].encrypt_inout_detached(&nonce.into(), &AAD, payload.into());
            *tag = sealed.unwrap().into();
        }
    })
}

fn one_by_one(case: &Case, mut f: impl FnMut(usize, [u8; 12], &mut Buffer)) -> f64 {
    chunks(case, |chunk, nonces, buffers| {
        for ((&key, &nonce), buffer) in chunk.iter().zip(nonces).zip(buffers) {
            f(key, nonce, buffer);
        }
    })
}

/// Times `f` on chunks of records, without the filling of their buffers; ns a record.
fn chunks(case: &Case, mut f: impl FnMut(&[usize], &[[u8; 12]], &mut [Buffer])) -> f64 {
    let mut buffers = [[1_u8; 320]; CHUNK];
    let mut nonces = [[0; 12]; CHUNK];
    let mut sequence = 0_u64;
    let mut seconds = [0.0; 2];
    // The first pass finds the caches full of the previous implementation's keys. Only the second
    // counts: it has its own keys as far up as they fit, whoever went before.
    for (pass, chunk) in [0, 1]
        .into_iter()
        .flat_map(|pass| case.order.chunks_exact(CHUNK).map(move |chunk| (pass, chunk)))
    {
        for (i, &key) in chunk.iter().enumerate() {
            if case.open {
                buffers[i][..case.len + 16].copy_from_slice(&case.sealed[key][..case.len + 16]);
            } else {
                sequence += 1;
                nonces[i][4..].copy_from_slice(&sequence.to_be_bytes());
            }
        }
        let start = Instant::now();
        f(chunk, &nonces, &mut buffers);
        seconds[pass] += start.elapsed().as_secs_f64();
        black_box(&buffers);
    }
    seconds[1] * 1e9 / (case.order.len() / CHUNK * CHUNK) as f64
}

fn seal_all(keys: &[Aes128Gcm], len: usize) -> Vec<Buffer> {
    keys.iter()
        .map(|key| {
            let mut buffer = [1; 320];
            let payload = &mut buffer[..len];
            let tag = key.encrypt_inout_detached(&[0; 12].into(), &AAD, payload.into()).unwrap();
            buffer[len..len + 16].copy_from_slice(&tag);
            buffer
        })
        .collect()
}

fn expand_all(gcm: Gcm, raw: &[[u8; 16]]) -> Vec<Key> {
    let mut keys: Vec<Key> = raw.iter().map(|_| Key::vacant()).collect();
    for (key, bytes) in keys.iter_mut().zip(raw) {
        key.init(gcm, bytes);
    }
    keys
}

fn key_setup(ours: &[(Gcm, Vec<Key>)], raw: &[[u8; 16]], rounds: usize) {
    println!("\nkey set-up, ns (object: ours {} B)", size_of::<Key>());
    let raw = &raw[..1000];
    let time = |f: &mut dyn FnMut(&[u8; 16])| {
        let mut times: Vec<f64> = (0..rounds)
            .map(|_| {
                let start = Instant::now();
                raw.iter().for_each(&mut *f);
                start.elapsed().as_secs_f64() * 1e9 / raw.len() as f64
            })
            .collect();
        median(&mut times)
    };
    for (gcm, _) in ours {
        let mut key = Key::vacant();
        let ns = time(&mut |k| {
            key.init(*gcm, k);
            black_box(&key);
        });
        println!("  {:20} {ns:7.1} ns", gcm.backend().name());
        let mut keys: Vec<Key> = (0..CHUNK).map(|_| Key::vacant()).collect();
        let mut times: Vec<f64> = (0..rounds)
            .map(|_| {
                let start = Instant::now();
                for chunk in raw.chunks_exact(CHUNK) {
                    let bytes: [&[u8; 16]; CHUNK] = array::from_fn(|i| &chunk[i]);
                    gcm.expand_batch(&bytes, &mut keys);
                    black_box(&keys);
                }
                start.elapsed().as_secs_f64() * 1e9 / (raw.len() / CHUNK * CHUNK) as f64
            })
            .collect();
        println!(
            "  {:20} {:7.1} ns",
            format!("{}, batch {CHUNK}", gcm.backend()),
            median(&mut times)
        );
    }
    let ns = time(&mut |k| {
        let key = ring::aead::UnboundKey::new(&ring::aead::AES_128_GCM, k).unwrap();
        black_box(ring::aead::LessSafeKey::new(key));
    });
    println!("  {:20} {ns:7.1} ns", "ring");
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Pins this thread to the last CPU it may use.
#[allow(unsafe_code, reason = "libc has no safe way to set the affinity")]
fn pin() -> usize {
    // SAFETY: `cpu_set_t` is plain bits; both calls get its true size and act on this thread.
    unsafe {
        let mut allowed: libc::cpu_set_t = std::mem::zeroed();
        libc::sched_getaffinity(0, size_of_val(&allowed), &raw mut allowed);
        let cpu = (0..1024).rev().find(|&cpu| libc::CPU_ISSET(cpu, &allowed)).unwrap_or(0);
        let mut one: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut one);
        libc::sched_setaffinity(0, size_of_val(&one), &raw const one);
        cpu
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).unwrap()
    }

    fn block(&mut self) -> [u8; 16] {
        let mut block = [0; 16];
        block[..8].copy_from_slice(&self.next().to_le_bytes());
        block[8..].copy_from_slice(&self.next().to_le_bytes());
        block
    }
}
