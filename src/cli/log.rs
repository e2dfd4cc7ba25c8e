//! `duet log …`: what the running gateway writes to its log.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;
use duet::log::Level;

use super::output;
use super::talk::gateway;

/// What the running gateway logs
#[derive(Subcommand)]
pub(super) enum Log {
    /// Show or set from which level on there are lines: error, warn, info or debug
    ///
    /// It holds until the next reload or start, which take `log.level` of the settings.
    Level {
        /// The new level
        level: Option<Level>,
    },
}

impl Log {
    pub(super) fn run(self, state: &Path) -> Result<ExitCode> {
        let Self::Level { level } = self;
        let level = gateway(state)?.log_level(level)?;
        output::done(&level.to_string())?;
        Ok(ExitCode::SUCCESS)
    }
}
