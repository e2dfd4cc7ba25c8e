//! What stands in the spool, beside what devices were told.

use std::collections::HashMap;
use std::path::Path;

use duet::delivery::Reader;
use duet_protocol::reading::ReadingId;

use crate::unit::Unit;

/// What was compared.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Found {
    pub(crate) stored: usize,
    /// Readings that are there more than once, under the same name.
    pub(crate) again: usize,
    pub(crate) confirmed: usize,
    pub(crate) confirmed_early: usize,
}

/// Asserts that every confirmed reading is there with its content, that what was first sent inside HELLO is there once, and
/// that every other repetition has the name of the first.
pub(crate) fn compare(spool: &Path, units: &[Unit]) -> Found {
    let mut names: HashMap<(String, ReadingId), (Vec<u8>, usize)> = HashMap::new();
    let mut contents: HashMap<Vec<u8>, ReadingId> = HashMap::new();
    let mut found = Found::default();
    let mut reader = Reader::open(spool).unwrap();
    while let Some(record) = reader.read().unwrap() {
        let reading = record.reading;
        found.stored += 1;
        let entry = names.entry((reading.device.to_owned(), reading.id));
        let (content, times) = entry.or_insert_with(|| (reading.payload.to_vec(), 0));
        *times += 1;
        let text = String::from_utf8_lossy(reading.payload).into_owned();
        assert_eq!(content, reading.payload, "one name, two readings: {:?} {text}", reading.id);
        assert!(*times == 1 || !reading.id.is_early(), "stored twice: {text}");
        found.again += usize::from(*times > 1);
        // Every payload says which reading of which device it is.
        let named = *contents.entry(reading.payload.to_vec()).or_insert(reading.id);
        assert_eq!(named, reading.id, "stored under two names, so nobody can tell: {text}");
    }
    for unit in units {
        for (id, payload) in &unit.confirmed {
            let text = String::from_utf8_lossy(payload);
            let stored = names.get(&(unit.name.clone(), *id));
            let stored = stored.unwrap_or_else(|| panic!("confirmed and lost: {text} {id:?}"));
            assert_eq!(&stored.0, payload, "confirmed is another reading than stored: {text}");
            found.confirmed += 1;
            found.confirmed_early += usize::from(id.is_early());
        }
    }
    found
}
