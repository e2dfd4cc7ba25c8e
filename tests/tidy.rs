//! What no compiler checks: that the specification's requirements and the comments that cite them
//! belong together, and that the layers depend downwards only. Each check is itself tested on a
//! planted violation.
#![allow(clippy::unwrap_used, reason = "a test's helpers may")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

/// Requirements that nothing implements yet. A number leaves this list when it is first cited.
const NOT_YET: &[u32] = &[];

/// Files whose comments number something else.
const OTHER_NUMBERS: &[&str] = &["src/mailbox.rs", "tests/tidy.rs"];

/// What the core, which does no I/O, may be built from.
const CORE_DEPENDENCIES: &[&str] = &[
    "arrayvec",
    "duet-aead",
    "duet-curve",
    "duet-protocol",
    "rustc-hash",
    "sha2",
    "subtle",
    "thiserror",
    "zeroize",
];

struct Source {
    path: String,
    text: String,
}

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn sources(folders: &[&str]) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut open: Vec<_> = folders.iter().map(|folder| root.join(folder)).collect();
    let mut found = Vec::new();
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                let path = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                found.push(Source { path, text });
            }
        }
    }
    assert!(found.len() >= folders.len());
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

// ---- requirements

/// Every `R<number>` that stands by itself in the text.
fn numbers(text: &str) -> Vec<u32> {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let bytes = text.as_bytes();
    let mut found = Vec::new();
    for (at, _) in text.match_indices('R') {
        let digits = bytes[at + 1..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        let end = at + 1 + digits;
        let starts = at == 0 || !is_word(bytes[at - 1]);
        let ends = bytes.get(end).is_none_or(|byte| !is_word(*byte));
        if digits > 0 && starts && ends {
            found.push(text[at + 1..end].parse().unwrap());
        }
    }
    found
}

/// The requirements that the specification defines, in the order in which they stand there.
fn defined(document: &str) -> Vec<u32> {
    let heads = document.lines().filter_map(|line| line.strip_prefix("**R")?.split_once(".**"));
    heads.map(|(number, _)| number.parse().unwrap()).collect()
}

/// The requirements that comments cite, and where.
fn cited(sources: &[Source]) -> BTreeMap<u32, Vec<String>> {
    let mut found: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    for Source { path, text } in sources {
        if OTHER_NUMBERS.contains(&path.as_str()) {
            continue;
        }
        for (line, code) in (1..).zip(text.lines()) {
            let comment = code.split_once("//").map_or("", |(_, comment)| comment);
            for number in numbers(comment) {
                found.entry(number).or_default().push(format!("{path}:{line}"));
            }
        }
    }
    found
}

/// What is wrong between a specification and its citations.
fn mismatches(document: &str, sources: &[Source], not_yet: &[u32]) -> Vec<String> {
    let mut wrong = Vec::new();
    let defined = defined(document);
    let known: BTreeSet<u32> = defined.iter().copied().collect();
    for (at, number) in defined.iter().enumerate() {
        if defined[..at].contains(number) {
            wrong.push(format!("R{number} is defined twice"));
        }
    }
    let most = known.last().copied().unwrap_or_default();
    let missing = (1..=most).filter(|number| !known.contains(number));
    wrong.extend(missing.map(|number| format!("R{number} is not defined, but R{most} is")));
    for number in numbers(document) {
        // R1, R2, … are names of requirements, and of nothing else there.
        if !known.contains(&number) {
            wrong.push(format!("the specification mentions R{number}, which it does not define"));
        }
    }
    let cited = cited(sources);
    for (number, places) in &cited {
        if !known.contains(number) {
            wrong.push(format!("{}: R{number} is not defined", places.join(", ")));
        }
    }
    for number in &known {
        match (cited.contains_key(number), not_yet.contains(number)) {
            (false, false) => wrong.push(format!("R{number} is cited nowhere")),
            (true, true) => wrong.push(format!("R{number} is cited, and listed as missing")),
            _ => {}
        }
    }
    wrong
}

#[test]
fn every_requirement_is_cited_and_every_citation_is_defined() {
    let folders =
        ["protocol/src", "protocol/tests", "core/src", "core/tests", "device", "src", "tests"];
    let there = |folder: &&str| Path::new(env!("CARGO_MANIFEST_DIR")).join(folder).exists();
    let folders: Vec<_> = folders.into_iter().filter(there).collect();
    let sources = sources(&folders);
    let document = read("docs/protocol.md");
    assert!(defined(&document).len() > 50);
    let wrong = mismatches(&document, &sources, NOT_YET);
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn the_check_of_requirements_can_fail() {
    let file = |text: &str| vec![Source { path: "src/a.rs".into(), text: text.into() }];
    let document = "**R1.** One.\n\n**R2.** Two, see R1.\n";
    let wrong = |text: &str, not_yet: &[u32]| mismatches(document, &file(text), not_yet);
    assert_eq!(wrong("//! (R1, R2)", &[]), [""; 0]);
    assert_eq!(wrong("let R2 = 0; // R1", &[]), ["R2 is cited nowhere"]);
    assert_eq!(wrong("// R1 and R2 and R12's\n", &[]), ["src/a.rs:1: R12 is not defined"]);
    assert_eq!(wrong("// R1, XR2, R2b, R_2", &[]), ["R2 is cited nowhere"]);
    assert_eq!(wrong("// R1", &[2]), [""; 0]);
    assert_eq!(wrong("// R1, R2", &[2]), ["R2 is cited, and listed as missing"]);
    let gap = mismatches("**R1.** One.\n**R3.** See R2.", &file("// R1 R3"), &[]);
    assert_eq!(gap.len(), 2, "{gap:?}");
    let twice = mismatches("**R2.** One.\n**R1.** Two.\n**R1.** Three.", &file("// R1 R2"), &[]);
    assert_eq!(twice, ["R1 is defined twice"]);
}

// ---- layers

/// The code without comments, and without the tests at its end.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or(text);
    let text = text.replace("#[cfg(test)]\nextern crate std;", "");
    let lines = text.lines().map(|line| line.split("//").next().unwrap_or(line));
    lines.collect::<Vec<_>>().join("\n")
}

/// What follows each `prefix` in the code: the names at its first level, a braced group taken
/// apart.
fn used(code: &str, prefix: &str) -> BTreeSet<String> {
    let name = |text: &str| {
        let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
        text[..end].to_owned()
    };
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices(prefix) {
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let rest = &code[at + prefix.len()..];
        let Some(group) = rest.strip_prefix('{') else {
            found.insert(name(rest));
            continue;
        };
        let (mut depth, mut item) = (1, String::new());
        for c in group.chars() {
            depth += i32::from(c == '{') - i32::from(c == '}');
            if depth == 0 || (depth == 1 && c == ',') {
                found.insert(name(item.trim()));
                item.clear();
            } else {
                item.push(c);
            }
            if depth == 0 {
                break;
            }
        }
    }
    found.remove("");
    found
}

/// Which modules of the gateway each module may use; those above may use all below `cli`.
const BELOW: &[(&str, &[&str])] = &[
    ("driver", &[]),
    ("hex", &[]),
    ("printable", &[]),
    ("log", &["identity", "printable"]),
    ("config", &["delivery", "driver", "log", "printable"]),
    ("mailbox", &["driver"]),
    ("manager", &["driver"]),
    ("identity", &["hex"]),
    ("transport", &["driver", "mailbox"]),
    ("delivery", &["hex", "identity", "log", "printable", "wipe"]),
    ("database", &["identity"]),
    ("registry", &["database", "hex", "identity"]),
    ("commands", &["database", "hex", "identity"]),
    ("presence", &["hex"]),
    (
        "admin",
        &[
            "commands",
            "config",
            "driver",
            "hex",
            "identity",
            "log",
            "presence",
            "printable",
            "registry",
            "wipe",
        ],
    ),
    ("wipe", &[]),
];

/// Words that no code of the registry contains: it is a file, and has no business with sockets or time.
const INPUT_OUTPUT: &[&str] = &[
    "Instant",
    "SystemTime",
    "TcpListener",
    "TcpStream",
    "UdpSocket",
    "io_uring",
    "socket2",
    "std::thread",
    "tokio::net",
    "tokio_uring",
];

/// What a file does that its layer must not.
fn violations(path: &str, text: &str) -> Vec<String> {
    let code = code(text);
    let mut wrong = Vec::new();
    let mut forbid = |what: &str| wrong.push(what.to_owned());
    if path.starts_with("protocol/src/") {
        for word in ["std::", "core::net", "core::time"] {
            if code.contains(word) {
                forbid(word);
            }
        }
        // The gateway's half alone allocates; what a device links does not.
        let mut gated = false;
        for line in code.lines() {
            for word in ["alloc::", "extern crate", "mod responder"] {
                if line.contains(word) && !gated && path != "protocol/src/responder.rs" {
                    forbid(word);
                }
            }
            gated = line == "#[cfg(feature = \"gateway\")]";
        }
        if path == "protocol/src/lib.rs" {
            for attribute in ["#![no_std]", "#![forbid(unsafe_code)]"] {
                if !code.lines().any(|line| line == attribute) {
                    forbid(&format!("no {attribute}"));
                }
            }
        }
    }
    if path.starts_with("core/src/") {
        // Addresses are data; everything else of these asks the system.
        for word in ["Instant", "SystemTime", "std::fs", "std::thread", "std::env", "std::process"]
        {
            if code.contains(word) {
                forbid(word);
            }
        }
        used(&code, "std::net::").iter().filter(|name| !name.contains("Addr")).for_each(|name| {
            forbid(&format!("std::net::{name}"));
        });
    }
    for leaf in ["curve", "aead"] {
        if path.starts_with(&format!("{leaf}/src/")) {
            used(&code, "duet_").iter().filter(|other| *other != leaf).for_each(|other| {
                forbid(&format!("duet_{other}"));
            });
        }
    }
    let module = path.strip_prefix("src/").and_then(|rest| rest.split(['/', '.']).next());
    let Some((module, below)) = module.and_then(|m| BELOW.iter().find(|(name, _)| *name == m))
    else {
        return wrong;
    };
    let is_tests = path.ends_with("/tests.rs");
    for other in used(&code, "crate::") {
        let is_module = other.starts_with(|c: char| c.is_lowercase());
        if is_module && other != *module && !below.contains(&other.as_str()) {
            forbid(&format!("crate::{other}"));
        }
    }
    if *module == "registry" && !is_tests {
        let words = INPUT_OUTPUT.iter().filter(|word| code.contains(**word));
        words.for_each(|word| forbid(word));
    }
    wrong
}

#[test]
fn dependencies_point_down() {
    let mut wrong = Vec::new();
    for Source { path, text } in
        sources(&["protocol/src", "curve/src", "aead/src", "core/src", "src"])
    {
        wrong.extend(violations(&path, &text).iter().map(|what| format!("{path}: {what}")));
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// A reason for a drop that nothing returns would stand in dashboards and documents for nothing.
#[test]
fn each_reason_for_a_drop_is_given_somewhere() {
    let reasons = read("protocol/src/reason.rs");
    let names: Vec<_> = reasons
        .lines()
        .filter_map(|line| line.trim().strip_suffix("\",")?.split_once(" = \""))
        .map(|(name, _)| name)
        .collect();
    assert!(names.len() > 20, "{names:?}");
    let sources = sources(&["protocol/src", "core/src", "device/src", "src"]);
    let code: String = sources.iter().map(|source| code(&source.text)).collect();
    let given = |name: &&str| code.contains(&format!("DropReason::{name}"));
    let missing: Vec<_> = names.iter().filter(|name| !given(name)).collect();
    assert!(missing.is_empty(), "nothing gives {missing:?}");
}

/// A metric that nothing counts would stand at zero for ever, and dashboards would show it.
#[test]
fn each_metric_of_the_catalogue_is_counted_somewhere() {
    let catalogue = read("telemetry/src/catalogue.rs");
    let names: Vec<_> = catalogue
        .lines()
        .filter_map(|line| line.trim().split_once(" = \"")?.0.split_once(' '))
        .filter(|(kind, _)| ["Counter", "Seconds", "Gauge", "Histogram"].contains(kind))
        .map(|(_, name)| name)
        .collect();
    assert!(names.len() > 60, "{names:?}");
    let mut sources = sources(&["src", "telemetry/src", "upstream/src"]);
    sources.retain(|source| source.path != "telemetry/src/catalogue.rs");
    let code: Vec<_> = sources.iter().map(|source| code(&source.text)).collect();
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let counted =
        |name: &str| code.iter().any(|text| text.split(|c| !is_word(c)).any(|word| word == name));
    assert!(!counted("NOTHING_COUNTS_THIS"));
    let missing: Vec<_> = names.iter().filter(|name| !counted(name)).collect();
    assert!(missing.is_empty(), "nothing counts {missing:?}");
}

/// The core does no I/O: nothing that could do any is among its dependencies.
#[test]
fn the_core_is_built_from_nothing_that_does_input_or_output() {
    let manifest: toml::Table = read("core/Cargo.toml").parse().unwrap();
    let dependencies = manifest["dependencies"].as_table().unwrap();
    // Optional is what only the feature for tests brings.
    let always = dependencies.iter().filter(|(_, value)| value.get("optional").is_none());
    let names: Vec<_> = always.map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, CORE_DEPENDENCIES);
}

#[test]
fn every_module_has_its_place() {
    let above = ["cli", "lib", "main", "server"];
    for Source { path, .. } in sources(&["src"]) {
        let module = path["src/".len()..].split(['/', '.']).next().unwrap();
        let placed = above.contains(&module) || BELOW.iter().any(|(name, _)| *name == module);
        assert!(placed, "{path}: say in BELOW what it may use");
    }
    for (name, _) in BELOW {
        read(&format!("src/{name}.rs"));
    }
}

#[test]
fn the_check_of_layers_can_fail() {
    for (path, text, what) in [
        ("protocol/src/wire.rs", "use std::vec::Vec;", "std::"),
        ("protocol/src/wire.rs", "use alloc::vec::Vec;", "alloc::"),
        ("protocol/src/lib.rs", "pub mod responder;", "mod responder"),
        ("protocol/src/wire.rs", "fn f(d: core::time::Duration) {}", "core::time"),
        ("protocol/src/lib.rs", "#![forbid(unsafe_code)]", "no #![no_std]"),
        ("protocol/src/lib.rs", "#![no_std]\n#![deny(unsafe_code)]", "no #![forbid(unsafe_code)]"),
        ("curve/src/lib.rs", "use duet_protocol::ec;", "duet_protocol"),
        ("aead/src/gcm.rs", "use duet_curve::Engine;", "duet_curve"),
        ("src/driver/uring/ring.rs", "use crate::transport::Now;", "crate::transport"),
        ("src/driver.rs", "use crate::{hex, mailbox::Sender};", "crate::hex"),
        ("src/transport.rs", "let a = crate::registry::view();", "crate::registry"),
        ("core/src/a.rs", "use std::net::{SocketAddr, UdpSocket};", "std::net::UdpSocket"),
        ("core/src/a.rs", "let now = SystemTime::now();", "SystemTime"),
        ("core/src/shard/a.rs", "std::thread::sleep(a);", "std::thread"),
        ("src/registry/a.rs", "use socket2::Socket;", "socket2"),
        ("src/registry.rs", "use crate::transport::Bound;", "crate::transport"),
        ("src/delivery.rs", "use crate::transport::Bound;", "crate::transport"),
        ("src/admin.rs", "use crate::cli;", "crate::cli"),
    ] {
        let found = violations(path, text);
        assert!(found.iter().any(|found| found == what), "{path}: {text}: {found:?}");
    }
    for (path, text) in [
        ("protocol/src/lib.rs", "#![no_std]\n#![forbid(unsafe_code)]\n// std::vec"),
        ("protocol/src/a.rs", "#[cfg(feature = \"gateway\")]\nuse alloc::boxed::Box;"),
        ("protocol/src/a.rs", "fn f() {}\n#[cfg(test)]\nmod tests {\n    use std::vec;\n}"),
        ("core/src/a.rs", "use std::net::{IpAddr, SocketAddr};\nuse duet_protocol::ec;"),
        ("src/driver/uring/ring.rs", "//! [`crate::transport`]\nuse crate::driver::Sizes;"),
        ("src/server.rs", "use crate::transport::Bound;"),
    ] {
        assert_eq!(violations(path, text), [""; 0], "{path}: {text}");
    }
}

/// What `scripts/skips` says of a log, and whether CI goes on, for root and for another user.
fn skips(log: &str) -> (String, [bool; 2]) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    fs::write(&path, log).unwrap();
    let run = |user: &str| {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/skips");
        Command::new(script).arg(&path).arg(user).env("CI", "true").output().unwrap()
    };
    let [root, other] = [run("0"), run("1000")];
    let said = String::from_utf8(root.stdout).unwrap();
    (said, [root.status.success(), other.status.success()])
}

#[test]
fn a_skip_is_told_and_ci_does_not_do_without_what_this_machine_could_test() {
    assert_eq!(skips("test a ... ok\n"), ("== nothing was skipped\n".into(), [true, true]));
    let (said, goes_on) = skips("x SKIPPED: this CPU lacks AVX\nSKIPPED: this CPU lacks AVX\n");
    assert!(said.contains("2 SKIPPED: this CPU lacks AVX"), "{said}");
    assert_eq!(goes_on, [true, true]);
    assert_eq!(skips("SKIPPED: no tshark\n").1, [false, false]);
    assert_eq!(skips("SKIPPED: a mount namespace is refused: EPERM\n").1, [false, true]);
}
