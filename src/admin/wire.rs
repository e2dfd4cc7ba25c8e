//! Devices as they travel over the API and stand in import files.

use duet_protocol::identity::{DeviceId, RegistrationKey};
use duet_protocol::profile::Mode;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use utoipa::ToSchema;
use zeroize::{Zeroize, Zeroizing};

use crate::hex::{self, Hex};
use crate::identity::{Certificate, Reason, Role};
use crate::registry::{BadName, Enrolment, Entry, NewDevice, SourceSet, UnknownSource};

/// The longest line of an import.
pub const MAX_LINE_LEN: usize = 512 * 1024;

/// The most devices in one import.
pub const MAX_IMPORT: usize = 1_000_000;

/// The longest that a command may wait for its result.
pub const MAX_COMMAND_TIMEOUT_MS: u64 = 300_000;

/// A device to be registered, as in import files: the fields its mode needs, no others.
///
/// It may hold a registration key, so it has no `Debug` and is wiped when dropped.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeviceLine {
    /// Its name.
    pub name: String,
    /// `certificate`, `registered-certificate` or `registered-id`.
    pub mode: String,
    /// The certificate: PEM, or DER in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
    /// The registered id, 16 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The registration key, 64 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The key sources it may use, separated by commas; without it, `ephemeral`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
}

impl Drop for DeviceLine {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

/// What is wrong with a [`DeviceLine`].
#[derive(Debug, Error)]
pub enum BadLine {
    /// `name`
    #[error(transparent)]
    Name(#[from] BadName),
    /// `mode`
    #[error("mode must be certificate, registered-certificate or registered-id")]
    Mode,
    /// `profile`
    #[error("profile: {0}")]
    Sources(#[from] UnknownSource),
    /// `certificate`
    #[error("certificate: {0}")]
    Certificate(#[from] Reason),
    /// `id`
    #[error("id must be 16 hexadecimal digits")]
    Id,
    /// `key`; the value is not shown.
    #[error("key must be 64 hexadecimal digits")]
    Key,
    /// A field that the mode needs is not there, or one that it has no use for is.
    #[error("the mode needs {0}, and nothing else")]
    Fields(&'static str),
}

impl DeviceLine {
    /// Reads the line. Certificates are parsed here and judged by the registry.
    ///
    /// # Errors
    /// [`BadLine`], naming the field.
    pub fn read(&self) -> Result<NewDevice, BadLine> {
        let name = self.name.parse()?;
        let sources = match &self.profile {
            None => SourceSet::default(),
            Some(text) => text.parse()?,
        };
        let fields = (&self.certificate, &self.id, &self.key);
        let enrolment = match (self.mode.as_str(), fields) {
            ("certificate", (Some(certificate), None, None)) => {
                Enrolment::Certificate { der: certificate_der(certificate)? }
            }
            ("registered-certificate", (Some(certificate), Some(id), None)) => {
                Enrolment::RegisteredCertificate {
                    id: device_id(id)?,
                    der: certificate_der(certificate)?,
                }
            }
            ("registered-id", (None, Some(id), Some(key))) => {
                Enrolment::RegisteredId { id: device_id(id)?, key: registration_key(key)? }
            }
            ("certificate", _) => return Err(BadLine::Fields("certificate")),
            ("registered-certificate", _) => return Err(BadLine::Fields("certificate and id")),
            ("registered-id", _) => return Err(BadLine::Fields("id and key")),
            _ => return Err(BadLine::Mode),
        };
        Ok(NewDevice { name, enrolment, sources })
    }
}

fn certificate_der(text: &str) -> Result<Vec<u8>, BadLine> {
    let bytes = hex::decode(text.trim()).unwrap_or_else(|| text.as_bytes().to_vec());
    Ok(Certificate::parse(&bytes, Role::Device)?.der)
}

fn device_id(text: &str) -> Result<DeviceId, BadLine> {
    hex::decode_array(text).map(DeviceId).ok_or(BadLine::Id)
}

fn registration_key(text: &str) -> Result<RegistrationKey, BadLine> {
    let bytes = Zeroizing::new(hex::decode(text).ok_or(BadLine::Key)?);
    bytes.as_slice().try_into().map(RegistrationKey).map_err(|_| BadLine::Key)
}

/// A device as commands show it. No secrets; times are Unix seconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeviceInfo {
    /// Its name.
    pub name: String,
    /// `certificate`, `registered-certificate` or `registered-id`.
    pub mode: String,
    /// Its id, hexadecimal.
    pub id: String,
    /// SHA-256 of its certificate (or what stands in its place), hexadecimal.
    pub fingerprint: String,
    /// The key sources it may use.
    pub profile: String,
    /// When it was registered.
    pub created_s: i64,
    /// When it was revoked.
    pub revoked_s: Option<i64>,
    /// When its certificate begins to be valid.
    pub not_before_s: Option<i64>,
    /// When its certificate ends to be valid.
    pub not_after_s: Option<i64>,
    /// The last freshness mark on disk.
    pub mark: u64,
}

impl From<Entry> for DeviceInfo {
    fn from(entry: Entry) -> Self {
        Self {
            name: entry.name.to_string(),
            mode: mode_name(entry.mode).to_owned(),
            id: entry.id.to_string(),
            fingerprint: Hex(&entry.fingerprint.0).to_string(),
            profile: entry.sources.to_string(),
            created_s: entry.created_s,
            revoked_s: entry.revoked_s,
            not_before_s: entry.validity.map(|validity| validity.not_before_s),
            not_after_s: entry.validity.map(|validity| validity.not_after_s),
            mark: entry.mark,
        }
    }
}

fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Certificate => "certificate",
        Mode::RegisteredCertificate => "registered-certificate",
        Mode::RegisteredId => "registered-id",
    }
}
