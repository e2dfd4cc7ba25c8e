//! What the transport counts: plain numbers with one writer, exported through `metrics` now and then.
//!
//! Owns names and labels. Must not be shared between threads: each shard has its own.

use metrics::Counter;

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $field:ident = $name:literal $($label:literal $value:literal)?;)+) => {
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
                    $($field: metrics::counter!(
                        $name, "shard" => shard.clone() $(, $label => $value)?
                    ),)+
                }
            }

            fn add(&self, now: &Counters, before: &Counters) {
                $(self.$field.increment(now.$field - before.$field);)+
            }
        }

        /// Every metric with its label: for dashboards and for tests of completeness.
        #[cfg(test)]
        const NAMES: &[(&str, &[&str])] = &[$(($name, &[$($label, $value)?]),)+];
    };
}

counters! {
    /// Turns of the event loop.
    turns = "duet_transport_turns_total";
    /// Datagrams received, dropped ones included.
    datagrams_in = "duet_datagrams_total" "direction" "in";
    /// Datagrams handed to the kernel and accepted by it.
    datagrams_out = "duet_datagrams_total" "direction" "out";
    /// Payload bytes of received datagrams.
    datagram_bytes_in = "duet_datagram_bytes_total" "direction" "in";
    /// Payload bytes of sent datagrams.
    datagram_bytes_out = "duet_datagram_bytes_total" "direction" "out";
    /// Datagrams that reached a shard that does not own them and were passed on.
    datagrams_forwarded = "duet_datagrams_forwarded_total";
    /// Dropped: no slot in a datagram of 0 or 1 bytes.
    drop_short = "duet_transport_drops_total" "reason" "short";
    /// Dropped: a datagram longer than a message may be.
    drop_oversize = "duet_transport_drops_total" "reason" "oversize";
    /// Dropped: the owner's mailbox was full.
    drop_forward = "duet_transport_drops_total" "reason" "forward_full";
    /// Dropped: a datagram without a usable source.
    drop_malformed = "duet_transport_drops_total" "reason" "malformed";
    /// Dropped: input on a stream that is being closed (received pieces, not messages).
    drop_closing = "duet_transport_drops_total" "reason" "stream_closing";
    /// Dropped: a datagram that arrived while the shard stopped.
    drop_stop = "duet_transport_drops_total" "reason" "stop";
    /// Outgoing datagrams the kernel refused.
    send_failed = "duet_transport_send_failures_total" "path" "datagram";
    /// Outgoing messages for a stream that is gone.
    send_gone = "duet_transport_send_failures_total" "path" "stream_gone";
    /// Turns that ran out of send slots; the rest waits with the handler.
    send_stalls = "duet_transport_send_stalls_total";
    /// Receives that found no buffer; nothing is lost by it, the socket keeps its data.
    enobufs = "duet_transport_no_buffers_total";
    /// Datagram receives that failed otherwise.
    receive_failed = "duet_transport_receive_failures_total";
    /// Streams accepted.
    streams_accepted = "duet_streams_accepted_total";
    /// Streams given to the shard that owns them.
    streams_handed_over = "duet_streams_moved_total" "direction" "out";
    /// Streams received from the shard that accepted them.
    streams_adopted = "duet_streams_moved_total" "direction" "in";
    /// Failed accepts, descriptor exhaustion included.
    accept_failed = "duet_accept_failures_total";
    /// Messages received on streams.
    messages_in = "duet_messages_total" "direction" "in";
    /// Messages queued on streams.
    messages_out = "duet_messages_total" "direction" "out";
    /// Bytes received on streams.
    stream_bytes_in = "duet_stream_bytes_total" "direction" "in";
    /// Bytes sent on streams.
    stream_bytes_out = "duet_stream_bytes_total" "direction" "out";
    /// Closed: the peer did.
    closed_peer = "duet_streams_closed_total" "reason" "peer";
    /// Closed: the handler asked for it.
    closed_handler = "duet_streams_closed_total" "reason" "handler";
    /// Closed: a length of zero, or a first message without a slot.
    closed_short = "duet_streams_closed_total" "reason" "frame_short";
    /// Closed: a length above the limit.
    closed_long = "duet_streams_closed_total" "reason" "frame_long";
    /// Closed: no whole message by the deadline.
    closed_first_message = "duet_streams_closed_total" "reason" "first_message";
    /// Closed: the peer reads too slowly.
    closed_queue_full = "duet_streams_closed_total" "reason" "queue_full";
    /// Closed: the peer did not take the last output in time.
    closed_flush = "duet_streams_closed_total" "reason" "flush";
    /// Closed: too many streams.
    closed_refused = "duet_streams_closed_total" "reason" "too_many";
    /// Closed: the owner's mailbox was full.
    closed_hand_over = "duet_streams_closed_total" "reason" "hand_over_full";
    /// Closed: the connection failed.
    closed_error = "duet_streams_closed_total" "reason" "error";
    /// Closed: the gateway stopped.
    closed_stop = "duet_streams_closed_total" "reason" "stop";
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
    fn exporting_without_a_recorder_is_harmless() {
        let mut exporter = Exporter::new(3);
        let counters = Counters { datagrams_in: 5, ..Counters::default() };
        exporter.export(&counters);
        exporter.export(&counters);
        assert_eq!(exporter.exported, counters);
    }
}
