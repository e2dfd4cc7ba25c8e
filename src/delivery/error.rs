//! What can go wrong with a spool. Owns the words; decides nothing.

use std::io;
use std::path::{Path, PathBuf};

use super::id::SpoolId;

/// Why a spool cannot be opened, written or read.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The operating system refused an operation on a file of the spool.
    #[error("{action} {}: {source}{}", path.display(), Remedy(source))]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file holds something that the spool did not leave there. Nothing was changed.
    #[error(
        "{} is damaged at byte {offset}: {damage}; bring it back from a backup, or move it away to go on without its \
         readings", path.display()
    )]
    Damaged {
        /// The damaged file.
        path: PathBuf,
        /// Where, in bytes from its beginning.
        offset: u64,
        /// What was found.
        damage: Damage,
    },
    /// There are no segments where there were some.
    #[error(
        "{} has no segment left, although {} stored there: bring the files back, or move `spool.durable` away to begin a \
         new spool", dir.display(), Stored(*durable)
    )]
    Emptied {
        /// The spool's directory.
        dir: PathBuf,
        /// One past the last index that was durable, where `spool.durable` can be read.
        durable: Option<u64>,
    },
    /// The directory does not hold the spool that was there at the last start.
    #[error(
        "{} holds {} and not spool {known}, which was there at the last start: is its disk mounted? Bring that spool \
         back, or remove {} to go on with what is there now", dir.display(), Found(*found), file.display()
    )]
    Another {
        /// The spool's directory.
        dir: PathBuf,
        /// Which spool was there.
        known: SpoolId,
        /// Which is there now, if any.
        found: Option<SpoolId>,
        /// Where the first of them is remembered.
        file: PathBuf,
    },
    /// The file that remembers the spool has something else in it.
    #[error("{}: no spool's name; remove it to go on with the spool that is there now", .0.display())]
    Unreadable(PathBuf),
    /// `spool.durable` and the segments are of two spools.
    #[error(
        "{}: `spool.durable` is another spool's than the segments are: bring back the files that belong together, or \
         move `spool.durable` away to go on with these segments", .0.display()
    )]
    Mixed(PathBuf),
    /// A segment is of another spool than the one before it.
    #[error("{} is a segment of another spool: move it out of this directory", .0.display())]
    Foreign(PathBuf),
    /// Nothing says how far the spool is durable.
    #[error(
        "{}: `spool.durable` is missing or damaged, so nobody can say how far readings are durable; `duet run` finds \
         out when it starts", .0.display()
    )]
    Unmarked(PathBuf),
    /// The segment that takes the appends is no longer where it was.
    #[error(
        "{} was removed, replaced or cut while the gateway was writing to it: readings that were confirmed may be gone; as \
         long as this gateway runs, the descriptor of a file that was removed still has them", .0.display()
    )]
    Replaced(PathBuf),
    /// A reading that is asked for is no longer kept.
    #[error("{}: {index} is before {kept}, the oldest reading that is kept", dir.display())]
    Trimmed {
        /// The spool's directory.
        dir: PathBuf,
        /// What was asked for.
        index: u64,
        /// The oldest index that is kept.
        kept: u64,
    },
    /// A reading that is asked for does not exist yet.
    #[error("{}: {index} is beyond the end, the next reading will be {durable}", dir.display())]
    Beyond {
        /// The spool's directory.
        dir: PathBuf,
        /// What was asked for.
        index: u64,
        /// One past the last durable index.
        durable: u64,
    },
    /// Another process moves this cursor.
    #[error("{} is in use by another process", .0.display())]
    CursorTaken(PathBuf),
    /// A cursor of another spool.
    #[error("{} is a place in another spool; remove it to begin anew in this one", .0.display())]
    CursorElsewhere(PathBuf),
    /// Neither of a cursor's two slots can be read.
    #[error("{} is damaged; remove it, and its reader begins with the oldest reading that is kept", .0.display())]
    CursorDamaged(PathBuf),
    /// No name for a cursor.
    #[error("a cursor's name has 1 to 64 letters, digits, dots, dashes and underscores")]
    CursorName,
    /// There is no such cursor.
    #[error("{} does not exist", .0.display())]
    CursorNone(PathBuf),
    /// What is to be removed has not reached everybody who needs it.
    #[error(
        "cursor {cursor} stands at {index} and still needs readings that would be removed; wait until it has them{}",
        Force(*always)
    )]
    Held {
        /// The cursor's name.
        cursor: String,
        /// Where it stands.
        index: u64,
        /// Whether it can never be passed over.
        always: bool,
    },
    /// Nobody knows what a cursor that has to be there still needs.
    #[error(
        "cursor {cursor} has no file in {}, so nobody knows what it still needs; a gateway that runs with these settings \
         makes it again{}", dir.display(), Force(*always)
    )]
    Absent {
        /// The cursor's name.
        cursor: String,
        /// The spool's directory.
        dir: PathBuf,
        /// Whether it can never be passed over.
        always: bool,
    },
    /// There is no spool.
    #[error("{}: no spool here yet; `duet run` makes one", .0.display())]
    None(PathBuf),
    /// Another gateway holds the spool.
    #[error("spool {} is in use by another process{}", dir.display(), Pid(*holder))]
    Locked {
        /// The spool's directory.
        dir: PathBuf,
        /// Who holds it, where known.
        holder: Option<u32>,
    },
    /// A setting is out of its range.
    #[error("spool setting {setting} must be {expected}")]
    Setting {
        /// Which one.
        setting: &'static str,
        /// What it may be.
        expected: &'static str,
    },
    /// The output that records were being written to failed.
    #[error("writing records out: {0}")]
    Output(#[source] io::Error),
    /// The spool's thread ended before it was asked to.
    #[error("the spool's thread ended unexpectedly")]
    ThreadEnded,
}

