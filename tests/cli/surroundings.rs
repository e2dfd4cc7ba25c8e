//! Starts in surroundings that are not as they should be: each either works or says what to do.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::world::{Gateway, Scratch, text};

const DAY_S: i64 = 86_400;

/// Puts a certificate of the gateway in place that is valid from an hour before `from_s` for `days` days.
fn certificate(scratch: &Scratch, name: &str, from_s: i64, days: u32) {
    let created = duet::identity::create(name, days, from_s).unwrap();
    for (ending, mode, bytes) in [
        ("pem", 0o644, created.certificate_pem.as_bytes()),
        ("key", 0o600, created.key_pem.as_bytes()),
    ] {
        let path = scratch.state().join(format!("{name}.{ending}"));
        let _ = fs::remove_file(&path);
        duet::identity::write_new(&path, bytes, mode).unwrap();
    }
}

#[test]
fn a_retiring_certificate_that_has_ended_is_left_out() {
    let scratch = Scratch::initialised();
    let now_s = duet::identity::now_s();
    certificate(&scratch, "old", now_s - 40 * DAY_S, 30);
    let retiring = "[gateway]\nkey_id = 1\n[gateway.retiring]\nkey_id = 0\ncertificate = \"old.pem\"\nkey = \"old.key\"\n";
    fs::write(scratch.state().join("duet.toml"), retiring).unwrap();
    let mut gateway = scratch.run();
    assert!(gateway.get("/metrics").contains("certificate_end_timestamp_seconds{key_id=\"1\"}"));
    assert!(!gateway.get("/metrics").contains("certificate_end_timestamp_seconds{key_id=\"0\"}"));
    let said = gateway.end("-TERM");
    assert!(said.contains("old.pem: the retiring certificate ended on"), "{said}");
    // The gateway's own is another matter.
    certificate(&scratch, "gateway", now_s - 40 * DAY_S, 30);
    assert!(scratch.bad(&["run"]).contains("gateway.pem: the certificate expired on"));
}

#[test]
fn a_clock_that_is_behind_is_waited_for() {
    let scratch = Scratch::initialised();
    // Valid in three seconds from now.
    certificate(&scratch, "gateway", duet::identity::now_s() + 3600 + 3, 300);
    let began = Instant::now();
    let mut gateway = scratch.run();
    assert!(began.elapsed() > Duration::from_secs(1), "it did not wait");
    let said = gateway.end("-TERM");
    assert!(said.contains("not valid before") && said.contains("waiting for the clock"), "{said}");
    assert!(said.contains("now: starting"), "{said}");
    // Whoever waits can be ended.
    certificate(&scratch, "gateway", duet::identity::now_s() + DAY_S, 300);
    let mut waiting = scratch.command(&["run"]).stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(waiting.try_wait().unwrap(), None);
    let pid = rustix::process::Pid::from_child(&waiting);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let ended = waiting.wait_with_output().unwrap();
    assert!(!ended.status.success() && text(&ended.stderr).contains("waiting for the clock"));
}

/// A library that moves the clock of the wall by the seconds that a file holds; where the processes find it.
fn movable_clock(scratch: &Scratch) -> String {
    const SOURCE: &str = r#"
        #define _GNU_SOURCE
        #include <stdio.h>
        #include <stdlib.h>
        #include <sys/syscall.h>
        #include <time.h>
        #include <unistd.h>
        int clock_gettime(clockid_t clock, struct timespec *now) {
            int failed = syscall(SYS_clock_gettime, clock, now);
            FILE *file = failed || clock != CLOCK_REALTIME ? NULL : fopen(getenv("CLOCK_MOVED"), "r");
            long seconds = 0;
            if (file && fscanf(file, "%ld", &seconds) == 1) now->tv_sec += seconds;
            if (file) fclose(file);
            return failed;
        }
    "#;
    let (source, library) = (scratch.path("clock.c"), scratch.path("clock.so"));
    fs::write(&source, SOURCE).unwrap();
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source);
    assert!(cc.status().unwrap().success());
    library.display().to_string()
}

/// As on the first start of a machine whose clock begins in 1970, where the unit calls `duet init`: a certificate of then
/// would be over for ever, and devices know it by its fingerprint.
#[test]
fn nothing_that_is_valid_from_now_on_is_made_before_the_clock_is_set() {
    let scratch = Scratch::empty();
    let (library, moved) = (movable_clock(&scratch), scratch.path("moved"));
    let clock = [("LD_PRELOAD", library.as_str()), ("CLOCK_MOVED", moved.to_str().unwrap())];
    let duet = |words: &[&str]| scratch.command(words).envs(clock).output().unwrap();
    let unset = |words: &[&str]| {
        fs::write(&moved, (60 - duet::identity::now_s()).to_string()).unwrap();
        let output = duet(words);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("clock says 1970-01-01T00:01:0") && said.contains("set the clock"));
        fs::write(&moved, "0").unwrap();
        assert!(duet(words).status.success());
    };
    unset(&["init"]);
    unset(&["ca", "init"]);
    scratch.run().stop("-TERM");
}

