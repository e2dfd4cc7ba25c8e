//! The API: every endpoint with its description, in one router. The document at `/openapi.json` is made from the same
//! list, so none can be missing there.
//!
//! A handler never waits for the disk on the control plane's own thread: what does goes through [`Plane::blocking`].
//! The probes (status, health, ready, metrics) are answered from memory alone, whatever else goes on.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use tokio::sync::{Semaphore, watch};
use utoipa::OpenApi;
use utoipa::openapi::{OpenApi as Document, RefOr};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

mod commands;
mod control;
mod devices;
mod enrol;
mod input;
mod live;
mod log;
mod page;
mod probes;
mod tokens;

use super::access::{self, Role, Unchanged};
use super::audit::Audit;
use super::enrol::Desk;
use super::tokens::Tokens;
use super::{Gateway, GatewayFacts, Problem, Reload, Telemetry, door};
use crate::config::Enrol;
use crate::registry::{Registry, View};
use crate::wipe;

pub(crate) use commands::{CommandRequest, CommandResult, NewCommand, QueuedCommand};
pub(crate) use control::Copied;
pub(crate) use devices::{Added, Ended, EndedAll};
pub(crate) use log::LogLevel;
pub(crate) use tokens::{Made, NewToken};

/// Requests that may be under way at once, beside the probes: fewer than a door has places, so that one is left for
/// whoever asks how the gateway is.
const REQUESTS: usize = door::PLACES * 3 / 4;

/// All that requests are answered from.
pub(super) struct Plane {
    pub(super) registry: Arc<Registry>,
    /// The registry's view, held here because [`Registry::view`] waits for a change that is being written.
    pub(super) view: Arc<View>,
    pub(super) gateway: Arc<dyn Gateway>,
    pub(super) telemetry: Telemetry,
    pub(super) requests: Semaphore,
    /// Places for those who watch.
    pub(super) watchers: Arc<Semaphore>,
    /// Whose turn it is to have a copy of the registry.
    pub(super) copying: Arc<Semaphore>,
    /// What devices need to know of this gateway.
    pub(super) facts: watch::Receiver<Option<GatewayFacts>>,
    pub(super) tokens: Arc<Tokens>,
    pub(super) audit: Audit,
    pub(super) unchanged: Mutex<Unchanged>,
    /// Where devices enrol.
    pub(super) desk: Arc<Desk>,
    reload: Arc<Reload>,
}

/// What the control plane keeps besides the registry.
pub(super) struct Keep {
    pub(super) tokens: Tokens,
    pub(super) audit: Audit,
    pub(super) reload: Reload,
    pub(super) facts: watch::Receiver<Option<GatewayFacts>>,
    pub(super) enrol: Enrol,
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Duet gateway",
        description = "How a gateway is, its devices, and commands to them. On the control socket the caller is the \
            user of the process; the gateway's own user and root may do everything. Over TLS a token in the header \
            Authorization: Bearer names the caller and its role: viewer (look), operator (devices and commands) or \
            admin (everything). A device enrols without one: its enrolment token is in the request.",
    ),
    // Where only a question names one, nothing else brings it in.
    components(schemas(super::DeviceState)),
    tags(
        (name = "gateway", description = "How the gateway is"),
        (name = "tokens", description = "Tokens for the API over TLS"),
        (name = "enrolment", description = "Devices that register themselves, with a token"),
        (name = "devices", description = "Devices that may connect"),
        (name = "commands", description = "What devices are to do, whether they are connected or asleep"),
    )
)]
struct Heading;

impl Plane {
    pub(super) fn new(
        registry: Arc<Registry>,
        view: Arc<View>,
        gateway: Arc<dyn Gateway>,
        telemetry: Telemetry,
        keep: Keep,
    ) -> Self {
        let Keep { tokens, audit, reload, facts, enrol } = keep;
        Self {
            registry,
            view,
            gateway,
            telemetry,
            requests: Semaphore::new(REQUESTS),
            watchers: Arc::new(Semaphore::new(live::WATCHERS)),
            copying: Arc::new(Semaphore::new(1)),
            facts,
            tokens: Arc::new(tokens),
            audit,
            unchanged: Mutex::new(Unchanged::new(Instant::now())),
            desk: Arc::new(Desk::new(enrol)),
            reload: Arc::new(reload),
        }
    }

    /// Runs work that waits for the disk on a thread of its own.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Registry, &dyn Gateway) -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        let (registry, gateway) = (Arc::clone(&self.registry), Arc::clone(&self.gateway));
        // It may be about keys or tokens.
        let work = move || wipe::stack_after(|| work(&registry, &*gateway));
        let done = tokio::task::spawn_blocking(work).await;
        done.unwrap_or_else(|_| {
            let text =
                "the request failed inside the gateway; this is a bug in duet, please report it";
            Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, text))
        })
    }
}

