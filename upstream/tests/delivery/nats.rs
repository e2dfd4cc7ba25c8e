use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener};
use std::time::{Duration, Instant};

use async_nats::jetstream::stream::{Config, PersistenceMode};
use async_nats::jetstream::{self, Context};

use crate::servers::Server;
use crate::world::{World, indices, whole_and_in_order};

/// Looks at a server from outside.
pub(crate) struct Eye {
    runtime: tokio::runtime::Runtime,
    context: Context,
}

impl Eye {
    pub(crate) fn new(port: u16) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let context = runtime.block_on(async {
            jetstream::new(async_nats::connect(format!("127.0.0.1:{port}")).await.unwrap())
        });
        Self { runtime, context }
    }

    pub(crate) fn make(&self, config: Config) {
        self.runtime.block_on(self.context.create_stream(config)).unwrap();
    }

    pub(crate) fn change(&self, config: Config) {
        self.runtime.block_on(self.context.update_stream(config)).unwrap();
    }

    /// The messages of a stream: subject, name and text, in order.
    fn messages(&self, stream: &str) -> Vec<(String, String, String)> {
        self.runtime.block_on(async {
            let stream = self.context.get_stream(stream).await.unwrap();
            let mut found = Vec::new();
            for sequence in 1..=stream.get_info().await.unwrap().state.last_sequence {
                let message = stream.get_raw_message(sequence).await.unwrap();
                let name = message.headers.get("Nats-Msg-Id").unwrap().to_string();
                let text = String::from_utf8(message.payload.to_vec()).unwrap();
                found.push((message.subject.to_string(), name, text));
            }
            found
        })
    }

    pub(crate) fn lines(&self, stream: &str) -> String {
        self.messages(stream).into_iter().map(|(_, _, text)| text).collect()
    }
}

fn stream(subjects: &str) -> Config {
    Config { name: "DUET".to_owned(), subjects: vec![subjects.to_owned()], ..Config::default() }
}

fn settings(port: u16, more: &str) -> String {
    let url = format!("url = \"nats://127.0.0.1:{port}\"");
    format!("name = \"cloud\"\nkind = \"nats\"\n{url}\n{more}\n")
}

#[test]
fn everything_arrives_once_and_the_stream_says_what_that_is_worth() {
    let Some(server) = Server::nats("") else { return };
    let eye = Eye::new(server.port);
    eye.make(stream("readings"));
    let mut world = World::new(5_000, &settings(server.port, "subject = \"readings\""));
    world.start();
    let report = world.until_empty();
    assert_eq!(indices(&eye.lines("DUET")), (0..5_000).collect::<Vec<_>>());
    assert!(report.worth.contains("stream DUET: survives a crash"), "{}", report.worth);
    assert!(report.worth.contains("sync_interval: always"), "{}", report.worth);
    // A cursor that is lost costs repetitions, which the stream knows by their names.
    world.stop();
    duet_upstream::forget(&world.state().join("upstream"), "cloud").unwrap();
    world.start();
    world.until("all again", |report| report.delivered == 5_000);
    assert_eq!(indices(&eye.lines("DUET")), (0..5_000).collect::<Vec<_>>());
}

#[test]
fn a_stream_that_acknowledges_before_it_writes_is_told() {
    let Some(server) = Server::nats("") else { return };
    let eye = Eye::new(server.port);
    eye.make(Config { persist_mode: Some(PersistenceMode::Async), ..stream("readings") });
    let mut world = World::new(10, &settings(server.port, "subject = \"readings\""));
    world.start();
    let report = world.until_empty();
    assert!(report.worth.contains("survives nothing"), "{}", report.worth);
}

#[test]
fn a_subject_for_each_device() {
    let Some(server) = Server::nats("") else { return };
    let eye = Eye::new(server.port);
    eye.make(stream("site.>"));
    let mut world =
        World::new(600, &settings(server.port, "subject = \"site.{device}.{channel}\""));
    world.start();
    world.until_empty();
    let mut by_subject: HashMap<String, String> = HashMap::new();
    for (subject, name, text) in eye.messages("DUET") {
        assert!(name.ends_with(&format!(":{subject}")), "{name}");
        *by_subject.entry(subject).or_default() += &text;
    }
    assert_eq!(by_subject.len(), 3);
    for (at, device) in ["pump-7", "pump-8", "valve"].iter().enumerate() {
        let got = indices(&by_subject[&format!("site.{device}.1")]);
        assert_eq!(got, (at as u64..600).step_by(3).collect::<Vec<_>>());
    }
}

#[test]
fn a_server_that_is_killed_and_one_that_is_paused_lose_nothing() {
    let Some(mut server) = Server::nats("") else { return };
    Eye::new(server.port).make(stream("readings"));
    let more = "subject = \"readings\"\nanswer_timeout_ms = 1000\nlate_after_s = 2";
    let mut world = World::new(0, &settings(server.port, more));
    world.start();
    let mut count = 0;
    for round in 0..4 {
        world.push(count..count + 20_000);
        count += 20_000;
        world.until("some", |report| report.next > u64::from(count) - 20_000);
        let began = Instant::now();
        if round % 2 == 0 {
            server.kill();
        } else {
            server.pause();
        }
        world.push(count..count + 10);
        count += 10;
        let report = world.until("lateness", |report| report.late);
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        assert!(report.backlog >= 10);
        if round % 2 == 0 {
            server.restart();
        } else {
            server.go_on();
        }
        world.until("all", |report| report.next == u64::from(count));
    }
    whole_and_in_order(&indices(&Eye::new(server.port).lines("DUET")), count.into());
}

