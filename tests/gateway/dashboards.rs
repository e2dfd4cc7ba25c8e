//! The boards and rules of `dashboards/`: whatever they ask for is in the catalogue of metrics, whatever is in the
//! catalogue they show, and a real Prometheus that watches a gateway has data for each panel.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use duet_protocol::profile::{KeySource, Mode, Profile, Transport};
use duet_telemetry::{About, Kind, catalogue};
use serde_json::Value;

use crate::world::{Client, Scratch};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/dashboards");
const PROFILE: Profile = Profile { mode: Mode::RegisteredId, source: KeySource::Ephemeral };
/// Labels that Prometheus gives by itself.
const ITS_OWN: &[&str] = &["instance", "job", "le", "alertname"];

/// A query and where it stands.
struct Query {
    place: String,
    text: String,
}

fn boards() -> Vec<Value> {
    let mut boards = Vec::new();
    for entry in fs::read_dir(FOLDER).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "json") {
            boards.push(serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap());
        }
    }
    assert!(boards.len() >= 5);
    boards
}

/// The queries of each panel.
fn panels(board: &Value) -> Vec<(String, Vec<Query>)> {
    let title = |value: &Value| value["title"].as_str().unwrap().to_owned();
    let panels = board["panels"].as_array().unwrap().iter().map(|panel| {
        let place = format!("{}: {}", title(board), title(panel));
        let targets = panel["targets"].as_array().unwrap().iter();
        let query = |target: &Value| Query {
            place: place.clone(),
            text: target["expr"].as_str().unwrap().to_owned(),
        };
        let queries = targets.map(query).collect();
        (place, queries)
    });
    panels.collect()
}

/// The value of each `key: value` line of the rules.
fn rules(key: &str) -> Vec<String> {
    let text = fs::read_to_string(format!("{FOLDER}/rules.yml")).unwrap();
    let value =
        |line: &str| Some(line.trim().trim_start_matches("- ").strip_prefix(key)?.to_owned());
    let found: Vec<_> = text.lines().filter_map(value).collect();
    assert!(!found.is_empty(), "{key}");
    found
}

/// The metric of the catalogue that a query's word stands for.
fn metric(word: &str) -> Option<&'static About> {
    catalogue::all().map(|metric| metric.about()).find(|about| match about.kind {
        Kind::Histogram => ["_bucket", "_sum", "_count"]
            .iter()
            .any(|end| word.strip_suffix(end) == Some(about.name)),
        Kind::Counter | Kind::Gauge => word == about.name,
    })
}

/// What a query asks for that there is not; the metrics that it names are noted.
fn missing(query: &str, recorded: &[String], named: &mut BTreeSet<&'static str>) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut labels: BTreeSet<&str> = ITS_OWN.iter().copied().collect();
    let mut rest = query;
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    while let Some(at) = rest.find(|c| is_word(c) || c == '"') {
        if rest[at..].starts_with('"') {
            let end = rest[at + 1..].find('"').unwrap();
            rest = &rest[at + end + 2..];
            continue;
        }
        let word = &rest[at..];
        let end = word.find(|c| !is_word(c)).unwrap_or(word.len());
        let word = &word[..end];
        rest = &rest[at + end..];
        if word.starts_with("duet:") {
            if !recorded.iter().any(|name| name == word) {
                wrong.push(format!("{word} is recorded nowhere"));
            }
        } else if word.starts_with("duet_") || word.starts_with("process_") {
            let Some(about) = metric(word) else {
                wrong.push(format!("{word} is not in the catalogue"));
                continue;
            };
            named.insert(about.name);
            labels.extend(about.labels.iter().map(|label| label.name));
            let Some(matchers) = rest.strip_prefix('{') else { continue };
            let matchers = &matchers[..matchers.find('}').unwrap()];
            for matcher in matchers.split(", ") {
                let (name, value) = matcher.split_once('=').unwrap();
                let known = about.labels.iter().find(|label| label.name == name);
                let values = known.map(|label| label.known()).unwrap_or_default();
                let given = value.trim_start_matches('~').trim_matches('"').split('|');
                for given in given.filter(|_| !ITS_OWN.contains(&name)) {
                    if !values.contains(&given) {
                        wrong.push(format!("{word} has no {name}={given:?}"));
                    }
                }
            }
        }
    }
    for (at, by) in query.match_indices(" by (") {
        let group = &query[at + by.len()..];
        let group = group[..group.find(')').unwrap()].split(", ");
        let unknown = group.filter(|label| !labels.contains(label));
        wrong.extend(unknown.map(|label| format!("nothing in it has the label {label}")));
    }
    wrong
}

