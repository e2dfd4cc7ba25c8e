//! `duet device import`: many devices from a file, all or none, with a result for each line.

use std::collections::HashMap;
use std::io::{self, BufRead, Read as _, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use duet::admin::{Credential, DeviceLine, MAX_IMPORT, MAX_LINE_LEN, Refused};
use duet::printable::Printable;
use duet::registry::Name;
use zeroize::Zeroizing;

use super::super::Place;
use super::super::control::Control;
use super::add::{address, complete};
use super::deliver::{To, then_in_dir};
use super::open;
use crate::cli::output;

/// Refused lines that are told one by one.
const TOLD: usize = 20;

/// Flags of `duet device import`.
#[derive(Args)]
#[command(after_help = "One JSON object a line:\n  \
    {\"name\":\"a\",\"mode\":\"certificate\",\"certificate\":\"-----BEGIN …\"}\n  \
    {\"name\":\"b\",\"mode\":\"registered-certificate\",\"certificate\":\"3082…\",\"id\":\"00112233aabbccdd\"}\n  \
    {\"name\":\"c\",\"mode\":\"registered-id\",\"key_sources\":\"ephemeral,xor-key\"}\n\n\
    or the same as CSV, the first line being the header:\n  \
    name,mode,key_sources,id,key,certificate,tags,group,expires\n\n\
    tags (separated by commas), group and expires (2031-02-28) may be left out. \
    A certificate is PEM or hexadecimal DER. An id or key that is missing is made; the credentials \
    with them go to --out, one JSON object a line. `duet device export` writes what this takes.")]
pub(in super::super) struct Import {
    /// The devices; - reads standard input
    file: PathBuf,
    /// The file's form [default: by its name, .csv or anything else]
    #[arg(long, value_enum)]
    format: Option<Form>,
    /// Write the credentials to a new file, mode 0600
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Write each credential to a file of its own, NAME.json, in a new directory
    #[arg(long, value_name = "DIR", conflicts_with = "out")]
    out_dir: Option<PathBuf>,
    /// Where the devices reach the gateway, for the credentials
    #[arg(long, value_name = "HOST:PORT", value_parser = address)]
    address: Option<String>,
    /// Register nothing; say of each line what would become of it
    #[arg(long)]
    dry_run: bool,
    /// Say of each line what became of it, one JSON object each
    #[arg(long)]
    results: bool,
}

/// Forms of an import or an export.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Form {
    /// One JSON object a line
    Ndjson,
    /// Comma-separated, with a header
    Csv,
}

impl Form {
    /// The form that was asked for, or that the file's name says.
    pub(super) fn of(asked: Option<Self>, path: &Path) -> Self {
        let csv = path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("csv"));
        asked.unwrap_or(if csv { Self::Csv } else { Self::Ndjson })
    }
}

