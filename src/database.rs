//! Files of the storage engine (redb), opened so that nothing is built on what the disk does not have.
//!
//! Where a sync fails, the kernel takes the pages for written all the same: it shows them, never writes them again by
//! itself, and forgets them when it wants their memory. A commit that refers to them leaves a file behind in which
//! nothing is whole. To write the same bytes in the same place does not help: ext4, where the new blocks of a file could
//! not be written, then reports success and reads zeros afterwards. A new file holds what was read. So a copy is put in
//! the file's place before it is opened again after a sync has failed, and where it was not closed, for then nobody
//! knows.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Bound;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use redb::backends::FileBackend;
use redb::{BackendError, Database, DatabaseError, RepairSession, StorageBackend, StorageError};

use crate::identity;

/// The byte of the engine's header, and its bit, that it sets on disk as long as a file is open (redb's
/// `docs/design.md`: "god byte", recovery required).
const IS_OPEN: (u64, u8) = (9, 2);

/// Opens a file and verifies all of it. Returns with the database which file it is. `in_doubt` is what an earlier database
/// of this process knew of it, and what the new one will know: whether the disk may lack something.
///
/// # Errors
/// Those of the engine; it may also panic over a damaged file.
pub(crate) fn open(
    path: &Path,
    cache_bytes: usize,
    in_doubt: &Arc<AtomicBool>,
) -> Result<(Database, (u64, u64)), DatabaseError> {
    let mut may_renew = true;
    loop {
        let before = identity::file_at(path)?;
        let Some(database) = open_or_renew(path, cache_bytes, may_renew, in_doubt)? else {
            may_renew = false;
            continue;
        };
        // Another process may have renewed it in between.
        if identity::is_at(path, before)? {
            return Ok((database, before));
        }
    }
}

/// Opens the file, or renews it where that has to be done first: then there is no database yet.
fn open_or_renew(
    path: &Path,
    cache_bytes: usize,
    may_renew: bool,
    in_doubt: &Arc<AtomicBool>,
) -> Result<Option<Database>, DatabaseError> {
    let renewed = Arc::new(Mutex::new(None));
    let renew_first = {
        let (path, in_doubt, renewed) =
            (path.to_owned(), Arc::clone(in_doubt), Arc::clone(&renewed));
        // The engine has locked the file and written nothing to it yet.
        move |session: &mut RepairSession| {
            if may_renew && let Some(done) = renew_if_unclosed(&path, &in_doubt) {
                *renewed.lock().unwrap_or_else(PoisonError::into_inner) = Some(done);
                session.abort();
            }
        }
    };
    let opened = Database::builder()
        .set_cache_size(cache_bytes)
        // Otherwise the engine trusts a file that was closed cleanly, and panics later.
        .set_check_integrity_on_open(true)
        .set_repair_callback(renew_first)
        .create_with_backend(Backend::open(path, in_doubt)?);
    match renewed.lock().unwrap_or_else(PoisonError::into_inner).take() {
        None => opened.map(Some),
        Some(Ok(())) => Ok(None),
        Some(Err(error)) => Err(StorageError::Io(error).into()),
    }
}

/// Renews the file if it was not closed; `None` if there is nothing to do. Where there is no room for a copy, it stays as
/// it is unless a sync is known to have failed.
fn renew_if_unclosed(path: &Path, in_doubt: &AtomicBool) -> Option<io::Result<()>> {
    match is_unclosed(path) {
        Ok(false) => return None,
        Ok(true) => {}
        Err(error) => return Some(Err(error)),
    }
    let renewed = renew(path);
    match &renewed {
        Ok(()) => in_doubt.store(false, Ordering::Relaxed),
        Err(error) if is_no_room(error) && !in_doubt.load(Ordering::Relaxed) => return None,
        Err(_) => {}
    }
    Some(renewed)
}

/// Whether the disk has no room, or none for this user.
pub(crate) fn is_no_room(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// The engine's own backend, which says when the disk has failed.
#[derive(Debug)]
struct Backend {
    inner: FileBackend,
    in_doubt: Arc<AtomicBool>,
}

impl Backend {
    /// Opens an existing file. `in_doubt` is set as soon as the disk may lack something of it.
    fn open(path: &Path, in_doubt: &Arc<AtomicBool>) -> Result<Self, DatabaseError> {
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
pub(crate) fn is_unclosed(path: &Path) -> io::Result<bool> {
    let mut byte = [0];
    match File::open(path)?.read_exact_at(&mut byte, IS_OPEN.0) {
        // Too short for a header, which the engine says.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        read => read.map(|()| byte[0] & IS_OPEN.1 != 0),
    }
}

/// Puts a copy of the file into its place, which is durable when this returns. The caller has locked the file.
fn renew(path: &Path) -> io::Result<()> {
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
pub(crate) fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let mut from = File::open(from)?;
    identity::write_new(to, &[], 0o600)?;
    let mut file = OpenOptions::new().write(true).open(to)?;
    io::copy(&mut from, &mut file)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CACHE: usize = 1 << 20;

    /// Opens it; which file it is then.
    fn opened(path: &Path) -> (Database, (u64, u64)) {
        open(path, CACHE, &Arc::default()).unwrap()
    }

    #[test]
    fn a_file_that_was_not_closed_is_told_and_copied_before_it_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let (path, left) = (dir.path().join("it.redb"), dir.path().join("left.redb"));
        let made = Database::create(&path).unwrap();
        made.begin_write().unwrap().commit().unwrap();
        drop(made);
        assert!(!is_unclosed(&path).unwrap());
        let before = identity::file_at(&path).unwrap();
        let (open, place) = opened(&path);
        assert!(is_unclosed(&path).unwrap() && place == before, "one that was closed stays");
        // As a process that is killed leaves it.
        copy(&path, &left).unwrap();
        drop(open);
        let before = identity::file_at(&left).unwrap();
        let (open, place) = opened(&left);
        assert!(place != before && identity::is_at(&left, place).unwrap());
        drop(open);
        assert!(!is_unclosed(&left).unwrap());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "no draft is left");
    }

    #[test]
    fn an_empty_file_is_no_database() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("it.redb");
        identity::write_new(&path, &[], 0o600).unwrap();
        assert!(open(&path, CACHE, &Arc::default()).is_err());
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 0);
    }
}
