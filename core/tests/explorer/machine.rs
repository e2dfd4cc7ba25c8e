//! The device: the production machine, with a clock that stands still, so that it repeats nothing by itself, and a flash.

use std::cell::Cell;
use std::rc::Rc;

use duet_core::testing;
use duet_device::{Config, Device, Kept, Store, StoreError};
use duet_protocol::identity::DeviceId;
use duet_protocol::profile::{KeySource, Mode, Profile, Transport};

use crate::curve::Remembering;

pub(crate) const PROFILE: Profile =
    Profile { mode: Mode::RegisteredId, source: KeySource::Ephemeral };

pub(crate) const ID: DeviceId = DeviceId([1; 8]);

pub(crate) type Machine = Device<Remembering, Flash, 2, 1_040>;

/// What survives a power cut.
#[derive(Clone, Default)]
pub(crate) struct Flash(Rc<Cell<Option<Kept>>>);

impl Flash {
    pub(crate) fn erase(&self) {
        self.0.set(None);
    }
}

impl Store for Flash {
    fn load(&mut self) -> Result<Option<Kept>, StoreError> {
        Ok(self.0.get())
    }

    fn save(&mut self, kept: &Kept) -> Result<(), StoreError> {
        self.0.set(Some(*kept));
        Ok(())
    }

    fn keeps_doubt(&self) -> bool {
        true
    }
}

/// The device in one of its lives, with a counter that begins there unless the flash knows better.
pub(crate) fn machine(life: u8, flash: &Flash, fresh: u64) -> Machine {
    let (identity, _) = testing::identity(ID, PROFILE.mode);
    let gateway = testing::gateway_key().gateway;
    let config =
        Config { identity, gateway, profile: PROFILE, transport: Transport::Datagram, fresh };
    Device::new(Remembering::seeded([life; 32]), flash.clone(), config).unwrap()
}
