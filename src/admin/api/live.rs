//! What the gateway does at the moment, once or again every second.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use http_body_util::channel::Channel;
use tokio::time::MissedTickBehavior;

use super::Plane;
use crate::admin::{Moment, Phase, Problem};

/// Who may watch at once: they keep their connections.
pub(super) const WATCHERS: usize = 32;
/// How often each of them is told. Shards publish their counts as often.
const EVERY: Duration = Duration::from_secs(1);

impl Plane {
    fn moment(&self) -> Moment {
        Moment::now(self.status(), self.gateway.activity())
    }
}

/// What does the gateway do at the moment?
#[utoipa::path(get, path = "/v1/activity", tag = "gateway", responses((status = 200, body = Moment)))]
pub(super) async fn activity(State(plane): State<Arc<Plane>>) -> Json<Moment> {
    Json(plane.moment())
}

/// The same every second, as server-sent events, until the gateway ends
#[utoipa::path(get, path = "/v1/live", tag = "gateway", responses(
    (status = 200, description = "Each event's data is a moment", body = Moment, content_type = "text/event-stream"),
    (status = 503, description = "Too many watch already", body = Problem),
))]
pub(super) async fn live(State(plane): State<Arc<Plane>>) -> Result<Response, Problem> {
    let Ok(place) = Arc::clone(&plane.watchers).try_acquire_owned() else {
        let text = format!("{WATCHERS} callers watch already; try again later");
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, text));
    };
    let (mut sender, channel) = Channel::<Bytes, Infallible>::new(1);
    tokio::spawn(async move {
        let _place = place;
        let mut every = tokio::time::interval(EVERY);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            let moment = plane.moment();
            let ends = moment.status.phase == Phase::Draining;
            let Ok(text) = serde_json::to_string(&moment) else { return };
            let event = format!("event: moment\ndata: {text}\n\n");
            // Whoever watched may have gone.
            if sender.send_data(event.into()).await.is_err() || ends {
                return;
            }
        }
    });
    Ok(([(header::CONTENT_TYPE, "text/event-stream")], Body::new(channel)).into_response())
}
