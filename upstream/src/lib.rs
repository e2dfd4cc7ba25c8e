//! Upstreams: how readings leave the gateway.
//!
//! Owns the batches, their formats, the connections, and a cursor for each upstream. It reads the
//! spool through [`Source`] and never touches a shard. All upstreams share one thread, apart from
//! the shards' cores; each has its own window, its own cursor and its own troubles.
//!
//! The other way, it takes commands that others leave at an upstream's server, and hands them to a [`Taker`].
//!
//! What it promises: a reading that the spool keeps reaches every required upstream at least once,
//! and is then named by its spool and index, so that every repetition is known by that. A cursor is the
//! end of what an upstream has acknowledged without a hole. Nothing is skipped but what an upstream
//! refuses for itself, which is put aside in a file with the answer, and what the spool was told to
//! let go, which is counted and told downstream.

mod batch;
mod cursor;
mod encode;
mod letters;
mod link;
mod named;
mod orders;
mod park;
mod report;
pub mod secret_file;
mod settings;
mod source;
mod template;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod text;
mod window;
mod worker;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::watch;

pub use crate::batch::{BYTES_MAX, BatchId, READINGS_MAX, Range};
pub use crate::encode::{Encoder, Format, Payload};
pub use crate::orders::{Asked, Taken, Taker, Taking};
pub use crate::report::{Report, forget_metrics};
pub use crate::settings::{Compression, Kind, Problem, Settings, Upstream};
pub use crate::source::{Fact, Notice, Reading, Source, SourceError, SpoolId};

use crate::cursor::Kept;
use crate::orders::Listener;
use crate::report::{Board, Ear, Shared};
use crate::worker::Worker;

/// What [`start`] needs.
pub struct Options {
    /// Where cursors and parked readings are kept; made if it is not there.
    pub dir: PathBuf,
    /// All upstreams.
    pub upstreams: Vec<Upstream>,
    /// Says something to people: what is wrong with an upstream, once, and that it works again.
    pub tell: Arc<dyn Fn(&str) + Send + Sync>,
    /// Who takes the commands that come by them.
    pub taker: Arc<dyn Taker>,
}

/// Why upstreams cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A file of ours.
    #[error("{}: {error}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The spool cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// Two upstreams of one name would share a cursor.
    #[error("two upstreams are called {0}")]
    TwoOfOneName(String),
}

/// A required upstream that the settings no longer have, though it does not have everything.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "upstream {name} is gone from the settings, but {backlog} readings have not reached it: put it back, or start once with --forget {name}"
)]
pub struct Vanished {
    /// Its name.
    pub name: String,
    /// Readings that it does not have.
    pub backlog: u64,
}

/// The running upstreams.
pub struct Upstreams {
    boards: Vec<Shared>,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

/// Which required upstreams have vanished from the settings with readings still to come.
///
/// # Errors
/// [`StartError::Io`] when a cursor cannot be read.
pub fn vanished(
    dir: &Path,
    upstreams: &[Upstream],
    source: &dyn Source,
) -> Result<Vec<Vanished>, StartError> {
    // One that the settings have tells of its damaged cursor itself, and keeps no other from working.
    let is_gone = |name: &str| upstreams.iter().all(|upstream| upstream.name() != name);
    let kept =
        cursor::list(dir, is_gone).map_err(|(path, error)| StartError::Io { path, error })?;
    let gone =
        kept.into_iter().filter(|(_, kept)| kept.required && kept.spool == source.spool_id());
    let vanished = gone.map(|(name, kept)| {
        let backlog = source.durable().saturating_sub(kept.cursor.next.max(source.first()));
        Vanished { name, backlog }
    });
    Ok(vanished.filter(|vanished| vanished.backlog > 0).collect())
}

/// An upstream whose cursor lies here, whether or not the settings have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptCursor {
    /// Its name.
    pub name: String,
    /// Where its readings come from.
    pub spool: SpoolId,
    /// Whether the spool keeps readings until it has them.
    pub required: bool,
}

