//! What is fixed in each vector: keys, randoms, and what its handshake has of a challenge, a reading
//! and a stream.

use duet_protocol::{
    ec::{self, EncapsulateTask, SecretScalar},
    identity::{Credential, DeviceId, Fingerprint, Gateway, RegistrationKey},
    message::{TEXT_MAX, Up},
    profile::{Mode, Offer, Profile, Transport},
    reading::ReadingId,
    reason::DropReason,
    responder::{Opened, Proven},
    schedule::{self, Grant},
    wire::{Hello, SessionId},
};
use sha2::{Digest as _, Sha256};

use crate::{
    Vector,
    steps::{self, Device, Made, Recipe},
};

const GATEWAY_CERTIFICATE: &[u8] = b"stand-in for the gateway's certificate in DER";
const DEVICE_CERTIFICATE: &[u8] = b"stand-in for the device's certificate in DER";
pub(crate) const GATEWAY_EXTRA: [u8; 32] = [0xa1; 32];
pub(crate) const DEVICE_EXTRA: [u8; 32] = [0xa2; 32];
pub(crate) const NODE_KEY: [u8; 32] = [0xa3; 32];
pub(crate) const CHALLENGE: [u8; 16] = sequence(0xb0);
/// The mark in CHALLENGE: above the counter of the HELLO that draws it, below that of its answer.
pub(crate) const MARK: u64 = 9_000;
const FRESH: u64 = 7_001;

pub(crate) const fn sequence<const N: usize>(start: u8) -> [u8; N] {
    let mut bytes = [0; N];
    let (mut i, mut value) = (0, start);
    while i < N {
        bytes[i] = value;
        value = value.wrapping_add(1);
        i += 1;
    }
    bytes
}

pub(crate) fn scalar(start: u8) -> SecretScalar {
    SecretScalar::from_bytes(&sequence(start)).unwrap()
}

/// One handshake with everything in it that is fixed.
pub(crate) struct Scene {
    /// What its file's name says behind the profile.
    suffix: &'static str,
    pub(crate) offer: Offer,
    pub(crate) secret: SecretScalar,
    pub(crate) gateway: Gateway,
    pub(crate) device: Device,
    challenge: Option<[u8; 16]>,
    pub(crate) reading: Option<Vec<u8>>,
    /// Makes e_c·G, and e_s·G, a point with odd y.
    odd: bool,
    pub(crate) stored: bool,
    pub(crate) nothing_waits: bool,
}

/// A reading's text as it goes into a HELLO.
pub(crate) fn reading(age_ms: Option<u32>, again: Option<ReadingId>, payload: &[u8]) -> Vec<u8> {
    let mut out = [0; TEXT_MAX];
    let len = Up::Reading { confirm: true, channel: 2, age_ms, again, payload }.encode(&mut out);
    out[..len].to_vec()
}

/// All handshakes of which there is a vector.
pub(crate) fn scenes() -> Vec<Scene> {
    let of = |name| Profile::from_name(name).unwrap();
    let mut scenes: Vec<_> = Profile::ALL.into_iter().map(Scene::new).collect();
    // A challenge is answered in each key source.
    for profile in [&Profile::ALL[..5], &[of("registered-id/ephemeral")]].concat() {
        let challenge = Some(CHALLENGE);
        scenes.push(Scene { suffix: "-challenged", challenge, ..Scene::new(profile) });
    }
    // The first readings: of 64 bytes, as in the document's table.
    let payload = &[0x2e; 64][..];
    for name in ["certificate/ephemeral", "certificate/xor-key", "registered-id/ephemeral"] {
        let reading = Some(reading(None, None, payload));
        let scene = Scene { suffix: "-early", reading, stored: true, ..Scene::new(of(name)) };
        scenes.push(Scene { nothing_waits: name == "certificate/ephemeral", ..scene });
    }
    // The shortest, which padding follows; it is not stored.
    let shortest = Some(reading(None, None, b""));
    let profile = of("registered-id/client-random");
    scenes.push(Scene { suffix: "-early", reading: shortest, ..Scene::new(profile) });
    // Behind a challenge and said again, with an age.
    let first = ReadingId::early(&[0x5a; 32]);
    for name in ["certificate/ephemeral", "registered-id/xor-random"] {
        scenes.push(Scene {
            suffix: "-early-challenged",
            challenge: Some(CHALLENGE),
            reading: Some(reading(Some(1_500), Some(first), b"21.5")),
            stored: true,
            ..Scene::new(of(name))
        });
    }
    for name in ["certificate/ephemeral", "registered-id/ephemeral"] {
        scenes.push(Scene { suffix: "-odd", odd: true, ..Scene::new(of(name)) });
    }
    for name in ["certificate/ephemeral", "registered-id/client-key"] {
        let scene = Scene::new(of(name));
        let offer = Offer { transport: Transport::Stream, ..scene.offer };
        scenes.push(Scene { suffix: "-stream", offer, ..scene });
    }
    scenes
}

