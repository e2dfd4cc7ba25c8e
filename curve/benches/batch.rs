//! Every operation against aws-lc-rs, as ratios.
//!
//! All measurements are interleaved: each round runs every operation and the anchors once, on one
//! pinned core, and a ratio is the median over rounds of (anchor in this round) / (operation in this
//! round). Absolute times are medians too, but on a shared machine only ratios mean something.
//!
//! `cargo bench -p duet-curve -- [rounds]`
#![allow(unsafe_code, clippy::cast_possible_truncation, clippy::cast_precision_loss)]

use aws_lc_rs::{agreement, digest, signature};
use duet_curve::{
    Backend, EcdhItem, Engine, Key, PublicKey, SecretScalar, SignItem, TableArena, TableSlot,
    TableWidth, Teeth, VerifyItem,
};
use p256::elliptic_curve::Group;
use p256::elliptic_curve::ops::Reduce;
use p256::elliptic_curve::point::AffineCoordinates;
use p256::{ProjectivePoint, Scalar};
use std::hint::black_box;

const DEVICES: usize = 4096;
/// Items a measurement: a multiple of every batch size.
const ITEMS: usize = 256;

fn main() {
    let rounds = std::env::args().find_map(|a| a.parse().ok()).unwrap_or(41);
    pin(0);
    let mut bench = Bench::default();
    let world = World::new();
    let seed = random();
    let engines: Vec<_> = Backend::all().map(|b| (Engine::new(b, &seed), b.name())).collect();
    let arenas: Vec<Vec<TableArena>> = engines
        .iter()
        .map(|(engine, _)| TableWidth::ALL.map(|w| world.arena(engine, w)).into())
        .collect();
    for round in 0..=rounds {
        bench.round(round > 0); // the first warms up
        world.anchors(&mut bench);
        for ((engine, name), arenas) in engines.iter().zip(&arenas) {
            let items = if *name == "ifma" { ITEMS } else { 64 };
            world.verify(&mut bench, engine, name, arenas, items, round);
            world.flood(&mut bench, engine, name, &arenas[3], &seed);
            world.secret(&mut bench, engine, name, arenas, items, round);
        }
    }
    bench.report();
}

/// Pins this thread to one core.
fn pin(core: usize) {
    // SAFETY: a zeroed `cpu_set_t` is an empty set, `core` is within it, and the call reads it only.
    unsafe {
        let mut set: libc::cpu_set_t = core::mem::zeroed();
        libc::CPU_SET(core, &mut set);
        if libc::sched_setaffinity(0, size_of_val(&set), &raw const set) != 0 {
            println!("could not pin to core {core}");
        }
    }
}

/// Seconds this thread has run: others on the core do not count.
fn thread_time() -> f64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `t` is a valid place to write to.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut t) };
    t.tv_sec as f64 + t.tv_nsec as f64 * 1e-9
}

fn random() -> [u8; 32] {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).expect("randomness");
    bytes
}

fn scalar_bytes() -> [u8; 32] {
    loop {
        let bytes = random();
        if SecretScalar::from_bytes(&bytes).is_some() {
            return bytes;
        }
    }
}

fn secret(bytes: &[u8; 32]) -> SecretScalar {
    SecretScalar::from_bytes(bytes).expect("in range")
}

fn reduced(bytes: &[u8; 32]) -> Scalar {
    <Scalar as Reduce<p256::FieldBytes>>::reduce(&(*bytes).into())
}

fn index(below: usize) -> usize {
    let r = random();
    usize::from(u16::from_le_bytes([r[0], r[1]])) % below
}

/// What is known of a key beforehand: itself, its teeth, or a table, by its place among the widths.
#[derive(Clone, Copy)]
enum Known {
    Key,
    Teeth,
    Table(usize),
}

#[derive(Default)]
struct Bench {
    names: Vec<(String, String, Option<f64>)>,
    /// Microseconds an item, by operation, by round.
    times: Vec<Vec<f64>>,
    at: usize,
    counted: bool,
}

impl Bench {
    fn round(&mut self, counted: bool) {
        (self.at, self.counted) = (0, counted);
    }

    /// Measures `f`, which handles `items` items. `anchor` names what to compare with, and `goal` is
    /// the ratio aimed at.
    fn run(
        &mut self,
        name: String,
        anchor: &str,
        goal: Option<f64>,
        items: usize,
        f: impl FnOnce(),
    ) {
        let start = thread_time();
        f();
        let time = (thread_time() - start) * 1e6 / items as f64;
        if self.times.len() == self.at {
            self.names.push((name, anchor.into(), goal));
            self.times.push(vec![]);
        }
        if self.counted {
            self.times[self.at].push(time);
        }
        self.at += 1;
    }

