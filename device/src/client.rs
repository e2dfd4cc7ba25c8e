//! A device for Linux and prototypes: it blocks, over UDP or TCP, connects again by itself, and keeps its
//! counter in a file. Everything that it knows of the protocol is in [`Device`].

mod link;

use std::{
    boxed::Box,
    fs::{File, OpenOptions, TryLockError},
    io,
    path::{Path, PathBuf},
    string::String,
    time::{Duration, Instant},
    vec::Vec,
};

use duet_protocol::{
    profile::Transport,
    reading::ReadingId,
    wire::{MESSAGE_MAX, SessionId},
};

use crate::{
    credentials::{CredentialError, Credentials},
    error::{Failure, SendError, SetupError},
    file_store::FileStore,
    machine::{Confirmed, Device, Early, Event, Reading},
    software::System,
};

use self::link::{Heard, Link};

#[cfg(feature = "fast")]
type Engine = crate::fast::Fast<System>;
#[cfg(not(feature = "fast"))]
type Engine = crate::software::Software<System>;

/// Readings that wait to be confirmed at once.
const WINDOW: usize = 8;
/// The longest payload.
const PAYLOAD: usize = 1_024;

/// Why a call did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The credential file is not what it should be.
    #[error(transparent)]
    Credential(#[from] CredentialError),
    /// Another program is this device at the moment.
    #[error(
        "{path}: another program uses this device: two at once would take each other's session away"
    )]
    Busy {
        /// The file that it has locked.
        path: PathBuf,
    },
    /// The counter's file could not be read, or key and profile do not belong together.
    #[error("{path}: {source}{}", advice(source))]
    Setup {
        /// The counter's file.
        path: PathBuf,
        /// What is wrong.
        source: SetupError,
    },
    /// The network could not be used at all.
    #[error("cannot reach {address}: {source}")]
    Network {
        /// The gateway's address.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// The reading was not taken.
    #[error(transparent)]
    Send(#[from] SendError),
    /// Keys or the counter failed.
    #[error(transparent)]
    Device(#[from] Failure),
    /// The gateway did not answer in time. A reading that was to be confirmed is kept, and goes on with the
    /// next call.
    #[error(
        "{address} did not answer within {} ms: is it running, is this device registered there, and is the credential of that \
         gateway as it is now? `duet device try` says more",
        .waited.as_millis()
    )]
    Timeout {
        /// The gateway's address.
        address: String,
        /// How long it was waited for.
        waited: Duration,
    },
}

/// What to do where there is no device.
const fn advice(error: &SetupError) -> &'static str {
    match error {
        SetupError::Store(_) => {
            "; a damaged file may be removed: the gateway then asks for one more round trip"
        }
        SetupError::KeyKind => "",
    }
}

/// Locks a file beside the counter for as long as the client lives: two programs with one counter would take each other's
/// session away. Where files cannot be locked nothing is.
fn lock(counter: &Path) -> Result<Option<File>, ClientError> {
    let mut path = PathBuf::from(counter).into_os_string();
    path.push(".lock");
    let path = PathBuf::from(path);
    let opened = OpenOptions::new().write(true).create(true).truncate(false).open(&path);
    let Ok(file) = opened else { return Ok(None) };
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => Err(ClientError::Busy { path }),
        Ok(()) | Err(TryLockError::Error(_)) => Ok(Some(file)),
    }
}

/// What came of a command.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// 0 is success; other values are the device's own.
    pub status: u8,
    /// What the gateway's operator sees, at most 1,024 bytes.
    pub output: Vec<u8>,
}

impl Outcome {
    /// Success.
    #[must_use]
    pub fn done(output: impl Into<Vec<u8>>) -> Self {
        Self { status: 0, output: output.into() }
    }
}

/// How a client behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// UDP or TCP.
    pub transport: Transport,
    /// Where the gateway listens; `None` is: where the credential file says.
    pub address: Option<String>,
    /// Whether the first reading goes inside HELLO.
    pub early: Early,
    /// How long a call may wait for the gateway.
    pub timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        let (transport, timeout) = (Transport::Datagram, Duration::from_secs(60));
        Self { transport, address: None, early: Early::Stay, timeout }
    }
}

type OnCommand = Box<dyn FnMut(&[u8]) -> Outcome + Send>;

/// A device and its connection.
pub struct Client {
    device: Device<Engine, FileStore, WINDOW, PAYLOAD>,
    link: Link,
    began: Instant,
    timeout: Duration,
    on_command: Option<OnCommand>,
    /// Kept locked.
    _lock: Option<File>,
}

