//! A sensor on a Cortex-M4: a reading five times a second, commands, sleep.
//!
//! Its serial line is the stream to the gateway. What it says on the host's console is for whoever tries it:
//! `opened`, `stored N`, `delivered N`, `command`, and in the end what each step cost and how much memory was
//! used. It does what these commands say:
//!
//! * `nap`: three times it sleeps, wakes for one reading in one packet, and sleeps again;
//! * `stop`: it closes its session and ends.
#![no_std]
#![no_main]

mod board;
mod credential;
mod frame;
mod host;
mod memory;
#[cfg(feature = "outside")]
mod outside;

use core::mem::MaybeUninit;

#[cfg(feature = "outside")]
use crate::outside::Outside as Engine;
use cortex_m_rt::entry;
#[cfg(all(feature = "compact", not(feature = "outside")))]
use duet_device::compact::{Compact as Engine, Small};
#[cfg(not(any(feature = "compact", feature = "outside")))]
use duet_device::software::Software as Engine;
#[cfg(all(feature = "compact", not(feature = "outside")))]
use duet_device::software::{Seeded, Suite};
use duet_device::{Device, Early, Event, protocol::wire::Kind, store::TwoPages};

use crate::{board::Board, frame::Frame, memory::Paint};

/// The longest payload.
const PAYLOAD: usize = 64;
type Sensor = Device<Engine, TwoPages<host::Flash>, 2, PAYLOAD>;

/// How long between readings, and how long a nap is, µs.
const PAUSE_US: u64 = 200_000;
/// A line on which nothing comes for this long although something is waited for may have been connected anew, µs: it has no
/// wire that says so.
const SILENCE_US: u64 = 1_500_000;
/// How often it naps when it is told to.
const NAPS: u32 = 3;

/// What a step took when it was first taken, in ticks.
#[derive(Default)]
struct Costs {
    hello: Option<u32>,
    accept: Option<u32>,
    reading: Option<u32>,
    ack: Option<u32>,
}

struct Application {
    board: Board,
    device: &'static mut Sensor,
    frame: Frame<{ 2 + Sensor::TRANSMIT_MAX }>,
    costs: Costs,
    readings: u32,
    /// Since when nothing came, µs.
    silent_us: u64,
    naps: u32,
    stops: bool,
}

impl Application {
    /// Sends what is due.
    #[inline(never)]
    fn transmit(&mut self) {
        loop {
            let now = self.board.now_us();
            if self.frame.is_amid(now) || self.device.poll_timeout().is_none_or(|due| due > now) {
                return;
            }
            let before = self.board.ticks();
            let Some(len) = self.device.poll_transmit(now, self.frame.room()) else {
                if self.device.poll_failure().is_some() {
                    host::say("failed", None);
                    host::exit(false);
                }
                return;
            };
            let took = self.board.ticks().wrapping_sub(before);
            let cost = match Kind::of(self.frame.message(len)) {
                Ok(Kind::Hello) => &mut self.costs.hello,
                _ => &mut self.costs.reading,
            };
            cost.get_or_insert(took);
            self.board.send(self.frame.framed(len));
        }
    }

    /// Takes a message of the gateway's.
    #[inline(never)]
    fn handle(&mut self, len: usize) {
        let now = self.board.now_us();
        let before = self.board.ticks();
        let event = self.device.handle_message(now, self.frame.message(len));
        let took = self.board.ticks().wrapping_sub(before);
        match event {
            Ok(Event::Opened) => {
                self.costs.accept.get_or_insert(took);
                host::say("opened", None);
            }
            Ok(Event::Delivered) => host::say("delivered", Some(self.readings)),
            Ok(Event::Confirmed) => {
                self.costs.ack.get_or_insert(took);
            }
            Ok(Event::Command { command, payload }) => {
                let known = match payload {
                    b"nap" => {
                        self.naps = NAPS;
                        self.device.set_early(Early::Leave);
                        true
                    }
                    b"stop" => {
                        self.stops = true;
                        true
                    }
                    _ => false,
                };
                let (status, output) = if known { (0, "yes") } else { (1, "unknown") };
                self.device.send_result(command, status, output.as_bytes());
                host::say("command", Some(command));
            }
            Ok(Event::Lost | Event::Doubted) => host::say("lost", None),
            // What is not for this device, or not genuine, is not answered.
            Ok(Event::Nothing | Event::NothingWaits | Event::Closed) | Err(_) => {}
        }
        while self.device.poll_confirmed().is_some() {
            host::say("stored", Some(self.readings));
        }
    }

