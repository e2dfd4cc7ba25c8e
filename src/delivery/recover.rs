//! What happens to a spool's files before the first append. Owns the cut of a tail and what is told about it; where
//! there is damage before the tail it stops before it has changed anything.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use duet_telemetry::catalogue::FILES_RENEWED;

use super::cursor::{self, Position};
use super::cut;
use super::error::SpoolError;
use super::format::{DATA_START, Header, RECORD_HEAD};
use super::id::SpoolId;
use super::marker::{self, Found, Marker};
use super::scan::{Scan, Step};
use super::segment::{self, PRIVATE};
use super::spool::SpoolConfig;

const BLOCK: usize = 64 * 1024;

/// What opening a spool found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Segments in the directory.
    pub segments: u64,
    /// Records in the last one that was there.
    pub tail_records: u64,
    /// Bytes at the end that were no whole commit and were cut off.
    pub cut_bytes: u64,
    /// Where they are kept, when they may have been confirmed readings: then something has damaged them since. When
    /// they were only unfinished, nobody was promised anything, and nothing is kept.
    pub kept_aside: Option<PathBuf>,
    /// How many confirmed readings are known to be missing at the end.
    pub missing: u64,
    /// Why nothing said how far readings had been confirmed, where something should have.
    pub unmarked: Option<Unmarked>,
    /// The file that remembers which spool is here, where there was none beside a spool that was there.
    pub unnamed: Option<PathBuf>,
}

/// What was wrong with `spool.durable` at a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmarked {
    /// It was there and could not be read.
    Damaged,
    /// It was not there, although readings were.
    Gone,
}

impl Recovery {
    /// What an operator should know of it.
    #[must_use]
    pub fn told(&self, dir: &Path) -> Vec<String> {
        [self.of_the_name(dir), self.of_the_marker(dir), self.of_the_tail(dir)]
            .into_iter()
            .flatten()
            .collect()
    }

    fn of_the_name(&self, dir: &Path) -> Option<String> {
        let file = self.unnamed.as_ref()?.display();
        Some(format!(
            "{file}: it was gone, which remembers the spool that was here at the last start, so the one that is in {} was not \
             compared with it; that one is remembered from now on",
            dir.display()
        ))
    }

    fn of_the_marker(&self, dir: &Path) -> Option<String> {
        let was = match self.unmarked? {
            Unmarked::Damaged => "was damaged",
            Unmarked::Gone => "was gone",
        };
        Some(format!(
            "{}: it {was}, which said how far readings had been confirmed, and is made anew: whether confirmed readings are \
             missing at the end, only cursors can tell. If something was done to this directory, stop the gateway and bring \
             all of its files back",
            dir.join(marker::NAME).display()
        ))
    }

    fn of_the_tail(&self, dir: &Path) -> Option<String> {
        let (dir, bytes) = (dir.display(), self.cut_bytes);
        match (&self.kept_aside, self.missing) {
            (None, _) if bytes == 0 => None,
            (None, _) => Some(format!(
                "{dir}: {bytes} bytes after the last whole commit were cut off: an unfinished commit that nobody had \
                 confirmed"
            )),
            (Some(path), 0) => Some(format!(
                "{dir}: {bytes} bytes at the end were damaged, perhaps confirmed readings, and are kept in {}; look at \
                 it, then run `duet spool ack-cut`",
                path.display()
            )),
            (Some(path), missing) => Some(format!(
                "{dir}: {missing} confirmed readings are missing at the end; the {bytes} bytes that stand there are \
                 kept in {}; bring the files back from a backup, or look at it and run `duet spool ack-cut`",
                path.display()
            )),
        }
    }
}

/// The segment that takes the appends.
#[derive(Debug)]
pub(super) struct Tail {
    pub(super) path: PathBuf,
    pub(super) header: Header,
    /// Where the next record goes, and its index.
    pub(super) at: u64,
    pub(super) next_index: u64,
}

/// A spool as it lies there.
struct Examined<'a> {
    known: Known<'a>,
    /// Its newest segment, read to its end; a directory without any may become a spool.
    newest: Option<Newest>,
    recovery: Recovery,
}

struct Newest {
    scan: Scan,
    /// Bytes behind the last whole commit.
    leftover: u64,
    /// Whether confirmed readings may be among them, or are known to be missing.
    is_damaged: bool,
}

