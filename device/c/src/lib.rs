//! The C face of `duet-device`: `include/duet.h` is generated from this crate.
//!
//! The caller owns all memory: a context is a plain object of a size that the header names. Nothing here
//! allocates, starts a thread or has a global. The port is a handful of functions of the caller's. Every
//! function checks its arguments and answers a wrong one with an error; a context that was never made, was
//! ended, or is in use by a function further up the stack is a wrong argument, too.
//!
//! # What is unsafe here, and why it holds
//!
//! A pointer from C is used only if it is not null; what it points to is as long as its caller says, as the
//! header demands. A [`duet_device`] is storage: [`duet_init`] writes a [`Context`] into it, whose first
//! word says that it is there, and every other function reads that word before it believes the rest.
//! Exclusive access is had through one flag in the context, which is read and written by itself, never
//! through a reference to the whole: a callback that calls back into its own context meets the flag.
#![cfg_attr(target_os = "none", no_std)]
#![allow(non_camel_case_types, reason = "names of the C face")]
#![allow(unsafe_code, reason = "the fence around pointers from C: see above")]

mod context;
mod port;

use core::{ffi::c_int, ptr, slice};

use machine::{
    Early, Error, Event, Failure, SendError, SetupError, certificate,
    protocol::{
        identity::{DeviceId, Fingerprint, Gateway, RegistrationKey},
        profile::{Mode, Offer, Transport},
    },
};

use crate::context::{Context, with};
pub use crate::port::duet_port;

/// Nothing here panics on what comes from outside; what would is a fault of this library, and is not survived.
#[cfg(target_os = "none")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {
        core::hint::spin_loop();
    }
}

/// The longest payload of a reading, a command's result and its output, bytes.
#[cfg(not(feature = "small"))]
pub const DUET_PAYLOAD_MAX: usize = 256;
/// The longest payload of a reading, a command's result and its output, bytes.
#[cfg(feature = "small")]
pub const DUET_PAYLOAD_MAX: usize = 64;
/// How many readings wait at once to be confirmed.
#[cfg(not(feature = "small"))]
pub const DUET_WINDOW: usize = 4;
/// How many readings wait at once to be confirmed.
#[cfg(feature = "small")]
pub const DUET_WINDOW: usize = 2;
/// How long a buffer for `duet_transmit` must be, bytes.
#[cfg(not(feature = "small"))]
pub const DUET_TRANSMIT_MAX: usize = 512;
/// How long a buffer for `duet_transmit` must be, bytes.
#[cfg(feature = "small")]
pub const DUET_TRANSMIT_MAX: usize = 288;
/// The size of `duet_device` in words of eight bytes.
#[cfg(not(feature = "small"))]
pub const DUET_DEVICE_WORDS: usize = 464;
/// The size of `duet_device` in words of eight bytes.
#[cfg(feature = "small")]
pub const DUET_DEVICE_WORDS: usize = 240;
/// The longest message that a gateway sends, bytes.
pub const DUET_RECEIVE_MAX: usize = 1200;
/// What the port keeps in one page, bytes.
pub const DUET_PAGE_LEN: usize = 48;

const _: () = {
    assert!(DUET_TRANSMIT_MAX >= context::Machine::TRANSMIT_MAX);
    assert!(DUET_PAGE_LEN == machine::store::PAGE_LEN);
    assert!(DUET_RECEIVE_MAX == machine::protocol::wire::MESSAGE_MAX);
    assert!(size_of::<Context>() <= size_of::<duet_device>());
    assert!(align_of::<Context>() <= align_of::<duet_device>());
};

/// The call had its effect.
pub const DUET_OK: c_int = 0;
/// A pointer was null, a length or a value out of range.
pub const DUET_ERROR_ARGUMENT: c_int = -1;
/// The context was not made, was ended, or is in use further up the stack.
pub const DUET_ERROR_STATE: c_int = -2;
/// The message was discarded: it is not for this device, or not genuine. That is no fault.
pub const DUET_ERROR_DISCARDED: c_int = -3;
/// A random generator, a key or another operation of the port failed; it is tried again later.
pub const DUET_ERROR_CRYPTO: c_int = -4;
/// The port's `store` or `load` failed; it is tried again later.
pub const DUET_ERROR_STORE: c_int = -5;
/// Every place for a reading waits for a confirmation.
pub const DUET_ERROR_FULL: c_int = -6;
/// The payload is longer than `DUET_PAYLOAD_MAX`.
pub const DUET_ERROR_TOO_LONG: c_int = -7;
/// The buffer is shorter than `DUET_TRANSMIT_MAX`.
pub const DUET_ERROR_BUFFER: c_int = -8;
/// The credentials do not belong together, or the gateway's certificate is none.
pub const DUET_ERROR_CREDENTIALS: c_int = -9;

