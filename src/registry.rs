//! The devices this gateway knows, kept on disk in one `redb` file, with small ones beside it: the registration keys, to
//! which change it has come (so that an older copy is known), and room for a revocation on a full disk.
//!
//! One process owns the file at a time: the running gateway, or a command while none runs. Each
//! change is one durable transaction, all or nothing, and reaches the in-memory [`View`] that
//! shards look devices up in only after it is on disk. A credential that was revoked is refused
//! for ever, even after its device was removed: by its fingerprint and by its key, so
//! that neither a new certificate over the stolen key nor another id with it brings it back.
//!
//! A registration key lies in a [file of its own](keys) in clear, for the handshake needs it; nobody but its owner may
//! read it, and a key that is revoked or removed is overwritten there.
//!
//! Freshness marks belong to an (id, credential) pair and are never deleted or lowered but by a
//! restore, after which devices are challenged. They are saved some seconds late: after a crash a mark may be old, which only means that replays of
//! HELLOs from those seconds are recognised later (they never confirm a session).

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use duet_core::Device;
use duet_protocol::identity::{DeviceId, Fingerprint, RegistrationKey};
use redb::{
    Database, ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTable,
    ReadableTableMetadata, TableError,
};
use sha2::{Digest, Sha256};

use crate::identity::Validity;

mod change;
mod enrol;
mod error;
mod keys;
mod labels;
mod marks;
mod record;
mod renew;
mod snapshot;
mod store;
mod view;

pub use duet_core::{SourceSet, UnknownSource};
pub use enrol::{Claim, Enrolled, Refusal, Terms, TokenId};
pub use error::{Damage, NotAdded, RegistryError};
pub use keys::FILE as KEYS_FILE;
pub use labels::{BadLabel, Labels, MAX_TAGS, Relabel, Tags, Word, matches};
pub use marks::{CommitMark, Kept, SpoolCursor, short};
pub use record::{BadName, Enrolment, Name, NewDevice};
pub use view::{Mark, View};

