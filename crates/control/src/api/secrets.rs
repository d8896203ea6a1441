//! Secrets of an App: names go out, values only come in.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{Extension, Path, State};
use serde::Deserialize;
use stead_core::api::{ProblemJson, SecretChanged, SecretRequest, SecretView};
use stead_core::app::{App, Release};
use stead_core::error::{Code, UserError};
use stead_core::event::Fact;
use stead_core::manifest::EnvName;
use stead_core::name::AppKey;
use stead_core::rollout::RolloutKind;

use super::change::{Committed, Decision, IfMatch};
use super::problem::Problem;
use super::release::{Author, Images};
use super::request::Body;
use super::{Api, AppPath, Handle};
use crate::auth::Caller;
use crate::clock;
use crate::reconcile::note;
use crate::store::{StoreError, Write};

/// The secret that a path names.
#[derive(Deserialize)]
pub(super) struct SecretPath {
    name: String,
}

impl SecretPath {
    fn name(&self) -> Result<EnvName, Problem> {
        self.name.parse().map_err(|bad: stead_core::manifest::BadValue| {
            let message = format!("{:?} is no name of a secret: {bad}", self.name);
            UserError::new(Code::BadRequest, message, "correct the name").into()
        })
    }
}

/// The App's secrets: names and versions, never values. Also of an App that is still to come.
#[utoipa::path(get, path = "/api/v1/namespaces/{ns}/apps/{app}/secrets", tag = "look",
    params(("ns" = String, Path), ("app" = String, Path)),
    responses((status = 200, body = Vec<SecretView>), (status = "default", body = ProblemJson)))]
pub(super) async fn list(
    State(api): Handle,
    Path(path): Path<AppPath>,
) -> Result<Json<Vec<SecretView>>, Problem> {
    let key = path.key()?;
    let app = api.store.get::<App>(&key.to_string())?.map(|stored| stored.value);
    let versions = api.vault.of(&key)?;
    if versions.is_empty() && app.is_none() {
        // The error of a Namespace, or of an App, that is not there.
        api.enter_namespace(&key)?;
        api.app(&key)?;
    }
    let release = app.map(|app| api.heading_release(&app)).transpose()?.flatten();
    let mut views = BTreeMap::new();
    for version in versions.into_iter().map(|stored| stored.value) {
        let used = release.as_ref().and_then(|r| r.secrets.get(&version.name)).copied();
        if version.current || used == Some(version.version) {
            let of_current = version.current.then_some(version.version);
            // Versions come in their order, so one that is current comes last.
            let view = SecretView {
                name: version.name.clone(),
                version: of_current,
                set: version.set,
                by: version.by,
                used,
            };
            views.insert(version.name, view);
        }
    }
    Ok(Json(views.into_values().collect()))
}

/// Gives a secret a value. An App that uses it gets a Release that differs in it alone.
#[utoipa::path(put, path = "/api/v1/namespaces/{ns}/apps/{app}/secrets/{name}", tag = "change",
    params(("ns" = String, Path), ("app" = String, Path), ("name" = String, Path)),
    request_body = SecretRequest,
    responses((status = 200, body = SecretChanged), (status = "default", body = ProblemJson)))]
pub(super) async fn set(
    State(api): Handle,
    Extension(caller): Extension<Caller>,
    Path(path): Path<AppPath>,
    Path(secret): Path<SecretPath>,
    if_match: IfMatch,
    Body(SecretRequest { value }): Body<SecretRequest>,
) -> Result<Json<SecretChanged>, Problem> {
    let (key, name) = (path.key()?, secret.name()?);
    let now = clock::now();
    let put = || api.vault.set(&key, &name, &value, &caller.name, now);
    if api.store.get::<App>(&key.to_string())?.is_none() {
        let set = || {
            let set = put()?;
            Ok((format!("set secret {name}, version {}", set.version), set.writes))
        };
        api.change_before_app(&caller, &key, set).await?;
        return Ok(Json(api.changed(&key, &name, None)?));
    }
    let here = api.images_here().await;
    let committed = api.change(&caller, &key, if_match, |mut app| {
        let set = put()?;
        let mut decision = match api.using(&app, &name)? {
            Some(current) if current.secrets.get(&name) != Some(&set.version) => {
                let mut images = Images::of(&current);
                images.secrets.insert(name.clone(), set.version);
                let image_here = images.all_in(&here);
                let author = Author { by: caller.name.clone(), message: None, asked: now };
                let kind = RolloutKind::Config;
                api.decide_release(
                    Some(app),
                    &current.settings,
                    &images,
                    &author,
                    kind,
                    image_here,
                )?
            }
            _ if set.writes.is_empty() => return Ok(None),
            _ => {
                app.generation = app.generation.next();
                Decision { app, beside: Vec::new(), release: None, what: String::new() }
            }
        };
        decision.beside.extend(set.writes);
        decision.what = format!("set secret {name}, version {}", set.version);
        Ok(Some(decision))
    });
    let committed = committed.await?;
    Ok(Json(api.changed(&key, &name, Some(committed))?))
}

