//! Private anonymous mappings: page-aligned, zeroed, at an address that never moves. Knows nothing of rings.

use std::io;

use memmap2::{MmapMut, MmapRaw};

/// A mapping, unmapped on drop. Pages cost memory when first touched.
///
/// It hands out addresses and never a reference: the kernel may write to a part of it at any time, and only the
/// modules above know to which.
#[derive(Debug)]
pub(super) struct Region(MmapRaw);

impl Region {
    pub(super) fn new(len: usize) -> io::Result<Self> {
        assert!(len > 0, "an empty mapping is a mistake");
        Ok(Self(MmapMut::map_anon(len)?.into()))
    }

    /// The address of `len` bytes at `offset`.
    ///
    /// # Panics
    /// If they are not all inside the region.
    pub(super) fn at(&self, offset: usize, len: usize) -> *mut u8 {
        let end = offset.checked_add(len).expect("an offset inside the region");
        assert!(end <= self.0.len(), "a range inside the region");
        self.0.as_mut_ptr().wrapping_add(offset)
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

    #[test]
    fn ranges_lie_where_they_should() {
        let region = Region::new(8192).unwrap();
        let start = region.at(0, 8192) as usize;
        assert_eq!((start % 4096, region.at(8192, 0) as usize), (0, start + 8192));
    }
}
