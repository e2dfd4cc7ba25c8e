//! Bodies of requests: read within a time limit and a size, and refused with the place of what is wrong.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use http_body_util::BodyExt as _;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use crate::admin::Problem;
use crate::admin::guests::Seat;
use crate::admin::wire::{DeviceLine, MAX_IMPORT, MAX_LINE_LEN};

/// How long a client may be silent in the middle of a body.
const SILENCE: Duration = Duration::from_secs(30);
/// The longest body that is one JSON value.
const MAX_VALUE: usize = 64 * 1024;
/// The longest list of names.
const MAX_NAMES: usize = MAX_IMPORT * 66;
/// The longest import.
const MAX_LINES: usize = 1 << 30;

/// A body that is one JSON value.
pub(super) struct Input<T>(pub(super) T);

/// A body of devices, one JSON object a line.
pub(super) struct Lines(pub(super) Vec<DeviceLine>);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Input<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let all = body(request, MAX_VALUE).await?;
        let read = serde_json::from_slice(&all);
        read.map(Self).map_err(|error| Problem::bad(format_args!("not a request: {error}")))
    }
}

/// A whole body of at most so many bytes.
pub(super) async fn body(request: Request, most: usize) -> Result<Zeroizing<Vec<u8>>, Problem> {
    let mut chunks = Chunks::of(request);
    // Reserved up front: a growing vector would leave unwiped copies behind.
    let mut all = Zeroizing::new(Vec::with_capacity(most));
    while let Some(chunk) = chunks.next().await? {
        if all.len() + chunk.len() > most {
            return Err(too_long(format_args!("the body is longer than {most} bytes")));
        }
        all.extend_from_slice(&chunk);
    }
    Ok(all)
}

impl<S: Send + Sync> FromRequest<S> for Lines {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let mut chunks = Chunks::of(request);
        let (mut lines, mut total) = (Vec::new(), 0);
        let mut rest = Zeroizing::new(Vec::new());
        while let Some(chunk) = chunks.next().await? {
            total += chunk.len();
            if total > MAX_LINES {
                return Err(too_long(format_args!("the import is longer than {MAX_LINES} bytes")));
            }
            let mut parts = chunk.split(|byte| *byte == b'\n');
            // What is before the first line break belongs to the line that was begun.
            rest.extend_from_slice(parts.next().unwrap_or_default());
            for part in parts {
                take(&rest, &mut lines)?;
                rest.clear();
                rest.extend_from_slice(part);
            }
            if rest.len() > MAX_LINE_LEN {
                return Err(too_long(format_args!("a line is longer than {MAX_LINE_LEN} bytes")));
            }
        }
        take(&rest, &mut lines)?;
        Ok(Self(lines))
    }
}

/// A body of names, one a line.
pub(super) struct Names(pub(super) Vec<String>);

impl<S: Send + Sync> FromRequest<S> for Names {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let mut chunks = Chunks::of(request);
        let mut all = Vec::new();
        while let Some(chunk) = chunks.next().await? {
            if all.len() + chunk.len() > MAX_NAMES {
                return Err(too_long(format_args!("the body is longer than {MAX_NAMES} bytes")));
            }
            all.extend_from_slice(&chunk);
        }
        let text = String::from_utf8(all).map_err(|_| Problem::bad("the names are not text"))?;
        let names = text.lines().map(str::trim).filter(|name| !name.is_empty());
        Ok(Self(names.map(str::to_owned).collect()))
    }
}

/// Reads one line; an empty one is skipped.
fn take(line: &[u8], lines: &mut Vec<DeviceLine>) -> Result<(), Problem> {
    if line.trim_ascii().is_empty() {
        return Ok(());
    }
    if lines.len() == MAX_IMPORT {
        return Err(too_long(format_args!("at most {MAX_IMPORT} devices in one import")));
    }
    let read = serde_json::from_slice(line).map_err(|error| {
        Problem::bad(format_args!("not a device: {error}")).at(Some(lines.len()))
    })?;
    lines.push(read);
    Ok(())
}

fn too_long(what: std::fmt::Arguments<'_>) -> Problem {
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, what)
}

/// A body piece by piece. While the client is waited for, another may take the connection's place.
struct Chunks {
    body: Body,
    seat: Option<Arc<Seat>>,
}

impl Chunks {
    fn of(request: Request) -> Self {
        let seat = request.extensions().get::<Arc<Seat>>().cloned();
        Self { body: request.into_body(), seat }
    }

    async fn next(&mut self) -> Result<Option<Bytes>, Problem> {
        let serving = |serving| {
            if let Some(seat) = &self.seat {
                seat.serve(serving);
            }
        };
        serving(false);
        let frame = tokio::time::timeout(SILENCE, self.body.frame()).await;
        serving(true);
        match frame {
            Err(_) => Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "no more of the request came")),
            Ok(None) => Ok(None),
            Ok(Some(Ok(frame))) => Ok(Some(frame.into_data().unwrap_or_default())),
            Ok(Some(Err(_))) => Err(Problem::bad("the connection broke off in the request")),
        }
    }
}
