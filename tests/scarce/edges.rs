//! Tiny queues, empty datagrams, no descriptors, a port still held, IPv6, trains of datagrams for several shards.

use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use duet_device::{Device, Software};
use duet_protocol::profile::{KeySource, Mode, Profile, Transport};
use duet_protocol::wire::MESSAGE_MAX;
use loadgen::local::{LocalGateway, Wanted};

use super::world::{DUET, await_metric, everyone, metric, script, with_settings, work};

const DROPS: &str = "duet_transport_drops_total";

#[test]
fn empty_datagrams_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let program = std::path::Path::new(DUET);
    let (gateway, members) = LocalGateway::start(program, dir.path(), 2, &everyone()).unwrap();
    let address = gateway.address;
    let flood = std::thread::spawn(move || {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        for _ in 0..500 {
            socket.send_to(&[], address).unwrap();
            std::thread::sleep(Duration::from_micros(300));
        }
    });
    work(members, address);
    flood.join().unwrap();
    assert_eq!(await_metric(&gateway, DROPS, "reason=\"short\"", 500), 500);
    gateway.stop().unwrap();
}

/// The completion queue overflows, and every buffer is in use, all the time.
#[test]
fn eight_completions_and_four_buffers_serve_everyone() {
    let dir = tempfile::tempdir().unwrap();
    let settings = "[queues]\nsubmissions = 2\ncompletions = 8\ndatagram_buffers = 4\n\
                    stream_buffers = 4\nsend_slots = 2\n";
    let program = with_settings(dir.path(), "", settings);
    let (gateway, members) = LocalGateway::start(&program, dir.path(), 2, &everyone()).unwrap();
    let address = gateway.address;
    let flood = std::thread::spawn(move || {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        for number in 0..20_000u32 {
            let [slot, ..] = number.to_le_bytes();
            socket.send_to(&[0xff, slot, 0, 0], address).unwrap();
            if number.is_multiple_of(500) {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    });
    work(members, address);
    flood.join().unwrap();
    await_metric(&gateway, "duet_transport_no_buffers_total", "", 1);
    gateway.stop().unwrap();
}

#[test]
fn without_descriptors_it_waits_and_then_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let program = with_settings(dir.path(), "ulimit -n 80 &&", "");
    let (gateway, members) = LocalGateway::start(&program, dir.path(), 2, &everyone()).unwrap();
    let hoard: Vec<_> = (0..100).map(|_| TcpStream::connect(gateway.address).unwrap()).collect();
    // The metrics need a descriptor, too: they come back when streams that prove nothing are closed.
    std::thread::sleep(Duration::from_millis(500));
    drop(hoard);
    work(members, gateway.address);
    await_metric(&gateway, "duet_accept_failures_total", "", 1);
    gateway.stop().unwrap();
}

#[test]
fn it_allows_itself_the_descriptors_that_it_may_have() {
    let dir = tempfile::tempdir().unwrap();
    let program = with_settings(dir.path(), "ulimit -S -n 80 &&", "");
    let (gateway, members) = LocalGateway::start(&program, dir.path(), 2, &everyone()).unwrap();
    let hoard: Vec<_> = (0..100).map(|_| TcpStream::connect(gateway.address).unwrap()).collect();
    work(members, gateway.address);
    await_metric(&gateway, "duet_streams_accepted_total", "", 100);
    assert_eq!(metric(&gateway, "duet_accept_failures_total", ""), 0);
    drop(hoard);
    gateway.stop().unwrap();
}

#[test]
fn a_killed_gateway_gets_its_port_back_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let port = dir.path().join("port");
    // From the second start on it listens where it did before.
    let lines = format!(
        "if [ \"$3\" = run ] && [ -e {0} ]; then\n\
         exec {DUET} --state \"$2\" run --shards 2 --listen $(cat {0}) --metrics 127.0.0.1:0\n\
         elif [ \"$3\" = init ] && [ -e \"$2\" ]; then exit 0\n\
         else exec {DUET} \"$@\"; fi",
        port.display()
    );
    let program = script(dir.path(), &lines);
    let (mut gateway, _) = LocalGateway::start(&program, dir.path(), 2, &[]).unwrap();
    let address = gateway.address;
    std::fs::write(&port, address.to_string()).unwrap();
    for _ in 0..5 {
        let streams: Vec<_> = (0..20).map(|_| TcpStream::connect(address).unwrap()).collect();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.send_to(&[0xff, 1, 2, 3], address).unwrap();
        drop(gateway); // by SIGKILL, with receives on every stream
        (gateway, _) = LocalGateway::start(&program, dir.path(), 2, &[]).unwrap();
        assert_eq!(gateway.address, address);
        drop(streams);
    }
    gateway.stop().unwrap();
}

