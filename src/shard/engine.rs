//! The one seam through which a shard's elliptic-curve work goes: all tasks of a turn at once, one
//! verdict each.

use duet_protocol::ec::{
    self, Agreed, EncapsulateTask, Encapsulated, SecretScalar, Signature, VerifyTask,
};

/// Answers tasks in batches. Every answer stands at its task's position.
pub trait Engine {
    /// x(secret · lift(x)) for each x; `None` for points that do not exist.
    fn decapsulate(&mut self, tasks: &[(&SecretScalar, [u8; 32])]) -> Vec<Option<Agreed>>;
    /// Whether each signature is its key's.
    fn verify(&mut self, tasks: &[&VerifyTask]) -> Vec<bool>;
    /// A fresh scalar's public point and its product with the peer's point.
    fn encapsulate(&mut self, tasks: &[&EncapsulateTask]) -> Vec<Option<Encapsulated>>;
    /// Signs each digest with the gateway's key and 32 bytes of fresh randomness.
    fn sign(&mut self, tasks: &[(&SecretScalar, [u8; 32], [u8; 32])]) -> Vec<Option<Signature>>;
}

/// The `p256` crate, one task after the other.
#[derive(Clone, Copy, Debug, Default)]
pub struct OneByOne;

impl Engine for OneByOne {
    fn decapsulate(&mut self, tasks: &[(&SecretScalar, [u8; 32])]) -> Vec<Option<Agreed>> {
        tasks.iter().map(|(secret, x)| ec::agree(secret, x)).collect()
    }

    fn verify(&mut self, tasks: &[&VerifyTask]) -> Vec<bool> {
        tasks.iter().map(|task| ec::verify(task)).collect()
    }

    fn encapsulate(&mut self, tasks: &[&EncapsulateTask]) -> Vec<Option<Encapsulated>> {
        tasks.iter().map(|task| ec::encapsulate(task)).collect()
    }

    fn sign(&mut self, tasks: &[(&SecretScalar, [u8; 32], [u8; 32])]) -> Vec<Option<Signature>> {
        tasks.iter().map(|(key, digest, extra)| ec::sign(key, digest, extra)).collect()
    }
}
