//! Up to where the spool is durable, for readers in other processes and for the next start. Owns the file
//! `spool.durable`; it never says more than is durable, and may say less after a power cut.
//!
//! The writer tells after each sync. It does not sync this file with each commit: what is in it is at most old, and
//! the page cache shows other processes the newest. It syncs it when a moment passes without readings, with each new
//! segment and at the end, so that what is confirmed and then damaged is known to have been confirmed. Where somebody
//! removes, replaces or damages it meanwhile, whoever looks after the spool has it made again.
//!
//! ```text
//! 0   magic "duetdura"        24  one past the last durable index u64
//! 8   spool id                32  boot of the system that wrote it, 16 bytes, zeros where unknown
//!                             48  zeros
//!                             60  CRC-32C of bytes 0..60
//! ```

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use duet_telemetry::catalogue::FILES_RENEWED;

use super::error::SpoolError;
use super::id::SpoolId;
use super::segment::{self, PRIVATE};
use crate::identity;

pub(super) const NAME: &str = "spool.durable";
const MAGIC: [u8; 8] = *b"duetdura";
const LEN: usize = 64;
/// How often a reader looks again when the writer wrote while it read.
const TRIES: u32 = 16;

/// What the file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Marker {
    pub(super) spool: SpoolId,
    /// One past the last durable index.
    pub(super) durable: u64,
    boot: [u8; 16],
}

/// What stands in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// A marker.
    Whole(Marker),
    /// Something that cannot be believed.
    Damaged,
    /// Nothing.
    Absent,
}

impl Found {
    /// What can be believed.
    pub(super) fn whole(self) -> Option<Marker> {
        match self {
            Self::Whole(marker) => Some(marker),
            Self::Damaged | Self::Absent => None,
        }
    }
}

impl Marker {
    pub(super) fn new(spool: SpoolId, durable: u64) -> Self {
        Self { spool, durable, boot: boot() }
    }

    /// Whether the system has run without a break since this was written: then it is the newest there was, since
    /// nothing that a process has written is lost with the process.
    pub(super) fn is_of_this_boot(&self) -> bool {
        self.boot != [0; 16] && self.boot == boot()
    }

    /// Reads it.
    pub(super) fn read(dir: &Path) -> Result<Found, SpoolError> {
        let path = dir.join(NAME);
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Absent),
            opened => opened.map_err(SpoolError::io("opening", &path))?,
        };
        for _ in 0..TRIES {
            let read = Self::read_from(&file).map_err(SpoolError::io("reading", &path))?;
            if let Some(marker) = read {
                return Ok(Found::Whole(marker));
            }
            std::thread::yield_now();
        }
        Ok(Found::Damaged)
    }

    fn read_from(file: &File) -> io::Result<Option<Self>> {
        let mut bytes = [0; LEN];
        match file.read_exact_at(&mut bytes, 0) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            read => read.map(|()| Self::decode(&bytes)),
        }
    }

    fn encode(&self) -> [u8; LEN] {
        let mut out = [0; LEN];
        out[..8].copy_from_slice(&MAGIC);
        out[8..24].copy_from_slice(&self.spool.0);
        out[24..32].copy_from_slice(&self.durable.to_le_bytes());
        out[32..48].copy_from_slice(&self.boot);
        let crc = crc32c::crc32c(&out[..60]);
        out[60..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8; LEN]) -> Option<Self> {
        let (covered, crc) = bytes.split_last_chunk::<4>()?;
        let (magic, rest) = covered.split_first_chunk::<8>()?;
        let (spool, rest) = rest.split_first_chunk()?;
        let (durable, rest) = rest.split_first_chunk()?;
        let boot = rest.first_chunk()?;
        let whole = *magic == MAGIC && crc32c::crc32c(covered) == u32::from_le_bytes(*crc);
        whole.then_some(Self {
            spool: SpoolId(*spool),
            durable: u64::from_le_bytes(*durable),
            boot: *boot,
        })
    }
}

/// The writer's hand on the file; clones are of the same.
#[derive(Clone, Debug)]
pub(super) struct MarkerFile(Arc<Mutex<Open>>);

#[derive(Debug)]
struct Open {
    path: PathBuf,
    file: File,
    marker: Marker,
}

impl MarkerFile {
    /// Writes it anew, durably; the caller syncs the directory.
    pub(super) fn create(dir: &Path, marker: Marker) -> Result<Self, SpoolError> {
        let path = dir.join(NAME);
        let file = write(&path, &marker).map_err(SpoolError::io("writing", &path))?;
        Ok(Self(Arc::new(Mutex::new(Open { path, file, marker }))))
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells that everything before `durable` is.
    pub(super) fn tell(&self, durable: u64) -> io::Result<()> {
        let mut open = self.open();
        open.marker.durable = durable;
        open.file.write_all_at(&open.marker.encode(), 0)
    }

    /// Makes what was told last survive a power cut.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.open().file.sync_data()
    }

    /// Makes it again, if somebody has removed, replaced or damaged it.
    pub(super) fn look(&self) -> Result<(), SpoolError> {
        let mut open = self.open();
        let is_named = identity::is_named(&open.file, &open.path).is_ok_and(|named| named);
        let says = Marker::read_from(&open.file).ok().flatten();
        if is_named && says == Some(open.marker) {
            return Ok(());
        }
        let path = &open.path;
        let file = write(path, &open.marker).map_err(SpoolError::io("writing", path))?;
        path.parent().map_or(Ok(()), segment::sync_dir)?;
        FILES_RENEWED.with(["durable"]).add(1);
        tracing::warn!(
            "{}: it was removed, replaced or damaged under the gateway, and says again how far readings are durable",
            path.display()
        );
        open.file = file;
        Ok(())
    }
}

fn write(path: &Path, marker: &Marker) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let file =
        options.read(true).write(true).create(true).truncate(false).mode(PRIVATE).open(path)?;
    file.write_all_at(&marker.encode(), 0)?;
    file.sync_all()?;
    Ok(file)
}

/// Names the time since the system started; zeros where it does not say.
fn boot() -> [u8; 16] {
    let read = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    crate::hex::decode_array(&read.trim().replace('-', "")).unwrap_or([0; 16])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_comes_back_and_every_flipped_bit_makes_it_none() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Marker::read(dir.path()).unwrap(), Found::Absent);
        let spool = SpoolId([7; 16]);
        let file = MarkerFile::create(dir.path(), Marker::new(spool, 5)).unwrap();
        file.tell(0x1_0000_0001).unwrap();
        let marker = Marker::read(dir.path()).unwrap().whole().unwrap();
        assert_eq!((marker.spool, marker.durable), (spool, 0x1_0000_0001));
        assert!(marker.is_of_this_boot());
        let whole = std::fs::read(dir.path().join(NAME)).unwrap();
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(dir.path().join(NAME), flipped).unwrap();
            assert_eq!(Marker::read(dir.path()).unwrap(), Found::Damaged, "bit {bit}");
        }
        std::fs::write(dir.path().join(NAME), &whole[..63]).unwrap();
        assert_eq!(Marker::read(dir.path()).unwrap(), Found::Damaged);
    }

    #[test]
    fn one_of_another_boot_is_known() {
        let mut marker = Marker::new(SpoolId([7; 16]), 5);
        marker.boot[0] ^= 1;
        assert!(!marker.is_of_this_boot());
        marker.boot = [0; 16];
        assert!(!marker.is_of_this_boot());
    }
}
