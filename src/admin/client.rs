//! The command's side of the control socket: blocking, one request at a time.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use thiserror::Error;
use zeroize::Zeroizing;

use super::wire::{DeviceLine, MAX_LINE_LEN, Request, Response};
use super::{MAX_COMMAND_TIMEOUT_MS, SOCKET};

/// Longer than anything the gateway takes its time for.
const TIMEOUT: Duration = Duration::from_millis(MAX_COMMAND_TIMEOUT_MS + 10_000);

/// Why the gateway did not answer.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The socket is there and cannot be used, for example because it is someone else's.
    #[error("{}: cannot ask the gateway here: {error}", path.display())]
    Connect {
        /// The control socket.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The socket failed.
    #[error("the gateway does not answer on its control socket: {0}")]
    Io(#[from] io::Error),
    /// Not a line, or not an answer.
    #[error("the gateway's answer cannot be read; is it of another version?")]
    Answer,
}

/// A connection to the running gateway.
pub struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects to the gateway that runs on this state directory; `None` if none does.
    ///
    /// # Errors
    /// What the system says, for example that the socket belongs to someone else.
    pub fn connect(state: &Path) -> Result<Option<Self>, ClientError> {
        let path = state.join(SOCKET);
        match UnixStream::connect(&path) {
            Ok(stream) => {
                stream.set_read_timeout(Some(TIMEOUT))?;
                stream.set_write_timeout(Some(TIMEOUT))?;
                Ok(Some(Self { stream: BufReader::new(stream) }))
            }
            Err(error) => match error.kind() {
                // Never started, or ended without taking its socket along.
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Ok(None),
                _ => Err(ClientError::Connect { path, error }),
            },
        }
    }

    /// Sends a request and waits for the answer.
    ///
    /// # Errors
    /// [`ClientError`]; a refusal is an answer.
    pub fn call(&mut self, request: &Request) -> Result<Response, ClientError> {
        self.write(request)?;
        self.read()
    }

    /// Sends devices to be registered, all or none, and waits for the answer.
    ///
    /// # Errors
    /// [`ClientError`]; a refusal is an answer.
    pub fn import(&mut self, lines: &[DeviceLine]) -> Result<Response, ClientError> {
        let sent = self
            .write(&Request::Import { count: lines.len() })
            .and_then(|()| lines.iter().try_for_each(|line| self.write(line)));
        // A gateway that refuses early closes early: what it said is still there to be read.
        match (sent, self.read()) {
            (_, Ok(response)) => Ok(response),
            (Err(sent), Err(_)) => Err(sent),
            (Ok(()), Err(error)) => Err(error),
        }
    }

    fn write(&mut self, value: &impl Serialize) -> Result<(), ClientError> {
        let mut line = Zeroizing::new(serde_json::to_vec(value).map_err(io::Error::from)?);
        line.push(b'\n');
        Ok(self.stream.get_mut().write_all(&line)?)
    }

    fn read(&mut self) -> Result<Response, ClientError> {
        let mut line = Vec::new();
        (&mut self.stream).take(MAX_LINE_LEN as u64).read_until(b'\n', &mut line)?;
        serde_json::from_slice(&line).map_err(|_| ClientError::Answer)
    }
}
