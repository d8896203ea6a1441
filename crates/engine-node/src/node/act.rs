//! Carrying out one step. Each act reports what came of it to the model; what follows is
//! for the next plan to say.
//!
//! Here is what makes and removes; who gets requests is in [`super::serving`], what changes a
//! Container that goes on in [`super::change`], how one ends in [`super::ends`].

use std::sync::Arc;

use futures_util::future::join_all;
use stead_core::error::UserError;
use stead_core::event::{Fact, PhaseName};
use stead_core::fleet::{
    ContainerSeen, ImageSeen, Part, ReleaseSpec, Revision, SandboxSeen, Slot, Step, backoff,
};
use stead_core::ids::{ContainerId, Digest, Ordinal, ReleaseNo, SandboxId};
use stead_core::time::Time;

use super::labels::{ContainerLabels, SandboxLabels};
use super::model::{Ill, Kept};
use super::pulls::PullWatch;
use super::serving::{self, AGAIN, mark_open};
use super::spec::{self, Order};
use super::worker::Worker;
use super::{Shared, change, ends, hooks, java};
use crate::clock::now;
use crate::image::{Image, ImageError};
use crate::logs;
use crate::sandbox::{Sandbox, SandboxError};

/// Carries out one step and reports its outcome.
pub(super) async fn carry_out(worker: &Arc<Worker>, step: &Step) {
    match step {
        Step::Pull { release } => pull_all(worker, *release).await,
        Step::CreateSandbox { ordinal, revision } => {
            if let Err(error) = create_sandbox(worker, *ordinal, *revision).await {
                troubled(worker, *ordinal, &Part::Main, None, Ill::new(*revision, error));
            }
        }
        Step::Prepare { ordinal, part, revision, slot } => {
            if let Err(error) = prepare(worker, *ordinal, part, *revision, *slot).await {
                troubled(worker, *ordinal, part, None, Ill::new(*revision, error));
            }
        }
        Step::Start { ordinal, container } => start(worker, *ordinal, container).await,
        Step::Update { ordinal, container, revision } => {
            change::update(worker, *ordinal, container, *revision).await;
        }
        Step::Freeze { ordinal, container } => change::freeze(worker, *ordinal, container).await,
        Step::Thaw { ordinal, container, revision } => {
            change::thaw(worker, *ordinal, container, *revision).await;
        }
        Step::Hook { ordinal, container, hook, revision } => {
            hooks::hook(worker, *ordinal, container, *hook, *revision).await;
        }
        Step::Attach { ordinal, container } => serving::attach(worker, *ordinal, container).await,
        Step::Detach { ordinal, container, drain } => {
            serving::detach(worker, *ordinal, container, *drain).await;
        }
        Step::Stop { ordinal, container, grace, because } => {
            ends::stop(worker, *ordinal, container, *grace, *because).await;
        }
        Step::Discard { ordinal, container } => discard(worker, *ordinal, container).await,
        Step::RemoveSandbox { ordinal } => remove_sandbox(worker, *ordinal).await,
    }
}

pub(super) fn release_spec(worker: &Worker, release: ReleaseNo) -> Option<ReleaseSpec> {
    worker.model().fleet.as_ref()?.releases.get(&release).cloned()
}

/// Notes trouble with a part of an Instance, for the planner's back-off and for people.
pub(super) fn troubled(
    worker: &Worker,
    ordinal: Ordinal,
    part: &Part,
    container: Option<&ContainerId>,
    ill: Ill,
) {
    worker.report(|model| model.trouble(ordinal, part, ill.clone(), now()));
    tell(worker, ordinal, part, container, ill);
}

/// Tells people of trouble that was noted.
pub(super) fn tell(
    worker: &Worker,
    ordinal: Ordinal,
    part: &Part,
    container: Option<&ContainerId>,
    ill: Ill,
) {
    let Ill { revision, error, .. } = ill;
    tracing::warn!(app = %worker.app, %ordinal, %part, %revision, %error, "trouble");
    worker.emit(Some(ordinal), container, Some(revision), Fact::Trouble { error });
}

/// A part of an Instance, in a sentence for people.
pub(super) fn called(worker: &Worker, ordinal: Ordinal, part: &Part) -> String {
    let instance = format!("instance {ordinal} of app {}", worker.app.app);
    match part {
        Part::Main => instance,
        Part::Sidecar(name) => format!("sidecar {name} of {instance}"),
    }
}

/// Fetches an image, or finds it on disk.
pub(super) async fn pull(
    shared: &Shared,
    reference: &str,
    digest: &Digest,
) -> Result<Arc<Image>, UserError> {
    let parsed = reference.parse().map_err(ImageError::from).map_err(UserError::from)?;
    let progress = PullWatch::new(&shared.pulls, digest, reference);
    shared.images.pull(&parsed, digest, &progress).await.map_err(UserError::from)
}

