//! New credentials for devices that have one. The old one stays good until the new one was used, or until its time is
//! over; then it is refused for ever, as one that was revoked.
//!
//! ```text
//! table predecessors, by the device's name: until 8 │ first mark 8 │ the old record
//! ```
//! The old credential has an id of its own, under which shards know it as another device of the same name.

use duet_protocol::identity::DeviceId;
use redb::{ReadTransaction, ReadableTable, TableError};

use super::record::Record;
use super::store::{PREDECESSORS, Tables};
use super::{Damage, Name, NewDevice, Registry, RegistryError};
use crate::identity::Utc;

/// A credential that is about to be replaced.
pub(super) struct Predecessor {
    /// The first second in which it is not good any more, Unix time.
    pub(super) until_s: i64,
    /// The new credential's mark when it was registered: it was used when it has a higher one.
    pub(super) first_mark: u64,
    pub(super) record: Record,
}

/// Whose credential is being replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Renewing {
    pub(super) name: Name,
    /// The id of the old credential.
    pub(super) old: DeviceId,
    pub(super) until_s: i64,
    pub(super) first_mark: u64,
}

impl Predecessor {
    fn encode(&self) -> Vec<u8> {
        let record = self.record.encode();
        let mut bytes = Vec::with_capacity(16 + record.len());
        bytes.extend(self.until_s.to_be_bytes());
        bytes.extend(self.first_mark.to_be_bytes());
        bytes.extend_from_slice(&record);
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (until, rest) = bytes.split_first_chunk::<8>()?;
        let (first, record) = rest.split_first_chunk::<8>()?;
        Some(Self {
            until_s: i64::from_be_bytes(*until),
            first_mark: u64::from_be_bytes(*first),
            record: Record::decode(record)?,
        })
    }
}

impl Registry {
    /// Gives a device a new credential under its name, with what was said of it. The old one stays good until the new
    /// one was used, at most until `until_s`; one that an earlier renewal has left is refused from now on. Returns the
    /// id of that one, if there was one: the caller ends its sessions.
    ///
    /// # Errors
    /// [`RegistryError::Unknown`], [`RegistryError::RevokedAlready`], or why the new credential cannot be registered.
    pub fn renew(
        &self,
        device: NewDevice,
        until_s: i64,
        now_s: i64,
    ) -> Result<Option<DeviceId>, RegistryError> {
        let name = device.name.clone();
        let database = self.ready()?;
        let slot = self.lock();
        let (device, old, ended) = self.store.change(&database, |tables| {
            let before = self.existing(&tables.devices, &name)?;
            if let Some(at) = before.revoked_s {
                return Err(RegistryError::RevokedAlready(name.clone(), Utc(at)));
            }
            let ended = self.end_predecessor(tables, &name, now_s)?;
            let labels = self.labels(Some(&tables.labels), &name)?;
            let known = self.credentials(&name, &before)?;
            let old = before.id;
            // What belongs to it stays its own, under the same name, while the new one takes its place.
            tables.devices.remove(name.as_str())?;
            let device = self.register(tables, NewDevice { labels, ..device }, now_s)?;
            let record = self.existing(&tables.devices, &name)?;
            let is_same = record.id == old
                || self.credentials(&name, &record)?.iter().any(|new| known.contains(new));
            if is_same {
                return Err(RegistryError::CredentialTaken {
                    name: name.clone(),
                    owner: name.clone(),
                });
            }
            let left = Predecessor { until_s, first_mark: device.mark(), record: before };
            tables.predecessors.insert(name.as_str(), left.encode().as_slice())?;
            Ok((device, old, ended))
        })?;
        if let Some(view) = &*slot {
            let new = device.credential.id;
            let first_mark = device.mark();
            view.insert(device);
            if let Some(device) = view.lookup(&old) {
                let end_s = device.expiry().map_or(until_s, |end| end.min(until_s));
                device.set_expiry(Some(end_s));
            }
            view.note_renewing(new, Renewing { name, old, until_s, first_mark });
        }
        if let (Some(view), Some(id)) = (&*slot, &ended) {
            view.remove(id);
        }
        Ok(ended)
    }