/// The upstreams whose cursors lie here and are wanted, by name.
///
/// # Errors
/// [`StartError::Io`] when one of them cannot be read.
pub fn kept_cursors(
    dir: &Path,
    wanted: impl Fn(&str) -> bool,
) -> Result<Vec<KeptCursor>, StartError> {
    let kept = cursor::list(dir, wanted).map_err(|(path, error)| StartError::Io { path, error })?;
    let known = |(name, Kept { spool, required, .. })| KeptCursor { name, spool, required };
    Ok(kept.into_iter().map(known).collect())
}

/// Forgets how far an upstream was. False when there was nothing to forget.
///
/// # Errors
/// [`StartError::Io`] when its cursor cannot be removed.
pub fn forget(dir: &Path, name: &str) -> Result<bool, StartError> {
    let path = cursor::path(dir, name);
    match std::fs::remove_file(&path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(StartError::Io { path, error }),
    }
}

/// Gives an upstream its way into the spool.
pub type OpenSource<'a> = dyn FnMut(&Upstream) -> Result<Box<dyn Source>, SourceError> + 'a;

/// Starts all upstreams on one thread; each gets a way into the spool by `open`. That an upstream cannot be
/// reached is no error: it is told, and tried again.
///
/// # Errors
/// [`StartError`]; nothing runs then.
pub fn start(options: Options, open: &mut OpenSource<'_>) -> Result<Upstreams, StartError> {
    let Options { dir, upstreams, tell, taker } = options;
    let io = |error| StartError::Io { path: dir.clone(), error };
    cursor::make_dir(&dir).map_err(io)?;
    let (stop, stopped) = watch::channel(false);
    let (mut boards, mut workers, mut listeners) = (Vec::new(), Vec::new(), Vec::new());
    for (at, upstream) in upstreams.iter().enumerate() {
        if upstreams[..at].iter().any(|other| other.name() == upstream.name()) {
            return Err(StartError::TwoOfOneName(upstream.name().to_owned()));
        }
        upstream.warning().iter().for_each(|text| tell(text));
        let board = Board::new(upstream);
        boards.push(board.shared());
        let (tell, stopped) = (Arc::clone(&tell), stopped.clone());
        if upstream.commands.is_some() {
            let ear = Ear::new(upstream, board.shared());
            let (taker, tell) = (Arc::clone(&taker), Arc::clone(&tell));
            listeners.push(Listener::new(upstream.clone(), taker, ear, tell, stopped.clone()));
        }
        workers.push(Worker::new(upstream.clone(), open(upstream)?, &dir, board, tell, stopped));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(io)?;
    let thread = std::thread::Builder::new()
        .name("upstream".into())
        .spawn(move || {
            let local = tokio::task::LocalSet::new();
            let mut tasks: Vec<_> =
                workers.into_iter().map(|worker| local.spawn_local(worker.run())).collect();
            tasks.extend(listeners.into_iter().map(|listener| local.spawn_local(listener.run())));
            local.block_on(&runtime, async {
                for task in tasks {
                    if let Err(error) = task.await {
                        tell(&format!("an upstream's task ended unexpectedly: {error}"));
                    }
                }
            });
            // A look-up of a name may still hang in the system: nobody waits for that.
            runtime.shutdown_background();
        })
        .map_err(io)?;
    Ok(Upstreams { boards, stop, thread: Some(thread) })
}

/// Looks at the upstreams; clones look at the same.
#[derive(Clone)]
pub struct Reports(Vec<Shared>);

impl Reports {
    /// How each upstream is at this moment, in the order of the settings.
    #[must_use]
    pub fn look(&self) -> Vec<Report> {
        self.0.iter().map(Shared::look).collect()
    }
}

impl Upstreams {
    /// A way to look at them, also when this handle is elsewhere.
    #[must_use]
    pub fn reports(&self) -> Reports {
        Reports(self.boards.clone())
    }

    /// Gives what is durable a moment to arrive, keeps the cursors and ends the thread.
    pub fn shutdown(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // Fails only when the thread has ended, which the join finds out.
        let _ = self.stop.send(true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Upstreams {
    fn drop(&mut self) {
        self.end();
    }
}
