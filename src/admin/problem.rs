//! Refusals: one form for all of them, in the API's answers and for commands that ask no gateway.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::CommandError;
use super::wire::BadLine;
use crate::commands::QueueError;
use crate::registry::{BadName, NotAdded, Refusal, RegistryError};

/// Why a request was refused. Nothing was changed then.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// Why, for people.
    pub error: String,
    /// Which device of an import is at fault, the first being 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<usize>,
    /// The HTTP status, which says so much of the kind of problem.
    #[serde(skip)]
    #[schema(ignore)]
    status: Status,
}

/// A status of failure; 500 unless something else was said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Status(StatusCode);

impl Default for Status {
    fn default() -> Self {
        Self(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

impl Problem {
    pub(super) fn new(status: StatusCode, error: impl std::fmt::Display) -> Self {
        Self { error: error.to_string(), device: None, status: Status(status) }
    }

    pub(super) fn status(&self) -> StatusCode {
        self.status.0
    }

    pub(super) fn bad(error: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error)
    }

    pub(super) fn at(self, device: Option<usize>) -> Self {
        Self { device, ..self }
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.error)
    }
}

impl std::error::Error for Problem {}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        (self.status.0, Json(self)).into_response()
    }
}

impl From<RegistryError> for Problem {
    fn from(error: RegistryError) -> Self {
        let status = match &error {
            RegistryError::Unknown(_) => StatusCode::NOT_FOUND,
            RegistryError::NameTaken(_)
            | RegistryError::IdTaken { .. }
            | RegistryError::CredentialTaken { .. }
            | RegistryError::Refused { .. }
            | RegistryError::RevokedAlready(..) => StatusCode::CONFLICT,
            RegistryError::Enrolment(refusal) => match refusal {
                Refusal::Unknown => StatusCode::UNAUTHORIZED,
                Refusal::Ended(_) | Refusal::Spent | Refusal::Name(_) => StatusCode::FORBIDDEN,
                Refusal::NoName => StatusCode::UNPROCESSABLE_ENTITY,
                Refusal::TooMany => StatusCode::CONFLICT,
                Refusal::NotIssued(_) => StatusCode::SERVICE_UNAVAILABLE,
            },
            RegistryError::Certificate { .. } | RegistryError::Label { .. } => {
                StatusCode::UNPROCESSABLE_ENTITY
            }
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error)
    }
}

impl From<NotAdded> for Problem {
    fn from(refused: NotAdded) -> Self {
        Self::from(refused.error).at(refused.index)
    }
}

impl From<BadLine> for Problem {
    fn from(bad: BadLine) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, bad)
    }
}

impl From<BadName> for Problem {
    fn from(bad: BadName) -> Self {
        Self::bad(bad)
    }
}

impl Problem {
    /// A device of an import that cannot be read.
    pub(super) fn of_line(index: usize, name: &str, bad: &BadLine) -> Self {
        // The name may be what is wrong: nothing odd from it reaches a terminal.
        let text = format!("{}: {bad}", name.escape_default());
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, text).at(Some(index))
    }

    /// A command without a result.
    pub(super) fn of_command(name: &str, error: CommandError) -> Self {
        let status = match error {
            CommandError::NotConnected | CommandError::Over(_) => StatusCode::CONFLICT,
            CommandError::TimedOut => StatusCode::GATEWAY_TIMEOUT,
            CommandError::Ending => StatusCode::SERVICE_UNAVAILABLE,
            CommandError::Reported(_) => StatusCode::BAD_GATEWAY,
        };
        Self::new(status, format_args!("{name}: {error}"))
    }

    /// A command that was not queued, or is not there.
    pub(super) fn of_queue(error: &QueueError) -> Self {
        let status = match error {
            QueueError::TooLong => StatusCode::PAYLOAD_TOO_LARGE,
            QueueError::BadKey | QueueError::BadTtl => StatusCode::BAD_REQUEST,
            QueueError::Unknown(_) => StatusCode::NOT_FOUND,
            QueueError::KeyTaken
            | QueueError::Over(..)
            | QueueError::Unregistered(_)
            | QueueError::Numbers => StatusCode::CONFLICT,
            QueueError::DeviceFull(_)
            | QueueError::Full
            | QueueError::Unwritten
            | QueueError::Busy => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, error)
    }
}
