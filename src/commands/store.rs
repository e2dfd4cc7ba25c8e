//! The queue's file: its rows, and its transactions. Knows nothing of what the rows mean for each other.
//!
//! As in the registry, each change is followed by a second commit that changes nothing but a number: the engine keeps two
//! commits and falls back to the older one, without a word, when a bit of the newer one has flipped. A command that was
//! withdrawn would so be waiting again. The number is odd while the second commit is missing.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use duet_protocol::identity::DeviceId;
use duet_telemetry::catalogue::FILES_RENEWED;
use redb::{
    Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError, Table, TableDefinition,
};
use thiserror::Error;

use super::entry::Entry;
use crate::database::{self, Known};
use crate::identity::{self, Seen, State, now_ms};

/// Commands by their ids.
const COMMANDS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("commands");
/// The last number that each device's commands were given.
const NUMBERS: TableDefinition<'_, [u8; 8], u32> = TableDefinition::new("numbers");
/// What there is one of: [`NEXT`], [`FLOOR`] and, where times are wrong, [`BEHIND_SINCE`].
const COUNTERS: TableDefinition<'_, &str, u64> = TableDefinition::new("counters");
/// The id of the next command.
const NEXT: &str = "next";
/// Above it lie the numbers of every device.
const FLOOR: &str = "floor";
/// From this time on, milliseconds, the times of commands are those of a clock that was not set.
const BEHIND_SINCE: &str = "behind since";
/// Which queue this is, made at random with it; there is none in one from before there were any.
const ID: &str = "id";
/// Counts commits: odd after a change, even after the commit that follows it.
const PAIRS: &str = "pairs";

/// Rows are read once and then only written.
const CACHE_BYTES: usize = 4 << 20;

/// Why the queue's file cannot be used.
#[derive(Debug, Error)]
pub enum StoreError {
    /// Another process holds it.
    #[error("{}: in use by another process", .0.display())]
    InUse(PathBuf),
    /// Others could read what devices are told to do, or change it.
    #[error("{}: mode {mode:04o} lets others read the commands; run `chmod 600 {}`", path.display(), path.display())]
    OpenToOthers {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The file that is open has lost its name.
    #[error("{}: this file was removed or replaced while it was in use, and what is queued now would be lost; put it back under its name", .0.display())]
    Replaced(PathBuf),
    /// Not the file that was here.
    #[error("{}: an older copy of the queue of commands, or another gateway's ({} tells): devices have had the numbers of what was queued since, and would take the result of the one command for another's. Put the newer file back, or move this one away and queue the commands anew", path.display(), seen.display())]
    Older {
        /// The file.
        path: PathBuf,
        /// Where it is kept which one was here.
        seen: PathBuf,
    },
    /// It is no queue, or not whole.
    #[error("{}: the queue of commands is damaged and was left as it is; move it away and queue the commands anew ({detail})", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: Flaw,
    },
    /// The system refused.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What it said.
        error: io::Error,
    },
    /// The storage engine failed in another way.
    #[error("{}: the queue of commands failed: {error}", path.display())]
    Storage {
        /// The file.
        path: PathBuf,
        /// What it said.
        error: Box<redb::Error>,
    },
}

/// What is wrong with a damaged file.
#[derive(Debug, Error)]
pub enum Flaw {
    /// Found by the storage engine.
    #[error("{0}")]
    Engine(Box<DatabaseError>),
    /// So much that the storage engine stumbled over it.
    #[error("its structure cannot be read")]
    Structure,
    /// A row that is none.
    #[error("command {0} cannot be read")]
    Row(u64),
    /// A counter is not there.
    #[error("a counter is missing")]
    Counter,
}

/// All that a store holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Loaded {
    pub(super) entries: Vec<Entry>,
    pub(super) numbers: Vec<(DeviceId, u32)>,
    pub(super) next_id: u64,
    pub(super) floor: u32,
    pub(super) behind_since_ms: Option<u64>,
}

