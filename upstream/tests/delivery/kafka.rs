//! Kafka: brokers in this process that fail as they are told to, and a foreign one.

use std::collections::{HashMap, HashSet};
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use rdkafka::{Offset, TopicPartitionList};

use crate::servers::Server;
use crate::world::{World, indices, whole_and_in_order};

const TOPIC: &str = "readings";

fn settings(brokers: &str, more: &str) -> String {
    format!(
        "name = \"log\"\nkind = \"kafka\"\nurl = \"kafka://{brokers}\"\ntopic = \"{TOPIC}\"\n{more}\n"
    )
}

fn cluster() -> MockCluster<'static, DefaultProducerContext> {
    let cluster = MockCluster::new(3).unwrap();
    cluster.create_topic(TOPIC, 3, 3).unwrap();
    cluster
}

/// All records, once so many different ones have come: key and value, in the order of each partition.
fn records(brokers: &str, count: usize) -> Vec<(String, String)> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "eye")
        .set("auto.offset.reset", "earliest")
        .set("enable.auto.commit", "false")
        .create()
        .unwrap();
    let mut list = TopicPartitionList::new();
    for partition in 0..3 {
        list.add_partition_offset(TOPIC, partition, Offset::Beginning).unwrap();
    }
    consumer.assign(&list).unwrap();
    let (mut found, mut different, mut quiet) = (Vec::new(), HashSet::new(), 0);
    // What comes twice may come last.
    while quiet < 10 && (different.len() < count || quiet < 1) {
        match consumer.poll(Duration::from_secs(1)) {
            Some(Ok(record)) => {
                quiet = 0;
                let text =
                    |bytes: Option<&[u8]>| String::from_utf8(bytes.unwrap().to_vec()).unwrap();
                let (key, value) = (text(record.key()), text(record.payload()));
                different.insert(value.clone());
                found.push((key, value));
            }
            Some(Err(error)) => println!("{error}"),
            None => quiet += 1,
        }
    }
    found
}

/// Each reading is there under its device, the first time in the device's order.
fn compare(records: &[(String, String)], count: u64) {
    let mut devices: HashMap<&str, String> = HashMap::new();
    for (key, value) in records {
        let line: serde_json::Value = serde_json::from_str(value).unwrap();
        assert_eq!(line["device"], key.as_str());
        *devices.entry(key).or_default() += &format!("{value}\n");
    }
    assert_eq!(devices.len(), 3);
    for (at, device) in (0..).zip(["pump-7", "pump-8", "valve"]) {
        // Every third index is the device's.
        let own = indices(&devices[device]).into_iter().map(|index| {
            assert_eq!(index % 3, at);
            index / 3
        });
        whole_and_in_order(&own.collect::<Vec<_>>(), (count - at).div_ceil(3));
    }
}

#[test]
fn each_reading_is_a_record_under_its_devices_name() {
    let cluster = cluster();
    let brokers = cluster.bootstrap_servers();
    let mut world = World::new(3_000, &settings(&brokers, ""));
    world.start();
    let report = world.until_empty();
    assert!(report.worth.contains("3 partitions, 3 replicas"), "{}", report.worth);
    let found = records(&brokers, 3_000);
    assert_eq!(found.len(), 3_000, "none twice");
    compare(&found, 3_000);
}

#[test]
fn what_brokers_answer_is_believed_and_nothing_is_lost() {
    use RDKafkaRespErr as E;
    let cluster = cluster();
    let brokers = cluster.bootstrap_servers();
    let mut world =
        World::new(0, &settings(&brokers, "answer_timeout_ms = 1500\nlate_after_s = 2"));
    world.start();
    let produce = RDKafkaApiKey::Produce;
    let mut count: u32 = 0;
    for errors in [
        vec![E::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS; 2],
        vec![E::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT; 2],
        // A batch that is too large is sent in halves.
        vec![E::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE; 1],
        vec![E::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED; 3],
    ] {
        cluster.request_errors(produce, &errors);
        world.push(count..count + 600);
        count += 600;
        world.until("all", |report| report.next == u64::from(count));
        cluster.clear_request_errors(produce);
    }
    let said = world.said.lock().unwrap().join("\n");
    assert!(said.to_lowercase().contains("authorization"), "{said}");
    // Nobody answers.
    (1..=3).for_each(|broker| cluster.broker_down(broker).unwrap());
    world.push(count..count + 600);
    count += 600;
    let report = world.until("lateness", |report| report.late && report.problem.is_some());
    assert!(report.backlog >= 600);
    (1..=3).for_each(|broker| cluster.broker_up(broker).unwrap());
    world.until("all", |report| report.next == u64::from(count));
    assert_eq!(world.report().parked, 0);
    compare(&records(&brokers, count as usize), count.into());
}

