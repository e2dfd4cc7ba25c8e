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

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use duet_core::Device;
use duet_protocol::identity::{DeviceId, Fingerprint};
use redb::{Database, ReadableDatabase, ReadableTable, ReadableTableMetadata};
use sha2::{Digest, Sha256};

use crate::identity::{Utc, Validity};

mod error;
mod record;
mod store;
mod view;

pub use duet_core::{SourceSet, UnknownSource};
pub use error::{Damage, NotAdded, RegistryError};
pub use record::{BadName, Enrolment, Name, NewDevice};
pub use view::{Mark, View};

use record::Record;
use store::{DEVICES, MARKS, Store, Tables};

/// The registry's file in the state directory.
pub const FILE: &str = "registry.redb";

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
    store: Store,
    /// Taken for the whole of each change, so that the view sees changes in the order of the disk.
    view: Mutex<Option<Arc<View>>>,
}

impl Registry {
    /// Makes an empty registry where no file exists.
    ///
    /// # Errors
    /// [`RegistryError::Exists`], or what the file system says.
    pub fn create(path: &Path) -> Result<Self, RegistryError> {
        Ok(Self { store: Store::create(path)?, view: Mutex::new(None) })
    }

    /// Opens an existing registry and verifies the whole file.
    ///
    /// # Errors
    /// [`RegistryError::Missing`], [`RegistryError::InUse`], [`RegistryError::Damaged`], or what
    /// the file system says.
    pub fn open(path: &Path) -> Result<Self, RegistryError> {
        Ok(Self { store: Store::open(path)?, view: Mutex::new(None) })
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.store.path()
    }

    /// The view that shards look devices up in; loaded by the first call, kept in step with every
    /// change afterwards.
    ///
    /// # Errors
    /// [`RegistryError::Damaged`] if a record cannot be read.
    pub fn view(&self) -> Result<Arc<View>, RegistryError> {
        if let Some(view) = &*self.lock() {
            return Ok(Arc::clone(view));
        }
        let database = self.ready()?;
        let mut slot = self.lock();
        let view = Arc::new(View::default());
        self.store.noted(self.each_device(&database, |device| view.insert(Arc::new(device))))?;
        Ok(Arc::clone(slot.get_or_insert(view)))
    }

    /// Registers one device, now.
    ///
    /// # Errors
    /// See [`add_all`](Self::add_all).
    pub fn add(&self, device: NewDevice, now_s: i64) -> Result<(), RegistryError> {
        self.add_all([device], now_s).map(drop).map_err(|refused| refused.error)
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
    ) -> Result<usize, NotAdded> {
        let database = self.ready().map_err(NotAdded::from)?;
        let slot = self.lock();
        let mut at_fault = None;
        let added = self.store.change(&database, |tables| {
            let mut added = Vec::new();
            for (index, device) in devices.into_iter().enumerate() {
                at_fault = Some(index);
                let name = device.name.clone();
                let record = Record::new(device, now_s)
                    .map_err(|reason| RegistryError::Certificate { name: name.clone(), reason })?;
                self.admit(tables, &name, &record)?;
                // A credential that was removed and comes back resumes its mark.
                let mark = tables.marks.get(mark_key(&record))?.map_or(0, |mark| mark.value());
                added.push(Arc::new(self.device(&name, &record)?.with_mark(mark)));
            }
            at_fault = None;
            Ok(added)
        });
        let added = added.map_err(|error| NotAdded { index: at_fault, error })?;
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
        let database = self.ready()?;
        let slot = self.lock();
        let id = self.store.change(&database, |tables| {
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
        let database = self.ready()?;
        let slot = self.lock();
        let id = self.store.change(&database, |tables| {
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
        self.read(|database| {
            let read = database.begin_read()?;
            let record = self.existing(&read.open_table(DEVICES)?, name)?;
            self.entry(name.clone(), &record, &read.open_table(MARKS)?)
        })
    }

    /// At most `limit` devices in the order of their names, from after `after`.
    ///
    /// # Errors
    /// [`RegistryError::Damaged`] if a record cannot be read.
    pub fn list(&self, after: Option<&Name>, limit: usize) -> Result<Vec<Entry>, RegistryError> {
        use std::ops::Bound::{Excluded, Unbounded};
        self.read(|database| {
            let read = database.begin_read()?;
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
        })
    }

    /// How many devices are on disk, revoked ones included.
    ///
    /// # Errors
    /// Those of the storage engine.
    pub fn len(&self) -> Result<u64, RegistryError> {
        self.read(|database| Ok(database.begin_read()?.open_table(DEVICES)?.len()?))
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
        let database = self.ready()?;
        self.store.change(&database, |tables| {
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

    /// The open file. Where it had to be opened anew, the view is brought in step with it: a change that was
    /// reported as failed may be in it.
    fn ready(&self) -> Result<Arc<Database>, RegistryError> {
        let (database, anew) = self.store.get()?;
        if anew && let Some(view) = &*self.lock() {
            let mut gone = view.ids();
            self.store.noted(self.each_device(&database, |device| {
                gone.remove(&device.credential.id);
                view.renew(device);
            }))?;
            gone.iter().for_each(|id| view.remove(id));
        }
        Ok(database)
    }

    fn read<T>(
        &self,
        read: impl FnOnce(&Database) -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        let database = self.ready()?;
        self.store.noted(read(&database))
    }

    /// Every device that may connect.
    fn each_device(
        &self,
        database: &Database,
        mut each: impl FnMut(Device),
    ) -> Result<(), RegistryError> {
        let read = database.begin_read()?;
        let marks = read.open_table(MARKS)?;
        for row in read.open_table(DEVICES)?.iter()? {
            let (name, bytes) = row?;
            let (name, record) = self.decode(name.value(), bytes.value())?;
            if record.revoked_s.is_none() {
                let mark = marks.get(mark_key(&record))?.map_or(0, |mark| mark.value());
                each(self.device(&name, &record)?.with_mark(mark));
            }
        }
        Ok(())
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
        RegistryError::Damaged { path: self.store.path().to_owned(), detail }
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

#[cfg(test)]
mod tests;
