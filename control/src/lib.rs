//! A client of the gateway's API over the control socket in its state directory.
//!
//! Owns one connection, its request under way and the time limit on each wait. It knows HTTP and no endpoint: callers
//! give it a path and read the body themselves. Every call blocks the calling thread, and none blocks it for longer
//! than the limit that the caller chose: a gateway that was stopped must not stop those who ask how it is.

use std::cell::Cell;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use zeroize::Zeroizing;

pub use hyper::{Method, StatusCode};

/// The control socket's name in the state directory.
pub const SOCKET: &str = "control.sock";

/// How long a connection may take to be made. The kernel completes it without the gateway unless its queue is full.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// The longest answer that [`Client::call`] reads into memory.
const MAX_ANSWER: usize = 16 << 20;

/// The longest line that [`Client::lines`] hands on.
const MAX_LINE: usize = 1 << 20;

/// The longest path that a socket may have: the kernel's `sun_path` (unix(7)) without the byte that ends it.
const PATH_MAX: usize = 107;

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum Error {
    /// No socket can have this path.
    #[error(
        "{}: this path of a state directory is {} bytes long, and at most {} leave room for that of the control socket \
         in it; choose a shorter one, or name the directory by a symbolic link",
        .0.display(), .0.as_os_str().len(), PATH_MAX - SOCKET.len() - 1
    )]
    PathTooLong(PathBuf),
    /// The socket is there and cannot be used, for example because it is another user's.
    #[error("{}: cannot ask the gateway here: {error}", path.display())]
    Connect {
        /// The control socket.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
    /// No runtime for the connection.
    #[error("cannot wait for the gateway: {0}")]
    Runtime(io::Error),
    /// The time limit passed.
    #[error(
        "{}: the gateway did not answer within {} s: it is stopped, or its disk is stuck; look at its process and its log",
        path.display(), limit.as_secs_f32()
    )]
    TimedOut {
        /// The control socket.
        path: PathBuf,
        /// The limit.
        limit: Duration,
    },
    /// The connection failed on the way.
    #[error("{}: the gateway broke off its answer: {error}", path.display())]
    Broken {
        /// The control socket.
        path: PathBuf,
        /// What happened.
        error: hyper::Error,
    },
    /// A change was asked, and the answer that would say whether it was made did not come.
    #[error(
        "{0}. It may have done what was asked, or do it yet: see how things stand before you ask again"
    )]
    Unknown(#[source] Box<Error>),
    /// Longer than a client takes.
    #[error("{}: the gateway's answer is longer than this program reads; is it of another version?", path.display())]
    TooLong {
        /// The control socket.
        path: PathBuf,
    },
    /// The path or the body makes no request.
    #[error("not a request: {0}")]
    Request(hyper::http::Error),
}

/// The control socket of a state directory.
///
/// # Errors
/// [`Error::PathTooLong`].
pub fn socket(state: &Path) -> Result<PathBuf, Error> {
    let path = state.join(SOCKET);
    match path.as_os_str().len() {
        0..=PATH_MAX => Ok(path),
        _ => Err(Error::PathTooLong(state.to_owned())),
    }
}

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: StatusCode,
    /// The body.
    pub body: Vec<u8>,
}

/// A connection to a gateway's API. It is made anew when the gateway has closed it between two requests.
pub struct Client {
    runtime: Runtime,
    path: PathBuf,
    peer: Option<u32>,
    sender: SendRequest<Full<Bytes>>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("path", &self.path).finish_non_exhaustive()
    }
}

/// A request's body, wiped when it was sent: it may hold registration keys.
struct Wiped(Zeroizing<Vec<u8>>);

