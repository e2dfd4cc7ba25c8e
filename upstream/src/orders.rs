//! The way down: commands for devices, which others leave at an upstream's server.
//!
//! Owns a connection of its own beside the upstream's, and the acknowledgements. A command is acknowledged to the server
//! only when [`Taker`] says that it is on disk, or that it never will be; so one that nobody acknowledged
//! comes again, and is known by its key. Nothing that is sent here, and nothing that is not answered, holds up what comes after it.

mod mqtt;
mod nats;

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::link::{self, Failure};
use crate::report::Ear;
use crate::settings::{Target, Upstream};
use crate::worker::{PAUSE_MAX, PAUSE_MIN, Tell, jitter};

/// Commands that may wait for their place on the disk at a time.
const WINDOW: usize = 64;
/// The longest key that is handed on.
const KEY_MAX: usize = 64;
/// A connection that lasted so long was a good one.
const GOOD: Duration = Duration::from_secs(10);

/// A command as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The name of the upstream that it came by.
    pub upstream: String,
    /// What it says; whatever somebody sent.
    pub body: Bytes,
    /// What names it, unless it names itself: the same for every time that it comes.
    pub key: Option<String>,
}

/// What became of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It is on disk.
    Queued {
        /// For whoever sent it.
        answer: Vec<u8>,
        /// It had come before.
        known: bool,
    },
    /// It never will be.
    Refused {
        /// For whoever sent it.
        answer: Vec<u8>,
    },
    /// It cannot be now: it is to come again.
    Later(String),
}

/// What becomes of a command, once that is known.
pub type Taking = Pin<Box<dyn Future<Output = Taken> + Send>>;

/// Puts commands into the queue.
pub trait Taker: Send + Sync {
    /// Takes one. The outer future ends when it has its place behind those before it, the inner one when it is on
    /// disk or refused. Neither may take for ever.
    fn take(&self, asked: Asked) -> Pin<Box<dyn Future<Output = Taking> + Send + '_>>;
}

/// Listens for one upstream.
pub(crate) struct Listener {
    upstream: Upstream,
    taker: Arc<dyn Taker>,
    ear: Ear,
    tell: Tell,
    stop: watch::Receiver<bool>,
    /// Whether there was a connection before.
    connected: bool,
}

impl Listener {
    pub(crate) fn new(
        upstream: Upstream,
        taker: Arc<dyn Taker>,
        ear: Ear,
        tell: Tell,
        stop: watch::Receiver<bool>,
    ) -> Self {
        Self { upstream, taker, ear, tell, stop, connected: false }
    }

    /// Works until it is told to stop. What is not acknowledged by then comes again.
    pub(crate) async fn run(mut self) {
        let mut pause = PAUSE_MIN;
        let mut stop = self.stop.clone();
        loop {
            let began = Instant::now();
            let failure = tokio::select! {
                _ = stop.wait_for(|stop| *stop) => return,
                ended = link::guarded(self.session()) => match ended {
                    Ok(never) => match never {},
                    Err(failure) => failure,
                },
            };
            if self.ear.failed(&failure) {
                (self.tell)(&format!(
                    "upstream {}: commands: {}",
                    self.upstream.name, failure.text
                ));
            }
            pause = if began.elapsed() > GOOD { PAUSE_MIN } else { (pause * 2).min(PAUSE_MAX) };
            if timeout(jitter(pause), stop.wait_for(|stop| *stop)).await.is_ok() {
                return;
            }
        }
    }

    async fn session(&mut self) -> Result<Infallible, Failure> {
        match self.upstream.target.clone() {
            Target::Nats { address, .. } => self.nats(&address).await,
            Target::Mqtt { address, client_id, .. } => self.mqtt(&address, &client_id).await,
            // The settings let no other kind listen.
            Target::File { .. }
            | Target::Webhook { .. }
            | Target::Postgres { .. }
            | Target::Kafka { .. } => std::future::pending().await,
        }
    }

    /// It hears.
    fn hears(&mut self) {
        if self.ear.works() {
            (self.tell)(&format!("upstream {}: commands come again", self.upstream.name));
        }
    }

    /// Hands one on.
    async fn take(&self, body: Bytes, key: Option<String>) -> Taking {
        let key = key.filter(|key| (1..=KEY_MAX).contains(&key.len()));
        self.taker.take(Asked { upstream: self.upstream.name.clone(), body, key }).await
    }
}
