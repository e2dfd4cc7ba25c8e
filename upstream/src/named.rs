//! Whether an open file is still the one under its name: what is written into one that was removed or replaced is lost
//! when it is closed, however often it is synced.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Whether this open file is what `path` names now. Where that cannot be told, it is not.
pub(crate) fn is_named(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(open), Ok(named)) => (open.dev(), open.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}
