//! Cryptography in software: one implementation of [`Crypto`] over a curve and a cipher. There are three of those: RustCrypto's
//! here, the small one in `compact`, and the gateway's in `fast`.

use duet_protocol::{
    aead,
    ec::{self, Agreed, EncapsulateTask, Encapsulated, SecretScalar, Signature, VerifyTask},
    identity::PublicKey,
};
use sha2::{Digest as _, Sha256};

use crate::crypto::{Crypto, CryptoError, PrivateKey};
#[cfg(feature = "std")]
pub use crate::random::System;
pub use crate::{
    element::WithElement,
    random::{Random, Seeded},
};

/// P-256 and AES-128-GCM, with keys in memory. What each operation means, [`Crypto`] says.
pub trait Primitives {
    /// The fresh scalar's point with even y, and x(scalar · peer); `None` where the peer is no point.
    fn encapsulate(&self, scalar: &SecretScalar, peer: &PublicKey) -> Option<Encapsulated>;

    /// The public key of a private key.
    fn public_key(scalar: &SecretScalar) -> Option<PublicKey>;

    /// The point with this x and even y; `None` where there is none.
    fn lift(x: &[u8; 32]) -> Option<PublicKey>;

    /// That point, and the x of its product with the key.
    fn agree(key: &SecretScalar, x: &[u8; 32]) -> Option<Agreed>;

    /// ECDSA (R26, R27); `c` has the hash.
    ///
    /// # Errors
    /// [`CryptoError::Failed`] with negligible probability.
    fn sign(
        c: &mut impl Crypto,
        key: &SecretScalar,
        digest: &[u8; 32],
        extra: &[u8; 32],
    ) -> Result<Signature, CryptoError>;

    /// Whether the signature is the key's over the digest.
    fn verify(key: &PublicKey, digest: &[u8; 32], signature: &Signature) -> bool;

    /// Seals `text` in place, returns the tag.
    fn seal(&self, key: &[u8; 16], nonce: &[u8; 12], aad: &[u8], text: &mut [u8]) -> [u8; 16];

    /// Opens `text` in place; `false`, with the text as it was, when it is not authentic.
    fn open(
        &self,
        key: &[u8; 16],
        nonce: &[u8; 12],
        aad: &[u8],
        text: &mut [u8],
        tag: &[u8; 16],
    ) -> bool;

    /// Overwrites what operations may have left on the stack.
    fn scrub() {}
}

/// [`Crypto`] of these primitives and RustCrypto's SHA-256; random bytes from `R`.
pub struct Suite<P, R> {
    primitives: P,
    random: R,
}

/// RustCrypto's portable code for everything.
pub type Software<R = Seeded> = Suite<Portable, R>;

impl<P: Primitives + Default> Suite<P, Seeded> {
    /// With a generator that this seed starts: 32 random bytes, used nowhere else.
    #[must_use]
    pub fn seeded(seed: [u8; 32]) -> Self {
        Self::new(Seeded::new(seed))
    }
}

impl<P: Primitives + Default, R: Random> Suite<P, R> {
    /// With this generator.
    #[must_use]
    pub fn new(random: R) -> Self {
        Self::with(P::default(), random)
    }
}

impl<P: Primitives, R: Random> Suite<P, R> {
    /// Of these primitives, with this generator.
    #[must_use]
    pub const fn with(primitives: P, random: R) -> Self {
        Self { primitives, random }
    }
}

impl<P: Primitives, R: Random> Crypto for Suite<P, R> {
    fn random(&mut self, out: &mut [u8]) -> Result<(), CryptoError> {
        self.random.fill(out)
    }

    #[inline(never)]
    fn sha256(&mut self, parts: &[&[u8]]) -> Result<[u8; 32], CryptoError> {
        let mut hash = Sha256::new();
        parts.iter().for_each(|part| hash.update(part));
        Ok(hash.finalize().into())
    }

