//! A connection to an upstream, and what it answers.
//!
//! Owns the words that all kinds share. A link sends what it is given in the order in which it is
//! given it, keeps nothing for later, repeats nothing and never reconnects: a link that fails is
//! dropped with all that was on its way, and the window says what is sent over the next one.

#[cfg(feature = "postgres")]
mod bounded;
pub(crate) mod file;
#[cfg(feature = "kafka")]
pub(crate) mod kafka;
pub(crate) mod mqtt;
pub(crate) mod nats;
pub(crate) mod net;
#[cfg(feature = "postgres")]
pub(crate) mod postgres;
pub(crate) mod webhook;

use std::borrow::Cow;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::FutureExt;

use crate::batch::BatchId;
use crate::settings::{Target, Upstream};
use crate::text;

/// A future without a name, on this thread.
pub(crate) type Local<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// A batch, or the part of one that goes to one address.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    /// The batch that it is of.
    pub(crate) id: BatchId,
    /// Readings in it.
    pub(crate) count: usize,
    /// The last index before the batch that this upstream has.
    pub(crate) previous_last: Option<u64>,
    /// Subject or topic; empty where the upstream has but one place.
    pub(crate) address: String,
    /// Whether other messages of this batch go elsewhere.
    pub(crate) part: bool,
    /// Whether the body is compressed.
    pub(crate) zstd: bool,
    pub(crate) body: Bytes,
}

impl Message {
    /// A name under which an upstream may know that it has this already.
    pub(crate) fn name(&self) -> String {
        if self.part { format!("{}:{}", self.id, self.address) } else { self.id.to_string() }
    }

    /// What the batch says of itself, beside the readings.
    pub(crate) fn headers(&self) -> impl Iterator<Item = (&'static str, String)> {
        let range = self.id.range;
        [
            ("Duet-Spool", Some(self.id.spool.to_string())),
            ("Duet-First", Some(range.first.to_string())),
            ("Duet-Last", Some(range.last.to_string())),
            ("Duet-Count", Some(self.count.to_string())),
            ("Duet-Previous-Last", self.previous_last.map(|last| last.to_string())),
            ("Content-Encoding", self.zstd.then(|| "zstd".to_owned())),
        ]
        .into_iter()
        .filter_map(|(name, value)| value.map(|value| (name, value)))
    }
}

/// What became of a message.
#[derive(Debug)]
pub(crate) enum Answer {
    /// The upstream has it.
    Delivered,
    /// The upstream had it before.
    Duplicate,
    /// It will not take this, however often it comes; what it said.
    Refused(String),
    /// It may have it or not.
    Failed(Failure),
    /// It was submitted behind one that was refused, and is no longer waited for.
    #[cfg_attr(
        not(feature = "postgres"),
        allow(dead_code, reason = "only said by what keeps order")
    )]
    Void,
}

/// What an upstream is known to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    /// The last index; `None` where it has none.
    pub(crate) last: Option<u64>,
    /// It is right also where our own cursor is further.
    pub(crate) decides: bool,
}

/// Why readings do not leave, by kind, for the counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// Nobody answers there, or the connection broke.
    Connection,
    /// The other side is not who it should be, or does not believe us.
    Tls,
    /// It does not know us, or does not let us.
    Credentials,
    /// It did not answer in time.
    Timeout,
    /// It is there and cannot now.
    Busy,
    /// It does not understand us: a setting is wrong.
    Setting,
    /// A file of ours.
    File,
}

impl Cause {
    pub(crate) const ALL: [Self; 7] = [
        Self::Connection,
        Self::Tls,
        Self::Credentials,
        Self::Timeout,
        Self::Busy,
        Self::Setting,
        Self::File,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Connection => "connection",
            Self::Tls => "tls",
            Self::Credentials => "credentials",
            Self::Timeout => "timeout",
            Self::Busy => "busy",
            Self::Setting => "setting",
            Self::File => "file",
        }
    }
}

/// Why a link ended, or was not made.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) cause: Cause,
    /// For people: where, what, and what to do where that is known.
    pub(crate) text: Cow<'static, str>,
    /// Not to be tried again before.
    pub(crate) retry_after: Option<Duration>,
}

