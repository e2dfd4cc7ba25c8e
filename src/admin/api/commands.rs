//! Commands over the API: queued for a device that may be asleep, or carried out while the caller waits.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use duet_protocol::identity::DeviceId;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use utoipa::{IntoParams, ToSchema};

use super::input::Input;
use super::{Answer, Plane};
use crate::admin::devices;
use crate::admin::wire::MAX_COMMAND_TIMEOUT_MS;
use crate::admin::{CommandError, Problem};
use crate::commands::{
    CommandInfo, CommandState, Commands, Order, Outcome, QueueError, Queued, Wanted,
};
use crate::hex::{self, Hex};
use crate::registry::Name;

/// How long the queue may take to answer: it waits for the disk.
const PATIENCE: Duration = Duration::from_secs(20);
/// The most commands in one answer.
const PAGE: usize = 1_000;

/// A command to be carried out while the caller waits.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CommandRequest {
    /// Its payload, hexadecimal.
    pub(crate) payload: String,
    /// How long to wait for the result, milliseconds, at most 300,000.
    pub(crate) timeout_ms: u64,
}

/// A device's answer to a command.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct CommandResult {
    /// Hexadecimal.
    pub(crate) payload: String,
}

/// A command to be queued.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewCommand {
    /// Its payload, hexadecimal.
    pub(crate) payload: String,
    /// How long it may wait for its result, milliseconds; without it, what the settings say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ttl_ms: Option<u64>,
    /// An idempotency key: where the device, as it is registered now, has had a command with the same one within a day, that one is meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) key: Option<String>,
    /// A collapse key: commands of the device with the same one that are not over are superseded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) collapse: Option<String>,
}

/// A command that is queued.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct QueuedCommand {
    /// The command.
    pub(crate) command: CommandInfo,
    /// Whether it was there already, under its idempotency key.
    pub(crate) known: bool,
}

/// Which commands to list.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct ListWhich {
    /// Only those of this device.
    device: Option<String>,
    /// Only those that are not over.
    #[serde(default)]
    open: bool,
    /// Only those that were queued after the one with this id.
    #[serde(default)]
    after: u64,
    /// At most so many, and at most 1,000.
    limit: Option<usize>,
}

fn queue_of(plane: &Plane) -> Result<&Commands, Problem> {
    plane.gateway.commands().ok_or_else(|| {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "this gateway keeps no commands")
    })
}

/// What the queue answers, in time.
async fn answered<T>(waiting: oneshot::Receiver<Result<T, QueueError>>) -> Result<T, Problem> {
    match tokio::time::timeout(PATIENCE, waiting).await {
        Ok(Ok(answer)) => answer.map_err(|error| Problem::of_queue(&error)),
        Ok(Err(_)) => Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the gateway is ending")),
        Err(_) => {
            let text = "the disk does not answer in time; what was asked may happen all the same";
            Err(Problem::new(StatusCode::GATEWAY_TIMEOUT, text))
        }
    }
}

/// The device's name, id and registration, if it may be given commands.
async fn commanded(plane: &Plane, name: &str) -> Result<(Name, DeviceId, u64), Problem> {
    let name: Name = name.parse()?;
    let known = name.clone();
    let found = plane.blocking(move |registry, _| devices::commanded(registry, &known)).await?;
    let (device, registration) = found;
    Ok((name, device, registration))
}

fn payload_of(text: &str) -> Result<Vec<u8>, Problem> {
    hex::decode(text).ok_or_else(|| Problem::bad("the payload is not hexadecimal"))
}

/// Sends a command to a connected device and waits for its result
#[utoipa::path(post, path = "/v1/devices/{name}/command", tag = "commands",
    params(("name" = String, Path, description = "The device's name")), request_body = CommandRequest,
    responses(
        (status = 200, body = CommandResult),
        (status = 404, body = Problem),
        (status = 409, description = "Not connected, or cancelled meanwhile; the text says which", body = Problem),
        (status = 502, description = "The device reports failure", body = Problem),
        (status = 503, description = "Too many commands wait", body = Problem),
        (status = 504, description = "No result in time", body = Problem),
    ))]
