//! Every metric once. A metric's comment is its help text.

use duet_protocol::reason::DropReason;

use crate::family::Entry;
use crate::{Counter, Family, Gauge, Histogram, Label, Listed, Seconds, Values};

const fn one(_: &str) -> usize {
    1
}

macro_rules! catalogue {
    ($($section:literal {$(
        #[doc = $help:literal]
        $kind:ident $metric:ident = $name:literal in $unit:literal [$($label:ident),*] $(by $buckets:ident)?;
    )*})*) => {
        $($(
            #[doc = $help]
            pub static $metric: Family<$kind, { 0 $(+ one(stringify!($label)))* }> = Family::new(Entry {
                name: $name,
                help: $help,
                unit: $unit,
                labels: &[$(&$label),*],
                buckets: catalogue!(@ $($buckets)?),
            });
        )*)*

        /// All metrics, by what they are about.
        pub static SECTIONS: &[(&str, &[&dyn Listed])] = &[$(($section, &[$(&$metric),*]),)*];
    };
    (@) => { &[] };
    (@ $buckets:ident) => { $buckets };
}

/// All metrics.
pub fn all() -> impl Iterator<Item = &'static dyn Listed> {
    SECTIONS.iter().flat_map(|(_, metrics)| metrics.iter().copied())
}

macro_rules! labels {
    ($($label:ident = $name:literal: $values:expr;)*) => {
        $(static $label: Label = Label { name: $name, values: $values };)*
    };
}

macro_rules! words {
    ($($word:literal)*) => { Values::Of(|| vec![$($word),*]) };
}

labels! {
    SHARD = "shard": Values::Open("the shard's number, from 0");
    UPSTREAM = "upstream": Values::Open("the upstream's name in the settings");
    KEY_ID = "key_id": Values::Open("the byte by which a HELLO names the gateway's certificate");
    VERSION = "version": Values::Open("the program's version");
    COMMIT = "commit": Values::Open("the commit that it was built from, where that is known");
    CURVE = "curve": Values::Open("the backend of P-256");
    AEAD = "aead": Values::Open("the backend of AES-128-GCM");
    DRIVER = "driver": words!["io_uring" "epoll"];
    DROP = "reason": Values::Of(|| DropReason::ALL.iter().map(|reason| reason.label()).collect());
    LIMIT = "limit": words!["sessions" "pending" "streams"];
    DIRECTION = "direction": words!["in" "out"];
    TRANSPORT_DROP = "reason": words!["short" "oversize" "forward_full" "malformed" "stream_closing" "stop"];
    SEND_PATH = "path": words!["datagram" "stream_gone"];
    CLOSED = "reason": words!["peer" "handler" "frame_short" "frame_long" "first_message" "queue_full" "flush" "too_many" "hand_over_full" "error" "stop"];
    REFUSED = "reason": words!["queue" "full" "disk" "failed"];
    DROPPED = "reason": words!["age" "size"];
    QUOTA = "quota": words!["readings" "bytes" "share"];
    OUTCOME = "outcome": words!["queued" "known" "refused" "later"];
    CAUSE = "cause": words!["connection" "tls" "credentials" "timeout" "busy" "setting" "file"];
    FAULT = "fault": words!["spool-failed" "spool-full" "disk-full" "spool-damaged" "spool-cut" "spool-untrimmed" "marks-unsaved" "delivering" "commands-unwritten" "audit-unwritten"];
    LEVEL = "level": words!["error" "warn"];
    COMMAND = "state": words!["done" "expired" "cancelled" "superseded"];
    ENROLMENT = "outcome": words!["enrolled" "again" "refused" "limited"];
    RELOAD = "outcome": words!["done" "refused"];
    FILE = "file": words!["durable" "cursor" "upstream" "lock" "spool-id" "seen" "presence" "spare"];
}

const BATCH: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 48.0, 64.0];
const GROUP: &[f64] = &[1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0];
const TIME: &[f64] = &[
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    10.0,
];

