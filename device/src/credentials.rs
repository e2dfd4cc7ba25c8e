//! A credential file, as `duet device add NAME --out NAME.json` writes it: everything that a device
//! must know. `docs/credential.schema.json` describes it.

use std::{
    borrow::ToOwned as _,
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
    string::{String, ToString as _},
    vec::Vec,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use duet_protocol::{
    ec::SecretScalar,
    identity::{DeviceId, Fingerprint, Gateway, RegistrationKey},
    profile::{KeySource, Mode, Profile, Transport},
};
use p256::pkcs8::DecodePrivateKey as _;
use zeroize::{Zeroize as _, Zeroizing};

use crate::{
    certificate,
    identity::{DeviceKey, Identity},
    machine::Config,
};

/// The longest file.
const MAX_LEN: u64 = 1 << 20;

/// Why a credential file makes no device.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// A file could not be read.
    #[error("{path}: {source}")]
    Read {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not JSON of the right form.
    #[error("{path}: this is no credential of a device: {source}")]
    Json {
        /// Which one.
        path: PathBuf,
        /// Where and what.
        source: serde_json::Error,
    },
    /// A field does not say what it should.
    #[error("{path}: {field}: {wanted}")]
    Field {
        /// Which file.
        path: PathBuf,
        /// Which field.
        field: &'static str,
        /// What stands there in a good one.
        wanted: &'static str,
    },
}

#[derive(serde::Deserialize)]
struct File {
    version: u32,
    name: String,
    mode: String,
    id: String,
    registration_key: Option<Zeroizing<String>>,
    certificate_pem: Option<String>,
    private_key_file: Option<PathBuf>,
    #[serde(default)]
    key_sources: Vec<String>,
    #[serde(default = "one")]
    first_fresh: u64,
    gateway: GatewayFacts,
}

#[derive(serde::Deserialize)]
struct GatewayFacts {
    certificate_pem: String,
    key_id: u8,
    address: Option<String>,
}

const fn one() -> u64 {
    1
}

/// What a credential file says. It holds the device's secret, so it has no `Debug`.
#[derive(Clone)]
pub struct Credentials {
    /// The device's name at its gateway.
    pub name: String,
    /// What the device holds of itself.
    pub identity: Identity,
    /// Its gateway.
    pub gateway: Gateway,
    /// The profiles that its gateway allows it, the first of which is the one to use.
    pub profiles: Vec<Profile>,
    /// Where the gateway listens, `host:port`; empty where the file does not say.
    pub address: String,
    /// Where the counter begins (R123).
    pub first_fresh: u64,
}

fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut out = [0; N];
    if text.len() != 2 * N || !text.is_ascii() {
        return None;
    }
    for (to, pair) in out.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *to = u8::from_str_radix(core::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(out)
}

/// The DER of a certificate in PEM.
fn der(text: &str) -> Option<Vec<u8>> {
    let (_, rest) = text.split_once("-----BEGIN CERTIFICATE-----")?;
    let (body, _) = rest.split_once("-----END CERTIFICATE-----")?;
    let body: String = body.chars().filter(|char| !char.is_ascii_whitespace()).collect();
    BASE64_STANDARD.decode(body).ok()
}

/// Reads a text of bounded length, without the byte order mark that some editors put in front.
fn read_text(path: &Path) -> io::Result<Zeroizing<String>> {
    let invalid = |what| io::Error::new(io::ErrorKind::InvalidData, what);
    let file = fs::File::open(path)?;
    // Reserved up front: a growing vector would leave unwiped copies behind.
    let room = file.metadata()?.len().min(MAX_LEN) + 1;
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(room).unwrap_or(0)));
    file.take(MAX_LEN + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_LEN {
        return Err(invalid("is larger than 1 MiB, so it is no credential"));
    }
    let text =
        core::str::from_utf8(&bytes).map_err(|_| invalid("is not UTF-8 text; save it so"))?;
    Ok(Zeroizing::new(text.strip_prefix('\u{feff}').unwrap_or(text).to_owned()))
}

