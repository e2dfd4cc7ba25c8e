use prost::Message as _;
use serde_json::Value;

use super::*;
use crate::source::{Fact, Notice};
use crate::testing::Rng;

/// `proto/duet.proto`, as prost's derive says it.
mod wire {
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Batch {
        #[prost(bytes, tag = "1")]
        pub(super) spool: Vec<u8>,
        #[prost(uint64, tag = "2")]
        pub(super) first: u64,
        #[prost(uint64, tag = "3")]
        pub(super) last: u64,
        #[prost(uint64, optional, tag = "4")]
        pub(super) previous_last: Option<u64>,
        #[prost(message, repeated, tag = "5")]
        pub(super) readings: Vec<Reading>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Reading {
        #[prost(uint64, tag = "1")]
        pub(super) index: u64,
        #[prost(string, tag = "2")]
        pub(super) device: String,
        #[prost(bytes, tag = "3")]
        pub(super) id: Vec<u8>,
        #[prost(uint32, tag = "4")]
        pub(super) channel: u32,
        #[prost(uint64, tag = "5")]
        pub(super) received_ms: u64,
        #[prost(uint64, tag = "6")]
        pub(super) measured_ms: u64,
        #[prost(bool, tag = "7")]
        pub(super) again: bool,
        #[prost(bytes, tag = "8")]
        pub(super) payload: Vec<u8>,
        #[prost(string, tag = "9")]
        pub(super) r#type: String,
        #[prost(btree_map = "string, string", tag = "10")]
        pub(super) facts: std::collections::BTreeMap<String, String>,
    }
}

const SPOOL: SpoolId = SpoolId([0xab; 16]);

/// A reading with anything in it that a device may send.
struct Any {
    device: String,
    id: [u8; 16],
    channel: u16,
    received_ms: u64,
    measured_ms: u64,
    again: bool,
    notice: Option<Notice<'static>>,
    payload: Vec<u8>,
}

/// A result, and a device that has come, with more in their facts than a gateway would say.
const NOTICES: [Notice<'static>; 2] = [
    Notice {
        kind: "result",
        facts: &[
            ("command", Fact::Number(u64::MAX)),
            ("number", Fact::Number(0)),
            ("state", Fact::Text("done")),
            ("late", Fact::True),
            ("status", Fact::Number(255)),
        ],
        payload: true,
    },
    Notice { kind: "online", facts: &[("address", Fact::Text("a \"b\"\\ \n,="))], payload: false },
];

impl Any {
    fn new(rng: &mut Rng) -> Self {
        let samples: [&[u8]; 8] = [
            b"21.5",
            b"{\"t\":21.5,\"u\":\"\\u00b0C\"}",
            b"",
            b"\xff\x00\x80",
            "grüße, \"you\" \\ \n=".as_bytes(),
            b"-0",
            b"[1,\n2]",
            b"\x1b[2J",
        ];
        let pick = |count: u64, rng: &mut Rng| usize::try_from(rng.below(count)).unwrap();
        let mut payload = samples[pick(8, rng)].to_vec();
        if rng.below(4) == 0 {
            payload = (0..rng.below(1024)).map(|_| rng.draw().to_be_bytes()[0]).collect();
        }
        let notice = match rng.below(4) {
            0 => Some(NOTICES[pick(2, rng)]),
            _ => None,
        };
        let devices = ["pump-7", "a b,c=d", "\"q\"\\", "ü.{channel}", "x"];
        let received_ms = [0, 1, 1_795_687_200_123, u64::MAX / 2_000_000][pick(4, rng)];
        let earlier = rng.below(2) * rng.below(received_ms + 1);
        let mut id = [0; 16];
        id[..8].copy_from_slice(&rng.draw().to_be_bytes());
        Self {
            device: devices[pick(5, rng)].to_owned(),
            id,
            channel: u16::try_from(rng.below(3) * 32_767).unwrap(),
            received_ms,
            measured_ms: received_ms - earlier,
            again: rng.below(2) == 0,
            notice,
            payload,
        }
    }

    fn has_payload(&self) -> bool {
        self.notice.is_none_or(|notice| notice.payload)
    }

    /// The facts as texts.
    fn facts(&self) -> std::collections::BTreeMap<String, String> {
        let text = |fact: &Fact<'_>| match fact {
            Fact::Text(text) => (*text).to_owned(),
            Fact::Number(number) => number.to_string(),
            Fact::True => "true".into(),
        };
        let facts = self.notice.iter().flat_map(|notice| notice.facts);
        facts.map(|(name, fact)| ((*name).to_owned(), text(fact))).collect()
    }

