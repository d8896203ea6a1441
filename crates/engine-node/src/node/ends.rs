//! How Containers end: because we want it, by themselves, or with their holder.

use std::time::Duration;

use stead_core::error::{Code, UserError};
use stead_core::event::{Fact, PhaseName};
use stead_core::fleet::{
    ContainerSeen, ContainerState, Exit, Part, ReleaseSpec, Revision, StopCause, TrafficState,
};
use stead_core::ids::{ContainerId, Ordinal};
use stead_core::manifest::{PreStop, RestartPolicy};
use stead_core::time::Micros;

use super::act::{called, containers, held, release_spec, remove_sandbox, tell, troubled};
use super::model::Ill;
use super::worker::Worker;
use super::{java, serving, spec};
use crate::clock::now;
use crate::sandbox::{ExecSpec, Sandbox, SandboxError, ViewState};

/// Between two attempts to stop what does not end.
const STOP_AGAIN: Duration = Duration::from_secs(1);

/// Ends a Container that gets no requests.
pub(super) async fn stop(
    worker: &Worker,
    ordinal: Ordinal,
    id: &ContainerId,
    grace: Micros,
    because: Option<StopCause>,
) {
    let Some((sandbox, container)) = held(worker, ordinal, id) else { return };
    let begun = now();
    let frozen = matches!(sandbox.state(id.as_str()), Ok(ViewState::Frozen { .. }));
    if !frozen && because.is_none() && grace.0 > 0 {
        serving::hush(worker, &sandbox, &container, grace.duration()).await;
    }
    let ContainerSeen { part, revision, .. } = container;
    let asked = if frozen && must_not_wake(worker, ordinal, revision) {
        None
    } else {
        let settings = release_spec(worker, revision.release).map(|spec| spec.settings);
        let pre_stop = settings.as_ref().and_then(|s| s.lifecycle.pre_stop.as_ref());
        if let (Part::Main, Some(pre_stop)) = (&part, pre_stop) {
            run_pre_stop(worker, &sandbox, id, pre_stop, grace).await;
        }
        Some((stop_signal(worker, &part, revision), grace.duration()))
    };
    let (exit, ran) = end(worker, &sandbox, id, asked).await;
    let been_ready = worker.model().been_ready(id);
    let ill = because.map(|cause| {
        let (ran, was_ready) = match cause {
            StopCause::NotAlive => (ran, part.is_main() && been_ready),
            StopCause::NeverReady => (Micros(0), false),
        };
        let mut error = stop_cause(worker, ordinal, &part, cause);
        if matches!(cause, StopCause::NeverReady) && java::had_archive(worker, id) {
            // Whether the App itself never gets ready the next start says, and condemns it then.
            error.code = Code::EngineFailed;
            error.message.push_str("; the next start goes without the archive of classes");
        }
        Ill { revision, error, ran: Some(ran), was_ready }
    });
    worker.report(|model| model.ended(id, exit, ill.clone(), now()));
    worker.timed(Some(ordinal), Some(id), Some(revision), PhaseName::Stop, begun);
    worker.emit(Some(ordinal), Some(id), Some(revision), Fact::Exited { exit });
    if because == Some(StopCause::NeverReady) {
        java::failed(worker, id);
    }
    if let Some(ill) = ill {
        tell(worker, ordinal, &part, Some(id), ill);
    }
}

/// Whether what stands still must not move again, not even to end itself: only one may run, and
/// another may have its disk by now.
fn must_not_wake(worker: &Worker, ordinal: Ordinal, revision: Revision) -> bool {
    let wanted = worker.model().fleet.as_ref().and_then(|fleet| fleet.wanted(ordinal));
    let mut releases = std::iter::once(revision).chain(wanted).map(|revision| revision.release);
    // Of a Release that nobody knows any more nothing can be said.
    let alone = |spec: ReleaseSpec| spec.alone().is_some();
    releases.any(|release| release_spec(worker, release).is_none_or(alone))
}

