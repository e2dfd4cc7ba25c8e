//! A disk that fills up and gets room again, below a gateway that runs and below one that starts.
//!
//! The disk is a small tmpfs in a mount namespace of the test's thread, which what it starts inherits.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use duet::delivery::{
    Batch, Durability, Health, ReadingRef, Retention, Spool, SpoolConfig, Urgency, verify,
};
use duet_protocol::reading::ReadingId;
use loadgen::local::LocalGateway;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::world::{DUET, await_metric, everyone, script, with_settings, work};

const SEGMENT: u64 = 1 << 20;

/// Runs `test` with a directory that is a disk of `bytes`; nothing of it is left behind.
pub(super) fn on_a_disk_of(bytes: u64, test: impl FnOnce(&Path) + Send) {
    let dir = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            if let Err(error) = unshare(CloneFlags::CLONE_NEWNS) {
                eprintln!("SKIPPED: no small disk to fill, a mount namespace is refused: {error}");
                return;
            }
            let (none, size) = (None::<&str>, format!("size={bytes}"));
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            mount(none, dir.path(), Some("tmpfs"), MsFlags::empty(), Some(&*size)).unwrap();
            test(dir.path());
        });
    });
}

/// Takes what room there is.
pub(super) fn fill(disk: &Path) {
    let mut filler = fs::File::create(disk.join("filler")).unwrap();
    let full = std::iter::repeat_with(|| filler.write_all(&[1; 4096])).find_map(Result::err);
    assert_eq!(full.unwrap().kind(), std::io::ErrorKind::StorageFull);
}

/// Takes what room there is, and what becomes free, at once, as a log does that has filled a disk; until what it returns is
/// dropped.
pub(super) fn keep_full(disk: &Path) -> mpsc::Sender<()> {
    fill(disk);
    let mut filler = fs::OpenOptions::new().append(true).open(disk.join("filler")).unwrap();
    let (end, ended) = mpsc::channel();
    std::thread::spawn(move || {
        while ended.recv_timeout(Duration::from_micros(20)) == Err(mpsc::RecvTimeoutError::Timeout)
        {
            while filler.write_all(&[1; 4096]).is_ok() {}
        }
    });
    end
}

/// As on a file system that writes each change to a free place: there the room that a segment has is not enough.
#[test]
fn a_segment_that_turns_out_to_have_no_room_takes_readings_once_there_is_some() {
    use rustix::fs::{FallocateFlags, fallocate};
    on_a_disk_of(8 * SEGMENT, |disk| {
        let config = SpoolConfig {
            dir: disk.join("spool"),
            segment_bytes: SEGMENT,
            max_bytes: 4 * SEGMENT,
            known: None,
            retention: Retention::default(),
        };
        let spool = Spool::start(config).unwrap();
        assert!(store(&spool, 3));
        let segment = disk.join("spool/spool-0000000000000000.log");
        let file = fs::OpenOptions::new().write(true).open(segment).unwrap();
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&file, hole, SEGMENT / 4, SEGMENT / 2).unwrap();
        fill(disk);
        let stored = (0..20).filter(|_| store(&spool, 500)).count() as u64;
        assert!((1..20).contains(&stored), "{stored}");
        let health = spool.health();
        assert!(matches!(*health.borrow(), Health::DiskFull(_)), "{:?}", *health.borrow());
        free(disk);
        assert!(store(&spool, 5));
        assert!(matches!(*health.borrow(), Health::Working));
        let dir = disk.join("spool");
        spool.shutdown().unwrap();
        assert_eq!(verify(&dir).unwrap().records, 3 + stored * 500 + 5);
    });
}

fn free(disk: &Path) {
    fs::remove_file(disk.join("filler")).unwrap();
}

/// Stores readings; whether they are durable.
fn store(spool: &Spool, count: u64) -> bool {
    let mut batch = Batch::new();
    for sequence in 0..count {
        let (device, sequence) = ("meter-0", u32::try_from(sequence).unwrap());
        let reading = ReadingRef {
            device,
            id: ReadingId { hello: [1; 12], sequence },
            again: false,
            channel: 0,
            received_ms: 1_800_000_000_000,
            measured_ms: 1_800_000_000_000,
            commit: None,
            notice: None,
            payload: b"21.5",
        };
        assert!(batch.push(&reading));
    }
    let (done, answer) = mpsc::channel();
    let report = Box::new(move |_, durability| done.send(durability).unwrap());
    assert!(spool.submitter().submit(batch, Urgency::Awaited, report).is_ok());
    answer.recv().unwrap() == Durability::Durable
}