/// Readings are records; HELLO carries none.
pub const DUET_EARLY_NEVER: u8 = 0;
/// A reading that waits goes inside HELLO; then the session is kept.
pub const DUET_EARLY_STAY: u8 = 1;
/// The same; and once it is stored and nothing waits, no session is kept: wake, send, sleep.
pub const DUET_EARLY_LEAVE: u8 = 2;

/// Nothing to do.
pub const DUET_EVENT_NOTHING: u8 = 0;
/// A channel stands.
pub const DUET_EVENT_OPENED: u8 = 1;
/// The reading inside HELLO is stored and no session is kept.
pub const DUET_EVENT_DELIVERED: u8 = 2;
/// Readings are stored: see `duet_confirmed`.
pub const DUET_EVENT_CONFIRMED: u8 = 3;
/// A command is to be carried out: answer with `duet_result`.
pub const DUET_EVENT_COMMAND: u8 = 4;
/// Nothing waits for the device: see `duet_may_sleep`.
pub const DUET_EVENT_NOTHING_WAITS: u8 = 5;
/// Somebody says that the gateway has lost the session; on a stream, connect anew.
pub const DUET_EVENT_DOUBTED: u8 = 6;
/// The gateway has lost the session: a new handshake begins.
pub const DUET_EVENT_LOST: u8 = 7;
/// The gateway has ended the session.
pub const DUET_EVENT_CLOSED: u8 = 8;

/// A device: storage, and nothing that is looked into. Between `duet_init` and `duet_end` it must not be
/// moved or copied.
#[repr(C)]
pub struct duet_device {
    opaque: [u64; DUET_DEVICE_WORDS],
}

/// What a device holds of itself and of its gateway. `duet_init` copies it.
#[repr(C)]
pub struct duet_credentials {
    /// The profile byte of the specification, bits 0 to 4: mode, key source, transfer. 2 is
    /// `registered-id/ephemeral`, 0 is `certificate/ephemeral`.
    pub profile: u8,
    /// Which of the gateway's keys.
    pub gateway_key_id: u8,
    /// The device's id.
    pub id: [u8; 8],
    /// The registration key, or the certificate's private key; where the port has `sign`: the hedge key,
    /// 32 random bytes that are made once, kept secret and used for nothing else.
    pub key: [u8; 32],
    /// SHA-256 of the device's certificate; not used with a registered id.
    pub fingerprint: [u8; 32],
    /// The device's public key, 0x04 and both coordinates; used only where the port has `sign`.
    pub public_key: [u8; 65],
    /// The gateway's certificate, DER.
    pub gateway_certificate: *const u8,
    /// Its length. 0 where a board has no room for it: then both of the following stand for it.
    pub gateway_certificate_len: usize,
    /// SHA-256 of the gateway's certificate; not used where that is given.
    pub gateway_fingerprint: [u8; 32],
    /// The key in it, 0x04 and both coordinates; not used where the certificate is given.
    pub gateway_public_key: [u8; 65],
    /// The comb of the gateway's key, 128 words as `duet device add --format c` writes them, or null. With it a HELLO takes a
    /// fifth less time. It is not copied: it stays where it is as long as the device. One that belongs to another key, or was
    /// damaged, is passed over. Only a library that was built with `compact` uses it.
    pub gateway_comb: *const u32,
    /// Where the counter begins: 1 where nothing else is said.
    pub first_fresh: u64,
}

/// What a message meant.
#[repr(C)]
pub struct duet_event {
    /// One of `DUET_EVENT_…`.
    pub kind: u8,
    /// The number of a command.
    pub command: u32,
    /// What to do: inside the buffer that was given to `duet_receive`, valid as long as that is left alone.
    pub payload: *const u8,
    /// Its length.
    pub payload_len: usize,
}

/// A reading that is stored at the gateway.
#[repr(C)]
pub struct duet_confirmation {
    /// What `duet_send` gave it.
    pub token: u32,
    /// Its name for ever.
    pub id: [u8; 16],
}

fn failed(failure: Failure) -> c_int {
    match failure {
        Failure::Crypto(_) => DUET_ERROR_CRYPTO,
        Failure::Store(_) => DUET_ERROR_STORE,
        Failure::Buffer => DUET_ERROR_BUFFER,
    }
}

