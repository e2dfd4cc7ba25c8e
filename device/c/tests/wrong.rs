//! A program in C that does everything wrong, under AddressSanitizer and under valgrind.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The static library of these tests' own build, the newest if there are several.
fn library() -> Option<PathBuf> {
    let exe = env::current_exe().ok()?;
    let entries = fs::read_dir(exe.parent()?).ok()?.flatten().map(|entry| entry.path());
    let is = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with("libduet_device_c") && name.ends_with(".a")
    };
    entries.filter(is).max_by_key(|path| fs::metadata(path).and_then(|found| found.modified()).ok())
}

fn there(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok()
}

/// Compiles the program with these flags; what then runs it.
fn built(folder: &Path, name: &str, flags: &[&str]) -> Command {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (program, library) = (folder.join(name), library().expect("no static library was built"));
    let mut cc = Command::new("cc");
    cc.args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-g", "-O1"]).args(flags);
    cc.arg("-I").arg(root.join("include")).arg(root.join("tests/wrong.c")).arg(library);
    let output = cc.args(["-lpthread", "-ldl", "-lm", "-o"]).arg(&program).output();
    let output = output.unwrap_or_else(|error| panic!("{error}"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Command::new(program)
}

fn run(mut command: Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{error}"));
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
}

/// The gateway's certificate of the tests, in a file.
fn certificate(folder: &Path) -> PathBuf {
    let hex = include_str!("../../tests/data/certificate.hex").trim();
    let pair = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap_or_default();
    let path = folder.join("gateway.der");
    let der: Vec<u8> = (0..hex.len()).step_by(2).map(pair).collect();
    fs::write(&path, der).unwrap_or_else(|error| panic!("{error}"));
    path
}

#[test]
fn every_wrong_argument_is_an_error_and_no_byte_is_left() {
    if !there("cc") {
        eprintln!("SKIPPED: no C compiler, so no program in C did anything wrong");
        return;
    }
    let folder = tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"));
    let certificate = certificate(folder.path());
    let sanitized = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"];
    let mut under_asan = built(folder.path(), "sanitized", &sanitized);
    under_asan.arg(&certificate);
    run(under_asan);
    if !there("valgrind") {
        eprintln!("SKIPPED: no valgrind, so the program in C was not run under it");
        return;
    }
    let plain = built(folder.path(), "plain", &[]);
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["-q", "--error-exitcode=9", "--leak-check=full"]);
    valgrind.arg(plain.get_program()).arg(certificate);
    run(valgrind);
}
