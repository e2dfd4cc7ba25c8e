//! Enrolment over the API: what operators do with tokens, and what devices do with one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;

use super::input::{Input, body};
use super::{Answer, Plane};
use crate::admin::Problem;
use crate::admin::access::{Noted, note};
use crate::admin::door::Door;
use crate::admin::enrol::{
    self, EnrolAnswer, EnrolRequest, EnrolTokenInfo, MadeToken, NewEnrolToken,
};
use crate::identity::now_s;

/// The longest request of a stranger.
const MAX_REQUEST: usize = 16 * 1024;
/// How long a stranger's request may take to come, and how long it may wait for its turn.
const PATIENCE: Duration = Duration::from_secs(10);

/// All enrolment tokens, without the tokens themselves
#[utoipa::path(get, path = "/v1/enrolment-tokens", tag = "enrolment",
    responses((status = 200, body = Vec<EnrolTokenInfo>)))]
pub(super) async fn list(State(plane): State<Arc<Plane>>) -> Answer<Vec<EnrolTokenInfo>> {
    Ok(Json(plane.blocking(|registry, _| enrol::tokens(registry)).await?))
}

/// Makes an enrolment token; it is shown this once
#[utoipa::path(post, path = "/v1/enrolment-tokens", tag = "enrolment", request_body = NewEnrolToken, responses(
    (status = 200, body = MadeToken), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn add(
    State(plane): State<Arc<Plane>>,
    Input(wanted): Input<NewEnrolToken>,
) -> Answer<MadeToken> {
    let made = plane.blocking(move |registry, _| enrol::made_token(registry, &wanted, now_s()));
    Ok(Json(made.await?))
}

/// Ends an enrolment token; devices that it has registered stay
#[utoipa::path(delete, path = "/v1/enrolment-tokens/{id}", tag = "enrolment",
    params(("id" = String, Path, description = "The token's id")),
    responses((status = 204, description = "It has ended"), (status = 404, body = Problem)))]
pub(super) async fn revoke(
    State(plane): State<Arc<Plane>>,
    Path(id): Path<String>,
) -> Result<StatusCode, Problem> {
    plane.blocking(move |registry, _| enrol::revoke_token(registry, &id)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Registers the device that brings an enrolment token and proves that it has a key. Asked again with the same token and
/// the same key, for example when an answer was lost, it answers the same
#[utoipa::path(post, path = "/v1/enrol", tag = "enrolment", request_body = EnrolRequest, responses(
    (status = 200, body = EnrolAnswer), (status = 401, description = "No such token", body = Problem),
    (status = 403, description = "The token has ended, is spent, or is for other names", body = Problem),
    (status = 409, description = "The name or the key is another device's", body = Problem),
    (status = 422, description = "No proof of a key that can be used", body = Problem),
    (status = 429, description = "Too many wrong tokens came from this address", body = Problem),
    (status = 503, description = "No CA, or too many at once: try again", body = Problem)))]
pub(super) async fn enrol(
    State(plane): State<Arc<Plane>>,
    request: Request,
) -> Answer<EnrolAnswer> {
    let door = request.extensions().get::<Door>().cloned();
    let (address, from) = match door {
        Some(Door::Tls { peer }) => (Some(peer.ip()), peer.to_string()),
        Some(Door::Socket { .. }) => (None, "socket".to_owned()),
        // It would bring its token in clear.
        Some(Door::Plain) | None => {
            return Err(Problem::new(StatusCode::FORBIDDEN, "not from here"));
        }
    };
    if plane.desk.is_closed_to(address, Instant::now()) {
        plane.telemetry.count_enrolment("limited");
        let text = "too many wrong enrolment tokens came; try again in a minute";
        return Err(Problem::new(StatusCode::TOO_MANY_REQUESTS, text));
    }
    let text = tokio::time::timeout(PATIENCE, body(request, MAX_REQUEST)).await;
    let text = text.unwrap_or_else(|_| {
        Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "the request came too slowly"))
    });
    let read = text.and_then(|text| {
        serde_json::from_slice::<EnrolRequest>(&text).map_err(|error| {
            // What stands there may be a token: it is not told again.
            let (line, column) = (error.line(), error.column());
            Problem::bad(format_args!("not a request for enrolment: line {line}, column {column}"))
        })
    });
    let wanted = read.inspect_err(|_| plane.telemetry.count_enrolment("refused"))?;
    let waited = tokio::time::timeout(PATIENCE, plane.desk.places().acquire()).await;
    let Ok(Ok(_place)) = waited else {
        plane.telemetry.count_enrolment("refused");
        let text = "too many devices enrol at once; try again";
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, text));
    };
    let facts = plane.facts.borrow().clone().ok_or_else(|| {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the gateway is starting; try again")
    })?;
    let port = plane.gateway.status().listen.port();
    let desk = Arc::clone(&plane.desk);
    let id = enrol::read_token(&wanted.token).map(|(id, _)| id);
    let done =
        plane.blocking(move |registry, _| desk.enrol(registry, &wanted, &facts, port, now_s()));
    let done = done.await;
    let is_unknown = matches!(&done, Err(problem) if problem.status() == StatusCode::UNAUTHORIZED);
    if is_unknown {
        plane.desk.note_wrong(address);
    }
    // An unknown token may be a secret of another kind.
    let who = match id {
        Some(id) if !is_unknown => format!("enrolment token {id}"),
        _ => "nobody".to_owned(),
    };
    let (name, outcome, counted) = match &done {
        Ok(done) if done.answer.again => (Some(&done.name), "done again".to_owned(), "again"),
        Ok(done) => (Some(&done.name), "done".to_owned(), "enrolled"),
        Err(problem) => (None, format!("refused ({})", problem.status().as_u16()), "refused"),
    };
    plane.telemetry.count_enrolment(counted);
    let action = match name {
        Some(name) => format!("POST /v1/enrol {name}"),
        None => "POST /v1/enrol".to_owned(),
    };
    // Whoever has a token that is spent may ask as often as he likes.
    let changed = done.as_ref().is_ok_and(|done| !done.answer.again);
    note(&plane, Noted { who, from, action, outcome, changed }).await;
    Ok(Json(done?.answer))
}
