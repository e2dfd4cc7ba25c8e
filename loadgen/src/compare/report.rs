//! What a comparison found, as it is written to files. `schema/compare.json` describes the JSON.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;

use crate::exchange::{Both, TCP_OVERHEAD, UDP_OVERHEAD, Way};
use crate::link::{Emulator, Flights, Lateness, Verdict};

use super::contender::Contender;
use super::sweep::{Outcome, Solo};
use super::{LIMIT, READING, Settings};

/// The version of the report's structure.
pub(crate) const SCHEMA: u32 = 2;
/// The round-trip time at which the picture of an exchange is taken, if it is among those compared, ms.
const PICTURE_MS: u64 = 200;
/// A link later than this, µs, for more than one packet in a hundred disturbs what it measures.
const LATE_US: u64 = 5_000;

/// The whole comparison.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Report {
    /// The version of this structure.
    pub schema: u32,
    /// What wrote it.
    pub program: String,
    /// `emulated`: the judge saw every packet. `socket`: counted at sockets, the rest derived.
    pub link: &'static str,
    /// Whether the figures can be relied on; `remarks` say why not.
    pub valid: bool,
    /// What a reader must know.
    pub remarks: Vec<String>,
    /// What was asked for.
    pub settings: Outline,
    /// By how much the link was late; `None` without one.
    pub lateness: Option<Lateness>,
    /// How each figure came about.
    pub figures: Vec<Figure>,
    /// Who took part.
    pub contenders: Vec<Row>,
}

/// The settings, in the report's units.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Outline {
    /// Bytes of the reading.
    pub reading_bytes: usize,
    /// What a job may take, s.
    pub limit_s: u64,
    /// Jobs one at a time.
    pub repetitions: usize,
    /// Jobs in each cell.
    pub samples: usize,
    /// Sessions held for their memory.
    pub sessions: usize,
    /// Round-trip times, ms.
    pub round_trips_ms: Vec<u64>,
    /// Losses each way, percent.
    pub losses_percent: Vec<f64>,
    /// Jitter, ms.
    pub jitter_ms: f64,
    /// Packets that arrive twice, percent.
    pub duplicate_percent: f64,
    /// Packets that are overtaken, percent.
    pub reorder_percent: f64,
    /// Rate each way, kbit/s; `None` is no limit.
    pub rate_kbps: Option<f64>,
    /// The seed.
    pub seed: u64,
    /// The round-trip time of the exchanges drawn, ms.
    pub picture_ms: u64,
}

/// Where a figure comes from.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Figure {
    /// Its name in the report.
    pub name: &'static str,
    /// `measured`, `derived` or `absent`.
    pub kind: &'static str,
    /// From what.
    pub how: &'static str,
}

/// One contender's figures.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Row {
    /// Its name on command lines.
    pub key: &'static str,
    /// Its name for people.
    pub name: &'static str,
    /// `duet`, `tls` or `dtls`.
    pub family: &'static str,
    /// `udp` or `tcp`.
    pub transport: &'static str,
    /// How often someone waited for someone, without loss.
    pub flights: Flights,
    /// Half of that.
    pub round_trips: u32,
    /// Packets until the confirmation, without loss, median.
    pub packets: Both,
    /// Their IP bytes.
    pub ip_bytes: Both,
    /// Processor time of the device, median, µs.
    pub device_cpu_us: f64,
    /// Processor time of the server, median, µs.
    pub gateway_cpu_us: f64,
    /// Memory of the server's process that one more session takes, bytes.
    pub gateway_memory_bytes: Option<f64>,
    /// Time to the first confirmed reading without delay or other jobs, median, ms.
    pub solo_ms: f64,
    /// All round-trip times and losses.
    pub cells: Vec<Cell>,
    /// One exchange without loss, packet by packet.
    pub exchange: Vec<Packet>,
}

/// One contender at one round-trip time and loss.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Cell {
    /// The link's round-trip time, ms.
    pub round_trip_ms: u64,
    /// Its loss each way, percent.
    pub loss_percent: f64,
    /// Jobs.
    pub samples: usize,
    /// Of which so many ended within the limit, percent.
    pub success_percent: f64,
    /// Time to the first confirmed reading, median, ms; `None` is beyond the limit.
    pub p50_ms: Option<f64>,
    /// The same, 99 of 100; with fewer than 100 jobs it is the longest.
    pub p99_ms: Option<f64>,
    /// Round trips that were waited for, median; `None` where nothing was judged.
    pub round_trips: Option<u32>,
    /// Packets until the confirmation, mean.
    pub packets: Option<f64>,
    /// IP bytes until the confirmation, both ways, mean.
    pub ip_bytes: Option<f64>,
}

