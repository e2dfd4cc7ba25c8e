//! AES-128-GCM for batches of small records of different sessions.
//!
//! A gateway opens and seals many short records at once, nearly all under different keys. A
//! library call a record leaves most of the core idle there: one record is a single chain of
//! dependent instructions, and its key is often not even in the first-level cache. This crate
//! takes a whole batch, fetches keys ahead, and keeps several records in flight.
//!
//! * [`Gcm`] is the proof that the CPU was asked what it can do, and the entry to every operation.
//!   Make one at start with [`Gcm::select`] and copy it where it is needed.
//! * [`Key`] is a key's expanded form: 320 bytes, made in place and wiped when dropped.
//! * [`Record`] is one record of a batch; opening gives each its own [`Verdict`].
//!
//! Any payload and any associated data that GCM permits are correct. Payloads up to
//! [`FAST_PAYLOAD`] with associated data up to [`FAST_AAD`] are the ones made fast.
//!
//! Opening verifies first and stores afterwards: the buffer of a rejected record is as it was.
//! Nothing here depends on secrets in its branches or addresses, except through the portable
//! backend, whose properties are those of the `aes-gcm` crate.
//!
//! The mathematics and the memory layout are explained in the crate's `README.md`.
//!
//! ```
//! use duet_aead::{Gcm, Key, Record, Verdict};
//!
//! let gcm = Gcm::select()?;
//! let key = Key::boxed(gcm, &[7; 16]);
//! let (mut payload, mut tag) = (*b"21.5 C", [0; 16]);
//!
//! gcm.seal_batch(&mut [Record {
//!     key: &key,
//!     nonce: [0; 12],
//!     aad: b"header",
//!     payload: &mut payload,
//!     tag: &mut tag,
//! }]);
//! assert_eq!(gcm.open(&key, &[0; 12], b"header", &mut payload, &tag), Verdict::Authentic);
//! assert_eq!(&payload, b"21.5 C");
//! # Ok::<(), duet_aead::SelectError>(())
//! ```

mod backend;
mod gcm;
mod key;
mod record;

pub use backend::{Backend, ENVIRONMENT, SelectError};
pub use gcm::Gcm;
pub use key::Key;
pub use record::{Record, Verdict};

/// Length of a key in bytes.
pub const KEY_LEN: usize = 16;
/// Length of a nonce in bytes. GCM's other lengths have no use here and are not offered.
pub const NONCE_LEN: usize = 12;
/// Length of a tag in bytes. GCM's truncated tags are not offered.
pub const TAG_LEN: usize = 16;
/// The longest payload, in bytes, that takes the fast path of [`Backend::Vaes`].
pub const FAST_PAYLOAD: usize = 256;
/// The longest associated data, in bytes, that takes a fast path.
pub const FAST_AAD: usize = 16;
/// The longest payload, in bytes, that GCM permits under one nonce (SP 800-38D §5.2.1.1).
pub const MAX_PAYLOAD: u64 = (1 << 36) - 32;

/// A nonce: never used twice for sealing under one key.
pub type Nonce = [u8; NONCE_LEN];
/// An authentication tag.
pub type Tag = [u8; TAG_LEN];
