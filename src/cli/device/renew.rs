//! `duet device renew`: a new credential for a device that has one.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use duet::admin::{Credential, DeviceLine};
use duet::hex::Hex;
use duet::identity::{self, Role, now_s};

use super::super::Place;
use super::super::control::Control;
use super::super::times;
use super::add::{Form, address, complete, issue, written};
use super::deliver::To;

/// Flags of `duet device renew`.
#[derive(Args)]
#[command(
    after_help = "A device of mode registered-id gets another id and another key; one with a certificate needs a new \
    certificate over a new key (--cert), or a request for one (--csr). It keeps its name, its tags, its group and its end. \
    The old credential is refused for ever once the new one was used, or when --grace is over."
)]
pub(in super::super) struct Renew {
    /// Its name
    name: String,
    /// Its new certificate, PEM or DER
    #[arg(long, value_name = "FILE", conflicts_with = "csr")]
    cert: Option<PathBuf>,
    /// Certificate request of the device; the gateway's CA issues a certificate for it
    #[arg(long, value_name = "FILE")]
    csr: Option<PathBuf>,
    /// How long the old credential stays good, if the new one is not used before
    #[arg(long, value_name = "TIME", default_value = "30d", value_parser = times::span)]
    grace: i64,
    /// Where the device reaches the gateway [default: the gateway's own address if it listens on one]
    #[arg(long, value_name = "HOST:PORT", value_parser = address)]
    address: Option<String>,
    /// Where the device keeps its private key; it is named in the credential and not read
    #[arg(long, value_name = "PATH")]
    private_key_file: Option<String>,
    /// Write the credential to a new file
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// The credential's form
    #[arg(long, value_enum, default_value = "json")]
    format: Form,
}

impl Renew {
    pub(super) fn run(self, place: &Place) -> Result<()> {
        let Ok(grace_s) = u32::try_from(self.grace) else { bail!("--grace: too long") };
        let mut control = Control::open(&place.state()?)?;
        let device = control.show(&self.name)?;
        let is_keyed = device.mode == "registered-id";
        let to = To::choose(self.out.as_deref(), is_keyed)?;
        let certificate = match (&self.cert, &self.csr) {
            (Some(file), _) => Some(identity::load_certificate(file, Role::Device, now_s())?.der),
            (None, Some(file)) => Some(issue(place, &self.name, file)?),
            (None, None) => None,
        };
        match (is_keyed, &certificate) {
            (true, Some(_)) => bail!("{}: it has no certificate, but an id and a key", self.name),
            (false, None) => {
                bail!("{}: give its new certificate (--cert) or a request (--csr)", self.name)
            }
            _ => {}
        }
        let mut line = DeviceLine {
            name: self.name,
            mode: device.mode,
            certificate: certificate.map(|der| Hex(&der).to_string()),
            id: None,
            key: None,
            key_sources: Some(device.key_sources),
            tags: None,
            group: None,
            expires: None,
            made: false,
        };
        complete(&mut line)?;
        let mut gateway = control.facts(place)?;
        if self.address.is_some() {
            gateway.address = self.address;
        }
        let credential = Credential::of(&line, &gateway)?;
        let credential = credential.with_private_key_file(self.private_key_file.as_deref());
        let text = written(&credential, self.format)?;
        to.then(&text, || control.renew(&line, grace_s).map(drop))
    }
}
