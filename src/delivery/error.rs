//! What can go wrong with a spool. Owns the words; decides nothing.

use std::io;
use std::path::{Path, PathBuf};

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
    #[error("{} is damaged at byte {offset}: {damage}", path.display())]
    Damaged {
        /// The damaged file.
        path: PathBuf,
        /// Where, in bytes from its beginning.
        offset: u64,
        /// What was found.
        damage: Damage,
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

/// What to do about it.
struct Remedy<'a>(&'a io::Error);

impl std::fmt::Display for Remedy<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match is_no_space(self.0) {
            true => {
                f.write_str("; free space there, or remove stored readings (`duet spool trim`)")
            }
            false => Ok(()),
        }
    }
}

struct Pid(Option<u32>);

impl std::fmt::Display for Pid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.map_or(Ok(()), |pid| write!(f, " (pid {pid})"))
    }
}
