//! The registry on a disk without any room, and limits that are smaller than they can be: what must be possible all
//! the same.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use loadgen::local::LocalGateway;

use super::disk::{fill, keep_full, on_a_disk_of};
use super::world::{DUET, everyone, with_settings, work};

fn duet(state: &Path, arguments: &[&str]) -> Output {
    Command::new(DUET).arg("--state").arg(state).args(arguments).output().unwrap()
}

/// Runs what must succeed.
fn good(state: &Path, arguments: &[&str]) -> String {
    let output = duet(state, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn run(state: &Path) -> Child {
    run_at(state).0
}

/// A gateway, and where it listens.
fn run_at(state: &Path) -> (Child, String) {
    let mut gateway = Command::new(DUET)
        .arg("--state")
        .arg(state)
        .args(["run", "--shards", "1", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(gateway.stdout.take().unwrap()).lines();
    let (mut address, mut runs) = (String::new(), false);
    for line in lines.map_while(Result::ok) {
        if let Some(rest) = line.strip_prefix("listening") {
            address = rest.trim().split(' ').next().unwrap().to_owned();
        }
        runs = line == "running";
        if runs {
            break;
        }
    }
    assert!(runs);
    (gateway, address)
}

fn kill(mut gateway: Child) {
    gateway.kill().unwrap();
    gateway.wait().unwrap();
}

#[test]
fn devices_are_revoked_on_a_full_disk_and_stay_so_after_a_kill() {
    on_a_disk_of(12 << 20, |disk| {
        let state = disk.join("state");
        good(&state, &["init"]);
        fs::write(state.join("duet.toml"), "[spool]\nsegment_bytes = 1048576\n").unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let (list, out) = (elsewhere.path().join("many"), elsewhere.path().join("made"));
        let many = (0..200).map(|n| format!("{{\"name\":\"n{n}\",\"mode\":\"registered-id\"}}\n"));
        fs::write(&list, many.collect::<String>()).unwrap();
        let (list, out) = (list.to_str().unwrap(), out.to_str().unwrap());
        good(&state, &["device", "import", list, "--out", out]);

        let gateway = run(&state);
        let _full = keep_full(disk);
        let revoke = |n: u32| good(&state, &["device", "revoke", &format!("n{n}")]);
        (0..40).map(revoke).for_each(drop);
        // Killed, so that the file has to be recovered, and started on a disk that is full of something else, too.
        kill(gateway);
        (40..60).map(revoke).for_each(drop);
        let gateway = run(&state);
        (60..80).map(revoke).for_each(drop);
        good(&state, &["device", "remove", "n80"]);
        kill(gateway);
        let listed = good(&state, &["device", "list", "--format", "json"]);
        assert_eq!(listed.lines().count(), 199);
        for line in listed.lines() {
            let device: serde_json::Value = serde_json::from_str(line).unwrap();
            let number: u32 = device["name"].as_str().unwrap()[1..].parse().unwrap();
            assert_eq!(device["revoked_s"].is_null(), number > 80, "{line}");
        }
    });
}

#[test]
fn a_limit_below_the_number_of_shards_still_lets_a_device_in() {
    let dir = tempfile::tempdir().unwrap();
    let settings = "[limits]\nmax_sessions = 1\nmax_pending = 1\nmax_streams = 1\n";
    let program = with_settings(dir.path(), "", settings);
    for wanted in &everyone()[..2] {
        let state = tempfile::tempdir().unwrap();
        let wanted = std::slice::from_ref(wanted);
        let (gateway, members) = LocalGateway::start(&program, state.path(), 2, wanted).unwrap();
        work(members, gateway.address);
        gateway.stop().unwrap();
    }
}

/// Makes a file system in a file on this disk and mounts it; whether that is possible here. Without a journal, for with
/// one ext4 lets nobody write any more once its disk has failed, and the kernel's copy of what it lost does no harm.
fn mount_without_journal(image: &Path, at: &Path) -> bool {
    let made = ["-q", "-F", "-O", "^has_journal", "-E", "nodiscard,lazy_itable_init=0"];
    let made = Command::new("mkfs.ext4").args(made).arg(image).output();
    let refused = [made, mount_again(image, at)].into_iter().find_map(|done| match done {
        Ok(done) if done.status.success() => None,
        Ok(done) => Some(String::from_utf8_lossy(&done.stderr).into_owned()),
        Err(error) => Some(error.to_string()),
    });
    if let Some(said) = &refused {
        eprintln!(
            "SKIPPED: no disk that loses what it was given, no file system in a file: {said}"
        );
    }
    refused.is_none()
}

fn mount_again(image: &Path, at: &Path) -> std::io::Result<Output> {
    Command::new("mount").args(["-o", "loop"]).arg(image).arg(at).output()
}

/// The kernel lets go of a killed process's files only when its ring has come to rest, which nothing tells.
fn unmount(disk: &Path) {
    let began = Instant::now();
    while let Err(error) = nix::mount::umount(disk) {
        assert!(began.elapsed() < Duration::from_secs(20), "{}: {error}", disk.display());
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A disk that fails at the sync, as one that is only promised its blocks does when there are none: the kernel forgets
/// that it still had to write, and goes on showing what was never written.
#[test]
fn what_a_failed_sync_has_lost_is_written_again_before_anything_is_built_on_it() {
    on_a_disk_of(48 << 20, |below| {
        let (image, disk) = (below.join("image"), below.join("disk"));
        fs::create_dir(&disk).unwrap();
        fs::File::create(&image).unwrap().set_len(256 << 20).unwrap();
        if !mount_without_journal(&image, &disk) {
            return;
        }
        let (state, elsewhere) = (disk.join("state"), tempfile::tempdir().unwrap());
        good(&state, &["init"]);
        fs::write(state.join("duet.toml"), "[spool]\nsegment_bytes = 1048576\n").unwrap();
        let add = |name: &str| {
            let out = elsewhere.path().join(name);
            duet(
                &state,
                &["device", "add", name, "--registered-id", "--out", out.to_str().unwrap()],
            )
        };
        let gateway = run(&state);
        assert!(add("before").status.success());
        sync(&disk);
        fill(below);
        let refused = (0..60).filter(|n| !add(&format!("n{n}")).status.success()).count();
        assert!(refused > 0, "the disk took everything");
        fs::remove_file(below.join("filler")).unwrap();
        assert!(add("after").status.success());
        good(&state, &["device", "revoke", "before"]);
        // Killed, and then what the kernel only shows goes away.
        kill(gateway);
        let listed = good(&state, &["device", "list", "--format", "json"]);
        unmount(&disk);
        assert!(mount_again(&image, &disk).unwrap().status.success());
        assert_eq!(good(&state, &["device", "list", "--format", "json"]), listed);
        good(&state, &["audit", "verify"]);
        let gateway = run(&state);
        let named = |name: &str| {
            let shown = good(&state, &["device", "show", name, "--format", "json"]);
            serde_json::from_str::<serde_json::Value>(&shown).unwrap()
        };
        assert!(named("after")["revoked_s"].is_null() && !named("before")["revoked_s"].is_null());
        kill(gateway);
        unmount(&disk);
    });
}

/// Where a directory takes a block, as it does on no tmpfs.
#[test]
fn a_gateway_that_was_killed_starts_on_an_ext4_without_a_free_block() {
    on_a_disk_of(24 << 20, |below| {
        let (image, disk) = (below.join("image"), below.join("disk"));
        fs::create_dir(&disk).unwrap();
        fs::File::create(&image).unwrap().set_len(16 << 20).unwrap();
        if !mount_without_journal(&image, &disk) {
            return;
        }
        let (state, out) = (disk.join("state"), below.join("a.json"));
        good(&state, &["init"]);
        fs::write(state.join("duet.toml"), "[spool]\nsegment_bytes = 1048576\n").unwrap();
        let out = out.to_str().unwrap();
        good(&state, &["device", "add", "a", "--registered-id", "--out", out]);
        kill(run(&state));
        let full = keep_full(&disk);
        let gateway = run(&state);
        good(&state, &["device", "revoke", "a"]);
        kill(gateway);
        drop(full);
        unmount(&disk);
    });
}

/// As when its file was brought back from a copy: then nothing is kept back behind its end.
#[test]
fn what_stored_readings_say_is_no_reason_not_to_start_where_it_cannot_be_saved() {
    on_a_disk_of(12 << 20, |disk| {
        let state = disk.join("state");
        good(&state, &["init"]);
        fs::write(state.join("duet.toml"), "[spool]\nsegment_bytes = 1048576\n").unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let credential = elsewhere.path().join("a.json");
        let credential = credential.to_str().unwrap();
        let (gateway, address) = run_at(&state);
        good(&state, &["device", "add", "a", "--registered-id", "--out", credential]);
        let send = ["device", "try", credential, "--address", &address, "--send", "21.5"];
        good(&state, &send);
        kill(gateway);
        // Puts the file in order, and knows nothing of the spool.
        good(&state, &["device", "list"]);
        let registry = state.join("registry.redb");
        fs::copy(&registry, disk.join("copy")).unwrap();
        fs::rename(disk.join("copy"), &registry).unwrap();
        fill(disk);
        let (gateway, address) = run_at(&state);
        good(&state, &["device", "try", credential, "--address", &address, "--send", "22"]);
        kill(gateway);
    });
}

/// An ext4 that has met an error of its disk lets nobody write any more, and what is on it can be read.
#[test]
fn what_can_be_read_is_told_while_nothing_can_be_written() {
    on_a_disk_of(48 << 20, |below| {
        let (image, disk) = (below.join("image"), below.join("disk"));
        fs::create_dir(&disk).unwrap();
        fs::File::create(&image).unwrap().set_len(32 << 20).unwrap();
        if !mount_without_journal(&image, &disk) {
            return;
        }
        let mut again = Command::new("mount");
        again.args(["-o", "remount,errors=remount-ro"]).arg(&disk);
        assert!(again.status().unwrap().success());
        let (state, out) = (disk.join("state"), below.join("a.json"));
        good(&state, &["init"]);
        fs::write(state.join("duet.toml"), "[spool]\nsegment_bytes = 1048576\n").unwrap();
        let out = out.to_str().unwrap();
        good(&state, &["device", "add", "a", "--registered-id", "--out", out]);
        let gateway = run(&state);
        good(&state, &["command", "a", "x"]);
        let mounts = fs::read_to_string("/proc/thread-self/mounts").unwrap();
        let at = format!(" {} ", disk.display());
        let device = mounts.lines().rev().find(|line| line.contains(&at)).unwrap();
        let device = device.split(' ').next().unwrap().trim_start_matches("/dev/").to_owned();
        let trigger = format!("/sys/fs/ext4/{device}/trigger_fs_error");
        if let Err(error) = fs::write(&trigger, "1") {
            eprintln!("SKIPPED: no disk that can only be read: {trigger}: {error}");
        } else {
            let refused = |arguments: &[&str]| {
                let output = duet(&state, arguments);
                let said = String::from_utf8(output.stderr).unwrap();
                assert!(!output.status.success(), "{arguments:?}");
                said
            };
            for _ in 0..2 {
                assert!(refused(&["device", "revoke", "a"]).contains("Read-only"));
                assert!(refused(&["command", "cancel", "1"]).contains("cannot be written"));
                assert!(good(&state, &["device", "list", "--only", "registered"]).contains("a "));
                assert!(good(&state, &["device", "show", "a"]).contains("registered-id"));
                assert!(good(&state, &["device", "export"]).contains("\"a\""));
                assert!(good(&state, &["command", "list"]).contains("queued"));
                for other in ["enrol", "token"] {
                    good(&state, &[other, "list"]);
                }
            }
        }
        kill(gateway);
        unmount(&disk);
    });
}

/// Has the kernel write what it means to write.
fn sync(disk: &Path) {
    // It says here what has failed before; that is known.
    let _ = Command::new("sync").arg("-f").arg(disk).status();
}
