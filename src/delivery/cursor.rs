//! Places in the spool that somebody has read up to, by name. Owns their files, `cursor-<name>.pos` beside the
//! segments; what is removed in view of them is decided in `retention`.
//!
//! A cursor moves without a sync: an old one after a power cut only repeats readings. Before anything is removed
//! because of where it stands, it is synced. Where the cursors of this process stand, it knows without their files: one
//! that somebody removed still holds what it held, and is there again when the cursor moves.
//!
//! ```text
//! slot  0  magic "duetcurs"     24  number of the write u64    44  zeros
//!       8  spool id             32  index u64                  60  CRC-32C of bytes 0..60
//!                               40  what it holds u32
//! ```
//! Two slots, one at the beginning of the file and one a page behind it, are written in turn, so that a power cut on
//! the way leaves the other.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::error::SpoolError;
use super::id::SpoolId;
use super::segment::{self, PRIVATE};

const MAGIC: [u8; 8] = *b"duetcurs";
const SLOT: usize = 64;
/// Between the two slots: what is written together to the disk may be lost together.
const APART: u64 = 4096;
/// The longest name.
const NAME_MAX: usize = 64;

/// What a cursor keeps from being removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// Nothing: readings go as if it were not there, and it may find that some are gone.
    Nothing,
    /// Readings that it has not passed stay, unless age or a full spool with `drop_oldest` takes them.
    Required,
    /// Readings that it has not passed are never removed.
    Always,
}

/// Where a cursor stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// The cursor's name.
    pub name: String,
    /// The index of the reading that comes next.
    pub index: u64,
    /// What it keeps.
    pub hold: Hold,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Slot {
    spool: SpoolId,
    number: u64,
    index: u64,
    hold: Hold,
}

/// A cursor that this process moves; no other one does meanwhile.
#[derive(Debug)]
pub struct Cursor {
    file: File,
    path: PathBuf,
    slot: Slot,
    standing: Arc<Standing>,
}

/// Where a cursor of this process stands, and what it keeps.
#[derive(Debug)]
struct Standing {
    path: PathBuf,
    hold: Hold,
    index: AtomicU64,
}

/// All of them that are open.
static STANDING: Mutex<Vec<Weak<Standing>>> = Mutex::new(Vec::new());

impl Standing {
    fn begin(path: PathBuf, hold: Hold, index: u64) -> Arc<Self> {
        let standing = Arc::new(Self { path, hold, index: AtomicU64::new(index) });
        let mut all = STANDING.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|one| one.strong_count() > 0);
        all.push(Arc::downgrade(&standing));
        standing
    }
}

/// Where the cursors of this process stand in this spool, and what they keep.
pub(super) fn standing(dir: &Path) -> Vec<(u64, Hold)> {
    let all = STANDING.lock().unwrap_or_else(PoisonError::into_inner);
    let here = all.iter().filter_map(Weak::upgrade).filter(|one| one.path.parent() == Some(dir));
    here.map(|one| (one.index.load(Ordering::Acquire), one.hold)).collect()
}

impl Cursor {
    /// Opens the cursor of this name in the spool `spool` under `dir`; one that is new begins at `index`.
    ///
    /// # Errors
    /// [`SpoolError`] when the name is no name, another process has it, it is of another spool, or the system refuses.
    pub fn open(
        dir: &Path,
        name: &str,
        spool: SpoolId,
        index: u64,
        hold: Hold,
    ) -> Result<Self, SpoolError> {
        let path = path(dir, name)?;
        let file = take(&path)?;
        let slot = match read(&file, &path)? {
            Some(slot) if slot.spool != spool => return Err(SpoolError::CursorElsewhere(path)),
            Some(slot) => slot,
            None => {
                // Both slots get their room now: a cursor moves on a full disk, too.
                let zeros = [0; SLOT];
                let room =
                    file.write_all_at(&zeros, 0).and_then(|()| file.write_all_at(&zeros, APART));
                room.map_err(SpoolError::io("writing", &path))?;
                Slot { spool, number: 0, index, hold }
            }
        };
        let standing = Standing::begin(path.clone(), hold, slot.index);
        let mut cursor = Self { file, path, slot, standing };
        if cursor.slot.number == 0 || cursor.slot.hold != hold {
            cursor.slot.hold = hold;
            cursor.write()?;
            cursor.sync()?;
            segment::sync_dir(dir)?;
        }
        Ok(cursor)
    }

