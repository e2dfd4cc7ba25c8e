//! A credential file, as `duet device add NAME --out NAME.json` writes it: everything that a device
//! must know. `docs/credential.schema.json` describes it.

use std::{
    borrow::ToOwned as _,
    fs,
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
    name: String,
    mode: String,
    id: String,
    registration_key: Option<Zeroizing<String>>,
    private_key: Option<PathBuf>,
    fingerprint: Option<String>,
    #[serde(default)]
    key_sources: Vec<String>,
    #[serde(default = "one")]
    first_fresh: u64,
    gateway: GatewayFacts,
}

#[derive(serde::Deserialize)]
struct GatewayFacts {
    certificate: String,
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

/// A certificate, as PEM or as base64 of its DER.
fn der(text: &str) -> Option<Vec<u8>> {
    let body = match text.split_once("-----BEGIN CERTIFICATE-----") {
        Some((_, rest)) => rest.split_once("-----END CERTIFICATE-----")?.0,
        None => text,
    };
    let body: String = body.chars().filter(|char| !char.is_ascii_whitespace()).collect();
    BASE64_STANDARD.decode(body).ok()
}

impl Credentials {
    /// Reads a credential file, and the private key that it names, if it names one.
    ///
    /// # Errors
    /// [`CredentialError`] says which file, which field, and what should stand there.
    pub fn read(path: impl AsRef<Path>) -> Result<Self, CredentialError> {
        let path = path.as_ref();
        let read = |path: &Path| {
            fs::read_to_string(path).map(Zeroizing::new).map_err(|source| {
                let path = path.to_owned();
                CredentialError::Read { path, source }
            })
        };
        let file: File = serde_json::from_str(&read(path)?).map_err(|source| {
            let path = path.to_owned();
            CredentialError::Json { path, source }
        })?;
        let field = |field, wanted| CredentialError::Field { path: path.to_owned(), field, wanted };

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
            let fingerprint = file.fingerprint.as_ref().and_then(|text| hex(text));
            let wanted = || field("fingerprint", "SHA-256 of the device's certificate, in hex");
            let wanted_key = "the file with the device's private key (PEM, PKCS #8, P-256)";
            let name = file.private_key.as_ref().ok_or_else(|| field("private_key", wanted_key))?;
            // A name stands for a file beside this one.
            let pem = read(&path.parent().unwrap_or(Path::new("")).join(name))?;
            let secret = p256::SecretKey::from_pkcs8_pem(&pem).ok();
            let scalar = secret.and_then(|secret| {
                let mut bytes: [u8; 32] = secret.to_bytes().into();
                let scalar = SecretScalar::from_bytes(&bytes);
                bytes.zeroize();
                scalar
            });
            let scalar = scalar.ok_or_else(|| field("private_key", wanted_key))?;
            (mode, Fingerprint(fingerprint.ok_or_else(wanted)?), DeviceKey::Private(scalar))
        };

        let wanted = "the gateway's certificate, PEM or base64 of its DER, with a P-256 key";
        let certificate =
            der(&file.gateway.certificate).ok_or_else(|| field("gateway.certificate", wanted))?;
        let key = certificate::public_key(&certificate)
            .map_err(|_| field("gateway.certificate", wanted))?;
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
        serde_json::json!({
            "name": "boiler-1",
            "mode": "registered-id",
            "id": "0707070707070707",
            "registration_key": "09".repeat(32),
            "key_sources": ["xor-key", "ephemeral"],
            "first_fresh": 2,
            "gateway": {
                "certificate": BASE64_STANDARD.encode(der),
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
        // The same certificate as PEM.
        let mut pem = good();
        let der = pem["gateway"]["certificate"].as_str().unwrap().to_string();
        pem["gateway"]["certificate"] = format!(
            "-----BEGIN CERTIFICATE-----\n{}\n{}\n-----END CERTIFICATE-----\n",
            &der[..64],
            &der[64..]
        )
        .into();
        let again = read(&pem).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(again.gateway, made.gateway);
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
        assert!(change("/mode", "certificate".into()).contains("private_key: the file"));
        assert!(change("/gateway/certificate", "AAAA".into()).contains("gateway.certificate"));
        assert!(
            change("/key_sources", serde_json::json!(["x"])).contains("key_sources: ephemeral")
        );
        assert!(change("/first_fresh", 0.into()).contains("first_fresh: 1 to"));
        assert!(change("/gateway", serde_json::json!({})).contains("no credential of a device"));
    }
}
