//! A store in a file: written beside, synced, renamed over the old one, and the directory synced, so
//! that a power cut leaves the old state or the new one, whole.

use std::{
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Write as _},
    path::{Path, PathBuf},
};

use crate::store::{Kept, PAGE_LEN, Store, StoreError};

/// [`Kept`] in a file.
pub struct FileStore {
    path: PathBuf,
    generation: u32,
    keeps_doubt: bool,
}

impl FileStore {
    /// In this file, which is made at the first write. Nobody else may use it at the same time.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), generation: 0, keeps_doubt: false }
    }

    /// Says whether the reading in doubt is kept, too: two more writes for each reading inside HELLO.
    #[must_use]
    pub fn keep_doubt(mut self, keeps: bool) -> Self {
        self.keeps_doubt = keeps;
        self
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn replace(&self, bytes: &[u8; PAGE_LEN]) -> std::io::Result<()> {
        let mut beside = self.path.clone().into_os_string();
        beside.push(".new");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        drop(file);
        fs::rename(&beside, &self.path)?;
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    }
}

impl Store for FileStore {
    fn load(&mut self) -> Result<Option<Kept>, StoreError> {
        let bytes = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(_) => return Err(StoreError),
        };
        // A file that is there and says nothing is damage: the counter in it was used.
        let page: &[u8; PAGE_LEN] = bytes.as_slice().try_into().map_err(|_| StoreError)?;
        let (generation, kept) = Kept::decode(page).ok_or(StoreError)?;
        self.generation = generation;
        Ok(Some(kept))
    }

    fn save(&mut self, kept: &Kept) -> Result<(), StoreError> {
        let generation = self.generation.wrapping_add(1);
        self.replace(&kept.encode(generation)).map_err(|_| StoreError)?;
        self.generation = generation;
        Ok(())
    }

    fn keeps_doubt(&self) -> bool {
        self.keeps_doubt
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_saved_is_there_again_and_damage_is_not_taken_for_a_first_start() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("counter");
        let mut store = FileStore::new(&path);
        assert_eq!(store.load(), Ok(None));
        for fresh in [5, 900] {
            let kept = Kept { fresh, command: 3, ..Kept::default() };
            store.save(&kept).unwrap();
            assert_eq!(FileStore::new(&path).load(), Ok(Some(kept)));
        }
        // What a power cut left half written beside it changes nothing.
        fs::write(dir.path().join("counter.new"), b"half").unwrap();
        assert_eq!(
            FileStore::new(&path).load().map(|kept| kept.map(|kept| kept.fresh)),
            Ok(Some(900))
        );
        let mut bytes = fs::read(&path).unwrap();
        bytes[9] ^= 1;
        fs::write(&path, bytes).unwrap();
        assert_eq!(FileStore::new(&path).load(), Err(StoreError));
        assert_eq!(
            FileStore::new(dir.path().join("none/counter")).save(&Kept::default()),
            Err(StoreError)
        );
    }

    /// Whatever a power cut leaves of a write, step by step: the counter is what it was, or what it was to become, and the next
    /// write goes on from there.
    #[test]
    fn no_power_cut_in_a_write_takes_the_counter_back() {
        let kept = |fresh| Kept { fresh, ..Kept::default() };
        let (old, new) = (kept(900).encode(4), kept(1_156).encode(5));
        let beside = (0..=PAGE_LEN).map(|len| (old, Some(len), 900));
        // The name was changed, and what was beside may still have its own, or not.
        let renamed = [(new, None, 1_156), (old, None, 900), (new, Some(PAGE_LEN), 1_156)];
        for (page, left, wanted) in beside.chain(renamed) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("counter");
            fs::write(&path, page).unwrap();
            if let Some(len) = left {
                fs::write(dir.path().join("counter.new"), &new[..len]).unwrap();
            }
            let mut store = FileStore::new(&path);
            assert_eq!(store.load(), Ok(Some(kept(wanted))), "{left:?}");
            store.save(&kept(2_000)).unwrap();
            assert_eq!(FileStore::new(&path).load(), Ok(Some(kept(2_000))), "{left:?}");
        }
    }
}
