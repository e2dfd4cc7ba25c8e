//! The elliptic-curve operations that the handshake asks for, and answers to them one at a time.
//!
//! `responder` only ever holds a *task* and is resumed with its answer. A gateway
//! answers tasks in batches with an engine of its own; a device or a test uses the functions here,
//! which call the `p256` crate.
//!
//! On the wire a point is its x-coordinate and stands for the point with even y (R18). Only
//! x-coordinates enter the key schedule, and x(k·P) = x(−k·P): whether a scalar or its negative
//! belongs to the even point therefore never matters.

use p256::{
    AffinePoint, FieldBytes, NonZeroScalar, ProjectivePoint, Scalar,
    ecdsa::{Signature as P256Signature, VerifyingKey, signature::hazmat::PrehashVerifier as _},
    elliptic_curve::{
        Group as _,
        bigint::{NonZero, U384},
        ops::Reduce as _,
        point::{AffineCoordinates as _, DecompressPoint as _},
        sec1::{FromSec1Point as _, Sec1Point},
        subtle::Choice,
    },
};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::identity::PublicKey;

/// A secret scalar in 1 … n−1, big-endian. Whoever makes one has checked the range.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct SecretScalar([u8; 32]);

/// The x-coordinate of a Diffie-Hellman point: secret.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct SharedX(pub [u8; 32]);

/// r ‖ s, each 32 bytes big-endian.
pub type Signature = [u8; 64];

/// Answer to [`agree`]: the lifted point and the shared x-coordinate.
#[derive(Clone)]
pub struct Agreed {
    /// The peer's point, with even y.
    pub point: PublicKey,
    /// x(scalar · point).
    pub shared: SharedX,
}

/// Answer to [`encapsulate`].
#[derive(Clone)]
pub struct Encapsulated {
    /// ± scalar · G, the one with even y.
    pub point: PublicKey,
    /// x(scalar · peer).
    pub shared: SharedX,
}

/// Asks for scalar · G and x(scalar · peer).
#[derive(Clone)]
pub struct EncapsulateTask {
    /// The fresh scalar.
    pub scalar: SecretScalar,
    /// The peer's point, on the curve.
    pub peer: PublicKey,
}

/// Asks whether `signature` over the message with this SHA-256 is by `key`.
#[derive(Clone)]
pub struct VerifyTask {
    /// The signer's key.
    pub key: PublicKey,
    /// SHA-256 of the signed message.
    pub digest: [u8; 32],
    /// r ‖ s.
    pub signature: Signature,
}

/// n − 1, the modulus of [`SecretScalar::from_wide`].
const ORDER_MINUS_ONE: NonZero<U384> = NonZero::<U384>::new_unwrap(U384::from_be_hex(
    "00000000000000000000000000000000ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632550",
));

impl SecretScalar {
    /// Takes a private key.
    ///
    /// `None` when it is zero or not below the group's order.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; 32]) -> Option<Self> {
        // Whether bytes − n is below zero, and whether any bit is set, in the same time for all.
        let (mut borrow, mut any) = (false, 0);
        for (byte, order) in bytes.iter().zip(&ORDER).rev() {
            (_, borrow) = byte.borrowing_sub(*order, borrow);
            any |= byte;
        }
        (borrow & (any != 0)).then(|| Self(*bytes))
    }

    /// Maps 48 uniform bytes to a scalar with negligible bias: (bytes mod (n−1)) + 1 (R20).
    #[must_use]
    pub fn from_wide(bytes: &[u8; 48]) -> Self {
        let mut wide = U384::from_be_slice(bytes);
        let mut reduced = wide.rem(&ORDER_MINUS_ONE).wrapping_add(&U384::ONE);
        let mut be = reduced.to_be_bytes();
        let mut out = Self([0; 32]);
        out.0.copy_from_slice(&be.as_ref()[16..]);
        be.as_mut().zeroize();
        wide.zeroize();
        reduced.zeroize();
        out
    }

    /// The scalar's bytes, big-endian: secret.
    #[must_use]
    pub const fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    fn scalar(&self) -> Zeroizing<Scalar> {
        Zeroizing::new(Scalar::reduce(&FieldBytes::from(self.0)))
    }

    /// The public key of this private key.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        let scalar = self.scalar();
        encode(&(ProjectivePoint::mul_by_generator(&*scalar)).to_affine())
    }
}