/// Makes a spool of one segment that has no room for another reading; how many it holds.
fn full_segment(dir: &Path) -> u64 {
    let config = SpoolConfig {
        dir: dir.into(),
        segment_bytes: SEGMENT,
        max_bytes: SEGMENT,
        known: None,
        retention: Retention::default(),
    };
    let spool = Spool::start(config).unwrap();
    // Once refused, a running spool takes nothing until it has a new segment: so it is told exactly what fits.
    let mut left = (SEGMENT - 4096) / 59;
    let stored = left;
    while left > 0 {
        let count = left.min(1_000);
        assert!(store(&spool, count));
        left -= count;
    }
    spool.shutdown().unwrap();
    stored
}

/// A program that is `duet` with small segments and a spool that was made before, and keeps what it says on
/// standard error when it runs.
fn with_spool(dir: &Path, spool: &Path, said: &Path) -> PathBuf {
    let settings = format!("[spool]\nsegment_bytes = {SEGMENT}\n");
    let lines = format!(
        "if [ \"$3\" = init ]; then {DUET} \"$@\" && mv {} \"$2/spool\" && printf '{settings}' > \"$2/duet.toml\"\n\
         elif [ \"$3\" = run ]; then exec {DUET} \"$@\" 2> {}\n\
         else exec {DUET} \"$@\"; fi",
        spool.display(),
        said.display(),
    );
    script(dir, &lines)
}

fn duet(state: &Path, arguments: &[&str]) -> Output {
    Command::new(DUET).arg("--state").arg(state).args(arguments).output().unwrap()
}

#[test]
fn a_disk_that_fills_up_loses_nothing_and_stores_again_when_there_is_room() {
    on_a_disk_of(8 << 20, |disk| {
        let (full, said) = (disk.join("full"), disk.join("said"));
        let before = full_segment(&full);
        let elsewhere = tempfile::tempdir().unwrap();
        let program = with_spool(elsewhere.path(), &full, &said);
        let (gateway, members) = LocalGateway::start(&program, disk, 2, &everyone()).unwrap();
        // What stands on standard error needs a page of its own.
        fs::write(&said, [b'\n'; 64]).unwrap();
        fill(disk);
        let (address, readings) = (gateway.address, 5 * members.len() as u64);
        let fleet = std::thread::spawn(move || work(members, address));
        await_metric(&gateway, "duet_spool_refused_total", "reason=\"disk\"", 1);
        let status = duet(&gateway.state, &["status"]);
        let shown = String::from_utf8(status.stdout).unwrap();
        assert!(shown.contains("disk-full") && status.status.code() == Some(1), "{shown}");
        assert!(!fleet.is_finished(), "nothing is confirmed");
        assert_eq!(verify(&gateway.state.join("spool")).unwrap().records, before);

        free(disk);
        fleet.join().unwrap();
        // Marks that could not be saved are tried again every five seconds.
        let deadline = Instant::now() + Duration::from_secs(20);
        while !duet(&gateway.state, &["status"]).status.success() {
            assert!(Instant::now() < deadline, "well again, without a restart");
            std::thread::sleep(Duration::from_millis(20));
        }
        let spool = gateway.state.join("spool");
        gateway.stop().unwrap();
        assert!(verify(&spool).unwrap().records >= before + readings);
        let said = fs::read_to_string(said).unwrap();
        assert!(said.contains("No space left") && said.contains("duet spool trim"), "{said}");
        assert!(said.contains("there is room again"), "{said}");
    });
}

