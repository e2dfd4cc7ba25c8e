//! Places in the spool that somebody has read up to, by name. Owns their files, `cursor-<name>.pos` beside the
//! segments; what is removed in view of them is decided in `retention`.
//!
//! A cursor moves without a sync: an old one after a power cut only repeats readings. Before anything is removed
//! because of where it stands, it is synced. Where the cursors of this process stand, it knows without their files: one
//! that somebody removed still holds what it held. Whoever looks after the spool has such a file made again, also one
//! that was replaced or damaged: other processes know of the place by the file alone.
//!
//! ```text
//! slot  0  magic "duetcurs"     24  number of the write u64    44  zeros
//!       8  spool id             32  index u64                  60  CRC-32C of bytes 0..60
//!                               40  what it holds u32
//! ```
//! Two slots, one at the beginning of the file and one a page behind it, are written in turn, so that a power cut on
//! the way leaves the other. The file appears under its name with both of them written, so an empty one is damaged.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use duet_telemetry::catalogue::FILES_RENEWED;

use super::error::SpoolError;
use super::id::SpoolId;
use super::segment::{self, PRIVATE};
use crate::identity;

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
    /// In which spool that is.
    pub spool: SpoolId,
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
pub struct Cursor(Arc<Place>);

/// A cursor's file, and what it says.
#[derive(Debug)]
struct Place {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    file: File,
    slot: Slot,
    /// Whether nobody moves it any more.
    over: bool,
}

/// All of them that are open.
static OPEN: Mutex<Vec<Weak<Place>>> = Mutex::new(Vec::new());

/// Those of this process in this spool.
fn places(dir: &Path) -> Vec<Arc<Place>> {
    let all = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    all.iter().filter_map(Weak::upgrade).filter(|one| one.path.parent() == Some(dir)).collect()
}

/// Where the cursors of this process stand in this spool, and what they keep.
pub(super) fn standing(dir: &Path) -> Vec<(u64, Hold)> {
    let stands = |place: &Arc<Place>| {
        let state = place.state();
        (!state.over).then_some((state.slot.index, state.slot.hold))
    };
    places(dir).iter().filter_map(stands).collect()
}

/// Has the files of this process' cursors say what they should, whatever somebody did to them.
///
/// # Errors
/// The first [`SpoolError`]; the others are seen to all the same.
pub(super) fn look_after(dir: &Path) -> Result<(), SpoolError> {
    places(dir).iter().map(|place| place.look(&mut place.state())).fold(Ok(()), Result::and)
}

impl Place {
    fn begin(path: PathBuf, file: File, slot: Slot) -> Arc<Self> {
        let place = Arc::new(Self { path, state: Mutex::new(State { file, slot, over: false }) });
        let mut all = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|one| one.strong_count() > 0);
        all.push(Arc::downgrade(&place));
        place
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it says from now on.
    fn write(&self, state: &mut State, slot: Slot) -> Result<(), SpoolError> {
        let slot = Slot { number: state.slot.number + 1, ..slot };
        let written = state.file.write_all_at(&slot.encode(), slot.number % 2 * APART);
        written.map_err(SpoolError::io("writing", &self.path))?;
        state.slot = slot;
        Ok(())
    }

    fn sync(&self, state: &State) -> Result<(), SpoolError> {
        state.file.sync_data().map_err(SpoolError::io("syncing", &self.path))
    }

    /// Whether whoever opens the file by its name finds this one.
    fn is_named(&self, state: &State) -> bool {
        identity::is_named(&state.file, &self.path).is_ok_and(|named| named)
    }

    /// Makes the file again, if somebody has removed, moved away, replaced or damaged it.
    fn look(&self, state: &mut State) -> Result<(), SpoolError> {
        let is_named = self.is_named(state);
        let says = read(&state.file, &self.path).ok();
        if state.over || is_named && says == Some(state.slot) {
            return Ok(());
        }
        if !is_named {
            state.file = match take(&self.path)? {
                Some(file) => file,
                None => make(&self.path, &mut state.slot)?,
            };
        }
        // Into both slots.
        let slot = state.slot;
        self.write(state, slot)?;
        self.write(state, slot)?;
        self.sync(state)?;
        self.path.parent().map_or(Ok(()), segment::sync_dir)?;
        FILES_RENEWED.with(["cursor"]).add(1);
        tracing::warn!(
            "{}: it was removed, replaced or damaged under the gateway, and says again where it stands",
            self.path.display()
        );
        Ok(())
    }
}

