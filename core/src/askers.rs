//! Who sent a reading or a result again, or late, that storage had not answered for yet: the acknowledgement goes there, too. A device
//! whose address has changed meanwhile, or whose stream has ended, would wait for it in vain otherwise.

use arrayvec::ArrayVec;
#[cfg(any(test, feature = "testing"))]
use duet_protocol::wire::SessionId;
use rustc_hash::FxHashMap;

use crate::Path;
use crate::early::Token;

/// From how many places of one reading this is kept: whoever plays a record back from everywhere is not answered everywhere.
const PLACES_MAX: usize = 4;
/// Of how many readings (R93).
const READINGS_MAX: usize = 4_096;

/// A place from which a record came again.
pub(crate) struct Asker {
    pub(crate) path: Path,
    /// How many bytes may be sent there for it (R111).
    pub(crate) budget: usize,
}

/// Those that wait, by what they wait for.
#[derive(Default)]
pub(crate) struct Askers(FxHashMap<Token, ArrayVec<Asker, PLACES_MAX>>);

impl Askers {
    /// The record came again from here. Whether it is answered here, which it was not to be before.
    pub(crate) fn add(&mut self, token: Token, asker: Asker) -> bool {
        let full = self.0.len() >= READINGS_MAX && !self.0.contains_key(&token);
        if full {
            return false;
        }
        let places = self.0.entry(token).or_default();
        places.iter().all(|known| known.path != asker.path) && places.try_push(asker).is_ok()
    }

    /// Takes out who waits for this one: storage has answered.
    #[inline]
    pub(crate) fn take(&mut self, token: Token) -> ArrayVec<Asker, PLACES_MAX> {
        if self.0.is_empty() { ArrayVec::new() } else { self.0.remove(&token).unwrap_or_default() }
    }

    /// The session's readings that somebody waits for.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn of(&self, session: SessionId) -> impl Iterator<Item = Token> {
        self.0.keys().copied().filter(move |token| token.0 == session)
    }

    /// The places that are to be answered.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn paths(&self) -> impl Iterator<Item = Path> {
        self.0.values().flatten().map(|asker| asker.path)
    }

    /// Tells states apart that behave differently.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn fingerprint(&self, out: &mut impl std::hash::Hasher) {
        use std::hash::Hash as _;
        let mut all: Vec<_> = self.0.iter().collect();
        all.sort_unstable_by_key(|(token, _)| **token);
        for (token, places) in all {
            token.hash(out);
            places.iter().for_each(|one| (format!("{:?}", one.path), one.budget).hash(out));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::StreamId;

    #[test]
    fn whoever_plays_back_from_everywhere_fills_nothing() {
        let mut askers = Askers::default();
        let asker = |number| Asker { path: Path::Stream(StreamId(number)), budget: 30 };
        for reading in 0..2 * u32::try_from(READINGS_MAX).unwrap() {
            let added = (0..10).filter(|n| askers.add((SessionId(1), reading), asker(*n))).count();
            let again = (0..10).filter(|n| askers.add((SessionId(1), reading), asker(*n))).count();
            let room = (reading as usize) < READINGS_MAX;
            assert_eq!((added, again), (if room { PLACES_MAX } else { 0 }, 0));
        }
        assert_eq!(askers.take((SessionId(1), 7)).len(), PLACES_MAX);
        assert!(askers.take((SessionId(1), 7)).is_empty());
        assert!(askers.add((SessionId(2), 7), asker(1)));
    }
}
