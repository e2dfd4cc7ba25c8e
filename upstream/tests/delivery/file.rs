use std::fs;
use std::path::PathBuf;

use duet_upstream::testing::Rng;

use crate::world::{World, indices};

const SETTINGS: &str = "name = \"archive\"\nkind = \"file\"\ndir = \"out\"\nfile_bytes = 65536\n";

fn files(world: &World) -> Vec<PathBuf> {
    let entries = fs::read_dir(world.state().join("out")).unwrap();
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn lines(world: &World) -> String {
    files(world).iter().map(|path| fs::read_to_string(path).unwrap()).collect()
}

#[test]
fn files_are_ended_by_size_and_hold_everything_once() {
    let mut world = World::new(3_000, SETTINGS);
    world.start();
    world.until_empty();
    world.stop();
    assert_eq!(indices(&lines(&world)), (0..3_000).collect::<Vec<_>>());
    let files = files(&world);
    let (ended, open): (Vec<_>, Vec<_>) =
        files.iter().partition(|path| path.extension().unwrap() == "ndjson");
    assert!(ended.len() > 3 && open.len() <= 1, "{files:?}");
    assert!(ended.iter().all(|path| fs::metadata(path).unwrap().len() >= 65_536));
}

/// As behind a tail that a start has cut off: the indexes that were there are given to nobody else.
#[test]
fn what_is_missing_at_the_end_of_the_spool_is_not_waited_for() {
    let mut world = World::new(3, SETTINGS);
    world.memory.show_until(13);
    world.start();
    let report = world.until_empty();
    assert_eq!((report.next, report.lost, report.late), (13, 10, false));
    world.push(3..14);
    world.memory.show_until(14);
    world.until("the next one", |report| report.next == 14);
    world.stop();
    assert_eq!(indices(&lines(&world)), [0, 1, 2, 13]);
}

#[test]
fn a_file_is_ended_by_age_also_when_nothing_comes() {
    let mut world = World::new(10, &format!("{SETTINGS}file_age_s = 1\n"));
    world.start();
    world.until_empty();
    for _ in 0..500 {
        if files(&world)[0].extension().unwrap() == "ndjson" {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    panic!("the file kept its name: {:?}", files(&world));
}

/// Whatever a kill leaves at the end of a file, and however old the cursor is: every reading is there once.
#[test]
fn after_a_kill_nothing_is_missing_or_there_twice() {
    let mut rng = Rng::new(17);
    let mut world = World::new(0, SETTINGS);
    let cursor = world.state().join("upstream/archive.cursor");
    let mut count = 0;
    for _ in 0..12 {
        let old = fs::read(&cursor).ok();
        let more = 1 + u32::try_from(rng.below(700)).unwrap();
        world.push(count..count + more);
        count += more;
        world.start();
        world.until("all", |report| report.next == u64::from(count));
        world.stop();
        if let Some(old) = old.filter(|_| rng.below(2) == 0) {
            fs::write(&cursor, old).unwrap();
        }
        let part = files(&world).into_iter().find(|path| path.extension().unwrap() == "part");
        if let Some(part) = part {
            let mut bytes = fs::read(&part).unwrap();
            match rng.below(3) {
                0 => bytes.truncate(usize::try_from(rng.below(bytes.len() as u64)).unwrap()),
                1 => bytes.extend_from_slice(b"{\"v\":1,\"spool\":\"c4c4"),
                _ => {}
            }
            // Also what was acknowledged may be cut off, by whatever happens to the disk.
            fs::write(&part, bytes).unwrap();
        }
    }
    world.start();
    world.until("all", |report| report.next == u64::from(count));
    world.stop();
    assert_eq!(indices(&lines(&world)), (0..count.into()).collect::<Vec<_>>());
}

#[test]
fn a_directory_that_cannot_be_made_is_told_and_waited_for() {
    let mut world = World::new(10, "name = \"a\"\nkind = \"file\"\ndir = \"mount/out\"\n");
    world.start();
    let report = world.until("the problem", |report| report.problem.is_some());
    assert!(report.problem.unwrap().contains("mount/out"));
    fs::create_dir(world.state().join("mount")).unwrap();
    world.until_empty();
}

/// A file that somebody takes away while it is written to, alone or with its directory, takes nothing with it that is
/// acknowledged later.
#[test]
fn a_part_that_is_removed_while_it_is_written_to_is_noticed() {
    let mut world = World::new(10, SETTINGS);
    world.start();
    world.until("the first ten", |report| report.next == 10);
    fs::remove_file(&files(&world)[0]).unwrap();
    world.push(10..20);
    world.until("the next ten", |report| report.next == 20);
    assert_eq!(indices(&lines(&world)), (10..20).collect::<Vec<_>>());
    let said = world.said.lock().unwrap().join("\n");
    assert!(said.contains("removed or replaced"), "{said}");
    let out = world.state().join("out");
    fs::rename(&out, world.state().join("elsewhere")).unwrap();
    world.push(20..30);
    world.until("the last ten", |report| report.next == 30);
    assert_eq!(indices(&lines(&world)), (20..30).collect::<Vec<_>>());
}

/// In place, so that it keeps its name: while it is written to, or while nobody does.
#[test]
fn a_part_that_is_cut_is_noticed_and_its_readings_are_delivered_again() {
    for is_running in [true, false] {
        for left in [0, 1, 2] {
            let mut world = World::new(10, SETTINGS);
            world.start();
            world.until("the first ten", |report| report.next == 10);
            (!is_running).then(|| world.stop());
            let part = files(&world).remove(0);
            let text = fs::read(&part).unwrap();
            fs::write(&part, &text[..left * text.len() / 3]).unwrap();
            world.push(10..20);
            (!is_running).then(|| world.start());
            world.until("the next ten", |report| report.next == 20);
            world.stop();
            assert_eq!(indices(&lines(&world)), (0..20).collect::<Vec<_>>());
            let said = world.said.lock().unwrap().join("\n");
            assert!(said.contains("an older copy of it was put back"), "{said}");
            assert_eq!(said.contains("cut or written to"), is_running, "{said}");
        }
    }
}

#[test]
fn why_a_file_could_not_be_renamed_is_told_though_nothing_waited_then() {
    let mut world = World::new(1, &format!("{SETTINGS}file_age_s = 1\n"));
    world.start();
    world.until_empty();
    // A directory that is not empty stands in the way of its name.
    let part = files(&world).remove(0);
    fs::create_dir_all(part.with_extension("").join("in-the-way")).unwrap();
    for index in 1..1_000 {
        if !world.said.lock().unwrap().is_empty() {
            break;
        }
        world.push(index..index + 1);
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let said = world.said.lock().unwrap().first().cloned().unwrap_or_default();
    let cause = format!("upstream archive: renaming {}: ", part.display());
    assert!(said.starts_with(&cause), "{said}");
}

/// Nothing moves, and a cursor's file is there again; at a start, what became of one is told.
#[test]
fn a_cursor_that_is_gone_or_older_than_it_can_be_is_told() {
    let mut world = World::new(10, SETTINGS);
    let cursor = world.state().join("upstream/archive.cursor");
    let told = |world: &World, what: &str| {
        let said = world.said.lock().unwrap().join("\n");
        assert!(said.contains(what), "{said}");
    };
    world.start();
    world.until("all", |report| report.next == 10);
    world.stop();
    let older = fs::read(&cursor).unwrap();
    world.push(10..20);
    world.start();
    world.until("ten more", |report| report.next == 20);
    let began = std::time::Instant::now();
    while fs::read(&cursor).unwrap() == older {
        assert!(began.elapsed().as_secs() < 20, "it is saved each second");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    fs::remove_dir_all(world.state().join("upstream")).unwrap();
    while !cursor.exists() {
        assert!(began.elapsed().as_secs() < 20, "it is made again");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    world.stop();
    told(&world, "archive.cursor was removed, replaced or damaged under the gateway");

    fs::write(&cursor, &older).unwrap();
    world.start();
    world.until("all", |report| report.next == 20);
    world.stop();
    told(
        &world,
        "archive.cursor is an older copy: by it this upstream has what is before reading 10",
    );
    for emptied in [false, true] {
        match emptied {
            true => fs::write(&cursor, b"").unwrap(),
            false => fs::remove_file(&cursor).unwrap(),
        }
        world.said.lock().unwrap().clear();
        world.start();
        world.until("all", |report| report.next == 20);
        world.stop();
        told(
            &world,
            "archive.cursor was gone or empty, though this upstream had everything before reading 20",
        );
    }
    assert_eq!(indices(&lines(&world)), (0..20).collect::<Vec<_>>());
}
