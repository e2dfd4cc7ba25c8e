//! Who says that a key is a device's: a small CA of the gateway's own, which `duet ca init` makes, or another one whose
//! certificates are taken at enrolment.
//!
//! A handshake asks neither: it compares the whole certificate with the one that was registered. What a CA is for is
//! the moment of enrolment alone. The CA's key is read from its file when a certificate is issued, and wiped
//! afterwards.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use duet_protocol::identity::PublicKey;
use p256::ecdsa::signature::hazmat::PrehashSigner as _;
use p256::ecdsa::{Signature, SigningKey};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SerialNumber, date_time_ymd,
};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, UnixTime};
use sha2::{Digest, Sha256};
use thiserror::Error;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use zeroize::Zeroizing;

use super::certificate::{Certificate, Role};
use super::create::EARLY_S;
use super::{Created, IdentityError, Reason, SecretScalar, Utc, Validity, load_secret, read};

/// Why a CA cannot be used.
#[derive(Debug, Error)]
pub enum AuthorityError {
    /// A file is none that can be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The certificate of somebody who may not issue any.
    #[error("{}: is not the certificate of a CA; `duet ca init` makes one", .0.display())]
    NotAuthority(PathBuf),
    /// A certificate that this program would not name rightly in what it issues.
    #[error(
        "{}: this CA was not made by `duet ca init`; leave its key where it is, and name its certificate as \
         enrol.trusted: then devices bring certificates that it has issued", .0.display()
    )]
    Foreign(PathBuf),
    /// Its certificate has ended.
    #[error("{}: the CA's certificate ended on {}; make another with `duet ca init`, or correct this machine's clock", .0.display(), .1)]
    Ended(PathBuf, Utc),
    /// Its certificate is not valid yet.
    #[error("{}: the CA's certificate is not valid before {}; check this machine's clock", .0.display(), .1)]
    NotYet(PathBuf, Utc),
    /// No certificates in it.
    #[error("{}: no certificate of a CA in PEM that can be used", .0.display())]
    NothingTrusted(PathBuf),
    /// The certificate writer failed.
    #[error("the certificate cannot be made: {0}")]
    Make(#[from] rcgen::Error),
    /// The kernel gave none.
    #[error("the kernel gave no random bytes")]
    Randomness,
}

/// A CA with its key. It holds a secret, so it has no `Debug`.
pub struct Authority {
    path: PathBuf,
    certificate: Certificate,
    common_name: String,
    secret: SecretScalar,
}

/// A public key as the certificate writer takes it.
struct Subject<'a>(&'a PublicKey);

/// The CA's key as the certificate writer takes it.
struct Signer<'a>(&'a Authority);

impl rcgen::PublicKeyData for Subject<'_> {
    fn der_bytes(&self) -> &[u8] {
        &self.0.0
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

impl rcgen::PublicKeyData for Signer<'_> {
    fn der_bytes(&self) -> &[u8] {
        &self.0.certificate.key.0
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

impl rcgen::SigningKey for Signer<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let failed = |_| rcgen::Error::RemoteKeyError;
        let key = SigningKey::from_slice(self.0.secret.expose()).map_err(failed)?;
        let signature: Signature = key.sign_prehash(&Sha256::digest(message)).map_err(failed)?;
        Ok(signature.to_der().as_bytes().to_vec())
    }
}

/// Makes a CA: a P-256 key and a certificate for it that may issue certificates of devices and no CA below it.
///
/// # Errors
/// Those of the certificate writer: a name that X.509 cannot carry.
pub fn create_authority(common_name: &str, days: u32, now_s: i64) -> Result<Created, rcgen::Error> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = params(common_name, now_s, now_s.saturating_add(i64::from(days) * 86_400));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let certificate = params.self_signed(&key)?;
    Ok(Created {
        certificate_pem: certificate.pem(),
        certificate_der: certificate.der().to_vec(),
        key_pem: Zeroizing::new(key.serialize_pem()),
    })
}

fn params(common_name: &str, now_s: i64, end_s: i64) -> CertificateParams {
    let epoch = date_time_ymd(1970, 1, 1);
    let at = |unix_s: i64| epoch + Duration::from_secs(u64::try_from(unix_s).unwrap_or(0));
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.not_before = at(now_s.saturating_sub_unsigned(EARLY_S));
    params.not_after = at(end_s);
    params
}

