//! Settings that change while the gateway runs.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use duet_protocol::profile::{KeySource, Mode, Profile, Transport};

use crate::world::{Client, Running, Scratch};

const PROFILE: Profile = Profile { mode: Mode::RegisteredId, source: KeySource::Ephemeral };

fn hang_up(gateway: &Running) {
    let pid = gateway.child.id().to_string();
    assert!(Command::new("kill").args(["-HUP", &pid]).status().unwrap().success());
}

/// Reads what the gateway says until a line has the words.
fn wait_for(log: &std::path::Path, words: &str) -> String {
    let began = std::time::Instant::now();
    loop {
        let text = fs::read_to_string(log).unwrap();
        if let Some(line) = text.lines().find(|line| line.contains(words)) {
            return line.to_owned();
        }
        assert!(began.elapsed().as_secs() < 20, "{words} was not said: {text}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

#[test]
fn a_running_gateway_takes_changed_settings_and_certificates_or_none() {
    let scratch = Scratch::new();
    let mut device = scratch.device(1, PROFILE, Transport::Datagram);
    let log = scratch.0.path().join("log");
    let gateway = scratch.run_with("127.0.0.1:0", |command| {
        command.stderr(fs::File::create(&log).unwrap());
    });
    let settings = scratch.state().join("duet.toml");
    assert_eq!(scratch.duet(&["config", "reload"]), (true, "nothing has changed\n".into()));

    // Wrong: it is said where, and all stays.
    fs::write(&settings, "shards = 3\n[session]\nlifetime_s = 5\n").unwrap();
    let (done, said) = scratch.duet(&["config", "reload"]);
    assert!(!done && said.contains("nothing was changed"), "{said}");
    assert!(said.contains("line 3, column 1: session.lifetime_s must be 60 to"), "{said}");
    hang_up(&gateway);
    assert!(wait_for(&log, "nothing was changed").contains("reload: "));

    // Right: what can be taken is, and the rest is named.
    let new = "[gateway]\nkey_id = 1\ncertificate = \"new.pem\"\nkey = \"new.key\"\n";
    let old =
        "[gateway.retiring]\nkey_id = 0\ncertificate = \"gateway.pem\"\nkey = \"gateway.key\"\n";
    scratch.gateway_certificate("new", 90);
    fs::write(&settings, format!("io = \"epoll\"\n{new}{old}[session]\nlifetime_s = 7200\n"))
        .unwrap();
    let (done, said) = scratch.duet(&["config", "reload"]);
    assert!(done, "{said}");
    for line in [
        "applied: session.lifetime_s = 7200 (was 86400)",
        "applied: gateway.key_id = 1 (was 0)",
        "applied: the gateway's certificates",
        "needs a restart: io = \"epoll\" (was \"auto\")",
    ] {
        assert!(said.lines().any(|said| said == line), "{line}: {said}");
    }
    // Credentials that are made from now on name the new one.
    let (done, said) = scratch.duet(&["device", "add", "later", "--registered-id"]);
    assert!(done && said.contains("\"key_id\":1,"), "{said}");
    let works = |device| {
        let mut client = Client::new(device, gateway.address, Transport::Datagram);
        client.device.send_reading(0, 1, b"x", true).unwrap();
        client.device.open(0);
        assert!(client.drive(|client| !client.confirmed.is_empty()));
    };
    // With the certificate that is retiring, and, from the settings as they are now, with the new one.
    works(device);
    hang_up(&gateway);
    assert!(wait_for(&log, "needs a restart").contains("io"));
    assert!(scratch.duet(&["status"]).0);
    gateway.terminate();
    device = scratch.device(2, PROFILE, Transport::Datagram);
    let gateway = scratch.run("127.0.0.1:0");
    let mut client = Client::new(device, gateway.address, Transport::Datagram);
    client.device.send_reading(0, 1, b"x", true).unwrap();
    client.device.open(0);
    assert!(client.drive(|client| !client.confirmed.is_empty()));
    gateway.terminate();
}

/// As at a start: a limit below the number of shards lets each of them work.
#[test]
fn a_limit_below_the_number_of_shards_still_lets_devices_in_after_a_reload() {
    let scratch = Scratch::new();
    let device = scratch.device(1, PROFILE, Transport::Datagram);
    let gateway = scratch.run("127.0.0.1:0");
    let settings = scratch.state().join("duet.toml");
    fs::write(&settings, "[limits]\nmax_sessions = 1\nmax_pending = 1\n").unwrap();
    let (done, said) = scratch.duet(&["config", "reload"]);
    assert!(done && said.contains("applied: limits.max_sessions = 1"), "{said}");
    let mut client = Client::new(device, gateway.address, Transport::Datagram);
    client.device.send_reading(0, 1, b"x", true).unwrap();
    client.device.open(0);
    assert!(client.drive(|client| !client.confirmed.is_empty()));
    gateway.terminate();
}

/// Upstreams and quotas change without a restart; one that still misses readings cannot vanish.
#[test]
fn a_running_gateway_passes_readings_on_by_changed_settings() {
    let scratch = Scratch::new();
    let mut device = Some(scratch.device(1, PROFILE, Transport::Datagram));
    let gateway = scratch.run("127.0.0.1:0");
    let settings = scratch.state().join("duet.toml");
    let first = fs::read_to_string(&settings).unwrap();
    let write = |more: &str| fs::write(&settings, format!("{first}{more}")).unwrap();
    let mut client = Client::new(device.take().unwrap(), gateway.address, Transport::Datagram);
    client.device.open(0);
    let mut store = |payload: &[u8]| {
        let before = client.confirmed.len();
        client.device.send_reading(client.now(), 1, payload, true).unwrap();
        assert!(client.drive(|client| client.confirmed.len() > before));
    };
    store(b"before");

    let file = |name: &str| {
        format!("[[upstream]]\nname = \"{name}\"\nkind = \"file\"\ndir = \"{name}\"\n")
    };
    write(&file("a"));
    let (done, said) = scratch.duet(&["config", "reload"]);
    assert!(done && said.contains("applied: upstream a (new)"), "{said}");
    store(b"after");
    let arrived = |name: &str, word: &str| {
        let dir = scratch.state().join(name);
        let files = fs::read_dir(dir).into_iter().flatten().flatten();
        files.into_iter().any(|file| fs::read_to_string(file.path()).unwrap().contains(word))
    };
    let wait = |name: &str, word: &str| {
        let began = std::time::Instant::now();
        while !arrived(name, word) {
            assert!(began.elapsed().as_secs() < 20, "{word} did not arrive in {name}");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    };
    wait("a", "before");
    wait("a", "after");
    // Nobody listens there: what is stored from now on has not reached it, so it may not go.
    let nowhere = "[[upstream]]\nname = \"b\"\nkind = \"webhook\"\nurl = \"http://127.0.0.1:1/\"\n";
    let quota = first.replace("[quota]\n", "[quota]\nreadings_per_s = 5\n");
    fs::write(&settings, format!("{quota}{}{nowhere}", file("a"))).unwrap();
    let (done, said) = scratch.duet(&["config", "reload"]);
    assert!(done && said.contains("applied: upstream b (new)"), "{said}");
    assert!(said.contains("applied: quota.readings_per_s = 5 (was 0)"), "{said}");
    store(b"waiting");
    write(&file("a"));
    let (done, said) = scratch.duet(&["config", "reload"]);
    assert!(!done && said.contains("upstream b is gone from the settings"), "{said}");
    store(b"goes on");
    wait("a", "goes on");
    gateway.terminate();
}

/// A password, a token or a certificate is often replaced where it lies.
#[test]
fn a_reload_takes_what_lies_in_the_files_that_an_upstream_names() {
    let hook = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", hook.local_addr().unwrap());
    // What each request brings to be let in.
    let (tell, tokens) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for stream in hook.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            let mut line = String::new();
            let mut length = 0;
            while stream.read_line(&mut line).is_ok_and(|read| read > 2) {
                let lower = line.to_lowercase();
                if let Some(token) = lower.trim().strip_prefix("authorization: bearer ") {
                    let _ = tell.send(token.to_owned());
                }
                length = match lower.trim().strip_prefix("content-length: ") {
                    Some(length) => length.parse().unwrap(),
                    None => length,
                };
                line.clear();
            }
            stream.read_exact(&mut vec![0; length]).unwrap();
            let answer = b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n";
            let _ = stream.get_mut().write_all(answer);
        }
    });
    let scratch = Scratch::new();
    let device = scratch.device(1, PROFILE, Transport::Datagram);
    let place = scratch.state().join("token");
    let put = |token: &str| {
        let draft = scratch.state().join("token.new");
        fs::write(&draft, token).unwrap();
        fs::set_permissions(&draft, fs::Permissions::from_mode(0o600)).unwrap();
        fs::rename(&draft, &place).unwrap();
    };
    put("first");
    let settings = scratch.state().join("duet.toml");
    let upstream = format!("kind = \"webhook\"\nurl = \"{url}\"\ntoken_file = \"token\"\n");
    fs::write(&settings, format!("[[upstream]]\nname = \"hook\"\n{upstream}")).unwrap();
    let gateway = scratch.run("127.0.0.1:0");
    let mut client = Client::new(device, gateway.address, Transport::Datagram);
    client.device.open(0);
    let mut store = || {
        let before = client.confirmed.len();
        client.device.send_reading(client.now(), 1, b"x", true).unwrap();
        assert!(client.drive(|client| client.confirmed.len() > before));
    };
    let patience = std::time::Duration::from_secs(30);
    store();
    assert_eq!(tokens.recv_timeout(patience).unwrap(), "first");
    assert_eq!(scratch.duet(&["config", "reload"]), (true, "nothing has changed\n".into()));
    for token in ["second", "third"] {
        put(token);
        let (done, said) = scratch.duet(&["config", "reload"]);
        assert!(done && said.contains("upstream hook (its files changed)"), "{said}");
        store();
        // What was on its way may arrive twice, and with the one of before.
        while tokens.recv_timeout(patience).unwrap() != token {}
    }
    gateway.terminate();
}

#[test]
fn check_names_what_would_keep_a_gateway_from_starting() {
    let scratch = Scratch::new();
    let listen = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = listen.local_addr().unwrap();
    let settings = scratch.state().join("duet.toml");
    let write = |more: &str| {
        fs::write(
            &settings,
            format!("listen = \"127.0.0.1:0\"\n[metrics]\nlisten = \"{taken}\"\n{more}"),
        )
    };
    write("").unwrap();
    let (good, said) = scratch.duet(&["check"]);
    assert!(!good && said.contains("FAIL metrics"), "{said}");
    drop(listen);
    let (good, said) = scratch.duet(&["check"]);
    assert!(good && said.contains("ok   certificate"), "{said}");
    fs::remove_file(scratch.state().join("gateway.key")).unwrap();
    let (good, said) = scratch.duet(&["check"]);
    assert!(!good && said.contains("gateway.key"), "{said}");
    write("[queues]\nsubmissions = 0\n").unwrap();
    let (good, said) = scratch.duet(&["check"]);
    assert!(!good && said.contains("line 5, column 1: queues.submissions must be"), "{said}");
    write("[queues]\nsubmissions = 2048\n").unwrap();
    let (good, said) = scratch.duet(&["config", "show", "--origin"]);
    assert!(
        good && said
            .lines()
            .any(|line| line.starts_with("queues.submissions") && line.ends_with("line 5")),
        "{said}"
    );
    assert!(
        said.lines().any(|line| line.starts_with("shards") && line.ends_with("default")),
        "{said}"
    );
}
