//! How Apps and Instances are shown. Pure.

use std::net::SocketAddr;

use stead_core::api::{AppView, ContainerView, InstanceView, Progress};
use stead_core::app::{App, Release};
use stead_core::engine::PullProgress;
use stead_core::fleet::{
    ContainerSeen, ContainerState, FleetSeen, Health, InstanceSeen, TrafficState,
};
use stead_core::ids::Ordinal;
use stead_core::rollout::{Phase, Rollout};

use super::step;
use crate::reconcile::board::Snapshot;

/// An App, with the Release it runs or goes to.
pub(super) fn app(
    app: &App,
    release: Option<&Release>,
    seen: &FleetSeen,
    http: SocketAddr,
) -> AppView {
    let ready = ready(app, seen);
    let (state, why) = state(app, ready);
    let shown = release.map(|release| release.number).or(app.target().map(|t| t.release));
    AppView {
        key: app.key.clone(),
        generation: app.generation,
        state: state.to_owned(),
        why,
        urls: urls(app, release, http),
        release: shown,
        image: release.map(|release| release.reference.clone()),
        instances: app.instances,
        ready,
        jvm: seen.jvm.clone(),
        site: release.is_some_and(|release| release.settings.site.is_some()),
        rollout: app.rollout.clone(),
        created: app.created,
    }
}

fn ready(app: &App, seen: &FleetSeen) -> u32 {
    let serving = app.ordinals().iter().filter(|ordinal| seen.serves(**ordinal)).count();
    u32::try_from(serving).unwrap_or(u32::MAX)
}

fn state(app: &App, ready: u32) -> (&'static str, Option<String>) {
    if app.deleted {
        return ("deleting", None);
    }
    if app.stopped {
        return ("stopped", None);
    }
    // What is only watched any more serves everybody.
    if let Some(rollout) = app.active().filter(|rollout| !rollout.phase.is_through()) {
        return ("changing", rollout.failure().map(ToString::to_string));
    }
    match &app.rollout {
        Some(Rollout { phase: Phase::Held { why, .. }, .. }) => ("failed", Some(why.to_string())),
        _ if ready < app.instances => {
            ("degraded", Some(format!("{ready} of {} instances are ready", app.instances)))
        }
        Some(Rollout { phase: Phase::Undone { why, .. }, .. }) => {
            ("running", Some(format!("the last rollout was undone: {why}")))
        }
        _ => ("running", None),
    }
}

fn urls(app: &App, release: Option<&Release>, http: SocketAddr) -> Vec<String> {
    let own = release.and_then(|release| release.settings.http.as_ref());
    let hosts = own.iter().flat_map(|http| &http.hosts).map(ToString::to_string);
    std::iter::once(app.key.default_host())
        .chain(hosts)
        .map(|host| match http.port() {
            80 => format!("http://{host}"),
            port => format!("http://{host}:{port}"),
        })
        .collect()
}

/// Every Instance that is wanted or exists.
pub(super) fn instances(wanted: &[Ordinal], seen: &FleetSeen) -> Vec<InstanceView> {
    let mut ordinals = wanted.to_vec();
    ordinals.extend(seen.instances.keys().filter(|ordinal| !wanted.contains(ordinal)));
    let nothing = InstanceSeen::default();
    ordinals
        .into_iter()
        .map(|ordinal| instance(ordinal, seen.instances.get(&ordinal).unwrap_or(&nothing)))
        .collect()
}

fn instance(ordinal: Ordinal, seen: &InstanceSeen) -> InstanceView {
    let shown = shown(seen);
    let (since, health) = match shown.map(|container| &container.state) {
        Some(ContainerState::Running { since, health }) => (Some(*since), Some(*health)),
        Some(ContainerState::Stopping { since }) => (Some(*since), None),
        _ => (None, None),
    };
    let last_exit = seen.containers.iter().rev().find_map(|container| match container.state {
        ContainerState::Exited(exit) if !exit.intended => Some(exit),
        _ => None,
    });
    InstanceView {
        instance: ordinal,
        ip: seen.sandbox.as_ref().map(|sandbox| sandbox.ip.to_string()),
        revision: shown.map(|container| container.revision),
        state: word(seen, shown).to_owned(),
        container: shown.map(|container| container.id.clone()),
        since,
        health,
        traffic: shown.map(|container| container.traffic),
        crashes: seen.crashes,
        last_exit,
        trouble: seen.trouble.as_ref().map(|trouble| trouble.error.clone()),
        slot: seen.slot,
        containers: seen.containers.iter().map(container).collect(),
        doing: None,
    }
}

fn container(seen: &ContainerSeen) -> ContainerView {
    let since = match &seen.state {
        ContainerState::Running { since, .. }
        | ContainerState::Stopping { since }
        | ContainerState::Frozen { since } => Some(*since),
        ContainerState::Exited(exit) => Some(exit.at),
        ContainerState::Prepared => None,
    };
    ContainerView {
        id: seen.id.clone(),
        part: seen.part.clone(),
        slot: seen.slot,
        revision: seen.revision,
        state: container_word(seen).to_owned(),
        since,
        traffic: seen.traffic,
    }
}

/// The Container that stands for the Instance: the one that runs, else the newest.
fn shown(seen: &InstanceSeen) -> Option<&ContainerSeen> {
    let mains = || seen.mains().collect::<Vec<_>>().into_iter().rev();
    seen.serving().or_else(|| mains().find(|c| c.alive())).or_else(|| mains().next())
}

fn word(seen: &InstanceSeen, shown: Option<&ContainerSeen>) -> &'static str {
    let Some(container) = shown else {
        return match (&seen.trouble, &seen.sandbox) {
            (Some(_), _) => "crashed",
            (None, Some(_)) => "preparing",
            (None, None) => "pending",
        };
    };
    container_word(container)
}

fn container_word(container: &ContainerSeen) -> &'static str {
    match (&container.state, container.traffic) {
        (ContainerState::Prepared, _) => "preparing",
        (ContainerState::Running { .. }, TrafficState::Draining) => "draining",
        (ContainerState::Running { health, .. }, _) => match health {
            Health::Starting => "starting",
            Health::Ready => "ready",
            Health::Unready | Health::Dead => "unready",
        },
        (ContainerState::Frozen { .. }, _) => "frozen",
        (ContainerState::Stopping { .. }, _) => "stopping",
        (ContainerState::Exited(exit), _) if exit.intended => "exited",
        (ContainerState::Exited(_), _) => "crashed",
    }
}

/// How far a Rollout is.
pub(super) fn progress(
    rollout: Rollout,
    why: String,
    Snapshot { app, fleet, seen, .. }: &Snapshot,
    pull: Option<PullProgress>,
) -> Progress {
    let done = fleet.ordinals().filter(|ordinal| {
        let serving = seen.instances.get(ordinal).and_then(InstanceSeen::serving);
        serving.is_some_and(|container| {
            container.revision.release == rollout.to.release
                && Some(container.revision) == fleet.wanted(*ordinal)
        })
    });
    let mut states = instances(&fleet.ordinals().collect::<Vec<_>>(), seen);
    for view in &mut states {
        view.doing = step::doing(fleet, seen, view.instance);
    }
    Progress {
        instances: fleet.instances,
        done: u32::try_from(done.count()).unwrap_or(u32::MAX),
        why,
        generation: app.generation,
        stopped: app.stopped,
        pull,
        states,
        rollout,
    }
}
