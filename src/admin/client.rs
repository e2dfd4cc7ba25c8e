//! The commands' side of the API: one method per endpoint, each with a time limit of its own.

use std::path::Path;
use std::time::Duration;

use duet_control::{Method, segment};
use serde::de::DeserializeOwned;
use thiserror::Error;
use zeroize::Zeroizing;

use super::access::Role;
use super::api::{
    Added, CommandRequest, CommandResult, Copied, Ended, EndedAll, LogLevel, Made, NewCommand,
    NewToken, QueuedCommand,
};
use super::devices::End;
use super::enrol::{EnrolTokenInfo, MadeToken, NewEnrolToken};
use super::tokens::TokenInfo;
use super::wire::{DeviceChange, DeviceInfo, DeviceLine, GatewayFacts, Refused};
use super::{DeviceQuery, Moment, Problem, Reloaded, Status};
use crate::commands::CommandInfo;
use crate::log::Level;

/// How long the gateway may take to say how it is; it answers from memory.
const STATUS_LIMIT: Duration = Duration::from_secs(5);
/// How long a change may take, or a page of a list: the disk may be busy.
const CHANGE_LIMIT: Duration = Duration::from_secs(60);
/// How long an import may take, or a backup. Whether anybody listens is found out before.
const IMPORT_LIMIT: Duration = Duration::from_secs(600);
/// How long the gateway may take beyond a command's own limit.
const COMMAND_SLACK: Duration = Duration::from_secs(10);

/// Why there is no answer, or no good one.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The gateway did not answer.
    #[error(transparent)]
    Control(#[from] duet_control::Error),
    /// It refused.
    #[error("{0}")]
    Refused(Problem),
    /// Its answer is none.
    #[error("unexpected answer from the gateway; does `duet --version` match the one that runs?")]
    Answer,
}

/// How a command is queued.
#[derive(Clone, Debug, Default)]
pub struct How {
    /// How long it may wait for its result; without it, what the gateway's settings say.
    pub ttl: Option<Duration>,
    /// Its idempotency key.
    pub key: Option<String>,
    /// Its collapse key.
    pub collapse: Option<String>,
}

/// A connection to the gateway that runs on a state directory.
#[derive(Debug)]
pub struct Client(duet_control::Client);

impl Client {
    /// Connects; `None` if no gateway runs there.
    ///
    /// # Errors
    /// When a gateway seems to run and cannot be asked.
    pub fn connect(state: &Path) -> Result<Option<Self>, ClientError> {
        Ok(duet_control::Client::connect(state)?.map(Self))
    }

    /// How the gateway is.
    ///
    /// # Errors
    /// [`ClientError`], within seconds.
    pub fn status(&mut self) -> Result<Status, ClientError> {
        self.ask(Method::GET, "/v1/status", Vec::new(), STATUS_LIMIT)
    }

    /// What the gateway does at the moment.
    ///
    /// # Errors
    /// [`ClientError`], within seconds.
    pub fn moment(&mut self) -> Result<Moment, ClientError> {
        self.ask(Method::GET, "/v1/activity", Vec::new(), STATUS_LIMIT)
    }

    /// Has it take changed settings.
    ///
    /// # Errors
    /// [`ClientError::Refused`] says what is wrong with them; nothing was changed then.
    pub fn reload(&mut self) -> Result<Reloaded, ClientError> {
        self.ask(Method::POST, "/v1/config/reload", Vec::new(), CHANGE_LIMIT)
    }

