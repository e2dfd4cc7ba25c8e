//! The test vectors in `protocol/vectors/`: made again from the code and compared byte for byte.
//!
//! HELLOs come from the single steps of the key schedule, ACCEPTs from the states that a gateway runs;
//! each side reads what the other made, and the values between are checked against the messages.
//!
//! `DUET_WRITE_VECTORS=1 cargo test -p duet-protocol --test vectors` writes the files instead.
#![allow(clippy::unwrap_used, reason = "a test's helpers may")]

mod document;
mod handshake;
mod hostile;
mod scene;
#[path = "../steps/mod.rs"]
mod steps;
mod texts;

use std::{fmt::Write as _, fs, path::PathBuf};

/// Set to anything, it makes this test write the files instead of comparing them.
const WRITE: &str = "DUET_WRITE_VECTORS";

/// A JSON object of sections, in the order in which they are written; values are hex or text.
#[derive(Default)]
struct Vector(Vec<(String, Vec<(String, String)>)>);

impl Vector {
    fn section(&mut self, name: &str) -> &mut Self {
        self.0.push((name.to_owned(), Vec::new()));
        self
    }

    fn text(&mut self, name: &str, value: &str) -> &mut Self {
        self.0.last_mut().unwrap().1.push((name.to_owned(), value.to_owned()));
        self
    }

    fn hex(&mut self, name: &str, bytes: &[u8]) -> &mut Self {
        let mut value = String::new();
        bytes.iter().for_each(|byte| write!(value, "{byte:02x}").unwrap());
        self.text(name, &value)
    }

    fn json(&self) -> String {
        let mut out = String::from("{\n");
        for (i, (section, values)) in self.0.iter().enumerate() {
            writeln!(out, "  \"{section}\": {{").unwrap();
            for (j, (name, value)) in values.iter().enumerate() {
                let comma = if j + 1 < values.len() { "," } else { "" };
                writeln!(out, "    \"{name}\": \"{value}\"{comma}").unwrap();
            }
            let comma = if i + 1 < self.0.len() { "," } else { "" };
            writeln!(out, "  }}{comma}").unwrap();
        }
        out.push_str("}\n");
        out
    }

    fn check(&self, file: &str) {
        let made = self.json();
        let parsed: serde_json::Value = serde_json::from_str(&made).unwrap();
        assert_eq!(parsed.as_object().unwrap().len(), self.0.len(), "section names are unique");
        for (name, values) in &self.0 {
            let parsed = parsed[name].as_object().unwrap();
            assert_eq!(parsed.len(), values.len(), "{file}: names in {name} are unique");
        }
        let path = folder().join(file);
        if std::env::var_os(WRITE).is_some() {
            fs::write(path, made).unwrap();
            return;
        }
        let kept = fs::read_to_string(&path).unwrap_or_default();
        for (line, (made, kept)) in made.lines().zip(kept.lines()).enumerate() {
            assert_eq!(made, kept, "{file}, line {}", line + 1);
        }
        assert!(made == kept, "{file} differs; {WRITE}=1 writes it anew");
    }
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("vectors")
}

/// No vector without a test: what lies in the folder is what is compared.
#[test]
fn no_file_is_left_over() {
    let mut expected: Vec<_> = scene::scenes().iter().map(scene::Scene::file).collect();
    expected.extend(["hostile.json".to_owned(), "texts.json".to_owned()]);
    expected.sort();
    let mut found: Vec<_> = fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    found.sort();
    if std::env::var_os(WRITE).is_none() {
        assert_eq!(found, expected);
    }
}
