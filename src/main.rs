//! The `duet` command.

use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use duet::printable::Printable;
use duet::wipe::Allocator;
use rustix::process::DumpableBehavior;

mod cli;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

fn main() -> ExitCode {
    keep_memory_private();
    keep_owners_mode();
    hear_limits();
    match have_descriptors().and_then(|()| cli::run()) {
        Ok(code) => code,
        // `duet device list | head` is no failure.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // What another program said may be part of it.
            let text = message(&error);
            let lines: Vec<_> = text.lines().map(|line| Printable(line).to_string()).collect();
            eprintln!("duet: {}", lines.join("\n"));
            ExitCode::FAILURE
        }
    }
}

/// Keeps keys out of core dumps, and other processes of this user out of the memory that has them. A limit on the size
/// of core dumps would not do: where the system hands them to a program, it gives the program all of the memory.
fn keep_memory_private() {
    let kept = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable);
    if let Err(error) = kept {
        eprintln!(
            "duet: a core dump of this process would hold keys: prctl(PR_SET_DUMPABLE): {error}"
        );
    }
}

/// Keeps the owner's part of the mode of each file that is made: with a mask that takes it, nobody but root could open
/// them afterwards.
fn keep_owners_mode() {
    use rustix::fs::Mode;
    let mask = rustix::process::umask(Mode::RWXG | Mode::RWXO);
    rustix::process::umask(mask - Mode::RWXU);
}

/// Has a write beyond the limit of a file's size (`ulimit -f`) fail like any other that fails, instead of ending the
/// process without a word.
fn hear_limits() {
    let heard = Arc::new(AtomicBool::new(false));
    if let Err(error) = signal_hook::flag::register(libc::SIGXFSZ, heard) {
        eprintln!("duet: a file's limit of size would end this process: SIGXFSZ: {error}");
    }
}

/// Refuses to begin with fewer descriptors than any command may want at once: some libraries end the process where they get
/// none.
fn have_descriptors() -> anyhow::Result<()> {
    const WANTED: u64 = 32;
    let allowed = rlimit::increase_nofile_limit(WANTED).unwrap_or(WANTED);
    if allowed < WANTED {
        anyhow::bail!(
            "only {allowed} files may be open at once, and this may need {WANTED}: raise the limit (`ulimit -n`, `LimitNOFILE=`)"
        );
    }
    Ok(())
}

/// The error and its causes, each once: some errors name their cause themselves.
fn message(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    match remedy(&text) {
        Some(remedy) => format!("{text}; {remedy}"),
        None => text,
    }
}

/// What to do about a refusal that only the system has put into words, whichever file it met.
fn remedy(text: &str) -> Option<String> {
    let said = |number: i32| text.contains(&format!("(os error {number})"));
    if said(libc::EROFS) {
        return Some(
            "its file system can only be read: mount it for writing (`mount -o remount,rw`), or see why it was mounted \
             so (`dmesg`)"
                .into(),
        );
    }
    if said(libc::ENOSPC) && !text.contains("free space") {
        return Some(
            "its file system has no room left, for data (`df -h`) or for one more file (`df -i`)"
                .into(),
        );
    }
    if said(libc::EDQUOT) {
        return Some("this user's quota there is used up (`quota`, `df -h`)".into());
    }
    if said(libc::EMFILE) {
        return Some("raise the limit of open files (`ulimit -n`, `LimitNOFILE=`)".into());
    }
    if said(libc::EAGAIN) {
        return Some(
            "the system gives no thread or memory more: raise what limits them (`ulimit -u`, `ulimit -v`, `TasksMax=`, \
             `MemoryMax=`)"
                .into(),
        );
    }
    if said(libc::EFBIG) {
        return Some(
            "files may not grow so large: raise the limit (`ulimit -f`, `LimitFSIZE=`), or use another file system".into(),
        );
    }
    said(libc::EACCES).then(|| {
        let user = rustix::process::geteuid().as_raw();
        format!("this is user {user}: run it as the owner of the state directory, or give it to this user (`chown -R {user}`)")
    })
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_of_the_system_comes_with_its_remedy() {
        let said = |errno| message(&anyhow::Error::from(io::Error::from_raw_os_error(errno)));
        assert!(said(libc::EROFS).contains("remount,rw"), "{}", said(libc::EROFS));
        assert!(said(libc::EACCES).contains("chown -R"), "{}", said(libc::EACCES));
        assert!(said(libc::ENOSPC).contains("df -i"), "{}", said(libc::ENOSPC));
        assert!(said(libc::EDQUOT).contains("quota"), "{}", said(libc::EDQUOT));
        assert!(said(libc::EMFILE).contains("ulimit -n"), "{}", said(libc::EMFILE));
        assert!(said(libc::EFBIG).contains("ulimit -f"), "{}", said(libc::EFBIG));
        assert!(said(libc::EAGAIN).contains("ulimit -u"), "{}", said(libc::EAGAIN));
        assert!(!said(libc::ENOENT).contains(';'), "{}", said(libc::ENOENT));
        let none = io::Error::from_raw_os_error(libc::EAGAIN);
        let said = message(&duet::server::ServerError::Thread(none).into());
        assert!(said.contains("a thread") && said.contains("ulimit -u"), "{said}");
        assert_eq!(message(&anyhow::anyhow!("os error 13 is a number")), "os error 13 is a number");
    }
}
