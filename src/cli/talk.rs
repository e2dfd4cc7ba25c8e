//! `duet status`, and the way to a running gateway for all that only it can answer.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use duet::admin::{Client, Status, UpstreamStatus};
use duet::printable::{self, Printable};
use serde_json::Value;

use super::{Format, output};

/// Flags of `duet status`.
#[derive(Args)]
pub(super) struct ShowStatus {
    /// How to show it
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

impl ShowStatus {
    pub(super) fn run(self, state: &Path) -> Result<ExitCode> {
        let status = gateway(state)?.status()?;
        let mut out = output::stdout();
        if self.format == Format::Json {
            writeln!(out, "{}", printable::json(&status)?)?;
        } else {
            let table = table(&status)?;
            table.lines().try_for_each(|line| writeln!(out, "{}", Printable(line)))?;
        }
        Ok(if status.is_healthy() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// One line per field, phase and faults first.
fn table(status: &Status) -> Result<String> {
    let serde_json::Value::Object(mut fields) = serde_json::to_value(status)? else {
        bail!("a status is an object");
    };
    // They have lines of their own.
    fields.remove("upstreams");
    let first = ["phase", "faults"].map(|key| (key.to_owned(), fields.remove(key)));
    let rest = fields.into_iter().map(|(key, value)| (key, Some(value)));
    let mut text = String::new();
    for (field, value) in first.into_iter().chain(rest) {
        let value = match value {
            None | Some(Value::Null) => "-".to_owned(),
            Some(Value::String(text)) => text,
            Some(Value::Array(items)) if items.is_empty() => "none".to_owned(),
            Some(Value::Array(items)) => {
                items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" ")
            }
            Some(value) => value.to_string(),
        };
        text.push_str(&format!("{field:<12} {value}\n"));
    }
    status.upstreams.iter().for_each(|upstream| text.push_str(&line(upstream)));
    Ok(text)
}

/// One upstream: how far it is, then what is wrong or what its acknowledgement is worth.
fn line(upstream: &UpstreamStatus) -> String {
    let UpstreamStatus { name, kind, backlog, oldest_ms, delivered, parked, lost, .. } = upstream;
    let mut line =
        format!("upstream     {name} ({kind}): {delivered} delivered, {backlog} waiting");
    if *backlog > 0 {
        let tenths = oldest_ms % 1_000 / 100;
        line.push_str(&format!(", the oldest for {}.{tenths} s", oldest_ms / 1_000));
    }
    for (count, what) in [(parked, "put aside"), (lost, "lost")] {
        if *count > 0 {
            line.push_str(&format!(", {count} {what}"));
        }
    }
    if upstream.commands > 0 {
        line.push_str(&format!(", {} commands came", upstream.commands));
    }
    let more = upstream.problem.as_ref().unwrap_or(&upstream.worth);
    line.push_str(&format!("\n             {more}\n"));
    if let Some(problem) = &upstream.commands_problem {
        line.push_str(&format!("             commands: {problem}\n"));
    }
    line
}

/// The running gateway.
pub(super) fn gateway(state: &Path) -> Result<Client> {
    let Some(client) = Client::connect(state)? else {
        if !state.is_dir() {
            bail!(
                "{}: no such state directory; --state or DUET_STATE names another",
                state.display()
            );
        }
        bail!("no gateway is running on {}; start `duet run`", state.display());
    };
    Ok(client)
}
