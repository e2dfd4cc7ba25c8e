//! Every operation against the `p256` crate: random and structured inputs, bad items at each position,
//! exceptional scalars and crafted signatures.
#![allow(clippy::cast_possible_truncation)]

mod support;

use duet_curve::{
    EcdhItem, Engine, Key, PublicKey, SecretScalar, SignItem, TableSlot, TableWidth, Teeth,
    VerifyItem,
};
use p256::ecdsa::signature::hazmat::{PrehashSigner, PrehashVerifier};
use p256::ecdsa::{Signature, SigningKey, VerifyingKey};
use p256::elliptic_curve::ops::Reduce;
use p256::elliptic_curve::sec1::ToSec1Point;
use p256::elliptic_curve::{Field, Group, PrimeField};
use p256::{ProjectivePoint, Scalar};
use support::{Rng, arena, cases, engines, secret};

fn xy(p: &ProjectivePoint) -> [u8; 64] {
    p.to_affine().to_sec1_point(false).as_bytes()[1..].try_into().expect("not infinity")
}

fn x(p: &ProjectivePoint) -> [u8; 32] {
    xy(p)[..32].try_into().expect("32 bytes")
}

fn scalar(bytes: &[u8; 32]) -> Scalar {
    Scalar::from_repr((*bytes).into()).expect("in range")
}

fn bytes(s: &Scalar) -> [u8; 32] {
    s.to_repr().into()
}

fn power(e: usize) -> Scalar {
    (0..e).fold(Scalar::ONE, |x, _| x.double())
}

/// Small scalars, their negatives, powers of two, and the scalars for which the last addition of some
/// comb or window meets the point itself.
fn edge_scalars() -> Vec<Scalar> {
    let mut v = vec![];
    for i in 1..70u64 {
        v.push(Scalar::from(i));
    }
    for i in 0..256 {
        v.push(power(i));
        v.push(power(i) + Scalar::ONE);
    }
    // 15·2²⁵³ − n: the last window of the generator's table adds its own multiple.
    for top in 1..32u64 {
        v.push(Scalar::from(top) * power(253));
    }
    for (w, blocks, e) in [(4, 1, 64), (4, 2, 32), (5, 2, 26), (6, 2, 22)] {
        let sum = |s: usize, signs: usize| {
            (0..w).fold(Scalar::ZERO, |acc, t| {
                let tooth = power(t * blocks * e + s * e);
                if signs >> t & 1 == 1 { acc + tooth } else { acc - tooth }
            })
        };
        for signs in 0..1 << w {
            for s in 0..blocks {
                let t = sum(s, signs);
                v.extend([t, t + t, t + Scalar::ONE]);
                if blocks == 2 {
                    for other in 0..1 << w {
                        let u = sum(1 - s, other);
                        v.extend([u + u + t, u + u - t]);
                    }
                }
            }
        }
    }
    let negatives: Vec<_> = v.iter().map(|s| -*s).collect();
    v.extend(negatives);
    v.retain(|s| !bool::from(s.is_zero()));
    v
}

#[test]
fn key_pairs_at_edges_and_random() {
    let mut rng = Rng(1);
    let mut scalars: Vec<[u8; 32]> = edge_scalars().iter().map(bytes).collect();
    scalars.extend((0..4000).map(|_| rng.scalar()));
    let secrets: Vec<SecretScalar> = scalars.iter().map(secret).collect();
    let want: Vec<[u8; 64]> =
        scalars.iter().map(|s| xy(&ProjectivePoint::mul_by_generator(&scalar(s)))).collect();
    for engine in engines() {
        let mut keys = vec![];
        engine.key_pairs(&secrets, &mut keys);
        assert_eq!(keys.len(), want.len());
        for (i, (key, want)) in keys.iter().zip(&want).enumerate() {
            assert_eq!(key.to_sec1_bytes()[1..], want[..], "scalar {i} {:02x?}", scalars[i]);
        }
    }
}

