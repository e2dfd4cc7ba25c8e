//! `duet token …` and `duet audit …`: who may use the API over TLS, and what everybody did.

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Subcommand;
use duet::admin::audit;
use duet::admin::tokens::{TokenError, TokenInfo, Tokens};
use duet::admin::{Client, Role};
use duet::identity::{Utc, now_s};
use duet::printable::Printable;
use duet::registry::Registry;
use zeroize::Zeroizing;

use super::control::{Control, audited};
use super::{Format, output, times};

/// Tokens for the API over TLS
#[derive(Subcommand)]
pub(super) enum Token {
    /// Make a token and print it; it is shown this once
    Add {
        /// Its name, 1 to 64 of the characters A-Z a-z 0-9 . _ -
        name: String,
        /// viewer (look), operator (devices and commands) or admin (everything)
        #[arg(long)]
        role: Role,
        /// How long it is valid, for example 12h or 90d
        #[arg(long, value_name = "TIME", default_value = "90d", value_parser = times::span)]
        expires: i64,
    },
    /// List tokens, without the tokens themselves
    List {
        /// How to show them
        #[arg(long, value_enum, default_value = "table")]
        format: Format,
    },
    /// End a token
    Revoke {
        /// Its name
        name: String,
    },
}

/// The audit log: who changed what
#[derive(Subcommand)]
pub(super) enum Audit {
    /// Print all entries
    Show {
        /// How to show them
        #[arg(long, value_enum, default_value = "table")]
        format: Format,
    },
    /// Check that no entry was changed, removed or put in; note the hash that is printed to find a cut at the end later
    Verify,
}

impl Token {
    pub(super) fn run(self, state: &Path) -> Result<ExitCode> {
        let mut out = output::stdout();
        match self {
            Self::Add { name, role, expires } => {
                if output::is_closed()? {
                    bail!("standard output is closed, so the token would be lost; none was made");
                }
                let token = add(state, &name, role, expires)?;
                if let Err(error) = writeln!(out, "{}", *token).and_then(|()| out.flush()) {
                    // A token that nobody has is of no use to anybody but a thief of this output.
                    revoke(state, &name)?;
                    bail!("{error}; the token was ended again");
                }
                if io::stdout().is_terminal() {
                    eprintln!("this token is kept nowhere: copy it now");
                }
            }
            Self::List { format } => {
                let tokens = match Client::connect(state)? {
                    Some(mut client) => client.tokens()?,
                    None => {
                        super::files::check_state(state)?;
                        Tokens::open(state)?.list()
                    }
                };
                print(&mut output::open()?, &tokens, format)?;
            }
            Self::Revoke { name } => {
                let ended = revoke(state, &name)?;
                output::done(&format!("revoked {}", ended.name))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Changes the tokens where no gateway runs. The registry is open meanwhile, so that no other command changes them, and no
/// gateway that starts reads them, between this one's look and its change.
fn change<T>(
    state: &Path,
    _registry: &Registry,
    action: &str,
    change: impl FnOnce(&Tokens) -> Result<T, TokenError>,
) -> Result<T> {
    let tokens = Tokens::open(state)?;
    tokens.renew_seen().into_iter().for_each(|said| eprintln!("{said}"));
    Ok(audited(state, action, change(&tokens))??)
}

fn add(state: &Path, name: &str, role: Role, expires_s: i64) -> Result<Zeroizing<String>> {
    let Some(valid_s) = u32::try_from(expires_s).ok().filter(|valid_s| *valid_s > 0) else {
        bail!("--expires: too long, or nothing");
    };
    if !state.is_dir() {
        bail!("{}: no such state directory; `duet init` makes one", state.display());
    }
    match Control::open(state)? {
        Control::Gateway(mut client) => Ok(client.add_token(name, role, valid_s)?),
        Control::Direct(registry, state) => {
            let (name, now_s) = (name.parse()?, now_s());
            change(&state, &registry, "POST /v1/tokens", |tokens| {
                tokens.add(name, role, now_s, now_s + i64::from(valid_s))
            })
        }
    }
}

fn revoke(state: &Path, name: &str) -> Result<TokenInfo> {
    match Control::open(state)? {
        Control::Gateway(mut client) => Ok(client.revoke_token(name)?),
        Control::Direct(registry, state) => {
            let (action, name) = (format!("DELETE /v1/tokens/{name}"), name.parse()?);
            change(&state, &registry, &action, |tokens| tokens.revoke(&name))
        }
    }
}

fn print(out: &mut impl Write, tokens: &[TokenInfo], format: Format) -> Result<()> {
    if format == Format::Table {
        writeln!(out, "{:<24} {:<9} {:<20} EXPIRES", "NAME", "ROLE", "MADE")?;
    }
    for token in tokens {
        let TokenInfo { name, role, created_s, expires_s } = token;
        match format {
            Format::Json => writeln!(out, "{}", serde_json::to_string(token)?)?,
            Format::Table => {
                writeln!(out, "{name:<24} {role:<9} {} {}", Utc(*created_s), Utc(*expires_s))?;
            }
        }
    }
    Ok(())
}

impl Audit {
    pub(super) fn run(self, state: &Path) -> Result<ExitCode> {
        super::files::check_state(state)?;
        let mut out = io::BufWriter::new(output::open()?);
        match self {
            Self::Verify => {
                let audit::Verified { first, entries, hash } = audit::verify(state, |_| ())?;
                let from = match first {
                    1 => String::new(),
                    first => format!(" from number {first} on"),
                };
                writeln!(out, "{entries} entries{from}, all whole; the last hash is {hash}")?;
            }
            Self::Show { format } => {
                let mut written = Ok(());
                let verified = audit::verify(state, |entry| {
                    let line = match format {
                        Format::Json => serde_json::to_string(entry).unwrap_or_default(),
                        Format::Table => {
                            let time = Utc::of_ms(entry.time_ms);
                            let audit::Entry { who, from, action, outcome, .. } = entry;
                            format!("{time} {who} ({from}): {action}: {outcome}")
                        }
                    };
                    if written.is_ok() {
                        written = writeln!(out, "{}", Printable(&line));
                    }
                });
                written?;
                out.flush()?;
                verified?;
            }
        }
        out.flush()?;
        Ok(ExitCode::SUCCESS)
    }
}