/// Reads what a start needs to know, and refuses what it refuses. Changes nothing.
fn examine(config: &SpoolConfig) -> Result<Examined<'_>, SpoolError> {
    let dir = &config.dir;
    let mut entries = match segment::list(dir) {
        // A start makes the directory, if it may be empty.
        Err(SpoolError::None(_)) => Vec::new(),
        listed => listed?,
    };
    let found = Marker::read(dir)?;
    let marker = found.whole();
    let known = Known::read(config.known.as_deref())?;
    let mut recovery = Recovery { segments: entries.len() as u64, ..Recovery::default() };
    let Some(last) = entries.pop() else {
        if let Some(known) = known.id {
            return Err(known_error(config, known, None));
        }
        if found != Found::Absent {
            let durable = marker.map(|marker| marker.durable);
            return Err(SpoolError::Emptied { dir: dir.clone(), durable });
        }
        return Ok(Examined { known, newest: None, recovery });
    };
    let mut scan = Scan::open(last)?;
    let spool = scan.header.spool;
    if let Some(known) = known.id.filter(|known| *known != spool) {
        return Err(known_error(config, known, Some(spool)));
    }
    if marker.is_some_and(|marker| marker.spool != spool) {
        return Err(SpoolError::Mixed(dir.clone()));
    }
    let step = loop {
        match scan.step()? {
            Step::Record => recovery.tail_records += 1,
            other => break other,
        }
    };
    if scan.later_group()? {
        return Err(scan.damaged(step));
    }
    let end = scan.next_index;
    let leftover = scan.leftover()?;
    recovery.cut_bytes = leftover;
    // A start that was killed at the very first has left no reading and no marker.
    let has_stored = scan.header.first_index > 0 || recovery.tail_records > 0 || leftover > 0;
    recovery.unmarked = match found {
        Found::Whole(_) => None,
        Found::Damaged => Some(Unmarked::Damaged),
        Found::Absent => has_stored.then_some(Unmarked::Gone),
    };
    recovery.unnamed = config.known.clone().filter(|_| has_stored && known.id.is_none());
    // What somebody has read was durable, too.
    let own = |position: &Position| position.spool == spool;
    let read = cursor::readable_cursors(dir)?.into_iter().filter(own).map(|one| one.index).max();
    let durable = marker.map(|marker| marker.durable).max(read);
    recovery.missing = durable.map_or(0, |durable| durable.saturating_sub(end));
    // A marker of this boot is exact: what lies beyond was never confirmed. One from before may be old.
    let exact = marker.is_some_and(|marker| marker.is_of_this_boot());
    let is_damaged = recovery.missing > 0 || (leftover > 0 && !exact && !scan.is_unfinished()?);
    Ok(Examined { known, newest: Some(Newest { scan, leftover, is_damaged }), recovery })
}

/// Whether a start would take the spool; what it would find missing or damaged, in words for people. Changes nothing.
///
/// # Errors
/// [`SpoolError`], as a start would have it.
pub fn look(config: &SpoolConfig) -> Result<Option<String>, SpoolError> {
    let (dir, shown) = (&config.dir, config.dir.display());
    if segment::Lock::is_taken(dir)? {
        return Ok(None);
    }
    let Examined { newest, recovery, .. } = examine(config)?;
    let is_damaged = newest.is_some_and(|newest| newest.is_damaged);
    Ok(is_damaged.then(|| match recovery.missing {
        0 => format!(
            "{shown}: {} bytes at the end are damaged, perhaps confirmed readings: `duet spool verify` shows where. A start \
             keeps them in a file beside it and goes on",
            recovery.cut_bytes
        ),
        missing => format!(
            "{shown}: {missing} confirmed readings are missing at the end: bring the files back from a backup before a start, \
             which goes on without them"
        ),
    }))
}