#[test]
fn a_clock_at_either_end_of_what_linux_allows_stops_nothing() {
    let scratch = Scratch::initialised();
    let (library, moved) = (movable_clock(&scratch), scratch.path("moved"));
    let clock = [("LD_PRELOAD", library.as_str()), ("CLOCK_MOVED", moved.to_str().unwrap())];
    fs::write(&moved, "0").unwrap();
    let mut gateway = scratch.run_with(&clock);
    let address = gateway.address.to_string();
    scratch.good(&[
        "device",
        "add",
        "a",
        "--registered-id",
        "--address",
        &address,
        "--out",
        "a.json",
    ]);
    let duet = |words: &[&str]| {
        let output = scratch.command(words).envs(clock).output().unwrap();
        let said = text(&output.stderr);
        // Whether all is well is another matter: certificates end.
        assert!(output.status.code().is_some_and(|code| code < 2), "{words:?}: {said}");
        assert!(!said.contains("panicked") && !said.contains("broke off"), "{words:?}: {said}");
        text(&output.stdout)
    };
    // The kernel sets no clock to before 1970, nor later than 30 years before 2⁶³ ns (`timespec64_valid_settod`). Between
    // them: where 32 bits of seconds end.
    for (at, to_s) in
        [10, (1 << 32) + 10, i64::MAX / 1_000_000_000 - 30 * 365 * DAY_S].into_iter().enumerate()
    {
        fs::write(&moved, (to_s - duet::identity::now_s()).to_string()).unwrap();
        assert!(gateway.get("/health").starts_with("HTTP/1.1 "));
        assert!(gateway.get("/metrics").contains("duet_build_info"));
        assert!(duet(&["status"]).contains("phase        running"));
        assert!(duet(&["top", "--once"]).contains("fleet"));
        assert!(duet(&["device", "list"]).contains("registered"));
        assert!(duet(&["device", "show", "a"]).contains("registered-id"));
        let name = format!("more-{at}");
        duet(&["device", "add", &name, "--registered-id", "--out", &format!("{name}.json")]);
        assert!(duet(&["device", "try", "a.json", "--send", "21.5"]).contains("stored"));
        assert_eq!(duet(&["spool", "cat"]).matches("\"text\":\"21.5\"").count(), at + 1);
        assert!(duet(&["command", "a", "restart"]).contains("queued"));
        let commands = duet(&["command", "list"]);
        assert!(commands.contains("a") && !commands.contains("expired"), "{commands}");
        assert!(duet(&["audit", "show"]).contains("POST /v1/devices"));
        assert!(duet(&["log", "level"]).contains("info"));
        duet(&["token", "add", &name, "--role", "viewer"]);
        duet(&["token", "list"]);
        duet(&["config", "reload"]);
        duet(&["check"]);
        duet(&["backup", &format!("{at}.tar")]);
    }
    fs::write(&moved, "0").unwrap();
    let said = gateway.end("-TERM");
    assert!(!said.contains("panicked"), "{said}");
    scratch.good(&["audit", "verify"]);
    scratch.run().stop("-TERM");
}

