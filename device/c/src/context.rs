//! What lies in a `duet_device`, and how it is reached.

use core::{cell::Cell, ffi::c_int, mem::MaybeUninit, ptr};

#[cfg(feature = "compact")]
use machine::compact::Small as Primitives;
#[cfg(not(feature = "compact"))]
use machine::software::Portable as Primitives;
use machine::{
    Config, Device, Early, SetupError,
    software::{Suite, WithElement},
};
use zeroize::Zeroize as _;

use crate::{
    DUET_ERROR_ARGUMENT, DUET_ERROR_STATE, DUET_OK, DUET_PAYLOAD_MAX, DUET_WINDOW, duet_device,
    port::{Port, PortStore, duet_port},
};

/// The word with which a context begins while it is there.
const MAGIC: u64 = 0x6475_6574_2064_6576;

pub(crate) type Machine =
    Device<WithElement<Suite<Primitives, Port>, Port>, PortStore, DUET_WINDOW, DUET_PAYLOAD_MAX>;

#[repr(C)]
pub(crate) struct Context {
    magic: Cell<u64>,
    busy: Cell<bool>,
    port: Port,
    clock: Clock,
    pub(crate) machine: Machine,
}

/// The device's time, which never goes back, from a port's clock that should not either. One that counts in 32 bits begins
/// again after 71 minutes, and one that is set may go back: time goes on from where it was.
#[derive(Clone, Copy, Default)]
pub(crate) struct Clock {
    last: u64,
    ahead: u64,
}

impl Clock {
    fn now(&mut self, port_us: u64) -> u64 {
        let now = port_us.wrapping_add(self.ahead);
        if now < self.last {
            self.ahead = self.last.wrapping_sub(port_us);
        }
        self.last = self.last.max(now);
        self.last
    }

    /// When the port's clock says what is this for the device.
    fn port(self, due: u64) -> u64 {
        if due == u64::MAX { due } else { due.saturating_sub(self.ahead) }
    }
}

impl Context {
    pub(crate) fn now(&mut self) -> u64 {
        let port_us = self.port.now_us();
        self.clock.now(port_us)
    }

    /// When something is due, on the port's clock; `u64::MAX` is never.
    pub(crate) fn due(&mut self) -> u64 {
        // The clock may have begun again since the last call.
        self.now();
        self.clock.port(self.machine.poll_timeout().unwrap_or(u64::MAX))
    }
}

/// The curve and the cipher. The comb of the gateway's key may be null.
///
/// # Safety
/// The comb is null, or aligned and 128 words that stay as they are as long as the device.
#[cfg(feature = "compact")]
unsafe fn primitives(comb: *const u32) -> Primitives {
    // SAFETY: the caller's promise; any words are a comb.
    Primitives { comb: unsafe { comb.cast::<machine::compact::Comb>().as_ref() } }
}

/// The curve and the cipher, which have no use for a comb.
///
/// # Safety
/// It is safe.
#[cfg(not(feature = "compact"))]
const unsafe fn primitives(_: *const u32) -> Primitives {
    Primitives
}

/// Makes a context in `device`, at the place where it stays: a board has no stack for a copy. Where that fails nothing is
/// written.
///
/// # Safety
/// `device` points to a `duet_device` that is not in use; `comb` is null, or aligned and 128 words that stay as they are as
/// long as the device.
pub(crate) unsafe fn make(
    device: *mut duet_device,
    port: duet_port,
    config: Config,
    comb: *const u32,
    early: Early,
) -> Result<(), SetupError> {
    let context = device.cast::<Context>();
    let port = Port(port);
    // SAFETY: the storage is there, aligned, and large enough (asserted in `lib.rs`); nobody else uses it, and any bytes
    // are a `MaybeUninit`.
    let place = unsafe { &mut *(&raw mut (*context).machine).cast::<MaybeUninit<Machine>>() };
    // SAFETY: the caller's promise.
    let crypto = Suite::with(unsafe { primitives(comb) }, port);
    let crypto = WithElement { crypto, element: port };
    let made = Device::new_in(place, crypto, PortStore::new(port), config);
    made?.set_early(early);
    // SAFETY: as above. The word that says that all is there comes last.
    unsafe {
        ptr::addr_of_mut!((*context).port).write(port);
        ptr::addr_of_mut!((*context).clock).write(Clock::default());
        ptr::addr_of_mut!((*context).busy).write(Cell::new(false));
        ptr::addr_of_mut!((*context).magic).write(Cell::new(MAGIC));
    }
    Ok(())
}

