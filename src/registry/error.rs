//! What can go wrong with the registry. Owns the words; decides nothing.

use std::io;
use std::path::{Path, PathBuf};

use duet_protocol::identity::DeviceId;
use redb::{DatabaseError, StorageError};
use thiserror::Error;

use super::{BadLabel, Name, Refusal};
use crate::database;
use crate::identity::{Reason, Utc};

/// Why the registry did not do what it was asked. Nothing was changed then.
#[derive(Debug, Error)]
pub enum RegistryError {
    /// No file.
    #[error("{}: no registry here; `duet init` makes one in a new directory, a lost one comes from a backup", .0.display())]
    Missing(PathBuf),
    /// The file of registration keys is missing.
    #[error("{}: missing, and it holds the registration keys of devices; bring it back from where the registry came from, or restore both from a backup", .0.display())]
    NoKeys(PathBuf),
    /// Written by an earlier version.
    #[error(
        "{}: this registry is of an earlier version, which kept registration keys in it; export the devices with that \
         version (`duet device export --with-keys`), and import them into a new state directory", .0.display()
    )]
    Earlier(PathBuf),
    /// A file exists where a new one was to be made.
    #[error("{}: a registry exists already", .0.display())]
    Exists(PathBuf),
    /// Another process holds the file.
    #[error("{}: in use by another process", .0.display())]
    InUse(PathBuf),
    /// Others on the machine could read the registration keys in it.
    #[error("{}: mode {mode:04o} lets others read the devices' keys; run `chmod 600 {}`", path.display(), path.display())]
    OpenToOthers {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The file that is open has lost its name.
    #[error(
        "{}: this file was removed or replaced while it was in use, and what is changed now would be lost; put it back \
         under its name", .0.display()
    )]
    Replaced(PathBuf),
    /// Another one was in this place, or the same at a later time.
    #[error(
        "{}: another registry was here at the last change, or this one is an older copy of it: a device that was revoked \
         since would be let in again. Bring the other one back; or, to go on with this one, remove {} and revoke those \
         devices anew (`duet audit show` names them)", path.display(), seen.display()
    )]
    Older {
        /// The file.
        path: PathBuf,
        /// Where it is kept which one was here.
        seen: PathBuf,
    },
    /// The content cannot be trusted.
    #[error("{}: the registry is damaged and was left as it is; restore it from a backup ({detail})", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What the storage engine found.
        detail: Damage,
    },
    /// The file system refused.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What it said.
        error: io::Error,
    },
    /// The storage engine failed in another way.
    #[error("the registry failed: {0}")]
    Storage(Box<redb::Error>),
    /// A device of this name is registered and not revoked.
    #[error("{0}: a device of this name is registered; revoke or remove it first")]
    NameTaken(Name),
    /// The id is in use.
    #[error("{name}: id {id} belongs to device {owner}")]
    IdTaken {
        /// The device that was to be added.
        name: Name,
        /// The id.
        id: DeviceId,
        /// Who has it.
        owner: Name,
    },
    /// The credential is in use: each device has its own, so that to revoke one is to revoke its key.
    #[error("{name}: this certificate or key belongs to device {owner}; make a new key")]
    CredentialTaken {
        /// The device that was to be added.
        name: Name,
        /// Who has it.
        owner: Name,
    },
    /// The credential was revoked.
    #[error("{name}: this credential was revoked on {at} and stays refused; make a new key")]
    Refused {
        /// The device that was to be added.
        name: Name,
        /// When.
        at: Utc,
    },
    /// The certificate cannot be used.
    #[error("{name}: {reason}")]
    Certificate {
        /// The device that was to be added.
        name: Name,
        /// Why not.
        reason: Reason,
    },
    /// A token registers no device.
    #[error(transparent)]
    Enrolment(Refusal),
    /// It cannot be said of a device.
    #[error("{name}: {reason}")]
    Label {
        /// The device.
        name: Name,
        /// Why not.
        reason: BadLabel,
    },
    /// No such device.
    #[error("{0}: no device of this name")]
    Unknown(Name),
    /// Revoked before.
    #[error("{0}: revoked already, on {1}")]
    RevokedAlready(Name, Utc),
}