/// A packet of the exchange.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Packet {
    /// `up` or `down`.
    pub way: &'static str,
    /// When it was sent, ms after the first packet.
    pub sent_ms: f64,
    /// When it arrived; `None` if it was lost.
    pub arrived_ms: Option<f64>,
    /// Its IP bytes.
    pub bytes: usize,
    /// The number of its flight.
    pub flight: Option<u32>,
    /// What it says.
    pub what: String,
}

/// How each figure comes about, over an emulated link or over sockets.
#[must_use]
pub fn provenance(emulated: bool) -> Vec<Figure> {
    let figure = |name, kind, how| Figure { name, kind, how };
    let mut figures = vec![
        figure(
            "device_cpu_us",
            "measured",
            "processor time of the device's thread (of OpenSSL's client: of its process, from its first packet on), one job at a time, median",
        ),
        figure(
            "gateway_cpu_us",
            "measured",
            "processor time of the server's process, the kernel's work for it included, one job at a time, median",
        ),
    ];
    if emulated {
        figures.extend([
            figure("flights", "measured", "from the packets that crossed the link, TCP's set-up included"),
            figure("round_trips", "derived", "half the flights, rounded up"),
            figure("packets, ip_bytes", "measured", "IPv4 packets handed to the link until the confirmation arrived, headers included"),
            figure("p50_ms, p99_ms", "measured", "at the device, from power on to the confirmation (OpenSSL's client: from its first packet); of fewer than 100 jobs p99 is the slowest"),
            figure("success_percent", "measured", "jobs confirmed within 30 s; a device whose connection fails tries again"),
            figure("gateway_memory_bytes", "measured", "growth of the server's resident memory for sessions held at once, in steps as its tables grow (Duet's contenders share one gateway: their mean says more than each); sockets' memory in the kernel is not in it; OpenSSL's server holds one session a process: absent"),
        ]);
    } else {
        figures.extend([
            figure("flights", "derived", "changes of direction at the device's socket, and two for TCP's set-up"),
            figure("round_trips", "derived", "half the flights, rounded up"),
            figure("packets", "measured", "datagrams, or segments as the device's kernel counts them"),
            figure("ip_bytes", "derived", "bytes at the socket, and 28 for each datagram or 52 for each segment"),
            figure("p50_ms, p99_ms", "measured", "over UDP through a relay that delays; over TCP one round trip is added (derived), since a relay of sockets cannot delay the kernel's own set-up"),
            figure("loss", "absent", "a relay of sockets cannot lose TCP's segments"),
            figure("exchange", "absent", "packets cannot be seen at sockets"),
            figure("gateway_memory_bytes", "measured", "growth of the server's resident memory, where it has a process of its own"),
        ]);
    }
    figures
}

/// In milliseconds.
fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[expect(clippy::cast_precision_loss, reason = "counts of packets and bytes are far below 2^53")]
fn number(count: u64) -> f64 {
    count as f64
}

/// The smallest value that so many of a hundred do not exceed.
pub(crate) fn percentile<T: Copy>(sorted: &[T], percent: usize) -> Option<T> {
    sorted.get((sorted.len() * percent).div_ceil(100).max(1) - 1).copied()
}

fn median<T: Copy + PartialOrd>(values: impl Iterator<Item = T>) -> Option<T> {
    let mut values: Vec<_> = values.collect();
    values.sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
    percentile(&values, 50)
}

fn medians(verdicts: &[&Verdict], of: fn(&Verdict) -> Both) -> Both {
    let way = |way: fn(Both) -> u64| median(verdicts.iter().map(|one| way(of(one)))).unwrap_or(0);
    Both { up: way(|both| both.up), down: way(|both| both.down) }
}

/// The round-trip time whose exchange is drawn.
fn picture_ms(settings: &Settings) -> u64 {
    let times = &settings.round_trips_ms;
    let found = times.iter().copied().find(|ms| *ms == PICTURE_MS);
    found.or_else(|| times.iter().copied().max()).unwrap_or(0)
}

