//! Who is online, on disk: for a gateway that is killed and cannot say that its devices left. The next one says it for it.
//!
//! Owns the folder `presence` of the state directory. Each run of the gateway has a folder of its own in it, named by
//! its start, and each shard a file in that: a line for each device that comes (`+<since> <name>`) or goes (`- <name>`),
//! written in the turn in which it happens and never synced, since a process that is killed takes nothing with it
//! that the system has. What has grown too long is written anew by a thread of its own. A folder goes when what its
//! devices are owed is in the spool; until then the next start says it again, under the same ids.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

use duet_telemetry::catalogue::FILES_RENEWED;

use crate::delivery::{Batch, Durability, Notice, Reason, Submitter, Urgency};
use crate::identity::{self, now_ms};
use crate::log::Complaint;
use crate::registry::Name;

/// The folder in the state directory.
const DIR: &str = "presence";
/// A file that has grown by so much is written anew.
const LONG: u64 = 16 << 20;
/// The file that says of a run that it was stopped, and has left its sessions to the next one.
const STOPPED: &str = "stopped";
/// A line is never longer: a device's name has at most 64 bytes.
const LINE_MAX: u64 = 128;

/// This run's folder.
pub(super) struct Journals {
    dir: PathBuf,
    /// The run before, if it has handed its sessions over and nobody has said yet which of them go on.
    before: Option<Ended>,
}

/// One shard's file.
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    lines: Vec<u8>,
    /// How long the file is.
    written: u64,
    /// From which length on it is written anew.
    long: u64,
    work: Option<JoinHandle<()>>,
    complaint: Complaint,
}

/// What was said last of each device: since when it is online, or that it left.
type Last = BTreeMap<String, Option<u64>>;

/// Who is online, and since when.
fn here(last: &Last) -> impl Iterator<Item = (&str, u64)> {
    last.iter().filter_map(|(device, since_ms)| Some((device.as_str(), (*since_ms)?)))
}

/// A run that ended without saying who left.
#[derive(Debug, PartialEq, Eq)]
struct Ended {
    dir: PathBuf,
    /// Which run it was.
    number: u64,
    /// Its last sign of life, milliseconds since 1970.
    at_ms: u64,
    online: Last,
    /// Why those left that do not go on.
    reason: Reason,
}

fn unix_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl Journals {
    /// Makes this run's folder, and stores for upstreams that devices of earlier runs, which could not say so, have left.
    /// Where the run before has handed its sessions over, that of its devices waits for [`go_on`](Self::go_on).
    ///
    /// # Errors
    /// The system's.
    pub(super) fn open(state: &Path, spool: &Submitter, handed_over: bool) -> io::Result<Self> {
        let all = state.join(DIR);
        DirBuilder::new().recursive(true).mode(0o700).create(&all)?;
        let mut before = ended(&all)?;
        let mut number = next(&before, now_ms());
        let last = if handed_over { before.pop() } else { None };
        before.into_iter().for_each(|ended| announce(ended, spool));
        let dir = loop {
            let dir = all.join(number.to_string());
            match DirBuilder::new().mode(0o700).create(&dir) {
                Ok(()) => break dir,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
                Err(error) => return Err(error),
            }
        };
        Ok(Self { dir, before: last })
    }

    /// The sessions of these devices go on that the run before has handed over: they are here still. All others have left with it.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn go_on(
        &mut self,
        devices: &HashSet<Arc<str>>,
        spool: &Submitter,
    ) -> io::Result<()> {
        let Some(ended) = self.before.take() else { return Ok(()) };
        let (here, left): (Last, Last) = ended
            .online
            .into_iter()
            .partition(|(device, since_ms)| since_ms.is_none() || devices.contains(&**device));
        // Read before what any shard writes.
        write(&self.dir.join("0.base"), &here)?;
        announce(Ended { online: left, reason: Reason::Stopped, ..ended }, spool);
        Ok(())
    }

    /// This run ends, and leaves its sessions to the next one, which may come too late for them.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn stopped(&self) -> io::Result<()> {
        create(&self.dir.join(STOPPED)).map(drop)
    }

    /// Forgets what earlier runs left: nobody is to be told.
    pub(super) fn forget(state: &Path) {
        // Where it cannot be removed it does no harm.
        let _ = fs::remove_dir_all(state.join(DIR));
    }

    /// A shard's file.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn shard(&self, shard: usize) -> io::Result<Journal> {
        let path = self.dir.join(shard.to_string());
        let file = create(&path)?;
        let complaint = Complaint::default();
        Ok(Journal { path, file, lines: Vec::new(), written: 0, long: LONG, work: None, complaint })
    }
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create_new(true).mode(0o600).open(path)
}

