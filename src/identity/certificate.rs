//! What Duet reads out of an X.509 certificate.

use duet_protocol::identity::{Fingerprint, PublicKey};
use x509_parser::oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY};
use x509_parser::pem::Pem;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::x509::SubjectPublicKeyInfo;

use super::{Reason, Utc, Validity};

/// The longest certificate accepted, in bytes of DER. Nothing but its hash is ever sent, so this
/// only bounds the registry.
pub const MAX_CERTIFICATE_LEN: usize = 8 * 1024;

/// Whose certificate it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The gateway's: its key signs, and opens HELLOs.
    Gateway,
    /// A device's: its key signs HELLOs.
    Device,
}

/// A certificate with what the handshake needs from it. The key is a point on P-256.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// The whole certificate, DER.
    pub der: Vec<u8>,
    /// SHA-256 of it: `cS` or `cD`.
    pub fingerprint: Fingerprint,
    /// Its one key.
    pub key: PublicKey,
    /// When it may be used.
    pub validity: Validity,
    /// Its subject, for people.
    pub subject: String,
    signs: bool,
}

impl Certificate {
    /// Reads a certificate in PEM or DER. Says nothing about today: see [`check`](Self::check).
    ///
    /// # Errors
    /// [`Reason`]; a device's file must not hold a private key as well.
    pub fn parse(bytes: &[u8], role: Role) -> Result<Self, Reason> {
        // DER begins with the tag of a SEQUENCE, which no PEM file does.
        if bytes.first() == Some(&0x30) {
            return Self::from_der(bytes);
        }
        let mut certificates = Vec::new();
        for block in Pem::iter_from_buffer(bytes) {
            let block = block.map_err(|_| Reason::NotACertificate)?;
            match block.label.as_str() {
                "CERTIFICATE" => certificates.push(block.contents),
                label if label.ends_with("PRIVATE KEY") && role == Role::Device => {
                    return Err(Reason::PrivateKeyInside);
                }
                _ => {}
            }
        }
        match certificates.as_slice() {
            [] => Err(Reason::NotACertificate),
            [der] => Self::from_der(der),
            several => Err(Reason::SeveralCertificates(several.len())),
        }
    }

    /// Reads a certificate in DER, to its last byte.
    ///
    /// # Errors
    /// [`Reason`] if it is no certificate or its key is not a P-256 key.
    pub fn from_der(der: &[u8]) -> Result<Self, Reason> {
        if der.len() > MAX_CERTIFICATE_LEN {
            return Err(Reason::TooLarge);
        }
        let (rest, parsed) = X509Certificate::from_der(der).map_err(|_| Reason::NotACertificate)?;
        if !rest.is_empty() {
            return Err(Reason::NotACertificate);
        }
        let usage = parsed.key_usage().map_err(|_| Reason::NotACertificate)?;
        let validity = parsed.validity();
        Ok(Self {
            der: der.to_vec(),
            fingerprint: Fingerprint::of_certificate(der),
            key: public_key(parsed.public_key())?,
            validity: Validity {
                not_before_s: validity.not_before.timestamp(),
                not_after_s: validity.not_after.timestamp(),
            },
            subject: parsed.subject().to_string(),
            signs: usage.is_none_or(|usage| usage.value.digital_signature()),
        })
    }

    /// Whether the certificate may be used now. Devices and gateway alike sign; the gateway's key also decapsulates, for
    /// which keyAgreement is welcome but not required.
    ///
    /// # Errors
    /// [`Reason::Expired`], [`Reason::NotYetValid`] or [`Reason::NotForSigning`].
    pub fn check(&self, now_s: i64) -> Result<(), Reason> {
        if !self.signs {
            return Err(Reason::NotForSigning);
        }
        if now_s > self.validity.not_after_s {
            return Err(Reason::Expired(Utc(self.validity.not_after_s)));
        }
        if now_s < self.validity.not_before_s {
            return Err(Reason::NotYetValid(Utc(self.validity.not_before_s)));
        }
        Ok(())
    }
}

fn public_key(info: &SubjectPublicKeyInfo<'_>) -> Result<PublicKey, Reason> {
    if info.algorithm.algorithm != OID_KEY_TYPE_EC_PUBLIC_KEY {
        return Err(Reason::NotEllipticCurve);
    }
    let curve = info.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
    if curve != Some(OID_EC_P256) {
        return Err(Reason::WrongCurve);
    }
    let point: &[u8] = &info.subject_public_key.data;
    let point: [u8; 65] = point.try_into().map_err(|_| Reason::NotUncompressed)?;
    if point[0] != 4 {
        return Err(Reason::NotUncompressed);
    }
    p256::PublicKey::from_sec1_bytes(&point).map_err(|_| Reason::NotOnCurve)?;
    Ok(PublicKey(point))
}
