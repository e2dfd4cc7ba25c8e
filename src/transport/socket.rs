//! The system calls of the transport that the standard library and `socket2` lack: steering, pinning, the clock.
//!
//! # The fence
//!
//! `unsafe` is allowed here for three calls that read or write a local value through a pointer during the call and keep
//! nothing. Nothing here may hold a pointer across a call, or own a descriptor.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::SystemTime;

use super::Now;
use super::steering::Instruction;

const SO_ATTACH_REUSEPORT_CBPF: libc::c_int = 51;

/// `struct sock_fprog`.
#[repr(C)]
struct Program {
    len: u16,
    filter: *const Instruction,
}

/// Attaches a steering program to the group of sockets that share `socket`'s port.
pub(super) fn steer(socket: &impl AsFd, program: &[Instruction]) -> io::Result<()> {
    let len = u16::try_from(program.len()).map_err(io::Error::other)?;
    let program = Program { len, filter: program.as_ptr() };
    let size = libc::socklen_t::try_from(size_of::<Program>()).map_err(io::Error::other)?;
    // SAFETY: `Program` and `Instruction` have the layout of sock_fprog and sock_filter; the kernel copies both during
    // the call, while `program` is borrowed.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_ATTACH_REUSEPORT_CBPF,
            (&raw const program).cast(),
            size,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Pins the calling thread to one core.
pub(super) fn pin_to(core: usize) -> io::Result<()> {
    if core >= libc::CPU_SETSIZE.unsigned_abs() as usize {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    // SAFETY: all zeroes is the empty set; CPU_SET stays inside it for a core below CPU_SETSIZE, checked above; the
    // call reads the set and nothing else.
    let result = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The time, on the clocks that all shards share.
pub fn now() -> Now {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec, a live local. CLOCK_MONOTONIC always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    let micros = time.tv_sec.unsigned_abs() * 1_000_000 + time.tv_nsec.unsigned_abs() / 1_000;
    let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Now { mono_us: micros, unix_ms: u64::try_from(unix.as_millis()).unwrap_or(u64::MAX) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_goes_on() {
        let before = now();
        std::thread::sleep(std::time::Duration::from_millis(2));
        let after = now();
        assert!(after.mono_us >= before.mono_us + 2_000);
        assert!(after.unix_ms > 1_700_000_000_000);
    }

    #[test]
    fn a_core_out_of_range_is_an_error() {
        assert!(pin_to(1 << 20).is_err());
    }
}
