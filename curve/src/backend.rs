//! Which backend runs: chosen once, at start, and proven by a token.

use std::fmt;

/// The environment variable that overrides the choice with a backend's name. Anything else, or nothing,
/// means the best there is.
pub const BACKEND_VARIABLE: &str = "DUET_BACKEND";

/// A backend this CPU can run. Having a value is the proof that the CPU check ran: the constructors
/// are the only way to get one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Backend(pub(crate) Kind);

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Adx,
    #[cfg(target_arch = "x86_64")]
    Ifma,
}

impl Backend {
    /// One lane in safe Rust; runs on any CPU.
    #[must_use]
    pub fn portable() -> Self {
        Self(Kind::Portable)
    }

    /// One lane, multiplied with BMI2 and ADX, if this CPU has them.
    #[must_use]
    pub fn adx() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        if crate::adx::Adx::detect().is_some() {
            return Some(Self(Kind::Adx));
        }
        None
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

    /// All backends this CPU runs, the best first.
    pub fn all() -> impl Iterator<Item = Self> {
        [Self::ifma(), Self::adx(), Some(Self::portable())].into_iter().flatten()
    }

    /// The best backend of this CPU, or the one [`BACKEND_VARIABLE`] names if this CPU runs it.
    #[must_use]
    pub fn detect() -> Self {
        let forced = std::env::var_os(BACKEND_VARIABLE);
        let named = Self::all().find(|b| forced.as_ref().is_some_and(|name| name == b.name()));
        named.or_else(|| Self::all().next()).unwrap_or_else(Self::portable)
    }

    /// `ifma`, `adx` or `portable`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self.0 {
            Kind::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Kind::Adx => "adx",
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
            Kind::Adx => 1,
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
