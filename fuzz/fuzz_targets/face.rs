//! The C face: any calls with any arguments in any order. Each answers with a code that the header knows, the bytes that it is
//! given are all that it touches, and after the end nothing is left.
#![no_main]

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::ptr;

use duet_device_c::*;
use libfuzzer_sys::fuzz_target;

/// What the port of a device remembers.
struct User {
    pages: [Option<[u8; DUET_PAGE_LEN]>; 2],
    now: u64,
    /// Bits: random, store and load fail.
    fails: u8,
}

unsafe extern "C" fn random(user: *mut c_void, out: *mut u8, len: usize) -> c_int {
    let user = unsafe { &mut *user.cast::<User>() };
    user.now += 1;
    let [byte, ..] = user.now.to_le_bytes();
    unsafe { ptr::write_bytes(out, byte, len) };
    c_int::from(user.fails & 1)
}

unsafe extern "C" fn now_us(user: *mut c_void) -> u64 {
    unsafe { (*user.cast::<User>()).now }
}

unsafe extern "C" fn store(user: *mut c_void, page: u8, bytes: *const u8, len: usize) -> c_int {
    assert_eq!(len, DUET_PAGE_LEN);
    let user = unsafe { &mut *user.cast::<User>() };
    user.pages[usize::from(page)] = Some(unsafe { *bytes.cast() });
    c_int::from(user.fails & 2)
}

unsafe extern "C" fn load(user: *mut c_void, page: u8, out: *mut u8, len: usize) -> c_int {
    assert_eq!(len, DUET_PAGE_LEN);
    let user = unsafe { &mut *user.cast::<User>() };
    let Some(bytes) = user.pages[usize::from(page)] else { return c_int::from(user.fails & 4) };
    unsafe { out.cast::<[u8; DUET_PAGE_LEN]>().write(bytes) };
    1
}

/// Takes bytes off the input; zeros behind its end.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn bytes(&mut self) -> Vec<u8> {
        let len = usize::from(self.byte()) * if self.byte() & 1 == 1 { 5 } else { 1 };
        let (head, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        head.to_vec()
    }
}

fn is_known(code: c_int) {
    assert!((DUET_ERROR_CREDENTIALS..=1).contains(&code), "{code}");
}

fn certificate() -> Vec<u8> {
    let hex = include_str!("../../device/tests/data/certificate.hex").trim();
    let pair = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap_or(0);
    (0..hex.len()).step_by(2).map(pair).collect()
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let mut user = User { pages: [None; 2], now: 0, fails: 0 };
    let user = ptr::from_mut(&mut user);
    // What is all zeros is a device that was not made.
    let mut storage = Box::new(unsafe { MaybeUninit::<duet_device>::zeroed().assume_init() });
    let device = ptr::from_mut(&mut *storage);
    let mut port = duet_port {
        user: user.cast(),
        random: Some(random),
        now_us: Some(now_us),
        store: Some(store),
        load: Some(load),
        sign: None,
        agree: None,
    };
    let mut is_made = false;
    while !input.0.is_empty() {
        unsafe {
            match input.byte() % 15 {
                0 => {
                    // Whoever makes a device in place of another has ended that.
                    if is_made {
                        is_known(duet_end(device));
                    }
                    let mut der = certificate();
                    let flags = input.byte();
                    if flags & 1 == 1 {
                        let at = usize::from(input.byte()) % der.len();
                        der[at] ^= input.byte();
                    }
                    if flags & 2 == 2 {
                        der.truncate(usize::from(input.byte()));
                    }
                    port.store = (flags & 4 == 0).then_some(store);
                    port.load = (flags & 8 == 0).then_some(load);
                    let credentials = duet_credentials {
                        profile: input.byte(),
                        gateway_key_id: input.byte(),
                        id: [input.byte(); 8],
                        key: [input.byte(); 32],
                        fingerprint: [5; 32],
                        public_key: [4; 65],
                        gateway_certificate: der.as_ptr(),
                        gateway_certificate_len: der.len(),
                        gateway_fingerprint: [6; 32],
                        gateway_public_key: [4; 65],
                        gateway_comb: ptr::null(),
                        first_fresh: u64::from(input.byte()),
                    };
                    let made =
                        duet_init(device, &port, &credentials, input.byte() % 3, input.byte() % 4);
                    is_known(made);
                    is_made = made == DUET_OK;
                }
                1 => {
                    is_known(duet_end(device));
                    is_made = false;
                    let left =
                        std::slice::from_raw_parts(device.cast::<u8>(), size_of::<duet_device>());
                    assert!(left.iter().all(|byte| *byte == 0));
                }
                2 => is_known(duet_open(device)),
                3 => {
                    let (payload, mut token) = (input.bytes(), 0);
                    let channel = u16::from(input.byte());
                    let (at, len) = (payload.as_ptr(), payload.len());
                    is_known(duet_send(device, channel, at, len, input.byte() % 3, &mut token));
                }
                4 => {
                    let (output, command) = (input.bytes(), u32::from(input.byte()));
                    is_known(duet_result(
                        device,
                        command,
                        input.byte(),
                        output.as_ptr(),
                        output.len(),
                    ));
                }
                5 | 6 => {
                    let mut message = input.bytes();
                    let mut event = MaybeUninit::<duet_event>::uninit();
                    let (at, len) = (message.as_mut_ptr(), message.len());
                    is_known(duet_receive(device, at, len, event.as_mut_ptr()));
                    let event = event.assume_init();
                    let end = event.payload as usize + event.payload_len;
                    assert!(event.payload.is_null() || end <= at as usize + len);
                }
                7 | 8 => {
                    let mut out = vec![0; DUET_TRANSMIT_MAX];
                    let len = duet_transmit(device, out.as_mut_ptr(), out.len());
                    assert!(len <= c_int::try_from(DUET_TRANSMIT_MAX).unwrap_or(0));
                }
                9 => {
                    let mut confirmation = MaybeUninit::<duet_confirmation>::uninit();
                    is_known(duet_confirmed(device, confirmation.as_mut_ptr()));
                }
                10 => (*user).now = duet_timeout(device).min(u64::MAX / 2).max((*user).now),
                11 => is_known(duet_rest(device) | duet_reconnected(device)),
                12 => is_known(duet_may_sleep(device).max(duet_is_open(device))),
                13 => is_known(duet_close(device)),
                _ => (*user).fails = input.byte() % 8,
            }
        }
    }
    if is_made {
        is_known(unsafe { duet_end(device) });
    }
});
