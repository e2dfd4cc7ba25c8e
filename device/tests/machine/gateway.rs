//! The gateway's half of the protocol, one message at a time, and a device before it.

use duet_device::{
    Config, Crypto, Device, DeviceKey, Identity, Software, Store,
    protocol::{
        ec::{self, SecretScalar},
        identity::{Credential, DeviceId, Fingerprint, Gateway, RegistrationKey},
        message::{Down, RANGES_MAX, Range, TEXT_MAX, Up},
        profile::{Mode, Profile, Transport},
        reading::ReadingId,
        reason::DropReason,
        record::Cipher,
        responder::{Opened, Proven},
        schedule::Grant,
        wire::{DownHeader, Hello, Kind, MESSAGE_MAX, SessionId, UpHeader},
    },
};

pub(crate) fn scalar(byte: u8) -> SecretScalar {
    SecretScalar::from_bytes(&[byte; 32]).unwrap()
}

pub(crate) fn profile(name: &str) -> Profile {
    Profile::from_name(name).unwrap()
}

pub(crate) struct Peer {
    secret: SecretScalar,
    pub(crate) gateway: Gateway,
    pub(crate) credential: Credential,
    pub(crate) identity: Identity,
    sessions: u32,
}

/// What the gateway says in ACCEPT.
#[derive(Clone, Copy, Default)]
pub(crate) struct Says {
    pub(crate) stored: bool,
    pub(crate) nothing_waits: bool,
}

/// A session as the gateway has it.
pub(crate) struct Held {
    pub(crate) id: SessionId,
    pub(crate) token: [u8; 12],
    up: Cipher,
    down: Cipher,
    next: u32,
}

impl Peer {
    pub(crate) fn new(mode: Mode) -> Self {
        let secret = scalar(0x51);
        let fingerprint = Fingerprint::of_certificate(b"gateway certificate");
        let gateway = Gateway { key_id: 3, fingerprint, key: secret.public_key() };
        let id = DeviceId([7; 8]);
        let (credential, key) = match mode {
            Mode::RegisteredId => {
                let key = RegistrationKey([9; 32]);
                (Credential::registered_id(id, key.clone()), DeviceKey::Registration(key))
            }
            Mode::Certificate => {
                let public = scalar(0x22).public_key();
                let credential = Credential::certificate(b"device certificate", public);
                (credential, DeviceKey::Private(scalar(0x22)))
            }
            Mode::RegisteredCertificate => {
                let public = scalar(0x22).public_key();
                let credential =
                    Credential::registered_certificate(id, b"device certificate", public);
                (credential, DeviceKey::Private(scalar(0x22)))
            }
        };
        let identity = Identity { id: credential.id, fingerprint: credential.fingerprint, key };
        Self { secret, gateway, credential, identity, sessions: 0 }
    }

    /// Another gateway, which knows the same device.
    pub(crate) fn foreign(mode: Mode) -> Self {
        let (secret, own) = (scalar(0x52), Self::new(mode));
        let fingerprint = Fingerprint::of_certificate(b"another gateway's certificate");
        let gateway = Gateway { fingerprint, key: secret.public_key(), ..own.gateway };
        Self { secret, gateway, ..own }
    }

    pub(crate) fn config(&self, profile: Profile) -> Config {
        let (identity, gateway) = (self.identity.clone(), self.gateway);
        Config { identity, gateway, profile, transport: Transport::Datagram, fresh: 1 }
    }

    pub(crate) fn device(&self, profile: Profile) -> Device<Software> {
        let config = self.config(profile);
        Device::new(Software::seeded([4; 32]), Default::default(), config).unwrap()
    }

    pub(crate) fn proven(&self, message: &[u8]) -> Result<Proven, DropReason> {
        let hello = Hello::decode(message, Transport::Datagram)?;
        let agreed = ec::agree(&self.secret, hello.ephemeral_x()).ok_or(DropReason::Point)?;
        let opened = Opened::new(hello, &self.gateway, agreed.point, &agreed.shared)?;
        let claim = opened.claim(&self.gateway, Some(&self.credential));
        let verdict = claim.verify_task().is_none_or(ec::verify);
        claim.verified(verdict)
    }

