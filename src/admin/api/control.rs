//! The gateway's own settings over the API.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use http_body_util::channel::Channel;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Answer, Plane, live};
use crate::admin::door::Door;
use crate::admin::{Phase, Problem, Reloaded, access, copy_registry};

/// Takes changed settings and certificates: all that can be taken at once or, if anything is wrong, nothing
#[utoipa::path(post, path = "/v1/config/reload", tag = "gateway", responses(
    (status = 200, description = "What holds now, and what waits for the next start", body = Reloaded),
    (status = 422, description = "What is wrong; nothing was changed", body = Problem),
))]
pub(super) async fn reload(State(plane): State<Arc<Plane>>) -> Answer<Reloaded> {
    let reload = Arc::clone(&plane.reload);
    let done = plane.blocking(move |_, _| {
        reload().map_err(|error| {
            let text = format!("nothing was changed: {error}");
            Problem::new(StatusCode::UNPROCESSABLE_ENTITY, text)
        })
    });
    Ok(Json(done.await?))
}

/// Where a copy of the registry was put.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct Copied {
    /// A file on the gateway's machine that only its user may read.
    pub(crate) path: String,
}

/// How long one backup waits for another to be done with its copy.
const TURN_LIMIT: Duration = Duration::from_secs(10);
/// How often it is found out whether the caller is still there.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long the caller may be busy with the copy and read nothing; what it is told until then fits into the socket.
const BUSY_LIMIT: Duration = Duration::from_secs(3_600);

/// Puts a copy of the registry beside it, for `duet backup`, which takes it from there. It is there for as long as the
/// caller reads: the answer is followed by line ends, one a second, until the caller leaves
#[utoipa::path(post, path = "/v1/backup", tag = "gateway", responses(
    (status = 200, body = Copied),
    (status = 503, description = "Another backup is being made", body = Problem),
))]
pub(super) async fn backup(
    State(plane): State<Arc<Plane>>,
    Extension(door): Extension<Door>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let turn = Arc::clone(&plane.copying).acquire_owned();
    let Ok(Ok(turn)) = tokio::time::timeout(TURN_LIMIT, turn).await else {
        let text = "another backup is being made; try again when it is done";
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, text));
    };
    let copy = plane.blocking(|registry, _| copy_registry(registry)).await?;
    let copied = Copied { path: copy.path().display().to_string() };
    let mut text = serde_json::to_string(&copied).unwrap_or_default();
    let (sender, channel) = Channel::<Bytes, Infallible>::new(1);
    tokio::spawn(async move {
        let next = || {
            let ends = plane.status().phase == Phase::Draining;
            let may = access::is_admitted(&door, &headers, &plane);
            may.then(|| (std::mem::take(&mut text) + "\n", ends))
        };
        live::tell(sender, LOOK_EVERY, BUSY_LIMIT, next).await;
        // It may be large. One that the end of the gateway interrupts is removed all the same.
        let _ = tokio::task::spawn_blocking(move || drop(copy)).await;
        drop(turn);
    });
    Ok(([(header::CONTENT_TYPE, "application/json")], Body::new(channel)).into_response())
}
