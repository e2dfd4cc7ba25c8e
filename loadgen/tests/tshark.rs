//! The judge against tshark on the same interfaces: what one counts, the other counts.
#![allow(clippy::unwrap_used, reason = "a test's helpers may")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use loadgen::exchange::{Both, Way};
use loadgen::link::{Conditions, Emulator, Namespace, Speech, judge};

/// Where the link's device is found in both namespaces.
const DEVICE: &str = "duet0";

fn skipped(why: &str) {
    eprintln!("SKIPPED: the judge is not compared with tshark: {why}");
}

/// A capture into a file, from the moment when this returns.
fn capture(inside: &Namespace, file: &Path) -> Child {
    inside
        .run(|| {
            let mut tshark = Command::new("tshark")
                .args(["-q", "-i", DEVICE, "-f", "ip", "-w"])
                .arg(file)
                .stderr(Stdio::piped())
                .spawn()?;
            let said = BufReader::new(tshark.stderr.take().unwrap());
            let (sender, started) = std::sync::mpsc::channel();
            // Reads on to the end, so that tshark never waits for a reader.
            std::thread::spawn(move || {
                for line in said.lines().map_while(Result::ok) {
                    if line.contains("Capture started") || line.contains("Capturing on") {
                        let _ = sender.send(());
                    }
                }
            });
            started.recv_timeout(Duration::from_secs(20)).unwrap();
            // tshark says so a little before its helper listens.
            std::thread::sleep(Duration::from_millis(1_500));
            Ok(tshark)
        })
        .unwrap()
}

/// Ends a capture and reads `fields` of each packet.
fn read(mut tshark: Child, file: &Path, fields: &[&str]) -> Vec<Vec<String>> {
    // What was captured reaches the file a moment later.
    std::thread::sleep(Duration::from_millis(1_000));
    let pid = rustix::process::Pid::from_child(&tshark);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    tshark.wait().unwrap();
    let mut command = Command::new("tshark");
    command.arg("-r").arg(file).args(["-T", "fields", "-E", "separator=,"]);
    for field in fields {
        command.args(["-e", field]);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| line.split(',').map(str::to_owned).collect()).collect()
}

/// Packets and IP bytes each way.
fn sums(packets: &[Vec<String>], client: &str) -> (Both, Both) {
    let (mut count, mut bytes) = (Both::default(), Both::default());
    for packet in packets {
        let way = if packet[0] == client { Way::Up } else { Way::Down };
        count.add(way, 1);
        bytes.add(way, packet[1].parse().unwrap());
    }
    (count, bytes)
}

/// An echo of lines over TCP and of datagrams over UDP, with losses and copies.
fn talk(link: &Emulator) {
    let to = (link.server_address(), 0);
    let (listener, socket) =
        link.server.run(|| Ok((TcpListener::bind(to)?, UdpSocket::bind(to)?))).unwrap();
    let (tcp, udp) = (listener.local_addr().unwrap(), socket.local_addr().unwrap());
    let echo = std::thread::spawn(move || {
        let (mut peer, _) = listener.accept().unwrap();
        let mut text = [0; 500];
        while peer.read_exact(&mut text).is_ok() {
            peer.write_all(&text).unwrap();
        }
    });
    link.client
        .run(|| {
            let mut stream = TcpStream::connect(tcp)?;
            let device = UdpSocket::bind((link.client_address(0), 0))?;
            for number in 0..40u8 {
                stream.write_all(&[number; 500])?;
                stream.read_exact(&mut [0; 500])?;
                device.send_to(&[number; 100], udp)?;
            }
            Ok(())
        })
        .unwrap();
    echo.join().unwrap();
    // Until nothing is on its way any more.
    let mut before = link.totals();
    loop {
        std::thread::sleep(Duration::from_millis(700));
        if link.totals() == before {
            break;
        }
        before = link.totals();
    }
    drop(socket);
}

