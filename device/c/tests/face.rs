//! Every wrong argument is answered by an error; after the end no key is left; a callback cannot get in twice.
#![allow(unsafe_code, reason = "plays a program in C")]
#![allow(clippy::undocumented_unsafe_blocks, reason = "wrong arguments are what this is about")]
#![allow(clippy::unwrap_used, reason = "a test's helpers may")]

use std::{
    ffi::{c_int, c_void},
    mem::MaybeUninit,
    ptr,
};

use duet_device_c::*;
use machine::protocol::{
    ec::{self, SecretScalar},
    identity::Fingerprint,
    wire::Kind,
};

/// What the port of a test remembers.
#[derive(Default)]
struct User {
    pages: [Option<[u8; DUET_PAGE_LEN]>; 2],
    now: u64,
    fails: bool,
    device: usize,
    reentered: Option<c_int>,
}

unsafe extern "C" fn random(user: *mut c_void, out: *mut u8, len: usize) -> c_int {
    let user = unsafe { &mut *user.cast::<User>() };
    if user.device != 0 {
        user.reentered = Some(unsafe { duet_open(user.device as *mut duet_device) });
    }
    unsafe { ptr::write_bytes(out, 7, len) };
    c_int::from(user.fails)
}

unsafe extern "C" fn now_us(user: *mut c_void) -> u64 {
    unsafe { (*user.cast::<User>()).now }
}

unsafe extern "C" fn store(user: *mut c_void, page: u8, bytes: *const u8, len: usize) -> c_int {
    assert_eq!(len, DUET_PAGE_LEN);
    let bytes = unsafe { *bytes.cast::<[u8; DUET_PAGE_LEN]>() };
    unsafe { (*user.cast::<User>()).pages[usize::from(page)] = Some(bytes) };
    0
}

unsafe extern "C" fn load(user: *mut c_void, page: u8, out: *mut u8, len: usize) -> c_int {
    assert_eq!(len, DUET_PAGE_LEN);
    match unsafe { (*user.cast::<User>()).pages[usize::from(page)] } {
        Some(bytes) => unsafe { out.cast::<[u8; DUET_PAGE_LEN]>().write(bytes) },
        None => return 0,
    }
    1
}

fn port(user: *mut User) -> duet_port {
    duet_port {
        user: user.cast(),
        random: Some(random),
        now_us: Some(now_us),
        store: Some(store),
        load: Some(load),
        sign: None,
        agree: None,
    }
}

fn certificate() -> Vec<u8> {
    let hex = include_str!("../../tests/data/certificate.hex").trim();
    let pair = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
    (0..hex.len()).step_by(2).map(pair).collect()
}

fn credentials(certificate: &[u8]) -> duet_credentials {
    duet_credentials {
        profile: 2,
        gateway_key_id: 0,
        id: [3; 8],
        key: [0x4b; 32],
        fingerprint: [0; 32],
        public_key: [0; 65],
        gateway_certificate: certificate.as_ptr(),
        gateway_certificate_len: certificate.len(),
        gateway_fingerprint: [6; 32],
        gateway_public_key: [4; 65],
        gateway_comb: ptr::null(),
        first_fresh: 2,
    }
}

/// What is all zeros is a device that was not made.
fn storage() -> Box<duet_device> {
    Box::new(unsafe { MaybeUninit::<duet_device>::zeroed().assume_init() })
}

/// What lies in the storage.
unsafe fn bytes<'a>(device: *const duet_device) -> &'a [u8] {
    unsafe { std::slice::from_raw_parts(device.cast(), size_of::<duet_device>()) }
}

