//! HTTP POST of each batch. Only a 2xx answer counts; what that survives is the receiver's business.
//!
//! One request at a time keeps the order; more (`in_flight`) take a connection each, and a receiver
//! then orders by index. Redirects are not followed: a reading goes where the settings say.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, RETRY_AFTER};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;

use super::{Answer, Cause, Failure, Link, Local, Message, net};
use crate::encode::Format;
use crate::settings::{Address, Tls, Upstream};
use crate::text;

/// The most of an answer that is read.
const ANSWER_MAX: usize = 64 * 1024;
/// The longest that a receiver may ask us to wait.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3_600);

type Sender = SendRequest<Full<Bytes>>;

/// Connections to a web hook.
pub(crate) struct Webhook {
    address: Address,
    tls: Tls,
    format: Format,
    authorization: Option<HeaderValue>,
    idle: Rc<RefCell<Vec<Sender>>>,
}

impl Webhook {
    /// Opens the first connection.
    pub(crate) async fn connect(upstream: &Upstream, address: Address) -> Result<Self, Failure> {
        let credentials = &upstream.credentials;
        let text = match (&credentials.token_file, &credentials.user, &credentials.password_file) {
            (Some(path), _, _) => Some(format!("Bearer {}", *net::secret(path)?)),
            (None, Some(user), Some(path)) => {
                let both = zeroize::Zeroizing::new(format!("{user}:{}", *net::secret(path)?));
                Some(format!("Basic {}", text::base64(both.as_bytes())))
            }
            _ => None,
        };
        let authorization = match text.map(zeroize::Zeroizing::new) {
            None => None,
            Some(text) => {
                let mut value = HeaderValue::from_str(&text).map_err(|_| {
                    Failure::new(
                        Cause::Credentials,
                        "the secret has characters that HTTP does not take",
                    )
                })?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        let webhook = Self {
            address,
            tls: upstream.tls.clone(),
            format: upstream.format,
            authorization,
            idle: Rc::default(),
        };
        let first = webhook.open().await?;
        webhook.idle.borrow_mut().push(first);
        Ok(webhook)
    }

    async fn open(&self) -> Result<Sender, Failure> {
        let stream = net::connect(&self.address, &self.tls).await?;
        let at = self.address.authority();
        let (sender, connection) = handshake(TokioIo::new(stream))
            .await
            .map_err(|error| Failure::new(Cause::Connection, format!("{at}: {error}")))?;
        // Ends when its sender is gone, and tells errors to whoever waits for an answer.
        tokio::task::spawn_local(async move {
            let _ = connection.await;
        });
        Ok(sender)
    }

    fn request(&self, message: Message) -> Result<Request<Full<Bytes>>, Failure> {
        let mut request = Request::post(&self.address.path)
            .header(HOST, self.address.authority())
            .header(CONTENT_TYPE, self.format.media_type())
            .header("Idempotency-Key", message.name())
            .header("User-Agent", concat!("duet/", env!("CARGO_PKG_VERSION")));
        for (name, value) in message.headers() {
            request = request.header(name, value);
        }
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        request
            .body(Full::new(message.body))
            .map_err(|error| Failure::new(Cause::Setting, format!("url: {error}")))
    }
}

impl Link for Webhook {
    fn submit(&mut self, message: Message) -> Local<'_, Result<Local<'static, Answer>, Failure>> {
        Box::pin(async move {
            let request = self.request(message)?;
            let found = loop {
                match self.idle.borrow_mut().pop() {
                    Some(sender) if sender.is_closed() => {}
                    found => break found,
                }
            };
            let mut sender = match found {
                Some(sender) => sender,
                None => self.open().await?,
            };
            let (at, format) = (self.address.authority(), self.format);
            let idle = Rc::clone(&self.idle);
            let answer: Local<'static, Answer> = Box::pin(async move {
                let lost = |error: &dyn std::fmt::Display| {
                    Answer::Failed(Failure::new(Cause::Connection, format!("{at}: {error}")))
                };
                if let Err(error) = sender.ready().await {
                    return lost(&error);
                }
                let (head, body) = match sender.send_request(request).await {
                    Ok(response) => Response::into_parts(response),
                    Err(error) => return lost(&error),
                };
                let Body { begin, is_whole } = match read(body).await {
                    Ok(body) => body,
                    Err(error) => return lost(&error),
                };
                if is_whole {
                    idle.borrow_mut().push(sender);
                } else if head.status.is_success() && format == Format::Otlp {
                    return lost(&format_args!(
                        "the answer is longer than {ANSWER_MAX} bytes, so what was rejected cannot be known"
                    ));
                }
                let after = head.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
                judge(&at, head.status, after, &begin, format)
            });
            Ok(answer)
        })
    }