    /// The cursor of this name, whatever spool it is of.
    ///
    /// # Errors
    /// [`SpoolError`] when there is none, or it cannot be opened.
    pub fn find(dir: &Path, name: &str) -> Result<Self, SpoolError> {
        let path = path(dir, name)?;
        let file = match OpenOptions::new().read(true).write(true).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(SpoolError::CursorNone(path));
            }
            opened => opened.map_err(SpoolError::io("opening", &path))?,
        };
        match read(&file, &path)? {
            Some(Slot { spool, index, hold, .. }) => Self::open(dir, name, spool, index, hold),
            None => Err(SpoolError::CursorDamaged(path)),
        }
    }

    /// The index of the reading that comes next.
    #[must_use]
    pub fn index(&self) -> u64 {
        self.slot.index
    }

    /// Goes to `index`, for readers that begin anew; a power cut may take it back.
    ///
    /// # Errors
    /// [`SpoolError`] when it cannot be written.
    pub fn set(&mut self, index: u64) -> Result<(), SpoolError> {
        if index == self.slot.index {
            return Ok(());
        }
        self.slot.index = index;
        self.write()?;
        // Whoever starts next finds the file by its name.
        let own = self.file.metadata().map(|file| (file.dev(), file.ino()));
        if segment::identity(&self.path).ok() != own.ok() {
            self.put_back()?;
        }
        // Not before it is written: what it has passed may go.
        self.standing.index.store(index, Ordering::Release);
        Ok(())
    }

    /// Makes the file again, which somebody has removed, moved away or replaced.
    fn put_back(&mut self) -> Result<(), SpoolError> {
        self.file = take(&self.path)?;
        // Into both slots, which get their room.
        self.write()?;
        self.write()?;
        self.sync()?;
        self.path.parent().map_or(Ok(()), segment::sync_dir)?;
        tracing::warn!(
            "{}: it was removed or replaced under the gateway, and says again where it stands",
            self.path.display()
        );
        Ok(())
    }

    /// Makes its place survive a power cut.
    ///
    /// # Errors
    /// [`SpoolError`] when the system refuses.
    pub fn sync(&self) -> Result<(), SpoolError> {
        self.file.sync_data().map_err(SpoolError::io("syncing", &self.path))
    }

    /// Removes it.
    ///
    /// # Errors
    /// [`SpoolError`] when the system refuses.
    pub fn remove(self) -> Result<(), SpoolError> {
        fs::remove_file(&self.path).map_err(SpoolError::io("removing", &self.path))?;
        self.path.parent().map_or(Ok(()), segment::sync_dir)
    }

    fn write(&mut self) -> Result<(), SpoolError> {
        self.slot.number += 1;
        let at = self.slot.number % 2 * APART;
        let written = self.file.write_all_at(&self.slot.encode(), at);
        written.map_err(SpoolError::io("writing", &self.path))
    }
}

/// All cursors of a spool, by name.
///
/// # Errors
/// [`SpoolError`] when the directory or one of them cannot be read.
pub fn cursors(dir: &Path) -> Result<Vec<Position>, SpoolError> {
    Ok(all(dir)?.into_iter().map(|(position, _)| position).collect())
}