impl PublicKey {
    /// Takes an uncompressed SEC 1 encoding of a point on the curve.
    ///
    /// `None` for any other length or form, coordinates out of range, and points off the curve (R7).
    #[must_use]
    pub fn from_sec1(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; 65] = bytes.try_into().ok()?;
        Self(*bytes).affine().map(|_| Self(*bytes))
    }

    fn affine(&self) -> Option<AffinePoint> {
        let point = Sec1Point::<p256::NistP256>::from_bytes(self.0).ok()?;
        (self.0[0] == 4).then_some(())?;
        Option::from(AffinePoint::from_sec1_point(&point))
    }

    /// The point with these coordinates, of which the caller knows that it is on the curve.
    #[must_use]
    pub fn from_coordinates(x: &[u8; 32], y: &[u8; 32]) -> Self {
        let mut out = [4; 65];
        out[1..33].copy_from_slice(x);
        out[33..].copy_from_slice(y);
        Self(out)
    }

    /// The x-coordinate.
    #[must_use]
    pub fn x(&self) -> [u8; 32] {
        let mut x = [0; 32];
        x.copy_from_slice(&self.0[1..33]);
        x
    }

    /// This point or its negative, whichever has even y: what its x-coordinate stands for on the wire (R18).
    #[must_use]
    pub fn with_even_y(mut self) -> Self {
        if self.0[64] & 1 == 1 {
            // p − y; no point of the curve has y = 0.
            let mut borrow = false;
            for (digit, p) in self.0[33..].iter_mut().zip(FIELD).rev() {
                let (difference, under) = p.overflowing_sub(*digit);
                let (difference, again) = difference.overflowing_sub(u8::from(borrow));
                *digit = difference;
                borrow = under | again;
            }
        }
        self
    }
}

/// n, the group's order.
const ORDER: [u8; 32] = [
    0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xbc, 0xe6,
    0xfa, 0xad, 0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51,
];

/// p, the field's prime: 2²⁵⁶ − 2²²⁴ + 2¹⁹² + 2⁹⁶ − 1.
const FIELD: [u8; 32] = [
    0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff,
    0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
];

fn encode(point: &AffinePoint) -> PublicKey {
    PublicKey::from_coordinates(&point.x().into(), &point.y().into())
}

fn lift(x: &[u8; 32]) -> Option<AffinePoint> {
    Option::from(AffinePoint::decompress(&FieldBytes::from(*x), Choice::from(0)))
}

/// The point with this x-coordinate and even y; `None` when there is none (R18).
#[must_use]
pub fn lift_even(x: &[u8; 32]) -> Option<PublicKey> {
    lift(x).map(|point| encode(&point))
}

fn shared_x(scalar: &SecretScalar, point: &AffinePoint) -> SharedX {
    let mut product = (ProjectivePoint::from(*point) * *scalar.scalar()).to_affine();
    let shared = SharedX(product.x().into());
    product.zeroize();
    shared
}

/// Lifts x to the point with even y and multiplies: x(scalar · lift(x)).
///
/// `None` when x is not below p or belongs to no point of the curve.
#[must_use]
pub fn agree(scalar: &SecretScalar, x: &[u8; 32]) -> Option<Agreed> {
    let point = lift(x)?;
    Some(Agreed { shared: shared_x(scalar, &point), point: encode(&point) })
}

/// scalar · G with even y, and x(scalar · peer).
///
/// `None` when the peer's point is not on the curve.
#[must_use]
pub fn encapsulate(task: &EncapsulateTask) -> Option<Encapsulated> {
    let peer = task.peer.affine()?;
    let own = lift(&task.scalar.public_key().x())?;
    Some(Encapsulated { point: encode(&own), shared: shared_x(&task.scalar, &peer) })
}

/// Signs a digest with a hedged deterministic nonce (R27; RFC 6979 §3.6, `extra` as the additional
/// input), normalised so that the nonce's point has even y (R26).
///
/// `None` with negligible probability (a zero r or s).
#[must_use]
pub fn sign(key: &SecretScalar, digest: &[u8; 32], extra: &[u8; 32]) -> Option<Signature> {
    use ecdsa::hazmat::sign_prehashed_rfc6979;
    let secret = Zeroizing::new(Option::<NonZeroScalar>::from(NonZeroScalar::from_repr(
        FieldBytes::from(key.0),
    ))?);
    let (signature, recovery) =
        sign_prehashed_rfc6979::<p256::NistP256, sha2::Sha256>(&secret, digest, extra);
    let (r, mut s) = signature.split_scalars();
    if recovery.is_y_odd() {
        s = -s;
    }
    let signature = P256Signature::from_scalars(r, s).ok()?;
    Some(signature.to_bytes().into())
}