#[test]
fn every_secret_that_others_can_read_is_refused_with_its_remedy() {
    let scratch = Scratch::initialised();
    scratch.run().stop("-TERM");
    for name in ["gateway.key", "registry.redb", "registry.keys", "node.key"] {
        let path = scratch.state().join(name);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let said = scratch.bad(&["run", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"]);
        assert!(said.contains(name) && said.contains("chmod 600"), "{said}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }
    scratch.run().stop("-TERM");
}

#[test]
fn a_secret_that_root_mounts_may_be_read_by_those_it_is_for() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: secrets as systemd and containers' engines mount them: must be root");
        return;
    }
    let scratch = Scratch::initialised();
    fs::write(scratch.state().join("duet.toml"), "[gateway]\nkey = \"/run/test/key\"\n").unwrap();
    let mut chown = Command::new("chown");
    assert!(chown.args(["-R", "65534"]).arg(scratch.dir.path()).status().unwrap().success());
    // What is said of the key in a directory below /run, to root or to another user.
    let said = |dir: &str, mode: &str, owner: &str, user: &str| {
        let script = format!(
            "set -e; mount --make-rprivate /; mount -t tmpfs none /run; mkdir /run/{dir}; ln -s {dir} /run/test
             cp state/gateway.key /run/test/key; chmod {mode} /run/test/key; chown {owner} /run/test/key
             exec setpriv --reuid {user} --regid 65534 --clear-groups \"$0\" --state state check"
        );
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &script, env!("CARGO_BIN_EXE_duet")]);
        let output = command.current_dir(scratch.dir.path()).output().unwrap();
        text(&output.stdout) + &text(&output.stderr)
    };
    let taken = "ok   certificate";
    // systemd's credentials, and Kubernetes' with `fsGroup`.
    assert!(said("credentials", "0440", "0:65534", "65534").contains(taken));
    // Docker's and Podman's.
    assert!(said("secrets", "0444", "0:0", "65534").contains(taken));
    assert!(said("secrets", "0444", "0:0", "0").contains(taken));
    for (dir, mode, owner, user) in [
        ("credentials", "0444", "0:65534", "65534"),
        ("credentials", "0440", "0:65534", "0"),
        ("credentials", "0440", "65534:65534", "65534"),
        ("secrets", "0444", "65534:65534", "65534"),
        ("secrets", "0466", "0:0", "65534"),
    ] {
        let said = said(dir, mode, owner, user);
        assert!(said.contains("chmod 600") && !said.contains(taken), "{dir} {mode} {said}");
    }
}

/// Runs a gateway after these lines of a shell, in namespaces of its own; what it says on standard error.
fn refused(scratch: &Scratch, lines: &str, how: &[&str]) -> String {
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c"]).arg(format!("{lines}\nexec \"$0\" \"$@\""));
    command.args(how).arg(env!("CARGO_BIN_EXE_duet"));
    command.args([
        "--state",
        "state",
        "run",
        "--listen",
        "127.0.0.1:0",
        "--metrics",
        "127.0.0.1:0",
    ]);
    let output = command.current_dir(scratch.dir.path()).stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stdout));
    text(&output.stderr)
}

#[test]
fn a_state_directory_that_cannot_be_written_to_is_told_with_its_remedy() {
    if !rustix::process::geteuid().is_root() {
        eprintln!(
            "SKIPPED: a state directory of another user, or on a file system that is read-only: must be root"
        );
        return;
    }
    let scratch = Scratch::initialised();
    let read_only =
        "set -e; mount --make-rprivate /; mount --bind state state; mount -o remount,bind,ro state";
    let said = refused(&scratch, read_only, &[]);
    assert!(said.contains("registry.redb") && said.contains("remount,rw"), "{said}");
    // And before anybody tries it.
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c"])
        .arg(format!("{read_only}\nexec \"$0\" --state state check"));
    command.arg(env!("CARGO_BIN_EXE_duet")).current_dir(scratch.dir.path());
    let output = command.output().unwrap();
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("FAIL state") && said.contains("remount,rw"), "{said}");
    // Of another user, as after a copy by root; the test's own directory is closed to others, too.
    fs::set_permissions(scratch.dir.path(), fs::Permissions::from_mode(0o711)).unwrap();
    let nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];
    let said = refused(&scratch, "", &nobody);
    assert!(said.contains("duet.toml") && said.contains("chown -R 65534"), "{said}");
    fs::set_permissions(scratch.state(), fs::Permissions::from_mode(0o711)).unwrap();
    let said = refused(&scratch, "", &nobody);
    assert!(said.contains("gateway.key") && said.contains("chown -R 65534"), "{said}");
    fs::set_permissions(scratch.state(), fs::Permissions::from_mode(0o700)).unwrap();
    // A spool whose disk is not there.
    std::os::unix::fs::symlink("nowhere", scratch.state().join("spool")).unwrap();
    let said = refused(&scratch, "", &[]);
    assert!(said.contains("spool: a symbolic link to nowhere"), "{said}");
    fs::remove_file(scratch.state().join("spool")).unwrap();
    // None of them has harmed it.
    scratch.run().stop("-TERM");
}