impl Authority {
    /// Reads a CA's certificate and its key, which nobody but its owner may read, and sees to it that the CA can issue
    /// certificates now.
    ///
    /// # Errors
    /// [`AuthorityError`], naming the file.
    pub fn load(certificate: &Path, key: &Path, now_s: i64) -> Result<Self, AuthorityError> {
        let path = certificate.to_owned();
        let bytes = read(certificate).map_err(|reason| reason.at(certificate))?;
        let parsed = Certificate::parse(&bytes, Role::Gateway);
        let certificate = parsed.map_err(|reason| reason.at(certificate))?;
        if !certificate.is_authority() {
            return Err(AuthorityError::NotAuthority(path));
        }
        let Validity { not_before_s, not_after_s } = certificate.validity;
        if now_s > not_after_s {
            return Err(AuthorityError::Ended(path, Utc(not_after_s)));
        }
        if now_s < not_before_s {
            return Err(AuthorityError::NotYet(path, Utc(not_before_s)));
        }
        let common_name = match X509Certificate::from_der(&certificate.der) {
            Ok((_, parsed)) => {
                let names = parsed.subject().iter_common_name().next();
                names.and_then(|name| name.as_str().ok()).map(str::to_owned)
            }
            Err(_) => None,
        };
        let Some(common_name) = common_name else { return Err(AuthorityError::Foreign(path)) };
        let secret = load_secret(key, &certificate.key)?;
        let authority = Self { path, certificate, common_name, secret };
        // What it issues must lead back to it by name.
        authority.issue("probe", &authority.certificate.key, 1, now_s)?;
        Ok(authority)
    }

    /// Its certificate.
    #[must_use]
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// Issues a certificate for a device's key, valid for so many days or as long as the CA. Returns it in DER.
    ///
    /// # Errors
    /// [`AuthorityError`].
    pub fn issue(
        &self,
        name: &str,
        key: &PublicKey,
        days: u32,
        now_s: i64,
    ) -> Result<Vec<u8>, AuthorityError> {
        let end_s = now_s.saturating_add(i64::from(days) * 86_400);
        let mut params = params(name, now_s, end_s.min(self.certificate.validity.not_after_s));
        let mut serial = [0; 16];
        getrandom::fill(&mut serial).map_err(|_| AuthorityError::Randomness)?;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let mut own = CertificateParams::default();
        own.distinguished_name = DistinguishedName::new();
        own.distinguished_name.push(DnType::CommonName, self.common_name.as_str());
        own.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let issuer = Issuer::new(own, Signer(self));
        let der = params.signed_by(&Subject(key), &issuer)?.der().to_vec();
        let led_back = match (
            X509Certificate::from_der(&der),
            X509Certificate::from_der(&self.certificate.der),
        ) {
            (Ok((_, issued)), Ok((_, own))) => issued.issuer().as_raw() == own.subject().as_raw(),
            _ => false,
        };
        if led_back { Ok(der) } else { Err(AuthorityError::Foreign(self.path.clone())) }
    }
}

/// Other CAs, whose certificates are taken at enrolment.
pub struct Trusted(Arc<dyn ClientCertVerifier>);

