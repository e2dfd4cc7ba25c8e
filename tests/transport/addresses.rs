//! Gateways on machines with several addresses: an answer leaves from the one that was asked. The clients are connected
//! sockets, which hear nothing from any other.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::Command;

use duet::transport::Settings;
use nix::sched::{CloneFlags, unshare};

use super::world::{ECHO, Gateway, PATIENCE, SHARDS, delivered, loopback, ping};

/// Asks at each address in turn, on every shard, and twice over: what was learnt of one must not stay with the other.
fn ask_at(gateway: &Gateway, addresses: &[&str]) -> usize {
    let port = gateway.local.port();
    let clients: Vec<_> = addresses
        .iter()
        .map(|address| {
            let to = SocketAddr::new(address.parse().unwrap(), port);
            let from: IpAddr = if to.is_ipv6() { "::1" } else { "127.0.0.1" }.parse().unwrap();
            let socket = UdpSocket::bind((from, 0)).unwrap();
            socket.connect(to).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket
        })
        .collect();
    for _ in 0..2 {
        for client in &clients {
            (0..).take(SHARDS).for_each(|slot| ping(client, &[ECHO, slot, 7]));
        }
    }
    2 * SHARDS * clients.len()
}

fn answers_from(listen: &str, addresses: &[&str]) {
    let gateway = Gateway::start(Settings { listen: listen.parse().unwrap(), ..loopback() });
    let asked = ask_at(&gateway, addresses);
    assert_eq!(delivered(&gateway.finish()), asked);
}

#[test]
fn ipv4_answers_leave_from_the_address_that_was_asked() {
    answers_from("0.0.0.0:0", &["127.0.0.1", "127.0.0.2", "127.9.8.7"]);
}

#[test]
fn mapped_answers_leave_from_the_address_that_was_asked() {
    answers_from("[::]:0", &["127.0.0.1", "127.0.0.2", "127.9.8.7", "::1"]);
}

/// More than are told apart at first sight: an address that whoever may send datagrams has asked at costs no other one its answers.
#[test]
fn answers_of_many_addresses_leave_from_the_one_that_was_asked() {
    let addresses: Vec<_> =
        (0..300).map(|n| format!("127.1.{}.{}", n / 250, 1 + n % 250)).collect();
    answers_from("0.0.0.0:0", &addresses.iter().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn a_gateway_with_one_address_answers_from_it() {
    answers_from("127.0.0.5:0", &["127.0.0.5"]);
}

/// In a network of its own, whose loopback interface has several IPv6 addresses, and a network that is the machine's as a whole.
#[test]
fn ipv6_answers_leave_from_the_address_that_was_asked() {
    const OWN: [&str; 2] = ["fd00::2", "fd00::3"];
    let in_a_network_of_its_own = || {
        if let Err(errno) = unshare(CloneFlags::CLONE_NEWNET) {
            return eprintln!("SKIPPED: a network of its own is refused: {errno}");
        }
        if Command::new("ip").arg("-V").output().is_err() {
            return eprintln!("SKIPPED: ip is missing, so no answer left from several addresses");
        }
        let ip =
            |words: &str| Command::new("ip").args(words.split(' ')).status().unwrap().success();
        assert!(ip("link set lo up"));
        let add = |address| ip(&format!("addr add {address}/128 dev lo nodad"));
        if !OWN.into_iter().all(add) {
            return eprintln!("SKIPPED: this kernel has no IPv6");
        }
        assert!(ip("-6 route add local fd00:1::/64 dev lo"));
        let asked = ["::1", OWN[0], OWN[1], "127.0.0.2", "fd00:1::7", "fd00:1::ffff:8"];
        answers_from("[::]:0", &asked);
    };
    std::thread::spawn(in_a_network_of_its_own).join().unwrap();
}
