//! What the gateway does at the moment, for people who watch it: the page and `duet top`. Each count has beside it
//! what it means and what to do, in the only place where that is written.

use duet_protocol::reason::DropReason;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::status::{Fault, Status};
use crate::identity::now_ms;

/// A moment of the gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Moment {
    /// When, in milliseconds since 1970; two moments give a rate.
    pub time_ms: u64,
    /// How the gateway is.
    pub status: Status,
    /// The faults of the status, and what to do about each.
    pub faults: Vec<Advised>,
    /// What it has done since its start.
    pub activity: Activity,
}

/// A fault, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Advised {
    /// The fault.
    pub fault: Fault,
    /// What to do.
    pub advice: String,
}

/// What a gateway has done since its start, all shards together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Activity {
    /// Readings taken.
    pub readings: u64,
    /// Those of them that came inside HELLOs.
    pub readings_early: u64,
    /// Readings that came again and were acknowledged without being stored once more.
    pub readings_known: u64,
    /// ACCEPTs made.
    pub accepts: u64,
    /// Sessions confirmed.
    pub confirmed: u64,
    /// CHALLENGEs sent.
    pub challenges: u64,
    /// RESETs sent.
    pub resets: u64,
    /// Messages not sent, since too many waited already.
    pub unsent: u64,
    /// Messages that were discarded, by reason; only those that there were.
    pub drops: Vec<Dropped>,
}

/// Messages that were discarded for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Dropped {
    /// The reason, as `duet_drops_total` names it.
    pub reason: String,
    /// How many.
    pub count: u64,
    /// What it means, and what to do.
    pub advice: String,
}

impl Moment {
    /// This moment.
    pub(super) fn now(status: Status, activity: Activity) -> Self {
        let advised =
            |fault: &Fault| Advised { fault: *fault, advice: fault_advice(*fault).into() };
        let faults = status.faults.iter().map(advised).collect();
        Self { time_ms: now_ms(), status, faults, activity }
    }
}

impl Dropped {
    /// So many for this reason.
    #[must_use]
    pub fn new(reason: DropReason, count: u64) -> Self {
        Self { reason: reason.label().into(), count, advice: drop_advice(reason).into() }
    }
}

fn fault_advice(fault: Fault) -> &'static str {
    match fault {
        Fault::SpoolFailed => {
            "a write or sync failed and nothing is confirmed any more: mend the disk, then restart"
        }
        Fault::SpoolFull => {
            "nothing is confirmed until there is room: raise spool.max_bytes, or run duet spool trim"
        }
        Fault::DiskFull => "nothing is confirmed until the disk has room: make some",
        Fault::SpoolDamaged => {
            "older readings are damaged, new ones are stored as before: see duet spool verify"
        }
        Fault::SpoolCut => {
            "a start cut off what may have been confirmed: look at it, then run duet spool ack-cut"
        }
        Fault::SpoolUntrimmed => {
            "delivered readings stay, since a cursor cannot be read: standard error names it"
        }
        Fault::MarksUnsaved => {
            "freshness marks could not be saved: look at the disk of the state directory"
        }
        Fault::Delivering => {
            "an upstream lacks readings that have waited too long: its own line says why"
        }
        Fault::CommandsUnwritten => {
            "no command is queued and no result is taken: look at the disk of the state directory"
        }
        Fault::AuditUnwritten => {
            "the audit log cannot be written, or its file is gone: look at the state directory and its disk"
        }
    }
}

fn drop_advice(reason: DropReason) -> &'static str {
    match reason {
        DropReason::Malformed
        | DropReason::Version
        | DropReason::Kind
        | DropReason::Profile
        | DropReason::Point => {
            "no message that a device makes: scanners and noise, or a faulty device"
        }
        DropReason::GatewayKey => {
            "a device holds a certificate that this gateway has no more: give it the present one, or keep the \
             old one under [gateway.retiring]"
        }
        DropReason::HelloOpen => {
            "sealed to another gateway's certificate, or noise: compare the fingerprint in the device"
        }
        DropReason::Slot => {
            "a hello with a slot that is not its device's: a faulty device, or noise"
        }
        DropReason::Proof => {
            "an unknown or revoked device, or a wrong key: look the device up, register it anew"
        }
        DropReason::Expired => {
            "a device whose certificate is not valid now, or whose registration has ended: `duet device show` tells \
             which; compare with this machine's clock, give it a new certificate, or `duet device set --expires`"
        }
        DropReason::NotAllowed => {
            "the device is registered, but not for this key source: register it for that one"
        }
        DropReason::Stale | DropReason::Repeated => {
            "a hello that came twice or late: a lossy network; devices go on by themselves"
        }
        DropReason::Unvalidated => {
            "addresses must prove themselves first: a storm, or somebody makes hellos; devices come in one by one"
        }
        DropReason::Cookie => {
            "the proof of an address is old or wrong: its device asks for another"
        }
        DropReason::HelloQueueFull => {
            "more hellos wait than a shard takes: a storm, or the gateway ends; devices try again"
        }
        DropReason::SourceFull => {
            "one address has more hellos waiting than its share: many devices behind one NAT, or an attack"
        }
        DropReason::PendingFull => {
            "more sessions wait for a first record than limits.max_pending: raise it, or find who opens them"
        }
        DropReason::SessionsFull => "as many sessions as limits.max_sessions allows: raise it",
        DropReason::UnknownSession | DropReason::UnknownSessionQuiet => {
            "after a restart devices return by themselves; if it goes on, they do not hear the gateway"
        }
        DropReason::Replay => {
            "a record that came twice: a network that repeats, or somebody who plays back"
        }
        DropReason::RecordOpen => "forged or damaged records",
        DropReason::Message => "a record whose content is none: a faulty device",
        DropReason::StreamFailed => {
            "more on a TCP connection that is being closed for an earlier message"
        }
        DropReason::Unexpected | DropReason::AcceptOpen | DropReason::Mark => {
            "a message that only devices take: somebody plays it back"
        }
    }
}