    pub(crate) fn accept(&mut self, hello: &[u8], says: Says) -> (Vec<u8>, Held) {
        self.sessions += 1;
        let (id, token) = (SessionId(0x0a0b_0000 + self.sessions), [8; 12]);
        let Says { stored, nothing_waits } = says;
        let grant =
            Grant { session: id, lifetime_s: 3_600, stored, nothing_waits, reset_token: token };
        let responding = self.proven(hello).unwrap().respond(grant, scalar(0x33), [0x44; 48]);
        let answer = responding.task().map(|task| ec::encapsulate(task).unwrap());
        let signing = responding.agreed(answer);
        let sign = |digest| ec::sign(&self.secret, &digest, &[5; 32]).unwrap();
        let signature = signing.digest().map_or([0; 64], sign);
        let (accept, keys) = signing.signed(&signature);
        let (up, down) = (Cipher::new(&keys.up), Cipher::new(&keys.down));
        (accept.as_slice().to_vec(), Held { id, token, up, down, next: 0 })
    }

    /// Lets a device that has something to send open a channel, at once.
    pub(crate) fn open<S: Store>(&mut self, device: &mut Device<impl Crypto, S>, now: u64) -> Held {
        device.open(now);
        let hello = hello(device, now);
        let (mut accept, held) = self.accept(&hello, Says::default());
        device.handle_message(now, &mut accept).unwrap();
        held
    }
}

/// The next message of a device.
pub(crate) fn next<C: Crypto, S: Store>(device: &mut Device<C, S>, now: u64) -> Option<Vec<u8>> {
    let mut out = [0; MESSAGE_MAX];
    let len = device.poll_transmit(now, &mut out);
    assert_eq!(device.poll_failure(), None);
    len.map(|len| out[..len].to_vec())
}

pub(crate) fn hello<C: Crypto, S: Store>(device: &mut Device<C, S>, now: u64) -> Vec<u8> {
    let message = next(device, now).unwrap();
    assert_eq!(Kind::of(&message), Ok(Kind::Hello));
    message
}

/// A text of a device, kept apart from the record that it came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    Reading { channel: u16, again: Option<ReadingId>, age_ms: Option<u32>, payload: Vec<u8> },
    Result { command: u32, status: u8, payload: Vec<u8> },
    Ping,
    Close,
    Here([u8; 4]),
}

impl Held {
    /// What a record says, and under which sequence.
    pub(crate) fn read(&self, message: &[u8]) -> (u32, Said) {
        let mut message = message.to_vec();
        let header = UpHeader::decode(&message).unwrap();
        assert_eq!(header.session, self.id);
        let text = self.up.open_up(header, &mut message).expect("the record opens");
        let said = match Up::decode(text).unwrap() {
            Up::Reading { channel, again, age_ms, payload, .. } => {
                Said::Reading { channel, again, age_ms, payload: payload.to_vec() }
            }
            Up::Result { command, status, payload } => {
                Said::Result { command, status, payload: payload.to_vec() }
            }
            Up::Ping => Said::Ping,
            Up::Close => Said::Close,
            Up::Here { challenge } => Said::Here(challenge),
        };
        (header.sequence, said)
    }

    /// Everything that the device says now.
    pub(crate) fn said<C: Crypto, S: Store>(
        &self,
        device: &mut Device<C, S>,
        now: u64,
    ) -> Vec<(u32, Said)> {
        std::iter::from_fn(|| next(device, now)).map(|message| self.read(&message)).collect()
    }

    pub(crate) fn seal_at(&self, sequence: u32, text: &Down<'_>) -> Vec<u8> {
        let (mut plain, mut out) = ([0; TEXT_MAX], [0; MESSAGE_MAX]);
        let len = text.encode(&mut plain);
        let header = DownHeader { sequence };
        let len = self.down.seal_down(header, self.id, &plain[..len], &mut out);
        out[..len].to_vec()
    }

    pub(crate) fn seal(&mut self, text: &Down<'_>) -> Vec<u8> {
        self.next += 1;
        self.seal_at(self.next - 1, text)
    }

    pub(crate) fn ack(&mut self, sequence: u32, nothing_waits: bool) -> Vec<u8> {
        let mut ranges = [0; RANGES_MAX * 6];
        let range = [Range { first: sequence, count: 1 }];
        let ack = Down::ack(&range, nothing_waits, &mut ranges);
        self.seal(&ack)
    }

    pub(crate) fn command(&mut self, command: u32) -> Vec<u8> {
        self.seal(&Down::Command { command, payload: b"open" })
    }
}
