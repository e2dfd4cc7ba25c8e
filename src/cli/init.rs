//! `duet init`: everything that a gateway needs to start, made once and never overwritten.
//!
//! While it is at work a file says so, and the certificate is made last. Whatever the moment at which it is killed
//! or the power goes: either the certificate is there and with it everything, or that file is, and the next call
//! begins again.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use duet::identity::{self, set_now_s};
use duet::registry::Registry;
use duet::{config, registry};

use super::output;

/// Stands in the state directory while the files are made. Beside a certificate it means nothing.
const BEGUN: &str = ".init-not-finished";

/// Flags of `duet init`.
#[derive(Args)]
#[command(
    after_help = "The certificate is self-signed: devices pin it, so no CA is needed. To use \
    one from a CA, put it and its key (P-256, PEM) in the places that duet.toml names."
)]
pub(super) struct Init {
    /// Common name in the gateway's certificate
    #[arg(long, value_name = "CN", default_value = "duet gateway")]
    name: String,
    /// How long the certificate is valid
    #[arg(long, value_name = "N", default_value_t = 3650,
          value_parser = clap::value_parser!(u32).range(1..=36_500))]
    days: u32,
}

impl Init {
    pub(super) fn run(&self, state: &Path) -> Result<ExitCode> {
        if self.name.is_empty() || self.name.len() > 64 {
            bail!("--name must be 1 to 64 bytes long");
        }
        let place = |name: &str| state.join(name);
        let (begun, certificate) = (place(BEGUN), place("gateway.pem"));
        let others = [place("gateway.key"), place(config::FILE), place(registry::FILE)];
        look(state, &begun, &certificate, &others)?;
        let now_s = set_now_s()?;
        make_private(state)?;
        let created = identity::create(&self.name, self.days, now_s)
            .context("cannot make the certificate")?;
        let made = make(state, &created, &begun, &certificate, &others);
        if let Err(error) = made {
            // A second try then starts clean; what cannot be removed now, it removes.
            let beside = [registry::KEYS_FILE, "registry.seen"].map(place);
            for path in others.iter().chain(&beside).chain([&certificate, &begun]) {
                let _ = remove(path);
            }
            return Err(error);
        }
        let fingerprint =
            duet_protocol::identity::Fingerprint::of_certificate(&created.certificate_der);
        output::done(&format!(
            "state        {}\ncertificate  {}\nfingerprint  {}",
            state.display(),
            certificate.display(),
            identity::fingerprint_text(&fingerprint)
        ))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Refuses a directory with anything in it that somebody may still need.
fn look(state: &Path, begun: &Path, certificate: &Path, others: &[PathBuf; 3]) -> Result<()> {
    let is_there = |path: &Path| path.symlink_metadata().is_ok();
    super::restore::is_finished(state)?;
    let [_, _, devices] = others;
    // An earlier call that did not come to its end has told nobody of what it made.
    let unfinished =
        is_there(begun) && (!is_there(devices) || Registry::open(devices)?.is_empty()?);
    let kept = others.iter().filter(|_| !unfinished);
    if let Some(path) =
        std::iter::once(certificate).chain(kept.map(|path| &**path)).find(|path| is_there(path))
    {
        bail!("{}: exists already; nothing was changed", path.display());
    }
    // What a gateway has left behind belongs to devices and readings: a new certificate beside it would lock those
    // devices out, and a new registry would forget who was revoked.
    for name in ["node.key", "spool"] {
        if is_there(&state.join(name)) {
            bail!(
                "{}: a gateway has run here, but its certificate, key, settings and registry are gone. Bring them \
                 back from a backup, or mount the disk that they lie on; for a new gateway choose another directory. \
                 Nothing was changed",
                state.join(name).display()
            );
        }
    }
    others.iter().try_for_each(|path| remove(path))
}

/// Makes the files. The certificate comes last and whole: whoever finds it finds everything.
fn make(
    state: &Path,
    created: &identity::Created,
    begun: &Path,
    certificate: &Path,
    [key, settings, devices]: &[PathBuf; 3],
) -> Result<()> {
    let write = |path: &Path, bytes: &[u8], mode| {
        identity::write_new(path, bytes, mode).with_context(|| path.display().to_string())
    };
    let sync = || identity::sync_dir_of(begun).with_context(|| state.display().to_string());
    remove(begun)?;
    write(begun, &[], 0o600)?;
    sync()?;
    write(key, created.key_pem.as_bytes(), 0o600)?;
    write(settings, config::TEMPLATE.as_bytes(), 0o644)?;
    Registry::create(devices)?;
    let draft = certificate.with_extension("draft");
    remove(&draft)?;
    write(&draft, created.certificate_pem.as_bytes(), 0o644)?;
    sync()?;
    identity::rename_new(&draft, certificate).with_context(|| certificate.display().to_string())?;
    sync()?;
    remove(begun)
}

/// Removes a file that may not be there.
pub(super) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| path.display().to_string())
        }
        _ => Ok(()),
    }
}

/// Makes the directory for its owner alone, or accepts one that is.
pub(super) fn make_private(state: &Path) -> Result<()> {
    // No gateway could run in it.
    duet_control::socket(state)?;
    if let Some(parent) = state.parent() {
        fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
    }
    let made = fs::DirBuilder::new().mode(0o700).create(state);
    identity::overwrite_in_place(state);
    match made {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let found = fs::metadata(state).with_context(|| state.display().to_string())?;
            if !found.is_dir() {
                bail!("{}: not a directory", state.display());
            }
            if found.mode() & 0o077 != 0 {
                let mode = found.mode() & 0o777;
                bail!("{}: mode {mode:04o} lets others in; run `chmod 700` on it", state.display());
            }
            Ok(())
        }
        // Whoever mounts or backs up looks at the parent.
        Ok(()) => identity::sync_dir_of(state).with_context(|| state.display().to_string()),
        Err(error) => Err(error).with_context(|| state.display().to_string()),
    }
}
