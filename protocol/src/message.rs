//! What a record carries: the text inside it, one type byte and a body (specified in
//! `docs/protocol.md`). The low half of the type byte is the type, the high half are flags.

use crate::{
    reading::{READING_ID, ReadingId},
    reason::DropReason,
};

/// The longest payload of a reading, command or result, bytes.
pub const PAYLOAD_MAX: usize = 1_024;
/// The longest text of a record.
pub const TEXT_MAX: usize = PAYLOAD_MAX + 3 + 4 + READING_ID;
/// The most ranges that one acknowledgement carries.
pub const RANGES_MAX: usize = 32;

const CONFIRM: u8 = 0x10;
const AGE: u8 = 0x20;
const AGAIN: u8 = 0x40;
/// On an acknowledgement and a pong: no command waits for the device.
const NOTHING_WAITS: u8 = 0x10;

/// A run of acknowledged sequence numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The first number.
    pub first: u32,
    /// How many numbers: at least one.
    pub count: u16,
}

impl Range {
    /// Whether the number is in the run.
    #[must_use]
    pub const fn contains(self, sequence: u32) -> bool {
        sequence >= self.first && sequence - self.first < self.count as u32
    }
}

/// A message from a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Up<'a> {
    /// A measurement.
    Reading {
        /// Whether the device waits for an acknowledgement.
        confirm: bool,
        /// Which of the device's sources.
        channel: u16,
        /// How long ago it was measured, milliseconds, where the device says so.
        age_ms: Option<u32>,
        /// The reading's first name, where the device has sent it before under that name. Only
        /// with `confirm`.
        again: Option<ReadingId>,
        /// The measurement, opaque to the gateway.
        payload: &'a [u8],
    },
    /// What came of a command.
    Result {
        /// The command's number.
        command: u32,
        /// Zero for success; other values are the device's own.
        status: u8,
        /// The command's output.
        payload: &'a [u8],
    },
    /// Asks for a [`Down::Pong`]: confirms the session, keeps address translation open.
    Ping,
    /// The device leaves and has destroyed its keys.
    Close,
    /// Answers a [`Down::Prove`]: whoever says this receives where it is said from.
    Here {
        /// The four bytes of the question.
        challenge: [u8; 4],
    },
}

/// A message to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Down<'a> {
    /// Readings that are now durable, or results that are recorded.
    Ack {
        /// Their sequences: encoded [`Range`]s.
        ranges: Ranges<'a>,
        /// Whether no command waits for the device.
        nothing_waits: bool,
    },
    /// Something to do.
    Command {
        /// Its number, unique for the device while it is open.
        command: u32,
        /// What to do, opaque to the gateway.
        payload: &'a [u8],
    },
    /// Answers a [`Up::Ping`].
    Pong {
        /// The sequence of the ping that it answers, said where no command waits for the device.
        nothing_waits: Option<u32>,
    },
    /// The gateway ends the session and has destroyed its keys.
    Close,
    /// Asks the device to show with [`Up::Here`] that it receives at this address.
    Prove {
        /// What to answer with.
        challenge: [u8; 4],
    },
}

/// The ranges of an acknowledgement, still encoded: 6 bytes each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ranges<'a>(&'a [u8]);

impl Ranges<'_> {
    /// The ranges in order.
    pub fn iter(&self) -> impl Iterator<Item = Range> + '_ {
        self.0.as_chunks::<6>().0.iter().map(|&[f0, f1, f2, f3, c0, c1]| Range {
            first: u32::from_be_bytes([f0, f1, f2, f3]),
            count: u16::from_be_bytes([c0, c1]),
        })
    }
}

/// Writes fields one after the other; every message fits [`TEXT_MAX`].
struct Writer<'a> {
    out: &'a mut [u8],
    len: usize,
}

impl Writer<'_> {
    fn put(&mut self, bytes: &[u8]) -> &mut Self {
        self.out[self.len..][..bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
        self
    }
}

fn array<const N: usize>(bytes: &[u8]) -> Result<([u8; N], &[u8]), DropReason> {
    let (head, rest) = bytes.split_first_chunk().ok_or(DropReason::Message)?;
    Ok((*head, rest))
}

fn payload(bytes: &[u8]) -> Result<&[u8], DropReason> {
    if bytes.len() > PAYLOAD_MAX { Err(DropReason::Message) } else { Ok(bytes) }
}

fn empty<T>(bytes: &[u8], message: T) -> Result<T, DropReason> {
    if bytes.is_empty() { Ok(message) } else { Err(DropReason::Message) }
}

