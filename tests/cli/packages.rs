//! What packages are made of: the version, manual pages, completions, and the files that they name.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::world::{Scratch, text};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join(path)).unwrap()
}

#[test]
fn the_version_names_the_commit_and_what_this_machine_computes_with() {
    let scratch = Scratch::empty();
    let short = scratch.good(&["-V"]);
    assert_eq!(short, format!("duet {} (development)\n", env!("CARGO_PKG_VERSION")));
    let portable =
        scratch.command(&["--version"]).env("DUET_BACKEND", "portable").output().unwrap();
    let long = text(&portable.stdout);
    assert!(long.contains("\ncommit    development\n"), "{long}");
    assert!(long.contains("\ncurve     portable\n"), "{long}");
    assert!(long.contains("\nAES-GCM   "), "{long}");
}

/// The commands that help lists below these words.
fn commands(scratch: &Scratch, words: &[String]) -> Vec<String> {
    let mut all: Vec<_> = words.iter().map(String::as_str).collect();
    all.push("-h");
    let help = scratch.good(&all);
    let Some((_, listed)) = help.split_once("Commands:\n") else { return Vec::new() };
    let lines = listed.lines().take_while(|line| line.starts_with("  "));
    // What stands further to the right goes on with the line before.
    let names = lines.filter(|line| !line.starts_with("   "));
    let names = names.filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").map(str::to_owned).collect()
}

#[test]
fn every_command_has_a_manual_page_and_shells_complete_it() {
    let scratch = Scratch::empty();
    scratch.good(&["papers", "papers"]);
    let (mut wanted, mut open) = (BTreeSet::from(["duet.1".to_owned()]), vec![Vec::new()]);
    while let Some(words) = open.pop() {
        for name in commands(&scratch, &words) {
            let path = [words.as_slice(), &[name]].concat();
            wanted.insert(format!("duet-{}.1", path.join("-")));
            open.push(path);
        }
    }
    assert!(wanted.len() > 25, "{wanted:?}");
    let pages = fs::read_dir(scratch.path("papers/man")).unwrap();
    let names = pages.map(|page| page.unwrap().file_name().into_string().unwrap());
    assert_eq!(names.collect::<BTreeSet<_>>(), wanted);
    let page = fs::read_to_string(scratch.path("papers/man/duet.1")).unwrap();
    assert!(page.contains(".TH duet 1") && page.contains("Exit codes: 0"), "{page}");
    let page = fs::read_to_string(scratch.path("papers/man/duet-device-add.1")).unwrap();
    assert!(page.contains("registered") && page.contains("\\-\\-out"), "{page}");

    let bash = fs::read_to_string(scratch.path("papers/completions/duet.bash")).unwrap();
    assert_eq!(scratch.good(&["completions", "bash"]), bash);
    let script = "source papers/completions/duet.bash; COMP_WORDS=(duet device rev); COMP_CWORD=2
        _duet duet rev device; echo \"${COMPREPLY[@]}\"";
    let said = Command::new("bash").args(["-c", script]).current_dir(scratch.dir.path()).output();
    assert_eq!(text(&said.unwrap().stdout), "revoke\n");
}

#[test]
fn packages_name_files_that_are_there() {
    let manifest: toml::Table = read("Cargo.toml").parse().unwrap();
    let deb = &manifest["package"]["metadata"]["deb"];
    let assets = deb["assets"].as_array().unwrap();
    let sources = assets.iter().map(|asset| asset[0].as_str().unwrap());
    let kept: Vec<_> = sources.filter(|source| !source.starts_with("target/")).collect();
    assert!(kept.len() > 3);
    for source in kept {
        assert!(Path::new(ROOT).join(source).is_file(), "{source}");
    }
    assert!(read("deploy/debian/postinst").contains("\n#DEBHELPER#\n"));
    // The container is built with the compiler that the project is.
    let toolchain: toml::Table = read("rust-toolchain.toml").parse().unwrap();
    let channel = toolchain["toolchain"]["channel"].as_str().unwrap();
    let container = read("deploy/Dockerfile");
    assert!(container.contains(&format!("FROM rust:{channel}-")), "{channel}");
    for line in container.lines().filter_map(|line| line.strip_prefix("COPY ")) {
        let source = line.split(' ').next().unwrap();
        let there = source.starts_with("--from") || Path::new(ROOT).join(source).exists();
        assert!(there, "{line}");
    }
}
