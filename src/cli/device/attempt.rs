//! `duet device try`: a device on the command line, which says step by step what it sends and what comes.
//!
//! It is a device like any other: its counter is kept beside its credential, where the library keeps it, too. What a
//! silent gateway does not tell, [`silence`] looks for in the state directory, where there is one.

mod line;
mod silence;

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use duet::hex::Hex;
use duet::identity::now_ms;
use duet::printable::Printable;
use duet_device::credentials::Credentials;
use duet_device::file_store::FileStore;
use duet_device::software::{Software, System};
use duet_device::{Device, Early, Error, Event};
use duet_protocol::profile::Transport;
use duet_protocol::reason::DropReason;
use duet_protocol::wire::{Kind, MESSAGE_MAX};

use self::line::{Heard, Line};
use super::super::{Place, output};

/// The longest payload.
const PAYLOAD: usize = 1_024;
/// Exit code: nobody listens there, or there is no such address.
const UNREACHABLE: u8 = 3;
/// Exit code: no answer that this device can believe.
const SILENT: u8 = 4;
/// Exit code: the channel stands, and the reading was not stored in time.
const NOT_STORED: u8 = 5;

/// Flags of `duet device try`.
#[derive(Args)]
#[command(
    after_help = "The device's counter is kept beside its credential, in NAME.counter, as the library does: do not try \
    a device that runs elsewhere with the same credential. Where the gateway stays silent, and its state directory is on \
    this machine, it is looked up there why.\n\n\
    Exit codes: 0 done, 1 the credential is of no use, 2 wrong usage, 3 nobody listens there, 4 no answer, 5 the channel \
    stands and the reading was not stored in time."
)]
pub(in super::super) struct Try {
    /// The device's credential, as `duet device add --out` wrote it
    file: PathBuf,
    /// Send this as a reading, and wait until it is stored
    #[arg(long, value_name = "TEXT")]
    send: Option<String>,
    /// The reading's channel
    #[arg(long, value_name = "N", default_value_t = 1, requires = "send")]
    channel: u16,
    /// Over TCP, not over UDP
    #[arg(long)]
    tcp: bool,
    /// Where the gateway listens [default: where the credential says]
    #[arg(long, value_name = "HOST:PORT", value_parser = super::add::address)]
    address: Option<String>,
    /// Seconds to wait for the gateway
    #[arg(long, value_name = "SECONDS", default_value_t = 10,
          value_parser = clap::value_parser!(u64).range(1..=3_600))]
    timeout: u64,
}

type Machine = Device<Software<System>, FileStore, 1, PAYLOAD>;

/// How it ended.
enum End {
    Done,
    Unreachable(io::Error),
    /// Whether it closed the connection, too.
    Silent(bool),
    NotStored,
}

/// The device, its line, and what was said so far.
struct Attempt<'a> {
    machine: Machine,
    line: Line,
    began: Instant,
    until: Instant,
    /// A reading waits to be stored.
    owed: bool,
    /// A channel stood, or a reading was stored without one.
    answered: bool,
    told: &'a mut Told,
}

impl Try {
    pub(super) fn run(self, place: &Place) -> Result<ExitCode> {
        let credentials = Credentials::read(&self.file)?;
        let transport = if self.tcp { Transport::Stream } else { Transport::Datagram };
        let counter = self.file.with_extension("counter");
        let config = credentials.config(transport);
        let profile = config.profile.name();
        let machine = Machine::new(Software::new(System), FileStore::new(counter.clone()), config);
        let mut machine = machine.with_context(|| counter.display().to_string())?;
        let address = match &self.address {
            Some(address) => address.clone(),
            None if credentials.address.is_empty() => {
                bail!("{}: no address in it: say --address HOST:PORT", self.file.display())
            }
            None => credentials.address.clone(),
        };
        let carrier = if self.tcp { "TCP" } else { "UDP" };
        let gateway = Hex(&credentials.gateway.fingerprint.0).to_string();
        let mut told = Told::default();
        told.say(&format!("device   {}, {profile}, counter {}", credentials.name, machine.fresh()));
        told.say(&format!("gateway  {address} over {carrier}, certificate {}…", &gateway[..16]));

        if let Some(text) = &self.send {
            machine.set_early(Early::Stay);
            machine.send_reading(0, self.channel, text.as_bytes(), true).with_context(|| {
                format!("a reading has at most {PAYLOAD} bytes, and this one {}", text.len())
            })?;
        }
        machine.open(0);
        let (began, began_ms) = (Instant::now(), now_ms());
        let end = match Line::connect(transport, &address) {
            Err(error) => End::Unreachable(error),
            Ok(line) => {
                let until = began + Duration::from_secs(self.timeout);
                let (owed, answered) = (self.send.is_some(), false);
                let told = &mut told;
                Attempt { machine, line, began, until, owed, answered, told }.run()?
            }
        };
        let (code, why) = match end {
            End::Done => {
                told.0.context("what was asked for was done")?;
                return Ok(ExitCode::SUCCESS);
            }
            End::Unreachable(error) => {
                let why = format!(
                    "cannot reach {address} over {carrier}: {error}. Is the gateway running, and is that its \
                     address? `duet status` on its machine says"
                );
                (UNREACHABLE, why)
            }
            End::Silent(closed) => {
                let waited = match closed {
                    true => format!("{address} closed the connection without an answer"),
                    false => format!("{address} gave no answer within {} s", self.timeout),
                };
                (SILENT, silence::why(place, &credentials, profile, began_ms, &waited))
            }
            End::NotStored => {
                let why = "the channel stands, but the reading was not stored in time: is the gateway's spool full? \
                           `duet status` on its machine says";
                (NOT_STORED, why.to_owned())
            }
        };
        writeln!(io::stderr(), "duet: {why}")?;
        Ok(ExitCode::from(code))
    }
}

