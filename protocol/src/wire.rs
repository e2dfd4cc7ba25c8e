//! What stands where in a message. Decoding needs no secret and never panics (R13).
//!
//! The first byte of every message is `kind << 4 | version`; the second byte of every message from
//! a device is its slot, by which the kernel steers a datagram to the shard that owns the device.

#[cfg(feature = "gateway")]
use alloc::boxed::Box;

#[cfg(feature = "gateway")]
use sha2::{Digest, Sha256};

use crate::{
    profile::{KeySource, Mode, Offer, Profile, Transfer, Transport},
    reason::DropReason,
};

/// The protocol version, in the low half of the first byte.
pub const VERSION: u8 = 1;

/// Length of an AES-GCM tag, bytes.
pub const TAG: usize = 16;
/// Length of HELLO's clear header: kind, slot, profile, gateway key id.
pub const HELLO_HEADER: usize = 4;
/// Length of the cookie trailer, and of the cookie in RETRY.
pub const COOKIE: usize = 16;
/// Length of a challenge.
pub const CHALLENGE: usize = 16;
/// Length of S: the device's random or key in the profiles that send one.
pub const RANDOM: usize = 16;
/// Length of n in a HELLO with a reading: how long the reading's text is.
pub const READING_LEN: usize = 2;
/// The shortest text of a reading: its first byte and the channel.
pub const READING_MIN: usize = 3;
/// How many bytes of a HELLO's digest name the readings of its session.
pub const HELLO_NAME: usize = 12;
/// Length of what the gateway grants: session id, lifetime, reset token.
pub const GRANT: usize = 20;
/// Length of a RETRY message: kind, echo, wait, cookie.
pub const RETRY_LEN: usize = 1 + 8 + 2 + COOKIE;
/// Length of a CHALLENGE message: kind, nonce, sealed challenge and mark.
pub const CHALLENGE_LEN: usize = 1 + 16 + CHALLENGE + 8 + TAG;
/// Length of a RESET message: kind, session id, MAC.
pub const RESET_LEN: usize = 1 + 4 + 16;
/// Length of the clear header of a record from the device: kind, session id, sequence.
pub const UP_HEADER: usize = 1 + 4 + 4;
/// Length of the clear header of a record to the device: kind, sequence.
pub const DOWN_HEADER: usize = 1 + 4;
/// The longest HELLO without a reading, cookie included.
pub const BARE_HELLO_MAX: usize = 181;
/// The longest HELLO, with reading, challenge and cookie: one datagram on every link.
pub const HELLO_MAX: usize = RECORD_MAX;
/// The longest ACCEPT.
pub const ACCEPT_MAX: usize = 149;
/// The longest record on the wire: fits one datagram on every link of IPv6's minimum MTU.
pub const RECORD_MAX: usize = 1_200;
/// The longest message of any kind.
pub const MESSAGE_MAX: usize = RECORD_MAX;

/// What a message is: the high half of its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Device to gateway: opens a channel.
    Hello = 1,
    /// Gateway to device: the channel stands.
    Accept = 2,
    /// Gateway to device: prove your address first.
    Retry = 3,
    /// Gateway to device: prove that you live now.
    Challenge = 4,
    /// Device to gateway: a record.
    Up = 5,
    /// Gateway to device: a record.
    Down = 6,
    /// Gateway to device: your session is unknown here.
    Reset = 7,
}

impl Kind {
    /// The first byte of a message of this kind.
    #[must_use]
    pub const fn byte(self) -> u8 {
        (self as u8) << 4 | VERSION
    }

    /// Reads a message's first byte (R11).
    ///
    /// # Errors
    /// [`DropReason::Malformed`] when there is none, [`DropReason::Version`], [`DropReason::Kind`].
    #[inline]
    pub fn of(message: &[u8]) -> Result<Self, DropReason> {
        let &first = message.first().ok_or(DropReason::Malformed)?;
        if first & 0xf != VERSION {
            return Err(DropReason::Version);
        }
        Ok(match first >> 4 {
            1 => Self::Hello,
            2 => Self::Accept,
            3 => Self::Retry,
            4 => Self::Challenge,
            5 => Self::Up,
            6 => Self::Down,
            7 => Self::Reset,
            _ => return Err(DropReason::Kind),
        })
    }
}

/// A session's name on its gateway. Its first byte is the session's slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub u32);

impl SessionId {
    /// The byte that steers this session's records.
    #[must_use]
    pub const fn slot(self) -> u8 {
        self.0.to_be_bytes()[0]
    }
}

