//! The fault campaign: an upstream that fails in each way that upstreams do, while readings come. `DUET_CAMPAIGN` is how many
//! readings each fault sees (5,000 without), and the table that is printed stands in `docs/delivery.md`.

use std::collections::{HashMap, HashSet};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_nats::jetstream::stream::{Config, DiscardPolicy};

use crate::hook::{Hook, OK, Reply};
use crate::nats::Eye;
use crate::servers::Server;
use crate::world::{World, indices};

/// What lies between a client and a server: nothing, a delay, or a cut after so many bytes of answers.
struct Between {
    port: u16,
    delay_ms: Arc<AtomicU64>,
    /// After so many bytes from the server every connection is cut, and so on.
    cut_after: Arc<AtomicU64>,
    /// The present connection.
    present: Arc<Mutex<Option<TcpStream>>>,
}

impl Between {
    fn new(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let between = Self {
            port: listener.local_addr().unwrap().port(),
            delay_ms: Arc::default(),
            cut_after: Arc::new(AtomicU64::new(u64::MAX)),
            present: Arc::default(),
        };
        let (delay, cut, present) = (
            Arc::clone(&between.delay_ms),
            Arc::clone(&between.cut_after),
            Arc::clone(&between.present),
        );
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(("127.0.0.1", server)) else { continue };
                let (a, b) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                *present.lock().unwrap() = Some(client.try_clone().unwrap());
                let (delay, cut) = (Arc::clone(&delay), Arc::clone(&cut));
                std::thread::spawn(move || carry(client, server, &AtomicU64::new(0), u64::MAX));
                let cut = cut.load(Ordering::Relaxed);
                std::thread::spawn(move || carry(b, a, &delay, cut));
            }
        });
        between
    }

    fn cut(&self) {
        let present = self.present.lock().unwrap().take();
        present.unwrap().shutdown(Shutdown::Both).unwrap();
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, delay_ms: &AtomicU64, mut left: u64) {
    let mut bytes = [0; 4_096];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        std::thread::sleep(Duration::from_millis(delay_ms.load(Ordering::Relaxed)));
        // In the middle of an answer.
        let part = count.min(usize::try_from(left).unwrap_or(usize::MAX));
        left -= part as u64;
        if to.write_all(&bytes[..part]).is_err() || left == 0 {
            break;
        }
    }
    for stream in [from, to] {
        // The other side may have done it.
        let _ = stream.shutdown(Shutdown::Both);
    }
}

struct Row {
    fault: &'static str,
    readings: u32,
    lost: usize,
    twice: usize,
    /// Of a device, against the order of the spool, the first time that they came.
    disordered: usize,
    took: Duration,
}

/// Compares what arrived with what was sent.
fn row(fault: &'static str, readings: u32, text: &str, began: Instant) -> Row {
    let arrived = indices(text);
    let (mut seen, mut last) = (HashSet::new(), HashMap::new());
    let (mut twice, mut disordered) = (0, 0);
    for index in arrived {
        if !seen.insert(index) {
            twice += 1;
            continue;
        }
        let before = last.insert(index % 3, index);
        disordered += usize::from(before.is_some_and(|before| before > index));
    }
    let lost = readings as usize - seen.len();
    Row { fault, readings, lost, twice, disordered, took: began.elapsed() }
}

fn count() -> u32 {
    std::env::var("DUET_CAMPAIGN").map_or(5_000, |text| text.parse().unwrap())
}

fn stream() -> Config {
    // So that a repetition shows here and is not thrown away by the server.
    let duplicate_window = Duration::from_millis(100);
    Config {
        name: "DUET".to_owned(),
        subjects: vec!["readings".to_owned()],
        duplicate_window,
        ..Config::default()
    }
}

fn settings(port: u16, in_flight: usize) -> String {
    format!(
        "name = \"cloud\"\nkind = \"nats\"\nurl = \"nats://127.0.0.1:{port}\"\nsubject = \"readings\"\n\
         answer_timeout_ms = 1000\nin_flight = {in_flight}\n"
    )
}

/// A world whose upstream is a NATS server behind something, with a third of the readings there already.
fn nats(work: impl FnOnce(&mut Server, &Between, &World)) -> Option<(String, Instant)> {
    let mut server = Server::nats("")?;
    Eye::new(server.port).make(stream());
    let between = Between::new(server.port);
    let mut world = World::new(0, &settings(between.port, 1));
    let began = Instant::now();
    world.start();
    world.push(0..count() / 3);
    world.until("a third", |report| report.next == u64::from(count() / 3));
    work(&mut server, &between, &world);
    world.until("all", |report| report.next == u64::from(count()));
    Some((Eye::new(server.port).lines("DUET"), began))
}

