//! A batch of CloudEvents 1.0 as JSON. Source and id together name an event: `/duet/<spool>` and
//! the index.

use super::{Payload, text};
use crate::source::{Fact, Reading, SpoolId};

pub(super) fn push(
    out: &mut Vec<u8>,
    first: bool,
    spool: SpoolId,
    payload: Payload,
    index: u64,
    reading: &Reading<'_>,
) {
    out.push(if first { b'[' } else { b',' });
    out.extend_from_slice(b"{\"specversion\":\"1.0\",\"type\":\"duet.");
    text::escape(out, reading.notice.map_or("reading", |notice| notice.kind));
    out.extend_from_slice(b".v1\",\"source\":\"/duet/");
    text::hex(out, &spool.0);
    out.extend_from_slice(b"\",\"id\":\"");
    text::number(out, index);
    out.extend_from_slice(b"\",\"time\":\"");
    text::time(out, reading.measured_ms);
    out.extend_from_slice(b"\",\"subject\":");
    text::string(out, reading.device);
    // Names of extensions are lower-case letters and digits.
    match &reading.notice {
        None => {
            out.extend_from_slice(b",\"channel\":");
            text::number(out, reading.channel.into());
        }
        Some(notice) => {
            for (name, fact) in notice.facts {
                out.extend_from_slice(b",\"");
                out.extend(name.bytes().filter(u8::is_ascii_lowercase));
                out.extend_from_slice(b"\":");
                match fact {
                    Fact::Text(text) => text::string(out, text),
                    // An integer of CloudEvents has 32 bits.
                    Fact::Number(number) => {
                        out.push(b'"');
                        text::number(out, *number);
                        out.push(b'"');
                    }
                    Fact::True => out.extend_from_slice(b"true"),
                }
            }
        }
    }
    out.extend_from_slice(b",\"readingid\":\"");
    text::hex(out, &reading.id);
    out.push(b'"');
    reading.sent().into_iter().for_each(|bytes| write_data(out, payload, bytes));
    out.push(b'}');
}

fn write_data(out: &mut Vec<u8>, payload: Payload, bytes: &[u8]) {
    if payload == Payload::Json {
        let at = out.len();
        out.extend_from_slice(b",\"datacontenttype\":\"application/json\",\"data\":");
        if text::json(out, bytes) {
            return;
        }
        out.truncate(at);
    }
    if payload == Payload::Text
        && let Ok(string) = std::str::from_utf8(bytes)
    {
        out.extend_from_slice(b",\"datacontenttype\":\"text/plain\",\"data\":");
        return text::string(out, string);
    }
    out.extend_from_slice(b",\"datacontenttype\":\"application/octet-stream\",\"data_base64\":\"");
    text::base64(out, bytes);
    out.push(b'"');
}

pub(super) fn finish(out: &mut Vec<u8>) {
    out.push(b']');
}