#[test]
fn agreement_at_edges_and_random() {
    let mut rng = Rng(2);
    let mut scalars: Vec<[u8; 32]> = edge_scalars().iter().map(bytes).collect();
    scalars.extend((0..1000).map(|_| rng.scalar()));
    let secrets: Vec<SecretScalar> = scalars.iter().map(secret).collect();
    let point_scalars: Vec<Scalar> = (0..61).map(|_| scalar(&rng.scalar())).collect();
    let points: Vec<_> = point_scalars.iter().map(ProjectivePoint::mul_by_generator).collect();
    let encoded: Vec<[u8; 64]> = points.iter().map(xy).collect();
    let keys: Vec<_> = encoded
        .iter()
        .map(|p| PublicKey::from_sec1_bytes(&[&[4][..], p].concat()).expect("a point"))
        .collect();
    let n = scalars.len();
    let want: Vec<[u8; 32]> = (0..n)
        .map(|i| {
            x(&ProjectivePoint::mul_by_generator(&(scalar(&scalars[i]) * point_scalars[i % 61])))
        })
        .collect();
    for engine in engines() {
        let items: Vec<_> =
            (0..n).map(|i| EcdhItem { secret: &secrets[i], point: &encoded[i % 61] }).collect();
        let mut out = vec![];
        engine.ecdh(&items, &mut out);
        for (i, (shared, want)) in out.iter().zip(&want).enumerate() {
            let shared = shared.as_ref().expect("a valid point");
            assert_eq!(shared.as_bytes(), want, "ecdh {i} {:02x?}", scalars[i]);
        }
        for width in TableWidth::ALL {
            let arena = arena(&engine, width, &keys);
            let items: Vec<_> = (0..n)
                .map(|i| (arena.get(TableSlot(i as u32 % 61)).expect("a table"), &secrets[i]))
                .collect();
            let mut out = vec![];
            engine.agree_preset(&items, &mut out);
            for (i, (agreed, want)) in out.iter().zip(&want).enumerate() {
                assert_eq!(agreed.shared.as_bytes(), want, "{width:?} {i} {:02x?}", scalars[i]);
            }
            let mut public = vec![];
            engine.key_pairs(&secrets, &mut public);
            assert!(out.iter().zip(&public).all(|(a, b)| a.public == *b));
        }
    }
}

/// What verification keeps of a key serves an agreement with it, whether its signature was valid or not.
#[test]
fn verification_then_agreement() {
    let mut rng = Rng(12);
    let scalars: Vec<_> = (0..70).map(|_| scalar(&rng.scalar())).collect();
    let signers: Vec<_> = scalars.iter().map(signer).collect();
    let keys: Vec<_> = signers.iter().map(|signer| signer.public).collect();
    let digest = rng.bytes();
    let mut signatures: Vec<[u8; 64]> = (signers.iter())
        .map(|signer| {
            let signature: Signature = signer.key.sign_prehash(&digest).expect("signs");
            signature.to_bytes().into()
        })
        .collect();
    signatures.iter_mut().step_by(7).for_each(|signature| signature[40] ^= 1);
    let fresh: Vec<_> = (0..70).map(|_| rng.scalar()).collect();
    let secrets: Vec<_> = fresh.iter().map(secret).collect();
    for engine in engines() {
        let teeth = Teeth::of(engine.backend(), &keys);
        for count in [1, 2, 9, 70] {
            let items: Vec<_> = (0..count)
                .map(|i| VerifyItem {
                    key: if i % 3 == 0 {
                        Key::Plain(&keys[i])
                    } else {
                        Key::Teeth(&keys[i], &teeth[i])
                    },
                    digest: &digest,
                    signature: &signatures[i],
                })
                .collect();
            let (mut verdicts, mut tables) = (vec![], vec![]);
            engine.verify_keep(&items, &mut verdicts, &mut tables);
            let items: Vec<_> = tables.iter().zip(&secrets).collect();
            let mut agreed = vec![];
            engine.agree(&items, &mut agreed);
            assert_eq!((verdicts.len(), agreed.len()), (count, count));
            for (i, (verdict, agreed)) in verdicts.iter().zip(&agreed).enumerate() {
                assert_eq!(verdict.is_valid(), i % 7 != 0);
                let shared = ProjectivePoint::mul_by_generator(&(scalars[i] * scalar(&fresh[i])));
                assert_eq!(*agreed.shared.as_bytes(), x(&shared), "{:?}, {i}", engine.backend());
            }
        }
    }
}

