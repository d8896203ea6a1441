//! How a change of an App is committed: load, decide, compare-and-set, again if somebody
//! else was faster.

use axum::Json;
use axum::extract::FromRequestParts;
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::{HeaderMap, StatusCode, header};
use stead_core::api::Accepted;
use stead_core::app::{App, Release};
use stead_core::error::{Code, UserError};
use stead_core::event::Fact;
use stead_core::ids::{Generation, RolloutNo};
use stead_core::name::AppKey;
use stead_core::rollout::{Phase, Rollout};

use super::problem::Problem;
use super::{Api, no_app};
use crate::auth::Caller;
use crate::clock;
use crate::reconcile::note;
use crate::record;
use crate::store::{StoreError, Versioned, Write};

/// How often a change is decided anew when others commit at the same time.
pub(super) const ATTEMPTS: usize = 50;

/// What a verb decided.
pub(super) struct Decision {
    /// The App as it shall be.
    pub(super) app: App,
    /// Documents that are committed with it.
    pub(super) beside: Vec<Write>,
    /// The Release that is made with it.
    pub(super) release: Option<Release>,
    /// What was done, for people: a clause without a subject.
    pub(super) what: String,
}

impl Decision {
    /// A change of the App alone.
    pub(super) fn of(app: App, what: impl Into<String>) -> Self {
        Self { app, beside: Vec::new(), release: None, what: what.into() }
    }
}

/// The generation that the caller's change was made for, if they named one.
pub(super) struct IfMatch(Option<Generation>);

impl<S: Sync> FromRequestParts<S> for IfMatch {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        read_if_match(&parts.headers).map(Self)
    }
}

fn read_if_match(headers: &HeaderMap) -> Result<Option<Generation>, Problem> {
    let Some(value) = headers.get(header::IF_MATCH) else { return Ok(None) };
    let text = value.to_str().unwrap_or_default().trim();
    if text == "*" {
        return Ok(None);
    }
    text.trim_matches('"').parse().map(Some).map_err(|_| {
        UserError::new(
            Code::BadRequest,
            format!("If-Match is a generation in quotes, not {text:?}"),
            "use the ETag of an earlier answer",
        )
        .into()
    })
}

/// The `ETag` of a generation.
pub(super) fn etag(generation: Generation) -> [(http::HeaderName, String); 1] {
    [(header::ETAG, format!("\"{generation}\""))]
}

/// The answer to a change.
pub(super) struct Committed(pub(super) Accepted);

impl IntoResponse for Committed {
    fn into_response(self) -> Response {
        (StatusCode::ACCEPTED, etag(self.0.generation), Json(self.0)).into_response()
    }
}

impl Api {
    /// Changes an App that exists. `decide` may be called several times; `None`, or an App of
    /// the same generation, means that there is nothing to do.
    pub(super) async fn change(
        &self,
        caller: &Caller,
        key: &AppKey,
        IfMatch(expected): IfMatch,
        decide: impl Fn(App) -> Result<Option<Decision>, Problem>,
    ) -> Result<Committed, Problem> {
        let decide = |app: Option<App>| decide(app.ok_or_else(|| no_app(key))?);
        self.change_or_create(caller, key, IfMatch(expected), decide).await
    }

