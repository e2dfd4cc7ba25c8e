//! One command, in memory and as the row that is kept of it. Takes every byte of a row as hostile.

use duet_core::CommandAnswer;
use duet_protocol::identity::DeviceId;

use super::{CommandState, Told};

/// The version of a row's form.
const VERSION: u8 = 2;
/// The form before there were registrations: it has none, which is read as zero, like that of a device from then.
const UNNUMBERED: u8 = 1;

/// How a command came to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum How {
    Done(CommandAnswer),
    Expired,
    Cancelled,
    Superseded,
}

impl How {
    pub(super) const fn state(&self) -> CommandState {
        match self {
            Self::Done(_) => CommandState::Done,
            Self::Expired => CommandState::Expired,
            Self::Cancelled => CommandState::Cancelled,
            Self::Superseded => CommandState::Superseded,
        }
    }
}

/// What upstreams have not been told of a command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Untold {
    pub(super) end: bool,
    pub(super) late: bool,
}

/// A command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) id: u64,
    pub(super) device: DeviceId,
    /// For which registration of the device it is.
    pub(super) registration: u64,
    pub(super) name: Box<str>,
    pub(super) number: u32,
    pub(super) payload: Vec<u8>,
    pub(super) key: Option<Box<str>>,
    pub(super) collapse: Option<Box<str>>,
    pub(super) queued_ms: u64,
    pub(super) expires_ms: u64,
    /// Whether it waits for a device that is not connected. Not kept: after a restart nobody waits for it any more, and
    /// its time is short.
    pub(super) patient: bool,
    /// How often it was sent, as far as that has been told.
    pub(super) sent: u32,
    /// When it was over, and how.
    pub(super) end: Option<(u64, How)>,
    /// A result that came afterwards, and when.
    pub(super) late: Option<(u64, CommandAnswer)>,
    pub(super) untold: Untold,
}

impl Entry {
    pub(super) fn state(&self) -> CommandState {
        match &self.end {
            Some((_, how)) => how.state(),
            None if self.sent > 0 => CommandState::Sent,
            None => CommandState::Queued,
        }
    }

    /// What is to be told of its end, or of its late result.
    pub(super) fn told(&self, late: bool) -> Option<Told> {
        let (at_ms, how) = self.end.as_ref()?;
        let (at_ms, answer) = match (late, how) {
            (true, _) => self.late.as_ref().map(|(at_ms, answer)| (*at_ms, Some(answer)))?,
            (false, How::Done(answer)) => (*at_ms, Some(answer)),
            (false, _) => (*at_ms, None),
        };
        let (state, answer) = (how.state(), answer.cloned());
        let name = self.name.to_string();
        Some(Told { id: self.id, name, number: self.number, state, late, at_ms, answer })
    }

    /// Its row, which stands under its id.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + self.name.len() + self.payload.len());
        out.push(VERSION);
        out.extend_from_slice(&self.device.0);
        out.extend_from_slice(&self.registration.to_le_bytes());
        out.extend_from_slice(&self.number.to_le_bytes());
        out.extend_from_slice(&self.queued_ms.to_le_bytes());
        out.extend_from_slice(&self.expires_ms.to_le_bytes());
        out.extend_from_slice(&self.sent.to_le_bytes());
        out.push(u8::from(self.untold.end) | u8::from(self.untold.late) << 1);
        put(&mut out, self.name.as_bytes());
        put(&mut out, &self.payload);
        put_option(&mut out, self.key.as_deref().map(str::as_bytes));
        put_option(&mut out, self.collapse.as_deref().map(str::as_bytes));
        match &self.end {
            None => out.push(0),
            Some((at_ms, how)) => {
                out.push(match how {
                    How::Done(_) => 1,
                    How::Expired => 2,
                    How::Cancelled => 3,
                    How::Superseded => 4,
                });
                out.extend_from_slice(&at_ms.to_le_bytes());
                if let How::Done(answer) = how {
                    put_answer(&mut out, answer);
                }
            }
        }
        match &self.late {
            None => out.push(0),
            Some((at_ms, answer)) => {
                out.push(1);
                out.extend_from_slice(&at_ms.to_le_bytes());
                put_answer(&mut out, answer);
            }
        }
        out
    }

    /// Reads a row; `None` when it is none.
    pub(super) fn decode(id: u64, row: &[u8]) -> Option<Self> {
        let mut fields = Fields(row);
        let version = fields.byte()?;
        let device = DeviceId(fields.array()?);
        let registration = match version {
            VERSION => fields.number()?,
            UNNUMBERED => 0,
            _ => return None,
        };
        let number = u32::from_le_bytes(fields.array()?);
        let (queued_ms, expires_ms) = (fields.number()?, fields.number()?);
        let sent = u32::from_le_bytes(fields.array()?);
        let told = fields.byte()?;
        let untold = Untold { end: told & 1 != 0, late: told & 2 != 0 };
        let name = fields.text()?;
        let payload = fields.bytes()?.to_vec();
        let (key, collapse) = (fields.optional()?, fields.optional()?);
        let end = match fields.byte()? {
            0 => None,
            kind => {
                let at_ms = fields.number()?;
                let how = match kind {
                    1 => How::Done(fields.answer()?),
                    2 => How::Expired,
                    3 => How::Cancelled,
                    4 => How::Superseded,
                    _ => return None,
                };
                Some((at_ms, how))
            }
        };
        let late = match fields.byte()? {
            0 => None,
            1 => Some((fields.number()?, fields.answer()?)),
            _ => return None,
        };
        let patient = true;
        fields.0.is_empty().then_some(Self {
            id,
            device,
            registration,
            name,
            number,
            payload,
            key,
            collapse,
            queued_ms,
            expires_ms,
            patient,
            sent,
            end,
            late,
            untold,
        })
    }
}

fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    // What is put here is bounded by a record's length, or by that of a key.
    let len = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(&bytes[..usize::from(len)]);
}

fn put_option(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    out.push(bytes.is_some().into());
    bytes.into_iter().for_each(|bytes| put(out, bytes));
}

fn put_answer(out: &mut Vec<u8>, answer: &CommandAnswer) {
    out.push(answer.status);
    put(out, &answer.output);
}

/// Fields of a row, from the front.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn byte(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*field)
    }

    fn number(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let len = u16::from_le_bytes(self.array()?);
        let (field, rest) = self.0.split_at_checked(usize::from(len))?;
        self.0 = rest;
        Some(field)
    }

    fn text(&mut self) -> Option<Box<str>> {
        std::str::from_utf8(self.bytes()?).ok().map(Into::into)
    }

    fn optional(&mut self) -> Option<Option<Box<str>>> {
        match self.byte()? {
            0 => Some(None),
            1 => self.text().map(Some),
            _ => None,
        }
    }

    fn answer(&mut self) -> Option<CommandAnswer> {
        Some(CommandAnswer { status: self.byte()?, output: self.bytes()?.to_vec() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Entry> {
        let answer = CommandAnswer { status: 3, output: vec![7; 1_000] };
        let ends = [
            None,
            Some((5, How::Done(answer.clone()))),
            Some((6, How::Expired)),
            Some((7, How::Cancelled)),
            Some((8, How::Superseded)),
        ];
        let entry = |(n, end): (u64, Option<(u64, How)>)| Entry {
            id: n,
            device: DeviceId([4; 8]),
            registration: 6,
            name: "pump-7".into(),
            number: 9,
            payload: vec![1, 2, 3],
            key: (n % 2 == 0).then(|| "k".into()),
            collapse: (n % 2 == 1).then(|| "c".into()),
            queued_ms: 1,
            expires_ms: 2,
            patient: true,
            sent: 3,
            late: (n == 2).then(|| (9, answer.clone())),
            untold: Untold { end: n % 2 == 0, late: n == 2 },
            end,
        };
        (0..).zip(ends).map(entry).collect()
    }

    #[test]
    fn a_row_comes_back_and_one_that_is_cut_or_longer_does_not() {
        for entry in all() {
            let row = entry.encode();
            assert_eq!(Entry::decode(entry.id, &row), Some(entry));
            for len in 0..row.len() {
                assert_eq!(Entry::decode(0, &row[..len]), None, "{len} of {}", row.len());
            }
            assert_eq!(Entry::decode(0, &[&row[..], &[0]].concat()), None);
        }
    }

    #[test]
    fn a_row_from_before_there_were_registrations_is_of_none() {
        for entry in all() {
            let mut row = entry.encode();
            row.drain(9..17);
            row[0] = UNNUMBERED;
            assert_eq!(Entry::decode(entry.id, &row), Some(Entry { registration: 0, ..entry }));
        }
    }

    #[test]
    fn no_row_panics() {
        for entry in all() {
            let row = entry.encode();
            for at in 0..row.len().min(80) {
                for value in [0, 1, 2, 0x7f, 0xff] {
                    let mut row = row.clone();
                    row[at] = value;
                    let _ = Entry::decode(0, &row);
                }
            }
        }
    }
}
