//! Cursors: what is kept for whom, and what goes by itself.

use std::fs;
use std::time::Duration;

use duet::delivery::{
    Cursor, Durability, Expected, Health, Hold, Reader, Retention, Source as _, Spool, SpoolConfig,
    WhenFull, cursors, overview, trim, trim_undelivered,
};

use crate::world::{after_a_round, config, eventually, grow, log_files, store, store_at};

#[test]
fn what_every_required_cursor_has_goes_by_itself_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = config(dir.path()).dir;
    let spool = Spool::start(config(dir.path())).unwrap();
    let mut slow = spool.source().cursor("slow", Hold::Required).unwrap();
    let mut fast = spool.source().cursor("fast", Hold::Required).unwrap();
    let _lost = spool.source().cursor("lost", Hold::Nothing).unwrap();
    spool.begin_removal();
    let end = grow(&spool, &path, 4);
    let segments = log_files(&path);
    fast.set(end).unwrap();
    after_a_round(&path);
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

/// What is scarce is shared among devices, and no longer than it is scarce: whoever has had his share stores nothing, and if he is
/// the only one, nothing else tells the spool that there is room.
#[test]
fn a_spool_is_scarce_no_longer_than_that_though_nothing_is_stored() {
    let dir = tempfile::tempdir().unwrap();
    let small = SpoolConfig { max_bytes: 1 << 20, ..config(dir.path()) };
    let path = small.dir.clone();
    let spool = Spool::start(small).unwrap();
    let mut required = spool.source().cursor("nats", Hold::Required).unwrap();
    spool.begin_removal();
    let scarce = spool.scarce();
    let is_scarce = || scarce.load(std::sync::atomic::Ordering::Relaxed);
    while log_files(&path).len() < 4 {
        assert!(!is_scarce());
        assert_eq!(store(&spool, 1, 1_000), Durability::Durable);
    }
    assert_eq!(store(&spool, 1, 1_000), Durability::Durable);
    eventually("less than a quarter is left", is_scarce);
    required.set(spool.source().durable()).unwrap();
    eventually("there is room again", || !is_scarce());
    assert_eq!(log_files(&path).len(), 1);
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
        spool.begin_removal();
        while log_files(&path)
            .last()
            .is_none_or(|last| !last.ends_with("spool-0000000000002ee0.log"))
        {
            assert_eq!(store_at(&spool, 1, 1_000, received_ms), Durability::Durable);
        }
        if goes {
            eventually("old ones go", || log_files(&path).len() == 1);
        } else {
            after_a_round(&path);
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
    let refused = trim(&path, u64::MAX, &[]).unwrap_err().to_string();
    assert!(refused.contains("cursor nats stands at 0") && refused.contains("--undelivered"));
    assert_eq!(log_files(&path).len(), 3);
    let marks = spool.source().cursor("marks", Hold::Always).unwrap();
    let refused = trim_undelivered(&path, u64::MAX, &[]).unwrap_err().to_string();
    assert!(refused.contains("cursor marks") && !refused.contains("--undelivered"), "{refused}");
    marks.remove().unwrap();
    assert_eq!(trim_undelivered(&path, u64::MAX, &[]).unwrap().segments, 2);
    spool.shutdown().unwrap();
}

#[test]
fn a_damaged_cursor_is_told_and_stops_no_reading() {
    let dir = tempfile::tempdir().unwrap();
    let path = config(dir.path()).dir;
    let spool = Spool::start(config(dir.path())).unwrap();
    fs::write(path.join("cursor-nats.pos"), [1; 4200]).unwrap();
    spool.begin_removal();
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

/// Other processes know by its file alone where a cursor stands.
#[test]
fn a_cursor_that_does_not_move_is_put_back_whatever_was_done_to_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = config(dir.path()).dir;
    let spool = Spool::start(config(dir.path())).unwrap();
    let mut nats = spool.source().cursor("nats", Hold::Required).unwrap();
    let file = path.join("cursor-nats.pos");
    let older = fs::read(&file).unwrap();
    grow(&spool, &path, 3);
    nats.set(10).unwrap();
    let harms: [&dyn Fn(); 4] = [
        &|| fs::remove_file(&file).unwrap(),
        &|| fs::write(&file, b"").unwrap(),
        &|| fs::write(&file, &older).unwrap(),
        &|| {
            fs::rename(&file, path.join("elsewhere")).unwrap();
            fs::write(&file, &older).unwrap();
        },
    ];
    for harm in harms {
        harm();
        eventually("it says again where it stands", || {
            cursors(&path).is_ok_and(|all| all.iter().any(|one| one.index == 10))
        });
        let refused = trim(&path, u64::MAX, &[]).unwrap_err().to_string();
        assert!(refused.contains("cursor nats stands at 10"), "{refused}");
    }
    // Whoever forgets it means it.
    nats.remove().unwrap();
    after_a_round(&path);
    assert!(!file.exists());
    spool.shutdown().unwrap();
}

#[test]
fn a_cursor_that_has_to_be_there_and_is_not_holds_everything() {
    let dir = tempfile::tempdir().unwrap();
    let path = config(dir.path()).dir;
    let spool = Spool::start(config(dir.path())).unwrap();
    let end = grow(&spool, &path, 3);
    spool.shutdown().unwrap();
    let expected = |name: &str, hold| [Expected { name: name.into(), hold }];
    let upstream = expected("upstream-cloud", Hold::Required);
    let refused = trim(&path, end, &upstream).unwrap_err().to_string();
    assert!(refused.contains("cursor upstream-cloud has no file in"), "{refused}");
    assert!(refused.contains("--undelivered"), "{refused}");
    let marks = expected("marks", Hold::Always);
    let refused = trim_undelivered(&path, end, &marks).unwrap_err().to_string();
    assert!(refused.contains("marks") && !refused.contains("--undelivered"), "{refused}");
    assert_eq!(log_files(&path).len(), 3);
    assert_eq!(trim(&path, 0, &upstream).unwrap().segments, 0, "nothing was to be removed");
    assert_eq!(trim_undelivered(&path, end, &upstream).unwrap().segments, 2);
}

/// An upstream whose cursor was removed while no gateway ran would hold nothing until it is there again.
#[test]
fn nothing_goes_before_all_cursors_are_open() {
    let dir = tempfile::tempdir().unwrap();
    let path = config(dir.path()).dir;
    let spool = Spool::start(config(dir.path())).unwrap();
    let mut fast = spool.source().cursor("fast", Hold::Required).unwrap();
    let slow = spool.source().cursor("slow", Hold::Required).unwrap();
    let end = grow(&spool, &path, 3);
    fast.set(end).unwrap();
    drop((fast, slow));
    spool.shutdown().unwrap();
    fs::remove_file(path.join("cursor-slow.pos")).unwrap();

    let spool = Spool::start(config(dir.path())).unwrap();
    after_a_round(&path);
    assert_eq!(log_files(&path).len(), 3);
    let mut slow = spool.source().cursor("slow", Hold::Required).unwrap();
    spool.begin_removal();
    after_a_round(&path);
    assert_eq!((log_files(&path).len(), slow.index()), (3, 0));
    slow.set(end).unwrap();
    eventually("and then it does", || log_files(&path).len() == 1);
    spool.shutdown().unwrap();
}

#[test]
fn a_cursor_that_is_empty_holds_everything_and_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = config(dir.path()).dir;
    let spool = Spool::start(config(dir.path())).unwrap();
    let id = spool.id();
    drop(Cursor::open(&path, "script", id, 0, Hold::Required).unwrap());
    fs::write(path.join("cursor-script.pos"), b"").unwrap();
    let mut nats = spool.source().cursor("nats", Hold::Required).unwrap();
    spool.begin_removal();
    let end = grow(&spool, &path, 3);
    nats.set(end).unwrap();
    let care = spool.care();
    eventually("it is told", || {
        let care = care.borrow();
        care.untrimmed.as_ref().is_some_and(|cause| cause.contains("cursor-script.pos is damaged"))
    });
    assert_eq!(log_files(&path).len(), 3);
    spool.shutdown().unwrap();
}