#[test]
fn decapsulation_then_agreement() {
    let mut rng = Rng(3);
    let [one, two] = [1u64, 2].map(Scalar::from);
    let edges = [one, two, -one, -two].map(|s| (bytes(&s), 9));
    let sizes = [1, 2, 7, 8, 9, 63, 64, 65, 200].map(|n| (rng.scalar(), n));
    for engine in engines() {
        for (s, n) in edges.into_iter().chain(sizes) {
            let (s_p256, s_ours) = (scalar(&s), secret(&s));
            let mut xs = vec![];
            let mut points = vec![];
            for i in 0..n {
                let p = ProjectivePoint::mul_by_generator(&scalar(&rng.scalar()));
                let odd = xy(&p)[63] & 1 == 1;
                points.push(if odd { -p } else { p });
                xs.push(x(&p));
                if i % 5 == 4 {
                    // Half of all x-coordinates have no point.
                    xs[i] = loop {
                        let x = rng.bytes();
                        let bytes = [&[2][..], &x].concat();
                        if p256::PublicKey::from_sec1_bytes(&bytes).is_err() {
                            break x;
                        }
                    };
                }
                if i % 11 == 7 {
                    xs[i] = [0xff; 32];
                }
            }
            let mut out = vec![];
            engine.decapsulate(&s_ours, &xs, &mut out);
            let fresh: Vec<[u8; 32]> = (0..n)
                .map(|i| if i % 2 == 0 { edges[i / 2 % 4].0 } else { rng.scalar() })
                .collect();
            let fresh_secrets: Vec<_> = fresh.iter().map(secret).collect();
            let mut survivors = vec![];
            for i in 0..n {
                let refused = i % 5 == 4 || i % 11 == 7;
                assert_eq!(out[i].is_none(), refused, "item {i} of {n}");
                if let Some(d) = &out[i] {
                    assert_eq!(d.y, xy(&points[i])[32..]);
                    assert_eq!(*d.shared.as_bytes(), x(&(points[i] * s_p256)));
                    survivors.push((i, &d.table));
                }
            }
            // A table made alone, among those made together.
            let mut alone = vec![];
            engine.decapsulate(&s_ours, &xs[..1], &mut alone);
            if let Some(d) = &alone[0] {
                assert_eq!(*d.shared.as_bytes(), x(&(points[0] * s_p256)));
                survivors.push((0, &d.table));
            }
            survivors.reverse();
            let items: Vec<_> = survivors.iter().map(|(i, t)| (*t, &fresh_secrets[*i])).collect();
            let mut agreed = vec![];
            engine.agree(&items, &mut agreed);
            for ((i, _), a) in survivors.iter().zip(&agreed) {
                let e = scalar(&fresh[*i]);
                assert_eq!(*a.shared.as_bytes(), x(&(points[*i] * e)));
                assert_eq!(
                    a.public.to_sec1_bytes()[1..],
                    xy(&ProjectivePoint::mul_by_generator(&e))
                );
            }
        }
    }
}

/// 32 bytes.
fn hex(digits: &str) -> [u8; 32] {
    core::array::from_fn(|i| u8::from_str_radix(&digits[2 * i..2 * i + 2], 16).expect("digits"))
}

/// p + `small`, big-endian.
fn p_plus(small: u16) -> [u8; 32] {
    let mut out = hex("ffffffff00000001000000000000000000000000ffffffffffffffffffffffff");
    let mut carry = small;
    for byte in out.iter_mut().rev() {
        carry += u16::from(*byte);
        *byte = carry as u8;
        carry >>= 8;
    }
    out
}

