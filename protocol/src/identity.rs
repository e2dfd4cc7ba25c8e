//! What both sides hold before the first message: identifiers, certificates' hashes, credentials.

use sha2::{Digest, Sha256};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::profile::Mode;

/// The 8 bytes by which a device names itself, sealed inside HELLO.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceId(pub [u8; 8]);

impl core::fmt::Debug for DeviceId {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::fmt::Display::fmt(self, f)
    }
}

impl core::fmt::Display for DeviceId {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl DeviceId {
    /// The id of a device in mode `certificate`: the head of its certificate's fingerprint (R3).
    #[must_use]
    pub fn of_certificate(certificate: &Fingerprint) -> Self {
        let mut id = [0; 8];
        id.copy_from_slice(&certificate.0[..8]);
        Self(id)
    }

    /// The byte that steers every message of this device to the shard that owns it:
    /// the first byte of SHA-256(id) (R10).
    #[must_use]
    pub fn slot(&self) -> u8 {
        Sha256::digest(self.0)[0]
    }
}

/// SHA-256 of a certificate's DER encoding (or, in mode `registered-id`, of the label and the id):
/// `cS` for the gateway, `cD` for a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    /// The fingerprint of a certificate, from its DER encoding.
    #[must_use]
    pub fn of_certificate(der: &[u8]) -> Self {
        Self(Sha256::digest(der).into())
    }

    /// What stands in a certificate's place in mode `registered-id` (R4).
    #[must_use]
    pub fn of_registered_id(id: &DeviceId) -> Self {
        Self(Sha256::new_with_prefix(b"duet1 device id").chain_update(id.0).finalize().into())
    }
}

/// A P-256 public key: the uncompressed SEC 1 encoding, `04 ‖ x ‖ y`. Whoever makes one has
/// checked that it is on the curve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PublicKey(pub [u8; 65]);

/// The gateway as both sides know it: its preset certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// Which of the gateway's keys: one byte in HELLO, so that two may overlap in rotation (R8).
    pub key_id: u8,
    /// `cS`: the certificate's fingerprint.
    pub fingerprint: Fingerprint,
    /// `pkS`: the certificate's key.
    pub key: PublicKey,
}

/// A secret that device and gateway share since registration (mode `registered-id`): random (R9).
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct RegistrationKey(pub [u8; 32]);

/// How the gateway checks one device.
#[derive(Clone)]
pub enum Proof {
    /// By an ECDSA signature under the key of its preset certificate.
    Signature(PublicKey),
    /// By a MAC under its registration key.
    Binder(RegistrationKey),
}

/// A device as the gateway's registry knows it: all that a handshake needs.
#[derive(Clone)]
pub struct Credential {
    /// How the device names itself.
    pub id: DeviceId,
    /// The mode it was registered for.
    pub mode: Mode,
    /// `cD`: its certificate's fingerprint, or [`Fingerprint::of_registered_id`].
    pub fingerprint: Fingerprint,
    /// How its proof is checked; agrees with `mode`.
    pub proof: Proof,
}

impl Credential {
    /// A device with mode `certificate`.
    #[must_use]
    pub fn certificate(der: &[u8], key: PublicKey) -> Self {
        let fingerprint = Fingerprint::of_certificate(der);
        Self {
            id: DeviceId::of_certificate(&fingerprint),
            mode: Mode::Certificate,
            fingerprint,
            proof: Proof::Signature(key),
        }
    }

    /// A device with mode `registered-certificate`.
    #[must_use]
    pub fn registered_certificate(id: DeviceId, der: &[u8], key: PublicKey) -> Self {
        let fingerprint = Fingerprint::of_certificate(der);
        let proof = Proof::Signature(key);
        Self { id, mode: Mode::RegisteredCertificate, fingerprint, proof }
    }

    /// A device with mode `registered-id`.
    #[must_use]
    pub fn registered_id(id: DeviceId, key: RegistrationKey) -> Self {
        let fingerprint = Fingerprint::of_registered_id(&id);
        Self { id, mode: Mode::RegisteredId, fingerprint, proof: Proof::Binder(key) }
    }
}
