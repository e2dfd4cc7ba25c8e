//! `duet device …`: the registry from the outside.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Subcommand;
use duet::admin::devices::End;

use super::control::Control;
use super::{Format, Place, output};

mod add;
mod attempt;
mod deliver;
mod enrol;
mod export;
pub(super) mod import;
mod list;
mod renew;
mod set;
mod which;

pub(super) use which::Labels;

/// Subcommands of `duet device`.
#[derive(Subcommand)]
pub(super) enum Device {
    /// Register a device and write what it needs to know
    Add(add::Add),
    /// On a device: make a key, and have a gateway register it with a token
    Enrol(enrol::Enrol),
    /// Register many devices in one transaction: all of them or none
    Import(import::Import),
    /// Write devices so that `duet device import` takes them
    Export(export::Export),
    /// List devices in the order of their names
    List(list::List),
    /// Show one device
    Show {
        /// Its name
        name: String,
        /// How to show it
        #[arg(long, value_enum, default_value = "table")]
        format: Format,
    },
    /// Be a device: open its channel, perhaps send a reading, and say each step
    Try(attempt::Try),
    /// Give a device a new credential; the old one stays good until the new one was used
    Renew(renew::Renew),
    /// Change tags, groups and ends of registrations
    Set(set::Set),
    /// Refuse devices for ever under their present credentials, and end their sessions
    Revoke(which::Which),
    /// Forget devices and end their sessions; a credential that was revoked stays refused
    Remove(which::Which),
}

impl Device {
    pub(super) fn run(self, place: &Place) -> Result<ExitCode> {
        match self {
            Self::Add(add) => add.run(place)?,
            Self::Enrol(enrol) => enrol.run()?,
            Self::Import(import) => return import.run(place),
            Self::Export(export) => export.run(place)?,
            Self::List(list) => list.run(place)?,
            Self::Show { name, format } => list::show(place, &name, format)?,
            Self::Try(attempt) => return attempt.run(place),
            Self::Renew(renew) => renew.run(place)?,
            Self::Set(set) => set.run(place)?,
            Self::Revoke(which) => finish(which, place, End::Revoke)?,
            Self::Remove(which) => finish(which, place, End::Remove)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Ends devices' right to connect, all or none.
fn finish(which: which::Which, place: &Place, how: End) -> Result<()> {
    let done = match how {
        End::Revoke => "revoked",
        End::Remove => "removed",
    };
    let mut control = Control::open(&place.state()?)?;
    let names = which.names(&mut control, done, Some(how))?;
    match names.as_slice() {
        [name] => output::done(&format!("{done} {}", control.end(name, how)?)),
        names => output::done(&format!("{done} {} devices", control.end_all(names, how)?)),
    }
}

/// Opens a file, or standard input for `-`.
fn open(path: &std::path::Path) -> Result<Box<dyn std::io::BufRead>> {
    let shown = || import::shown(path);
    let mut input: Box<dyn std::io::BufRead> = if path == std::path::Path::new("-") {
        Box::new(std::io::stdin().lock())
    } else {
        Box::new(std::io::BufReader::new(std::fs::File::open(path).with_context(shown)?))
    };
    let mark = match input.fill_buf().with_context(shown)? {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => {
            return Err(duet::identity::Reason::Utf16).with_context(shown);
        }
        // Editors on Windows put a byte order mark in front.
        [0xef, 0xbb, 0xbf, ..] => 3,
        _ => 0,
    };
    input.consume(mark);
    Ok(input)
}
