//! How an upstream is: the one place that metrics, `status` and `/ready` are filled from.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use duet_telemetry::{Counter, Gauge, catalogue};
use serde::{Deserialize, Serialize};

use crate::link::{Cause, Failure};
use crate::orders::Taken;
use crate::settings::Upstream;
use crate::text;

/// How an upstream is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Its name.
    pub name: String,
    /// `file`, `webhook`, `nats`, `mqtt`, `postgres` or `kafka`.
    pub kind: String,
    /// Whether the spool keeps readings until it has them.
    pub required: bool,
    /// The oldest reading that it does not have has waited longer than `late_after_s`.
    pub late: bool,
    /// How long that one has waited, in milliseconds; 0 where it has everything.
    pub oldest_ms: u64,
    /// Readings that it does not have.
    pub backlog: u64,
    /// Batches whose answer is awaited.
    pub in_flight: u64,
    /// Readings that it has taken since the start.
    pub delivered: u64,
    /// Readings that it will not take, put aside since the start.
    pub parked: u64,
    /// Readings that the spool let go before it had them, since the start.
    pub lost: u64,
    /// The first index that it does not have.
    pub next: u64,
    /// What its acknowledgement is worth, as far as it is known.
    pub worth: String,
    /// What is wrong, while something is.
    pub problem: Option<String>,
    /// Commands that came by it since the start and were queued.
    pub commands: u64,
    /// Why no commands come by it, while none do that should.
    pub commands_problem: Option<String>,
}

/// Milliseconds since 1970 UTC.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Where an upstream stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) next: u64,
    pub(crate) durable: u64,
    pub(crate) in_flight: usize,
    pub(crate) waits: Option<Waits>,
}

/// Since when the oldest reading waits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waits {
    /// When the gateway received it, by the clock of the day.
    pub(crate) received_ms: u64,
    /// Since when nothing has moved, by a clock that nobody sets.
    pub(crate) since: Instant,
}

impl Waits {
    fn age_ms(self) -> u64 {
        let still_ms = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        now_ms().saturating_sub(self.received_ms).max(still_ms)
    }
}

struct Inner {
    report: Report,
    waits: Option<Waits>,
    late_after: Duration,
}

/// A report that others may look at while its upstream does whatever it does.
#[derive(Clone)]
pub(crate) struct Shared(Arc<Mutex<Inner>>);

impl Shared {
    /// As it is at this moment: an upstream that hangs grows late here all the same.
    pub(crate) fn look(&self) -> Report {
        let inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut report = inner.report.clone();
        report.oldest_ms = inner.waits.map_or(0, Waits::age_ms);
        report.late = u128::from(report.oldest_ms) > inner.late_after.as_millis();
        report
    }
}

/// What becomes of commands, as the counter names it.
const HEARD: [&str; 4] = ["queued", "known", "refused", "later"];

/// The part of a report that is about commands.
pub(crate) struct Ear {
    shared: Shared,
    heard: [Counter; 4],
}

impl Ear {
    pub(crate) fn new(upstream: &Upstream, shared: Shared) -> Self {
        let heard =
            HEARD.map(|outcome| catalogue::UPSTREAM_COMMANDS.with([&upstream.name, outcome]));
        Self { shared, heard }
    }

    fn change<T>(&self, change: impl FnOnce(&mut Report) -> T) -> T {
        change(&mut self.shared.0.lock().unwrap_or_else(PoisonError::into_inner).report)
    }

    /// Counts what became of a command.
    pub(crate) fn heard(&self, taken: &Taken) {
        let place = match taken {
            Taken::Queued { known: false, .. } => 0,
            Taken::Queued { known: true, .. } => 1,
            Taken::Refused { .. } => 2,
            Taken::Later(_) => 3,
        };
        self.heard[place].add(1);
        self.change(|report| report.commands += u64::from(place == 0));
    }

    /// No commands come; true where the reason is another one than the one that is shown.
    pub(crate) fn failed(&self, failure: &Failure) -> bool {
        self.change(|report| {
            let told = report.commands_problem.as_deref() == Some(&failure.text);
            report.commands_problem = Some(failure.text.to_string());
            !told
        })
    }

    /// Commands come; true where a problem was shown until now.
    pub(crate) fn works(&self) -> bool {
        self.change(|report| report.commands_problem.take().is_some())
    }
}

/// A report, and the metrics beside it.
pub(crate) struct Board {
    shared: Shared,
    oldest: Gauge,
    backlog: Gauge,
    in_flight: Gauge,
    delivered: Counter,
    duplicates: Counter,
    parked: Counter,
    lost: Counter,
    errors: Vec<Counter>,
}

