//! Which backend runs: chosen once, at start, and proven by a token. A backend computes with numbers
//! modulo p and n, in one lane or eight; formulas and operations are written once, over
//! [`Lanes`](crate::lanes::Lanes), and know none of them.
//!
//! | module | lanes | CPU | `unsafe` |
//! |---|---|---|---|
//! | `ifma` | eight of five 52-bit limbs | AVX-512 IFMA | intrinsics |
//! | `adx` | one of four 64-bit limbs | BMI2, ADX | assembly |
//! | `portable` | one of four 64-bit limbs | any | none |
//! | `bounds` | intervals instead of values, in tests only: proves that no value leaves its range | any | none |

#[cfg(target_arch = "x86_64")]
pub(crate) mod adx;
#[cfg(test)]
mod bounds;
#[cfg(target_arch = "x86_64")]
pub(crate) mod ifma;
pub(crate) mod portable;

use std::fmt;

/// The environment variable that overrides the choice with a backend's name.
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
        if adx::Adx::detect().is_some() {
            return Some(Self(Kind::Adx));
        }
        None
    }

    /// Eight lanes of AVX-512 IFMA, if this CPU has it.
    #[must_use]
    pub fn ifma() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        if ifma::Ifma::detect().is_some() {
            return Some(Self(Kind::Ifma));
        }
        None
    }

    /// All backends this CPU runs, the best first.
    pub fn all() -> impl Iterator<Item = Self> {
        [Self::ifma(), Self::adx(), Some(Self::portable())].into_iter().flatten()
    }

    /// The best backend of this CPU, or the one that [`BACKEND_VARIABLE`] names.
    ///
    /// # Errors
    /// [`NoSuchBackend`] when it names none that this CPU runs: who asks for one must not get another.
    pub fn select() -> Result<Self, NoSuchBackend> {
        match std::env::var_os(BACKEND_VARIABLE) {
            None => Ok(Self::all().next().unwrap_or_else(Self::portable)),
            Some(name) => Self::named(&name.to_string_lossy()),
        }
    }

    /// [`select`](Self::select), for tests and benches.
    ///
    /// # Panics
    /// When [`BACKEND_VARIABLE`] names none that this CPU runs.
    #[must_use]
    pub fn detect() -> Self {
        Self::select().unwrap_or_else(|error| panic!("{error}"))
    }

    fn named(name: &str) -> Result<Self, NoSuchBackend> {
        Self::all().find(|backend| backend.name() == name).ok_or(NoSuchBackend)
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

/// [`BACKEND_VARIABLE`] names no backend that this CPU runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoSuchBackend;

impl fmt::Display for NoSuchBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{BACKEND_VARIABLE} must be unset or one of those that this CPU runs:")?;
        Backend::all().try_for_each(|backend| write!(f, " {}", backend.name()))
    }
}

impl std::error::Error for NoSuchBackend {}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readme_names_every_backend_and_no_other() {
        let readme = include_str!("../README.md");
        let (_, section) = readme.split_once("## Backends").unwrap();
        let (section, _) = section.split_once("\n## ").unwrap();
        let rows = section.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
        let mut named: Vec<_> = rows.collect();
        named.sort_unstable();
        assert_eq!(named, ["adx", "ifma", "portable"]);
        for backend in Backend::all() {
            assert!(named.contains(&backend.name()));
        }
    }

    #[test]
    fn backends_are_found_by_their_names_and_by_no_others() {
        for backend in Backend::all() {
            assert_eq!(Backend::named(backend.name()), Ok(backend));
        }
        for name in ["", "Portable", "avx2"] {
            let refused = Backend::named(name).unwrap_err().to_string();
            assert!(refused.ends_with("portable"), "{refused}");
        }
    }
}