impl Credentials {
    /// Reads a credential file, and the private key that it names, if it names one.
    ///
    /// # Errors
    /// [`CredentialError`] says which file, which field, and what should stand there.
    pub fn read(path: impl AsRef<Path>) -> Result<Self, CredentialError> {
        let path = path.as_ref();
        let read = |path: &Path| {
            read_text(path).map_err(|source| {
                let path = path.to_owned();
                CredentialError::Read { path, source }
            })
        };
        let file: File = serde_json::from_str(&read(path)?).map_err(|source| {
            let path = path.to_owned();
            CredentialError::Json { path, source }
        })?;
        let field = |field, wanted| CredentialError::Field { path: path.to_owned(), field, wanted };

        if file.version != 1 {
            return Err(field("version", "1; this program knows no other"));
        }
        let id = hex(&file.id).ok_or_else(|| field("id", "8 bytes in hex"))?;
        let id = DeviceId(id);
        let (mode, fingerprint, secret) = if file.mode == "registered-id" {
            let wanted = || field("registration_key", "32 bytes in hex");
            let key = file.registration_key.as_ref().and_then(|text| hex(text));
            let key = DeviceKey::Registration(RegistrationKey(key.ok_or_else(wanted)?));
            (Mode::RegisteredId, Fingerprint::of_registered_id(&id), key)
        } else {
            let mode = match file.mode.as_str() {
                "certificate" => Mode::Certificate,
                "registered-certificate" => Mode::RegisteredCertificate,
                _ => {
                    let wanted = "certificate, registered-certificate or registered-id";
                    return Err(field("mode", wanted));
                }
            };
            let wanted = || field("certificate_pem", "the device's own certificate, PEM");
            let certificate = file.certificate_pem.as_ref().and_then(|text| der(text));
            let fingerprint = Fingerprint::of_certificate(&certificate.ok_or_else(wanted)?);
            let wanted_key = "the file with the device's private key (PEM, PKCS #8, P-256)";
            let wanted_key = || field("private_key_file", wanted_key);
            let name = file.private_key_file.as_ref().ok_or_else(wanted_key)?;
            // A name stands for a file beside this one.
            let pem = read(&path.parent().unwrap_or(Path::new("")).join(name))?;
            let secret = p256::SecretKey::from_pkcs8_pem(&pem).ok();
            let scalar = secret.and_then(|secret| {
                let mut bytes: [u8; 32] = secret.to_bytes().into();
                let scalar = SecretScalar::from_bytes(&bytes);
                bytes.zeroize();
                scalar
            });
            (mode, fingerprint, DeviceKey::Private(scalar.ok_or_else(wanted_key)?))
        };

        let wanted = "the gateway's certificate, PEM, with a P-256 key";
        let wanted = || field("gateway.certificate_pem", wanted);
        let certificate = der(&file.gateway.certificate_pem).ok_or_else(wanted)?;
        let key = certificate::public_key(&certificate).map_err(|_| wanted())?;
        let fingerprint_of_gateway = Fingerprint::of_certificate(&certificate);
        let gateway =
            Gateway { key_id: file.gateway.key_id, fingerprint: fingerprint_of_gateway, key };

        let sources: Option<Vec<_>> =
            file.key_sources.iter().map(|name| KeySource::from_name(name)).collect();
        let wanted = "ephemeral, xor-key, xor-random, client-key or client-random";
        let mut sources = sources.ok_or_else(|| field("key_sources", wanted))?;
        if sources.is_empty() {
            sources.push(KeySource::Ephemeral);
        }
        if file.first_fresh == 0 || file.first_fresh > 1 << 48 {
            return Err(field("first_fresh", "1 to 2^48"));
        }
        Ok(Self {
            name: file.name.to_string(),
            identity: Identity { id, fingerprint, key: secret },
            gateway,
            profiles: sources.into_iter().map(|source| Profile { mode, source }).collect(),
            address: file.gateway.address.unwrap_or_default(),
            first_fresh: file.first_fresh,
        })
    }

