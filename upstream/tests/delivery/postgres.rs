//! A real PostgreSQL: each reading is there once, whatever is killed.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use duet_upstream::Report;
use tokio_postgres::{Client, NoTls};

use crate::servers::{PASSWORD, Server};
use crate::world::{PATIENCE, World};

/// Looks at a database from outside.
struct Eye {
    runtime: tokio::runtime::Runtime,
    client: Client,
}

impl Eye {
    fn new(port: u16) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let client = runtime.block_on(async {
            let began = Instant::now();
            let mut config = tokio_postgres::Config::new();
            config
                .host("127.0.0.1")
                .port(port)
                .user("postgres")
                .password(PASSWORD)
                .dbname("postgres");
            loop {
                match config.connect(NoTls).await {
                    Ok((client, connection)) => {
                        tokio::spawn(connection);
                        return client;
                    }
                    // It recovers after a kill.
                    Err(error) => assert!(began.elapsed() < PATIENCE, "{error}"),
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        Self { runtime, client }
    }

    fn run(&self, sql: &str) {
        self.runtime.block_on(self.client.batch_execute(sql)).unwrap();
    }

    /// The payloads in the order of their indices, and the indices in the order in which they came.
    fn readings(&self, table: &str) -> Vec<(i64, String)> {
        let sql =
            format!("SELECT index, convert_from(payload, 'UTF8') FROM {table} ORDER BY index");
        let rows = self.runtime.block_on(self.client.query(&sql, &[])).unwrap();
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    }

    fn exactly(&self, table: &str, count: u32) {
        let expected: Vec<_> = (0..count).map(|n| (i64::from(n), n.to_string())).collect();
        let found = self.readings(table);
        assert_eq!(found.len(), expected.len());
        assert_eq!(found, expected);
    }
}

fn settings(port: u16, more: &str) -> String {
    let url = format!("url = \"postgres://127.0.0.1:{port}/postgres?sslmode=disable\"");
    let user = "user = \"postgres\"\npassword_file = \"password\"";
    format!("name = \"table\"\nkind = \"postgres\"\n{url}\n{user}\nrequired = true\n{more}\n")
}

fn world(readings: u32, settings: &str) -> World {
    let world = World::new(readings, settings);
    world.secret("password", &format!("{PASSWORD}\n"));
    world.secret("wrong", "wrong\n");
    world
}

fn all(count: u32) -> impl Fn(&Report) -> bool {
    move |report| report.next == u64::from(count)
}

fn signal(signal: &str, process: i32) {
    let sent = Command::new("kill").args([signal, &process.to_string()]).status();
    assert!(sent.unwrap().success());
}

/// So that primary keys do not do what the cursor has to do: without one, a repetition would stand in the table twice.
fn without_key(eye: &Eye) {
    eye.run("ALTER TABLE duet_readings DROP CONSTRAINT duet_readings_pkey");
}

#[test]
fn each_reading_is_there_once_whatever_becomes_of_the_cursor_and_of_the_database() {
    let Some(mut server) = Server::postgres("") else { return };
    let more = "answer_timeout_ms = 2000\nlate_after_s = 2";
    let mut world = world(3_000, &settings(server.port, more));
    world.start();
    let report = world.until_empty();
    assert!(
        report
            .worth
            .contains("each reading once; what is committed survives a crash and a power cut")
    );
    Eye::new(server.port).exactly("duet_readings", 3_000);
    without_key(&Eye::new(server.port));

    // Our own cursor is lost: the table's decides.
    world.stop();
    duet_upstream::forget(&world.state().join("upstream"), "table").unwrap();
    world.push(3_000..3_100);
    world.start();
    world.until("the rest", all(3_100));
    Eye::new(server.port).exactly("duet_readings", 3_100);

    // Killed with batches on their way, again and again.
    let mut count = 3_100;
    for _ in 0..4 {
        world.push(count..count + 30_000);
        count += 30_000;
        world.until("some", |report| report.next > u64::from(count) - 29_000);
        server.kill();
        world.until("that it is gone", |report| report.problem.is_some());
        server.restart();
    }
    world.until("all", all(count));
    // A backend that hangs in the middle of a transaction, with its locks, and goes on when nobody waits for it any more.
    let eye = Eye::new(server.port);
    world.push(count..count + 30_000);
    count += 30_000;
    world.until("some", |report| report.next > u64::from(count) - 29_000);
    let sql = "SELECT pid FROM pg_stat_activity WHERE application_name = 'duet table'";
    let backend: i32 = eye.runtime.block_on(eye.client.query_one(sql, &[])).unwrap().get(0);
    signal("-STOP", backend);
    world.push(count..count + 100);
    count += 100;
    world.until("that it hangs", |report| report.problem.is_some());
    signal("-CONT", backend);
    world.until("all", all(count));
    Eye::new(server.port).exactly("duet_readings", count);

    // The database is an older one: what is missing there comes again.
    world.stop();
    let eye = Eye::new(server.port);
    eye.run("DELETE FROM duet_readings WHERE index >= 2000; UPDATE duet_readings_cursor SET last = 1999");
    world.start();
    world.until("what was missing", |report| report.delivered == u64::from(count) - 2_000);
    eye.exactly("duet_readings", count);
    let said = world.said.lock().unwrap().join("\n");
    assert!(said.contains("now ends before 2000"), "{said}");

    // And one whose cursor somebody threw away.
    world.stop();
    eye.run("DELETE FROM duet_readings_cursor");
    world.push(count..count + 10);
    count += 10;
    world.start();
    world.until("all", all(count));
    eye.exactly("duet_readings", count);

    // Beyond the spool's end: another spool's story.
    world.stop();
    eye.run("UPDATE duet_readings_cursor SET last = 10000000");
    world.start();
    let report = world.until("the problem", |report| report.problem.is_some());
    let problem = report.problem.unwrap();
    assert!(problem.contains("beyond the spool's end"), "{problem}");
}

/// Stands between the two, and garbles the first transactions' beginnings, as if a cancellation had hit them.
fn garbler(to: u16, mut beginnings: u32) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (mut client, mut server) =
                (client.unwrap(), TcpStream::connect(("127.0.0.1", to)).unwrap());
            let (mut answers, mut back) =
                (server.try_clone().unwrap(), client.try_clone().unwrap());
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut answers, &mut back);
                let _ = back.shutdown(std::net::Shutdown::Both);
            });
            let mut bytes = [0; 65_536];
            while let Ok(length @ 1..) = client.read(&mut bytes) {
                let asked = &mut bytes[..length];
                let begin = asked.windows(6).position(|word| word == b"BEGIN;");
                if let Some(at) = begin.filter(|_| beginnings > 0) {
                    asked[at] = b'?';
                    beginnings -= 1;
                }
                if server.write_all(asked).is_err() {
                    break;
                }
            }
            let _ = server.shutdown(std::net::Shutdown::Both);
        }
    });
    port
}