#[test]
fn a_device_lives_and_leaves_nothing_behind() {
    let (mut user, der, mut device) = (User::default(), certificate(), storage());
    let user = ptr::from_mut(&mut user);
    let device = ptr::from_mut(&mut *device);
    let mut out = [0; DUET_TRANSMIT_MAX];
    for life in 0..2u64 {
        unsafe {
            let port = port(user);
            let made = duet_init(device, &port, &credentials(&der), 0, DUET_EARLY_STAY);
            assert_eq!(made, DUET_OK);
            assert_eq!((duet_is_open(device), duet_timeout(device)), (0, u64::MAX));
            let mut token = 9;
            assert_eq!(duet_send(device, 1, b"21.5".as_ptr(), 4, 1, &mut token), DUET_OK);
            assert_eq!((token, duet_open(device), duet_timeout(device)), (0, DUET_OK, 0));
            let len = duet_transmit(device, out.as_mut_ptr(), out.len());
            assert_eq!(Kind::of(&out[..usize::try_from(len).unwrap()]), Ok(Kind::Hello));
            assert_eq!(duet_transmit(device, out.as_mut_ptr(), out.len()), 0);
            assert!(
                bytes(device).windows(32).any(|window| window == [0x4b; 32]),
                "the key is in it"
            );
            assert_eq!(duet_end(device), DUET_OK);
            assert!(bytes(device).iter().all(|byte| *byte == 0), "and nowhere after the end");
            assert_eq!(duet_end(device), DUET_ERROR_STATE);
        }
        let pages = unsafe { (*user).pages };
        let pages = pages.iter().flatten();
        let kept = pages.filter_map(machine::Kept::decode).map(|(_, kept)| kept.fresh).max();
        assert_eq!(kept, Some(2 + 256 * (life + 1)), "the counter goes on");
    }
}

#[test]
fn every_wrong_argument_of_init_is_an_error() {
    let (mut user, der, mut device) = (User::default(), certificate(), storage());
    let user = ptr::from_mut(&mut user);
    let device = ptr::from_mut(&mut *device);
    let port = port(user);
    let null = ptr::null_mut::<duet_device>();
    let good = || credentials(&der);
    let argument = DUET_ERROR_ARGUMENT;
    unsafe {
        assert_eq!(duet_init(null, &port, &good(), 0, 0), argument);
        assert_eq!(duet_init(device, ptr::null(), &good(), 0, 0), argument);
        assert_eq!(duet_init(device, &port, ptr::null(), 0, 0), argument);
        assert_eq!(duet_init(device.byte_add(1), &port, &good(), 0, 0), argument);
        assert_eq!(duet_init(device, &port, &good(), 2, 0), argument);
        assert_eq!(duet_init(device, &port, &good(), 0, 3), argument);
        for lacking in [
            duet_port { random: None, ..port },
            duet_port { now_us: None, ..port },
            duet_port { store: None, ..port },
            duet_port { load: None, ..port },
        ] {
            assert_eq!(duet_init(device, &lacking, &good(), 0, 0), argument);
        }
        for profile in [3, 0x12, 0x22, 0x42, 0x82, 0xff] {
            let wrong = duet_credentials { profile, ..good() };
            assert_eq!(duet_init(device, &port, &wrong, 0, 0), argument, "{profile}");
        }
        for first_fresh in [0, (1 << 48) + 1, u64::MAX] {
            let wrong = duet_credentials { first_fresh, ..good() };
            assert_eq!(duet_init(device, &port, &wrong, 0, 0), argument);
        }
        for wrong in [
            duet_credentials { gateway_certificate_len: 7, ..good() },
            duet_credentials { profile: 0, key: [0xff; 32], ..good() },
        ] {
            assert_eq!(duet_init(device, &port, &wrong, 0, 0), DUET_ERROR_CREDENTIALS);
        }
        let wrong = duet_credentials { gateway_certificate: ptr::null(), ..good() };
        assert_eq!(duet_init(device, &port, &wrong, 0, 0), argument);
        let gateway_comb = der.as_ptr().cast::<u32>().wrapping_byte_add(1);
        let gateway_comb = [gateway_comb, gateway_comb.wrapping_byte_add(1)];
        for gateway_comb in gateway_comb.into_iter().filter(|comb| !comb.is_aligned()) {
            let wrong = duet_credentials { gateway_comb, ..good() };
            assert_eq!(duet_init(device, &port, &wrong, 0, 0), argument);
        }
        // One page that is there and one that cannot be read: the counter in it may be the higher one.
        let half = duet_port { load: Some(half_load), ..port };
        assert_eq!(duet_init(device, &half, &good(), 0, 0), DUET_ERROR_STORE);
        // Nothing of it made a device.
        assert_eq!(duet_open(device), DUET_ERROR_STATE);
    }
}

