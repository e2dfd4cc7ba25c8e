//! Commands that come by NATS and by MQTT: each is taken once, acknowledged when it is, and answered.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use async_nats::jetstream::stream::Config;
use async_nats::jetstream::{self, Context};
use futures_util::StreamExt;

use crate::servers::Server;
use crate::world::{PATIENCE, World};

/// Somebody who sends commands over NATS.
struct Sender {
    runtime: tokio::runtime::Runtime,
    client: async_nats::Client,
    context: Context,
}

impl Sender {
    fn new(port: u16) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let client = runtime.block_on(async_nats::connect(format!("127.0.0.1:{port}"))).unwrap();
        let context = runtime.block_on(async { jetstream::new(client.clone()) });
        Self { runtime, client, context }
    }

    fn make(&self) {
        for (name, subject) in [("READINGS", "readings"), ("ORDERS", "site.commands")] {
            let subjects = vec![subject.to_owned()];
            let config = Config { name: name.to_owned(), subjects, ..Config::default() };
            self.runtime.block_on(self.context.create_stream(config)).unwrap();
        }
    }

    /// Sends one; the stream has it when this returns.
    fn send(&self, id: Option<&str>, reply: Option<&str>, body: &str) {
        let mut headers = HeaderMap::new();
        id.into_iter().for_each(|id| headers.insert("Nats-Msg-Id", id));
        reply.into_iter().for_each(|reply| headers.insert("Duet-Reply", reply));
        self.runtime.block_on(async {
            let body = body.to_owned().into();
            let sent = self.context.publish_with_headers("site.commands", headers, body);
            sent.await.unwrap().await.unwrap();
        });
    }

    /// Sends one and waits for the answer.
    fn ask(&self, id: Option<&str>, body: &str) -> String {
        let inbox = self.client.new_inbox();
        let mut answers = self.runtime.block_on(self.client.subscribe(inbox.clone())).unwrap();
        self.send(id, Some(&inbox), body);
        let answer = async { tokio::time::timeout(PATIENCE, answers.next()).await };
        let answer = self.runtime.block_on(answer).unwrap().unwrap();
        String::from_utf8(answer.payload.to_vec()).unwrap()
    }

    /// How many commands nobody has acknowledged.
    fn open(&self) -> u64 {
        self.runtime.block_on(async {
            let stream = self.context.get_stream("ORDERS").await.unwrap();
            let info = stream.consumer_info("duet-cloud-site_commands").await.unwrap();
            info.num_pending + u64::try_from(info.num_ack_pending).unwrap()
        })
    }
}

fn nats(port: u16) -> String {
    format!(
        "name = \"cloud\"\nkind = \"nats\"\nurl = \"nats://127.0.0.1:{port}\"\nsubject = \"readings\"\n\
         commands = \"site.commands\"\nanswer_timeout_ms = 2000\n"
    )
}

