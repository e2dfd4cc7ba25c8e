//! Files of the storage engine (redb), opened so that nothing is built on what the disk does not have.
//!
//! Where a sync fails, the kernel takes the pages for written all the same: it shows them, never writes them again by
//! itself, and forgets them when it wants their memory. A commit that refers to them leaves a file behind in which
//! nothing is whole. To write the same bytes in the same place does not help: ext4, where the new blocks of a file could
//! not be written, then reports success and reads zeros afterwards. A new file holds what was read. So a copy is put in
//! the file's place before it is opened again after a sync has failed. The same is done where it was not closed, for then
//! nobody knows, but where there is no room for a copy.
//!
//! A file may have room kept back, for changes that must be possible on a full disk: blocks behind its end, which are its
//! own already. A file beside it that is removed when room is needed would not do. Whatever fills the disk is quicker to take
//! what becomes free, and nobody but root gets it where less is free than is kept for root.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::ops::Bound;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::backends::{FileBackend, InMemoryBackend};
use redb::{BackendError, Database, DatabaseError, RepairSession, StorageBackend, StorageError};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use crate::identity;

/// The byte of the engine's header, and its bit, that it sets on disk as long as a file is open (redb's
/// `docs/design.md`: "god byte", recovery required).
const IS_OPEN: (u64, u8) = (9, 2);

/// So much free space is there for whoever wants some again.
const PLENTY: u64 = 16 << 20;

/// What is copied at once.
const BLOCK: usize = 1 << 20;

/// What this process knows of a file, while it is open and between one opening and the next.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// Device and inode.
    file: Mutex<Option<(u64, u64)>>,
    /// Whether the disk may lack something of it.
    in_doubt: AtomicBool,
    /// How many bytes behind its end are kept back at least, if any are.
    room: u64,
    /// How many are at work who may use them.
    needs: AtomicU32,
}

impl Known {
    /// Nothing yet of a file that is to have room kept back.
    pub(crate) fn with_room(room: u64) -> Self {
        Self { room, ..Self::default() }
    }

    /// Does something for which the file may use its room.
    pub(crate) fn in_need<T>(&self, work: impl FnOnce() -> T) -> T {
        self.needs.fetch_add(1, Ordering::Relaxed);
        let done = work();
        self.needs.fetch_sub(1, Ordering::Relaxed);
        done
    }

    /// Has the file keep its room. Without it nothing is to be begun but what is in need of it.
    ///
    /// # Errors
    /// The disk has no room, and nobody is in need.
    pub(crate) fn keep_room(&self, path: &Path) -> io::Result<()> {
        let kept = OpenOptions::new().write(true).open(path).and_then(|file| {
            let found = file.metadata()?;
            // Where it has its blocks already, some file systems without a free one refuse them all the same.
            let has_room = found.blocks() * 512 >= self.with_its_room(&file, found.len());
            if has_room { Ok(()) } else { self.allocate(&file, found.len()) }
        });
        match kept {
            Err(error) if is_no_room(&error) && self.needs.load(Ordering::Relaxed) == 0 => {
                Err(error)
            }
            // What else is wrong is found by whoever writes.
            _ => Ok(()),
        }
    }

    /// Gets blocks for a file of `len` bytes and its room, and leaves its length as it is.
    fn allocate(&self, file: &File, len: u64) -> io::Result<()> {
        if self.room == 0 {
            return Ok(());
        }
        match fallocate(file, FallocateFlags::KEEP_SIZE, 0, self.with_its_room(file, len)) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Ok(()),
            allocated => allocated.map_err(Into::into),
        }
    }

    /// What a file of `len` bytes takes with its room: as much again, for a change of all of it, while that is there to be had.
    fn with_its_room(&self, file: &File, len: u64) -> u64 {
        match self.room {
            0 => len,
            room if len > room && free(file) >= len + PLENTY => 2 * len,
            room => len + room,
        }
    }

    /// Whether blocks that the file gives back would hardly be had again.
    fn is_room_scarce(&self, file: &File) -> bool {
        self.room > 0 && free(file) < PLENTY
    }

    /// Whether the file that was opened still has its name.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn is_in_place(&self, path: &Path) -> io::Result<bool> {
        // Held meanwhile, so that nobody sees a renewed file and the number of the one before.
        let known = self.file();
        known.map_or(Ok(true), |file| identity::is_at(path, file))
    }

    fn file(&self) -> MutexGuard<'_, Option<(u64, u64)>> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How much room there is for others on the file's disk.