    /// What a device over this carrier is built from: its first profile.
    #[must_use]
    pub fn config(&self, transport: Transport) -> Config {
        let ephemeral = Profile {
            mode: if self.identity.key.signs() { Mode::Certificate } else { Mode::RegisteredId },
            source: KeySource::Ephemeral,
        };
        Config {
            identity: self.identity.clone(),
            gateway: self.gateway,
            profile: self.profiles.first().copied().unwrap_or(ephemeral),
            transport,
            fresh: self.first_fresh,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::format;

    use super::*;

    fn good() -> serde_json::Value {
        let certificate = include_str!("../tests/data/certificate.hex").trim();
        let pair = |at: usize| u8::from_str_radix(&certificate[at..at + 2], 16).unwrap();
        let der: Vec<u8> = (0..certificate.len()).step_by(2).map(pair).collect();
        let body = BASE64_STANDARD.encode(der);
        let (head, tail) = body.split_at(64);
        let pem =
            format!("-----BEGIN CERTIFICATE-----\n{head}\n{tail}\n-----END CERTIFICATE-----\n");
        serde_json::json!({
            "version": 1,
            "name": "boiler-1",
            "mode": "registered-id",
            "id": "0707070707070707",
            "registration_key": "09".repeat(32),
            "key_sources": ["xor-key", "ephemeral"],
            "first_fresh": 2,
            "gateway": {
                "certificate_pem": pem,
                "key_id": 3,
                "address": "gateway.example:4433",
            },
        })
    }

    fn read(value: &serde_json::Value) -> Result<Credentials, CredentialError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("boiler-1.json");
        fs::write(&path, value.to_string()).unwrap();
        Credentials::read(path)
    }

    #[test]
    fn what_the_file_says_is_what_the_device_gets() {
        let made = read(&good()).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(
            (made.name.as_str(), made.address.as_str()),
            ("boiler-1", "gateway.example:4433")
        );
        assert_eq!(made.identity.id, DeviceId([7; 8]));
        let config = made.config(Transport::Stream);
        assert_eq!((config.profile.name(), config.fresh), ("registered-id/xor-key", 2));
        assert_eq!(config.gateway.key_id, 3);
    }

    #[test]
    fn a_private_key_lies_where_the_file_says() {
        let dir = tempfile::tempdir().unwrap();
        let secret = p256::SecretKey::from_slice(&[7; 32]).unwrap();
        let key = p256::pkcs8::EncodePrivateKey::to_pkcs8_pem(&secret, Default::default()).unwrap();
        fs::write(dir.path().join("device.key"), key.as_bytes()).unwrap();
        let mut file = good();
        file["mode"] = "certificate".into();
        file["certificate_pem"] = file["gateway"]["certificate_pem"].clone();
        let path = dir.path().join("boiler-1.json");
        let read = |file: &serde_json::Value| {
            fs::write(&path, file.to_string()).unwrap();
            Credentials::read(&path)
        };
        assert!(read(&file).is_err_and(|error| error.to_string().contains("private_key_file")));
        file["private_key_file"] = "device.key".into();
        let made = read(&file).unwrap_or_else(|error| panic!("{error}"));
        let key = &made.identity.key;
        assert!(matches!(key, DeviceKey::Private(scalar) if scalar.expose() == &[7; 32]));
        assert_eq!(made.config(Transport::Datagram).profile.name(), "certificate/xor-key");
        file["private_key_file"] = "none.key".into();
        assert!(read(&file).is_err_and(|error| error.to_string().contains("none.key")));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let change = |field: &str, value: serde_json::Value| {
            let mut changed = good();
            *changed.pointer_mut(field).unwrap() = value;
            match read(&changed) {
                Ok(_) => panic!("{field} was taken"),
                Err(error) => error.to_string(),
            }
        };
        assert!(change("/id", "07".into()).contains("id: 8 bytes in hex"));
        assert!(
            change("/registration_key", "zz".repeat(32).into()).contains("registration_key: 32")
        );
        assert!(change("/mode", "none".into()).contains("mode: certificate,"));
        assert!(change("/mode", "certificate".into()).contains("certificate_pem: the device"));
        assert!(
            change("/gateway/certificate_pem", "AAAA".into()).contains("gateway.certificate_pem")
        );
        assert!(
            change("/key_sources", serde_json::json!(["x"])).contains("key_sources: ephemeral")
        );
        assert!(change("/first_fresh", 0.into()).contains("first_fresh: 1 to"));
        assert!(change("/gateway", serde_json::json!({})).contains("no credential of a device"));
    }
}
