//! Verbs that change an App without making a Release.

use axum::extract::{Extension, Path, State};
use serde::Deserialize;
use stead_core::api::{
    Accepted, ProblemJson, RestartRequest, RollbackRequest, ScaleRequest, SteerRequest,
};
use stead_core::app::{App, Change};
use stead_core::error::{Code, UserError};
use stead_core::ids::ReleaseNo;
use stead_core::name::AppKey;
use stead_core::rollout::{Phase, RolloutKind};
use utoipa::IntoParams;

use super::change::{Committed, Decision, IfMatch};
use super::problem::Problem;
use super::release::Images;
use super::request::{Body, Params};
use super::{AppPath, Handle};
use crate::auth::Caller;
use crate::clock;

/// Most Instances an App may have.
const MOST_INSTANCES: u32 = 1000;

/// Goes back to an earlier Release: the one before, unless one is named. While a Rollout is
/// under way, going back means giving it up.
#[utoipa::path(post, path = "/api/v1/namespaces/{ns}/apps/{app}/rollback", tag = "change",
    params(("ns" = String, Path), ("app" = String, Path)), request_body = RollbackRequest,
    responses((status = 202, body = Accepted), (status = "default", body = ProblemJson)))]
pub(super) async fn rollback(
    State(api): Handle,
    Extension(caller): Extension<Caller>,
    Path(path): Path<AppPath>,
    if_match: IfMatch,
    Body(request): Body<RollbackRequest>,
) -> Result<Committed, Problem> {
    let key = path.key()?;
    let here = api.images_seen(&key).await;
    let now = clock::now();
    api.change(&caller, &key, if_match, |mut app| {
        let number = match back_to(&app, request.release)? {
            Back::GiveUp => {
                app.abort(&caller.name, now)?;
                let what = "gave the rollout up".to_owned();
                return Ok(Some(Decision::of(app, what)));
            }
            Back::To(number) => number,
        };
        let release = api.known_release(&key, number)?;
        // Another App may have taken a host since.
        let claimed = api.claim_hosts(&key, &release.settings)?;
        let change = Change {
            kind: RolloutKind::Rollback,
            now,
            by: caller.name.clone(),
            message: request.message.clone(),
            image_here: Images::of(&release).all_in(&here),
        };
        app.roll_out(number, &release.settings, change);
        let what = format!("rolled back to release {number}");
        Ok(Some(Decision { beside: claimed.into_iter().collect(), ..Decision::of(app, what) }))
    })
    .await
}

/// What going back means.
#[derive(Debug, PartialEq, Eq)]
enum Back {
    /// The Rollout under way is given up; it knows where it came from.
    GiveUp,
    To(ReleaseNo),
}

fn back_to(app: &App, named: Option<ReleaseNo>) -> Result<Back, UserError> {
    // One that is only watched any more has come to an end that can be gone back from.
    if let Some(rollout) = app.active().filter(|rollout| !rollout.phase.is_through()) {
        let came_from = rollout.from.as_ref().map(|from| from.base.release);
        if rollout.only.is_none()
            && came_from.is_some()
            && named.is_none_or(|n| came_from == Some(n))
        {
            return Ok(Back::GiveUp);
        }
    }
    if let Some(number) = named {
        return Ok(Back::To(number));
    }
    let held = match &app.rollout {
        Some(rollout) if matches!(rollout.phase, Phase::Held { .. }) => rollout.from.as_ref(),
        _ => None,
    };
    // One that failed and was left in place goes back to what ran before it; otherwise the
    // Release before the one that runs well is meant.
    held.map(|from| from.base.release).or(app.before).map(Back::To).ok_or_else(|| {
        UserError::new(
            Code::NotFound,
            format!("app {} has no earlier release to go back to", app.key),
            "deploy another version instead",
        )
    })
}

/// Runs the same Release again, on every Instance or on one.
#[utoipa::path(post, path = "/api/v1/namespaces/{ns}/apps/{app}/restart", tag = "change",
    params(("ns" = String, Path), ("app" = String, Path)), request_body = RestartRequest,
    responses((status = 202, body = Accepted), (status = "default", body = ProblemJson)))]
