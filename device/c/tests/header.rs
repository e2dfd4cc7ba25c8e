//! `include/duet.h` is what the sources say; `DUET_WRITE_HEADER=1` in the environment writes it anew.

use std::{fs, path::Path};

/// What stands before everything else in the header.
const HEAD: &str = "/* Duet on a device: made from device/c/src, do not edit. docs/device.md shows how it is used. */";

/// What no Rust says: how the macros of a credential header become a `duet_credentials`.
const TAIL: &str = "\
/* The initializer of a duet_credentials from the macros that `duet device add --registered-id --format c` writes;
 * `certificate` is a uint8_t array of DUET_CREDENTIAL_GATEWAY_CERTIFICATE, `comb` a uint32_t array of
 * DUET_CREDENTIAL_GATEWAY_COMB. */
#define DUET_CREDENTIALS(certificate) DUET_CREDENTIALS_WITH_COMB(certificate, NULL)
#define DUET_CREDENTIALS_WITH_COMB(certificate, comb) { \\
    .profile = DUET_CREDENTIAL_MODE, \\
    .gateway_key_id = DUET_CREDENTIAL_GATEWAY_KEY_ID, \\
    .id = DUET_CREDENTIAL_ID, \\
    .key = DUET_CREDENTIAL_REGISTRATION_KEY, \\
    .gateway_certificate = certificate, \\
    .gateway_certificate_len = sizeof certificate, \\
    .gateway_comb = comb, \\
    .first_fresh = DUET_CREDENTIAL_FIRST_FRESH }
/* A library that was built with the feature `small` has smaller contexts, and another name for duet_init: what was
 * compiled without DUET_SMALL does not link with it. */
#ifdef DUET_SMALL
#define duet_init duet_init_small
#endif";

#[test]
fn the_header_is_what_the_sources_say() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config {
        language: cbindgen::Language::C,
        include_guard: Some("DUET_H".to_owned()),
        header: Some(HEAD.to_owned()),
        trailer: Some(TAIL.to_owned()),
        cpp_compat: true,
        usize_is_size_t: true,
        // What every compiler has, also one without a C library.
        no_includes: true,
        sys_includes: vec!["stddef.h".to_owned(), "stdint.h".to_owned()],
        documentation_style: cbindgen::DocumentationStyle::C99,
        style: cbindgen::Style::Both,
        line_length: 110,
        defines: [("feature = small".to_owned(), "DUET_SMALL".to_owned())].into(),
        ..cbindgen::Config::default()
    };
    let bindings = cbindgen::Builder::new()
        .with_config(config)
        .with_src(folder.join("src/lib.rs"))
        .with_src(folder.join("src/port.rs"))
        .generate()
        .unwrap_or_else(|error| panic!("{error}"));
    let mut made = Vec::new();
    bindings.write(&mut made);
    let made = String::from_utf8(made).unwrap_or_default();
    let path = folder.join("include/duet.h");
    if std::env::var_os("DUET_WRITE_HEADER").is_some() {
        fs::write(&path, &made).unwrap_or_else(|error| panic!("{error}"));
    }
    let kept = fs::read_to_string(&path).unwrap_or_default();
    assert!(made == kept, "include/duet.h is stale: DUET_WRITE_HEADER=1 writes it anew");
    for name in
        ["duet_init", "duet_receive", "duet_transmit", "duet_port", "DUET_ERROR_CREDENTIALS"]
    {
        assert!(kept.contains(name), "{name} is missing");
    }
}
