//! Whether files stand in the places of a gateway's files, looked at before anything is opened. Opening a named pipe waits
//! for ever; a directory, which container engines make where the file to mount is missing, would be refused for its mode;
//! behind a symbolic link that leads nowhere a disk may not be mounted, and what is there would be made anew beside it.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use duet::admin::{audit, tokens};
use duet::config::{self, Config};
use duet::{commands, registry};

const NODE_KEY: &str = "node.key";
/// Written by each start: where it is, a gateway has run.
const HAS_RUN: &str = "spool.id";

/// Looks at the files of a state directory that every gateway has.
pub(super) fn check_state(state: &Path) -> Result<()> {
    let is_ours = |name: &str| {
        let names = [config::FILE, commands::FILE, tokens::FILE, NODE_KEY, HAS_RUN];
        names.contains(&name)
            || [registry::FILE, registry::KEYS_FILE].contains(&name)
            || name.ends_with(".seen")
            || audit::is_log(name)
    };
    check_those(state, is_ours)?;
    let is_cursor = |name: &str| name.ends_with(".cursor") || name.ends_with(".ndjson");
    check_those(&state.join("upstream"), is_cursor)?;
    // What cannot be listed is told by whoever needs it.
    let runs = fs::read_dir(state.join("presence")).into_iter().flatten().flatten();
    runs.map(|run| run.path())
        .filter(|run| run.is_dir())
        .try_for_each(|run| check_those(&run, |_| true))
}

/// Looks at the files of a spool.
pub(super) fn check_spool(dir: &Path) -> Result<()> {
    leads_somewhere(dir)?;
    check_those(dir, |name| name.starts_with("spool") || name.starts_with("cursor-"))
}

/// Looks at all files of a gateway: those of its state directory, of its spool, and those that the settings name.
pub(super) fn check(config: &Config) -> Result<()> {
    check_state(&config.state)?;
    check_spool(&config.spool.dir)?;
    check_named(config)
}

/// Looks at the certificates and keys that the settings name.
pub(super) fn check_named(config: &Config) -> Result<()> {
    let keys = std::iter::once(&config.gateway).chain(&config.retiring);
    let mut paths: Vec<&PathBuf> =
        keys.flat_map(|files| [&files.certificate, &files.key]).collect();
    paths.extend(config.api.iter().flat_map(|api| [&api.certificate, &api.key]));
    paths.extend([&config.enrol.certificate, &config.enrol.key]);
    paths.extend(&config.enrol.trusted);
    paths.into_iter().try_for_each(|path| look(path))
}

/// What was there when a gateway ran here, and is gone: it will be made anew, which nobody would see. In words for people.
pub(super) fn lost(state: &Path) -> Vec<String> {
    let is_there = |name: &str| state.join(name).exists();
    if !is_there(HAS_RUN) {
        return Vec::new();
    }
    // A log that was going on to its next file when it was killed has older ones.
    let has_log = fs::read_dir(state).is_ok_and(|mut found| {
        found
            .any(|file| file.is_ok_and(|file| file.file_name().to_str().is_some_and(audit::is_log)))
    });
    let what = [
        (NODE_KEY, is_there(NODE_KEY), "devices whose sessions are over take longer to come back"),
        (
            commands::FILE,
            is_there(commands::FILE),
            "the commands that waited in it are not carried out, and must be given anew",
        ),
        (audit::FILE, has_log, "a new audit log begins with number 1"),
    ];
    let gone = what.into_iter().filter(|(_, there, _)| !there);
    gone.map(|(name, _, follows)| {
        format!(
            "{}: a gateway has run here, and this file of it is gone; it is made anew, and {follows}. If it is elsewhere, \
             stop the gateway and put it back",
            state.join(name).display()
        )
    })
    .collect()
}

/// Looks at those entries of a directory whose names are of this kind.
fn check_those(dir: &Path, is_ours: impl Fn(&str) -> bool) -> Result<()> {
    // What cannot be listed is told by whoever needs it.
    let Ok(entries) = fs::read_dir(dir) else { return Ok(()) };
    for entry in entries {
        let name = entry.with_context(|| dir.display().to_string())?.file_name();
        if name.to_str().is_some_and(&is_ours) {
            look(&dir.join(name))?;
        }
    }
    Ok(())
}

/// Refuses a symbolic link to nothing.
fn leads_somewhere(path: &Path) -> Result<()> {
    let found = fs::metadata(path);
    match fs::read_link(path) {
        Ok(target) if found.is_err_and(|error| error.kind() == io::ErrorKind::NotFound) => bail!(
            "{}: a symbolic link to {}, and nothing is there: is its disk mounted?",
            path.display(),
            target.display()
        ),
        _ => Ok(()),
    }
}

/// Refuses what stands in the place of a file and is none. Nothing may be there.
pub(super) fn look(path: &Path) -> Result<()> {
    let kind = match fs::metadata(path) {
        Ok(found) => found.file_type(),
        // Whoever opens it says why it cannot be.
        Err(_) => return leads_somewhere(path),
    };
    if kind.is_file() {
        return Ok(());
    }
    let path = path.display();
    if kind.is_dir() {
        bail!(
            "{path}: a directory stands in this file's place, as container engines make one where the file to mount is \
             missing; remove it, and put the file there"
        );
    }
    let what = match kind {
        kind if kind.is_fifo() => "a named pipe",
        kind if kind.is_socket() => "a socket",
        _ => "a device",
    };
    bail!("{path}: {what} stands in this file's place; remove it, and put the file back")
}
