//! One device as it lies on disk, and as it is handed in.
//!
//! ```text
//! version 1 │ mode 1 │ sources 1 │ revoked? 1 │ id 8 │ registration 3 │ created 5 │ revoked 8 │ window 16 │ credential …
//! ```
//! Integers are big-endian. The window is the certificate's, both ends, or zeros. The credential is the
//! certificate (DER), or 32 bytes of a registration key's digest and, until it is revoked, 4 bytes that say in which
//! cell of the [file of keys](super::keys) it lies: no secret is in a row. The registration is drawn when the device is registered: whoever is registered
//! again, even with the same id and credential, has another one. It is zero in rows from before there were any.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use duet_protocol::identity::{Credential, DeviceId, Fingerprint, RegistrationKey};
use duet_protocol::profile::Mode;
use thiserror::Error;

use super::keys::KeyCell;
use super::{Device, Labels, SourceSet};
use crate::identity::{self, Certificate, Reason, Validity};

const VERSION: u8 = 3;
/// That of rows with registration keys in them.
pub(super) const EARLIER: u8 = 2;
const HEAD_LEN: usize = 44;
/// How many bits the second of the registration has: enough until the year 36812.
const CREATED_BITS: u32 = 40;

/// A device's name: 1 to 64 of the characters `A–Z a–z 0–9 . _ -`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Arc<str>);

/// Not a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a name is 1 to 64 of the characters A-Z a-z 0-9 . _ -")]
pub struct BadName;

impl Name {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(super) fn shared(&self) -> Arc<str> {
        Arc::clone(&self.0)
    }
}

