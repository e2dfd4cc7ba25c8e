//! The environment variable decides, and is obeyed or refused, never half obeyed.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{env, process::Command};

use duet_aead::{Backend, ENVIRONMENT, Gcm, SelectError};

/// Passes in any environment; [`forced`] runs it in chosen ones.
#[test]
fn selection_follows_the_environment() {
    let selected = Gcm::select().map(Gcm::backend);
    let expected = match env::var(ENVIRONMENT).as_deref() {
        Err(_) | Ok("") => Ok(Gcm::best().backend()),
        Ok(name) => name.parse::<Backend>().and_then(|backend| {
            Gcm::with(backend).map(Gcm::backend).ok_or(SelectError::Unavailable(backend))
        }),
    };
    assert_eq!(selected, expected);
    eprintln!("selected: {selected:?}");
}

/// A process can hardly change its own environment soundly, so each value gets a process.
#[test]
fn forced() {
    for (value, expected) in [
        ("", format!("Ok({:?})", Gcm::best().backend())),
        ("portable", "Ok(Portable)".to_owned()),
        ("aesni", outcome(Backend::AesNi)),
        ("vaes", outcome(Backend::Vaes)),
        ("avx2", "Err(Unknown)".to_owned()),
    ] {
        let output = Command::new(env::current_exe().unwrap())
            .args(["--exact", "selection_follows_the_environment", "--nocapture"])
            .env(ENVIRONMENT, value)
            .output()
            .unwrap();
        assert!(output.status.success());
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(&format!("selected: {expected}")), "{value:?}: {said}");
    }
}

fn outcome(backend: Backend) -> String {
    match Gcm::with(backend) {
        Some(_) => format!("Ok({backend:?})"),
        None => format!("Err(Unavailable({backend:?}))"),
    }
}