impl Journal {
    pub(super) fn online(&mut self, device: &str, since_ms: u64) {
        let _ = writeln!(self.lines, "+{since_ms} {device}");
    }

    pub(super) fn offline(&mut self, device: &str) {
        let _ = writeln!(self.lines, "- {device}");
    }

    /// Writes the turn's lines. What the disk does not take is lost: then a device's leaving may not be told, or be told twice.
    pub(super) fn flush(&mut self) {
        if self.lines.is_empty() {
            return;
        }
        match self.file.write_all(&self.lines) {
            Ok(()) => self.written += self.lines.len() as u64,
            // Half a line would spoil those after it.
            Err(_) => drop(self.file.set_len(self.written)),
        }
        self.lines.clear();
        if self.written >= self.long {
            self.long = self.written + LONG;
            self.begin_anew();
        }
    }

    /// A sign of life: the file's time says when the gateway was last alive. A file that somebody removed or replaced is
    /// made again, and holds who comes from now on.
    pub(super) fn live(&mut self) {
        let _ = self.file.set_modified(SystemTime::now());
        let looked = self.look().map_err(|error| {
            format!(
                "{}: {error}; while that is so, upstreams will not hear which devices left if this gateway is killed",
                self.path.display()
            )
        });
        self.complaint.about(looked);
    }

    fn look(&mut self) -> io::Result<()> {
        if identity::is_named(&self.file, &self.path)? {
            return Ok(());
        }
        // What stands there instead is nobody's: the folder is this run's.
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            removed => removed?,
        }
        if let Some(dir) = self.path.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        }
        (self.file, self.written, self.long) = (create(&self.path)?, 0, LONG);
        FILES_RENEWED.with(["presence"]).add(1);
        tracing::warn!(
            "{}: it was removed or replaced under the gateway, and is made again; if this gateway is killed, upstreams will not hear \
             that devices left which came before",
            self.path.display()
        );
        Ok(())
    }

    /// Goes on in a new file, and has the old one written anew with a line for each device. An old one that could not be
    /// written anew is tried again.
    fn begin_anew(&mut self) {
        if self.work.as_ref().is_some_and(|work| !work.is_finished()) {
            return;
        }
        let old = self.path.with_extension("old");
        if !old.exists() {
            if fs::rename(&self.path, &old).is_err() {
                return;
            }
            match create(&self.path) {
                Ok(file) => (self.file, self.written, self.long) = (file, 0, LONG),
                // The old file is still open and goes on.
                Err(_) => return drop(fs::rename(&old, &self.path)),
            }
        }
        let (base, next) = (self.path.with_extension("base"), self.path.with_extension("next"));
        let work = move || {
            let mut online = BTreeMap::new();
            let done = replay(&base, &mut online)
                .and_then(|()| replay(&old, &mut online))
                .and_then(|()| write(&next, &online))
                .and_then(|()| fs::rename(&next, &base));
            if done.is_ok() {
                // Read twice it would say the same.
                let _ = fs::remove_file(&old);
            }
        };
        // Without a thread the old file stays, and is read all the same.
        self.work = std::thread::Builder::new().name("presence".into()).spawn(work).ok();
    }
}

