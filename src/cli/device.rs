//! `duet device …`: the registry from the outside.

use std::fs;
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use duet::admin::devices::End;
use duet::admin::{DeviceInfo, DeviceLine, MAX_IMPORT, MAX_LINE_LEN};
use duet::config::Overrides;
use duet::hex::Hex;
use duet::identity::{self, Role, Utc, fingerprint_text, now_s};
use duet::registry::SourceSet;
use duet_protocol::identity::DeviceId;
use serde::Serialize;
use zeroize::Zeroizing;

use super::control::Control;
use super::{Format, Place};

/// Subcommands of `duet device`.
#[derive(Subcommand)]
pub(super) enum Device {
    /// Register a device and write what it needs to know
    Add(Add),
    /// Register many devices in one transaction: all of them or none
    Import(Import),
    /// List devices in the order of their names
    List {
        /// How to show them
        #[arg(long, value_enum, default_value = "table")]
        format: Format,
    },
    /// Show one device
    Show {
        /// Its name
        name: String,
        /// How to show it
        #[arg(long, value_enum, default_value = "table")]
        format: Format,
    },
    /// Refuse a device for ever under its present credential, and end its sessions
    Revoke {
        /// Its name
        name: String,
    },
    /// Forget a device and end its sessions; a credential that was revoked stays refused
    Remove {
        /// Its name
        name: String,
    },
}

/// Flags of `duet device add`.
#[derive(Args)]
#[command(after_help = "Ways of identification (choose one):\n  \
    --cert FILE             the device names its certificate by the certificate's fingerprint\n  \
    --registered-cert FILE  the device names an id, made here, that maps to its certificate\n  \
    --registered-id         the device has an id and a registration key, both made here\n\n\
    The device's private key never comes here. The credential (JSON) goes to --out, mode 0600, or \
    to standard output; a registration key is not printed on a terminal.")]
pub(super) struct Add {
    /// 1 to 64 of the characters A-Z a-z 0-9 . _ -
    name: String,
    #[command(flatten)]
    way: Way,
    /// Key sources the device may use, separated by commas: ephemeral, xor-key, xor-random,
    /// client-key, client-random
    #[arg(long, value_name = "LIST", default_value = "ephemeral")]
    profile: SourceSet,
    /// Write the credential to a new file
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct Way {
    /// Certificate of the device, PEM or DER
    #[arg(long, value_name = "FILE")]
    cert: Option<PathBuf>,
    /// Certificate of the device, to be named by an id
    #[arg(long, value_name = "FILE")]
    registered_cert: Option<PathBuf>,
    /// No certificate: an id and a registration key
    #[arg(long)]
    registered_id: bool,
}

/// Flags of `duet device import`.
#[derive(Args)]
#[command(after_help = "One JSON object a line:\n  \
    {\"name\":\"a\",\"mode\":\"certificate\",\"certificate\":\"-----BEGIN …\"}\n  \
    {\"name\":\"b\",\"mode\":\"registered-certificate\",\"certificate\":\"3082…\",\"id\":\"00112233aabbccdd\"}\n  \
    {\"name\":\"c\",\"mode\":\"registered-id\",\"profile\":\"ephemeral,xor-key\"}\n\n\
    A certificate is PEM or hexadecimal DER. An id or key that is missing is made; the credentials \
    with them go to --out, one a line.")]
pub(super) struct Import {
    /// The devices; - reads standard input
    file: PathBuf,
    /// Write the credentials to a new file, mode 0600
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// What a device needs to know. It may hold a secret, so it has no `Debug`.
#[derive(Serialize)]
struct Credential<'a> {
    name: &'a str,
    mode: &'a str,
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    registration_key: Option<&'a str>,
    profile: &'a str,
    gateway: &'a GatewayFacts,
}

#[derive(Serialize)]
struct GatewayFacts {
    certificate: PathBuf,
    fingerprint: String,
    key_id: u8,
}

