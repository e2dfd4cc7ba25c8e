//! The real gateway process over loopback sockets: what a device and an operator see.
#![allow(clippy::unwrap_used, reason = "a test's helpers may")]

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{TcpStream, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use duet_device::Confirmed;
use duet_protocol::profile::{KeySource, Mode, Profile, Transport};
use duet_protocol::wire::Kind;

mod commands;
mod dashboards;
mod logs;
mod presence;
mod reload;
mod restart;
mod rotation;
#[path = "../support/socket.rs"]
mod socket;
mod systemd;
mod world;

use world::{Client, DUET, Scratch};

#[test]
fn every_profile_on_both_transports_opens_with_two_messages_and_carries_both_ways() {
    let scratch = Scratch::new();
    let mut devices = Vec::new();
    for (index, profile) in Profile::ALL.into_iter().enumerate() {
        for transport in [Transport::Datagram, Transport::Stream] {
            let seed = u8::try_from(index * 2 + 1).unwrap() + transport as u8;
            devices.push((seed, profile, transport, scratch.device(seed, profile, transport)));
        }
    }
    let gateway = scratch.run("127.0.0.1:0");
    for (seed, profile, transport, device) in devices {
        let mut client = Client::new(device, gateway.address, transport);
        // However slow the machine is: exactly two messages, none of them twice.
        client.began = None;
        client.device.send_reading(0, 5, format!("from {seed}").as_bytes(), true).unwrap();
        client.device.open(0);
        assert!(client.drive(|client| !client.confirmed.is_empty()), "{}", profile.name());
        let kinds: Vec<_> = client.crossed.iter().map(|(up, kind, _)| (*up, *kind)).collect();
        let expected =
            [(true, Kind::Hello), (false, Kind::Accept), (true, Kind::Up), (false, Kind::Down)];
        assert_eq!(kinds, expected, "{}: two messages, a reading, its answer", profile.name());
        let bytes = client.crossed[0].2 + client.crossed[1].2;
        let budget = match (profile.mode, profile.source) {
            (Mode::RegisteredId, KeySource::Ephemeral) => 145,
            (_, KeySource::Ephemeral) => 210,
            _ => 310,
        };
        assert!(bytes <= budget, "{}: {bytes} bytes", profile.name());

        let name = format!("device-{seed}");
        let state = scratch.state();
        let sender = std::thread::spawn(move || {
            Command::new(DUET)
                .arg("--state")
                .arg(state)
                .args(["command", "--wait", &name, "abc"])
                .output()
        });
        assert!(client.drive(|_| sender.is_finished()));
        let output = sender.join().unwrap().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(String::from_utf8_lossy(&output.stdout).contains("cba"));
    }
    gateway.terminate();
    let (done, stored) = scratch.duet(&["spool", "cat"]);
    assert!(done);
    let results = stored.lines().filter(|line| line.contains("\"type\":\"result\"")).count();
    assert_eq!((stored.lines().count() - results, results), (30, 30));
    for seed in 1..=30 {
        assert_eq!(stored.matches(&format!("\"from {seed}\"")).count(), 1, "{stored}");
    }
}

#[test]
fn a_killed_gateway_loses_nothing_it_confirmed_and_gets_every_device_back() {
    let scratch = Scratch::new();
    let profile = Profile { mode: Mode::RegisteredId, source: KeySource::Ephemeral };
    let devices: Vec<_> =
        (1..=8).map(|seed| scratch.device(seed, profile, Transport::Datagram)).collect();
    let gateway = scratch.run("127.0.0.1:0");
    let address = gateway.address;
    let mut clients: Vec<_> = devices
        .into_iter()
        .map(|device| Client::new(device, address, Transport::Datagram))
        .collect();
    // Everybody sends without a pause; the gateway dies in the middle of it.
    let (busy, killed) = (AtomicUsize::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for client in &mut clients {
            let (busy, killed) = (&busy, &killed);
            scope.spawn(move || {
                client.device.open(0);
                let mut counted = false;
                while !killed.load(Ordering::Relaxed) {
                    let now = client.now();
                    let sent = client.device.send_reading(now, 1, b"before", true);
                    let before = client.confirmed.len();
                    client.drive(|client| {
                        sent.is_ok()
                            || client.confirmed.len() > before
                            || killed.load(Ordering::Relaxed)
                    });
                    if client.confirmed.len() > 10 && !counted {
                        counted = true;
                        busy.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        while busy.load(Ordering::Relaxed) < 8 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        gateway.kill();
        killed.store(true, Ordering::Relaxed);
    });
    assert_eq!(busy.into_inner(), 8, "every device has sent more than ten readings");
    let gateway = scratch.run(&address.to_string());
    for client in &mut clients {
        client.crossed.clear();
        // The last acknowledgement before the kill may have left nothing on its way; a full window is no matter.
        let _ = client.device.send_reading(client.now(), 5, b"between", true);
        assert!(client.drive(|client| client.lost > 0), "told by a RESET");
        // What was on its way, and a new one, arrive in the new session.
        assert!(client.drive(|client| client.device.is_open()
            && client.crossed.iter().any(|one| !one.0 && one.1 == Kind::Accept)));
        let before = client.confirmed.len();
        while client.device.send_reading(client.now(), 9, b"after", true).is_err() {
            assert!(client.drive(|client| client.confirmed.len() > before));
        }
        let session = client.device.session().unwrap();
        assert!(client.drive(|client| {
            client.confirmed.last().is_some_and(|last| last.session == session)
        }));
        assert_eq!(client.lost, 1, "one RESET");
        let hellos = client.crossed.iter().filter(|(up, kind, _)| *up && *kind == Kind::Hello);
        assert_eq!(hellos.count(), 1, "one handshake");
    }
    gateway.terminate();
    let (_, stored) = scratch.duet(&["spool", "cat"]);
    for client in &clients {
        for Confirmed { id, .. } in &client.confirmed {
            let hello: String = id.hello.iter().map(|byte| format!("{byte:02x}")).collect();
            let key = format!(r#""hello":"{hello}","sequence":{},"#, id.sequence);
            assert!(stored.contains(&key), "confirmed, but not stored: {key}");
        }
    }
}

#[test]
fn a_live_session_ends_within_a_second_of_revocation() {
    let scratch = Scratch::new();
    let profile = Profile { mode: Mode::Certificate, source: KeySource::Ephemeral };
    let device = scratch.device(1, profile, Transport::Datagram);
    let gateway = scratch.run("127.0.0.1:0");
    let mut client = Client::new(device, gateway.address, Transport::Datagram);
    client.device.send_reading(0, 1, b"x", true).unwrap();
    client.device.open(0);
    assert!(client.drive(|client| !client.confirmed.is_empty()));
    let (done, said) = scratch.duet(&["device", "revoke", "device-1"]);
    assert!(done, "{said}");
    let revoked = Instant::now();
    assert!(client.drive(|client| !client.device.is_open()));
    assert!(revoked.elapsed() < Duration::from_secs(1));
    gateway.terminate();
}

#[test]
fn strangers_get_silence_on_udp_and_a_close_on_tcp() {
    let scratch = Scratch::new();
    let gateway = scratch.run("127.0.0.1:0");
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(gateway.address).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    for message in [&[][..], &[0x11], &[0x11; 132], &[0xff; 1_400], &[0x71; 21], b"GET / HTTP/1.1"]
    {
        socket.send(message).unwrap();
    }
    assert!(socket.recv(&mut [0; 1_500]).is_err(), "no answer");
    let mut stream = TcpStream::connect(gateway.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(8))).unwrap();
    stream.write_all(&[&[0, 132][..], &[0x11; 132]].concat()).unwrap();
    // A close with input unread is a reset; a time that ran out would be neither.
    match stream.read(&mut [0; 16]) {
        Ok(read) => assert_eq!(read, 0, "closed without a byte"),
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
    gateway.terminate();
}
