//! The bytes of a segment: its header and its records. Owns the layout and the limits; does no
//! I/O, and takes every byte it decodes as hostile.

use duet_protocol::reading::ReadingId;

use super::error::Damage;
use super::id::SpoolId;
use super::notice::{NOTICE_LEN, Notice};

/// The longest name of a device, in bytes.
pub const MAX_DEVICE: usize = 64;
/// The largest payload of a reading, in bytes.
pub const MAX_PAYLOAD: usize = 1024;

/// Where records begin: the header keeps a page to itself, so that no commit rewrites it.
pub(super) const DATA_START: u64 = 4096;
/// The fixed part of a record.
pub(super) const RECORD_HEAD: usize = 48;
/// The longest record.
pub(super) const MAX_RECORD: usize =
    RECORD_HEAD + MEASURED_LEN + COMMIT_LEN + NOTICE_LEN + MAX_DEVICE + MAX_PAYLOAD;
/// The encoded header, without the rest of its page.
pub(super) const HEADER_LEN: usize = 64;
/// The largest segment.
pub(super) const MAX_SEGMENT_BYTES: u64 = 1 << 32;

const MAGIC: [u8; 8] = *b"duetspol";
const VERSION: u32 = 2;
/// What follows the head where a reading says when it was measured.
const MEASURED_LEN: usize = 8;
/// What follows where it moves its device's mark.
const COMMIT_LEN: usize = 16;

/// The device said that it had sent the reading before.
const AGAIN: u8 = 1;
/// A time of measurement follows the head.
const MEASURED: u8 = 2;
/// A commit follows.
const COMMIT: u8 = 4;
/// It is a notice, which follows.
const NOTICE: u8 = 8;

/// A reading as a shard hands it in and as a reader gets it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadingRef<'a> {
    /// The device's name, 1 to [`MAX_DEVICE`] bytes.
    pub device: &'a str,
    /// Its identity: with the device it names this reading for ever, also where it was sent again.
    pub id: ReadingId,
    /// Whether the device said that it had sent it before.
    pub again: bool,
    /// The device's channel.
    pub channel: u16,
    /// When the gateway received it, in milliseconds since 1970 UTC.
    pub received_ms: u64,
    /// When it was measured: the same, unless the device gave an age.
    pub measured_ms: u64,
    /// What becomes true of the device once the reading is durable.
    pub commit: Option<Commit>,
    /// What happened, where this is no reading.
    pub notice: Option<Notice>,
    /// At most [`MAX_PAYLOAD`] bytes.
    pub payload: &'a [u8],
}

/// What an early reading, or one that is sent again, commits to beside itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commit {
    /// The first bytes of the fingerprint of the device's credential.
    pub credential: [u8; 8],
    /// The freshness mark that the device has once the reading is durable.
    pub mark: u64,
}

/// A reading in the spool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Its place in the spool: rises by one with every record, across segments and restarts.
    pub index: u64,
    /// The index of the first record of its group, that is of its commit.
    pub group: u64,
    /// What was stored.
    pub reading: ReadingRef<'a>,
}

/// What a segment says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) first_index: u64,
    pub(super) size: u64,
    pub(super) salt: u64,
    /// The spool that it belongs to.
    pub(super) spool: SpoolId,
    /// Whether indexes before its first one are missing, and that is known and told.
    pub(super) gap: bool,
}

