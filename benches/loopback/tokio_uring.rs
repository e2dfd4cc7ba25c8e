//! The other way to have `io_uring`: the same shard behind tokio-uring's sockets, one datagram received and one sent for
//! each operation. What it receives is not stored.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use duet::identity::{GatewayIdentity, now_s};
use duet::registry::{self, Registry};
use duet_core::engine::Batched;
use duet_core::testing::{self, Forget};
use duet_core::{GatewayKey, Handler as _, Now, Path as To, Settings, Shard};
use duet_protocol::ec::SecretScalar;
use duet_protocol::identity::Gateway;
use duet_protocol::wire::MESSAGE_MAX;

fn now() -> Now {
    let mono = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let mono = std::time::Duration::try_from(mono).unwrap();
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let whole = |number: u128| u64::try_from(number).unwrap();
    Now { mono_us: whole(mono.as_micros()), unix_ms: whole(unix.as_millis()) }
}

/// The server, in its own process, on a state directory: says where it listens, and serves until it is killed.
pub(crate) fn serve(state: &Path) {
    let registry = Registry::open(&state.join(registry::FILE)).unwrap();
    let files = [state.join("gateway.pem"), state.join("gateway.key")];
    let GatewayIdentity { certificate, secret } =
        GatewayIdentity::load(&files[0], &files[1], now_s()).unwrap();
    let gateway = Gateway { key_id: 0, fingerprint: certificate.fingerprint, key: certificate.key };
    let secret = SecretScalar::from_bytes(secret.expose()).unwrap();
    let settings = Settings {
        keys: vec![GatewayKey::new(gateway, secret)],
        idle_us: 3_600_000_000,
        pending_us: 5_000_000,
        sessions_max: 1 << 20,
        pending_max: 1 << 16,
        retry_from: 128,
        burst_us: 0,
        ..testing::settings()
    };
    let engine = Batched::new(duet_curve::Backend::detect(), &[3; 32]);
    let mut shard =
        Shard::new(settings, registry.view().unwrap(), engine, Forget, testing::random(7));
    tokio_uring::start(async {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let socket = tokio_uring::net::UdpSocket::bind(any).await.unwrap();
        println!("{}", socket.local_addr().unwrap());
        let (mut incoming, mut outgoing) = (vec![0; MESSAGE_MAX], vec![0; MESSAGE_MAX]);
        loop {
            let (received, buffer) = socket.recv_from(incoming).await;
            let (len, from) = received.unwrap();
            shard.handle_datagram(now(), from, &buffer[..len]);
            incoming = buffer;
            shard.handle_turn(now());
            outgoing.resize(MESSAGE_MAX, 0);
            while shard.poll_event().is_some() {}
            while let Some(sent) = shard.poll_transmit(&mut outgoing) {
                let To::Datagram(to) = sent.to else { continue };
                outgoing.truncate(sent.len);
                // A full send buffer loses the datagram.
                outgoing = socket.send_to(outgoing, to.address()).await.1;
                outgoing.resize(MESSAGE_MAX, 0);
            }
        }
    });
}