#[test]
fn points_that_are_none() {
    let mut rng = Rng(4);
    let key = secret(&rng.scalar());
    let good = xy(&ProjectivePoint::GENERATOR);
    // Points with x = 5 and with y = 5: adding p to the coordinate still fits 32 bytes, and is the same
    // modulo p, but is not a coordinate.
    let mut small = [0; 32];
    small[31] = 5;
    let five = PublicKey::from_sec1_bytes(&[&[2][..], &small].concat()).expect("on the curve");
    let x_of_y_5 = hex("d7325d7646cd60d80a92738ceb345f844cffaf35841022cab176f692de8de1d7");
    let valid = [[five.x(), five.y()], [x_of_y_5, small]].map(|xy| xy.concat());
    for xy in &valid {
        PublicKey::from_sec1_bytes(&[&[4][..], xy].concat()).expect("on the curve");
    }
    let mut above = [valid[0].clone(), valid[1].clone()];
    above[0][..32].copy_from_slice(&p_plus(5));
    above[1][32..].copy_from_slice(&p_plus(5));
    let mut bad: Vec<[u8; 64]> =
        vec![[0; 64], [0xff; 64], p_plus(0).repeat(2).try_into().expect("64")];
    bad.extend(above.map(|b| <[u8; 64]>::try_from(b).expect("64 bytes")));
    // (x, 0) has order 2 on some curve, and (0, y) order 3.
    bad.push([[7; 32], [0; 32]].concat().try_into().expect("64 bytes"));
    bad.push([[0; 32], [7; 32]].concat().try_into().expect("64 bytes"));
    // Points of the twist, y² = x³ − 3x − b.
    for (x, y) in [
        (
            "0000000000000000000000000000000000000000000000000000000000000001",
            "e1c326485e55a67e45dd8348b4c99e8ca0a77d9150889f19a2d39dbc8c3d7cfa",
        ),
        (
            "0000000000000000000000000000000000000000000000000000000000000002",
            "de17b2671045fe58740248c17a8bd2fb2ef7c3c49b01da9f903efa3dcda669c7",
        ),
        (
            "ffffffff00000001000000000000000000000000ffffffffffffffffffffcfc5",
            "81524e96be95e4a3009453b775ff36653c3c5dd7f1157f951902d0c186224662",
        ),
    ] {
        bad.push([hex(x), hex(y)].concat().try_into().expect("64 bytes"));
    }
    for i in 0..64 {
        let mut b = good;
        b[i] ^= 1;
        bad.push(b);
    }
    for engine in engines() {
        let mut want = vec![];
        engine.ecdh(&[EcdhItem { secret: &key, point: &good }], &mut want);
        let want = want[0].as_ref().expect("on the curve");
        for bad in &bad {
            for position in 0..9 {
                let items: Vec<_> = (0..9)
                    .map(|i| EcdhItem {
                        secret: &key,
                        point: if i == position { bad } else { &good },
                    })
                    .collect();
                let mut out = vec![];
                engine.ecdh(&items, &mut out);
                for (i, shared) in out.iter().enumerate() {
                    match shared {
                        None => assert_eq!(i, position),
                        Some(s) => assert!(i != position && s.as_bytes() == want.as_bytes()),
                    }
                }
            }
        }
    }
}

struct Signer {
    key: SigningKey,
    public: PublicKey,
}

fn signer(d: &Scalar) -> Signer {
    let key = SigningKey::from_slice(&bytes(d)).expect("in range");
    let public = PublicKey::from(key.verifying_key());
    Signer { key, public }
}

