//! The gateway's own settings over the API.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use super::{Answer, Plane};
use crate::admin::{Problem, Reloaded};

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
