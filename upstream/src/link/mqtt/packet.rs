//! The few MQTT 5 packets that publishing takes (OASIS MQTT 5.0, chapter 3). Bytes from the broker
//! are taken apart without trust: every length is checked, nothing is allocated by what they say.

/// Reasons that a PUBACK or CONNACK gives.
pub(crate) mod reason {
    pub(crate) const SUCCESS: u8 = 0x00;
    pub(crate) const NO_SUBSCRIBERS: u8 = 0x10;
    pub(crate) const BAD_CREDENTIALS: u8 = 0x86;
    pub(crate) const NOT_AUTHORIZED: u8 = 0x87;
    pub(crate) const BANNED: u8 = 0x8a;
    pub(crate) const BAD_METHOD: u8 = 0x8c;
    pub(crate) const TOPIC_INVALID: u8 = 0x90;
    pub(crate) const TOO_LARGE: u8 = 0x95;
    pub(crate) const PAYLOAD_INVALID: u8 = 0x99;

    /// In words, where we know them.
    pub(crate) fn name(reason: u8) -> &'static str {
        match reason {
            NO_SUBSCRIBERS => "nobody has subscribed to this topic",
            0x80 => "unspecified error",
            0x81 => "malformed packet",
            0x82 => "protocol error",
            0x83 => "implementation specific error",
            0x84 => "the broker does not speak MQTT 5",
            0x85 => "the client's name is not valid",
            BAD_CREDENTIALS => "wrong user or password",
            NOT_AUTHORIZED => "not authorized",
            0x88 => "the server is not available",
            0x89 => "the server is busy",
            BANNED => "banned",
            0x8b => "the server is shutting down",
            BAD_METHOD => "bad authentication method",
            0x8d => "keep-alive timeout",
            0x8e => "another client took over this name",
            TOPIC_INVALID => "the topic is not valid",
            0x91 => "packet identifier in use",
            0x93 => "receive maximum exceeded",
            TOO_LARGE => "packet too large",
            0x97 => "quota exceeded",
            PAYLOAD_INVALID => "the payload's format is not valid",
            0x9b => "QoS 1 is not supported",
            0x9f => "connection rate exceeded",
            _ => "reason not known",
        }
    }
}

/// The most bytes that a packet from the broker may have: answers are small, and so are commands.
pub(crate) const INCOMING_MAX: usize = 64 * 1024;

/// What the broker says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Incoming {
    Connack(Connack),
    Publish(Publish),
    Suback {
        reason: u8,
    },
    Puback {
        packet: u16,
        reason: u8,
    },
    Pingresp,
    Disconnect {
        reason: u8,
    },
    /// Something that a broker may send and that means nothing to us.
    Other,
}

/// The broker's terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Connack {
    pub(crate) reason: u8,
    /// It remembers a session of ours.
    pub(crate) session: bool,
    pub(crate) receive_max: u16,
    pub(crate) qos_max: u8,
    pub(crate) packet_max: u32,
    pub(crate) keep_alive_s: Option<u16>,
}

/// A message that somebody sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Publish {
    /// Under which its PUBACK goes; none at QoS 0.
    pub(crate) number: Option<u16>,
    response: Option<String>,
    pub(crate) correlation: Option<Vec<u8>>,
    pub(crate) payload: Vec<u8>,
}

impl Publish {
    /// Where its sender wants the answer. Topics of the broker's own are nobody's place for one.
    pub(crate) fn response(&self) -> Option<&str> {
        let fits = |topic: &&str| {
            !topic.is_empty() && !topic.starts_with('$') && !topic.contains(['+', '#', '\0'])
        };
        self.response.as_deref().filter(fits)
    }
}

/// What came is not MQTT 5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// Takes the packet at the head of `bytes` apart; returns it with its length, or `None` while it
/// is not whole.
pub(crate) fn decode(bytes: &[u8]) -> Result<Option<(Incoming, usize)>, Malformed> {
    let Some((kind, rest)) = bytes.split_first() else { return Ok(None) };
    let mut length = 0;
    let mut used = 1;
    for (place, byte) in rest.iter().enumerate() {
        if place == 4 {
            return Err(Malformed);
        }
        length |= usize::from(byte & 0x7f) << (7 * place);
        used += 1;
        if byte & 0x80 == 0 {
            if length > INCOMING_MAX {
                return Err(Malformed);
            }
            let Some(body) = bytes.get(used..used + length) else { return Ok(None) };
            return Ok(Some((body_of(*kind, body)?, used + length)));
        }
    }
    if rest.len() >= 4 { Err(Malformed) } else { Ok(None) }
}

