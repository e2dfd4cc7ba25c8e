//! `duet device add`: one device, with its credential.

use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use duet::admin::{Credential, DeviceLine};
use duet::config::{Enrol, Overrides};
use duet::hex::Hex;
use duet::identity::{self, Authority, Role, now_s};
use duet::registry::{Name, SourceSet};
use zeroize::Zeroizing;

use super::super::Place;
use super::super::control::Control;
use super::deliver::To;
use super::which::Labels;

/// No certificate request is longer.
const MAX_REQUEST: u64 = 64 * 1024;

/// Flags of `duet device add`.
#[derive(Args)]
#[command(after_help = "Ways of identification (choose one):\n  \
    --cert FILE             the device names its certificate by the certificate's fingerprint\n  \
    --registered-cert FILE  the device names an id, made here, that maps to its certificate\n  \
    --registered-id         the device has an id and a registration key, both made here\n  \
    --csr FILE              like --cert, with a certificate that the gateway's CA (`duet ca init`) issues for the request\n\n\
    The credential holds all that the device needs; docs/credential.schema.json describes it. It goes to --out, mode \
    0600, or to standard output, and nothing is registered if it cannot be written. The device's private key never \
    comes here; a registration key is not printed on a terminal.")]
pub(in super::super) struct Add {
    /// 1 to 64 of the characters A-Z a-z 0-9 . _ -
    name: String,
    #[command(flatten)]
    way: Way,
    /// Key sources the device may use, separated by commas: ephemeral, xor-key, xor-random,
    /// client-key, client-random
    #[arg(long, value_name = "LIST", default_value = "ephemeral")]
    key_sources: SourceSet,
    /// Where the device reaches the gateway [default: the gateway's own address if it listens on one]
    #[arg(long, value_name = "HOST:PORT", value_parser = address)]
    address: Option<String>,
    /// Where the device keeps its private key; it is named in the credential and not read
    #[arg(long, value_name = "PATH", conflicts_with = "registered_id")]
    private_key_file: Option<String>,
    #[command(flatten)]
    labels: Labels,
    /// Write the credential to a new file
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// The credential's form
    #[arg(long, value_enum, default_value = "json")]
    format: Form,
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
    /// Certificate request of the device (PKCS #10, PEM or DER); the gateway's CA issues a certificate for it
    #[arg(long, value_name = "FILE")]
    csr: Option<PathBuf>,
    /// No certificate: an id and a registration key
    #[arg(long)]
    registered_id: bool,
}

/// Forms of a credential.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Form {
    /// A JSON object
    Json,
    /// A C header
    C,
}

impl Add {
    pub(super) fn run(self, place: &Place) -> Result<()> {
        let (mode, file) = match (&self.way.cert, &self.way.registered_cert) {
            (Some(file), _) => ("certificate", Some(file)),
            (None, Some(file)) => ("registered-certificate", Some(file)),
            (None, None) if self.way.csr.is_some() => ("certificate", None),
            (None, None) => ("registered-id", None),
        };
        let to = To::choose(self.out.as_deref(), self.way.registered_id)?;
        let certificate = match (file, &self.way.csr) {
            (Some(file), _) => Some(identity::load_certificate(file, Role::Device, now_s())?.der),
            (None, Some(file)) => Some(issue(place, &self.name, file)?),
            (None, None) => None,
        };
        let mut line = DeviceLine {
            name: self.name,
            mode: mode.to_owned(),
            certificate: certificate.map(|der| Hex(&der).to_string()),
            id: None,
            key: None,
            key_sources: Some(self.key_sources.to_string()),
            expires: self.labels.end()?,
            tags: self.labels.tag,
            group: self.labels.group,
            made: false,
        };
        complete(&mut line)?;
        let mut control = Control::open(&place.state()?)?;
        let mut gateway = control.facts(place)?;
        if self.address.is_some() {
            gateway.address = self.address;
        }
        let lines = std::slice::from_ref(&line);
        // What would be refused is refused before anything is written.
        if let Some(refused) = control.check(lines)?.first() {
            bail!("{}", refused.error);
        }
        let credential = Credential::of(&line, &gateway)?;
        let credential = credential.with_private_key_file(self.private_key_file.as_deref());
        let text = written(&credential, self.format)?;
        to.then(&text, || control.add(lines, |_| None).map(drop))?;
        if gateway.address.is_none() {
            // The device is registered, whether or not anybody reads this.
            let _ = writeln!(
                io::stderr(),
                "warning: the gateway listens on every address, so the credential names none, and a device needs one: \
                 say --address HOST:PORT, or write it into the credential"
            );
        }
        Ok(())
    }
}

