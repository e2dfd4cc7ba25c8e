//! A provided buffer ring: receive buffers the kernel picks from by itself.
//!
//! Owns the buffers and the record of who has each one. Must not interpret their contents.
//!
//! The shared ring is an array of 16-byte entries; the kernel consumes at its own head, we publish at the tail, which
//! lives in the spare bytes of entry 0. The kernel reads an entry only after it sees the tail pass it, so entries are
//! written first and the tail is stored with release.
#![allow(unsafe_code)]

use std::io;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;

use super::region::Region;

/// Which of the two buffer rings an operation draws from. They are apart so that streams cannot starve datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// For the datagram socket.
    Datagrams,
    /// For streams.
    Streams,
}

impl Group {
    pub(super) const ALL: [Self; 2] = [Self::Datagrams, Self::Streams];

    pub(super) const fn id(self) -> u16 {
        match self {
            Self::Datagrams => 0,
            Self::Streams => 1,
        }
    }
}

/// The right to read one received buffer. Return it with [`Ring::give_back`](super::Ring::give_back).
#[derive(Debug)]
#[must_use = "a lease that is dropped takes its buffer with it"]
pub struct Lease {
    pub(super) group: Group,
    id: u16,
    len: usize,
}

#[derive(Debug)]
pub(super) struct BufferRing {
    entries: Region,
    bytes: Region,
    /// True for each buffer that is out on lease.
    leased: Box<[bool]>,
    size: usize,
    tail: u16,
    mask: u16,
    group: Group,
}

impl BufferRing {
    /// `count` buffers of `size` bytes each; `count` is a power of two up to 32,768.
    pub(super) fn new(group: Group, count: u16, size: usize) -> io::Result<Self> {
        assert!(count.is_power_of_two() && count <= 1 << 15, "a power of two up to 32,768");
        assert!(u32::try_from(size).is_ok_and(|size| size > 0), "a size that fits the entry");
        let mut ring = Self {
            entries: Region::new(usize::from(count) * size_of::<BufRingEntry>())?,
            bytes: Region::new(usize::from(count) * size)?,
            leased: vec![true; usize::from(count)].into(),
            size,
            tail: 0,
            mask: count - 1,
            group,
        };
        for id in 0..count {
            ring.give_back(Lease { group, id, len: 0 });
        }
        Ok(ring)
    }

    pub(super) fn address(&self) -> u64 {
        self.entries.at(0, 0) as u64
    }

    pub(super) fn count(&self) -> u16 {
        self.mask + 1
    }

    /// Takes the buffer a completion names.
    ///
    /// # Panics
    /// If it is not the kernel's to give: then our accounting is broken, and going on would read memory that the
    /// kernel writes.
    pub(super) fn lease(&mut self, id: u16, len: usize) -> Lease {
        let leased = &mut self.leased[usize::from(id)];
        assert!(!*leased, "the kernel completed into a buffer it did not own");
        assert!(len <= self.size, "the kernel completed past the end of a buffer");
        *leased = true;
        Lease { group: self.group, id, len }
    }

    pub(super) fn read(&self, lease: &Lease) -> &[u8] {
        debug_assert_eq!(lease.group, self.group);
        let start = self.bytes.at(usize::from(lease.id) * self.size, lease.len);
        // SAFETY: the range is inside the mapping (`at` checks); the buffer is on lease, so the kernel does not write
        // to it, and `give_back`, which ends that, consumes the lease borrowed here.
        unsafe { std::slice::from_raw_parts(start, lease.len) }
    }

    #[expect(clippy::needless_pass_by_value, reason = "giving back ends the right to read")]
    pub(super) fn give_back(&mut self, lease: Lease) {
        let leased = &mut self.leased[usize::from(lease.id)];
        assert!(*leased, "a buffer is given back once");
        *leased = false;
        let buffer = self.bytes.at(usize::from(lease.id) * self.size, self.size);
        let index = usize::from(self.tail & self.mask) * size_of::<BufRingEntry>();
        let entry = self.entries.at(index, size_of::<BufRingEntry>()).cast::<BufRingEntry>();
        // SAFETY: `entry` is inside the mapping, page-aligned base plus a multiple of 16. The kernel has consumed it:
        // at most `count` buffers exist, so at most `count` entries lie between its head and our tail. Only addr, len
        // and bid are written; entry 0's last two bytes are the tail and stay untouched.
        unsafe {
            (*entry).set_addr(buffer as u64);
            (*entry).set_len(u32::try_from(self.size).unwrap_or(u32::MAX));
            (*entry).set_bid(lease.id);
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
    #[should_panic(expected = "did not own")]
    fn a_buffer_is_leased_once() {
        let mut ring = BufferRing::new(Group::Datagrams, 4, 64).unwrap();
        let _first = ring.lease(2, 10);
        let _second = ring.lease(2, 10);
    }

    #[test]
    fn leases_come_and_go() {
        let mut ring = BufferRing::new(Group::Streams, 4, 64).unwrap();
        for round in 0..100_000u32 {
            let lease = ring.lease(u16::try_from(round % 4).unwrap(), 64);
            assert_eq!(ring.read(&lease).len(), 64);
            ring.give_back(lease);
        }
        assert_eq!(ring.count(), 4);
    }
}
