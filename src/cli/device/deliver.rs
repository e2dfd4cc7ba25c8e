//! Hands out what exists only once: a registration key must reach its file, or its reader, before the device with it
//! is registered. Otherwise a full disk or a closed pipe would leave a registered device that nobody can be.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use duet::admin::ClientError;
use duet::identity;
use rustix::fs::{fsync, syncfs};
use zeroize::Zeroizing;

use crate::cli::output;

/// Where credentials go.
pub(super) enum To<'a> {
    /// A new file.
    File(&'a Path),
    /// Standard output.
    Out,
}

impl<'a> To<'a> {
    /// The file, if there is one. A secret goes neither to a terminal nor to an output that was closed.
    pub(super) fn choose(out: Option<&'a Path>, secret: bool) -> Result<Self> {
        match out {
            Some(path) => Ok(Self::File(path)),
            None if secret && io::stdout().is_terminal() => {
                bail!("the registration key is not printed on a terminal: give --out FILE")
            }
            None if secret && output::is_closed()? => {
                bail!(
                    "standard output is closed, so the registration key would be lost: give --out FILE"
                )
            }
            None => Ok(Self::Out),
        }
    }

    /// Delivers the credentials, then registers. If the delivery fails, nothing is registered; if the registration is
    /// refused, a new file goes away again. If nobody knows what became of it, the file stays.
    pub(super) fn then<T>(
        &self,
        credentials: &[u8],
        register: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        match self {
            Self::File(path) => {
                let failed = || format!("{}: nothing was registered", path.display());
                identity::write_new(path, credentials, 0o600).with_context(failed)?;
                if let Err(error) = identity::sync_dir_of(path) {
                    let _ = fs::remove_file(path);
                    return Err(error).with_context(failed);
                }
                register().map_err(|error| {
                    if is_unknown(&error) {
                        let kept = format!(
                            "it is not known whether the device was registered: `duet device show` tells; its \
                             credential stays in {}",
                            path.display()
                        );
                        return error.context(kept);
                    }
                    let _ = fs::remove_file(path);
                    error
                })
            }
            Self::Out => {
                // No error of this kind is told apart from here on: a closed pipe is a failure, too.
                let delivered = deliver(credentials);
                if let Err(error) = delivered {
                    bail!("standard output: {error}; nothing was registered");
                }
                register().context("the credential that was printed is not registered")
            }
        }
    }
}

/// Removes what an import has left that was killed, with which nobody was registered. A directory with anything else in it stays,
/// and is an error.
fn clear(draft: &Path) -> io::Result<()> {
    let left = match fs::read_dir(draft) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        left => left?,
    };
    for entry in left {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_file() && path.extension().is_some_and(|end| end == "json") {
            fs::remove_file(path)?;
        }
    }
    fs::remove_dir(draft).map_err(|error| {
        io::Error::new(error.kind(), format!("{}: {error}; remove it", draft.display()))
    })
}

/// Delivers each credential in a file of its own in a new directory, then registers. It is the directory with all of
/// them, or none.
pub(super) fn then_in_dir<T>(
    dir: &Path,
    credentials: &[(String, Zeroizing<Vec<u8>>)],
    register: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let failed = || format!("{}: nothing was registered", dir.display());
    if dir.symlink_metadata().is_ok() {
        return Err(io::Error::from(io::ErrorKind::AlreadyExists)).with_context(failed);
    }
    let mut draft = dir.as_os_str().to_owned();
    draft.push(".draft");
    let draft = PathBuf::from(draft);
    let delivered = (|| {
        clear(&draft)?;
        fs::DirBuilder::new().mode(0o700).create(&draft)?;
        for (name, credential) in credentials {
            let mut options = OpenOptions::new();
            let file = options.write(true).create_new(true).mode(0o600);
            file.open(draft.join(format!("{name}.json")))?.write_all(credential)?;
        }
        // One sync for all of them.
        syncfs(File::open(&draft)?)?;
        identity::rename_new(&draft, dir)?;
        identity::sync_dir_of(dir)
    })();
    if let Err(error) = delivered {
        let _ = fs::remove_dir_all(&draft);
        return Err(error).with_context(failed);
    }
    register().map_err(|error| {
        if is_unknown(&error) {
            let kept = format!(
                "it is not known whether the devices were registered: `duet device list` tells; their credentials stay \
                 in {}",
                dir.display()
            );
            return error.context(kept);
        }
        let _ = fs::remove_dir_all(dir);
        error
    })
}

fn deliver(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()?;
    match fsync(&out) {
        // A pipe or a terminal has nothing to sync.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::ROFS) => Ok(()),
        synced => synced.map_err(Into::into),
    }
}

/// Whether the gateway may have done what was asked and could not say so.
fn is_unknown(error: &anyhow::Error) -> bool {
    match error.downcast_ref::<ClientError>() {
        Some(ClientError::Refused(_)) | None => false,
        Some(ClientError::Control(_) | ClientError::Answer) => true,
    }
}
