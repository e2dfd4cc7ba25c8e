//! Why a ring could not be made, in words an operator can act on. Reads `/proc` and limits; changes nothing.

use std::io;

/// A ring could not be created or used.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// `kernel.io_uring_disabled` forbids it.
    #[error(
        "io_uring is switched off by the sysctl kernel.io_uring_disabled = {value}: \
         set it to 0, or to 1 and add this user to the group named by kernel.io_uring_group"
    )]
    Disabled {
        /// The sysctl's value: 1 (privileged or grouped users only) or 2 (nobody).
        value: u32,
    },
    /// A filter in front of the kernel refuses the system call.
    #[error(
        "io_uring is refused ({errno}) though the kernel's sysctl allows it: a seccomp filter of the container runtime or \
         the service manager blocks it; allow io_uring_setup, io_uring_enter and io_uring_register"
    )]
    Filtered {
        /// `EPERM` or `EACCES`.
        errno: io::Error,
    },
    /// The system call does not exist.
    #[error(
        "io_uring_setup does not exist here (ENOSYS): a seccomp filter hides it, or the kernel was built without \
         CONFIG_IO_URING"
    )]
    Absent,
    /// Locked memory is exhausted.
    #[error(
        "io_uring needs more locked memory than RLIMIT_MEMLOCK allows ({limit_bytes} bytes for all rings of this user): \
         raise it (ulimit -l, LimitMEMLOCK=), or use fewer shards or smaller [queues]"
    )]
    LockedMemory {
        /// The soft limit in force.
        limit_bytes: u64,
    },
    /// Something this program needs is newer than the kernel.
    #[error("this kernel's io_uring lacks {missing}: Linux 6.1 or newer is needed")]
    TooOld {
        /// The first thing found missing.
        missing: &'static str,
    },
    /// Descriptors are exhausted.
    #[error("no descriptor left for a ring: raise RLIMIT_NOFILE (ulimit -n, LimitNOFILE=)")]
    Descriptors,
    /// Anything else.
    #[error("io_uring failed to {step}: {source}")]
    Failed {
        /// What was being done.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

impl RingError {
    /// Whether this machine or its policy does not let `io_uring` be used, where something else may work.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Disabled { .. }
            | Self::Filtered { .. }
            | Self::Absent
            | Self::LockedMemory { .. }
            | Self::TooOld { .. } => true,
            Self::Descriptors | Self::Failed { .. } => false,
        }
    }

    /// Explains why `io_uring_setup` failed, from its error and the state of this machine.
    pub(super) fn of_setup(error: io::Error) -> Self {
        let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled")
            .ok()
            .and_then(|text| text.trim().parse().ok());
        Self::diagnose(error, disabled, memory_lock_limit())
    }

    fn diagnose(error: io::Error, disabled: Option<u32>, limit_bytes: u64) -> Self {
        match (error.raw_os_error(), disabled) {
            (Some(libc::EPERM), Some(value @ 1..)) => Self::Disabled { value },
            (Some(libc::EPERM | libc::EACCES), _) => Self::Filtered { errno: error },
            (Some(libc::ENOSYS), _) => Self::Absent,
            (Some(libc::ENOMEM), _) => Self::LockedMemory { limit_bytes },
            (Some(libc::EMFILE | libc::ENFILE), _) => Self::Descriptors,
            (Some(libc::EINVAL), _) => Self::TooOld {
                missing: "a set-up flag (SINGLE_ISSUER, DEFER_TASKRUN, R_DISABLED or SUBMIT_ALL)",
            },
            _ => Self::Failed { step: "create a ring", source: error },
        }
    }

    pub(super) fn failed(step: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| match source.raw_os_error() {
            Some(libc::ENOMEM) => Self::LockedMemory { limit_bytes: memory_lock_limit() },
            _ => Self::Failed { step, source },
        }
    }
}

/// The soft `RLIMIT_MEMLOCK` in bytes, from `/proc`; `u64::MAX` if unlimited or unreadable.
fn memory_lock_limit() -> u64 {
    std::fs::read_to_string("/proc/self/limits")
        .ok()
        .and_then(|limits| {
            let line = limits.lines().find(|line| line.starts_with("Max locked memory"))?;
            line.split_whitespace().nth(3)?.parse().ok()
        })
        .unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn diagnose(errno: i32, disabled: Option<u32>) -> String {
        RingError::diagnose(io::Error::from_raw_os_error(errno), disabled, 65_536).to_string()
    }

    #[test]
    fn each_refusal_names_its_cause() {
        assert!(diagnose(libc::EPERM, Some(2)).contains("kernel.io_uring_disabled = 2"));
        assert!(diagnose(libc::EPERM, Some(0)).contains("seccomp"));
        assert!(diagnose(libc::EPERM, None).contains("seccomp"));
        assert!(diagnose(libc::ENOSYS, None).contains("CONFIG_IO_URING"));
        assert!(diagnose(libc::ENOMEM, None).contains("65536 bytes"));
        assert!(diagnose(libc::EINVAL, None).contains("6.1"));
        assert!(diagnose(libc::EMFILE, None).contains("RLIMIT_NOFILE"));
    }

    #[test]
    fn the_limit_is_readable() {
        assert!(memory_lock_limit() > 0);
    }
}
