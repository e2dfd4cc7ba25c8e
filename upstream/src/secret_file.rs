//! Which files with secrets others could read, and which only look so: those that a service manager or a container's
//! engine puts in place are root's.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Where Docker, Podman and Compose mount secrets. In a container nobody else is there to read them.
const MOUNTED: &str = "/run/secrets";

/// What to do about one that others could read.
pub const REMEDY: &str = "run `chmod 600` on it, or, where root mounts it, let nobody but a group that this user is in read it (0440)";

/// The mode of a file with a secret, where it lets somebody use the secret who should not.
///
/// A file of this process's user is for that user alone. One that root keeps for it, in a directory of root's, may be
/// readable by a group, which root has chosen: systemd's credentials show their access list so, and Kubernetes' secrets
/// their `fsGroup`. Below `/run/secrets` it may be readable by all.
///
/// # Errors
/// Those of the file system.
pub fn mode_for_others(path: &Path) -> io::Result<Option<u32>> {
    let path = fs::canonicalize(path)?;
    let found = fs::metadata(&path)?;
    let dir = path.parent().unwrap_or(Path::new("/"));
    let facts = Facts {
        mode: found.mode() & 0o777,
        is_roots: found.uid() == 0 && fs::metadata(dir)?.uid() == 0,
        runs_as_root: rustix::process::geteuid().is_root(),
        mounted: path.starts_with(MOUNTED),
    };
    Ok((facts.mode & facts.forbidden() != 0).then_some(facts.mode))
}

/// What decides.
#[derive(Clone, Copy)]
struct Facts {
    mode: u32,
    /// File and directory are root's.
    is_roots: bool,
    runs_as_root: bool,
    mounted: bool,
}

impl Facts {
    /// The bits that must not be set.
    fn forbidden(self) -> u32 {
        match self {
            Self { is_roots: true, mounted: true, .. } => 0o033,
            Self { is_roots: true, runs_as_root: false, .. } => 0o037,
            _ => 0o077,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_may_let_a_group_read_for_another_user_and_all_where_containers_have_secrets() {
        let allowed = |mode, is_roots, runs_as_root, mounted| {
            let facts = Facts { mode, is_roots, runs_as_root, mounted };
            mode & facts.forbidden() == 0
        };
        for (mode, of_user, roots, roots_to_root, mounted) in [
            (0o400, true, true, true, true),
            (0o600, true, true, true, true),
            (0o440, false, true, false, true),
            (0o640, false, true, false, true),
            (0o444, false, false, false, true),
            (0o644, false, false, false, true),
            (0o660, false, false, false, false),
            (0o604, false, false, false, true),
            (0o666, false, false, false, false),
            (0o650, false, false, false, false),
        ] {
            let said = [
                allowed(mode, false, false, false),
                allowed(mode, true, false, false),
                allowed(mode, true, true, false),
                allowed(mode, true, true, true),
            ];
            assert_eq!(said, [of_user, roots, roots_to_root, mounted], "{mode:o}");
            // Who puts it there and is not root counts for nothing.
            assert_eq!(allowed(mode, false, false, true), of_user, "{mode:o}");
        }
    }
}
