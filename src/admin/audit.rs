//! The audit log: who changed what.
//!
//! Each entry is one JSON line and holds the hash of the one before, so that a line that was changed, taken out or put
//! in between shows when the log is verified. A cut at the end shows only against a hash that was noted elsewhere:
//! `duet audit verify` prints the last one for that. One process at a time writes, which a lock on the state directory
//! ensures.
//!
//! A running gateway bounds the log. A file that has grown to its share is renamed after its first entry, and a new
//! file goes on with the next number and the hash of the last. The oldest file goes when there are [`FILES`]; an entry
//! says so before it does, without which it would be missing.
//!
//! `audit.seen` remembers the last entry, so that a log whose end is gone, an older copy of it or another gateway's is told
//! from it; its length tells a running gateway of a file that somebody else wrote into or cut. A log goes on all the same,
//! with an entry that says so: what happens from now on is not to be missing, too.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;
use utoipa::ToSchema;

use crate::hex::Hex;
use crate::identity::{Seen, State, now_ms};
use crate::printable::is_printable;

/// The newest file's name in the state directory.
pub const FILE: &str = "audit.ndjson";
/// The names of the others: `audit-`, the number of the first entry in 20 digits, `.ndjson`.
const OLDER: (&str, &str) = ("audit-", ".ndjson");
/// The most files that a bounded log has.
pub const FILES: u64 = 8;

/// The longest line; longer fields are cut when they are written.
const MAX_LINE: u64 = 8 * 1024;
/// The longest field.
const MAX_FIELD: usize = 1024;
/// What stands in the first entry in place of a hash.
const NONE_BEFORE: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Why the audit log cannot be used.
#[derive(Debug, Error)]
pub enum AuditError {
    /// The file system refused.
    #[error("{}: the audit log cannot be used: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Its answer.
        error: io::Error,
    },
    /// Another process writes it.
    #[error("{}: the audit log is in use by another process", .0.display())]
    InUse(PathBuf),
    /// An entry does not belong where it stands.
    #[error(
        "{}: line {line}: {what}; what stands before it is whole. Keep the file elsewhere as evidence; without it a new log begins",
        path.display()
    )]
    Broken {
        /// The file.
        path: PathBuf,
        /// The line, the first being 1.
        line: u64,
        /// In which way.
        what: &'static str,
    },
}

/// What happened, as it is told to the log.
#[derive(Clone, Copy, Debug)]
pub struct Event<'a> {
    /// Who did it: `uid 0`, or `token NAME`.
    pub who: &'a str,
    /// From where: `socket`, `offline`, or the address of a TLS client.
    pub from: &'a str,
    /// What was asked for, for example `POST /v1/devices/boiler-1/revoke`.
    pub action: &'a str,
    /// What became of it: `done`, `refused` or `denied`, with the reason.
    pub outcome: &'a str,
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Its number, the first being 1.
    pub number: u64,
    /// When, Unix milliseconds.
    pub time_ms: u64,
    /// Who did it.
    pub who: String,
    /// From where.
    pub from: String,
    /// What was asked for.
    pub action: String,
    /// What became of it.
    pub outcome: String,
    /// The hash of the entry before, hexadecimal.
    pub before: String,
    /// Only where the gateway bounds the log: the entries up to this number are removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removed: Option<u64>,
    /// SHA-256 of this line without this field, hexadecimal.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hash: String,
}

impl Entry {
    /// The hash that belongs to it.
    fn own_hash(&self) -> String {
        let bare = Self { hash: String::new(), ..self.clone() };
        // Strings and numbers always make JSON.
        let text = serde_json::to_vec(&bare).unwrap_or_default();
        Hex(&Sha256::digest(&text)).to_string()
    }
}

/// The open log.
pub struct Audit {
    state: PathBuf,
    path: PathBuf,
    seen: Seen,
    /// How long a file may become before the next one is begun.
    file_bytes: u64,
    end: Mutex<End>,
    /// How many events are not in it that nothing in it says of yet. It changes with the end locked.
    missed: AtomicU64,
    /// Whether the file had lost its name when it was last looked at.
    is_lost: AtomicBool,
    /// Locked.
    _dir: File,
}

/// Where the next entry goes.
struct End {
    file: File,
    /// How long the last entry left it.
    len: u64,
    /// The number of the file's first entry, or of the one that will be.
    first: u64,
    number: u64,
    hash: String,
    /// That no next file can be begun was told.
    is_growth_told: bool,
}

/// A whole log.
#[derive(Debug, PartialEq, Eq)]
pub struct Verified {
    /// The number of the first entry that is kept.
    pub first: u64,
    /// How many entries it has.
    pub entries: u64,
    /// The hash of the last.
    pub hash: String,
}

