//! `duet top`: what the gateway does at the moment, again every second, for a terminal.
//!
//! Each picture is made anew from what the gateway says and from the moment before, as plain lines; the terminal is only
//! cleared in between, so that whatever ends this leaves it as it was.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use duet::admin::{Activity, Moment, UpstreamStatus};
use duet::printable::Printable;

use super::output;
use super::talk::gateway;

/// How many seconds are drawn.
const HISTORY: usize = 60;
/// The width where the terminal does not say its own.
const WIDTH: usize = 100;
/// Where the bars begin in a line; lines that are too wide go on below, indented.
const BARS_AT: usize = 23;
const INDENT: &str = "             ";
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Flags of `duet top`.
#[derive(Args)]
#[command(
    after_help = "Ctrl-C ends it. Into a pipe or a file it writes one picture after the other."
)]
pub(super) struct Top {
    /// Show one picture, of one second, and end
    #[arg(long)]
    once: bool,
}

impl Top {
    pub(super) fn run(&self, state: &Path) -> Result<ExitCode> {
        let mut client = gateway(state)?;
        let mut before = client.moment()?;
        let mut history = History::default();
        loop {
            thread::sleep(Duration::from_secs(1));
            let now = client.moment()?;
            let picture = draw(&before, &now, &mut history, width());
            let mut out = output::stdout();
            if !self.once && io::stdout().is_terminal() {
                // To the upper left corner, and nothing of the picture before is left.
                out.write_all(b"\x1b[H\x1b[2J")?;
            }
            out.write_all(picture.as_bytes())?;
            out.flush()?;
            if self.once {
                return Ok(ExitCode::SUCCESS);
            }
            before = now;
        }
    }
}

/// How wide a line may be.
fn width() -> usize {
    let size = rustix::termios::tcgetwinsize(io::stdout());
    size.ok().map(|size| usize::from(size.ws_col)).filter(|columns| *columns > 0).unwrap_or(WIDTH)
}

/// What is drawn as a line of bars.
#[derive(Default)]
struct History {
    readings: VecDeque<f64>,
    handshakes: VecDeque<f64>,
}

/// One picture.
fn draw(before: &Moment, now: &Moment, history: &mut History, width: usize) -> String {
    let Moment { status, faults, activity, .. } = now;
    let rate = |of: fn(&Activity) -> u64| {
        per_second(of(&before.activity), of(activity), before.time_ms, now.time_ms)
    };
    let mut lines = vec![format!(
        "duet {}   {} shards, up {}   {}",
        status.listen,
        status.shards,
        span(status.uptime_s),
        if status.is_healthy() { "well" } else { "NOT WELL" }
    )];
    lines.extend(faults.iter().map(|fault| {
        let name = serde_json::to_value(fault.fault);
        let name = name.ok().and_then(|name| name.as_str().map(str::to_owned)).unwrap_or_default();
        format!("  ! {name}: {}", fault.advice)
    }));
    lines.push(String::new());
    let (devices, sessions, pending) = (status.devices, status.sessions, status.pending);
    lines.push(format!("fleet        {devices} devices, {sessions} sessions, {pending} pending"));
    let readings = rate(|activity| activity.readings);
    let handshakes = rate(|activity| activity.accepts);
    let room = width.saturating_sub(BARS_AT);
    let (of_readings, of_handshakes) = (
        bars(&mut history.readings, readings, room),
        bars(&mut history.handshakes, handshakes, room),
    );
    lines.push(format!("readings/s   {readings:>9.1} {of_readings}"));
    lines.push(format!("handshakes/s {handshakes:>9.1} {of_handshakes}"));
    lines.push(String::new());
    if status.upstreams.is_empty() {
        lines.push("delivery     no upstream: readings stay in the spool".into());
    }
    lines.extend(status.upstreams.iter().flat_map(upstream));
    let mut drops: Vec<_> = activity.drops.iter().collect();
    drops.sort_by_key(|drop| std::cmp::Reverse(drop.count));
    if !drops.is_empty() {
        lines.push(String::new());
        lines.push(format!("{:<22} {:>9} {:>12}", "discarded", "a second", "in all"));
    }
    for drop in drops {
        let same = |other: &&duet::admin::Dropped| other.reason == drop.reason;
        let earlier = before.activity.drops.iter().find(same).map_or(0, |drop| drop.count);
        let speed = per_second(earlier, drop.count, before.time_ms, now.time_ms);
        lines.push(format!("{:<22} {speed:>9.1} {:>12}  {}", drop.reason, drop.count, drop.advice));
    }
    let mut text = String::new();
    for line in lines {
        push_folded(&mut text, &Printable(&line).to_string(), width);
    }
    text
}

