//! This node's own secret, from which reset tokens and cookies come. It is made once and kept in a file, so that a
//! device whose session a restart took believes the RESET that tells it so.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use zeroize::Zeroizing;

use super::ServerError;
use crate::identity;

/// The key's length, bytes.
const LEN: usize = 32;

/// The file's name in the state directory.
pub(super) const FILE: &str = "node.key";

/// Reads the key, or makes one where there is none.
pub(super) fn load(path: &Path) -> Result<Zeroizing<[u8; LEN]>, ServerError> {
    let failed = |error| ServerError::NodeKey { path: path.to_owned(), error };
    match read(path) {
        Ok(key) => Ok(key),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut key = Zeroizing::new([0; LEN]);
            getrandom::fill(&mut *key).map_err(|_| ServerError::System("randomness"))?;
            keep(path, &key).map_err(failed)?;
            Ok(key)
        }
        Err(error) => Err(failed(error)),
    }
}

fn read(path: &Path) -> io::Result<Zeroizing<[u8; LEN]>> {
    if let Some(mode) = identity::mode_for_others(path)? {
        let message = format!("mode {mode:04o} lets others use it; run `chmod 600` on it");
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
    }
    let mut file = File::open(path)?;
    let mut key = Zeroizing::new([0; LEN]);
    let whole = match file.read_exact(&mut *key) {
        Ok(()) => file.read(&mut [0])? == 0,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => false,
        Err(error) => return Err(error),
    };
    if whole {
        return Ok(key);
    }
    let message = "not 32 bytes; remove it to have a new one made";
    Err(io::Error::new(io::ErrorKind::InvalidData, message))
}

/// Whole or not at all: whoever is killed on the way finds no file, or the key.
fn keep(path: &Path, key: &[u8; LEN]) -> io::Result<()> {
    let draft = path.with_extension("draft");
    match std::fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => identity::write_new(&draft, key, 0o600)?,
    }
    std::fs::rename(&draft, path)?;
    identity::sync_dir_of(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_node_key_is_kept_and_a_draft_of_it_does_no_harm() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        std::fs::write(path.with_extension("draft"), b"cut off").unwrap();
        let key = load(&path).unwrap();
        assert_eq!(*load(&path).unwrap(), *key);
        assert!(!path.with_extension("draft").exists());
        for (mode, said) in [(0o644, "chmod 600"), (0o660, "chmod 600")] {
            let open = std::os::unix::fs::PermissionsExt::from_mode(mode);
            std::fs::set_permissions(&path, open).unwrap();
            assert!(load(&path).unwrap_err().to_string().contains(said));
        }
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&path, private).unwrap();
        for wrong in [&b"cut off"[..], &[7; 33]] {
            std::fs::write(&path, wrong).unwrap();
            let error = load(&path).unwrap_err().to_string();
            assert!(error.contains("not 32 bytes") && error.contains("node.key"), "{error}");
        }
    }
}