impl Drop for Cursor {
    /// Whoever goes on from here finds it.
    fn drop(&mut self) {
        // Where it cannot be made again, the next one begins with the oldest reading, which loses none.
        let mut state = self.0.state();
        let _ = self.0.look(&mut state);
        // Others may hold the place for a moment longer.
        state.over = true;
        let _ = state.file.unlock();
    }
}

impl Cursor {
    /// Opens the cursor of this name in the spool `spool` under `dir`; one that is new begins at `index`.
    ///
    /// # Errors
    /// [`SpoolError`] when the name is no name, its file is damaged, another process has it, it is of another spool, or
    /// the system refuses.
    pub fn open(
        dir: &Path,
        name: &str,
        spool: SpoolId,
        index: u64,
        hold: Hold,
    ) -> Result<Self, SpoolError> {
        let path = path(dir, name)?;
        let (file, slot) = match take(&path)? {
            Some(file) => {
                let slot = read(&file, &path)?;
                (file, slot)
            }
            None => {
                let mut slot = Slot { spool, number: 0, index, hold };
                (make(&path, &mut slot)?, slot)
            }
        };
        if slot.spool != spool {
            return Err(SpoolError::CursorElsewhere(path));
        }
        let cursor = Self(Place::begin(path, file, slot));
        if slot.hold != hold {
            let mut state = cursor.0.state();
            cursor.0.write(&mut state, Slot { hold, ..slot })?;
            cursor.0.sync(&state)?;
        }
        Ok(cursor)
    }

    /// The same for a cursor whose place is known elsewhere, too: one that cannot be read begins at `index`, and that is
    /// told.
    ///
    /// # Errors
    /// As [`open`](Self::open), but for damage.
    pub fn open_or_renew(
        dir: &Path,
        name: &str,
        spool: SpoolId,
        index: u64,
        hold: Hold,
    ) -> Result<Self, SpoolError> {
        match Self::open(dir, name, spool, index, hold) {
            Err(SpoolError::CursorDamaged(path)) => {
                fs::remove_file(&path).map_err(SpoolError::io("removing", &path))?;
                FILES_RENEWED.with(["cursor"]).add(1);
                tracing::warn!(
                    "{}: it was damaged and is made anew at {index}: readings may stay for longer, and none is lost",
                    path.display()
                );
                Self::open(dir, name, spool, index, hold)
            }
            opened => opened,
        }
    }

    /// The cursor of this name, whatever spool it is of.
    ///
    /// # Errors
    /// [`SpoolError`] when there is none, or it cannot be opened.
    pub fn find(dir: &Path, name: &str) -> Result<Self, SpoolError> {
        let path = path(dir, name)?;
        let Some(file) = take(&path)? else { return Err(SpoolError::CursorNone(path)) };
        let slot = read(&file, &path)?;
        Ok(Self(Place::begin(path, file, slot)))
    }

    /// The index of the reading that comes next.
    #[must_use]
    pub fn index(&self) -> u64 {
        self.0.state().slot.index
    }

    /// Goes to `index`, for readers that begin anew; a power cut may take it back.
    ///
    /// # Errors
    /// [`SpoolError`] when it cannot be written.
    pub fn set(&mut self, index: u64) -> Result<(), SpoolError> {
        let mut state = self.0.state();
        if index == state.slot.index {
            return Ok(());
        }
        let slot = Slot { index, ..state.slot };
        // Nobody sees that it has moved before it is written: what it has passed may go.
        self.0.write(&mut state, slot)?;
        // Whoever starts next finds the file by its name.
        if self.0.is_named(&state) { Ok(()) } else { self.0.look(&mut state) }
    }

    /// Makes its place survive a power cut.
    ///
    /// # Errors
    /// [`SpoolError`] when the system refuses.
    pub fn sync(&self) -> Result<(), SpoolError> {
        self.0.sync(&self.0.state())
    }

    /// Removes it.
    ///
    /// # Errors
    /// [`SpoolError`] when the system refuses.
    pub fn remove(self) -> Result<(), SpoolError> {
        let (mut state, path) = (self.0.state(), &self.0.path);
        fs::remove_file(path).map_err(SpoolError::io("removing", path))?;
        state.over = true;
        path.parent().map_or(Ok(()), segment::sync_dir)
    }
}

/// All cursors of a spool, by name.
///
/// # Errors
/// [`SpoolError`] when the directory or one of them cannot be read.
pub fn cursors(dir: &Path) -> Result<Vec<Position>, SpoolError> {
    Ok(all(dir)?.into_iter().map(|(position, _)| position).collect())
}

/// Those of them that can be read; the damaged ones are told by whoever needs all of them.
///
/// # Errors
/// [`SpoolError`] when the directory cannot be read.
pub fn readable_cursors(dir: &Path) -> Result<Vec<Position>, SpoolError> {
    Ok(each(dir)?.into_iter().flatten().map(|(position, _)| position).collect())
}

