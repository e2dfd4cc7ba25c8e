//! Standard output, where it takes something that exists only once.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use rustix::fs::{OFlags, fcntl_getfl};

/// Whether the program was started without a standard output. Its runtime has put `/dev/null` in the place then, for
/// reading and writing; whoever redirects output there opens it for writing alone.
pub(super) fn is_closed() -> io::Result<bool> {
    let out = io::stdout();
    let file = File::from(out.as_fd().try_clone_to_owned()?);
    let found = file.metadata()?;
    let null = fs::metadata("/dev/null")?;
    let is_null = found.file_type().is_char_device() && found.rdev() == null.rdev();
    let mode = fcntl_getfl(&out)? & OFlags::RWMODE;
    Ok(is_null && mode == OFlags::RDWR)
}
