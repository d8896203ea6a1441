//! Knowing everything again after a restart of `serve`, and following what holders report.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use stead_core::fleet::{ContainerSeen, ContainerState, Fleet, Health, InstanceSeen, TrafficState};
use stead_core::ids::{ContainerId, Ordinal};
use stead_core::name::AppKey;
use stead_core::time::{Micros, Time};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use super::Shared;
use super::act::sandbox_seen;
use super::labels::{ContainerLabels, SandboxLabels};
use super::model::{Kept, Model};
use super::serving::{self, was_open};
use super::spec;
use super::worker::Worker;
use crate::clock::now;
use crate::sandbox::{Recovered, Sandbox, SandboxEvent, ViewState};

/// What was found, by App.
///
/// A Container that might get requests is taken as ready and attached until a probe says
/// otherwise: gateways go on sending to it, so it must be drained before it is stopped. See
/// [`Worker::settle_in`].
pub(super) fn models(shared: &Shared, found: Vec<Recovered>) -> BTreeMap<AppKey, Model> {
    let mut models: BTreeMap<AppKey, Model> = BTreeMap::new();
    for fleet in shared.intents.all() {
        let model = models.entry(fleet.app.clone()).or_default();
        model.seen.generation = fleet.generation;
        model.fleet = Some(fleet);
    }
    for recovered in found {
        let sandbox = recovered.sandbox;
        let Some(labels) = SandboxLabels::read(sandbox.labels()) else {
            tracing::warn!(sandbox = sandbox.id(), "not labelled as ours: left alone");
            continue;
        };
        let model = models.entry(labels.app.clone()).or_default();
        take_over(shared, model, &labels, &sandbox);
    }
    let instances = models.values().flat_map(|model| model.seen.instances.values());
    serving::forget_marks(shared, instances.flat_map(|i| i.containers.iter().map(|c| &c.id)));
    models
}

fn take_over(shared: &Shared, model: &mut Model, labels: &SandboxLabels, sandbox: &Arc<Sandbox>) {
    let mut instance = InstanceSeen {
        sandbox: Some(sandbox_seen(sandbox, labels, sandbox.created_at())),
        slot: sandbox.current(),
        ..InstanceSeen::default()
    };
    for view in sandbox.containers() {
        let Some(known) = ContainerLabels::read(&view.labels) else { continue };
        let id = ContainerId(view.id.clone());
        let open = was_open(shared, &id);
        let state = state(model.fleet.as_ref(), labels.ordinal, &known, open, &view.state);
        let traffic = match (&state, &view.state) {
            // Gateways have to be told, see `ends::crashed`.
            (ContainerState::Running { .. }, ViewState::Exited(_)) => TrafficState::Draining,
            (ContainerState::Running { health: Health::Ready, .. }, _) => TrafficState::Attached,
            (ContainerState::Exited(_), _) if open => TrafficState::Attached,
            _ => TrafficState::Detached,
        };
        let ContainerLabels { part, revision, born, port, image, hooks, post_started } = known;
        // Only what was ready is ever frozen.
        let been_ready = open || matches!(view.state, ViewState::Frozen { .. });
        let kept = Kept { port, image, post_started, been_ready, hushed: false };
        model.kept.insert(id.clone(), kept);
        let slot = view.slot;
        if matches!(view.state, ViewState::Running { .. } | ViewState::Frozen { .. }) {
            let release = model.fleet.as_ref().and_then(|f| f.releases.get(&revision.release));
            let limits = release.and_then(|release| spec::resources(release, &part));
            // An update may have been cut off when they were set and its label was not.
            if let Some(Err(error)) = limits.map(|limits| sandbox.limit(&view.id, &limits)) {
                tracing::warn!(container = %view.id, %error, "limits may be of another release");
            }
        }
        let container = ContainerSeen { id, part, slot, revision, born, state, traffic, hooks };
        instance.containers.push(container);
    }
    instance.containers.sort_by_key(|container| spec::prepared_at(&container.id));
    model.seen.instances.insert(labels.ordinal, instance);
    model.sandboxes.insert(labels.ordinal, sandbox.clone());
}

/// What holds of a Container now.
///
/// The end of one that is wanted, while nobody looked, is taken in by [`follow`] as one that
/// comes now: it is told, counted, and restarted by the same rules. One that is not wanted was
/// being stopped.
fn state(
    fleet: Option<&Fleet>,
    ordinal: Ordinal,
    known: &ContainerLabels,
    open: bool,
    view: &ViewState,
) -> ContainerState {
    let revision = known.revision;
    let wanted = fleet.is_some_and(|fleet| fleet.wanted(ordinal) == Some(revision));
    match view {
        ViewState::Prepared => ContainerState::Prepared,
        ViewState::Frozen { since, .. } => ContainerState::Frozen { since: *since },
        ViewState::Running { started, .. } => {
            let release = fleet.and_then(|fleet| fleet.releases.get(&revision.release));
            let timeout = release.map_or(Micros(0), |release| release.startup_timeout(&known.part));
            let health = if open {
                Health::Ready
            } else if now() < *started + timeout {
                Health::Starting
            } else {
                // It would have been stopped, had it not been ready before.
                Health::Unready
            };
            ContainerState::Running { since: *started, health }
        }
        ViewState::Exited(exit) if wanted && exit.started > 0 => {
            ContainerState::Running { since: Time(exit.started / 1_000), health: Health::Starting }
        }
        ViewState::Exited(exit) => ContainerState::Exited(spec::exit(exit, !wanted)),
    }
}

/// Passes what holders report on to the workers, for as long as the engine lives. The events
/// must be those since before the models were made.
pub(super) async fn follow(
    mut events: Receiver<SandboxEvent>,
    workers: Arc<Mutex<BTreeMap<AppKey, Arc<Worker>>>>,
) {
    let all = || -> Vec<Arc<Worker>> {
        let workers = workers.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        workers.values().cloned().collect()
    };
    all().iter().for_each(Worker::catch_up);
    loop {
        match events.recv().await {
            Ok(SandboxEvent::Exited { sandbox: _, container, exit }) => {
                let id = ContainerId(container);
                if let Some(worker) = all().iter().find(|w| w.model().container(&id).is_some()) {
                    worker.ended(id, &exit);
                }
            }
            // Its worker sees it at the next look.
            Ok(SandboxEvent::HolderLost { .. }) => all().iter().for_each(|w| w.look_again()),
            Err(RecvError::Lagged(missed)) => {
                tracing::error!(missed, "events of holders were missed");
                all().iter().for_each(Worker::catch_up);
            }
            Err(RecvError::Closed) => return,
        }
    }
}
