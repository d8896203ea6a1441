//! Knowing everything again after a restart of `serve`, and following what holders report.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use stead_core::fleet::{ContainerSeen, ContainerState, Health, InstanceSeen, TrafficState};
use stead_core::ids::ContainerId;
use stead_core::name::AppKey;
use tokio::sync::broadcast::error::RecvError;

use super::Shared;
use super::act::{self, sandbox_seen, was_open};
use super::labels::{ContainerLabels, SandboxLabels};
use super::model::Model;
use super::spec;
use super::worker::Worker;
use crate::sandbox::{ContainerView, Recovered, Sandbox, SandboxEvent, ViewState};

/// What was found, by App.
///
/// A Container that might get requests is taken as ready and attached until a probe says
/// otherwise: gateways go on sending to it, so it must be drained before it is stopped. See
/// [`Worker::settle_in`].
pub(super) async fn models(shared: &Shared, found: Vec<Recovered>) -> BTreeMap<AppKey, Model> {
    let mut models: BTreeMap<AppKey, Model> = BTreeMap::new();
    for recovered in found {
        let sandbox = recovered.sandbox;
        let Some(labels) = SandboxLabels::read(sandbox.labels()) else {
            tracing::warn!(sandbox = sandbox.id(), "not labelled as ours: left alone");
            continue;
        };
        let model = models.entry(labels.app.clone()).or_default();
        take_over(shared, model, &labels, &sandbox);
    }
    for fleet in shared.intents.all() {
        let model = models.entry(fleet.app.clone()).or_default();
        model.seen.generation = fleet.generation;
        model.fleet = Some(fleet);
    }
    models
}

fn take_over(shared: &Shared, model: &mut Model, labels: &SandboxLabels, sandbox: &Arc<Sandbox>) {
    let mut instance = InstanceSeen {
        sandbox: Some(sandbox_seen(sandbox, labels, sandbox.created_at())),
        ..InstanceSeen::default()
    };
    for view in sandbox.containers() {
        let Some(known) = ContainerLabels::read(&view.labels) else { continue };
        let id = ContainerId(view.id.clone());
        let state = state(shared, &id, &view);
        let traffic = match state {
            ContainerState::Running { health: Health::Ready, .. } => TrafficState::Attached,
            _ => TrafficState::Detached,
        };
        if let Some(port) = known.port {
            model.ports.insert(id.clone(), port);
        }
        instance.containers.push(ContainerSeen { id, revision: known.revision, state, traffic });
    }
    model.seen.instances.insert(labels.ordinal, instance);
    model.sandboxes.insert(labels.ordinal, sandbox.clone());
}

fn state(shared: &Shared, id: &ContainerId, view: &ContainerView) -> ContainerState {
    match &view.state {
        ViewState::Prepared => ContainerState::Prepared,
        ViewState::Running { started, .. } => {
            let health = if was_open(shared, id) { Health::Ready } else { Health::Starting };
            ContainerState::Running { since: *started, health }
        }
        ViewState::Exited(exit) => ContainerState::Exited(spec::exit(exit, false)),
    }
}

/// Passes what holders report on to the workers, for as long as the engine lives.
pub(super) async fn follow(
    shared: Arc<Shared>,
    workers: Arc<Mutex<BTreeMap<AppKey, Arc<Worker>>>>,
) {
    let mut events = shared.host.events();
    loop {
        let event = match events.recv().await {
            Ok(event) => event,
            Err(RecvError::Lagged(missed)) => {
                tracing::error!(missed, "events of holders were missed");
                continue;
            }
            Err(RecvError::Closed) => return,
        };
        let all: Vec<Arc<Worker>> = {
            let workers = workers.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            workers.values().cloned().collect()
        };
        match event {
            SandboxEvent::Exited { sandbox: _, container, exit } => {
                let id = ContainerId(container);
                let owner = all.into_iter().find(|w| w.model().container(&id).is_some());
                if let Some(worker) = owner {
                    tokio::spawn(async move {
                        act::crashed(&worker, &id, spec::exit(&exit, false)).await;
                    });
                }
            }
            SandboxEvent::HolderLost { sandbox } => {
                for worker in all {
                    let lost = worker
                        .model()
                        .sandboxes
                        .iter()
                        .find_map(|(ordinal, held)| (held.id() == sandbox).then_some(*ordinal));
                    if let Some(ordinal) = lost {
                        tokio::spawn(async move { act::lost(&worker, ordinal).await });
                        break;
                    }
                }
            }
        }
    }
}
