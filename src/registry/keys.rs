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
//! A file system that writes elsewhere what is overwritten (a copy-on-write one, or flash below it) may keep the old
//! blocks: only the file can be promised to be clean.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use duet_protocol::identity::RegistrationKey;
use zeroize::Zeroizing;

use super::error::{Damage, RegistryError};
use super::record::key_digest;
use crate::identity;

/// The file's name, beside the registry's.
pub const FILE: &str = "registry.keys";

const MAGIC: [u8; 8] = *b"duetkeys";
const CELL: usize = 32;
/// The header takes as much as a cell, so that no cell lies in two sectors.
const HEADER: usize = CELL;
const CHUNK: usize = 1 << 20;

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
    place: (u64, u64),
    file: File,
    cells: Mutex<Cells>,
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
        let draft = path.with_extension("keys-draft");
        match std::fs::remove_file(&draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        identity::write_new(&draft, &header(id), 0o600)
            .and_then(|()| std::fs::rename(&draft, &path))
            .and_then(|()| identity::sync_dir_of(&path))
            .map_err(failed)
    }

    /// Opens the file of the registry of this path and id, whose rows refer to these cells, and overwrites all others.
    /// One that is missing is made where no row needs it.
    pub(super) fn open(
        registry: &Path,
        id: [u8; 16],
        used: &[KeyCell],
    ) -> Result<Self, RegistryError> {
        let path = beside(registry);
        let failed = |error| RegistryError::Io { path: path.clone(), error };
        match identity::mode_for_others(&path) {
            Ok(None) => {}
            Ok(Some(mode)) => return Err(RegistryError::OpenToOthers { path, mode }),
            Err(error) if error.kind() == io::ErrorKind::NotFound && used.is_empty() => {
                Self::create(registry, id)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(RegistryError::NoKeys(path));
            }
            Err(error) => return Err(failed(error)),
        }
        let file = OpenOptions::new().read(true).write(true).open(&path).map_err(failed)?;
        let place = identity::file_at(&path).map_err(failed)?;
        let mut found = [0; HEADER];
        match file.read_exact_at(&mut found, 0) {
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => {
                return Err(failed(error));
            }
            _ if found != header(id) => {
                let detail = match found.starts_with(&MAGIC) {
                    true => Damage::OthersKeys,
                    false => Damage::KeyFile,
                };
                return Err(RegistryError::Damaged { path, detail });
            }
            _ => {}
        }
        let keys = Self { path, place, file, cells: Mutex::default() };
        keys.settle(used)?;
        Ok(keys)
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
        let length = self.file.metadata().map_err(|error| self.failed(error))?.len();
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
        let mut chunk = Zeroizing::new(vec![0; CHUNK]);
        let mut first = KeyCell(0);
        loop {
            let mut filled = 0;
            while filled < CHUNK {
                match self.file.read_at(&mut chunk[filled..], first.offset() + filled as u64) {
                    Ok(0) => break,
                    Ok(read) => filled += read,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            if filled > 0 {
                each(first.0, &mut chunk[..filled])?;
            }
            if filled < CHUNK {
                return Ok(());
            }
            first.0 += (CHUNK / CELL) as u32;
        }
    }

    /// The key in a cell, if it is the one with this digest.
    pub(super) fn get(
        &self,
        cell: KeyCell,
        digest: &[u8; 32],
    ) -> Result<Option<RegistrationKey>, RegistryError> {
        let mut key = RegistrationKey([0; CELL]);
        match self.file.read_exact_at(&mut key.0, cell.offset()) {
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => Err(self.failed(error)),
            read => Ok((read.is_ok() && key_digest(&key.0) == *digest).then_some(key)),
        }
    }

    /// Whether the file that is open still has its name.
    pub(super) fn in_place(&self) -> Result<(), RegistryError> {
        match identity::is_at(&self.path, self.place) {
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
        if cells.stale.is_empty() {
            return Ok(());
        }
        for cell in &cells.stale {
            self.file.write_all_at(&[0; CELL], cell.offset())?;
        }
        self.file.sync_data()?;
        cells.free.append(&mut cells.stale);
        Ok(())
    }

    /// Copies the file to one beside another registry, with the keys in these cells alone.
    pub(super) fn copy(&self, registry: &Path, used: &[KeyCell]) -> Result<(), RegistryError> {
        let is_used = self.is_used(used)?;
        let path = beside(registry);
        let copied = || {
            let mut head = [0; HEADER];
            self.file.read_exact_at(&mut head, 0)?;
            identity::write_new(&path, &head, 0o600)?;
            let to = OpenOptions::new().write(true).open(&path)?;
            self.each_chunk(|first, chunk| {
                for (number, cell) in (first..).zip(chunk.chunks_mut(CELL)) {
                    if !is_used.get(number as usize).is_some_and(|is_used| *is_used) {
                        cell.fill(0);
                    }
                }
                to.write_all_at(chunk, KeyCell(first).offset())
            })?;
            to.sync_all()
        };
        copied().map_err(|error| RegistryError::Io { path: path.clone(), error })
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
        let written = self.keys.file.write_all_at(&key.0, cell.offset());
        written.map(|()| cell).map_err(|error| self.keys.failed(error))
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
        self.keys.file.sync_data().map_err(|error| self.keys.failed(error))
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
        let keys = Arc::new(KeyFile::open(&registry, ID, &[]).unwrap());
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
        let keys = Arc::new(KeyFile::open(&registry, ID, &[cells[2]]).unwrap());
        assert!(holds(&keys, cells[2], 3));
        let bytes = std::fs::read(&path).unwrap();
        assert!(bytes[HEADER..].iter().all(|byte| [0, 3].contains(byte)));
        let mut changes = KeyChanges::new(&keys);
        assert_eq!(changes.put(&key(7)).unwrap(), cells[0]);
    }

    #[test]
    fn another_registrys_file_and_a_damaged_one_are_refused_as_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let registry = dir.path().join("registry.redb");
        assert!(matches!(
            KeyFile::open(&registry, ID, &[KeyCell(0)]),
            Err(RegistryError::NoKeys(_))
        ));
        KeyFile::create(&registry, ID).unwrap();
        let path = dir.path().join(FILE);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.extend([8; 3 * CELL]);
        let refused = |bytes: &[u8], id, used: &[KeyCell]| {
            std::fs::write(&path, bytes).unwrap();
            let error = KeyFile::open(&registry, id, used).err().unwrap().to_string();
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