/// Removes a secret. An App that uses it gets a Release without it; the value stays for
/// rollbacks as long as Releases that have it are kept.
#[utoipa::path(delete, path = "/api/v1/namespaces/{ns}/apps/{app}/secrets/{name}", tag = "change",
    params(("ns" = String, Path), ("app" = String, Path), ("name" = String, Path)),
    responses((status = 200, body = SecretChanged), (status = "default", body = ProblemJson)))]
pub(super) async fn unset(
    State(api): Handle,
    Extension(caller): Extension<Caller>,
    Path(path): Path<AppPath>,
    Path(secret): Path<SecretPath>,
    if_match: IfMatch,
) -> Result<Json<SecretChanged>, Problem> {
    let (key, name) = (path.key()?, secret.name()?);
    let now = clock::now();
    let what = || format!("unset secret {name}");
    if api.store.get::<App>(&key.to_string())?.is_none() {
        let unset = || {
            let taken = api.vault.unset(&key, &name)?;
            Ok((what(), vec![taken.ok_or_else(|| no_secret(&key, &name))?]))
        };
        api.change_before_app(&caller, &key, unset).await?;
        return Ok(Json(api.changed(&key, &name, None)?));
    }
    let here = api.images_here().await;
    let committed = api.change(&caller, &key, if_match, |mut app| {
        let taken = api.vault.unset(&key, &name)?;
        let mut decision = match api.using(&app, &name)? {
            Some(current) => {
                let mut images = Images::of(&current);
                images.secrets.remove(&name);
                let image_here = images.all_in(&here);
                let mut manifest = current.settings.clone();
                manifest.secrets.retain(|other| *other != name);
                let author = Author { by: caller.name.clone(), message: None, asked: now };
                let kind = RolloutKind::Config;
                api.decide_release(Some(app), &manifest, &images, &author, kind, image_here)?
            }
            None if taken.is_none() => return Err(no_secret(&key, &name).into()),
            None => {
                app.generation = app.generation.next();
                Decision { app, beside: Vec::new(), release: None, what: String::new() }
            }
        };
        decision.beside.extend(taken);
        decision.what = what();
        Ok(Some(decision))
    });
    let committed = committed.await?;
    Ok(Json(api.changed(&key, &name, Some(committed))?))
}

fn no_secret(app: &AppKey, name: &EnvName) -> UserError {
    UserError::new(
        Code::NotFound,
        format!("app {app} has no secret {name}"),
        format!("`stead secrets list {}` lists them", app.app),
    )
}

impl Api {
    /// The Release that an App is going to, or runs.
    fn heading_release(&self, app: &App) -> Result<Option<Release>, Problem> {
        match app.heading() {
            Some(heading) => self.release(&app.key, heading.release),
            None => Ok(None),
        }
    }

    /// The Release that an App is going to, or runs, if it uses the secret.
    fn using(&self, app: &App, name: &EnvName) -> Result<Option<Release>, Problem> {
        let release = self.heading_release(app)?;
        Ok(release.filter(|release| release.secrets.contains_key(name)))
    }

    /// What a secret is after a change.
    fn changed(
        &self,
        app: &AppKey,
        name: &EnvName,
        committed: Option<Committed>,
    ) -> Result<SecretChanged, Problem> {
        let current = self.vault.current(app, name)?;
        let accepted = committed.map(|Committed(accepted)| accepted);
        Ok(SecretChanged {
            name: name.clone(),
            version: current.map(|stored| stored.value.version),
            accepted: accepted.filter(|accepted| accepted.rollout.is_some()),
        })
    }

    /// Commits what belongs to an App that is still to come. Nothing to write: nothing to do.
    async fn change_before_app(
        &self,
        caller: &Caller,
        key: &AppKey,
        decide: impl Fn() -> Result<(String, Vec<Write>), Problem>,
    ) -> Result<(), Problem> {
        for _ in 0..super::change::ATTEMPTS {
            let (what, mut writes) = decide()?;
            if writes.is_empty() {
                return Ok(());
            }
            writes.extend(self.enter_namespace(key)?);
            match self.store.commit(writes).await {
                Ok(()) => {
                    let by = caller.name.clone();
                    tracing::info!(app = %key, by, what, "changed");
                    note(&self.events, key, Fact::Changed { by, what });
                    return Ok(());
                }
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(super::change::busy(key).into())
    }
}
