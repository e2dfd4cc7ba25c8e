//! Every operation against `p256`, a million cases in each backend.
//!
//! `p256` takes hundreds of microseconds a multiplication, so that a million would take minutes. But a
//! table of a·P for many a and another of b·P for many b give (a + b)·P for all pairs at the price of
//! an addition. Half of the a and b are random, half structured: small numbers, powers of two, their
//! negatives.
//!
//! `DUET_CURVE_CASES` sets another number of cases.
#![allow(clippy::cast_possible_truncation)]

mod support;

use duet_curve::{EcdhItem, Key, PublicKey, TableSlot, TableWidth, Teeth, VerifyItem};
use p256::elliptic_curve::ops::Reduce;
use p256::elliptic_curve::sec1::ToSec1Point;
use p256::elliptic_curve::{BatchNormalize, PrimeField};
use p256::{ProjectivePoint, Scalar};
use support::{Rng, arena, cases, engines, secret};

/// Pairs made at once.
const BLOCK: usize = 64;
/// Multiples in a table.
const SIDE: usize = 512;

fn bytes(s: &Scalar) -> [u8; 32] {
    s.to_repr().into()
}

fn reduced(bytes: [u8; 32]) -> Scalar {
    <Scalar as Reduce<p256::FieldBytes>>::reduce(&bytes.into())
}

/// Half random, half structured; never 0.
fn scalars(rng: &mut Rng) -> Vec<Scalar> {
    (0..SIDE)
        .map(|i| {
            let structured = match i % 4 {
                0 | 1 => return reduced(rng.scalar()),
                2 => Scalar::from(1 + rng.below(64) as u64),
                _ => (0..rng.below(256)).fold(Scalar::ONE, |x, _| x.double()),
            };
            if rng.below(2) == 0 { structured } else { -structured }
        })
        .collect()
}

/// a, b, and a·P + b·Q as x ‖ y.
type Sum = (Scalar, Scalar, [u8; 64]);

/// The tables, and the pairs that have been taken.
struct Sums {
    a: Vec<(Scalar, ProjectivePoint)>,
    b: Vec<(Scalar, ProjectivePoint)>,
    taken: usize,
}

impl Sums {
    fn new(rng: &mut Rng, p: ProjectivePoint, q: ProjectivePoint) -> Self {
        let mut side = |point| scalars(rng).into_iter().map(|k| (k, point * k)).collect::<Vec<_>>();
        Self { a: side(p), b: side(q), taken: 0 }
    }

    /// The next pairs; those with an infinite sum are left out.
    fn next(&mut self, blocks: usize) -> Vec<Sum> {
        let mut out = Vec::with_capacity(blocks * BLOCK);
        for _ in 0..blocks {
            let pairs: [_; BLOCK] = core::array::from_fn(|i| {
                let at = self.taken + i;
                // Neighbours differ in both halves; all pairs occur before one does again.
                let (i, turn) = (at % SIDE, at / SIDE);
                (self.a[i], self.b[(i + turn) % SIDE])
            });
            self.taken += BLOCK;
            let points = pairs.map(|((_, p), (_, q))| p + q);
            let points = <ProjectivePoint as BatchNormalize<_>>::batch_normalize(&points);
            for (((a, _), (b, _)), point) in pairs.iter().zip(points) {
                if let Some(xy) = point.to_sec1_point(false).as_bytes().get(1..65) {
                    out.push((*a, *b, xy.try_into().expect("64 bytes")));
                }
            }
        }
        out
    }
}

#[test]
fn key_pairs() {
    let mut rng = Rng(101);
    let g = ProjectivePoint::GENERATOR;
    let mut sums = Sums::new(&mut rng, g, g);
    let engines = engines();
    let mut done = 0;
    while done < cases() / 4 {
        let some = sums.next(16);
        done += some.len();
        let secrets: Vec<_> = some.iter().map(|(a, b, _)| secret(&bytes(&(*a + *b)))).collect();
        for engine in &engines {
            let mut keys = vec![];
            engine.key_pairs(&secrets, &mut keys);
            for ((a, b, want), key) in some.iter().zip(keys) {
                assert_eq!(key.to_sec1_bytes()[1..], want[..], "{a:?} + {b:?}");
            }
        }
    }
    eprintln!("{done} cases in each backend");
}