/// What is to be changed in it at once.
#[derive(Clone, Debug, Default)]
pub(super) struct Change {
    /// Rows by their ids; `None` removes one.
    pub(super) rows: Vec<(u64, Option<Vec<u8>>)>,
    pub(super) numbers: Vec<(DeviceId, u32)>,
    pub(super) next_id: u64,
    pub(super) behind_since_ms: Option<u64>,
}

/// Where commands are kept.
pub(super) trait Store: Send {
    /// Reads everything, also after a failure.
    fn load(&mut self) -> Result<Loaded, StoreError>;

    /// Makes a change durable, or not at all. After an error nobody knows which, until it is loaded.
    fn save(&mut self, change: &Change) -> Result<(), StoreError>;
}

/// The file.
pub(super) struct Disk {
    path: PathBuf,
    known: Arc<Known>,
    seen: Seen,
    id: [u8; 16],
    /// After an error the engine does nothing more until the file is opened anew.
    database: Option<Database>,
}

impl Disk {
    /// Opens the file and verifies it, or makes an empty one.
    pub(super) fn open(path: PathBuf) -> Result<Self, StoreError> {
        if path.symlink_metadata().is_err() {
            create(&path)?;
        }
        let (known, seen) = (Arc::default(), Seen::beside(&path));
        let mut disk = Self { path, known, seen, id: [0; 16], database: None };
        disk.reopen()?;
        if let Some(database) = &disk.database {
            let found = state(database).map_err(|error| failed(&disk.path, error))?;
            let last = compare(&disk.path, found)?;
            if last.is_none() && found.change > 0 {
                FILES_RENEWED.with(["seen"]).add(1);
                tracing::warn!(
                    "{}: it was gone or damaged, which says how far the queue of commands has come, and is made anew: nobody can \
                     say whether {} is an older copy",
                    disk.seen.path().display(),
                    disk.path.display()
                );
            }
            if last != Some(found) {
                disk.seen.tell(found);
            }
            disk.id = found.id;
        }
        Ok(disk)
    }

    /// Opens the file, and makes up for the second commit where the process ended before it.
    fn reopen(&mut self) -> Result<(), StoreError> {
        // The engine panics over some kinds of damage.
        let opened = catch_unwind(AssertUnwindSafe(|| {
            let database = open(&self.path, &self.known)?;
            let paired = is_single(&database)
                .and_then(|single| if single { pair(&database).map(drop) } else { Ok(()) });
            paired.map(|()| database).map_err(|error| failed(&self.path, error))
        }));
        let damaged =
            |_| Err(StoreError::Damaged { path: self.path.clone(), detail: Flaw::Structure });
        self.database = Some(opened.unwrap_or_else(damaged)?);
        Ok(())
    }

    /// Whether the file still has its name.
    fn in_place(&self) -> Result<(), StoreError> {
        match self.known.is_in_place(&self.path) {
            Ok(true) => Ok(()),
            Ok(false) => Err(StoreError::Replaced(self.path.clone())),
            Err(error) => Err(StoreError::Io { path: self.path.clone(), error }),
        }
    }

    /// Works on the file, and lets it go where that fails. The engine panics over a file that somebody has written into.
    fn attempt<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let done = catch_unwind(AssertUnwindSafe(|| work(self))).unwrap_or_else(|_| {
            Err(StoreError::Damaged { path: self.path.clone(), detail: Flaw::Structure })
        });
        if done.is_err() {
            let gone = self.database.take();
            let _ = catch_unwind(AssertUnwindSafe(|| drop(gone)));
        }
        done
    }

    fn try_save(&mut self, change: &Change) -> Result<(), StoreError> {
        self.in_place()?;
        if self.database.is_none() {
            self.reopen()?;
        }
        let Some(database) = &self.database else { return Ok(()) };
        let written = write(database, change).and_then(|()| pair(database));
        let change = written.map_err(|error| failed(&self.path, error))?;
        self.seen.tell(State { id: self.id, change });
        Ok(())
    }

    fn try_load(&mut self) -> Result<Loaded, StoreError> {
        self.in_place()?;
        if self.database.is_none() {
            self.reopen()?;
        }
        let Some(database) = &self.database else { return Ok(Loaded::default()) };
        read(database, &self.path)
    }
}