/// Whether all lines were heard. One that was not is no reason to stop: the gateway may have stored the reading already.
struct Told(io::Result<()>);

impl Default for Told {
    fn default() -> Self {
        Self(Ok(()))
    }
}

impl Told {
    /// Says a line, at once.
    fn say(&mut self, line: &str) {
        let mut out = output::stdout();
        let said = writeln!(out, "{}", Printable(line)).and_then(|()| out.flush());
        if self.0.is_ok() {
            self.0 = said;
        }
    }
}

impl Attempt<'_> {
    fn now_us(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Says what happens now.
    fn step(&mut self, what: &str) {
        let now = self.now_us();
        self.told.say(&format!("{:5}.{:03} ms  {what}", now / 1_000, now % 1_000));
    }

    fn run(mut self) -> Result<End> {
        let mut bytes = [0; MESSAGE_MAX];
        loop {
            self.transmit()?;
            if self.is_done() {
                break;
            }
            let left = self.until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(if self.answered { End::NotStored } else { End::Silent(false) });
            }
            let due = self.machine.poll_timeout().unwrap_or(u64::MAX).saturating_sub(self.now_us());
            match self.line.hear(left.min(Duration::from_micros(due)), &mut bytes) {
                Ok(Heard::Nothing) => {}
                Ok(Heard::Message(len)) => self.handle(&mut bytes[..len]),
                Ok(Heard::End) => {
                    self.step("<- the gateway closes the connection");
                    return Ok(if self.answered { End::NotStored } else { End::Silent(true) });
                }
                Err(error) => return Ok(End::Unreachable(error)),
            }
        }
        self.machine.close();
        self.transmit()?;
        self.step("done");
        Ok(End::Done)
    }

    /// Whether the reading is stored, or without one the channel stands and nothing waits.
    fn is_done(&mut self) -> bool {
        let now = self.now_us();
        self.answered && !self.owed && self.machine.may_sleep(now)
    }

    fn transmit(&mut self) -> Result<()> {
        let mut out = [0; MESSAGE_MAX];
        loop {
            let now = self.now_us();
            if self.machine.poll_timeout().is_none_or(|due| due > now) {
                return Ok(());
            }
            let Some(len) = self.machine.poll_transmit(now, &mut out) else {
                if let Some(failure) = self.machine.poll_failure() {
                    bail!(
                        "{failure}: the file of the counter, beside the credential, is in use by another program, or cannot be written"
                    );
                }
                return Ok(());
            };
            let what = match Kind::of(&out[..len]) {
                Ok(Kind::Hello) if self.owed => "HELLO, the reading in it",
                Ok(Kind::Hello) => "HELLO",
                _ => "a record",
            };
            self.step(&format!("-> {what}, {len} bytes"));
            self.line.send(&out[..len]);
        }
    }

    fn handle(&mut self, message: &mut [u8]) {
        let (now, len) = (self.now_us(), message.len());
        let kind = Kind::of(message);
        let mut command = None;
        let what = match self.machine.handle_message(now, message) {
            Ok(Event::Opened) => {
                self.answered = true;
                "ACCEPT: it holds its certificate's key and knows this device; the channel stands"
                    .to_owned()
            }
            Ok(Event::Command { command: number, payload }) => {
                command = Some(number);
                format!("command {number}: {}", payload.escape_ascii())
            }
            Ok(Event::Nothing) if kind == Ok(Kind::Retry) => {
                "RETRY: it is busy, and wants the HELLO once more, a little later".to_owned()
            }
            Ok(Event::Nothing) if kind == Ok(Kind::Challenge) => format!(
                "CHALLENGE: this device's counter was below the gateway's mark; it goes on with {}",
                self.machine.fresh()
            ),
            Ok(Event::NothingWaits) => "nothing waits for this device".to_owned(),
            Ok(Event::Confirmed) => "an acknowledgment".to_owned(),
            Ok(Event::Closed) => "the gateway ends the session".to_owned(),
            Ok(Event::Lost | Event::Doubted) => {
                "RESET: the gateway has lost the session".to_owned()
            }
            Ok(Event::Nothing | Event::Delivered) => "a record".to_owned(),
            Err(Error::Discarded(reason)) => format!("discarded: {}", meaning(reason)),
            Err(error) => format!("not understood: {error}"),
        };
        self.step(&format!("<- {what}, {len} bytes"));
        if let Some(number) = command {
            self.machine.send_result(number, u8::MAX, b"duet device try carries nothing out");
        }
        while let Some(stored) = self.machine.poll_confirmed() {
            self.owed = false;
            let id = stored.id;
            // As `duet spool cat` names it.
            self.step(&format!("stored: hello {}, sequence {}", Hex(&id.hello), id.sequence));
        }
        if !self.owed && self.machine.is_open() {
            // What else waits comes now, before the channel is closed.
            self.machine.rest(now);
        }
    }
}

/// What a reason for which a message was discarded says of the gateway.
fn meaning(reason: DropReason) -> String {
    match reason {
        DropReason::AcceptOpen => {
            "this ACCEPT is not by the gateway whose certificate the credential holds, or not for this device".to_owned()
        }
        reason => format!("{reason}: not from a gateway, or not for this device"),
    }
}