use record::Record;
use renew::Renewing;
use store::{DEVICES, LABELS, LAST, MARKS, PREDECESSORS, Store};

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
    /// Told apart by this: registrations under one id.
    pub registration: u64,
    /// When it was registered, Unix seconds.
    pub created_s: i64,
    /// When it was revoked, if it was.
    pub revoked_s: Option<i64>,
    /// Its certificate's window.
    pub validity: Option<Validity>,
    /// The last `fresh` that is on disk.
    pub mark: u64,
    /// What people say of it.
    pub labels: Labels,
    /// Until when the credential before this one is good, where a renewal has left one. Lists do not tell.
    pub renewing_s: Option<i64>,
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
        Ok(Self::of(Store::create(path)?))
    }

    /// Opens an existing registry and verifies the whole file.
    ///
    /// # Errors
    /// [`RegistryError::Missing`], [`RegistryError::InUse`], [`RegistryError::Damaged`], or what
    /// the file system says.
    pub fn open(path: &Path) -> Result<Self, RegistryError> {
        Ok(Self::of(Store::open(path)?))
    }

    /// Looks whether a registry could be opened, and changes nothing. In words for people, what was found.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    pub fn look(path: &Path) -> Result<String, RegistryError> {
        let found = Store::look(path)?;
        let said = match found {
            Some(keys) => format!("whole, with {keys} registration keys"),
            None => "was not closed; a start puts it in order".into(),
        };
        Ok(format!("{}: {said}", path.display()))
    }

    /// Forgets which registry was in this place, so that another one or an older one is taken there.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn forget_seen(path: &Path) -> Result<(), RegistryError> {
        Store::forget_seen(path)
    }

    fn of(store: Store) -> Self {
        Self { store, view: Mutex::new(None) }
    }

    /// What an operator should know of how it was opened.
    #[must_use]
    pub fn told(&self) -> Option<String> {
        let seen = self.store.unseen()?.display();
        Some(format!(
            "{seen}: it was gone or damaged, which says how far the registry has come, and is made anew: nobody can say whether {} \
             is an older copy. If it is, devices that were revoked since are let in: revoke them again (`duet audit show` has \
             them)",
            self.path().display()
        ))
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
        self.store.guarded(|| {
            self.each_device(&database, |device, renewing| {
                view.insert(Arc::new(device));
                if let Some((new, renewing)) = renewing {
                    view.note_renewing(new, renewing);
                }
            })
        })?;
        Ok(Arc::clone(slot.get_or_insert(view)))
    }

    /// One device.
    ///
    /// # Errors
    /// [`RegistryError::Unknown`].
    pub fn show(&self, name: &Name) -> Result<Entry, RegistryError> {
        self.read(|database| {
            let read = database.begin_read()?;
            let record = self.existing(&read.open_table(DEVICES)?, name)?;
            let labels = self.labels(labels(&read)?.as_ref(), name)?;
            let entry = self.entry(name.clone(), &record, labels, &read.open_table(MARKS)?)?;
            let left = match read.open_table(PREDECESSORS) {
                Ok(table) => self.predecessor(&table, name)?,
                Err(TableError::TableDoesNotExist(_)) => None,
                Err(error) => return Err(error.into()),
            };
            Ok(Entry { renewing_s: left.map(|left| left.until_s), ..entry })
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
            let all_labels = labels(&read)?;
            let from = after.map_or(Unbounded, |name| Excluded(name.as_str()));
            let rows = devices.range::<&str>((from, Unbounded))?.take(limit);
            rows.map(|row| {
                let (name, bytes) = row?;
                let (name, record) = self.decode(name.value(), bytes.value())?;
                let labels = self.labels(all_labels.as_ref(), &name)?;
                self.entry(name, &record, labels, &marks)
            })
            .collect()
        })
    }

    /// At most `limit` devices that may connect, from after `after`, with all that it takes to register them
    /// elsewhere, and where to go on. Fewer than `limit` are no sign of the end.
    ///
    /// # Errors
    /// [`RegistryError::Damaged`] if a record cannot be read.
    pub fn export(
        &self,
        after: Option<&Name>,
        limit: usize,
    ) -> Result<(Vec<NewDevice>, Option<Name>), RegistryError> {
        use std::ops::Bound::{Excluded, Unbounded};
        self.read(|database| {
            let read = database.begin_read()?;
            let devices = read.open_table(DEVICES)?;
            let all_labels = labels(&read)?;
            let from = after.map_or(Unbounded, |name| Excluded(name.as_str()));
            let (mut page, mut last) = (Vec::new(), None);
            for row in devices.range::<&str>((from, Unbounded))?.take(limit) {
                let (name, bytes) = row?;
                let (name, record) = self.decode(name.value(), bytes.value())?;
                let enrolment = match record.revoked_s {
                    None => record.enrolment(self.key(&name, &record)?),
                    Some(_) => None,
                };
                if let Some(enrolment) = enrolment {
                    let labels = self.labels(all_labels.as_ref(), &name)?;
                    let (name, sources) = (name.clone(), record.sources);
                    page.push(NewDevice { name, enrolment, sources, made: false, labels });
                }
                last = Some(name);
            }
            Ok((page, last))
        })
    }

    /// Whether the file that is open still has its name.
    ///
    /// # Errors
    /// [`RegistryError::Replaced`].
    pub fn in_place(&self) -> Result<(), RegistryError> {
        self.store.in_place()
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
            view.forget_all_renewing();
            self.store.guarded(|| {
                self.each_device(&database, |device, renewing| {
                    gone.remove(&device.credential.id);
                    view.renew(device);
                    if let Some((new, renewing)) = renewing {
                        view.note_renewing(new, renewing);
                    }
                })
            })?;
            gone.iter().for_each(|id| view.remove(id));
        }
        Ok(database)
    }

    fn read<T>(
        &self,
        read: impl FnOnce(&Database) -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        let database = match self.ready() {
            Err(error) if error.is_unwritable() => self.store.copy_to_read()?,
            ready => ready?,
        };
        self.store.guarded(|| {
            let _keys_stay = self.store.reading();
            read(&database)
        })
    }

    /// Every device that may connect.
    fn each_device(
        &self,
        database: &Database,
        mut each: impl FnMut(Device, Option<(DeviceId, Renewing)>),
    ) -> Result<(), RegistryError> {
        let _keys_stay = self.store.reading();
        let read = database.begin_read()?;
        let (marks, last) = (read.open_table(MARKS)?, read.open_table(LAST)?);
        let all_labels = labels(&read)?;
        for row in read.open_table(DEVICES)?.iter()? {
            let (name, bytes) = row?;
            let (name, record) = self.decode(name.value(), bytes.value())?;
            if record.revoked_s.is_none() {
                let kept = Self::kept(&record, &marks, &last)?;
                let device = kept.put_in(self.device(&name, &record, self.key(&name, &record)?)?);
                device.set_expiry(self.labels(all_labels.as_ref(), &name)?.expires_s);
                each(device, None);
            }
        }
        self.each_predecessor(&read, |name, left| {
            let devices = read.open_table(DEVICES)?;
            let new = self.existing(&devices, &name)?.id;
            let kept = Self::kept(&left.record, &marks, &last)?;
            let key = self.key(&name, &left.record)?;
            let device = kept.put_in(self.device(&name, &left.record, key)?);
            let expires_s = self.labels(all_labels.as_ref(), &name)?.expires_s;
            let until_s = left.until_s;
            device.set_expiry(Some(expires_s.map_or(until_s, |end| end.min(until_s))));
            let old = left.record.id;
            let renewing = Renewing { name, old, until_s, first_mark: left.first_mark };
            each(device, Some((new, renewing)));
            Ok(())
        })
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
        labels: Labels,
        marks: &impl ReadableTable<[u8; 40], u64>,
    ) -> Result<Entry, RegistryError> {
        Ok(Entry {
            name,
            mode: record.mode(),
            id: record.id,
            fingerprint: record.fingerprint(),
            sources: record.sources,
            registration: record.registration.into(),
            created_s: record.created_s,
            revoked_s: record.revoked_s,
            validity: record.validity,
            mark: marks.get(mark_key(record))?.map_or(0, |mark| mark.value()),
            labels,
            renewing_s: None,
        })
    }

    /// What is said of a device; nothing where there is no table yet.
    fn labels(
        &self,
        labels: Option<&impl ReadableTable<&'static str, &'static [u8]>>,
        name: &Name,
    ) -> Result<Labels, RegistryError> {
        let Some(labels) = labels else { return Ok(Labels::default()) };
        let Some(bytes) = labels.get(name.as_str())? else { return Ok(Labels::default()) };
        Labels::decode(bytes.value()).ok_or_else(|| self.damaged(Damage::Record(name.clone())))
    }

    fn device(
        &self,
        name: &Name,
        record: &Record,
        key: Option<RegistrationKey>,
    ) -> Result<Device, RegistryError> {
        record.device(name, key).map_err(|_| self.damaged(Damage::Record(name.clone())))
    }

    /// A device's registration key, if it has one.
    fn key(&self, name: &Name, record: &Record) -> Result<Option<RegistrationKey>, RegistryError> {
        let (Some(cell), Some(digest)) = (record.cell(), record.registration_key_digest()) else {
            return Ok(None);
        };
        match self.store.keys.get(cell, &digest)? {
            None => Err(self.damaged(Damage::Key(name.clone()))),
            key => Ok(key),
        }
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

/// The table of labels, which a file from before there were any lacks.
fn labels(
    read: &ReadTransaction,
) -> Result<Option<ReadOnlyTable<&'static str, &'static [u8]>>, RegistryError> {
    match read.open_table(LABELS) {
        Ok(table) => Ok(Some(table)),
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(error.into()),
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
