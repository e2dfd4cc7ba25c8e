//! `/metrics`, `/health` and `/ready` over HTTP/1.1, one request a connection.
//!
//! Few connections at a time, each short: a scraper that hangs cannot hold more than its slot,
//! and not for long.

use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::{Plane, Status};

const MAX_CONNECTIONS: usize = 32;
const HEADER_TIMEOUT: Duration = Duration::from_secs(3);
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_HEADER_BYTES: usize = 16 * 1024;
const JSON: &str = "application/json";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Serves until the control plane stops.
pub(super) async fn serve(listener: TcpListener, plane: &Rc<Plane>) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let accept = async {
        loop {
            // Never closed, so there is always a slot in the end.
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let plane = Rc::clone(plane);
                    tokio::task::spawn_local(async move {
                        connection(stream, &plane).await;
                        drop(slot);
                    });
                }
                // Out of descriptors, most likely: wait for some to come back.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    };
    tokio::select! {
        () = accept => {}
        () = plane.stopped() => {}
    }
}

async fn connection(stream: TcpStream, plane: &Rc<Plane>) {
    let service = service_fn(|request: Request<Incoming>| {
        let response = respond(request.method(), request.uri().path(), plane);
        async move { Ok::<_, Infallible>(response) }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEADER_BYTES)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    // A client that breaks off or dawdles is its own concern.
    let _ = tokio::time::timeout(CONNECTION_TIMEOUT, serving).await;
}

fn respond(method: &Method, path: &str, plane: &Plane) -> Response<Full<Bytes>> {
    if method != Method::GET && method != Method::HEAD {
        let mut response = reply(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "GET only\n".into());
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match path {
        "/metrics" => {
            if let Ok(view) = plane.registry.view() {
                plane.telemetry.set_devices(view.len());
            }
            reply(StatusCode::OK, PROMETHEUS, plane.telemetry.render())
        }
        "/health" => state(&plane.status(), Status::is_healthy),
        "/ready" => state(&plane.status(), Status::is_ready),
        _ => reply(
            StatusCode::NOT_FOUND,
            "text/plain",
            "there are /metrics, /health and /ready\n".into(),
        ),
    }
}

fn state(status: &Status, good: fn(&Status) -> bool) -> Response<Full<Bytes>> {
    let good = good(status);
    let body = serde_json::json!({ "ok": good, "phase": status.phase, "faults": status.faults });
    let code = if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    reply(code, JSON, format!("{body}\n"))
}

fn reply(code: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
