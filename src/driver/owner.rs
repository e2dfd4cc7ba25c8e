//! Whose a handle is. Handles are numbers, and the same number means other memory in another driver.

use std::sync::atomic::{AtomicU32, Ordering};

/// Names one set of buffers or one slab of slots in this process, and every handle that it gives out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owner(u32);

impl Owner {
    pub(super) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// # Panics
    /// If the handle is not this owner's. Safe code can mix two drivers up, and the memory behind the number here may
    /// be with the kernel.
    pub(super) fn check(self, handle: Self) {
        assert!(self == handle, "a handle of another driver");
    }
}
