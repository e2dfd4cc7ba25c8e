use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use crate::hook::{Hook, OK, Reply};
use duet_upstream::Source as _;

use crate::world::{World, indices, whole_and_in_order};

#[test]
fn everything_arrives_once_in_order_and_each_batch_says_what_was_before() {
    let hook = Hook::new(|_| OK);
    let mut world = World::new(1_000, &hook.settings("token_file = \"token\"\n"));
    world.secret("token", "secret\n");
    world.start();
    world.until_empty();
    // What comes later, and a restart in between.
    world.push(1_000..1_010);
    world.until("the next ten", |report| report.next == 1_010);
    world.stop();
    world.push(1_010..1_300);
    world.start();
    let report = world.until("the rest", |report| report.next == 1_300);
    assert_eq!((report.parked, report.lost, report.problem), (0, 0, None));
    assert_eq!(world.memory.released(), 1_010, "what is not on disk yet is not let go");
    world.stop();
    assert_eq!(world.memory.released(), 1_300);
    assert_eq!(indices(&hook.lines()), (0..1_300).collect::<Vec<_>>());
    let mut before = None;
    for post in hook.taken() {
        assert_eq!(post.path, "/in?a=b");
        assert_eq!(post.header("authorization"), Some("Bearer secret"));
        let number = |name: &str| post.header(name).map(|value| value.parse::<u64>().unwrap());
        let (first, last) = (number("duet-first").unwrap(), number("duet-last").unwrap());
        let spool = "c4".repeat(16);
        assert_eq!(post.header("idempotency-key"), Some(&*format!("{spool}:{first}-{last}")));
        assert_eq!(post.header("duet-spool"), Some(&*spool));
        assert_eq!(number("duet-previous-last"), before);
        assert_eq!(indices(post.text()), (first..=last).collect::<Vec<_>>());
        before = Some(last);
    }
}

#[test]
fn a_connection_that_ends_in_mid_answer_repeats_batches_under_the_same_name() {
    let mut posts = 0;
    let hook = Hook::new(move |_| {
        posts += 1;
        if posts % 3 == 0 { Reply::Reset } else { OK }
    });
    let mut world = World::new(5_000, &hook.settings(""));
    world.start();
    world.until_empty();
    world.stop();
    let taken = hook.taken();
    whole_and_in_order(&indices(&hook.lines()), 5_000);
    let mut seen = std::collections::HashMap::new();
    for post in &taken {
        let name = post.header("idempotency-key").unwrap().to_owned();
        let body = seen.entry(name).or_insert_with(|| post.body.clone());
        assert_eq!(*body, post.body, "the same name stands for the same readings");
    }
    assert!(seen.len() < taken.len(), "nothing was repeated");
}

#[test]
fn one_poisonous_reading_is_put_aside_and_all_others_arrive() {
    let hook = Hook::new(|post| {
        let poison =
            post.text().contains("\"index\":300,") || post.text().contains("\"index\":301,");
        if poison { Reply::Status(422, "", "no \"300\"") } else { OK }
    });
    let mut world = World::new(700, &hook.settings("in_flight = 4\n"));
    world.start();
    let report = world.until_empty();
    assert_eq!(report.parked, 2);
    let parked = fs::read_to_string(world.state().join("upstream/hook.parked.ndjson")).unwrap();
    let mut parked_indices = indices(&parked);
    parked_indices.sort_unstable();
    assert_eq!(parked_indices, [300, 301]);
    assert!(parked.contains("answers 422") && parked.contains("no \\\"300\\\""), "{parked}");
    let mut arrived = indices(&hook.lines());
    arrived.sort_unstable();
    assert_eq!(arrived, (0..700).filter(|n| *n != 300 && *n != 301).collect::<Vec<_>>());
}

#[test]
fn where_everything_is_refused_the_backlog_waits_for_a_person() {
    let hook = Hook::new(|_| Reply::Status(400, "", "not my format"));
    let mut world = World::new(2_000, &hook.settings(""));
    world.start();
    let report = world.until("the problem", |report| report.problem.is_some());
    let problem = report.problem.unwrap();
    assert!(problem.contains("set wrong") && problem.contains("not my format"), "{problem}");
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!((world.report().parked, world.report().backlog), (0, 2_000));
    world.stop();
    hook.change(|_| OK);
    world.start();
    world.until_empty();
    assert_eq!(indices(&hook.lines()), (0..2_000).collect::<Vec<_>>());
    assert_eq!(world.said.lock().unwrap().len(), 1, "said once: {:?}", world.said.lock().unwrap());
}

#[test]
fn a_receiver_that_is_silent_shows_as_late_and_gets_everything_when_it_speaks() {
    let hook = Hook::new(|_| Reply::Silence);
    let settings = "late_after_s = 2\nanswer_timeout_ms = 500\n";
    let mut world = World::new(10, &hook.settings(settings));
    let began = Instant::now();
    world.start();
    let report = world.until("lateness", |report| report.late);
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    assert!(report.oldest_ms > 2_000 && report.backlog == 10);
    world.until("the reason", |report| {
        report.problem.as_deref().is_some_and(|problem| problem.contains("no answer within 500 ms"))
    });
    hook.change(|_| OK);
    let report = world.until_empty();
    assert!(!report.late && report.problem.is_none());
    whole_and_in_order(&indices(&hook.lines()), 10);
}

#[test]
fn a_busy_receiver_is_given_the_time_that_it_asks_for() {
    let mut posts: Vec<Instant> = Vec::new();
    let hook = Hook::new(move |_| {
        posts.push(Instant::now());
        match posts[..] {
            [_] => Reply::Status(503, "retry-after: 2\r\n", ""),
            [first, second] => {
                assert!(second - first > Duration::from_millis(1_900));
                OK
            }
            _ => OK,
        }
    });
    let mut world = World::new(10, &hook.settings(""));
    world.start();
    world.until_empty();
    assert_eq!(hook.taken().len(), 1);
}

