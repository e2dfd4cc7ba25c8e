//! The allocator of the `duet` program overwrites memory that is given up, except on the threads that carry readings. Work with
//! secrets overwrites its stack, too.
//!
//! A registration key, a token or a password goes through buffers of many libraries, which no type of our own could wipe:
//! those of HTTP, of TLS, of whatever grows and moves. The data plane's threads wipe what is secret there themselves, and
//! give up memory with each batch of readings, so they pay for one look at a flag instead.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};

use zeroize::zeroize_stack;
use zeroizing_alloc::ZeroAlloc;

/// For `#[global_allocator]`.
pub struct Allocator;

const WIPING: ZeroAlloc<System> = ZeroAlloc(System);

thread_local! {
    // Constant and without a destructor: looking at it allocates nothing, at any time of a thread's life.
    static CARRIES_READINGS: Cell<bool> = const { Cell::new(false) };
}

/// Has the allocator leave as it is what this thread gives up from now on.
pub fn nothing_on_this_thread() {
    CARRIES_READINGS.set(true);
}

/// Whether the allocator leaves everything as it is, on all threads.
static IS_OFF: AtomicBool = AtomicBool::new(false);

/// Has the allocator leave as it is what this process gives up: where Duet and TLS are compared in it, both are to have the
/// system's.
pub fn nothing_in_this_process() {
    IS_OFF.store(true, Ordering::Relaxed);
}

fn is_left() -> bool {
    CARRIES_READINGS.get() || IS_OFF.load(Ordering::Relaxed)
}

/// How deep a stack is overwritten, bytes: several times as deep as work with secrets was seen to go.
const DEPTH: usize = 128 * 1024;

/// Does this and then overwrites what it has left on the stack: what libraries move about there they do not wipe.
pub fn stack_after<T>(work: impl FnOnce() -> T) -> T {
    // Not inlined, so that it begins where the other begins.
    #[inline(never)]
    fn run<T>(work: impl FnOnce() -> T) -> T {
        work()
    }
    let done = run(work);
    zeroize_stack::<DEPTH>();
    done
}

// SAFETY: each call goes to one allocator or the other as it came. Both take their memory from `System` and lay nothing
// beside it, so that either frees what the other gave out. Looking at the flag neither allocates nor unwinds.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Allocator {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    #[inline]
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe {
            if is_left() {
                System.dealloc(memory, layout);
            } else {
                WIPING.dealloc(memory, layout);
            }
        }
    }

    #[inline]
    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's promise is passed on.
        unsafe {
            if is_left() {
                System.realloc(memory, layout, size)
            } else {
                WIPING.realloc(memory, layout, size)
            }
        }
    }
}
