//! A restart under a service manager that keeps descriptors, which this test plays: sockets and sessions go on in the next
//! process, and no device notices.

use std::io::IoSliceMut;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::thread::JoinHandle;

use duet_protocol::profile::{KeySource, Mode, Profile, Transport};
use duet_protocol::wire::Kind;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use crate::world::{Client, Running, Scratch};

const PROFILE: Profile = Profile { mode: Mode::RegisteredId, source: KeySource::Ephemeral };

/// What a manager keeps, by name.
type Store = Vec<(String, OwnedFd)>;

/// Reads what gateways say, and keeps what they want kept.
struct Manager {
    path: std::path::PathBuf,
    /// What it passes to the next process.
    passed: Vec<(String, RawFd)>,
    reader: JoinHandle<Store>,
    end: UnixDatagram,
}

impl Manager {
    fn new(scratch: &Scratch, mut store: Store) -> Self {
        let path = scratch.0.path().join("notify");
        let _ = std::fs::remove_file(&path);
        let socket = UnixDatagram::bind(&path).unwrap();
        let end = UnixDatagram::unbound().unwrap();
        end.connect(&path).unwrap();
        let passed = store.iter().map(|(name, one)| (name.clone(), one.as_raw_fd())).collect();
        let reader = std::thread::spawn(move || {
            loop {
                let (message, passed) = receive(&socket);
                let has = |line: &str| message.lines().any(|found| found == line);
                let name = message.lines().find_map(|line| line.strip_prefix("FDNAME="));
                let name = name.unwrap_or("stored").to_owned();
                if has("FDSTORE=1") {
                    assert!(has("FDPOLL=0"), "{message}");
                    store.extend(passed.map(|descriptor| (name, descriptor)));
                } else if has("FDSTOREREMOVE=1") {
                    store.retain(|(kept, _)| *kept != name);
                } else if has("END") {
                    return store;
                }
            }
        });
        Self { path, passed, reader, end }
    }

    /// What is kept once all that was said is read.
    fn store(self) -> Store {
        self.end.send(b"END").unwrap();
        self.reader.join().unwrap()
    }
}

/// A message and the descriptor that came with it.
#[allow(unsafe_code)]
fn receive(socket: &UnixDatagram) -> (String, Option<OwnedFd>) {
    let mut bytes = [0; 4096];
    let mut space = nix::cmsg_space!([RawFd; 4]);
    let (length, passed) = {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message =
            recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags).unwrap();
        let mut passed = None;
        for control in message.cmsgs().unwrap() {
            if let ControlMessageOwned::ScmRights(all) = control {
                let [one] = all[..] else { panic!("one descriptor a message: {all:?}") };
                // SAFETY: the kernel has just made it for this process, and told nobody else.
                passed = Some(unsafe { OwnedFd::from_raw_fd(one) });
            }
        }
        (message.bytes, passed)
    };
    (String::from_utf8(bytes[..length].to_vec()).unwrap(), passed)
}

