//! What happens to a spool's files before the first append. Owns the cut of a torn tail; where
//! there is damage it stops before it has changed anything.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use super::error::SpoolError;
use super::format::Header;
use super::scan::{Scan, Step};
use super::segment;

const BLOCK: usize = 64 * 1024;

/// What opening a spool found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Segments in the directory.
    pub segments: u64,
    /// Records in the last one.
    pub tail_records: u64,
    /// Bytes at the end that were no whole commit and were cut off: one that a power cut left
    /// unfinished and nobody had confirmed, or, which looks the same, the last one, damaged since.
    pub cut_bytes: u64,
}

/// The segment that takes the appends.
#[derive(Debug)]
pub(super) struct Tail {
    pub(super) path: PathBuf,
    pub(super) header: Header,
    /// Where the next record goes, and its index.
    pub(super) at: u64,
    pub(super) next_index: u64,
    /// What all segments take on disk.
    pub(super) disk_bytes: u64,
}

/// Opens the spool's last segment for appending, or creates the first. The caller holds the lock.
pub(super) fn recover(dir: &Path, segment_bytes: u64) -> Result<(Tail, Recovery), SpoolError> {
    let mut entries = segment::list(dir)?;
    let mut disk_bytes = 0;
    for entry in &entries {
        disk_bytes += segment::open(entry)?.1.size;
    }
    let mut recovery = Recovery { segments: entries.len() as u64, ..Recovery::default() };
    let Some(last) = entries.pop() else {
        segment::remove_spare(dir)?;
        recovery.segments = 1;
        return create(dir, segment_bytes).map(|tail| (tail, recovery));
    };
    let mut scan = Scan::open(last)?;
    let step = loop {
        match scan.step()? {
            Step::Record => recovery.tail_records += 1,
            other => break other,
        }
    };
    if scan.later_group()? {
        return Err(scan.damaged(step));
    }
    segment::remove_spare(dir)?;
    recovery.cut_bytes =
        settle(&scan).map_err(SpoolError::io("settling the tail of", &scan.entry.path))?;
    segment::sync_dir(dir)?;
    let tail = Tail {
        path: scan.entry.path,
        header: scan.header,
        at: scan.at,
        next_index: scan.next_index,
        disk_bytes,
    };
    Ok((tail, recovery))
}

fn create(dir: &Path, size: u64) -> Result<Tail, SpoolError> {
    let never = AtomicBool::new(false);
    let Some(spare) = segment::prepare(dir, size, &never)? else { unreachable!("nobody cancels") };
    let (path, header) = segment::adopt(dir, &spare, 0, size)?;
    Ok(Tail { path, header, at: super::format::DATA_START, next_index: 0, disk_bytes: size })
}

/// Makes the file what the scan saw: the last group durable, zeros after it up to the full size.
/// Returns how many bytes of something else were there.
fn settle(scan: &Scan) -> io::Result<u64> {
    let file = OpenOptions::new().read(true).write(true).open(&scan.entry.path)?;
    let end = scan.header.size;
    let mut cut = 0;
    let mut block = vec![0; BLOCK];
    let mut at = scan.at;
    while at < end {
        let length = read_block(&file, &mut block, at, end)?;
        if let Some(last) = block[..length].iter().rposition(|byte| *byte != 0) {
            cut = at + last as u64 + 1 - scan.at;
            block[..length].fill(0);
            file.write_all_at(&block[..length], at)?;
        }
        at += length as u64;
    }
    let mut at = scan.group_at;
    while at < scan.at {
        let length = read_block(&file, &mut block, at, scan.at)?;
        file.write_all_at(&block[..length], at)?;
        at += length as u64;
    }
    file.sync_all()?;
    Ok(cut)
}

/// Reads from `at` up to `end`, at most a block and at least a byte.
fn read_block(file: &File, block: &mut [u8], at: u64, end: u64) -> io::Result<usize> {
    let length = usize::try_from(end - at).map_or(block.len(), |left| left.min(block.len()));
    file.read_exact_at(&mut block[..length], at)?;
    Ok(length)
}
