//! Which backend runs: chosen once, at start, and proven by a token.

use std::fmt;

/// The environment variable that overrides the choice: `portable` forces the portable backend;
/// anything else, or nothing, means the best there is.
pub const BACKEND_VARIABLE: &str = "DUET_BACKEND";

/// A backend this CPU can run. Having a value is the proof that the CPU check ran: the constructors
/// are the only way to get one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Backend(pub(crate) Kind);

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Ifma,
}

impl Backend {
    /// One lane in safe Rust; runs on any CPU.
    #[must_use]
    pub fn portable() -> Self {
        Self(Kind::Portable)
    }

    /// Eight lanes of AVX-512 IFMA, if this CPU has it.
    #[must_use]
    pub fn ifma() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        if crate::ifma::Ifma::detect().is_some() {
            return Some(Self(Kind::Ifma));
        }
        None
    }

    /// The best backend of this CPU, unless [`BACKEND_VARIABLE`] forces the portable one.
    #[must_use]
    pub fn detect() -> Self {
        let forced = std::env::var_os(BACKEND_VARIABLE);
        if forced.is_some_and(|v| v == "portable") {
            return Self::portable();
        }
        Self::ifma().unwrap_or_else(Self::portable)
    }

    /// `ifma` or `portable`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self.0 {
            Kind::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Kind::Ifma => "ifma",
        }
    }

    /// How many items the backend computes at once: batches of a multiple of it waste no lane.
    #[must_use]
    pub fn lanes(self) -> usize {
        match self.0 {
            Kind::Portable => 1,
            #[cfg(target_arch = "x86_64")]
            Kind::Ifma => 8,
        }
    }
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
