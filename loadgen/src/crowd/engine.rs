//! A device's elliptic-curve work by the batched curve, one at a time: several times as fast as the portable code that a
//! real device links, so that one machine can play a hundred thousand of them.

use std::cell::LazyCell;

use duet_curve::{Backend, EcdhItem, PublicKey as Point, SignItem};
use duet_protocol::ec::{
    self, Agreed, EncapsulateTask, Encapsulated, SecretScalar, SharedX, Signature, VerifyTask,
};
use duet_protocol::identity::PublicKey;

thread_local! {
    static CURVE: LazyCell<duet_curve::Engine> = LazyCell::new(|| {
        let mut seed = [0; 32];
        // The seed guards verification against crafted signatures; here it verifies the gateway's.
        let _ = getrandom::fill(&mut seed);
        duet_curve::Engine::new(Backend::detect(), &seed)
    });
}

/// The curve of the calling thread.
#[derive(Clone, Copy, Debug)]
pub struct Quick;

fn scalar(secret: &SecretScalar) -> Option<duet_curve::SecretScalar> {
    duet_curve::SecretScalar::from_bytes(secret.expose())
}

impl ec::Engine for Quick {
    fn agree(&self, secret: &SecretScalar, x: &[u8; 32]) -> Option<Agreed> {
        let (secret, mut answers) = (scalar(secret)?, Vec::with_capacity(1));
        CURVE.with(|curve| curve.decapsulate(&secret, &[*x], &mut answers));
        let answer = answers.pop()??;
        Some(Agreed {
            point: PublicKey::from_coordinates(x, &answer.y),
            shared: SharedX(*answer.shared.as_bytes()),
        })
    }

    fn encapsulate(&self, task: &EncapsulateTask) -> Option<Encapsulated> {
        let secrets = [scalar(&task.scalar)?];
        let (_, peer) = task.peer.0.split_first_chunk::<1>()?;
        let items = [EcdhItem { secret: &secrets[0], point: peer.try_into().ok()? }];
        let (mut public, mut shared) = (Vec::<Point>::with_capacity(1), Vec::with_capacity(1));
        CURVE.with(|curve| {
            curve.key_pairs(&secrets, &mut public);
            curve.ecdh(&items, &mut shared);
        });
        let (public, shared) = (public.pop()?, shared.pop()??);
        let point = PublicKey::from_coordinates(&public.x(), &public.y()).with_even_y();
        Some(Encapsulated { point, shared: SharedX(*shared.as_bytes()) })
    }

    fn sign(&self, key: &SecretScalar, digest: &[u8; 32], extra: &[u8; 32]) -> Option<Signature> {
        let (key, mut signatures) = (scalar(key)?, Vec::with_capacity(1));
        let item = SignItem { digest, randomness: extra };
        CURVE.with(|curve| curve.sign(&key, &[item], &mut signatures));
        signatures.pop()
    }

    fn verify(&self, task: &VerifyTask) -> bool {
        ec::verify(task)
    }
}

#[cfg(test)]
mod tests {
    use duet_protocol::ec::Engine as _;

    use super::*;

    #[test]
    fn it_agrees_with_the_code_that_devices_link() {
        for byte in 1..=20 {
            let scalar = SecretScalar::from_bytes(&[byte; 32]).unwrap();
            let peer = SecretScalar::from_bytes(&[byte + 100; 32]).unwrap().public_key();
            let task = EncapsulateTask { scalar: scalar.clone(), peer };
            let (quick, slow) =
                (Quick.encapsulate(&task).unwrap(), ec::encapsulate(&task).unwrap());
            assert_eq!(quick.point, slow.point);
            assert!(quick.shared.0 == slow.shared.0);
            let (quick, slow) =
                (Quick.agree(&scalar, &peer.x()).unwrap(), ec::agree(&scalar, &peer.x()).unwrap());
            assert_eq!(quick.point, slow.point);
            assert!(quick.shared.0 == slow.shared.0);
            let signature = Quick.sign(&scalar, &[byte; 32], &[3; 32]).unwrap();
            let key = scalar.public_key();
            assert!(ec::verify(&VerifyTask { key, digest: [byte; 32], signature }));
        }
    }
}