/// Verifies with the key alone, with its teeth, with each width of table, and with all of them mixed.
fn check_verdicts(
    engine: &Engine,
    keys: &[PublicKey],
    cases: &[(usize, [u8; 32], [u8; 64])],
    expected: &[bool],
) {
    let arenas: Vec<_> = TableWidth::ALL.iter().map(|w| arena(engine, *w, keys)).collect();
    let teeth = Teeth::of(engine.backend(), keys);
    for kind in 0..=6 {
        let items: Vec<_> = cases
            .iter()
            .enumerate()
            .map(|(i, (k, digest, signature))| {
                let key = match if kind == 6 { i * 7 % 6 } else { kind } {
                    0 => Key::Plain(&keys[*k]),
                    1 => Key::Teeth(&keys[*k], &teeth[*k]),
                    j => Key::Table(arenas[j - 2].get(TableSlot(*k as u32)).expect("a table")),
                };
                VerifyItem { key, digest, signature }
            })
            .collect();
        let mut verdicts = vec![];
        engine.verify(&items, &mut verdicts);
        for (i, (verdict, expected)) in verdicts.iter().zip(expected).enumerate() {
            assert_eq!(
                verdict.is_valid(),
                *expected,
                "case {i}, kind {kind}, {:?}",
                engine.backend()
            );
        }
    }
}

#[test]
fn verification_of_random_and_damaged() {
    let rounds = cases() / 250;
    let mut rng = Rng(5);
    let signers: Vec<_> = (0..37).map(|_| signer(&scalar(&rng.scalar()))).collect();
    let keys: Vec<_> = signers.iter().map(|s| s.public).collect();
    let mut cases = vec![];
    let mut expected = vec![];
    for i in 0..rounds {
        let k = rng.below(keys.len());
        let mut digest = rng.bytes();
        if i % 17 == 0 {
            digest = [0; 32];
        } else if i % 17 == 1 {
            digest = [0xff; 32];
        }
        let signature: Signature = signers[k].key.sign_prehash(&digest).expect("signs");
        let mut sig: [u8; 64] = signature.to_bytes().into();
        let mut signed_by = k;
        match i % 8 {
            0..4 => {}
            4 => sig[rng.below(64)] ^= 1 << rng.below(8),
            5 => digest[rng.below(32)] ^= 1 << rng.below(8),
            6 => signed_by = (k + 1) % keys.len(),
            _ => {
                // The other s is as good.
                let s = -*signature.s();
                sig[32..].copy_from_slice(&bytes(&s));
            }
        }
        let reference = &signers[signed_by].key;
        let ok = Signature::from_slice(&sig)
            .is_ok_and(|s| reference.verifying_key().verify_prehash(&digest, &s).is_ok());
        cases.push((signed_by, digest, sig));
        expected.push(ok);
    }
    for engine in engines() {
        check_verdicts(&engine, &keys, &cases, &expected);
    }
}

#[test]
fn one_bad_lane_at_each_position() {
    let mut rng = Rng(6);
    let signer = signer(&scalar(&rng.scalar()));
    let digests: Vec<_> = (0..65).map(|_| rng.bytes()).collect();
    let signatures: Vec<[u8; 64]> = digests
        .iter()
        .map(|d| {
            let s: Signature = signer.key.sign_prehash(d).expect("signs");
            s.to_bytes().into()
        })
        .collect();
    let n = bytes(&-Scalar::ONE);
    let mut out_of_range = n;
    out_of_range[31] += 1;
    for engine in engines() {
        let arena = arena(&engine, TableWidth::KiB4, &[signer.public]);
        let teeth = Teeth::of(engine.backend(), &[signer.public]);
        for len in [1, 7, 8, 9, 65] {
            for bad in 0..len {
                for damage in 0..5 {
                    let mut sigs = signatures[..len].to_vec();
                    match damage {
                        0 => sigs[bad][..32].fill(0),
                        1 => sigs[bad][32..].fill(0),
                        2 => sigs[bad][..32].copy_from_slice(&out_of_range),
                        3 => sigs[bad][32..].fill(0xff),
                        _ => sigs[bad][40] ^= 4,
                    }
                    let table = arena.get(TableSlot(0)).expect("a table");
                    for key in [
                        Key::Plain(&signer.public),
                        Key::Teeth(&signer.public, &teeth[0]),
                        Key::Table(table),
                    ] {
                        let items: Vec<_> = digests
                            .iter()
                            .zip(&sigs)
                            .map(|(digest, signature)| VerifyItem { key, digest, signature })
                            .collect();
                        let mut verdicts = vec![];
                        engine.verify(&items, &mut verdicts);
                        for (i, v) in verdicts.iter().enumerate() {
                            assert_eq!(v.is_valid(), i != bad);
                        }
                    }
                }
            }
        }
    }
}