    fn report(&self) {
        println!("{:52} {:>9} {:>8} {:>7}  against", "", "µs/item", "ratio", "goal");
        for (i, (name, anchor, goal)) in self.names.iter().enumerate() {
            let base = self.names.iter().position(|(n, ..)| n == anchor).unwrap_or(i);
            let ratios = self.times[base].iter().zip(&self.times[i]).map(|(a, b)| a / b).collect();
            let goal = goal.map_or(String::new(), |g| format!("≥{g}"));
            let time = median(self.times[i].clone());
            println!("{name:52} {time:9.3} {:8.2} {goal:>7}  {anchor}", median(ratios));
        }
    }
}

fn median(mut v: Vec<f64>) -> f64 {
    v.sort_by(f64::total_cmp);
    v[v.len() / 2]
}

const VERIFY: &str = "aws-lc-rs verify (parsed key, digest given)";
const ECDH: &str = "aws-lc-rs ECDH";
const TWO_ECDH: &str = "aws-lc-rs ECDH, twice";
const KEY_PAIR: &str = "aws-lc-rs key pair";
const SIGN: &str = "aws-lc-rs sign";

struct World {
    device_secrets: Vec<Scalar>,
    keys: Vec<PublicKey>,
    teeth: Vec<Teeth>,
    /// Device, digest, signature.
    signed: Vec<(usize, [u8; 32], [u8; 64])>,
    secrets: Vec<SecretScalar>,
    points: Vec<[u8; 64]>,
    xs: Vec<[u8; 32]>,
    aws_keys: Vec<signature::ParsedPublicKey>,
    aws_digests: Vec<digest::Digest>,
    aws_secret: agreement::PrivateKey,
    aws_signer: signature::EcdsaKeyPair,
}

impl World {
    fn new() -> Self {
        let engine = Engine::new(Backend::detect(), &random());
        let bytes: Vec<_> = (0..DEVICES).map(|_| scalar_bytes()).collect();
        let secrets: Vec<_> = bytes.iter().map(secret).collect();
        let mut keys = vec![];
        engine.key_pairs(&secrets, &mut keys);
        let teeth = Teeth::of(engine.backend(), &keys);
        let mut signed = vec![];
        let mut aws_digests = vec![];
        for _ in 0..DEVICES {
            let device = index(DEVICES);
            let digest = digest::digest(&digest::SHA256, &random());
            let bytes: [u8; 32] = digest.as_ref().try_into().expect("32 bytes");
            let item = SignItem { digest: &bytes, randomness: &random() };
            let mut out = vec![];
            engine.sign(&secrets[device], &[item], &mut out);
            signed.push((device, bytes, out[0]));
            aws_digests.push(digest);
        }
        let aws_keys = keys
            .iter()
            .map(|k| {
                signature::ParsedPublicKey::new(
                    &signature::ECDSA_P256_SHA256_FIXED,
                    k.to_sec1_bytes(),
                )
                .expect("a key")
            })
            .collect();
        let points = keys
            .iter()
            .take(ITEMS)
            .map(|k| k.to_sec1_bytes()[1..].try_into().expect("64 bytes"))
            .collect();
        Self {
            teeth,
            device_secrets: bytes.iter().map(reduced).collect(),
            xs: keys.iter().take(ITEMS).map(PublicKey::x).collect(),
            secrets: secrets.into_iter().take(ITEMS).collect(),
            points,
            keys,
            signed,
            aws_keys,
            aws_digests,
            aws_secret: agreement::PrivateKey::generate(&agreement::ECDH_P256).expect("a key"),
            aws_signer: signature::EcdsaKeyPair::generate(
                &signature::ECDSA_P256_SHA256_FIXED_SIGNING,
            )
            .expect("a key"),
        }
    }

    fn arena(&self, engine: &Engine, width: TableWidth) -> TableArena {
        let slots: Vec<_> =
            self.keys.iter().enumerate().map(|(i, k)| (TableSlot(i as u32), *k)).collect();
        let mut arena = TableArena::new(engine, width, DEVICES);
        arena.insert(engine, &slots);
        arena
    }

    fn anchors(&self, bench: &mut Bench) {
        const N: usize = 32;
        bench.run(VERIFY.into(), VERIFY, None, N, || {
            for ((device, _, sig), digest) in self.signed.iter().zip(&self.aws_digests).take(N) {
                self.aws_keys[*device].verify_digest_sig(digest, sig).expect("valid");
            }
        });
        let ecdh = |point: &[u8; 64]| {
            let peer = [&[4][..], point].concat();
            let peer = agreement::UnparsedPublicKey::new(&agreement::ECDH_P256, peer);
            agreement::agree(&self.aws_secret, peer, (), |s| {
                black_box(s);
                Ok(())
            })
            .expect("agrees");
        };
        bench.run(ECDH.into(), ECDH, None, N, || self.points.iter().take(N).for_each(ecdh));
        bench.run(TWO_ECDH.into(), ECDH, None, N, || {
            for point in self.points.iter().take(N) {
                ecdh(point);
                ecdh(point);
            }
        });
        bench.run(KEY_PAIR.into(), KEY_PAIR, None, N, || {
            for _ in 0..N {
                let key = agreement::PrivateKey::generate(&agreement::ECDH_P256).expect("a key");
                black_box(key.compute_public_key().expect("a key"));
            }
        });
        bench.run(SIGN.into(), SIGN, None, N, || {
            for digest in self.aws_digests.iter().take(N) {
                black_box(self.aws_signer.sign_digest(digest).expect("signs"));
            }
        });
    }