/// How much of the stack may hold a copy of a key. With an operating system nothing says that a compiler does without a
/// copy of the whole, and there is room to overwrite it.
const LEFT: usize =
    if cfg!(target_os = "none") { 4 * size_of::<Config>() } else { 2 * size_of::<Context>() };

/// Overwrites what making or ending a context has left on the stack.
#[inline(never)]
pub(crate) fn scrub() {
    let mut below = [0u8; LEFT];
    below.zeroize();
    core::hint::black_box(&mut below);
}

/// The context in `device`, if one is there and free.
///
/// # Safety
/// `device` is null or points to a `duet_device` that was zeroed or made.
unsafe fn claim(device: *mut duet_device) -> Result<*mut Context, c_int> {
    if device.is_null() || !device.is_aligned() {
        return Err(DUET_ERROR_ARGUMENT);
    }
    let context = device.cast::<Context>();
    // SAFETY: the storage is there, and both fields are plain values at fixed places, whatever the rest is;
    // no reference to the whole is made before both were looked at.
    unsafe {
        if (*ptr::addr_of!((*context).magic)).get() != MAGIC {
            return Err(DUET_ERROR_STATE);
        }
        if ptr::read(ptr::addr_of!((*context).busy).cast::<u8>()) != 0 {
            return Err(DUET_ERROR_STATE);
        }
        ptr::write(ptr::addr_of_mut!((*context).busy).cast::<u8>(), 1);
    }
    Ok(context)
}

/// Does something with the context in `device`, which nobody else uses meanwhile.
///
/// # Safety
/// `device` is null or points to a `duet_device` that was zeroed or made.
pub(crate) unsafe fn with(
    device: *mut duet_device,
    act: impl FnOnce(&mut Context) -> c_int,
) -> c_int {
    // SAFETY: the caller's promise.
    let context = match unsafe { claim(device) } {
        Ok(context) => context,
        Err(error) => return error,
    };
    // SAFETY: claimed, so this is the only reference until it is released below.
    let result = act(unsafe { &mut *context });
    // SAFETY: still there; the reference has ended.
    unsafe { ptr::write(ptr::addr_of_mut!((*context).busy).cast::<u8>(), 0) };
    result
}

/// Overwrites the context in `device`: nothing in it owns more than its bytes.
///
/// # Safety
/// `device` is null or points to a `duet_device` that was zeroed or made.
pub(crate) unsafe fn end(device: *mut duet_device) -> c_int {
    // SAFETY: the caller's promise.
    if let Err(error) = unsafe { claim(device) } {
        return error;
    }
    // SAFETY: claimed, and never used again: its first word is overwritten with all others.
    unsafe { (*device).opaque.zeroize() };
    scrub();
    DUET_OK
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_goes_on_where_a_clock_begins_again() {
        let mut clock = Clock::default();
        let wrap = u64::from(u32::MAX);
        assert_eq!(clock.now(wrap - 5), wrap - 5);
        // It has wrapped, and what was due stays due as long from now on.
        assert_eq!(clock.now(10), wrap - 5);
        assert_eq!(clock.now(1_010), wrap + 995);
        assert_eq!(clock.port(wrap + 1_995), 2_010);
        assert_eq!((clock.port(u64::MAX), clock.port(3)), (u64::MAX, 0));
        // Once more.
        assert_eq!(clock.now(4), wrap + 995);
        assert_eq!(clock.now(5), wrap + 996);
    }
}
