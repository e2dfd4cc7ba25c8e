//! What the client reports of records and of itself.
//!
//! A broker may answer with any number as its error, and the client hands it on as it came. The library takes that for one of
//! the errors that it knows, without a look: a number of a newer broker, or of one that lies, makes it read behind its tables,
//! which ends the process. So the thread here takes the reports in its place, number by number.
#![allow(unsafe_code, reason = "the library has no safe way to a report's number")]

use std::ffi::CStr;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rdkafka::bindings::{
    RD_KAFKA_EVENT_DR, RD_KAFKA_EVENT_ERROR, rd_kafka_event_destroy, rd_kafka_event_error,
    rd_kafka_event_error_string, rd_kafka_event_message_next, rd_kafka_event_t,
    rd_kafka_event_type, rd_kafka_queue_destroy, rd_kafka_queue_get_main, rd_kafka_queue_poll,
    rd_kafka_resp_err_t,
};
use rdkafka::client::ClientContext as _;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{
    BaseProducer, DeliveryResult, Producer as _, ProducerContext, PurgeConfig,
};
use rdkafka::types::RDKafkaRespErr;
use tokio::sync::oneshot;

use super::Ears;

/// How long the thread waits for the next report, and so at most for its end, ms.
const WAIT_MS: i32 = 100;
/// How long it takes what is left at its end.
const LAST: Duration = Duration::from_millis(500);

/// What became of a record.
pub(super) type Report = Result<(), RDKafkaErrorCode>;
/// Whom it is told.
type Told = oneshot::Sender<Report>;

/// The function that tells an event's error, and the same telling it as a number.
type Typed = unsafe extern "C" fn(*mut rd_kafka_event_t) -> rd_kafka_resp_err_t;
type Number = unsafe extern "C" fn(*mut rd_kafka_event_t) -> i32;

impl ProducerContext for Ears {
    type DeliveryOpaque = Box<Told>;

    /// Of a record whose report the thread did not take: nobody waits for it any more.
    fn delivery(&self, _: &DeliveryResult<'_>, _: Self::DeliveryOpaque) {}
}

/// Takes the reports until it is told to stop; then gives up what is on its way.
pub(super) fn take_all(producer: Arc<BaseProducer<Ears>>, stop: Arc<AtomicBool>) -> io::Result<()> {
    let work = move || {
        while !stop.load(Ordering::Relaxed) {
            take(&producer, WAIT_MS);
        }
        producer.purge(PurgeConfig::default().queue().inflight());
        let end = Instant::now() + LAST;
        while producer.in_flight_count() > 0 && Instant::now() < end {
            take(&producer, WAIT_MS / 10);
        }
    };
    std::thread::Builder::new().name("kafka".into()).spawn(work).map(drop)
}

/// What a number means, whatever it is.
fn meaning(number: i32) -> Report {
    match RDKafkaRespErr::try_from(number) {
        Ok(RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR) => Ok(()),
        Ok(known) => Err(known.into()),
        Err(_) => Err(RDKafkaErrorCode::Unknown),
    }
}

/// Takes what the client says next, and waits for it so long.
fn take(producer: &BaseProducer<Ears>, wait_ms: i32) {
    let client = producer.client();
    // SAFETY: the client lives as long as its producer, a queue until it is given back here, and so an event with its messages
    // and its text. An error is four bytes, of which any are a number. Each record was given a boxed `Told` by `send`, which
    // comes back with its one report and is taken here.
    unsafe {
        let queue = rd_kafka_queue_get_main(client.native_ptr());
        let event = rd_kafka_queue_poll(queue, wait_ms);
        let kind = if event.is_null() { 0 } else { rd_kafka_event_type(event) };
        if kind == RD_KAFKA_EVENT_DR {
            loop {
                let message = rd_kafka_event_message_next(event);
                if message.is_null() {
                    break;
                }
                let number = (&raw const (*message).err).cast::<i32>().read();
                let told = Box::from_raw((*message)._private.cast::<Told>());
                // Nobody waits any more where the link was dropped meanwhile.
                let _ = told.send(meaning(number));
            }
        }
        if kind == RD_KAFKA_EVENT_ERROR {
            let number = std::mem::transmute::<Typed, Number>(rd_kafka_event_error);
            if let Err(code) = meaning(number(event)) {
                let reason = CStr::from_ptr(rd_kafka_event_error_string(event)).to_string_lossy();
                client.context().error(KafkaError::Global(code), reason.trim());
            }
        }
        if !event.is_null() {
            rd_kafka_event_destroy(event);
        }
        rd_kafka_queue_destroy(queue);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_number_has_a_meaning() {
        assert_eq!(meaning(0), Ok(()));
        assert_eq!(meaning(10), Err(RDKafkaErrorCode::MessageSizeTooLarge));
        for number in [130, 131, 5_000, 32_767, -32_768, -77, i32::MIN, i32::MAX] {
            assert!(meaning(number).is_err(), "{number}");
        }
    }
}
