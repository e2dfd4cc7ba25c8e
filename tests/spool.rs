//! The spool through its public face: what was answered durable is there, whatever happened.
#![allow(clippy::unwrap_used, reason = "a test's helpers may")]

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::ops::ControlFlow;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use duet_protocol::reading::ReadingId;

use duet::delivery::{
    Batch, Durability, End, Event, Filter, Health, Hold, Reader, ReadingRef, Retention,
    Source as _, Spool, SpoolConfig, SpoolError, Urgency, WhenFull, acknowledge_cuts, cat, cuts,
    overview, trim, trim_undelivered, verify,
};

fn config(dir: &Path) -> SpoolConfig {
    SpoolConfig {
        dir: dir.join("spool"),
        segment_bytes: 256 * 1024,
        max_bytes: 64 << 20,
        known: None,
        retention: Retention::default(),
    }
}

fn id(session: u32, sequence: u32) -> ReadingId {
    let mut hello = [0; 12];
    hello[..4].copy_from_slice(&session.to_be_bytes());
    ReadingId { hello, sequence }
}

/// Stores `count` readings in one batch and waits for the answer.
fn store(spool: &Spool, session: u32, count: u32) -> Durability {
    store_at(spool, session, count, 1_800_000_000_123)
}

fn store_at(spool: &Spool, session: u32, count: u32, received_ms: u64) -> Durability {
    let mut batch = Batch::new();
    for sequence in 0..count {
        let reading = ReadingRef {
            device: "meter-1",
            id: id(session, sequence),
            again: false,
            channel: 3,
            received_ms,
            measured_ms: received_ms,
            commit: None,
            notice: None,
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
        assert_eq!(record.reading.id, id(expected / 200, expected % 200));
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
    assert_eq!(verify(&config(dir.path()).dir).unwrap().records, u64::from(durable) * 1_000);
}

#[test]
fn readings_print_as_json_lines() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::start(config(dir.path())).unwrap();
    store(&spool, 0xabcd, 2);
    spool.shutdown().unwrap();
    let mut out = Vec::new();
    let filter = Filter { from: Some(1), device: Some("meter-1".into()), ..Filter::default() };
    let mut nothing = |_| Ok(true);
    assert_eq!(cat(&config(dir.path()).dir, &filter, &mut out, &mut nothing).unwrap(), 1);
    let line = String::from_utf8(out).unwrap();
    let expected = concat!(
        r#"{"index":1,"device":"meter-1","hello":"0000abcd0000000000000000","sequence":1,"channel":3,"#,
        r#""received":"2027-01-15T08:00:00.123Z","payload":"32312e35","text":"21.5"}"#,
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
    let left = verify(&path).unwrap().records;
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
    trim(&config(dir.path()).dir, 12_000).unwrap();
    assert_eq!(found(), None);
}

fn all(dir: &Path) -> Vec<u64> {
    let mut reader = Reader::open(dir).unwrap();
    let mut found = Vec::new();
    while let Some(record) = reader.read().unwrap() {
        found.push(record.index);
    }
    found
}

fn first_segment(dir: &Path) -> PathBuf {
    config(dir).dir.join("spool-0000000000000000.log")
}

fn marker(dir: &Path) -> PathBuf {
    config(dir).dir.join("spool.durable")
}

/// The marker as it would be had another start of the system written it.
fn of_another_boot(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes[32..48].fill(9);
    let crc = crc32c::crc32c(&bytes[..60]);
    bytes[60..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

#[test]
fn readers_see_what_is_durable_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::start(config(dir.path())).unwrap();
    store(&spool, 1, 3);
    let before = fs::read(marker(dir.path())).unwrap();
    store(&spool, 2, 2);
    assert_eq!(all(&config(dir.path()).dir), [0, 1, 2, 3, 4]);
    // As it is when the last group is written and not synced yet.
    fs::write(marker(dir.path()), &before).unwrap();
    assert_eq!(all(&config(dir.path()).dir), [0, 1, 2]);
    let beyond = Reader::open_at(&config(dir.path()).dir, 4).err().unwrap();
    assert!(
        beyond.to_string().contains("4 is beyond the end, the next reading will be 3"),
        "{beyond}"
    );
    fs::remove_file(marker(dir.path())).unwrap();
    let unmarked = Reader::open(&config(dir.path()).dir).err().unwrap();
    assert!(matches!(unmarked, SpoolError::Unmarked(_)), "{unmarked}");
    spool.shutdown().unwrap();
    // Nobody has confirmed the last two, but they are whole: the next start makes them durable.
    fs::write(marker(dir.path()), of_another_boot(before)).unwrap();
    let path = config(dir.path()).dir;
    assert_eq!(verify(&path).unwrap().end, End::Unsettled { records: 2 });
    Spool::start(config(dir.path())).unwrap().shutdown().unwrap();
    assert_eq!(all(&path), [0, 1, 2, 3, 4]);
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
        let told = spool.recovery.told(&path).unwrap();
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

#[test]
fn nothing_is_confirmed_into_a_segment_that_was_removed_or_replaced() {
    for how in ["removed", "replaced", "moved with its directory"] {
        let dir = tempfile::tempdir().unwrap();
        let path = config(dir.path()).dir;
        let spool = Spool::start(config(dir.path())).unwrap();
        assert_eq!(store(&spool, 1, 3), Durability::Durable);
        let file = first_segment(dir.path());
        match how {
            "removed" => fs::remove_file(&file).unwrap(),
            "replaced" => {
                fs::copy(&file, path.join("copy")).unwrap();
                fs::rename(path.join("copy"), &file).unwrap();
            }
            _ => fs::rename(&path, dir.path().join("elsewhere")).unwrap(),
        }
        assert_eq!(store(&spool, 2, 1), Durability::Failed, "{how}");
        let Health::Failed(cause) = spool.health().borrow().clone() else { panic!("{how}") };
        assert!(cause.contains("was removed or replaced while"), "{cause}");
        assert_eq!(store(&spool, 3, 1), Durability::Failed);
        let _ = spool.shutdown();
    }
}

#[test]
fn a_disk_that_is_not_mounted_makes_no_second_spool() {
    let dir = tempfile::tempdir().unwrap();
    let known = dir.path().join("spool.id");
    let config = || SpoolConfig { known: Some(known.clone()), ..config(dir.path()) };
    let spool = Spool::start(config()).unwrap();
    let id = spool.id();
    store(&spool, 1, 3);
    spool.shutdown().unwrap();
    assert_eq!(fs::read_to_string(&known).unwrap().trim(), id.to_string());
    let (path, mounted) = (config().dir, dir.path().join("mounted"));
    fs::rename(&path, &mounted).unwrap();
    fs::create_dir(&path).unwrap();
    for _ in 0..2 {
        let refused = Spool::start(config()).err().unwrap().to_string();
        for part in ["holds no spool and not spool", &id.to_string(), "mounted?", "spool.id"] {
            assert!(refused.contains(part), "{refused}");
        }
    }
    // Another spool in its place is no better.
    let other = SpoolConfig { known: None, ..config() };
    let spool = Spool::start(other).unwrap();
    assert_ne!(spool.id(), id);
    store(&spool, 2, 1);
    spool.shutdown().unwrap();
    let refused = Spool::start(config()).err().unwrap();
    assert!(matches!(refused, SpoolError::Another { found: Some(_), .. }), "{refused}");

    // Files of both, mixed.
    fs::copy(mounted.join("spool.durable"), path.join("spool.durable")).unwrap();
    fs::remove_file(&known).unwrap();
    let refused = Spool::start(config()).err().unwrap();
    assert!(matches!(refused, SpoolError::Mixed(_)), "{refused}");

    fs::remove_dir_all(&path).unwrap();
    fs::rename(&mounted, &path).unwrap();
    let spool = Spool::start(config()).unwrap();
    assert_eq!((spool.id(), spool.recovery.tail_records), (id, 3));
    spool.shutdown().unwrap();
}

#[test]
fn a_full_spool_is_well_again_without_any_reading() {
    let dir = tempfile::tempdir().unwrap();
    let small = SpoolConfig { max_bytes: 512 * 1024, ..config(dir.path()) };
    let path = small.dir.clone();
    let spool = Spool::start(small).unwrap();
    let mut health = spool.health();
    while store(&spool, 1, 1_000) == Durability::Durable {}
    assert_eq!(*health.borrow_and_update(), Health::Full);
    trim(&path, u64::MAX).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let limit = std::time::Duration::from_secs(20);
        tokio::time::timeout(limit, health.wait_for(|now| *now == Health::Working))
            .await
            .unwrap()
            .unwrap();
    });
    spool.shutdown().unwrap();
}

#[test]
fn a_source_gives_each_reading_once_and_says_where_it_cannot() {
    let dir = tempfile::tempdir().unwrap();
    let path = config(dir.path()).dir;
    let spool = Spool::start(config(dir.path())).unwrap();
    let mut source = spool.source();
    assert_eq!((source.first(), source.durable(), source.spool_id()), (0, 0, spool.id()));
    for session in 0..10 {
        store(&spool, session, 1_000);
    }
    let mut at = 0;
    let mut seen = Vec::new();
    while at < source.durable() {
        let mut left = 700;
        at = source
            .read(at, &mut |index, reading| {
                assert_eq!(u64::from(reading.id.sequence), index % 1_000);
                seen.push(index);
                left -= 1;
                if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
            .unwrap();
    }
    assert_eq!(seen, (0..10_000).collect::<Vec<_>>());
    assert_eq!(source.read(at, &mut |_, _| panic!("there is no more")).unwrap(), 10_000);
    let oldest = trim(&path, 5_000).unwrap().oldest;
    assert_eq!(source.first(), oldest);
    let mut nothing = |_: u64, _: &ReadingRef<'_>| panic!("not there");
    let gone = source.read(oldest - 1, &mut nothing).unwrap_err();
    assert!(matches!(gone, SpoolError::Trimmed { kept, .. } if kept == oldest), "{gone}");
    let beyond = source.read(10_001, &mut nothing).unwrap_err();
    assert!(matches!(beyond, SpoolError::Beyond { durable: 10_000, .. }), "{beyond}");
    spool.shutdown().unwrap();
}

/// Stores readings of 1,000 until there are as many segments as that; the index after them.
fn grow(spool: &Spool, path: &Path, segments: usize) -> u64 {
    while log_files(path).len() < segments {
        assert_eq!(store(spool, 1, 1_000), Durability::Durable);
    }
    spool.source().durable()
}

fn log_files(path: &Path) -> Vec<PathBuf> {
    let mut found: Vec<_> = fs::read_dir(path).unwrap().map(|one| one.unwrap().path()).collect();
    found.retain(|path| path.extension().is_some_and(|end| end == "log"));
    found.sort();
    found
}

/// Waits for what another thread does by itself.
fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn what_every_required_cursor_has_goes_by_itself_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = config(dir.path()).dir;
    let spool = Spool::start(config(dir.path())).unwrap();
    let mut slow = spool.source().cursor("slow", Hold::Required).unwrap();
    let mut fast = spool.source().cursor("fast", Hold::Required).unwrap();
    let _lost = spool.source().cursor("lost", Hold::Nothing).unwrap();
    let end = grow(&spool, &path, 4);
    let segments = log_files(&path);
    fast.set(end).unwrap();
    std::thread::sleep(Duration::from_millis(1_500));
    assert_eq!(log_files(&path), segments, "one of them has nothing yet");
    slow.set(4_001).unwrap();
    eventually("the first goes", || log_files(&path) == segments[1..]);
    slow.set(end).unwrap();
    eventually("the newest stays", || log_files(&path) == segments[3..]);
    let overview = overview(&path).unwrap();
    assert_eq!((overview.first, overview.durable), (12_000, end));
    let names: Vec<_> = overview.cursors.iter().map(|one| (&*one.name, one.index)).collect();
    assert_eq!(names, [("fast", end), ("lost", 0), ("slow", end)]);
    spool.shutdown().unwrap();
    // And who has lost his place is told so.
    let lost = Reader::open_at(&path, 0).err().unwrap().to_string();
    assert!(lost.contains("0 is before 12000, the oldest reading that is kept"), "{lost}");
}

#[test]
fn a_full_spool_that_drops_the_oldest_stores_on_but_never_passes_the_gateways_own_cursor() {
    let dir = tempfile::tempdir().unwrap();
    let retention = Retention { when_full: WhenFull::DropOldest, max_age: None };
    let small = SpoolConfig { max_bytes: 768 * 1024, retention, ..config(dir.path()) };
    let path = small.dir.clone();
    let spool = Spool::start(small).unwrap();
    let _required = spool.source().cursor("nats", Hold::Required).unwrap();
    for session in 0..30 {
        assert_eq!(store(&spool, session, 1_000), Durability::Durable);
    }
    assert_eq!(log_files(&path).len(), 3);
    let mut marks = spool.source().cursor("marks", Hold::Always).unwrap();
    while store(&spool, 99, 1_000) == Durability::Durable {
        assert!(spool.source().durable() < 60_000, "the marks are still to be read");
    }
    assert_eq!(*spool.health().borrow(), Health::Full);
    marks.set(spool.source().durable()).unwrap();
    let health = spool.health();
    eventually("there is room again", || *health.borrow() == Health::Working);
    assert_eq!(store(&spool, 100, 1_000), Durability::Durable);
    spool.shutdown().unwrap();
}

#[test]
fn readings_that_are_too_old_go_whoever_lacks_them_but_not_by_a_clock_that_was_not_set() {
    for (received_ms, goes) in [(1_710_000_000_000, true), (5_000, false)] {
        let dir = tempfile::tempdir().unwrap();
        let max_age = Some(Duration::from_secs(3_600));
        let retention = Retention { when_full: WhenFull::Block, max_age };
        let path = config(dir.path()).dir;
        let spool = Spool::start(SpoolConfig { retention, ..config(dir.path()) }).unwrap();
        let _required = spool.source().cursor("nats", Hold::Required).unwrap();
        while log_files(&path)
            .last()
            .is_none_or(|last| !last.ends_with("spool-0000000000002ee0.log"))
        {
            assert_eq!(store_at(&spool, 1, 1_000, received_ms), Durability::Durable);
        }
        if goes {
            eventually("old ones go", || log_files(&path).len() == 1);
        } else {
            std::thread::sleep(Duration::from_millis(1_500));
            assert_eq!(log_files(&path).len(), 4);
        }
        spool.shutdown().unwrap();
    }
}

#[test]
fn an_operator_does_not_trim_what_somebody_needs_unless_he_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let path = config(dir.path()).dir;
    let spool = Spool::start(config(dir.path())).unwrap();
    let _nats = spool.source().cursor("nats", Hold::Required).unwrap();
    grow(&spool, &path, 3);
    let refused = trim(&path, u64::MAX).unwrap_err().to_string();
    assert!(refused.contains("cursor nats stands at 0") && refused.contains("--undelivered"));
    assert_eq!(log_files(&path).len(), 3);
    let marks = spool.source().cursor("marks", Hold::Always).unwrap();
    let refused = trim_undelivered(&path, u64::MAX).unwrap_err().to_string();
    assert!(refused.contains("cursor marks") && !refused.contains("--undelivered"), "{refused}");
    marks.remove().unwrap();
    assert_eq!(trim_undelivered(&path, u64::MAX).unwrap().segments, 2);
    spool.shutdown().unwrap();
}

#[test]
fn a_damaged_cursor_is_told_and_stops_no_reading() {
    let dir = tempfile::tempdir().unwrap();
    let path = config(dir.path()).dir;
    let spool = Spool::start(config(dir.path())).unwrap();
    fs::write(path.join("cursor-nats.pos"), [1; 4200]).unwrap();
    grow(&spool, &path, 2);
    let care = spool.care();
    eventually("it is told", || {
        let care = care.borrow();
        care.untrimmed.as_ref().is_some_and(|cause| cause.contains("cursor-nats.pos is damaged"))
    });
    assert_eq!(store(&spool, 1, 1), Durability::Durable);
    fs::remove_file(path.join("cursor-nats.pos")).unwrap();
    eventually("and is well again", || care.borrow().untrimmed.is_none());
    spool.shutdown().unwrap();
}

#[test]
fn following_prints_what_comes_and_says_what_the_output_has() {
    let dir = tempfile::tempdir().unwrap();
    let path = config(dir.path()).dir;
    let spool = Spool::start(config(dir.path())).unwrap();
    store(&spool, 1, 5);
    let (mut taken, mut waited) = (Vec::new(), 0);
    let mut out = Vec::new();
    let filter = Filter { from: Some(2), follow: true, limit: Some(6), ..Filter::default() };
    let printed = cat(&path, &filter, &mut out, &mut |event| {
        match event {
            Event::Taken(next) => taken.push(next),
            Event::Waiting if waited == 0 => {
                waited += 1;
                store(&spool, 2, 5);
            }
            Event::Waiting => waited += 1,
            Event::Missing(..) => panic!("nothing is missing"),
        }
        Ok(true)
    });
    assert_eq!((printed.unwrap(), taken), (6, vec![5, 8]));
    assert_eq!(String::from_utf8(out).unwrap().lines().count(), 6);
    // Until nobody listens.
    let mut looks = 0;
    let follow = Filter { follow: true, ..Filter::default() };
    let printed = cat(&path, &follow, &mut std::io::sink(), &mut |event| {
        looks += u32::from(event == Event::Waiting);
        Ok(looks < 3)
    });
    assert_eq!((printed.unwrap(), looks), (10, 3));
    let since = |since_ms| {
        let filter = Filter { since_ms: Some(since_ms), ..Filter::default() };
        cat(&path, &filter, &mut std::io::sink(), &mut |_| Ok(true)).unwrap()
    };
    assert_eq!((since(1_800_000_000_123), since(1_800_000_000_124)), (10, 0));
    spool.shutdown().unwrap();
}

#[test]
fn a_damaged_reading_or_segment_keeps_nothing_back_that_comes_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = config(dir.path()).dir;
    let spool = Spool::start(config(dir.path())).unwrap();
    let end = grow(&spool, &path, 4);
    let read = || {
        let (mut source, mut found) = (spool.source(), Vec::new());
        let mut keep = |index, _: &ReadingRef<'_>| {
            found.push(index);
            ControlFlow::Continue(())
        };
        assert_eq!(source.read(0, &mut keep).unwrap(), end);
        found
    };
    let without = |gap: std::ops::Range<u64>| -> Vec<u64> {
        (0..end).filter(|index| !gap.contains(index)).collect()
    };
    assert_eq!(read(), without(0..0));
    let [first, second, ..] = &log_files(&path)[..] else { panic!("four segments") };
    let whole = fs::read(second).unwrap();
    let mut damaged = whole.clone();
    damaged[4096 + 59 + 50] ^= 1;
    fs::write(second, &damaged).unwrap();
    assert_eq!(read(), without(4_001..4_002), "one reading");
    damaged[0] ^= 1;
    fs::write(second, &damaged).unwrap();
    assert_eq!(read(), without(4_000..8_000), "a header");
    fs::remove_file(second).unwrap();
    assert_eq!(read(), without(4_000..8_000), "a segment");
    fs::write(second, &whole).unwrap();
    let whole = fs::read(first).unwrap();
    let mut damaged = whole.clone();
    damaged[0] ^= 1;
    fs::write(first, &damaged).unwrap();
    assert_eq!(read(), without(0..4_000), "the first");
    assert!(verify(&path).is_err(), "and it is told");
    spool.shutdown().unwrap();
}

/// The `duet` program with a state directory whose spool holds `count` readings.
struct Program(tempfile::TempDir);

impl Program {
    fn with(count: u32) -> Self {
        let program = Self(tempfile::tempdir().unwrap());
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(program.0.path(), private).unwrap();
        let made = program.run(&["init"]);
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let spool = Spool::start(config(program.0.path())).unwrap();
        store(&spool, 1, count);
        spool.shutdown().unwrap();
        program
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_duet"));
        command.arg("--state").arg(self.0.path()).args(arguments).stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn good(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn bad(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        String::from_utf8(output.stderr).unwrap() + &String::from_utf8(output.stdout).unwrap()
    }
}

/// The indexes of printed lines.
fn indexes(printed: &str) -> Vec<u64> {
    let index =
        |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["index"].as_u64();
    printed.lines().map(|line| index(line).unwrap()).collect()
}

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
    while after == before && Instant::now() < deadline {
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
            .args(["--ignored", "--exact", "--nocapture", "stores_until_it_is_killed"])
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
