//! What a service manager keeps for the gateway's next process, by systemd's descriptor store (`FDSTORE=1`): its sockets
//! from the start on, its sessions from its end to the next start.
//!
//! It must not know what the descriptors are. Without a manager that keeps any, all of this does nothing.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use sd_notify::NotifyState;

/// How many descriptors the manager keeps. systemd says it from version 254 on; the shipped unit says it for older ones.
const VARIABLE: &str = "FDSTORE";

/// Whether a manager listens that keeps so many descriptors.
#[must_use]
pub fn keeps(count: usize) -> bool {
    let most = std::env::var(VARIABLE).ok().and_then(|most| most.parse::<usize>().ok());
    std::env::var_os("NOTIFY_SOCKET").is_some() && most.is_some_and(|most| most >= count)
}

/// What the manager has kept of the process before.
#[derive(Debug, Default)]
pub struct Inherited(Vec<(String, OwnedFd)>);

impl Inherited {
    /// Takes it. To be called before the process opens anything itself.
    ///
    /// # Errors
    /// When the environment contradicts itself.
    pub fn take() -> io::Result<Self> {
        crate::driver::take_inherited().map(Self)
    }

    /// Takes those out whose names are such.
    pub fn named(&mut self, such: impl Fn(&str) -> bool) -> Vec<(String, OwnedFd)> {
        self.0.extract_if(.., |(name, _)| such(name)).collect()
    }
}

/// Has the manager keep a descriptor under this name. One that it has kept before is not kept twice.
///
/// # Errors
/// When the manager cannot be told.
pub fn store(name: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
    // The manager is not to look whether anything has happened to it.
    let unwatched = NotifyState::Custom("FDPOLL=0");
    let states = [NotifyState::FdStore, NotifyState::FdName(name), unwatched];
    sd_notify::notify_with_fds(&states, &[descriptor])
}

/// Has the manager close what it keeps under this name.
///
/// # Errors
/// When the manager cannot be told.
pub fn forget(name: &str) -> io::Result<()> {
    sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)])
}
