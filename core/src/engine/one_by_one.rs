//! The `p256` crate, one task after the other: the reference, and what batches are measured
//! against.

use duet_curve::Teeth;
use duet_protocol::ec::{
    self, Agreed, EncapsulateTask, Encapsulated, SecretScalar, Signature, VerifyTask,
};

use super::Engine;
use crate::{Random, Wiped};

/// Answers one task after the other.
#[derive(Clone, Copy, Debug, Default)]
pub struct OneByOne;

impl Engine for OneByOne {
    type PointTable = ();

    fn decapsulate(
        &mut self,
        secret: &SecretScalar,
        xs: &[[u8; 32]],
    ) -> Wiped<Option<(Agreed, ())>> {
        xs.iter().map(|x| ec::agree(secret, x).map(|agreed| (agreed, ()))).collect()
    }

    fn verify(&mut self, tasks: &[(&VerifyTask, Option<&Teeth>)]) -> Vec<Option<()>> {
        tasks.iter().map(|(task, _)| ec::verify(task).then_some(())).collect()
    }

    fn encapsulate(&mut self, tasks: &[(&EncapsulateTask, &())]) -> Wiped<Option<Encapsulated>> {
        tasks.iter().map(|(task, _)| ec::encapsulate(task)).collect()
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
