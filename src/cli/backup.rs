//! `duet backup`: what a gateway cannot be made anew without, in one file. `restore` is the other way.
//!
//! It holds the registry, the settings, the certificates with their keys, the node's key and the audit log. Readings
//! are not in it, nor the places that upstreams have reached in them; sessions must not be (R72), commands that wait would be
//! carried out twice, and tokens are made anew.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use duet::admin::{audit, copy_registry};
use duet::config::{self, Config, Overrides};
use duet::identity::{self, now_s};
use duet::registry::{self, Registry};

use super::Place;
use super::archive::Writer;
use super::control::{Control, audited};

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
        let config = place.load(&Overrides::default())?;
        let shown = self.file.display();
        if self.file.symlink_metadata().is_ok() {
            bail!("{shown}: exists already; nothing was changed");
        }
        let copy = match Control::open(&config.state)? {
            Control::Gateway(mut client) => client.backup()?,
            Control::Direct(registry, state) => {
                audited(&state, "POST /v1/backup", copy_registry(&registry))??
            }
        };
        let written = write(&config, &copy, &self.file);
        if let Some(dir) = copy.parent() {
            // It would be secret rubbish.
            let _ = fs::remove_dir_all(dir);
        }
        let (files, devices) = written.with_context(|| format!("{shown}: no backup was made"))?;
        writeln!(io::stdout(), "{shown}: {files} files, {devices} devices")?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Writes the file, whole or not at all. Returns how many files and devices are in it.
fn write(config: &Config, copy: &Path, file: &Path) -> Result<(usize, u64)> {
    // Opening it verifies it: a backup that cannot be read is none.
    let devices = Registry::open(copy)?.len()?;
    let mut draft = file.as_os_str().to_owned();
    draft.push(".draft");
    let draft = PathBuf::from(draft);
    let written = (|| {
        let mut writer = Writer::create(&draft, now_s(), devices)?;
        let files = fill(&mut writer, config, copy)?;
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

fn fill(writer: &mut Writer, config: &Config, copy: &Path) -> Result<usize> {
    let mut files = 0;
    let mut add = |name: &str, path: &Path| -> Result<()> {
        let shown = || path.display().to_string();
        let mut file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            opened => opened.with_context(shown)?,
        };
        let size = if name == audit::FILE { whole_lines(&mut file) } else { length(&file) };
        let size = size.with_context(shown)?;
        writer.add(name, file, size).with_context(shown)?;
        files += 1;
        Ok(())
    };
    add(registry::FILE, copy)?;
    for name in [config::FILE, "node.key", audit::FILE] {
        add(name, &config.state.join(name))?;
    }
    for path in certificates(config) {
        match path.strip_prefix(&config.state).ok().and_then(Path::to_str) {
            Some(name) => add(name, path)?,
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

/// The certificates and keys that the settings name. The gateway's own certificate is the last: whoever finds it
/// finds everything.
fn certificates(config: &Config) -> Vec<&Path> {
    let mut paths: Vec<&Path> = Vec::new();
    if let Some(api) = &config.api {
        paths.extend([api.certificate.as_path(), &api.key]);
    }
    if let Some(retiring) = &config.retiring {
        paths.extend([retiring.certificate.as_path(), &retiring.key]);
    }
    paths.extend([config.enrol.key.as_path(), &config.enrol.certificate]);
    paths.extend(config.enrol.trusted.as_deref());
    paths.extend([config.gateway.key.as_path(), &config.gateway.certificate]);
    let mut once: Vec<&Path> = Vec::new();
    // One that is named twice stands where it was named last.
    for path in paths.into_iter().rev() {
        if !once.contains(&path) {
            once.push(path);
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
