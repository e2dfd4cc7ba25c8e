//! The devices this gateway knows, kept on disk in one `redb` file.
//!
//! One process owns the file at a time: the running gateway, or a command while none runs. Each
//! change is one durable transaction, all or nothing, and reaches the in-memory [`View`] that
//! shards look devices up in only after it is on disk. A credential that was revoked is refused
//! for ever, even after its device was removed: by its fingerprint and by its key, so
//! that neither a new certificate over the stolen key nor another id with it brings it back.
//!
//! Freshness marks belong to an (id, credential) pair and are never deleted or lowered. They are
//! saved some seconds late: after a crash a mark may be old, which only means that replays of
//! HELLOs from those seconds are recognised later (they never confirm a session).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use duet_protocol::identity::{DeviceId, Fingerprint};
use redb::{
    Database, DatabaseError, ReadableDatabase, ReadableTable, ReadableTableMetadata, StorageError,
    Table, TableDefinition, WriteTransaction,
};
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::identity::{Reason, Utc, Validity};

mod record;
mod sources;
mod view;

pub use record::{BadName, Enrolment, Name, NewDevice};
pub use sources::{SourceSet, UnknownSource};
pub use view::{Device, Mark, View};

use record::Record;

/// The registry's file in the state directory.
pub const FILE: &str = "registry.redb";

const DEVICES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("devices");
const IDS: TableDefinition<'_, [u8; 8], &str> = TableDefinition::new("ids");
const CREDENTIALS: TableDefinition<'_, [u8; 32], &str> = TableDefinition::new("credentials");
const REFUSED: TableDefinition<'_, [u8; 32], i64> = TableDefinition::new("refused");
const MARKS: TableDefinition<'_, [u8; 40], u64> = TableDefinition::new("marks");

/// The view holds what is looked up; pages are read to be changed only. More would grow with every
/// session's mark, and with eight times as much 100,000 devices are imported in 1.3 s instead of 1.8.
const CACHE_BYTES: usize = 4 * 1024 * 1024;

/// Why the registry did not do what it was asked. Nothing was changed then.
#[derive(Debug, Error)]
pub enum RegistryError {
    /// No file.
    #[error("{}: no registry here; `duet init` makes one in a new directory, a lost one comes from a backup", .0.display())]
    Missing(PathBuf),
    /// A file exists where a new one was to be made.
    #[error("{}: a registry exists already", .0.display())]
    Exists(PathBuf),
    /// Another process holds the file.
    #[error("{}: in use by another process", .0.display())]
    InUse(PathBuf),
    /// The content cannot be trusted.
    #[error("{}: the registry is damaged and was left as it is; restore it from a backup ({detail})", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What the storage engine found.
        detail: Damage,
    },
    /// The file system refused.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What it said.
        error: io::Error,
    },
    /// The storage engine failed in another way.
    #[error("the registry failed: {0}")]
    Storage(Box<redb::Error>),
    /// A device of this name is registered and not revoked.
    #[error("{0}: a device of this name is registered; revoke or remove it first")]
    NameTaken(Name),
    /// The id is in use.
    #[error("{name}: id {id} belongs to device {owner}")]
    IdTaken {
        /// The device that was to be added.
        name: Name,
        /// The id.
        id: DeviceId,
        /// Who has it.
        owner: Name,
    },
    /// The credential is in use: each device has its own, so that to revoke one is to revoke its key.
    #[error("{name}: this certificate or key belongs to device {owner}; make a new key")]
    CredentialTaken {
        /// The device that was to be added.
        name: Name,
        /// Who has it.
        owner: Name,
    },
    /// The credential was revoked.
    #[error("{name}: this credential was revoked on {at} and stays refused; make a new key")]
    Refused {
        /// The device that was to be added.
        name: Name,
        /// When.
        at: Utc,
    },
    /// The certificate cannot be used.
    #[error("{name}: {reason}")]
    Certificate {
        /// The device that was to be added.
        name: Name,
        /// Why not.
        reason: Reason,
    },
    /// No such device.
    #[error("{0}: no device of this name")]
    Unknown(Name),
    /// Revoked before.
    #[error("{0}: revoked already, on {1}")]
    RevokedAlready(Name, Utc),
}

