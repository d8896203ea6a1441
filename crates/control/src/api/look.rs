//! Reading: Apps, Instances, Releases, Rollouts, waterfalls, ledgers.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{Path, State};
use axum::response::IntoResponse;
use serde::Deserialize;
use stead_core::api::{
    AppView, Bar, EnvView, InstanceView, LedgerView, ProblemJson, Record, ReleaseView, RolloutView,
    Waterfall,
};
use stead_core::app::{App, Release};
use stead_core::engine::Usage;
use stead_core::error::{Code, UserError};
use stead_core::fleet::FleetSeen;
use stead_core::ids::RolloutNo;
use stead_core::name::AppKey;
use stead_core::rollout::Rollout;
use utoipa::IntoParams;

use super::change::etag;
use super::problem::Problem;
use super::request::Params;
use super::{Api, AppPath, Handle, view};
use crate::events::waterfall;
use crate::record;

/// The Apps of a Namespace.
#[utoipa::path(get, path = "/api/v1/namespaces/{ns}/apps", tag = "look",
    params(("ns" = String, Path)),
    responses((status = 200, body = Vec<AppView>), (status = "default", body = ProblemJson)))]
pub(super) async fn apps(
    State(api): Handle,
    Path(NamespacePath { ns }): Path<NamespacePath>,
) -> Result<Json<Vec<AppView>>, Problem> {
    let known = ns.parse().map(|name| api.has_namespace(&name));
    if !known.unwrap_or(Ok(false))? {
        return Err(no_namespace(&ns).into());
    }
    let listing = api.store.list::<App>(&format!("{ns}/"))?;
    let mut views = Vec::new();
    for stored in listing.found {
        views.push(api.view(&stored.value).await?);
    }
    Ok(Json(views))
}

#[derive(Deserialize)]
pub(super) struct NamespacePath {
    pub(super) ns: String,
}

pub(super) fn no_namespace(name: &str) -> UserError {
    UserError::new(
        Code::NotFound,
        format!("there is no namespace {name}"),
        "`stead namespace list` lists them",
    )
}

/// One App.
#[utoipa::path(get, path = "/api/v1/namespaces/{ns}/apps/{app}", tag = "look",
    params(("ns" = String, Path), ("app" = String, Path)),
    responses((status = 200, body = AppView), (status = "default", body = ProblemJson)))]
pub(super) async fn app(
    State(api): Handle,
    Path(path): Path<AppPath>,
) -> Result<impl IntoResponse, Problem> {
    let app = api.app(&path.key()?)?.value;
    let view = api.view(&app).await?;
    Ok((etag(app.generation), Json(view)))
}

/// The environment variables that the App's present Release sets.
#[utoipa::path(get, path = "/api/v1/namespaces/{ns}/apps/{app}/env", tag = "look",
    params(("ns" = String, Path), ("app" = String, Path)),
    responses((status = 200, body = EnvView), (status = "default", body = ProblemJson)))]
pub(super) async fn env(
    State(api): Handle,
    Path(path): Path<AppPath>,
) -> Result<impl IntoResponse, Problem> {
    let app = api.app(&path.key()?)?.value;
    let mut view = EnvView { env: BTreeMap::new() };
    if let Some(release) = api.shown_release(&app)? {
        let env = release.settings.env.into_iter();
        view.env = env.map(|(name, value)| (name.to_string(), value)).collect();
    }
    Ok((etag(app.generation), Json(view)))
}

/// The App's Instances.
#[utoipa::path(get, path = "/api/v1/namespaces/{ns}/apps/{app}/instances", tag = "look",
    params(("ns" = String, Path), ("app" = String, Path)),
    responses((status = 200, body = Vec<InstanceView>), (status = "default", body = ProblemJson)))]
pub(super) async fn instances(
    State(api): Handle,
    Path(path): Path<AppPath>,
) -> Result<Json<Vec<InstanceView>>, Problem> {
    let app = api.app(&path.key()?)?.value;
    let wanted = if app.stopped || app.deleted { Vec::new() } else { app.ordinals() };
    let seen = api.engine.observe(&app.key).await?;
    Ok(Json(view::instances(&wanted, &seen)))
}

/// The App's Releases, newest first.
#[utoipa::path(get, path = "/api/v1/namespaces/{ns}/apps/{app}/releases", tag = "look",
    params(("ns" = String, Path), ("app" = String, Path)),
    responses((status = 200, body = Vec<ReleaseView>), (status = "default", body = ProblemJson)))]