#[test]
fn each_setting_that_is_wrong_gives_a_clear_message_and_the_backlog_waits() {
    let Some(server) = Server::nats("authorization { user: duet, password: right }\n") else {
        return;
    };
    let port = server.port;
    let password = "user = \"duet\"\npassword_file = ";
    for (more, expected) in [
        ("subject = \"s\"".to_owned(), "authorization violation"),
        (format!("subject = \"s\"\n{password}\"wrong\""), "authorization violation"),
        (format!("subject = \"s\"\n{password}\"none\""), "none: No such file"),
        (format!("subject = \"s\"\n{password}\"right\""), "no stream takes subject s"),
        ("subject = \"s\"\ncredentials_file = \"right\"".to_owned(), "right"),
    ] {
        let mut world = World::new(10, &settings(port, &more));
        world.secret("right", "right\n");
        world.secret("wrong", "wrong\n");
        world.start();
        let report = world.until(expected, |report| report.problem.is_some());
        let problem = report.problem.unwrap();
        assert!(problem.contains(expected), "{more}: {problem}");
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(world.report().backlog, 10);
    }
}

#[test]
fn where_nobody_listens_the_cause_is_said_once() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut world = World::new(10, &settings(free.port(), "subject = \"s\""));
    world.start();
    let problem = world.until("refused", |report| report.problem.is_some()).problem.unwrap();
    assert_eq!(problem.matches("refused").count(), 1, "{problem}");
}

#[test]
fn a_message_that_is_too_large_is_halved() {
    let Some(server) = Server::nats("max_payload: 8192\n") else { return };
    let eye = Eye::new(server.port);
    eye.make(stream("readings"));
    let mut world = World::new(1_000, &settings(server.port, "subject = \"readings\""));
    world.start();
    let report = world.until_empty();
    assert_eq!(report.parked, 0);
    let mut arrived = indices(&eye.lines("DUET"));
    arrived.sort_unstable();
    assert_eq!(arrived, (0..1_000).collect::<Vec<_>>());
}

#[test]
fn a_stream_that_is_deleted_is_told_and_one_that_is_made_again_gets_what_waits() {
    let Some(server) = Server::nats("max_payload: 4096\n") else { return };
    let eye = Eye::new(server.port);
    eye.make(stream("readings"));
    let mut world = World::new(100, &settings(server.port, "subject = \"readings\""));
    world.start();
    world.until_empty();
    eye.runtime.block_on(eye.context.delete_stream("DUET")).unwrap();
    world.push(100..200);
    // One that no message may hold: it is put aside alone.
    world.memory.push("valve", 1, &[b'x'; 5_000]);
    let report = world.until("the problem", |report| {
        report.problem.as_deref().is_some_and(|problem| problem.contains("no stream takes subject"))
    });
    assert!(report.backlog >= 100, "{report:?}");
    eye.make(stream("readings"));
    let report = world.until("the rest", |report| report.next == 201);
    assert_eq!(report.parked, 1);
    let mut arrived = indices(&eye.lines("DUET"));
    arrived.sort_unstable();
    assert_eq!(arrived, (100..200).collect::<Vec<_>>());
}

/// A server that lies is tried again like one that is away: what it says ends a connection at most.
#[test]
fn whatever_a_server_says_the_upstream_tries_again() {
    const INFO: &str = "INFO {\"version\":\"2.12.0\",\"headers\":true,\"max_payload\":1048576}\r\n";
    let most = u64::MAX;
    for (first, later) in [
        ("-ERR\r\n".to_owned(), String::new()),
        (format!("MSG x 1 {most}\r\n"), String::new()),
        ("INFO {}\r\n".to_owned(), "-ERR\r\n".to_owned()),
        (INFO.to_owned(), "INFO\r\n".to_owned()),
        (INFO.to_owned(), format!("PONG\r\nHMSG x 1 {most} {most}\r\n")),
        (INFO.to_owned(), format!("PONG\r\nMSG x 1 {most}\r\nx")),
        (INFO.to_owned(), "PONG\r\n-ERR\r\n-ERR 'Gone'\r\n".to_owned()),
        (INFO.to_owned(), format!("PONG\r\n{}", "x".repeat(100_000))),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let more = "subject = \"readings\"\nanswer_timeout_ms = 500";
        let mut world = World::new(10, &settings(listener.local_addr().unwrap().port(), more));
        world.start();
        let mut streams = Vec::new();
        for _ in 0..3 {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(first.as_bytes()).unwrap();
            let mut hello = [0; 1_024];
            if !later.is_empty() && stream.read(&mut hello).is_ok_and(|read| read > 0) {
                // What was said already may have ended it.
                let _ = stream.write_all(later.as_bytes());
            }
            let _ = stream.shutdown(Shutdown::Write);
            streams.push(stream);
        }
        let report = world.until("the problem", |report| report.problem.is_some());
        assert_eq!(report.backlog, 10, "{first} {later}");
    }
}
