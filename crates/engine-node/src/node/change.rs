//! A Container that goes on: with other limits and probes, standing still, or moving again.

use std::sync::Arc;

use stead_core::event::PhaseName;
use stead_core::fleet::{ContainerSeen, ContainerState, Revision, TrafficState};
use stead_core::ids::{ContainerId, Ordinal};

use super::act::{held, relabel, release_spec, troubled};
use super::model::Ill;
use super::worker::Worker;
use super::{ends, serving, spec};
use crate::clock::now;
use crate::sandbox::{Sandbox, SandboxError};

/// Brings a running Container to another Revision without a restart.
pub(super) async fn update(
    worker: &Arc<Worker>,
    ordinal: Ordinal,
    id: &ContainerId,
    revision: Revision,
) {
    let Some((sandbox, container)) = held(worker, ordinal, id) else { return };
    let begun = now();
    if let Err(error) = limit(worker, &sandbox, &container, revision).await {
        let ill = Ill::new(revision, error.user());
        return troubled(worker, ordinal, &container.part, Some(id), ill);
    }
    worker.report(|model| {
        model.brought_to(id, revision);
        model.unwatch(id);
    });
    worker.watch(id);
    if container.traffic == TrafficState::Attached {
        // Its share of the requests is now that of another Release.
        serving::publish(worker, ordinal, id).await;
    }
    relabel(worker, ordinal, id).await;
    worker.timed(Some(ordinal), Some(id), Some(revision), PhaseName::Update, begun);
}

/// Sets the limits of another Revision, where they differ.
async fn limit(
    worker: &Worker,
    sandbox: &Sandbox,
    container: &ContainerSeen,
    revision: Revision,
) -> Result<(), SandboxError> {
    let of = |revision: Revision| {
        spec::resources(&release_spec(worker, revision.release)?, &container.part)
    };
    let (wanted, known) = (of(revision), of(container.revision));
    let Some(wanted) = wanted.filter(|wanted| known.as_ref() != Some(wanted)) else {
        return Ok(());
    };
    let set = sandbox.update_resources(container.id.as_str(), &wanted).await;
    if let (Err(_), Some(known)) = (&set, known) {
        // Some may have been set. What was allowed before is allowed again.
        let _ = sandbox.update_resources(container.id.as_str(), &known).await;
    }
    set
}

/// Lets a Container that gets no requests stand still. One that cannot is stopped: it is of no
/// other use.
pub(super) async fn freeze(worker: &Arc<Worker>, ordinal: Ordinal, id: &ContainerId) {
    let Some((sandbox, container)) = held(worker, ordinal, id) else { return };
    let revision = container.revision;
    let grace = release_spec(worker, revision.release).map(|spec| spec.grace());
    let grace = grace.unwrap_or_default();
    tokio::select! {
        biased;
        _ = serving::hush(worker, &sandbox, &container, grace.duration()) => {}
        () = serving::called_back(worker, ordinal, id) => return worker.watch(id),
    }
    let running = |c: &ContainerSeen| matches!(c.state, ContainerState::Running { .. });
    if !worker.model().container(id).is_some_and(|(_, c)| running(c)) {
        // It ended by itself meanwhile, and that was told.
        return;
    }
    let begun = now();
    if let Err(error) = sandbox.freeze(id.as_str()).await {
        tracing::warn!(app = %worker.app, container = %id, %error, "is stopped, not frozen");
        worker.report(|model| model.stopping(id, now()));
        return ends::stop(worker, ordinal, id, grace, None).await;
    }
    worker.report(|model| model.frozen(id, now()));
    worker.timed(Some(ordinal), Some(id), Some(revision), PhaseName::Freeze, begun);
    let (app, id) = (worker.app.clone(), id.clone());
    worker.spawn(async move {
        if let Err(error) = sandbox.reclaim(id.as_str()).await {
            tracing::debug!(%app, container = %id, %error, "its memory is not taken back");
        }
    });
}

/// Lets a frozen Container go on, as another Revision.
pub(super) async fn thaw(
    worker: &Arc<Worker>,
    ordinal: Ordinal,
    id: &ContainerId,
    revision: Revision,
) {
    let Some((sandbox, container)) = held(worker, ordinal, id) else { return };
    let begun = now();
    let thawed = match limit(worker, &sandbox, &container, revision).await {
        Ok(()) => sandbox.thaw(id.as_str()).await,
        refused => refused,
    };
    if let Err(error) = thawed {
        let ill = Ill::new(revision, error.user());
        troubled(worker, ordinal, &container.part, Some(id), ill);
        worker.report(|model| model.stopping(id, now()));
        let grace = release_spec(worker, revision.release).map(|spec| spec.grace());
        return ends::stop(worker, ordinal, id, grace.unwrap_or_default(), None).await;
    }
    worker.report(|model| {
        model.brought_to(id, revision);
        model.unwatch(id);
    });
    // At once: whether it answers is all that a rollback waits for.
    worker.watch(id);
    worker.timed(Some(ordinal), Some(id), Some(revision), PhaseName::Thaw, begun);
    relabel(worker, ordinal, id).await;
}
