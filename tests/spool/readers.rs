//! Who reads a spool sees what is durable, each reading once, in order.

use std::fs;
use std::ops::ControlFlow;

use duet::delivery::{
    End, Event, Filter, Reader, ReadingRef, Source as _, Spool, SpoolError, cat, trim, verify,
};

use crate::world::{all, config, first_segment, grow, log_files, marker, of_another_boot, store};

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
    let trimmed = trim(&path, 12_000, &[]).unwrap();
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
    let oldest = trim(&path, 5_000, &[]).unwrap().oldest;
    assert_eq!(source.first(), oldest);
    let mut nothing = |_: u64, _: &ReadingRef<'_>| panic!("not there");
    let gone = source.read(oldest - 1, &mut nothing).unwrap_err();
    assert!(matches!(gone, SpoolError::Trimmed { kept, .. } if kept == oldest), "{gone}");
    let beyond = source.read(10_001, &mut nothing).unwrap_err();
    assert!(matches!(beyond, SpoolError::Beyond { durable: 10_000, .. }), "{beyond}");
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

/// What a start has cut off is told and over; what is damaged before it since then is neither.
#[test]
fn damage_in_a_segment_whose_end_was_cut_off_takes_no_other_reading_and_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = config(dir.path()).dir;
    let spool = Spool::start(config(dir.path())).unwrap();
    store(&spool, 1, 3);
    store(&spool, 2, 1);
    spool.shutdown().unwrap();
    let (file, record) = (first_segment(dir.path()), 48 + 7 + 4);
    let flip = |at: usize| {
        let mut bytes = fs::read(&file).unwrap();
        bytes[at] ^= 1;
        fs::write(&file, &bytes).unwrap();
    };
    flip(4096 + 3 * record + 50);
    let spool = Spool::start(config(dir.path())).unwrap();
    assert!(spool.recovery.kept_aside.is_some());
    let mut source = spool.source();
    let end = source.read(0, &mut |_, _| ControlFlow::Continue(())).unwrap();
    assert!(
        end > 3 && end == source.durable(),
        "nothing is missing any more behind what was cut off: {end}"
    );
    store(&spool, 3, 1);
    let [0, 1, 2, newest] = all(&path)[..] else { panic!("{:?}", all(&path)) };
    flip(4096 + record + 50);
    let mut found = Vec::new();
    let mut keep = |index, _: &ReadingRef<'_>| {
        found.push(index);
        ControlFlow::Continue(())
    };
    assert_eq!(spool.source().read(0, &mut keep).unwrap(), end + 1);
    assert_eq!(found, [0, 2, newest]);
    assert!(verify(&path).is_err());
    spool.shutdown().unwrap();
}
