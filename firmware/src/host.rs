//! What QEMU lends the program in place of hardware that the board does not have: lines that a test reads, two
//! pages of flash that outlive the power, true random bytes; and the end of a program that went wrong.
#![allow(unsafe_code, reason = "calls of the host take addresses: each names its own")]

use cortex_m_rt::exception;
use cortex_m_semihosting::{debug, hio, syscall};
use duet_device::store::{PAGE_LEN, Pages, StoreError};

/// Says a line: words, and perhaps a number.
pub(crate) fn say(word: &str, number: Option<u32>) {
    let Ok(mut out) = hio::hstdout() else { return };
    let mut digits = [b' '; 12];
    let mut at = digits.len() - 1;
    digits[at] = b'\n';
    if let Some(mut rest) = number {
        loop {
            at -= 1;
            let [digit, ..] = (rest % 10).to_le_bytes();
            digits[at] = b'0' + digit;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        at -= 1;
    }
    // Whoever does not listen misses it.
    let _ = out.write_all(word.as_bytes());
    let _ = out.write_all(&digits[at..]);
}

/// Ends the program, for better or worse.
pub(crate) fn exit(good: bool) -> ! {
    debug::exit(if good { debug::EXIT_SUCCESS } else { debug::EXIT_FAILURE });
    loop {
        cortex_m::asm::wfi();
    }
}

const READ: usize = 1;
const WRITE: usize = 5;

/// A file of the host's. Its name ends in a zero byte.
struct File(usize);

impl File {
    fn open(name: &[u8], mode: usize) -> Option<Self> {
        debug_assert_eq!(name.last(), Some(&0));
        // SAFETY: the host reads the name, which is as long as it is told and ends in zero.
        let handle = unsafe { syscall!(OPEN, name.as_ptr(), mode, name.len() - 1) };
        (handle != usize::MAX).then_some(Self(handle))
    }

    fn read(&self, out: &mut [u8]) -> bool {
        // SAFETY: the host writes at most as many bytes as there are.
        unsafe { syscall!(READ, self.0, out.as_mut_ptr(), out.len()) == 0 }
    }

    fn write(&self, bytes: &[u8]) -> bool {
        // SAFETY: the host reads as many bytes as there are.
        unsafe { syscall!(WRITE, self.0, bytes.as_ptr(), bytes.len()) == 0 }
    }
}

impl Drop for File {
    fn drop(&mut self) {
        // SAFETY: the handle is open, and not used again.
        unsafe { syscall!(CLOSE, self.0) };
    }
}

/// 32 bytes of the host's random generator.
pub(crate) fn random() -> Option<[u8; 32]> {
    let mut out = [0; 32];
    File::open(b"/dev/urandom\0", READ)?.read(&mut out).then_some(out)
}

/// Two pages of flash, each a file in the folder where QEMU runs.
pub(crate) struct Flash;

const fn page_name(page: u8) -> &'static [u8] {
    if page == 0 { b"page0\0" } else { b"page1\0" }
}

impl Pages for Flash {
    fn read(&mut self, page: u8, out: &mut [u8; PAGE_LEN]) -> Result<bool, StoreError> {
        let Some(file) = File::open(page_name(page), READ) else { return Ok(false) };
        Ok(file.read(out))
    }

    fn write(&mut self, page: u8, bytes: &[u8; PAGE_LEN]) -> Result<(), StoreError> {
        let file = File::open(page_name(page), WRITE).ok_or(StoreError)?;
        file.write(bytes).then_some(()).ok_or(StoreError)
    }
}

#[exception]
unsafe fn HardFault(_: &cortex_m_rt::ExceptionFrame) -> ! {
    // Nothing goes on after a fault.
    say("fault", None);
    exit(false)
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    say("panic", None);
    exit(false)
}