#[test]
fn boards_and_rules_ask_for_what_there_is_and_show_all_of_it() {
    let recorded = rules("record: ");
    let mut queries = Vec::new();
    let mut names = BTreeSet::new();
    for board in boards() {
        let uid = board["uid"].as_str().unwrap().to_owned();
        assert!(uid.starts_with("duet-") && names.insert(uid));
        let variables = board["templating"]["list"].as_array().unwrap();
        let variables: Vec<_> = variables.iter().map(|one| one["name"].as_str().unwrap()).collect();
        assert_eq!(variables, ["datasource", "instance"]);
        for panel in board["panels"].as_array().unwrap() {
            let text = |key: &str| panel[key].as_str().unwrap_or_default();
            assert!(text("description").ends_with('.'), "{}", text("title"));
            assert_eq!(panel["datasource"]["uid"], "${datasource}");
            let defaults = &panel["fieldConfig"]["defaults"];
            assert!(defaults["unit"].is_string() && defaults["thresholds"].is_object());
        }
        for (place, of_panel) in panels(&board) {
            assert!(!of_panel.is_empty(), "{place}");
            queries.extend(of_panel);
        }
    }
    for Query { place, text } in &queries {
        assert!(text.contains("instance=~\"$instance\""), "{place}: {text}");
        let rates = text.matches("rate(").count();
        assert_eq!(rates, text.matches("[$__rate_interval]").count(), "{place}: {text}");
    }
    let of_rules = rules("expr: ").into_iter();
    queries.extend(of_rules.map(|text| Query { place: "rules.yml".into(), text }));
    let mut named = BTreeSet::new();
    for Query { place, text } in &queries {
        let wrong = missing(text, &recorded, &mut named);
        assert!(wrong.is_empty(), "{place}: {text}: {wrong:?}");
    }
    let unseen: Vec<_> =
        catalogue::all().map(|one| one.about().name).filter(|name| !named.contains(name)).collect();
    assert!(unseen.is_empty(), "no board and no rule shows {unseen:?}");
}

/// The times over which a query looks back that are shorter than four scrapes of a minute each: a rate needs two
/// samples, and one scrape may be late and another one fail.
fn too_short(query: &str) -> Vec<&str> {
    let ranges = query.split('[').skip(1).map(|rest| rest.split(']').next().unwrap());
    let is_long = |range: &&str| {
        let (number, unit) = range.split_at(range.len() - 1);
        let seconds = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3_600,
            "d" => 86_400,
            _ => panic!("{query}: {range} is no time of one unit"),
        };
        number.parse::<u64>().unwrap() * seconds >= 240
    };
    // What Grafana puts in place of this is four scrapes at least.
    ranges.filter(|range| *range != "$__rate_interval" && !is_long(range)).collect()
}

#[test]
fn a_prometheus_that_looks_once_a_minute_has_data_for_every_query() {
    let mut queries = rules("expr: ");
    for board in boards() {
        for (_, of_panel) in panels(&board) {
            queries.extend(of_panel.into_iter().map(|query| query.text));
        }
        for annotation in board["annotations"]["list"].as_array().unwrap() {
            queries.extend(annotation["expr"].as_str().map(str::to_owned));
        }
    }
    assert!(queries.iter().filter(|query| query.contains('[')).count() > 50);
    for query in &queries {
        assert_eq!(too_short(query), [""; 0], "{query}");
    }
    let query =
        "rate(a[3m]) + rate(b[$__rate_interval]) + increase(c[239s]) + rate(d[4m]) + rate(e[1h])";
    assert_eq!(too_short(query), ["3m", "239s"]);
}

#[test]
fn the_check_of_queries_can_fail() {
    let found = |query: &str| missing(query, &["duet:a".to_owned()], &mut BTreeSet::new());
    assert_eq!(
        found("sum by (reason) (rate(duet_drops_total{instance=~\"x\", reason=\"proof\"}[5m]))"),
        [""; 0]
    );
    assert_eq!(found("duet:a + duet:b"), ["duet:b is recorded nowhere"]);
    assert_eq!(found("duet_nothing"), ["duet_nothing is not in the catalogue"]);
    assert_eq!(found("duet_hello_batch"), ["duet_hello_batch is not in the catalogue"]);
    assert_eq!(
        found("duet_drops_total{reason=~\"proof|rain\"}"),
        ["duet_drops_total has no reason=\"rain\""]
    );
    assert_eq!(found("duet_sessions{colour=\"red\"}"), ["duet_sessions has no colour=\"red\""]);
    assert_eq!(found("sum by (colour) (duet_sessions)"), ["nothing in it has the label colour"]);
}

fn is_there(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok();
    if !found {
        println!("SKIPPED: {program} is not installed (Debian's package prometheus)");
    }
    found
}

#[test]
fn prometheus_own_tool_takes_the_configuration_and_the_rules_do_what_their_tests_say() {
    if !is_there("promtool") {
        return;
    }
    for arguments in [["check", "config", "prometheus.yml"], ["test", "rules", "rules.test.yml"]] {
        let done = Command::new("promtool").current_dir(FOLDER).args(arguments).output().unwrap();
        let said = String::from_utf8([done.stdout, done.stderr].concat()).unwrap();
        assert!(done.status.success(), "{arguments:?}: {said}");
    }
    let tested = fs::read_to_string(format!("{FOLDER}/rules.test.yml")).unwrap();
    for alert in rules("alert: ") {
        assert!(tested.contains(&format!("alertname=\"{alert}\"")), "{alert} has no test");
    }
}