impl Audit {
    /// Opens the log of a state directory for writing, or makes it. All its files together take at most `max_bytes`;
    /// without that nothing is removed.
    ///
    /// An entry that a crash cut off is taken away: nobody was told that it was written.
    ///
    /// # Errors
    /// [`AuditError`].
    pub fn open(state: &Path, max_bytes: Option<u64>) -> Result<Self, AuditError> {
        let path = state.join(FILE);
        let failed = |error| AuditError::Io { path: path.clone(), error };
        let dir = File::open(state).map_err(failed)?;
        match dir.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(AuditError::InUse(path)),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true).mode(0o600);
        let file = options.open(&path).map_err(failed)?;
        let tail = Tail::of(&file).map_err(failed)?;
        let set_aside = tail.cut_off(&file, &path).map_err(failed)?;
        let (number, hash) = last_entry(state, tail)?;
        let seen = Seen::beside(&path);
        let missing = missing(state, &seen, number, &hash).map_err(failed)?;
        let first = first_number(&path).map_err(failed)?.unwrap_or(number + 1);
        let file_bytes = max_bytes.map_or(u64::MAX, |bytes| bytes / FILES);
        let len = file.metadata().map_err(failed)?.len();
        let end = Mutex::new(End { file, len, first, number, hash, is_growth_told: false });
        let (missed, is_lost) = (AtomicU64::new(0), AtomicBool::new(false));
        let state = state.to_owned();
        let audit = Self { state, path, seen, file_bytes, end, missed, is_lost, _dir: dir };
        if let Some(action) = missing {
            audit.write(Event {
                who: "gateway",
                from: "start",
                action: &action,
                outcome: "missing",
            })?;
            tracing::warn!(
                "{}: {action}. If the log is elsewhere, keep both files: this one goes on",
                audit.path.display()
            );
        }
        if set_aside {
            audit.say_set_aside(&mut audit.end(), "start")?;
        }
        Ok(audit)
    }

    /// Writes an entry and waits until it is on disk. Before it stands how many could not be written since the last one.
    ///
    /// # Errors
    /// [`AuditError::Io`]; the entry is not there then, and counts as missed.
    pub fn write(&self, event: Event<'_>) -> Result<(), AuditError> {
        let mut end = self.end();
        let written = self
            .say_changed(&mut end)
            .and_then(|()| self.say_missed(&mut end))
            .and_then(|()| self.write_at(&mut end, event));
        if written.is_err() {
            self.missed.fetch_add(1, Ordering::Relaxed);
        }
        written
    }

    /// How many events are missing at its end.
    #[must_use]
    pub fn missed(&self) -> u64 {
        self.missed.load(Ordering::Relaxed)
    }

    /// Whether an entry would be lost now, as far as is known: some are missing at its end, or its file has lost its name.
    #[must_use]
    pub fn is_unwritten(&self) -> bool {
        self.missed() > 0 || self.is_lost.load(Ordering::Relaxed)
    }

    /// Looks after the log where nothing happens: writes how many entries are missing, if some are, and what somebody else
    /// did to its file.
    ///
    /// # Errors
    /// [`AuditError::Io`]; they are missing still.
    pub fn mend(&self) -> Result<(), AuditError> {
        let mut end = self.end();
        let named = still_at(&end.file, &self.path);
        self.is_lost.store(named.is_err(), Ordering::Relaxed);
        let failed = |error| AuditError::Io { path: self.path.clone(), error };
        named.map_err(failed)?;
        self.say_changed(&mut end)?;
        self.say_missed(&mut end)
    }

    fn end(&self) -> MutexGuard<'_, End> {
        // An entry is either counted or not: a panic elsewhere leaves the end sound.
        self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say_missed(&self, end: &mut End) -> Result<(), AuditError> {
        let missed = self.missed();
        if missed > 0 {
            let action = format!("entries missing here, which could not be written: {missed}");
            self.say(end, "audit", &action, "missing")?;
            self.missed.store(0, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Writes that the file is not as long as it was left, if so: nobody else is to write it.
    fn say_changed(&self, end: &mut End) -> Result<(), AuditError> {
        let failed = |error| AuditError::Io { path: self.path.clone(), error };
        let (was, is) = (end.len, end.file.metadata().map_err(failed)?.len());
        if was == is {
            return Ok(());
        }
        let tail = Tail::of(&end.file).map_err(failed)?;
        let set_aside = tail.cut_off(&end.file, &self.path).map_err(failed)?;
        let action = format!(
            "the log was changed while it was in use, by somebody else or its disk: it had {was} bytes behind entry {}, and \
             has {is}",
            end.number
        );
        end.len = tail.len;
        // Until it is said, it is to be said.
        self.say(end, "audit", &action, "missing").inspect_err(|_| end.len = was)?;
        tracing::error!(
            "{}: {action}. It goes on; bring the entries back from where logs are sent, or from a backup, and keep this file \
             as evidence",
            self.path.display()
        );
        if set_aside {
            self.say_set_aside(end, "audit")?;
        }
        Ok(())
    }

    fn say_set_aside(&self, end: &mut End, from: &str) -> Result<(), AuditError> {
        let kept = aside(&self.path);
        let action = format!("what stood behind the last entry was none: see {}", kept.display());
        self.say(end, from, &action, "cut off")?;
        tracing::warn!("{}: {action}", self.path.display());
        Ok(())
    }

    /// Writes what the gateway itself has to say of the log.
    fn say(
        &self,
        end: &mut End,
        from: &str,
        action: &str,
        outcome: &str,
    ) -> Result<(), AuditError> {
        self.append(end, Event { who: "gateway", from, action, outcome }, None)
            .map_err(|error| AuditError::Io { path: self.path.clone(), error })
    }

    fn write_at(&self, end: &mut End, event: Event<'_>) -> Result<(), AuditError> {
        if let Some(error) = self.growth_to_tell(end) {
            tracing::warn!(
                "{}: it grows, for no next file can be begun: {error}",
                self.path.display()
            );
        }
        self.append(end, event, None)
            .map_err(|error| AuditError::Io { path: self.path.clone(), error })
    }

    fn append(&self, end: &mut End, event: Event<'_>, removed: Option<u64>) -> io::Result<()> {
        let mut entry = Entry {
            number: end.number + 1,
            time_ms: now_ms(),
            who: cut(event.who),
            from: cut(event.from),
            action: cut(event.action),
            outcome: cut(event.outcome),
            before: end.hash.clone(),
            removed,
            hash: String::new(),
        };
        entry.hash = entry.own_hash();
        let mut line = serde_json::to_vec(&entry).unwrap_or_default();
        line.push(b'\n');
        let written = still_at(&end.file, &self.path)
            .and_then(|()| end.file.write_all(&line))
            .and_then(|()| end.file.sync_data());
        if let Err(error) = written {
            // Half a line would make the next one unreadable.
            let _ = end.file.set_len(end.len);
            return Err(error);
        }
        end.len += line.len() as u64;
        (end.number, end.hash) = (entry.number, entry.hash);
        // It is told after the entry is on disk: never of one that is not there.
        if let Some(id) = id_of(&end.hash) {
            self.seen.tell(State { id, change: end.number });
        }
        Ok(())
    }

    /// Makes room, and says why it cannot: once, until it can, since each entry asks.
    fn growth_to_tell(&self, end: &mut End) -> Option<io::Error> {
        let error = self.make_room(end).err();
        let was_told = std::mem::replace(&mut end.is_growth_told, error.is_some());
        error.filter(|_| !was_told)
    }

    /// Begins the next file where this one has no room for the longest entry, and removes what is too old. It may be
    /// interrupted anywhere: what was not removed is found the next time.
    fn make_room(&self, end: &mut End) -> io::Result<()> {
        if end.file.metadata()?.len().saturating_add(MAX_LINE) <= self.file_bytes {
            return Ok(());
        }
        still_at(&end.file, &self.path)?;
        let older_path = self.state.join(older_name(end.first));
        fs::rename(&self.path, &older_path)?;
        let mut options = OpenOptions::new();
        options.read(true).append(true).create_new(true).mode(0o600);
        match options.open(&self.path) {
            Ok(file) => (end.file, end.len, end.first) = (file, 0, end.number + 1),
            Err(error) => {
                // Entries go on where they went; if this fails, the next one says that the file is gone.
                let _ = fs::rename(&older_path, &self.path);
                return Err(error);
            }
        }
        crate::identity::sync_dir_of(&self.path)?;
        let names = older(&self.state)?;
        let kept = usize::try_from(FILES - 1).unwrap_or(usize::MAX);
        let Some(surplus) = names.len().checked_sub(kept).filter(|surplus| *surplus > 0) else {
            return Ok(());
        };
        let next = names.get(surplus).and_then(|name| number_of(name)).unwrap_or(end.first);
        let (removed, action) = (next - 1, format!("entries up to {} are removed", next - 1));
        let event =
            Event { who: "gateway", from: "audit.max_bytes", action: &action, outcome: "done" };
        self.append(end, event, Some(removed))?;
        // What cannot be removed is too many the next time as well.
        names[..surplus].iter().for_each(|name| drop(fs::remove_file(self.state.join(name))));
        Ok(())
    }
}

/// The name of the file that begins with this entry, once it is not the newest any more.
fn older_name(first: u64) -> String {
    format!("{}{first:020}{}", OLDER.0, OLDER.1)
}

/// The number of the first entry in a file of this name; `None` for a name that is none of the older files'.
fn number_of(name: &str) -> Option<u64> {
    let digits = name.strip_prefix(OLDER.0)?.strip_suffix(OLDER.1)?;
    digits.parse().ok().filter(|first| older_name(*first) == name)
}

/// The names of the older files, the oldest first.
fn older(state: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for found in fs::read_dir(state)? {
        let name = found?.file_name().into_string();
        names.extend(name.ok().filter(|name| number_of(name).is_some()));
    }
    names.sort();
    Ok(names)
}

/// Whether a file of this name in a state directory is one of the log's.
#[must_use]
pub fn is_log(name: &str) -> bool {
    name == FILE || number_of(name).is_some()
}

/// All files of a log, with their names, the oldest first. The log may be in use.
///
/// # Errors
/// Those of the file system.
pub fn files(state: &Path) -> io::Result<Vec<(String, File)>> {
    loop {
        let mut names = older(state)?;
        names.push(FILE.to_owned());
        let mut files = Vec::new();
        for name in &names {
            match File::open(state.join(name)) {
                Ok(file) => files.push((name.clone(), file)),
                // Renamed or removed meanwhile, or there is none.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        // Where the next file was begun meanwhile, the newest one is another than the list says.
        if older(state)? == names[..names.len() - 1] {
            return Ok(files);
        }
    }
}

/// Reads the whole log of a state directory, and checks that each entry follows the one before. It may be in use.
///
/// # Errors
/// [`AuditError::Broken`] with the first line that does not belong where it stands.
pub fn verify(state: &Path, mut each: impl FnMut(&Entry)) -> Result<Verified, AuditError> {
    let newest = state.join(FILE);
    // Before the log, which is written first.
    let last = Seen::beside(&newest).read();
    let files = files(state).map_err(|error| AuditError::Io { path: newest.clone(), error })?;
    if files.is_empty() {
        let error = io::ErrorKind::NotFound.into();
        return Err(AuditError::Io { path: newest, error });
    }
    let oldest = files.first().map_or_else(|| newest.clone(), |(name, _)| state.join(name));
    let (mut first, mut entries, mut removed) = (1, 0, 0);
    let (mut number, mut hash, mut lines) = (0, NONE_BEFORE.to_owned(), 0);
    for (name, file) in files {
        let path = state.join(name);
        let failed = |error| AuditError::Io { path: path.clone(), error };
        let (mut input, mut line) = (BufReader::new(file), 0);
        loop {
            let mut text = Vec::new();
            let read = (&mut input).take(MAX_LINE).read_until(b'\n', &mut text).map_err(failed)?;
            if read == 0 {
                break;
            }
            line += 1;
            let broken = |what| AuditError::Broken { path: path.clone(), line, what };
            if text.pop() != Some(b'\n') {
                return Err(broken(
                    "the entry is cut off (a crash does that; the next start mends it)",
                ));
            }
            let Ok(entry) = serde_json::from_slice::<Entry>(&text) else {
                return Err(broken("not an entry"));
            };
            if entries == 0 && entry.number > 1 {
                (first, number, hash) = (entry.number, entry.number - 1, entry.before.clone());
            }
            if entry.number.checked_sub(1) != Some(number) || entry.before != hash {
                return Err(broken("an entry before it is missing, or was put in"));
            }
            if entry.own_hash() != entry.hash {
                return Err(broken("the entry was changed"));
            }
            each(&entry);
            removed = removed.max(entry.removed.unwrap_or(0));
            (number, hash, lines) = (entry.number, entry.hash, line);
            entries += 1;
        }
    }
    if first - 1 > removed {
        let what = "entries before it are missing, and none says that they were removed";
        return Err(AuditError::Broken { path: oldest, line: 1, what });
    }
    if last.is_some_and(|last| last.change > number) {
        let what = "entries behind it are missing: `audit.seen` tells of later ones";
        return Err(AuditError::Broken { path: newest, line: lines, what });
    }
    Ok(Verified { first, entries, hash })
}

/// What `audit.seen` tells an entry by: the beginning of its hash.
fn id_of(hash: &str) -> Option<[u8; 16]> {
    crate::hex::decode_array(hash.get(..32)?)
}

/// What is missing at the end of a log that ends with this entry, in words for people. After a power cut `audit.seen` may
/// name an entry before the last.
fn missing(state: &Path, seen: &Seen, number: u64, hash: &str) -> io::Result<Option<String>> {
    let Some(last) = seen.read() else { return Ok(None) };
    let shown = seen.path().display();
    if last.change > number {
        return Ok(Some(format!(
            "entries are missing: it ends with number {number}, and had {} ({shown} tells): its end was cut off, or it is an \
             older copy",
            last.change
        )));
    }
    let there = match last.change == number {
        true => Some(hash.to_owned()),
        false => hash_of(state, last.change)?,
    };
    // What the bound has removed says nothing, nor does what `verify` finds to be no entry.
    Ok(there.filter(|hash| id_of(hash) != Some(last.id)).map(|_| {
        format!(
            "entry {} is not the one that was written under this number ({shown} tells): it is another gateway's log, or was \
             changed",
            last.change
        )
    }))
}

/// The hash of the entry with this number, if the log has it.
fn hash_of(state: &Path, number: u64) -> io::Result<Option<String>> {
    for (_, file) in files(state)? {
        let mut input = BufReader::new(file);
        loop {
            let mut text = Vec::new();
            if (&mut input).take(MAX_LINE).read_until(b'\n', &mut text)? == 0 {
                break;
            }
            match serde_json::from_slice::<Entry>(&text) {
                Ok(entry) if entry.number == number => return Ok(Some(entry.hash)),
                _ => {}
            }
        }
    }
    Ok(None)
}

/// The number of a file's first entry; `None` where there is none.
fn first_number(path: &Path) -> io::Result<Option<u64>> {
    let mut text = Vec::new();
    BufReader::new(File::open(path)?).take(MAX_LINE).read_until(b'\n', &mut text)?;
    Ok(serde_json::from_slice::<Entry>(&text).ok().map(|entry| entry.number))
}

/// Refuses a file that has lost its name: nobody would find what is written into it.
fn still_at(file: &File, path: &Path) -> io::Result<()> {
    if crate::identity::is_named(file, path)? {
        return Ok(());
    }
    Err(io::Error::other(
        "it was removed or replaced while it was in use; put it back, or start anew for a new one",
    ))
}

/// The end of a file of entries.
#[derive(Default)]
struct Tail {
    /// The last whole line.
    line: Option<Vec<u8>>,
    /// Where it ends.
    len: u64,
    /// What follows it.
    rest: Vec<u8>,
}

impl Tail {
    fn of(mut file: &File) -> io::Result<Self> {
        let len = file.seek(SeekFrom::End(0))?;
        // Two lines at most: the last whole one, and one that was cut off.
        let from = len.saturating_sub(2 * MAX_LINE);
        file.seek(SeekFrom::Start(from))?;
        let mut tail = Vec::new();
        file.take(2 * MAX_LINE).read_to_end(&mut tail)?;
        let Some(end) = tail.iter().rposition(|byte| *byte == b'\n') else {
            if from == 0 {
                return Ok(Self { line: None, len: 0, rest: tail });
            }
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "it does not end in entries; keep it elsewhere as evidence: without it a new log begins",
            ));
        };
        let rest = tail.split_off(end + 1);
        tail.truncate(end);
        let begin = tail.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let line = Some(tail.split_off(begin));
        Ok(Self { line, len: len - rest.len() as u64, rest })
    }

    /// Cuts the file off behind the last whole line. What a crash leaves there is the beginning of an entry, of which
    /// nobody was told that it was written; anything else may have been one, and is kept in a file beside it. Whether
    /// it was.
    fn cut_off(&self, file: &File, path: &Path) -> io::Result<bool> {
        let rest = &self.rest;
        if rest.is_empty() {
            return Ok(false);
        }
        // Of a whole one no more than the end of the line is missing.
        let is_begun =
            serde_json::from_slice::<Entry>(rest).map_or_else(|error| error.is_eof(), |_| true);
        if !is_begun {
            let mut options = OpenOptions::new();
            let mut aside = options.append(true).create(true).mode(0o600).open(aside(path))?;
            aside.write_all(rest)?;
            aside.write_all(b"\n")?;
            aside.sync_all()?;
            crate::identity::sync_dir_of(path)?;
        }
        file.set_len(self.len)?;
        Ok(!is_begun)
    }
}

/// The number and the hash of a log's last entry, whose newest file ends so.
fn last_entry(state: &Path, tail: Tail) -> Result<(u64, String), AuditError> {
    let mut path = state.join(FILE);
    let mut line = tail.line;
    let io = |path: &Path| {
        let path = path.to_owned();
        move |error| AuditError::Io { path, error }
    };
    if line.is_none()
        && let Some(name) = older(state).map_err(io(&path))?.pop()
    {
        // The file was begun just before a crash: the last entry is in the one before.
        path = state.join(name);
        let tail = File::open(&path).and_then(|file| Tail::of(&file));
        line = tail.map_err(io(&path))?.line;
    }
    let Some(text) = line else { return Ok((0, NONE_BEFORE.to_owned())) };
    match serde_json::from_slice::<Entry>(&text) {
        Ok(entry) => Ok((entry.number, entry.hash)),
        Err(_) => {
            let (what, line) = ("the last entry is not one", count(&path).map_err(io(&path))?);
            Err(AuditError::Broken { path, line, what })
        }
    }
}

/// Whether [`Audit::open`] would take the log of a state directory, without a change: what it would say is missing. It may
/// be in use.
///
/// # Errors
/// [`AuditError`], as `open` has it.
pub fn look(state: &Path) -> Result<Option<String>, AuditError> {
    let path = state.join(FILE);
    let failed = |error| AuditError::Io { path: path.clone(), error };
    let seen = Seen::beside(&path);
    let tail = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Tail::default(),
        file => file.and_then(|file| Tail::of(&file)).map_err(failed)?,
    };
    let (number, hash) = last_entry(state, tail)?;
    missing(state, &seen, number, &hash).map_err(failed)
}

/// Where is kept what was cut off.
fn aside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".cut");
    name.into()
}

