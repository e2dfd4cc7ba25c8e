//! Whose gateway is under load.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use crate::local::LocalGateway;
use crate::process_clock::{process_cpu, process_memory};
use crate::running::RunningGateway;

pub(super) enum Target {
    /// Started for the run and stopped after it.
    Own(LocalGateway),
    /// It runs before and after.
    Running(RunningGateway),
}

impl Target {
    pub(super) fn pid(&self) -> u32 {
        match self {
            Self::Own(gateway) => gateway.pid(),
            Self::Running(gateway) => gateway.pid,
        }
    }

    pub(super) fn address(&self) -> SocketAddr {
        match self {
            Self::Own(gateway) => gateway.address,
            Self::Running(gateway) => gateway.address,
        }
    }

    pub(super) fn state(&self) -> &Path {
        match self {
            Self::Own(gateway) => &gateway.state,
            Self::Running(gateway) => &gateway.state,
        }
    }

    pub(super) fn cpu(&self) -> Result<Duration> {
        process_cpu(self.pid()).map_err(|error| self.gone(error))
    }

    /// The memory that it occupies, bytes.
    pub(super) fn memory(&self) -> Result<u64> {
        process_memory(self.pid()).map_err(|error| self.gone(error))
    }

    /// Why nothing can be learnt of its process.
    fn gone(&self, error: io::Error) -> anyhow::Error {
        let (pid, state) = (self.pid(), self.state().display());
        anyhow::Error::from(error).context(format!(
            "the gateway on {state}, process {pid}, has ended, so the run has no figures: its log says why"
        ))
    }

    pub(super) fn stop(self) -> Result<()> {
        match self {
            Self::Own(gateway) => gateway.stop(),
            Self::Running(gateway) => gateway.leave(),
        }
    }
}
