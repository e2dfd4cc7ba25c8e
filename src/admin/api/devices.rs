//! Devices over the API.

use std::sync::Arc;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use duet_protocol::identity::DeviceId;
use http_body_util::channel::{Channel, Sender};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use zeroize::Zeroizing;

use super::input::{Input, Lines, Names};
use super::{Answer, Plane};
use crate::admin::access::Tried;
use crate::admin::devices::{self, End, Page};
use crate::admin::wire::{DeviceChange, DeviceInfo, DeviceLine, Refused};
use crate::admin::{DeviceQuery, Problem};
use crate::hex;
use crate::identity::now_ms;
use crate::registry::Name;

/// Pages of a list that are read ahead of the client.
const PAGES_AHEAD: usize = 2;

/// The answer to an import.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct Added {
    /// How many devices were registered.
    pub(crate) count: usize,
    /// Those that would be refused, if that was asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) refused: Vec<Refused>,
}

/// How devices are registered.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct AddHow {
    /// Register nothing, and say which of them would be refused.
    #[serde(default)]
    dry_run: bool,
}

/// The answer when several devices were revoked or removed.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct EndedAll {
    /// How many.
    pub(crate) count: usize,
}

/// What is exported.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct ExportHow {
    /// Registration keys, too.
    #[serde(default)]
    with_keys: bool,
}

/// The answer when a device was revoked or removed.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct Ended {
    /// Its id, hexadecimal.
    pub(crate) id: String,
}

/// The devices that are wanted in the order of their names, one JSON object a line
#[utoipa::path(get, path = "/v1/devices", tag = "devices", params(DeviceQuery), responses(
    (status = 200, description = "Lines end with the list, however slowly they are read", body = DeviceInfo,
     content_type = "application/x-ndjson"),
    (status = 400, body = Problem),
))]
pub(super) async fn list(
    State(plane): State<Arc<Plane>>,
    Query(query): Query<DeviceQuery>,
) -> Result<Response, Problem> {
    query.check()?;
    let after = query.after.as_ref().map(|name| name.parse::<Name>()).transpose()?;
    let query = Arc::new(query);
    let first = page(&plane, &query, after).await?;
    let (sender, channel) = Channel::new(PAGES_AHEAD);
    tokio::spawn(pages(plane, query, first, sender));
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::new(channel)).into_response())
}

/// Sends the list page by page, at the pace at which the client takes it.
async fn pages(
    plane: Arc<Plane>,
    query: Arc<DeviceQuery>,
    mut now: Page,
    mut sender: Sender<Bytes, std::io::Error>,
) {
    let mut left = query.limit.unwrap_or(usize::MAX);
    loop {
        look(&plane, &mut now.devices).await;
        let mut text = Vec::with_capacity(now.devices.len() * 400);
        for device in now.devices.iter().filter(|device| query.finds_there(device)).take(left) {
            // Strings and numbers always make JSON.
            let _ = serde_json::to_writer(&mut text, device);
            text.push(b'\n');
            left -= 1;
        }
        if !text.is_empty() && sender.send_data(text.into()).await.is_err() {
            return;
        }
        let Some(after) = now.next.filter(|_| left > 0) else { return };
        now = match page(&plane, &query, Some(after)).await {
            Ok(next) => next,
            // An answer that breaks off tells the client that it has not all of the list.
            Err(problem) => return sender.abort(std::io::Error::other(problem)),
        };
    }
}

async fn page(
    plane: &Plane,
    query: &Arc<DeviceQuery>,
    after: Option<Name>,
) -> Result<Page, Problem> {
    let query = Arc::clone(query);
    plane.blocking(move |registry, _| devices::page(registry, &query, after)).await
}

/// Registers devices, one JSON object a line: all of them or none
#[utoipa::path(post, path = "/v1/devices", tag = "devices", params(AddHow),
    request_body(content = DeviceLine, content_type = "application/x-ndjson"),
    responses((status = 200, body = Added), (status = 400, body = Problem), (status = 409, body = Problem),
              (status = 422, body = Problem)))]
pub(super) async fn add(
    State(plane): State<Arc<Plane>>,
    Query(AddHow { dry_run }): Query<AddHow>,
    Lines(lines): Lines,
) -> Response {
    let added = plane.blocking(move |registry, _| {
        if dry_run {
            return Ok(Added { count: 0, refused: devices::check(registry, &lines)? });
        }
        Ok(Added { count: devices::add(registry, &lines)?, refused: Vec::new() })
    });
    let mut response = added.await.map(Json).into_response();
    if dry_run {
        response.extensions_mut().insert(Tried);
    }
    response
}

/// Revokes several devices, one name a line: all of them or none
#[utoipa::path(post, path = "/v1/revocations", tag = "devices",
    request_body(content = String, content_type = "text/plain"),
    responses((status = 200, body = EndedAll), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn revoke_all(
    State(plane): State<Arc<Plane>>,
    Names(names): Names,
) -> Answer<EndedAll> {
    end_all(&plane, names, End::Revoke).await
}

/// Forgets several devices, one name a line: all of them or none
#[utoipa::path(post, path = "/v1/removals", tag = "devices",
    request_body(content = String, content_type = "text/plain"),
    responses((status = 200, body = EndedAll), (status = 404, body = Problem)))]
pub(super) async fn remove_all(
    State(plane): State<Arc<Plane>>,
    Names(names): Names,
) -> Answer<EndedAll> {
    end_all(&plane, names, End::Remove).await
}

async fn end_all(plane: &Plane, names: Vec<String>, how: End) -> Answer<EndedAll> {
    let count = plane
        .blocking(move |registry, gateway| devices::end_all(registry, Some(gateway), &names, how))
        .await?;
    Ok(Json(EndedAll { count }))
}