    /// Sends and receives until this time, or until all is said before a nap or the end.
    fn run_until(&mut self, until_us: u64) {
        loop {
            self.transmit();
            let now = self.board.now_us();
            if now >= until_us || self.is_done() {
                return;
            }
            let (mut due, mut doubt) = (self.device.poll_timeout().unwrap_or(u64::MAX), u64::MAX);
            if self.device.is_waiting() {
                doubt = self.silent_us + SILENCE_US;
            }
            due = due.min(doubt).min(until_us);
            self.board.sleep_until(due);
            if self.board.now_us() >= doubt {
                self.silent_us = self.board.now_us();
                self.device.reconnected(self.silent_us);
            }
            while let Some(byte) = self.board.receive() {
                let now = self.board.now_us();
                self.silent_us = now;
                if let Some(len) = self.frame.take(now, byte) {
                    self.handle(len);
                    break;
                }
            }
        }
    }

    /// Whether all was said that is to be said before a nap or the end.
    fn is_done(&mut self) -> bool {
        let now = self.board.now_us();
        (self.naps > 0 || self.stops) && self.device.may_sleep(now)
    }

    fn measure(&mut self) {
        // Its last digit changes: no two readings are the same bytes.
        let mut text = *b"21.5 C, 0";
        let [digit, ..] = (self.readings % 10).to_le_bytes();
        text[8] += digit;
        let now = self.board.now_us();
        if self.device.send_reading(now, 1, &text, true).is_ok() {
            self.readings += 1;
        }
    }

    /// One round: a reading, and whatever else there is until the next one.
    fn round(&mut self) {
        self.measure();
        let now = self.board.now_us();
        if !self.device.is_open() {
            self.device.open(now);
        }
        let naps = self.naps > 0;
        self.run_until(if naps { u64::MAX } else { now + PAUSE_US });
        if naps {
            self.naps -= 1;
            if self.naps == 0 {
                self.device.set_early(Early::Stay);
                host::say("awake", None);
            }
        } else if self.naps > 0 || self.stops {
            // Just told so: what is still to be said is said first.
            let now = self.board.now_us();
            self.device.rest(now);
            self.run_until(u64::MAX);
        }
        if naps || self.naps > 0 || self.stops {
            self.device.close();
            self.transmit();
            let now = self.board.now_us();
            self.board.sleep_until(now + PAUSE_US);
        }
    }
}

/// The cryptography, with the comb of the gateway's key where there is one.
#[cfg(all(feature = "compact", not(feature = "outside")))]
fn engine(seed: [u8; 32]) -> Engine {
    Suite::with(Small { comb: Some(credential::comb()) }, Seeded::new(seed))
}

/// The cryptography.
#[cfg(any(not(feature = "compact"), feature = "outside"))]
fn engine(seed: [u8; 32]) -> Engine {
    Engine::seeded(seed)
}

/// Makes the application; the device is made where it stays.
#[inline(never)]
fn start() -> Option<&'static mut Application> {
    let room = cortex_m::singleton!(: MaybeUninit<Sensor> = MaybeUninit::uninit())?;
    let place = cortex_m::singleton!(: MaybeUninit<Application> = MaybeUninit::uninit())?;
    let board = Board::start();
    let engine = engine(host::random()?);
    let store = TwoPages::new(host::Flash);
    let device = Sensor::new_in(room, engine, store, credential::read()?).ok()?;
    device.set_early(Early::Stay);
    Some(place.write(Application {
        board,
        device,
        frame: Frame::new(),
        costs: Costs::default(),
        readings: 0,
        silent_us: 0,
        naps: 0,
        stops: false,
    }))
}

#[entry]
fn main() -> ! {
    let paint = Paint::new();
    let Some(application) = start() else {
        host::say("failed", None);
        host::exit(false)
    };
    while !application.stops {
        application.round();
    }
    let Costs { hello, accept, reading, ack } = application.costs;
    host::say("ticks hello", hello);
    host::say("ticks accept", accept);
    host::say("ticks reading", reading);
    host::say("ticks ack", ack);
    let (fixed, stack) = paint.used();
    host::say("bytes static", u32::try_from(fixed).ok());
    host::say("bytes stack", u32::try_from(stack).ok());
    host::exit(true)
}
