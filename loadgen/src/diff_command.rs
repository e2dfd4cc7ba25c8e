//! `loadgen diff`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use clap::Args;
use loadgen::diff::{Condition, Diff, Figures};

/// The arguments of `loadgen diff`.
#[derive(Args)]
#[command(
    after_help = "Conditions: a figure, > or <, and a limit. The limit is a number, or with \
    sign and percent sign a change against the first report; in the figure's name * stands for anything.\n\
    \n    loadgen diff before.json after.json --fail-if 'measured.latency_ms.p99>+10%' \
    --fail-if 'measured.per_s<-5%'\
    \n    loadgen diff before.json after.json --fail-if '*.success_percent<100'\n\n\
    Exit codes: 0 done, 1 a condition holds, 2 wrong usage, or reports that cannot be compared."
)]
pub(crate) struct Compared {
    /// The report to compare with
    first: PathBuf,
    /// The report to judge
    second: PathBuf,
    /// When the second is not good enough; may be given several times
    #[arg(long, value_name = "CONDITION")]
    fail_if: Vec<Condition>,
    /// Show changes of at least so many percent
    #[arg(long, value_name = "PERCENT", default_value_t = 1.0)]
    above: f64,
}

fn read(path: &Path) -> Result<Figures> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let report =
        serde_json::from_str(&text).with_context(|| format!("{}: not JSON", path.display()))?;
    Figures::read(&report).map_err(|error| anyhow!("{} {error}", path.display()))
}

impl Compared {
    /// Prints the comparison; whether no condition holds.
    pub(crate) fn run(&self) -> Result<bool> {
        let (first, second) = (read(&self.first)?, read(&self.second)?);
        let diff = Diff::new(&first, &second, &self.fail_if, self.above)?;
        print!("{diff}");
        Ok(diff.failures.is_empty())
    }
}
