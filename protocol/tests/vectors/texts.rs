//! The vectors of what stands inside a record.

use duet_protocol::{
    message::{Down, RANGES_MAX, Range, TEXT_MAX, Up},
    reading::{EARLY_SEQUENCE, ReadingId},
};

use crate::{Vector, scene::sequence};

/// The text inside each kind of record.
#[test]
fn every_text_is_as_its_vector_says() {
    let mut vector = Vector::default();
    let mut out = [0; TEXT_MAX];
    vector.section("up");
    let reading = |confirm, age_ms, again| {
        let (channel, payload) = (0x0102, &b"21.5"[..]);
        Up::Reading { confirm, channel, age_ms, again, payload }
    };
    let early = Some(ReadingId { hello: sequence(0x10), sequence: EARLY_SEQUENCE });
    let record = Some(ReadingId { hello: sequence(0x10), sequence: 258 });
    for (name, text) in [
        ("reading", reading(false, None, None)),
        ("reading, confirm", reading(true, None, None)),
        ("reading, age 70000 ms", reading(false, Some(70_000), None)),
        ("reading, confirm, age 70000 ms", reading(true, Some(70_000), None)),
        ("reading, confirm, again, first in HELLO", reading(true, None, early)),
        ("reading, confirm, again, first in record 258", reading(true, None, record)),
        ("reading, confirm, age 70000 ms, again", reading(true, Some(70_000), early)),
        ("result, command 9, status 4", Up::Result { command: 9, status: 4, payload: b"no" }),
        ("ping", Up::Ping),
        ("close", Up::Close),
        ("here", Up::Here { challenge: sequence(0xf0) }),
    ] {
        let len = text.encode(&mut out);
        assert_eq!(Up::decode(&out[..len]), Ok(text));
        vector.hex(name, &out[..len]);
    }
    vector.section("down");
    let mut encoded = [0; RANGES_MAX * 6];
    let ranges = [Range { first: 7, count: 2 }, Range { first: 900_000, count: 65_535 }];
    for (name, text) in [
        ("ack, 7 to 8 and 900000 to 965534", Down::ack(&ranges, false, &mut encoded)),
        ("ack, 7 to 8, nothing waits", Down::ack(&ranges[..1], true, &mut [0; RANGES_MAX * 6])),
        ("command 9", Down::Command { command: 9, payload: b"open" }),
        ("pong", Down::Pong { nothing_waits: None }),
        ("pong to ping 258, nothing waits", Down::Pong { nothing_waits: Some(258) }),
        ("close", Down::Close),
        ("prove", Down::Prove { challenge: sequence(0xf0) }),
    ] {
        let len = text.encode(&mut out);
        assert_eq!(Down::decode(&out[..len]), Ok(text));
        vector.hex(name, &out[..len]);
    }
    vector.check("texts.json");
}
