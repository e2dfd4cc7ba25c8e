//! The gateway under a service manager, which this test plays: a socket to which the gateway says how it is.

use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::Duration;

use crate::world::{Gateway, Scratch};

/// The manager's socket.
struct Manager(UnixDatagram);

impl Manager {
    /// The next message; each of its lines is a field.
    fn next(&self) -> String {
        let mut bytes = [0; 4096];
        let length = loop {
            match self.0.recv(&mut bytes) {
                // A test that was stopped and goes on is told so.
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                received => break received.expect("the gateway says nothing any more"),
            }
        };
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    }

    /// Reads until a message has this line; that message.
    fn until(&self, line: &str) -> String {
        loop {
            let message = self.next();
            if message.lines().any(|found| found == line) {
                return message;
            }
        }
    }
}

fn signal(gateway: &Gateway, name: &str) {
    let pid = gateway.child.id().to_string();
    assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
}

#[test]
fn a_service_manager_hears_of_start_life_reload_and_end() {
    let scratch = Scratch::initialised();
    let path = scratch.path("notify");
    let manager = Manager(UnixDatagram::bind(&path).unwrap());
    manager.0.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let path = path.display().to_string();
    let gateway = scratch.run_with(&[("NOTIFY_SOCKET", &path), ("WATCHDOG_USEC", "2000000")]);
    assert_eq!(manager.next(), "READY=1\n");
    // Several times: shards go on turning without any work.
    (0..4).for_each(|_| drop(manager.until("WATCHDOG=1")));
    signal(&gateway, "-HUP");
    let reloading = manager.until("RELOADING=1");
    assert!(reloading.contains("\nMONOTONIC_USEC="), "{reloading}");
    manager.until("READY=1");
    scratch.good(&["device", "add", "a", "--registered-id", "--out", "a.json"]);
    manager.until("STATUS=0 sessions of 1 devices");
    gateway.stop("-TERM");
    let stopping = manager.until("STOPPING=1");
    assert!(stopping.contains("\nSTATUS=ending,"), "{stopping}");
}

#[test]
fn a_manager_that_has_gone_keeps_no_gateway_from_starting() {
    let scratch = Scratch::initialised();
    let gateway =
        scratch.run_with(&[("NOTIFY_SOCKET", "/nowhere"), ("WATCHDOG_USEC", "not a number")]);
    gateway.stop("-TERM");
}
