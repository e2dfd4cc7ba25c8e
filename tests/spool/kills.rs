//! A spool whose process is killed while it stores.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use duet::delivery::{Durability, Source as _, Spool, cuts, verify};

use crate::world::{all, config, store};

/// What the next test starts as a process of its own: stores readings and says which are durable.
#[test]
#[ignore = "a part of the test after it"]
fn stores_until_it_is_killed() {
    let Some(dir) = std::env::var_os("DUET_TEST_SPOOL") else { return };
    let spool = Spool::start(config(Path::new(&dir))).unwrap();
    let mut out = std::io::stdout();
    for session in 0.. {
        assert_eq!(store(&spool, session, 1 + session % 300), Durability::Durable);
        writeln!(out, "durable {}", spool.source().durable()).unwrap();
    }
}

#[test]
fn a_kill_at_any_moment_loses_nothing_and_is_no_damage() {
    let dir = tempfile::tempdir().unwrap();
    let path = config(dir.path()).dir;
    let mut confirmed = 0;
    for round in 0..8 {
        let mut writer = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "--nocapture", "kills::stores_until_it_is_killed"])
            .env("DUET_TEST_SPOOL", dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(writer.stdout.take().unwrap()).lines().map_while(Result::ok);
        let mut said = 0;
        let mut last = None;
        for line in lines {
            // The harness may have written before it on the same line.
            let Some((_, index)) = line.split_once("durable ") else { continue };
            confirmed = index.parse::<u64>().unwrap();
            said += 1;
            if said == 20 + 7 * round {
                // Whoever reads meanwhile sees all of that, and nothing that is different afterwards.
                let seen = all(&path);
                assert!(seen.len() as u64 >= confirmed);
                last = seen.last().copied();
                writer.kill().unwrap();
            }
        }
        writer.wait().unwrap();
        let last = last.expect("it was killed while it stored");
        assert!(verify(&path).unwrap().durable >= confirmed.max(last + 1));
        let spool = Spool::start(config(dir.path())).unwrap();
        assert_eq!((&spool.recovery.kept_aside, spool.recovery.missing), (&None, 0));
        assert!(spool.source().durable() >= confirmed.max(last + 1));
        spool.shutdown().unwrap();
        assert_eq!(cuts(&path).unwrap(), [] as [PathBuf; 0]);
    }
    let end = verify(&path).unwrap();
    assert_eq!((end.records, end.missing), (end.durable, 0));
}
