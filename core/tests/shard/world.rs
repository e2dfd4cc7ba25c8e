//! A shard and devices, with a clock that only the test moves.

use std::cell::RefCell;
use std::collections::HashSet;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use duet_core::engine::Batched;
use duet_core::testing::{self, Devices};
use duet_core::{Command, CommandFailure, Commit, Event as ShardEvent};
use duet_core::{Handler, Mail, Now, Path, Reading, Settings, Shard, Sink, StreamId};
use duet_device::{Config, Device, Event, Software};
use duet_protocol::identity::{DeviceId, Gateway};
use duet_protocol::profile::{KeySource, Mode, Profile, Transport};
use duet_protocol::reading::ReadingId;
use duet_protocol::wire::{Kind, MESSAGE_MAX, SessionId};

/// What a device has where a test does not care.
pub(crate) const PROFILE: Profile =
    Profile { mode: Mode::RegisteredId, source: KeySource::Ephemeral };

#[derive(Clone, Default)]
pub(crate) struct Collected(pub(crate) Rc<RefCell<Vec<Stored>>>);

/// A reading that the shard gave away.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) device: String,
    pub(crate) session: SessionId,
    pub(crate) sequence: u32,
    pub(crate) channel: u16,
    pub(crate) payload: Vec<u8>,
    pub(crate) confirm: bool,
    pub(crate) id: ReadingId,
    pub(crate) commit: Option<Commit>,
}

impl Sink for Collected {
    fn take(&mut self, reading: &Reading<'_>) {
        let Reading { session, sequence, channel, confirm, id, commit, .. } = *reading;
        let (device, payload) = (reading.device.to_owned(), reading.payload.to_vec());
        let stored = Stored { device, session, sequence, channel, payload, confirm, id, commit };
        self.0.borrow_mut().push(stored);
    }

    fn flush(&mut self) {}
}

pub(crate) type TestShard = Shard<Batched, Collected>;

pub(crate) struct World {
    pub(crate) devices: Arc<Devices>,
    pub(crate) shard: TestShard,
    pub(crate) stored: Collected,
    pub(crate) gateway: Gateway,
    pub(crate) now: Now,
    pub(crate) opened: HashSet<StreamId>,
    /// Every message that crossed, as (from device, kind, length).
    pub(crate) seen: Vec<(bool, Kind, usize)>,
}

impl World {
    pub(crate) fn new() -> Self {
        let (devices, stored) = (Arc::<Devices>::default(), Collected::default());
        let shard = testing::shard(testing::settings(), &devices, stored.clone());
        let gateway = testing::gateway_key().gateway;
        let now = Now { mono_us: 1_000_000, unix_ms: 1_800_000_000_000 };
        Self { devices, shard, stored, gateway, now, opened: HashSet::new(), seen: Vec::new() }
    }

    /// A shard of this world that knows no session.
    pub(crate) fn shard_with(&self, settings: Settings) -> TestShard {
        testing::shard(settings, &self.devices, self.stored.clone())
    }

    /// The shard ends as a killed process does, and another one begins, after what stored readings say of their devices
    /// was read (R101).
    pub(crate) fn restart(&mut self) {
        for reading in self.stored.0.borrow().iter() {
            if let Some(commit) = reading.commit {
                let device = self.devices.by_name(&reading.device).unwrap();
                device.committed(commit.mark, reading.id);
            }
        }
        self.shard = self.shard_with(testing::settings());
    }

    pub(crate) fn device(
        &self,
        seed: u8,
        profile: Profile,
        transport: Transport,
    ) -> Device<Software> {
        let name = format!("device-{seed}");
        let identity = self.devices.enrol(&name, DeviceId([seed; 8]), profile);
        let config = Config { identity, gateway: self.gateway, profile, transport, fresh: 1 };
        Device::seeded(config, [seed; 32]).unwrap()
    }

    /// A message over a stream, which is opened by its first one from an address of its own.
    pub(crate) fn stream_message(&mut self, stream: StreamId, bytes: &[u8]) {
        let [.., a, b] = stream.0.to_be_bytes();
        let peer = SocketAddr::from(([198, 51, a, b], 4_000));
        if self.opened.insert(stream) {
            let opened = self.shard.handle_stream_opened(self.now, stream, peer, self.now.mono_us);
            assert!(opened);
        }
        self.shard.handle_message(self.now, stream, bytes);
    }

