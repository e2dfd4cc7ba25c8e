//! Registration keys, in a file beside the registry: what the engine of the tables writes it may copy anywhere in its
//! file, so a key there could not be removed with certainty. Here each key has a cell of its own, which is overwritten
//! where it lies.
//!
//! ```text
//! 0    magic "duetkeys"    8    the registry's id    24   zeros
//! 32   cells of 32 bytes: a key, or zeros
//! ```
//! A device's row says which cell, and has the key's digest. A key is on disk before the row that refers to it, and is
//! overwritten after no row does: after a crash a cell may hold a key without a row, which the next start overwrites.
//!
//! After a failed sync nobody knows what the disk has of the file, and to write it again in the same place does not help:
//! like the [registry](crate::database) it is copied before anything is built on it.
//!
//! A file system that writes elsewhere what is overwritten (a copy-on-write one, or flash below it) may keep the old
//! blocks: only the file can be promised to be clean.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use duet_protocol::identity::RegistrationKey;
use zeroize::Zeroizing;

use super::error::{Damage, RegistryError};
use super::record::key_digest;
use crate::database::is_no_room;
use crate::identity;

/// The file's name, beside the registry's.
pub const FILE: &str = "registry.keys";

const MAGIC: [u8; 8] = *b"duetkeys";
const CELL: usize = 32;
/// The header takes as much as a cell, so that no cell lies in two sectors.
const HEADER: usize = CELL;
/// How many cells are read at once.
const CHUNK: u32 = 1 << 15;
/// What keys are overwritten with, at most so many bytes at once.
static ZEROS: [u8; 1 << 15] = [0; 1 << 15];

/// The number of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KeyCell(pub(super) u32);

impl KeyCell {
    fn offset(self) -> u64 {
        HEADER as u64 + u64::from(self.0) * CELL as u64
    }
}

/// The open file.
pub(super) struct KeyFile {
    path: PathBuf,
    open: RwLock<Open>,
    cells: Mutex<Cells>,
    /// Whether the disk may lack something of the file.
    in_doubt: AtomicBool,
}

struct Open {
    file: File,
    place: (u64, u64),
}

impl Open {
    fn of(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        Ok(Self { file, place: identity::file_at(path)? })
    }
}

/// Which cells hold no key that a row refers to.
#[derive(Default)]
struct Cells {
    free: Vec<KeyCell>,
    /// One past the last.
    end: u32,
    /// To be overwritten, and not yet.
    stale: Vec<KeyCell>,
}

impl KeyFile {
    /// Makes an empty file for the registry of this path and id, in the place of what an earlier attempt has left.
    pub(super) fn create(registry: &Path, id: [u8; 16]) -> Result<(), RegistryError> {
        let path = beside(registry);
        let failed = |error| RegistryError::Io { path: path.clone(), error };
        let draft = draft(&path);
        remove(&draft)
            .and_then(|()| identity::write_new(&draft, &header(id), 0o600))
            .and_then(|()| std::fs::rename(&draft, &path))
            .and_then(|()| identity::sync_dir_of(&path))
            .map_err(failed)
    }

    /// Opens the file of the registry of this path and id, whose rows refer to these cells, and overwrites all others.
    /// One that is missing is made where no row needs it. `unclosed` says that whoever had it open did not close it.
    pub(super) fn open(
        registry: &Path,
        id: [u8; 16],
        used: &[KeyCell],
        unclosed: bool,
    ) -> Result<Self, RegistryError> {
        let path = beside(registry);
        let failed = |error| RegistryError::Io { path: path.clone(), error };
        if !Self::is_there(&path, used)? {
            Self::create(registry, id)?;
        }
        let open = Open::of(&path).map_err(failed)?;
        verify(&path, &open.file, id)?;
        // One that was killed while it made a copy has left that, with keys in it.
        remove(&draft(&path)).map_err(failed)?;
        let (open, in_doubt) = (RwLock::new(open), AtomicBool::new(false));
        let keys = Self { path, open, cells: Mutex::default(), in_doubt };
        keys.settle(used)?;
        if unclosed {
            match keys.renew(&mut keys.lock()) {
                // Nothing says that a sync has failed.
                Err(error) if is_no_room(&error) => {}
                renewed => renewed.map_err(|error| keys.failed(error))?,
            }
        }
        Ok(keys)
    }

