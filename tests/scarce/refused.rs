//! Where the system refuses something: io_uring itself, locked memory, or every system call that the shipped seccomp
//! profile does not name. Devices of every profile do their whole job over UDP and TCP each time.
//!
//! The gateway is started through this test's own binary, which confines itself and then becomes the gateway.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use loadgen::local::LocalGateway;
use seccompiler::BpfMap;

use super::world::{DUET, everyone, have, script, work};

const PROFILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/seccomp.json");

/// The filter under which the launcher puts itself: a file in seccompiler's format.
const FILTER: &str = "DUET_TEST_FILTER";
/// What the launcher then becomes: a command line.
const COMMAND: &str = "DUET_TEST_COMMAND";

/// The launcher's process: this test binary again.
#[test]
fn launcher() {
    let Ok(command) = std::env::var(COMMAND) else { return };
    let filter = std::fs::read(std::env::var(FILTER).unwrap()).unwrap();
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let filters: BpfMap = seccompiler::compile_from_json(&filter[..], arch).unwrap();
    seccompiler::apply_filter(&filters["duet"]).unwrap();
    let mut words = command.split(' ');
    let mut gateway = Command::new(words.next().unwrap());
    gateway.args(words).env_remove(COMMAND).env_remove("DUET_IO");
    panic!("{}", gateway.exec());
}

/// A program that puts `duet` under a filter.
fn filtered(dir: &Path, filter: &serde_json::Value) -> PathBuf {
    let (launcher, path) = (std::env::current_exe().unwrap(), dir.join("filter.json"));
    std::fs::write(&path, filter.to_string()).unwrap();
    let (launcher, path) = (launcher.display(), path.display());
    let variables = format!("{FILTER}={path} {COMMAND}=\"{DUET} $*\"");
    script(
        dir,
        &format!("export {variables}\nexec {launcher} --exact refused::launcher --nocapture"),
    )
}

/// What a gateway said of itself while it served.
struct Served {
    status: String,
    metrics: String,
}

/// Runs a fleet through a gateway that is started by `program`, and lets both end well.
fn serve(program: &Path, dir: &Path) -> Served {
    let (gateway, members) = LocalGateway::start(program, dir, 2, &everyone()).unwrap();
    work(members, gateway.address);
    let mut status = Command::new(program);
    let status = status.arg("--state").arg(&gateway.state).arg("status").output().unwrap();
    assert!(status.status.success());
    let served = Served {
        status: String::from_utf8(status.stdout).unwrap(),
        metrics: gateway.scrape().unwrap(),
    };
    gateway.stop().unwrap();
    served
}

impl Served {
    fn assert_driver(&self, name: &str, status: &str) {
        let info = format!("duet_driver_info{{driver=\"{name}\"}} 1");
        assert!(self.metrics.contains(&info), "{}", self.metrics);
        let said = self.status.lines().find(|line| line.starts_with("driver")).unwrap();
        assert!(said.ends_with(status), "{said}");
    }
}

/// Everything but `refused`, which fails with `errno`.
fn without(refused: &[&str], errno: i32) -> serde_json::Value {
    let rules: Vec<_> = refused.iter().map(|name| serde_json::json!({ "syscall": name })).collect();
    serde_json::json!({ "duet": {
        "mismatch_action": "allow",
        "match_action": { "errno": errno },
        "filter": rules,
    }})
}

const IO_URING: [&str; 3] = ["io_uring_setup", "io_uring_enter", "io_uring_register"];

#[test]
fn where_a_filter_refuses_io_uring_everything_works_without() {
    for errno in [rustix::io::Errno::PERM, rustix::io::Errno::NOSYS] {
        let dir = tempfile::tempdir().unwrap();
        let program = filtered(dir.path(), &without(&IO_URING, errno.raw_os_error()));
        serve(&program, dir.path()).assert_driver("epoll", "epoll");
    }
}

/// The system calls that the shipped profile allows.
fn allowed() -> Vec<String> {
    let profile: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(PROFILE).unwrap()).unwrap();
    assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO");
    let rules = profile["syscalls"].as_array().unwrap();
    assert!(rules.iter().all(|rule| rule["action"] == "SCMP_ACT_ALLOW"));
    let names = rules.iter().flat_map(|rule| rule["names"].as_array().unwrap());
    names.map(|name| name.as_str().unwrap().to_owned()).collect()
}

/// Nothing but `names`; the rest fails as the shipped profile has it.
fn only<'a>(names: impl Iterator<Item = &'a String>) -> serde_json::Value {
    let rules: Vec<_> = names.map(|name| serde_json::json!({ "syscall": name })).collect();
    serde_json::json!({ "duet": {
        "mismatch_action": { "errno": rustix::io::Errno::PERM.raw_os_error() },
        "match_action": "allow",
        "filter": rules,
    }})
}

#[test]
fn the_shipped_profile_lets_the_gateway_do_its_work_and_little_else() {
    let names = allowed();
    for refused in ["bpf", "mount", "perf_event_open", "ptrace", "setns", "unshare", "userfaultfd"]
    {
        assert!(!names.iter().any(|name| name == refused), "{refused}");
    }
    // The gateway works without them, and worse: on the wrong cores, and with a thread that takes turns from shards.
    let unit = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/duet.service");
    let unit = std::fs::read_to_string(unit).unwrap();
    let mut filters = unit.lines().filter_map(|line| line.strip_prefix("SystemCallFilter="));
    let last: Vec<_> = filters.next_back().unwrap().split(' ').collect();
    for wanted in ["sched_setaffinity", "setpriority"] {
        assert!(last.contains(&wanted), "{wanted} is refused under systemd");
        assert!(names.iter().any(|name| name == wanted), "{wanted}");
    }
    if std::env::consts::ARCH != "x86_64" {
        eprintln!("SKIPPED: the profile's names are tried on x86_64, where all of them exist");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let program = filtered(dir.path(), &only(names.iter()));
    serve(&program, dir.path()).assert_driver("io_uring", "io_uring");

    let dir = tempfile::tempdir().unwrap();
    let rest = names.iter().filter(|name| !IO_URING.contains(&name.as_str()));
    serve(&filtered(dir.path(), &only(rest)), dir.path()).assert_driver("epoll", "epoll");
}

#[test]
fn without_locked_memory_everything_works_without_io_uring() {
    let dir = tempfile::tempdir().unwrap();
    // Whoever has CAP_IPC_LOCK has no such limit.
    let lines = format!(
        "unset DUET_IO; test $(id -u) != 0 || exec setpriv --bounding-set -ipc_lock prlimit --memlock=0:0 {DUET} \"$@\"\n\
         exec prlimit --memlock=0:0 {DUET} \"$@\""
    );
    if have(&["setpriv", "prlimit"]) {
        serve(&script(dir.path(), &lines), dir.path()).assert_driver("epoll", "epoll");
    }
}
