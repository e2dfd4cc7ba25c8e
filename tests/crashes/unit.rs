//! A device that keeps its counter, its readings and their names over power cuts of its own.

use std::cell::Cell;
use std::net::{SocketAddr, UdpSocket};
use std::rc::Rc;

use duet_device::fast::Fast;
use duet_device::{Device, Early, Event, Kept, Reading, Store, StoreError};
use duet_protocol::reading::ReadingId;
use duet_protocol::wire::{Kind, MESSAGE_MAX};
use duet_upstream::testing::Rng;
use loadgen::fleet::Member;

/// In the byte of a HELLO that names its profile: it carries a reading.
const CARRIES: u8 = 0x80;

/// What survives.
#[derive(Clone, Default)]
struct Flash(Rc<Cell<Option<Kept>>>);

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

/// A reading that nobody has confirmed.
struct Open {
    token: u32,
    payload: Vec<u8>,
    /// Its name, once it was sent.
    id: Option<ReadingId>,
}

/// What devices and their messages were.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) early: usize,
    pub(crate) power_cuts: usize,
}

pub(crate) struct Unit {
    pub(crate) name: String,
    member: Member,
    flash: Flash,
    device: Device<Fast, Flash>,
    pub(crate) socket: UdpSocket,
    open: Vec<Open>,
    made: u32,
    pub(crate) confirmed: Vec<(ReadingId, Vec<u8>)>,
}

impl Unit {
    /// Every third device keeps its session after a reading inside HELLO, the others sleep.
    pub(crate) fn new(mut member: Member, number: usize, gateway: SocketAddr) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(gateway).unwrap();
        socket.set_nonblocking(true).unwrap();
        let flash = Flash::default();
        let config = member.next_config();
        let crypto = Fast::seeded(member.next_seed());
        let mut device = Device::new(crypto, flash.clone(), config).unwrap();
        device.set_early(if number.is_multiple_of(3) { Early::Stay } else { Early::Leave });
        let (open, confirmed) = (Vec::new(), Vec::new());
        let name = member.name.clone();
        Self { name, member, flash, device, socket, open, made: 0, confirmed }
    }

    pub(crate) fn is_done(&self) -> bool {
        self.open.is_empty()
    }

    pub(crate) fn next_us(&self) -> Option<u64> {
        self.device.poll_timeout()
    }

    /// Takes what has come.
    pub(crate) fn receive(&mut self, now_us: u64) {
        let mut buffer = [0; MESSAGE_MAX];
        // A refused port is a gateway that is dead at the moment.
        while let Ok(len) = self.socket.recv(&mut buffer) {
            if let Ok(Event::Closed) = self.device.handle_message(now_us, &mut buffer[..len]) {
                self.device.open(now_us);
            }
        }
        while let Some(done) = self.device.poll_confirmed() {
            let place = self.open.iter().position(|open| open.token == done.token).unwrap();
            let Open { payload, id, .. } = self.open.swap_remove(place);
            assert_eq!(id, Some(done.id), "confirmed under the name that it was sent by");
            self.confirmed.push((done.id, payload));
        }
    }

    /// Measures something, if all before is confirmed. Most times there is no session then, so that it goes inside HELLO.
    pub(crate) fn measure(&mut self, now_us: u64, rng: &mut Rng) {
        if !self.open.is_empty() {
            return;
        }
        if self.device.is_open() && rng.below(3) > 0 {
            return self.device.close();
        }
        for _ in 0..=rng.below(3) {
            self.made += 1;
            let payload = format!("{} {}", self.name, self.made).into_bytes();
            let token = self.device.send_reading(now_us, 1, &payload, true).unwrap();
            self.open.push(Open { token, payload, id: None });
        }
        if !self.device.is_open() {
            self.device.open(now_us);
        }
    }

    /// Sends what is due; each HELLO also goes to `overheard`.
    pub(crate) fn transmit(
        &mut self,
        now_us: u64,
        counts: &mut Counts,
        overheard: &mut impl FnMut(&[u8]),
    ) {
        let mut out = [0; MESSAGE_MAX];
        while let Some(len) = self.device.poll_transmit(now_us, &mut out) {
            // The names are kept before the message leaves.
            for open in &mut self.open {
                open.id = open.id.or_else(|| self.device.reading_id(open.token));
            }
            if Kind::of(&out) == Ok(Kind::Hello) {
                counts.early += usize::from(out[2] & CARRIES != 0);
            }
            overheard(&out[..len]);
            // A gateway may be dead at the moment.
            let _ = self.socket.send(&out[..len]);
        }
    }

    /// Loses its power, and says again what it had not seen confirmed.
    pub(crate) fn lose_power(&mut self, now_us: u64, early: Early, counts: &mut Counts) {
        counts.power_cuts += 1;
        let config = self.member.next_config();
        let crypto = Fast::seeded(self.member.next_seed());
        self.device = Device::new(crypto, self.flash.clone(), config).unwrap();
        self.device.set_early(early);
        if let Some(doubt) = self.device.doubt() {
            let known = self.open.iter().any(|open| open.id == Some(doubt));
            assert!(known, "what is in doubt is not confirmed");
        }
        for open in &mut self.open {
            let reading = Reading {
                channel: 1,
                payload: &open.payload,
                confirm: true,
                measured_us: None,
                again: open.id,
            };
            open.token = self.device.send(now_us, reading).unwrap();
        }
        self.device.open(now_us);
    }
}
