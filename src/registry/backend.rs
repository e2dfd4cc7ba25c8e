//! The file below the engine. It notes whether the disk may lack what the kernel shows of the file.
//!
//! Where a sync fails, the kernel takes the pages for written all the same: it shows them, never writes them again by
//! itself, and forgets them when it wants their memory. To write the same bytes in the same place does not help: ext4,
//! where the new blocks of a file could not be written, then reports success and reads zeros afterwards. A new file
//! holds what was read; so a file that [is in doubt](Backend) is copied before anything is built on it.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Bound;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use redb::backends::FileBackend;
use redb::{BackendError, DatabaseError, StorageBackend};

use super::error::is_no_room;
use crate::identity;

/// The byte of the engine's header, and its bit, that it sets on disk as long as a file is open (redb's
/// `docs/design.md`: "god byte", recovery required).
const IS_OPEN: (u64, u8) = (9, 2);

/// The engine's own backend, which says when the disk has failed.
#[derive(Debug)]
pub(super) struct Backend {
    inner: FileBackend,
    in_doubt: Arc<AtomicBool>,
}

impl Backend {
    /// Opens an existing file. `in_doubt` is set as soon as the disk may lack something of it.
    pub(super) fn open(path: &Path, in_doubt: &Arc<AtomicBool>) -> Result<Self, DatabaseError> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        // The engine would make a database of it.
        if file.metadata()?.len() == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        Ok(Self { inner: FileBackend::new(file)?, in_doubt: Arc::clone(in_doubt) })
    }

    /// A write that finds no room has lost nothing: it did not take place. So much is not known of any other.
    fn noted(&self, done: io::Result<()>) -> io::Result<()> {
        done.inspect_err(|error| {
            if !is_no_room(error) {
                self.in_doubt.store(true, Ordering::Relaxed);
            }
        })
    }
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.inner.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.noted(self.inner.set_len(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.inner.sync_data().inspect_err(|_| self.in_doubt.store(true, Ordering::Relaxed))
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.noted(self.inner.write(offset, data))
    }

    fn close(&self) -> io::Result<()> {
        self.inner.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.try_lock_range(start, end)
    }

    fn try_lock_shared_range(
        &self,
        start: Bound<u64>,
        end: Bound<u64>,
    ) -> Result<bool, BackendError> {
        self.inner.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.query_lock_range(start, end)
    }
}

/// Whether the engine has not closed this file.
pub(super) fn is_unclosed(path: &Path) -> io::Result<bool> {
    let mut byte = [0];
    match File::open(path)?.read_exact_at(&mut byte, IS_OPEN.0) {
        // Too short for a header, which the engine says.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        read => read.map(|()| byte[0] & IS_OPEN.1 != 0),
    }
}

/// Puts a copy of the file into its place, which is durable when this returns. The caller has locked the file.
pub(super) fn renew(path: &Path) -> io::Result<()> {
    let draft = path.with_extension("renewed");
    match std::fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let renewed = copy(path, &draft)
        .and_then(|()| std::fs::rename(&draft, path))
        .and_then(|()| identity::sync_dir_of(path));
    renewed.inspect_err(|_| {
        let _ = std::fs::remove_file(&draft);
    })
}

/// Copies a file to a new one, durably.
pub(super) fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let mut from = File::open(from)?;
    identity::write_new(to, &[], 0o600)?;
    let mut file = OpenOptions::new().write(true).open(to)?;
    io::copy(&mut from, &mut file)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::super::store::Store;
    use super::*;

    #[test]
    fn a_file_that_was_not_closed_is_told_and_copied_before_it_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("registry.redb");
        drop(Store::create(&path).unwrap());
        assert!(!is_unclosed(&path).unwrap());
        let before = identity::file_at(&path).unwrap();
        let open = Store::open(&path).unwrap();
        assert!(is_unclosed(&path).unwrap());
        assert_eq!(identity::file_at(&path).unwrap(), before, "a file that was closed stays");
        // As one that is killed leaves it.
        let left = dir.path().join("left.redb");
        copy(&path, &left).unwrap();
        drop(open);
        let before = identity::file_at(&left).unwrap();
        drop(Store::open(&left).unwrap());
        assert!(!is_unclosed(&left).unwrap());
        assert_ne!(identity::file_at(&left).unwrap(), before);
        let names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().flatten().collect();
        assert!(!names.iter().any(|one| one.path().extension() == Some("renewed".as_ref())));
    }

    #[test]
    fn an_empty_file_is_no_registry() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("registry.redb");
        identity::write_new(&path, &[], 0o600).unwrap();
        assert!(Store::open(&path).is_err());
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 0);
    }
}
