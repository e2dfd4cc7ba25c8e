//! NIST's CAVP vectors for ECDSA verification and public key validation, if they are at hand:
//! `scripts/fetch-vectors` brings them. `DUET_VECTORS` names the directory; below it, files are found
//! by name, FIPS 186-2 and 186-3 alike.

mod support;

use duet_curve::{EcdhItem, Key, PublicKey, TableSlot, TableWidth, Teeth, VerifyItem};
use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};
use std::fs;
use std::path::Path;
use support::{arena, engines, secret};

/// One vector: name = value.
type Fields = Vec<(String, String)>;

fn field<'a>(fields: &'a Fields, name: &str) -> &'a str {
    let found = fields.iter().find(|(n, _)| n == name);
    &found.unwrap_or_else(|| panic!("a vector has no {name}")).1
}

fn hex(text: &str) -> Vec<u8> {
    let text = if text.len() % 2 == 1 { format!("0{text}") } else { text.into() };
    (0..text.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&text[i..i + 2], 16).expect("hexadecimal"))
        .collect()
}

/// An integer in 32 bytes; `None` if it does not fit.
fn integer(text: &str) -> Option<[u8; 32]> {
    let bytes = hex(text);
    let start = bytes.iter().position(|b| *b != 0).unwrap_or(bytes.len());
    let mut out = [0; 32];
    let at = 32usize.checked_sub(bytes.len() - start)?;
    out[at..].copy_from_slice(&bytes[start..]);
    Some(out)
}

/// The vectors of one section of all files with this name; `None`, loudly, if there are none.
fn vectors(name: &str, section: &str) -> Option<Vec<Fields>> {
    let Some(directory) = std::env::var_os("DUET_VECTORS") else {
        eprintln!("SKIPPED: {name} is NOT TESTED; run scripts/fetch-vectors and set DUET_VECTORS");
        return None;
    };
    let mut texts = vec![];
    find(Path::new(&directory), name, &mut texts);
    assert!(!texts.is_empty(), "DUET_VECTORS is set, but {name} is not below it");
    let mut all = vec![];
    for text in texts {
        let mut here = false;
        let mut fields = Fields::new();
        for line in text.lines().map(str::trim).chain([""]) {
            if line.starts_with('[') {
                here = line.trim_matches(['[', ']']).replace(' ', "") == section;
            } else if line.is_empty() {
                // Sections begin with blank lines.
                if !fields.is_empty() {
                    all.push(core::mem::take(&mut fields));
                }
            } else if let Some((name, value)) = line.split_once('=').filter(|_| here) {
                fields.push((name.trim().into(), value.trim().into()));
            }
        }
    }
    Some(all)
}

fn find(directory: &Path, name: &str, texts: &mut Vec<String>) {
    for entry in fs::read_dir(directory).into_iter().flatten() {
        let path = entry.expect("a directory entry").path();
        if path.is_dir() {
            find(&path, name, texts);
        } else if path.file_name().is_some_and(|n| n == name)
            && path.to_string_lossy().contains("ECDSA")
        {
            texts.push(fs::read_to_string(&path).expect("a text file"));
        }
    }
}

