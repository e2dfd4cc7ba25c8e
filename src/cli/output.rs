//! Standard output, where it takes something that exists only once, or all that was asked for.

use std::fs::{self, File};
use std::io::{self, StdoutLock, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use anyhow::{Context as _, Result, bail};
use rustix::fs::{OFlags, fcntl_getfl};

/// Standard output, locked. It names itself where it takes nothing, as files do.
pub(super) struct Output(StdoutLock<'static>);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(named)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(named)
    }
}

/// An error of standard output.
pub(super) fn named(error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("standard output: {error}"))
}

/// Standard output for what may go unheard.
pub(super) fn stdout() -> Output {
    Output(io::stdout().lock())
}

/// Standard output for what was asked. If there is none, nobody would see the answer, and success would be a lie.
pub(super) fn open() -> Result<Output> {
    if is_closed()? {
        bail!("standard output is closed, so nobody would have the answer");
    }
    Ok(stdout())
}

/// Says what was done. Whoever sees only that nobody could be told would do it once more.
pub(super) fn done(line: &str) -> Result<()> {
    let told = writeln!(io::stdout(), "{line}");
    told.with_context(|| format!("standard output: what was asked for was done ({line})"))
}

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
