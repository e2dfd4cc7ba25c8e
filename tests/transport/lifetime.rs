//! Mail, descriptors, the end.

use std::net::UdpSocket;
use std::time::Duration;

use super::world::{Client, ECHO, Gateway, Mail, PATIENCE, in_own_process, loopback, ping, sum};

#[test]
fn mail_wakes_a_sleeping_shard() {
    let gateway = Gateway::start(loopback());
    let (sender, receiver) = std::sync::mpsc::channel();
    for round in 0..200 {
        for (shard, mail) in gateway.mail.iter().enumerate() {
            mail.try_send(Mail::Reply(sender.clone())).unwrap();
            assert_eq!(receiver.recv_timeout(Duration::from_millis(700)), Ok(shard), "{round}");
        }
        if round % 20 == 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    gateway.finish();
}

#[test]
fn nothing_leaks_when_a_gateway_ends() {
    in_own_process("lifetime::nothing_leaks_when_a_gateway_ends", leaks_nothing);
}

fn leaks_nothing() {
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = descriptors();
    for orderly in [true, false] {
        let gateway = Gateway::start(loopback());
        let mut clients: Vec<_> = (0..40).map(|_| gateway.tcp()).collect();
        for (slot, client) in (0..).zip(&mut clients[..30]) {
            client.echo(&[ECHO, slot]);
        }
        clients[30].send(&[0, 5]);
        ping(&gateway.udp(), &[ECHO, 1]);
        if orderly {
            gateway.finish();
        } else {
            gateway.stop();
        }
        drop(clients);
    }
    assert_eq!(descriptors(), before);
}

#[test]
fn a_port_is_free_as_soon_as_a_gateway_has_ended() {
    // Elsewhere a test may just be starting a process, which has this one's sockets until it becomes another program.
    in_own_process("lifetime::a_port_is_free_as_soon_as_a_gateway_has_ended", frees_its_port);
}

fn frees_its_port() {
    let mut settings = loopback();
    for _ in 0..20 {
        let gateway = Gateway::start(settings.clone());
        settings.listen = gateway.local;
        ping(&gateway.udp(), &[ECHO, 1]);
        gateway.tcp().echo(&[ECHO, 0]);
        gateway.finish();
        UdpSocket::bind(settings.listen).unwrap();
    }
}

#[test]
fn accepting_resumes_when_descriptors_are_back() {
    in_own_process(
        "lifetime::accepting_resumes_when_descriptors_are_back",
        runs_out_of_descriptors,
    );
}

fn runs_out_of_descriptors() {
    let gateway = Gateway::start(loopback());
    let client = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let mut hoard = Vec::new();
    while let Ok(file) = std::fs::File::open("/dev/null") {
        hoard.push(file);
        if hoard.len() > 100_000 {
            return; // this machine has too many to exhaust
        }
    }
    client.connect(&gateway.local.into()).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    drop(hoard);
    let mut client = Client(client.into());
    client.0.set_read_timeout(Some(PATIENCE)).unwrap();
    client.echo(&[ECHO, 1]);
    drop(client);
    let failures = sum(&gateway.finish(), |counters| counters.accept_failed);
    assert!((1..10).contains(&failures), "paused between tries: {failures}");
}
