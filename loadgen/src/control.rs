//! The API of a gateway on this machine, over its control socket, as far as a load generator needs it.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use duet_control::{Answer, Client, Method, segment};
use serde::Deserialize;
use serde_json::json;

pub use duet_control::SOCKET;

/// The connections that are used for commands; the gateway keeps many more for others.
pub const CONNECTIONS: usize = 16;
/// Longer than anything that is asked here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// A connection to a gateway's API.
#[derive(Debug)]
pub struct Control(Client);

#[derive(Deserialize)]
struct CommandResult {
    payload: String,
}

#[derive(Deserialize)]
struct Status {
    listen: SocketAddr,
}

#[derive(Deserialize)]
struct Problem {
    error: String,
}

impl Control {
    /// Connects to the gateway that runs on a state directory.
    ///
    /// # Errors
    /// When none runs there, or it does not let this user in; the message says what to do.
    pub fn connect(state: &Path) -> Result<Self> {
        let path = state.join(SOCKET);
        let client = Client::connect(state)
            .context("only the user that the gateway runs as, and root, may control it")?;
        client.map(Self).with_context(|| {
            format!(
                "{}: no gateway runs on this state directory; start it with `duet run --state {}`, or name another",
                path.display(),
                state.display()
            )
        })
    }

    /// Has a device carry out a command: what it answered, or why there is no answer.
    ///
    /// # Errors
    /// When the gateway itself does not answer.
    pub fn command(
        &mut self,
        device: &str,
        payload: &[u8],
        timeout: Duration,
    ) -> Result<Result<String, String>> {
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        let payload: String = payload.iter().map(|byte| format!("{byte:02x}")).collect();
        let body = json!({ "payload": payload, "timeout_ms": timeout_ms }).to_string();
        let target = format!("/v1/devices/{}/command", segment(device));
        let answer = self.0.call(Method::POST, &target, body.into(), timeout + PATIENCE)?;
        if answer.status.is_success() {
            let CommandResult { payload } = read(&answer)?;
            return Ok(Ok(payload));
        }
        let Problem { error } = read(&answer)?;
        let about = format!("{device}: ");
        Ok(Err(error.strip_prefix(&about).map(str::to_owned).unwrap_or(error)))
    }

    /// The gateway's process.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn peer(&self) -> Result<u32> {
        self.0.peer().context("the kernel does not tell which process the gateway is")
    }

    /// Where the gateway listens.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn listen(&mut self) -> Result<SocketAddr> {
        let Status { listen } = self.ask(Method::GET, "/v1/status", Vec::new())?;
        Ok(listen)
    }

    /// Registers devices, each by its line of JSON; all or none.
    ///
    /// # Errors
    /// The gateway's refusal.
    pub fn import(&mut self, lines: &[String]) -> Result<()> {
        let mut body = Vec::with_capacity(lines.iter().map(|line| line.len() + 1).sum());
        for line in lines {
            body.extend_from_slice(line.as_bytes());
            body.push(b'\n');
        }
        let _: serde::de::IgnoredAny = self.ask(Method::POST, "/v1/devices", body)?;
        Ok(())
    }

    /// Removes a device.
    ///
    /// # Errors
    /// The gateway's refusal.
    pub fn remove(&mut self, device: &str) -> Result<()> {
        let target = format!("/v1/devices/{}", segment(device));
        let _: serde::de::IgnoredAny = self.ask(Method::DELETE, &target, Vec::new())?;
        Ok(())
    }

    fn ask<T: serde::de::DeserializeOwned>(
        &mut self,
        method: Method,
        target: &str,
        body: Vec<u8>,
    ) -> Result<T> {
        let answer = self.0.call(method, target, body, PATIENCE)?;
        if !answer.status.is_success() {
            let Problem { error } = read(&answer)?;
            bail!("the gateway refuses: {error}");
        }
        read(&answer)
    }
}

fn read<T: serde::de::DeserializeOwned>(answer: &Answer) -> Result<T> {
    serde_json::from_slice(&answer.body)
        .context("the gateway's answer cannot be read; is it of another version?")
}
