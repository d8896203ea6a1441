//! What an App does itself at turns of an Instance's life: its hooks, and what follows a start.

use std::sync::Arc;

use stead_core::error::{Code, UserError};
use stead_core::event::{Fact, PhaseName};
use stead_core::fleet::{ContainerSeen, ContainerState, HookName, HookSeen, Part, Revision};
use stead_core::ids::{ContainerId, Ordinal};
use stead_core::manifest::{Check, HookRun};

use super::act::{called, held, relabel, release_spec, troubled};
use super::ends;
use super::model::Ill;
use super::worker::Worker;
use crate::clock::now;

/// Runs a hook and waits for its end.
pub(super) async fn hook(
    worker: &Worker,
    ordinal: Ordinal,
    id: &ContainerId,
    name: HookName,
    revision: Revision,
) {
    let Some(release) = release_spec(worker, revision.release) else { return };
    let Some(hook) = release.hook(name) else { return };
    let Some((_, container)) = held(worker, ordinal, id) else { return };
    let Some(target) = worker.target(id) else { return };
    let begun = now();
    let outcome = target.ask(&check(&hook.run), hook.deadline.duration()).await;
    worker.timed(Some(ordinal), Some(id), Some(revision), PhaseName::Hook, begun);
    if let Err(why) = outcome {
        let what = format!("hook {} of", name.as_str());
        let error = failed(worker, ordinal, &what, &why);
        if name != HookName::PreDelete {
            let ill = Ill::new(revision, error);
            return troubled(worker, ordinal, &Part::Main, Some(id), ill);
        }
        // Nobody can be kept from going for ever.
        tracing::warn!(app = %worker.app, container = %id, %error, "goes all the same");
        worker.emit(Some(ordinal), Some(id), Some(revision), Fact::Trouble { error });
    }
    let run = match name {
        HookName::AfterUpdate => container.born,
        HookName::BeforeUpdate | HookName::PreDelete => revision.run,
    };
    worker.report(|model| model.hooked(id, HookSeen { hook: name, run }));
    relabel(worker, ordinal, id).await;
}

fn check(run: &HookRun) -> Check {
    match run.clone() {
        HookRun::Exec(argv) => Check::Exec { argv },
        HookRun::Http { path, port } => Check::Http { path, port },
    }
}

fn failed(worker: &Worker, ordinal: Ordinal, what: &str, why: &str) -> UserError {
    let app = &worker.app.app;
    UserError::new(
        Code::HookFailed,
        format!("{what} {} failed: {why}", called(worker, ordinal, &Part::Main)),
        format!("see what the app says with `stead logs {app}`, or change the hook"),
    )
}

/// Does what follows a start: the App's own program if it asks for one, and then the probes.
pub(super) async fn begin_life(worker: &Arc<Worker>, ordinal: Ordinal, id: &ContainerId) {
    let Some((argv, limit)) = worker.post_start(id) else { return worker.watch(id) };
    let Some((sandbox, container)) = held(worker, ordinal, id) else { return };
    let Some(target) = worker.target(id) else { return };
    let ContainerSeen { part, revision, .. } = container;
    let begun = now();
    let outcome = target.ask(&Check::Exec { argv }, limit.duration()).await;
    worker.timed(Some(ordinal), Some(id), Some(revision), PhaseName::Hook, begun);
    let Err(why) = outcome else {
        worker.report(|model| {
            if let Some(kept) = model.kept.get_mut(id) {
                kept.post_started = true;
            }
        });
        relabel(worker, ordinal, id).await;
        return worker.watch(id);
    };
    let running = |c: &ContainerSeen| matches!(c.state, ContainerState::Running { .. });
    if !worker.model().container(id).is_some_and(|(_, c)| running(c)) {
        // It ended under it, and that was told.
        return;
    }
    let error = failed(worker, ordinal, "post_start of", &why);
    troubled(worker, ordinal, &part, Some(id), Ill::new(revision, error));
    worker.report(|model| model.stopping(id, now()));
    let signal = ends::stop_signal(worker, &part, revision);
    let grace = release_spec(worker, revision.release).map(|spec| spec.grace());
    let grace = grace.unwrap_or_default().duration();
    let (exit, _) = ends::end(worker, &sandbox, id, Some((signal, grace))).await;
    worker.report(|model| model.exited(id, exit));
    worker.emit(Some(ordinal), Some(id), Some(revision), Fact::Exited { exit });
}
