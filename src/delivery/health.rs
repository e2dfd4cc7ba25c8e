//! How the spool is, for whoever reports it.

use duet_telemetry::catalogue::SPOOL_HEALTHY;
use tokio::sync::watch;

use super::error::SpoolError;

/// How the spool is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Health {
    /// It stores what it is given.
    #[default]
    Working,
    /// It has reached its size limit: nothing is stored until there is room.
    Full,
    /// There is no room for the next segment, and this is what the system said: nothing is stored until there is.
    DiskFull(String),
    /// A write or sync has failed: nothing is stored until the gateway is started anew.
    Failed(String),
}

impl Health {
    /// A write or sync has failed.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        matches!(self, Self::Failed(_))
    }
}

/// By which the spool's thread tells how it is. What has failed stays so.
#[derive(Clone)]
pub(super) struct Teller(watch::Sender<Health>);

impl Teller {
    pub(super) fn new() -> (Self, watch::Receiver<Health>) {
        let (sender, receiver) = watch::channel(Health::Working);
        SPOOL_HEALTHY.one().set_flag(true);
        (Self(sender), receiver)
    }

    pub(super) fn working(&self) {
        self.tell(Health::Working);
    }

    pub(super) fn full(&self) {
        self.tell(Health::Full);
    }

    pub(super) fn disk_full(&self, error: &SpoolError) {
        self.tell(Health::DiskFull(error.to_string()));
    }

    pub(super) fn failed(&self, error: &SpoolError) {
        self.tell(Health::Failed(error.to_string()));
    }

    fn tell(&self, now: Health) {
        self.0.send_if_modified(|before| {
            let changes = !before.has_failed() && *before != now;
            if changes {
                *before = now;
                SPOOL_HEALTHY.one().set_flag(!before.has_failed());
            }
            changes
        });
    }
}