/// The bytes at a pointer; no bytes may have any pointer.
///
/// # Safety
/// `bytes` is null, or points to `len` bytes that stay as they are for `'a`.
unsafe fn bytes_at<'a>(bytes: *const u8, len: usize) -> Option<&'a [u8]> {
    if len == 0 {
        return Some(&[]);
    }
    if bytes.is_null() || isize::try_from(len).is_err() {
        return None;
    }
    // SAFETY: not null, of a possible length, and the caller's promise.
    Some(unsafe { slice::from_raw_parts(bytes, len) })
}

/// Makes a device in `device`. `early` is one of `DUET_EARLY_…`; `stream` is 0 for datagrams, 1 for streams.
///
/// # Safety
/// Pointers are null or point to what their types say; `device` is not in use.
#[cfg(not(feature = "small"))]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn duet_init(
    device: *mut duet_device,
    port: *const duet_port,
    credentials: *const duet_credentials,
    stream: u8,
    early: u8,
) -> c_int {
    // SAFETY: the caller's promise.
    let answer = unsafe { init(device, port, credentials, stream, early) };
    // From here, since each function that took part has had a copy of the key.
    context::scrub();
    answer
}

/// `duet_init` of a library that was built with `small`: a program that was compiled for the other sizes does not link.
///
/// # Safety
/// Pointers are null or point to what their types say; `device` is not in use.
#[cfg(feature = "small")]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn duet_init_small(
    device: *mut duet_device,
    port: *const duet_port,
    credentials: *const duet_credentials,
    stream: u8,
    early: u8,
) -> c_int {
    // SAFETY: the caller's promise.
    let answer = unsafe { init(device, port, credentials, stream, early) };
    // From here, since each function that took part has had a copy of the key.
    context::scrub();
    answer
}

/// # Safety
/// As for `duet_init`.
#[inline(never)]
unsafe fn init(
    device: *mut duet_device,
    port: *const duet_port,
    credentials: *const duet_credentials,
    stream: u8,
    early: u8,
) -> c_int {
    // SAFETY: null is sorted out here; what is not null is what its type says.
    let (Some(port), Some(credentials)) =
        (unsafe { port.as_ref() }, unsafe { credentials.as_ref() })
    else {
        return DUET_ERROR_ARGUMENT;
    };
    if device.is_null() || !device.is_aligned() || !port.is_complete() {
        return DUET_ERROR_ARGUMENT;
    }
    let transport = match stream {
        0 => Transport::Datagram,
        1 => Transport::Stream,
        _ => return DUET_ERROR_ARGUMENT,
    };
    let early = match early {
        DUET_EARLY_NEVER => Early::Never,
        DUET_EARLY_STAY => Early::Stay,
        DUET_EARLY_LEAVE => Early::Leave,
        _ => return DUET_ERROR_ARGUMENT,
    };
    let offer = match Offer::decode(credentials.profile) {
        Ok(offer) if credentials.profile & 0xe0 == 0 => offer,
        _ => return DUET_ERROR_ARGUMENT,
    };
    let (address, len) = (credentials.gateway_certificate, credentials.gateway_certificate_len);
    // SAFETY: as the header demands.
    let Some(der) = (unsafe { bytes_at(address, len) }) else { return DUET_ERROR_ARGUMENT };
    let (fingerprint, key) = if der.is_empty() {
        let key = certificate::checked(&credentials.gateway_public_key);
        (Fingerprint(credentials.gateway_fingerprint), key)
    } else {
        (Fingerprint::of_certificate(der), certificate::public_key(der).ok())
    };
    let Some(key) = key else { return DUET_ERROR_CREDENTIALS };
    let gateway = Gateway { key_id: credentials.gateway_key_id, fingerprint, key };
    let id = DeviceId(credentials.id);
    let (fingerprint, key) = if offer.profile.mode == Mode::RegisteredId {
        let key = machine::DeviceKey::Registration(RegistrationKey(credentials.key));
        (Fingerprint::of_registered_id(&id), key)
    } else {
        let Some(key) = port.key(&credentials.key, &credentials.public_key) else {
            return DUET_ERROR_CREDENTIALS;
        };
        (Fingerprint(credentials.fingerprint), key)
    };
    let comb = credentials.gateway_comb;
    if !(1..=1 << 48).contains(&credentials.first_fresh) || !comb.is_aligned() {
        return DUET_ERROR_ARGUMENT;
    }
    let config = machine::Config {
        identity: machine::Identity { id, fingerprint, key },
        gateway,
        profile: offer.profile,
        transport,
        fresh: credentials.first_fresh,
    };
    // SAFETY: `device` is not null and aligned, the comb is aligned; the rest is the caller's promise.
    match unsafe { context::make(device, *port, config, comb, early) } {
        Ok(()) => DUET_OK,
        Err(SetupError::KeyKind) => DUET_ERROR_CREDENTIALS,
        Err(SetupError::Store(_)) => DUET_ERROR_STORE,
    }
}

