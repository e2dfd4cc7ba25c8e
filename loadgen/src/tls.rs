//! The peer that everybody knows: TLS with mutual authentication, by rustls and aws-lc-rs, doing
//! the same job over real sockets.
//!
//! One suite for both sides, as close to ours as TLS has: ECDHE on P-256, ECDSA P-256 with
//! SHA-256, AES-128-GCM. No tickets and no resumption: every handshake is a full one.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};

use crate::compare::Job;
use crate::exchange::{Seen, Watched, segments, thread_cpu};

/// Which TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// 1.2, full handshake: four flights.
    V12,
    /// 1.3, full handshake: three flights.
    V13,
}

/// Configurations of both sides, with a CA of their own.
pub struct Parties {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

struct Issued {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Parties {
    /// Makes a CA, issues one certificate to each side, and configures both.
    ///
    /// # Errors
    /// When the crypto library refuses.
    pub fn new(version: Version) -> Result<Self> {
        let ca_key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let mut ca = rcgen::CertificateParams::new(Vec::new())?;
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
        let ca_certificate = ca.self_signed(&ca_key)?;
        let issuer = rcgen::Issuer::new(ca, ca_key);
        let issue = |name: &str| -> Result<Issued> {
            let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
            let leaf = rcgen::CertificateParams::new(vec![name.to_owned()])?;
            let leaf = leaf.signed_by(&key, &issuer)?;
            let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
            Ok(Issued { chain: vec![leaf.der().clone()], key })
        };
        let (gateway, device) = (issue("gateway")?, issue("device")?);
        let mut roots = RootCertStore::empty();
        roots.add(ca_certificate.der().clone())?;
        let roots = Arc::new(roots);

        let mut provider = default_provider();
        provider.kx_groups = vec![kx_group::SECP256R1];
        let (suite, versions) = match version {
            Version::V12 => {
                (cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, &[&rustls::version::TLS12])
            }
            Version::V13 => (cipher_suite::TLS13_AES_128_GCM_SHA256, &[&rustls::version::TLS13]),
        };
        provider.cipher_suites = vec![suite];
        let provider = Arc::new(provider);
        let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
            Arc::clone(&roots),
            Arc::clone(&provider),
        )
        .build()?;
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(gateway.chain, gateway.key)?;
        server.send_tls13_tickets = 0;
        server.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)?
            .with_root_certificates(roots)
            .with_client_auth_cert(device.chain, device.key)?;
        client.resumption = rustls::client::Resumption::disabled();
        Ok(Self { client: Arc::new(client), server: Arc::new(server) })
    }

    /// The device's job: connect, prove, send one reading, see it confirmed.
    ///
    /// # Errors
    /// When it cannot be done.
    pub fn job(&self, to: SocketAddr, reading: &[u8]) -> Result<Job> {
        let (cpu, began) = (thread_cpu(), Instant::now());
        let stream = TcpStream::connect(to).context("cannot connect")?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let mut wire = Watched { stream, seen: Seen::default() };
        let name = ServerName::try_from("gateway")?;
        let mut tls = ClientConnection::new(Arc::clone(&self.client), name)?;
        while tls.is_handshaking() || tls.wants_write() {
            tls.complete_io(&mut wire)?;
        }
        let handshake = wire.seen;
        let mut tls = rustls::Stream::new(&mut tls, &mut wire);
        tls.write_all(&framed(reading)?)?;
        ensure!(read_frame(&mut tls)? == b"confirmed", "the reading was not confirmed");
        Ok(Job {
            first_confirmed: began.elapsed(),
            device_cpu: thread_cpu().saturating_sub(cpu),
            handshake,
            all: wire.seen,
            packets: segments(&wire.stream),
        })
    }
}

fn framed(text: &[u8]) -> Result<Vec<u8>> {
    let len = u16::try_from(text.len()).context("too long for a frame")?;
    Ok([&len.to_be_bytes(), text].concat())
}

fn read_frame(from: &mut impl Read) -> Result<Vec<u8>> {
    let mut len = [0; 2];
    from.read_exact(&mut len)?;
    let mut text = vec![0; usize::from(u16::from_be_bytes(len))];
    from.read_exact(&mut text)?;
    Ok(text)
}

/// A TLS server that takes readings and confirms them. It stores nothing: its processor time is
/// the handshake's and the record's alone.
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    stop: Arc<AtomicBool>,
    cpu_ns: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens on a free port of loopback; a thread for each connection.
    ///
    /// # Errors
    /// When there is no socket or no thread.
    pub fn start(parties: &Parties) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let (stop, cpu_ns) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let config = Arc::clone(&parties.server);
        let (flag, spent) = (Arc::clone(&stop), Arc::clone(&cpu_ns));
        let thread = std::thread::Builder::new().name("tls".into()).spawn(move || {
            let mut connections = Vec::new();
            while let Ok((stream, _)) = listener.accept() {
                if flag.load(Ordering::Relaxed) {
                    break;
                }
                let (config, spent) = (Arc::clone(&config), Arc::clone(&spent));
                connections.push(std::thread::spawn(move || {
                    // A client that leaves early is not the server's fault.
                    let _ = serve(stream, config);
                    let cpu = u64::try_from(thread_cpu().as_nanos()).unwrap_or(u64::MAX);
                    spent.fetch_add(cpu, Ordering::Relaxed);
                }));
            }
            for connection in connections {
                // A panic there is shown by its own message.
                let _ = connection.join();
            }
        })?;
        Ok(Self { address, stop, cpu_ns, thread: Some(thread) })
    }

    /// The processor time of all connections that have ended.
    #[must_use]
    pub fn cpu(&self) -> Duration {
        Duration::from_nanos(self.cpu_ns.load(Ordering::Relaxed))
    }

    /// Begins to count anew.
    pub fn forget_cpu(&self) {
        self.cpu_ns.store(0, Ordering::Relaxed);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the accept; if nothing can connect, the thread has ended already.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(mut stream: TcpStream, config: Arc<ServerConfig>) -> Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut tls = ServerConnection::new(config)?;
    let mut tls = rustls::Stream::new(&mut tls, &mut stream);
    let reading = read_frame(&mut tls)?;
    ensure!(!reading.is_empty(), "an empty reading");
    tls.write_all(&framed(b"confirmed")?)?;
    // The client closes; until then the connection stays.
    let _ = tls.read(&mut [0; 1]);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tls_1_2_takes_four_flights_and_tls_1_3_three() {
        for (version, flights, all) in [(Version::V12, 4, 6), (Version::V13, 3, 4)] {
            let parties = Parties::new(version).unwrap();
            let server = Server::start(&parties).unwrap();
            let job = parties.job(server.address, &[0x42; 64]).unwrap();
            assert_eq!(job.handshake.flights, flights, "{version:?}");
            assert_eq!(job.all.flights, all, "{version:?}");
            let packets = job.packets.unwrap();
            assert!(packets.up >= 4 && packets.down >= 3);
        }
    }

    #[test]
    fn a_client_of_another_ca_is_refused() {
        let (ours, theirs) =
            (Parties::new(Version::V13).unwrap(), Parties::new(Version::V13).unwrap());
        let server = Server::start(&ours).unwrap();
        assert!(theirs.job(server.address, b"x").is_err());
        assert!(ours.job(server.address, b"x").is_ok(), "and the server goes on");
    }
}
