//! The `duet` command.

use std::io;
use std::process::ExitCode;

mod cli;

fn main() -> ExitCode {
    match cli::run() {
        Ok(code) => code,
        // `duet device list | head` is no failure.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("duet: {}", message(&error));
            ExitCode::FAILURE
        }
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
