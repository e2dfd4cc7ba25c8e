//! The load generator against a real gateway: what it counts, and that it does not flatter.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use duet_protocol::profile::{KeySource, Mode, Profile, Transport};
use loadgen::contact;
use loadgen::crowd::{Loop, Loss};
use loadgen::load::{Bench, Outcome, Plan, Scenario};
use loadgen::local::{LocalGateway, Wanted};
use rustix::process::{Pid, Signal, kill_process};

#[path = "support/schema.rs"]
mod schema;

fn plan() -> Plan {
    Plan {
        scenario: Scenario::Steady,
        devices: 200,
        profile: Profile { mode: Mode::RegisteredId, source: KeySource::Ephemeral },
        transport: Transport::Datagram,
        connect_per_s: 400,
        early: false,
        per_s: 1_000,
        hostile_per_s: 2_000,
        pacing: Loop::Open,
        warm_up: Duration::ZERO,
        span: Duration::from_secs(3),
        payloads: vec![b"21.5".to_vec(), b"21.6".to_vec()],
        loss: Loss(0),
        seed: 1,
        threads: 1,
        shards: 2,
        state: None,
    }
}

fn bench(dir: &Path, plan: Plan) -> Bench {
    Bench::start(Path::new(env!("CARGO_BIN_EXE_duet")), dir, plan).unwrap()
}

fn run(plan: Plan) -> Outcome {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = bench(dir.path(), plan);
    let outcome = bench.run().unwrap();
    bench.stop().unwrap();
    schema::assert_valid("load.json", &outcome.report);
    outcome
}

/// The gateway stands still for a second in the middle of the run.
fn run_with_a_stall(plan: Plan) -> Outcome {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = bench(dir.path(), plan);
    let pid = Pid::from_raw(bench.gateway_pid().try_into().unwrap()).unwrap();
    let outcome = std::thread::scope(|scope| {
        scope.spawn(move || {
            std::thread::sleep(Duration::from_millis(1_300));
            kill_process(pid, Signal::STOP).unwrap();
            std::thread::sleep(Duration::from_secs(1));
            kill_process(pid, Signal::CONT).unwrap();
        });
        bench.run().unwrap()
    });
    bench.stop().unwrap();
    outcome
}

#[test]
fn an_open_loop_shows_a_stall_that_a_closed_one_hides() {
    let few_and_often = |pacing| Plan { pacing, devices: 20, per_s: 2_000, ..plan() };
    let open = run_with_a_stall(few_and_often(Loop::Open)).report.measured;
    assert_eq!(open.done, open.due, "what was late is not lost");
    assert!(open.latency_ms.p99 > 500.0, "a third of all readings were due meanwhile: {open}");
    let Outcome { report, latency } = run_with_a_stall(few_and_often(Loop::Closed));
    let late = latency.count_between(500_000, latency.max());
    assert!((1..=20).contains(&late), "one reading of each device met it: {}", report.measured);
}

#[test]
fn what_is_done_after_the_end_counts_with_the_time_that_it_took() {
    for scenario in [Scenario::Steady, Scenario::Commands] {
        let span = Duration::from_millis(1_700);
        let late = Plan { scenario, devices: 50, per_s: 400, span, ..plan() };
        let measured = run_with_a_stall(late).report.measured;
        assert_eq!(measured.done, measured.due, "{scenario:?}: {measured}");
        assert!(measured.seconds > 1.7, "the gateway stood at its end: {measured}");
        assert!(measured.per_s < 400.0, "what it cannot do is no rate of it: {measured}");
        let few = Plan { scenario, devices: 20, per_s: 2, span, ..plan() };
        assert!(run(few).report.measured.seconds >= 1.7, "{scenario:?}: it goes on after the last");
    }
}

#[test]
fn every_reading_of_the_schedule_is_sent_and_confirmed() {
    let Outcome { report, latency } = run(plan());
    assert_eq!((report.connect.due, report.connect.done), (200, 200));
    // 200 devices, each once in 200 ms, for 3 s.
    assert_eq!((report.measured.due, report.measured.done), (3_000, 3_000));
    assert_eq!(latency.len(), 3_000);
    assert_eq!(report.csv().lines().count(), report.series.len() + 1);
    assert_eq!(report.series.last().unwrap().open, 200);
}

