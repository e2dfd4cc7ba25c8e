//! Printing a spool's readings for people and programs.

use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;

use super::error::SpoolError;
use super::reader::Reader;
use crate::hex::Hex;

/// Which records to print.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// From this index on.
    pub from: u64,
    /// Of this device only.
    pub device: Option<String>,
}

#[derive(Serialize)]
struct Line<'a> {
    index: u64,
    device: &'a str,
    session: String,
    sequence: u32,
    channel: u16,
    /// RFC 3339, UTC, milliseconds.
    time: String,
    /// Hexadecimal.
    payload: String,
    /// The payload once more, where it is printable text.
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
}

/// Prints the records as one JSON object a line; how many. A closed pipe ends it quietly.
///
/// # Errors
/// [`SpoolError`] when the spool is damaged or cannot be read, or `out` fails.
pub fn cat(dir: &Path, filter: &Filter, out: &mut impl Write) -> Result<u64, SpoolError> {
    let mut reader = Reader::open(dir)?;
    let mut printed = 0;
    while let Some(record) = reader.read()? {
        let reading = record.reading;
        let wanted = filter.device.as_deref().is_none_or(|device| device == reading.device);
        if record.index < filter.from || !wanted {
            continue;
        }
        let text = std::str::from_utf8(reading.payload).ok();
        let seconds = i64::try_from(reading.time_ms / 1_000).unwrap_or(i64::MAX);
        let utc = crate::identity::Utc(seconds).to_string();
        let line = Line {
            index: record.index,
            device: reading.device,
            session: format!("{:08x}", reading.session),
            sequence: reading.sequence,
            channel: reading.channel,
            time: format!("{}.{:03}Z", utc.trim_end_matches('Z'), reading.time_ms % 1_000),
            payload: Hex(reading.payload).to_string(),
            text: text.filter(|text| !text.chars().any(char::is_control)),
        };
        let written = serde_json::to_writer(&mut *out, &line)
            .map_err(io::Error::from)
            .and_then(|()| out.write_all(b"\n"));
        match written {
            Ok(()) => printed += 1,
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(printed),
            Err(error) => return Err(SpoolError::Output(error)),
        }
    }
    match out.flush() {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(SpoolError::Output(error)),
        _ => Ok(printed),
    }
}

/// Reads every record and checks it; how many there are.
///
/// # Errors
/// [`SpoolError`] with the first damaged place.
pub fn verify(dir: &Path) -> Result<u64, SpoolError> {
    let mut reader = Reader::open(dir)?;
    let mut records = 0;
    while reader.read()?.is_some() {
        records += 1;
    }
    Ok(records)
}
