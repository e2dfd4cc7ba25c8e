//! Commands that come by an upstream: looked at like those that come by the API, and written into the audit log.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use duet_upstream::{Asked, Taken, Taker, Taking};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::access::Noted;
use super::api::{Plane, QueuedCommand};
use super::{Problem, access, devices};
use crate::commands::{Order, QueueError, Queued};
use crate::hex;
use crate::registry::Name;

/// The longest command as it comes: more than a payload of any device, in hexadecimal, with its keys.
const MAX_LEN: usize = 16 * 1024;
/// How long the queue may take to answer: it waits for the disk.
const PATIENCE: Duration = Duration::from_secs(20);

/// A command as it comes; `docs/delivery.md` describes it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SentCommand {
    device: String,
    /// Hexadecimal.
    payload: String,
    ttl_ms: Option<u64>,
    key: Option<String>,
    collapse: Option<String>,
}

/// What its sender is told of a command that is not queued.
#[derive(Serialize)]
struct NotQueued<'a> {
    error: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<&'a str>,
}

/// Takes them for the control plane.
pub(super) struct Orders(pub(super) Weak<Plane>);

impl Taker for Orders {
    #[expect(
        clippy::async_yields_async,
        reason = "one future ends when the command has its place, the other when it is on disk"
    )]
    fn take(&self, asked: Asked) -> Pin<Box<dyn Future<Output = Taking> + Send + '_>> {
        let plane = self.0.upgrade();
        Box::pin(async move {
            let Some(plane) = plane else {
                return Box::pin(std::future::ready(Taken::Later(
                    "the gateway is ending".to_owned(),
                ))) as Taking;
            };
            let mut named = None;
            let placed = place(&plane, &asked, &mut named).await;
            Box::pin(async move {
                let taken = finish(placed, named.as_deref()).await;
                let action =
                    format!("command {}", named.as_deref().unwrap_or("that cannot be read"));
                let (changed, outcome) = match &taken {
                    Taken::Queued { known: false, .. } => (true, "done".to_owned()),
                    Taken::Refused { .. } => (false, "refused".to_owned()),
                    // Neither changes anything.
                    Taken::Queued { known: true, .. } | Taken::Later(_) => return taken,
                };
                let (who, from) = (format!("upstream {}", asked.upstream), asked.upstream);
                access::note(&plane, Noted { who, from, action, outcome, changed }).await;
                taken
            })
        })
    }
}

/// Why a command has no place in the queue.
enum Refusal {
    /// It will not be another time either.
    For(String),
    /// The gateway cannot say.
    Later(String),
}

type Placed = oneshot::Receiver<Result<Queued, QueueError>>;

/// Reads a command and gives it its place. `named` is the device, once there is one of that name.
async fn place(
    plane: &Arc<Plane>,
    asked: &Asked,
    named: &mut Option<String>,
) -> Result<Placed, Refusal> {
    let refused = |why: String| Refusal::For(why);
    if asked.body.len() > MAX_LEN {
        return Err(refused(format!("longer than {MAX_LEN} bytes, which no command is")));
    }
    let SentCommand { device, payload, ttl_ms, key, collapse } =
        serde_json::from_slice(&asked.body).map_err(|error| {
            refused(format!(
                "not a command ({error}): device and payload, perhaps ttl_ms, key and collapse"
            ))
        })?;
    let name: Name = device.parse().map_err(|bad| refused(Problem::from(bad).to_string()))?;
    *named = Some(name.to_string());
    let payload = hex::decode(&payload)
        .ok_or_else(|| refused("the payload is not hexadecimal".to_owned()))?;
    // A delivery that is repeated must not be carried out twice, and without a key it cannot be told from a new one.
    let key = key.or_else(|| asked.key.clone()).ok_or_else(|| {
        refused("a command needs a key: `key`, or correlation data of up to 32 bytes".to_owned())
    })?;
    let known = name.clone();
    let found = plane.blocking(move |registry, _| devices::commanded(registry, &known)).await;
    let (device, registration) = found.map_err(|problem| {
        let said = problem.to_string();
        if problem.status().is_server_error() { Refusal::Later(said) } else { Refusal::For(said) }
    })?;
    let Some(queue) = plane.gateway.commands() else {
        return Err(refused("this gateway keeps no commands".to_owned()));
    };
    let (name, key) = (name.to_string(), Some(key));
    let patient = true;
    Ok(queue.queue(Order { device, registration, name, payload, ttl_ms, key, collapse, patient }))
}

/// Waits until it is on disk.
async fn finish(placed: Result<Placed, Refusal>, device: Option<&str>) -> Taken {
    let answered = match placed {
        Ok(waiting) => match tokio::time::timeout(PATIENCE, waiting).await {
            Ok(Ok(answered)) => answered,
            Ok(Err(_)) => return Taken::Later("the gateway is ending".to_owned()),
            Err(_) => return Taken::Later("the disk does not answer in time".to_owned()),
        },
        Err(Refusal::For(error)) => return not_queued(error, device),
        Err(Refusal::Later(why)) => return Taken::Later(why),
    };
    match answered {
        Ok(Queued { info, known, .. }) => {
            let answer = QueuedCommand { command: info, known };
            // Strings and numbers always make JSON.
            Taken::Queued { answer: serde_json::to_vec(&answer).unwrap_or_default(), known }
        }
        // What is full of its own device's commands is refused: one device must not stop those of others.
        Err(error @ (QueueError::Unwritten | QueueError::Busy | QueueError::Full)) => {
            Taken::Later(error.to_string())
        }
        Err(error) => not_queued(error.to_string(), device),
    }
}

fn not_queued(error: String, device: Option<&str>) -> Taken {
    Taken::Refused { answer: serde_json::to_vec(&NotQueued { error, device }).unwrap_or_default() }
}