#[test]
fn the_judge_counts_what_tshark_counts() {
    if !Command::new("tshark").arg("--version").output().is_ok_and(|out| out.status.success()) {
        return skipped("tshark is missing");
    }
    let rough = Conditions {
        one_way_us: 5_000,
        loss: 0.05,
        duplicate: 0.05,
        reorder: 0.05,
        ..Conditions::default()
    };
    let link = match Emulator::start(&[rough], 7) {
        Ok(link) => link,
        Err(error) => return skipped(&format!("{error:#}")),
    };
    let dir = tempfile::tempdir().unwrap();
    let files = ["client", "server"].map(|name| dir.path().join(name));
    let captures = [capture(&link.client, &files[0]), capture(&link.server, &files[1])];
    talk(&link);
    let totals = link.totals();
    let [client, server] = captures;
    let fields = ["ip.src", "ip.len"];
    let name = link.client_address(0).to_string();
    let (count, bytes) = sums(&read(client, &files[0], &fields), &name);
    assert_eq!((count.up, bytes.up), (totals.entered.up, totals.entered_bytes.up));
    assert_eq!((count.down, bytes.down), (totals.delivered.down, totals.delivered_bytes.down));
    let (count, bytes) = sums(&read(server, &files[1], &fields), &name);
    assert_eq!((count.up, bytes.up), (totals.delivered.up, totals.delivered_bytes.up));
    assert_eq!((count.down, bytes.down), (totals.entered.down, totals.entered_bytes.down));
    assert!(totals.delivered != totals.entered, "the link lost or copied something");
}

#[test]
fn the_judge_finds_the_set_up_the_data_and_the_acks_that_tshark_finds() {
    if !Command::new("tshark").arg("--version").output().is_ok_and(|out| out.status.success()) {
        return skipped("tshark is missing");
    }
    let link =
        match Emulator::start(&[Conditions { one_way_us: 20_000, ..Conditions::default() }], 1) {
            Ok(link) => link,
            Err(error) => return skipped(&format!("{error:#}")),
        };
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("client");
    let tshark = capture(&link.client, &file);
    let listener = link.server.run(|| Ok(TcpListener::bind((link.server_address(), 0))?)).unwrap();
    let to = listener.local_addr().unwrap();
    let echo = std::thread::spawn(move || {
        let (mut peer, _) = listener.accept().unwrap();
        let mut text = [0; 3_000];
        for _ in 0..3 {
            peer.read_exact(&mut text).unwrap();
            peer.write_all(&text).unwrap();
        }
        peer
    });
    let local = SocketAddrV4::new(link.client_address(0), 40_000);
    link.watch(true, local);
    let stream = link
        .client
        .run(|| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
            socket.bind(&SocketAddr::from(local).into())?;
            socket.connect(&to.into())?;
            let mut stream = TcpStream::from(socket);
            for _ in 0..3 {
                stream.write_all(&[7; 3_000])?;
                stream.read_exact(&mut [0; 3_000])?;
            }
            Ok(stream)
        })
        .unwrap();
    let until = link.us(Instant::now());
    // Acknowledgements that are still to come belong to neither count.
    let crossings = link.take(true, local);
    let verdict = judge(&crossings, until, 40_000, Speech::Duet).unwrap();
    drop((stream, echo.join().unwrap()));
    let fields = ["ip.src", "ip.len", "tcp.len", "tcp.flags.syn", "tcp.analysis.retransmission"];
    let packets = read(tshark, &file, &fields);
    // SYN, SYN/ACK, and three times there and back.
    assert_eq!((verdict.flights.set_up, verdict.flights.all), (2, 8));
    let informs = |packet: &&Vec<String>| {
        (packet[2] != "0" || matches!(packet[3].as_str(), "1" | "True")) && packet[4].is_empty()
    };
    let theirs: Vec<_> = packets.iter().filter(informs).collect();
    let ours: Vec<_> = verdict.steps.iter().filter(|step| step.flight.is_some()).collect();
    assert_eq!(ours.len(), theirs.len(), "packets that say something new");
    let bytes = |packets: &[&Vec<String>]| -> usize {
        packets.iter().map(|packet| packet[1].parse::<usize>().unwrap()).sum()
    };
    assert_eq!(ours.iter().map(|step| step.bytes).sum::<usize>(), bytes(&theirs));
    let mut changes = 0;
    let mut before = "";
    for packet in &theirs {
        changes += u32::from(packet[0] != before);
        before = &packet[0];
    }
    assert_eq!(changes, verdict.flights.all, "each change of direction is a flight");
}
