//! Where something went that only its receiver can know.

use crate::transport::Path;

/// Where it has gone so far.
#[derive(Clone, Copy, Default)]
pub(super) enum Destinations {
    #[default]
    Nowhere,
    Only(Path),
    Several,
}

impl Destinations {
    pub(super) fn add(&mut self, path: Path) {
        *self = match *self {
            Self::Nowhere => Self::Only(path),
            Self::Only(first) if first == path => Self::Only(path),
            Self::Only(_) | Self::Several => Self::Several,
        };
    }

    /// Whether who knows it receives at `path` (R71): when it went to several, he may have it from another one.
    pub(super) fn prove(self, path: Path) -> bool {
        matches!(self, Self::Only(only) if only == path)
    }
}
