//! The peer that everybody knows: TLS with mutual authentication, by rustls and aws-lc-rs, doing the
//! same job over real sockets.
//!
//! One suite for both sides, as close to ours as TLS has: ECDHE on P-256, ECDSA P-256 with
//! SHA-256, AES-128-GCM. Only the resuming variants have tickets.

use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{Ticketer, cipher_suite, default_provider, kx_group};
use rustls::server::{
    AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage, ServerSessionMemoryCache,
    WebPkiClientVerifier,
};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore, ServerConfig};
use rustls_pki_types::ServerName;

use crate::compare::{CONFIRMATION, Job, READING, Road};
use crate::exchange::{Seen, Watched, segments, thread_cpu};
use crate::link::Speech;

mod keys;
mod raw;
mod server;

pub use keys::create as create_keys;
pub use server::{Host, Server, serve};

/// Which TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// 1.2, full handshake with certificates.
    V12,
    /// 1.3, full handshake with certificates.
    V13,
    /// 1.3, full handshake with raw public keys (RFC 7250), both known in advance.
    V13Raw,
    /// 1.3, resumption with a ticket and a new Diffie-Hellman; no early data.
    V13Resumed,
    /// 1.3, resumption; the reading goes as early data and is confirmed at once.
    V13Early,
}

impl Variant {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::V12, Self::V13, Self::V13Raw, Self::V13Resumed, Self::V13Early];

    /// Its name on command lines.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::V12 => "tls12",
            Self::V13 => "tls13",
            Self::V13Raw => "tls13-raw-keys",
            Self::V13Resumed => "tls13-resumed",
            Self::V13Early => "tls13-early-data",
        }
    }

    /// The one of this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn from_name(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|variant| variant.name() == name);
        found.with_context(|| format!("no variant of TLS is called {name:?}"))
    }

    /// What its packets look like.
    #[must_use]
    pub const fn speech(self) -> Speech {
        // A 2-byte length stands before each text; then a type byte (1.3) or an explicit nonce (1.2), and a tag.
        let overhead = if matches!(self, Self::V12) { 2 + 8 + 16 } else { 2 + 1 + 16 };
        Speech::Tls {
            reading: READING.len() + overhead,
            confirmation: CONFIRMATION.len() + overhead,
        }
    }

    const fn resumes(self) -> bool {
        matches!(self, Self::V13Resumed | Self::V13Early)
    }

    fn provider(self) -> Arc<CryptoProvider> {
        let suite = match self {
            Self::V12 => cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
            _ => cipher_suite::TLS13_AES_128_GCM_SHA256,
        };
        let (cipher_suites, kx_groups) = (vec![suite], vec![kx_group::SECP256R1]);
        Arc::new(CryptoProvider { cipher_suites, kx_groups, ..default_provider() })
    }

    fn versions(self) -> &'static [&'static rustls::SupportedProtocolVersion] {
        static V12: [&rustls::SupportedProtocolVersion; 1] = [&rustls::version::TLS12];
        static V13: [&rustls::SupportedProtocolVersion; 1] = [&rustls::version::TLS13];
        if self == Self::V12 { &V12 } else { &V13 }
    }
}

/// The server's side of a variant, with the keys in a directory.
///
/// # Errors
/// When the keys cannot be read or the crypto library refuses them.
pub fn server_config(dir: &Path, variant: Variant) -> Result<ServerConfig> {
    let provider = variant.provider();
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(variant.versions())?;
    let gateway = keys::load(dir, "gateway")?;
    let mut config = if variant == Variant::V13Raw {
        let device = keys::load(dir, "device")?.raw(&provider)?;
        let own = AlwaysResolvesServerRawPublicKeys::new(Arc::new(gateway.raw(&provider)?));
        builder
            .with_client_cert_verifier(Arc::new(raw::Pinned::new(&device, &provider)?))
            .with_cert_resolver(Arc::new(own))
    } else {
        let roots = Arc::new(roots(dir)?);
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider).build()?;
        builder.with_client_cert_verifier(verifier).with_single_cert(gateway.chain, gateway.key)?
    };
    config.send_tls13_tickets = usize::from(variant.resumes());
    config.session_storage = Arc::new(NoServerSessionStorage {});
    match variant {
        Variant::V13Resumed => config.ticketer = Ticketer::new()?,
        Variant::V13Early => {
            config.session_storage = ServerSessionMemoryCache::new(1 << 16);
            config.max_early_data_size = 1 << 14;
            config.send_half_rtt_data = true;
        }
        _ => {}
    }
    Ok(config)
}

fn roots(dir: &Path) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(keys::authority(dir)?)?;
    Ok(roots)
}

/// The device's side of a variant.
pub struct Client {
    variant: Variant,
    config: ClientConfig,
}

/// What a device brings to its job.
pub struct Prepared(Arc<ClientConfig>);

