//! The control plane over its real socket and its real HTTP port.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::time::Instant;

use duet_protocol::reason::DropReason;

use duet_core::{Command, CommandAnswer, CommandFailure, Directory as _, Mail};
use duet_upstream::Taker;

use crate::commands::{CommandState, Limits, Opened, Teller, Told, Ways};
use crate::driver::DriverKind;

use super::devices::End;
use super::*;

/// A gateway of which only the queue of commands is real; it notes what it is told.
struct Echo {
    revoked: Mutex<Vec<DeviceId>>,
    status: Mutex<Status>,
    commands: Commands,
    orders: Mutex<Option<Arc<dyn Taker>>>,
}

/// Answers each command with its payload reversed, and an empty one with a failure.
struct Reverse(Teller);

impl Ways for Reverse {
    fn shards(&self) -> usize {
        1
    }

    fn mail(&mut self, _: usize, mail: Mail) -> Result<(), Box<Mail>> {
        let Mail::Command(command) = mail else { return Ok(()) };
        let Command { token, payload: mut output, patient, .. } = command;
        output.reverse();
        let status = if output.is_empty() { 3 } else { 0 };
        let result = match &output[..] {
            b"pord" => Err(CommandFailure::NotConnected),
            _ => Ok(CommandAnswer { status, output }),
        };
        if !patient {
            assert!(self.0.ended(0, token, result, None));
        }
        Ok(())
    }

    fn tell(&mut self, _: &[Told]) -> bool {
        true
    }
}

impl Gateway for Echo {
    fn revoked(&self, device: DeviceId) {
        self.revoked.lock().unwrap().push(device);
    }

    fn commands(&self) -> Option<&Commands> {
        Some(&self.commands)
    }

    fn take_orders(&self, taker: Arc<dyn Taker>) {
        *self.orders.lock().unwrap() = Some(taker);
    }

    fn latest(&self, _: DeviceId) -> Vec<LastValue> {
        Vec::new()
    }

    fn look(&self, _: &[DeviceId]) -> Option<Looking> {
        None
    }

    fn status(&self) -> Status {
        self.status.lock().unwrap().clone()
    }

    fn activity(&self) -> Activity {
        let drops = vec![Dropped::new(DropReason::Proof, 7)];
        Activity { readings: 40, accepts: 9, drops, ..Activity::default() }
    }
}

struct Running {
    /// Ends before its directory goes: a registry that is gone is a fault, which all tests here would see.
    admin: Admin,
    registry: Arc<Registry>,
    gateway: Arc<Echo>,
    dir: tempfile::TempDir,
}

fn enrol_settings(state: &Path) -> crate::config::Enrol {
    crate::config::Enrol {
        certificate: state.join("ca.pem"),
        key: state.join("ca.key"),
        days: 30,
        trusted: None,
    }
}

fn running() -> Running {
    running_with(None)
}

fn running_with(api: Option<(SocketAddr, watch::Receiver<TlsAcceptor>)>) -> Running {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(crate::registry::FILE);
    let registry = Arc::new(Registry::create(&path).unwrap());
    registry.view().unwrap();
    let status = Mutex::new(Status {
        phase: Phase::Running,
        faults: Vec::new(),
        listen: SocketAddr::from(([127, 0, 0, 1], 1)),
        driver: DriverKind::IoUring,
        shards: 1,
        uptime_s: 0,
        devices: 0,
        sessions: 0,
        pending: 0,
        upstreams: Vec::new(),
    });
    let view = registry.view().unwrap();
    let registrations = move |device: &DeviceId| view.lookup(device).map(|one| one.registration());
    let queue = dir.path().join(crate::commands::FILE);
    let queue = Opened::open(queue, Limits::default(), Box::new(registrations)).unwrap();
    let ways = Box::new(Reverse(queue.teller()));
    let commands = queue.run(ways).unwrap();
    let gateway =
        Arc::new(Echo { revoked: Mutex::default(), status, commands, orders: Mutex::default() });
    let options = Options {
        state: dir.path().into(),
        http: "127.0.0.1:0".parse().unwrap(),
        save_marks_every: Duration::from_millis(50),
        facts: tokio::sync::watch::channel(None).1,
        enrol: enrol_settings(dir.path()),
        reload: Box::new(|| Err("line 3: no".into())),
        audit_max_bytes: 1 << 20,
        api,
    };
    let (registry_, gateway_) = (Arc::clone(&registry), Arc::clone(&gateway));
    let admin = start(options, registry_, gateway_, install_telemetry()).unwrap();
    Running { dir, registry, gateway, admin }
}

