//! Segments as files: their names, their creation, the lock on the directory. Owns the order of
//! writes, syncs and renames that makes a segment exist whole or not at all; knows no records.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use duet_telemetry::catalogue::FILES_RENEWED;

use super::error::{Damage, SpoolError, is_no_space};
use super::format::{HEADER_LEN, Header};
use crate::identity::{self, is_named};

const SPARE: &str = "spool-spare.tmp";
const LOCK: &str = "spool.lock";
/// Readings are their owner's alone.
pub(super) const PRIVATE: u32 = 0o600;
/// How often a directory that is taken is tried again, 1 ms apart.
const LOCK_TRIES: u32 = 10;
/// One write of zeros.
const ZEROS: usize = 1 << 20;
/// Zeros between two syncs: bounded, so that a commit never queues behind a whole segment.
const SYNC_EVERY: u64 = 4 << 20;

/// A segment in the directory, by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) first_index: u64,
    pub(super) path: PathBuf,
}

pub(super) fn file_name(first_index: u64) -> String {
    format!("spool-{first_index:016x}.log")
}

/// The segments of a spool, oldest first. Files with other names are none of ours.
pub(super) fn list(dir: &Path) -> Result<Vec<Entry>, SpoolError> {
    let mut entries = Vec::new();
    let listed = fs::read_dir(dir).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => SpoolError::None(dir.to_owned()),
        _ => SpoolError::io("listing", dir)(error),
    });
    for entry in listed? {
        let path = entry.map_err(SpoolError::io("listing", dir))?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        if let Some(first_index) = name.and_then(parse_name) {
            entries.push(Entry { first_index, path });
        }
    }
    entries.sort_unstable_by_key(|entry| entry.first_index);
    Ok(entries)
}

/// The oldest segment younger than the one that begins with `index`.
pub(super) fn successor(dir: &Path, index: u64) -> Result<Option<Entry>, SpoolError> {
    Ok(list(dir)?.into_iter().find(|entry| entry.first_index > index))
}

/// Whether a segment that was listed is no longer there: trimming takes the oldest first.
pub(super) fn is_gone(entry: &Entry) -> bool {
    let found = fs::symlink_metadata(&entry.path);
    found.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// Which file stands behind a name, its device and its number there, and how long it is. A link to a file is as good as the
/// file.
pub(super) fn identity(path: &Path) -> io::Result<(u64, u64, u64)> {
    fs::metadata(path).map(|found| (found.dev(), found.ino(), found.len()))
}

/// What all segments take on disk, bytes.
pub(super) fn disk_bytes(dir: &Path) -> Result<u64, SpoolError> {
    list(dir)?.iter().try_fold(0, |sum, entry| match fs::metadata(&entry.path) {
        Ok(found) => Ok(sum + found.len()),
        // Trimmed since it was listed.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(sum),
        Err(error) => Err(SpoolError::io("inspecting", &entry.path)(error)),
    })
}

fn parse_name(name: &str) -> Option<u64> {
    let index = u64::from_str_radix(name.strip_prefix("spool-")?.strip_suffix(".log")?, 16).ok()?;
    (file_name(index) == name).then_some(index)
}

/// Opens a segment for reading and checks its header.
pub(super) fn open(entry: &Entry) -> Result<(File, Header), SpoolError> {
    let path = &entry.path;
    let file = File::open(path).map_err(SpoolError::io("opening", path))?;
    let mut bytes = [0; HEADER_LEN];
    let damaged = |damage| SpoolError::Damaged { path: path.clone(), offset: 0, damage };
    match file.read_exact_at(&mut bytes, 0) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return Err(damaged(Damage::Header));
        }
        other => other.map_err(SpoolError::io("reading", path))?,
    }
    let header = Header::decode(&bytes).map_err(damaged)?;
    if header.first_index != entry.first_index {
        return Err(damaged(Damage::Name));
    }
    let found = file.metadata().map_err(SpoolError::io("inspecting", path))?.len();
    if found != header.size {
        return Err(damaged(Damage::FileLength { found, expected: header.size }));
    }
    Ok((file, header))
}

/// Makes a file of zeros that is durable in all but its name. What fails is removed again, so
/// that a full disk is not fuller for the attempt. `Ok(None)`: cancelled.
pub(super) fn prepare(
    dir: &Path,
    size: u64,
    cancel: &AtomicBool,
) -> Result<Option<PathBuf>, SpoolError> {
    let path = dir.join(SPARE);
    let write = || {
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).mode(PRIVATE).open(&path)?;
        reserve(&file, size)?;
        let complete = write_zeros(&file, size, cancel)?;
        file.sync_all()?;
        Ok(complete)
    };
    match write() {
        Ok(true) => Ok(Some(path)),
        Ok(false) => Ok(None),
        Err(source) => {
            let _ = fs::remove_file(&path);
            Err(SpoolError::Io {
                action: "writing a new segment (spool.segment_bytes) in advance,",
                path,
                source,
            })
        }
    }
}

/// Whether what was prepared there is there still.
pub(super) fn is_prepared(path: &Path, size: u64) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_file() && found.len() == size)
}

/// Asks for all the room at once, so that a disk without it is not filled to the brim first. Where the
/// file system knows no such thing, the writes find out.
fn reserve(file: &File, size: u64) -> io::Result<()> {
    use rustix::fs::{FallocateFlags, fallocate};
    match fallocate(file, FallocateFlags::empty(), 0, size).map_err(io::Error::from) {
        Err(error) if is_no_space(&error) => Err(error),
        _ => Ok(()),
    }
}

