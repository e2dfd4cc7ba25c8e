//! Cryptography by the gateway's own curve and cipher, one operation at a time: several times as
//! fast as the portable code where the processor has vector and AES instructions.

use std::{cell::LazyCell, thread_local, vec::Vec};

use duet_aead::{Gcm, Key};
use duet_curve::{Backend, EcdhItem, PublicKey as Point, SignItem};
use duet_protocol::{
    ec::{self, Agreed, Encapsulated, SecretScalar, SharedX, Signature, VerifyTask},
    identity::PublicKey,
};

use crate::{
    crypto::{Crypto, CryptoError},
    software::{Primitives, Seeded, Suite},
};

thread_local! {
    static CURVE: LazyCell<duet_curve::Engine> = LazyCell::new(|| {
        let mut seed = [0; 32];
        // The seed guards batches of verifications against crafted signatures; none is made here.
        let _ = getrandom::fill(&mut seed);
        duet_curve::Engine::new(Backend::detect(), &seed)
    });
}

/// The gateway's own code for everything.
pub type Fast<R = Seeded> = Suite<Vectors, R>;

/// The curve of the calling thread, and the best cipher that this processor has.
pub struct Vectors(Gcm);

impl Default for Vectors {
    fn default() -> Self {
        Self(Gcm::best())
    }
}

fn scalar(secret: &SecretScalar) -> Option<duet_curve::SecretScalar> {
    duet_curve::SecretScalar::from_bytes(secret.expose())
}

impl Vectors {
    fn key(&self, key: &[u8; 16]) -> Key {
        let mut expanded = Key::vacant();
        expanded.init(self.0, key);
        expanded
    }
}

impl Primitives for Vectors {
    fn encapsulate(&self, secret: &SecretScalar, peer: &PublicKey) -> Option<Encapsulated> {
        let secrets = [scalar(secret)?];
        let (_, peer) = peer.0.split_first_chunk::<1>()?;
        let items = [EcdhItem { secret: &secrets[0], point: peer.try_into().ok()? }];
        let (mut public, mut shared) = (Vec::<Point>::with_capacity(1), Vec::with_capacity(1));
        CURVE.with(|curve| {
            curve.key_pairs(&secrets, &mut public);
            curve.ecdh(&items, &mut shared);
        });
        let (public, shared) = (public.pop()?, shared.pop().flatten()?);
        let point = PublicKey::from_coordinates(&public.x(), &public.y()).with_even_y();
        Some(Encapsulated { point, shared: SharedX(*shared.as_bytes()) })
    }

    fn public_key(secret: &SecretScalar) -> Option<PublicKey> {
        let (secrets, mut public) = ([scalar(secret)?], Vec::<Point>::with_capacity(1));
        CURVE.with(|curve| curve.key_pairs(&secrets, &mut public));
        let public = public.pop()?;
        Some(PublicKey::from_coordinates(&public.x(), &public.y()))
    }

    fn lift(x: &[u8; 32]) -> Option<PublicKey> {
        ec::lift_even(x)
    }

    fn agree(key: &SecretScalar, x: &[u8; 32]) -> Option<Agreed> {
        let (secret, mut answers) = (scalar(key)?, Vec::with_capacity(1));
        CURVE.with(|curve| curve.decapsulate(&secret, &[*x], &mut answers));
        answers.pop().flatten().map(|answer| Agreed {
            point: PublicKey::from_coordinates(x, &answer.y),
            shared: SharedX(*answer.shared.as_bytes()),
        })
    }

    fn sign(
        _: &mut impl Crypto,
        key: &SecretScalar,
        digest: &[u8; 32],
        extra: &[u8; 32],
    ) -> Result<Signature, CryptoError> {
        let (key, mut signatures) =
            (scalar(key).ok_or(CryptoError::Failed)?, Vec::with_capacity(1));
        let item = SignItem { digest, randomness: extra };
        CURVE.with(|curve| curve.sign(&key, &[item], &mut signatures));
        signatures.pop().ok_or(CryptoError::Failed)
    }

    fn verify(key: &PublicKey, digest: &[u8; 32], signature: &Signature) -> bool {
        ec::verify(&VerifyTask { key: *key, digest: *digest, signature: *signature })
    }

    fn seal(&self, key: &[u8; 16], nonce: &[u8; 12], aad: &[u8], text: &mut [u8]) -> [u8; 16] {
        self.0.seal(&self.key(key), nonce, aad, text)
    }

    fn open(
        &self,
        key: &[u8; 16],
        nonce: &[u8; 12],
        aad: &[u8],
        text: &mut [u8],
        tag: &[u8; 16],
    ) -> bool {
        self.0.open(&self.key(key), nonce, aad, text, tag).is_authentic()
    }

    fn scrub() {
        duet_protocol::record::scrub_stack();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{crypto::PrivateKey, software::Software};

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
