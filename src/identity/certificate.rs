//! What Duet reads out of an X.509 certificate.

use base64ct::{Base64, Encoding as _};
use duet_protocol::identity::{Fingerprint, PublicKey};
use x509_parser::oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY};
use x509_parser::pem::Pem;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::x509::SubjectPublicKeyInfo;

use super::{Own, Reason, Utc, Validity};

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

/// What the key may be used for, by its certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    /// Signatures, as the handshake needs it, whatever else.
    Signatures,
    /// Signing certificates, and no signatures besides.
    Certificates,
    /// Neither.
    Other,
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
    use_of_key: Use,
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
        let bytes = match bytes {
            [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => return Err(Reason::Utf16),
            [0xef, 0xbb, 0xbf, rest @ ..] => rest,
            _ => bytes,
        };
        if bytes.trim_ascii_start().starts_with(b"{") {
            return Err(Reason::Json);
        }
        let mut certificates = Vec::new();
        let mut other = None;
        for block in Pem::iter_from_buffer(bytes) {
            let block = block.map_err(|_| Reason::DamagedPem)?;
            match block.label.as_str() {
                "CERTIFICATE" => certificates.push(block.contents),
                label if label.ends_with("PRIVATE KEY") && role == Role::Device => {
                    return Err(Reason::PrivateKeyInside);
                }
                label => other = other.or(other_pem(label)),
            }
        }
        match certificates.as_slice() {
            [] => Err(other.map_or_else(|| not_pem(bytes), Reason::OtherPem)),
            [der] => Self::from_der(der),
            several => Err(Reason::SeveralCertificates { count: several.len(), own: own(several) }),
        }
    }

    /// Reads a certificate in DER, to its last byte.
    ///
    /// # Errors
    /// [`Reason`] if it is no certificate or its key is not a P-256 key.
    pub fn from_der(der: &[u8]) -> Result<Self, Reason> {
        if der.len() > MAX_CERTIFICATE_LEN {
            return Err(Reason::CertificateTooLong(der.len()));
        }
        let (rest, parsed) = X509Certificate::from_der(der).map_err(|_| Reason::NotACertificate)?;
        if !rest.is_empty() {
            return Err(Reason::BytesBehind(rest.len()));
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
            use_of_key: match usage {
                Some(usage) if !usage.value.digital_signature() => {
                    if usage.value.key_cert_sign() {
                        Use::Certificates
                    } else {
                        Use::Other
                    }
                }
                _ => Use::Signatures,
            },
        })
    }

    /// Whether its key signs certificates, and nothing else.
    pub(super) fn is_authority(&self) -> bool {
        self.use_of_key == Use::Certificates
    }

    /// Whether the certificate may be used now. Devices and gateway alike sign; the gateway's key also decapsulates, for
    /// which keyAgreement is welcome but not required.
    ///
    /// # Errors
    /// [`Reason::Expired`], [`Reason::NotYetValid`], [`Reason::NotForSigning`] or [`Reason::Authority`].
    pub fn check(&self, now_s: i64) -> Result<(), Reason> {
        match self.use_of_key {
            Use::Signatures => {}
            Use::Certificates => return Err(Reason::Authority),
            Use::Other => return Err(Reason::NotForSigning),
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

/// A certificate, DER, as PEM.
#[must_use]
pub fn pem(der: &[u8]) -> String {
    let text = Base64::encode_string(der);
    let mut pem = String::with_capacity(text.len() + text.len() / 64 + 64);
    pem.push_str("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(64) {
        // Base64 is ASCII.
        pem.extend(line.iter().map(|byte| char::from(*byte)));
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

/// What a PEM block holds that somebody may take for a certificate.
fn other_pem(label: &str) -> Option<&'static str> {
    match label {
        "CERTIFICATE REQUEST" | "NEW CERTIFICATE REQUEST" => {
            Some("a certificate request, which a CA has still to sign")
        }
        "PUBLIC KEY" => Some("a public key alone"),
        "X509 CRL" => Some("a revocation list"),
        "PKCS7" | "CMS" => Some("a PKCS #7 bundle (`openssl pkcs7 -print_certs` takes it apart)"),
        "TRUSTED CERTIFICATE" => {
            Some("OpenSSL's own form of a certificate (`openssl x509` makes a plain one of it)")
        }
        label if label.ends_with("PRIVATE KEY") => Some("a private key"),
        _ => None,
    }
}

/// What text without a whole PEM block is.
fn not_pem(bytes: &[u8]) -> Reason {
    let begun = bytes.windows(11).any(|window| window == b"-----BEGIN ");
    if begun { Reason::DamagedPem } else { Reason::NotACertificate }
}

/// The certificate of a chain that issued none of the others.
fn own(chain: &[Vec<u8>]) -> Own {
    let parsed = chain.iter().map(|der| X509Certificate::from_der(der).map(|(_, parsed)| parsed));
    let Ok(parsed) = parsed.collect::<Result<Vec<_>, _>>() else { return Own::Unclear };
    let issued = |at: usize| {
        let others = parsed.iter().enumerate().filter(|(other, _)| *other != at);
        let subject = parsed[at].subject();
        let mut others = others.map(|(_, other)| other.issuer());
        others.any(|issuer| issuer.as_raw() == subject.as_raw())
    };
    let own: Vec<_> = (0..parsed.len()).filter(|at| !issued(*at)).collect();
    match own.as_slice() {
        [at] => Own::This(at + 1, parsed[*at].subject().to_string()),
        _ => Own::Unclear,
    }
}

pub(super) fn public_key(info: &SubjectPublicKeyInfo<'_>) -> Result<PublicKey, Reason> {
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
