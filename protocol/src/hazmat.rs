//! What the rest of the crate keeps to itself: secrets as bytes, and every step of the key
//! schedule by itself. For test vectors and memory searches; a device or a gateway that used it
//! would lose what the states of `responder` and of a device promise.

use crate::{
    hpke::Context,
    identity::{DeviceId, Fingerprint, PublicKey},
    schedule::{self, Grant, KeyIv, Secret, SessionKeys},
    wire::{GRANT, HELLO_HEADER},
};

/// A secret's bytes.
#[must_use]
pub const fn expose(secret: &Secret) -> &[u8; 32] {
    &secret.0
}

/// A secret of these bytes.
#[must_use]
pub const fn secret(bytes: [u8; 32]) -> Secret {
    Secret(bytes)
}

/// An HPKE context's key, base nonce and exporter secret.
#[must_use]
pub const fn context(context: &Context) -> (&[u8; 16], &[u8; 12], &[u8; 32]) {
    context.parts()
}

/// The fields of M, the text that the device's proof covers.
#[derive(Clone, Copy)]
pub struct Claim<'a> {
    /// kind, slot, profile, gateway key id.
    pub header: [u8; HELLO_HEADER],
    /// `cS`.
    pub gateway: &'a Fingerprint,
    /// E, with even y.
    pub enc: &'a PublicKey,
    /// `cD`.
    pub device: &'a Fingerprint,
    /// The device's id.
    pub id: DeviceId,
    /// The device's counter.
    pub fresh: u64,
    /// The challenge, or zeros.
    pub challenge: [u8; 16],
    /// S, which may be empty.
    pub random: &'a [u8],
    /// The reading's text, which may be empty.
    pub reading: &'a [u8],
}

impl Claim<'_> {
    const fn inner(&self) -> schedule::Claim<'_> {
        let Self { header, gateway, enc, device, id, fresh, challenge, random, reading } = *self;
        let id = id.0;
        schedule::Claim { header, gateway, enc, device, id, fresh, challenge, random, reading }
    }

    /// What the device signs.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        self.inner().digest()
    }

    /// The proof by registration key.
    #[must_use]
    pub fn binder(&self, hs: &Secret) -> [u8; 8] {
        self.inner().binder(hs)
    }
}

/// `th`.
#[must_use]
pub fn transcript(
    hello: &[u8],
    clear: &[u8; 33],
    gateway: &Fingerprint,
    device: &Fingerprint,
) -> [u8; 32] {
    schedule::transcript(hello, clear, gateway, device)
}

/// P, the grant as it stands in ACCEPT.
#[must_use]
pub fn grant(grant: &Grant) -> [u8; GRANT] {
    grant.encode()
}

/// What the gateway signs in the method's own profiles.
#[must_use]
pub fn gateway_digest(th: &[u8; 32], ikm_part: &[u8], grant: &[u8; GRANT]) -> [u8; 32] {
    schedule::gateway_digest(th, ikm_part, grant)
}

/// `salt`, from which and IKM comes `master`.
#[must_use]
pub fn salt(hs: &Secret, th: &[u8; 32]) -> Secret {
    schedule::salt(hs, th)
}

/// `master`.
#[must_use]
pub fn master(hs: &Secret, th: &[u8; 32], ikm: &[u8]) -> Secret {
    schedule::master(hs, th, ikm)
}

/// The key that seals ACCEPT in key source `ephemeral`.
#[must_use]
pub fn accept_key(master: &Secret) -> KeyIv {
    schedule::accept_key(&master.prk())
}

/// The key that seals ACCEPT in the method's own profiles with a registered id.
#[must_use]
pub fn accept_key_registered(hs: &Secret, th: &[u8; 32]) -> KeyIv {
    schedule::accept_key_registered(hs, th)
}

/// The session's keys.
#[must_use]
pub fn session_keys(master: &Secret) -> SessionKeys {
    schedule::session_keys(&master.prk())
}

/// The key that seals a CHALLENGE.
#[must_use]
pub fn challenge_key(hs: &Secret, nonce: &[u8; 16]) -> KeyIv {
    schedule::challenge_key(hs, nonce)
}
