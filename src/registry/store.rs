//! The registry's file: its tables, its transactions, and what becomes of it when the disk fails.
//!
//! After an error of the disk the engine does nothing more with the file until it is opened anew, and nobody
//! knows whether the change that failed is in it. So it is let go then and opened again by the next request.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use redb::{Database, Table, TableDefinition, WriteTransaction};

use super::error::{RegistryError, opening};

pub(super) const DEVICES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("devices");
pub(super) const IDS: TableDefinition<'_, [u8; 8], &str> = TableDefinition::new("ids");
pub(super) const CREDENTIALS: TableDefinition<'_, [u8; 32], &str> =
    TableDefinition::new("credentials");
pub(super) const REFUSED: TableDefinition<'_, [u8; 32], i64> = TableDefinition::new("refused");
pub(super) const MARKS: TableDefinition<'_, [u8; 40], u64> = TableDefinition::new("marks");

/// The view holds what is looked up; pages are read to be changed only. More would grow with every
/// session's mark, and with eight times as much 100,000 devices are imported in 1.3 s instead of 1.8.
const CACHE_BYTES: usize = 4 * 1024 * 1024;

/// The file, open or let go.
pub(super) struct Store {
    path: PathBuf,
    database: Mutex<Option<Arc<Database>>>,
}

impl Store {
    /// Makes an empty file where none exists.
    pub(super) fn create(path: &Path) -> Result<Self, RegistryError> {
        // The file is made first, with its mode: the engine would make it readable by all.
        crate::identity::write_new(path, &[], 0o600).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => RegistryError::Exists(path.to_owned()),
            _ => RegistryError::Io { path: path.to_owned(), error },
        })?;
        let database = Database::builder()
            .set_cache_size(CACHE_BYTES)
            .create(path)
            .map_err(|error| opening(path, error))?;
        let store = Self::of(path, database);
        let database = store.get()?.0;
        store.change(&database, |_| Ok(()))?;
        Ok(store)
    }

    /// Opens an existing file and verifies all of it.
    pub(super) fn open(path: &Path) -> Result<Self, RegistryError> {
        Ok(Self::of(path, open(path)?))
    }

    fn of(path: &Path, database: Database) -> Self {
        Self { path: path.to_owned(), database: Mutex::new(Some(Arc::new(database))) }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The open file, and whether it was opened anew: then it may hold what was reported as failed.
    pub(super) fn get(&self) -> Result<(Arc<Database>, bool), RegistryError> {
        let mut slot = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(database) = &*slot {
            return Ok((Arc::clone(database), false));
        }
        let database = Arc::new(open(&self.path)?);
        *slot = Some(Arc::clone(&database));
        Ok((database, true))
    }

    /// Passes a result on; the file is let go where the engine has given it up.
    pub(super) fn noted<T>(&self, result: Result<T, RegistryError>) -> Result<T, RegistryError> {
        if result.as_ref().is_err_and(RegistryError::is_given_up) {
            *self.database.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        result
    }

    /// Runs a change in a transaction that is durable when this returns, or has not happened; after an error of the
    /// disk it may have.
    pub(super) fn change<T>(
        &self,
        database: &Database,
        change: impl FnOnce(&mut Tables<'_>) -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        let changed = || {
            let write = database.begin_write()?;
            let changed = Tables::open(&write).and_then(|mut tables| change(&mut tables));
            match changed {
                Ok(value) => write.commit().map(|()| value).map_err(Into::into),
                Err(error) => {
                    // What went wrong first is what is told.
                    let _ = write.abort();
                    Err(error)
                }
            }
        };
        self.noted(changed())
    }
}

fn open(path: &Path) -> Result<Database, RegistryError> {
    Database::builder()
        .set_cache_size(CACHE_BYTES)
        // Otherwise the engine trusts a file that was closed cleanly, and panics later.
        .set_check_integrity_on_open(true)
        .open(path)
        .map_err(|error| opening(path, error))
}

/// The tables of one write transaction.
pub(super) struct Tables<'txn> {
    pub(super) devices: Table<'txn, &'static str, &'static [u8]>,
    pub(super) ids: Table<'txn, [u8; 8], &'static str>,
    pub(super) credentials: Table<'txn, [u8; 32], &'static str>,
    pub(super) refused: Table<'txn, [u8; 32], i64>,
    pub(super) marks: Table<'txn, [u8; 40], u64>,
}

impl<'txn> Tables<'txn> {
    fn open(write: &'txn WriteTransaction) -> Result<Self, RegistryError> {
        Ok(Self {
            devices: write.open_table(DEVICES)?,
            ids: write.open_table(IDS)?,
            credentials: write.open_table(CREDENTIALS)?,
            refused: write.open_table(REFUSED)?,
            marks: write.open_table(MARKS)?,
        })
    }
}
