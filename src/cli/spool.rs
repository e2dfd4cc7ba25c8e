//! `duet spool`: looks at what is stored and makes room, also while the gateway runs.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};
use duet::admin::Client;
use duet::config::Overrides;
use duet::delivery::{
    self, Cursor, End, Event, Filter, Hold, Overview, SpoolError, Trimmed, Verified,
};

use super::{Format, Place, output};

/// Look at the stored readings, and remove the oldest
#[derive(Subcommand)]
pub(super) enum Spool {
    /// Print the readings, oldest first
    Cat(Box<Cat>),
    /// Show which readings are kept, and who has read how far
    List {
        /// How to show them
        #[arg(long, value_enum, default_value = "table")]
        format: Format,
    },
    /// Read and check every record; exit code 1 where something is damaged, torn or was cut off
    Verify,
    /// Say that what was cut off at a start has been looked at: it stays, and is no fault any more
    AckCut,
    /// Remove the oldest readings for good, by whole segments
    Trim {
        /// Keep everything from the record of this index on
        #[arg(long, value_name = "INDEX")]
        before: u64,
        /// Also what an upstream still has to get
        #[arg(long)]
        undelivered: bool,
    },
    /// Set or remove a named place in the spool
    #[command(subcommand)]
    Cursor(Change),
}

/// A named place in the spool
#[derive(Subcommand)]
pub(super) enum Change {
    /// Go on with the record of this index
    Set {
        /// The cursor's name
        name: String,
        /// Which record comes next
        index: u64,
        /// Keep readings until this cursor has passed them
        #[arg(long)]
        required: bool,
    },
    /// Forget it
    Remove {
        /// The cursor's name
        name: String,
    },
}

#[derive(Args)]
pub(super) struct Cat {
    /// How readings are shown
    #[arg(long, value_enum, default_value = "ndjson")]
    format: Output,
    /// Begin with the record of this index
    #[arg(long, value_name = "INDEX", conflicts_with = "cursor")]
    from: Option<u64>,
    /// Only this device's
    #[arg(long, value_name = "NAME")]
    device: Option<String>,
    /// Only what was received since: 2026-11-26T08:00:00Z, seconds since 1970, or 90s, 15m, 2h, 7d ago
    #[arg(long, value_name = "TIME", value_parser = super::times::since)]
    since: Option<u64>,
    /// At most so many
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// Wait for more at the end, until the output is closed
    #[arg(long)]
    follow: bool,
    /// Begin where this cursor stands; a new one begins with the oldest reading
    #[arg(long, value_name = "NAME")]
    cursor: Option<String>,
    /// Move the cursor behind what the output has taken
    #[arg(long, requires = "cursor")]
    commit: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    /// One JSON object a line
    Ndjson,
}