/// Whoever cancels what is under way may hit the beginning of a transaction: what was asked behind it must not be carried
/// out by itself.
#[test]
fn where_no_transaction_begins_nothing_is_carried_out() {
    let Some(server) = Server::postgres("") else { return };
    let mut world = world(700, &settings(garbler(server.port, 3), ""));
    world.start();
    world.until("all", all(700));
    Eye::new(server.port).exactly("duet_readings", 700);
    let said = world.said.lock().unwrap().join("\n");
    assert!(said.contains("syntax error"), "{said}");
}

/// A server, or whoever stands in its place, that says of each type that it is an array of another one, which nobody knows;
/// and how many it has told of.
fn endless_types() -> (u16, Arc<AtomicU32>) {
    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
        [&[kind], &length[..], body].concat()
    }
    fn columns(types: &[u32]) -> Vec<u8> {
        let column = |of: &u32| {
            [&b"c\0"[..], &[0; 6], &of.to_be_bytes(), &(-1_i16).to_be_bytes(), &[255; 4], &[0, 1]]
                .concat()
        };
        let count = u16::try_from(types.len()).unwrap().to_be_bytes();
        message(b'T', &[&count[..], &types.iter().flat_map(column).collect::<Vec<_>>()].concat())
    }
    fn answer(client: &mut TcpStream, told: &AtomicU32) -> std::io::Result<()> {
        let ready = message(b'Z', b"I");
        let mut kind = [0; 1];
        let read = |client: &mut TcpStream, kind: &mut [u8]| {
            client.read_exact(kind)?;
            let mut length = [0; 4];
            client.read_exact(&mut length)?;
            let mut body = vec![0; usize::try_from(u32::from_be_bytes(length)).unwrap() - 4];
            client.read_exact(&mut body)?;
            Ok::<_, std::io::Error>(body)
        };
        read(client, &mut [])?;
        client.write_all(&[message(b'R', &[0; 4]), ready.clone()].concat())?;
        let (mut known, mut newest, mut out) = (Vec::new(), 100_000_u32, Vec::new());
        loop {
            let body = read(client, &mut kind)?;
            match kind[0] {
                b'Q' => client.write_all(&[message(b'C', b"SET\0"), ready.clone()].concat())?,
                b'P' => {
                    known = body;
                    out.extend(message(b'1', &[]));
                }
                b'D' if known.windows(7).any(|word| word == b"typname") => {
                    out.extend(message(b't', &[0, 1, 0, 0, 0, 26]));
                    out.extend(columns(&[19, 18, 26, 26, 26, 19, 26]));
                }
                b'D' => {
                    out.extend(message(b't', &[0, 0]));
                    out.extend(columns(&[newest, 25, 25, 16]));
                }
                b'B' => out.extend(message(b'2', &[])),
                b'E' => {
                    newest += 1;
                    told.fetch_add(1, Ordering::Relaxed);
                    let number = |number: u32| [&[0, 0, 0, 4], &number.to_be_bytes()[..]].concat();
                    let text = vec![0, 0, 0, 1, b'b'];
                    let row = [
                        vec![0, 7],
                        text.clone(),
                        text.clone(),
                        number(newest),
                        vec![255; 4],
                        number(0),
                        text,
                        number(0),
                    ];
                    out.extend(
                        [message(b'D', &row.concat()), message(b'C', b"SELECT 1\0")].concat(),
                    );
                }
                _ => {
                    out.extend_from_slice(&ready);
                    client.write_all(&std::mem::take(&mut out))?;
                }
            }
        }
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let told = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&told);
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let count = Arc::clone(&count);
            std::thread::spawn(move || answer(&mut client.unwrap(), &count));
        }
    });
    (port, told)
}

