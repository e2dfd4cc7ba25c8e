//! Cryptography beside a secure element: the device's own key is there, all else is elsewhere.

use duet_protocol::{
    ec::{Agreed, Encapsulated, SecretScalar, SharedX, Signature},
    identity::PublicKey,
};

use crate::crypto::{Crypto, CryptoError, Element, PrivateKey};

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

    fn lift(&mut self, x: &[u8; 32]) -> Result<Option<PublicKey>, CryptoError> {
        self.crypto.lift(x)
    }

    fn agree(&mut self, key: PrivateKey<'_>, x: &[u8; 32]) -> Result<Option<Agreed>, CryptoError> {
        if let PrivateKey::Scalar(_) = key {
            return self.crypto.agree(key, x);
        }
        let Some(point) = self.crypto.lift(x)? else { return Ok(None) };
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