#[test]
fn storms_bring_every_device_back() {
    for scenario in [Scenario::HandshakeStorm, Scenario::ReconnectStorm] {
        let report = run(Plan { scenario, devices: 1_000, ..plan() }).report;
        assert_eq!((report.measured.due, report.measured.done), (1_000, 1_000), "{scenario:?}");
    }
}

#[test]
fn a_storm_of_hellos_with_a_reading_each_stores_every_one_before_it_is_answered() {
    all_readings_come_in_hellos(Scenario::HandshakeStorm, 300);
}

#[test]
fn whoever_comes_back_in_a_storm_has_a_reading_in_his_hello_again() {
    all_readings_come_in_hellos(Scenario::ReconnectStorm, 600);
}

/// All `readings` of the storm's 300 devices.
fn all_readings_come_in_hellos(scenario: Scenario, readings: usize) {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = bench(dir.path(), Plan { scenario, early: true, devices: 300, ..plan() });
    let report = bench.run().unwrap().report;
    bench.stop().unwrap();
    assert_eq!((report.measured.due, report.measured.done, report.early), (300, 300, true));
    let state = dir.path().join("state");
    let mut cat = Command::new(env!("CARGO_BIN_EXE_duet"));
    cat.arg("--state").arg(state).args(["spool", "cat"]);
    let stored = String::from_utf8(cat.output().unwrap().stdout).unwrap();
    let early = stored.lines().filter(|line| line.contains("\"sequence\":4294967295")).count();
    assert_eq!((stored.lines().count(), early), (readings, readings), "{stored}");
}

#[test]
fn a_lossy_link_costs_time() {
    let plan = Plan { loss: Loss(50_000), per_s: 400, ..plan() };
    let report = run(plan).report;
    // Whoever loses the same reading three times is still waiting at the end.
    assert!(report.measured.done * 100 >= report.measured.due * 99, "{}", report.measured);
    assert!(
        report.measured.latency_ms.p99 > 500.0,
        "retransmissions take a second: {}",
        report.measured
    );
}

#[test]
fn a_search_ends_between_what_holds_and_what_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = bench(dir.path(), Plan { span: Duration::from_millis(300), ..plan() });
    // No gateway confirms within a microsecond.
    let mut told = 0;
    let tried = bench.find_max(0.001, |_| told += 1).unwrap();
    bench.stop().unwrap();
    assert!(!tried.is_empty() && tried.iter().all(|one| !one.holds));
    assert_eq!(told, tried.len());
}

#[test]
fn the_hdr_log_is_one() {
    let outcome = run(Plan { span: Duration::from_secs(1), ..plan() });
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("latency.hlog");
    outcome.write_hdr(&path).unwrap();
    let text = std::fs::read(&path).unwrap();
    let intervals = hdrhistogram::serialization::interval_log::IntervalLogIterator::new(&text);
    let histograms = intervals.map(Result::unwrap).filter(|entry| {
        matches!(entry, hdrhistogram::serialization::interval_log::LogEntry::Interval(_))
    });
    assert_eq!(histograms.count(), 1);
}

#[test]
fn every_command_comes_back_with_its_result() {
    let commands = Plan { scenario: Scenario::Commands, per_s: 200, ..plan() };
    let Outcome { report, latency } = run(commands);
    assert_eq!((report.measured.due, report.measured.done), (600, 600), "{report}");
    assert_eq!((latency.len(), report.refusals.len()), (600, 0));
}

#[test]
fn a_command_counts_from_the_time_when_it_was_due() {
    let commands = Plan { scenario: Scenario::Commands, devices: 50, per_s: 400, ..plan() };
    let measured = run_with_a_stall(commands).report.measured;
    // A third of all commands was due meanwhile, though only a few found a connection.
    assert!(measured.latency_ms.p90 > 500.0, "{measured}");
    assert_eq!(measured.done, measured.due, "{measured}");
}

#[test]
fn devices_over_tcp_have_connections_of_their_own() {
    let tcp = Plan { transport: Transport::Stream, devices: 500, ..plan() };
    for scenario in [Scenario::Steady, Scenario::Commands, Scenario::ReconnectStorm] {
        let report = run(Plan { scenario, span: Duration::from_secs(1), ..tcp.clone() }).report;
        assert_eq!((report.connect.due, report.connect.done), (500, 500), "{scenario:?}");
        assert_eq!(report.measured.done, report.measured.due, "{scenario:?}: {report}");
        assert_eq!(report.transport, "tcp");
    }
}

