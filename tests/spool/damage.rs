//! What a start makes of files that are torn, damaged or gone.

use std::fs;

use duet::delivery::{
    Durability, End, Hold, Reader, Source as _, Spool, SpoolError, Unmarked, acknowledge_cuts,
    cuts, trim, verify,
};

use crate::world::{
    all, config, eventually, first_segment, grow, log_files, marker, of_another_boot, store,
};

#[test]
fn a_tail_cut_anywhere_leaves_whole_groups_and_takes_new_ones() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::start(config(dir.path())).unwrap();
    let marker = config(dir.path()).dir.join("spool.durable");
    assert_eq!(store(&spool, 1, 3), Durability::Durable);
    let before = fs::read(&marker).unwrap();
    assert_eq!(store(&spool, 2, 1), Durability::Durable);
    spool.shutdown().unwrap();
    let file = config(dir.path()).dir.join("spool-0000000000000000.log");
    let whole = fs::read(&file).unwrap();
    let record = 48 + 7 + 4;
    let end = 4096 + 4 * record;
    assert!(whole[end..].iter().all(|byte| *byte == 0));
    for cut in 4096 + 3 * record..end {
        let mut torn = whole.clone();
        torn[cut..].fill(0);
        fs::write(&file, torn).unwrap();
        fs::write(&marker, &before).unwrap();
        let spool = Spool::start(config(dir.path())).unwrap();
        assert_eq!(spool.recovery.tail_records, 3, "cut at {cut}");
        assert_eq!(store(&spool, 9, 1), Durability::Durable);
        spool.shutdown().unwrap();
        assert_eq!(verify(&config(dir.path()).dir).unwrap().records, 4);
    }
}

#[test]
fn damage_in_the_middle_is_named_and_nothing_is_changed() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::start(config(dir.path())).unwrap();
    store(&spool, 1, 2);
    store(&spool, 2, 2);
    spool.shutdown().unwrap();
    let file = config(dir.path()).dir.join("spool-0000000000000000.log");
    let mut bytes = fs::read(&file).unwrap();
    bytes[4096 + 50] ^= 1;
    fs::write(&file, &bytes).unwrap();
    let refused = Spool::start(config(dir.path())).err().unwrap();
    assert!(matches!(refused, SpoolError::Damaged { offset: 4096, .. }), "{refused}");
    assert_eq!(fs::read(&file).unwrap(), bytes);
    assert!(verify(&config(dir.path()).dir).is_err());
}

#[test]
fn a_segment_that_was_cut_short_is_damage_and_not_a_torn_tail() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::start(config(dir.path())).unwrap();
    store(&spool, 1, 200);
    spool.shutdown().unwrap();
    let file = config(dir.path()).dir.join("spool-0000000000000000.log");
    let whole = fs::read(&file).unwrap();
    fs::write(&file, &whole[..4096 + 1_000]).unwrap();
    let refused = Spool::start(config(dir.path())).err().unwrap();
    assert!(refused.to_string().contains("5096 bytes"), "{refused}");
    assert_eq!(fs::read(&file).unwrap().len(), 5_096, "nothing was changed");
    assert!(verify(&config(dir.path()).dir).is_err());
    fs::write(&file, &whole).unwrap();
    assert_eq!(verify(&config(dir.path()).dir).unwrap().records, 200);
}

#[test]
fn damage_and_gaps_in_older_segments_are_told_after_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::start(config(dir.path())).unwrap();
    for session in 0..15 {
        store(&spool, session, 1_000);
    }
    spool.shutdown().unwrap();
    let [first, second, newest] = [0, 4_000, 12_000]
        .map(|index| config(dir.path()).dir.join(format!("spool-{index:016x}.log")));
    let whole = fs::read(&first).unwrap();
    assert!(second.exists() && newest.exists());
    let found = || {
        let spool = Spool::start(config(dir.path())).unwrap();
        let mut damage = spool.damage();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        // Completes with an error when the check has found nothing.
        let found =
            runtime.block_on(async { damage.wait_for(Option::is_some).await.ok()?.clone() });
        assert_eq!(store(&spool, 99, 1), Durability::Durable, "new readings are stored");
        spool.shutdown().unwrap();
        found
    };
    assert_eq!(found(), None);
    let mut damaged = whole.clone();
    damaged[4096 + 50] ^= 1;
    fs::write(&first, damaged).unwrap();
    assert!(found().unwrap().contains("damaged at byte 4096: wrong record checksum"));
    fs::write(&first, &whole).unwrap();
    fs::remove_file(&second).unwrap();
    assert!(found().unwrap().contains("a record is missing here"));
    trim(&config(dir.path()).dir, 12_000, &[]).unwrap();
    assert_eq!(found(), None);
}