/// Has a Container end: asked by a signal, and by force after the grace, or else by force at
/// once. Gives how it ended, and how long it ran.
pub(super) async fn end(
    worker: &Worker,
    sandbox: &Sandbox,
    id: &ContainerId,
    mut asked: Option<(i32, Duration)>,
) -> (Exit, Micros) {
    loop {
        let ended = match asked {
            Some((signal, grace)) => sandbox.stop(id.as_str(), signal, grace).await,
            None => sandbox.kill(id.as_str()).await,
        };
        match ended {
            Ok(exit) => {
                let ran = Micros(exit.finished.saturating_sub(exit.started) / 1_000);
                return (spec::exit(&exit, true), ran);
            }
            // The Container is gone with its holder.
            Err(SandboxError::HolderLost { .. } | SandboxError::NotFound { .. }) => {
                let exit = Exit { at: now(), code: 137, oom_killed: false, intended: true };
                return (exit, Micros(0));
            }
            // It may still run, and nothing may run beside it.
            Err(error) => {
                tracing::error!(app = %worker.app, container = %id, %error, "cannot be stopped");
                asked = asked.map(|(signal, _)| (signal, Duration::ZERO));
                tokio::time::sleep(STOP_AGAIN).await;
            }
        }
    }
}

pub(super) fn stop_signal(worker: &Worker, part: &Part, revision: Revision) -> i32 {
    let Some(release) = release_spec(worker, revision.release) else { return libc::SIGTERM };
    let given = release.settings.stop_signal.filter(|_| part.is_main());
    let image = release.image_of(part).and_then(|(image, _)| worker.shared.images.get(image));
    let of_image = || spec::image_stop_signal(&image?.config);
    given.map(|signal| signal.number()).or_else(of_image).unwrap_or(libc::SIGTERM)
}

async fn run_pre_stop(
    worker: &Worker,
    sandbox: &Sandbox,
    id: &ContainerId,
    pre_stop: &PreStop,
    grace: Micros,
) {
    let frozen = matches!(sandbox.state(id.as_str()), Ok(ViewState::Frozen { .. }));
    let ran = match pre_stop {
        // The last request left it before it was frozen.
        PreStop::Sleep(_) if frozen => return,
        // A person asked for this wait. There is nothing to wait for once it has ended.
        PreStop::Sleep(span) => {
            let _ended = tokio::time::timeout(span.duration(), sandbox.wait(id.as_str())).await;
            return;
        }
        PreStop::Exec(argv) => {
            let spec = ExecSpec { argv: argv.clone(), ..ExecSpec::default() };
            let run = async {
                // Nothing runs in what stands still.
                sandbox.thaw(id.as_str()).await?;
                let mut handle = sandbox.exec(id.as_str(), spec).await?;
                handle.wait().await
            };
            tokio::time::timeout(grace.duration(), run).await
        }
    };
    let outcome = match ran {
        Ok(Ok(0)) => return,
        Ok(Ok(code)) => format!("ended with {code}"),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "did not end within the grace period".to_owned(),
    };
    tracing::warn!(app = %worker.app, container = %id, %outcome, "pre_stop failed");
}

fn stop_cause(worker: &Worker, ordinal: Ordinal, part: &Part, cause: StopCause) -> UserError {
    let (app, what) = (&worker.app.app, called(worker, ordinal, part));
    match cause {
        StopCause::NeverReady => UserError::new(
            Code::NeverReady,
            format!("{what} did not become ready in time"),
            format!(
                "see why with `stead logs {app}`; check http.port and the health paths, or raise \
                 health.startup.timeout"
            ),
        ),
        StopCause::NotAlive => UserError::new(
            Code::EngineFailed,
            format!("{what} failed its liveness probe"),
            format!("see why with `stead logs {app}`"),
        ),
    }
}

