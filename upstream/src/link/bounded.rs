//! A connection to a PostgreSQL server that may say no more than it is asked for. The client makes room for as much as a
//! message says that it has, up to two gigabytes, and keeps whatever comes until somebody looks. Of a type that it does not
//! know it asks what it is made of, and so on, each time a little deeper in its stack: a server whose types never
//! end would overflow that, and with it end the gateway.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};

/// The most bytes that a server may answer to one question, and the most that one of its messages may have.
const ANSWER_MAX: usize = 1 << 20;
/// How often it may be done with one of the client's questions meanwhile: several times as often as a sound one is.
const ROUNDS_MAX: usize = 128;
/// By this message it says so.
const READY: u8 = b'Z';
/// A message's kind and length.
const HEAD: usize = 5;

/// How much the server may still say.
#[derive(Clone)]
pub(crate) struct Allowance(Rc<Left>);

struct Left {
    bytes: Cell<usize>,
    rounds: Cell<usize>,
}

impl Allowance {
    pub(crate) fn new() -> Self {
        let left = Left { bytes: Cell::new(ANSWER_MAX), rounds: Cell::new(ROUNDS_MAX) };
        Self(Rc::new(left))
    }

    /// It is asked something.
    pub(crate) fn renew(&self) {
        self.0.bytes.set(ANSWER_MAX);
        self.0.rounds.set(ROUNDS_MAX);
    }

    pub(crate) fn bind<S>(&self, stream: S) -> Bounded<S> {
        Bounded { stream, allowance: self.clone(), head: [0; HEAD], have: 0, body: 0 }
    }
}

/// The connection, in clear.
pub(crate) struct Bounded<S> {
    stream: S,
    allowance: Allowance,
    /// As much of the next message's head as came.
    head: [u8; HEAD],
    have: usize,
    /// How much of the message before it is still to come.
    body: usize,
}

impl<S> Bounded<S> {
    /// Looks at the heads of the messages in what came.
    fn follow(&mut self, mut came: &[u8]) -> io::Result<()> {
        while !came.is_empty() {
            let skipped = self.body.min(came.len());
            self.body -= skipped;
            came = &came[skipped..];
            let taken = (HEAD - self.have).min(came.len());
            self.head[self.have..self.have + taken].copy_from_slice(&came[..taken]);
            self.have += taken;
            came = &came[taken..];
            if self.have == HEAD {
                let [kind, a, b, c, d] = self.head;
                // The length counts itself.
                let length = u32::from_be_bytes([a, b, c, d]).saturating_sub(4);
                self.body = usize::try_from(length).unwrap_or(usize::MAX);
                self.have = 0;
                if self.body > ANSWER_MAX {
                    return Err(too_much("announces a message of"));
                }
                if kind == READY {
                    let rounds = &self.allowance.0.rounds;
                    rounds.set(rounds.get().checked_sub(1).ok_or_else(|| {
                        io::Error::other(
                            "the server leads on from one type to the next without end",
                        )
                    })?);
                }
            }
        }
        Ok(())
    }
}

fn too_much(what: &str) -> io::Error {
    io::Error::other(format!("the server {what} more than {ANSWER_MAX} bytes"))
}

impl<S: AsyncRead + Unpin> AsyncRead for Bounded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let left = self.allowance.0.bytes.get();
        if left == 0 {
            return Poll::Ready(Err(too_much("answers with")));
        }
        let most = into.remaining().min(left);
        let mut part = ReadBuf::new(into.initialize_unfilled_to(most));
        ready!(Pin::new(&mut self.stream).poll_read(context, &mut part))?;
        let came = part.filled().len();
        let checked = self.follow(part.filled());
        into.advance(came);
        self.allowance.0.bytes.set(left - came);
        Poll::Ready(checked)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Bounded<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl<S: TlsStream + Unpin> TlsStream for Bounded<S> {
    fn channel_binding(&self) -> ChannelBinding {
        self.stream.channel_binding()
    }
}

/// Bounds what comes out of TLS.
pub(crate) struct InTls<T> {
    pub(crate) tls: T,
    pub(crate) allowance: Allowance,
}

impl<S, T> TlsConnect<S> for InTls<T>
where
    T: TlsConnect<S>,
    T::Future: 'static,
{
    type Stream = Bounded<T::Stream>;
    type Error = T::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Stream, T::Error>>>>;

    fn connect(self, stream: S) -> Self::Future {
        let Self { tls, allowance } = self;
        let connecting = tls.connect(stream);
        Box::pin(async move { Ok(allowance.bind(connecting.await?)) })
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    fn message(kind: u8, body: usize) -> Vec<u8> {
        let length = u32::try_from(body + 4).unwrap();
        [&[kind], &length.to_be_bytes()[..], &vec![0; body]].concat()
    }

    /// The bytes come in pieces of this length.
    async fn read(allowance: &Allowance, bytes: &[u8], piece: usize) -> io::Result<usize> {
        let mut stream = allowance.bind(bytes);
        let (mut out, mut whole) = (vec![0; piece], 0);
        loop {
            match stream.read(&mut out).await? {
                0 => return Ok(whole),
                count => whole += count,
            }
        }
    }

    #[tokio::test]
    async fn a_message_that_says_it_is_huge_is_never_made_room_for() {
        let small = [message(b'S', 0), message(b'K', 8)].concat();
        for length in [u32::MAX, 0x7fff_ffff, 1 + 4 + (1 << 20)] {
            let huge = [&small[..], b"N", &length.to_be_bytes()].concat();
            for piece in 1..huge.len() {
                let mut stream = Allowance::new().bind(&huge[..]);
                let (mut out, mut seen) = (vec![0; piece], 0);
                let failed = loop {
                    match stream.read(&mut out).await {
                        Ok(count) => seen += count,
                        Err(error) => break error,
                    }
                };
                assert!(failed.to_string().contains("announces"), "{failed}");
                assert!(seen < huge.len(), "its length is not whole yet");
            }
        }
        for piece in 1..40 {
            let read = read(&Allowance::new(), &small, piece).await;
            assert_eq!(read.unwrap(), small.len());
        }
    }

    #[tokio::test]
    async fn a_server_says_no_more_than_it_is_asked_for() {
        let notice = message(b'N', 100);
        let many = notice.repeat(ANSWER_MAX / notice.len());
        let allowance = Allowance::new();
        assert_eq!(read(&allowance, &many, 4_096).await.unwrap(), many.len());
        let failed = read(&allowance, &many, 4_096).await.unwrap_err();
        assert!(failed.to_string().contains("answers with more than 1048576 bytes"), "{failed}");
        allowance.renew();
        assert_eq!(read(&allowance, &many, 4_096).await.unwrap(), many.len());
    }
}
