//! A copy of the registry for a backup, made by whoever has it open. It blocks.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use axum::http::StatusCode;

use super::Problem;
use crate::registry::{FILE, Registry};

/// The directory beside the registry in which the copy lies.
const DIR: &str = ".backup";

/// Puts a copy of the registry into a directory beside it, in the place of an earlier one that nobody took. Returns
/// its path.
///
/// # Errors
/// Those of the storage engine and of the file system.
pub fn copy_registry(registry: &Registry) -> Result<PathBuf, Problem> {
    let path = std::path::absolute(registry.path().with_file_name(DIR));
    let dir = path.map_err(|error| failed(&error))?;
    match fs::remove_dir_all(&dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(&error)),
        _ => {}
    }
    fs::DirBuilder::new().mode(0o700).create(&dir).map_err(|error| failed(&error))?;
    let path = dir.join(FILE);
    match registry.copy_to(&path) {
        Ok(()) => Ok(path),
        Err(error) => {
            // The first error is what is told.
            let _ = fs::remove_dir_all(&dir);
            Err(error.into())
        }
    }
}

/// Removes a copy that nobody took, as when `duet backup` was killed: it holds the keys of devices that are removed
/// later. Without one nothing happens.
pub(super) fn forget(registry: &Registry) {
    // What cannot be removed is found by the next backup, which says why.
    let _ = fs::remove_dir_all(registry.path().with_file_name(DIR));
}

fn failed(error: &io::Error) -> Problem {
    let text = format!("no copy of the registry could be made in {DIR}: {error}");
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, text)
}
