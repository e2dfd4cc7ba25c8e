//! The listeners and their connections: the control socket, the plain address of metrics and health, and the API over
//! TLS. Each connection is HTTP/1.1 and ends in one of two routers.
//!
//! A door holds a bounded number of connections (see [`super::guests`]). It knows who is at the other end, and tells
//! the router by [`Door`]; it decides nothing else.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::Request;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tower::Service as _;

use super::guests::{Guest, Guests, Seat};

/// Connections that one door serves at once.
pub(super) const PLACES: usize = 128;
/// How long a request's head, or a TLS handshake, may take over TCP.
const HEAD_LIMIT: Duration = Duration::from_secs(10);
/// The longest head.
const MAX_HEAD: usize = 32 * 1024;
/// How long requests under way may take when the control plane stops.
const GRACE: Duration = Duration::from_secs(2);
/// The pause after the system could not accept; it is out of descriptors, most likely.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Through which door a request came, and from whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Door {
    /// The control socket; the kernel names the user.
    Socket {
        /// The user.
        uid: u32,
    },
    /// TLS; a token names the caller.
    Tls {
        /// The other end.
        peer: SocketAddr,
    },
    /// The plain address of metrics and health.
    Plain,
}

/// How TLS connections are accepted; replaced when the settings are reloaded.
pub(super) type Acceptor = watch::Receiver<TlsAcceptor>;

/// Becomes true when the control plane stops.
pub(super) type Stopping = watch::Receiver<bool>;

/// Completes when the control plane is to stop.
pub(super) async fn stopped(mut stopping: Stopping) {
    // An error means that whoever would stop it is gone, which is a reason to stop as well.
    let _ = stopping.wait_for(|stop| *stop).await;
}

/// Serves the control socket until the control plane stops. Only the gateway's own user, and root, get in.
pub(super) async fn socket(listener: UnixListener, router: Router, stopping: Stopping) {
    let own = rustix::process::geteuid().as_raw();
    let meet = async || {
        let (stream, _) = listener.accept().await?;
        // One whose user cannot be told has gone.
        let uid = stream.peer_cred().ok().map(|peer| peer.uid());
        Ok(uid.filter(|uid| *uid == own || *uid == 0).map(|uid| ((stream, uid), None)))
    };
    let host = |(stream, uid), guest| {
        serve(stream, guest, Door::Socket { uid }, router.clone(), None, stopping.clone())
    };
    admit(meet, host, stopping.clone()).await;
}

/// Serves metrics and health until the control plane stops.
pub(super) async fn plain(listener: TcpListener, router: Router, stopping: Stopping) {
    let meet = async || {
        let (stream, peer) = listener.accept().await?;
        Ok(Some((stream, Some(peer.ip()))))
    };
    let host = |stream, guest| {
        serve(stream, guest, Door::Plain, router.clone(), Some(HEAD_LIMIT), stopping.clone())
    };
    admit(meet, host, stopping.clone()).await;
}

/// Serves the API over TLS until the control plane stops.
pub(super) async fn tls(
    listener: TcpListener,
    acceptor: Acceptor,
    router: Router,
    stopping: Stopping,
) {
    let meet = async || {
        let (stream, peer) = listener.accept().await?;
        Ok(Some(((stream, peer), Some(peer.ip()))))
    };
    let host = |(stream, peer), guest: Guest| {
        let (router, stopping) = (router.clone(), stopping.clone());
        let acceptor = acceptor.borrow().clone();
        async move {
            let seat = Arc::clone(guest.seat());
            let stream = tokio::select! {
                met = tokio::time::timeout(HEAD_LIMIT, acceptor.accept(stream)) => met,
                () = seat.asked_to_leave() => return,
                () = stopped(stopping.clone()) => return,
            };
            // A stranger that breaks off or dawdles is its own concern.
            if let Ok(Ok(stream)) = stream {
                serve(stream, guest, Door::Tls { peer }, router, Some(HEAD_LIMIT), stopping).await;
            }
        }
    };
    admit(meet, host, stopping.clone()).await;
}

/// Serves whomever `meet` lets in, from the address that it tells, and a place is found for, until the control plane stops; then waits for requests under
/// way.
async fn admit<S, H: Future<Output = ()> + Send + 'static>(
    meet: impl AsyncFn() -> io::Result<Option<(S, Option<IpAddr>)>>,
    host: impl Fn(S, Guest) -> H,
    stopping: Stopping,
) {
    let guests = Guests::new(PLACES);
    let accept = async {
        loop {
            match meet().await {
                Ok(Some((stream, from))) => {
                    if let Some(guest) = guests.enter(from) {
                        tokio::spawn(host(stream, guest));
                    }
                }
                Ok(None) => {}
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            }
        }
    };
    tokio::select! {
        () = accept => {}
        () = stopped(stopping) => {}
    }
    let gone = async {
        while guests.are_there() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    // Whoever still reads after that is cut off when the runtime ends.
    let _ = tokio::time::timeout(GRACE, gone).await;
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    guest: Guest,
    door: Door,
    router: Router,
    head_limit: Option<Duration>,
    stopping: Stopping,
) {
    let seat = Arc::clone(guest.seat());
    let service = {
        let seat = Arc::clone(&seat);
        service_fn(move |mut request: Request<Incoming>| {
            seat.serve(true);
            request.extensions_mut().insert(door.clone());
            request.extensions_mut().insert(Arc::clone(&seat));
            let (mut router, seat) = (router.clone(), Arc::clone(&seat));
            async move {
                let response = router.call(request).await?;
                seat.moves_on();
                Ok::<_, Infallible>(response.map(|body| Served { body, seat }))
            }
        })
    };
    // A client may end its direction before it has its answer.
    let connection = http1::Builder::new()
        .half_close(true)
        .timer(TokioTimer::new())
        .header_read_timeout(head_limit)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        // A client that breaks off is its own concern.
        _ = connection.as_mut() => return,
        () = seat.asked_to_leave() => return,
        () = stopped(stopping) => connection.as_mut().graceful_shutdown(),
    }
    let _ = tokio::time::timeout(GRACE, connection).await;
}

/// An answer's body; the connection's place is its own until the last of it was handed over.
struct Served {
    body: Body,
    seat: Arc<Seat>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.seat.serve(false);
    }
}

impl hyper::body::Body for Served {
    type Data = axum::body::Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let polled = std::pin::Pin::new(&mut self.body).poll_frame(context);
        if polled.is_ready() {
            self.seat.moves_on();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A listener for tokio.
pub(super) fn listen(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}
