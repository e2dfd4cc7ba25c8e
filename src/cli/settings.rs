//! `duet config …` and `duet check`: the settings, and whether a gateway would start with them.

use std::io::Write;
use std::net::{TcpListener, UdpSocket};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};
use duet::admin::audit;
use duet::admin::tokens::Tokens;
use duet::commands;
use duet::config::{Config, Overrides};
use duet::identity::{Utc, now_s};
use duet::registry::{self, Registry, RegistryError};
use duet_upstream::Upstream;
use rustix::fs::{Access, Mode, OFlags};
use rustix::io::Errno;

use super::identities::Identities;
use super::talk::gateway;
use super::{Format, Place, output};

/// The gateway's settings
#[derive(Subcommand)]
pub(super) enum Settings {
    /// Show every setting with its value
    Show {
        /// Show where each value comes from: default, line of the file, environment
        #[arg(long)]
        origin: bool,
        /// How to show them
        #[arg(long, value_enum, default_value = "table")]
        format: Format,
    },
    /// Have the running gateway take changed settings and certificates, all of them or, if one is wrong, none
    Reload,
}

/// Flags of `duet check`.
#[derive(Args)]
#[command(
    after_help = "Exit code 0: a gateway would start. 1: it would not; what to do is said. While a gateway runs \
    its addresses are in use, and are left out."
)]
pub(super) struct Check {
    /// How to show the results
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

impl Settings {
    pub(super) fn run(self, place: &Place) -> Result<ExitCode> {
        match self {
            Self::Show { origin, format } => show(place, origin, format)?,
            Self::Reload => reload(place)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn show(place: &Place, origin: bool, format: Format) -> Result<()> {
    let loaded = place.loaded(&Overrides::default())?;
    let mut out = output::open()?;
    for (setting, value, from) in loaded.values.all() {
        let key = setting.key;
        match (format, origin) {
            (Format::Json, _) => {
                let (value, from) = (value.to_string(), from.to_string());
                writeln!(
                    out,
                    "{}",
                    serde_json::json!({ "key": key, "value": value, "origin": from })
                )?;
            }
            (Format::Table, true) => writeln!(out, "{key:<28} {:<28} {from}", value.to_string())?,
            (Format::Table, false) => writeln!(out, "{key:<28} {value}")?,
        }
    }
    Ok(())
}

fn reload(place: &Place) -> Result<()> {
    let done = gateway(&place.state()?)?.reload()?;
    done.lines().iter().try_for_each(|line| output::done(line))
}

/// One thing that was looked at.
#[derive(serde::Serialize)]
struct Finding {
    what: String,
    ok: bool,
    result: String,
}

impl Check {
    pub(super) fn run(self, place: &Place) -> Result<ExitCode> {
        let config = place.load(&Overrides::default())?;
        let findings = look(&config);
        let mut out = output::stdout();
        for finding in &findings {
            match self.format {
                Format::Json => writeln!(out, "{}", serde_json::to_string(finding)?)?,
                Format::Table => {
                    let mark = if finding.ok { "ok  " } else { "FAIL" };
                    writeln!(out, "{mark} {:<14} {}", finding.what, finding.result)?;
                }
            }
        }
        let good = findings.iter().all(|finding| finding.ok);
        Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// Looks at everything that a start needs, and changes nothing.
fn look(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut note = |what: &str, result: Result<String, String>| {
        let ok = result.is_ok();
        let result = result.unwrap_or_else(|error| error);
        findings.push(Finding { what: what.into(), ok, result });
    };
    note("settings", Ok("every setting is within its limits".into()));
    let state = super::run::check_state(config)
        .and_then(|()| may_write(&config.state).map_err(anyhow::Error::msg));
    let is_sound = state.is_ok();
    note("state", state.map(|()| config.state.display().to_string()).map_err(text));
    // Whoever opened a named pipe would wait for ever.
    if !is_sound {
        return findings;
    }
    match Identities::load(config, now_s()) {
        Ok(identities) => {
            for (key_id, identity) in &identities.all {
                let end = Utc(identity.certificate.validity.not_after_s);
                note("certificate", Ok(format!("key_id {key_id}, valid until {end}")));
            }
            identities
                .warnings
                .iter()
                .for_each(|text| note("certificate", Ok(format!("warning: {text}"))));
        }
        Err(error) => note("certificate", Err(error.to_string())),
    }
    if let Some(api) = &config.api {
        let made = duet::admin::acceptor(&api.certificate, &api.key);
        note(
            "api",
            made.map(|_| api.certificate.display().to_string()).map_err(|error| error.to_string()),
        );
    }
    match duet::admin::check_enrol(&config.enrol, now_s()) {
        Ok(Some(end)) => {
            let path = config.enrol.certificate.display();
            note("enrolment", Ok(format!("{path}, valid until {end}")));
        }
        Ok(None) => {}
        Err(error) => note("enrolment", Err(error.to_string())),
    }
    for text in config.upstreams.iter().filter_map(Upstream::warning) {
        note("upstream", Ok(format!("warning: {text}")));
    }
    let looked = match Registry::look(&config.state.join(registry::FILE)) {
        Err(RegistryError::InUse(file)) => {
            Ok(format!("{}: a gateway runs here and holds it", file.display()))
        }
        looked => looked.map_err(|error| error.to_string()),
    };
    note("registry", looked);
    if let Err(error) = duet::server::look_at_node_key(&config.state) {
        note("node key", Err(error.to_string()));
    }
    if let Err(error) = Tokens::open(&config.state) {
        note("tokens", Err(error.to_string()));
    }
    let looked = match commands::look(&config.state.join(commands::FILE)) {
        Err(commands::StoreError::InUse(file)) => {
            Ok(format!("{}: a gateway runs here and holds it", file.display()))
        }
        looked => looked.map_err(|error| error.to_string()),
    };
    note("commands", looked);
    match audit::look(&config.state) {
        Ok(None) => {}
        Ok(Some(missing)) => note("audit log", Ok(format!("warning: {missing}"))),
        Err(error) => note("audit log", Err(error.to_string())),
    }
    match duet::server::look_at_spool(config) {
        Ok(None) => {}
        Ok(Some(missing)) => note("spool", Ok(format!("warning: {missing}"))),
        Err(error) => note("spool", Err(error.to_string())),
    }
    let dir = &config.spool.dir;
    let parent = if dir.exists() { dir.as_path() } else { dir.parent().unwrap_or(dir) };
    note("spool", room(parent, config.spool.segment_bytes));
    match duet::admin::Client::connect(&config.state) {
        Ok(Some(_)) => note("addresses", Ok("a gateway runs here and holds them".into())),
        _ => {
            note(
                "listen UDP",
                UdpSocket::bind(config.listen)
                    .map(|_| config.listen.to_string())
                    .map_err(|error| format!("{}: {error}", config.listen)),
            );
            for (what, address) in
                [("listen TCP", config.listen), ("metrics", config.metrics.listen)]
            {
                note(
                    what,
                    TcpListener::bind(address)
                        .map(|_| address.to_string())
                        .map_err(|error| format!("{address}: {error}")),
                );
            }
        }
    }
    findings
}

/// Whether the disk has room for a segment of the spool.
pub(super) fn room(dir: &std::path::Path, segment_bytes: u64) -> Result<String, String> {
    let found = rustix::fs::statvfs(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    let (shown, mib) = (dir.display(), free >> 20);
    may_write(dir)?;
    if free < segment_bytes {
        let lack =
            format!("{shown}: {mib} MiB free, and one segment takes {} MiB", segment_bytes >> 20);
        // The newest one may have room left: readings are stored until it has none.
        return match duet::delivery::spool_id(dir) {
            Ok(_) => Ok(format!("warning: {lack}; make room before the newest one is full")),
            Err(_) => Err(format!("{lack}; make room")),
        };
    }
    Ok(format!("{shown}, {mib} MiB free"))
}

/// Whether a file can be made in this directory; none is left. A file system that has failed can be one that only its
/// writers are told of.
fn may_write(dir: &std::path::Path) -> Result<(), String> {
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    let made = match rustix::fs::open(dir, flags, Mode::RUSR | Mode::WUSR) {
        // Not on every file system.
        Err(Errno::OPNOTSUPP | Errno::ISDIR) => rustix::fs::access(dir, Access::WRITE_OK),
        made => made.map(drop),
    };
    let shown = dir.display();
    match made {
        // How much room there is is another question.
        Ok(()) | Err(Errno::NOSPC | Errno::DQUOT) => Ok(()),
        Err(Errno::ROFS) => Err(format!(
            "{shown}: its file system can only be read; mount it for writing (`mount -o remount,rw`), or see why it was \
             mounted so (`dmesg`)"
        )),
        Err(Errno::ACCESS) => Err(format!(
            "{shown}: this user may not write here; run as the gateway's user, or `chown` it"
        )),
        Err(error) => Err(format!("{shown}: {error}")),
    }
}

fn text(error: anyhow::Error) -> String {
    error.to_string()
}
