//! Descriptors that a service manager passes to the process when it starts it (`LISTEN_FDS`).
//!
//! # The fence
//!
//! A descriptor that is passed is a number, and a number says nothing of who owns it. They are taken here once, as owned
//! descriptors, under these conditions: the manager has named this very process (`LISTEN_PID`, which `sd_notify` compares),
//! each of the numbers is open, and nothing else in the process has taken them, since only the first call does and it is made
//! before anything else opens a descriptor.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// Takes what was passed, with the names that the manager gave. To be called before the process opens anything itself;
/// later calls get nothing.
///
/// # Errors
/// When the environment contradicts itself, or names what is not open.
pub fn take_inherited() -> io::Result<Vec<(String, OwnedFd)>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(Vec::new());
    }
    let passed = sd_notify::listen_fds_with_names()?;
    // SAFETY: each is open, as `sd_notify` has found by changing its flags; the manager passes it to this process, and by the
    // conditions above nobody else owns it.
    Ok(passed.map(|(fd, name)| (name, unsafe { OwnedFd::from_raw_fd(fd) })).collect())
}
