//! The registry's file: its tables, its transactions, and what becomes of it when the disk fails.
//!
//! After an error of the disk the engine does nothing more with the file until it is opened anew, and nobody
//! knows whether the change that failed is in it. So it is let go then and opened again by the next request,
//! where the disk may lack what the kernel shows of it as a [copy](database).
//!
//! The engine keeps two commits and falls back to the older one, without a word, when a page of the newer one
//! does not match its checksum. A single flipped bit would so undo the last change: a revoked device would be
//! back. Therefore each change is followed by a second commit that changes nothing but a number. Then both
//! commits that the engine keeps hold the change, and whatever bit flips, the change is there or the file is
//! refused. The number tells whether the second commit is missing: it is odd in between.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use duet_telemetry::catalogue::FILES_RENEWED;
use redb::{Database, ReadableDatabase, ReadableTable, Table, TableDefinition, WriteTransaction};

use super::Name;
use super::error::{Damage, RegistryError, opening};
use super::keys::{KeyCell, KeyChanges, KeyFile};
use super::record::{self, Record};
use super::renew::Predecessor;
use crate::database::{self, Known};
use crate::identity::{self, Seen, State};

pub(super) const DEVICES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("devices");
pub(super) const IDS: TableDefinition<'_, [u8; 8], &str> = TableDefinition::new("ids");
pub(super) const CREDENTIALS: TableDefinition<'_, [u8; 32], &str> =
    TableDefinition::new("credentials");
pub(super) const REFUSED: TableDefinition<'_, [u8; 32], i64> = TableDefinition::new("refused");
pub(super) const MARKS: TableDefinition<'_, [u8; 40], u64> = TableDefinition::new("marks");
/// The newest early reading of an (id, credential) pair, by its identity.
pub(super) const LAST: TableDefinition<'_, [u8; 40], [u8; 16]> = TableDefinition::new("last");
/// The first eight bytes of a credential's fingerprint, and the (id, credential) pair they stand for.
pub(super) const SHORT: TableDefinition<'_, [u8; 8], [u8; 40]> = TableDefinition::new("short");
/// What is said of a device, by its name; there is none where nothing is said.
pub(super) const LABELS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("labels");
/// Credentials that renewals have left, by the names of their devices.
pub(super) const PREDECESSORS: TableDefinition<'_, &str, &[u8]> =
    TableDefinition::new("predecessors");
/// Tokens with which devices register themselves, by their ids.
pub(super) const TOKENS: TableDefinition<'_, [u8; 8], &[u8]> = TableDefinition::new("tokens");
/// The names of devices that registered themselves, by token and key.
pub(super) const ENROLLED: TableDefinition<'_, [u8; 40], &str> = TableDefinition::new("enrolled");
/// Where the marks of the spool were read up to: the spool's id and an index, big-endian.
pub(super) const CURSOR: TableDefinition<'_, (), [u8; 24]> = TableDefinition::new("cursor");
const PAIRS: TableDefinition<'_, (), u64> = TableDefinition::new("pairs");
/// Which registry this is, made at random with it.
const ID: TableDefinition<'_, (), [u8; 16]> = TableDefinition::new("id");

/// The number of the last change in a registry that is only just made.
const MADE: u64 = 2;

/// The view holds what is looked up; pages are read to be changed only. More would grow with every
/// session's mark, and with eight times as much 100,000 devices are imported in 1.3 s instead of 1.8.
const CACHE_BYTES: usize = 4 * 1024 * 1024;

/// Room for revocations where the disk has no other, at least: enough to open a file that was not closed and for many of them,
/// which use pages again.
const ROOM: u64 = 256 << 10;

/// The file, open or let go.
pub(super) struct Store {
    path: PathBuf,
    known: Arc<Known>,
    seen: Seen,
    /// Whether nothing said how far the registry had come when it was opened.
    unseen: bool,
    id: [u8; 16],
    database: Mutex<Option<Arc<Database>>>,
    /// What the file says while it is let go and cannot be written.
    shown: Mutex<Option<Arc<Database>>>,
    pub(super) keys: Arc<KeyFile>,
    /// Held for reading by whoever reads the tables: a key that is to be overwritten may be of a row that such a one
    /// still sees.
    readers: RwLock<()>,
}

