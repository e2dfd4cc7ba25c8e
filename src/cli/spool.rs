//! `duet spool`: looks at what is stored and makes room, also while the gateway runs.

use std::io::{self, BufWriter, Write};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};
use duet::config::Overrides;
use duet::delivery::{self, End, Filter, Trimmed, Verified};

use super::Place;

/// Look at the stored readings, and remove the oldest
#[derive(Subcommand)]
pub(super) enum Spool {
    /// Print the readings, oldest first
    Cat(Cat),
    /// Read and check every record; exit code 1 where something is damaged, torn or was cut off
    Verify,
    /// Say that what was cut off at a start has been looked at: it stays, and is no fault any more
    AckCut,
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
    #[arg(long, value_name = "INDEX")]
    from: Option<u64>,
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
                let found = delivery::verify(&dir)?;
                out.flush()?;
                return Ok(tell(&found, &mut out)?);
            }
            Self::AckCut => {
                let seen = delivery::acknowledge_cuts(&dir)?;
                for path in &seen {
                    writeln!(out, "{}", path.display())?;
                }
                if seen.is_empty() {
                    writeln!(out, "nothing was cut off that nobody has looked at")?;
                }
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

/// Says what a spool holds, and whether that is well.
fn tell(found: &Verified, out: &mut impl Write) -> io::Result<ExitCode> {
    let Verified { spool, records, first, durable, missing, end, cuts } = found;
    writeln!(out, "spool        {spool}")?;
    writeln!(out, "indexes      {first} to {durable}, the end not included")?;
    writeln!(out, "durable      {records} records, all whole")?;
    if *missing > 0 {
        writeln!(out, "missing      {missing} indexes, told when they were lost")?;
    }
    match end {
        End::Clean => {}
        End::Unsettled { records } => writeln!(
            out,
            "unsettled    {records} records after them: the next start keeps them and makes them durable"
        )?,
        End::Torn { records, offset } => writeln!(
            out,
            "damaged or torn  at byte {offset} of the newest segment, {records} unsettled records before it: the next \
             start cuts it off and says which it was"
        )?,
    }
    for path in cuts {
        writeln!(
            out,
            "cut off      {}: look at it, then run `duet spool ack-cut`",
            path.display()
        )?;
    }
    let well = cuts.is_empty() && !matches!(end, End::Torn { .. });
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
