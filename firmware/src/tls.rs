//! What a full, mutual TLS 1.3 handshake (RFC 8446) costs a client with the same primitives as Duet, on the same board: every
//! operation of its cryptography, in the order in which a client meets them, and nothing else. Neither messages nor certificates
//! are parsed, nor is the session ticket taken, so a real client costs more.
//!
//! The suite is TLS_AES_128_GCM_SHA256 with secp256r1 and ecdsa_secp256r1_sha256. All certificates are of the size that this
//! project's own have. The gateway's is signed by the root that the client holds, a chain of one link; and once more by a
//! certificate in between that comes with it, which is two links, as is usual.
#![no_std]
#![no_main]

#[allow(dead_code, reason = "the sensor needs more of it")]
mod board;
#[allow(dead_code, reason = "the sensor needs more of it")]
mod host;

use cortex_m_rt::entry;
#[cfg(feature = "compact")]
use duet_device::compact::Compact as Engine;
#[cfg(not(feature = "compact"))]
use duet_device::software::Software as Engine;
use duet_device::{Crypto, CryptoError, PrivateKey, protocol::ec::SecretScalar};

use crate::board::Board;

/// Lengths of the messages, headers included.
const CLIENT_HELLO: usize = 190;
const SERVER_HELLO: usize = 123;
const EXTENSIONS: usize = 10;
const REQUEST: usize = 30;
const CERTIFICATE: usize = 380;
const VERIFY: usize = 80;
const FINISHED: usize = 36;
/// The certificate's part that its issuer has signed.
const SIGNED: usize = 280;

type Secret = [u8; 32];

/// The hash of all messages up to one of this length. A client keeps a running hash, so each value costs what is new since the
/// last one.
fn transcript(c: &mut Engine, len: usize) -> Result<Secret, CryptoError> {
    let message = [0x5a; CERTIFICATE];
    c.sha256(&[message.get(..len).unwrap_or(&message)])
}

/// HKDF-Expand-Label (RFC 8446 §7.1).
fn expand(
    c: &mut Engine,
    from: &Secret,
    label: &[u8],
    context: &[u8],
) -> Result<Secret, CryptoError> {
    let head = [0, 32, 6 + u8::try_from(label.len()).unwrap_or(0)];
    let len = [u8::try_from(context.len()).unwrap_or(0)];
    c.hmac(from, &[&head, b"tls13 ", label, &len, context, &[1]])
}

/// The key and the IV of a direction.
fn traffic(c: &mut Engine, from: &Secret) -> Result<([u8; 16], [u8; 12]), CryptoError> {
    let (key, iv) = (expand(c, from, b"key", &[])?, expand(c, from, b"iv", &[])?);
    let (mut out, mut nonce) = ([0; 16], [0; 12]);
    out.copy_from_slice(&key[..16]);
    nonce.copy_from_slice(&iv[..12]);
    Ok((out, nonce))
}

/// What the other side has made before: nothing of it is counted.
struct Peer {
    share: SecretScalar,
    key: SecretScalar,
    root: SecretScalar,
    issued: [u8; 64],
    verify: [u8; 64],
}

fn scalar(byte: u8) -> Result<SecretScalar, CryptoError> {
    SecretScalar::from_bytes(&[byte; 32]).ok_or(CryptoError::Failed)
}

fn digest(c: &mut Engine, transcript: &Secret) -> Result<Secret, CryptoError> {
    c.sha256(&[&[0x20; 64], b"TLS 1.3, server CertificateVerify\0", transcript])
}

