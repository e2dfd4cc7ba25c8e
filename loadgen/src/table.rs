//! The comparison as a table for people.

use std::fmt::Write as _;

use crate::compare::{Cell, Report, Row};

/// Aligned columns, and in plain words which figure is what.
#[must_use]
pub fn render(report: &Report) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{:<29} {:>9} {:>6} {:>8} {:>12} {:>9} {:>9} {:>8}",
        "", "flights", "round", "packets", "IP bytes", "device", "gateway", "memory"
    );
    let _ = writeln!(
        out,
        "{:<29} {:>9} {:>6} {:>8} {:>12} {:>9} {:>9} {:>8}",
        "", "of all", "trips", "up/down", "up/down", "CPU µs", "CPU µs", "B/sess."
    );
    for row in &report.contenders {
        let flights = format!("{} of {}", row.flights.handshake, row.flights.all);
        let packets = format!("{}/{}", row.packets.up, row.packets.down);
        let bytes = format!("{}/{}", row.ip_bytes.up, row.ip_bytes.down);
        let memory = row.gateway_memory_bytes.map_or("–".into(), |bytes| format!("{bytes:.0}"));
        let _ = writeln!(
            out,
            "{:<29} {flights:>9} {:>6} {packets:>8} {bytes:>12} {:>9.0} {:>9.0} {memory:>8}",
            row.name, row.round_trips, row.device_cpu_us, row.gateway_cpu_us
        );
    }
    for loss in &report.settings.losses_percent {
        times(&mut out, report, *loss);
    }
    let _ = writeln!(
        out,
        "\nThe job: from power on until a {}-byte reading is confirmed, both sides' identity proven.\n\
        flights: those with a part of the handshake, of all until the confirmation, TCP's set-up included.",
        report.settings.reading_bytes
    );
    for figure in &report.figures {
        let _ = writeln!(out, "{:<9} {}: {}", figure.kind, figure.name, figure.how);
    }
    if let Some(late) = report.lateness {
        let _ = writeln!(
            out,
            "the link  handed packets on up to {} µs late (half of them), {} (99 of 100), {} (all)",
            late.p50_us, late.p99_us, late.max_us
        );
    }
    for remark in &report.remarks {
        let _ = writeln!(out, "note      {remark}");
    }
    out
}

/// Times to the first confirmed reading at one loss: a column for each round-trip time.
fn times(out: &mut String, report: &Report, loss: f64) {
    let Some(samples) = report.contenders.iter().flat_map(|row| &row.cells).next() else { return };
    let _ = writeln!(
        out,
        "\nTime to the first confirmed reading, ms, p50 / {} of {} jobs, at a loss of {loss}% each way\n\
        (a last column in % is the share confirmed within {} s, where not all were)\n",
        // The 99th percentile of fewer is the greatest of them.
        if samples.samples < 100 { "slowest" } else { "p99" },
        samples.samples,
        report.settings.limit_s
    );
    let mut line = format!("{:<29}", "round-trip time, ms");
    for ms in &report.settings.round_trips_ms {
        let _ = write!(line, " {ms:>13}");
    }
    let _ = writeln!(out, "{line}");
    for row in &report.contenders {
        let mut line = format!("{:<29}", row.name);
        let cells: Vec<_> = at_loss(row, loss).collect();
        for cell in &cells {
            let _ = write!(line, " {:>13}", format!("{} / {}", ms(cell.p50_ms), ms(cell.p99_ms)));
        }
        let worst = cells.iter().map(|cell| cell.success_percent).fold(100.0, f64::min);
        if worst < 100.0 {
            let _ = write!(line, " {worst:>5.0}%");
        }
        let _ = writeln!(out, "{line}");
    }
}

fn at_loss(row: &Row, loss: f64) -> impl Iterator<Item = &Cell> {
    row.cells.iter().filter(move |cell| (cell.loss_percent - loss).abs() < 1e-9)
}

/// Two or more digits that matter; what is beyond the limit is a word.
fn ms(value: Option<f64>) -> String {
    match value {
        None => "never".into(),
        Some(ms) if ms < 9.95 => format!("{ms:.1}"),
        Some(ms) => format!("{ms:.0}"),
    }
}

/// A table for a README: the exchange, processor time, and the median times without loss.
#[must_use]
pub fn markdown(report: &Report) -> String {
    let times = &report.settings.round_trips_ms;
    let mut out = String::from(
        "| | flights of the handshake / of all | round trips | packets up / down | IP bytes up / down | \
        CPU µs device / gateway |",
    );
    for ms in times {
        let _ = write!(out, " RTT {ms} |");
    }
    let _ = writeln!(out, "\n|---|{}", "---|".repeat(5 + times.len()));
    for row in &report.contenders {
        let (flights, packets, bytes) = (row.flights, row.packets, row.ip_bytes);
        let _ = write!(
            out,
            "| {} | {} / {} | {} | {} / {} | {} / {} | {:.0} / {:.0} |",
            row.name,
            flights.handshake,
            flights.all,
            row.round_trips,
            packets.up,
            packets.down,
            bytes.up,
            bytes.down,
            row.device_cpu_us,
            row.gateway_cpu_us
        );
        for cell in at_loss(row, 0.0) {
            let _ = write!(out, " {} |", ms(cell.p50_ms));
        }
        let _ = writeln!(out);
    }
    out
}

/// One line for each contender and cell, for spreadsheets.
#[must_use]
pub fn csv(report: &Report) -> String {
    let mut out = String::from(
        "contender,family,transport,handshake_flights,flights,round_trips,packets_up,packets_down,\
        ip_bytes_up,ip_bytes_down,device_cpu_us,gateway_cpu_us,gateway_memory_bytes,\
        round_trip_ms,loss_percent,samples,success_percent,p50_ms,p99_ms\n",
    );
    let or_nothing =
        |value: Option<f64>| value.map_or(String::new(), |value| format!("{value:.3}"));
    for row in &report.contenders {
        for cell in &row.cells {
            let _ = writeln!(
                out,
                "{},{},{},{},{},{},{},{},{},{},{:.1},{:.1},{},{},{},{},{},{},{}",
                row.key,
                row.family,
                row.transport,
                row.flights.handshake,
                row.flights.all,
                row.round_trips,
                row.packets.up,
                row.packets.down,
                row.ip_bytes.up,
                row.ip_bytes.down,
                row.device_cpu_us,
                row.gateway_cpu_us,
                or_nothing(row.gateway_memory_bytes),
                cell.round_trip_ms,
                cell.loss_percent,
                cell.samples,
                cell.success_percent,
                or_nothing(cell.p50_ms),
                or_nothing(cell.p99_ms),
            );
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_markdown_table_is_rectangular_and_has_the_times_without_loss() {
        let report = crate::compare::sample();
        let table = markdown(&report);
        let lines: Vec<_> = table.lines().collect();
        assert_eq!(lines.len(), 2 + report.contenders.len());
        let columns = |line: &str| line.matches('|').count();
        assert!(lines.iter().all(|line| columns(line) == 1 + 6 + 2), "{table}");
        assert!(lines[0].ends_with("| RTT 0 | RTT 200 |"), "{table}");
        let first = &report.contenders[0];
        let expected =
            format!("| {} | 2 / 4 | 2 | 2 / 2 | 200 / 150 | 10 / 20 | 300 | 300 |", first.name);
        assert_eq!(lines[2], expected);
    }
}