    fn verify(
        &self,
        bench: &mut Bench,
        engine: &Engine,
        name: &str,
        arenas: &[TableArena],
        n: usize,
        round: usize,
    ) {
        let ifma = name == "ifma";
        let goal =
            |of_ifma: f64, of_portable: Option<f64>| if ifma { Some(of_ifma) } else { of_portable };
        let mut verdicts = Vec::with_capacity(n);
        let mut turn = round * 9;
        let mut go = |bench: &mut Bench, label: &str, goal, batch: usize, known: Known| {
            // Other items each time, so that tables and signatures come from memory for all alike.
            let first = turn * n % (DEVICES - n);
            turn += 1;
            let items: Vec<_> = self.signed[first..first + n]
                .iter()
                .map(|(device, digest, signature)| {
                    let key = match known {
                        Known::Key => Key::Plain(&self.keys[*device]),
                        Known::Teeth => Key::Teeth(&self.keys[*device], &self.teeth[*device]),
                        Known::Table(w) => {
                            Key::Table(arenas[w].get(TableSlot(*device as u32)).expect("a table"))
                        }
                    };
                    VerifyItem { key, digest, signature }
                })
                .collect();
            verdicts.clear();
            bench.run(format!("{name} verify, {label}, batch {batch}"), VERIFY, goal, n, || {
                for items in items.chunks(batch) {
                    engine.verify(items, &mut verdicts);
                }
            });
            assert!(verdicts.iter().all(|v| v.is_valid()));
        };
        go(bench, "4 KiB tables", goal(17.0, Some(2.4)), 64, Known::Table(3));
        go(bench, "4 KiB tables", goal(12.0, None), 8, Known::Table(3));
        go(bench, "4 KiB tables", goal(1.0, Some(1.0)), 1, Known::Table(3));
        go(bench, "2 KiB tables", None, 64, Known::Table(2));
        go(bench, "1 KiB tables", None, 64, Known::Table(1));
        go(bench, "0.5 KiB tables", None, 64, Known::Table(0));
        for (label, known) in [("teeth", Known::Teeth), ("no tables", Known::Key)] {
            go(bench, label, goal(5.0, None), 64, known);
            go(bench, label, None, 8, known);
            go(bench, label, goal(1.0, None), 1, known);
        }
    }

    /// What someone who knows the engine's seed, and so its secret point S, can do: valid signatures
    /// with R = −2ᵉ·S, which meet their like in the last addition. The goal is at most twice the time.
    fn flood(
        &self,
        bench: &mut Bench,
        engine: &Engine,
        name: &str,
        arena: &TableArena,
        seed: &[u8; 32],
    ) {
        const N: usize = 64;
        for (label, e, table) in [("4 KiB tables", 22, true), ("no tables", 64, false)] {
            let nonce = -(0..e).fold(reduced(seed), |s, _| s.double());
            let point = ProjectivePoint::mul_by_generator(&nonce).to_affine();
            let r = reduced(&AffineCoordinates::x(&point).into());
            let inverse = nonce.invert().expect("not zero");
            let signatures: Vec<[u8; 64]> = self.signed[..N]
                .iter()
                .map(|(device, digest, _)| {
                    let s = inverse * (reduced(digest) + r * self.device_secrets[*device]);
                    let mut signature = [0; 64];
                    signature[..32].copy_from_slice(&r.to_bytes());
                    signature[32..].copy_from_slice(&s.to_bytes());
                    signature
                })
                .collect();
            let items: Vec<_> = (self.signed.iter().zip(&signatures))
                .map(|((device, digest, _), signature)| {
                    let key = match table {
                        true => Key::Table(arena.get(TableSlot(*device as u32)).expect("a table")),
                        false => Key::Plain(&self.keys[*device]),
                    };
                    VerifyItem { key, digest, signature }
                })
                .collect();
            let before = engine.slow_verifications();
            let mut verdicts = Vec::with_capacity(N);
            let anchor = format!("{name} verify, {label}, batch 64");
            let label = format!("{name} verify, slow path by design, {label}, batch 64");
            bench.run(label, &anchor, Some(0.5), N, || engine.verify(&items, &mut verdicts));
            assert!(verdicts.iter().all(|v| v.is_valid()));
            assert_eq!(engine.slow_verifications() - before, N as u64);
        }
    }

