//! Kafka: one record for each reading, its key the device's name, so that a device's readings are in one partition and in
//! order there. A batch counts as delivered when every in-sync replica has each of its records.
//!
//! The client would keep records and try for minutes. Here it has as long as an answer may take; whatever fails ends it
//! with all that it still had, and the window says what is sent by the next one. Its own repetitions within that time are
//! idempotent, so they neither double a record nor change the order.

mod reports;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use tokio::sync::oneshot;

use super::{Answer, Cause, Failure, Link, Local, Message, net};
use crate::settings::Upstream;
use crate::text;

/// What the client may hold: more than the window ever gives it.
const QUEUE: &str = "131072";
/// The longest answer that is read, bytes: enough for what a cluster says of a topic with three hundred partitions. The
/// client starts a thread and opens two files for each broker that it is told of, so that it must not be told of many.
const ANSWER_MAX: &str = "16384";

/// What the client complains of beside its answers.
#[derive(Clone, Default)]
struct Ears(Arc<Mutex<Option<(RDKafkaErrorCode, String)>>>);

impl ClientContext for Ears {
    fn log(&self, _: RDKafkaLogLevel, _: &str, _: &str) {}

    fn error(&self, error: KafkaError, reason: &str) {
        let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown);
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // That no broker is left says less than why.
        if last.is_none() || code != RDKafkaErrorCode::AllBrokersDown {
            *last = Some((code, text::printable(reason.as_bytes())));
        }
    }
}

/// Says why something failed.
#[derive(Clone)]
struct Why {
    ears: Ears,
    at: String,
}

impl Why {
    /// What the client said last, where the error itself says little.
    fn failure(&self, error: &KafkaError) -> Failure {
        let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown);
        let last = self.ears.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match last {
            Some((last, said)) if is_vague(code) => {
                Failure::new(cause(last), format!("{}: {said}", self.at))
            }
            _ if code == RDKafkaErrorCode::BadMessage => {
                let text = format!(
                    "{}: {error}: this is no answer of Kafka's, or one of more than {ANSWER_MAX} bytes, as of a topic with \
                     many hundred partitions",
                    self.at
                );
                Failure::new(Cause::Setting, text)
            }
            _ => Failure::new(cause(code), format!("{}: {error}", self.at)),
        }
    }

    fn ended(&self) -> Failure {
        Failure::new(Cause::Connection, format!("{}: the connection ended", self.at))
    }
}

/// A producer for as long as nothing fails.
pub(crate) struct Kafka {
    producer: Arc<BaseProducer<Ears>>,
    /// Ends the thread that takes the client's reports.
    stop: Arc<AtomicBool>,
    why: Why,
    topic: String,
    worth: String,
}

