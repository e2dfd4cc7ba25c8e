//! The registry as shards see it: devices by id, in memory, looked up by many threads.
//!
//! The view holds only devices that may connect; it is changed by the registry alone. What a
//! shard changes in a device is its freshness mark, and it queues the device for the next save by
//! doing so. At most one entry a device is queued, so the queue is bounded by the registry.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use crossbeam_queue::SegQueue;
use dashmap::DashMap;
use duet_core::{Device, Directory};
use duet_curve::Backend;
use duet_protocol::identity::{Credential, DeviceId, Fingerprint};

use super::renew::Renewing;

/// A mark that is to be saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The device.
    pub id: DeviceId,
    /// Its credential, which the mark belongs to.
    pub fingerprint: Fingerprint,
    /// The highest `fresh` of a confirmed session.
    pub value: u64,
}

/// Devices by id.
#[derive(Default)]
pub struct View {
    devices: DashMap<DeviceId, Arc<Device>>,
    moved: SegQueue<Arc<Device>>,
    /// Devices with a new credential, by its id, while the old one is good.
    renewing: DashMap<DeviceId, Renewing>,
    /// What makes the teeth of devices that come from now on.
    maker: OnceLock<Backend>,
    all_have_teeth: AtomicBool,
}

impl View {
    /// Makes the teeth of all devices, and says so when they have them; ends early where
    /// `goes_on` says no. Those that are registered meanwhile or later get theirs at once.
    pub fn make_teeth(&self, backend: Backend, mut goes_on: impl FnMut() -> bool) {
        self.maker.get_or_init(|| backend);
        // Only their ids are taken, so that no lock is held meanwhile and nobody who leaves is kept.
        let ids: Vec<_> = self.devices.iter().map(|device| *device.key()).collect();
        for ids in ids.chunks(64) {
            if !goes_on() {
                return;
            }
            let devices: Vec<_> = ids.iter().filter_map(|id| self.lookup(id)).collect();
            Device::make_teeth(backend, &devices);
        }
        self.all_have_teeth.store(true, Ordering::Release);
    }

    fn make_teeth_of(&self, devices: &[Arc<Device>]) {
        if let Some(backend) = self.maker.get() {
            Device::make_teeth(*backend, devices);
        }
    }

    /// The device with this id, if it may connect.
    #[must_use]
    pub fn lookup(&self, id: &DeviceId) -> Option<Arc<Device>> {
        self.devices.get(id).map(|device| Arc::clone(&device))
    }

    /// How many devices may connect.
    #[must_use]
    pub fn len(&self) -> usize {
        self.devices.len()
    }

    /// Whether no device may connect.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.devices.is_empty()
    }

    /// Takes the devices whose marks moved since they were last taken.
    #[must_use]
    pub fn take_moved(&self) -> Vec<Arc<Device>> {
        // Bounded by the length at the start: shards may push for ever.
        let moved: Vec<_> = (0..self.moved.len()).map_while(|_| self.moved.pop()).collect();
        // Cleared before the mark is read, so that a later move queues the device again.
        moved.iter().for_each(|device| device.delist());
        moved
    }

    /// Queues devices again whose marks could not be saved.
    pub fn put_back(&self, devices: impl IntoIterator<Item = Arc<Device>>) {
        devices.into_iter().for_each(|device| self.enlist(device));
    }

    fn enlist(&self, device: Arc<Device>) {
        if device.enlist() {
            self.moved.push(device);
        }
    }

    pub(super) fn insert(&self, device: Arc<Device>) {
        self.insert_all(&[device]);
    }

    pub(super) fn insert_all(&self, devices: &[Arc<Device>]) {
        self.make_teeth_of(devices);
        for device in devices {
            self.devices.insert(device.credential.id, Arc::clone(device));
        }
        // Whoever began to make them in between may not have seen these.
        self.make_teeth_of(devices);
    }

    pub(super) fn note_renewing(&self, new: DeviceId, renewing: Renewing) {
        self.renewing.insert(new, renewing);
    }

    pub(super) fn forget_renewing(&self, new: &DeviceId, renewing: &Renewing) {
        self.renewing.remove_if(new, |_, known| known == renewing);
    }

    /// The old credential's id and its end, where a new one is about to replace it.
    pub(super) fn left_by(&self, new: &DeviceId) -> Option<(DeviceId, i64)> {
        self.renewing.get(new).map(|renewing| (renewing.old, renewing.until_s))
    }

    pub(super) fn forget_all_renewing(&self) {
        self.renewing.clear();
    }

    /// Devices whose new credential was used, or whose old one's time is over.
    pub(super) fn renewed(&self, now_s: i64) -> Vec<(DeviceId, Renewing)> {
        let is_due = |new: &DeviceId, renewing: &Renewing| {
            let used = self.lookup(new).is_none_or(|device| device.mark() > renewing.first_mark);
            used || now_s >= renewing.until_s
        };
        let all = self.renewing.iter();
        let due = all.filter(|one| is_due(one.key(), one.value()));
        due.map(|one| (*one.key(), one.value().clone())).collect()
    }

    pub(super) fn ids(&self) -> HashSet<DeviceId> {
        self.devices.iter().map(|device| *device.key()).collect()
    }

    /// Takes a device as it is on disk. One that is the same stays what it is, and keeps its mark.
    pub(super) fn renew(&self, device: Device) {
        let id = device.credential.id;
        let same = |known: &Device| {
            known.credential.fingerprint == device.credential.fingerprint
                && known.name == device.name
                && known.sources == device.sources
        };
        match self.lookup(&id) {
            Some(known) if same(&known) => known.set_expiry(device.expiry()),
            _ => {
                self.remove(&id);
                self.insert(Arc::new(device));
            }
        }
    }

    pub(super) fn remove(&self, id: &DeviceId) {
        if let Some((_, device)) = self.devices.remove(id) {
            device.revoke();
        }
    }
}