/// All devices that may connect, in the form in which they are registered, one JSON object a line
#[utoipa::path(get, path = "/v1/export", tag = "devices", params(ExportHow), responses(
    (status = 200, description = "With keys it is as secret as the registry", body = DeviceLine,
     content_type = "application/x-ndjson"),
))]
pub(super) async fn export(
    State(plane): State<Arc<Plane>>,
    Query(ExportHow { with_keys }): Query<ExportHow>,
) -> Result<Response, Problem> {
    let (mut sender, channel) = Channel::<Bytes, std::io::Error>::new(PAGES_AHEAD);
    tokio::spawn(async move {
        let mut after: Option<Name> = None;
        loop {
            let read = plane
                .blocking(move |registry, _| devices::export(registry, after.as_ref(), with_keys))
                .await;
            let (lines, last) = match read {
                Ok(page) => page,
                // An answer that breaks off tells the client that it has not all of the list.
                Err(problem) => return sender.abort(std::io::Error::other(problem)),
            };
            if last.is_none() {
                return;
            }
            after = last;
            // Sized beforehand: a vector that grows leaves copies of keys behind.
            let size =
                lines.iter().map(|line| line.certificate.as_ref().map_or(0, String::len) + 512);
            let mut text = Zeroizing::new(Vec::with_capacity(size.sum()));
            for line in &lines {
                // Strings and numbers always make JSON.
                let _ = serde_json::to_writer(&mut *text, line);
                text.push(b'\n');
            }
            if sender.send_data(Bytes::from_owner(text)).await.is_err() {
                return;
            }
        }
    });
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::new(channel)).into_response())
}

/// One device
#[utoipa::path(get, path = "/v1/devices/{name}", tag = "devices",
    params(("name" = String, Path, description = "The device's name")),
    responses((status = 200, body = DeviceInfo), (status = 404, body = Problem)))]
pub(super) async fn show(
    State(plane): State<Arc<Plane>>,
    Path(name): Path<String>,
) -> Answer<DeviceInfo> {
    let device = plane.blocking(move |registry, _| devices::show(registry, &name)).await?;
    let mut one = [device];
    look(&plane, &mut one).await;
    let [mut device] = one;
    if let (Some(presence), Some(id)) =
        (&mut device.presence, hex::decode_array(&device.id).map(DeviceId))
    {
        presence.values = plane.gateway.latest(id);
    }
    Ok(Json(device))
}

/// Adds how the devices are at the moment.
async fn look(plane: &Plane, devices: &mut [DeviceInfo]) {
    if devices.is_empty() {
        return;
    }
    let id = |device: &DeviceInfo| {
        hex::decode_array(&device.id).map(DeviceId).unwrap_or(DeviceId([0; 8]))
    };
    let ids: Vec<_> = devices.iter().map(id).collect();
    let Some(looking) = plane.gateway.look(&ids) else { return };
    for (device, found) in devices.iter_mut().zip(looking.found(now_ms()).await) {
        device.presence = found;
    }
}

/// Changes what is said of a device: its tags, its group, when its registration ends
#[utoipa::path(patch, path = "/v1/devices/{name}", tag = "devices", request_body = DeviceChange,
    params(("name" = String, Path, description = "The device's name")),
    responses((status = 200, body = DeviceInfo), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn relabel(
    State(plane): State<Arc<Plane>>,
    Path(name): Path<String>,
    Input(change): Input<DeviceChange>,
) -> Answer<DeviceInfo> {
    let changed = plane.blocking(move |registry, _| devices::relabel(registry, &name, &change));
    Ok(Json(changed.await?))
}

/// For how long an old credential stays good.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct Grace {
    /// Seconds; the first use of the new one ends it before.
    grace_s: u32,
}

/// Gives a device a new credential; the old one stays good until the new one was used
#[utoipa::path(post, path = "/v1/devices/{name}/renew", tag = "devices", request_body = DeviceLine,
    params(("name" = String, Path, description = "The device's name"), Grace),
    responses((status = 200, body = DeviceInfo), (status = 404, body = Problem), (status = 409, body = Problem),
              (status = 422, body = Problem)))]
pub(super) async fn renew(
    State(plane): State<Arc<Plane>>,
    Path(name): Path<String>,
    Query(Grace { grace_s }): Query<Grace>,
    Input(line): Input<DeviceLine>,
) -> Answer<DeviceInfo> {
    let renewed = plane.blocking(move |registry, gateway| {
        devices::renew(registry, Some(gateway), &name, &line, grace_s)
    });
    Ok(Json(renewed.await?))
}

/// Forgets a device and ends its sessions; a credential that was revoked stays refused
#[utoipa::path(delete, path = "/v1/devices/{name}", tag = "devices",
    params(("name" = String, Path, description = "The device's name")),
    responses((status = 200, body = Ended), (status = 404, body = Problem)))]
pub(super) async fn remove(
    State(plane): State<Arc<Plane>>,
    Path(name): Path<String>,
) -> Answer<Ended> {
    end(&plane, name, End::Remove).await
}

/// Refuses a device for ever under its present credential and ends its sessions
#[utoipa::path(post, path = "/v1/devices/{name}/revoke", tag = "devices",
    params(("name" = String, Path, description = "The device's name")),
    responses((status = 200, body = Ended), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn revoke(
    State(plane): State<Arc<Plane>>,
    Path(name): Path<String>,
) -> Answer<Ended> {
    end(&plane, name, End::Revoke).await
}

async fn end(plane: &Plane, name: String, how: End) -> Answer<Ended> {
    let id = plane
        .blocking(move |registry, gateway| devices::end(registry, Some(gateway), &name, how))
        .await?;
    Ok(Json(Ended { id: id.to_string() }))
}