impl Profile {
    /// Length of the proof: a signature, or a MAC of 8 bytes.
    #[must_use]
    pub const fn proof_len(self) -> usize {
        if self.mode.has_certificate() { 64 } else { 8 }
    }

    /// Length of the gateway's part of the key inside ACCEPT.
    #[must_use]
    pub const fn ikm_part_len(self) -> usize {
        if matches!(self.source, KeySource::Xor(_)) { RANDOM } else { 0 }
    }

    /// Length of ACCEPT: kind, server value, sealed grant (and key part and signature).
    #[must_use]
    pub const fn accept_len(self) -> usize {
        let signature = if self.source.has_random() { 64 } else { 0 };
        1 + 32 + self.ikm_part_len() + GRANT + signature + TAG
    }

    const fn random_len(self) -> usize {
        if self.source.has_random() { RANDOM } else { 0 }
    }

    /// Length of HELLO with neither challenge, reading, padding nor cookie.
    const fn bare_len(self) -> usize {
        HELLO_HEADER + 32 + 16 + self.random_len() + self.proof_len() + TAG
    }

    /// The longest text of a reading inside HELLO: with it a HELLO that also has a challenge and a
    /// cookie still fits [`HELLO_MAX`], so that any HELLO can be made again with both.
    #[must_use]
    pub const fn reading_max(self) -> usize {
        HELLO_MAX - self.bare_len() - READING_LEN - CHALLENGE - COOKIE
    }
}

impl Offer {
    /// Zero bytes at the end of the sealed text, so that a HELLO never draws a longer ACCEPT (R17).
    /// A reading of `reading` bytes of text counts; a challenge does not.
    #[must_use]
    pub const fn padding_len(self, reading: usize) -> usize {
        let early = if self.early { READING_LEN + reading } else { 0 };
        self.profile.accept_len().saturating_sub(self.profile.bare_len() + early)
    }

    /// Length of the text inside HELLO: id, fresh, challenge, S, proof, reading, padding.
    /// `reading` is the length of the reading's text, 0 without one.
    #[must_use]
    pub const fn sealed_text_len(self, reading: usize) -> usize {
        let challenge = if self.challenged { CHALLENGE } else { 0 };
        let profile = self.profile;
        let fixed = 16 + challenge + profile.random_len() + profile.proof_len();
        fixed + reading + self.padding_len(reading)
    }

    /// Where the sealed text begins: behind n where there is a reading.
    #[must_use]
    pub const fn sealed_at(self) -> usize {
        HELLO_HEADER + 32 + if self.early { READING_LEN } else { 0 }
    }

    /// Length of HELLO without a cookie. `reading` is the length of the reading's text, 0 without
    /// one.
    #[must_use]
    pub const fn hello_len(self, reading: usize) -> usize {
        self.sealed_at() + self.sealed_text_len(reading) + TAG
    }
}

// R92: nobody draws more bytes than he brings.
const _: () = {
    let mut i = 0;
    while i < Profile::ALL.len() {
        let profile = Profile::ALL[i];
        let plain = Offer::new(profile, Transport::Datagram);
        let challenged = Offer { challenged: true, ..plain };
        let (early, longest) = (Offer { early: true, ..plain }, profile.reading_max());
        let both = Offer { early: true, ..challenged };
        assert!(plain.hello_len(0) >= profile.accept_len());
        assert!(early.hello_len(READING_MIN) >= profile.accept_len());
        assert!(plain.hello_len(0) > CHALLENGE_LEN && plain.hello_len(0) > RETRY_LEN);
        assert!(challenged.hello_len(0) + COOKIE <= BARE_HELLO_MAX);
        assert!(both.hello_len(longest) + COOKIE == HELLO_MAX);
        assert!(profile.accept_len() <= ACCEPT_MAX);
        let total = plain.hello_len(0) + profile.accept_len();
        let budget = match (profile.mode, profile.source) {
            (Mode::RegisteredId, KeySource::Ephemeral) => 145,
            (_, KeySource::Ephemeral) => 210,
            (_, KeySource::Xor(Transfer::Key | Transfer::Random) | KeySource::Client(_)) => 310,
        };
        assert!(total <= budget);
        i += 1;
    }
    assert!(RESET_LEN < UP_HEADER + 1 + TAG);
};

/// A HELLO as received: taken apart, nothing in it proven.
///
/// It moves from step to step, and most are far shorter than the longest: the bytes stay where they are.
#[cfg(feature = "gateway")]
#[derive(Clone)]
pub struct Hello {
    bytes: Box<[u8]>,
    header: [u8; HELLO_HEADER],
    reading: usize,
    cookie: Option<[u8; COOKIE]>,
    /// Profile, transport, and whether there are a challenge and a reading.
    pub offer: Offer,
    /// SHA-256 of the message without its cookie: its name for caches, echoes and cookies.
    pub digest: [u8; 32],
}