impl Client {
    /// The device of this credential file, over UDP. Its counter is kept in a file beside it, whose name ends
    /// in `.counter`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, ClientError> {
        let path = path.as_ref();
        Self::new(&Credentials::read(path)?, path.with_extension("counter"), Options::default())
    }

    /// The device with these credentials, whose counter is kept in this file.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn new(
        credentials: &Credentials,
        counter: impl Into<PathBuf>,
        options: Options,
    ) -> Result<Self, ClientError> {
        let Options { transport, address, early, timeout } = options;
        let address = address.unwrap_or_else(|| credentials.address.clone());
        let path = counter.into();
        let lock = lock(&path)?;
        let store = FileStore::new(path.clone());
        let mut device = Device::new(Engine::new(System), store, credentials.config(transport))
            .map_err(|source| ClientError::Setup { path, source })?;
        device.set_early(early);
        let link = Link::new(transport, address)?;
        Ok(Self { device, link, began: Instant::now(), timeout, on_command: None, _lock: lock })
    }

    /// What is done with commands; without it each is answered with status 255.
    pub fn on_command(&mut self, act: impl FnMut(&[u8]) -> Outcome + Send + 'static) {
        self.on_command = Some(Box::new(act));
    }

    /// Sends a reading and waits until the gateway has stored it.
    ///
    /// # Errors
    /// [`ClientError`]; after [`ClientError::Timeout`] the reading is kept and goes on with the next call.
    pub fn send(&mut self, channel: u16, payload: &[u8]) -> Result<Confirmed, ClientError> {
        let (confirm, measured_us, again) = (true, None, None);
        self.send_reading(Reading { channel, payload, confirm, measured_us, again })
    }

    /// Sends once more a reading that was sent in another life of this device, under its first name.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn send_again(
        &mut self,
        id: ReadingId,
        channel: u16,
        payload: &[u8],
    ) -> Result<Confirmed, ClientError> {
        let (confirm, measured_us, again) = (true, None, Some(id));
        self.send_reading(Reading { channel, payload, confirm, measured_us, again })
    }

    fn send_reading(&mut self, reading: Reading<'_>) -> Result<Confirmed, ClientError> {
        // What the last calls left is confirmed first, if the window is full.
        let token = match self.device.send(self.now(), reading) {
            Err(SendError::Full) => {
                self.ensure_open();
                self.drive(|device| device.poll_confirmed().map(drop))?;
                self.device.send(self.now(), reading)?
            }
            other => other?,
        };
        self.ensure_open();
        self.drive(|device| {
            core::iter::from_fn(|| device.poll_confirmed()).find(|done| done.token == token)
        })
    }

    /// Sends a reading without waiting: whether it arrives nobody knows.
    ///
    /// # Errors
    /// [`ClientError`], also when no channel could be opened.
    pub fn post(&mut self, channel: u16, payload: &[u8]) -> Result<(), ClientError> {
        self.connect()?;
        self.device.send_reading(self.now(), channel, payload, false)?;
        self.transmit()
    }

    /// Opens the channel, unless one stands.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn connect(&mut self) -> Result<SessionId, ClientError> {
        self.ensure_open();
        self.drive(|device| device.session())
    }

    /// Waits for commands, and carries them out.
    ///
    /// # Errors
    /// [`ClientError`], but no [`ClientError::Timeout`].
    pub fn wait(&mut self, time: Duration) -> Result<(), ClientError> {
        self.ensure_open();
        self.drive_for(time, |_| None::<()>).map(drop)
    }

    /// Waits until nothing waits for the device at its gateway any more: whoever sleeps then misses nothing.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn rest(&mut self) -> Result<(), ClientError> {
        self.device.rest(self.now());
        let began = self.began;
        let now = move || u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.drive(move |device| device.may_sleep(now()).then_some(()))
    }

    /// The device, for what this client has no word for.
    pub const fn device(&mut self) -> &mut Device<Engine, FileStore, WINDOW, PAYLOAD> {
        &mut self.device
    }

    /// Ends the session.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn close(mut self) -> Result<(), ClientError> {
        self.device.close();
        self.transmit()
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn ensure_open(&mut self) {
        if !self.device.is_open() {
            let now = self.now();
            self.device.open(now);
        }
    }

    /// When there is something to do, µs; at no time where nothing is under way. A stream that has ended while the device
    /// waits is connected anew as soon as it may be (R118).
    fn due(&self) -> Option<u64> {
        let (due, ready_at) = (self.device.poll_timeout()?, self.link.ready_at());
        let ended = self.link.has_ended() && self.device.is_waiting();
        Some(if ended { ready_at } else { due.max(ready_at) })
    }

    /// Sends what is due.
    fn transmit(&mut self) -> Result<(), ClientError> {
        let mut out = [0; MESSAGE_MAX];
        loop {
            let now = self.now();
            if self.due().is_none_or(|due| due > now) || !self.link.is_ready(now) {
                return Ok(());
            }
            if self.link.was_renewed() {
                self.device.reconnected(now);
            }
            let Some(len) = self.device.poll_transmit(now, &mut out) else {
                return match self.device.poll_failure() {
                    Some(failure) => Err(failure.into()),
                    None => Ok(()),
                };
            };
            self.link.send(&out[..len]);
        }
    }

    /// Drives the device until `done` has something to say, or the time for a call is over.
    fn drive<T>(
        &mut self,
        done: impl FnMut(&mut Device<Engine, FileStore, WINDOW, PAYLOAD>) -> Option<T>,
    ) -> Result<T, ClientError> {
        let waited = self.timeout;
        let address = self.link.address().clone();
        self.drive_for(waited, done)?.ok_or(ClientError::Timeout { address, waited })
    }

    fn drive_for<T>(
        &mut self,
        time: Duration,
        mut done: impl FnMut(&mut Device<Engine, FileStore, WINDOW, PAYLOAD>) -> Option<T>,
    ) -> Result<Option<T>, ClientError> {
        let until = Instant::now() + time;
        let mut bytes = [0; MESSAGE_MAX];
        loop {
            self.transmit()?;
            if let Some(value) = done(&mut self.device) {
                return Ok(Some(value));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            let now = self.now();
            let wait =
                self.due().map_or(left, |due| Duration::from_micros(due.saturating_sub(now)));
            match self.link.hear(left.min(wait), &mut bytes) {
                Heard::Nothing => {}
                Heard::Ended => {
                    let (now, waits) = (self.now(), self.device.is_waiting());
                    self.link.note_end(now, waits);
                }
                Heard::Message(len) => self.handle(&mut bytes[..len]),
            }
        }
    }

    fn handle(&mut self, message: &mut [u8]) {
        let now = self.now();
        let mut command = None;
        match self.device.handle_message(now, message) {
            Ok(Event::Command { command: number, payload }) => {
                command = Some((number, payload.to_vec()));
            }
            Ok(Event::Doubted) => self.link.renew(),
            // What is not for us is not answered.
            Ok(_) | Err(_) => {}
        }
        if let Some((number, payload)) = command {
            let outcome = match &mut self.on_command {
                Some(act) => act(&payload),
                None => Outcome { status: u8::MAX, output: b"no commands here".to_vec() },
            };
            self.device.send_result(number, outcome.status, &outcome.output);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{string::ToString as _, vec};

    use duet_protocol::{
        ec::SecretScalar,
        identity::{DeviceId, Fingerprint, Gateway, RegistrationKey},
        profile::Profile,
    };

    use super::*;
    use crate::identity::{DeviceKey, Identity};

    fn credentials() -> Credentials {
        let id = DeviceId([7; 8]);
        let key = DeviceKey::Registration(RegistrationKey([9; 32]));
        let fingerprint = Fingerprint::of_registered_id(&id);
        let key_of_gateway = SecretScalar::from_bytes(&[5; 32]).unwrap().public_key();
        Credentials {
            name: "boiler-1".into(),
            identity: Identity { id, fingerprint, key },
            gateway: Gateway { key_id: 1, fingerprint: Fingerprint([3; 32]), key: key_of_gateway },
            profiles: vec![Profile::from_name("registered-id/ephemeral").unwrap()],
            address: "127.0.0.1:9".into(),
            first_fresh: 1,
        }
    }

    #[test]
    fn one_device_is_one_program_and_each_error_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let counter = dir.path().join("boiler-1.counter");
        let make = |timeout| {
            let options = Options { timeout, ..Options::default() };
            Client::new(&credentials(), &counter, options)
        };
        let told = |result: Result<Client, ClientError>| match result {
            Ok(_) => panic!("a device was made"),
            Err(error) => error.to_string(),
        };
        let mut first = make(Duration::from_millis(1)).unwrap_or_else(|error| panic!("{error}"));
        assert!(told(make(Duration::from_secs(1))).contains("another program uses this device"));
        // Nobody answers there.
        let error = first.send(1, b"21.5").unwrap_err().to_string();
        assert!(error.contains("127.0.0.1:9") && error.contains("duet device try"), "{error}");
        drop(first);
        std::fs::write(&counter, b"damaged").unwrap();
        let error = told(make(Duration::from_secs(1)));
        assert!(error.contains("boiler-1.counter") && error.contains("may be removed"), "{error}");
        std::fs::remove_file(&counter).unwrap();
        assert!(make(Duration::from_secs(1)).is_ok());
    }

    /// R118. The HELLO would be sent again after eight seconds.
    #[test]
    fn a_stream_that_ends_while_the_device_waits_is_connected_anew() {
        use std::{io::Read as _, net::TcpListener, thread};

        let dir = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let heard = thread::spawn(move || {
            core::array::from_fn(|_| {
                let (mut stream, _) = listener.accept().unwrap();
                let mut message = [0; 2 + 76];
                stream.read_exact(&mut message).unwrap();
                message
            })
        });
        let (transport, address) = (Transport::Stream, Some(address));
        let (early, timeout) = (Early::Never, Duration::from_secs(4));
        let options = Options { transport, address, early, timeout };
        let mut client = Client::new(&credentials(), dir.path().join("counter"), options)
            .unwrap_or_else(|error| panic!("{error}"));
        // Nobody answers there.
        client.connect().unwrap_err();
        assert!(heard.is_finished(), "it came once");
        let [first, second] = heard.join().unwrap();
        assert!(first == second);
    }
}
