//! Who may do what. A door says where a request came from; here it becomes a caller with a role, or is denied.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use axum::http::{HeaderMap, Method, header};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::api::Plane;
use super::audit::Event;
use super::door::{Door, Stopping, stopped};
use super::tokens::{Denied, Tokens};
use super::{Fault, Problem};
use crate::identity::now_s;

/// What a caller may do; each role may do all that those before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Look at the gateway.
    Viewer,
    /// Change devices and give commands.
    Operator,
    /// Everything.
    Admin,
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        })
    }
}

impl std::str::FromStr for Role {
    type Err = UnknownRole;

    fn from_str(text: &str) -> Result<Self, UnknownRole> {
        match text {
            "viewer" => Ok(Self::Viewer),
            "operator" => Ok(Self::Operator),
            "admin" => Ok(Self::Admin),
            _ => Err(UnknownRole),
        }
    }
}

/// A word that names no role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a role is viewer, operator or admin")]
pub struct UnknownRole;

/// Somebody who was recognised.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    /// `uid 0`, or `token NAME`.
    who: String,
    /// `socket`, or the address of a TLS client.
    from: String,
    role: Role,
}

/// Finds out who calls. Nothing behind this is reached by anybody else.
pub(super) async fn authenticate(
    State(plane): State<Arc<Plane>>,
    mut request: Request,
    next: Next,
) -> Response {
    let caller = match request.extensions().get::<Door>() {
        // The door let in only the gateway's own user and root.
        Some(Door::Socket { .. }) if !is_local(request.headers()) => {
            return Problem::new(
                StatusCode::FORBIDDEN,
                "the control socket answers no other site's page",
            )
            .into_response();
        }
        Some(Door::Socket { uid }) => {
            Ok(Caller { who: format!("uid {uid}"), from: "socket".into(), role: Role::Admin })
        }
        Some(Door::Tls { peer }) => bearer(request.headers(), &plane.tokens).map(|(name, role)| {
            Caller { who: format!("token {name}"), from: peer.to_string(), role }
        }),
        Some(Door::Plain) | None => Err("not from here"),
    };
    match caller {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(why) => {
            plane.telemetry.count_denied();
            let mut response = Problem::new(StatusCode::UNAUTHORIZED, why).into_response();
            let scheme = header::HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
            response
        }
    }
}

/// Whether a request over the control socket comes from a command, or from the gateway's own page through a tunnel to
/// the socket. There the browser needs no token, so no other site's page may speak through it: neither from its own
/// origin, nor under a name of its own that leads to the tunnel.
fn is_local(headers: &HeaderMap) -> bool {
    let text =
        |name| headers.get(name).map(|value: &header::HeaderValue| value.to_str().unwrap_or("?"));
    let host = text(header::HOST).unwrap_or_default();
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    let is_address = name.parse::<std::net::IpAddr>().is_ok();
    let own =
        text(header::ORIGIN).is_none_or(|origin| origin.strip_prefix("http://") == Some(host));
    let from = text(header::HeaderName::from_static("sec-fetch-site"));
    // A name without a dot is nobody's in the public name service.
    (is_address || !name.contains('.'))
        && own
        && from.is_none_or(|from| from == "same-origin" || from == "none")
}

/// Whose token the request brings.
fn bearer(headers: &HeaderMap, tokens: &Tokens) -> Result<(String, Role), &'static str> {
    let text =
        headers.get(header::AUTHORIZATION).ok_or("a token is needed (Authorization: Bearer …)")?;
    let token = text.to_str().ok().and_then(|text| text.strip_prefix("Bearer "));
    let token = token.ok_or("Authorization must be: Bearer, and a token")?;
    tokens.find(token, now_s()).map_err(|denied| match denied {
        Denied::Wrong => "no such token",
        Denied::Expired => "the token has expired",
    })
}

/// Whether whoever came through this door with these headers would still be let in: tokens end.
pub(super) fn is_admitted(door: &Door, headers: &HeaderMap, plane: &Plane) -> bool {
    match door {
        Door::Tls { .. } => bearer(headers, &plane.tokens).is_ok(),
        Door::Socket { .. } | Door::Plain => true,
    }
}

/// Lets through only those who have a role.
pub(super) async fn require(State(needed): State<Role>, request: Request, next: Next) -> Response {
    match request.extensions().get::<Caller>() {
        Some(caller) if caller.role >= needed => next.run(request).await,
        _ => Problem::new(StatusCode::FORBIDDEN, format_args!("this needs the role {needed}"))
            .into_response(),
    }
}

/// Writes into the audit log what was asked for and what became of it, before the answer goes out. Questions that
/// change nothing are not written. A log that cannot be written is a fault, but keeps nobody from revoking a device.
pub(super) async fn audit(
    State(plane): State<Arc<Plane>>,
    request: Request,
    next: Next,
) -> Response {
    let asks = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    // An export may hand out every key.
    if asks && request.uri().path() != "/v1/export" {
        return next.run(request).await;
    }
    let caller = request.extensions().get::<Caller>().cloned();
    let action = format!("{} {}", request.method(), request.uri().path());
    let response = next.run(request).await;
    let Some(Caller { who, from, .. }) = caller else { return response };
    if response.extensions().get::<Tried>().is_some() {
        return response;
    }
    let (changed, outcome) = match response.status() {
        status if status.is_success() => (true, "done".to_owned()),
        StatusCode::FORBIDDEN => (false, "denied".to_owned()),
        status => (false, format!("refused ({})", status.as_u16())),
    };
    note(&plane, Noted { who, from, action, outcome, changed }).await;
    response
}

