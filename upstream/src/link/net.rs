//! Connections: TCP, and TLS on top by rustls with aws-lc-rs. Secrets are read from their files
//! for each connection, so that a new one counts without a restart.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::ClientConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use zeroize::Zeroizing;

use super::{Cause, Failure};
use crate::secret_file;
use crate::settings::{Address, Tls};

/// The most that a file with a secret holds.
const SECRET_MAX: u64 = 64 * 1024;
/// The most that is read of a connection in one turn.
const TURN_MAX: usize = 64 * 1024;

/// A stream of bytes, protected or not.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Stream for T {}

/// The length of a file with a secret, which only its owner may use.
pub(crate) fn private(path: &Path) -> Result<u64, Failure> {
    let failed = |why: &dyn std::fmt::Display| {
        Failure::new(Cause::Credentials, format!("{}: {why}", path.display()))
    };
    let found = std::fs::metadata(path).map_err(|error| failed(&error))?;
    if !found.is_file() {
        return Err(failed(&"not a file"));
    }
    if let Some(mode) = secret_file::mode_for_others(path).map_err(|error| failed(&error))? {
        let why =
            format_args!("mode {mode:04o} lets others use the secret; {}", secret_file::REMEDY);
        return Err(failed(&why));
    }
    Ok(found.len())
}

/// A secret from its file, without the line's end.
pub(crate) fn secret(path: &Path) -> Result<Zeroizing<String>, Failure> {
    let failed = |error: &dyn std::fmt::Display| {
        Failure::new(Cause::Credentials, format!("{}: {error}", path.display()))
    };
    if private(path)? > SECRET_MAX {
        return Err(failed(&"longer than any secret"));
    }
    let text = std::fs::read_to_string(path).map(Zeroizing::new).map_err(|error| failed(&error))?;
    let trimmed = Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned());
    if trimmed.is_empty() || trimmed.contains(['\r', '\n']) {
        return Err(failed(&"must hold one line"));
    }
    Ok(trimmed)
}

/// A connection whose other side may say as much as it likes: after so much of it other upstreams have their turns, which
/// share this thread.
pub(crate) struct Fair<S> {
    stream: S,
    /// What was read since they had.
    read: usize,
}

impl<S: AsyncRead + Unpin> AsyncRead for Fair<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.read >= TURN_MAX {
            self.read = 0;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let most = into.remaining().min(TURN_MAX - self.read);
        let mut part = ReadBuf::new(into.initialize_unfilled_to(most));
        let polled = Pin::new(&mut self.stream).poll_read(context, &mut part);
        let came = part.filled().len();
        into.advance(came);
        self.read = if polled.is_ready() { self.read + came } else { 0 };
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Fair<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Opens the connection, without protection.
pub(crate) async fn tcp(address: &Address) -> Result<Fair<TcpStream>, Failure> {
    let at = address.authority();
    let stream = TcpStream::connect((address.host.as_str(), address.port))
        .await
        .map_err(|error| Failure::new(Cause::Connection, format!("{at}: {error}")))?;
    stream
        .set_nodelay(true)
        .map_err(|error| Failure::new(Cause::Connection, format!("{at}: {error}")))?;
    Ok(Fair { stream, read: 0 })
}

/// Opens the connection, protected where the address says so.
pub(crate) async fn connect(address: &Address, tls: &Tls) -> Result<Box<dyn Stream>, Failure> {
    let (stream, at) = (tcp(address).await?, address.authority());
    if !address.secure {
        return Ok(Box::new(stream));
    }
    let config = client_config(tls)?;
    let name = ServerName::try_from(address.host.clone())
        .map_err(|_| Failure::new(Cause::Setting, format!("{at}: not a host's name")))?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = connector.connect(name, stream).await.map_err(|error| {
        let cause = if error.get_ref().is_some() { Cause::Tls } else { Cause::Connection };
        Failure::new(cause, format!("{at}: TLS: {error}"))
    })?;
    Ok(Box::new(stream))
}

/// What we believe and who we are.
pub(crate) fn client_config(tls: &Tls) -> Result<ClientConfig, Failure> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let failed = |text: String| Failure::new(Cause::Tls, text);
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(error.to_string()))?;
    let mut roots = rustls::RootCertStore::empty();
    match &tls.ca {
        Some(path) => {
            for certificate in certificates(path)? {
                roots
                    .add(certificate)
                    .map_err(|error| failed(format!("{}: {error}", path.display())))?;
            }
        }
        None => {
            let found = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(found.certs);
            if roots.is_empty() {
                return Err(failed(
                    "this system knows no authorities: install ca-certificates, or set ca".into(),
                ));
            }
        }
    }
    let builder = builder.with_root_certificates(roots);
    match &tls.identity {
        None => Ok(builder.with_no_client_auth()),
        Some((certificate, key)) => {
            let chain = certificates(certificate)?;
            private(key)?;
            let secret = PrivateKeyDer::from_pem_file(key)
                .map_err(|error| failed(format!("{}: {error}", key.display())))?;
            builder.with_client_auth_cert(chain, secret).map_err(|error| {
                failed(format!("{} with {}: {error}", certificate.display(), key.display()))
            })
        }
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let failed = |error: &dyn std::fmt::Display| {
        Failure::new(Cause::Tls, format!("{}: {error}", path.display()))
    };
    let found = CertificateDer::pem_file_iter(path)
        .map_err(|error| failed(&error))?
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| failed(&error))?;
    if found.is_empty() {
        return Err(failed(&"no certificate in it (PEM is expected)"));
    }
    Ok(found)
}