impl Header {
    pub(super) fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[..8].copy_from_slice(&MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[12..16].copy_from_slice(&u32::from(self.gap).to_le_bytes());
        out[16..24].copy_from_slice(&self.first_index.to_le_bytes());
        out[24..32].copy_from_slice(&self.size.to_le_bytes());
        out[32..40].copy_from_slice(&self.salt.to_le_bytes());
        out[40..56].copy_from_slice(&self.spool.0);
        let crc = crc32c::crc32c(&out[..60]);
        out[60..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    pub(super) fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Self, Damage> {
        let mut fields = Fields(bytes);
        let parsed = (|| {
            let magic = fields.take::<8>()?;
            let version = fields.u32()?;
            let gap = fields.u32()? != 0;
            let (first_index, size, salt) = (fields.u64()?, fields.u64()?, fields.u64()?);
            let spool = SpoolId(fields.take()?);
            Some((magic, version, Self { first_index, size, salt, spool, gap }))
        })();
        let (magic, version, header) = parsed.ok_or(Damage::Header)?;
        let (covered, crc) = bytes.split_last_chunk::<4>().ok_or(Damage::Header)?;
        if magic != MAGIC || crc32c::crc32c(covered) != u32::from_le_bytes(*crc) {
            return Err(Damage::Header);
        }
        if version != VERSION {
            return Err(Damage::Version(version));
        }
        if header.size <= DATA_START || header.size > MAX_SEGMENT_BYTES {
            return Err(Damage::Header);
        }
        Ok(header)
    }

    /// The checksum every record of this segment starts from.
    pub(super) fn seed(&self) -> u32 {
        crc32c::crc32c(&self.salt.to_le_bytes())
    }
}

/// How long the record of a reading is.
pub(super) fn record_len(reading: &ReadingRef<'_>) -> usize {
    let measured = if is_measured(reading) { MEASURED_LEN } else { 0 };
    let commit = if reading.commit.is_some() { COMMIT_LEN } else { 0 };
    let notice = if reading.notice.is_some() { NOTICE_LEN } else { 0 };
    RECORD_HEAD + measured + commit + notice + reading.device.len() + reading.payload.len()
}

fn is_measured(reading: &ReadingRef<'_>) -> bool {
    reading.measured_ms != reading.received_ms
}

/// Appends a reading without index, position and checksum: [`seal_record`] adds them.
/// The caller has checked the limits.
pub(super) fn encode_record(out: &mut Vec<u8>, reading: &ReadingRef<'_>) {
    let length = record_len(reading);
    assert!(length <= MAX_RECORD, "limits are checked by Batch::push");
    let mut head = [0; RECORD_HEAD];
    #[expect(clippy::cast_possible_truncation, reason = "asserted above: at most MAX_RECORD")]
    head[..4].copy_from_slice(&(length as u32).to_le_bytes());
    head[20..32].copy_from_slice(&reading.id.hello);
    head[32..36].copy_from_slice(&reading.id.sequence.to_le_bytes());
    head[36..44].copy_from_slice(&reading.received_ms.to_le_bytes());
    head[44..46].copy_from_slice(&reading.channel.to_le_bytes());
    #[expect(clippy::cast_possible_truncation, reason = "at most MAX_DEVICE")]
    let device_len = reading.device.len() as u8;
    head[46] = device_len;
    head[47] = (if reading.again { AGAIN } else { 0 })
        | (if is_measured(reading) { MEASURED } else { 0 })
        | (if reading.commit.is_some() { COMMIT } else { 0 })
        | (if reading.notice.is_some() { NOTICE } else { 0 });
    out.extend_from_slice(&head);
    if is_measured(reading) {
        out.extend_from_slice(&reading.measured_ms.to_le_bytes());
    }
    if let Some(commit) = &reading.commit {
        out.extend_from_slice(&commit.credential);
        out.extend_from_slice(&commit.mark.to_le_bytes());
    }
    if let Some(notice) = &reading.notice {
        out.extend_from_slice(&notice.encode());
    }
    out.extend_from_slice(reading.device.as_bytes());
    out.extend_from_slice(reading.payload);
}

/// Gives the record at the head of `bytes` its place and its checksum; returns its length.
/// Only for bytes that [`encode_record`] wrote.
pub(super) fn seal_record(bytes: &mut [u8], seed: u32, index: u64, position: u32) -> usize {
    let length = bytes.first_chunk::<4>().map_or(0, |length| u32::from_le_bytes(*length)) as usize;
    assert!((RECORD_HEAD..=MAX_RECORD).contains(&length), "sealed what was not encoded");
    let record = &mut bytes[..length];
    record[8..16].copy_from_slice(&index.to_le_bytes());
    record[16..20].copy_from_slice(&position.to_le_bytes());
    let crc = checksum(seed, record);
    record[4..8].copy_from_slice(&crc.to_le_bytes());
    length
}

/// Decodes the record at the head of `bytes` and returns it with its length. `None`: nothing was
/// written here (a zero length, or no room for one).
pub(super) fn decode_record(
    bytes: &[u8],
    seed: u32,
) -> Result<Option<(Record<'_>, usize)>, Damage> {
    let Some(length) = bytes.first_chunk::<4>().map(|length| u32::from_le_bytes(*length) as usize)
    else {
        return Ok(None);
    };
    if length == 0 {
        return Ok(None);
    }
    if !(RECORD_HEAD..=MAX_RECORD).contains(&length) {
        return Err(Damage::Length);
    }
    let record = bytes.get(..length).ok_or(Damage::Length)?;
    let mut fields = Fields(&record[4..]);
    if fields.u32() != Some(checksum(seed, record)) {
        return Err(Damage::Checksum);
    }
    decode_fields(fields).map(|record| Some((record, length))).ok_or(Damage::Fields)
}

/// The length that a record says it has, where that is possible.
pub(super) fn plausible_length(bytes: &[u8]) -> Option<usize> {
    let length = Fields(bytes).u32()? as usize;
    (RECORD_HEAD..=MAX_RECORD).contains(&length).then_some(length)
}

/// What a search looks at before it pays for a checksum: the index, where the length is possible.
pub(super) fn plausible_index(bytes: &[u8]) -> Option<u64> {
    plausible_length(bytes)?;
    Fields(bytes.get(8..)?).u64()
}

fn decode_fields(mut fields: Fields<'_>) -> Option<Record<'_>> {
    let index = fields.u64()?;
    let position = fields.u32()?;
    let id = ReadingId { hello: fields.take()?, sequence: fields.u32()? };
    let received_ms = fields.u64()?;
    let channel = u16::from_le_bytes(fields.take()?);
    let [device_len, flags] = fields.take()?;
    if flags & !(AGAIN | MEASURED | COMMIT | NOTICE) != 0 {
        return None;
    }
    let measured_ms = if flags & MEASURED == 0 { received_ms } else { fields.u64()? };
    let commit = match flags & COMMIT {
        0 => None,
        _ => Some(Commit { credential: fields.take()?, mark: fields.u64()? }),
    };
    let notice = match flags & NOTICE {
        0 => None,
        _ => Some(Notice::decode(&fields.take()?)?),
    };
    let (device, payload) = fields.0.split_at_checked(usize::from(device_len))?;
    let whole = !device.is_empty() && device.len() <= MAX_DEVICE && payload.len() <= MAX_PAYLOAD;
    let device = std::str::from_utf8(device).ok().filter(|_| whole)?;
    let group = index.checked_sub(u64::from(position))?;
    let again = flags & AGAIN != 0;
    let reading = ReadingRef {
        device,
        id,
        again,
        channel,
        received_ms,
        measured_ms,
        commit,
        notice,
        payload,
    };
    Some(Record { index, group, reading })
}

/// Of the length and everything after the checksum's own place.
fn checksum(seed: u32, record: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(seed, &record[..4]), &record[8..])
}

/// Little-endian fields, taken from the front.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*field)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READING: ReadingRef<'_> = ReadingRef {
        device: "pump-7",
        id: ReadingId { hello: [1; 12], sequence: 2 },
        again: true,
        channel: 3,
        received_ms: 5,
        measured_ms: 4,
        commit: Some(Commit { credential: [6; 8], mark: 7 }),
        notice: None,
        payload: b"21.5",
    };