/// Why devices were not registered: none of them was.
#[derive(Debug, Error)]
#[error("{error}")]
pub struct NotAdded {
    /// Which of them was refused, the first being 0; `None` where none is at fault.
    pub index: Option<usize>,
    /// Why.
    #[source]
    pub error: RegistryError,
}

impl From<RegistryError> for NotAdded {
    fn from(error: RegistryError) -> Self {
        Self { index: None, error }
    }
}

/// What is wrong with a damaged file.
#[derive(Debug, Error)]
pub enum Damage {
    /// Found by the storage engine.
    #[error("{0}")]
    Engine(Box<DatabaseError>),
    /// So much that the storage engine stumbled over it.
    #[error("its structure makes no sense")]
    Structure,
    /// A record that this version cannot read.
    #[error("the record of {0} cannot be read")]
    Record(Name),
    /// Its key is not where its record says.
    #[error(
        "the key of {0} is not in registry.keys, which belongs to this registry at another time or is damaged; put back \
         the one that lay beside it, or revoke the device"
    )]
    Key(Name),
    /// The file of keys belongs to another registry.
    #[error("it belongs to another registry; put back the one that lay beside this one")]
    OthersKeys,
    /// The file of keys makes no sense.
    #[error("it is cut short, or its beginning is damaged")]
    KeyFile,
    /// A token that this version cannot read.
    #[error("an enrolment token cannot be read")]
    Token,
    /// A record under a name that is none.
    #[error("a device has an impossible name")]
    Name,
}

impl RegistryError {
    /// Whether a device was refused, and nothing else is wrong.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::NameTaken(_)
                | Self::IdTaken { .. }
                | Self::CredentialTaken { .. }
                | Self::Refused { .. }
                | Self::Certificate { .. }
        )
    }

    /// Whether the disk has no room.
    pub(crate) fn is_no_room(&self) -> bool {
        self.of_system().is_some_and(database::is_no_room)
    }

    /// Whether the file cannot be written, and may be read all the same.
    pub(super) fn is_unwritable(&self) -> bool {
        let read_only = |error: &io::Error| error.kind() == io::ErrorKind::ReadOnlyFilesystem;
        self.is_no_room() || self.of_system().is_some_and(read_only)
    }

    fn of_system(&self) -> Option<&io::Error> {
        match self {
            Self::Io { error, .. } => Some(error),
            Self::Storage(error) => match &**error {
                redb::Error::Io(error) => Some(error),
                _ => None,
            },
            _ => None,
        }
    }

    /// Whether the engine has given the file up: it does nothing more until the file is opened anew.
    pub(super) fn is_given_up(&self) -> bool {
        match self {
            Self::Storage(error) => matches!(**error, redb::Error::Io(_) | redb::Error::PreviousIo),
            // Of a file that was sound when it was opened.
            Self::Damaged { detail: Damage::Structure, .. } => true,
            _ => false,
        }
    }
}

/// What it means that the engine does not open the file.
pub(super) fn opening(path: &Path, error: DatabaseError) -> RegistryError {
    let path = path.to_owned();
    match error {
        DatabaseError::DatabaseAlreadyOpen => RegistryError::InUse(path),
        DatabaseError::Storage(StorageError::Io(error)) => match error.kind() {
            io::ErrorKind::NotFound => RegistryError::Missing(path),
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                let error = Box::new(DatabaseError::Storage(StorageError::Io(error)));
                RegistryError::Damaged { path, detail: Damage::Engine(error) }
            }
            _ => RegistryError::Io { path, error },
        },
        error => RegistryError::Damaged { path, detail: Damage::Engine(Box::new(error)) },
    }
}

macro_rules! storage_errors {
    ($($error:ty),*) => {$(
        impl From<$error> for RegistryError {
            fn from(error: $error) -> Self {
                Self::Storage(Box::new(error.into()))
            }
        }
    )*};
}
storage_errors!(redb::TransactionError, redb::TableError, redb::StorageError, redb::CommitError);
