//! Puts `memory.x` where the linker looks for it; and where cryptography is outside, says at which addresses.

use std::{env, error::Error, fs, path::PathBuf};

/// What `src/outside.rs` calls.
const OUTSIDE: [&str; 10] = [
    "random",
    "sha256_begin",
    "sha256_update",
    "sha256_end",
    "gcm",
    "public",
    "agree",
    "lift",
    "sign",
    "verify",
];

fn main() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::copy("memory.x", out.join("memory.x"))?;
    println!("cargo:rustc-link-search={}", out.display());
    println!("cargo:rerun-if-changed=memory.x");
    if env::var_os("CARGO_FEATURE_OUTSIDE").is_some() {
        for (number, name) in OUTSIDE.iter().enumerate() {
            let address = 0x0080_0001 + 16 * number;
            println!("cargo:rustc-link-arg-bins=-Wl,--defsym=outside_{name}={address:#x}");
        }
    }
    Ok(())
}
