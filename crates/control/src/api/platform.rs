//! The platform itself: Namespaces, tokens, version, health, metrics.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use axum::Json;
use axum::extract::{Extension, Path, State};
use axum::response::IntoResponse;
use http::{StatusCode, header};
use serde::{Deserialize, Serialize};
use stead_core::api::Record;
use stead_core::api::{Ledger, NamespaceView, ProblemJson, TokenRequest, TokenView, VersionView};
use stead_core::app::{App, Release};
use stead_core::error::{Code, UserError};
use stead_core::ids::Ordinal;
use stead_core::name::NamespaceName;
use stead_core::time::Time;

use super::look::{NamespacePath, no_namespace};
use super::problem::Problem;
use super::request::Body;
use super::{Api, Handle};
use crate::auth::{Caller, Token};
use crate::clock;
use crate::store::{Damaged, Document, Kind, StoreError, Write};

/// A Namespace as it is stored. The default one need not be.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Namespace {
    created: Time,
}

impl Document for Namespace {
    const KIND: Kind = Kind::Namespace;
}

/// The Namespaces that the caller sees.
#[utoipa::path(get, path = "/api/v1/namespaces", tag = "platform",
    responses((status = 200, body = Vec<NamespaceView>), (status = "default", body = ProblemJson)))]
pub(super) async fn namespaces(
    State(api): Handle,
    Extension(caller): Extension<Caller>,
) -> Result<Json<Vec<NamespaceView>>, Problem> {
    let mut names = vec![NamespaceName::default()];
    names.extend(api.store.keys(Kind::Namespace, "")?.into_iter().filter_map(|n| n.parse().ok()));
    names.sort_unstable();
    names.dedup();
    let seen = names.into_iter().filter(|name| caller.sees(name));
    Ok(Json(seen.map(|name| api.namespace_view(name)).collect::<Result<_, _>>()?))
}

/// Creates a Namespace, if there is none of that name.
#[utoipa::path(put, path = "/api/v1/namespaces/{ns}", tag = "platform",
    params(("ns" = String, Path)),
    responses((status = 200, body = NamespaceView), (status = "default", body = ProblemJson)))]
pub(super) async fn create_namespace(
    State(api): Handle,
    Path(NamespacePath { ns }): Path<NamespacePath>,
) -> Result<Json<NamespaceView>, Problem> {
    let name: NamespaceName = ns.parse().map_err(|error: stead_core::name::BadName| {
        UserError::new(Code::BadRequest, error.to_string(), "choose another name")
    })?;
    if !api.has_namespace(&name)? {
        let write = Write::create(name.as_str(), &Namespace { created: clock::now() })?;
        match api.store.commit(vec![write]).await {
            // Somebody else created it at the same time.
            Err(StoreError::Conflict { .. }) => {}
            done => done?,
        }
    }
    Ok(Json(api.namespace_view(name)?))
}

/// Deletes an empty Namespace.
#[utoipa::path(delete, path = "/api/v1/namespaces/{ns}", tag = "platform",
    params(("ns" = String, Path)),
    responses((status = 204), (status = "default", body = ProblemJson)))]
pub(super) async fn delete_namespace(
    State(api): Handle,
    Path(NamespacePath { ns }): Path<NamespacePath>,
) -> Result<StatusCode, Problem> {
    let known = api.store.get::<Namespace>(&ns)?;
    if ns == NamespaceName::default().as_str() {
        let message = "the default namespace is always there";
        return Err(UserError::new(Code::Conflict, message, "delete its apps instead").into());
    }
    let known = known.ok_or_else(|| no_namespace(&ns))?;
    let apps = api.store.keys(Kind::App, &format!("{ns}/"))?;
    if let Some(app) = apps.first() {
        return Err(UserError::new(
            Code::Conflict,
            format!("namespace {ns} holds {} apps, such as {app}", apps.len()),
            "delete them first",
        )
        .into());
    }
    let secrets = api.store.keys(Kind::Secret, &format!("{ns}/"))?;
    let mut writes = vec![Write::remove(Kind::Namespace, ns, known.generation)];
    // Of Apps that never came.
    writes.extend(secrets.into_iter().map(|key| Write::clear(Kind::Secret, key)));
    api.store.commit(writes).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The tokens, without their secrets.
#[utoipa::path(get, path = "/api/v1/tokens", tag = "platform",
    responses((status = 200, body = Vec<TokenView>), (status = "default", body = ProblemJson)))]
pub(super) async fn tokens(State(api): Handle) -> Result<Json<Vec<TokenView>>, Problem> {
    Ok(Json(api.tokens.list()?))
}

/// Makes a token. Its secret is in this answer and nowhere else.
#[utoipa::path(post, path = "/api/v1/tokens", tag = "platform", request_body = TokenRequest,
    responses((status = 200, body = TokenView), (status = "default", body = ProblemJson)))]
pub(super) async fn create_token(
    State(api): Handle,
    Extension(caller): Extension<Caller>,
    Body(request): Body<TokenRequest>,
) -> Result<Json<TokenView>, Problem> {
    Ok(Json(api.tokens.create(&request, &caller, clock::now()).await?))
}

