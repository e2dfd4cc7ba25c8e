//! What can be asked about devices: the same functions in the running gateway and, while none runs, in the command
//! itself. They block on the registry's file, so the gateway calls them on threads made for that.

use axum::http::StatusCode;
use duet_protocol::identity::DeviceId;

use super::wire::{DeviceInfo, DeviceLine, Refused};
use super::{Gateway, Problem};
use crate::identity::now_s;
use crate::registry::{Name, NewDevice, Registry, RegistryError};

/// Devices that are read from the registry at once.
const PAGE: usize = 500;

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

/// Some devices in the order of their names, from after `after`; none at the end of the list.
///
/// # Errors
/// Those of the registry.
pub fn page(registry: &Registry, after: Option<&Name>) -> Result<Vec<DeviceInfo>, Problem> {
    let entries = registry.list(after, PAGE)?;
    Ok(entries.into_iter().map(Into::into).collect())
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
    let name = name.parse()?;
    let id = match how {
        End::Revoke => registry.revoke(&name, now_s())?,
        End::Remove => registry.remove(&name)?,
    };
    if let Some(gateway) = gateway {
        gateway.revoked(id);
    }
    Ok(id)
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
    Ok(ids.len())
}

/// The id of a device that may be given commands.
pub(super) fn commanded(registry: &Registry, name: &Name) -> Result<DeviceId, Problem> {
    let device = registry.show(name)?;
    match device.revoked_s {
        None => Ok(device.id),
        Some(at) => {
            let error = RegistryError::RevokedAlready(name.clone(), crate::identity::Utc(at));
            Err(Problem::new(StatusCode::CONFLICT, error))
        }
    }
}
