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
    /// From this index on; from the oldest where there is none.
    pub from: Option<u64>,
    /// Of this device only.
    pub device: Option<String>,
}

#[derive(Serialize)]
struct Line<'a> {
    index: u64,
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
    let mut reader = match filter.from {
        Some(from) => Reader::open_at(dir, from)?,
        None => Reader::open(dir)?,
    };
    let mut printed = 0;
    while let Some(record) = reader.read()? {
        let reading = record.reading;
        let wanted = filter.device.as_deref().is_none_or(|device| device == reading.device);
        if !wanted {
            continue;
        }
        let text = std::str::from_utf8(reading.payload).ok();
        let measured = Some(reading.measured_ms).filter(|ms| *ms != reading.received_ms);
        let line = Line {
            index: record.index,
            device: reading.device,
            hello: Hex(&reading.id.hello).to_string(),
            sequence: reading.id.sequence,
            again: reading.again,
            channel: reading.channel,
            received: utc(reading.received_ms),
            measured: measured.map(utc),
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

/// A time in milliseconds since 1970 as RFC 3339 has it.
fn utc(ms: u64) -> String {
    let seconds = i64::try_from(ms / 1_000).unwrap_or(i64::MAX);
    let text = crate::identity::Utc(seconds).to_string();
    format!("{}.{:03}Z", text.trim_end_matches('Z'), ms % 1_000)
}
