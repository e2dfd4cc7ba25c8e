//! Whose gateway is under load.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use crate::local::LocalGateway;
use crate::process_clock::process_cpu;
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
        Ok(process_cpu(self.pid())?)
    }

    pub(super) fn stop(self) -> Result<()> {
        match self {
            Self::Own(gateway) => gateway.stop(),
            Self::Running(gateway) => gateway.leave(),
        }
    }
}
