//! What the gateway logs, over the API.

use axum::Json;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::input::Input;
use crate::admin::Problem;
use crate::log::{self, Level};

/// From which importance on the log has lines.
#[derive(Serialize, Deserialize, ToSchema)]
pub(crate) struct LogLevel {
    /// Lines of this level and more important ones are written.
    pub(crate) level: Level,
}

/// From which level on does the gateway log?
#[utoipa::path(get, path = "/v1/log/level", tag = "gateway", responses((status = 200, body = LogLevel)))]
pub(super) async fn show() -> Json<LogLevel> {
    Json(LogLevel { level: log::level() })
}

/// Logs from this level on, until the next reload or start
#[utoipa::path(put, path = "/v1/log/level", tag = "gateway", request_body = LogLevel, responses(
    (status = 200, description = "It does", body = LogLevel), (status = 400, body = Problem),
))]
pub(super) async fn set(Input(wanted): Input<LogLevel>) -> Json<LogLevel> {
    log::set_level(wanted.level);
    tracing::info!(level = wanted.level.name(), "the log's level was set over the API");
    Json(wanted)
}
