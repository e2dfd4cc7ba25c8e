//! A registry, a shard and devices, with a clock that only the test moves.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;

use duet::registry::{Enrolment, Name, NewDevice, Registry, SourceSet};
use duet::shard::engine::Batched;
use duet::shard::{GatewayKey, Mail, Reading, Settings, Shard, Sink};
use duet::transport::{Handler, Now, Path};
use duet_protocol::device::{Config, Device, Event};
use duet_protocol::ec::{SecretScalar, Software};
use duet_protocol::identity::{Credential, DeviceId, Fingerprint, Gateway, RegistrationKey};
use duet_protocol::initiator::{DeviceKey, Identity};
use duet_protocol::profile::{KeySource, Mode, Profile, Transport};
use duet_protocol::wire::{Kind, MESSAGE_MAX, SessionId};

/// What a device has where a test does not care.
pub(crate) const PROFILE: Profile =
    Profile { mode: Mode::RegisteredId, source: KeySource::Ephemeral };

#[derive(Clone, Default)]
pub(crate) struct Collected(pub(crate) Rc<RefCell<Vec<Stored>>>);

/// A reading that the shard gave away.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) device: String,
    pub(crate) session: SessionId,
    pub(crate) sequence: u32,
    pub(crate) channel: u16,
    pub(crate) payload: Vec<u8>,
    pub(crate) confirm: bool,
}

impl Sink for Collected {
    fn take(&mut self, reading: &Reading<'_>) {
        let Reading { session, sequence, channel, confirm, .. } = *reading;
        let (device, payload) = (reading.device.to_owned(), reading.payload.to_vec());
        let stored = Stored { device, session, sequence, channel, payload, confirm };
        self.0.borrow_mut().push(stored);
    }

    fn flush(&mut self) {}
}

pub(crate) type TestShard = Shard<Batched, Collected>;

pub(crate) struct World {
    pub(crate) _dir: tempfile::TempDir,
    pub(crate) registry: Registry,
    pub(crate) shard: TestShard,
    pub(crate) stored: Collected,
    pub(crate) gateway: Gateway,
    pub(crate) now: Now,
    /// Every message that crossed, as (from device, kind, length).
    pub(crate) seen: Vec<(bool, Kind, usize)>,
}

pub(crate) fn scalar(byte: u8) -> SecretScalar {
    SecretScalar::from_bytes(&[byte; 32]).unwrap()
}