/// Fetches the images of a Release that are not here, but for those whose last attempt failed a
/// moment ago.
async fn pull_all(worker: &Worker, release: ReleaseNo) {
    let Some(spec) = release_spec(worker, release) else { return };
    let due = |image: &Digest| match worker.model().seen.images.get(image) {
        None => true,
        Some(ImageSeen::Present) => false,
        Some(ImageSeen::Failed { at, count, .. }) => *at + backoff(count + 1) <= now(),
    };
    let missing = spec.images().filter(|(image, _)| due(image));
    join_all(missing.map(|(image, reference)| pull_one(worker, image, reference))).await;
}

async fn pull_one(worker: &Worker, image: &Digest, reference: &str) {
    let begun = now();
    match pull(&worker.shared, reference, image).await {
        Ok(here) => {
            worker.hold(here);
            worker.report(|model| model.image_present(image.clone()));
            worker.timed(None, None, None, PhaseName::Pull, begun);
        }
        Err(error) => {
            let fact = Fact::Trouble { error: error.clone() };
            worker.report(|model| model.image_failed(image.clone(), error, now()));
            worker.emit(None, None, None, fact);
        }
    }
}

async fn create_sandbox(
    worker: &Worker,
    ordinal: Ordinal,
    revision: Revision,
) -> Result<(), UserError> {
    let Some(release) = release_spec(worker, revision.release) else { return Ok(()) };
    let _permit = worker.shared.setups.acquire().await.expect("the semaphore is never closed");
    let begun = now();
    let labels =
        SandboxLabels { app: worker.app.clone(), ordinal, shape: release.shape(), revision };
    let sandbox_spec = spec::sandbox(&labels);
    let sandbox = worker.shared.host.create(sandbox_spec).await.map_err(|error| error.user())?;
    let seen = sandbox_seen(&sandbox, &labels, begun);
    worker.report(|model| {
        model.seen.instances.entry(ordinal).or_default().sandbox = Some(seen);
        model.sandboxes.insert(ordinal, sandbox);
    });
    worker.timed(Some(ordinal), None, Some(revision), PhaseName::Network, begun);
    Ok(())
}

/// A Sandbox as the planner sees it.
pub(super) fn sandbox_seen(
    sandbox: &Sandbox,
    labels: &SandboxLabels,
    created: Time,
) -> SandboxSeen {
    SandboxSeen {
        id: SandboxId(sandbox.id().to_owned()),
        ip: sandbox.ip(),
        shape: labels.shape.clone(),
        made_for: labels.revision,
        created,
    }
}

async fn prepare(
    worker: &Worker,
    ordinal: Ordinal,
    part: &Part,
    revision: Revision,
    slot: Slot,
) -> Result<(), UserError> {
    let Some(release) = release_spec(worker, revision.release) else { return Ok(()) };
    let Some(sandbox) = worker.model().sandboxes.get(&ordinal).cloned() else { return Ok(()) };
    let Some((digest, _)) = release.image_of(part) else { return Ok(()) };
    let Some(image) = worker.shared.images.get(digest) else {
        // It was removed since it was seen: the next plan fetches it again.
        worker.report(|model| model.seen.images.remove(digest));
        return Ok(());
    };
    let _permit = worker.shared.setups.acquire().await.expect("the semaphore is never closed");
    let begun = now();
    let order = Order { app: &worker.app, ordinal, release: &release, part, image: &image };
    let mut volumes = Vec::new();
    if !spec::mounted(&release, part).is_empty() {
        let main = match part {
            Part::Main => image.clone(),
            // It may still be on its way.
            Part::Sidecar(_) => pull(&worker.shared, &release.reference, &release.image).await?,
        };
        volumes = spec::volumes(&worker.shared, order, &main)?;
        worker.timed(Some(ordinal), None, Some(revision), PhaseName::Volumes, begun);
    }
    let begun = now();
    let port = match part {
        Part::Main => release.settings.http_port(&spec::exposed_tcp_ports(&image.config)),
        Part::Sidecar(_) => None,
    };
    let id = spec::container_id(&sandbox, part, revision, begun);
    let image = digest.clone();
    let kept = Kept { port, image, post_started: false, been_ready: false, hushed: false };
    let container = ContainerSeen::prepared(id.clone(), part.clone(), slot, revision);
    let labels = ContainerLabels::of(&container, &kept);
    let container_spec = spec::container(&worker.shared, order, &id, &labels, slot, volumes)?;
    let (container_spec, java) = java::fit(worker, order, revision, port, container_spec).await;
    sandbox.prepare(container_spec).await.map_err(|error| error.user())?;
    worker.timed(Some(ordinal), Some(&id), Some(revision), PhaseName::Prepare, begun);
    worker.report(|model| {
        model.java.extend(java.map(|java| (id.clone(), java)));
        model.prepared(ordinal, container, kept);
    });
    Ok(())
}

