//! Answers to the requests that concern the registry: the same code in the running gateway and,
//! while none runs, in the command itself.

use super::Gateway;
use super::wire::{DeviceLine, Request, Response};
use crate::identity::now_s;
use crate::registry::{BadName, Name, NewDevice, NotAdded, Registry, RegistryError};

/// Devices in one answer to a list; one takes less than 700 bytes of a line.
const PAGE: usize = 500;

/// Answers a request about the registry. Without a gateway, what only a gateway can do is
/// refused.
#[must_use]
pub fn answer(registry: &Registry, gateway: Option<&dyn Gateway>, request: &Request) -> Response {
    match request {
        Request::Add { device } => import(registry, std::slice::from_ref(device)),
        Request::List { after } => list(registry, after.as_deref()),
        Request::Show { name } => with_name(name, |name| {
            let device = registry.show(&name)?.into();
            Ok(Response::Device { device })
        }),
        Request::Revoke { name } => ended(name, gateway, |name| registry.revoke(name, now_s())),
        Request::Remove { name } => ended(name, gateway, |name| registry.remove(name)),
        Request::Import { .. } | Request::Command { .. } | Request::Status => {
            Response::refused(&"no gateway is running on this state directory; start `duet run`")
        }
    }
}

/// Registers devices, all or none.
#[must_use]
pub fn import(registry: &Registry, lines: &[DeviceLine]) -> Response {
    let mut devices: Vec<NewDevice> = Vec::with_capacity(lines.len());
    for (index, line) in lines.iter().enumerate() {
        match line.read() {
            Ok(device) => devices.push(device),
            Err(bad) => {
                // The name may be what is wrong: nothing odd from it reaches a terminal.
                let message = format!("{}: {bad}", line.name.escape_default());
                return Response::Refused { message, device: Some(index) };
            }
        }
    }
    match registry.add_all(devices, now_s()) {
        Ok(count) => Response::Added { count },
        Err(NotAdded { index, error }) => {
            Response::Refused { message: error.to_string(), device: index }
        }
    }
}

fn list(registry: &Registry, after: Option<&str>) -> Response {
    let page = |after: Option<Name>| {
        let entries = registry.list(after.as_ref(), PAGE)?;
        let more = entries.len() == PAGE;
        Ok(Response::Devices { devices: entries.into_iter().map(Into::into).collect(), more })
    };
    match after {
        None => respond(page(None)),
        Some(name) => with_name(name, |name| page(Some(name))),
    }
}

fn ended(
    name: &str,
    gateway: Option<&dyn Gateway>,
    end: impl FnOnce(&Name) -> Result<duet_protocol::identity::DeviceId, RegistryError>,
) -> Response {
    with_name(name, |name| {
        let id = end(&name)?;
        if let Some(gateway) = gateway {
            gateway.revoked(id);
        }
        Ok(Response::Ended { id: id.to_string() })
    })
}

fn with_name(text: &str, answer: impl FnOnce(Name) -> Result<Response, RegistryError>) -> Response {
    match text.parse() {
        Ok(name) => respond(answer(name)),
        Err(BadName) => Response::refused(&BadName),
    }
}

fn respond(answer: Result<Response, RegistryError>) -> Response {
    answer.unwrap_or_else(|error| Response::refused(&error))
}