impl Kafka {
    /// Makes a producer and finds the topic.
    pub(crate) async fn connect(
        upstream: &Upstream,
        brokers: &str,
        topic: &str,
    ) -> Result<Self, Failure> {
        let why = Why { ears: Ears::default(), at: brokers.to_owned() };
        let wait = upstream.answer_timeout;
        let failed = |text: String| Failure::new(Cause::Setting, text);
        let producer: BaseProducer<Ears> = config(upstream, brokers)?
            .create_with_context(why.ears.clone())
            .map_err(|error| failed(format!("{brokers}: {error}")))?;
        let (producer, stop) = (Arc::new(producer), Arc::<AtomicBool>::default());
        reports::take_all(Arc::clone(&producer), Arc::clone(&stop))
            .map_err(|error| failed(format!("{brokers}: {error}")))?;
        // Made here, so that whatever goes wrong ends the producer as it should.
        let mut link = Self {
            producer: Arc::clone(&producer),
            stop,
            why,
            topic: topic.to_owned(),
            worth: String::new(),
        };
        let name = topic.to_owned();
        // The client's own look-up blocks.
        let look = move || {
            let found = producer.client().fetch_metadata(Some(&name), wait)?;
            let partitions = found.topics().first().map_or(&[][..], |topic| topic.partitions());
            let replicas = partitions.first().map_or(0, |one| one.replicas().len());
            Ok::<_, KafkaError>((partitions.len(), replicas))
        };
        let looked = tokio::task::spawn_blocking(look).await;
        match looked.map_err(|error| failed(error.to_string()))? {
            Err(error) => Err(link.why.failure(&error)),
            Ok((0, _)) => Err(failed(format!(
                "{brokers}: no topic {topic}; make one, as `kafka-topics --create --topic {topic}` does"
            ))),
            Ok((partitions, replicas)) => {
                link.worth = format!(
                    "{brokers}, topic {topic} ({partitions} partitions, {replicas} replicas): every in-sync replica has it in \
                     memory; a power cut of all of them may take it, and with min.insync.replicas=1 the crash of one may"
                );
                Ok(link)
            }
        }
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        // Throwing away what it still has takes the client a moment, which the other upstreams must not wait for: that thread
        // holds the producer last.
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn config(upstream: &Upstream, brokers: &str) -> Result<ClientConfig, Failure> {
    let wait_ms = upstream.answer_timeout.as_millis().to_string();
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", brokers)
        .set("client.id", format!("duet {}", upstream.name))
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("message.timeout.ms", &wait_ms)
        .set("request.timeout.ms", &wait_ms)
        .set("linger.ms", "2")
        .set("queue.buffering.max.messages", QUEUE)
        .set("receive.message.max.bytes", ANSWER_MAX)
        // As Kafka's own clients do, so that others find a device's partition.
        .set("partitioner", "murmur2_random")
        .set("log_level", "0");
    let credentials = &upstream.credentials;
    if let (Some(user), Some(path)) = (&credentials.user, &credentials.password_file) {
        config
            .set("security.protocol", "sasl_plaintext")
            .set("sasl.mechanism", "PLAIN")
            .set("sasl.username", user)
            .set("sasl.password", net::secret(path)?.as_str());
    }
    Ok(config)
}

/// Codes that say that something went wrong and not what.
fn is_vague(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        code,
        Code::Unknown
            | Code::Fail
            | Code::MessageTimedOut
            | Code::OperationTimedOut
            | Code::BrokerTransportFailure
            | Code::AllBrokersDown
            | Code::PurgeQueue
            | Code::PurgeInflight
    )
}

fn cause(code: RDKafkaErrorCode) -> Cause {
    use RDKafkaErrorCode as Code;
    match code {
        Code::BrokerTransportFailure
        | Code::AllBrokersDown
        | Code::Resolve
        | Code::NetworkException => Cause::Connection,
        Code::SSL => Cause::Tls,
        Code::Authentication
        | Code::SaslAuthenticationFailed
        | Code::TopicAuthorizationFailed
        | Code::ClusterAuthorizationFailed => Cause::Credentials,
        Code::MessageTimedOut | Code::OperationTimedOut | Code::RequestTimedOut => Cause::Timeout,
        Code::UnknownTopic
        | Code::UnknownTopicOrPartition
        | Code::InvalidTopic
        | Code::UnknownPartition => Cause::Setting,
        _ => Cause::Busy,
    }
}

/// Whether a record is refused for itself, however often it is sent.
fn is_refusal(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::MessageSizeTooLarge
                | RDKafkaErrorCode::MessageBatchTooLarge
                | RDKafkaErrorCode::InvalidRecord
        )
    )
}

/// The records of a batch: keys and values, each after its length.
fn records(body: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let mut rest = body;
    std::iter::from_fn(move || Some((field(&mut rest)?, field(&mut rest)?)))
}

fn field<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, after) = rest.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    let (field, after) = after.split_at_checked(length)?;
    *rest = after;
    Some(field)
}

impl Link for Kafka {
    fn submit(&mut self, message: Message) -> Local<'_, Result<Local<'static, Answer>, Failure>> {
        Box::pin(async move {
            let mut waiting = Vec::with_capacity(message.count);
            for (key, value) in records(&message.body) {
                loop {
                    let (told, delivered) = oneshot::channel();
                    let record = BaseRecord::with_opaque_to(&self.topic, Box::new(told));
                    let error = match self.producer.send(record.key(key).payload(value)) {
                        Ok(()) => {
                            waiting.push(delivered);
                            break;
                        }
                        Err((error, _)) => error,
                    };
                    if error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull) {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    } else if is_refusal(&error) {
                        let said = format!("{}: {error}", self.why.at);
                        let answer: Local<'static, Answer> =
                            Box::pin(std::future::ready(Answer::Refused(said)));
                        return Ok(answer);
                    } else {
                        return Err(self.why.failure(&error));
                    }
                }
            }
            let why = self.why.clone();
            let answer: Local<'static, Answer> = Box::pin(async move {
                let mut whole = Answer::Delivered;
                for delivered in join_all(waiting).await {
                    let error = match delivered {
                        Ok(Ok(())) => continue,
                        Ok(Err(code)) => KafkaError::MessageProduction(code),
                        Err(_) => return Answer::Failed(why.ended()),
                    };
                    if !is_refusal(&error) {
                        return Answer::Failed(why.failure(&error));
                    }
                    whole = Answer::Refused(format!("{}: {error}", why.at));
                }
                whole
            });
            Ok(answer)
        })
    }

    fn worth(&self) -> String {
        self.worth.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_found_in_a_batch_and_nothing_in_half_of_one() {
        let mut body = Vec::new();
        for field in [&b"pump-7"[..], b"{}", b"", b"x"] {
            body.extend_from_slice(&u32::try_from(field.len()).unwrap().to_be_bytes());
            body.extend_from_slice(field);
        }
        let found: Vec<_> = records(&body).collect();
        assert_eq!(found, [(&b"pump-7"[..], &b"{}"[..]), (b"", b"x")]);
        body.pop();
        assert_eq!(records(&body).count(), 1);
    }
}
