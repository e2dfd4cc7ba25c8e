//! NATS JetStream: each batch is a message with its name as `Nats-Msg-Id`, so that the stream knows
//! a repeated one.
//!
//! The client is made for one connection. It would reconnect by itself and publish again what lay
//! in its queue, older than what is sent meanwhile; therefore its only way back is closed: after the first
//! connection it is led to an address that nobody can listen on, gives up, and its queue with it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::jetstream::context::{ContextBuilder, PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::{Config, DiscardPolicy, PersistenceMode, StorageType};
use async_nats::jetstream::{Context, ErrorCode};
use async_nats::{
    Client, ConnectError, ConnectErrorKind, ConnectOptions, HeaderMap, ReconnectToServer,
    ServerAddr,
};

use super::{Answer, Cause, Failure, Link, Local, Message, net};
use crate::encode::Format;
use crate::settings::{Address, Upstream};
use crate::template::Template;
use crate::text;

/// Port 0 is no place to connect to, anywhere.
const NOWHERE: &str = "nats://127.0.0.1:0";
/// Commands that may lie between us and the client's connection.
const QUEUE: usize = 16;

/// A connection to a NATS server.
pub(crate) struct Nats {
    context: Context,
    at: String,
    format: Format,
    worth: String,
}

impl Nats {
    /// Connects, finds the stream and reads what it promises.
    pub(crate) async fn connect(
        upstream: &Upstream,
        address: &Address,
        subject: &Template,
    ) -> Result<Self, Failure> {
        let at = address.authority();
        let client = client(upstream, address, format!("duet {}", upstream.name)).await?;
        let version = client.server_info().version;
        let context = ContextBuilder::new()
            .timeout(upstream.answer_timeout)
            .ack_timeout(upstream.answer_timeout)
            .max_ack_inflight(4_096)
            .build(client);
        let worth = worth(&context, &at, &version, subject).await?;
        Ok(Self { context, at, format: upstream.format, worth })
    }
}

/// A client for one connection, known at the server by this name.
pub(crate) async fn client(
    upstream: &Upstream,
    address: &Address,
    name: String,
) -> Result<Client, Failure> {
    let at = address.authority();
    let connected = Arc::new(AtomicBool::new(false));
    let options = options(upstream, name, Arc::clone(&connected)).await?;
    let options = if address.secure {
        options.tls_client_config(net::client_config(&upstream.tls)?).require_tls(true)
    } else {
        options
    };
    let server = |url: &str| {
        url.parse::<ServerAddr>()
            .map_err(|error| Failure::new(Cause::Setting, format!("{url}: {error}")))
    };
    let scheme = if address.secure { "tls" } else { "nats" };
    let servers = [server(&format!("{scheme}://{at}"))?, server(NOWHERE)?];
    let client = options.connect(&servers[..]).await.map_err(|error| refused(&at, &error))?;
    connected.store(true, Ordering::Relaxed);
    Ok(client)
}

async fn options(
    upstream: &Upstream,
    name: String,
    connected: Arc<AtomicBool>,
) -> Result<ConnectOptions, Failure> {
    let mut options =
        ConnectOptions::new()
            .name(name)
            .no_echo()
            .client_capacity(QUEUE)
            .connection_timeout(upstream.answer_timeout)
            .request_timeout(Some(upstream.answer_timeout))
            .ping_interval(Duration::from_secs(10))
            .max_reconnects(1)
            .ignore_discovered_servers()
            .retain_servers_order()
            .reconnect_to_server_callback(move |servers, _| {
                let place = usize::from(connected.load(Ordering::Relaxed));
                let server = servers.into_iter().nth(place);
                std::future::ready(server.map(|server| ReconnectToServer {
                    addr: server.addr,
                    delay: Some(Duration::ZERO),
                }))
            });
    let credentials = &upstream.credentials;
    if let Some(path) = &credentials.credentials_file {
        net::private(path)?;
        options = options.credentials_file(path).await.map_err(|error| {
            Failure::new(Cause::Credentials, format!("{}: {error}", path.display()))
        })?;
    }
    if let Some(path) = &credentials.token_file {
        options = options.token(net::secret(path)?.to_string());
    }
    if let (Some(user), Some(path)) = (&credentials.user, &credentials.password_file) {
        options = options.user_and_password(user.clone(), net::secret(path)?.to_string());
    }
    Ok(options)
}

/// Why the first connection was not made.
fn refused(at: &str, error: &ConnectError) -> Failure {
    let cause = match error.kind() {
        ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
            Cause::Credentials
        }
        ConnectErrorKind::Tls => Cause::Tls,
        ConnectErrorKind::TimedOut => Cause::Timeout,
        ConnectErrorKind::ServerParse => Cause::Setting,
        ConnectErrorKind::Dns | ConnectErrorKind::Io | ConnectErrorKind::MaxReconnects => {
            Cause::Connection
        }
    };
    Failure::new(cause, format!("{at}: {}", text::printable(error.to_string().as_bytes())))
}

