//! Cryptography by RustCrypto's portable code, and the same beside a secure element.

use duet_protocol::{
    aead,
    ec::{
        self, Agreed, EncapsulateTask, Encapsulated, SecretScalar, SharedX, Signature, VerifyTask,
    },
    identity::PublicKey,
};
use sha2::{Digest as _, Sha256};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::crypto::{Crypto, CryptoError, Element, PrivateKey};

/// Where random bytes come from.
pub trait Random {
    /// Fills `out`.
    ///
    /// # Errors
    /// [`CryptoError::Random`].
    fn fill(&mut self, out: &mut [u8]) -> Result<(), CryptoError>;
}

/// A generator that was seeded once: SHA-256 in counter mode with a ratchet, so that who sees its
/// state later cannot compute what it gave before.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct Seeded([u8; 32]);

impl Seeded {
    /// `seed` is 32 random bytes, used nowhere else.
    #[must_use]
    pub const fn new(seed: [u8; 32]) -> Self {
        Self(seed)
    }

    fn block(&self, label: u8) -> [u8; 32] {
        Sha256::new_with_prefix(b"duet device random")
            .chain_update([label])
            .chain_update(self.0)
            .finalize()
            .into()
    }
}

impl Random for Seeded {
    fn fill(&mut self, out: &mut [u8]) -> Result<(), CryptoError> {
        for chunk in out.chunks_mut(32) {
            let mut block = self.block(1);
            self.0 = self.block(0);
            chunk.copy_from_slice(&block[..chunk.len()]);
            block.zeroize();
        }
        Ok(())
    }
}

/// The operating system's generator.
#[cfg(feature = "std")]
#[derive(Clone, Copy, Debug, Default)]
pub struct System;

#[cfg(feature = "std")]
impl Random for System {
    fn fill(&mut self, out: &mut [u8]) -> Result<(), CryptoError> {
        getrandom::fill(out).map_err(|_| CryptoError::Random)
    }
}

/// Portable code for everything; random bytes from `R`.
pub struct Software<R = Seeded>(R);

impl Software {
    /// With a generator that this seed starts: 32 random bytes, used nowhere else.
    #[must_use]
    pub const fn seeded(seed: [u8; 32]) -> Self {
        Self(Seeded::new(seed))
    }
}

impl<R: Random> Software<R> {
    /// With this generator.
    #[must_use]
    pub const fn new(random: R) -> Self {
        Self(random)
    }
}

impl<R: Random> Crypto for Software<R> {
    fn random(&mut self, out: &mut [u8]) -> Result<(), CryptoError> {
        self.0.fill(out)
    }

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
        Ok(aead::seal(key, nonce, aad, text))
    }

    fn open(
        &mut self,
        key: &[u8; 16],
        nonce: &[u8; 12],
        aad: &[u8],
        text: &mut [u8],
        tag: &[u8; 16],
    ) -> Result<bool, CryptoError> {
        Ok(aead::open(key, nonce, aad, text, tag))
    }

    fn encapsulate(
        &mut self,
        scalar: &SecretScalar,
        peer: &PublicKey,
    ) -> Result<Encapsulated, CryptoError> {
        let task = EncapsulateTask { scalar: scalar.clone(), peer: *peer };
        ec::encapsulate(&task).ok_or(CryptoError::Failed)
    }

    fn public_key(&mut self, scalar: &SecretScalar) -> Result<PublicKey, CryptoError> {
        Ok(scalar.public_key())
    }

    fn agree(&mut self, key: PrivateKey<'_>, x: &[u8; 32]) -> Result<Option<Agreed>, CryptoError> {
        match key {
            PrivateKey::Scalar(scalar) => Ok(ec::agree(scalar, x)),
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
            PrivateKey::Scalar(scalar) => {
                ec::sign(scalar, digest, extra).ok_or(CryptoError::Failed)
            }
            PrivateKey::External => Err(CryptoError::Unsupported),
        }
    }

    fn verify(
        &mut self,
        key: &PublicKey,
        digest: &[u8; 32],
        signature: &Signature,
    ) -> Result<bool, CryptoError> {
        Ok(ec::verify(&VerifyTask { key: *key, digest: *digest, signature: *signature }))
    }

    #[cfg(feature = "std")]
    fn scrub(&mut self) {
        duet_protocol::record::scrub_stack();
    }
}

/// `C` for everything, but for what is done with the device's own key: that is in `E`.
pub struct WithElement<C, E> {
    /// Hashes, records, ephemeral keys, random bytes.
    pub crypto: C,
    /// The device's key.
    pub element: E,
}

impl<C: Crypto, E: Element> Crypto for WithElement<C, E> {
    fn random(&mut self, out: &mut [u8]) -> Result<(), CryptoError> {
        self.crypto.random(out)
    }

    fn sha256(&mut self, parts: &[&[u8]]) -> Result<[u8; 32], CryptoError> {
        self.crypto.sha256(parts)
    }

    fn hmac(&mut self, key: &[u8], parts: &[&[u8]]) -> Result<[u8; 32], CryptoError> {
        self.crypto.hmac(key, parts)
    }

    fn seal(
        &mut self,
        key: &[u8; 16],
        nonce: &[u8; 12],
        aad: &[u8],
        text: &mut [u8],
    ) -> Result<[u8; 16], CryptoError> {
        self.crypto.seal(key, nonce, aad, text)
    }

    fn open(
        &mut self,
        key: &[u8; 16],
        nonce: &[u8; 12],
        aad: &[u8],
        text: &mut [u8],
        tag: &[u8; 16],
    ) -> Result<bool, CryptoError> {
        self.crypto.open(key, nonce, aad, text, tag)
    }

    fn encapsulate(
        &mut self,
        scalar: &SecretScalar,
        peer: &PublicKey,
    ) -> Result<Encapsulated, CryptoError> {
        self.crypto.encapsulate(scalar, peer)
    }

    fn public_key(&mut self, scalar: &SecretScalar) -> Result<PublicKey, CryptoError> {
        self.crypto.public_key(scalar)
    }

    fn agree(&mut self, key: PrivateKey<'_>, x: &[u8; 32]) -> Result<Option<Agreed>, CryptoError> {
        if let PrivateKey::Scalar(_) = key {
            return self.crypto.agree(key, x);
        }
        let Some(point) = ec::lift_even(x) else { return Ok(None) };
        let shared = SharedX(self.element.agree(&point)?);
        Ok(Some(Agreed { point, shared }))
    }

    fn sign(
        &mut self,
        key: PrivateKey<'_>,
        digest: &[u8; 32],
        extra: &[u8; 32],
    ) -> Result<Signature, CryptoError> {
        match key {
            PrivateKey::Scalar(_) => self.crypto.sign(key, digest, extra),
            PrivateKey::External => self.element.sign(digest),
        }
    }

    fn verify(
        &mut self,
        key: &PublicKey,
        digest: &[u8; 32],
        signature: &Signature,
    ) -> Result<bool, CryptoError> {
        self.crypto.verify(key, digest, signature)
    }

    fn hedge(&mut self, salt: &[u8; 32]) -> Result<[u8; 32], CryptoError> {
        self.element.hedge(salt)
    }

    fn scrub(&mut self) {
        self.crypto.scrub();
    }
}