/// Ends a device and destroys every key in it; the storage is free again. `duet_close` comes before it, where
/// the gateway is to know.
///
/// # Safety
/// `device` is null or points to a `duet_device` that was zeroed or made.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn duet_end(device: *mut duet_device) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { context::end(device) }
}

/// Begins a handshake now; a session that stands stays until the new one does.
///
/// # Safety
/// `device` is null or points to a `duet_device` that was zeroed or made.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn duet_open(device: *mut duet_device) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        with(device, |context| {
            let now = context.now();
            context.machine.open(now);
            DUET_OK
        })
    }
}

/// Takes a reading. `confirm` is 1 where it is to be repeated until it is stored, else 0; `token`, which may be
/// null, is what `duet_confirmed` names it by.
///
/// # Safety
/// Pointers are null or point to what their types say, `payload` to `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn duet_send(
    device: *mut duet_device,
    channel: u16,
    payload: *const u8,
    len: usize,
    confirm: u8,
    token: *mut u32,
) -> c_int {
    // SAFETY: the caller's promise.
    let Some(payload) = (unsafe { bytes_at(payload, len) }) else { return DUET_ERROR_ARGUMENT };
    if confirm > 1 {
        return DUET_ERROR_ARGUMENT;
    }
    // SAFETY: the caller's promise.
    unsafe {
        with(device, |context| {
            let now = context.now();
            match context.machine.send_reading(now, channel, payload, confirm == 1) {
                Ok(number) => {
                    if !token.is_null() && token.is_aligned() {
                        ptr::write(token, number);
                    }
                    DUET_OK
                }
                Err(SendError::Full) => DUET_ERROR_FULL,
                Err(SendError::TooLong) => DUET_ERROR_TOO_LONG,
            }
        })
    }
}

/// Tells what came of a command; `status` 0 is success.
///
/// # Safety
/// Pointers are null or point to what their types say, `output` to `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn duet_result(
    device: *mut duet_device,
    command: u32,
    status: u8,
    output: *const u8,
    len: usize,
) -> c_int {
    // SAFETY: the caller's promise.
    let Some(output) = (unsafe { bytes_at(output, len) }) else { return DUET_ERROR_ARGUMENT };
    if output.len() > DUET_PAYLOAD_MAX {
        return DUET_ERROR_TOO_LONG;
    }
    // SAFETY: the caller's promise.
    unsafe {
        with(device, |context| {
            context.machine.send_result(command, status, output);
            context.machine.poll_failure().map_or(DUET_OK, failed)
        })
    }
}

/// Takes a message that came, which is changed; `event` says what it meant.
///
/// # Safety
/// Pointers are null or point to what their types say, `message` to `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn duet_receive(
    device: *mut duet_device,
    message: *mut u8,
    len: usize,
    event: *mut duet_event,
) -> c_int {
    if event.is_null() || !event.is_aligned() || message.is_null() || isize::try_from(len).is_err()
    {
        return DUET_ERROR_ARGUMENT;
    }
    let told = |kind| duet_event { kind, command: 0, payload: ptr::null(), payload_len: 0 };
    // SAFETY: not null, aligned.
    unsafe { ptr::write(event, told(DUET_EVENT_NOTHING)) };
    // SAFETY: not null, of a possible length, and the caller's promise.
    let message = unsafe { slice::from_raw_parts_mut(message, len) };
    // SAFETY: the caller's promise; `event` as above.
    unsafe {
        with(device, |context| {
            let now = context.now();
            let told = match context.machine.handle_message(now, message) {
                Ok(Event::Nothing) => told(DUET_EVENT_NOTHING),
                Ok(Event::Opened) => told(DUET_EVENT_OPENED),
                Ok(Event::Delivered) => told(DUET_EVENT_DELIVERED),
                Ok(Event::Confirmed) => told(DUET_EVENT_CONFIRMED),
                Ok(Event::Command { command, payload }) => duet_event {
                    command,
                    payload: payload.as_ptr(),
                    payload_len: payload.len(),
                    ..told(DUET_EVENT_COMMAND)
                },
                Ok(Event::NothingWaits) => told(DUET_EVENT_NOTHING_WAITS),
                Ok(Event::Doubted) => told(DUET_EVENT_DOUBTED),
                Ok(Event::Lost) => told(DUET_EVENT_LOST),
                Ok(Event::Closed) => told(DUET_EVENT_CLOSED),
                Err(Error::Discarded(_)) => return DUET_ERROR_DISCARDED,
                Err(Error::Crypto(_)) => return DUET_ERROR_CRYPTO,
                Err(Error::Store(_)) => return DUET_ERROR_STORE,
            };
            ptr::write(event, told);
            DUET_OK
        })
    }
}