#[test]
fn a_collector_that_rejects_records_with_200_has_not_taken_them() {
    let rejects = r#"{"partialSuccess":{"rejectedLogRecords":"1","errorMessage":"no"}}"#;
    let hook = Hook::new(move |post| {
        Reply::Status(
            200,
            "",
            if post.text().contains("\"stringValue\":\"7\"") { rejects } else { "{}" },
        )
    });
    let mut world = World::new(64, &hook.settings("format = \"otlp\"\n"));
    world.start();
    let report = world.until_empty();
    assert_eq!((report.parked, report.delivered), (1, 63));
}

#[test]
fn a_compressed_batch_says_so_and_is_one() {
    let hook = Hook::new(|_| OK);
    let mut world = World::new(300, &hook.settings("compression = \"zstd\"\n"));
    world.start();
    world.until_empty();
    let mut lines = String::new();
    for post in hook.taken() {
        assert_eq!(post.header("content-encoding"), Some("zstd"));
        lines += std::str::from_utf8(&zstd::decode_all(&post.body[..]).unwrap()).unwrap();
    }
    assert_eq!(indices(&lines), (0..300).collect::<Vec<_>>());
}

#[test]
fn what_the_spool_let_go_is_counted_and_told_downstream() {
    let hook = Hook::new(|_| OK);
    let mut world = World::new(100, &hook.settings(""));
    world.start();
    world.until_empty();
    world.stop();
    world.push(100..1_000);
    world.memory.trim(600);
    world.start();
    let report = world.until("the rest", |report| report.next == 1_000);
    assert_eq!(report.lost, 500);
    let taken = hook.taken();
    let post = taken.iter().find(|post| post.header("duet-first") == Some("600")).unwrap();
    assert_eq!(post.header("duet-previous-last"), Some("99"));
    assert!(world.said.lock().unwrap().iter().any(|said| said.contains("500 readings")));
}

#[test]
fn a_cursor_beyond_the_spool_is_a_fault_that_says_what_to_do() {
    let hook = Hook::new(|_| OK);
    let mut world = World::new(100, &hook.settings(""));
    world.start();
    world.until_empty();
    world.stop();
    // As after an older copy of the spool was put back: the same name, and fewer readings.
    world.memory.show_until(50);
    world.start();
    let report = world.until("the problem", |report| report.problem.is_some());
    assert!(report.problem.unwrap().contains("Remove the cursor"));
    world.stop();
    assert!(duet_upstream::forget(&world.state().join("upstream"), "hook").unwrap());
    world.start();
    world.until("all again", |report| report.next == 50);
}

#[test]
fn each_setting_that_is_wrong_gives_one_clear_message_and_the_backlog_waits() {
    let hook = Hook::new(|post| match post.header("authorization") {
        Some("Bearer right") => OK,
        _ => Reply::Status(401, "", "who are you?"),
    });
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let port = hook.address.port();
    for (settings, expected) in [
        (format!("url = \"http://{free}/\""), "refused"),
        ("url = \"http://duet.invalid/\"".to_owned(), "duet.invalid:80"),
        (format!("url = \"http://127.0.0.1:{port}/\""), "check the credentials"),
        (
            format!("url = \"http://127.0.0.1:{port}/\"\ntoken_file = \"none\""),
            "none: No such file",
        ),
        (format!("url = \"https://127.0.0.1:{port}/\""), "TLS"),
        (format!("url = \"https://127.0.0.1:{port}/\"\nca = \"ca.pem\""), "ca.pem: no certificate"),
    ] {
        let mut world =
            World::new(20, &format!("name = \"hook\"\nkind = \"webhook\"\n{settings}\n"));
        fs::write(world.state().join("ca.pem"), "rubbish").unwrap();
        world.start();
        let report = world.until(expected, |report| report.problem.is_some());
        let problem = report.problem.unwrap();
        assert!(problem.contains(expected), "{settings}: {problem}");
        std::thread::sleep(Duration::from_millis(500));
        assert_eq!(world.report().backlog, 20);
        assert_eq!(world.said.lock().unwrap().len(), 1, "{:?}", world.said.lock().unwrap());
    }
    assert!(hook.taken().is_empty());
}

/// Whoever sends back what he got, and more, has got it all the same.
#[test]
fn a_long_answer_is_an_answer() {
    let long: &'static str = Box::leak("x".repeat(300_000).into_boxed_str());
    let hook = Hook::new(move |_| Reply::Status(200, "", long));
    let mut world = World::new(1_000, &hook.settings("in_flight = 2\n"));
    world.start();
    let report = world.until_empty();
    assert_eq!((report.parked, report.problem), (0, None));
    let mut arrived = indices(&hook.lines());
    arrived.sort_unstable();
    assert_eq!(arrived, (0..1_000).collect::<Vec<_>>());
}

/// What lets others than the owner read a secret is refused before anybody is told it.
#[test]
fn a_secret_that_others_can_read_is_not_used() {
    let hook = Hook::new(|_| OK);
    let mut world = World::new(10, &hook.settings("token_file = \"token\"\n"));
    let token = world.state().join("token");
    fs::write(&token, "secret\n").unwrap();
    let mode = |mode| fs::set_permissions(&token, fs::Permissions::from_mode(mode)).unwrap();
    mode(0o644);
    world.start();
    let problem = world.until("the problem", |report| report.problem.is_some()).problem.unwrap();
    assert!(problem.contains("mode 0644") && problem.contains("chmod 600"), "{problem}");
    assert!(hook.taken().is_empty());
    mode(0o600);
    world.until_empty();
}
