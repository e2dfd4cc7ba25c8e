//! `duet spool`: looks at what is stored and makes room, also while the gateway runs.

use std::io::{self, BufWriter, Write};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};
use duet::config::Overrides;
use duet::delivery::{self, Filter, Trimmed};

use super::Place;

/// Look at the stored readings, and remove the oldest
#[derive(Subcommand)]
pub(super) enum Spool {
    /// Print the readings, oldest first
    Cat(Cat),
    /// Read and check every record; exit code 1 at the first damaged place
    Verify,
    /// Remove the oldest readings for good, by whole segments
    Trim {
        /// Keep everything from the record of this index on
        #[arg(long, value_name = "INDEX")]
        before: u64,
    },
}

#[derive(Args)]
pub(super) struct Cat {
    /// How readings are shown
    #[arg(long, value_enum, default_value = "ndjson")]
    format: Output,
    /// Begin with the record of this index
    #[arg(long, value_name = "INDEX", default_value_t = 0)]
    from: u64,
    /// Only this device's
    #[arg(long, value_name = "NAME")]
    device: Option<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    /// One JSON object a line
    Ndjson,
}

impl Spool {
    pub(super) fn run(self, place: &Place) -> Result<ExitCode> {
        let dir = place.load(&Overrides::default())?.spool.dir;
        let mut out = BufWriter::new(io::stdout().lock());
        match self {
            Self::Cat(Cat { format: Output::Ndjson, from, device }) => {
                delivery::cat(&dir, &Filter { from, device }, &mut out)?;
            }
            Self::Verify => {
                let records = delivery::verify(&dir)?;
                writeln!(out, "{records} records, all whole")?;
            }
            Self::Trim { before } => {
                let Trimmed { segments, bytes, oldest } = delivery::trim(&dir, before)?;
                let mib = bytes >> 20;
                writeln!(
                    out,
                    "removed {segments} segments, {mib} MiB; the oldest reading is now {oldest}"
                )?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
