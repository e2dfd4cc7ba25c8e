//! Which implementations there are, which of them this CPU has, and which one is wanted.

use core::{fmt, str::FromStr};
use std::env;

use thiserror::Error;

#[cfg(target_arch = "x86_64")]
mod aesni;
#[cfg(target_arch = "x86_64")]
mod four;
#[cfg(target_arch = "x86_64")]
mod gf128;
#[cfg(target_arch = "x86_64")]
mod memory;
pub(crate) mod portable;
#[cfg(target_arch = "x86_64")]
mod schedule;
#[cfg(target_arch = "x86_64")]
mod vaes;

pub(crate) use portable::Portable;
#[cfg(target_arch = "x86_64")]
pub(crate) use schedule::Schedule;
#[cfg(target_arch = "x86_64")]
use {aesni::AesNi, vaes::Vaes};

/// The environment variable that forces a backend.
pub const ENVIRONMENT: &str = "DUET_AEAD";

/// An implementation of the same operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Backend {
    /// AVX-512 with VAES and VPCLMULQDQ: four blocks an instruction.
    Vaes,
    /// AES-NI and PCLMULQDQ: one block an instruction.
    AesNi,
    /// The `aes-gcm` crate, one record at a time.
    Portable,
}

impl Backend {
    /// Every backend, best first.
    pub const ALL: [Self; 3] = [Self::Vaes, Self::AesNi, Self::Portable];

    /// The name as the environment variable takes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Vaes => "vaes",
            Self::AesNi => "aesni",
            Self::Portable => "portable",
        }
    }

    /// What [`ENVIRONMENT`] asks for; `None` when unset or empty.
    pub(crate) fn from_environment() -> Result<Option<Self>, SelectError> {
        match env::var(ENVIRONMENT) {
            Err(env::VarError::NotPresent) => Ok(None),
            Err(env::VarError::NotUnicode(_)) => Err(SelectError::Unknown),
            Ok(name) if name.is_empty() => Ok(None),
            Ok(name) => name.parse().map(Some),
        }
    }

    /// Asks the CPU, and the operating system's register saving, for what this backend needs.
    pub(crate) fn detect(self) -> Option<Proof> {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Vaes => Vaes::detect().map(Proof::Vaes),
            #[cfg(target_arch = "x86_64")]
            Self::AesNi => AesNi::detect().map(Proof::AesNi),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Vaes | Self::AesNi => None,
            Self::Portable => Some(Proof::Portable),
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Backend {
    type Err = SelectError;

    fn from_str(name: &str) -> Result<Self, SelectError> {
        Self::ALL.into_iter().find(|b| b.name() == name).ok_or(SelectError::Unknown)
    }
}

/// Why no backend was selected.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum SelectError {
    /// The environment variable holds something else than a backend's name.
    #[error("{ENVIRONMENT} must be vaes, aesni or portable")]
    Unknown,
    /// The backend asked for needs instructions that this CPU lacks.
    #[error("{ENVIRONMENT}={0}: this CPU lacks the instructions")]
    Unavailable(Backend),
}

/// Evidence that the CPU has what a backend needs. The hardware ones can only be made by their
/// own check, which is what lets their operations be safe functions.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Proof {
    #[cfg(target_arch = "x86_64")]
    Vaes(Vaes),
    #[cfg(target_arch = "x86_64")]
    AesNi(AesNi),
    Portable,
}

impl Proof {
    pub(crate) fn backend(self) -> Backend {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Vaes(_) => Backend::Vaes,
            #[cfg(target_arch = "x86_64")]
            Self::AesNi(_) => Backend::AesNi,
            Self::Portable => Backend::Portable,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_back() {
        for backend in Backend::ALL {
            assert_eq!(backend.name().parse(), Ok(backend));
        }
        assert_eq!("avx2".parse::<Backend>(), Err(SelectError::Unknown));
    }

    #[test]
    fn detection_names_the_backend_asked_for() {
        for backend in Backend::ALL {
            assert!(backend.detect().is_none_or(|proof| proof.backend() == backend));
        }
    }
}
