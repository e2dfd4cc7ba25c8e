//! Files made here by `rcgen`; those made by `openssl` are in `tests/cli`.

use std::os::unix::fs::PermissionsExt;

use super::*;

const NOW_S: i64 = 1_800_000_000;

fn written(days: u32) -> (tempfile::TempDir, PathBuf, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let created = create("gateway", days, NOW_S).unwrap();
    let (certificate, key) = (dir.path().join("c.pem"), dir.path().join("k.pem"));
    write_new(&certificate, created.certificate_pem.as_bytes(), 0o644).unwrap();
    write_new(&key, created.key_pem.as_bytes(), 0o600).unwrap();
    (dir, certificate, key)
}

#[test]
fn what_is_created_loads_and_belongs_together() {
    let (_dir, certificate, key) = written(10);
    let identity = GatewayIdentity::load(&certificate, &key, NOW_S).unwrap();
    assert_eq!(identity.certificate.subject, "CN=gateway");
    let window = identity.certificate.validity;
    assert_eq!(window, Validity { not_before_s: NOW_S - 3600, not_after_s: NOW_S + 864_000 });
    let secret = p256::SecretKey::from_slice(identity.secret.expose()).unwrap();
    assert_eq!(secret.public_key().to_sec1_bytes().as_ref(), identity.certificate.key.0);
}

#[test]
fn the_window_includes_both_ends() {
    let (_dir, certificate, _) = written(1);
    let load = |now_s| load_certificate(&certificate, Role::Device, now_s);
    assert!(load(NOW_S - 3600).is_ok());
    assert!(load(NOW_S + 86_400).is_ok());
    assert!(matches!(load(NOW_S + 86_401), Err(e) if matches!(e.reason, Reason::Expired(_))));
    assert!(matches!(load(NOW_S - 3601), Err(e) if matches!(e.reason, Reason::NotYetValid(_))));
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    let (_dir, certificate, key) = written(1);
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o640)).unwrap();
    let error = GatewayIdentity::load(&certificate, &key, NOW_S).err().unwrap();
    assert!(error.to_string().contains("chmod 600"), "{error}");
}

#[test]
fn another_key_is_a_mismatch_and_existing_files_stay() {
    let (_dir, certificate, _) = written(1);
    let (_other_dir, _, other) = written(1);
    let error = GatewayIdentity::load(&certificate, &other, NOW_S).err().unwrap();
    assert!(matches!(error.reason, Reason::KeyMismatch));
    assert!(write_new(&certificate, b"", 0o600).is_err());
}

#[test]
fn der_is_read_to_its_last_byte_and_chains_are_refused() {
    let one = create("a", 1, NOW_S).unwrap();
    let mut der = one.certificate_der.clone();
    assert!(Certificate::parse(&der, Role::Device).is_ok());
    der.push(0);
    assert!(matches!(Certificate::parse(&der, Role::Device), Err(Reason::BytesBehind(1))));
    for end in 0..one.certificate_der.len() {
        assert!(Certificate::parse(&one.certificate_der[..end], Role::Device).is_err());
    }
    let two = one.certificate_pem.repeat(2);
    let parsed = Certificate::parse(two.as_bytes(), Role::Device);
    let unclear: Result<(), _> = Err(Reason::SeveralCertificates { count: 2, own: Own::Unclear });
    assert_eq!(format!("{parsed:?}"), format!("{unclear:?}"));
    let both = format!("{}{}", one.certificate_pem, *one.key_pem);
    let parsed = Certificate::parse(both.as_bytes(), Role::Device);
    assert!(matches!(parsed, Err(Reason::PrivateKeyInside)));
    assert!(Certificate::parse(both.as_bytes(), Role::Gateway).is_ok());
}

