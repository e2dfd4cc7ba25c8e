//! The control plane's thread: the API on the control socket, metrics and health over HTTP, and the freshness marks'
//! way to the disk.
//!
//! It never touches the data path: it changes the registry, asks the [`Gateway`] and reads counters. Its one thread
//! answers from memory; whatever waits for the disk has threads of its own, so that a slow disk delays no question
//! about the gateway's health.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use duet_protocol::identity::DeviceId;
use duet_upstream::Taker;
use rustix::fs::Mode;
use socket2::{Domain, SockAddr, Socket, Type};
use thiserror::Error;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

mod access;
mod activity;
mod api;
pub mod audit;
mod backup;
mod client;
mod credential;
pub mod devices;
mod door;
mod enrol;
mod guests;
mod marks;
mod orders;
mod problem;
mod query;
mod status;
mod telemetry;
mod tls;
pub mod tokens;
mod wire;

pub use access::{Role, UnknownRole};
pub use activity::{Activity, Advised, Dropped, Moment};
pub use backup::{RegistryCopy, copy_registry, forget_copy};
pub use client::{Client, ClientError, How};
pub use credential::{Credential, CredentialError};
pub use enrol::{
    EnrolAnswer, EnrolRequest, EnrolTokenInfo, MadeToken, NewEnrolToken, check as check_enrol,
    made_token, revoke_token, tokens as enrol_tokens,
};
pub use problem::Problem;
pub use query::{DeviceQuery, DeviceState};
pub use status::{Fault, Phase, Reloaded, Status, UpstreamStatus};
pub use telemetry::{Telemetry, install as install_telemetry};
pub use tls::{TlsError, acceptor};
pub use wire::{
    BadLine, DeviceChange, DeviceInfo, DeviceLine, GatewayFacts, MAX_COMMAND_TIMEOUT_MS,
    MAX_IMPORT, MAX_LINE_LEN, Refused,
};

use crate::commands::{CommandState, Commands};
use crate::config::Enrol;
use crate::presence::{LastValue, Looking};
use crate::registry::{Registry, RegistryError};
use api::{Keep, Plane};
use audit::Audit;
use orders::Orders;
use tokens::Tokens;

pub use duet_control::SOCKET;

/// Threads for what waits for the disk.
const DISK_THREADS: usize = 16;
/// How long work that waits for the disk may go on when the control plane has ended.
const LEAVE_BEHIND: Duration = Duration::from_secs(5);

/// What the control plane asks of the running gateway. Every method but the first returns at once.
pub trait Gateway: Send + Sync {
    /// The device was revoked or removed, on disk and in the view: end its sessions. It waits for shards that have no room for mail.
    fn revoked(&self, device: DeviceId);

    /// The queue of commands, where there is one.
    fn commands(&self) -> Option<&Commands>;

    /// Says who takes the commands that come by upstreams.
    fn take_orders(&self, taker: Arc<dyn Taker>);

    /// The latest readings of a device, as far as they are kept.
    fn latest(&self, device: DeviceId) -> Vec<LastValue>;

    /// Asks how these devices are, where somebody knows.
    fn look(&self, devices: &[DeviceId]) -> Option<Looking>;

    /// How the gateway is. `devices` is filled in by the caller.
    fn status(&self) -> Status;

    /// What it has done since its start.
    fn activity(&self) -> Activity;
}

/// Why a command has no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CommandError {
    /// The device has no session.
    #[error("the device is not connected")]
    NotConnected,
    /// No result within the time given; the command may have been carried out.
    #[error("no result in time; the device may have carried the command out")]
    TimedOut,
    /// Somebody cancelled it, or another one took its place.
    #[error("the command was {0} before a result came")]
    Over(CommandState),
    /// The gateway ended meanwhile.
    #[error("the gateway is ending; the device may have carried the command out")]
    Ending,
    /// The device carried it out, or tried to, and reports a failure of its own.
    #[error("the device reports failure (status {0})")]
    Reported(u8),
}

