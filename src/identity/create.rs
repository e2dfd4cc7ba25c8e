//! Makes a self-signed certificate with its key, for `duet init` and for test fleets.

use std::time::Duration;

use rcgen::{
    CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, date_time_ymd,
};
use zeroize::Zeroizing;

/// Clocks of freshly installed machines run behind: the window opens a little early.
pub(super) const EARLY_S: u64 = 3600;

/// A new certificate and its key, not yet on disk.
pub struct Created {
    /// The certificate, PEM.
    pub certificate_pem: String,
    /// The certificate, DER.
    pub certificate_der: Vec<u8>,
    /// The key, PKCS#8 PEM; wiped when dropped.
    pub key_pem: Zeroizing<String>,
}

/// Makes a P-256 key and a certificate for it, valid from an hour before `now_s` for `days` days.
///
/// # Errors
/// Those of the certificate writer: a name that X.509 cannot carry.
pub fn create(common_name: &str, days: u32, now_s: i64) -> Result<Created, rcgen::Error> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let now_s = now_s.try_into().unwrap_or(0u64);
    let epoch = date_time_ymd(1970, 1, 1);
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.not_before = epoch + Duration::from_secs(now_s.saturating_sub(EARLY_S));
    params.not_after = epoch + Duration::from_secs(now_s + u64::from(days) * 86_400);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyAgreement];
    let certificate = params.self_signed(&key)?;
    Ok(Created {
        certificate_pem: certificate.pem(),
        certificate_der: certificate.der().to_vec(),
        key_pem: Zeroizing::new(key.serialize_pem()),
    })
}