impl<'a> Up<'a> {
    /// Writes the text; its length.
    ///
    /// # Panics
    /// When `out` is too short: [`TEXT_MAX`] always suffices.
    #[must_use]
    pub fn encode(&self, out: &mut [u8]) -> usize {
        let mut to = Writer { out, len: 0 };
        match *self {
            Self::Reading { confirm, channel, age_ms, again, payload } => {
                let mut flags = if confirm { CONFIRM } else { 0 };
                flags |= if age_ms.is_some() { AGE } else { 0 };
                flags |= if again.is_some() { AGAIN } else { 0 };
                to.put(&[1 | flags]).put(&channel.to_be_bytes());
                if let Some(age_ms) = age_ms {
                    to.put(&age_ms.to_be_bytes());
                }
                if let Some(first) = again {
                    to.put(&first.encode());
                }
                to.put(payload);
            }
            Self::Result { command, status, payload } => {
                to.put(&[2]).put(&command.to_be_bytes()).put(&[status]).put(payload);
            }
            Self::Ping => {
                to.put(&[3]);
            }
            Self::Close => {
                to.put(&[4]);
            }
            Self::Here { challenge } => {
                to.put(&[5]).put(&challenge);
            }
        }
        to.len
    }

    /// Reads an opened record's text.
    ///
    /// # Errors
    /// [`DropReason::Message`] for whatever is not a message from a device (R73).
    pub fn decode(text: &'a [u8]) -> Result<Self, DropReason> {
        let ([kind], rest) = array(text)?;
        match kind {
            _ if kind & 0xf == 1 && kind & !(0xf | CONFIRM | AGE | AGAIN) == 0 => {
                let confirm = kind & CONFIRM != 0;
                let (channel, mut rest) = array(rest)?;
                let mut age_ms = None;
                if kind & AGE != 0 {
                    let (age, after) = array(rest)?;
                    age_ms = Some(u32::from_be_bytes(age));
                    rest = after;
                }
                let mut again = None;
                if kind & AGAIN != 0 {
                    // Whoever says a reading again waits for its acknowledgement.
                    let (first, after) = array(rest)?;
                    again = Some(ReadingId::decode(&first)).filter(|_| confirm);
                    again.ok_or(DropReason::Message)?;
                    rest = after;
                }
                let (channel, payload) = (u16::from_be_bytes(channel), payload(rest)?);
                Ok(Self::Reading { confirm, channel, age_ms, again, payload })
            }
            2 => {
                let (command, rest) = array(rest)?;
                let ([status], rest) = array(rest)?;
                let command = u32::from_be_bytes(command);
                Ok(Self::Result { command, status, payload: payload(rest)? })
            }
            3 => empty(rest, Self::Ping),
            4 => empty(rest, Self::Close),
            5 => {
                let (challenge, rest) = array(rest)?;
                empty(rest, Self::Here { challenge })
            }
            _ => Err(DropReason::Message),
        }
    }
}

impl<'a> Down<'a> {
    /// Encodes ranges for [`Down::Ack`] into `out`; at most [`RANGES_MAX`] are taken.
    #[must_use]
    pub fn ack(ranges: &[Range], nothing_waits: bool, out: &'a mut [u8; RANGES_MAX * 6]) -> Self {
        let mut len = 0;
        for (range, slot) in ranges.iter().zip(out.as_chunks_mut::<6>().0) {
            slot[..4].copy_from_slice(&range.first.to_be_bytes());
            slot[4..].copy_from_slice(&range.count.to_be_bytes());
            len += 6;
        }
        Self::Ack { ranges: Ranges(&out[..len]), nothing_waits }
    }

    /// Writes the text; its length.
    ///
    /// # Panics
    /// When `out` is too short: [`TEXT_MAX`] always suffices.
    #[must_use]
    pub fn encode(&self, out: &mut [u8]) -> usize {
        let mut to = Writer { out, len: 0 };
        match *self {
            Self::Ack { ranges, nothing_waits } => {
                to.put(&[8 | if nothing_waits { NOTHING_WAITS } else { 0 }]).put(ranges.0)
            }
            Self::Command { command, payload } => {
                to.put(&[9]).put(&command.to_be_bytes()).put(payload)
            }
            Self::Pong { nothing_waits: None } => to.put(&[10]),
            Self::Pong { nothing_waits: Some(ping) } => {
                to.put(&[10 | NOTHING_WAITS]).put(&ping.to_be_bytes())
            }
            Self::Close => to.put(&[11]),
            Self::Prove { challenge } => to.put(&[12]).put(&challenge),
        };
        to.len
    }

