//! A table whose numbers are never reused: each place counts its uses, and a number names place and use.

use super::StreamId;

/// Bits of a number that are its place; the 32 above them are the use. Together they fit a tag (`Operation`).
const INDEX_BITS: u32 = 20;

/// The most entries.
pub(super) const ENTRIES_MAX: usize = 1 << INDEX_BITS;

#[derive(Debug)]
struct Place<T> {
    use_number: u32,
    entry: Option<T>,
}

/// Entries by their numbers.
#[derive(Debug)]
pub(super) struct Table<T> {
    places: Vec<Place<T>>,
    /// Places without an entry.
    free: Vec<usize>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { places: Vec::new(), free: Vec::new() }
    }
}

fn number(index: usize, use_number: u32) -> StreamId {
    StreamId(u64::from(use_number) << INDEX_BITS | index as u64)
}

fn index(id: StreamId) -> usize {
    (id.0 & ((1 << INDEX_BITS) - 1)) as usize
}

impl<T> Table<T> {
    /// How many entries there are.
    pub(super) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Adds an entry; its number. There must be fewer than [`ENTRIES_MAX`].
    pub(super) fn insert(&mut self, entry: T) -> StreamId {
        let index = self.free.pop().unwrap_or_else(|| {
            assert!(self.places.len() < ENTRIES_MAX, "more entries than numbers");
            self.places.push(Place { use_number: 0, entry: None });
            self.places.len() - 1
        });
        let place = &mut self.places[index];
        place.entry = Some(entry);
        number(index, place.use_number)
    }

    /// The entry of a number, unless it was removed.
    pub(super) fn get_mut(&mut self, id: StreamId) -> Option<&mut T> {
        self.place(id)?.entry.as_mut()
    }

    /// Takes an entry out; its number is worth nothing from now on.
    pub(super) fn remove(&mut self, id: StreamId) -> Option<T> {
        let place = self.place(id)?;
        let entry = place.entry.take()?;
        place.use_number = place.use_number.wrapping_add(1);
        self.free.push(index(id));
        Some(entry)
    }

    /// All entries with their numbers.
    pub(super) fn iter(&self) -> impl Iterator<Item = (StreamId, &T)> {
        self.places.iter().enumerate().filter_map(|(index, place)| {
            Some((number(index, place.use_number), place.entry.as_ref()?))
        })
    }

    /// Takes all entries out, and forgets the numbers.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = (StreamId, T)> {
        self.free.clear();
        (0..)
            .zip(self.places.drain(..))
            .filter_map(|(index, place)| Some((number(index, place.use_number), place.entry?)))
    }

    fn place(&mut self, id: StreamId) -> Option<&mut Place<T>> {
        let place = self.places.get_mut(index(id))?;
        (u64::from(place.use_number) == id.0 >> INDEX_BITS).then_some(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_used_again_and_a_number_never() {
        let mut table = Table::default();
        let [a, b] = [table.insert('a'), table.insert('b')];
        assert_eq!((table.remove(a), table.remove(a), table.len()), (Some('a'), None, 1));
        let c = table.insert('c');
        assert_eq!(index(c), index(a));
        assert!(table.get_mut(a).is_none() && table.get_mut(c) == Some(&mut 'c'));
        assert_eq!(table.iter().map(|(id, _)| id).collect::<Vec<_>>(), [c, b]);
        assert_eq!(table.drain().map(|(_, entry)| entry).collect::<Vec<_>>(), ['c', 'b']);
        assert_eq!(table.len(), 0);
    }
}