    fn secret(
        &self,
        bench: &mut Bench,
        engine: &Engine,
        name: &str,
        arenas: &[TableArena],
        n: usize,
        round: usize,
    ) {
        let ifma = name == "ifma";
        let goal =
            |of_ifma: f64, of_portable: Option<f64>| if ifma { Some(of_ifma) } else { of_portable };
        let items: Vec<_> = self
            .points
            .iter()
            .zip(&self.secrets)
            .take(n)
            .map(|(point, secret)| EcdhItem { secret, point })
            .collect();
        for (batch, goal) in [(64, goal(5.0, Some(0.9))), (8, None), (1, None)] {
            let mut out = Vec::with_capacity(n);
            bench.run(format!("{name} ECDH, batch {batch}"), ECDH, goal, n, || {
                items.chunks(batch).for_each(|i| engine.ecdh(i, &mut out));
            });
        }
        for (batch, goal) in [(64, goal(7.0, None)), (8, goal(6.5, None))] {
            let mut kept = Vec::with_capacity(batch);
            let mut again = Vec::with_capacity(n);
            bench.run(format!("{name} s·E, then e·E, batch {batch}"), TWO_ECDH, goal, n, || {
                for (i, e) in items.chunks(batch).zip(self.secrets.chunks(batch)) {
                    kept.clear();
                    engine.ecdh_keep(i, &mut kept);
                    let second: Vec<_> =
                        kept.iter().flatten().zip(e).map(|(k, e)| (&k.table, e)).collect();
                    engine.ecdh_again(&second, &mut again);
                }
            });
        }
        for batch in [64, 8] {
            let mut out = Vec::with_capacity(batch);
            let mut agreed = Vec::with_capacity(n);
            bench.run(format!("{name} decapsulate, batch {batch}"), ECDH, None, n, || {
                for xs in self.xs[..n].chunks(batch) {
                    out.clear();
                    engine.decapsulate(&self.secrets[0], xs, &mut out);
                }
            });
            let tables: Vec<_> = out.iter().flatten().map(|d| &d.table).collect();
            bench.run(format!("{name} agree (e·G, e·E), batch {batch}"), ECDH, None, n, || {
                for secrets in self.secrets[..n].chunks(batch) {
                    let items: Vec<_> = tables.iter().copied().zip(secrets).collect();
                    engine.agree(&items, &mut agreed);
                }
            });
        }
        let table = |i: usize| {
            let device = (round * n + i * 37) % DEVICES;
            arenas[3].get(TableSlot(device as u32)).expect("a table")
        };
        let preset: Vec<_> = (0..n).map(|i| (table(i), &self.secrets[i])).collect();
        for (batch, goal) in [(64, goal(13.0, None)), (8, None)] {
            let mut out = Vec::with_capacity(n);
            bench.run(
                format!("{name} fixed base, 4 KiB table, batch {batch}"),
                ECDH,
                goal,
                n,
                || {
                    preset.chunks(batch).for_each(|i| engine.ecdh_preset(i, &mut out));
                },
            );
        }
        let mut agreed = Vec::with_capacity(n);
        bench.run(format!("{name} f·G and fixed base, batch 64"), ECDH, None, n, || {
            preset.chunks(64).for_each(|i| engine.agree_preset(i, &mut agreed));
        });
        for (batch, goal) in [(64, goal(6.0, Some(0.9))), (8, None)] {
            let mut keys = Vec::with_capacity(n);
            bench.run(format!("{name} key pair, batch {batch}"), KEY_PAIR, goal, n, || {
                self.secrets[..n].chunks(batch).for_each(|s| engine.key_pairs(s, &mut keys));
            });
        }
        let randomness = random();
        let to_sign: Vec<_> = self.signed[..n]
            .iter()
            .map(|(_, digest, _)| SignItem { digest, randomness: &randomness })
            .collect();
        for (batch, goal) in [(64, goal(9.0, Some(0.9))), (8, None)] {
            let mut out = Vec::with_capacity(n);
            bench.run(format!("{name} sign, batch {batch}"), SIGN, goal, n, || {
                to_sign.chunks(batch).for_each(|i| engine.sign(&self.secrets[0], i, &mut out));
            });
        }
        let some: Vec<_> = (0..64).map(|i| (TableSlot(i), self.keys[i as usize])).collect();
        let mut arena = TableArena::new(engine, TableWidth::KiB4, 64);
        bench.run(format!("{name} make a 4 KiB table, batch 64"), VERIFY, None, 64, || {
            arena.insert(engine, &some);
        });
    }
}
