//! The registry as shards see it: devices by id, in memory, looked up by many threads.
//!
//! The view holds only devices that may connect; it is changed by the registry alone. What a
//! shard changes in a device is its freshness mark, and it queues the device for the next save by
//! doing so. At most one entry a device is queued, so the queue is bounded by the registry.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crossbeam_queue::SegQueue;
use dashmap::DashMap;
use duet_protocol::identity::{Credential, DeviceId, Fingerprint};

use super::SourceSet;
use crate::identity::Validity;

/// A device that may connect. It holds its credential, so it has no `Debug`.
pub struct Device {
    /// Its name.
    pub name: Arc<str>,
    /// What its proof is checked against.
    pub credential: Credential,
    /// The key sources it may use.
    pub sources: SourceSet,
    /// Its certificate's window; `None` in mode `registered-id`.
    pub validity: Option<Validity>,
    mark: AtomicU64,
    queued: AtomicBool,
    revoked: AtomicBool,
}

impl Device {
    pub(super) fn new(
        name: Arc<str>,
        credential: Credential,
        sources: SourceSet,
        validity: Option<Validity>,
    ) -> Self {
        let mark = AtomicU64::new(0);
        let (queued, revoked) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { name, credential, sources, validity, mark, queued, revoked }
    }

    pub(super) fn with_mark(self, mark: u64) -> Self {
        Self { mark: AtomicU64::new(mark), ..self }
    }

    /// The highest `fresh` of a confirmed session.
    #[must_use]
    pub fn mark(&self) -> u64 {
        self.mark.load(Ordering::Acquire)
    }

    /// Whether the device was revoked or removed since it was looked up. Whoever keeps a device
    /// across turns asks this before a session is confirmed.
    #[must_use]
    pub fn is_revoked(&self) -> bool {
        self.revoked.load(Ordering::Acquire)
    }
}

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

    /// Raises a device's mark, at the first valid record of a session, and queues it for saving.
    /// A mark is never lowered. Returns whether it moved.
    pub fn raise_mark(&self, device: &Arc<Device>, value: u64) -> bool {
        let moved = device.mark.fetch_max(value, Ordering::AcqRel) < value;
        if moved && !device.queued.swap(true, Ordering::AcqRel) {
            self.moved.push(Arc::clone(device));
        }
        moved
    }

    /// Takes the devices whose marks moved since they were last taken.
    #[must_use]
    pub fn take_moved(&self) -> Vec<Arc<Device>> {
        // Bounded by the length at the start: shards may push for ever.
        let moved: Vec<_> = (0..self.moved.len()).map_while(|_| self.moved.pop()).collect();
        // Cleared before the mark is read, so that a later move queues the device again.
        moved.iter().for_each(|device| device.queued.store(false, Ordering::Release));
        moved
    }

    /// Queues devices again whose marks could not be saved.
    pub fn put_back(&self, devices: impl IntoIterator<Item = Arc<Device>>) {
        for device in devices {
            if !device.queued.swap(true, Ordering::AcqRel) {
                self.moved.push(device);
            }
        }
    }

    pub(super) fn insert(&self, device: Arc<Device>) {
        self.devices.insert(device.credential.id, device);
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
        if !self.lookup(&id).is_some_and(|known| same(&known)) {
            self.remove(&id);
            self.insert(Arc::new(device));
        }
    }

    pub(super) fn remove(&self, id: &DeviceId) {
        if let Some((_, device)) = self.devices.remove(id) {
            device.revoked.store(true, Ordering::Release);
        }
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
    fn a_mark_only_rises_and_queues_its_device_once() {
        let view = View::default();
        let id = DeviceId([1; 8]);
        let credential = Credential::registered_id(id, RegistrationKey([2; 32]));
        let device = Device::new("d".into(), credential, SourceSet::default(), None);
        view.insert(Arc::new(device.with_mark(10)));
        let device = view.lookup(&id).unwrap();
        assert!(!view.raise_mark(&device, 10));
        assert!(view.take_moved().is_empty());
        assert!(view.raise_mark(&device, 12));
        assert!(view.raise_mark(&device, 13));
        assert!(!view.raise_mark(&device, 11));
        let moved = view.take_moved();
        assert_eq!(moved.iter().map(|d| Mark::from(&**d).value).collect::<Vec<_>>(), [13]);
        view.put_back(moved);
        assert_eq!(view.take_moved().len(), 1);
        assert!(view.take_moved().is_empty());
        view.remove(&id);
        assert!(device.is_revoked() && view.is_empty());
    }
}
