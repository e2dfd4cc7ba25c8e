//! The batched operations, each written once for all backends.

pub(crate) mod agree;
pub(crate) mod sign;
pub(crate) mod verify;
