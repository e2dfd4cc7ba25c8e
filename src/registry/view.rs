//! The registry as shards see it: devices by id, in memory, looked up by many threads.
//!
//! The view holds only devices that may connect; it is changed by the registry alone. What a
//! shard changes in a device is its freshness mark, and it queues the device for the next save by
//! doing so. At most one entry a device is queued, so the queue is bounded by the registry.

use std::collections::HashSet;
use std::sync::Arc;

use crossbeam_queue::SegQueue;
use dashmap::DashMap;
use duet_core::{Device, Directory};
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
}

impl View {
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
        self.devices.insert(device.credential.id, device);
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
}
