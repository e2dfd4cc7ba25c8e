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

/// A copy of a registry. It is removed when this is dropped: it holds the keys of devices that are removed later.
pub struct RegistryCopy {
    dir: PathBuf,
}

impl RegistryCopy {
    /// The copy's file.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.dir.join(FILE)
    }
}

impl Drop for RegistryCopy {
    fn drop(&mut self) {
        // What cannot be removed is found by the next backup, which says why.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Puts a copy of the registry into a directory beside it, in the place of an earlier one. One at a time.
///
/// # Errors
/// Those of the storage engine and of the file system.
pub fn copy_registry(registry: &Registry) -> Result<RegistryCopy, Problem> {
    let path = std::path::absolute(registry.path().with_file_name(DIR));
    let dir = path.map_err(|error| failed(&error))?;
    match fs::remove_dir_all(&dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(&error)),
        _ => {}
    }
    fs::DirBuilder::new().mode(0o700).create(&dir).map_err(|error| failed(&error))?;
    let copy = RegistryCopy { dir };
    registry.copy_to(&copy.path())?;
    Ok(copy)
}

/// Removes a copy whose maker was killed. Whoever has the registry open may do so; without a copy nothing happens.
pub fn forget_copy(registry: &Registry) {
    // What cannot be removed is found by the next backup, which says why.
    let _ = fs::remove_dir_all(registry.path().with_file_name(DIR));
}

fn failed(error: &io::Error) -> Problem {
    let text = format!("no copy of the registry could be made in {DIR}: {error}");
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, text)
}
