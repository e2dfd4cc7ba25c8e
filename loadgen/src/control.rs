//! The control interface of a gateway on this machine: one JSON value a line over `control.sock`, one request at a time.

use std::fmt::Display;
use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::socket::{getsockopt, sockopt};
use serde::Deserialize;
use serde_json::json;

/// The socket's name in a state directory.
pub const SOCKET: &str = "control.sock";
/// The connections that a gateway serves at once.
pub const CONNECTIONS: usize = 16;
/// Longer than anything that is asked here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// A connection to a gateway's control interface.
#[derive(Debug)]
pub struct Control {
    stream: BufReader<UnixStream>,
}

/// What a gateway answers.
#[derive(Debug, Deserialize)]
#[serde(tag = "result", rename_all = "kebab-case")]
enum Answer {
    Added {},
    CommandResult { payload: String },
    Ended {},
    Status { status: Status },
    Refused { message: String },
}

#[derive(Debug, Deserialize)]
struct Status {
    listen: SocketAddr,
}

impl Control {
    /// Connects to the gateway that runs on a state directory.
    ///
    /// # Errors
    /// When none runs there, or it does not let this user in; the message says what to do.
    pub fn connect(state: &Path) -> Result<Self> {
        let path = state.join(SOCKET);
        let advice = |error: &std::io::Error| match error.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => format!(
                "{}: no gateway runs on this state directory; start it with `duet run --state {}`, or name another",
                path.display(),
                state.display()
            ),
            ErrorKind::PermissionDenied => {
                format!("{}: only the user that the gateway runs as may control it", path.display())
            }
            _ => format!("{}: the gateway cannot be asked here", path.display()),
        };
        let stream = UnixStream::connect(&path).map_err(|error| {
            let advice = advice(&error);
            anyhow::Error::new(error).context(advice)
        })?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { stream: BufReader::new(stream) })
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
        let request = json!({
            "op": "command", "name": device, "payload": payload, "timeout_ms": timeout_ms,
        });
        Ok(match self.ask(&request)? {
            Answer::CommandResult { payload } => Ok(payload),
            Answer::Refused { message } => {
                let about = format!("{device}: ");
                Err(message.strip_prefix(&about).map(str::to_owned).unwrap_or(message))
            }
            other => return refused(other),
        })
    }

    /// The gateway's process.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn peer(&self) -> Result<u32> {
        let peer = getsockopt(self.stream.get_ref(), sockopt::PeerCredentials)?;
        Ok(u32::try_from(peer.pid())?)
    }

    /// Where the gateway listens.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn listen(&mut self) -> Result<SocketAddr> {
        match self.ask(&json!({ "op": "status" }))? {
            Answer::Status { status } => Ok(status.listen),
            other => refused(other),
        }
    }

    /// Registers devices, each by its line of JSON; all or none.
    ///
    /// # Errors
    /// What the gateway says.
    pub fn import(&mut self, lines: &[String]) -> Result<()> {
        let mut request = json!({ "op": "import", "count": lines.len() }).to_string();
        for line in lines {
            request.push('\n');
            request.push_str(line);
        }
        match self.ask(&request)? {
            Answer::Added {} => Ok(()),
            other => refused(other),
        }
    }

    /// Removes a device.
    ///
    /// # Errors
    /// What the gateway says.
    pub fn remove(&mut self, device: &str) -> Result<()> {
        match self.ask(&json!({ "op": "remove", "name": device }))? {
            Answer::Ended {} => Ok(()),
            other => refused(other),
        }
    }

    fn ask(&mut self, request: &impl Display) -> Result<Answer> {
        let mut ask = || {
            writeln!(self.stream.get_mut(), "{request}")?;
            let mut line = String::new();
            self.stream.read_line(&mut line).map(|_| line)
        };
        let line = ask().context("the gateway does not answer on its control socket")?;
        if line.is_empty() {
            bail!("the gateway closed its control socket: it is ending");
        }
        serde_json::from_str(&line)
            .context("the gateway's answer cannot be read; is it of another version?")
    }
}

fn refused<T>(answer: Answer) -> Result<T> {
    match answer {
        Answer::Refused { message } => bail!("the gateway refuses: {message}"),
        _ => bail!("the gateway gave an answer to another question; is it of another version?"),
    }
}
