//! Where each upstream stands, on disk: `<name>.cursor`.
//!
//! Two slots of 64 bytes, written in turn, so that a power cut on the way leaves the other. An old
//! cursor does no harm, readings are only sent again; so what is written each second need not be
//! synced for safety. It is synced all the same before the spool hears of it, since the spool lets
//! go of what lies behind. A file that somebody removed, replaced or damaged is made again within about a second.
//!
//! ```text
//! slot  0  magic "duetcur1"     24  next u64             48  number of the write u64
//!       8  spool id, 16 bytes   32  previous last + 1    56  zeros
//!                               40  flags: 1 required    60  CRC-32C of bytes 0..60
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::named;
use crate::source::SpoolId;
use crate::window::Cursor;

const SLOT: usize = 64;
const MAGIC: [u8; 8] = *b"duetcur1";
const EXTENSION: &str = "cursor";

/// What a cursor's file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) spool: SpoolId,
    pub(crate) cursor: Cursor,
    pub(crate) required: bool,
}

/// A cursor's file, open.
#[derive(Debug)]
pub(crate) struct CursorFile {
    path: PathBuf,
    file: File,
    number: u64,
    /// What it says.
    said: Option<Kept>,
    /// Whether the last write failed: it may say that all the same.
    unsure: bool,
}

impl CursorFile {
    /// Opens it, or makes one. `None` where nothing was written yet.
    ///
    /// # Errors
    /// The system's, or [`io::ErrorKind::InvalidData`] where neither slot can be read.
    pub(crate) fn open(path: &Path) -> io::Result<(Self, Option<Kept>)> {
        let file = open(path)?;
        let (number, said) = read(&file)?.map_or((0, None), |(number, kept)| (number, Some(kept)));
        if said.is_none() {
            sync_dir(path)?;
        }
        Ok((Self { path: path.to_owned(), file, number, said, unsure: false }, said))
    }

    /// Writes and syncs, unless it says so already. True where somebody had removed, replaced or damaged the file, and it
    /// was made again.
    pub(crate) fn save(&mut self, kept: &Kept) -> io::Result<bool> {
        let is_whole = self.said.is_none() || self.is_whole();
        if is_whole && !self.unsure && self.said == Some(*kept) {
            return Ok(false);
        }
        if is_whole {
            self.write(kept)?;
            return Ok(false);
        }
        self.path.parent().map_or(Ok(()), make_dir)?;
        // It has its name once both slots say so: one that is there and says nothing knows of no reading.
        let draft = self.path.with_extension("new");
        self.file = open(&draft)?;
        self.file.set_len(0)?;
        self.write(kept)?;
        self.write(kept)?;
        fs::rename(&draft, &self.path)?;
        sync_dir(&self.path)?;
        Ok(true)
    }

    /// Whether the file under its name says what it was told.
    fn is_whole(&self) -> bool {
        let said = self.said.map(|kept| (self.number, kept));
        let attempt = self.unsure.then_some(self.number + 1);
        named::is_named(&self.file, &self.path)
            && read(&self.file).is_ok_and(|found| {
                found == said || attempt.is_some() && found.map(|(number, _)| number) == attempt
            })
    }

    fn write(&mut self, kept: &Kept) -> io::Result<()> {
        // The slot that is whole stays so: a write that failed is tried again in the same place.
        let number = self.number + 1;
        let mut slot = [0; SLOT];
        slot[..8].copy_from_slice(&MAGIC);
        slot[8..24].copy_from_slice(&kept.spool.0);
        slot[24..32].copy_from_slice(&kept.cursor.next.to_le_bytes());
        let previous = kept.cursor.previous_last.map_or(0, |last| last.saturating_add(1));
        slot[32..40].copy_from_slice(&previous.to_le_bytes());
        slot[40] = u8::from(kept.required);
        slot[48..56].copy_from_slice(&number.to_le_bytes());
        let crc = crc32c::crc32c(&slot[..60]);
        slot[60..].copy_from_slice(&crc.to_le_bytes());
        self.unsure = true;
        self.file.write_all_at(&slot, (number % 2) * SLOT as u64)?;
        self.file.sync_data()?;
        (self.number, self.said, self.unsure) = (number, Some(*kept), false);
        Ok(())
    }
}

/// Makes the directory of cursors where it is missing.
pub(crate) fn make_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

fn sync_dir(cursor: &Path) -> io::Result<()> {
    cursor.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

fn read(file: &File) -> io::Result<Option<(u64, Kept)>> {
    let mut bytes = [0; 2 * SLOT];
    let mut length = 0;
    while length < bytes.len() {
        match file.read_at(&mut bytes[length..], length as u64)? {
            0 => break,
            more => length += more,
        }
    }
    if bytes[..length].iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    let slots = bytes.chunks_exact(SLOT).filter_map(decode);
    let newest = slots.max_by_key(|(number, _)| *number);
    newest.map(Some).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            "not a cursor; remove it to have everything sent again that the spool still keeps",
        )
    })
}

fn decode(slot: &[u8]) -> Option<(u64, Kept)> {
    let (covered, crc) = slot.split_last_chunk::<4>()?;
    if crc32c::crc32c(covered) != u32::from_le_bytes(*crc) || !slot.starts_with(&MAGIC) {
        return None;
    }
    let number = |at: usize| Some(u64::from_le_bytes(*slot.get(at..)?.first_chunk()?));
    let cursor = Cursor { next: number(24)?, previous_last: number(32)?.checked_sub(1) };
    let spool = SpoolId(*slot.get(8..)?.first_chunk()?);
    Some((number(48)?, Kept { spool, cursor, required: slot.get(40)? & 1 != 0 }))
}