fn failed(path: &Path, error: redb::Error) -> StoreError {
    let path = path.to_owned();
    match error {
        redb::Error::Io(error) => StoreError::Io { path, error },
        error => StoreError::Storage { path, error: Box::new(error) },
    }
}

/// Which queue it is, and how far.
fn state(database: &impl ReadableDatabase) -> Result<State, redb::Error> {
    let counters = database.begin_read()?.open_table(COUNTERS)?;
    let counter = |name| Ok::<_, redb::Error>(counters.get(name)?.map_or(0, |row| row.value()));
    let mut id = [0; 16];
    id[..8].copy_from_slice(&counter(ID)?.to_le_bytes());
    Ok(State { id, change: counter(PAIRS)? })
}

/// What is known of the file that was here, unless this one is older or another one.
fn compare(path: &Path, found: State) -> Result<Option<State>, StoreError> {
    let seen = Seen::beside(path);
    match seen.read() {
        Some(last) if last.id != found.id || last.change > found.change => {
            Err(StoreError::Older { path: path.to_owned(), seen: seen.path().to_owned() })
        }
        last => Ok(last),
    }
}

/// Reads everything.
fn read(database: &impl ReadableDatabase, path: &Path) -> Result<Loaded, StoreError> {
    let (mut loaded, mut flaw) = (Loaded::default(), None);
    let mut read = || -> Result<(), redb::Error> {
        let read = database.begin_read()?;
        for row in read.open_table(COMMANDS)?.iter()? {
            let (id, row) = row?;
            match Entry::decode(id.value(), row.value()) {
                Some(entry) => loaded.entries.push(entry),
                None => flaw = Some(Flaw::Row(id.value())),
            }
        }
        for row in read.open_table(NUMBERS)?.iter()? {
            let (device, number) = row?;
            loaded.numbers.push((DeviceId(device.value()), number.value()));
        }
        let counters = read.open_table(COUNTERS)?;
        let counter = |name| Ok::<_, redb::Error>(counters.get(name)?.map(|row| row.value()));
        loaded.behind_since_ms = counter(BEHIND_SINCE)?;
        let floor = counter(FLOOR)?.and_then(|floor| u32::try_from(floor).ok());
        match (counter(NEXT)?, floor) {
            (Some(next), Some(floor)) => (loaded.next_id, loaded.floor) = (next, floor),
            _ => flaw = Some(Flaw::Counter),
        }
        Ok(())
    };
    read().map_err(|error| failed(path, error))?;
    match flaw {
        None => Ok(loaded),
        Some(detail) => Err(StoreError::Damaged { path: path.to_owned(), detail }),
    }
}

/// Reads everything and changes nothing; `None` where a start has to put the file in order first, since whoever wrote
/// it last was killed.
pub(super) fn look(path: &Path) -> Result<Option<Loaded>, StoreError> {
    allowed(path)?;
    let opened = catch_unwind(AssertUnwindSafe(|| {
        let found = match Database::builder().set_cache_size(CACHE_BYTES).open_read_only(path) {
            Err(DatabaseError::RepairAborted) => return Ok(None),
            found => found.map_err(|error| refused(path, error))?,
        };
        compare(path, state(&found).map_err(|error| failed(path, error))?)?;
        read(&found, path).map(Some)
    }));
    opened.unwrap_or_else(|_| {
        Err(StoreError::Damaged { path: path.to_owned(), detail: Flaw::Structure })
    })
}

impl Store for Disk {
    fn load(&mut self) -> Result<Loaded, StoreError> {
        self.attempt(Self::try_load)
    }

    fn save(&mut self, change: &Change) -> Result<(), StoreError> {
        self.attempt(|disk| disk.try_save(change))
    }
}

