//! A shard with everything it needs: for tests, benches and fuzz targets, in this crate and beside it.
//!
//! Here is no clock, no file and no real randomness: what happens depends on the seeds and inputs alone.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use duet_device::{DeviceKey, Identity};
use duet_protocol::ec::SecretScalar;
use duet_protocol::identity::{Credential, DeviceId, Fingerprint, Gateway, RegistrationKey};
use duet_protocol::profile::{Mode, Profile};
use sha2::{Digest as _, Sha256};

use crate::engine::{Batched, Engine};
use crate::{
    Device, Directory, GatewayKey, Random, Reading, Settings, Shard, Sink, SourceSet, StreamLimits,
};

/// Bytes that look random and are the same for the same seed (SplitMix64).
#[must_use]
pub fn random(seed: u64) -> Random {
    let mut state = seed;
    Random::new(move |out| {
        for chunk in out.chunks_mut(8) {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            chunk.copy_from_slice(&(z ^ (z >> 31)).to_le_bytes()[..chunk.len()]);
        }
    })
}

/// The scalar that is known by this name.
///
/// # Panics
/// For one name in 2³².
#[must_use]
pub fn scalar(name: &[u8]) -> SecretScalar {
    let digest: [u8; 32] = Sha256::digest(name).into();
    SecretScalar::from_bytes(&digest).expect("almost every digest is a scalar")
}

/// The gateway's key, which all shards in tests have.
#[must_use]
pub fn gateway_key() -> GatewayKey {
    let secret = scalar(b"gateway");
    let fingerprint = Fingerprint::of_certificate(b"gateway");
    GatewayKey::new(Gateway { key_id: 1, fingerprint, key: secret.public_key() }, secret)
}

/// Settings of a small shard that is alone; change what a test is about.
#[must_use]
pub fn settings() -> Settings {
    Settings {
        keys: vec![gateway_key()],
        node_key: [0x77; 32],
        index: 0,
        shards: 1,
        idle_us: 600_000_000,
        pending_us: 10_000_000,
        lifetime_s: 86_400,
        sessions_max: 100,
        pending_max: 50,
        retry_from: 64,
        burst_us: 0,
        hello_us: 40,
        streams: StreamLimits::default(),
        gcm: duet_aead::Gcm::best(),
    }
}

/// A shard with these settings that knows these devices. Each one that is made draws other random bytes, as a gateway
/// does after a restart.
#[must_use]
pub fn shard<S: Sink>(settings: Settings, devices: &Arc<Devices>, sink: S) -> Shard<Batched, S> {
    let engine = Batched::new(duet_curve::Backend::detect(), &[3; 32]);
    shard_with(settings, devices, engine, sink)
}

/// The same with an engine of the caller's.
#[must_use]
pub fn shard_with<E: Engine, S: Sink>(
    settings: Settings,
    devices: &Arc<Devices>,
    engine: E,
    sink: S,
) -> Shard<E, S> {
    let random = random(devices.shards.fetch_add(1, Ordering::Relaxed));
    Shard::new(settings, Arc::<Devices>::clone(devices), engine, sink, random)
}

/// What a device knows of itself, and what its gateway knows of it. Its keys follow from `id`, which in mode
/// `certificate` is not the one that it is found by.
#[must_use]
pub fn identity(id: DeviceId, mode: Mode) -> (Identity, Credential) {
    let secret = scalar(&id.0);
    let der = [b"certificate of ", &id.0[..]].concat();
    let (credential, key) = match mode {
        Mode::RegisteredId => {
            let key = RegistrationKey(Sha256::digest(id.0).into());
            (Credential::registered_id(id, key.clone()), DeviceKey::Registration(key))
        }
        Mode::Certificate => {
            let credential = Credential::certificate(&der, secret.public_key());
            (credential, DeviceKey::Private(secret))
        }
        Mode::RegisteredCertificate => {
            let credential = Credential::registered_certificate(id, &der, secret.public_key());
            (credential, DeviceKey::Private(secret))
        }
    };
    let Credential { id, fingerprint, .. } = credential;
    (Identity { id, fingerprint, key }, credential)
}

/// A registry in memory.
#[derive(Default)]
pub struct Devices {
    devices: Mutex<HashMap<DeviceId, Arc<Device>>>,
    /// How many shards were made that look devices up here.
    shards: AtomicU64,
    lacks_teeth: AtomicBool,
}

impl Devices {
    fn lock(&self) -> MutexGuard<'_, HashMap<DeviceId, Arc<Device>>> {
        self.devices.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a device for one profile; what it knows of itself.
    pub fn enrol(&self, name: &str, id: DeviceId, profile: Profile) -> Identity {
        let (identity, credential) = identity(id, profile.mode);
        let sources = SourceSet::of([profile.source]);
        let device = Arc::new(Device::new(name.into(), credential, sources, None));
        if self.all_have_teeth() {
            Device::make_teeth(duet_curve::Backend::detect(), std::slice::from_ref(&device));
        }
        self.lock().insert(identity.id, device);
        identity
    }

    /// Whether it is as right after a start: not all have their teeth, and who is enrolled gets none.
    pub fn lack_teeth(&self, lack: bool) {
        self.lacks_teeth.store(lack, Ordering::Relaxed);
    }

    /// The device with this name.
    pub fn by_name(&self, name: &str) -> Option<Arc<Device>> {
        self.lock().values().find(|device| &*device.name == name).map(Arc::clone)
    }

    /// Revokes the device with this name; its id.
    pub fn revoke(&self, name: &str) -> Option<DeviceId> {
        let mut devices = self.lock();
        let id = *devices.iter().find(|(_, device)| &*device.name == name)?.0;
        devices.remove(&id)?.revoke();
        Some(id)
    }
}

impl Directory for Devices {
    fn look_up(&self, id: &DeviceId) -> Option<Arc<Device>> {
        self.lock().get(id).map(Arc::clone)
    }

    fn save_later(&self, _: &Arc<Device>) {}

    fn all_have_teeth(&self) -> bool {
        !self.lacks_teeth.load(Ordering::Relaxed)
    }
}

/// Takes readings and forgets them.
pub struct Forget;

impl Sink for Forget {
    fn take(&mut self, reading: &Reading<'_>) {
        std::hint::black_box(reading);
    }

    fn flush(&mut self) {}
}
