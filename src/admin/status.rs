//! How the gateway is, for `duet status`, `/health` and `/ready`.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

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
    pub driver: Driver,
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
    /// Freshness marks could not be saved.
    MarksUnsaved,
}

/// How shards do I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Driver {
    /// io_uring.
    IoUring,
    /// `recvmmsg` and epoll, where io_uring is refused.
    Epoll,
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
