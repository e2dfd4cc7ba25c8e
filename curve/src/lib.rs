//! Batched P-256: ECDSA verification with a table for each known key, constant-time Diffie-Hellman,
//! key pairs and signing.
//!
//! A server that knows its clients' public keys in advance can precompute a table for each, and verify
//! eight signatures at once in the lanes of AVX-512 IFMA. Both together are an order of magnitude
//! faster than verifying one at a time. Every operation takes a batch and gives one result an item: a
//! forged signature does not hurt its neighbours. Where the CPU lacks AVX-512 IFMA, a portable backend
//! runs the same formulas one lane at a time.
//!
//! ```
//! use duet_curve::{Backend, Engine, Key, PublicKey, SecretScalar, SignItem, VerifyItem};
//!
//! let engine = Engine::new(Backend::detect(), &[7; 32]); // use random bytes
//! let secret = SecretScalar::from_bytes(&[1; 32]).expect("in range");
//! let (digest, randomness) = ([2; 32], [3; 32]);
//!
//! let mut signatures = Vec::new();
//! engine.sign(&secret, &[SignItem { digest: &digest, randomness: &randomness }], &mut signatures);
//!
//! let mut keys = Vec::new();
//! engine.key_pairs(std::slice::from_ref(&secret), &mut keys);
//!
//! let mut verdicts = Vec::new();
//! let item = VerifyItem { key: Key::Plain(&keys[0]), digest: &digest, signature: &signatures[0] };
//! engine.verify(&[item], &mut verdicts);
//! assert!(verdicts[0].is_valid());
//! ```
//!
//! # Map
//!
//! - `engine`: the public face. It chooses the backend and hands a batch to `ops`.
//! - `ops`: verification, agreement and signing, each for a whole batch.
//! - `comb`, `fixed`, `table`, `teeth`: multiples of points by tables; for any point, for G, for keys with a table, and for
//!   keys of which only the comb's teeth are kept.
//! - `point`, `invert`, `order`: formulas on points, inversion, numbers modulo the group's order.
//! - `lanes`: what a backend must offer. `backend`: the backends. `one_lane`: what two of them share.
//! - `MATHS.md`, beside the sources: the formulas and why no lane overflows.

mod backend;
mod comb;
mod context;
mod engine;
mod fixed;
mod invert;
mod keys;
mod lanes;
mod one_lane;
mod ops;
mod order;
mod point;
mod table;
mod teeth;

pub use backend::{BACKEND_VARIABLE, Backend, NoSuchBackend};
pub use engine::Engine;
pub use keys::{InvalidPoint, PublicKey, SecretScalar, SharedSecret, Verdict};
pub use ops::agree::{Agreed, Decapsulated, EcdhItem, Kept};
pub use ops::sign::SignItem;
pub use ops::verify::{Key, VerifyItem};
pub use table::{PointTable, Table, TableArena, TableSlot, TableWidth};
pub use teeth::Teeth;
