//! NIST's CAVP vectors for GCM, if they are at hand: `scripts/fetch-vectors` brings them.
//!
//! `DUET_VECTORS` names the directory; below it, files are found by name.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
};

use common::{Case, backends, expand, open, seal};

#[test]
fn encrypt_128() {
    let Some(text) = vectors("gcmEncryptExtIV128.rsp") else { return };
    let (mut run, mut beyond) = (0, 0);
    for fields in parse(&text) {
        let (Some(sealed), Some(plain)) = (fields.case("CT"), fields.case("PT")) else {
            beyond += 1;
            continue;
        };
        run += 1;
        for gcm in backends() {
            let keys = expand(gcm, std::slice::from_ref(&plain));
            let mut ours = Case { tag: [0; 16], ..plain.clone() };
            seal(gcm, &keys, std::slice::from_mut(&mut ours));
            assert_eq!(ours, sealed, "{}", gcm.backend());
        }
    }
    eprintln!("{run} CAVP encryptions; {beyond} with sizes not offered");
    assert!(run >= 300, "vectors went missing");
}

#[test]
fn decrypt_128() {
    let Some(text) = vectors("gcmDecrypt128.rsp") else { return };
    let (mut run, mut failing, mut beyond) = (0, 0, 0);
    for fields in parse(&text) {
        let Some(sealed) = fields.case("CT") else {
            beyond += 1;
            continue;
        };
        run += 1;
        failing += usize::from(fields.fails);
        for gcm in backends() {
            let keys = expand(gcm, std::slice::from_ref(&sealed));
            let mut ours = sealed.clone();
            let verdict = open(gcm, &keys, std::slice::from_mut(&mut ours));
            assert_eq!(verdict, [!fields.fails], "{}", gcm.backend());
            let expected = if fields.fails { sealed.clone() } else { fields.case("PT").unwrap() };
            assert_eq!(ours, expected, "{}", gcm.backend());
        }
    }
    eprintln!("{run} CAVP decryptions, {failing} to be rejected; {beyond} with sizes not offered");
    assert!(run >= 300 && failing > 50, "vectors went missing");
}

/// One vector's lines.
#[derive(Clone, Default)]
struct Fields {
    values: Vec<(String, Vec<u8>)>,
    fails: bool,
}

impl Fields {
    fn value(&self, name: &str) -> Option<Vec<u8>> {
        self.values.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone())
    }

    /// The record whose payload is the field `payload`; `None` if its sizes are not ours.
    fn case(&self, payload: &str) -> Option<Case> {
        Some(Case {
            key: self.value("Key")?.try_into().ok()?,
            nonce: self.value("IV")?.try_into().ok()?,
            aad: self.value("AAD")?,
            payload: self.value(payload)?,
            tag: self.value("Tag")?.try_into().ok()?,
        })
    }
}

fn parse(text: &str) -> Vec<Fields> {
    let mut all: Vec<Fields> = Vec::new();
    for line in text.lines().map(str::trim) {
        if line == "FAIL" {
            all.last_mut().unwrap().fails = true;
        } else if let Some((name, value)) = line.split_once('=').filter(|_| !line.starts_with('['))
        {
            let (name, value) = (name.trim(), value.trim());
            if name == "Count" {
                all.push(Fields::default());
            } else {
                let hex = |i| u8::from_str_radix(&value[i..i + 2], 16).unwrap();
                let value = (0..value.len()).step_by(2).map(hex).collect();
                all.last_mut().unwrap().values.push((name.into(), value));
            }
        }
    }
    all
}

fn vectors(name: &str) -> Option<String> {
    let Some(directory) = std::env::var_os("DUET_VECTORS") else {
        eprintln!("SKIPPED: {name} is NOT TESTED; run scripts/fetch-vectors and set DUET_VECTORS");
        return None;
    };
    let directory = PathBuf::from(directory);
    let file = find(&directory, name)
        .unwrap_or_else(|| panic!("DUET_VECTORS is set, but {name} is not below it"));
    Some(fs::read_to_string(file).unwrap())
}

fn find(directory: &Path, name: &str) -> Option<PathBuf> {
    let entries = fs::read_dir(directory).ok()?.map(|entry| entry.unwrap().path());
    let (directories, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    files
        .into_iter()
        .find(|file| file.file_name().is_some_and(|n| n == name))
        .or_else(|| directories.iter().find_map(|directory| find(directory, name)))
}
