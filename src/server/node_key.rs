//! This node's own secret, from which reset tokens and cookies come. It is made once and kept in a file, so that a
//! device whose session a restart took believes the RESET that tells it so.
//!
//! Any 32 bytes are a key, so the file cannot tell whether it is damaged or another gateway's: `node.seen` remembers which key
//! was in use.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::ServerError;
use crate::identity::{self, Seen, State};

/// The key's length, bytes.
const LEN: usize = 32;

/// The file's name in the state directory.
pub(super) const FILE: &str = "node.key";

/// Reads the key, or makes one where there is none. What it warns of is another key than the last one that was read here.
pub(super) fn load(path: &Path) -> Result<(Zeroizing<[u8; LEN]>, Option<String>), ServerError> {
    let failed = |error| ServerError::NodeKey { path: path.to_owned(), error };
    let seen = Seen::beside(path);
    match read(path) {
        Ok(key) => {
            let (found, last) = (state(&key), seen.read());
            if last == Some(found) {
                return Ok((key, None));
            }
            seen.tell(found);
            let warning = last.map(|_| {
                format!(
                    "{}: not the key that this gateway had when it last ran ({} tells): it was damaged, or is another gateway's. \
                     Devices whose sessions are over take longer to come back; if there is a backup of it, stop the gateway and \
                     put it back",
                    path.display(),
                    seen.path().display()
                )
            });
            Ok((key, warning))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut key = Zeroizing::new([0; LEN]);
            getrandom::fill(&mut *key).map_err(|_| ServerError::System("randomness"))?;
            keep(path, &key).map_err(failed)?;
            seen.tell(state(&key));
            Ok((key, None))
        }
        Err(error) => Err(failed(error)),
    }
}

/// Looks whether there is a key that can be used, and changes nothing; one that is not there is made by a start.
pub(super) fn look(path: &Path) -> io::Result<()> {
    match read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        found => found.map(drop),
    }
}

/// Names a key, and tells nothing of it.
fn state(key: &[u8; LEN]) -> State {
    let digest = Sha256::new().chain_update(b"duet node key").chain_update(key).finalize();
    let mut id = [0; 16];
    id.copy_from_slice(&digest[..16]);
    State { id, change: 0 }
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
    let message = match whole {
        // A file system leaves zeros where a crash took what was written, and everybody knows that key.
        true if *key == [0; LEN] => "nothing but zeros; remove it to have a new one made",
        true => return Ok(key),
        false => "not 32 bytes; remove it to have a new one made",
    };
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
        let (key, warning) = load(&path).unwrap();
        assert_eq!(warning, None);
        assert_eq!(load(&path).unwrap(), (key, None));
        assert!(!path.with_extension("draft").exists());
        for (mode, said) in [(0o644, "chmod 600"), (0o660, "chmod 600")] {
            let open = std::os::unix::fs::PermissionsExt::from_mode(mode);
            std::fs::set_permissions(&path, open).unwrap();
            assert!(load(&path).unwrap_err().to_string().contains(said));
        }
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&path, private).unwrap();
        for (wrong, said) in
            [(&b"cut off"[..], "not 32 bytes"), (&[7; 33], "not 32 bytes"), (&[0; 32], "zeros")]
        {
            std::fs::write(&path, wrong).unwrap();
            let error = load(&path).unwrap_err().to_string();
            assert!(error.contains(said) && error.contains("node.key"), "{error}");
        }
    }

    #[test]
    fn a_node_key_that_is_damaged_or_anothers_is_told_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        let (mut key, _) = load(&path).unwrap();
        key[7] ^= 1;
        std::fs::write(&path, *key).unwrap();
        let (taken, warning) = load(&path).unwrap();
        assert_eq!(*taken, *key);
        let warning = warning.unwrap();
        assert!(warning.contains("node.key") && warning.contains("node.seen"), "{warning}");
        assert_eq!(load(&path).unwrap().1, None);
        // A gateway of before, and whoever removed it, is told nothing.
        std::fs::remove_file(dir.path().join("node.seen")).unwrap();
        assert_eq!(load(&path).unwrap().1, None);
        // One that is gone is told by whoever looks at the directory; a new one is no other's.
        std::fs::remove_file(&path).unwrap();
        assert_eq!(load(&path).unwrap().1, None);
        assert_eq!(load(&path).unwrap().1, None);
    }
}