#[test]
fn strangers_get_no_more_than_they_send_and_honest_devices_lose_nothing() {
    let report = run(Plan { scenario: Scenario::Hostile, ..plan() }).report;
    let hostile = report.hostile.as_ref().unwrap();
    assert!(hostile.sent.len() == 6 && hostile.sent.values().all(|count| *count > 0), "{hostile}");
    assert!(hostile.back > 0, "a hello again gets its ACCEPT again: {hostile}");
    assert!(hostile.back_bytes <= hostile.sent_bytes, "{hostile}");
    assert_eq!(hostile.amplified, 0, "{hostile}");
    assert_eq!(report.measured.done, report.measured.due, "{report}");
    assert_eq!(hostile.undisturbed.done, hostile.undisturbed.due, "{report}");
}

const TRANSPORTS: [Transport; 2] = [Transport::Datagram, Transport::Stream];

#[test]
fn who_calls_where_nobody_listens_is_told_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let wanted = TRANSPORTS.map(|transport| Wanted {
        name: format!("{transport:?}"),
        profile: plan().profile,
        transport,
    });
    let (gateway, mut members) =
        LocalGateway::start(Path::new(env!("CARGO_BIN_EXE_duet")), dir.path(), 1, &wanted).unwrap();
    for member in &mut members {
        contact::check(member, gateway.address).unwrap();
    }
    let address = gateway.address;
    for (member, unlike) in members.iter_mut().zip(["did not answer", "closed the connection"]) {
        let genuine = member.config.gateway.key;
        member.config.gateway.key =
            duet_protocol::ec::SecretScalar::from_bytes(&[7; 32]).unwrap().public_key();
        let error = contact::check(member, address).unwrap_err().to_string();
        assert!(error.contains(unlike) && error.contains("certificate"), "{error}");
        member.config.gateway.key = genuine;
    }
    gateway.stop().unwrap();
    for (member, transport) in members.iter_mut().zip(["UDP", "TCP"]) {
        let error = contact::check(member, address).unwrap_err().to_string();
        let expected = format!("nobody listens at {address} ({transport})");
        assert!(error.starts_with(&expected), "{error}");
    }
}

#[test]
fn a_gateway_that_ends_in_a_run_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = bench(dir.path(), Plan { devices: 20, per_s: 50, ..plan() });
    let pid = bench.gateway_pid();
    let error = std::thread::scope(|scope| {
        scope.spawn(move || {
            std::thread::sleep(Duration::from_millis(1_000));
            kill_process(Pid::from_raw(pid.try_into().unwrap()).unwrap(), Signal::KILL).unwrap();
        });
        bench.run().err().unwrap()
    });
    let error = format!("{error:#}");
    assert!(
        error.contains(&format!("process {pid}, has ended")) && error.contains("its log"),
        "{error}"
    );
}

#[test]
fn a_gateway_that_runs_already_has_the_devices_for_the_run_only() {
    let dir = tempfile::tempdir().unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_duet"));
    let (gateway, _) = LocalGateway::start(program, dir.path(), 1, &[]).unwrap();
    let state = Some(gateway.state.clone());
    let there = Plan { scenario: Scenario::Commands, devices: 20, per_s: 100, state, ..plan() };
    let mut bench = bench(dir.path(), there.clone());
    assert_eq!(bench.gateway_pid(), gateway.pid());
    let report = bench.run().unwrap().report;
    assert_eq!((report.measured.due, report.measured.done), (300, 300), "{report}");
    let registered = || {
        let line = gateway.scrape().unwrap();
        line.lines().find(|line| line.starts_with("duet_devices")).map(str::to_owned).unwrap()
    };
    assert!(registered().ends_with(" 20"), "{}", registered());
    bench.stop().unwrap();
    assert!(registered().ends_with(" 0"), "{}", registered());
    gateway.stop().unwrap();
    let Err(error) = Bench::start(program, dir.path(), there) else { panic!("nobody is there") };
    assert!(error.to_string().contains("no gateway runs on this state directory"), "{error}");
}
