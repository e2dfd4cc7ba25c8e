//! `duet spool`, as an operator and a script use it.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use duet::delivery::Spool;

use crate::world::{Program, config, eventually, first_segment, grow, indexes, log_files, store};

#[test]
fn a_script_stores_and_forwards_by_a_cursor() {
    let program = Program::with(10);
    let next = ["spool", "cat", "--cursor", "script", "--limit", "4", "--commit"];
    assert_eq!(indexes(&program.good(&next)), [0, 1, 2, 3]);
    assert_eq!(indexes(&program.good(&next)), [4, 5, 6, 7]);
    // Without saying that they were taken, they come again.
    for _ in 0..2 {
        assert_eq!(indexes(&program.good(&next[..4])), [8, 9]);
    }
    assert_eq!(indexes(&program.good(&next)), [8, 9]);
    assert_eq!(program.good(&next), "");
    assert!(program.good(&["spool", "list"]).contains("script at 10, 0 behind"));
    program.good(&["spool", "cursor", "set", "script", "7", "--required"]);
    assert!(program.good(&["spool", "list"]).contains("script at 7, 3 behind, required"));
    assert_eq!(indexes(&program.good(&next)), [7, 8, 9]);
    let beyond = program.bad(&["spool", "cursor", "set", "script", "11"]);
    assert!(beyond.contains("11 is beyond the end, the next reading will be 10"), "{beyond}");
    let beyond = program.bad(&["spool", "cat", "--from", "11"]);
    assert!(beyond.contains("11 is beyond the end, the next reading will be 10"), "{beyond}");
    assert_eq!(program.good(&["spool", "cat", "--from", "10"]), "");
    // Who does not take what is printed has not got it.
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    program.good(&["spool", "cursor", "set", "script", "0"]);
    let refused = program.command(&next).stdout(full).output().unwrap();
    assert_eq!(refused.status.code(), Some(1), "{}", String::from_utf8_lossy(&refused.stderr));
    assert!(program.good(&["spool", "list"]).contains("script at 0, 10 behind"));
    let mut closed = std::process::Command::new("sh");
    let cat = program.command(&next);
    closed.args(["-c", "exec \"$@\" >&-", "sh"]).arg(cat.get_program()).args(cat.get_args());
    let refused = closed.output().unwrap();
    assert_eq!(refused.status.code(), Some(1), "{}", String::from_utf8_lossy(&refused.stderr));
    assert!(program.good(&["spool", "list"]).contains("script at 0, 10 behind"));
    program.good(&["spool", "cursor", "remove", "script"]);
    assert!(!program.good(&["spool", "list"]).contains("script"));
    assert!(program.bad(&["spool", "cursor", "remove", "script"]).contains("does not exist"));
    assert_eq!(indexes(&program.good(&["spool", "cat", "--since", "2027-01-15"])).len(), 10);
    assert_eq!(program.good(&["spool", "cat", "--since", "2027-01-16"]), "");
    assert_eq!(program.run(&["spool", "cat", "--since", "yesterday"]).status.code(), Some(2));
    assert!(program.good(&["spool", "verify"]).contains("10 records, all whole"));
}

