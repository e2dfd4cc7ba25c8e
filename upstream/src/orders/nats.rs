//! Commands from a JetStream: a durable consumer, so that what is sent while the gateway is away waits in the stream.

use std::convert::Infallible;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::AckKind;
use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use async_nats::jetstream::context::ContextBuilder;
use futures_util::stream::{FuturesOrdered, StreamExt};

use super::{KEY_MAX, Listener, Taken, WINDOW};
use crate::link::nats::{self, stream_for};
use crate::link::{Cause, Failure};
use crate::settings::Address;
use crate::text;

/// A stream that says nothing for twice as long is gone.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// What is not acknowledged for so long comes again.
const ACK_WAIT: Duration = Duration::from_secs(5);
/// How much longer the server may take to notice that.
const MARGIN: Duration = Duration::from_millis(500);
/// Where a sender wants the answer.
const REPLY: &str = "Duet-Reply";

impl Listener {
    pub(super) async fn nats(&mut self, address: &Address) -> Result<Infallible, Failure> {
        let (at, subject) =
            (address.authority(), self.upstream.commands.clone().unwrap_or_default());
        let name = format!("duet {} commands", self.upstream.name);
        let client = nats::client(&self.upstream, address, name).await?;
        let context =
            ContextBuilder::new().timeout(self.upstream.answer_timeout).build(client.clone());
        let Some(stream) = stream_for(&context, &at, &subject).await? else {
            let text = format!(
                "{at}: not allowed to ask for the stream of {subject}, which has the commands"
            );
            return Err(Failure::new(Cause::Credentials, text));
        };
        let failed = |what: &str, error: &dyn std::fmt::Display| {
            let said = text::printable(error.to_string().as_bytes());
            Failure::new(Cause::Setting, format!("{at}: {what}: {said}"))
        };
        let stream =
            context.get_stream(&stream).await.map_err(|error| failed("its stream", &error))?;
        // With the message's number it names a command for ever: numbers begin again in a stream that is made anew.
        let made = stream.cached_info().created.unix_timestamp();
        let durable = durable(&self.upstream.name, &subject);
        let wanted = pull::Config {
            durable_name: Some(durable.clone()),
            description: Some("commands for the devices of a Duet gateway".to_owned()),
            filter_subject: subject.clone(),
            ack_policy: AckPolicy::Explicit,
            ack_wait: ACK_WAIT,
            max_ack_pending: 4 * i64::try_from(WINDOW).unwrap_or(i64::MAX),
            ..pull::Config::default()
        };
        let consumer: PullConsumer = stream
            .get_or_create_consumer(&durable, wanted)
            .await
            .map_err(|error| failed(&format!("consumer {durable}"), &error))?;
        let config = &consumer.cached_info().config;
        if config.filter_subject != subject || config.ack_policy != AckPolicy::Explicit {
            let text = format!(
                "{at}: consumer {durable} takes other subjects than {subject}, or acknowledges by itself: remove it, and it is made anew"
            );
            return Err(Failure::new(Cause::Setting, text));
        }
        // What the connection before did not acknowledge comes first only once its time is over, and what is new would come
        // before it otherwise.
        if consumer.cached_info().num_ack_pending > 0 {
            tokio::time::sleep(config.ack_wait + MARGIN).await;
        }
        let messages = consumer.stream().max_messages_per_batch(WINDOW).heartbeat(HEARTBEAT);
        let mut messages =
            messages.messages().await.map_err(|error| failed("asking for commands", &error))?;
        self.hears();
        let broken = |error: &dyn std::fmt::Display| {
            let said = text::printable(error.to_string().as_bytes());
            Failure::new(Cause::Connection, format!("{at}: {said}"))
        };
        let mut waiting = FuturesOrdered::new();
        loop {
            tokio::select! {
                Some((message, taken)) = waiting.next() => {
                    let message: async_nats::jetstream::Message = message;
                    self.ear.heard(&taken);
                    let kind = match taken {
                        Taken::Queued { answer, .. } => {
                            reply(&client, message.headers.as_ref(), answer).await;
                            AckKind::Ack
                        }
                        Taken::Refused { answer } => {
                            reply(&client, message.headers.as_ref(), answer).await;
                            AckKind::Term
                        }
                        // It comes again over the next connection, before those behind it.
                        Taken::Later(why) => return Err(Failure::new(Cause::Busy, why)),
                    };
                    message.ack_with(kind).await.map_err(|error| broken(&error))?;
                }
                message = messages.next(), if waiting.len() < WINDOW => {
                    let message = message
                        .ok_or_else(|| broken(&"the connection ended"))?
                        .map_err(|error| broken(&error))?;
                    let named = message.headers.as_ref().and_then(|headers| headers.get("Nats-Msg-Id"));
                    let named = named.map(ToString::to_string).filter(|id| (1..=KEY_MAX).contains(&id.len()));
                    let key = named.or_else(|| {
                        let sequence = message.info().ok()?.stream_sequence;
                        Some(format!("{sequence}@{made}"))
                    });
                    let taking = self.take(message.payload.clone(), key).await;
                    waiting.push_back(async move { (message, taking.await) });
                }
            }
        }
    }
}

/// One for each upstream and subject: another subject is another consumer, which begins at its own first message.
fn durable(upstream: &str, subject: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
    let subject: String = subject.chars().map(plain).collect();
    format!("duet-{upstream}-{subject}")
}

/// Tells whoever asked for it. Subjects of the server's own are nobody's place for answers.
async fn reply(client: &async_nats::Client, headers: Option<&HeaderMap>, answer: Vec<u8>) {
    let Some(subject) = headers.and_then(|headers| headers.get(REPLY)) else { return };
    let subject = subject.as_str();
    if subject.is_empty() || subject.starts_with('$') || subject.contains(['*', '>', ' ']) {
        return;
    }
    // A lost answer is no lost command: the sender may send it again, and it is known by its key.
    let _ = client.publish(subject.to_owned(), answer.into()).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_consumers_name_has_nothing_that_a_server_would_refuse() {
        assert_eq!(durable("cloud", "site-12.commands"), "duet-cloud-site-12_commands");
    }
}