impl Running {
    fn client(&self) -> Client {
        Client::connect(self.dir.path()).unwrap().unwrap()
    }
}

fn refused<T: std::fmt::Debug>(answer: Result<T, ClientError>) -> String {
    match answer {
        Err(ClientError::Refused(problem)) => problem.error,
        other => panic!("{other:?}"),
    }
}

fn line(name: &str, id: u64) -> DeviceLine {
    DeviceLine {
        name: name.into(),
        mode: "registered-id".into(),
        certificate: None,
        id: Some(format!("{id:016x}")),
        key: Some(format!("{id:064x}")),
        key_sources: None,
        tags: None,
        group: None,
        expires: None,
        made: false,
    }
}

fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: duet\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// It does not last until somebody happens to change something.
#[test]
fn the_fault_of_an_audit_log_ends_when_it_can_be_written_and_the_log_says_what_it_misses() {
    let running = running();
    let [log, aside] = ["audit.ndjson", "away"].map(|name| running.dir.path().join(name));
    let mut client = running.client();
    client.add(&[line("a", 1)]).unwrap();
    fs::rename(&log, &aside).unwrap();
    for (name, id) in [("b", 2), ("c", 3)] {
        client.add(&[line(name, id)]).unwrap();
    }
    let faults = |client: &mut Client| client.status().unwrap().faults;
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(faults(&mut client), [Fault::AuditUnwritten]);
    fs::rename(&aside, &log).unwrap();
    let began = std::time::Instant::now();
    while !faults(&mut client).is_empty() {
        assert!(began.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(10));
    }
    client.add(&[line("d", 4)]).unwrap();
    let mut told = Vec::new();
    audit::verify(running.dir.path(), |entry| {
        told.push((entry.action.clone(), entry.outcome.clone()))
    })
    .unwrap();
    let told: Vec<_> = told.iter().map(|(action, outcome)| (&**action, &**outcome)).collect();
    let added = ("POST /v1/devices", "done");
    let missing = ("entries missing here, which could not be written: 2", "missing");
    assert_eq!(told, [added, missing, added]);
}

