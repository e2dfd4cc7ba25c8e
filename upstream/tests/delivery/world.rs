//! A source in memory, running upstreams, and what arrived.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use duet_upstream::testing::{Book, Memory};
use duet_upstream::{Options, Report, Settings, SpoolId, Upstreams};
use serde_json::Value;

/// Long enough for a machine that does other things, too.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) memory: Memory,
    pub(crate) said: Arc<Mutex<Vec<String>>>,
    pub(crate) book: Book,
    upstreams: Option<Upstreams>,
    settings: String,
}

impl World {
    /// With readings to come and one upstream, described as in the settings.
    pub(crate) fn new(readings: u32, settings: &str) -> Self {
        let memory = Memory::new();
        memory.name(SpoolId([0xc4; 16]));
        let world = Self {
            dir: tempfile::tempdir().unwrap(),
            memory,
            said: Arc::default(),
            book: Book::default(),
            upstreams: None,
            settings: settings.to_owned(),
        };
        world.push(0..readings);
        world
    }

    /// Readings of three devices; the payload is the index.
    pub(crate) fn push(&self, indices: std::ops::Range<u32>) {
        for index in indices {
            let device = ["pump-7", "pump-8", "valve"][index as usize % 3];
            self.memory.push(device, 1, index.to_string().as_bytes());
        }
    }

    pub(crate) fn state(&self) -> &Path {
        self.dir.path()
    }

    /// A file in the state directory that its owner alone may read.
    pub(crate) fn secret(&self, name: &str, text: &str) {
        let path = self.state().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    }

    pub(crate) fn start(&mut self) {
        let settings: Settings = toml::from_str(&self.settings).unwrap();
        let upstream = settings.check(self.state()).unwrap();
        let said = Arc::clone(&self.said);
        let options = Options {
            dir: self.state().join("upstream"),
            upstreams: vec![upstream],
            tell: Arc::new(move |text| said.lock().unwrap().push(text.to_owned())),
            taker: Arc::new(self.book.clone()),
        };
        let memory = self.memory.clone();
        self.upstreams =
            Some(duet_upstream::start(options, &mut |_| Ok(Box::new(memory.clone()))).unwrap());
    }

    pub(crate) fn stop(&mut self) {
        self.upstreams.take().unwrap().shutdown();
    }

    pub(crate) fn report(&self) -> Report {
        self.upstreams.as_ref().unwrap().reports().look().remove(0)
    }

    /// Waits until the report is as wished.
    pub(crate) fn until(&self, what: &str, wished: impl Fn(&Report) -> bool) -> Report {
        let began = Instant::now();
        loop {
            let report = self.report();
            if wished(&report) {
                return report;
            }
            assert!(
                began.elapsed() < PATIENCE,
                "{what} never came: {report:?} {:?}",
                self.said.lock().unwrap()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until everything has left.
    pub(crate) fn until_empty(&self) -> Report {
        self.until("the end of the backlog", |report| report.backlog == 0 && report.next > 0)
    }
}

/// The indices of the lines, after each line was compared with what was sent.
pub(crate) fn indices(lines: &str) -> Vec<u64> {
    let index = |line: &str| {
        let line: Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let index = line["index"].as_u64().unwrap();
        assert_eq!(line["payload"], index.to_string());
        index
    };
    lines.lines().map(index).collect()
}

/// All of them came, and the first time in order.
pub(crate) fn whole_and_in_order(indices: &[u64], count: u64) {
    let mut seen = BTreeSet::new();
    let firsts: Vec<u64> = indices.iter().copied().filter(|index| seen.insert(*index)).collect();
    assert_eq!(firsts, (0..count).collect::<Vec<_>>());
}
