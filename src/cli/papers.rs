//! What a package installs beside the program, made from the command line's own description: completions for shells
//! and manual pages.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, CommandFactory, ValueEnum};
use clap_complete::Shell;

use super::{Cli, output};

/// Flags of `duet completions`.
#[derive(Args)]
#[command(
    after_help = "For one user: duet completions bash > ~/.local/share/bash-completion/completions/duet"
)]
pub(super) struct Completions {
    /// For which shell
    shell: Shell,
}

/// Flags of `duet papers`.
#[derive(Args)]
pub(super) struct Papers {
    /// Where they are written
    dir: PathBuf,
}

impl Completions {
    pub(super) fn run(&self) -> Result<ExitCode> {
        // In memory first: the generator panics where it cannot write, as into a closed pipe.
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "duet", &mut text);
        output::open()?.write_all(&text)?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Papers {
    /// Writes `man/duet.1`, a page for each command, and `completions/` for each shell.
    pub(super) fn run(&self) -> Result<ExitCode> {
        let (man, completions) = (self.dir.join("man"), self.dir.join("completions"));
        for dir in [&man, &completions] {
            fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        }
        for shell in Shell::value_variants() {
            clap_complete::generate_to(*shell, &mut Cli::command(), "duet", &completions)
                .with_context(|| completions.display().to_string())?;
        }
        // What is installed is the same on every machine.
        let version = env!("CARGO_PKG_VERSION");
        let command = Cli::command().version(version).long_version(version);
        clap_mangen::generate_to(command, &man).with_context(|| man.display().to_string())?;
        Ok(ExitCode::SUCCESS)
    }
}
