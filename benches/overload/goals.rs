//! The goals for storms and floods, each measured three times, and whether they are met.

use std::path::Path;

use crate::flood::{CALLERS, Flood, HONEST, measure};
use crate::storm::Storm;

/// Devices that return at once.
const STORMS: [usize; 3] = [8_000, 30_000, 100_000];
/// How much longer than at the gateway's rate a storm may take.
const STORM_MAX: f64 = 1.15;
/// How much later than without a flood nine of ten honest devices may be in.
const FLOOD_MAX: f64 = 2.0;
const FLOOD_PER_S: u32 = 300_000;
const RUNS: usize = 3;

fn verdict(met: bool) -> &'static str {
    if met { "met" } else { "MISSED" }
}

pub(crate) fn storms(sub: &dyn Fn(&str) -> std::path::PathBuf, only: Option<usize>) {
    println!(
        "\nA storm's time as a multiple of what the rate of 96 at a time allows (goal: {STORM_MAX} in {RUNS} runs of {RUNS})\n"
    );
    println!(
        "{:>10} {:>8} {:>8} {:>8} {:>10} {:>10}   goal",
        "devices", "ratio", "at work", "all in", "RETRYs", "repeats"
    );
    for count in STORMS.into_iter().filter(|count| only.is_none_or(|only| *count == only)) {
        let mut storm = Storm::start(&sub(&format!("storm-{count}")), 1, count);
        storm.first_time();
        for _ in 0..RUNS {
            let peak = storm.peak();
            let (crowd, busy) = storm.together();
            #[expect(clippy::cast_precision_loss, reason = "a count")]
            let ratio = crowd.all.as_secs_f64() * peak / count as f64;
            let all = crowd.took.len() == count;
            println!(
                "{count:>10} {ratio:>8.2} {busy:>8.2} {all:>8} {:>10} {:>10}   {}",
                crowd.retries,
                crowd.repeats,
                verdict(all && ratio <= STORM_MAX)
            );
        }
        storm.stop();
    }
}

pub(crate) fn floods(sub: &dyn Fn(&str) -> std::path::PathBuf) {
    println!(
        "\n{HONEST} honest devices over UDP and {CALLERS} over TCP under a flood (goal: all in, p90 at most {FLOOD_MAX} times as late)\n"
    );
    println!(
        "{:<24} {:>9} {:>9} {:>9} {:>7} {:>9} {:>9} {:>7} {:>16}   goal",
        "flood",
        "hellos/s",
        "UDP in",
        "p90 ms",
        "ratio",
        "TCP in",
        "p90 ms",
        "ratio",
        "readings stored"
    );
    for run in 0..RUNS {
        let mut calm = [0.0; 2];
        for (name, flood) in [
            ("none", Flood::None),
            ("UDP, many addresses", Flood::Spoofed),
            ("UDP, one address", Flood::OneAddress),
            ("TCP, one address", Flood::Streams),
        ] {
            let dir: &Path = &sub(&format!("{name} {run}"));
            let mut measured = measure(dir, flood, FLOOD_PER_S);
            let p90 = [measured.crowd.quantile(90), measured.caller_quantile(90)]
                .map(|time| time.as_secs_f64() * 1e3);
            if matches!(flood, Flood::None) {
                calm = p90;
            }
            let ratios = [p90[0] / calm[0], p90[1] / calm[1]];
            let [honest, callers] = [measured.crowd.took.len(), measured.callers.len()];
            let all = honest == HONEST && callers == CALLERS;
            println!(
                "{name:<24} {:>9.0} {honest:>9} {:>9.1} {:>7.1} {callers:>9} {:>9.1} {:>7.1} {:>7} of {:>5}   {}",
                measured.per_s,
                p90[0],
                ratios[0],
                p90[1],
                ratios[1],
                measured.stored,
                measured.readings,
                verdict(all && ratios.iter().all(|ratio| *ratio <= FLOOD_MAX))
            );
        }
    }
}
