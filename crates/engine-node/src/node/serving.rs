//! Who gets requests: from the gateway, and from other Apps by the Instance's address.
//!
//! A Backend always names the slot of its Container (`mark`), also where there is no other:
//! whatever is flipped later, the gateway's connections go to the Container they are meant for.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::join_all;
use stead_core::engine::Backend;
use stead_core::event::PhaseName;
use stead_core::fleet::{ContainerSeen, ContainerState, Slot, TrafficState};
use stead_core::ids::{ContainerId, Ordinal};
use stead_core::time::Micros;

use super::Shared;
use super::act::{held, troubled};
use super::model::Ill;
use super::worker::Worker;
use crate::clock::now;
use crate::sandbox::{Sandbox, SandboxError, mark_of};

/// Between two looks at what holds up the end of a drain.
const LOOK: Duration = Duration::from_millis(20);
/// How long a start waits for a gateway to take note of the end of the one before.
const CLEARANCE: Duration = Duration::from_secs(5);
/// Between two attempts of what the kernel refuses.
pub(super) const AGAIN: Duration = Duration::from_secs(1);

/// Lets a ready Container get requests, and new connections to the Instance's address.
pub(super) async fn attach(worker: &Worker, ordinal: Ordinal, id: &ContainerId) {
    let Some((sandbox, ContainerSeen { slot, revision, part, .. })) = held(worker, ordinal, id)
    else {
        return;
    };
    // At the same time: it is ready, so whoever comes first is served.
    let (flipped, ()) =
        tokio::join!(flip(worker, ordinal, id, &sandbox, slot), publish(worker, ordinal, id));
    if let Err(error) = flipped {
        troubled(worker, ordinal, &part, Some(id), Ill::new(revision, error.user()));
        // Paces a retry: the next plan asks again.
        tokio::time::sleep(AGAIN).await;
    }
}

async fn flip(
    worker: &Worker,
    ordinal: Ordinal,
    id: &ContainerId,
    sandbox: &Sandbox,
    slot: Slot,
) -> Result<(), SandboxError> {
    let begun = now();
    let changes = sandbox.current() != slot;
    sandbox.flip(slot).await?;
    worker.report(|model| model.flipped(ordinal, slot));
    if changes {
        let revision = worker.model().container(id).map(|(_, container)| container.revision);
        worker.timed(Some(ordinal), Some(id), revision, PhaseName::Flip, begun);
    }
    Ok(())
}

/// Tells the gateway of a ready Container, or again of one that is another Revision now.
pub(super) async fn publish(worker: &Worker, ordinal: Ordinal, id: &ContainerId) {
    let Some((sandbox, ContainerSeen { slot, revision, .. })) = held(worker, ordinal, id) else {
        return;
    };
    let port = worker.model().port(id);
    if let Some(kept) = worker.model().kept.get_mut(id) {
        kept.hushed = false;
    }
    mark_open(&worker.shared, id, true);
    if let Some(port) = port {
        let begun = now();
        let backend = Backend {
            container: id.clone(),
            instance: ordinal,
            revision,
            addr: SocketAddr::new(sandbox.ip(), port),
            mark: Some(mark_of(slot)),
        };
        worker.shared.traffic.attach(&worker.app, backend).await;
        worker.timed(Some(ordinal), Some(id), Some(revision), PhaseName::Attach, begun);
    }
    let running = worker.report(|model| {
        let running = model
            .container(id)
            .is_some_and(|(_, c)| matches!(c.state, ContainerState::Running { .. }));
        if running {
            model.traffic(id, TrafficState::Attached);
        }
        running
    });
    if !running && port.is_some() {
        // It ended while it was being attached.
        worker.shared.traffic.detach(&worker.app, id, Duration::ZERO).await;
    }
}

/// Waits until a Container gets no requests and serves no connection of others any more, at most
/// for `drain`. One that is wanted again meanwhile goes on serving.
pub(super) async fn detach(worker: &Worker, ordinal: Ordinal, id: &ContainerId, drain: Micros) {
    let Some((sandbox, container)) = held(worker, ordinal, id) else { return };
    let drained = async {
        let begun = now();
        let has_port = worker.model().port(id).is_some();
        if has_port {
            let drained = worker.shared.traffic.detach(&worker.app, id, drain.duration()).await;
            if !drained.clean {
                tracing::warn!(app = %worker.app, container = %id, "requests outlived the grace period");
            }
        }
        let left = Micros(drain.0.saturating_sub(now().since(begun).0)).duration();
        let replaced = drain.0 > 0 && hush(worker, &sandbox, &container, left).await;
        if has_port || replaced {
            let revision = Some(container.revision);
            worker.timed(Some(ordinal), Some(id), revision, PhaseName::Drain, begun);
        }
    };
    tokio::select! {
        biased;
        () = drained => {
            mark_open(&worker.shared, id, false);
            worker.report(|model| model.traffic(id, TrafficState::Detached));
        }
        () = called_back(worker, ordinal, id) => publish(worker, ordinal, id).await,
    }
}