impl FromStr for Name {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if (1..=64).contains(&text.len()) && text.bytes().all(allowed) {
            Ok(Self(text.into()))
        } else {
            Err(BadName)
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// How a device is to be known.
pub enum Enrolment {
    /// By its certificate's fingerprint.
    Certificate {
        /// The certificate, DER.
        der: Vec<u8>,
    },
    /// By an id that maps to its certificate.
    RegisteredCertificate {
        /// The id, random.
        id: DeviceId,
        /// The certificate, DER.
        der: Vec<u8>,
    },
    /// By an id and a registration key.
    RegisteredId {
        /// The id, random.
        id: DeviceId,
        /// The key, random.
        key: RegistrationKey,
    },
}

/// A device that is to be registered. It may hold a secret, so it has no `Debug`.
pub struct NewDevice {
    /// Its name.
    pub name: Name,
    /// How it is to be known.
    pub enrolment: Enrolment,
    /// The key sources it may use.
    pub sources: SourceSet,
    /// Whether this very registration has made its secret, so that no HELLO under it can exist (R123).
    pub made: bool,
    /// What people say of it.
    pub labels: Labels,
}

/// What is stored under a device's name: nothing secret.
pub(super) struct Record {
    pub(super) id: DeviceId,
    pub(super) sources: SourceSet,
    /// Told apart by this: registrations under one id.
    pub(super) registration: u32,
    pub(super) created_s: i64,
    pub(super) revoked_s: Option<i64>,
    /// Its certificate's window; `None` without a certificate.
    pub(super) validity: Option<Validity>,
    credential: Stored,
}

enum Stored {
    Certificate(Vec<u8>),
    RegisteredCertificate(Vec<u8>),
    /// By its key's digest, and where the key lies.
    RegisteredId([u8; 32], Option<KeyCell>),
}

impl Record {
    /// The record of a device registered now, and the key that is to be put into a [cell](Self::put_cell). A certificate
    /// is checked as a device's.
    pub(super) fn new(
        device: NewDevice,
        registration: u32,
        now_s: i64,
    ) -> Result<(Self, Option<RegistrationKey>), Reason> {
        let checked = |der: &[u8]| {
            let certificate = Certificate::from_der(der)?;
            certificate.check(now_s)?;
            Ok::<_, Reason>(certificate)
        };
        let (id, validity, credential, key) = match device.enrolment {
            Enrolment::Certificate { der } => {
                let certificate = checked(&der)?;
                let id = DeviceId::of_certificate(&certificate.fingerprint);
                (id, Some(certificate.validity), Stored::Certificate(der), None)
            }
            Enrolment::RegisteredCertificate { id, der } => {
                let validity = checked(&der)?.validity;
                (id, Some(validity), Stored::RegisteredCertificate(der), None)
            }
            Enrolment::RegisteredId { id, key } => {
                (id, None, Stored::RegisteredId(key_digest(&key.0), None), Some(key))
            }
        };
        let (sources, created_s, revoked_s) = (device.sources, now_s, None);
        Ok((Self { id, sources, registration, created_s, revoked_s, validity, credential }, key))
    }

    /// Says where the registration key lies.
    pub(super) fn put_cell(&mut self, at: KeyCell) {
        if let Stored::RegisteredId(_, cell) = &mut self.credential {
            *cell = Some(at);
        }
    }

    /// Where the registration key lies, if it is kept.
    pub(super) fn cell(&self) -> Option<KeyCell> {
        match self.credential {
            Stored::RegisteredId(_, cell) => cell,
            _ => None,
        }
    }

    /// Marks the device as revoked. Returns where the registration key lies that is kept no longer, if there is one.
    pub(super) fn revoke(&mut self, now_s: i64) -> Option<KeyCell> {
        self.revoked_s = Some(now_s);
        match &mut self.credential {
            Stored::RegisteredId(_, cell) => cell.take(),
            _ => None,
        }
    }

    /// What the device is known by, to be registered elsewhere; nothing of a key that is not kept.
    pub(super) fn enrolment(&self, key: Option<RegistrationKey>) -> Option<Enrolment> {
        let id = self.id;
        Some(match &self.credential {
            Stored::Certificate(der) => Enrolment::Certificate { der: der.clone() },
            Stored::RegisteredCertificate(der) => {
                Enrolment::RegisteredCertificate { id, der: der.clone() }
            }
            Stored::RegisteredId(..) => Enrolment::RegisteredId { id, key: key? },
        })
    }

    pub(super) fn mode(&self) -> Mode {
        match self.credential {
            Stored::Certificate(_) => Mode::Certificate,
            Stored::RegisteredCertificate(_) => Mode::RegisteredCertificate,
            Stored::RegisteredId(..) => Mode::RegisteredId,
        }
    }

    pub(super) fn fingerprint(&self) -> Fingerprint {
        match &self.credential {
            Stored::Certificate(der) | Stored::RegisteredCertificate(der) => {
                Fingerprint::of_certificate(der)
            }
            Stored::RegisteredId(..) => Fingerprint::of_registered_id(&self.id),
        }
    }

    /// What a registration key is refused by; nothing in the certificate modes.
    pub(super) fn registration_key_digest(&self) -> Option<[u8; 32]> {
        match &self.credential {
            Stored::Certificate(_) | Stored::RegisteredCertificate(_) => None,
            Stored::RegisteredId(digest, _) => Some(*digest),
        }
    }

    pub(super) fn certificate(&self) -> Result<Option<Certificate>, Reason> {
        match &self.credential {
            Stored::Certificate(der) | Stored::RegisteredCertificate(der) => {
                Certificate::from_der(der).map(Some)
            }
            Stored::RegisteredId(..) => Ok(None),
        }
    }

    /// The device as shards see it, with its key if it has one. An expired certificate is no fault here: the handshake
    /// refuses it.
    pub(super) fn device(
        &self,
        name: &Name,
        key: Option<RegistrationKey>,
    ) -> Result<Device, Reason> {
        let certificate = self.certificate()?;
        let credential = match (&self.credential, &certificate, key) {
            (Stored::Certificate(_), Some(c), _) => Credential::certificate(&c.der, c.key),
            (_, Some(c), _) => Credential::registered_certificate(self.id, &c.der, c.key),
            (_, None, Some(key)) => Credential::registered_id(self.id, key),
            (_, None, None) => return Err(Reason::NotACertificate),
        };
        let valid_s = certificate.map(|certificate| {
            certificate.validity.not_before_s..=certificate.validity.not_after_s
        });
        let device = Device::new(name.shared(), credential, self.sources, valid_s);
        Ok(device.with_registration(self.registration.into()))
    }

    /// The bytes on disk.
    pub(super) fn encode(&self) -> Vec<u8> {
        let (not_before_s, not_after_s) =
            self.validity.map_or((0, 0), |window| (window.not_before_s, window.not_after_s));
        let mut bytes = Vec::with_capacity(HEAD_LEN);
        let revoked = u8::from(self.revoked_s.is_some());
        bytes.extend([VERSION, self.mode() as u8, self.sources.bits(), revoked]);
        bytes.extend(self.id.0);
        let created = u64::try_from(self.created_s).unwrap_or(0) % (1 << CREATED_BITS);
        bytes.extend((u64::from(self.registration) << CREATED_BITS | created).to_be_bytes());
        bytes.extend(self.revoked_s.unwrap_or(0).to_be_bytes());
        bytes.extend(not_before_s.to_be_bytes());
        bytes.extend(not_after_s.to_be_bytes());
        match &self.credential {
            Stored::Certificate(der) | Stored::RegisteredCertificate(der) => bytes.extend(der),
            Stored::RegisteredId(digest, cell) => {
                bytes.extend(digest);
                bytes.extend(cell.iter().flat_map(|cell| cell.0.to_be_bytes()));
            }
        }
        bytes
    }

    /// Reads what [`encode`](Self::encode) wrote; `None` for anything else.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (head, rest) = bytes.split_at_checked(4)?;
        let &[VERSION, mode, sources, is_revoked] = head else { return None };
        let (id, rest) = rest.split_first_chunk::<8>()?;
        let (created, rest) = rest.split_first_chunk::<8>()?;
        let (revoked, rest) = rest.split_first_chunk::<8>()?;
        let (not_before, rest) = rest.split_first_chunk::<8>()?;
        let (not_after, credential) = rest.split_first_chunk::<8>()?;
        let created = u64::from_be_bytes(*created);
        let revoked_s = match (is_revoked, i64::from_be_bytes(*revoked)) {
            (0, 0) => None,
            (1, at) => Some(at),
            _ => return None,
        };
        let credential = match mode {
            0 => Stored::Certificate(credential.to_vec()),
            1 => Stored::RegisteredCertificate(credential.to_vec()),
            2 => {
                let (digest, cell) = credential.split_first_chunk()?;
                let cell = match cell {
                    [] => None,
                    cell if revoked_s.is_none() => {
                        Some(KeyCell(u32::from_be_bytes(cell.try_into().ok()?)))
                    }
                    _ => return None,
                };
                Stored::RegisteredId(*digest, cell)
            }
            _ => return None,
        };
        let validity = (mode != 2).then(|| Validity {
            not_before_s: i64::from_be_bytes(*not_before),
            not_after_s: i64::from_be_bytes(*not_after),
        });
        Some(Self {
            id: DeviceId(*id),
            sources: SourceSet::from_bits(sources)?,
            registration: u32::try_from(created >> CREATED_BITS).ok()?,
            created_s: i64::try_from(created % (1 << CREATED_BITS)).ok()?,
            revoked_s,
            validity,
            credential,
        })
    }
}

/// What stands for a registration key where the key itself need not be known.
pub(super) fn key_digest(key: &[u8; 32]) -> [u8; 32] {
    identity::digest_of_secret(b"duet registration key", key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain() {
        for good in ["a", "Boiler-3.north_wing", &"x".repeat(64)] {
            assert_eq!(good.parse::<Name>().unwrap().as_str(), good);
        }
        for bad in ["", " ", "a b", "a/b", "é", "a\n", &"x".repeat(65)] {
            assert_eq!(bad.parse::<Name>(), Err(BadName), "{bad:?}");
        }
    }

    #[test]
    fn a_record_reads_back_and_nothing_shorter_does() {
        let key = RegistrationKey([7; 32]);
        let enrolment = Enrolment::RegisteredId { id: DeviceId([3; 8]), key };
        let name: Name = "d".parse().unwrap();
        let device = NewDevice {
            name,
            enrolment,
            sources: SourceSet::ALL,
            made: false,
            labels: Labels::default(),
        };
        let (mut record, key) = Record::new(device, 66, 55).ok().unwrap();
        assert_eq!((key.unwrap().0, record.cell()), ([7; 32], None));
        record.put_cell(KeyCell(0x0102_0304));
        let bytes = record.encode();
        assert_eq!(Record::decode(&bytes).unwrap().cell(), Some(KeyCell(0x0102_0304)));
        for end in (0..bytes.len()).filter(|end| *end != bytes.len() - 4) {
            assert!(Record::decode(&bytes[..end]).is_none(), "{end} bytes");
        }
        assert_eq!((record.revoke(0), record.cell()), (Some(KeyCell(0x0102_0304)), None));
        let mut kept = bytes;
        kept[3] = 1;
        assert!(Record::decode(&kept).is_none(), "revoked, and with a key");
        let bytes = record.encode();
        let read = Record::decode(&bytes).unwrap();
        assert_eq!((read.id, read.sources), (DeviceId([3; 8]), SourceSet::ALL));
        assert_eq!((read.created_s, read.revoked_s, read.registration), (55, Some(0), 66));
        assert_eq!(read.encode(), bytes);
        let mut unnumbered = bytes.clone();
        unnumbered[12..15].fill(0);
        let read = Record::decode(&unnumbered).unwrap();
        assert_eq!((read.id, read.created_s, read.registration), (DeviceId([3; 8]), 55, 0));
        assert_eq!(read.encode(), unnumbered);
        for end in 0..bytes.len() {
            assert!(Record::decode(&bytes[..end]).is_none());
        }
        for (place, value) in [(0, 1), (1, 3), (2, 0), (2, 32), (3, 2)] {
            let mut changed = bytes.clone();
            changed[place] = value;
            assert!(Record::decode(&changed).is_none(), "byte {place}");
        }
    }
}
