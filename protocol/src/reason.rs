//! Why an input was discarded: one reason an input, each with a static label for metrics.
//!
//! A peer never learns which one (R91): a datagram is met with silence (R87), a stream with a close.

use thiserror::Error;

macro_rules! reasons {
    ($($(#[doc = $doc:literal])* $name:ident = $label:literal,)*) => {
        /// The one reason for which a message from outside was discarded.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
        pub enum DropReason {
            $($(#[doc = $doc])* #[error($label)] $name,)*
        }

        impl DropReason {
            /// Every reason, in the order of the variants.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The label under which metrics count it.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $(Self::$name => $label,)* }
            }
        }
    };
}

reasons! {
    /// Not a whole message of any kind: wrong length for its kind, or empty.
    Malformed = "malformed",
    /// The version nibble is not ours.
    Version = "version",
    /// A kind that this side does not take.
    Kind = "kind",
    /// The profile byte names no profile, or one for another transport.
    Profile = "profile",
    /// The gateway key id is not one that this gateway holds.
    GatewayKey = "gateway_key",
    /// An elliptic-curve point that does not exist.
    Point = "point",
    /// HELLO did not open under the gateway's key.
    HelloOpen = "hello_open",
    /// The clear slot is not the sealed identity's, or belongs to another shard.
    Slot = "slot",
    /// The proof did not verify, or the identity is unknown or revoked.
    Proof = "proof",
    /// The device's certificate is not valid today, or its registration has ended.
    Expired = "expired",
    /// The registry does not allow this device this profile.
    NotAllowed = "not_allowed",
    /// A HELLO whose session is already confirmed, or pending under a newer HELLO.
    Stale = "stale",
    /// A HELLO that is waiting for its answer already.
    Repeated = "repeated",
    /// A HELLO under load from an address that has proven nothing, met with a RETRY.
    Unvalidated = "unvalidated",
    /// The same with a cookie that is wrong or too old.
    Cookie = "cookie",
    /// More hellos were waiting than the gateway takes, or it takes none since it is about to end.
    HelloQueueFull = "hello_queue_full",
    /// More hellos of one address were waiting than its share of a full queue.
    SourceFull = "source_full",
    /// More sessions wait for their first record than the gateway takes.
    PendingFull = "pending_full",
    /// There are as many sessions as there may be, or no id is left for another one.
    SessionsFull = "sessions_full",
    /// A record for a session that does not exist, met with a RESET.
    UnknownSession = "unknown_session",
    /// A record for a session that does not exist, and no RESET because of the rate limit.
    UnknownSessionQuiet = "unknown_session_quiet",
    /// A record whose sequence number was already taken, or is below the window, or that brings a reading once more while that or
    /// another one of its device is on its way to storage.
    Replay = "replay",
    /// A record that did not open.
    RecordOpen = "record_open",
    /// A record that opened, but whose content is not a message.
    Message = "message",
    /// A message on a stream that is about to be closed, since an earlier one was discarded.
    StreamFailed = "stream_failed",
    /// ACCEPT, RETRY or RESET that nobody waits for, or that is not authentic.
    Unexpected = "unexpected",
    /// ACCEPT that did not open or whose signature is wrong.
    AcceptOpen = "accept_open",
    /// The mark inside a challenge is beyond every honest one.
    Mark = "mark",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_distinct() {
        for (i, a) in DropReason::ALL.iter().enumerate() {
            assert!(DropReason::ALL[..i].iter().all(|b| a.label() != b.label()));
        }
    }
}
