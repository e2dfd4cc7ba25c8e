//! What goes into a shard and what comes out of it, beside the messages and streams of [`drive`](crate::drive): what it is
//! built from, mail from other threads, readings, events and counts.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use duet_aead::Gcm;
use duet_curve::{Backend, Teeth};
use duet_protocol::ec::SecretScalar;
use duet_protocol::identity::{DeviceId, Gateway};
use duet_protocol::profile::{Profile, Transport};
use duet_protocol::reading::ReadingId;
use duet_protocol::reason::DropReason;
use duet_protocol::wire::SessionId;

use super::{Command, CommandAnswer, CommandFailure, Contact, Gone};
use crate::Device;
use crate::streams::StreamLimits;

/// The most RESETs a second of all shards of a node together (R62). Each has its part: who sends records of unknown
/// sessions sends them for all slots.
const RESETS_PER_S: usize = 10_000;

/// One of the gateway's certificates with its private key.
#[derive(Clone)]
pub struct GatewayKey {
    /// What devices know of it.
    pub gateway: Gateway,
    /// Its private key.
    pub secret: SecretScalar,
    /// The teeth of its public key, which stands in for those of unknown devices (R38).
    pub(crate) teeth: Teeth,
}

impl GatewayKey {
    /// A certificate and its private key.
    #[must_use]
    pub fn new(gateway: Gateway, secret: SecretScalar) -> Self {
        let Ok(key) = duet_curve::PublicKey::from_sec1_bytes(&gateway.key.0) else {
            unreachable!("public keys are on the curve by construction")
        };
        let teeth = Teeth::of(Backend::portable(), &[key])[0];
        Self { gateway, secret, teeth }
    }
}

/// What a shard is built from.
pub struct Settings {
    /// The gateway's keys: one, or two in rotation, the retiring one last.
    pub keys: Vec<GatewayKey>,
    /// This node's secret for reset tokens and challenges. Shards of one node share it.
    pub node_key: [u8; 32],
    /// Which shard this is.
    pub index: usize,
    /// How many shards there are.
    pub shards: usize,
    /// A session ends after this silence, µs (R82), or up to a sixtieth of it later.
    pub idle_us: u64,
    /// An unconfirmed session ends after this time, µs (R47).
    pub pending_us: u64,
    /// How long a session may live, seconds.
    pub lifetime_s: u32,
    /// The most sessions, pending ones included.
    pub sessions_max: usize,
    /// The most sessions that wait for their first record.
    pub pending_max: usize,
    /// From how many waiting hellos on an address must prove itself first (RETRY).
    pub retry_from: usize,
    /// Unless they are a burst: no more, and for no longer, than is answered in this time, µs.
    pub burst_us: u64,
    /// What a HELLO costs about, µs: by it a storm is told when to come back.
    pub hello_us: u64,
    /// How many streams there may be, and how long they have for what.
    pub streams: StreamLimits,
    /// How records are sealed and opened.
    pub gcm: Gcm,
}

impl Settings {
    pub(super) fn resets_per_s(&self) -> usize {
        RESETS_PER_S.div_ceil(self.shards.max(1))
    }

    pub(super) fn renew(&mut self, renewal: Renewal) {
        let Renewal { keys, idle_us, pending_us, lifetime_s, sessions_max, pending_max } = renewal;
        self.keys = keys;
        (self.idle_us, self.pending_us, self.lifetime_s) = (idle_us, pending_us, lifetime_s);
        (self.sessions_max, self.pending_max) = (sessions_max, pending_max);
    }
}

/// A reading that a device sent, decrypted and authentic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading<'a> {
    /// The device's registered name.
    pub device: &'a str,
    /// How the device names itself.
    pub device_id: DeviceId,
    /// The session that it came in, or that the HELLO around it would open. With `sequence` storage's answer names it.
    pub session: SessionId,
    /// The record's number in the session; [`EARLY_SEQUENCE`](duet_protocol::reading::EARLY_SEQUENCE) inside a HELLO.
    pub sequence: u32,
    /// Names the reading for ever among its device's (R96).
    pub id: ReadingId,
    /// Whether the device says that it sent it before, under `id`.
    pub again: bool,
    /// What becomes true of the device once the reading is durable, and must be stored with it (R101).
    pub commit: Option<Commit>,
    /// Which of the device's sources.
    pub channel: u16,
    /// When it came, milliseconds since 1970.
    pub received_ms: u64,
    /// When it was measured: the same, less the age that the device gave.
    pub measured_ms: u64,
    /// The measurement.
    pub payload: &'a [u8],
    /// Whether the device waits until it is durable.
    pub confirm: bool,
}

/// What a reading that came inside a HELLO, or *again*, commits to beside itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commit {
    /// The first bytes of the fingerprint of the device's credential.
    pub credential: [u8; 8],
    /// The mark that the device has once the reading is durable.
    pub mark: u64,
}

impl Commit {
    pub(crate) fn of(device: &Device, mark: u64) -> Self {
        let mut credential = [0; 8];
        credential.copy_from_slice(&device.credential.fingerprint.0[..8]);
        Self { credential, mark }
    }
}