/// Runs a gateway that must not start, for half a minute at most; what it says on standard error.
fn not_started(scratch: &Scratch, lines: &str) -> String {
    let output = Command::new("timeout")
        .args(["--signal=KILL", "30", "sh", "-c"])
        .arg(format!("{lines}\nexec \"$0\" \"$@\""))
        .arg(env!("CARGO_BIN_EXE_duet"))
        .args(["--state", "state", "run", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"])
        .current_dir(scratch.dir.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stderr)
}

/// What `duet check` says of a gateway that would not start, within half a minute.
fn checked(scratch: &Scratch) -> String {
    let output = Command::new("timeout")
        .args(["--signal=KILL", "30", env!("CARGO_BIN_EXE_duet"), "--state", "state", "check"])
        .current_dir(scratch.dir.path())
        .output()
        .unwrap();
    let said = text(&output.stdout) + &text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    said
}

#[test]
fn whoever_asks_a_gateway_that_is_stopped_is_told_soon() {
    let scratch = Scratch::initialised();
    fs::write(scratch.path("fleet.csv"), "name,mode\na,registered-id\n").unwrap();
    let gateway = scratch.run();
    let signal = |name: &str| {
        let pid = gateway.child.id().to_string();
        assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    };
    signal("-STOP");
    let asked = [
        &["backup", "b.tar"][..],
        &["device", "import", "fleet.csv", "--dry-run"],
        &["device", "import", "fleet.csv", "--out", "made"],
    ];
    let waiting: Vec<_> = asked
        .iter()
        .map(|words| {
            let mut command = Command::new("timeout");
            command.args(["--signal=KILL", "60", env!("CARGO_BIN_EXE_duet"), "--state", "state"]);
            command.args(*words).current_dir(scratch.dir.path()).stderr(Stdio::piped());
            command.spawn().unwrap()
        })
        .collect();
    for (words, one) in asked.iter().zip(waiting) {
        let output = one.wait_with_output().unwrap();
        let said = text(&output.stderr);
        assert!(
            output.status.code() == Some(1) && said.contains("did not answer"),
            "{words:?}: {said}"
        );
    }
    assert!(!scratch.path("b.tar").exists() && !scratch.path("made").exists());
    signal("-CONT");
    scratch.good(asked[2]);
    gateway.stop("-TERM");
}

#[test]
fn what_is_no_file_in_a_files_place_is_told_before_anything_waits_for_it() {
    let scratch = Scratch::initialised();
    scratch.good(&["ca", "init"]);
    scratch.good(&["token", "add", "monitoring", "--role", "viewer"]);
    fs::write(scratch.state().join("duet.toml"), "[notices]\npresence = true\n").unwrap();
    scratch.run().stop("-TERM");
    let run = fs::read_dir(scratch.state().join("presence")).unwrap().next().unwrap().unwrap();
    let run = format!("presence/{}/0", run.file_name().into_string().unwrap());
    let names = [
        "duet.toml",
        "registry.redb",
        "registry.keys",
        "commands.redb",
        "tokens.json",
        "audit.ndjson",
        "node.key",
        "spool.id",
        "gateway.pem",
        "gateway.key",
        "ca.pem",
        "ca.key",
        "spool/spool.lock",
        "spool/spool.durable",
        "spool/spool-0000000000000000.log",
        "spool/cursor-marks.pos",
        "registry.seen",
        "commands.seen",
        "tokens.seen",
        "node.seen",
        &run,
    ];
    let kept = scratch.path("kept");
    for name in names {
        let place = scratch.state().join(name);
        fs::rename(&place, &kept).unwrap();
        let told = |told: &str| {
            let said = not_started(&scratch, "");
            assert!(said.contains(name) && said.contains(told), "{name}: {said}");
            if name != "duet.toml" {
                let said = checked(&scratch);
                assert!(said.contains(name) && said.contains(told), "{name}: {said}");
            }
            if name.starts_with("spool/") {
                let said = scratch.bad(&["spool", "list"]);
                assert!(said.contains(name) && said.contains(told), "{name}: {said}");
            }
            if name.starts_with("tokens") || name.starts_with("audit") {
                let arguments = [&["token", "list"], &["audit", "verify"]];
                let said = scratch.bad(arguments[usize::from(name.starts_with("audit"))]);
                assert!(said.contains(name) && said.contains(told), "{name}: {said}");
            }
            if !name.starts_with("spool/")
                && !name.starts_with("gateway.")
                && !name.starts_with("ca.")
            {
                let said = scratch.bad(&["device", "list"]);
                assert!(said.contains(name) && said.contains(told), "{name}: {said}");
            }
        };
        assert!(Command::new("mkfifo").args(["-m", "600"]).arg(&place).status().unwrap().success());
        told("a named pipe stands in this file's place");
        fs::remove_file(&place).unwrap();
        fs::create_dir(&place).unwrap();
        told("a directory stands in this file's place");
        fs::remove_dir(&place).unwrap();
        std::os::unix::fs::symlink(scratch.path("not-mounted/file"), &place).unwrap();
        told("is its disk mounted?");
        fs::remove_file(&place).unwrap();
        fs::rename(&kept, &place).unwrap();
    }
    // A link to a file is as good as the file.
    let links =
        ["gateway.key", "spool/spool.lock", "spool/spool.durable", "spool/cursor-marks.pos"];
    for name in links {
        let (place, kept) = (scratch.state().join(name), scratch.path(&name.replace('/', "-")));
        fs::rename(&place, &kept).unwrap();
        std::os::unix::fs::symlink(&kept, &place).unwrap();
    }
    let mut gateway = scratch.run();
    // They are looked at each second.
    std::thread::sleep(Duration::from_millis(2_500));
    let said = gateway.end("-TERM");
    assert!(!said.contains("WARN"), "{said}");
}

#[test]
fn what_a_gateway_had_and_has_not_any_more_is_told() {
    let scratch = Scratch::initialised();
    let warnings = || {
        let mut gateway = scratch.run();
        let mut err = gateway.child.stderr.take().unwrap();
        gateway.stop("-TERM");
        let mut said = String::new();
        std::io::Read::read_to_string(&mut err, &mut said).unwrap();
        said
    };
    assert!(!warnings().contains("is gone"), "nothing was there before the first start");
    let names = ["node.key", "commands.redb", "audit.ndjson"];
    for name in names {
        fs::remove_file(scratch.state().join(name)).unwrap();
        let said = warnings();
        for other in names {
            assert_eq!(
                said.contains(&format!("{other}: a gateway has run here")),
                other == name,
                "{said}"
            );
        }
    }
    assert!(!warnings().contains("is gone"), "it is said once: all of them are there again");
}

#[test]
fn another_certificate_under_the_same_key_id_is_told_and_one_under_its_own_is_not() {
    let scratch = Scratch::initialised();
    let said = || scratch.run().end("-TERM");
    let told = "another certificate than the one that this gateway last ran with under key_id 0";
    assert!(!said().contains(told));
    let now_s = duet::identity::now_s();
    certificate(&scratch, "gateway", now_s, 300);
    assert!(text(&scratch.duet(&["check"]).stdout).contains(told));
    let said_first = said();
    assert!(said_first.contains(told) && said_first.contains("gateway-0.seen"), "{said_first}");
    assert!(!said().contains(told), "it is said once");
    fs::rename(scratch.state().join("gateway.pem"), scratch.state().join("old.pem")).unwrap();
    fs::rename(scratch.state().join("gateway.key"), scratch.state().join("old.key")).unwrap();
    certificate(&scratch, "gateway", now_s, 300);
    let settings = "[gateway]\nkey_id = 1\n[gateway.retiring]\nkey_id = 0\ncertificate = \"old.pem\"\nkey = \"old.key\"\n";
    fs::write(scratch.state().join("duet.toml"), settings).unwrap();
    let mut gateway = scratch.run();
    certificate(&scratch, "gateway", now_s, 300);
    assert!(scratch.good(&["config", "reload"]).contains("under key_id 1"));
    let said = gateway.end("-TERM");
    assert!(!said.contains(told), "{said}");
}

#[test]
fn what_stands_in_the_place_of_an_open_file_keeps_nobody_from_revoking_and_no_reload_waits_for_a_pipe()
 {
    let scratch = Scratch::initialised();
    scratch.good(&[
        "device",
        "add",
        "lost",
        "--registered-id",
        "--out",
        "lost.json",
        "--address",
        "127.0.0.1:1",
    ]);
    let gateway = scratch.run();
    let commands = scratch.state().join("commands.redb");
    fs::remove_file(&commands).unwrap();
    fs::create_dir(&commands).unwrap();
    assert!(scratch.good(&["device", "revoke", "lost"]).contains("revoked"));
    let key = scratch.state().join("gateway.key");
    fs::rename(&key, scratch.path("kept")).unwrap();
    assert!(Command::new("mkfifo").args(["-m", "600"]).arg(&key).status().unwrap().success());
    for arguments in [&["config", "reload"][..], &["backup", "backup.tar"]] {
        let said = scratch.bad(arguments);
        assert!(said.contains("place"), "{said}");
    }
    fs::remove_file(&key).unwrap();
    fs::rename(scratch.path("kept"), &key).unwrap();
    scratch.good(&["config", "reload"]);
    gateway.stop("-TERM");
}

#[test]
fn a_ca_of_which_only_one_file_is_left_is_told() {
    let scratch = Scratch::initialised();
    scratch.good(&["ca", "init"]);
    for name in ["ca.pem", "ca.key"] {
        let (place, kept) = (scratch.state().join(name), scratch.path("kept"));
        fs::rename(&place, &kept).unwrap();
        let said = not_started(&scratch, "");
        assert!(said.contains(name) && said.contains("bring it back"), "{said}");
        assert!(checked(&scratch).contains(name));
        fs::rename(&kept, &place).unwrap();
    }
    for name in ["ca.pem", "ca.key"] {
        fs::remove_file(scratch.state().join(name)).unwrap();
    }
    scratch.run().stop("-TERM");
}

#[test]
fn no_mask_takes_the_owners_own_right_to_the_files() {
    let scratch = Scratch::empty();
    let status = Command::new("sh")
        .args(["-c", "umask 0777; exec \"$0\" --state state init"])
        .arg(env!("CARGO_BIN_EXE_duet"))
        .current_dir(scratch.dir.path())
        .stdout(Stdio::null())
        .status();
    assert!(status.unwrap().success());
    let mode = |name: &str| fs::metadata(scratch.state().join(name)).unwrap().mode() & 0o777;
    let modes = ["", "registry.redb", "gateway.key", "gateway.pem", "duet.toml"].map(mode);
    assert_eq!(modes, [0o700, 0o600, 0o600, 0o600, 0o600], "{modes:?}");
}

#[test]
fn a_limit_of_a_files_size_is_an_error_with_its_remedy() {
    let scratch = Scratch::initialised();
    let said = not_started(&scratch, "ulimit -f 1024");
    assert!(said.contains("spool-") && said.contains("ulimit -f"), "{said}");
    // What has no file's name is not standard output's fault.
    for files in [4, 6, 7, 9, 31, 33, 37] {
        let said = not_started(&scratch, &format!("ulimit -n {files}"));
        assert!(
            said.contains(&format!("only {files} files")) && said.contains("ulimit -n"),
            "{said}"
        );
        assert!(!said.contains("standard output") && !said.contains("panicked"), "{said}");
    }
}

#[test]
fn a_cursor_that_could_not_be_made_leaves_nothing() {
    let scratch = Scratch::initialised();
    scratch.run().stop("-TERM");
    let mut set = Command::new("sh");
    set.args(["-c", "ulimit -f 0; exec \"$0\" \"$@\""]).arg(env!("CARGO_BIN_EXE_duet"));
    set.args(["--state", "state", "spool", "cursor", "set", "x", "0"]);
    let output = set.current_dir(scratch.dir.path()).output().unwrap();
    let said = text(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("ulimit -f"), "{said}");
    let left: Vec<_> = fs::read_dir(scratch.state().join("spool")).unwrap().flatten().collect();
    assert!(
        left.iter().all(|file| !text(file.file_name().as_encoded_bytes()).contains("cursor-x"))
    );
}

/// A start that was refused has made some files and not others.
#[test]
fn what_a_refused_start_has_not_made_is_not_told_as_gone() {
    let scratch = Scratch::initialised();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let start = ["run", "--listen", "127.0.0.1:0", "--metrics", &address];
    for _ in 0..2 {
        let said = scratch.bad(&start);
        assert!(said.contains(&address) && !said.contains("gone"), "{said}");
    }
}

#[test]
fn what_lies_in_the_sockets_place_is_named_and_what_a_killed_gateway_left_there_is_not_in_the_way()
{
    let scratch = Scratch::initialised();
    let mut killed = scratch.run();
    killed.child.kill().unwrap();
    killed.child.wait().unwrap();
    assert!(scratch.state().join("control.sock").exists());
    scratch.run().stop("-TERM");
    for is_directory in [false, true] {
        let place = scratch.state().join("control.sock");
        let _ = fs::remove_file(&place);
        if is_directory {
            fs::create_dir(&place).unwrap()
        } else {
            fs::write(&place, "x").unwrap()
        }
        let said = scratch.bad(&["run", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"]);
        assert!(
            said.contains("control.sock") && said.contains("no socket is in its place"),
            "{said}"
        );
    }
}

#[test]
fn a_state_directory_whose_path_is_too_long_for_a_socket_is_refused_before_anything_is_made() {
    let scratch = Scratch::initialised();
    let long = scratch.path(&"s".repeat(100));
    fs::rename(scratch.state(), &long).unwrap();
    let at = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_duet"));
        command.arg("--state").arg(&long).args(words).stdin(Stdio::null());
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{words:?}: {}", text(&output.stdout));
        text(&output.stdout) + &text(&output.stderr)
    };
    for words in [&["check"][..], &["run"], &["device", "list"]] {
        let said = at(words);
        assert!(said.contains("at most 94 leave room") && said.contains("symbolic"), "{said}");
    }
    fs::remove_dir_all(&long).unwrap();
    assert!(at(&["init"]).contains("at most 94 leave room"));
    assert!(!long.exists());
    // A name that is short makes it one.
    std::os::unix::fs::symlink(&long, scratch.state()).unwrap();
    fs::create_dir(&long).unwrap();
    fs::set_permissions(&long, fs::Permissions::from_mode(0o700)).unwrap();
    scratch.good(&["init"]);
    scratch.run().stop("-TERM");
}

#[test]
fn a_gateway_needs_neither_proc_nor_many_descriptors() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: a system without /proc: must be root");
        return;
    }
    let scratch = Scratch::initialised();
    let script = format!(
        "set -e; ulimit -n 64; mount --make-rprivate /; umount -l /proc\nexec {} \"$@\"",
        env!("CARGO_BIN_EXE_duet")
    );
    let mut child = Command::new("unshare")
        .args(["--mount", "sh", "-c", &script, "duet", "--state", "state", "run"])
        .args(["--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"])
        .current_dir(scratch.dir.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    let runs = lines.any(|line| line.unwrap() == "running");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(child.wait().unwrap().success() && runs);
}

/// Who owns what `/proc` has in a process's directory: of one that the kernel does not dump it is root (proc(5)).
fn owner_in_proc(mut command: Command) -> u32 {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    // It has come to what it does once it says something.
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0]).unwrap();
    let owner = fs::metadata(format!("/proc/{}/mem", child.id())).unwrap().uid();
    child.kill().unwrap();
    child.wait().unwrap();
    owner
}