/// One contender's figures.
pub(super) fn row(
    contender: &Contender,
    settings: &Settings,
    solos: &[Solo],
    memory: Option<f64>,
    outcomes: &[&Outcome],
) -> Row {
    let entry = contender.entry;
    let cells = settings.cells();
    let drawn = cells.iter().position(|cell| *cell == (picture_ms(settings), 0.0));
    let judged: Vec<_> = outcomes
        .iter()
        .filter(|one| Some(one.cell) == drawn)
        .filter_map(|one| one.verdict.as_ref())
        .collect();
    let mut row = Row {
        key: entry.key,
        name: entry.name,
        family: entry.family(),
        transport: if entry.over_tcp() { "tcp" } else { "udp" },
        flights: Flights::default(),
        round_trips: 0,
        packets: medians(&judged, |one| one.packets),
        ip_bytes: medians(&judged, |one| one.ip_bytes),
        device_cpu_us: median(solos.iter().map(|one| ms(one.job.device_cpu) * 1e3)).unwrap_or(0.0),
        gateway_cpu_us: median(solos.iter().map(|one| ms(one.server_cpu) * 1e3)).unwrap_or(0.0),
        gateway_memory_bytes: memory,
        solo_ms: median(solos.iter().map(|one| ms(one.job.confirmed - one.job.began)))
            .unwrap_or(0.0),
        cells: Vec::new(),
        exchange: Vec::new(),
    };
    if let Some(middle) = middle(&judged) {
        row.flights = middle.flights;
        row.round_trips = middle.round_trips;
        row.exchange = packets(middle);
    } else if let Some(solo) = solos.last() {
        at_the_socket(&mut row, solo, entry.over_tcp());
    }
    let derived = judged.is_empty() && entry.over_tcp();
    for (place, (round_trip_ms, loss_percent)) in cells.into_iter().enumerate() {
        let own: Vec<_> = outcomes.iter().filter(|one| one.cell == place).copied().collect();
        let added = Duration::from_millis(if derived { round_trip_ms } else { 0 });
        row.cells.push(cell(round_trip_ms, loss_percent, added, &own));
    }
    row
}

/// The exchange with the middling number of packets.
fn middle<'a>(judged: &[&'a Verdict]) -> Option<&'a Verdict> {
    let mut judged = judged.to_vec();
    judged.sort_by_key(|one| (one.flights.all, one.packets.up + one.packets.down));
    percentile(&judged, 50)
}

fn packets(verdict: &Verdict) -> Vec<Packet> {
    let packet = |step: &crate::link::Step| Packet {
        way: if step.way == Way::Up { "up" } else { "down" },
        sent_ms: number(step.sent_us) / 1e3,
        arrived_ms: step.arrived_us.map(|us| number(us) / 1e3),
        bytes: step.bytes,
        flight: step.flight,
        what: step.what.clone(),
    };
    verdict.steps.iter().map(packet).collect()
}

/// What can be said without a judge.
fn at_the_socket(row: &mut Row, solo: &Solo, over_tcp: bool) {
    let set_up = if over_tcp { 2 } else { 0 };
    let (handshake, all) = (solo.job.handshake.flights, solo.job.all.flights + set_up);
    row.flights = Flights { set_up, handshake, all };
    row.round_trips = all.div_ceil(2);
    row.packets = solo.job.segments.unwrap_or(solo.job.all.messages);
    let overhead = if over_tcp { TCP_OVERHEAD } else { UDP_OVERHEAD };
    let payload = solo.job.all.payload;
    row.ip_bytes = Both {
        up: payload.up + row.packets.up * overhead,
        down: payload.down + row.packets.down * overhead,
    };
}

fn cell(round_trip_ms: u64, loss_percent: f64, added: Duration, own: &[&Outcome]) -> Cell {
    // What never came takes longer than all that did.
    let mut times: Vec<_> = own.iter().map(|one| one.time.map(|time| time + added)).collect();
    times.sort_by_key(|time| time.unwrap_or(Duration::MAX));
    let verdicts: Vec<_> = own.iter().filter_map(|one| one.verdict.as_ref()).collect();
    let mean = |of: fn(&Verdict) -> Both| {
        let sum: u64 = verdicts.iter().map(|one| of(one).up + of(one).down).sum();
        (!verdicts.is_empty()).then(|| number(sum) / number(verdicts.len() as u64))
    };
    let confirmed = times.iter().flatten().count();
    Cell {
        round_trip_ms,
        loss_percent,
        samples: own.len(),
        success_percent: 100.0 * number(confirmed as u64) / number(own.len().max(1) as u64),
        p50_ms: percentile(&times, 50).flatten().map(ms),
        p99_ms: percentile(&times, 99).flatten().map(ms),
        round_trips: median(verdicts.iter().map(|one| one.round_trips)),
        packets: mean(|one| one.packets),
        ip_bytes: mean(|one| one.ip_bytes),
    }
}