fn write(database: &Database, change: &Change) -> Result<(), redb::Error> {
    let write = database.begin_write()?;
    {
        let mut commands = write.open_table(COMMANDS)?;
        for (id, row) in &change.rows {
            match row {
                Some(row) => drop(commands.insert(id, &row[..])?),
                None => drop(commands.remove(id)?),
            }
        }
        let mut numbers = write.open_table(NUMBERS)?;
        for (device, number) in &change.numbers {
            numbers.insert(device.0, number)?;
        }
        let mut counters = write.open_table(COUNTERS)?;
        counters.insert(NEXT, change.next_id)?;
        match change.behind_since_ms {
            Some(since_ms) => drop(counters.insert(BEHIND_SINCE, since_ms)?),
            None => drop(counters.remove(BEHIND_SINCE)?),
        }
        count_pair(&mut counters, 1)?;
    }
    Ok(write.commit()?)
}

/// The second commit of a pair: its number, which this returns, is even.
fn pair(database: &Database) -> Result<u64, redb::Error> {
    let write = database.begin_write()?;
    let number = count_pair(&mut write.open_table(COUNTERS)?, 0)?;
    write.commit()?;
    Ok(number)
}

/// Counts on to the next number that is odd (`remainder` 1) or even (0), and returns it.
fn count_pair(
    counters: &mut Table<'_, &'static str, u64>,
    remainder: u64,
) -> Result<u64, StorageError> {
    let last = counters.get(PAIRS)?.map_or(0, |count| count.value());
    let next = last.wrapping_add(if last % 2 == remainder { 2 } else { 1 });
    counters.insert(PAIRS, next)?;
    Ok(next)
}

/// Whether a change was the last thing that was committed.
fn is_single(database: &Database) -> Result<bool, redb::Error> {
    let counters = database.begin_read()?.open_table(COUNTERS)?;
    Ok(counters.get(PAIRS)?.is_some_and(|count| count.value() % 2 == 1))
}

/// Makes an empty file. One that is cut short by the end of the machine is not found in its place.
fn create(path: &Path) -> Result<(), StoreError> {
    let failed = |error| StoreError::Io { path: path.to_owned(), error };
    let draft = path.with_extension("draft");
    match std::fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    // The file is made first, with its mode: the engine would make it readable by all.
    identity::write_new(&draft, &[], 0o600).map_err(failed)?;
    let id = getrandom::u64().map_err(|error| failed(error.into()))?;
    let make = || -> Result<(), redb::Error> {
        let database = Database::builder().set_cache_size(CACHE_BYTES).create(&draft)?;
        let write = database.begin_write()?;
        write.open_table(COMMANDS)?;
        write.open_table(NUMBERS)?;
        let mut counters = write.open_table(COUNTERS)?;
        counters.insert(NEXT, 1)?;
        counters.insert(ID, id)?;
        counters.insert(FLOOR, u64::from(first_number()))?;
        drop(counters);
        Ok(write.commit()?)
    };
    // The engine has closed it by then.
    let placed = make()
        .map_err(|error| StoreError::Storage { path: draft.clone(), error: Box::new(error) })
        .and_then(|()| Seen::beside(path).forget().map_err(failed))
        .and_then(|()| identity::rename_new(&draft, path).map_err(failed));
    if let Err(error) = placed {
        let _ = std::fs::remove_file(&draft);
        return Err(error);
    }
    identity::sync_dir_of(path).map_err(failed)
}

/// Where the numbers of a new file begin: seconds since 2020. The file before it may have been lost, and a device takes
/// nothing under a number that it has had; with fewer than one command a second for each device, these are higher.
fn first_number() -> u32 {
    const YEAR_2020_S: u64 = 1_577_836_800;
    u32::try_from((now_ms() / 1_000).saturating_sub(YEAR_2020_S)).unwrap_or(0)
}

/// Refuses a file that others could read or change.
fn allowed(path: &Path) -> Result<(), StoreError> {
    let path = path.to_owned();
    match identity::mode_for_others(&path) {
        Ok(None) => Ok(()),
        Ok(Some(mode)) => Err(StoreError::OpenToOthers { path, mode }),
        Err(error) => Err(StoreError::Io { path, error }),
    }
}