/// Signatures made by someone who knows the private key and aims at exceptional cases: R = ∞,
/// u₁·G = ±u₂·Q, tiny multiples, tiny and wrapped r, and keys that are small multiples of G.
#[test]
fn crafted_signatures() {
    let half = Scalar::from(2u64).invert().expect("not zero");
    let mut secrets = vec![half];
    for i in [1u64, 2, 3, 4, 5] {
        secrets.extend([Scalar::from(i), -Scalar::from(i)]);
    }
    for e in [10, 22, 26, 32, 44, 64, 128, 192] {
        secrets.push(power(e));
    }
    let mut us: Vec<Scalar> = (0..12u64).map(Scalar::from).collect();
    for i in 0..7u64 {
        us.extend([-Scalar::from(i), power(22 * i as usize), power(10 * i as usize) + Scalar::ONE]);
        us.push(power(250) * Scalar::from(i));
    }
    let signers: Vec<_> = secrets.iter().map(signer).collect();
    let keys: Vec<_> = signers.iter().map(|s| s.public).collect();
    let (mut cases, mut expected) = (vec![], vec![]);
    let mut infinite = 0;
    for (k, d) in secrets.iter().enumerate() {
        for u1 in &us {
            for u2 in &us {
                if bool::from(u2.is_zero()) {
                    continue;
                }
                let sum = *u1 + *u2 * d;
                let point = if bool::from(sum.is_zero()) {
                    infinite += 1;
                    ProjectivePoint::GENERATOR
                } else {
                    ProjectivePoint::mul_by_generator(&sum)
                };
                let r = <Scalar as Reduce<p256::FieldBytes>>::reduce(&x(&point).into());
                let s = r * u2.invert().expect("not zero");
                let mut sig = [0; 64];
                sig[..32].copy_from_slice(&bytes(&r));
                sig[32..].copy_from_slice(&bytes(&s));
                let digest = bytes(&(*u1 * s));
                let ok = Signature::from_slice(&sig).is_ok_and(|s| {
                    signers[k].key.verifying_key().verify_prehash(&digest, &s).is_ok()
                });
                cases.push((k, digest, sig));
                expected.push(ok);
            }
        }
    }
    let valid = expected.iter().filter(|ok| **ok).count();
    eprintln!("{} crafted, {valid} valid, {infinite} with R = infinity", cases.len());
    assert!(valid > 5000 && infinite > 50);
    for engine in engines() {
        check_verdicts(&engine, &keys, &cases, &expected);
    }
}