impl Client {
    /// With the keys in a directory.
    ///
    /// # Errors
    /// When they cannot be read or the crypto library refuses them.
    pub fn new(dir: &Path, variant: Variant) -> Result<Self> {
        let provider = variant.provider();
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(variant.versions())?;
        let device = keys::load(dir, "device")?;
        let mut config = if variant == Variant::V13Raw {
            let gateway = keys::load(dir, "gateway")?.raw(&provider)?;
            let own = AlwaysResolvesClientRawPublicKeys::new(Arc::new(device.raw(&provider)?));
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(raw::Pinned::new(&gateway, &provider)?))
                .with_client_cert_resolver(Arc::new(own))
        } else {
            builder
                .with_root_certificates(roots(dir)?)
                .with_client_auth_cert(device.chain, device.key)?
        };
        config.resumption = Resumption::disabled();
        config.enable_early_data = variant == Variant::V13Early;
        Ok(Self { variant, config })
    }

    /// What has to be there before the job, which is not counted: for a variant that resumes, the ticket of a
    /// full job over this road.
    ///
    /// # Errors
    /// When it cannot be had.
    pub fn prepare(&self, before: &Road<'_>) -> Result<Prepared> {
        let mut config = self.config.clone();
        if !self.variant.resumes() {
            return Ok(Prepared(Arc::new(config)));
        }
        config.resumption = Resumption::in_memory_sessions(4);
        let config = Arc::new(config);
        self.once(&config, before, HandshakeKind::Full).context("before the resumption")?;
        Ok(Prepared(config))
    }

    /// The device's job: connect, prove, send one reading, see it confirmed.
    ///
    /// # Errors
    /// When it cannot be done.
    pub fn job(&self, prepared: &Prepared, road: &Road<'_>) -> Result<Job> {
        let resumes = self.variant.resumes();
        let kind = if resumes { HandshakeKind::Resumed } else { HandshakeKind::Full };
        self.once(&prepared.0, road, kind)
    }

    fn once(
        &self,
        config: &Arc<ClientConfig>,
        road: &Road<'_>,
        kind: HandshakeKind,
    ) -> Result<Job> {
        let (cpu, began) = (thread_cpu(), Instant::now());
        let (stream, local) = road.stream()?;
        stream.set_read_timeout(Some(road.left()?))?;
        let mut wire = Watched { stream, seen: Seen::default() };
        let name = ServerName::try_from("gateway")?;
        let mut tls = ClientConnection::new(Arc::clone(config), name)?;
        let text = framed(READING)?;
        let early = match tls.early_data() {
            Some(mut early) => early.write(&text)? == text.len(),
            None => false,
        };
        flush(&mut tls, &mut wire)?;
        while tls.is_handshaking() {
            ensure!(tls.read_tls(&mut wire)? > 0, "the server closed the connection");
            tls.process_new_packets()?;
            if tls.is_handshaking() {
                flush(&mut tls, &mut wire)?;
            }
        }
        // A handshake that ends with the device's own flight takes the reading with it.
        let (mut handshake, own) = (wire.seen, tls.wants_write());
        if !early {
            tls.writer().write_all(&text)?;
        }
        flush(&mut tls, &mut wire)?;
        if own {
            handshake = wire.seen;
        }
        if kind == HandshakeKind::Resumed {
            ensure!(tls.handshake_kind() == Some(kind), "the server did not resume the session");
            let wanted = self.variant == Variant::V13Early;
            ensure!(early == wanted, "the ticket does not allow early data");
            ensure!(tls.is_early_data_accepted() == wanted, "the server refused early data");
        }
        let mut stream = rustls::Stream::new(&mut tls, &mut wire);
        ensure!(read_frame(&mut stream)? == CONFIRMATION, "the reading was not confirmed");
        let mut all = wire.seen;
        if early {
            // The confirmation comes with the server's first flight; nobody waits for the device's last one.
            handshake.flights -= 1;
            all.flights = handshake.flights;
        }
        Ok(Job {
            began,
            confirmed: Instant::now(),
            device_cpu: thread_cpu().saturating_sub(cpu),
            handshake,
            all,
            segments: segments(&wire.stream),
            local,
            stream: Some(wire.stream),
        })
    }
}

/// Sends what is ready, in as few writes as it takes.
fn flush(tls: &mut ClientConnection, wire: &mut Watched) -> io::Result<()> {
    while tls.wants_write() {
        tls.write_tls(wire)?;
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const HERE: Host = Host::Thread { address: Ipv4Addr::LOCALHOST };

    #[test]
    fn every_variant_does_the_job_and_takes_as_many_flights_as_it_should() {
        let dir = tempfile::tempdir().unwrap();
        create_keys(dir.path()).unwrap();
        for (variant, flights, all) in [
            (Variant::V12, 4, 6),
            (Variant::V13, 3, 4),
            (Variant::V13Raw, 3, 4),
            (Variant::V13Resumed, 3, 4),
            (Variant::V13Early, 2, 2),
        ] {
            let server = Server::start(dir.path(), variant, &HERE).unwrap();
            let road = Road::loopback(server.address);
            let client = Client::new(dir.path(), variant).unwrap();
            let prepared = client.prepare(&road).unwrap();
            let job = client.job(&prepared, &road).unwrap();
            assert_eq!(job.handshake.flights, flights, "{variant:?}");
            assert_eq!(job.all.flights, all, "{variant:?}");
            let segments = job.segments.unwrap();
            assert!(segments.up >= 4 && segments.down >= 3);
            assert_eq!(Variant::from_name(variant.name()).unwrap(), variant);
        }
    }

    #[test]
    fn a_client_of_another_authority_is_refused() {
        let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        create_keys(ours.path()).unwrap();
        create_keys(theirs.path()).unwrap();
        for variant in Variant::ALL {
            let server = Server::start(ours.path(), variant, &HERE).unwrap();
            let road = Road::loopback(server.address);
            let job = |dir: &Path| {
                let client = Client::new(dir, variant)?;
                client.job(&client.prepare(&road)?, &road)
            };
            assert!(job(theirs.path()).is_err(), "{variant:?}");
            assert!(job(ours.path()).is_ok(), "{variant:?}: and the server goes on");
        }
    }
}
