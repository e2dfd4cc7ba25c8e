//! What the gateway does at the moment, once or again every second.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use http_body_util::channel::{Channel, Sender};
use tokio::time::MissedTickBehavior;

use super::Plane;
use crate::admin::door::Door;
use crate::admin::{Moment, Phase, Problem, access};

/// Who may watch at once: they keep their connections.
pub(super) const WATCHERS: usize = 32;
/// How often each of them is told. Shards publish their counts as often.
const EVERY: Duration = Duration::from_secs(1);
/// How long one of them may take nothing of what it is told.
const PATIENCE: Duration = Duration::from_secs(30);

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

/// The same every second, as server-sent events, until the gateway or the caller's token ends
#[utoipa::path(get, path = "/v1/live", tag = "gateway", responses(
    (status = 200, description = "Each event's data is a moment", body = Moment, content_type = "text/event-stream"),
    (status = 503, description = "Too many watch already", body = Problem),
))]
pub(super) async fn live(
    State(plane): State<Arc<Plane>>,
    Extension(door): Extension<Door>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let Ok(place) = Arc::clone(&plane.watchers).try_acquire_owned() else {
        let text = format!("{WATCHERS} callers watch already; try again later");
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, text));
    };
    let (sender, channel) = Channel::<Bytes, Infallible>::new(1);
    tokio::spawn(async move {
        let _place = place;
        let next = || {
            if !access::is_admitted(&door, &headers, &plane) {
                return None;
            }
            let moment = plane.moment();
            let ends = moment.status.phase == Phase::Draining;
            let text = serde_json::to_string(&moment).ok()?;
            Some((format!("event: moment\ndata: {text}\n\n"), ends))
        };
        tell(sender, EVERY, PATIENCE, next).await;
    });
    Ok(([(header::CONTENT_TYPE, "text/event-stream")], Body::new(channel)).into_response())
}

/// Hands on an event at a time, until there is none any more, one is the last, or the reader takes none: its place is
/// for others then.
pub(super) async fn tell(
    mut sender: Sender<Bytes, Infallible>,
    every: Duration,
    patience: Duration,
    mut next: impl FnMut() -> Option<(String, bool)>,
) {
    let mut every = tokio::time::interval(every);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        let Some((event, ends)) = next() else { return };
        // Whoever watched may have gone.
        match tokio::time::timeout(patience, sender.send_data(event.into())).await {
            Ok(Ok(())) if !ends => {}
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    /// How many events are asked for until it ends by itself.
    async fn asked(sender: Sender<Bytes, Infallible>, last: u32) -> u32 {
        let (short, mut asked) = (Duration::from_millis(1), 0);
        let told = tell(sender, short, Duration::from_millis(100), || {
            asked += 1;
            (asked <= last).then(|| ("event".to_owned(), false))
        });
        tokio::time::timeout(Duration::from_secs(60), told).await.unwrap();
        asked
    }

    #[tokio::test]
    async fn who_takes_nothing_is_not_waited_for_for_ever() {
        let (sender, _untaken) = Channel::<Bytes, Infallible>::new(1);
        assert!(asked(sender, u32::MAX).await < 5);
    }

    #[tokio::test]
    async fn it_ends_with_the_right_to_watch() {
        let (sender, mut channel) = Channel::<Bytes, Infallible>::new(1);
        let reader = tokio::spawn(async move { while channel.frame().await.is_some() {} });
        assert_eq!(asked(sender, 3).await, 4);
        reader.await.unwrap();
    }
}
