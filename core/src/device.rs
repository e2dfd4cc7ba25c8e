//! A device as a shard knows it, and the place where a shard looks devices up.
//!
//! Whoever keeps the devices (the registry, a test) makes a [`Device`] for each one that may connect and shares it with
//! the shards. A shard changes two things in it, the freshness mark and the id of the newest early reading; the owner
//! changes two, when the registration ends and that the device was revoked.

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use duet_curve::{Backend, Teeth};
use duet_protocol::identity::{Credential, DeviceId, Proof};
use duet_protocol::mark::Mark;
use duet_protocol::reading::ReadingId;

use crate::{Now, SourceSet};

/// Where shards look devices up. Many threads ask at once, so an answer must not wait for a disk or for another thread's work.
pub trait Directory: Send + Sync {
    /// The device with this id, if it may connect.
    fn look_up(&self, id: &DeviceId) -> Option<Arc<Device>>;

    /// A device's mark moved: see to it that it is saved before long.
    fn save_later(&self, device: &Arc<Device>);

    /// Whether every device has the teeth of its key ([`Device::make_teeth`]). Proofs are verified with teeth when all have
    /// them and without before, so that the time tells of no single one (R38).
    fn all_have_teeth(&self) -> bool;
}

/// A device that may connect. It holds its credential, so it has no `Debug`. What each of its records needs comes first, in
/// one line of the cache.
#[repr(C)]
pub struct Device {
    /// Its name.
    pub name: Arc<str>,
    revoked: AtomicBool,
    listed: AtomicBool,
    mark: AtomicU64,
    /// What its proof is checked against.
    pub credential: Credential,
    /// The key sources it may use.
    pub sources: SourceSet,
    /// When its certificate is valid, Unix seconds; `None` where there is no certificate.
    pub valid_s: Option<RangeInclusive<i64>>,
    /// The first second in which it is not registered any more, Unix time; the last there is where it has no end.
    expires_s: AtomicI64,
    last: Mutex<Option<ReadingId>>,
    registration: u64,
    teeth: OnceLock<Box<Teeth>>,
}

/// The key that signs its proofs, if that is how it proves itself.
fn signer(proof: &Proof) -> Option<duet_curve::PublicKey> {
    match proof {
        Proof::Signature(key) => duet_curve::PublicKey::from_sec1_bytes(&key.0).ok(),
        Proof::Binder(_) => None,
    }
}

impl Device {
    /// A device that never had a session.
    #[must_use]
    pub fn new(
        name: Arc<str>,
        credential: Credential,
        sources: SourceSet,
        valid_s: Option<RangeInclusive<i64>>,
    ) -> Self {
        let (listed, revoked) = (AtomicBool::new(false), AtomicBool::new(false));
        let (mark, last) = (AtomicU64::new(0), Mutex::new(None));
        let expires_s = AtomicI64::new(i64::MAX);
        Self {
            name,
            credential,
            sources,
            valid_s,
            expires_s,
            mark,
            last,
            listed,
            revoked,
            registration: 0,
            teeth: OnceLock::new(),
        }
    }

    /// Makes the teeth of the devices that have a key and no teeth yet: what its signatures are verified with in three
    /// fifths of the time. Sixty-four devices at once cost the least.
    pub fn make_teeth(backend: Backend, devices: &[Arc<Self>]) {
        let lack_them = devices.iter().filter(|device| device.teeth().is_none());
        let with_keys: Vec<_> = lack_them
            .filter_map(|device| Some((device, signer(&device.credential.proof)?)))
            .collect();
        let keys: Vec<_> = with_keys.iter().map(|(_, key)| *key).collect();
        for ((device, _), teeth) in with_keys.iter().zip(Teeth::of(backend, &keys)) {
            device.teeth.get_or_init(|| Box::new(teeth));
        }
    }

    /// The teeth of its key, where they have been made.
    #[must_use]
    pub fn teeth(&self) -> Option<&Teeth> {
        self.teeth.get().map(|teeth| &**teeth)
    }

    /// The same device with its mark from before.
    #[must_use]
    pub fn with_mark(self, mark: u64) -> Self {
        Self { mark: AtomicU64::new(mark), ..self }
    }

    /// The same device with its last reading from before.
    #[must_use]
    pub fn with_last(self, last: Option<ReadingId>) -> Self {
        Self { last: Mutex::new(last), ..self }
    }

    /// The same device with what tells this registration from an earlier one under the same id.
    #[must_use]
    pub fn with_registration(self, registration: u64) -> Self {
        Self { registration, ..self }
    }

    /// What tells this registration from an earlier one under the same id; zero where nobody said.
    #[must_use]
    pub const fn registration(&self) -> u64 {
        self.registration
    }