#[test]
fn each_setting_that_is_wrong_gives_a_clear_message_and_the_backlog_waits() {
    let cluster = cluster();
    let brokers = cluster.bootstrap_servers();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let good = settings(&brokers, "answer_timeout_ms = 2000");
    cluster.topic_error("none", RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART).unwrap();
    for (settings, expected) in [
        (good.replace(&brokers, &free.to_string()), "refused"),
        (good.replace(&brokers, "nowhere.invalid:1"), "nowhere.invalid"),
        (good.replace("\"readings\"", "\"none\""), "no topic none"),
        (format!("{good}user = \"u\"\npassword_file = \"absent\""), "absent: No such file"),
    ] {
        let mut world = World::new(10, &settings);
        world.start();
        let report = world.until(expected, |report| report.problem.is_some());
        let problem = report.problem.unwrap();
        assert!(problem.contains(expected), "{expected}: {problem}");
        assert_eq!((world.report().backlog, world.report().parked), (10, 0));
    }
}

/// A broker that says of itself that it is one of so many, and answers records with this number as the error; its address.
fn one_of(count: i32, error: i16) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let serve = move |mut stream: std::net::TcpStream| -> std::io::Result<()> {
        loop {
            let (mut length, mut request) = ([0; 4], Vec::new());
            stream.read_exact(&mut length)?;
            request.resize(usize::try_from(i32::from_be_bytes(length)).unwrap(), 0);
            stream.read_exact(&mut request)?;
            let mut answer = request[4..8].to_vec();
            let mut put = |bytes: &[u8]| answer.extend_from_slice(bytes);
            match request[..4] {
                // Which requests it knows, in the oldest form that tells.
                [0, 18, 0, version] => {
                    let known = [(18_i16, 0_i16), (3, 4), (0, 7), (22, 1)];
                    let flexible = version >= 3;
                    put(&0_i16.to_be_bytes());
                    put(if flexible { &[5] } else { &[0, 0, 0, 4] });
                    for (key, newest) in known {
                        [key, 0, newest].iter().for_each(|number| put(&number.to_be_bytes()));
                        put(if flexible { &[0] } else { &[] });
                    }
                    put(if flexible { &[0; 5] } else { &[] });
                }
                // Who there is, but nobody listens at any of the others; and the topic, with one partition at the first.
                [0, 3, ..] => {
                    put(&[0; 4]);
                    put(&count.to_be_bytes());
                    for id in 0..count {
                        put(&id.to_be_bytes());
                        let port = if id == 0 { address.port() } else { 1 };
                        put(b"\x00\x09127.0.0.1");
                        put(&i32::from(port).to_be_bytes());
                        put(b"\xff\xff");
                    }
                    put(b"\xff\xff\0\0\0\0\0\0\0\x01\0\0\0\x08readings\0\0\0\0\x01");
                    // Its one replica, which is in sync.
                    put(&[0; 10]);
                    put(b"\0\0\0\x01\0\0\0\0\0\0\0\x01\0\0\0\0");
                }
                // A producer's number.
                [0, 22, ..] => put(&[0; 16]),
                [0, 0, ..] => {
                    put(b"\0\0\0\x01\0\x08readings\0\0\0\x01\0\0\0\0");
                    put(&error.to_be_bytes());
                    put(&[0xff; 24]);
                    put(&[0; 4]);
                }
                _ => return Ok(()),
            }
            stream.write_all(&u32::try_from(answer.len()).unwrap().to_be_bytes())?;
            stream.write_all(&answer)?;
        }
    };
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            std::thread::spawn(move || serve(stream.unwrap()));
        }
    });
    address.to_string()
}

/// The client has a thread and two files for each.
#[test]
fn a_broker_that_names_thousands_of_others_takes_neither_threads_nor_files() {
    let brokers = one_of(9_000, 0);
    let mut world = World::new(10, &settings(&brokers, "answer_timeout_ms = 2000"));
    world.start();
    let report = world.until("a problem", |report| report.problem.is_some());
    let problem = report.problem.unwrap();
    assert!(problem.contains("16384"), "{problem}");
    let count = |what: &str| std::fs::read_dir(format!("/proc/self/{what}")).unwrap().count();
    let (threads, files) = (count("task"), count("fd"));
    assert!(threads < 1_000 && files < 1_000, "{threads} threads, {files} files");
}

#[test]
fn a_broker_of_another_make_takes_them_too() {
    let Some(server) = Server::tansu() else { return };
    let brokers = format!("127.0.0.1:{}", server.port);
    let admin: AdminClient<_> =
        ClientConfig::new().set("bootstrap.servers", &brokers).create().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let topic = NewTopic::new(TOPIC, 3, TopicReplication::Fixed(1));
    let made = runtime.block_on(admin.create_topics(&[topic], &AdminOptions::new()));
    assert!(made.unwrap()[0].is_ok());
    let mut world = World::new(2_000, &settings(&brokers, ""));
    world.start();
    world.until_empty();
    compare(&records(&brokers, 2_000), 2_000);
}

/// The library takes such a number for an error that it knows, and reads behind its tables.
#[test]
fn an_error_that_nobody_knows_is_no_end_of_the_process() {
    for error in [5_000, 32_767, -1_000, i16::MIN] {
        let mut world = World::new(10, &settings(&one_of(1, error), "answer_timeout_ms = 2000"));
        world.start();
        let problem = world.until("the problem", |report| report.problem.is_some()).problem;
        assert!(problem.as_ref().is_some_and(|problem| problem.contains("Unknown")), "{problem:?}");
    }
}