/// The cursors in a directory whose names are wanted, in the order of their names. A directory that is not there has none.
///
/// # Errors
/// The system's, or that of a cursor that cannot be read, with the path that it is about.
pub(crate) fn list(
    dir: &Path,
    wanted: impl Fn(&str) -> bool,
) -> Result<Vec<(String, Kept)>, (PathBuf, io::Error)> {
    let of_dir = |error| (dir.to_owned(), error);
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(of_dir)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(of_dir)?.path();
        if path.extension().is_some_and(|extension| extension == EXTENSION)
            && let Some(name) = path.file_stem().and_then(|name| name.to_str())
            && wanted(name)
        {
            let kept = File::open(&path).and_then(|file| read(&file));
            let kept = kept.map_err(|error| (path.clone(), error))?;
            found.extend(kept.map(|(_, kept)| (name.to_owned(), kept)));
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(found)
}

/// Where the cursor of this name lies.
pub(crate) fn path(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.{EXTENSION}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(next: u64) -> Kept {
        let cursor = Cursor { next, previous_last: next.checked_sub(1) };
        Kept { spool: SpoolId([7; 16]), cursor, required: true }
    }

    #[test]
    fn the_newest_whole_slot_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = path(dir.path(), "cloud");
        let (mut file, found) = CursorFile::open(&path).unwrap();
        assert_eq!(found, None);
        for next in [0, 256, 300] {
            file.save(&kept(next)).unwrap();
            assert_eq!(CursorFile::open(&path).unwrap().1, Some(kept(next)));
        }
        assert_eq!(list(dir.path(), |_| true).unwrap(), [("cloud".to_owned(), kept(300))]);
        assert!(list(dir.path(), |name| name != "cloud").unwrap().is_empty());
        // The third write is in the second slot; whatever happens to it leaves the one before.
        let whole = fs::read(&path).unwrap();
        for bit in SLOT * 8..2 * SLOT * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, &bytes).unwrap();
            assert_eq!(CursorFile::open(&path).unwrap().1, Some(kept(256)), "bit {bit}");
        }
        fs::write(&path, b"rubbish").unwrap();
        assert!(CursorFile::open(&path).unwrap_err().to_string().contains("remove it"));
        // What is to be removed is this file, not all that lies beside it.
        assert_eq!(list(dir.path(), |_| true).unwrap_err().0, path);
    }

    /// A write that failed, perhaps half way, and a power cut in the next one leave the slot that was whole.
    #[test]
    fn a_write_that_fails_puts_only_one_slot_at_risk() {
        let dir = tempfile::tempdir().unwrap();
        let path = path(dir.path(), "cloud");
        let (mut file, _) = CursorFile::open(&path).unwrap();
        file.save(&kept(1)).unwrap();
        file.save(&kept(2)).unwrap();
        let whole = std::mem::replace(&mut file.file, File::open(&path).unwrap());
        assert!(file.save(&kept(3)).is_err(), "it was opened for reading");
        file.file = whole;
        file.save(&kept(4)).unwrap();
        let mut bytes = fs::read(&path).unwrap();
        bytes[SLOT..].fill(0xff);
        fs::write(&path, &bytes).unwrap();
        assert_eq!(CursorFile::open(&path).unwrap().1, Some(kept(2)));
    }

    /// The disk may have taken what it did not say it has, or half of it.
    #[test]
    fn a_write_that_failed_is_nobodys_damage() {
        let dir = tempfile::tempdir().unwrap();
        let path = path(dir.path(), "cloud");
        let (mut file, _) = CursorFile::open(&path).unwrap();
        file.save(&kept(1)).unwrap();
        let before = fs::read(&path).unwrap();
        file.save(&kept(2)).unwrap();
        let after = fs::read(&path).unwrap();
        for (found, whole) in [(&after, &before), (&before, &before)] {
            fs::write(&path, whole).unwrap();
            let (mut file, _) = CursorFile::open(&path).unwrap();
            let whole = std::mem::replace(&mut file.file, File::open(&path).unwrap());
            assert!(file.save(&kept(2)).is_err(), "it was opened for reading");
            file.file = whole;
            fs::write(&path, found).unwrap();
            assert!(!file.save(&kept(2)).unwrap(), "nobody damaged it");
            assert_eq!(CursorFile::open(&path).unwrap().1, Some(kept(2)));
            fs::write(&path, b"").unwrap();
            assert!(file.save(&kept(2)).unwrap(), "somebody did");
        }
    }

    #[test]
    fn a_file_that_is_no_longer_what_it_was_is_made_again_though_nothing_moves() {
        let dir = tempfile::tempdir().unwrap();
        let path = path(&dir.path().join("upstream"), "cloud");
        make_dir(path.parent().unwrap()).unwrap();
        let (mut file, _) = CursorFile::open(&path).unwrap();
        assert!(!file.save(&kept(1)).unwrap());
        let older = fs::read(&path).unwrap();
        assert!(!file.save(&kept(2)).unwrap());
        let harms: [&dyn Fn(); 5] = [
            &|| fs::remove_file(&path).unwrap(),
            &|| fs::remove_dir_all(dir.path().join("upstream")).unwrap(),
            &|| fs::write(&path, b"").unwrap(),
            &|| fs::write(&path, &older).unwrap(),
            &|| {
                fs::rename(&path, dir.path().join("elsewhere")).unwrap();
                fs::write(&path, &older).unwrap();
            },
        ];
        for harm in harms {
            harm();
            assert!(file.save(&kept(2)).unwrap());
            assert_eq!(CursorFile::open(&path).unwrap().1, Some(kept(2)));
            assert!(!file.save(&kept(2)).unwrap(), "only once");
        }
    }

    #[test]
    fn a_directory_that_is_not_there_has_no_cursors() {
        assert!(list(Path::new("/nonexistent/upstream"), |_| true).unwrap().is_empty());
    }
}
