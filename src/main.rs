//! The `duet` command.

use std::io;
use std::process::ExitCode;

use duet::printable::Printable;
use rustix::process::DumpableBehavior;

mod cli;

fn main() -> ExitCode {
    keep_memory_private();
    match cli::run() {
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
        assert!(!said(libc::ENOENT).contains(';'), "{}", said(libc::ENOENT));
        assert_eq!(message(&anyhow::anyhow!("os error 13 is a number")), "os error 13 is a number");
    }
}