    fn worth(&self) -> String {
        format!(
            "{} answers 2xx: what that survives is the receiver's business",
            self.address.authority()
        )
    }
}

/// As much of an answer's body as is read.
struct Body {
    begin: Vec<u8>,
    /// Whether that is all of it; otherwise the connection is of no more use.
    is_whole: bool,
}

/// Reads a body, as far as anybody looks at it: receivers that send back what they got send more than that.
async fn read(mut body: Incoming) -> Result<Body, hyper::Error> {
    let mut begin = Vec::new();
    while let Some(frame) = body.frame().await.transpose()? {
        let data = frame.into_data().unwrap_or_default();
        let room = ANSWER_MAX - begin.len();
        begin.extend_from_slice(data.get(..room).unwrap_or(&data));
        if data.len() > room {
            return Ok(Body { begin, is_whole: false });
        }
    }
    Ok(Body { begin, is_whole: true })
}

/// What an HTTP answer means.
fn judge(
    at: &str,
    status: StatusCode,
    retry_after: Option<&str>,
    body: &[u8],
    format: Format,
) -> Answer {
    let said = || format!("{at} answers {status}: {}", text::printable(body));
    if status.is_success() {
        return match (format == Format::Otlp).then(|| rejected(body)).flatten() {
            Some(_) => Answer::Refused(said()),
            None => Answer::Delivered,
        };
    }
    let (cause, hint) = match status.as_u16() {
        400 | 413 | 422 => return Answer::Refused(said()),
        401 | 403 | 407 => (Cause::Credentials, "; check the credentials of this upstream"),
        408 | 425 | 429 | 500..=599 => (Cause::Busy, ""),
        _ => (Cause::Setting, "; check url and format of this upstream"),
    };
    let retry_after = retry_after
        .and_then(|text| text.trim().parse().ok())
        .map(|seconds| Duration::from_secs(seconds).min(RETRY_AFTER_MAX));
    Answer::Failed(Failure { cause, text: format!("{}{hint}", said()).into(), retry_after })
}

/// How many log records a collector did not take, which it says with status 200. The number is
/// text in OTLP's JSON, and a number in some collectors' one.
fn rejected(body: &[u8]) -> Option<u64> {
    let answer: serde_json::Value = serde_json::from_slice(body).ok()?;
    let partial = answer.get("partialSuccess").or_else(|| answer.get("partial_success"))?;
    let count =
        partial.get("rejectedLogRecords").or_else(|| partial.get("rejected_log_records"))?;
    count.as_u64().or_else(|| count.as_str()?.parse().ok()).filter(|count| *count > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(status: u16, after: Option<&str>, body: &[u8], format: Format) -> String {
        let status = StatusCode::from_u16(status).unwrap();
        match judge("h:80", status, after, body, format) {
            Answer::Failed(Failure { cause, retry_after, .. }) => {
                format!("{} {}", cause.name(), retry_after.unwrap_or_default().as_secs())
            }
            Answer::Refused(_) => "refused".into(),
            Answer::Delivered => "delivered".into(),
            Answer::Duplicate => "duplicate".into(),
            Answer::Void => "void".into(),
        }
    }

    #[test]
    fn every_status_means_one_thing() {
        for (status, expected) in [
            (200, "delivered"),
            (204, "delivered"),
            (400, "refused"),
            (413, "refused"),
            (422, "refused"),
            (401, "credentials 0"),
            (403, "credentials 0"),
            (404, "setting 0"),
            (301, "setting 0"),
            (415, "setting 0"),
            (408, "busy 0"),
            (429, "busy 0"),
            (503, "busy 0"),
        ] {
            assert_eq!(kind(status, None, b"", Format::Ndjson), expected, "{status}");
        }
        assert_eq!(kind(429, Some("7"), b"", Format::Ndjson), "busy 7");
        assert_eq!(kind(503, Some("99999999"), b"", Format::Ndjson), "busy 3600");
        assert_eq!(kind(503, Some("Fri, 31 Dec 1999 23:59:59 GMT"), b"", Format::Ndjson), "busy 0");
    }

    #[test]
    fn a_200_with_rejected_records_is_no_success() {
        let partial = br#"{"partialSuccess":{"rejectedLogRecords":"5","errorMessage":"no"}}"#;
        assert_eq!(kind(200, None, partial, Format::Otlp), "refused");
        assert_eq!(kind(200, None, partial, Format::Ndjson), "delivered");
        let number = br#"{"partialSuccess":{"rejectedLogRecords":1}}"#;
        assert_eq!(kind(200, None, number, Format::Otlp), "refused");
        for whole in [&b"{}"[..], br#"{"partialSuccess":{"rejectedLogRecords":"0"}}"#, b""] {
            assert_eq!(kind(200, None, whole, Format::Otlp), "delivered");
        }
    }
}
