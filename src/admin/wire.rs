//! Devices as they travel over the API and stand in import files.

use std::net::SocketAddr;
use std::path::Path;

use duet_protocol::identity::{DeviceId, RegistrationKey};
use duet_protocol::profile::Mode;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use utoipa::ToSchema;
use zeroize::{Zeroize, Zeroizing};

use crate::hex::{self, Hex};
use crate::identity::{BadTime, Certificate, Reason, Role, Utc};
use crate::presence::Presence;
use crate::registry::{
    BadLabel, BadName, Enrolment, Entry, Labels, NewDevice, Relabel, SourceSet, UnknownSource,
};

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
    #[serde(default, skip_serializing_if = "Option::is_none", alias = "profile")]
    pub key_sources: Option<String>,
    /// Tags, separated by commas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tags: Option<String>,
    /// The group that it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// When its registration ends: `2031-02-28`, or `2031-02-28T12:00:00Z`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
    /// Whether its registration key was made for this very registration, so that no HELLO under it can exist.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub made: bool,
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
    /// `key_sources`
    #[error("key_sources: {0}")]
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
    /// `name`, where it is one and can be taken for something else.
    #[error(
        "a name that begins with - looks like a flag or a formula; begin it with another character"
    )]
    Dash,
    /// `tags` or `group`
    #[error(transparent)]
    Label(#[from] BadLabel),
    /// `expires`
    #[error("expires: {0}")]
    Expires(#[from] BadTime),
    /// `made`
    #[error(
        "made says that the registration key was made for this registration, and there is none"
    )]
    Made,
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
        if self.name.starts_with('-') {
            return Err(BadLine::Dash);
        }
        let labels = self.labels()?;
        let sources = match &self.key_sources {
            None => SourceSet::default(),
            Some(text) => text.parse()?,
        };
        let fields = (&self.certificate, &self.id, &self.key);
        // That a certificate is new here proves nothing (R123).
        if self.made && self.key.is_none() {
            return Err(BadLine::Made);
        }
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
        Ok(NewDevice { name, enrolment, sources, made: self.made, labels })
    }

    fn labels(&self) -> Result<Labels, BadLine> {
        let given = |text: &Option<String>| text.clone().filter(|text| !text.trim().is_empty());
        let expires = given(&self.expires).map(|text| text.trim().parse::<Utc>()).transpose()?;
        Ok(Labels {
            tags: self.tags.as_deref().unwrap_or_default().parse()?,
            group: given(&self.group).map(|text| text.trim().parse()).transpose()?,
            expires_s: expires.map(|at| at.0),
        })
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

impl DeviceLine {
    /// The line that registers this device elsewhere; without keys, one that has a registration key gets another.
    #[must_use]
    pub fn of(device: &NewDevice, with_keys: bool) -> Self {
        let hex = |bytes: &[u8]| Some(Hex(bytes).to_string());
        let (mode, certificate, id, key) = match &device.enrolment {
            Enrolment::Certificate { der } => (Mode::Certificate, hex(der), None, None),
            Enrolment::RegisteredCertificate { id, der } => {
                (Mode::RegisteredCertificate, hex(der), Some(id.to_string()), None)
            }
            Enrolment::RegisteredId { id, key } => {
                let key = hex(&key.0).filter(|_| with_keys);
                (Mode::RegisteredId, None, Some(id.to_string()), key)
            }
        };
        Self {
            name: device.name.to_string(),
            mode: mode_name(mode).to_owned(),
            certificate,
            id,
            key,
            key_sources: Some(device.sources.to_string()),
            tags: Some(device.labels.tags.to_string()).filter(|tags| !tags.is_empty()),
            group: device.labels.group.as_ref().map(ToString::to_string),
            expires: device.labels.expires_s.map(|end| Utc(end).to_string()),
            made: false,
        }
    }
}

/// A device that would not be registered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Refused {
    /// Which of the devices that were sent, the first being 0.
    pub device: usize,
    /// Why, for people.
    pub error: String,
}

/// What a device needs to know of its gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GatewayFacts {
    /// Where it is reached, host and port, if it listens on one address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// The byte by which HELLO names its certificate.
    pub key_id: u8,
    /// SHA-256 of the certificate, hexadecimal.
    pub fingerprint: String,
    /// The key in it, an uncompressed point, hexadecimal.
    pub public_key: String,
    /// The certificate itself, PEM.
    pub certificate_pem: String,
    /// Where the gateway keeps it.
    pub certificate: String,
}