#[cfg(feature = "gateway")]
impl Hello {
    /// Takes a message of kind HELLO apart.
    ///
    /// # Errors
    /// [`DropReason::Malformed`] for a wrong length, [`DropReason::Profile`] for a reserved
    /// profile or one that names another transport than `transport`.
    pub fn decode(message: &[u8], transport: Transport) -> Result<Self, DropReason> {
        let header: &[u8; HELLO_HEADER] = message.first_chunk().ok_or(DropReason::Malformed)?;
        if header[0] != Kind::Hello.byte() {
            return Err(DropReason::Kind);
        }
        let offer = Offer::decode(header[2]).map_err(|_| DropReason::Profile)?;
        // R15: a HELLO belongs to one carrier.
        if offer.transport != transport {
            return Err(DropReason::Profile);
        }
        // R12: one length with a cookie, one without, by the profile and by n (R94).
        let mut reading = 0;
        if offer.early {
            let n = message[HELLO_HEADER..].get(32..).and_then(<[u8]>::first_chunk);
            reading = usize::from(u16::from_be_bytes(*n.ok_or(DropReason::Malformed)?));
            if !(READING_MIN..=offer.profile.reading_max()).contains(&reading) {
                return Err(DropReason::Malformed);
            }
        }
        let len = offer.hello_len(reading);
        let (hello, trailer) = message.split_at_checked(len).ok_or(DropReason::Malformed)?;
        let cookie = match trailer.len() {
            0 => None,
            _ => Some(trailer.try_into().map_err(|_| DropReason::Malformed)?),
        };
        let (header, digest) = (*header, Sha256::digest(hello).into());
        Ok(Self { bytes: hello.into(), header, reading, cookie, offer, digest })
    }

    /// n: the length of the sealed reading's text, 0 where there is none.
    #[must_use]
    pub const fn reading_len(&self) -> usize {
        self.reading
    }

    /// The message without its cookie.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// kind, slot, profile, gateway key id.
    #[must_use]
    pub const fn header(&self) -> [u8; HELLO_HEADER] {
        self.header
    }

    /// The steering byte that the sender claims.
    #[must_use]
    pub const fn slot(&self) -> u8 {
        self.header[1]
    }

    /// Which of the gateway's keys the message is sealed to.
    #[must_use]
    pub const fn gateway_key_id(&self) -> u8 {
        self.header[3]
    }

    /// The x-coordinate of the device's ephemeral point E, whose y is even.
    #[must_use]
    pub fn ephemeral_x(&self) -> &[u8; 32] {
        let mut x = &[0; 32];
        if let Some(found) = self.bytes[HELLO_HEADER..].first_chunk() {
            x = found;
        }
        x
    }

    /// The HPKE ciphertext with its tag.
    #[must_use]
    pub fn sealed(&self) -> &[u8] {
        &self.bytes[self.offer.sealed_at()..]
    }

    /// The address-validation cookie behind the message, if it has one.
    #[must_use]
    pub fn cookie(&self) -> Option<&[u8; COOKIE]> {
        self.cookie.as_ref()
    }
}

/// The clear header of a record from a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpHeader {
    /// The session that the sender claims.
    pub session: SessionId,
    /// The record's number in its direction.
    pub sequence: u32,
}

impl UpHeader {
    /// Reads the header and splits off the ciphertext.
    ///
    /// # Errors
    /// [`DropReason::Malformed`] for a wrong length, [`DropReason::Kind`].
    pub fn decode(message: &[u8]) -> Result<Self, DropReason> {
        let header: &[u8; UP_HEADER] = message.first_chunk().ok_or(DropReason::Malformed)?;
        let [kind, s0, s1, s2, s3, q0, q1, q2, q3] = *header;
        if kind != Kind::Up.byte() {
            return Err(DropReason::Kind);
        }
        if message.len() < UP_HEADER + 1 + TAG || message.len() > RECORD_MAX {
            return Err(DropReason::Malformed);
        }
        Ok(Self {
            session: SessionId(u32::from_be_bytes([s0, s1, s2, s3])),
            sequence: u32::from_be_bytes([q0, q1, q2, q3]),
        })
    }

    /// The header's bytes: also the record's associated data.
    #[must_use]
    pub fn encode(self) -> [u8; UP_HEADER] {
        let [s0, s1, s2, s3] = self.session.0.to_be_bytes();
        let [q0, q1, q2, q3] = self.sequence.to_be_bytes();
        [Kind::Up.byte(), s0, s1, s2, s3, q0, q1, q2, q3]
    }
}

