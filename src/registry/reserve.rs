//! Room kept back on the registry's disk, so that a device can be revoked when there is no other left.
//!
//! It is a file of its own with nothing in it. Whoever finds no room for a revocation removes it and tries again.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};

/// Enough to open a file that was not closed and for many revocations, which use pages again. Less than a segment of the
/// spool, so that the spool cannot take it.
const ROOM: u64 = 256 << 10;

/// The least that is worth keeping.
const LEAST: u64 = 64 << 10;

/// The file that keeps the room.
pub(super) struct Reserve(PathBuf);

impl Reserve {
    pub(super) fn beside(registry: &Path) -> Self {
        Self(registry.with_extension("reserve"))
    }

    /// Keeps room back, as much as there is. Where there is none, or none can be kept, that is no failure:
    /// nothing is lost by it while the disk has room.
    pub(super) fn keep(&self) {
        if fs::metadata(&self.0).is_ok_and(|found| found.blocks() * 512 >= LEAST) {
            return;
        }
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let Ok(file) = options.open(&self.0) else { return };
        let mut room = ROOM;
        while room >= LEAST {
            if fallocate(&file, FallocateFlags::empty(), 0, room).is_ok() {
                return;
            }
            room /= 2;
        }
        self.give();
    }

    /// Gives the room up; whether there was any.
    pub(super) fn give(&self) -> bool {
        let had = fs::metadata(&self.0).is_ok_and(|found| found.blocks() > 0);
        fs::remove_file(&self.0).is_ok() && had
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_kept_given_up_and_kept_again() {
        let dir = tempfile::tempdir().unwrap();
        let reserve = Reserve::beside(&dir.path().join("registry.redb"));
        let file = dir.path().join("registry.reserve");
        assert!(!reserve.give());
        reserve.keep();
        assert!(fs::metadata(&file).unwrap().blocks() * 512 >= ROOM);
        assert!(reserve.give() && !file.exists());
        fs::write(&file, "").unwrap();
        reserve.keep();
        assert!(reserve.give());
    }
}