/// The client's handshake with a chain of so many links; the instructions that it took, in ticks.
fn client(
    c: &mut Engine,
    board: &Board,
    peer: &Peer,
    own: &SecretScalar,
    links: usize,
) -> Result<u32, CryptoError> {
    let share = peer.share.clone();
    let (share, key, root) =
        (c.public_key(&share)?, c.public_key(&peer.key)?, c.public_key(&peer.root)?);
    let mut room = [0; EXTENSIONS + REQUEST + 2 * CERTIFICATE + VERIFY + FINISHED + 1];
    let flight = &mut room[(2 - links) * CERTIFICATE..];
    let mut answer = [0; CERTIFICATE + VERIFY + FINISHED + 1];

    let before = board.ticks();
    // ClientHello: a key share of its own, and ServerHello: the shared secret.
    let mut random = [0; 64];
    c.random(&mut random)?;
    let mut ephemeral = [0; 32];
    c.random(&mut ephemeral)?;
    let ephemeral = SecretScalar::from_bytes(&ephemeral).ok_or(CryptoError::Failed)?;
    let met = c.encapsulate(&ephemeral, &share)?;
    transcript(c, CLIENT_HELLO)?;
    let hellos = transcript(c, SERVER_HELLO)?;
    // The key schedule down to the handshake's keys.
    let nothing = c.sha256(&[])?;
    let early = c.hmac(&[0; 32], &[&[0; 32]])?;
    let salt = expand(c, &early, b"derived", &nothing)?;
    let handshake = c.hmac(&salt, &[&met.shared.0])?;
    let ours = expand(c, &handshake, b"c hs traffic", &hellos)?;
    let theirs = expand(c, &handshake, b"s hs traffic", &hellos)?;
    let (up, up_iv) = traffic(c, &ours)?;
    let (down, down_iv) = traffic(c, &theirs)?;
    // The server's flight, in one record: to open it costs what to seal it does.
    c.seal(&down, &down_iv, &[0; 5], flight)?;
    transcript(c, EXTENSIONS)?;
    transcript(c, REQUEST)?;
    // Each certificate, by the one above it: here the same signature each time. Then that the server has its key.
    let mut good = true;
    for _ in 0..links {
        transcript(c, CERTIFICATE)?;
        let signed = c.sha256(&[&[0x33; SIGNED]])?;
        good &= c.verify(&root, &signed, &peer.issued)?;
    }
    let covered = digest(c, &[0x44; 32])?;
    good &= c.verify(&key, &covered, &peer.verify)?;
    let seen = transcript(c, VERIFY)?;
    let finished = expand(c, &theirs, b"finished", &[])?;
    c.hmac(&finished, &[&seen])?;
    let seen = transcript(c, FINISHED)?;
    // The keys of the application's data.
    let salt = expand(c, &handshake, b"derived", &nothing)?;
    let master = c.hmac(&salt, &[&[0; 32]])?;
    for label in [b"c ap traffic", b"s ap traffic"] {
        let secret = expand(c, &master, label, &seen)?;
        traffic(c, &secret)?;
    }
    // The client's flight: its certificate, its proof, and the end.
    transcript(c, CERTIFICATE)?;
    let covered = digest(c, &seen)?;
    c.sign(PrivateKey::Scalar(own), &covered, &[7; 32])?;
    let seen = transcript(c, VERIFY)?;
    let finished = expand(c, &ours, b"finished", &[])?;
    c.hmac(&finished, &[&seen])?;
    c.seal(&up, &up_iv, &[0; 5], &mut answer)?;
    transcript(c, FINISHED)?;
    let took = board.ticks().wrapping_sub(before);
    if good { Ok(took) } else { Err(CryptoError::Failed) }
}

fn run(board: &Board, links: usize) -> Result<u32, CryptoError> {
    let mut c = Engine::seeded([9; 32]);
    let (share, key, root) = (scalar(2)?, scalar(3)?, scalar(4)?);
    let signed = c.sha256(&[&[0x33; SIGNED]])?;
    let issued = c.sign(PrivateKey::Scalar(&root), &signed, &[1; 32])?;
    let covered = digest(&mut c, &[0x44; 32])?;
    let verify = c.sign(PrivateKey::Scalar(&key), &covered, &[1; 32])?;
    let peer = Peer { share, key, root, issued, verify };
    client(&mut c, board, &peer, &scalar(5)?, links)
}

#[entry]
fn main() -> ! {
    let board = Board::start();
    for (links, what) in [(1, "ticks tls"), (2, "ticks tls with two links")] {
        let Ok(ticks) = run(&board, links) else {
            host::say("failed", None);
            host::exit(false)
        };
        host::say(what, Some(ticks));
    }
    host::exit(true)
}