/// The clear header of a record to a device. The session id is not sent, but authenticated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DownHeader {
    /// The record's number in its direction.
    pub sequence: u32,
}

impl DownHeader {
    /// Reads the header.
    ///
    /// # Errors
    /// [`DropReason::Malformed`] for a wrong length, [`DropReason::Kind`].
    pub fn decode(message: &[u8]) -> Result<Self, DropReason> {
        let header: &[u8; DOWN_HEADER] = message.first_chunk().ok_or(DropReason::Malformed)?;
        let [kind, q0, q1, q2, q3] = *header;
        if kind != Kind::Down.byte() {
            return Err(DropReason::Kind);
        }
        if message.len() < DOWN_HEADER + 1 + TAG || message.len() > RECORD_MAX {
            return Err(DropReason::Malformed);
        }
        Ok(Self { sequence: u32::from_be_bytes([q0, q1, q2, q3]) })
    }

    /// The header's bytes.
    #[must_use]
    pub fn encode(self) -> [u8; DOWN_HEADER] {
        let [q0, q1, q2, q3] = self.sequence.to_be_bytes();
        [Kind::Down.byte(), q0, q1, q2, q3]
    }

    /// The record's associated data: the header, then the session id.
    #[must_use]
    pub fn associated_data(self, session: SessionId) -> [u8; DOWN_HEADER + 4] {
        let [kind, q0, q1, q2, q3] = self.encode();
        let [s0, s1, s2, s3] = session.0.to_be_bytes();
        [kind, q0, q1, q2, q3, s0, s1, s2, s3]
    }
}

/// RETRY: the gateway asks for the same HELLO again with a cookie behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// The first 8 bytes of the HELLO's digest.
    pub echo: [u8; 8],
    /// How long to wait before the HELLO goes out again, in units of 10 ms.
    pub wait_10ms: u16,
    /// What to put behind the HELLO.
    pub cookie: [u8; COOKIE],
}

impl Retry {
    /// The message.
    #[must_use]
    pub fn encode(&self) -> [u8; RETRY_LEN] {
        let mut out = [0; RETRY_LEN];
        out[0] = Kind::Retry.byte();
        out[1..9].copy_from_slice(&self.echo);
        out[9..11].copy_from_slice(&self.wait_10ms.to_be_bytes());
        out[11..].copy_from_slice(&self.cookie);
        out
    }

    /// Reads the message.
    ///
    /// # Errors
    /// [`DropReason::Malformed`] for a wrong length.
    pub fn decode(message: &[u8]) -> Result<Self, DropReason> {
        let message: &[u8; RETRY_LEN] = message.try_into().map_err(|_| DropReason::Malformed)?;
        let mut retry = Self { echo: [0; 8], wait_10ms: 0, cookie: [0; COOKIE] };
        retry.echo.copy_from_slice(&message[1..9]);
        retry.wait_10ms = u16::from_be_bytes([message[9], message[10]]);
        retry.cookie.copy_from_slice(&message[11..]);
        Ok(retry)
    }
}

/// RESET: the gateway does not know the session of the record that it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reset {
    /// The unknown session.
    pub session: SessionId,
    /// MAC under the session's reset token over the record that triggered it.
    pub mac: [u8; 16],
}

impl Reset {
    /// The message.
    #[must_use]
    pub fn encode(&self) -> [u8; RESET_LEN] {
        let mut out = [0; RESET_LEN];
        out[0] = Kind::Reset.byte();
        out[1..5].copy_from_slice(&self.session.0.to_be_bytes());
        out[5..].copy_from_slice(&self.mac);
        out
    }