    /// Opens it to look at it, and changes nothing; there is none where none is needed.
    pub(super) fn look(
        registry: &Path,
        id: [u8; 16],
        used: &[KeyCell],
    ) -> Result<Option<Self>, RegistryError> {
        let path = beside(registry);
        if !Self::is_there(&path, used)? {
            return Ok(None);
        }
        let open =
            Open::of(&path).map_err(|error| RegistryError::Io { path: path.clone(), error })?;
        verify(&path, &open.file, id)?;
        let (open, in_doubt) = (RwLock::new(open), AtomicBool::new(false));
        let keys = Self { path, open, cells: Mutex::default(), in_doubt };
        keys.is_used(used)?;
        Ok(Some(keys))
    }

    /// Whether it is there; it may be missing where no row needs it.
    fn is_there(path: &Path, used: &[KeyCell]) -> Result<bool, RegistryError> {
        let path = path.to_owned();
        match identity::mode_for_others(&path) {
            Ok(None) => Ok(true),
            Ok(Some(mode)) => Err(RegistryError::OpenToOthers { path, mode }),
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(RegistryError::Io { path, error })
            }
            Err(_) if used.is_empty() => Ok(false),
            Err(_) => Err(RegistryError::NoKeys(path)),
        }
    }

    /// Takes it that rows refer to these cells alone, and overwrites all others.
    pub(super) fn settle(&self, used: &[KeyCell]) -> Result<(), RegistryError> {
        let is_used = self.is_used(used)?;
        let mut cells = self.lock();
        let (mut free, mut stale) = (Vec::new(), Vec::new());
        self.each_chunk(|first, chunk| {
            for (number, cell) in (first..).zip(chunk.chunks(CELL)) {
                if !is_used[number as usize] {
                    let is_clean = cell.iter().all(|byte| *byte == 0);
                    if is_clean { &mut free } else { &mut stale }.push(KeyCell(number));
                }
            }
            Ok(())
        })
        .map_err(|error| self.failed(error))?;
        let end = u32::try_from(is_used.len()).unwrap_or(u32::MAX);
        *cells = Cells { free, end, stale };
        // What cannot be overwritten now is with the next change.
        let _ = self.overwrite(&mut cells);
        // Those at the beginning are taken first.
        cells.free.sort_unstable_by_key(|cell| std::cmp::Reverse(cell.0));
        Ok(())
    }

    /// For each cell of the file whether it is one of these, all of which it must have.
    fn is_used(&self, used: &[KeyCell]) -> Result<Vec<bool>, RegistryError> {
        let length = self.current().file.metadata().map_err(|error| self.failed(error))?.len();
        let count = length.saturating_sub(HEADER as u64).div_ceil(CELL as u64);
        let mut is_used = vec![false; usize::try_from(count).unwrap_or(usize::MAX)];
        for cell in used {
            let Some(is_used) = is_used.get_mut(cell.0 as usize) else {
                let (path, detail) = (self.path.clone(), Damage::KeyFile);
                return Err(RegistryError::Damaged { path, detail });
            };
            *is_used = true;
        }
        Ok(is_used)
    }

    /// Hands on all cells, some at a time, with the number of the first.
    fn each_chunk(&self, mut each: impl FnMut(u32, &mut [u8]) -> io::Result<()>) -> io::Result<()> {
        let open = self.current();
        let mut chunk = Zeroizing::new(vec![0; CHUNK as usize * CELL]);
        let mut first = KeyCell(0);
        loop {
            let mut filled = 0;
            while filled < chunk.len() {
                match open.file.read_at(&mut chunk[filled..], first.offset() + filled as u64) {
                    Ok(0) => break,
                    Ok(read) => filled += read,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            if filled > 0 {
                each(first.0, &mut chunk[..filled])?;
            }
            if filled < chunk.len() {
                return Ok(());
            }
            first.0 += CHUNK;
        }
    }

    /// The key in a cell, if it is the one with this digest.
    pub(super) fn get(
        &self,
        cell: KeyCell,
        digest: &[u8; 32],
    ) -> Result<Option<RegistrationKey>, RegistryError> {
        let mut key = RegistrationKey([0; CELL]);
        match self.current().file.read_exact_at(&mut key.0, cell.offset()) {
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => Err(self.failed(error)),
            read => Ok((read.is_ok() && key_digest(&key.0) == *digest).then_some(key)),
        }
    }

    /// Whether the file that is open still has its name.
    pub(super) fn in_place(&self) -> Result<(), RegistryError> {
        match identity::is_at(&self.path, self.current().place) {
            Ok(true) => Ok(()),
            Ok(false) => Err(RegistryError::Replaced(self.path.clone())),
            Err(error) => Err(self.failed(error)),
        }
    }

    /// Overwrites keys that no row refers to any more, and that nobody may still read. What cannot be overwritten now
    /// is with the next change.
    pub(super) fn wipe(&self, cells: Vec<KeyCell>) {
        let mut state = self.lock();
        state.stale.extend(cells);
        let _ = self.overwrite(&mut state);
    }

    fn overwrite(&self, cells: &mut Cells) -> io::Result<()> {
        if self.in_doubt.load(Ordering::Relaxed) {
            return self.renew(cells);
        }
        if cells.stale.is_empty() {
            return Ok(());
        }
        let open = self.current();
        for cell in &cells.stale {
            self.noted(open.file.write_all_at(&[0; CELL], cell.offset()))?;
        }
        self.noted_sync(open.file.sync_data())?;
        cells.free.append(&mut cells.stale);
        Ok(())
    }

    /// Puts a copy into the place of the file, durably, and overwrites the file that was there.
    fn renew(&self, cells: &mut Cells) -> io::Result<()> {
        let mut is_kept = vec![true; cells.end as usize];
        for cell in cells.free.iter().chain(&cells.stale) {
            is_kept[cell.0 as usize] = false;
        }
        let draft = draft(&self.path);
        remove(&draft)?;
        let place = || -> io::Result<Open> {
            self.copy_to(&draft, &is_kept)?;
            let copied = Open::of(&draft)?;
            // Held meanwhile, so that nobody sees a renewed file and the number of the one before.
            let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
            std::fs::rename(&draft, &self.path)?;
            Ok(std::mem::replace(&mut *open, copied))
        };
        let old = place().inspect_err(|_| {
            let _ = remove(&draft);
        })?;
        identity::sync_dir_of(&self.path)?;
        self.in_doubt.store(false, Ordering::Relaxed);
        cells.free.append(&mut cells.stale);
        // It has no name any more, and its blocks would keep the keys of devices that are removed later.
        let _ = overwrite(&old.file);
        Ok(())
    }

    /// Copies the file to one beside another registry, with the keys in these cells alone.
    pub(super) fn copy(&self, registry: &Path, used: &[KeyCell]) -> Result<(), RegistryError> {
        let (is_used, path) = (self.is_used(used)?, beside(registry));
        self.copy_to(&path, &is_used).map_err(|error| RegistryError::Io { path, error })
    }

    fn copy_to(&self, path: &Path, is_kept: &[bool]) -> io::Result<()> {
        let mut head = [0; HEADER];
        self.current().file.read_exact_at(&mut head, 0)?;
        identity::write_new(path, &head, 0o600)?;
        let to = OpenOptions::new().write(true).open(path)?;
        self.each_chunk(|first, chunk| {
            for (number, cell) in (first..).zip(chunk.chunks_mut(CELL)) {
                if !is_kept.get(number as usize).is_some_and(|is_kept| *is_kept) {
                    cell.fill(0);
                }
            }
            to.write_all_at(chunk, KeyCell(first).offset())
        })?;
        to.sync_all()
    }

    /// A write that finds no room has lost nothing. So much is not known of any other.
    fn noted(&self, done: io::Result<()>) -> io::Result<()> {
        done.inspect_err(|error| {
            if !is_no_room(error) {
                self.in_doubt.store(true, Ordering::Relaxed);
            }
        })
    }

    fn noted_sync(&self, done: io::Result<()>) -> io::Result<()> {
        done.inspect_err(|_| self.in_doubt.store(true, Ordering::Relaxed))
    }

    fn current(&self) -> RwLockReadGuard<'_, Open> {
        self.open.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Cells> {
        self.cells.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, error: io::Error) -> RegistryError {
        RegistryError::Io { path: self.path.clone(), error }
    }
}

/// What one transaction does with keys. Dropped without [`kept`](Self::kept), none of it has happened.
pub(super) struct KeyChanges {
    keys: Arc<KeyFile>,
    put: Vec<KeyCell>,
    freed: Vec<KeyCell>,
}

impl KeyChanges {
    pub(super) fn new(keys: &Arc<KeyFile>) -> Self {
        Self { keys: Arc::clone(keys), put: Vec::new(), freed: Vec::new() }
    }

    /// Writes a key into a cell that is free.
    pub(super) fn put(&mut self, key: &RegistrationKey) -> Result<KeyCell, RegistryError> {
        let cell = {
            let mut cells = self.keys.lock();
            if self.keys.in_doubt.load(Ordering::Relaxed) {
                self.keys.renew(&mut cells).map_err(|error| self.keys.failed(error))?;
            }
            match cells.free.pop() {
                Some(cell) => cell,
                None => {
                    let cell = KeyCell(cells.end);
                    let end = cells.end.checked_add(1);
                    cells.end = end.ok_or_else(|| {
                        self.keys.failed(io::Error::from(io::ErrorKind::FileTooLarge))
                    })?;
                    cell
                }
            }
        };
        self.put.push(cell);
        let written = self.keys.current().file.write_all_at(&key.0, cell.offset());
        self.keys.noted(written).map(|()| cell).map_err(|error| self.keys.failed(error))
    }

    /// Says that no row refers to this cell any more.
    pub(super) fn free(&mut self, cell: KeyCell) {
        self.freed.push(cell);
    }

    /// Makes the new keys durable: now rows may refer to them.
    pub(super) fn sync(&self) -> Result<(), RegistryError> {
        if self.put.is_empty() {
            return Ok(());
        }
        let synced = self.keys.current().file.sync_data();
        self.keys.noted_sync(synced).map_err(|error| self.keys.failed(error))
    }

    /// Leaves the new keys where they are. Returns the cells that are to be overwritten once the transaction is durable.
    pub(super) fn kept(mut self) -> Vec<KeyCell> {
        self.put.clear();
        std::mem::take(&mut self.freed)
    }
}

impl Drop for KeyChanges {
    fn drop(&mut self) {
        if !self.put.is_empty() {
            self.keys.wipe(std::mem::take(&mut self.put));
        }
    }
}

fn beside(registry: &Path) -> PathBuf {
    registry.with_extension("keys")
}

fn draft(path: &Path) -> PathBuf {
    path.with_extension("keys-draft")
}

/// Removes a draft that an earlier attempt may have left. Its blocks would keep the keys of devices that are removed later.
fn remove(draft: &Path) -> io::Result<()> {
    match draft.symlink_metadata() {
        Ok(found) if found.is_file() => {
            let file = OpenOptions::new().write(true).open(draft);
            // Whether or not: without its name nobody finds it.
            let _ = file.and_then(|file| overwrite(&file));
        }
        _ => {}
    }
    match std::fs::remove_file(draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Overwrites all cells of a file that is to go.
fn overwrite(file: &File) -> io::Result<()> {
    let (mut at, length) = (HEADER as u64, file.metadata()?.len());
    while at < length {
        let some = usize::try_from(length - at).unwrap_or(usize::MAX).min(ZEROS.len());
        file.write_all_at(&ZEROS[..some], at)?;
        at += some as u64;
    }
    file.sync_data()
}

/// Refuses a file that is none of the registry with this id.
fn verify(path: &Path, file: &File, id: [u8; 16]) -> Result<(), RegistryError> {
    let (path, mut found) = (path.to_owned(), [0; HEADER]);
    match file.read_exact_at(&mut found, 0) {
        Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => {
            Err(RegistryError::Io { path, error })
        }
        _ if found == header(id) => Ok(()),
        _ => {
            let is_others = found.starts_with(&MAGIC);
            let detail = if is_others { Damage::OthersKeys } else { Damage::KeyFile };
            Err(RegistryError::Damaged { path, detail })
        }
    }
}

fn header(id: [u8; 16]) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..8].copy_from_slice(&MAGIC);
    header[8..24].copy_from_slice(&id);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: [u8; 16] = [5; 16];

    fn key(byte: u8) -> RegistrationKey {
        RegistrationKey([byte; CELL])
    }

    fn holds(keys: &KeyFile, cell: KeyCell, byte: u8) -> bool {
        keys.get(cell, &key_digest(&[byte; CELL])).unwrap().is_some()
    }

    #[test]
    fn what_no_row_refers_to_is_overwritten_and_its_cell_used_again() {
        let dir = tempfile::tempdir().unwrap();
        let registry = dir.path().join("registry.redb");
        let keys = Arc::new(KeyFile::open(&registry, ID, &[], false).unwrap());
        let mut changes = KeyChanges::new(&keys);
        let cells = [1, 2, 3].map(|byte| changes.put(&key(byte)).unwrap());
        changes.sync().unwrap();
        assert!(changes.kept().is_empty());
        let mut changes = KeyChanges::new(&keys);
        let given_back = changes.put(&key(4)).unwrap();
        changes.free(cells[1]);
        assert!(holds(&keys, given_back, 4));
        drop(changes);
        assert!(holds(&keys, cells[1], 2) && !holds(&keys, given_back, 4));
        keys.wipe(vec![cells[1]]);
        assert!(!holds(&keys, cells[1], 2) && holds(&keys, cells[0], 1));
        let mut changes = KeyChanges::new(&keys);
        assert_eq!(changes.put(&key(5)).unwrap(), cells[1]);
        changes.kept();
        drop(keys);
        // Killed before the row of 5 was written, and after that of 1 was removed; and in the middle of a key.
        let path = dir.path().join(FILE);
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&[6; 20], KeyCell(9).offset()).unwrap();
        let keys = Arc::new(KeyFile::open(&registry, ID, &[cells[2]], false).unwrap());
        assert!(holds(&keys, cells[2], 3));
        let bytes = std::fs::read(&path).unwrap();
        assert!(bytes[HEADER..].iter().all(|byte| [0, 3].contains(byte)));
        let mut changes = KeyChanges::new(&keys);
        assert_eq!(changes.put(&key(7)).unwrap(), cells[0]);
    }

    #[test]
    fn a_file_in_doubt_is_copied_before_a_key_is_put_into_it_and_overwritten_then() {
        let dir = tempfile::tempdir().unwrap();
        let registry = dir.path().join("registry.redb");
        let path = dir.path().join(FILE);
        let keys = Arc::new(KeyFile::open(&registry, ID, &[], false).unwrap());
        let mut changes = KeyChanges::new(&keys);
        let cells = [1, 2].map(|byte| changes.put(&key(byte)).unwrap());
        changes.sync().unwrap();
        changes.kept();
        let old = File::open(&path).unwrap();
        keys.noted(Err(io::ErrorKind::StorageFull.into())).unwrap_err();
        assert!(!keys.in_doubt.load(Ordering::Relaxed));
        keys.noted_sync(Err(io::Error::other("lost"))).unwrap_err();
        // One that cannot be copied takes no key.
        std::fs::create_dir(draft(&path)).unwrap();
        KeyChanges::new(&keys).put(&key(3)).unwrap_err();
        std::fs::remove_dir(draft(&path)).unwrap();
        keys.wipe(vec![cells[0]]);
        assert!(!keys.in_doubt.load(Ordering::Relaxed));
        keys.in_place().unwrap();
        let mut changes = KeyChanges::new(&keys);
        assert_eq!(changes.put(&key(3)).unwrap(), cells[0]);
        changes.kept();
        assert!(holds(&keys, cells[0], 3) && holds(&keys, cells[1], 2));
        assert_eq!(std::fs::read(&path).unwrap().len(), HEADER + 2 * CELL);
        let mut left = [9; 2 * CELL];
        old.read_exact_at(&mut left, HEADER as u64).unwrap();
        assert_eq!(left, [0; 2 * CELL]);
        // A copy that does not come into its place is gone, and so is one that somebody was killed over: it holds keys.
        let kept = dir.path().join("kept");
        std::fs::rename(&path, &kept).unwrap();
        std::fs::create_dir_all(path.join("in the way")).unwrap();
        keys.noted_sync(Err(io::Error::other("lost"))).unwrap_err();
        KeyChanges::new(&keys).put(&key(4)).unwrap_err();
        assert!(!draft(&path).exists());
        std::fs::remove_dir_all(&path).unwrap();
        std::fs::rename(&kept, &path).unwrap();
        std::fs::copy(&path, draft(&path)).unwrap();
        let left = OpenOptions::new().read(true).open(draft(&path)).unwrap();
        drop(KeyFile::open(&registry, ID, &cells, false).unwrap());
        let mut bytes = [9; 2 * CELL];
        left.read_exact_at(&mut bytes, HEADER as u64).unwrap();
        assert!(!draft(&path).exists() && bytes == [0; 2 * CELL]);
        // And so is one that was not closed.
        let used = cells;
        let place = keys.current().place;
        drop(keys);
        let keys = KeyFile::open(&registry, ID, &used, true).unwrap();
        assert!(keys.current().place != place && holds(&keys, cells[1], 2));
    }

    #[test]
    fn another_registrys_file_and_a_damaged_one_are_refused_as_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let registry = dir.path().join("registry.redb");
        assert!(matches!(
            KeyFile::open(&registry, ID, &[KeyCell(0)], false),
            Err(RegistryError::NoKeys(_))
        ));
        KeyFile::create(&registry, ID).unwrap();
        let path = dir.path().join(FILE);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.extend([8; 3 * CELL]);
        let refused = |bytes: &[u8], id, used: &[KeyCell]| {
            std::fs::write(&path, bytes).unwrap();
            let error = KeyFile::open(&registry, id, used, false).err().unwrap().to_string();
            assert!(std::fs::read(&path).unwrap() == bytes, "{error}");
            error
        };
        let others = refused(&bytes, [6; 16], &[]);
        assert!(
            others.contains("registry.keys") && others.contains("another registry"),
            "{others}"
        );
        let short = refused(&bytes, ID, &[KeyCell(3)]);
        assert!(short.contains("registry.keys"), "{short}");
        refused(&bytes[..20], ID, &[]);
        bytes[0] ^= 1;
        refused(&bytes, ID, &[]);
    }
}
