//! Names the commit that a release was built from, for `duet --version` and metrics.
//!
//! Other builds are not made anew for each commit, so they name none.

use std::env;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=DUET_COMMIT");
    let given = env::var("DUET_COMMIT").ok().filter(|commit| !commit.is_empty());
    let release = env::var("PROFILE").is_ok_and(|profile| profile == "release");
    let commit = match (given, release) {
        (Some(commit), _) => commit,
        (None, true) => from_git().unwrap_or_else(|| "unknown".into()),
        (None, false) => "development".into(),
    };
    println!("cargo:rustc-env=DUET_COMMIT={commit}");
}

/// The checkout's commit, with a mark where files differ from it; nothing where this is no checkout of its own.
fn from_git() -> Option<String> {
    let here = env::var("CARGO_MANIFEST_DIR").ok()?;
    let top = git(&["rev-parse", "--show-toplevel"])?;
    if std::fs::canonicalize(top).ok()? != std::fs::canonicalize(here).ok()? {
        return None;
    }
    // Both move with the checkout: the log of HEAD with every commit, the index with whatever is added.
    for file in ["logs/HEAD", "index"] {
        println!("cargo:rerun-if-changed={}", git(&["rev-parse", "--git-path", file])?);
    }
    git(&["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"])
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}