    fn reading(&self) -> Reading<'_> {
        Reading {
            device: &self.device,
            id: self.id,
            again: self.again,
            notice: self.notice,
            channel: self.channel,
            received_ms: self.received_ms,
            measured_ms: self.measured_ms,
            payload: &self.payload,
        }
    }
}

fn encode(
    format: Format,
    payload: Payload,
    first: u64,
    all: &[Any],
    previous: Option<u64>,
) -> Vec<u8> {
    let mut encoder = Encoder::new(format, payload, SPOOL);
    for (index, any) in (first..).zip(all) {
        encoder.push(index, &any.reading());
    }
    assert!(!encoder.is_empty());
    let last = first + all.len() as u64 - 1;
    encoder.finish(Range { first, last }, previous)
}

fn batches(mut check: impl FnMut(u64, &[Any], Option<u64>)) {
    let mut rng = Rng::new(5);
    for _ in 0..300 {
        let all: Vec<_> = (0..1 + rng.below(20)).map(|_| Any::new(&mut rng)).collect();
        let first = [0, 1, 255, 1 << 40][usize::try_from(rng.below(4)).unwrap()];
        check(first, &all, first.checked_sub(1));
    }
}

#[test]
fn protobuf_is_what_another_implementation_reads() {
    batches(|first, all, previous| {
        let bytes = encode(Format::Protobuf, Payload::Text, first, all, previous);
        let batch = wire::Batch::decode(&bytes[..]).unwrap();
        assert_eq!((batch.spool, batch.first), (SPOOL.0.to_vec(), first));
        assert_eq!((batch.last, batch.previous_last), (first + all.len() as u64 - 1, previous));
        assert_eq!(batch.readings.len(), all.len());
        for ((index, any), got) in (first..).zip(all).zip(batch.readings) {
            let differs = any.measured_ms != any.received_ms;
            let expected = wire::Reading {
                index,
                device: any.device.clone(),
                id: any.id.to_vec(),
                channel: any.channel.into(),
                received_ms: any.received_ms,
                measured_ms: if differs { any.measured_ms } else { 0 },
                again: any.again,
                payload: if any.has_payload() { any.payload.clone() } else { Vec::new() },
                r#type: any.notice.map_or(String::new(), |notice| notice.kind.to_owned()),
                facts: any.facts(),
            };
            assert_eq!(got, expected);
        }
    });
}

/// The payload, from whichever key has it.
fn payload_of(line: &Value, mode: Payload) -> Vec<u8> {
    use base64::Engine;
    if let Some(text) = line.get("payload_base64") {
        return base64::engine::general_purpose::STANDARD.decode(text.as_str().unwrap()).unwrap();
    }
    if let Some(text) = line.get("payload_hex") {
        let digits = text.as_str().unwrap();
        let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
        return (0..digits.len()).step_by(2).map(byte).collect();
    }
    match (mode, &line["payload"]) {
        (Payload::Text, Value::String(text)) => text.clone().into_bytes(),
        (_, json) => serde_json::to_vec(json).unwrap(),
    }
}

#[test]
fn every_line_is_json_and_has_what_was_sent() {
    let schema = include_str!("../../../docs/reading.schema.json");
    let schema = jsonschema::validator_for(&serde_json::from_str(schema).unwrap()).unwrap();
    for mode in [Payload::Json, Payload::Text, Payload::Hex, Payload::Base64] {
        batches(|first, all, previous| {
            let bytes = encode(Format::Ndjson, mode, first, all, previous);
            let text = std::str::from_utf8(&bytes).unwrap();
            assert!(text.ends_with('\n'));
            assert_eq!(text.lines().count(), all.len());
            for ((index, any), line) in (first..).zip(all).zip(text.lines()) {
                let line: Value = serde_json::from_str(line).unwrap();
                if let Err(error) = schema.validate(&line) {
                    panic!("{error}: {line}");
                }
                assert_eq!(
                    (&line["index"], &line["device"]),
                    (&index.into(), &any.device.as_str().into())
                );
                match any.notice {
                    None => assert_eq!(
                        (&line["channel"], &line["type"]),
                        (&any.channel.into(), &Value::Null)
                    ),
                    Some(notice) => {
                        assert_eq!(line["type"], notice.kind);
                        for (name, fact) in any.facts() {
                            let found = &line[name];
                            let text =
                                found.as_str().map_or_else(|| found.to_string(), str::to_owned);
                            assert_eq!(text, fact);
                        }
                    }
                }
                assert_eq!(line["received_ms"], any.received_ms);
                let measured_ms = line["measured_ms"].as_u64().unwrap_or(any.received_ms);
                assert_eq!((measured_ms, line["again"] == true), (any.measured_ms, any.again));
                if !any.has_payload() {
                    assert!(line.get("payload").is_none() && line.get("payload_hex").is_none());
                    continue;
                }
                let payload = payload_of(&line, mode);
                if mode == Payload::Json
                    && let Ok(sent) = serde_json::from_slice::<Value>(&any.payload)
                {
                    assert_eq!(line["payload"], sent);
                } else {
                    assert_eq!(payload, any.payload);
                }
            }
        });
    }
}