#[test]
fn whatever_an_upstream_does_nothing_is_lost_and_the_order_kept() {
    let (third, all) = (count() / 3, count());
    let mut rows = Vec::new();
    let mut add = |fault, ended: Option<(String, Instant)>| {
        rows.extend(ended.map(|(text, began)| row(fault, all, &text, began)));
    };
    let fails = |world: &World| drop(world.until("that it fails", |one| one.problem.is_some()));
    add(
        "killed (SIGKILL), started again",
        nats(|server, _, world| {
            world.push(third..all);
            world.until("some more", |report| report.next > u64::from(third));
            server.kill();
            fails(world);
            server.restart();
        }),
    );
    add(
        "paused (SIGSTOP)",
        nats(|server, _, world| {
            server.pause();
            world.push(third..all);
            fails(world);
            server.go_on();
        }),
    );
    add(
        "connections cut in the middle of answers",
        nats(|_, between, world| {
            // For those to come; the present one ends by that.
            between.cut_after.store(4_000, Ordering::Relaxed);
            between.cut();
            world.push(third..all);
        }),
    );
    add(
        "slow (50 ms an answer)",
        nats(|_, between, world| {
            between.delay_ms.store(50, Ordering::Relaxed);
            world.push(third..third + (all - third) / 2);
            world.until("half", |report| report.next == u64::from(third + (all - third) / 2));
            between.delay_ms.store(0, Ordering::Relaxed);
            world.push(third + (all - third) / 2..all);
        }),
    );
    add(
        "away while all readings come",
        nats(|server, _, world| {
            server.kill();
            world.push(third..all);
            fails(world);
            world.until("lateness", |report| report.backlog == u64::from(all - third));
            server.restart();
        }),
    );
    add("full (its stream's limit), then has room", full());
    add(
        "refuses one batch in three with 503",
        hook(|posts| posts % 3 == 1, Reply::Status(503, "", "no")),
    );
    add("takes a batch and closes without an answer", hook(|posts| posts % 3 == 1, Reply::Reset));
    println!("| fault of the upstream | readings | lost | twice | out of order | took |");
    println!("|---|---|---|---|---|---|");
    for Row { fault, readings, lost, twice, disordered, took } in &rows {
        let took = took.as_secs_f64();
        println!("| {fault} | {readings} | {lost} | {twice} | {disordered} | {took:.1} s |");
    }
    assert!(rows.iter().all(|row| row.lost == 0 && row.disordered == 0), "see the table");
    assert!(rows.len() >= 2, "those without a server, at least");
}

/// A stream that has reached its limit and refuses what is new.
fn full() -> Option<(String, Instant)> {
    let server = Server::nats("")?;
    let eye = Eye::new(server.port);
    let limited = Config { max_bytes: 100_000, discard: DiscardPolicy::New, ..stream() };
    eye.make(limited.clone());
    let mut world = World::new(count(), &settings(server.port, 1));
    let began = Instant::now();
    world.start();
    let report = world.until("that it is full", |report| report.problem.is_some());
    assert!(report.problem.unwrap().contains("maximum bytes exceeded"));
    eye.change(Config { max_bytes: -1, ..limited });
    world.until("all", |report| report.next == u64::from(count()));
    Some((eye.lines("DUET"), began))
}

/// A web hook that does something odd to some posts.
fn hook(odd: fn(u32) -> bool, reply: Reply) -> Option<(String, Instant)> {
    let mut posts = 0;
    let hook = Hook::new(move |_| {
        posts += 1;
        match (&reply, odd(posts)) {
            (Reply::Status(status, header, body), true) => Reply::Status(*status, header, body),
            (Reply::Reset, true) => Reply::Reset,
            _ => OK,
        }
    });
    let mut world = World::new(count(), &hook.settings(""));
    let began = Instant::now();
    world.start();
    world.until("all", |report| report.next == u64::from(count()));
    Some((hook.lines(), began))
}

/// A receiver that acknowledges and loses: nobody can know that upstream, but whoever reads on downstream can.
#[test]
fn what_an_upstream_acknowledges_and_loses_shows_downstream() {
    let mut posts = 0;
    let hook = Hook::new(move |_| {
        posts += 1;
        if posts % 5 == 2 { Reply::Status(204, "", "") } else { OK }
    });
    let mut world = World::new(count(), &hook.settings(""));
    world.start();
    world.until("all", |report| report.next == u64::from(count()));
    let (mut next, mut missed) = (0, 0);
    for post in hook.taken() {
        let number = |name: &str| post.header(name).map(|value| value.parse::<u64>().unwrap());
        let (first, last) = (number("duet-first").unwrap(), number("duet-last").unwrap());
        // What the gateway believes to have been given before is more than what came.
        let before = number("duet-previous-last").map_or(0, |last| last + 1);
        missed += before - next;
        assert!(before >= next && first >= before);
        next = last + 1;
    }
    let arrived = indices(&hook.lines()).len() as u64;
    assert!(missed > 0, "nothing was lost");
    assert_eq!(
        arrived + missed + (u64::from(count()) - next),
        u64::from(count()),
        "each loss shows"
    );
}