pub(super) async fn restart(
    State(api): Handle,
    Extension(caller): Extension<Caller>,
    Path(path): Path<AppPath>,
    if_match: IfMatch,
    Body(request): Body<RestartRequest>,
) -> Result<Committed, Problem> {
    let key = path.key()?;
    let now = clock::now();
    api.change(&caller, &key, if_match, |mut app| {
        let target = app.target().ok_or_else(|| nothing_released(&key))?;
        let release = api.known_release(&key, target.release)?;
        let change = Change {
            kind: RolloutKind::Restart,
            now,
            by: caller.name.clone(),
            message: request.message.clone(),
            // It runs from it.
            image_here: true,
        };
        app.restart(request.instance, &release.settings, change)?;
        let what = match request.instance {
            Some(instance) => format!("restarted instance {instance}"),
            None => "restarted".to_owned(),
        };
        Ok(Some(Decision::of(app, what)))
    })
    .await
}

/// Sets the number of Instances, or takes some away by name. Also while a Rollout is under way.
#[utoipa::path(post, path = "/api/v1/namespaces/{ns}/apps/{app}/scale", tag = "change",
    params(("ns" = String, Path), ("app" = String, Path)), request_body = ScaleRequest,
    responses((status = 202, body = Accepted), (status = "default", body = ProblemJson)))]
pub(super) async fn scale(
    State(api): Handle,
    Extension(caller): Extension<Caller>,
    Path(path): Path<AppPath>,
    if_match: IfMatch,
    Body(request): Body<ScaleRequest>,
) -> Result<Committed, Problem> {
    let ScaleRequest { instances, remove } = &request;
    let bad =
        |what: String, hint: &str| Problem::from(UserError::new(Code::BadRequest, what, hint));
    if let Some(wanted) = instances.filter(|wanted| *wanted > MOST_INSTANCES) {
        let what = format!("an app has 0 to {MOST_INSTANCES} instances, not {wanted}");
        return Err(bad(what, "name a number within that"));
    }
    if instances.is_none() && remove.is_empty() {
        return Err(bad("nothing to scale was named".into(), "give `instances`, `remove` or both"));
    }
    api.change(&caller, &path.key()?, if_match, |mut app| {
        api.has_instances(&app)?;
        let before = app.instances;
        if !remove.is_empty() {
            app.remove(remove, clock::now())?;
        }
        let left = app.instances;
        let wanted = instances.unwrap_or(left);
        if !remove.is_empty() && wanted > left {
            let what = format!("{left} instances are left without those named, not {wanted}");
            return Err(bad(what, "name no more; scaling up brings back what was taken away"));
        }
        if wanted == before {
            return Ok(None);
        }
        if wanted != left {
            app.scale(wanted, clock::now());
        }
        let mut what = format!("scaled from {before} to {wanted} instances");
        if !remove.is_empty() {
            let names: Vec<String> = remove.iter().map(ToString::to_string).collect();
            what.push_str(&format!(", without {}", names.join(", ")));
        }
        Ok(Some(Decision::of(app, what)))
    })
    .await
}

/// Stops an App: no Instance runs, requests are refused.
#[utoipa::path(post, path = "/api/v1/namespaces/{ns}/apps/{app}/stop", tag = "change",
    params(("ns" = String, Path), ("app" = String, Path)),
    responses((status = 202, body = Accepted), (status = "default", body = ProblemJson)))]
pub(super) async fn stop(
    State(api): Handle,
    Extension(caller): Extension<Caller>,
    Path(path): Path<AppPath>,
    if_match: IfMatch,
) -> Result<Committed, Problem> {
    api.change(&caller, &path.key()?, if_match, |mut app| {
        if app.stopped {
            return Ok(None);
        }
        app.stop();
        Ok(Some(Decision::of(app, "stopped")))
    })
    .await
}

/// Starts an App again that was stopped.
#[utoipa::path(post, path = "/api/v1/namespaces/{ns}/apps/{app}/start", tag = "change",
    params(("ns" = String, Path), ("app" = String, Path)),
    responses((status = 202, body = Accepted), (status = "default", body = ProblemJson)))]