/// The client asks for each type within the one before, in the stack of the thread that serves all upstreams.
#[test]
fn a_server_whose_types_never_end_ends_its_connection_and_not_the_process() {
    let (port, told) = endless_types();
    let mut world = world(10, &settings(port, ""));
    world.start();
    let problem = world.until("the problem", |report| report.problem.is_some()).problem.unwrap();
    assert!(problem.contains("connection closed"), "{problem}");
    assert!(told.load(Ordering::Relaxed) > 50, "it was asked for one type after the other");
}

/// Not a test by itself: the process that the next one kills.
#[test]
#[ignore = "is run by another test, in a process of its own"]
fn worker_process() {
    let settings = std::env::var("DUET_TEST_SETTINGS").unwrap();
    let mut world = world(60_000, &settings);
    world.start();
    world.until("all", all(60_000));
}

fn spawn_worker(settings: &str) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["postgres::worker_process", "--exact", "--ignored"]);
    command.env("DUET_TEST_SETTINGS", settings).stdout(Stdio::null()).spawn().unwrap()
}

#[test]
fn a_process_that_is_killed_leaves_each_reading_once() {
    let Some(server) = Server::postgres("") else { return };
    let settings = settings(server.port, "");
    let eye = Eye::new(server.port);
    let mut keyed = true;
    for kill in 1..=6 {
        let mut child = spawn_worker(&settings);
        let began = Instant::now();
        let wanted = 7_000 * kill;
        loop {
            assert!(began.elapsed() < PATIENCE, "nothing arrives");
            let sql = "SELECT coalesce((SELECT sum(last) FROM duet_readings_cursor), -1)::bigint";
            let last = eye.runtime.block_on(eye.client.query_one(sql, &[]));
            let last = last.map_or(-1, |row| row.get::<_, i64>(0));
            if last >= 0 && keyed {
                without_key(&eye);
                keyed = false;
            }
            if last > wanted {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(spawn_worker(&settings).wait().unwrap().success());
    eye.exactly("duet_readings", 60_000);
}

#[test]
fn what_a_table_refuses_is_put_aside_alone_and_the_rest_stays_in_order() {
    let Some(server) = Server::postgres("") else { return };
    let eye = Eye::new(server.port);
    let mut world = world(1_000, &settings(server.port, "table = \"site.readings\""));
    eye.run("CREATE SCHEMA site");
    world.start();
    world.until_empty();
    eye.run(
        "ALTER TABLE site.readings ADD CHECK (payload NOT IN ('1500', '2999')), ADD came serial",
    );
    world.push(1_000..3_000);
    world.until("all", all(3_000));
    assert_eq!(world.until("both aside", |report| report.parked == 2).backlog, 0);
    let found = eye.readings("site.readings");
    assert_eq!(found.len(), 2_998);
    assert!(found.iter().all(|(index, _)| *index != 1_500 && *index != 2_999));
    let sql = "SELECT count(*) FROM (SELECT index < lag(index) OVER (ORDER BY came) AS back FROM site.readings) AS o WHERE back";
    let back: i64 = eye.runtime.block_on(eye.client.query_one(sql, &[])).unwrap().get(0);
    assert_eq!(back, 0, "rows came in another order than the spool's");
    // What was put aside is no reason to begin anew.
    world.stop();
    world.push(3_000..3_001);
    world.start();
    world.until("one more", all(3_001));
    assert_eq!((world.report().parked, world.report().delivered), (0, 1));
    let said = world.said.lock().unwrap().join("\n");
    assert!(said.contains("reading 1500 is refused") && said.contains("23514"), "{said}");
    // An administrator's own index may keep what a device sent twice out.
    eye.run("CREATE UNIQUE INDEX once ON site.readings (payload)");
    world.push(10..11);
    world.push(3_001..3_002);
    world.until("the repetition aside", |report| report.parked == 1 && report.next == 3_003);
}

#[test]
fn each_setting_that_is_wrong_gives_a_clear_message_and_the_backlog_waits() {
    let Some(server) = Server::postgres("") else { return };
    let eye = Eye::new(server.port);
    eye.run("CREATE ROLE guest LOGIN PASSWORD 'right'; CREATE TABLE other (spool uuid)");
    eye.run("CREATE TABLE odd (LIKE other); CREATE TABLE odd_cursor (spool uuid, last bigint)");
    eye.run(
        "CREATE TABLE typed (spool uuid, index bigint, device text, id uuid, type text, channel int, received timestamptz, \
         measured timestamptz, again boolean, payload text, facts jsonb); CREATE TABLE typed_cursor (LIKE odd_cursor)",
    );
    eye.run(
        "CREATE TABLE small (LIKE typed); ALTER TABLE small ALTER payload TYPE bytea USING NULL::bytea; \
         CREATE TABLE small_cursor (spool uuid UNIQUE, last int, changed timestamptz)",
    );
    let good = settings(server.port, "");
    let port = server.port.to_string();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    for (settings, expected) in [
        (good.replace(&port, &free.to_string()), "refused"),
        (good.replace("127.0.0.1", "nowhere.invalid"), "nowhere.invalid"),
        (good.replace("?sslmode=disable", ""), "end the url with ?sslmode=disable"),
        (good.replace("/postgres?", "/none?"), "database \"none\" does not exist (3D000)"),
        (good.replace("\"password\"", "\"wrong\""), "password authentication failed"),
        (good.replace("\"password\"", "\"absent\""), "absent: No such file"),
        (good.replace("user = \"postgres\"", "user = \"nobody\""), "authentication failed"),
        (format!("{good}table = \"none.readings\""), "readings.sql"),
        (format!("{good}table = \"odd\""), "column \"index\" does not exist"),
        (
            format!("{good}table = \"typed\""),
            "column payload of table typed is text, and must be bytea",
        ),
        (format!("{good}table = \"small\""), "table small_cursor: error deserializing column 0"),
    ] {
        let mut world = world(10, &settings);
        world.start();
        let report = world.until(expected, |report| report.problem.is_some());
        let problem = report.problem.unwrap();
        assert!(problem.contains(expected), "{expected}: {problem}");
        assert_eq!((world.report().backlog, world.report().parked), (10, 0));
    }
    // A guest who may not make tables is told how an administrator does it.
    let guest = good
        .replace("user = \"postgres\"", "user = \"guest\"")
        .replace("\"password\"", "\"guest\"");
    let mut world = world(10, &guest);
    world.secret("guest", "right\n");
    eye.run("REVOKE CREATE ON SCHEMA public FROM PUBLIC");
    world.start();
    let report = world.until("the problem", |report| report.problem.is_some());
    let problem = report.problem.unwrap();
    assert!(problem.contains("permission denied") && problem.contains("readings.sql"), "{problem}");
    let schema =
        fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/sql/readings.sql")).unwrap();
    eye.run(&schema);
    eye.run("GRANT SELECT, INSERT ON duet_readings TO guest; GRANT SELECT, INSERT, UPDATE ON duet_readings_cursor TO guest");
    world.until_empty();
    eye.exactly("duet_readings", 10);
}

#[test]
fn the_connection_is_protected_and_the_server_is_who_it_should_be() {
    let Some(server) = Server::postgres("ssl = on\n") else { return };
    let Some(ca) = server.certificate() else { return };
    let good = settings(server.port, &format!("ca = \"{}\"", ca.display()));
    let good = good.replace("127.0.0.1", "localhost").replace("?sslmode=disable", "");
    let mut world = world(500, &good);
    world.start();
    world.until_empty();
    let eye = Eye::new(server.port);
    eye.exactly("duet_readings", 500);
    let sql = "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name = 'duet table'";
    assert!(eye.runtime.block_on(eye.client.query_one(sql, &[])).unwrap().get::<_, bool>(0));
    world.stop();
    for settings in [
        good.replace("localhost", "127.0.0.1"),
        good.replace(&format!("ca = \"{}\"", ca.display()), ""),
    ] {
        let mut world = self::world(10, &settings);
        world.start();
        let report = world.until("the problem", |report| report.problem.is_some());
        let problem = report.problem.unwrap();
        assert!(problem.contains("TLS") && problem.contains("certificate"), "{problem}");
    }
}

/// A crash empties an unlogged table: what is in it would be gone though the spool let it go, or come twice.
#[test]
fn a_table_that_a_crash_empties_is_refused_by_its_name() {
    let Some(server) = Server::postgres("") else { return };
    let mut world = world(10, &settings(server.port, ""));
    world.start();
    world.until_empty();
    world.stop();
    let eye = Eye::new(server.port);
    for table in ["duet_readings", "duet_readings_cursor"] {
        eye.run(&format!("ALTER TABLE {table} SET UNLOGGED"));
        world.start();
        world.until("a fault", |report| report.problem.is_some());
        world.stop();
        let remedy = format!("ALTER TABLE {table} SET LOGGED");
        assert!(world.said.lock().unwrap().pop().is_some_and(|said| said.contains(&remedy)));
        eye.run(&remedy);
    }
    // A part of a partitioned table is one as well.
    eye.run(
        "ALTER TABLE duet_readings RENAME TO one; \
         CREATE TABLE duet_readings (LIKE one) PARTITION BY RANGE (index); \
         ALTER TABLE one SET UNLOGGED; ALTER TABLE duet_readings ATTACH PARTITION one DEFAULT",
    );
    world.start();
    world.until("a fault", |report| report.problem.is_some());
    let said = world.said.lock().unwrap().pop().unwrap();
    assert!(said.contains("ALTER TABLE one SET LOGGED"), "{said}");
}