impl Trusted {
    /// Reads their certificates, PEM. Those that are not valid now are left out.
    ///
    /// # Errors
    /// [`AuthorityError`], if nothing is left.
    pub fn load(path: &Path, now_s: i64) -> Result<Self, AuthorityError> {
        let bytes = read(path).map_err(|reason| reason.at(path))?;
        let nothing = || AuthorityError::NothingTrusted(path.to_owned());
        let mut roots = rustls::RootCertStore::empty();
        let mut ended = None;
        for der in CertificateDer::pem_slice_iter(&bytes) {
            let der = der.map_err(|_| nothing())?;
            let (_, parsed) = X509Certificate::from_der(&der).map_err(|_| nothing())?;
            if !parsed.is_ca() {
                return Err(AuthorityError::NotAuthority(path.to_owned()));
            }
            let end_s = parsed.validity().not_after.timestamp();
            let start_s = parsed.validity().not_before.timestamp();
            if end_s < now_s {
                ended = Some(AuthorityError::Ended(path.to_owned(), Utc(end_s)));
            } else if start_s > now_s {
                ended = Some(AuthorityError::NotYet(path.to_owned(), Utc(start_s)));
            } else {
                roots.add(der.clone()).map_err(|_| nothing())?;
            }
        }
        if roots.is_empty() {
            return Err(ended.unwrap_or_else(nothing));
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        verifier.build().map(Self).map_err(|_| nothing())
    }

    /// Whether one of them has issued this certificate, DER, and it is valid now.
    ///
    /// # Errors
    /// [`Reason::Untrusted`], if not.
    pub fn check(&self, der: &[u8], now_s: i64) -> Result<(), Reason> {
        let now = UnixTime::since_unix_epoch(Duration::from_secs(now_s.try_into().unwrap_or(0)));
        let leaf = CertificateDer::from(der);
        self.0.verify_client_cert(&leaf, &[], now).map(drop).map_err(|_| Reason::Untrusted)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{now_s, write_new};
    use super::*;

    fn placed(created: &Created) -> (tempfile::TempDir, PathBuf, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let [certificate, key] = ["ca.pem", "ca.key"].map(|name| dir.path().join(name));
        write_new(&certificate, created.certificate_pem.as_bytes(), 0o644).unwrap();
        write_new(&key, created.key_pem.as_bytes(), 0o600).unwrap();
        (dir, certificate, key)
    }

    #[test]
    fn what_a_ca_issues_leads_back_to_it_and_ends_with_it() {
        let now_s = now_s();
        let (_dir, certificate, key) = placed(&create_authority("our devices", 10, now_s).unwrap());
        let authority = Authority::load(&certificate, &key, now_s).unwrap();
        let device = super::super::create("d", 1, now_s).unwrap();
        let public = Certificate::from_der(&device.certificate_der).unwrap().key;
        let der = authority.issue("boiler-1", &public, 365, now_s).unwrap();
        let issued = Certificate::from_der(&der).unwrap();
        issued.check(now_s).unwrap();
        assert_eq!((issued.key, issued.subject.as_str()), (public, "CN=boiler-1"));
        assert_eq!(issued.validity.not_after_s, authority.certificate().validity.not_after_s);
        assert_ne!(der, authority.issue("boiler-1", &public, 365, now_s).unwrap());
        let trusted = Trusted::load(&certificate, now_s).unwrap();
        trusted.check(&der, now_s).unwrap();
        assert!(matches!(trusted.check(&device.certificate_der, now_s), Err(Reason::Untrusted)));
        assert!(trusted.check(&der, now_s + 11 * 86_400).is_err(), "it has ended");
        let mut forged = der.clone();
        *forged.last_mut().unwrap() ^= 1;
        assert!(trusted.check(&forged, now_s).is_err());
    }

    #[test]
    fn a_ca_that_cannot_issue_is_refused_with_its_reason() {
        let now_s = now_s();
        let load = |created: &Created, at_s: i64| {
            let (_dir, certificate, key) = placed(created);
            Authority::load(&certificate, &key, at_s).map(drop).unwrap_err()
        };
        let good = create_authority("c", 10, now_s).unwrap();
        let later = now_s + 11 * 86_400;
        assert!(matches!(load(&good, later), AuthorityError::Ended(..)));
        assert!(matches!(load(&good, now_s - 86_400), AuthorityError::NotYet(..)));
        let device = super::super::create("d", 1, now_s).unwrap();
        assert!(matches!(load(&device, now_s), AuthorityError::NotAuthority(_)));
        let other = Created {
            certificate_pem: good.certificate_pem.clone(),
            certificate_der: Vec::new(),
            key_pem: create_authority("c", 10, now_s).unwrap().key_pem,
        };
        assert!(load(&other, now_s).to_string().contains("does not belong"));
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = params("x", now_s, later);
        params.distinguished_name.push(DnType::OrganizationName, "somebody");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let foreign = Created {
            certificate_pem: params.self_signed(&key).unwrap().pem(),
            certificate_der: Vec::new(),
            key_pem: Zeroizing::new(key.serialize_pem()),
        };
        assert!(matches!(load(&foreign, now_s), AuthorityError::Foreign(_)));
        let (_dir, certificate, key) = placed(&good);
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        std::fs::set_permissions(&key, open).unwrap();
        let said = Authority::load(&certificate, &key, now_s).map(drop).unwrap_err().to_string();
        assert!(said.contains("chmod 600"), "{said}");
        assert!(matches!(Trusted::load(&certificate, later), Err(AuthorityError::Ended(..))));
        assert!(matches!(Trusted::load(&key, now_s), Err(AuthorityError::NothingTrusted(_))));
    }
}
