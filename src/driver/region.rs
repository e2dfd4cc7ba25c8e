//! Private anonymous mappings: page-aligned, zeroed, at an address that never moves. Knows nothing of rings.
#![allow(unsafe_code)]

use std::io;
use std::ptr::NonNull;

/// A mapping of `len` bytes, unmapped on drop. Pages cost memory when first touched.
#[derive(Debug)]
pub(super) struct Region {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: a region is plain memory owned by this value; nothing about it is bound to a thread.
unsafe impl Send for Region {}

impl Region {
    pub(super) fn new(len: usize) -> io::Result<Self> {
        assert!(len > 0, "an empty mapping is a mistake");
        // SAFETY: an anonymous private mapping at an address of the kernel's choice touches no existing memory.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mapped at zero"))?;
        Ok(Self { base, len })
    }

    /// The address of `len` bytes at `offset`.
    ///
    /// # Panics
    /// If they are not all inside the region.
    pub(super) fn at(&self, offset: usize, len: usize) -> *mut u8 {
        let end = offset.checked_add(len).expect("an offset inside the region");
        assert!(end <= self.len, "a range inside the region");
        // SAFETY: `offset` ≤ `self.len`, checked above, so the result stays inside the mapping.
        unsafe { self.base.as_ptr().add(offset) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: `base` and `len` are exactly what mmap returned; whoever drops the region has made sure that the
        // kernel holds no operation on it (`Ring::drop`).
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "inside the region")]
    fn a_range_past_the_end_is_refused() {
        Region::new(4096).unwrap().at(4000, 97);
    }
}