/// Opens the spool's last segment for appending, or creates the first. The caller holds the lock.
pub(super) fn recover(config: &SpoolConfig) -> Result<(Tail, Recovery), SpoolError> {
    let dir = &config.dir;
    let Examined { known, newest, mut recovery } = examine(config)?;
    segment::remove_spare(dir)?;
    let Some(Newest { scan, leftover, is_damaged }) = newest else {
        recovery.segments = 1;
        let spool = SpoolId::random().map_err(SpoolError::io("drawing a random name for", dir))?;
        let tail = create(config, spool, 0, false)?;
        known.keep(spool)?;
        return Ok((tail, recovery));
    };
    let (spool, end) = (scan.header.spool, scan.next_index);
    FILES_RENEWED.with(["durable"]).add(u64::from(recovery.unmarked.is_some()));
    FILES_RENEWED.with(["spool-id"]).add(u64::from(recovery.unnamed.is_some()));
    if is_damaged {
        let (first, at) = (scan.header.first_index, scan.at);
        recovery.kept_aside = Some(cut::keep(dir, &scan.entry.path, first, at, leftover)?);
    }
    settle(&scan, leftover).map_err(SpoolError::io("settling the tail of", &scan.entry.path))?;
    segment::sync_dir(dir)?;
    known.keep(spool)?;
    if is_damaged {
        // No index that was ever given may name another reading: the new ones begin behind all that was cut.
        let most = leftover.div_ceil(RECORD_HEAD as u64);
        let next = (end + most).max(end + recovery.missing);
        recovery.segments += 1;
        let tail = create(config, spool, next, true)?;
        return Ok((tail, recovery));
    }
    let tail = Tail { path: scan.entry.path, header: scan.header, at: scan.at, next_index: end };
    Ok((tail, recovery))
}

fn create(
    config: &SpoolConfig,
    spool: SpoolId,
    first_index: u64,
    gap: bool,
) -> Result<Tail, SpoolError> {
    let (dir, size) = (&config.dir, config.segment_bytes);
    let never = AtomicBool::new(false);
    let Some(spare) = segment::prepare(dir, size, &never)? else { unreachable!("nobody cancels") };
    let header = Header { first_index, size, salt: segment::salt(&spare)?, spool, gap };
    let path = segment::adopt(dir, &spare, &header)?;
    Ok(Tail { path, header, at: DATA_START, next_index: first_index })
}

/// Makes the file what the scan saw: the last group durable, zeros after it up to the full size.
fn settle(scan: &Scan, leftover: u64) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(&scan.entry.path)?;
    let mut block = vec![0; BLOCK];
    let (mut at, end) = (scan.at, scan.at + leftover);
    while at < end {
        let length = usize::try_from(end - at).map_or(BLOCK, |left| left.min(BLOCK));
        file.write_all_at(&block[..length], at)?;
        at += length as u64;
    }
    let mut at = scan.group_at;
    while at < scan.at {
        let length = read_block(&file, &mut block, at, scan.at)?;
        file.write_all_at(&block[..length], at)?;
        at += length as u64;
    }
    file.sync_all()
}

/// Reads from `at` up to `end`, at most a block and at least a byte.
fn read_block(file: &File, block: &mut [u8], at: u64, end: u64) -> io::Result<usize> {
    let length = usize::try_from(end - at).map_or(block.len(), |left| left.min(block.len()));
    file.read_exact_at(&mut block[..length], at)?;
    Ok(length)
}

/// Which spool was here at the last start, as a file outside the spool's directory has it: a disk that is not
/// mounted leaves an empty directory, which must not become a new spool beside the one that exists.
struct Known<'a> {
    path: Option<&'a Path>,
    id: Option<SpoolId>,
}

impl<'a> Known<'a> {
    fn read(path: Option<&'a Path>) -> Result<Self, SpoolError> {
        let Some(file) = path else { return Ok(Self { path, id: None }) };
        let id = match fs::read_to_string(file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            read => {
                let text = read.map_err(SpoolError::io("reading", file))?;
                let id = SpoolId::parse(text.trim());
                Some(id.ok_or_else(|| SpoolError::Unreadable(file.to_owned()))?)
            }
        };
        Ok(Self { path, id })
    }

    /// Remembers it, durably, whole or not at all.
    fn keep(&self, spool: SpoolId) -> Result<(), SpoolError> {
        let Some(path) = self.path.filter(|_| self.id.is_none()) else { return Ok(()) };
        let draft = path.with_extension("draft");
        let write = || {
            let mut options = OpenOptions::new();
            let mut file =
                options.write(true).create(true).truncate(true).mode(PRIVATE).open(&draft)?;
            writeln!(file, "{spool}")?;
            file.sync_all()?;
            fs::rename(&draft, path)
        };
        let written = write().inspect_err(|_| drop(fs::remove_file(&draft)));
        written.map_err(SpoolError::io("writing", path))?;
        path.parent().map_or(Ok(()), segment::sync_dir)
    }
}

fn known_error(config: &SpoolConfig, known: SpoolId, found: Option<SpoolId>) -> SpoolError {
    let file = config.known.clone().unwrap_or_default();
    SpoolError::Another { dir: config.dir.clone(), known, found, file }
}
