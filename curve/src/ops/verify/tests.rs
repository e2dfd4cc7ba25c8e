//! The slow path of verification, forced by someone who knows S.

use super::*;
use crate::backend::portable::Portable;
use crate::engine::Engine;
use crate::keys::SecretScalar;
use crate::order;
use crate::table::{TableArena, TableSlot};
use crate::{Backend, EcdhItem};
use p256::elliptic_curve::sec1::ToSec1Point;
use p256::elliptic_curve::{Group, PrimeField, ops::Reduce};
use p256::{ProjectivePoint, Scalar};

fn bytes(s: &Scalar) -> [u8; 32] {
    s.to_repr().into()
}

fn power(e: usize) -> Scalar {
    (0..e).fold(Scalar::ONE, |x, _| x.double())
}

/// Deterministic scalars.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> Scalar {
        self.0 += 1;
        (Scalar::from(self.0) + power(200)).square().square() + Scalar::from(7u64)
    }
}

/// A multiple of G that is known as a + b·d, where d is the private key.
#[derive(Clone, Copy)]
struct Linear(Scalar, Scalar);

/// The accumulator before each addition of `run`, and what is added, where S = `start`·G.
fn steps(shape: Shape, start: &Scalar, u1: &Scalar, u2: &Scalar) -> Vec<(Linear, Linear)> {
    let words = |u: &Scalar| order::limbs(&bytes(u));
    let comb = Digits::<Portable>::for_comb(&words(u2), shape);
    let windows = Digits::<Portable>::new(&words(u1), G_WIDTH * G_WINDOWS);
    let signed = |x: Scalar, negative: u8| if negative & 1 == 1 { -x } else { x };
    let (mut acc, mut all) = (Linear(*start, Scalar::ZERO), vec![]);
    for r in (0..shape.e).rev() {
        for s in 0..shape.v {
            if s == 0 && r != shape.e - 1 {
                acc = Linear(acc.0.double(), acc.1.double());
            }
            let (index, negative) = comb.comb(shape, r, s);
            let signs = index as usize | shape.block();
            let sum = (0..shape.w).fold(Scalar::ZERO, |sum, t| {
                let tooth = power(t * shape.steps() + s * shape.e);
                if signs >> t & 1 == 1 { sum + tooth } else { sum - tooth }
            });
            let entry = Linear(Scalar::ZERO, signed(sum, negative));
            all.push((acc, entry));
            acc.1 += entry.1;
        }
    }
    for i in 0..G_WINDOWS {
        let (index, negative) = windows.window(G_WIDTH, i);
        let multiple = Scalar::from(2 * index + 1) * power(G_WIDTH * i);
        let entry = Linear(signed(multiple, negative), Scalar::ZERO);
        all.push((acc, entry));
        acc.0 += entry.0;
    }
    let correction = -(*start * power(shape.e - 1));
    assert!(acc.0 + correction == *u1 && acc.1 == *u2, "the model differs from the code");
    all.push((acc, Linear(correction, Scalar::ZERO)));
    all
}

/// Key, digest, signature, and whether it is valid.
type Crafted = (PublicKey, [u8; 32], [u8; 64], bool);

/// A signature, with a key made for it, whose verification adds ±(the accumulator) at step `at`.
fn craft(
    shape: Shape,
    start: &Scalar,
    at: usize,
    equal: bool,
    valid: bool,
    numbers: &mut Numbers,
) -> Option<Crafted> {
    let (u1, u2) = (numbers.next(), numbers.next());
    let (acc, entry) = steps(shape, start, &u1, &u2)[at];
    let entry = if equal { entry } else { Linear(-entry.0, -entry.1) };
    // acc.0 + acc.1·d = entry.0 + entry.1·d
    let d = (entry.0 - acc.0) * Option::<Scalar>::from((acc.1 - entry.1).invert())?;
    let point = |k: &Scalar| {
        let p = ProjectivePoint::mul_by_generator(k).to_affine();
        p256::PublicKey::from_affine(p).ok()
    };
    let key = PublicKey::from(&point(&d)?);
    let r = match valid {
        true => {
            let x: [u8; 32] = point(&(u1 + u2 * d))?.to_sec1_point(true).as_bytes()[1..]
                .try_into()
                .expect("32 bytes");
            <Scalar as Reduce<p256::FieldBytes>>::reduce(&x.into())
        }
        false => numbers.next(),
    };
    let s = r * Option::<Scalar>::from(u2.invert())?;
    let mut signature = [0; 64];
    signature[..32].copy_from_slice(&bytes(&r));
    signature[32..].copy_from_slice(&bytes(&s));
    Some((key, bytes(&(u1 * s)), signature, valid))
}

