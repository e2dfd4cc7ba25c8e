//! The server's side of the control socket.
//!
//! A line too long, a line that is not JSON and a client that waits too long end the connection;
//! a request that is refused does not.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use super::wire::{
    DeviceLine, MAX_COMMAND_TIMEOUT_MS, MAX_IMPORT, MAX_LINE_LEN, Request, Response,
};
use super::{CommandError, Gateway, Plane, answer, import};
use crate::hex::{self, Hex};
use crate::registry::{BadName, Name, Registry, RegistryError};

const MAX_CONNECTIONS: u32 = 16;
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// What requests under way get when the control plane stops.
const GRACE: Duration = Duration::from_secs(2);
/// What the gateway gets beyond a command's own timeout before it is taken for stuck.
const COMMAND_SLACK: Duration = Duration::from_secs(2);

/// Serves until the control plane stops and requests under way are done.
pub(super) async fn serve(listener: UnixListener, plane: &Rc<Plane>) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS as usize));
    let accept = async {
        loop {
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let plane = Rc::clone(plane);
                    tokio::task::spawn_local(async move {
                        connection(stream, &plane).await;
                        drop(slot);
                    });
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    };
    tokio::select! {
        () = accept => {}
        () = plane.stopped() => {}
    }
    let _ = tokio::time::timeout(GRACE, slots.acquire_many(MAX_CONNECTIONS)).await;
}

async fn connection(stream: UnixStream, plane: &Rc<Plane>) {
    let mut stream = BufReader::new(stream);
    loop {
        let request = tokio::select! {
            request = read::<Request>(&mut stream) => request,
            () = plane.stopped() => return,
        };
        let response = match request {
            Ok(Some(request)) => {
                plane.telemetry.count_request();
                respond(request, &mut stream, plane).await
            }
            Ok(None) => return,
            Err(bad) => {
                let _ = write(&mut stream, &Response::refused(&bad)).await;
                return;
            }
        };
        if write(&mut stream, &response).await.is_err() {
            return;
        }
    }
}

async fn respond(
    request: Request,
    stream: &mut BufReader<UnixStream>,
    plane: &Rc<Plane>,
) -> Response {
    match request {
        Request::Status => Response::Status { status: plane.status() },
        Request::Command { name, payload, timeout_ms } => {
            command(&name, &payload, timeout_ms, plane).await
        }
        Request::Import { count } if count > MAX_IMPORT => {
            Response::refused(&format_args!("at most {MAX_IMPORT} devices in one import"))
        }
        Request::Import { count } => {
            let mut lines = Vec::new();
            for _ in 0..count {
                match read::<DeviceLine>(stream).await {
                    Ok(Some(line)) => lines.push(line),
                    Ok(None) => return Response::refused(&BadRequest::Broken),
                    Err(bad) => return Response::refused(&bad),
                }
            }
            blocking(plane, move |registry, _| import(registry, &lines)).await
        }
        request => {
            blocking(plane, move |registry, gateway| answer(registry, Some(gateway), &request))
                .await
        }
    }
}

/// Runs what waits for the disk where it holds nobody up.
async fn blocking(
    plane: &Plane,
    work: impl FnOnce(&Registry, &dyn Gateway) -> Response + Send + 'static,
) -> Response {
    let (registry, gateway) = (Arc::clone(&plane.registry), Arc::clone(&plane.gateway));
    let done = tokio::task::spawn_blocking(move || work(&registry, &*gateway)).await;
    done.unwrap_or_else(|_| Response::refused(&"the request failed inside the gateway"))
}

async fn command(name: &str, payload: &str, timeout_ms: u64, plane: &Plane) -> Response {
    let name: Name = match name.parse() {
        Ok(name) => name,
        Err(BadName) => return Response::refused(&BadName),
    };
    let Some(payload) = hex::decode(payload) else {
        return Response::refused(&"the payload is not hexadecimal");
    };
    let device = match plane.registry.show(&name) {
        Ok(device) => device,
        Err(error) => return Response::refused(&error),
    };
    if let Some(at) = device.revoked_s {
        let error = RegistryError::RevokedAlready(name, crate::identity::Utc(at));
        return Response::refused(&error);
    }
    let timeout = Duration::from_millis(timeout_ms.min(MAX_COMMAND_TIMEOUT_MS));
    let waiting = plane.gateway.command(device.id, payload, timeout);
    let result = match tokio::time::timeout(timeout + COMMAND_SLACK, waiting).await {
        Ok(Ok(result)) => result,
        // The gateway let go of the command without a word: it is ending.
        Ok(Err(_)) => Err(CommandError::SessionEnded),
        Err(_) => Err(CommandError::TimedOut),
    };
    match result {
        Ok(payload) => Response::CommandResult { payload: Hex(&payload).to_string() },
        Err(error) => Response::refused(&format_args!("{name}: {error}")),
    }
}

/// A line that is no request.
#[derive(Debug, thiserror::Error)]
enum BadRequest {
    #[error("the line is longer than {MAX_LINE_LEN} bytes")]
    TooLong,
    #[error("the connection broke off in the middle of a request")]
    Broken,
    #[error("no request came in time")]
    TimedOut,
    #[error("not a request: {0}")]
    Syntax(serde_json::Error),
}

/// Reads one line; `None` at the end of the stream. The line is wiped: it may hold a key.
async fn read<T: for<'de> Deserialize<'de>>(
    stream: &mut BufReader<UnixStream>,
) -> Result<Option<T>, BadRequest> {
    let mut line = Zeroizing::new(Vec::new());
    let mut bounded = stream.take(MAX_LINE_LEN as u64 + 1);
    let reading = bounded.read_until(b'\n', &mut line);
    match tokio::time::timeout(IDLE_TIMEOUT, reading).await {
        Err(_) => return Err(BadRequest::TimedOut),
        Ok(Err(_)) => return Err(BadRequest::Broken),
        Ok(Ok(0)) => return Ok(None),
        Ok(Ok(_)) => {}
    }
    if line.last() != Some(&b'\n') {
        let whole = line.len() > MAX_LINE_LEN;
        return Err(if whole { BadRequest::TooLong } else { BadRequest::Broken });
    }
    serde_json::from_slice(&line).map(Some).map_err(BadRequest::Syntax)
}

async fn write(stream: &mut BufReader<UnixStream>, response: &Response) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(response)?;
    line.push(b'\n');
    let writing = stream.get_mut().write_all(&line);
    tokio::time::timeout(IDLE_TIMEOUT, writing).await.map_err(std::io::Error::from)?
}
