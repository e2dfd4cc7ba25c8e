//! Tokens for the API over TLS: each has a name, a role and an end. Only their hashes are kept; a token itself is
//! shown once, to whoever made it.
//!
//! A token holds 256 random bits, so one round of SHA-256 is enough: nobody can try them all.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, RwLock};

use duet_telemetry::catalogue::FILES_RENEWED;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use thiserror::Error;
use utoipa::ToSchema;
use zeroize::Zeroizing;

use super::access::Role;
use crate::hex::{self, Hex};
use crate::identity::{self, Seen, State};
use crate::registry::Name;

/// The file's name in the state directory.
pub const FILE: &str = "tokens.json";

/// By this programs that look for lost secrets recognise one.
const PREFIX: &str = "duet_";
/// The most tokens that are kept.
const MAX_TOKENS: usize = 1_000;

/// Why tokens cannot be used or changed.
#[derive(Debug, Error)]
pub enum TokenError {
    /// The file system refused.
    #[error("{}: the tokens cannot be kept: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Its answer.
        error: io::Error,
    },
    /// Others may read the hashes, or change them.
    #[error("{}: mode {mode:04o} lets others use it; run `chmod 600` on it", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The file is none of ours.
    #[error("{}: not a file of tokens; remove it and make new tokens with `duet token add`", .0.display())]
    Damaged(PathBuf),
    /// An older copy, or another gateway's: a token that was revoked since would open the API again.
    #[error(
        "{}: this is an older copy, or another gateway's, than the one that {} tells of: a token that was revoked since would \
         be good again; bring the newest one back, or remove both files and make new tokens with `duet token add`",
        path.display(), seen.display()
    )]
    Older {
        /// The file.
        path: PathBuf,
        /// What tells how far it was.
        seen: PathBuf,
    },
    /// The name is in use.
    #[error("{0}: a token of this name exists; revoke it first")]
    Taken(Name),
    /// No such token.
    #[error("{0}: no token of this name")]
    Unknown(Name),
    /// There are too many.
    #[error("there are {MAX_TOKENS} tokens already; revoke some")]
    TooMany,
    /// The end has passed already.
    #[error("the token would have ended before it was made")]
    Past,
    /// The kernel gave none.
    #[error("the kernel gave no random bytes")]
    Randomness,
}

/// A token as it is listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenInfo {
    /// Its name.
    pub name: String,
    /// What it allows.
    pub role: Role,
    /// When it was made, Unix seconds.
    pub created_s: i64,
    /// When it ends, Unix seconds.
    pub expires_s: i64,
}

/// A token as it is kept.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    name: String,
    role: Role,
    created_s: i64,
    expires_s: i64,
    sha256: String,
}

impl Kept {
    fn info(&self) -> TokenInfo {
        let Self { name, role, created_s, expires_s, sha256: _ } = self.clone();
        TokenInfo { name, role, created_s, expires_s }
    }
}

/// What the file has.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    /// Made at random with the file, hexadecimal.
    id: String,
    /// Counts changes.
    change: u64,
    tokens: Vec<Kept>,
    /// SHA-256 of the file without this field, hexadecimal; a file from before there were any has none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    sha256: String,
}

impl Content {
    /// None yet, in a file that is not there.
    fn empty() -> Result<Self, TokenError> {
        let mut id = [0; 16];
        getrandom::fill(&mut id).map_err(|_| TokenError::Randomness)?;
        let (id, tokens, sha256) = (Hex(&id).to_string(), Vec::new(), String::new());
        Ok(Self { id, change: 0, tokens, sha256 })
    }

    /// As the file has it, if it is whole. One from before there were ids has tokens alone.
    fn read(text: &[u8]) -> Option<Self> {
        match serde_json::from_slice::<Self>(text) {
            Ok(content) => {
                let is_whole = content.sha256.is_empty() || content.sha256 == content.digest()?;
                is_whole.then_some(content)
            }
            Err(_) => {
                let (id, tokens) = (Hex(&[0; 16]).to_string(), serde_json::from_slice(text).ok()?);
                Some(Self { id, change: 0, tokens, sha256: String::new() })
            }
        }
    }

    /// What `sha256` is to be.
    fn digest(&self) -> Option<String> {
        let bare = Self { sha256: String::new(), ..self.clone() };
        let text = serde_json::to_vec(&bare).ok()?;
        Some(Hex(&Sha256::digest(&text)).to_string())
    }