impl GatewayFacts {
    /// The facts of a gateway that names this certificate by `key_id` and listens here.
    #[must_use]
    pub fn of(key_id: u8, certificate: &Certificate, path: &Path, listen: SocketAddr) -> Self {
        let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        Self {
            address: (!listen.ip().is_unspecified() && listen.port() != 0)
                .then(|| listen.to_string()),
            key_id,
            fingerprint: Hex(&certificate.fingerprint.0).to_string(),
            public_key: Hex(&certificate.key.0).to_string(),
            certificate_pem: crate::identity::pem(&certificate.der),
            certificate: path.display().to_string(),
        }
    }
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
    pub key_sources: String,
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
    /// Its tags.
    #[serde(default)]
    pub tags: Vec<String>,
    /// The group that it belongs to.
    #[serde(default)]
    pub group: Option<String>,
    /// When its registration ends.
    #[serde(default)]
    pub expires_s: Option<i64>,
    /// Until when the credential before this one is good, where a renewal has left one; lists do not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renewing_s: Option<i64>,
    /// How it is at the moment, where a gateway runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub presence: Option<Presence>,
}

impl From<Entry> for DeviceInfo {
    fn from(entry: Entry) -> Self {
        Self {
            name: entry.name.to_string(),
            mode: mode_name(entry.mode).to_owned(),
            id: entry.id.to_string(),
            fingerprint: Hex(&entry.fingerprint.0).to_string(),
            key_sources: entry.sources.to_string(),
            created_s: entry.created_s,
            revoked_s: entry.revoked_s,
            not_before_s: entry.validity.map(|validity| validity.not_before_s),
            not_after_s: entry.validity.map(|validity| validity.not_after_s),
            mark: entry.mark,
            tags: entry.labels.tags.iter().map(ToString::to_string).collect(),
            group: entry.labels.group.as_ref().map(ToString::to_string),
            expires_s: entry.labels.expires_s,
            renewing_s: entry.renewing_s,
            presence: None,
        }
    }
}

/// What is to be said of a device from now on; what is not given stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeviceChange {
    /// All its tags, separated by commas; empty for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tags: Option<String>,
    /// Tags that it is to have besides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub add_tags: Option<String>,
    /// Tags that it is not to have any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remove_tags: Option<String>,
    /// The group that it belongs to; empty for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// When its registration ends: `2031-02-28`, `2031-02-28T12:00:00Z`, or `never`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
}

impl DeviceChange {
    /// Reads the change.
    ///
    /// # Errors
    /// [`BadLine`], naming the field.
    pub fn read(&self) -> Result<Relabel, BadLine> {
        let tags = |text: &Option<String>| text.as_deref().unwrap_or_default().parse();
        let group = |text: &String| match text.trim() {
            "" => Ok(None),
            text => text.parse().map(Some),
        };
        let end = |text: &String| match text.trim() {
            "never" => Ok(None),
            text => text.parse::<Utc>().map(|at| Some(at.0)),
        };
        Ok(Relabel {
            tags: self.tags.as_deref().map(str::parse).transpose()?,
            add: tags(&self.add_tags)?,
            remove: tags(&self.remove_tags)?,
            group: self.group.as_ref().map(group).transpose()?,
            expires_s: self.expires.as_ref().map(end).transpose()?,
        })
    }
}

fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Certificate => "certificate",
        Mode::RegisteredCertificate => "registered-certificate",
        Mode::RegisteredId => "registered-id",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_key_can_have_been_made_for_a_registration() {
        let line = |json: &str| serde_json::from_str::<DeviceLine>(json).unwrap();
        let brought = r#"{"name":"a","mode":"certificate","certificate":"00","made":true}"#;
        assert!(matches!(line(brought).read(), Err(BadLine::Made)));
        let key = "11".repeat(32);
        let made = format!(
            r#"{{"name":"a","mode":"registered-id","id":"0000000000000001","key":"{key}","made":true}}"#
        );
        assert!(line(&made).read().unwrap().made);
    }
}
