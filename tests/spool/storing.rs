//! What is stored, where it lies, and when the spool refuses.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use duet::delivery::{
    Durability, Health, Reader, Source as _, Spool, SpoolConfig, SpoolError, trim, verify,
};

use crate::world::{config, eventually, first_segment, id, log_files, store};

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
fn a_full_spool_goes_on_when_room_was_made() {
    let dir = tempfile::tempdir().unwrap();
    let small = SpoolConfig { max_bytes: 512 * 1024, ..config(dir.path()) };
    let path = small.dir.clone();
    let spool = Spool::start(small).unwrap();
    let mut stored = 0;
    while store(&spool, stored, 1_000) == Durability::Durable {
        stored += 1;
    }
    let nothing = trim(&path, 0, &[]).unwrap();
    assert_eq!((nothing.segments, nothing.oldest), (0, 0));
    let trimmed = trim(&path, u64::MAX, &[]).unwrap();
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
fn a_full_spool_is_well_again_without_any_reading() {
    let dir = tempfile::tempdir().unwrap();
    let small = SpoolConfig { max_bytes: 512 * 1024, ..config(dir.path()) };
    let path = small.dir.clone();
    let spool = Spool::start(small).unwrap();
    let mut health = spool.health();
    while store(&spool, 1, 1_000) == Durability::Durable {}
    assert_eq!(*health.borrow_and_update(), Health::Full);
    trim(&path, u64::MAX, &[]).unwrap();
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
fn nothing_is_confirmed_into_a_segment_that_was_removed_replaced_or_cut() {
    for how in ["removed", "replaced", "cut", "emptied", "moved with its directory"] {
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
            "cut" | "emptied" => {
                let whole = fs::OpenOptions::new().write(true).open(&file).unwrap();
                let len = if how == "cut" { whole.metadata().unwrap().len() / 2 } else { 0 };
                whole.set_len(len).unwrap();
            }
            _ => fs::rename(&path, dir.path().join("elsewhere")).unwrap(),
        }
        assert_eq!(store(&spool, 2, 1), Durability::Failed, "{how}");
        let Health::Failed(cause) = spool.health().borrow().clone() else { panic!("{how}") };
        assert!(cause.contains("was removed, replaced or cut while"), "{cause}");
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

/// Without it another spool, or none, would not be noticed.
#[test]
fn what_remembers_the_spool_is_told_when_it_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let known = dir.path().join("spool.id");
    let config = || SpoolConfig { known: Some(known.clone()), ..config(dir.path()) };
    let spool = Spool::start(config()).unwrap();
    assert_eq!(spool.recovery.unnamed, None, "nothing was there before");
    store(&spool, 1, 1);
    spool.shutdown().unwrap();
    std::fs::remove_file(&known).unwrap();
    let spool = Spool::start(config()).unwrap();
    assert_eq!(spool.recovery.unnamed.as_ref(), Some(&known));
    let told = spool.recovery.told(&config().dir).join("\n");
    assert!(told.contains("spool.id: it was gone"), "{told}");
    spool.shutdown().unwrap();
    let spool = Spool::start(config()).unwrap();
    assert_eq!(spool.recovery.unnamed, None);
    spool.shutdown().unwrap();
}

/// The next segment is made beforehand, under a name that means nothing: it may go without harm.
#[test]
fn a_prepared_segment_that_is_removed_or_cut_is_prepared_again() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::start(config(dir.path())).unwrap();
    let path = config(dir.path()).dir;
    let spare = path.join("spool-spare.tmp");
    let harms: [&dyn Fn(); 3] =
        [&|| fs::remove_file(&spare).unwrap(), &|| fs::write(&spare, b"").unwrap(), &|| {
            fs::write(&spare, [7; 5_000]).unwrap()
        }];
    for (harm, segments) in harms.iter().zip(2..) {
        // More than half of the segment is used.
        while !spare.exists() {
            assert_eq!(store(&spool, 1, 1_000), Durability::Durable);
        }
        eventually("it is whole", || {
            fs::metadata(&spare).is_ok_and(|found| found.len() == config(dir.path()).segment_bytes)
        });
        harm();
        while log_files(&path).len() < segments {
            assert_eq!(store(&spool, 1, 1_000), Durability::Durable);
        }
    }
    let stored = spool.source().durable();
    spool.shutdown().unwrap();
    let spool = Spool::start(config(dir.path())).unwrap();
    assert_eq!(spool.source().durable(), stored);
    spool.shutdown().unwrap();
    assert_eq!(verify(&path).unwrap().records, stored);
}