    /// Refuses the old credentials of renewed devices for ever whose new ones were used, or whose time is over. Returns
    /// their ids: the caller ends their sessions.
    ///
    /// # Errors
    /// Those of the storage engine; nothing was changed then.
    pub fn retire(&self, now_s: i64) -> Result<Vec<DeviceId>, RegistryError> {
        let due = self.view()?.renewed(now_s);
        if due.is_empty() {
            return Ok(Vec::new());
        }
        let database = self.ready()?;
        let slot = self.lock();
        let ids = self.store.change(&database, |tables| {
            let mut all = Vec::new();
            for (_, renewing) in &due {
                // The device may have been removed or renewed once more meanwhile.
                let is_it = self
                    .predecessor(&tables.predecessors, &renewing.name)?
                    .is_some_and(|left| left.record.id == renewing.old);
                if is_it {
                    all.extend(self.end_predecessor(tables, &renewing.name, now_s)?);
                }
            }
            Ok(all)
        })?;
        if let Some(view) = &*slot {
            due.iter().for_each(|(new, renewing)| view.forget_renewing(new, renewing));
            ids.iter().for_each(|id| view.remove(id));
        }
        Ok(ids)
    }

    /// Refuses the credential for ever that a renewal has left, if it has. Returns its id.
    pub(super) fn end_predecessor(
        &self,
        tables: &mut Tables<'_>,
        name: &Name,
        now_s: i64,
    ) -> Result<Option<DeviceId>, RegistryError> {
        let Some(left) = self.predecessor(&tables.predecessors, name)? else { return Ok(None) };
        let Predecessor { record, .. } = left;
        for credential in self.credentials(name, &record)? {
            tables.refused.insert(credential, now_s)?;
            tables.credentials.remove(credential)?;
        }
        tables.ids.remove(record.id.0)?;
        tables.predecessors.remove(name.as_str())?;
        tables.free_key(&record);
        Ok(Some(record.id))
    }

    pub(super) fn predecessor(
        &self,
        predecessors: &impl ReadableTable<&'static str, &'static [u8]>,
        name: &Name,
    ) -> Result<Option<Predecessor>, RegistryError> {
        let Some(bytes) = predecessors.get(name.as_str())? else { return Ok(None) };
        let read = Predecessor::decode(bytes.value());
        read.map(Some).ok_or_else(|| self.damaged(Damage::Record(name.clone())))
    }