/// The next message to send, written to `out`; its length, 0 for none, or an error.
///
/// # Safety
/// Pointers are null or point to what their types say, `out` to `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn duet_transmit(
    device: *mut duet_device,
    out: *mut u8,
    size: usize,
) -> c_int {
    if out.is_null() || isize::try_from(size).is_err() {
        return DUET_ERROR_ARGUMENT;
    }
    if size < DUET_TRANSMIT_MAX {
        return DUET_ERROR_BUFFER;
    }
    // SAFETY: not null, of a possible length, and the caller's promise.
    let out = unsafe { slice::from_raw_parts_mut(out, size) };
    // SAFETY: the caller's promise.
    unsafe {
        with(device, |context| {
            let now = context.now();
            match context.machine.poll_transmit(now, out) {
                Some(len) => c_int::try_from(len).unwrap_or(DUET_ERROR_BUFFER),
                None => context.machine.poll_failure().map_or(DUET_OK, failed),
            }
        })
    }
}

/// 1 and the next reading that is stored, 0 where there is none, or an error.
///
/// # Safety
/// Pointers are null or point to what their types say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn duet_confirmed(
    device: *mut duet_device,
    confirmation: *mut duet_confirmation,
) -> c_int {
    if confirmation.is_null() || !confirmation.is_aligned() {
        return DUET_ERROR_ARGUMENT;
    }
    // SAFETY: the caller's promise; `confirmation` as above.
    unsafe {
        with(device, |context| {
            let Some(confirmed) = context.machine.poll_confirmed() else { return 0 };
            let (token, id) = (confirmed.token, confirmed.id.encode());
            ptr::write(confirmation, duet_confirmation { token, id });
            1
        })
    }
}

/// When `duet_transmit` is to be called next if nothing comes before, on the port's clock; `UINT64_MAX` is
/// never, also for a device that was not made.
///
/// # Safety
/// `device` is null or points to a `duet_device` that was zeroed or made.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn duet_timeout(device: *mut duet_device) -> u64 {
    let mut due = u64::MAX;
    // SAFETY: the caller's promise.
    unsafe {
        with(device, |context| {
            due = context.due();
            DUET_OK
        });
    }
    due
}

/// Asks whether the device may sleep, unless that is known.
///
/// # Safety
/// `device` is null or points to a `duet_device` that was zeroed or made.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn duet_rest(device: *mut duet_device) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        with(device, |context| {
            let now = context.now();
            context.machine.rest(now);
            DUET_OK
        })
    }
}

/// 1 if all is said and nothing waits for the device, 0 if not, or an error.
///
/// # Safety
/// `device` is null or points to a `duet_device` that was zeroed or made.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn duet_may_sleep(device: *mut duet_device) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        with(device, |context| {
            let now = context.now();
            c_int::from(context.machine.may_sleep(now))
        })
    }
}

/// 1 if a channel stands, 0 if not, or an error.
///
/// # Safety
/// `device` is null or points to a `duet_device` that was zeroed or made.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn duet_is_open(device: *mut duet_device) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { with(device, |context| c_int::from(context.machine.is_open())) }
}

/// A stream was connected anew: what waits for an answer is due at once.
///
/// # Safety
/// `device` is null or points to a `duet_device` that was zeroed or made.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn duet_reconnected(device: *mut duet_device) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        with(device, |context| {
            let now = context.now();
            context.machine.reconnected(now);
            DUET_OK
        })
    }
}

/// Ends the session: the next message says so to the gateway, after which no key of it remains.
///
/// # Safety
/// `device` is null or points to a `duet_device` that was zeroed or made.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn duet_close(device: *mut duet_device) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        with(device, |context| {
            context.machine.close();
            DUET_OK
        })
    }
}
