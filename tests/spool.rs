//! The spool through its public face: what was answered durable is there, whatever happened.
#![allow(clippy::unwrap_used, reason = "a test's helpers may")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::mpsc;

use duet::delivery::{
    Batch, Durability, Filter, Health, Reader, ReadingRef, Spool, SpoolConfig, SpoolError, Urgency,
    cat, trim, verify,
};

fn config(dir: &Path) -> SpoolConfig {
    SpoolConfig { dir: dir.join("spool"), segment_bytes: 256 * 1024, max_bytes: 64 << 20 }
}

/// Stores `count` readings in one batch and waits for the answer.
fn store(spool: &Spool, session: u32, count: u32) -> Durability {
    let mut batch = Batch::new();
    for sequence in 0..count {
        let reading = ReadingRef {
            device: "meter-1",
            session,
            sequence,
            channel: 3,
            time_ms: 1_800_000_000_123,
            payload: b"21.5",
        };
        assert!(batch.push(&reading));
    }
    let (done, answer) = mpsc::channel();
    let report = Box::new(move |_, durability| done.send(durability).unwrap());
    assert!(spool.submitter().submit(batch, Urgency::Awaited, report).is_ok());
    answer.recv().unwrap()
}

#[test]
fn readings_come_back_in_order_over_restarts_and_segments() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..4 {
        let spool = Spool::start(config(dir.path())).unwrap();
        for i in 0..10 {
            assert_eq!(store(&spool, round * 10 + i, 200), Durability::Durable);
        }
        assert_eq!(*spool.health().borrow(), Health::Working);
        spool.shutdown().unwrap();
    }
    let mut reader = Reader::open(&config(dir.path()).dir).unwrap();
    let mut expected = 0;
    while let Some(record) = reader.read().unwrap() {
        assert_eq!(record.index, u64::from(expected));
        assert_eq!(
            (record.reading.session, record.reading.sequence),
            (expected / 200, expected % 200)
        );
        expected += 1;
    }
    assert_eq!(expected, 8_000);
    let segments = fs::read_dir(config(dir.path()).dir).unwrap().count();
    assert!(segments > 2, "8,000 readings need more than one segment of 256 KiB");
}

#[test]
fn a_tail_cut_anywhere_leaves_whole_groups_and_takes_new_ones() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::start(config(dir.path())).unwrap();
    assert_eq!(store(&spool, 1, 3), Durability::Durable);
    assert_eq!(store(&spool, 2, 1), Durability::Durable);
    spool.shutdown().unwrap();
    let file = config(dir.path()).dir.join("spool-0000000000000000.log");
    let whole = fs::read(&file).unwrap();
    let record = 40 + 7 + 4;
    let end = 4096 + 4 * record;
    assert!(whole[end..].iter().all(|byte| *byte == 0));
    for cut in 4096 + 3 * record..end {
        let mut torn = whole.clone();
        torn[cut..].fill(0);
        fs::write(&file, torn).unwrap();
        let spool = Spool::start(config(dir.path())).unwrap();
        assert_eq!(spool.recovery.tail_records, 3, "cut at {cut}");
        assert_eq!(store(&spool, 9, 1), Durability::Durable);
        spool.shutdown().unwrap();
        assert_eq!(verify(&config(dir.path()).dir).unwrap(), 4);
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
    bytes[4096 + 45] ^= 1;
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
    assert_eq!(verify(&config(dir.path()).dir).unwrap(), 200);
}

#[test]
fn two_gateways_cannot_share_a_spool_and_a_full_one_refuses() {
    let dir = tempfile::tempdir().unwrap();
    let small = SpoolConfig { max_bytes: 256 * 1024, ..config(dir.path()) };
    let spool = Spool::start(small.clone()).unwrap();
    let second = Spool::start(small).err().unwrap();
    assert!(second.to_string().contains(&std::process::id().to_string()), "{second}");
    let mut durable = 0;
    while store(&spool, durable, 1_000) == Durability::Durable {
        durable += 1;
        assert!(durable < 10);
    }
    assert_eq!(*spool.health().borrow(), Health::Full, "full is not broken");
    spool.shutdown().unwrap();
    assert_eq!(verify(&config(dir.path()).dir).unwrap(), u64::from(durable) * 1_000);
}

#[test]
fn readings_print_as_json_lines() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::start(config(dir.path())).unwrap();
    store(&spool, 0xabcd, 2);
    spool.shutdown().unwrap();
    let mut out = Vec::new();
    let filter = Filter { from: 1, device: Some("meter-1".into()) };
    assert_eq!(cat(&config(dir.path()).dir, &filter, &mut out).unwrap(), 1);
    let line = String::from_utf8(out).unwrap();
    let expected = concat!(
        r#"{"index":1,"device":"meter-1","session":"0000abcd","sequence":1,"channel":3,"#,
        r#""time":"2027-01-15T08:00:00.123Z","payload":"32312e35","text":"21.5"}"#,
        "\n"
    );
    assert_eq!(line, expected);
}