/// A fingerprint and a public key do as well as the certificate that they are of: the same HELLO, byte for byte.
#[test]
fn a_fingerprint_and_a_key_stand_for_the_certificate() {
    let der = certificate();
    let key = machine::certificate::public_key(&der).unwrap();
    let short = duet_credentials {
        gateway_certificate: ptr::null(),
        gateway_certificate_len: 0,
        gateway_fingerprint: Fingerprint::of_certificate(&der).0,
        gateway_public_key: key.0,
        ..credentials(&der)
    };
    let first = |credentials: &duet_credentials| {
        let (mut user, mut device, mut out) = (User::default(), storage(), [0; DUET_TRANSMIT_MAX]);
        let port = port(ptr::from_mut(&mut user));
        let device = ptr::from_mut(&mut *device);
        unsafe {
            let made = duet_init(device, &port, credentials, 0, 0);
            if made != DUET_OK {
                return Err(made);
            }
            assert_eq!(duet_open(device), DUET_OK);
            let len = duet_transmit(device, out.as_mut_ptr(), out.len());
            assert_eq!(duet_end(device), DUET_OK);
            Ok(out[..usize::try_from(len).unwrap()].to_vec())
        }
    };
    let hello = first(&credentials(&der)).unwrap();
    assert_eq!(Kind::of(&hello), Ok(Kind::Hello));
    assert_eq!(first(&short).unwrap(), hello);
    // What is said beside a certificate does not count, and what stands for it does.
    let beside = duet_credentials {
        gateway_certificate: der.as_ptr(),
        gateway_certificate_len: der.len(),
        gateway_fingerprint: [0; 32],
        ..short
    };
    assert_eq!(first(&beside).unwrap(), hello);
    assert_ne!(first(&duet_credentials { gateway_fingerprint: [0; 32], ..short }).unwrap(), hello);
    let mut gateway_public_key = key.0;
    gateway_public_key[64] ^= 1;
    let wrong = duet_credentials { gateway_public_key, ..short };
    assert_eq!(first(&wrong), Err(DUET_ERROR_CREDENTIALS));
}