/// What is wrong with a damaged file.
#[derive(Debug, Error)]
pub enum Damage {
    /// Found by the storage engine.
    #[error("{0}")]
    Engine(Box<DatabaseError>),
    /// A record that this version cannot read.
    #[error("the record of {0} cannot be read")]
    Record(Name),
    /// A record under a name that is none.
    #[error("a device has an impossible name")]
    Name,
}

/// One device as commands show it: everything but its secrets.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its name.
    pub name: Name,
    /// How it proves itself.
    pub mode: duet_protocol::profile::Mode,
    /// How it names itself.
    pub id: DeviceId,
    /// `cD`.
    pub fingerprint: Fingerprint,
    /// The key sources it may use.
    pub sources: SourceSet,
    /// When it was registered, Unix seconds.
    pub created_s: i64,
    /// When it was revoked, if it was.
    pub revoked_s: Option<i64>,
    /// Its certificate's window.
    pub validity: Option<Validity>,
    /// The last `fresh` that is on disk.
    pub mark: u64,
}

/// The open registry.
pub struct Registry {
    path: PathBuf,
    database: Database,
    /// Taken for the whole of each change, so that the view sees changes in the order of the disk.
    view: Mutex<Option<Arc<View>>>,
}

impl Registry {
    /// Makes an empty registry where no file exists.
    ///
    /// # Errors
    /// [`RegistryError::Exists`], or what the file system says.
    pub fn create(path: &Path) -> Result<Self, RegistryError> {
        // The file is made first, with its mode: the engine would make it readable by all.
        crate::identity::write_new(path, &[], 0o600).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => RegistryError::Exists(path.to_owned()),
            _ => RegistryError::Io { path: path.to_owned(), error },
        })?;
        let database = Database::builder()
            .set_cache_size(CACHE_BYTES)
            .create(path)
            .map_err(|error| opening(path, error))?;
        let registry = Self { path: path.to_owned(), database, view: Mutex::new(None) };
        registry.change(|_| Ok(()))?;
        Ok(registry)
    }

    /// Opens an existing registry and verifies the whole file.
    ///
    /// # Errors
    /// [`RegistryError::Missing`], [`RegistryError::InUse`], [`RegistryError::Damaged`], or what
    /// the file system says.
    pub fn open(path: &Path) -> Result<Self, RegistryError> {
        let database = Database::builder()
            .set_cache_size(CACHE_BYTES)
            // Otherwise the engine trusts a file that was closed cleanly, and panics later.
            .set_check_integrity_on_open(true)
            .open(path)
            .map_err(|error| opening(path, error))?;
        Ok(Self { path: path.to_owned(), database, view: Mutex::new(None) })
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The view that shards look devices up in; loaded by the first call, kept in step with every
    /// change afterwards.
    ///
    /// # Errors
    /// [`RegistryError::Damaged`] if a record cannot be read.
    pub fn view(&self) -> Result<Arc<View>, RegistryError> {
        let mut slot = self.lock();
        if let Some(view) = &*slot {
            return Ok(Arc::clone(view));
        }
        let view = Arc::new(View::default());
        let read = self.database.begin_read()?;
        let marks = read.open_table(MARKS)?;
        for row in read.open_table(DEVICES)?.iter()? {
            let (name, bytes) = row?;
            let (name, record) = self.decode(name.value(), bytes.value())?;
            if record.revoked_s.is_none() {
                let device = self.device(&name, &record)?;
                let mark = marks.get(mark_key(&record))?.map_or(0, |mark| mark.value());
                view.insert(Arc::new(device.with_mark(mark)));
            }
        }
        *slot = Some(Arc::clone(&view));
        Ok(view)
    }

    /// Registers one device, now.
    ///
    /// # Errors
    /// See [`add_all`](Self::add_all).
    pub fn add(&self, device: NewDevice, now_s: i64) -> Result<(), RegistryError> {
        self.add_all([device], now_s).map(drop)
    }

    /// Registers devices in one transaction: all of them or, if one is refused, none. Returns how
    /// many.
    ///
    /// # Errors
    /// The first refusal, which names the device at fault.
    pub fn add_all(
        &self,
        devices: impl IntoIterator<Item = NewDevice>,
        now_s: i64,
    ) -> Result<usize, RegistryError> {
        let slot = self.lock();
        let added = self.change(|tables| {
            let mut added = Vec::new();
            for device in devices {
                let name = device.name.clone();
                let record = Record::new(device, now_s)
                    .map_err(|reason| RegistryError::Certificate { name: name.clone(), reason })?;
                self.admit(tables, &name, &record)?;
                // A credential that was removed and comes back resumes its mark.
                let mark = tables.marks.get(mark_key(&record))?.map_or(0, |mark| mark.value());
                added.push(Arc::new(self.device(&name, &record)?.with_mark(mark)));
            }
            Ok(added)
        })?;
        let count = added.len();
        if let Some(view) = &*slot {
            added.into_iter().for_each(|device| view.insert(device));
        }
        Ok(count)
    }

    /// Ends a device's right to connect, for ever under this credential. Returns its id: the
    /// caller ends its sessions.
    ///
    /// # Errors
    /// [`RegistryError::Unknown`] or [`RegistryError::RevokedAlready`].
    pub fn revoke(&self, name: &Name, now_s: i64) -> Result<DeviceId, RegistryError> {
        let slot = self.lock();
        let id = self.change(|tables| {
            let mut record = self.existing(&tables.devices, name)?;
            if let Some(at) = record.revoked_s {
                return Err(RegistryError::RevokedAlready(name.clone(), Utc(at)));
            }
            record.revoked_s = Some(now_s);
            tables.devices.insert(name.as_str(), record.encode().as_slice())?;
            for credential in self.credentials(name, &record)? {
                tables.refused.insert(credential, now_s)?;
            }
            Ok(record.id)
        })?;
        if let Some(view) = &*slot {
            view.remove(&id);
        }
        Ok(id)
    }

    /// Forgets a device. A credential revoked before stays refused, and marks stay. Returns its
    /// id: the caller ends its sessions.
    ///
    /// # Errors
    /// [`RegistryError::Unknown`].
    pub fn remove(&self, name: &Name) -> Result<DeviceId, RegistryError> {
        let slot = self.lock();
        let id = self.change(|tables| {
            let record = self.existing(&tables.devices, name)?;
            self.forget(tables, name, &record)?;
            Ok(record.id)
        })?;
        if let Some(view) = &*slot {
            view.remove(&id);
        }
        Ok(id)
    }

    /// One device.
    ///
    /// # Errors
    /// [`RegistryError::Unknown`].
    pub fn show(&self, name: &Name) -> Result<Entry, RegistryError> {
        let read = self.database.begin_read()?;
        let record = self.existing(&read.open_table(DEVICES)?, name)?;
        self.entry(name.clone(), &record, &read.open_table(MARKS)?)
    }

    /// At most `limit` devices in the order of their names, from after `after`.
    ///
    /// # Errors
    /// [`RegistryError::Damaged`] if a record cannot be read.
    pub fn list(&self, after: Option<&Name>, limit: usize) -> Result<Vec<Entry>, RegistryError> {
        use std::ops::Bound::{Excluded, Unbounded};
        let read = self.database.begin_read()?;
        let marks = read.open_table(MARKS)?;
        let devices = read.open_table(DEVICES)?;
        let from = after.map_or(Unbounded, |name| Excluded(name.as_str()));
        let rows = devices.range::<&str>((from, Unbounded))?.take(limit);
        rows.map(|row| {
            let (name, bytes) = row?;
            let (name, record) = self.decode(name.value(), bytes.value())?;
            self.entry(name, &record, &marks)
        })
        .collect()
    }

    /// How many devices are on disk, revoked ones included.
    ///
    /// # Errors
    /// Those of the storage engine.
    pub fn len(&self) -> Result<u64, RegistryError> {
        Ok(self.database.begin_read()?.open_table(DEVICES)?.len()?)
    }

    /// Whether no device is on disk.
    ///
    /// # Errors
    /// Those of the storage engine.
    pub fn is_empty(&self) -> Result<bool, RegistryError> {
        Ok(self.len()? == 0)
    }

    /// Saves freshness marks in one transaction; a mark on disk is never lowered.
    ///
    /// # Errors
    /// Those of the storage engine; nothing was saved then.
    pub fn save_marks(&self, marks: impl IntoIterator<Item = Mark>) -> Result<(), RegistryError> {
        self.change(|tables| {
            for mark in marks {
                let key = key_of(&mark.id, &mark.fingerprint);
                let saved = tables.marks.get(key)?.map_or(0, |saved| saved.value());
                if mark.value > saved {
                    tables.marks.insert(key, mark.value)?;
                }
            }
            Ok(())
        })
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<View>>> {
        // The slot is only ever replaced whole, so a panic elsewhere leaves it sound.
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a change in a transaction that is durable when this returns, or has not happened.
    fn change<T>(
        &self,
        change: impl FnOnce(&mut Tables<'_>) -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        let write = self.database.begin_write()?;
        let changed = Tables::open(&write).and_then(|mut tables| change(&mut tables));
        match changed {
            Ok(value) => write.commit().map(|()| value).map_err(Into::into),
            Err(error) => {
                write.abort()?;
                Err(error)
            }
        }
    }

    /// Checks a new device against everything that is registered, and writes it.
    fn admit(
        &self,
        tables: &mut Tables<'_>,
        name: &Name,
        record: &Record,
    ) -> Result<(), RegistryError> {
        let credentials = self.credentials(name, record)?;
        for credential in &credentials {
            if let Some(at) = tables.refused.get(credential)? {
                return Err(RegistryError::Refused { name: name.clone(), at: Utc(at.value()) });
            }
        }
        let before = match self.existing(&tables.devices, name) {
            Ok(record) => Some(record),
            Err(RegistryError::Unknown(_)) => None,
            Err(error) => return Err(error),
        };
        if let Some(before) = before {
            if before.revoked_s.is_none() {
                return Err(RegistryError::NameTaken(name.clone()));
            }
            self.forget(tables, name, &before)?;
        }
        if let Some(owner) = tables.ids.get(record.id.0)? {
            let owner = self.name(owner.value())?;
            return Err(RegistryError::IdTaken { name: name.clone(), id: record.id, owner });
        }
        for credential in credentials {
            if let Some(owner) = tables.credentials.get(credential)? {
                let owner = self.name(owner.value())?;
                return Err(RegistryError::CredentialTaken { name: name.clone(), owner });
            }
            tables.credentials.insert(credential, name.as_str())?;
        }
        tables.ids.insert(record.id.0, name.as_str())?;
        tables.devices.insert(name.as_str(), record.encode().as_slice())?;
        Ok(())
    }

    fn forget(
        &self,
        tables: &mut Tables<'_>,
        name: &Name,
        record: &Record,
    ) -> Result<(), RegistryError> {
        tables.ids.remove(record.id.0)?;
        for credential in self.credentials(name, record)? {
            tables.credentials.remove(credential)?;
        }
        tables.devices.remove(name.as_str())?;
        Ok(())
    }

    /// What a device is known by, and what revoking it refuses for ever: its fingerprint, and its key.
    fn credentials(&self, name: &Name, record: &Record) -> Result<Vec<[u8; 32]>, RegistryError> {
        let mut credentials = vec![record.fingerprint().0];
        if let Some(certificate) = record.certificate().transpose() {
            let certificate =
                certificate.map_err(|_| self.damaged(Damage::Record(name.clone())))?;
            let key = Sha256::new_with_prefix(b"duet key").chain_update(certificate.key.0);
            credentials.push(key.finalize().into());
        }
        credentials.extend(record.registration_key_digest());
        Ok(credentials)
    }

    fn existing(
        &self,
        devices: &impl ReadableTable<&'static str, &'static [u8]>,
        name: &Name,
    ) -> Result<Record, RegistryError> {
        let bytes = devices.get(name.as_str())?;
        let bytes = bytes.ok_or_else(|| RegistryError::Unknown(name.clone()))?;
        self.decode(name.as_str(), bytes.value()).map(|(_, record)| record)
    }

    fn entry(
        &self,
        name: Name,
        record: &Record,
        marks: &impl ReadableTable<[u8; 40], u64>,
    ) -> Result<Entry, RegistryError> {
        let certificate = record.certificate();
        let certificate = certificate.map_err(|_| self.damaged(Damage::Record(name.clone())))?;
        Ok(Entry {
            name,
            mode: record.mode(),
            id: record.id,
            fingerprint: record.fingerprint(),
            sources: record.sources,
            created_s: record.created_s,
            revoked_s: record.revoked_s,
            validity: certificate.map(|certificate| certificate.validity),
            mark: marks.get(mark_key(record))?.map_or(0, |mark| mark.value()),
        })
    }

    fn device(&self, name: &Name, record: &Record) -> Result<Device, RegistryError> {
        record.device(name).map_err(|_| self.damaged(Damage::Record(name.clone())))
    }

    fn decode(&self, name: &str, bytes: &[u8]) -> Result<(Name, Record), RegistryError> {
        let name = self.name(name)?;
        match Record::decode(bytes) {
            Some(record) => Ok((name, record)),
            None => Err(self.damaged(Damage::Record(name))),
        }
    }

    fn name(&self, name: &str) -> Result<Name, RegistryError> {
        name.parse().map_err(|BadName| self.damaged(Damage::Name))
    }

    fn damaged(&self, detail: Damage) -> RegistryError {
        RegistryError::Damaged { path: self.path.clone(), detail }
    }
}

/// The tables of one write transaction.
struct Tables<'txn> {
    devices: Table<'txn, &'static str, &'static [u8]>,
    ids: Table<'txn, [u8; 8], &'static str>,
    credentials: Table<'txn, [u8; 32], &'static str>,
    refused: Table<'txn, [u8; 32], i64>,
    marks: Table<'txn, [u8; 40], u64>,
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

fn mark_key(record: &Record) -> [u8; 40] {
    key_of(&record.id, &record.fingerprint())
}

fn key_of(id: &DeviceId, fingerprint: &Fingerprint) -> [u8; 40] {
    let mut key = [0; 40];
    key[..8].copy_from_slice(&id.0);
    key[8..].copy_from_slice(&fingerprint.0);
    key
}

fn opening(path: &Path, error: DatabaseError) -> RegistryError {
    let path = path.to_owned();
    match error {
        DatabaseError::DatabaseAlreadyOpen => RegistryError::InUse(path),
        DatabaseError::Storage(StorageError::Io(error)) => match error.kind() {
            io::ErrorKind::NotFound => RegistryError::Missing(path),
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                let error = Box::new(DatabaseError::Storage(StorageError::Io(error)));
                RegistryError::Damaged { path, detail: Damage::Engine(error) }
            }
            _ => RegistryError::Io { path, error },
        },
        error => RegistryError::Damaged { path, detail: Damage::Engine(Box::new(error)) },
    }
}

macro_rules! storage_errors {
    ($($error:ty),*) => {$(
        impl From<$error> for RegistryError {
            fn from(error: $error) -> Self {
                Self::Storage(Box::new(error.into()))
            }
        }
    )*};
}
storage_errors!(redb::TransactionError, redb::TableError, redb::StorageError, redb::CommitError);

#[cfg(test)]
mod tests;