impl Store {
    /// Makes an empty file where none exists. One that is cut short by the end of the process or of the machine
    /// is not found in the registry's place.
    pub(super) fn create(path: &Path) -> Result<Self, RegistryError> {
        if path.symlink_metadata().is_ok() {
            return Err(RegistryError::Exists(path.to_owned()));
        }
        let failed = |error| RegistryError::Io { path: path.to_owned(), error };
        let draft = path.with_extension("draft");
        match std::fs::remove_file(&draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        // The file is made first, with its mode: the engine would make it readable by all.
        identity::write_new(&draft, &[], 0o600).map_err(failed)?;
        let made = Database::builder()
            .set_cache_size(CACHE_BYTES)
            .create(&draft)
            .map_err(|error| opening(&draft, error))
            .and_then(|database| {
                let mut id = [0; 16];
                getrandom::fill(&mut id).map_err(|_| failed(io::Error::other("no randomness")))?;
                name(&database, id)?;
                KeyFile::create(path, id)?;
                let keys = Arc::new(KeyFile::open(path, id, &[], false)?);
                change(&database, &keys, true, |_| Ok(())).and_then(|_| pair(&database))
            });
        // The engine has closed it.
        let seen = Seen::beside(path);
        let placed = made
            .and_then(|_| seen.forget().map_err(failed))
            .and_then(|()| identity::rename_new(&draft, path).map_err(failed));
        if let Err(error) = placed {
            let _ = std::fs::remove_file(&draft);
            return Err(error);
        }
        identity::sync_dir_of(path).map_err(failed)?;
        Self::open(path)
    }

    /// Opens an existing file and verifies all of it.
    pub(super) fn open(path: &Path) -> Result<Self, RegistryError> {
        let known = Arc::new(Known::with_room(ROOM));
        // What is wrong with it is said below.
        let unclosed = database::is_unclosed(path).unwrap_or(false);
        let database = open_with_room(path, &known)?;
        let (seen, found) = (Seen::beside(path), state(&database)?);
        let last = seen.read();
        let unseen = last.is_none() && found.change > MADE;
        FILES_RENEWED.with(["seen"]).add(unseen.into());
        match last {
            Some(last) if last.id != found.id || last.change > found.change => {
                let seen = seen.path().to_owned();
                return Err(RegistryError::Older { path: path.to_owned(), seen });
            }
            Some(last) if last == found => {}
            _ => seen.tell(found),
        }
        let used = cells(path, &database)?;
        let keys = Arc::new(KeyFile::open(path, found.id, &used, unclosed)?);
        let (path, id) = (path.to_owned(), found.id);
        let database = Mutex::new(Some(Arc::new(database)));
        let (shown, readers) = (Mutex::new(None), RwLock::new(()));
        Ok(Self { path, known, seen, unseen, id, database, shown, keys, readers })
    }

    /// Looks whether the file could be opened, and changes nothing: how many keys it needs, or nothing where a start has to put
    /// it in order first, since whoever had it open was killed.
    pub(super) fn look(path: &Path) -> Result<Option<usize>, RegistryError> {
        allowed(path)?;
        let looked = catch_unwind(AssertUnwindSafe(|| {
            let builder = Database::builder().set_cache_size(CACHE_BYTES).open_read_only(path);
            let database = match builder {
                Err(redb::DatabaseError::RepairAborted) => return Ok(None),
                found => found.map_err(|error| opening(path, error))?,
            };
            let (seen, found) = (Seen::beside(path), state(&database)?);
            if seen.read().is_some_and(|last| last.id != found.id || last.change > found.change) {
                let seen = seen.path().to_owned();
                return Err(RegistryError::Older { path: path.to_owned(), seen });
            }
            let mut keys = 0;
            let file = KeyFile::look(path, found.id, &cells(path, &database)?)?;
            each_record(path, &database, |name, record| {
                let key = record.cell().zip(record.registration_key_digest());
                let (Some(file), Some((cell, digest))) = (&file, key) else { return Ok(()) };
                keys += 1;
                match file.get(cell, &digest)? {
                    Some(_) => Ok(()),
                    None => {
                        let detail = name.parse().map_or(Damage::Name, Damage::Key);
                        Err(RegistryError::Damaged { path: path.to_owned(), detail })
                    }
                }
            })?;
            Ok(Some(keys))
        }));
        looked.unwrap_or_else(|_| {
            Err(RegistryError::Damaged { path: path.to_owned(), detail: Damage::Structure })
        })
    }

    /// Forgets which registry was in this place: another one is to come there.
    pub(super) fn forget_seen(path: &Path) -> Result<(), RegistryError> {
        let seen = Seen::beside(path);
        seen.forget().map_err(|error| RegistryError::Io { path: seen.path().to_owned(), error })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The file that should have said how far the registry had come when it was opened, if it said nothing.
    pub(super) fn unseen(&self) -> Option<&Path> {
        self.unseen.then(|| self.seen.path())
    }

    /// The open file, and whether it was opened anew: then it may hold what was reported as failed.
    pub(super) fn get(&self) -> Result<(Arc<Database>, bool), RegistryError> {
        let mut slot = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(database) = &*slot {
            return Ok((Arc::clone(database), false));
        }
        self.in_place()?;
        let database = Arc::new(open_with_room(&self.path, &self.known)?);
        let _nobody_reads = self.readers.write().unwrap_or_else(PoisonError::into_inner);
        self.keys.settle(&cells(&self.path, &*database)?)?;
        *slot = Some(Arc::clone(&database));
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Ok((database, true))
    }

    /// A copy of the file, for who only reads: opened anew the file would be written.
    pub(super) fn copy_to_read(&self) -> Result<Arc<Database>, RegistryError> {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(copy) = &*shown {
            return Ok(Arc::clone(copy));
        }
        let copy = self.guarded(|| {
            database::open_copy(&self.path, CACHE_BYTES).map_err(|error| opening(&self.path, error))
        })?;
        Ok(Arc::clone(shown.insert(Arc::new(copy))))
    }

    /// Whether the file still has its name: a change to one without is lost, and another one in its place knows
    /// nothing of what was revoked here.
    pub(super) fn in_place(&self) -> Result<(), RegistryError> {
        match self.known.is_in_place(&self.path) {
            Ok(true) => self.keys.in_place(),
            Ok(false) => Err(RegistryError::Replaced(self.path.clone())),
            Err(error) => Err(RegistryError::Io { path: self.path.clone(), error }),
        }
    }

    /// Does something for which the room is there that was kept back.
    pub(super) fn in_need<T>(&self, work: impl FnOnce() -> T) -> T {
        self.known.in_need(work)
    }

    /// What has to be so before a change: the file has its name and, but for those in need of it, its room.
    fn may_change(&self) -> Result<(), RegistryError> {
        self.in_place()?;
        let kept = self.known.keep_room(&self.path);
        kept.map_err(|error| RegistryError::Io { path: self.path.clone(), error })
    }

    /// While this is held no key is overwritten.
    pub(super) fn reading(&self) -> RwLockReadGuard<'_, ()> {
        self.readers.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Passes a result on; the file is let go where the engine has given it up.
    fn noted<T>(&self, result: Result<T, RegistryError>) -> Result<T, RegistryError> {
        if result.as_ref().is_err_and(RegistryError::is_given_up) {
            *self.database.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        result
    }

    /// Works on the file, as [`noted`](Self::noted) says. The engine panics over a file that somebody has written into.
    pub(super) fn guarded<T>(
        &self,
        work: impl FnOnce() -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        let done = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
            Err(RegistryError::Damaged { path: self.path.clone(), detail: Damage::Structure })
        });
        self.noted(done)
    }

    /// Runs a change in a transaction that is durable when this returns, or has not happened; after an error of the
    /// disk it may have. No single damage to the file undoes it later. Keys that it has freed are overwritten.
    pub(super) fn change<T>(
        &self,
        database: &Database,
        run: impl FnOnce(&mut Tables<'_>) -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        self.may_change()?;
        let (changed, freed) = self.guarded(|| change(database, &self.keys, true, run))?;
        // The change is on disk, so it is no failure if this is not: the file is let go, and who opens it next
        // makes up for it.
        if let Ok(change) = self.guarded(|| pair(database)) {
            self.seen.tell(State { id: self.id, change });
            // Now neither of the commits that the engine keeps refers to them.
            if !freed.is_empty() {
                let _nobody_reads = self.readers.write().unwrap_or_else(PoisonError::into_inner);
                self.keys.wipe(freed);
            }
        }
        Ok(changed)
    }

    /// Runs a change as [`change`](Self::change) does, for which one commit is enough: if it is undone by damage,
    /// nothing is lost that was promised.
    pub(super) fn change_once<T>(
        &self,
        database: &Database,
        run: impl FnOnce(&mut Tables<'_>) -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        self.may_change()?;
        self.guarded(|| change(database, &self.keys, false, run)).map(|(changed, _)| changed)
    }

    /// Runs a change and undoes it.
    pub(super) fn attempt<T>(
        &self,
        database: &Database,
        run: impl FnOnce(&mut Tables<'_>) -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        let attempted = || {
            let write = database.begin_write()?;
            let mut keys = KeyChanges::new(&self.keys);
            let value = Tables::open(&write, &mut keys).and_then(|mut tables| run(&mut tables));
            let aborted = write.abort();
            // What failed first says why.
            let value = value?;
            aborted?;
            Ok(value)
        };
        self.guarded(attempted)
    }

    /// Copies the file and that of the keys to new ones while no change is under way.
    pub(super) fn copy(&self, database: &Database, to: &Path) -> Result<(), RegistryError> {
        let copied = || {
            self.in_place()?;
            // What was committed is in the file, and nobody writes to it while this transaction is open.
            let held = database.begin_write()?;
            let copied = database::copy(&self.path, to)
                .map_err(|error| RegistryError::Io { path: to.to_owned(), error })
                .and_then(|()| self.keys.copy(to, &cells(&self.path, database)?));
            held.abort()?;
            copied
        };
        self.guarded(copied)
    }
}

fn change<T>(
    database: &Database,
    keys: &Arc<KeyFile>,
    pairs: bool,
    run: impl FnOnce(&mut Tables<'_>) -> Result<T, RegistryError>,
) -> Result<(T, Vec<KeyCell>), RegistryError> {
    let write = database.begin_write()?;
    let mut keys = KeyChanges::new(keys);
    let changed = Tables::open(&write, &mut keys).and_then(|mut tables| {
        let value = run(&mut tables)?;
        if pairs {
            count_pair(&mut tables.pairs, 1)?;
        }
        Ok(value)
    });
    match changed.and_then(|value| keys.sync().map(|()| value)) {
        Ok(value) => {
            // Where this fails nobody knows which keys the file needs; who opens it next does.
            let freed = keys.kept();
            write.commit()?;
            Ok((value, freed))
        }
        Err(error) => {
            // What went wrong first is what is told.
            let _ = write.abort();
            Err(error)
        }
    }
}

/// The second commit of a pair: its number, which this returns, is even.
fn pair(database: &Database) -> Result<u64, RegistryError> {
    let write = database.begin_write()?;
    let number = count_pair(&mut write.open_table(PAIRS)?, 0)?;
    write.commit()?;
    Ok(number)
}

/// Gives a new registry its id.
fn name(database: &Database, id: [u8; 16]) -> Result<(), RegistryError> {
    let write = database.begin_write()?;
    {
        let mut ids = write.open_table(ID)?;
        ids.insert((), id)?;
    }
    Ok(write.commit()?)
}

/// Which registry it is, and how far. One without an id was made before there were any.
fn state(database: &impl ReadableDatabase) -> Result<State, RegistryError> {
    let read = database.begin_read()?;
    let id = match read.open_table(ID) {
        Ok(ids) => ids.get(())?.map_or([0; 16], |id| id.value()),
        Err(redb::TableError::TableDoesNotExist(_)) => [0; 16],
        Err(error) => return Err(error.into()),
    };
    let change = match read.open_table(PAIRS) {
        Ok(pairs) => pairs.get(())?.map_or(0, |count| count.value()),
        Err(redb::TableError::TableDoesNotExist(_)) => 0,
        Err(error) => return Err(error.into()),
    };
    Ok(State { id, change })
}

/// The cells of all keys that rows refer to.
fn cells(path: &Path, database: &impl ReadableDatabase) -> Result<Vec<KeyCell>, RegistryError> {
    let mut cells = Vec::new();
    each_record(path, database, |_, record| {
        cells.extend(record.cell());
        Ok(())
    })?;
    Ok(cells)
}

/// Visits every device that rows tell of, and those that renewals have replaced, by their names.
fn each_record(
    path: &Path,
    database: &impl ReadableDatabase,
    mut each: impl FnMut(&str, &Record) -> Result<(), RegistryError>,
) -> Result<(), RegistryError> {
    let damaged = |name: &str| {
        let detail = name.parse::<Name>().map_or(Damage::Name, Damage::Record);
        RegistryError::Damaged { path: path.to_owned(), detail }
    };
    let read = database.begin_read()?;
    for (table, is_devices) in [(DEVICES, true), (PREDECESSORS, false)] {
        let rows = match read.open_table(table) {
            Ok(rows) => rows,
            Err(redb::TableError::TableDoesNotExist(_)) => continue,
            Err(error) => return Err(error.into()),
        };
        for row in rows.iter()? {
            let (name, bytes) = row?;
            let record = match is_devices {
                true => Record::decode(bytes.value()),
                false => Predecessor::decode(bytes.value()).map(|left| left.record),
            };
            let is_earlier = is_devices && bytes.value().first() == Some(&record::EARLIER);
            match record {
                Some(record) => each(name.value(), &record)?,
                None if is_earlier => return Err(RegistryError::Earlier(path.to_owned())),
                None => return Err(damaged(name.value())),
            }
        }
    }
    Ok(())
}

/// Whether a change was the last thing that was committed, without its second commit.
fn is_single(database: &Database) -> Result<bool, RegistryError> {
    match database.begin_read()?.open_table(PAIRS) {
        Ok(pairs) => Ok(pairs.get(())?.is_some_and(|count| count.value() % 2 == 1)),
        Err(redb::TableError::TableDoesNotExist(_)) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// On a disk without room the engine cannot even recover a file, so it gets the room that was kept back.
fn open_with_room(path: &Path, known: &Arc<Known>) -> Result<Database, RegistryError> {
    match open(path, known) {
        Err(error) if error.is_no_room() => known.in_need(|| open(path, known)),
        opened => opened,
    }
}

fn allowed(path: &Path) -> Result<(), RegistryError> {
    match identity::mode_for_others(path) {
        Ok(None) => Ok(()),
        Ok(Some(mode)) => Err(RegistryError::OpenToOthers { path: path.to_owned(), mode }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(RegistryError::Missing(path.to_owned()))
        }
        Err(error) => Err(RegistryError::Io { path: path.to_owned(), error }),
    }
}

fn open(path: &Path, known: &Arc<Known>) -> Result<Database, RegistryError> {
    allowed(path)?;
    // The engine's own checks miss some damage to the first bytes of a file, over which it panics.
    let opened = catch_unwind(AssertUnwindSafe(|| {
        let opened = database::open(path, CACHE_BYTES, known);
        let database = opened.map_err(|error| opening(path, error))?;
        if is_single(&database)? {
            pair(&database)?;
        }
        Ok(database)
    }));
    opened.unwrap_or_else(|_| {
        Err(RegistryError::Damaged { path: path.to_owned(), detail: Damage::Structure })
    })
}

/// The tables of one write transaction.
pub(super) struct Tables<'txn> {
    pub(super) devices: Table<'txn, &'static str, &'static [u8]>,
    pub(super) ids: Table<'txn, [u8; 8], &'static str>,
    pub(super) credentials: Table<'txn, [u8; 32], &'static str>,
    pub(super) refused: Table<'txn, [u8; 32], i64>,
    pub(super) marks: Table<'txn, [u8; 40], u64>,
    pub(super) last: Table<'txn, [u8; 40], [u8; 16]>,
    pub(super) short: Table<'txn, [u8; 8], [u8; 40]>,
    pub(super) cursor: Table<'txn, (), [u8; 24]>,
    pub(super) labels: Table<'txn, &'static str, &'static [u8]>,
    pub(super) predecessors: Table<'txn, &'static str, &'static [u8]>,
    pub(super) tokens: Table<'txn, [u8; 8], &'static [u8]>,
    pub(super) enrolled: Table<'txn, [u8; 40], &'static str>,
    pub(super) pairs: Table<'txn, (), u64>,
    pub(super) keys: &'txn mut KeyChanges,
}

impl<'txn> Tables<'txn> {
    fn open(
        write: &'txn WriteTransaction,
        keys: &'txn mut KeyChanges,
    ) -> Result<Self, RegistryError> {
        Ok(Self {
            devices: write.open_table(DEVICES)?,
            ids: write.open_table(IDS)?,
            credentials: write.open_table(CREDENTIALS)?,
            refused: write.open_table(REFUSED)?,
            marks: write.open_table(MARKS)?,
            last: write.open_table(LAST)?,
            short: write.open_table(SHORT)?,
            cursor: write.open_table(CURSOR)?,
            labels: write.open_table(LABELS)?,
            predecessors: write.open_table(PREDECESSORS)?,
            tokens: write.open_table(TOKENS)?,
            enrolled: write.open_table(ENROLLED)?,
            pairs: write.open_table(PAIRS)?,
            keys,
        })
    }

    /// Says that a device's key is kept no longer, if it has one.
    pub(super) fn free_key(&mut self, record: &Record) {
        if let Some(cell) = record.cell() {
            self.keys.free(cell);
        }
    }
}

/// Counts on to the next number that is odd (`remainder` 1) or even (0).
pub(super) fn count_pair(
    pairs: &mut Table<'_, (), u64>,
    remainder: u64,
) -> Result<u64, RegistryError> {
    let count = pairs.get(())?.map_or(0, |count| count.value()).wrapping_add(1);
    let count = if count % 2 == remainder { count } else { count.wrapping_add(1) };
    pairs.insert((), count)?;
    Ok(count)
}