impl Failure {
    pub(crate) fn new(cause: Cause, text: impl Into<Cow<'static, str>>) -> Self {
        let mut text = text.into();
        // Others said some of it, and may have put lines into it that look like ours.
        if text.contains(char::is_control) {
            text = text::on_one_line(&text).into();
        }
        // What `openssl req -x509` makes where nothing else is said; the TLS library names its own constant.
        if text.contains("CaUsedAsEndEntity") {
            text.to_mut().push_str(
                "; it shows a certificate of a CA (basicConstraints CA:TRUE) as its own, which TLS does not take: make \
                 the server's with CA:FALSE",
            );
        }
        Self { cause, text, retry_after: None }
    }
}

/// Works with a connection. Where a library panics at what the other side says, that ends the connection, and not the
/// upstream: the other side may say anything.
pub(crate) async fn guarded<T>(
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    AssertUnwindSafe(work).catch_unwind().await.unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str);
        let said = said.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic");
        let text = format!("the connection ended by a fault of this program: {said}");
        Err(Failure::new(Cause::Connection, text))
    })
}

/// A connection.
pub(crate) trait Link {
    /// Puts a message on its way. The outer future ends when it is (which takes as long as the
    /// upstream lets us wait), the inner one with the answer.
    fn submit(&mut self, message: Message) -> Local<'_, Result<Local<'static, Answer>, Failure>>;

    /// What an answer of this upstream is worth, as far as it can be known.
    fn worth(&self) -> String;

    /// What the upstream is known to have, where it can tell.
    fn resume(&self) -> Option<Known> {
        None
    }

    /// A refusal was heard of. True where all that was submitted behind the refused message is void now, since this
    /// upstream takes messages in their order only.
    fn refusal_heard(&mut self) -> bool {
        false
    }

    /// The most bytes that one message may have.
    fn message_max(&self) -> usize {
        usize::MAX
    }
}

/// Makes a connection to an upstream.
pub(crate) async fn connect(
    upstream: &Upstream,
    spool: crate::SpoolId,
) -> Result<Box<dyn Link>, Failure> {
    match &upstream.target {
        Target::File { dir, bytes, age } => {
            let link = file::FileLink::open(&upstream.name, dir, *bytes, *age, spool).await?;
            Ok(Box::new(link))
        }
        Target::Webhook { address } => {
            Ok(Box::new(webhook::Webhook::connect(upstream, address.clone()).await?))
        }
        Target::Nats { address, subject } => {
            Ok(Box::new(nats::Nats::connect(upstream, address, subject).await?))
        }
        Target::Mqtt { address, client_id, accept_no_subscriber, .. } => {
            let link = mqtt::Mqtt::connect(upstream, address, client_id, *accept_no_subscriber);
            Ok(Box::new(link.await?))
        }
        #[cfg(feature = "postgres")]
        Target::Postgres { address, database, table } => {
            let names = (database.as_str(), table.as_str());
            Ok(Box::new(postgres::Postgres::connect(upstream, address, names, spool).await?))
        }
        #[cfg(not(feature = "postgres"))]
        Target::Postgres { .. } => Err(missing("postgres")),
        #[cfg(feature = "kafka")]
        Target::Kafka { brokers, topic } => {
            Ok(Box::new(kafka::Kafka::connect(upstream, brokers, topic).await?))
        }
        #[cfg(not(feature = "kafka"))]
        Target::Kafka { .. } => Err(missing("kafka")),
    }
}

/// The settings are refused before anything gets here.
#[cfg(not(all(feature = "postgres", feature = "kafka")))]
fn missing(feature: &str) -> Failure {
    Failure::new(Cause::Setting, format!("this program was built without {feature}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_ends_a_connection_and_no_more() {
        let end = std::hint::black_box(5);
        let failed = guarded(async {
            tokio::task::yield_now().await;
            Ok(b"-ERR"[..end].len())
        });
        let failure = failed.await.unwrap_err();
        assert!(failure.text.contains("index 5 out of range"), "{}", failure.text);
        assert_eq!(guarded(async { Ok(7) }).await.unwrap(), 7);
    }
}
