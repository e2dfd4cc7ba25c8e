//! System calls of the transport that `socket2` lacks: steering, pinning, the clock. Owns nothing.

use std::io;
use std::os::fd::AsFd;
use std::time::SystemTime;

use nix::sys::socket::{setsockopt, sockopt::AttachReusePortCbpf};
use rustix::thread::{CpuSet, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

use super::Now;
use super::steering::Instruction;

/// Attaches a steering program to the group of sockets that share `socket`'s port.
pub(super) fn steer(socket: &impl AsFd, program: &[Instruction]) -> io::Result<()> {
    // The kernel reads the program during the call, and nothing is written through the pointer.
    let mut program: Vec<_> = program.iter().map(|step| step.filter()).collect();
    let len = u16::try_from(program.len()).map_err(io::Error::other)?;
    let program = libc::sock_fprog { len, filter: program.as_mut_ptr() };
    Ok(setsockopt(socket, AttachReusePortCbpf, &program)?)
}

/// Pins the calling thread to one core.
pub(super) fn pin_to(core: usize) -> io::Result<()> {
    if core >= CpuSet::MAX_CPU {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let mut set = CpuSet::new();
    set.set(core);
    Ok(sched_setaffinity(None, &set)?)
}

/// The time, on the clocks that all shards share.
pub fn now() -> Now {
    let time = clock_gettime(ClockId::Monotonic);
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
