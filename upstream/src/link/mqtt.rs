//! MQTT 5 at QoS 1. Which messages wait for their PUBACK is known here and nowhere else: the
//! session ends with the connection, and the window says what is sent over the next one.
//!
//! A PUBACK that says that nobody has subscribed (0x10) is no delivery, unless the settings say so:
//! the broker has thrown the message away. Brokers without MQTT 5 cannot say that, and are refused.

pub(crate) mod packet;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{Mutex, Semaphore, oneshot};
use tokio::task::JoinHandle;

use self::packet::{Connack, INCOMING_MAX, Incoming, PINGREQ, reason};
use super::{Answer, Cause, Failure, Link, Local, Message, net};
use crate::encode::Format;
use crate::settings::{Address, Upstream};

/// How long a connection may rest before we show that we live.
const KEEP_ALIVE_S: u16 = 20;
/// What a PUBLISH has besides topic and payload, at most.
const OVERHEAD: usize = 1_024;

type Writer = WriteHalf<Box<dyn net::Stream>>;

/// What the tasks of a connection share.
struct Shared {
    writer: Mutex<Writer>,
    /// Who waits for which number.
    waiting: RefCell<HashMap<u16, oneshot::Sender<u8>>>,
    /// Why the connection ended.
    ended: RefCell<Option<Failure>>,
    /// One for each message that the broker takes at a time.
    room: Semaphore,
    /// An answer came since this was last looked at.
    heard: Cell<bool>,
}

/// A connection to a broker.
pub(crate) struct Mqtt {
    shared: Rc<Shared>,
    reader: JoinHandle<()>,
    pinger: JoinHandle<()>,
    at: String,
    next: u16,
    packet_max: usize,
    format: Format,
    varies: bool,
    accept_no_subscriber: bool,
}

impl Mqtt {
    /// Connects and waits for the broker's terms.
    pub(crate) async fn connect(
        upstream: &Upstream,
        address: &Address,
        client_id: &str,
        accept_no_subscriber: bool,
    ) -> Result<Self, Failure> {
        let at = address.authority();
        let mut stream = net::connect(address, &upstream.tls).await?;
        let credentials = &upstream.credentials;
        let password = credentials.password_file.as_deref().map(net::secret).transpose()?;
        let password = password.as_ref().map(|password| password.as_str());
        let hello =
            packet::connect(client_id, KEEP_ALIVE_S, credentials.user.as_deref(), password, None);
        stream.write_all(&hello).await.map_err(|error| net::broken(&at, &error))?;
        let mut bytes = BytesMut::new();
        let connack = match next_packet(&mut stream, &mut bytes, &at).await? {
            Incoming::Connack(connack) => connack,
            _ => return Err(not_mqtt(&at)),
        };
        terms(&at, &connack)?;
        let keep_alive =
            Duration::from_secs(connack.keep_alive_s.unwrap_or(KEEP_ALIVE_S).max(2).into());
        let (reader, writer) = tokio::io::split(stream);
        let shared = Rc::new(Shared {
            writer: Mutex::new(writer),
            waiting: RefCell::default(),
            ended: RefCell::default(),
            room: Semaphore::new(connack.receive_max.max(1).into()),
            heard: Cell::new(false),
        });
        let reader = tokio::task::spawn_local(read(Rc::clone(&shared), reader, bytes, at.clone()));
        let pinger = tokio::task::spawn_local(ping(Rc::clone(&shared), keep_alive / 2, at.clone()));
        Ok(Self {
            shared,
            reader,
            pinger,
            at,
            next: 0,
            packet_max: usize::try_from(connack.packet_max).unwrap_or(usize::MAX),
            format: upstream.format,
            varies: upstream.template().is_some_and(crate::template::Template::varies),
            accept_no_subscriber,
        })
    }

    /// A number that nothing waits under.
    fn number(&mut self) -> u16 {
        let waiting = self.shared.waiting.borrow();
        loop {
            self.next = self.next.checked_add(1).unwrap_or(1);
            // There are fewer than 65,535 at a time: the room sees to that.
            if !waiting.contains_key(&self.next) {
                return self.next;
            }
        }
    }
}