/// Ends a token.
#[utoipa::path(delete, path = "/api/v1/tokens/{id}", tag = "platform",
    params(("id" = String, Path)),
    responses((status = 204), (status = "default", body = ProblemJson)))]
pub(super) async fn revoke_token(
    State(api): Handle,
    Path(id): Path<String>,
) -> Result<StatusCode, Problem> {
    if api.tokens.revoke(&id).await? {
        return Ok(StatusCode::NO_CONTENT);
    }
    let hint = "`stead token list` lists them";
    Err(UserError::new(Code::NotFound, format!("there is no token {id}"), hint).into())
}

/// Versions of what runs.
#[utoipa::path(get, path = "/api/v1/version", tag = "platform",
    responses((status = 200, body = VersionView), (status = "default", body = ProblemJson)))]
pub(super) async fn version(State(api): Handle) -> Json<VersionView> {
    let version = env!("CARGO_PKG_VERSION").to_owned();
    Json(VersionView { version, gateways: api.publisher.versions() })
}

/// Says that the API answers. The only route that takes no token.
#[utoipa::path(get, path = "/api/v1/healthz", tag = "platform",
    responses((status = 200, description = "It answers")))]
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// Records in the store, and secrets, that cannot be read. Everything else goes on without
/// them.
#[utoipa::path(get, path = "/api/v1/doctor", tag = "platform",
    responses((status = 200, body = Vec<String>), (status = "default", body = ProblemJson)))]
pub(super) async fn doctor(State(api): Handle) -> Result<Json<Vec<String>>, Problem> {
    let mut damaged = Vec::new();
    fn look<T: Document>(api: &Api, into: &mut Vec<Damaged>) -> Result<(), StoreError> {
        into.extend(api.store.list::<T>("")?.damaged);
        Ok(())
    }
    look::<App>(&api, &mut damaged)?;
    look::<Release>(&api, &mut damaged)?;
    look::<Record>(&api, &mut damaged)?;
    look::<Namespace>(&api, &mut damaged)?;
    look::<Token>(&api, &mut damaged)?;
    look::<Ledger>(&api, &mut damaged)?;
    let mut found: Vec<String> = damaged.iter().map(ToString::to_string).collect();
    found.extend(api.vault.check()?);
    Ok(Json(found))
}

/// Metrics in the text format of Prometheus.
#[utoipa::path(get, path = "/api/v1/metrics", tag = "platform",
    responses((status = 200, body = String), (status = "default", body = ProblemJson)))]
pub(super) async fn metrics(State(api): Handle) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], api.exposition())
}

impl Api {
    fn namespace_view(&self, name: NamespaceName) -> Result<NamespaceView, Problem> {
        let apps = self.store.keys(Kind::App, &format!("{name}/"))?.len();
        Ok(NamespaceView { name, apps: u32::try_from(apps).unwrap_or(u32::MAX) })
    }

    /// Prometheus' text exposition format, version 0.0.4.
    fn exposition(&self) -> String {
        let mut text = String::new();
        let mut one = |name: &str, kind: &str, help: &str, samples: &[(String, u64)]| {
            let _ = writeln!(text, "# HELP stead_{name} {help}\n# TYPE stead_{name} {kind}");
            for (labels, value) in samples {
                let _ = writeln!(text, "stead_{name}{labels} {value}");
            }
        };
        let snapshots = self.board.all();
        let mut phases: BTreeMap<&str, u64> = BTreeMap::new();
        let (mut wanted, mut ready) = (Vec::new(), Vec::new());
        for snapshot in &snapshots {
            if let Some(rollout) = &snapshot.app.rollout {
                *phases.entry(rollout.phase.name()).or_default() += 1;
            }
            let key = &snapshot.app.key;
            let labels = format!("{{namespace=\"{}\",app=\"{}\"}}", key.namespace, key.app);
            let size = snapshot.fleet.instances;
            let serving = (0..size).filter(|n| snapshot.seen.serves(Ordinal(*n))).count();
            wanted.push((labels.clone(), u64::from(size)));
            ready.push((labels, serving as u64));
        }
        let phases: Vec<_> =
            phases.into_iter().map(|(phase, n)| (format!("{{phase=\"{phase}\"}}"), n)).collect();
        let plain = |value: u64| [(String::new(), value)];
        one("apps", "gauge", "Apps.", &plain(snapshots.len() as u64));
        one("rollouts", "gauge", "Apps by the phase of their last Rollout.", &phases);
        one("instances_wanted", "gauge", "Instances wanted.", &wanted);
        one("instances_ready", "gauge", "Instances ready and taking traffic.", &ready);
        one(
            "gateways",
            "gauge",
            "Gateways connected.",
            &plain(self.publisher.versions().len() as u64),
        );
        one(
            "route_generation",
            "gauge",
            "Generation of the route table.",
            &plain(self.publisher.generation().0),
        );
        one("events_dropped_total", "counter", "Events lost.", &plain(self.events.dropped()));
        one(
            "invariant_violations_total",
            "counter",
            "Invariants seen broken.",
            &plain(self.reconciler.violations()),
        );
        text
    }
}
