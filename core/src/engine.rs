//! The one seam through which a shard's elliptic-curve work goes: all tasks of a turn at once, one
//! answer each, at its task's position. Answers that are secret come in lists that wipe what leaves them.

mod batched;
mod one_by_one;

pub use batched::Batched;
use duet_curve::Teeth;
use duet_protocol::ec::{
    Agreed, EncapsulateTask, Encapsulated, SecretScalar, Signature, VerifyTask,
};
pub use one_by_one::OneByOne;

use crate::{Random, Wiped};

/// Answers tasks in batches.
pub trait Engine {
    /// What is kept of a point for another multiple of it.
    type PointTable;

    /// x(secret · lift(x)) for each x; `None` for points that do not exist.
    fn decapsulate(
        &mut self,
        secret: &SecretScalar,
        xs: &[[u8; 32]],
    ) -> Wiped<Option<(Agreed, Self::PointTable)>>;

    /// Whether each signature is its key's, of which some come with their teeth; for each that is, what is kept of the
    /// key. Nothing else that an engine knows of a key from before may change the work: it would tell a stranger who was
    /// here (R38).
    fn verify(&mut self, tasks: &[(&VerifyTask, Option<&Teeth>)]) -> Vec<Option<Self::PointTable>>;

    /// A fresh scalar's public point and its product with the peer's point, of which this was kept.
    fn encapsulate(
        &mut self,
        tasks: &[(&EncapsulateTask, &Self::PointTable)],
    ) -> Wiped<Option<Encapsulated>>;

    /// Signs each digest, with a nonce hedged by fresh randomness.
    fn sign(
        &mut self,
        secret: &SecretScalar,
        digests: &[[u8; 32]],
        random: &mut Random,
    ) -> Vec<Option<Signature>>;

    /// How many signatures took the slow path so far: more than a few mean that somebody makes them
    /// on purpose.
    fn slow_verifications(&self) -> u64;
}

#[cfg(test)]
mod tests {
    use duet_protocol::ec;
    use duet_protocol::identity::PublicKey;

    use super::*;

    fn scalar(byte: u8) -> SecretScalar {
        SecretScalar::from_bytes(&[byte; 32]).unwrap()
    }

    /// Runs every task through an engine and compares with the reference, one at a time.
    fn agrees_with_reference(mut engine: impl Engine, rounds: usize) {
        let secret = scalar(0x42);
        let mut random = crate::testing::random(1);
        for round in 0..rounds {
            let devices: Vec<_> =
                (1..=20u8).map(|i| scalar(i + 20 * u8::try_from(round).unwrap())).collect();
            let mut xs: Vec<_> = devices.iter().map(|d| d.public_key().x()).collect();
            xs[7] = [0xff; 32];
            let kept = engine.decapsulate(&secret, &xs);
            for (x, answer) in xs.iter().zip(kept.iter()) {
                let expected = ec::agree(&secret, x);
                assert_eq!(expected.is_some(), answer.is_some());
                if let (Some(expected), Some((agreed, _))) = (expected, answer) {
                    assert_eq!(expected.point, agreed.point);
                    assert!(expected.shared.0 == agreed.shared.0);
                }
            }

            let keys: Vec<_> = devices.iter().map(SecretScalar::public_key).collect();
            let mut tasks: Vec<_> = devices
                .iter()
                .zip(&keys)
                .map(|(device, key)| {
                    let signature = ec::sign(device, &[9; 32], &[1; 32]).unwrap();
                    VerifyTask { key: *key, digest: [9; 32], signature }
                })
                .collect();
            tasks[3].signature[40] ^= 1;
            tasks[11].digest[0] ^= 1;
            let point = |key: &PublicKey| duet_curve::PublicKey::from_sec1_bytes(&key.0).unwrap();
            let points: Vec<_> = keys.iter().map(point).collect();
            let teeth = Teeth::of(duet_curve::Backend::detect(), &points);
            let expected: Vec<_> = tasks.iter().map(ec::verify).collect();
            for with_teeth in [|_| false, |_| true, |i| i % 3 == 0] {
                let tasks: Vec<_> = (tasks.iter().zip(&teeth).enumerate())
                    .map(|(i, (task, teeth))| (task, Some(teeth).filter(|_| with_teeth(i))))
                    .collect();
                let tables = engine.verify(&tasks);
                assert!(tables.iter().map(Option::is_some).eq(expected.iter().copied()));

                // With the devices' keys and with the points that came, mixed.
                let peer = |i: usize| match &kept[i] {
                    Some((agreed, table)) if i % 2 == 1 => Some((agreed.point, table)),
                    _ => Some((keys[i], tables[i].as_ref()?)),
                };
                let (tasks, tables): (Vec<_>, Vec<_>) = (0..20)
                    .filter_map(|i| {
                        let (peer, table) = peer(i)?;
                        let scalar = scalar(100 + u8::try_from(i).unwrap());
                        Some((EncapsulateTask { scalar, peer }, table))
                    })
                    .unzip();
                assert_eq!(tasks.len(), 20);
                let with: Vec<_> = tasks.iter().zip(tables).collect();
                for (task, answer) in tasks.iter().zip(engine.encapsulate(&with)) {
                    let (expected, answer) = (ec::encapsulate(task).unwrap(), answer.unwrap());
                    assert_eq!(expected.point, answer.point);
                    assert!(expected.shared.0 == answer.shared.0);
                }
            }

            let digests = [[1; 32], [2; 32], [3; 32]];
            for (digest, signature) in
                digests.iter().zip(engine.sign(&secret, &digests, &mut random))
            {
                let key = secret.public_key();
                let signature = signature.unwrap();
                assert!(ec::verify(&VerifyTask { key, digest: *digest, signature }));
            }
        }
    }

    #[test]
    fn one_by_one_is_the_reference() {
        agrees_with_reference(OneByOne, 1);
    }

    #[test]
    fn batches_agree_with_the_reference() {
        for backend in [duet_curve::Backend::detect(), duet_curve::Backend::portable()] {
            agrees_with_reference(Batched::new(backend, &[3; 32]), 4);
        }
    }
}