pub(super) async fn command(
    State(plane): State<Arc<Plane>>,
    Path(name): Path<String>,
    Input(CommandRequest { payload, timeout_ms }): Input<CommandRequest>,
) -> Answer<CommandResult> {
    let payload = payload_of(&payload)?;
    if timeout_ms > MAX_COMMAND_TIMEOUT_MS {
        let text = format!("timeout_ms must be at most {MAX_COMMAND_TIMEOUT_MS}");
        return Err(Problem::new(StatusCode::BAD_REQUEST, text));
    }
    let (name, device, registration) = commanded(&plane, &name).await?;
    let order = Order {
        device,
        registration,
        name: name.to_string(),
        payload,
        ttl_ms: Some(timeout_ms.max(1)),
        key: None,
        collapse: None,
        patient: false,
    };
    let Queued { outcome, .. } = answered(queue_of(&plane)?.queue(order)).await?;
    let limit = Duration::from_millis(timeout_ms) + PATIENCE;
    let refused = |error| Problem::of_command(name.as_str(), error);
    let answer = match tokio::time::timeout(limit, outcome).await {
        Ok(Ok(Outcome::Answered(answer))) => answer,
        Ok(Ok(Outcome::NotConnected)) => return Err(refused(CommandError::NotConnected)),
        Ok(Ok(Outcome::Over(CommandState::Expired))) | Err(_) => {
            return Err(refused(CommandError::TimedOut));
        }
        Ok(Ok(Outcome::Over(state))) => return Err(refused(CommandError::Over(state))),
        Ok(Err(_)) => return Err(refused(CommandError::Ending)),
    };
    match answer.status {
        0 => Ok(Json(CommandResult { payload: Hex(&answer.output).to_string() })),
        status => Err(refused(CommandError::Reported(status))),
    }
}

/// Queues a command for a device, connected or asleep; it is on disk when the answer comes
#[utoipa::path(post, path = "/v1/devices/{name}/commands", tag = "commands",
    params(("name" = String, Path, description = "The device's name")), request_body = NewCommand,
    responses(
        (status = 202, body = QueuedCommand),
        (status = 404, body = Problem),
        (status = 409, description = "The key stands for another command, or the device is revoked", body = Problem),
        (status = 413, body = Problem),
        (status = 503, description = "Too many commands wait, or the queue cannot be written", body = Problem),
    ))]
pub(super) async fn queue(
    State(plane): State<Arc<Plane>>,
    Path(name): Path<String>,
    Input(NewCommand { payload, ttl_ms, key, collapse }): Input<NewCommand>,
) -> Result<(StatusCode, Json<QueuedCommand>), Problem> {
    let payload = payload_of(&payload)?;
    let (name, device, registration) = commanded(&plane, &name).await?;
    let name = name.to_string();
    let patient = true;
    let order = Order { device, registration, name, payload, ttl_ms, key, collapse, patient };
    let Queued { info, known, .. } = answered(queue_of(&plane)?.queue(order)).await?;
    Ok((StatusCode::ACCEPTED, Json(QueuedCommand { command: info, known })))
}

/// Commands in the order in which they were queued, one JSON object a line; those that are over are kept for a day
#[utoipa::path(get, path = "/v1/commands", tag = "commands", params(ListWhich), responses(
    (status = 200, description = "At most a thousand; the last one's id says where to go on", body = CommandInfo,
     content_type = "application/x-ndjson"),
    (status = 404, body = Problem),
))]
pub(super) async fn list(
    State(plane): State<Arc<Plane>>,
    Query(ListWhich { device, open, after, limit }): Query<ListWhich>,
) -> Result<Response, Problem> {
    let device = match device {
        None => None,
        Some(name) => {
            let name: Name = name.parse()?;
            Some(plane.blocking(move |registry, _| Ok(registry.show(&name)?.id)).await?)
        }
    };
    let wanted = Wanted { device, open, after, limit: limit.unwrap_or(PAGE).min(PAGE) };
    let found = answered(queue_of(&plane)?.list(wanted)).await?;
    let mut text = Vec::with_capacity(found.len() * 300);
    for command in &found {
        // Strings and numbers always make JSON.
        let _ = serde_json::to_writer(&mut text, command);
        text.push(b'\n');
    }
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], text).into_response())
}

/// One command
#[utoipa::path(get, path = "/v1/commands/{id}", tag = "commands",
    params(("id" = u64, Path, description = "The command's id")),
    responses((status = 200, body = CommandInfo), (status = 404, body = Problem)))]
pub(super) async fn show(
    State(plane): State<Arc<Plane>>,
    Path(id): Path<u64>,
) -> Answer<CommandInfo> {
    Ok(Json(answered(queue_of(&plane)?.show(id)).await?))
}

/// Cancels a command that is not over; if it was sent, its device may have carried it out
#[utoipa::path(delete, path = "/v1/commands/{id}", tag = "commands",
    params(("id" = u64, Path, description = "The command's id")),
    responses((status = 200, body = CommandInfo), (status = 404, body = Problem),
              (status = 409, description = "It is over", body = Problem)))]
pub(super) async fn cancel(
    State(plane): State<Arc<Plane>>,
    Path(id): Path<u64>,
) -> Answer<CommandInfo> {
    Ok(Json(answered(queue_of(&plane)?.cancel(id)).await?))
}