fn body_of(kind: u8, body: &[u8]) -> Result<Incoming, Malformed> {
    let mut fields = Fields(body);
    match kind >> 4 {
        2 => {
            let session = fields.byte()? & 1 != 0;
            let reason = fields.byte()?;
            let mut connack = Connack {
                reason,
                session,
                receive_max: u16::MAX,
                qos_max: 2,
                packet_max: u32::MAX,
                keep_alive_s: None,
            };
            let mut properties = fields.run()?;
            while let Some(name) = properties.0.first().copied() {
                properties.byte()?;
                match name {
                    0x13 => connack.keep_alive_s = Some(properties.u16()?),
                    0x21 => connack.receive_max = properties.u16()?,
                    0x22 => drop(properties.u16()?),
                    0x24 => connack.qos_max = properties.byte()?,
                    0x27 => connack.packet_max = properties.u32()?,
                    0x11 => drop(properties.u32()?),
                    0x25 | 0x28 | 0x29 | 0x2a => drop(properties.byte()?),
                    0x12 | 0x15 | 0x16 | 0x1a | 0x1c | 0x1f => drop(properties.text()?),
                    0x26 => {
                        properties.text()?;
                        properties.text()?;
                    }
                    _ => return Err(Malformed),
                }
            }
            Ok(Incoming::Connack(connack))
        }
        3 => publish_of(kind, fields).map(Incoming::Publish),
        9 => {
            let _number = fields.u16()?;
            let _properties = fields.run()?;
            Ok(Incoming::Suback { reason: fields.byte()? })
        }
        4 => {
            let packet = fields.u16()?;
            let reason = if fields.0.is_empty() { reason::SUCCESS } else { fields.byte()? };
            Ok(Incoming::Puback { packet, reason })
        }
        13 => Ok(Incoming::Pingresp),
        14 => {
            let reason = if fields.0.is_empty() { reason::SUCCESS } else { fields.byte()? };
            Ok(Incoming::Disconnect { reason })
        }
        0 | 1 | 8 | 10 | 12 => Err(Malformed),
        _ => Ok(Incoming::Other),
    }
}

fn publish_of(kind: u8, mut fields: Fields<'_>) -> Result<Publish, Malformed> {
    let _topic = fields.text()?;
    let number = match kind >> 1 & 3 {
        0 => None,
        1 => Some(fields.u16()?),
        // We ask for QoS 1 at most.
        _ => return Err(Malformed),
    };
    let (mut response, mut correlation) = (None, None);
    let mut properties = fields.run()?;
    while let Some(name) = properties.0.first().copied() {
        properties.byte()?;
        match name {
            0x01 => drop(properties.byte()?),
            0x02 => drop(properties.u32()?),
            0x03 => drop(properties.text()?),
            0x08 => response = std::str::from_utf8(properties.text()?).ok().map(str::to_owned),
            0x09 => correlation = Some(properties.text()?.to_vec()),
            0x0b => drop(properties.varint()?),
            0x23 => drop(properties.u16()?),
            0x26 => {
                properties.text()?;
                properties.text()?;
            }
            _ => return Err(Malformed),
        }
    }
    Ok(Publish { number, response, correlation, payload: fields.0.to_vec() })
}

struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, Malformed> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        let bytes = self.take(4)?;
        Ok(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn text(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.u16()?;
        self.take(length.into())
    }

    /// Bytes after their length as a variable integer.
    fn run(&mut self) -> Result<Fields<'a>, Malformed> {
        let length = self.varint()?;
        self.take(length).map(Fields)
    }

    fn varint(&mut self) -> Result<usize, Malformed> {
        let mut number = 0;
        for place in 0..4 {
            let byte = self.byte()?;
            number |= usize::from(byte & 0x7f) << (7 * place);
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(Malformed)
    }
}

fn varint(out: &mut Vec<u8>, mut number: usize) {
    loop {
        let low = u8::try_from(number & 0x7f).unwrap_or(0);
        number >>= 7;
        out.push(if number == 0 { low } else { low | 0x80 });
        if number == 0 {
            return;
        }
    }
}

/// A string of at most 65,535 bytes; a longer one is cut.
fn text(out: &mut Vec<u8>, text: &[u8]) {
    let length = u16::try_from(text.len()).unwrap_or(u16::MAX);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&text[..length.into()]);
}

fn packet(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(body.len() + 5);
    out.push(kind);
    varint(&mut out, body.len());
    out.extend_from_slice(body);
    out
}

