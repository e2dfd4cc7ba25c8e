//! The comparison as a table for people.

use std::fmt::Write as _;

use crate::compare::Report;

/// Aligned columns, and in plain words which figure is what.
#[must_use]
pub fn render(report: &Report) -> String {
    let mut out = String::new();
    let delays: Vec<_> = report.rows.first().map_or(Vec::new(), |row| {
        row.delayed_ms.iter().map(|delayed| delayed.round_trip_ms).collect()
    });
    let mut line = format!(
        "{:<34} {:>7} {:>6} {:>11} {:>13} {:>9} {:>9} {:>8}",
        "", "flights", "round", "packets", "IP bytes", "device", "gateway", "RTT 0"
    );
    for delay in &delays {
        let _ = write!(line, " {:>8}", format!("RTT {delay}"));
    }
    let _ = writeln!(out, "{line}");
    let mut line = format!(
        "{:<34} {:>7} {:>6} {:>11} {:>13} {:>9} {:>9} {:>8}",
        "", "", "trips", "up/down", "up/down", "CPU µs", "CPU µs", "ms"
    );
    for _ in &delays {
        let _ = write!(line, " {:>8}", "ms");
    }
    let _ = writeln!(out, "{line}");
    for row in &report.rows {
        let packets = format!("{}/{}", row.packets.up, row.packets.down);
        let bytes = format!("{}/{}", row.ip_bytes.up, row.ip_bytes.down);
        let mut line = format!(
            "{:<34} {:>7} {:>6} {packets:>11} {bytes:>13} {:>9.0} {:>9.0} {:>8.2}",
            row.name,
            row.handshake_flights,
            row.round_trips,
            row.device_cpu_us,
            row.server_cpu_us,
            row.first_confirmed_ms
        );
        for delayed in &row.delayed_ms {
            let _ = write!(line, " {:>8.0}", delayed.first_confirmed_ms);
        }
        let _ = writeln!(out, "{line}");
    }
    let _ = write!(
        out,
        "\n\
The job: from power on until a 64-byte reading is confirmed, both sides' identity proven.\n\
measured  flights (changes of direction at the device's socket until it holds the keys); packets\n\
\x20         (datagrams, or segments as the kernel counts them, SYN and ACK included); CPU of the\n\
\x20         device's thread (median of {repetitions}) and of the server (mean of {repetitions}); RTT 0 (median of {repetitions});\n\
\x20         RTT over UDP (median of {samples}, through a link that delays)\n\
derived   round trips (half of all changes of direction, and one for TCP's own handshake); IP bytes\n\
\x20         (28 bytes a datagram, 52 a segment); RTT over TCP: measured through the link, and one\n\
\x20         round trip added, because the link cannot delay the kernel's handshake\n\
not alike Duet's gateway decrypts, writes the reading to disk and syncs before it confirms, wakes for\n\
\x20         one handshake at a time here, and is a whole process; the TLS server only answers. Duet's\n\
\x20         device computes with portable Rust (p256), the TLS client with assembly (aws-lc-rs).\n",
        repetitions = report.repetitions,
        samples = report.samples
    );
    out
}