/// Why the control plane did not start or did not end well.
#[derive(Debug, Error)]
pub enum AdminError {
    /// The control socket cannot be made.
    #[error("{}: cannot listen on the control socket: {error}", path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The HTTP address cannot be bound.
    #[error("metrics.listen {address}: {error}")]
    Http {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        error: io::Error,
    },
    /// The API's address cannot be bound.
    #[error("api.listen {address}: {error}")]
    Api {
        /// The address.
        address: SocketAddr,
        /// The system's error.
        error: io::Error,
    },
    /// The audit log cannot be written.
    #[error(transparent)]
    Audit(#[from] audit::AuditError),
    /// The tokens cannot be read.
    #[error(transparent)]
    Tokens(#[from] tokens::TokenError),
    /// No thread, or no runtime on it.
    #[error("the control plane cannot start: {0}")]
    Start(io::Error),
    /// The registry cannot be read.
    #[error(transparent)]
    Registry(RegistryError),
    /// The last marks could not be saved.
    #[error("the last freshness marks were not saved: {0}")]
    Marks(RegistryError),
    /// The thread panicked.
    #[error("the control plane's thread failed")]
    Panicked,
}

/// What [`start`] needs to know.
pub struct Options {
    /// The state directory: the socket is made in it.
    pub state: PathBuf,
    /// Address of the HTTP endpoint; port 0 lets the system choose.
    pub http: SocketAddr,
    /// How often marks are saved.
    pub save_marks_every: Duration,
    /// What devices need to know of the gateway.
    pub facts: watch::Receiver<Option<GatewayFacts>>,
    /// Takes changed settings, or says why none were taken.
    pub reload: Reload,
    /// With what devices enrol.
    pub enrol: Enrol,
    /// The most that the audit log may take, bytes.
    pub audit_max_bytes: u64,
    /// The API over TLS, where it is asked for.
    pub api: Option<(SocketAddr, watch::Receiver<TlsAcceptor>)>,
}

/// Takes changed settings, or says why none were taken. It may block.
pub type Reload = Box<dyn Fn() -> Result<Reloaded, String> + Send + Sync>;

impl Options {
    /// The options that the settings imply.
    #[must_use]
    pub fn new(config: &crate::config::Config) -> Self {
        let (state, http) = (config.state.clone(), config.metrics.listen);
        let reload = Box::new(|| Err("this gateway takes no settings while it runs".into()));
        Self {
            state,
            http,
            save_marks_every: Duration::from_secs(5),
            enrol: config.enrol.clone(),
            audit_max_bytes: config.audit_max_bytes,
            reload,
            api: None,
            facts: watch::channel(None).1,
        }
    }
}

/// Connections over the control socket that wait to be accepted.
const BACKLOG: i32 = 128;

/// The running control plane.
pub struct Admin {
    http: SocketAddr,
    api: Option<SocketAddr>,
    socket: PathBuf,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<Result<(), AdminError>>>,
}

/// Binds the control socket and the HTTP address, then serves both on a thread of its own.
///
/// The caller holds the registry open, so no other gateway runs on this state directory and a
/// socket found there is a dead one's: it is replaced.
///
/// # Errors
/// [`AdminError`]; nothing runs then.
pub fn start(
    options: Options,
    registry: Arc<Registry>,
    gateway: Arc<dyn Gateway>,
    telemetry: Telemetry,
) -> Result<Admin, AdminError> {
    let http_error = |error| AdminError::Http { address: options.http, error };
    let http = door::listen(options.http).map_err(http_error)?;
    let address = http.local_addr().map_err(http_error)?;
    let mut api = None;
    if let Some((address, acceptor)) = options.api {
        let failed = |error| AdminError::Api { address, error };
        let listener = door::listen(address).map_err(failed)?;
        api = Some((listener.local_addr().map_err(failed)?, listener, acceptor));
    }
    let tokens = Tokens::open(&options.state)?;
    if let Some(said) = tokens.renew_seen() {
        tracing::warn!("{said}");
    }
    let keep = Keep {
        tokens,
        audit: Audit::open(&options.state, Some(options.audit_max_bytes))?,
        reload: options.reload,
        facts: options.facts,
        enrol: options.enrol,
    };
    let path = options.state.join(SOCKET);
    let control =
        bind_private(&path).map_err(|error| AdminError::Socket { path: path.clone(), error })?;

    forget_copy(&registry);
    let (stop, stopping) = watch::channel(false);
    let view = registry.view().map_err(AdminError::Registry)?;
    let plane = Arc::new(Plane::new(registry, view, gateway, telemetry, keep));
    plane.gateway.take_orders(Arc::new(Orders(Arc::downgrade(&plane))));
    let every = options.save_marks_every;
    let api_address = api.as_ref().map(|(address, ..)| *address);
    let api = api.map(|(_, listener, acceptor)| (listener, acceptor));
    let (ready, started) = std::sync::mpsc::channel();
    let thread = thread::Builder::new()
        .name("duet-admin".into())
        .spawn(move || serve(&plane, control, http, api, every, &stopping, &ready))
        .map_err(AdminError::Start)?;
    let mut admin =
        Admin { http: address, api: api_address, socket: path, stop, thread: Some(thread) };
    match started.recv() {
        Ok(()) => Ok(admin),
        Err(_) => Err(admin.end().err().unwrap_or(AdminError::Panicked)),
    }
}

impl Admin {
    /// The address that HTTP is served on.
    #[must_use]
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    /// The address that the API is served on over TLS.
    #[must_use]
    pub fn api(&self) -> Option<SocketAddr> {
        self.api
    }

    /// Ends the thread: requests under way get a moment to finish, then the last marks are saved.
    /// Call it after the shards have stopped, so that no mark moves later.
    ///
    /// # Errors
    /// [`AdminError::Marks`] if the last marks were not saved.
    pub fn shutdown(mut self) -> Result<(), AdminError> {
        self.end()
    }

    fn end(&mut self) -> Result<(), AdminError> {
        let Some(thread) = self.thread.take() else { return Ok(()) };
        // Fails only when the thread has ended, which the join finds out.
        let _ = self.stop.send(true);
        let ended = thread.join().unwrap_or(Err(AdminError::Panicked));
        // A socket that is already gone is what was wanted.
        let _ = fs::remove_file(&self.socket);
        ended
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        // Not reached after `shutdown`; on a panic's way out there is nobody to tell.
        let _ = self.end();
    }
}

/// Binds a socket that no other user could connect to at any moment: Linux makes its name with the mode that it has itself.
/// It takes the place of one that was left, and so no room on a full disk.
fn bind_private(path: &Path) -> io::Result<UnixListener> {
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(io::Error::other("something that is no socket is in its place"));
        }
        Ok(_) => fs::remove_file(path)?,
        Err(_) => {}
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    socket.bind(&SockAddr::unix(path)?)?;
    // The process's mask may have taken more than it should.
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(UnixListener::from(OwnedFd::from(socket)))
}

/// The thread's body.
fn serve(
    plane: &Arc<Plane>,
    control: UnixListener,
    http: TcpListener,
    api: Option<(TcpListener, door::Acceptor)>,
    every: Duration,
    stopping: &door::Stopping,
    ready: &std::sync::mpsc::Sender<()>,
) -> Result<(), AdminError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(DISK_THREADS)
        .build()
        .map_err(AdminError::Start)?;
    let saved = runtime.block_on(async {
        let control = tokio::net::UnixListener::from_std(control).map_err(AdminError::Start)?;
        let http = tokio::net::TcpListener::from_std(http).map_err(AdminError::Start)?;
        let (router, _) = api::router(plane);
        let over_tls = async {
            if let Some((listener, acceptor)) = api {
                let listener = tokio::net::TcpListener::from_std(listener);
                let listener = listener.map_err(AdminError::Start)?;
                door::tls(listener, acceptor, router.clone(), stopping.clone()).await;
            }
            Ok::<_, AdminError>(())
        };
        // The receiver waits for exactly this.
        let _ = ready.send(());
        let ((), (), served, saved, ()) = tokio::join!(
            door::socket(control, router.clone(), stopping.clone()),
            door::plain(http, api::plain(plane), stopping.clone()),
            over_tls,
            marks::keep(plane, every, stopping.clone()),
            access::mend_audit(plane, every, stopping.clone()),
        );
        saved.and(served)
    });
    runtime.shutdown_timeout(LEAVE_BEHIND);
    saved
}

#[cfg(test)]
mod tests;