    /// Closes the streams that are to be closed now.
    pub(crate) fn take_closed(&mut self) -> Vec<StreamId> {
        let closing: Vec<_> = std::iter::from_fn(|| self.shard.poll_close()).collect();
        closing.iter().for_each(|(stream, _)| self.shard.handle_stream_closed(self.now, *stream));
        closing.into_iter().map(|(stream, _)| stream).collect()
    }

    /// Gives the first device a command.
    pub(crate) fn command(&mut self, token: u64, payload: &[u8], timeout_s: u64) {
        let timeout = std::time::Duration::from_secs(timeout_s);
        let command = Command {
            token,
            device: DeviceId([1; 8]),
            registration: 0,
            number: u32::try_from(token).unwrap(),
            payload: payload.to_vec(),
            timeout,
            patient: false,
        };
        self.shard.handle_mail(self.now, Mail::Command(command));
    }

    /// The next command that ended, and how.
    pub(crate) fn command_result(&mut self) -> Option<(u64, Result<Vec<u8>, CommandFailure>)> {
        std::iter::from_fn(|| self.shard.poll_event()).find_map(|event| match event {
            ShardEvent::CommandResult { token, result, .. } => {
                Some((token, result.map(|answer| answer.output)))
            }
            _ => None,
        })
    }

    /// A device over datagrams that is connected.
    pub(crate) fn opened(&mut self) -> Device<Software> {
        let mut device = self.device(1, PROFILE, Transport::Datagram);
        device.open(self.now.mono_us);
        assert_eq!(self.settle(&mut device), ["Opened"]);
        device
    }

    /// Carries messages both ways until both sides are silent. What arrives is durable at once.
    pub(crate) fn settle(&mut self, device: &mut Device<Software>) -> Vec<String> {
        let from: SocketAddr = "192.0.2.1:4000".parse().unwrap();
        let mut events = Vec::new();
        loop {
            let mut moved = false;
            let mut out = [0; MESSAGE_MAX];
            while let Some(len) = device.poll_transmit(self.now.mono_us, &mut out) {
                self.seen.push((true, Kind::of(&out).unwrap(), len));
                self.shard.handle_datagram(self.now, from, &out[..len]);
                moved = true;
            }
            self.shard.handle_turn(self.now);
            self.shard.check();
            let durable: Vec<_> = self
                .stored
                .0
                .borrow()
                .iter()
                .filter(|r| r.confirm)
                .map(|r| (r.session, r.sequence))
                .collect();
            self.stored.0.borrow_mut().iter_mut().for_each(|r| r.confirm = false);
            if !durable.is_empty() {
                self.shard.handle_mail(self.now, Mail::Durable(durable));
                self.shard.handle_turn(self.now);
            }
            while let Some(sent) = self.shard.poll_transmit(&mut out) {
                assert_eq!(sent.to, Path::Datagram(from.into()));
                self.seen.push((false, Kind::of(&out).unwrap(), sent.len));
                match device.handle_message(self.now.mono_us, &mut out[..sent.len]) {
                    Ok(Event::Nothing | Event::NothingWaits) => {}
                    Ok(event) => events.push(format!("{event:?}")),
                    Err(reason) => events.push(reason.label().into()),
                }
                moved = true;
            }
            if !moved {
                return events;
            }
        }
    }

    pub(crate) fn pass(&mut self, micros: u64) {
        self.now.mono_us += micros;
        self.now.unix_ms += micros / 1_000;
    }
}

/// The device's next message.
pub(crate) fn next(world: &World, device: &mut Device<Software>) -> Vec<u8> {
    let mut out = [0; MESSAGE_MAX];
    let len = device.poll_transmit(world.now.mono_us, &mut out).unwrap();
    out[..len].to_vec()
}

/// What the shard sends in this turn, with where to.
pub(crate) fn sent(world: &mut World) -> Vec<(Path, Vec<u8>)> {
    world.shard.handle_turn(world.now);
    world.shard.check();
    let mut out = [0; MESSAGE_MAX];
    let sent = std::iter::from_fn(|| {
        world.shard.poll_transmit(&mut out).map(|sent| (sent.to, out[..sent.len].to_vec()))
    });
    sent.collect()
}