impl Scene {
    pub(crate) fn new(profile: Profile) -> Self {
        let secret = scalar(1);
        let fingerprint = Fingerprint::of_certificate(GATEWAY_CERTIFICATE);
        let gateway = Gateway { key_id: 1, fingerprint, key: secret.public_key() };
        let given = DeviceId(sequence(0x40));
        let public = scalar(0x21).public_key();
        let (credential, d) = match profile.mode {
            Mode::Certificate => {
                (Credential::certificate(DEVICE_CERTIFICATE, public), sequence(0x21))
            }
            Mode::RegisteredCertificate => {
                let made = Credential::registered_certificate(given, DEVICE_CERTIFICATE, public);
                (made, sequence(0x21))
            }
            Mode::RegisteredId => {
                let key = RegistrationKey(sequence(0x60));
                (Credential::registered_id(given, key), sequence(0x60))
            }
        };
        Self {
            suffix: "",
            offer: Offer::new(profile, Transport::Datagram),
            secret,
            gateway,
            device: Device { credential, d },
            challenge: None,
            reading: None,
            odd: false,
            stored: false,
            nothing_waits: false,
        }
    }

    pub(crate) fn file(&self) -> String {
        format!("{}{}.json", self.offer.profile.name().replace('/', "-"), self.suffix)
    }

    /// The recipe of its HELLO: every file has an E of its own, of the sign that it asks for.
    pub(crate) fn recipe(&self) -> Recipe<'_> {
        let fresh = if self.challenge.is_some() { MARK + 1 } else { FRESH };
        let mut recipe = Recipe {
            offer: self.offer,
            fresh,
            challenge: self.challenge,
            random: Sha256::digest(self.file()).into(),
            secret: sequence(0xc0),
            reading: self.reading.as_deref(),
            extra: DEVICE_EXTRA,
        };
        loop {
            let e = steps::hello(&self.gateway, &self.device, &recipe).e;
            if is_odd(&e) == self.odd {
                return recipe;
            }
            recipe.random = Sha256::digest(recipe.random).into();
        }
    }

    pub(crate) fn hello(&self) -> Made {
        steps::hello(&self.gateway, &self.device, &self.recipe())
    }

    /// e_s or e_f, of the sign that the file asks for.
    pub(crate) fn server_scalar(&self) -> SecretScalar {
        (0x91..).map(scalar).find(|scalar| is_odd(scalar) == self.odd).unwrap()
    }

    /// What the gateway makes of the message, up to the proof.
    pub(crate) fn proven(&self, message: &[u8]) -> Result<Proven, DropReason> {
        let hello = Hello::decode(message, self.offer.transport)?;
        if hello.gateway_key_id() != self.gateway.key_id {
            return Err(DropReason::GatewayKey);
        }
        let agreed = ec::agree(&self.secret, hello.ephemeral_x()).ok_or(DropReason::Point)?;
        let opened = Opened::new(hello, &self.gateway, agreed.point, &agreed.shared)?;
        let credential = Some(&self.device.credential).filter(|known| known.id == opened.id());
        let claim = opened.claim(&self.gateway, credential);
        let verdict = claim.verify_task().is_none_or(ec::verify);
        claim.verified(verdict)
    }

    pub(crate) fn grant(&self) -> Grant {
        let session = SessionId(u32::from(self.device.id().slot()) << 24 | 0x0000_a4a5);
        let (stored, nothing_waits) = (self.stored, self.nothing_waits);
        let reset_token = schedule::reset_token(&NODE_KEY, session);
        Grant { session, lifetime_s: 86_400, stored, nothing_waits, reset_token }
    }

    pub(crate) fn setup(&self, vector: &mut Vector) {
        let profile = self.offer.profile;
        vector.section("setup").text("profile", profile.name());
        vector.hex("gateway certificate", GATEWAY_CERTIFICATE);
        vector.hex("gateway private key skS", self.secret.expose());
        vector.hex("gateway public key pkS", &self.gateway.key.0);
        vector.hex("gateway key id", &[self.gateway.key_id]);
        vector.hex("node key", &NODE_KEY);
        vector.hex("cS", &self.gateway.fingerprint.0);
        if let Some(public) = self.device.public() {
            vector.hex("device certificate", DEVICE_CERTIFICATE);
            vector.hex("device private key d", &self.device.d);
            vector.hex("device public key pkD", &public.0);
        } else {
            vector.hex("registration key d", &self.device.d);
        }
        vector.hex("id", &self.device.id().0);
        vector.hex("cD", &self.device.credential.fingerprint.0);
    }
}

/// Whether this multiple of G has odd y: then the point on the wire is its negative.
pub(crate) fn is_odd(scalar: &SecretScalar) -> bool {
    let task = EncapsulateTask { scalar: scalar.clone(), peer: scalar.public_key() };
    let even = ec::encapsulate(&task).unwrap().point;
    scalar.public_key() != even
}
