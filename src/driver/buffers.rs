//! Receive buffers, and the record of who has each one. Must not interpret their contents.
#![allow(unsafe_code)]

use std::io;

use super::owner::Owner;
use super::region::Region;

/// Which of the two sets of buffers an operation draws from. They are apart so that streams cannot starve datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BufferSet {
    /// For the datagram socket.
    Datagrams,
    /// For streams.
    Streams,
}

/// The right to read one received buffer of one driver. Return it with [`Driver::give_back`](super::Driver::give_back).
#[derive(Debug)]
#[must_use = "a lease that is dropped takes its buffer with it"]
pub struct Lease {
    pub(super) set: BufferSet,
    owner: Owner,
    id: u16,
    len: usize,
}

/// `count` buffers of one set, each either with whoever receives into it or out on lease.
#[derive(Debug)]
pub(super) struct Buffers {
    bytes: Region,
    /// True for each buffer that is out on lease.
    leased: Box<[bool]>,
    size: usize,
    set: BufferSet,
    owner: Owner,
}

impl Buffers {
    /// `count` buffers of `size` bytes each, a power of two up to 32,768; all with the receiver.
    pub(super) fn new(set: BufferSet, count: u16, size: usize) -> io::Result<Self> {
        assert!(count.is_power_of_two() && count <= 1 << 15, "a power of two up to 32,768");
        assert!(u32::try_from(size).is_ok_and(|size| size > 0), "a size that fits the entry");
        Ok(Self {
            bytes: Region::new(usize::from(count) * size)?,
            leased: vec![false; usize::from(count)].into(),
            size,
            set,
            owner: Owner::new(),
        })
    }

    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Where a buffer that is with the receiver is filled.
    pub(super) fn address(&self, id: u16) -> *mut u8 {
        assert!(!self.leased[usize::from(id)], "a buffer on lease is not written");
        self.bytes.at(usize::from(id) * self.size, self.size)
    }

    /// Takes a filled buffer.
    ///
    /// # Panics
    /// If it is not the receiver's to give: then our accounting is broken, and going on would read memory that is
    /// being written.
    pub(super) fn lease(&mut self, id: u16, len: usize) -> Lease {
        let leased = &mut self.leased[usize::from(id)];
        assert!(!*leased, "the kernel completed into a buffer it did not own");
        assert!(len <= self.size, "the kernel completed past the end of a buffer");
        *leased = true;
        Lease { set: self.set, owner: self.owner, id, len }
    }

    /// The bytes of a buffer on lease.
    ///
    /// # Panics
    /// If the lease is another driver's: its number would name a buffer here that may be being written.
    pub(super) fn read(&self, lease: &Lease) -> &[u8] {
        self.owner.check(lease.owner);
        let start = self.bytes.at(usize::from(lease.id) * self.size, lease.len);
        // SAFETY: the range is inside the mapping (`at` checks); the lease is ours (checked above), so the buffer is on
        // lease and nobody writes to it, and `give_back`, which ends that, consumes the lease borrowed here.
        unsafe { std::slice::from_raw_parts(start, lease.len) }
    }

    /// Ends a lease; the buffer is the receiver's again.
    ///
    /// # Panics
    /// If the lease is another driver's.
    #[expect(clippy::needless_pass_by_value, reason = "giving back ends the right to read")]
    pub(super) fn give_back(&mut self, lease: Lease) -> u16 {
        self.owner.check(lease.owner);
        let leased = &mut self.leased[usize::from(lease.id)];
        assert!(*leased, "a buffer is given back once");
        *leased = false;
        lease.id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "did not own")]
    fn a_buffer_is_leased_once() {
        let mut buffers = Buffers::new(BufferSet::Datagrams, 4, 64).unwrap();
        let _first = buffers.lease(2, 10);
        let _second = buffers.lease(2, 10);
    }

    #[test]
    #[should_panic(expected = "is not written")]
    fn a_buffer_on_lease_has_no_address() {
        let mut buffers = Buffers::new(BufferSet::Datagrams, 4, 64).unwrap();
        let _lease = buffers.lease(2, 10);
        buffers.address(2);
    }

    /// Both have a buffer 2 on lease: by its number alone the wrong one would be read.
    #[test]
    #[should_panic(expected = "another driver")]
    fn a_lease_of_other_buffers_is_refused() {
        let [mut ours, mut theirs] =
            [BufferSet::Streams; 2].map(|set| Buffers::new(set, 4, 64).unwrap());
        let (_own, foreign) = (ours.lease(2, 10), theirs.lease(2, 10));
        ours.read(&foreign);
    }
}