/// A connection that ended while it was used.
pub(crate) fn broken(at: &str, error: &io::Error) -> Failure {
    Failure::new(Cause::Connection, format!("{at}: {error}"))
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};

    use super::*;

    /// What a client is told of a server with such a certificate, which the client believes.
    fn told(is_ca: IsCa) -> Result<(), Failure> {
        let (key, mut params) = (
            KeyPair::generate().unwrap(),
            CertificateParams::new(vec!["localhost".to_owned()]).unwrap(),
        );
        params.is_ca = is_ca;
        let certificate = params.self_signed(&key).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let ca = dir.path().join("ca.pem");
        std::fs::write(&ca, certificate.pem()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let secret = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], secret)
            .unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut connection = rustls::ServerConnection::new(Arc::new(config)).unwrap();
            while connection.is_handshaking() && connection.complete_io(&mut stream).is_ok() {}
        });
        let (host, path) = ("localhost".to_owned(), "/".to_owned());
        let address = Address { secure: true, host, port, path };
        let tls = Tls { ca: Some(ca), identity: None };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let connected = runtime.block_on(connect(&address, &tls)).map(drop);
        server.join().unwrap();
        connected
    }

    /// A library may read on for as long as there is something, as hyper does in the length of a chunk.
    #[tokio::test(flavor = "current_thread")]
    async fn whoever_reads_without_end_leaves_others_their_turns() {
        use tokio::io::AsyncReadExt as _;
        const TURNS: u64 = 100;
        let others = std::rc::Rc::new(std::cell::Cell::new(0));
        let turns = std::rc::Rc::clone(&others);
        let local = tokio::task::LocalSet::new();
        local.spawn_local(async move {
            loop {
                turns.set(turns.get() + 1);
                tokio::task::yield_now().await;
            }
        });
        let read = local.run_until(async {
            let most = TURNS * u64::try_from(TURN_MAX).unwrap();
            let mut stream = Fair { stream: tokio::io::repeat(b'0').take(most), read: 0 };
            let (mut piece, mut whole) = (vec![0; 3 * TURN_MAX], 0);
            loop {
                let read = tokio::task::unconstrained(stream.read(&mut piece)).await.unwrap();
                assert!(piece[..read].iter().all(|byte| *byte == b'0'));
                whole += u64::try_from(read).unwrap();
                if read == 0 {
                    break whole;
                }
            }
        });
        assert_eq!(read.await, TURNS * u64::try_from(TURN_MAX).unwrap());
        assert!(others.get() >= TURNS, "{} turns", others.get());
    }

    #[test]
    fn a_certificate_of_a_ca_in_a_servers_place_is_named_as_that() {
        told(IsCa::ExplicitNoCa).unwrap();
        let refused = told(IsCa::Ca(BasicConstraints::Unconstrained)).unwrap_err();
        assert!(refused.text.contains("with CA:FALSE"), "{}", refused.text);
    }
}
