//! What a service manager hears of the gateway's life, by the protocol of systemd's `sd_notify`: that it serves, takes
//! settings anew or ends, how it is, and, while all shards turn, that it need not be restarted.
//!
//! Without a manager that listens (`NOTIFY_SOCKET`) all of this does nothing. Nothing here can keep a gateway from
//! working.

use std::sync::Arc;
use std::time::{Duration, Instant};

use duet::admin::{Gateway as _, Status};
use duet::server::Control;
use sd_notify::NotifyState;

/// How often the manager is told how the gateway is, if that has changed.
const STATUS_EVERY: Duration = Duration::from_secs(10);
/// Shards show every second that they turn, so one that did not for so long may only have waited for a processor.
const LEAST_PATIENCE: Duration = Duration::from_secs(3);

fn tell(states: &[NotifyState<'_>]) {
    // A manager that does not listen any more is its own concern.
    let _ = sd_notify::notify(states);
}

/// The gateway is not there yet, or does something that takes time.
pub(super) fn status(text: &str) {
    tell(&[NotifyState::Status(&line(text))]);
}

/// Devices are served.
pub(super) fn ready() {
    tell(&[NotifyState::Ready]);
}

/// Settings are taken anew; [`ready`] ends it.
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(_) => tell(&[NotifyState::Reloading]),
    }
}

/// The gateway ends.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("ending, syncing the spool")]);
}

/// Tells how the gateway is, and that it is alive, for as long as every shard turns. It never completes.
pub(super) async fn watch(control: Arc<Control>) {
    let watchdog = sd_notify::watchdog_enabled();
    let mut pulse = Pulse::new(watchdog.map_or(STATUS_EVERY, |time| time / 2));
    let every = watchdog.map_or(STATUS_EVERY, |time| (time / 4).min(STATUS_EVERY));
    let mut every = tokio::time::interval(every.max(Duration::from_millis(100)));
    let (mut told, mut told_at) = (String::new(), None::<Instant>);
    loop {
        every.tick().await;
        let now = Instant::now();
        if pulse.beats(&control.turns(), now) && watchdog.is_some() {
            tell(&[NotifyState::Watchdog]);
        }
        if told_at.is_none_or(|at| now.duration_since(at) >= STATUS_EVERY) {
            let text = summary(&control.status());
            if text != told {
                status(&text);
            }
            (told, told_at) = (text, Some(now));
        }
    }
}

/// One line for `systemctl status`.
fn summary(status: &Status) -> String {
    let Status { devices, sessions, faults, .. } = status;
    let mut text = format!("{sessions} sessions of {devices} devices");
    for fault in faults {
        if let Ok(serde_json::Value::String(name)) = serde_json::to_value(fault) {
            text.push_str("; ");
            text.push_str(&name);
        }
    }
    text
}

/// A line break would end the message's field.
fn line(text: &str) -> String {
    text.replace(char::is_control, " ")
}

/// Whether all shards turn.
struct Pulse {
    patience: Duration,
    /// For each shard how often it has shown itself, and since when that is so.
    seen: Vec<(u64, Instant)>,
}

impl Pulse {
    fn new(patience: Duration) -> Self {
        Self { patience: patience.max(LEAST_PATIENCE), seen: Vec::new() }
    }

    /// Takes how often each shard has shown itself; whether none of them has been still for too long.
    fn beats(&mut self, turns: &[u64], now: Instant) -> bool {
        if self.seen.len() != turns.len() {
            self.seen = turns.iter().map(|turn| (*turn, now)).collect();
        }
        for (seen, turn) in self.seen.iter_mut().zip(turns) {
            if seen.0 != *turn {
                *seen = (*turn, now);
            }
        }
        self.seen.iter().all(|(_, since)| now.duration_since(*since) < self.patience)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_shard_that_stands_still_ends_the_pulse_and_brings_it_back() {
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let mut pulse = Pulse::new(Duration::from_secs(15));
        assert!(pulse.beats(&[1, 1], at(0)));
        assert!(pulse.beats(&[9, 1], at(14)));
        assert!(!pulse.beats(&[15, 1], at(15)), "the second has not turned for 15 s");
        assert!(!pulse.beats(&[16, 1], at(16)));
        assert!(pulse.beats(&[17, 2], at(17)));
        assert!(pulse.beats(&[18, 2], at(31)));
        assert!(!pulse.beats(&[18, 2], at(32)));
    }

    #[test]
    fn what_is_told_is_one_line() {
        assert_eq!(line("a\nREADY=1"), "a READY=1");
    }
}
