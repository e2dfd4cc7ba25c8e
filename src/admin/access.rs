//! Who may do what. A door says where a request came from; here it becomes a caller with a role, or is denied.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::Problem;
use super::api::Plane;
use super::door::Door;

/// What a caller may do; each role may do all that those before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Role {
    /// Look at the gateway.
    Viewer,
    /// Change devices and give commands.
    Operator,
    /// Everything.
    Admin,
}

/// Somebody who was recognised.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    role: Role,
}

/// Finds out who calls. Nothing behind this is reached by anybody else.
pub(super) async fn authenticate(
    State(_): State<Arc<Plane>>,
    mut request: Request,
    next: Next,
) -> Response {
    let caller = match request.extensions().get::<Door>() {
        // The door let in only the gateway's own user and root.
        Some(Door::Socket { .. }) => Caller { role: Role::Admin },
        Some(Door::Plain) | None => {
            return Problem::new(StatusCode::UNAUTHORIZED, "not from here").into_response();
        }
    };
    request.extensions_mut().insert(caller);
    next.run(request).await
}

/// Lets through only those who have a role.
pub(super) async fn require(State(needed): State<Role>, request: Request, next: Next) -> Response {
    match request.extensions().get::<Caller>() {
        Some(caller) if caller.role >= needed => next.run(request).await,
        _ => Problem::new(StatusCode::FORBIDDEN, "the caller's role does not allow this")
            .into_response(),
    }
}