/// Puts the rows together and says what must be known about them.
pub(super) fn sum_up(settings: &Settings, link: Option<&Emulator>, contenders: Vec<Row>) -> Report {
    let lateness = link.map(Emulator::lateness);
    let mut remarks = vec![
        "Duet's gateway writes the reading to disk and syncs before it confirms; the TLS and DTLS servers only answer.".to_owned(),
        "Duet's device computes with portable Rust (p256), but for the one that says otherwise; the TLS device with assembly (aws-lc-rs), OpenSSL with its own.".to_owned(),
        "A device with an early reading has talked to its gateway before; at the very first contact it needs the round trips of the one without.".to_owned(),
        "Resumed sessions need an earlier full handshake, which is not counted, and early data can be replayed.".to_owned(),
    ];
    if contenders.iter().any(|row| row.family == "dtls") {
        remarks.push("DTLS leaves it to the application to repeat a reading that was lost, and OpenSSL's programs do not: most of its failed jobs are that.".to_owned());
    }
    let late = lateness.filter(|late| late.p99_us > LATE_US);
    if let Some(Lateness { p99_us, .. }) = late {
        remarks.insert(0, format!("INVALID: the link handed on one packet in a hundred more than {p99_us} µs late: this machine was too busy; close other programs or lower --pace."));
    }
    let conditions = &settings.conditions;
    Report {
        schema: SCHEMA,
        program: format!("loadgen {}", env!("CARGO_PKG_VERSION")),
        link: if link.is_some() { "emulated" } else { "socket" },
        valid: late.is_none(),
        remarks,
        settings: Outline {
            reading_bytes: READING.len(),
            limit_s: LIMIT.as_secs(),
            repetitions: settings.repetitions,
            samples: settings.samples,
            sessions: settings.sessions,
            round_trips_ms: settings.round_trips_ms.clone(),
            losses_percent: settings.losses_percent.clone(),
            jitter_ms: number(conditions.jitter_us) / 1e3,
            duplicate_percent: conditions.duplicate * 100.0,
            reorder_percent: conditions.reorder * 100.0,
            rate_kbps: conditions.rate_bps.map(|bps| number(bps) / 1e3),
            seed: settings.seed,
            picture_ms: picture_ms(settings),
        },
        lateness,
        figures: provenance(link.is_some()),
        contenders,
    }
}

/// A report as a run would write it, for tests of what is made from reports.
#[cfg(test)]
pub(crate) fn sample() -> Report {
    let settings = Settings {
        round_trips_ms: vec![0, 200],
        losses_percent: vec![0.0, 5.0],
        ..Settings::demo()
    };
    let time = Some(Duration::from_millis(300));
    let outcome = Outcome { contender: 0, cell: 0, time, verdict: None };
    let row = |entry: super::Entry| {
        let steps = [("up", 0.0, "HELLO"), ("down", 100.0, "ACCEPT"), ("up", 200.0, "reading")];
        let exchange = (1..).zip(steps).map(|(flight, (way, sent_ms, what))| Packet {
            way,
            sent_ms,
            arrived_ms: Some(sent_ms + 100.0),
            bytes: 100,
            flight: Some(flight),
            what: what.to_owned(),
        });
        let cells = settings.cells().into_iter();
        Row {
            key: entry.key,
            name: entry.name,
            family: entry.family(),
            transport: "udp",
            flights: Flights { set_up: 0, handshake: 2, all: 4 },
            round_trips: 2,
            packets: Both { up: 2, down: 2 },
            ip_bytes: Both { up: 200, down: 150 },
            device_cpu_us: 10.0,
            gateway_cpu_us: 20.0,
            gateway_memory_bytes: None,
            solo_ms: 1.0,
            cells: cells.map(|(ms, loss)| cell(ms, loss, Duration::ZERO, &[&outcome])).collect(),
            exchange: exchange.collect(),
        }
    };
    let rows = settings.contenders.iter().copied().map(row).collect();
    sum_up(&settings, None, rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_schema_is_up_to_date() {
        let validator = crate::schema::published::<Report>("compare.json");
        let mut report = serde_json::to_value(sample()).unwrap();
        assert_eq!(validator.validate(&report).map_err(|error| error.to_string()), Ok(()));
        report["contenders"][0]["cells"][0].as_object_mut().unwrap().remove("samples");
        assert!(!validator.is_valid(&report), "the schema looks at nothing");
    }

    #[test]
    fn percentiles_are_values_that_were_seen() {
        let values: Vec<_> = (1..=200).collect();
        assert_eq!((percentile(&values, 50), percentile(&values, 99)), (Some(100), Some(198)));
        assert_eq!((percentile(&[7], 1), percentile(&[7], 99)), (Some(7), Some(7)));
        assert_eq!(percentile::<u8>(&[], 50), None);
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), Some(2.0));
    }

    #[test]
    fn what_never_came_counts_as_longer_than_all() {
        let outcome = |ms: Option<u64>| Outcome {
            contender: 0,
            cell: 0,
            time: ms.map(Duration::from_millis),
            verdict: None,
        };
        let own = [outcome(None), outcome(Some(30)), outcome(Some(10)), outcome(Some(20))];
        let own: Vec<_> = own.iter().collect();
        let cell = cell(5, 1.0, Duration::from_millis(5), &own);
        assert_eq!((cell.p50_ms, cell.p99_ms, cell.success_percent), (Some(25.0), None, 75.0));
    }
}
