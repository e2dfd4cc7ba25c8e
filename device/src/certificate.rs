//! The P-256 key inside a certificate: all that a device takes from its gateway's. It trusts the
//! certificate because it was given it, so neither names nor dates nor signatures matter here.

use duet_protocol::identity::PublicKey;

/// Why there is no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// The bytes are no X.509 certificate in DER.
    #[error("this is no X.509 certificate in DER")]
    Malformed,
    /// The certificate's key is of another kind.
    #[error("the certificate's key is no P-256 key")]
    KeyKind,
}

const SEQUENCE: u8 = 0x30;
const BIT_STRING: u8 = 0x03;
/// The optional version field of a certificate.
const VERSION: u8 = 0xa0;
/// id-ecPublicKey on prime256v1 (RFC 5480).
const P256: [u8; 19] = [
    0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d,
    0x03, 0x01, 0x07,
];

/// One value: its tag, its content, and what stands behind it.
fn value(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, first], rest) = bytes.split_first_chunk::<2>()?;
    let (len, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81 => rest.split_first().map(|(&len, rest)| (usize::from(len), rest))?,
        0x82 => {
            let (&len, rest) = rest.split_first_chunk::<2>()?;
            (usize::from(u16::from_be_bytes(len)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(len)?;
    Some((tag, content, rest))
}

fn expect(tag: u8, bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    value(bytes).and_then(|(found, content, rest)| (found == tag).then_some((content, rest)))
}

/// The subject's public key info: its content.
fn key_info(der: &[u8]) -> Option<&[u8]> {
    let (certificate, _) = expect(SEQUENCE, der).filter(|(_, rest)| rest.is_empty())?;
    let (mut fields, _) = expect(SEQUENCE, certificate)?;
    if fields.first() == Some(&VERSION) {
        fields = value(fields)?.2;
    }
    // Serial number, signature algorithm, issuer, validity, subject.
    for _ in 0..5 {
        fields = value(fields)?.2;
    }
    Some(expect(SEQUENCE, fields)?.0)
}

/// The public key of a certificate in DER; checked to be on the curve (R7).
///
/// # Errors
/// [`CertificateError`].
pub fn public_key(der: &[u8]) -> Result<PublicKey, CertificateError> {
    let info = key_info(der).ok_or(CertificateError::Malformed)?;
    let (algorithm, rest) = expect(SEQUENCE, info).ok_or(CertificateError::Malformed)?;
    if algorithm != P256 {
        return Err(CertificateError::KeyKind);
    }
    let (bits, _) = expect(BIT_STRING, rest).ok_or(CertificateError::Malformed)?;
    let (unused, point) = bits.split_first().ok_or(CertificateError::Malformed)?;
    if *unused != 0 {
        return Err(CertificateError::Malformed);
    }
    checked(point).ok_or(CertificateError::KeyKind)
}

/// The point that these bytes encode. A device with the small curve has no other one for this.
#[cfg(feature = "compact")]
#[must_use]
pub fn checked(sec1: &[u8]) -> Option<PublicKey> {
    let key = PublicKey(sec1.try_into().ok()?);
    crate::compact::is_point(&key).then_some(key)
}

/// The point that these bytes encode.
#[cfg(not(feature = "compact"))]
#[must_use]
pub fn checked(sec1: &[u8]) -> Option<PublicKey> {
    PublicKey::from_sec1(sec1)
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    /// `openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -subj /CN=duet -days 30 -nodes`
    const CERTIFICATE: &str = include_str!("../tests/data/certificate.hex");
    const KEY: &str = include_str!("../tests/data/public-key.hex");

    fn bytes(hex: &str) -> Vec<u8> {
        let hex = hex.trim().as_bytes();
        let digit = |byte: u8| char::from(byte).to_digit(16).unwrap();
        let pair = |pair: &[u8]| u8::try_from(digit(pair[0]) << 4 | digit(pair[1])).unwrap();
        hex.chunks(2).map(pair).collect()
    }

    #[test]
    fn the_key_of_a_real_certificate_is_found() {
        let key = public_key(&bytes(CERTIFICATE)).unwrap();
        assert_eq!(key.0.to_vec(), bytes(KEY));
    }

    #[test]
    fn damaged_certificates_are_refused_without_a_panic() {
        let whole = bytes(CERTIFICATE);
        for len in 0..whole.len() {
            assert!(public_key(&whole[..len]).is_err(), "{len}");
        }
        for at in 0..whole.len() {
            let mut touched = whole.clone();
            touched[at] ^= 0x81;
            // Whatever comes of it, it is a point of the curve.
            if let Ok(key) = public_key(&touched) {
                assert!(PublicKey::from_sec1(&key.0).is_some());
            }
        }
    }
}