impl Device {
    pub(super) fn run(self, place: &Place) -> Result<ExitCode> {
        match self {
            Self::Add(add) => add.run(place)?,
            Self::Import(import) => import.run(place)?,
            Self::List { format } => list(&place.state()?, format)?,
            Self::Show { name, format } => show(&place.state()?, &name, format)?,
            Self::Revoke { name } => end(&place.state()?, &name, End::Revoke, "revoked")?,
            Self::Remove { name } => end(&place.state()?, &name, End::Remove, "removed")?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Add {
    fn run(self, place: &Place) -> Result<()> {
        let (mode, file) = match (&self.way.cert, &self.way.registered_cert) {
            (Some(file), _) => ("certificate", Some(file)),
            (None, Some(file)) => ("registered-certificate", Some(file)),
            (None, None) => ("registered-id", None),
        };
        if self.way.registered_id && self.out.is_none() && io::stdout().is_terminal() {
            bail!("the registration key is not printed on a terminal: give --out FILE");
        }
        let certificate = match file {
            Some(file) => Some(identity::load_certificate(file, Role::Device, now_s())?),
            None => None,
        };
        let mut line = DeviceLine {
            name: self.name,
            mode: mode.to_owned(),
            certificate: certificate.map(|certificate| Hex(&certificate.der).to_string()),
            id: None,
            key: None,
            profile: Some(self.profile.to_string()),
        };
        complete(&mut line)?;
        let gateway = gateway_facts(place)?;
        let mut control = Control::open(&place.state()?)?;
        let credential = credentials(std::slice::from_ref(&line), &gateway)?;
        keep_then(self.out.as_deref(), &credential, || {
            control.add(std::slice::from_ref(&line), |_| None).map(drop)
        })?;
        if self.out.is_none() {
            io::stdout().write_all(&credential)?;
        }
        Ok(())
    }
}

impl Import {
    fn run(self, place: &Place) -> Result<()> {
        let shown = self.file.display().to_string();
        let (mut lines, numbers) = if self.file == Path::new("-") {
            read_lines(io::stdin().lock(), "standard input")?
        } else {
            let file = fs::File::open(&self.file).with_context(|| shown.clone())?;
            read_lines(io::BufReader::new(file), &shown)?
        };
        let mut made = false;
        for line in &mut lines {
            made |= complete(line)?;
        }
        if made && self.out.is_none() {
            bail!("{shown}: some ids or keys are to be made here: give --out FILE for them");
        }
        let gateway = gateway_facts(place)?;
        let mut control = Control::open(&place.state()?)?;
        let credentials = match self.out {
            Some(_) => credentials(&lines, &gateway)?,
            None => Zeroizing::default(),
        };
        let mut count = 0;
        keep_then(self.out.as_deref(), &credentials, || {
            let place = |index| numbers.get(index).map(|number: &usize| format!("line {number}"));
            count = control.add(&lines, place).with_context(|| shown.clone())?;
            Ok(())
        })?;
        writeln!(io::stdout(), "registered {count} devices")?;
        Ok(())
    }
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
        match serde_json::from_slice(&text) {
            Ok(line) => lines.push(line),
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

/// Makes the id and the key that the mode needs and the line lacks; says whether it did.
fn complete(line: &mut DeviceLine) -> Result<bool> {
    let (needs_id, needs_key) = match line.mode.as_str() {
        "registered-certificate" => (line.id.is_none(), false),
        "registered-id" => (line.id.is_none(), line.key.is_none()),
        // Whoever registers it judges the mode.
        _ => (false, false),
    };
    if needs_id {
        line.id = Some(Hex(&*random::<8>()?).to_string());
    }
    if needs_key {
        line.key = Some(Hex(&*random::<32>()?).to_string());
    }
    Ok(needs_id || needs_key)
}

fn random<const N: usize>() -> Result<Zeroizing<[u8; N]>> {
    let mut bytes = Zeroizing::new([0; N]);
    getrandom::fill(&mut *bytes).map_err(|error| anyhow::anyhow!("no randomness: {error}"))?;
    Ok(bytes)
}

fn gateway_facts(place: &Place) -> Result<GatewayFacts> {
    let gateway = place.load(&Overrides::default())?.gateway;
    let loaded = identity::load_certificate(&gateway.certificate, Role::Gateway, now_s())?;
    Ok(GatewayFacts {
        fingerprint: fingerprint_text(&loaded.fingerprint),
        certificate: fs::canonicalize(&gateway.certificate).unwrap_or(gateway.certificate),
        key_id: gateway.key_id,
    })
}

/// The credentials, one JSON object a line; wiped when dropped.
fn credentials(lines: &[DeviceLine], gateway: &GatewayFacts) -> Result<Zeroizing<Vec<u8>>> {
    // Reserved up front: a growing vector would leave unwiped copies behind.
    let mut text = Zeroizing::new(Vec::with_capacity(lines.len() * 1024));
    for line in lines {
        let id = match &line.id {
            Some(id) => id.to_ascii_lowercase(),
            None => match line.read()?.enrolment {
                duet::registry::Enrolment::Certificate { der } => {
                    let fingerprint = duet_protocol::identity::Fingerprint::of_certificate(&der);
                    DeviceId::of_certificate(&fingerprint).to_string()
                }
                _ => bail!("{}: no id", line.name.escape_default()),
            },
        };
        let credential = Credential {
            name: &line.name,
            mode: &line.mode,
            id,
            registration_key: line.key.as_deref(),
            profile: line.profile.as_deref().unwrap_or("ephemeral"),
            gateway,
        };
        serde_json::to_writer(&mut *text, &credential)?;
        text.push(b'\n');
    }
    Ok(text)
}

/// Writes the credentials, then registers: no device is ever registered whose key is lost. If it
/// is refused, the new file goes away again.
fn keep_then(
    out: Option<&Path>,
    credentials: &[u8],
    register: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let Some(out) = out else { return register() };
    identity::write_new(out, credentials, 0o600).with_context(|| out.display().to_string())?;
    register().inspect_err(|_| {
        let _ = fs::remove_file(out);
    })
}

fn list(state: &Path, format: Format) -> Result<()> {
    let mut control = Control::open(state)?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    if format == Format::Table {
        let (name, mode, id) = ("NAME", "MODE", "ID");
        writeln!(out, "{name:<24} {mode:<22} {id:<16} {:<20} STATE", "REGISTERED")?;
    }
    let now_s = now_s();
    control.list(|device| {
        match format {
            Format::Json => writeln!(out, "{}", serde_json::to_string(&device)?)?,
            Format::Table => {
                let DeviceInfo { name, mode, id, .. } = &device;
                let (created, state) = (Utc(device.created_s), state_of(&device, now_s));
                writeln!(out, "{name:<24} {mode:<22} {id:<16} {created} {state}")?;
            }
        }
        Ok(())
    })?;
    Ok(out.flush()?)
}

fn state_of(device: &DeviceInfo, now_s: i64) -> &'static str {
    if device.revoked_s.is_some() {
        "revoked"
    } else if device.not_after_s.is_some_and(|end| end < now_s) {
        "expired"
    } else if device.not_before_s.is_some_and(|start| start > now_s) {
        "not yet valid"
    } else {
        "registered"
    }
}

fn show(state: &Path, name: &str, format: Format) -> Result<()> {
    let device = Control::open(state)?.show(name)?;
    let mut out = io::stdout().lock();
    if format == Format::Json {
        return Ok(writeln!(out, "{}", serde_json::to_string(&device)?)?);
    }
    writeln!(out, "name         {}", device.name)?;
    writeln!(out, "state        {}", state_of(&device, now_s()))?;
    writeln!(out, "mode         {}", device.mode)?;
    writeln!(out, "id           {}", device.id)?;
    writeln!(out, "fingerprint  {}", device.fingerprint)?;
    writeln!(out, "profile      {}", device.profile)?;
    writeln!(out, "registered   {}", Utc(device.created_s))?;
    if let Some(at) = device.revoked_s {
        writeln!(out, "revoked      {}", Utc(at))?;
    }
    if let (Some(start), Some(end)) = (device.not_before_s, device.not_after_s) {
        writeln!(out, "valid        {} to {}", Utc(start), Utc(end))?;
    }
    writeln!(out, "mark         {}", device.mark)?;
    Ok(())
}

fn end(state: &Path, name: &str, how: End, done: &str) -> Result<()> {
    let id = Control::open(state)?.end(name, how)?;
    Ok(writeln!(io::stdout(), "{done} {id}")?)
}