/// Finds the stream for the subject and says what its acknowledgement survives.
async fn worth(
    context: &Context,
    at: &str,
    version: &str,
    subject: &Template,
) -> Result<String, Failure> {
    let sample = subject.fill("device", 0);
    let unknown = || {
        Ok(format!(
            "{at} (nats-server {version}): the stream's settings cannot be read, so what an acknowledgement survives is not known"
        ))
    };
    // Not allowed to ask: publishing may be allowed all the same.
    let Some(name) = stream_for(context, at, &sample).await? else { return unknown() };
    let Ok(stream) = context.get_stream(&name).await else { return unknown() };
    let config = &stream.cached_info().config;
    if config.no_ack {
        let text = format!("{at}: stream {name} acknowledges nothing (no_ack): set it to false");
        return Err(Failure::new(Cause::Setting, text));
    }
    Ok(format!("{at} (nats-server {version}), stream {name}: {}", promises(config)))
}

/// The stream that takes a subject; `None` where we may not ask.
pub(crate) async fn stream_for(
    context: &Context,
    at: &str,
    subject: &str,
) -> Result<Option<String>, Failure> {
    use async_nats::jetstream::context::GetStreamByNameErrorKind as Kind;
    match context.stream_by_subject(subject).await {
        Ok(name) => Ok(Some(name)),
        Err(error) if error.kind() == Kind::NotFound => {
            let text = format!(
                "{at}: no stream takes subject {subject}; make one, as `nats stream add --subjects '{subject}'` does"
            );
            Err(Failure::new(Cause::Setting, text))
        }
        Err(error) if error.to_string().contains("timed out") => Ok(None),
        Err(error) => {
            let text =
                format!("{at}: asking for the stream of {subject}: {error}; is JetStream enabled?");
            Err(Failure::new(Cause::Setting, text))
        }
    }
}

/// In words, what a stream with these settings promises.
fn promises(config: &Config) -> String {
    let mut said = vec![];
    if config.persist_mode == Some(PersistenceMode::Async) {
        said.push("persist_mode async: an acknowledgement comes before the write and survives nothing, whatever sync_interval says".to_owned());
    } else if config.storage == StorageType::Memory {
        said.push("in memory: what is acknowledged survives no restart of the server".to_owned());
    } else if config.num_replicas > 1 {
        said.push(format!(
            "on {} servers: survives the crash of one; a power cut of all may take the last two minutes unless they have sync_interval: always",
            config.num_replicas
        ));
    } else {
        said.push("survives a crash of the server; a power cut may take the last two minutes unless it has sync_interval: always".to_owned());
    }
    let limited =
        config.max_bytes > 0 || config.max_messages > 0 || config.max_messages_per_subject > 0;
    if limited && config.discard == DiscardPolicy::Old {
        said.push(
            "its limits remove the oldest messages, delivered or not (discard: old)".to_owned(),
        );
    }
    if !config.max_age.is_zero() {
        said.push(format!("it removes messages after {} s", config.max_age.as_secs()));
    }
    if !config.duplicate_window.is_zero() {
        said.push(format!("it knows repeated batches for {} s", config.duplicate_window.as_secs()));
    }
    said.join("; ")
}

impl Link for Nats {
    fn submit(&mut self, message: Message) -> Local<'_, Result<Local<'static, Answer>, Failure>> {
        Box::pin(async move {
            let mut headers = HeaderMap::new();
            for (name, value) in message.headers() {
                headers.insert(name, value);
            }
            headers.insert("Content-Type", self.format.media_type());
            let publish = PublishMessage::build()
                .headers(headers)
                .message_id(message.name())
                .payload(message.body);
            let at = self.at.clone();
            let answer: Local<'static, Answer> =
                match self.context.send_publish(message.address, publish).await {
                    Ok(ack) => Box::pin(async move {
                        match ack.await {
                            Ok(ack) if ack.duplicate => Answer::Duplicate,
                            Ok(_) => Answer::Delivered,
                            Err(error) => judge(&at, &error),
                        }
                    }),
                    Err(error) => Box::pin(std::future::ready(judge(&at, &error))),
                };
            Ok(answer)
        })
    }

    fn worth(&self) -> String {
        self.worth.clone()
    }
}

/// What a refusal means.
fn judge(at: &str, error: &PublishError) -> Answer {
    use std::error::Error;
    let coded =
        error.source().and_then(|source| source.downcast_ref::<async_nats::jetstream::Error>());
    let said = match coded {
        Some(coded) => format!("{at}: {}", text::printable(coded.to_string().as_bytes())),
        None => format!("{at}: {error}"),
    };
    let failed = |cause| Answer::Failed(Failure::new(cause, said.clone()));
    match (error.kind(), coded.map(async_nats::jetstream::Error::error_code)) {
        (_, Some(ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM))
        | (PublishErrorKind::MaxPayloadExceeded, _) => Answer::Refused(said),
        (PublishErrorKind::StreamNotFound, _) => failed(Cause::Setting),
        (PublishErrorKind::TimedOut, _) => failed(Cause::Timeout),
        (_, Some(_)) => failed(Cause::Busy),
        (_, None) => failed(Cause::Connection),
    }
}
