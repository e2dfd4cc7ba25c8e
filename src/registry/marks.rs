//! Freshness marks and, with each, the identity of the newest early reading, as they are kept on disk.
//!
//! They reach the disk in two ways. Marks of confirmed sessions are saved every few seconds. Those of early
//! readings stand in the spool with the reading, and whoever reads the spool merges them in one transaction with
//! the place that it has read up to: after a crash the rest is read from there. Both only raise a mark.

use duet_core::{Device, Directory as _};
use duet_protocol::identity::{DeviceId, Fingerprint};
use duet_protocol::mark::MARK_MAX;
use duet_protocol::reading::ReadingId;
use redb::{ReadableDatabase, ReadableTable};

use super::store::{CURSOR, SHORT};
use super::{Mark, Registry, RegistryError, key_of};

/// What is kept of a device and its credential besides its row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// The highest `fresh` of a confirmed session or a stored early reading.
    pub mark: u64,
    /// Which reading, inside a HELLO or sent again, was stored last.
    pub last: Option<ReadingId>,
}

impl Kept {
    pub(super) fn put_in(self, device: Device) -> Device {
        device.with_mark(self.mark).with_last(self.last)
    }
}

/// A mark as a reading in the spool carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitMark {
    /// The first eight bytes of the credential's fingerprint.
    pub credential: [u8; 8],
    /// The `fresh` that the reading stands for.
    pub mark: u64,
    /// The reading's first name.
    pub last: ReadingId,
}

/// Up to where the marks in a spool have been merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpoolCursor {
    /// Which spool.
    pub spool: [u8; 16],
    /// One past the last reading that was merged.
    pub index: u64,
}

/// The first eight bytes of a fingerprint, by which a reading in the spool names the credential.
#[must_use]
pub fn short(fingerprint: &Fingerprint) -> [u8; 8] {
    std::array::from_fn(|i| fingerprint.0[i])
}

impl Registry {
    /// Saves freshness marks in one transaction; a mark on disk is never lowered, and none above [`MARK_MAX`]
    /// is saved.
    ///
    /// # Errors
    /// Those of the storage engine; nothing was saved then.
    pub fn save_marks(&self, marks: impl IntoIterator<Item = Mark>) -> Result<(), RegistryError> {
        let database = self.ready()?;
        self.store.change_once(&database, |tables| {
            for mark in marks {
                let key = key_of(&mark.id, &mark.fingerprint);
                let saved = tables.marks.get(key)?.map_or(0, |saved| saved.value());
                if saved < mark.value && mark.value <= MARK_MAX {
                    tables.marks.insert(key, mark.value)?;
                }
            }
            Ok(())
        })
    }

    /// Merges the marks of readings, in the order of the spool, in one transaction with the place they were read
    /// up to: whatever lies before `cursor` may be removed from the spool afterwards. A mark is only raised; one
    /// above [`MARK_MAX`], or of a credential that was never registered, is left out. A cursor that was passed
    /// before changes nothing; one of another spool than before starts anew. Returns how many marks were taken.
    ///
    /// # Errors
    /// Those of the storage engine; nothing was saved then.
    pub fn merge_marks(
        &self,
        cursor: SpoolCursor,
        marks: impl IntoIterator<Item = CommitMark>,
    ) -> Result<usize, RegistryError> {
        let database = self.ready()?;
        self.store.change(&database, |tables| {
            let before = tables.cursor.get(())?.map(|saved| SpoolCursor::decode(&saved.value()));
            if before.is_some_and(|at| at.spool == cursor.spool && at.index > cursor.index) {
                return Ok(0);
            }
            let mut taken = 0;
            for CommitMark { credential, mark, last } in marks {
                let Some(key) = tables.short.get(credential)?.map(|key| key.value()) else {
                    continue;
                };
                let saved = tables.marks.get(key)?.map_or(0, |saved| saved.value());
                if mark > MARK_MAX {
                    continue;
                }
                if mark > saved {
                    tables.marks.insert(key, mark)?;
                }
                tables.last.insert(key, last.encode())?;
                taken += 1;
            }
            tables.cursor.insert((), cursor.encode())?;
            Ok(taken)
        })
    }

    /// Up to where [`merge_marks`](Self::merge_marks) has come; `None` if it was never called.
    ///
    /// # Errors
    /// Those of the storage engine.
    pub fn spool_cursor(&self) -> Result<Option<SpoolCursor>, RegistryError> {
        self.read(|database| match database.begin_read()?.open_table(CURSOR) {
            Ok(table) => Ok(table.get(())?.map(|saved| SpoolCursor::decode(&saved.value()))),
            Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
            Err(error) => Err(error.into()),
        })
    }

    /// Brings the view, which this loads if need be, to what readings in the spool say, in the order of the
    /// spool: for a gateway that starts, before it answers the first device. Returns how many devices it
    /// concerned.
    ///
    /// # Errors
    /// Those of the storage engine.
    pub fn restore_marks(
        &self,
        marks: impl IntoIterator<Item = CommitMark>,
    ) -> Result<usize, RegistryError> {
        let view = self.view()?;
        self.read(|database| {
            let short = match database.begin_read()?.open_table(SHORT) {
                Ok(short) => short,
                Err(redb::TableError::TableDoesNotExist(_)) => return Ok(0),
                Err(error) => return Err(error.into()),
            };
            let mut count = 0;
            for CommitMark { credential, mark, last } in marks {
                let Some(key) = short.get(credential)?.map(|key| key.value()) else { continue };
                let mut id = DeviceId([0; 8]);
                id.0.copy_from_slice(&key[..8]);
                // A device that is gone, or has the id with another credential, has nothing to do with it.
                let device = view.lookup(&id);
                let device = device.filter(|device| device.credential.fingerprint.0 == key[8..]);
                if let Some(device) = device.filter(|_| mark <= MARK_MAX) {
                    if device.raise_mark(mark) {
                        view.save_later(&device);
                    }
                    device.set_last(last);
                    count += 1;
                }
            }
            Ok(count)
        })
    }
}

impl SpoolCursor {
    fn encode(&self) -> [u8; 24] {
        let mut bytes = [0; 24];
        bytes[..16].copy_from_slice(&self.spool);
        bytes[16..].copy_from_slice(&self.index.to_be_bytes());
        bytes
    }

    fn decode(bytes: &[u8; 24]) -> Self {
        let (mut spool, mut index) = ([0; 16], [0; 8]);
        spool.copy_from_slice(&bytes[..16]);
        index.copy_from_slice(&bytes[16..]);
        Self { spool, index: u64::from_be_bytes(index) }
    }
}