/// A session that the broker is to keep when the connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kept {
    /// For so long.
    pub(crate) session_s: u32,
    /// So many messages may wait for our PUBACK.
    pub(crate) receive_max: u16,
}

/// CONNECT. Where nothing is kept, with a clean start and a session that ends with the connection: whoever publishes knows
/// what is on its way, and two memories of that would disagree.
pub(crate) fn connect(
    client_id: &str,
    keep_alive_s: u16,
    user: Option<&str>,
    password: Option<&str>,
    kept: Option<Kept>,
) -> zeroize::Zeroizing<Vec<u8>> {
    let mut body = zeroize::Zeroizing::new(Vec::with_capacity(1024));
    text(&mut body, b"MQTT");
    body.push(5);
    let flags = if kept.is_none() { 0x02 } else { 0 }
        | if user.is_some() { 0x80 } else { 0 }
        | if password.is_some() { 0x40 } else { 0 };
    body.push(flags);
    body.extend_from_slice(&keep_alive_s.to_be_bytes());
    match kept {
        // No properties: the session expires at once.
        None => body.push(0),
        Some(Kept { session_s, receive_max }) => {
            let packet_max = u32::try_from(INCOMING_MAX).unwrap_or(u32::MAX);
            body.extend_from_slice(&[13, 0x11]);
            body.extend_from_slice(&session_s.to_be_bytes());
            body.push(0x21);
            body.extend_from_slice(&receive_max.to_be_bytes());
            body.push(0x27);
            body.extend_from_slice(&packet_max.to_be_bytes());
        }
    }
    text(&mut body, client_id.as_bytes());
    for secret in [user, password].into_iter().flatten() {
        text(&mut body, secret.as_bytes());
    }
    zeroize::Zeroizing::new(packet(0x10, &body))
}

/// SUBSCRIBE to one topic at QoS 1, without what it retains: a command that a broker keeps for ever would come at each start.
pub(crate) fn subscribe(number: u16, topic: &str) -> Vec<u8> {
    let mut body = number.to_be_bytes().to_vec();
    body.push(0);
    text(&mut body, topic.as_bytes());
    body.push(0x21);
    packet(0x82, &body)
}

/// PUBACK: we have it.
pub(crate) fn puback(number: u16) -> [u8; 4] {
    let [high, low] = number.to_be_bytes();
    [0x40, 2, high, low]
}

/// PUBLISH of an answer at QoS 0, whole.
pub(crate) fn answer(topic: &str, correlation: Option<&[u8]>, payload: &[u8]) -> Vec<u8> {
    let mut properties = vec![0x03];
    text(&mut properties, b"application/json");
    if let Some(correlation) = correlation {
        properties.push(0x09);
        text(&mut properties, correlation);
    }
    let mut body = Vec::with_capacity(topic.len() + properties.len() + payload.len() + 8);
    text(&mut body, topic.as_bytes());
    varint(&mut body, properties.len());
    body.extend_from_slice(&properties);
    body.extend_from_slice(payload);
    packet(0x30, &body)
}

/// PUBLISH with QoS 1, whole.
pub(super) fn publish(
    number: u16,
    topic: &str,
    media_type: &str,
    headers: &[(&str, String)],
    payload: &[u8],
) -> Vec<u8> {
    let mut properties = Vec::with_capacity(256);
    properties.push(0x03);
    text(&mut properties, media_type.as_bytes());
    for (name, value) in headers {
        properties.push(0x26);
        text(&mut properties, name.as_bytes());
        text(&mut properties, value.as_bytes());
    }
    let mut head = Vec::with_capacity(topic.len() + properties.len() + 8);
    text(&mut head, topic.as_bytes());
    head.extend_from_slice(&number.to_be_bytes());
    varint(&mut head, properties.len());
    head.extend_from_slice(&properties);
    let mut out = Vec::with_capacity(5 + head.len() + payload.len());
    out.push(0x32);
    varint(&mut out, head.len() + payload.len());
    out.extend_from_slice(&head);
    out.extend_from_slice(payload);
    out
}