/// Those who left are written, too: another file, which is read before, may have it that they came.
fn write(path: &Path, last: &Last) -> io::Result<()> {
    let mut out = BufWriter::new(File::create(path)?);
    last.iter().try_for_each(|(device, since_ms)| match since_ms {
        Some(since_ms) => writeln!(out, "+{since_ms} {device}"),
        None => writeln!(out, "- {device}"),
    })?;
    out.flush()
}

/// Follows a file's lines; one that is not there has none. The last one may be cut; others that are none are left out, and told.
fn replay(path: &Path, last: &mut Last) -> io::Result<()> {
    let mut reader = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        file => BufReader::new(file?),
    };
    let (mut line, mut damaged) = (Vec::new(), 0u64);
    loop {
        line.clear();
        reader.by_ref().take(LINE_MAX).read_until(b'\n', &mut line)?;
        if let Some((device, since_ms)) = read(&line) {
            last.insert(device.to_owned(), since_ms);
            continue;
        }
        if !line.ends_with(b"\n") && reader.skip_until(b'\n')? == 0 {
            break;
        }
        damaged += 1;
    }
    if damaged > 0 {
        tracing::warn!(
            "{}: damaged lines in it ({damaged}) were left out; of so many devices upstreams may not hear that they left, or when",
            path.display()
        );
    }
    Ok(())
}

/// A line's device, and since when it is online if it is; nothing where the line is cut or none.
fn read(line: &[u8]) -> Option<(&str, Option<u64>)> {
    let line = std::str::from_utf8(line.strip_suffix(b"\n")?).ok()?;
    let (what, device) = line.split_once(' ')?;
    device.parse::<Name>().ok()?;
    let since_ms = match what {
        "-" => None,
        _ => Some(what.strip_prefix('+')?.parse().ok()?),
    };
    Some((device, since_ms))
}

/// The number of the next run: its time, and above those before, also where the clock has been set back since.
fn next(before: &[Ended], now_ms: u64) -> u64 {
    before.last().map_or(now_ms, |last| now_ms.max(last.number.saturating_add(1)))
}

/// The runs before this one, the oldest first.
fn ended(all: &Path) -> io::Result<Vec<Ended>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(all)? {
        let dir = entry?.path();
        let (mut shards, mut at_ms, mut reason) = (Vec::new(), 0, Reason::Killed);
        let Ok(files) = fs::read_dir(&dir) else { continue };
        for file in files {
            let path = file?.path();
            let modified = fs::metadata(&path).and_then(|found| found.modified());
            at_ms = at_ms.max(modified.map_or(0, unix_ms));
            if path.ends_with(STOPPED) {
                reason = Reason::Stopped;
                continue;
            }
            shards.push(path.with_extension(""));
        }
        shards.sort();
        shards.dedup();
        let mut online = BTreeMap::new();
        for shard in shards {
            for part in ["base", "old", ""] {
                replay(&shard.with_extension(part), &mut online)?;
            }
        }
        // A file's time is a little coarse.
        let at_ms = here(&online).map(|(_, since_ms)| since_ms).max().unwrap_or(0).max(at_ms);
        let name = dir.file_name().and_then(|name| name.to_str());
        let number = name.and_then(|name| name.parse().ok()).unwrap_or(0);
        found.push(Ended { dir, number, at_ms, online, reason });
    }
    found.sort_by_key(|ended| ended.number);
    Ok(found)
}

/// Removes a run's folder once nobody holds this any more, if all that its devices are owed was stored.
struct Owed {
    dir: PathBuf,
    /// Batches that are not known to be stored, also where the spool ends without a word.
    unstored: AtomicUsize,
}