/// r is x(R) mod n: where x(R) ≥ n, r is tiny and the test must also try r + n. The key is made to fit
/// the signature: Q = r⁻¹(s·R − z·G).
#[test]
fn wrapped_and_tiny_r() {
    let mut rng = Rng(8);
    let p_minus_n = [0x4319_0553_58e8_617bu64, 0x0c46_353d_039c_daae];
    let (mut keys, mut cases, mut expected) = (vec![], vec![], vec![]);
    let n_plus = |small: u128| -> [u8; 32] {
        // n + small, which is below p.
        let n_minus_1 = bytes(&-Scalar::ONE);
        let mut out = n_minus_1;
        let mut carry = small + 1;
        for b in out.iter_mut().rev() {
            carry += u128::from(*b);
            *b = carry as u8;
            carry >>= 8;
        }
        out
    };
    for i in 0..400u128 {
        let limit = (u128::from(p_minus_n[0]) << 64) | u128::from(p_minus_n[1]);
        let small = match i % 4 {
            0 => i + 1,
            1 => limit - 1 - i,
            2 => limit + i,
            _ => (u128::from(rng.next()) << 64 | u128::from(rng.next())) % limit,
        };
        let wrapped = i % 2 == 1;
        let x_bytes = if wrapped {
            n_plus(small)
        } else {
            let mut b = [0; 32];
            b[16..].copy_from_slice(&small.to_be_bytes());
            b
        };
        let Ok(point) = p256::PublicKey::from_sec1_bytes(&[&[2][..], &x_bytes].concat()) else {
            continue;
        };
        let mut r_bytes = [0; 32];
        r_bytes[16..].copy_from_slice(&small.to_be_bytes());
        let (r, s, z) = (scalar(&r_bytes), scalar(&rng.scalar()), scalar(&rng.scalar()));
        let q = (point.to_projective() * s - ProjectivePoint::mul_by_generator(&z))
            * r.invert().expect("not zero");
        let key = VerifyingKey::from_affine(q.to_affine()).expect("a key");
        let mut sig = [0; 64];
        sig[..32].copy_from_slice(&r_bytes);
        sig[32..].copy_from_slice(&bytes(&s));
        for damage in 0..2 {
            let mut digest = bytes(&z);
            digest[5] ^= damage;
            let ok =
                Signature::from_slice(&sig).is_ok_and(|s| key.verify_prehash(&digest, &s).is_ok());
            assert_eq!(ok, damage == 0, "the reference accepts what was made to be valid");
            keys.push(PublicKey::from(&key));
            cases.push((keys.len() - 1, digest, sig));
            expected.push(ok);
        }
    }
    assert!(cases.len() > 300);
    for engine in engines() {
        check_verdicts(&engine, &keys, &cases, &expected);
    }
}

#[test]
fn signatures_verify_and_are_hedged() {
    let mut rng = Rng(9);
    let d = rng.scalar();
    let reference = SigningKey::from_slice(&d).expect("in range");
    let key = secret(&d);
    let digests: Vec<_> = (0..200)
        .map(|i| match i {
            0 => [0; 32],
            1 => [0xff; 32],
            _ => rng.bytes(),
        })
        .collect();
    let randomness: Vec<_> = (0..200).map(|_| rng.bytes()).collect();
    let items: Vec<_> = digests
        .iter()
        .zip(&randomness)
        .map(|(digest, randomness)| SignItem { digest, randomness })
        .collect();
    let mut by_backend = vec![];
    for engine in engines() {
        let mut out = vec![];
        engine.sign(&key, &items, &mut out);
        for (sig, digest) in out.iter().zip(&digests) {
            let sig = Signature::from_slice(sig).expect("a signature");
            reference.verifying_key().verify_prehash(digest, &sig).expect("valid");
        }
        // The same digest with other randomness: another nonce, so another r.
        let mut again = vec![];
        let other = SignItem { digest: &digests[2], randomness: &randomness[3] };
        engine.sign(&key, &[other], &mut again);
        assert_ne!(again[0][..32], out[2][..32]);
        by_backend.push(out);
    }
    assert!(by_backend.windows(2).all(|w| w[0] == w[1]), "backends differ");
}

#[test]
fn keys_convert() {
    let mut rng = Rng(10);
    for _ in 0..20 {
        let d = rng.scalar();
        let theirs = p256::SecretKey::from_slice(&d).expect("in range").public_key();
        let ours = PublicKey::from(&theirs);
        assert_eq!(p256::PublicKey::try_from(&ours), Ok(theirs));
        assert_eq!(PublicKey::from_sec1_bytes(theirs.to_sec1_point(true).as_bytes()), Ok(ours));
    }
    assert!(SecretScalar::from_bytes(&[0; 32]).is_none());
    assert!(SecretScalar::from_bytes(&[0xff; 32]).is_none());
}