#[test]
fn one_gateway_serves_ipv6_and_ipv4() {
    let dir = tempfile::tempdir().unwrap();
    let lines = format!(
        "if [ \"$3\" = run ]; then\n\
         exec {DUET} --state \"$2\" run --shards 2 --listen '[::]:0' --metrics '[::1]:0'\n\
         else exec {DUET} \"$@\"; fi"
    );
    let program = script(dir.path(), &lines);
    let (gateway, mut members) = LocalGateway::start(&program, dir.path(), 2, &everyone()).unwrap();
    let port = gateway.address.port();
    let half = members.split_off(members.len() / 2);
    for (host, members) in [("[::1]", members), ("127.0.0.1", half)] {
        work(members, format!("{host}:{port}").parse().unwrap());
    }
    gateway.stop().unwrap();
}

/// Sends all of `bytes` as one train of datagrams of `len` bytes.
#[allow(unsafe_code)]
fn send_train(socket: &UdpSocket, bytes: &[u8], len: usize, to: SocketAddr) {
    let len = libc::c_int::try_from(len).unwrap();
    // SAFETY: reads one integer that lives through the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_UDP,
            libc::UDP_SEGMENT,
            (&raw const len).cast(),
            libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap(),
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    socket.send_to(bytes, to).unwrap();
}

/// The kernel steers a train by its first datagram; the others still reach their shards.
#[test]
fn a_train_for_several_shards_reaches_them_all() {
    const DEVICES: usize = 16;
    let dir = tempfile::tempdir().unwrap();
    let profile = Profile { mode: Mode::RegisteredId, source: KeySource::Ephemeral };
    let wanted: Vec<_> = (0..DEVICES)
        .map(|number| Wanted {
            name: format!("device-{number}"),
            profile,
            transport: Transport::Datagram,
        })
        .collect();
    let program = std::path::Path::new(DUET);
    let (gateway, members) = LocalGateway::start(program, dir.path(), 2, &wanted).unwrap();
    let mut devices: Vec<Device<Software>> =
        members.into_iter().map(|it| Device::seeded(it.config, it.seed).unwrap()).collect();
    let mut out = [0; MESSAGE_MAX];
    let mut hellos: Vec<Vec<u8>> = devices
        .iter_mut()
        .map(|device| {
            device.open(0);
            let len = device.poll_transmit(0, &mut out).unwrap();
            out[..len].to_vec()
        })
        .collect();
    let len = hellos[0].len();
    assert!(hellos.iter().all(|hello| hello.len() == len));
    hellos.sort_by_key(|hello| hello[1] % 2);
    let strangers = hellos.iter().filter(|hello| hello[1] % 2 != hellos[0][1] % 2).count();
    assert!(strangers > 0, "random ids of one half of the slots only");

    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    send_train(&socket, &hellos.concat(), len, gateway.address);
    for _ in 0..DEVICES {
        let len = socket.recv(&mut out).unwrap();
        // A device takes no ACCEPT but its own.
        for device in &mut devices {
            let _ = device.handle_message(0, &mut out[..len].to_vec());
        }
    }
    assert!(devices.iter().all(Device::is_open));
    let forwarded = await_metric(
        &gateway,
        "duet_datagrams_forwarded_total",
        "",
        u64::try_from(strangers).unwrap(),
    );
    assert_eq!(forwarded, u64::try_from(strangers).unwrap());
    gateway.stop().unwrap();
}