impl Spool {
    pub(super) fn run(self, place: &Place) -> Result<ExitCode> {
        let config = place.load(&Overrides::default())?;
        let dir = config.spool.dir.clone();
        super::files::check_spool(&dir)?;
        let out = match &self {
            Self::Cat(_) | Self::List { .. } => output::open()?,
            _ => output::stdout(),
        };
        let mut out = BufWriter::with_capacity(64 * 1024, out);
        match self {
            Self::Cat(cat) => cat.run(&dir, &mut out)?,
            Self::List { format } => list(&delivery::overview(&dir)?, format, &mut out)?,
            Self::Verify => {
                let found = delivery::verify(&dir)?;
                let code = tell(&found, &mut out)?;
                out.flush()?;
                return Ok(code);
            }
            Self::AckCut => {
                let seen = delivery::acknowledge_cuts(&dir)?;
                let shown: Vec<_> = seen.iter().map(|path| path.display().to_string()).collect();
                output::done(&match seen.is_empty() {
                    true => "nothing was cut off that nobody has looked at".to_owned(),
                    false => shown.join("\n"),
                })?;
            }
            Self::Trim { before, undelivered } => {
                // A gateway that runs here knows of upstreams that the settings may no longer have.
                let running = Client::connect(&config.state)?;
                let running = running.map(|mut gateway| gateway.status()).transpose()?;
                let running = running.map(|status| status.upstreams).unwrap_or_default();
                let expected =
                    duet::server::expected_cursors(&config, delivery::spool_id(&dir)?, &running)?;
                let Trimmed { segments, bytes, oldest } = match undelivered {
                    true => delivery::trim_undelivered(&dir, before, &expected)?,
                    false => delivery::trim(&dir, before, &expected)?,
                };
                let mib = bytes >> 20;
                output::done(&format!(
                    "removed {segments} segments, {mib} MiB; the oldest reading is now {oldest}"
                ))?;
            }
            Self::Cursor(change) => change.run(&dir)?,
        }
        out.flush()?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Cat {
    fn run(self, dir: &Path, out: &mut BufWriter<output::Output>) -> Result<()> {
        let Self { format: Output::Ndjson, from, device, since, limit, follow, cursor, commit } =
            self;
        let mut cursor = cursor.map(|name| open(dir, &name, None)).transpose()?;
        let from = cursor.as_ref().map(Cursor::index).or(from);
        let filter = Filter { from, device, since_ms: since, limit, follow };
        let mut tell = |event| {
            match event {
                Event::Taken(next) if commit => {
                    if let Some(cursor) = &mut cursor {
                        settle_output()?;
                        cursor.set(next)?;
                        cursor.sync()?;
                    }
                }
                Event::Missing(first, end) => {
                    let _ = writeln!(io::stderr(), "duet: {first} to {} are missing", end - 1);
                }
                Event::Waiting => return Ok(!is_closed()),
                Event::Taken(_) => {}
            }
            Ok(true)
        };
        delivery::cat(dir, &filter, out, &mut tell)?;
        Ok(())
    }
}

/// Where readings went to a file, they are on its disk before a cursor says that they were taken.
fn settle_output() -> Result<(), SpoolError> {
    let stdout = io::stdout().as_fd().try_clone_to_owned().map_err(SpoolError::Output)?;
    let file = File::from(stdout);
    match file.metadata() {
        Ok(found) if found.is_file() => file.sync_data().map_err(SpoolError::Output),
        _ => Ok(()),
    }
}

/// Whether nobody reads the output any more.
fn is_closed() -> bool {
    use rustix::event::{PollFd, PollFlags, poll};
    let stdout = io::stdout();
    let mut polled = [PollFd::new(&stdout, PollFlags::empty())];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    let closed = PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL;
    poll(&mut polled, Some(&now)).is_ok() && polled[0].revents().intersects(closed)
}

/// Opens a cursor; one that is there keeps what it holds where `hold` says nothing.
fn open(dir: &Path, name: &str, hold: Option<Hold>) -> Result<Cursor, SpoolError> {
    let Overview { spool, first, cursors, .. } = delivery::overview(dir)?;
    let before = cursors.into_iter().find(|cursor| cursor.name == name).map(|cursor| cursor.hold);
    Cursor::open(dir, name, spool, first, hold.or(before).unwrap_or(Hold::Nothing))
}

impl Change {
    fn run(self, dir: &Path) -> Result<()> {
        match self {
            Self::Set { name, index, required } => {
                let Overview { first, durable, .. } = delivery::overview(dir)?;
                let dir = dir.to_owned();
                if index < first {
                    return Err(SpoolError::Trimmed { dir, index, kept: first }.into());
                }
                if index > durable {
                    return Err(SpoolError::Beyond { dir, index, durable }.into());
                }
                let hold = if required { Hold::Required } else { Hold::Nothing };
                let mut cursor = open(&dir, &name, Some(hold))?;
                cursor.set(index)?;
                cursor.sync()?;
                output::done(&format!("{name} goes on with {index}"))?;
            }
            Self::Remove { name } => {
                Cursor::find(dir, &name)?.remove()?;
                output::done(&format!("{name} removed"))?;
            }
        }
        Ok(())
    }
}

fn list(found: &Overview, format: Format, out: &mut impl Write) -> io::Result<()> {
    let Overview { spool, first, durable, segments, cursors } = found;
    let bytes: u64 = segments.iter().map(|(_, bytes)| bytes).sum();
    if format == Format::Json {
        let cursors: Vec<_> = cursors
            .iter()
            .map(|cursor| {
                let hold = match cursor.hold {
                    Hold::Nothing => "nothing",
                    Hold::Required => "required",
                    Hold::Always => "always",
                };
                let behind = durable.saturating_sub(cursor.index);
                let (name, index) = (&cursor.name, cursor.index);
                serde_json::json!({ "name": name, "index": index, "behind": behind, "hold": hold })
            })
            .collect();
        let shown = serde_json::json!({
            "spool": spool.to_string(), "first": first, "end": durable,
            "segments": segments.len(), "bytes": bytes, "cursors": cursors,
        });
        return writeln!(out, "{shown}");
    }
    writeln!(out, "spool        {spool}")?;
    writeln!(out, "readings     {first} to {durable}, the end not included")?;
    writeln!(out, "segments     {}, {} MiB", segments.len(), bytes >> 20)?;
    for cursor in cursors {
        let kind = match cursor.hold {
            Hold::Nothing => "",
            Hold::Required => ", required",
            Hold::Always => ", the gateway's own",
        };
        let behind = durable.saturating_sub(cursor.index);
        writeln!(out, "cursor       {} at {}, {behind} behind{kind}", cursor.name, cursor.index)?;
    }
    Ok(())
}

/// Says what a spool holds, and whether that is well.
fn tell(found: &Verified, out: &mut impl Write) -> io::Result<ExitCode> {
    let Verified { spool, records, first, durable, missing, end, cuts } = found;
    writeln!(out, "spool        {spool}")?;
    writeln!(out, "readings     {first} to {durable}, the end not included")?;
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
            "the end      damaged or torn at byte {offset} of the newest segment, {records} unsettled records before \
             it: the next start cuts it off and says which of both it was"
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
