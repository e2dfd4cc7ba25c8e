//! What this machine gives to shards, found out by asking for all of it and giving it back.

use std::net::SocketAddr;

use duet_core::Mail;

use crate::config::Config;
use crate::driver::DriverKind;
use crate::transport::{self, TransportError, Warning};

/// What shards would get here.
#[derive(Debug)]
pub struct Probe {
    /// How they would do I/O.
    pub driver: DriverKind,
    /// What they would not get.
    pub warnings: Vec<Warning>,
}

/// Makes the sockets and rings of all shards with these settings, on a port of the system's choice, and lets them go.
///
/// # Errors
/// What would keep a gateway from starting.
pub fn probe(config: &Config) -> Result<Probe, TransportError> {
    let listen = SocketAddr::new(config.listen.ip(), 0);
    let settings = transport::Settings { listen, ..super::transport_settings(config) };
    let bound = transport::bind::<Mail>(settings)?;
    Ok(Probe { driver: bound.driver, warnings: bound.warnings })
}