    fn seal(
        &mut self,
        key: &[u8; 16],
        nonce: &[u8; 12],
        aad: &[u8],
        text: &mut [u8],
    ) -> Result<[u8; 16], CryptoError> {
        Ok(self.primitives.seal(key, nonce, aad, text))
    }

    fn open(
        &mut self,
        key: &[u8; 16],
        nonce: &[u8; 12],
        aad: &[u8],
        text: &mut [u8],
        tag: &[u8; 16],
    ) -> Result<bool, CryptoError> {
        Ok(self.primitives.open(key, nonce, aad, text, tag))
    }

    fn encapsulate(
        &mut self,
        scalar: &SecretScalar,
        peer: &PublicKey,
    ) -> Result<Encapsulated, CryptoError> {
        self.primitives.encapsulate(scalar, peer).ok_or(CryptoError::Failed)
    }

    fn public_key(&mut self, scalar: &SecretScalar) -> Result<PublicKey, CryptoError> {
        P::public_key(scalar).ok_or(CryptoError::Failed)
    }

    fn lift(&mut self, x: &[u8; 32]) -> Result<Option<PublicKey>, CryptoError> {
        Ok(P::lift(x))
    }

    fn agree(&mut self, key: PrivateKey<'_>, x: &[u8; 32]) -> Result<Option<Agreed>, CryptoError> {
        match key {
            PrivateKey::Scalar(scalar) => Ok(P::agree(scalar, x)),
            PrivateKey::External => Err(CryptoError::Unsupported),
        }
    }

    fn sign(
        &mut self,
        key: PrivateKey<'_>,
        digest: &[u8; 32],
        extra: &[u8; 32],
    ) -> Result<Signature, CryptoError> {
        match key {
            PrivateKey::Scalar(scalar) => P::sign(self, scalar, digest, extra),
            PrivateKey::External => Err(CryptoError::Unsupported),
        }
    }

    fn verify(
        &mut self,
        key: &PublicKey,
        digest: &[u8; 32],
        signature: &Signature,
    ) -> Result<bool, CryptoError> {
        Ok(P::verify(key, digest, signature))
    }

    fn scrub(&mut self) {
        P::scrub();
    }
}

/// RustCrypto's portable curve and cipher.
#[derive(Clone, Copy, Debug, Default)]
pub struct Portable;

impl Primitives for Portable {
    fn encapsulate(&self, scalar: &SecretScalar, peer: &PublicKey) -> Option<Encapsulated> {
        ec::encapsulate(&EncapsulateTask { scalar: scalar.clone(), peer: *peer })
    }

    fn public_key(scalar: &SecretScalar) -> Option<PublicKey> {
        Some(scalar.public_key())
    }

    fn lift(x: &[u8; 32]) -> Option<PublicKey> {
        ec::lift_even(x)
    }

    fn agree(key: &SecretScalar, x: &[u8; 32]) -> Option<Agreed> {
        ec::agree(key, x)
    }

    fn sign(
        _: &mut impl Crypto,
        key: &SecretScalar,
        digest: &[u8; 32],
        extra: &[u8; 32],
    ) -> Result<Signature, CryptoError> {
        ec::sign(key, digest, extra).ok_or(CryptoError::Failed)
    }

    fn verify(key: &PublicKey, digest: &[u8; 32], signature: &Signature) -> bool {
        ec::verify(&VerifyTask { key: *key, digest: *digest, signature: *signature })
    }

    fn seal(&self, key: &[u8; 16], nonce: &[u8; 12], aad: &[u8], text: &mut [u8]) -> [u8; 16] {
        aead::seal(key, nonce, aad, text)
    }

    fn open(
        &self,
        key: &[u8; 16],
        nonce: &[u8; 12],
        aad: &[u8],
        text: &mut [u8],
        tag: &[u8; 16],
    ) -> bool {
        aead::open(key, nonce, aad, text, tag)
    }

    fn scrub() {
        #[cfg(feature = "std")]
        duet_protocol::record::scrub_stack();
    }
}
