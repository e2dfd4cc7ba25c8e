//! Cryptography by the gateway's own curve and cipher, one operation at a time: several times as
//! fast as the portable code where the processor has vector and AES instructions.

use std::{cell::LazyCell, thread_local, vec::Vec};

use duet_aead::{Gcm, Key};
use duet_curve::{Backend, EcdhItem, PublicKey as Point, SignItem};
use duet_protocol::{
    ec::{self, Agreed, Encapsulated, SecretScalar, SharedX, Signature, VerifyTask},
    identity::PublicKey,
};
use sha2::{Digest as _, Sha256};

use crate::{
    crypto::{Crypto, CryptoError, PrivateKey},
    software::{Random, Seeded},
};

thread_local! {
    static CURVE: LazyCell<duet_curve::Engine> = LazyCell::new(|| {
        let mut seed = [0; 32];
        // The seed guards batches of verifications against crafted signatures; none is made here.
        let _ = getrandom::fill(&mut seed);
        duet_curve::Engine::new(Backend::detect(), &seed)
    });
}

/// The curve of the calling thread; random bytes from `R`.
pub struct Fast<R = Seeded> {
    random: R,
    gcm: Gcm,
}

impl Fast {
    /// With a generator that this seed starts: 32 random bytes, used nowhere else.
    #[must_use]
    pub fn seeded(seed: [u8; 32]) -> Self {
        Self::new(Seeded::new(seed))
    }
}

impl<R: Random> Fast<R> {
    /// With this generator.
    #[must_use]
    pub fn new(random: R) -> Self {
        Self { random, gcm: Gcm::best() }
    }
}

fn scalar(secret: &SecretScalar) -> Result<duet_curve::SecretScalar, CryptoError> {
    duet_curve::SecretScalar::from_bytes(secret.expose()).ok_or(CryptoError::Failed)
}

fn own(key: PrivateKey<'_>) -> Result<duet_curve::SecretScalar, CryptoError> {
    match key {
        PrivateKey::Scalar(secret) => scalar(secret),
        PrivateKey::External => Err(CryptoError::Unsupported),
    }
}

impl<R: Random> Crypto for Fast<R> {
    fn random(&mut self, out: &mut [u8]) -> Result<(), CryptoError> {
        self.random.fill(out)
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
        let mut expanded = Key::vacant();
        expanded.init(self.gcm, key);
        Ok(self.gcm.seal(&expanded, nonce, aad, text))
    }

    fn open(
        &mut self,
        key: &[u8; 16],
        nonce: &[u8; 12],
        aad: &[u8],
        text: &mut [u8],
        tag: &[u8; 16],
    ) -> Result<bool, CryptoError> {
        let mut expanded = Key::vacant();
        expanded.init(self.gcm, key);
        Ok(self.gcm.open(&expanded, nonce, aad, text, tag).is_authentic())
    }

    fn encapsulate(
        &mut self,
        secret: &SecretScalar,
        peer: &PublicKey,
    ) -> Result<Encapsulated, CryptoError> {
        let secrets = [scalar(secret)?];
        let (_, peer) = peer.0.split_first_chunk::<1>().ok_or(CryptoError::Failed)?;
        let peer = peer.try_into().map_err(|_| CryptoError::Failed)?;
        let items = [EcdhItem { secret: &secrets[0], point: peer }];
        let (mut public, mut shared) = (Vec::<Point>::with_capacity(1), Vec::with_capacity(1));
        CURVE.with(|curve| {
            curve.key_pairs(&secrets, &mut public);
            curve.ecdh(&items, &mut shared);
        });
        let public = public.pop().ok_or(CryptoError::Failed)?;
        let shared = shared.pop().flatten().ok_or(CryptoError::Failed)?;
        let point = PublicKey::from_coordinates(&public.x(), &public.y()).with_even_y();
        Ok(Encapsulated { point, shared: SharedX(*shared.as_bytes()) })
    }

    fn public_key(&mut self, secret: &SecretScalar) -> Result<PublicKey, CryptoError> {
        let (secrets, mut public) = ([scalar(secret)?], Vec::<Point>::with_capacity(1));
        CURVE.with(|curve| curve.key_pairs(&secrets, &mut public));
        let public = public.pop().ok_or(CryptoError::Failed)?;
        Ok(PublicKey::from_coordinates(&public.x(), &public.y()))
    }

    fn agree(&mut self, key: PrivateKey<'_>, x: &[u8; 32]) -> Result<Option<Agreed>, CryptoError> {
        let (secret, mut answers) = (own(key)?, Vec::with_capacity(1));
        CURVE.with(|curve| curve.decapsulate(&secret, &[*x], &mut answers));
        Ok(answers.pop().flatten().map(|answer| Agreed {
            point: PublicKey::from_coordinates(x, &answer.y),
            shared: SharedX(*answer.shared.as_bytes()),
        }))
    }

    fn sign(
        &mut self,
        key: PrivateKey<'_>,
        digest: &[u8; 32],
        extra: &[u8; 32],
    ) -> Result<Signature, CryptoError> {
        let (key, mut signatures) = (own(key)?, Vec::with_capacity(1));
        let item = SignItem { digest, randomness: extra };
        CURVE.with(|curve| curve.sign(&key, &[item], &mut signatures));
        signatures.pop().ok_or(CryptoError::Failed)
    }

    fn verify(
        &mut self,
        key: &PublicKey,
        digest: &[u8; 32],
        signature: &Signature,
    ) -> Result<bool, CryptoError> {
        Ok(ec::verify(&VerifyTask { key: *key, digest: *digest, signature: *signature }))
    }

    fn scrub(&mut self) {
        duet_protocol::record::scrub_stack();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::software::Software;

    #[test]
    fn it_agrees_with_the_portable_code() {
        let (mut fast, mut slow) = (Fast::seeded([1; 32]), Software::seeded([1; 32]));
        for byte in 1..=20 {
            let scalar = SecretScalar::from_bytes(&[byte; 32]).unwrap();
            let peer = SecretScalar::from_bytes(&[byte + 100; 32]).unwrap().public_key();
            let (quick, other) = (
                fast.encapsulate(&scalar, &peer).unwrap(),
                slow.encapsulate(&scalar, &peer).unwrap(),
            );
            assert_eq!(quick.point, other.point);
            assert!(quick.shared.0 == other.shared.0);
            let key = PrivateKey::Scalar(&scalar);
            let quick = fast.agree(key, &peer.x()).unwrap().unwrap();
            let other = slow.agree(key, &peer.x()).unwrap().unwrap();
            assert_eq!(quick.point, other.point);
            assert!(quick.shared.0 == other.shared.0);
            let signature = fast.sign(key, &[byte; 32], &[3; 32]).unwrap();
            assert!(slow.verify(&scalar.public_key(), &[byte; 32], &signature).unwrap());
            let mut text = [byte; 40];
            let tag = fast.seal(&[byte; 16], &[2; 12], b"aad", &mut text).unwrap();
            assert!(!slow.open(&[byte; 16], &[2; 12], b"other", &mut text, &tag).unwrap());
            assert!(slow.open(&[byte; 16], &[2; 12], b"aad", &mut text, &tag).unwrap());
            assert_eq!(text, [byte; 40]);
        }
        assert!(
            fast.agree(
                PrivateKey::Scalar(&SecretScalar::from_bytes(&[1; 32]).unwrap()),
                &[0xff; 32]
            )
            .unwrap()
            .is_none()
        );
    }
}
