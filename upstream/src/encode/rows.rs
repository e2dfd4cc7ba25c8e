//! Rows for PostgreSQL, as `COPY … (FORMAT binary)` takes them, without head and end: the link puts those around
//! all batches of a transaction. `sql/readings.sql` has the columns, in this order.

use super::text;
use crate::source::{Notice, Reading, SpoolId};

/// Columns of a row.
const COLUMNS: i16 = 11;
/// 2000-01-01, from which PostgreSQL counts, in milliseconds since 1970.
const EPOCH_MS: i64 = 946_684_800_000;
/// Beyond every time that a clock shows, and within what PostgreSQL keeps.
const TIME_MAX_MS: u64 = 9_000_000_000_000_000;

/// Appends one row.
pub(super) fn push(out: &mut Vec<u8>, spool: SpoolId, index: u64, reading: &Reading<'_>) {
    out.reserve(160 + reading.device.len() + reading.payload.len());
    out.extend_from_slice(&COLUMNS.to_be_bytes());
    put(out, &spool.0);
    put(out, &i64::try_from(index).unwrap_or(i64::MAX).to_be_bytes());
    put_text(out, reading.device);
    put(out, &reading.id);
    match reading.notice {
        None => {
            null(out);
            put(out, &i32::from(reading.channel).to_be_bytes());
        }
        Some(notice) => {
            put_text(out, notice.kind);
            null(out);
        }
    }
    put(out, &time(reading.received_ms));
    put(out, &time(reading.measured_ms));
    put(out, &[u8::from(reading.again)]);
    match reading.sent() {
        Some(bytes) => put(out, bytes),
        None => null(out),
    }
    match reading.notice {
        Some(notice) => put_facts(out, &notice),
        None => null(out),
    }
}

fn put(out: &mut Vec<u8>, value: &[u8]) {
    // No value comes near the limit of a row: a reading is some thousand bytes.
    out.extend_from_slice(&i32::try_from(value.len()).unwrap_or(i32::MAX).to_be_bytes());
    out.extend_from_slice(value);
}

fn null(out: &mut Vec<u8>) {
    out.extend_from_slice(&(-1_i32).to_be_bytes());
}

/// PostgreSQL knows every character but the one with number zero.
fn put_text(out: &mut Vec<u8>, value: &str) {
    if value.contains('\0') {
        put(out, value.replace('\0', "\u{fffd}").as_bytes());
    } else {
        put(out, value.as_bytes());
    }
}

/// Microseconds since 2000.
fn time(ms: u64) -> [u8; 8] {
    let ms = i64::try_from(ms.min(TIME_MAX_MS)).unwrap_or(i64::MAX);
    ((ms - EPOCH_MS) * 1_000).to_be_bytes()
}

/// `jsonb` as it travels: a version, then JSON.
fn put_facts(out: &mut Vec<u8>, notice: &Notice<'_>) {
    let mut json = vec![1];
    for (name, fact) in notice.facts {
        json.extend_from_slice(if json.len() == 1 { b"{\"" } else { b",\"" });
        json.extend_from_slice(name.as_bytes());
        json.extend_from_slice(b"\":");
        match fact {
            crate::source::Fact::Text(fact) => {
                text::string(&mut json, &fact.replace('\0', "\u{fffd}"));
            }
            crate::source::Fact::Number(number) => text::number(&mut json, *number),
            crate::source::Fact::True => json.extend_from_slice(b"true"),
        }
    }
    json.extend_from_slice(if json.len() == 1 { b"{}" } else { b"}" });
    put(out, &json);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Fact;

    /// The columns of the rows, which must be whole.
    fn columns(mut row: &[u8]) -> Vec<Option<Vec<u8>>> {
        let mut found = Vec::new();
        while let Some((count, mut rest)) = row.split_first_chunk::<2>() {
            assert_eq!(i16::from_be_bytes(*count), COLUMNS);
            for _ in 0..COLUMNS {
                let (length, after) = rest.split_first_chunk::<4>().unwrap();
                rest = after;
                let length = usize::try_from(i32::from_be_bytes(*length)).ok();
                found.push(length.map(|length| rest.split_off(..length).unwrap().to_vec()));
            }
            row = rest;
        }
        found
    }

    #[test]
    fn each_row_has_every_column() {
        let reading = Reading {
            device: "a\0b",
            id: [7; 16],
            again: true,
            notice: None,
            channel: 65_535,
            received_ms: 946_684_800_001,
            measured_ms: u64::MAX,
            payload: b"21.5",
        };
        let facts =
            [("state", Fact::Text("done\0\"")), ("late", Fact::True), ("n", Fact::Number(7))];
        let notice = Notice { kind: "result", facts: &facts, payload: false };
        let mut out = Vec::new();
        push(&mut out, SpoolId([1; 16]), 5, &reading);
        push(&mut out, SpoolId([1; 16]), u64::MAX, &Reading { notice: Some(notice), ..reading });
        let columns = columns(&out);
        let some = |bytes: &[u8]| Some(bytes.to_vec());
        assert_eq!(columns[0], some(&[1; 16]));
        assert_eq!(columns[1], some(&5_i64.to_be_bytes()));
        assert_eq!(columns[2], some("a\u{fffd}b".as_bytes()));
        assert_eq!(columns[4..6], [None, some(&65_535_i32.to_be_bytes())]);
        assert_eq!(columns[6], some(&1_000_i64.to_be_bytes()));
        assert_eq!(columns[8..11], [some(&[1]), some(b"21.5"), None]);
        assert_eq!(columns[12], some(&i64::MAX.to_be_bytes()));
        assert_eq!(columns[15..17], [some(b"result"), None]);
        let json = columns[21].as_ref().unwrap();
        let facts: serde_json::Value = serde_json::from_slice(&json[1..]).unwrap();
        assert_eq!(facts, serde_json::json!({"state": "done\u{fffd}\"", "late": true, "n": 7}));
        assert_eq!((json[0], columns.len()), (1, 22));
        assert_eq!(columns[20], None);
    }
}
