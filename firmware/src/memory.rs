//! How much of the memory was ever used: what lies free at the start is painted, and looked at in the end.
#![allow(unsafe_code, reason = "looks at free memory: each block says why that is free")]

use core::ptr;

use cortex_m::register::msp;

const START: usize = 0x2000_0000;
const PAINT: u32 = 0x7061_696e;

unsafe extern "C" {
    static _stack_start: u32;
}

/// The free words between what is static and the stack.
pub(crate) struct Paint {
    from: *mut u32,
    to: *mut u32,
}

impl Paint {
    /// Paints all that is free now.
    #[inline(never)]
    pub(crate) fn new() -> Self {
        let from = cortex_m_rt::heap_start();
        // Below what this function itself may use of the stack.
        let to = (msp::read() as usize - 128) as *mut u32;
        let mut at = from;
        while at < to {
            // SAFETY: there is no heap, and the stack is above.
            unsafe {
                ptr::write_volatile(at, PAINT);
                at = at.add(1);
            }
        }
        Self { from, to }
    }

    /// Bytes of memory that static variables take, and how deep the stack ever was.
    pub(crate) fn used(&self) -> (usize, usize) {
        let mut at = self.from;
        // SAFETY: as above; it is only read.
        while at < self.to && unsafe { ptr::read_volatile(at) } == PAINT {
            at = at.wrapping_add(1);
        }
        // The symbol's address is what it says.
        let top = ptr::addr_of!(_stack_start) as usize;
        (self.from as usize - START, top - at as usize)
    }
}