/// Has the command run with these descriptors, from 3 on, as systemd passes them.
#[allow(unsafe_code)]
fn pass(command: &mut Command, passed: &[(String, RawFd)]) {
    let names: Vec<_> = passed.iter().map(|(name, _)| name.as_str()).collect();
    let descriptors: Vec<_> = passed.iter().map(|(_, one)| *one).collect();
    // Whose number is known only once it runs.
    let program = command.get_program().to_owned();
    let arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
    let mut shell = Command::new("sh");
    shell.args(["-c", "LISTEN_PID=$$ exec \"$0\" \"$@\""]).arg(program).args(arguments);
    shell.env("LISTEN_FDS", passed.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
    *command = shell;
    // SAFETY: between fork and exec only system calls on numbers are made.
    unsafe {
        command.pre_exec(move || {
            let mut high = [0; 64];
            for (high, one) in high.iter_mut().zip(&descriptors) {
                *high = libc::fcntl(*one, libc::F_DUPFD_CLOEXEC, 200);
            }
            for (place, high) in (3..).zip(&high[..descriptors.len()]) {
                if *high < 0 || libc::dup2(*high, place) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
}

fn run(scratch: &Scratch, listen: &str, shards: &str, manager: &Manager) -> Running {
    scratch.run_with(listen, |command| {
        let arguments = ["run", "--shards", shards, "--listen", listen, "--metrics", "127.0.0.1:0"];
        *command = scratch.command(&arguments);
        if !manager.passed.is_empty() {
            pass(command, &manager.passed);
        }
        let piped = std::process::Stdio::piped();
        command.env("NOTIFY_SOCKET", &manager.path).env("FDSTORE", "64").stdout(piped);
    })
}

fn names(store: &Store) -> Vec<&str> {
    let mut names: Vec<_> = store.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    names
}

const SOCKETS: [&str; 6] = ["hello-0", "hello-1", "tcp-0", "tcp-1", "udp-0", "udp-1"];

fn say(client: &mut Client, payload: &[u8]) -> bool {
    let before = client.confirmed.len();
    client.device.send_reading(client.now(), 1, payload, true).unwrap();
    client.drive(|client| client.confirmed.len() > before)
}

#[test]
fn sockets_and_sessions_go_on_in_the_next_process() {
    let scratch = Scratch::new();
    let devices: Vec<_> =
        (1..9).map(|seed| scratch.device(seed, PROFILE, Transport::Datagram)).collect();
    let manager = Manager::new(&scratch, Vec::new());
    let gateway = run(&scratch, "127.0.0.1:0", "2", &manager);
    let address = gateway.address;
    let mut clients: Vec<_> = devices
        .into_iter()
        .map(|device| Client::new(device, address, Transport::Datagram))
        .collect();
    for client in &mut clients {
        client.device.open(0);
        assert!(say(client, b"before"));
        client.crossed.clear();
    }
    gateway.terminate();
    let store = manager.store();
    assert_eq!(names(&store), [&["hello-0", "hello-1", "sessions"], &SOCKETS[2..]].concat());
    // Nobody was told of the end, and what is sent meanwhile waits.
    for client in &mut clients {
        client.device.send_reading(client.now(), 1, b"between", false).unwrap();
        let mut out = [0; 1500];
        while let Some(len) = client.device.poll_transmit(client.now(), &mut out) {
            client.socket.send(&out[..len]).unwrap();
        }
        client.socket.receive(&mut out).unwrap_err();
    }

    let manager = Manager::new(&scratch, store);
    let gateway = run(&scratch, "127.0.0.1:0", "2", &manager);
    assert_eq!(gateway.address, address, "the sockets are the same");
    for client in &mut clients {
        assert!(say(client, b"after"));
        assert_eq!(client.lost, 0);
        let crossed = client.crossed.iter();
        assert!(crossed.clone().all(|(_, kind, _)| matches!(kind, Kind::Up | Kind::Down)));
    }
    // What was killed leaves its sockets, and no session: devices hear so, and come back.
    gateway.kill();
    let store = manager.store();
    assert_eq!(names(&store), SOCKETS, "nobody can take the sessions again");
    let manager = Manager::new(&scratch, store);
    let gateway = run(&scratch, &address.to_string(), "2", &manager);
    for client in &mut clients {
        client.device.send_reading(client.now(), 1, b"at last", true).unwrap();
        assert!(client.drive(|client| client.lost == 1), "told by a RESET");
        let before = client.confirmed.len();
        assert!(client.drive(|client| client.confirmed.len() > before));
    }
    gateway.terminate();
    drop(manager.store());
    let (done, stored) = scratch.duet(&["spool", "cat"]);
    assert!(done);
    for payload in ["before", "between", "after", "at last"] {
        assert_eq!(stored.matches(&format!("\"{payload}\"")).count(), 8, "{payload}: {stored}");
    }
}

#[test]
fn what_does_not_fit_any_more_is_given_up_and_devices_come_back() {
    let scratch = Scratch::new();
    let device = scratch.device(1, PROFILE, Transport::Datagram);
    let manager = Manager::new(&scratch, Vec::new());
    let gateway = run(&scratch, "127.0.0.1:0", "2", &manager);
    let address = gateway.address;
    let mut client = Client::new(device, address, Transport::Datagram);
    client.device.open(0);
    assert!(say(&mut client, b"before"));
    gateway.terminate();
    let mut store = manager.store();
    // Another number of shards has other sockets; sessions are spread anew.
    let stranger = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    store.push(("duet.socket".into(), stranger.into()));
    let manager = Manager::new(&scratch, store);
    let gateway = run(&scratch, &address.to_string(), "3", &manager);
    assert!(say(&mut client, b"after"));
    assert!(client.crossed.iter().filter(|(up, ..)| *up).skip(1).all(|one| one.1 == Kind::Up));
    gateway.terminate();
    let store = manager.store();
    assert_eq!(store.len(), 3 * 3 + 1 + 1, "{:?}", names(&store));

    // With another node key the sessions are somebody else's.
    std::fs::remove_file(scratch.state().join("node.key")).unwrap();
    let manager = Manager::new(&scratch, store);
    let gateway = run(&scratch, &address.to_string(), "3", &manager);
    client.device.send_reading(client.now(), 1, b"unheard", true).unwrap();
    let before = client.confirmed.len();
    assert!(
        client.drive(|client| client.confirmed.len() > before),
        "it falls back on its own timer"
    );
    assert!(client.crossed.iter().skip(2).any(|(_, kind, _)| *kind == Kind::Accept));
    gateway.terminate();
}

/// systemd throws away what it keeps at the end of `systemctl stop`, and so does a machine that starts anew.
#[test]
fn devices_that_were_handed_over_to_nobody_left_since_the_gateway_was_stopped() {
    let scratch = Scratch::new();
    let settings = scratch.state().join("duet.toml");
    let text = std::fs::read_to_string(&settings).unwrap();
    std::fs::write(&settings, text.replace("#presence = false", "presence = true")).unwrap();
    let device = scratch.device(1, PROFILE, Transport::Datagram);
    let manager = Manager::new(&scratch, Vec::new());
    let gateway = run(&scratch, "127.0.0.1:0", "2", &manager);
    let address = gateway.address;
    let mut client = Client::new(device, address, Transport::Datagram);
    client.device.open(0);
    assert!(say(&mut client, b"before"));
    gateway.terminate();
    drop(manager.store());
    let manager = Manager::new(&scratch, Vec::new());
    let gateway = run(&scratch, &address.to_string(), "2", &manager);
    gateway.terminate();
    let (_, stored) = scratch.duet(&["spool", "cat", "--device", "device-1"]);
    let left: Vec<_> = stored.lines().filter(|line| line.contains("\"offline\"")).collect();
    assert!(left.len() == 1 && left[0].contains("\"stopped\""), "{stored}");
}
