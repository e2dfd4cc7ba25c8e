//! Registering, revoking and removing devices: what is checked, and what is written in which table.

use std::sync::Arc;

use duet_core::Device;
use duet_protocol::identity::DeviceId;
use duet_protocol::mark::Mark;
use duet_protocol::reading::ReadingId;
use redb::ReadableTable;

use super::record::Record;
use super::store::Tables;
use super::{
    Entry, Labels, Name, NewDevice, NotAdded, Registry, RegistryError, Relabel, key_of, mark_key,
};
use crate::identity::{Utc, now_s};

impl Registry {
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
                added.push(self.register(tables, device, now_s)?);
            }
            at_fault = None;
            Ok(added)
        });
        let added = added.map_err(|error| NotAdded { index: at_fault, error })?;
        let count = added.len();
        if let Some(view) = &*slot {
            view.insert_all(&added);
        }
        Ok(count)
    }

    /// Finds out which of these devices [`add_all`](Self::add_all) would refuse, each with its place; nothing is
    /// changed. A device that would be refused is as if it were not among them.
    ///
    /// # Errors
    /// Those of the storage engine.
    pub fn check_all(
        &self,
        devices: impl IntoIterator<Item = NewDevice>,
        now_s: i64,
    ) -> Result<Vec<(usize, RegistryError)>, RegistryError> {
        let database = self.ready()?;
        self.store.attempt(&database, |tables| {
            let mut refused = Vec::new();
            for (index, device) in devices.into_iter().enumerate() {
                let (name, labels) = (device.name.clone(), device.labels.clone());
                let inserted = Record::new(device, 0, now_s)
                    .map_err(|reason| RegistryError::Certificate { name: name.clone(), reason })
                    .and_then(|(record, _)| self.insert(tables, &name, &record, &labels));
                match inserted {
                    Err(error) if error.is_refusal() => refused.push((index, error)),
                    inserted => inserted?,
                }
            }
            Ok(refused)
        })
    }

    /// Changes what is said of a device, whether or not it may connect. Sessions that it has go on.
    ///
    /// # Errors
    /// [`RegistryError::Unknown`] or [`RegistryError::Label`].
    pub fn relabel(&self, name: &Name, change: &Relabel) -> Result<Entry, RegistryError> {
        let database = self.ready()?;
        let slot = self.lock();
        let entry = self.store.change(&database, |tables| {
            let record = self.existing(&tables.devices, name)?;
            let labels = self.labels(Some(&tables.labels), name)?.changed(change);
            let labels =
                labels.map_err(|reason| RegistryError::Label { name: name.clone(), reason })?;
            Self::put_labels(tables, name, &labels)?;
            self.entry(name.clone(), &record, labels, &tables.marks)
        })?;
        let expires_s = entry.labels.expires_s;
        if let Some(view) = &*slot {
            if let Some(device) = view.lookup(&entry.id) {
                device.set_expiry(expires_s);
            }
            if let Some((old, until_s)) = view.left_by(&entry.id)
                && let Some(device) = view.lookup(&old)
            {
                device.set_expiry(Some(expires_s.map_or(until_s, |end| end.min(until_s))));
            }
        }
        Ok(entry)
    }

    /// Ends a device's right to connect, for ever under this credential. Returns its id: the
    /// caller ends its sessions.
    ///
    /// # Errors
    /// [`RegistryError::Unknown`] or [`RegistryError::RevokedAlready`].
    pub fn revoke(&self, name: &Name, now_s: i64) -> Result<DeviceId, RegistryError> {
        self.end(std::slice::from_ref(name), |tables, name| self.revoke_one(tables, name, now_s))
            .map(|ids| ids[0])
    }

    /// Revokes devices in one transaction: all of them, or none. Returns their ids.
    ///
    /// # Errors
    /// See [`revoke`](Self::revoke).
    pub fn revoke_all(&self, names: &[Name], now_s: i64) -> Result<Vec<DeviceId>, RegistryError> {
        self.end(names, |tables, name| self.revoke_one(tables, name, now_s))
    }

    /// Forgets a device. A credential revoked before stays refused, and marks stay. Returns its
    /// id: the caller ends its sessions.
    ///
    /// # Errors
    /// [`RegistryError::Unknown`].
    pub fn remove(&self, name: &Name) -> Result<DeviceId, RegistryError> {
        self.remove_all(std::slice::from_ref(name)).map(|ids| ids[0])
    }

    /// Forgets devices in one transaction: all of them, or none. Returns their ids.
    ///
    /// # Errors
    /// See [`remove`](Self::remove).
    pub fn remove_all(&self, names: &[Name]) -> Result<Vec<DeviceId>, RegistryError> {
        self.end(names, |tables, name| {
            let record = self.existing(&tables.devices, name)?;
            let left = self.end_predecessor(tables, name, now_s())?;
            self.forget(tables, name, &record)?;
            tables.free_key(&record);
            Ok([Some(record.id), left])
        })
    }

    /// Ends devices with `end`, all or none. On a full disk it gets the room that was kept back for this.
    fn end(
        &self,
        names: &[Name],
        mut end: impl FnMut(&mut Tables<'_>, &Name) -> Result<Both, RegistryError>,
    ) -> Result<Vec<DeviceId>, RegistryError> {
        let mut begun = None;
        match self.end_now(names, &mut end, &mut begun) {
            Err(error) if error.is_no_room() => {
                // The disk failed under the first attempt, so nobody knows what became of it.
                let again = self.store.in_need(|| self.end_now(names, &mut end, &mut None));
                unless_done(begun, again)
            }
            ended => ended,
        }
    }

    fn end_now(
        &self,
        names: &[Name],
        end: &mut impl FnMut(&mut Tables<'_>, &Name) -> Result<Both, RegistryError>,
        begun: &mut Option<Vec<DeviceId>>,
    ) -> Result<Vec<DeviceId>, RegistryError> {
        let database = self.ready()?;
        let slot = self.lock();
        let ids = self.store.change(&database, |tables| {
            let ended: Result<Vec<_>, _> = names.iter().map(|name| end(tables, name)).collect();
            let ids: Vec<_> = ended?.into_iter().flatten().flatten().collect();
            *begun = Some(ids.clone());
            Ok(ids)
        })?;
        if let Some(view) = &*slot {
            ids.iter().for_each(|id| view.remove(id));
        }
        Ok(ids)
    }

    fn revoke_one(
        &self,
        tables: &mut Tables<'_>,
        name: &Name,
        now_s: i64,
    ) -> Result<Both, RegistryError> {
        let mut record = self.existing(&tables.devices, name)?;
        if let Some(at) = record.revoked_s {
            return Err(RegistryError::RevokedAlready(name.clone(), Utc(at)));
        }
        for credential in self.credentials(name, &record)? {
            tables.refused.insert(credential, now_s)?;
        }
        tables.free_key(&record);
        record.revoke(now_s);
        tables.devices.insert(name.as_str(), record.encode().as_slice())?;
        let left = self.end_predecessor(tables, name, now_s)?;
        Ok([Some(record.id), left])
    }

    /// Writes a new device with everything that belongs to it.
    pub(super) fn register(
        &self,
        tables: &mut Tables<'_>,
        device: NewDevice,
        now_s: i64,
    ) -> Result<Arc<Device>, RegistryError> {
        let (name, made, labels) = (device.name.clone(), device.made, device.labels.clone());
        let random = getrandom::u32().map_err(|_| RegistryError::Io {
            path: self.path().to_owned(),
            error: std::io::Error::other("no randomness"),
        })?;
        // Three bytes, and not zero.
        let (mut record, key) = Record::new(device, random % 0xff_ffff + 1, now_s)
            .map_err(|reason| RegistryError::Certificate { name: name.clone(), reason })?;
        if let Some(key) = &key {
            record.put_cell(tables.keys.put(key)?);
        }
        self.insert(tables, &name, &record, &labels)?;
        if made {
            Self::meet(tables, &record)?;
        }
        // A credential that was removed and comes back resumes its mark.
        let kept = Self::kept(&record, &tables.marks, &tables.last)?;
        let device = kept.put_in(self.device(&name, &record, key)?);
        device.set_expiry(labels.expires_s);
        Ok(Arc::new(device))
    }

    /// Checks a new device against everything that is registered, and writes it.
    fn insert(
        &self,
        tables: &mut Tables<'_>,
        name: &Name,
        record: &Record,
        labels: &Labels,
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
        if before.as_ref().is_some_and(|before| before.revoked_s.is_none()) {
            return Err(RegistryError::NameTaken(name.clone()));
        }
        // What belongs to the revoked device of this name, whose place this one takes, is free.
        if let Some(owner) = tables.ids.get(record.id.0)?
            && owner.value() != name.as_str()
        {
            let owner = self.name(owner.value())?;
            return Err(RegistryError::IdTaken { name: name.clone(), id: record.id, owner });
        }
        for credential in &credentials {
            if let Some(owner) = tables.credentials.get(credential)?
                && owner.value() != name.as_str()
            {
                let owner = self.name(owner.value())?;
                return Err(RegistryError::CredentialTaken { name: name.clone(), owner });
            }
        }
        // From here on nothing is refused, so a device is written whole or not at all.
        if let Some(before) = before {
            self.forget(tables, name, &before)?;
        }
        for credential in credentials {
            tables.credentials.insert(credential, name.as_str())?;
        }
        tables.ids.insert(record.id.0, name.as_str())?;
        tables.devices.insert(name.as_str(), record.encode().as_slice())?;
        Self::put_labels(tables, name, labels)?;
        let fingerprint = record.fingerprint();
        tables.short.insert(super::marks::short(&fingerprint), key_of(&record.id, &fingerprint))?;
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
        tables.labels.remove(name.as_str())?;
        Ok(())
    }

    fn put_labels(
        tables: &mut Tables<'_>,
        name: &Name,
        labels: &Labels,
    ) -> Result<(), RegistryError> {
        if labels.is_empty() {
            tables.labels.remove(name.as_str())?;
        } else {
            tables.labels.insert(name.as_str(), labels.encode().as_slice())?;
        }
        Ok(())
    }

    /// Gives a credential that the registration itself has made its first mark (R123).
    fn meet(tables: &mut Tables<'_>, record: &Record) -> Result<(), RegistryError> {
        let key = mark_key(record);
        if tables.marks.get(key)?.is_none() {
            tables.marks.insert(key, Mark::MADE.get())?;
        }
        Ok(())
    }

    /// What the registry keeps of a device besides its row.
    pub(super) fn kept(
        record: &Record,
        marks: &impl ReadableTable<[u8; 40], u64>,
        last: &impl ReadableTable<[u8; 40], [u8; 16]>,
    ) -> Result<super::Kept, RegistryError> {
        let key = mark_key(record);
        let mark = marks.get(key)?.map_or(0, |mark| mark.value());
        let last = last.get(key)?.map(|last| ReadingId::decode(&last.value()));
        Ok(super::Kept { mark, last })
    }
}

/// The id of a credential that may not connect any more, and that of the one before it, if a renewal has left one.
type Both = [Option<DeviceId>; 2];

/// What comes of a second attempt: that there is nothing left to end means that the first is on the disk.
fn unless_done(
    begun: Option<Vec<DeviceId>>,
    again: Result<Vec<DeviceId>, RegistryError>,
) -> Result<Vec<DeviceId>, RegistryError> {
    match (begun, again) {
        (Some(ids), Err(RegistryError::Unknown(_) | RegistryError::RevokedAlready(..))) => Ok(ids),
        (_, again) => again,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_attempt_that_is_on_the_disk_is_not_denied() {
        let (name, ids) = ("pump".parse::<Name>().unwrap(), vec![DeviceId([7; 8])]);
        let unknown = || Err(RegistryError::Unknown(name.clone()));
        assert_eq!(unless_done(Some(ids.clone()), unknown()).unwrap(), ids);
        let revoked = Err(RegistryError::RevokedAlready(name.clone(), Utc(0)));
        assert_eq!(unless_done(Some(ids.clone()), revoked).unwrap(), ids);
        // Where it did not get so far, or the second one failed in another way.
        assert!(unless_done(None, unknown()).is_err());
        let other = Err(RegistryError::NameTaken(name.clone()));
        assert!(unless_done(Some(ids.clone()), other).is_err());
        assert_eq!(unless_done(None, Ok(ids.clone())).unwrap(), ids);
    }
}
