//! Keys, shared secrets and verdicts. Public types convert from and to those of the `p256` crate.

use crate::order;
use p256::elliptic_curve::sec1::ToSec1Point;
use std::fmt;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// The bytes are not a point of the curve, or not one that may serve as a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidPoint;

impl fmt::Display for InvalidPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a point of P-256")
    }
}

impl std::error::Error for InvalidPoint {}

/// A point of the curve other than infinity.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PublicKey {
    pub(crate) x: [u64; 4],
    pub(crate) y: [u64; 4],
}

impl PublicKey {
    /// Decodes a SEC 1 point (33 bytes compressed, or 65 bytes), refusing anything off the curve.
    ///
    /// # Errors
    /// [`InvalidPoint`] if the encoding is malformed or the point is not on the curve.
    pub fn from_sec1_bytes(bytes: &[u8]) -> Result<Self, InvalidPoint> {
        p256::PublicKey::from_sec1_bytes(bytes).map(|k| Self::from(&k)).map_err(|_| InvalidPoint)
    }

    /// The 65-byte SEC 1 encoding: 4, x, y.
    #[must_use]
    pub fn to_sec1_bytes(&self) -> [u8; 65] {
        let mut out = [4; 65];
        out[1..33].copy_from_slice(&self.x());
        out[33..].copy_from_slice(&self.y());
        out
    }

    /// The x-coordinate, big-endian.
    #[must_use]
    pub fn x(&self) -> [u8; 32] {
        order::bytes(&self.x)
    }

    /// The y-coordinate, big-endian.
    #[must_use]
    pub fn y(&self) -> [u8; 32] {
        order::bytes(&self.y)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PublicKey(")?;
        for b in self.x() {
            write!(f, "{b:02x}")?;
        }
        f.write_str(", …)")
    }
}

impl From<&p256::PublicKey> for PublicKey {
    fn from(key: &p256::PublicKey) -> Self {
        let point = key.to_sec1_point(false);
        let mut xy = [[0; 32]; 2];
        // An uncompressed encoding of a public key has 65 bytes.
        xy.as_flattened_mut().copy_from_slice(&point.as_bytes()[1..]);
        Self { x: order::limbs(&xy[0]), y: order::limbs(&xy[1]) }
    }
}

impl From<&p256::ecdsa::VerifyingKey> for PublicKey {
    fn from(key: &p256::ecdsa::VerifyingKey) -> Self {
        Self::from(&p256::PublicKey::from(key))
    }
}

impl TryFrom<&PublicKey> for p256::PublicKey {
    type Error = InvalidPoint;

    fn try_from(key: &PublicKey) -> Result<Self, InvalidPoint> {
        Self::from_sec1_bytes(&key.to_sec1_bytes()).map_err(|_| InvalidPoint)
    }
}

/// A secret integer in [1, n − 1]: a private key, or an ephemeral one. Erased when dropped.
#[derive(ZeroizeOnDrop)]
pub struct SecretScalar(pub(crate) [u64; 4]);

impl SecretScalar {
    /// From 32 big-endian bytes; `None` for 0 and for n or more. Of random bytes, one in 2³² is
    /// refused: draw again.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; 32]) -> Option<Self> {
        let limbs = Self(order::limbs(bytes));
        order::is_scalar(&limbs.0).then_some(limbs)
    }
}

impl From<&p256::SecretKey> for SecretScalar {
    fn from(key: &p256::SecretKey) -> Self {
        let mut bytes: [u8; 32] = key.to_bytes().into();
        let scalar = Self(order::limbs(&bytes));
        bytes.zeroize();
        scalar
    }
}

impl From<&p256::ecdsa::SigningKey> for SecretScalar {
    fn from(key: &p256::ecdsa::SigningKey) -> Self {
        let mut bytes: [u8; 32] = key.to_bytes().into();
        let scalar = Self(order::limbs(&bytes));
        bytes.zeroize();
        scalar
    }
}

/// The x-coordinate of a Diffie-Hellman result, big-endian. Erased when dropped.
#[derive(ZeroizeOnDrop)]
pub struct SharedSecret(pub(crate) [u8; 32]);

impl SharedSecret {
    /// The bytes, as RFC 9180's `Dh` returns them.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl AsRef<[u8]> for SharedSecret {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// What verification says about one signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// The signature is the key's over the digest.
    Valid,
    /// It is not, or it is not a signature at all.
    Invalid,
}

impl Verdict {
    /// Whether the signature is valid.
    #[must_use]
    pub fn is_valid(self) -> bool {
        self == Self::Valid
    }
}
