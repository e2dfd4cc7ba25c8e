//! `duet restore`: makes a state directory from a backup.
//!
//! A backup is old by the time it is needed. Whoever was revoked since would be let in again, so it asks who that was;
//! and marks of before would let readings pass a second time, so it brings none back (R123).
//!
//! While it is at work a file says so, and the certificate comes last, as with `init`: whenever it is killed, it can be
//! run again, and nothing starts in between.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use duet::admin::audit::{self, Audit, Event};
use duet::identity::{self, Utc, now_s};
use duet::registry::{self, Name, Registry, RegistryError};

use super::archive::{self, Manifest};
use super::device::import;
use super::init::{make_private, remove};
use super::{Place, output};

/// Stands in the state directory until everything is in its place.
const BEGUN: &str = ".restore-not-finished";

/// Refuses a state directory in which a restore was cut off.
pub(super) fn is_finished(state: &Path) -> Result<()> {
    if state.join(BEGUN).symlink_metadata().is_ok() {
        bail!("{}: a restore was cut off here; run `duet restore` again", state.display());
    }
    Ok(())
}
/// The registry until what must not come back with it is gone.
const DRAFT: &str = "registry.restored";
/// What is kept where it is there already: it is newer than what the backup has.
const NODE_KEY: &str = "node.key";

/// Flags of `duet restore`.
#[derive(Args)]
#[command(
    after_help = "Nothing is overwritten: settings, certificate and registry must be gone. A spool that is left stays \
    and counts. Make new tokens afterwards. Without --revoked or --none-revoked it says what the backup is of, and \
    changes nothing."
)]
pub(super) struct Restore {
    /// The backup
    file: PathBuf,
    /// Names of devices that were revoked, removed or renewed since it was made, one a line; - reads standard input
    #[arg(long, value_name = "FILE", conflicts_with = "none_revoked")]
    revoked: Option<PathBuf>,
    /// No device was revoked, removed or renewed since it was made
    #[arg(long)]
    none_revoked: bool,
}

impl Restore {
    pub(super) fn run(self, place: &Place) -> Result<ExitCode> {
        let state = place.chosen();
        let Manifest { program, made_s, devices, .. } = archive::verify(&self.file)?;
        let made = Utc(made_s);
        let names = match &self.revoked {
            Some(file) => import::read_names(file)?,
            None if self.none_revoked => Vec::new(),
            None => bail!(
                "{}: a backup of {made} by {program}, with {devices} devices. A device that was revoked or removed \
                 after that would be let in again, and one that was renewed with its old credential alone: name them with --revoked FILE (`duet audit show` tells, where \
                 the log is left), or say --none-revoked. Nothing was changed",
                self.file.display()
            ),
        };
        look(&self.file, &state)?;
        make_private(&state)?;
        let outcome = self.restore(&state, &names, &made);
        let Done { refused, unknown } = outcome.with_context(|| {
            format!("{}: not restored; mend this and run it again", state.display())
        })?;
        let mut said = format!(
            "state        {}, as of {made}\ndevices      {devices}, {refused} of them refused as you said\n",
            state.display()
        );
        for name in unknown {
            said.push_str(&format!(
                "             {name} is not in the backup, and so refused anyway\n"
            ));
        }
        said.push_str(
            "renewed      a device that was renewed since then is let in with its old credential alone, unless you \
             named it; register it with its new one (`duet device renew`, or `add` where you named it)",
        );
        output::done(&said)?;
        Ok(ExitCode::SUCCESS)
    }

    fn restore(&self, state: &Path, names: &[Name], made: &Utc) -> Result<Done> {
        let begun = state.join(BEGUN);
        remove(&begun)?;
        identity::write_new(&begun, &[], 0o600)?;
        let draft = state.join(DRAFT);
        remove(&draft)?;
        let mut done = None;
        archive::files(&self.file, &mut |name, from| {
            let is_registry = name == registry::FILE;
            let path = if is_registry { draft.clone() } else { state.join(name) };
            // The log's newest file comes last of its files.
            let newer = match name {
                NODE_KEY => path.exists(),
                name => audit::is_log(name) && state.join(audit::FILE).exists(),
            };
            if newer {
                return Ok(());
            }
            write(state, &path, from).with_context(|| path.display().to_string())?;
            if is_registry {
                // What was revoked since, the operator has named.
                Registry::forget_seen(&draft)?;
                done = Some(settle(&draft, names)?);
                remove(&state.join(registry::FILE))?;
                identity::rename_new(&draft, &state.join(registry::FILE))?;
            }
            Ok(())
        })?;
        let Some(done) = done else { bail!("{}: no registry is in it", self.file.display()) };
        let who = format!("uid {}", rustix::process::getuid().as_raw());
        let action = format!("restore of a backup of {made}");
        let outcome = format!("done; {} devices were refused with it", done.refused);
        let event = Event { who: &who, from: "offline", action: &action, outcome: &outcome };
        Audit::open(state, None)?.write(event)?;
        identity::sync_dir_of(&begun)?;
        remove(&begun)?;
        identity::sync_dir_of(&begun)?;
        Ok(done)
    }
}

/// What became of the devices that were named.
struct Done {
    refused: usize,
    unknown: Vec<Name>,
}

/// Takes what must not come back out of a registry that nobody uses yet.
fn settle(draft: &Path, names: &[Name]) -> Result<Done> {
    let registry = Registry::open(draft)?;
    registry.forget_marks()?;
    let (mut refused, mut unknown) = (0, Vec::new());
    for name in names {
        match registry.revoke(name, now_s()) {
            Ok(_) | Err(RegistryError::RevokedAlready(..)) => refused += 1,
            Err(RegistryError::Unknown(name)) => unknown.push(name),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Done { refused, unknown })
}

/// Refuses a directory in which something would be overwritten that may still be needed.
fn look(file: &Path, state: &Path) -> Result<()> {
    // What an earlier call left that did not come to its end is in the backup.
    if state.join(BEGUN).exists() {
        return Ok(());
    }
    archive::files(file, &mut |name, _| {
        let path = state.join(name);
        if path.symlink_metadata().is_ok() && name != NODE_KEY && !audit::is_log(name) {
            bail!(
                "{}: exists already; move it away, or give another --state. Nothing was changed",
                path.display()
            );
        }
        Ok(())
    })
}

/// Writes one file, durably, for its owner alone.
fn write(state: &Path, path: &Path, from: &mut dyn io::Read) -> Result<()> {
    if let Some(parent) = path.parent().filter(|parent| *parent != state) {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
    }
    remove(path)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    io::copy(from, &mut file)?;
    file.sync_all()?;
    Ok(identity::sync_dir_of(path)?)
}