/// PINGREQ.
pub(crate) const PINGREQ: [u8; 2] = [0xc0, 0];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Rng;

    #[test]
    fn the_brokers_terms_are_read() {
        // As mosquitto 2.0 answers, with a user property in front.
        let properties = [0x26, 0, 1, b'a', 0, 1, b'b', 0x22, 0, 10, 0x21, 0, 20, 0x13, 0, 9];
        let mut bytes = vec![0x20, 19, 1, 0, 16];
        bytes.extend_from_slice(&properties);
        assert_eq!(decode(&bytes[..20]), Ok(None));
        let expected = Connack {
            reason: 0,
            session: true,
            receive_max: 20,
            qos_max: 2,
            packet_max: u32::MAX,
            keep_alive_s: Some(9),
        };
        assert_eq!(decode(&bytes), Ok(Some((Incoming::Connack(expected), 21))));
        bytes[4] = 15;
        assert_eq!(decode(&bytes), Err(Malformed), "a property that is cut");
    }

    #[test]
    fn acknowledgements_with_and_without_a_reason() {
        let puback = |bytes: &[u8]| decode(bytes).unwrap().unwrap().0;
        assert_eq!(puback(&[0x40, 2, 1, 2]), Incoming::Puback { packet: 258, reason: 0 });
        assert_eq!(puback(&[0x40, 3, 1, 2, 0x10]), Incoming::Puback { packet: 258, reason: 0x10 });
        assert_eq!(
            puback(&[0x40, 4, 1, 2, 0x99, 0]),
            Incoming::Puback { packet: 258, reason: 0x99 }
        );
        assert_eq!(puback(&[0xd0, 0]), Incoming::Pingresp);
        assert_eq!(puback(&[0xe0, 1, 0x8b]), Incoming::Disconnect { reason: 0x8b });
        assert_eq!(puback(&[0x90, 4, 0, 1, 0, 1]), Incoming::Suback { reason: 1 });
        assert_eq!(decode(&[0x40, 1, 1]), Err(Malformed));
        assert_eq!(decode(&[0x40, 0xff, 0xff, 0xff, 0xff]), Err(Malformed));
        assert_eq!(
            decode(&[0x30, 0xff, 0xff, 0x7f]),
            Err(Malformed),
            "longer than anything for us"
        );
        assert_eq!(decode(&[]), Ok(None));
    }

    #[test]
    fn a_message_comes_with_what_its_sender_wants() {
        let bytes = answer("site/commands", Some(&[7, 0]), b"{}");
        let Ok(Some((Incoming::Publish(publish), used))) = decode(&bytes) else {
            panic!("{bytes:?}")
        };
        assert_eq!(used, bytes.len());
        assert_eq!((publish.number, publish.correlation.as_deref()), (None, Some(&[7, 0][..])));
        assert_eq!((publish.payload.as_slice(), publish.response()), (&b"{}"[..], None));
        // QoS 1, twice the same property, a response topic, a subscription's number.
        let properties =
            [0x08, 0, 3, b'a', b'/', b'b', 0x0b, 0x80, 1, 0x26, 0, 0, 0, 0, 0x26, 0, 0, 0, 0];
        let mut bytes = vec![0x32, 0, 0, 1, b't', 1, 2, 19];
        bytes.extend_from_slice(&properties);
        bytes.push(b'x');
        bytes[1] = u8::try_from(bytes.len() - 2).unwrap();
        let Ok(Some((Incoming::Publish(publish), _))) = decode(&bytes) else { panic!("{bytes:?}") };
        assert_eq!((publish.number, publish.response()), (Some(258), Some("a/b")));
        assert_eq!(publish.payload, b"x");
        for wrong in ["$SYS/a", "a/+", ""] {
            let publish = Publish { response: Some(wrong.to_owned()), ..publish.clone() };
            assert_eq!(publish.response(), None);
        }
        bytes[0] = 0x34;
        assert_eq!(decode(&bytes), Err(Malformed), "QoS 2 was not asked for");
    }

    #[test]
    fn whatever_comes_is_taken_apart_or_refused() {
        let mut rng = Rng::new(3);
        for _ in 0..50_000 {
            let length = usize::try_from(rng.below(40)).unwrap();
            let mut bytes: Vec<u8> = (0..length).map(|_| rng.draw().to_be_bytes()[0]).collect();
            if let Some(second) = bytes.get_mut(1) {
                *second %= 40;
            }
            if let Ok(Some((_, used))) = decode(&bytes) {
                assert!(used <= bytes.len());
            }
        }
    }

    #[test]
    fn a_publish_has_the_length_that_it_says() {
        let headers = [("Duet-First", "7".to_owned())];
        for length in [0, 1, 100, 200, 16_000, 70_000] {
            let bytes = publish(9, "a/b", "text/plain", &headers, &vec![7; length]);
            let mut said = 0;
            let mut used = 1;
            for (place, byte) in bytes[1..].iter().enumerate() {
                said |= usize::from(byte & 0x7f) << (7 * place);
                used += 1;
                if byte & 0x80 == 0 {
                    break;
                }
            }
            assert_eq!(used + said, bytes.len());
        }
    }
}