#[test]
fn a_full_spool_goes_on_when_room_was_made() {
    let dir = tempfile::tempdir().unwrap();
    let small = SpoolConfig { max_bytes: 512 * 1024, ..config(dir.path()) };
    let path = small.dir.clone();
    let spool = Spool::start(small).unwrap();
    let mut stored = 0;
    while store(&spool, stored, 1_000) == Durability::Durable {
        stored += 1;
    }
    let nothing = trim(&path, 0).unwrap();
    assert_eq!((nothing.segments, nothing.oldest), (0, 0));
    let trimmed = trim(&path, u64::MAX).unwrap();
    assert_eq!((trimmed.segments, trimmed.bytes), (1, 256 * 1024), "the newest one stays");
    assert_eq!(store(&spool, stored, 1_000), Durability::Durable);
    assert_eq!(*spool.health().borrow(), Health::Working);
    spool.shutdown().unwrap();
    let mut reader = Reader::open(&path).unwrap();
    assert_eq!(reader.read().unwrap().unwrap().index, trimmed.oldest);
    let left = verify(&path).unwrap();
    assert_eq!(left + trimmed.oldest, u64::from(stored + 1) * 1_000);
}

#[test]
fn readings_are_their_owners_alone() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::start(config(dir.path())).unwrap();
    store(&spool, 1, 1);
    spool.shutdown().unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let spool = config(dir.path()).dir;
    assert_eq!(mode(&spool), 0o700);
    for file in fs::read_dir(&spool).unwrap() {
        assert_eq!(mode(&file.unwrap().path()), 0o600);
    }
}

#[test]
fn a_slow_reader_of_a_growing_spool_sees_no_damage() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::start(config(dir.path())).unwrap();
    store(&spool, 1, 2);
    let mut reader = Reader::open(&config(dir.path()).dir).unwrap();
    // What it has read ahead ends after two records; then the segment fills up and two more follow.
    assert_eq!(reader.read().unwrap().unwrap().index, 0);
    for session in 2..14 {
        store(&spool, session, 1_000);
    }
    for index in 1..12_002 {
        assert_eq!(reader.read().unwrap().map(|record| record.index), Some(index));
    }
    assert!(reader.read().unwrap().is_none());
    store(&spool, 14, 1);
    assert_eq!(reader.read().unwrap().unwrap().index, 12_002, "and goes on");
    spool.shutdown().unwrap();
}

#[test]
fn a_reader_goes_on_where_trimming_left_something_but_a_gap_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::start(config(dir.path())).unwrap();
    for session in 0..25 {
        store(&spool, session, 1_000);
    }
    let path = config(dir.path()).dir;
    let mut reader = Reader::open(&path).unwrap();
    assert_eq!(reader.read().unwrap().unwrap().index, 0);
    let trimmed = trim(&path, 12_000).unwrap();
    assert!(trimmed.segments >= 2);
    let (mut last, mut jumps) = (0, Vec::new());
    while let Some(record) = reader.read().unwrap() {
        if record.index != last + 1 {
            jumps.push(record.index);
        }
        last = record.index;
    }
    // The segment that it had begun is read to its end.
    assert_eq!((jumps, last), (vec![trimmed.oldest], 24_999));

    let mut segments: Vec<_> =
        fs::read_dir(&path).unwrap().map(|one| one.unwrap().path()).collect();
    segments.retain(|path| path.extension().is_some_and(|end| end == "log"));
    segments.sort();
    fs::remove_file(&segments[1]).unwrap();
    let refused = verify(&path).unwrap_err();
    assert!(matches!(refused, SpoolError::Damaged { .. }), "{refused}");
    spool.shutdown().unwrap();
}

#[test]
fn damage_and_gaps_in_older_segments_are_told_after_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::start(config(dir.path())).unwrap();
    for session in 0..15 {
        store(&spool, session, 1_000);
    }
    spool.shutdown().unwrap();
    let [first, second, newest] = [0, 5_000, 10_000]
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
    damaged[4096 + 45] ^= 1;
    fs::write(&first, damaged).unwrap();
    assert!(found().unwrap().contains("damaged at byte 4096: wrong record checksum"));
    fs::write(&first, &whole).unwrap();
    fs::remove_file(&second).unwrap();
    assert!(found().unwrap().contains("a record is missing here"));
    trim(&config(dir.path()).dir, 10_000).unwrap();
    assert_eq!(found(), None);
}