impl Drop for Mqtt {
    fn drop(&mut self) {
        self.reader.abort();
        self.pinger.abort();
    }
}

pub(crate) fn not_mqtt(at: &str) -> Failure {
    Failure::new(Cause::Setting, format!("{at}: what answers there does not speak MQTT 5"))
}

/// Whether the broker lets us work.
pub(crate) fn terms(at: &str, connack: &Connack) -> Result<(), Failure> {
    let cause = match connack.reason {
        reason::SUCCESS if connack.qos_max == 0 => {
            let text = format!("{at}: the broker takes QoS 0 only, which confirms nothing");
            return Err(Failure::new(Cause::Setting, text));
        }
        reason::SUCCESS => return Ok(()),
        reason::BAD_CREDENTIALS | reason::NOT_AUTHORIZED | reason::BANNED | reason::BAD_METHOD => {
            Cause::Credentials
        }
        0x88 | 0x89 | 0x97 | 0x9f => Cause::Busy,
        _ => Cause::Setting,
    };
    let why = reason::name(connack.reason);
    Err(Failure::new(cause, format!("{at}: connection refused: {why} (0x{:02x})", connack.reason)))
}

/// The next packet of the stream; `bytes` holds what came beyond it. However many come, other upstreams have their turns.
pub(crate) async fn next_packet(
    stream: &mut (impl AsyncReadExt + Unpin),
    bytes: &mut BytesMut,
    at: &str,
) -> Result<Incoming, Failure> {
    // Packets that are here already make nobody wait, and all upstreams share this thread.
    tokio::task::coop::consume_budget().await;
    loop {
        if let Some((packet, used)) = packet::decode(bytes).map_err(|_| not_mqtt(at))? {
            bytes.advance(used);
            return Ok(packet);
        }
        // A whole packet has at most five bytes of head.
        if bytes.len() > INCOMING_MAX + 5 {
            return Err(not_mqtt(at));
        }
        let count = stream.read_buf(bytes).await.map_err(|error| net::broken(at, &error))?;
        if count == 0 {
            return Err(Failure::new(
                Cause::Connection,
                format!("{at}: the broker closed the connection"),
            ));
        }
    }
}

async fn read(
    shared: Rc<Shared>,
    mut stream: ReadHalf<Box<dyn net::Stream>>,
    mut bytes: BytesMut,
    at: String,
) {
    let failure = loop {
        match next_packet(&mut stream, &mut bytes, &at).await {
            Ok(Incoming::Puback { packet, reason }) => {
                shared.heard.set(true);
                if let Some(waiting) = shared.waiting.borrow_mut().remove(&packet) {
                    shared.room.add_permits(1);
                    // Whoever waited may have given up on the batch.
                    let _ = waiting.send(reason);
                }
            }
            Ok(Incoming::Disconnect { reason }) => {
                let why = reason::name(reason);
                let text = format!("{at}: the broker ends the connection: {why} (0x{reason:02x})");
                break Failure::new(Cause::Connection, text);
            }
            Ok(Incoming::Connack(_)) => break not_mqtt(&at),
            Ok(
                Incoming::Pingresp
                | Incoming::Other
                | Incoming::Publish(_)
                | Incoming::Suback { .. },
            ) => shared.heard.set(true),
            Err(failure) => break failure,
        }
    };
    shared.end(failure);
}

/// Shows that we live, and finds out whether the broker does.
async fn ping(shared: Rc<Shared>, every: Duration, at: String) {
    loop {
        tokio::time::sleep(every).await;
        if shared.writer.lock().await.write_all(&PINGREQ).await.is_err() {
            // The reader finds out why.
            return;
        }
        shared.heard.set(false);
        tokio::time::sleep(every).await;
        if !shared.heard.get() {
            return shared
                .end(Failure::new(Cause::Timeout, format!("{at}: the broker answers no ping")));
        }
    }
}

