//! How the gateway is, for `duet status`, `/health` and `/ready`.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::driver::DriverKind;

/// A snapshot of the gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// Where in its life the gateway is.
    pub phase: Phase,
    /// What is wrong at the moment.
    pub faults: Vec<Fault>,
    /// The address devices reach it at.
    #[schema(value_type = String)]
    pub listen: SocketAddr,
    /// How its shards do I/O.
    pub driver: DriverKind,
    /// Data-plane threads.
    pub shards: u32,
    /// Seconds since start.
    pub uptime_s: u64,
    /// Devices that may connect.
    pub devices: u64,
    /// Sessions that a record has confirmed.
    pub sessions: u64,
    /// Sessions that wait for their first record.
    pub pending: u64,
    /// Where readings go on to.
    pub upstreams: Vec<UpstreamStatus>,
}

/// How an upstream is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UpstreamStatus {
    /// Its name.
    pub name: String,
    /// `file`, `webhook`, `nats`, `mqtt`, `postgres` or `kafka`.
    pub kind: String,
    /// Whether the spool keeps readings until it has them.
    pub required: bool,
    /// Whether the oldest reading that it does not have has waited too long.
    pub late: bool,
    /// How long that one has waited, in milliseconds; 0 where it has everything.
    pub oldest_ms: u64,
    /// Readings that it does not have.
    pub backlog: u64,
    /// Readings that it has taken since the start.
    pub delivered: u64,
    /// Readings that it will not take, put aside since the start.
    pub parked: u64,
    /// Readings that the spool let go before it had them, since the start.
    pub lost: u64,
    /// What its acknowledgement is worth, as far as it is known.
    pub worth: String,
    /// What is wrong, while something is.
    pub problem: Option<String>,
    /// Commands that came by it since the start and were queued.
    #[serde(default)]
    pub commands: u64,
    /// Why no commands come by it, while none do that should.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commands_problem: Option<String>,
}

impl From<duet_upstream::Report> for UpstreamStatus {
    fn from(report: duet_upstream::Report) -> Self {
        Self {
            name: report.name,
            kind: report.kind,
            required: report.required,
            late: report.late,
            oldest_ms: report.oldest_ms,
            backlog: report.backlog,
            delivered: report.delivered,
            parked: report.parked,
            lost: report.lost,
            worth: report.worth,
            problem: report.problem,
            commands: report.commands,
            commands_problem: report.commands_problem,
        }
    }
}

/// Where in its life a gateway is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Taking devices.
    Running,
    /// Ending: no new sessions.
    Draining,
}

/// Something that an operator has to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// A write or fsync failed: nothing is acknowledged any more.
    SpoolFailed,
    /// The spool reached its size limit: nothing is acknowledged until there is room.
    SpoolFull,
    /// The disk has no room for more of the spool: the same.
    DiskFull,
    /// Older readings of the spool are damaged: new ones are stored as before.
    SpoolDamaged,
    /// A start has cut off what may have been confirmed readings, and nobody has looked at it.
    SpoolCut,
    /// Readings that were delivered cannot be removed.
    SpoolUntrimmed,
    /// Freshness marks could not be saved.
    MarksUnsaved,
    /// An upstream does not have readings that have waited too long.
    Delivering,
    /// The queue of commands cannot be written: none is queued, and no result is taken.
    CommandsUnwritten,
    /// A change could not be written into the audit log.
    AuditUnwritten,
}

impl Fault {
    /// All there are.
    pub const ALL: [Self; 10] = [
        Self::SpoolFailed,
        Self::SpoolFull,
        Self::DiskFull,
        Self::SpoolDamaged,
        Self::SpoolCut,
        Self::SpoolUntrimmed,
        Self::MarksUnsaved,
        Self::Delivering,
        Self::CommandsUnwritten,
        Self::AuditUnwritten,
    ];

    /// Its name in `duet status`, in the API and in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SpoolFailed => "spool-failed",
            Self::SpoolFull => "spool-full",
            Self::DiskFull => "disk-full",
            Self::SpoolDamaged => "spool-damaged",
            Self::SpoolCut => "spool-cut",
            Self::SpoolUntrimmed => "spool-untrimmed",
            Self::MarksUnsaved => "marks-unsaved",
            Self::Delivering => "delivering",
            Self::CommandsUnwritten => "commands-unwritten",
            Self::AuditUnwritten => "audit-unwritten",
        }
    }
}

/// What became of a reload. If anything had been wrong, nothing would have changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Reloaded {
    /// Changes that hold from now on.
    pub applied: Vec<String>,
    /// Changes that wait for the next start.
    pub restart: Vec<String>,
    /// What to look after.
    pub warnings: Vec<String>,
}

impl Reloaded {
    /// For people.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (head, entries) in [
            ("applied", &self.applied),
            ("needs a restart", &self.restart),
            ("warning", &self.warnings),
        ] {
            lines.extend(entries.iter().map(|entry| format!("{head}: {entry}")));
        }
        if lines.is_empty() {
            lines.push("nothing has changed".into());
        }
        lines
    }
}

impl Status {
    /// Whether nothing is wrong: what `/health` answers 200 to.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.faults.is_empty() && self.phase != Phase::Draining
    }

    /// Whether devices should be sent here: what `/ready` answers 200 to.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.phase == Phase::Running && !self.faults.contains(&Fault::SpoolFailed)
    }
}
