//! `duet enrol …`: tokens with which devices register themselves.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use duet::admin::{EnrolTokenInfo, NewEnrolToken};
use duet::config::Overrides;
use duet::hex::Hex;
use duet::identity::{Utc, now_s};
use duet::registry::SourceSet;

use super::control::Control;
use super::device::Labels;
use super::{Format, Place, output, times};

/// Tokens with which devices register themselves
#[derive(Subcommand)]
pub(super) enum Enrol {
    /// Make a token and print it; it is shown this once
    Token(Token),
    /// List tokens, without the tokens themselves
    List {
        /// How to show them
        #[arg(long, value_enum, default_value = "table")]
        format: Format,
    },
    /// End a token; devices that it has registered stay
    Revoke {
        /// Its id, as `duet enrol list` shows it
        id: String,
    },
}

/// Flags of `duet enrol token`.
#[derive(Args)]
#[command(
    after_help = "The device then runs: duet device enrol --gateway HOST:PORT --pin PIN --token TOKEN --out NAME.json"
)]
pub(super) struct Token {
    /// How long it is valid, for example 30m, 1h or 7d
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = times::span)]
    ttl: i64,
    /// The name of the one device that it registers
    #[arg(long, value_name = "NAME", conflicts_with = "names", required_unless_present = "names")]
    name: Option<String>,
    /// What the devices may be called that it registers; * stands for anything
    #[arg(long, value_name = "PATTERN")]
    names: Option<String>,
    /// How many devices it registers
    #[arg(long, value_name = "N", default_value_t = 1)]
    uses: u32,
    #[command(flatten)]
    labels: Labels,
    /// Key sources that they may use, separated by commas
    #[arg(long, value_name = "LIST", default_value = "ephemeral", visible_alias = "profile")]
    key_sources: SourceSet,
    /// How to show it
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

impl Enrol {
    pub(super) fn run(self, place: &Place) -> Result<ExitCode> {
        match self {
            Self::Token(token) => token.make(place)?,
            Self::List { format } => {
                let tokens = Control::open(&place.state()?)?.enrol_tokens()?;
                list(&tokens, format)?;
            }
            Self::Revoke { id } => {
                Control::open(&place.state()?)?.revoke_enrol_token(&id)?;
                output::done(&format!("revoked {id}"))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Token {
    fn make(self, place: &Place) -> Result<()> {
        let config = place.load(&Overrides::default())?;
        let Ok(ttl_s) = u32::try_from(self.ttl) else { bail!("--ttl: too long") };
        let wanted = NewEnrolToken {
            ttl_s,
            uses: self.uses,
            names: self.name.or(self.names).unwrap_or_default(),
            key_sources: Some(self.key_sources.to_string()),
            expires: self.labels.end()?,
            tags: self.labels.tag,
            group: self.labels.group,
        };
        if output::is_closed()? {
            bail!("standard output is closed, so the token would be lost; none was made");
        }
        let mut control = Control::open(&config.state)?;
        let made = control.add_enrol_token(&wanted)?;
        let mut out = output::stdout();
        let printed = match self.format {
            Format::Table => writeln!(out, "{}", made.token),
            Format::Json => writeln!(out, "{}", serde_json::to_string(&made)?),
        };
        if let Err(error) = printed.and_then(|()| out.flush()) {
            // Nobody has it, so nobody is to be able to use it.
            control.revoke_enrol_token(&made.id)?;
            bail!("{error}; no token was made");
        }
        if io::stdout().is_terminal() {
            eprintln!("this token is kept nowhere: copy it now");
        }
        let warn = |text: &str| {
            let _ = writeln!(io::stderr(), "warning: {text}");
        };
        if !config.enrol.certificate.exists() && config.enrol.trusted.is_none() {
            warn("there is no CA that could issue a certificate yet; `duet ca init` makes one");
        }
        if config.api.is_none() {
            warn(
                "no device can bring it yet: set api.listen, api.certificate and api.key, and restart the gateway",
            );
        }
        // Devices need to know whom they give it to.
        if let Some(api) = &config.api
            && let Some(pin) = pin(&api.certificate)
        {
            let _ = writeln!(io::stderr(), "--gateway HOST:{} --pin {pin}", api.listen.port());
        }
        Ok(())
    }
}

/// SHA-256 of the certificate that the API shows, for devices to tell the gateway by.
fn pin(certificate: &std::path::Path) -> Option<String> {
    use rustls_pki_types::CertificateDer;
    use rustls_pki_types::pem::PemObject as _;
    use sha2::{Digest as _, Sha256};
    let der = CertificateDer::from_pem_file(certificate).ok()?;
    Some(Hex(&Sha256::digest(&der)).to_string())
}

fn list(tokens: &[EnrolTokenInfo], format: Format) -> Result<()> {
    let mut out = output::open()?;
    if format == Format::Table {
        writeln!(
            out,
            "{:<16} {:<24} {:<9} {:<20} {:<8} TAGS",
            "ID", "NAMES", "USED", "ENDS", "STATE"
        )?;
    }
    let now_s = now_s();
    for token in tokens {
        match format {
            Format::Json => writeln!(out, "{}", serde_json::to_string(token)?)?,
            Format::Table => {
                let EnrolTokenInfo { id, names, uses, used, ends_s, tags, .. } = token;
                let state = match token {
                    _ if used >= uses => "spent",
                    _ if *ends_s <= now_s => "ended",
                    _ => "open",
                };
                let used = format!("{used}/{uses}");
                let (end, tags) = (Utc(*ends_s), tags.join(","));
                writeln!(out, "{id:<16} {names:<24} {used:<9} {end} {state:<8} {tags}")?;
            }
        }
    }
    Ok(())
}
