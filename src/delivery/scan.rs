//! A walk through one segment. Owns the window onto the file and the rule that tells a torn tail
//! from damage; changes nothing, and never holds more than its window.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::error::{Damage, SpoolError};
use super::format::{
    DATA_START, Header, MAX_RECORD, RECORD_HEAD, Record, decode_record, plausible_index,
    plausible_length,
};
use super::segment::{self, Entry};

const WINDOW: usize = 256 * 1024;
/// The least that a disk writes, bytes.
const SECTOR: u64 = 512;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// [`Scan::record`] has the next record.
    Record,
    /// Nothing was written here.
    End,
    /// Something was, and it is no record, or not the one that belongs here.
    Bad(Damage),
}

#[derive(Debug)]
pub(super) struct Scan {
    pub(super) entry: Entry,
    pub(super) header: Header,
    file: File,
    seed: u32,
    window: Box<[u8]>,
    /// Where in the file the window begins, and how much of it is filled.
    start: u64,
    filled: usize,
    /// The last record, in the window.
    current: Range<usize>,
    /// Where the next record is expected, and which.
    pub(super) at: u64,
    pub(super) next_index: u64,
    /// Where the last record's group begins.
    pub(super) group_at: u64,
}

impl Scan {
    pub(super) fn open(entry: Entry) -> Result<Self, SpoolError> {
        let (file, header) = segment::open(&entry)?;
        Ok(Self {
            next_index: header.first_index,
            seed: header.seed(),
            entry,
            header,
            file,
            window: vec![0; WINDOW].into_boxed_slice(),
            start: 0,
            filled: 0,
            current: 0..0,
            at: DATA_START,
            group_at: DATA_START,
        })
    }

    /// Goes on to the next record. After anything but a record it stays where it is.
    pub(super) fn step(&mut self) -> Result<Step, SpoolError> {
        let wanted = self.header.size.saturating_sub(self.at).min(MAX_RECORD as u64);
        if self.at < self.start || self.at + wanted > self.start + self.filled as u64 {
            self.fill(self.at)?;
        }
        let from =
            usize::try_from(self.at - self.start).map_or(self.filled, |from| from.min(self.filled));
        let (record, length) = match decode_record(&self.window[from..self.filled], self.seed) {
            Ok(Some(found)) => found,
            Ok(None) => return Ok(Step::End),
            Err(damage) => return Ok(Step::Bad(damage)),
        };
        // Records of one group stand side by side: a group begins here, or where the last one's did.
        if record.index != self.next_index || record.group < self.header.first_index {
            return Ok(Step::Bad(Damage::Sequence));
        }
        if record.group == record.index {
            self.group_at = self.at;
        }
        self.current = from..from + length;
        self.at += length as u64;
        self.next_index += 1;
        Ok(Step::Record)
    }

    /// The record of the last step.
    pub(super) fn record(&self) -> Option<Record<'_>> {
        decode_record(&self.window[self.current.clone()], self.seed)
            .ok()
            .flatten()
            .map(|(record, _)| record)
    }

    /// Forgets what was read, for another look at a file that is being written.
    pub(super) fn refresh(&mut self) {
        (self.filled, self.current) = (0, 0..0);
    }

    /// Whether a valid record of a later group comes after this place. Records of the same group do not count: their
    /// group was never acknowledged.
    pub(super) fn later_group(&mut self) -> Result<bool, SpoolError> {
        let next = self.next_index;
        Ok(self.search(|record| record.group > next)?.is_some())
    }

    /// Goes to the next valid record after a bad place; `false` where this segment has none.
    pub(super) fn pass_over(&mut self) -> Result<bool, SpoolError> {
        let Some((at, index)) = self.search(|_| true)? else { return Ok(false) };
        (self.at, self.next_index) = (at, index);
        Ok(true)
    }

    /// Where the first record after this place is that belongs behind it and is accepted, and its index.
    fn search(
        &mut self,
        accept: impl Fn(&Record<'_>) -> bool,
    ) -> Result<Option<(u64, u64)>, SpoolError> {
        let most = self.header.size / RECORD_HEAD as u64;
        let mut base = self.at + 1;
        let mut found = None;
        while base < self.header.size && found.is_none() {
            self.fill(base)?;
            let bytes = &self.window[..self.filled];
            let last = self.filled < WINDOW;
            // Only places where the longest record would lie within the window, unless it is the last one.
            let end = if last { self.filled } else { self.filled - MAX_RECORD };
            let mut i = 0;
            while i < end {
                if bytes.get(i..i + 64).is_some_and(|zeros| zeros.iter().all(|byte| *byte == 0)) {
                    i += 61; // a record begins with a length that is not zero
                    continue;
                }
                let candidate = plausible_index(&bytes[i..])
                    .filter(|index| *index > self.next_index && index - self.next_index <= most);
                if candidate.is_some()
                    && let Ok(Some((record, _))) = decode_record(&bytes[i..], self.seed)
                    && accept(&record)
                {
                    found = Some((base + i as u64, record.index));
                    break;
                }
                i += 1;
            }
            if last {
                break;
            }
            base += i.min(end) as u64;
        }
        self.refresh();
        Ok(found)
    }

    /// How many bytes stand from this place on up to the last one that is not zero.
    pub(super) fn leftover(&mut self) -> Result<u64, SpoolError> {
        let (mut from, mut found) = (self.at, 0);
        while from < self.header.size {
            self.fill(from)?;
            if self.filled == 0 {
                break;
            }
            let bytes = &self.window[..self.filled];
            if let Some(last) = bytes.iter().rposition(|byte| *byte != 0) {
                found = from + last as u64 + 1 - self.at;
            }
            from += self.filled as u64;
        }
        self.refresh();
        Ok(found)
    }

    /// Whether what stands at this place looks like a write that a power cut left unfinished. A segment is zeros before
    /// it is written, and a sector is written whole or not at all: so a sector that such a record reaches is still
    /// zeros. What was whole once and was damaged since has none.
    pub(super) fn is_unfinished(&mut self) -> Result<bool, SpoolError> {
        self.fill(self.at)?;
        let bytes = &self.window[..self.filled];
        let length = plausible_length(bytes).unwrap_or(4).min(bytes.len());
        let mut from = 0;
        while from < length {
            let sector = (self.at + from as u64) % SECTOR;
            let left = usize::try_from(SECTOR - sector).map_or(length, |left| from + left);
            let to = left.min(length);
            if bytes[from..to].iter().all(|byte| *byte == 0) {
                self.refresh();
                return Ok(true);
            }
            from = to;
        }
        self.refresh();
        Ok(false)
    }

    /// The error for this place.
    pub(super) fn damaged(&self, step: Step) -> SpoolError {
        let damage = match step {
            Step::Bad(damage) => damage,
            Step::Record | Step::End => Damage::Missing,
        };
        SpoolError::Damaged { path: self.entry.path.clone(), offset: self.at, damage }
    }

    /// Fills the window from `from` on, to the end of the segment at most.
    fn fill(&mut self, from: u64) -> Result<(), SpoolError> {
        let left = self.header.size.saturating_sub(from);
        let want = usize::try_from(left).map_or(WINDOW, |left| left.min(WINDOW));
        (self.start, self.filled, self.current) = (from, 0, 0..0);
        while self.filled < want {
            let at = from + self.filled as u64;
            match self.file.read_at(&mut self.window[self.filled..want], at) {
                Ok(0) => break,
                Ok(length) => self.filled += length,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(SpoolError::io("reading", &self.entry.path)(error)),
            }
        }
        Ok(())
    }
}