#[test]
fn every_other_wrong_argument_is_an_error() {
    let (mut user, der, mut device) = (User::default(), certificate(), storage());
    let user = ptr::from_mut(&mut user);
    let device = ptr::from_mut(&mut *device);
    let port = port(user);
    let mut out = [0; DUET_TRANSMIT_MAX];
    let mut event = duet_event { kind: 0, command: 0, payload: ptr::null(), payload_len: 0 };
    let mut confirmation = duet_confirmation { token: 0, id: [0; 16] };
    let null = ptr::null_mut::<duet_device>();
    unsafe {
        assert_eq!(duet_init(device, &port, &credentials(&der), 1, 2), DUET_OK);
        for answer in [
            duet_open(null),
            duet_close(null),
            duet_rest(null),
            duet_end(null),
            duet_is_open(null),
            duet_may_sleep(null),
            duet_reconnected(null),
            duet_send(null, 1, ptr::null(), 0, 1, ptr::null_mut()),
            duet_send(device, 1, ptr::null(), 3, 1, ptr::null_mut()),
            duet_send(device, 1, out.as_ptr(), usize::MAX, 1, ptr::null_mut()),
            duet_send(device, 1, out.as_ptr(), 1, 2, ptr::null_mut()),
            duet_result(device, 1, 0, ptr::null(), 1),
            duet_receive(device, ptr::null_mut(), 5, &mut event),
            duet_receive(device, out.as_mut_ptr(), 5, ptr::null_mut()),
            duet_receive(device, out.as_mut_ptr(), usize::MAX, &mut event),
            duet_receive(device, out.as_mut_ptr(), 5, (&raw mut event).byte_add(1)),
            duet_transmit(device, ptr::null_mut(), 512),
            duet_transmit(device, out.as_mut_ptr(), usize::MAX),
            duet_confirmed(device, ptr::null_mut()),
            duet_confirmed(device, (&raw mut confirmation).byte_add(1)),
            duet_open(device.byte_add(1)),
            duet_end(device.byte_add(4)),
        ] {
            assert_eq!(answer, DUET_ERROR_ARGUMENT);
        }
        assert_eq!(duet_timeout(null), u64::MAX);
        let long = [0; DUET_PAYLOAD_MAX + 1];
        let sent = duet_send(device, 1, long.as_ptr(), long.len(), 1, ptr::null_mut());
        assert_eq!(sent, DUET_ERROR_TOO_LONG);
        assert_eq!(duet_result(device, 1, 0, long.as_ptr(), long.len()), DUET_ERROR_TOO_LONG);
        assert_eq!(duet_transmit(device, out.as_mut_ptr(), out.len() - 1), DUET_ERROR_BUFFER);
        // A token that cannot be written where it should is not.
        let mut tokens = [9u32; 2];
        let token = tokens.as_mut_ptr().byte_add(1);
        assert_eq!(duet_send(device, 1, ptr::null(), 0, 1, token), DUET_OK);
        assert_eq!(tokens, [9; 2]);
        for _ in 1..DUET_WINDOW {
            assert_eq!(duet_send(device, 1, ptr::null(), 0, 1, ptr::null_mut()), DUET_OK);
        }
        let sent = duet_send(device, 1, ptr::null(), 0, 1, ptr::null_mut());
        assert_eq!(sent, DUET_ERROR_FULL);
        assert_eq!(duet_confirmed(device, &mut confirmation), 0);
        assert_eq!(duet_receive(device, out.as_mut_ptr(), 0, &mut event), DUET_ERROR_DISCARDED);
        for first in 0..=255u8 {
            for len in [1, 21, 22, 27, 57, 69, 100] {
                out[0] = first;
                let answer = duet_receive(device, out.as_mut_ptr(), len, &mut event);
                assert_eq!((answer, event.kind), (DUET_ERROR_DISCARDED, DUET_EVENT_NOTHING));
            }
        }
        // A generator that fails is told, and asked again later.
        (*user).fails = true;
        assert_eq!(duet_open(device), DUET_OK);
        assert_eq!(duet_transmit(device, out.as_mut_ptr(), out.len()), DUET_ERROR_CRYPTO);
        (*user).fails = false;
        (*user).now = duet_timeout(device);
        assert!(duet_transmit(device, out.as_mut_ptr(), out.len()) > 0);
        assert_eq!(duet_end(device), DUET_OK);
    }
}

#[test]
fn a_clock_that_begins_again_stops_nothing() {
    let (mut user, der, mut device) = (User::default(), certificate(), storage());
    let user = ptr::from_mut(&mut user);
    let device = ptr::from_mut(&mut *device);
    let port = port(user);
    let mut out = [0; DUET_TRANSMIT_MAX];
    let mut sends = || unsafe { duet_transmit(device, out.as_mut_ptr(), out.len()) };
    unsafe {
        (*user).now = u64::from(u32::MAX) - 1_000;
        assert_eq!(duet_init(device, &port, &credentials(&der), 0, 0), DUET_OK);
        assert_eq!(duet_open(device), DUET_OK);
        assert!(sends() > 0);
        // A second later HELLO is due again; until then the clock has wrapped.
        (*user).now = 500;
        let due = duet_timeout(device);
        assert_eq!(sends(), 0);
        assert!((500_000..1_100_000).contains(&due), "{due}");
        (*user).now = due;
        assert!(sends() > 0, "the same HELLO once more");
        assert_eq!(duet_end(device), DUET_OK);
    }
}

