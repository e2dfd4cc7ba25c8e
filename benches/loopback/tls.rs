//! The peer: tokio and rustls with aws-lc-rs, one thread, one task a connection.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::{ClientConfig, ClientConnection, RootCertStore, SupportedProtocolVersion};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tokio::io::AsyncReadExt as _;

/// Readings a second: what the peer can take on one core.
const RATE: u32 = 100_000;

fn provider(version: &SupportedProtocolVersion) -> Arc<rustls::crypto::CryptoProvider> {
    use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};
    let mut provider = default_provider();
    provider.kx_groups = vec![kx_group::SECP256R1];
    provider.cipher_suites = if version == &rustls::version::TLS13 {
        vec![cipher_suite::TLS13_AES_128_GCM_SHA256]
    } else {
        vec![cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256]
    };
    Arc::new(provider)
}

fn key(bytes: Vec<u8>) -> PrivateKeyDer<'static> {
    PrivateKeyDer::from(PrivatePkcs8KeyDer::from(bytes))
}

fn roots(certificate: CertificateDer<'static>) -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(certificate).unwrap();
    Arc::new(roots)
}

/// The server's process.
pub(crate) struct Peer {
    child: Child,
    address: SocketAddr,
    client: Arc<ClientConfig>,
}

/// A client's end of a connection.
pub(crate) struct Connection {
    tls: ClientConnection,
    stream: TcpStream,
}

impl Peer {
    /// Makes certificates, and starts the server with them.
    pub(crate) fn start(dir: &Path, version: &'static SupportedProtocolVersion) -> Self {
        let mut made = Vec::new();
        for name in ["gateway", "device"] {
            let issued = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
            let (certificate, key) =
                (issued.cert.der().to_vec(), issued.signing_key.serialize_der());
            fs::write(dir.join(format!("{name}.der")), &certificate).unwrap();
            fs::write(dir.join(format!("{name}.key")), &key).unwrap();
            made.push((CertificateDer::from(certificate), key));
        }
        let version_name = if version == &rustls::version::TLS13 { "1.3" } else { "1.2" };
        fs::write(dir.join("version"), version_name).unwrap();
        let mut child = super::on_the_servers_core(|| {
            Command::new(std::env::current_exe().unwrap())
                .env("DUET_BENCH_PEER", dir)
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        });
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let (device, device_key) = made.pop().unwrap();
        let (gateway, _) = made.pop().unwrap();
        let mut client = ClientConfig::builder_with_provider(provider(version))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots(gateway))
            .with_client_auth_cert(vec![device], key(device_key))
            .unwrap();
        client.resumption = rustls::client::Resumption::disabled();
        Self { child, address: line.trim().parse().unwrap(), client: Arc::new(client) }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Connects this many at once. Every flight of all goes out before the next one is awaited, so
    /// that the server always has work.
    fn some(&self, count: usize) -> Vec<Connection> {
        let mut connections: Vec<_> = (0..count)
            .map(|_| {
                let stream = TcpStream::connect(self.address).unwrap();
                stream.set_nodelay(true).unwrap();
                let name = ServerName::try_from("gateway").unwrap();
                let tls = ClientConnection::new(Arc::clone(&self.client), name).unwrap();
                let mut connection = Connection { tls, stream };
                connection.flush();
                connection
            })
            .collect();
        while connections.iter().any(|connection| connection.tls.is_handshaking()) {
            for connection in connections.iter_mut().filter(|one| one.tls.is_handshaking()) {
                connection.tls.read_tls(&mut connection.stream).unwrap();
                connection.tls.process_new_packets().unwrap();
                connection.flush();
            }
        }
        for connection in &mut connections {
            connection.write(&[0; 8]);
        }
        connections
    }

    /// Full handshakes with the first record, and the connections' ends.
    pub(crate) fn handshakes(&self, count: usize, window: usize) {
        let mut left = count;
        while left > 0 {
            let now = left.min(window);
            drop(self.some(now));
            left -= now;
        }
    }

    /// Connections that stay.
    pub(crate) fn connect(&self, count: usize) -> Vec<Connection> {
        let mut connections = Vec::with_capacity(count);
        while connections.len() < count {
            connections.extend(self.some(64.min(count - connections.len())));
        }
        connections
    }

    /// One reading a record, one record a write, each connection in turn.
    pub(crate) fn readings(&self, connections: &mut [Connection], count: usize, size: usize) {
        let payload = vec![0x42; size];
        let began = Instant::now();
        for number in 0..count {
            let due = Duration::from_secs(1) * u32::try_from(number).unwrap() / RATE;
            while began.elapsed() < due {
                std::hint::spin_loop();
            }
            let place = number % connections.len();
            connections[place].write(&payload);
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It has ended, or is ended here.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Connection {
    fn flush(&mut self) {
        while self.tls.wants_write() {
            self.tls.write_tls(&mut self.stream).unwrap();
        }
    }

    fn write(&mut self, bytes: &[u8]) {
        self.tls.writer().write_all(bytes).unwrap();
        self.flush();
    }
}

/// The server, in its own process: says where it listens, and serves until it is killed.
pub(crate) fn serve(dir: &Path) {
    let der = |name: &str| {
        let mut bytes = Vec::new();
        fs::File::open(dir.join(name)).unwrap().read_to_end(&mut bytes).unwrap();
        bytes
    };
    rlimit::increase_nofile_limit(u64::MAX).unwrap();
    let version = match der("version").as_slice() {
        b"1.3" => &rustls::version::TLS13,
        _ => &rustls::version::TLS12,
    };
    let provider = provider(version);
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
        roots(CertificateDer::from(der("device.der"))),
        Arc::clone(&provider),
    );
    let mut server = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(vec![CertificateDer::from(der("gateway.der"))], key(der("gateway.key")))
        .unwrap();
    server.send_tls13_tickets = 0;
    server.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        println!("{}", listener.local_addr().unwrap());
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let mut buffer = [0; 1_024];
                while stream.read(&mut buffer).await.is_ok_and(|len| len > 0) {
                    std::hint::black_box(&buffer);
                }
            });
        }
    });
}