    /// Sets when its registration ends, Unix seconds. Sessions that it has live on as long as they were granted.
    pub fn set_expiry(&self, expires_s: Option<i64>) {
        self.expires_s.store(expires_s.unwrap_or(i64::MAX), Ordering::Release);
    }

    /// When its registration ends, Unix seconds, where it does.
    #[must_use]
    pub fn expiry(&self) -> Option<i64> {
        Some(self.expires_s.load(Ordering::Acquire)).filter(|end| *end != i64::MAX)
    }

    /// Which reading of this device, inside a HELLO or sent again, was stored last.
    #[must_use]
    pub fn last(&self) -> Option<ReadingId> {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells of such a reading that was stored.
    pub fn set_last(&self, last: ReadingId) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(last);
    }

    /// The highest `fresh` of a confirmed session.
    #[must_use]
    pub fn mark(&self) -> u64 {
        self.mark.load(Ordering::Acquire)
    }

    /// Raises the mark, which is never lowered; whether it moved.
    pub fn raise_mark(&self, value: u64) -> bool {
        self.mark.fetch_max(value, Ordering::AcqRel) < value
    }

    /// The mark, for its rules.
    #[must_use]
    pub fn freshness(&self) -> Mark {
        Mark::new(self.mark())
    }

    /// Such a reading is durable: the mark rises to what it stands for (R41), and it is the newest.
    pub fn committed(&self, mark: u64, id: ReadingId) {
        self.mark.fetch_max(Mark::new(mark).get(), Ordering::AcqRel);
        self.set_last(id);
    }

    /// Claims the device's place in the list of marks to save; false if it is listed already.
    #[must_use]
    pub fn enlist(&self) -> bool {
        !self.listed.swap(true, Ordering::AcqRel)
    }

    /// Gives that place up. Call it before the mark is read, so that a later move lists the device again.
    pub fn delist(&self) {
        self.listed.store(false, Ordering::Release);
    }

    /// Whether the device was revoked or removed since it was looked up. Whoever keeps a device
    /// across turns asks this before a session is confirmed.
    #[must_use]
    #[inline]
    pub fn is_revoked(&self) -> bool {
        self.revoked.load(Ordering::Acquire)
    }

    /// From now on it may not connect, and is not listened to.
    pub fn revoke(&self) {
        self.revoked.store(true, Ordering::Release);
    }

    /// Whether its certificate is valid at this time, Unix seconds, and its registration has not ended.
    #[must_use]
    pub fn is_valid(&self, unix_s: i64) -> bool {
        unix_s < self.expires_s.load(Ordering::Acquire)
            && self.valid_s.as_ref().is_none_or(|valid| valid.contains(&unix_s))
    }

    /// Whether it may connect at this time, Unix seconds (R39).
    #[must_use]
    pub fn may_connect(&self, unix_s: i64) -> bool {
        !self.is_revoked() && self.is_valid(unix_s)
    }
}

impl Device {
    /// How long a session that is granted now may live, seconds: not beyond the end of the certificate or of the
    /// registration (R120).
    #[must_use]
    pub(crate) fn lifetime_s(&self, now: Now, most: u32) -> u32 {
        let end_s = self.valid_s.as_ref().map_or(i64::MAX, |valid| *valid.end());
        let end_s = end_s.min(self.expires_s.load(Ordering::Acquire));
        let now_s = i64::try_from(now.unix_ms / 1_000).unwrap_or(i64::MAX);
        let left = end_s.saturating_sub(now_s).max(0);
        u32::try_from(left).unwrap_or(u32::MAX).min(most)
    }
}

#[cfg(test)]
mod tests {
    use duet_protocol::identity::RegistrationKey;

    use super::*;

    #[test]
    fn a_mark_only_rises_and_its_device_is_listed_once() {
        let credential = Credential::registered_id(DeviceId([1; 8]), RegistrationKey([2; 32]));
        let device =
            Device::new("d".into(), credential, SourceSet::default(), Some(5..=9)).with_mark(10);
        assert!(!device.raise_mark(10) && device.raise_mark(12) && !device.raise_mark(11));
        assert_eq!(device.mark(), 12);
        assert!(device.enlist() && !device.enlist());
        device.delist();
        assert!(device.enlist());
        assert!([4, 10].iter().all(|at| !device.may_connect(*at)));
        assert!(device.may_connect(5) && device.may_connect(9));
        let now = Now { mono_us: 0, unix_ms: 6_000 };
        assert_eq!(device.lifetime_s(now, 9), 3);
        device.set_expiry(Some(8));
        assert!(device.may_connect(7) && !device.may_connect(8));
        assert_eq!(device.lifetime_s(now, 9), 2);
        device.set_expiry(None);
        assert!(device.may_connect(9));
        device.revoke();
        assert!(device.is_revoked() && !device.may_connect(5));
    }
}
