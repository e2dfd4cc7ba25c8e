//! A provided buffer ring: receive buffers the kernel picks from by itself.
//!
//! The shared ring is an array of 16-byte entries; the kernel consumes at its own head, we publish at the tail, which
//! lives in the spare bytes of entry 0. The kernel reads an entry only after it sees the tail pass it, so entries are
//! written first and the tail is stored with release.
#![allow(unsafe_code)]

use std::io;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;

use super::super::buffers::{BufferSet, Buffers, Lease};
use super::super::region::Region;

impl BufferSet {
    pub(super) const ALL: [Self; 2] = [Self::Datagrams, Self::Streams];

    /// The number under which the kernel knows the set.
    pub(super) const fn id(self) -> u16 {
        match self {
            Self::Datagrams => 0,
            Self::Streams => 1,
        }
    }
}

/// Buffers and the ring that offers them to the kernel.
#[derive(Debug)]
pub(super) struct BufferRing {
    pub(super) buffers: Buffers,
    entries: Region,
    tail: u16,
    mask: u16,
}

impl BufferRing {
    /// `count` buffers of `size` bytes each, all offered; `count` is a power of two up to 32,768.
    pub(super) fn new(set: BufferSet, count: u16, size: usize) -> io::Result<Self> {
        let mut ring = Self {
            buffers: Buffers::new(set, count, size)?,
            entries: Region::new(usize::from(count) * size_of::<BufRingEntry>())?,
            tail: 0,
            mask: count - 1,
        };
        (0..count).for_each(|id| ring.offer(id));
        Ok(ring)
    }

    pub(super) fn address(&self) -> u64 {
        self.entries.at(0, 0) as u64
    }

    pub(super) fn count(&self) -> u16 {
        self.mask + 1
    }

    pub(super) fn give_back(&mut self, lease: Lease) {
        let id = self.buffers.give_back(lease);
        self.offer(id);
    }

    fn offer(&mut self, id: u16) {
        let buffer = self.buffers.address(id);
        let index = usize::from(self.tail & self.mask) * size_of::<BufRingEntry>();
        let entry = self.entries.at(index, size_of::<BufRingEntry>()).cast::<BufRingEntry>();
        // SAFETY: `entry` is inside the mapping, page-aligned base plus a multiple of 16. The kernel has consumed it:
        // at most `count` buffers exist, so at most `count` entries lie between its head and our tail. Only addr, len
        // and bid are written; entry 0's last two bytes are the tail and stay untouched.
        unsafe {
            (*entry).set_addr(buffer as u64);
            (*entry).set_len(u32::try_from(self.buffers.size()).unwrap_or(u32::MAX));
            (*entry).set_bid(id);
        }
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: the tail is a u16 in entry 0, two-aligned; the kernel reads it concurrently, hence the atomic.
        unsafe {
            let tail = BufRingEntry::tail(self.entries.at(0, size_of::<BufRingEntry>()).cast());
            AtomicU16::from_ptr(tail.cast_mut()).store(self.tail, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_come_and_go() {
        let mut ring = BufferRing::new(BufferSet::Streams, 4, 64).unwrap();
        for round in 0..100_000u32 {
            let lease = ring.buffers.lease(u16::try_from(round % 4).unwrap(), 64);
            assert_eq!(ring.buffers.read(&lease).len(), 64);
            ring.give_back(lease);
        }
        assert_eq!(ring.count(), 4);
    }
}
