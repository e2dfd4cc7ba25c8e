//! What was cut off a spool's end and may have been confirmed readings: kept aside until somebody has looked.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::error::SpoolError;
use super::segment::{self, PRIVATE};

const END: &str = "cut";
const SEEN: &str = "cut-seen";

/// Copies `length` bytes from `at` of the segment to a file of their own, durably; its name says where they stood.
/// An empty one tells of readings that left no trace.
pub(super) fn keep(
    dir: &Path,
    segment: &Path,
    first_index: u64,
    at: u64,
    length: u64,
) -> Result<PathBuf, SpoolError> {
    let mut number = 0;
    let (path, file) = loop {
        let path = dir.join(format!("spool-{first_index:016x}-{at}-{number}.{END}"));
        let mut options = OpenOptions::new();
        match options.write(true).create_new(true).mode(PRIVATE).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            opened => {
                let file = opened.map_err(SpoolError::io("keeping what is cut off in", &path))?;
                break (path, file);
            }
        }
    };
    let copy = || {
        let from = File::open(segment)?;
        let (mut done, mut block) = (0, vec![0; 64 * 1024]);
        while done < length {
            let want = usize::try_from(length - done).map_or(block.len(), |l| l.min(block.len()));
            from.read_exact_at(&mut block[..want], at + done)?;
            file.write_all_at(&block[..want], done)?;
            done += want as u64;
        }
        file.sync_all()
    };
    if let Err(error) = copy() {
        let _ = fs::remove_file(&path);
        return Err(SpoolError::io("keeping what is cut off in", &path)(error));
    }
    segment::sync_dir(dir)?;
    Ok(path)
}

/// The files that nobody has looked at yet.
///
/// # Errors
/// [`SpoolError`] when the directory cannot be listed.
pub fn cuts(dir: &Path) -> Result<Vec<PathBuf>, SpoolError> {
    let mut found = Vec::new();
    let listed = fs::read_dir(dir).map_err(SpoolError::io("listing", dir))?;
    for entry in listed {
        let path = entry.map_err(SpoolError::io("listing", dir))?.path();
        let ours =
            path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"spool-"));
        if ours && path.extension().is_some_and(|end| end == END) {
            found.push(path);
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Says that they have been looked at; returns what they are called from now on.
///
/// # Errors
/// [`SpoolError`] when one cannot be renamed.
pub fn acknowledge_cuts(dir: &Path) -> Result<Vec<PathBuf>, SpoolError> {
    let mut seen = Vec::new();
    for path in cuts(dir)? {
        let to = path.with_extension(SEEN);
        fs::rename(&path, &to).map_err(SpoolError::io("renaming", &path))?;
        seen.push(to);
    }
    segment::sync_dir(dir)?;
    Ok(seen)
}