    /// Reads the message.
    ///
    /// # Errors
    /// [`DropReason::Malformed`] for a wrong length.
    pub fn decode(message: &[u8]) -> Result<Self, DropReason> {
        let message: &[u8; RESET_LEN] = message.try_into().map_err(|_| DropReason::Malformed)?;
        let [_, s0, s1, s2, s3, ..] = *message;
        let mut mac = [0; 16];
        mac.copy_from_slice(&message[5..]);
        Ok(Self { session: SessionId(u32::from_be_bytes([s0, s1, s2, s3])), mac })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_budget_is_what_the_specification_says() {
        let of = |name| {
            let profile = Profile::from_name(name).unwrap();
            (Offer::new(profile, Transport::Datagram).hello_len(0), profile.accept_len())
        };
        assert_eq!(of("certificate/ephemeral"), (132, 69));
        assert_eq!(of("registered-certificate/ephemeral"), (132, 69));
        assert_eq!(of("registered-id/ephemeral"), (76, 69));
        assert_eq!(of("certificate/xor-key"), (149, 149));
        assert_eq!(of("certificate/client-key"), (148, 133));
        assert_eq!(of("registered-id/xor-random"), (149, 149));
        assert_eq!(of("registered-id/client-random"), (133, 133));
    }

    #[test]
    fn a_reading_makes_hello_longer_by_its_text_and_its_length_less_the_padding() {
        let of = |name, reading| {
            let profile = Profile::from_name(name).unwrap();
            let offer = Offer { early: true, ..Offer::new(profile, Transport::Datagram) };
            offer.hello_len(reading)
        };
        // A payload of 64 bytes has a text of 67.
        assert_eq!(of("certificate/ephemeral", 67), 201);
        assert_eq!(of("certificate/xor-key", 67), 217);
        assert_eq!(of("certificate/client-key", 67), 217);
        assert_eq!(of("registered-id/ephemeral", 67), 145);
        assert_eq!(of("registered-id/xor-random", 67), 161);
        assert_eq!(of("registered-id/client-random", 67), 161);
        assert_eq!(of("registered-id/xor-random", 3), 149, "never shorter than ACCEPT");
    }

    #[test]
    fn the_length_of_a_reading_is_bounded_before_anything_is_opened() {
        let profile = Profile::ALL[0];
        let offer = Offer { early: true, ..Offer::new(profile, Transport::Datagram) };
        let mut message = [0; 2_000];
        message[..3].copy_from_slice(&[Kind::Hello.byte(), 0, offer.encode()]);
        for n in 0..=u16::MAX {
            message[36..38].copy_from_slice(&n.to_be_bytes());
            let reading = usize::from(n);
            let fits = (3..=1_034).contains(&reading);
            let len = if fits { offer.hello_len(reading) } else { 1_200 };
            let decoded = Hello::decode(&message[..len], Transport::Datagram);
            assert_eq!(decoded.map(|hello| hello.reading_len()).ok(), fits.then_some(reading));
        }
        for len in 0..38 {
            assert!(Hello::decode(&message[..len], Transport::Datagram).is_err());
        }
    }

    #[test]
    fn every_length_but_the_right_ones_is_malformed() {
        for profile in Profile::ALL {
            for (challenged, early) in [(false, false), (true, false), (false, true), (true, true)]
            {
                let transport = Transport::Stream;
                let offer = Offer { profile, transport, challenged, early };
                let mut message = [7u8; 300];
                message[0] = Kind::Hello.byte();
                message[2] = offer.encode();
                let reading = if early { 19 } else { 0 };
                if early {
                    message[36..38].copy_from_slice(&[0, 19]);
                }
                let right = offer.hello_len(reading);
                for len in 0..300 {
                    let hello = Hello::decode(&message[..len], Transport::Stream);
                    match hello {
                        Ok(hello) => {
                            assert!(len == right || len == right + COOKIE);
                            assert_eq!(hello.cookie().is_some(), len != right);
                            assert_eq!(hello.bytes(), &message[..right]);
                        }
                        Err(reason) => {
                            assert_eq!(reason, DropReason::Malformed);
                            assert!(len != right && len != right + COOKIE);
                        }
                    }
                }
                let wrong = Hello::decode(&message[..right], Transport::Datagram);
                assert_eq!(wrong.err(), Some(DropReason::Profile));
            }
        }
    }

    #[test]
    fn small_messages_come_back_as_they_were() {
        let retry = Retry { echo: [1; 8], wait_10ms: 515, cookie: [3; 16] };
        assert_eq!(Retry::decode(&retry.encode()), Ok(retry));
        let reset = Reset { session: SessionId(0x0102_0304), mac: [9; 16] };
        assert_eq!(Reset::decode(&reset.encode()), Ok(reset));
        assert_eq!(reset.session.slot(), 1);
        let up = UpHeader { session: SessionId(77), sequence: u32::MAX };
        let mut record = [0; UP_HEADER + 1 + TAG];
        record[..UP_HEADER].copy_from_slice(&up.encode());
        assert_eq!(UpHeader::decode(&record), Ok(up));
        assert_eq!(UpHeader::decode(&record[1..]), Err(DropReason::Kind));
        assert_eq!(UpHeader::decode(&record[..25]), Err(DropReason::Malformed));
        assert_eq!(Kind::of(&[]), Err(DropReason::Malformed));
        assert_eq!(Kind::of(&[0x12]), Err(DropReason::Version));
        assert_eq!(Kind::of(&[0x81]), Err(DropReason::Kind));
    }
}
