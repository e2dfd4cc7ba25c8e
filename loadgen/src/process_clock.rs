//! What a process has used: `clock_getcpuclockid` is the one clock that counts another process's threads
//! that have ended, too; memory is what `/proc` says.
//!
//! Invariant: the kernel writes one clock's name and one time, both into places of ours.
#![allow(unsafe_code)]

use std::io;
use std::time::Duration;

/// The processor time that a process has used: all its threads, those that have ended and the
/// kernel's workers on its behalf included.
///
/// # Errors
/// When there is no such process.
pub fn process_cpu(pid: u32) -> io::Result<Duration> {
    let pid = libc::pid_t::try_from(pid).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut clock = 0;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `clock` lives through the call, which writes it and nothing else.
    let error = unsafe { libc::clock_getcpuclockid(pid, &raw mut clock) };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error));
    }
    // SAFETY: `time` lives through the call, which writes it and nothing else.
    if unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Ok(Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0)))
}

/// The memory that a process occupies now (`VmRSS`), bytes; what the kernel keeps for it is not in it.
///
/// # Errors
/// When there is no such process.
pub fn process_memory(pid: u32) -> io::Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.map(|kib| kib * 1_024).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_thread_that_has_ended_still_counts() {
        let pid = std::process::id();
        let before = process_cpu(pid).unwrap();
        let busy = || {
            let began = Instant::now();
            while crate::exchange::thread_cpu() < Duration::from_millis(50) {
                assert!(began.elapsed() < Duration::from_secs(30));
            }
        };
        std::thread::spawn(busy).join().unwrap();
        assert!(process_cpu(pid).unwrap() - before >= Duration::from_millis(50));
        assert!(process_cpu(u32::MAX).is_err());
    }

    #[test]
    fn memory_that_is_written_counts() {
        let before = process_memory(std::process::id()).unwrap();
        let held = vec![1u8; 64 << 20];
        assert!(process_memory(std::process::id()).unwrap() >= before + (32 << 20));
        drop(held);
        assert!(process_memory(u32::MAX).is_err());
    }
}