pub(super) async fn releases(
    State(api): Handle,
    Path(path): Path<AppPath>,
) -> Result<Json<Vec<ReleaseView>>, Problem> {
    let app = api.app(&path.key()?)?.value;
    let current = app.target().map(|target| target.release);
    let listing = api.store.list::<Release>(&format!("{}/", app.key))?;
    let views = listing.found.into_iter().rev().map(|stored| {
        let current = current == Some(stored.value.number);
        ReleaseView { release: stored.value, current }
    });
    Ok(Json(views.collect()))
}

/// The App's Rollouts, newest first: the last ones, or with `before` those before that one.
#[utoipa::path(get, path = "/api/v1/namespaces/{ns}/apps/{app}/rollouts", tag = "look",
    params(("ns" = String, Path), ("app" = String, Path), RolloutsQuery),
    responses((status = 200, body = Vec<Rollout>), (status = "default", body = ProblemJson)))]
pub(super) async fn rollouts(
    State(api): Handle,
    Path(path): Path<AppPath>,
    Params(query): Params<RolloutsQuery>,
) -> Result<Json<Vec<Rollout>>, Problem> {
    let all = api.records(&api.app(&path.key()?)?.value)?;
    let rollouts = all.into_iter().map(|record| record.rollout);
    let wanted = rollouts.filter(|one| query.before.is_none_or(|before| one.number.0 < before));
    Ok(Json(wanted.take(query.limit.unwrap_or(ROLLOUTS)).collect()))
}

/// Rollouts per page, unless the caller says so.
const ROLLOUTS: usize = 100;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct RolloutsQuery {
    /// Only those before this number: the last of the page before.
    before: Option<u32>,
    /// At most so many.
    limit: Option<usize>,
}

/// One Rollout: what is kept of it, and where it is now.
#[utoipa::path(get, path = "/api/v1/namespaces/{ns}/apps/{app}/rollouts/{number}", tag = "look",
    params(("ns" = String, Path), ("app" = String, Path), ("number" = u32, Path)),
    responses((status = 200, body = RolloutView), (status = "default", body = ProblemJson)))]
pub(super) async fn rollout(
    State(api): Handle,
    Path(path): Path<AppPath>,
    Path(RolloutPath { number }): Path<RolloutPath>,
) -> Result<Json<RolloutView>, Problem> {
    let app = api.app(&path.key()?)?.value;
    let number = RolloutNo(number);
    let rollout = api.rollout(&app, number)?;
    let stored = record::load(&api.store, &app.key, number)?;
    let record = stored.map_or_else(|| Record::of(rollout.clone()), |stored| stored.value);
    let snapshot = api.board.last(&app.key).filter(|snapshot| {
        snapshot.app.rollout.as_ref().is_some_and(|current| current.number == number)
    });
    let now = snapshot
        .map(|snapshot| view::progress(rollout.clone(), snapshot.why.clone(), &snapshot, None));
    let verdict = api.figures.last_verdict(&app.key, number);
    Ok(Json(RolloutView { record: Record { rollout, ..record }, now, verdict }))
}

#[derive(Deserialize)]
pub(super) struct RolloutPath {
    pub(super) number: u32,
}

/// Where the time of a Rollout went: of the last one, unless one is named.
#[utoipa::path(get, path = "/api/v1/namespaces/{ns}/apps/{app}/waterfall", tag = "look",
    params(("ns" = String, Path), ("app" = String, Path), WaterfallQuery),
    responses((status = 200, body = Waterfall), (status = "default", body = ProblemJson)))]
pub(super) async fn waterfall(
    State(api): Handle,
    Path(path): Path<AppPath>,
    Params(query): Params<WaterfallQuery>,
) -> Result<Json<Waterfall>, Problem> {
    let app = api.app(&path.key()?)?.value;
    let all = api.records(&app)?;
    let at = match query.rollout {
        Some(number) => all.iter().position(|record| record.rollout.number.0 == number),
        None => (!all.is_empty()).then_some(0),
    };
    let Some(at) = at else {
        return Err(no_rollout(&app.key, query.rollout.map(RolloutNo)).into());
    };
    let record = &all[at];
    let bars = api.bars(&app.key, record).await?;
    // What ended well before it, and was another Release's.
    let before = all[at + 1..].iter().find(|earlier| {
        let other = earlier.rollout.to.release != record.rollout.to.release;
        other && earlier.rollout.phase.is_through()
    });
    let before_bars = match before {
        Some(before) => api.bars(&app.key, before).await?,
        None => Vec::new(),
    };
    let before = before.map(|before| (before, before_bars.as_slice()));
    Ok(Json(waterfall::build(record, bars, before)))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct WaterfallQuery {
    /// Number of the Rollout.
    rollout: Option<u32>,
}

/// What became of the App's requests, by Release, newest first.
#[utoipa::path(get, path = "/api/v1/namespaces/{ns}/apps/{app}/ledger", tag = "look",
    params(("ns" = String, Path), ("app" = String, Path), LedgerQuery),
    responses((status = 200, body = Vec<LedgerView>), (status = "default", body = ProblemJson)))]
