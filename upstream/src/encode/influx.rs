//! InfluxDB's line protocol: `duet,channel=3,device=pump-7 value=21.5 1795687200000000256`.
//!
//! A payload that is a finite number is the float field `value`; other text is the string field
//! `text`, anything else `base64`. Points of one series with one time overwrite each other, so the
//! time in ns carries the index below its milliseconds: two readings of one millisecond stay two.

use super::text;
use crate::source::{Fact, Notice, Reading};

const PER_MS: u64 = 1_000_000;

pub(super) fn push(out: &mut Vec<u8>, index: u64, reading: &Reading<'_>) {
    if let Some(notice) = &reading.notice {
        push_notice(out, notice, reading);
        return finish(out, index, reading);
    }
    out.extend_from_slice(b"duet,channel=");
    text::number(out, reading.channel.into());
    out.extend_from_slice(b",device=");
    tag(out, reading.device);
    let string = std::str::from_utf8(reading.payload).ok();
    match string.map(|string| (string, string.trim().parse::<f64>())) {
        Some((string, Ok(number))) if number.is_finite() && plain(string.trim()) => {
            out.extend_from_slice(b" value=");
            out.extend_from_slice(string.trim().as_bytes());
        }
        Some((string, _)) => {
            out.extend_from_slice(b" text=\"");
            quoted(out, string);
            out.push(b'"');
        }
        None => {
            out.extend_from_slice(b" base64=\"");
            text::base64(out, reading.payload);
            out.push(b'"');
        }
    }
    finish(out, index, reading);
}

/// A notice is a point of a measurement of its own, such as `duet_result`, and each fact a field.
fn push_notice(out: &mut Vec<u8>, notice: &Notice<'_>, reading: &Reading<'_>) {
    out.extend_from_slice(b"duet_");
    tag(out, notice.kind);
    out.extend_from_slice(b",device=");
    tag(out, reading.device);
    out.extend_from_slice(b" type=\"");
    quoted(out, notice.kind);
    out.push(b'"');
    for (name, fact) in notice.facts {
        out.push(b',');
        out.extend_from_slice(name.as_bytes());
        out.push(b'=');
        match fact {
            Fact::Text(text) => {
                out.push(b'"');
                quoted(out, text);
                out.push(b'"');
            }
            Fact::Number(number) => {
                text::number(out, *number);
                out.push(b'i');
            }
            Fact::True => out.extend_from_slice(b"true"),
        }
    }
    if let Some(bytes) = reading.sent() {
        match std::str::from_utf8(bytes) {
            Ok(string) => {
                out.extend_from_slice(b",text=\"");
                quoted(out, string);
            }
            Err(_) => {
                out.extend_from_slice(b",base64=\"");
                text::base64(out, bytes);
            }
        }
        out.push(b'"');
    }
}

fn finish(out: &mut Vec<u8>, index: u64, reading: &Reading<'_>) {
    out.push(b' ');
    text::number(out, reading.measured_ms.saturating_mul(PER_MS).saturating_add(index % PER_MS));
    out.push(b'\n');
}

/// A number that the line protocol writes as we do: digits at both ends, no plus in front.
fn plain(number: &str) -> bool {
    let digits = number.strip_prefix('-').unwrap_or(number).as_bytes();
    digits.first().is_some_and(u8::is_ascii_digit) && digits.last().is_some_and(u8::is_ascii_digit)
}

/// Commas, equals signs and spaces are escaped; what would end the line stands as an underscore,
/// and so does a backslash, which at the end would take the separator along.
fn tag(out: &mut Vec<u8>, tag: &str) {
    for byte in tag.bytes() {
        match byte {
            b',' | b'=' | b' ' => out.extend_from_slice(&[b'\\', byte]),
            0..0x20 | b'\\' | 0x7f => out.push(b'_'),
            byte => out.push(byte),
        }
    }
}

/// Line ends may stand in a string field; quotes and backslashes are escaped.
fn quoted(out: &mut Vec<u8>, string: &str) {
    for byte in string.bytes() {
        if matches!(byte, b'"' | b'\\') {
            out.push(b'\\');
        }
        out.push(byte);
    }
}
