//! `duet command` and `duet status`: what only a running gateway can answer.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use duet::admin::{Client, MAX_COMMAND_TIMEOUT_MS, Request, Response};
use duet::hex::{self, Hex};

use super::Format;
use super::control::unexpected;

/// Flags of `duet command`.
#[derive(Args)]
#[command(
    after_help = "The result is printed as text if it is printable, else (or with --hex) in \
    hexadecimal. Exit code 1: the device is not connected, or gave no result in time."
)]
pub(super) struct SendCommand {
    /// The device's name
    name: String,
    /// What to send, as text
    payload: String,
    /// The payload is hexadecimal, and so is the result
    #[arg(long)]
    hex: bool,
    /// Seconds to wait for the result
    #[arg(long, value_name = "SECONDS", default_value_t = 10,
          value_parser = clap::value_parser!(u64).range(1..=MAX_COMMAND_TIMEOUT_MS / 1000))]
    timeout: u64,
}

/// Flags of `duet status`.
#[derive(Args)]
pub(super) struct ShowStatus {
    /// How to show it
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

impl SendCommand {
    pub(super) fn run(self, state: &Path) -> Result<ExitCode> {
        let payload = match self.hex {
            true => hex::decode(&self.payload).context("the payload is not hexadecimal")?,
            false => self.payload.into_bytes(),
        };
        let payload = Hex(&payload).to_string();
        let timeout_ms = self.timeout * 1000;
        let request = Request::Command { name: self.name, payload, timeout_ms };
        let Response::CommandResult { payload } = ask(state, &request)? else {
            return unexpected();
        };
        let bytes = hex::decode(&payload).context("the result is not hexadecimal")?;
        let text = String::from_utf8(bytes).ok();
        let text = text.filter(|text| !self.hex && !text.chars().any(char::is_control));
        writeln!(io::stdout(), "{}", text.unwrap_or(payload))?;
        Ok(ExitCode::SUCCESS)
    }
}

impl ShowStatus {
    pub(super) fn run(self, state: &Path) -> Result<ExitCode> {
        let Response::Status { status } = ask(state, &Request::Status)? else {
            return unexpected();
        };
        let json = serde_json::to_value(&status)?;
        let mut out = io::stdout().lock();
        match (self.format, json.as_object()) {
            (Format::Table, Some(fields)) => {
                for (field, value) in fields {
                    let text = match value {
                        serde_json::Value::Null => "-".to_owned(),
                        serde_json::Value::String(text) => text.clone(),
                        serde_json::Value::Array(items) if items.is_empty() => "none".to_owned(),
                        serde_json::Value::Array(items) => items
                            .iter()
                            .filter_map(|item| item.as_str())
                            .collect::<Vec<_>>()
                            .join(" "),
                        value => value.to_string(),
                    };
                    writeln!(out, "{field:<12} {text}")?;
                }
            }
            _ => writeln!(out, "{json}")?,
        }
        Ok(if status.is_healthy() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn ask(state: &Path, request: &Request) -> Result<Response> {
    let Some(mut client) = Client::connect(state)? else {
        bail!("no gateway is running on {}; start `duet run`", state.display());
    };
    match client.call(request)? {
        Response::Refused { message, .. } => bail!(message),
        response => Ok(response),
    }
}