/// Marks the answer to a request that looked like a change and was a question.
#[derive(Clone, Copy)]
pub(super) struct Tried;

/// What is written into the audit log.
pub(super) struct Noted {
    /// Who asked.
    pub(super) who: String,
    /// From where.
    pub(super) from: String,
    /// For what.
    pub(super) action: String,
    /// What became of it.
    pub(super) outcome: String,
    /// Whether anything is different now.
    pub(super) changed: bool,
}

/// How many requests of one caller that changed nothing are written down in a minute. A log has an end, and a disk, too:
/// whoever may do nothing must not be able to fill it.
const UNCHANGED_MAX: u32 = 60;
/// The time in which they are counted.
const MINUTE: Duration = Duration::from_secs(60);

/// Requests of the present minute that changed nothing, by who asked. Callers are known by then, so there are few.
pub(super) struct Unchanged {
    since: Instant,
    of: HashMap<String, u32>,
}

impl Unchanged {
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, of: HashMap::new() }
    }

    /// Whether one more is written down.
    fn is_noted(&mut self, who: &str, now: Instant) -> bool {
        if now.saturating_duration_since(self.since) >= MINUTE {
            *self = Self::new(now);
        }
        let count = self.of.entry(who.to_owned()).or_default();
        *count = count.saturating_add(1);
        if *count == UNCHANGED_MAX + 1 {
            tracing::warn!(
                "{who} was refused more than {UNCHANGED_MAX} times in a minute: what more is refused until it is over is not in \
                 the audit log"
            );
        }
        *count <= UNCHANGED_MAX
    }
}

/// Writes into the audit log, and tells when it begins to fail and when it goes on.
pub(super) async fn note(plane: &Arc<Plane>, noted: Noted) {
    let Noted { who, from, action, outcome, changed } = noted;
    if !changed {
        let mut unchanged = plane.unchanged.lock().unwrap_or_else(PoisonError::into_inner);
        if !unchanged.is_noted(&who, Instant::now()) {
            return;
        }
    }
    let log = Arc::clone(plane);
    let write = move || {
        log.audit.write(Event { who: &who, from: &from, action: &action, outcome: &outcome })
    };
    let before = plane.audit.missed();
    let written = tokio::task::spawn_blocking(write).await;
    match written {
        Ok(Err(error)) if before == 0 => {
            tracing::error!("a change is not in the audit log, and others may miss there: {error}");
        }
        Ok(Ok(())) if before > 0 => tell_mended(before),
        _ => {}
    }
}

fn tell_mended(missed: u64) {
    tracing::info!("the audit log is written again; entries missing, as it says itself: {missed}");
}

/// Looks after the log: the fault of one that could not be written must not last until the next change, and what somebody
/// does to its file is told before it. It runs until the control plane stops.
pub(super) async fn mend_audit(plane: &Arc<Plane>, every: Duration, stopping: Stopping) {
    loop {
        let stop = tokio::time::timeout(every, stopped(stopping.clone())).await.is_ok();
        let missed = plane.audit.missed();
        let log = Arc::clone(plane);
        let mended = tokio::task::spawn_blocking(move || log.audit.mend()).await;
        if missed > 0 && matches!(mended, Ok(Ok(()))) {
            tell_mended(missed);
        }
        if stop {
            return;
        }
    }
}

/// The fault of a log that cannot be written.
pub(super) fn audit_fault(plane: &Plane) -> Option<Fault> {
    plane.audit.is_unwritten().then_some(Fault::AuditUnwritten)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_may_do_nothing_does_not_fill_the_audit_log() {
        let now = Instant::now();
        let mut unchanged = Unchanged::new(now);
        let noted = (0..3 * UNCHANGED_MAX).filter(|_| unchanged.is_noted("token looker", now));
        assert_eq!(noted.count(), usize::try_from(UNCHANGED_MAX).unwrap());
        assert!(unchanged.is_noted("token other", now), "each caller by itself");
        assert!(!unchanged.is_noted("token looker", now + MINUTE / 2));
        assert!(unchanged.is_noted("token looker", now + MINUTE));
    }

    #[test]
    fn no_other_site_speaks_through_a_tunnel_to_the_control_socket() {
        let judged = |headers: &[(&'static str, &'static str)]| {
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                map.insert(*name, header::HeaderValue::from_static(value));
            }
            is_local(&map)
        };
        assert!(judged(&[("host", "duet")]) && judged(&[]));
        assert!(judged(&[("host", "localhost:8080"), ("origin", "http://localhost:8080")]));
        assert!(judged(&[("host", "[::1]:8080"), ("sec-fetch-site", "same-origin")]));
        assert!(judged(&[("host", "127.0.0.1:8080"), ("sec-fetch-site", "none")]));
        for wrong in [
            &[("host", "localhost:8080"), ("origin", "https://evil.example")][..],
            &[("host", "localhost:8080"), ("origin", "http://localhost:9090")],
            &[("host", "localhost:8080"), ("origin", "null")],
            &[("host", "localhost:8080"), ("sec-fetch-site", "cross-site")],
            &[("host", "localhost:8080"), ("sec-fetch-site", "same-site")],
            &[("host", "evil.example:8080"), ("origin", "http://evil.example:8080")],
            &[("host", "evil.example")],
        ] {
            assert!(!judged(wrong), "{wrong:?}");
        }
    }
}