/// Takes in the end of a Container that nobody asked for.
pub(super) async fn crashed(worker: &Worker, id: &ContainerId, mut exit: Exit) {
    let Some((ordinal, container)) =
        worker.model().container(id).map(|(ordinal, c)| (ordinal, c.clone()))
    else {
        return;
    };
    let (since, frozen) = match container.state {
        ContainerState::Prepared => (None, false),
        ContainerState::Running { since, .. } => (Some(since), false),
        ContainerState::Frozen { .. } => (None, true),
        // Being stopped: the stop reports it.
        ContainerState::Stopping { .. } | ContainerState::Exited(_) => return,
    };
    // What stood still was of no more use than to come back: it is not missed.
    exit.intended |= frozen;
    let ContainerSeen { part, revision, traffic, .. } = container;
    let was_ready = part.is_main() && worker.model().been_ready(id);
    let routed = traffic != TrafficState::Detached;
    let failed = !exit.intended && (exit.code != 0 || restarts_always(worker, revision));
    let ill = failed.then(|| {
        let error = crash_error(worker, ordinal, &part, exit);
        Ill { revision, error, ran: since.map(|since| exit.at.since(since)), was_ready }
    });
    let fresh = worker.report(|model| {
        if routed {
            model.traffic(id, TrafficState::Draining);
        }
        model.ended(id, exit, ill.clone(), now())
    });
    if !fresh {
        return;
    }
    worker.emit(Some(ordinal), Some(id), Some(revision), Fact::Exited { exit });
    if !worker.model().been_ready(id) {
        java::failed(worker, id);
    }
    if let Some(ill) = ill {
        tell(worker, ordinal, &part, Some(id), ill);
    }
    if routed {
        serving::cut_off(worker, id).await;
    }
}

fn restarts_always(worker: &Worker, revision: Revision) -> bool {
    release_spec(worker, revision.release)
        .is_some_and(|spec| spec.settings.restart == RestartPolicy::Always)
}

fn crash_error(worker: &Worker, ordinal: Ordinal, part: &Part, exit: Exit) -> UserError {
    let (app, what) = (&worker.app.app, called(worker, ordinal, part));
    let (how, hint) = if exit.oom_killed {
        let hint = "raise resources.memory, or make the app use less";
        ("ran out of memory".to_owned(), hint.to_owned())
    } else {
        let how = match exit.code {
            code @ 129.. => format!("was ended by signal {}", code - 128),
            code => format!("ended with exit code {code}"),
        };
        (how, format!("see why with `stead logs {app}`"))
    };
    UserError::new(Code::ExitedAtOnce, format!("{what} {how}"), hint)
}

/// Takes in that an Instance's holder is gone, and its Containers with it.
pub(super) async fn lost(worker: &Worker, ordinal: Ordinal) {
    tracing::error!(app = %worker.app, %ordinal, "holder is gone: the instance starts anew");
    let exit = Exit { at: now(), code: 137, oom_killed: false, intended: false };
    let gone = worker.report(|model| model.all_exited(ordinal, exit));
    for (id, revision, _) in &gone {
        worker.emit(Some(ordinal), Some(id), Some(*revision), Fact::Exited { exit });
    }
    let wanted = worker.model().fleet.as_ref().and_then(|fleet| fleet.wanted(ordinal));
    let ran = gone.last().map(|(.., ran)| *ran);
    // Counted, so that what ends its holder again and again is paced.
    if let Some(revision) = gone.last().map(|(_, revision, _)| *revision).or(wanted) {
        let error = UserError::new(
            Code::EngineFailed,
            format!("the holder of instance {ordinal} of app {} has ended", worker.app.app),
            "look in the machine's kernel log who ended it",
        );
        let ill = Ill { ran, ..Ill::new(revision, error) };
        troubled(worker, ordinal, &Part::Main, None, ill);
    }
    for id in containers(worker, ordinal) {
        serving::cut_off(worker, &id).await;
    }
    remove_sandbox(worker, ordinal).await;
}