fn free(file: &File) -> u64 {
    rustix::fs::fstatvfs(file).map_or(0, |found| {
        let blocks =
            if rustix::process::geteuid().is_root() { found.f_bfree } else { found.f_bavail };
        blocks.saturating_mul(found.f_frsize)
    })
}

/// Opens a file and verifies all of it.
///
/// # Errors
/// Those of the engine; it may also panic over a damaged file.
pub(crate) fn open(
    path: &Path,
    cache_bytes: usize,
    known: &Arc<Known>,
) -> Result<Database, DatabaseError> {
    let mut may_renew = true;
    loop {
        let before = identity::file_at(path)?;
        let renew = may_renew.then_some(before);
        let Some(database) = open_or_renew(path, cache_bytes, renew, known)? else {
            may_renew = false;
            continue;
        };
        // Another process may have renewed it in between.
        if identity::is_at(path, before)? {
            *known.file() = Some(before);
            return Ok(database);
        }
    }
}

/// Opens the file, or renews it where that has to be done first, and it is the one to `renew`: then there is no database yet.
fn open_or_renew(
    path: &Path,
    cache_bytes: usize,
    renew: Option<(u64, u64)>,
    known: &Arc<Known>,
) -> Result<Option<Database>, DatabaseError> {
    let renewed = Arc::new(Mutex::new(None));
    let renew_first = {
        let (path, known, renewed) = (path.to_owned(), Arc::clone(known), Arc::clone(&renewed));
        let renew = Mutex::new(renew);
        // At the first call the engine has locked the file and written nothing to it yet.
        move |session: &mut RepairSession| {
            let first = renew.lock().unwrap_or_else(PoisonError::into_inner).take();
            // Another process may have renewed it in between, and then it is not this file that is locked.
            if let Some(before) = first
                && identity::is_at(&path, before).unwrap_or(false)
                && let Some(done) = renew_if_unclosed(&path, &known)
            {
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
        .create_with_backend(Backend::open(path, known)?);
    match renewed.lock().unwrap_or_else(PoisonError::into_inner).take() {
        None => opened.map(Some),
        Some(Ok(())) => Ok(None),
        Some(Err(error)) => Err(StorageError::Io(error).into()),
    }
}

/// What a file says that cannot be written at the moment: a copy in memory, whose changes go nowhere.
///
/// # Errors
/// As [`open`]; it may panic, too.
pub(crate) fn open_copy(path: &Path, cache_bytes: usize) -> Result<Database, DatabaseError> {
    let bytes = std::fs::read(path)?;
    let copy = InMemoryBackend::new();
    copy.set_len(bytes.len() as u64)?;
    copy.write(0, &bytes)?;
    drop(bytes);
    Database::builder()
        .set_cache_size(cache_bytes)
        .set_check_integrity_on_open(true)
        .create_with_backend(copy)
}

/// Renews the file if it was not closed; `None` if there is nothing to do. Where there is no room for a copy, it stays as
/// it is unless a sync is known to have failed.
fn renew_if_unclosed(path: &Path, known: &Known) -> Option<io::Result<()>> {
    match is_unclosed(path) {
        Ok(false) => return None,
        Ok(true) => {}
        Err(error) => return Some(Err(error)),
    }
    match renew(path, known) {
        Err(error) if is_no_room(&error) && !known.in_doubt.load(Ordering::Relaxed) => None,
        renewed => Some(renewed),
    }
}

/// Whether the disk has no room, or none for this user.
pub(crate) fn is_no_room(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// The engine's own backend, which says when the disk has failed.
#[derive(Debug)]
struct Backend {
    inner: FileBackend,
    file: File,
    known: Arc<Known>,
    /// How long the engine takes the file to be, where that is less than it is; or 0. Who opens it next takes all of it.
    shorter: AtomicU64,
}

impl Backend {
    /// Opens an existing file.
    fn open(path: &Path, known: &Arc<Known>) -> Result<Self, DatabaseError> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        // The engine would make a database of it.
        if file.metadata()?.len() == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let _ = known.allocate(&file, file.metadata()?.len());
        Ok(Self {
            file: file.try_clone()?,
            inner: FileBackend::new(file)?,
            known: Arc::clone(known),
            shorter: AtomicU64::new(0),
        })
    }

    /// A write that finds no room has lost nothing: it did not take place. So much is not known of any other.
    fn noted(&self, done: io::Result<()>) -> io::Result<()> {
        done.inspect_err(|error| {
            if !is_no_room(error) {
                self.known.in_doubt.store(true, Ordering::Relaxed);
            }
        })
    }
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        match self.shorter.load(Ordering::Relaxed) {
            0 => self.inner.len(),
            len => Ok(len),
        }
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.inner.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        if len < self.inner.len()? && self.known.is_room_scarce(&self.file) {
            self.shorter.store(len, Ordering::Relaxed);
            return Ok(());
        }
        self.noted(self.inner.set_len(len))?;
        self.shorter.store(0, Ordering::Relaxed);
        // With the end of a file its room has gone. Where there is none the engine finds that out when it writes.
        let _ = self.known.allocate(&self.file, len);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.inner.sync_data().inspect_err(|_| self.known.in_doubt.store(true, Ordering::Relaxed))
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
fn renew(path: &Path, known: &Known) -> io::Result<()> {
    let draft = path.with_extension("renewed");
    match std::fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let place = || -> io::Result<()> {
        copy(path, &draft)?;
        let file = OpenOptions::new().write(true).open(&draft)?;
        let room = known.allocate(&file, file.metadata()?.len());
        // A file that the disk has whole, with its room, is better than a copy without.
        if !known.in_doubt.load(Ordering::Relaxed) {
            room?;
        }
        let copied = identity::file_at(&draft)?;
        let mut file = known.file();
        std::fs::rename(&draft, path)?;
        *file = Some(copied);
        Ok(())
    };
    place().inspect_err(|_| {
        let _ = std::fs::remove_file(&draft);
    })?;
    identity::sync_dir_of(path)?;
    known.in_doubt.store(false, Ordering::Relaxed);
    Ok(())
}

/// Copies what can be read of a file to a new one, durably. Byte by byte: some file systems would have the copy share the
/// blocks of the disk, which may be others than the kernel shows. Where there is no room for it, none is taken.
pub(crate) fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let from = File::open(from)?;
    identity::write_new(to, &[], 0o600)?;
    let mut file = OpenOptions::new().write(true).open(to)?;
    match fallocate(&file, FallocateFlags::empty(), 0, from.metadata()?.len()) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {}
        allocated => allocated?,
    }
    let mut from = BufReader::with_capacity(BLOCK, from);
    loop {
        let block = from.fill_buf()?;
        if block.is_empty() {
            return file.sync_all();
        }
        file.write_all(block)?;
        let length = block.len();
        from.consume(length);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CACHE: usize = 1 << 20;

    /// Opens it; which file it is then.
    fn opened(path: &Path) -> (Database, (u64, u64)) {
        let known = Arc::default();
        let database = open(path, CACHE, &known).unwrap();
        let file = known.file().unwrap();
        assert!(known.is_in_place(path).unwrap());
        (database, file)
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

    /// Who looks afterwards is not told that somebody has replaced it.
    #[test]
    fn a_file_that_was_renewed_and_does_not_open_is_in_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("it.redb");
        let made = Database::create(&path).unwrap();
        made.begin_write().unwrap().commit().unwrap();
        drop(made);
        let known = Arc::default();
        let open_file = open(&path, CACHE, &known).unwrap();
        let before = known.file().unwrap();
        // As after a kill, and with damage that the engine finds after it has asked whether to go on.
        let mut bytes = std::fs::read(&path).unwrap();
        drop(open_file);
        bytes[4096..].fill(0x55);
        std::fs::write(&path, &bytes).unwrap();
        assert!(open(&path, CACHE, &known).is_err());
        assert_ne!(known.file().unwrap(), before, "it was renewed");
        assert!(known.is_in_place(&path).unwrap());
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