    fn state(&self) -> Option<State> {
        Some(State { id: hex::decode_array(&self.id)?, change: self.change })
    }
}

/// Why a token opens nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Denied {
    /// No token of ours.
    Wrong,
    /// It has ended.
    Expired,
}

/// The tokens of a state directory.
pub struct Tokens {
    path: PathBuf,
    seen: Seen,
    /// Nobody holds this while he waits for the disk: each request over TLS looks here, on the thread that answers all of them.
    kept: RwLock<Content>,
    /// Whose turn it is to change it.
    turn: Mutex<()>,
}

impl Tokens {
    /// Reads the tokens of a state directory; without a file there are none. An older file than the last one in this place,
    /// or another one, is refused.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn open(state: &Path) -> Result<Self, TokenError> {
        let path = state.join(FILE);
        let seen = Seen::beside(&path);
        let failed = |error| TokenError::Io { path: path.clone(), error };
        let kept = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if seen.read().is_some() {
                    tracing::warn!(
                        "{}: it is gone ({} tells), and there are no tokens of the API any more; if it is elsewhere, put it back \
                         before a new one is made",
                        path.display(),
                        seen.path().display()
                    );
                }
                Content::empty()?
            }
            Err(error) => return Err(failed(error)),
            Ok(text) => {
                use std::os::unix::fs::MetadataExt as _;
                let mode = fs::metadata(&path).map_err(failed)?.mode() & 0o777;
                if mode & 0o077 != 0 {
                    return Err(TokenError::Open { path, mode });
                }
                let content = Content::read(&text);
                let found = content.and_then(|content| Some((content.state()?, content)));
                let (state, content) = found.ok_or_else(|| TokenError::Damaged(path.clone()))?;
                if seen.read().is_some_and(|last| last.id != state.id || last.change > state.change)
                {
                    let seen = seen.path().to_owned();
                    return Err(TokenError::Older { path, seen });
                }
                content
            }
        };
        Ok(Self { path, seen, kept: RwLock::new(kept), turn: Mutex::default() })
    }

    /// Has the file beside it say how far these tokens have come, for a change is to follow or others may look. What an operator
    /// should know, if that file was gone or damaged.
    #[must_use]
    pub fn renew_seen(&self) -> Option<String> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let found = self.kept.read().unwrap_or_else(PoisonError::into_inner).state();
        let found = found.filter(|found| found.change > 0)?;
        let last = self.seen.read();
        if last != Some(found) {
            self.seen.tell(found);
        }
        if last.is_some() {
            return None;
        }
        FILES_RENEWED.with(["seen"]).add(1);
        Some(format!(
            "{}: it was gone or damaged, which says how far the API's tokens have come, and is made anew: nobody can say whether \
             {} is an older copy. If it is, tokens that were revoked since open the API: `duet token list` shows them",
            self.seen.path().display(),
            self.path.display()
        ))
    }

    /// Makes a token. It is returned and kept nowhere.
    ///
    /// # Errors
    /// [`TokenError`]; nothing was changed then.
    pub fn add(
        &self,
        name: Name,
        role: Role,
        now_s: i64,
        expires_s: i64,
    ) -> Result<Zeroizing<String>, TokenError> {
        if expires_s <= now_s {
            return Err(TokenError::Past);
        }
        let mut secret = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *secret).map_err(|_| TokenError::Randomness)?;
        let token =
            Zeroizing::new(format!("{PREFIX}{}", *Zeroizing::new(Hex(&*secret).to_string())));
        let sha256 = Hex(&identity::digest_of_secret(b"", token.as_bytes())).to_string();
        self.change(|kept| {
            if kept.iter().any(|token| token.name == name.as_str()) {
                return Err(TokenError::Taken(name));
            }
            if kept.len() == MAX_TOKENS {
                return Err(TokenError::TooMany);
            }
            kept.push(Kept { name: name.to_string(), role, created_s: now_s, expires_s, sha256 });
            Ok(())
        })?;
        Ok(token)
    }

    /// Ends a token. Returns what it was.
    ///
    /// # Errors
    /// [`TokenError`]; nothing was changed then.
    pub fn revoke(&self, name: &Name) -> Result<TokenInfo, TokenError> {
        self.change(|kept| {
            let at = kept.iter().position(|token| token.name == name.as_str());
            let ended = kept.remove(at.ok_or_else(|| TokenError::Unknown(name.clone()))?);
            Ok(ended.info())
        })
    }

    /// All tokens, those that have ended included.
    #[must_use]
    pub fn list(&self) -> Vec<TokenInfo> {
        self.kept
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .tokens
            .iter()
            .map(Kept::info)
            .collect()
    }

    /// Whose token this is.
    pub(super) fn find(&self, token: &str, now_s: i64) -> Result<(String, Role), Denied> {
        let sha256 = identity::digest_of_secret(b"", token.as_bytes());
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner);
        let found = kept.tokens.iter().find(|kept| {
            hex::decode_array::<32>(&kept.sha256)
                .is_some_and(|known| bool::from(known.ct_eq(&sha256)))
        });
        match found {
            None => Err(Denied::Wrong),
            Some(kept) if kept.expires_s <= now_s => Err(Denied::Expired),
            Some(kept) => Ok((kept.name.clone(), kept.role)),
        }
    }

    /// Changes the list on disk, whole or not at all, and then here.
    fn change<T>(
        &self,
        change: impl FnOnce(&mut Vec<Kept>) -> Result<T, TokenError>,
    ) -> Result<T, TokenError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = self.kept.read().unwrap_or_else(PoisonError::into_inner).clone();
        let done = change(&mut next.tokens)?;
        next.change += 1;
        next.sha256 = next.digest().unwrap_or_default();
        self.write(&next).map_err(|error| TokenError::Io { path: self.path.clone(), error })?;
        if let Some(state) = next.state() {
            self.seen.tell(state);
        }
        *self.kept.write().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(done)
    }

    fn write(&self, kept: &Content) -> io::Result<()> {
        let mut text = serde_json::to_vec_pretty(kept)?;
        text.push(b'\n');
        let draft = self.path.with_extension("draft");
        match fs::remove_file(&draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => identity::write_new(&draft, &text, 0o600)?,
        }
        fs::rename(&draft, &self.path)?;
        match self.path.parent() {
            Some(dir) => fs::File::open(dir)?.sync_all(),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_opens_until_it_ends_or_is_revoked() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = Tokens::open(dir.path()).unwrap();
        let name: Name = "ops".parse().unwrap();
        let token = tokens.add(name.clone(), Role::Operator, 100, 200).unwrap();
        assert_eq!(tokens.find(&token, 199), Ok(("ops".into(), Role::Operator)));
        assert_eq!(tokens.find(&token, 200), Err(Denied::Expired));
        assert_eq!(tokens.find(&token[1..], 199), Err(Denied::Wrong));
        assert_eq!(tokens.find("", 199), Err(Denied::Wrong));
        let again = tokens.add(name.clone(), Role::Viewer, 100, 200);
        assert!(matches!(again, Err(TokenError::Taken(_))));
        let past = tokens.add("past".parse().unwrap(), Role::Viewer, 100, 100);
        assert!(matches!(past, Err(TokenError::Past)));
        let text = fs::read_to_string(dir.path().join(FILE)).unwrap();
        assert!(!text.contains(&token[PREFIX.len()..]), "only the hash is kept");
        let tokens = Tokens::open(dir.path()).unwrap();
        assert_eq!(tokens.find(&token, 199), Ok(("ops".into(), Role::Operator)));
        tokens.revoke(&name).unwrap();
        assert_eq!(tokens.find(&token, 199), Err(Denied::Wrong));
        assert!(matches!(tokens.revoke(&name), Err(TokenError::Unknown(_))));
        assert!(Tokens::open(dir.path()).unwrap().list().is_empty());
    }

    /// Health and metrics are answered by the thread that looks tokens up.
    #[test]
    fn whoever_brings_a_token_does_not_wait_until_another_one_is_on_disk() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = &Tokens::open(dir.path()).unwrap();
        let token = &tokens.add("ops".parse().unwrap(), Role::Viewer, 100, 200).unwrap();
        let (answer, answered) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let changed = tokens.change(|_| {
                scope.spawn(move || answer.send(tokens.find(token, 199)));
                Ok(answered.recv_timeout(std::time::Duration::from_secs(20)))
            });
            assert_eq!(changed.unwrap(), Ok(Ok(("ops".into(), Role::Viewer))));
        });
    }

    #[test]
    fn a_token_that_was_revoked_does_not_come_back_with_an_older_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        let (kept, lost) = ("kept".parse::<Name>().unwrap(), "lost".parse::<Name>().unwrap());
        let tokens = Tokens::open(dir.path()).unwrap();
        tokens.add(kept, Role::Viewer, 100, 200).unwrap();
        tokens.add(lost.clone(), Role::Operator, 100, 200).unwrap();
        let older = fs::read(&path).unwrap();
        tokens.revoke(&lost).unwrap();
        let newest = fs::read(&path).unwrap();
        let other = tempfile::tempdir().unwrap();
        let others = Tokens::open(other.path()).unwrap();
        (0..9).for_each(|n| {
            others.add(format!("n{n}").parse().unwrap(), Role::Viewer, 100, 200).unwrap();
        });
        let others = fs::read(other.path().join(FILE)).unwrap();
        for wrong in [&older, &others, &b"[]\n".to_vec()] {
            fs::write(&path, wrong).unwrap();
            let refused = Tokens::open(dir.path()).map(drop).unwrap_err();
            assert!(matches!(refused, TokenError::Older { .. }), "{refused}");
        }
        fs::write(&path, &newest).unwrap();
        assert_eq!(Tokens::open(dir.path()).unwrap().list().len(), 1);
        // Without what tells them apart nobody can say; that is told, and ends.
        let tokens = Tokens::open(dir.path()).unwrap();
        assert_eq!(tokens.renew_seen(), None);
        let seen = dir.path().join("tokens.seen");
        let last = fs::read(&seen).unwrap();
        for damaged in [None, Some(&last[..9])] {
            fs::remove_file(&seen).unwrap();
            damaged.into_iter().for_each(|bytes| fs::write(&seen, bytes).unwrap());
            let tokens = Tokens::open(dir.path()).unwrap();
            assert!(tokens.renew_seen().is_some_and(|said| said.contains("tokens.seen")));
            assert_eq!(tokens.renew_seen(), None);
            assert_eq!(fs::read(&seen).unwrap(), last);
        }
        // And one that was not written any more catches up.
        let mut earlier = State { id: [0; 16], change: 1 };
        earlier.id = hex::decode_array(&tokens.kept.read().unwrap().id).unwrap();
        Seen::beside(&path).tell(earlier);
        assert_eq!(Tokens::open(dir.path()).unwrap().renew_seen(), None);
        assert_eq!(fs::read(&seen).unwrap(), last);
        // Begun anew, as the message says; and without it alone.
        fs::remove_file(&path).unwrap();
        let begun = Tokens::open(dir.path()).unwrap();
        begun.add(lost, Role::Viewer, 100, 200).unwrap();
        assert_eq!(Tokens::open(dir.path()).unwrap().list().len(), 1);
        // A file from before there was anything beside it.
        fs::remove_file(dir.path().join("tokens.seen")).unwrap();
        fs::write(&path, "[]").unwrap();
        assert!(Tokens::open(dir.path()).unwrap().list().is_empty());
    }

    #[test]
    fn no_flipped_bit_makes_a_token_good_for_longer_or_for_more() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        let tokens = Tokens::open(dir.path()).unwrap();
        for name in ["ops", "look"] {
            tokens.add(name.parse().unwrap(), Role::Viewer, 100, 1_900_000_000).unwrap();
        }
        let (whole, list) = (fs::read(&path).unwrap(), tokens.list());
        let mut refused = 0;
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, flipped).unwrap();
            match Tokens::open(dir.path()) {
                // Between what means something there may be this blank or another.
                Ok(tokens) => assert_eq!(tokens.list(), list, "bit {bit}"),
                Err(_) => refused += 1,
            }
        }
        assert!(refused > whole.len() * 6, "{refused} of {} bits", whole.len() * 8);
    }

    #[test]
    fn a_file_that_others_may_read_or_that_is_none_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        fs::write(&path, "[]").unwrap();
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        fs::set_permissions(&path, open).unwrap();
        assert!(matches!(Tokens::open(dir.path()), Err(TokenError::Open { mode: 0o644, .. })));
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        fs::set_permissions(&path, private).unwrap();
        fs::write(&path, "[{}]").unwrap();
        assert!(matches!(Tokens::open(dir.path()), Err(TokenError::Damaged(_))));
    }
}