    /// Every credential that a renewal has left, with its name.
    pub(super) fn each_predecessor(
        &self,
        read: &ReadTransaction,
        mut each: impl FnMut(Name, Predecessor) -> Result<(), RegistryError>,
    ) -> Result<(), RegistryError> {
        let predecessors = match read.open_table(PREDECESSORS) {
            Ok(predecessors) => predecessors,
            Err(TableError::TableDoesNotExist(_)) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        for row in predecessors.iter()? {
            let (name, bytes) = row?;
            let name = self.name(name.value())?;
            let left = Predecessor::decode(bytes.value());
            each(name.clone(), left.ok_or_else(|| self.damaged(Damage::Record(name)))?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use duet_protocol::identity::RegistrationKey;

    use super::super::{Enrolment, Relabel, SourceSet};
    use super::*;

    const NOW_S: i64 = 1_800_000_000;

    fn keyed(id: u8, made: bool) -> NewDevice {
        let mut key = [id; 32];
        key.iter_mut().enumerate().for_each(|(at, byte)| *byte ^= u8::try_from(at * 5).unwrap());
        let enrolment =
            Enrolment::RegisteredId { id: DeviceId([id; 8]), key: RegistrationKey(key) };
        let name = "a".parse().unwrap();
        NewDevice {
            name,
            enrolment,
            sources: SourceSet::default(),
            made,
            labels: Default::default(),
        }
    }

    fn registry() -> (tempfile::TempDir, Registry) {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::create(&dir.path().join("registry.redb")).unwrap();
        registry.add(keyed(1, true), NOW_S).unwrap();
        (dir, registry)
    }

    fn again(dir: &tempfile::TempDir) -> Registry {
        Registry::open(&dir.path().join("registry.redb")).unwrap()
    }

    /// Which of the credentials may connect at a time.
    fn good(registry: &Registry, at_s: i64) -> Vec<u8> {
        let view = registry.view().unwrap();
        let may =
            |id: &u8| view.lookup(&DeviceId([*id; 8])).is_some_and(|one| one.may_connect(at_s));
        (1..6).filter(may).collect()
    }

    #[test]
    fn the_old_credential_is_good_until_the_new_one_was_used() {
        let (dir, registry) = registry();
        let name: Name = "a".parse().unwrap();
        let tagged = Relabel { add: "t".parse().unwrap(), ..Relabel::default() };
        registry.relabel(&name, &tagged).unwrap();
        registry.view().unwrap();
        assert_eq!(registry.renew(keyed(2, true), NOW_S + 100, NOW_S).unwrap(), None);
        assert_eq!(registry.show(&name).unwrap().labels.tags.to_string(), "t");
        assert_eq!(
            (good(&registry, NOW_S + 99), good(&registry, NOW_S + 100)),
            (vec![1, 2], vec![2])
        );
        assert!(registry.retire(NOW_S).unwrap().is_empty());
        // The same after a start.
        drop(registry);
        let registry = again(&dir);
        assert_eq!(
            (good(&registry, NOW_S + 99), good(&registry, NOW_S + 100)),
            (vec![1, 2], vec![2])
        );
        let device = registry.view().unwrap().lookup(&DeviceId([2; 8])).unwrap();
        assert!(device.raise_mark(300));
        assert_eq!(registry.retire(NOW_S).unwrap(), [DeviceId([1; 8])]);
        assert_eq!(good(&registry, NOW_S), [2]);
        assert!(registry.retire(NOW_S).unwrap().is_empty());
        let back = registry.add(NewDevice { name: "b".parse().unwrap(), ..keyed(1, false) }, NOW_S);
        assert!(matches!(back, Err(RegistryError::Refused { .. })));
        drop(registry);
        let registry = again(&dir);
        assert_eq!(good(&registry, NOW_S), [2]);
        let file = std::fs::read(registry.path()).unwrap();
        let Enrolment::RegisteredId { key, .. } = keyed(1, true).enrolment else { panic!() };
        assert!(!file.windows(8).any(|piece| piece == &key.0[8..16]), "the old key is overwritten");
    }

    #[test]
    fn what_a_renewal_has_left_ends_with_its_time_its_successor_and_its_device() {
        let (_dir, registry) = registry();
        let name: Name = "a".parse().unwrap();
        registry.view().unwrap();
        registry.renew(keyed(2, true), NOW_S + 100, NOW_S).unwrap();
        assert_eq!(registry.retire(NOW_S + 100).unwrap(), [DeviceId([1; 8])]);
        registry.renew(keyed(3, false), NOW_S + 100, NOW_S).unwrap();
        // Renewed once more before it was used: the one before the last is over.
        assert_eq!(
            registry.renew(keyed(4, true), NOW_S + 100, NOW_S).unwrap(),
            Some(DeviceId([2; 8]))
        );
        assert_eq!(good(&registry, NOW_S), [3, 4]);
        for same in [keyed(4, true), keyed(3, true)] {
            let same = registry.renew(same, NOW_S + 100, NOW_S);
            assert!(same.is_err(), "{same:?}");
        }
        assert_eq!(good(&registry, NOW_S), [3, 4], "nothing was changed");
        let ended = registry.revoke_all(std::slice::from_ref(&name), NOW_S).unwrap();
        assert_eq!(ended, [DeviceId([4; 8]), DeviceId([3; 8])]);
        assert!(good(&registry, NOW_S).is_empty());
        let gone = registry.renew(keyed(5, true), NOW_S + 100, NOW_S);
        assert!(matches!(gone, Err(RegistryError::RevokedAlready(..))));
        let back = registry.add(NewDevice { name: "b".parse().unwrap(), ..keyed(3, false) }, NOW_S);
        assert!(matches!(back, Err(RegistryError::Refused { .. })));
        registry.remove(&name).unwrap();
        registry.add(keyed(5, true), NOW_S).unwrap();
        registry.renew(keyed(1, true), NOW_S + 9, NOW_S).unwrap_err();
        let view = registry.view().unwrap();
        assert_eq!(view.len(), 1);
    }
}
