//! Strangers beside honest devices: they send what they overheard, parts of it, changes of it, hellos of devices that
//! nobody registered, and noise, from thousands of addresses, and count what each address gets back.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use duet_device::fast::Fast;
use duet_device::{Config, Device, DeviceKey, Identity, Volatile};
use duet_protocol::identity::{DeviceId, Fingerprint, Gateway, RegistrationKey};
use duet_protocol::profile::{KeySource, Mode, Profile, Transport};
use duet_protocol::wire::MESSAGE_MAX;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use schemars::JsonSchema;
use serde::Serialize;

use super::Phase;
use crate::crowd::Overheard;
use crate::hosts::Hosts;

/// The number of the first hostile host: far above the devices'.
const FIRST: u32 = 2_000_000;
/// How many there are.
const ADDRESSES: usize = 4_096;
/// How long answers are still counted at the end.
const LINGER: Duration = Duration::from_secs(1);
/// The share of what they are to send that they must reach.
const SHARE_MIN: f64 = 0.9;
/// The longest noise, bytes.
const NOISE: usize = 300;

/// What strangers send, taken in turn.
const KINDS: [(&str, Make); 6] = [
    ("hellos of devices that nobody registered", Stranger::spoofed),
    ("noise", Stranger::noise),
    ("truncated messages", Stranger::truncated),
    ("messages with one bit changed", Stranger::mutated),
    ("hellos again", Stranger::hello_again),
    ("records again", Stranger::record_again),
];

type Make = fn(&mut Stranger) -> Option<Vec<u8>>;

/// What strangers sent and what it brought them.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Hostile {
    /// The honest devices just before, for as long, without strangers.
    pub undisturbed: Phase,
    /// Datagrams that strangers sent, by kind.
    pub sent: BTreeMap<String, u64>,
    /// Their bytes, without IP and UDP.
    pub sent_bytes: u64,
    /// Datagrams a second.
    pub per_s: f64,
    /// Datagrams that came back.
    pub back: u64,
    /// Their bytes.
    pub back_bytes: u64,
    /// Addresses that they used.
    pub addresses: u32,
    /// Addresses that at some time had got more bytes than they had sent: none, unless the gateway has a fault.
    pub amplified: u32,
}

impl Hostile {
    /// Why the strangers were not those that were asked for, if they were not.
    pub(super) fn own_fault(&self, asked_per_s: u32) -> Option<String> {
        (self.per_s < f64::from(asked_per_s) * SHARE_MIN).then(|| {
            format!(
                "the strangers sent only {:.0} of {asked_per_s} datagrams a second: use a lower --hostile-rate, or more cores",
                self.per_s
            )
        })
    }
}

/// What went to and fro so far.
#[derive(Debug)]
pub(super) struct Ledger {
    sent: [u64; KINDS.len()],
    back: u64,
    /// Bytes sent and got by address, and whether it ever had got more.
    addresses: Vec<([u64; 2], bool)>,
    took: Duration,
}

impl Default for Ledger {
    fn default() -> Self {
        let addresses = vec![([0; 2], false); ADDRESSES];
        Self { sent: [0; KINDS.len()], back: 0, addresses, took: Duration::ZERO }
    }
}

