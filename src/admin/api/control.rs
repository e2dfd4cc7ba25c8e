//! The gateway's own settings over the API.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Answer, Plane};
use crate::admin::{Problem, Reloaded, copy_registry};

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

/// Puts a copy of the registry beside it, for `duet backup`, which takes it from there and removes it
#[utoipa::path(post, path = "/v1/backup", tag = "gateway", responses((status = 200, body = Copied)))]
pub(super) async fn backup(State(plane): State<Arc<Plane>>) -> Answer<Copied> {
    let copied = plane.blocking(|registry, _| copy_registry(registry)).await?;
    Ok(Json(Copied { path: copied.display().to_string() }))
}
