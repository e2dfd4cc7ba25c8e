//! `duet ca …`: a small CA whose certificates devices get that enrol.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use duet::config::{Enrol, Overrides};
use duet::identity::{self, Authority, Utc, fingerprint_text, now_s, set_now_s};

use super::control::audited;
use super::{Format, Place, output};

/// The CA for devices that enrol
#[derive(Subcommand)]
pub(super) enum Ca {
    /// Make a CA: a key and a certificate in the places that the settings name; nothing is overwritten
    Init {
        /// Common name in the CA's certificate
        #[arg(long, value_name = "CN", default_value = "duet devices")]
        name: String,
        /// How long the CA is valid
        #[arg(long, value_name = "N", default_value_t = 3650,
              value_parser = clap::value_parser!(u32).range(1..=36_500))]
        days: u32,
    },
    /// Show the CA, and whether it can issue certificates
    Show {
        /// How to show it
        #[arg(long, value_enum, default_value = "table")]
        format: Format,
    },
}

impl Ca {
    pub(super) fn run(self, place: &Place) -> Result<ExitCode> {
        let config = place.load(&Overrides::default())?;
        if !config.state.is_dir() {
            bail!("{}: no such state directory; `duet init` makes one", config.state.display());
        }
        match self {
            Self::Init { name, days } => {
                if name.is_empty() || name.len() > 64 || name.chars().any(char::is_control) {
                    bail!("--name must be 1 to 64 bytes long, without control characters");
                }
                let made = make(&config.enrol, &name, days);
                // A gateway that runs writes its log alone; this changes nothing that it does.
                if duet::admin::Client::connect(&config.state)?.is_none() {
                    audited(&config.state, "ca init", made)??;
                } else {
                    made?;
                }
                output::done(table(&config.enrol)?.trim_end())?;
            }
            Self::Show { format } => show(&config.enrol, format)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Makes both files. The certificate comes last and whole: whoever finds it finds its key.
fn make(enrol: &Enrol, name: &str, days: u32) -> Result<()> {
    let Enrol { certificate, key, .. } = enrol;
    if certificate.symlink_metadata().is_ok() {
        bail!("{}: exists already; nothing was changed", certificate.display());
    }
    let shown = |path: &Path| path.display().to_string();
    let draft = certificate.with_extension("draft");
    if key.symlink_metadata().is_ok() {
        // An earlier call that was killed just before its end has left both, under the draft's name.
        if Authority::load(&draft, key, now_s()).is_err() {
            bail!(
                "{}: exists already, and {} does not: bring the certificate back, or move the key away; nothing was \
                 changed",
                key.display(),
                certificate.display()
            );
        }
    } else {
        let created = identity::create_authority(name, days, set_now_s()?)?;
        let key_draft = key.with_extension("key-draft");
        super::init::remove(&draft)?;
        super::init::remove(&key_draft)?;
        identity::write_new(&draft, created.certificate_pem.as_bytes(), 0o644)
            .with_context(|| shown(&draft))?;
        identity::sync_dir_of(&draft).with_context(|| shown(&draft))?;
        identity::write_new(&key_draft, created.key_pem.as_bytes(), 0o600)
            .with_context(|| shown(&key_draft))?;
        identity::rename_new(&key_draft, key).with_context(|| shown(key))?;
        identity::sync_dir_of(key).with_context(|| shown(key))?;
    }
    identity::rename_new(&draft, certificate).with_context(|| shown(certificate))?;
    identity::sync_dir_of(certificate).with_context(|| shown(certificate))
}

/// What there is to say of it, for people.
fn table(enrol: &Enrol) -> Result<String> {
    let authority = Authority::load(&enrol.certificate, &enrol.key, now_s())?;
    let certificate = authority.certificate();
    Ok(format!(
        "certificate  {}\nsubject      {}\nfingerprint  {}\nvalid until  {}\n",
        enrol.certificate.display(),
        certificate.subject.escape_debug(),
        fingerprint_text(&certificate.fingerprint),
        Utc(certificate.validity.not_after_s)
    ))
}

fn show(enrol: &Enrol, format: Format) -> Result<()> {
    let mut out = output::open()?;
    if format == Format::Table {
        return Ok(write!(out, "{}", table(enrol)?)?);
    }
    let authority = Authority::load(&enrol.certificate, &enrol.key, now_s())?;
    let certificate = authority.certificate();
    let path = enrol.certificate.display().to_string();
    let fingerprint = fingerprint_text(&certificate.fingerprint);
    let end = certificate.validity.not_after_s;
    let shown = serde_json::json!({
        "certificate": path,
        "subject": certificate.subject,
        "fingerprint": fingerprint,
        "not_after_s": end,
    });
    Ok(writeln!(out, "{shown}")?)
}