/// All cursors, with their files.
pub(super) fn all(dir: &Path) -> Result<Vec<(Position, File)>, SpoolError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(SpoolError::io("listing", dir))? {
        let path = entry.map_err(SpoolError::io("listing", dir))?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let Some(name) = name.and_then(|name| name.strip_prefix("cursor-")?.strip_suffix(".pos"))
        else {
            continue;
        };
        let file = match File::open(&path) {
            // Removed since it was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            opened => opened.map_err(SpoolError::io("opening", &path))?,
        };
        if let Some(Slot { index, hold, .. }) = read(&file, &path)? {
            found.push((Position { name: name.to_owned(), index, hold }, file));
        }
    }
    found.sort_unstable_by(|(a, _), (b, _)| a.name.cmp(&b.name));
    Ok(found)
}

/// Opens a cursor's file, or makes it, for this process alone.
fn take(path: &Path) -> Result<File, SpoolError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(PRIVATE);
    let file = options.open(path).map_err(SpoolError::io("opening", path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(SpoolError::CursorTaken(path.to_owned())),
        Err(TryLockError::Error(source)) => Err(SpoolError::io("locking", path)(source)),
    }
}

fn path(dir: &Path, name: &str) -> Result<PathBuf, SpoolError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    match (1..=NAME_MAX).contains(&name.len()) && name.bytes().all(plain) {
        true => Ok(dir.join(format!("cursor-{name}.pos"))),
        false => Err(SpoolError::CursorName),
    }
}

/// The newer slot; none in a file that was only just made.
fn read(file: &File, path: &Path) -> Result<Option<Slot>, SpoolError> {
    let mut slots = [None; 2];
    let mut empty = true;
    for (slot, at) in slots.iter_mut().zip([0, APART]) {
        let mut bytes = [0; SLOT];
        match file.read_exact_at(&mut bytes, at) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => continue,
            read => read.map_err(SpoolError::io("reading", path))?,
        }
        empty &= bytes == [0; SLOT];
        *slot = Slot::decode(&bytes);
    }
    match slots.into_iter().flatten().max_by_key(|slot| slot.number) {
        None if !empty => Err(SpoolError::CursorDamaged(path.to_owned())),
        newest => Ok(newest),
    }
}