fn count(path: &Path) -> io::Result<u64> {
    let mut lines = 0;
    for line in BufReader::new(File::open(path)?).split(b'\n') {
        line?;
        lines += 1;
    }
    Ok(lines)
}

/// A field within its limit, in which everything shows as itself.
fn cut(text: &str) -> String {
    let mut end = text.len().min(MAX_FIELD);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].chars().map(|c| if is_printable(c) { c } else { '\u{fffd}' }).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    fn event(action: &str) -> Event<'_> {
        Event { who: "uid 0", from: "socket", action, outcome: "done" }
    }

    fn written(count: usize) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let audit = Audit::open(dir.path(), None).unwrap();
        (0..count).for_each(|number| audit.write(event(&format!("step {number}"))).unwrap());
        let path = dir.path().join(FILE);
        (dir, path)
    }

    /// A log of this many entries in files for 24 KiB, of which each takes twenty or so.
    fn bounded(count: usize) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let audit = Audit::open(dir.path(), Some(FILES * 24 * 1024)).unwrap();
        let long = "x".repeat(500);
        (0..count).for_each(|_| audit.write(event(&long)).unwrap());
        dir
    }

    fn broken(dir: &Path) -> u64 {
        match verify(dir, |_| ()) {
            Err(AuditError::Broken { line, .. }) => line,
            other => panic!("{other:?}"),
        }
    }

    /// The actions of a log that is opened once more, and closed.
    fn opened(dir: &Path) -> Vec<String> {
        drop(Audit::open(dir, None).unwrap());
        let mut actions = Vec::new();
        verify(dir, |entry| actions.push(entry.action.clone())).unwrap();
        actions
    }

    #[test]
    fn an_end_that_is_gone_and_another_log_are_told_in_the_log() {
        let (dir, path) = written(9);
        let whole = fs::read_to_string(&path).unwrap();
        let until = |count: usize| whole.split_inclusive('\n').take(count).collect::<String>();
        assert_eq!(opened(dir.path()).len(), 9, "nothing is missing");
        for (count, said) in
            [(0, "ends with number 0, and had 9"), (4, "ends with number 4, and had")]
        {
            fs::write(&path, until(count)).unwrap();
            assert_eq!(broken(dir.path()), count as u64);
            let actions = opened(dir.path());
            assert!(
                actions[count].contains(said) && actions[count].contains("audit.seen"),
                "{actions:?}"
            );
            assert_eq!(opened(dir.path()), actions, "it is said once");
            // The whole one is another log than the one that went on.
            fs::write(&path, &whole).unwrap();
            let actions = opened(dir.path());
            assert!(
                actions[9].contains(&format!("entry {} is not the one", count + 1)),
                "{actions:?}"
            );
            fs::write(&path, &whole).unwrap();
            let ninth: Entry = serde_json::from_str(whole.lines().nth(8).unwrap()).unwrap();
            Seen::beside(&path).tell(State { id: id_of(&ninth.hash).unwrap(), change: 9 });
        }
        // After a power cut it may name an earlier entry.
        let fifth: Entry = serde_json::from_str(whole.lines().nth(4).unwrap()).unwrap();
        let seen = Seen::beside(&path);
        seen.tell(State { id: id_of(&fifth.hash).unwrap(), change: 5 });
        assert_eq!(opened(dir.path()).len(), 9);
        let (other, _) = written(12);
        fs::copy(other.path().join(FILE), &path).unwrap();
        seen.tell(State { id: id_of(&fifth.hash).unwrap(), change: 5 });
        let actions = opened(dir.path());
        assert!(actions[12].contains("entry 5 is not the one"), "{actions:?}");
    }

    #[test]
    fn it_goes_on_where_it_ended_and_one_process_writes() {
        let (dir, path) = written(2);
        let audit = Audit::open(dir.path(), None).unwrap();
        assert!(matches!(Audit::open(dir.path(), None), Err(AuditError::InUse(_))));
        audit.write(event("a\nb")).unwrap();
        let mut actions = Vec::new();
        let whole = verify(dir.path(), |entry| actions.push(entry.action.clone())).unwrap();
        assert_eq!((whole.first, whole.entries), (1, 3));
        assert_eq!(actions, ["step 0", "step 1", "a\u{fffd}b"]);
        let mode = fs::metadata(path).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn what_stands_behind_the_last_entry_is_kept_unless_a_crash_left_it() {
        let (dir, path) = written(3);
        let whole = fs::read(&path).unwrap();
        let second = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        let third = whole.len() - (whole.len() - second) / 2;
        let actions = || {
            // Which does not know of what a crash cut off.
            let _ = fs::remove_file(dir.path().join("audit.seen"));
            drop(Audit::open(dir.path(), None).unwrap());
            let mut actions = Vec::new();
            verify(dir.path(), |entry| actions.push(entry.action.clone())).unwrap();
            actions
        };
        // Cut anywhere inside the last entry.
        for cut in [third + 1, third + 40, whole.len() - 2] {
            fs::write(&path, &whole[..cut]).unwrap();
            assert_eq!(actions(), ["step 0", "step 1"], "{cut}");
            assert!(!aside(&path).exists());
        }
        // Damaged so that the last entry does not end, or all of them.
        for (damaged, kept) in
            [(&[whole.len() - 1][..], 2), (&[second - 1, third - 1, whole.len() - 1], 0)]
        {
            let mut bytes = whole.clone();
            damaged.iter().for_each(|at| bytes[*at] ^= 2);
            fs::write(&path, &bytes).unwrap();
            let said = actions();
            assert_eq!(said.len(), kept + 1, "{said:?}");
            assert!(said[kept].contains("audit.ndjson.cut"), "{said:?}");
            let cut = fs::read(aside(&path)).unwrap();
            assert!(cut.windows(8).any(|part| part == b"\"step 2\""), "what was written is kept");
            assert_eq!(actions().len(), kept + 1, "it is said once");
            fs::remove_file(aside(&path)).unwrap();
        }
    }

    #[test]
    fn every_changed_missing_or_added_line_is_found() {
        let (dir, path) = written(5);
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        for at in 0..text.len() {
            let mut changed = text.clone().into_bytes();
            changed[at] ^= 1;
            fs::write(&path, &changed).unwrap();
            assert!(verify(dir.path(), |_| ()).is_err(), "byte {at}");
        }
        let without = |at: usize| {
            let mut rest = lines.clone();
            rest.remove(at);
            fs::write(&path, rest.join("\n") + "\n").unwrap();
        };
        without(1);
        assert_eq!(broken(dir.path()), 2);
        let mut twice = lines.clone();
        twice.insert(3, lines[2]);
        fs::write(&path, twice.join("\n") + "\n").unwrap();
        assert_eq!(broken(dir.path()), 4);
    }

    #[test]
    fn a_bounded_log_goes_on_over_its_files_and_says_what_it_removed() {
        let dir = bounded(100);
        let whole = verify(dir.path(), |_| ()).unwrap();
        assert_eq!((whole.first, whole.entries), (1, 100));
        assert!(older(dir.path()).unwrap().len() > 2);

        let dir = bounded(400);
        let (mut last, mut told) = (0, 0);
        let whole = verify(dir.path(), |entry| {
            last = entry.number;
            told = told.max(entry.removed.unwrap_or(0));
        });
        let whole = whole.unwrap();
        assert!(whole.first > 100 && told == whole.first - 1, "{whole:?} {told}");
        assert!(last > 400, "what was removed is told by entries");
        let files = files(dir.path()).unwrap();
        assert_eq!(files.len() as u64, FILES);
        for (name, file) in &files {
            assert!(is_log(name) && file.metadata().unwrap().len() <= 24 * 1024);
            assert_eq!(file.metadata().unwrap().mode() & 0o777, 0o600);
        }
        // Another process goes on with it, bounded or not.
        for bytes in [None, Some(FILES * 24 * 1024), Some(FILES * 16 * 1024)] {
            Audit::open(dir.path(), bytes).unwrap().write(event("next")).unwrap();
        }
        assert!(verify(dir.path(), |_| ()).unwrap().entries > 100);
    }

    #[test]
    fn a_log_that_somebody_changes_under_its_writer_says_so_and_goes_on() {
        let whole = fs::read(written(3).1).unwrap();
        let second = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        // Emptied, cut between entries and within one, with nonsense behind; each by the next entry, or before it.
        let cuts =
            [(0, "", 0), (second, "", 1), (second + 20, "", 1), (whole.len(), "nonsense", 3)];
        for (cut, more, kept) in cuts {
            for waits in [false, true] {
                let dir = tempfile::tempdir().unwrap();
                let path = dir.path().join(FILE);
                let audit = Audit::open(dir.path(), None).unwrap();
                (0..3).for_each(|number| audit.write(event(&format!("step {number}"))).unwrap());
                let text = fs::read(&path).unwrap();
                // In place: the file keeps its name.
                fs::write(&path, [&text[..cut], more.as_bytes()].concat()).unwrap();
                waits.then(|| audit.mend().unwrap());
                audit.write(event("next")).unwrap();
                audit.write(event("last")).unwrap();
                let mut told = Vec::new();
                let text = fs::read_to_string(&path).unwrap();
                for line in text.lines() {
                    let entry: Entry = serde_json::from_str(line).unwrap();
                    assert_eq!(entry.own_hash(), entry.hash);
                    told.push(entry.action);
                }
                assert!(told[kept].contains("log was changed"), "{told:?}");
                assert_eq!(told.iter().filter(|action| action.contains("changed")).count(), 1);
                assert_eq!(told[told.len() - 2..], ["next", "last"]);
                assert_eq!(verify(dir.path(), |_| ()).is_ok(), !more.is_empty());
                assert_eq!(aside(&path).exists(), !more.is_empty());
            }
        }
    }

    #[test]
    fn a_log_whose_file_is_gone_is_known_before_the_next_entry() {
        let dir = tempfile::tempdir().unwrap();
        let audit = Audit::open(dir.path(), None).unwrap();
        audit.write(event("one")).unwrap();
        let [path, away] = [FILE, "away"].map(|name| dir.path().join(name));
        fs::rename(&path, &away).unwrap();
        assert!(!audit.is_unwritten());
        assert!(audit.mend().is_err() && audit.is_unwritten());
        fs::rename(&away, &path).unwrap();
        audit.mend().unwrap();
        assert!(!audit.is_unwritten());
        assert_eq!(verify(dir.path(), |_| ()).unwrap().entries, 1);
    }

    #[test]
    fn that_no_next_file_can_be_begun_is_told_once_until_it_can() {
        let dir = tempfile::tempdir().unwrap();
        let audit = Audit::open(dir.path(), Some(FILES * 24 * 1024)).unwrap();
        let in_the_way = dir.path().join(older_name(1));
        fs::create_dir(&in_the_way).unwrap();
        let told = |entries: u32| {
            let one = |_| {
                let mut end = audit.end.lock().unwrap();
                let error = audit.growth_to_tell(&mut end);
                audit.append(&mut end, event(&"x".repeat(500)), None).unwrap();
                error.is_some()
            };
            (0..entries).map(one).filter(|told| *told).count()
        };
        assert_eq!(told(100), 1, "the file grows, and each entry is in it");
        fs::remove_dir(&in_the_way).unwrap();
        assert_eq!(told(1), 0, "it can again");
        let next = audit.end.lock().unwrap().first;
        fs::create_dir(dir.path().join(older_name(next))).unwrap();
        assert_eq!(told(100), 1, "a new hindrance is told again");
    }

    #[test]
    fn every_file_that_is_missing_without_a_word_is_found() {
        let gone = |count, at: usize| {
            let dir = bounded(count);
            let names: Vec<_> =
                files(dir.path()).unwrap().into_iter().map(|(name, _)| name).collect();
            fs::remove_file(dir.path().join(&names[at])).unwrap();
            verify(dir.path(), |_| ())
        };
        for count in [100, 400] {
            for at in 0..3 {
                assert!(matches!(gone(count, at), Err(AuditError::Broken { line: 1, .. })), "{at}");
            }
        }
    }

    #[test]
    fn a_crash_between_the_steps_of_a_new_file_loses_nothing() {
        // Renamed and nothing else; the next file made and empty; its first entry cut off.
        for step in 0..3 {
            let dir = bounded(400);
            let path = dir.path().join(FILE);
            let before = verify(dir.path(), |_| ()).unwrap();
            fs::rename(&path, dir.path().join(older_name(first_number(&path).unwrap().unwrap())))
                .unwrap();
            match step {
                0 => assert_eq!(verify(dir.path(), |_| ()).unwrap(), before),
                1 => fs::write(&path, "").unwrap(),
                _ => fs::write(&path, "{\"number\":4").unwrap(),
            }
            let audit = Audit::open(dir.path(), Some(FILES * 24 * 1024)).unwrap();
            (0..40).for_each(|_| audit.write(event("next")).unwrap());
            let whole = verify(dir.path(), |_| ()).unwrap();
            assert!(whole.first >= before.first && whole.hash != before.hash);
            assert!(files(dir.path()).unwrap().len() as u64 <= FILES + 1);
        }
        // What was to be removed is still there.
        let dir = bounded(400);
        let names = older(dir.path()).unwrap();
        let kept = tempfile::tempdir().unwrap();
        fs::copy(dir.path().join(&names[0]), kept.path().join(&names[0])).unwrap();
        let audit = Audit::open(dir.path(), Some(FILES * 24 * 1024)).unwrap();
        let long = "x".repeat(500);
        while dir.path().join(&names[0]).exists() {
            audit.write(event(&long)).unwrap();
        }
        fs::copy(kept.path().join(&names[0]), dir.path().join(&names[0])).unwrap();
        verify(dir.path(), |_| ()).unwrap();
        (0..40).for_each(|_| audit.write(event(&long)).unwrap());
        assert!(!dir.path().join(&names[0]).exists());
        verify(dir.path(), |_| ()).unwrap();
    }

    #[test]
    fn an_entry_that_was_cut_off_is_taken_away() {
        let (dir, path) = written(2);
        let text = fs::read_to_string(&path).unwrap();
        let first = text.find('\n').unwrap() + 1;
        for end in [first + 1, text.len() - 1, 3] {
            fs::write(&path, &text[..end]).unwrap();
            fs::remove_file(dir.path().join("audit.seen")).unwrap();
            let whole = u64::from(end > first);
            Audit::open(dir.path(), None).unwrap().write(event("next")).unwrap();
            assert_eq!(verify(dir.path(), |_| ()).unwrap().entries, whole + 1);
        }
        // Whoever moves it away takes no entry with it.
        let audit = Audit::open(dir.path(), None).unwrap();
        let aside = dir.path().join("aside");
        fs::rename(&path, &aside).unwrap();
        assert!(matches!(audit.write(event("lost")), Err(AuditError::Io { .. })));
        fs::rename(&aside, &path).unwrap();
        let before = verify(dir.path(), |_| ()).unwrap().entries;
        audit.write(event("back")).unwrap();
        let mut entries = Vec::new();
        verify(dir.path(), |entry| entries.push(entry.action.clone())).unwrap();
        let [.., missed, back] = &entries[..] else { panic!("{entries:?}") };
        assert!(missed.ends_with("could not be written: 1") && back == "back", "{entries:?}");
        assert_eq!(entries.len() as u64, before + 2);
        drop(audit);
        fs::write(&path, "nothing\n").unwrap();
        assert!(matches!(Audit::open(dir.path(), None), Err(AuditError::Broken { line: 1, .. })));
    }
}