/// Fills the file with zeros up to `size`, syncing as it goes. `false`: cancelled.
fn write_zeros(file: &File, size: u64, cancel: &AtomicBool) -> io::Result<bool> {
    let zeros = vec![0; ZEROS];
    let mut at = 0;
    while at < size {
        if cancel.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let length = usize::try_from(size - at).map_or(ZEROS, |left| left.min(ZEROS));
        file.write_all_at(&zeros[..length], at)?;
        at += length as u64;
        if at.is_multiple_of(SYNC_EVERY) {
            file.sync_data()?;
        }
    }
    Ok(true)
}

/// Draws what keeps a payload from looking like a record of the segment that `spare` is to be.
pub(super) fn salt(spare: &Path) -> Result<u64, SpoolError> {
    let drawn = getrandom::u64().map_err(io::Error::from);
    drawn.map_err(SpoolError::io("drawing a random salt for", spare))
}

/// Turns a prepared file into the segment of this header. The name appears only once everything
/// under it is durable.
pub(super) fn adopt(dir: &Path, spare: &Path, header: &Header) -> Result<PathBuf, SpoolError> {
    let write = || {
        let file = OpenOptions::new().write(true).open(spare)?;
        file.write_all_at(&header.encode(), 0)?;
        file.sync_all()
    };
    write().map_err(SpoolError::io("writing the header of", spare))?;
    let path = dir.join(file_name(header.first_index));
    fs::rename(spare, &path).map_err(SpoolError::io("naming a new segment", &path))?;
    sync_dir(dir)?;
    Ok(path)
}

/// Removes what an earlier run had prepared.
pub(super) fn remove_spare(dir: &Path) -> Result<(), SpoolError> {
    let path = dir.join(SPARE);
    match fs::remove_file(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(SpoolError::io("removing", &path)),
    }
}

pub(super) fn sync_dir(dir: &Path) -> Result<(), SpoolError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(SpoolError::io("syncing directory", dir))
}

/// Creates the directory where it is missing, durably, for its owner alone.
pub(super) fn create_dir(dir: &Path) -> Result<(), SpoolError> {
    if dir.is_dir() {
        identity::overwrite_in_place(dir);
        return Ok(());
    }
    let missing = |dir: &&Path| !dir.as_os_str().is_empty() && !dir.is_dir();
    let missing: Vec<_> = dir.ancestors().take_while(missing).collect();
    let mut builder = fs::DirBuilder::new();
    let made = builder.recursive(true).mode(0o700).create(dir);
    made.map_err(SpoolError::io("creating directory", dir))?;
    identity::overwrite_in_place(dir);
    missing.into_iter().try_for_each(|dir| match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync_dir(parent),
        _ => sync_dir(Path::new(".")),
    })
}

/// The right to write to a directory, for as long as it lives.
#[derive(Debug)]
pub(super) struct Lock(File);

impl Lock {
    pub(super) fn take(dir: &Path) -> Result<Self, SpoolError> {
        let path = dir.join(LOCK);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(PRIVATE)
            .open(&path)
            .map_err(SpoolError::io("opening", &path))?;
        let mut tried = file.try_lock();
        for _ in 0..LOCK_TRIES {
            // Whoever only looks whether it is taken holds it for a moment.
            if !matches!(tried, Err(TryLockError::WouldBlock)) {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
            tried = file.try_lock();
        }
        match tried {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(SpoolError::Locked { dir: dir.to_owned(), holder: read_pid(&file) });
            }
            Err(TryLockError::Error(source)) => {
                return Err(SpoolError::io("locking", &path)(source));
            }
        }
        // In place: what is cut off a file has to be found again, and a disk may be full.
        let pid = format!("{:<10}\n", std::process::id());
        let written = file.write_all_at(pid.as_bytes(), 0);
        written
            .and_then(|()| file.set_len(pid.len() as u64))
            .map_err(SpoolError::io("writing", &path))?;
        Ok(Self(file))
    }

    /// Takes it again, if somebody has removed or replaced its file: another gateway would find the directory free.
    pub(super) fn look(&mut self, dir: &Path) -> Result<(), SpoolError> {
        let path = dir.join(LOCK);
        if is_named(&self.0, &path).is_ok_and(|named| named) {
            return Ok(());
        }
        *self = Self::take(dir)?;
        FILES_RENEWED.with(["lock"]).add(1);
        tracing::warn!(
            "{}: it was removed or replaced under the gateway, and keeps others away again",
            path.display()
        );
        Ok(())
    }
}

impl Lock {
    /// Whether a gateway holds the directory.
    pub(super) fn is_taken(dir: &Path) -> Result<bool, SpoolError> {
        let path = dir.join(LOCK);
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            opened => opened.map_err(SpoolError::io("opening", &path))?,
        };
        // Shared, and only asked: a gateway that starts at this moment tries again.
        match file.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(source)) => Err(SpoolError::io("locking", &path)(source)),
        }
    }
}

fn read_pid(file: &File) -> Option<u32> {
    let mut text = String::new();
    file.take(16).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_that_goes_while_sizes_are_added_is_not_missed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(file_name(0)), [0; 10]).unwrap();
        // Listed, but with nothing behind its name.
        std::os::unix::fs::symlink("gone", dir.path().join(file_name(1))).unwrap();
        assert_eq!(disk_bytes(dir.path()).unwrap(), 10);
    }

    #[test]
    fn only_exact_names_are_segments() {
        assert_eq!(parse_name(&file_name(0xabc)), Some(0xabc));
        for name in ["spool-abc.log", "spool-0000000000000ABC.log", "spool-spare.tmp", "spool.lock"]
        {
            assert_eq!(parse_name(name), None, "{name}");
        }
    }
}