impl AsRef<[u8]> for Wiped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Client {
    /// Connects to the gateway that runs on a state directory; `None` if none does.
    ///
    /// # Errors
    /// [`Error::Connect`], for example when the socket is another user's.
    pub fn connect(state: &Path) -> Result<Option<Self>, Error> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(Error::Runtime)?;
        let path = socket(state)?;
        match runtime.block_on(open(&path)) {
            Ok((sender, peer)) => Ok(Some(Self { runtime, path, peer, sender })),
            // Never started, or ended without taking its socket along.
            Err(Error::Connect { error, .. })
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// The gateway's process, if the kernel tells it.
    #[must_use]
    pub fn peer(&self) -> Option<u32> {
        self.peer
    }

    /// Sends a request and reads the whole answer, within `limit`.
    ///
    /// # Errors
    /// [`Error`], which is [`Error::Unknown`] where the gateway may have made the change all the same; an answer with a
    /// status of failure is an answer.
    pub fn call(
        &mut self,
        method: Method,
        target: &str,
        body: Vec<u8>,
        limit: Duration,
    ) -> Result<Answer, Error> {
        let changes = !method.is_safe();
        let request = request(method, target, body)?;
        let Self { runtime, path, sender, .. } = self;
        let given = Cell::new(false);
        let answer = runtime.block_on(within(path, limit, async {
            let response = send(path, sender, request, &given).await?;
            let status = response.status();
            let body = whole(path, response.into_body()).await?;
            Ok(Answer { status, body })
        }));
        // Once the request lies in the gateway's socket, or was read, nothing else says what became of it.
        answer.map_err(|error| match error {
            Error::TimedOut { .. } | Error::Broken { .. } if changes && given.get() => {
                Error::Unknown(Box::new(error))
            }
            error => error,
        })
    }

    /// Sends a request whose answer goes on until the caller leaves, and hands on its first line, within `limit`; leaves
    /// when `with` has returned. An answer that is no success is returned whole.
    ///
    /// # Errors
    /// [`Error`].
    pub fn hold<T>(
        mut self,
        method: Method,
        target: &str,
        limit: Duration,
        with: impl FnOnce(&[u8]) -> T,
    ) -> Result<Result<T, Answer>, Error> {
        let request = request(method, target, Vec::new())?;
        let Self { runtime, path, sender, .. } = &mut self;
        let (status, line, _body) = runtime.block_on(within(path, limit, async {
            let response = send(path, sender, request, &Cell::default()).await?;
            let status = response.status();
            let (mut body, mut line) = (response.into_body(), Vec::new());
            while !(status.is_success() && line.contains(&b'\n'))
                && let Some(data) = next(path, &mut body).await?
            {
                line.extend_from_slice(&data);
                if line.len() > MAX_LINE {
                    return Err(Error::TooLong { path: path.clone() });
                }
            }
            Ok((status, line, body))
        }))?;
        if !status.is_success() {
            return Ok(Err(Answer { status, body: line }));
        }
        Ok(Ok(with(line.split(|byte| *byte == b'\n').next().unwrap_or_default())))
    }

    /// Asks for a list and hands its lines on, one after the other. The limit is on each wait for the gateway, not on
    /// the whole: `each` may take as long as it likes. An answer that is no success is returned whole.
    ///
    /// # Errors
    /// [`Error`], or the first error of `each`.
    pub fn lines<E: From<Error>>(
        &mut self,
        target: &str,
        limit: Duration,
        mut each: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<Option<Answer>, E> {
        let request = request(Method::GET, target, Vec::new())?;
        let Self { runtime, path, sender, .. } = self;
        let response =
            runtime.block_on(within(path, limit, send(path, sender, request, &Cell::default())))?;
        let status = response.status();
        let mut body = response.into_body();
        if !status.is_success() {
            let body = runtime.block_on(within(path, limit, whole(path, body)))?;
            return Ok(Some(Answer { status, body }));
        }
        let mut rest: Vec<u8> = Vec::new();
        while let Some(data) = runtime.block_on(within(path, limit, next(path, &mut body)))? {
            rest.extend_from_slice(&data);
            let mut from = 0;
            while let Some(len) = rest[from..].iter().position(|byte| *byte == b'\n') {
                each(&rest[from..from + len])?;
                from += len + 1;
            }
            rest.drain(..from);
            if rest.len() > MAX_LINE {
                return Err(Error::TooLong { path: path.clone() }.into());
            }
        }
        if !rest.is_empty() {
            each(&rest)?;
        }
        Ok(None)
    }
}

/// A name as a segment of a path: whatever could mean something else there is escaped.
#[must_use]
pub fn segment(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

fn request(method: Method, target: &str, body: Vec<u8>) -> Result<Request<Full<Bytes>>, Error> {
    Request::builder()
        .method(method)
        .uri(target)
        .header(HOST, "duet")
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from_owner(Wiped(Zeroizing::new(body)))))
        .map_err(Error::Request)
}

async fn open(path: &Path) -> Result<(SendRequest<Full<Bytes>>, Option<u32>), Error> {
    let failed = |error| Error::Connect { path: path.to_owned(), error };
    let connecting = tokio::time::timeout(CONNECT_LIMIT, UnixStream::connect(path)).await;
    let stream = connecting
        .map_err(|_| Error::TimedOut { path: path.to_owned(), limit: CONNECT_LIMIT })?
        .map_err(failed)?;
    let peer = stream.peer_cred().ok().and_then(|peer| peer.pid());
    let peer = peer.and_then(|pid| u32::try_from(pid).ok());
    let (sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| Error::Broken { path: path.to_owned(), error })?;
    // Its errors reach whoever waits for the answer.
    tokio::spawn(connection);
    Ok((sender, peer))
}

/// Sends a request. If the gateway has closed the idle connection, which it may at any time, a new one is made; a
/// request that changes something and was begun is never sent twice. `given` is set while the gateway may have it.
async fn send(
    path: &Path,
    sender: &mut SendRequest<Full<Bytes>>,
    request: Request<Full<Bytes>>,
    given: &Cell<bool>,
) -> Result<Response<Incoming>, Error> {
    if sender.ready().await.is_err() {
        (*sender, _) = open(path).await?;
    }
    let question = request.method().is_safe().then(|| request.clone());
    given.set(true);
    let request = match sender.try_send_request(request).await {
        Ok(response) => return Ok(response),
        Err(mut failed) => match failed.take_message().or(question) {
            Some(request) => {
                given.set(false);
                request
            }
            None => {
                let error = failed.into_error();
                return Err(Error::Broken { path: path.to_owned(), error });
            }
        },
    };
    (*sender, _) = open(path).await?;
    given.set(true);
    let sent = sender.send_request(request).await;
    sent.map_err(|error| Error::Broken { path: path.to_owned(), error })
}

async fn whole(path: &Path, mut body: Incoming) -> Result<Vec<u8>, Error> {
    let mut all = Vec::new();
    while let Some(data) = next(path, &mut body).await? {
        all.extend_from_slice(&data);
        if all.len() > MAX_ANSWER {
            return Err(Error::TooLong { path: path.to_owned() });
        }
    }
    Ok(all)
}

async fn next(path: &Path, body: &mut Incoming) -> Result<Option<Bytes>, Error> {
    loop {
        match body.frame().await {
            None => return Ok(None),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => return Ok(Some(data)),
                // Trailers say nothing here.
                Err(_) => continue,
            },
            Some(Err(error)) => return Err(Error::Broken { path: path.to_owned(), error }),
        }
    }
}

