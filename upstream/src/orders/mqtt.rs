//! Commands from an MQTT 5 broker, at QoS 1 and in a session that outlives the connection, so that what is sent while the
//! gateway is away waits at the broker. A PUBACK goes out when the command is on disk.

use std::convert::Infallible;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::stream::{FuturesOrdered, StreamExt};
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use super::{KEY_MAX, Listener, Taken, WINDOW};
use crate::link::mqtt::packet::{self, Connack, Incoming, Kept, PINGREQ, Publish, reason};
use crate::link::mqtt::{next_packet, not_mqtt, terms};
use crate::link::{Cause, Failure, net};
use crate::settings::Address;
use crate::worker::{CONNECT, unconnected};

/// How long a connection may rest before we show that we live.
const KEEP_ALIVE_S: u16 = 20;
/// How long the broker keeps what comes while we are away: a week.
const KEPT_S: u32 = 7 * 86_400;

impl Listener {
    pub(super) async fn mqtt(
        &mut self,
        address: &Address,
        client_id: &str,
    ) -> Result<Infallible, Failure> {
        let (at, topic) = (address.authority(), self.upstream.commands.clone().unwrap_or_default());
        let (stream, mut bytes, connack) = timeout(CONNECT, self.open(address, client_id))
            .await
            .unwrap_or_else(|_| Err(unconnected()))?;
        if self.connected && !connack.session {
            (self.tell)(&format!(
                "upstream {}: {at} has forgotten this client: commands that were sent meanwhile did not wait there",
                self.upstream.name
            ));
        }
        self.connected = true;
        let (mut reader, mut writer) = tokio::io::split(stream);
        self.send(&mut writer, &packet::subscribe(1, &topic), &at).await?;
        let keep_alive = connack.keep_alive_s.unwrap_or(KEEP_ALIVE_S).max(2);
        let mut ping = tokio::time::interval(Duration::from_secs(keep_alive.into()) / 2);
        ping.reset();
        let mut heard = true;
        let mut waiting = FuturesOrdered::new();
        loop {
            tokio::select! {
                Some((publish, taken)) = waiting.next() => {
                    let publish: Publish = publish;
                    self.ear.heard(&taken);
                    let answer = match taken {
                        Taken::Queued { answer, .. } | Taken::Refused { answer } => answer,
                        // Without a PUBACK it comes again over the next connection, and so do those behind it.
                        Taken::Later(why) => return Err(Failure::new(Cause::Busy, why)),
                    };
                    let mut out = publish.response().map_or_else(Vec::new, |topic| {
                        packet::answer(topic, publish.correlation.as_deref(), &answer)
                    });
                    if let Some(number) = publish.number {
                        out.extend_from_slice(&packet::puback(number));
                    }
                    self.send(&mut writer, &out, &at).await?;
                }
                packet = next_packet(&mut reader, &mut bytes, &at), if waiting.len() < WINDOW => {
                    heard = true;
                    match packet? {
                        Incoming::Publish(publish) => {
                            let key = publish.correlation.as_deref().map(key_of);
                            let taking = self.take(Bytes::copy_from_slice(&publish.payload), key).await;
                            waiting.push_back(async move { (publish, taking.await) });
                        }
                        Incoming::Suback { reason: 1 } => self.hears(),
                        Incoming::Suback { reason: given } => {
                            let why = if given < 0x80 { "only at QoS 0" } else { reason::name(given) };
                            let text = format!("{at}: subscribing to {topic}: {why} (0x{given:02x})");
                            let cause = if given == reason::NOT_AUTHORIZED { Cause::Credentials } else { Cause::Setting };
                            return Err(Failure::new(cause, text));
                        }
                        Incoming::Disconnect { reason: given } => {
                            let why = reason::name(given);
                            let text = format!("{at}: the broker ends the connection: {why} (0x{given:02x})");
                            return Err(Failure::new(Cause::Connection, text));
                        }
                        Incoming::Connack(_) => return Err(not_mqtt(&at)),
                        Incoming::Puback { .. } | Incoming::Pingresp | Incoming::Other => {}
                    }
                }
                _ = ping.tick() => {
                    if !heard && waiting.len() < WINDOW {
                        let text = format!("{at}: the broker answers no ping");
                        return Err(Failure::new(Cause::Timeout, text));
                    }
                    heard = false;
                    self.send(&mut writer, &PINGREQ, &at).await?;
                }
            }
        }
    }

    /// Connects, and hears the broker's terms.
    async fn open(
        &self,
        address: &Address,
        client_id: &str,
    ) -> Result<(Box<dyn net::Stream>, BytesMut, Connack), Failure> {
        let at = address.authority();
        let mut stream = net::connect(address, &self.upstream.tls).await?;
        let credentials = &self.upstream.credentials;
        let password = credentials.password_file.as_deref().map(net::secret).transpose()?;
        let password = password.as_ref().map(|password| password.as_str());
        let kept = Kept { session_s: KEPT_S, receive_max: u16::try_from(WINDOW).unwrap_or(1) };
        let client_id = format!("{client_id}-commands");
        let user = credentials.user.as_deref();
        let hello = packet::connect(&client_id, KEEP_ALIVE_S, user, password, Some(kept));
        stream.write_all(&hello).await.map_err(|error| net::broken(&at, &error))?;
        let mut bytes = BytesMut::new();
        let Incoming::Connack(connack) = next_packet(&mut stream, &mut bytes, &at).await? else {
            return Err(not_mqtt(&at));
        };
        terms(&at, &connack)?;
        Ok((stream, bytes, connack))
    }

    /// Writes, as long as the broker takes it within the time of an answer.
    async fn send(
        &self,
        writer: &mut (impl AsyncWriteExt + Unpin),
        bytes: &[u8],
        at: &str,
    ) -> Result<(), Failure> {
        let wait = self.upstream.answer_timeout;
        let written = timeout(wait, writer.write_all(bytes)).await.map_err(|_| {
            let text = format!("{at}: the broker takes nothing for {} ms", wait.as_millis());
            Failure::new(Cause::Timeout, text)
        })?;
        written.map_err(|error| net::broken(at, &error))
    }
}

/// Correlation data as a key: as it is where it is text, as digits otherwise.
fn key_of(correlation: &[u8]) -> String {
    match std::str::from_utf8(correlation) {
        Ok(text) if text.len() <= KEY_MAX && !text.chars().any(char::is_control) => text.to_owned(),
        _ => correlation.iter().map(|byte| format!("{byte:02x}")).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn correlation_data_of_any_kind_names_a_command() {
        assert_eq!(key_of(b"order-7"), "order-7");
        assert_eq!(key_of(&[0, 0xff]), "00ff");
        assert_eq!(key_of(b"a\n"), "610a");
    }
}