/// Waits until a Container that is being taken out shall serve all the same: it is wanted again,
/// or what took its place fails.
pub(super) async fn called_back(worker: &Worker, ordinal: Ordinal, id: &ContainerId) {
    let (was_wanted, was_outdone) = {
        let model = worker.model();
        (model.wants(ordinal, id), model.outdone(id))
    };
    let called = || {
        let model = worker.model();
        (!was_wanted && model.wants(ordinal, id)) || (was_outdone && model.is_missed(ordinal, id))
    };
    while !called() {
        tokio::time::sleep(LOOK).await;
    }
}

/// Waits, once and at most for `limit`, until a Container that was replaced serves no connection
/// of others any more. False: there was nothing to wait for.
pub(super) async fn hush(
    worker: &Worker,
    sandbox: &Sandbox,
    container: &ContainerSeen,
    limit: Duration,
) -> bool {
    let ContainerSeen { id, slot, part, .. } = container;
    let hushed = worker.model().kept.get(id).is_none_or(|kept| kept.hushed);
    // Where the slot is still current more would come, and it is to stop anyway.
    if hushed || !part.is_main() || sandbox.current() == *slot {
        return false;
    }
    if tokio::time::timeout(limit, silence(sandbox, *slot)).await.is_err() {
        tracing::warn!(app = %worker.app, container = %id, "connections outlived the grace period");
    }
    if let Some(kept) = worker.model().kept.get_mut(id) {
        kept.hushed = true;
    }
    true
}

/// Takes a Container that has ended out of the routes.
pub(super) async fn cut_off(worker: &Worker, id: &ContainerId) {
    worker.shared.traffic.detach(&worker.app, id, Duration::ZERO).await;
    mark_open(&worker.shared, id, false);
    worker.report(|model| model.traffic(id, TrafficState::Detached));
}

/// Waits until no gateway sends to what has ended in a slot: what starts there next has the same
/// address, and would get its requests before it is ready.
pub(super) async fn clear(worker: &Worker, ordinal: Ordinal, slot: Slot) {
    let ended = worker.model().routed_ends(ordinal, slot);
    let detach = |id| worker.shared.traffic.detach(&worker.app, id, Duration::ZERO);
    if tokio::time::timeout(CLEARANCE, join_all(ended.iter().map(detach))).await.is_err() {
        tracing::warn!(app = %worker.app, %ordinal, "a gateway may send requests too early");
    }
}

/// Waits until nobody from outside is connected to a slot. Returns at once where that cannot be
/// known.
async fn silence(sandbox: &Sandbox, slot: Slot) {
    loop {
        match sandbox.inbound(slot).await {
            Ok(0) => return,
            Ok(_) => tokio::time::sleep(LOOK).await,
            Err(error) => {
                tracing::warn!(sandbox = sandbox.id(), %error, "connections are not counted");
                return;
            }
        }
    }
}

/// Keeps in mind over a restart of `serve` that a Container is ready and may get requests:
/// from before it is attached until it is detached.
pub(super) fn mark_open(shared: &Shared, id: &ContainerId, open: bool) {
    let mark = open_mark(shared, id);
    let done = if open {
        std::fs::write(&mark, b"")
    } else {
        match std::fs::remove_file(&mark) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    };
    if let Err(error) = done {
        tracing::warn!(mark = %mark.display(), %error, "a restart will not know who gets requests");
    }
}

/// Whether a Container might get requests when `serve` was last there.
pub(super) fn was_open(shared: &Shared, id: &ContainerId) -> bool {
    open_mark(shared, id).exists()
}

fn open_mark(shared: &Shared, id: &ContainerId) -> std::path::PathBuf {
    shared.run_dir.join("open").join(id.as_str())
}

/// Deletes the marks of Containers that are not there any more.
pub(super) fn forget_marks<'a>(shared: &Shared, known: impl Iterator<Item = &'a ContainerId>) {
    let known: std::collections::BTreeSet<&str> = known.map(ContainerId::as_str).collect();
    let marks = std::fs::read_dir(shared.run_dir.join("open")).into_iter().flatten().flatten();
    for mark in marks.filter(|m| m.file_name().to_str().is_none_or(|id| !known.contains(id))) {
        // One that stays behind is looked at by nobody: no id is used again.
        let _ = std::fs::remove_file(mark.path());
    }
}
