//! Where commands that come by upstreams are taken. Upstreams start before whoever takes them, so they wait here meanwhile.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use duet_upstream::{Asked, Taken, Taker, Taking};
use tokio::sync::watch;

/// How long a command waits for somebody to take it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Hands commands on, once there is somebody.
pub(super) struct Desk(watch::Sender<Option<Arc<dyn Taker>>>);

impl Desk {
    pub(super) fn new() -> Self {
        Self(watch::Sender::new(None))
    }

    /// From now on this one takes them.
    pub(super) fn open(&self, taker: Arc<dyn Taker>) {
        self.0.send_replace(Some(taker));
    }
}

impl Taker for Desk {
    #[expect(
        clippy::async_yields_async,
        reason = "one future ends when the command has its place, the other when it is on disk"
    )]
    fn take(&self, asked: Asked) -> Pin<Box<dyn Future<Output = Taking> + Send + '_>> {
        Box::pin(async move {
            let mut somebody = self.0.subscribe();
            let waiting = tokio::time::timeout(PATIENCE, somebody.wait_for(Option::is_some)).await;
            let taker = waiting.ok().and_then(Result::ok).and_then(|taker| taker.clone());
            match taker {
                Some(taker) => taker.take(asked).await,
                None => {
                    let later = Taken::Later("the gateway has not started yet".to_owned());
                    Box::pin(std::future::ready(later)) as Taking
                }
            }
        })
    }
}