    /// The same for an App that need not exist.
    pub(super) async fn change_or_create(
        &self,
        caller: &Caller,
        key: &AppKey,
        IfMatch(expected): IfMatch,
        decide: impl Fn(Option<App>) -> Result<Option<Decision>, Problem>,
    ) -> Result<Committed, Problem> {
        for _ in 0..ATTEMPTS {
            let stored: Option<Versioned<App>> = self.store.get(&key.to_string())?;
            let seen = stored.as_ref().map(|stored| stored.generation);
            matches_expected(key, seen, expected)?;
            let before = stored.map(|stored| stored.value);
            if before.as_ref().is_some_and(|app| app.deleted) {
                return Err(being_deleted(key).into());
            }
            let decided = decide(before.clone())?;
            let Some(Decision { app, beside, release, what }) =
                decided.filter(|decision| Some(decision.app.generation) != seen)
            else {
                let app = before.ok_or_else(|| no_app(key))?;
                let under_way = app.active().filter(|rollout| !rollout.phase.is_through());
                let under_way = under_way.map(|rollout| rollout.number);
                return Ok(Committed(accepted(&app, under_way)));
            };
            let mut writes = vec![Write::app(seen, &app)?];
            writes.extend(beside);
            let (turns, over) =
                self.turns(before.as_ref(), &app, release.as_ref(), &what, caller)?;
            writes.extend(turns);
            match self.store.commit(writes).await {
                Ok(()) => {
                    let by = caller.name.clone();
                    tracing::info!(app = %key, by, what, generation = %app.generation, "changed");
                    note(&self.events, key, Fact::Changed { by, what });
                    if let Some(over) = over {
                        self.finish_record(key, over);
                    }
                    let was = before.and_then(|before| before.rollout);
                    let changed = app.rollout.as_ref().filter(|now| was.as_ref() != Some(*now));
                    return Ok(Committed(accepted(&app, changed.map(|rollout| rollout.number))));
                }
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(busy(key).into())
    }
}

impl Api {
    /// What the records of Rollouts say of a change, and the Rollout that it ends.
    fn turns(
        &self,
        before: Option<&App>,
        app: &App,
        release: Option<&Release>,
        what: &str,
        caller: &Caller,
    ) -> Result<(Vec<Write>, Option<RolloutNo>), Problem> {
        let (key, by) = (&app.key, Some(caller.name.as_str()));
        let was = before.and_then(|before| before.rollout.as_ref());
        let number = |rollout: &Rollout| rollout.number;
        let mut writes = Vec::new();
        let mut over = None;
        if app.rollout.as_ref().map(number) == was.map(number) {
            if let Some(now) = app.rollout.as_ref().filter(|now| was != Some(*now)) {
                writes.push(record::turn(&self.store, key, now, what, by, None)?);
                over = now.phase.is_final().then_some(now.number);
            }
            return Ok((writes, over));
        }
        if let Some(was) = before.and_then(App::active) {
            let was = superseded(was);
            let why = "a newer change took its place";
            writes.push(record::turn(&self.store, key, &was, why, by, None)?);
            over = Some(was.number);
        }
        writes.extend(self.begin_record(before, app, release, &caller.name)?);
        Ok((writes, over))
    }
}

fn accepted(app: &App, rollout: Option<RolloutNo>) -> Accepted {
    Accepted {
        app: app.key.clone(),
        generation: app.generation,
        rollout,
        release: app.target().map(|target| target.release),
    }
}

/// What becomes of a Rollout that another takes the place of.
fn superseded(rollout: &Rollout) -> Rollout {
    let at = clock::now();
    let phase = match rollout.phase {
        // It had come to its end; only the watch is cut short.
        Phase::Watching { .. } => Phase::Done { at },
        _ => Phase::Superseded { at },
    };
    Rollout { phase, ..rollout.clone() }
}

fn matches_expected(
    key: &AppKey,
    seen: Option<Generation>,
    expected: Option<Generation>,
) -> Result<(), Problem> {
    match expected {
        Some(expected) if seen != Some(expected) => {
            let seen = seen.map_or("gone".to_owned(), |seen| format!("at generation {seen}"));
            Err(Problem::precondition(UserError::new(
                Code::Conflict,
                format!("app {key} is {seen}; the change was made for generation {expected}"),
                "look at it again and repeat the change if it is still wanted",
            )))
        }
        _ => Ok(()),
    }
}

pub(super) fn busy(key: &AppKey) -> UserError {
    UserError::new(
        Code::Conflict,
        format!("app {key} is being changed by others without a pause"),
        "try again",
    )
}

fn being_deleted(key: &AppKey) -> UserError {
    UserError::new(
        Code::Conflict,
        format!("app {key} is being deleted"),
        "wait until it is gone; it can be deployed again then",
    )
}