impl Directory for View {
    fn look_up(&self, id: &DeviceId) -> Option<Arc<Device>> {
        self.lookup(id)
    }

    fn save_later(&self, device: &Arc<Device>) {
        self.enlist(Arc::clone(device));
    }

    fn all_have_teeth(&self) -> bool {
        self.all_have_teeth.load(Ordering::Acquire)
    }
}

impl From<&Device> for Mark {
    fn from(device: &Device) -> Self {
        let Credential { id, fingerprint, .. } = device.credential;
        Self { id, fingerprint, value: device.mark() }
    }
}

#[cfg(test)]
mod tests {
    use duet_protocol::identity::RegistrationKey;
    use duet_protocol::profile::Mode;

    use super::*;

    #[test]
    fn a_device_whose_mark_moved_is_taken_once_and_can_be_put_back() {
        let view = View::default();
        let id = DeviceId([1; 8]);
        let credential = Credential::registered_id(id, RegistrationKey([2; 32]));
        let sources = duet_core::SourceSet::default();
        view.insert(Arc::new(Device::new("d".into(), credential, sources, None).with_mark(10)));
        let device = view.lookup(&id).unwrap();
        assert!(view.take_moved().is_empty());
        for mark in [12, 13] {
            assert!(device.raise_mark(mark));
            view.save_later(&device);
        }
        let moved = view.take_moved();
        assert_eq!(moved.iter().map(|d| Mark::from(&**d).value).collect::<Vec<_>>(), [13]);
        view.put_back(moved);
        assert_eq!(view.take_moved().len(), 1);
        assert!(view.take_moved().is_empty());
        view.remove(&id);
        assert!(device.is_revoked() && view.is_empty());
    }

    /// Those that came before, meanwhile and afterwards.
    #[test]
    fn all_devices_with_a_certificate_get_teeth() {
        let view = View::default();
        let insert = |number: u8, mode| {
            let (_, credential) = duet_core::testing::identity(DeviceId([number; 8]), mode);
            let id = credential.id;
            let sources = duet_core::SourceSet::default();
            view.insert(Arc::new(Device::new("d".into(), credential, sources, None)));
            id
        };
        let have = |id| view.lookup(&id).unwrap().teeth().is_some();
        let with_key = Mode::RegisteredCertificate;
        let before: Vec<_> = (1..=70).map(|number| insert(number, with_key)).collect();
        let keyless = insert(71, Mode::RegisteredId);
        assert!(!before.iter().any(|id| have(*id)) && !view.all_have_teeth());

        view.make_teeth(Backend::detect(), || false);
        assert!(!view.all_have_teeth(), "it was stopped");
        let meanwhile = insert(72, with_key);
        assert!(have(meanwhile) && !have(before[0]));

        let mut late = None;
        view.make_teeth(Backend::detect(), || {
            late.get_or_insert_with(|| insert(73, with_key));
            true
        });
        assert!(view.all_have_teeth() && before.iter().all(|id| have(*id)));
        assert!(have(late.unwrap()) && have(insert(74, with_key)));
        assert!(!have(keyless));
    }
}