/// How often the real Prometheus looks, seconds: every second, or as this says, for which the test takes seven times as
/// long and half a minute.
const SCRAPE_S: &str = "DUET_SCRAPE_S";

/// A Prometheus that watches one gateway; ended with its handle.
struct Prometheus {
    child: Child,
    address: SocketAddr,
    scrape_s: u64,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Prometheus {
    fn start(dir: &Path, gateway: SocketAddr) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let scrape_s = std::env::var(SCRAPE_S).map_or(1, |seconds| seconds.parse().unwrap());
        let settings = format!(
            "global:\n  scrape_interval: {scrape_s}s\n  evaluation_interval: {scrape_s}s\nrule_files: [{FOLDER}/rules.yml]\n\
             scrape_configs:\n  - job_name: duet\n    static_configs:\n      - targets: [\"{gateway}\"]\n"
        );
        let file = dir.join("prometheus.yml");
        fs::write(&file, settings).unwrap();
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", dir.join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdout(Stdio::null())
            .stderr(fs::File::create(dir.join("prometheus.log")).unwrap())
            .spawn()
            .unwrap();
        Self { child, address, scrape_s }
    }

    /// What it answers, once it does.
    fn get(&self, target: &str) -> Option<Value> {
        let mut stream = TcpStream::connect(self.address).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        write!(stream, "GET {target} HTTP/1.0\r\nHost: x\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
    }

    /// Whether there is a number in the answer. A query that it does not understand fails the test.
    fn has_data(&self, query: &Query) -> bool {
        // As Grafana reckons it where a point stands for one scrape.
        let interval = format!("{}s", 5 * self.scrape_s);
        let text = query.text.replace("$__rate_interval", &interval).replace("$instance", ".*");
        let escaped: String = text.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let Some(answer) = self.get(&format!("/api/v1/query?query={escaped}")) else {
            return false;
        };
        assert_ne!(answer["errorType"], "bad_data", "{}: {text}: {answer}", query.place);
        let Some(found) = answer["data"]["result"].as_array() else { return false };
        found.iter().any(|series| !matches!(series["value"][1].as_str(), None | Some("NaN")))
    }
}

#[test]
fn every_panel_has_data_in_a_real_prometheus() {
    if !is_there("prometheus") {
        return;
    }
    let scratch = Scratch::new();
    // The second is a broker that is not there: what is counted of it is there all the same.
    let upstreams = "[[upstream]]\nname = \"archive\"\nkind = \"file\"\ndir = \"archive\"\n\
         [[upstream]]\nname = \"orders\"\nkind = \"mqtt\"\nurl = \"mqtt://127.0.0.1:9\"\n\
         topic = \"readings\"\ncommands = \"commands\"\nrequired = false\n";
    fs::write(scratch.state().join("duet.toml"), upstreams).unwrap();
    let [talks, returns] = [1, 2].map(|seed| scratch.device(seed, PROFILE, Transport::Datagram));
    let gateway = scratch.run("127.0.0.1:0");
    let prometheus = Prometheus::start(scratch.0.path(), gateway.metrics);
    let done = AtomicBool::new(false);
    let mut open: Vec<_> = boards().iter().flat_map(panels).collect();
    let total = open.len();
    std::thread::scope(|scope| {
        let done = &done;
        let is_done = || done.load(Ordering::Relaxed);
        for (device, closes) in [(talks, false), (returns, true)] {
            let mut client = Client::new(device, gateway.address, Transport::Datagram);
            scope.spawn(move || {
                while !is_done() {
                    let before = client.confirmed.len();
                    let _ = client.device.send_reading(client.now(), 1, b"x", true);
                    if !client.device.is_open() {
                        client.device.open(client.now());
                    }
                    client.drive(|client| client.confirmed.len() > before || is_done());
                    if closes {
                        client.device.close();
                        client.drive(|client| !client.device.is_open() || is_done());
                    }
                    std::thread::sleep(Duration::from_millis(20));
                }
            });
        }
        let deadline = Instant::now() + Duration::from_secs(33 + 7 * prometheus.scrape_s);
        while !open.is_empty() && Instant::now() < deadline {
            open.retain(|(_, queries)| !queries.iter().any(|query| prometheus.has_data(query)));
            std::thread::sleep(Duration::from_millis(200));
        }
        done.store(true, Ordering::Relaxed);
    });
    let log = fs::read_to_string(scratch.0.path().join("prometheus.log")).unwrap();
    let empty: Vec<_> = open.iter().map(|(place, _)| place).collect();
    assert!(empty.is_empty() && total > 50, "no data for {empty:?}\n{log}");
    let rules = prometheus.get("/api/v1/rules").unwrap().to_string();
    assert!(rules.contains("DuetStorm") && !rules.contains("\"health\":\"err\""), "{rules}");
    gateway.terminate();
}
