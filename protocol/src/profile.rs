//! The third byte of HELLO: how identity is proven, where the key comes from, what carries it.

use thiserror::Error;

/// How the gateway knows the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// The device names its preset certificate by the first 8 bytes of its SHA-256.
    Certificate = 0,
    /// The device names an id given at registration, which maps 1:1 to a preset certificate.
    RegisteredCertificate = 1,
    /// The device names an id given at registration and proves a 32-byte registration key.
    RegisteredId = 2,
}

impl Mode {
    /// Whether the device proves itself with an ECDSA signature (otherwise with a MAC).
    #[must_use]
    pub const fn has_certificate(self) -> bool {
        !matches!(self, Self::RegisteredId)
    }
}

/// What the session's keys come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeySource {
    /// An ephemeral Diffie-Hellman inside the two messages: forward secret.
    Ephemeral,
    /// The XOR of the device's random and the gateway's.
    Xor(Transfer),
    /// The device's random alone.
    Client(Transfer),
}

/// What travels encrypted when the key source is a random.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transfer {
    /// The symmetric key itself.
    Key,
    /// A random, from which both sides synthesise the key.
    Random,
}

/// What carries the messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// One message a datagram (UDP).
    Datagram,
    /// A byte stream (TCP), a 2-byte length before each message (R14); the first one is due within
    /// a fixed time (R90).
    Stream,
}

/// The profile of one handshake: one byte on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Profile {
    /// How identity is proven.
    pub mode: Mode,
    /// Where the session's key comes from.
    pub source: KeySource,
}

/// A profile as it is in force for one HELLO: with its carrier, and flags for what is sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Offer {
    /// Mode and key source.
    pub profile: Profile,
    /// The transport that this HELLO travels on.
    pub transport: Transport,
    /// Whether the sealed part echoes a 16-byte challenge.
    pub challenged: bool,
    /// Whether the sealed part carries a reading.
    pub early: bool,
}

/// The byte names no profile of this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("profile byte names no profile")]
pub struct UnknownProfile;

impl Profile {
    /// All fifteen profiles: three modes by five key sources.
    pub const ALL: [Self; 15] = {
        let modes = [Mode::Certificate, Mode::RegisteredCertificate, Mode::RegisteredId];
        let sources = [
            KeySource::Ephemeral,
            KeySource::Xor(Transfer::Key),
            KeySource::Xor(Transfer::Random),
            KeySource::Client(Transfer::Key),
            KeySource::Client(Transfer::Random),
        ];
        let mut all = [Self { mode: modes[0], source: sources[0] }; 15];
        let mut i = 0;
        while i < 15 {
            all[i] = Self { mode: modes[i / 5], source: sources[i % 5] };
            i += 1;
        }
        all
    };

    /// The name used on the command line and in reports, for example `certificate/ephemeral`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        use {KeySource as S, Mode as M, Transfer as T};
        match (self.mode, self.source) {
            (M::Certificate, S::Ephemeral) => "certificate/ephemeral",
            (M::Certificate, S::Xor(T::Key)) => "certificate/xor-key",
            (M::Certificate, S::Xor(T::Random)) => "certificate/xor-random",
            (M::Certificate, S::Client(T::Key)) => "certificate/client-key",
            (M::Certificate, S::Client(T::Random)) => "certificate/client-random",
            (M::RegisteredCertificate, S::Ephemeral) => "registered-certificate/ephemeral",
            (M::RegisteredCertificate, S::Xor(T::Key)) => "registered-certificate/xor-key",
            (M::RegisteredCertificate, S::Xor(T::Random)) => "registered-certificate/xor-random",
            (M::RegisteredCertificate, S::Client(T::Key)) => "registered-certificate/client-key",
            (M::RegisteredCertificate, S::Client(T::Random)) => {
                "registered-certificate/client-random"
            }
            (M::RegisteredId, S::Ephemeral) => "registered-id/ephemeral",
            (M::RegisteredId, S::Xor(T::Key)) => "registered-id/xor-key",
            (M::RegisteredId, S::Xor(T::Random)) => "registered-id/xor-random",
            (M::RegisteredId, S::Client(T::Key)) => "registered-id/client-key",
            (M::RegisteredId, S::Client(T::Random)) => "registered-id/client-random",
        }
    }

    /// The profile with this [`name`](Self::name).
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|profile| profile.name() == name)
    }
}

