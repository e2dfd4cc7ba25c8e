//! No memory at start: a message that says what to do, and an end.

use std::process::Command;

use super::world::{DUET, have};

/// Starts a gateway with these settings behind `prefix`; what it says when it ends with an error.
fn refusal(prefix: &[&str], settings: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let made = Command::new(DUET).arg("--state").arg(&state).arg("init").output().unwrap();
    assert!(made.status.success());
    std::fs::write(state.join("duet.toml"), settings).unwrap();
    let output = Command::new("timeout")
        .arg("20")
        .args(prefix)
        .args([DUET, "--state"])
        .arg(&state)
        .args(["run", "--shards", "4", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"])
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.starts_with("duet: ") && said.lines().count() == 1, "{said}");
    said
}

#[test]
fn locked_memory_that_io_uring_alone_needs_is_named() {
    if have(&["setpriv", "prlimit"]) {
        // Whoever has CAP_IPC_LOCK has no such limit; who is not root has not.
        let root = rustix::process::geteuid().is_root();
        let drop: &[&str] = if root { &["setpriv", "--bounding-set", "-ipc_lock"] } else { &[] };
        let said = refusal(&[drop, &["prlimit", "--memlock=0:0"]].concat(), "io = \"io_uring\"");
        assert!(said.contains("RLIMIT_MEMLOCK allows (0 bytes"), "{said}");
    }
}

#[test]
fn buffers_that_cannot_be_mapped_are_named() {
    if have(&["prlimit"]) {
        for io in ["auto", "io_uring", "epoll"] {
            // 128 MiB for each of four shards.
            let settings = format!(
                "io = \"{io}\"\n[queues]\ndatagram_buffers = 32768\nstream_buffers = 32768"
            );
            let said = refusal(&["prlimit", "--as=400000000"], &settings);
            assert!(said.contains("buffers") && said.contains("ulimit -v"), "{io}: {said}");
        }
    }
}