catalogue! {
    "Sessions and handshakes" {
        /// Devices that may connect.
        Gauge DEVICES = "duet_devices" in "devices" [];
        /// Sessions that a record has confirmed.
        Gauge SESSIONS = "duet_sessions" in "sessions" [SHARD];
        /// Sessions that wait for their first record.
        Gauge SESSIONS_PENDING = "duet_sessions_pending" in "sessions" [SHARD];
        /// How many the settings allow: confirmed and pending sessions, pending ones, TCP connections.
        Gauge LIMITS = "duet_limit" in "sessions, connections" [LIMIT];
        /// ACCEPTs made, repeated ones not counted, by the certificate that the device holds.
        Counter ACCEPTS = "duet_accepts_total" in "messages" [KEY_ID, SHARD];
        /// Sessions that a record has confirmed.
        Counter CONFIRMED = "duet_sessions_confirmed_total" in "sessions" [SHARD];
        /// Challenges sent to devices whose counter says nothing new.
        Counter CHALLENGES = "duet_challenges_total" in "messages" [SHARD];
        /// RESETs sent: a device is told that its session is gone.
        Counter RESETS = "duet_resets_total" in "messages" [SHARD];
        /// Hellos answered as one batch.
        Histogram HELLO_BATCH = "duet_hello_batch" in "hellos" [] by BATCH;
        /// How long the oldest HELLO of a batch has waited.
        Histogram HELLO_WAIT = "duet_hello_wait_seconds" in "seconds" [] by TIME;
        /// How long the turn took in which a batch of hellos was answered.
        Histogram HELLO_BATCH_SECONDS = "duet_hello_batch_seconds" in "seconds" [] by TIME;
        /// Signatures that took the slow path: more than a few are made on purpose.
        Counter SLOW_VERIFICATIONS = "duet_slow_verifications_total" in "signatures" [SHARD];
        /// Messages discarded, each for one reason.
        Counter DROPS = "duet_drops_total" in "messages" [DROP, SHARD];
        /// Messages not sent: too many waited already.
        Counter UNSENT = "duet_unsent_total" in "messages" [SHARD];
        /// When a certificate that devices know the gateway by ends, Unix time.
        Gauge CERTIFICATE_END = "duet_certificate_end_timestamp_seconds" in "seconds" [KEY_ID];
    }
    "Readings and the spool" {
        /// Readings taken, before they are stored: one that found no room is counted once more when it comes again.
        Counter READINGS = "duet_readings_total" in "readings" [SHARD];
        /// Readings that came with a HELLO, before its answer.
        Counter READINGS_EARLY = "duet_readings_early_total" in "readings" [SHARD];
        /// Readings that a device sent again and that were stored already.
        Counter READINGS_KNOWN = "duet_readings_known_total" in "readings" [SHARD];
        /// Readings made durable.
        Counter SPOOL_RECORDS = "duet_spool_records_total" in "readings" [];
        /// Bytes made durable, the heads of records included.
        Counter SPOOL_BYTES = "duet_spool_bytes_total" in "bytes" [];
        /// Groups of readings that were not stored, and not confirmed: too many waited, the spool or the disk was full, the spool has failed.
        Counter SPOOL_REFUSED = "duet_spool_refused_total" in "groups" [REFUSED];
        /// Readings not taken since their device is beyond a quota.
        Counter SPOOL_BEYOND = "duet_spool_beyond_quota_total" in "readings" [QUOTA];
        /// Readings removed before every required upstream and cursor had them, for their age or the spool's size.
        Counter SPOOL_DROPPED = "duet_spool_dropped_total" in "readings" [DROPPED];
        /// Stored readings that upstreams passed over since they are damaged; each upstream counts for itself.
        Counter SPOOL_UNREADABLE = "duet_spool_unreadable_total" in "readings" [];
        /// Notices of devices' coming and going that the spool had no room for, or that were beyond their device's quota.
        Counter NOTICES_DROPPED = "duet_notices_dropped_total" in "notices" [];
        /// How long a group took from its write until it was durable.
        Histogram SPOOL_COMMIT = "duet_spool_commit_seconds" in "seconds" [] by TIME;
        /// Readings in one group.
        Histogram SPOOL_GROUP = "duet_spool_batch_records" in "readings" [] by GROUP;
        /// What the spool's files take on the disk.
        Gauge SPOOL_DISK = "duet_spool_disk_bytes" in "bytes" [];
        /// What they may take by the settings.
        Gauge SPOOL_MAX = "duet_spool_max_bytes" in "bytes" [];
        /// The index of the oldest reading that is kept.
        Gauge SPOOL_OLDEST = "duet_spool_oldest_index" in "index" [];
        /// The index behind the newest durable reading.
        Gauge SPOOL_DURABLE = "duet_spool_durable_index" in "index" [];
        /// 1 while the spool works, 0 after a failed write or sync.
        Gauge SPOOL_HEALTHY = "duet_spool_healthy" in "0 or 1" [];
        /// 1 while freshness marks cannot be saved.
        Gauge MARKS_FAILED = "duet_marks_failed" in "0 or 1" [];
        /// Freshness marks saved.
        Counter MARKS_SAVED = "duet_marks_saved_total" in "marks" [];
    }
    "Delivery" {
        /// How long the oldest reading has waited that the upstream does not have.
        Gauge UPSTREAM_OLDEST = "duet_upstream_oldest_seconds" in "seconds" [UPSTREAM];
        /// Readings that the upstream does not have.
        Gauge UPSTREAM_BACKLOG = "duet_upstream_backlog_readings" in "readings" [UPSTREAM];
        /// Batches whose answer is awaited.
        Gauge UPSTREAM_IN_FLIGHT = "duet_upstream_in_flight_batches" in "batches" [UPSTREAM];
        /// Readings that the upstream has acknowledged.
        Counter UPSTREAM_DELIVERED = "duet_upstream_delivered_readings_total" in "readings" [UPSTREAM];
        /// Batches that the upstream had before.
        Counter UPSTREAM_DUPLICATES = "duet_upstream_duplicate_batches_total" in "batches" [UPSTREAM];
        /// Readings that the upstream will not take, put aside.
        Counter UPSTREAM_PARKED = "duet_upstream_parked_readings_total" in "readings" [UPSTREAM];
        /// Readings that the spool let go before the upstream had them.
        Counter UPSTREAM_LOST = "duet_upstream_lost_readings_total" in "readings" [UPSTREAM];
        /// Failures to deliver.
        Counter UPSTREAM_ERRORS = "duet_upstream_errors_total" in "failures" [UPSTREAM, CAUSE];
        /// Commands that came by the upstream: queued, known (they had come before), refused, or to come again later.
        Counter UPSTREAM_COMMANDS = "duet_upstream_commands_total" in "commands" [UPSTREAM, OUTCOME];
    }
    "Commands" {
        /// Commands that are not over.
        Gauge COMMANDS_OPEN = "duet_commands_open" in "commands" [];
        /// Times that commands were sent.
        Counter COMMANDS_SENT = "duet_commands_sent_total" in "messages" [];
        /// Commands that are over, by what became of them.
        Counter COMMANDS_ENDED = "duet_commands_ended_total" in "commands" [COMMAND];
        /// Results that came when their command was over.
        Counter COMMANDS_LATE = "duet_commands_late_results_total" in "results" [];
    }
    "Shards and their I/O" {
        /// Processor time of the shard's thread.
        Seconds SHARD_CPU = "duet_shard_cpu_seconds_total" in "seconds" [SHARD];
        /// Turns of the event loop.
        Counter TURNS = "duet_transport_turns_total" in "turns" [SHARD];
        /// Datagrams received, discarded ones included, and datagrams that the kernel took.
        Counter DATAGRAMS = "duet_datagrams_total" in "datagrams" [DIRECTION, SHARD];
        /// Payload of received and of sent datagrams.
        Counter DATAGRAM_BYTES = "duet_datagram_bytes_total" in "bytes" [DIRECTION, SHARD];
        /// Datagrams that reached a shard that does not own them and were passed on.
        Counter DATAGRAMS_FORWARDED = "duet_datagrams_forwarded_total" in "datagrams" [SHARD];
        /// What was discarded before it was looked at as a message: too short or too long, the owner's mailbox full, no usable source, on a stream that closes, while the shard stopped.
        Counter TRANSPORT_DROPS = "duet_transport_drops_total" in "datagrams" [TRANSPORT_DROP, SHARD];
        /// Datagrams that the kernel refused to send, and messages for streams that were gone.
        Counter SEND_FAILURES = "duet_transport_send_failures_total" in "messages" [SEND_PATH, SHARD];
        /// Turns that ran out of places for datagrams on their way out; the rest waited.
        Counter SEND_STALLS = "duet_transport_send_stalls_total" in "turns" [SHARD];
        /// Receives that found no buffer free; what came stayed with the kernel.
        Counter NO_BUFFERS = "duet_transport_no_buffers_total" in "receives" [SHARD];
        /// Receives that failed otherwise.
        Counter RECEIVE_FAILURES = "duet_transport_receive_failures_total" in "receives" [SHARD];
        /// TCP connections accepted.
        Counter STREAMS_ACCEPTED = "duet_streams_accepted_total" in "connections" [SHARD];
        /// TCP connections given to the shard that owns them (out), and received so (in).
        Counter STREAMS_MOVED = "duet_streams_moved_total" in "connections" [DIRECTION, SHARD];
        /// TCP connections closed: by whom or for what.
        Counter STREAMS_CLOSED = "duet_streams_closed_total" in "connections" [CLOSED, SHARD];
        /// Accepts that failed, as when no descriptor was free.
        Counter ACCEPT_FAILURES = "duet_accept_failures_total" in "accepts" [SHARD];
        /// Messages received and sent on TCP connections.
        Counter MESSAGES = "duet_messages_total" in "messages" [DIRECTION, SHARD];
        /// Bytes received and sent on TCP connections.
        Counter STREAM_BYTES = "duet_stream_bytes_total" in "bytes" [DIRECTION, SHARD];
    }
    "The gateway" {
        /// 1; its labels say what runs.
        Gauge BUILD_INFO = "duet_build_info" in "1" [VERSION, COMMIT, CURVE, AEAD];
        /// 1 for how shards do I/O, 0 for the other.
        Gauge DRIVER_INFO = "duet_driver_info" in "0 or 1" [DRIVER];
        /// 1 while something is wrong that `duet status` names.
        Gauge FAULTS = "duet_fault" in "0 or 1" [FAULT];
        /// Reloads of the settings that were asked for.
        Counter RELOADS = "duet_reloads_total" in "reloads" [RELOAD];
        /// Small files beside what is stored that were gone, damaged or replaced, by kind: each was made anew, and the log says what that may cost.
        Counter FILES_RENEWED = "duet_files_renewed_total" in "files" [FILE];
        /// Lines of the log that told of something wrong.
        Counter LOG_LINES = "duet_log_lines_total" in "lines" [LEVEL];
        /// Requests to the API.
        Counter REQUESTS = "duet_control_requests_total" in "requests" [];
        /// Requests to the API without a valid token.
        Counter DENIED = "duet_api_denied_total" in "requests" [];
        /// Devices that wanted to enrol: registered, told the same again, refused, or not heard since their address had brought too many wrong tokens.
        Counter ENROLMENTS = "duet_enrolments_total" in "requests" [ENROLMENT];
        /// When the certificate of the API over TLS ends, Unix time; 0 without it.
        Gauge API_CERTIFICATE_END = "duet_api_certificate_end_timestamp_seconds" in "seconds" [];
    }
    "The process" {
        /// Processor time, of the process and of the kernel for it.
        Seconds PROCESS_CPU = "process_cpu_seconds_total" in "seconds" [];
        /// Memory that is in use.
        Gauge PROCESS_RESIDENT = "process_resident_memory_bytes" in "bytes" [];
        /// Addresses that are in use.
        Gauge PROCESS_VIRTUAL = "process_virtual_memory_bytes" in "bytes" [];
        /// Open descriptors.
        Gauge PROCESS_FDS = "process_open_fds" in "descriptors" [];
        /// How many may be open.
        Gauge PROCESS_MAX_FDS = "process_max_fds" in "descriptors" [];
        /// Threads.
        Gauge PROCESS_THREADS = "process_threads" in "threads" [];
        /// When the process was started, Unix time.
        Gauge PROCESS_START = "process_start_time_seconds" in "seconds" [];
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::Kind;

    #[test]
    fn names_are_unique_and_say_kind_and_unit_as_prometheus_has_it() {
        let mut names = HashSet::new();
        for metric in all() {
            let about = metric.about();
            assert!(names.insert(about.name), "{} twice", about.name);
            assert_eq!(
                about.name.ends_with("_total"),
                about.kind == Kind::Counter,
                "{}",
                about.name
            );
            assert_eq!(about.name.contains("_seconds"), about.unit == "seconds", "{}", about.name);
            assert_eq!(about.name.contains("_bytes"), about.unit == "bytes", "{}", about.name);
            assert!(about.help.trim().ends_with('.'), "{}", about.name);
            assert_eq!(about.buckets.is_empty(), about.kind != Kind::Histogram, "{}", about.name);
            assert!(about.buckets.is_sorted());
        }
    }

    #[test]
    fn prometheus_own_tool_finds_nothing_to_say_of_them() {
        use std::io::Write as _;
        use std::process::{Command, Stdio};
        crate::start();
        let mut tool = Command::new("promtool");
        tool.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let Ok(mut child) = tool.stderr(Stdio::piped()).spawn() else {
            println!("SKIPPED: promtool is not installed (Debian's package prometheus)");
            return;
        };
        child.stdin.take().unwrap().write_all(crate::render().as_bytes()).unwrap();
        let said = child.wait_with_output().unwrap();
        let text = String::from_utf8([said.stdout, said.stderr].concat()).unwrap();
        assert!(said.status.success() && text.is_empty(), "{text}");
    }
}