#[test]
fn requests_change_the_registry_and_reach_the_gateway() {
    let running = running();
    let mut client = running.client();
    assert_eq!(client.add(&[line("a", 1)]).unwrap(), 1);
    let lines: Vec<_> = (2..1_202).map(|i| line(&format!("n{i}"), i)).collect();
    assert_eq!(client.add(&lines).unwrap(), 1_200);
    let mut names = Vec::new();
    let listed = client.list(&DeviceQuery::default(), |device| {
        names.push(device.name);
        Ok::<_, ClientError>(())
    });
    listed.unwrap();
    assert_eq!((names.len(), names[0].as_str()), (1_201, "a"));
    assert!(names.is_sorted());
    let change = DeviceChange { add_tags: Some("x,y".into()), ..DeviceChange::default() };
    assert_eq!(client.relabel("n700", &change).unwrap().tags, ["x", "y"]);
    assert!(refused(client.relabel("nobody", &change)).contains("no device"));
    let odd = DeviceChange { group: Some("<b>".into()), ..DeviceChange::default() };
    assert!(refused(client.relabel("n700", &odd)).contains("a tag or a group is"));
    let found = |client: &mut Client, query: DeviceQuery| {
        let mut names = Vec::new();
        let listed = client.list(&query, |device| {
            names.push(device.name);
            Ok::<_, ClientError>(())
        });
        listed.map(|()| names)
    };
    let tagged = DeviceQuery { tag: Some("y".into()), ..DeviceQuery::default() };
    assert_eq!(found(&mut client, tagged).unwrap(), ["n700"]);
    let few = DeviceQuery { limit: Some(2), after: Some("n998".into()), ..DeviceQuery::default() };
    assert_eq!(found(&mut client, few).unwrap(), ["n999"]);
    let odd = DeviceQuery { mode: Some("telepathy".into()), ..DeviceQuery::default() };
    assert!(refused(found(&mut client, odd)).contains("mode: one of"));
    let limit = Duration::from_secs(20);
    let mut command = |payload: &str| client.command("a", payload.into(), limit);
    assert_eq!(command("0102").unwrap(), "0201");
    assert_eq!(refused(command("")), "a: the device reports failure (status 3)");
    assert_eq!(refused(command("64726f70")), "a: the device is not connected");
    assert!(refused(command("x")).contains("hexadecimal"));
    let keyed = || How { key: Some("k".into()), ..How::default() };
    let (queued, known) = client.queue("a", "01".into(), keyed()).unwrap();
    assert_eq!((queued.state, known), (CommandState::Queued, false));
    assert!(client.queue("a", "01".into(), keyed()).unwrap().1, "the same once more");
    assert!(refused(client.queue("a", "02".into(), keyed())).contains("another payload"));
    assert!(refused(client.queue("nobody", "02".into(), keyed())).contains("no device"));
    let mut listed = Vec::new();
    let of = |client: &mut Client, device, open, listed: &mut Vec<_>| {
        listed.clear();
        client.commands(device, open, |command| {
            listed.push(command.id);
            Ok::<_, ClientError>(())
        })
    };
    of(&mut client, Some("a"), true, &mut listed).unwrap();
    assert_eq!(listed, [queued.id]);
    of(&mut client, None, false, &mut listed).unwrap();
    assert_eq!(listed.len(), 4, "those that are over, too");
    of(&mut client, Some("n2"), false, &mut listed).unwrap();
    assert!(listed.is_empty());
    assert_eq!(client.cancel_command(queued.id).unwrap().state, CommandState::Cancelled);
    assert!(refused(client.cancel_command(queued.id)).contains("is over: cancelled"));
    assert!(refused(client.show_command(999)).contains("no command 999"));
    assert_eq!(client.show_command(queued.id).unwrap().payload, "01");
    client.end("a", End::Revoke).unwrap();
    assert!(refused(client.end("a", End::Revoke)).contains("revoked already"));
    assert_eq!(*running.gateway.revoked.lock().unwrap(), [DeviceId(1u64.to_be_bytes())]);
    assert!(refused(client.command("a", "01".into(), limit)).contains("revoked already"));
    assert_eq!(client.status().unwrap().devices, 1_200);
    assert_eq!(refused(client.reload()), "nothing was changed: line 3: no");
    client.end("a", End::Remove).unwrap();
    assert!(refused(client.show("a")).contains("no device of this name"));
    assert!(refused(client.show("../../health")).contains("characters"));
    assert_eq!(client.show("n2").unwrap().id, format!("{:016x}", 2));
    running.admin.shutdown().unwrap();
    assert!(Client::connect(running.dir.path()).unwrap().is_none());
}