impl Drop for Owed {
    fn drop(&mut self) {
        if self.unstored.load(Ordering::Relaxed) == 0 {
            // What stays is said again.
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// Stores that these devices left when the gateway did.
fn announce(Ended { dir, at_ms, online, reason, .. }: Ended, spool: &Submitter) {
    let owed = Arc::new(Owed { dir, unstored: AtomicUsize::new(0) });
    let mut batch = Batch::new();
    let submit = |batch: &mut Batch| {
        let own = Arc::clone(&owed);
        own.unstored.fetch_add(1, Ordering::Relaxed);
        let done = move |_, durability| {
            if durability == Durability::Durable {
                own.unstored.fetch_sub(1, Ordering::Relaxed);
            }
        };
        // What is refused is not called.
        let _ = spool.submit(std::mem::take(batch), Urgency::Quiet, Box::new(done));
    };
    for (device, since_ms) in here(&online) {
        let notice = Notice::Offline { reason, since_ms };
        let record = notice.record(device, at_ms, b"");
        if !batch.push(&record) {
            submit(&mut batch);
            let fits = batch.push(&record);
            debug_assert!(fits, "an empty batch takes any notice");
        }
    }
    if !batch.is_empty() {
        submit(&mut batch);
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use super::*;
    use crate::delivery::{Retention, Source as _, Spool, SpoolConfig};
    use crate::log::tests::kept;

    #[test]
    fn who_came_and_did_not_go_is_online_whatever_is_cut() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("7");
        fs::create_dir(&run).unwrap();
        let journals = Journals { dir: run.clone(), before: None };
        let (mut first, mut second) = (journals.shard(0).unwrap(), journals.shard(1).unwrap());
        first.online("pump.7", 5);
        first.online("valve", 6);
        first.flush();
        first.offline("valve");
        first.flush();
        second.online("meter", 9);
        second.flush();
        let online = |at: &Path| {
            let ended = ended(at).unwrap().remove(0);
            here(&ended.online)
                .map(|(device, at)| (device.to_owned(), at))
                .collect::<BTreeMap<_, _>>()
        };
        let expected = BTreeMap::from([("meter".to_owned(), 9), ("pump.7".to_owned(), 5)]);
        assert_eq!(online(dir.path()), expected);
        assert!(ended(dir.path()).unwrap()[0].at_ms > 9, "a time of day");
        // Written anew, and again with what came meanwhile.
        first.begin_anew();
        while run.join("0.old").exists() {
            std::thread::yield_now();
        }
        assert!(run.join("0.base").exists());
        assert_eq!(online(dir.path()), expected);
        first.offline("pump.7");
        first.online("valve", 10);
        first.flush();
        let whole = fs::read(run.join("0")).unwrap();
        let expected = BTreeMap::from([("meter".to_owned(), 9), ("valve".to_owned(), 10)]);
        assert_eq!(online(dir.path()), expected);
        for cut in 0..whole.len() {
            fs::write(run.join("0"), &whole[..cut]).unwrap();
            assert!(online(dir.path()).contains_key("meter"), "{cut}");
        }
    }

    #[test]
    fn a_damaged_line_takes_no_other_with_it_and_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("7");
        fs::create_dir(&run).unwrap();
        let lines = ["+5 pump", "+6 valve", "- pump", "+7 meter"];
        let damaged =
            ["+5 pu\u{ff}", "+6valve", "", "+x valve", "*6 valve", "+6 \x01", &"+".repeat(400)];
        for harm in damaged {
            // What one character too many makes of UTF-8.
            let harm: Vec<_> = harm.chars().map(|one| one as u8).collect();
            let lines = lines.map(|line| if line == "+6 valve" { &harm } else { line.as_bytes() });
            fs::write(run.join("0"), [&lines.join(&b'\n')[..], b"\n+8 la"].concat()).unwrap();
            let mut found = Vec::new();
            let said = kept(|| found = ended(dir.path()).unwrap());
            assert_eq!(here(&found[0].online).collect::<Vec<_>>(), [("meter", 7)], "{harm:?}");
            assert!(said.len() == 1 && said[0][1].contains("damaged lines in it (1)"), "{said:?}");
        }
    }

    #[test]
    fn a_file_that_is_removed_under_the_gateway_is_there_again_for_whoever_comes() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("7");
        fs::create_dir(&run).unwrap();
        let mut journal = Journals { dir: run.clone(), before: None }.shard(0).unwrap();
        let found = |at: &Path| {
            let ended = ended(at).unwrap().remove(0);
            here(&ended.online).map(|(device, _)| device.to_owned()).collect::<Vec<_>>()
        };
        let mut come = |harm: &dyn Fn(), device: &str, expected: &[&str]| {
            harm();
            journal.live();
            journal.online(device, 5);
            journal.flush();
            assert_eq!(found(dir.path()), expected);
        };
        come(&|| (), "meter", &["meter"]);
        come(&|| fs::remove_dir_all(&run).unwrap(), "pump", &["pump"]);
        come(&|| fs::remove_file(run.join("0")).unwrap(), "valve", &["valve"]);
        let replaced = || {
            fs::rename(run.join("0"), dir.path().join("elsewhere")).unwrap();
            fs::write(run.join("0"), b"-").unwrap();
        };
        come(&replaced, "lamp", &["lamp"]);
        come(&|| (), "meter", &["lamp", "meter"]);
    }

    #[test]
    fn what_stands_in_the_way_of_a_file_is_told_once_for_each_cause() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("7");
        fs::create_dir(&run).unwrap();
        let mut journal = Journals { dir: run.clone(), before: None }.shard(0).unwrap();
        let mut said = || {
            let lines = kept(|| (0..3).for_each(|_| journal.live()));
            lines.into_iter().map(|[_, line, _]| line).collect::<Vec<_>>()
        };
        assert!(said().is_empty());
        let (file, away) = (run.join("0"), dir.path().join("away"));
        fs::remove_file(&file).unwrap();
        fs::create_dir(&file).unwrap();
        let lines = said();
        assert!(lines.len() == 1 && lines[0].contains(&*file.to_string_lossy()), "{lines:?}");
        // Another cause: the folder is none.
        fs::rename(&run, &away).unwrap();
        fs::write(&run, b"").unwrap();
        let lines = said();
        assert!(lines.len() == 1 && lines[0].contains("Not a directory"), "{lines:?}");
        fs::remove_file(&run).unwrap();
        let lines = said();
        assert!(lines.len() == 1 && lines[0].contains("is made again"), "{lines:?}");
        fs::remove_dir_all(&run).unwrap();
        fs::write(&run, b"").unwrap();
        assert_eq!(said().len(), 1, "what was well meanwhile is told anew");
    }

