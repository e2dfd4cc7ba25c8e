//! A gateway that runs on this machine already: devices are registered there for a run, over its control socket, and
//! removed after it.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use duet_device::Config;

use crate::control::Control;
use crate::fleet::Member;
use crate::local::{Wanted, enrol, first_fresh, random, read_certificate};

/// Devices of this program on a gateway that others may use too; removed when dropped.
pub struct RunningGateway {
    control: Control,
    /// Its process.
    pub pid: u32,
    /// Where devices reach it.
    pub address: SocketAddr,
    /// Its state directory.
    pub state: PathBuf,
    names: Vec<String>,
}

impl RunningGateway {
    /// Registers the devices, under names that nobody else has.
    ///
    /// # Errors
    /// When no gateway runs on the state directory, or it refuses.
    pub fn attach(state: &Path, wanted: &[Wanted]) -> Result<(Self, Vec<Member>)> {
        let mut control = Control::connect(state)?;
        let pid = control.peer()?;
        let mut address = control.listen()?;
        if address.ip().is_unspecified() {
            address.set_ip(Ipv4Addr::LOCALHOST.into());
        }
        ensure!(
            address.ip().is_loopback() && address.is_ipv4(),
            "the gateway listens at {address}, which devices with addresses of 127.0.0.0/8 cannot reach: let it listen \
             on 127.0.0.1 or 0.0.0.0"
        );
        let (certificate, key_id) = settings(state)?;
        let gateway = read_certificate(&certificate, key_id)?;
        let run: [u8; 4] = random()?;
        let run = u32::from_be_bytes(run);
        let (mut members, mut lines) = (Vec::new(), Vec::new());
        for wanted in wanted {
            let name = format!("load-{run:08x}-{}", wanted.name);
            let wanted = Wanted { name: name.clone(), ..wanted.clone() };
            let (identity, line) = enrol(&wanted)?;
            lines.push(line);
            let Wanted { profile, transport, .. } = wanted;
            let fresh = first_fresh(profile.mode);
            let config = Config { identity, gateway, profile, transport, fresh };
            members.push(Member { name, config, seed: random()? });
        }
        control.import(&lines)?;
        let names = members.iter().map(|member| member.name.clone()).collect();
        Ok((Self { control, pid, address, state: state.to_owned(), names }, members))
    }

    /// Removes the devices.
    ///
    /// # Errors
    /// When the gateway does not do so; the message names the first that is left.
    pub fn leave(mut self) -> Result<()> {
        self.remove()
    }

    fn remove(&mut self) -> Result<()> {
        while let Some(name) = self.names.pop() {
            self.control.remove(&name).with_context(|| {
                format!(
                    "{name} and {} others of this run are left at the gateway: `duet device remove`",
                    self.names.len()
                )
            })?;
        }
        Ok(())
    }
}

impl Drop for RunningGateway {
    fn drop(&mut self) {
        // After `leave` nothing is left to do; on an error's way out that error is told.
        let _ = self.remove();
    }
}

/// The gateway's certificate and its key id, from its settings.
fn settings(state: &Path) -> Result<(PathBuf, u8)> {
    let path = state.join("duet.toml");
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let table: toml::Table = text.parse().with_context(|| path.display().to_string())?;
    let gateway = |key: &str| table.get("gateway")?.get(key);
    let certificate = gateway("certificate").and_then(toml::Value::as_str);
    let key_id = gateway("key_id").and_then(toml::Value::as_integer).unwrap_or(0);
    let key_id = u8::try_from(key_id).context("gateway.key_id is no byte")?;
    Ok((state.join(certificate.unwrap_or("gateway.pem")), key_id))
}
