//! Certificates and keys in a directory, as PEM files that rustls and OpenSSL both read.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use rustls::crypto::CryptoProvider;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// One side's certificate and private key.
pub(super) struct Issued {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
}

/// Makes an authority and a certificate of it for each side: `authority.pem`, and `gateway` and `device` as
/// `.pem` and `.key`. All keys are on P-256.
///
/// # Errors
/// When the crypto library or the file system refuses.
pub fn create(dir: &Path) -> Result<()> {
    let new_key = || rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256);
    let write = |name: &str, text: String| {
        let path = dir.join(name);
        fs::write(&path, text).with_context(|| path.display().to_string())
    };
    let key = new_key()?;
    let mut authority = rcgen::CertificateParams::new(Vec::new())?;
    // OpenSSL takes a certificate whose issuer has its own name for self-signed.
    authority.distinguished_name.push(rcgen::DnType::CommonName, "authority");
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    write("authority.pem", authority.self_signed(&key)?.pem())?;
    let issuer = rcgen::Issuer::new(authority, key);
    for name in ["gateway", "device"] {
        let key = new_key()?;
        let mut leaf = rcgen::CertificateParams::new(vec![name.to_owned()])?;
        leaf.distinguished_name.push(rcgen::DnType::CommonName, name);
        write(&format!("{name}.pem"), leaf.signed_by(&key, &issuer)?.pem())?;
        write(&format!("{name}.key"), key.serialize_pem())?;
    }
    Ok(())
}

/// Reads one side's.
pub(super) fn load(dir: &Path, name: &str) -> Result<Issued> {
    let path = dir.join(format!("{name}.key"));
    let key = PrivateKeyDer::from_pem_file(&path).with_context(|| path.display().to_string())?;
    Ok(Issued { chain: vec![certificate(&dir.join(format!("{name}.pem")))?], key })
}

/// Reads the authority's certificate.
pub(super) fn authority(dir: &Path) -> Result<CertificateDer<'static>> {
    certificate(&dir.join("authority.pem"))
}

fn certificate(path: &Path) -> Result<CertificateDer<'static>> {
    CertificateDer::from_pem_file(path).with_context(|| path.display().to_string())
}

impl Issued {
    /// The key with its bare public key in the certificate's place.
    pub(super) fn raw(self, provider: &CryptoProvider) -> Result<CertifiedKey> {
        let key = provider.key_provider.load_private_key(self.key)?;
        let public = key.public_key().context("a key without a public key")?;
        Ok(CertifiedKey::new(vec![CertificateDer::from(public.to_vec())], key))
    }
}
