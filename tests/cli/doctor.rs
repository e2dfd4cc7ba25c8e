//! `duet doctor`: a verdict, a figure and advice for each thing, and an exit code.

use std::process::Output;

use crate::world::{Scratch, text};

fn findings(output: &Output) -> Vec<serde_json::Value> {
    text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_doctor_finds_what_is_slow_and_what_is_wrong_and_leaves_nothing_behind() {
    let scratch = Scratch::initialised();
    let names = || -> Vec<_> {
        let mut names: Vec<_> = std::fs::read_dir(scratch.state())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        names
    };
    let before = names();
    let well = scratch.command(&["doctor"]).output().unwrap();
    let said = text(&well.stdout);
    assert_eq!(well.status.code(), Some(0), "{said}{}", text(&well.stderr));
    for what in [
        "handshakes",
        "records",
        "io_uring",
        "receive buffers",
        "descriptors",
        "disk sync",
        "clock",
        "IPv6",
    ] {
        let line = said.lines().find(|line| line.contains(what));
        let line = line.unwrap_or_else(|| panic!("{what}: {said}"));
        assert!(line.starts_with("ok ") || line.starts_with("slow "), "{line}");
    }
    assert_eq!(names(), before, "nothing is left behind");

    let slow = scratch
        .command(&["doctor", "--format", "json"])
        .env("DUET__IO", "epoll")
        .env("DUET_BACKEND", "portable")
        .output()
        .unwrap();
    let slow = findings(&slow);
    let of = |what: &str| slow.iter().find(|finding| finding["what"] == what).unwrap();
    for what in ["io_uring", "handshakes"] {
        assert_eq!(of(what)["verdict"], "slow", "{slow:?}");
    }
    assert!(of("io_uring")["advice"].as_str().unwrap().contains("io = \"epoll\""));

    let wrong =
        scratch.command(&["doctor", "--format", "json"]).env("DUET_BACKEND", "x").output().unwrap();
    assert_eq!(wrong.status.code(), Some(1));
    let wrong = findings(&wrong);
    assert!(
        wrong
            .iter()
            .any(|finding| finding["what"] == "handshakes" && finding["verdict"] == "wrong")
    );
}

#[test]
fn a_doctor_comes_before_the_settings_and_survives_wrong_ones() {
    let scratch = Scratch::initialised();
    let nowhere = scratch.state().join("none");
    let mut early = std::process::Command::new(env!("CARGO_BIN_EXE_duet"));
    early.current_dir(scratch.state()).env_remove("DUET_STATE").arg("--state").arg(&nowhere);
    let early = early.arg("doctor").output().unwrap();
    let said = text(&early.stdout);
    assert!(early.status.success() && said.contains("`duet init` makes them"), "{said}");
    std::fs::write(scratch.state().join("duet.toml"), "shards = 0\n").unwrap();
    let mended = scratch.duet(&["doctor"]);
    let said = text(&mended.stdout);
    assert_eq!(mended.status.code(), Some(1), "{said}");
    assert!(said.contains("WRONG settings") && said.contains("disk sync"), "{said}");
}