#[test]
fn following_ends_when_nobody_reads_any_more() {
    let program = Program::with(3);
    let mut follow =
        program.command(&["spool", "cat", "--follow"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(follow.stdout.take().unwrap()).lines();
    for index in 0..3 {
        assert_eq!(indexes(&lines.next().unwrap().unwrap()), [index]);
    }
    let spool = Spool::start(config(program.0.path())).unwrap();
    store(&spool, 2, 1);
    assert_eq!(indexes(&lines.next().unwrap().unwrap()), [3]);
    assert!(follow.try_wait().unwrap().is_none(), "it waits");
    drop(lines);
    eventually("it ends, although nothing comes", || follow.try_wait().unwrap().is_some());
    assert_eq!(follow.wait().unwrap().code(), Some(0));
    spool.shutdown().unwrap();
}

/// Runs a gateway until it says that it runs, and `status` twice, with a command in between.
fn status_around(program: &Program, command: &[&str]) -> [String; 2] {
    let run = ["run", "--shards", "1", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"];
    let mut gateway = program.command(&run).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(gateway.stdout.take().unwrap()).lines().map_while(Result::ok);
    let running = lines.any(|line| line == "running");
    let status = || String::from_utf8(program.run(&["status"]).stdout).unwrap();
    let before = status();
    program.good(command);
    let mut after = status();
    let deadline = Instant::now() + Duration::from_secs(10);
    // How long it runs changes by itself.
    let faults =
        |status: &str| status.lines().find(|line| line.starts_with("faults")).map(str::to_owned);
    while faults(&after) == faults(&before) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(100));
        after = status();
    }
    gateway.kill().unwrap();
    gateway.wait().unwrap();
    assert!(running);
    [before, after]
}

#[test]
fn a_gateway_whose_last_commit_is_damaged_runs_and_says_so_until_somebody_has_looked() {
    let program = Program::with(3);
    let file = first_segment(program.0.path());
    let mut bytes = fs::read(&file).unwrap();
    bytes[4096 + 2 * 59 + 50] ^= 1;
    fs::write(&file, bytes).unwrap();
    assert!(program.bad(&["spool", "verify"]).contains("is damaged at byte 4214"));
    let [before, after] = status_around(&program, &["spool", "ack-cut"]);
    assert!(before.contains("spool-cut"), "{before}");
    assert!(!after.contains("spool-cut"), "{after}");
    assert!(program.good(&["spool", "verify"]).contains("2 records, all whole"));
}

/// Whoever removes readings beside a gateway learns from more than one place that an upstream needs them.
#[test]
fn what_an_upstream_needs_stays_though_its_cursor_is_gone() {
    let program = Program::with(1);
    let (state, spool) = (program.0.path(), config(program.0.path()).dir);
    let open = Spool::start(config(state)).unwrap();
    let end = grow(&open, &spool, 3).to_string();
    open.shutdown().unwrap();
    let settings = state.join("duet.toml");
    let without = fs::read_to_string(&settings).unwrap();
    let nowhere =
        "[[upstream]]\nname = \"cloud\"\nkind = \"webhook\"\nurl = \"http://127.0.0.1:1/\"\n";
    fs::write(&settings, format!("{without}\n{nowhere}")).unwrap();
    let trim = ["spool", "trim", "--before", &end];
    let refused = program.bad(&trim);
    assert!(refused.contains("cursor upstream-cloud has no file in"), "{refused}");

    let run = ["run", "--shards", "1", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"];
    let mut gateway = program.command(&run).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(gateway.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(said.any(|line| line == "running"));
    let (own, held) =
        (state.join("upstream/cloud.cursor"), spool.join("cursor-upstream-cloud.pos"));
    eventually("both cursors are there", || own.exists() && held.exists());
    fs::remove_dir_all(state.join("upstream")).unwrap();
    fs::remove_file(&held).unwrap();
    let refused = program.bad(&trim);
    assert!(refused.contains("cursor upstream-cloud"), "{refused}");
    eventually("and are there again", || own.exists() && held.exists());
    // The settings no longer have it, and the gateway that runs does.
    fs::write(&settings, &without).unwrap();
    fs::remove_file(&held).unwrap();
    fs::remove_dir_all(state.join("upstream")).unwrap();
    let refused = program.bad(&trim);
    assert!(refused.contains("cursor upstream-cloud"), "{refused}");
    eventually("once more", || own.exists() && held.exists());
    gateway.kill().unwrap();
    gateway.wait().unwrap();

    // Its own cursor knows of it, too, and where that is gone, the spool's.
    fs::rename(&held, state.join("aside")).unwrap();
    assert!(program.bad(&trim).contains("cursor upstream-cloud has no file in"));
    assert!(program.bad(&run).contains("upstream cloud is gone from the settings"));
    fs::rename(state.join("aside"), &held).unwrap();
    fs::remove_dir_all(state.join("upstream")).unwrap();
    assert!(program.bad(&trim).contains("cursor upstream-cloud stands at 0"));
    assert!(program.bad(&run).contains("upstream cloud is gone from the settings"));
    assert_eq!(log_files(&spool).len(), 3);
    let removed = program.good(&["spool", "trim", "--before", &end, "--undelivered"]);
    assert!(removed.contains("removed 2 segments"), "{removed}");
}
