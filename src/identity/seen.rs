//! What a file was like when it was last in use, in a file beside it: so that an older copy in its place, or another
//! gateway's, is told from it. Such a registry knows nothing of what was revoked since, such a queue of commands not of
//! what was carried out.
//!
//! It is written after each change is on disk, and synced only when it is made: after a power cut it may name an older
//! change, never one that the file does not have. One that is damaged or missing says nothing, which is told.
//!
//! ```text
//! 0   magic "duetseen"        24  number of the last change u64    60  CRC-32C of bytes 0..60
//! 8   the file's id           32  zeros
//! ```

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use duet_protocol::identity::Fingerprint;

use super::sync_dir_of;

const MAGIC: [u8; 8] = *b"duetseen";
const LEN: usize = 64;
/// Whoever opens a named pipe otherwise waits until somebody opens its other end.
const NO_WAIT: i32 = libc::O_NONBLOCK;

/// Which file, and how far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct State {
    /// Made once for each.
    pub(crate) id: [u8; 16],
    /// The number of its last change.
    pub(crate) change: u64,
}

/// The file beside it.
pub(crate) struct Seen(PathBuf);

impl Seen {
    pub(crate) fn beside(file: &Path) -> Self {
        Self(file.with_extension("seen"))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// What it says, if that can be believed.
    pub(crate) fn read(&self) -> Option<State> {
        let mut bytes = [0; LEN];
        let mut options = OpenOptions::new();
        let file = options.read(true).custom_flags(NO_WAIT).open(&self.0).ok()?;
        let has_length = file.metadata().ok()?.len() == LEN as u64;
        file.read_exact_at(&mut bytes, 0).ok().filter(|()| has_length)?;
        let (covered, crc) = bytes.split_last_chunk::<4>()?;
        let (magic, rest) = covered.split_first_chunk::<8>()?;
        let (id, rest) = rest.split_first_chunk()?;
        let change = u64::from_le_bytes(*rest.first_chunk()?);
        let whole = *magic == MAGIC && crc32c::crc32c(covered) == u32::from_le_bytes(*crc);
        whole.then_some(State { id: *id, change })
    }

    /// Writes it. Where that fails it names an older change, which tells less and nothing that is wrong.
    pub(crate) fn tell(&self, state: State) {
        let mut bytes = [0; LEN];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..24].copy_from_slice(&state.id);
        bytes[24..32].copy_from_slice(&state.change.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..60]);
        bytes[60..].copy_from_slice(&crc.to_le_bytes());
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600).custom_flags(NO_WAIT);
        let _ = options.open(&self.0).and_then(|file| {
            let is_made = file.metadata()?.len() != LEN as u64;
            if is_made {
                file.set_len(0)?;
            }
            file.write_all_at(&bytes, 0)?;
            if is_made {
                file.sync_all()?;
                sync_dir_of(&self.0)?;
            }
            Ok(())
        });
    }

    /// The one that remembers the gateway's certificate under a key id, wherever that lies.
    fn of_certificate(state: &Path, key_id: u8) -> Self {
        Self(state.join(format!("gateway-{key_id}.seen")))
    }

    /// Removes it: the file beside it is to be another one.
    pub(crate) fn forget(&self) -> io::Result<()> {
        match fs::remove_file(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// Whether a gateway of this state directory last ran with another certificate under this key id: then the devices that hold
/// that one are locked out. In words for people.
#[must_use]
pub fn other_certificate(
    state: &Path,
    key_id: u8,
    path: &Path,
    found: &Fingerprint,
) -> Option<String> {
    let seen = Seen::of_certificate(state, key_id);
    let last = seen.read()?;
    (last != of_certificate(key_id, found)).then(|| {
        format!(
            "{}: another certificate than the one that this gateway last ran with under key_id {key_id} ({} tells): devices that \
             hold that one are not let in. If it was damaged or replaced by mistake, bring it back; a new one gets a key_id of \
             its own, and the one before goes under [gateway.retiring]",
            path.display(),
            seen.0.display()
        )
    })
}

/// Remembers the certificate that a gateway runs with under a key id.
pub fn remember_certificate(state: &Path, key_id: u8, used: &Fingerprint) {
    let seen = Seen::of_certificate(state, key_id);
    let used = of_certificate(key_id, used);
    if seen.read() != Some(used) {
        seen.tell(used);
    }
}

fn of_certificate(key_id: u8, fingerprint: &Fingerprint) -> State {
    let mut id = [0; 16];
    id.copy_from_slice(&fingerprint.0[..16]);
    State { id, change: key_id.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_file_says_nothing_until_it_is_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let seen = Seen::beside(&dir.path().join("it.redb"));
        let state = State { id: [3; 16], change: 8 };
        seen.tell(state);
        let whole = fs::read(seen.path()).unwrap();
        let mut flipped = whole.clone();
        flipped[24] ^= 1;
        for damaged in [&whole[..40], &flipped, &[&whole[..], b"more"].concat()] {
            fs::write(seen.path(), damaged).unwrap();
            assert_eq!(seen.read(), None);
            seen.tell(state);
            assert_eq!(seen.read(), Some(state));
        }
    }
}