/// Why the engine does not open a file.
fn refused(path: &Path, error: DatabaseError) -> StoreError {
    let path = path.to_owned();
    match error {
        DatabaseError::DatabaseAlreadyOpen => StoreError::InUse(path),
        DatabaseError::Storage(StorageError::Io(error))
            if !matches!(
                error.kind(),
                io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
            ) =>
        {
            StoreError::Io { path, error }
        }
        error => StoreError::Damaged { path, detail: Flaw::Engine(Box::new(error)) },
    }
}

fn open(path: &Path, known: &Arc<Known>) -> Result<Database, StoreError> {
    allowed(path)?;
    // The engine's own checks miss some damage to the first bytes of a file, over which it panics.
    let opened = catch_unwind(AssertUnwindSafe(|| database::open(path, CACHE_BYTES, known)));
    match opened {
        Ok(Ok(opened)) => Ok(opened),
        Ok(Err(error)) => Err(refused(path, error)),
        Err(_) => Err(StoreError::Damaged { path: path.to_owned(), detail: Flaw::Structure }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a queue whose file has these bytes holds.
    fn loaded(path: &Path, bytes: &[u8]) -> Result<Loaded, StoreError> {
        if path.exists() {
            std::fs::remove_file(path).unwrap();
        }
        Seen::beside(path).forget().unwrap();
        identity::write_new(path, bytes, 0o600).unwrap();
        Disk::open(path.to_owned())?.load()
    }

    #[test]
    fn since_when_times_are_wrong_is_kept_until_they_are_right() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("commands.redb");
        for behind_since_ms in [Some(5_000), Some(9_000), None] {
            let mut disk = Disk::open(path.clone()).unwrap();
            disk.save(&Change { next_id: 1, behind_since_ms, ..Change::default() }).unwrap();
            drop(disk);
            let loaded = Disk::open(path.clone()).unwrap().load().unwrap();
            assert_eq!(loaded.behind_since_ms, behind_since_ms);
        }
    }

    #[test]
    fn no_flipped_bit_brings_a_command_back_that_was_withdrawn() {
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let path = dir.path().join("commands.redb");
        let mut disk = Disk::open(path.clone()).unwrap();
        let numbers = (0..40u64).map(|number| (DeviceId(number.to_be_bytes()), 7)).collect();
        disk.save(&Change { numbers, next_id: 5, ..Change::default() }).unwrap();
        let before = std::fs::read(&path).unwrap();
        let numbers = vec![(DeviceId(7u64.to_be_bytes()), 8)];
        disk.save(&Change { numbers, next_id: 6, ..Change::default() }).unwrap();
        // As it lies there when the process is killed now.
        let after = std::fs::read(&path).unwrap();
        let hurt = dir.path().join("hurt.redb");
        assert_eq!(loaded(&hurt, &before).unwrap().next_id, 5);
        assert_eq!(loaded(&hurt, &after).unwrap().next_id, 6);

        let changed = |place: &usize| before.get(*place) != Some(&after[*place]);
        let written: Vec<_> = (320..after.len()).filter(changed).collect();
        let step = (written.len() / 100).max(1);
        let flips = (0..320).chain(written.into_iter().step_by(step));
        let (mut refused, mut tried) = (0, 0);
        for place in flips {
            let mut bytes = after.clone();
            bytes[place] ^= 1 << (place % 8);
            tried += 1;
            match loaded(&hurt, &bytes) {
                Ok(found) => assert_eq!(found.next_id, 6, "byte {place} undoes the change"),
                Err(StoreError::Damaged { .. } | StoreError::Storage { .. }) => refused += 1,
                Err(error) => panic!("byte {place}: {error}"),
            }
        }
        assert!(tried > 300 && refused > 20, "{refused} of {tried} refused");
    }

    /// The engine reads what it has not in its cache, and trusts it.
    #[test]
    fn a_queue_that_somebody_writes_into_is_an_error_and_ends_no_thread() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("commands.redb");
        let mut disk = Disk::open(path.clone()).unwrap();
        let rows = (0..200).map(|id| (id, Some(vec![7; 2_000]))).collect();
        disk.save(&Change { rows, next_id: 2, ..Change::default() }).unwrap();
        // Nothing is in the cache of one that is opened anew but what the look at it needed.
        drop(disk);
        let mut disk = Disk::open(path.clone()).unwrap();
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, vec![0; whole.len()]).unwrap();
        let mut change = Change { next_id: 3, ..Change::default() };
        let failed = (3..99).find_map(|next_id| {
            change.next_id = next_id;
            change.rows = vec![(next_id, None)];
            disk.save(&change).err()
        });
        assert!(matches!(failed, Some(StoreError::Damaged { .. })), "{failed:?}");
        assert!(disk.save(&change).is_err());
        std::fs::write(&path, &whole).unwrap();
        disk.reopen().unwrap();
        disk.save(&change).unwrap();
    }

    /// A device has had the numbers of what was queued since, and would answer a new command with the result of an old one.
    #[test]
    fn an_older_copy_and_another_queue_are_refused_and_a_new_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("commands.redb");
        let seen = dir.path().join("commands.seen");
        let change = |next_id| Change { next_id, ..Change::default() };
        let open = || Disk::open(path.clone()).and_then(|mut disk| disk.load());
        let put = |bytes: &[u8]| {
            std::fs::remove_file(&path).unwrap();
            identity::write_new(&path, bytes, 0o600).unwrap();
        };
        Disk::open(path.clone()).unwrap().save(&change(2)).unwrap();
        let older = std::fs::read(&path).unwrap();
        Disk::open(path.clone()).unwrap().save(&change(3)).unwrap();
        let newest = std::fs::read(&path).unwrap();
        put(&older);
        let refused = open().unwrap_err();
        assert!(matches!(refused, StoreError::Older { .. }), "{refused}");
        assert!(matches!(look(&path), Err(StoreError::Older { .. })));
        put(&newest);
        assert_eq!(open().unwrap().next_id, 3);
        // Another gateway's.
        let other = dir.path().join("other.redb");
        (4..9).for_each(|id| Disk::open(other.clone()).unwrap().save(&change(id)).unwrap());
        put(&std::fs::read(&other).unwrap());
        assert!(matches!(open(), Err(StoreError::Older { .. })));
        // Lost, or moved away: a new one begins.
        std::fs::remove_file(&path).unwrap();
        assert_eq!(open().unwrap().next_id, 1);
        // What says it is made again, also where it is damaged.
        put(&newest);
        for bytes in [None, Some(&[7; 64][..])] {
            std::fs::remove_file(&seen).unwrap();
            bytes.iter().for_each(|bytes| std::fs::write(&seen, bytes).unwrap());
            assert_eq!(open().unwrap().next_id, 3);
            assert_eq!(Seen::beside(&path).read().unwrap().change, 4);
        }
        put(&older);
        assert!(matches!(open(), Err(StoreError::Older { .. })));
    }

    #[test]
    fn a_file_that_lost_its_name_takes_nothing_until_it_has_it_again() {
        let dir = tempfile::tempdir().unwrap();
        let (path, aside) = (dir.path().join("commands.redb"), dir.path().join("aside"));
        let mut disk = Disk::open(path.clone()).unwrap();
        let change = Change { next_id: 2, ..Change::default() };
        disk.save(&change).unwrap();
        std::fs::rename(&path, &aside).unwrap();
        assert!(matches!(disk.save(&change), Err(StoreError::Replaced(_))));
        std::fs::copy(&aside, &path).unwrap();
        assert!(matches!(disk.load(), Err(StoreError::Replaced(_))));
        std::fs::rename(&aside, &path).unwrap();
        disk.reopen().unwrap();
        disk.save(&change).unwrap();
    }
}
