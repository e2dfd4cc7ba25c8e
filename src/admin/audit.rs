//! The audit log: who changed what, in a file that only grows.
//!
//! Each entry is one JSON line and holds the hash of the one before, so that a line that was changed, taken out or put
//! in between shows when the file is verified. A cut at the end shows only against a hash that was noted elsewhere:
//! `duet audit verify` prints the last one for that. One process at a time writes, which a lock on the file ensures.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;
use utoipa::ToSchema;

use crate::hex::Hex;
use crate::identity::now_ms;

/// The file's name in the state directory.
pub const FILE: &str = "audit.ndjson";

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
    path: PathBuf,
    end: Mutex<End>,
}

/// Where the next entry goes.
struct End {
    file: File,
    number: u64,
    hash: String,
}

/// A whole log.
#[derive(Debug, PartialEq, Eq)]
pub struct Verified {
    /// How many entries it has.
    pub entries: u64,
    /// The hash of the last.
    pub hash: String,
}

impl Audit {
    /// Opens the log of a state directory for writing, or makes it.
    ///
    /// An entry that a crash cut off is taken away: nobody was told that it was written.
    ///
    /// # Errors
    /// [`AuditError`].
    pub fn open(state: &Path) -> Result<Self, AuditError> {
        let path = state.join(FILE);
        let failed = |error| AuditError::Io { path: path.clone(), error };
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true).mode(0o600);
        let mut file = options.open(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(AuditError::InUse(path)),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        let last = last_line(&mut file).map_err(failed)?;
        let (number, hash) = match &last {
            None => (0, NONE_BEFORE.to_owned()),
            Some(text) => match serde_json::from_slice::<Entry>(text) {
                Ok(entry) => (entry.number, entry.hash),
                Err(_) => {
                    let what = "the last entry is not one";
                    let line = count(&path).map_err(failed)?;
                    return Err(AuditError::Broken { path, line, what });
                }
            },
        };
        Ok(Self { path, end: Mutex::new(End { file, number, hash }) })
    }

    /// Writes an entry and waits until it is on disk.
    ///
    /// # Errors
    /// [`AuditError::Io`]; the entry is not there then.
    pub fn write(&self, event: Event<'_>) -> Result<(), AuditError> {
        // An entry is either counted or not: a panic elsewhere leaves the end sound.
        let mut end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        let mut entry = Entry {
            number: end.number + 1,
            time_ms: now_ms(),
            who: cut(event.who),
            from: cut(event.from),
            action: cut(event.action),
            outcome: cut(event.outcome),
            before: end.hash.clone(),
            hash: String::new(),
        };
        entry.hash = entry.own_hash();
        let mut line = serde_json::to_vec(&entry).unwrap_or_default();
        line.push(b'\n');
        let len = end.file.metadata().map(|found| found.len());
        let written = still_at(&end.file, &self.path)
            .and_then(|()| end.file.write_all(&line))
            .and_then(|()| end.file.sync_data());
        if let Err(error) = written {
            // Half a line would make the next one unreadable.
            let _ = len.and_then(|len| end.file.set_len(len));
            return Err(AuditError::Io { path: self.path.clone(), error });
        }
        (end.number, end.hash) = (entry.number, entry.hash);
        Ok(())
    }
}