#[test]
fn a_store_that_fails_at_each_call_is_told_and_tried_again() {
    let (mut user, der, mut device) = (User::default(), certificate(), storage());
    let user = ptr::from_mut(&mut user);
    let device = ptr::from_mut(&mut *device);
    let broken = duet_port { load: Some(broken_load), ..port(user) };
    let mut out = [0; DUET_TRANSMIT_MAX];
    unsafe {
        // A counter that cannot be read is not taken for none.
        assert_eq!(duet_init(device, &broken, &credentials(&der), 0, 0), DUET_ERROR_STORE);
        assert_eq!(duet_open(device), DUET_ERROR_STATE);
        let broken = duet_port { store: Some(broken_store), ..port(user) };
        assert_eq!(duet_init(device, &broken, &credentials(&der), 0, 0), DUET_OK);
        assert_eq!(duet_open(device), DUET_OK);
        // No HELLO leaves whose counter is not kept.
        for _ in 0..3 {
            assert_eq!(duet_transmit(device, out.as_mut_ptr(), out.len()), DUET_ERROR_STORE);
            assert_eq!(duet_transmit(device, out.as_mut_ptr(), out.len()), 0);
            (*user).now = duet_timeout(device);
        }
        assert_eq!(duet_end(device), DUET_OK);
    }
}

/// Page 0 was never written, page 1 fails.
unsafe extern "C" fn half_load(_: *mut c_void, page: u8, _: *mut u8, _: usize) -> c_int {
    -c_int::from(page)
}

unsafe extern "C" fn broken_load(_: *mut c_void, _: u8, _: *mut u8, _: usize) -> c_int {
    -1
}

unsafe extern "C" fn broken_store(_: *mut c_void, _: u8, _: *const u8, _: usize) -> c_int {
    -1
}

#[test]
fn a_callback_that_calls_back_is_refused() {
    let (mut user, der, mut device) = (User::default(), certificate(), storage());
    let user = ptr::from_mut(&mut user);
    let device = ptr::from_mut(&mut *device);
    let port = port(user);
    let mut out = [0; DUET_TRANSMIT_MAX];
    unsafe {
        assert_eq!(duet_init(device, &port, &credentials(&der), 0, 0), DUET_OK);
        (*user).device = device.expose_provenance();
        assert_eq!(duet_open(device), DUET_OK);
        assert!(duet_transmit(device, out.as_mut_ptr(), out.len()) > 0);
        assert_eq!((*user).reentered, Some(DUET_ERROR_STATE));
        (*user).device = 0;
        assert_eq!(duet_end(device), DUET_OK);
    }
}

unsafe extern "C" fn sign(_: *mut c_void, digest: *const u8, signature: *mut u8) -> c_int {
    let key = SecretScalar::from_bytes(&[0x22; 32]).unwrap();
    let digest = unsafe { *digest.cast::<[u8; 32]>() };
    let made = ec::sign(&key, &digest, &[0; 32]).unwrap();
    unsafe { signature.cast::<[u8; 64]>().write(made) };
    0
}

unsafe extern "C" fn broken_sign(_: *mut c_void, _: *const u8, _: *mut u8) -> c_int {
    -1
}

