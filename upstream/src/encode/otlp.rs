//! OpenTelemetry log records in the JSON of OTLP/HTTP: a reading is a record, its payload the body.

use super::text;
use crate::source::{Fact, Reading, SpoolId};

pub(super) fn push(
    out: &mut Vec<u8>,
    first: bool,
    spool: SpoolId,
    index: u64,
    reading: &Reading<'_>,
) {
    if first {
        out.extend_from_slice(
            b"{\"resourceLogs\":[{\"resource\":{\"attributes\":[\
            {\"key\":\"service.name\",\"value\":{\"stringValue\":\"duet\"}},\
            {\"key\":\"duet.spool\",\"value\":{\"stringValue\":\"",
        );
        text::hex(out, &spool.0);
        out.extend_from_slice(
            b"\"}}]},\"scopeLogs\":[{\"scope\":{\"name\":\"duet\"},\"logRecords\":[",
        );
    } else {
        out.push(b',');
    }
    out.extend_from_slice(b"{\"timeUnixNano\":\"");
    text::number(out, reading.measured_ms);
    out.extend_from_slice(b"000000\",\"observedTimeUnixNano\":\"");
    text::number(out, reading.received_ms);
    out.extend_from_slice(b"000000\",\"body\":{");
    let payload = reading.sent().unwrap_or_default();
    match std::str::from_utf8(payload) {
        Ok(string) => {
            out.extend_from_slice(b"\"stringValue\":");
            text::string(out, string);
        }
        Err(_) => {
            out.extend_from_slice(b"\"bytesValue\":\"");
            text::base64(out, payload);
            out.push(b'"');
        }
    }
    out.extend_from_slice(
        b"},\"attributes\":[{\"key\":\"duet.device\",\"value\":{\"stringValue\":",
    );
    text::string(out, reading.device);
    out.extend_from_slice(b"}},{\"key\":\"duet.channel\",\"value\":{\"intValue\":\"");
    text::number(out, reading.channel.into());
    out.extend_from_slice(b"\"}},{\"key\":\"duet.index\",\"value\":{\"intValue\":\"");
    text::number(out, index);
    out.extend_from_slice(b"\"}},{\"key\":\"duet.id\",\"value\":{\"stringValue\":\"");
    text::hex(out, &reading.id);
    out.extend_from_slice(b"\"}}");
    if let Some(notice) = &reading.notice {
        attribute(out, "type", notice.kind);
        for (name, fact) in notice.facts {
            match fact {
                Fact::Text(text) => attribute(out, name, text),
                Fact::Number(number) => attribute(out, name, itoa::Buffer::new().format(*number)),
                Fact::True => attribute(out, name, "true"),
            }
        }
    }
    out.extend_from_slice(b"]}");
}

fn attribute(out: &mut Vec<u8>, name: &str, value: &str) {
    out.extend_from_slice(b",{\"key\":\"duet.");
    text::escape(out, name);
    out.extend_from_slice(b"\",\"value\":{\"stringValue\":");
    text::string(out, value);
    out.extend_from_slice(b"}}");
}

pub(super) fn finish(out: &mut Vec<u8>) {
    out.extend_from_slice(b"]}]}]}");
}