pub(super) async fn ledger(
    State(api): Handle,
    Path(path): Path<AppPath>,
    Params(query): Params<LedgerQuery>,
) -> Result<Json<Vec<LedgerView>>, Problem> {
    let key = api.app(&path.key()?)?.value.key;
    // Gateways report each second by themselves; who asks has just seen an answer, maybe.
    api.publisher.ask_for_reports().await;
    let wanted = |view: &LedgerView| query.release.is_none_or(|release| view.release.0 == release);
    Ok(Json(api.ledgers.of(&key).into_iter().rev().filter(wanted).collect()))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct LedgerQuery {
    /// Only this Release.
    release: Option<u32>,
}

/// What the App's Instances use now.
#[utoipa::path(get, path = "/api/v1/namespaces/{ns}/apps/{app}/usage", tag = "look",
    params(("ns" = String, Path), ("app" = String, Path)),
    responses((status = 200, body = Vec<Usage>), (status = "default", body = ProblemJson)))]
pub(super) async fn usage(
    State(api): Handle,
    Path(path): Path<AppPath>,
) -> Result<Json<Vec<Usage>>, Problem> {
    let key = api.app(&path.key()?)?.value.key;
    Ok(Json(api.engine.usage(&key).await?))
}

impl Api {
    async fn view(&self, app: &App) -> Result<AppView, Problem> {
        let release = self.shown_release(app)?;
        let seen = match self.engine.observe(&app.key).await {
            Ok(seen) => seen,
            Err(error) => {
                // What is wanted can be shown all the same.
                tracing::warn!(app = %app.key, %error, "engine cannot observe an app");
                FleetSeen::default()
            }
        };
        Ok(view::app(app, release.as_ref(), &seen, self.http))
    }

    /// The Release that an App runs or goes to.
    fn shown_release(&self, app: &App) -> Result<Option<Release>, Problem> {
        let going_to = || app.rollout.as_ref().map(|rollout| rollout.to.release);
        match app.target().map(|target| target.release).or_else(going_to) {
            Some(number) => self.release(&app.key, number),
            None => Ok(None),
        }
    }

    /// Every Rollout of an App, newest first. Where the present one is, the App knows best.
    fn records(&self, app: &App) -> Result<Vec<Record>, Problem> {
        let listing = self.store.list::<Record>(&format!("{}/", app.key))?;
        let mut records: Vec<Record> =
            listing.found.into_iter().rev().map(|stored| stored.value).collect();
        if let Some(current) = &app.rollout {
            match records.first_mut().filter(|first| first.rollout.number == current.number) {
                Some(first) => first.rollout = current.clone(),
                None => records.insert(0, Record::of(current.clone())),
            }
        }
        Ok(records)
    }

    /// Where a Rollout's time went: as its events say, which may go on after its end, or as its
    /// record says once those are gone.
    async fn bars(&self, app: &AppKey, record: &Record) -> Result<Vec<Bar>, Problem> {
        let end = waterfall::ended(record).unwrap_or_else(crate::clock::now) + waterfall::SLACK;
        let events = self.events.between(app.clone(), record.rollout.started, end).await?;
        let bars = waterfall::bars(record, &events);
        Ok(if bars.is_empty() { record.bars.clone() } else { bars })
    }

    /// One Rollout of an App.
    pub(super) fn rollout(&self, app: &App, number: RolloutNo) -> Result<Rollout, Problem> {
        if let Some(current) = app.rollout.as_ref().filter(|current| current.number == number) {
            return Ok(current.clone());
        }
        let stored = record::load(&self.store, &app.key, number)?;
        let stored = stored.ok_or_else(|| no_rollout(&app.key, Some(number)))?;
        Ok(stored.value.rollout)
    }
}

fn no_rollout(app: &AppKey, number: Option<RolloutNo>) -> UserError {
    let what = number.map_or("no rollout yet".to_owned(), |number| format!("no rollout {number}"));
    UserError::new(
        Code::NotFound,
        format!("app {app} has {what}"),
        "a rollout follows from each deploy, rollback and restart",
    )
}