/// Whether the signature is the key's over the digest, whatever its nonce point's parity (R33).
#[must_use]
pub fn verify(task: &VerifyTask) -> bool {
    let Ok(key) = VerifyingKey::from_sec1_bytes(&task.key.0) else { return false };
    let Ok(signature) = P256Signature::from_slice(&task.signature) else { return false };
    key.verify_prehash(&task.digest, &signature).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scalar(byte: u8) -> SecretScalar {
        SecretScalar::from_bytes(&[byte; 32]).unwrap()
    }

    #[test]
    fn both_sides_agree_on_x() {
        let (a, b) = (scalar(3), scalar(0x77));
        let sent = encapsulate(&EncapsulateTask { scalar: a, peer: b.public_key() }).unwrap();
        let received = agree(&b, &sent.point.x()).unwrap();
        assert!(sent.shared.0 == received.shared.0);
        assert_eq!(sent.point, received.point);
        assert_eq!(sent.point.0[64] & 1, 0);
    }

    #[test]
    fn signatures_verify_and_have_an_even_nonce_point() {
        let key = scalar(9);
        for i in 0..8 {
            let digest = [i; 32];
            let signature = sign(&key, &digest, &[1; 32]).unwrap();
            let task = VerifyTask { key: key.public_key(), digest, signature };
            assert!(verify(&task));
            let mut wrong = task.clone();
            wrong.digest[0] ^= 1;
            assert!(!verify(&wrong));
            wrong = task.clone();
            wrong.signature[63] ^= 1;
            assert!(!verify(&wrong));
            // R = (z·G + r·Q)/s must come out with even y.
            let s = Scalar::reduce(&FieldBytes::try_from(&signature[32..]).unwrap());
            let r = Scalar::reduce(&FieldBytes::try_from(&signature[..32]).unwrap());
            let z = Scalar::reduce(&FieldBytes::from(digest));
            let q = ProjectivePoint::from(key.public_key().affine().unwrap());
            let point = (ProjectivePoint::GENERATOR * z + q * r) * s.invert().unwrap();
            assert_eq!(point.to_affine().y()[31] & 1, 0);
        }
        assert!(!verify(&VerifyTask {
            key: key.public_key(),
            digest: [0; 32],
            signature: [0; 64]
        }));
    }

    #[test]
    fn wide_reduction_covers_one_to_order_minus_one() {
        assert_eq!(SecretScalar::from_wide(&[0; 48]).0[31], 1);
        let mut wide = [0; 48];
        wide[16..].copy_from_slice(&ORDER_MINUS_ONE.get().to_be_bytes().as_ref()[16..]);
        assert_eq!(SecretScalar::from_wide(&wide).0[31], 1, "n−1 wraps to 0, plus one");
        wide[47] -= 1;
        let largest = SecretScalar::from_wide(&wide);
        assert!(SecretScalar::from_bytes(largest.expose()).is_some());
        assert!(largest.0[31] == 0x50);
    }

    #[test]
    fn points_that_do_not_exist_are_refused() {
        assert!(agree(&scalar(1), &[0xff; 32]).is_none());
        let mut refused = 0;
        for i in 0..40u8 {
            let mut x = [0x11; 32];
            x[0] = i;
            refused += u32::from(agree(&scalar(1), &x).is_none());
        }
        assert!((5..35).contains(&refused));
        let good = scalar(5).public_key();
        assert_eq!(PublicKey::from_sec1(&good.0), Some(good));
        let mut bad = good.0;
        bad[64] ^= 1;
        assert_eq!(PublicKey::from_sec1(&bad), None);
        bad = good.0;
        bad[0] = 6 | (bad[64] & 1);
        assert_eq!(PublicKey::from_sec1(&bad), None);
        assert_eq!(PublicKey::from_sec1(&good.0[..33]), None);
        assert!(SecretScalar::from_bytes(&[0; 32]).is_none());
        for at in 0..32 {
            let mut near = ORDER;
            assert!(SecretScalar::from_bytes(&near).is_none(), "n itself");
            near[at] = near[at].wrapping_add(1);
            let below = ORDER[at] == 0xff;
            assert_eq!(SecretScalar::from_bytes(&near).is_some(), below, "byte {at} higher");
            near[at] = near[at].wrapping_sub(2);
            let below = ORDER[at] != 0;
            assert_eq!(SecretScalar::from_bytes(&near).is_some(), below, "byte {at} lower");
        }
        assert!(SecretScalar::from_bytes(&[0xff; 32]).is_none());
    }
}
