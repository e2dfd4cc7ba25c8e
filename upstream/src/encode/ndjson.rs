//! One JSON object a line.

use super::{Payload, text};
use crate::source::{Fact, Notice, Reading, SpoolId};

/// What every line of a spool begins with.
pub(super) fn line_head(spool: SpoolId) -> Vec<u8> {
    format!("{{\"v\":1,\"spool\":\"{spool}\",\"index\":").into_bytes()
}

pub(super) fn push(
    out: &mut Vec<u8>,
    head: &[u8],
    payload: Payload,
    index: u64,
    reading: &Reading<'_>,
) {
    out.reserve(head.len() + 160 + reading.device.len() + 2 * reading.payload.len());
    out.extend_from_slice(head);
    text::number(out, index);
    if let Some(Notice { kind, .. }) = reading.notice {
        out.extend_from_slice(b",\"type\":");
        text::string(out, kind);
    }
    out.extend_from_slice(b",\"device\":");
    text::string(out, reading.device);
    out.extend_from_slice(b",\"id\":\"");
    text::hex(out, &reading.id);
    match reading.notice {
        None => {
            out.extend_from_slice(b"\",\"channel\":");
            text::number(out, reading.channel.into());
        }
        Some(notice) => {
            out.push(b'"');
            write_facts(out, &notice);
        }
    }
    out.extend_from_slice(b",\"received_ms\":");
    text::number(out, reading.received_ms);
    if reading.measured_ms != reading.received_ms {
        out.extend_from_slice(b",\"measured_ms\":");
        text::number(out, reading.measured_ms);
    }
    if reading.again {
        out.extend_from_slice(b",\"again\":true");
    }
    reading.sent().into_iter().for_each(|bytes| write_payload(out, payload, bytes));
    out.extend_from_slice(b"}\n");
}

/// Each fact under its name.
fn write_facts(out: &mut Vec<u8>, notice: &Notice<'_>) {
    for (name, fact) in notice.facts {
        out.extend_from_slice(b",\"");
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b"\":");
        match fact {
            Fact::Text(text) => text::string(out, text),
            Fact::Number(number) => text::number(out, *number),
            Fact::True => out.extend_from_slice(b"true"),
        }
    }
}

fn write_payload(out: &mut Vec<u8>, payload: Payload, bytes: &[u8]) {
    match payload {
        Payload::Json => {
            let at = out.len();
            out.extend_from_slice(b",\"payload\":");
            if text::json(out, bytes) {
                return;
            }
            out.truncate(at);
        }
        Payload::Text => {
            if let Ok(string) = std::str::from_utf8(bytes) {
                out.extend_from_slice(b",\"payload\":");
                return text::string(out, string);
            }
        }
        Payload::Hex => {
            out.extend_from_slice(b",\"payload_hex\":\"");
            text::hex(out, bytes);
            return out.push(b'"');
        }
        Payload::Base64 => {}
    }
    out.extend_from_slice(b",\"payload_base64\":\"");
    text::base64(out, bytes);
    out.push(b'"');
}