/// Reads the whole log of a state directory, and checks that each entry follows the one before. It may be in use.
///
/// # Errors
/// [`AuditError::Broken`] with the first line that does not belong where it stands.
pub fn verify(state: &Path, mut each: impl FnMut(&Entry)) -> Result<Verified, AuditError> {
    let path = state.join(FILE);
    let failed = |error| AuditError::Io { path: path.clone(), error };
    let mut input = BufReader::new(File::open(&path).map_err(failed)?);
    let (mut line, mut hash) = (0, NONE_BEFORE.to_owned());
    loop {
        let mut text = Vec::new();
        let read = (&mut input).take(MAX_LINE).read_until(b'\n', &mut text).map_err(failed)?;
        if read == 0 {
            return Ok(Verified { entries: line, hash });
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
        if entry.number != line || entry.before != hash {
            return Err(broken("an entry before it is missing, or was put in"));
        }
        if entry.own_hash() != entry.hash {
            return Err(broken("the entry was changed"));
        }
        each(&entry);
        hash = entry.hash;
    }
}

/// Refuses a file that has lost its name: nobody would find what is written into it.
fn still_at(file: &File, path: &Path) -> io::Result<()> {
    let open = file.metadata()?;
    if crate::identity::is_at(path, (open.dev(), open.ino()))? {
        return Ok(());
    }
    Err(io::Error::other(
        "it was removed or replaced while it was in use; put it back, or start anew for a new one",
    ))
}

/// The last whole line of a file; what follows it is cut off.
fn last_line(file: &mut File) -> io::Result<Option<Vec<u8>>> {
    let len = file.seek(SeekFrom::End(0))?;
    // Two lines at most: the last whole one, and one that was cut off.
    let from = len.saturating_sub(2 * MAX_LINE);
    file.seek(SeekFrom::Start(from))?;
    let mut tail = Vec::new();
    file.take(2 * MAX_LINE).read_to_end(&mut tail)?;
    let Some(end) = tail.iter().rposition(|byte| *byte == b'\n') else {
        if from == 0 {
            file.set_len(0)?;
            return Ok(None);
        }
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "it does not end in entries; keep it elsewhere as evidence: without it a new log begins",
        ));
    };
    if end + 1 < tail.len() {
        file.set_len(from + u64::try_from(end + 1).unwrap_or(u64::MAX))?;
    }
    let begin = tail[..end].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    Ok(Some(tail[begin..end].to_vec()))
}

fn count(path: &Path) -> io::Result<u64> {
    let mut lines = 0;
    for line in BufReader::new(File::open(path)?).split(b'\n') {
        line?;
        lines += 1;
    }
    Ok(lines)
}

/// A field within its limit, without control characters.
fn cut(text: &str) -> String {
    let mut end = text.len().min(MAX_FIELD);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn event(action: &str) -> Event<'_> {
        Event { who: "uid 0", from: "socket", action, outcome: "done" }
    }

    fn written(count: usize) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let audit = Audit::open(dir.path()).unwrap();
        (0..count).for_each(|number| audit.write(event(&format!("step {number}"))).unwrap());
        let path = dir.path().join(FILE);
        (dir, path)
    }

    fn broken(dir: &Path) -> u64 {
        match verify(dir, |_| ()) {
            Err(AuditError::Broken { line, .. }) => line,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn it_goes_on_where_it_ended_and_one_process_writes() {
        let (dir, path) = written(2);
        let audit = Audit::open(dir.path()).unwrap();
        assert!(matches!(Audit::open(dir.path()), Err(AuditError::InUse(_))));
        audit.write(event("a\nb")).unwrap();
        let mut actions = Vec::new();
        let whole = verify(dir.path(), |entry| actions.push(entry.action.clone())).unwrap();
        assert_eq!(whole.entries, 3);
        assert_eq!(actions, ["step 0", "step 1", "a\u{fffd}b"]);
        let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(path).unwrap());
        assert_eq!(mode & 0o777, 0o600);
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
    fn an_entry_that_was_cut_off_is_taken_away() {
        let (dir, path) = written(2);
        let text = fs::read_to_string(&path).unwrap();
        let first = text.find('\n').unwrap() + 1;
        for end in [first + 1, text.len() - 1, 3] {
            fs::write(&path, &text[..end]).unwrap();
            let whole = u64::from(end > first);
            Audit::open(dir.path()).unwrap().write(event("next")).unwrap();
            assert_eq!(verify(dir.path(), |_| ()).unwrap().entries, whole + 1);
        }
        // Whoever moves it away takes no entry with it.
        let audit = Audit::open(dir.path()).unwrap();
        let aside = dir.path().join("aside");
        fs::rename(&path, &aside).unwrap();
        assert!(matches!(audit.write(event("lost")), Err(AuditError::Io { .. })));
        fs::rename(&aside, &path).unwrap();
        let before = verify(dir.path(), |_| ()).unwrap().entries;
        audit.write(event("back")).unwrap();
        assert_eq!(verify(dir.path(), |_| ()).unwrap().entries, before + 1);
        drop(audit);
        fs::write(&path, "nothing\n").unwrap();
        assert!(matches!(Audit::open(dir.path()), Err(AuditError::Broken { line: 1, .. })));
    }
}