#[test]
fn a_damaged_last_commit_is_kept_aside_and_told_until_somebody_has_looked() {
    for boot in ["this", "another"] {
        let dir = tempfile::tempdir().unwrap();
        let path = config(dir.path()).dir;
        let spool = Spool::start(config(dir.path())).unwrap();
        store(&spool, 1, 3);
        let before = fs::read(marker(dir.path())).unwrap();
        store(&spool, 2, 2);
        let id = spool.id();
        spool.shutdown().unwrap();
        assert_eq!(verify(&path).unwrap().end, End::Clean);
        let file = first_segment(dir.path());
        let mut bytes = fs::read(&file).unwrap();
        let record = 48 + 7 + 4;
        bytes[4096 + 3 * record + 50] ^= 1;
        fs::write(&file, &bytes).unwrap();
        if boot == "another" {
            fs::write(marker(dir.path()), of_another_boot(before)).unwrap();
            let torn = End::Torn { records: 0, offset: (4096 + 3 * record) as u64 };
            assert_eq!(verify(&path).unwrap().end, torn);
        } else {
            assert!(verify(&path).is_err(), "what is damaged was durable");
        }

        let spool = Spool::start(config(dir.path())).unwrap();
        let aside = spool.recovery.kept_aside.clone().unwrap();
        let damaged = &bytes[4096 + 3 * record..4096 + 5 * record];
        assert_eq!(fs::read(&aside).unwrap(), damaged);
        assert_eq!(spool.recovery.missing, if boot == "this" { 2 } else { 0 });
        let told = spool.recovery.told(&path).join("\n");
        assert!(told.contains(aside.to_str().unwrap()) && told.contains("ack-cut"), "{told}");
        // The readings' place is not given to others, whoever has seen them there.
        assert_eq!((store(&spool, 3, 1), spool.id()), (Durability::Durable, id));
        spool.shutdown().unwrap();
        let found = all(&path);
        assert!(found[..3] == [0, 1, 2] && found.len() == 4 && found[3] >= 5, "{found:?}");
        assert_eq!(verify(&path).unwrap().cuts, std::slice::from_ref(&aside));
        let spool = Spool::start(config(dir.path())).unwrap();
        assert_eq!((spool.recovery.cut_bytes, &spool.recovery.kept_aside), (0, &None));
        spool.shutdown().unwrap();
        assert_eq!(cuts(&path).unwrap(), [aside]);
        let seen = acknowledge_cuts(&path).unwrap();
        assert_eq!(fs::read(&seen[0]).unwrap(), damaged);
        assert!(cuts(&path).unwrap().is_empty());
    }
}

#[test]
fn a_tail_that_a_power_cut_tore_is_no_damage_and_its_indexes_are_used() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::start(config(dir.path())).unwrap();
    store(&spool, 1, 3);
    let before = fs::read(marker(dir.path())).unwrap();
    store(&spool, 2, 40);
    spool.shutdown().unwrap();
    let file = first_segment(dir.path());
    let whole = fs::read(&file).unwrap();
    // Each of the sectors that the last commit reached, as if it alone had not come to the disk.
    let (begin, end) = (4096 + 3 * 59, 4096 + 43 * 59);
    for sector in begin / 512..=(end - 1) / 512 {
        let mut torn = whole.clone();
        torn[(sector * 512).max(begin)..((sector + 1) * 512).min(end)].fill(0);
        fs::write(&file, torn).unwrap();
        fs::write(marker(dir.path()), of_another_boot(before.clone())).unwrap();
        let spool = Spool::start(config(dir.path())).unwrap();
        assert_eq!(spool.recovery.kept_aside, None, "sector {sector}");
        assert!((3..43).contains(&spool.recovery.tail_records));
        store(&spool, 9, 1);
        let stored = spool.recovery.tail_records + 1;
        spool.shutdown().unwrap();
        assert_eq!(all(&config(dir.path()).dir), (0..stored).collect::<Vec<_>>());
    }
}

#[test]
fn a_newest_segment_that_is_missing_at_the_start_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = config(dir.path()).dir;
    let spool = Spool::start(config(dir.path())).unwrap();
    for session in 0..5 {
        store(&spool, session, 1_000);
    }
    spool.shutdown().unwrap();
    fs::remove_file(path.join(format!("spool-{:016x}.log", 4_000))).unwrap();
    let spool = Spool::start(config(dir.path())).unwrap();
    assert_eq!(spool.recovery.missing, 1_000);
    assert_eq!(cuts(&path).unwrap().len(), 1);
    store(&spool, 6, 1);
    spool.shutdown().unwrap();
    assert_eq!(all(&path)[3_999..], [3_999, 5_000]);

    for entry in fs::read_dir(&path).unwrap().map(Result::unwrap) {
        if entry.path().extension().is_some_and(|end| end == "log") {
            fs::remove_file(entry.path()).unwrap();
        }
    }
    let refused = Spool::start(config(dir.path())).err().unwrap().to_string();
    assert!(refused.contains("no segment left, although 5001 readings"), "{refused}");
}