impl Shared {
    fn end(&self, failure: Failure) {
        self.ended.borrow_mut().get_or_insert(failure);
        self.room.close();
        self.waiting.borrow_mut().clear();
    }

    fn why(&self, at: &str) -> Failure {
        let ended = self.ended.borrow().clone();
        ended.unwrap_or_else(|| {
            Failure::new(Cause::Connection, format!("{at}: the connection ended"))
        })
    }
}

impl Link for Mqtt {
    fn submit(&mut self, message: Message) -> Local<'_, Result<Local<'static, Answer>, Failure>> {
        Box::pin(async move {
            let permit = self.shared.room.acquire().await.map_err(|_| self.shared.why(&self.at))?;
            // The PUBACK gives it back.
            permit.forget();
            let number = self.number();
            let mut headers: Vec<_> = message.headers().collect();
            headers.push(("Duet-Batch", message.name()));
            let media_type = self.format.media_type();
            let bytes =
                packet::publish(number, &message.address, media_type, &headers, &message.body);
            let (answer, answered) = oneshot::channel();
            self.shared.waiting.borrow_mut().insert(number, answer);
            let written = self.shared.writer.lock().await.write_all(&bytes).await;
            written.map_err(|error| net::broken(&self.at, &error))?;
            let (shared, at) = (Rc::clone(&self.shared), self.at.clone());
            let judge = Judge {
                varies: self.varies,
                accept_no_subscriber: self.accept_no_subscriber,
                topic: message.address,
            };
            let answer: Local<'static, Answer> = Box::pin(async move {
                match answered.await {
                    Ok(reason) => judge.answer(&at, reason),
                    Err(_) => Answer::Failed(shared.why(&at)),
                }
            });
            Ok(answer)
        })
    }

    fn worth(&self) -> String {
        format!(
            "{} (MQTT 5): what a PUBACK survives is the broker's business; many keep messages in memory only",
            self.at
        )
    }

    fn message_max(&self) -> usize {
        self.packet_max.saturating_sub(OVERHEAD)
    }
}

struct Judge {
    varies: bool,
    accept_no_subscriber: bool,
    topic: String,
}

impl Judge {
    /// What a PUBACK means.
    fn answer(&self, at: &str, given: u8) -> Answer {
        let said = || format!("{at}: {}: {} (0x{given:02x})", self.topic, reason::name(given));
        match given {
            reason::SUCCESS => Answer::Delivered,
            reason::NO_SUBSCRIBERS if self.accept_no_subscriber => Answer::Delivered,
            reason::NO_SUBSCRIBERS => Answer::Failed(Failure::new(Cause::Busy, said())),
            reason::TOPIC_INVALID | reason::PAYLOAD_INVALID | reason::TOO_LARGE => {
                Answer::Refused(said())
            }
            // What one device's topic may not, another's may.
            reason::NOT_AUTHORIZED if self.varies => Answer::Refused(said()),
            reason::NOT_AUTHORIZED => Answer::Failed(Failure::new(Cause::Credentials, said())),
            _ => Answer::Failed(Failure::new(Cause::Busy, said())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A broker's stream of packets that does not end.
    #[tokio::test(flavor = "current_thread")]
    async fn a_broker_that_never_stops_talking_leaves_others_their_turns() {
        const PACKETS: usize = 100_000;
        let others = Rc::new(Cell::new(0));
        let turns = Rc::clone(&others);
        let local = tokio::task::LocalSet::new();
        local.spawn_local(async move {
            loop {
                turns.set(turns.get() + 1);
                tokio::task::yield_now().await;
            }
        });
        let read = local.run_until(async {
            let pings = [0xd0, 0].repeat(PACKETS);
            let (mut stream, mut bytes) = (&pings[..], BytesMut::new());
            for _ in 0..PACKETS {
                let packet = next_packet(&mut stream, &mut bytes, "").await;
                assert!(matches!(packet, Ok(Incoming::Pingresp)));
            }
        });
        read.await;
        assert!(others.get() > PACKETS / 1_000, "{} turns", others.get());
    }
}
