//! Memory lent to the kernel for sending: a slab of datagram slots and the vectors of stream sends in flight.
//!
//! Owns the memory and who has it. Must not look into the bytes.
#![allow(unsafe_code)]

use std::collections::hash_map::Entry;
use std::io;
use std::mem::offset_of;

use rustc_hash::FxHashMap;

use super::address::Route;
use super::owner::Owner;
use super::region::Region;

/// The bytes of one send slot: the largest datagram that can be sent.
pub const SEND_CAPACITY: usize = 2_048;

/// What lies in front of each slot's bytes: how the kernel is told to send them.
#[repr(C, align(64))]
pub(super) struct Head {
    /// Its pointers are into the same slot.
    pub(super) message: libc::msghdr,
    piece: libc::iovec,
    route: Route,
}

const STRIDE: usize = size_of::<Head>() + SEND_CAPACITY;
const _: () = assert!(STRIDE.is_multiple_of(align_of::<Head>()) && align_of::<Head>() <= 4_096);

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
        let start = self.memory.at(slot.index as usize * STRIDE + size_of::<Head>(), SEND_CAPACITY);
        // SAFETY: inside the mapping (`at` checks); slots do not overlap; the slot is ours (checked above), so holding
        // it means that the kernel does not have it, and both borrows are exclusive.
        unsafe { std::slice::from_raw_parts_mut(start, SEND_CAPACITY) }
    }

    /// Hands the first `len` bytes of the slot to the kernel, with their route: its index.
    ///
    /// # Panics
    /// If `len` exceeds a slot.
    #[expect(clippy::needless_pass_by_value, reason = "lending ends the right to write")]
    pub(super) fn lend(&mut self, slot: SendSlot, len: usize, route: &Route) -> u32 {
        self.owner.check(slot.owner);
        assert!(len <= SEND_CAPACITY, "a datagram fits its slot");
        self.lent[slot.index as usize] = true;
        let base = self.memory.at(slot.index as usize * STRIDE, STRIDE);
        let field = |offset: usize| base.wrapping_add(offset);
        // SAFETY: zeroes are a valid msghdr: null pointers and zero lengths.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        let name = offset_of!(Head, route) + offset_of!(Route, name.bytes);
        message.msg_name = field(name).cast();
        message.msg_namelen = u32::try_from(route.name.len).unwrap_or(0);
        (message.msg_iov, message.msg_iovlen) = (field(offset_of!(Head, piece)).cast(), 1);
        if route.control.len > 0 {
            let control = offset_of!(Head, route) + offset_of!(Route, control.bytes);
            message.msg_control = field(control).cast();
            message.msg_controllen = route.control.len;
        }
        let bytes = field(size_of::<Head>()).cast();
        let piece = libc::iovec { iov_base: bytes, iov_len: len };
        // SAFETY: the head is inside the mapping (`at` checks) and aligned (slots are at multiples of STRIDE in a mapping
        // that begins at a page); it belongs to this slot alone, which the kernel does not have yet.
        unsafe { base.cast::<Head>().write(Head { message, piece, route: *route }) };
        slot.index
    }

    /// How the kernel is told to send a slot that is with it.
    pub(super) fn message(&self, index: u32) -> *const libc::msghdr {
        assert!(self.lent[index as usize], "a slot that is with the kernel");
        self.memory.at(index as usize * STRIDE, STRIDE).cast()
    }

    /// The bytes of a slot that is with the kernel, and its destination.
    pub(super) fn bytes_and_name(&self, index: u32) -> (*const u8, *const libc::sockaddr) {
        let base = self.message(index).cast::<u8>();
        let name = offset_of!(Head, route) + offset_of!(Route, name.bytes);
        (base.wrapping_add(size_of::<Head>()), base.wrapping_add(name).cast())
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
        let local = super::super::LocalAddress::received(&[]);
        let route = Route::new("192.0.2.7:99".parse().unwrap(), local, true).unwrap();
        let index = slots.lend(first, 5, &route);
        let (bytes, name) = slots.bytes_and_name(index);
        assert_eq!(bytes as usize - slots.message(index) as usize, size_of::<Head>());
        assert_eq!(name as usize % 4, 0, "aligned as a sockaddr is");
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
        ours.lend(own, 1, &Route::connected());
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