    /// Sessions are handed over by the run before, whatever the clock said when it began.
    #[test]
    fn runs_are_in_their_order_when_the_clock_is_set_back() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("99")).unwrap();
        assert_eq!(next(&ended(dir.path()).unwrap(), 1_000), 1_000);
        fs::create_dir(dir.path().join("1000")).unwrap();
        let before = ended(dir.path()).unwrap();
        assert_eq!(before.iter().map(|ended| ended.number).collect::<Vec<_>>(), [99, 1_000]);
        assert_eq!((next(&before, 500), next(&before, 2_000), next(&[], 7)), (1_001, 2_000, 7));
    }

    /// Devices that came with the process before are in another file than what becomes of them.
    #[test]
    fn who_was_handed_over_and_left_does_not_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("7");
        fs::create_dir(&run).unwrap();
        let before = [("meter".to_owned(), Some(3)), ("valve".to_owned(), Some(4))];
        write(&run.join("0.base"), &Last::from(before)).unwrap();
        let mut second = Journals { dir: run, before: None }.shard(1).unwrap();
        second.offline("valve");
        second.flush();
        second.begin_anew();
        second.work.take().unwrap().join().unwrap();
        let ended = ended(dir.path()).unwrap().remove(0);
        assert_eq!(here(&ended.online).collect::<Vec<_>>(), [("meter", 3)]);
    }

    /// Not all sessions go on that are handed over: some are over by then, or their devices may not connect any more.
    #[test]
    fn whose_session_does_not_go_on_has_left() {
        let dir = tempfile::tempdir().unwrap();
        let (state, spool) = (dir.path().join("state"), dir.path().join("spool"));
        let spool = Spool::start(SpoolConfig {
            dir: spool.clone(),
            segment_bytes: 1 << 20,
            max_bytes: 4 << 20,
            known: None,
            retention: Retention::default(),
        })
        .unwrap();
        let submitter = spool.submitter();
        let mut journal = Journals::open(&state, &submitter, false).unwrap().shard(0).unwrap();
        ["meter", "pump", "valve"].iter().for_each(|device| journal.online(device, 5));
        journal.offline("valve");
        journal.flush();
        let mut journals = Journals::open(&state, &submitter, true).unwrap();
        journals.go_on(&HashSet::from(["meter".into()]), &submitter).unwrap();
        drop(submitter);
        let mut source = spool.source();
        spool.shutdown().unwrap();
        let mut left = Vec::new();
        let all = source.read(0, &mut |_, reading| {
            left.push((reading.device.to_owned(), reading.notice));
            ControlFlow::Continue(())
        });
        all.unwrap();
        let gone = Notice::Offline { reason: Reason::Stopped, since_ms: 5 };
        assert_eq!(left, [("pump".to_owned(), Some(gone))]);
        let runs = ended(&state.join(DIR)).unwrap();
        assert_eq!(runs.len(), 1, "the one before is done with");
        assert_eq!(here(&runs[0].online).collect::<Vec<_>>(), [("meter", 5)]);
    }

    /// A spool whose thread has ended calls nobody.
    #[test]
    fn what_is_not_known_to_be_stored_is_said_again() {
        for (unstored, stays) in [(0, false), (1, true)] {
            let run = tempfile::tempdir().unwrap();
            let dir = run.path().join("1");
            fs::create_dir(&dir).unwrap();
            drop(Owed { dir: dir.clone(), unstored: AtomicUsize::new(unstored) });
            assert_eq!(dir.exists(), stays);
        }
    }

    #[test]
    fn a_line_that_did_not_fit_spoils_none_and_what_failed_is_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("7");
        fs::create_dir(&run).unwrap();
        let mut journal = Journals { dir: run.clone(), before: None }.shard(0).unwrap();
        journal.online("pump.7", 5);
        journal.flush();
        // Half a line, as a full disk leaves it, and then a disk that takes nothing.
        let whole = journal.file.try_clone().unwrap();
        (&whole).write_all(b"+6 val").unwrap();
        journal.file = File::open(run.join("0")).unwrap();
        journal.online("valve", 6);
        journal.flush();
        journal.file = whole;
        journal.file.set_len(journal.written).unwrap();
        journal.offline("pump.7");
        journal.online("meter", 7);
        journal.flush();
        let found = |at: &Path| {
            let ended = ended(at).unwrap().remove(0);
            here(&ended.online).map(|(device, _)| device.to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(found(dir.path()), ["meter"]);
        // The file cannot be written anew while something else has its next name.
        fs::create_dir(run.join("0.next")).unwrap();
        journal.begin_anew();
        journal.work.take().unwrap().join().unwrap();
        assert!(run.join("0.old").exists());
        assert_eq!(found(dir.path()), ["meter"]);
        fs::remove_dir(run.join("0.next")).unwrap();
        journal.begin_anew();
        journal.work.take().unwrap().join().unwrap();
        assert!(!run.join("0.old").exists());
        assert_eq!(found(dir.path()), ["meter"]);
    }
}
