//! The credential: all that a device needs, as JSON or as a C header.
//!
//! `docs/credential.schema.json` describes the JSON. A registration key is in it; a device's private key never is,
//! for it never comes here.

use std::fmt::Write as _;

use duet_device::compact::comb;
use duet_protocol::identity::DeviceId;
use duet_protocol::mark::FIRST_FRESH;
use serde::Serialize;
use thiserror::Error;
use zeroize::Zeroizing;

use super::wire::{DeviceLine, GatewayFacts};
use crate::hex::{self, Hex};
use crate::identity::{Certificate, Reason, Role, pem};

/// The version of the form.
const VERSION: u32 = 1;

/// Where a counter begins whose credential existed before it was registered (R123).
const KNOWN_FIRST_FRESH: u64 = 1;

/// Why a line makes no credential.
#[derive(Debug, Error)]
pub enum CredentialError {
    /// A certificate in it is none.
    #[error("certificate: {0}")]
    Certificate(#[from] Reason),
    /// Neither an id nor a certificate.
    #[error("no id")]
    NoId,
    /// The gateway's public key is no point of the curve.
    #[error("the gateway's public key is not on the curve")]
    GatewayKey,
    /// A field is not hexadecimal.
    #[error("{0}: not hexadecimal")]
    Hexadecimal(String),
    /// It cannot be written as JSON.
    #[error("the credential cannot be written: {0}")]
    Json(#[from] serde_json::Error),
    /// It cannot be written as text.
    #[error("the credential cannot be written: {0}")]
    Text(#[from] std::fmt::Error),
}

/// A credential. It may hold a secret, so it has no `Debug`.
#[derive(Serialize)]
pub struct Credential<'a> {
    version: u32,
    name: &'a str,
    mode: &'a str,
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    registration_key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate_pem: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fingerprint: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    private_key_file: Option<&'a str>,
    key_sources: Vec<&'a str>,
    first_fresh: u64,
    gateway: &'a GatewayFacts,
}

impl<'a> Credential<'a> {
    /// The credential of a device that is registered by this line.
    ///
    /// # Errors
    /// [`CredentialError`].
    pub fn of(line: &'a DeviceLine, gateway: &'a GatewayFacts) -> Result<Self, CredentialError> {
        let certificate = match &line.certificate {
            Some(text) => Some(certificate(text)?),
            None => None,
        };
        let id = match (&line.id, &certificate) {
            (Some(id), _) => id.to_ascii_lowercase(),
            (None, Some(certificate)) => {
                DeviceId::of_certificate(&certificate.fingerprint).to_string()
            }
            (None, None) => return Err(CredentialError::NoId),
        };
        let sources = line.key_sources.as_deref().unwrap_or("ephemeral");
        Ok(Self {
            version: VERSION,
            name: &line.name,
            mode: &line.mode,
            id,
            registration_key: line.key.as_deref(),
            fingerprint: certificate.as_ref().map(|c| Hex(&c.fingerprint.0).to_string()),
            certificate_pem: certificate.map(|certificate| pem(&certificate.der)),
            private_key_file: None,
            key_sources: sources.split(',').map(str::trim).collect(),
            first_fresh: if line.made { FIRST_FRESH } else { KNOWN_FIRST_FRESH },
            gateway,
        })
    }

    /// Says where the device keeps its private key.
    #[must_use]
    pub fn with_private_key_file(self, path: Option<&'a str>) -> Self {
        Self { private_key_file: path, ..self }
    }

    /// Writes the credential as a line of JSON.
    ///
    /// # Errors
    /// [`CredentialError`].
    pub fn write_json(&self, out: &mut Zeroizing<Vec<u8>>) -> Result<(), CredentialError> {
        serde_json::to_writer(&mut **out, self)?;
        out.push(b'\n');
        Ok(())
    }

    /// Writes the credential as a C header: macros alone, so that what is not used costs nothing.
    ///
    /// # Errors
    /// [`CredentialError`].
    pub fn write_c(&self, out: &mut Zeroizing<Vec<u8>>) -> Result<(), CredentialError> {
        let mut text = Zeroizing::new(String::with_capacity(32 * 1024));
        let secret = match self.registration_key {
            Some(_) => "It holds a secret: keep it out of version control.",
            None => "The device's private key is not in it.",
        };
        writeln!(
            text,
            "/* The credential of {}, made by `duet device add`. {secret} */",
            self.name
        )?;
        writeln!(text, "#ifndef DUET_CREDENTIAL_H\n#define DUET_CREDENTIAL_H\n")?;
        let mode = match self.mode {
            "certificate" => 0,
            "registered-certificate" => 1,
            _ => 2,
        };
        writeln!(text, "#define DUET_CREDENTIAL_NAME \"{}\"", self.name)?;
        writeln!(text, "/* 0 certificate, 1 registered-certificate, 2 registered-id */")?;
        writeln!(text, "#define DUET_CREDENTIAL_MODE {mode}")?;
        let mut bytes = |name: &str, hexadecimal: &str| -> Result<(), CredentialError> {
            let Some(bytes) = hex::decode(hexadecimal).map(Zeroizing::new) else {
                return Err(CredentialError::Hexadecimal(name.to_ascii_lowercase()));
            };
            write!(text, "#define DUET_CREDENTIAL_{name} {{")?;
            for (at, byte) in bytes.iter().enumerate() {
                write!(text, "{}0x{byte:02x},", if at % 16 == 0 { " \\\n    " } else { " " })?;
            }
            writeln!(text, " \\\n}}")?;
            Ok(())
        };
        bytes("ID", &self.id)?;
        if let Some(key) = self.registration_key {
            bytes("REGISTRATION_KEY", key)?;
        }
        if let Some(fingerprint) = &self.fingerprint {
            bytes("FINGERPRINT", fingerprint)?;
        }
        if let Some(pem) = &self.certificate_pem {
            bytes("CERTIFICATE", &Hex(&certificate(pem)?.der).to_string())?;
        }
        bytes("GATEWAY_FINGERPRINT", &self.gateway.fingerprint)?;
        bytes("GATEWAY_PUBLIC_KEY", &self.gateway.public_key)?;
        let gateway = certificate(&self.gateway.certificate_pem)?;
        bytes("GATEWAY_CERTIFICATE", &Hex(&gateway.der).to_string())?;
        let comb = comb(&gateway.key).ok_or(CredentialError::GatewayKey)?;
        writeln!(text, "/* multiples of that key: see gateway_comb in duet.h */")?;
        write!(text, "#define DUET_CREDENTIAL_GATEWAY_COMB {{")?;
        for (at, word) in comb.as_flattened().as_flattened().iter().enumerate() {
            write!(text, "{}0x{word:08x},", if at % 8 == 0 { " \\\n    " } else { " " })?;
        }
        writeln!(text, " \\\n}}")?;
        writeln!(text, "#define DUET_CREDENTIAL_GATEWAY_KEY_ID {}", self.gateway.key_id)?;
        if let Some(address) = &self.gateway.address {
            writeln!(text, "#define DUET_CREDENTIAL_GATEWAY_ADDRESS \"{address}\"")?;
        }
        for source in &self.key_sources {
            let name = source.to_ascii_uppercase().replace('-', "_");
            writeln!(text, "#define DUET_CREDENTIAL_ALLOWS_{name} 1")?;
        }
        writeln!(text, "#define DUET_CREDENTIAL_FIRST_FRESH {}u", self.first_fresh)?;
        writeln!(text, "\n#endif")?;
        out.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

/// A certificate as a line gives it: PEM, or DER in hexadecimal.
fn certificate(text: &str) -> Result<Certificate, CredentialError> {
    let bytes = hex::decode(text.trim()).unwrap_or_else(|| text.as_bytes().to_vec());
    Ok(Certificate::parse(&bytes, Role::Gateway)?)
}
