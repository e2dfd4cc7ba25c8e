//! The board: a serial line, two timers, and sleep. It must not know what is sent.
//!
//! # What is unsafe here, and why it holds
//!
//! Registers are read and written at the addresses that ARM's application note AN386 gives; they are there on
//! this board and nowhere else, and nothing else in the program uses them. Interrupts stay masked at the
//! processor: an enabled one ends its sleep, and no handler ever runs, so nothing is shared with one.
#![allow(unsafe_code, reason = "the fence around the board's registers: see above")]

use core::ptr;

use cortex_m::{
    asm,
    interrupt::{self, InterruptNumber},
    peripheral::NVIC,
};

/// The processor's clock, and that of the timers, in ticks a microsecond.
const TICKS_PER_US: u32 = 25;

/// Registers of a serial line (CMSDK APB UART).
mod uart {
    const BASE: usize = 0x4000_4000;
    pub(super) const DATA: usize = BASE;
    pub(super) const STATE: usize = BASE + 0x04;
    pub(super) const CONTROL: usize = BASE + 0x08;
    pub(super) const INTERRUPTS: usize = BASE + 0x0c;
    pub(super) const DIVIDER: usize = BASE + 0x10;
    pub(super) const TRANSMIT_FULL: u32 = 1;
    pub(super) const RECEIVE_FULL: u32 = 2;
    /// Transmits and receives, and interrupts for what is received.
    pub(super) const ENABLE: u32 = 0b1011;
    /// The least that is allowed, 1.5 Mbit/s.
    pub(super) const DIVIDE: u32 = 16;
}

/// Registers of the timers (CMSDK APB timer): one wakes, the other is the clock.
mod timer {
    pub(super) const WAKE: usize = 0x4000_0000;
    pub(super) const CLOCK: usize = 0x4000_1000;
    pub(super) const CONTROL: usize = 0x00;
    pub(super) const VALUE: usize = 0x04;
    pub(super) const RELOAD: usize = 0x08;
    pub(super) const INTERRUPTS: usize = 0x0c;
    pub(super) const ENABLE: u32 = 1;
    pub(super) const INTERRUPT: u32 = 8;
}

#[derive(Clone, Copy)]
struct Line(u16);

// SAFETY: the numbers are those of the board's interrupts; each stands for one line only.
unsafe impl InterruptNumber for Line {
    fn number(self) -> u16 {
        self.0
    }
}

const RECEIVED: Line = Line(0);
const TIME: Line = Line(8);

fn read(register: usize) -> u32 {
    // SAFETY: see above.
    unsafe { ptr::read_volatile(register as *const u32) }
}

fn write(register: usize, value: u32) {
    // SAFETY: see above.
    unsafe { ptr::write_volatile(register as *mut u32, value) }
}

/// The board's devices. There is one.
pub(crate) struct Board {
    now_us: u64,
    /// Where the clock stood then.
    last: u32,
}

impl Board {
    /// Starts the clock and the serial line.
    pub(crate) fn start() -> Self {
        interrupt::disable();
        write(uart::DIVIDER, uart::DIVIDE);
        write(uart::CONTROL, uart::ENABLE);
        write(timer::CLOCK + timer::RELOAD, u32::MAX);
        write(timer::CLOCK + timer::VALUE, u32::MAX);
        write(timer::CLOCK + timer::CONTROL, timer::ENABLE);
        write(timer::WAKE + timer::RELOAD, 0);
        for line in [RECEIVED, TIME] {
            // SAFETY: interrupts are masked, so unmasking a line runs no code.
            unsafe { NVIC::unmask(line) };
        }
        Self { now_us: 0, last: 0 }
    }

    /// The clock's ticks, 25 a microsecond; they begin again after 170 s.
    pub(crate) fn ticks(&self) -> u32 {
        !read(timer::CLOCK + timer::VALUE)
    }

    /// Microseconds since the start. It must be asked once in 170 s.
    pub(crate) fn now_us(&mut self) -> u64 {
        let passed = self.ticks().wrapping_sub(self.last) / TICKS_PER_US;
        self.last = self.last.wrapping_add(passed * TICKS_PER_US);
        self.now_us += u64::from(passed);
        self.now_us
    }

    /// A byte that has come.
    pub(crate) fn receive(&mut self) -> Option<u8> {
        let [byte, ..] = (read(uart::STATE) & uart::RECEIVE_FULL != 0)
            .then(|| read(uart::DATA).to_le_bytes())?;
        Some(byte)
    }

    /// Sends bytes.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        for byte in bytes {
            while read(uart::STATE) & uart::TRANSMIT_FULL != 0 {}
            write(uart::DATA, u32::from(*byte));
        }
    }

    /// Sleeps until a byte has come or it is this late, but for two minutes at most.
    pub(crate) fn sleep_until(&mut self, until_us: u64) {
        loop {
            let now = self.now_us();
            if now >= until_us || read(uart::STATE) & uart::RECEIVE_FULL != 0 {
                return;
            }
            let wait_us = u32::try_from(until_us - now).unwrap_or(u32::MAX).min(120_000_000);
            write(timer::WAKE + timer::VALUE, wait_us * TICKS_PER_US);
            write(timer::WAKE + timer::CONTROL, timer::ENABLE | timer::INTERRUPT);
            asm::wfi();
            write(timer::WAKE + timer::CONTROL, 0);
            write(timer::WAKE + timer::INTERRUPTS, 1);
            write(uart::INTERRUPTS, uart::RECEIVE_FULL);
            NVIC::unpend(RECEIVED);
            NVIC::unpend(TIME);
        }
    }
}
