//! The control plane over its real socket and its real HTTP port.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;

use duet_core::Directory as _;

use super::*;

/// Answers commands with their payload reversed and notes what it is told.
struct Echo {
    revoked: Mutex<Vec<DeviceId>>,
    status: Mutex<Status>,
}

impl Gateway for Echo {
    fn revoked(&self, device: DeviceId) {
        self.revoked.lock().unwrap().push(device);
    }

    fn command(
        &self,
        _: DeviceId,
        mut payload: Vec<u8>,
        _: Duration,
    ) -> oneshot::Receiver<Result<Vec<u8>, CommandError>> {
        let (answer, waiting) = oneshot::channel();
        if payload != b"drop" {
            payload.reverse();
            let result = if payload.is_empty() { Err(CommandError::Busy) } else { Ok(payload) };
            answer.send(result).unwrap();
        }
        waiting
    }

    fn status(&self) -> Status {
        self.status.lock().unwrap().clone()
    }
}

struct Running {
    dir: tempfile::TempDir,
    registry: Arc<Registry>,
    gateway: Arc<Echo>,
    admin: Admin,
}

fn running() -> Running {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(crate::registry::FILE);
    let registry = Arc::new(Registry::create(&path).unwrap());
    registry.view().unwrap();
    let status = Mutex::new(Status {
        phase: Phase::Running,
        faults: Vec::new(),
        listen: SocketAddr::from(([127, 0, 0, 1], 1)),
        transport: Transport::Uring,
        shards: 1,
        uptime_s: 0,
        devices: 0,
        sessions: 0,
        pending: 0,
    });
    let gateway = Arc::new(Echo { revoked: Mutex::default(), status });
    let options = Options {
        state: dir.path().into(),
        http: "127.0.0.1:0".parse().unwrap(),
        save_marks_every: Duration::from_millis(50),
    };
    let (registry_, gateway_) = (Arc::clone(&registry), Arc::clone(&gateway));
    let admin = start(options, registry_, gateway_, install_telemetry()).unwrap();
    Running { dir, registry, gateway, admin }
}

fn line(name: &str, id: u64) -> DeviceLine {
    DeviceLine {
        name: name.into(),
        mode: "registered-id".into(),
        certificate: None,
        id: Some(format!("{id:016x}")),
        key: Some(format!("{id:064x}")),
        profile: None,
    }
}

fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: duet\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn requests_change_the_registry_and_reach_the_gateway() {
    let running = running();
    let mut client = Client::connect(running.dir.path()).unwrap().unwrap();
    let added = client.call(&Request::Add { device: line("a", 1) }).unwrap();
    assert!(matches!(added, Response::Added { count: 1 }));
    let lines: Vec<_> = (2..1_202).map(|i| line(&format!("n{i}"), i)).collect();
    assert!(matches!(client.import(&lines).unwrap(), Response::Added { count: 1_200 }));
    let Response::Devices { devices, more: true } =
        client.call(&Request::List { after: None }).unwrap()
    else {
        panic!("a full page was expected")
    };
    assert_eq!((devices.len(), devices[0].name.as_str()), (500, "a"));
    let command = |payload: &str| Request::Command {
        name: "a".into(),
        payload: payload.into(),
        timeout_ms: 10,
    };
    let result = client.call(&command("0102")).unwrap();
    assert!(matches!(result, Response::CommandResult { payload } if payload == "0201"));
    let refused = |response| match response {
        Response::Refused { message, .. } => message,
        other => panic!("{other:?}"),
    };
    assert_eq!(
        refused(client.call(&command("")).unwrap()),
        "a: too many commands are waiting for the device"
    );
    let dropped = refused(client.call(&command("64726f70")).unwrap());
    assert!(dropped.contains("session ended"), "{dropped}");
    let ended = client.call(&Request::Revoke { name: "a".into() }).unwrap();
    assert!(matches!(ended, Response::Ended { .. }));
    assert_eq!(*running.gateway.revoked.lock().unwrap(), [DeviceId(1u64.to_be_bytes())]);
    let status = client.call(&Request::Status).unwrap();
    assert!(matches!(status, Response::Status { status } if status.devices == 1_200));
    running.admin.shutdown().unwrap();
    assert!(Client::connect(running.dir.path()).unwrap().is_none());
}

