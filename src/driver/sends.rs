//! Memory lent to the kernel for sending: a slab of datagram slots and the vectors of stream sends in flight.
//!
//! Owns the memory and who has it. Must not look into the bytes.
#![allow(unsafe_code)]

use std::collections::hash_map::Entry;
use std::io;

use rustc_hash::FxHashMap;

use super::owner::Owner;
use super::region::Region;

/// The bytes of one send slot: the largest datagram that can be sent.
pub const SEND_CAPACITY: usize = 2_048;

/// Room for a socket address in front of each slot's bytes, one cache line.
const ADDRESS_CAPACITY: usize = 64;
const STRIDE: usize = ADDRESS_CAPACITY + SEND_CAPACITY;

/// The right to write one send slot of one driver; [`Driver::send_datagram`](super::Driver::send_datagram) takes it.
#[derive(Debug)]
#[must_use = "a slot that is dropped is lost: send it or release it"]
pub struct SendSlot {
    owner: Owner,
    index: u32,
}

/// A fixed number of datagram buffers, each with room for its destination.
#[derive(Debug)]
pub(super) struct SendSlots {
    memory: Region,
    free: Vec<u32>,
    /// True for each slot that is with the kernel.
    lent: Box<[bool]>,
    owner: Owner,
}

impl SendSlots {
    pub(super) fn new(count: u32) -> io::Result<Self> {
        assert!(count > 0, "at least one send slot");
        Ok(Self {
            memory: Region::new(count as usize * STRIDE)?,
            free: (0..count).rev().collect(),
            lent: vec![false; count as usize].into(),
            owner: Owner::new(),
        })
    }

    pub(super) fn acquire(&mut self) -> Option<SendSlot> {
        Some(SendSlot { owner: self.owner, index: self.free.pop()? })
    }

    #[expect(clippy::needless_pass_by_value, reason = "releasing ends the right to write")]
    pub(super) fn release(&mut self, slot: SendSlot) {
        self.owner.check(slot.owner);
        self.free.push(slot.index);
    }

    pub(super) fn bytes_mut(&mut self, slot: &mut SendSlot) -> &mut [u8] {
        self.owner.check(slot.owner);
        let start = self.memory.at(slot.index as usize * STRIDE + ADDRESS_CAPACITY, SEND_CAPACITY);
        // SAFETY: inside the mapping (`at` checks); slots do not overlap; the slot is ours (checked above), so holding
        // it means that the kernel does not have it, and both borrows are exclusive.
        unsafe { std::slice::from_raw_parts_mut(start, SEND_CAPACITY) }
    }

    /// Hands the slot to the kernel, with its destination: its index.
    #[expect(clippy::needless_pass_by_value, reason = "lending ends the right to write")]
    pub(super) fn lend(&mut self, slot: SendSlot, to: &[u8]) -> u32 {
        assert!(to.len() <= ADDRESS_CAPACITY, "a socket address fits");
        self.owner.check(slot.owner);
        self.lent[slot.index as usize] = true;
        let base = self.memory.at(slot.index as usize * STRIDE, STRIDE);
        // SAFETY: the first ADDRESS_CAPACITY bytes of the slot are inside the mapping, belong to this slot alone, and
        // `to` fits them; it cannot overlap, being borrowed from elsewhere.
        unsafe { std::ptr::copy_nonoverlapping(to.as_ptr(), base, to.len()) };
        slot.index
    }

    /// Where the destination and the bytes of a slot lie that is with the kernel.
    pub(super) fn lent(&self, index: u32) -> (*mut u8, *mut u8) {
        assert!(self.lent[index as usize], "a slot that is with the kernel");
        let base = self.memory.at(index as usize * STRIDE, STRIDE);
        (base, base.wrapping_add(ADDRESS_CAPACITY))
    }

    /// The kernel is done with slot `index`.
    pub(super) fn take_back(&mut self, index: u32) {
        let lent = &mut self.lent[index as usize];
        assert!(*lent, "a slot comes back once");
        *lent = false;
        self.free.push(index);
    }
}

/// Vectors the kernel reads from until their send completes, by the caller's tag.
#[derive(Debug, Default)]
pub(super) struct StreamSends(FxHashMap<u64, Vec<u8>>);

impl StreamSends {
    /// Keeps `bytes` until [`take_back`](Self::take_back). Moving the vector does not move its heap bytes.
    ///
    /// # Panics
    /// If a send with this tag is in flight: the kernel may still read what it carries.
    pub(super) fn lend(&mut self, tag: u64, bytes: Vec<u8>) -> *const u8 {
        let Entry::Vacant(place) = self.0.entry(tag) else { panic!("one send for each tag") };
        place.insert(bytes).as_ptr()
    }

    pub(super) fn take_back(&mut self, tag: u64) -> Vec<u8> {
        self.0.remove(&tag).expect("a send comes back once")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_run_out_and_come_back() {
        let mut slots = SendSlots::new(2).unwrap();
        let mut first = slots.acquire().unwrap();
        slots.bytes_mut(&mut first)[SEND_CAPACITY - 1] = 7;
        let second = slots.acquire().unwrap();
        assert!(slots.acquire().is_none());
        let index = slots.lend(first, &[1; 28]);
        let (to, bytes) = slots.lent(index);
        assert_eq!(bytes as usize - to as usize, ADDRESS_CAPACITY);
        slots.take_back(index);
        slots.release(second);
        assert!(slots.acquire().is_some() && slots.acquire().is_some());
    }

    /// The kernel may have the slot of the same number here.
    #[test]
    #[should_panic(expected = "another driver")]
    fn a_slot_of_another_slab_is_refused() {
        let [mut ours, mut theirs] = [(); 2].map(|()| SendSlots::new(1).unwrap());
        let own = ours.acquire().unwrap();
        ours.lend(own, &[]);
        ours.bytes_mut(&mut theirs.acquire().unwrap());
    }

    #[test]
    #[should_panic(expected = "comes back once")]
    fn a_send_comes_back_once() {
        let mut sends = StreamSends::default();
        sends.lend(9, vec![1, 2, 3]);
        assert_eq!(sends.take_back(9), [1, 2, 3]);
        sends.take_back(9);
    }
}
