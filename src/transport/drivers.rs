//! Which driver the shards get, and the making of them. Must not decide anything once they run.

use std::os::fd::AsFd;

use super::error::{TransportError, Warning};
use super::listen::ShardSockets;
use super::settings::Settings;
use crate::driver::epoll::Epoll;
use crate::driver::uring::Ring;
use crate::driver::{Choice, Driver, DriverError, EventFd, Sockets};

/// Forces the choice that the settings leave open: for tests, and to compare the drivers.
const VARIABLE: &str = "DUET_IO";

/// Makes the drivers of all shards, all of one kind. `auto` takes epoll only where io_uring is refused, with a warning.
///
/// This happens on a thread of its own, which ends at once. The kernel remembers who made a ring and, when the ring is
/// closed, interrupts that thread's system calls (`EINTR`): here nobody is left to be interrupted.
pub(super) fn make_drivers(
    settings: &Settings,
    sockets: &[ShardSockets],
    events: &[&EventFd],
    warnings: &mut Vec<Warning>,
) -> Result<Vec<Box<dyn Driver>>, TransportError> {
    let choice = match settings.io {
        Choice::Auto => forced(std::env::var(VARIABLE).ok().as_deref())?,
        asked => asked,
    };
    let make = || -> Result<_, DriverError> {
        if choice != Choice::Epoll {
            match rings(settings, sockets, events) {
                Ok(rings) => {
                    let open = rings.iter().any(|ring| !ring.is_restricted());
                    return Ok((boxed(rings), open.then_some(Warning::Unrestricted)));
                }
                Err(refusal) if choice == Choice::Auto && refusal.is_refusal() => {
                    let drivers = pollers(settings, sockets, events)?;
                    return Ok((boxed(drivers), Some(Warning::Fallback(refusal))));
                }
                Err(error) => return Err(error),
            }
        }
        Ok((boxed(pollers(settings, sockets, events)?), None))
    };
    let made = std::thread::scope(|scope| {
        let maker = std::thread::Builder::new().spawn_scoped(scope, make);
        let maker = maker.map_err(TransportError::Thread)?;
        let made = maker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        made.map_err(TransportError::Driver)
    });
    let (drivers, warning) = made?;
    warnings.extend(warning);
    Ok(drivers)
}

/// The choice that the environment makes.
fn forced(value: Option<&str>) -> Result<Choice, TransportError> {
    match value {
        None | Some("" | "auto") => Ok(Choice::Auto),
        Some("io_uring") => Ok(Choice::IoUring),
        Some("epoll") => Ok(Choice::Epoll),
        Some(_) => Err(TransportError::Settings("DUET_IO must be auto, io_uring or epoll")),
    }
}

fn lent<'a>(
    sockets: &'a [ShardSockets],
    events: &'a [&EventFd],
) -> impl Iterator<Item = Sockets<'a>> {
    sockets.iter().zip(events).map(|(own, event)| Sockets {
        datagrams: own.datagrams.as_fd(),
        hellos: own.hellos.as_fd(),
        listener: own.listener.as_fd(),
        wake: event.as_fd(),
    })
}

fn boxed<D: Driver + 'static>(drivers: Vec<D>) -> Vec<Box<dyn Driver>> {
    drivers.into_iter().map(|driver| Box::new(driver) as Box<dyn Driver>).collect()
}

fn rings(
    settings: &Settings,
    sockets: &[ShardSockets],
    events: &[&EventFd],
) -> Result<Vec<Ring>, DriverError> {
    let sizes = settings.sizes();
    lent(sockets, events).map(|lent| Ring::new(&sizes, &lent)).collect()
}

fn pollers(
    settings: &Settings,
    sockets: &[ShardSockets],
    events: &[&EventFd],
) -> Result<Vec<Epoll>, DriverError> {
    let sizes = settings.sizes();
    lent(sockets, events).map(|lent| Epoll::new(&sizes, &lent)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_chooses_by_name() {
        assert_eq!(forced(None).unwrap(), Choice::Auto);
        assert_eq!(forced(Some("epoll")).unwrap(), Choice::Epoll);
        assert_eq!(forced(Some("io_uring")).unwrap(), Choice::IoUring);
        assert!(forced(Some("select")).unwrap_err().to_string().contains("DUET_IO"));
    }
}