impl World {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::create(&dir.path().join("registry.redb")).unwrap();
        let secret = scalar(0x31);
        let fingerprint = Fingerprint::of_certificate(b"gateway");
        let gateway = Gateway { key_id: 1, fingerprint, key: secret.public_key() };
        let stored = Collected::default();
        let shard = Self::shard(&registry, gateway, stored.clone());
        let now = Now { mono_us: 1_000_000, unix_ms: 1_800_000_000_000 };
        Self { _dir: dir, registry, shard, stored, gateway, now, seen: Vec::new() }
    }

    pub(crate) fn shard(registry: &Registry, gateway: Gateway, stored: Collected) -> TestShard {
        Self::shard_with(registry, gateway, stored, 64)
    }

    pub(crate) fn shard_with(
        registry: &Registry,
        gateway: Gateway,
        stored: Collected,
        retry_from: usize,
    ) -> TestShard {
        Self::build(registry, gateway, stored, retry_from, (0, 1))
    }

    /// One of several shards.
    pub(crate) fn one_of(
        registry: &Registry,
        gateway: Gateway,
        stored: Collected,
        index: usize,
        shards: usize,
    ) -> TestShard {
        Self::build(registry, gateway, stored, 64, (index, shards))
    }

    fn build(
        registry: &Registry,
        gateway: Gateway,
        stored: Collected,
        retry_from: usize,
        (index, shards): (usize, usize),
    ) -> TestShard {
        let settings = Settings {
            keys: vec![GatewayKey { gateway, secret: scalar(0x31) }],
            node_key: [0x77; 32],
            index,
            shards,
            idle_us: 600_000_000,
            pending_us: 10_000_000,
            lifetime_s: 86_400,
            sessions_max: 100,
            pending_max: 50,
            retry_from,
            hello_us: 40,
            gcm: duet_aead::Gcm::best(),
            gauges: std::sync::Arc::default(),
        };
        Shard::new(
            settings,
            registry.view().unwrap(),
            Batched::new(duet_curve::Backend::detect(), 64),
            stored,
        )
    }

    pub(crate) fn device(
        &self,
        seed: u8,
        profile: Profile,
        transport: Transport,
    ) -> Device<Software> {
        let id = DeviceId([seed; 8]);
        let name: Name = format!("device-{seed}").parse().unwrap();
        let sources = SourceSet::of([profile.source]);
        let (identity, enrolment) = match profile.mode {
            Mode::RegisteredId => {
                let key = RegistrationKey([seed; 32]);
                let fingerprint = Fingerprint::of_registered_id(&id);
                let identity =
                    Identity { id, fingerprint, key: DeviceKey::Registration(key.clone()) };
                (identity, Enrolment::RegisteredId { id, key })
            }
            Mode::Certificate | Mode::RegisteredCertificate => {
                let made = duet::identity::create("device", 30, 1_799_999_000).unwrap();
                let der = made.certificate_der.clone();
                let secret = secret_of(&made.key_pem);
                let public = secret.public_key();
                let credential = if profile.mode == Mode::Certificate {
                    Credential::certificate(&der, public)
                } else {
                    Credential::registered_certificate(id, &der, public)
                };
                let key = DeviceKey::Private(secret);
                let fingerprint = credential.fingerprint;
                let enrolment = if profile.mode == Mode::Certificate {
                    Enrolment::Certificate { der }
                } else {
                    Enrolment::RegisteredCertificate { id, der }
                };
                (Identity { id: credential.id, fingerprint, key }, enrolment)
            }
        };
        let device = NewDevice { name, enrolment, sources };
        self.registry.add(device, 1_800_000_000).unwrap();
        let config = Config { identity, gateway: self.gateway, profile, transport, fresh: 1 };
        Device::new(Software, config, [seed; 32])
    }

    /// A device over datagrams that is connected.
    pub(crate) fn opened(&mut self) -> Device<Software> {
        let mut device = self.device(1, PROFILE, Transport::Datagram);
        device.open(self.now.mono_us);
        assert_eq!(self.settle(&mut device), ["Opened"]);
        device
    }

    /// Carries messages both ways until both sides are silent. What arrives is durable at once.
    pub(crate) fn settle(&mut self, device: &mut Device<Software>) -> Vec<String> {
        let from: SocketAddr = "192.0.2.1:4000".parse().unwrap();
        let mut events = Vec::new();
        loop {
            let mut moved = false;
            let mut out = [0; MESSAGE_MAX];
            while let Some(len) = device.poll_transmit(self.now.mono_us, &mut out) {
                self.seen.push((true, Kind::of(&out).unwrap(), len));
                self.shard.handle_datagram(self.now, from, &out[..len]);
                moved = true;
            }
            self.shard.handle_turn(self.now);
            let durable: Vec<_> = self
                .stored
                .0
                .borrow()
                .iter()
                .filter(|r| r.confirm)
                .map(|r| (r.session, r.sequence))
                .collect();
            self.stored.0.borrow_mut().iter_mut().for_each(|r| r.confirm = false);
            if !durable.is_empty() {
                self.shard.handle_mail(self.now, Mail::Durable(durable));
                self.shard.handle_turn(self.now);
            }
            while let Some(sent) = self.shard.poll_transmit(&mut out) {
                assert_eq!(sent.to, Path::Datagram(from));
                self.seen.push((false, Kind::of(&out).unwrap(), sent.len));
                match device.handle_message(self.now.mono_us, &mut out[..sent.len]) {
                    Ok(Event::Nothing) => {}
                    Ok(event) => events.push(format!("{event:?}")),
                    Err(reason) => events.push(reason.label().into()),
                }
                moved = true;
            }
            if !moved {
                return events;
            }
        }
    }

    pub(crate) fn pass(&mut self, micros: u64) {
        self.now.mono_us += micros;
        self.now.unix_ms += micros / 1_000;
    }
}

pub(crate) fn secret_of(pem: &str) -> SecretScalar {
    use p256::pkcs8::DecodePrivateKey as _;
    let key = p256::SecretKey::from_pkcs8_pem(pem).unwrap();
    SecretScalar::from_bytes(&key.to_bytes().into()).unwrap()
}