/// All cursors, with their files.
pub(super) fn all(dir: &Path) -> Result<Vec<(Position, File)>, SpoolError> {
    let mut found = each(dir)?.into_iter().collect::<Result<Vec<_>, _>>()?;
    found.sort_unstable_by(|(a, _), (b, _)| a.name.cmp(&b.name));
    Ok(found)
}

/// What became of reading each cursor.
type Each = Vec<Result<(Position, File), SpoolError>>;

fn each(dir: &Path) -> Result<Each, SpoolError> {
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
            opened => opened.map_err(SpoolError::io("opening", &path)),
        };
        found.push(file.and_then(|file| {
            let Slot { spool, index, hold, .. } = read(&file, &path)?;
            Ok((Position { name: name.to_owned(), spool, index, hold }, file))
        }));
    }
    Ok(found)
}

/// Opens a cursor's file for this process alone, if there is one.
fn take(path: &Path) -> Result<Option<File>, SpoolError> {
    match OpenOptions::new().read(true).write(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        opened => {
            let file = opened.map_err(SpoolError::io("opening", path))?;
            lock(&file, path)?;
            Ok(Some(file))
        }
    }
}

fn lock(file: &File, path: &Path) -> Result<(), SpoolError> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(SpoolError::CursorTaken(path.to_owned())),
        Err(TryLockError::Error(source)) => Err(SpoolError::io("locking", path)(source)),
    }
}

/// Makes a cursor's file for this process alone. Its name appears once both slots are written and have their room, since
/// a cursor moves on a full disk, too.
fn make(path: &Path, slot: &mut Slot) -> Result<File, SpoolError> {
    let draft = path.with_extension("new");
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(PRIVATE);
    let file = options.open(&draft).map_err(SpoolError::io("opening", &draft))?;
    // What another process makes at this moment is its own.
    lock(&file, path)?;
    if path.exists() {
        return Err(SpoolError::CursorTaken(path.to_owned()));
    }
    let mut write = || {
        file.set_len(0)?;
        for _ in 0..2 {
            slot.number += 1;
            file.write_all_at(&slot.encode(), slot.number % 2 * APART)?;
        }
        file.sync_all()?;
        fs::rename(&draft, path)
    };
    let written = write().inspect_err(|_| drop(fs::remove_file(&draft)));
    written.map_err(SpoolError::io("writing", path))?;
    path.parent().map_or(Ok(()), segment::sync_dir)?;
    Ok(file)
}

fn path(dir: &Path, name: &str) -> Result<PathBuf, SpoolError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    match (1..=NAME_MAX).contains(&name.len()) && name.bytes().all(plain) {
        true => Ok(dir.join(format!("cursor-{name}.pos"))),
        false => Err(SpoolError::CursorName),
    }
}

/// The newer slot.
fn read(file: &File, path: &Path) -> Result<Slot, SpoolError> {
    let mut slots = [None; 2];
    for (slot, at) in slots.iter_mut().zip([0, APART]) {
        let mut bytes = [0; SLOT];
        match file.read_exact_at(&mut bytes, at) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => continue,
            read => read.map_err(SpoolError::io("reading", path))?,
        }
        *slot = Slot::decode(&bytes);
    }
    let newest = slots.into_iter().flatten().max_by_key(|slot| slot.number);
    newest.ok_or_else(|| SpoolError::CursorDamaged(path.to_owned()))
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
        let position =
            Position { name: "nats".into(), spool: SPOOL, index: 9, hold: Hold::Required };
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
            let at = usize::try_from(cursor.0.state().slot.number % 2 * APART).unwrap();
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
        drop(cursor);
        let mut bytes = fs::read(&file).unwrap();
        (bytes[33], bytes[4096 + 33]) = (!bytes[33], !bytes[4096 + 33]);
        for damaged in [bytes, Vec::new(), vec![0; 4160], vec![7; 10]] {
            fs::write(&file, damaged).unwrap();
            assert!(matches!(open(dir.path()), Err(SpoolError::CursorDamaged(_))));
            assert!(matches!(cursors(dir.path()), Err(SpoolError::CursorDamaged(_))));
            assert_eq!(readable_cursors(dir.path()).unwrap(), []);
        }
        // Its place is known elsewhere, too.
        let renewed = Cursor::open_or_renew(dir.path(), "nats", SPOOL, 3, Hold::Required);
        assert_eq!(renewed.unwrap().index(), 3);
        assert_eq!(open(dir.path()).unwrap().index(), 3);
    }
}