#[test]
fn commands_that_come_by_an_upstream_are_looked_at_like_all_others() {
    use duet_upstream::{Asked, Taken};
    let running = running();
    running.client().add(&[line("a", 1), line("b", 2)]).unwrap();
    running.client().end("b", End::Revoke).unwrap();
    let taker = running.gateway.orders.lock().unwrap().clone().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let take = |body: &str, key: Option<&str>| {
        let (upstream, key) = ("cloud".to_owned(), key.map(str::to_owned));
        let asked = Asked { upstream, body: body.to_owned().into(), key };
        runtime.block_on(async { taker.take(asked).await.await })
    };
    let order = r#"{"device":"a","payload":"0102","ttl_ms":60000}"#;
    let Taken::Queued { answer, known: false } = take(order, Some("k")) else { panic!("refused") };
    let answer: api::QueuedCommand = serde_json::from_slice(&answer).unwrap();
    assert_eq!((answer.command.device.as_str(), answer.command.payload.as_str()), ("a", "0102"));
    let Taken::Queued { answer: again, known: true } = take(order, Some("k")) else {
        panic!("new")
    };
    let again: api::QueuedCommand = serde_json::from_slice(&again).unwrap();
    assert_eq!(again.command.id, answer.command.id);
    for (body, key, expected) in [
        (order, None, "needs a key"),
        (r#"{"device":"a","payload":"03"}"#, Some("k"), "another payload"),
        (r#"{"device":"nobody","payload":"03"}"#, Some("n"), "no device"),
        (r#"{"device":"b","payload":"03"}"#, Some("n"), "revoked already"),
        (r#"{"device":"a","payload":"x"}"#, Some("n"), "not hexadecimal"),
        (r#"{"device":"a"}"#, Some("n"), "missing field `payload`"),
        (r#"{"device":"a","payload":"03","when":1}"#, Some("n"), "unknown field `when`"),
        (r#"{"device":"../x","payload":"03"}"#, Some("n"), "characters"),
        (r#"{"device":"a","payload":"03","ttl_ms":0}"#, Some("n"), "thirty days"),
        (r#"{"device":"a","payload":"03","key":""}"#, None, "1 to 64 bytes"),
        ("\u{0}", Some("n"), "not a command"),
        (&"x".repeat(20_000), Some("n"), "longer than"),
    ] {
        let Taken::Refused { answer } = take(body, key) else { panic!("taken: {body}") };
        let said = String::from_utf8(answer).unwrap();
        assert!(said.contains(expected), "{body}: {said}");
    }
    let (mut done, mut refused) = (Vec::new(), 0);
    audit::verify(running.dir.path(), |entry| {
        if entry.who == "upstream cloud" {
            match entry.outcome.as_str() {
                "done" => done.push(entry.action.clone()),
                _ => refused += 1,
            }
        }
    })
    .unwrap();
    assert_eq!((done, refused), (vec!["command a".to_owned()], 12));
    drop(runtime);
    running.admin.shutdown().unwrap();
}

#[test]
fn a_bad_line_in_an_import_changes_nothing() {
    let running = running();
    let mut bad = line("b", 2);
    bad.key = Some("abc".into());
    let refused = running.client().add(&[line("a", 1), bad]);
    let Err(ClientError::Refused(Problem { error, device: Some(1), .. })) = refused else {
        panic!("{refused:?}")
    };
    assert_eq!(error, "b: key must be 64 hexadecimal digits");
    assert!(running.registry.is_empty().unwrap());
}

/// Sends raw bytes to the control socket; all that comes back.
fn raw(running: &Running, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(running.dir.path().join(SOCKET)).unwrap();
    // The gateway may hang up in the middle of what is too long.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8(answer).unwrap()
}

#[test]
fn what_is_no_request_is_refused() {
    let running = running();
    let post = |target: &str, body: &str| {
        let head = format!("POST {target} HTTP/1.1\r\nHost: duet\r\nConnection: close\r\n");
        raw(&running, format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes())
    };
    assert!(raw(&running, b"hello\n").starts_with("HTTP/1.1 400"));
    assert_eq!(raw(&running, b""), "");
    assert!(raw(&running, &vec![b'x'; 100_000]).contains("431"));
    let unknown = post("/v1/fly", "");
    assert!(unknown.starts_with("HTTP/1.1 404") && unknown.contains("openapi"), "{unknown}");
    assert!(post("/v1/status", "").starts_with("HTTP/1.1 405"));
    let device = post("/v1/devices", "{\"name\":3}");
    assert!(device.starts_with("HTTP/1.1 400") && device.contains("not a device"), "{device}");
    let long = post("/v1/devices", &"x".repeat(MAX_LINE_LEN + 1));
    assert!(long.starts_with("HTTP/1.1 413"), "{long}");
    let command = post("/v1/devices/a/command", "{\"payload\":\"\"}");
    assert!(command.contains("not a request: missing field"), "{command}");
    let late = post("/v1/devices/a/command", "{\"payload\":\"\",\"timeout_ms\":300001}");
    assert!(late.contains("at most 300000"), "{late}");
    let broken =
        raw(&running, b"POST /v1/devices HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{");
    assert!(!broken.contains("200 OK"), "{broken}");
    assert_eq!(running.client().status().unwrap().devices, 0);
}

#[test]
fn a_list_waits_for_its_reader() {
    let running = running();
    let lines: Vec<_> = (1..3_001).map(|i| line(&format!("n{i}"), i)).collect();
    let mut client = running.client();
    client.add(&lines).unwrap();
    let mut count = 0;
    let listed = client.list(&DeviceQuery::default(), |_| {
        if count % 1_000 == 0 {
            thread::sleep(Duration::from_millis(300));
        }
        count += 1;
        Ok::<_, ClientError>(())
    });
    listed.unwrap();
    assert_eq!(count, 3_000);
}

/// However many connections say nothing, or half of something, whoever asks how the gateway is hears it at once.
#[test]
fn silent_connections_keep_nobody_out() {
    let running = running();
    let starts: [&[u8]; 3] =
        [b"", b"GET /hea", b"POST /v1/devices HTTP/1.1\r\nContent-Length: 9\r\n\r\n{"];
    let socket = running.dir.path().join(SOCKET);
    let sockets: Vec<_> = (0..300)
        .map(|i| {
            let mut stream = UnixStream::connect(&socket).unwrap();
            // Those before may be turned out already.
            let _ = stream.write_all(starts[i % 3]);
            stream
        })
        .collect();
    let streams: Vec<_> = (0..300)
        .map(|i| {
            let mut stream = TcpStream::connect(running.admin.http()).unwrap();
            let _ = stream.write_all(starts[i % 3]);
            stream
        })
        .collect();
    let began = std::time::Instant::now();
    assert_eq!(running.client().status().unwrap().phase, Phase::Running);
    assert!(get(running.admin.http(), "/health").contains("200 OK"));
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    drop((sockets, streams));
}

/// A change of the registry that its disk holds up, here a transaction of someone else, holds up no probe.
#[test]
fn a_stuck_registry_delays_no_probe() {
    let running = running();
    let (registry, (held, hold)) = (Arc::clone(&running.registry), std::sync::mpsc::channel());
    let (release, released) = std::sync::mpsc::channel();
    let stuck = thread::spawn(move || {
        let devices = std::iter::once_with(move || {
            held.send(()).unwrap();
            released.recv().unwrap();
            line("slow", 1).read().unwrap()
        });
        registry.add_all(devices, 0).unwrap();
    });
    hold.recv().unwrap();
    let waiting: Vec<_> = (0..4)
        .map(|i| {
            let mut client = running.client();
            thread::spawn(move || client.add(&[line(&format!("n{i}"), 2 + i)]).unwrap())
        })
        .collect();
    thread::sleep(Duration::from_millis(100));
    let began = std::time::Instant::now();
    assert_eq!(running.client().status().unwrap().devices, 0);
    for path in ["/health", "/ready", "/metrics"] {
        assert!(get(running.admin.http(), path).contains("200 OK"), "{path}");
    }
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    release.send(()).unwrap();
    stuck.join().unwrap();
    waiting.into_iter().for_each(|client| assert_eq!(client.join().unwrap(), 1));
    assert_eq!(running.client().status().unwrap().devices, 5);
}

/// A renewed device's old credential ends by itself, and shards are told of it, which may have no room for mail.
#[test]
fn shards_that_do_not_hear_of_an_old_credentials_end_delay_no_probe() {
    let running = running();
    running.client().add(&[line("d", 1)]).unwrap();
    let unheard = running.gateway.revoked.lock().unwrap();
    running.registry.renew(line("d", 2).read().unwrap(), 1, 0).unwrap();
    let (view, old) = (running.registry.view().unwrap(), DeviceId(1_u64.to_be_bytes()));
    while view.lookup(&old).is_some() {
        thread::sleep(Duration::from_millis(10));
    }
    thread::sleep(Duration::from_millis(100));
    let mut stream = TcpStream::connect(running.admin.http()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    write!(stream, "GET /health HTTP/1.1\r\nHost: duet\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.contains("200 OK"), "{text}");
    drop(unheard);
    while *running.gateway.revoked.lock().unwrap() != [old] {
        thread::sleep(Duration::from_millis(10));
    }
}

/// Each endpoint of the document, asked through the router as if over TLS: nobody without a good token gets in, and a
/// viewer changes nothing.
#[tokio::test]
async fn every_endpoint_denies_whoever_may_not() {
    use axum::body::Body;
    use axum::http::{Request, StatusCode};
    use tower::Service as _;

    let running = running();
    let dir = tempfile::tempdir().unwrap();
    let tokens = Tokens::open(dir.path()).unwrap();
    let now_s = crate::identity::now_s();
    let made = |role: Role, from, end| {
        tokens.add(format!("{role}{end}").parse().unwrap(), role, from, end).unwrap().to_string()
    };
    let later = now_s + 1_000;
    let expired = made(Role::Admin, 0, 1);
    let [viewer, operator, admin] =
        [Role::Viewer, Role::Operator, Role::Admin].map(|role| made(role, now_s, later));
    let keep = Keep {
        tokens,
        audit: Audit::open(dir.path(), None).unwrap(),
        reload: Box::new(|| Err("no".into())),
        facts: tokio::sync::watch::channel(None).1,
        enrol: enrol_settings(dir.path()),
    };
    let view = running.registry.view().unwrap();
    let (registry, gateway) = (Arc::clone(&running.registry), running.gateway.clone());
    let plane = Arc::new(Plane::new(registry, view, gateway, install_telemetry(), keep));
    let (router, document) = api::router(&plane);
    let document = serde_json::to_value(&document).unwrap();
    assert_eq!(document["openapi"].as_str().map(|version| &version[..2]), Some("3."));
    let operations = document["paths"].as_object().unwrap().values();
    let operations = operations.flat_map(|item| item.as_object().unwrap().values());
    for answers in operations.filter_map(|operation| operation["responses"].as_object()) {
        for (status, answer) in answers {
            let said = answer["description"].as_str().is_some_and(|text| !text.is_empty());
            assert!(said, "{status}: {answer}");
        }
    }
    let mut endpoints = vec![("GET".to_owned(), "/openapi.json".to_owned())];
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            endpoints.push((method.to_uppercase(), path.replace("{name}", "a")));
        }
    }
    assert!(endpoints.len() >= 14, "{endpoints:?}");
    for (method, path) in endpoints {
        // Behind no role, but nothing without a token of its own.
        if path == "/v1/enrol" {
            continue;
        }
        let ask = |authorization: Option<String>| {
            let mut request = Request::builder().method(method.as_str()).uri(&path);
            if let Some(text) = authorization {
                request = request.header("authorization", text);
            }
            let mut request = request.body(Body::empty()).unwrap();
            let peer = "192.0.2.1:1".parse().unwrap();
            request.extensions_mut().insert(door::Door::Tls { peer });
            let mut router = router.clone();
            async move { router.call(request).await.unwrap().status() }
        };
        let wrong = "duet_00".to_owned();
        for bad in [
            None,
            Some(format!("Bearer {wrong}")),
            Some(format!("Bearer {expired}")),
            Some(admin.clone()),
        ] {
            assert_eq!(ask(bad).await, StatusCode::UNAUTHORIZED, "{method} {path}");
        }
        let as_role = |token: &str| ask(Some(format!("Bearer {token}")));
        let is_admins = ["/v1/tokens", "/v1/config", "/v1/export", "/v1/backup"]
            .iter()
            .any(|of_admins| path.starts_with(of_admins));
        let reads_only = method == "GET" && !is_admins;
        let is_denied = as_role(&viewer).await == StatusCode::FORBIDDEN;
        assert_eq!(is_denied, !reads_only, "viewer: {method} {path}");
        let is_denied = as_role(&operator).await == StatusCode::FORBIDDEN;
        assert_eq!(is_denied, is_admins, "operator: {method} {path}");
        let status = as_role(&admin).await;
        assert!(
            !matches!(status, StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED),
            "admin: {method} {path}"
        );
    }
    let (mut denied, mut exports) = (0, 0);
    let whole = audit::verify(dir.path(), |entry| {
        denied += u32::from(entry.outcome == "denied");
        exports += u32::from(entry.action == "GET /v1/export" && entry.outcome == "done");
    });
    let whole = whole.unwrap();
    assert_eq!(exports, 1, "who took all keys away stands in the log");
    assert!(denied >= 9 && whole.entries > u64::from(denied), "{denied} of {whole:?}");
}

#[test]
fn the_api_is_served_over_tls_to_whoever_has_a_token() {
    let dir = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let place = |name: &str| dir.path().join(name);
    fs::write(place("api.pem"), made.cert.pem()).unwrap();
    crate::identity::write_new(
        &place("api.key"),
        made.signing_key.serialize_pem().as_bytes(),
        0o600,
    )
    .unwrap();
    let (acceptor, _) = acceptor(&place("api.pem"), &place("api.key")).unwrap();
    let (_renew, acceptor) = watch::channel(acceptor);
    let running = running_with(Some(("127.0.0.1:0".parse().unwrap(), acceptor)));
    let token = running.client().add_token("looker", Role::Viewer, 60).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let config = Arc::new(config);
    let ask = |head: &str| {
        let name = "localhost".try_into().unwrap();
        let session = rustls::ClientConnection::new(Arc::clone(&config), name).unwrap();
        let socket = TcpStream::connect(running.admin.api().unwrap()).unwrap();
        let mut stream = rustls::StreamOwned::new(session, socket);
        write!(stream, "{head}Host: localhost\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    };
    let bearer = format!("Authorization: Bearer {}\r\n", *token);
    let status = ask(&format!("GET /v1/status HTTP/1.1\r\n{bearer}"));
    assert!(status.starts_with("HTTP/1.1 200") && status.contains("\"phase\""), "{status}");
    assert!(ask("GET /v1/status HTTP/1.1\r\n").starts_with("HTTP/1.1 401"));
    let denied = ask(&format!("DELETE /v1/devices/a HTTP/1.1\r\n{bearer}"));
    assert!(denied.starts_with("HTTP/1.1 403") && denied.contains("operator"), "{denied}");
    let plain = get(running.admin.http(), "/v1/status");
    assert!(plain.contains("404"), "the plain address has the probes alone: {plain}");
    // Whoever watches is sent away with the token.
    let watching = thread::scope(|scope| {
        let watched = scope.spawn(|| ask(&format!("GET /v1/live HTTP/1.1\r\n{bearer}")));
        thread::sleep(Duration::from_millis(500));
        running.client().revoke_token("looker").unwrap();
        watched.join().unwrap()
    });
    assert!(watching.contains("event: moment"), "{watching}");
    assert!(ask(&format!("GET /v1/status HTTP/1.1\r\n{bearer}")).starts_with("HTTP/1.1 401"));
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
    running.client().add(&[line("a", 1)]).unwrap();
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
    assert!(bind_private(&path).is_err());
    assert_eq!(fs::read(&path).unwrap(), b"precious");
}

#[test]
fn a_copy_for_a_backup_goes_with_the_one_who_asked_for_it_or_with_the_next_start() {
    let running = running();
    let dir = running.dir.path().join(".backup");
    // Killed: the kernel closes the connection.
    let mut killed = UnixStream::connect(running.dir.path().join(SOCKET)).unwrap();
    killed
        .write_all(b"POST /v1/backup HTTP/1.1\r\nHost: duet\r\nContent-Length: 0\r\n\r\n")
        .unwrap();
    let mut answer = Vec::new();
    while !String::from_utf8_lossy(&answer).contains("registry.redb") {
        let mut bytes = [0; 512];
        let read = killed.read(&mut bytes).unwrap();
        assert!(read > 0, "{}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&bytes[..read]);
    }
    assert!(dir.join("registry.redb").exists());
    drop(killed);
    // The next one has its own, for as long as it needs it.
    let taken = running.client().backup(|copy| {
        std::thread::sleep(Duration::from_secs(3));
        (copy.to_owned(), fs::read(copy).unwrap().len())
    });
    let (copy, len) = taken.unwrap();
    assert!(len > 1_000 && copy.starts_with(&dir));
    let began = Instant::now();
    while dir.exists() {
        assert!(began.elapsed() < Duration::from_secs(30), "the copy stays");
        std::thread::sleep(Duration::from_millis(20));
    }

    let Running { dir, registry, gateway, admin } = running;
    admin.shutdown().unwrap();
    // The gateway itself was killed.
    fs::create_dir(copy.parent().unwrap()).unwrap();
    fs::write(&copy, "keys").unwrap();
    let options = Options {
        state: dir.path().into(),
        http: "127.0.0.1:0".parse().unwrap(),
        save_marks_every: Duration::from_millis(50),
        facts: tokio::sync::watch::channel(None).1,
        reload: Box::new(|| Err("no".into())),
        enrol: enrol_settings(dir.path()),
        audit_max_bytes: 1 << 20,
        api: None,
    };
    let admin = start(options, registry, gateway, install_telemetry()).unwrap();
    assert!(!copy.exists());
    admin.shutdown().unwrap();
}