    /// Reads an opened record's text.
    ///
    /// # Errors
    /// [`DropReason::Message`] for whatever is not a message to a device (R73).
    pub fn decode(text: &'a [u8]) -> Result<Self, DropReason> {
        let ([kind], rest) = array(text)?;
        match kind {
            _ if kind & !NOTHING_WAITS == 8
                && !rest.is_empty()
                && rest.len() % 6 == 0
                && rest.len() <= RANGES_MAX * 6 =>
            {
                let ranges = Ranges(rest);
                if ranges.iter().any(|range| range.count == 0) {
                    return Err(DropReason::Message);
                }
                Ok(Self::Ack { ranges, nothing_waits: kind & NOTHING_WAITS != 0 })
            }
            9 => {
                let (command, rest) = array(rest)?;
                let command = u32::from_be_bytes(command);
                Ok(Self::Command { command, payload: payload(rest)? })
            }
            10 => empty(rest, Self::Pong { nothing_waits: None }),
            0x1a => {
                let (ping, rest) = array(rest)?;
                let nothing_waits = Some(u32::from_be_bytes(ping));
                empty(rest, Self::Pong { nothing_waits })
            }
            11 => empty(rest, Self::Close),
            12 => {
                let (challenge, rest) = array(rest)?;
                empty(rest, Self::Prove { challenge })
            }
            _ => Err(DropReason::Message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_back_as_they_were() {
        let reading = |confirm, age_ms, again| {
            let (channel, payload) = (513, &b"x"[..]);
            Up::Reading { confirm, channel, age_ms, again, payload }
        };
        let first = ReadingId { hello: [3; 12], sequence: u32::MAX };
        for message in [
            reading(false, None, None),
            reading(true, Some(70_000), None),
            reading(true, None, Some(first)),
            reading(true, Some(1), Some(first)),
            Up::Result { command: 9, status: 4, payload: b"" },
            Up::Ping,
            Up::Close,
            Up::Here { challenge: [1, 2, 3, 4] },
        ] {
            let mut out = [0; TEXT_MAX];
            let len = message.encode(&mut out);
            assert_eq!(Up::decode(&out[..len]), Ok(message));
            assert!(Down::decode(&out[..len]).is_err(), "the two directions share no type");
        }
        let ranges = [Range { first: 7, count: 2 }, Range { first: 900_000, count: 65_535 }];
        let mut encoded = [0; RANGES_MAX * 6];
        for message in [
            Down::ack(&ranges, false, &mut encoded),
            Down::ack(&ranges, true, &mut [0; RANGES_MAX * 6]),
            Down::Command { command: 1, payload: b"open" },
            Down::Pong { nothing_waits: None },
            Down::Pong { nothing_waits: Some(77) },
            Down::Close,
            Down::Prove { challenge: [1, 2, 3, 4] },
        ] {
            let mut out = [0; TEXT_MAX];
            let len = message.encode(&mut out);
            assert_eq!(Down::decode(&out[..len]), Ok(message));
            assert!(Up::decode(&out[..len]).is_err());
        }
        assert!(ranges[0].contains(8) && !ranges[0].contains(9) && !ranges[0].contains(6));
    }

    #[test]
    fn anything_else_is_refused_without_a_panic() {
        let long = [1u8; PAYLOAD_MAX + 4];
        assert_eq!(Up::decode(&long), Err(DropReason::Message));
        for kind in 0..=255u8 {
            for len in 0..20 {
                let mut text = [0u8; 20];
                text[0] = kind;
                let _ = (Up::decode(&text[..len]), Down::decode(&text[..len]));
            }
        }
        assert_eq!(Down::decode(&[8, 0, 0, 0, 1, 0, 0]), Err(DropReason::Message));
        assert_eq!(Up::decode(&[3, 0]), Err(DropReason::Message));
        assert_eq!(Up::decode(&[0x81, 0, 0]), Err(DropReason::Message));
        let mut again = [0x41; 3 + 16];
        assert_eq!(Up::decode(&again), Err(DropReason::Message), "again without confirm");
        again[0] = 0x51;
        assert!(Up::decode(&again).is_ok());
        assert_eq!(Up::decode(&again[..18]), Err(DropReason::Message), "half a name");
        for bad in [&[0x1a][..], &[0x0a, 0, 0, 0, 1], &[0x1b], &[0x28, 0, 0, 0, 1, 0, 1], &[12]] {
            assert_eq!(Down::decode(bad), Err(DropReason::Message));
        }
        assert_eq!(Up::decode(&[5, 1, 2, 3]), Err(DropReason::Message));
        assert_eq!(Up::decode(&[5, 1, 2, 3, 4, 5]), Err(DropReason::Message));
    }
}