/// A Container that is still known, and its Sandbox.
pub(super) fn held(
    worker: &Worker,
    ordinal: Ordinal,
    id: &ContainerId,
) -> Option<(Arc<Sandbox>, ContainerSeen)> {
    let model = worker.model();
    let (_, container) = model.container(id)?;
    Some((model.sandboxes.get(&ordinal)?.clone(), container.clone()))
}

/// Writes on a Container what it is now, for a later `serve`.
pub(super) async fn relabel(worker: &Worker, ordinal: Ordinal, id: &ContainerId) {
    let Some((sandbox, container)) = held(worker, ordinal, id) else { return };
    let Some(kept) = worker.model().kept.get(id).cloned() else { return };
    let labels = ContainerLabels::of(&container, &kept).write();
    if let Err(error) = sandbox.label(id.as_str(), labels).await {
        // A later `serve` does again what was done since.
        tracing::warn!(app = %worker.app, container = %id, %error, "a restart will not know this");
    }
}

async fn start(worker: &Arc<Worker>, ordinal: Ordinal, id: &ContainerId) {
    let Some((sandbox, ContainerSeen { revision, part, slot, .. })) = held(worker, ordinal, id)
    else {
        return;
    };
    if part.is_main() {
        serving::clear(worker, ordinal, slot).await;
    }
    let begun = now();
    match sandbox.start(id.as_str()).await {
        Ok(()) => {
            worker.report(|model| model.running(id, now()));
            worker.timed(Some(ordinal), Some(id), Some(revision), PhaseName::Start, begun);
            hooks::begin_life(worker, ordinal, id).await;
        }
        Err(error) => {
            troubled(worker, ordinal, &part, Some(id), Ill::new(revision, error.user()));
            // What could not be started is of no more use.
            discard(worker, ordinal, id).await;
        }
    }
}

async fn discard(worker: &Worker, ordinal: Ordinal, id: &ContainerId) {
    let sandbox = worker.model().sandboxes.get(&ordinal).cloned();
    if let Some(sandbox) = sandbox
        && let Err(error) = sandbox.discard(id.as_str()).await
    {
        tracing::warn!(app = %worker.app, container = %id, %error, "discard failed");
        if let SandboxError::WrongState { .. } = error {
            // It runs after all, and goes on holding its slot. The next plan says what to do.
            return tokio::time::sleep(AGAIN).await;
        }
    }
    mark_open(&worker.shared, id, false);
    worker.report(|model| model.discarded(ordinal, id));
    trim_logs(worker, ordinal);
}

/// Deletes the output of Containers of long ago, in the background.
fn trim_logs(worker: &Worker, ordinal: Ordinal) {
    let folder = logs::folder(&worker.shared.data_dir, &worker.app);
    let held = containers(worker, ordinal);
    tokio::task::spawn_blocking(move || {
        if let Err(error) = logs::trim(&folder, ordinal, &held) {
            tracing::warn!(folder = %folder.display(), %error, "old logs are not deleted");
        }
    });
}

pub(super) async fn remove_sandbox(worker: &Worker, ordinal: Ordinal) {
    let sandbox = worker.model().sandboxes.get(&ordinal).cloned();
    for id in containers(worker, ordinal) {
        mark_open(&worker.shared, &id, false);
    }
    if let Some(sandbox) = sandbox
        && let Err(error) = worker.shared.host.remove(sandbox.id()).await
    {
        tracing::warn!(app = %worker.app, %ordinal, %error, "sandbox is not removed yet");
        // The reaper finishes it; what the planner waits for is that nothing runs in it.
        if !matches!(error, SandboxError::NotFound { .. }) {
            let revision = Revision { release: ReleaseNo(0), run: 0, since: 0 };
            troubled(worker, ordinal, &Part::Main, None, Ill::new(revision, error.user()));
            return;
        }
    }
    worker.report(|model| model.removed(ordinal));
    trim_logs(worker, ordinal);
}

/// The Containers of an Instance.
pub(super) fn containers(worker: &Worker, ordinal: Ordinal) -> Vec<ContainerId> {
    let model = worker.model();
    let instance = model.seen.instances.get(&ordinal);
    instance.iter().flat_map(|i| &i.containers).map(|c| c.id.clone()).collect()
}
