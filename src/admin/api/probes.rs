//! How the gateway is: answered from counters and watched values, never from the disk.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::Plane;
use crate::admin::access::audit_fault;
use crate::admin::{Fault, GatewayFacts, Phase, Problem, Status};

/// The text format of Prometheus.
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The answer to a yes-or-no question about the gateway.
#[derive(Serialize, ToSchema)]
pub(super) struct Verdict {
    /// The answer.
    ok: bool,
    /// Where in its life the gateway is.
    phase: Phase,
    /// What is wrong at the moment.
    faults: Vec<Fault>,
}

impl Plane {
    pub(in crate::admin) fn status(&self) -> Status {
        let mut status = self.gateway.status();
        status.devices = self.view.len() as u64;
        if self.telemetry.marks_failed() {
            status.faults.push(Fault::MarksUnsaved);
        }
        status.faults.extend(audit_fault(self));
        status
    }
}

/// How is the gateway?
#[utoipa::path(get, path = "/v1/status", tag = "gateway", responses((status = 200, body = Status)))]
pub(super) async fn status(State(plane): State<Arc<Plane>>) -> Json<Status> {
    Json(plane.status())
}

/// What does a device need to know of it?
#[utoipa::path(get, path = "/v1/gateway", tag = "gateway", responses((status = 200, body = GatewayFacts)))]
pub(super) async fn gateway(
    State(plane): State<Arc<Plane>>,
) -> Result<Json<GatewayFacts>, Problem> {
    let facts = plane.facts.borrow().clone().map(Json);
    facts.ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, "the gateway has no certificate"))
}

/// Is anything wrong?
#[utoipa::path(get, path = "/health", tag = "gateway", responses(
    (status = 200, description = "Nothing is wrong", body = Verdict),
    (status = 503, description = "The faults say what is wrong", body = Verdict),
))]
pub(super) async fn health(State(plane): State<Arc<Plane>>) -> Response {
    verdict(&plane.status(), Status::is_healthy)
}

/// Should devices be sent here?
#[utoipa::path(get, path = "/ready", tag = "gateway", responses(
    (status = 200, description = "Yes", body = Verdict),
    (status = 503, description = "The phase and the faults say why not", body = Verdict),
))]
pub(super) async fn ready(State(plane): State<Arc<Plane>>) -> Response {
    verdict(&plane.status(), Status::is_ready)
}

/// Counters and gauges for Prometheus
#[utoipa::path(get, path = "/metrics", tag = "gateway", responses(
    (status = 200, description = "The text format of Prometheus", body = String, content_type = "text/plain"),
))]
pub(super) async fn metrics(State(plane): State<Arc<Plane>>) -> Response {
    plane.telemetry.set_devices(plane.view.len());
    plane.telemetry.set_faults(&plane.status().faults);
    ([(header::CONTENT_TYPE, PROMETHEUS)], plane.telemetry.render()).into_response()
}

fn verdict(status: &Status, good: fn(&Status) -> bool) -> Response {
    let ok = good(status);
    let code = if ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let verdict = Verdict { ok, phase: status.phase, faults: status.faults.clone() };
    (code, Json(verdict)).into_response()
}
