//! Which devices a command is about, and what people may say of one on the command line.

use std::io::{self, BufRead as _, IsTerminal, Write as _};
use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use duet::admin::devices::End;
use duet::admin::{DeviceQuery, DeviceState};
use duet::identity::{Utc, now_s};

use super::super::control::Control;
use super::super::times;
use super::import;

/// How many names are told before it is asked whether they are meant.
const TOLD: usize = 10;

/// What is said of a device when it is registered.
#[derive(Args)]
pub(in super::super) struct Labels {
    /// Tags to find it by, separated by commas
    #[arg(long, value_name = "TAGS")]
    pub(in super::super) tag: Option<String>,
    /// The group that it belongs to
    #[arg(long, value_name = "GROUP")]
    pub(in super::super) group: Option<String>,
    /// When its registration ends: 90d, 2031-02-28, or never [default: never]
    #[arg(long, value_name = "TIME", value_parser = times::end)]
    expires: Option<String>,
}

impl Labels {
    /// When its registration ends, where it does.
    ///
    /// # Errors
    /// When that has passed.
    pub(in super::super) fn end(&self) -> Result<Option<String>> {
        let Some(end) = self.expires.as_deref().filter(|end| *end != "never") else {
            return Ok(None);
        };
        if end.parse::<Utc>().is_ok_and(|end| end.0 <= now_s()) {
            bail!("--expires {end}: this has passed; nothing was registered");
        }
        Ok(Some(end.to_owned()))
    }
}

/// Filters: a device is meant if it meets all that are given.
#[derive(Args)]
pub(super) struct Filter {
    /// Only devices in this state
    #[arg(long, value_name = "STATE", value_parser = states())]
    only: Option<DeviceState>,
    /// Only devices that prove themselves in this way: certificate, registered-certificate, registered-id
    #[arg(long, value_name = "MODE", value_parser = ["certificate", "registered-certificate", "registered-id"])]
    mode: Option<String>,
    /// Only devices that may use this profile, for example certificate/ephemeral, or this key source
    #[arg(long, value_name = "PROFILE")]
    profile: Option<String>,
    /// Only devices whose names match; * stands for anything
    #[arg(long, value_name = "PATTERN")]
    name: Option<String>,
    /// Only devices with all of these tags, separated by commas
    #[arg(long, value_name = "TAGS")]
    tag: Option<String>,
    /// Only devices of this group
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,
    /// Only devices whose certificates or registrations end within this time, or have ended: 30d, 12h
    #[arg(long, value_name = "TIME", value_parser = times::span)]
    expiring: Option<i64>,
    /// Only devices that are online
    #[arg(long)]
    online: bool,
}

/// Devices by their names or by filters: all of them are taken, or none.
#[derive(Args)]
pub(in super::super) struct Which {
    /// Their names
    #[arg(required_unless_present_any = OTHERS, conflicts_with_all = OTHERS)]
    names: Vec<String>,
    /// Take the names from a file, one a line; - reads standard input
    #[arg(long, value_name = "FILE", conflicts_with_all = FILTERS)]
    file: Option<PathBuf>,
    #[command(flatten)]
    filter: Filter,
    /// Do not ask whether the devices that the filters choose are meant
    #[arg(long)]
    yes: bool,
}

const OTHERS: [&str; 9] =
    ["file", "only", "mode", "profile", "name", "tag", "group", "expiring", "online"];
const FILTERS: [&str; 8] =
    ["only", "mode", "profile", "name", "tag", "group", "expiring", "online"];

fn states() -> impl TypedValueParser<Value = DeviceState> {
    PossibleValuesParser::new(DeviceState::ALL.map(DeviceState::name)).try_map(|name| {
        let found = DeviceState::ALL.into_iter().find(|state| state.name() == name);
        found.ok_or("no such state")
    })
}

impl Filter {
    pub(super) fn query(&self) -> DeviceQuery {
        let Self { only, mode, profile, name, tag, group, expiring, online } = self;
        DeviceQuery {
            after: None,
            limit: None,
            name: name.clone(),
            tag: tag.clone(),
            group: group.clone(),
            mode: mode.clone(),
            profile: profile.clone(),
            state: *only,
            expiring_s: *expiring,
            online: *online,
        }
    }
}

impl Which {
    /// The names of the devices. Those that filters chose are told, and it is asked whether they are meant: `what` says
    /// what is to become of them. Devices that were revoked are not revoked again.
    pub(super) fn names(
        self,
        control: &mut Control,
        what: &str,
        how: Option<End>,
    ) -> Result<Vec<String>> {
        if !self.names.is_empty() {
            return Ok(self.names);
        }
        if let Some(file) = &self.file {
            let shown = import::shown(file);
            let names = import::read_names(file)?;
            let names: Vec<_> = names.iter().map(ToString::to_string).collect();
            if names.is_empty() {
                bail!("{shown}: no names in it");
            }
            return Ok(names);
        }
        let mut names = Vec::new();
        control.list(&self.filter.query(), |device| {
            if how != Some(End::Revoke) || device.revoked_s.is_none() {
                names.push(device.name);
            }
            Ok(())
        })?;
        if names.is_empty() {
            bail!("no device meets these filters; nothing was changed");
        }
        if !self.yes {
            ask(&names, what)?;
        }
        Ok(names)
    }
}

/// Asks whether these devices are meant; where nobody can be asked, they are not.
fn ask(names: &[String], what: &str) -> Result<()> {
    let mut told = names[..names.len().min(TOLD)].join(", ");
    if names.len() > TOLD {
        told.push_str(", …");
    }
    let count = names.len();
    if !io::stdin().is_terminal() {
        bail!(
            "{count} devices would be {what} ({told}); give --yes to have it done, nothing was changed"
        );
    }
    let mut said = io::stderr().lock();
    write!(said, "{count} devices will be {what}: {told}\nGo on? [y/N] ")?;
    said.flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => bail!("nothing was changed"),
    }
}