/// A hash function's name, and the leftmost 256 bits it makes of a message.
type Hash = (&'static str, fn(&[u8]) -> Vec<u8>);

/// SHA-1, which FIPS 186-2's vectors use too, is left out.
const HASHES: [Hash; 4] = [
    ("SHA-224", |m| Sha224::digest(m).to_vec()),
    ("SHA-256", |m| Sha256::digest(m).to_vec()),
    ("SHA-384", |m| Sha384::digest(m)[..32].to_vec()),
    ("SHA-512", |m| Sha512::digest(m)[..32].to_vec()),
];

#[test]
fn sig_ver() {
    let mut keys = vec![];
    let mut cases = vec![];
    for (v, hash) in HASHES.iter().flat_map(|(name, hash)| {
        let vectors = vectors("SigVer.rsp", &format!("P-256,{name}")).unwrap_or_default();
        vectors.into_iter().filter(|v| v.len() >= 6).map(move |v| (v, hash))
    }) {
        let v = &v;
        let (x, y) = (integer(field(v, "Qx")), integer(field(v, "Qy")));
        let valid = field(v, "Result").starts_with('P');
        let xy = x.zip(y).map(|(x, y)| [&[4][..], &x, &y].concat());
        let key = xy.and_then(|xy| PublicKey::from_sec1_bytes(&xy).ok());
        let signature = integer(field(v, "R")).zip(integer(field(v, "S")));
        let (Some(key), Some((r, s))) = (key, signature) else {
            assert!(!valid, "a valid vector was refused");
            continue;
        };
        let hash = hash(&hex(field(v, "Msg")));
        let mut digest = [0; 32];
        digest[32 - hash.len()..].copy_from_slice(&hash);
        let mut signature = [0; 64];
        signature[..32].copy_from_slice(&r);
        signature[32..].copy_from_slice(&s);
        keys.push(key);
        cases.push((digest, signature, valid));
    }
    if std::env::var_os("DUET_VECTORS").is_none() {
        return;
    }
    let valid = cases.iter().filter(|c| c.2).count();
    eprintln!("{} CAVP verifications, {valid} valid", cases.len());
    assert!(cases.len() >= 60 && valid > 0 && valid < cases.len(), "vectors went missing");
    for engine in engines() {
        let teeth = Teeth::of(engine.backend(), &keys);
        for kind in 0..2 + TableWidth::ALL.len() {
            let width = kind.checked_sub(2).map(|w| TableWidth::ALL[w]);
            let arena = arena(&engine, width.unwrap_or(TableWidth::KiB4), &keys);
            for shift in 0..8 {
                let order: Vec<_> = (0..cases.len()).map(|i| (i + shift) % cases.len()).collect();
                let items: Vec<_> = order
                    .iter()
                    .map(|&i| VerifyItem {
                        key: match width {
                            None if kind == 0 => Key::Plain(&keys[i]),
                            None => Key::Teeth(&keys[i], &teeth[i]),
                            Some(_) => {
                                let slot = TableSlot(u32::try_from(i).expect("few"));
                                Key::Table(arena.get(slot).expect("a table"))
                            }
                        },
                        digest: &cases[i].0,
                        signature: &cases[i].1,
                    })
                    .collect();
                let mut verdicts = vec![];
                engine.verify(&items, &mut verdicts);
                for (i, verdict) in order.iter().zip(verdicts) {
                    assert_eq!(verdict.is_valid(), cases[*i].2, "vector {i}, kind {kind}");
                }
            }
        }
    }
}

/// Private keys and their points.
#[test]
fn key_pair() {
    let Some(vectors) = vectors("KeyPair.rsp", "P-256") else { return };
    let vectors: Vec<_> = vectors.iter().filter(|v| v.iter().any(|(n, _)| n == "d")).collect();
    let secrets: Vec<_> =
        vectors.iter().map(|v| secret(&integer(field(v, "d")).expect("32 bytes"))).collect();
    for engine in engines() {
        let mut keys = vec![];
        engine.key_pairs(&secrets, &mut keys);
        for (v, key) in vectors.iter().zip(&keys) {
            assert_eq!(Some(key.x()), integer(field(v, "Qx")));
            assert_eq!(Some(key.y()), integer(field(v, "Qy")));
        }
    }
    eprintln!("{} CAVP key pairs", vectors.len());
    assert!(vectors.len() >= 10, "vectors went missing");
}

/// Points to be accepted or refused.
#[test]
fn public_key_validation() {
    let Some(vectors) = vectors("PKV.rsp", "P-256") else { return };
    let key = secret(&[1; 32]);
    let (mut run, mut refused) = (0, 0);
    for v in &vectors {
        let valid = field(v, "Result").starts_with('P');
        let (Some(x), Some(y)) = (integer(field(v, "Qx")), integer(field(v, "Qy"))) else {
            assert!(!valid);
            continue;
        };
        let mut point = [0; 64];
        point[..32].copy_from_slice(&x);
        point[32..].copy_from_slice(&y);
        for engine in engines() {
            let mut out = vec![];
            engine.ecdh(&[EcdhItem { secret: &key, point: &point }], &mut out);
            assert_eq!(out[0].is_some(), valid);
        }
        run += 1;
        refused += usize::from(!valid);
    }
    eprintln!("{run} CAVP points, {refused} to be refused");
    assert!(run >= 10 && refused > 0, "vectors went missing");
}
