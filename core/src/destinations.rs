//! Where something went that only its receiver can know.

use crate::Path;

/// Where it has gone so far.
#[derive(Clone, Copy, Default)]
pub(crate) enum Destinations {
    #[default]
    Nowhere,
    Only(Path),
    Several,
}

impl Destinations {
    pub(crate) fn add(&mut self, path: Path) {
        *self = match *self {
            Self::Nowhere => Self::Only(path),
            Self::Only(first) if first.reaches_the_same(path) => Self::Only(path),
            Self::Only(_) | Self::Several => Self::Several,
        };
    }

    /// Whether who knows it receives at `path` (R71): when it went to several, he may have it from another one.
    pub(crate) fn reached_only(self, path: Path) -> bool {
        matches!(self, Self::Only(only) if only.reaches_the_same(path))
    }
}
