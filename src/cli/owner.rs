//! To whom the files of a state directory belong. A command that root runs makes and replaces some of them, and a gateway
//! that runs as another user could not open those. What such a command has made is therefore given to the owner of the
//! directory when it ends. What belonged to root before stays root's: somebody may want it so.
//!
//! The owner of a directory can move everything in it under root's eyes. So each entry is opened by its own name, followed
//! nowhere, and given by what was opened.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use duet::config::Overrides;
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, Stat, Uid, chownat, fstat, openat,
};
use rustix::io::Result;

use super::Place;

/// Which entries of the directories of another user were root's when a command began.
pub(super) struct Owner {
    dirs: Vec<PathBuf>,
    before: HashSet<(u64, u64)>,
}

impl Owner {
    /// Looks, if this is root.
    pub(super) fn look(place: &Place) -> Option<Self> {
        rustix::process::geteuid().is_root().then_some(())?;
        let loaded = place.load(&Overrides::default());
        let dirs = match loaded {
            Ok(config) => vec![config.state, config.spool.dir],
            Err(_) => vec![place.chosen()],
        };
        let mut before = HashSet::new();
        for dir in &dirs {
            each_of_root(dir, &mut |found, _, _| {
                before.insert((found.st_dev, found.st_ino));
            });
        }
        Some(Self { dirs, before })
    }

    /// Gives away what is root's by now. Where that is refused, it is left: the gateway says what it cannot open.
    pub(super) fn give(self) {
        for dir in &self.dirs {
            each_of_root(dir, &mut |found, entry, owner| {
                if !self.before.contains(&(found.st_dev, found.st_ino)) {
                    let (user, group) = owner;
                    let _ = chownat(entry, "", Some(user), Some(group), AtFlags::EMPTY_PATH);
                }
            });
        }
    }
}

type Each<'a> = dyn FnMut(&Stat, &OwnedFd, (Uid, Gid)) + 'a;

/// Visits what is root's in a directory that is not, with the directory's owner.
fn each_of_root(dir: &Path, each: &mut Each<'_>) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(dir) = openat(CWD, dir, flags, Mode::empty()) else { return };
    let Ok(found) = fstat(&dir) else { return };
    let owner = (Uid::from_raw(found.st_uid), Gid::from_raw(found.st_gid));
    if !owner.0.is_root() {
        let _ = walk(&dir, owner, each);
    }
}

fn walk(dir: &OwnedFd, owner: (Uid, Gid), each: &mut Each<'_>) -> Result<()> {
    for name in Dir::read_from(dir)? {
        let name = name?;
        let name = name.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let Ok(entry) = openat(dir, name, flags, Mode::empty()) else { continue };
        let Ok(found) = fstat(&entry) else { continue };
        let kind = FileType::from_raw_mode(found.st_mode);
        // A file with other names may be another's business.
        let is_ours = kind.is_dir() || kind.is_file() && found.st_nlink == 1;
        if is_ours && Uid::from_raw(found.st_uid).is_root() {
            each(&found, &entry, owner);
        }
        if kind.is_dir() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            if let Ok(inner) = openat(&entry, ".", flags, Mode::empty()) {
                walk(&inner, owner, each)?;
            }
        }
    }
    Ok(())
}