/// With a point just received, with its kept table, and with a key's table of each width.
#[test]
fn agreements() {
    let mut rng = Rng(102);
    let point = ProjectivePoint::GENERATOR * reduced(rng.scalar());
    let encoded = point.to_affine().to_sec1_point(false);
    let key = PublicKey::from_sec1_bytes(encoded.as_bytes()).expect("a point");
    let xy = encoded.as_bytes()[1..].try_into().expect("64 bytes");
    let mut sums = Sums::new(&mut rng, point, point);
    let engines = engines();
    let arenas: Vec<Vec<_>> =
        engines.iter().map(|e| TableWidth::ALL.map(|w| arena(e, w, &[key])).into()).collect();
    let mut done = 0;
    while done < cases() / 4 {
        let some = sums.next(16);
        done += some.len();
        let secrets: Vec<_> = some.iter().map(|(a, b, _)| secret(&bytes(&(*a + *b)))).collect();
        for (engine, arenas) in engines.iter().zip(&arenas) {
            let (fresh, rest) = secrets.split_at(secrets.len() / 3);
            let (again, preset) = rest.split_at(rest.len() / 2);
            let mut kept = vec![];
            let items: Vec<_> =
                fresh.iter().map(|secret| EcdhItem { secret, point: &xy }).collect();
            engine.ecdh_keep(&items, &mut kept);
            let kept: Vec<_> = kept.into_iter().flatten().collect();
            assert_eq!(kept.len(), fresh.len(), "a valid point was refused");
            let mut shared = vec![];
            let items: Vec<_> = again.iter().map(|s| (&kept[0].table, s)).collect();
            engine.ecdh_again(&items, &mut shared);
            for (i, run) in preset.chunks(preset.len().div_ceil(4)).enumerate() {
                let table = arenas[i].get(TableSlot(0)).expect("a table");
                let items: Vec<_> = run.iter().map(|s| (table, s)).collect();
                engine.ecdh_preset(&items, &mut shared);
            }
            let all = kept.iter().map(|k| &k.shared).chain(&shared);
            assert_eq!(all.clone().count(), some.len());
            for ((a, b, want), shared) in some.iter().zip(all) {
                assert_eq!(shared.as_bytes()[..], want[..32], "{a:?} + {b:?}");
            }
        }
    }
    eprintln!("{done} cases in each backend");
}

/// Signatures with u₁ = a and u₂ = b, whose R is a·G + b·Q by construction; a quarter is damaged. Keys
/// are random or small multiples of G, so that u₁·G = ±u₂·Q and R = ∞ happen.
#[test]
fn verifications() {
    let mut rng = Rng(103);
    let g = ProjectivePoint::GENERATOR;
    let half = Scalar::from(2u64).invert().expect("not zero");
    let mut secrets = vec![Scalar::ONE, -Scalar::ONE, Scalar::from(2u64), half];
    secrets.extend([(); 4].map(|()| reduced(rng.scalar())));
    let points: Vec<_> = secrets.iter().map(|d| g * d).collect();
    let keys: Vec<_> = (points.iter().map(|p| p.to_affine().to_sec1_point(false)))
        .map(|p| PublicKey::from_sec1_bytes(p.as_bytes()).expect("a key"))
        .collect();
    let mut sums: Vec<_> = points.iter().map(|q| Sums::new(&mut rng, g, *q)).collect();
    let engines = engines();
    let arenas: Vec<Vec<_>> =
        engines.iter().map(|e| TableWidth::ALL.map(|w| arena(e, w, &keys)).into()).collect();
    let teeth: Vec<_> = engines.iter().map(|e| Teeth::of(e.backend(), &keys)).collect();
    let mut turn = 0;
    let mut done = 0;
    while done < cases() / 2 {
        turn += 1;
        let k = turn % keys.len();
        let some = sums[k].next(16);
        done += some.len();
        let mut signed = Vec::with_capacity(some.len());
        for (i, (u1, u2, xy)) in some.iter().enumerate() {
            let r = reduced(xy[..32].try_into().expect("32 bytes"));
            let s = r * u2.invert().expect("not zero");
            let mut signature = [0; 64];
            signature[..32].copy_from_slice(&bytes(&r));
            signature[32..].copy_from_slice(&bytes(&if i % 8 == 1 { -s } else { s }));
            let mut digest = bytes(&(*u1 * s));
            match i % 8 {
                3 => digest[rng.below(32)] ^= 1 << rng.below(8),
                7 => signature[rng.below(64)] ^= 1 << rng.below(8),
                _ => {}
            }
            signed.push((digest, signature, i % 8 != 3 && i % 8 != 7));
        }
        for ((engine, arenas), teeth) in engines.iter().zip(&arenas).zip(&teeth) {
            let items: Vec<_> = (signed.iter().enumerate())
                .map(|(i, (digest, signature, _))| VerifyItem {
                    key: match (i + turn) % 16 {
                        0 => Key::Plain(&keys[k]),
                        1..8 => Key::Teeth(&keys[k], &teeth[k]),
                        i => {
                            let slot = TableSlot(k as u32);
                            Key::Table(arenas[i % 4].get(slot).expect("a table"))
                        }
                    },
                    digest,
                    signature,
                })
                .collect();
            let mut verdicts = vec![];
            engine.verify(&items, &mut verdicts);
            for ((item, verdict), (.., valid)) in items.iter().zip(verdicts).zip(&signed) {
                assert_eq!(verdict.is_valid(), *valid, "{item:?}");
            }
        }
    }
    eprintln!("{done} cases in each backend");
    assert!(engines.iter().all(|e| e.slow_verifications() == 0));
}
