//! What somebody proves who wants to be a device: that he has the private key of a public one.

use duet_protocol::identity::{Fingerprint, PublicKey};
use p256::ecdsa::signature::hazmat::PrehashVerifier as _;
use p256::ecdsa::{Signature, VerifyingKey};
use sha2::{Digest, Sha256};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::oid_registry::OID_SIG_ECDSA_WITH_SHA256;
use x509_parser::pem::Pem;
use x509_parser::prelude::FromDer as _;

use super::Reason;
use super::certificate::{MAX_CERTIFICATE_LEN, public_key};

/// What is signed in place of a request starts with this.
const DOMAIN: &[u8] = b"duet enrolment v1\0";

/// The key of a certificate request (PKCS #10, PEM or DER), whose signature proves that its sender has the private key.
/// Nothing else in it counts: whoever enrols a device decides what it is called.
///
/// # Errors
/// [`Reason::NotARequest`], [`Reason::Unproven`], or what is wrong with the key.
pub fn key_of_request(bytes: &[u8]) -> Result<PublicKey, Reason> {
    let decoded;
    let der = if bytes.first() == Some(&0x30) {
        bytes
    } else {
        let mut blocks = Pem::iter_from_buffer(bytes);
        let block = blocks.next().and_then(Result::ok).ok_or(Reason::NotARequest)?;
        if !matches!(block.label.as_str(), "CERTIFICATE REQUEST" | "NEW CERTIFICATE REQUEST") {
            return Err(Reason::NotARequest);
        }
        decoded = block.contents;
        decoded.as_slice()
    };
    if der.len() > MAX_CERTIFICATE_LEN {
        return Err(Reason::NotARequest);
    }
    let (rest, request) =
        X509CertificationRequest::from_der(der).map_err(|_| Reason::NotARequest)?;
    if !rest.is_empty() {
        return Err(Reason::NotARequest);
    }
    let info = &request.certification_request_info;
    let key = public_key(&info.subject_pki)?;
    let is_ours = request.signature_algorithm.algorithm == OID_SIG_ECDSA_WITH_SHA256;
    if !is_ours || !is_signed(&key, info.raw, &request.signature_value.data) {
        return Err(Reason::Unproven);
    }
    Ok(key)
}

/// A public key, an uncompressed point, whose owner has signed for this very token; `signature` is DER.
///
/// # Errors
/// [`Reason::Unproven`], or what is wrong with the key.
pub fn key_of_proof(point: &[u8], token: &[u8], signature: &[u8]) -> Result<PublicKey, Reason> {
    let point: [u8; 65] = point.try_into().map_err(|_| Reason::NotUncompressed)?;
    if point[0] != 4 {
        return Err(Reason::NotUncompressed);
    }
    let key = PublicKey(point);
    VerifyingKey::from_sec1_bytes(&key.0).map_err(|_| Reason::NotOnCurve)?;
    if is_signed(&key, &proof_of(&key, token), signature) { Ok(key) } else { Err(Reason::Unproven) }
}

/// What the owner of a key signs with ECDSA and SHA-256 to enrol with this token and no request.
#[must_use]
pub fn proof_of(key: &PublicKey, token: &[u8]) -> Vec<u8> {
    let digest: [u8; 32] = Sha256::digest(token).into();
    [DOMAIN, &digest, &key.0].concat()
}

fn is_signed(key: &PublicKey, message: &[u8], signature: &[u8]) -> bool {
    let Ok(key) = VerifyingKey::from_sec1_bytes(&key.0) else { return false };
    let Ok(signature) = Signature::from_der(signature) else { return false };
    key.verify_prehash(&Sha256::digest(message), &signature).is_ok()
}

/// SHA-256 of a public key, under which an enrolment is remembered.
#[must_use]
pub fn key_digest(key: &PublicKey) -> Fingerprint {
    Fingerprint(Sha256::new_with_prefix(b"duet enrolled key").chain_update(key.0).finalize().into())
}

#[cfg(test)]
mod tests {
    use p256::ecdsa::signature::hazmat::PrehashSigner as _;

    use super::*;

    fn pair() -> (p256::ecdsa::SigningKey, PublicKey) {
        let key = p256::ecdsa::SigningKey::from_slice(&[7; 32]).unwrap();
        let point = key.verifying_key().to_sec1_point(false);
        (key, PublicKey(point.as_bytes().try_into().unwrap()))
    }

    #[test]
    fn a_request_proves_its_key_and_an_altered_one_proves_nothing() {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let request = rcgen::CertificateParams::default().serialize_request(&key).unwrap();
        let found = key_of_request(request.pem().unwrap().as_bytes()).unwrap();
        assert_eq!(found.0.as_slice(), rcgen::PublicKeyData::der_bytes(&key));
        let der = request.der().to_vec();
        assert_eq!(key_of_request(&der).unwrap(), found);
        let mut taken = 0;
        for at in 0..der.len() {
            let mut altered = der.clone();
            altered[at] ^= 1;
            // What is around the signed part can be written in more than one way.
            let read = key_of_request(&altered);
            taken += usize::from(read.is_ok());
            assert!(read.is_err() || read.unwrap() == found, "byte {at}");
            assert!(key_of_request(&der[..at]).is_err(), "{at} bytes");
        }
        assert!(taken < 4, "{taken}");
        let certificate = super::super::create("d", 1, 1_800_000_000).unwrap();
        let said = key_of_request(certificate.certificate_pem.as_bytes());
        assert!(matches!(said, Err(Reason::NotARequest)));
        let other = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        let request = rcgen::CertificateParams::default().serialize_request(&other).unwrap();
        assert!(matches!(key_of_request(request.der()), Err(Reason::WrongCurve)));
    }

    #[test]
    fn a_bare_key_is_proven_for_one_token() {
        let (secret, key) = pair();
        let message = proof_of(&key, b"token");
        let signature: Signature = secret.sign_prehash(&Sha256::digest(&message)).unwrap();
        let der = signature.to_der();
        assert_eq!(key_of_proof(&key.0, b"token", der.as_bytes()).unwrap(), key);
        let unproven = key_of_proof(&key.0, b"other", der.as_bytes());
        assert!(matches!(unproven, Err(Reason::Unproven)));
        assert!(matches!(
            key_of_proof(&key.0[1..], b"token", der.as_bytes()),
            Err(Reason::NotUncompressed)
        ));
        let mut off = key.0;
        off[64] ^= 1;
        assert!(matches!(key_of_proof(&off, b"token", der.as_bytes()), Err(Reason::NotOnCurve)));
    }
}