/// A key outside that does not answer is no verdict, neither on what is to be sent nor on what came.
#[test]
fn a_key_outside_that_fails_is_told() {
    let (mut user, der, mut device) = (User::default(), certificate(), storage());
    let user = ptr::from_mut(&mut user);
    let device = ptr::from_mut(&mut *device);
    let broken = duet_port { sign: Some(broken_sign), ..port(user) };
    let good = duet_port { sign: Some(sign), agree: Some(broken_sign), ..port(user) };
    let own = SecretScalar::from_bytes(&[0x22; 32]).unwrap().public_key();
    let mut out = [0; DUET_TRANSMIT_MAX];
    let mut event = duet_event { kind: 0, command: 0, payload: ptr::null(), payload_len: 0 };
    // certificate/xor-key: ACCEPT is for the device's own key.
    let credentials = duet_credentials { profile: 4, public_key: own.0, ..credentials(&der) };
    unsafe {
        assert_eq!(duet_init(device, &broken, &credentials, 0, 0), DUET_OK);
        assert_eq!(duet_open(device), DUET_OK);
        assert_eq!(duet_transmit(device, out.as_mut_ptr(), out.len()), DUET_ERROR_CRYPTO);
        assert_eq!(duet_end(device), DUET_OK);
        assert_eq!(duet_init(device, &good, &credentials, 0, 0), DUET_OK);
        assert_eq!(duet_open(device), DUET_OK);
        assert_eq!(duet_transmit(device, out.as_mut_ptr(), out.len()), 149);
        let mut accept = [0; 149];
        accept[0] = 0x21;
        accept[1..33].copy_from_slice(&own.x());
        let answer = duet_receive(device, accept.as_mut_ptr(), accept.len(), &mut event);
        assert_eq!(answer, DUET_ERROR_CRYPTO);
        assert_eq!(duet_end(device), DUET_OK);
    }
}

/// What lies on the stack below this function.
#[inline(never)]
fn below() -> Vec<u8> {
    const DEPTH: usize = 64 * 1024;
    let here = 0u8;
    let at = std::hint::black_box(&raw const here).addr();
    let lowest = std::hint::black_box(at - DEPTH) as *const u8;
    // Byte by byte: a copy's own frame would lie there.
    (0..DEPTH).map(|at| unsafe { lowest.add(at).read_volatile() }).collect()
}

/// Overwrites what helpers have left on the stack.
#[inline(never)]
fn overwrite() {
    std::hint::black_box([0xa5u8; 64 * 1024]);
}

#[test]
fn no_key_is_left_on_the_stack() {
    let (mut user, der, mut device) = (User::default(), certificate(), storage());
    let port = port(ptr::from_mut(&mut user));
    let device = ptr::from_mut(&mut *device);
    let credentials = Box::new(credentials(&der));
    overwrite();
    unsafe {
        assert_eq!(duet_init(device, &port, &*credentials, 0, 0), DUET_OK);
        let left = below();
        assert!(left.contains(&0xa5) && !left.windows(32).any(|window| window == [0x4b; 32]));
        overwrite();
        assert_eq!(duet_end(device), DUET_OK);
        assert!(!below().windows(32).any(|window| window == [0x4b; 32]));
    }
}

#[test]
fn a_key_outside_signs_and_is_not_in_memory() {
    let (mut user, der, mut device) = (User::default(), certificate(), storage());
    let user = ptr::from_mut(&mut user);
    let device = ptr::from_mut(&mut *device);
    let port = duet_port { sign: Some(sign), ..port(user) };
    let mut out = [0; DUET_TRANSMIT_MAX];
    let public_key = SecretScalar::from_bytes(&[0x22; 32]).unwrap().public_key().0;
    let wrong = duet_credentials { profile: 0, ..credentials(&der) };
    let good = duet_credentials { profile: 0, public_key, ..credentials(&der) };
    unsafe {
        assert_eq!(duet_init(device, &port, &wrong, 0, 0), DUET_ERROR_CREDENTIALS);
        assert_eq!(duet_init(device, &port, &good, 0, 0), DUET_OK);
        assert_eq!(duet_open(device), DUET_OK);
        assert_eq!(duet_transmit(device, out.as_mut_ptr(), out.len()), 132);
        assert!(!bytes(device).windows(32).any(|window| window == [0x22; 32]));
        assert_eq!(duet_end(device), DUET_OK);
    }
}