#[test]
fn dates_are_shown_in_utc() {
    assert_eq!(Utc(0).to_string(), "1970-01-01T00:00:00Z");
    assert_eq!(Utc(951_782_399).to_string(), "2000-02-28T23:59:59Z");
    assert_eq!(Utc(951_782_400).to_string(), "2000-02-29T00:00:00Z");
    assert_eq!(Utc(4_107_542_400).to_string(), "2100-03-01T00:00:00Z");
    assert_eq!(Utc(-1).to_string(), "1969-12-31T23:59:59Z");
    for at in [0, 951_782_399, 951_782_400, 4_107_542_400, -1, 1_800_000_000] {
        assert_eq!(Utc(at).to_string().parse(), Ok(Utc(at)));
    }
    assert_eq!("2000-02-29".parse(), Ok(Utc(951_782_400)));
    for wrong in [
        "",
        "2001-02-29",
        "2000-13-01",
        "2000-00-01",
        "2000-01-01T24:00:00Z",
        "2000-01-01 00:00:00Z",
        "2000/01/01",
        "+200-01-01",
        "20000-1-01",
        "2000-01-01T00:00:00+",
        "2000-01-\u{e9}1",
    ] {
        assert_eq!(wrong.parse::<Utc>(), Err(BadTime), "{wrong}");
    }
}

/// A CA, and what it issued.
fn chain() -> [rcgen::Certificate; 2] {
    let keys =
        [0, 1].map(|_| rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap());
    let mut authority = rcgen::CertificateParams::default();
    authority.distinguished_name.push(rcgen::DnType::CommonName, "the CA");
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    authority.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    let signed = authority.self_signed(&keys[0]).unwrap();
    let issuer = rcgen::Issuer::from_params(&authority, &keys[0]);
    let mut device = rcgen::CertificateParams::default();
    device.distinguished_name.push(rcgen::DnType::CommonName, "meter 1");
    [signed, device.signed_by(&keys[1], &issuer).unwrap()]
}

#[test]
fn what_is_wrong_with_a_certificate_is_told_by_its_own_name() {
    let [authority, device] = chain();
    let said = |bytes: &[u8]| {
        let parsed = Certificate::parse(bytes, Role::Device);
        parsed.and_then(|parsed| parsed.check(NOW_S)).err().map(|reason| reason.to_string())
    };
    let told = |bytes: &[u8], what: &str| {
        let said = said(bytes).unwrap_or_default();
        assert!(said.contains(what), "{what}: {said}");
    };
    let pem = device.pem();
    // Whatever the order of a chain is, it is not the CA that is to be kept.
    told(format!("{}{pem}", authority.pem()).as_bytes(), "keep only number 2 (CN=meter 1");
    told(format!("{pem}{}", authority.pem()).as_bytes(), "keep only number 1 (CN=meter 1");
    told(authority.pem().as_bytes(), "of a certificate authority");
    // A byte order mark is no fault of the certificate.
    assert_eq!(said(format!("\u{feff}{pem}").as_bytes()), None);
    let wide: Vec<u8> =
        format!("\u{feff}{pem}").encode_utf16().flat_map(u16::to_le_bytes).collect();
    told(&wide, "UTF-16");
    told(&pem.as_bytes()[..200], "cut off");
    told(pem.replace("MII", "M!I").as_bytes(), "base64");
    told(&[device.der().as_ref(), b"rest"].concat(), "4 bytes follow");
    told(pem.replace("CERTIFICATE", "CERTIFICATE REQUEST").as_bytes(), "a certificate request");
    told(pem.replace("CERTIFICATE", "PUBLIC KEY").as_bytes(), "a public key alone");
    told(b"hello", "not an X.509 certificate");
    let mut long = rcgen::CertificateParams::default();
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    long.distinguished_name.push(rcgen::DnType::OrganizationName, "x".repeat(9_000));
    let long = long.self_signed(&key).unwrap();
    told(long.der(), &format!("the certificate is {} bytes long", long.der().len()));
    told(long.pem().as_bytes(), "the longest that is taken has 8192");
}
