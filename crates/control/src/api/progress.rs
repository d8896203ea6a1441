//! How a Rollout goes on, as it goes on.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::response::Response;
use futures_util::stream;
use stead_core::api::{ProblemJson, Progress};
use stead_core::app::App;
use stead_core::ids::RolloutNo;
use stead_core::name::AppKey;
use stead_core::rollout::Rollout;
use tokio::sync::watch;

use super::look::RolloutPath;
use super::problem::Problem;
use super::stream::{data, sse};
use super::{Api, AppPath, Handle, view};
use crate::reconcile::board::Snapshot;

/// How often the bytes of a pull are shown. Only for the eye: nothing waits for it.
const PULL_SHOWN: Duration = Duration::from_millis(200);

/// Each change of a Rollout as a server-sent event. Ends after a final phase.
#[utoipa::path(get, path = "/api/v1/namespaces/{ns}/apps/{app}/rollouts/{number}/progress",
    tag = "look", params(("ns" = String, Path), ("app" = String, Path), ("number" = u32, Path)),
    responses((status = 200, body = Progress), (status = "default", body = ProblemJson)))]
pub(super) async fn progress(
    State(api): Handle,
    Path(path): Path<AppPath>,
    Path(RolloutPath { number }): Path<RolloutPath>,
) -> Result<Response, Problem> {
    let key = path.key()?;
    let number = RolloutNo(number);
    // Before the store is read, so that no change falls between the two.
    let board = api.board.watch(&key);
    let app = api.app(&key).inspect_err(|_| api.board.remove(&key))?.value;
    api.rollout(&app, number)?;
    let follower = Follower { api: Arc::clone(&api), key, number, board, last: None, over: false };
    let events = stream::unfold(follower, |mut follower| async move {
        let progress = follower.next().await?;
        Some((data(&progress), follower))
    });
    Ok(sse(&api, events))
}

/// One who watches a Rollout.
struct Follower {
    api: Arc<Api>,
    key: AppKey,
    number: RolloutNo,
    board: watch::Receiver<Option<Arc<Snapshot>>>,
    last: Option<Progress>,
    over: bool,
}

impl Follower {
    /// The next state that differs from the last one shown; `None` after the final one, or
    /// when the App is gone.
    async fn next(&mut self) -> Option<Progress> {
        if self.over {
            return None;
        }
        loop {
            let snapshot = self.board.borrow_and_update().clone();
            if let Some(now) = self.look(snapshot.as_deref()) {
                self.over = now.rollout.phase.is_final();
                if self.last.as_ref() != Some(&now) {
                    self.last = Some(now.clone());
                    return Some(now);
                }
            }
            let pulling =
                self.last.as_ref().is_some_and(|last| last.pull.is_some() || last.done == 0);
            let changed = self.board.changed();
            let gone = if pulling {
                matches!(tokio::time::timeout(PULL_SHOWN, changed).await, Ok(Err(_)))
            } else {
                changed.await.is_err()
            };
            if gone {
                return None;
            }
        }
    }

    /// The Rollout as the last pass found it, or as the store has it when that pass was of
    /// another one.
    fn look(&self, snapshot: Option<&Snapshot>) -> Option<Progress> {
        let Some(snapshot) = snapshot else {
            // No pass yet: there is nothing to show but the intent.
            let app = self.api.store.get::<App>(&self.key.to_string()).ok()??.value;
            let rollout = self.api.rollout(&app, self.number).ok()?;
            let (instances, why) = (app.instances, "it has just been asked for".to_owned());
            let (generation, stopped) = (app.generation, app.stopped);
            let (done, pull, states) = (0, None, Vec::new());
            return Some(Progress {
                rollout,
                generation,
                why,
                stopped,
                instances,
                done,
                pull,
                states,
            });
        };
        let shown = |rollout: Rollout, why: String| {
            let image = snapshot.fleet.releases.get(&rollout.to.release).map(|spec| &spec.image);
            let pull = image.and_then(|image| self.api.engine.pulling(image));
            view::progress(rollout, why, snapshot, pull)
        };
        match &snapshot.app.rollout {
            Some(rollout) if rollout.number == self.number => {
                Some(shown(rollout.clone(), snapshot.why.clone()))
            }
            // Its own pass is still to come.
            None => None,
            Some(rollout) if rollout.number < self.number => None,
            // A newer one took its place.
            Some(_) => {
                let rollout = self.api.rollout(&snapshot.app, self.number).ok()?;
                Some(shown(rollout, "a newer change took its place".to_owned()))
            }
        }
    }
}
