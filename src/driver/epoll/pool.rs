//! Receive buffers of one set, and which of them are free.
#![allow(unsafe_code)]

use std::io;

use super::super::buffers::{BufferSet, Buffers, Lease};

#[derive(Debug)]
pub(super) struct Pool {
    buffers: Buffers,
    free: Vec<u16>,
}

impl Pool {
    pub(super) fn new(set: BufferSet, count: u16, size: usize) -> io::Result<Self> {
        Ok(Self { buffers: Buffers::new(set, count, size)?, free: (0..count).rev().collect() })
    }

    /// How many buffers are free.
    pub(super) fn len(&self) -> usize {
        self.free.len()
    }

    /// The bytes of each buffer.
    pub(super) fn size(&self) -> usize {
        self.buffers.size()
    }

    /// Where the free buffer lies that is taken after `before` others.
    pub(super) fn address(&self, before: usize) -> *mut u8 {
        self.buffers.address(self.free[self.free.len() - 1 - before])
    }

    /// The free buffer that is taken next, to be written.
    pub(super) fn next_mut(&mut self) -> Option<&mut [u8]> {
        let address = self.buffers.address(*self.free.last()?);
        // SAFETY: a buffer inside the mapping that nobody has on lease (`address` checks); the borrow of the pool keeps
        // it so. The mapping began as zeroes, so every byte of it is initialised.
        Some(unsafe { std::slice::from_raw_parts_mut(address, self.buffers.size()) })
    }

    /// Takes the next free buffer, of which `len` bytes were written.
    pub(super) fn take(&mut self, len: usize) -> Lease {
        let id = self.free.pop().expect("a buffer that was written was free");
        self.buffers.lease(id, len)
    }

    pub(super) fn read(&self, lease: &Lease) -> &[u8] {
        self.buffers.read(lease)
    }

    pub(super) fn give_back(&mut self, lease: Lease) {
        let id = self.buffers.give_back(lease);
        self.free.push(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_run_out_and_come_back() {
        let mut pool = Pool::new(BufferSet::Streams, 2, 64).unwrap();
        pool.next_mut().unwrap()[..3].copy_from_slice(b"one");
        let first = pool.take(3);
        assert_ne!(pool.next_mut().unwrap()[..3], *b"one", "another buffer");
        let second = pool.take(0);
        assert!(pool.next_mut().is_none());
        assert_eq!(pool.read(&first), b"one");
        pool.give_back(second);
        pool.give_back(first);
        assert_eq!(pool.len(), 2);
        assert_eq!(pool.next_mut().unwrap()[..3], *b"one", "the warmest first");
    }
}