/// Takes readings towards durable storage.
pub trait Sink {
    /// Takes a reading; when it is durable and wants confirmation, [`Mail::Durable`] must follow.
    /// What is not taken is never acknowledged.
    fn take(&mut self, reading: &Reading<'_>);

    /// The readings of a turn are complete: none may wait for the next one.
    fn flush(&mut self);

    /// An answer that found no room in the shard's mailbox. Asked in each turn, until `None`.
    fn poll_mail(&mut self) -> Option<Mail> {
        None
    }
}

/// What other threads tell a shard.
pub enum Mail {
    /// These readings are durable.
    Durable(Vec<(SessionId, u32)>),
    /// These readings were not stored: when they come again, they are taken again.
    NotStored(Vec<(SessionId, u32)>),
    /// This device may no longer be connected.
    Revoked(DeviceId),
    /// A device is to do something.
    Command(Command),
    /// The command with this token, which this device was given, is not wanted any more.
    WithdrawCommand(DeviceId, u64),
    /// The same, and its device gets another one in its place. No device is told in between that nothing waits for it.
    ReplaceCommand {
        /// The token of the one that is not wanted.
        over: u64,
        /// What the device is to do now.
        by: Command,
    },
    /// Somebody wants to know of these devices' sessions; an event answers, under this token.
    Look(u64, Vec<DeviceId>),
    /// Whether commands may be queued outside that this shard has not been told of: then no device is told that nothing
    /// waits for it.
    CommandsBehind(bool),
    /// From now on these hold; sessions that are open keep their former terms where they were told them.
    Renew(Box<Renewal>),
    /// Take no more hellos, end every session once it has its acknowledgements, and finish.
    Drain,
    /// Take no more messages, give what came before its acknowledgements, and finish with all sessions that lack none, which
    /// [`hand_over`](super::Shard::hand_over) then gives. Their devices hear nothing of it.
    HandOver,
}

/// What can change of [`Settings`] while a shard runs.
#[derive(Clone)]
pub struct Renewal {
    /// See [`Settings::keys`].
    pub keys: Vec<GatewayKey>,
    /// See [`Settings::idle_us`].
    pub idle_us: u64,
    /// See [`Settings::pending_us`].
    pub pending_us: u64,
    /// See [`Settings::lifetime_s`].
    pub lifetime_s: u32,
    /// See [`Settings::sessions_max`].
    pub sessions_max: usize,
    /// See [`Settings::pending_max`].
    pub pending_max: usize,
}

impl std::fmt::Debug for Renewal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Renewal").finish_non_exhaustive()
    }
}

/// Why a device of the directory was not let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedDevice {
    /// Which device the HELLO named.
    pub device: DeviceId,
    /// Its name.
    pub name: Arc<str>,
    /// Whether the HELLO proved to come from the device; anybody can name it otherwise.
    pub proven: bool,
    /// Why.
    pub reason: DropReason,
    /// Where the HELLO came from: an IPv4 address, or a network of IPv6.
    pub from: IpAddr,
}

/// What a shard has to tell whoever drives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A [`Command`] went out in a record, whose token this is.
    CommandSent {
        /// The command's.
        token: u64,
        /// How often it has gone out by now.
        times: u32,
    },
    /// A [`Command`] has come to its end, whose token this is.
    CommandResult {
        /// The command's.
        token: u64,
        /// What the device answered, or why there is no answer.
        result: Result<CommandAnswer, CommandFailure>,
        /// The record that brought the answer. Once the answer is recorded, [`Mail::Durable`] must name it: the device
        /// repeats it until then.
        record: Option<(SessionId, u32)>,
    },
    /// A device answers a command that is not open here: it was answered, is over, or somebody else gave it. This, too,
    /// is to be met with [`Mail::Durable`] (R119).
    UnexpectedResult {
        /// The device.
        device: DeviceId,
        /// The command's number.
        number: u32,
        /// What the device answered.
        answer: CommandAnswer,
        /// The record that brought it.
        record: (SessionId, u32),
    },
    /// A HELLO that names a device of the directory was not granted. There are at most as many of these in a turn as
    /// hellos in a batch, but anybody who knows a device's id can cause them: whoever tells people limits them.
    Refused(RefusedDevice),
    /// A session was confirmed: the device is online.
    Online {
        /// The device.
        device: DeviceId,
        /// Its name.
        name: Arc<str>,
        /// What carries its messages.
        carrier: Transport,
        /// Where its record came from, as far as that is known.
        address: Option<SocketAddr>,
        /// How it proved itself, and where its key comes from.
        profile: Profile,
        /// Whether it was online before, in a session that this one takes the place of.
        replaced: bool,
    },
    /// The device's session has ended, and nothing took its place.
    Offline {
        /// The device.
        device: DeviceId,
        /// Its name.
        name: Arc<str>,
        /// Why.
        gone: Gone,
        /// How long the session had lasted, µs.
        age_us: u64,
    },
    /// What somebody [looked](Mail::Look) for.
    Contacts {
        /// Whose question it answers.
        token: u64,
        /// For each device its session, if it has one.
        contacts: Vec<Option<Contact>>,
    },
    /// This turn answered a batch of hellos.
    HellosAnswered {
        /// How many.
        count: usize,
        /// How long the oldest had waited, µs.
        waited_us: u64,
    },
}

/// What a shard counts.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Discarded inputs, at the place of their reason in [`DropReason::ALL`].
    pub drops: [u64; DropReason::ALL.len()],
    /// HELLOs whose proof verified.
    pub proven: u64,
    /// CHALLENGEs sent.
    pub challenges: u64,
    /// ACCEPTs made (not repeated ones).
    pub accepts: u64,
    /// Those of them to devices that hold the certificate that is being retired.
    pub accepts_retiring: u64,
    /// Sessions confirmed by their first valid record.
    pub confirmed: u64,
    /// Readings taken, those inside HELLOs included.
    pub readings: u64,
    /// Readings taken that came inside HELLOs.
    pub readings_early: u64,
    /// Readings that came *again* and were acknowledged without being stored once more.
    pub readings_known: u64,
    /// RESETs sent.
    pub resets: u64,
    /// Messages that were not sent, since too many waited already.
    pub unsent: u64,
}
