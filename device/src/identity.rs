//! What a device holds of itself.

use duet_protocol::{
    ec::SecretScalar,
    identity::{DeviceId, Fingerprint, PublicKey, RegistrationKey},
};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// 32 random bytes, made once, kept secret and used for nothing but to hedge ephemeral keys
/// (R19, R121).
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct HedgeKey(pub [u8; 32]);

/// What hedges the ephemeral keys of a device whose private key cannot be read.
#[derive(Clone)]
pub enum Hedge {
    /// A key in memory: provisioned, or drawn at the first start from every generator there is.
    Key(HedgeKey),
    /// A key inside the element: [`Crypto::hedge`](crate::Crypto::hedge).
    Element,
}

/// The device's own secret.
#[derive(Clone)]
pub enum DeviceKey {
    /// The private key of its certificate.
    Private(SecretScalar),
    /// Its registration key.
    Registration(RegistrationKey),
    /// The private key of its certificate, in a place that only signs and agrees.
    External {
        /// Its public key.
        public: PublicKey,
        /// What stands for the key where ephemeral keys are hedged.
        hedge: Hedge,
    },
}

impl DeviceKey {
    /// Whether a device with this key proves itself with a signature.
    #[must_use]
    pub const fn signs(&self) -> bool {
        !matches!(self, Self::Registration(_))
    }
}

/// How a device names itself and proves it.
#[derive(Clone)]
pub struct Identity {
    /// Its id.
    pub id: DeviceId,
    /// `cD`: its certificate's fingerprint, or [`Fingerprint::of_registered_id`].
    pub fingerprint: Fingerprint,
    /// Its secret.
    pub key: DeviceKey,
}