#[test]
fn no_core_dump_and_no_other_process_of_its_user_gets_a_gateways_keys() {
    let scratch = Scratch::initialised();
    let is_root = rustix::process::geteuid().is_root();
    let user = if is_root { 65_534 } else { rustix::process::geteuid().as_raw() };
    // What root runs is root's in either case.
    let own = |command: Command| {
        if !is_root {
            return command;
        }
        let mut other = Command::new("setpriv");
        other.args([&format!("--reuid={user}"), &format!("--regid={user}"), "--clear-groups"]);
        other.arg(command.get_program()).args(command.get_args());
        other.current_dir(scratch.dir.path());
        other
    };
    if is_root {
        let mut chown = Command::new("chown");
        let chown = chown.arg("-R").arg(user.to_string()).arg(scratch.dir.path()).status().unwrap();
        assert!(chown.success());
    }
    let run = ["run", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"];
    assert_eq!(owner_in_proc(own(scratch.command(&run))), 0);
    let mut shell = Command::new("sh");
    shell.args(["-c", "echo; read line"]).current_dir(scratch.dir.path());
    assert_eq!(owner_in_proc(own(shell)), user, "this system tells nothing by it");
}

#[test]
fn the_shipped_unit_is_one_and_never_gives_up() {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/duet.service");
    let lines = fs::read_to_string(&unit).unwrap();
    for line in [
        "Type=notify",
        "WatchdogSec=30",
        "Restart=always",
        "StartLimitIntervalSec=0",
        "TimeoutStartSec=infinity",
        "RequiresMountsFor=/var/lib/duet /var/lib/private/duet",
    ] {
        assert!(lines.lines().any(|found| found == line), "{line}");
    }
    let after = lines.lines().find_map(|line| line.strip_prefix("After=")).unwrap();
    assert!(after.contains("time-sync.target"));
    let Ok(verified) = Command::new("systemd-analyze").arg("verify").arg(&unit).output() else {
        eprintln!("SKIPPED: systemd-analyze is missing, so the unit was not verified");
        return;
    };
    let said = text(&verified.stderr);
    let faults = said.lines().filter(|line| !line.contains("Command duet is not executable"));
    assert_eq!(faults.collect::<Vec<_>>(), Vec::<&str>::new());
    // How much of the system the service could harm, in tenths: beyond 20 systemd does not call it well confined.
    let mut judged = Command::new("systemd-analyze");
    judged.args(["security", "--offline=yes", "--threshold=20", "--no-pager"]).arg(&unit);
    let judged = judged.output().unwrap();
    assert!(judged.status.success(), "{}", text(&judged.stdout));
}

impl Gateway {
    /// Ends it; what it said on standard error.
    fn end(&mut self, signal: &str) -> String {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
        let mut said = String::new();
        std::io::Read::read_to_string(&mut self.child.stderr.take().unwrap(), &mut said).unwrap();
        said
    }
}

#[test]
fn an_upstream_that_gets_a_token_in_clear_is_told_by_check_and_at_start() {
    let scratch = Scratch::initialised();
    let settings = scratch.state().join("duet.toml");
    let more = "\n[[upstream]]\nname = \"hub\"\nkind = \"webhook\"\nurl = \"http://hub.invalid/in\"\ntoken_file = \"t\"\n";
    let before = fs::read_to_string(&settings).unwrap();
    fs::write(&settings, before + more).unwrap();
    let token = scratch.state().join("t");
    fs::write(&token, "secret").unwrap();
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
    let warning = "upstream \"hub\": url has no TLS";
    let said = scratch.good(&["check"]);
    assert!(said.contains(&format!("ok   upstream       warning: {warning}")), "{said}");
    let said = scratch.run().end("-TERM");
    assert!(said.contains(warning), "{said}");
    fs::write(&settings, fs::read_to_string(&settings).unwrap().replace("http:", "https:"))
        .unwrap();
    assert!(!scratch.good(&["check"]).contains("warning"));
}

/// Whoever looks before a restart sees what a start would refuse, and nothing is changed by looking.
#[test]
fn check_refuses_what_a_start_refuses() {
    let scratch = Scratch::initialised();
    scratch.good(&["device", "add", "a", "--registered-id", "--out", "a.json"]);
    scratch.good(&["token", "add", "ops", "--role", "admin"]);
    let gateway = scratch.run();
    gateway.stop("-TERM");
    let check = || {
        let output = scratch.duet(&["check"]);
        (output.status.code(), text(&output.stdout))
    };
    assert_eq!(check().0, Some(0), "{}", check().1);
    type Harm = fn(&mut Vec<u8>);
    let harms: [(&str, Harm); 13] = [
        ("registry.redb", |bytes| bytes.truncate(5)),
        ("registry.redb", |bytes| bytes.fill(0)),
        ("registry.keys", |bytes| bytes[9] ^= 1),
        ("registry.keys", |bytes| bytes.truncate(32)),
        ("registry.keys", |bytes| bytes[40] ^= 1),
        ("node.key", |bytes| bytes.truncate(16)),
        ("tokens.json", |bytes| bytes.truncate(9)),
        ("audit.ndjson", |bytes| {
            let last = bytes[..bytes.len() - 1].iter().rposition(|byte| *byte == b'\n');
            bytes[last.unwrap() + 1] ^= 1;
        }),
        ("audit.ndjson", |bytes| *bytes = b"x".repeat(40_000)),
        ("spool.id", |bytes| bytes.truncate(9)),
        ("spool.id", |bytes| bytes[0] = if bytes[0] == b'0' { b'1' } else { b'0' }),
        ("spool/spool-0000000000000000.log", |bytes| bytes[20] ^= 1),
        ("spool/spool-0000000000000000.log", |bytes| bytes.truncate(20)),
    ];
    for (name, harm) in harms {
        let path = scratch.state().join(name);
        let whole = fs::read(&path).unwrap();
        let mut bytes = whole.clone();
        harm(&mut bytes);
        fs::write(&path, &bytes).unwrap();
        let (code, said) = check();
        assert!(code == Some(1) && said.contains(name), "{name}: {said}");
        assert_eq!(fs::read(&path).unwrap(), bytes, "{name} was changed");
        let refused = not_started(&scratch, "");
        assert!(refused.contains(name), "{name}: {refused}");
        fs::write(&path, whole).unwrap();
    }
    for name in ["registry.redb", "registry.keys", "node.key", "tokens.json"] {
        let (path, aside) = (scratch.state().join(name), scratch.path("aside"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let (code, said) = check();
        assert!(code == Some(1) && said.contains("chmod 600"), "{name}: {said}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::rename(&path, &aside).unwrap();
        if name.starts_with("registry") {
            let (code, said) = check();
            assert!(code == Some(1) && said.contains(name), "{name}: {said}");
        }
        fs::rename(&aside, &path).unwrap();
    }
    assert_eq!(check().0, Some(0));
    // A disk that is not mounted.
    let (spool, aside) = (scratch.state().join("spool"), scratch.path("aside"));
    fs::rename(&spool, &aside).unwrap();
    for is_made in [false, true] {
        is_made.then(|| fs::create_dir(&spool).unwrap());
        let (code, said) = check();
        assert!(code == Some(1) && said.contains("FAIL spool"), "{said}");
    }
    fs::remove_dir(&spool).unwrap();
    fs::rename(&aside, &spool).unwrap();
    assert_eq!(check().0, Some(0));
    // And what stands beside a file to tell of older ones keeps nobody waiting.
    let gateway = scratch.run();
    for name in ["registry.seen", "commands.seen", "tokens.seen", "audit.seen"] {
        let path = scratch.state().join(name);
        let _ = fs::remove_file(&path);
        assert!(Command::new("mkfifo").args(["-m", "600"]).arg(&path).status().unwrap().success());
    }
    scratch.good(&["device", "add", "b", "--registered-id", "--out", "b.json"]);
    scratch.good(&["command", "a", "x"]);
    scratch.good(&["token", "add", "more", "--role", "viewer"]);
    gateway.stop("-TERM");
}