#[test]
fn a_bad_line_in_an_import_changes_nothing() {
    let running = running();
    let mut client = Client::connect(running.dir.path()).unwrap().unwrap();
    let mut bad = line("b", 2);
    bad.key = Some("abc".into());
    let refused = client.import(&[line("a", 1), bad]).unwrap();
    let Response::Refused { message, device: Some(1) } = refused else { panic!("{refused:?}") };
    assert_eq!(message, "b: key must be 64 hexadecimal digits");
    assert!(running.registry.is_empty().unwrap());
}

#[test]
fn lines_that_are_no_requests_end_the_connection() {
    let running = running();
    let talk = |bytes: &[u8]| {
        let mut stream = UnixStream::connect(running.dir.path().join(SOCKET)).unwrap();
        // The server may hang up in the middle of a line that is too long.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8(answer).unwrap()
    };
    assert!(talk(b"hello\n").contains("not a request"));
    assert!(talk(b"{\"op\":\"fly\"}\n").contains("not a request"));
    assert!(talk(b"{\"op\":\"status\"").contains("broke off"));
    assert!(talk(b"{\"op\":\"import\",\"count\":3}\n").contains("broke off"));
    assert!(talk(b"{\"op\":\"import\",\"count\":99999999}\n").contains("at most"));
    assert_eq!(talk(b""), "");
    talk(&vec![b'x'; MAX_LINE_LEN + 1]);
    let mut client = Client::connect(running.dir.path()).unwrap().unwrap();
    assert!(matches!(client.call(&Request::Status).unwrap(), Response::Status { .. }));
}

#[test]
fn http_tells_metrics_and_health() {
    let running = running();
    let http = running.admin.http();
    let metrics = get(http, "/metrics");
    assert!(metrics.starts_with("HTTP/1.1 200") && metrics.contains("duet_devices"), "{metrics}");
    assert!(get(http, "/health").contains("200 OK"));
    assert!(get(http, "/ready").contains("\"phase\":\"running\""));
    running.gateway.status.lock().unwrap().faults.push(Fault::SpoolFailed);
    let health = get(http, "/health");
    assert!(health.contains("503") && health.contains("spool-failed"), "{health}");
    let mut status = running.gateway.status.lock().unwrap();
    (status.phase, status.faults) = (Phase::Draining, Vec::new());
    drop(status);
    assert!(get(http, "/health").contains("503"));
    assert!(get(http, "/ready").contains("503"));
    assert!(get(http, "/other").contains("404"));
}

#[test]
fn marks_are_saved_while_running_and_at_the_end() {
    let running = running();
    let mut client = Client::connect(running.dir.path()).unwrap().unwrap();
    client.call(&Request::Add { device: line("a", 1) }).unwrap();
    let view = running.registry.view().unwrap();
    let device = view.lookup(&DeviceId(1u64.to_be_bytes())).unwrap();
    assert!(device.raise_mark(7));
    view.save_later(&device);
    let name = "a".parse().unwrap();
    let saved = |value| running.registry.show(&name).unwrap().mark == value;
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while !saved(7) {
        assert!(std::time::Instant::now() < deadline, "not saved while running");
        thread::sleep(Duration::from_millis(10));
    }
    assert!(device.raise_mark(9));
    view.save_later(&device);
    running.admin.shutdown().unwrap();
    assert!(saved(9));
}

#[test]
fn only_its_owner_can_reach_the_socket_and_other_files_stay() {
    let running = running();
    let path = running.dir.path().join(SOCKET);
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    drop(running.admin);
    assert!(!path.exists());
    fs::write(&path, "precious").unwrap();
    assert!(bind_private(running.dir.path(), &path).is_err());
    assert_eq!(fs::read(&path).unwrap(), b"precious");
}