/// What was found in the place of something valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// The segment's header is not one, or its checksum is wrong.
    #[error("not a segment header")]
    Header,
    /// The segment was written by another version of the format.
    #[error("format version {0} is not known")]
    Version(u32),
    /// The header's first index is not the one in the file's name.
    #[error("the header's first index is not the one in the file's name")]
    Name,
    /// The file is not as long as it was made: a power cut does not do that.
    #[error("the file has {found} bytes instead of {expected}")]
    FileLength {
        /// What it has.
        found: u64,
        /// What its header says.
        expected: u64,
    },
    /// A record is missing: the segment ends early, but later records exist.
    #[error("a record is missing here, later ones exist")]
    Missing,
    /// A record's length is impossible.
    #[error("impossible record length")]
    Length,
    /// A record's checksum is wrong.
    #[error("wrong record checksum")]
    Checksum,
    /// A record is whole but its fields contradict each other.
    #[error("inconsistent record fields")]
    Fields,
    /// A record is whole but stands in the wrong place.
    #[error("record index out of sequence")]
    Sequence,
}

impl SpoolError {
    /// Attaches what was done to which file; for `map_err`.
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }

    /// The disk, or its owner's share of it, is full.
    pub(super) fn is_no_space(&self) -> bool {
        matches!(self, Self::Io { source, .. } if is_no_space(source))
    }
}

/// The disk, or its owner's share of it, is full.
pub(super) fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// What a ring says of a write for which the system gave it no thread.
const CANCELED: i32 = rustix::io::Errno::CANCELED.raw_os_error();

/// What to do about it.
struct Remedy<'a>(&'a io::Error);

impl std::fmt::Display for Remedy<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if is_no_space(self.0) {
            f.write_str("; free space there (`df -h`, and `df -i` for files), or remove stored readings (`duet spool trim`)")
        } else if self.0.raw_os_error() == Some(CANCELED) {
            f.write_str("; the kernel got no thread to write with: raise what limits them (`ulimit -u`, `TasksMax=`)")
        } else {
            Ok(())
        }
    }
}

/// How a cursor can be passed over, where it can.
struct Force(bool);

impl std::fmt::Display for Force {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0 { "" } else { ", or say --undelivered" })
    }
}

/// What stands in a spool's directory.
struct Found(Option<SpoolId>);

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(id) => write!(f, "spool {id}"),
            None => f.write_str("no spool"),
        }
    }
}

/// How much was stored, as far as that is known.
struct Stored(Option<u64>);

impl std::fmt::Display for Stored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(durable) => write!(f, "{durable} readings were"),
            None => f.write_str("`spool.durable`, which is damaged, says that readings were"),
        }
    }
}

struct Pid(Option<u32>);

impl std::fmt::Display for Pid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.map_or(Ok(()), |pid| write!(f, " (pid {pid})"))
    }
}
