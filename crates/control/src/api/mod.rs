//! The REST API under `/api/v1`: what the CLI and the console use, and nothing else.
//!
//! # Guarantees
//! - Every request passes [`guard`] before its handler.
//! - A change is on disk before it is answered; it is answered before it is carried out.
//! - A change that names the generation it was made for (`If-Match`) is refused when somebody
//!   else was faster; one that names none is decided anew on what is there then.
//!
//! Handlers decide nothing that `stead_core::app` decides.

mod bases;
mod change;
mod deploy;
mod exec;
mod guard;
mod hosts;
mod images;
mod listen;
mod logs;
mod look;
mod platform;
mod problem;
mod progress;
mod registries;
mod release;
mod request;
mod secrets;
mod step;
mod stream;
mod uploads;
mod verbs;
mod view;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, State};
use axum::{Json, Router};
use stead_core::app::App;
use stead_core::error::{Code, UserError};
use stead_core::name::{AppKey, AppName, NamespaceName};
use tokio::sync::watch;
use utoipa::OpenApi;
use utoipa::openapi::OpenApi as Document;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::Tokens;
use crate::reconcile::Reconciler;
use crate::secrets::Vault;
use crate::store::Versioned;
use guard::Peer;
pub(crate) use images::remove_unfinished;
use listen::{Local, Loopback};
use problem::Problem;

/// Longest body of a request, in bytes, apart from an image's. A manifest carries the
/// contents of its files.
const MAX_BODY: usize = 16 << 20;

/// What handlers work with.
pub(crate) struct Api {
    /// Also for everything that both work with.
    pub(crate) reconciler: Arc<Reconciler>,
    pub(crate) tokens: Tokens,
    pub(crate) vault: Arc<Vault>,
    /// Where the gateway listens, for the addresses shown to people.
    pub(crate) http: SocketAddr,
    /// For images on their way in.
    pub(crate) temp_dir: PathBuf,
    /// Held by who makes a base image.
    pub(crate) making: tokio::sync::Mutex<()>,
    /// True once `serve` ends: streams end with it.
    pub(crate) closing: watch::Receiver<bool>,
}

impl std::ops::Deref for Api {
    type Target = Reconciler;

    fn deref(&self) -> &Reconciler {
        &self.reconciler
    }
}

type Handle = State<Arc<Api>>;

#[derive(OpenApi)]
#[openapi(info(
    title = "stead",
    description = "A serverless application engine. Errors are `application/problem+json` with \
                   the codes of docs/errors."
))]
struct Info;

fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::with_openapi(Info::openapi())
        .routes(routes!(look::apps))
        .routes(routes!(look::app, verbs::delete))
        .routes(routes!(deploy::deploy))
        .routes(routes!(deploy::plan))
        .routes(routes!(verbs::rollback))
        .routes(routes!(verbs::restart))
        .routes(routes!(verbs::scale))
        .routes(routes!(verbs::stop))
        .routes(routes!(verbs::start))
        .routes(routes!(verbs::steer))
        .routes(routes!(look::env, deploy::change_env))
        .routes(routes!(secrets::list))
        .routes(routes!(secrets::set, secrets::unset))
        .routes(routes!(look::instances))
        .routes(routes!(look::releases))
        .routes(routes!(look::rollouts))
        .routes(routes!(look::rollout))
        .routes(routes!(progress::progress))
        .routes(routes!(look::waterfall))
        .routes(routes!(look::ledger))
        .routes(routes!(look::usage))
        .routes(routes!(stream::app_events))
        .routes(routes!(stream::events))
        .routes(routes!(logs::logs))
        .routes(routes!(exec::exec))
        .routes(routes!(images::list))
        .routes(routes!(images::pull))
        .routes(routes!(images::pulls))
        .routes(routes!(images::compose))
        .routes(routes!(images::prune))
        .routes(routes!(images::remove))
        .routes(routes!(images::archive))
        .routes(routes!(bases::list))
        .routes(routes!(bases::put, bases::remove))
        .routes(routes!(registries::list))
        .routes(routes!(registries::log_in, registries::log_out))
        .routes(routes!(registries::add_mirror, registries::remove_mirror))
        .routes(routes!(platform::namespaces))
        .routes(routes!(platform::create_namespace, platform::delete_namespace))
        .routes(routes!(platform::tokens, platform::create_token))
        .routes(routes!(platform::revoke_token))
        .routes(routes!(platform::version))
        .routes(routes!(platform::healthz))
        .routes(routes!(platform::metrics))
        .routes(routes!(platform::doctor))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .merge(
            OpenApiRouter::new()
                .routes(routes!(images::import))
                .routes(routes!(uploads::view, uploads::append))
                .layer(DefaultBodyLimit::disable()),
        )
}

