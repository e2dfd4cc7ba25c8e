//! Who answers a command: the running gateway, or the registry itself while none runs.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use duet::admin::audit::{Audit, AuditError, Event};
use duet::admin::devices::{self, End};
use duet::admin::{
    Client, ClientError, DeviceChange, DeviceInfo, DeviceLine, DeviceQuery, EnrolTokenInfo,
    GatewayFacts, MadeToken, NewEnrolToken, Problem, Refused, enrol_tokens, forget_copy,
    made_token, revoke_token,
};
use duet::config::{KeyFiles, Overrides};
use duet::identity::{self, Role, now_s};
use duet::registry::{self, Registry, RegistryError};

use super::Place;

/// How long to wait for another command to let go of the registry.
const PATIENCE: Duration = Duration::from_secs(20);

/// The one who answers.
pub(super) enum Control {
    /// Over its socket.
    Gateway(Client),
    /// No gateway runs: the registry is open here, and changes go into the audit log from here.
    Direct(Box<Registry>, PathBuf),
}

impl Control {
    /// Finds out who answers for this state directory.
    pub(super) fn open(state: &Path) -> Result<Self> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            // A gateway that runs has its files open: what stands in the place of one keeps nobody from revoking a device.
            if let Some(client) = Client::connect(state)? {
                return Ok(Self::Gateway(client));
            }
            super::files::check_state(state)?;
            match open_registry(state) {
                Ok(registry) => {
                    if let Some(told) = registry.told() {
                        let _ = writeln!(io::stderr(), "warning: {told}");
                    }
                    forget_copy(&registry);
                    return Ok(Self::Direct(Box::new(registry), state.to_owned()));
                }
                // Another command, or a gateway that is about to listen.
                Err(RegistryError::InUse(_)) if Instant::now() < deadline => {
                    thread::sleep(Duration::from_millis(20));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Registers devices, all or none. `place` says where the device of an index stands.
    pub(super) fn add(
        &mut self,
        lines: &[DeviceLine],
        place: impl FnOnce(usize) -> Option<String>,
    ) -> Result<usize> {
        let added = match self {
            Self::Gateway(client) => client.add(lines),
            Self::Direct(registry, state) => {
                let added = devices::add(registry, lines).map_err(ClientError::Refused);
                audited(state, "POST /v1/devices", added)?
            }
        };
        match added {
            Err(ClientError::Refused(Problem { error, device: Some(index), .. })) => {
                match place(index) {
                    Some(place) => bail!("{place}: {error}"),
                    None => bail!(error),
                }
            }
            added => Ok(added?),
        }
    }

    /// Finds out which devices would be refused; registers none.
    pub(super) fn check(&mut self, lines: &[DeviceLine]) -> Result<Vec<Refused>> {
        Ok(match self {
            Self::Gateway(client) => client.check(lines)?,
            Self::Direct(registry, _) => devices::check(registry, lines)?,
        })
    }

    /// What devices need to know of the gateway: as it runs, or else as it would with the settings of now.
    pub(super) fn facts(&mut self, place: &Place) -> Result<GatewayFacts> {
        if let Self::Gateway(client) = self {
            return Ok(client.facts()?);
        }
        let config = place.load(&Overrides::default())?;
        let KeyFiles { key_id, certificate: path, .. } = &config.gateway;
        let certificate = identity::load_certificate(path, Role::Gateway, now_s())?;
        Ok(GatewayFacts::of(*key_id, &certificate, path, config.listen))
    }

    /// Ends the right to connect of several devices, all or none. Returns how many.
    pub(super) fn end_all(&mut self, names: &[String], how: End) -> Result<usize> {
        Ok(match self {
            Self::Gateway(client) => client.end_all(names, how)?,
            Self::Direct(registry, state) => {
                let action = format!("{how:?} {} devices", names.len());
                audited(state, &action, devices::end_all(registry, None, names, how))??
            }
        })
    }

    /// Hands on the lines that register all devices elsewhere.
    pub(super) fn export(
        &mut self,
        with_keys: bool,
        mut each: impl FnMut(DeviceLine) -> Result<()>,
    ) -> Result<()> {
        let (registry, state) = match self {
            Self::Gateway(client) => return client.export(with_keys, each),
            Self::Direct(registry, state) => (registry, state),
        };
        let mut export = || {
            let mut after = None;
            loop {
                let (lines, last) = devices::export(registry, after.as_ref(), with_keys)?;
                if last.is_none() {
                    return anyhow::Ok(());
                }
                after = last;
                lines.into_iter().try_for_each(&mut each)?;
            }
        };
        audited(state, "GET /v1/export", export())?
    }

    /// Hands the devices on that are wanted, in the order of their names.
    pub(super) fn list(
        &mut self,
        query: &DeviceQuery,
        mut each: impl FnMut(DeviceInfo) -> Result<()>,
    ) -> Result<()> {
        let registry = match self {
            Self::Gateway(client) => return client.list(query, each),
            Self::Direct(registry, _) => registry,
        };
        query.check()?;
        let mut after = None;
        loop {
            let page = devices::page(registry, query, after)?;
            let there = page.devices.into_iter().filter(|device| query.finds_there(device));
            there.into_iter().try_for_each(&mut each)?;
            after = page.next;
            if after.is_none() {
                return Ok(());
            }
        }
    }

    /// Changes what is said of a device. Returns how it is afterwards.
    pub(super) fn relabel(&mut self, name: &str, change: &DeviceChange) -> Result<DeviceInfo> {
        Ok(match self {
            Self::Gateway(client) => client.relabel(name, change)?,
            Self::Direct(registry, state) => {
                let action = format!("PATCH /v1/devices/{name}");
                audited(state, &action, devices::relabel(registry, name, change))??
            }
        })
    }

    /// Makes an enrolment token.
    pub(super) fn add_enrol_token(&mut self, wanted: &NewEnrolToken) -> Result<MadeToken> {
        Ok(match self {
            Self::Gateway(client) => client.add_enrol_token(wanted)?,
            Self::Direct(registry, state) => {
                let made = made_token(registry, wanted, now_s());
                audited(state, "POST /v1/enrolment-tokens", made)??
            }
        })
    }

    /// All enrolment tokens.
    pub(super) fn enrol_tokens(&mut self) -> Result<Vec<EnrolTokenInfo>> {
        Ok(match self {
            Self::Gateway(client) => client.enrol_tokens()?,
            Self::Direct(registry, _) => enrol_tokens(registry)?,
        })
    }

    /// Ends an enrolment token.
    pub(super) fn revoke_enrol_token(&mut self, id: &str) -> Result<()> {
        match self {
            Self::Gateway(client) => client.revoke_enrol_token(id)?,
            Self::Direct(registry, state) => {
                let action = format!("DELETE /v1/enrolment-tokens/{id}");
                audited(state, &action, revoke_token(registry, id))??;
            }
        }
        Ok(())
    }

    /// One device.
    pub(super) fn show(&mut self, name: &str) -> Result<DeviceInfo> {
        Ok(match self {
            Self::Gateway(client) => client.show(name)?,
            Self::Direct(registry, _) => devices::show(registry, name)?,
        })
    }

    /// Gives a device a new credential; the old one stays good until the new one was used, at most for `grace_s`.
    pub(super) fn renew(&mut self, line: &DeviceLine, grace_s: u32) -> Result<DeviceInfo> {
        Ok(match self {
            Self::Gateway(client) => client.renew(line, grace_s)?,
            Self::Direct(registry, state) => {
                let action = format!("POST /v1/devices/{}/renew", line.name);
                let renewed = devices::renew(registry, None, &line.name, line, grace_s);
                audited(state, &action, renewed.map_err(ClientError::Refused))??
            }
        })
    }

    /// Ends a device's right to connect. Returns its id.
    pub(super) fn end(&mut self, name: &str, how: End) -> Result<String> {
        Ok(match self {
            Self::Gateway(client) => client.end(name, how)?,
            Self::Direct(registry, state) => {
                let action = match how {
                    End::Revoke => format!("POST /v1/devices/{name}/revoke"),
                    End::Remove => format!("DELETE /v1/devices/{name}"),
                };
                audited(state, &action, devices::end(registry, None, name, how))??.to_string()
            }
        })
    }
}

/// Writes what was done without a gateway into the audit log, and hands its result on.
pub(super) fn audited<T, E>(
    state: &Path,
    action: &str,
    result: Result<T, E>,
) -> Result<Result<T, E>, AuditError> {
    let who = format!("uid {}", rustix::process::getuid().as_raw());
    let outcome = if result.is_ok() { "done" } else { "refused" };
    let written = Audit::open(state, None)
        .and_then(|audit| audit.write(Event { who: &who, from: "offline", action, outcome }));
    match written {
        // What was done is done: a full disk keeps nobody from revoking a device.
        Err(AuditError::Io { path, error }) => {
            let told = format!("{}: this is not in the audit log: {error}", path.display());
            let _ = writeln!(io::stderr(), "warning: {told}");
        }
        written => written?,
    }
    Ok(result)
}

/// Opens the registry, patiently, for a gateway that starts.
pub(super) fn open_patiently(state: &Path) -> Result<Registry> {
    let deadline = Instant::now() + Duration::from_secs(3);
    loop {
        match open_registry(state) {
            Err(RegistryError::InUse(_)) if Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(20));
            }
            Err(RegistryError::InUse(path)) => {
                bail!("{}: in use; is a gateway running on this state already?", path.display())
            }
            opened => return Ok(opened?),
        }
    }
}

fn open_registry(state: &Path) -> Result<Registry, RegistryError> {
    Registry::open(&state.join(registry::FILE))
}
