//! Who answers a command: the running gateway, or the registry itself while none runs.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use duet::admin::{self, Client, DeviceLine, Request, Response};
use duet::registry::{self, Registry, RegistryError};

/// How long to wait for another command to let go of the registry.
const PATIENCE: Duration = Duration::from_secs(20);

/// The one who answers.
pub(super) enum Control {
    /// Over its socket.
    Gateway(Client),
    /// No gateway runs: the registry is open here.
    Direct(Box<Registry>),
}

impl Control {
    /// Finds out who answers for this state directory.
    pub(super) fn open(state: &Path) -> Result<Self> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(client) = Client::connect(state)? {
                return Ok(Self::Gateway(client));
            }
            match open_registry(state) {
                Ok(registry) => return Ok(Self::Direct(Box::new(registry))),
                // Another command, or a gateway that is about to listen.
                Err(RegistryError::InUse(_)) if Instant::now() < deadline => {
                    thread::sleep(Duration::from_millis(20));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Asks; a refusal is an error.
    pub(super) fn call(&mut self, request: &Request) -> Result<Response> {
        let response = match self {
            Self::Gateway(client) => client.call(request)?,
            Self::Direct(registry) => admin::answer(registry, None, request),
        };
        accepted(response)
    }

    /// Registers devices, all or none. `place` says where the device of an index stands.
    pub(super) fn import(
        &mut self,
        lines: &[DeviceLine],
        place: impl FnOnce(usize) -> String,
    ) -> Result<usize> {
        let response = match self {
            Self::Gateway(client) => client.import(lines)?,
            Self::Direct(registry) => admin::import(registry, lines),
        };
        match response {
            Response::Added { count } => Ok(count),
            Response::Refused { message, device: Some(index) } => {
                bail!("{}: {message}", place(index))
            }
            Response::Refused { message, device: None } => bail!(message),
            _ => unexpected(),
        }
    }
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

fn accepted(response: Response) -> Result<Response> {
    match response {
        Response::Refused { message, .. } => bail!(message),
        response => Ok(response),
    }
}

/// An answer of the wrong kind.
pub(super) fn unexpected<T>() -> Result<T> {
    bail!("the gateway gave an answer to another question; is it of another version?")
}
