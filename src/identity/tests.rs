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
    assert!(matches!(Certificate::parse(&der, Role::Device), Err(Reason::NotACertificate)));
    for end in 0..one.certificate_der.len() {
        assert!(Certificate::parse(&one.certificate_der[..end], Role::Device).is_err());
    }
    let two = one.certificate_pem.repeat(2);
    let parsed = Certificate::parse(two.as_bytes(), Role::Device);
    assert!(matches!(parsed, Err(Reason::SeveralCertificates(2))));
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
}