impl Import {
    pub(super) fn run(self, place: &Place) -> Result<ExitCode> {
        let shown = shown(&self.file);
        let (mut lines, numbers) = match Form::of(self.format, &self.file) {
            Form::Ndjson => read_lines(open(&self.file)?, &shown)?,
            Form::Csv => read_csv(open(&self.file)?, &shown)?,
        };
        let mut made = false;
        for line in &mut lines {
            made |= complete(line)?;
        }
        if made && self.out.is_none() && self.out_dir.is_none() && !self.dry_run {
            bail!(
                "{shown}: some ids or keys are to be made here: give --out FILE or --out-dir DIR for them"
            );
        }
        let mut control = Control::open(&place.state()?)?;
        let mut refused = control.check(&lines)?;
        let number = |index: usize| numbers.get(index).copied().unwrap_or_default();
        blame_own(&mut refused, &lines, number);
        let results = |good: &str| tell(&lines, &refused, number, good);
        if !refused.is_empty() {
            if self.results || self.dry_run {
                results(if self.dry_run { "would be registered" } else { "not registered" })?;
            }
            for Refused { device, error } in refused.iter().take(TOLD) {
                let _ = writeln!(io::stderr(), "duet: {shown}: line {}: {error}", number(*device));
            }
            if refused.len() > TOLD {
                let _ = writeln!(io::stderr(), "duet: and {} lines more", refused.len() - TOLD);
            }
            let _ = writeln!(
                io::stderr(),
                "duet: {shown}: {} of {} devices would be refused; none was registered",
                refused.len(),
                lines.len()
            );
            return Ok(ExitCode::FAILURE);
        }
        if self.dry_run {
            results("would be registered")?;
            return Ok(ExitCode::SUCCESS);
        }
        let place_of = |index| Some(format!("line {}", number(index)));
        let add =
            |control: &mut Control| control.add(&lines, place_of).with_context(|| shown.clone());
        let count = if self.out.is_none() && self.out_dir.is_none() {
            add(&mut control)?
        } else {
            let mut gateway = control.facts(place)?;
            if self.address.is_some() {
                gateway.address.clone_from(&self.address);
            }
            // Reserved up front: a growing vector would leave unwiped copies behind.
            let size = |line: &DeviceLine| {
                let own = line.certificate.as_ref().map_or(0, |text| text.len() * 2);
                (gateway.certificate_pem.len() + gateway.certificate.len() + 1024) * 2 + own
            };
            match (&self.out, &self.out_dir) {
                (None, Some(dir)) => {
                    let mut credentials = Vec::with_capacity(lines.len());
                    for line in &lines {
                        let mut text = Zeroizing::new(Vec::with_capacity(size(line)));
                        Credential::of(line, &gateway)?.write_json(&mut text)?;
                        credentials.push((line.name.clone(), text));
                    }
                    then_in_dir(dir, &credentials, || add(&mut control))?
                }
                (out, _) => {
                    let mut text = Zeroizing::new(Vec::with_capacity(lines.iter().map(size).sum()));
                    for line in &lines {
                        Credential::of(line, &gateway)?.write_json(&mut text)?;
                    }
                    let out = out.as_deref().unwrap_or(Path::new("-"));
                    To::File(out).then(&text, || add(&mut control))?
                }
            }
        };
        if self.results {
            results("registered")?;
        } else {
            output::done(&format!("registered {count} devices"))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Says of lines whose names the file has before where that is: no such device is registered that could be removed.
fn blame_own(refused: &mut [Refused], lines: &[DeviceLine], number: impl Fn(usize) -> usize) {
    let mut first = HashMap::new();
    for (index, line) in lines.iter().enumerate() {
        first.entry(line.name.as_str()).or_insert(index);
    }
    for Refused { device, error } in refused {
        let Some(line) = lines.get(*device) else { continue };
        if let Some(before) = first.get(line.name.as_str()).filter(|first| *first < device) {
            *error =
                format!("{}: line {} has this name, too", Printable(&line.name), number(*before));
        }
    }
}

/// Says of each line what became of it.
fn tell(
    lines: &[DeviceLine],
    refused: &[Refused],
    number: impl Fn(usize) -> usize,
    good: &str,
) -> Result<()> {
    let mut out = io::BufWriter::new(output::stdout());
    let mut refused = refused.iter().peekable();
    for (index, line) in lines.iter().enumerate() {
        let (name, number) = (&line.name, number(index));
        let result = match refused.next_if(|refused| refused.device == index) {
            Some(Refused { error, .. }) => {
                serde_json::json!({ "line": number, "name": name, "result": "refused", "error": error })
            }
            None => serde_json::json!({ "line": number, "name": name, "result": good }),
        };
        writeln!(out, "{result}")?;
    }
    Ok(out.flush()?)
}

/// A file's name for people.
pub(in super::super) fn shown(file: &Path) -> String {
    if file == Path::new("-") { "standard input".to_owned() } else { file.display().to_string() }
}

/// Reads names of devices, one a line; empty lines are skipped.
pub(in super::super) fn read_names(file: &Path) -> Result<Vec<Name>> {
    let shown = shown(file);
    let mut text = String::new();
    let most = MAX_IMPORT as u64 * 66;
    open(file)?.take(most).read_to_string(&mut text).with_context(|| shown.clone())?;
    if text.len() as u64 == most {
        bail!("{shown}: longer than a file of {MAX_IMPORT} names; split it");
    }
    let lines = (1..).zip(text.lines()).map(|(number, line)| (number, line.trim()));
    lines
        .filter(|(_, line)| !line.is_empty())
        .map(|(number, line)| line.parse().with_context(|| format!("{shown}: line {number}")))
        .collect()
}

/// Reads devices, one a line, with the numbers of the lines; empty ones are skipped.
fn read_lines(mut input: impl BufRead, shown: &str) -> Result<(Vec<DeviceLine>, Vec<usize>)> {
    let (mut lines, mut numbers) = (Vec::new(), Vec::new());
    for number in 1.. {
        let mut text = Zeroizing::new(Vec::new());
        let mut bounded = io::Read::take(&mut input, MAX_LINE_LEN as u64);
        if bounded.read_until(b'\n', &mut text).with_context(|| shown.to_owned())? == 0 {
            break;
        }
        if text.len() >= MAX_LINE_LEN {
            bail!("{shown}: line {number} is too long");
        }
        if text.trim_ascii().is_empty() {
            continue;
        }
        if lines.len() == MAX_IMPORT {
            bail!("{shown}: more than {MAX_IMPORT} devices; split the file");
        }
        if text.trim_ascii_start().starts_with(b"[") {
            bail!("{shown}: line {number} begins a list; write one JSON object a line");
        }
        match serde_json::from_slice(&text) {
            Ok(line) => lines.push(line),
            Err(error) if error.is_eof() => {
                bail!(
                    "{shown}: line {number} ends before its JSON object does; write one JSON object a line"
                );
            }
            Err(error) => {
                // It counts lines within the text it was given.
                let (column, error) = (error.column(), error.to_string());
                let what = error.split(" at line ").next().unwrap_or_default();
                bail!("{shown}: line {number}, column {column}, is not a device: {what}");
            }
        }
        numbers.push(number);
    }
    Ok((lines, numbers))
}

/// Reads devices from CSV, with the numbers of the lines at which they begin.
fn read_csv(input: impl BufRead, shown: &str) -> Result<(Vec<DeviceLine>, Vec<usize>)> {
    let (mut lines, mut numbers) = (Vec::new(), Vec::new());
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(input);
    let header = reader.headers().with_context(|| shown.to_owned())?.clone();
    if !header.iter().any(|field| field == "name") {
        bail!("{shown}: the first line must name the columns, for example: name,mode");
    }
    let mut row = csv::StringRecord::new();
    loop {
        let at = reader.position().line();
        let more = reader.read_record(&mut row);
        let number =
            usize::try_from(row.position().map_or(at, csv::Position::line)).unwrap_or(usize::MAX);
        match more {
            Ok(false) => return Ok((lines, numbers)),
            Ok(true) if row.as_slice().len() >= MAX_LINE_LEN => {
                bail!("{shown}: line {number} is too long")
            }
            Ok(true) if lines.len() == MAX_IMPORT => {
                bail!("{shown}: more than {MAX_IMPORT} devices; split the file");
            }
            Ok(true) => match row.deserialize(Some(&header)) {
                Ok(line) => lines.push(line),
                Err(error) => bail!("{shown}: line {number} is not a device: {}", kind(&error)),
            },
            Err(error) => bail!("{shown}: line {number} is not a device: {}", kind(&error)),
        }
        numbers.push(number);
    }
}

/// What is wrong with a row, without the place, which the reader counts in its own way.
fn kind(error: &csv::Error) -> String {
    match error.kind() {
        csv::ErrorKind::Deserialize { err, .. } => err.kind().to_string(),
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            format!("it has {len} fields and the header {expected_len}")
        }
        csv::ErrorKind::Utf8 { .. } => "it is not UTF-8".to_owned(),
        _ => error.to_string(),
    }
}