fn until(what: &str, mut wished: impl FnMut() -> bool) {
    let began = Instant::now();
    while !wished() {
        assert!(began.elapsed() < PATIENCE, "{what} never came");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn bodies(world: &World) -> Vec<String> {
    let taken = world.book.taken();
    taken.into_iter().map(|(_, body)| String::from_utf8(body).unwrap()).collect()
}

#[test]
fn a_command_over_nats_is_taken_once_and_answered() {
    let Some(server) = Server::nats("") else { return };
    let sender = Sender::new(server.port);
    sender.make();
    // Sent before anybody listened.
    sender.send(None, None, "first");
    let mut world = World::new(10, &nats(server.port));
    world.start();
    assert_eq!(sender.ask(Some("k-7"), "open"), "took k-7");
    assert_eq!(sender.ask(None, "?"), "no");
    // No subject of the server's own is a place for answers, and none of these holds up the next.
    for odd in ["$JS.API.STREAM.DELETE.ORDERS", "a b", ">", ""] {
        sender.send(None, Some(odd), "odd");
    }
    sender.send(None, None, &"?".repeat(100_000));
    assert!(sender.ask(None, "last").ends_with(|digit: char| digit.is_ascii_digit()));
    assert_eq!(bodies(&world), ["first", "open", "odd", "odd", "odd", "odd", "last"]);
    until("the acknowledgements", || sender.open() == 0);
    assert_eq!((world.book.asked(), world.report().commands), (9, 7));

    // What cannot be stored comes again.
    world.book.put_off(true);
    (0..5).for_each(|n| sender.send(None, None, &format!("again {n}")));
    world.until("that it cannot be stored", |report| report.commands_problem.is_some());
    // Whoever starts anew goes on where it was, and in order.
    world.stop();
    world.book.put_off(false);
    (5..10).for_each(|n| sender.send(None, None, &format!("again {n}")));
    world.start();
    until("what was not stored, and what was sent meanwhile", || bodies(&world).len() == 17);
    assert_eq!(bodies(&world)[7..], (0..10).map(|n| format!("again {n}")).collect::<Vec<_>>());
    until("the acknowledgement", || sender.open() == 0);
}

#[test]
fn a_server_that_is_killed_while_nothing_comes_is_listened_to_again() {
    let Some(mut server) = Server::nats("") else { return };
    Sender::new(server.port).make();
    let mut world = World::new(10, &nats(server.port));
    world.start();
    world.until_empty();
    let mut count = 0;
    for _ in 0..3 {
        let sender = Sender::new(server.port);
        for _ in 0..50 {
            sender.send(None, None, &count.to_string());
            count += 1;
        }
        // With some acknowledgements on their way.
        until("some", || bodies(&world).len() > count - 40);
        server.kill();
        world.until("that it is gone", |report| report.commands_problem.is_some());
        server.restart();
    }
    let sender = Sender::new(server.port);
    sender.send(None, None, &count.to_string());
    until("all", || bodies(&world).len() > count);
    assert_eq!(bodies(&world), (0..=count).map(|n| n.to_string()).collect::<Vec<_>>());
    until("the acknowledgements", || sender.open() == 0);
    world.until("that it is well", |report| report.commands_problem.is_none());
}

#[test]
fn each_setting_of_commands_that_is_wrong_gives_a_clear_message_and_readings_leave() {
    let Some(server) = Server::nats("") else { return };
    let sender = Sender::new(server.port);
    sender.make();
    let mut world = World::new(10, &nats(server.port).replace("site.commands", "none"));
    world.start();
    world.until_empty();
    let report = world.until("the problem", |report| report.commands_problem.is_some());
    let problem = report.commands_problem.unwrap();
    assert!(problem.contains("no stream takes subject none"), "{problem}");
    assert_eq!(world.report().problem, None);
    world.stop();
    // Somebody else's consumer has the name.
    sender.runtime.block_on(async {
        let stream = sender.context.get_stream("ORDERS").await.unwrap();
        let config = jetstream::consumer::pull::Config {
            durable_name: Some("duet-cloud-site_commands".to_owned()),
            ack_policy: jetstream::consumer::AckPolicy::None,
            ..jetstream::consumer::pull::Config::default()
        };
        stream.create_consumer(config).await.unwrap();
    });
    let mut world = World::new(10, &nats(server.port));
    world.start();
    let report = world.until("the problem", |report| report.commands_problem.is_some());
    assert!(report.commands_problem.unwrap().contains("remove it, and it is made anew"));
    assert_eq!(world.book.asked(), 0);
}

/// Somebody who sends commands over MQTT 5.
struct Client(TcpStream);

fn text(out: &mut Vec<u8>, text: &[u8]) {
    out.extend_from_slice(&u16::try_from(text.len()).unwrap().to_be_bytes());
    out.extend_from_slice(text);
}

impl Client {
    fn new(port: u16) -> Self {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut body = vec![0, 4, b'M', b'Q', b'T', b'T', 5, 2, 0, 0, 0];
        text(&mut body, b"sender");
        let mut client = Self(stream.try_clone().unwrap());
        client.send(0x10, &body);
        assert_eq!(client.packet().0 >> 4, 2);
        // SUBSCRIBE to answers, QoS 0.
        let mut body = vec![0, 1, 0];
        text(&mut body, b"answers");
        body.push(0);
        client.send(0x82, &body);
        assert_eq!(client.packet().0 >> 4, 9);
        stream.flush().unwrap();
        client
    }

    fn send(&mut self, kind: u8, body: &[u8]) {
        let mut out = vec![kind];
        let mut length = body.len();
        loop {
            let low = u8::try_from(length & 0x7f).unwrap();
            length >>= 7;
            out.push(if length == 0 { low } else { low | 0x80 });
            if length == 0 {
                break;
            }
        }
        out.extend_from_slice(body);
        self.0.write_all(&out).unwrap();
    }

    fn packet(&mut self) -> (u8, Vec<u8>) {
        let mut head = [0; 2];
        self.0.read_exact(&mut head).unwrap();
        assert!(head[1] < 0x80, "a short one");
        let mut body = vec![0; head[1].into()];
        self.0.read_exact(&mut body).unwrap();
        (head[0], body)
    }

    /// Sends one at QoS 1; the broker has it when this returns.
    fn command(&mut self, correlation: Option<&[u8]>, payload: &[u8]) {
        let mut properties = vec![0x08];
        text(&mut properties, b"answers");
        if let Some(correlation) = correlation {
            properties.push(0x09);
            text(&mut properties, correlation);
        }
        let mut body = Vec::new();
        text(&mut body, b"site/commands");
        body.extend_from_slice(&[0, 9, u8::try_from(properties.len()).unwrap()]);
        body.extend_from_slice(&properties);
        body.extend_from_slice(payload);
        self.send(0x32, &body);
        while self.packet().0 >> 4 != 4 {}
    }

    /// The next answer: its end, which is the payload.
    fn answer(&mut self) -> String {
        loop {
            let (kind, body) = self.packet();
            if kind >> 4 == 3 {
                return String::from_utf8_lossy(&body).into_owned();
            }
        }
    }
}

fn mqtt(port: u16) -> String {
    format!(
        "name = \"broker\"\nkind = \"mqtt\"\nurl = \"mqtt://127.0.0.1:{port}\"\ntopic = \"site/readings\"\n\
         commands = \"site/commands\"\naccept_no_subscriber = true\nanswer_timeout_ms = 2000\n"
    )
}

#[test]
fn a_command_over_mqtt_is_taken_once_and_answered() {
    let Some(mut server) = Server::mosquitto("allow_anonymous true\n") else { return };
    let mut world = World::new(10, &mqtt(server.port));
    world.start();
    world.until_empty();
    let mut client = Client::new(server.port);
    // Until the subscription is there, the broker has nobody to keep a command for.
    until("the subscription", || {
        client.command(Some(b"k-1"), b"open");
        !world.book.taken().is_empty()
    });
    let answer = client.answer();
    assert!(answer.ends_with("took k-1") && answer.contains("k-1"), "{answer}");
    client.command(None, b"nameless");
    until("the refusal", || client.answer().ends_with("no"));

    // While nobody is there it waits at the broker.
    world.stop();
    (2..20)
        .for_each(|n| client.command(Some(format!("k-{n}").as_bytes()), n.to_string().as_bytes()));
    world.book.put_off(true);
    world.start();
    until("that it cannot be stored", || world.report().commands_problem.is_some());
    assert!(world.report().commands_problem.unwrap().contains("not now"));
    world.book.put_off(false);
    until("all", || bodies(&world).len() == 19);
    let keys: Vec<_> = world.book.taken().into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys, (1..20).map(|n| format!("k-{n}")).collect::<Vec<_>>());

    // A broker that forgets us says so, and is subscribed to again.
    world.until("that it is well", |report| report.commands_problem.is_none());
    server.kill();
    world.until("that it is gone", |report| report.commands_problem.is_some());
    server.restart();
    world.until("that it is back", |report| report.commands_problem.is_none());
    assert!(world.said.lock().unwrap().join("\n").contains("has forgotten this client"));
    let mut client = Client::new(server.port);
    client.command(Some(b"k-20"), b"after");
    until("one more", || bodies(&world).len() == 20);
}

/// What is not said ends the waiting, too: here nobody answers the first time.
#[test]
fn a_broker_that_is_silent_is_asked_again() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut world = World::new(0, &mqtt(listener.local_addr().unwrap().port()));
    std::thread::spawn(move || {
        let mut silent = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            // Only whoever listens for commands keeps a session (flags without a clean start).
            let mut hello = [0; 512];
            let length = stream.read(&mut hello).unwrap_or(0);
            if hello[9] & 2 != 0 || length == 0 {
                continue;
            }
            if silent.is_empty() {
                silent.push(stream);
                continue;
            }
            stream.write_all(&[0x20, 3, 0, 0, 0, 0x90, 4, 0, 1, 0, 1]).unwrap();
            std::thread::spawn(move || while stream.read(&mut hello).is_ok_and(|read| read > 0) {});
        }
    });
    world.start();
    let report = world.until("the silence", |report| report.commands_problem.is_some());
    assert!(report.commands_problem.unwrap().contains("no connection within"));
    world.until("that it hears", |report| report.commands_problem.is_none());
}