impl Ledger {
    fn note_back(&mut self, address: usize, bytes: usize) {
        self.back += 1;
        if let Some(([sent, back], amplified)) = self.addresses.get_mut(address) {
            *back += bytes as u64;
            *amplified |= *back > *sent;
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    pub(super) fn report(&self, undisturbed: Phase) -> Hostile {
        let names = KINDS.iter().map(|kind| kind.0.to_owned());
        let sum = |place: usize| self.addresses.iter().map(|one| one.0[place]).sum();
        let count = |wanted: fn(&([u64; 2], bool)) -> bool| {
            u32::try_from(self.addresses.iter().filter(|one| wanted(one)).count())
                .unwrap_or(u32::MAX)
        };
        let total: u64 = self.sent.iter().sum();
        Hostile {
            undisturbed,
            sent: names.zip(self.sent).collect(),
            sent_bytes: sum(0),
            per_s: total as f64 / self.took.as_secs_f64().max(1e-6),
            back: self.back,
            back_bytes: sum(1),
            addresses: count(|one| one.0[0] > 0),
            amplified: count(|one| one.1),
        }
    }
}

/// Who attacks, and with what.
pub(super) struct Stranger {
    pub(super) gateway: Gateway,
    pub(super) overheard: Arc<Overheard>,
    pub(super) random: fastrand::Rng,
}

impl Stranger {
    /// Sends datagrams at a rate until it is over, and counts what comes back.
    pub(super) fn attack(
        mut self,
        to: SocketAddr,
        per_s: u32,
        over: &AtomicBool,
    ) -> Result<Ledger> {
        let hosts = Hosts::bind().context("no UDP socket for the strangers")?;
        let period = Duration::from_secs(1) / per_s.max(1);
        let (began, mut due, mut turn) = (Instant::now(), Duration::ZERO, 0);
        let mut ledger = Ledger::default();
        while !over.load(Ordering::Relaxed) {
            if began.elapsed() < due {
                let wait = due.saturating_sub(began.elapsed()).min(Duration::from_millis(10));
                listen(&hosts, wait, &mut ledger)?;
                continue;
            }
            due += period;
            let kind = turn % KINDS.len();
            turn += 1;
            let Some(message) = KINDS[kind].1(&mut self) else { continue };
            let address = self.random.usize(..ADDRESSES);
            // Counted first: its answer must not come before it in the ledger.
            ledger.addresses[address].0[0] += message.len() as u64;
            if hosts.send(FIRST + u32::try_from(address)?, to, &message).is_err() {
                ledger.addresses[address].0[0] -= message.len() as u64;
                continue;
            }
            ledger.sent[kind] += 1;
            if turn % 16 == 0 {
                listen(&hosts, Duration::ZERO, &mut ledger)?;
            }
        }
        ledger.took = began.elapsed();
        let end = began.elapsed() + LINGER;
        while began.elapsed() < end {
            listen(&hosts, Duration::from_millis(10), &mut ledger)?;
        }
        Ok(ledger)
    }

    fn spoofed(&mut self) -> Option<Vec<u8>> {
        let mut bytes = [0; 32 + 8 + 32];
        self.random.fill(&mut bytes);
        let (key, rest) = bytes.split_first_chunk()?;
        let (id, seed) = rest.split_first_chunk()?;
        let id = DeviceId(*id);
        let identity = Identity {
            id,
            fingerprint: Fingerprint::of_registered_id(&id),
            key: DeviceKey::Registration(RegistrationKey(*key)),
        };
        let profile = Profile { mode: Mode::RegisteredId, source: KeySource::Ephemeral };
        let (gateway, transport) = (self.gateway, Transport::Datagram);
        let config = Config { identity, gateway, profile, transport, fresh: 1 };
        let crypto = Fast::seeded(seed.try_into().ok()?);
        let mut device: Device<_> = Device::new(crypto, Volatile, config).ok()?;
        device.open(0);
        let mut out = [0; MESSAGE_MAX];
        device.poll_transmit(0, &mut out).map(|len| out[..len].to_vec())
    }

    fn noise(&mut self) -> Option<Vec<u8>> {
        let mut bytes = vec![0; self.random.usize(1..=NOISE)];
        self.random.fill(&mut bytes);
        // Half of it looks like a message at first.
        if let Some(message) = self.random.bool().then(|| self.any()).flatten() {
            bytes[0] = *message.first()?;
        }
        Some(bytes)
    }

    fn truncated(&mut self) -> Option<Vec<u8>> {
        let mut message = self.any()?;
        message.truncate(self.random.usize(1..message.len().max(2)));
        Some(message)
    }

    fn mutated(&mut self) -> Option<Vec<u8>> {
        let mut message = self.any()?;
        let place = self.random.usize(..message.len());
        message[place] ^= 1 << self.random.u8(..8);
        Some(message)
    }

    fn hello_again(&mut self) -> Option<Vec<u8>> {
        self.overheard.hello(&mut self.random)
    }

    fn record_again(&mut self) -> Option<Vec<u8>> {
        self.overheard.record(&mut self.random)
    }

    fn any(&mut self) -> Option<Vec<u8>> {
        if self.random.bool() { self.hello_again() } else { self.record_again() }
    }
}

fn listen(hosts: &Hosts, time: Duration, ledger: &mut Ledger) -> Result<()> {
    let time = Timespec::try_from(time).unwrap_or_default();
    match poll(&mut [PollFd::new(hosts, PollFlags::IN)], Some(&time)) {
        Err(rustix::io::Errno::INTR) | Ok(0) => return Ok(()),
        other => other.context("cannot wait for the strangers' socket")?,
    };
    let mut bytes = [0; 2_048];
    while let Ok((host, len)) = hosts.recv(&mut bytes) {
        ledger.note_back(host.wrapping_sub(FIRST) as usize, len);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_got_more_than_it_sent_is_counted_even_if_it_sends_more_later() {
        let mut ledger = Ledger::default();
        ledger.addresses[3].0[0] = 10;
        ledger.note_back(3, 10);
        assert!(!ledger.addresses[3].1);
        ledger.note_back(3, 1);
        ledger.addresses[3].0[0] = 100;
        ledger.note_back(3, 1);
        assert!(ledger.addresses[3].1);
        assert_eq!(ledger.back, 3);
    }

    #[test]
    fn strangers_that_fall_behind_are_this_programs_fault() {
        let mut ledger = Ledger { took: Duration::from_secs(10), ..Ledger::default() };
        ledger.sent = [150; KINDS.len()];
        let undisturbed = Phase {
            due: 1,
            done: 1,
            seconds: 1.0,
            per_s: 1.0,
            latency_ms: crate::load::Latency::default(),
            gateway_cpu_us: 1.0,
        };
        let hostile = ledger.report(undisturbed);
        assert_eq!(hostile.own_fault(100), None);
        assert!(hostile.own_fault(101).is_some_and(|fault| fault.contains("only 90 of 101")));
    }
}