/// Has each answer that says nothing of itself say what its status means: the standard wants a word for each.
fn describe_answers(document: &mut Document) {
    for item in document.paths.paths.values_mut() {
        let operations = [&mut item.get, &mut item.put, &mut item.post, &mut item.delete];
        for operation in operations.into_iter().chain([&mut item.patch]).flatten() {
            for (status, answer) in &mut operation.responses.responses {
                let RefOr::T(answer) = answer else { continue };
                let reason =
                    status.parse().ok().and_then(|code: StatusCode| code.canonical_reason());
                if answer.description.is_empty() {
                    answer.description = reason.unwrap_or("Another answer").into();
                }
            }
        }
    }
}

/// The whole API, and its description.
pub(super) fn router(plane: &Arc<Plane>) -> (Router, Document) {
    let (router, mut document) = OpenApiRouter::with_openapi(Heading::openapi())
        .merge(probes().route_layer(middleware::from_fn_with_state(Role::Viewer, access::require)))
        .merge(
            OpenApiRouter::new()
                .routes(routes!(devices::list))
                .routes(routes!(devices::show))
                .routes(routes!(enrol::list))
                .routes(routes!(commands::list))
                .routes(routes!(commands::show))
                .routes(routes!(log::show))
                .route_layer(middleware::from_fn_with_state(Role::Viewer, access::require))
                .layer(middleware::from_fn_with_state(Arc::clone(plane), bounded)),
        )
        .merge(
            OpenApiRouter::new()
                .routes(routes!(devices::add))
                .routes(routes!(devices::relabel))
                .routes(routes!(devices::renew))
                .routes(routes!(enrol::add))
                .routes(routes!(enrol::revoke))
                .routes(routes!(devices::remove))
                .routes(routes!(devices::revoke))
                .routes(routes!(devices::revoke_all))
                .routes(routes!(devices::remove_all))
                .routes(routes!(commands::command))
                .routes(routes!(commands::queue))
                .routes(routes!(commands::cancel))
                .routes(routes!(log::set))
                .route_layer(middleware::from_fn_with_state(Role::Operator, access::require))
                .layer(middleware::from_fn_with_state(Arc::clone(plane), bounded)),
        )
        .merge(
            OpenApiRouter::new()
                .routes(routes!(devices::export))
                .routes(routes!(control::reload))
                .routes(routes!(control::backup))
                .routes(routes!(tokens::list, tokens::add))
                .routes(routes!(tokens::revoke))
                .route_layer(middleware::from_fn_with_state(Role::Admin, access::require))
                .layer(middleware::from_fn_with_state(Arc::clone(plane), bounded)),
        )
        .split_for_parts();
    // Behind no role: whoever comes here brings a token of another kind.
    let (open, described) =
        OpenApiRouter::<Arc<Plane>>::new().routes(routes!(enrol::enrol)).split_for_parts();
    document.merge(described);
    let open = open.layer(middleware::from_fn(uncached)).with_state(Arc::clone(plane));
    document.info.version = env!("CARGO_PKG_VERSION").into();
    describe_answers(&mut document);
    let text: Arc<str> = document.to_json().unwrap_or_default().into();
    let described = move || {
        let text = Arc::clone(&text);
        async move { ([(header::CONTENT_TYPE, "application/json")], text.to_string()) }
    };
    let router = router
        .route("/openapi.json", axum::routing::get(described))
        .fallback(unknown)
        .layer(middleware::from_fn(uncached))
        .layer(middleware::from_fn_with_state(Arc::clone(plane), access::audit))
        .layer(middleware::from_fn_with_state(Arc::clone(plane), access::authenticate))
        .with_state(Arc::clone(plane));
    // Behind nothing: the page's own files say nothing of the gateway.
    (page::router().layer(middleware::from_fn(uncached)).merge(open).merge(router), document)
}

/// The probes alone, for the plain address of metrics and health.
pub(super) fn plain(plane: &Arc<Plane>) -> Router {
    let (router, _) = OpenApiRouter::<Arc<Plane>>::new()
        .routes(routes!(probes::metrics))
        .routes(routes!(probes::health))
        .routes(routes!(probes::ready))
        .split_for_parts();
    router.fallback(unknown).layer(middleware::from_fn(uncached)).with_state(Arc::clone(plane))
}

fn probes() -> OpenApiRouter<Arc<Plane>> {
    OpenApiRouter::new()
        .routes(routes!(probes::metrics))
        .routes(routes!(probes::health))
        .routes(routes!(probes::ready))
        .routes(routes!(probes::status))
        .routes(routes!(probes::gateway))
        .routes(routes!(live::activity))
        .routes(routes!(live::live))
}

/// Refuses more requests at once than there is room for, and counts the others.
async fn bounded(State(plane): State<Arc<Plane>>, request: Request, next: Next) -> Response {
    let Ok(_permit) = plane.requests.try_acquire() else {
        let text = format!("{REQUESTS} requests are under way already; try again");
        return Problem::new(StatusCode::SERVICE_UNAVAILABLE, text).into_response();
    };
    plane.telemetry.count_request();
    next.run(request).await
}

/// Answers are about this moment.
async fn uncached(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let value = header::HeaderValue::from_static("no-store");
    response.headers_mut().insert(header::CACHE_CONTROL, value);
    response
}

async fn unknown() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "nothing is here; /openapi.json names what there is")
}

/// An answer in JSON.
type Answer<T> = Result<Json<T>, Problem>;