fn check(backend: Backend) {
    let mut numbers = Numbers(0);
    let start = numbers.next();
    // The seed is S's scalar.
    let engine = Engine::new(backend, &bytes(&start));
    let ordinary: Vec<Crafted> = {
        let other = numbers.next();
        (0..8).filter_map(|i| craft(TRANSIENT, &other, i, true, i % 3 != 0, &mut numbers)).collect()
    };
    assert_eq!(ordinary.len(), 8);
    let kinds = [Kind::Plain, Kind::Teeth].into_iter().chain(TableWidth::ALL.map(Kind::Table));
    for kind in kinds {
        let shape = kind.width().shape();
        let count = shape.steps() + G_WINDOWS + 1;
        let (mut forced, mut accepted) = (0, 0);
        for at in 0..count {
            for (equal, valid) in [(true, true), (true, false), (false, true), (false, false)] {
                if at == count - 1 && !equal {
                    continue; // R = infinity is not a real exception
                }
                let crafted = craft(shape, &start, at, equal, valid, &mut numbers)
                    .expect("no other coincidence");
                let position = at % 9;
                let mut batch = ordinary.clone();
                batch.insert(position.min(8), crafted);
                let keys: Vec<_> = (0..).zip(&batch).map(|(i, c)| (TableSlot(i), c.0)).collect();
                let mut arena = TableArena::new(&engine, kind.width(), batch.len());
                arena.insert(&engine, &keys);
                let all: Vec<_> = keys.iter().map(|(_, key)| *key).collect();
                let teeth = Teeth::of(backend, &all);
                let items: Vec<_> = (0..)
                    .zip(&batch)
                    .zip(&teeth)
                    .map(|((i, (key, digest, signature, _)), teeth)| VerifyItem {
                        key: match kind {
                            Kind::Plain => Key::Plain(key),
                            Kind::Teeth => Key::Teeth(key, teeth),
                            Kind::Table(_) => Key::Table(arena.get(TableSlot(i)).expect("a table")),
                        },
                        digest,
                        signature,
                    })
                    .collect();
                let before = engine.slow_verifications();
                let mut verdicts = vec![];
                engine.verify(&items, &mut verdicts);
                for (i, (verdict, (.., valid))) in verdicts.iter().zip(&batch).enumerate() {
                    assert_eq!(verdict.is_valid(), *valid, "item {i}, {kind:?}, step {at}");
                }
                let slow = engine.slow_verifications() - before;
                assert_eq!(slow, 1, "{kind:?}, step {at}, equal {equal}");
                // The same signature alone, which may take another way.
                let mut verdicts = vec![];
                engine.verify(&items[position.min(8)..][..1], &mut verdicts);
                assert_eq!(verdicts[0].is_valid(), valid, "alone, {kind:?}, step {at}");
                assert_eq!(engine.slow_verifications() - before, 2, "alone, {kind:?}, step {at}");
                forced += 1;
                accepted += usize::from(valid);
            }
        }
        eprintln!("{backend:?}, {kind:?}: {forced} through the slow path, {accepted} valid");
    }
}

#[test]
fn every_step_can_be_exceptional_in_the_portable_backend() {
    check(Backend::portable());
}

#[test]
fn every_step_can_be_exceptional_in_the_adx_backend() {
    match Backend::adx() {
        Some(backend) => check(backend),
        None => eprintln!("SKIPPED: this CPU lacks BMI2 or ADX"),
    }
}

#[test]
fn every_step_can_be_exceptional_in_the_ifma_backend() {
    match Backend::ifma() {
        Some(backend) => check(backend),
        None => eprintln!("SKIPPED: this CPU lacks AVX-512 IFMA"),
    }
}

/// A signer without S can aim at R = ∞ only, which is told from an exception.
#[test]
fn infinity_does_not_take_the_slow_path() {
    for backend in Backend::all() {
        let mut numbers = Numbers(900);
        let start = numbers.next();
        let engine = Engine::new(backend, &bytes(&start));
        let shape = TRANSIENT;
        let at = shape.steps() + G_WINDOWS;
        let (key, digest, signature, _) =
            craft(shape, &start, at, false, false, &mut numbers).expect("a signature");
        let item = VerifyItem { key: Key::Plain(&key), digest: &digest, signature: &signature };
        let mut verdicts = vec![];
        engine.verify(&[item; 9], &mut verdicts);
        engine.verify(&[item], &mut verdicts);
        assert_eq!(verdicts, [Verdict::Invalid; 10]);
        assert_eq!(engine.slow_verifications(), 0);
    }
}

#[test]
#[should_panic(expected = "made by another backend")]
fn a_table_of_another_backend_is_refused() {
    let Some(ifma) = Backend::ifma() else { panic!("made by another backend: cannot be tested") };
    let engines = [Engine::new(ifma, &[1; 32]), Engine::new(Backend::portable(), &[1; 32])];
    let secret = SecretScalar::from_bytes(&[1; 32]).expect("in range");
    let mut keys = vec![];
    engines[0].key_pairs(core::slice::from_ref(&secret), &mut keys);
    let point: [u8; 64] = keys[0].to_sec1_bytes()[1..].try_into().expect("64 bytes");
    let mut kept = vec![];
    engines[0].ecdh_keep(&[EcdhItem { secret: &secret, point: &point }], &mut kept);
    let table = &kept[0].as_ref().expect("on the curve").table;
    // Another engine of the same backend may use it.
    let same = Engine::new(ifma, &[2; 32]);
    let mut out = vec![];
    same.ecdh_again(&[(table, &secret)], &mut out);
    assert_eq!(out[0].as_bytes(), kept[0].as_ref().expect("on the curve").shared.as_bytes());
    engines[1].agree(&[(table, &secret)], &mut vec![]);
}
