//! `duet device export`: devices in the form that `duet device import` takes.

use std::fs::OpenOptions;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use duet::admin::DeviceLine;

use super::super::control::Control;
use super::super::{Place, output};
use super::import::Form;

/// Flags of `duet device export`.
#[derive(Args)]
#[command(
    after_help = "Devices that were revoked are left out, and so are the marks: a gateway that imports the file \
    meets its devices for the first time. With --with-keys the file is as secret as the registry; without it \
    devices of mode registered-id come without their keys, and an import makes new ones."
)]
pub(in super::super) struct Export {
    /// Write to a new file, mode 0600 [default: standard output]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// The form [default: by the name of the file]
    #[arg(long, value_enum)]
    format: Option<Form>,
    /// Write registration keys, too
    #[arg(long)]
    with_keys: bool,
}

impl Export {
    pub(super) fn run(self, place: &Place) -> Result<()> {
        if self.with_keys && self.out.is_none() && io::stdout().is_terminal() {
            bail!("registration keys are not printed on a terminal: give --out FILE");
        }
        let form = Form::of(self.format, self.out.as_deref().unwrap_or(Path::new("")));
        let mut control = Control::open(&place.state()?)?;
        match &self.out {
            None => {
                let mut out = BufWriter::new(output::open()?);
                write(&mut control, form, self.with_keys, &mut out)
            }
            Some(path) => {
                let shown = || path.display().to_string();
                let mut options = OpenOptions::new();
                let file = options.write(true).create_new(true).mode(0o600).open(path);
                let mut out = BufWriter::new(file.with_context(shown)?);
                let written = write(&mut control, form, self.with_keys, &mut out)
                    .and_then(|()| out.get_ref().sync_all().with_context(shown));
                written.inspect_err(|_| {
                    // Half of it would pass for the whole.
                    let _ = std::fs::remove_file(path);
                })
            }
        }
    }
}

fn write(control: &mut Control, form: Form, with_keys: bool, out: &mut impl Write) -> Result<()> {
    if form == Form::Csv {
        writeln!(out, "name,mode,key_sources,id,key,certificate,tags,group,expires")?;
    }
    control.export(with_keys, |line| {
        match form {
            Form::Ndjson => {
                serde_json::to_writer(&mut *out, &line)?;
                out.write_all(b"\n")?;
            }
            Form::Csv => {
                // Names, modes, groups, times and hexadecimal digits need no quotes; key sources and tags are lists.
                let DeviceLine { name, mode, certificate, id, key, key_sources, .. } = &line;
                let DeviceLine { tags, group, expires, .. } = &line;
                let text = |field: &Option<String>| field.clone().unwrap_or_default();
                let sources = format!("\"{}\"", text(key_sources));
                writeln!(
                    out,
                    "{name},{mode},{sources},{},{},{},\"{}\",{},{}",
                    text(id),
                    text(key),
                    text(certificate),
                    text(tags),
                    text(group),
                    text(expires)
                )?;
            }
        }
        Ok(())
    })?;
    Ok(out.flush()?)
}
