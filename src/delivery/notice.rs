//! Notices: what happened to a device, stored among its readings and in their order, for whoever reads them on.
//!
//! Owns what a notice says and its sixteen bytes in a record. Takes them as hostile when it reads them.

use super::format::ReadingRef;
use duet_protocol::profile::{Profile, Transport};
use duet_protocol::reading::ReadingId;

/// How many bytes of a record a notice takes.
pub(super) const NOTICE_LEN: usize = 16;

/// What happened to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A command came to its end; the payload is what the device answered, if it did.
    Result {
        /// The command's id at the gateway.
        command: u64,
        /// The number that the device knows it by.
        number: u32,
        /// What became of it.
        state: End,
        /// Whether the answer came when it was over.
        late: bool,
        /// What the device said; zero for success.
        status: Option<u8>,
    },
    /// The device has a session from now on; the payload is the address that its first record came from.
    Online {
        /// What carries its messages.
        carrier: Transport,
        /// How it proved itself, and where its key comes from.
        profile: Profile,
    },
    /// The device has no session any more.
    Offline {
        /// Why it ended.
        reason: Reason,
        /// Since when the device was online, milliseconds since 1970.
        since_ms: u64,
    },
}

/// How a command came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The device answered.
    Done = 1,
    /// No result came in time.
    Expired = 2,
    /// Somebody cancelled it.
    Cancelled = 3,
    /// A newer one took its place.
    Superseded = 4,
}

/// Why a device is offline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It said that it leaves.
    Left = 1,
    /// It was silent for too long.
    Silent = 2,
    /// Its session had lasted as long as one may.
    Lifetime = 3,
    /// It was revoked or removed.
    Revoked = 4,
    /// The gateway stops.
    Stopped = 5,
    /// The gateway was killed, and could not say so itself.
    Killed = 6,
}

impl End {
    const ALL: [Self; 4] = [Self::Done, Self::Expired, Self::Cancelled, Self::Superseded];

    const fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
            Self::Superseded => "superseded",
        }
    }
}

impl Reason {
    const ALL: [Self; 6] =
        [Self::Left, Self::Silent, Self::Lifetime, Self::Revoked, Self::Stopped, Self::Killed];

    /// In a word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Left => "left",
            Self::Silent => "silent",
            Self::Lifetime => "lifetime",
            Self::Revoked => "revoked",
            Self::Stopped => "stopped",
            Self::Killed => "killed",
        }
    }
}

/// One thing that a notice says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said<'a> {
    /// In a word.
    Text(&'a str),
    /// A number.
    Number(u64),
    /// It is so.
    True,
}

/// What carries messages, in a word.
#[must_use]
pub const fn carrier_name(carrier: Transport) -> &'static str {
    match carrier {
        Transport::Datagram => "udp",
        Transport::Stream => "tcp",
    }
}

