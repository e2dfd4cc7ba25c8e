//! The batched engine: eight lanes at once where the CPU has them.

use duet_curve::{Backend, Key, PointTable, SignItem, Teeth, VerifyItem};
use duet_protocol::ec::{
    Agreed, EncapsulateTask, Encapsulated, SecretScalar, SharedX, Signature, VerifyTask,
};
use duet_protocol::identity::PublicKey;
use zeroize::Zeroizing;

use super::Engine;
use crate::{Random, Wiped};

/// Answers batches with `duet_curve`.
pub struct Batched {
    curve: duet_curve::Engine,
}

impl Batched {
    /// The seed, fresh and random, is for verifying signatures together.
    #[must_use]
    pub fn new(backend: Backend, seed: &[u8; 32]) -> Self {
        Self { curve: duet_curve::Engine::new(backend, seed) }
    }
}

fn scalar(secret: &SecretScalar) -> duet_curve::SecretScalar {
    match duet_curve::SecretScalar::from_bytes(secret.expose()) {
        Some(scalar) => scalar,
        None => unreachable!("a secret scalar is in range by construction"),
    }
}

impl Engine for Batched {
    type PointTable = PointTable;

    fn decapsulate(
        &mut self,
        secret: &SecretScalar,
        xs: &[[u8; 32]],
    ) -> Wiped<Option<(Agreed, PointTable)>> {
        // The engine makes no more of them than there is room for, so that none moves; each is wiped where it lies.
        let mut answers = Vec::with_capacity(xs.len());
        self.curve.decapsulate(&scalar(secret), xs, &mut answers);
        answers
            .iter()
            .zip(xs)
            .map(|(answer, x)| {
                let answer = answer.as_ref()?;
                let shared = SharedX(*answer.shared.as_bytes());
                Some((
                    Agreed { point: PublicKey::from_coordinates(x, &answer.y), shared },
                    answer.table.clone(),
                ))
            })
            .collect()
    }

    fn verify(&mut self, tasks: &[(&VerifyTask, Option<&Teeth>)]) -> Vec<Option<PointTable>> {
        let keys: Vec<_> = tasks
            .iter()
            .map(|(task, _)| match duet_curve::PublicKey::from_sec1_bytes(&task.key.0) {
                Ok(key) => key,
                Err(_) => unreachable!("public keys are on the curve by construction"),
            })
            .collect();
        let items: Vec<_> = tasks
            .iter()
            .zip(&keys)
            .map(|((task, teeth), key)| VerifyItem {
                key: teeth.map_or(Key::Plain(key), |teeth| Key::Teeth(key, teeth)),
                digest: &task.digest,
                signature: &task.signature,
            })
            .collect();
        let mut verdicts = Vec::with_capacity(items.len());
        let mut tables = Vec::with_capacity(items.len());
        self.curve.verify_keep(&items, &mut verdicts, &mut tables);
        let kept = tables.into_iter().zip(verdicts);
        kept.map(|(table, verdict)| verdict.is_valid().then_some(table)).collect()
    }

    fn encapsulate(
        &mut self,
        tasks: &[(&EncapsulateTask, &PointTable)],
    ) -> Wiped<Option<Encapsulated>> {
        let scalars: Vec<_> = tasks.iter().map(|(task, _)| scalar(&task.scalar)).collect();
        let items: Vec<_> =
            tasks.iter().zip(&scalars).map(|((_, table), scalar)| (*table, scalar)).collect();
        // The engine makes no more of them than there is room for, so that none moves; each is wiped where it lies.
        let mut answers = Vec::with_capacity(items.len());
        self.curve.agree(&items, &mut answers);
        answers
            .iter()
            .map(|agreed| {
                let shared = SharedX(*agreed.shared.as_bytes());
                let (x, y) = (agreed.public.x(), agreed.public.y());
                let point = PublicKey::from_coordinates(&x, &y).with_even_y();
                Some(Encapsulated { point, shared })
            })
            .collect()
    }

    fn sign(
        &mut self,
        secret: &SecretScalar,
        digests: &[[u8; 32]],
        random: &mut Random,
    ) -> Vec<Option<Signature>> {
        let randomness: Vec<Zeroizing<[u8; 32]>> =
            digests.iter().map(|_| Zeroizing::new(random.bytes())).collect();
        let items: Vec<_> = digests
            .iter()
            .zip(&randomness)
            .map(|(digest, randomness)| SignItem { digest, randomness })
            .collect();
        let mut signatures = Vec::with_capacity(items.len());
        self.curve.sign(&scalar(secret), &items, &mut signatures);
        signatures.into_iter().map(Some).collect()
    }

    fn slow_verifications(&self) -> u64 {
        self.curve.slow_verifications()
    }
}
