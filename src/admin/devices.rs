//! What can be asked about devices: the same functions in the running gateway and, while none runs, in the command
//! itself. They block on the registry's file, so the gateway calls them on threads made for that.

use axum::http::StatusCode;
use duet_protocol::identity::DeviceId;

use super::wire::{DeviceInfo, DeviceLine};
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
