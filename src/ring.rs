//! A raw `io_uring`, owned by one thread: the only module that talks to the kernel's rings.
//!
//! It owns the queues and every byte of memory the kernel may read or write on its own time. It must not know what
//! the bytes mean, keep connection state, or decide policy; [`crate::transport`] does that.
//!
//! # Who owns a buffer, and when
//!
//! A buffer belongs to the kernel from the moment an operation naming it is pushed until that operation's *last*
//! completion. The types say so; nothing above this module can hold both the buffer and the operation:
//!
//! * **Receive** buffers live in two buffer rings ([`Group`]). A completion that carries data carries a [`Lease`], the
//!   only way to read it. [`Ring::give_back`] consumes the lease and hands the buffer to the kernel again. A lease is
//!   neither `Clone` nor `Copy`.
//! * **Datagram send** buffers are slots of a fixed slab. [`Ring::send_slot`] hands out a [`SendSlot`];
//!   [`Ring::send_datagram`] consumes it. The slot returns to the slab when the completion is reaped.
//! * **Stream send** buffers are plain vectors, moved into [`Ring::send_stream`] and moved out again in the
//!   completion's [`Payload::Sent`].
//!
//! The ring counts operations in flight. Dropping it cancels them and waits; what the kernel still holds after that is
//! leaked, never freed.
//!
//! # The fence
//!
//! The crate denies `unsafe`; the files of this module allow it. Their invariants:
//!
//! 1. *Submission entries are built here only*, by the methods of `ring/operations.rs`. Each pointer in an entry points
//!    into memory owned by [`Ring`] (`Memory`), whose address is stable (private mappings and boxed values) and which
//!    outlives the kernel's interest: `Drop` frees it only with zero operations in flight.
//! 2. *A tag's top byte is ours.* It says which kind of memory the operation lent, so the completion returns exactly
//!    that: a wrong tag from above cannot make a lease of a buffer the kernel still owns. Buffer rings check each
//!    transition (kernel → lease → kernel) with a flag a buffer, in release builds too.
//! 3. *One thread.* `SINGLE_ISSUER` makes the kernel refuse others; `Ring` is `Send` (built on the starting thread,
//!    enabled on the shard's) and not `Sync`.
//! 4. *Descriptors.* An entry names a descriptor by number and is submitted later than it is pushed. Closing the
//!    descriptor before the completion would aim the operation at an unrelated file (not a memory error, still a bug):
//!    callers keep the descriptor open until the operation's last completion.

mod address;
mod buffers;
mod core;
mod error;
mod event;
mod operations;
mod region;
mod sends;
mod setup;

pub use self::address::EncodedAddress;
pub use self::buffers::{Group, Lease};
pub use self::core::{Completion, Payload, Ring};
pub use self::error::RingError;
pub use self::event::EventFd;
pub use self::operations::{DATAGRAM_HEADER_LEN, Registered, received_datagram};
pub use self::sends::{SEND_CAPACITY, SendSlot};
pub use self::setup::Sizes;