impl Notice {
    /// Its kind, in a word.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Result { .. } => "result",
            Self::Online { .. } => "online",
            Self::Offline { .. } => "offline",
        }
    }

    /// The record of this notice about a device.
    #[must_use]
    pub fn record<'a>(self, device: &'a str, at_ms: u64, payload: &'a [u8]) -> ReadingRef<'a> {
        ReadingRef {
            device,
            id: self.id(at_ms),
            again: false,
            channel: 0,
            received_ms: at_ms,
            measured_ms: at_ms,
            commit: None,
            notice: Some(self),
            payload,
        }
    }

    /// Whether the payload is something that the device sent.
    #[must_use]
    pub const fn has_payload(&self) -> bool {
        matches!(self, Self::Result { status: Some(_), .. })
    }

    /// What it says, by names, with the payload of its record.
    #[must_use]
    pub fn said<'a>(&self, payload: &'a [u8]) -> Vec<(&'static str, Said<'a>)> {
        match *self {
            Self::Result { command, number, state, late, status } => {
                let mut said = vec![
                    ("command", Said::Number(command)),
                    ("number", Said::Number(number.into())),
                    ("state", Said::Text(state.name())),
                ];
                said.extend(late.then_some(("late", Said::True)));
                said.extend(status.map(|status| ("status", Said::Number(status.into()))));
                said
            }
            Self::Online { carrier, profile } => vec![
                ("carrier", Said::Text(carrier_name(carrier))),
                ("address", Said::Text(std::str::from_utf8(payload).unwrap_or_default())),
                ("profile", Said::Text(profile.name())),
            ],
            Self::Offline { reason, since_ms } => {
                vec![("reason", Said::Text(reason.name())), ("since_ms", Said::Number(since_ms))]
            }
        }
    }

    /// Names it for ever among its device's readings and notices, also when it is stored once more. `at` is when it
    /// happened, milliseconds since 1970.
    #[must_use]
    pub fn id(&self, at: u64) -> ReadingId {
        let (kind, late, name, sequence) = match *self {
            Self::Result { command, number, late, .. } => (1, late, command, number),
            Self::Online { .. } => (2, false, at, 0),
            Self::Offline { .. } => (3, false, at, 0),
        };
        let mut hello = [0; 12];
        hello[0] = kind;
        hello[1] = late.into();
        hello[2..10].copy_from_slice(&name.to_be_bytes());
        ReadingId { hello, sequence }
    }

    pub(super) fn encode(&self) -> [u8; NOTICE_LEN] {
        let mut out = [0; NOTICE_LEN];
        match *self {
            Self::Result { command, number, state, late, status } => {
                let flags = u8::from(late) | u8::from(status.is_some()) << 1;
                out[..4].copy_from_slice(&[1, state as u8, status.unwrap_or(0), flags]);
                out[4..8].copy_from_slice(&number.to_le_bytes());
                out[8..].copy_from_slice(&command.to_le_bytes());
            }
            Self::Online { carrier, profile } => {
                let place = Profile::ALL.iter().position(|one| *one == profile);
                let place = place.and_then(|place| u8::try_from(place).ok()).unwrap_or(u8::MAX);
                out[..3].copy_from_slice(&[2, u8::from(carrier == Transport::Stream), place]);
            }
            Self::Offline { reason, since_ms } => {
                out[..2].copy_from_slice(&[3, reason as u8]);
                out[8..].copy_from_slice(&since_ms.to_le_bytes());
            }
        }
        out
    }

    pub(super) fn decode(bytes: &[u8; NOTICE_LEN]) -> Option<Self> {
        let [kind, a, b, c, n0, n1, n2, n3, rest @ ..] = *bytes;
        let long = u64::from_le_bytes(rest);
        match kind {
            1 if c < 4 => Some(Self::Result {
                command: long,
                number: u32::from_le_bytes([n0, n1, n2, n3]),
                state: End::ALL.into_iter().find(|state| *state as u8 == a)?,
                late: c & 1 != 0,
                status: (c & 2 != 0).then_some(b),
            }),
            2 => {
                let carrier = match a {
                    0 => Transport::Datagram,
                    1 => Transport::Stream,
                    _ => return None,
                };
                Some(Self::Online { carrier, profile: *Profile::ALL.get(usize::from(b))? })
            }
            3 => {
                let reason = Reason::ALL.into_iter().find(|reason| *reason as u8 == a)?;
                Some(Self::Offline { reason, since_ms: long })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_notice_comes_back_and_no_bytes_panic() {
        let mut all = Vec::new();
        for state in End::ALL {
            for (late, status) in [(false, None), (true, Some(0)), (false, Some(9))] {
                all.push(Notice::Result { command: 1 << 40, number: 7, state, late, status });
            }
        }
        for profile in Profile::ALL {
            for carrier in [Transport::Datagram, Transport::Stream] {
                all.push(Notice::Online { carrier, profile });
            }
        }
        for reason in Reason::ALL {
            all.push(Notice::Offline { reason, since_ms: 5 });
        }
        for notice in &all {
            assert_eq!(Notice::decode(&notice.encode()), Some(*notice));
        }
        for kind in 0..=u8::MAX {
            for value in [0, 1, 4, 15, u8::MAX] {
                let _ = Notice::decode(&[&[kind][..], &[value; 15]].concat().try_into().unwrap());
            }
        }
    }
}