#[test]
fn a_gateway_starts_on_a_full_disk_when_its_segment_has_room_and_else_says_what_to_do() {
    on_a_disk_of(3 << 20, |disk| {
        let state = disk.join("state");
        assert!(duet(&state, &["init"]).status.success());
        let run = ["run", "--shards", "1", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"];
        let refused = duet(&state, &run);
        let said = String::from_utf8(refused.stderr).unwrap();
        assert_eq!(refused.status.code(), Some(1), "{said}");
        for part in ["spool.segment_bytes", "No space left", "free space there"] {
            assert!(said.contains(part), "{said}");
        }
        assert!(!state.join("spool/spool-spare.tmp").exists(), "the try leaves the disk no fuller");
        assert_eq!(duet(&state, &["check"]).status.code(), Some(1));

        fs::write(state.join("duet.toml"), format!("[spool]\nsegment_bytes = {SEGMENT}")).unwrap();
        for _ in 0..2 {
            let mut gateway = Command::new(DUET)
                .arg("--state")
                .arg(&state)
                .args(run)
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let lines = BufReader::new(gateway.stdout.take().unwrap()).lines();
            let running = lines.map_while(Result::ok).any(|line| line == "running");
            gateway.kill().unwrap();
            gateway.wait().unwrap();
            assert!(running);
            // The second time there is no room for anything.
            fill(disk);
            let check = duet(&state, &["check"]);
            let said = String::from_utf8(check.stdout).unwrap();
            assert!(
                check.status.success() && said.contains("warning: ") && said.contains("make room"),
                "{said}"
            );
        }
        let credential = disk.join("credential.json");
        let out = credential.to_str().unwrap();
        let add = ["device", "add", "meter-1", "--registered-id", "--out", out];
        let refused = duet(&state, &add);
        assert!(String::from_utf8(refused.stderr).unwrap().contains("No space left"));
        assert!(!credential.exists(), "half of it would be in the way of the next try");
        free(disk);
        assert!(duet(&state, &add).status.success());
    });
}

#[test]
fn devices_can_be_revoked_and_added_again_once_a_full_disk_has_room() {
    on_a_disk_of(8 << 20, |disk| {
        let elsewhere = tempfile::tempdir().unwrap();
        let settings = format!("[spool]\nsegment_bytes = {SEGMENT}\n");
        let program = with_settings(elsewhere.path(), "", &settings);
        let (gateway, members) = LocalGateway::start(&program, disk, 2, &everyone()).unwrap();
        let registered = members.len();
        let listed = || {
            let output = duet(&gateway.state, &["device", "list"]);
            assert!(output.status.success());
            String::from_utf8(output.stdout).unwrap()
        };
        let (list, out) = (elsewhere.path().join("many"), elsewhere.path().join("made"));
        let many =
            (0..3_000).map(|n| format!("{{\"name\":\"n{n}\",\"mode\":\"registered-id\"}}\n"));
        fs::write(&list, many.collect::<String>()).unwrap();
        let import = ["device", "import", list.to_str().unwrap(), "--out", out.to_str().unwrap()];

        fill(disk);
        for _ in 0..2 {
            let refused = duet(&gateway.state, &import);
            let said = String::from_utf8(refused.stderr).unwrap();
            assert!(!refused.status.success() && said.contains("No space left"), "{said}");
        }
        assert_eq!(listed().lines().count(), 1 + registered, "what is there can be looked at");
        work(members, gateway.address);

        free(disk);
        let revoked = duet(&gateway.state, &["device", "revoke", "device-0"]);
        assert!(revoked.status.success(), "{}", String::from_utf8_lossy(&revoked.stderr));
        assert!(duet(&gateway.state, &import).status.success());
        assert_eq!(listed().lines().count(), 1 + registered + 3_000);
        let status = String::from_utf8(duet(&gateway.state, &["status"]).stdout).unwrap();
        let devices = format!("devices      {}\n", registered - 1 + 3_000);
        assert!(status.contains(&devices), "{status}");
        gateway.stop().unwrap();
    });
}

#[test]
fn damage_in_an_older_segment_is_told_by_a_gateway_that_works() {
    let dir = tempfile::tempdir().unwrap();
    let (made, said) = (dir.path().join("made"), dir.path().join("said"));
    full_segment(&made);
    let config = SpoolConfig {
        dir: made.clone(),
        segment_bytes: SEGMENT,
        max_bytes: 4 * SEGMENT,
        known: None,
        retention: Retention::default(),
    };
    let spool = Spool::start(config).unwrap();
    assert!(store(&spool, 1));
    spool.shutdown().unwrap();
    let first = made.join("spool-0000000000000000.log");
    let mut bytes = fs::read(&first).unwrap();
    bytes[4096 + 50] ^= 1;
    fs::write(&first, bytes).unwrap();

    let program = with_spool(dir.path(), &made, &said);
    let (gateway, members) = LocalGateway::start(&program, dir.path(), 2, &everyone()).unwrap();
    work(members, gateway.address);
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let status = duet(&gateway.state, &["status"]);
        let shown = String::from_utf8(status.stdout).unwrap();
        if shown.contains("spool-damaged") {
            assert_eq!(status.status.code(), Some(1));
            break;
        }
        assert!(Instant::now() < deadline, "{shown}");
        std::thread::sleep(Duration::from_millis(20));
    }
    gateway.stop().unwrap();
    let said = fs::read_to_string(said).unwrap();
    assert!(said.contains("0000.log is damaged at byte 4096: wrong record checksum"), "{said}");
}
