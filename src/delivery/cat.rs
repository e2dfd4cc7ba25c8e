//! Printing a spool's readings for people and programs. Owns the lines; whoever calls owns the output, and learns up to
//! where it has everything.

use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use super::error::SpoolError;
use super::format::{ReadingRef, Record};
use super::notice::Said;
use super::reader::Reader;
use crate::hex::Hex;
use crate::printable::write_json;

/// After how many records the output is flushed, so that a place in the spool can follow.
const FLUSH_EVERY: u32 = 4_096;
/// How often a spool at its end is looked at again.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Which records to print.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// From this index on; from the oldest where there is none.
    pub from: Option<u64>,
    /// Of this device only.
    pub device: Option<String>,
    /// Received at this time or later, in milliseconds since 1970 UTC.
    pub since_ms: Option<u64>,
    /// At most so many.
    pub limit: Option<u64>,
    /// Whether to wait for more at the end.
    pub follow: bool,
}

/// What happens while records are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The output has taken everything before this index.
    Taken(u64),
    /// From the first of these indexes to before the second there is nothing any more.
    Missing(u64, u64),
    /// The end is reached, and more is waited for.
    Waiting,
}

#[derive(Serialize)]
struct Line<'a> {
    index: u64,
    /// What happened, where this is no reading.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    device: &'a str,
    /// Which session it was first sent in, hexadecimal; with the sequence and the device it names the reading.
    hello: String,
    sequence: u32,
    /// Whether the device said that it had sent it before.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    again: bool,
    channel: u16,
    /// RFC 3339, UTC, milliseconds: when the gateway had it.
    received: String,
    /// When it was measured, where the device gave an age.
    #[serde(skip_serializing_if = "Option::is_none")]
    measured: Option<String>,
    /// What a notice says.
    #[serde(flatten)]
    said: serde_json::Map<String, serde_json::Value>,
    /// Hexadecimal.
    payload: String,
    /// The payload once more, where it is printable text.
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
}

impl Filter {
    fn takes(&self, reading: &ReadingRef<'_>) -> bool {
        self.device.as_deref().is_none_or(|device| device == reading.device)
            && self.since_ms.is_none_or(|since| reading.received_ms >= since)
    }
}

/// Prints the records as one JSON object a line; how many. `tell` hears what happens, and ends it by `false`. So does a
/// closed pipe, quietly.
///
/// # Errors
/// [`SpoolError`] when the spool is damaged or cannot be read, `out` or `tell` fails.
pub fn cat(
    dir: &Path,
    filter: &Filter,
    out: &mut impl Write,
    tell: &mut dyn FnMut(Event) -> Result<bool, SpoolError>,
) -> Result<u64, SpoolError> {
    let mut reader = match filter.from {
        Some(from) => Reader::open_at(dir, from)?,
        None => Reader::open(dir)?,
    };
    let mut next = reader.next_index();
    let (mut printed, mut unflushed) = (0, 0);
    loop {
        let enough = filter.limit.is_some_and(|limit| printed >= limit);
        let record = if enough { None } else { reader.read()? };
        let at_end = record.is_none();
        if let Some(record) = record {
            if record.index > next {
                tell(Event::Missing(next, record.index))?;
            }
            next = record.index + 1;
            unflushed += 1;
            if filter.takes(&record.reading) {
                if !is_open(print(&record, out))? {
                    return Ok(printed);
                }
                printed += 1;
            }
        }
        if at_end || unflushed >= FLUSH_EVERY {
            if !is_open(out.flush())? {
                return Ok(printed);
            }
            let goes_on = unflushed == 0 || tell(Event::Taken(next))?;
            unflushed = 0;
            if at_end && (enough || !filter.follow) || !goes_on || at_end && !tell(Event::Waiting)?
            {
                return Ok(printed);
            }
        }
        if at_end {
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

fn print(record: &Record<'_>, out: &mut impl Write) -> io::Result<()> {
    let reading = &record.reading;
    let text = std::str::from_utf8(reading.payload).ok();
    let measured = Some(reading.measured_ms).filter(|ms| *ms != reading.received_ms);
    let said = reading.notice.map(|notice| notice.said(reading.payload)).unwrap_or_default();
    let value = |(name, said): (&str, Said<'_>)| {
        let value = match said {
            Said::Text(text) => text.into(),
            Said::Number(number) => number.into(),
            Said::True => true.into(),
        };
        (name.to_owned(), value)
    };
    let line = Line {
        index: record.index,
        kind: reading.notice.map(|notice| notice.kind()),
        device: reading.device,
        hello: Hex(&reading.id.hello).to_string(),
        sequence: reading.id.sequence,
        again: reading.again,
        channel: reading.channel,
        received: utc(reading.received_ms),
        measured: measured.map(utc),
        said: said.into_iter().map(value).collect(),
        payload: Hex(reading.payload).to_string(),
        text: text.filter(|text| !text.chars().any(char::is_control)),
    };
    write_json(&mut *out, &line)?;
    out.write_all(b"\n")
}

/// Whether somebody still takes what is written.
fn is_open(written: io::Result<()>) -> Result<bool, SpoolError> {
    match written {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(SpoolError::Output(error)),
    }
}

/// A time in milliseconds since 1970 as RFC 3339 has it.
fn utc(ms: u64) -> String {
    let text = crate::identity::Utc::of_ms(ms).to_string();
    format!("{}.{:03}Z", text.trim_end_matches('Z'), ms % 1_000)
}
