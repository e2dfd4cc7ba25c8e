//! Readings on their way to the spool, encoded on the shard's own thread. Owns the check of the
//! limits; gives no index and no checksum, that is the writer's.

use std::ops::Range;

use super::format::{MAX_DEVICE, MAX_PAYLOAD, ReadingRef, encode_record, record_len, seal_record};

/// The most bytes a batch may hold: 112 of the largest records, about 1,100 with 64 bytes of payload.
pub const MAX_BATCH_BYTES: usize = 128 * 1024;

/// Readings that are committed, or refused, together.
///
/// A completion hands the batch back as it was, so that a shard can use the same memory again.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    records: u32,
    commits: bool,
}

impl Batch {
    /// An empty batch; it allocates with the first push.
    #[must_use]
    pub const fn new() -> Self {
        Self { bytes: Vec::new(), records: 0, commits: false }
    }

    /// Adds a reading. `false`: the batch has no room for it; submit this one and begin another.
    ///
    /// # Panics
    /// When the device's name is empty or longer than [`MAX_DEVICE`], or the payload longer than
    /// [`MAX_PAYLOAD`]: the protocol lets neither through.
    #[must_use = "a reading that did not fit is not stored"]
    pub fn push(&mut self, reading: &ReadingRef<'_>) -> bool {
        assert!((1..=MAX_DEVICE).contains(&reading.device.len()), "device name out of range");
        assert!(reading.payload.len() <= MAX_PAYLOAD, "payload too long");
        if self.bytes.len() + record_len(reading) > MAX_BATCH_BYTES {
            return false;
        }
        encode_record(&mut self.bytes, reading);
        self.records += 1;
        self.commits |= reading.commit.is_some();
        true
    }

    /// Where the payload of the reading that was added last is.
    #[must_use]
    pub(crate) fn last_payload(&self, len: usize) -> Range<usize> {
        self.bytes.len() - len..self.bytes.len()
    }

    /// A payload, by where it is.
    #[must_use]
    pub(crate) fn payload(&self, at: Range<usize>) -> &[u8] {
        &self.bytes[at]
    }

    /// How many bytes a reading takes in the spool.
    #[must_use]
    pub fn stored_bytes(reading: &ReadingRef<'_>) -> usize {
        record_len(reading)
    }

    /// How many readings it holds.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.records as usize
    }

    /// Whether it holds none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// How many bytes it will take in the spool.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Forgets the readings and keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        (self.records, self.commits) = (0, false);
    }

    /// Whether one of them commits to a mark.
    pub(super) const fn commits(&self) -> bool {
        self.commits
    }

    /// Appends the records to a group, sealed; the group's first record has index `first`.
    pub(super) fn seal_into(&self, group: &mut Group) {
        let mut at = group.bytes.len();
        group.bytes.extend_from_slice(&self.bytes);
        for _ in 0..self.records {
            let index = group.first + u64::from(group.records);
            at += seal_record(&mut group.bytes[at..], group.seed, index, group.records);
            group.records += 1;
        }
    }
}

/// What is written with one write: the records of some batches.
#[derive(Debug, Default)]
pub(super) struct Group {
    pub(super) bytes: Vec<u8>,
    pub(super) records: u32,
    first: u64,
    seed: u32,
}

impl Group {
    /// Starts anew, with the memory it has: where the segment's checksums and its indexes are.
    pub(super) fn begin(&mut self, seed: u32, first: u64) {
        self.bytes.clear();
        (self.records, self.first, self.seed) = (0, first, seed);
    }
}

#[cfg(test)]
mod tests {
    use duet_protocol::reading::ReadingId;

    use super::*;

    #[test]
    fn a_full_batch_says_so_and_is_unchanged() {
        let payload = [7; MAX_PAYLOAD];
        let reading = ReadingRef {
            device: "d",
            id: ReadingId { hello: [0; 12], sequence: 0 },
            again: false,
            channel: 0,
            received_ms: 0,
            measured_ms: 0,
            commit: None,
            notice: None,
            payload: &payload,
        };
        let mut batch = Batch::new();
        while batch.push(&reading) {}
        assert_eq!((batch.len(), batch.bytes()), (122, 122 * record_len(&reading)));
        batch.clear();
        assert!(batch.is_empty() && batch.push(&reading));
    }
}