impl KeySource {
    /// The name used on the command line: `ephemeral`, `xor-key`, `xor-random`, `client-key`,
    /// `client-random`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ephemeral => "ephemeral",
            Self::Xor(Transfer::Key) => "xor-key",
            Self::Xor(Transfer::Random) => "xor-random",
            Self::Client(Transfer::Key) => "client-key",
            Self::Client(Transfer::Random) => "client-random",
        }
    }

    /// The key source with this [`name`](Self::name).
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Profile::ALL[..5].iter().map(|profile| profile.source).find(|source| source.name() == name)
    }

    /// Whether the HELLO carries a 16-byte random or key (S in the specification).
    #[must_use]
    pub const fn has_random(self) -> bool {
        !matches!(self, Self::Ephemeral)
    }
}

impl Offer {
    /// A HELLO that answers no challenge and carries no reading.
    #[must_use]
    pub const fn new(profile: Profile, transport: Transport) -> Self {
        Self { profile, transport, challenged: false, early: false }
    }

    /// The byte on the wire: mode in bits 0–1, key source in bits 2–3, transfer in bit 4,
    /// transport in bit 5, challenge in bit 6, reading in bit 7.
    #[must_use]
    pub const fn encode(self) -> u8 {
        let (source, transfer) = match self.profile.source {
            KeySource::Ephemeral => (0, 0),
            KeySource::Xor(transfer) => (1, transfer as u8),
            KeySource::Client(transfer) => (2, transfer as u8),
        };
        self.profile.mode as u8
            | source << 2
            | transfer << 4
            | (self.transport as u8) << 5
            | (self.challenged as u8) << 6
            | (self.early as u8) << 7
    }

    /// Reads the byte; exactly one byte names each offer (R16).
    ///
    /// # Errors
    /// [`UnknownProfile`] for reserved values of any field.
    pub const fn decode(byte: u8) -> Result<Self, UnknownProfile> {
        let mode = match byte & 3 {
            0 => Mode::Certificate,
            1 => Mode::RegisteredCertificate,
            2 => Mode::RegisteredId,
            _ => return Err(UnknownProfile),
        };
        let transfer = if byte & 0x10 == 0 { Transfer::Key } else { Transfer::Random };
        let source = match (byte >> 2 & 3, byte & 0x10) {
            (0, 0) => KeySource::Ephemeral,
            (1, _) => KeySource::Xor(transfer),
            (2, _) => KeySource::Client(transfer),
            _ => return Err(UnknownProfile),
        };
        let transport = if byte & 0x20 == 0 { Transport::Datagram } else { Transport::Stream };
        let (challenged, early) = (byte & 0x40 != 0, byte & 0x80 != 0);
        Ok(Self { profile: Profile { mode, source }, transport, challenged, early })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_offer_has_one_byte_and_each_byte_at_most_one_offer() {
        let mut known = 0;
        for byte in 0..=255u8 {
            if let Ok(offer) = Offer::decode(byte) {
                assert_eq!(offer.encode(), byte);
                known += 1;
            }
        }
        assert_eq!(known, 15 * 8);
    }

    #[test]
    fn names_are_unique_and_found_again() {
        for profile in Profile::ALL {
            assert_eq!(Profile::from_name(profile.name()), Some(profile));
            assert_eq!(KeySource::from_name(profile.source.name()), Some(profile.source));
        }
        assert_eq!(Profile::from_name("certificate/none"), None);
    }
}
