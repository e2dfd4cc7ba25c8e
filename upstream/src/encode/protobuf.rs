//! `duet.v1.Batch` on the wire, by hand: varints and runs of bytes. `proto/duet.proto` says what
//! they mean, and a test decodes them with another implementation.

use crate::batch::Range;
use crate::source::{Fact, Notice, Reading, SpoolId};

const VARINT: u8 = 0;
const BYTES: u8 = 2;

fn key(out: &mut Vec<u8>, field: u8, kind: u8) {
    out.push(field << 3 | kind);
}

#[expect(clippy::cast_possible_truncation, reason = "seven bits at a time")]
fn varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn varint_len(number: u64) -> usize {
    (64 - (number | 1).leading_zeros() as usize).div_ceil(7)
}

fn field(out: &mut Vec<u8>, number: u8, value: u64) {
    if value != 0 {
        key(out, number, VARINT);
        varint(out, value);
    }
}

fn bytes(out: &mut Vec<u8>, number: u8, value: &[u8]) {
    if !value.is_empty() {
        key(out, number, BYTES);
        varint(out, value.len() as u64);
        out.extend_from_slice(value);
    }
}

fn field_len(value: u64) -> usize {
    if value == 0 { 0 } else { 1 + varint_len(value) }
}

fn bytes_len(value: &[u8]) -> usize {
    if value.is_empty() { 0 } else { 1 + varint_len(value.len() as u64) + value.len() }
}

/// Appends one element of `Batch.readings`.
pub(super) fn push(out: &mut Vec<u8>, index: u64, reading: &Reading<'_>) {
    let measured_ms =
        if reading.measured_ms == reading.received_ms { 0 } else { reading.measured_ms };
    let payload = reading.sent().unwrap_or_default();
    let notice = reading.notice.map_or(0, |notice| notice_len(&notice));
    let length = field_len(index)
        + bytes_len(reading.device.as_bytes())
        + bytes_len(&reading.id)
        + field_len(reading.channel.into())
        + field_len(reading.received_ms)
        + field_len(measured_ms)
        + field_len(reading.again.into())
        + bytes_len(payload)
        + notice;
    key(out, 5, BYTES);
    varint(out, length as u64);
    out.reserve(length);
    field(out, 1, index);
    bytes(out, 2, reading.device.as_bytes());
    bytes(out, 3, &reading.id);
    field(out, 4, reading.channel.into());
    field(out, 5, reading.received_ms);
    field(out, 6, measured_ms);
    field(out, 7, reading.again.into());
    bytes(out, 8, payload);
    if let Some(notice) = &reading.notice {
        bytes(out, 9, notice.kind.as_bytes());
        for (name, fact) in notice.facts {
            let mut digits = itoa::Buffer::new();
            let value = value(fact, &mut digits);
            key(out, 10, BYTES);
            varint(out, (bytes_len(name.as_bytes()) + bytes_len(value)) as u64);
            bytes(out, 1, name.as_bytes());
            bytes(out, 2, value);
        }
    }
}

/// A fact as text.
fn value<'a>(fact: &Fact<'a>, digits: &'a mut itoa::Buffer) -> &'a [u8] {
    match fact {
        Fact::Text(text) => text.as_bytes(),
        Fact::Number(number) => digits.format(*number).as_bytes(),
        Fact::True => b"true",
    }
}

fn notice_len(notice: &Notice<'_>) -> usize {
    let entry = |(name, fact): &(&str, Fact<'_>)| {
        let mut digits = itoa::Buffer::new();
        let inner = bytes_len(name.as_bytes()) + bytes_len(value(fact, &mut digits));
        1 + varint_len(inner as u64) + inner
    };
    bytes_len(notice.kind.as_bytes()) + notice.facts.iter().map(entry).sum::<usize>()
}

/// Appends the batch's own fields: their order means nothing.
pub(super) fn finish(out: &mut Vec<u8>, spool: SpoolId, range: Range, previous_last: Option<u64>) {
    bytes(out, 1, &spool.0);
    field(out, 2, range.first);
    field(out, 3, range.last);
    // Present even where it is 0: absent means that nothing came before.
    if let Some(previous_last) = previous_last {
        key(out, 4, VARINT);
        varint(out, previous_last);
    }
}
