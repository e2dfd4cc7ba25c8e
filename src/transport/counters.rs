//! What the transport counts: plain numbers with one writer, exported to the metrics now and then.
//!
//! Must not be shared between threads: each shard has its own.

use duet_telemetry::{Counter, catalogue};

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $field:ident = $metric:ident $($value:literal)?;)+) => {
        /// Counts of one shard since it started.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct Counters {
            $($(#[doc = $doc])+ pub $field: u64,)+
        }

        struct Handles {
            $($field: Counter,)+
        }

        impl Handles {
            fn new(shard: usize) -> Self {
                let shard = shard.to_string();
                Self {
                    $($field: catalogue::$metric.with([$($value,)? &shard]),)+
                }
            }

            fn add(&self, now: &Counters, before: &Counters) {
                $(self.$field.add(now.$field - before.$field);)+
            }
        }

        /// Every metric with its label's value, for a test of completeness.
        #[cfg(test)]
        const NAMES: &[(&str, &[&str])] = &[$((stringify!($metric), &[$($value)?]),)+];
    };
}

counters! {
    /// Turns of the event loop.
    turns = TURNS;
    /// Datagrams received, dropped ones included.
    datagrams_in = DATAGRAMS "in";
    /// Datagrams handed to the kernel and accepted by it.
    datagrams_out = DATAGRAMS "out";
    /// Payload bytes of received datagrams.
    datagram_bytes_in = DATAGRAM_BYTES "in";
    /// Payload bytes of sent datagrams.
    datagram_bytes_out = DATAGRAM_BYTES "out";
    /// Datagrams that reached a shard that does not own them and were passed on.
    datagrams_forwarded = DATAGRAMS_FORWARDED;
    /// Dropped: no slot in a datagram of 0 or 1 bytes.
    drop_short = TRANSPORT_DROPS "short";
    /// Dropped: a datagram longer than a message may be.
    drop_oversize = TRANSPORT_DROPS "oversize";
    /// Dropped: the owner's mailbox was full.
    drop_forward = TRANSPORT_DROPS "forward_full";
    /// Dropped: a datagram without a usable source.
    drop_malformed = TRANSPORT_DROPS "malformed";
    /// Dropped: input on a stream that is being closed (received pieces, not messages).
    drop_closing = TRANSPORT_DROPS "stream_closing";
    /// Dropped: a datagram that arrived while the shard stopped.
    drop_stop = TRANSPORT_DROPS "stop";
    /// Outgoing datagrams the kernel refused.
    send_failed = SEND_FAILURES "datagram";
    /// Outgoing messages for a stream that is gone.
    send_gone = SEND_FAILURES "stream_gone";
    /// Turns that ran out of send slots; the rest waits with the handler.
    send_stalls = SEND_STALLS;
    /// Receives that found no buffer; nothing is lost by it, the socket keeps its data.
    enobufs = NO_BUFFERS;
    /// Datagram receives that failed otherwise.
    receive_failed = RECEIVE_FAILURES;
    /// Streams accepted.
    streams_accepted = STREAMS_ACCEPTED;
    /// Streams given to the shard that owns them.
    streams_handed_over = STREAMS_MOVED "out";
    /// Streams received from the shard that accepted them.
    streams_adopted = STREAMS_MOVED "in";
    /// Failed accepts, descriptor exhaustion included.
    accept_failed = ACCEPT_FAILURES;
    /// Messages received on streams.
    messages_in = MESSAGES "in";
    /// Messages queued on streams.
    messages_out = MESSAGES "out";
    /// Bytes received on streams.
    stream_bytes_in = STREAM_BYTES "in";
    /// Bytes sent on streams.
    stream_bytes_out = STREAM_BYTES "out";
    /// Closed: the peer did.
    closed_peer = STREAMS_CLOSED "peer";
    /// Closed: the handler asked for it.
    closed_handler = STREAMS_CLOSED "handler";
    /// Closed: a length of zero, or a first message without a slot.
    closed_short = STREAMS_CLOSED "frame_short";
    /// Closed: a length above the limit.
    closed_long = STREAMS_CLOSED "frame_long";
    /// Closed: no whole message by the deadline.
    closed_first_message = STREAMS_CLOSED "first_message";
    /// Closed: the peer reads too slowly.
    closed_queue_full = STREAMS_CLOSED "queue_full";
    /// Closed: the peer did not take the last output in time.
    closed_flush = STREAMS_CLOSED "flush";
    /// Closed: too many streams.
    closed_refused = STREAMS_CLOSED "too_many";
    /// Closed: the owner's mailbox was full.
    closed_hand_over = STREAMS_CLOSED "hand_over_full";
    /// Closed: the connection failed.
    closed_error = STREAMS_CLOSED "error";
    /// Closed: the gateway stopped.
    closed_stop = STREAMS_CLOSED "stop";
}

/// Exports a shard's counters: what was added since last time.
pub(super) struct Exporter {
    handles: Handles,
    exported: Counters,
}

impl Exporter {
    pub(super) fn new(shard: usize) -> Self {
        Self { handles: Handles::new(shard), exported: Counters::default() }
    }

    pub(super) fn export(&mut self, counters: &Counters) {
        self.handles.add(counters, &self.exported);
        self.exported.clone_from(counters);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_counter_has_its_own_name_and_label() {
        let unique: HashSet<_> = NAMES.iter().collect();
        assert_eq!(unique.len(), NAMES.len());
    }

    #[test]
    fn what_was_exported_is_not_exported_again() {
        let mut exporter = Exporter::new(253);
        let counters = Counters { datagrams_in: 5, ..Counters::default() };
        exporter.export(&counters);
        exporter.export(&counters);
        let text = duet_telemetry::render();
        assert!(
            text.contains("duet_datagrams_total{direction=\"in\",shard=\"253\"} 5\n"),
            "{text}"
        );
        assert!(text.contains("duet_streams_closed_total{reason=\"stop\",shard=\"253\"} 0\n"));
    }
}
