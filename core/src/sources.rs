//! Which key sources a device may use.

use std::fmt;
use std::str::FromStr;

use duet_protocol::profile::{KeySource, Profile};
use thiserror::Error;

/// A set of key sources. The default is `ephemeral` alone: the method's own key sources protect
/// less, so each is allowed device by device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceSet(u8);

/// No key source has this name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "expected key sources separated by commas: \
     ephemeral, xor-key, xor-random, client-key, client-random"
)]
pub struct UnknownSource;

impl SourceSet {
    /// Every key source.
    pub const ALL: Self = Self(0b1_1111);

    /// The set of these sources.
    #[must_use]
    pub fn of(sources: impl IntoIterator<Item = KeySource>) -> Self {
        Self(sources.into_iter().fold(0, |bits, source| bits | bit(source)))
    }

    /// Whether a device with this set may use `source`.
    #[must_use]
    pub fn contains(self, source: KeySource) -> bool {
        self.0 & bit(source) != 0
    }

    /// The sources in the set.
    pub fn iter(self) -> impl Iterator<Item = KeySource> {
        every().filter(move |source| self.contains(*source))
    }

    /// The set as bits, which never change their meaning.
    #[must_use]
    pub fn bits(self) -> u8 {
        self.0
    }

    /// The set with these bits; `None` if it is empty or there are unknown ones.
    #[must_use]
    pub fn from_bits(bits: u8) -> Option<Self> {
        (bits != 0 && bits & !Self::ALL.0 == 0).then_some(Self(bits))
    }
}

impl Default for SourceSet {
    fn default() -> Self {
        Self::of([KeySource::Ephemeral])
    }
}

impl fmt::Display for SourceSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, source) in self.iter().enumerate() {
            write!(f, "{}{}", if i == 0 { "" } else { "," }, source.name())?;
        }
        Ok(())
    }
}

impl FromStr for SourceSet {
    type Err = UnknownSource;

    fn from_str(text: &str) -> Result<Self, UnknownSource> {
        let sources = text.split(',').map(|name| KeySource::from_name(name.trim()));
        sources.collect::<Option<Vec<_>>>().map(Self::of).ok_or(UnknownSource)
    }
}

fn every() -> impl Iterator<Item = KeySource> {
    Profile::ALL.into_iter().take(5).map(|profile| profile.source)
}

/// On disk as well as in memory: the bits never change their meaning.
fn bit(source: KeySource) -> u8 {
    use duet_protocol::profile::Transfer;
    match source {
        KeySource::Ephemeral => 1,
        KeySource::Xor(Transfer::Key) => 2,
        KeySource::Xor(Transfer::Random) => 4,
        KeySource::Client(Transfer::Key) => 8,
        KeySource::Client(Transfer::Random) => 16,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_set_reads_back_from_its_text_and_its_bits() {
        for bits in 1..=SourceSet::ALL.bits() {
            let set = SourceSet::from_bits(bits).unwrap();
            assert_eq!(set.to_string().parse(), Ok(set));
            assert_eq!(SourceSet::of(set.iter()), set);
        }
        assert_eq!(SourceSet::from_bits(0), None);
        assert_eq!(SourceSet::from_bits(32), None);
        assert_eq!("".parse::<SourceSet>(), Err(UnknownSource));
        assert_eq!("ephemeral,".parse::<SourceSet>(), Err(UnknownSource));
        assert_eq!(SourceSet::default().to_string(), "ephemeral");
    }
}
