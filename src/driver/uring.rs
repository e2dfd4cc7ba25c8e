//! A raw `io_uring`, owned by one thread: the only module that talks to the kernel's rings.
//!
//! The ring counts operations in flight. Dropping it cancels them and waits; what the kernel still holds after that is
//! leaked, never freed.
//!
//! # The fence
//!
//! 1. *Submission entries are built here only*, by the methods of `operations.rs`. Each pointer in an entry points into
//!    memory owned by [`Ring`] (`Memory`), whose address is stable (private mappings and boxed values) and which outlives
//!    the kernel's interest: `Drop` frees it only with zero operations in flight.
//! 2. *A tag's top byte is ours.* It says which kind of memory the operation lent, so the completion returns exactly
//!    that: a wrong tag from above cannot make a lease of a buffer the kernel still owns. Buffers check each transition
//!    (kernel → lease → kernel) with a flag each, in release builds too.
//! 3. *One thread.* `SINGLE_ISSUER` makes the kernel refuse others; `Ring` is `Send` (built on the starting thread,
//!    enabled on the shard's) and not `Sync`.
//! 4. *Descriptors.* An entry names a descriptor by number and is submitted later than it is pushed. Closing the
//!    descriptor before the completion would aim the operation at an unrelated file (not a memory error, still a bug):
//!    callers keep the descriptor open until the operation's last completion.

mod error;
mod operations;
mod provided;
mod ring;
mod setup;

pub use self::error::RingError;
pub use self::ring::Ring;