/// The credential as it is delivered.
pub(super) fn written(credential: &Credential<'_>, form: Form) -> Result<Zeroizing<Vec<u8>>> {
    // Reserved up front: a growing vector would leave unwiped copies behind.
    let mut text = Zeroizing::new(Vec::with_capacity(64 * 1024));
    match form {
        Form::Json => credential.write_json(&mut text)?,
        Form::C => credential.write_c(&mut text)?,
    }
    Ok(text)
}

/// Has the gateway's CA issue a certificate, DER, for a request.
pub(super) fn issue(place: &Place, name: &str, file: &Path) -> Result<Vec<u8>> {
    let name: Name = name.parse()?;
    let shown = || file.display().to_string();
    let mut text = Vec::new();
    super::open(file)?.take(MAX_REQUEST).read_to_end(&mut text).with_context(shown)?;
    let key = identity::key_of_request(&text).with_context(shown)?;
    let Enrol { certificate, key: secret, days, .. } = place.load(&Overrides::default())?.enrol;
    if !certificate.exists() && !secret.exists() {
        bail!("{}: there is no CA; `duet ca init` makes one", certificate.display());
    }
    let now_s = now_s();
    let authority = Authority::load(&certificate, &secret, now_s)?;
    Ok(authority.issue(name.as_str(), &key, days, now_s)?)
}

/// Makes the id and the key that the mode needs and the line lacks; says whether it did. Under a key that is made here
/// no HELLO exists yet, so its first mark says that the gateway knows the device (R123).
pub(super) fn complete(line: &mut DeviceLine) -> Result<bool> {
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
        line.made = true;
    }
    Ok(needs_id || needs_key)
}

fn random<const N: usize>() -> Result<Zeroizing<[u8; N]>> {
    let mut bytes = Zeroizing::new([0; N]);
    getrandom::fill(&mut *bytes).map_err(|error| anyhow::anyhow!("no randomness: {error}"))?;
    Ok(bytes)
}

/// Takes a host (a name or an address, IPv6 in brackets) and a port.
pub(super) fn address(text: &str) -> Result<String, &'static str> {
    let wrong = "expected HOST:PORT, for example gateway.example:23838 or [2001:db8::1]:23838";
    let (host, port) = text.rsplit_once(':').ok_or(wrong)?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    let inside = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let good = match inside {
        Some(inside) => inside.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.len() <= 253 && host.bytes().all(plain),
    };
    match port.parse::<u16>() {
        Ok(1..) if good => Ok(text.to_owned()),
        _ => Err(wrong),
    }
}

#[cfg(test)]
mod tests {
    use super::address;

    #[test]
    fn addresses_are_plain() {
        for good in ["gateway.example:23838", "10.0.0.1:1", "[2001:db8::1]:65535", "box_1:80"] {
            assert!(address(good).is_ok(), "{good}");
        }
        let bad =
            ["gateway", ":1", "a:0", "a:65536", "2001:db8::1:23838", "a b:1", "a\":1", "[::g]:1"];
        for bad in bad {
            assert!(address(bad).is_err(), "{bad}");
        }
    }
}