async fn within<T>(
    path: &Path,
    limit: Duration,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let done = tokio::time::timeout(limit, work).await;
    done.unwrap_or_else(|_| Err(Error::TimedOut { path: path.to_owned(), limit }))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;
    use std::thread;
    use std::time::Instant;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    /// Reads a request's head.
    fn head(stream: &mut impl Read) -> String {
        let mut text = Vec::new();
        while !text.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            if stream.read(&mut byte).unwrap() == 0 {
                break;
            }
            text.push(byte[0]);
        }
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn a_gateway_that_does_not_answer_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Client::connect(dir.path()).unwrap().is_none());
        let listener = UnixListener::bind(dir.path().join(SOCKET)).unwrap();
        let mut client = Client::connect(dir.path()).unwrap().unwrap();
        let began = Instant::now();
        let limit = Duration::from_millis(100);
        let silent = client.call(Method::GET, "/v1/status", Vec::new(), limit);
        assert!(matches!(silent, Err(Error::TimedOut { .. })), "{silent:?}");
        // The request lies in the socket, and a gateway that goes on reads it.
        let mut client = Client::connect(dir.path()).unwrap().unwrap();
        let change = client.call(Method::DELETE, "/v1/devices/pump", Vec::new(), limit);
        assert!(matches!(&change, Err(Error::Unknown(_))), "{change:?}");
        let said = change.unwrap_err().to_string();
        assert!(said.contains("did not answer") && said.contains("before you ask again"), "{said}");
        assert!(began.elapsed() < PATIENCE);
        drop(listener);
        assert!(Client::connect(dir.path()).unwrap().is_none());
    }

    #[test]
    fn a_path_that_no_socket_can_have_is_refused_and_the_longest_that_one_can_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let name = "s".repeat(PATH_MAX - SOCKET.len() - 2 - dir.path().as_os_str().len());
        let longest = dir.path().join(&name);
        std::fs::create_dir(&longest).unwrap();
        let listener = UnixListener::bind(longest.join(SOCKET)).unwrap();
        assert!(Client::connect(&longest).unwrap().is_some());
        drop(listener);
        let longer = dir.path().join(name + "s");
        let refused = Client::connect(&longer);
        assert!(matches!(refused, Err(Error::PathTooLong(path)) if path == longer));
    }

    #[test]
    fn a_connection_that_was_closed_meanwhile_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join(SOCKET)).unwrap();
        let gateway = thread::spawn(move || {
            let mut heads = Vec::new();
            for _ in 0..2 {
                let (mut stream, _) = listener.accept().unwrap();
                heads.push(head(&mut stream));
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").unwrap();
            }
            heads
        });
        let mut client = Client::connect(dir.path()).unwrap().unwrap();
        for _ in 0..2 {
            let answer = client.call(Method::GET, "/v1/status", Vec::new(), PATIENCE).unwrap();
            assert_eq!((answer.status, &answer.body[..]), (StatusCode::OK, &b"ok"[..]));
            thread::sleep(Duration::from_millis(50));
        }
        assert!(gateway.join().unwrap().iter().all(|head| head.starts_with("GET /v1/status ")));
    }

    #[test]
    fn lines_come_whole_however_they_were_cut() {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join(SOCKET)).unwrap();
        let gateway = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            head(&mut stream);
            stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
            for part in ["a\nb", "", "c\n", "d"] {
                if !part.is_empty() {
                    write!(stream, "{:x}\r\n{part}\r\n", part.len()).unwrap();
                }
            }
            stream.write_all(b"0\r\n\r\n").unwrap();
        });
        let mut client = Client::connect(dir.path()).unwrap().unwrap();
        let mut lines = Vec::new();
        let refused = client.lines("/v1/devices", PATIENCE, |line| {
            lines.push(String::from_utf8(line.to_vec()).unwrap());
            Ok::<_, Error>(())
        });
        assert!(refused.unwrap().is_none());
        assert_eq!(lines, ["a", "bc", "d"]);
        gateway.join().unwrap();
    }

    #[test]
    fn a_name_is_one_segment() {
        assert_eq!(segment("boiler-1"), "boiler-1");
        assert_eq!(segment("../a b?%"), "..%2Fa%20b%3F%25");
    }
}
