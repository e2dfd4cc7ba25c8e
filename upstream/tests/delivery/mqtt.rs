use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::servers::Server;
use crate::world::{World, indices, whole_and_in_order};

fn settings(port: u16, more: &str) -> String {
    let url = format!("url = \"mqtt://127.0.0.1:{port}\"");
    format!("name = \"broker\"\nkind = \"mqtt\"\n{url}\ntopic = \"site/readings\"\n{more}\n")
}

/// Collects what is published under `site/`, at QoS 0, until it is dropped or the broker is.
struct Subscriber {
    text: Arc<Mutex<String>>,
    stream: TcpStream,
}

impl Subscriber {
    fn new(port: u16) -> Self {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        // CONNECT: MQTT 5, clean start, no keep-alive, no properties, client "eye".
        stream
            .write_all(&[
                0x10, 16, 0, 4, b'M', b'Q', b'T', b'T', 5, 2, 0, 0, 0, 0, 3, b'e', b'y', b'e',
            ])
            .unwrap();
        assert_eq!(packet(&mut stream).unwrap().0 >> 4, 2);
        // SUBSCRIBE 1: no properties, "site/#", QoS 0.
        stream
            .write_all(&[0x82, 12, 0, 1, 0, 0, 6, b's', b'i', b't', b'e', b'/', b'#', 0])
            .unwrap();
        assert_eq!(packet(&mut stream).unwrap().0 >> 4, 9);
        let text = Arc::new(Mutex::new(String::new()));
        let (own, mut reader) = (Arc::clone(&text), stream.try_clone().unwrap());
        std::thread::spawn(move || {
            while let Some((kind, body)) = packet(&mut reader) {
                if kind >> 4 == 3 {
                    own.lock().unwrap().push_str(payload(&body));
                }
            }
        });
        Self { text, stream }
    }

    fn text(&self) -> String {
        self.text.lock().unwrap().clone()
    }

    /// Once so many lines have come.
    fn until(&self, lines: usize) -> String {
        let began = Instant::now();
        loop {
            let text = self.text();
            if text.lines().count() >= lines {
                return text;
            }
            assert!(began.elapsed() < Duration::from_secs(30), "{} lines", text.lines().count());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        // The broker may be gone.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}

fn varint(mut next: impl FnMut() -> Option<u8>) -> Option<usize> {
    let mut number = 0;
    for place in 0..4 {
        let byte = next()?;
        number |= usize::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            break;
        }
    }
    Some(number)
}

fn packet(stream: &mut TcpStream) -> Option<(u8, Vec<u8>)> {
    let mut byte = || {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        Some(byte[0])
    };
    let kind = byte()?;
    let mut body = vec![0; varint(&mut byte)?];
    stream.read_exact(&mut body).ok()?;
    Some((kind, body))
}

/// The payload of a PUBLISH at QoS 0.
fn payload(body: &[u8]) -> &str {
    let topic = usize::from(u16::from_be_bytes([body[0], body[1]]));
    let mut at = 2 + topic;
    let properties = varint(|| {
        at += 1;
        body.get(at - 1).copied()
    });
    std::str::from_utf8(&body[at + properties.unwrap()..]).unwrap()
}

#[test]
fn everything_arrives_in_order_at_a_subscriber() {
    let Some(server) = Server::mosquitto("allow_anonymous true\n") else { return };
    let subscriber = Subscriber::new(server.port);
    let mut world = World::new(5_000, &settings(server.port, ""));
    world.start();
    let report = world.until_empty();
    assert_eq!((report.parked, report.problem), (0, None));
    assert_eq!(indices(&subscriber.until(5_000)), (0..5_000).collect::<Vec<_>>());
}

#[test]
fn what_nobody_has_subscribed_to_is_not_delivered() {
    let Some(server) = Server::mosquitto("allow_anonymous true\n") else { return };
    let mut world = World::new(1_000, &settings(server.port, ""));
    world.start();
    let report = world.until("the problem", |report| report.problem.is_some());
    let problem = report.problem.unwrap();
    assert!(problem.contains("nobody has subscribed"), "{problem}");
    assert_eq!((report.backlog, report.delivered), (1_000, 0));
    let subscriber = Subscriber::new(server.port);
    world.until_empty();
    whole_and_in_order(&indices(&subscriber.until(1_000)), 1_000);
}

#[test]
fn that_counts_as_delivered_where_the_settings_say_so() {
    let Some(server) = Server::mosquitto("allow_anonymous true\n") else { return };
    let mut world = World::new(1_000, &settings(server.port, "accept_no_subscriber = true"));
    world.start();
    assert_eq!(world.until_empty().delivered, 1_000);
}

#[test]
fn a_broker_that_is_killed_or_paused_is_found_again() {
    let Some(mut server) = Server::mosquitto("allow_anonymous true\n") else { return };
    let more = "answer_timeout_ms = 1000\nlate_after_s = 2";
    let mut world = World::new(0, &settings(server.port, more));
    world.start();
    let mut text = String::new();
    let mut count = 0;
    for round in 0..3 {
        let subscriber = Subscriber::new(server.port);
        world.push(count..count + 1_000);
        count += 1_000;
        world.until("all", |report| report.next == u64::from(count));
        text += &subscriber.text();
        drop(subscriber);
        if round % 2 == 0 {
            server.kill();
        } else {
            server.pause();
        }
        world.push(count..count + 10);
        count += 10;
        world.until("lateness", |report| report.late && report.problem.is_some());
        if round % 2 == 0 {
            server.restart();
        } else {
            server.go_on();
        }
    }
    let subscriber = Subscriber::new(server.port);
    world.until("all", |report| report.next == u64::from(count));
    std::thread::sleep(Duration::from_millis(200));
    text += &subscriber.text();
    // What a broker acknowledges it may lose when it is killed before its subscriber has it; here they have all.
    whole_and_in_order(&indices(&text), count.into());
}

#[test]
fn each_setting_that_is_wrong_gives_a_clear_message() {
    let Some(server) = Server::mosquitto("allow_anonymous false\n") else { return };
    let nats = Server::nats("");
    let user = "user = \"duet\"\npassword_file = \"password\"";
    let mut cases = vec![
        (settings(server.port, ""), "not authorized"),
        (settings(server.port, user), "not authorized"),
    ];
    if let Some(nats) = &nats {
        cases.push((settings(nats.port, ""), "does not speak MQTT 5"));
    }
    for (settings, expected) in cases {
        let mut world = World::new(10, &settings);
        world.secret("password", "wrong\n");
        world.start();
        let report = world.until(expected, |report| report.problem.is_some());
        let problem = report.problem.unwrap();
        assert!(problem.contains(expected), "{problem}");
        assert_eq!(world.report().backlog, 10);
    }
}