/// The routes and their description.
pub(crate) fn router(api: Arc<Api>) -> (Router, Document) {
    let (router, document) = routes().split_for_parts();
    let served = document.clone();
    let router = router
        .route("/api/openapi.json", axum::routing::get(|| async move { Json(served) }))
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&api), guard::guard))
        .with_state(api);
    (router, document)
}

/// Listens, and gives the address chosen and what serves until `closing` is true.
pub(crate) async fn serve(
    api: Arc<Api>,
    socket: PathBuf,
    listen: Option<SocketAddr>,
) -> io::Result<(Option<SocketAddr>, impl Future<Output = ()> + Send)> {
    let local = Local::bind(&socket)?;
    let loopback = match listen {
        Some(addr) => Some(Loopback::bind(addr).await?),
        None => None,
    };
    let addr = loopback.as_ref().map(Loopback::addr).transpose()?;
    let closing = api.closing.clone();
    let closed = move || {
        let mut closing = closing.clone();
        async move {
            let _ = closing.wait_for(|closing| *closing).await;
        }
    };
    let (router, _) = router(api);
    let service = router.into_make_service_with_connect_info::<Peer>();
    let on_socket = axum::serve(local, service.clone()).with_graceful_shutdown(closed());
    let on_address =
        loopback.map(|loopback| axum::serve(loopback, service).with_graceful_shutdown(closed()));
    let serving = async move {
        let on_address = async move {
            if let Some(serving) = on_address {
                // It never fails: errors of single connections are theirs.
                let _ = serving.await;
            }
        };
        let _ = tokio::join!(on_socket.into_future(), on_address);
    };
    Ok((addr, serving))
}

impl Api {
    /// An App, or the error that there is none.
    fn app(&self, key: &AppKey) -> Result<Versioned<App>, Problem> {
        self.store.get(&key.to_string())?.ok_or_else(|| no_app(key).into())
    }

    /// Whether there is such a Namespace.
    fn has_namespace(&self, name: &NamespaceName) -> Result<bool, Problem> {
        let stored = || self.store.get::<platform::Namespace>(name.as_str());
        Ok(*name == NamespaceName::default() || stored()?.is_some())
    }
}

fn no_app(key: &AppKey) -> UserError {
    UserError::new(
        Code::NotFound,
        format!("there is no app {key}"),
        "`stead apps` lists the apps of a namespace; -n names the namespace",
    )
}

/// The App that a path names.
#[derive(serde::Deserialize)]
struct AppPath {
    ns: String,
    app: String,
}

impl AppPath {
    /// A name that cannot be one names nothing that exists.
    fn key(&self) -> Result<AppKey, Problem> {
        let bad = |error: stead_core::name::BadName| {
            UserError::new(Code::NotFound, error.to_string(), "correct the name")
        };
        let namespace = NamespaceName::new(self.ns.as_str()).map_err(bad)?;
        Ok(AppKey::new(namespace, AppName::new(self.app.as_str()).map_err(bad)?))
    }
}

#[cfg(test)]
mod tests;
