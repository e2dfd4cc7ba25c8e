//! `duet command`: what devices are to do, now or when they wake.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use duet::admin::{How, MAX_COMMAND_TIMEOUT_MS};
use duet::commands::{CommandInfo, LateResult};
use duet::hex::{self, Hex};
use duet::identity::Utc;
use duet::printable::Printable;

use super::talk::gateway;
use super::{Format, output, times};

/// How long a result is waited for where nothing is said, seconds.
const WAIT_S: u64 = 10;

/// Flags of `duet command`.
#[derive(Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "A command is queued on the gateway's disk, for a device that is connected or asleep, and carried out \
    once. `duet command show ID` tells what became of it. With --wait it goes to a connected device at once and its \
    result is printed: as text if it is printable, else (or with --hex) in hexadecimal. Exit code 1 then: the device is not \
    connected, gave no result in time, or reports failure."
)]
pub(super) struct Command {
    #[command(subcommand)]
    ask: Option<Ask>,
    /// The device's name
    #[arg(required = true)]
    name: Option<String>,
    /// What to send, as text
    #[arg(required = true)]
    payload: Option<String>,
    /// The payload is hexadecimal, and so is the result
    #[arg(long)]
    hex: bool,
    /// How long it may wait for its result, for example 30d, 12h or 90s [default: commands.ttl_s of the settings]
    #[arg(long, value_name = "TIME", value_parser = times::span)]
    ttl: Option<i64>,
    /// Names this command: given once more within a day, it is not queued again
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// Takes the place of the device's commands with the same word that are not over
    #[arg(long, value_name = "WORD")]
    collapse: Option<String>,
    /// Do not queue: send it to a connected device now, and print its result
    #[arg(long, conflicts_with_all = ["ttl", "key", "collapse"])]
    wait: bool,
    /// As --wait, for so many seconds [default: 10]
    #[arg(long, value_name = "SECONDS", conflicts_with_all = ["ttl", "key", "collapse"],
          value_parser = clap::value_parser!(u64).range(1..=MAX_COMMAND_TIMEOUT_MS / 1000))]
    timeout: Option<u64>,
}

/// Subcommands of `duet command`.
#[derive(Subcommand)]
enum Ask {
    /// List commands in the order in which they were queued; those that are over are kept for a day
    List {
        /// Only those of this device
        device: Option<String>,
        /// Only those that are not over
        #[arg(long)]
        open: bool,
        /// How to show them
        #[arg(long, value_enum, default_value = "table")]
        format: Format,
    },
    /// Show one command
    Show {
        /// Its id
        id: u64,
        /// How to show it
        #[arg(long, value_enum, default_value = "table")]
        format: Format,
    },
    /// Cancel a command that is not over; if it was sent, its device may have carried it out
    Cancel {
        /// Its id
        id: u64,
    },
}

impl Command {
    pub(super) fn run(self, state: &Path) -> Result<ExitCode> {
        // What was queued is queued, whoever hears of it; a result that nobody sees is lost.
        let mut out = match &self.ask {
            Some(Ask::Cancel { .. }) => output::stdout(),
            None if !self.wait && self.timeout.is_none() => output::stdout(),
            Some(Ask::List { .. } | Ask::Show { .. }) | None => output::open()?,
        };
        if let Some(ask) = self.ask {
            ask.run(state, &mut out)?;
            return Ok(ExitCode::SUCCESS);
        }
        let (Some(name), Some(payload)) = (self.name, self.payload) else {
            bail!("a device's name and a payload are needed");
        };
        let payload = match self.hex {
            true => hex::decode(&payload).context("the payload is not hexadecimal")?,
            false => payload.into_bytes(),
        };
        let payload = Hex(&payload).to_string();
        let mut client = gateway(state)?;
        if self.wait || self.timeout.is_some() {
            let limit = Duration::from_secs(self.timeout.unwrap_or(WAIT_S));
            let result = client.command(&name, payload, limit)?;
            writeln!(out, "{}", shown(&result, self.hex)?)?;
            return Ok(ExitCode::SUCCESS);
        }
        let ttl = self.ttl.map(|ttl| Duration::from_secs(ttl.unsigned_abs()));
        let how = How { ttl, key: self.key, collapse: self.collapse };
        let (command, known) = client.queue(&name, payload, how)?;
        let what = if known { "was queued before as" } else { "queued" };
        output::done(&format!("{what} {} for {name}", command.id))?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Ask {
    fn run(self, state: &Path, out: &mut impl Write) -> Result<()> {
        match self {
            Self::List { device, open, format } => {
                let mut gateway = gateway(state)?;
                if format == Format::Table {
                    let (id, device, state, sent) = ("ID", "DEVICE", "STATE", "SENT");
                    writeln!(out, "{id:>8} {device:<24} {state:<10} {sent:>4} QUEUED")?;
                }
                gateway.commands(device.as_deref(), open, |command| {
                    if format == Format::Json {
                        return Ok(writeln!(out, "{}", serde_json::to_string(&command)?)?);
                    }
                    let CommandInfo { id, device, state, sent, queued_ms, .. } = &command;
                    let queued = Utc::of_ms(*queued_ms);
                    Ok::<_, anyhow::Error>(writeln!(
                        out,
                        "{id:>8} {device:<24} {state:<10} {sent:>4} {queued}"
                    )?)
                })
            }
            Self::Show { id, format } => {
                let command = gateway(state)?.show_command(id)?;
                if format == Format::Json {
                    return Ok(writeln!(out, "{}", serde_json::to_string(&command)?)?);
                }
                Ok(show(&command, out)?)
            }
            Self::Cancel { id } => {
                let CommandInfo { device, .. } = gateway(state)?.cancel_command(id)?;
                output::done(&format!("cancelled {id} for {device}"))
            }
        }
    }
}

fn show(command: &CommandInfo, out: &mut impl Write) -> io::Result<()> {
    let text = |hex: &str| shown(hex, false).unwrap_or_else(|_| hex.to_owned());
    writeln!(out, "id           {}", command.id)?;
    writeln!(out, "device       {}", command.device)?;
    writeln!(out, "state        {}", command.state)?;
    writeln!(out, "payload      {}", text(&command.payload))?;
    writeln!(out, "number       {}", command.number)?;
    writeln!(out, "sent         {} times", command.sent)?;
    writeln!(out, "queued       {}", Utc::of_ms(command.queued_ms))?;
    match command.ended_ms {
        Some(at_ms) => writeln!(out, "over         {}", Utc::of_ms(at_ms))?,
        None => writeln!(out, "expires      {}", Utc::of_ms(command.expires_ms))?,
    }
    if let (Some(status), Some(output)) = (command.status, &command.output) {
        writeln!(out, "result       status {status}, {}", text(output))?;
    }
    if let Some(LateResult { status, output, at_ms }) = &command.late {
        writeln!(out, "late result  status {status}, {}, {}", text(output), Utc::of_ms(*at_ms))?;
    }
    for (name, key) in [("key", &command.key), ("collapse", &command.collapse)] {
        if let Some(key) = key {
            writeln!(out, "{name:<12} {}", Printable(key))?;
        }
    }
    Ok(())
}

/// Bytes for a terminal: as text where that is harmless, else in hexadecimal.
pub(super) fn shown(digits: &str, hex_wanted: bool) -> Result<String> {
    let bytes = hex::decode(digits).context("the result is not hexadecimal")?;
    let text = String::from_utf8(bytes).ok();
    let text = text.filter(|text| !hex_wanted && !text.chars().any(char::is_control));
    Ok(text.map_or_else(|| digits.to_owned(), |text| Printable(&text).to_string()))
}