#[test]
fn cloud_events_are_a_list_of_objects_with_the_required_attributes() {
    for mode in [Payload::Json, Payload::Text, Payload::Base64] {
        batches(|first, all, _| {
            let bytes = encode(Format::CloudEvents, mode, first, all, None);
            let events: Vec<Value> = serde_json::from_slice(&bytes).unwrap();
            assert_eq!(events.len(), all.len());
            for ((index, any), event) in (first..).zip(all).zip(&events) {
                assert_eq!(
                    (&event["specversion"], &event["type"]),
                    (
                        &"1.0".into(),
                        &any.notice
                            .map_or("duet.reading.v1".into(), |one| format!("duet.{}.v1", one.kind))
                            .into()
                    )
                );
                assert_eq!(event["id"], index.to_string());
                assert_eq!(event["source"], format!("/duet/{SPOOL}"));
                assert_eq!(event["subject"], any.device);
                let data = ["data", "data_base64"].map(|key| event.get(key).is_some());
                assert_eq!(data[0] != data[1], any.has_payload());
                let names = event.as_object().unwrap().keys();
                let mut names = names.filter(|name| *name != "data_base64");
                assert!(names.all(|name| name.bytes().all(|byte| byte.is_ascii_lowercase())));
            }
        });
    }
}

#[test]
fn otlp_has_a_record_for_each_reading() {
    batches(|first, all, _| {
        let bytes = encode(Format::Otlp, Payload::Text, first, all, None);
        let request: Value = serde_json::from_slice(&bytes).unwrap();
        let records = &request["resourceLogs"][0]["scopeLogs"][0]["logRecords"];
        assert_eq!(records.as_array().unwrap().len(), all.len());
        for (any, record) in all.iter().zip(records.as_array().unwrap()) {
            let time = record["timeUnixNano"].as_str().unwrap().parse::<u64>().unwrap();
            assert_eq!(time, any.measured_ms * 1_000_000);
            let body = record["body"].as_object().unwrap();
            assert_eq!(body.len(), 1);
            assert_eq!(record["attributes"][0]["value"]["stringValue"], any.device);
            let told = &record["attributes"][4]["value"]["stringValue"];
            assert_eq!(told.as_str(), any.notice.map(|notice| notice.kind));
        }
    });
}

#[test]
fn the_line_protocol_is_as_its_documents_say() {
    let line = |payload: &[u8], device: &str, index: u64| {
        let reading = Reading {
            device,
            id: [0; 16],
            again: false,
            notice: None,
            channel: 3,
            received_ms: 5,
            measured_ms: 5,
            payload,
        };
        let mut encoder = Encoder::new(Format::Influx, Payload::Text, SPOOL);
        encoder.push(index, &reading);
        String::from_utf8(encoder.finish(Range { first: index, last: index }, None)).unwrap()
    };
    for (payload, field) in [
        (&b"21.5"[..], "value=21.5"),
        (b" -3e5\n", "value=-3e5"),
        (b"+1", "text=\"+1\""),
        (b"nan", "text=\"nan\""),
        (b"1e999", "text=\"1e999\""),
        (b".5", "text=\".5\""),
        (b"say \"\\\"", "text=\"say \\\"\\\\\\\"\""),
        (b"\xff", "base64=\"/w==\""),
        (b"", "text=\"\""),
    ] {
        assert_eq!(
            line(payload, "pump-7", 7),
            format!("duet,channel=3,device=pump-7 {field} 5000007\n")
        );
    }
    assert_eq!(
        line(b"1", "a b,c=d\\\n", 0),
        "duet,channel=3,device=a\\ b\\,c\\=d__ value=1 5000000\n"
    );
    let told = Any {
        device: "p".into(),
        id: [0; 16],
        channel: 0,
        received_ms: 5,
        measured_ms: 5,
        again: false,
        notice: Some(NOTICES[0]),
        payload: b"ok".to_vec(),
    };
    let mut encoder = Encoder::new(Format::Influx, Payload::Text, SPOOL);
    encoder.push(9, &told.reading());
    let point = String::from_utf8(encoder.finish(Range { first: 9, last: 9 }, None)).unwrap();
    let facts = "type=\"result\",command=18446744073709551615i,number=0i,state=\"done\",late=true,status=255i";
    assert_eq!(point, format!("duet_result,device=p {facts},text=\"ok\" 5000009\n"));
    assert_ne!(line(b"1", "p", 0), line(b"1", "p", 1), "readings of one millisecond stay two");
}
