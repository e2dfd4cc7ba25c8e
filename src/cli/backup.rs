//! `duet backup`: what a gateway cannot be made anew without, in one file. `restore` is the other way.
//!
//! It holds the registry, the settings, the certificates, keys and secrets of upstreams that they name, the node's key and
//! the audit log. Readings are not in it, nor the places that upstreams have reached in them; sessions must not be (R72), commands that wait would be
//! carried out twice, and tokens are made anew.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use duet::admin::{audit, copy_registry};
use duet::config::{Config, Loaded, Overrides};
use duet::identity::{self, now_s};
use duet::registry::{self, Registry};

use super::archive::Writer;
use super::control::{Control, audited};
use super::{Place, output};

/// Flags of `duet backup`.
#[derive(Args)]
#[command(
    after_help = "It works whether or not the gateway runs. The file is as secret as the gateway's key: whoever has it \
    can be the gateway. Readings, sessions and tokens are not in it."
)]
pub(super) struct Backup {
    /// The file to write; nothing is overwritten
    file: PathBuf,
}

impl Backup {
    pub(super) fn run(self, place: &Place) -> Result<ExitCode> {
        let Loaded { path: settings, config, .. } = place.loaded(&Overrides::default())?;
        let shown = self.file.display();
        if self.file.symlink_metadata().is_ok() {
            bail!("{shown}: exists already; nothing was changed");
        }
        let write = |copy: &Path| write(&config, &settings, copy, &self.file);
        let written = match Control::open(&config.state)? {
            Control::Gateway(client) => client.backup(|copy| {
                let written = write(copy);
                let is_gone = !copy.exists();
                // The gateway does so when this has ended, which may take it a second.
                copy.parent().map(fs::remove_dir_all);
                if is_gone {
                    bail!("the gateway has ended meanwhile, and took its copy of the registry along; run this again");
                }
                written
            })?,
            Control::Direct(registry, state) => {
                let copy = audited(&state, "POST /v1/backup", copy_registry(&registry))??;
                write(&copy.path())
            }
        };
        let (files, devices) = written.with_context(|| format!("{shown}: no backup was made"))?;
        output::done(&format!("{shown}: {files} files, {devices} devices"))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Writes the file, whole or not at all. Returns how many files and devices are in it.
fn write(config: &Config, settings: &Path, copy: &Path, file: &Path) -> Result<(usize, u64)> {
    // This verifies it: a backup that cannot be read is none.
    let registry = Registry::open(copy)?;
    registry.view()?;
    let devices = registry.len()?;
    drop(registry);
    let mut draft = file.as_os_str().to_owned();
    draft.push(".draft");
    let draft = PathBuf::from(draft);
    // A backup that was killed here may have left its own.
    super::init::remove(&draft)?;
    let written = (|| {
        let mut writer = Writer::create(&draft, now_s(), devices)?;
        let files = fill(&mut writer, config, settings, copy)?;
        writer.finish()?;
        identity::rename_new(&draft, file)?;
        identity::sync_dir_of(file)?;
        Ok((files, devices))
    })();
    if written.is_err() {
        let _ = fs::remove_file(&draft);
    }
    written
}

fn fill(writer: &mut Writer, config: &Config, settings: &Path, copy: &Path) -> Result<usize> {
    super::files::check(config)?;
    let mut files = 0;
    let mut add_open = |name: &str, path: &Path, mut file: File| -> Result<()> {
        let shown = || path.display().to_string();
        let size = if audit::is_log(name) { whole_lines(&mut file) } else { length(&file) };
        writer.add(name, file, size.with_context(shown)?).with_context(shown)?;
        files += 1;
        Ok(())
    };
    let logs = audit::files(&config.state).with_context(|| config.state.display().to_string())?;
    for (name, file) in logs {
        add_open(&name, &config.state.join(&name), file)?;
    }
    let mut add = |name: &str, path: &Path, need: Need| -> Result<()> {
        match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && need == Need::IfThere => {
                Ok(())
            }
            opened => add_open(name, path, opened.with_context(|| path.display().to_string())?),
        }
    };
    // The keys come first: whoever opens the registry needs them.
    add(registry::KEYS_FILE, &copy.with_file_name(registry::KEYS_FILE), Need::Always)?;
    add(registry::FILE, copy, Need::Always)?;
    add("node.key", &config.state.join("node.key"), Need::IfThere)?;
    for (path, need) in named(config, settings) {
        match inside(&config.state, path) {
            Some(name) => add(&name, path, need)?,
            None if need == Need::IfThere && !path.exists() => {}
            None => {
                let _ = writeln!(
                    io::stderr(),
                    "warning: {} is not in the backup, for it lies outside the state directory",
                    path.display()
                );
            }
        }
    }
    Ok(files)
}

/// Whether there is no backup without a file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    Always,
    /// Not every gateway has it.
    IfThere,
}

/// What a file is called in a backup, if it lies in the state directory.
fn inside(state: &Path, path: &Path) -> Option<String> {
    // Either may be told from here or from the root.
    let (state, path) = (std::path::absolute(state).ok()?, std::path::absolute(path).ok()?);
    let name = path.strip_prefix(state).ok()?;
    let plain = name.components().all(|part| matches!(part, Component::Normal(_)));
    name.to_str().filter(|name| plain && !name.is_empty()).map(str::to_owned)
}

/// The settings, and the certificates, keys and secrets that they name. The gateway's own certificate is the last:
/// whoever finds it finds everything.
fn named<'a>(config: &'a Config, settings: &'a Path) -> Vec<(&'a Path, Need)> {
    let mut paths = vec![(settings, Need::IfThere)];
    let mut always = |path: &'a Path| paths.push((path, Need::Always));
    for upstream in &config.upstreams {
        upstream.files().for_each(&mut always);
    }
    if let Some(api) = &config.api {
        [&*api.certificate, &api.key].into_iter().for_each(&mut always);
    }
    if let Some(retiring) = &config.retiring {
        [&*retiring.certificate, &retiring.key].into_iter().for_each(&mut always);
    }
    config.enrol.trusted.as_deref().into_iter().for_each(&mut always);
    [&*config.gateway.key, &config.gateway.certificate].into_iter().for_each(&mut always);
    // A gateway need not have a CA.
    for path in [&*config.enrol.key, &config.enrol.certificate] {
        paths.insert(1, (path, Need::IfThere));
    }
    let mut once: Vec<(&Path, Need)> = Vec::new();
    // One that is named twice stands where it was named last.
    for (path, need) in paths.into_iter().rev() {
        if once.iter().all(|(other, _)| *other != path) {
            once.push((path, need));
        }
    }
    once.reverse();
    once
}

fn length(file: &File) -> io::Result<u64> {
    Ok(file.metadata()?.len())
}

/// How much of a log is whole lines: the last may be in the making.
fn whole_lines(file: &mut File) -> io::Result<u64> {
    let length = length(file)?;
    let from = length.saturating_sub(64 * 1024);
    file.seek(SeekFrom::Start(from))?;
    let mut end = Vec::new();
    Read::by_ref(file).take(length - from).read_to_end(&mut end)?;
    file.rewind()?;
    let whole = end.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    Ok(from + whole as u64)
}