    /// From which level on it logs; with `level`, from now on.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn log_level(&mut self, level: Option<Level>) -> Result<Level, ClientError> {
        let (method, body) = match level {
            None => (Method::GET, Vec::new()),
            Some(level) => {
                let body = serde_json::to_vec(&LogLevel { level });
                (Method::PUT, body.map_err(|_| ClientError::Answer)?)
            }
        };
        let LogLevel { level } = self.ask(method, "/v1/log/level", body, STATUS_LIMIT)?;
        Ok(level)
    }

    /// Has a copy of the registry put beside it, which is there until `take` has returned.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn backup<T>(mut self, take: impl FnOnce(&Path) -> T) -> Result<T, ClientError> {
        self.status()?;
        let taken = self.0.hold(Method::POST, "/v1/backup", IMPORT_LIMIT, |line| {
            let copied = serde_json::from_slice::<Copied>(line);
            copied.map(|copied| take(Path::new(&copied.path)))
        });
        match taken? {
            Ok(taken) => taken.map_err(|_| ClientError::Answer),
            Err(answer) => Err(refusal(&answer)),
        }
    }

    /// Makes a token; it is shown this once.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn add_token(
        &mut self,
        name: &str,
        role: Role,
        valid_s: u32,
    ) -> Result<Zeroizing<String>, ClientError> {
        let wanted = NewToken { name: name.to_owned(), role, valid_s };
        let body = serde_json::to_vec(&wanted).map_err(|_| ClientError::Answer)?;
        let mut made: Made = self.ask(Method::POST, "/v1/tokens", body, CHANGE_LIMIT)?;
        Ok(Zeroizing::new(std::mem::take(&mut made.token)))
    }

    /// All tokens.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn tokens(&mut self) -> Result<Vec<TokenInfo>, ClientError> {
        self.ask(Method::GET, "/v1/tokens", Vec::new(), CHANGE_LIMIT)
    }

    /// Ends a token.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn revoke_token(&mut self, name: &str) -> Result<TokenInfo, ClientError> {
        let target = format!("/v1/tokens/{}", segment(name));
        self.ask(Method::DELETE, &target, Vec::new(), CHANGE_LIMIT)
    }

    /// Makes an enrolment token; it is shown this once.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn add_enrol_token(&mut self, wanted: &NewEnrolToken) -> Result<MadeToken, ClientError> {
        let body = serde_json::to_vec(wanted).map_err(|_| ClientError::Answer)?;
        self.ask(Method::POST, "/v1/enrolment-tokens", body, CHANGE_LIMIT)
    }

    /// All enrolment tokens.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn enrol_tokens(&mut self) -> Result<Vec<EnrolTokenInfo>, ClientError> {
        self.ask(Method::GET, "/v1/enrolment-tokens", Vec::new(), CHANGE_LIMIT)
    }

    /// Ends an enrolment token.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn revoke_enrol_token(&mut self, id: &str) -> Result<(), ClientError> {
        let target = format!("/v1/enrolment-tokens/{}", segment(id));
        let answer = self.0.call(Method::DELETE, &target, Vec::new(), CHANGE_LIMIT)?;
        if answer.status.is_success() { Ok(()) } else { Err(refusal(&answer)) }
    }

    /// Registers devices, all or none. Returns how many.
    ///
    /// # Errors
    /// [`ClientError::Refused`] names the device at fault.
    pub fn add(&mut self, lines: &[DeviceLine]) -> Result<usize, ClientError> {
        let body = ndjson(lines)?;
        let Added { count, .. } = self.ask(Method::POST, "/v1/devices", body, IMPORT_LIMIT)?;
        Ok(count)
    }

    /// Finds out which devices would be refused; registers none.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn check(&mut self, lines: &[DeviceLine]) -> Result<Vec<Refused>, ClientError> {
        let body = ndjson(lines)?;
        let added: Added =
            self.ask(Method::POST, "/v1/devices?dry_run=true", body, IMPORT_LIMIT)?;
        Ok(added.refused)
    }

    /// What devices need to know of the gateway.
    ///
    /// # Errors
    /// [`ClientError`], within seconds.
    pub fn facts(&mut self) -> Result<GatewayFacts, ClientError> {
        self.ask(Method::GET, "/v1/gateway", Vec::new(), STATUS_LIMIT)
    }

    /// Ends the right to connect of several devices, all or none. Returns how many.
    ///
    /// # Errors
    /// [`ClientError::Refused`] names the device at fault.
    pub fn end_all(&mut self, names: &[String], how: End) -> Result<usize, ClientError> {
        let target = match how {
            End::Revoke => "/v1/revocations",
            End::Remove => "/v1/removals",
        };
        let body = names.join("\n").into_bytes();
        let EndedAll { count } = self.ask(Method::POST, target, body, IMPORT_LIMIT)?;
        Ok(count)
    }

    /// Hands on the lines that register all devices elsewhere.
    ///
    /// # Errors
    /// [`ClientError`], or the first error of `each`.
    pub fn export<E: From<ClientError>>(
        &mut self,
        with_keys: bool,
        each: impl FnMut(DeviceLine) -> Result<(), E>,
    ) -> Result<(), E> {
        self.lines(&format!("/v1/export?with_keys={with_keys}"), each)
    }

    /// Hands the devices on that are wanted, in the order of their names.
    ///
    /// # Errors
    /// [`ClientError`], or the first error of `each`.
    pub fn list<E: From<ClientError>>(
        &mut self,
        query: &DeviceQuery,
        each: impl FnMut(DeviceInfo) -> Result<(), E>,
    ) -> Result<(), E> {
        self.lines(&query.target("/v1/devices"), each)
    }

    fn lines<T: DeserializeOwned, E: From<ClientError>>(
        &mut self,
        target: &str,
        mut each: impl FnMut(T) -> Result<(), E>,
    ) -> Result<(), E> {
        let refused = self.0.lines(target, CHANGE_LIMIT, |line| {
            let value = serde_json::from_slice(line);
            each(value.map_err(|_| Listing::Client(ClientError::Answer))?).map_err(Listing::Ours)
        });
        match refused {
            Ok(None) => Ok(()),
            Ok(Some(answer)) => Err(refusal(&answer).into()),
            Err(Listing::Control(error)) => Err(ClientError::from(error).into()),
            Err(Listing::Client(error)) => Err(error.into()),
            Err(Listing::Ours(error)) => Err(error),
        }
    }

    /// One device.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn show(&mut self, name: &str) -> Result<DeviceInfo, ClientError> {
        let target = format!("/v1/devices/{}", segment(name));
        self.ask(Method::GET, &target, Vec::new(), CHANGE_LIMIT)
    }

    /// Changes what is said of a device.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn relabel(
        &mut self,
        name: &str,
        change: &DeviceChange,
    ) -> Result<DeviceInfo, ClientError> {
        let body = serde_json::to_vec(change).map_err(|_| ClientError::Answer)?;
        let target = format!("/v1/devices/{}", segment(name));
        self.ask(Method::PATCH, &target, body, CHANGE_LIMIT)
    }

    /// Gives a device a new credential; the old one stays good until the new one was used, at most for `grace_s`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn renew(&mut self, line: &DeviceLine, grace_s: u32) -> Result<DeviceInfo, ClientError> {
        let body = ndjson(std::slice::from_ref(line))?;
        let target = format!("/v1/devices/{}/renew?grace_s={grace_s}", segment(&line.name));
        self.ask(Method::POST, &target, body, CHANGE_LIMIT)
    }

    /// Ends a device's right to connect. Returns its id.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn end(&mut self, name: &str, how: End) -> Result<String, ClientError> {
        let name = segment(name);
        let (method, target) = match how {
            End::Revoke => (Method::POST, format!("/v1/devices/{name}/revoke")),
            End::Remove => (Method::DELETE, format!("/v1/devices/{name}")),
        };
        let Ended { id } = self.ask(method, &target, Vec::new(), CHANGE_LIMIT)?;
        Ok(id)
    }

    /// Has a device carry out a command; payload and result are hexadecimal.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn command(
        &mut self,
        name: &str,
        payload: String,
        timeout: Duration,
    ) -> Result<String, ClientError> {
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        let request = CommandRequest { payload, timeout_ms };
        let body = serde_json::to_vec(&request).map_err(|_| ClientError::Answer)?;
        let target = format!("/v1/devices/{}/command", segment(name));
        let limit = timeout.saturating_add(COMMAND_SLACK);
        let CommandResult { payload } = self.ask(Method::POST, &target, body, limit)?;
        Ok(payload)
    }

    /// Queues a command; its payload is hexadecimal. Says how it is, and whether it was there already.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn queue(
        &mut self,
        name: &str,
        payload: String,
        how: How,
    ) -> Result<(CommandInfo, bool), ClientError> {
        let How { ttl, key, collapse } = how;
        let ttl_ms = ttl.map(|ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX));
        let request = NewCommand { payload, ttl_ms, key, collapse };
        let body = serde_json::to_vec(&request).map_err(|_| ClientError::Answer)?;
        let target = format!("/v1/devices/{}/commands", segment(name));
        let QueuedCommand { command, known } =
            self.ask(Method::POST, &target, body, CHANGE_LIMIT)?;
        Ok((command, known))
    }

    /// Hands commands on in the order in which they were queued: of one device, or those that are not over, or all.
    ///
    /// # Errors
    /// [`ClientError`], or the first error of `each`.
    pub fn commands<E: From<ClientError>>(
        &mut self,
        device: Option<&str>,
        open: bool,
        mut each: impl FnMut(CommandInfo) -> Result<(), E>,
    ) -> Result<(), E> {
        let device = device.map(|name| format!("&device={}", segment(name))).unwrap_or_default();
        let mut after = 0;
        loop {
            let (mut last, target) =
                (after, format!("/v1/commands?open={open}&after={after}{device}"));
            self.lines(&target, |command: CommandInfo| {
                last = command.id;
                each(command)
            })?;
            if last == after {
                return Ok(());
            }
            after = last;
        }
    }

    /// One command.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn show_command(&mut self, id: u64) -> Result<CommandInfo, ClientError> {
        self.ask(Method::GET, &format!("/v1/commands/{id}"), Vec::new(), CHANGE_LIMIT)
    }

    /// Cancels a command.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn cancel_command(&mut self, id: u64) -> Result<CommandInfo, ClientError> {
        self.ask(Method::DELETE, &format!("/v1/commands/{id}"), Vec::new(), CHANGE_LIMIT)
    }

    fn ask<T: DeserializeOwned>(
        &mut self,
        method: Method,
        target: &str,
        body: Vec<u8>,
        limit: Duration,
    ) -> Result<T, ClientError> {
        if limit > CHANGE_LIMIT {
            self.status()?;
        }
        let answer = self.0.call(method, target, body, limit)?;
        if !answer.status.is_success() {
            return Err(refusal(&answer));
        }
        serde_json::from_slice(&answer.body).map_err(|_| ClientError::Answer)
    }
}

