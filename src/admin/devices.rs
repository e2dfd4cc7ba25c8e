//! What can be asked about devices: the same functions in the running gateway and, while none runs, in the command
//! itself. They block on the registry's file, so the gateway calls them on threads made for that.

use axum::http::StatusCode;
use duet_protocol::identity::DeviceId;

use super::wire::{DeviceChange, DeviceInfo, DeviceLine, Refused};
use super::{DeviceQuery, Gateway, Problem};
use crate::identity::now_s;
use crate::registry::{Name, NewDevice, Registry, RegistryError};

/// Devices that are read from the registry at once.
const PAGE: usize = 500;
/// Devices that are looked at for one page, whether or not they are wanted.
const LOOKED_AT: usize = 20_000;

/// How a device's right to connect ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Its credential is refused for ever, and it stays in the list.
    Revoke,
    /// It is forgotten.
    Remove,
}

/// Registers devices, all or none.
///
/// # Errors
/// The first refusal, which names the device at fault.
pub fn add(registry: &Registry, lines: &[DeviceLine]) -> Result<usize, Problem> {
    let mut devices: Vec<NewDevice> = Vec::with_capacity(lines.len());
    for (index, line) in lines.iter().enumerate() {
        let read = line.read();
        devices.push(read.map_err(|bad| Problem::of_line(index, &line.name, &bad))?);
    }
    Ok(registry.add_all(devices, now_s())?)
}

/// Finds out which of these devices [`add`] would refuse.
///
/// # Errors
/// Those of the registry.
pub fn check(registry: &Registry, lines: &[DeviceLine]) -> Result<Vec<Refused>, Problem> {
    let (mut devices, mut places, mut refused) = (Vec::new(), Vec::new(), Vec::new());
    for (index, line) in lines.iter().enumerate() {
        match line.read() {
            Ok(device) => {
                devices.push(device);
                places.push(index);
            }
            Err(bad) => {
                let error = Problem::of_line(index, &line.name, &bad).error;
                refused.push(Refused { device: index, error });
            }
        }
    }
    for (index, error) in registry.check_all(devices, now_s())? {
        refused.push(Refused { device: places[index], error: error.to_string() });
    }
    refused.sort_by_key(|refused| refused.device);
    Ok(refused)
}

/// Lines that register some devices elsewhere, from after `after`, and where to go on; that is nothing at the end.
///
/// # Errors
/// Those of the registry.
pub fn export(
    registry: &Registry,
    after: Option<&Name>,
    with_keys: bool,
) -> Result<(Vec<DeviceLine>, Option<Name>), Problem> {
    let (devices, last) = registry.export(after, PAGE)?;
    Ok((devices.iter().map(|device| DeviceLine::of(device, with_keys)).collect(), last))
}

/// A piece of a list.
pub struct Page {
    /// Devices, whether or not they are online.
    pub devices: Vec<DeviceInfo>,
    /// From where to go on; nothing at the end of the list.
    pub next: Option<Name>,
}

/// Some of the devices that are wanted, in the order of their names, from after `after`. There may be none, and more
/// after them.
///
/// # Errors
/// Those of the registry.
pub fn page(
    registry: &Registry,
    query: &DeviceQuery,
    after: Option<Name>,
) -> Result<Page, Problem> {
    let (mut devices, mut after, mut looked_at) = (Vec::new(), after, 0);
    let now_s = now_s();
    while devices.len() < PAGE && looked_at < LOOKED_AT {
        let entries = registry.list(after.as_ref(), PAGE)?;
        let is_last = entries.len() < PAGE;
        after = entries.last().map(|last| last.name.clone()).filter(|_| !is_last);
        looked_at += entries.len();
        let found = entries.into_iter().map(DeviceInfo::from);
        devices.extend(found.filter(|device| query.wants(device, now_s)));
        if is_last {
            break;
        }
    }
    Ok(Page { devices, next: after })
}

/// Changes what is said of a device. Returns how it is afterwards.
///
/// # Errors
/// When it is not there, or the change is none.
pub fn relabel(
    registry: &Registry,
    name: &str,
    change: &DeviceChange,
) -> Result<DeviceInfo, Problem> {
    Ok(registry.relabel(&name.parse()?, &change.read()?)?.into())
}

/// One device.
///
/// # Errors
/// When it is not there.
pub fn show(registry: &Registry, name: &str) -> Result<DeviceInfo, Problem> {
    Ok(registry.show(&name.parse()?)?.into())
}

/// Ends a device's right to connect, and its sessions. Returns its id.
///
/// # Errors
/// When it is not there, or was revoked before.
pub fn end(
    registry: &Registry,
    gateway: Option<&dyn Gateway>,
    name: &str,
    how: End,
) -> Result<DeviceId, Problem> {
    let names = [name.parse()?];
    let ids = match how {
        End::Revoke => registry.revoke_all(&names, now_s())?,
        End::Remove => registry.remove_all(&names)?,
    };
    if let Some(gateway) = gateway {
        ids.iter().for_each(|id| gateway.revoked(*id));
    }
    // The first is the device's; one that a renewal has left may follow.
    ids.first().copied().ok_or_else(|| RegistryError::Unknown(names[0].clone()).into())
}

/// Ends the right to connect of several devices, all or none, and their sessions. Returns how many.
///
/// # Errors
/// When one is not there, or was revoked before.
pub fn end_all(
    registry: &Registry,
    gateway: Option<&dyn Gateway>,
    names: &[String],
    how: End,
) -> Result<usize, Problem> {
    let names = names.iter().map(|name| name.parse()).collect::<Result<Vec<Name>, _>>()?;
    let ids = match how {
        End::Revoke => registry.revoke_all(&names, now_s())?,
        End::Remove => registry.remove_all(&names)?,
    };
    if let Some(gateway) = gateway {
        ids.iter().for_each(|id| gateway.revoked(*id));
    }
    Ok(names.len())
}

/// Gives a device a new credential; the old one stays good until the new one was used, at most for `grace_s`. Returns
/// how the device is afterwards.
///
/// # Errors
/// When it is not there, or the new credential is none.
pub fn renew(
    registry: &Registry,
    gateway: Option<&dyn Gateway>,
    name: &str,
    line: &DeviceLine,
    grace_s: u32,
) -> Result<DeviceInfo, Problem> {
    let name: Name = name.parse()?;
    if line.name != name.as_str() {
        return Err(Problem::bad("the credential is for a device of another name"));
    }
    let device = line.read().map_err(|bad| Problem::of_line(0, &line.name, &bad))?;
    let now_s = now_s();
    let ended = registry.renew(device, now_s.saturating_add(grace_s.into()), now_s)?;
    if let (Some(gateway), Some(id)) = (gateway, ended) {
        gateway.revoked(id);
    }
    show(registry, name.as_str())
}

/// The id and the registration of a device that may be given commands.
pub(super) fn commanded(registry: &Registry, name: &Name) -> Result<(DeviceId, u64), Problem> {
    let device = registry.show(name)?;
    match device.revoked_s {
        None => Ok((device.id, device.registration)),
        Some(at) => {
            let error = RegistryError::RevokedAlready(name.clone(), crate::identity::Utc(at));
            Err(Problem::new(StatusCode::CONFLICT, error))
        }
    }
}