/// Without it nobody would know that confirmed readings are missing.
#[test]
fn a_marker_that_is_gone_or_damaged_at_the_start_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = config(dir.path()).dir;
    let start = || Spool::start(config(dir.path())).unwrap();
    start().shutdown().unwrap();
    // A start that was killed at the very first leaves none.
    fs::remove_file(marker(dir.path())).unwrap();
    let spool = start();
    assert_eq!((spool.recovery.unmarked, spool.recovery.told(&path)), (None, Vec::new()));
    store(&spool, 1, 3);
    spool.shutdown().unwrap();
    let whole = fs::read(marker(dir.path())).unwrap();
    let mut flipped = whole.clone();
    flipped[24] ^= 1;
    for (harm, expected) in [
        (None, Unmarked::Gone),
        (Some(&[][..]), Unmarked::Damaged),
        (Some(&whole[..40]), Unmarked::Damaged),
        (Some(&flipped[..]), Unmarked::Damaged),
    ] {
        match harm {
            None => fs::remove_file(marker(dir.path())).unwrap(),
            Some(bytes) => fs::write(marker(dir.path()), bytes).unwrap(),
        }
        let spool = start();
        assert_eq!(spool.recovery.unmarked, Some(expected));
        let told = spool.recovery.told(&path).join("\n");
        assert!(told.contains("spool.durable: it was") && told.contains("bring"), "{told}");
        spool.shutdown().unwrap();
        let spool = start();
        assert_eq!(spool.recovery.unmarked, None, "it was made anew");
        spool.shutdown().unwrap();
    }
    // With the segments gone, too, nothing begins anew by itself.
    fs::remove_file(first_segment(dir.path())).unwrap();
    fs::write(marker(dir.path()), flipped).unwrap();
    let refused = Spool::start(config(dir.path())).err().unwrap().to_string();
    assert!(
        refused.contains("no segment left, although `spool.durable`, which is damaged"),
        "{refused}"
    );
}

/// An index that somebody has read must not name another reading.
#[test]
fn what_a_cursor_has_passed_was_durable_though_the_marker_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let path = config(dir.path()).dir;
    let spool = Spool::start(config(dir.path())).unwrap();
    let end = grow(&spool, &path, 2);
    let mut cursor = spool.source().cursor("nats", Hold::Required).unwrap();
    cursor.set(end).unwrap();
    drop(cursor);
    spool.shutdown().unwrap();
    let newest = log_files(&path).pop().unwrap();
    fs::remove_file(newest).unwrap();
    fs::remove_file(marker(dir.path())).unwrap();
    let spool = Spool::start(config(dir.path())).unwrap();
    assert!(spool.recovery.missing > 0 && spool.recovery.kept_aside.is_some());
    assert_eq!(spool.recovery.told(&path).len(), 2);
    assert!(spool.source().durable() >= end);
    spool.shutdown().unwrap();
}

#[test]
fn small_files_that_are_removed_or_damaged_under_a_gateway_are_there_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = config(dir.path()).dir;
    let spool = Spool::start(config(dir.path())).unwrap();
    store(&spool, 1, 3);
    let file = marker(dir.path());
    let harms: [&dyn Fn(); 4] = [
        &|| fs::remove_file(&file).unwrap(),
        &|| fs::write(&file, b"").unwrap(),
        &|| fs::write(&file, [7; 64]).unwrap(),
        &|| {
            fs::rename(&file, dir.path().join("elsewhere")).unwrap();
            fs::write(&file, b"another").unwrap();
        },
    ];
    for (harm, count) in harms.iter().zip(4..) {
        harm();
        eventually("readers can read again", || Reader::open(&path).is_ok());
        store(&spool, 2, 1);
        assert_eq!(all(&path).len(), count);
    }
    fs::remove_file(path.join("spool.lock")).unwrap();
    eventually("the lock is there again", || {
        fs::read(path.join("spool.lock")).is_ok_and(|pid| !pid.is_empty())
    });
    let second = Spool::start(config(dir.path())).err().unwrap();
    assert!(matches!(second, SpoolError::Locked { .. }), "{second}");
    spool.shutdown().unwrap();
    assert_eq!(verify(&path).unwrap().end, End::Clean);
}