/// Whose error ended a list.
enum Listing<E> {
    Control(duet_control::Error),
    Client(ClientError),
    Ours(E),
}

impl<E> From<duet_control::Error> for Listing<E> {
    fn from(error: duet_control::Error) -> Self {
        Self::Control(error)
    }
}

impl<E> From<ClientError> for Listing<E> {
    fn from(error: ClientError) -> Self {
        Self::Client(error)
    }
}

fn refusal(answer: &duet_control::Answer) -> ClientError {
    match serde_json::from_slice(&answer.body) {
        Ok(problem) => ClientError::Refused(problem),
        Err(_) => ClientError::Answer,
    }
}

fn ndjson(lines: &[DeviceLine]) -> Result<Vec<u8>, ClientError> {
    // Sized beforehand: a vector that grows leaves copies of keys behind.
    let mut body = Vec::with_capacity(lines.iter().map(size).sum());
    for line in lines {
        serde_json::to_writer(&mut body, line).map_err(|_| ClientError::Answer)?;
        body.push(b'\n');
    }
    Ok(body)
}

/// The most that a line takes as JSON: every character of a certificate in PEM may be escaped.
fn size(line: &DeviceLine) -> usize {
    let optional = |text: &Option<String>| text.as_ref().map_or(0, String::len);
    let DeviceLine { name, mode, certificate, id, key, key_sources, .. } = line;
    let labels = optional(&line.tags) + optional(&line.group) + optional(&line.expires);
    let fields = name.len() + mode.len() + optional(id) + optional(key) + optional(key_sources);
    192 + 6 * labels + 6 * fields + 2 * optional(certificate)
}