pub(super) async fn start(
    State(api): Handle,
    Extension(caller): Extension<Caller>,
    Path(path): Path<AppPath>,
    if_match: IfMatch,
) -> Result<Committed, Problem> {
    api.change(&caller, &path.key()?, if_match, |mut app| {
        if !app.stopped {
            return Ok(None);
        }
        app.start(clock::now());
        Ok(Some(Decision::of(app, "started")))
    })
    .await
}

/// Steers the Rollout under way: `pause` stops it where it is, `resume` lets it go on,
/// `promote` begins the next batch without waiting (or all that is left), `abort` goes back to
/// what was before.
#[utoipa::path(post, path = "/api/v1/namespaces/{ns}/apps/{app}/rollouts/current/{verb}",
    tag = "change", request_body = SteerRequest,
    params(("ns" = String, Path), ("app" = String, Path), ("verb" = String, Path)),
    responses((status = 202, body = Accepted), (status = "default", body = ProblemJson)))]
pub(super) async fn steer(
    State(api): Handle,
    Extension(caller): Extension<Caller>,
    Path(path): Path<AppPath>,
    Path(VerbPath { verb }): Path<VerbPath>,
    if_match: IfMatch,
    Body(SteerRequest { all }): Body<SteerRequest>,
) -> Result<Committed, Problem> {
    let key = path.key()?;
    let now = clock::now();
    let by = &caller.name;
    let verb: Verb = verb.parse()?;
    if all && verb != Verb::Promote {
        return Err(UserError::new(
            Code::BadRequest,
            "`all` is for promote only",
            "leave it out, or promote",
        )
        .into());
    }
    api.change(&caller, &key, if_match, |mut app| {
        let what = match verb {
            Verb::Pause => app.pause(by, now).map(|()| "paused the rollout")?,
            Verb::Resume => app.resume(now).map(|()| "let the rollout go on")?,
            Verb::Abort => app.abort(by, now).map(|()| "aborted the rollout")?,
            Verb::Promote => {
                let to = app.rollout.as_ref().map(|rollout| rollout.to.release);
                let to = to.ok_or_else(|| nothing_released(&key))?;
                let rules = api.known_release(&key, to)?.settings.rollout;
                app.promote(&rules, all, now)?;
                if all { "promoted the rollout to the end" } else { "promoted the rollout" }
            }
        };
        Ok(Some(Decision::of(app, what)))
    })
    .await
}

/// What steers a Rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Pause,
    Resume,
    Promote,
    Abort,
}

impl std::str::FromStr for Verb {
    type Err = UserError;

    fn from_str(text: &str) -> Result<Self, UserError> {
        Ok(match text {
            "pause" => Self::Pause,
            "resume" => Self::Resume,
            "promote" => Self::Promote,
            "abort" => Self::Abort,
            _ => {
                return Err(UserError::new(
                    Code::NotFound,
                    format!("a rollout has no verb {text:?}"),
                    "use pause, resume, promote or abort",
                ));
            }
        })
    }
}

/// The verb in a path.
#[derive(Deserialize)]
pub(super) struct VerbPath {
    verb: String,
}

/// Deletes an App. What it ran is drained and stopped first.
#[utoipa::path(delete, path = "/api/v1/namespaces/{ns}/apps/{app}", tag = "change",
    params(("ns" = String, Path), ("app" = String, Path), DeleteQuery),
    responses((status = 202, body = Accepted), (status = "default", body = ProblemJson)))]
pub(super) async fn delete(
    State(api): Handle,
    Extension(caller): Extension<Caller>,
    Path(path): Path<AppPath>,
    if_match: IfMatch,
    Params(query): Params<DeleteQuery>,
) -> Result<Committed, Problem> {
    api.change(&caller, &path.key()?, if_match, |mut app| {
        app.delete();
        app.delete_volumes = query.volumes;
        let with = if query.volumes { " and its volumes" } else { "" };
        Ok(Some(Decision::of(app, format!("deleted the app{with}"))))
    })
    .await
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct DeleteQuery {
    /// Remove the data in its volumes too.
    #[serde(default)]
    volumes: bool,
}

/// The error of a verb that needs something to run.
pub(super) fn nothing_released(key: &AppKey) -> UserError {
    UserError::new(
        Code::NoInstance,
        format!("app {key} has nothing to run yet"),
        "wait for its first release, or deploy another",
    )
}
