//! Elliptic-curve work, each answer computed once a thread: schedules begin alike, and ask the same again and again.

use std::cell::RefCell;
use std::collections::HashMap;

use duet_core::engine::Engine;
use duet_core::{Random, Wiped};
use duet_curve::Teeth;
use duet_device::crypto::{Crypto, CryptoError, PrivateKey};
use duet_device::software::Software;
use duet_protocol::ec::{
    self, Agreed, EncapsulateTask, Encapsulated, SecretScalar, Signature, VerifyTask,
};
use duet_protocol::identity::PublicKey;

#[derive(Default)]
struct Known {
    agreed: HashMap<[u8; 32], Option<Agreed>>,
    encapsulated: HashMap<([u8; 32], [u8; 32]), Option<Encapsulated>>,
    /// The devices' agreements, by scalar and x.
    halves: HashMap<([u8; 32], [u8; 32]), Option<Agreed>>,
}

thread_local! {
    static KNOWN: RefCell<Known> = RefCell::default();
}

fn encapsulate(task: &EncapsulateTask) -> Option<Encapsulated> {
    KNOWN.with_borrow_mut(|known| {
        let key = (*task.scalar.expose(), task.peer.x());
        known.encapsulated.entry(key).or_insert_with(|| ec::encapsulate(task)).clone()
    })
}

/// The gateway's engine. There is one gateway key.
pub(crate) struct Remembered;

impl Engine for Remembered {
    type PointTable = ();

    fn decapsulate(
        &mut self,
        secret: &SecretScalar,
        xs: &[[u8; 32]],
    ) -> Wiped<Option<(Agreed, ())>> {
        let agreed = |x: &[u8; 32]| {
            KNOWN.with_borrow_mut(|known| {
                known.agreed.entry(*x).or_insert_with(|| ec::agree(secret, x)).clone()
            })
        };
        xs.iter().map(|x| agreed(x).map(|agreed| (agreed, ()))).collect()
    }

    fn verify(&mut self, tasks: &[(&VerifyTask, Option<&Teeth>)]) -> Vec<Option<()>> {
        tasks.iter().map(|(task, _)| ec::verify(task).then_some(())).collect()
    }

    fn encapsulate(&mut self, tasks: &[(&EncapsulateTask, &())]) -> Wiped<Option<Encapsulated>> {
        tasks.iter().map(|(task, _)| encapsulate(task)).collect()
    }

    fn sign(
        &mut self,
        secret: &SecretScalar,
        digests: &[[u8; 32]],
        random: &mut Random,
    ) -> Vec<Option<Signature>> {
        digests.iter().map(|digest| ec::sign(secret, digest, &random.bytes())).collect()
    }

    fn slow_verifications(&self) -> u64 {
        0
    }
}

/// Random bytes that come again after a while, so that the same few scalars are drawn in every schedule. Session ids are
/// drawn until one is free.
pub(crate) fn random() -> Random {
    let mut dice = crate::search::Dice(5);
    let pattern: Vec<u8> = (0..31).map(|_| dice.draw().to_le_bytes()[3]).collect();
    let mut at = 0;
    Random::new(move |out| {
        for byte in out {
            *byte = pattern[at % pattern.len()];
            at += 1;
        }
    })
}

/// The device's cryptography.
pub(crate) struct Remembering(Software);

impl Remembering {
    pub(crate) fn seeded(seed: [u8; 32]) -> Self {
        Self(Software::seeded(seed))
    }
}

impl Crypto for Remembering {
    fn random(&mut self, out: &mut [u8]) -> Result<(), CryptoError> {
        self.0.random(out)
    }

    fn sha256(&mut self, parts: &[&[u8]]) -> Result<[u8; 32], CryptoError> {
        self.0.sha256(parts)
    }

    fn seal(
        &mut self,
        key: &[u8; 16],
        nonce: &[u8; 12],
        aad: &[u8],
        text: &mut [u8],
    ) -> Result<[u8; 16], CryptoError> {
        self.0.seal(key, nonce, aad, text)
    }

    fn open(
        &mut self,
        key: &[u8; 16],
        nonce: &[u8; 12],
        aad: &[u8],
        text: &mut [u8],
        tag: &[u8; 16],
    ) -> Result<bool, CryptoError> {
        self.0.open(key, nonce, aad, text, tag)
    }

    fn encapsulate(
        &mut self,
        scalar: &SecretScalar,
        peer: &PublicKey,
    ) -> Result<Encapsulated, CryptoError> {
        let task = EncapsulateTask { scalar: scalar.clone(), peer: *peer };
        encapsulate(&task).ok_or(CryptoError::Failed)
    }

    fn public_key(&mut self, scalar: &SecretScalar) -> Result<PublicKey, CryptoError> {
        self.0.public_key(scalar)
    }

    fn agree(&mut self, key: PrivateKey<'_>, x: &[u8; 32]) -> Result<Option<Agreed>, CryptoError> {
        let PrivateKey::Scalar(scalar) = key else { return Err(CryptoError::Unsupported) };
        KNOWN.with_borrow_mut(|known| {
            let key = (*scalar.expose(), *x);
            let agreed = known.halves.entry(key).or_insert_with(|| ec::agree(scalar, x));
            Ok(agreed.clone())
        })
    }

    fn sign(
        &mut self,
        key: PrivateKey<'_>,
        digest: &[u8; 32],
        extra: &[u8; 32],
    ) -> Result<Signature, CryptoError> {
        self.0.sign(key, digest, extra)
    }

    fn verify(
        &mut self,
        key: &PublicKey,
        digest: &[u8; 32],
        signature: &Signature,
    ) -> Result<bool, CryptoError> {
        self.0.verify(key, digest, signature)
    }
}
