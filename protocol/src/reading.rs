//! What names a reading for ever, and the reading that travels inside a HELLO.
//!
//! A session id has 24 random bits behind its slot: after some thousand sessions of one device two
//! are equal. So a reading is named by the HELLO of the session in which it was first sent, and by
//! its sequence there (R96); the gateway and whoever reads downstream tell every repetition by that.

use crate::wire::HELLO_NAME;

/// The sequence of a reading that was first sent inside a HELLO. No record has it (R68).
pub const EARLY_SEQUENCE: u32 = u32::MAX;

/// The length of a [`ReadingId`] on the wire, bytes.
pub const READING_ID: usize = HELLO_NAME + 4;

/// Names a reading for ever among its device's: the head of SHA-256(HELLO without cookie) of the
/// session in which it was first sent, and its sequence there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReadingId {
    /// The first 12 bytes of the HELLO's digest.
    pub hello: [u8; HELLO_NAME],
    /// The sequence of the record, or [`EARLY_SEQUENCE`].
    pub sequence: u32,
}

impl ReadingId {
    /// The name of the reading with this sequence in the session that the HELLO with this digest
    /// opened.
    #[must_use]
    pub fn new(hello: &[u8; 32], sequence: u32) -> Self {
        let mut name = [0; HELLO_NAME];
        name.copy_from_slice(&hello[..HELLO_NAME]);
        Self { hello: name, sequence }
    }

    /// The name of the reading inside the HELLO with this digest.
    #[must_use]
    pub fn early(hello: &[u8; 32]) -> Self {
        Self::new(hello, EARLY_SEQUENCE)
    }

    /// Whether it was first sent inside a HELLO.
    #[must_use]
    pub const fn is_early(self) -> bool {
        self.sequence == EARLY_SEQUENCE
    }

    /// The bytes on the wire: the HELLO's name, then the sequence.
    #[must_use]
    pub fn encode(self) -> [u8; READING_ID] {
        let mut out = [0; READING_ID];
        out[..HELLO_NAME].copy_from_slice(&self.hello);
        out[HELLO_NAME..].copy_from_slice(&self.sequence.to_be_bytes());
        out
    }

    /// Reads the bytes; every 16 bytes are a name.
    #[must_use]
    pub fn decode(bytes: &[u8; READING_ID]) -> Self {
        let [hello @ .., s0, s1, s2, s3] = *bytes;
        Self { hello, sequence: u32::from_be_bytes([s0, s1, s2, s3]) }
    }
}

/// The reading inside a HELLO whose proof has verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EarlyReading<'a> {
    /// Its first name: of this HELLO, or the one that it came under before.
    pub id: ReadingId,
    /// Whether the device says that it sent this reading before, under `id`.
    pub again: bool,
    /// Which of the device's sources.
    pub channel: u16,
    /// How long ago it was measured, milliseconds, where the device says so.
    pub age_ms: Option<u32>,
    /// The measurement, opaque to the gateway.
    pub payload: &'a [u8],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_comes_back_as_it_was() {
        let mut digest = [7; 32];
        digest[11] = 9;
        let id = ReadingId::new(&digest, 0x0102_0304);
        assert_eq!(ReadingId::decode(&id.encode()), id);
        assert_eq!(id.encode()[10..], [7, 9, 1, 2, 3, 4]);
        assert!(!id.is_early() && ReadingId::early(&digest).is_early());
        assert_eq!(ReadingId::early(&digest).encode()[12..], [0xff; 4]);
    }
}