impl Slot {
    fn encode(&self) -> [u8; SLOT] {
        let mut out = [0; SLOT];
        out[..8].copy_from_slice(&MAGIC);
        out[8..24].copy_from_slice(&self.spool.0);
        out[24..32].copy_from_slice(&self.number.to_le_bytes());
        out[32..40].copy_from_slice(&self.index.to_le_bytes());
        out[40] = match self.hold {
            Hold::Nothing => 0,
            Hold::Required => 1,
            Hold::Always => 2,
        };
        let crc = crc32c::crc32c(&out[..60]);
        out[60..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8; SLOT]) -> Option<Self> {
        let (covered, crc) = bytes.split_last_chunk::<4>()?;
        let (magic, rest) = covered.split_first_chunk::<8>()?;
        let (spool, rest) = rest.split_first_chunk()?;
        let (number, rest) = rest.split_first_chunk()?;
        let (index, rest) = rest.split_first_chunk()?;
        let hold = match rest.first()? {
            0 => Hold::Nothing,
            1 => Hold::Required,
            2 => Hold::Always,
            _ => return None,
        };
        let whole = *magic == MAGIC && crc32c::crc32c(covered) == u32::from_le_bytes(*crc);
        whole.then_some(Self {
            spool: SpoolId(*spool),
            number: u64::from_le_bytes(*number),
            index: u64::from_le_bytes(*index),
            hold,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPOOL: SpoolId = SpoolId([3; 16]);

    fn open(dir: &Path) -> Result<Cursor, SpoolError> {
        Cursor::open(dir, "nats", SPOOL, 7, Hold::Required)
    }

    #[test]
    fn it_is_where_it_was_and_belongs_to_one_spool_and_one_process() {
        let dir = tempfile::tempdir().unwrap();
        let mut cursor = open(dir.path()).unwrap();
        assert_eq!(cursor.index(), 7);
        cursor.set(9).unwrap();
        assert!(matches!(open(dir.path()), Err(SpoolError::CursorTaken(_))));
        drop(cursor);
        assert_eq!(open(dir.path()).unwrap().index(), 9);
        let position = Position { name: "nats".into(), index: 9, hold: Hold::Required };
        assert_eq!(cursors(dir.path()).unwrap(), [position]);
        let other = Cursor::open(dir.path(), "nats", SpoolId([4; 16]), 0, Hold::Nothing);
        assert!(matches!(other, Err(SpoolError::CursorElsewhere(_))));
        Cursor::open(dir.path(), "nats", SPOOL, 0, Hold::Nothing).unwrap();
        assert_eq!(cursors(dir.path()).unwrap()[0].hold, Hold::Nothing);
        open(dir.path()).unwrap().remove().unwrap();
        assert_eq!(cursors(dir.path()).unwrap(), []);
        for name in ["", "../x", "a b", &"a".repeat(65)] {
            let refused = Cursor::open(dir.path(), name, SPOOL, 0, Hold::Nothing);
            assert!(matches!(refused, Err(SpoolError::CursorName)), "{name}");
        }
    }

    #[test]
    fn a_file_that_was_removed_holds_what_it_held_and_is_there_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut cursor = open(dir.path()).unwrap();
        let file = dir.path().join("cursor-nats.pos");
        fs::remove_file(&file).unwrap();
        assert_eq!(cursors(dir.path()).unwrap(), []);
        assert_eq!(standing(dir.path()), [(7, Hold::Required)]);
        cursor.set(9).unwrap();
        assert_eq!(standing(dir.path()), [(9, Hold::Required)]);
        assert_eq!(cursors(dir.path()).unwrap()[0].index, 9);
        assert!(matches!(open(dir.path()), Err(SpoolError::CursorTaken(_))));
        // Moved away, and an older copy in its place.
        let kept = fs::read(&file).unwrap();
        cursor.set(10).unwrap();
        fs::rename(&file, dir.path().join("elsewhere")).unwrap();
        fs::write(&file, kept).unwrap();
        cursor.set(11).unwrap();
        drop(cursor);
        assert_eq!(standing(dir.path()), []);
        assert_eq!(open(dir.path()).unwrap().index(), 11);
    }

    #[test]
    fn both_slots_have_their_room_from_the_beginning() {
        let dir = tempfile::tempdir().unwrap();
        let _cursor = open(dir.path()).unwrap();
        let found = fs::metadata(dir.path().join("cursor-nats.pos")).unwrap();
        assert_eq!(found.len(), APART + SLOT as u64);
        assert!(std::os::unix::fs::MetadataExt::blocks(&found) * 512 >= 2 * APART);
    }

    #[test]
    fn a_torn_write_leaves_the_place_before_and_two_say_so() {
        let dir = tempfile::tempdir().unwrap();
        let mut cursor = open(dir.path()).unwrap();
        let file = dir.path().join("cursor-nats.pos");
        for index in 8..12 {
            let before = fs::read(&file).unwrap();
            cursor.set(index).unwrap();
            let after = fs::read(&file).unwrap();
            let at = usize::try_from(cursor.slot.number % 2 * APART).unwrap();
            for byte in at..at + SLOT {
                let mut torn = after.clone();
                torn[byte] = before.get(byte).map_or(0, |byte| !byte);
                fs::write(&file, &torn).unwrap();
                if torn != after {
                    assert_eq!(cursors(dir.path()).unwrap()[0].index, index - 1);
                }
            }
            fs::write(&file, &after).unwrap();
            assert_eq!(cursors(dir.path()).unwrap()[0].index, index);
        }
        let mut bytes = fs::read(&file).unwrap();
        (bytes[33], bytes[4096 + 33]) = (!bytes[33], !bytes[4096 + 33]);
        fs::write(&file, bytes).unwrap();
        drop(cursor);
        assert!(matches!(open(dir.path()), Err(SpoolError::CursorDamaged(_))));
    }
}
