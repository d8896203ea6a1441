//! `deploy` and changes of the environment: verbs that make a Release.

use axum::Json;
use axum::extract::{Extension, Path, State};
use serde::Deserialize;
use stead_core::api::{Accepted, DeployRequest, EnvRequest, PlanView, ProblemJson};
use stead_core::app::App;
use stead_core::error::{Code, UserError};
use stead_core::event::{Fact, PhaseName};
use stead_core::fleet::FleetSeen;
use stead_core::manifest::Manifest;
use stead_core::name::{AppKey, NamespaceName};
use stead_core::rollout::RolloutKind;

use super::change::{Committed, IfMatch};
use super::platform::Namespace;
use super::problem::Problem;
use super::release::{Author, Images, changed_env, read_manifest};
use super::request::Body;
use super::verbs::nothing_released;
use super::{Api, AppPath, Handle};
use crate::auth::Caller;
use crate::clock;
use crate::reconcile::note;
use crate::record;
use crate::store::Write;

/// [`DeployRequest`], with the manifest as it came: its own reader reports every problem.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Deploy {
    manifest: serde_json::Value,
    #[serde(default)]
    message: Option<String>,
}

/// Makes a Release and rolls it out. The App is created if there is none.
#[utoipa::path(post, path = "/api/v1/namespaces/{ns}/apps/{app}/deploy", tag = "change",
    params(("ns" = String, Path), ("app" = String, Path)), request_body = DeployRequest,
    responses((status = 202, body = Accepted), (status = "default", body = ProblemJson)))]
pub(super) async fn deploy(
    State(api): Handle,
    Extension(caller): Extension<Caller>,
    Path(path): Path<AppPath>,
    if_match: IfMatch,
    Body(request): Body<Deploy>,
) -> Result<Committed, Problem> {
    let asked = clock::now();
    let key = path.key()?;
    let manifest = read_manifest(&request.manifest)?;
    belongs(&manifest, &key)?;
    api.enter_namespace(&key)?;
    // Before the registry is asked; what counts is asked again with the commit.
    api.claim_hosts(&key, &manifest)?;
    api.vault.hold(&key, &manifest.secrets)?;
    let (images, here) = tokio::join!(api.resolve(&manifest), api.images_here());
    let images = images?;
    api.check_site(&manifest, &images).await?;
    let took = clock::now().since(asked);
    let image_here = images.all_in(&here);
    let author = Author { by: caller.name.clone(), message: request.message, asked };
    let committed = api
        .change_or_create(&caller, &key, if_match, |app| {
            let entered = match &app {
                None => api.enter_namespace(&key)?,
                Some(_) => None,
            };
            let claimed = api.claim_hosts(&key, &manifest)?;
            let (secrets, held) = api.vault.hold(&key, &manifest.secrets)?;
            let mut images = images.clone();
            images.secrets = secrets;
            let kind = RolloutKind::Deploy;
            let mut decision =
                api.decide_release(app, &manifest, &images, &author, kind, image_here)?;
            decision.beside.extend(entered.into_iter().chain(claimed).chain(held));
            Ok(Some(decision))
        })
        .await?;
    note(&api.events, &key, Fact::Phase { phase: PhaseName::Resolve, begun: asked, took });
    Ok(committed)
}

/// What a deploy would do now, Instance by Instance and field by field. Changes nothing.
#[utoipa::path(post, path = "/api/v1/namespaces/{ns}/apps/{app}/plan", tag = "look",
    params(("ns" = String, Path), ("app" = String, Path)), request_body = DeployRequest,
    responses((status = 200, body = PlanView), (status = "default", body = ProblemJson)))]
pub(super) async fn plan(
    State(api): Handle,
    Extension(caller): Extension<Caller>,
    Path(path): Path<AppPath>,
    Body(request): Body<Deploy>,
) -> Result<Json<PlanView>, Problem> {
    let key = path.key()?;
    let manifest = read_manifest(&request.manifest)?;
    belongs(&manifest, &key)?;
    api.claim_hosts(&key, &manifest)?;
    let (secrets, _) = api.vault.hold(&key, &manifest.secrets)?;
    let before = api.store.get::<App>(&key.to_string())?.map(|stored| stored.value);
    if before.is_none() {
        api.enter_namespace(&key)?;
    }
    let (images, seen) = tokio::join!(api.resolve(&manifest), api.engine.observe(&key));
    let mut images = images?;
    api.check_site(&manifest, &images).await?;
    images.secrets = secrets;
    let seen = match before {
        Some(_) => seen?,
        None => FleetSeen::default(),
    };
    let author = Author { by: caller.name, message: request.message, asked: clock::now() };
    // As a deploy decides it; it is only not committed.
    let decision =
        api.decide_release(before.clone(), &manifest, &images, &author, RolloutKind::Deploy, true)?;
    let new = decision.release.as_ref();
    let plan = record::plan(&api.store, before.as_ref(), &decision.app, new, &seen)?;
    Ok(Json(PlanView { app: key, plan }))
}

/// Sets and removes environment variables: a Release that differs in them alone.
#[utoipa::path(patch, path = "/api/v1/namespaces/{ns}/apps/{app}/env", tag = "change",
    params(("ns" = String, Path), ("app" = String, Path)), request_body = EnvRequest,
    responses((status = 202, body = Accepted), (status = "default", body = ProblemJson)))]
pub(super) async fn change_env(
    State(api): Handle,
    Extension(caller): Extension<Caller>,
    Path(path): Path<AppPath>,
    if_match: IfMatch,
    Body(request): Body<EnvRequest>,
) -> Result<Committed, Problem> {
    let key = path.key()?;
    let author = Author { by: caller.name.clone(), message: None, asked: clock::now() };
    let here = api.images_here().await;
    api.change(&caller, &key, if_match, |app| {
        // A Release on its way is changed, not lost.
        let heading = app.heading().ok_or_else(|| nothing_released(&key))?;
        let current = api.known_release(&key, heading.release)?;
        let manifest = changed_env(&current.settings, &request)?;
        if manifest == current.settings {
            return Ok(None);
        }
        let kind = RolloutKind::Config;
        let images = Images::of(&current);
        let image_here = images.all_in(&here);
        let mut decision =
            api.decide_release(Some(app), &manifest, &images, &author, kind, image_here)?;
        let names: Vec<_> = request.set.keys().chain(&request.unset).cloned().collect();
        // Values may be confidential; names are not.
        decision.what = format!("changed the environment: {}", names.join(", "));
        Ok(Some(decision))
    })
    .await
}

fn belongs(manifest: &Manifest, key: &AppKey) -> Result<(), UserError> {
    if manifest.key() == *key {
        return Ok(());
    }
    Err(UserError::new(
        Code::BadRequest,
        format!("the manifest is of app {}, the request of app {key}", manifest.key()),
        "deploy it under its own name",
    ))
}

impl Api {
    /// What a new App writes beside itself, so that its Namespace cannot go at the same time.
    pub(super) fn enter_namespace(&self, key: &AppKey) -> Result<Option<Write>, Problem> {
        let name = &key.namespace;
        if *name == NamespaceName::default() {
            return Ok(None);
        }
        match self.store.get::<Namespace>(name.as_str())? {
            Some(stored) => Ok(Some(Write::replace(&stored, &stored.value)?)),
            None => Err(UserError::new(
                Code::NotFound,
                format!("there is no namespace {name}"),
                format!("create it with `stead namespace create {name}`"),
            )
            .into()),
        }
    }
}
