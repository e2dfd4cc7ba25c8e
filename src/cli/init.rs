//! `duet init`: everything that a gateway needs to start, made once and never overwritten.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use duet::identity::{self, now_s};
use duet::{config, registry};

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
        let place = |name: &str| state.join(name);
        let [certificate, key] = [place("gateway.pem"), place("gateway.key")];
        let [settings, devices] = [place(config::FILE), place(registry::FILE)];
        for path in [&certificate, &key, &settings, &devices] {
            if path.symlink_metadata().is_ok() {
                bail!("{}: exists already; nothing was changed", path.display());
            }
        }
        if self.name.is_empty() || self.name.len() > 64 {
            bail!("--name must be 1 to 64 bytes long");
        }
        let created = identity::create(&self.name, self.days, now_s())
            .context("cannot make the certificate")?;
        make_private(state)?;

        let mut made = Vec::new();
        let mut write = |path: &PathBuf, bytes: &[u8], mode| {
            identity::write_new(path, bytes, mode)
                .with_context(|| path.display().to_string())
                .map(|()| made.push(path.clone()))
        };
        let written = write(&key, created.key_pem.as_bytes(), 0o600)
            .and_then(|()| write(&certificate, created.certificate_pem.as_bytes(), 0o644))
            .and_then(|()| write(&settings, config::TEMPLATE.as_bytes(), 0o644))
            .and_then(|()| {
                registry::Registry::create(&devices)?;
                Ok(())
            });
        if let Err(error) = written {
            // Only what this call has made: a second try then starts clean.
            for path in made {
                let _ = fs::remove_file(path);
            }
            return Err(error);
        }
        let fingerprint =
            duet_protocol::identity::Fingerprint::of_certificate(&created.certificate_der);
        let mut out = io::stdout().lock();
        writeln!(out, "state        {}", state.display())?;
        writeln!(out, "certificate  {}", certificate.display())?;
        writeln!(out, "fingerprint  {}", identity::fingerprint_text(&fingerprint))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Makes the directory for its owner alone, or accepts one that is.
fn make_private(state: &Path) -> Result<()> {
    if let Some(parent) = state.parent() {
        fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
    }
    match fs::DirBuilder::new().mode(0o700).create(state) {
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
        made => made.with_context(|| state.display().to_string()),
    }
}