    fn sealed(seed: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode_record(&mut bytes, &READING);
        assert_eq!(seal_record(&mut bytes, seed, 9, 2), bytes.len());
        bytes
    }

    #[test]
    fn a_record_comes_back() {
        let bytes = sealed(5);
        let (record, length) = decode_record(&bytes, 5).unwrap().unwrap();
        assert_eq!(
            (record, length),
            (Record { index: 9, group: 7, reading: READING }, bytes.len())
        );
        assert_eq!(decode_record(&bytes, 6), Err(Damage::Checksum), "another segment's record");
    }

    #[test]
    fn what_a_reading_does_not_say_takes_no_room() {
        let mut lengths = Vec::new();
        for commit in [None, READING.commit] {
            for measured_ms in [5, 4] {
                let reading = ReadingRef { commit, measured_ms, again: false, ..READING };
                let mut bytes = Vec::new();
                encode_record(&mut bytes, &reading);
                assert_eq!(bytes.len(), record_len(&reading));
                seal_record(&mut bytes, 5, 9, 2);
                assert_eq!(decode_record(&bytes, 5).unwrap().unwrap().0.reading, reading);
                lengths.push(bytes.len() - 10);
            }
        }
        assert_eq!(lengths, [48, 56, 64, 72]);
    }

    #[test]
    fn a_notice_comes_back_and_takes_its_room() {
        let notice = Some(Notice::Result {
            command: 5,
            number: 6,
            state: super::super::notice::End::Done,
            late: false,
            status: Some(0),
        });
        let reading = ReadingRef { notice, ..READING };
        let mut bytes = Vec::new();
        encode_record(&mut bytes, &reading);
        assert_eq!(bytes.len(), record_len(&READING) + NOTICE_LEN);
        seal_record(&mut bytes, 5, 9, 2);
        assert_eq!(decode_record(&bytes, 5).unwrap().unwrap().0.reading, reading);
    }

    #[test]
    fn every_flipped_bit_and_every_truncation_is_noticed() {
        let whole = sealed(5);
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(decode_record(&bytes, 5).is_err(), "bit {bit}");
        }
        for length in 4..whole.len() {
            assert_eq!(decode_record(&whole[..length], 5), Err(Damage::Length));
        }
        assert_eq!(decode_record(&whole[..3], 5), Ok(None));
    }

    #[test]
    fn a_header_comes_back_and_every_flipped_bit_is_noticed() {
        let header = Header {
            first_index: 77,
            size: 1 << 20,
            salt: 0x0123_4567_89ab_cdef,
            spool: SpoolId([9; 16]),
            gap: true,
        };
        let bytes = header.encode();
        assert_eq!(Header::decode(&bytes), Ok(header));
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::decode(&flipped).is_err(), "bit {bit}");
        }
    }
}
