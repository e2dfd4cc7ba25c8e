//! A batch as bytes, in the format that an upstream is to get.
//!
//! Owns the formats. An encoder takes readings one after the other and appends to one buffer; what
//! it has to close at the end it closes in `finish`. Encoding never fails: whatever a device sent has
//! a form in every format.

mod cloudevents;
mod influx;
mod ndjson;
mod otlp;
mod protobuf;
mod rows;
mod text;

use serde::Deserialize;

use crate::batch::Range;
use crate::source::{Reading, SpoolId};

/// What an upstream is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One JSON object a line; `docs/reading.schema.json` describes it.
    #[default]
    Ndjson,
    /// `duet.v1.Batch` of `duet.proto`.
    Protobuf,
    /// A batch of CloudEvents 1.0 in JSON.
    CloudEvents,
    /// InfluxDB's line protocol.
    Influx,
    /// OpenTelemetry log records, the JSON of OTLP/HTTP.
    Otlp,
    /// Rows of PostgreSQL's `COPY` in binary. No setting names it: it is what that kind of upstream takes.
    #[serde(skip)]
    Rows,
    /// The same JSON objects as NDJSON, each behind its device's name, as that many records. No setting names it: it is what
    /// Kafka takes.
    #[serde(skip)]
    Records,
}

impl Format {
    /// The media type of a whole batch.
    #[must_use]
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Ndjson => "application/x-ndjson",
            Self::Protobuf => "application/x-protobuf",
            Self::CloudEvents => "application/cloudevents-batch+json",
            Self::Influx => "text/plain; charset=utf-8",
            Self::Otlp => "application/json",
            Self::Rows | Self::Records => "application/octet-stream",
        }
    }
}

/// How a payload stands in text formats. What does not fit, that is no JSON or no UTF-8, stands as
/// base64, under a key of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Payload {
    /// JSON as it is, without a change.
    Json,
    /// A string.
    #[default]
    Text,
    /// Hexadecimal digits.
    Hex,
    /// Base64.
    Base64,
}

/// Appends readings to a buffer, in a format.
pub struct Encoder {
    format: Format,
    payload: Payload,
    out: Vec<u8>,
    /// What every NDJSON line begins with.
    line: Vec<u8>,
    spool: SpoolId,
    empty: bool,
}

impl Encoder {
    /// For batches of this spool.
    #[must_use]
    pub fn new(format: Format, payload: Payload, spool: SpoolId) -> Self {
        let line = ndjson::line_head(spool);
        Self { format, payload, out: Vec::new(), line, spool, empty: true }
    }

    /// Appends a reading.
    pub fn push(&mut self, index: u64, reading: &Reading<'_>) {
        let (out, payload, first) = (&mut self.out, self.payload, self.empty);
        match self.format {
            Format::Ndjson => ndjson::push(out, &self.line, payload, index, reading),
            Format::Protobuf => protobuf::push(out, index, reading),
            Format::CloudEvents => {
                cloudevents::push(out, first, self.spool, payload, index, reading)
            }
            Format::Influx => influx::push(out, index, reading),
            Format::Otlp => otlp::push(out, first, self.spool, index, reading),
            Format::Rows => rows::push(out, self.spool, index, reading),
            Format::Records => {
                let line = &self.line;
                record(out, reading.device.as_bytes(), |out| {
                    ndjson::push(out, line, payload, index, reading);
                });
            }
        }
        self.empty = false;
    }

    /// Whether nothing was appended since the last batch.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.empty
    }

    /// Ends the batch and gives its bytes away.
    pub fn finish(&mut self, range: Range, previous_last: Option<u64>) -> Vec<u8> {
        match self.format {
            Format::Protobuf => protobuf::finish(&mut self.out, self.spool, range, previous_last),
            Format::CloudEvents => cloudevents::finish(&mut self.out),
            Format::Otlp => otlp::finish(&mut self.out),
            Format::Ndjson | Format::Influx | Format::Rows | Format::Records => {}
        }
        self.empty = true;
        // The next batch is about as long.
        let room = Vec::with_capacity(self.out.len() + self.out.len() / 8);
        std::mem::replace(&mut self.out, room)
    }
}

/// A key and a value, each behind its length; the value without the line's end.
fn record(out: &mut Vec<u8>, key: &[u8], value: impl FnOnce(&mut Vec<u8>)) {
    let length = |length: usize| u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    out.extend_from_slice(&length(key.len()));
    out.extend_from_slice(key);
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    value(out);
    out.pop_if(|last| *last == b'\n');
    let value = out.len() - at - 4;
    out[at..at + 4].copy_from_slice(&length(value));
}

#[cfg(test)]
mod tests;