/// Lets the metrics of an upstream go that the settings no longer have, once nothing counts there any more.
pub fn forget_metrics(name: &str) {
    for gauge in
        [&catalogue::UPSTREAM_OLDEST, &catalogue::UPSTREAM_BACKLOG, &catalogue::UPSTREAM_IN_FLIGHT]
    {
        gauge.remove([name]);
    }
    HEARD.iter().for_each(|outcome| catalogue::UPSTREAM_COMMANDS.remove([name, *outcome]));
    for counter in [
        &catalogue::UPSTREAM_DELIVERED,
        &catalogue::UPSTREAM_DUPLICATES,
        &catalogue::UPSTREAM_PARKED,
        &catalogue::UPSTREAM_LOST,
    ] {
        counter.remove([name]);
    }
    Cause::ALL.iter().for_each(|cause| catalogue::UPSTREAM_ERRORS.remove([name, cause.name()]));
}

impl Board {
    pub(crate) fn new(upstream: &Upstream) -> Self {
        let name = upstream.name.clone();
        let report = Report {
            name: name.clone(),
            kind: upstream.kind.name().to_owned(),
            required: upstream.required,
            worth: "not connected yet".to_owned(),
            ..Report::default()
        };
        let label = [name.as_str()];
        let errors = Cause::ALL
            .map(|cause| catalogue::UPSTREAM_ERRORS.with([&name, cause.name()]))
            .into_iter()
            .collect();
        Self {
            shared: Shared(Arc::new(Mutex::new(Inner {
                report,
                waits: None,
                late_after: upstream.late_after,
            }))),
            oldest: catalogue::UPSTREAM_OLDEST.with(label),
            backlog: catalogue::UPSTREAM_BACKLOG.with(label),
            in_flight: catalogue::UPSTREAM_IN_FLIGHT.with(label),
            delivered: catalogue::UPSTREAM_DELIVERED.with(label),
            duplicates: catalogue::UPSTREAM_DUPLICATES.with(label),
            parked: catalogue::UPSTREAM_PARKED.with(label),
            lost: catalogue::UPSTREAM_LOST.with(label),
            errors,
        }
    }

    /// What others may look at.
    pub(crate) fn shared(&self) -> Shared {
        self.shared.clone()
    }

    fn change<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        change(&mut self.shared.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn delivered(&self, readings: u64) {
        self.delivered.add(readings);
        self.change(|inner| inner.report.delivered += readings);
    }

    pub(crate) fn duplicate(&self) {
        self.duplicates.add(1);
    }

    pub(crate) fn parked(&self) {
        self.parked.add(1);
        self.change(|inner| inner.report.parked += 1);
    }

    pub(crate) fn lost(&self, readings: u64) {
        self.lost.add(readings);
        self.change(|inner| inner.report.lost += readings);
    }

    pub(crate) fn connected(&self, worth: &str) {
        let worth = text::on_one_line(worth);
        self.change(|inner| inner.report.worth = worth);
    }

    /// Counts a failure; true where it is another one than the one that is shown.
    pub(crate) fn failed(&self, failure: &Failure) -> bool {
        self.errors[failure.cause as usize].add(1);
        self.change(|inner| {
            let told = inner.report.problem.as_deref() == Some(&failure.text);
            inner.report.problem = Some(failure.text.to_string());
            !told
        })
    }

    /// Something was taken; true where a problem was shown until now.
    pub(crate) fn works(&self) -> bool {
        self.change(|inner| inner.report.problem.take().is_some())
    }

    /// Where it stands: the first index that it does not have, the end of the spool, and since when
    /// that reading waits (as the gateway received it, and as long as nothing moved).
    pub(crate) fn place(&self, place: Place) {
        let Place { next, durable, in_flight, waits } = place;
        let (backlog, in_flight) = (durable.saturating_sub(next), in_flight as u64);
        let oldest_ms = waits.map_or(0, Waits::age_ms);
        self.oldest.set(Duration::from_millis(oldest_ms).as_secs_f64());
        self.backlog.set_count(backlog);
        self.in_flight.set_count(in_flight);
        self.change(|inner| {
            inner.waits = waits;
            inner.report.next = next;
            inner.report.backlog = backlog;
            inner.report.in_flight = in_flight;
        });
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::settings::Settings;

    /// A server that lies must not write lines that look like the gateway's own. And what is forgotten is forgotten whole.
    #[test]
    fn whatever_a_server_says_is_told_on_one_line_and_no_series_of_it_stays() {
        let settings = "name = \"said\"\nkind = \"nats\"\nurl = \"nats://h\"\nsubject = \"a\"";
        let settings = toml::from_str::<Settings>(settings).unwrap();
        let board = Board::new(&settings.check(Path::new("/state")).unwrap());
        board.connected("h:1 (nats-server 2.10\nfaults       none\x1b[2J), stream a");
        board.failed(&Failure::new(Cause::Busy, "h:1: no\r\nfaults       none"));
        let report = board.shared().look();
        assert_eq!(report.worth, "h:1 (nats-server 2.10 faults       none [2J), stream a");
        assert_eq!(report.problem.as_deref(), Some("h:1: no  faults       none"));
        board.duplicate();
        forget_metrics("said");
        let shown = duet_telemetry::render();
        assert!(!shown.contains("\"said\""), "a series of it stays: {shown}");
    }
}