/// Appends a line; where it is wider than that, it goes on below, from the last space on that fits.
fn push_folded(text: &mut String, line: &str, width: usize) {
    let (mut rest, mut indent) = (line, "");
    while let Some((end, next)) = rest.char_indices().nth(width.saturating_sub(indent.len()).max(1))
    {
        let space = if next == ' ' { Some(end) } else { rest[..end].rfind(' ') };
        let at = space.filter(|at| !rest[..*at].trim().is_empty()).unwrap_or(end);
        text.extend([indent, rest[..at].trim_end(), "\n"]);
        (rest, indent) = (rest[at..].trim_start(), INDENT);
    }
    text.extend([indent, rest, "\n"]);
}

fn upstream(one: &UpstreamStatus) -> Vec<String> {
    let UpstreamStatus { name, kind, backlog, oldest_ms, delivered, parked, lost, .. } = one;
    let mut line =
        format!("delivery     {name} ({kind}): {delivered} delivered, {backlog} waiting");
    if *backlog > 0 {
        // Writing into a string does not fail.
        let _ = write!(line, ", the oldest for {}", span(oldest_ms / 1_000));
    }
    if one.late {
        line.push_str(", LATE");
    }
    if parked + lost > 0 {
        let _ = write!(line, "; {parked} put aside, {lost} lost");
    }
    let problem = one.problem.iter().map(|problem| format!("{INDENT}! {problem}"));
    std::iter::once(line).chain(problem).collect()
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn per_second(before: u64, now: u64, before_ms: u64, now_ms: u64) -> f64 {
    let time_ms = now_ms.saturating_sub(before_ms).max(1);
    now.saturating_sub(before) as f64 * 1_000.0 / time_ms as f64
}

/// The last values, as many as there is room for, the newest at the right, against the highest of them.
fn bars(values: &mut VecDeque<f64>, newest: f64, room: usize) -> String {
    values.push_back(newest);
    if values.len() > HISTORY {
        values.pop_front();
    }
    let shown = values.iter().skip(values.len().saturating_sub(room));
    let most = shown.clone().copied().fold(1.0, f64::max);
    let bar = |value: &f64| {
        let reached = (1..BARS.len()).rev().find(|at| {
            let share = f64::from(u32::try_from(*at).unwrap_or(0)) / 7.0;
            *value >= most * share
        });
        BARS[reached.unwrap_or(0)]
    };
    shown.map(bar).collect()
}

/// A time in its greatest unit.
fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min", seconds / 60),
        3_600..86_400 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(time_ms: u64, readings: u64, problem: &str) -> Moment {
        serde_json::from_value(serde_json::json!({
            "time_ms": time_ms,
            "status": {
                "phase": "running", "faults": ["delivering"], "listen": "127.0.0.1:1", "driver": "epoll",
                "shards": 2, "uptime_s": 7_300, "devices": 3, "sessions": 2, "pending": 1,
                "upstreams": [{
                    "name": "hook", "kind": "webhook", "required": true, "late": true, "oldest_ms": 61_000,
                    "backlog": 9, "delivered": 5, "parked": 1, "lost": 0, "worth": "", "problem": problem,
                }],
            },
            "faults": [{ "fault": "delivering", "advice": "see its line" }],
            "activity": {
                "readings": readings, "readings_early": 0, "readings_known": 0, "accepts": 4, "confirmed": 4,
                "challenges": 0, "resets": 0, "unsent": 0,
                "drops": [{ "reason": "proof", "count": readings, "advice": "look the device up" }],
            },
        }))
        .unwrap()
    }

    #[test]
    fn a_picture_has_rates_and_advice_and_nothing_in_it_moves_the_cursor() {
        let mut history = History::default();
        let (before, now) = (moment(1_000, 10, ""), moment(3_000, 110, "down\x1b[2J\nup"));
        let picture = draw(&before, &now, &mut history, 60);
        for expected in [
            "duet 127.0.0.1:1   2 shards, up 2 h   NOT WELL\n",
            "  ! delivering: see its line\n",
            "fleet        3 devices, 2 sessions, 1 pending\n",
            "readings/s        50.0 █\n",
            "9 waiting, the\n             oldest for 1 min, LATE; 1 put aside, 0 lost\n",
            "             ! down\\u{1b}[2J\\u{a}up\n",
            "proof                       50.0          110  look the\n             device up\n",
        ] {
            assert!(picture.contains(expected), "{expected}{picture}");
        }
        assert!(picture.lines().all(|line| line.chars().count() <= 60));
    }

    #[test]
    fn bars_stand_against_the_highest() {
        let mut values = VecDeque::new();
        for value in [0.0, 50.0, 100.0] {
            bars(&mut values, value, HISTORY);
        }
        assert_eq!(bars(&mut values, 14.0, HISTORY), "▁▄█▁");
        assert_eq!(bars(&mut values, 2.0, 2), "█▂", "the newest are shown");
        (0..100).for_each(|_| drop(bars(&mut values, 1.0, HISTORY)));
        assert_eq!(values.len(), HISTORY);
    }
}
